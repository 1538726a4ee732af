//! What a watch holds, for those who check it.

use super::Watch;

impl Watch {
    /// The streams by number with their windows and whether they are answered, the connection's window, and whether
    /// something is unfinished.
    pub(in crate::listener::h2) fn seen(&self) -> (Vec<(u32, i64, bool)>, i64, bool) {
        let streams = self.rules.streams.iter().map(|(id, stream)| (*id, stream.window, stream.answered));
        let mut streams: Vec<_> = streams.collect();
        streams.sort_unstable();
        (streams, self.rules.window, self.rules.begun.is_some())
    }
}

//! What a watch holds, for those who check it.

use super::Watch;

impl Watch {
    /// The streams by number with their windows and whether they are answered, the connection's window, and whether
    /// something is unfinished.
    pub(in crate::listener::h2) fn seen(&self) -> (Vec<(u32, i64, bool)>, i64, bool) {
        let streams = self.rules.streams.each().map(|(id, stream)| (id, stream.window, stream.answered));
        (streams.collect(), self.rules.window, self.rules.begun.is_some())
    }
}

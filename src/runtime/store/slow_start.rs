//! Slow starts move on by time, whether or not requests come.

use std::time::Instant;

use super::Store;

impl Store {
    /// Moves on whoever is in slow start. `settled`: whether the first rounds of probes and look-ups are finished, so that a
    /// backend that joins an upstream from now on begins slowly. To be called several times a second; where nobody is
    /// in slow start it costs two loads for each upstream.
    pub fn advance_slow_starts(&self, settled: bool) {
        let snapshot = self.snapshot();
        let now = Instant::now();
        for member in snapshot.members() {
            if settled {
                member.upstream.settle();
            }
            member.upstream.advance_slow_starts(now);
        }
    }
}

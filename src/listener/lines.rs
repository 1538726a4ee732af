//! Lines in the log about what clients do, who could fill any disk with it: one a second, which says how many were left out.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

/// Between two lines.
const EVERY: Duration = Duration::from_secs(1);

/// Lines that count together.
#[derive(Debug, Default)]
pub(super) struct Lines(Mutex<Said>);

#[derive(Debug, Default)]
struct Said {
    last: Option<Instant>,
    skipped: u64,
}

impl Lines {
    /// Whether to log now, and how many were not logged since the last.
    pub(super) fn take(&self, now: Instant) -> Option<u64> {
        let mut said = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if said.last.is_some_and(|last| now.saturating_duration_since(last) < EVERY) {
            said.skipped += 1;
            return None;
        }
        said.last = Some(now);
        Some(std::mem::take(&mut said.skipped))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_line_a_second() {
        let lines = Lines::default();
        let start = Instant::now();
        assert_eq!(lines.take(start), Some(0));
        assert_eq!((1..1000).filter_map(|ms| lines.take(start + Duration::from_millis(ms))).count(), 0);
        assert_eq!(lines.take(start + EVERY), Some(999));
    }
}

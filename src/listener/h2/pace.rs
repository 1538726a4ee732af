//! How slowly one stream may move, as `listener/pace.rs` has it for HTTP/1: only time in which the client is waited for
//! counts, and each byte pays for its share of a second. Pure: time comes in.

use std::time::{Duration, Instant};

/// What everyone may wait for at first.
pub(super) const GRACE: Duration = Duration::from_secs(5);

/// How long things may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Patience {
    /// From a frame's (a header block's) first byte to its last.
    pub(super) header: Duration,
    /// While answers wait and the client takes nothing.
    pub(super) stall: Duration,
    /// Bytes per second of each stream, where something is asked.
    pub(super) rate: Option<u64>,
}

impl Patience {
    /// How often to look whether something is late.
    pub(super) fn tick(&self) -> Duration {
        (self.header.min(self.stall) / 8).clamp(Duration::from_millis(20), Duration::from_secs(1))
    }
}

/// One direction of one stream, or of a connection.
#[derive(Debug)]
pub(super) struct Pace {
    credit: Duration,
    /// Since when the client is waited for.
    since: Option<Instant>,
    /// It was late, whenever one looks.
    late: bool,
}

impl Pace {
    /// With the grace, and waiting for nobody.
    pub(super) const fn new() -> Self {
        Self { credit: GRACE, since: None, late: false }
    }

    /// Whether the client is waited for from now on.
    pub(super) fn waits(&mut self, waits: bool, now: Instant) {
        match (waits, self.since) {
            (true, None) => self.since = Some(now),
            (false, Some(_)) => {
                self.spend(now);
                self.since = None;
            }
            (true, Some(_)) | (false, None) => {}
        }
    }

    /// So many bytes moved; nobody saves up more than `most`.
    pub(super) fn moved(&mut self, bytes: u32, rate: u64, most: Duration, now: Instant) {
        self.spend(now);
        let nanos = u64::from(bytes).saturating_mul(1_000_000_000) / rate.max(1);
        self.credit = self.credit.saturating_add(Duration::from_nanos(nanos)).min(most.max(GRACE));
    }

    /// Whether the client has been waited for longer than was paid for.
    pub(super) fn late(&self, now: Instant) -> bool {
        self.late || self.since.is_some_and(|since| now.saturating_duration_since(since) >= self.credit)
    }

    fn spend(&mut self, now: Instant) {
        self.late = self.late(now);
        if let Some(since) = &mut self.since {
            self.credit = self.credit.saturating_sub(now.saturating_duration_since(*since));
            *since = now;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Duration = Duration::from_secs(60);

    #[test]
    fn bytes_pay_for_time_and_only_waiting_costs() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::new();
        assert!(!pace.late(at(1000)), "nobody waits");
        pace.waits(true, at(1000));
        assert!(!pace.late(at(1004)) && pace.late(at(1005)));
        pace.moved(2048, 1024, MOST, at(1004));
        assert!(!pace.late(at(1006)) && pace.late(at(1007)), "one second was left, and two were paid for");
        pace.waits(false, at(1006));
        assert!(!pace.late(at(5000)));
        pace.waits(true, at(5000));
        assert!(pace.late(at(5001)), "what was used before stays used");
    }

    #[test]
    fn nobody_saves_up_more_than_the_most() {
        let start = Instant::now();
        let mut pace = Pace::new();
        pace.waits(true, start);
        pace.moved(1 << 30, 1024, MOST, start);
        assert!(!pace.late(start + MOST - Duration::from_millis(1)) && pace.late(start + MOST));
    }

    #[test]
    fn who_was_late_stays_so() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pace = Pace::new();
        pace.waits(true, start);
        pace.moved(1 << 20, 1024, MOST, at(6));
        assert!(pace.late(at(6)), "nobody has looked meanwhile");
    }

    #[test]
    fn what_moves_while_nobody_waits_pays_too() {
        let start = Instant::now();
        let mut pace = Pace::new();
        pace.moved(1024, 1024, MOST, start);
        pace.waits(true, start);
        assert!(!pace.late(start + Duration::from_millis(5999)) && pace.late(start + Duration::from_secs(6)));
    }
}

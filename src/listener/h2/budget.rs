//! What one HTTP/2 connection may do how often: a bucket for each kind of frame that costs work and carries nothing.
//! A bucket fills with time, and with the requests and answers that such frames belong to, so that a busy client may
//! send more of them than an idle one. Pure: time comes in.

use std::time::Instant;

use crate::telemetry::metrics::H2Abuse;

/// What a bucket holds at first and what time fills it up to, what comes back each second, and the most that may be earned.
#[derive(Clone, Copy)]
struct Rate {
    burst: u32,
    per_second: u32,
    most: u32,
}

/// Generous beside what browsers and gRPC send, and far from what would cost a core: 10,000 control frames take h2 about
/// a hundredth of a second. What may be said of data that is on its way is earned for all of it, which may be many windows full.
const fn rate(kind: H2Abuse) -> Rate {
    let (burst, per_second) = match kind {
        // One stream gets ten crumbs a second (`policy/room.rs`), and may give them back for itself and for the connection.
        H2Abuse::Dribble => (200, 20),
        H2Abuse::Ping => (100, 10),
        H2Abuse::Priority => (200, 20),
        H2Abuse::Reset => (200, 20),
        H2Abuse::ServerReset => (200, 5),
        H2Abuse::Settings => (50, 5),
        H2Abuse::WindowUpdate => (1000, 100),
        _ => (0, 0),
    };
    let most = match kind {
        H2Abuse::Dribble => 1 << 14,
        H2Abuse::WindowUpdate => 1 << 18,
        _ => burst,
    };
    Rate { burst, per_second, most }
}

/// Small: every connection has all of them.
#[derive(Clone, Copy, Debug)]
struct Bucket {
    tokens: u32,
    /// In milliseconds since the connection began.
    filled: u32,
}

/// The buckets of a connection.
#[derive(Debug)]
pub(super) struct Budget {
    began: Instant,
    buckets: [Bucket; H2Abuse::ALL.len()],
}

impl Budget {
    pub(super) fn new(now: Instant) -> Self {
        Self { began: now, buckets: H2Abuse::ALL.map(|kind| Bucket { tokens: rate(kind).burst, filled: 0 }) }
    }

    /// When the connection began.
    pub(super) fn began(&self) -> Instant {
        self.began
    }

    /// Takes `cost`, or says what there is too much of.
    pub(super) fn take(&mut self, kind: H2Abuse, cost: u32, now: Instant) -> Result<(), H2Abuse> {
        let Rate { burst, per_second, most: _ } = rate(kind);
        // It begins anew after seven weeks, and a difference is right even so.
        let now = now.saturating_duration_since(self.began).as_millis() as u32;
        let bucket = &mut self.buckets[kind as usize]; // an array with a place for each kind
        let fresh = u64::from(now.wrapping_sub(bucket.filled)) * u64::from(per_second) / 1000;
        if let Ok(fresh @ 1..) = u32::try_from(fresh.min(u64::from(burst))) {
            bucket.tokens = bucket.tokens.saturating_add(fresh).min(burst.max(bucket.tokens));
            bucket.filled = now;
        }
        bucket.tokens = bucket.tokens.checked_sub(cost).ok_or(kind)?;
        Ok(())
    }

    /// Gives back what a request or an answer makes fair.
    pub(super) fn earn(&mut self, kind: H2Abuse, tokens: u32) {
        let bucket = &mut self.buckets[kind as usize];
        bucket.tokens = bucket.tokens.saturating_add(tokens).min(rate(kind).most);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_bucket_gives_its_burst_then_its_rate() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let taken =
            |budget: &mut Budget, at| (0..1000).take_while(|_| budget.take(H2Abuse::Ping, 1, at).is_ok()).count();
        assert_eq!(taken(&mut budget, start), 100);
        assert_eq!(taken(&mut budget, start + Duration::from_secs(2)), 20);
        assert_eq!(taken(&mut budget, start + Duration::from_secs(3600)), 100, "never more than the burst");
        budget.earn(H2Abuse::Ping, 3);
        assert_eq!(taken(&mut budget, start + Duration::from_secs(3600)), 3);
    }

    #[test]
    fn a_bucket_fills_after_seven_weeks_too() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        let at = |millis| start + Duration::from_millis(millis);
        let wraps = 1 << 32;
        assert_eq!(budget.take(H2Abuse::Ping, 100, at(wraps - 1000)), Ok(()));
        assert_eq!(budget.take(H2Abuse::Ping, 20, at(wraps + 1000)), Ok(()));
        assert_eq!(budget.take(H2Abuse::Ping, 1, at(wraps + 1000)), Err(H2Abuse::Ping));
    }

    #[test]
    fn short_steps_fill_a_bucket_too() {
        let start = Instant::now();
        let mut budget = Budget::new(start);
        while budget.take(H2Abuse::Ping, 1, start).is_ok() {}
        let steps = (1..=1000u64).map(|step| start + Duration::from_millis(step * 10));
        assert_eq!(steps.filter(|at| budget.take(H2Abuse::Ping, 1, *at).is_ok()).count(), 100);
    }
}

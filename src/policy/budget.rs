//! The retry budget: retries as a share of recent requests, so that retries cannot multiply the load on a backend that
//! fails. After Finagle's `RetryBudget`, tower's `TpsBudget` and Envoy's retry budgets. Which failure is worth
//! a retry is not decided here.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::types::Percent;

/// Seconds that requests and retries count for.
const WINDOW: u32 = 10;

/// Retries that are allowed in each second whatever the share says: without them a quiet upstream had none.
const ALWAYS_PER_SECOND: u32 = 10;

/// One slot more than the window, up to a power of two: a slot is empty or stale before its second comes round.
const SLOTS: usize = 16;

/// Counts requests and retries of one upstream over the last 10 s. Lock-free; a request costs one atomic addition.
#[derive(Debug, Default)]
#[repr(align(128))] // its own cache lines: every worker writes here
pub struct RetryBudget {
    requests: Ring,
    retries: Ring,
}

impl RetryBudget {
    /// Counts a request (not its retries). `now_ms`: milliseconds since any fixed moment, the same for all calls.
    pub fn on_request(&self, now_ms: u64) {
        self.requests.add(second(now_ms));
    }

    /// Takes one retry out of the budget; `false` where it is used up. A retry is allowed while there were fewer than
    /// 10 in this second, or fewer than `share` of the requests in the last 10 s.
    pub fn try_retry(&self, share: Percent, now_ms: u64) -> bool {
        let now = second(now_ms);
        let allowed = (self.requests.sum(now) as f64 * share.fraction()) as u64;
        // The retries of earlier seconds stand still, so comparing within the exchange keeps the limit exact.
        let earlier = self.retries.sum_before(now);
        self.retries.add_if(now, |count| count < ALWAYS_PER_SECOND || earlier + u64::from(count) < allowed)
    }

    /// Requests and retries of each second that counts, this one first, then backwards. Quiet seconds at the end are
    /// left out.
    pub fn export(&self, now_ms: u64) -> Vec<(u32, u32)> {
        let now = second(now_ms);
        let of = |ring: &Ring, back| u32::try_from(ring.count(now.wrapping_sub(back))).unwrap_or(u32::MAX);
        let mut counts: Vec<_> = (0..WINDOW).map(|back| (of(&self.requests, back), of(&self.retries, back))).collect();
        let kept = counts.iter().rposition(|counts| *counts != (0, 0)).map_or(0, |last| last + 1);
        counts.truncate(kept);
        counts
    }

    /// Goes on with what another budget has exported. To be called before anything is counted.
    pub fn adopt(&self, counts: &[(u32, u32)], now_ms: u64) {
        let now = second(now_ms);
        for (back, (requests, retries)) in (0..WINDOW).zip(counts) {
            self.requests.set(now.wrapping_sub(back), *requests);
            self.retries.set(now.wrapping_sub(back), *retries);
        }
    }
}

fn second(now_ms: u64) -> u32 {
    // Wraps after 136 years of uptime.
    (now_ms / 1000) as u32
}

/// A count per second; each slot packs the second (high half) with its count (low half), so that one exchange
/// starts a new second.
#[derive(Debug, Default)]
#[repr(align(128))]
struct Ring([AtomicU64; SLOTS]);

impl Ring {
    fn slot(&self, second: u32) -> Option<&AtomicU64> {
        self.0.get(second as usize % SLOTS)
    }

    fn add(&self, second: u32) {
        let Some(slot) = self.slot(second) else { return };
        // Relaxed throughout: the word carries all there is.
        let (stamp, _) = unpack(slot.load(Ordering::Relaxed));
        if stamp == second {
            slot.fetch_add(1, Ordering::Relaxed);
        } else {
            self.add_if(second, |_| true);
        }
    }

    fn add_if(&self, second: u32, allow: impl Fn(u32) -> bool) -> bool {
        let Some(slot) = self.slot(second) else { return false };
        let step = |word| {
            let (stamp, count) = unpack(word);
            let count = if stamp == second { count } else { 0 };
            allow(count).then(|| pack(second, count.saturating_add(1)))
        };
        slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step).is_ok()
    }

    fn set(&self, second: u32, count: u32) {
        if let Some(slot) = self.slot(second) {
            // Far from where adding would spill into the second.
            slot.store(pack(second, count.min(u32::MAX / 2)), Ordering::Relaxed);
        }
    }

    fn count(&self, second: u32) -> u64 {
        let (stamp, count) = self.slot(second).map_or((0, 0), |slot| unpack(slot.load(Ordering::Relaxed)));
        if stamp == second { u64::from(count) } else { 0 }
    }

    fn sum_before(&self, now: u32) -> u64 {
        // Before a clock's beginning there is what another process counted.
        (1..WINDOW).map(|back| self.count(now.wrapping_sub(back))).sum()
    }

    fn sum(&self, now: u32) -> u64 {
        self.sum_before(now) + self.count(now)
    }
}

fn pack(second: u32, count: u32) -> u64 {
    u64::from(second) << 32 | u64::from(count)
}

fn unpack(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    fn share(percent: u8) -> Percent {
        Percent::new(percent).expect("in range")
    }

    fn granted(budget: &RetryBudget, percent: u8, now_ms: u64, tries: usize) -> usize {
        (0..tries).filter(|_| budget.try_retry(share(percent), now_ms)).count()
    }

    #[test]
    fn a_quiet_upstream_has_ten_retries_a_second() {
        let budget = RetryBudget::default();
        for second in 0..30 {
            assert_eq!(granted(&budget, 0, second * 1000 + 5, 50), 10);
        }
    }

    #[test]
    fn a_busy_upstream_has_its_share_of_the_last_ten_seconds() {
        let budget = RetryBudget::default();
        for n in 0..10_000 {
            budget.on_request(n);
        }
        assert_eq!(granted(&budget, 20, 9_999, 5_000), 2_000);
        assert_eq!(granted(&budget, 20, 10_500, 5_000), 10, "the share is used up, ten a second remain");
        assert_eq!(granted(&budget, 20, 40_000, 5_000), 10, "the requests have left the window");
    }

    #[test]
    fn a_budget_goes_on_under_another_clock() {
        let (old, new) = (RetryBudget::default(), RetryBudget::default());
        for n in 0..1_000 {
            old.on_request(50_000 + n);
        }
        assert_eq!(granted(&old, 20, 52_000, 150), 150);
        let counts = old.export(53_500);
        assert_eq!(counts, [(0, 0), (0, 150), (0, 0), (1_000, 0)]);
        new.adopt(&counts, 0);
        assert_eq!(new.export(0), counts);
        assert_eq!(granted(&new, 20, 0, 5_000), 50, "200 in all");
        assert_eq!(
            granted(&new, 20, 7_000, 5_000),
            10,
            "the requests have left the window, ten seconds after they came"
        );
        assert_eq!(RetryBudget::default().export(53_500), []);
        assert_eq!(old.export(70_000), []);
    }

    #[test]
    fn a_bent_count_spills_nowhere() {
        let budget = RetryBudget::default();
        budget.adopt(&[(u32::MAX, u32::MAX); 40], 5_000);
        budget.on_request(5_000);
        assert_eq!(budget.export(5_000)[0], (u32::MAX / 2 + 1, u32::MAX / 2));
        assert_eq!(budget.export(5_000).len(), 10);
    }

    #[test]
    fn threads_cannot_overdraw() {
        let budget = Arc::new(RetryBudget::default());
        for _ in 0..10_000 {
            budget.on_request(1_234_567);
        }
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let budget = Arc::clone(&budget);
                thread::spawn(move || granted(&budget, 10, 1_234_567, 2_000))
            })
            .collect();
        let total: usize = threads.into_iter().map(|thread| thread.join().expect("no panic")).sum();
        assert_eq!(total, 1_000);
    }
}

//! When a worker has much less to do than before, what it kept for more goes back to the system: once, not while it is busy.
//!
//! Memory becomes free where something ends, a request or a connection. Who frees it gives it to the allocator, which keeps it
//! for the same thread; only that thread can have it given back.

use std::{
    sync::atomic::{AtomicBool, AtomicU32, Ordering},
    time::Duration,
};

// For what it is linked with.
use libmimalloc_sys as _;
use tokio::sync::Notify;

/// How often it is looked at what has ended. Nobody looks while nothing ends.
const BEAT: Duration = Duration::from_secs(1);
/// A beat is calm in which so many times fewer end than in the busiest one.
const CALM: u32 = 8;
/// So many calm beats in a row are a lull.
const BEATS: u32 = 2;

/// One worker's.
#[derive(Debug, Default)]
pub struct Lull {
    /// What has ended in this beat.
    ended: AtomicU32,
    /// Nobody looks until something ends.
    resting: AtomicBool,
    begun: Notify,
}

/// The beats since the last lull.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Beats {
    /// What ended in the busiest one.
    most: u32,
    /// How many of the last were calm.
    calm: u32,
}

impl Lull {
    /// Something has ended. Costs a few instructions.
    pub fn ended(&self) {
        // One thread counts; what another one takes away meanwhile may be lost.
        self.ended.store(self.ended.load(Ordering::Relaxed).wrapping_add(1), Ordering::Relaxed);
        if self.resting.load(Ordering::Relaxed) && self.resting.swap(false, Ordering::AcqRel) {
            self.begun.notify_one();
        }
    }

    /// Returns when a lull has come. For one at a time.
    pub async fn comes(&self, beats: &mut Beats) {
        loop {
            if *beats == Beats::default() {
                self.resting.store(true, Ordering::Release);
                if self.ended.load(Ordering::Acquire) == 0 {
                    self.begun.notified().await;
                }
                self.resting.store(false, Ordering::Release);
            }
            tokio::time::sleep(BEAT).await;
            if beats.pass(self.ended.swap(0, Ordering::AcqRel)) {
                return;
            }
        }
    }
}

impl Beats {
    /// A beat has passed in which so many ended. Returns whether it completes a lull.
    fn pass(&mut self, ended: u32) -> bool {
        self.most = self.most.max(ended);
        let calm = self.most > 0 && ended <= self.most / CALM;
        self.calm = if calm { self.calm + 1 } else { 0 };
        let lull = self.calm == BEATS;
        if lull {
            *self = Self { most: ended, calm: 0 };
        }
        lull
    }
}

/// Gives back what this thread's allocations have left free. Takes some hundred microseconds, and some milliseconds after many MiB.
pub fn give_back() {
    // SAFETY: only what is free is given back; where mimalloc is not the allocator it has nothing.
    unsafe { mi_collect(true) };
    // aws-lc asks the C library.
    #[cfg(target_env = "gnu")]
    // SAFETY: as above.
    unsafe {
        libc::malloc_trim(0)
    };
}

/// Gives back pages that anybody has freed a second ago or more. mimalloc looks for them when it is asked for a page, so in a
/// process that has nothing to do they would stay. Takes some microseconds where there is nothing.
pub fn give_back_pages() {
    // SAFETY: as above.
    unsafe { mi_collect(false) };
}

// Of a feature of that crate which would bring another one.
unsafe extern "C" {
    fn mi_collect(force: bool);
}

#[cfg(test)]
mod tests {
    use super::*;

    /// In which of these beats a lull is complete.
    fn lulls(beats: &[u32]) -> Vec<usize> {
        let mut passed = Beats::default();
        (0..beats.len()).filter(|at| passed.pass(beats[*at])).collect()
    }

    #[test]
    fn a_lull_comes_once_after_a_time_of_work() {
        assert_eq!(lulls(&[5, 0, 0, 0, 0, 0]), [2]);
        assert_eq!(lulls(&[100, 900, 800, 0, 0, 0, 0, 1, 0, 0, 0]), [4, 9]);
    }

    #[test]
    fn steady_work_has_none_however_little_it_is() {
        for steady in [1, 2, 7, 1000] {
            let least = if steady == 1 { 1 } else { steady / 2 + 1 };
            let beats: Vec<u32> = (0..100).map(|at| if at % 3 == 0 { steady } else { least }).collect();
            assert_eq!(lulls(&beats), [0; 0], "{steady}");
        }
    }

    #[test]
    fn much_less_work_is_one_too_and_then_what_is_usual() {
        assert_eq!(lulls(&[8000, 8000, 900, 800, 700, 700, 700, 700]), [3]);
        assert_eq!(lulls(&[8000, 1000, 8000, 900, 8000, 900, 2000]), [0; 0], "one calm beat is none");
    }

    #[tokio::test]
    async fn nobody_looks_until_something_ends() {
        let (lull, mut beats) = (Lull::default(), Beats::default());
        for _ in 0..2 {
            let mut comes = std::pin::pin!(lull.comes(&mut beats));
            assert!(tokio::time::timeout(Duration::from_millis(10), &mut comes).await.is_err());
            assert!(lull.resting.load(Ordering::Relaxed));
            lull.ended();
            assert!(!lull.resting.load(Ordering::Relaxed));
            tokio::time::timeout(10 * BEAT, comes).await.expect("a lull");
        }
    }
}

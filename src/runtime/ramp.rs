//! The slow-start clock of one backend. It outlives builds, as health does, and is moved on by upkeep; schedules read
//! no more than the part it has come to.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use crate::policy::slow_start::Part;

/// Where a backend stands in its slow start, for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SlowStart {
    /// What it has of its share.
    pub part: Part,
    /// Until it has the whole of it.
    pub remaining: Duration,
}

/// The clock and the part of the share that follows from it.
#[derive(Debug)]
pub(super) struct Ramp {
    clock: Mutex<Clock>,
    /// In twentieths; read without the clock's lock.
    part: AtomicU8,
}

#[derive(Clone, Copy, Debug)]
enum Clock {
    /// Requests come since then.
    Since(Instant),
    /// It begins when requests may come.
    Waiting,
    /// There is none.
    Whole,
}

impl Default for Ramp {
    fn default() -> Self {
        Self { clock: Mutex::new(Clock::Whole), part: AtomicU8::new(Part::WHOLE.twentieths()) }
    }
}

impl Ramp {
    /// From the beginning, as soon as the backend is usable.
    pub(super) fn begin(&self) {
        let mut clock = self.lock();
        *clock = Clock::Waiting;
        self.keep(Part::FIRST);
    }

    /// Goes on after so long, as it was in another process.
    pub(super) fn resume(&self, elapsed: Duration, over: Duration, now: Instant) {
        match now.checked_sub(elapsed).filter(|_| !elapsed.is_zero()) {
            Some(since) => {
                let mut clock = self.lock();
                *clock = Clock::Since(since);
                self.keep(Part::at(elapsed, over));
            }
            None => self.begin(),
        }
    }

    /// Moves the clock on; `over` is `None` where there is no slow start (any more). Returns whether the part is another
    /// one than before.
    pub(super) fn advance(&self, over: Option<Duration>, usable: bool, now: Instant) -> bool {
        let mut clock = self.lock();
        let part = match (*clock, over) {
            (Clock::Whole, _) => return false,
            (Clock::Since(_) | Clock::Waiting, None) => Part::WHOLE,
            (Clock::Waiting, Some(_)) => {
                if usable {
                    *clock = Clock::Since(now);
                }
                Part::FIRST
            }
            (Clock::Since(since), Some(over)) => Part::at(now.saturating_duration_since(since), over),
        };
        if part.is_whole() {
            *clock = Clock::Whole;
        }
        let changed = part != self.part();
        self.keep(part);
        changed
    }

    /// What the backend has of its share.
    pub(super) fn part(&self) -> Part {
        Part::from_twentieths(self.part.load(Ordering::Acquire))
    }

    /// How long it has been going on; nothing while it waits for its beginning, `None` where there is none.
    pub(super) fn elapsed(&self, now: Instant) -> Option<Duration> {
        match *self.lock() {
            Clock::Since(since) => Some(now.saturating_duration_since(since)),
            Clock::Waiting => Some(Duration::ZERO),
            Clock::Whole => None,
        }
    }

    /// Under the clock's lock, so that both agree.
    fn keep(&self, part: Part) {
        self.part.store(part.twentieths(), Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

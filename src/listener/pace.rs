//! How slowly a client may send its body or take its answer. Only time in which it is the client who is waited for
//! counts, so who waits for a backend or sends at once costs nothing and is never late. Each byte of data that moves pays
//! for its share of a second; when what was paid for is used up, the worker's table of deadlines ends the connection.

use std::{
    os::fd::RawFd,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    runtime::deadlines::{Deadline, Deadlines, How, Wait},
    types::ByteSize,
};

/// What everyone may wait for at first.
const GRACE: Duration = Duration::from_secs(5);
/// As long as this nobody is silent, however much came before. A client that waits for `100 Continue` has this until that is
/// said or its body begins: it is a backend who lets it wait.
const LONGEST: Duration = Duration::from_secs(60);

/// What is asked of the clients of a listener.
#[derive(Clone)]
pub(super) struct Pacing {
    deadlines: Arc<Deadlines>,
    /// Bytes per second, more than 0.
    rate: u64,
}

/// One direction of one message. Made when the client is waited for the first time.
pub(super) struct Pace {
    deadline: Deadline,
    rate: u64,
    /// What this direction may wait. Of an answer what the client takes while a write is held up is counted where the deadline is swept,
    /// out of the system's buffer.
    credit: Duration,
    /// The client may wait to be asked for its body, and has sent none of it.
    patient: bool,
    since: Option<Instant>,
    late: bool,
}

impl Pacing {
    /// `None` where nothing is asked.
    pub(super) fn new(deadlines: &Arc<Deadlines>, rate: Option<ByteSize>) -> Option<Self> {
        rate.filter(|rate| rate.0 > 0).map(|rate| Self { deadlines: deadlines.clone(), rate: rate.0 })
    }

    /// For bytes from the client. `patient`: it has been asked for nothing yet.
    pub(super) fn sender(&self, patient: bool) -> Box<Pace> {
        let mut pace = self.pace(How::Read, if patient { LONGEST } else { GRACE });
        pace.patient = patient;
        pace
    }

    /// For bytes to the client. What it takes out of the system's buffer counts, though nothing is written meanwhile.
    pub(super) fn reader(&self) -> Box<Pace> {
        let pace = self.pace(How::Abort, GRACE);
        pace.deadline.drains(self.rate);
        pace
    }

    fn pace(&self, how: How, credit: Duration) -> Box<Pace> {
        let (deadline, rate) = (self.deadlines.guard(how), self.rate);
        Box::new(Pace { deadline, rate, credit, patient: false, since: None, late: false })
    }
}

impl Pace {
    /// The client is waited for, if it was not already.
    pub(super) fn waits(&mut self, fd: RawFd) {
        if self.since.is_none() {
            let now = Instant::now();
            self.since = Some(now);
            self.deadline.arm(fd, Wait::Work, now, self.credit);
        }
    }

    /// The client need not wait any more: from now on it is as any other.
    pub(super) fn asked(&mut self, fd: RawFd) {
        if std::mem::take(&mut self.patient) {
            self.credit = GRACE;
            if self.since.take().is_some() {
                self.late |= self.deadline.disarm();
                self.waits(fd);
            }
        }
    }

    /// So many bytes of data moved; none, where what came was only around them.
    pub(super) fn moved(&mut self, bytes: usize) {
        if let Some(since) = self.since.take() {
            self.late |= self.deadline.disarm();
            if std::mem::take(&mut self.patient) {
                // Its body has begun: from now on it is as any other.
                self.credit = GRACE;
            } else {
                self.credit = self.credit.saturating_sub(since.elapsed());
            }
        }
        let nanos = (bytes as u64).saturating_mul(1_000_000_000) / self.rate;
        self.credit = self.credit.saturating_add(Duration::from_nanos(nanos)).min(LONGEST);
    }

    /// Nothing moved: the connection has ended, perhaps because the client was late.
    pub(super) fn ended(&mut self) -> bool {
        self.late |= self.deadline.fired();
        self.late
    }
}

impl std::fmt::Debug for Pacing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pacing").field("rate", &self.rate).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Pace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pace").field("credit", &self.credit).field("late", &self.late).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_to_be_asked_has_a_minute_until_its_body_begins_and_then_the_grace_of_all() {
        let pacing = Pacing::new(&Deadlines::new(), Some(ByteSize(1000))).expect("a rate");
        let mut pace = pacing.sender(true);
        assert_eq!(pace.credit, LONGEST);
        pace.waits(-1);
        pace.moved(0);
        assert_eq!(pace.credit, GRACE);
        pace.waits(-1);
        pace.moved(2000);
        assert!(pace.credit > GRACE && pace.credit <= GRACE + Duration::from_secs(2), "{pace:?}");
        assert_eq!(pacing.sender(false).credit, GRACE);
    }

    /// A socket takes something now and then, however slow its client is.
    #[test]
    fn who_takes_an_answer_too_slowly_uses_up_its_grace_over_many_writes() {
        let pacing = Pacing::new(&Deadlines::new(), Some(ByteSize(1 << 40))).expect("a rate");
        let mut pace = pacing.reader();
        pace.waits(-1);
        pace.since = Instant::now().checked_sub(Duration::from_secs(3));
        pace.moved(1000);
        assert!(pace.credit <= GRACE - Duration::from_secs(3), "{pace:?}");
        pace.waits(-1);
        pace.since = Instant::now().checked_sub(Duration::from_secs(3));
        pace.moved(1000);
        assert!(pace.credit < Duration::from_millis(1), "{pace:?}");
    }

    #[test]
    fn who_was_asked_has_the_grace_of_all_from_then_on() {
        let pacing = Pacing::new(&Deadlines::new(), Some(ByteSize(1000))).expect("a rate");
        let mut pace = pacing.sender(true);
        pace.waits(-1);
        let before = pace.since;
        pace.asked(-1);
        assert!(pace.credit == GRACE && pace.since > before, "{pace:?}");
        let mut pace = pacing.sender(true);
        pace.asked(-1);
        assert!(pace.credit == GRACE && pace.since.is_none(), "{pace:?}");
    }
}

//! How long a client is waited for, by the worker's table of deadlines; nothing until it has to be waited for.

use std::{
    os::fd::RawFd,
    time::{Duration, Instant},
};

use super::super::kit::Kit;
use crate::runtime::deadlines::{Deadline, How, Wait};

/// One way of a client's connection.
#[derive(Default)]
pub(super) struct Patience {
    deadline: Option<Deadline>,
    waiting: bool,
}

impl Patience {
    /// The client is waited for, if it was not already.
    pub(super) fn waits(&mut self, kit: &Kit, fd: RawFd, how: How, patience: Duration) {
        if !std::mem::replace(&mut self.waiting, true) {
            let deadline = self.deadline.get_or_insert_with(|| kit.deadlines().guard(how));
            deadline.arm(fd, Wait::Work, Instant::now(), patience);
        }
    }

    /// Whether the client is waited for.
    pub(super) fn is_waiting(&self) -> bool {
        self.waiting
    }

    /// As long again for a client that is waited for: it is busy with the other way.
    pub(super) fn renew(&self, patience: Duration) {
        if self.waiting
            && let Some(deadline) = &self.deadline
        {
            deadline.renew(Instant::now(), patience);
        }
    }

    /// Something moved, or nothing will any more. Returns whether that was too late.
    pub(super) fn moved(&mut self) -> bool {
        std::mem::take(&mut self.waiting) && self.deadline.as_ref().is_some_and(Deadline::disarm)
    }
}

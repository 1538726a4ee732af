//! When an HTTP/2 connection has had no request for too long. Its alarm is set once and looked at when it rings: most requests
//! come before, and cost no timer.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

#[derive(Debug, Default)]
pub(super) struct Idle {
    since: Option<Instant>,
    alarm: Option<Pin<Box<Sleep>>>,
}

impl Idle {
    /// It counts from now on.
    pub(super) fn begin_anew(&mut self) {
        self.since = None;
    }

    /// Whether there has been nothing for so long; `idle`: there is nothing now. `other`: another is to be woken than before.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, idle: bool, limit: Duration, other: bool) -> Poll<()> {
        if !idle {
            self.since = None;
            return Poll::Pending;
        }
        let due = *self.since.get_or_insert_with(Instant::now) + limit;
        let mut fresh = other || self.alarm.is_none();
        let alarm = self.alarm.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if alarm.deadline() > due {
            alarm.as_mut().reset(due);
            fresh = true;
        }
        if !fresh && !alarm.is_elapsed() {
            return Poll::Pending;
        }
        while alarm.as_mut().poll(cx).is_ready() {
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            alarm.as_mut().reset(due);
        }
        Poll::Pending
    }
}

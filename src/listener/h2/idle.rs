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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn look(of: &mut Idle, idle: bool, limit: Duration) -> bool {
        poll_fn(|cx| Poll::Ready(of.poll(cx, idle, limit, false).is_ready())).await
    }

    #[tokio::test]
    async fn it_counts_from_the_last_request_though_the_alarm_was_set_before() {
        const LIMIT: Duration = Duration::from_millis(40);
        let mut idle = Idle::default();
        assert!(!look(&mut idle, true, LIMIT).await);
        let began = Instant::now();
        while began.elapsed() < LIMIT / 2 {
            assert!(!look(&mut idle, false, LIMIT).await);
            tokio::task::yield_now().await;
        }
        poll_fn(|cx| idle.poll(cx, true, LIMIT, false)).await;
        assert!(began.elapsed() >= LIMIT + LIMIT / 2);
    }

    #[tokio::test]
    async fn who_is_to_go_has_the_time_from_then_on() {
        let mut idle = Idle::default();
        assert!(!look(&mut idle, true, Duration::from_secs(3600)).await);
        idle.begin_anew();
        assert!(!look(&mut idle, true, Duration::from_secs(60)).await);
        idle.begin_anew();
        poll_fn(|cx| idle.poll(cx, true, Duration::from_millis(1), false)).await;
    }
}

//! When an HTTP/2 connection has had no request for too long. Its alarm is set once and looked at when it rings: most requests
//! come before, and cost no timer.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::Instant;

use super::alarm::Alarm;

#[derive(Debug, Default)]
pub(super) struct Idle {
    since: Option<Instant>,
    alarm: Option<Alarm>,
}

impl Idle {
    /// It counts from now on.
    pub(super) fn begin_anew(&mut self) {
        self.since = None;
    }

    /// Whether there has been nothing for so long; `idle`: there is nothing now.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, idle: bool, limit: Duration) -> Poll<()> {
        if !idle {
            self.since = None;
            return Poll::Pending;
        }
        let due = *self.since.get_or_insert_with(Instant::now) + limit;
        let alarm = self.alarm.get_or_insert_with(|| Alarm::at(due));
        if alarm.due() > due {
            alarm.reset(due);
        }
        while alarm.poll(cx).is_ready() {
            if Instant::now() >= due {
                return Poll::Ready(());
            }
            alarm.reset(due);
        }
        Poll::Pending
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    async fn look(of: &mut Idle, idle: bool, limit: Duration) -> bool {
        poll_fn(|cx| Poll::Ready(of.poll(cx, idle, limit).is_ready())).await
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
        poll_fn(|cx| idle.poll(cx, true, LIMIT)).await;
        assert!(began.elapsed() >= LIMIT + LIMIT / 2);
    }

    #[tokio::test]
    async fn who_is_to_go_has_the_time_from_then_on() {
        let mut idle = Idle::default();
        assert!(!look(&mut idle, true, Duration::from_secs(3600)).await);
        idle.begin_anew();
        assert!(!look(&mut idle, true, Duration::from_secs(60)).await);
        idle.begin_anew();
        poll_fn(|cx| idle.poll(cx, true, Duration::from_millis(1))).await;
    }
}

//! A timer that is looked at far more often than it rings, and costs little where it has not.

use std::{
    pin::Pin,
    task::{Context, Poll, Waker},
};

use tokio::time::{Instant, Sleep, sleep_until};

#[derive(Debug)]
pub(super) struct Alarm {
    timer: Pin<Box<Sleep>>,
    /// Whom it wakes; nobody until it is looked at.
    wakes: Waker,
}

impl Alarm {
    pub(super) fn at(due: Instant) -> Self {
        Self { timer: Box::pin(sleep_until(due)), wakes: Waker::noop().clone() }
    }

    /// When it rings.
    pub(super) fn due(&self) -> Instant {
        self.timer.deadline()
    }

    /// It rings then, and wakes nobody until it is looked at.
    pub(super) fn reset(&mut self, due: Instant) {
        self.timer.as_mut().reset(due);
        self.wakes = Waker::noop().clone();
    }

    /// Whether it rings; it does until it is reset.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.wakes.will_wake(cx.waker()) {
            self.wakes.clone_from(cx.waker());
        } else if !self.timer.is_elapsed() {
            // It knows whom to wake.
            return Poll::Pending;
        }
        self.timer.as_mut().poll(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, time::Duration};

    use super::*;

    const SOON: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn it_wakes_whoever_looked_last_however_often_it_was_reset() {
        let mut alarm = Alarm::at(Instant::now() + SOON);
        for _ in 0..3 {
            // By another one, who has gone.
            assert!(alarm.poll(&mut Context::from_waker(Waker::noop())).is_pending());
            let looked = poll_fn(|cx| Poll::Ready([alarm.poll(cx), alarm.poll(cx)].map(|rings| rings.is_ready())));
            assert_eq!(looked.await, [false; 2]);
            poll_fn(|cx| alarm.poll(cx)).await;
            assert!(Instant::now() >= alarm.due());
            alarm.reset(Instant::now() + SOON);
        }
    }
}

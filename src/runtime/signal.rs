//! Tells one who waits that something has happened. What `tokio::sync::Notify` does for one, without what it needs for many: who is polled
//! for other reasons too looks at it each time.

use std::{
    future::poll_fn,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

/// Given and not heard of, or not given. At most one waits for it.
#[derive(Debug, Default)]
pub struct Signal {
    given: AtomicBool,
    waiter: Mutex<Option<Waker>>,
}

impl Signal {
    /// Gives it; who waits is woken. Given again before it was heard of, it is one.
    pub fn give(&self) {
        self.given.store(true, Ordering::SeqCst);
        let waiter = self.waiter.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some(waiter) = waiter {
            waiter.wake();
        }
    }

    /// Whether it was given since this was asked; if not, the one who asks is woken when it is.
    pub fn poll(&self, cx: &Context<'_>) -> Poll<()> {
        {
            let mut waiter = self.waiter.lock().unwrap_or_else(PoisonError::into_inner);
            if !waiter.as_ref().is_some_and(|waiter| waiter.will_wake(cx.waker())) {
                *waiter = Some(cx.waker().clone());
            }
        }
        // Only looked at, mostly.
        let given = self.given.load(Ordering::SeqCst) && self.given.swap(false, Ordering::SeqCst);
        if given { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Returns when it is given.
    pub async fn given(&self) {
        poll_fn(|cx| self.poll(cx)).await;
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    async fn wakes_who_waits(signal: &Arc<Signal>) {
        let waiting = signal.clone();
        let waits = tokio::spawn(async move { waiting.given().await });
        tokio::task::yield_now().await;
        signal.give();
        waits.await.expect("no panic");
    }

    #[tokio::test]
    async fn who_waits_is_woken_and_who_comes_later_hears_of_it_once() {
        let signal = Arc::<Signal>::default();
        wakes_who_waits(&signal).await;
        signal.give();
        signal.give();
        let heard = poll_fn(|cx| Poll::Ready([signal.poll(cx), signal.poll(cx)].map(|heard| heard.is_ready())));
        assert_eq!(heard.await, [true, false]);
    }

    #[tokio::test]
    async fn who_has_waited_last_is_woken() {
        let signal = Arc::<Signal>::default();
        assert!(signal.poll(&Context::from_waker(Waker::noop())).is_pending());
        wakes_who_waits(&signal).await;
        assert!(signal.poll(&Context::from_waker(Waker::noop())).is_pending(), "it was heard of");
    }
}

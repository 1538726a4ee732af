//! Whether the workers' event loops turn, for a watchdog that ends a process which hangs: each is asked now and then
//! and answers from inside its loop. Costs nothing while nobody asks.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

/// One worker's.
#[derive(Debug)]
pub(super) struct Pulse {
    asked: Notify,
    answered: AtomicBool,
}

impl Pulse {
    /// Counts as answered, so that the first one who asks is told so.
    pub(super) fn new() -> Self {
        Self { asked: Notify::new(), answered: AtomicBool::new(true) }
    }

    /// Whether the worker has answered since it was asked last; asks again.
    pub(super) fn ask(&self) -> bool {
        let answered = self.answered.swap(false, Ordering::AcqRel);
        self.asked.notify_one();
        answered
    }

    /// Answers for as long as the loop turns.
    pub(super) async fn answer(&self) {
        loop {
            self.asked.notified().await;
            self.answered.store(true, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_loop_that_does_not_turn_does_not_answer() {
        let pulse = Arc::new(Pulse::new());
        let answering = pulse.clone();
        tokio::spawn(async move { answering.answer().await });
        assert!(pulse.ask(), "nobody was asked yet");
        // This very loop is the worker's: until something is awaited it does not turn.
        assert!(!pulse.ask() && !pulse.ask());
        for _ in 0..10 {
            tokio::task::yield_now().await;
        }
        assert!(pulse.ask());
    }
}

//! How much a request moves before the others of its worker have their turn.

use std::task::Context;

/// Bytes that are moved at once: half a millisecond or so.
const MOST: usize = 1024 * 1024;

/// One turn of a request.
#[derive(Debug, Default)]
pub(super) struct Turn {
    /// Bytes that it may still move.
    left: usize,
    /// The deadlines have been set in it.
    pub(super) renewed: bool,
}

impl Turn {
    pub(super) fn begin() -> Self {
        Self { left: MOST, renewed: false }
    }

    /// So many bytes were moved.
    pub(super) fn spend(&mut self, bytes: usize) {
        self.left = self.left.saturating_sub(bytes);
    }

    /// Whether it is over; if so, another one comes after those of the others.
    pub(super) fn is_over(&self, cx: &Context<'_>) -> bool {
        if self.left == 0 {
            cx.waker().wake_by_ref();
        }
        self.left == 0
    }
}

//! Whether the client has left, which is looked for once its request is here: nothing else is read of it then.

use std::{
    future::Future as _,
    pin::pin,
    task::{Context, Poll},
};

use pingora_core::Error;
use tokio::io::AsyncReadExt as _;

use super::{
    super::{
        attempt::Attempt,
        wire::{Wire, gone},
    },
    Lane,
};
use crate::runtime::line::Line;

impl<W: Wire> Lane<'_, W> {
    /// Looks whether the client has left.
    pub(super) fn poll_gone(&mut self, cx: &mut Context<'_>, attempt: &mut Attempt<Line>) -> Option<Box<Error>> {
        if !self.asked.is_done() || self.wire.poll_stirs(cx).is_pending() {
            return None;
        }
        let mut nothing = [0; 1];
        let Poll::Ready(left) = pin!(self.wire.read(&mut nothing)).poll(cx) else { return None };
        if self.out.leaving {
            // It may have been ended for taking its answer too slowly; who writes is told.
            let _ = self.poll_leave(cx, Some(attempt));
        }
        Some(gone(left.err(), "before its answer's end"))
    }
}

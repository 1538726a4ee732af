//! How the parts of an answer go into the windows of its HTTP/2 client.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use h2::SendStream;
use pingora_core::{Error, ErrorType, Result};
use tokio::time::{Sleep, sleep};

use super::{cancel::Cancel, stream::failed};
use crate::policy::room;

/// Of one answer.
#[derive(Debug)]
pub struct Outlet {
    /// The most room that was seen.
    largest: usize,
    /// Until when a part waits that little room would cut. Boxed, as it is rare.
    held: Option<Pin<Box<Sleep>>>,
    /// Is told of that: it is the client who is waited for.
    cancel: Arc<Cancel>,
}

impl Outlet {
    /// Of the request that `cancel` ends.
    pub const fn new(cancel: Arc<Cancel>) -> Self {
        Self { largest: 0, held: None, cancel }
    }

    /// How many bytes of a part of `left`, which is not empty, may be sent now; at least one.
    ///
    /// # Errors
    /// The stream has ended.
    pub fn poll_room(
        &mut self,
        sending: &mut SendStream<Bytes>,
        left: usize,
        cx: &mut Context<'_>,
    ) -> Poll<Result<usize>> {
        sending.reserve_capacity(left);
        let mut room = sending.capacity();
        let room = loop {
            self.largest = self.largest.max(room);
            if room >= left || (room > 0 && room >= room::least(self.largest)) {
                break Ok(room);
            }
            // Says each change once, and not how much room there was before.
            match sending.poll_capacity(cx) {
                Poll::Ready(Some(Ok(_))) => room = sending.capacity(),
                Poll::Ready(Some(Err(error))) => break Err(failed(error)),
                Poll::Ready(None) => {
                    break Err(Error::explain(ErrorType::ConnectionClosed, "within its answer").into_down());
                }
                Poll::Pending if room == 0 => {
                    self.let_go();
                    return Poll::Pending;
                }
                Poll::Pending if self.hold(cx).is_pending() => return Poll::Pending,
                Poll::Pending => break Ok(room),
            }
        };
        self.let_go();
        Poll::Ready(room)
    }

    /// There is little room. Ready when it was waited for long enough.
    fn hold(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let held = self.held.get_or_insert_with(|| {
            self.cancel.set_held(true);
            Box::pin(sleep(room::PATIENCE))
        });
        held.as_mut().poll(cx)
    }

    fn let_go(&mut self) {
        if self.held.take().is_some() {
            self.cancel.set_held(false);
        }
    }
}

#[cfg(test)]
mod tests;

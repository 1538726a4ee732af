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

/// More room than this tells nothing: as much is a window at first.
const MOST: usize = 65_535;

/// Of one answer.
#[derive(Debug)]
pub struct Outlet {
    /// The most room that there was, as far as it was seen.
    largest: usize,
    /// Bytes since room was waited for: there was room for all of them, mostly at once.
    flowed: usize,
    /// Until when a part waits that little room would cut. Boxed, as it is rare.
    held: Option<Pin<Box<Sleep>>>,
    /// Is told of that. Room is little where the client's windows are, for which it is waited for then, and where what was sent before has not left:
    /// which of them, the watch sees.
    cancel: Arc<Cancel>,
}

impl Outlet {
    /// Of the request that `cancel` ends.
    pub const fn new(cancel: Arc<Cancel>) -> Self {
        Self { largest: 0, flowed: 0, held: None, cancel }
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
        let piece = loop {
            self.largest = self.largest.max(self.flowed.saturating_add(room).min(MOST));
            if let Some(piece) = room::piece(left, room, self.largest) {
                break Ok(piece);
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
                    self.flowed = 0;
                    return Poll::Pending;
                }
                Poll::Pending if self.hold(cx).is_pending() => {
                    self.flowed = 0;
                    return Poll::Pending;
                }
                Poll::Pending => {
                    // Perhaps it was given back while it flowed, and there is never so much at once.
                    self.largest = room.max(self.largest / 2);
                    break Ok(room);
                }
            }
        };
        self.let_go();
        if let Ok(piece) = &piece {
            self.flowed = self.flowed.saturating_add(*piece);
        }
        Poll::Ready(piece)
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

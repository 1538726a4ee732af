//! A request's body, as it comes from the client.

use std::{
    io,
    pin::pin,
    task::{Context, Poll, ready},
};

use pingora_core::{Error, ErrorType, Result};
use tokio::io::AsyncReadExt as _;

use super::{
    super::{
        super::admit::READ_TIMEOUT,
        asked::RETAINED,
        attempt::{Attempt, FLOWING, LARGEST},
        memory::Desk,
        wire::Wire,
    },
    Lane, gone,
    past::LEAST,
};
use crate::{
    proxy::downstream::Downstream as _,
    runtime::{deadlines::How, line::Line},
};

/// Read at once of a request's body, until it is [`FLOWING`].
const PART: usize = 64 * 1024;

impl<W: Wire> Lane<'_, W> {
    /// The next part of the request's body. It is not empty.
    pub(super) fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.desk.incoming.reserve(if self.asked.received() < FLOWING { PART } else { LARGEST });
        let read = pin!(self.wire.read_buf(&mut self.desk.incoming)).poll(cx);
        self.came(read)
    }

    fn came(&mut self, read: Poll<io::Result<usize>>) -> Poll<Result<()>> {
        if read.is_pending() {
            self.sender.waits(self.kit, self.wire.descriptor(), How::Read, READ_TIMEOUT);
            return Poll::Pending;
        }
        let late = self.sender.moved();
        match ready!(read) {
            Ok(1..) => Poll::Ready(Ok(())),
            Ok(0) | Err(_) if late => {
                Poll::Ready(Err(Error::explain(ErrorType::ReadTimedout, "within the request's body").into_down()))
            }
            ended => Poll::Ready(Err(gone(ended.err(), "within its request's body"))),
        }
    }

    /// Whether the next part goes past our memory: a body that is large, with a length, between two sockets in plain text.
    pub(super) fn body_goes_past(&mut self, attempt: &Attempt<Line>) -> bool {
        // More of it is not kept for another attempt.
        let large = self.asked.received() > RETAINED as u64 && self.wire.unseen() >= LEAST;
        if !large || !attempt.takes_pipes() {
            return false;
        }
        if self.desk.up.is_none() {
            self.desk.up = self.kit.memory().pipe();
        }
        self.desk.up.is_some()
    }

    /// The next part, of which there is at least a byte, on its way past us. Returns how much it is.
    pub(super) fn poll_body_past(&mut self, cx: &mut Context<'_>) -> Poll<Result<usize>> {
        let Some(pipe) = &mut self.desk.up else { return Poll::Pending };
        let taken = self.wire.poll_pipe(cx, pipe);
        let bytes = if let Poll::Ready(Ok(bytes)) = &taken { *bytes } else { 0 };
        ready!(self.came(taken))?;
        self.asked.take_past(bytes, self.wire.is_at_border(), &mut self.desk.given);
        Poll::Ready(Ok(bytes))
    }

    /// What is on its way past us leaves. Returns whether anything moved.
    pub(super) fn poll_body_pour(&mut self, cx: &mut Context<'_>, attempt: &mut Attempt<Line>) -> Poll<bool> {
        let Some(pipe) = self.desk.up.as_mut().filter(|pipe| !pipe.is_empty()) else { return Poll::Ready(false) };
        let taken = ready!(attempt.poll_pour(cx, pipe));
        self.turn.spend(taken);
        if taken == 0 {
            // Nobody takes it any more.
            self.desk.up = None;
        }
        Poll::Ready(true)
    }

    /// Gives what was read of the body on; `done`: it was the last of it. Returns how much data there was.
    pub(super) fn take_in(&mut self, done: bool) -> usize {
        let Desk { incoming, upload, given, .. } = &mut *self.desk;
        let data = self.asked.take_in(incoming, done, upload, given);
        incoming.clear();
        data
    }
}

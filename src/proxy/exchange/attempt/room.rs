//! Memory for an answer: of the worker, and only while something of the answer is in it. One piece serves one request after the
//! other and stays in the processor's cache.

use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio_util::either::Either;

use super::{
    super::{answer::Body, memory::Memory},
    Attempt, Failure, LARGE, Place, Step,
};
use crate::{policy::framing::Border, runtime::line::Line};

/// A piece of it.
pub(in super::super) fn room() -> BytesMut {
    BytesMut::with_capacity(LARGE)
}

impl Attempt<Line> {
    /// [`Attempt::poll_answer`] with memory that is lent for as long as something is in it.
    pub(in super::super) fn poll_step(&mut self, cx: &mut Context<'_>, memory: &Memory) -> Poll<Result<Step, Failure>> {
        ready!(self.poll_room(cx, || memory.room()));
        let step = self.poll_answer(cx);
        if step.is_pending() {
            self.waited = true;
            self.give_back(memory);
        }
        step
    }

    /// Gives the memory back, where nothing is in it.
    pub(in super::super) fn give_back(&mut self, memory: &Memory) {
        if self.room.ahead.is_empty() && std::mem::take(&mut self.roomy) {
            memory.put_room(std::mem::take(&mut self.room.ahead));
        }
    }

    /// Has `room` where something has come to read and there is no memory to read it into.
    fn poll_room(&mut self, cx: &mut Context<'_>, room: impl FnOnce() -> BytesMut) -> Poll<()> {
        let reads = match self.place {
            Place::Body(Body::Bordered(border)) => !border.reached() && border != Border::Malformed,
            Place::Body(Body::UntilClose) | Place::Head => true,
            Place::Broken | Place::End | Place::Read(_) => false,
        };
        if !self.roomy && reads && !self.lost {
            if let Either::Left(Either::Left(tcp)) = &self.link
                && !std::mem::take(&mut self.waited)
            {
                // An error shows at the reading.
                self.waited = tcp.poll_read_ready(cx).is_pending();
                if self.waited {
                    return Poll::Pending;
                }
            }
            self.room.ahead = room();
            self.roomy = true;
        }
        Poll::Ready(())
    }
}

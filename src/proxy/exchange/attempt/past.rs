//! What is left of a large body, past our memory.

use std::task::{Context, Poll, ready};

use tokio_util::either::Either;

use super::{
    super::{answer::Body, pipe::Pipe},
    Attempt, FLOWING, Failure, Place,
};
use crate::{
    policy::framing::Border,
    runtime::line::{Layer, Line},
};

impl Attempt<Line> {
    /// As [`Attempt::break_off`], by a deadline.
    pub(in super::super) fn break_off_late(&mut self) -> Failure {
        if let Either::Right(layer) = &self.link
            && let Layer::Http2(stream) = &**layer
        {
            stream.late();
        }
        self.break_off()
    }

    /// How much is left of a body that nobody need look at, of which no part is here, on a connection in plain text; 0 of any
    /// other.
    pub(in super::super) fn unseen(&self) -> u64 {
        match (self.place, &self.link) {
            (Place::Body(Body::Bordered(Border::Counted(left))), Either::Left(Either::Left(_)))
                if self.room.ahead.is_empty() && self.flowed >= FLOWING && !self.lost =>
            {
                left
            }
            _ => 0,
        }
    }

    /// Whether bytes of the request may come out of a pipe: all that was given before has left, on a connection in plain text.
    pub(in super::super) fn takes_pipes(&self) -> bool {
        self.room.out.is_empty() && self.wants_body() && matches!(self.link, Either::Left(Either::Left(_)))
    }

    /// Writes what is in `pipe`. Returns how many bytes were taken; none where writing has failed.
    pub(in super::super) fn poll_pour(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<usize> {
        if self.deaf {
            return Poll::Ready(0);
        }
        if let Either::Left(Either::Left(tcp)) = &self.link {
            match ready!(pipe.poll_pour(cx, tcp)) {
                Ok(taken @ 1..) => {
                    self.written += taken as u64;
                    return Poll::Ready(taken);
                }
                failed => self.no_more(failed),
            }
        }
        Poll::Ready(0)
    }

    /// Moves what has come of [`Attempt::unseen`] into `pipe`, which is empty.
    pub(in super::super) fn poll_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<Result<(), Failure>> {
        let left = self.unseen();
        if let Either::Left(Either::Left(tcp)) = &self.link
            && let Ok(taken @ 1..) = ready!(pipe.poll_fill(cx, tcp, left))
        {
            self.data += taken as u64;
            self.place = Place::Body(Body::Bordered(Border::Counted(left.saturating_sub(taken as u64))));
            return Poll::Ready(Ok(()));
        }
        self.place = Place::Broken;
        Poll::Ready(Err(Failure::Truncated))
    }
}

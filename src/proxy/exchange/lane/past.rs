//! The body of an answer: through memory that the worker lends, and past our memory where it is large and between two sockets in
//! plain text.

use std::{
    io,
    task::{Context, Poll, ready},
};

use super::{
    super::{
        attempt::{Attempt, Failure, Step},
        wire::Wire,
    },
    Lane, RequestCtx,
};
use crate::runtime::line::Line;

/// Less is not worth the way, neither of what is left nor of what came before.
pub(super) const LEAST: u64 = 128 * 1024;

impl<W: Wire> Lane<'_, W> {
    /// What comes next of an answer through our memory.
    pub(super) fn poll_step(
        &mut self,
        cx: &mut Context<'_>,
        attempt: &mut Attempt<Line>,
    ) -> Poll<Result<Step, Failure>> {
        attempt.poll_step(cx, self.kit.memory())
    }

    /// Whether what is left of the answer goes past our memory; all that came before has left.
    pub(super) fn goes_past(&mut self, attempt: &Attempt<Line>) -> bool {
        if attempt.unseen() < LEAST || !self.wire.takes_pipes() || !self.desk.answer.is_empty() {
            return false;
        }
        if self.desk.down.is_none() {
            self.desk.down = self.kit.memory().pipe();
        }
        self.desk.down.is_some()
    }

    /// Takes what has come of it; it leaves with the next writing.
    pub(super) fn poll_past(
        &mut self,
        cx: &mut Context<'_>,
        attempt: &mut Attempt<Line>,
        ctx: &RequestCtx,
    ) -> Poll<Result<(), Failure>> {
        let Some(pipe) = &mut self.desk.down else { return Poll::Ready(Ok(())) };
        ready!(attempt.poll_pipe(cx, pipe))?;
        self.part_came(attempt, ctx);
        self.out.leaving = true;
        Poll::Ready(Ok(()))
    }

    /// Writes what is on its way past us.
    pub(super) fn poll_pour(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(pipe) = self.desk.down.as_mut().filter(|pipe| !pipe.is_empty()) {
            let sent = ready!(self.wire.poll_pour(cx, pipe))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.reader.moved();
            self.turn.spend(sent);
        }
        Poll::Ready(Ok(()))
    }
}

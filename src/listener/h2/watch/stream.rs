//! What is followed of one stream.

use std::time::Instant;

use super::super::pace::Pace;

#[derive(Debug)]
pub(super) struct Stream {
    /// What we may send.
    pub(super) window: i64,
    /// What the client may send.
    pub(super) room: i64,
    /// The request has not ended.
    pub(super) sending: bool,
    /// The answer has begun and not ended.
    pub(super) answered: bool,
    pub(super) upload: Pace,
    pub(super) answer: Pace,
    /// Was found too slow.
    pub(super) judged: bool,
}

impl Stream {
    /// Notes whom it waits for. After an answer has begun, a request may rest: both sides of a call may talk when they
    /// like. `room`: the client may send on the connection.
    pub(super) fn settle(&mut self, room: bool, now: Instant) {
        self.upload.waits(self.sending && !self.answered && self.room > 0 && room, now);
        self.answer.waits(self.starved(), now);
    }

    /// Whether its answer waits for its own window.
    pub(super) fn starved(&self) -> bool {
        self.answered && self.window <= 0
    }
}

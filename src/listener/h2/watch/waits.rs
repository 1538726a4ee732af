//! Who is waited for, and who is too slow.

use std::time::Instant;

use super::{super::SEND_BUFFER, CRUMB, Rules, Verdict};
use crate::{telemetry::metrics::H2Abuse, types::Reason};

impl Rules {
    /// Each stream, after what changes for all.
    pub(super) fn settle(&mut self, now: Instant) {
        let (room, closed) = (self.room > 0, self.is_shut());
        let mut waits = false;
        for (_, stream) in self.streams.each_mut() {
            stream.settle(room, now);
            waits |= closed && stream.answered;
        }
        self.answers.waits(waits, now);
    }

    /// The streams that are too slow; where all of them are, it is one stall. One whose window is closed at the moment is not slow for that.
    pub(super) fn slow(&mut self, now: Instant) -> Result<Vec<(u32, Reason)>, Verdict> {
        if self.patience.rate.is_none() {
            return Ok(Vec::new());
        }
        let stall = Err(Verdict::Ours(H2Abuse::Stall));
        if self.answers.late(now) {
            return stall;
        }
        let all = self.streams.each().all(|(_, stream)| stream.answer.late(now));
        let mut slow = Vec::new();
        for (id, stream) in self.streams.each_mut().filter(|(_, stream)| !stream.judged) {
            let reason = match (stream.upload.late(now), stream.answer.late(now)) {
                (true, _) => Reason::ClientTimeout,
                (_, true) if all => return stall,
                (_, true) => Reason::TooSlow,
                (false, false) => continue,
            };
            stream.judged = true;
            slow.push((id, reason));
        }
        Ok(slow)
    }

    /// An answer's head goes.
    pub(super) fn begins_answer(&mut self, stream: u32, now: Instant) {
        let room = self.room > 0;
        let Some(stream) = self.streams.find(stream) else { return };
        stream.answered = true;
        stream.settle(room, now);
        if self.is_shut() {
            self.answers.waits(true, now);
        }
    }

    /// From `at` on, a part of an answer waits for more room than there is, or does not any more. The windows do not show it: who has
    /// nothing to send waits for nobody, however little room there is. But where neither window is nearly used up by what may wait to be written,
    /// it is our own room that is little, and the socket that is waited for, see [`Watch::stands`](super::Watch::stands).
    pub(super) fn held(&mut self, stream: u32, held: bool, at: Instant) {
        let used_up = |window| window < SEND_BUFFER as i64 + CRUMB;
        let shared = used_up(self.window);
        if let Some(stream) = self.streams.find(stream) {
            stream.held = held && (shared || used_up(stream.window));
            self.settle(at);
        }
    }

    /// Whether the connection's window lets nothing through. Of a crumb each stream may have a part, and wait for more.
    pub(super) fn is_shut(&self) -> bool {
        self.window <= 0 || (self.window < CRUMB && self.streams.each().any(|(_, stream)| stream.held))
    }

    /// Whether an answer waits for its client.
    pub(super) fn starved(&self) -> bool {
        self.streams.each().any(|(_, stream)| stream.starved() || (stream.answered && self.window <= 0))
    }
}

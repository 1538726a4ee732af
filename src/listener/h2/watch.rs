//! The judge of one HTTP/2 connection: sees every frame both ways and says when it is enough. What the h2 crate bounds
//! itself (header lists, CONTINUATION, empty DATA, resets of streams that nobody has accepted yet) shows in the GOAWAY
//! it writes, and is named here. Pure: bytes and time come in.

mod stream;
mod waits;

use std::{
    time::{Duration, Instant},
    vec::Drain,
};

use self::stream::{Stream, Streams};
use super::{
    abuse::named,
    budget::Budget,
    frames::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Found, Frames, GOAWAY, HEADERS, Head, PADDED, PING,
        RST_STREAM, SETTINGS, WINDOW_UPDATE, number,
    },
    pace::{Pace, Patience},
};
use crate::{policy::room, telemetry::metrics::H2Abuse, types::Reason};

/// Opening a closed window by less than this is what a dribble is made of.
const CRUMB: i64 = room::CRUMB as i64;
/// Streams whose windows are followed; the h2 crate refuses those beyond its own, lower limit.
pub(super) const STREAMS: usize = 512;
const INITIAL_WINDOW: i64 = 65_535;
const INITIAL_WINDOW_SIZE: u16 = 4;
/// As long as this nobody is silent in an upload, however much came before.
const LONGEST: Duration = Duration::from_secs(60);

/// Why a connection ends, and who ends it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// We say GOAWAY.
    Ours(H2Abuse),
    /// The h2 crate has.
    Theirs(H2Abuse),
}

#[derive(Debug)]
pub(super) struct Watch {
    received: Frames,
    sent: Frames,
    rules: Rules,
    /// Since when the socket takes nothing.
    blocked: Option<Instant>,
}

#[derive(Debug)]
struct Rules {
    patience: Patience,
    budget: Budget,
    streams: Streams,
    last_stream: u32,
    initial_window: i64,
    window: i64,
    /// The same for what the client may send.
    initial_room: i64,
    room: i64,
    /// Of all answers, while the connection's window is closed.
    answers: Pace,
    /// Our SETTINGS has been acknowledged.
    acknowledged: bool,
    /// The last stream that was opened.
    newest: u32,
    /// Streams that the client has opened, and reset, since these were asked for.
    opened: Vec<u32>,
    left: Vec<u32>,
    /// Streams that were reset for what their client did, since these were asked for.
    broken: Vec<u32>,
    /// The first SETTINGS has come.
    settled: bool,
    /// A header block has begun and not ended.
    in_block: bool,
    /// When what is unfinished began.
    begun: Option<Instant>,
    /// When a body's bytes or a request last went either way.
    moved: Instant,
}

impl Watch {
    pub(super) fn new(patience: Patience, now: Instant) -> Self {
        let rules = Rules {
            patience,
            budget: Budget::new(now),
            streams: Streams::default(),
            last_stream: 0,
            initial_window: INITIAL_WINDOW,
            window: INITIAL_WINDOW,
            initial_room: INITIAL_WINDOW,
            room: INITIAL_WINDOW,
            answers: Pace::new(),
            acknowledged: false,
            newest: 0,
            opened: Vec::new(),
            left: Vec::new(),
            broken: Vec::new(),
            settled: false,
            in_block: false,
            begun: Some(now),
            moved: now,
        };
        Self { received: Frames::from_client(), sent: Frames::from_server(), rules, blocked: None }
    }

    /// How long things may take here.
    pub(super) fn patience(&self) -> &Patience {
        &self.rules.patience
    }

    /// The preface, and the SETTINGS behind it, are due counted from `since`.
    pub(super) fn begun_at(mut self, since: Instant) -> Self {
        self.rules.begun = Some(since);
        self
    }

    /// The client has sent this.
    pub(super) fn received(&mut self, bytes: &[u8], now: Instant) -> Result<(), Verdict> {
        let rules = &mut self.rules;
        let fed = self.received.feed(bytes, |found| rules.received(found, now));
        if rules.settled && !rules.in_block && !self.received.within() {
            rules.begun = None;
        } else if rules.begun.is_none() {
            rules.begun = Some(now);
        }
        fed.map_err(Verdict::Ours)
    }

    /// The streams that were opened since this was asked.
    pub(super) fn opened(&mut self) -> Drain<'_, u32> {
        self.rules.opened.drain(..)
    }

    /// The streams that the client has reset since this was asked.
    pub(super) fn left(&mut self) -> Drain<'_, u32> {
        self.rules.left.drain(..)
    }

    /// The streams that were reset for what their client did, since this was asked.
    pub(super) fn broken(&mut self) -> Drain<'_, u32> {
        self.rules.broken.drain(..)
    }

    /// From `at` on, a part of the stream's answer waits for more room than there is, or does not any more.
    pub(super) fn held(&mut self, stream: u32, held: bool, at: Instant) {
        self.rules.held(stream, held, at);
    }

    /// This is on its way to the client.
    pub(super) fn sent(&mut self, bytes: &[u8], now: Instant) -> Result<(), Verdict> {
        let rules = &mut self.rules;
        self.sent.feed(bytes, |found| rules.sent(found, now))
    }

    /// See [`Frames::until_next`], of what is on its way to the client.
    pub(super) fn until_next(&self) -> Result<usize, usize> {
        self.sent.until_next()
    }

    /// The socket takes nothing, as was seen now; `None`: it does.
    pub(super) fn stands(&mut self, now: Option<Instant>) {
        self.blocked = now.map(|now| self.blocked.unwrap_or(now));
    }

    /// Whether time alone may lead to a verdict.
    pub(super) fn waits(&self) -> bool {
        let rules = &self.rules;
        rules.begun.is_some() || self.blocked.is_some() || !rules.acknowledged || !rules.streams.is_empty()
    }

    /// Whether something has taken too long. Returns the streams that are too slow, each once, and why.
    pub(super) fn late(&mut self, now: Instant) -> Result<Vec<(u32, Reason)>, Verdict> {
        let over = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
        let rules = &self.rules;
        if rules.begun.is_some_and(|begun| over(begun, rules.patience.header)) {
            return Err(Verdict::Ours(H2Abuse::HeaderTimeout));
        }
        let blocked = self.blocked.is_some_and(|since| over(since, rules.patience.stall));
        if blocked || (over(rules.moved, rules.patience.stall) && rules.starved()) {
            return Err(Verdict::Ours(H2Abuse::Stall));
        }
        if !rules.acknowledged && over(rules.budget.began(), rules.patience.header) {
            return Err(Verdict::Ours(H2Abuse::SettingsTimeout));
        }
        self.rules.slow(now)
    }
}

impl Rules {
    fn received(&mut self, found: Found<'_>, now: Instant) -> Result<(), H2Abuse> {
        match found {
            Found::Head(head) => {
                if !std::mem::replace(&mut self.settled, true) && (head.kind != SETTINGS || head.has(ACK)) {
                    return Err(H2Abuse::Protocol);
                }
                self.begins(head, now)?;
            }
            Found::Setting(INITIAL_WINDOW_SIZE, size) => {
                let by = i64::from(size) - self.initial_window;
                self.initial_window = i64::from(size);
                self.streams.each_mut().for_each(|(_, stream)| stream.window += by);
                self.settle(now);
            }
            Found::Setting(..) => {}
            Found::Padding(head, padding) => {
                self.uploaded(head.stream, head.length.saturating_sub(1 + u32::from(padding)), now);
            }
            Found::End(head, payload) => {
                if matches!(head.kind, HEADERS | CONTINUATION) {
                    self.in_block = !head.has(END_HEADERS);
                }
                if !self.in_block {
                    // What comes behind it in the same read begins now.
                    self.begun = None;
                }
                match head.kind {
                    DATA if head.has(END_STREAM) => self.ended(head.stream, now),
                    RST_STREAM if self.over(head.stream, now) => self.left.push(head.stream),
                    WINDOW_UPDATE => self.opened(head.stream, number(payload, 0), now)?,
                    _ => {}
                }
            }
        }
        Ok(())
    }

    /// The request has ended.
    fn ended(&mut self, stream: u32, now: Instant) {
        let room = self.room > 0;
        if let Some(stream) = self.streams.find(stream) {
            stream.sending = false;
            stream.settle(room, now);
        }
    }

    fn begins(&mut self, head: Head, now: Instant) -> Result<(), H2Abuse> {
        match head.kind {
            DATA => {
                self.fills(head, now);
                if !head.has(PADDED) {
                    self.uploaded(head.stream, head.length, now);
                }
                Ok(())
            }
            HEADERS => {
                if head.stream > self.newest {
                    self.newest = head.stream;
                    self.opened.push(head.stream);
                } else if head.has(END_STREAM) {
                    self.ended(head.stream, now);
                }
                if head.stream > self.last_stream && self.streams.len() < STREAMS {
                    self.last_stream = head.stream;
                    let mut stream = Stream {
                        window: self.initial_window,
                        room: self.initial_room,
                        sending: !head.has(END_STREAM),
                        answered: false,
                        held: false,
                        upload: Pace::new(),
                        answer: Pace::new(),
                        judged: false,
                    };
                    stream.settle(self.room > 0, now);
                    self.streams.push(head.stream, stream);
                    self.budget.earn(H2Abuse::Priority, 4);
                    self.budget.earn(H2Abuse::WindowUpdate, 2);
                    self.moved = now;
                }
                Ok(())
            }
            RST_STREAM if self.streams.has(head.stream) => self.budget.take(H2Abuse::Reset, 1, now),
            // Some clients answer what still comes on a stream that they have forgotten with a reset for each frame.
            RST_STREAM => self.budget.take(H2Abuse::WindowUpdate, 1, now).map_err(|_| H2Abuse::Reset),
            // A large one costs more: each holds up to 2730 settings.
            SETTINGS => {
                self.acknowledged |= head.has(ACK);
                self.budget.take(H2Abuse::Settings, 1 + head.length / 64, now)
            }
            PING => self.budget.take(H2Abuse::Ping, 1, now),
            WINDOW_UPDATE => self.budget.take(H2Abuse::WindowUpdate, 1, now),
            CONTINUATION => Ok(()),
            _ => self.budget.take(H2Abuse::Priority, 1, now),
        }
    }

    /// DATA comes: all of its payload fills our windows.
    fn fills(&mut self, head: Head, now: Instant) {
        let length = i64::from(head.length);
        let was = self.room > 0;
        self.room -= length;
        let room = self.room > 0;
        if let Some(stream) = self.streams.find(head.stream) {
            stream.room -= length;
            stream.settle(room, now);
        }
        if was != room {
            self.settle(now);
        }
    }

    /// A part of a body comes; its frame pays when it begins, however slowly the rest of it comes. Padding pays for nothing.
    fn uploaded(&mut self, stream: u32, bytes: u32, now: Instant) {
        if bytes == 0 {
            return;
        }
        self.moved = now;
        if let (Some(rate), Some(stream)) = (self.patience.rate, self.streams.find(stream)) {
            stream.upload.moved(bytes, rate, LONGEST, now);
        }
    }

    /// We have opened a window.
    fn granted(&mut self, stream: u32, by: u32, now: Instant) {
        let by = i64::from(by);
        if stream == 0 {
            let was = self.room > 0;
            self.room += by;
            if was != (self.room > 0) {
                self.settle(now);
            }
        } else if let Some(stream) = self.streams.find(stream) {
            stream.room += by;
            stream.settle(self.room > 0, now);
        }
    }

    /// A part of an answer goes.
    fn replies(&mut self, head: Head, now: Instant) {
        let length = i64::from(head.length);
        let was = self.is_shut();
        self.window -= length;
        let room = self.room > 0;
        if let Some(rate) = self.patience.rate {
            self.answers.moved(head.length, rate, self.patience.stall, now);
        }
        if head.has(END_STREAM) {
            self.answered(head.stream, now);
        } else if let Some(stream) = self.streams.find(head.stream) {
            stream.window -= length;
            if let Some(rate) = self.patience.rate {
                stream.answer.moved(head.length, rate, self.patience.stall, now);
            }
            stream.settle(room, now);
        }
        if was != self.is_shut() {
            self.settle(now);
        }
    }

    /// The client has opened a window.
    fn opened(&mut self, stream: u32, by: u32, now: Instant) -> Result<(), H2Abuse> {
        let by = i64::from(by);
        let closed = if stream == 0 {
            let was = self.is_shut();
            let closed = was && self.streams.each().any(|(_, stream)| stream.answered);
            self.window += by;
            if was != self.is_shut() {
                self.settle(now);
            }
            closed
        } else {
            let room = self.room > 0;
            let Some(stream) = self.streams.find(stream) else { return Ok(()) };
            let closed = stream.starved();
            stream.window += by;
            stream.settle(room, now);
            closed
        };
        if closed && by < CRUMB { self.budget.take(H2Abuse::Dribble, 1, now) } else { Ok(()) }
    }

    fn sent(&mut self, found: Found<'_>, now: Instant) -> Result<(), Verdict> {
        match found {
            Found::Head(head) if head.kind == DATA => {
                // Of what it reads by 256 bytes a client may say so for the stream and for the connection.
                self.budget.earn(H2Abuse::WindowUpdate, 4 + head.length / 128);
                // Windows that are given back frame by frame come to have rests, and those are crumbs.
                self.budget.earn(H2Abuse::Dribble, (head.length + 512) / 1024);
                self.budget.earn(H2Abuse::Ping, 1);
                if head.length > 0 {
                    self.moved = now;
                }
                self.replies(head, now);
            }
            Found::Setting(INITIAL_WINDOW_SIZE, size) => {
                let by = i64::from(size) - self.initial_room;
                self.initial_room = i64::from(size);
                self.streams.each_mut().for_each(|(_, stream)| stream.room += by);
                self.settle(now);
            }
            Found::End(head, payload) if head.kind == WINDOW_UPDATE => {
                self.granted(head.stream, number(payload, 0), now)
            }
            Found::Head(head) if head.kind == HEADERS => {
                self.budget.earn(H2Abuse::Ping, 1);
                self.moved = now;
                if head.has(END_STREAM) {
                    self.answered(head.stream, now);
                } else {
                    self.begins_answer(head.stream, now);
                }
            }
            Found::End(head, payload) if head.kind == RST_STREAM => {
                let known = self.over(head.stream, now);
                // Resets for another cause, a backend's fault most often, are not the client's.
                const PROTOCOL_ERROR: u32 = 1;
                const FLOW_CONTROL_ERROR: u32 = 3;
                const STREAM_CLOSED: u32 = 5;
                const FRAME_SIZE_ERROR: u32 = 6;
                const REFUSED_STREAM: u32 = 7;
                let code = number(payload, 0);
                if let PROTOCOL_ERROR | FLOW_CONTROL_ERROR | STREAM_CLOSED | FRAME_SIZE_ERROR | REFUSED_STREAM = code {
                    if known && code != REFUSED_STREAM {
                        self.broken.push(head.stream);
                    }
                    self.budget.take(H2Abuse::ServerReset, 1, now).map_err(Verdict::Ours)?;
                }
            }
            Found::End(head, payload) if head.kind == GOAWAY => {
                if let Some(kind) = named(number(payload, 4), payload.get(8..).unwrap_or_default()) {
                    return Err(Verdict::Theirs(kind));
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// An answer has been sent to its end; the client may reset another stream for it.
    fn answered(&mut self, stream: u32, now: Instant) {
        if self.over(stream, now) {
            self.budget.earn(H2Abuse::Reset, 1);
        }
    }

    /// A stream is over. Returns whether it was one.
    fn over(&mut self, stream: u32, now: Instant) -> bool {
        let Some(stream) = self.streams.remove(stream) else { return false };
        if stream.answered && self.window < CRUMB {
            // Perhaps it was the last that waited.
            self.settle(now);
        }
        true
    }
}

#[cfg(any(test, fuzzing))]
mod seen;
#[cfg(test)]
mod tests;

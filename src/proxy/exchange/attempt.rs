//! One request and its answer on one connection to a backend, in HTTP/1.1's bytes, as two directions that whoever moves the bytes
//! polls: what is written, what has come. Says exactly how much left, so that it is known what may be repeated.
//!
//! An attempt that [asks for a WebSocket](Attempt::speaks) may come to a head that [is a switch](Head::is_switch). From then
//! on nothing has a border: after [`Attempt::switch`] the attempt is a [`Side`](super::tunnel::Side), of which bytes are taken, the first of them those
//! that came behind the head, and to which others are given. Any other answer is one as ever.

mod past;
mod room;
mod switch;

use std::{
    io,
    pin::{Pin, pin},
    task::{Context, Poll, ready},
};

use bytes::{Buf, BufMut as _, Bytes, BytesMut};
use http::Method;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::{
    answer::{self, Body, Head, Protocol},
    chunks,
};
use crate::policy::{
    fields::{Index, Raw},
    framing::Border,
    pieces::take_off,
};
pub(super) use room::room;

/// Read at first; a body that fills it gets [`LARGE`].
const SMALL: usize = 8 * 1024;
/// Collected of a large body before it goes on: 64 KiB and their head. Bounds what a slow client's answer holds.
pub(super) const LARGE: usize = 64 * 1024 + SMALL;
/// The same from [`FLOWING`] on: fewer and larger pieces cost both neighbours, and us, fewer system calls and wake-ups.
pub(super) const LARGEST: usize = 256 * 1024;
/// The same for a client whose answer may stand beside a hundred others of its connection, at first: it is as much more as it has taken.
pub(super) const CAUTIOUS: usize = 16 * 1024;
/// Who has taken, or sent, so much of a body is not slow.
pub(super) const FLOWING: u64 = 512 * 1024;

/// One request on `S`.
#[derive(Debug)]
pub(super) struct Attempt<S> {
    link: S,
    method: Method,
    protocol: Protocol,
    room: Box<Room>,
    /// Bytes of the request that were written.
    written: u64,
    /// Nothing more of the request can be written.
    deaf: bool,
    /// The backend took nothing for too long.
    stalled: bool,
    /// The whole request was given to be written.
    complete: bool,
    /// The memory for the answer is the worker's; see [`Attempt::poll_room`].
    roomy: bool,
    /// There was nothing to read at the last look: who looks again was woken, most likely by what has come.
    waited: bool,
    /// Any byte of an answer has come.
    answered: bool,
    /// All the room was filled at the last reading: there is more, most likely.
    filled: bool,
    /// Reading has failed, and that is to be told when what came before is taken.
    lost: bool,
    /// Bytes of the body that were taken.
    flowed: u64,
    /// Bytes at the beginning of `ahead` that are the body's, and checked.
    body: usize,
    /// Bytes of data in what came of the body so far.
    data: u64,
    /// What came after the body, where chunks are taken off.
    trailers: Vec<u8>,
    place: Place,
    /// Chunks are taken off, else checked and left on.
    decode: bool,
    persistent: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before a head, or in one.
    Head,
    /// The head has been read, and is at the beginning of `ahead`.
    Read(Head),
    /// After the answer's head.
    Body(Body),
    /// The answer broke off. It stays so: a socket tells of a reset once, and then of an end.
    Broken,
    End,
}

/// What has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// A part of the body; see [`Attempt::body`].
    Body,
    /// The answer is complete.
    End,
    /// A head, interim or the answer's; see [`Attempt::head`].
    Head(Head),
}

/// Why there is no answer, or no whole one.
#[derive(Debug)]
pub(super) enum Failure {
    /// What came is no answer, or has no border; says why.
    Bad(&'static str),
    /// The connection ended before the answer's head did.
    Ended(Option<io::Error>),
    /// The connection ended, or made no sense any more, within the answer.
    Truncated,
}

/// Memory that an attempt uses, kept by a worker for the next one.
#[derive(Debug, Default)]
pub(super) struct Room {
    /// Of the answer, and not given on yet.
    pub(super) ahead: BytesMut,
    /// Where the fields of the answer's head are.
    pub(super) index: Index,
    /// Of the request, and not written yet.
    pub(super) out: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Attempt<S> {
    /// A request of `method`, the first bytes of which are in `room.out`. `complete`: there are no others.
    /// `decode`: the answer's chunks are taken off.
    pub(super) fn new(link: S, method: Method, mut room: Box<Room>, complete: bool, decode: bool) -> Self {
        room.ahead.clear();
        room.index.clear();
        Self {
            link,
            method,
            protocol: Protocol::Http1,
            room,
            written: 0,
            deaf: false,
            stalled: false,
            complete,
            roomy: false,
            waited: false,
            answered: false,
            filled: false,
            lost: false,
            flowed: 0,
            body: 0,
            data: 0,
            trailers: Vec::new(),
            place: Place::Head,
            decode,
            persistent: false,
        }
    }

    /// The backend speaks this; without a word, HTTP/1.1 alone.
    pub(super) fn speaks(&mut self, protocol: Protocol) {
        self.protocol = protocol;
    }

    /// Bytes of the request that left.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Whether the backend takes more of the request: not all of it was given, and writing has not failed.
    pub(super) fn wants_body(&self) -> bool {
        !self.complete && !self.deaf
    }

    /// Whether something waits to be written.
    pub(super) fn is_behind(&self) -> bool {
        !self.room.out.is_empty() && !self.deaf
    }

    /// Bytes that wait to be written.
    pub(super) fn waiting(&self) -> usize {
        self.room.out.len()
    }

    /// Nothing of the request comes any more.
    pub(super) fn complete(&mut self) {
        self.complete = true;
    }

    /// Gives a part of the body as one chunk; written by [`Attempt::poll_flush`].
    pub(super) fn chunk(&mut self, data: &[u8]) {
        if data.is_empty() || self.deaf {
            return;
        }
        chunks::chunk(data, &mut self.room.out);
    }

    /// Gives bytes of the request as they are; written by [`Attempt::poll_flush`].
    pub(super) fn bytes(&mut self, data: &[u8]) {
        if !self.deaf {
            self.room.out.extend_from_slice(data);
        }
    }

    /// Writes what was given. A failure is not an error: the backend may have answered before it closed, and if not, the
    /// reading fails.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while self.is_behind() {
            match ready!(Pin::new(&mut self.link).poll_write(cx, &self.room.out)) {
                Ok(sent @ 1..) => _ = self.sent(sent, 0),
                failed => self.no_more(failed),
            };
        }
        // What TLS has taken may not have left yet.
        if !self.deaf
            && let Err(error) = ready!(Pin::new(&mut self.link).poll_flush(cx))
        {
            self.no_more(Err(error));
        }
        Poll::Ready(())
    }

    /// Writes bytes of the request past the attempt's own memory, after what was given before. Returns how many were taken; all of
    /// them where writing has failed.
    pub(super) fn poll_upload(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<usize> {
        loop {
            if self.deaf {
                return Poll::Ready(data.len());
            }
            let parts = [io::IoSlice::new(&self.room.out), io::IoSlice::new(data)];
            let link = Pin::new(&mut self.link);
            let sent =
                if self.room.out.is_empty() { link.poll_write(cx, data) } else { link.poll_write_vectored(cx, &parts) };
            match ready!(sent) {
                failed @ (Ok(0) | Err(_)) => self.no_more(failed),
                Ok(sent) => {
                    let taken = self.sent(sent, data.len());
                    if taken > 0 || data.is_empty() {
                        return Poll::Ready(taken);
                    }
                }
            }
        }
    }

    fn no_more(&mut self, failed: io::Result<usize>) {
        self.deaf = true;
        // TCP_USER_TIMEOUT; the reading will only see an end.
        self.stalled = failed.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut);
    }

    /// Whether writing failed because the backend took nothing for too long.
    pub(super) fn is_stalled(&self) -> bool {
        self.stalled
    }

    /// Notes that so many bytes left; returns how many were not of `out`.
    fn sent(&mut self, sent: usize, most: usize) -> usize {
        self.written += sent as u64;
        let collected = sent.min(self.room.out.len());
        take_off(collected, &mut self.room.out);
        (sent - collected).min(most)
    }

    /// What has come next of the answer; what came before must have been taken.
    pub(super) fn poll_answer(&mut self, cx: &mut Context<'_>) -> Poll<Result<Step, Failure>> {
        loop {
            match self.place {
                Place::Head => {
                    if self.answered
                        && let Some(head) = self.parse()?
                    {
                        self.place = Place::Read(head);
                        return Poll::Ready(Ok(Step::Head(head)));
                    }
                    let before = self.room.ahead.len();
                    loop {
                        match ready!(self.poll_read(cx)) {
                            Ok(0) => return Poll::Ready(Err(Failure::Ended(None))),
                            Err(error) => return Poll::Ready(Err(Failure::Ended(Some(error)))),
                            // Mostly it is here as a whole, and else only a line's end can end it; what is too long fails soon.
                            Ok(_)
                                if before == 0
                                    || self.room.ahead[before..].contains(&b'\n')
                                    || self.room.ahead.len() > answer::MAX_HEAD =>
                            {
                                break;
                            }
                            Ok(_) => {}
                        }
                    }
                }
                Place::Read(head) => {
                    self.room.ahead.advance(head.length);
                    self.place = if head.is_interim() { Place::Head } else { Place::Body(head.body) };
                    if self.place == Place::Head && self.room.ahead.is_empty() {
                        self.answered = false;
                        self.room.ahead.clear();
                    }
                    if let Place::Body(_) = self.place {
                        self.collect(cx);
                    }
                }
                Place::Body(_) if self.body > 0 => return Poll::Ready(Ok(Step::Body)),
                Place::Body(Body::Bordered(border)) if border.reached() => self.place = Place::End,
                Place::Body(Body::Bordered(Border::Malformed)) => {
                    self.place = Place::Broken;
                    return Poll::Ready(Err(Failure::Truncated));
                }
                Place::Body(body) => {
                    if !self.room.ahead.is_empty() {
                        match self.check(body) {
                            Ok(body) => self.place = Place::Body(body),
                            Err(failure) => {
                                self.place = Place::Broken;
                                return Poll::Ready(Err(failure));
                            }
                        }
                        continue;
                    }
                    match ready!(self.poll_read(cx)) {
                        Ok(0) if body == Body::UntilClose => self.place = Place::End,
                        Ok(0) | Err(_) => {
                            self.place = Place::Broken;
                            return Poll::Ready(Err(Failure::Truncated));
                        }
                        Ok(_) => self.collect(cx),
                    }
                }
                Place::Broken => return Poll::Ready(Err(Failure::Truncated)),
                Place::End => return Poll::Ready(Ok(Step::End)),
            }
        }
    }

    /// The answer breaks off here, whatever else there is of it. Returns why there is none, or no whole one.
    pub(super) fn break_off(&mut self) -> Failure {
        match std::mem::replace(&mut self.place, Place::Broken) {
            Place::Head | Place::Read(_) => Failure::Ended(None),
            Place::Body(_) | Place::Broken | Place::End => Failure::Truncated,
        }
    }

    /// The answer's head, between [`Step::Head`] and the next step: its bytes and its fields.
    pub(super) fn head(&self) -> Raw<'_> {
        let length = if let Place::Read(head) = self.place { head.length } else { 0 };
        Raw::new(self.room.ahead.get(..length).unwrap_or_default(), &self.room.index)
    }

    /// Whether all of the answer is here, as [`Attempt::head`].
    pub(super) fn is_here(&self) -> bool {
        let Place::Read(Head { length, body: Body::Bordered(Border::Counted(body)), .. }) = self.place else {
            return false;
        };
        self.room.ahead.len().saturating_sub(length) as u64 >= body
    }

    /// Whether what comes next of the body, if only its end, is known without reading more.
    pub(super) fn is_at_hand(&self) -> bool {
        !self.room.ahead.is_empty() || matches!(self.place, Place::Body(Body::Bordered(border)) if border.reached())
    }

    /// The reason phrase, as [`Attempt::head`].
    pub(super) fn phrase(&self) -> &[u8] {
        let line = if let Place::Read(head) = self.place { head.line } else { 0 };
        // `HTTP/1.1 200 OK`
        self.room.ahead.get(13..line).unwrap_or_default()
    }

    /// The part of the body that is here, at [`Step::Body`].
    pub(super) fn body(&self) -> &[u8] {
        self.room.ahead.get(..self.body).unwrap_or_default()
    }

    /// Bytes of data in what came of the body so far, of chunks without what is around them.
    pub(super) fn data(&self) -> u64 {
        self.data
    }

    /// As [`Attempt::body`], taken.
    pub(super) fn split_body(&mut self) -> Bytes {
        let body = std::mem::take(&mut self.body);
        self.room.ahead.split_to(body.min(self.room.ahead.len())).freeze()
    }

    /// The trailer section, at [`Step::End`].
    pub(super) fn trailers(&self) -> &[u8] {
        &self.trailers
    }

    /// So many bytes of [`Attempt::body`] were given on.
    pub(super) fn taken(&mut self, bytes: usize) {
        let bytes = bytes.min(self.body);
        self.body -= bytes;
        self.flowed += bytes as u64;
        take_off(bytes, &mut self.room.ahead);
    }

    /// Ends the attempt: its memory, and the connection where another request may use it.
    #[inline(always)] // so that it need not be moved as a whole
    pub(super) fn finish(self) -> (Box<Room>, Option<S>) {
        let ended = match self.place {
            // The client's side may have been done first: it counts too.
            Place::Body(Body::Bordered(border)) => border.reached() && self.body == 0,
            place => place == Place::End,
        };
        let whole = ended && self.complete && self.room.out.is_empty() && !self.deaf;
        // Bytes after the answer's end are nobody's answer.
        let again = whole && self.persistent && self.room.ahead.is_empty() && !self.lost;
        (self.room, again.then_some(self.link))
    }

    fn parse(&mut self) -> Result<Option<Head>, Failure> {
        if self.room.ahead.is_empty() {
            return Ok(None);
        }
        let head =
            answer::parse(&self.room.ahead, &self.method, self.protocol, &mut self.room.index).map_err(Failure::Bad)?;
        self.persistent = head.is_some_and(|head| head.persistent);
        Ok(head)
    }

    /// Moves over what has come of the body: sets `self.body`, or takes off what is no data.
    fn check(&mut self, body: Body) -> Result<Body, Failure> {
        let Body::Bordered(mut border) = body else {
            self.body = self.room.ahead.len();
            self.data += self.body as u64;
            return Ok(body);
        };
        // Of chunks that are left on, as much as there is before the trailers; else one part of the data.
        let mut given = 0;
        while given < self.room.ahead.len() && !border.reached() {
            let trailing = border.in_trailers();
            if given > 0 && (self.decode || trailing) {
                break;
            }
            let (taken, data) = border.part(&self.room.ahead[given..]);
            if border == Border::Malformed {
                break;
            }
            if data {
                self.data += taken as u64;
            }
            if data || !(self.decode || trailing) {
                given += taken;
                continue;
            }
            if trailing {
                self.trailers.extend_from_slice(&self.room.ahead[..taken]);
            }
            self.room.ahead.advance(taken);
        }
        self.body = given;
        // What was good before it goes on first.
        if border == Border::Malformed && given == 0 { Err(Failure::Truncated) } else { Ok(Body::Bordered(border)) }
    }

    /// Reads what else is here of the body, so that it goes on in one piece.
    fn collect(&mut self, cx: &mut Context<'_>) {
        while self.filled && !self.lost && self.room.ahead.len() + SMALL <= self.most() {
            match self.poll_read(cx) {
                Poll::Ready(Ok(1..)) => {}
                // Its end is seen again.
                Poll::Ready(Ok(0)) | Poll::Pending => self.filled = false,
                Poll::Ready(Err(_)) => self.lost = true,
            }
        }
    }

    /// How much of a body is here at most.
    fn most(&self) -> usize {
        let at_first = if self.decode { CAUTIOUS.max(self.flowed as usize) } else { LARGE };
        if self.flowed < FLOWING { at_first.min(LARGE) } else { LARGEST }
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.lost {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        let room = |most: usize| most.saturating_sub(self.room.ahead.len()).max(SMALL);
        let (most, large) = (room(self.most()), room(LARGE));
        let more = self.filled && matches!(self.place, Place::Body(_));
        // Memory that was large for a request before is so for this one.
        if !(self.room.ahead.try_reclaim(most) || (!more && self.room.ahead.try_reclaim(large))) {
            self.room.ahead.reserve(if more { most } else { SMALL });
        }
        let limit = (self.room.ahead.capacity() - self.room.ahead.len()).min(most);
        let read = ready!(pin!(self.link.read_buf(&mut (&mut self.room.ahead).limit(limit))).poll(cx));
        self.answered |= matches!(read, Ok(1..));
        self.filled = read.as_ref().is_ok_and(|read| *read == limit);
        Poll::Ready(read)
    }
}

#[cfg(test)]
mod tests;

//! Between a client's connection and the h2 crate: shows what goes either way to the [`Watch`], and stops reading at its
//! verdict. The one who serves the connection is told, and has GOAWAY sent.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    task::{Context, Poll, ready},
    time::Instant,
    vec::Drain,
};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    alarm::Alarm,
    pace::Patience,
    refusals::{Refusal, Refusals, with_field},
    requests::Ring,
    watch::{Verdict, Watch},
};
use crate::{listener::conn::Conn, proxy, telemetry::metrics::H2Abuse, types::Reason};

/// In place of a stream: all of a connection.
pub(super) const ALL: u32 = 0;
/// Requests that are none, on one connection.
const MALFORMED: u32 = 32;

/// What a client may still send after GOAWAY before the connection is closed under it, which may cost it the GOAWAY.
const LINGER_BYTES: usize = 1024 * 1024;

/// What is told to who serves the connection.
#[derive(Debug)]
pub(super) enum Word {
    /// The client has reset these streams.
    Left(Vec<u32>),
    /// It ends.
    Over(Verdict),
    /// Requests were refused for this before anyone of us has seen them.
    Refused(Vec<(u32, Reason)>),
    /// These streams are too slow.
    Slow(Vec<(u32, Reason)>),
}

/// Where the verdict is told.
#[derive(Debug, Default)]
pub(super) struct Told {
    verdict: OnceLock<Verdict>,
    /// The verdict has come to who serves the connection.
    heard: AtomicBool,
    words: Mutex<Words>,
    /// Streams whose answers wait for more room than there is, or do not any more, and since when.
    held: Mutex<Vec<(u32, bool, Instant)>>,
    /// There is something in it.
    holds: AtomicBool,
    /// There may be a word that was not taken. Mostly there is none, and every turn of the connection asks.
    said: AtomicBool,
    malformed: AtomicU32,
    /// Rings with each word.
    pub(super) ring: Arc<Ring>,
}

#[derive(Debug, Default)]
struct Words {
    left: Vec<u32>,
    broken: Vec<u32>,
    refused: Vec<(u32, Reason)>,
    slow: Vec<(u32, Reason)>,
    refusals: Refusals,
}

impl Told {
    /// The next word, where there is one.
    pub(super) fn next(&self) -> Option<Word> {
        if let Some(verdict) = self.verdict.get() {
            self.heard.store(true, Ordering::Relaxed);
            return Some(Word::Over(*verdict));
        }
        if !self.said.load(Ordering::Relaxed) {
            return None;
        }
        let mut words = self.words();
        if !words.slow.is_empty() {
            return Some(Word::Slow(std::mem::take(&mut words.slow)));
        }
        if !words.refused.is_empty() {
            return Some(Word::Refused(std::mem::take(&mut words.refused)));
        }
        if !words.left.is_empty() {
            return Some(Word::Left(std::mem::take(&mut words.left)));
        }
        self.said.store(!words.broken.is_empty(), Ordering::Relaxed);
        None
    }

    /// This stream has become a request. Returns whether it is not one that was refused before, of which a [`Word`] was given, and
    /// whether another one may be there to be accepted.
    pub(super) fn accepted(&self, stream: u32) -> (bool, bool) {
        let mut words = self.words();
        let fresh = words.refusals.accepted(stream);
        // Its own line in the log says more than that of a request that nobody has seen.
        let untold = words.refused.iter().position(|(refused, _)| *refused == stream);
        let untold = untold.map(|at| words.refused.remove(at));
        (fresh || untold.is_some(), words.refusals.may_follow())
    }

    /// The requests have seen this; the guard is told when it looks next.
    pub(super) fn held(&self, held: Vec<(u32, bool, Instant)>) {
        if !held.is_empty() {
            self.held.lock().unwrap_or_else(PoisonError::into_inner).extend(held);
            self.holds.store(true, Ordering::Relaxed);
        }
    }

    fn take_held(&self) -> Vec<(u32, bool, Instant)> {
        if !self.holds.load(Ordering::Relaxed) {
            return Vec::new();
        }
        self.holds.store(false, Ordering::Relaxed);
        std::mem::take(&mut self.held.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn slow(&self, slow: Vec<(u32, Reason)>) {
        if !slow.is_empty() {
            self.say().slow.extend(slow);
            self.ring.ring();
        }
    }

    fn words(&self) -> MutexGuard<'_, Words> {
        self.words.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The words, to put one more there. Guard and who serves the connection are one task.
    fn say(&self) -> MutexGuard<'_, Words> {
        self.said.store(true, Ordering::Relaxed);
        self.words()
    }

    /// These streams are being reset for what their client did.
    fn broken(&self, broken: Drain<'_, u32>) {
        self.say().broken.extend(broken);
    }

    /// Streams that were reset so since this was asked, or [`ALL`]. To be asked before their requests are polled: these see their streams' ends.
    pub(super) fn take_broken(&self) -> Vec<u32> {
        if !self.said.load(Ordering::Relaxed) {
            return Vec::new();
        }
        std::mem::take(&mut self.words().broken)
    }

    /// The verdict, where there is one.
    pub(super) fn known(&self) -> Option<Verdict> {
        self.verdict.get().copied()
    }

    /// A request was none.
    pub(super) fn malformed(&self) {
        if self.malformed.fetch_add(1, Ordering::Relaxed) + 1 >= MALFORMED {
            self.tell(Verdict::Ours(H2Abuse::Malformed));
        }
    }

    /// The first counts.
    pub(super) fn tell(&self, verdict: Verdict) {
        if self.verdict.set(verdict).is_ok() {
            self.ring.ring();
        }
    }
}

/// A connection under guard.
#[derive(Debug)]
pub(super) struct Guard {
    conn: Box<Conn>,
    watch: Watch,
    told: Arc<Told>,
    /// No more is read.
    over: bool,
    alarm: Option<Box<Alarm>>,
    /// What may still be read and thrown away.
    linger: usize,
    /// What is being sent in place of a frame, and the frame's length. Rare, so an idle connection carries no room for it.
    instead: Option<Box<(Bytes, usize)>>,
}

impl Guard {
    /// Of a connection that began at `since`.
    pub(super) fn new(conn: Box<Conn>, patience: Patience, told: Arc<Told>, since: Instant) -> Self {
        let watch = Watch::new(patience, Instant::now()).begun_at(since);
        Self { conn, watch, told, over: false, alarm: None, linger: LINGER_BYTES, instead: None }
    }

    fn judge<T: Default>(&mut self, judged: Result<T, Verdict>) -> T {
        judged.unwrap_or_else(|verdict| {
            // After its own GOAWAY the h2 crate reads no more by itself.
            self.over = true;
            if let Verdict::Theirs(_) = verdict {
                self.told.say().broken.push(ALL);
            }
            self.told.tell(verdict);
            T::default()
        })
    }

    /// Who is waited for, since the requests were polled.
    fn hear(&mut self) {
        for (stream, held, at) in self.told.take_held() {
            self.watch.held(stream, held, at);
        }
    }

    /// Looks at what is read.
    fn receive(&mut self, bytes: &[u8]) {
        self.hear();
        let judged = self.watch.received(bytes, Instant::now());
        self.judge(judged);
        {
            let opened = self.watch.opened();
            if opened.len() > 0 {
                let mut words = self.told.words();
                opened.for_each(|stream| words.refusals.opened(stream));
            }
        }
        let left = self.watch.left();
        if left.len() > 0 {
            self.told.say().left.extend(left);
            self.told.ring.ring();
        }
    }

    /// Looks for refusals in what is to be sent. Returns how much of it to send now: up to the next one, or all of that
    /// one, if nothing else is sent in its place.
    fn refuse(&mut self, data: &[u8]) -> usize {
        let mut words = self.told.words();
        if words.refusals.is_empty() {
            return data.len();
        }
        let at = match self.watch.until_next() {
            Ok(at) => at,
            Err(more) => return more.min(data.len()),
        };
        match words.refusals.find(data, at) {
            None => data.len(),
            Some(refusal) if refusal.at > 0 => refusal.at,
            Some(refusal) => {
                words.refusals.refused(refusal.stream);
                words.refused.push((refusal.stream, refusal.reason));
                self.told.said.store(true, Ordering::Relaxed);
                self.told.ring.ring();
                let frame = &data[..refusal.length.min(data.len())];
                self.instead = reasoned(frame, refusal).map(|bytes| Box::new((Bytes::from(bytes), frame.len())));
                frame.len()
            }
        }
    }

    /// Sends what is sent in place of a frame. Returns that frame's length.
    fn poll_instead(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        let Some((bytes, stands_for)) = self.instead.as_deref_mut() else { return Poll::Ready(Ok(0)) };
        while !bytes.is_empty() {
            match ready!(Pin::new(&mut *self.conn).poll_write(cx, bytes))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                written => bytes.advance(written),
            }
        }
        let stands_for = *stands_for;
        self.instead = None;
        Poll::Ready(Ok(stands_for))
    }

    /// Looks at the clock now and then, while something waits for the client. The alarm stays until it rings for nothing: most
    /// streams are short, and another one comes.
    fn look(&mut self, cx: &mut Context<'_>) {
        while !self.over {
            let waits = self.watch.waits();
            if !waits && self.alarm.is_none() {
                return;
            }
            let watch = &mut self.watch;
            let next = |watch: &Watch| (Instant::now() + watch.patience().tick()).into();
            let alarm = self.alarm.get_or_insert_with(|| Box::new(Alarm::at(next(watch))));
            if alarm.poll(cx).is_pending() {
                return;
            }
            if !waits {
                self.alarm = None;
                return;
            }
            alarm.reset(next(watch));
            self.hear();
            let late = self.watch.late(Instant::now());
            let slow = self.judge(late);
            self.told.slow(slow);
        }
    }

    /// Whether the socket has failed because the table of deadlines has shut it down, under a client that takes too little, and the
    /// one who serves it has not heard of it yet: the h2 crate, which would take it for the client's leaving, sees it after that.
    fn has_given_up(&mut self) -> bool {
        let given_up = self.conn.is_given_up();
        if given_up && !self.over {
            self.judge::<()>(Err(Verdict::Ours(H2Abuse::Stall)));
        }
        given_up && !self.told.heard.load(Ordering::Relaxed)
    }

    /// After a write or a flush: whether the socket took it.
    fn note<T>(&mut self, cx: &mut Context<'_>, done: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if matches!(done, Poll::Ready(Err(_))) && self.has_given_up() {
            return Poll::Pending;
        }
        // Nobody asks when it went on.
        self.watch.stands(done.is_pending().then(Instant::now));
        if done.is_pending() {
            self.look(cx);
        }
        done
    }
}

/// A refusal with its reason; `None` where it stays as it is.
fn reasoned(frame: &[u8], refusal: Refusal) -> Option<Vec<u8>> {
    if !refusal.answer || frame.len() < refusal.length {
        return None;
    }
    with_field(frame, proxy::PROXY_STATUS.as_str(), proxy::proxy_status(refusal.reason)?.as_bytes())
}

impl AsyncRead for Guard {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if this.over {
            return Poll::Pending; // whoever was told drives the connection to its end
        }
        let before = buf.filled().len();
        let Poll::Ready(read) = Pin::new(&mut *this.conn).poll_read(cx, buf) else {
            this.look(cx);
            return Poll::Pending;
        };
        let ended = read.is_err() || buf.filled().len() == before;
        if ended && this.has_given_up() {
            return Poll::Pending;
        }
        this.receive(&buf.filled()[before..]);
        if this.over {
            buf.set_filled(before);
            return Poll::Pending;
        }
        Poll::Ready(read)
    }
}

impl AsyncWrite for Guard {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        let now = if this.instead.is_some() { data.len() } else { this.refuse(data) };
        let written = match this.instead {
            Some(_) => this.poll_instead(cx),
            None => Pin::new(&mut *this.conn).poll_write(cx, &data[..now]),
        };
        if let Poll::Ready(Ok(written)) = &written {
            this.hear();
            let judged = this.watch.sent(&data[..*written], Instant::now());
            this.judge(judged);
            let broken = this.watch.broken();
            if broken.len() > 0 {
                this.told.broken(broken);
            }
        }
        this.note(cx, written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut *self.conn).poll_flush(cx);
        self.note(cx, flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        ready!(Pin::new(&mut *this.conn).poll_shutdown(cx))?;
        // To close while the client still sends would reset the connection, and the GOAWAY with it.
        while this.told.known().is_some() && this.linger > 0 {
            let mut scratch = [std::mem::MaybeUninit::uninit(); 4096];
            let mut scratch = ReadBuf::uninit(&mut scratch);
            let read = ready!(Pin::new(&mut *this.conn).poll_read(cx, &mut scratch));
            if read.is_err() || scratch.filled().is_empty() {
                break;
            }
            this.linger = this.linger.saturating_sub(scratch.filled().len());
        }
        Poll::Ready(Ok(()))
    }
}

//! The lane: a plain request of an HTTP/1.1 client, or one for a WebSocket, from the bytes that the front has read to the bytes that
//! it writes. The same phases as on Pingora's path, in the same order; nothing of it takes memory but what a worker keeps.

mod body;
mod gone;
mod own;
mod past;

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::BufMut as _;
use http::Version;
use pingora_core::{Error, Result};

use super::{
    super::{
        admit::{self, JUDGED_WRITE_TIMEOUT, READ_TIMEOUT, WRITE_TIMEOUT},
        ctx::{Afterwards, ConnInfo, RequestCtx, RequestStart},
        downstream::Downstream as _,
        finish,
        kit::Kit,
        reject, retry, select, watch,
    },
    answer::{Body, Head},
    asked::{Asked, Read, Wanted, Way},
    attempt::{Attempt, Failure, Step},
    chunks::hexadecimal,
    connect::{self, For},
    heads,
    memory::Desk,
    patience::Patience,
    session::failed,
    turn::Turn,
    websocket::{Served, WebSocket},
    wire::{Wire, gone},
};
use crate::{
    policy::{
        fields::{Index, Raw},
        framing::Border,
        pieces::take_off,
    },
    runtime::{deadlines::How, line::Line},
};

/// A part of an answer's body that is not larger is copied beside its head, so that both leave in one piece.
const COPIED: usize = 4 * 1024;
/// What is collected for the client leaves when there is as much.
const COLLECTED: usize = 16 * 1024;

/// Serves a request, the fields of which are where `index` says. For a WebSocket, `read` is its head alone.
pub async fn serve(
    kit: &Kit,
    start: RequestStart,
    (way, wanted): (Way, Wanted<'_>),
    (read, index): (Read<'_>, &Index),
    desk: &mut Desk,
    wire: &mut impl Wire,
) -> Served {
    let (head, body) = read.bytes.split_at(read.head.min(read.bytes.len()));
    let fields = Raw::new(head, index);
    let mut ctx = RequestCtx::new(kit.epoch());
    ctx.start = Some(start);
    admit::introduce(kit, &fields, &mut ctx);
    let upgrade = way.is_upgrade();
    (ctx.route, ctx.target, ctx.exchanged) = (Some(way.route), way.target, true);
    let asked = Asked::new(&way.method, wanted, &fields, body.len() as u64 + read.left, read.last);
    let asked = asked.for_upgrade(upgrade);
    desk.incoming.extend_from_slice(body);
    let judged = ctx.info().is_some_and(|info| info.limits().min_body_rate.is_some());
    let mut lane = Lane {
        kit,
        wire,
        asked,
        desk,
        sender: Patience::default(),
        reader: Patience::default(),
        write_timeout: if judged { JUDGED_WRITE_TIMEOUT } else { WRITE_TIMEOUT },
        begun: false,
        switched: None,
        turn: Turn::default(),
        out: Out::default(),
    };
    if lane.asked.is_with_body() {
        lane.take_in(read.whole);
    }
    let after = lane.run(way.upstream, &mut ctx).await;
    if let Some(attempt) = lane.switched.take() {
        return Served::Switched(WebSocket::new(ctx, attempt, head, index));
    }
    Served::Over(after, ctx.ended)
}

/// One request between its client and a backend.
struct Lane<'a, W> {
    kit: &'a Kit,
    wire: &'a mut W,
    asked: Asked<'a>,
    desk: &'a mut Desk,
    /// With the client: to send its body, to take its answer.
    sender: Patience,
    reader: Patience,
    write_timeout: Duration,
    /// An attempt was made.
    begun: bool,
    /// The attempt that came to a WebSocket.
    switched: Option<Attempt<Line>>,
    turn: Turn,
    out: Out,
}

/// How far an answer is on its way to the client.
#[derive(Debug, Default)]
struct Out {
    /// What was collected leaves now.
    leaving: bool,
    /// The part of the body that the attempt holds leaves behind it.
    lent: bool,
    /// The body gets chunks of ours.
    chunks: bool,
    /// The body has chunks of the backend's, with trailers behind them.
    trailing: bool,
    /// Nothing comes after it.
    ended: bool,
}

/// What came of moving an answer on.
enum Down {
    Done,
    Moved,
    Stands,
}

/// How far a request is on its way to a backend.
struct Up {
    attempt: Attempt<Line>,
    /// Something was given that has not left wholly.
    unsent: bool,
}

impl<W: Wire> Lane<'_, W> {
    async fn run(&mut self, upstream: usize, ctx: &mut RequestCtx) -> Afterwards {
        if let Some(refusal) = self.refusal(ctx) {
            let answered = match refusal {
                Ok((head, body)) => self.respond(&head, &body).await,
                Err(_) => false,
            };
            if !answered {
                self.asked.no_next_request();
            }
            return self.end(ctx, None);
        }
        admit::go_to(self.kit, upstream, ctx);
        let done = loop {
            match self.once(ctx).await {
                Err(error) if error.retry() => {}
                done => break done,
            }
        };
        let error = match done {
            // It goes on, without a request.
            Ok(()) if self.switched.is_some() => return Afterwards::Drop,
            Ok(()) => return self.end(ctx, None),
            Err(error) => error,
        };
        let reason = finish::failed(ctx, &error);
        if let Some((head, body)) = reject::after(&mut self.asked, ctx, reason)
            && self.respond(&head, &body).await
        {
            reject::answered(self.asked.again, ctx);
        }
        self.end(ctx, Some(&error))
    }

    /// The request is over.
    fn end(&mut self, ctx: &mut RequestCtx, error: Option<&Error>) -> Afterwards {
        finish::ended(self.kit, &mut self.asked, ctx, error);
        let next = self.asked.again && self.wire.is_at_border();
        match ctx.info().map_or(Afterwards::Drop, ConnInfo::afterwards) {
            Afterwards::Drop if error.is_none() && next => Afterwards::NextRequest,
            Afterwards::Drop if error.is_none() && self.wire.is_at_border() => self.asked.parting(), // see `finish::last`
            Afterwards::Drop | Afterwards::Close => Afterwards::Drop,
            Afterwards::NextRequest if next => Afterwards::NextRequest,
            Afterwards::Linger | Afterwards::NextRequest => Afterwards::Linger,
        }
    }

    /// One attempt.
    async fn once(&mut self, ctx: &mut RequestCtx) -> Result<()> {
        let home = select::backend(ctx)?;
        ctx.read_timeout = Duration::MAX;
        let what = if self.asked.is_upgrade() { For::WebSocket } else { For::Http1 };
        let connected = match connect::pooled(self.kit, what, home, ctx) {
            Some(pooled) => Ok(pooled),
            // Large, and rare.
            None => Box::pin(connect::open(self.kit, what, ctx)).await,
        };
        let (line, place) = match connected {
            Ok(connected) => connected,
            Err(error) => return Err(retry::after_connect(self.kit, &self.asked, ctx, error)),
        };
        connect::connected(self.kit, &line, place.reused, ctx);
        watch::request_begins(self.kit, &mut self.asked, Version::HTTP_11, ctx);
        match self.exchange(ctx, line, what).await {
            Ok(_) if self.switched.is_some() => Ok(()),
            Ok(again) => {
                let now = Instant::now();
                ctx.ended = Some(now);
                connect::release(self.kit, ctx, again, place, now);
                Ok(())
            }
            Err(error) => Err(connect::broken(self.kit, &mut self.asked, ctx, error, &place)),
        }
    }

    /// The request and its answer on `line`. Returns the connection where it may be used again.
    async fn exchange(&mut self, ctx: &mut RequestCtx, line: Line, what: For) -> Result<Option<Line>> {
        let mut room = self.desk.room.take().unwrap_or_default();
        room.out.clear();
        let (body, done) = (self.asked.is_with_body(), self.asked.is_done());
        self.asked.write(ctx, &mut room.out);
        let method = self.asked.request().method.clone();
        if std::mem::replace(&mut self.begun, true) {
            // What was given for an attempt before is this one's too.
            self.desk.upload.clear();
            self.desk.upload.extend_from_slice(&self.desk.given);
        }
        let protocol = connect::protocol(&line, what);
        let mut up = Up { attempt: Attempt::new(line, method, room, !body, false), unsent: true };
        up.attempt.speaks(protocol);
        if body && (done || !self.desk.upload.is_empty()) {
            watch::body_given(&self.asked, self.desk.upload.len(), done, ctx)?;
        }
        let exchanged = poll_fn(|cx| self.poll(cx, &mut up, ctx)).await;
        if exchanged.is_ok() && ctx.upgraded {
            let mut room = up.attempt.switch();
            self.kit.memory().put_room(std::mem::take(&mut room.ahead));
            self.desk.room = Some(room);
            self.switched = Some(up.attempt);
            return Ok(None);
        }
        let (mut room, again) = up.attempt.finish();
        self.kit.memory().put_room(std::mem::take(&mut room.ahead));
        self.desk.room = Some(room);
        exchanged.map(|()| again)
    }

    /// Moves what can be moved, both ways.
    fn poll(&mut self, cx: &mut Context<'_>, up: &mut Up, ctx: &mut RequestCtx) -> Poll<Result<()>> {
        self.turn = Turn::begin();
        if watch::poll_due(ctx, cx) {
            return Poll::Ready(Err(self.broken(cx, &mut up.attempt, None)));
        }
        loop {
            let moved = self.poll_up(cx, up, ctx)?;
            match self.poll_down(cx, &mut up.attempt, ctx)? {
                Down::Done => return Poll::Ready(Ok(())),
                Down::Stands if !moved => break,
                Down::Moved | Down::Stands if self.turn.is_over(cx) => break,
                Down::Moved | Down::Stands => {}
            }
        }
        if self.out.leaving && watch::poll_over(ctx, cx) {
            cx.waker().wake_by_ref();
        }
        self.poll_gone(cx, &mut up.attempt).map_or(Poll::Pending, |gone| Poll::Ready(Err(gone)))
    }

    /// Towards the backend. Returns whether anything moved.
    fn poll_up(&mut self, cx: &mut Context<'_>, up: &mut Up, ctx: &mut RequestCtx) -> Result<bool> {
        let mut moved = false;
        loop {
            if !self.desk.upload.is_empty() {
                let taken = up.attempt.poll_upload(cx, &self.desk.upload);
                let Poll::Ready(taken) = watch::upload(Version::HTTP_11, ctx, taken) else { break };
                take_off(taken, &mut self.desk.upload);
                self.turn.spend(taken);
                (moved, up.unsent) = (true, true);
                continue;
            }
            match self.poll_body_pour(cx, &mut up.attempt) {
                Poll::Pending => break,
                Poll::Ready(true) => {
                    moved = true;
                    continue;
                }
                Poll::Ready(false) => {}
            }
            if up.unsent {
                if watch::upload(Version::HTTP_11, ctx, up.attempt.poll_flush(cx)).is_pending() {
                    break;
                }
                up.unsent = false;
            }
            if self.asked.is_done() {
                // Not before all of it has left: what waits here is not known to the attempt.
                up.attempt.complete();
                break;
            }
            if !up.attempt.wants_body() {
                self.sender.moved();
                self.wire.rest();
                break;
            }
            if self.turn.is_over(cx) {
                break;
            }
            if self.body_goes_past(&up.attempt) {
                let Poll::Ready(taken) = self.poll_body_past(cx) else { break };
                watch::body_given(&self.asked, taken?, self.asked.is_done(), ctx)?;
                continue;
            }
            let Poll::Ready(read) = self.poll_body(cx) else { break };
            read?;
            let done = self.wire.is_at_border();
            let data = self.take_in(done);
            watch::body_given(&self.asked, data, done, ctx)?;
            moved = true;
        }
        Ok(moved)
    }

    /// Towards the client.
    fn poll_down(&mut self, cx: &mut Context<'_>, attempt: &mut Attempt<Line>, ctx: &mut RequestCtx) -> Result<Down> {
        let mut moved = Down::Stands;
        loop {
            if self.out.leaving {
                let Poll::Ready(left) = self.poll_leave(cx, Some(attempt)) else { return Ok(moved) };
                left?;
                if self.out.ended {
                    return Ok(Down::Done);
                }
                moved = Down::Moved;
                if self.turn.is_over(cx) {
                    return Ok(moved);
                }
            }
            if self.goes_past(attempt) {
                let Poll::Ready(came) = self.poll_past(cx, attempt, ctx) else { return Ok(moved) };
                came.map_err(|failure| failed(attempt, failure))?;
                continue;
            }
            let step = match self.poll_step(cx, attempt) {
                Poll::Ready(step) => step,
                Poll::Pending if self.desk.answer.is_empty() => return Ok(moved),
                Poll::Pending => {
                    self.out.leaving = true;
                    continue;
                }
            };
            match step {
                Ok(Step::Head(head)) => self.head(attempt, &head, ctx)?,
                Ok(Step::Body) => self.part(attempt, ctx),
                Ok(Step::End) => {
                    if self.out.chunks {
                        self.desk.answer.put_slice(b"0\r\n\r\n");
                    }
                    if self.out.trailing {
                        heads::trailers(attempt, ctx, &mut self.desk.answer);
                    }
                    (self.out.ended, self.out.leaving) = (true, true);
                }
                Err(failure) => return Err(self.broken(cx, attempt, Some(failure))),
            }
        }
    }

    /// The answer has broken off, by a deadline of ours where no failure is known.
    #[cold]
    fn broken(&mut self, cx: &mut Context<'_>, attempt: &mut Attempt<Line>, known: Option<Failure>) -> Box<Error> {
        // What the client can have of the answer must not wait for a rest that never comes.
        let _ = self.poll_leave(cx, Some(attempt));
        let failure = known.unwrap_or_else(|| attempt.break_off_late());
        failed(attempt, failure)
    }

    /// A part of the answer's body is here.
    fn part(&mut self, attempt: &mut Attempt<Line>, ctx: &RequestCtx) {
        self.part_came(attempt, ctx);
        let answer = &mut self.desk.answer;
        let body = attempt.body();
        if self.out.chunks {
            hexadecimal(body.len(), answer);
            answer.put_slice(b"\r\n");
        }
        if body.len() > COPIED {
            (self.out.lent, self.out.leaving) = (true, true);
            return;
        }
        answer.put_slice(body);
        if self.out.chunks {
            answer.put_slice(b"\r\n");
        }
        attempt.taken(body.len());
        self.out.leaving = answer.len() >= COLLECTED;
    }

    fn part_came(&mut self, attempt: &Attempt<Line>, ctx: &RequestCtx) {
        self.asked.sent = attempt.data();
        if !std::mem::replace(&mut self.turn.renewed, true) {
            watch::answer_body(ctx);
            self.sender.renew(READ_TIMEOUT);
        }
    }

    /// Writes what was collected, and what is lent.
    fn poll_leave(&mut self, cx: &mut Context<'_>, attempt: Option<&mut Attempt<Line>>) -> Poll<Result<()>> {
        let left = self.poll_write(cx, attempt);
        if left.is_pending() {
            self.reader.waits(self.kit, self.wire.descriptor(), How::Both, self.write_timeout);
        } else {
            self.reader.moved();
            self.out.leaving = false;
        }
        left.map_err(|error| gone(Some(error), "while it was answered"))
    }

    fn poll_write(&mut self, cx: &mut Context<'_>, attempt: Option<&mut Attempt<Line>>) -> Poll<io::Result<()>> {
        let mut lender = attempt.filter(|_| self.out.lent);
        // Nothing stands between them and the end of the connection, which leaves in the same segment then.
        let last = self.out.ended && !self.asked.again && !self.asked.is_upgrade();
        loop {
            let body = lender.as_ref().map_or(&[][..], |attempt| attempt.body());
            let answer = &mut self.desk.answer;
            if answer.is_empty() && body.is_empty() {
                break;
            }
            let parts = [io::IoSlice::new(answer), io::IoSlice::new(body)];
            let parts = &parts[usize::from(answer.is_empty())..if body.is_empty() { 1 } else { 2 }];
            let sent = ready!(self.wire.poll_send(cx, parts, last))?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.reader.moved();
            self.turn.spend(sent);
            let collected = sent.min(answer.len());
            take_off(collected, answer);
            if let Some(attempt) = &mut lender {
                attempt.taken(sent - collected);
            }
        }
        ready!(self.poll_pour(cx))?;
        if std::mem::take(&mut self.out.lent) && self.out.chunks {
            self.desk.answer.put_slice(b"\r\n");
        }
        self.wire.poll_sent(cx)
    }

    /// The answer's head, or an interim one, on its way to the client.
    ///
    /// # Errors
    /// There are interim answers without end.
    fn head(&mut self, attempt: &Attempt<Line>, head: &Head, ctx: &mut RequestCtx) -> Result<()> {
        if head.is_switch() {
            self.asked.answered = Some(head.status);
            watch::upgraded(ctx);
            heads::switch(attempt, &mut self.desk.answer);
            (self.out.ended, self.out.leaving) = (true, true);
            return Ok(());
        }
        if head.is_interim() {
            watch::interim(ctx)?;
            self.asked.answered = Some(head.status);
            heads::interim(attempt, head, &mut self.desk.answer);
            self.out.leaving = true;
            return Ok(());
        }
        let out = &mut self.desk.answer;
        self.asked.answered = Some(head.status);
        watch::answered(head.status, Version::HTTP_11, attempt.is_here(), ctx);
        self.turn.renewed = !self.sender.is_waiting();
        if !self.asked.is_done() {
            // The client still sends; what it has yet to send would be taken for the next request.
            self.asked.no_next_request();
        }
        heads::answer(attempt, head, self.kit, ctx, self.asked.again, out);
        // The client's connection need not end with the backend's.
        self.out.chunks = matches!(head.body, Body::UntilClose);
        self.out.trailing = head.body == Body::Bordered(Border::CHUNKED);
        Ok(())
    }
}

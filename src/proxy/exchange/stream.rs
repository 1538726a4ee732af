//! The lane of HTTP/2 clients: one request on its stream, straight from and to the h2 crate. The same phases as in the lane of
//! HTTP/1.1, in the same order. Both ways are moved at once: neither waits for the other.

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{SendStream, server::SendResponse};
use http::{Version, request::Parts};
use pingora_core::{Error, ErrorSource, ErrorType, Result};
use pingora_http::ResponseHeader;

use super::{
    super::{
        admit::{self, WRITE_TIMEOUT},
        cancel::Cancel,
        ctx::{RequestCtx, RequestStart},
        downstream::Downstream as _,
        edit, finish,
        kit::Kit,
        outlet::Outlet,
        reject, retry, select,
        stream::{Upload, failed as stream_failed},
        watch,
    },
    answer::{Body, Head, Protocol},
    asked::Way,
    attempt::{Attempt, CAUTIOUS, Step},
    call::{Call, Outgoing},
    connect::{self, For},
    fields,
    memory::Desk,
    session::failed,
};
use crate::{
    policy::framing::Border,
    runtime::{
        deadlines::{Deadline, How, Wait},
        line::Line,
    },
    types::Reason,
};

/// A part of an answer's body that is not larger is copied, so that a client that is slow to take it holds no more than that.
const COPIED: usize = CAUTIOUS;
/// What is collected for the backend leaves when there is as much.
const COLLECTED: usize = 16 * 1024;

/// Serves the request on a stream. What is left of the stream is reset.
// Boxed here, where it is put together in its place: it is large, and to hand it out would copy all of it.
pub fn serve<'a>(
    kit: &'a Kit,
    start: RequestStart,
    way: Way,
    head: Box<Parts>,
    upload: Upload,
    respond: SendResponse<Bytes>,
) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
    let call = Call::new(head, upload);
    Box::pin(async move {
        let mut ctx = RequestCtx::new(kit.epoch());
        let cancel = start.cancel.clone().unwrap_or_default();
        ctx.start = Some(start);
        admit::introduce(kit, call.request().fields, &mut ctx);
        (ctx.route, ctx.target, ctx.exchanged) = (Some(way.route), way.target, true);
        let mut desk = kit.memory().desk();
        let mut lane = Lane {
            kit,
            call,
            outgoing: Outgoing::default(),
            desk: &mut desk,
            respond,
            sending: None,
            asked: false,
            outlet: Outlet::new(cancel.clone()),
            out: Out::default(),
            reader: None,
            waiting: false,
            cancel,
        };
        lane.run(way.upstream, &mut ctx).await;
        kit.memory().put_desk(desk);
    })
}

/// One request between its stream and a backend.
struct Lane<'a> {
    kit: &'a Kit,
    call: Call,
    outgoing: Outgoing,
    desk: &'a mut Desk,
    respond: SendResponse<Bytes>,
    /// The answer, once it has begun.
    sending: Option<SendStream<Bytes>>,
    /// The client was told to send its body.
    asked: bool,
    outlet: Outlet,
    out: Out,
    /// With the client, to take its answer.
    reader: Option<Deadline>,
    waiting: bool,
    cancel: Arc<Cancel>,
}

/// How far an answer is on its way to the client.
#[derive(Debug, Default)]
struct Out {
    /// A part of the body that its window has not let through.
    data: Bytes,
    /// Nothing comes behind it.
    last: bool,
    /// Fields may come behind the body.
    trailing: bool,
    /// The client has been given something since the backend was waited for.
    fresh: bool,
    /// The stream's end was given too.
    ended: bool,
}

/// What came of moving an answer on.
enum Down {
    Done,
    Moved,
    Stands,
}

impl Lane<'_> {
    async fn run(&mut self, upstream: usize, ctx: &mut RequestCtx) {
        if let Some(refusal) = admit::refused_by_guards(&self.call.request(), ctx) {
            if let Ok((head, body)) = refusal {
                self.answer(head, body);
            }
            return finish::ended(self.kit, &mut self.call, ctx, None);
        }
        admit::go_to(self.kit, upstream, ctx);
        let done = loop {
            match self.once(ctx).await {
                Err(error) if error.retry() => {}
                done => break done,
            }
        };
        let Err(error) = done else { return finish::ended(self.kit, &mut self.call, ctx, None) };
        let reason = finish::failed(ctx, &error);
        if let Some((head, body)) = reject::after(&mut self.call, ctx, reason) {
            self.answer(head, body);
        } else if reason == Reason::BadRequest {
            self.respond.send_reset(h2::Reason::PROTOCOL_ERROR);
        }
        finish::ended(self.kit, &mut self.call, ctx, Some(&error));
    }

    /// One attempt.
    async fn once(&mut self, ctx: &mut RequestCtx) -> Result<()> {
        let home = select::backend(ctx)?;
        ctx.read_timeout = Duration::MAX;
        let connected = match connect::pooled(self.kit, For::Http2, home, ctx) {
            Some(pooled) => Ok(pooled),
            // Large, and rare.
            None => Box::pin(self.open(ctx)).await,
        };
        let (line, place) = match connected {
            Ok(connected) => connected,
            Err(error) if error.esource() == &ErrorSource::Downstream => {
                return Err(retry::after_exchange(self.kit, &mut self.call, ctx, error, false));
            }
            Err(error) => return Err(retry::after_connect(self.kit, &self.call, ctx, error)),
        };
        connect::connected(self.kit, &line, place.reused, ctx);
        watch::request_begins(self.kit, &mut self.call, Version::HTTP_11, ctx);
        match self.exchange(line, ctx).await {
            Ok(again) => {
                let now = Instant::now();
                ctx.ended = Some(now);
                connect::release(self.kit, ctx, again, place, now);
                Ok(())
            }
            Err(error) => Err(connect::broken(self.kit, &mut self.call, ctx, error, &place)),
        }
    }

    /// A new connection, unless the client leaves before there is one.
    async fn open(&mut self, ctx: &mut RequestCtx) -> Result<(Line, connect::Place)> {
        let opened = {
            let mut opening = pin!(connect::open(self.kit, For::Http2, ctx));
            poll_fn(|cx| {
                if self.cancel.end.poll(cx).is_ready() {
                    return Poll::Ready(None);
                }
                if let Poll::Ready(error) = self.poll_left(cx) {
                    return Poll::Ready(Some(Err(error)));
                }
                opening.as_mut().poll(cx).map(Some)
            })
            .await
        };
        opened.unwrap_or_else(|| Err(self.ended(ctx)))
    }

    /// The request and its answer on `line`. Returns the connection where it may be used again.
    async fn exchange(&mut self, line: Line, ctx: &mut RequestCtx) -> Result<Option<Line>> {
        let mut room = self.desk.room.take().unwrap_or_default();
        room.out.clear();
        let body = self.call.is_with_body();
        let request = self.call.request();
        request.write(ctx, body, &mut room.out);
        let method = request.method.clone();
        let protocol = connect::protocol(&line, For::Http2);
        if body
            && protocol == Protocol::Http2
            && edit::expects(request.fields)
            && !std::mem::replace(&mut self.asked, true)
        {
            self.respond.send_informational(fields::go_on()).map_err(stream_failed)?;
        }
        let mut attempt = Attempt::new(line, method, room, !body, true);
        attempt.speaks(protocol);
        if body {
            self.outgoing.begin(&self.call, &self.desk.given, &mut attempt);
            let done = self.call.upload.is_done();
            if done || !self.desk.given.is_empty() {
                watch::body_given(&self.call, self.desk.given.len(), done, ctx)?;
            }
        } else {
            self.outgoing.begin_empty();
        }
        let exchanged = poll_fn(|cx| {
            if self.cancel.end.poll(cx).is_ready() {
                return Poll::Ready(Err(self.ended(ctx)));
            }
            if watch::poll_due(ctx, cx) {
                let failure = attempt.break_off_late();
                return Poll::Ready(Err(failed(&attempt, failure)));
            }
            self.poll(cx, &mut attempt, ctx)
        })
        .await;
        let (mut room, again) = attempt.finish();
        self.kit.memory().put_room(std::mem::take(&mut room.ahead));
        self.desk.room = Some(room);
        exchanged.map(|()| again)
    }

    /// Moves what can be moved, both ways.
    fn poll(&mut self, cx: &mut Context<'_>, attempt: &mut Attempt<Line>, ctx: &mut RequestCtx) -> Poll<Result<()>> {
        loop {
            let moved = self.poll_up(cx, attempt, ctx)?;
            match self.poll_down(cx, attempt, ctx)? {
                Down::Done => return Poll::Ready(Ok(())),
                Down::Moved => {}
                Down::Stands if moved => {}
                Down::Stands => return self.poll_left(cx).map(Err),
            }
        }
    }

    /// Whether the client has reset the stream, or has left wholly.
    fn poll_left(&mut self, cx: &mut Context<'_>) -> Poll<Box<Error>> {
        let reset = match &mut self.sending {
            Some(sending) => sending.poll_reset(cx),
            None => self.respond.poll_reset(cx),
        };
        reset.map(|reset| match reset {
            Ok(reason) => Error::explain(ErrorType::ConnectionClosed, format!("the client reset its stream: {reason}"))
                .into_down(),
            Err(error) => stream_failed(error),
        })
    }

    /// The request was ended from outside, or its client did not take its answer.
    #[cold]
    fn ended(&mut self, ctx: &mut RequestCtx) -> Box<Error> {
        if self.reader.as_ref().is_some_and(Deadline::disarm) {
            return Error::explain(ErrorType::WriteTimedout, "while it was answered").into_down();
        }
        ctx.reason = Some(self.cancel.reason());
        Error::explain(ErrorType::ConnectionClosed, "its client was too slow").into_down()
    }

    /// Towards the backend. Returns whether anything moved.
    fn poll_up(&mut self, cx: &mut Context<'_>, attempt: &mut Attempt<Line>, ctx: &mut RequestCtx) -> Result<bool> {
        let mut moved = false;
        loop {
            if self.outgoing.is_behind() {
                let taken = attempt.poll_upload(cx, self.outgoing.part());
                let Poll::Ready(taken) = watch::upload(Version::HTTP_2, ctx, taken) else { break };
                self.outgoing.left(taken, &mut self.call, attempt);
                moved = true;
                continue;
            }
            if attempt.wants_body() && attempt.waiting() < COLLECTED {
                match self.call.upload.poll_data(cx) {
                    Poll::Ready(data) => {
                        self.take_in(data?.unwrap_or_default(), attempt, ctx)?;
                        moved = true;
                        continue;
                    }
                    Poll::Pending if !self.outgoing.is_unsent() => break,
                    Poll::Pending => {}
                }
            }
            if !self.outgoing.is_unsent() || watch::upload(Version::HTTP_2, ctx, attempt.poll_flush(cx)).is_pending() {
                break;
            }
            self.outgoing.sent(&mut self.call);
        }
        Ok(moved)
    }

    fn take_in(&mut self, data: Bytes, attempt: &mut Attempt<Line>, ctx: &mut RequestCtx) -> Result<()> {
        let (length, Desk { given, upload: scratch, .. }) = (data.len(), &mut *self.desk);
        self.outgoing.take_in(&mut self.call, data, given, scratch, attempt);
        watch::body_given(&self.call, length, self.call.upload.is_done(), ctx)
    }

    /// Towards the client.
    fn poll_down(&mut self, cx: &mut Context<'_>, attempt: &mut Attempt<Line>, ctx: &mut RequestCtx) -> Result<Down> {
        let mut moved = Down::Stands;
        loop {
            if !self.out.data.is_empty() {
                let before = self.out.data.len();
                let given = self.poll_give(cx);
                if self.out.data.len() < before {
                    moved = Down::Moved;
                }
                match given {
                    Poll::Ready(given) => given?,
                    Poll::Pending => {
                        attempt.give_back(self.kit.memory());
                        if watch::poll_over(ctx, cx) {
                            cx.waker().wake_by_ref();
                        }
                        return Ok(moved);
                    }
                }
            }
            let step = attempt.poll_step(cx, self.kit.memory());
            if self.out.ended {
                // That step was the attempt's last, if the backend did its part.
                return Ok(Down::Done);
            }
            let Poll::Ready(step) = step else {
                if std::mem::take(&mut self.out.fresh) {
                    watch::answer_given(&self.call, ctx);
                }
                return Ok(moved);
            };
            match step.map_err(|failure| failed(attempt, failure))? {
                Step::Head(head) => self.head(attempt, &head, ctx)?,
                Step::Body => self.part(cx, attempt, ctx),
                Step::End => self.end(attempt, ctx)?,
            }
            self.out.fresh = true;
            moved = Down::Moved;
        }
    }

    /// The answer's head, or an interim one, on its way to the client.
    fn head(&mut self, attempt: &Attempt<Line>, head: &Head, ctx: &mut RequestCtx) -> Result<()> {
        if head.is_interim() {
            watch::interim(ctx)?;
            self.call.answered = Some(head.status);
            return self.respond.send_informational(fields::interim(attempt, head)).map_err(stream_failed);
        }
        self.call.answered = Some(head.status);
        watch::answered(head.status, Version::HTTP_2, attempt.is_here(), ctx);
        let ends = head.body == Body::Bordered(Border::END);
        let answer = fields::answer(attempt, head, self.kit, ctx);
        self.sending = Some(self.respond.send_response(answer, ends).map_err(stream_failed)?);
        self.out.trailing = head.body == Body::Bordered(Border::CHUNKED);
        self.out.ended = ends;
        Ok(())
    }

    /// A part of the answer's body is here.
    fn part(&mut self, cx: &mut Context<'_>, attempt: &mut Attempt<Line>, ctx: &RequestCtx) {
        watch::answer_body(ctx);
        let body = attempt.body();
        self.out.data = if body.len() > COPIED {
            attempt.split_body()
        } else {
            let copy = Bytes::copy_from_slice(body);
            attempt.taken(copy.len());
            copy
        };
        // The stream ends with it, where that is known.
        let ends = attempt.is_at_hand() && matches!(attempt.poll_answer(cx), Poll::Ready(Ok(Step::End)));
        self.out.last = ends && attempt.trailers().is_empty();
    }

    /// The answer's end.
    fn end(&mut self, attempt: &Attempt<Line>, ctx: &RequestCtx) -> Result<()> {
        self.out.ended = true;
        let Some(sending) = &mut self.sending else { return Ok(()) };
        let trailers = Some(attempt.trailers()).filter(|section| self.out.trailing && !section.is_empty());
        let trailers = trailers.map(|section| fields::after_body(section, ctx)).filter(|fields| !fields.is_empty());
        match trailers {
            Some(trailers) => sending.send_trailers(trailers),
            None => sending.send_data(Bytes::new(), true),
        }
        .map_err(stream_failed)
    }

    /// Gives a part of the answer's body to the client, as far as its windows let it through.
    fn poll_give(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        let Some(sending) = &mut self.sending else { return Poll::Ready(Ok(())) };
        while !self.out.data.is_empty() {
            let left = self.out.data.len();
            let Poll::Ready(room) = self.outlet.poll_room(sending, left, cx)? else {
                self.wait();
                return Poll::Pending;
            };
            let part = self.out.data.split_to(room.min(left));
            let (bytes, ends) = (part.len() as u64, self.out.last && self.out.data.is_empty());
            sending.send_data(part, ends).map_err(stream_failed)?;
            self.out.ended = ends;
            self.call.sent += bytes;
            if std::mem::take(&mut self.waiting) && self.reader.as_ref().is_some_and(Deadline::disarm) {
                return Poll::Ready(Err(Error::explain(ErrorType::WriteTimedout, "while it was answered").into_down()));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The client is waited for, if it was not already.
    fn wait(&mut self) {
        if !std::mem::replace(&mut self.waiting, true) {
            let reader = self.reader.get_or_insert_with(|| self.kit.deadlines().guard(How::Both));
            reader.wake(Some(self.cancel.end.clone()));
            reader.arm(-1, Wait::Work, Instant::now(), WRITE_TIMEOUT);
        }
    }

    /// Answers with an answer of our own.
    fn answer(&mut self, head: ResponseHeader, body: Bytes) {
        let (status, to_head) = (head.status, *self.call.request().method == http::Method::HEAD);
        let (answer, body) = fields::ours(head, body, to_head, self.kit);
        let bytes = body.len() as u64;
        let sent = self.respond.send_response(answer, body.is_empty()).and_then(|mut sending| match bytes {
            0 => Ok(()),
            // Small; it waits for the client's window where the connection keeps what is sent.
            _ => sending.send_data(body, true),
        });
        match sent {
            Ok(()) => (self.call.answered, self.call.sent) = (Some(status), bytes),
            Err(error) => log::debug!("answering {status}: {error}"),
        }
    }
}

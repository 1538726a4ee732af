//! Deadlines of an attempt that Pingora does not keep: first byte apart from read, the request as a whole, a body that
//! an HTTP/2 client does not send, and silence on an upgraded connection.
//!
//! Pingora has one read deadline per attempt, the longer of `first_byte` and `read` (see `runtime/peer.rs`). The
//! shorter one, and the others, are kept in the worker's table. When one passes, the connection to the backend ends;
//! an HTTP/2 connection is shared with other requests and is left alone. Over our own client side a stream has no socket
//! ([`NO_SOCKET`]): who waits for it asks [`poll_due`], and [`upload`] is told what a backend does not take. On Pingora's path the
//! reading from the client ends, which has the same effect on an HTTP/1 client's request; between an HTTP/2 client and an
//! HTTP/2 backend the request itself is dropped, which resets both streams: there is no answer then.
//!
//! What the system holds of the backend's bytes is still read from a connection that ended so, and an end follows it that is none of
//! the backend's. So who moves an answer on asks [`is_over`] before it believes what it reads, and where it stands in a write,
//! [`poll_over`]; Pingora, which cannot be asked to, is told by a filter and has its writes ended ([`ends_writes`]).

use std::{
    sync::{PoisonError, atomic::Ordering},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::{
    admit::{READ_TIMEOUT, WRITE_TIMEOUT},
    ctx::{ConnInfo, RequestCtx, Waiting},
    downstream::Downstream,
    judge,
    kit::Kit,
    tunnel,
};
use crate::{
    policy::{fields::Fields as _, framing, trailers},
    runtime::deadlines::{Deadline, How, NO_SOCKET, Reader, Wait},
    types::Reason,
};

/// A request of an HTTP/2 client is dropped so much later, for a deadline of Pingora's that passes at the same moment:
/// that can still be answered.
const ANSWER_GRACE: Duration = Duration::from_millis(100);
/// The longest silence of a WebSocket one side of which has ended: whoever has left holds the other's place no longer.
const HALF_CLOSED: Duration = Duration::from_secs(10);
/// Interim answers of one attempt; nobody needs more than a few.
const MOST_INTERIM: u8 = 32;

/// The head is about to be sent to a backend that speaks `version`.
pub(super) fn request_begins(kit: &Kit, client: &mut impl Downstream, version: Version, ctx: &mut RequestCtx) {
    ctx.answered = false;
    ctx.interim = 0;
    ctx.body_sent = false;
    let Some(timeouts) = ctx.member().map(|member| member.upstream.timeouts) else { return };
    let body = client.has_body();
    ctx.has_body = body;
    let shared = version == Version::HTTP_2;
    let how = if shared { How::Read } else { How::Both };
    let mut cancel = None;
    let mut owner = 0;
    ctx.held = None;
    ctx.whole = None;
    if let Some(start) = ctx.start.as_ref().and_then(|start| start.cancel.as_ref()) {
        owner = start.owner();
        let fields = client.request().fields;
        // A call may be silent for as long as it likes, once it is answered; until then for `READ_TIMEOUT`.
        let call = || fields.first(&header::CONTENT_TYPE).is_some_and(|kind| kind.starts_with(b"application/grpc"));
        let call = (shared || ctx.upstream_fd == NO_SOCKET) && call();
        start.at_leisure.store(call, Ordering::Relaxed);
        if !shared && body {
            ctx.whole = fields.first(&header::CONTENT_LENGTH).and_then(framing::length);
        }
    }
    if shared {
        ctx.upstream_fd = ctx.info().map_or(-1, ConnInfo::fd);
        cancel = ctx.start.as_ref().and_then(|start| start.cancel.as_ref()).map(|cancel| cancel.end.clone());
    }
    // Pingora's own deadline begins anew with every interim answer, of which a backend can send any number.
    if ctx.upstream_fd < 0 && ctx.upstream_fd != NO_SOCKET {
        ctx.upstream_fd = -1;
        return;
    }
    match &ctx.deadline {
        Some(deadline) => {
            deadline.set_how(how);
            deadline.wake(cancel);
        }
        None => {
            let deadline = kit.deadlines().guard_of(owner, how);
            if cancel.is_some() {
                deadline.wake(cancel);
            }
            ctx.deadline = Some(deadline);
        }
    }
    if !body {
        wait_for(ctx, Waiting::FirstByte, Some(timeouts.first_byte));
    } else {
        wait_for_body(client.version(), ctx);
    }
}

/// Pingora writes the answer to its client, and while such a write stands it looks at nothing else.
pub(super) fn ends_writes(ctx: &RequestCtx) {
    let (Some(deadline), Some(start)) = (&ctx.deadline, &ctx.start) else { return };
    deadline.ends_writes(match &start.cancel {
        None => Reader::Socket(start.info.fd(), start.info.blocked().clone()),
        Some(cancel) => Reader::Owner(cancel.end.clone()),
    });
}

/// Whether the attempt's deadline has passed: its answer has broken off, whatever else there is to be read.
pub(super) fn is_over(ctx: &RequestCtx) -> bool {
    ctx.deadline.as_ref().is_some_and(Deadline::fired)
}

/// The same, for who waits for the backend: it is woken by its socket, or where that is not one request's, by the deadline.
pub(super) fn poll_due(ctx: &RequestCtx, cx: &Context<'_>) -> bool {
    if ctx.upstream_fd == NO_SOCKET { poll_over(ctx, cx) } else { is_over(ctx) }
}

/// The same, for who waits for another than the backend: it is woken when the deadline passes.
pub(super) fn poll_over(ctx: &RequestCtx, cx: &Context<'_>) -> bool {
    ctx.deadline.as_ref().is_some_and(|deadline| deadline.poll_fired(cx))
}

/// Some of the body of a client that speaks `version` was to be written to a backend: where it has a stream, no system ends what it does not take.
pub(super) fn upload<T>(version: Version, ctx: &mut RequestCtx, left: Poll<T>) -> Poll<T> {
    if ctx.upstream_fd != NO_SOCKET || ctx.answered || !ctx.has_body {
        return left;
    }
    let timeouts = ctx.member().map(|member| member.upstream.timeouts);
    match (&left, ctx.waiting) {
        (Poll::Pending, Waiting::Body | Waiting::FirstByte) => {
            ctx.all_given = ctx.waiting == Waiting::FirstByte;
            wait_for(ctx, Waiting::Write, timeouts.map(|timeouts| timeouts.write));
        }
        (Poll::Ready(_), Waiting::Write) if ctx.all_given => {
            wait_for(ctx, Waiting::FirstByte, timeouts.map(|timeouts| timeouts.first_byte));
        }
        (Poll::Ready(_), Waiting::Write) => wait_for_body(version, ctx),
        _ => {}
    }
    left
}

/// While the body is on its way from a client that speaks `version`. For an HTTP/1 client Pingora keeps the deadline of its next part; when nothing has moved
/// for longer than that and `write` together, it is the backend who does not take it.
fn wait_for_body(version: Version, ctx: &mut RequestCtx) {
    if version == Version::HTTP_2 {
        wait_for(ctx, Waiting::Body, Some(READ_TIMEOUT));
    } else if ctx.upstream_fd == NO_SOCKET {
        // Whoever reads the client keeps a deadline for it; see `upload` for the backend.
        wait_for(ctx, Waiting::Body, Some(2 * READ_TIMEOUT));
    } else {
        let write = ctx.member().map(|member| member.upstream.timeouts.write);
        wait_for(ctx, Waiting::Write, write.map(|write| write + READ_TIMEOUT));
    }
}

/// A part of the request's body goes towards the backend.
///
/// # Errors
/// The body is larger than the listener allows. The backend's connection ends, so that it never sees a whole request.
pub(super) fn request_body(session: &Session, body: &mut Option<Bytes>, end: bool, ctx: &mut RequestCtx) -> Result<()> {
    hold(session, body, end, ctx);
    body_given(session, body.as_ref().map_or(0, Bytes::len), end, ctx)
}

/// So many bytes of the body were given towards the backend; `end`: there are no more.
///
/// # Errors
/// As for [`request_body`].
pub(super) fn body_given(client: &impl Downstream, bytes: usize, end: bool, ctx: &mut RequestCtx) -> Result<()> {
    ctx.body_sent |= bytes > 0 || (end && ctx.has_body);
    if ctx.upgraded {
        renew(ctx);
        return Ok(());
    }
    let most = ctx.info().and_then(|info| info.limits().max_body_size);
    if most.is_some_and(|most| client.received() > most.0) {
        ctx.reason = Some(Reason::BodyTooLarge);
        let mut error = Error::explain(ErrorType::HTTPStatus(413), "the request's body is too large");
        error.as_down();
        return Err(error);
    }
    if ctx.answered {
        // The answer's deadlines count.
    } else if !end {
        wait_for_body(client.version(), ctx);
    } else if matches!(ctx.waiting, Waiting::Body | Waiting::Write) {
        let first_byte = ctx.member().map(|member| member.upstream.timeouts.first_byte);
        wait_for(ctx, Waiting::FirstByte, first_byte);
    }
    Ok(())
}

/// Keeps the last byte of a body whose length was declared until an HTTP/2 client has ended it: when more comes, the
/// request is malformed (RFC 9113 §8.1.1), and a backend on HTTP/1.1 must not have seen it whole.
fn hold(session: &Session, body: &mut Option<Bytes>, end: bool, ctx: &mut RequestCtx) {
    if end {
        let Some(held) = ctx.held.take() else { return };
        *body = Some(match body.take() {
            Some(part) if !part.is_empty() => Bytes::from([held, part].concat()),
            _ => held,
        });
    } else if ctx.whole.is_some_and(|whole| session.body_bytes_read() as u64 >= whole)
        && ctx.held.is_none()
        && let Some(part) = body
        && !part.is_empty()
    {
        ctx.held = Some(part.split_off(part.len() - 1));
    }
}

/// The answer's head has come.
///
/// # Errors
/// The backend switches protocols without having been asked, its framing is ambiguous, or it only says that it will answer.
pub(super) fn answer_begins(session: &Session, answer: &mut ResponseHeader, ctx: &mut RequestCtx) -> Result<()> {
    let framed = answer.status == StatusCode::SWITCHING_PROTOCOLS
        && [header::CONTENT_LENGTH, header::TRANSFER_ENCODING].iter().any(|name| answer.headers.contains_key(name));
    framing(answer, ctx)?;
    if answer.status == StatusCode::SWITCHING_PROTOCOLS {
        if !session.is_upgrade_req() {
            return bad(ctx, "101 without a request to upgrade");
        }
        let key = session.req_header().extensions.get::<tunnel::Key>();
        if framed && key.is_some() {
            return bad(ctx, "101 with a body's framing");
        }
        if key.is_some_and(|key| !key.is_answered(answer.headers.get(header::SEC_WEBSOCKET_ACCEPT))) {
            return bad(ctx, "101 that does not answer the key of a WebSocket");
        }
        upgraded(ctx);
    } else if answer.status.is_informational() {
        interim(ctx)?;
    } else if answer.status.is_success() && tunnel::is_tunnel(session.req_header()) {
        // To the client it would say that the WebSocket is there (RFC 8441 §5, RFC 9110 §9.3.6).
        ctx.reason = Some(Reason::UpgradeFailed);
        return Err(
            Error::explain(ErrorType::InvalidHTTPHeader, "no WebSocket, but an answer to another request").into_up()
        );
    } else {
        ctx.bodiless = matches!(answer.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        answered(answer.status, session.req_header().version, false, ctx);
    }
    Ok(())
}

/// The answer is that the connection is a WebSocket from now on, which ends by its own silence alone.
pub(super) fn upgraded(ctx: &mut RequestCtx) {
    ctx.upgraded = true;
    ctx.answered = true;
    judge::answered(ctx, StatusCode::SWITCHING_PROTOCOLS);
    ctx.total_due = None;
    let silence = ctx.member().map(|member| member.upstream.timeouts.websocket_idle);
    wait_for(ctx, Waiting::WebSocket, silence);
}

/// Has the silence of a WebSocket wake who carries it, who may wait for either side and asks [`is_over`], and shut nothing down. To
/// be called by it with each other waker.
pub(super) fn wake_at_silence(ctx: &mut RequestCtx, cx: &Context<'_>) {
    if ctx.upstream_fd != NO_SOCKET {
        ctx.upstream_fd = NO_SOCKET;
        wait_for(ctx, ctx.waiting, ctx.patience);
    }
    poll_over(ctx, cx);
}

/// One side of a WebSocket has ended. It may have done so for good, which nobody can see who does not write to it.
pub(super) fn half_closed(ctx: &mut RequestCtx) {
    let silence = ctx.patience.map(|silence| silence.min(HALF_CLOSED));
    wait_for(ctx, Waiting::WebSocket, silence);
}

/// Something came over a WebSocket.
pub(super) fn carried(ctx: &RequestCtx) {
    renew(ctx);
}

/// An interim answer has come.
///
/// # Errors
/// There were too many.
pub(super) fn interim(ctx: &mut RequestCtx) -> Result<()> {
    ctx.interim = ctx.interim.saturating_add(1);
    if ctx.interim > MOST_INTERIM { bad(ctx, "interim answers without end") } else { Ok(()) }
}

/// The answer itself has begun, for a client that speaks `version`. `whole`: all of it is here, so nobody waits for the backend.
pub(super) fn answered(status: StatusCode, version: Version, whole: bool, ctx: &mut RequestCtx) {
    (ctx.answered, ctx.relayed) = (true, true);
    judge::answered(ctx, status);
    if whole && ctx.total_due.is_none() {
        (ctx.deadline, ctx.waiting) = (None, Waiting::End);
        return;
    }
    let timeouts = ctx.member().filter(|_| !whole).map(|member| member.upstream.timeouts);
    match timeouts.filter(|timeouts| timeouts.read < ctx.read_timeout) {
        Some(timeouts) if version != Version::HTTP_2 => {
            wait_for(ctx, Waiting::Read, Some(timeouts.read));
            if let (Some(deadline), Some(info)) = (&ctx.deadline, ctx.info()) {
                deadline.pause_while(info.blocked().clone(), ctx.total_due);
            }
        }
        // Of an HTTP/2 client it cannot be told whether it is the one who is slow, but for how long it may be.
        Some(timeouts) => wait_for(ctx, Waiting::Read, Some(timeouts.read + WRITE_TIMEOUT)),
        None => wait_for(ctx, Waiting::End, None),
    }
}

/// An HTTP/1 backend's framing must have one meaning only (RFC 9112 §6.3). What Pingora's parser has decided already,
/// and what it hides, is in `docs/framing.md`.
pub(super) fn framing(answer: &mut ResponseHeader, ctx: &mut RequestCtx) -> Result<()> {
    if answer.status.is_informational() || answer.status == StatusCode::NO_CONTENT {
        // They have no body, so they have no framing (RFC 9110 §8.6, RFC 9112 §6.1).
        answer.remove_header(&header::TRANSFER_ENCODING);
        answer.remove_header(&header::CONTENT_LENGTH);
        return Ok(());
    }
    if let Err(why) = framed(answer) {
        return bad(ctx, why);
    }
    if answer.headers.get(header::TRANSFER_ENCODING).is_some_and(|coding| coding != "chunked") {
        // The one coding there is, however a backend spells it; as the lane has it.
        answer.insert_header(header::TRANSFER_ENCODING, "chunked")?;
    }
    if answer.status == StatusCode::NOT_MODIFIED {
        // What it says of a body is about another answer's.
        answer.remove_header(&header::TRANSFER_ENCODING);
    }
    let mut lengths = answer.headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(first) = lengths.next()
        && lengths.next().is_some()
    {
        let first = first.clone();
        answer.insert_header(header::CONTENT_LENGTH, first)?;
    }
    Ok(())
}

fn bad(ctx: &mut RequestCtx, why: &'static str) -> Result<()> {
    ctx.reason = Some(Reason::BadResponse);
    let mut error = Error::explain(ErrorType::InvalidHTTPHeader, why);
    error.as_up();
    Err(error)
}

/// Fields after the body of an HTTP/2 backend's answer: what comes too late is taken out, and so are malformed ones (RFC 9113
/// §8.2.1), as Pingora passes on what a filter refuses.
pub(super) fn trailers(fields: &mut HeaderMap) {
    let stays = |name: &HeaderName, value| padded(value) || !trailers::goes_on(name.as_str().as_bytes());
    let gone: Vec<_> = fields.iter().filter(|(name, value)| stays(name, value)).map(|(name, _)| name.clone()).collect();
    for name in &gone {
        fields.remove(name);
    }
}

/// As [`framing::is_padded`].
pub(super) fn padded(value: &HeaderValue) -> bool {
    framing::is_padded(value.as_bytes())
}

fn framed(answer: &ResponseHeader) -> Result<(), &'static str> {
    if answer.version == Version::HTTP_2 && answer.headers.values().any(padded) {
        return Err("white space around a field's value");
    }
    let mut codings = answer.headers.get_all(header::TRANSFER_ENCODING).iter();
    let mut lengths = answer.headers.get_all(header::CONTENT_LENGTH).iter();
    if let Some(coding) = codings.next() {
        if codings.next().is_some() || !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked") {
            return Err("a transfer coding other than chunked");
        }
        if answer.version == Version::HTTP_10 {
            return Err("a transfer coding in HTTP/1.0");
        }
        return if lengths.next().is_some() { Err("a length and a transfer coding") } else { Ok(()) };
    }
    let Some(first) = lengths.next() else { return Ok(()) };
    if first.is_empty() || !first.as_bytes().iter().all(u8::is_ascii_digit) {
        return Err("a length that is no number");
    }
    if lengths.any(|length| length != first) { Err("several lengths") } else { Ok(()) }
}

/// A part of the answer's body has come over Pingora; `end`: there are no more.
///
/// # Errors
/// It came too late, or where there can be none.
pub(super) fn answer_part(part: Option<&Bytes>, end: bool, ctx: &mut RequestCtx) -> Result<()> {
    if is_over(ctx) {
        return Err(Error::explain(ErrorType::ConnectionClosed, "within the answer").into_up());
    }
    if ctx.bodiless && part.is_some_and(|part| !part.is_empty()) {
        return bad(ctx, "a body where there can be none");
    }
    if !end {
        answer_body(ctx);
    }
    Ok(())
}

/// A part of the answer's body has come.
pub(super) fn answer_body(ctx: &RequestCtx) {
    renew(ctx);
}

/// What had come of the answer was given to the client. Over the exchange it is known from then on that the backend is waited
/// for, also where the client speaks HTTP/2.
pub(super) fn answer_given(client: &impl Downstream, ctx: &RequestCtx) {
    if ctx.waiting != Waiting::Read || client.version() != Version::HTTP_2 {
        return;
    }
    let Some(timeouts) = ctx.member().map(|member| member.upstream.timeouts) else { return };
    let now = Instant::now();
    if let Some(deadline) = &ctx.deadline {
        deadline.renew(now, until(ctx, now, Some(timeouts.read)));
    }
}

fn renew(ctx: &RequestCtx) {
    let Some(deadline) = &ctx.deadline else { return };
    if matches!(ctx.waiting, Waiting::Read | Waiting::WebSocket) {
        let now = Instant::now();
        deadline.renew(now, until(ctx, now, ctx.patience));
    }
}

/// Arms the deadline for `waiting`, or for the end of the request where that is nearer.
fn wait_for(ctx: &mut RequestCtx, waiting: Waiting, mut patience: Option<Duration>) {
    ctx.waiting = waiting;
    ctx.patience = patience;
    let mut grace = Duration::ZERO;
    if let Some(cancel) = ctx.start.as_ref().and_then(|start| start.cancel.as_ref()) {
        if cancel.is_slow() {
            // The client was found too slow while the deadline that is to end it was set anew.
            patience = Some(Duration::ZERO);
        }
        let total = ctx.total_due.is_some_and(|due| patience.is_none_or(|patience| due <= Instant::now() + patience));
        let reason = if total { Reason::TotalTimeout } else { late(ctx, waiting) };
        *cancel.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        grace = ANSWER_GRACE;
    }
    let Some(deadline) = &ctx.deadline else { return };
    if ctx.upstream_fd == -1 || (patience.is_none() && ctx.total_due.is_none()) {
        deadline.disarm();
        return;
    }
    // On a pooled connection a first attempt begins with the request, or when its guards let it pass; no need to ask the
    // clock again.
    let first = ctx.attempts == 1 && ctx.reused && waiting == Waiting::FirstByte && !ctx.body_sent;
    let now = if first { ctx.asked } else { Instant::now() };
    if ctx.body_sent && waiting == Waiting::FirstByte {
        ctx.asked = now;
    }
    deadline.arm(ctx.upstream_fd, Wait::Work, now, until(ctx, now, patience).saturating_add(grace));
}

/// Why a request ends whose deadline for `waiting` has passed.
pub(super) fn late(ctx: &RequestCtx, waiting: Waiting) -> Reason {
    if ctx.total_due.is_some_and(|due| due <= Instant::now()) {
        return Reason::TotalTimeout;
    }
    if ctx.start.as_ref().and_then(|start| start.cancel.as_ref()).is_some_and(|cancel| cancel.is_slow()) {
        return Reason::ClientTimeout;
    }
    match waiting {
        Waiting::Body => Reason::ClientTimeout,
        Waiting::End => Reason::TotalTimeout,
        Waiting::FirstByte => Reason::FirstByteTimeout,
        Waiting::Read | Waiting::WebSocket => Reason::ReadTimeout,
        Waiting::Write => Reason::WriteTimeout,
    }
}

fn until(ctx: &RequestCtx, now: Instant, patience: Option<Duration>) -> Duration {
    let left = ctx.total_due.map_or(Duration::MAX, |due| due.saturating_duration_since(now));
    patience.unwrap_or(Duration::MAX).min(left)
}

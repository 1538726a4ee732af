//! A failed attempt: what it was, and whether another is made.

use std::time::Instant;

use pingora_core::{Error, ErrorSource, ErrorType};

use super::{
    ctx::{ConnInfo, Fresh, RequestCtx},
    downstream::Downstream,
    judge,
    kit::Kit,
    stream::is_malformed,
    watch::late,
};
use crate::{
    policy::retry::{Decision, Failure, is_idempotent, may_retry},
    types::{AttemptFailure, Reason},
};

/// Of a cause in the log.
const LONGEST_CAUSE: usize = 400;

/// After an attempt that came to no connection.
pub(super) fn after_connect(
    kit: &Kit,
    client: &impl Downstream,
    ctx: &mut RequestCtx,
    mut error: Box<Error>,
) -> Box<Error> {
    let reason = connect_reason(&error, ctx);
    let kind = match reason {
        Reason::ConnectTimeout | Reason::TlsHandshakeTimeout => AttemptFailure::ConnectTimeout,
        _ => AttemptFailure::Connect,
    };
    let again = reason != Reason::TotalTimeout && decide(kit, client, ctx, kind, false);
    judge::unconnected(ctx, reason, &error);
    failed(kit, ctx, reason, kind, &error, again);
    error.set_retry(again);
    error
}

/// After an attempt that had a connection.
pub(super) fn after_exchange(
    kit: &Kit,
    client: &mut impl Downstream,
    ctx: &mut RequestCtx,
    mut error: Box<Error>,
    reused: bool,
) -> Box<Error> {
    let fired = ctx.deadline.as_ref().is_some_and(crate::runtime::deadlines::Deadline::disarm);
    let body_done = client.is_body_done();
    let reason = match exchange_reason(&error, ctx, fired) {
        // The backend had no reason to answer: it waits for the client's body, as we do.
        Reason::FirstByteTimeout if !body_done && !fired => Reason::ClientTimeout,
        reason => reason,
    };
    ctx.upstream_fd = -1;
    let kind = match reason {
        Reason::FirstByteTimeout => AttemptFailure::FirstByteTimeout,
        Reason::ResetBeforeHeaders if reused => AttemptFailure::StaleConnection,
        Reason::ResetBeforeHeaders => AttemptFailure::ResetBeforeHeaders,
        _ => AttemptFailure::Other,
    };
    // A stream that the backend refused (REFUSED_STREAM, GOAWAY) was not processed (RFC 9113 §8.7).
    // Pingora says the same of what it could not read as HTTP/2, or wants to ask again for in HTTP/1.1.
    let unread = matches!(error.etype(), ErrorType::InvalidH2 | ErrorType::H2Downgrade);
    let refused = matches!(error.retry, pingora_core::RetryType::Decided(true)) && !unread;
    let again = kind != AttemptFailure::Other || refused;
    let kind = match kind {
        AttemptFailure::Other if refused && reused => AttemptFailure::StaleConnection,
        AttemptFailure::Other if refused => AttemptFailure::ResetBeforeHeaders,
        kind => kind,
    };
    // A head that could not be written at all, on a connection that the backend had closed, was seen by nobody.
    let unsent = reused && !ctx.body_sent && error.etype() == &ErrorType::WriteError;
    let again = again && decide(kit, client, ctx, kind, !refused && !unsent);
    judge::broken(ctx, reason, kind);
    failed(kit, ctx, reason, kind, &error, again);
    error.set_retry(again);
    error
}

fn decide(kit: &Kit, client: &impl Downstream, ctx: &mut RequestCtx, kind: AttemptFailure, maybe_seen: bool) -> bool {
    let Some(current) = ctx.current().cloned() else { return false };
    let Some(member) = ctx.upstream.map(|index| current.member(index)) else { return false };
    // A connection that was stale says nothing of the backend: the attempt on a fresh one stands in for it, once.
    let stale = kind == AttemptFailure::StaleConnection && ctx.fresh == Fresh::NotNeeded;
    let failure = Failure {
        kind,
        attempts: ctx.attempts.saturating_sub(u32::from(stale || ctx.fresh == Fresh::Done)),
        idempotent: is_idempotent(client.request().method),
        maybe_seen,
        // The exchange says itself where a body ends.
        replayable: client.can_repeat(ctx.has_body && ctx.body_sent && !ctx.exchanged),
        // Who has processed nothing has said nothing: an interim answer was ours, or one more than the client needs.
        response_started: if maybe_seen { client.answered().is_some() } else { client.is_answered() },
    };
    if may_retry(&member.upstream.retry, &failure) == Decision::GiveUp {
        return false;
    }
    // Who could not be connected to has had no work: trying another adds no load to those that are up, so that a dead
    // backend does not use up the budget. Nor do stale connections, of which there are no more than were pooled.
    let costs =
        !matches!(kind, AttemptFailure::Connect | AttemptFailure::ConnectTimeout | AttemptFailure::StaleConnection);
    if costs && !member.upstream.budget.try_retry(member.upstream.retry.budget, kit.millis(Instant::now())) {
        member.metrics.retry_budget_exhausted.increment();
        return false;
    }
    if stale {
        ctx.fresh = Fresh::Needed;
    }
    ctx.retry = Some(kind);
    true
}

/// Remembers what failed, so that it is not tried again.
fn failed(kit: &Kit, ctx: &mut RequestCtx, reason: Reason, kind: AttemptFailure, error: &Error, again: bool) {
    ctx.reason = Some(reason);
    ctx.answered = false;
    let Some(picked) = ctx.picked.take() else { return };
    // A stale connection says nothing of its backend.
    if kind != AttemptFailure::StaleConnection {
        ctx.tried.push(picked.backend().index);
    }
    if error.esource() != &ErrorSource::Downstream && kit.may_warn(Instant::now()) {
        let upstream = ctx.member().map_or("-", |member| member.upstream.name.as_str());
        let next = if again { "trying another" } else { "giving up" };
        let backend = picked.backend();
        log::warn!(
            "upstream {upstream}, backend {} ({}): {}: {}; {next}",
            backend.id,
            backend.label,
            reason.as_str(),
            told(error)
        );
    }
    ctx.last_backend = Some(picked.backend().clone());
}

/// What the log is told of an error. Of what it could not read Pingora quotes the bytes, which are somebody's secrets.
fn told(error: &Error) -> String {
    let quotes = match error.etype() {
        ErrorType::InvalidHTTPHeader => error.cause.is_some(),
        ErrorType::Custom(_) | ErrorType::InvalidH2 | ErrorType::H2Error => true,
        _ => false,
    };
    let mut text = if quotes {
        let cause = error.root_cause();
        let cause = if cause.is::<Error>() { String::new() } else { format!(" ({cause})") };
        format!("{}{cause}", error.etype().as_str())
    } else {
        error.to_string()
    };
    let longest = text.floor_char_boundary(LONGEST_CAUSE);
    text.truncate(longest);
    text
}

/// Whether what was sent was not acknowledged in time (TCP_USER_TIMEOUT), whichever way that was noticed.
fn unacknowledged(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<std::io::Error>();
    cause.is_some_and(|cause| cause.raw_os_error() == Some(libc::ETIMEDOUT))
}

fn connect_reason(error: &Error, ctx: &RequestCtx) -> Reason {
    if ctx.total_due.is_some_and(|due| due <= Instant::now()) {
        return Reason::TotalTimeout;
    }
    match error.etype() {
        ErrorType::ConnectTimedout if ours(error) => Reason::ConnectTimeout,
        ErrorType::ConnectTimedout | ErrorType::TLSHandshakeTimedout => Reason::TlsHandshakeTimeout,
        ErrorType::ConnectRefused => Reason::ConnectRefused,
        ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert | ErrorType::HandshakeError => tls_reason(error),
        _ => Reason::ConnectFailed,
    }
}

/// Whether our own connector made the error, before any TLS.
fn ours(error: &Error) -> bool {
    error.context.as_ref().is_some_and(|context| context.as_str().starts_with("no connection to"))
}

/// Pingora keeps of a failed handshake only its text, which is rustls'.
fn tls_reason(error: &Error) -> Reason {
    let text = format!("{error}");
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&["certificate expired", "Expired", "NotValidYet", "not valid yet"]) {
        Reason::TlsExpired
    } else if says(&["not valid for name", "NotValidForName"]) {
        Reason::TlsWrongName
    } else if says(&["received fatal alert"]) {
        // The backend refuses us: no client certificate, no common version.
        Reason::TlsFailed
    } else if says(&["UnknownIssuer", "BadSignature", "CaUsedAsEndEntity", "invalid peer certificate"]) {
        Reason::TlsUntrusted
    } else {
        Reason::TlsFailed
    }
}

fn exchange_reason(error: &Error, ctx: &RequestCtx, fired: bool) -> Reason {
    if ctx.total_due.is_some_and(|due| due <= Instant::now()) && !ctx.upgraded {
        return Reason::TotalTimeout;
    }
    if let Some(fault) = ctx.info().and_then(ConnInfo::fault) {
        return fault;
    }
    if fired {
        return late(ctx, ctx.waiting);
    }
    if let Some(reason) = ctx.reason {
        return reason;
    }
    if error.esource() == &ErrorSource::Downstream {
        return downstream_reason(error, ctx);
    }
    if unacknowledged(error) {
        return Reason::WriteTimeout;
    }
    match error.etype() {
        ErrorType::ReadTimedout if ctx.answered => Reason::ReadTimeout,
        ErrorType::ReadTimedout => Reason::FirstByteTimeout,
        ErrorType::WriteTimedout => Reason::WriteTimeout,
        ErrorType::InvalidHTTPHeader | ErrorType::InvalidH2 if !ctx.answered => Reason::BadResponse,
        _ if !ctx.answered && is_malformed(error) => Reason::BadResponse,
        // Of HTTP/2 the connection's end and not a bad message.
        ErrorType::H2Error if !ctx.answered => Reason::ResetBeforeHeaders,
        ErrorType::InternalError if error.esource() != &ErrorSource::Upstream => Reason::Internal,
        _ if ctx.answered => Reason::ResponseTruncated,
        // In TLS 1.3 a backend's objection to our certificate comes after the handshake (RFC 8446 §4.4.2).
        _ if format!("{error}").contains("received fatal alert") => Reason::TlsFailed,
        _ => Reason::ResetBeforeHeaders,
    }
}

fn downstream_reason(error: &Error, ctx: &RequestCtx) -> Reason {
    // Of HTTP/2: the client has not left.
    let broken = || ctx.start.as_ref()?.cancel.as_ref().map(|cancel| cancel.is_broken());
    match error.etype() {
        ErrorType::ReadTimedout => Reason::ClientTimeout,
        ErrorType::InvalidHTTPHeader | ErrorType::ConnectError => Reason::BadRequest,
        ErrorType::Custom("InvalidChunk" | "InvalidTrailerEnd") => Reason::BadRequest,
        ErrorType::HTTPStatus(_) => Reason::BadRequest,
        _ if broken() == Some(true) || is_malformed(error) => Reason::BadRequest,
        _ => Reason::ClientAborted,
    }
}

/// The reason of a request that failed for good.
pub(super) fn final_reason(error: &Error, ctx: &RequestCtx) -> Reason {
    match ctx.reason {
        Some(reason) => reason,
        None => exchange_reason(error, ctx, false),
    }
}

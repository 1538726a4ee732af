//! The end of a request: its line in the access log and its counts.

use std::{
    borrow::Cow,
    time::{Instant, SystemTime},
};

use http::{Version, header};
use pingora_core::Error;

use super::{
    ctx::{Afterwards, ConnInfo, RequestCtx},
    current::{Current, Log},
    downstream::Downstream,
    judge,
    kit::Kit,
    reject, retry,
    unserved::Unserved,
};
use crate::{
    config::model::LogFormat,
    policy::fields::Fields as _,
    telemetry::{
        access_log::{ClockText, Record, write_combined, write_json},
        failures::FailedRequest,
    },
    types::{AddressText, Reason},
};

/// Why a request has failed for good.
pub(super) fn failed(ctx: &mut RequestCtx, error: &Error) -> Reason {
    let reason = retry::final_reason(error, ctx);
    ctx.reason = Some(reason);
    if reason == Reason::Internal {
        log::error!("a request failed inside rrlb: {error}");
    }
    reason
}

/// The request is over; `error` where it failed.
pub(super) fn ended(kit: &Kit, client: &mut impl Downstream, ctx: &mut RequestCtx, error: Option<&Error>) {
    if let Some(error) = error {
        let reason = retry::final_reason(error, ctx);
        ctx.reason = Some(reason);
    }
    judge::ended(ctx, error.is_none());
    ctx.deadline = None;
    // What the request held is free for the next one, which may be on its way already.
    ctx.admitted = None;
    let late = ctx.reason == Some(Reason::TotalTimeout);
    let broken = error.is_some()
        && ctx.relayed
        && match client.version() {
            // The end of the connection may be the border of the answer, so it must not look like one.
            Version::HTTP_10 => true,
            Version::HTTP_2 => false,
            // What the client has not taken by then would still be sent to it for as long as it likes.
            _ => late && ctx.info().is_some_and(ConnInfo::is_behind),
        };
    let broken = broken && ctx.info().is_some_and(|info| info.afterwards() == Afterwards::Drop);
    if broken && let Some(info) = ctx.info() {
        info.abort();
    }
    if !broken
        && !client.is_body_done()
        && let Some(info) = ctx.info()
        && info.afterwards() == Afterwards::Drop
    {
        // An answer before the request's end; closing at once would take it away from a client that still sends.
        info.set_afterwards(Afterwards::Linger);
    }
    served(kit, client, ctx);
}

/// The answer of an HTTP/1 client is whole. Where its connection ends now, it is we who end it, and closing it on what has come
/// behind the request would take from the client what it has not read of its answer (RFC 9112 §9.6).
pub(super) fn last(client: &impl Downstream, ctx: &RequestCtx) {
    if client.version() != Version::HTTP_2
        && let Some(info) = ctx.info()
        && info.afterwards() == Afterwards::Drop
    {
        info.set_afterwards(Afterwards::Linger);
    }
}

/// Logs and counts a request that came through the phases.
pub(super) fn served(kit: &Kit, client: &impl Downstream, ctx: &mut RequestCtx) {
    ctx.logged = true;
    if let Some(info) = ctx.info() {
        info.set_logged();
    }
    let status = client.answered().map_or(0, |status| status.as_u16());
    let reason = ctx.reason.unwrap_or(Reason::Ok);
    let duration = ctx.ended.unwrap_or_else(Instant::now).saturating_duration_since(ctx.started);
    let (sent, received) = (client.sent(), client.received());
    let metrics = kit.metrics();
    let upstream = ctx.member().map_or_else(|| metrics.no_upstream(), |member| &member.metrics);
    upstream.finished(kit.index(), status, duration);
    kit.lull().ended();
    metrics.ended(reason);
    let worker = metrics.worker(kit.index());
    worker.bytes_sent.add(sent);
    worker.bytes_received.add(received);
    if reason.is_failure() {
        keep(kit, client, ctx, status, reason);
    }
    let Some(log) = ctx.current().and_then(|current| current.log()) else { return };
    let request = client.request();
    let backend = ctx.picked.as_ref().map(|picked| picked.backend()).or(ctx.last_backend.as_ref());
    let address = |address| match ctx.info() {
        Some(info) => info.text_of(address),
        None => Cow::Owned(AddressText::new(address)),
    };
    let (asker, peer) = (ctx.client.map(address), ctx.info().and_then(ConnInfo::connected).map(address));
    let field = |name| request.fields.first(name).unwrap_or_default();
    write(
        log,
        &Record {
            time: SystemTime::now(),
            client: asker.as_deref(),
            peer: peer.as_deref(),
            method: request.method.as_str().as_bytes(),
            host: request.host.unwrap_or_default().as_bytes(),
            path: client.target().as_bytes(),
            protocol: protocol(request.version),
            status,
            bytes_sent: sent,
            bytes_received: received,
            duration,
            upstream: ctx.member().map_or("", |member| member.upstream.name.as_str()),
            backend: backend.map_or("", |backend| backend.id.as_str()),
            attempts: ctx.attempts,
            reason,
            tls_version: ctx.info().map_or("", ConnInfo::tls_version),
            request_id: ctx.request_id.as_ref().map_or(b"", |id| id.as_bytes()),
            referer: field(&header::REFERER),
            user_agent: field(&header::USER_AGENT),
        },
    );
}

/// Keeps a request that failed for whoever asks what went wrong.
#[cold]
fn keep(kit: &Kit, client: &impl Downstream, ctx: &RequestCtx, status: u16, reason: Reason) {
    let request = client.request();
    let backend = ctx.picked.as_ref().map(|picked| picked.backend()).or(ctx.last_backend.as_ref());
    kit.metrics().last_failures().record(&FailedRequest {
        time: SystemTime::now(),
        reason,
        status,
        method: request.method.as_str().as_bytes(),
        host: request.host.unwrap_or_default().as_bytes(),
        path: client.target().split('?').next().unwrap_or_default().as_bytes(),
        upstream: ctx.member().map_or("", |member| member.upstream.name.as_str()),
        backend: backend.map_or("", |backend| backend.id.as_str()),
        request_id: ctx.request_id.as_ref().map_or(b"", |id| id.as_bytes()),
    });
}

/// Logs and counts a request that came to no phase.
pub(super) fn unserved(kit: &Kit, current: &Current, info: &ConnInfo, unserved: &Unserved) {
    let duration = unserved.began.elapsed();
    info.set_logged();
    let status = reject::status(unserved.reason).map_or(0, |status| status.as_u16());
    kit.metrics().no_upstream().finished(kit.index(), status, duration);
    kit.metrics().ended(unserved.reason);
    kit.lull().ended();
    if unserved.reason.is_failure() {
        kit.metrics().last_failures().record(&FailedRequest {
            time: SystemTime::now(),
            reason: unserved.reason,
            status,
            method: unserved.method.as_bytes(),
            host: unserved.host.as_bytes(),
            path: unserved.target.as_bytes(),
            upstream: "",
            backend: "",
            request_id: b"",
        });
    }
    let Some(log) = current.log() else { return };
    write(
        log,
        &Record {
            time: SystemTime::now(),
            client: info.peer_text(),
            peer: info.connected().map(|peer| info.text_of(peer)).as_deref(),
            method: unserved.method.as_bytes(),
            host: unserved.host.as_bytes(),
            path: unserved.target.as_bytes(),
            protocol: unserved.protocol,
            status,
            bytes_sent: 0,
            bytes_received: 0,
            duration,
            upstream: "",
            backend: "",
            attempts: 0,
            reason: unserved.reason,
            tls_version: info.tls_version(),
            request_id: b"",
            referer: b"",
            user_agent: b"",
        },
    );
}

fn write(Log { handle, format }: &Log, record: &Record<'_>) {
    let form: fn(&Record<'_>, &mut ClockText, &mut Vec<u8>) = match format {
        LogFormat::Combined => write_combined,
        LogFormat::Json => write_json,
    };
    handle.line(|line, clock| form(record, clock, line));
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

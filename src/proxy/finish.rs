//! The end of a request: its line in the access log and its counts.

use std::time::SystemTime;

use http::{HeaderMap, Version, header};
use pingora_proxy::Session;

use super::{
    admit,
    ctx::{ConnInfo, RequestCtx, Unserved},
    current::{Current, Log},
    kit::Kit,
    reject,
};
use crate::{
    config::model::LogFormat,
    telemetry::{
        access_log::{ClockText, Record, write_combined, write_json},
        failures::FailedRequest,
    },
    types::Reason,
};

/// Logs and counts a request that came through the phases.
pub(super) fn served(kit: &Kit, session: &Session, ctx: &RequestCtx) {
    if let Some(info) = ctx.info() {
        info.set_logged();
    }
    let status = session.response_written().map_or(0, |answer| answer.status.as_u16());
    let reason = ctx.reason.unwrap_or(Reason::Ok);
    let duration = ctx.started.elapsed();
    let sent = session.body_bytes_sent() as u64;
    let received = session.body_bytes_read() as u64;
    let metrics = kit.metrics();
    let upstream = ctx.member().map_or_else(|| metrics.no_upstream(), |member| &member.metrics);
    upstream.finished(kit.index(), status, duration);
    metrics.ended(reason);
    let worker = metrics.worker(kit.index());
    worker.bytes_sent.add(sent);
    worker.bytes_received.add(received);
    if reason.is_failure() {
        failed(kit, session, ctx, status, reason);
    }
    let Some(log) = ctx.current().and_then(|current| current.log()) else { return };
    let request = session.req_header();
    let backend = ctx.picked.as_ref().map(|picked| picked.backend()).or(ctx.last_backend.as_ref());
    let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
    write(
        log,
        &Record {
            time: SystemTime::now(),
            client: ctx.client,
            peer: ctx.info().and_then(ConnInfo::connected),
            method: request.method.as_str().as_bytes(),
            host: admit::host(request).unwrap_or_default().as_bytes(),
            path: target.as_bytes(),
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
            referer: field(&request.headers, &header::REFERER),
            user_agent: field(&request.headers, &header::USER_AGENT),
        },
    );
}

/// Keeps a request that failed for whoever asks what went wrong.
#[cold]
fn failed(kit: &Kit, session: &Session, ctx: &RequestCtx, status: u16, reason: Reason) {
    let request = session.req_header();
    let backend = ctx.picked.as_ref().map(|picked| picked.backend()).or(ctx.last_backend.as_ref());
    kit.metrics().last_failures().record(&FailedRequest {
        time: SystemTime::now(),
        reason,
        status,
        method: request.method.as_str().as_bytes(),
        host: admit::host(request).unwrap_or_default().as_bytes(),
        path: request.uri.path().as_bytes(),
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
            client: info.peer(),
            peer: info.connected(),
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

fn field<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> &'a [u8] {
    headers.get(name).map_or(b"", |value| value.as_bytes())
}

fn protocol(version: Version) -> &'static str {
    match version {
        Version::HTTP_10 => "HTTP/1.0",
        Version::HTTP_2 => "HTTP/2.0",
        _ => "HTTP/1.1",
    }
}

//! Chooses the backend of an attempt, and sets the deadlines that Pingora keeps.

use std::time::{Duration, Instant};

use http::Version;
use pingora_core::{Error, ErrorType, Result, protocols::ALPN, upstreams::peer::HttpPeer};
use pingora_proxy::Session;

use super::{
    ctx::{ConnInfo, Fresh, RequestCtx},
    kit::Kit,
};
use crate::{
    config::model::UpstreamProtocol,
    policy::proxy_protocol::{self, Agreed, Said},
    runtime::{
        backend::Picked,
        peer::{self, TlsProfile},
        upstream::NoBackend,
    },
    telemetry::metrics::BackendMetrics,
    types::Reason,
};

/// How long the answer to a request with a body may take where nothing else counts: an HTTP/2 client and backend.
const LONGEST_UPLOAD: Duration = Duration::from_secs(3600);
/// How early a timer of Pingora's may be, and then some.
const TIMER_TICK: Duration = Duration::from_millis(20);

/// A peer for the next attempt.
///
/// # Errors
/// There is no backend left, or no time.
pub(super) fn peer(
    kit: &Kit,
    session: &mut Session,
    ctx: &mut RequestCtx,
    profile: &TlsProfile,
) -> Result<Box<HttpPeer>> {
    backend(ctx)?;
    let current = ctx.current().cloned();
    let Some(member) = current.as_ref().and_then(|current| Some(current.member(ctx.upstream?))) else {
        return fail(ctx, Reason::Internal, "a request came to an upstream without a route");
    };
    let upstream = &member.upstream;
    if upstream.tls_profile != *profile && upstream.tls.is_some() {
        return fail(ctx, Reason::Internal, "a request came to a proxy with other TLS settings than its upstream's");
    }
    let left = ctx.total_due.map(|due| due.saturating_duration_since(Instant::now()));
    let Some(mut peer) = ctx.picked.as_ref().and_then(Picked::peer) else {
        return fail(ctx, Reason::DnsFailure, "the backend has no address");
    };
    if let Some(version) = upstream.proxy_protocol {
        peer::announce(&mut peer, announced(ctx, version));
    }
    if ctx.fresh == Fresh::Needed {
        // No pooled connection is known by this key.
        peer.group_key ^= kit.random();
        ctx.fresh = Fresh::Done;
    }
    let websocket = session.is_upgrade_req();
    if websocket && matches!(upstream.protocol, UpstreamProtocol::Http2 | UpstreamProtocol::H2c) {
        return fail(ctx, Reason::UpgradeFailed, "an upgrade was asked for, and the backends speak HTTP/2 only");
    }
    if websocket && upstream.protocol == UpstreamProtocol::Auto {
        // An upgrade is HTTP/1.1's alone (RFC 9113 §8.6).
        peer.options.set_http_version(1, 1);
    }
    if peer.options.alpn == ALPN::H1 && session.req_header().version != Version::HTTP_2 {
        // All of it is kept in the worker's table, which costs less than a timer for each read.
        peer.options.read_timeout = None;
    } else if websocket {
        peer.options.read_timeout = Some(upstream.timeouts.websocket_idle.max(upstream.timeouts.first_byte));
    } else if peer.options.alpn != ALPN::H1 && !session.as_mut().is_body_empty() {
        // On HTTP/2 Pingora would count from the beginning of the request. From its end counts `watch`; this is the last resort.
        peer.options.read_timeout = Some(LONGEST_UPLOAD);
    }
    if let Some(left) = left {
        peer.options.total_connection_timeout = Some(left);
        // Pingora's timer may be a tick early; by then the request must be seen to be late.
        let left = left + TIMER_TICK;
        peer.options.read_timeout = peer.options.read_timeout.map(|read| if websocket { read } else { read.min(left) });
    }
    ctx.read_timeout = peer.options.read_timeout.unwrap_or(Duration::MAX);
    Ok(peer)
}

/// The PROXY header that a connection for this request begins with.
pub(super) fn announced(ctx: &RequestCtx, version: proxy_protocol::Version) -> Vec<u8> {
    let ends = ctx.info().and_then(ConnInfo::ends);
    let said = ends.map_or(Said::Unknown, |(from, to)| Said::Client { from, to });
    let none = Agreed::default();
    proxy_protocol::write(version, said, ctx.info().map_or(&none, ConnInfo::agreed))
}

/// Chooses the backend of the next attempt, and counts it. Returns what own connections to it are known by.
///
/// # Errors
/// There is no backend left, or no time.
pub(super) fn backend(ctx: &mut RequestCtx) -> Result<u64> {
    if ctx.total_due.is_some_and(|due| due <= Instant::now()) {
        return fail(ctx, Reason::TotalTimeout, "no time left for another attempt");
    }
    ctx.picked = None;
    let picked = match ctx.member().map(|member| member.upstream.pick(ctx.client, &ctx.tried)) {
        Some(Ok(picked)) => picked,
        // What the last attempt failed of says more than that no other is left.
        Some(Err(NoBackend::AllTried)) if ctx.reason.is_some() => {
            let reason = ctx.reason.unwrap_or(Reason::NoBackend);
            return fail(ctx, reason, "every backend that is up was tried");
        }
        Some(Err(NoBackend::NoAddress)) => return fail(ctx, Reason::DnsFailure, "no backend has an address"),
        Some(Err(NoBackend::AllDown | NoBackend::AllTried)) => return fail(ctx, Reason::NoBackend, "no backend is up"),
        None => return fail(ctx, Reason::Internal, "a request came to an upstream without a route"),
    };
    let Some(key) = picked.backend().connection_key() else {
        return fail(ctx, Reason::DnsFailure, "the backend has no address");
    };
    if let Some(kind) = ctx.retry.take()
        && let Some(member) = ctx.member()
    {
        member.metrics.retried(kind);
    }
    ctx.attempts += 1;
    (ctx.answered, ctx.judged) = (false, false);
    let counts = ctx.member().and_then(|member| member.backends.get(picked.backend().index));
    ctx.attempt = counts.map(BackendMetrics::begin);
    ctx.picked = Some(picked);
    ctx.reason = None;
    Ok(key)
}

fn fail<T>(ctx: &mut RequestCtx, reason: Reason, why: &'static str) -> Result<T> {
    ctx.reason = Some(reason);
    let mut error = Error::explain(ErrorType::InternalError, why);
    error.as_up();
    error.set_retry(false);
    Err(error)
}

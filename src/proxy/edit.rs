//! Heads on their way: towards the backend, and back to the client.

use bytes::BytesMut;
use http::{HeaderName, HeaderValue, StatusCode, Version, header};
use pingora_core::Result;
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use super::{admit, ctx::RequestCtx, reject::X_REQUEST_ID};
use crate::{
    config::model::HostHeader,
    policy::{
        forwarded::{
            self, Hop, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, is_forwarding_field, write_x_forwarded_for,
        },
        headers::{HOP_BY_HOP, HeaderEdits, nominated_by_connection},
        route::strip_prefix,
    },
    runtime::snapshot::Action,
};

/// Makes the backend's request out of the client's. Pingora has taken the hop-by-hop fields out.
///
/// # Errors
/// A value that is no value, which validation has ruled out.
pub(super) fn request(session: &Session, upstream: &mut RequestHeader, ctx: &RequestCtx) -> Result<()> {
    let client = session.req_header();
    if let Some(Action::Proxy { strip_prefix: Some(prefix), .. }) = ctx.route().map(|route| &route.action) {
        let target = upstream.uri.path_and_query().map_or("/", |target| target.as_str());
        let stripped = strip_prefix(target, prefix).into_owned();
        let mut parts = upstream.uri.clone().into_parts();
        parts.path_and_query = stripped.parse().ok();
        if let Ok(uri) = http::Uri::from_parts(parts) {
            upstream.set_uri(uri);
        }
    }
    forwarding(client, upstream, ctx)?;
    if client.version == Version::HTTP_2 && upstream.version != Version::HTTP_2 {
        join_cookies(upstream)?;
    }
    if let Some(via) = ctx.snapshot.via(client.version) {
        upstream.append_header(header::VIA, via.clone())?;
    }
    if let Some(id) = &ctx.request_id {
        upstream.insert_header(X_REQUEST_ID, id.clone())?;
    }
    if upstream.version != Version::HTTP_2 {
        origin_form(upstream)?;
    }
    if let Some(host) = host_header(ctx) {
        set_host(upstream, host)?;
    }
    if let Some(route) = ctx.route() {
        let edits = &route.request_headers;
        for name in &edits.remove {
            upstream.remove_header(name);
        }
        for (name, value) in &edits.set {
            if *name == header::HOST {
                set_host(upstream, value.clone())?;
            } else {
                upstream.insert_header(name.clone(), value.clone())?;
            }
        }
        for (name, value) in &edits.add {
            upstream.append_header(name.clone(), value.clone())?;
        }
    }
    Ok(())
}

/// What a proxy is asked for in absolute form, it asks an origin for in origin form (RFC 9112 §3.2).
fn origin_form(upstream: &mut RequestHeader) -> Result<()> {
    let Some(authority) = upstream.uri.authority() else { return Ok(()) };
    let host = authority.as_str().to_owned();
    let target = upstream.uri.path_and_query().map_or("/", |target| target.as_str());
    if let Ok(uri) = target.parse() {
        upstream.set_uri(uri);
        upstream.insert_header(header::HOST, host)?;
    }
    Ok(())
}

fn host_header(ctx: &RequestCtx) -> Option<HeaderValue> {
    match &ctx.member()?.upstream.host_header {
        HostHeader::Fixed(host) => Some(host.clone()),
        HostHeader::Preserve => None,
        HostHeader::Sni => HeaderValue::from_str(ctx.picked.as_ref()?.backend().sni()).ok(),
    }
}

/// Sets `Host`, and the authority with it where the target has one (HTTP/2, absolute form).
fn set_host(upstream: &mut RequestHeader, host: HeaderValue) -> Result<()> {
    if upstream.uri.authority().is_some() {
        let mut parts = upstream.uri.clone().into_parts();
        parts.authority = host.to_str().ok().and_then(|host| host.parse().ok());
        if let Ok(uri) = http::Uri::from_parts(parts) {
            upstream.set_uri(uri);
        }
    }
    upstream.insert_header(header::HOST, host)
}

/// X-Forwarded-* and Forwarded: what a trusted peer said is kept and added to, what anyone else said is replaced.
fn forwarding(client: &RequestHeader, upstream: &mut RequestHeader, ctx: &RequestCtx) -> Result<()> {
    let Some(info) = ctx.info() else { return Ok(()) };
    let peer = info.peer();
    let host = admit::host(client);
    if !ctx.peer_trusted {
        let spoofed: Vec<HeaderName> =
            upstream.headers.keys().filter(|name| is_forwarding_field(name)).cloned().collect();
        for name in &spoofed {
            upstream.remove_header(name);
        }
    }
    let kept = |name: &HeaderName| upstream.headers.get_all(name).iter().map(HeaderValue::as_bytes);
    let mut text = BytesMut::with_capacity(128);
    write_x_forwarded_for(kept(&X_FORWARDED_FOR), peer, &mut text);
    let forwarded_for = text.split().freeze();
    let hop = Hop { peer, host, scheme: info.scheme() };
    forwarded::write_forwarded(kept(&header::FORWARDED), &hop, &mut text);
    let forwarded = text.freeze();
    if !forwarded_for.is_empty() {
        upstream.insert_header(X_FORWARDED_FOR, value(forwarded_for))?;
    }
    upstream.insert_header(header::FORWARDED, value(forwarded))?;
    if !upstream.headers.contains_key(X_FORWARDED_PROTO) {
        upstream.insert_header(X_FORWARDED_PROTO, HeaderValue::from_static(ctx.scheme.as_str()))?;
    }
    if let Some(host) = host.filter(|_| !upstream.headers.contains_key(X_FORWARDED_HOST)) {
        upstream.insert_header(X_FORWARDED_HOST, host)?;
    }
    Ok(())
}

/// What was read as a field value before, or is made of addresses and names, is one.
fn value(text: bytes::Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(text).unwrap_or(const { HeaderValue::from_static("unknown") })
}

/// HTTP/2 may split `Cookie`; HTTP/1.1 may not (RFC 9113 §8.2.3).
fn join_cookies(upstream: &mut RequestHeader) -> Result<()> {
    let mut crumbs = upstream.headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else { return Ok(()) };
    let mut joined = BytesMut::from(first.as_bytes());
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    upstream.insert_header(header::COOKIE, value(joined.freeze()))
}

/// Makes the client's answer out of the backend's.
///
/// # Errors
/// A value that is no value, which validation has ruled out.
pub(super) fn response(session: &mut Session, answer: &mut ResponseHeader, ctx: &RequestCtx) -> Result<()> {
    let upgrade = answer.status == StatusCode::SWITCHING_PROTOCOLS;
    if !upgrade {
        hop_by_hop(answer);
    }
    if answer.status.is_informational() {
        return Ok(());
    }
    if session.is_upgrade_req() {
        // Refused: what the client sends after its handshake has no border.
        session.set_keepalive(None);
    }
    session.set_close_on_response_before_downstream_finish(true);
    if !session.is_body_done() {
        // The client still sends; what it has yet to send would be taken for the next request.
        session.set_keepalive(None);
    }
    let old_client = session.req_header().version == Version::HTTP_10;
    if old_client && answer.headers.contains_key(header::TRANSFER_ENCODING) {
        // HTTP/1.0 knows no chunks: the end of the connection is the end of the body.
        answer.remove_header(&header::TRANSFER_ENCODING);
        session.set_keepalive(None);
    }
    if let Some(via) = ctx.snapshot.via(answer.version) {
        answer.append_header(header::VIA, via.clone())?;
    }
    if answer.version == Version::HTTP_10 {
        // A proxy answers in its own version (RFC 9110 §2.5).
        answer.set_version(Version::HTTP_11);
    }
    if let Some(id) = &ctx.request_id {
        answer.insert_header(X_REQUEST_ID, id.clone())?;
    }
    if let Some(route) = ctx.route() {
        apply_response(answer, &route.response_headers)?;
    }
    Ok(())
}

/// The operator's edits of an answer.
pub(super) fn apply_response(answer: &mut ResponseHeader, edits: &HeaderEdits) -> Result<()> {
    for name in &edits.remove {
        answer.remove_header(name);
    }
    for (name, value) in &edits.set {
        answer.insert_header(name.clone(), value.clone())?;
    }
    for (name, value) in &edits.add {
        answer.append_header(name.clone(), value.clone())?;
    }
    Ok(())
}

/// Takes out what the backend said to us and not to the client (RFC 9110 §7.6.1). `Transfer-Encoding` stays: Pingora
/// frames the answer by it.
fn hop_by_hop(answer: &mut ResponseHeader) {
    if answer.headers.contains_key(header::CONNECTION) {
        let nominated: Vec<HeaderName> = nominated_by_connection(&answer.headers)
            .filter_map(|name| HeaderName::from_bytes(name).ok())
            .filter(|name| *name != header::TRANSFER_ENCODING)
            .collect();
        for name in &nominated {
            answer.remove_header(name);
        }
    }
    for name in
        HOP_BY_HOP.iter().filter(|name| **name != header::TRANSFER_ENCODING && **name != header::PROXY_AUTHENTICATE)
    {
        if answer.headers.contains_key(name) {
            answer.remove_header(name);
        }
    }
}

//! Heads on their way: towards the backend, and back to the client.

use bytes::BytesMut;
use http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use pingora_core::{ErrorType, OrErr, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use super::{
    admit,
    ctx::{ConnInfo, RequestCtx, Verified},
    grpc_web, guard,
    reject::X_REQUEST_ID,
};
use crate::{
    config::model::HostHeader,
    policy::{
        forwarded::{
            self, Hop, X_CLIENT_CERT_FINGERPRINT, X_CLIENT_CERT_SUBJECT, X_CLIENT_CERT_VERIFY, X_FORWARDED_FOR,
            X_FORWARDED_HOST, X_FORWARDED_PROTO, is_forwarding_field, write_x_forwarded_for,
        },
        headers::{HOP_BY_HOP, HeaderEdits, nominated_by_connection},
    },
};

/// Makes the backend's request out of the client's. Pingora has taken the hop-by-hop fields out.
///
/// # Errors
/// A value that is no value, which validation has ruled out.
pub(super) fn request(session: &Session, upstream: &mut RequestHeader, ctx: &RequestCtx) -> Result<()> {
    let client = session.req_header();
    if let Some(target) = &ctx.target {
        let mut parts = upstream.uri.clone().into_parts();
        parts.path_and_query = Some(target.clone());
        // Another path than the one decided on must not be sent.
        let uri = http::Uri::from_parts(parts).or_err(ErrorType::InvalidHTTPHeader, "a target of our own")?;
        upstream.set_uri(uri);
    }
    let via = ctx.current().and_then(|current| current.via(client.version));
    edit_request(upstream, |fields, version| {
        fields.reserve(8);
        forwarding(client, fields, ctx);
        guard::towards_backend(fields, ctx);
        client_certificate(fields, ctx);
        if client.version == Version::HTTP_2 && version != Version::HTTP_2 {
            join_cookies(fields);
        }
        if let Some(via) = via {
            fields.append(header::VIA, via.clone());
        }
        if let Some(id) = &ctx.request_id {
            fields.insert(X_REQUEST_ID, id.clone());
        }
    })?;
    grpc_web::upstream_request(upstream, &ctx.grpc_web)?;
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

/// Takes out what the client said to us and not to the backend (RFC 9110 §7.6.1), framing that is ours to say included.
pub(super) fn strip_request(upstream: &mut RequestHeader) {
    let nominated: Vec<HeaderName> =
        nominated_by_connection(&upstream.headers).filter_map(|name| HeaderName::from_bytes(name).ok()).collect();
    // Trailers are not passed on.
    for name in nominated.iter().chain(&HOP_BY_HOP).chain(&[header::TRAILER]) {
        upstream.remove_header(name);
    }
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

/// Edits the fields in their map itself. Pingora's own editing keeps a second map with the names as they were spelled,
/// which costs more than all other work on a head; so names go on in lower case, as in HTTP/2.
fn edit_request(head: &mut RequestHeader, edit: impl FnOnce(&mut HeaderMap, Version)) -> Result<()> {
    // A target that its URI does not hold wholly is lost on the way through the parts.
    let target = head.uri.path_and_query().map_or("", |target| target.as_str());
    let verbatim = (head.raw_path() != target.as_bytes()).then(|| head.raw_path().to_vec());
    let ends = head.send_end_stream();
    let (nothing, ()) = http::Request::new(()).into_parts();
    let mut parts = http::request::Parts::from(std::mem::replace(head, RequestHeader::from(nothing)));
    edit(&mut parts.headers, parts.version);
    *head = RequestHeader::from(parts);
    if let Some(verbatim) = verbatim {
        head.set_raw_path(&verbatim)?;
    }
    if let Some(ends) = ends {
        head.set_send_end_stream(ends);
    }
    Ok(())
}

/// As [`edit_request`].
fn edit_response(head: &mut ResponseHeader, edit: impl FnOnce(&mut HeaderMap)) -> Result<()> {
    let canonical = head.status.canonical_reason();
    let reason = head.get_reason_phrase().filter(|reason| canonical != Some(*reason)).map(str::to_owned);
    let (nothing, ()) = http::Response::new(()).into_parts();
    let mut parts = http::response::Parts::from(std::mem::replace(head, ResponseHeader::from(nothing)));
    edit(&mut parts.headers);
    *head = ResponseHeader::from(parts);
    reason.map_or(Ok(()), |reason| head.set_reason_phrase(Some(&reason)))
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
fn forwarding(client: &RequestHeader, upstream: &mut HeaderMap, ctx: &RequestCtx) {
    let Some(info) = ctx.info() else { return };
    let peer = info.peer();
    let host = admit::host(client);
    if !ctx.peer_trusted {
        let spoofed: Vec<HeaderName> = upstream.keys().filter(|name| is_forwarding_field(name)).cloned().collect();
        for name in &spoofed {
            upstream.remove(name);
        }
    }
    let kept = |name: &HeaderName| upstream.get_all(name).iter().map(HeaderValue::as_bytes);
    let mut text = BytesMut::with_capacity(128);
    write_x_forwarded_for(kept(&X_FORWARDED_FOR), peer, &mut text);
    let forwarded_for = text.split().freeze();
    let hop = Hop { peer, host, scheme: info.scheme() };
    forwarded::write_forwarded(kept(&header::FORWARDED), &hop, &mut text);
    let forwarded = text.freeze();
    if !forwarded_for.is_empty() {
        upstream.insert(X_FORWARDED_FOR, value(forwarded_for));
    }
    upstream.insert(header::FORWARDED, value(forwarded));
    if !upstream.contains_key(X_FORWARDED_PROTO) {
        upstream.insert(X_FORWARDED_PROTO, HeaderValue::from_static(ctx.scheme.as_str()));
    }
    if let Some(host) = host.filter(|_| !upstream.contains_key(X_FORWARDED_HOST))
        && let Ok(host) = HeaderValue::from_str(host)
    {
        upstream.insert(X_FORWARDED_HOST, host);
    }
}

/// The client's certificate, where it was asked for. What clients say of theirs was taken out by `admit`.
fn client_certificate(upstream: &mut HeaderMap, ctx: &RequestCtx) {
    let verify = match ctx.info().map(ConnInfo::verified) {
        None | Some(Verified::NotAsked) => return,
        Some(Verified::None) => "NONE",
        Some(Verified::Success(certificate)) => {
            upstream.insert(X_CLIENT_CERT_SUBJECT, certificate.subject.clone());
            upstream.insert(X_CLIENT_CERT_FINGERPRINT, certificate.fingerprint.clone());
            "SUCCESS"
        }
    };
    upstream.insert(X_CLIENT_CERT_VERIFY, HeaderValue::from_static(verify));
}

/// What was read as a field value before, or is made of addresses and names, is one.
fn value(text: bytes::Bytes) -> HeaderValue {
    HeaderValue::from_maybe_shared(text).unwrap_or(const { HeaderValue::from_static("unknown") })
}

/// HTTP/2 may split `Cookie`; HTTP/1.1 may not (RFC 9113 §8.2.3).
pub(super) fn join_cookies(upstream: &mut HeaderMap) {
    let mut crumbs = upstream.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (crumbs.next(), crumbs.next()) else { return };
    let mut joined = BytesMut::from(first.as_bytes());
    for crumb in std::iter::once(second).chain(crumbs) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(crumb.as_bytes());
    }
    upstream.insert(header::COOKIE, value(joined.freeze()));
}

/// Makes the client's answer out of the backend's.
///
/// # Errors
/// A value that is no value, which validation has ruled out.
pub(super) fn response(session: &mut Session, answer: &mut ResponseHeader, ctx: &mut RequestCtx) -> Result<()> {
    let upgrade = answer.status == StatusCode::SWITCHING_PROTOCOLS;
    if !upgrade {
        hop_by_hop(answer);
    }
    if answer.status.is_informational() {
        return Ok(());
    }
    ctx.grpc_web.response_header_filter(answer);
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
    // Trailers go from HTTP/2 to HTTP/2 only, so nobody else is told of them.
    let lost_trailers = answer.version != Version::HTTP_2 || session.req_header().version != Version::HTTP_2;
    let via = ctx.current().and_then(|current| current.via(answer.version));
    edit_response(answer, |fields| {
        fields.reserve(4);
        for (name, value) in guard::rate_fields(ctx) {
            fields.append(name, value);
        }
        if lost_trailers {
            fields.remove(header::TRAILER);
        }
        if let Some(via) = via {
            fields.append(header::VIA, via.clone());
        }
        if let Some(id) = &ctx.request_id {
            fields.insert(X_REQUEST_ID, id.clone());
        }
    })?;
    if answer.version == Version::HTTP_10 {
        // A proxy answers in its own version (RFC 9110 §2.5).
        answer.set_version(Version::HTTP_11);
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

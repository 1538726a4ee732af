//! Heads on their way: towards the backend, and back to the client. What becomes of them is decided in `policy/rewrite.rs`; here
//! is gathered what it is decided by.

use bytes::BytesMut;
use http::{HeaderMap, Method, StatusCode, Version, header, request::Parts, uri};
use pingora_core::{ErrorType, OrErr, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use super::{
    admit,
    ctx::{ConnInfo, RequestCtx},
    downstream::Downstream as _,
    grpc_web, guard,
    id::Id,
    tunnel,
};
use crate::{
    config::model::HostHeader,
    policy::{
        fields::Fields,
        forwarded::Scheme,
        headers::HeaderEdits,
        pieces::put,
        rewrite::{AnswerRewrite, ClientCert, Hops, RequestRewrite, Rewrite as _},
    },
};

/// What is done to a head where the operator has not said a word: nothing.
const NO_EDITS: &HeaderEdits = &HeaderEdits { remove: Vec::new(), set: Vec::new(), add: Vec::new() };

/// What neighbours say of a WebSocket, in a request for one and in the answer that begins it.
pub(super) const UPGRADE: &[u8] = b"Connection: Upgrade\r\nUpgrade: websocket\r\n";

/// A client's request, whoever parsed it.
pub(super) struct Client<'a, F> {
    pub(super) method: &'a Method,
    /// What an origin is asked for, as the client said it.
    pub(super) target: &'a [u8],
    pub(super) version: Version,
    /// The host it asked for.
    pub(super) host: Option<&'a str>,
    /// The host, where it is not said by a field but by the target.
    pub(super) authority: Option<&'a str>,
    pub(super) fields: &'a F,
}

impl<'a> Client<'a, HeaderMap> {
    /// As Pingora has parsed it.
    pub(super) fn of(request: &'a RequestHeader) -> Self {
        let authority = request.uri.authority().map(http::uri::Authority::as_str);
        // What a proxy is asked for in absolute form, it asks an origin for in origin form (RFC 9112 §3.2).
        let target = match authority {
            Some(_) => request.uri.path_and_query().map_or("/", |target| target.as_str()).as_bytes(),
            None => request.raw_path(),
        };
        let host = admit::host(request);
        // As it came, whatever has been made of it.
        let version = if tunnel::is_tunnel(request) { Version::HTTP_2 } else { request.version };
        Self { method: &request.method, target, version, host, authority, fields: &request.headers }
    }
}

impl<'a> Client<'a, HeaderMap> {
    /// As HTTP/2 brings it, which has no other target than a path.
    pub(super) fn of_stream(request: &'a Parts) -> Self {
        let authority = request.uri.authority().map(http::uri::Authority::as_str);
        Self {
            method: &request.method,
            target: request.uri.path_and_query().map_or("/", |target| target.as_str()).as_bytes(),
            version: Version::HTTP_2,
            host: admit::host(request),
            authority,
            fields: &request.headers,
        }
    }
}

impl<'a, F: Fields> Client<'a, F> {
    /// What becomes of the head on its way to a backend that speaks `version`.
    fn rewrite(&self, ctx: &'a RequestCtx, version: Version, hops: Hops) -> RequestRewrite<'a, F> {
        let info = ctx.info();
        let told = guard::towards_backend(ctx);
        let down = version != Version::HTTP_2;
        RequestRewrite {
            client: self.fields,
            hops,
            peer: info.and_then(ConnInfo::peer_text),
            peer_trusted: ctx.peer_trusted,
            hop_scheme: info.map_or(Scheme::Http, ConnInfo::scheme),
            scheme: ctx.scheme,
            asked_host: self.host,
            host: host_header(ctx).or(self.authority.filter(|_| down).map(str::as_bytes)).or_else(|| match self.host {
                // HTTP/1.0 asks for none; HTTP/1.1 must (RFC 9112 §3.2).
                None => ctx.picked.as_ref().map(|picked| picked.backend().authority().as_bytes()),
                Some(_) => None,
            }),
            join_cookies: down && self.version == Version::HTTP_2,
            drop_authorization: told.drop_authorization,
            told: told.names,
            identity: told.identity,
            certificate: info.map_or(ClientCert::NotAsked, |info| info.verified().told()),
            via: ctx.current().and_then(|current| current.via(self.version)),
            request_id: ctx.request_id.as_ref().map(Id::as_bytes),
            edits: ctx.route().map_or(NO_EDITS, |route| &route.request_headers),
        }
    }

    /// Writes the head of the request for a backend that speaks HTTP/1.1. `body`: there is one, if perhaps an empty one. Returns
    /// whether it goes in chunks.
    pub(super) fn write(&self, ctx: &'a RequestCtx, body: bool, out: &mut BytesMut) -> bool {
        self.begin(self.method, ctx, out);
        let te = self.version == Version::HTTP_2 && self.fields.has(&header::TE);
        if te && self.fields.all(&header::TE).any(|said| said == b"trailers") {
            // The only word of HTTP/2's between neighbours (RFC 9113 §8.2.2), and it is true of us: they go on.
            put([b"te: trailers\r\nconnection: te\r\n"], out);
        }
        let chunked = body && !self.fields.has(&header::CONTENT_LENGTH);
        put([if chunked { b"transfer-encoding: chunked\r\n\r\n" } else { b"\r\n" }], out);
        chunked
    }

    /// As [`Client::write`], of a request for a WebSocket (RFC 6455 §4.1). `handshake`: lines of it that the client has not sent, as
    /// one of HTTP/2 sends no key (RFC 8441 §5).
    pub(super) fn write_upgrade(&self, ctx: &'a RequestCtx, handshake: &[u8], out: &mut BytesMut) {
        self.begin(&Method::GET, ctx, out);
        put([handshake, UPGRADE, b"\r\n"], out);
    }

    /// All of a head but its framing and its end.
    fn begin(&self, method: &Method, ctx: &'a RequestCtx, out: &mut BytesMut) {
        let target = ctx.target.as_ref().map_or(self.target, |target| target.as_str().as_bytes());
        put([method.as_str().as_bytes(), b" ", target, b" HTTP/1.1\r\n"], out);
        self.rewrite(ctx, Version::HTTP_11, Hops::Here).write(self.fields, out);
    }
}

/// Makes the backend's request out of the client's. Pingora has taken the hop-by-hop fields out.
///
/// # Errors
/// A target that is none, which validation has ruled out.
pub(super) fn request(session: &Session, upstream: &mut RequestHeader, ctx: &RequestCtx) -> Result<()> {
    let client = Client::of(session.req_header());
    let rewrite = client.rewrite(ctx, upstream.version, Hops::TakenOut);
    if let Some(target) = &ctx.target {
        let mut parts = upstream.uri.clone().into_parts();
        parts.path_and_query = Some(target.clone());
        // Another path than the one decided on must not be sent.
        let uri = http::Uri::from_parts(parts).or_err(ErrorType::InvalidHTTPHeader, "a target of our own")?;
        upstream.set_uri(uri);
    }
    if upstream.version == Version::HTTP_2 {
        // Pingora hears nothing of its interim answers, and so asks for none: see `asks_for_body`.
        upstream.remove_header(&header::EXPECT);
        set_scheme(upstream, ctx);
    }
    // Before the operator's edits, though these have no say in it.
    grpc_web::upstream_request(upstream, &ctx.grpc_web)?;
    if client.version == Version::HTTP_2 && upstream.version == Version::HTTP_2 {
        // Pingora takes them out of requests of sessions that are not its own; between two that speak HTTP/2 they are true.
        for name in [header::TE, header::TRAILER] {
            if let Some(said) = client.fields.get(&name) {
                upstream.insert_header(name, said.clone())?;
            }
        }
    }
    edit_request(upstream, |fields| rewrite.apply(fields))?;
    if upstream.version != Version::HTTP_2 {
        origin_form(upstream);
    }
    let set = rewrite.edits.set.iter().rfind(|(name, _)| *name == header::HOST);
    if let Some(host) = set.map(|(_, host)| host.as_bytes()).or_else(|| host_header(ctx)) {
        set_authority(upstream, host);
    }
    Ok(())
}

/// The target without the host, which has been put into `Host`.
fn origin_form(upstream: &mut RequestHeader) {
    if upstream.uri.authority().is_none() {
        return;
    }
    let target = upstream.uri.path_and_query().map_or("/", |target| target.as_str());
    if let Ok(uri) = target.parse() {
        upstream.set_uri(uri);
    }
}

/// Edits the fields in their map itself. Pingora's own editing keeps a second map with the names as they were spelled,
/// which costs more than all other work on a head; so names go on in lower case, as in HTTP/2.
fn edit_request(head: &mut RequestHeader, edit: impl FnOnce(&mut HeaderMap)) -> Result<()> {
    // A target that its URI does not hold wholly is lost on the way through the parts.
    let target = head.uri.path_and_query().map_or("", |target| target.as_str());
    let verbatim = (head.raw_path() != target.as_bytes()).then(|| head.raw_path().to_vec());
    let ends = head.send_end_stream();
    let (nothing, ()) = http::Request::new(()).into_parts();
    let mut parts = http::request::Parts::from(std::mem::replace(head, RequestHeader::from(nothing)));
    edit(&mut parts.headers);
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

fn host_header(ctx: &RequestCtx) -> Option<&[u8]> {
    match &ctx.member()?.upstream.host_header {
        HostHeader::Fixed(host) => Some(host.as_bytes()),
        HostHeader::Preserve => None,
        HostHeader::Sni => Some(ctx.picked.as_ref()?.backend().sni().as_bytes()),
    }
}

/// The scheme is that of the connection to the backend, as for clients of HTTP/1, whatever an HTTP/2 client says of its own.
fn set_scheme(upstream: &mut RequestHeader, ctx: &RequestCtx) {
    let tls = ctx.member().is_some_and(|member| member.upstream.tls.is_some());
    let scheme = if tls { uri::Scheme::HTTPS } else { uri::Scheme::HTTP };
    if upstream.uri.scheme().is_some_and(|said| *said != scheme) {
        let mut parts = upstream.uri.clone().into_parts();
        parts.scheme = Some(scheme);
        if let Ok(uri) = http::Uri::from_parts(parts) {
            upstream.set_uri(uri);
        }
    }
}

/// Whether the client waits to be asked for its body, and a backend that speaks `version` does not ask: over HTTP/2 many take it as
/// it comes, and of those that ask Pingora hears nothing. Then we do.
pub(super) fn asks_for_body(session: &Session, version: Version) -> bool {
    let client = session.req_header();
    version == Version::HTTP_2
        && client.version != Version::HTTP_10
        && expects(&client.headers)
        && session.answered().is_none()
}

/// Whether who sent these fields waits to be asked for the body (RFC 9110 §10.1.1).
pub(super) fn expects(client: &HeaderMap) -> bool {
    client.get(header::EXPECT).is_some_and(|said| said.as_bytes().eq_ignore_ascii_case(b"100-continue"))
}

/// Sets the authority, where the target has one (HTTP/2), to what `Host` was set to.
fn set_authority(upstream: &mut RequestHeader, host: &[u8]) {
    if upstream.uri.authority().is_some() {
        let mut parts = upstream.uri.clone().into_parts();
        parts.authority = host.try_into().ok();
        if let Ok(uri) = http::Uri::from_parts(parts) {
            upstream.set_uri(uri);
        }
    }
}

/// Makes the client's answer out of the backend's.
///
/// # Errors
/// A reason phrase that is none.
pub(super) fn response(session: &mut Session, answer: &mut ResponseHeader, ctx: &mut RequestCtx) -> Result<()> {
    if answer.status == StatusCode::SWITCHING_PROTOCOLS {
        return Ok(());
    }
    let over_http2 = ctx.exchanged && session.req_header().version != Version::HTTP_2;
    if answer.status.is_informational() {
        if over_http2 {
            answer.set_version(Version::HTTP_11);
        }
        return edit_response(answer, |fields| AnswerRewrite::INTERIM.apply(fields));
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
    if session.req_header().version == Version::HTTP_10 && is_unbounded(&session.req_header().method, answer) {
        // HTTP/1.0 knows no chunks: the end of the connection is the end of the body.
        answer.remove_header(&header::TRANSFER_ENCODING);
        session.set_keepalive(None);
    }
    // Pingora frames the answer by the fields that say how.
    let rewrite = answer_rewrite(session.req_header().version, answer.version, true, ctx);
    edit_response(answer, |fields| rewrite.apply(fields))?;
    if answer.version == Version::HTTP_10 || over_http2 {
        // A proxy answers in its own version (RFC 9110 §2.5).
        answer.set_version(Version::HTTP_11);
    }
    Ok(())
}

/// Whether an answer has a body of which its head does not say how long it is.
fn is_unbounded(method: &Method, answer: &ResponseHeader) -> bool {
    let bodiless = *method == Method::HEAD
        || matches!(answer.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
        || answer.status.is_informational();
    let counted = answer.headers.contains_key(header::CONTENT_LENGTH);
    answer.headers.contains_key(header::TRANSFER_ENCODING) || !(bodiless || counted)
}

/// What becomes of an answer's head on its way from a backend to a client of these versions. `framing`: its fields of framing go
/// on.
pub(super) fn answer_rewrite(client: Version, backend: Version, framing: bool, ctx: &RequestCtx) -> AnswerRewrite<'_> {
    AnswerRewrite {
        framing,
        // They go from HTTP/2 to HTTP/2 only, so nobody else is told of them.
        trailers: client == Version::HTTP_2 && backend == Version::HTTP_2,
        rate: guard::rate_fields(ctx),
        via: ctx.current().and_then(|current| current.via(backend)),
        request_id: ctx.request_id.as_ref().map(Id::as_bytes),
        edits: ctx.route().map_or(NO_EDITS, |route| &route.response_headers),
    }
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

//! The way in: who is asking, under which id, by which route; and the answers that need no backend.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Method, StatusCode, Version, header, request::Parts, uri::PathAndQuery};
use pingora_core::{Error, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use super::{
    ctx::{ConnInfo, RequestCtx, RequestStart},
    downstream::Downstream as _,
    edit::{self, Client},
    exchange, grpc_web, guard,
    id::Id,
    kit::Kit,
    old_client, reject, watch,
};
use crate::{
    config::model::Engine,
    policy::{
        believed::Believed,
        fields::Fields,
        forwarded::{ClientIdentity, is_client_cert_field},
        framing::length,
        head::is_usual,
        headers::{RequestId, is_websocket, same_host, valid_host, valid_request_id},
        path::{Ambiguous, canonical, is_uri_path, split_target},
        rewrite::ClientCert,
        route::{RequestView, without_port},
    },
    runtime::snapshot::{Action, Snapshot, choose},
    types::Reason,
};

/// How long one write to a client may take. A reader slower than this holds memory that others need.
pub(super) const WRITE_TIMEOUT: Duration = Duration::from_secs(60);
/// The same where `min_body_rate` judges the reader: one who is fast enough may still need minutes for what the system
/// holds for it, and nothing is written meanwhile.
pub(super) const JUDGED_WRITE_TIMEOUT: Duration = Duration::from_secs(3600);
/// Also when a request has taken all its time: to say so.
const SHORTEST_WRITE: Duration = Duration::from_millis(100);
/// How long the next part of a request's body may take.
pub(super) const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// Before anything else: what the connection knows, and how the session behaves.
pub(super) fn begin(kit: &Kit, session: &mut Session, ctx: &mut RequestCtx) {
    if ctx.start.is_none() {
        ctx.start = session.req_header_mut().extensions_mut().remove::<RequestStart>();
    }
    let request = session.req_header_mut();
    if request.headers.contains_key(header::UPGRADE) && !is_websocket(request.method.as_str(), &request.headers) {
        // No other upgrade is passed on, and everyone who asks whether this is one must see the same.
        request.remove_header(&header::UPGRADE);
        request.remove_header("http2-settings");
    }
    // Before anyone looks at them: a route may.
    let forged: Vec<HeaderName> = request.headers.keys().filter(|name| is_client_cert_field(name)).cloned().collect();
    for name in &forged {
        request.remove_header(name);
    }
    let paced = ctx.info().is_some_and(|info| info.limits().min_body_rate.is_some());
    let judged = paced && session.req_header().version != Version::HTTP_2 && !session.is_upgrade_req();
    session.set_write_timeout(Some(if judged { JUDGED_WRITE_TIMEOUT } else { WRITE_TIMEOUT }));
    session.set_read_timeout(Some(READ_TIMEOUT));
    session.set_total_drain_timeout(Some(READ_TIMEOUT));
    if session.req_header().headers.contains_key(header::EXPECT) {
        // Pingora takes a `100 Continue` for an answer before the body's end, after which it would close the connection;
        // `edit::response` turns this back on for the real answer.
        session.set_close_on_response_before_downstream_finish(false);
    }
    if session.req_header().version == Version::HTTP_10 {
        // HTTP/1.0 knows no interim answers (RFC 9110 §15.2), nobody who asks for one (§10.1.1), and no chunks.
        session.set_ignore_info_resp(true);
        session.req_header_mut().remove_header(&header::EXPECT);
        session.downstream_modules_ctx = old_client::modules();
    }
    if session.get_keepalive().is_some()
        && let Some(info) = ctx.info()
    {
        session.set_keepalive(Some(info.limits().idle_timeout.as_secs().max(1)));
    }
    introduce(kit, &session.req_header().headers, ctx);
}

/// Who is asking, since when, and under which id.
pub(super) fn introduce(kit: &Kit, fields: &impl Fields, ctx: &mut RequestCtx) {
    let Some(start) = &ctx.start else { return };
    (ctx.started, ctx.asked) = (start.began, start.began);
    ctx.total_due = start.info.limits().request_timeout.map(|total| start.began + total);
    let (info, trusted) = (&start.info, start.current.trusted());
    let identity = ClientIdentity::resolve(info.author(), trusted, fields);
    ctx.client = identity.client.or_else(|| info.peer().map(|peer| peer.to_canonical()));
    ctx.peer_trusted = identity.peer_trusted;
    ctx.scheme = identity.scheme.filter(|_| identity.peer_trusted).unwrap_or(start.info.scheme());
    ctx.request_id = Some(request_id(kit, fields));
}

/// Keeps a client's id where it is well-formed, so that one request has one id through several proxies.
fn request_id(kit: &Kit, fields: &impl Fields) -> Id {
    let name = reject::X_REQUEST_ID;
    let theirs = fields.first(&name).filter(|id| valid_request_id(id));
    match theirs.and_then(|id| HeaderValue::from_bytes(id).ok()) {
        Some(id) => Id::Theirs(id),
        None => Id::Ours(RequestId::new((u128::from(kit.random()) << 64) | u128::from(kit.random()))),
    }
}

/// Finds the route, and answers where no backend is needed. Returns whether the request was answered.
///
/// # Errors
/// The answer could not be sent.
pub(super) async fn route(kit: &Kit, session: &mut Session, ctx: &mut RequestCtx) -> Result<bool> {
    if ctx.info().is_some_and(|info| !info.is_admitted()) {
        return refuse(session, ctx, Reason::Denied, None).await;
    }
    if !well_formed(session.req_header()) {
        return refuse(session, ctx, Reason::BadRequest, None).await;
    }
    if let Some(reason) = ctx.info().and_then(|info| over_limit(session.req_header(), info)) {
        return refuse(session, ctx, reason, None).await;
    }
    if session.req_header().method == Method::TRACE {
        // Its answer would be the request itself, with what was added to it on the way (RFC 9110 §9.3.8).
        return refuse(session, ctx, Reason::MethodNotAllowed, None).await;
    }
    if ctx.info().is_some_and(|info| info.redirect_https()) {
        return redirect_https(session, ctx).await;
    }
    let Some(current) = ctx.current().cloned() else {
        ctx.reason = Some(Reason::Internal);
        return Ok(reject::answer(session, ctx, Reason::Internal).await > 0);
    };
    let request = session.req_header();
    let decided = target(request).and_then(|target| decide(&current, ctx.info(), &session.request(), target));
    let (index, target) = match decided {
        Ok(Some(decided)) => decided,
        Ok(None) => return refuse(session, ctx, Reason::NoRoute, None).await,
        Err(Ambiguous) => return refuse(session, ctx, Reason::AmbiguousPath, None).await,
    };
    ctx.route = Some(index);
    ctx.target = target;
    let route = current.route(index);
    let seed = ctx.start.as_ref().map_or(0, |start| start.seed);
    let upstream = match &route.action {
        Action::Proxy { upstreams, .. } => Some(choose(upstreams, seed)),
        Action::Redirect(_) | Action::Respond(_) => None,
    };
    // Guards may have to wait for somebody, which is a part of the whole.
    if let Some(upstream) = upstream {
        ctx.total_due = total_due(&current, upstream, ctx);
    }
    if let Some(guards) = &route.guards {
        if Box::pin(guard::admit(kit, session, ctx, guards)).await? {
            return Ok(true);
        }
        ctx.asked = Instant::now();
    }
    match &route.action {
        Action::Proxy { .. } if is_last_hop(session) => {
            ctx.reason = Some(Reason::Respond);
            let mut head = ResponseHeader::build(StatusCode::NO_CONTENT, Some(4))?;
            head.insert_header(header::ALLOW, reject::METHODS)?;
            respond(session, ctx, head, Bytes::new()).await
        }
        Action::Proxy { .. } => {
            let upstream = upstream.unwrap_or_default();
            go_to(kit, upstream, ctx);
            let member = current.member(upstream);
            if member.upstream.grpc_web {
                grpc_web::request(session.req_header_mut(), &mut ctx.grpc_web);
            }
            let ours = member.upstream.exchange().is_some() && !session.is_upgrade_req();
            let listener = ctx.info().and_then(|info| info.engine());
            if ours && current.engine(route, listener) != Engine::Pingora {
                return exchange::serve(kit, session, ctx).await.map(|()| true);
            }
            Ok(false)
        }
        Action::Redirect(redirect) => {
            ctx.reason = Some(Reason::Redirect);
            let mut head = ResponseHeader::build(redirect.status, Some(6))?;
            head.insert_header(header::LOCATION, redirect.to.clone())?;
            respond(session, ctx, head, Bytes::new()).await
        }
        Action::Respond(respond_with) => {
            ctx.reason = Some(Reason::Respond);
            let mut head = ResponseHeader::build(respond_with.status, Some(6))?;
            if !respond_with.body.is_empty() {
                head.insert_header(header::CONTENT_TYPE, "text/plain; charset=utf-8")?;
            }
            respond(session, ctx, head, respond_with.body.clone()).await
        }
    }
}

/// The request goes to this upstream, and counts as its.
pub(super) fn go_to(kit: &Kit, upstream: usize, ctx: &mut RequestCtx) {
    let Some(current) = ctx.start.as_ref().map(|start| &start.current) else { return };
    let (member, due) = (current.member(upstream), total_due(current, upstream, ctx));
    (ctx.upstream, ctx.total_due) = (Some(upstream), due);
    ctx.in_flight = Some(member.metrics.begin(kit.index()));
    member.upstream.budget.on_request(kit.millis(ctx.started));
}

/// When a request to this upstream must be over, by what its listener or its upstream says.
fn total_due(current: &Snapshot, upstream: usize, ctx: &RequestCtx) -> Option<Instant> {
    let total = current.member(upstream).upstream.timeouts.total;
    [ctx.total_due, total.map(|total| ctx.started + total)].into_iter().flatten().min()
}

/// What the front sees to for HTTP/1, of an HTTP/2 request: one host that is one, one length, an ASCII target, a scheme that
/// can have come to us (RFC 9113 §8.3.1), and values without white space around them (§8.2.1).
pub fn well_formed(request: &Parts) -> bool {
    if request.version != Version::HTTP_2 {
        return true;
    }
    // One pass: to look each of them up costs more than to see all of a head.
    let (mut host, mut declared) = (None, None);
    for (name, value) in &request.headers {
        let another = if *name == header::HOST {
            host.replace(value)
        } else if *name == header::CONTENT_LENGTH {
            declared.replace(value)
        } else {
            None
        };
        if another.is_some() || watch::padded(value) {
            return false;
        }
    }
    let Ok(host) = host.map(HeaderValue::to_str).transpose() else { return false };
    let authority = request.uri.authority().map(http::uri::Authority::as_str);
    let host = match (authority, host) {
        (Some(authority), Some(host)) => {
            let https = request.uri.scheme_str() == Some("https");
            same_host(https, authority.as_bytes(), host.as_bytes()) && valid_host(authority) && valid_host(host)
        }
        (Some(host), None) | (None, Some(host)) => valid_host(host),
        (None, None) => false,
    };
    host && declared.is_none_or(|declared| length(declared.as_bytes()).is_some())
        && request.uri.path_and_query().is_none_or(|target| is_target(&request.method, target))
        && matches!(request.uri.scheme_str(), None | Some("http" | "https"))
}

/// Whether a request of HTTP/2 is one, and within its listener's limits.
pub fn is_served(request: &Parts, info: &ConnInfo) -> bool {
    well_formed(request) && over_limit(request, info).is_none()
}

/// Whether a target of HTTP/2 is a path, or `*` of OPTIONS (RFC 9113 §8.3.1).
fn is_target(method: &Method, target: &PathAndQuery) -> bool {
    let text = target.as_str();
    let begins = text.starts_with('/') || (text == "*" && *method == Method::OPTIONS);
    // Nearly all have nothing else.
    let usual = || text.bytes().all(is_usual);
    begins && (usual() || (text.bytes().all(|byte| byte.is_ascii_graphic()) && is_uri_path(target.path())))
}

/// The listener's limits on a head of HTTP/2, as decoded; those of HTTP/1 the front has kept.
pub(super) fn over_limit(request: &Parts, info: &ConnInfo) -> Option<Reason> {
    if request.version != Version::HTTP_2 {
        return None;
    }
    let limits = info.limits();
    let target = request.uri.path_and_query().map_or(0, |target| target.as_str().len());
    if target as u64 > limits.max_uri_length.0 {
        return Some(Reason::UriTooLong);
    }
    if request.headers.len() > limits.max_headers as usize || list_size(request) > limits.max_header_size.0 {
        return Some(Reason::HeaderTooLarge);
    }
    let most = limits.max_body_size?;
    let declared = length(request.headers.get(header::CONTENT_LENGTH)?.as_bytes())?;
    (declared > most.0).then_some(Reason::BodyTooLarge)
}

/// The size of a header list (RFC 9113 §6.5.2), without the pseudo-fields but target and authority.
fn list_size(request: &Parts) -> u64 {
    const OVERHEAD: usize = 32;
    let target = request.uri.path_and_query().map_or(0, |target| target.as_str().len());
    let authority = request.uri.authority().map_or(0, |authority| authority.as_str().len());
    let fields = request.headers.iter().map(|(name, value)| name.as_str().len() + value.len() + OVERHEAD);
    (fields.sum::<usize>() + target + authority) as u64
}

/// The position of a request's route, and what its backend is asked for where that is not the target as it came.
pub(super) fn decide(
    snapshot: &Snapshot,
    info: Option<&ConnInfo>,
    request: &Client<'_, impl Fields>,
    target: &str,
) -> Result<Option<(usize, Option<PathAndQuery>)>, Ambiguous> {
    let (path, query) = split_target(request.method, target);
    let (host, method) = (request.host.unwrap_or_default(), request.method);
    let believed = snapshot.asks_doubtful().then(|| believed(info, is_trusted(snapshot, info), request.fields));
    let found = match &believed {
        Some(headers) => snapshot.find(&RequestView { host, path, method, headers })?,
        None => snapshot.find(&RequestView { host, path, method, headers: request.fields })?,
    };
    let Some(index) = found.route else { return Ok(None) };
    let Action::Proxy { path: how, strip_prefix, .. } = &snapshot.route(index).action else {
        return Ok(Some((index, None)));
    };
    let sent = found.form.sent(path, *how, strip_prefix.as_deref())?;
    if sent == path && path.len() + query.len() == target.len() {
        return Ok(Some((index, None)));
    }
    let sent = Bytes::from([sent, query].concat());
    let sent = PathAndQuery::from_maybe_shared(sent).map_err(|_| Ambiguous)?;
    Ok(Some((index, Some(sent))))
}

/// Whether what the peer says of hops before it is believed.
pub(super) fn is_trusted(snapshot: &Snapshot, info: Option<&ConnInfo>) -> bool {
    info.and_then(ConnInfo::author).is_some_and(|author| snapshot.trusted().contains(author))
}

/// The fields of a request as far as they are believed of its client, before anybody else was asked about it.
pub(super) fn believed<'a, F>(info: Option<&'a ConnInfo>, peer_trusted: bool, sent: &'a F) -> Believed<'a, F> {
    let certificate = info.map_or(ClientCert::NotAsked, |info| info.verified().told());
    Believed { sent, peer_trusted, certificate, told: &[], identity: &[] }
}

/// The target as it came.
fn target(request: &RequestHeader) -> Result<&str, Ambiguous> {
    let target = request.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    if request.raw_path().len() == target.len() {
        return Ok(target);
    }
    // Of an absolute form Pingora keeps only a part in the URI.
    std::str::from_utf8(request.raw_path()).map_err(|_| Ambiguous)
}

/// What was decided of: the path in canonical form, and the query as it came.
pub(super) fn canonical_target(request: &RequestHeader) -> Result<String, Ambiguous> {
    let (path, query) = split_target(&request.method, target(request)?);
    Ok([&*canonical(path)?.path, query].concat())
}

/// Whether OPTIONS asks us and nobody behind us (`Max-Forwards`, RFC 9110 §7.6.2); if not, the next one is asked as one fewer.
fn is_last_hop(session: &mut Session) -> bool {
    let request = session.req_header();
    if request.method != Method::OPTIONS {
        return false;
    }
    let said = request.headers.get_all(header::MAX_FORWARDS).iter().map(HeaderValue::as_bytes);
    let numbers = said.filter(|said| !said.is_empty() && said.iter().all(u8::is_ascii_digit));
    // More hops than fit in the number are none to count; of several the smallest holds.
    let left =
        numbers.map(|said| std::str::from_utf8(said).map_or(u32::MAX, |said| said.parse().unwrap_or(u32::MAX))).min();
    let Some(left) = left else { return false };
    // A number is a value.
    left.checked_sub(1).is_none_or(|left| session.req_header_mut().insert_header(header::MAX_FORWARDS, left).is_err())
}

async fn redirect_https(session: &mut Session, ctx: &mut RequestCtx) -> Result<bool> {
    let request = session.req_header();
    // As it came: it will be decided of there. `*` stands for no path at all.
    let target = request.uri.path_and_query().map_or("/", PathAndQuery::as_str).trim_start_matches('*');
    // Without a host there is nowhere to send the client; only HTTP/1.0 comes this far without one.
    let Some(host) = host(request).filter(|host| !host.is_empty()) else {
        ctx.reason = Some(Reason::BadRequest);
        return Ok(reject::answer(session, ctx, Reason::BadRequest).await > 0);
    };
    let location = format!("https://{}{target}", without_port(host));
    ctx.reason = Some(Reason::HttpsRedirect);
    let mut head = ResponseHeader::build(StatusCode::PERMANENT_REDIRECT, Some(6))?;
    head.insert_header(header::LOCATION, location)?;
    respond(session, ctx, head, Bytes::new()).await
}

/// Answers a request that is not let in, or that no route takes; with one field more.
pub(super) async fn refuse(
    session: &mut Session,
    ctx: &mut RequestCtx,
    reason: Reason,
    field: Option<(HeaderName, HeaderValue)>,
) -> Result<bool> {
    let (head, body) = refusal(ctx, reason, field)?;
    respond(session, ctx, head, body).await
}

/// See [`refuse`].
pub(super) fn refusal(
    ctx: &mut RequestCtx,
    reason: Reason,
    field: Option<(HeaderName, HeaderValue)>,
) -> Result<(ResponseHeader, Bytes)> {
    ctx.reason = Some(reason);
    let status = reject::status(reason).unwrap_or(StatusCode::FORBIDDEN);
    let (mut head, body) = reject::failure(ctx, status, reason)?;
    if let Some((name, value)) = field {
        head.insert_header(name, value)?;
    }
    Ok((head, body))
}

/// Asks those guards of the request's route that decide by its head. Returns the answer to a request that is refused.
pub(super) fn refused_by_guards(
    request: &Client<'_, impl Fields>,
    ctx: &mut RequestCtx,
) -> Option<Result<(ResponseHeader, Bytes)>> {
    ctx.route()?.guards.as_ref()?; // mostly there are none
    let current = ctx.current()?.clone();
    let guards = current.route(ctx.route?).guards.as_ref()?;
    let admitted = guard::admit_by_head(request, ctx, guards);
    ctx.asked = Instant::now();
    let guard::Refusal { reason, field } = admitted.err()?;
    let refusal = refusal(ctx, reason, field);
    Some(refusal.and_then(|(head, body)| Ok((as_ours(ctx, head)?, body))))
}

/// Sends an answer of our own.
pub(super) async fn respond(
    session: &mut Session,
    ctx: &mut RequestCtx,
    head: ResponseHeader,
    body: Bytes,
) -> Result<bool> {
    let head = as_ours(ctx, head)?;
    let request = &session.req_header().headers;
    let endless = request.contains_key(header::TRANSFER_ENCODING)
        && ctx.info().is_some_and(|info| info.limits().max_body_size.is_some());
    if session.is_upgrade_req()
        || request.contains_key(header::EXPECT)
        || endless
        || head.status == StatusCode::BAD_REQUEST
    {
        // Who sends what is none is not to be trusted with more. Or: what comes after a refused handshake has no border. Or: the
        // client still waits to be asked for its body; it will not send one after a final answer. Or: to come to the next request,
        // more would have to be read than a request may have.
        session.set_keepalive(None);
    }
    if let Some(due) = ctx.total_due {
        // All there is for writing the answer, and for what is read of the request behind it.
        let left = Some(due.saturating_duration_since(Instant::now()).max(SHORTEST_WRITE));
        let (write, drain) = (session.get_write_timeout(), session.get_total_drain_timeout());
        session.set_write_timeout(write.min(left).or(left));
        session.set_total_drain_timeout(drain.min(left).or(left));
    }
    let sent = reject::send(session, head, body).await;
    if sent.is_err() && ctx.total_due.is_some_and(|due| due <= Instant::now()) {
        ctx.reason = Some(Reason::TotalTimeout);
    } else if sent.is_err() && ctx.reason.is_some_and(|reason| !reason.is_failure()) {
        // It is how the answer broke off that counts.
        ctx.reason = None;
    }
    sent.map(|()| true).map_err(Error::into_down)
}

/// The head of an answer of our own, with what the route and its guards add.
pub(super) fn as_ours(ctx: &RequestCtx, head: ResponseHeader) -> Result<ResponseHeader> {
    let mut head = reject::with_rate(ctx, head)?;
    if let Some(route) = ctx.route() {
        edit::apply_response(&mut head, &route.response_headers)?;
    }
    if let Some(id) = &ctx.request_id {
        head.insert_header(reject::X_REQUEST_ID, id.to_value())?;
    }
    Ok(head)
}

/// The host a request is for, as sent.
pub(super) fn host(request: &Parts) -> Option<&str> {
    let authority = request.uri.authority().map(http::uri::Authority::as_str);
    authority.or_else(|| request.headers.get(header::HOST).and_then(|host| host.to_str().ok()))
}

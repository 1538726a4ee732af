//! Forward authentication: a service is asked about each request. 2xx lets in; 4xx and redirects, to where somebody logs in, go
//! to the client, but for those that are about the question. Whatever else it answers, or nothing: nobody gets in.

use std::{
    error::Error as _,
    future::pending,
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Version, header};
use http_body_util::{BodyExt as _, Empty, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use hyper_util::{
    client::legacy::{self, Client, connect::Connect},
    rt::{TokioExecutor, TokioTimer},
};
use pingora_core::{Error, Result};
use pingora_http::RequestHeader;
use pingora_proxy::Session;
use tokio::time::timeout;

use super::{
    secure::{SecureClients, Tcp},
    towards_backend, within,
};
use crate::{
    config::model::ForwardAuth,
    policy::{
        forwarded::{X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO, is_forwarding_field},
        headers::{HOP_BY_HOP, nominated_by_connection},
        limit_key::{Seed, of_client},
        rewrite::join_cookies,
    },
    proxy::{
        admit::{self, refuse},
        ctx::RequestCtx,
        kit::Kit,
        reject,
    },
    runtime::line::Pool,
    types::{AddressText, Reason},
};

const X_FORWARDED_METHOD: HeaderName = HeaderName::from_static("x-forwarded-method");
const X_FORWARDED_URI: HeaderName = HeaderName::from_static("x-forwarded-uri");
/// Marks a question, so that a service behind its own guard is not asked about itself without end. Its value is the process's
/// own: what a client says here means nothing.
const ASKING: HeaderName = HeaderName::from_static("x-rrlb-forward-auth");

/// A body beyond this is none that a client should get: the answer goes without it.
const LONGEST_BODY: usize = 64 << 10;
/// Idle connections of a worker to one service.
const IDLE: usize = 16;
/// How long they are kept.
const IDLE_TIME: Duration = Duration::from_secs(30);

/// Fields of a refusal that the client gets. That nobody stores it is said of all that is refused here.
const TO_CLIENT: [HeaderName; 5] =
    [header::CONTENT_TYPE, header::LOCATION, header::RETRY_AFTER, header::SET_COOKIE, header::WWW_AUTHENTICATE];
/// Refusals of the question itself, or of the connection it came by: our client can do nothing about them, and could not be told what
/// goes with them (`Allow`, `Proxy-Authenticate`, `Upgrade`).
const ABOUT_US: [StatusCode; 5] = [
    StatusCode::METHOD_NOT_ALLOWED,
    StatusCode::MISDIRECTED_REQUEST,
    StatusCode::PROXY_AUTHENTICATION_REQUIRED,
    StatusCode::REQUEST_TIMEOUT,
    StatusCode::UPGRADE_REQUIRED,
];
/// What a 401 must say (RFC 9110 §15.5.2) where the service does not: many only mean "log in", and a scheme that is none asks
/// no browser for a password.
const CHALLENGE: HeaderValue = HeaderValue::from_static("Unspecified realm=\"restricted\"");
/// Fields that are about the body, which stays here, or would change the answer into one that cannot be passed on.
const NOT_ASKED: [HeaderName; 12] = [
    header::ACCEPT_ENCODING,
    header::CONTENT_ENCODING,
    header::CONTENT_LENGTH,
    header::EXPECT,
    header::HOST,
    header::IF_MATCH,
    header::IF_MODIFIED_SINCE,
    header::IF_NONE_MATCH,
    header::IF_RANGE,
    header::IF_UNMODIFIED_SINCE,
    header::RANGE,
    header::TRAILER,
];

/// A worker's clients, with pools of their own.
pub(super) struct AuthClient {
    plain: Pooled<Tcp>,
    secure: SecureClients,
}

impl AuthClient {
    /// As [`super::Asking::new`].
    pub(super) fn new(pool: &Arc<Pool>) -> Self {
        let tcp = Tcp::new(pool.clone());
        Self { plain: Pooled::new(tcp.clone()), secure: SecureClients::new(tcp) }
    }

    async fn ask(&self, question: Request<Empty<Bytes>>, service: &ForwardAuth) -> Result<Response<Incoming>, String> {
        let asked = match &service.tls {
            Some(tls) => self.secure.of(&tls.config).ask(question).await,
            None => self.plain.ask(question).await,
        };
        asked.map_err(|error| causes(&error))
    }
}

/// A client that keeps connections, and one that keeps none.
#[derive(Clone)]
pub(super) struct Pooled<C> {
    kept: Client<C, Empty<Bytes>>,
    fresh: Client<C, Empty<Bytes>>,
}

impl<C: Connect + Clone + Send + Sync + 'static> Pooled<C> {
    pub(super) fn new(connector: C) -> Self {
        let client = |connector, idle| {
            let mut builder = Client::builder(TokioExecutor::new());
            builder.pool_timer(TokioTimer::new()).pool_idle_timeout(IDLE_TIME).pool_max_idle_per_host(idle);
            builder.build(connector)
        };
        Self { kept: client(connector.clone(), IDLE), fresh: client(connector, 0) }
    }

    /// Asks over a kept connection if there is one; where that ends without an answer, as it does when the service has closed it at the
    /// same moment, once more over a fresh one. A question changes nothing, so it may be asked twice.
    pub(super) async fn ask(&self, question: Request<Empty<Bytes>>) -> Result<Response<Incoming>, legacy::Error> {
        let again = question.clone();
        match self.kept.request(question).await {
            Err(error) if broke_off(&error) => self.fresh.request(again).await,
            answer => answer,
        }
    }
}

/// Whether a connection ended without an answer.
fn broke_off(error: &legacy::Error) -> bool {
    if error.is_connect() {
        return false;
    }
    let mut cause = error.source();
    while let Some(error) = cause {
        let ended = |error: &hyper::Error| error.is_incomplete_message() || error.is_canceled() || error.is_closed();
        if error.downcast_ref::<hyper::Error>().is_some_and(ended) {
            return true;
        }
        if let Some(error) = error.downcast_ref::<io::Error>() {
            use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
            return matches!(error.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof);
        }
        cause = error.source();
    }
    false
}

/// What the service said.
enum Answer {
    Pass(Vec<(HeaderName, HeaderValue)>),
    Refusal(StatusCode, HeaderMap, Bytes),
}

/// Asks the service. Returns whether the request was refused, and so answered.
///
/// # Errors
/// The answer could not be sent, or the client has left.
pub(super) async fn ask(kit: &Kit, session: &mut Session, ctx: &mut RequestCtx, service: &ForwardAuth) -> Result<bool> {
    let asking = kit.asking();
    let client = of_client(ctx.client, ctx.current().map_or(&Seed::new([0; 16]), |current| current.limit_seed().get()));
    let place = asking.questions.enter(&service.host, client);
    let question = question(session.req_header(), ctx, service);
    let question = question.and_then(|question| match place {
        Some(place) => Ok((question, place)),
        None => Err("too many questions wait for it".to_owned()),
    });
    let answer = match question {
        Ok((question, place)) => {
            let answer = timeout(service.timeout, async {
                // Held until the answer is here.
                let _turn = place.turn().await;
                answer(&asking.services, question, service).await
            });
            let answer = tokio::select! {
                answer = within(ctx.total_due, answer) => answer,
                gone = left(session) => return Err(gone),
            };
            match answer {
                Some(Ok(answer)) => answer,
                Some(Err(_)) => Err(format!("no answer within {:?}", service.timeout)),
                None => return refuse(session, ctx, Reason::TotalTimeout, None).await,
            }
        }
        Err(error) => Err(error),
    };
    match answer {
        Ok(Answer::Pass(identity)) => {
            ctx.admitted.get_or_insert_default().identity = identity;
            Ok(false)
        }
        Ok(Answer::Refusal(status, fields, body)) => {
            ctx.reason = Some(Reason::Unauthorized);
            let (mut head, _) = reject::failure(ctx, status, Reason::Unauthorized)?;
            head.remove_header(&header::CONTENT_TYPE);
            for name in TO_CLIENT {
                for value in fields.get_all(&name).iter().filter(|value| !is_no_challenge(&name, value)) {
                    head.append_header(name.clone(), value.clone())?;
                }
            }
            if status == StatusCode::UNAUTHORIZED && !head.headers.contains_key(header::WWW_AUTHENTICATE) {
                head.insert_header(header::WWW_AUTHENTICATE, CHALLENGE)?;
            }
            admit::respond(session, ctx, head, body).await
        }
        Err(error) => {
            if kit.may_warn(Instant::now()) {
                log::warn!("forward_auth {}: {error}", service.url);
            }
            refuse(session, ctx, Reason::AuthUnavailable, None).await
        }
    }
}

/// Waits until an HTTP/1 client has left, who needs no answer any more. Of one who has a body to send, or
/// asks for a WebSocket, nobody can tell before that is read; a request of HTTP/2 is dropped with its stream.
async fn left(session: &mut Session) -> Box<Error> {
    let silent = session.req_header().version != Version::HTTP_2 && !session.is_upgrade_req();
    if silent
        && session.as_mut().is_body_empty()
        && let Err(error) = session.as_mut().read_body_or_idle(true).await
    {
        return error.into_down();
    }
    pending().await
}

/// Whether a field is there for challenges and has none: elements of a list may be empty (RFC 9110 §5.6.1, §11.6.1).
fn is_no_challenge(name: &HeaderName, value: &HeaderValue) -> bool {
    *name == header::WWW_AUTHENTICATE && value.as_bytes().iter().all(|byte| matches!(byte, b' ' | b'\t' | b','))
}

/// The question about a request: its fields without its body, and what it is as `X-Forwarded-*`.
fn question(client: &RequestHeader, ctx: &RequestCtx, service: &ForwardAuth) -> Result<Request<Empty<Bytes>>, String> {
    let ours = ctx.current().map_or(0, |current| current.limit_seed().get().number_for(ASKING.as_str()));
    let ours = HeaderValue::try_from(format!("{ours:016x}")).map_err(|error| error.to_string())?;
    if client.headers.get_all(ASKING).iter().any(|asking| *asking == ours) {
        return Err("the service is behind a route that asks it; let its own route have no forward_auth".to_owned());
    }
    let mut question = Request::new(Empty::new());
    *question.uri_mut() = service.url.clone();
    let nominated: Vec<&[u8]> = nominated_by_connection(&client.headers).collect();
    // A password that was for us is nobody else's.
    let drops = towards_backend(ctx).drop_authorization;
    let is_ours = |name: &HeaderName| drops && *name == header::AUTHORIZATION;
    // What `copy_headers` names goes, as the client said it: who gives a credential in exchange for another must see that.
    // What a service takes for what the question is about would be a lie from a client.
    let passes = |name: &HeaderName| {
        !HOP_BY_HOP.contains(name)
            && !is_ours(name)
            && !NOT_ASKED.contains(name)
            && !is_forwarding_field(name)
            && !nominated.iter().any(|nominated| nominated.eq_ignore_ascii_case(name.as_str().as_bytes()))
    };
    let fields = question.headers_mut();
    fields.reserve(client.headers.len() + 8);
    for (name, value) in client.headers.iter().filter(|(name, _)| passes(name)) {
        fields.append(name.clone(), value.clone());
    }
    if client.version == Version::HTTP_2 {
        join_cookies(fields);
    }
    fields.insert(header::HOST, service.host.clone());
    // Beside those of others, who may be asked by the service in turn.
    fields.append(ASKING, ours);
    fields.insert(X_FORWARDED_PROTO, HeaderValue::from_static(ctx.scheme.as_str()));
    let method = HeaderValue::from_str(client.method.as_str());
    // As the route was found by, and as the backend will get it: a service that looks at paths cannot know all spellings.
    let target = admit::canonical_target(client).ok().and_then(|target| HeaderValue::try_from(target).ok());
    let (Ok(method), Some(target)) = (method, target) else {
        return Err("a method or target that is no field value".to_owned());
    };
    fields.insert(X_FORWARDED_METHOD, method);
    fields.insert(X_FORWARDED_URI, target);
    if let Some(host) = admit::host(client).and_then(|host| HeaderValue::from_str(host).ok()) {
        fields.insert(X_FORWARDED_HOST, host);
    }
    if let Some(address) = ctx.client {
        let text = HeaderValue::from_bytes(AddressText::new(address).as_bytes());
        fields.extend(text.ok().map(|client| (X_FORWARDED_FOR, client)));
    }
    fields.extend(ctx.request_id.as_ref().map(|id| (reject::X_REQUEST_ID, id.to_value())));
    Ok(question)
}

async fn answer(client: &AuthClient, question: Request<Empty<Bytes>>, service: &ForwardAuth) -> Result<Answer, String> {
    let answer = client.ask(question, service).await?;
    let (head, body) = answer.into_parts();
    if head.status.is_success() {
        if !body.is_end_stream() {
            tokio::spawn(finish(body, service.timeout));
        }
        let copied = |name: &HeaderName| {
            let name = name.clone();
            head.headers.get_all(&name).iter().cloned().map(move |value| (name.clone(), value)).collect::<Vec<_>>()
        };
        return Ok(Answer::Pass(service.copy_headers.iter().flat_map(copied).collect()));
    }
    if !is_refusal(head.status, &head.headers) {
        return Err(format!("it answered {}", head.status.as_u16()));
    }
    let body = match Limited::new(body, LONGEST_BODY).collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => Bytes::new(),
        Err(error) => return Err(format!("its body: {error}")),
    };
    Ok(Answer::Refusal(head.status, head.headers, body))
}

/// Whether an answer is meant for the client: it has to show something else, or is sent somewhere.
fn is_refusal(status: StatusCode, fields: &HeaderMap) -> bool {
    (status.is_client_error() && !ABOUT_US.contains(&status))
        || (matches!(status.as_u16(), 301..=303 | 307 | 308) && fields.contains_key(header::LOCATION))
}

/// Reads the rest of an answer that needs no more reading, so that its connection can be used again.
async fn finish(body: Incoming, patience: Duration) {
    let _ = timeout(patience, Limited::new(body, LONGEST_BODY).collect()).await;
}

/// An error with its causes, which hyper keeps to itself.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_refusal_is_no_answer_for_a_client() {
        let none = HeaderMap::new();
        let there = HeaderMap::from_iter([(header::LOCATION, HeaderValue::from_static("/login"))]);
        let is = |status: u16, fields| is_refusal(StatusCode::from_u16(status).expect("a status"), fields);
        for status in [400, 401, 403, 404, 429, 499] {
            assert!(is(status, &none), "{status}");
        }
        for status in [301, 302, 303, 307, 308] {
            assert!(is(status, &there) && !is(status, &none), "{status}");
        }
        for status in [405, 407, 408, 421, 426] {
            assert!(!is(status, &none), "{status}");
        }
        for status in [100, 101, 300, 304, 305, 306, 399, 500, 502, 503, 599, 600, 999] {
            assert!(!is(status, &there), "{status}");
        }
    }
}

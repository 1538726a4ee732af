//! The one table from a reason to an answer: status, body and `Proxy-Status` (RFC 9209). The log has the cause; the
//! client gets the reason's word and no more.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode, Version, header};
use pingora_core::Result;
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::{
    ctx::{Afterwards, RequestCtx},
    downstream::Downstream,
    guard,
};
pub(super) use crate::policy::headers::X_REQUEST_ID;
use crate::types::{Reason, Refusal};

/// `Proxy-Status` (RFC 9209).
pub const PROXY_STATUS: HeaderName = HeaderName::from_static("proxy-status");

/// What `Allow` says. Others are passed on too, but these are what everybody knows.
pub(super) const METHODS: &str = "GET, HEAD, POST, PUT, DELETE, PATCH, OPTIONS";

/// The status a client gets; `None` where there is no client left to get one.
pub(super) fn status(reason: Reason) -> Option<StatusCode> {
    Some(match reason {
        Reason::ClientAborted | Reason::TooSlow => return None,
        Reason::AmbiguousFraming | Reason::AmbiguousPath | Reason::BadRequest | Reason::PlainHttp => {
            StatusCode::BAD_REQUEST
        }
        Reason::Unauthorized => StatusCode::UNAUTHORIZED,
        Reason::Denied => StatusCode::FORBIDDEN,
        Reason::NoRoute => StatusCode::NOT_FOUND,
        Reason::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
        Reason::ClientTimeout | Reason::HeaderTimeout => StatusCode::REQUEST_TIMEOUT,
        Reason::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Reason::ProtocolUnknown => StatusCode::NOT_IMPLEMENTED,
        Reason::UriTooLong => StatusCode::URI_TOO_LONG,
        Reason::HeaderTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
        Reason::RateLimited | Reason::TooManyConcurrent => StatusCode::TOO_MANY_REQUESTS,
        Reason::AuthUnavailable | Reason::NoBackend => StatusCode::SERVICE_UNAVAILABLE,
        Reason::ConnectTimeout
        | Reason::FirstByteTimeout
        | Reason::ReadTimeout
        | Reason::TlsHandshakeTimeout
        | Reason::TotalTimeout
        | Reason::WriteTimeout => StatusCode::GATEWAY_TIMEOUT,
        Reason::BadResponse
        | Reason::ConnectFailed
        | Reason::ConnectRefused
        | Reason::DnsFailure
        | Reason::ResetBeforeHeaders
        | Reason::ResponseTruncated
        | Reason::TlsExpired
        | Reason::TlsFailed
        | Reason::TlsUntrusted
        | Reason::TlsWrongName
        | Reason::UpgradeFailed => StatusCode::BAD_GATEWAY,
        Reason::HttpsRedirect => StatusCode::PERMANENT_REDIRECT,
        Reason::Redirect => StatusCode::FOUND,
        Reason::Ok | Reason::Respond => StatusCode::OK,
        Reason::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    })
}

/// Answers a request that failed. Returns the status, or 0 where nobody could be answered.
pub(super) async fn answer(session: &mut Session, ctx: &RequestCtx, reason: Reason) -> u16 {
    let Some((head, body)) = after(session, ctx, reason) else { return 0 };
    let status = head.status;
    match send(session, head, body).await {
        Ok(()) => {
            answered(session.get_keepalive().is_some(), ctx);
            status.as_u16()
        }
        Err(error) => {
            log::debug!("answering {status}: {error}");
            0
        }
    }
}

/// A request that failed was answered; `again`: its connection may serve another one.
pub(super) fn answered(again: bool, ctx: &RequestCtx) {
    if let Some(info) = ctx.info() {
        info.set_afterwards(if again { Afterwards::NextRequest } else { Afterwards::Linger });
    }
}

/// What a request that failed is answered; `None` where nobody can be.
pub(super) fn after(client: &mut impl Downstream, ctx: &RequestCtx, reason: Reason) -> Option<(ResponseHeader, Bytes)> {
    let status = status(reason)?;
    if client.is_answered() {
        return None;
    }
    let broken = ctx.info().is_some_and(|info| info.fault().is_some());
    if client.is_upgrade() || !client.is_body_done() || broken || status == StatusCode::BAD_REQUEST {
        // What is left of the request is not read; the next one could not be told from it. Or its client is not to be trusted with more.
        client.no_next_request();
    }
    let answer = failure(ctx, status, reason).and_then(|(head, body)| Ok((with_rate(ctx, head)?, body)));
    answer.inspect_err(|error| log::error!("cannot make the answer {status}: {error}")).ok()
}

/// What rate limits say of a request that came within them, or did not.
pub(super) fn with_rate(ctx: &RequestCtx, mut head: ResponseHeader) -> Result<ResponseHeader> {
    for (name, value) in guard::rate_fields(ctx).into_iter().flatten() {
        head.append_header(name, value.clone())?;
    }
    Ok(head)
}

/// An answer for a failure.
pub(super) fn failure(ctx: &RequestCtx, status: StatusCode, reason: Reason) -> Result<(ResponseHeader, Bytes)> {
    let mut head = ResponseHeader::build(status, Some(8))?;
    if let Some(value) = proxy_status(reason) {
        head.insert_header(PROXY_STATUS, value)?;
    }
    if reason == Reason::MethodNotAllowed {
        head.insert_header(header::ALLOW, METHODS)?;
    }
    head.insert_header(header::CACHE_CONTROL, "no-store")?;
    if let Some(id) = &ctx.request_id {
        head.insert_header(X_REQUEST_ID, id.to_value())?;
    }
    head.insert_header(header::CONTENT_TYPE, "text/plain; charset=utf-8")?;
    Ok((head, Bytes::from(body(status))))
}

/// Sends an answer of our own.
pub(super) async fn send(session: &mut Session, mut head: ResponseHeader, body: Bytes) -> Result<()> {
    let bodiless = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED | StatusCode::RESET_CONTENT);
    if !bodiless {
        head.insert_header(header::CONTENT_LENGTH, body.len())?;
    }
    let empty = bodiless || body.is_empty() || session.req_header().method == http::Method::HEAD;
    session.write_response_header(Box::new(head), empty).await?;
    if !empty {
        session.write_response_body(Some(body), true).await?;
    } else if session.req_header().version == Version::HTTP_2 {
        // After a failure Pingora does not end the stream, and so would reset it: to HEAD, the answer would look broken.
        session.as_mut().finish_body().await?;
    }
    Ok(())
}

fn body(status: StatusCode) -> String {
    format!("{} {}\n", status.as_u16(), status.canonical_reason().unwrap_or_default())
}

/// What an answer says of its reason, as in `rrlb; error=connection_refused; details="connect_refused"`; `None` where
/// nothing failed.
pub fn proxy_status(reason: Reason) -> Option<HeaderValue> {
    let error = reason.proxy_status_error()?;
    HeaderValue::try_from(format!("rrlb; error={error}; details=\"{}\"", reason.as_str())).ok()
}

/// The whole answer to an HTTP/1 request that came to no phase; `to_head`: to one of HEAD, which has no body (RFC 9110 §9.3.2).
/// `date`: the field.
pub(super) fn raw_answer(reason: Reason, to_head: bool, date: &str) -> Bytes {
    let status = status(reason).unwrap_or(StatusCode::BAD_REQUEST);
    let proxy_status = proxy_status(reason);
    let proxy_status = proxy_status.as_ref().and_then(|value| value.to_str().ok()).unwrap_or("rrlb");
    let allow = if reason == Reason::MethodNotAllowed { format!("Allow: {METHODS}\r\n") } else { String::new() };
    let mut answer = raw(status, proxy_status, &allow, date);
    if to_head {
        answer.truncate(answer.len() - body(status).len());
    }
    answer
}

/// The whole answer to a client whose connection is one too many; `date`: the field.
pub(super) fn one_too_many(cause: Refusal, date: &str) -> Bytes {
    let proxy_status = format!("rrlb; error=http_request_denied; details=\"{}\"", cause.as_str());
    raw(StatusCode::TOO_MANY_REQUESTS, &proxy_status, "", date)
}

fn raw(status: StatusCode, proxy_status: &str, allow: &str, date: &str) -> Bytes {
    let body = body(status);
    Bytes::from(format!(
        "HTTP/1.1 {} {}\r\n{date}Proxy-Status: {proxy_status}\r\n{allow}Cache-Control: no-store\r\n\
         Content-Type: text/plain; charset=utf-8\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        status.as_u16(),
        status.canonical_reason().unwrap_or_default(),
        body.len(),
    ))
}

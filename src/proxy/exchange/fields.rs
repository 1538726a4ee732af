//! Heads of answers, and what comes behind bodies, as HTTP/2 has them: a backend's over HTTP/1.1, and our own.

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, Version, header};
use pingora_http::ResponseHeader;
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    super::{ctx::RequestCtx, edit, kit::Kit},
    answer::{Body, Head},
    attempt::Attempt,
};
use crate::policy::{
    fields::Fields as _,
    framing::{Border, decimal},
    rewrite::{AnswerRewrite, Rewrite as _},
    trailers,
};

/// An interim answer.
pub(super) fn interim(attempt: &Attempt<impl AsyncRead + AsyncWrite + Unpin>, head: &Head) -> Response<()> {
    let rewrite = AnswerRewrite { framing: false, ..AnswerRewrite::INTERIM };
    response(head.status, rewrite.collect(&attempt.head()))
}

/// What tells a client to send its body (RFC 9110 §15.2.1).
pub(super) fn go_on() -> Response<()> {
    response(StatusCode::CONTINUE, HeaderMap::new())
}

/// The head of a backend's answer.
pub(super) fn answer(
    attempt: &Attempt<impl AsyncRead + AsyncWrite + Unpin>,
    head: &Head,
    kit: &Kit,
    ctx: &RequestCtx,
) -> Response<()> {
    let fields = attempt.head();
    let rewrite = edit::answer_rewrite(Version::HTTP_2, head.version, false, ctx);
    let trailers = head.body == Body::Bordered(Border::CHUNKED);
    let mut map = AnswerRewrite { trailers, ..rewrite }.collect(&fields);
    let edits = ctx.route().map(|route| &route.response_headers);
    let set = edits.is_some_and(|edits| edits.set.iter().any(|(name, _)| *name == header::DATE));
    if !set && !fields.has(&header::DATE) && !map.contains_key(header::DATE) {
        map.insert(header::DATE, kit.date_value());
    }
    if !head.is_bodiless()
        && let Some(length) = fields.first(&header::CONTENT_LENGTH)
        && let Ok(length) = HeaderValue::from_bytes(decimal(length.trim_ascii()))
    {
        map.insert(header::CONTENT_LENGTH, length);
    }
    response(head.status, map)
}

/// An answer of our own, and its body; to HEAD, without it.
pub(super) fn ours(head: ResponseHeader, body: Bytes, to_head: bool, kit: &Kit) -> (Response<()>, Bytes) {
    let status = head.status;
    let mut map = http::response::Parts::from(head).headers;
    map.insert(header::DATE, kit.date_value());
    let bodiless = matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED | StatusCode::RESET_CONTENT);
    if !bodiless {
        map.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
    }
    (response(status, map), if bodiless || to_head { Bytes::new() } else { body })
}

/// The fields after a body that go on, of a trailer section as HTTP/1.1 has it.
pub(super) fn after_body(section: &[u8], ctx: &RequestCtx) -> HeaderMap {
    let edits = ctx.route().map(|route| &route.response_headers);
    let mut map = HeaderMap::new();
    for (name, value) in trailers::fields(section) {
        if edits.is_some_and(|edits| edits.replaces(name)) {
            continue;
        }
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name), HeaderValue::from_bytes(value)) {
            map.append(name, value);
        }
    }
    map
}

fn response(status: StatusCode, fields: HeaderMap) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = status;
    *response.headers_mut() = fields;
    response
}

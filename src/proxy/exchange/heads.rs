//! Heads of answers as bytes of HTTP/1.1: a backend's, and our own.

use bytes::{BufMut as _, BytesMut};
use http::{StatusCode, Version, header};
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
    pieces::put,
    rewrite::{AnswerRewrite, Rewrite as _},
    trailers,
};

/// Writes an interim answer.
pub(super) fn interim(attempt: &Attempt<impl AsyncRead + AsyncWrite + Unpin>, head: &Head, out: &mut BytesMut) {
    status_line(head.status, attempt.phrase(), out);
    AnswerRewrite { framing: false, ..AnswerRewrite::INTERIM }.write(&attempt.head(), out);
    out.put_slice(b"\r\n");
}

/// Writes the answer that begins a WebSocket: what its two ends say to each other goes on as it is.
pub(super) fn switch(attempt: &Attempt<impl AsyncRead + AsyncWrite + Unpin>, out: &mut BytesMut) {
    status_line(StatusCode::SWITCHING_PROTOCOLS, attempt.phrase(), out);
    AnswerRewrite { framing: false, ..AnswerRewrite::INTERIM }.write(&attempt.head(), out);
    put([edit::UPGRADE, b"\r\n"], out);
}

/// Writes the head of a backend's answer. `again`: another request may come. An answer that the backend's connection ends
/// goes in chunks.
pub(super) fn answer(
    attempt: &Attempt<impl AsyncRead + AsyncWrite + Unpin>,
    head: &Head,
    kit: &Kit,
    ctx: &RequestCtx,
    again: bool,
    out: &mut BytesMut,
) {
    let fields = attempt.head();
    out.reserve(head.length + 256);
    status_line(head.status, attempt.phrase(), out);
    let chunked = fields.has(&header::TRANSFER_ENCODING);
    let rewrite = edit::answer_rewrite(Version::HTTP_11, head.version, false, ctx);
    // Chunks go on as they came, with the trailers behind them.
    let trailers = chunked && head.body != Body::Bordered(Border::END);
    AnswerRewrite { trailers, ..rewrite }.write(&fields, out);
    let edits = ctx.route().map(|route| &route.response_headers);
    let set = edits.is_some_and(|edits| edits.set.iter().any(|(name, _)| *name == header::DATE));
    if !set && !fields.has(&header::DATE) {
        kit.date(out);
    }
    let connection = connection(again);
    let length = header::CONTENT_LENGTH;
    match fields.first(&length) {
        Some(length) if !head.is_bodiless() => {
            put([connection, b"Content-Length: ", decimal(length.trim_ascii()), b"\r\n\r\n"], out);
        }
        None if !head.is_bodiless()
            && (head.body == Body::UntilClose || (chunked && head.status != StatusCode::NOT_MODIFIED)) =>
        {
            put([connection, b"Transfer-Encoding: chunked\r\n\r\n"], out);
        }
        _ => put([connection, b"\r\n"], out),
    }
}

/// Writes the trailers of an answer that go on, and the empty line that ends its chunks.
pub(super) fn trailers(attempt: &Attempt<impl AsyncRead + AsyncWrite + Unpin>, ctx: &RequestCtx, out: &mut BytesMut) {
    let edits = ctx.route().map(|route| &route.response_headers);
    for (name, value) in trailers::fields(attempt.trailers()) {
        if !edits.is_some_and(|edits| edits.replaces(name)) {
            put([name, b": ", value, b"\r\n"], out);
        }
    }
    out.put_slice(b"\r\n");
}

/// Writes an answer of our own; to HEAD, without its body. Returns the bytes of the body.
pub(super) fn ours(
    head: &ResponseHeader,
    body: &[u8],
    to_head: bool,
    kit: &Kit,
    again: bool,
    out: &mut BytesMut,
) -> u64 {
    let bodiless = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED | StatusCode::RESET_CONTENT);
    status_line(head.status, head.get_reason_phrase().unwrap_or_default().as_bytes(), out);
    head.header_to_h1_wire(out);
    kit.date(out);
    out.put_slice(connection(again));
    if !bodiless {
        out.put_slice(format!("Content-Length: {}\r\n", body.len()).as_bytes());
    }
    out.put_slice(b"\r\n");
    let body = if bodiless || to_head { &[][..] } else { body };
    out.put_slice(body);
    body.len() as u64
}

fn status_line(status: StatusCode, phrase: &[u8], out: &mut BytesMut) {
    put([b"HTTP/1.1 ", status.as_str().as_bytes(), b" ", phrase, b"\r\n"], out);
}

fn connection(again: bool) -> &'static [u8] {
    if again { b"Connection: keep-alive\r\n" } else { b"Connection: close\r\n" }
}

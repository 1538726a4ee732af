//! What must hold of any bytes that a backend sends over HTTP/2: an answer that looks whole to the exchange is one.

use std::{future::poll_fn, pin::pin};

use http::Method;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    answer::{Body, Protocol},
    attempt::{Attempt, Room, Step},
};
use crate::{
    policy::{fields::Fields as _, framing::Border},
    runtime::http2::Connection,
};

const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RESET: u8 = 3;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;

/// The first byte says the request's method, whether lengths may have trailers behind them, and how the rest, a backend's bytes, is cut.
/// What comes to its end has an end of its stream before it, and its body is what came in DATA frames of that stream.
///
/// # Panics
/// If that does not hold.
pub fn h2_answer(input: &[u8]) {
    let Some((flags, bytes)) = input.split_first() else { return };
    let method = if flags & 1 == 0 { Method::GET } else { Method::HEAD };
    let size = usize::from(flags >> 2) * 8 + 1;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    let answer = runtime.block_on(answered(&method, flags & 2 != 0, bytes, size));
    let Some(Whole { status, body }) = answer else { return };
    let (data, ended) = first_stream(bytes);
    assert!(ended, "whole, and its stream has not ended");
    assert!((200..1000).contains(&status));
    if method == Method::HEAD || matches!(status, 204 | 304) {
        assert!(body.is_empty());
    }
    assert!(data == body, "another body than came");
}

/// An answer that came to its end.
struct Whole {
    status: u16,
    body: Vec<u8>,
}

/// What the exchange makes of these bytes; `None` where that is no whole answer.
async fn answered(method: &Method, lengths: bool, bytes: &[u8], size: usize) -> Option<Whole> {
    let (ours, theirs) = tokio::io::duplex(4096);
    let (mut heard, mut says) = tokio::io::split(theirs);
    // Before the request has left nothing may come for it.
    let (begun, begins) = tokio::sync::oneshot::channel();
    let backend = async {
        _ = begins.await;
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        for part in bytes.chunks(size) {
            if says.write_all(part).await.is_err() {
                break;
            }
            // The connection is a task of its own.
            tokio::task::yield_now().await;
        }
        _ = says.shutdown().await;
    };
    let hears = async {
        let mut nothing = [0; 4096];
        while heard.read(&mut nothing).await.is_ok_and(|read| read > 0) {}
    };
    let asks = async {
        let stream = Connection::begin(ours, false).await.ok()?.stream(lengths)?;
        let mut room = Box::<Room>::default();
        room.out.extend_from_slice(format!("{method} / HTTP/1.1\r\nHost: a.test\r\n\r\n").as_bytes());
        let mut attempt = Attempt::new(stream, method.clone(), room, true, false);
        attempt.speaks(Protocol::Http2);
        poll_fn(|cx| attempt.poll_flush(cx)).await;
        _ = begun.send(());
        let (mut status, mut body, mut chunked) = (0, Vec::new(), false);
        let whole = loop {
            match poll_fn(|cx| attempt.poll_answer(cx)).await {
                Ok(Step::Head(head)) => {
                    assert!(!head.is_switch(), "over HTTP/2 there is none");
                    let text = attempt.head();
                    assert!(text.each().all(|(name, _)| !name.is_empty()));
                    chunked = matches!(head.body, Body::Bordered(Border::CHUNKED));
                    status = head.status.as_u16();
                }
                Ok(Step::Body) => {
                    let part = attempt.split_body();
                    assert!(!part.is_empty());
                    body.extend_from_slice(&part);
                }
                Ok(Step::End) => break Some(()),
                Err(_) => break None,
            }
        };
        whole?;
        let body = if chunked { unchunked(&body) } else { body };
        Some(Whole { status, body })
    };
    let mut asks = pin!(asks);
    let mut all = pin!(async { tokio::join!(backend, hears) });
    tokio::select! {
        biased;
        answer = &mut asks => answer,
        // It ends with its connection.
        _ = &mut all => asks.await,
    }
}

/// The data of chunks that are whole but for their trailers.
fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    while let Some(end) = rest.windows(2).position(|end| end == b"\r\n") {
        let digits = std::str::from_utf8(&rest[..end]).expect("digits");
        let length = usize::from_str_radix(digits, 16).expect("a length");
        if length == 0 {
            break;
        }
        data.extend_from_slice(&rest[end + 2..end + 2 + length]);
        assert_eq!(&rest[end + 2 + length..end + 4 + length], b"\r\n");
        rest = &rest[end + 4 + length..];
    }
    data
}

/// The data that came on the first stream, and whether it was ended, as plainly as RFC 9113 can be read.
fn first_stream(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let (mut data, mut last) = (Vec::new(), false);
    while let Some((head, rest)) = bytes.split_at_checked(HEAD) {
        let length = usize::from(head[0]) * 65536 + usize::from(head[1]) * 256 + usize::from(head[2]);
        let (kind, flags) = (head[3], head[4]);
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        let Some((payload, rest)) = rest.split_at_checked(length) else { break };
        bytes = rest;
        if stream != 1 {
            continue;
        }
        match kind {
            DATA => {
                let padding =
                    if flags & PADDED == 0 { 0 } else { 1 + payload.first().map_or(0, |pad| usize::from(*pad)) };
                let from = usize::from(flags & PADDED != 0).min(length);
                data.extend_from_slice(&payload[from..(from + length.saturating_sub(padding)).min(length)]);
                if flags & END_STREAM != 0 {
                    return (data, true);
                }
            }
            HEADERS => {
                last = flags & END_STREAM != 0;
                if last && flags & END_HEADERS != 0 {
                    return (data, true);
                }
            }
            CONTINUATION if last && flags & END_HEADERS != 0 => return (data, true),
            RESET => return (data, false),
            _ => {}
        }
    }
    (data, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PRIORITY: u8 = 32;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).expect("short");
        let stream = u8::from(kind < 4 || kind == CONTINUATION);
        [&[0, 0, length, kind, flags, 0, 0, 0, stream], payload].concat()
    }

    #[test]
    fn whole_answers_are_seen_whole_and_others_are_not() {
        let settings = frame(4, 0, b"");
        let ok = frame(HEADERS, END_HEADERS, b"\x88");
        let counted = frame(HEADERS, END_HEADERS, b"\x88\x0f\x0d\x015");
        let body = |flags| frame(DATA, flags, b"hello");
        let end = frame(HEADERS, END_HEADERS | END_STREAM, b"\x00\x01a\x01b");
        let padded = frame(DATA, PADDED | END_STREAM, b"\x02hello\0\0");
        let priority = frame(HEADERS, END_HEADERS | END_STREAM | PRIORITY, b"\0\0\0\0\0\x88");
        let whole = [
            (vec![&ok, &end], ""),
            (vec![&ok, &body(END_STREAM)][..].to_vec(), "hello"),
            (vec![&ok, &body(0), &end], "hello"),
            (vec![&counted, &body(0), &end], "hello"),
            (vec![&ok, &padded], "hello"),
            (vec![&priority], ""),
        ]
        .map(|(frames, body)| (frames.into_iter().flatten().copied().collect::<Vec<_>>(), body));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        for (frames, body) in &whole {
            for (lengths, size) in [(false, 1), (true, 7), (false, 4096)] {
                let bytes = [&settings[..], frames].concat();
                let seen = runtime.block_on(answered(&Method::GET, lengths, &bytes, size)).expect("whole");
                assert_eq!((seen.status, &seen.body[..]), (200, body.as_bytes()));
                assert_eq!(first_stream(&bytes), (body.as_bytes().to_vec(), true));
                let cut = &bytes[..bytes.len() - 1];
                assert!(runtime.block_on(answered(&Method::GET, lengths, cut, size)).is_none());
            }
        }
    }
}

//! What must hold of any answer of a backend, and of cookies in whatever form a client sends them.

use std::{cell::RefCell, io::Cursor, time::Instant};

use http::{HeaderMap, HeaderValue, StatusCode, Version, header};
use pingora_core::protocols::http::v1::client::HttpSession;
use pingora_http::ResponseHeader;
use tokio::runtime::{Builder, Runtime};

pub use super::exchange::fuzzing::h2_answer;
use super::{RequestCtx, watch};
use crate::policy::{
    fuzzing::fields,
    limit_key::{Asker, LimitKey, Seed, TwoKeys, cookie_value},
    rewrite::join_cookies,
};

thread_local! {
    static RUNTIME: RefCell<Runtime> = RefCell::new(Builder::new_current_thread().enable_all().build().expect("a runtime"));
}

/// An answer has one framing or is refused, and its body is as long as it says. Read by Pingora, as from a backend.
///
/// # Panics
/// If that does not hold.
pub fn answer(input: &[u8]) {
    RUNTIME.with_borrow(|runtime| {
        runtime.block_on(async {
            let mut session = HttpSession::new(Box::new(Cursor::new(input.to_vec())));
            // Interim answers come before the answer itself.
            for _ in 0..4 {
                let Ok(mut head) = session.read_resp_header_parts().await else { return };
                if head.status == StatusCode::SWITCHING_PROTOCOLS {
                    return; // nobody asked for it, so it is refused
                }
                let raw = session.get_headers_raw_bytes();
                if !one_framing(&mut head, &raw) {
                    return;
                }
                if !head.status.is_informational() {
                    let rest = &input[input.len().min(raw.len())..];
                    return body(&mut session, &head, rest).await;
                }
            }
        });
    });
}

/// Whether the answer is passed on; then nobody can see more than one framing in it.
fn one_framing(head: &mut ResponseHeader, raw: &[u8]) -> bool {
    let had_coding = head.headers.contains_key(header::TRANSFER_ENCODING);
    if watch::framing(head, &mut RequestCtx::new(Instant::now())).is_err() {
        return false;
    }
    let all = |name| head.headers.get_all(name).iter().map(HeaderValue::as_bytes).collect::<Vec<_>>();
    let (lengths, codings) = (all(header::CONTENT_LENGTH), all(header::TRANSFER_ENCODING));
    let bodiless = head.status.is_informational() || head.status == StatusCode::NO_CONTENT;
    match (&lengths[..], &codings[..]) {
        ([], []) => {}
        ([length], []) => {
            assert!(!bodiless && !length.is_empty() && length.iter().all(u8::is_ascii_digit));
            assert_eq!(raw_lengths(raw).iter().find(|raw| *raw != length), None, "another length was there");
        }
        ([], [coding]) => {
            assert!(!bodiless && head.status != StatusCode::NOT_MODIFIED && head.version == Version::HTTP_11);
            assert!(coding.eq_ignore_ascii_case(b"chunked"));
        }
        both => panic!("more than one framing: {both:?}"),
    }
    assert!(bodiless || head.status == StatusCode::NOT_MODIFIED || !had_coding || !codings.is_empty());
    assert!(head.headers.values().all(|value| !value.as_bytes().iter().any(|byte| matches!(byte, b'\r' | b'\n' | 0))));
    true
}

/// The lengths in the bytes of a head that is well-formed; none of others.
fn raw_lengths(raw: &[u8]) -> Vec<&[u8]> {
    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut parsed = httparse::Response::new(&mut fields);
    if parsed.parse(raw).is_err() {
        return Vec::new();
    }
    let lengths = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("content-length"));
    lengths.map(|field| field.value.trim_ascii()).collect()
}

/// A body that ends well has the length that the head says.
async fn body(session: &mut HttpSession, head: &ResponseHeader, rest: &[u8]) {
    let mut body = Vec::new();
    let whole = loop {
        match session.read_body_bytes().await {
            Ok(Some(part)) => body.extend_from_slice(&part),
            Ok(None) => break true,
            Err(_) => break false,
        }
    };
    assert!(body.len() <= rest.len(), "more than came");
    let none = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let length = head.headers.get(header::CONTENT_LENGTH).map(|length| {
        let digits = std::str::from_utf8(length.as_bytes()).expect("digits");
        digits.parse::<u64>().unwrap_or(u64::MAX)
    });
    match length {
        _ if none => assert!(body.is_empty()),
        Some(length) if whole => assert_eq!(body.len() as u64, length, "cut off, and nobody is told"),
        Some(length) => assert!((body.len() as u64) < length),
        None => {}
    }
}

/// The input is a cookie's name and fields, a line each. The first cookie of that name is the key, however it is spelled and
/// split.
///
/// # Panics
/// If that does not hold.
pub fn cookies(input: &[u8]) {
    let mut lines = input.splitn(2, |byte| *byte == b'\n');
    let Some(Ok(name)) = lines.next().map(std::str::from_utf8) else { return };
    if name.is_empty() || !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte)) {
        return;
    }
    let fields = fields(lines.next().unwrap_or_default());
    let seed = Seed::new([7; 16]);
    let key = LimitKey::Cookie(name.to_owned());
    let of = |fields: &HeaderMap| key.of(&Asker { client: None, host: None, version: Version::HTTP_11, fields }, &seed);
    let number = of(&fields);

    // A cookie with that one value has the same number; two values have none.
    let values = cookies_of(&fields, name);
    let one = match values.first() {
        Some(value) => {
            let mut alone = HeaderMap::new();
            let whole = [name.as_bytes(), b"=", value].concat();
            alone.insert(header::COOKIE, HeaderValue::from_bytes(&whole).expect("a part of a field's value"));
            of(&alone)
        }
        None => of(&HeaderMap::new()),
    };
    let values: Vec<_> = values.iter().map(|value| cookie_value(value)).collect();
    let several = values.iter().any(|value| Some(value) != values.first());
    assert_eq!(number, if several { Err(TwoKeys) } else { one });

    // HTTP/2 may split the field, HTTP/1.1 does not.
    let mut joined = fields.clone();
    join_cookies(&mut joined);
    assert_eq!(of(&joined), number, "joined");
    assert!(joined.get_all(header::COOKIE).iter().count() <= 1);
    let whole = |version, fields: &HeaderMap| {
        LimitKey::Header(header::COOKIE).of(&Asker { client: None, host: None, version, fields }, &seed)
    };
    assert_eq!(whole(Version::HTTP_2, &fields), whole(Version::HTTP_11, &joined), "joined, as a field");
    let mut split = HeaderMap::new();
    for line in fields.get_all(header::COOKIE) {
        for crumb in line.as_bytes().split(|byte| *byte == b';') {
            split.append(header::COOKIE, HeaderValue::from_bytes(crumb.trim_ascii()).expect("a part of a value"));
        }
    }
    assert_eq!(of(&split), number, "split");

    // What has another name does not matter.
    let mut more = fields.clone();
    more.append(header::COOKIE, HeaderValue::try_from(format!("{name}-2=1; ")).expect("a value"));
    assert_eq!(of(&more), number);
    if values.iter().any(|value| **value != b"another"[..]) {
        let again = HeaderValue::try_from(format!("{name}=another")).expect("a value");
        more.append(header::COOKIE, again);
        assert_eq!(of(&more), Err(TwoKeys), "a second one counts");
    }
}

/// The cookies of that name as RFC 6265 §5.2 would take them apart, with what Python's `strip` takes for blanks in some encoding.
fn cookies_of(fields: &HeaderMap, name: &str) -> Vec<Vec<u8>> {
    let mut values = Vec::new();
    let lines: Vec<&[u8]> = fields.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    let text = lines.join(&b';');
    for pair in text.split(|byte| *byte == b';') {
        let Some(at) = pair.iter().position(|byte| *byte == b'=') else { continue };
        if stripped(&pair[..at]) == name.as_bytes() {
            values.push(stripped(&pair[at + 1..]).to_vec());
        }
    }
    values
}

fn stripped(text: &[u8]) -> &[u8] {
    let is_sign = |byte: &u8| byte.is_ascii() && !byte.is_ascii_whitespace();
    match (text.iter().position(is_sign), text.iter().rposition(is_sign)) {
        (Some(first), Some(last)) => &text[first..=last],
        _ => &[],
    }
}

//! What must hold of any bytes that come as HTTP/1 or HTTP/2: one framing, and Pingora's is the same.

use std::{cell::RefCell, io::Cursor, time::Duration};

use bytes::BytesMut;
use pingora_core::protocols::http::ServerSession;
use tokio::runtime::{Builder, Runtime};

pub use self::lane::lane;
use super::front::{Head, Parsed, one_spelling, parse};
pub use super::h2::fuzzing::h2_frames;
use crate::{
    config::model::ListenerLimits,
    policy::framing::{Border, Taken, is_token},
    types::ByteSize,
};

mod judge;
mod lane;
mod strict;
mod whose;

/// Small ones, that inputs of a few kilobytes reach.
const LIMITS: ListenerLimits = ListenerLimits {
    handshake_timeout: Duration::from_secs(10),
    header_timeout: Duration::from_secs(10),
    idle_timeout: Duration::from_secs(60),
    request_timeout: None,
    max_header_size: ByteSize(1024),
    max_uri_length: ByteSize(256),
    max_headers: 16,
    max_body_size: Some(ByteSize(1_000_000)),
    min_body_rate: Some(ByteSize(1024)),
    requests_per_connection: 10_000,
    connections: None,
    connections_per_ip: None,
};

/// Where a request is cut: everywhere where it is short.
fn cuts(length: usize) -> impl Iterator<Item = usize> {
    let step = length / 256 + 1;
    (0..length).filter(move |cut| *cut < 32 || cut % step == 0 || cut + 8 > length)
}

/// The beginning of a connection has one verdict however it is cut; what is accepted is accepted by httparse, by a plain
/// reader of lines, and by Pingora, all with the same head, the same body and the same end.
///
/// # Panics
/// If that does not hold.
pub fn framing(input: &[u8]) {
    for h2c in [false, true] {
        one_verdict(input, h2c);
    }
    if let Parsed::Request(head) = parse(input, &LIMITS, false) {
        accepted(input, &head);
    }
    for border in [Border::CHUNKED, Border::Counted(input.len() as u64 / 2), Border::Unbounded] {
        one_end(input, border);
    }
    let line = input.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let extension = [&b";"[..], &line[..line.len().min(200)]].concat();
    let mut border = Border::CHUNKED;
    border.advance(&[&b"1"[..], &extension, b"\r\n"].concat());
    assert_eq!(border != Border::Malformed, is_extension(&extension), "{}", extension.escape_ascii());
}

/// `chunk-ext` of RFC 9112 §7.1.1, without white space before the first `;`.
fn is_extension(mut rest: &[u8]) -> bool {
    while let Some(named) = rest.strip_prefix(b";") {
        let Some(unnamed) = after_token(blanks(named)) else { return false };
        rest = unnamed;
        if let Some(value) = blanks(rest).strip_prefix(b"=") {
            let value = blanks(value);
            let after = if value.starts_with(b"\"") { after_quoted(value) } else { after_token(value) };
            let Some(after) = after else { return false };
            rest = after;
        }
        if blanks(rest).starts_with(b";") {
            rest = blanks(rest);
        }
    }
    rest.is_empty()
}

fn blanks(bytes: &[u8]) -> &[u8] {
    let length = bytes.iter().take_while(|byte| matches!(byte, b' ' | b'\t')).count();
    &bytes[length..]
}

fn after_token(bytes: &[u8]) -> Option<&[u8]> {
    let length = bytes.iter().take_while(|byte| is_token(**byte)).count();
    (length > 0).then(|| &bytes[length..])
}

fn after_quoted(bytes: &[u8]) -> Option<&[u8]> {
    let mut at = 1;
    loop {
        match bytes.get(at)? {
            b'"' => return Some(&bytes[at + 1..]),
            b'\\' if bytes.get(at + 1).is_some_and(|byte| !byte.is_ascii_control() || *byte == b'\t') => at += 2,
            b'\\' => return None,
            byte if byte.is_ascii_control() && *byte != b'\t' => return None,
            _ => at += 1,
        }
    }
}

fn one_verdict(input: &[u8], h2c: bool) {
    let whole = parse(input, &LIMITS, h2c);
    for cut in cuts(input.len()) {
        match parse(&input[..cut], &LIMITS, h2c) {
            Parsed::Incomplete => {}
            Parsed::H2Preface => assert_eq!(whole, Parsed::H2Preface, "after {cut} bytes"),
            Parsed::Refused(_) => assert!(matches!(whole, Parsed::Refused(_)), "refused after {cut} bytes, then not"),
            Parsed::Request(Head { head, request, mut border, expects }) => {
                let Taken { all: more, largest, .. } = border.take(&input[request..]);
                if border == Border::Malformed || LIMITS.max_body_size.is_some_and(|most| largest > most.0) {
                    assert!(matches!(whole, Parsed::Refused(_)), "malformed after {cut} bytes, then not");
                } else {
                    let later = Head { head, request: request + more, border, expects };
                    assert_eq!(whole, Parsed::Request(later), "after {cut} bytes");
                }
            }
        }
    }
}

fn one_end(input: &[u8], start: Border) {
    let mut whole = start;
    let taken = whole.advance(input);
    assert!(taken <= input.len() && taken <= start.room());
    for cut in cuts(input.len()) {
        let mut border = start;
        let first = border.advance(&input[..cut]);
        let second = if first == cut { border.advance(&input[cut..]) } else { 0 };
        assert_eq!((border, first + second), (whole, taken), "cut at {cut}");
    }
}

/// A head as a plain reader sees it.
struct Plain<'a> {
    method: &'a str,
    target: &'a str,
    version: &'a str,
    fields: Vec<(String, &'a [u8])>,
}

impl<'a> Plain<'a> {
    fn read(head: &'a [u8]) -> Self {
        let head = head.strip_suffix(b"\r\n\r\n").expect("an empty line at its end");
        let mut lines = Vec::new();
        let mut rest = head;
        while let Some(at) = rest.windows(2).position(|pair| pair == b"\r\n") {
            lines.push(&rest[..at]);
            rest = &rest[at + 2..];
        }
        lines.push(rest);
        let bad = |byte: &u8| matches!(byte, b'\r' | b'\n' | 0);
        assert!(!lines.iter().any(|line| line.is_empty() || line.iter().any(bad)), "a bare CR, LF or NUL");
        let first = std::str::from_utf8(lines[0]).expect("a request line is ASCII");
        let parts: Vec<&str> = first.split(' ').collect();
        let [method, target, version] = parts[..] else { panic!("a request line of {} parts", parts.len()) };
        let field = |line: &&'a [u8]| {
            let colon = line.iter().position(|byte| *byte == b':').expect("a colon");
            let name = std::str::from_utf8(&line[..colon]).expect("a name is ASCII").to_ascii_lowercase();
            assert!(!name.is_empty() && !name.contains(|c: char| c.is_whitespace()), "{name:?}");
            (name, line[colon + 1..].trim_ascii())
        };
        Self { method, target, version, fields: lines[1..].iter().map(field).collect() }
    }

    fn all(&self, name: &str) -> Vec<&'a [u8]> {
        self.fields.iter().filter(|(own, _)| own == name).map(|(_, value)| *value).collect()
    }

    /// The only framing that there may be (RFC 9112 §6.3).
    fn border(&self) -> Border {
        let (lengths, codings) = (self.all("content-length"), self.all("transfer-encoding"));
        match (&lengths[..], &codings[..]) {
            ([], []) => Border::END,
            ([length], []) => {
                assert!(length.iter().all(u8::is_ascii_digit));
                Border::Counted(std::str::from_utf8(length).expect("digits").parse().expect("a number"))
            }
            ([], [coding]) if coding.eq_ignore_ascii_case(b"chunked") && self.version == "HTTP/1.1" => Border::CHUNKED,
            both => panic!("more than one framing, or none that is known: {both:?}"),
        }
    }
}

fn accepted(input: &[u8], head: &Head) {
    let own = &input[..head.head];
    let plain = Plain::read(own);
    assert!(matches!(plain.version, "HTTP/1.0" | "HTTP/1.1"));
    let hosts = plain.all("host").len();
    assert!(hosts == 1 || (hosts == 0 && plain.version == "HTTP/1.0"), "{hosts} hosts");
    assert!(plain.method != "CONNECT" && plain.target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#'));

    let mut fields = [httparse::EMPTY_HEADER; 256];
    let mut parsed = httparse::Request::new(&mut fields);
    assert_eq!(parsed.parse(input), Ok(httparse::Status::Complete(head.head)));
    assert_eq!((parsed.method, parsed.path), (Some(plain.method), Some(plain.target)));
    assert_eq!(parsed.headers.len(), plain.fields.len());
    for (field, (name, value)) in parsed.headers.iter().zip(&plain.fields) {
        assert_eq!((field.name.to_ascii_lowercase().as_str(), field.value.trim_ascii()), (name.as_str(), *value));
    }

    // Without anything of its body it is where the head says.
    let Parsed::Request(bare) = parse(own, &LIMITS, false) else { panic!("not without its body") };
    assert_eq!((bare.head, bare.request), (head.head, head.head));
    match bare.border {
        Border::Unbounded => {
            assert_eq!(plain.border(), Border::END, "an upgrade has no body");
            let asked = plain.all("upgrade");
            assert!(asked.len() == 1 && asked[0].eq_ignore_ascii_case(b"websocket") && plain.version == "HTTP/1.1");
        }
        border => assert_eq!(border, plain.border()),
    }
    let body = if head.border.reached() && bare.border == Border::CHUNKED {
        Some(unchunked(&input[head.head..head.request]))
    } else {
        head.border.reached().then(|| input[head.head..head.request].to_vec())
    };
    let (seen, upgrade) = as_pingora(&input[..head.request], &plain, body.is_some());
    if let Some(body) = body {
        assert_eq!(seen, Some(body), "Pingora sees another body");
    }
    assert!(upgrade || bare.border != Border::Unbounded, "Pingora sees no upgrade");
}

/// The data of a chunked body, every part of which is well-formed.
fn unchunked(body: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut rest = body;
    loop {
        let end = rest.windows(2).position(|pair| pair == b"\r\n").expect("the end of a size");
        let line = std::str::from_utf8(&rest[..end]).unwrap_or_else(|error| {
            std::str::from_utf8(&rest[..error.valid_up_to()]).expect("valid up to there") // an extension
        });
        let size = i64::from_str_radix(line.split(';').next().unwrap_or_default(), 16).expect("a size");
        let size = size.cast_unsigned();
        let extension = rest[..end].iter().position(|byte| *byte == b';').map_or(&b""[..], |at| &rest[at..end]);
        assert!(is_extension(extension), "{}", extension.escape_ascii());
        assert_eq!(httparse::parse_chunk_size(rest), Ok(httparse::Status::Complete((end + 2, size))));
        rest = &rest[end + 2..];
        if size == 0 {
            assert!(rest == b"\r\n" || rest.ends_with(b"\r\n\r\n"), "the end of the body");
            return data;
        }
        let size = usize::try_from(size).expect("it is here");
        data.extend(&rest[..size]);
        rest = rest[size..].strip_prefix(b"\r\n").expect("a line's end after the data");
    }
}

thread_local! {
    static RUNTIME: RefCell<Runtime> = RefCell::new(Builder::new_current_thread().enable_all().build().expect("a runtime"));
}

/// What Pingora makes of a request, given to it as the worker does: its body, if all of it is here, and whether it takes
/// it for one to upgrade.
fn as_pingora(request: &[u8], plain: &Plain<'_>, whole: bool) -> (Option<Vec<u8>>, bool) {
    RUNTIME.with_borrow(|runtime| {
        runtime.block_on(async {
            let mut session = ServerSession::new_http1(Box::new(Cursor::new(Vec::<u8>::new())));
            let mut request = BytesMut::from(request);
            let length = request.len();
            one_spelling(&mut request, length);
            session.set_pipelined_prefix(request);
            let read = session.read_request().await;
            assert!(matches!(read, Ok(true)), "Pingora refuses it: {read:?}");
            let head = session.req_header();
            assert_eq!((head.method.as_str(), head.raw_path()), (plain.method, plain.target.as_bytes()));
            // A target in absolute form says what `Host` is (RFC 9112 §3.2.2).
            let absolute = plain.target.split_once("://").filter(|_| !plain.target.starts_with('/'));
            let added = usize::from(absolute.is_some() && plain.all("host").is_empty());
            assert_eq!(head.headers.len(), plain.fields.len() + added);
            for name in head.headers.keys() {
                let values: Vec<&[u8]> = head.headers.get_all(name).iter().map(|value| value.as_bytes()).collect();
                if name != http::header::HOST {
                    assert_eq!(values, plain.all(name.as_str()), "{name}");
                }
            }
            if let ([host], Some(seen)) = (&plain.all("host")[..], head.headers.get(http::header::HOST)) {
                let authority = absolute.and_then(|(_, rest)| rest.split(['/', '?']).next());
                let host = authority.map_or(*host, str::as_bytes);
                assert!(host.eq_ignore_ascii_case(seen.as_bytes()), "{seen:?}");
            }
            let mut body = whole.then(Vec::new);
            while let Some(body) = &mut body {
                match session.read_request_body().await {
                    Ok(Some(part)) => body.extend_from_slice(&part),
                    Ok(None) => break,
                    Err(error) => panic!("Pingora sees another body: {error}"),
                }
            }
            (body, session.is_upgrade_req())
        })
    })
}

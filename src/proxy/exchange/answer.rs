//! The head of a backend's answer, on its raw bytes: strict, and with one meaning only (RFC 9112 §4, §6.3).

use http::{Method, StatusCode, Version, header};

use crate::policy::{
    fields::{Fields as _, Index, Raw},
    framing::{Border, number},
    head::{self, MAX_FIELDS, StatusLine},
};

/// A longer head is none.
pub(super) const MAX_HEAD: usize = 256 * 1024;

/// What a backend speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Protocol {
    /// HTTP/1.1, or what an older backend makes of it.
    Http1,
    /// HTTP/1.1 in which a WebSocket was asked for.
    WebSocket,
    /// Over HTTP/2, where frames say how long a body is, and a length is a word beside them.
    Http2,
}

/// Where an answer's body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    /// At a border: after so many bytes, perhaps none, or with the last chunk.
    Bordered(Border),
    /// With the connection.
    UntilClose,
}

/// What the head says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Its bytes, the empty line included.
    pub(super) length: usize,
    /// Bytes of its first line, without the line's end.
    pub(super) line: usize,
    pub(super) status: StatusCode,
    /// `HTTP/1.0`, `HTTP/1.1` or `HTTP/2`.
    pub(super) version: Version,
    pub(super) body: Body,
    /// The backend lets the connection be used again after this answer.
    pub(super) persistent: bool,
}

impl Head {
    /// Not the answer yet (RFC 9110 §15.2).
    pub(super) fn is_interim(&self) -> bool {
        self.status.is_informational() && !self.is_switch()
    }

    /// The answer to an upgrade that was accepted: what comes behind it is no HTTP.
    pub(super) fn is_switch(&self) -> bool {
        self.status == StatusCode::SWITCHING_PROTOCOLS
    }

    /// Whether the answer is without a body, so that its fields speak of none.
    pub(super) fn is_bodiless(&self) -> bool {
        self.is_interim() || self.status == StatusCode::NO_CONTENT
    }
}

/// Reads the head at the beginning of `bytes`, the answer to a request of `method`; `None` while it is not whole. Its fields are
/// in `index` then.
///
/// # Errors
/// It is none, or where the answer ends is not beyond doubt; says why.
pub(super) fn parse(
    bytes: &[u8],
    method: &Method,
    protocol: Protocol,
    index: &mut Index,
) -> Result<Option<Head>, &'static str> {
    let (line, length, version) = match head::answer(bytes, index) {
        Some((line, length)) if length <= MAX_HEAD => (line, length, Version::HTTP_11),
        _ => match parse_any(bytes, index)? {
            Some(parsed) => parsed,
            None => return Ok(None),
        },
    };
    let status = StatusCode::from_u16(line.status).map_err(|_| "the answer has no status")?;
    let version = if version == Version::HTTP_11 && protocol == Protocol::Http2 { Version::HTTP_2 } else { version };
    let line = line.length;
    let fields = Raw::new(&bytes[..length], index);
    if status == StatusCode::SWITCHING_PROTOCOLS {
        switching(&fields, version, protocol == Protocol::WebSocket)?;
        return Ok(Some(Head { length, line, status, version, body: Body::UntilClose, persistent: false }));
    }
    let body = framing(&fields, status, version, method)?;
    let says = |token: &str| says(&fields, token);
    let persistent = !matches!(body, Body::UntilClose)
        && if version == Version::HTTP_10 { says("keep-alive") && !says("close") } else { !says("close") };
    Ok(Some(Head { length, line, status, version, body, persistent }))
}

/// A head however it is written: its first line, how long it is, and its version.
fn parse_any(bytes: &[u8], index: &mut Index) -> Result<Option<(StatusLine, usize, Version)>, &'static str> {
    let mut fields = [const { std::mem::MaybeUninit::uninit() }; MAX_FIELDS];
    let mut answer = httparse::Response::new(&mut []);
    let parsed = httparse::ParserConfig::default().parse_response_with_uninit_headers(&mut answer, bytes, &mut fields);
    let length = match parsed {
        Ok(httparse::Status::Complete(length)) if length <= MAX_HEAD => length,
        Ok(httparse::Status::Partial) if bytes.len() <= MAX_HEAD => return Ok(None),
        Ok(_) | Err(httparse::Error::TooManyHeaders) => return Err("the answer's head is too long"),
        Err(_) => return Err("the answer's head is none"),
    };
    let head = &bytes[..length];
    if !strict_lines(head, answer.headers) {
        return Err("a line of the answer's head does not end in CRLF");
    }
    index.fill(head, answer.headers);
    let line = head.iter().position(|byte| *byte == b'\r').unwrap_or_default();
    let status = answer.code.ok_or("the answer has no status")?;
    let version = if answer.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    Ok(Some((StatusLine { status, length: line }, length, version)))
}

/// Whether `Connection` names `token`.
fn says(fields: &Raw<'_>, token: &str) -> bool {
    let connection = header::CONNECTION;
    let mut items = fields.all(&connection).flat_map(|value| value.split(|byte| *byte == b','));
    items.any(|item| item.trim_ascii().eq_ignore_ascii_case(token.as_bytes()))
}

/// Whether 101 begins a WebSocket that was asked for (RFC 6455 §4.1, RFC 9110 §7.8). Who else reads its answer may see another
/// protocol in it, or another answer behind it.
fn switching(fields: &Raw<'_>, version: Version, upgrade: bool) -> Result<(), &'static str> {
    if !upgrade {
        return Err("101 without a request to upgrade");
    }
    if version == Version::HTTP_10 {
        return Err("101 in HTTP/1.0");
    }
    if fields.has(&header::CONTENT_LENGTH) || fields.has(&header::TRANSFER_ENCODING) {
        return Err("101 with a length or a transfer coding");
    }
    let name = header::UPGRADE;
    let mut protocols = fields.all(&name);
    let is_websocket = |protocol: &[u8]| protocol.trim_ascii().eq_ignore_ascii_case(b"websocket");
    if !protocols.next().is_some_and(is_websocket) || protocols.next().is_some() {
        return Err("101 for another protocol than was asked for");
    }
    if says(fields, "upgrade") { Ok(()) } else { Err("101 that does not name its upgrade") }
}

/// Whether every line ends in CRLF: the parser takes a bare LF as well, which others do not.
fn strict_lines(head: &[u8], fields: &[httparse::Header<'_>]) -> bool {
    let start = head.as_ptr().addr();
    let after_crlf = |field: &httparse::Header<'_>| {
        let at = field.name.as_ptr().addr().wrapping_sub(start);
        at >= 2 && head.get(at - 2..at) == Some(b"\r\n")
    };
    head.ends_with(b"\r\n\r\n") && !head.starts_with(b"\r") && !head.starts_with(b"\n") && fields.iter().all(after_crlf)
}

fn framing(fields: &Raw<'_>, status: StatusCode, version: Version, method: &Method) -> Result<Body, &'static str> {
    const NONE: Body = Body::Bordered(Border::END);
    if status.is_informational() || status == StatusCode::NO_CONTENT {
        // They have no body, so whatever they say of one means nothing (RFC 9112 §6.3).
        return Ok(NONE);
    }
    let chunked = chunked(fields, version)?;
    let length = length(fields)?.filter(|_| !(chunked && version == Version::HTTP_2));
    if chunked && length.is_some() {
        return Err("a length and a transfer coding");
    }
    if *method == Method::HEAD || status == StatusCode::NOT_MODIFIED {
        return Ok(NONE);
    }
    Ok(match length {
        Some(length) => Body::Bordered(Border::Counted(length)),
        None if chunked => Body::Bordered(Border::CHUNKED),
        None => Body::UntilClose,
    })
}

fn chunked(fields: &Raw<'_>, version: Version) -> Result<bool, &'static str> {
    let name = header::TRANSFER_ENCODING;
    let mut codings = fields.all(&name);
    let Some(coding) = codings.next() else { return Ok(false) };
    if codings.next().is_some() || !coding.trim_ascii().eq_ignore_ascii_case(b"chunked") {
        return Err("a transfer coding other than chunked");
    }
    if version == Version::HTTP_10 { Err("a transfer coding in HTTP/1.0") } else { Ok(true) }
}

fn length(fields: &Raw<'_>) -> Result<Option<u64>, &'static str> {
    let name = header::CONTENT_LENGTH;
    let mut lengths = fields.all(&name);
    let Some(first) = lengths.next() else { return Ok(None) };
    let digits = first.trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err("a length that is no number");
    }
    if lengths.any(|length| length.trim_ascii() != digits) {
        return Err("several lengths");
    }
    number(digits).map(Some).ok_or("a length that is too large")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(head: &str) -> Result<Option<Head>, &'static str> {
        parse(head.as_bytes(), &Method::GET, Protocol::Http1, &mut Index::default())
    }

    fn body(head: &str, method: &Method) -> Body {
        parse(head.as_bytes(), method, Protocol::Http1, &mut Index::default()).expect("good").expect("whole").body
    }

    #[test]
    fn a_body_ends_where_its_framing_says() {
        let counted = |length| Body::Bordered(Border::Counted(length));
        for (head, expected) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", counted(5)),
            ("HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n", counted(5)),
            ("HTTP/1.1 200\r\ntransfer-encoding: Chunked\r\n\r\n", Body::Bordered(Border::CHUNKED)),
            ("HTTP/1.1 200 OK\r\n\r\n", Body::UntilClose),
            ("HTTP/1.0 200 OK\r\n\r\n", Body::UntilClose),
            ("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n", counted(0)),
            ("HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", counted(0)),
            ("HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n", counted(0)),
        ] {
            assert_eq!(body(head, &Method::GET), expected, "{head}");
        }
        assert_eq!(body("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", &Method::HEAD), counted(0));
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused() {
        let long = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "x".repeat(MAX_HEAD));
        let many = format!("HTTP/1.1 200 OK\r\n{}\r\n", "X: y\r\n".repeat(MAX_FIELDS + 1));
        for head in [
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: \r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 9223372036854775808\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: y\n\r\n",
            "HTTP/1.1 200 OK\nX: y\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX : y\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: y\r\n folded\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: \0\r\n\r\n",
            "HTTP/1.1 200 OK\r\nX: a\rb\r\n\r\n",
            "HTTP/1.1 200 OK\r\n: y\r\n\r\n",
            "\r\nHTTP/1.1 200 OK\r\n\r\n",
            "HTTP/2.0 200 OK\r\n\r\n",
            "HTTP/1.1 099 OK\r\n\r\n",
            "HTTP/1.1 20 OK\r\n\r\n",
            "<html>\r\n\r\n",
            &long,
            &many,
        ] {
            assert!(read(head).is_err(), "{head:.120}");
        }
    }

    #[test]
    fn a_connection_is_kept_where_the_backend_lets_it() {
        for (head, kept) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", true),
            ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x, Close\r\n\r\n", false),
            ("HTTP/1.1 200 OK\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", false),
            ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n", true),
        ] {
            assert_eq!(read(head).expect("good").expect("whole").persistent, kept, "{head}");
        }
    }

    #[test]
    fn a_switch_of_protocols_is_to_what_was_asked_for_or_none() {
        let switched = |head: &str, upgrade| {
            let protocol = if upgrade { Protocol::WebSocket } else { Protocol::Http1 };
            parse(head.as_bytes(), &Method::GET, protocol, &mut Index::default())
        };
        for good in [
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            "HTTP/1.1 101 \r\nconnection: keep-alive, uPGRADE\r\nupgrade:  WebSocket \r\n\r\n",
        ] {
            let head = switched(good, true).expect("good").expect("whole");
            assert_eq!((head.body, head.persistent), (Body::UntilClose, false), "{good}");
            assert!(head.is_switch() && !head.is_interim());
            assert_eq!(switched(good, false), Err("101 without a request to upgrade"));
        }
        for bad in [
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: close\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\n",
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket, h2c\r\nConnection: Upgrade\r\n\r\n",
            "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
            "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 0\r\n\r\n",
            "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 101 X\r\nUpgrade: websocket\nConnection: Upgrade\r\n\r\n",
            "HTTP/1.1 101 X\r\nUpgrade:\r\n websocket\r\nConnection: Upgrade\r\n\r\n",
            "HTTP/1.0 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
        ] {
            assert!(switched(bad, true).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_head_is_read_whole_or_not_at_all(cut in 0usize..60) {
            let head = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nServer: x\r\n\r\n";
            let part = &head[..cut.min(head.len())];
            let read = read(part).expect("no fault in it");
            prop_assert_eq!(read.is_some(), part.len() == head.len());
        }

        #[test]
        fn no_bytes_are_a_fault_of_ours(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&bytes, &Method::GET, Protocol::Http1, &mut Index::default());
            let _ = parse(&bytes, &Method::GET, Protocol::WebSocket, &mut Index::default());
        }
    }
}

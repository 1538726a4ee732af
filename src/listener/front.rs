//! Reads the head of each HTTP/1 request before Pingora does: whole or not at all, within the listener's limits, and
//! with one way only to understand where the request ends (RFC 9112 §3.2, §6.3).

use std::mem::MaybeUninit;

use http::Method;

use super::border::Border;
use crate::{policy::headers::valid_host, types::Reason};

/// How an HTTP/2 connection by prior knowledge begins (RFC 9113 §3.4).
pub(super) const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// As many fields as Pingora takes.
const MAX_FIELDS: usize = 256;

/// What the bytes at the beginning of a request are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// HTTP/2 by prior knowledge.
    H2Preface,
    /// A head, so far without its end.
    Incomplete,
    /// A head of this many bytes, and where its request ends.
    Request(usize, Border),
    /// Not to be served.
    Refused(Box<Refused>),
}

/// A request that is not served, with what is known of it for the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) reason: Reason,
    pub(super) method: String,
    pub(super) target: String,
    pub(super) host: String,
}

/// Reads the head at the beginning of `bytes`, of at most `limit` bytes.
pub(super) fn parse(bytes: &[u8], limit: usize, h2c: bool) -> Parsed {
    if h2c && bytes.starts_with(b"PRI ") {
        return match bytes.len() {
            length if length >= H2_PREFACE.len() && bytes.starts_with(H2_PREFACE) => Parsed::H2Preface,
            length if H2_PREFACE.starts_with(&bytes[..length.min(H2_PREFACE.len())]) => Parsed::Incomplete,
            _ => refuse(Reason::BadRequest, None),
        };
    }
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    match request.parse_with_uninit_headers(bytes, &mut fields) {
        Ok(httparse::Status::Complete(length)) if length <= limit => match inspect(&request) {
            Ok(border) => Parsed::Request(length, border),
            Err(reason) => refuse(reason, Some(&request)),
        },
        Ok(httparse::Status::Complete(_)) => refuse(Reason::HeaderTooLarge, Some(&request)),
        Ok(httparse::Status::Partial) if bytes.len() <= limit => Parsed::Incomplete,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            refuse(Reason::HeaderTooLarge, Some(&request))
        }
        Err(_) => refuse(Reason::BadRequest, Some(&request)),
    }
}

fn refuse(reason: Reason, request: Option<&httparse::Request<'_, '_>>) -> Parsed {
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    let host = request.and_then(|request| request.headers.iter().find(|field| is(field, "host")));
    Parsed::Refused(Box::new(Refused {
        reason,
        method: text(request.and_then(|request| request.method)),
        target: text(request.and_then(|request| request.path)),
        host: host.map(|field| String::from_utf8_lossy(field.value).into_owned()).unwrap_or_default(),
    }))
}

fn is(field: &httparse::Header<'_>, name: &str) -> bool {
    field.name.eq_ignore_ascii_case(name)
}

/// Where the request ends, if that and its host are beyond doubt.
fn inspect(request: &httparse::Request<'_, '_>) -> Result<Border, Reason> {
    let http11 = request.version == Some(1);
    let mut length = None;
    let mut chunked = false;
    let mut host = None;
    let mut upgrade = false;
    let mut connection_upgrade = false;
    for field in request.headers.iter() {
        // Most names are told apart by their length alone.
        match field.name.len() {
            4 if is(field, "host") => {
                let another = host.replace(field.value).is_some();
                if another {
                    return Err(Reason::BadRequest);
                }
            }
            // Pingora passes no other upgrade on, so after any other the connection goes on as it was.
            7 if is(field, "upgrade") => upgrade |= has_token(field.value, b"websocket"),
            10 if is(field, "connection") => connection_upgrade |= has_token(field.value, b"upgrade"),
            14 if is(field, "content-length") => {
                let value = decimal(field.value).ok_or(Reason::AmbiguousFraming)?;
                if length.replace(value).is_some() {
                    return Err(Reason::AmbiguousFraming);
                }
            }
            17 if is(field, "transfer-encoding") => {
                if chunked || !http11 || !field.value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(Reason::AmbiguousFraming);
                }
                chunked = true;
            }
            _ => {}
        }
    }
    match host {
        Some(host) if !std::str::from_utf8(host).is_ok_and(|host| host.is_empty() || valid_host(host)) => {
            return Err(Reason::BadRequest);
        }
        None if http11 => return Err(Reason::BadRequest),
        _ => {}
    }
    if request.method == Some(Method::CONNECT.as_str()) {
        return Err(Reason::MethodNotAllowed);
    }
    if !valid_target(request.method.unwrap_or_default(), request.path.unwrap_or_default(), host.unwrap_or_default()) {
        return Err(Reason::BadRequest);
    }
    match (length, chunked) {
        (Some(_), true) => Err(Reason::AmbiguousFraming),
        (_, true) => Ok(Border::CHUNKED),
        (None | Some(0), false) if upgrade && connection_upgrade && http11 => Ok(Border::Unbounded),
        (length, false) => Ok(Border::Counted(length.unwrap_or(0))),
    }
}

/// Whether the target is in origin form, in absolute form for the same host, or `*` of OPTIONS (RFC 9112 §3.2).
fn valid_target(method: &str, target: &str, host: &[u8]) -> bool {
    let usual = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~?=&%+,:;@!$'()*|".contains(&byte);
    let Some(first) = target.bytes().next() else { return false };
    if first == b'/' {
        // Pingora's parser decides about the rest; it is only asked where there is doubt.
        return target.bytes().all(usual) || target.parse::<http::Uri>().is_ok();
    }
    if target == "*" {
        return method == Method::OPTIONS.as_str();
    }
    let Ok(uri) = target.parse::<http::Uri>() else { return false };
    let same_host = uri.authority().is_some_and(|authority| authority.as_str().as_bytes().eq_ignore_ascii_case(host));
    matches!(uri.scheme_str(), Some("http" | "https")) && same_host
}

fn has_token(list: &[u8], token: &[u8]) -> bool {
    list.split(|byte| *byte == b',').any(|part| part.trim_ascii().eq_ignore_ascii_case(token))
}

/// A length of digits only (RFC 9110 §8.6); `None` for signs, blanks inside, lists, or more than fits.
fn decimal(value: &[u8]) -> Option<u64> {
    let digits = value.trim_ascii();
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(digits).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(head: &str) -> Option<Reason> {
        match parse(head.as_bytes(), 4096, true) {
            Parsed::Refused(refused) => Some(refused.reason),
            _ => None,
        }
    }

    #[test]
    fn a_request_ends_where_its_framing_says() {
        let head = "POST /a HTTP/1.1\r\nHost: x\r\n";
        for (fields, border) in [
            ("\r\n", Border::END),
            ("Content-Length: 12\r\n\r\n", Border::Counted(12)),
            ("transfer-encoding: Chunked\r\n\r\n", Border::CHUNKED),
            ("Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\r\n", Border::Unbounded),
            ("Upgrade: websocket\r\n\r\n", Border::END),
            ("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n", Border::END),
        ] {
            let text = format!("{head}{fields}");
            assert_eq!(parse(text.as_bytes(), 4096, false), Parsed::Request(text.len(), border), "{text}");
        }
    }

    #[test]
    fn ambiguous_framing_is_refused() {
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked",
            "Content-Length: 5\r\nContent-Length: 6",
            "Content-Length: 5\r\nContent-Length: 5",
            "Content-Length: 5, 5",
            "Content-Length: +5",
            "Content-Length: -1",
            "Content-Length: 99999999999999999999",
            "Content-Length:",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
            "Transfer-Encoding: gzip, chunked",
            "Transfer-Encoding: identity",
            "Transfer-Encoding: xchunked",
        ] {
            let head = format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n");
            assert_eq!(reason(&head), Some(Reason::AmbiguousFraming), "{head}");
        }
        assert_eq!(reason("POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n"), Some(Reason::AmbiguousFraming));
    }

    #[test]
    fn a_bad_head_is_refused() {
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
            "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
            "GET /\r\n\r\n",
            "\0GET / HTTP/1.1\r\nHost: a\r\n\r\n",
            "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
            "GET admin/x HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET ?x=1 HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET /<> HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
            "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        ] {
            assert_eq!(reason(head), Some(Reason::BadRequest), "{head:?}");
        }
        assert_eq!(reason("CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"), Some(Reason::MethodNotAllowed));
        let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(5000));
        assert_eq!(reason(&long), Some(Reason::HeaderTooLarge));
        assert_eq!(reason(&long[..4200]), Some(Reason::HeaderTooLarge));
    }

    #[test]
    fn http2_by_prior_knowledge_is_seen_at_any_split() {
        for split in 4..H2_PREFACE.len() {
            assert_eq!(parse(&H2_PREFACE[..split], 4096, true), Parsed::Incomplete);
        }
        assert_eq!(parse(H2_PREFACE, 4096, true), Parsed::H2Preface);
        assert!(matches!(parse(H2_PREFACE, 4096, false), Parsed::Refused(_)));
    }
}

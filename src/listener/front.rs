//! Reads the head of each HTTP/1 request before Pingora does: whole or not at all, within the listener's limits, and
//! with one way only to understand where the request ends (RFC 9112 §3.2, §6.3).

use std::{mem::MaybeUninit, ops::Range};

use bytes::BytesMut;
use http::Method;

use crate::{
    config::model::ListenerLimits,
    policy::{
        fields::{Fields as _, Index, Names, Raw},
        framing::{self, Border, is_token},
        head::{self, MAX_FIELDS, is_usual},
        headers::{is_websocket, same_host, valid_host},
        path::is_uri_path,
    },
    types::Reason,
};

/// How an HTTP/2 connection by prior knowledge begins (RFC 9113 §3.4).
pub(super) const H2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// As long a name of a field as the http crate takes.
const MAX_NAME: usize = 65_535;
/// As many names as Pingora takes in all `Connection` fields.
const MAX_NOMINATIONS: usize = 9;

/// What the bytes at the beginning of a request are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// HTTP/2 by prior knowledge.
    H2Preface,
    /// A head, so far without its end.
    Incomplete,
    /// A head.
    Request(Head),
    /// Not to be served.
    Refused(Box<Refused>),
}

/// A head that has been read wholly.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Head {
    /// Bytes of it, and of its request as far as they are here.
    pub(super) head: usize,
    pub(super) request: usize,
    /// What is missing of its request.
    pub(super) border: Border,
    /// The client may wait to be asked for its body (`Expect: 100-continue`, which HTTP/1.0 does not know, RFC 9110 §10.1.1).
    pub(super) expects: bool,
}

/// A request that is not served, with what is known of it for the log.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) reason: Reason,
    pub(super) method: String,
    pub(super) target: String,
    pub(super) host: String,
}

/// As [`read`], where it does not matter where the fields are.
#[cfg(any(test, fuzzing))]
pub(super) fn parse(bytes: &[u8], limits: &ListenerLimits, h2c: bool) -> Parsed {
    read(bytes, limits, h2c, &mut Index::default())
}

/// Reads the head at the beginning of `bytes`, after an empty line that may come before it (RFC 9112 §2.2). What is
/// here of a chunked body is read too: if it is none, nobody hears of the request. Of a request that is accepted `index`
/// says where its fields are. `h2c`: it may be HTTP/2, which only the first bytes of a connection say (RFC 9113 §3.4).
pub(super) fn read(bytes: &[u8], limits: &ListenerLimits, h2c: bool, index: &mut Index) -> Parsed {
    let limit = usize::try_from(limits.max_header_size.0).unwrap_or(usize::MAX);
    let longest = usize::try_from(limits.max_uri_length.0).unwrap_or(usize::MAX);
    if h2c && bytes.starts_with(b"PRI ") {
        return match bytes.len() {
            length if length >= H2_PREFACE.len() && bytes.starts_with(H2_PREFACE) => Parsed::H2Preface,
            length if H2_PREFACE.starts_with(&bytes[..length.min(H2_PREFACE.len())]) => Parsed::Incomplete,
            _ => refuse(Reason::BadRequest, None),
        };
    }
    if matches!(bytes, [b'\n', ..] | [b'\r', _, ..]) {
        // The parser would skip any number of them.
        return refuse(Reason::BadRequest, None);
    }
    if let Some((line, length)) = head::request(bytes, index)
        && length <= limit
        && line.target.len() <= longest
    {
        let request = Asked { method: line.method, http11: true, doubtful: None };
        let (head, rest) = bytes.split_at(length);
        let found = inspect(&request, &Raw::new(head, index), limits);
        return match found.and_then(|found| measure(found, length, rest, limits)) {
            Ok(head) => Parsed::Request(head),
            Err(reason) => Parsed::Refused(Box::new(told(head, reason))),
        };
    }
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let parsed = request.parse_with_uninit_headers(bytes, &mut fields);
    if request.path.is_some_and(|target| target.len() > longest) {
        return refuse(Reason::UriTooLong, Some(&request));
    }
    match parsed {
        Ok(httparse::Status::Complete(length)) if length <= limit => {
            let (head, rest) = bytes.split_at(length);
            index.fill(head, request.headers);
            let method = request.method.unwrap_or_default().as_bytes();
            let asked =
                Asked { method, http11: request.version == Some(1), doubtful: Some(request.path.unwrap_or_default()) };
            let found = inspect(&asked, &Raw::new(head, index), limits);
            let found = found.and_then(|found| strict_lines(head, &request).then_some(found).ok_or(Reason::BadRequest));
            let head = found.and_then(|found| measure(found, length, rest, limits));
            head.map_or_else(|reason| refuse(reason, Some(&request)), Parsed::Request)
        }
        Ok(httparse::Status::Complete(_)) => refuse(Reason::HeaderTooLarge, Some(&request)),
        Ok(httparse::Status::Partial) if bytes.len() <= limit => Parsed::Incomplete,
        // Nothing but a method, and no method is as long.
        Ok(httparse::Status::Partial) if request.method.is_none() => refuse(Reason::BadRequest, Some(&request)),
        Ok(httparse::Status::Partial)
            if request.path.is_none() && bytes.len() - request.method.map_or(0, str::len) > longest =>
        {
            refuse(Reason::UriTooLong, Some(&request))
        }
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            refuse(Reason::HeaderTooLarge, Some(&request))
        }
        Err(_) => refuse(Reason::BadRequest, Some(&request)),
    }
}

/// What is asked of fields: whom the request is for, where it ends, and what becomes of its connection.
const TELLING: Names = Names::of(&["connection", "content-length", "expect", "host", "transfer-encoding", "upgrade"]);

/// The first line of a request.
struct Asked<'a> {
    method: &'a [u8],
    http11: bool,
    /// The target, where it is not known yet to be a path of [usual](is_usual) characters.
    doubtful: Option<&'a str>,
}

/// The head that is `length` long, with what is here behind it of its request, which ends and may wait as was `found`.
fn measure(
    (mut border, expects): (Border, bool),
    length: usize,
    rest: &[u8],
    limits: &ListenerLimits,
) -> Result<Head, Reason> {
    let body = border.take(rest);
    let head = Head { head: length, request: length + body.all, border, expects };
    match border {
        Border::Malformed => Err(Reason::BadRequest),
        _ if limits.max_body_size.is_some_and(|most| body.largest > most.0) => Err(Reason::BodyTooLarge),
        _ => Ok(head),
    }
}

/// Makes `Host` of an accepted head say what a target in absolute form says (RFC 9112 §3.2.2), and says how long the head
/// is then. They differ in the case of letters and the default port at most, but Pingora compares their bytes; in HTTP/1.0
/// there may be no `Host` yet.
pub(super) fn one_spelling(request: &mut BytesMut, length: usize) -> usize {
    if !request.iter().skip_while(|byte| **byte != b' ').nth(1).is_some_and(u8::is_ascii_alphabetic) {
        return length;
    }
    let Some((place, text)) = request.get(..length).and_then(host_of_target) else { return length };
    let (before, after) = (place.len(), text.len());
    let rest = request.split_off(place.end);
    request.truncate(place.start);
    request.extend_from_slice(text.as_bytes());
    request.extend_from_slice(&rest);
    length - before + after
}

/// What must stand in a head of absolute form, and in place of which bytes, that `Host` is the target's; `None` where it is.
fn host_of_target(head: &[u8]) -> Option<(Range<usize>, String)> {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    request.parse_with_uninit_headers(head, &mut fields).ok()?;
    let uri = request.path?.parse::<http::Uri>().ok()?;
    let authority = uri.authority()?.as_str();
    match request.headers.iter().find(|field| is(field, "host")) {
        Some(field) if field.value == authority.as_bytes() => None,
        Some(field) => {
            let at = field.value.as_ptr().addr().wrapping_sub(head.as_ptr().addr());
            Some((at..at + field.value.len(), authority.to_owned()))
        }
        None => {
            let at = head.windows(2).position(|end| end == b"\r\n")? + 2;
            Some((at..at, format!("Host: {authority}\r\n")))
        }
    }
}

/// Whether every line ends in CRLF. The parser takes a bare LF as well (RFC 9112 §2.2 lets it), which others do not; what
/// else could stand inside a line it has refused. So it is enough to look at what is before each name.
fn strict_lines(head: &[u8], request: &httparse::Request<'_, '_>) -> bool {
    let start = head.as_ptr().addr();
    let after_crlf = |field: &httparse::Header<'_>| {
        let at = field.name.as_ptr().addr().wrapping_sub(start);
        at >= 2 && head.get(at - 2..at) == Some(b"\r\n")
    };
    head.ends_with(b"\r\n\r\n") && request.headers.iter().all(after_crlf)
}

fn refuse(reason: Reason, request: Option<&httparse::Request<'_, '_>>) -> Parsed {
    Parsed::Refused(Box::new(refused(reason, request)))
}

fn refused(reason: Reason, request: Option<&httparse::Request<'_, '_>>) -> Refused {
    let text = |value: Option<&str>| value.unwrap_or_default().to_owned();
    let host = request.and_then(|request| request.headers.iter().find(|field| is(field, "host")));
    Refused {
        reason,
        method: text(request.and_then(|request| request.method)),
        target: text(request.and_then(|request| request.path)),
        host: host.map(|field| String::from_utf8_lossy(field.value).into_owned()).unwrap_or_default(),
    }
}

/// What is known of an accepted head that is refused all the same.
pub(super) fn told(head: &[u8], reason: Reason) -> Refused {
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    _ = request.parse_with_uninit_headers(head, &mut fields);
    refused(reason, Some(&request))
}

fn is(field: &httparse::Header<'_>, name: &str) -> bool {
    field.name.eq_ignore_ascii_case(name)
}

/// Where the request ends, if that and its host are beyond doubt, and whether the client may wait before its body.
fn inspect(request: &Asked<'_>, fields: &Raw<'_>, limits: &ListenerLimits) -> Result<(Border, bool), Reason> {
    if fields.count() > limits.max_headers as usize {
        return Err(Reason::HeaderTooLarge);
    }
    let Asked { method, http11, doubtful } = *request;
    let mut length = None;
    let mut chunked = false;
    let mut host = None;
    let mut upgrade = false;
    let mut nominations = 0;
    let mut expects = false;
    for (name, value) in fields.likely(TELLING) {
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                let another = host.replace(value).is_some();
                if another {
                    return Err(Reason::BadRequest);
                }
            }
            6 if http11 && name.eq_ignore_ascii_case(b"expect") => {
                expects |= value.trim_ascii().eq_ignore_ascii_case(b"100-continue");
            }
            7 if name.eq_ignore_ascii_case(b"upgrade") => upgrade = true,
            10 if name.eq_ignore_ascii_case(b"connection") => {
                nominations += nominated(value).ok_or(Reason::BadRequest)?;
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let value = framing::length(value).ok_or(Reason::AmbiguousFraming)?;
                if length.replace(value).is_some() {
                    return Err(Reason::AmbiguousFraming);
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                if chunked || !http11 || !value.trim_ascii().eq_ignore_ascii_case(b"chunked") {
                    return Err(Reason::AmbiguousFraming);
                }
                chunked = true;
            }
            _ => {}
        }
    }
    if fields.length() > MAX_NAME && fields.each().any(|(name, _)| name.len() > MAX_NAME) {
        return Err(Reason::HeaderTooLarge);
    }
    match host {
        // No URI of ours is without a host (RFC 9110 §4.2.1).
        Some(host) if !valid_host(host) => return Err(Reason::BadRequest),
        None if http11 => return Err(Reason::BadRequest),
        _ => {}
    }
    if nominations > MAX_NOMINATIONS {
        return Err(Reason::BadRequest);
    }
    if method == Method::CONNECT.as_str().as_bytes() {
        return Err(Reason::MethodNotAllowed);
    }
    if doubtful.is_some_and(|target| !valid_target(method, target, host)) {
        return Err(Reason::BadRequest);
    }
    if length.is_some_and(|length| limits.max_body_size.is_some_and(|most| length > most.0)) && !chunked {
        return Err(Reason::BodyTooLarge);
    }
    let border = match (length, chunked) {
        (Some(_), true) => return Err(Reason::AmbiguousFraming),
        (_, true) => Border::CHUNKED,
        // Nobody passes another upgrade on, so after any other the connection goes on as it was.
        (None | Some(0), false) if upgrade && http11 && is_websocket(method, fields) => Border::Unbounded,
        (length, false) => Border::Counted(length.unwrap_or(0)),
    };
    Ok((border, expects))
}

/// Whether the target is in origin form, in absolute form for the same host (or, in HTTP/1.0, for any, where no other is
/// said), or `*` of OPTIONS (RFC 9112 §3.2).
fn valid_target(method: &[u8], target: &str, host: Option<&[u8]>) -> bool {
    let Some(first) = target.bytes().next() else { return false };
    if first == b'/' && target.bytes().all(is_usual) {
        return true;
    }
    if target.bytes().any(|byte| byte == b'#' || !byte.is_ascii_graphic()) {
        // A fragment is the client's own, and a URI is ASCII (RFC 3986 §3.5, §2); the parser would drop the one silently.
        return false;
    }
    if !target.split('?').next().is_some_and(is_uri_path) {
        return false;
    }
    if first == b'/' {
        // Pingora's parser decides about the rest; it is only asked where there is doubt.
        return target.parse::<http::Uri>().is_ok();
    }
    if target == "*" {
        return method == Method::OPTIONS.as_str().as_bytes();
    }
    let Ok(uri) = target.parse::<http::Uri>() else { return false };
    let https = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return false,
    };
    let Some(authority) = uri.authority().map(|authority| authority.as_str()) else { return false };
    match host {
        Some(host) => same_host(https, authority.as_bytes(), host),
        None => valid_host(authority),
    }
}

fn tokens(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    list.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// How many names a `Connection` field has; `None` where one is no name, or of a field that says where the request ends
/// or where it comes from: a proxy that takes it out would send another request than it was sent.
fn nominated(list: &[u8]) -> Option<usize> {
    let kept: [&[u8]; 6] = [
        b"content-length",
        b"host",
        b"transfer-encoding",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-proto",
    ];
    let mut names = 0;
    for name in tokens(list).filter(|name| !name.is_empty()) {
        if !name.iter().all(|byte| is_token(*byte)) || kept.iter().any(|kept| kept.eq_ignore_ascii_case(name)) {
            return None;
        }
        names += 1;
    }
    Some(names)
}

#[cfg(test)]
mod tests;

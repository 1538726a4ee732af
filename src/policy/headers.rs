//! Edits of heads: what an operator asked for, what must never pass a proxy (RFC 9110 §7.6), request ids, and what is a
//! host. Who applies them is not decided here.

use std::net::Ipv6Addr;

use http::{HeaderName, HeaderValue, Method, header};

use super::{fields::Fields, route::LONGEST_HOST};

/// The request's id, in both directions.
pub const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// Edits of a head, applied in the order remove, set, add.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Fields to take out.
    pub remove: Vec<HeaderName>,
    /// Fields to put in place of those of the same name.
    pub set: Vec<(HeaderName, HeaderValue)>,
    /// Fields to put beside those of the same name.
    pub add: Vec<(HeaderName, HeaderValue)>,
}

/// Fields that speak to the next hop only. `Trailer` is not among them: gRPC needs it and it names no connection.
pub const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("http2-settings"),
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// The fields that `Connection` names, as sent, without those of which a sender has no say: framing, `Host` and the
/// forwarding fields (by naming them a client could take them from the backend).
pub fn nominated_by_connection(headers: &impl Fields) -> impl Iterator<Item = &[u8]> {
    headers
        .all(&header::CONNECTION)
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(<[u8]>::trim_ascii)
        .filter(|name| !name.is_empty() && !is_protected(name))
}

fn is_protected(name: &[u8]) -> bool {
    const FORWARDED: &[u8] = b"x-forwarded-";
    [&b"content-length"[..], b"forwarded", b"host", b"via", b"x-real-ip", b"x-request-id"]
        .iter()
        .any(|protected| name.eq_ignore_ascii_case(protected))
        || name.get(..FORWARDED.len()).is_some_and(|head| head.eq_ignore_ascii_case(FORWARDED))
}

/// Whether a backend may take one name for the other: CGI and its heirs make `_` of `-`, and some (lighttpd) of all that is
/// neither a letter nor a digit. Most names differ in their length or in their first letters.
pub fn is_like(name: &[u8], other: &[u8]) -> bool {
    let like = |(one, other): (&u8, &u8)| {
        one.eq_ignore_ascii_case(other) || !(one.is_ascii_alphanumeric() || other.is_ascii_alphanumeric())
    };
    name.len() == other.len() && name.iter().zip(other).all(like)
}

/// Whether a request of HTTP/1.1 asks for a WebSocket and for nothing else (RFC 6455 §4.2.1), the one upgrade that is passed on.
/// One that would take another protocol as well (RFC 9110 §7.8) gets an answer in HTTP, as everybody may give, and so does one
/// with a body, after which the connection may go on as it was.
pub fn is_websocket(method: impl AsRef<[u8]>, headers: &impl Fields) -> bool {
    let (upgrade, connection, length) = (header::UPGRADE, header::CONNECTION, header::CONTENT_LENGTH);
    let mut protocols = headers.all(&upgrade).map(<[u8]>::trim_ascii);
    let mut options = headers.all(&connection).flat_map(|value| value.split(|byte| *byte == b','));
    let empty = |length: &[u8]| length.trim_ascii().iter().all(|digit| *digit == b'0');
    method.as_ref() == Method::GET.as_str().as_bytes()
        && protocols.next().is_some_and(|protocol| protocol.eq_ignore_ascii_case(b"websocket"))
        && protocols.next().is_none()
        && options.any(|option| option.trim_ascii().eq_ignore_ascii_case(b"upgrade"))
        && headers.all(&length).all(empty)
        && !headers.has(&header::TRANSFER_ENCODING)
}

/// Whether a request id from outside may be taken over: 1 to 128 of `A-Z a-z 0-9 . _ - + / = : @`.
pub fn valid_request_id(id: &[u8]) -> bool {
    (1..=128).contains(&id.len()) && id.iter().all(|byte| byte.is_ascii_alphanumeric() || b"._-+/=:@".contains(byte))
}

/// A request id of our own: 32 lower-case hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestId([u8; 32]);

impl RequestId {
    /// Writes `random` out.
    pub fn new(random: u128) -> Self {
        const DIGITS: [[u8; 2]; 256] = {
            let hexadecimal = b"0123456789abcdef";
            let mut digits = [[0; 2]; 256];
            let mut byte = 0;
            while byte < digits.len() {
                digits[byte] = [hexadecimal[byte >> 4], hexadecimal[byte & 0xf]];
                byte += 1;
            }
            digits
        };
        let mut text = [0; 32];
        for (place, byte) in text.as_chunks_mut().0.iter_mut().zip(random.to_be_bytes()) {
            *place = DIGITS[usize::from(byte)];
        }
        Self(text)
    }

    /// The digits.
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The digits.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

/// Whether `text` is `host[:port]` of RFC 3986 §3.2: a name, an IPv4 address or a bracketed IPv6 address, not empty,
/// without user information. Of a name every label has a character (one dot may end it), and none but those that names
/// have: what a registered name may have beside them no host has, and a backend may understand it as something else. Nor is a name
/// longer than routes can compare.
pub fn valid_host(text: impl AsRef<[u8]>) -> bool {
    let text = text.as_ref();
    let port = match text {
        [b'[', rest @ ..] => {
            let (address, rest) = rest.split_at(rest.iter().position(|byte| *byte == b']').unwrap_or(0));
            rest.strip_prefix(b"]").filter(|_| valid_address(address))
        }
        _ => after_name(text).filter(|rest| (1..=LONGEST_HOST).contains(&(text.len() - rest.len()))),
    };
    match port {
        Some([]) => true,
        Some([b':', port @ ..]) => valid_port(port),
        _ => false,
    }
}

fn valid_address(text: &[u8]) -> bool {
    std::str::from_utf8(text).is_ok_and(|text| text.parse::<Ipv6Addr>().is_ok())
}

/// Whether two hosts with or without a port are the same for this scheme: case does not count, nor does the default port
/// (RFC 9110 §4.2.3).
pub fn same_host(https: bool, one: &[u8], other: &[u8]) -> bool {
    let default: &[u8] = if https { b":443" } else { b":80" };
    let named = |host: &'_ [u8]| host.strip_suffix(default).unwrap_or(host).len();
    let (one, other) = (&one[..named(one)], &other[..named(other)]);
    one.eq_ignore_ascii_case(other)
}

/// `*DIGIT`, up to 65535.
fn valid_port(port: &[u8]) -> bool {
    let digit = |digit: u8| digit.is_ascii_digit().then(|| u16::from(digit - b'0'));
    port.iter().try_fold(0_u16, |port, byte| port.checked_mul(10)?.checked_add(digit(*byte)?)).is_some()
}

/// What is behind labels of letters, digits, `-` and `_`, with dots between them: nothing, or what begins with a colon. Encoded parts
/// are left to the router, which refuses them.
fn after_name(text: &[u8]) -> Option<&[u8]> {
    const PLAIN: [bool; 256] = {
        let mut plain = [false; 256];
        let mut byte = 0;
        while byte < plain.len() {
            plain[byte] = (byte as u8).is_ascii_alphanumeric() || byte as u8 == b'-' || byte as u8 == b'_';
            byte += 1;
        }
        plain
    };
    let mut rest = text;
    let mut empty = true;
    loop {
        let end = rest.iter().position(|byte| !PLAIN[usize::from(*byte)]).unwrap_or(rest.len());
        empty &= end == 0;
        (rest, empty) = match rest.split_at(end).1 {
            rest @ ([] | [b':', ..]) => return Some(rest),
            [b'.', rest @ ..] if !empty => (rest, true),
            [b'%', high, low, rest @ ..] if high.is_ascii_hexdigit() && low.is_ascii_hexdigit() => (rest, false),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn connection_names_what_goes_but_not_framing() {
        let mut headers = HeaderMap::new();
        headers.append("connection", HeaderValue::from_static("close, X-One ,, Host, X-Forwarded-For"));
        headers.append("connection", HeaderValue::from_static("x-two,content-length"));
        let names: Vec<_> = nominated_by_connection(&headers).collect();
        assert_eq!(names, [&b"close"[..], b"X-One", b"x-two"]);
    }

    #[test]
    fn names_that_a_backend_may_mix_up_are_alike() {
        let like = |a: &str, b: &str| is_like(a.as_bytes(), b.as_bytes());
        assert!(like("x-user", "X-User") && like("x_user", "x-user") && like("x-user_id", "x_user-id"));
        for other in "!#$%&'*+-.^_`|~".chars() {
            assert!(like(&format!("X{other}User"), "x-user") && like("x-user", &format!("x{other}user")), "{other}");
        }
        assert!(!like("xauser", "x-user") && !like("x0user", "x-user") && !like("x-user-", "x-user"));
        assert!(!like("xuser", "x-user") && !like("x-users", "x-user") && !like("x-usex", "x-user"));
    }

    #[test]
    fn request_ids_are_short_and_plain() {
        assert!(valid_request_id(b"4bf92f35-77b3.4da6_a3ce/929+0e=0:e@4736"));
        assert!(valid_request_id(&[b'a'; 128]));
        for bad in [&b""[..], &[b'a'; 129], b"a b", b"a\n", b"a\"", "\u{e9}".as_bytes()] {
            assert!(!valid_request_id(bad), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn an_id_is_its_number_in_hex(random in any::<u128>()) {
            let id = RequestId::new(random);
            prop_assert_eq!(id.as_str(), format!("{random:032x}"));
        }
    }

    #[test]
    fn a_host_is_the_same_in_any_case_and_with_its_schemes_default_port() {
        assert!(same_host(false, b"A.test", b"a.test:80") && same_host(true, b"a:443", b"a"));
        assert!(same_host(false, b"a:80", b"a:80") && same_host(false, b"[::1]:80", b"[::1]"));
        assert!(!same_host(true, b"a:80", b"a") && !same_host(false, b"a:443", b"a") && !same_host(false, b"a", b"b"));
        assert!(!same_host(false, b"a:8080", b"a") && !same_host(false, b"a.", b"a"));
    }

    #[test]
    fn hosts_are_as_rfc_3986_says() {
        for good in [
            "example.com",
            "example.com:80",
            "EXAMPLE.com.",
            "10.0.0.1",
            "[::1]",
            "[2001:db8::1]:443",
            "a%20b",
            "a_b",
            "a-b.",
            "a.:80",
            "a:",
        ] {
            assert!(valid_host(good), "{good}");
        }
        for bad in [
            "",
            ":80",
            "user@host",
            "host:port",
            "host:65536",
            "host:+1",
            "::1",
            "[::1",
            "[::1]x",
            "[::1]:x",
            "[fe80::1%25eth0]",
            "a b",
            "a/b",
            "a?b",
            "a#b",
            "a\\b",
            "a%2",
            "a%zz",
            "h\u{e9}",
            "a\0",
            "a\r\nb",
            "[]",
            "a:80:80",
            ".",
            "..",
            ".:80",
            "a..",
            "a..:80",
            ".a",
            "a..b",
            "*",
            "*.a",
            "$(x)",
            "a;b",
            "a'b",
            "a,b",
            "a~b",
            "a=b",
            "a!",
        ] {
            assert!(!valid_host(bad), "{bad:?}");
        }
    }
}

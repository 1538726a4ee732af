//! Fields after a body (RFC 9110 §6.5): which of them go on. Those that say how the message is framed, where it goes, who
//! somebody is, what the body is, or what becomes of the answer come too late to be believed (§6.5.1): who decided by them has
//! decided, and who merges them into the head would decide again.

use super::{
    forwarded::{is_client_cert_field, is_forwarding_field},
    framing::is_token,
    headers::X_REQUEST_ID,
};

/// In lower case.
const TOO_LATE: [&str; 41] = [
    "age",
    "allow",
    "authentication-info",
    "authorization",
    "cache-control",
    "connection",
    "content-encoding",
    "content-length",
    "content-location",
    "content-range",
    "content-type",
    "cookie",
    "date",
    "expect",
    "expires",
    "forwarded",
    "host",
    "http2-settings",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "keep-alive",
    "location",
    "max-forwards",
    "pragma",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-authorization",
    "proxy-connection",
    "range",
    "retry-after",
    "set-cookie",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "vary",
    "via",
    "www-authenticate",
];

/// Whether a field after a body goes on, by its name.
pub fn goes_on(name: &[u8]) -> bool {
    let is = |other: &str| name.eq_ignore_ascii_case(other.as_bytes());
    !name.is_empty()
        && name.iter().all(|byte| is_token(*byte))
        && !TOO_LATE.iter().any(|late| is(late))
        && !is(X_REQUEST_ID.as_str())
        && !is_forwarding_field(name)
        && !is_client_cert_field(name)
}

/// The fields that go on of a trailer section as HTTP/1.1 has it, which [`super::framing::Border`] has bounded and found
/// well-formed: names as they came, values without the white space around them.
pub fn fields(section: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    section.split(|byte| *byte == b'\n').filter_map(|line| {
        let line = line.strip_suffix(b"\r")?;
        let colon = line.iter().position(|byte| *byte == b':')?;
        let (name, value) = (&line[..colon], &line[colon + 1..]);
        goes_on(name).then(|| (name, value.trim_ascii()))
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn all(section: &str) -> Vec<(String, String)> {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        fields(section.as_bytes()).map(|(name, value)| (text(name), text(value))).collect()
    }

    #[test]
    fn fields_go_on_without_the_white_space_around_them() {
        let found = all("X-Sum: 1 \r\ngrpc-status:0\r\nEmpty:\r\nA: b:c\r\n\r\n");
        let expected = [("X-Sum", "1"), ("grpc-status", "0"), ("Empty", ""), ("A", "b:c")];
        assert_eq!(found, expected.map(|(name, value)| (name.to_owned(), value.to_owned())));
    }

    #[test]
    fn what_comes_too_late_goes_nowhere() {
        for name in [
            "Content-Length",
            "transfer-encoding",
            "HOST",
            "Set-Cookie",
            "Authorization",
            "Cache-Control",
            "Content-Type",
            "X-Forwarded-For",
            "X-Request-Id",
            "Connection",
            "TE",
            "Vary",
            "b d",
        ] {
            assert_eq!(all(&format!("{name}: x\r\n\r\n")), [], "{name}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_are_a_fault_of_ours(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for (name, value) in fields(&bytes) {
                prop_assert!(!name.is_empty() && !value.contains(&b'\n'));
            }
        }
    }
}

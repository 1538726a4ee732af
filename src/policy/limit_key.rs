//! By what requests are counted together, and the number that stands for it. The seed is the caller's, so that nobody
//! outside can choose keys that meet in one place.

use std::{
    hash::{BuildHasher as _, Hash as _, Hasher as _, RandomState},
    net::IpAddr,
};

use http::{HeaderMap, HeaderName, header};

/// By what requests are counted together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitKey {
    /// The client's address; of IPv6 the first 64 bits, which one customer has at least. All clients of unix sockets are
    /// one.
    ClientIp,
    /// The value of a cookie; all requests without it are one.
    Cookie(String),
    /// The values of a field; all requests without it are one.
    Header(HeaderName),
    /// All requests of the route.
    Route,
}

impl LimitKey {
    /// The word in `RateLimit` fields.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::ClientIp => "client_ip",
            Self::Cookie(_) => "cookie",
            Self::Header(_) => "header",
            Self::Route => "route",
        }
    }

    /// The number of a request's key.
    pub fn of(&self, client: Option<IpAddr>, headers: &HeaderMap, seed: &RandomState) -> u64 {
        match self {
            Self::ClientIp => match client.map(|client| client.to_canonical()) {
                Some(IpAddr::V4(address)) => seed.hash_one((4u8, u64::from(address.to_bits()))),
                Some(IpAddr::V6(address)) => seed.hash_one((6u8, (address.to_bits() >> 64) as u64)),
                None => seed.hash_one(0u8),
            },
            Self::Cookie(name) => seed.hash_one(cookie(headers, name.as_bytes())),
            Self::Header(name) => {
                let mut hasher = seed.build_hasher();
                for value in headers.get_all(name) {
                    value.as_bytes().hash(&mut hasher);
                }
                hasher.finish()
            }
            Self::Route => 1,
        }
    }
}

/// The value of the first cookie of that name (RFC 6265 §5.4), without quotes around it.
fn cookie<'h>(headers: &'h HeaderMap, name: &[u8]) -> Option<&'h [u8]> {
    let lines = headers.get_all(header::COOKIE).iter();
    let pairs = lines.flat_map(|line| line.as_bytes().split(|byte| *byte == b';')).map(<[u8]>::trim_ascii);
    pairs
        .filter_map(|pair| {
            let at = pair.iter().position(|byte| *byte == b'=')?;
            let (found, value) = (pair.get(..at)?, pair.get(at + 1..)?);
            (found.trim_ascii_end() == name).then(|| value.trim_ascii_start())
        })
        .map(|value| match value {
            [b'"', inner @ .., b'"'] => inner,
            plain => plain,
        })
        .next()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().expect("a value"));
        }
        headers
    }

    #[test]
    fn addresses_of_one_network_of_ipv6_are_one_key() {
        let seed = RandomState::new();
        let key =
            |address: &str| LimitKey::ClientIp.of(Some(address.parse().expect("an address")), &HeaderMap::new(), &seed);
        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
        assert_ne!(key("0.0.0.1"), key("0:0:0:1::"), "the same number in two families");
        assert_ne!(LimitKey::ClientIp.of(None, &HeaderMap::new(), &seed), key("::"));
    }

    #[test]
    fn fields_and_cookies_are_keys_by_their_value_and_none_is_one_key() {
        let seed = RandomState::new();
        let field = LimitKey::Header(HeaderName::from_static("x-key"));
        let of = |fields: &[(&'static str, &'static str)]| field.of(None, &headers(fields), &seed);
        assert_eq!(of(&[]), of(&[("x-other", "1")]));
        assert_eq!(of(&[("x-key", "a")]), of(&[("x-key", "a"), ("x-other", "1")]));
        assert_ne!(of(&[("x-key", "a")]), of(&[("x-key", "b")]));
        assert_ne!(of(&[("x-key", "a"), ("x-key", "b")]), of(&[("x-key", "ab")]));
        assert_ne!(of(&[("x-key", "")]), of(&[]));
        let cookie = LimitKey::Cookie("id".to_owned());
        let of = |fields: &[(&'static str, &'static str)]| cookie.of(None, &headers(fields), &seed);
        assert_eq!(of(&[("cookie", "id=1")]), of(&[("cookie", "a=b"), ("cookie", " c=d;id=\"1\" ; id=2")]));
        assert_ne!(of(&[("cookie", "id=1")]), of(&[("cookie", "id=2")]));
        assert_eq!(of(&[("cookie", "xid=1; idx=2; id")]), of(&[]));
    }

    #[test]
    fn another_process_has_other_numbers() {
        let of = |seed: &RandomState| LimitKey::ClientIp.of(Some([10, 0, 0, 1].into()), &HeaderMap::new(), seed);
        assert_ne!(of(&RandomState::new()), of(&RandomState::new()));
    }
}

//! By what requests are counted together, and the number that stands for it. The seed is the caller's, so that nobody
//! outside can choose keys that meet in one place. A successor goes on with a process's seed and counts, so what is
//! hashed is spelled out byte by byte, and does not change between releases.

use std::{borrow::Cow, hash::Hasher as _, net::IpAddr};

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use http::{HeaderName, Version, header};
use siphasher::sip::SipHasher13;

use super::{
    fields::Fields,
    headers::is_like,
    password::Credentials,
    route::{LONGEST_HOST, canonical_host},
};

/// What makes the numbers of keys those of one process and its successors. Secret: who knows it can choose keys that
/// meet in one place.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Seed([u8; 16]);

impl Seed {
    /// A seed of random bytes.
    pub fn new(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// For a successor.
    pub fn bytes(&self) -> [u8; 16] {
        self.0
    }

    /// A number for one purpose, the same in a process and its successors, which nobody outside can foretell.
    pub fn number_for(&self, purpose: &str) -> u64 {
        self.hash([&b"purpose"[..], purpose.as_bytes()])
    }

    /// The number of some parts, told from other parts by their lengths.
    fn hash<'p>(&self, parts: impl IntoIterator<Item = &'p [u8]>) -> u64 {
        let mut hasher = SipHasher13::new_with_key(&self.0);
        for part in parts {
            hasher.write(&(part.len() as u64).to_le_bytes());
            hasher.write(part);
        }
        hasher.finish()
    }
}

impl std::fmt::Debug for Seed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Seed")
    }
}

/// What of a request it is counted by.
#[derive(Debug)]
pub struct Asker<'a, F> {
    /// The client's address; `None` for a unix socket.
    pub client: Option<IpAddr>,
    /// `Host` or `:authority` as sent.
    pub host: Option<&'a str>,
    /// Over HTTP/2 a client may split its `Cookie`.
    pub version: Version,
    /// The fields, as far as they are believed; see [`super::believed`].
    pub fields: &'a F,
}

/// The field or cookie that a request is counted by is there with two values: a backend may go by either.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("what the request is counted by is there with two values")]
pub struct TwoKeys;

/// By what requests are counted together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LimitKey {
    /// The client's address; of IPv6 the first 64 bits, which one customer has at least. All clients of unix sockets are
    /// one.
    ClientIp,
    /// The value of a cookie as frameworks decode it, see [`cookie_value`]; all requests without it are one.
    Cookie(String),
    /// The value of a field; all requests without it are one. Of `Authorization` neither the scheme's case nor blanks matter, of
    /// `Cookie` not whether HTTP/2 has split it.
    Header(HeaderName),
    /// The host as routes match it, whatever protocol says it; all requests without one, or with none that can be, are one.
    Host,
    /// All requests of the route.
    Route,
    /// What the authentication service says in this field; all requests of which it says nothing there are one.
    Told(HeaderName),
    /// The user whose password was verified.
    User,
}

impl LimitKey {
    /// The word in `RateLimit` fields.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::ClientIp => "client_ip",
            Self::Cookie(_) => "cookie",
            Self::Header(_) | Self::Host | Self::Told(_) | Self::User => "header",
            Self::Route => "route",
        }
    }

    /// Whether it is known only when the request has been let in.
    pub fn is_identity(&self) -> bool {
        matches!(self, Self::Told(_) | Self::User)
    }

    /// The number of a request's key.
    ///
    /// # Errors
    /// It has two. Whichever were counted, a backend could go by the other.
    pub fn of(&self, asker: &Asker<'_, impl Fields>, seed: &Seed) -> Result<u64, TwoKeys> {
        Ok(match self {
            Self::ClientIp => of_client(asker.client, seed),
            Self::Cookie(name) => seed.hash(cookie(asker.fields, name.as_bytes())?.as_deref()),
            Self::Header(name) if *name == header::AUTHORIZATION => {
                let mut scheme = [0; LONGEST_SCHEME];
                match field(asker.fields, name)?.map(|value| authorization(value, &mut scheme)) {
                    Some([scheme, rest]) if scheme == b"basic" => seed.hash([scheme, &basic(rest)]),
                    Some(parts) => seed.hash(parts),
                    None => seed.hash([]),
                }
            }
            Self::Header(name) if *name == header::COOKIE && asker.version == Version::HTTP_2 => {
                seed.hash(joined(asker.fields.all(name)).as_deref())
            }
            Self::Header(name) => seed.hash(field(asker.fields, name)?),
            Self::Host => {
                let mut buffer = [0; LONGEST_HOST];
                let host = canonical_host(asker.host.unwrap_or_default(), &mut buffer);
                seed.hash(host.filter(|host| !host.is_empty()).map(str::as_bytes))
            }
            Self::Route => 1,
            Self::Told(name) => seed.hash(asker.fields.all(name)),
            Self::User => seed.hash(Credentials::of(asker.fields).as_ref().map(Credentials::user)),
        })
    }
}

/// The number of a client's address; see [`LimitKey::ClientIp`].
pub fn of_client(client: Option<IpAddr>, seed: &Seed) -> u64 {
    match client.map(|client| client.to_canonical()) {
        Some(IpAddr::V4(address)) => seed.hash([&address.octets()[..]]),
        Some(IpAddr::V6(address)) => seed.hash([&address.octets()[..8]]),
        None => seed.hash([]),
    }
}

/// The number of the site of a client: of IPv6 the first 48 bits, as many as one customer may have (RFC 6177 §2), who can be 65,536
/// clients then. Others have none.
pub fn of_site(client: Option<IpAddr>, seed: &Seed) -> Option<u64> {
    match client?.to_canonical() {
        IpAddr::V4(_) => None,
        IpAddr::V6(address) => Some(seed.hash([&address.octets()[..6]])),
    }
}

/// The value of a field. One whose name a backend may take for it must have the same.
fn field<'h>(fields: &'h impl Fields, name: &'h HeaderName) -> Result<Option<&'h [u8]>, TwoKeys> {
    let value = fields.first(name);
    let mut alike = fields.each().filter(|(other, _)| is_like(other, name.as_str().as_bytes()));
    if alike.any(|(_, other)| Some(other) != value) { Err(TwoKeys) } else { Ok(value) }
}

/// What HTTP/2 may split, as its backend gets it (RFC 9113 §8.2.3).
fn joined<'h>(mut crumbs: impl Iterator<Item = &'h [u8]>) -> Option<Cow<'h, [u8]>> {
    let mut whole = Cow::Borrowed(crumbs.next()?);
    for crumb in crumbs {
        let whole = whole.to_mut();
        whole.extend_from_slice(b"; ");
        whole.extend_from_slice(crumb);
    }
    Some(whole)
}

/// Longer names of schemes are nobody's.
const LONGEST_SCHEME: usize = 32;

/// Scheme, in lower case, and credentials (RFC 9110 §11.4): case, blanks and padding make no other client.
fn authorization<'v>(value: &'v [u8], lower: &'v mut [u8; LONGEST_SCHEME]) -> [&'v [u8]; 2] {
    let value = value.trim_ascii();
    let end = value.iter().position(u8::is_ascii_whitespace).unwrap_or(value.len());
    let (scheme, rest) = value.split_at(end);
    let padding = rest.iter().rev().take_while(|byte| **byte == b'=').count();
    let rest = rest.get(..rest.len() - padding).unwrap_or_default().trim_ascii();
    match lower.get_mut(..scheme.len()) {
        Some(lower) => {
            lower.copy_from_slice(scheme);
            lower.make_ascii_lowercase();
            [lower, rest]
        }
        None => [scheme, rest],
    }
}

/// User and password as a lenient decoder reads them: signs outside the alphabet count for nothing (RFC 2045 §6.8), and no more do bits
/// behind the last whole byte.
fn basic(credentials: &[u8]) -> Vec<u8> {
    const LENIENT: GeneralPurpose = GeneralPurpose::new(
        &alphabet::STANDARD,
        GeneralPurposeConfig::new()
            .with_decode_padding_mode(DecodePaddingMode::Indifferent)
            .with_decode_allow_trailing_bits(true),
    );
    let plain = |byte: &u8| match byte {
        b'-' => Some(b'+'),
        b'_' => Some(b'/'),
        b'+' | b'/' => Some(*byte),
        byte => byte.is_ascii_alphanumeric().then_some(*byte),
    };
    let clean: Vec<u8> = credentials.iter().filter_map(plain).collect();
    LENIENT.decode(&clean).unwrap_or(clean)
}

/// The value of the cookies of that name (RFC 6265 §5.4).
fn cookie<'h>(headers: &'h impl Fields, name: &[u8]) -> Result<Option<Cow<'h, [u8]>>, TwoKeys> {
    let lines = headers.all(&header::COOKIE);
    let pairs = lines.flat_map(|line| line.split(|byte| *byte == b';')).map(trim);
    let mut values = pairs.filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        let (found, value) = (pair.get(..at)?, pair.get(at + 1..)?);
        (trim(found) == name).then(|| cookie_value(trim(value)))
    });
    let value = values.next();
    if values.any(|other| Some(&other) != value.as_ref()) { Err(TwoKeys) } else { Ok(value) }
}

/// Without what some take for blanks at either end: those of ASCII, and of Unicode in whatever encoding (Python's `strip`).
fn trim(text: &[u8]) -> &[u8] {
    let blank = |byte: &u8| byte.is_ascii_whitespace() || !byte.is_ascii();
    let begin = text.iter().position(|byte| !blank(byte)).unwrap_or(text.len());
    let end = text.iter().rposition(|byte| !blank(byte)).map_or(begin, |last| last + 1);
    text.get(begin..end).unwrap_or_default()
}

/// A cookie's value without what frameworks undo, whichever of it they do: quotes with escapes in them, percent-encoding, `+` for
/// a blank. So that nobody buys a fresh budget by another spelling; who does not undo it counts two values as one.
pub fn cookie_value(value: &[u8]) -> Cow<'_, [u8]> {
    let (inner, quoted) = match value {
        [b'"', inner @ .., b'"'] => (inner, true),
        plain => (plain, false),
    };
    if !inner.iter().any(|byte| matches!(byte, b'%' | b'+') || (quoted && *byte == b'\\')) {
        return Cow::Borrowed(inner);
    }
    let inner = if quoted { unescaped(inner) } else { Cow::Borrowed(inner) };
    let (mut out, mut rest) = (Vec::with_capacity(inner.len()), &*inner);
    while let [first, after @ ..] = rest {
        let (byte, after) = match (first, after) {
            (b'%', [high, low, after @ ..]) => match (hex(*high), hex(*low)) {
                (Some(high), Some(low)) => ((high << 4) | low, after),
                _ => (*first, rest.get(1..).unwrap_or_default()),
            },
            _ => (*first, after),
        };
        out.push(if byte == b'+' { b' ' } else { byte });
        rest = after;
    }
    Cow::Owned(out)
}

/// Escapes of a quoted string: a sign, or three octal digits.
fn unescaped(quoted: &[u8]) -> Cow<'_, [u8]> {
    let octal = |digit: u8| matches!(digit, b'0'..=b'7').then(|| u32::from(digit - b'0'));
    let (mut out, mut rest) = (Vec::with_capacity(quoted.len()), quoted);
    while let [first, after @ ..] = rest {
        let number = match after {
            [a, b, c, ..] => octal(*a).zip(octal(*b)).zip(octal(*c)).map(|((a, b), c)| (a << 6) | (b << 3) | c),
            _ => None,
        };
        let (byte, taken) = match (first, after, number.and_then(|number| u8::try_from(number).ok())) {
            (b'\\', _, Some(byte)) => (byte, 4),
            (b'\\', [escaped, ..], None) => (*escaped, 2),
            _ => (*first, 1),
        };
        out.push(byte);
        rest = rest.get(taken..).unwrap_or_default();
    }
    Cow::Owned(out)
}

fn hex(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).and_then(|digit| u8::try_from(digit).ok())
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;

    fn headers(fields: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in fields {
            headers.append(*name, value.parse().expect("a value"));
        }
        headers
    }

    /// Of an unknown client, for no host.
    fn asker(version: Version, fields: &HeaderMap) -> Asker<'_, HeaderMap> {
        Asker { client: None, host: None, version, fields }
    }

    fn of(key: &LimitKey, fields: &[(&'static str, &'static str)]) -> Result<u64, TwoKeys> {
        key.of(&asker(Version::HTTP_11, &headers(fields)), &Seed::new([7; 16]))
    }

    #[test]
    fn what_decoders_pass_over_is_no_other_key() {
        let key = LimitKey::Header(header::AUTHORIZATION);
        let one = of(&key, &[("authorization", "Basic dXNlcjpwYXNz")]);
        for other in ["basic  dXNl.cjpwYXNz", "Basic dXNlcjpwYXNz\t.", "Basic dXNlcjpwYXNz=="] {
            assert_eq!(of(&key, &[("authorization", other)]), one, "{other}");
        }
        assert_ne!(of(&key, &[("authorization", "Basic dXNlcjpwYXNzMQ==")]), one);
        let bits = |text| of(&key, &[("authorization", text)]);
        assert_eq!(bits("Basic dXNlcjpwYXNzMQ=="), bits("Basic dXNlcjpwYXNzMR=="));
        let key = LimitKey::Cookie("sid".to_owned());
        let of = |line: &'static [u8]| {
            let mut headers = HeaderMap::new();
            headers.append("cookie", http::HeaderValue::from_bytes(line).expect("a value"));
            key.of(&asker(Version::HTTP_11, &headers), &Seed::new([7; 16]))
        };
        let one = of(b"sid=REAL");
        for other in [&b"sid=REAL\xc2\xa0"[..], b"sid=\xe2\x80\x83REAL", b"\xc2\xa0sid=REAL", b"sid\xa0=REAL\xa0"] {
            assert_eq!(of(other), one, "{}", other.escape_ascii());
        }
        assert_eq!(of(b"sid=REAL; \xc2\xa0sid=OTHER"), Err(TwoKeys));
    }

    #[test]
    fn addresses_of_one_network_of_ipv6_are_one_key() {
        let seed = Seed::new([7; 16]);
        let key = |address: &str| of_client(Some(address.parse().expect("an address")), &seed);
        assert_eq!(key("2001:db8:1:2::1"), key("2001:db8:1:2:ffff:ffff:ffff:ffff"));
        assert_ne!(key("2001:db8:1:2::1"), key("2001:db8:1:3::1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
        assert_eq!(key("192.0.2.1"), key("::ffff:192.0.2.1"));
        assert_ne!(key("0.0.0.1"), key("0:0:0:1::"), "the same number in two families");
        assert_ne!(of_client(None, &seed), key("::"));
        let fields = HeaderMap::new();
        let asker = Asker { client: Some([192, 0, 2, 1].into()), ..asker(Version::HTTP_11, &fields) };
        assert_eq!(LimitKey::ClientIp.of(&asker, &seed), Ok(key("192.0.2.1")));
    }

    #[test]
    fn fields_and_cookies_are_keys_by_their_value_and_none_is_one_key() {
        let field = LimitKey::Header(HeaderName::from_static("x-key"));
        let of = |fields: &[(&'static str, &'static str)]| of(&field, fields).expect("one value");
        assert_eq!(of(&[]), of(&[("x-other", "1")]));
        assert_eq!(of(&[("x-key", "a")]), of(&[("x-key", "a"), ("x-other", "1")]));
        assert_ne!(of(&[("x-key", "a")]), of(&[("x-key", "b")]));
        assert_ne!(of(&[("x-key", "")]), of(&[]));
        let cookie = LimitKey::Cookie("id".to_owned());
        let of = |fields: &[(&'static str, &'static str)]| self::of(&cookie, fields).expect("one value");
        assert_eq!(of(&[("cookie", "id=1")]), of(&[("cookie", "a=b"), ("cookie", " c=d;id=\"1\" ")]));
        assert_ne!(of(&[("cookie", "id=1")]), of(&[("cookie", "id=2")]));
        assert_eq!(of(&[("cookie", "xid=1; idx=2; id")]), of(&[]));
    }

    #[test]
    fn another_spelling_of_a_cookie_is_no_other_key() {
        let cookie = LimitKey::Cookie("sid".to_owned());
        let of = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert("cookie", format!("sid={value}").parse().expect("a value"));
            cookie.of(&asker(Version::HTTP_11, &headers), &Seed::new([7; 16])).expect("one value")
        };
        for spelled in ["%5A", "%5a", "\"Z\"", "\"%5A\"", "\"\\Z\"", "\"\\132\""] {
            assert_eq!(of(spelled), of("Z"), "{spelled}");
        }
        for spelled in ["a%2Bb", "a b", "a%20b", "a%2bb"] {
            assert_eq!(of(spelled), of("a+b"), "{spelled}");
        }
        for (one, other) in [("%", ""), ("%5", "5"), ("%zz", "zz"), ("%255A", "Z"), ("\\132", "Z"), ("z", "Z")] {
            assert_ne!(of(one), of(other), "{one}");
        }
        assert_eq!(cookie_value(b"\"\\777\\\""), &b"777\\"[..], "no byte, and nothing behind the last");
    }

    #[test]
    fn another_spelling_of_credentials_is_no_other_key() {
        let field = LimitKey::Header(header::AUTHORIZATION);
        let of = |value: &'static str| of(&field, &[("authorization", value)]).expect("one value");
        for spelled in ["basic Ym9i", "BASIC Ym9i", "Basic   Ym9i", "Basic Ym9i==", "Basic Ym9i "] {
            assert_eq!(of(spelled), of("Basic Ym9i"), "{spelled}");
        }
        assert_ne!(of("Basic Ym9i"), of("Basic ym9i"));
        assert_ne!(of("Bearer Ym9i"), of("Basic Ym9i"));
        let user = |value: &'static str| self::of(&LimitKey::User, &[("authorization", value)]).expect("one value");
        assert_eq!(user("Basic Ym9iOnB3"), user("bAsIc  Ym9iOm5v"), "bob's, with two passwords");
        assert_ne!(user("Basic Ym9iOnB3"), user("Basic YWw6cHc="));
    }

    #[test]
    fn a_key_that_is_there_twice_is_one_value_or_none_to_count_by() {
        let field = LimitKey::Header(HeaderName::from_static("x-key"));
        let of = |fields: &[(&'static str, &'static str)]| self::of(&field, fields);
        assert_eq!(of(&[("x-key", "a"), ("x-key", "a")]), of(&[("x-key", "a")]));
        assert_eq!(of(&[("x-key", "a"), ("x_key", "a")]), of(&[("x-key", "a")]));
        assert_eq!(of(&[("x-key", "a"), ("x-key", "b")]), Err(TwoKeys));
        assert_eq!(of(&[("x-key", "a"), ("x-key", "a"), ("x-key", "b")]), Err(TwoKeys));
        assert_eq!(of(&[("x-key", "a"), ("x_key", "b")]), Err(TwoKeys), "CGI takes one for the other");
        assert_eq!(of(&[("x_key", "b")]), Err(TwoKeys), "to some it is there, to others not");
        let cookie = LimitKey::Cookie("id".to_owned());
        let of = |fields: &[(&'static str, &'static str)]| self::of(&cookie, fields);
        assert_eq!(of(&[("cookie", "id=1; id=\"1\""), ("cookie", "id=1")]), of(&[("cookie", "id=1")]));
        assert_eq!(of(&[("cookie", "id=1; id=2")]), Err(TwoKeys));
        assert_eq!(of(&[("cookie", "id=1"), ("cookie", "id=2")]), Err(TwoKeys));
    }

    #[test]
    fn cookies_that_http_2_splits_are_one_key_with_the_whole() {
        let key = LimitKey::Header(header::COOKIE);
        let of = |version: Version, fields: &[(&'static str, &'static str)]| {
            key.of(&asker(version, &headers(fields)), &Seed::new([7; 16]))
        };
        let whole = of(Version::HTTP_11, &[("cookie", "a=1; b=2")]);
        assert_eq!(of(Version::HTTP_2, &[("cookie", "a=1"), ("x-a", "1"), ("cookie", "b=2")]), whole);
        assert_eq!(of(Version::HTTP_2, &[("cookie", "a=1; b=2")]), whole);
        assert_ne!(of(Version::HTTP_2, &[("cookie", "b=2"), ("cookie", "a=1")]), whole);
        assert_eq!(of(Version::HTTP_2, &[("x-a", "1")]), of(Version::HTTP_11, &[]));
        assert_eq!(of(Version::HTTP_11, &[("cookie", "a=1"), ("cookie", "b=2")]), Err(TwoKeys));
    }

    #[test]
    fn however_a_host_is_spelled_it_is_one_key() {
        let seed = Seed::new([7; 16]);
        let fields = HeaderMap::new();
        let of = |host: Option<&str>| LimitKey::Host.of(&Asker { host, ..asker(Version::HTTP_11, &fields) }, &seed);
        for spelled in ["K.test", "k.test.", "k.test:80", "K.TEST.:8443", "k.test:"] {
            assert_eq!(of(Some(spelled)), of(Some("k.test")), "{spelled}");
        }
        assert_eq!(of(Some("[2001:DB8:0:0::1]:443")), of(Some("[2001:db8::1]")));
        assert_ne!(of(Some("k.test")), of(Some("l.test")));
        assert_ne!(of(Some("k.test")), of(None));
        assert_eq!(of(Some("k".repeat(1000).as_str())), of(None));
    }

    #[test]
    fn another_seed_has_other_numbers_and_every_release_the_same() {
        let of = |seed: u8| of_client(Some([10, 0, 0, 1].into()), &Seed::new([seed; 16]));
        assert_ne!(of(7), of(8));
        assert_eq!(of(7), 981_093_129_933_072_728, "counts of an older release are handed over under this number");
    }
}

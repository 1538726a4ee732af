//! Who the client is, and what is told about it: X-Forwarded-*, Forwarded (RFC 7239), trusted proxies. Fields from peers
//! that are not trusted are never read; the caller removes all of [`is_forwarding_field`] and writes its own.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::{BufMut, BytesMut};
use http::{HeaderName, header};
use ipnet::IpNet;

use super::{
    fields::{Fields, same_name},
    framing::is_token,
    headers::is_like,
    pieces::put,
};
use crate::types::AddressText;

/// `X-Client-Cert-Fingerprint`
pub const X_CLIENT_CERT_FINGERPRINT: HeaderName = HeaderName::from_static("x-client-cert-fingerprint");
/// `X-Client-Cert-Subject`
pub const X_CLIENT_CERT_SUBJECT: HeaderName = HeaderName::from_static("x-client-cert-subject");
/// `X-Client-Cert-Verify`
pub const X_CLIENT_CERT_VERIFY: HeaderName = HeaderName::from_static("x-client-cert-verify");
/// What backends are told of a client's certificate.
pub const CERTIFICATE_FIELDS: [HeaderName; 3] =
    [X_CLIENT_CERT_FINGERPRINT, X_CLIENT_CERT_SUBJECT, X_CLIENT_CERT_VERIFY];
/// `X-Forwarded-For`
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// `X-Forwarded-Host`
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// `X-Forwarded-Proto`
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");

/// Peers whose forwarding fields are believed. Sorted, disjoint ranges: a look-up takes the logarithm of their number.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies {
    v4: Box<[(u32, u32)]>,
    v6: Box<[(u128, u128)]>,
}

impl TrustedProxies {
    /// Compiles networks; none trusts nobody. IPv4 networks written as `::ffff:a.b.c.d/96+n` count as IPv4.
    pub fn new(networks: &[IpNet]) -> Self {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for network in networks {
            match (network.network().to_canonical(), network.broadcast().to_canonical()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => v4.push((first.to_bits(), last.to_bits())),
                (IpAddr::V6(first), IpAddr::V6(last)) => v6.push((first.to_bits(), last.to_bits())),
                // A network that reaches beyond the mapped addresses: its bounds as they stand.
                (first, last) => v6.push((as_v6(first), as_v6(last))),
            }
            // A network that holds all mapped addresses holds all of IPv4.
            if let IpNet::V6(network) = network
                && network.contains(&Ipv4Addr::UNSPECIFIED.to_ipv6_mapped())
                && network.contains(&Ipv4Addr::BROADCAST.to_ipv6_mapped())
            {
                v4.push((0, u32::MAX));
            }
        }
        Self { v4: merged(v4), v6: merged(v6) }
    }

    /// Whether `address` lies in one of the networks. IPv4-mapped IPv6 addresses count as IPv4.
    pub fn contains(&self, address: IpAddr) -> bool {
        match address.to_canonical() {
            IpAddr::V4(address) => holds(&self.v4, address.to_bits()),
            IpAddr::V6(address) => holds(&self.v6, address.to_bits()),
        }
    }
}

fn as_v6(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped().to_bits(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

fn merged<T: Ord + Copy>(mut ranges: Vec<(T, T)>) -> Box<[(T, T)]> {
    ranges.sort_unstable();
    ranges.dedup_by(|next, kept| {
        let overlaps = next.0 <= kept.1;
        if overlaps {
            kept.1 = kept.1.max(next.1);
        }
        overlaps
    });
    ranges.into()
}

fn holds<T: Ord + Copy>(ranges: &[(T, T)], value: T) -> bool {
    let after = ranges.partition_point(|range| range.0 <= value);
    after.checked_sub(1).and_then(|at| ranges.get(at)).is_some_and(|range| value <= range.1)
}

/// `http` or `https`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// Plain text.
    Http,
    /// TLS.
    Https,
}

impl Scheme {
    /// As in a URL.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
        }
    }
}

/// Who sent a request, as far as it can be believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ClientIdentity {
    /// The client's address; `None` for a unix socket.
    pub client: Option<IpAddr>,
    /// Whether the peer's forwarding fields are kept and appended to; otherwise they are replaced.
    pub peer_trusted: bool,
    /// What a trusted peer said of the client's scheme.
    pub scheme: Option<Scheme>,
}

impl ClientIdentity {
    /// Resolves by the peer (`None` for a unix socket, which is never trusted) and, where it is trusted, by
    /// `X-Forwarded-For`, or `Forwarded` where there is none: from the right, trusted addresses are passed over, the
    /// first other one is the client. What is no address ends the walk at the last good one.
    pub fn resolve(peer: Option<IpAddr>, trusted: &TrustedProxies, headers: &impl Fields) -> Self {
        let untrusted = Self { client: peer.map(|peer| peer.to_canonical()), peer_trusted: false, scheme: None };
        let Some(peer) = peer.filter(|peer| trusted.contains(*peer)) else { return untrusted };
        let mut client = peer.to_canonical();
        let mut step = |hop: Option<IpAddr>| {
            client = hop?;
            trusted.contains(client).then_some(())
        };
        let (listed, structured) = (X_FORWARDED_FOR, header::FORWARDED);
        if headers.has(&listed) {
            let lines = headers.all(&listed).rev().flat_map(|line| line.rsplit(is_comma));
            lines.map(<[u8]>::trim_ascii).filter(|item| !item.is_empty()).try_for_each(|item| step(parse_node(item)));
        } else {
            let lines = headers.all(&structured).rev();
            let elements = lines.flat_map(|line| ReverseSplit { rest: Some(line), separator: b',' });
            elements
                .filter(|element| !element.trim_ascii().is_empty())
                .try_for_each(|element| step(parameter(element, b"for").and_then(parse_node)));
        }
        Self { client: Some(client), peer_trusted: true, scheme: claimed_scheme(headers) }
    }
}

fn is_comma(byte: &u8) -> bool {
    *byte == b','
}

/// The last word on the scheme: the one the trusted peer itself added.
fn claimed_scheme(headers: &impl Fields) -> Option<Scheme> {
    let (proto, forwarded) = (X_FORWARDED_PROTO, header::FORWARDED);
    let word = match headers.all(&proto).next_back() {
        Some(value) => value.rsplit(is_comma).next()?.trim_ascii(),
        None => {
            let line = headers.all(&forwarded).next_back()?;
            parameter(ReverseSplit { rest: Some(line), separator: b',' }.next()?, b"proto")?
        }
    };
    [Scheme::Http, Scheme::Https].into_iter().find(|scheme| word.eq_ignore_ascii_case(scheme.as_str().as_bytes()))
}

/// Splits at separators outside quotes, last part first. From the right, what trusted proxies appended is read
/// before what a client may have left unbalanced.
struct ReverseSplit<'a> {
    rest: Option<&'a [u8]>,
    separator: u8,
}

impl<'a> Iterator for ReverseSplit<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        let rest = self.rest?;
        let mut quoted = false;
        for (at, byte) in rest.iter().enumerate().rev() {
            let (head, tail) = (rest.get(..at)?, rest.get(at + 1..)?);
            if *byte == b'"' && !is_escaped(head) {
                quoted = !quoted;
            } else if *byte == self.separator && !quoted {
                self.rest = Some(head);
                return Some(tail);
            }
        }
        self.rest = None;
        Some(rest)
    }
}

/// Whether an odd number of backslashes ends `head`.
fn is_escaped(head: &[u8]) -> bool {
    head.iter().rev().take_while(|byte| **byte == b'\\').count() % 2 == 1
}

/// The value of a parameter in one `Forwarded` element, without quotes. Values with escapes are refused: no address or
/// scheme has any.
fn parameter<'a>(element: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let pairs = ReverseSplit { rest: Some(element), separator: b';' };
    let value = pairs.filter_map(|pair| {
        let at = pair.iter().position(|byte| *byte == b'=')?;
        pair.get(..at)?.trim_ascii().eq_ignore_ascii_case(name).then(|| pair.get(at + 1..))?
    });
    let value = value.last()?.trim_ascii();
    match value {
        [b'"', inner @ .., b'"'] => Some(inner).filter(|inner| !inner.contains(&b'\\') && !inner.contains(&b'"')),
        _ => Some(value),
    }
}

/// An address, with or without brackets and port.
fn parse_node(node: &[u8]) -> Option<IpAddr> {
    // The longest, "[ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255]:65535", has 53 bytes.
    let text = std::str::from_utf8(node).ok().filter(|text| text.len() <= 64)?;
    if let Some(rest) = text.strip_prefix('[') {
        let (address, tail) = rest.split_once(']')?;
        let port_is_fine = tail.is_empty() || tail.strip_prefix(':').is_some_and(is_port);
        return address
            .parse::<Ipv6Addr>()
            .ok()
            .filter(|_| port_is_fine)
            .map(|address| IpAddr::V6(address).to_canonical());
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(address.to_canonical());
    }
    let (address, port) = text.split_once(':')?;
    address.parse::<Ipv4Addr>().ok().filter(|_| is_port(port)).map(IpAddr::V4)
}

fn is_port(text: &str) -> bool {
    (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// Names beside `X-Forwarded-*` by which applications learn where a request comes from, or where it was to go: frameworks
/// that obey `X-Original-URL` or `X-Rewrite-URL` serve another path than the one that was decided of.
const CLAIMS: [&str; 11] = [
    "cf-connecting-ip",
    "client-ip",
    "fastly-client-ip",
    "front-end-https",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-forwarded",
    "x-real-ip",
    "x-rewrite-url",
    "x-url-scheme",
];

/// Whether a field tells of clients and hops, and so must not be believed from just anyone: `Forwarded`, all of
/// `X-Forwarded-*` and `X-Original-*`, `X-Real-IP` and others like it; nor `Proxy`, which many an application takes for its own
/// setting (CVE-2016-5385). Names that a backend may take for one of these are none better (see [`is_like`]), and what is only
/// like a field of framing is nobody's.
pub fn is_forwarding_field(name: impl AsRef<[u8]>) -> bool {
    let name = name.as_ref();
    // Most names begin otherwise than all of these.
    let Some(b'c' | b'f' | b'p' | b't' | b'x') = name.first().map(u8::to_ascii_lowercase) else { return false };
    let alike = |own: &[u8]| is_like(name, own);
    let is = |own: &[u8]| same_name(name, own);
    let begins = |prefix: &[u8]| name.get(..prefix.len()).is_some_and(|start| is_like(start, prefix));
    begins(b"x-forwarded-")
        || begins(b"x-original-")
        || is(b"forwarded")
        || is(b"proxy")
        || CLAIMS.iter().any(|claim| alike(claim.as_bytes()))
        || OWN_NAMES.iter().any(|own| !is(own.as_bytes()) && alike(own.as_bytes()))
}

/// Fields that may be there under their own name, and under none that is only like it.
const OWN_NAMES: [&str; 3] = ["content-length", "transfer-encoding", "x-request-id"];

/// Whether a field tells of the client's certificate: ours to say, and no client's, nor any proxy's before us, nor is what a
/// backend may take for it (see [`is_like`]).
pub fn is_client_cert_field(name: impl AsRef<[u8]>) -> bool {
    let alike = |own: &HeaderName| is_like(name.as_ref(), own.as_str().as_bytes());
    [X_CLIENT_CERT_FINGERPRINT, X_CLIENT_CERT_SUBJECT, X_CLIENT_CERT_VERIFY].iter().any(alike)
}

/// Adds the outgoing `X-Forwarded-For`: `existing` lines (none where the peer is not trusted) and the peer. A unix
/// peer has no address and adds nothing; where nothing was written the field is left out.
pub fn write_x_forwarded_for<'a>(
    existing: Option<impl Iterator<Item = &'a [u8]>>,
    peer: Option<&AddressText>,
    out: &mut BytesMut,
) {
    let start = out.len();
    write_existing(existing, start, out);
    if let Some(peer) = peer {
        separate(start, out);
        put([peer.as_bytes()], out);
    }
}

/// Whether nobody says this field, not even a proxy that is believed: `Proxy`, which many an application takes for its own
/// setting (CVE-2016-5385), and what is only like a field that tells of clients and hops, or of framing. The proxies that set those spell
/// them with `-`, and pass on from clients what they do not know.
pub fn is_forged_field(name: impl AsRef<[u8]>) -> bool {
    let name = name.as_ref();
    let usual = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'-';
    name.eq_ignore_ascii_case(b"proxy") || (!name.iter().all(usual) && is_forwarding_field(name))
}

/// One element of `Forwarded`; `by` is left out, it would tell of the inside.
#[derive(Clone, Copy, Debug)]
pub struct Hop<'a> {
    /// The peer; `None` for a unix socket, written as the obfuscated `_unix` (RFC 7239 §6.3).
    pub peer: Option<&'a AddressText>,
    /// `Host` as the client sent it.
    pub host: Option<&'a str>,
    /// How the peer spoke to us.
    pub scheme: Scheme,
}

/// Adds the outgoing `Forwarded`: `existing` lines (none where the peer is not trusted) and this hop.
pub fn write_forwarded<'a>(existing: Option<impl Iterator<Item = &'a [u8]>>, hop: &Hop<'_>, out: &mut BytesMut) {
    let start = out.len();
    write_existing(existing, start, out);
    separate(start, out);
    match hop.peer {
        None => put([b"for=_unix"], out),
        Some(peer) if peer.is_ipv6() => put([b"for=\"[", peer.as_bytes(), b"]\""], out),
        Some(peer) => put([b"for=", peer.as_bytes()], out),
    }
    if let Some(host) = hop.host {
        put([b";host="], out);
        write_value(host.as_bytes(), out);
    }
    put([b";proto=", hop.scheme.as_str().as_bytes()], out);
}

/// The field's value begins at `start`.
fn write_existing<'a>(existing: Option<impl Iterator<Item = &'a [u8]>>, start: usize, out: &mut BytesMut) {
    let Some(existing) = existing else { return };
    for line in existing.map(<[u8]>::trim_ascii).filter(|line| !line.is_empty()) {
        separate(start, out);
        out.put_slice(line);
    }
}

fn separate(start: usize, out: &mut BytesMut) {
    if out.len() > start {
        out.put_slice(b", ");
    }
}

/// A token as it is, anything else as a quoted string (RFC 9110 §5.6.4); control characters are left out.
fn write_value(value: &[u8], out: &mut BytesMut) {
    if !value.is_empty() && value.iter().all(|byte| is_token(*byte)) {
        out.put_slice(value);
        return;
    }
    out.put_u8(b'"');
    for byte in value.iter().filter(|byte| !byte.is_ascii_control()) {
        if matches!(byte, b'"' | b'\\') {
            out.put_u8(b'\\');
        }
        out.put_u8(*byte);
    }
    out.put_u8(b'"');
}

#[cfg(test)]
mod tests;

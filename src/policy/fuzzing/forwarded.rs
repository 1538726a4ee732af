//! What peers say of clients: believed of trusted ones only, and what we write is understood by the next of us.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use bytes::BytesMut;
use http::{HeaderMap, HeaderValue, header};

use super::super::forwarded::{
    ClientIdentity, Hop, Scheme, TrustedProxies, X_FORWARDED_FOR, X_FORWARDED_PROTO, is_client_cert_field,
    is_forwarding_field, write_forwarded, write_x_forwarded_for,
};
use crate::types::AddressText;

const TRUSTED: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1));

/// Peers that nobody trusts, one of each family.
const STRANGERS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1))];

fn trusted() -> TrustedProxies {
    TrustedProxies::new(&["10.0.0.0/8", "fd00::/8"].map(|network| network.parse().expect("a network")))
}

/// Only what trusted hops say counts, and it counts whatever a client has put before it.
///
/// # Panics
/// If that does not hold.
pub fn forwarded(input: &[u8]) {
    let trusted = trusted();
    let fields = super::fields(input);
    for stranger in STRANGERS {
        let identity = ClientIdentity::resolve(Some(stranger), &trusted, &fields);
        assert_eq!(identity, ClientIdentity { client: Some(stranger), peer_trusted: false, scheme: None });
    }
    let nobody = ClientIdentity::resolve(None, &trusted, &fields);
    assert_eq!(nobody, ClientIdentity { client: None, peer_trusted: false, scheme: None });

    let identity = ClientIdentity::resolve(Some(TRUSTED), &trusted, &fields);
    let client = identity.client.expect("a trusted peer has an address");
    assert!(identity.peer_trusted && client == client.to_canonical());
    if fields.contains_key(X_FORWARDED_FOR) {
        assert_eq!(Some(client), plain_client(&fields, &trusted));
    }
    if !trusted.contains(client) {
        claims_before(&fields, &trusted, client);
    }
    for name in fields.keys() {
        let words = name.as_str().replace(|letter: char| !letter.is_ascii_alphanumeric(), "-");
        assert!(!words.starts_with("x-forwarded-") || is_forwarding_field(name));
        assert!(!words.starts_with("x-client-cert-subject") || words.len() > 21 || is_client_cert_field(name));
    }
    for stranger in STRANGERS {
        next_hop(&fields, &trusted, stranger);
    }
}

/// `X-Forwarded-For` as one list, from the right.
fn plain_client(fields: &HeaderMap, trusted: &TrustedProxies) -> Option<IpAddr> {
    let lines: Vec<&[u8]> = fields.get_all(X_FORWARDED_FOR).iter().map(HeaderValue::as_bytes).collect();
    let mut client = TRUSTED;
    for item in lines.join(&b',').split(|byte| *byte == b',').rev().map(<[u8]>::trim_ascii) {
        if item.is_empty() {
            continue;
        }
        let Some(hop) = std::str::from_utf8(item).ok().and_then(address) else { break };
        client = hop.to_canonical();
        if !trusted.contains(client) {
            break;
        }
    }
    Some(client)
}

/// An address with a port or without, in brackets or not.
fn address(text: &str) -> Option<IpAddr> {
    let port = |text: &str| text.len() <= 5 && !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().or_else(|| {
        let (host, tail) = match text.rsplit_once(']') {
            Some((host, tail)) => (host.strip_prefix('[')?, tail),
            None => text.split_at(text.find(':')?),
        };
        let address: IpAddr = host.parse().ok()?;
        let sound = tail.strip_prefix(':').is_some_and(port) || (tail.is_empty() && address.is_ipv6());
        (sound && address.is_ipv6() == text.starts_with('[')).then_some(address)
    })
}

/// The client that was found stays the client, whatever is claimed further left.
fn claims_before(fields: &HeaderMap, trusted: &TrustedProxies, client: IpAddr) {
    let name = if fields.contains_key(X_FORWARDED_FOR) { X_FORWARDED_FOR } else { header::FORWARDED };
    for claim in ["203.0.113.66", "10.1.1.1", "for=203.0.113.66", "for=\"[fd00::1]\"", "for=\"10.1.1.1", "\\\"", "x"] {
        let mut more = HeaderMap::new();
        more.append(&name, HeaderValue::from_static(claim));
        for line in fields.get_all(&name) {
            more.append(&name, line.clone());
        }
        let found = ClientIdentity::resolve(Some(TRUSTED), trusted, &more).client;
        assert_eq!(found, Some(client), "{claim} before {fields:?}");
    }
}

/// What is written for a peer tells the next proxy of this very peer, whatever was there before and in `Host`.
fn next_hop(fields: &HeaderMap, trusted: &TrustedProxies, peer: IpAddr) {
    let lines = |name| fields.get_all(name).iter().map(HeaderValue::as_bytes);
    let size = |name| lines(name).map(|line| line.len() + 2).sum::<usize>();
    let told = |name: &http::HeaderName, value: BytesMut| {
        let mut told = HeaderMap::new();
        told.append(name, HeaderValue::from_maybe_shared(value.freeze()).expect("a field's value"));
        ClientIdentity::resolve(Some(TRUSTED), trusted, &told)
    };
    let text = AddressText::new(peer);
    let mut out = BytesMut::new();
    write_x_forwarded_for(Some(lines(X_FORWARDED_FOR)), Some(&text), &mut out);
    assert!(out.len() <= size(X_FORWARDED_FOR) + 40);
    assert_eq!(told(&X_FORWARDED_FOR, out).client, Some(peer));

    let host = fields.get(header::HOST).map(|host| String::from_utf8_lossy(host.as_bytes()));
    for scheme in [Scheme::Http, Scheme::Https] {
        let mut out = BytesMut::new();
        write_forwarded(
            Some(lines(header::FORWARDED)),
            &Hop { peer: Some(&text), host: host.as_deref(), scheme },
            &mut out,
        );
        assert!(out.len() <= size(header::FORWARDED) + 80 + 2 * host.as_deref().map_or(0, str::len));
        let identity = told(&header::FORWARDED, out);
        assert_eq!((identity.client, identity.scheme), (Some(peer), Some(scheme)), "{fields:?}");
    }
    // The scheme is the last word of its field, and of nobody else's.
    if !fields.contains_key(X_FORWARDED_PROTO) && !fields.contains_key(header::FORWARDED) {
        assert_eq!(ClientIdentity::resolve(Some(TRUSTED), trusted, fields).scheme, None);
    }
}

//! Whom to believe, and what is written.

use std::iter;

use http::{HeaderMap, HeaderValue};
use proptest::prelude::*;

use super::*;

fn ip(text: &str) -> IpAddr {
    text.parse().expect(text)
}

fn trusted() -> TrustedProxies {
    TrustedProxies::new(&["10.0.0.0/8", "fd00::/8"].map(|net| net.parse().expect(net)))
}

fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
    let field = |(name, value): &(&'static str, &str)| {
        (HeaderName::from_static(name), HeaderValue::from_bytes(value.as_bytes()).expect("a value"))
    };
    let mut headers = HeaderMap::new();
    for (name, value) in fields.iter().map(field) {
        headers.append(name, value);
    }
    headers
}

fn client(peer: &str, fields: &[(&'static str, &str)]) -> IpAddr {
    ClientIdentity::resolve(Some(ip(peer)), &trusted(), &headers(fields)).client.expect("an address")
}

#[test]
fn a_peer_that_is_not_trusted_is_the_client_whatever_it_says() {
    let fields =
        headers(&[("x-forwarded-for", "1.2.3.4"), ("forwarded", "for=1.2.3.4"), ("x-forwarded-proto", "https")]);
    let identity = ClientIdentity::resolve(Some(ip("192.0.2.1")), &trusted(), &fields);
    assert_eq!(identity, ClientIdentity { client: Some(ip("192.0.2.1")), peer_trusted: false, scheme: None });
    assert!(!ClientIdentity::resolve(None, &trusted(), &fields).peer_trusted);
    assert!(!ClientIdentity::resolve(Some(ip("127.0.0.1")), &TrustedProxies::default(), &fields).peer_trusted);
}

#[test]
fn the_first_untrusted_address_from_the_right_is_the_client() {
    for (fields, expected) in [
        (&[][..], "10.0.0.1"),
        (&[("x-forwarded-for", "1.2.3.4")], "1.2.3.4"),
        (&[("x-forwarded-for", "6.6.6.6, 1.2.3.4, 10.0.0.9")], "1.2.3.4"),
        (&[("x-forwarded-for", "6.6.6.6"), ("x-forwarded-for", "1.2.3.4,,10.0.0.9")], "1.2.3.4"),
        (&[("x-forwarded-for", "10.1.1.1, 10.2.2.2")], "10.1.1.1"),
        (&[("x-forwarded-for", "6.6.6.6, garbage, 10.2.2.2")], "10.2.2.2"),
        (&[("x-forwarded-for", "1.2.3.4:5678")], "1.2.3.4"),
        (&[("x-forwarded-for", "2001:db8::1")], "2001:db8::1"),
        (&[("x-forwarded-for", "[2001:db8::1]:80, ::ffff:10.0.0.7")], "2001:db8::1"),
        (&[("forwarded", "for=6.6.6.6, for=1.2.3.4;proto=http, for=10.0.0.9")], "1.2.3.4"),
        (&[("forwarded", "For=\"[2001:db8::1]:4711\"")], "2001:db8::1"),
        (&[("forwarded", "for=\", for=1.2.3.4")], "1.2.3.4"),
        (&[("forwarded", "for=6.6.6.6, for=_hidden, for=10.0.0.9")], "10.0.0.9"),
        (&[("forwarded", "for=6.6.6.6;host=\"a,b;for=7.7.7.7\"")], "6.6.6.6"),
        (&[("forwarded", "proto=https")], "10.0.0.1"),
    ] {
        assert_eq!(client("10.0.0.1", fields), ip(expected), "{fields:?}");
    }
}

#[test]
fn a_trusted_peer_tells_the_scheme() {
    for (fields, expected) in [
        (&[("x-forwarded-proto", "https")][..], Some(Scheme::Https)),
        (&[("x-forwarded-proto", "https, HTTP")], Some(Scheme::Http)),
        (&[("x-forwarded-proto", "gopher")], None),
        (&[("forwarded", "for=1.2.3.4;proto=https")], Some(Scheme::Https)),
        (&[], None),
    ] {
        let identity = ClientIdentity::resolve(Some(ip("10.0.0.1")), &trusted(), &headers(fields));
        assert_eq!(identity.scheme, expected, "{fields:?}");
    }
}

#[test]
fn values_are_appended_and_quoted() {
    let written = |existing: &[&str], peer: Option<&str>, host: Option<&str>, scheme: Scheme| {
        let (mut plain, mut full) = (BytesMut::new(), BytesMut::new());
        let lines = || Some(existing.iter().map(|line| line.as_bytes()));
        let peer = peer.map(|peer| AddressText::new(ip(peer)));
        write_x_forwarded_for(lines(), peer.as_ref(), &mut plain);
        write_forwarded(lines(), &Hop { peer: peer.as_ref(), host, scheme }, &mut full);
        [plain, full].map(|text| String::from_utf8(text.to_vec()).expect("text"))
    };
    assert_eq!(
        written(&[], Some("192.0.2.1"), Some("example.com"), Scheme::Https),
        ["192.0.2.1", "for=192.0.2.1;host=example.com;proto=https"]
    );
    assert_eq!(
        written(&["a", " b "], Some("2001:db8::1"), Some("example.com:8080"), Scheme::Http),
        ["a, b, 2001:db8::1", "a, b, for=\"[2001:db8::1]\";host=\"example.com:8080\";proto=http"]
    );
    assert_eq!(written(&[], None, Some("a\"\\\r\nb"), Scheme::Http), ["", "for=_unix;host=\"a\\\"\\\\b\";proto=http"]);
    assert_eq!(written(&[], Some("::ffff:192.0.2.1"), None, Scheme::Http), ["192.0.2.1", "for=192.0.2.1;proto=http"]);
}

#[test]
fn forwarding_fields_are_known_by_name() {
    for name in ["forwarded", "x-real-ip", "x-forwarded-for", "x-forwarded-port", "x-forwarded-anything"] {
        assert!(is_forwarding_field(HeaderName::from_static(name)), "{name}");
    }
    for name in ["x-original-url", "x_original-host", "x-rewrite-url", "front_end_https", "true-client-ip", "client_ip"]
    {
        assert!(is_forwarding_field(HeaderName::from_static(name)), "{name}");
    }
    for name in ["x.original.url", "x.forwarded-for", "x~real~ip", "true.client_ip", "x.request.id", "content.length"] {
        assert!(is_forwarding_field(name), "{name}");
    }
    for name in ["x-request-id", "content-length", "transfer-encoding", "xaforwarded-for", "x.http.method.override"] {
        assert!(!is_forwarding_field(name), "{name}");
    }
    for name in ["x-client-cert-verify", "X.Client.Cert.Subject", "x-client_cert|fingerprint"] {
        assert!(is_client_cert_field(name), "{name}");
    }
    assert!(!is_client_cert_field("xaclientacertaverify") && !is_client_cert_field("x-client-cert-verif"));
    for name in
        ["proxy", "Proxy", "x_forwarded_for", "x-forwarded_for", "x_request-id", "content_length", "transfer_encoding"]
    {
        assert!(is_forged_field(name), "{name}");
    }
    for name in ["x-forwarded-for", "x-original-url", "x-request-id", "content-length", "transfer-encoding", "proxy_"] {
        assert!(!is_forged_field(name), "{name}");
    }
    for name in ["x-forward", "x-original", "x-http-method-override", "x-method-override", "ip"] {
        assert!(!is_forwarding_field(HeaderName::from_static(name)), "{name}");
    }
}

#[test]
fn mapped_and_wide_networks_are_understood() {
    let proxies = TrustedProxies::new(&["::ffff:10.0.0.0/104".parse().expect("a network")]);
    assert!(proxies.contains(ip("10.9.9.9")) && !proxies.contains(ip("11.0.0.0")));
    let proxies = TrustedProxies::new(&["::/0".parse().expect("a network")]);
    assert!(proxies.contains(ip("10.9.9.9")) && proxies.contains(ip("2001:db8::1")));
    let proxies = TrustedProxies::new(&["0.0.0.0/0".parse().expect("a network")]);
    assert!(proxies.contains(ip("255.255.255.255")) && !proxies.contains(ip("2001:db8::1")));
}

proptest! {
    #[test]
    fn ranges_agree_with_the_networks(
        networks in prop::collection::vec((any::<[u8; 4]>(), 0u8..=32), 0..20),
        address in any::<[u8; 4]>(),
    ) {
        let nets: Vec<IpNet> = networks.iter().map(|(octets, length)| IpNet::new((*octets).into(), *length).expect("fits")).collect();
        let proxies = TrustedProxies::new(&nets);
        let candidates = nets.iter().flat_map(|net| [net.network(), net.broadcast()]).chain(iter::once(address.into()));
        for address in candidates {
            prop_assert_eq!(proxies.contains(address), nets.iter().any(|net| net.contains(&address)));
        }
    }

    #[test]
    fn what_was_written_is_read_back(octets in any::<[u8; 16]>(), host in "[ -~]{0,20}") {
        let peer = IpAddr::from(octets).to_canonical();
        prop_assume!(!trusted().contains(peer));
        let mut out = BytesMut::new();
        let hop = Hop { peer: Some(&AddressText::new(peer)), host: Some(&host), scheme: Scheme::Https };
        write_forwarded(Some(iter::empty()), &hop, &mut out);
        let text = String::from_utf8(out.to_vec()).expect("text");
        prop_assert_eq!(client("10.0.0.1", &[("forwarded", &text)]), peer);
    }

    #[test]
    fn no_field_makes_it_fail(text in "[ -~]{0,60}") {
        client("10.0.0.1", &[("forwarded", &text)]);
        client("10.0.0.1", &[("x-forwarded-for", &text)]);
    }
}

//! TLS of listeners: versions, names, protocols, resumption, deadline.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{ClientConfig, HandshakeKind, NamedGroup, ProtocolVersion, version};

use crate::support::{
    http1::Client,
    http2::Client2,
    origin::Origin,
    proxy::{Config, Proxy},
    tls::{Ca, Leaf, client_trusting_any},
};

/// Other clients between two connections of the one that resumes; `RRLB_TEST_CLIENTS` for more.
const OTHER_CLIENTS: usize = 300;

/// A TLS listener with a certificate for `a.test`, and whatever else its `tls` says.
async fn one_certificate(ca: &Ca, origin: &Origin, tls: &str, limits: &str) -> Proxy {
    let yaml = "
        certificates: { main: <main> }
        listeners: [{ address: <listen>, tls: { certificates: [main]<tls> }, limits: { <limits> } }]";
    let config = Config::before(&[origin], yaml).put("tls", tls).put("limits", limits);
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    config.put("main", main).start().await
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = one_certificate(&ca, &origin, "", "").await;
    for (offered, expected) in
        [(&version::TLS12, ProtocolVersion::TLSv1_2), (&version::TLS13, ProtocolVersion::TLSv1_3)]
    {
        let config = ca.client_with(&["http/1.1"], &[offered]);
        let mut client = Client::tls(proxy.listen, "a.test", &config).await;
        assert_eq!(client.handshake.as_ref().map(|h| h.version), Some(expected));
        assert_eq!(client.get("/").await.origin(), "a");
        assert_eq!(client.get("/").await.origin(), "a");
    }
}

#[tokio::test]
async fn a_minimum_version_keeps_older_ones_out() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = one_certificate(&ca, &origin, ", min_version: \"1.3\"", "").await;
    let old = ca.client_with(&["http/1.1"], &[&version::TLS12]);
    assert!(Client::try_tls(proxy.listen, "a.test", &old).await.is_err());
    assert_eq!(Client::tls(proxy.listen, "a.test", &ca.client(&[])).await.get("/").await.status(), 200);
}

#[tokio::test]
async fn the_post_quantum_group_is_agreed_on() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = one_certificate(&ca, &origin, "", "").await;
    let client = Client::tls(proxy.listen, "a.test", &ca.client(&["http/1.1"])).await;
    assert_eq!(client.handshake.and_then(|h| h.group), Some(NamedGroup::X25519MLKEM768));
}

#[tokio::test]
async fn alpn_chooses_the_protocol() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = one_certificate(&ca, &origin, "", "").await;
    for (offered, agreed) in [
        (&["h2", "http/1.1"][..], Some("h2")),
        (&["http/1.1", "h2"], Some("h2")),
        (&["http/1.1"], Some("http/1.1")),
        (&[], None),
    ] {
        let client = Client::tls(proxy.listen, "a.test", &ca.client(offered)).await;
        assert_eq!(client.handshake.and_then(|h| h.alpn).as_deref(), agreed, "{offered:?}");
    }
    assert_eq!(Client2::tls(proxy.listen, "a.test", &ca.client(&["h2"])).await.get("/").await.text(), "a");
    let none = Client::try_tls(proxy.listen, "a.test", &ca.client(&["spdy/3"])).await;
    assert!(none.is_err(), "a client that speaks neither protocol was taken");
}

#[tokio::test]
async fn a_listener_may_offer_http1_only() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = one_certificate(&ca, &origin, ", alpn: [http/1.1]", "").await;
    let client = Client::tls(proxy.listen, "a.test", &ca.client(&["h2", "http/1.1"])).await;
    assert_eq!(client.handshake.and_then(|h| h.alpn).as_deref(), Some("http/1.1"));
}

#[tokio::test]
async fn certificates_are_chosen_exact_then_wildcard_then_fallback() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let names: [(&str, &[&str]); 4] = [
        ("wild", &["*.a.test"]),
        ("exact", &["www.a.test", "a.test"]),
        ("other", &["b.test"]),
        ("fallback", &["fallback.test"]),
    ];
    let leaves: Vec<Leaf> = names.iter().map(|(_, names)| ca.issue(names)).collect();
    let yaml = "
        certificates: { wild: <wild>, exact: <exact>, other: <other>, fallback: <fallback> }
        listeners: [{ address: <listen>, tls: { certificates: [wild, exact, other, fallback] } }]";
    let mut config = Config::before(&[&origin], yaml);
    for ((name, _), leaf) in names.iter().zip(&leaves) {
        let paths = leaf.write(config.dir(), name);
        config = config.put(name, paths);
    }
    let proxy = config.start().await;
    for (asked, index) in [("www.a.test", 1), ("a.test", 1), ("api.a.test", 0), ("API.A.test", 0), ("b.test", 2)] {
        let client = Client::tls(proxy.listen, asked, &ca.client(&[])).await;
        assert!(client.handshake.expect("tls").certificate == *leaves[index].der, "{asked}");
    }
    for asked in ["unknown.test", "deep.api.a.test", "127.0.0.1"] {
        let client = Client::tls(proxy.listen, asked, &client_trusting_any()).await;
        assert!(client.handshake.expect("tls").certificate == *leaves[3].der, "{asked}");
    }
}

#[tokio::test]
async fn a_second_connection_resumes() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = one_certificate(&ca, &origin, "", "").await;
    for offered in [&version::TLS12, &version::TLS13] {
        resumes_after(&proxy, &ca.client_with(&["http/1.1"], &[offered]), async || {}).await;
    }
}

#[tokio::test]
async fn a_client_resumes_also_after_many_others() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = one_certificate(&ca, &origin, "", "").await;
    let clients = std::env::var("RRLB_TEST_CLIENTS").ok().and_then(|n| n.parse().ok()).unwrap_or(OTHER_CLIENTS);
    resumes_after(&proxy, &ca.client(&["http/1.1"]), async || {
        for _ in 0..clients {
            Client::tls(proxy.listen, "a.test", &ca.client(&["http/1.1"])).await.get("/").await;
        }
    })
    .await;
}

/// Connections go to alternating workers, so several are made.
async fn resumes_after(proxy: &Proxy, config: &Arc<ClientConfig>, between: impl AsyncFn()) {
    let mut first = Client::tls(proxy.listen, "a.test", config).await;
    assert_eq!(first.handshake.as_ref().map(|h| h.kind), Some(HandshakeKind::Full));
    first.get("/").await; // tickets of TLS 1.3 come after the handshake
    between().await;
    for round in 0..4 {
        let mut next = Client::tls(proxy.listen, "a.test", config).await;
        assert_eq!(next.handshake.as_ref().map(|h| h.kind), Some(HandshakeKind::Resumed), "round {round}");
        assert_eq!(next.get("/").await.status(), 200);
    }
}

#[tokio::test]
async fn a_handshake_has_a_deadline() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = one_certificate(&ca, &origin, "", "handshake_timeout: 300ms").await;
    for first in [&b""[..], &b"\x16\x03\x01\x02"[..]] {
        let begun = Instant::now();
        let mut client = proxy.client().await;
        client.send(first).await;
        client.closed().await;
        let took = begun.elapsed();
        assert!((Duration::from_millis(250)..Duration::from_secs(4)).contains(&took), "closed after {took:?}");
    }
}

#[tokio::test]
async fn plain_text_on_a_tls_port_harms_nobody() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = one_certificate(&ca, &origin, "", "").await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    client.closed().await;
    assert_eq!(Client::tls(proxy.listen, "a.test", &ca.client(&[])).await.get("/").await.status(), 200);
    assert_eq!(origin.total(), 1);
    proxy.metric("rrlb_tls_handshakes_total", &[], |n| n >= 2.0).await;
}

#[tokio::test]
async fn a_late_head_inside_tls_is_answered_and_logged() {
    // In TLS the end of reading is an error; such a client got no answer and left no line.
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = one_certificate(&ca, &origin, "", "header_timeout: 300ms").await;
    let mut client = Client::tls(proxy.listen, "a.test", &ca.client(&["http/1.1"])).await;
    client.send("GET / HTTP/1.1\r\nHost: a.te").await;
    assert_eq!(client.response().await.status(), 408);
    assert_eq!(proxy.access_log(1).await[0]["reason"], "header_timeout");
    assert_eq!(origin.total(), 0);
}

//! TLS towards backends: verified unless told otherwise, each failure with its own reason, sessions resumed, pools apart.

use rustls::HandshakeKind;

use crate::{
    failures::reason,
    support::{
        http2::Origin2,
        origin::Origin,
        proxy::{Config, Proxy},
        tls::{Ca, Leaf, self_signed},
    },
};

/// A proxy before one TLS backend, with this in its `tls`; `<ca>` is the CA's file.
async fn before(address: impl ToString, ca: &Ca, tls: &str, more: &str) -> Proxy {
    let yaml = "
        upstreams:
          app:
            backends: [\"<backend>\"]
            tls: { <tls> }
            <more>";
    let config = Config::new(yaml).put("backend", address.to_string()).put("tls", tls).put("more", more);
    let path = ca.write(config.dir());
    config.put("ca", path.display()).start().await
}

#[tokio::test]
async fn a_backend_of_a_known_ca_and_the_right_name_is_served() {
    let ca = Ca::new();
    let origin = Origin::tls("a", ca.issue(&["origin.test"]).server(&["http/1.1"])).await;
    let proxy = before(&origin.address, &ca, "sni: origin.test, ca: <ca>", "").await;
    assert_eq!(proxy.get("/").await.origin(), "a");
    let handshake = origin.handshakes().remove(0);
    assert_eq!(handshake.sni.as_deref(), Some("origin.test"));
    assert_eq!(origin.only_request().field("host"), Some("a.test"), "the host is kept by default");
}

#[tokio::test]
async fn each_untrusted_certificate_is_502_with_its_own_reason() {
    let (ca, other) = (Ca::new(), Ca::new());
    let names = &["origin.test"];
    let cases: [(&str, Leaf); 4] = [
        ("self-signed", self_signed(names)),
        ("expired", ca.expired(names)),
        ("wrong name", ca.issue(&["else.test"])),
        ("unknown CA", other.issue(names)),
    ];
    let mut reasons = Vec::new();
    for (what, leaf) in cases {
        let origin = Origin::tls("a", leaf.server(&["http/1.1"])).await;
        let proxy = before(&origin.address, &ca, "sni: origin.test, ca: <ca>", "").await;
        let reply = proxy.get("/").await;
        assert_eq!(reply.status(), 502, "{what}: {reply:?}");
        assert_eq!(origin.total(), 0, "{what}: a request was sent");
        reasons.push((what, reason(&proxy, &reply).await));
    }
    for (index, (what, reason)) in reasons.iter().enumerate().take(3) {
        let others = reasons.iter().enumerate().take(3).filter(|(at, _)| *at != index);
        assert!(
            others.into_iter().all(|(_, (_, other))| other != reason),
            "{what} has no reason of its own: {reasons:?}"
        );
    }
}

#[tokio::test]
async fn the_systems_roots_are_used_without_a_ca() {
    let ca = Ca::new();
    let origin = Origin::tls("a", ca.issue(&["origin.test"]).server(&["http/1.1"])).await;
    let proxy = before(&origin.address, &ca, "sni: origin.test", "").await;
    assert_eq!(proxy.get("/").await.status(), 502, "a private CA was trusted");
}

#[tokio::test]
async fn verification_is_off_only_by_that_word_and_with_a_warning() {
    let ca = Ca::new();
    let origin = Origin::tls("a", self_signed(&["else.test"]).server(&["http/1.1"])).await;
    let proxy = before(&origin.address, &ca, "sni: origin.test, verify: false", "").await;
    assert_eq!(proxy.get("/").await.origin(), "a");
    let log = proxy.stderr();
    assert!(log.lines().any(|line| line.to_lowercase().contains("warn") && line.contains("verif")), "{log}");
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_backends_that_ask() {
    let (ca, clients) = (Ca::new(), Ca::new());
    let server = ca.issue(&["origin.test"]).server_with_clients(&["http/1.1"], &clients);
    let origin = Origin::tls("a", server).await;
    let yaml = "
        certificates: { mine: <mine> }
        upstreams:
          app: { backends: [\"<a>\"], tls: { sni: origin.test, ca: <ca>, client_cert: mine } }
          none: { backends: [\"<a>\"], tls: { sni: origin.test, ca: <ca> } }
        routes:
          - { match: { path: /none }, upstream: none }
          - { upstream: app }";
    let config = Config::new(yaml).put("a", &origin.address);
    let (mine, path) = (clients.issue(&["rrlb.test"]).write(config.dir(), "mine"), ca.write(config.dir()));
    let proxy = config.put("mine", mine).put("ca", path.display()).start().await;
    assert_eq!(proxy.get("/").await.origin(), "a");
    assert!(origin.handshakes()[0].client_certificate);
    assert_eq!(proxy.get("/none").await.status(), 502);
}

#[tokio::test]
async fn host_header_is_kept_or_the_sni_or_a_name() {
    let ca = Ca::new();
    let origin = Origin::tls("a", ca.issue(&["origin.test"]).server(&["http/1.1"])).await;
    for (setting, host) in [("preserve", "a.test"), ("sni", "origin.test"), ("fixed.test:8443", "fixed.test:8443")] {
        let more = format!("host_header: \"{setting}\"");
        let proxy = before(&origin.address, &ca, "sni: origin.test, ca: <ca>", &more).await;
        proxy.get("/").await;
        assert_eq!(origin.requests().last().and_then(|r| r.field("host").map(str::to_owned)).as_deref(), Some(host));
    }
}

#[tokio::test]
async fn http2_is_agreed_on_by_alpn() {
    let ca = Ca::new();
    let leaf = ca.issue(&["origin.test"]);
    let two = Origin2::start("two", Some(leaf.server(&["h2"]))).await;
    let proxy = before(two.address, &ca, "sni: origin.test, ca: <ca>", "").await;
    let mut client = proxy.client().await;
    for _ in 0..10 {
        assert_eq!(client.get("/x?y").await.text(), "two");
    }
    let seen = two.requests().remove(0);
    assert_eq!((seen.path.as_str(), seen.authority.as_deref()), ("/x?y", Some("a.test")));
    assert_eq!(two.connections(), 1, "h2 connections are not kept");

    let one = Origin::tls("one", leaf.server(&["h2", "http/1.1"])).await;
    for (tls, more) in [(", alpn: [http/1.1]", ""), ("", "protocol: h1")] {
        let proxy = before(&one.address, &ca, &format!("sni: origin.test, ca: <ca>{tls}"), more).await;
        assert_eq!(proxy.get("/").await.origin(), "one");
    }
}

#[tokio::test]
async fn a_backend_without_http2_is_refused_where_it_is_demanded() {
    let ca = Ca::new();
    let origin = Origin::tls("a", ca.issue(&["origin.test"]).server(&["http/1.1"])).await;
    let proxy = before(&origin.address, &ca, "sni: origin.test, ca: <ca>", "protocol: h2").await;
    let reply = proxy.get("/").await;
    assert_eq!(reply.status(), 502, "{reply:?}");
    assert_eq!(origin.total(), 0);
}

#[tokio::test]
async fn sessions_with_backends_are_resumed() {
    // Not with `verify: false`: Pingora makes a new verifier for each connection, and rustls resumes only under the same.
    for tls in ["sni: origin.test, ca: <ca>"] {
        let ca = Ca::new();
        let origin = Origin::tls("a", ca.issue(&["origin.test"]).server(&["http/1.1"])).await;
        let proxy = before(&origin.address, &ca, tls, "").await;
        let mut client = proxy.client().await;
        for _ in 0..6 {
            // The origin closes each connection, so that each request needs a new one.
            let reply = client.ask("GET /close HTTP/1.1\r\nHost: a.test\r\nX-Close: 1\r\n\r\n").await;
            assert_eq!(reply.origin(), "a");
        }
        let kinds: Vec<_> = origin.handshakes().iter().map(|h| h.kind).collect();
        assert_eq!(kinds.len(), 6, "{kinds:?}");
        let resumed = kinds.iter().filter(|kind| **kind == Some(HandshakeKind::Resumed)).count();
        assert!(resumed >= 4, "{tls}: {kinds:?}");
    }
}

#[tokio::test]
async fn different_tls_settings_never_share_a_connection() {
    let (ca, clients) = (Ca::new(), Ca::new());
    let origin = Origin::tls("a", ca.issue(&["one.test", "two.test"]).server(&["http/1.1"])).await;
    let yaml = "
        threads: 1
        certificates: { mine: <mine>, other: <other> }
        upstreams:
          loose: { backends: [\"<a>\"], tls: { sni: one.test, verify: false } }
          strict: { backends: [\"<a>\"], tls: { sni: one.test, ca: <ca> } }
          named: { backends: [\"<a>\"], tls: { sni: two.test, ca: <ca> } }
          system: { backends: [\"<a>\"], tls: { sni: one.test } }
          mine: { backends: [\"<a>\"], tls: { sni: one.test, ca: <ca>, client_cert: mine } }
          other: { backends: [\"<a>\"], tls: { sni: one.test, ca: <ca>, client_cert: other } }
          plain: { backends: [\"<a>\"], tls: { sni: one.test, ca: <ca>, alpn: [http/1.1] } }
        routes:
          - { match: { path: /loose }, upstream: loose }
          - { match: { path: /strict }, upstream: strict }
          - { match: { path: /named }, upstream: named }
          - { match: { path: /system }, upstream: system }
          - { match: { path: /mine }, upstream: mine }
          - { match: { path: /other }, upstream: other }
          - { match: { path: /plain }, upstream: plain }";
    let config = Config::new(yaml).put("a", &origin.address);
    let mine = clients.issue(&["mine.test"]).write(config.dir(), "mine");
    let other = clients.issue(&["other.test"]).write(config.dir(), "other");
    let path = ca.write(config.dir());
    let proxy = config.put("mine", mine).put("other", other).put("ca", path.display()).start().await;
    let mut client = proxy.client().await;
    for (index, upstream) in ["loose", "strict", "named", "mine", "other", "plain"].iter().enumerate() {
        for _ in 0..2 {
            assert_eq!(client.get(&format!("/{upstream}")).await.status(), 200, "{upstream}");
        }
        let connections = origin.connections();
        assert!(connections > index, "{upstream} used a connection of others: {connections}");
    }
    assert_eq!(client.get("/system").await.status(), 502, "an unverified connection was used");
}

//! TLS towards backends: verified unless told otherwise, each failure with its own reason, sessions resumed, pools apart.

use rustls::HandshakeKind;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    failures::reason,
    support::{
        http2::Origin2,
        origin::{Origin, Peer},
        proxy::{Config, Proxy},
        tls::{Ca, Leaf, self_signed},
        wait_until,
    },
};

/// What may be spoken, and so who speaks it: HTTP/2 too, and HTTP/1.1 where the backend chooses that; HTTP/1.1 alone, over
/// connections of our own, from the front or from Pingora's session, and over Pingora's.
const WAYS: [&str; 4] =
    ["", "protocol: h1\nengine: exchange", "protocol: h1\nengine: pingora", "protocol: h1\nengine: lane"];

/// A proxy before one TLS backend, with this in its `tls`; `<ca>` is the CA's file.
async fn before(address: impl ToString, ca: &Ca, tls: &str, more: &str) -> Proxy {
    let yaml = "
        upstreams:
          app:
            backends: [\"<backend>\"]
            tls: { <tls> }
            <more>";
    // Each line of `more` that is no key of an upstream is one of the file.
    let more = more.replace('\n', "\n        ");
    let config = Config::new(&yaml.replace("<more>", &more)).put("backend", address.to_string()).put("tls", tls);
    let path = ca.write(config.dir());
    config.put("ca", path.display()).start().await
}

#[tokio::test]
async fn a_backend_of_a_known_ca_and_the_right_name_is_served() {
    let ca = Ca::new();
    for way in WAYS {
        let origin = Origin::tls("a", ca.issue(&["origin.test"]).server(&["http/1.1"])).await;
        let proxy = before(&origin.address, &ca, "sni: origin.test, ca: <ca>", way).await;
        assert_eq!(proxy.get("/").await.origin(), "a", "{way}");
        let handshake = origin.handshakes().remove(0);
        assert_eq!(handshake.sni.as_deref(), Some("origin.test"), "{way}");
        assert_eq!(origin.only_request().field("host"), Some("a.test"), "the host is kept by default");
    }
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
        let mut words = Vec::new();
        for way in WAYS {
            let proxy = before(&origin.address, &ca, "sni: origin.test, ca: <ca>", way).await;
            let reply = proxy.get("/").await;
            assert_eq!(reply.status(), 502, "{what}: {reply:?}");
            assert_eq!(origin.total(), 0, "{what}: a request was sent");
            words.push(reason(&proxy, &reply).await);
        }
        words.dedup();
        assert_eq!(words.len(), 1, "{what}: {words:?}");
        reasons.push((what, words.remove(0)));
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
    for way in WAYS {
        let proxy = before(&origin.address, &ca, "sni: origin.test", way).await;
        assert_eq!(proxy.get("/").await.status(), 502, "a private CA was trusted: {way}");
    }
}

#[tokio::test]
async fn the_file_of_ca_file_is_trusted_instead_of_the_systems_roots() {
    let ca = Ca::new();
    let origin = Origin::tls("a", ca.issue(&["origin.test"]).server(&["http/1.1"])).await;
    for way in WAYS {
        let proxy = before(&origin.address, &ca, "sni: origin.test", &format!("{way}\nca_file: <ca>")).await;
        assert_eq!(proxy.get("/").await.origin(), "a", "{way}");
    }
}

#[tokio::test]
async fn verification_is_off_only_by_that_word_and_with_a_warning() {
    let ca = Ca::new();
    let origin = Origin::tls("a", self_signed(&["else.test"]).server(&["http/1.1"])).await;
    for way in WAYS {
        let proxy = before(&origin.address, &ca, "sni: origin.test, verify: false", way).await;
        assert_eq!(proxy.get("/").await.origin(), "a", "{way}");
        let log = proxy.stderr();
        assert!(log.lines().any(|line| line.to_lowercase().contains("warn") && line.contains("verif")), "{log}");
    }
}

#[tokio::test]
async fn a_client_certificate_is_shown_to_backends_that_ask() {
    let (ca, clients) = (Ca::new(), Ca::new());
    let server = ca.issue(&["origin.test"]).server_with_clients(&["http/1.1"], &clients);
    for alpn in ["h2, http/1.1", "http/1.1"] {
        shows_a_client_certificate(&ca, &clients, server.clone(), alpn).await;
    }
}

async fn shows_a_client_certificate(ca: &Ca, clients: &Ca, server: std::sync::Arc<rustls::ServerConfig>, alpn: &str) {
    let origin = Origin::tls("a", server).await;
    let yaml = "
        certificates: { mine: <mine> }
        upstreams:
          app: { backends: [\"<a>\"], tls: { sni: origin.test, ca: <ca>, alpn: [<alpn>], client_cert: mine } }
          none: { backends: [\"<a>\"], tls: { sni: origin.test, ca: <ca>, alpn: [<alpn>] } }
        routes:
          - { match: { path: /none }, upstream: none }
          - { upstream: app }";
    let config = Config::new(yaml).put("a", &origin.address).put("alpn", alpn);
    let (mine, path) = (clients.issue(&["rrlb.test"]).write(config.dir(), "mine"), ca.write(config.dir()));
    let proxy = config.put("mine", mine).put("ca", path.display()).start().await;
    assert_eq!(proxy.get("/").await.origin(), "a");
    assert!(origin.handshakes()[0].client_certificate);
    let refused = proxy.get("/none").await;
    assert_eq!((refused.status(), reason(&proxy, &refused).await.as_str()), (502, "tls_failed"), "{alpn}");
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
    // The first request finds out.
    assert_eq!(client.get("/x?y").await.text(), "two");
    let connections = two.connections();
    for _ in 0..10 {
        assert_eq!(client.get("/x?y").await.text(), "two");
    }
    let seen = two.requests().remove(0);
    assert_eq!((seen.path.as_str(), seen.authority.as_deref()), ("/x?y", Some("a.test")));
    assert_eq!(two.connections(), connections, "h2 connections are not kept");
    assert!(connections <= 2, "{connections} connections, one of them to find out");

    let one = Origin::tls("one", leaf.server(&["h2", "http/1.1"])).await;
    for (tls, more) in [(", alpn: [http/1.1]", ""), ("", "protocol: h1")] {
        let proxy = before(&one.address, &ca, &format!("sni: origin.test, ca: <ca>{tls}"), more).await;
        assert_eq!(proxy.get("/").await.origin(), "one");
    }
}

/// Answers with a folded line, which Pingora would join and the exchange refuses.
async fn folds(mut peer: Peer) {
    while peer.request().await.is_some() {
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-A: b\r\n c\r\n\r\n").await;
    }
}

#[tokio::test]
async fn a_backend_that_could_speak_http2_and_does_not_is_held_to_the_exchanges_rules() {
    let ca = Ca::new();
    for alpn in [&["http/1.1"][..], &[]] {
        let origin = Origin::tls_script("a", ca.issue(&["origin.test"]).server(alpn), folds).await;
        let proxy =
            before(&origin.address, &ca, "sni: origin.test, ca: <ca>", "protocol: auto\nengine: exchange").await;
        for _ in 0..2 {
            let reply = proxy.get("/").await;
            assert_eq!((reply.status(), reason(&proxy, &reply).await.as_str()), (502, "bad_response"), "{alpn:?}");
        }
    }
}

#[tokio::test]
async fn a_backend_may_change_its_mind_about_http2() {
    let ca = Ca::new();
    let leaf = ca.issue(&["origin.test"]);
    let mut one = Origin::tls("one", leaf.server(&["http/1.1"])).await;
    let address = one.address.parse().expect("an address");
    let proxy = before(&one.address, &ca, "sni: origin.test, ca: <ca>", "").await;
    for _ in 0..2 {
        assert_eq!(proxy.get("/").await.origin(), "one");
        one.stop().await;
        let two = Origin2::at(address, "two", Some(leaf.server(&["h2"]))).await;
        for _ in 0..3 {
            assert_eq!(proxy.get("/").await.text(), "two");
        }
        // One that found out, and one of each worker.
        assert!(two.connections() <= 3, "{} connections", two.connections());
        two.stop().await;
        one.restart().await;
    }
    assert_eq!(proxy.get("/").await.origin(), "one");
}

#[tokio::test]
async fn backends_of_one_upstream_may_differ_in_what_they_speak() {
    let ca = Ca::new();
    let leaf = ca.issue(&["origin.test"]);
    let one = Origin::tls("one", leaf.server(&["http/1.1"])).await;
    let two = Origin2::start("two", Some(leaf.server(&["h2"]))).await;
    let both = format!("{}\", \"{}", one.address, two.address);
    let proxy = before(both, &ca, "sni: origin.test, ca: <ca>", "").await;
    let mut client = proxy.client().await;
    let mut counts = [0; 2];
    for number in 0..20 {
        let body = format!("body {number}");
        let head = format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        let reply = client.ask(head).await;
        assert_eq!(reply.status(), 200);
        counts[usize::from(reply.text() == body && reply.field("x-origin") == Some("two"))] += 1;
    }
    assert_eq!(counts, [10, 10]);
    assert_eq!((one.total(), two.requests().len()), (10, 10));
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
    // Not with `verify: false` over Pingora's path: it makes a new verifier for each connection, and rustls resumes only
    // under the same.
    let (strict, loose) = ("sni: origin.test, ca: <ca>", "sni: origin.test, verify: false");
    for (tls, way) in [(strict, WAYS[0]), (strict, WAYS[1]), (loose, WAYS[1]), (strict, WAYS[2])] {
        let ca = Ca::new();
        let origin = Origin::tls("a", ca.issue(&["origin.test"]).server(&["http/1.1"])).await;
        let proxy = before(&origin.address, &ca, tls, way).await;
        let mut client = proxy.client().await;
        for _ in 0..6 {
            // The origin closes each connection, so that each request needs a new one.
            let reply = client.ask("GET /close HTTP/1.1\r\nHost: a.test\r\nX-Close: 1\r\n\r\n").await;
            assert_eq!(reply.origin(), "a");
        }
        let kinds: Vec<_> = origin.handshakes().iter().map(|h| h.kind).collect();
        assert_eq!(kinds.len(), 6, "{kinds:?}");
        let resumed = kinds.iter().filter(|kind| **kind == Some(HandshakeKind::Resumed)).count();
        assert!(resumed >= 4, "{tls}, {way}: {kinds:?}");
    }
}

#[tokio::test]
async fn sessions_outlive_a_reload() {
    let ca = Ca::new();
    let origin = Origin::tls("a", ca.issue(&["origin.test"]).server(&["http/1.1"])).await;
    let tls = "sni: origin.test, ca: <ca>";
    let proxy = before(&origin.address, &ca, tls, "protocol: h1\nthreads: 1").await;
    let ask = async || {
        let reply = proxy.client().await.ask("GET / HTTP/1.1\r\nHost: a.test\r\nX-Close: 1\r\n\r\n").await;
        assert_eq!(reply.origin(), "a");
    };
    ask().await;
    let text = std::fs::read_to_string(proxy.config.dir().join("rrlb.yaml")).expect("the file");
    proxy.config.write_text(&text.replace("protocol: h1", "protocol: h1\n    timeouts: { idle: 7s }"));
    proxy.signal(libc::SIGHUP);
    proxy.logged("config.reloaded").await;
    ask().await;
    let kinds: Vec<_> = origin.handshakes().iter().map(|h| h.kind).collect();
    assert_eq!(kinds, [Some(HandshakeKind::Full), Some(HandshakeKind::Resumed)]);
}

#[tokio::test]
async fn an_answer_that_ends_with_the_connection_is_whole_only_after_close_notify() {
    let ca = Ca::new();
    let server = ca.issue(&["origin.test"]).server(&["http/1.1"]);
    let origin = Origin::tls_script("a", server, |mut peer: Peer| async move {
        let Some(request) = peer.request().await else { return };
        peer.send("HTTP/1.1 200 OK\r\nX-Origin: a\r\n\r\nsome words").await;
        if request.target() == "/whole" {
            let _ = peer.wire.finish().await;
        }
    })
    .await;
    // One worker, whose log lines are in order.
    let proxy = before(&origin.address, &ca, "sni: origin.test, ca: <ca>", "protocol: h1\nthreads: 1").await;
    assert_eq!(proxy.get("/whole").await.text(), "some words");
    let mut client = tokio::net::TcpStream::connect(proxy.listen).await.expect("connects");
    client.write_all(b"GET /cut HTTP/1.1\r\nHost: a.test\r\n\r\n").await.expect("sends");
    let mut answer = Vec::new();
    // An end or a reset.
    let _ = client.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.contains("some words") && !answer.ends_with("0\r\n\r\n"), "{answer}");
    assert_eq!(proxy.access_log(2).await[1]["reason"], "response_truncated");
}

#[tokio::test]
async fn an_idle_connection_with_tls_is_used_again_and_seen_to_close() {
    let ca = Ca::new();
    let origin = Origin::tls("a", ca.issue(&["origin.test"]).server(&["http/1.1"])).await;
    let more = "protocol: h1\n    timeouts: { idle: 400ms }\nthreads: 1";
    let proxy = before(&origin.address, &ca, "sni: origin.test, ca: <ca>", more).await;
    let mut client = proxy.client().await;
    for _ in 0..20 {
        assert_eq!(client.get("/").await.origin(), "a");
    }
    assert_eq!(origin.connections(), 1, "the connection was not kept");
    wait_until("the idle connection to be closed", || origin.open() == 0).await;
    assert_eq!(client.get("/").await.origin(), "a");
}

#[tokio::test]
async fn different_tls_settings_never_share_a_connection() {
    let (ca, clients) = (Ca::new(), Ca::new());
    for protocol in ["auto", "h1"] {
        never_share_a_connection(&ca, &clients, protocol).await;
    }
}

async fn never_share_a_connection(ca: &Ca, clients: &Ca, protocol: &str) {
    let origin = Origin::tls("a", ca.issue(&["one.test", "two.test"]).server(&["http/1.1"])).await;
    let yaml = "
        threads: 1
        certificates: { mine: <mine>, other: <other> }
        upstreams:
          loose: { backends: [\"<a>\"], protocol: <protocol>, tls: { sni: one.test, verify: false } }
          strict: { backends: [\"<a>\"], protocol: <protocol>, tls: { sni: one.test, ca: <ca> } }
          named: { backends: [\"<a>\"], protocol: <protocol>, tls: { sni: two.test, ca: <ca> } }
          system: { backends: [\"<a>\"], protocol: <protocol>, tls: { sni: one.test } }
          mine: { backends: [\"<a>\"], protocol: <protocol>, tls: { sni: one.test, ca: <ca>, client_cert: mine } }
          other: { backends: [\"<a>\"], protocol: <protocol>, tls: { sni: one.test, ca: <ca>, client_cert: other } }
          plain: { backends: [\"<a>\"], protocol: <protocol>, tls: { sni: one.test, ca: <ca>, alpn: [http/1.1] } }
        routes:
          - { match: { path: /loose }, upstream: loose }
          - { match: { path: /strict }, upstream: strict }
          - { match: { path: /named }, upstream: named }
          - { match: { path: /system }, upstream: system }
          - { match: { path: /mine }, upstream: mine }
          - { match: { path: /other }, upstream: other }
          - { match: { path: /plain }, upstream: plain }";
    let config = Config::new(yaml).put("a", &origin.address).put("protocol", protocol);
    let mine = clients.issue(&["mine.test"]).write(config.dir(), "mine");
    let other = clients.issue(&["other.test"]).write(config.dir(), "other");
    let path = ca.write(config.dir());
    let proxy = config.put("mine", mine).put("other", other).put("ca", path.display()).start().await;
    let mut client = proxy.client().await;
    // What differs in what is offered alone has connections of its own where both are.
    let all = ["loose", "strict", "named", "mine", "other", "plain"];
    let apart = if protocol == "auto" { 6 } else { 5 };
    for (index, upstream) in all.iter().enumerate().take(apart) {
        for _ in 0..2 {
            assert_eq!(client.get(&format!("/{upstream}")).await.status(), 200, "{upstream}");
        }
        let connections = origin.connections();
        assert!(connections > index, "{upstream} used a connection of others: {connections}");
    }
    assert_eq!(client.get("/system").await.status(), 502, "an unverified connection was used");
}

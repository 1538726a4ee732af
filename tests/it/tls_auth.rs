//! Who gets in by TLS: certificates of clients, revocation, what backends are told, names, profiles.

use std::{fs, sync::Arc, time::Duration};

use rustls::{ClientConfig, HandshakeKind, NamedGroup, SupportedProtocolVersion, version};

use crate::support::{
    eventually,
    http1::{Client, get_with},
    http2::Client2,
    origin::Origin,
    proxy::{Config, Proxy},
    tls::{Ca, Leaf},
};

const BOTH: &[&SupportedProtocolVersion] = &[&version::TLS12, &version::TLS13];

/// A TLS listener for `a.test` whose clients have their certificates from a CA in `ca.pem`.
fn clients_of(server: &Ca, clients: &Ca, origin: &Origin, auth: &str) -> Config {
    let yaml = "
        certificates: { main: <main> }
        listeners: [{ address: <listen>, tls: { certificates: [main], client_auth: { <auth> } } }]";
    let config = Config::before(&[origin], yaml).put("auth", auth);
    clients.write(config.dir());
    let main = server.issue(&["a.test"]).write(config.dir(), "main");
    config.put("main", main)
}

/// Whether such a client gets an answer. In TLS 1.3 it learns only then that its certificate was not liked.
async fn is_served(proxy: &Proxy, config: &Arc<ClientConfig>) -> bool {
    match Client::try_tls(proxy.listen, "a.test", config).await {
        Ok(mut client) => client.try_get("/").await.is_ok_and(|answer| answer.status() == 200),
        Err(_) => false,
    }
}

fn told(origin: &Origin) -> [Option<String>; 3] {
    let request = origin.requests().pop().expect("a request");
    let names = ["x-client-cert-verify", "x-client-cert-subject", "x-client-cert-fingerprint"];
    names.map(|name| {
        assert!(request.fields(name).len() < 2, "{name} twice");
        request.field(name).map(str::to_owned)
    })
}

fn success(leaf: &Leaf, name: &str) -> [Option<String>; 3] {
    [Some("SUCCESS".to_owned()), Some(format!("CN={name},O=Example")), Some(leaf.fingerprint())]
}

fn none() -> [Option<String>; 3] {
    [Some("NONE".to_owned()), None, None]
}

#[tokio::test]
async fn a_required_certificate_keeps_everyone_else_out() {
    let (ca, clients, origin) = (Ca::new(), Ca::new(), Origin::echo("a").await);
    let proxy = clients_of(&ca, &clients, &origin, "mode: required, ca: <dir>/ca.pem").start().await;
    for offered in BOTH {
        let good = clients.issue_client("device 7");
        let config = good.client(&ca, &["http/1.1"], &[offered]);
        let mut client = Client::tls(proxy.listen, "a.test", &config).await;
        for _ in 0..2 {
            assert_eq!(client.get("/").await.status(), 200);
            assert_eq!(told(&origin), success(&good, "device 7"));
        }
        let before = origin.total();
        assert!(!is_served(&proxy, &ca.client_with(&["http/1.1"], &[offered])).await, "without one");
        for bad in [Ca::new().issue_client("device 7"), clients.expired(&["device"])] {
            assert!(!is_served(&proxy, &bad.client(&ca, &["http/1.1"], &[offered])).await, "with a bad one");
        }
        assert_eq!(origin.total(), before);
    }
    proxy.metric("rrlb_tls_handshakes_total", &["failed"], |failed| failed == 6.0).await;
}

#[tokio::test]
async fn an_optional_certificate_may_be_missing_but_not_bad() {
    let (ca, clients, origin) = (Ca::new(), Ca::new(), Origin::echo("a").await);
    let proxy = clients_of(&ca, &clients, &origin, "mode: optional, ca: <dir>/ca.pem").start().await;
    assert!(is_served(&proxy, &ca.client(&[])).await);
    assert_eq!(told(&origin), none());
    let good = clients.issue_client("ü, x");
    let client = Client2::tls(proxy.listen, "a.test", &good.client(&ca, &["h2"], BOTH)).await;
    assert_eq!(client.get("/").await.text(), "a");
    assert_eq!(told(&origin), success(&good, "\\C3\\BC\\, x"));
    assert!(!is_served(&proxy, &Ca::new().issue_client("x").client(&ca, &[], BOTH)).await);
}

#[tokio::test]
async fn a_route_and_a_limit_go_by_the_certificate() {
    let (ca, clients, origin) = (Ca::new(), Ca::new(), Origin::echo("a").await);
    let yaml = "
        certificates: { main: <main> }
        listeners: [{ address: <listen>, tls: { certificates: [main],
            client_auth: { mode: optional, ca: <dir>/ca.pem } } }]
        routes:
          - { match: { path: /m, header: { X-Client-Cert-Verify: SUCCESS } }, upstream: app }
          - { match: { path: /m }, respond: { status: 403 } }
          - { match: { path: /k }, rate_limit: { rate: 1/h, key: { header: X-Client-Cert-Fingerprint } }, upstream: app }";
    let config = Config::before(&[&origin], yaml);
    clients.write(config.dir());
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    let forged = "X-Client-Cert-Verify: SUCCESS\r\nX-Client-Cert-Fingerprint: 00\r\n";
    let ask = async |config: &Arc<ClientConfig>, path: &str, fields: &str| {
        let mut client = Client::tls(proxy.listen, "a.test", config).await;
        client.ask(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n")).await.status()
    };
    let [one, two] = ["one", "two"].map(|name| clients.issue_client(name).client(&ca, &["http/1.1"], BOTH));
    let none = ca.client(&["http/1.1"]);
    for fields in ["", forged] {
        assert_eq!(ask(&one, "/m", fields).await, 200, "{fields}");
        assert_eq!(ask(&none, "/m", fields).await, 403, "{fields}");
    }
    let h2 = Client2::tls(proxy.listen, "a.test", &clients.issue_client("h2").client(&ca, &["h2"], BOTH)).await;
    assert_eq!(h2.get("/m").await.status, 200);
    for client in [&one, &two, &none] {
        assert_eq!(ask(client, "/k", "").await, 200, "its own");
        assert_eq!(ask(client, "/k", forged).await, 429);
    }
}

#[tokio::test]
async fn no_client_can_say_what_its_certificate_is() {
    let (ca, clients, origin) = (Ca::new(), Ca::new(), Origin::echo("a").await);
    let yaml = "
        certificates: { main: <main> }
        listeners:
          - { address: <listen> }
          - { address: <tls>, tls: { certificates: [main], client_auth: { mode: optional, ca: <dir>/ca.pem } } }
        trusted_proxies: [127.0.0.0/8]";
    let secure = crate::support::address::unused();
    let config = Config::before(&[&origin], yaml).put("tls", secure);
    clients.write(config.dir());
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    let forged = "X-Client-Cert-Verify: SUCCESS\r\nx-client-CERT-Subject: CN=root\r\nX_Client_Cert_Subject: CN=root\r\n\
        X-Client_Cert-Fingerprint: 00\r\nX-Client-Cert-Verify: SUCCESS\r\nX-Client-Cert-Other: kept\r\n\
        X.Client.Cert.Subject: CN=root\r\nX-Client-Cert.Fingerprint: 00\r\nX!Client!Cert!Verify: SUCCESS\r\n";
    assert_eq!(get_with(proxy.listen, "/", forged).await.status(), 200);
    let heads = origin.requests();
    let names = |head: &crate::support::http1::Message| {
        let mut names: Vec<String> = head.fields.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
        names.retain(|name| name.contains("client"));
        names
    };
    assert_eq!(names(&heads[0]), ["x-client-cert-other"]);
    let mut client = Client::tls(secure, "a.test", &ca.client(&["http/1.1"])).await;
    client.ask(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{forged}Connection: X-Client-Cert-Verify\r\n\r\n")).await;
    assert_eq!(told(&origin), none(), "nor can it take out what is said of it");
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_and_so_is_everyone_by_an_old_list() {
    let (ca, clients, origin) = (Ca::new(), Ca::new(), Origin::echo("a").await);
    let (good, bad) = (clients.issue_client("good"), clients.issue_client("bad"));
    let auth = "mode: required, ca: <dir>/ca.pem, crl: <dir>/clients.crl";
    let config = clients_of(&ca, &clients, &origin, auth);
    let list = config.dir().join("clients.crl");
    fs::write(&list, clients.revoke(&[&bad], 2090)).expect("write");
    let proxy = config.start().await;
    let config = good.client(&ca, &["http/1.1"], BOTH);
    for _ in 0..3 {
        assert!(is_served(&proxy, &config).await);
    }
    assert!(!is_served(&proxy, &bad.client(&ca, &[], BOTH)).await);
    // From now on the other one is. Its tickets, which bring the certificate back unchecked, are worth nothing.
    fs::write(&list, clients.revoke(&[&good], 2090)).expect("write");
    proxy.metric("rrlb_certificate_reloads_total", &["ok"], |reloads| reloads == 1.0).await;
    proxy.logged("clients.crl").await;
    assert!(!proxy.stderr().contains("ca.pem"), "the authorities did not change: {}", proxy.stderr());
    assert!(!is_served(&proxy, &config).await);
    assert!(is_served(&proxy, &bad.client(&ca, &[], BOTH)).await);
    fs::write(&list, "half of a list").expect("write");
    proxy.metric("rrlb_certificate_reloads_total", &["failed"], |failed| failed == 1.0).await;
    assert!(is_served(&proxy, &bad.client(&ca, &[], BOTH)).await);
    fs::write(&list, clients.revoke(&[], 2025)).expect("write");
    proxy.metric("rrlb_certificate_reloads_total", &["ok"], |reloads| reloads == 2.0).await;
    assert!(!is_served(&proxy, &bad.client(&ca, &[], BOTH)).await, "the list is out of date");
    proxy.logged("no client certificate passes").await;
    let in_2026 = 1_767_225_600.0;
    let name = "rrlb_crl_next_update_timestamp_seconds";
    proxy.metric(name, &["clients.crl"], |at| at > 0.0 && at < in_2026).await;
}

#[tokio::test]
async fn a_session_resumes_only_where_clients_are_judged_alike() {
    let (ca, clients, origin) = (Ca::new(), Ca::new(), Origin::echo("a").await);
    let other = Ca::new();
    let yaml = "
        certificates: { main: <main> }
        listeners:
          - { address: <listen>, tls: { certificates: [main], client_auth: { mode: required, ca: <dir>/ca.pem } } }
          - { address: <open>, tls: { certificates: [main] } }
          - { address: <loose>, tls: { certificates: [main], client_auth: { mode: optional, ca: <dir>/ca.pem } } }
          - { address: <other>, tls: { certificates: [main], client_auth: { mode: required, ca: <dir>/other/ca.pem } } }";
    let [open, loose, strange] = [(); 3].map(|()| crate::support::address::unused());
    let config = Config::before(&[&origin], yaml).put("open", open).put("loose", loose).put("other", strange);
    clients.write(config.dir());
    fs::create_dir(config.dir().join("other")).expect("folder");
    other.write(&config.dir().join("other"));
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    let good = clients.issue_client("good");
    for offered in BOTH {
        let kind = async |to, config: &Arc<ClientConfig>| {
            let mut client = Client::tls(to, "a.test", config).await;
            client.try_get("/").await.ok()?;
            client.handshake.map(|handshake| handshake.kind)
        };
        let config = || good.client(&ca, &["http/1.1"], &[offered]);
        let (one, two, three) = (config(), config(), ca.client_with(&["http/1.1"], &[offered]));
        assert_eq!(kind(proxy.listen, &one).await, Some(HandshakeKind::Full));
        assert_eq!(kind(proxy.listen, &one).await, Some(HandshakeKind::Resumed));
        assert_eq!(told(&origin), success(&good, "good"), "also of a session that was resumed");
        assert_eq!(kind(open, &one).await, Some(HandshakeKind::Full));
        assert_eq!(told(&origin), [None, None, None]);
        assert_eq!(kind(loose, &two).await, Some(HandshakeKind::Full));
        assert_eq!(kind(proxy.listen, &two).await, Some(HandshakeKind::Full));
        assert_eq!(kind(open, &three).await, Some(HandshakeKind::Full));
        assert_eq!(kind(loose, &three).await, Some(HandshakeKind::Full));
        assert_eq!(told(&origin), none());
        let config = config();
        assert_eq!(kind(proxy.listen, &config).await, Some(HandshakeKind::Full));
        let refused = Client::try_tls(strange, "a.test", &config).await;
        let refused = match refused {
            Ok(mut client) => client.try_get("/").await.is_err(),
            Err(_) => true,
        };
        assert!(refused, "a ticket of one listener opened another");
    }
}

#[tokio::test]
async fn a_session_does_not_outlive_its_certificate() {
    let (ca, clients, origin) = (Ca::new(), Ca::new(), Origin::echo("a").await);
    let proxy = clients_of(&ca, &clients, &origin, "mode: required, ca: <dir>/ca.pem").start().await;
    for offered in BOTH {
        let config = clients.issue_for(&["device"], Duration::from_secs(3)).client(&ca, &["http/1.1"], &[offered]);
        assert!(is_served(&proxy, &config).await);
        // Each of these resumes the one before.
        eventually("the certificate to be refused", async || !is_served(&proxy, &config).await).await;
    }
}

#[tokio::test]
async fn a_session_with_a_certificate_resumes_after_an_upgrade() {
    let (ca, clients, origin) = (Ca::new(), Ca::new(), Origin::echo("a").await);
    let proxy = clients_of(&ca, &clients, &origin, "mode: required, ca: <dir>/ca.pem").start().await;
    let good = clients.issue_client("good");
    let config = good.client(&ca, &["http/1.1"], BOTH);
    Client::tls(proxy.listen, "a.test", &config).await.get("/").await;
    let proxy = proxy.upgrade().await;
    let mut client = Client::tls(proxy.listen, "a.test", &config).await;
    assert_eq!(client.get("/").await.status(), 200);
    assert_eq!(client.handshake.map(|handshake| handshake.kind), Some(HandshakeKind::Resumed));
    assert_eq!(told(&origin), success(&good, "good"));
}

/// A TLS listener with certificates for `a.test` and `*.b.test`.
async fn two_names(ca: &Ca, origin: &Origin, tls: &str) -> Proxy {
    let yaml = "
        certificates: { a: <a>, b: <b> }
        listeners: [{ address: <listen>, tls: { certificates: [a, b]<tls> } }]";
    let config = Config::before(&[origin], yaml).put("tls", tls);
    let a = ca.issue(&["a.test"]).write(config.dir(), "a");
    let b = ca.issue(&["*.b.test"]).write(config.dir(), "b");
    config.put("a", a).put("b", b).start().await
}

#[tokio::test]
async fn strict_sni_refuses_names_without_a_certificate() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = two_names(&ca, &origin, ", strict_sni: true").await;
    for offered in BOTH {
        let config = ca.client_with(&["h2", "http/1.1"], &[offered]);
        for name in ["a.test", "A.Test", "x.b.test"] {
            let client = Client2::tls(proxy.listen, name, &config).await.get("/").await;
            assert_eq!(client.text(), "a", "{name}");
        }
        // An address is no name, so that the client sends none.
        for name in ["c.test", "b.test", "x.x.b.test", "127.0.0.1"] {
            let refused = Client::try_tls(proxy.listen, name, &config).await.map(|_| ()).expect_err(name);
            assert!(refused.to_string().contains("UnrecognisedName"), "{name}: {refused}");
        }
    }
    proxy.metric("rrlb_tls_handshakes_total", &["failed"], |failed| failed == 8.0).await;
}

#[tokio::test]
async fn the_modern_profile_speaks_tls_1_3_only() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = two_names(&ca, &origin, ", profile: modern").await;
    let old = ca.client_with(&["http/1.1"], &[&version::TLS12]);
    assert!(Client::try_tls(proxy.listen, "a.test", &old).await.is_err());
    let mut client = Client::tls(proxy.listen, "a.test", &ca.client(&["http/1.1"])).await;
    assert_eq!(client.get("/").await.status(), 200);
    assert_eq!(client.handshake.and_then(|handshake| handshake.group), Some(NamedGroup::X25519MLKEM768));
}

#[tokio::test]
async fn session_secrets_are_written_only_where_the_file_says_so() {
    for (tls, written) in [("", false), (", keylog: true", true)] {
        let (ca, origin) = (Ca::new(), Origin::echo("a").await);
        let yaml = "
            certificates: { a: <a> }
            listeners: [{ address: <listen>, tls: { certificates: [a]<tls> } }]";
        let config = Config::before(&[&origin], yaml).put("tls", tls);
        let a = ca.issue(&["a.test"]).write(config.dir(), "a");
        let file = config.dir().join("secrets.log");
        let mut proxy = config.put("a", a).spawn_with(&[], |command| {
            command.env("SSLKEYLOGFILE", &file);
        });
        proxy.ready().await;
        Client::tls(proxy.listen, "a.test", &ca.client(&[])).await.get("/").await;
        let secrets = || fs::read_to_string(&file).unwrap_or_default();
        if written {
            eventually("secrets", async || secrets().contains("CLIENT_TRAFFIC_SECRET_0 ")).await;
            assert!(proxy.stderr().contains("SSLKEYLOGFILE"), "no warning: {}", proxy.stderr());
        } else {
            assert_eq!(secrets(), "");
        }
    }
}

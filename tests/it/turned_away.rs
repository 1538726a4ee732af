//! Connections that nothing is asked on: each is counted and logged by its cause, and answered where HTTP can be spoken.

use std::{fs, sync::Arc};

use rustls::{ClientConfig, SupportedProtocolVersion, version};

use crate::support::{
    address,
    http1::{Client, get},
    origin::Origin,
    proxy::{Config, Proxy},
    tls::Ca,
};

const COUNTER: &str = "rrlb_connections_refused_total";
const BOTH: &[&SupportedProtocolVersion] = &[&version::TLS12, &version::TLS13];

/// A TLS listener for `a.test`, with more in its `tls` and in itself.
async fn secure(ca: &Ca, origin: &Origin, tls: &str, more: &str) -> Proxy {
    let yaml = "
        certificates: { main: <main> }
        listeners: [{ address: <listen>, tls: { certificates: [main], <tls> }, <more> }]";
    let config = Config::before(&[origin], yaml).put("tls", tls).put("more", more);
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    config.put("main", main).start().await
}

/// Waits until so many connections are counted for a cause, and one is logged with it.
async fn told(proxy: &Proxy, cause: &str, count: f64) {
    let label = format!("cause=\"{cause}\"");
    proxy.metric(COUNTER, &[&label], |counted| counted == count).await;
    proxy.logged(&format!("turned a connection of 127.0.0.1 away: {cause}")).await;
}

/// Whether such a client gets an answer. In TLS 1.3 it learns only then that its certificate was not liked.
async fn is_served(proxy: &Proxy, name: &str, config: &Arc<ClientConfig>) -> bool {
    match Client::try_tls(proxy.listen, name, config).await {
        Ok(mut client) => client.try_get("/").await.is_ok_and(|answer| answer.status() == 200),
        Err(_) => false,
    }
}

#[tokio::test]
async fn plain_http_on_a_tls_port_is_400_with_its_reason() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = secure(&ca, &origin, "alpn: [h2, http/1.1]", "").await;
    // At once, and byte by byte.
    for parts in [vec![get("/x")], get("/x").chars().map(String::from).collect()] {
        let mut client = proxy.client().await;
        for part in parts {
            client.send(part).await;
        }
        let answer = client.response().await;
        assert_eq!(answer.status(), 400, "{answer:?}");
        let status = answer.field("proxy-status");
        assert_eq!(status, Some("rrlb; error=http_request_error; details=\"plain_http\""), "{answer:?}");
        assert_eq!(answer.field("connection"), Some("close"));
        assert_eq!(client.closed().await, b"");
    }
    for line in proxy.access_log(2).await {
        let said = ["reason", "method", "path", "host"].map(|key| line[key].as_str().unwrap_or_default().to_owned());
        assert_eq!((said, &line["status"]), (["plain_http", "GET", "/x", "a.test"].map(String::from), &400.into()));
    }
    told(&proxy, "plain_http", 2.0).await;
    proxy.metric("rrlb_failures_total", &["reason=\"plain_http\""], |n| n == 2.0).await;
    proxy.metric("rrlb_tls_handshakes_total", &["failed"], |n| n == 2.0).await;
    assert_eq!(origin.total(), 0);
    assert!(is_served(&proxy, "a.test", &ca.client(&[])).await);
}

#[tokio::test]
async fn plain_http_has_one_word_everywhere_whatever_else_is_wrong_with_it() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = secure(&ca, &origin, "", "").await;
    let long = format!("GET / HTTP/1.1\r\nHost: a.test\r\nX: {}\r\n\r\n", "x".repeat(100_000));
    let requests: [&[u8]; 4] = [
        b"GET / HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: a.test\r\n\r\n",
        b"CONNECT a.test:1 HTTP/1.1\r\nHost: a.test:1\r\n\r\n",
        long.as_bytes(),
    ];
    for (at, request) in requests.into_iter().enumerate() {
        let mut client = proxy.client().await;
        client.send(request).await;
        let answer = client.response().await;
        let status = answer.field("proxy-status").unwrap_or_default();
        assert!(answer.status() == 400 && status.contains("details=\"plain_http\""), "{at}: {answer:?}");
    }
    told(&proxy, "plain_http", 4.0).await;
    proxy.metric("rrlb_failures_total", &["reason=\"plain_http\""], |n| n == 4.0).await;
    for reason in ["bad_request", "method_not_allowed", "header_too_large"] {
        proxy.metric("rrlb_failures_total", &[&format!("reason=\"{reason}\"")], |n| n == 0.0).await;
    }
    for line in proxy.access_log(4).await {
        assert_eq!(line["reason"].as_str(), Some("plain_http"), "{line}");
    }
}

#[tokio::test]
async fn plain_http_behind_a_proxy_header_is_400_too() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = secure(&ca, &origin, "", "proxy_protocol: { from: 127.0.0.0/8 }").await;
    let mut client = proxy.client().await;
    client.send(format!("PROXY TCP4 203.0.113.7 198.51.100.9 4242 443\r\n{}", get("/"))).await;
    assert_eq!(client.response().await.status(), 400);
    proxy.logged("turned a connection of 203.0.113.7 away: plain_http").await;
    assert_eq!(proxy.access_log(1).await[0]["client"], "203.0.113.7");
}

#[tokio::test]
async fn what_is_neither_tls_nor_http_is_closed_and_counted() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = secure(&ca, &origin, "", "").await;
    let hello_of_nothing = [&b"\x16\x03\x01\x00\x05"[..], &[0xff; 5]].concat();
    // All but a byte of a ClientHello that is longer than a server has to take.
    let mut long_hello: Vec<u8> = [&b"\x01\x00\xff\xf6\x03\x03"[..], &[b'r'; 65_524]].concat();
    long_hello.pop();
    let record =
        |part: &[u8]| [&[0x16, 3, 1], &u16::try_from(part.len()).expect("short").to_be_bytes()[..], part].concat();
    let long_hello = long_hello.chunks(16_384).flat_map(record).collect();
    let garbage =
        [b"SSH-2.0-OpenSSH_9.2\r\n\r\n".to_vec(), vec![0; 100], vec![0xff; 100], hello_of_nothing, long_hello];
    for (count, garbage) in garbage.iter().enumerate() {
        let mut client = proxy.client().await;
        client.send(garbage).await;
        assert!(!client.closed().await.starts_with(b"HTTP"), "{count}");
        told(&proxy, "tls_malformed", count as f64 + 1.0).await;
    }
    // Who only looks whether the port is open is nobody to tell of.
    let mut client = proxy.client().await;
    client.wire.finish().await.expect("the end");
    client.closed().await;
    let probe = tokio::net::TcpStream::connect(proxy.listen).await.expect("connect");
    socket2::SockRef::from(&probe).set_linger(Some(std::time::Duration::ZERO)).expect("linger");
    drop(probe);
    proxy.metric("rrlb_tls_handshakes_total", &["failed"], |n| n == garbage.len() as f64 + 2.0).await;
    assert_eq!(proxy.scrape().await.sum(COUNTER, &[]), garbage.len() as f64);
}

#[tokio::test]
async fn an_unknown_name_is_told_where_names_are_strict() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = secure(&ca, &origin, "strict_sni: true", "").await;
    assert!(!is_served(&proxy, "b.test", &ca.client(&[])).await);
    told(&proxy, "unknown_name", 1.0).await;
    proxy.logged("(no certificate for b.test)").await;
}

#[tokio::test]
async fn a_client_without_a_common_version_is_told() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = secure(&ca, &origin, "profile: modern", "").await;
    assert!(!is_served(&proxy, "a.test", &ca.client_with(&[], &[&version::TLS12])).await);
    told(&proxy, "tls_nothing_in_common", 1.0).await;
}

#[tokio::test]
async fn a_client_that_does_not_trust_us_is_told() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = secure(&ca, &origin, "", "").await;
    assert!(!is_served(&proxy, "a.test", &Ca::new().client(&[])).await);
    told(&proxy, "tls_aborted", 1.0).await;
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_told() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = secure(&ca, &origin, "", "limits: { handshake_timeout: 300ms }").await;
    for (count, first) in [&b""[..], b"\x16\x03\x01\x02"].iter().enumerate() {
        let mut client = proxy.client().await;
        client.send(first).await;
        client.closed().await;
        told(&proxy, "tls_timeout", count as f64 + 1.0).await;
    }
}

#[tokio::test]
async fn each_fault_of_a_clients_certificate_has_its_own_word() {
    let (ca, clients, origin) = (Ca::new(), Ca::new(), Origin::echo("a").await);
    let revoked = clients.issue_client("revoked");
    let yaml = "
        certificates: { main: <main> }
        listeners: [{ address: <listen>, tls: { certificates: [main],
          client_auth: { mode: required, ca: <dir>/ca.pem, crl: <dir>/clients.crl } } }]";
    let config = Config::before(&[&origin], yaml);
    clients.write(config.dir());
    let list = config.dir().join("clients.crl");
    fs::write(&list, clients.revoke(&[&revoked], 2090)).expect("write");
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    for (round, offered) in BOTH.iter().enumerate() {
        for (cause, config) in [
            ("client_cert_missing", ca.client_with(&[], &[offered])),
            ("client_cert_untrusted", Ca::new().issue_client("x").client(&ca, &[], &[offered])),
            ("client_cert_expired", clients.expired(&["x"]).client(&ca, &[], &[offered])),
            ("client_cert_revoked", revoked.client(&ca, &[], &[offered])),
        ] {
            assert!(!is_served(&proxy, "a.test", &config).await, "{cause}");
            told(&proxy, cause, round as f64 + 1.0).await;
        }
    }
    fs::write(&list, clients.revoke(&[], 2025)).expect("write");
    proxy.metric("rrlb_certificate_reloads_total", &["ok"], |reloads| reloads == 1.0).await;
    assert!(!is_served(&proxy, "a.test", &clients.issue_client("good").client(&ca, &[], BOTH)).await);
    told(&proxy, "client_cert_unchecked", 1.0).await;
}

#[tokio::test]
async fn an_authoritys_certificate_is_no_clients_and_the_log_says_so() {
    let (ca, clients, origin) = (Ca::new(), Ca::new(), Origin::echo("a").await);
    let yaml = "
        certificates: { main: <main> }
        listeners: [{ address: <listen>, tls: { certificates: [main],
          client_auth: { mode: required, ca: <dir>/ca.pem } } }]";
    let config = Config::before(&[&origin], yaml);
    clients.write(config.dir());
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    let authority = clients.issue_authority("sub").client(&ca, &[], BOTH);
    assert!(!is_served(&proxy, "a.test", &authority).await);
    told(&proxy, "client_cert_untrusted", 1.0).await;
    proxy.logged("client_cert_untrusted (the certificate is an authority's, not a client's)").await;
}

#[tokio::test]
async fn each_fault_of_a_proxy_header_has_its_own_word() {
    let origin = Origin::echo("a").await;
    let yaml = "
        listeners:
          - { address: <listen>, proxy_protocol: { from: 127.0.0.0/8 }, limits: { header_timeout: 1s } }
          - { address: \"<strange>\", proxy_protocol: { from: 10.0.0.0/8 } }";
    let strange = address::unused();
    let proxy = Config::before(&[&origin], yaml).put("strange", strange).start().await;
    for (cause, to, sent) in [
        ("proxy_header_missing", proxy.listen, "GET / HTTP/1.1\r\n"),
        ("proxy_header_malformed", proxy.listen, "PROXY TCP4 no address\r\n"),
        ("proxy_header_timeout", proxy.listen, "PROXY TCP4"),
        ("proxy_header_refused", strange, "PROXY TCP4 203.0.113.7 198.51.100.9 4242 443\r\n"),
    ] {
        let mut client = Client::connect(to).await;
        client.send(sent).await;
        assert_eq!(client.closed().await, b"", "{cause}");
        told(&proxy, cause, 1.0).await;
    }
}

#[tokio::test]
async fn one_too_many_is_429_in_plain_text_and_closed_where_tls_is_spoken() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let yaml = "
        certificates: { main: <main> }
        listeners:
          - { address: <listen>, limits: { connections: 1 } }
          - { address: \"<each>\", limits: { connections_per_ip: 1 } }
          - { address: \"<behind>\", limits: { connections_per_ip: 1 }, proxy_protocol: { from: 127.0.0.0/8 } }
          - { address: \"<secure>\", limits: { connections: 1 }, tls: { certificates: [main] } }";
    let [each, behind, secure] = [(); 3].map(|()| address::unused());
    let config = Config::before(&[&origin], yaml).put("each", each).put("behind", behind).put("secure", secure);
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    const HEADER: &str = "PROXY TCP4 203.0.113.7 198.51.100.9 4242 443\r\n";
    for (to, header, cause) in [(proxy.listen, "", "limit"), (each, "", "per_ip"), (behind, HEADER, "per_ip")] {
        let mut first = Client::connect(to).await;
        first.send(header).await;
        assert_eq!(first.get("/").await.status(), 200);
        let mut second = Client::connect(to).await;
        second.send(header).await;
        let answer = second.response().await;
        assert_eq!(answer.status(), 429, "{answer:?}");
        let status = format!("rrlb; error=http_request_denied; details=\"{cause}\"");
        assert_eq!(answer.field("proxy-status"), Some(status.as_str()));
        assert_eq!((answer.field("connection"), second.closed().await), (Some("close"), Vec::new()));
    }
    told(&proxy, "limit", 1.0).await;
    told(&proxy, "per_ip", 2.0).await;
    let _first = Client::tls(secure, "a.test", &ca.client(&[])).await;
    assert_eq!(Client::connect(secure).await.closed().await, b"");
    told(&proxy, "limit", 2.0).await;
}

#[tokio::test]
async fn every_cause_is_there_before_anybody_comes_and_a_flood_fills_no_log() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = secure(&ca, &origin, "", "").await;
    let scrape = proxy.scrape().await;
    assert_eq!((scrape.samples(COUNTER).count(), scrape.sum(COUNTER, &[])), (18, 0.0));
    for _ in 0..300 {
        let mut client = proxy.client().await;
        client.send([0; 100]).await;
        client.closed().await;
    }
    proxy.metric(COUNTER, &["cause=\"tls_malformed\""], |n| n == 300.0).await;
    let lines = proxy.stderr().matches("tls_malformed").count();
    assert!((1..100).contains(&lines), "{lines} lines of 300 connections");
}

/// A ClientHello (RFC 8446 §4.1.2) that asks for this name, whatever it is.
fn hello(name: &[u8]) -> Vec<u8> {
    let sized = |bytes: &[u8]| [&u16::try_from(bytes.len()).expect("short").to_be_bytes(), bytes].concat();
    let names = sized(&[&[0], &sized(name)[..]].concat());
    let extensions = sized(&[&[0, 0], &sized(&names)[..]].concat());
    let body = [&[3, 3], &[7; 32][..], &[0], &[0, 2, 0xc0, 0x2b], &[1, 0], &extensions].concat();
    let length = u32::try_from(body.len()).expect("short").to_be_bytes();
    [&[22, 3, 1], &sized(&[&[1], &length[1..], &body].concat())[..]].concat()
}

#[tokio::test]
async fn what_strangers_ask_for_does_not_fill_the_log() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let proxy = secure(&ca, &origin, "alpn: [http/1.1]", "").await;
    let before = proxy.stderr().len();
    for _ in 0..20 {
        let mut client = proxy.client().await;
        client.send(hello(&[1; 15_000])).await;
        client.closed().await;
    }
    proxy.metric(COUNTER, &[], |counted| counted == 20.0).await;
    let told = proxy.stderr().split_off(before);
    assert!(told.len() < 4096, "{} bytes: {:.300}", told.len(), told);
}

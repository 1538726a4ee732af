//! Who is let in, and what holds those back who would take too much.

use std::{sync::Arc, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{
    super::Limits,
    support::{Bench, SOON, documented, raw, request},
};

const READ: &str = "Authorization: Bearer looker\r\n";
const CHANGE: &str = "Authorization: Bearer secret\r\n";
const JSON: &str = "Content-Type: application/json\r\n";

#[tokio::test]
async fn a_token_is_needed_on_tcp_and_a_read_token_only_reads() {
    let bench = Bench::start().await;
    let drain = ("PATCH", "/v1/upstreams/app/backends/app-1", r#"{"admin":"drain"}"#);
    for fields in ["", "Authorization: Bearer wrong\r\n", "Authorization: Basic c2VjcmV0\r\n"] {
        for path in ["/v1/status", "/v1/nothing", "/v1/openapi.json"] {
            let reply = bench.ask_tcp("GET", path, fields, "").await;
            assert_eq!((reply.status, reply.problem().0.as_str()), (401, "unauthorized"), "{fields} {path}");
            assert!(reply.header("www-authenticate").is_some_and(|value| value.starts_with("Bearer")));
        }
    }
    assert_eq!(bench.ask_tcp("GET", "/v1/status", READ, "").await.status, 200);
    let question = r#"{"url":"http://h/"}"#;
    assert_eq!(bench.ask_tcp("POST", "/v1/route", &format!("{READ}{JSON}"), question).await.status, 200);
    let refused = bench.ask_tcp(drain.0, drain.1, &format!("{READ}{JSON}"), drain.2).await;
    assert_eq!((refused.status, refused.problem().0.as_str()), (403, "read-only"));
    for path in ["/v1/config/reload", "/v1/config/confirm", "/v1/upgrade", "/v1/stop"] {
        assert_eq!(bench.ask_tcp("POST", path, READ, "").await.status, 403, "{path}");
    }
    assert!(bench.events().is_empty() && bench.operator.last_call().is_empty());
    assert_eq!(bench.ask_tcp(drain.0, drain.1, &format!("{CHANGE}{JSON}"), drain.2).await.status, 200);
    assert_eq!(bench.events().last().map(|event| event.who.clone()).as_deref(), Some("token"));
    let text = bench.metrics.encode();
    assert!(text.contains("rrlb_admin_requests_total{outcome=\"denied\"} 14\n"), "{text}");
    assert!(text.contains("rrlb_admin_requests_total{outcome=\"ok\"} 3\n"), "{text}");
}

#[tokio::test]
async fn web_pages_are_refused_whatever_they_ask() {
    let bench = Bench::start().await;
    for (method, path) in [("GET", "/v1/status"), ("POST", "/v1/stop"), ("GET", "/"), ("OPTIONS", "/v1/status")] {
        let reply = bench.ask_with(method, path, "Origin: http://evil.test\r\n", "").await;
        assert_eq!((reply.status, reply.problem().0.as_str()), (403, "cross-origin"), "{method} {path}");
        let reply = bench.ask_tcp(method, path, &format!("{CHANGE}Origin: null\r\n"), "").await;
        assert_eq!(reply.status, 403, "{method} {path}");
    }
    assert_eq!(bench.operator.last_call(), "");
}

#[tokio::test]
async fn tls_speaks_http1_whatever_its_configuration_offers() {
    let certified = rcgen::generate_simple_self_signed(["admin.test".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::Pkcs8(certified.signing_key.serialize_der().into());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certified.cert.der().clone()], key)
        .expect("a pair");
    server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let bench = Bench::with(Limits::default(), Some(Arc::new(server))).await;
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certified.cert.der().clone()).expect("a root");
    let mut client = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    client.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let stream = TcpStream::connect(bench.tcp).await.expect("a connection");
    let name = "admin.test".try_into().expect("a name");
    let tls = tokio_rustls::TlsConnector::from(Arc::new(client)).connect(name, stream).await.expect("a handshake");
    assert_eq!(tls.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let reply = raw(tls, &request("GET", "/v1/status", READ, "")).await;
    documented("GET", "/v1/status", &reply);
    assert_eq!(reply.status, 200);
}

#[tokio::test]
async fn bodies_are_bounded_in_size_kind_and_time() {
    let limits = Limits { body: Duration::from_millis(100), ..Limits::default() };
    let bench = Bench::with(limits, None).await;
    let path = "/v1/upstreams/app/backends/new";
    let huge = format!("{{\"address\":\"{}\"}}", "x".repeat(1 << 20));
    let reply = bench.ask("PUT", path, &huge).await;
    assert_eq!((reply.status, reply.problem().0.as_str()), (413, "too-large"));
    // Without a length, which only the reading tells.
    let head = format!("PUT {path} HTTP/1.1\r\nHost: admin\r\n{JSON}Transfer-Encoding: chunked\r\n\r\n");
    let chunked = format!("{head}{:x}\r\n{huge}\r\n0\r\n\r\n", huge.len());
    let reply = raw(bench.connect().await, &chunked).await;
    documented("PUT", path, &reply);
    assert_eq!(reply.status, 413);
    let reply = bench.ask("GET", "/v1/status", &huge).await;
    assert_eq!(reply.status, 413, "also where no body is taken");
    for kind in ["", "Content-Type: text/plain\r\n", "Content-Type: application/x-www-form-urlencoded\r\n"] {
        let reply = bench.ask_with("PUT", path, kind, r#"{"address":"h:1"}"#).await;
        assert_eq!((reply.status, reply.problem().0.as_str()), (415, "media-type"), "{kind}");
    }
    let merge = "Content-Type: Application/merge-patch+json; charset=utf-8\r\n";
    assert_eq!(bench.ask_with("PUT", path, merge, r#"{"address":"h:1"}"#).await.status, 201);
    let slow = format!("PUT {path} HTTP/1.1\r\nHost: admin\r\n{JSON}Content-Length: 20\r\n\r\n{{");
    let reply = raw(bench.connect().await, &slow).await;
    documented("PUT", path, &reply);
    assert_eq!((reply.status, reply.problem().0.as_str()), (408, "too-slow"));
}

#[tokio::test]
async fn connections_beyond_the_bound_wait_for_a_place() {
    let limits = Limits { connections: 1, ..Limits::default() };
    let bench = Bench::with(limits, None).await;
    let mut first = bench.connect().await;
    first.write_all(b"GET /v1/status HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("it is sent");
    let mut answered = [0; 12];
    first.read_exact(&mut answered).await.expect("an answer");
    let second = bench.connect().await;
    let mut second = tokio::spawn(async move { raw(second, &request("GET", "/v1/status", "", "")).await });
    let early = tokio::time::timeout(Duration::from_millis(200), &mut second).await;
    assert!(early.is_err(), "it waits while the first holds the place");
    // The other transport has places of its own.
    assert_eq!(bench.ask_tcp("GET", "/v1/status", READ, "").await.status, 200);
    drop(first);
    assert_eq!(second.await.expect("an answer").status, 200);
}

#[tokio::test]
async fn who_sends_no_head_is_cut() {
    let limits = Limits { connections: 1, head: Duration::from_millis(100), ..Limits::default() };
    let bench = Bench::with(limits, None).await;
    let mut silent = bench.connect().await;
    let mut half = bench.connect().await;
    half.write_all(b"GET /v1/st").await.expect("it is sent");
    for stream in [&mut silent, &mut half] {
        let mut rest = Vec::new();
        tokio::time::timeout(SOON, stream.read_to_end(&mut rest)).await.expect("it is cut").ok();
    }
    bench.expect(200, "GET", "/v1/status", "").await;
}

//! The harness itself, without the proxy: what it says about a proxy is worth what these say about it.

use std::time::Duration;

use bytes::Bytes;
use rustls::HandshakeKind;

use crate::support::{
    http1::{self, Client},
    http2::{Client2, Origin2, request},
    metrics::Scrape,
    misbehave::Blackhole,
    origin::Origin,
    tls::Ca,
    wait_until,
};

#[tokio::test]
async fn an_origin_answers_and_remembers() {
    let mut origin = Origin::echo("a").await;
    let at = origin.address.parse().expect("an address");
    let mut client = Client::connect(at).await;
    assert_eq!(client.get("/x").await.text(), "a");
    assert_eq!(client.get("/chunked").await.text(), "hello world");
    assert_eq!(client.get("/size/3000000").await.length, 3_000_000);
    assert_eq!(client.get("/status/404").await.status(), 404);
    assert_eq!(http1::post_once(at, "/p", "body").await.text(), "body");
    assert_eq!((origin.connections(), origin.total(), origin.count("/x")), (2, 5, 1));
    origin.stop().await;
    assert!(Client::try_connect(at).await.is_err());
    origin.restart().await;
    drop(Client::connect(at).await);
    wait_until("a silent connection", || origin.silent() == 1).await;
}

#[tokio::test]
async fn tls_origins_tell_resumed_handshakes() {
    let ca = Ca::new();
    let origin = Origin::tls("a", ca.issue(&["a.test"]).server(&["http/1.1"])).await;
    let (at, config) = (origin.address.parse().expect("an address"), ca.client(&["http/1.1"]));
    for kind in [HandshakeKind::Full, HandshakeKind::Resumed] {
        let mut client = Client::tls(at, "a.test", &config).await;
        assert_eq!(client.handshake.as_ref().map(|h| h.kind), Some(kind));
        assert_eq!(client.get("/").await.origin(), "a");
    }
    assert_eq!(origin.handshakes().last().and_then(|h| h.kind), Some(HandshakeKind::Resumed));
    let wrong = Client::try_tls(at, "b.test", &config).await;
    assert!(wrong.is_err_and(|e| e.to_string().contains("not valid for name")));
}

#[tokio::test]
async fn http2_origins_echo_with_trailers() {
    let ca = Ca::new();
    for tls in [None, Some(ca.issue(&["a.test"]).server(&["h2"]))] {
        let over_tls = tls.is_some();
        let origin = Origin2::start("a", tls).await;
        let client = match over_tls {
            false => Client2::prior(origin.address).await,
            true => Client2::tls(origin.address, "a.test", &ca.client(&["h2"])).await,
        };
        assert_eq!(client.get("/").await.text(), "a");
        let mut call = request("POST", "/grpc");
        call.headers_mut().insert("content-type", "application/grpc".parse().expect("a value"));
        let body = vec![Bytes::from(vec![7; 200_000]), Bytes::from_static(b"end")];
        let reply = client.send(call, body, None).await;
        assert_eq!(reply.body.len(), 200_003);
        assert_eq!(reply.trailers.expect("trailers")["grpc-status"], "0");
    }
}

#[tokio::test]
async fn a_blackhole_neither_accepts_nor_refuses() {
    let hole = Blackhole::new();
    let connecting = tokio::net::TcpStream::connect(hole.address);
    assert!(tokio::time::timeout(Duration::from_millis(300), connecting).await.is_err());
}

#[test]
fn samples_are_summed_by_label() {
    let scrape = Scrape("# TYPE x counter\nx{a=\"1\",b=\"2\"} 3\nx{a=\"1\",b=\"3\"} 4\nxy 9\ny 2.5\n".to_owned());
    assert_eq!(scrape.sum("x", &["a=\"1\""]), 7.0);
    assert_eq!(scrape.sum("x", &["b=\"3\""]), 4.0);
    assert_eq!(scrape.sum("y", &[]), 2.5);
    assert!(scrape.has("x") && !scrape.has("y"));
}

//! SIGTERM drains: what runs finishes, what idles is closed, and the process leaves as soon as nothing is left.

use std::time::{Duration, Instant};

use crate::support::{
    http1::{self, Client, get},
    http2::{Client2, request},
    origin::Origin,
    proxy::{Config, Proxy},
    wait_until,
};

const SOON: Duration = Duration::from_secs(5);

/// A proxy with a request that waits at the origin.
async fn busy(origin: &Origin, more: &str) -> (Proxy, Client) {
    let proxy = Config::before(&[origin], more).start().await;
    let mut client = proxy.client().await;
    client.send(get("/hold")).await;
    wait_until("the request at the origin", || origin.count("/hold") == 1).await;
    (proxy, client)
}

async fn refuses(proxy: &Proxy) {
    let at = proxy.listen;
    crate::support::eventually("the listener to be closed", async || Client::try_connect(at).await.is_err()).await;
}

#[tokio::test]
async fn an_idle_proxy_leaves_at_once() {
    let origin = Origin::echo("a").await;
    for signal in [libc::SIGTERM, libc::SIGINT] {
        let mut proxy = Proxy::before(&[&origin]).await;
        let begun = Instant::now();
        proxy.signal(signal);
        assert!(proxy.ended().await.success(), "{}", proxy.stderr());
        assert!(begun.elapsed() < SOON, "left after {:?}", begun.elapsed());
    }
}

#[tokio::test]
async fn a_request_in_flight_is_finished_and_then_the_process_leaves() {
    let origin = Origin::echo("a").await;
    let (mut proxy, mut client) = busy(&origin, "").await;
    proxy.signal(libc::SIGTERM);
    refuses(&proxy).await;
    assert!(proxy.running(), "left with a request in flight");
    origin.release();
    let reply = client.response().await;
    assert_eq!((reply.status(), reply.origin()), (200, "a"));
    assert_eq!(client.closed().await, b"");
    let begun = Instant::now();
    assert!(proxy.ended().await.success());
    assert!(begun.elapsed() < SOON, "left {:?} after the last request", begun.elapsed());
}

#[tokio::test]
async fn idle_connections_are_closed() {
    let (origin, other) = (Origin::echo("a").await, Origin::echo("b").await);
    let (mut proxy, _busy) = busy(&origin, "listeners: [{ address: <listen>, h2c: true }]").await;
    drop(other);
    let mut idle = Vec::new();
    for _ in 0..10 {
        let mut client = proxy.client().await;
        client.get("/").await;
        idle.push(client);
    }
    let (two, fresh) = (Client2::prior(proxy.listen).await, proxy.client().await);
    two.get("/").await;
    proxy.signal(libc::SIGTERM);
    for client in &mut idle {
        assert_eq!(client.closed().await, b"");
    }
    two.ended().await;
    drop(fresh);
    assert!(proxy.running());
    origin.release();
    assert!(proxy.ended().await.success());
}

#[tokio::test]
async fn readiness_goes_off_while_draining_and_the_metrics_stay() {
    let origin = Origin::echo("a").await;
    let (mut proxy, _client) = busy(&origin, "").await;
    proxy.signal(libc::SIGTERM);
    crate::support::eventually("readiness to go off", async || proxy.probe("/readyz").await == Some(503)).await;
    assert_eq!(proxy.probe("/healthz").await, Some(200));
    assert_eq!(proxy.scrape().await.sum("rrlb_requests_in_flight", &[]), 1.0);
    origin.release();
    assert!(proxy.ended().await.success());
}

#[tokio::test]
async fn http2_streams_finish_after_goaway() {
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], "listeners: [{ address: <listen>, h2c: true }]").start().await;
    let mut proxy = proxy;
    let client = Client2::prior(proxy.listen).await;
    let (response, _) = client.open(request("GET", "/hold"), true).await.expect("a stream");
    wait_until("the request at the origin", || origin.total() == 1).await;
    proxy.signal(libc::SIGTERM);
    refuses(&proxy).await;
    origin.release();
    let reply = crate::support::within("the answer", response).await.expect("an answer");
    assert_eq!(reply.status(), 200);
    drop(reply);
    client.ended().await;
    assert!(proxy.ended().await.success());
}

#[tokio::test]
async fn a_body_in_flight_is_finished() {
    let origin = Origin::script("a", |mut peer| async move {
        if peer.request().await.is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").await;
            peer.held().await;
            peer.send("world").await;
        }
    })
    .await;
    let mut proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    client.send(get("/")).await;
    let mut reply = client.response_head().await;
    proxy.signal(libc::SIGTERM);
    refuses(&proxy).await;
    origin.release();
    client.wire.body(&mut reply).await.expect("the whole body");
    assert_eq!(reply.text(), "helloworld");
    assert!(proxy.ended().await.success());
}

#[tokio::test]
async fn the_grace_period_is_the_upper_bound() {
    let origin = Origin::echo("a").await;
    let (mut proxy, _client) = busy(&origin, "grace_period_seconds: 1\ngraceful_shutdown_timeout_seconds: 1").await;
    let begun = Instant::now();
    proxy.signal(libc::SIGTERM);
    proxy.ended().await;
    let took = begun.elapsed();
    assert!((Duration::from_millis(900)..Duration::from_secs(6)).contains(&took), "left after {took:?}");
}

#[tokio::test]
async fn a_second_signal_leaves_at_once() {
    let origin = Origin::echo("a").await;
    for second in [libc::SIGTERM, libc::SIGINT] {
        let (mut proxy, _client) = busy(&Origin::echo("b").await, "").await;
        proxy.signal(libc::SIGTERM);
        refuses(&proxy).await;
        assert!(proxy.running());
        let begun = Instant::now();
        proxy.signal(second);
        proxy.ended().await;
        assert!(begun.elapsed() < SOON, "left after {:?}", begun.elapsed());
    }
    drop(origin);
}

#[tokio::test]
async fn sigquit_without_a_successor_is_logged_and_ignored() {
    let origin = Origin::echo("a").await;
    let mut proxy = Proxy::before(&[&origin]).await;
    let before = proxy.stderr().len();
    proxy.signal(libc::SIGQUIT);
    wait_until("a line in the log", || proxy.stderr().len() > before).await;
    for _ in 0..5 {
        assert_eq!(proxy.get("/").await.status(), 200);
    }
    assert!(proxy.running());
    assert_eq!(proxy.probe("/readyz").await, Some(200));
    proxy.signal(libc::SIGTERM);
    assert!(proxy.ended().await.success(), "drains after an ignored SIGQUIT");
}

#[tokio::test]
async fn sighup_does_not_kill() {
    let origin = Origin::echo("a").await;
    let mut proxy = Proxy::before(&[&origin]).await;
    proxy.signal(libc::SIGHUP);
    assert_eq!(http1::get_once(proxy.listen, "/").await.status(), 200);
    assert!(proxy.running());
}

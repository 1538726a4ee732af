//! Backends: unix sockets, host names, protocols, connections that are kept.

use crate::support::{
    http1::get,
    http2::Origin2,
    origin::Origin,
    proxy::{Config, Proxy},
    wait_until,
};

#[tokio::test]
async fn a_backend_may_be_a_unix_socket() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("app.sock");
    let origin = Origin::unix("a", &path).await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    for _ in 0..5 {
        assert_eq!(client.get("/").await.origin(), "a");
    }
    assert_eq!(origin.connections(), 1, "the connection was not kept");
}

#[tokio::test]
async fn two_unix_sockets_are_two_backends() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let a = Origin::unix("a", &dir.path().join("a.sock")).await;
    let b = Origin::unix("b", &dir.path().join("b.sock")).await;
    let proxy = Proxy::before(&[&a, &b]).await;
    let mut client = proxy.client().await;
    for _ in 0..10 {
        client.get("/").await;
    }
    assert_eq!((a.total(), b.total()), (5, 5));
}

#[tokio::test]
async fn a_host_name_is_resolved() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
    let at = listener.local_addr().expect("bound");
    drop(listener);
    let origin = Origin::at(at, "a").await;
    let yaml = "upstreams: { app: { backends: [\"localhost:<port>\"] } }";
    let proxy = Config::new(yaml).put("port", at.port()).start().await;
    assert_eq!(proxy.get("/").await.origin(), "a");
    assert_eq!(origin.only_request().field("host"), Some("a.test"));
}

#[tokio::test]
async fn a_name_that_does_not_resolve_stops_neither_the_start_nor_the_others() {
    let origin = Origin::echo("a").await;
    let yaml = "
        upstreams:
          app: { backends: [\"<a>\"] }
          lost: { backends: [\"nowhere.invalid:80\"] }
        routes:
          - { match: { path: /lost }, upstream: lost }
          - { upstream: app }";
    let proxy = Config::new(yaml).put("a", &origin.address).start().await;
    assert_eq!(proxy.get("/").await.origin(), "a");
    let lost = proxy.get("/lost").await.status();
    assert!(matches!(lost, 502 | 503), "{lost}");
}

#[tokio::test]
async fn http2_in_plain_text_is_spoken_to_h2c_backends() {
    let origin = Origin2::start("two", None).await;
    let yaml = "upstreams: { app: { backends: [\"<a>\"], protocol: h2c } }";
    let proxy = Config::new(yaml).put("a", origin.address).start().await;
    assert_eq!(proxy.get("/x").await.text(), "two");
    assert_eq!(origin.requests()[0].path, "/x");
    let reply = crate::support::http1::post_once(proxy.listen, "/p", "body").await;
    assert_eq!(reply.text(), "body");
}

#[tokio::test]
async fn no_more_idle_connections_to_a_backend_are_kept_than_the_file_says() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let more = "engine: exchange\nthreads: 1\nupstream_keepalive_pool_size: 2\n";
    let proxy = Config::before(&[&a, &b], more).start().await;
    let mut clients = Vec::new();
    for _ in 0..10 {
        let mut client = proxy.client().await;
        client.send(get("/hold")).await;
        clients.push(client);
    }
    wait_until("all requests at the origins", || (a.open(), b.open()) == (5, 5)).await;
    a.release();
    b.release();
    for client in &mut clients {
        assert_eq!(client.response().await.status(), 200);
    }
    wait_until("only two of each to be kept", || (a.open(), b.open()) == (2, 2)).await;
    for client in &mut clients {
        client.get("/").await;
    }
    assert_eq!((a.connections(), b.connections()), (5, 5), "those that were kept are used");
}

#[tokio::test]
async fn an_idle_upstream_connection_is_closed_after_its_timeout() {
    let origin = Origin::echo("a").await;
    let more = "    timeouts: { idle: 300ms }";
    let config = Config::new(&format!("upstreams:\n  app:\n    backends: [\"<a>\"]\n{more}"));
    let proxy = config.put("a", &origin.address).start().await;
    proxy.get("/").await;
    wait_until("the idle connection to be closed", || origin.open() == 0).await;
}

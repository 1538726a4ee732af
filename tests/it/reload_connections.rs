//! What a reload means for connections that are open: each of their requests is judged by what is configured when it comes,
//! and who was let in by other rules leaves after the request it is at.

use std::fs;

use rustls::version;

use crate::{
    streaming::{upgrade, websocket},
    support::{
        address, eventually,
        http1::{Client, get},
        http2::{Client2, request},
        origin::Origin,
        proxy::Config,
        tls::Ca,
        within,
    },
};

fn listening(origin: &Origin, listeners: &str) -> String {
    format!("listeners: {listeners}\nupstreams: {{ app: {{ backends: [\"{}\"] }} }}\n", origin.address)
}

fn post(length: usize) -> String {
    format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n\r\n{}", "x".repeat(length))
}

#[tokio::test]
async fn who_is_denied_now_is_denied_on_open_connections_too() {
    let origin = Origin::echo("a").await;
    let yaml = |more: &str| listening(&origin, &format!("[{{ address: <listen>, h2c: true{more} }}]"));
    let proxy = Config::new(&yaml("")).start().await;
    let (mut one, mut unused) = (proxy.client().await, proxy.client().await);
    let two = Client2::prior(proxy.listen).await;
    assert_eq!((one.get("/").await.status(), two.get("/").await.status), (200, 200));
    let before = origin.total();
    proxy.config.instead(&yaml(", deny: [127.0.0.1]")).write();
    proxy.reload().await;
    for _ in 0..2 {
        assert_eq!((one.get("/").await.status(), two.get("/").await.status), (403, 403));
    }
    assert_eq!(unused.get("/").await.status(), 403);
    assert_eq!(origin.total(), before);
    proxy.config.instead(&yaml(", deny: [127.0.0.2]")).write();
    proxy.reload().await;
    assert_eq!((one.get("/").await.status(), two.get("/").await.status), (200, 200), "on the same connections");
    assert_eq!(unused.get("/").await.status(), 200);
}

#[tokio::test]
async fn new_limits_hold_for_requests_on_open_connections() {
    let origin = Origin::echo("a").await;
    let yaml =
        |limits: &str| listening(&origin, &format!("[{{ address: <listen>, h2c: true, limits: {{ {limits} }} }}]"));
    let proxy = Config::new(&yaml("max_body_size: 1KiB")).start().await;
    let mut clients = [proxy.client().await, proxy.client().await, proxy.client().await];
    for client in &mut clients {
        assert_eq!(client.ask(post(11)).await.status(), 200);
    }
    let two = Client2::prior(proxy.listen).await;
    assert_eq!(two.get("/").await.status, 200);
    let (held, _) = two.open(request("GET", "/hold"), true).await.expect("a stream");
    crate::support::wait_until("the request at the origin", || origin.count("/hold") == 1).await;
    proxy.config.instead(&yaml("max_body_size: 10B, max_uri_length: 64B, requests_per_connection: 2")).write();
    proxy.reload().await;
    let [body, line, count] = &mut clients;
    let long = format!("/{}", "x".repeat(64));
    assert_eq!(body.ask(post(11)).await.status(), 413);
    assert_eq!(line.get(&long).await.status(), 414);
    let last = count.get("/").await;
    assert_eq!((last.status(), last.field("connection")), (200, Some("close")), "its second request");
    // HTTP/2 agrees on some limits at the beginning, so such a connection is exchanged for one with the new ones.
    assert_eq!(two.get(&long).await.status, 414);
    eventually("the connection to take no new request", async || two.try_get("/").await.is_err()).await;
    origin.release();
    assert_eq!(within("the stream", held).await.expect("an answer").status(), 200, "what was under way is finished");
    two.ended().await;
}

#[tokio::test]
async fn who_was_not_asked_for_a_certificate_leaves_when_one_is_required() {
    let (ca, clients) = (Ca::new(), Ca::new());
    let (origin, sockets) = (Origin::echo("a").await, Origin::script("w", websocket).await);
    let (secure, other) = (address::unused(), address::unused());
    let yaml = |main: &str, mode: &str| {
        format!(
            "
            certificates: {{ main: {main} }}
            listeners:
              - {{ address: <listen> }}
              - {{ address: \"{secure}\", tls: {{ certificates: [main], client_auth: {{ mode: {mode}, ca: <dir>/ca.pem }} }} }}
              - {{ address: \"{other}\", tls: {{ certificates: [main] }} }}
            upstreams: {{ app: {{ backends: [\"{}\"] }}, sockets: {{ backends: [\"{}\"] }} }}
            routes: [{{ match: {{ path: /ws }}, upstream: sockets }}, {{ upstream: app }}]",
            origin.address, sockets.address
        )
    };
    let config = Config::new("upstreams: { app: { backends: [\"127.0.0.1:1\"] } }");
    clients.write(config.dir());
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let proxy = config.instead(&yaml(&main, "optional")).start().await;
    let (http1, http2) = (ca.client(&["http/1.1"]), ca.client(&["h2"]));
    let mut idle = Client::tls(secure, "a.test", &http1).await;
    let mut busy = Client::tls(secure, "a.test", &http1).await;
    let mut socket = Client::tls(secure, "a.test", &http1).await;
    let two = Client2::tls(secure, "a.test", &http2).await;
    let mut elsewhere = Client::tls(other, "a.test", &http1).await;
    assert_eq!(idle.get("/").await.status(), 200);
    assert_eq!(elsewhere.get("/").await.status(), 200);
    assert_eq!(two.get("/").await.status, 200);
    upgrade(&mut socket).await;
    busy.send(get("/hold")).await;
    crate::support::wait_until("the request at the origin", || origin.count("/hold") == 1).await;

    proxy.config.instead(&yaml(&main, "required")).write();
    proxy.reload().await;
    assert_eq!(idle.closed().await, b"", "soon, as of a listener that is gone");
    two.ended().await;
    origin.release();
    let answer = busy.response().await;
    assert_eq!(answer.status(), 200, "what was under way is finished");
    assert_eq!(busy.closed().await, b"");
    assert!(Client::tls(secure, "a.test", &http1).await.try_get("/").await.is_err(), "nobody new without one");
    socket.send("still here").await;
    assert_eq!(within("the echo", socket.wire.take(10)).await.expect("an echo"), b"still here");
    assert_eq!(elsewhere.get("/").await.status(), 200, "another listener keeps its connections");
}

#[tokio::test]
async fn who_is_on_a_new_revocation_list_leaves() {
    let (ca, clients, origin) = (Ca::new(), Ca::new(), Origin::echo("a").await);
    let (good, bad) = (clients.issue_client("good"), clients.issue_client("bad"));
    let yaml = "
        certificates: { main: <main> }
        listeners:
          - address: <listen>
            tls: { certificates: [main], client_auth: { mode: required, ca: <dir>/ca.pem, crl: <dir>/clients.crl } }";
    let config = Config::before(&[&origin], yaml);
    clients.write(config.dir());
    let list = config.dir().join("clients.crl");
    fs::write(&list, clients.revoke(&[], 2090)).expect("write");
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    let (http1, http2) = (["http/1.1"], ["h2"]);
    let mut one = Client::tls(proxy.listen, "a.test", &bad.client(&ca, &http1, &[&version::TLS13])).await;
    let two = Client2::tls(proxy.listen, "a.test", &bad.client(&ca, &http2, &[&version::TLS13])).await;
    assert_eq!((one.get("/").await.status(), two.get("/").await.status), (200, 200));
    fs::write(&list, clients.revoke(&[&bad], 2090)).expect("write");
    assert_eq!(one.closed().await, b"");
    two.ended().await;
    let again = Client::try_tls(proxy.listen, "a.test", &bad.client(&ca, &http1, &[&version::TLS13])).await;
    assert!(match again {
        Ok(mut client) => client.try_get("/").await.is_err(),
        Err(_) => true,
    });
    let mut client = Client::tls(proxy.listen, "a.test", &good.client(&ca, &http1, &[&version::TLS13])).await;
    assert_eq!(client.get("/").await.status(), 200);
    // A reload with the list that is known already ends nobody's connection.
    proxy.reload().await;
    tokio::task::yield_now().await;
    for _ in 0..3 {
        let answer = client.get("/").await;
        assert_eq!(answer.status(), 200);
        assert_ne!(answer.field("connection"), Some("close"));
    }
}

//! Routes: first match wins, and what is done with the request.

use crate::support::{
    http1::{Client, Message},
    http2::{Client2, request},
    origin::Origin,
    proxy::{Config, Proxy},
};

async fn ask(proxy: &Proxy, method: &str, host: &str, target: &str, fields: &str) -> Message {
    let request = format!("{method} {target} HTTP/1.1\r\nHost: {host}\r\n{fields}\r\n");
    proxy.client().await.ask(request).await
}

async fn body(proxy: &Proxy, host: &str, target: &str) -> String {
    ask(proxy, "GET", host, target, "").await.text()
}

/// No name is so long (RFC 1035 §2.3.4), and no pattern is compared with it.
#[tokio::test]
async fn a_host_longer_than_any_name_finds_no_route() {
    let yaml = "
        listeners: [{ address: <listen>, h2c: true }]
        routes:
          - { match: { host: \"*.api.test\" }, respond: { body: wild } }
          - { respond: { body: other } }
        ";
    let proxy = Config::new(yaml).start().await;
    for (length, body) in [(255, "wild"), (256, ""), (300, "")] {
        let end = ".api.test";
        let host = "x".repeat(length - end.len()) + end;
        let expected = if body.is_empty() { 400 } else { 200 };
        let mut client = Client::connect(proxy.listen).await;
        let reply = client.ask(format!("GET / HTTP/1.1\r\nHost: {host}:80\r\n\r\n")).await;
        assert_eq!(reply.status(), expected, "{length}");
        let mut asked = request("GET", "/");
        *asked.uri_mut() = format!("http://{host}/").parse().expect("a URI");
        let reply = Client2::prior(proxy.listen).await.send(asked, vec![], None).await;
        assert_eq!(reply.status, expected, "{length}");
        assert!(expected == 400 || reply.text() == body, "{length}");
    }
}

#[tokio::test]
async fn hosts_match_exactly_and_by_wildcard() {
    let yaml = "
        routes:
          - { match: { host: api.test }, respond: { body: exact } }
          - { match: { host: [\"*.api.test\", other.test] }, respond: { body: wild } }
          - { respond: { status: 404, body: none } }";
    let proxy = Config::new(yaml).start().await;
    for (host, expected) in [
        ("api.test", "exact"),
        ("API.Test", "exact"),
        ("api.test:8080", "exact"),
        ("v1.api.test", "wild"),
        ("V1.API.TEST:80", "wild"),
        ("other.test", "wild"),
        ("xapi.test", "none"),
        ("api.test.evil", "none"),
    ] {
        assert_eq!(body(&proxy, host, "/").await, expected, "{host}");
    }
}

#[tokio::test]
async fn a_path_prefix_ends_on_a_segment_border() {
    let yaml = "
        routes:
          - { match: { path_exact: /v1/only }, respond: { body: exact } }
          - { match: { path: /v1 }, respond: { body: prefix } }
          - { match: { path: /dir/ }, respond: { body: slash } }
          - { respond: { status: 404, body: none } }";
    let proxy = Config::new(yaml).start().await;
    for (target, expected) in [
        ("/v1", "prefix"),
        ("/v1/", "prefix"),
        ("/v1/x", "prefix"),
        ("/v1?x=1", "prefix"),
        ("/v1x", "none"),
        ("/v", "none"),
        ("/v1/only", "exact"),
        ("/v1/only?x", "exact"),
        ("/v1/only/", "prefix"),
        ("/dir/x", "slash"),
        ("/directory", "none"),
        ("/", "none"),
    ] {
        assert_eq!(body(&proxy, "a.test", target).await, expected, "{target}");
    }
}

#[tokio::test]
async fn methods_and_headers_match_and_all_parts_must() {
    let yaml = "
        routes:
          - { match: { method: [POST, PUT], path: /x }, respond: { body: write } }
          - { match: { header: { X-Canary: \"1\" }, path: /x }, respond: { body: canary } }
          - { match: { path: /x }, respond: { body: plain } }
          - { respond: { status: 404, body: none } }";
    let proxy = Config::new(yaml).start().await;
    for (method, target, fields, expected) in [
        ("POST", "/x", "Content-Length: 0\r\n", "write"),
        ("PUT", "/x", "Content-Length: 0\r\n", "write"),
        ("GET", "/x", "x-canary: 1\r\n", "canary"),
        ("GET", "/x", "x-canary: 2\r\n", "plain"),
        ("GET", "/x", "", "plain"),
        ("POST", "/y", "Content-Length: 0\r\nx-canary: 1\r\n", "none"),
    ] {
        assert_eq!(ask(&proxy, method, "a.test", target, fields).await.text(), expected, "{method} {target} {fields}");
    }
}

#[tokio::test]
async fn the_first_match_wins() {
    let yaml = "
        routes:
          - { match: { path: / }, respond: { body: first } }
          - { match: { host: a.test }, respond: { body: second } }";
    let proxy = Config::new(yaml).start().await;
    assert_eq!(body(&proxy, "a.test", "/x").await, "first");
}

#[tokio::test]
async fn no_match_is_404() {
    let proxy = Config::new("routes: [{ match: { host: b.test }, respond: { body: x } }]").start().await;
    let reply = proxy.get("/").await;
    assert_eq!(reply.status(), 404);
    assert!(!crate::failures::reason(&proxy, &reply).await.is_empty());
}

#[tokio::test]
async fn respond_has_status_body_and_headers_and_keeps_the_connection() {
    let yaml = "
        routes:
          - respond: { status: 418, body: \"short and stout\\n\" }
            response_headers: { set: { X-Kind: pot } }";
    let proxy = Config::new(yaml).start().await;
    let mut client = proxy.client().await;
    for _ in 0..3 {
        let reply = client.get("/").await;
        assert_eq!((reply.status(), reply.text().as_str()), (418, "short and stout\n"));
        assert_eq!(reply.field("x-kind"), Some("pot"));
    }
    client.send("HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let head = client.response_head().await;
    assert_eq!((head.status(), head.field("content-length")), (418, Some("16")));
    assert_eq!(client.get("/").await.status(), 418);
}

#[tokio::test]
async fn redirects_have_a_place_and_a_status() {
    let yaml = "
        routes:
          - { match: { path_exact: /old }, redirect: { to: /new, status: 308 } }
          - { redirect: { to: \"https://b.test/\" } }";
    let proxy = Config::new(yaml).start().await;
    let mut client = proxy.client().await;
    let reply = client.get("/old").await;
    assert_eq!((reply.status(), reply.field("location")), (308, Some("/new")));
    let reply = client.get("/x").await;
    assert_eq!((reply.status(), reply.field("location")), (302, Some("https://b.test/")));
}

#[tokio::test]
async fn a_prefix_may_be_stripped() {
    let origin = Origin::echo("a").await;
    let yaml = "
        upstreams: { app: { backends: [\"<a>\"] } }
        routes:
          - { match: { path: /site }, strip_prefix: /site, upstream: app }";
    let proxy = Config::new(yaml).put("a", &origin.address).start().await;
    for (target, expected) in
        [("/site/x?q=%20", "/x?q=%20"), ("/site", "/"), ("/site/", "/"), ("/site?q", "/?q"), ("/site//x", "/x")]
    {
        assert_eq!(proxy.get(target).await.status(), 200, "{target}");
        assert_eq!(origin.requests().last().map(Message::target), Some(expected), "{target}");
    }
}

#[tokio::test]
async fn targets_are_passed_on_as_they_came() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    for target in ["/a%2Fb", "/a//b", "/%7Euser", "/x?a=b&c=%00d", "/?", "/a;p=1", "/caf%C3%A9", "/a+b"] {
        assert_eq!(proxy.get(target).await.status(), 200, "{target}");
        assert_eq!(origin.requests().last().map(Message::target), Some(target));
    }
}

#[tokio::test]
async fn dots_cannot_step_around_a_route() {
    let origin = Origin::echo("a").await;
    let yaml = "
        upstreams: { app: { backends: [\"<a>\"] } }
        routes:
          - { match: { path: /private }, respond: { status: 403 } }
          - { upstream: app }";
    let proxy = Config::new(yaml).put("a", &origin.address).start().await;
    for target in ["/private/x", "/x/../private/x", "/./private", "/x/%2e%2e/private/x"] {
        let status = proxy.get(target).await.status();
        assert!(matches!(status, 400 | 403), "{target}: {status}");
    }
    assert_eq!(origin.total(), 0);
}

#[tokio::test]
async fn headers_are_edited_both_ways() {
    let origin = Origin::script("a", |mut peer| async move {
        while peer.request().await.is_some() {
            peer.reply(200, "X-Drop: 1\r\nX-Set: origin\r\nX-Add: origin\r\nServer: secret\r\n", "a").await;
        }
    })
    .await;
    let yaml = "
        upstreams: { app: { backends: [\"<a>\"] } }
        routes:
          - upstream: app
            request_headers: { set: { X-Edge: rrlb }, add: { X-More: two }, remove: [X-Debug] }
            response_headers: { set: { X-Set: edge }, add: { X-Add: edge }, remove: [X-Drop, Server] }";
    let proxy = Config::new(yaml).put("a", &origin.address).start().await;
    let fields = "X-Edge: spoofed\r\nX-Edge: twice\r\nX-More: one\r\nX-Debug: 1\r\n";
    let reply = ask(&proxy, "GET", "a.test", "/", fields).await;
    let request = origin.only_request();
    assert_eq!(request.fields("x-edge"), ["rrlb"]);
    assert_eq!(request.fields("x-more"), ["one", "two"]);
    assert_eq!(request.fields("x-debug"), [""; 0]);
    assert_eq!(reply.fields("x-set"), ["edge"]);
    assert_eq!(reply.fields("x-add"), ["origin", "edge"]);
    assert_eq!((reply.fields("x-drop"), reply.fields("server")), (vec![], vec![]));
}

#[tokio::test]
async fn a_client_cannot_take_away_a_header_that_the_operator_sets() {
    let origin = Origin::echo("a").await;
    let yaml = "
        upstreams: { app: { backends: [\"<a>\"] } }
        routes: [{ upstream: app, request_headers: { set: { X-Edge: rrlb } } }]";
    let proxy = Config::new(yaml).put("a", &origin.address).start().await;
    // Pingora refuses a request that nominates what it protects.
    let forged = "Connection: X-Forwarded-For\r\n";
    assert_eq!(ask(&proxy, "GET", "a.test", "/", forged).await.status(), 400);
    let fields = "Connection: X-Edge, X-Request-Id\r\n";
    assert_eq!(ask(&proxy, "GET", "a.test", "/", fields).await.status(), 200);
    let request = origin.only_request();
    for name in ["x-edge", "x-forwarded-for", "x-request-id"] {
        assert_eq!(request.fields(name).len(), 1, "{name}: {request:?}");
    }
}

#[tokio::test]
async fn a_split_gives_exact_or_near_shares_and_nothing_to_zero() {
    let (a, b, c) = (Origin::echo("a").await, Origin::echo("b").await, Origin::echo("c").await);
    let yaml = "
        upstreams: { a: { backends: [\"<a>\"] }, b: { backends: [\"<b>\"] }, c: { backends: [\"<c>\"] } }
        routes: [{ upstream: { a: 80, b: 20, c: 0 } }]";
    let config = Config::new(yaml).put("a", &a.address).put("b", &b.address).put("c", &c.address);
    let proxy = config.start().await;
    let mut client = proxy.client().await;
    for _ in 0..400 {
        assert_eq!(client.get("/").await.status(), 200);
    }
    assert!((40..=130).contains(&b.total()), "20 % of 400: {}", b.total());
    assert_eq!((a.total() + b.total(), c.total()), (400, 0));
}

#[tokio::test]
async fn without_routes_the_only_upstream_gets_everything() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    for (method, target) in [("GET", "/"), ("DELETE", "/x/y"), ("OPTIONS", "*"), ("PATCH", "/")] {
        assert_eq!(ask(&proxy, method, "any.test", target, "").await.status(), 200, "{method} {target}");
    }
    assert_eq!(
        origin.requests().iter().map(Message::method).collect::<Vec<_>>(),
        ["GET", "DELETE", "OPTIONS", "PATCH"]
    );
}

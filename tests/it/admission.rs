//! Who gets in: networks, rates, concurrency, passwords, another service's word; through the real binary.

use std::{net::IpAddr, path::Path, time::Duration};

use crate::support::{
    address, eventually,
    http1::{Client, Message, get, get_with, post_once},
    http2::{Client2, request},
    origin::{Origin, Peer},
    proxy::{Config, Proxy},
    tls::Ca,
    wait_until,
};

/// One route named `api` with these keys before an origin; HTTP/1.1 and h2c.
async fn guarded(origin: &Origin, guards: &str, more: &str) -> Proxy {
    configured(origin, guards, more).start().await
}

fn configured(origin: &Origin, guards: &str, more: &str) -> Config {
    let more = if more.contains("listeners:") {
        more.to_owned()
    } else {
        format!("listeners: [{{ address: <listen>, h2c: true }}]\n{more}")
    };
    Config::before(&[origin], &format!("{more}\nroutes: [{{ name: api, upstream: app, {guards} }}]\n"))
}

/// A refusal has its reason in the answer, in the log and in the metrics.
async fn refused_for(proxy: &Proxy, reply: &Message, status: u16, reason: &str) {
    assert_eq!(reply.status(), status, "{reply:?}");
    let proxy_status = reply.field("proxy-status").expect("Proxy-Status");
    assert!(proxy_status.contains(&format!("details=\"{reason}\"")), "{proxy_status}");
    proxy.logged_reason(reason).await;
}

impl Proxy {
    async fn logged_reason(&self, reason: &str) {
        let log = self.config.dir().join("access.log");
        let word = format!("\"{reason}\"");
        wait_until(&format!("{reason} in the access log"), || {
            std::fs::read_to_string(&log).is_ok_and(|text| text.contains(&word))
        })
        .await;
        let label = format!("reason=\"{reason}\"");
        eventually(&format!("{reason} in the metrics"), async || {
            let scrape = self.scrape().await;
            scrape.0.lines().any(|line| line.contains(&label) && !line.ends_with(" 0"))
        })
        .await;
    }
}

#[tokio::test]
async fn a_listener_serves_only_whom_it_allows_and_keeps_the_connection() {
    let origin = Origin::echo("a").await;
    let listeners = "listeners: [{ address: <listen>, allow: 127.0.0.0/8, deny: 127.0.7.0/24, h2c: true }]";
    let proxy = guarded(&origin, "", listeners).await;
    assert_eq!(proxy.get("/").await.status(), 200);
    let from: IpAddr = [127, 0, 7, 1].into();
    let mut client = Client::connect_from(from, proxy.listen).await;
    let spoofed = "GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 127.0.0.1\r\n\r\n";
    let reply = client.ask(spoofed).await;
    refused_for(&proxy, &reply, 403, "denied").await;
    assert_eq!(client.ask(spoofed).await.status(), 403, "on the same connection");
    assert_eq!(origin.total(), 1);
}

#[tokio::test]
async fn a_route_looks_at_the_client_behind_trusted_proxies_and_at_no_spoofed_one() {
    let origin = Origin::echo("a").await;
    let proxy = guarded(&origin, "allow: 203.0.113.0/24", "trusted_proxies: 127.0.9.0/24").await;
    let ask = "GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 203.0.113.9\r\n\r\n";
    let reply = proxy.client().await.ask(ask).await;
    refused_for(&proxy, &reply, 403, "denied").await;
    let from: IpAddr = [127, 0, 9, 1].into();
    assert_eq!(Client::connect_from(from, proxy.listen).await.ask(ask).await.status(), 200);
    assert_eq!(Client2::prior(proxy.listen).await.get("/").await.status, 403);
    assert_eq!(origin.total(), 1);
}

#[tokio::test]
async fn beyond_the_rate_is_429_with_what_a_client_needs_to_know() {
    let origin = Origin::echo("a").await;
    let proxy = guarded(&origin, "rate_limit: { rate: 2/h }", "").await;
    let reply = proxy.get("/").await;
    assert_eq!(reply.field("ratelimit-policy"), Some(r#""client_ip";q=2;w=3600"#));
    assert!(reply.field("ratelimit").expect("RateLimit").starts_with(r#""client_ip";r=1;t="#), "{reply:?}");
    assert_eq!(reply.field("retry-after"), None);
    let second = Client2::prior(proxy.listen).await.get("/").await;
    assert!(second.field("ratelimit").expect("RateLimit").starts_with(r#""client_ip";r=0;t="#), "{second:?}");
    let reply = post_once(proxy.listen, "/", "a body that nobody reads").await;
    refused_for(&proxy, &reply, 429, "rate_limited").await;
    let after: u64 = reply.field("retry-after").expect("Retry-After").parse().expect("seconds");
    assert!((1700..=1800).contains(&after), "{after}");
    assert_eq!(reply.field("ratelimit"), Some(&*format!(r#""client_ip";r=0;t={after}"#)));
    let refused = Client2::prior(proxy.listen).await.get("/").await;
    assert_eq!(refused.status, 429);
    assert!(refused.field("retry-after").is_some());
    let other: IpAddr = [127, 0, 0, 9].into();
    assert_eq!(Client::connect_from(other, proxy.listen).await.get("/").await.status(), 200);
    assert_eq!(origin.total(), 3);
}

#[tokio::test]
async fn a_refused_body_is_not_taken_for_a_request() {
    let origin = Origin::echo("a").await;
    let proxy = guarded(&origin, "rate_limit: { rate: 1/h }", "").await;
    assert_eq!(proxy.get("/").await.status(), 200);
    let inner = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let (length, mut client) = (inner.len(), proxy.client().await);
    client.send(format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n\r\n{inner}")).await;
    assert_eq!(client.response().await.status(), 429);
    // The connection may be kept or not; where it is, the next answer is to the next request.
    let _ = client.try_get("/next").await.map(|reply| assert_eq!(reply.status(), 429));
    let log = proxy.config.dir().join("access.log");
    proxy.logged_reason("rate_limited").await;
    assert!(!std::fs::read_to_string(log).expect("a log").contains("smuggled"));
    assert_eq!(origin.total(), 1);
}

#[tokio::test]
async fn a_websocket_keeps_its_place() {
    let origin = Origin::script("a", |mut peer| async move {
        while let Some(request) = peer.request().await {
            if request.field("upgrade").is_some() {
                peer.send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
                    .await;
                peer.held().await;
                return;
            }
            peer.reply(200, "", "a").await;
        }
    })
    .await;
    let proxy = guarded(&origin, "concurrency: { limit: 1 }", "").await;
    let mut socket = proxy.client().await;
    let upgrade = "GET / HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                   Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    socket.send(upgrade).await;
    assert_eq!(socket.response_head().await.status(), 101);
    assert_eq!(proxy.get("/").await.status(), 429);
    drop(socket);
    eventually("the place to be free", async || proxy.get("/").await.status() == 200).await;
}

#[tokio::test]
async fn a_spoofed_address_is_no_new_key_and_an_ipv6_network_is_one() {
    let origin = Origin::echo("a").await;
    let proxy = guarded(&origin, "rate_limit: { rate: 1/h }", "trusted_proxies: 127.0.9.0/24").await;
    let ask = async |from: [u8; 4], client: &str| {
        let mut connection = Client::connect_from(from.into(), proxy.listen).await;
        let text = format!("GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: {client}\r\n\r\n");
        connection.ask(text).await.status()
    };
    assert_eq!(ask([127, 0, 0, 1], "203.0.113.1").await, 200);
    assert_eq!(ask([127, 0, 0, 1], "203.0.113.2").await, 429);
    assert_eq!(ask([127, 0, 9, 1], "203.0.113.1").await, 200);
    assert_eq!(ask([127, 0, 9, 1], "203.0.113.1").await, 429);
    assert_eq!(ask([127, 0, 9, 1], "2001:db8:1:1::1").await, 200);
    assert_eq!(ask([127, 0, 9, 1], "2001:db8:1:1:ffff::2").await, 429);
    assert_eq!(ask([127, 0, 9, 1], "2001:db8:1:2::1").await, 200);
}

#[tokio::test]
async fn fields_and_cookies_are_keys_and_requests_without_them_are_one() {
    let origin = Origin::echo("a").await;
    let guards = "rate_limit: [{ rate: 2/h, key: { header: X-Key } }, { rate: 1/h, key: { cookie: id } }]";
    let proxy = guarded(&origin, guards, "").await;
    let ask = async |fields: &str| get_with(proxy.listen, "/", fields).await.status();
    assert_eq!(ask("X-Key: a\r\nCookie: x=1; id=1\r\n").await, 200);
    assert_eq!(ask("X-Key: a\r\nCookie: id=1\r\n").await, 429, "the cookie's");
    assert_eq!(ask("X-Key: a\r\nCookie: id=2\r\n").await, 200, "the refused one has not counted");
    assert_eq!(ask("X-Key: a\r\nCookie: id=3\r\n").await, 429, "the field's");
    assert_eq!(ask("").await, 200);
    assert_eq!(ask("Cookie: other=1\r\n").await, 429);
}

/// The backend never gets it (RFC 9110 §7.6.1), so by it nobody is another.
#[tokio::test]
async fn what_connection_names_is_no_key() {
    for engine in ["lane", "pingora"] {
        let origin = Origin::echo("a").await;
        let guards = "rate_limit: [{ rate: 2/h, key: { header: X-Key } }, { rate: 1/h, key: { cookie: id } }]";
        let proxy = guarded(&origin, guards, &format!("engine: {engine}")).await;
        let ask = async |fields: &str| get_with(proxy.listen, "/", fields).await.status();
        assert_eq!(ask("X-Key: 1\r\nCookie: id=1\r\nConnection: cookie\r\n").await, 200, "{engine}");
        assert_eq!(ask("X-Key: 2\r\nCookie: id=2\r\nConnection: cookie\r\n").await, 429, "{engine}");
        assert_eq!(ask("X-Key: 3\r\nCookie: id=3\r\nConnection: x-key\r\n").await, 200, "{engine}");
        assert_eq!(ask("X-Key: 4\r\nCookie: id=4\r\nConnection: x-key\r\n").await, 200, "{engine}");
        assert_eq!(ask("X-Key: 5\r\nCookie: id=5\r\nConnection: x-key\r\n").await, 429, "{engine}");
        assert!(origin.requests().iter().all(|seen| seen.field("cookie").is_none() || seen.field("x-key").is_none()));
    }
}

#[tokio::test]
async fn a_second_value_of_a_key_buys_no_fresh_budget() {
    let origin = Origin::echo("a").await;
    let guards = "rate_limit: [{ rate: 2/h, key: { header: X-Key } }], concurrency: { limit: 9, key: { cookie: id } }";
    let proxy = guarded(&origin, guards, "").await;
    for fields in ["X-Key: a\r\nX-Key: a\r\n", "X-Key: a\r\nCookie: id=1; id=1\r\n"] {
        assert_eq!(get_with(proxy.listen, "/", fields).await.status(), 200);
    }
    assert_eq!(get_with(proxy.listen, "/", "X-Key: a\r\n").await.status(), 429);
    let twice = ["X-Key: a\r\nX-Key: b\r\n", "X-Key: b\r\nX-Key: a\r\n", "X-Key: b\r\nX_Key: a\r\n"];
    let twice = twice.into_iter().chain(["X-Key: b\r\nCookie: id=1; id=2\r\n", "Cookie: id=1\r\nCookie: id=2\r\n"]);
    for fields in twice {
        let reply = get_with(proxy.listen, "/", fields).await;
        refused_for(&proxy, &reply, 400, "bad_request").await;
    }
    assert_eq!(origin.total(), 2);
    // HTTP/2 may send cookies in pieces.
    let client = Client2::prior(proxy.listen).await;
    for (crumb, status) in [("id=2", 400), ("x=2", 200)] {
        let mut asked = request("GET", "/");
        for (name, value) in [("x-key", "c"), ("cookie", "id=1"), ("cookie", crumb)] {
            asked.headers_mut().append(name, value.parse().expect("a value"));
        }
        assert_eq!(client.send(asked, vec![], None).await.status, status, "{crumb}");
    }
}

#[tokio::test]
async fn cookies_in_pieces_are_the_key_that_they_are_as_a_whole() {
    let origin = Origin::echo("a").await;
    let proxy = guarded(&origin, "rate_limit: { rate: 2/h, key: { header: Cookie } }", "").await;
    let client = Client2::prior(proxy.listen).await;
    let ask = async |crumbs: &[&str]| {
        let mut asked = request("GET", "/");
        for crumb in crumbs {
            asked.headers_mut().append("cookie", crumb.parse().expect("a value"));
        }
        client.send(asked, vec![], None).await.status
    };
    assert_eq!(ask(&["a=1", "b=2"]).await, 200);
    assert_eq!(ask(&["a=1; b=2"]).await, 200);
    assert_eq!(get_with(proxy.listen, "/", "Cookie: a=1; b=2\r\n").await.status(), 429);
    assert_eq!(ask(&["a=1", "b=3"]).await, 200);
    // Of HTTP/1.1 these are two fields, and a backend may go by either.
    assert_eq!(get_with(proxy.listen, "/", "Cookie: a=1\r\nCookie: b=2\r\n").await.status(), 400);
}

#[tokio::test]
async fn a_host_is_one_key_however_it_is_spelled_and_whoever_says_it() {
    let origin = Origin::echo("a").await;
    let proxy = guarded(&origin, "rate_limit: { rate: 2/h, key: { header: Host } }", "").await;
    let ask =
        async |host: &str| proxy.client().await.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await.status();
    assert_eq!(ask("k.test").await, 200);
    assert_eq!(ask("K.test.:80").await, 200);
    for spelled in ["k.test", "k.TEST", "k.test.", "k.test:8080", "k.test:"] {
        assert_eq!(ask(spelled).await, 429, "{spelled}");
    }
    let client = Client2::prior(proxy.listen).await;
    for (host, status) in [("k.test", 429), ("other.test", 200), ("OTHER.test:80", 200), ("other.test", 429)] {
        let mut asked = request("GET", "/");
        *asked.uri_mut() = format!("http://{host}/").parse().expect("a URL");
        assert_eq!(client.send(asked, vec![], None).await.status, status, "{host}");
    }
    assert_eq!(ask("third.test").await, 200);
}

#[tokio::test]
async fn the_workers_count_together() {
    let origin = Origin::echo("a").await;
    let proxy = guarded(&origin, "rate_limit: { rate: 10/h, key: route }", "threads: 4").await;
    let mut statuses = Vec::new();
    for _ in 0..20 {
        statuses.push(proxy.get("/").await.status());
    }
    assert_eq!((statuses.iter().filter(|status| **status == 200).count(), origin.total()), (10, 10), "{statuses:?}");
}

#[tokio::test]
async fn too_many_at_once_is_429_and_a_place_comes_back() {
    let origin = Origin::echo("a").await;
    let proxy = guarded(&origin, "concurrency: { limit: 1 }", "").await;
    let mut first = proxy.client().await;
    first.send("GET /hold HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    wait_until("the request at the origin", || origin.total() == 1).await;
    let reply = proxy.get("/").await;
    refused_for(&proxy, &reply, 429, "too_many_concurrent").await;
    assert_eq!(reply.field("retry-after"), Some("1"));
    assert_eq!(Client2::prior(proxy.listen).await.get("/").await.status, 429);
    let other: IpAddr = [127, 0, 0, 9].into();
    assert_eq!(Client::connect_from(other, proxy.listen).await.get("/").await.status(), 200);
    origin.release();
    assert_eq!(first.response().await.status(), 200);
    eventually("the place to be free", async || proxy.get("/").await.status() == 200).await;
    assert!(origin.total() >= 3);
}

#[tokio::test]
async fn a_client_that_goes_away_gives_its_place_back() {
    let origin = Origin::echo("a").await;
    let proxy = guarded(&origin, "concurrency: { limit: 1, key: route }", "").await;
    let mut gone = proxy.client().await;
    gone.send(get("/hold")).await;
    wait_until("the request at the origin", || origin.count("/hold") == 1).await;
    assert_eq!(proxy.get("/").await.status(), 429);
    drop(gone);
    eventually("the place to be free", async || proxy.get("/").await.status() == 200).await;
}

/// `a`'s password is `secret`; cost 4 of bcrypt.
fn htpasswd(config: &Config) {
    let hash = bcrypt::hash("secret", 4).expect("a hash");
    std::fs::write(config.dir().join("users"), format!("a:{hash}\n")).expect("written");
}

const SECRET: &str = "Authorization: Basic YTpzZWNyZXQ=\r\n";
const WRONG: &str = "Authorization: Basic YTp3cm9uZw==\r\n";

#[tokio::test]
async fn a_password_is_asked_for_and_does_not_reach_the_origin() {
    let origin = Origin::echo("a").await;
    let config = configured(&origin, "basic_auth: { file: users, realm: \"the inside\" }", "");
    htpasswd(&config);
    let proxy = config.start().await;
    let reply = proxy.get("/").await;
    refused_for(&proxy, &reply, 401, "unauthorized").await;
    assert_eq!(reply.field("www-authenticate"), Some("Basic realm=\"the inside\", charset=\"UTF-8\""));
    for fields in [WRONG, "Authorization: Basic bm9ib2R5OnNlY3JldA==\r\n", "Authorization: Bearer x\r\n"] {
        assert_eq!(get_with(proxy.listen, "/", fields).await.status(), 401, "{fields}");
    }
    assert_eq!(get_with(proxy.listen, "/", &format!("{WRONG}{SECRET}")).await.status(), 401, "two of them");
    assert_eq!(origin.total(), 0);
    assert_eq!(get_with(proxy.listen, "/", SECRET).await.status(), 200);
    assert_eq!(origin.only_request().field("authorization"), None);
    let mut ask = request("GET", "/");
    ask.headers_mut().insert("authorization", "Basic YTpzZWNyZXQ=".parse().expect("a value"));
    assert_eq!(Client2::prior(proxy.listen).await.send(ask, vec![], None).await.status, 200);
    let log = std::fs::read_to_string(proxy.config.dir().join("access.log")).expect("a log");
    assert!(!log.contains("YTpz") && !log.contains("secret") && !proxy.stderr().contains("secret"));
}

#[tokio::test]
async fn a_password_may_go_on_to_the_origin_where_that_is_said() {
    let origin = Origin::echo("a").await;
    let config = configured(&origin, "basic_auth: { file: users, keep: true }", "");
    htpasswd(&config);
    let proxy = config.start().await;
    assert_eq!(get_with(proxy.listen, "/", SECRET).await.status(), 200);
    assert_eq!(origin.only_request().field("authorization"), Some("Basic YTpzZWNyZXQ="));
}

#[tokio::test]
async fn a_verified_password_is_not_verified_again() {
    let origin = Origin::echo("a").await;
    let config = configured(&origin, "basic_auth: { file: users }", "threads: 1");
    // About 60 ms for each verification in a release, much more in a debug build.
    let hash = bcrypt::hash("secret", 10).expect("a hash");
    std::fs::write(config.dir().join("users"), format!("a:{hash}\n")).expect("written");
    let proxy = config.start().await;
    for fields in [SECRET, WRONG] {
        let expected = if fields == SECRET { 200 } else { 401 };
        let begun = proxy.cpu();
        assert_eq!(get_with(proxy.listen, "/", fields).await.status(), expected);
        let first = proxy.cpu() - begun;
        let begun = proxy.cpu();
        for _ in 0..10 {
            assert_eq!(get_with(proxy.listen, "/", fields).await.status(), expected);
        }
        let ten = proxy.cpu() - begun;
        assert!(ten < first * 5, "{fields}: {first:?} for the first, {ten:?} for ten more");
    }
}

#[tokio::test]
async fn who_guesses_holds_up_nobody_else() {
    let origin = Origin::echo("a").await;
    let yaml = "
        listeners: [{ address: <listen>, h2c: true }]
        threads: 1
        routes:
          - { name: api, match: { path: /in }, upstream: app, basic_auth: { file: users } }
          - { upstream: app }";
    let config = Config::before(&[&origin], yaml);
    let hash = bcrypt::hash("secret", 10).expect("a hash");
    std::fs::write(config.dir().join("users"), format!("a:{hash}\n")).expect("written");
    let proxy = config.start().await;
    let mut guessing = tokio::task::JoinSet::new();
    for number in 0..80u32 {
        let to = proxy.listen;
        guessing.spawn(async move {
            use base64::Engine as _;
            let pair = base64::engine::general_purpose::STANDARD.encode(format!("a:{number}"));
            get_with(to, "/in", &format!("Authorization: Basic {pair}\r\n")).await
        });
    }
    let mut first = guessing.join_next().await.expect("one of them").expect("no panic");
    while first.status() == 401 {
        first = guessing.join_next().await.expect("one that is refused for the number of them").expect("no panic");
    }
    refused_for(&proxy, &first, 503, "auth_unavailable").await;
    assert_eq!(proxy.get("/").await.status(), 200, "while guesses are verified");
    let other: IpAddr = [127, 0, 0, 9].into();
    let ask = format!("GET /in HTTP/1.1\r\nHost: a.test\r\n{SECRET}\r\n");
    assert_eq!(Client::connect_from(other, proxy.listen).await.ask(ask).await.status(), 200);
    guessing.shutdown().await;
}

#[tokio::test]
async fn a_hundred_requests_at_once_with_one_password_all_pass() {
    let origin = Origin::echo("a").await;
    let config = configured(&origin, "basic_auth: { file: users }", "threads: 1");
    let hash = bcrypt::hash("secret", 10).expect("a hash");
    std::fs::write(config.dir().join("users"), format!("a:{hash}\n")).expect("written");
    let proxy = config.start().await;
    let client = std::sync::Arc::new(Client2::prior(proxy.listen).await);
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..100 {
        let client = client.clone();
        asking.spawn(async move {
            let mut ask = request("GET", "/");
            ask.headers_mut().insert("authorization", "Basic YTpzZWNyZXQ=".parse().expect("a value"));
            client.send(ask, vec![], None).await.status
        });
    }
    assert_eq!(asking.join_all().await, [200; 100]);
}

/// An authentication service; what it says depends on `X-Want`.
async fn service() -> Origin {
    Origin::script("auth", |mut peer: Peer| async move {
        while let Some(request) = peer.request().await {
            match request.field("x-want") {
                None => peer.reply(200, "X-User: alice\r\nX-Group: a\r\nX-Group: b\r\nX-Other: 1\r\n", "").await,
                Some("nobody") => peer.reply(200, "", "in").await,
                Some("login") => {
                    let fields =
                        "Location: https://login.test/\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nX-Inner: 1\r\n";
                    peer.reply(302, fields, "").await;
                }
                Some("no") => {
                    let fields = "WWW-Authenticate: Bearer realm=\"x\"\r\nContent-Type: application/json\r\n";
                    peer.reply(401, fields, "{\"no\":1}").await;
                }
                Some("busy") => peer.reply(429, "Retry-After: 30\r\nCache-Control: max-age=9\r\n", "").await,
                Some("nothing said") => peer.reply(401, "", "").await,
                Some("blank") => peer.reply(401, "WWW-Authenticate:\r\nWWW-Authenticate: \t, ,\r\n", "").await,
                Some("blank and one") => {
                    peer.reply(401, "WWW-Authenticate:\r\nWWW-Authenticate: Bearer\r\n", "").await;
                }
                Some("our method") => peer.reply(405, "Allow: POST\r\n", "").await,
                Some("our credentials") => peer.reply(407, "Proxy-Authenticate: Basic realm=x\r\n", "").await,
                Some("our protocol") => peer.reply(426, "Upgrade: h2c\r\nConnection: Upgrade\r\n", "").await,
                Some("broken") => peer.reply(500, "", "oops").await,
                Some("nowhere") => peer.reply(302, "", "").await,
                Some("not modified") => peer.send("HTTP/1.1 304 Not Modified\r\nLocation: /\r\n\r\n").await,
                Some("no status") => peer.reply(999, "Location: /\r\n", "").await,
                Some("large") => peer.reply(403, "", &"x".repeat(70_000)).await,
                Some("slow") => peer.held().await,
                Some("late") => {
                    peer.held().await;
                    peer.reply(200, "", "").await;
                }
                // Until the other side ends.
                Some("silence") => {}
                Some("slow body") => {
                    peer.send("HTTP/1.1 200 OK\r\nX-User: alice\r\nContent-Length: 5\r\n\r\n").await;
                    peer.held().await;
                }
                Some("slow refusal") => {
                    peer.send("HTTP/1.1 403 No\r\nContent-Length: 5\r\n\r\n").await;
                    peer.held().await;
                }
                Some("garbage") => peer.send("200 OK\r\n\r\n").await,
                Some("switch") => peer.send("HTTP/1.1 101 Switching Protocols\r\n\r\n").await,
                Some(_) => return,
            }
        }
    })
    .await
}

async fn forwarding(origin: &Origin, service: &str) -> Proxy {
    let guards = format!(
        "forward_auth: {{ url: \"http://{service}/verify?x=1\", timeout: 1s, copy_headers: [X-User, X-Group] }}"
    );
    guarded(origin, &guards, "").await
}

#[tokio::test]
async fn the_service_is_told_what_is_asked_and_tells_the_origin_who_it_is() {
    let (origin, service) = (Origin::echo("a").await, service().await);
    let proxy = forwarding(&origin, &service.address).await;
    let fields = "X-User: root\r\nX_User: root\r\nX-Group: wheel\r\nConnection: X-User, X-Hop\r\nX-Hop: 1\r\nX-Forwarded-Uri: /free\r\n\
        X_Forwarded_Method: HEAD\r\nX-Original-URL: /free\r\nX-Forwarded-For: 203.0.113.9\r\nCookie: id=1\r\n\
        Authorization: Bearer t\r\nAccept-Encoding: gzip\r\nIf-None-Match: \"x\"\r\n";
    let body = format!("POST /in?a=1 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n{fields}\r\nbody");
    let mut client = proxy.client().await;
    let reply = client.ask(body).await;
    assert_eq!((reply.status(), reply.text().as_str()), (200, "body"));
    let question = service.only_request();
    assert_eq!((question.method(), question.target(), question.length), ("GET", "/verify?x=1", 0));
    for (name, value) in [
        ("host", Some(&*service.address)),
        ("x-forwarded-method", Some("POST")),
        ("x-forwarded-uri", Some("/in?a=1")),
        ("x-forwarded-host", Some("a.test")),
        ("x-forwarded-proto", Some("http")),
        ("x-forwarded-for", Some("127.0.0.1")),
        ("cookie", Some("id=1")),
        ("authorization", Some("Bearer t")),
        ("x_forwarded_method", None),
        ("x-original-url", None),
        ("x-hop", None),
        ("content-length", None),
        ("accept-encoding", None),
        ("if-none-match", None),
    ] {
        assert_eq!(question.field(name), value, "{name}");
    }
    let passed = origin.only_request();
    assert_eq!((passed.field("x-user"), passed.fields("x-group")), (Some("alice"), vec!["a", "b"]));
    assert_eq!((passed.field("x_user"), passed.field("x-other")), (None, None));
    assert_eq!(question.field("x-request-id"), passed.field("x-request-id"));
    assert_eq!(client.get("/again").await.status(), 200);
    assert_eq!(service.connections(), 1, "its connection is kept");
}

/// Asked about anything below `/n/secret` it says no; else yes.
async fn keeper() -> Origin {
    Origin::script("keeper", |mut peer: Peer| async move {
        while let Some(request) = peer.request().await {
            let secret = request.field("x-forwarded-uri").is_some_and(|uri| uri.starts_with("/n/secret"));
            peer.reply(if secret { 403 } else { 200 }, "", "").await;
        }
    })
    .await
}

#[tokio::test]
async fn the_service_is_asked_about_the_very_path_that_the_origin_gets() {
    const SPELLINGS: [&str; 7] = [
        "/n/secret",
        "/n/%73ecret",
        "//n/secret",
        "/n//secret",
        "/n/x/../secret",
        "/n/./secret?a=1",
        "http://a.test/n/%73ecret",
    ];
    let (origin, service) = (Origin::echo("a").await, keeper().await);
    for more in ["path: raw", "path: normalized", "path: raw, strip_prefix: /n", "match: { path: /n }"] {
        let guards = format!("forward_auth: {{ url: \"http://{}/\" }}, {more}", service.address);
        let proxy = guarded(&origin, &guards, "").await;
        for target in SPELLINGS {
            assert_eq!(proxy.get(target).await.status(), 403, "{target} with {more}");
            if target.starts_with('/') {
                assert_eq!(Client2::prior(proxy.listen).await.get(target).await.status, 403, "{target} with {more}");
            }
        }
        assert_eq!(origin.total(), 0, "{more}");
    }
    let guards = format!("forward_auth: {{ url: \"http://{}/\" }}", service.address);
    let proxy = guarded(&origin, &guards, "").await;
    assert_eq!(proxy.get("//n/x/../%6Fpen?a=%6F//b").await.status(), 200);
    assert_eq!(origin.only_request().target(), "/n/open?a=%6F//b");
    let asked = service.requests().last().and_then(|question| question.field("x-forwarded-uri").map(str::to_owned));
    assert_eq!(asked.as_deref(), Some("/n/open?a=%6F//b"));
}

#[tokio::test]
async fn who_is_not_authenticated_takes_no_place() {
    let (origin, service) = (Origin::echo("a").await, service().await);
    let guards = format!(
        "concurrency: {{ limit: 1, key: route }}, basic_auth: {{ file: users }}, \
         forward_auth: {{ url: \"http://{}/\", timeout: 30s }}",
        service.address
    );
    let config = configured(&origin, &guards, "");
    htpasswd(&config);
    let proxy = config.start().await;
    let mut stranger = proxy.client().await;
    stranger.send(format!("GET /slow HTTP/1.1\r\nHost: a.test\r\nX-Want: slow\r\n{SECRET}\r\n")).await;
    wait_until("the question about the stranger", || service.total() == 1).await;
    assert_eq!(get_with(proxy.listen, "/", SECRET).await.status(), 200, "while the service thinks about another");
    // Its place is free when it is over, which is a moment after its answer.
    proxy.access_log(1).await;
    let mut one = proxy.client().await;
    one.send(format!("GET /hold HTTP/1.1\r\nHost: a.test\r\n{SECRET}\r\n")).await;
    wait_until("the request at the origin", || origin.count("/hold") == 1).await;
    let reply = get_with(proxy.listen, "/", SECRET).await;
    refused_for(&proxy, &reply, 429, "too_many_concurrent").await;
    assert_eq!(get_with(proxy.listen, "/", WRONG).await.status(), 401, "a stranger does not hear of places");
}

/// Asks a service at this URL, whose certificate must be from `ca`, or from the system's roots.
fn asking_over_tls(origin: &Origin, url: &str, ca: Option<&Path>) -> Config {
    let ca = ca.map_or_else(String::new, |ca| format!(", ca: {}", ca.display()));
    configured(origin, &format!("forward_auth: {{ url: \"{url}\", timeout: 1s{ca} }}"), "")
}

#[tokio::test]
async fn a_service_over_tls_is_verified_and_its_connection_kept() {
    let (origin, ca, other) = (Origin::echo("a").await, Ca::new(), Ca::new());
    let (folder, another) = (tempfile::tempdir().expect("folder"), tempfile::tempdir().expect("folder"));
    let (trusted, untrusted) = (ca.write(folder.path()), other.write(another.path()));
    let here = address::unused().ip().to_string();
    let service = Origin::tls("auth", ca.issue(&[&here]).server(&["h2", "http/1.1"])).await;
    let url = format!("https://{}/verify", service.address);
    let proxy = asking_over_tls(&origin, &url, Some(&trusted)).start().await;
    for _ in 0..3 {
        assert_eq!(proxy.get("/").await.status(), 200);
    }
    // One for each worker at most.
    assert!(service.total() == 3 && service.connections() <= 2, "{} connections", service.connections());
    assert_eq!(service.requests()[0].field("host"), Some(&*service.address));
    assert_eq!(origin.total(), 3);
    let stranger = Origin::tls("auth", ca.issue(&["a.test"]).server(&["http/1.1"])).await;
    for (url, ca) in [(&url, &untrusted), (&format!("https://{}/verify", stranger.address), &trusted)] {
        let proxy = asking_over_tls(&origin, url, Some(ca)).start().await;
        refused_for(&proxy, &proxy.get("/").await, 503, "auth_unavailable").await;
        proxy.logged("invalid peer certificate").await;
    }
    assert_eq!((service.total(), stranger.total(), origin.total()), (3, 0, 3), "somebody got in");
}

#[tokio::test]
async fn a_service_over_tls_is_asked_by_name_and_verified_by_the_systems_roots() {
    let (origin, ca) = (Origin::echo("a").await, Ca::new());
    let free = std::net::TcpListener::bind("127.0.0.1:0").and_then(|probe| probe.local_addr()).expect("an address");
    let service = Origin::tls_at(free, "auth", ca.issue(&["localhost"]).server(&["http/1.1"])).await;
    let folder = tempfile::tempdir().expect("folder");
    let roots = ca.write(folder.path());
    let config = asking_over_tls(&origin, &format!("https://localhost:{}/verify", free.port()), None);
    let mut proxy = config.spawn_with(&[], |command| _ = command.env("SSL_CERT_FILE", &roots));
    proxy.ready().await;
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!(service.handshakes()[0].sni.as_deref(), Some("localhost"));
    assert_eq!(service.total(), 1);
}

#[tokio::test]
async fn a_service_that_never_ends_its_handshake_lets_nobody_in() {
    let origin = Origin::echo("a").await;
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let (ca, folder) = (Ca::new(), tempfile::tempdir().expect("folder"));
    let trusted = ca.write(folder.path());
    let url = format!("https://{}/verify", silent.local_addr().expect("address"));
    let proxy = asking_over_tls(&origin, &url, Some(&trusted)).start().await;
    refused_for(&proxy, &proxy.get("/").await, 503, "auth_unavailable").await;
    assert_eq!(origin.total(), 0);
}

#[tokio::test]
async fn what_the_service_does_not_say_nobody_says() {
    let (origin, service) = (Origin::echo("a").await, service().await);
    let proxy = forwarding(&origin, &service.address).await;
    let reply = get_with(
        proxy.listen,
        "/",
        "X-Want: nobody\r\nX-User: root\r\nx-user: root\r\nX_GROUP: wheel\r\nX.User: root\r\n",
    )
    .await;
    assert_eq!(reply.status(), 200);
    let passed = origin.only_request();
    for name in ["x-user", "x_group", "x.user"] {
        assert_eq!(passed.field(name), None, "{passed:?}");
    }
    let mut ask = request("GET", "/");
    ask.headers_mut().insert("x-user", "root".parse().expect("a value"));
    ask.headers_mut().append("cookie", "a=1".parse().expect("a value"));
    ask.headers_mut().append("cookie", "b=2".parse().expect("a value"));
    assert_eq!(Client2::prior(proxy.listen).await.send(ask, vec![], None).await.status, 200);
    assert_eq!(origin.requests()[1].field("x-user"), Some("alice"));
    assert_eq!(service.requests()[1].field("cookie"), Some("a=1; b=2"));
}

#[tokio::test]
async fn a_refusal_of_the_service_goes_to_the_client() {
    let (origin, service) = (Origin::echo("a").await, service().await);
    let proxy = forwarding(&origin, &service.address).await;
    let reply = get_with(proxy.listen, "/", "X-Want: login\r\n").await;
    refused_for(&proxy, &reply, 302, "unauthorized").await;
    assert_eq!(
        (reply.field("location"), reply.fields("set-cookie")),
        (Some("https://login.test/"), vec!["a=1", "b=2"])
    );
    assert_eq!(reply.field("x-inner"), None);
    let reply = get_with(proxy.listen, "/", "X-Want: no\r\n").await;
    assert_eq!((reply.status(), reply.text().as_str()), (401, "{\"no\":1}"));
    assert_eq!(
        (reply.field("www-authenticate"), reply.field("content-type")),
        (Some("Bearer realm=\"x\""), Some("application/json"))
    );
    let reply = get_with(proxy.listen, "/", "X-Want: busy\r\n").await;
    let told = (reply.status(), reply.field("retry-after"), reply.field("cache-control"));
    assert_eq!(told, (429, Some("30"), Some("no-store")));
    let reply = get_with(proxy.listen, "/", "X-Want: nothing said\r\n").await;
    let challenge = Some("Unspecified realm=\"restricted\"");
    assert_eq!((reply.status(), reply.field("www-authenticate")), (401, challenge), "a 401 has a challenge");
    for want in ["our method", "our credentials", "our protocol"] {
        let reply = get_with(proxy.listen, "/", &format!("X-Want: {want}\r\n")).await;
        refused_for(&proxy, &reply, 503, "auth_unavailable").await;
    }
    let reply = get_with(proxy.listen, "/", "X-Want: large\r\n").await;
    assert_eq!((reply.status(), reply.text().as_str()), (403, ""), "more than a client is to get, and a refusal still");
    let reply = get_with(proxy.listen, "/", "X-Want: broken\r\n").await;
    refused_for(&proxy, &reply, 503, "auth_unavailable").await;
    assert!(!reply.text().contains("oops"), "{reply:?}");
    assert_eq!(origin.total(), 0);
}

#[tokio::test]
async fn a_blank_challenge_of_the_service_is_none() {
    let (origin, service) = (Origin::echo("a").await, service().await);
    let proxy = forwarding(&origin, &service.address).await;
    for (want, challenge) in [("blank", "Unspecified realm=\"restricted\""), ("blank and one", "Bearer")] {
        let reply = get_with(proxy.listen, "/", &format!("X-Want: {want}\r\n")).await;
        assert_eq!((reply.status(), reply.fields("www-authenticate")), (401, vec![challenge]), "{want}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_takes_its_question_along() {
    let (origin, service) = (Origin::echo("a").await, service().await);
    let guards = format!("forward_auth: {{ url: \"http://{}/\", timeout: 60s }}", service.address);
    let proxy = guarded(&origin, &guards, "").await;
    let mut leaving = proxy.client().await;
    leaving.send("GET / HTTP/1.1\r\nHost: a.test\r\nX-Want: silence\r\n\r\n").await;
    wait_until("the question", || service.total() == 1).await;
    drop(leaving);
    wait_until("the question to be dropped", || service.open() == 0).await;
    proxy.logged_reason("client_aborted").await;
    assert_eq!((proxy.get("/").await.status(), origin.total()), (200, 1));
}

/// Nor has one whose body is on its way.
#[tokio::test]
async fn a_client_that_sends_more_while_the_service_is_asked_has_not_left() {
    let (origin, service) = (Origin::echo("a").await, service().await);
    let guards = format!("forward_auth: {{ url: \"http://{}/\", timeout: 60s }}", service.address);
    let proxy = guarded(&origin, &guards, "").await;
    let (mut ahead, mut sending) = (proxy.client().await, proxy.client().await);
    ahead.send("GET /1 HTTP/1.1\r\nHost: a.test\r\nX-Want: late\r\n\r\n").await;
    sending.send("POST /3 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\nX-Want: late\r\n\r\nbo").await;
    wait_until("the questions", || service.total() == 2).await;
    ahead.send("GET /2 HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    sending.send("dy").await;
    service.release();
    assert_eq!((ahead.response().await.status(), ahead.response().await.status()), (200, 200));
    assert_eq!(sending.response().await.text(), "body");
    assert_eq!((origin.count("/1"), origin.count("/2"), origin.total()), (1, 1, 3));
}

/// Who takes a credential and gives another in its place needs to see it.
#[tokio::test]
async fn what_is_copied_from_the_answer_is_in_the_question_as_the_client_said_it() {
    let origin = Origin::echo("a").await;
    let service = Origin::script("exchange", |mut peer: Peer| async move {
        while let Some(question) = peer.request().await {
            let known = question.field("authorization") == Some("Bearer opaque");
            peer.reply(if known { 200 } else { 401 }, "Authorization: Bearer inner\r\n", "").await;
        }
    })
    .await;
    let url = &service.address;
    let guards = format!("forward_auth: {{ url: \"http://{url}/\", copy_headers: [Authorization, X-User] }}");
    let proxy = guarded(&origin, &guards, "").await;
    let reply = get_with(proxy.listen, "/", "Authorization: Bearer opaque\r\nX-User: root\r\n").await;
    let (question, passed) = (service.only_request(), origin.only_request());
    assert_eq!((reply.status(), question.field("x-user")), (200, Some("root")));
    assert_eq!((passed.field("authorization"), passed.field("x-user")), (Some("Bearer inner"), None));
}

#[tokio::test]
async fn a_client_cannot_make_a_question_of_its_request() {
    let (origin, service) = (Origin::echo("a").await, service().await);
    let proxy = forwarding(&origin, &service.address).await;
    let mark = "x-rrlb-forward-auth";
    assert_eq!(get_with(proxy.listen, "/", &format!("{mark}: 1\r\n")).await.status(), 200);
    let said = service.only_request();
    let ours = said.fields(mark).into_iter().find(|value| *value != "1").expect("the mark of the proxy").to_owned();
    assert_eq!(get_with(proxy.listen, "/", &format!("{mark}: 1\r\n{mark}: {ours}\r\n")).await.status(), 503);
    let other = forwarding(&origin, &service.address).await;
    assert_eq!(get_with(other.listen, "/", &format!("{mark}: {ours}\r\n")).await.status(), 200, "another's mark");
}

#[tokio::test]
async fn a_service_that_is_slow_silent_or_lying_lets_nobody_in() {
    let (origin, mut service) = (Origin::echo("a").await, service().await);
    let proxy = forwarding(&origin, &service.address).await;
    for want in ["slow", "slow refusal", "garbage", "switch", "close", "nowhere", "not modified", "no status"] {
        let reply = get_with(proxy.listen, "/", &format!("X-Want: {want}\r\n")).await;
        assert_eq!(reply.status(), 503, "{want}: {reply:?}");
        assert!(reply.text().len() < 100, "{want}");
    }
    assert_eq!(origin.total(), 0);
    let reply = get_with(proxy.listen, "/", "X-Want: slow body\r\n").await;
    assert_eq!((reply.status(), origin.total()), (200, 1), "it has said yes");
    service.stop().await;
    let reply = proxy.get("/").await;
    refused_for(&proxy, &reply, 503, "auth_unavailable").await;
    assert_eq!(origin.total(), 1);
    service.restart().await;
    assert_eq!(proxy.get("/").await.status(), 200);
}

#[tokio::test]
async fn a_service_that_has_closed_its_connection_is_asked_again() {
    let origin = Origin::echo("a").await;
    let service = Origin::script("auth", |mut peer: Peer| async move {
        if peer.request().await.is_some() {
            peer.reply(200, "", "").await;
            // And closes on the next.
            peer.request().await;
        }
    })
    .await;
    let proxy = guarded(&origin, &format!("forward_auth: {{ url: \"http://{}/\" }}", service.address), "").await;
    let mut client = proxy.client().await;
    for number in 0..10 {
        assert_eq!(client.get("/").await.status(), 200, "the {number}th");
    }
    assert!(service.total() > 10, "no connection was kept");
}

#[tokio::test]
async fn a_password_for_us_is_not_told_to_the_service() {
    let (origin, service) = (Origin::echo("a").await, service().await);
    for (keep, told) in [(false, None), (true, Some("Basic YTpzZWNyZXQ="))] {
        let guards = format!(
            "basic_auth: {{ file: users, keep: {keep} }}, forward_auth: {{ url: \"http://{}/\" }}",
            service.address
        );
        let config = configured(&origin, &guards, "");
        htpasswd(&config);
        let proxy = config.start().await;
        assert_eq!(get_with(proxy.listen, "/", SECRET).await.status(), 200);
        assert_eq!(service.requests().last().expect("a question").field("authorization"), told);
    }
}

#[tokio::test]
async fn a_client_that_asks_for_much_takes_neither_all_connections_nor_everybodys_turn() {
    let (origin, service) = (Origin::echo("a").await, service().await);
    let guards = format!("forward_auth: {{ url: \"http://{}/\", timeout: 6s }}", service.address);
    let proxy = guarded(&origin, &guards, "threads: 1").await;
    let mut asking = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let client = std::sync::Arc::new(Client2::prior(proxy.listen).await);
        for _ in 0..90 {
            let client = client.clone();
            asking.spawn(async move {
                let mut ask = request("GET", "/");
                ask.headers_mut().insert("x-want", "slow".parse().expect("a value"));
                client.send(ask, vec![], None).await.status
            });
        }
    }
    let refused = asking.join_next().await.expect("one that is too many").expect("no panic");
    assert_eq!(refused, 503);
    proxy.logged_reason("auth_unavailable").await;
    wait_until("the questions", || service.total() >= 32).await;
    let other: IpAddr = [127, 0, 0, 9].into();
    assert_eq!(Client::connect_from(other, proxy.listen).await.get("/").await.status(), 200);
    assert!((33..=34).contains(&service.connections()), "{} connections", service.connections());
    asking.shutdown().await;
    eventually("the turns to be free", async || proxy.get("/").await.status() == 200).await;
}

#[tokio::test]
async fn a_limit_by_what_the_service_says_counts_that_and_not_what_a_client_says() {
    let (origin, service) = (Origin::echo("a").await, service().await);
    for limits in ["{ rate: 2/h, key: { header: X-User } }", "[{ rate: 2/h, key: { header: x_user } }, { rate: 9/h }]"]
    {
        let url = &service.address;
        let guards =
            format!("rate_limit: {limits}, forward_auth: {{ url: \"http://{url}/\", copy_headers: [X-User] }}");
        let proxy = guarded(&origin, &guards, "").await;
        let ask = async |user: &str| get_with(proxy.listen, "/", &format!("X-User: {user}\r\n")).await;
        assert_eq!(ask("one").await.status(), 200);
        let reply = ask("two").await;
        assert_eq!(reply.status(), 200);
        let (policy, rate) = (reply.field("ratelimit-policy").expect("it"), reply.field("ratelimit").expect("it"));
        assert!(policy.ends_with("\"header\";q=2;w=3600") && rate.contains("\"header\";r=0"), "{reply:?}");
        assert_eq!((policy.contains("client_ip"), rate.contains("client_ip")), (limits.len() > 50, limits.len() > 50));
        let before = service.total();
        refused_for(&proxy, &ask("three").await, 429, "rate_limited").await;
        assert_eq!(service.total(), before + 1, "it was asked who that is");
        assert_eq!(get_with(proxy.listen, "/", "X-Want: nobody\r\nX-User: alice\r\n").await.status(), 200, "nobody");
    }
    let guards = format!(
        "concurrency: {{ limit: 1, key: {{ header: X-User }} }}, \
         forward_auth: {{ url: \"http://{}/\", copy_headers: [X-User] }}",
        service.address
    );
    let proxy = guarded(&origin, &guards, "").await;
    let mut first = proxy.client().await;
    first.send("GET /hold HTTP/1.1\r\nHost: a.test\r\nX-User: one\r\n\r\n").await;
    wait_until("the request at the origin", || origin.count("/hold") == 1).await;
    refused_for(&proxy, &get_with(proxy.listen, "/", "X-User: two\r\n").await, 429, "too_many_concurrent").await;
}

#[tokio::test]
async fn a_limit_by_credentials_counts_the_user_however_they_are_spelled() {
    let origin = Origin::echo("a").await;
    let guards = "basic_auth: { file: users }, rate_limit: { rate: 2/h, key: { header: Authorization } }";
    let config = configured(&origin, guards, "");
    htpasswd(&config);
    let proxy = config.start().await;
    for _ in 0..4 {
        assert_eq!(get_with(proxy.listen, "/", WRONG).await.status(), 401, "who is not let in does not count");
    }
    for spelled in ["Basic YTpzZWNyZXQ=", "BASIC  YTpzZWNyZXQ="] {
        assert_eq!(get_with(proxy.listen, "/", &format!("Authorization: {spelled}\r\n")).await.status(), 200);
    }
    for spelled in ["Basic YTpzZWNyZXQ=", "basic YTpzZWNyZXQ=", "Basic   YTpzZWNyZXQ"] {
        let reply = get_with(proxy.listen, "/", &format!("Authorization: {spelled}\r\n")).await;
        refused_for(&proxy, &reply, 429, "rate_limited").await;
    }
}

#[tokio::test]
async fn another_spelling_of_a_cookie_buys_no_fresh_budget() {
    let origin = Origin::echo("a").await;
    let proxy = guarded(&origin, "rate_limit: { rate: 1/h, key: { cookie: sid } }", "").await;
    let ask = async |value: &str| get_with(proxy.listen, "/", &format!("Cookie: sid={value}\r\n")).await.status();
    assert_eq!(ask("Z").await, 200);
    for spelled in ["Z", "%5A", "%5a", "\"Z\"", "\"\\132\""] {
        assert_eq!(ask(spelled).await, 429, "{spelled}");
    }
    assert_eq!(ask("Y").await, 200);
}

#[tokio::test]
async fn a_route_believes_of_hops_whom_backends_do() {
    let origin = Origin::echo("a").await;
    let yaml = "
        listeners: [{ address: <listen>, h2c: true }]
        trusted_proxies: 127.0.9.0/24
        routes:
          - { match: { header: { X-Real-IP: 10.0.0.1 } }, respond: { status: 201 } }
          - { match: { path: /p, header: { X-Forwarded-Proto: https } }, respond: { status: 202 } }
          - { upstream: app }";
    let proxy = Config::before(&[&origin], yaml).start().await;
    let ask = async |from: [u8; 4], fields: &str| {
        let mut client = Client::connect_from(from.into(), proxy.listen).await;
        client.ask(format!("GET /p HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n")).await.status()
    };
    for (fields, status) in [("X-Real-IP: 10.0.0.1\r\n", 201), ("X-Forwarded-Proto: https\r\n", 202), ("", 200)] {
        assert_eq!(ask([127, 0, 9, 1], fields).await, status, "{fields} of a trusted proxy");
        assert_eq!(ask([127, 0, 0, 1], fields).await, 200, "{fields} of anybody");
    }
    let mut asked = request("GET", "/p");
    asked.headers_mut().insert("x-real-ip", "10.0.0.1".parse().expect("a value"));
    assert_eq!(Client2::prior(proxy.listen).await.send(asked, vec![], None).await.status, 200);
}

#[tokio::test]
async fn a_mark_at_the_beginning_of_an_htpasswd_file_is_no_part_of_a_name() {
    let origin = Origin::echo("a").await;
    let config = configured(&origin, "basic_auth: { file: users }", "");
    let hash = bcrypt::hash("secret", 4).expect("a hash");
    std::fs::write(config.dir().join("users"), format!("\u{feff}a:{hash}\n")).expect("written");
    assert_eq!(get_with(config.start().await.listen, "/", SECRET).await.status(), 200);
}

#[tokio::test]
async fn the_whole_of_a_request_includes_its_guards() {
    let (origin, service) = (Origin::echo("a").await, service().await);
    let total = "defaults: { timeouts: { total: 300ms } }";
    let guards = format!("forward_auth: {{ url: \"http://{}/\", timeout: 60s }}", service.address);
    let asking = guarded(&origin, &guards, total).await;
    let guarding = configured(&origin, "basic_auth: { file: users }", total);
    // A hash that takes seconds to verify.
    let hash = format!("$2y$15${}", ".".repeat(53));
    std::fs::write(guarding.dir().join("users"), format!("a:{hash}\n")).expect("written");
    let guarding = guarding.start().await;
    for (proxy, fields) in [(&asking, "X-Want: slow\r\n"), (&guarding, "Authorization: Basic YTpzZWNyZXQ=\r\n")] {
        let begun = std::time::Instant::now();
        let reply = get_with(proxy.listen, "/", fields).await;
        assert!((300..1500).contains(&begun.elapsed().as_millis()), "{:?}", begun.elapsed());
        refused_for(proxy, &reply, 504, "total_timeout").await;
    }
    assert_eq!(origin.total(), 0);
    assert_eq!(asking.get("/").await.status(), 200, "who is let in at once has its time");
}

#[tokio::test]
async fn a_route_that_asks_itself_ends() {
    let origin = Origin::echo("a").await;
    let proxy = guarded(&origin, "forward_auth: { url: \"http://<listen>/verify\", timeout: 5s }", "").await;
    let begun = std::time::Instant::now();
    assert_eq!(proxy.get("/").await.status(), 503);
    assert!(begun.elapsed() < Duration::from_secs(4));
    assert_eq!(origin.total(), 0);
}

#[tokio::test]
async fn the_guards_are_asked_in_their_order() {
    let (origin, service) = (Origin::echo("a").await, service().await);
    let guards = format!(
        "deny: 127.0.7.0/24, rate_limit: {{ rate: 3/h, key: route }}, basic_auth: {{ file: users }}, \
         forward_auth: {{ url: \"http://{}/\" }}",
        service.address
    );
    let config = configured(&origin, &guards, "");
    htpasswd(&config);
    let proxy = config.start().await;
    for _ in 0..5 {
        let from: IpAddr = [127, 0, 7, 1].into();
        assert_eq!(Client::connect_from(from, proxy.listen).await.get("/").await.status(), 403);
    }
    assert_eq!(proxy.get("/").await.status(), 401, "who is denied does not count for the rate");
    assert_eq!(service.total(), 0, "who has no password is not asked about");
    assert_eq!(get_with(proxy.listen, "/", &format!("X-Want: no\r\n{SECRET}")).await.status(), 401);
    let reply = get_with(proxy.listen, "/", SECRET).await;
    assert_eq!((reply.status(), origin.total()), (200, 1));
    assert!(reply.field("ratelimit").expect("RateLimit").starts_with("\"route\";r=0"), "{reply:?}");
    assert_eq!(get_with(proxy.listen, "/", SECRET).await.status(), 429);
    assert_eq!(service.total(), 2);
}

#[tokio::test]
async fn redirects_and_answers_of_a_route_are_guarded_too() {
    let yaml = "
        listeners: [{ address: <listen>, h2c: true }]
        upstreams: { app: { backends: [] } }
        admin: {}
        routes:
          - { match: { path: /r }, redirect: { to: /x }, rate_limit: { rate: 1/h } }
          - { match: { path: /s }, respond: { body: secret }, deny: 127.0.0.1 }";
    let proxy = Config::new(yaml).start().await;
    let reply = proxy.get("/r").await;
    assert_eq!((reply.status(), reply.field("ratelimit-policy")), (302, Some("\"client_ip\";q=1;w=3600")));
    assert_eq!(proxy.get("/r").await.status(), 429);
    let reply = proxy.get("/s").await;
    assert_eq!((reply.status(), reply.text().contains("secret")), (403, false));
}

//! What the proxy says about the client, what must not pass it, and what it adds.

use std::net::IpAddr;

use crate::support::{
    http1::{Client, Message, get_with},
    http2::{Client2, Origin2},
    origin::Origin,
    proxy::{Config, Proxy},
    tls::Ca,
};

const SPOOFED: &str = "X-Forwarded-For: 203.0.113.9\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.test\r\n\
                       Forwarded: for=203.0.113.9;proto=https\r\nX-Real-IP: 203.0.113.9\r\n";

/// The only request at the origin after a `GET` with these fields.
async fn seen_with(fields: &str, more: &str) -> Message {
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], more).start().await;
    assert_eq!(get_with(proxy.listen, "/", fields).await.status(), 200);
    origin.only_request()
}

#[tokio::test]
async fn the_client_is_told_to_the_origin() {
    let request = seen_with("", "").await;
    assert_eq!(request.field("x-forwarded-for"), Some("127.0.0.1"));
    assert_eq!(request.field("x-forwarded-proto"), Some("http"));
    assert_eq!(request.field("x-forwarded-host"), Some("a.test"));
    let forwarded = request.field("forwarded").expect("Forwarded").to_ascii_lowercase();
    for part in ["for=127.0.0.1", "proto=http", "host=a.test"] {
        assert!(forwarded.replace('"', "").contains(part), "{part}: {forwarded}");
    }
}

#[tokio::test]
async fn spoofed_values_are_replaced() {
    let request = seen_with(SPOOFED, "").await;
    let all = format!("{:?}", request.fields);
    assert!(!all.contains("203.0.113.9") && !all.contains("evil.test"), "{all}");
    assert_eq!(request.field("x-forwarded-proto"), Some("http"));
}

#[tokio::test]
async fn where_a_request_goes_or_comes_from_no_stranger_says() {
    const CLAIMS: [&str; 14] = [
        "X-Original-URL",
        "X_Original_Url",
        "X-Original-Host",
        "X-Rewrite-URL",
        "X_Rewrite-Url",
        "X-Url-Scheme",
        "Front-End-Https",
        "True-Client-IP",
        "X-Client-IP",
        "CF-Connecting-IP",
        "Client-IP",
        // To gateways that make `_` of every sign.
        "X.Original.URL",
        "X.Real-IP",
        "X~Forwarded~For",
    ];
    let fields: String = CLAIMS.iter().map(|name| format!("{name}: /claimed\r\n")).collect();
    let fields = format!("{fields}X-HTTP-Method-Override: PUT\r\n");
    let request = seen_with(&fields, "").await;
    let left: Vec<_> = request.fields.iter().filter(|(_, value)| value == "/claimed").collect();
    assert!(left.is_empty(), "{left:?}");
    assert_eq!(request.field("x-http-method-override"), Some("PUT"), "an application's own");
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], "trusted_proxies: [127.0.9.0/24]").start().await;
    let mut client = Client::connect_from([127, 0, 9, 1].into(), proxy.listen).await;
    assert_eq!(client.ask(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n")).await.status(), 200);
    assert_eq!(origin.only_request().field("x-original-url"), Some("/claimed"), "a trusted proxy's word");
}

#[tokio::test]
async fn what_an_operator_sets_or_removes_nobody_says_under_another_sign() {
    let routes = "routes: [{ upstream: app, request_headers: { set: { X-Role: guest }, remove: [X-Debug] } }]";
    let request =
        seen_with("X_Role: root\r\nX.Role: root\r\nX-ROLE: root\r\nX_Debug: 1\r\nXRole: kept\r\n", routes).await;
    let names: Vec<_> = request.fields.iter().map(|(name, _)| name.to_ascii_lowercase()).collect();
    assert_eq!(request.field("x-role"), Some("guest"));
    assert_eq!(request.field("xrole"), Some("kept"));
    for name in ["x_role", "x.role", "x-debug", "x_debug"] {
        assert!(!names.iter().any(|sent| sent == name), "{names:?}");
    }
}

#[tokio::test]
async fn what_no_proxy_sets_is_nobodys_word() {
    const FORGED: [&str; 8] = [
        "Proxy",
        "Transfer_Encoding",
        "Content_Length",
        "X_Forwarded_For",
        "X_Real_IP",
        "X-Real_IP",
        "X_Request_Id",
        "X_Original-Url",
    ];
    let fields: String = FORGED.iter().map(|name| format!("{name}: 1\r\n")).collect();
    for trusted in ["[]", "[127.0.0.0/8]"] {
        for engine in ["lane", "exchange", "pingora"] {
            let origin = Origin::echo("a").await;
            let more = format!("trusted_proxies: {trusted}\nengine: {engine}");
            let proxy = Config::before(&[&origin], &more).start().await;
            get_with(proxy.listen, "/", &fields).await;
            let request = origin.only_request();
            let left: Vec<_> = request.fields.iter().filter(|(_, value)| value == "1").collect();
            assert!(left.is_empty(), "{trusted}, {engine}: {left:?}");
        }
    }
}

#[tokio::test]
async fn loopback_is_not_trusted_by_itself_and_others_never_are() {
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], "trusted_proxies: [127.0.9.0/24]").start().await;
    get_with(proxy.listen, "/", SPOOFED).await;
    assert_eq!(origin.only_request().field("x-forwarded-for"), Some("127.0.0.1"));
}

#[tokio::test]
async fn a_trusted_proxys_values_are_continued() {
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], "trusted_proxies: [127.0.9.0/24]").start().await;
    let from: IpAddr = [127, 0, 9, 1].into();
    let mut client = Client::connect_from(from, proxy.listen).await;
    let reply = client.ask(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{SPOOFED}\r\n")).await;
    assert_eq!(reply.status(), 200);
    let request = origin.only_request();
    let list: Vec<_> = request.fields("x-forwarded-for").join(",").split(',').map(|a| a.trim().to_owned()).collect();
    assert_eq!(list, ["203.0.113.9", "127.0.9.1"]);
    assert_eq!(request.field("x-forwarded-proto"), Some("https"));
    assert_eq!(request.field("x-forwarded-host"), Some("evil.test"));
    let forwarded = request.fields("forwarded").join(",");
    assert!(forwarded.contains("203.0.113.9") && forwarded.contains("127.0.9.1"), "{forwarded}");
    let line = proxy.access_log(1).await.remove(0);
    assert!(line["client"].as_str().is_some_and(|client| client.starts_with("203.0.113.9")), "{line}");
}

#[tokio::test]
async fn the_client_is_the_last_address_that_no_trusted_proxy_has() {
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], "trusted_proxies: [127.0.0.0/8, 10.0.0.0/8]").start().await;
    get_with(proxy.listen, "/", "X-Forwarded-For: 198.51.100.1, 203.0.113.9, 10.1.2.3\r\n").await;
    let line = proxy.access_log(1).await.remove(0);
    assert!(line["client"].as_str().is_some_and(|client| client.starts_with("203.0.113.9")), "{line}");
}

#[tokio::test]
async fn a_tls_client_is_told_as_https() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let yaml = "
        certificates: { main: <main> }
        listeners: [{ address: <listen>, tls: { certificates: [main] } }]";
    let config = Config::before(&[&origin], yaml);
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    Client::tls(proxy.listen, "a.test", &ca.client(&["http/1.1"])).await.get("/").await;
    Client2::tls(proxy.listen, "a.test", &ca.client(&["h2"])).await.get("/").await;
    for request in origin.requests() {
        assert_eq!(request.field("x-forwarded-proto"), Some("https"));
        assert_eq!((request.field("host"), request.field("x-forwarded-host")), (Some("a.test"), Some("a.test")));
    }
    assert_eq!(origin.total(), 2);
}

#[tokio::test]
async fn hop_by_hop_fields_do_not_reach_the_origin() {
    let fields = "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\nProxy-Connection: keep-alive\r\n\
                  TE: trailers\r\nUpgrade: h2c\r\nProxy-Authorization: Basic eA==\r\nX-End: 1\r\n";
    let request = seen_with(fields, "").await;
    for name in ["x-hop", "keep-alive", "proxy-connection", "upgrade", "transfer-encoding"] {
        assert_eq!(request.fields(name), [""; 0], "{name}: {request:?}");
    }
    assert_eq!(request.field("x-end"), Some("1"));
}

#[tokio::test]
async fn hop_by_hop_fields_do_not_reach_the_client() {
    let origin = Origin::script("a", |mut peer| async move {
        while peer.request().await.is_some() {
            let fields = "Connection: keep-alive, X-Hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n\
                          Proxy-Connection: keep-alive\r\nUpgrade: h2c\r\nX-End: 1\r\n";
            peer.reply(200, fields, "a").await;
        }
    })
    .await;
    let proxy = Config::before(&[&origin], "listeners: [{ address: <listen>, h2c: true }]").start().await;
    let reply = proxy.get("/").await;
    for name in ["x-hop", "keep-alive", "proxy-connection", "upgrade"] {
        assert_eq!(reply.fields(name), [""; 0], "{name}: {reply:?}");
    }
    assert_eq!(reply.field("x-end"), Some("1"));
    let reply = Client2::prior(proxy.listen).await.get("/").await;
    assert_eq!((reply.field("x-end"), reply.field("connection"), reply.field("x-hop")), (Some("1"), None, None));
}

#[tokio::test]
async fn end_to_end_fields_pass_unchanged_both_ways() {
    let origin = Origin::script("a", |mut peer| async move {
        while peer.request().await.is_some() {
            let fields =
                "Set-Cookie: a=1\r\nSet-Cookie: b=2\r\nETag: \"x\"\r\nLast-Modified: Sun, 06 Nov 1994 08:49:37 GMT\r\n";
            peer.reply(200, fields, "a").await;
        }
    })
    .await;
    let proxy = Proxy::before(&[&origin]).await;
    let fields = "Cookie: a=1; b=2\r\nAuthorization: Bearer x\r\nAccept: text/plain\r\nAccept: text/html\r\n";
    let reply = get_with(proxy.listen, "/", fields).await;
    assert_eq!(reply.fields("set-cookie"), ["a=1", "b=2"]);
    assert_eq!(
        (reply.field("etag"), reply.field("last-modified")),
        (Some("\"x\""), Some("Sun, 06 Nov 1994 08:49:37 GMT"))
    );
    let request = origin.only_request();
    assert_eq!((request.field("cookie"), request.field("authorization")), (Some("a=1; b=2"), Some("Bearer x")));
    assert_eq!(request.fields("accept").join(", "), "text/plain, text/html");
}

#[tokio::test]
async fn cookie_crumbs_of_http2_are_joined() {
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], "listeners: [{ address: <listen>, h2c: true }]").start().await;
    let mut request = crate::support::http2::request("GET", "/");
    request.headers_mut().append("cookie", "a=1".parse().expect("a value"));
    request.headers_mut().append("cookie", "b=2".parse().expect("a value"));
    Client2::prior(proxy.listen).await.send(request, vec![], None).await;
    assert_eq!(origin.only_request().field("cookie"), Some("a=1; b=2"));
}

#[tokio::test]
async fn via_names_the_proxy_and_can_be_turned_off() {
    let origin = Origin::echo("a").await;
    for (more, expected) in [("", true), ("via: off", false)] {
        let proxy = Config::before(&[&origin], more).start().await;
        let reply = get_with(proxy.listen, "/", "Via: 1.0 before\r\n").await;
        let via = origin.requests().last().expect("a request").fields("via").join(", ");
        assert_eq!(via.contains("rrlb"), expected, "{via}");
        assert!(via.starts_with("1.0 before"), "{via}");
        assert_eq!(reply.fields("via").join("").contains("rrlb"), expected, "{reply:?}");
    }
}

#[tokio::test]
async fn http_1_0_clients_get_no_chunks() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    client.send("GET /chunked HTTP/1.0\r\nHost: a.test\r\n\r\n").await;
    let text = String::from_utf8_lossy(&client.closed().await).into_owned();
    assert!(text.ends_with("\r\n\r\nhello world"), "{text}");
    assert!(!text.to_lowercase().contains("transfer-encoding"), "{text}");
}

#[tokio::test]
async fn http_1_0_clients_may_keep_their_connection() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    let request = "GET / HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n";
    let reply = client.ask(request).await;
    if reply.fields("connection").iter().any(|value| value.eq_ignore_ascii_case("keep-alive")) {
        assert_eq!(client.ask(request).await.status(), 200);
    } else {
        assert_eq!(client.closed().await, b"");
    }
}

/// Both ways of the bytes to a backend over HTTP/1.1.
const ENGINES: [&str; 2] = ["engine: exchange", "engine: pingora"];
/// HTTP/1.0 asks for no host.
const HOSTLESS: &str = "GET / HTTP/1.0\r\n\r\n";

#[tokio::test]
async fn a_request_without_a_host_goes_to_an_origin_with_one() {
    for engine in ENGINES {
        let origin = Origin::echo("a").await;
        let proxy = Config::before(&[&origin], engine).start().await;
        assert_eq!(proxy.client().await.ask(HOSTLESS).await.status(), 200, "{engine}");
        assert_eq!(origin.only_request().fields("host"), [origin.address.as_str()], "{engine}");
        let forwarded = origin.only_request();
        assert_eq!(forwarded.field("x-forwarded-host"), None, "{engine}: the client asked for none");
        let yaml = format!(
            "upstreams: {{ app: {{ backends: [\"{}\"], host_header: b.test }} }}\n{engine}\n\
             routes: [{{ match: {{ path: /set/ }}, upstream: app, request_headers: {{ set: {{ Host: c.test }} }} }}, \
             {{ upstream: app }}]",
            origin.address
        );
        let proxy = Config::new(&yaml).start().await;
        proxy.client().await.ask(HOSTLESS).await;
        proxy.client().await.ask("GET /set/ HTTP/1.0\r\n\r\n").await;
        let hosts: Vec<_> = origin.requests().iter().skip(1).map(|r| r.fields("host").join("|")).collect();
        assert_eq!(hosts, ["b.test", "c.test"], "{engine}");
    }
}

#[tokio::test]
async fn over_tls_such_a_request_is_for_the_name_that_the_certificate_is_checked_for() {
    let ca = Ca::new();
    for way in ["protocol: h1 } }\nengine: exchange", "protocol: h1 } }\nengine: pingora"] {
        let origin = Origin::tls("a", ca.issue(&["origin.test"]).server(&["http/1.1"])).await;
        let yaml = "upstreams: { app: { backends: [\"<backend>\"], tls: { sni: origin.test, ca: <ca> }, ";
        let config = Config::new(&(yaml.to_owned() + way)).put("backend", &origin.address);
        let path = ca.write(config.dir());
        let proxy = config.put("ca", path.display()).start().await;
        assert_eq!(proxy.client().await.ask(HOSTLESS).await.status(), 200, "{way}");
        assert_eq!(origin.only_request().fields("host"), ["origin.test"], "{way}");
    }
}

#[tokio::test]
async fn over_http2_such_a_request_has_an_authority() {
    let origin = Origin2::start("a", None).await;
    let yaml = format!("upstreams: {{ app: {{ backends: [\"{}\"], protocol: h2c }} }}", origin.address);
    let proxy = Config::new(&yaml).start().await;
    assert_eq!(proxy.client().await.ask(HOSTLESS).await.status(), 200);
    assert_eq!(origin.requests().remove(0).authority, Some(origin.address.to_string()));
}

#[tokio::test]
async fn http_1_0_clients_are_not_promised_a_connection_whose_end_is_their_answers() {
    for engine in ENGINES {
        for answer in ["HTTP/1.1 200 OK\r\n\r\nhello", "HTTP/1.0 200 OK\r\nConnection: close\r\n\r\nhello"] {
            let origin = Origin::script("a", move |mut peer| async move {
                peer.request().await;
                peer.send(answer).await;
            })
            .await;
            let proxy = Config::before(&[&origin], engine).start().await;
            let mut client = proxy.client().await;
            client.send("GET / HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n").await;
            let text = String::from_utf8_lossy(&client.closed().await).to_lowercase();
            assert!(text.ends_with("\r\n\r\nhello"), "{engine}: {text}");
            assert!(!text.contains("keep-alive") && !text.contains("transfer-encoding"), "{engine}: {text}");
        }
        let origin = Origin::echo("a").await;
        let proxy = Config::before(&[&origin], engine).start().await;
        let mut client = proxy.client().await;
        client.send("GET /chunked HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n").await;
        let text = String::from_utf8_lossy(&client.closed().await).to_lowercase();
        assert!(text.ends_with("\r\n\r\nhello world") && !text.contains("keep-alive"), "{engine}: {text}");
        // The head of an answer without a body says all: it has an end of its own.
        let mut client = proxy.client().await;
        client.send("HEAD / HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n").await;
        assert_eq!(client.response_head().await.field("connection"), Some("keep-alive"), "{engine}");
        assert_eq!(client.get("/").await.status(), 200, "{engine}");
    }
}

#[tokio::test]
async fn max_forwards_counts_the_proxies_that_options_passes() {
    for engine in ENGINES {
        let origin = Origin::echo("a").await;
        let more = format!("listeners: [{{ address: <listen>, h2c: true }}]\n{engine}");
        let proxy = Config::before(&[&origin], &more).start().await;
        let mut client = proxy.client().await;
        let ask =
            |method: &str, left: &str| format!("{method} / HTTP/1.1\r\nHost: a.test\r\nMax-Forwards: {left}\r\n\r\n");
        for (method, left, sent) in [
            ("OPTIONS", "2", "1"),
            ("OPTIONS", "1", "0"),
            ("OPTIONS", "x", "x"),
            ("OPTIONS", "+0", "+0"),
            ("OPTIONS", "5000000000", "4294967294"),
            ("OPTIONS", "4\r\nMax-Forwards: 3", "2"),
            ("GET", "0", "0"),
            ("GET", "1", "1"),
        ] {
            assert_eq!(client.ask(ask(method, left)).await.status(), 200, "{method} {left}");
            let seen = origin.requests().pop().expect("a request");
            assert_eq!(seen.fields("max-forwards"), [sent], "{engine}: {method} {left}");
        }
        let before = origin.total();
        let answer = client.ask(ask("OPTIONS", "0")).await;
        assert!(answer.status() == 204 && answer.field("allow").is_some_and(|allow| allow.contains("OPTIONS")));
        let mut options = crate::support::http2::request("OPTIONS", "/");
        options.headers_mut().insert("max-forwards", "0".parse().expect("a value"));
        assert_eq!(Client2::prior(proxy.listen).await.send(options, Vec::new(), None).await.status, 204);
        assert_eq!(origin.total(), before, "{engine}: it was for us");
    }
}

#[tokio::test]
async fn nobody_is_shown_what_a_request_became() {
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], "listeners: [{ address: <listen>, h2c: true }]").start().await;
    let answer = proxy.client().await.ask("TRACE / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert!(answer.status() == 405 && answer.field("allow").is_some(), "{answer:?}");
    let answer = Client2::prior(proxy.listen).await;
    let answer = answer.send(crate::support::http2::request("TRACE", "/"), Vec::new(), None).await;
    assert_eq!((answer.status, origin.total()), (405, 0));
}

#[tokio::test]
async fn a_request_id_is_made_and_told_everywhere() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    let ids: Vec<String> = {
        let mut ids = Vec::new();
        for _ in 0..3 {
            ids.push(client.get("/").await.field("x-request-id").expect("X-Request-Id").to_owned());
        }
        ids
    };
    let at_origin: Vec<_> = origin.requests().iter().map(|r| r.field("x-request-id").map(str::to_owned)).collect();
    assert_eq!(at_origin, ids.iter().cloned().map(Some).collect::<Vec<_>>());
    let logged: Vec<_> =
        proxy.access_log(3).await.iter().map(|l| l["request_id"].as_str().map(str::to_owned)).collect();
    assert_eq!(logged, at_origin);
    assert!(ids[0] != ids[1] && ids[1] != ids[2] && ids.iter().all(|id| id.len() >= 16), "{ids:?}");
}

#[tokio::test]
async fn a_request_id_that_comes_in_is_kept() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let reply = get_with(proxy.listen, "/", "X-Request-Id: mine-42\r\n").await;
    assert_eq!(reply.field("x-request-id"), Some("mine-42"));
    assert_eq!(origin.only_request().field("x-request-id"), Some("mine-42"));
    assert_eq!(proxy.access_log(1).await[0]["request_id"], "mine-42");
}

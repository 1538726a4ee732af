//! Ambiguous or broken requests: refused with 400 before an origin hears of them, and the connection does not go on.

use crate::support::{
    frames,
    http2::{Client2, request},
    origin::{Origin, Peer},
    proxy::{Config, Proxy},
};

const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n";

/// Sends each request and expects one of these statuses, an end of the connection and an origin that saw nothing.
async fn refused(requests: &[(&str, String)], statuses: &[u16]) {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    for (what, request) in requests {
        let mut client = proxy.client().await;
        client.send(request).await;
        let reply = client.response().await;
        assert!(statuses.contains(&reply.status()), "{what}: {reply:?}");
        let after = client.closed().await;
        assert!(after.is_empty(), "{what}: went on with {:?}", String::from_utf8_lossy(&after));
    }
    assert_eq!(origin.total(), 0, "an origin saw {:#?}", origin.requests());
    assert_eq!(proxy.get("/").await.status(), 200);
}

fn post(fields: &str, rest: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n{rest}")
}

/// RFC 9113 §3.4.
#[tokio::test]
async fn only_the_first_bytes_of_a_connection_are_a_preface() {
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], "listeners: [{ address: <listen>, h2c: true }]").start().await;
    let preface = [frames::PREFACE, &frames::settings(&[])].concat();
    let behind = [b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", &preface[..]].concat();
    for (what, bytes, answers) in [
        ("behind a request", behind, vec![200, 400]),
        ("behind an empty line", [b"\r\n", &preface[..]].concat(), vec![400]),
    ] {
        let mut client = proxy.client().await;
        client.send(bytes).await;
        let mut statuses = Vec::new();
        for _ in &answers {
            statuses.push(client.response().await.status());
        }
        assert_eq!(statuses, answers, "{what}");
        assert_eq!(client.closed().await, b"", "{what}");
    }
    let lines = proxy.access_log(3).await;
    assert_eq!(lines.iter().filter(|line| line["reason"] == "bad_request").count(), 2, "{lines:?}");
    assert_eq!(Client2::prior(proxy.listen).await.get("/").await.status, 200);
}

#[tokio::test]
async fn content_length_with_transfer_encoding_is_refused() {
    let rest = format!("0\r\n\r\n{SMUGGLED}");
    let cases = [
        ("length first", post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", &rest)),
        ("coding first", post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", &rest)),
        ("other case", post("CONTENT-LENGTH: 5\r\ntransfer-ENCODING: Chunked\r\n", &rest)),
        ("length 0", post("Content-Length: 0\r\nTransfer-Encoding: chunked\r\n", &rest)),
    ];
    refused(&cases, &[400]).await;
}

#[tokio::test]
async fn a_target_or_a_host_of_two_meanings_is_refused() {
    let get = |target: &str, host: &str| format!("GET {target} HTTP/1.1\r\nHost: {host}\r\n\r\n{SMUGGLED}");
    let cases = [
        ("no digits", get("/%zz", "a.test")),
        ("encoded NUL", get("/%00", "a.test")),
        ("encoded line end", get("/a%0d%0ab", "a.test")),
        ("above the root", get("/../x", "a.test")),
        ("dots for some", get("/.;/x", "a.test")),
        ("encoded host", get("/", "a%2etest")),
    ];
    refused(&cases, &[400]).await;
}

#[tokio::test]
async fn differing_or_malformed_lengths_are_refused() {
    let cases = [
        ("differing", post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!")),
        ("differing in a list", post("Content-Length: 5, 6\r\n", "hello!")),
        ("plus", post("Content-Length: +5\r\n", "hello")),
        ("minus", post("Content-Length: -5\r\n", "hello")),
        ("hexadecimal", post("Content-Length: 0x5\r\n", "hello")),
        ("empty", post("Content-Length: \r\n", "hello")),
        ("too large", post("Content-Length: 99999999999999999999\r\n", "hello")),
    ];
    refused(&cases, &[400]).await;
}

#[tokio::test]
async fn unknown_transfer_codings_are_refused() {
    let rest = format!("0\r\n\r\n{SMUGGLED}");
    let cases = [
        ("unknown", post("Transfer-Encoding: xchunked\r\n", &rest)),
        ("not last", post("Transfer-Encoding: chunked, gzip\r\n", &rest)),
        ("twice", post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", &rest)),
        ("identity", post("Transfer-Encoding: identity\r\n", &rest)),
    ];
    refused(&cases, &[400, 501]).await;
    let old = "POST / HTTP/1.0\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_owned();
    refused(&[("chunked in HTTP/1.0", old)], &[400]).await;
}

#[tokio::test]
async fn a_host_is_needed_once_and_well_formed() {
    let head = |fields: &str| format!("GET / HTTP/1.1\r\n{fields}\r\n");
    let cases = [
        ("none", head("")),
        ("two", head("Host: a.test\r\nHost: b.test\r\n")),
        ("path", head("Host: a.test/x\r\n")),
        ("blank inside", head("Host: a test\r\n")),
        ("userinfo", head("Host: me@a.test\r\n")),
        ("list", head("Host: a.test, b.test\r\n")),
        ("bad port", head("Host: a.test:http\r\n")),
    ];
    refused(&cases, &[400]).await;
}

#[tokio::test]
async fn broken_heads_are_refused() {
    let cases = [
        ("no version", "GET /\r\nHost: a.test\r\n\r\n".to_owned()),
        ("garbage", "\u{1}\u{2}\u{3}\r\n\r\n".to_owned()),
        ("blank before colon", "GET / HTTP/1.1\r\nHost: a.test\r\nX-A : 1\r\n\r\n".to_owned()),
        ("folded line", "GET / HTTP/1.1\r\nHost: a.test\r\nX-A: 1\r\n  2\r\n\r\n".to_owned()),
        ("no colon", "GET / HTTP/1.1\r\nHost: a.test\r\nnonsense\r\n\r\n".to_owned()),
        ("NUL in a value", "GET / HTTP/1.1\r\nHost: a.test\r\nX-A: a\0b\r\n\r\n".to_owned()),
        ("bare CR in a value", "GET / HTTP/1.1\r\nHost: a.test\r\nX-A: a\rb\r\n\r\n".to_owned()),
        ("bare LF after the request line", "GET / HTTP/1.1\nHost: a.test\r\n\r\n".to_owned()),
        ("bare LF after a field", "GET / HTTP/1.1\r\nHost: a.test\nX-A: b\r\n\r\n".to_owned()),
        ("bare LFs at the end", "GET / HTTP/1.1\r\nHost: a.test\n\n".to_owned()),
        ("two empty lines first", "\r\n\r\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned()),
        ("blank first", " GET / HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned()),
        ("fragment", "GET /#a HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned()),
        ("another host in the target", "GET http://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned()),
        (
            "the length taken out",
            "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nConnection: content-length\r\n\r\nhello"
                .to_owned(),
        ),
        ("broken first chunk", post("Transfer-Encoding: chunked\r\n", "5 \r\nhello\r\n0\r\n\r\n")),
        ("framing in trailers", post("Transfer-Encoding: chunked\r\n", "0\r\nContent-Length: 5\r\n\r\n")),
        ("a chunk of 2^63 bytes", post("Transfer-Encoding: chunked\r\n", "8000000000000000\r\nhello")),
    ];
    let extended = |extension| {
        (extension, post("Transfer-Encoding: chunked\r\n", &format!("5;{extension}\r\nhello\r\n0\r\n\r\n")))
    };
    let extensions = ["", "=x", "a=\"x", "a b c", ";;;", "\u{ff}", "a ", "a="].map(extended);
    refused(&extensions, &[400]).await;
    refused(&cases, &[400]).await;
}

#[tokio::test]
async fn whoever_would_take_another_protocol_than_a_websocket_is_answered_in_http_and_goes_on() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    for fields in [
        "Upgrade: websocket, h2c\r\nConnection: Upgrade\r\n",
        "Upgrade: websocket\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
        "Upgrade: h2c\r\nUpgrade: websocket\r\nConnection: x\r\nConnection: upgrade\r\n",
        "Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\nHTTP2-Settings: AAMAAABk\r\n",
        "Upgrade: websocket\r\n",
    ] {
        let mut client = proxy.client().await;
        let first = format!("GET /first HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n");
        client.send(first + "GET /second HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        assert_eq!([client.response().await.status(), client.response().await.status()], [200; 2], "{fields}");
    }
    assert_eq!((origin.count("/first"), origin.count("/second")), (5, 5));
    for request in origin.requests() {
        assert_eq!((request.field("upgrade"), request.field("http2-settings")), (None, None), "{request:?}");
    }
}

#[tokio::test]
async fn the_same_length_twice_reaches_the_origin_once() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let reply = proxy.client().await.ask(post("Content-Length: 5\r\nContent-Length: 5\r\n", "hello")).await;
    if reply.status() == 200 {
        assert_eq!(origin.only_request().fields("content-length").len(), 1);
    } else {
        assert_eq!((reply.status(), origin.total()), (400, 0)); // RFC 9110 section 8.6 allows both
    }
}

#[tokio::test]
async fn a_length_with_leading_zeros_is_told_to_nobody_who_may_read_octal() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    for path in ["/one", "/two"] {
        let request = format!("POST {path} HTTP/1.1\r\nHost: a.test\r\nContent-Length: 010\r\n\r\n0123456789");
        assert_eq!(client.ask(&request).await.text(), "0123456789");
    }
    let lengths: Vec<_> =
        origin.requests().iter().map(|seen| seen.field("content-length").map(str::to_owned)).collect();
    assert_eq!(lengths, [Some("10".to_owned()), Some("10".to_owned())]);
}

#[tokio::test]
async fn broken_chunks_end_the_request_and_nothing_is_smuggled() {
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], "").start().await;
    for chunk in
        ["zz\r\nhello\r\n0\r\n\r\n", "-5\r\nhello\r\n0\r\n\r\n", "5\r\nhelloXX0\r\n\r\n", "fffffffffffffffff\r\n"]
    {
        let mut client = proxy.client().await;
        client.send(post("Transfer-Encoding: chunked\r\n", &format!("{chunk}{SMUGGLED}"))).await;
        let text = String::from_utf8_lossy(&client.closed().await).into_owned();
        let answers = text.matches("HTTP/1.1 ").count();
        assert!(answers <= 1 && !text.starts_with("HTTP/1.1 2"), "{chunk:?}: {text}");
    }
    assert_eq!(origin.count("/smuggled"), 0);
}

#[tokio::test]
async fn a_body_that_breaks_off_at_any_byte_never_ends_for_the_origin() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let chunks = "5;x=\"y\"\r\nhello\r\n0\r\nX-T: z\r\n\r\n";
    let head = "POST /broken HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    for at in 0..chunks.len() - 1 {
        let mut client = proxy.client().await;
        client.send(head).await;
        client.send(&chunks[..at]).await;
        tokio::task::yield_now().await;
        // A NUL is data within the five bytes only; there the next byte is wrong.
        client.send(if (9..15).contains(&at) { "\0\0\0\0\0\0\0" } else { "\0" }).await;
        let text = String::from_utf8_lossy(&client.closed().await).into_owned();
        assert!(text.starts_with("HTTP/1.1 400"), "broken at {at}: {text:?}");
        assert!(text.contains("bad_request") && text.contains("Connection: close"), "{text:?}");
    }
    assert_eq!(origin.count("/broken"), 0, "an origin saw a whole request");
    for at in 1..chunks.len() {
        let mut client = proxy.client().await;
        client.send(format!("{head}{}", &chunks[..at])).await;
        tokio::task::yield_now().await;
        client.send(&chunks[at..]).await;
        assert_eq!(client.response().await.text(), "hello", "split at {at}");
    }
}

/// Also when the answer has begun, and nobody can be told with a status any more.
#[tokio::test]
async fn a_broken_chunk_is_the_clients_fault_whatever_was_answered() {
    for engine in ["engine: exchange", "engine: pingora"] {
        let origin = Origin::script("a", |mut peer| async move {
            if peer.request_head().await.is_some() {
                peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n").await;
                peer.held().await;
            }
        })
        .await;
        let proxy = Config::before(&[&origin], engine).start().await;
        let mut client = proxy.client().await;
        client.send(post("Transfer-Encoding: chunked\r\n", "2\r\nhi\r\n")).await;
        assert_eq!(client.response_head().await.status(), 200, "{engine}");
        client.send("zz\r\nhello\r\n").await;
        let text = String::from_utf8_lossy(&client.closed().await).into_owned();
        assert!(!text.contains("0\r\n\r\n"), "{engine}: the answer looks whole: {text}");
        let line = &proxy.access_log(1).await[0];
        assert_eq!(line["reason"], "bad_request", "{engine}: {line}");
    }
}

#[tokio::test]
async fn an_empty_line_before_a_request_is_skipped() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    for _ in 0..3 {
        client.send("\r").await;
        tokio::task::yield_now().await;
        assert_eq!(client.ask("\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await.status(), 200);
    }
}

#[tokio::test]
async fn connect_is_refused_and_no_tunnel_is_made() {
    let connect = "CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n".to_owned();
    refused(&[("connect", connect)], &[400, 405, 501]).await;
}

#[tokio::test]
async fn extensions_of_one_body_are_bounded_in_sum() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let body = |chunks: usize, extension: usize, size: usize| {
        let chunk = format!("{size:x};{}\r\n{}\r\n", "x".repeat(extension), "y".repeat(size));
        post("Transfer-Encoding: chunked\r\n", &format!("{}0\r\n\r\n", chunk.repeat(chunks)))
    };
    // As uploads are signed chunk by chunk: more of it than the bound, and less than of the data.
    let reply = proxy.client().await.ask(body(400, 85, 400)).await;
    assert_eq!((reply.status(), reply.length), (200, 160_000));
    let mut client = proxy.client().await;
    client.send(body(200, 250, 1)).await;
    let reply = client.response().await;
    assert_eq!((reply.status(), reply.field("connection")), (400, Some("close")));
    assert!(client.closed().await.is_empty());
    assert_eq!(origin.total(), 1, "a body that was refused ended for an origin");
}

#[tokio::test]
async fn trailers_over_http1_are_no_fields_and_harm_nothing() {
    let origin = Origin::script("a", |mut peer: Peer| async move {
        while peer.request().await.is_some() {
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n").await;
        }
    })
    .await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    for _ in 0..2 {
        client.send(post("Transfer-Encoding: chunked\r\nTrailer: X-Sum\r\n", "2\r\nhi\r\n0\r\nX-Sum: 1\r\n\r\n")).await;
        let reply = client.response().await;
        assert_eq!((reply.status(), reply.text().as_str(), reply.field("x-sum")), (200, "hi", None));
    }
    let seen = origin.requests();
    assert!(seen.iter().all(|request| request.length == 2 && request.field("x-sum").is_none()), "{seen:?}");
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn a_host_that_is_none_takes_no_route_of_another() {
    let origin = Origin::echo("a").await;
    let yaml = "
        listeners: [{ address: <listen>, h2c: true }]
        routes:
          - { match: { host: secret.test }, respond: { status: 403 } }
          - { upstream: app }";
    let proxy = Config::before(&[&origin], yaml).start().await;
    for (host, status) in [
        ("secret.test", 403),
        ("SECRET.test.", 403),
        ("secret.test.:80", 403),
        ("secret.test..", 400),
        ("secret.test..:80", 400),
        ("secret..test", 400),
        (".secret.test", 400),
        ("..", 400),
        (".", 400),
        ("*", 400),
        ("$(x)", 400),
        ("a;b", 400),
        ("a'b", 400),
    ] {
        let reply = proxy.client().await.ask(format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert_eq!(reply.status(), status, "{host}");
        if let Ok(request) = http::Request::get(format!("http://{host}/")).body(()) {
            let reply = Client2::prior(proxy.listen).await.send(request, vec![], None).await;
            assert_eq!(reply.status, status, "{host} over HTTP/2");
        }
    }
    assert_eq!(origin.total(), 0);
}

#[tokio::test]
async fn a_path_with_what_no_uri_has_is_refused_and_a_query_goes_on_as_browsers_send_it() {
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], "listeners: [{ address: <listen>, h2c: true }]").start().await;
    for target in ["/\"", "/a\\b", "/a^b", "/`", "/<", "/a>", "/{a", "/a}?b", "/?\"", "/?<", "/?>"] {
        assert_eq!(proxy.get(target).await.status(), 400, "{target}");
        let absolute = format!("GET http://a.test{target} HTTP/1.1\r\nHost: a.test\r\n\r\n");
        assert_eq!(proxy.client().await.ask(absolute).await.status(), 400, "{target} in absolute form");
        if let Ok(request) = http::Request::get(format!("http://a.test{target}")).body(()) {
            let reply = Client2::prior(proxy.listen).await.send(request, vec![], None).await;
            assert_eq!(reply.status, 400, "{target} over HTTP/2");
        }
    }
    assert_eq!(origin.total(), 0);
    for target in ["/a[1]|b", "/?{a}|[b]^\\`", "/?100%", "/?%zz"] {
        assert_eq!(proxy.get(target).await.status(), 200, "{target}");
        assert_eq!(origin.requests().last().map(|request| request.target().to_owned()).as_deref(), Some(target));
        assert_eq!(Client2::prior(proxy.listen).await.get(target).await.status, 200, "{target} over HTTP/2");
    }
}

#[tokio::test]
async fn a_field_of_http2_with_white_space_around_its_value_is_malformed() {
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], "listeners: [{ address: <listen>, h2c: true }]").start().await;
    let client = Client2::prior(proxy.listen).await;
    for (value, status) in [(" a", 400), ("a ", 400), ("\ta", 400), ("a\t", 400), (" ", 400), ("a b", 200), ("", 200)] {
        let mut asked = request("GET", "/");
        asked.headers_mut().insert("x-a", http::HeaderValue::from_static(value));
        assert_eq!(client.send(asked, vec![], None).await.status, status, "{value:?}");
    }
    assert_eq!(origin.total(), 2);
}

#[tokio::test]
async fn an_absolute_target_needs_no_host_in_http10_and_its_default_port_is_no_other_host() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    for (head, host) in [
        ("GET http://a.test:80/x HTTP/1.1\r\nHost: a.test\r\n", "a.test:80"),
        ("GET http://a.test/x HTTP/1.1\r\nX: y\r\nHost: A.test:80\r\nY: z\r\n", "a.test"),
        ("GET http://[::1]:80/x HTTP/1.1\r\nHost: [::1]\r\n", "[::1]:80"),
        ("GET https://a.test:443/x HTTP/1.1\r\nHost: a.test\r\n", "a.test:443"),
        ("GET http://a.test/x HTTP/1.0\r\n", "a.test"),
        ("GET http://a.test:81/x HTTP/1.0\r\nX: y\r\n", "a.test:81"),
    ] {
        let reply = proxy.client().await.ask(format!("{head}Content-Length: 4\r\n\r\nbody")).await;
        assert_eq!((reply.status(), reply.text().as_str()), (200, "body"), "{head}");
        let requests = origin.requests();
        let request = requests.last().expect("a request");
        assert_eq!((request.target(), request.fields("host")), ("/x", vec![host]), "{head}");
    }
    for head in [
        "GET http://a.test:443/ HTTP/1.1\r\nHost: a.test\r\n",
        "GET https://a.test:80/ HTTP/1.1\r\nHost: a.test\r\n",
        "GET http://a.test:8080/ HTTP/1.1\r\nHost: a.test:80\r\n",
        "GET http://a.test/ HTTP/1.1\r\n",
        "GET http://a..test/ HTTP/1.0\r\n",
        "GET http://u@a.test/ HTTP/1.0\r\n",
        "GET http:///x HTTP/1.0\r\n",
    ] {
        assert_eq!(proxy.client().await.ask(format!("{head}\r\n")).await.status(), 400, "{head}");
    }
    assert_eq!(origin.total(), 6);
}

//! Faults in requests and answers that were found once and are not to come back. Those of the process are in
//! `regressions_lifecycle`.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    task::{AbortHandle, JoinSet},
};

use crate::support::{
    address,
    frames::{self, Raw},
    http1::{Client, get, get_with},
    http2::{Client2, Origin2, request},
    origin::Origin,
    proxy::{Config, Proxy},
    wait_until, within,
};

const LIMIT: Duration = Duration::from_secs(4);
const MIB: u64 = 1 << 20;

/// One upstream `app` of this address.
fn app(address: impl ToString, more: &str) -> Config {
    let yaml = "upstreams: { app: { backends: [\"<a>\"], <more> } }";
    Config::new(yaml).put("more", more).put("a", address.to_string())
}

#[tokio::test]
async fn a_malformed_chunked_body_is_the_clients_fault_and_ends_the_connection() {
    // Was answered 502 and blamed on the backend, or the connection went on behind it.
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let smuggled = get("/smuggled");
    for (count, body) in ["zz\r\n", "5\r\nhelloXX", "5\nhello\r\n0\r\n\r\n", "\r\n0\r\n\r\n"].iter().enumerate() {
        let mut client = proxy.client().await;
        let head = format!("POST /{count} HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n");
        client.send(format!("{head}{body}{smuggled}")).await;
        assert_eq!(client.response().await.status(), 400, "{body:?}");
        let after = client.closed().await;
        assert!(after.is_empty(), "{body:?} went on with {:?}", String::from_utf8_lossy(&after));
        let line = proxy.access_log(count + 1).await.remove(count);
        assert_eq!((line["status"].as_u64(), line["reason"].as_str()), (Some(400), Some("bad_request")), "{line}");
    }
    assert_eq!(origin.total(), 0, "an origin saw {:#?}", origin.requests());
    assert_eq!(proxy.get("/").await.status(), 200);
}

#[tokio::test]
async fn a_head_that_is_refused_is_answered_without_a_body() {
    // The body stood behind the answer's head, where the client reads its next answer (RFC 9110 §9.3.2).
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    for (refused, status) in [
        ("HEAD / HTTP/1.1\r\nHost: a b\r\n\r\n".to_owned(), 400),
        ("HEAD / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("HEAD / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(), 400),
        (format!("HEAD /{} HTTP/1.1\r\nHost: a.test\r\n\r\n", "x".repeat(70_000)), 414),
    ] {
        let mut client = proxy.client().await;
        client.send(&refused).await;
        let head = client.response_head().await;
        assert_eq!(head.status(), status, "{refused:.60}");
        assert!(head.field("content-length").is_some_and(|length| length != "0"), "{refused:.60}");
        let after = client.closed().await;
        assert!(after.is_empty(), "{refused:.60}: {:?}", String::from_utf8_lossy(&after));
    }
    assert_eq!(proxy.get("/").await.status(), 200);
}

#[tokio::test]
async fn any_number_of_stale_pooled_connections_fails_no_get() {
    // Each stale connection was counted as an attempt, so that a full pool of them was a 502.
    let origin = Origin::script("a", |mut peer| async move {
        if peer.request().await.is_some() {
            peer.held().await;
            peer.reply(200, "", "first").await;
            let _ = peer.wire.head().await; // the next request is read and the connection closed
        }
    })
    .await;
    let proxy = Config::before(&[&origin], "threads: 1").start().await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = proxy.client().await;
        client.send(get("/hold")).await;
        clients.push(client);
    }
    wait_until("six requests at the origin", || origin.total() == 6).await;
    origin.release();
    for client in &mut clients {
        assert_eq!(client.response().await.status(), 200);
    }
    assert_eq!(origin.open(), 6, "pooled");
    for n in 0..12 {
        let reply = proxy.get("/again").await;
        assert_eq!((reply.status(), reply.text()), (200, "first".to_owned()), "request {n}");
    }
}

#[tokio::test]
async fn a_slow_upload_to_an_h2c_backend_is_not_cut() {
    // `read` and `first_byte` ran while the request's body was still on its way.
    let origin = Origin2::start("a", None).await;
    let more = "protocol: h2c, timeouts: { first_byte: 300ms, read: 300ms }, retry: { attempts: 1 }";
    let proxy = app(origin.address, more).start().await;
    let mut client = proxy.client().await;
    client.send("POST /p HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\n").await;
    for _ in 0..10 {
        tokio::time::sleep(Duration::from_millis(100)).await; // the client's pace: longer in all than both
        client.send("x").await;
    }
    let reply = client.response().await;
    assert_eq!((reply.status(), reply.text()), (200, "xxxxxxxxxx".to_owned()));
}

#[tokio::test]
async fn first_byte_and_total_count_for_an_h2c_backend() {
    // Only HTTP/1 backends had these deadlines.
    let silent = SilentOrigin2::start().await;
    for timeouts in ["first_byte: 300ms", "total: 300ms"] {
        let more = format!("protocol: h2c, timeouts: {{ {timeouts} }}, retry: {{ attempts: 1 }}");
        let proxy = app(silent.address, &more).start().await;
        let begun = Instant::now();
        assert_eq!(proxy.get("/").await.status(), 504, "{timeouts}");
        let took = begun.elapsed();
        assert!((Duration::from_millis(240)..LIMIT).contains(&took), "{timeouts}: after {took:?}");
    }
}

/// An HTTP/2 origin that takes every request and answers none.
struct SilentOrigin2 {
    address: std::net::SocketAddr,
    task: AbortHandle,
}

impl SilentOrigin2 {
    async fn start() -> Self {
        let address = address::unused();
        let listener = TcpListener::bind(address).await.unwrap_or_else(|e| panic!("bind {address}: {e}"));
        let accepting = async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                open.spawn(async move {
                    let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                    let mut kept = Vec::new();
                    while let Some(Ok(exchange)) = connection.accept().await {
                        kept.push(exchange);
                    }
                });
            }
        };
        Self { address, task: tokio::spawn(accepting).abort_handle() }
    }
}

impl Drop for SilentOrigin2 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

#[tokio::test]
async fn a_slow_client_is_not_taken_for_a_silent_backend() {
    // `read` ran while nothing was read from the backend because the client took nothing.
    let origin = Origin::echo("a").await;
    let proxy = app(&origin.address, "timeouts: { read: 300ms, first_byte: 5s }").start().await;
    for size in [8 * MIB, 24 * MIB] {
        let mut client = proxy.client().await;
        client.send(get(&format!("/size/{size}"))).await;
        let mut reply = client.response_head().await;
        assert_eq!(reply.status(), 200);
        tokio::time::sleep(Duration::from_secs(1)).await; // the client's pace: longer than `read`
        within("the body", client.wire.body(&mut reply)).await.unwrap_or_else(|e| panic!("cut: {e}"));
        assert_eq!(reply.length, size);
    }
}

#[tokio::test]
async fn our_502_arrives_whole_while_a_large_body_is_still_sent() {
    // Would show a connection that is closed with unread bytes in it, where a reset overtakes the answer.
    let proxy = app(address::unused(), "").start().await;
    for n in 0..10 {
        let sent = AtomicBool::new(false);
        let (mut reader, mut writer) = tokio::io::split(proxy.client().await.wire.into_parts().0);
        let sending = async {
            let head = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 2000000\r\n\r\n";
            let _ = writer.write_all(head.as_bytes()).await;
            let _ = writer.write_all(&vec![b'x'; 2_000_000]).await; // a client that is not read may be told so
            sent.store(true, Ordering::SeqCst);
            writer
        };
        let mut text = Vec::new();
        let receiving = async {
            let mut block = [0; 4096];
            if n % 2 == 1 {
                wait_until("all to be sent", || sent.load(Ordering::SeqCst)).await; // many clients read only then
            }
            while !whole(&text) {
                match reader.read(&mut block).await {
                    Ok(0) => panic!("request {n}: closed after {:?}", String::from_utf8_lossy(&text)),
                    Ok(read) => text.extend_from_slice(&block[..read]),
                    Err(error) => panic!("request {n}: {error} after {:?}", String::from_utf8_lossy(&text)),
                }
            }
        };
        within("the answer", async { tokio::join!(sending, receiving) }).await;
        assert!(text.starts_with(b"HTTP/1.1 502 "), "request {n}: {:?}", String::from_utf8_lossy(&text));
    }
}

/// Whether an answer with `Content-Length` is complete.
fn whole(answer: &[u8]) -> bool {
    let text = String::from_utf8_lossy(answer).to_ascii_lowercase();
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
    length.and_then(|length| length.trim().parse().ok()).is_some_and(|length: usize| body.len() >= length)
}

#[tokio::test]
async fn a_target_that_is_no_path_is_refused() {
    // `admin/x` was not matched by the route of `/admin/` and reached an origin that took it for that.
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    for target in ["admin/x", "?x", "x", "a.test:80"] {
        let mut client = proxy.client().await;
        client.send(get(target)).await;
        assert_eq!(client.response().await.status(), 400, "{target}");
        assert_eq!(client.closed().await, b"", "{target}");
    }
    assert_eq!(origin.total(), 0, "an origin saw {:#?}", origin.requests());
}

/// A proxy in front of an origin that gives this answer to each request.
async fn before_answer(answer: &'static str) -> (Origin, Proxy) {
    let origin = Origin::script("a", move |mut peer| async move {
        while peer.request().await.is_some() {
            peer.send(answer).await;
        }
    })
    .await;
    let proxy = Proxy::before(&[&origin]).await;
    (origin, proxy)
}

#[tokio::test]
async fn an_http10_answer_reaches_the_client_as_http11() {
    // The backend's version was passed on, and clients took the connection for one that closes.
    let (_origin, proxy) = before_answer("HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
    let mut client = proxy.client().await;
    for _ in 0..3 {
        let reply = client.get("/").await;
        assert_eq!((reply.start.as_str(), reply.text().as_str()), ("HTTP/1.1 200 OK", "ok"));
    }
}

#[tokio::test]
async fn a_204_loses_its_content_length() {
    // RFC 9110 section 8.6; a client that believes the length waits for the next answer's bytes.
    let (_origin, proxy) = before_answer("HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n").await;
    let mut client = proxy.client().await;
    for _ in 0..3 {
        let reply = client.get("/").await;
        assert_eq!((reply.status(), reply.field("content-length")), (204, None), "{reply:?}");
    }
}

#[tokio::test]
async fn an_answer_in_a_transfer_coding_nobody_asked_for_is_a_502() {
    // `gzip, chunked` was passed on as `chunked`: the client got compressed bytes and no word of it.
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let (_origin, proxy) = before_answer(answer).await;
    let reply = proxy.get("/").await;
    assert_eq!(reply.status(), 502, "{reply:?}");
}

#[tokio::test]
async fn an_offer_of_h2c_is_ignored_and_the_connection_goes_on() {
    // As `curl --http2` asks; it was taken for a WebSocket, and the connection was useless afterwards.
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    let fields = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n";
    for n in 0..3 {
        let reply = client.ask(format!("GET /{n} HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n")).await;
        assert_eq!((reply.status(), reply.origin()), (200, "a"), "{reply:?}");
        assert_eq!(client.get("/plain").await.status(), 200);
    }
    for request in origin.requests() {
        assert_eq!((request.field("upgrade"), request.field("http2-settings")), (None, None), "{request:?}");
    }
}

#[tokio::test]
async fn an_offer_of_h2c_to_an_h2c_backend_is_a_plain_request() {
    // It was answered 502 `upgrade_failed`: only WebSockets need HTTP/1.1 behind the proxy.
    let origin = Origin2::start("a", None).await;
    let proxy = app(origin.address, "protocol: h2c").start().await;
    let fields = "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n";
    assert_eq!(get_with(proxy.listen, "/", fields).await.status(), 200);
}

#[tokio::test]
async fn a_refused_websocket_ends_the_connection_and_says_so() {
    // What the client sends next may be frames; the connection was closed without a word.
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let fields = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                  Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
    let reply = get_with(proxy.listen, "/", fields).await;
    assert_eq!((reply.status(), reply.field("connection")), (200, Some("close")), "{reply:?}");
    let mut client = Client::connect(proxy.listen).await;
    client.ask(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n")).await;
    assert_eq!(client.closed().await, b"");
}

#[tokio::test]
async fn an_empty_chunked_body_is_not_sent_again_without_its_end() {
    // Pingora keeps nothing of a body that is only its end, and the second backend waited for it.
    let first = Origin::script("a", |mut peer| async move {
        peer.request().await;
    })
    .await;
    let second = Origin::echo("b").await;
    let yaml = "upstreams: { app: { backends: [\"<a>\", \"<b>\"], timeouts: { first_byte: 15s } } }";
    let config = Config::new(yaml).put("a", &first.address).put("b", &second.address);
    let proxy = config.start().await;
    let begun = std::time::Instant::now();
    for _ in 0..2 {
        let mut client = proxy.client().await;
        let put = "PUT / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
        assert!(matches!(client.ask(put).await.status(), 200 | 502));
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(10));
}

#[tokio::test]
async fn an_answer_of_our_own_to_a_handshake_says_that_the_connection_ends() {
    // What a client sends after its handshake has no border, so the connection cannot be kept.
    let proxy = Config::new("routes: [{ respond: { status: 403 } }]").start().await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").await;
    let reply = client.response().await;
    assert_eq!((reply.status(), reply.field("connection")), (403, Some("close")));
}

#[tokio::test]
async fn a_request_between_two_http2_sides_ends_in_time_and_is_logged() {
    // Neither connection is the request's own; it waited for the longer of `first_byte` and `read`.
    let origin = SilentOrigin2::start().await;
    let yaml = "
        listeners: [{ address: <listen>, h2c: true }]
        upstreams: { app: { backends: [\"<a>\"], protocol: h2c, timeouts: { first_byte: 300ms, read: 20s } } }";
    let proxy = Config::new(yaml).put("a", origin.address).start().await;
    let begun = Instant::now();
    let client = Client2::prior(proxy.listen).await;
    // Over Pingora's path it is reset.
    assert!(client.try_get("/").await.map_or(true, |answer| answer.status == 504), "an answer");
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    assert_eq!(proxy.access_log(1).await[0]["reason"], "first_byte_timeout");
    proxy.metric("rrlb_requests_in_flight", &[], |n| n == 0.0).await;
}

/// What HTTP/1 refuses in `Host`, HTTP/2 must not bring in; nor several lengths, or a target that is no ASCII.
#[tokio::test]
async fn an_http2_request_is_for_one_host_that_is_one() {
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], "listeners: [{ address: <listen>, h2c: true }]").start().await;
    // GET, http, `/`, and the fields as literals; `:status` 200 is 0x88 in the answer, 400 is 0x8c (RFC 7541, appendix A).
    let ask = async |fields: &[(&str, &str)]| {
        let mut block = vec![0x82, 0x86, 0x84];
        for (name, value) in fields {
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).expect("short"));
                block.extend_from_slice(text.as_bytes());
            }
        }
        let mut raw = Raw::begin(proxy.listen, &[]).await;
        raw.send(&frames::frame(frames::HEADERS, 0x5, 1, &block)).await;
        loop {
            let frame = raw.read.next().await.expect("an answer");
            match frame.kind {
                frames::HEADERS => return Some(frame.payload[0]),
                frames::RST_STREAM => return None,
                _ => {}
            }
        }
    };
    for fields in [
        &[("host", "a/b")][..],
        &[("host", "a.test/../x?q")],
        &[("host", "a b")],
        &[("host", "evil.test, a.test")],
        &[("host", "")],
        &[("host", "a.test"), ("host", "a.test")],
        &[(":authority", "a.test"), ("host", "b.test")],
        &[(":authority", "a.test:99999")],
        &[(":authority", "a.test"), ("content-length", "0"), ("content-length", "0")],
    ] {
        // Some the h2 crate or Pingora resets by themselves.
        assert!(matches!(ask(fields).await, Some(0x8c) | None), "{fields:?}");
    }
    assert_eq!(origin.total(), 0);
    assert_eq!(ask(&[("host", "a.test")]).await, Some(0x88));
    assert_eq!(ask(&[(":authority", "a.test"), ("host", "a.test")]).await, Some(0x88));
}

/// Interim answers without end are no answer.
#[tokio::test]
async fn interim_answers_do_not_put_off_the_first_byte() {
    let origin = Origin::script("a", |mut peer| async move {
        if peer.request().await.is_some() {
            while peer.wire.send("HTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    })
    .await;
    let yaml = "listeners: [{ address: <listen>, h2c: true }]\ndefaults: { timeouts: { first_byte: 1s, read: 1s }, retry: { attempts: 1 } }";
    let proxy = Config::before(&[&origin], yaml).start().await;
    assert_eq!(Client2::prior(proxy.listen).await.get("/").await.status, 504);
}

#[tokio::test]
async fn a_field_that_only_looks_like_ours_is_not_passed_on() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let fields = "X_Forwarded_For: 6.6.6.6\r\nX_Forwarded-Proto: https\r\nX_Real_IP: 6.6.6.6\r\nProxy: http://evil\r\n\
                  X_Request_Id: 1\r\nContent_Length: 5\r\n";
    assert_eq!(get_with(proxy.listen, "/", fields).await.status(), 200);
    let seen = origin.only_request();
    for name in ["x_forwarded_for", "x_forwarded-proto", "x_real_ip", "proxy", "x_request_id", "content_length"] {
        assert_eq!(seen.field(name), None, "{name}");
    }
}

#[tokio::test]
async fn an_http2_head_over_the_limit_is_told_why_and_logged() {
    // The h2 crate answered it by itself: a bare 431, and no word of it in the log or in the metrics.
    let origin = Origin::echo("a").await;
    let more = "listeners: [{ address: <listen>, h2c: true, limits: { max_header_size: 4KiB } }]";
    let proxy = Config::before(&[&origin], more).start().await;
    let client = Client2::prior(proxy.listen).await;
    let filled = |size: usize| {
        let mut request = request("GET", "/");
        request.headers_mut().insert("x-fill", "x".repeat(size).parse().expect("a value"));
        request
    };
    assert_eq!(client.send(filled(3_800), vec![], None).await.status, 200);
    for size in [4_096, 7_000] {
        let reply = client.send(filled(size), vec![], None).await;
        let told = reply.field("proxy-status").expect("Proxy-Status").to_owned();
        assert!(reply.status == 431 && told.contains("header_too_large"), "{size}: {reply:?}");
    }
    proxy.metric("rrlb_failures_total", &["reason=\"header_too_large\""], |n| n == 2.0).await;
    assert_eq!(proxy.access_log(3).await[2]["reason"], "header_too_large");
    assert_eq!(origin.total(), 1);
}

#[tokio::test]
async fn connect_over_http2_is_told_why_and_logged_once() {
    // Pingora answered it: 405 without `Proxy-Status` and `Allow`.
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], "listeners: [{ address: <listen>, h2c: true }]").start().await;
    let client = Client2::prior(proxy.listen).await;
    let connect = http::Request::builder().method("CONNECT").uri("a.test:443").body(()).expect("a request");
    let reply = client.send(connect, vec![], None).await;
    let told = reply.field("proxy-status").expect("Proxy-Status").to_owned();
    assert!(reply.status == 405 && told.contains("method_not_allowed"), "{reply:?}");
    assert!(reply.field("allow").is_some());
    assert_eq!(proxy.access_log(1).await[0]["reason"], "method_not_allowed");
    assert_eq!(client.get("/").await.status, 200);
}

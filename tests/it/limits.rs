//! The limits of a listener: on heads, bodies, connections and the patience with slow clients.

use std::{
    net::IpAddr,
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    http1::{Client, get},
    http2::{Client2, request},
    origin::Origin,
    proxy::{Config, Proxy},
    wait_until, within,
};

async fn limited(origin: &Origin, limits: &str) -> Proxy {
    let more = "listeners: [{ address: <listen>, h2c: true, limits: { <limits> } }]";
    Config::before(&[origin], more).put("limits", limits).start().await
}

/// The reasons in the access log, once there are so many.
async fn reasons(proxy: &Proxy, count: usize) -> Vec<String> {
    let lines = proxy.access_log(count).await;
    lines.iter().map(|line| line["reason"].as_str().unwrap_or_default().to_owned()).collect()
}

#[tokio::test]
async fn a_target_over_the_limit_is_414() {
    let origin = Origin::echo("a").await;
    let proxy = limited(&origin, "max_uri_length: 100B").await;
    let path = |length: usize| format!("/{}", "x".repeat(length - 1));
    assert_eq!(proxy.get(&path(100)).await.status(), 200);
    for length in [101, 30_000, 40_000] {
        let mut client = proxy.client().await;
        client.send(get(&path(length))).await;
        assert_eq!(client.response().await.status(), 414, "{length}");
        assert_eq!(client.closed().await, b"");
    }
    let client = Client2::prior(proxy.listen).await;
    assert_eq!(client.get(&path(100)).await.status, 200);
    assert_eq!(client.get(&path(101)).await.status, 414);
    assert_eq!(origin.total(), 2);
    let reasons = reasons(&proxy, 6).await;
    assert_eq!(reasons.iter().filter(|reason| *reason == "uri_too_long").count(), 4, "{reasons:?}");
}

/// Whoever moves the bytes: a URI and a field's name have a bound of their own (the http crate's).
#[tokio::test]
async fn the_longest_target_is_served_and_a_name_that_is_none_is_431() {
    let origin = Origin::echo("a").await;
    for engine in ["lane", "exchange", "pingora"] {
        let more = "
            engine: <engine>
            listeners: [{ address: <listen>, h2c: true, limits: { max_header_size: 256KiB, max_uri_length: 65534B } }]
            routes: [{ match: { path: /own }, respond: { body: own } }, { upstream: app }]";
        let proxy = Config::before(&[&origin], more).put("engine", engine).start().await;
        for root in ["/", "/own/"] {
            let path = |length: usize| format!("{root}{}", "x".repeat(length - root.len()));
            for (length, status) in [(65_534, 200), (65_535, 414), (70_000, 414)] {
                assert_eq!(proxy.get(&path(length)).await.status(), status, "{engine} {root} {length}");
            }
            let named =
                |length: usize| format!("GET {root} HTTP/1.1\r\nHost: a.test\r\n{}: y\r\n\r\n", "n".repeat(length));
            let mut client = proxy.client().await;
            client.send(named(65_536)).await;
            let reply = client.response().await;
            assert_eq!(reply.status(), 431, "{engine} {root}");
            assert!(reply.field("proxy-status").is_some_and(|told| told.contains("header_too_large")), "{reply:?}");
        }
        let mut reasons = reasons(&proxy, 8).await;
        reasons.sort();
        let expected = ["header_too_large", "header_too_large", "ok", "respond"];
        assert_eq!(reasons, [&expected[..], &["uri_too_long"; 4]].concat(), "{engine}");
        let client = Client2::prior(proxy.listen).await;
        assert_eq!(client.get(&format!("/{}", "x".repeat(65_000))).await.status, 200);
    }
}

#[tokio::test]
async fn more_fields_than_the_limit_are_431() {
    let origin = Origin::echo("a").await;
    let proxy = limited(&origin, "max_headers: 5").await;
    let head = |fields: usize| format!("GET / HTTP/1.1\r\nHost: a.test\r\n{}\r\n", "X: y\r\n".repeat(fields - 1));
    assert_eq!(proxy.client().await.ask(head(5)).await.status(), 200);
    assert_eq!(proxy.client().await.ask(head(6)).await.status(), 431);
    let client = Client2::prior(proxy.listen).await;
    let fields = |count: usize| {
        let mut request = request("GET", "/");
        for _ in 0..count {
            request.headers_mut().append("x", "y".parse().expect("a value"));
        }
        request
    };
    assert_eq!(client.send(fields(5), vec![], None).await.status, 200);
    assert_eq!(client.send(fields(6), vec![], None).await.status, 431);
    assert_eq!(origin.total(), 2);
}

/// RFC 9110 §6.6.1.
#[tokio::test]
async fn what_is_refused_before_it_is_a_request_is_dated() {
    let origin = Origin::echo("a").await;
    let limits = "max_uri_length: 100B, max_body_size: 10B, header_timeout: 500ms, connections_per_ip: 1";
    let proxy = limited(&origin, limits).await;
    let dated = |answer: &[u8], status: u16| {
        let text = String::from_utf8_lossy(answer).into_owned();
        let dates: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("Date: ")).collect();
        assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
        assert!(matches!(dates[..], [date] if date.len() == 29 && date.ends_with(" GMT")), "{text}");
    };
    for (request, status) in [
        (get(&format!("/{}", "x".repeat(200))), 414),
        (format!("GET / HTTP/1.1\r\nHost: a.test\r\nX: {}\r\n\r\n", "x".repeat(40_000)), 431),
        ("GET / HTTP/1.1\r\n\r\n".to_owned(), 400),
        ("CONNECT a.test:1 HTTP/1.1\r\nHost: a.test:1\r\n\r\n".to_owned(), 405),
        ("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 11\r\n\r\n".to_owned(), 413),
        ("GET / HT".to_owned(), 408),
    ] {
        wait_until_closed(&proxy).await;
        let mut client = proxy.client().await;
        client.send(request).await;
        dated(&client.closed().await, status);
    }
    wait_until_closed(&proxy).await;
    let mut first = proxy.client().await;
    assert_eq!(first.get("/").await.status(), 200);
    dated(&proxy.client().await.closed().await, 429);
}

/// Of the only connection there may be.
async fn wait_until_closed(proxy: &Proxy) {
    proxy.metric("rrlb_connections_open", &[], |open| open == 0.0).await;
}

#[tokio::test]
async fn a_declared_body_over_the_limit_is_413_before_an_origin_hears_of_it() {
    let origin = Origin::echo("a").await;
    let proxy = limited(&origin, "max_body_size: 1000B").await;
    let post = |length: usize| format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n");
    let body = "x".repeat(1000);
    let fine = proxy.client().await.ask(format!("{}\r\n{body}", post(1000))).await;
    assert_eq!((fine.status(), fine.length), (200, 1000));
    for fields in ["", "Expect: 100-continue\r\n"] {
        let mut client = proxy.client().await;
        client.send(format!("{}{fields}\r\n", post(1001))).await;
        let reply = client.any_response().await;
        assert_eq!(reply.status(), 413);
        assert!(reply.field("proxy-status").is_some_and(|told| told.contains("body_too_large")), "{reply:?}");
        assert_eq!(client.closed().await, b"");
    }
    let client = Client2::prior(proxy.listen).await;
    let mut declared = request("POST", "/");
    declared.headers_mut().insert("content-length", "1001".parse().expect("a value"));
    let (response, _sending) = client.open(declared, false).await.expect("a stream");
    assert_eq!(within("the answer", response).await.expect("an answer").status(), 413);
    assert_eq!((origin.total(), origin.connections()), (1, 1));
}

#[tokio::test]
async fn a_body_that_nobody_asked_for_is_not_read_on_beyond_the_limit() {
    let yaml = "
        listeners: [{ address: \"<listen>\", h2c: true, limits: { max_body_size: 1000B } }]
        routes: [{ respond: { status: 200, body: own } }]";
    let proxy = Config::new(yaml).start().await;
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n").await;
    let reply = client.response().await;
    assert_eq!((reply.status(), reply.text().as_str()), (200, "own"));
    assert_eq!(reply.field("connection"), Some("close"));
    assert_eq!(client.closed().await, b"");
}

#[tokio::test]
async fn a_body_that_grows_over_the_limit_is_413_and_never_whole_for_an_origin() {
    let origin = Origin::echo("a").await;
    let proxy = limited(&origin, "max_body_size: 1000B").await;
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let chunk = format!("1f4\r\n{}\r\n", "x".repeat(500));
    client.send(&chunk).await;
    client.send(&chunk).await;
    client.send("1\r\nx\r\n").await;
    assert_eq!(client.response().await.status(), 413);
    assert_eq!(client.closed().await, b"");
    let whole = format!("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n{chunk}{chunk}0\r\n\r\n");
    assert_eq!(proxy.client().await.ask(whole).await.length, 1000);
    let client = Client2::prior(proxy.listen).await;
    let parts = vec![Bytes::from(vec![b'x'; 600]); 2];
    assert_eq!(client.send(request("POST", "/"), parts, None).await.status, 413);
    assert_eq!(origin.total(), 1, "an origin saw a body that was cut");
    let reasons = reasons(&proxy, 3).await;
    assert_eq!(reasons.iter().filter(|reason| *reason == "body_too_large").count(), 2, "{reasons:?}");
    wait_until("the cut requests' connections to end", || origin.open() <= 1).await;
}

#[tokio::test]
async fn the_last_answer_arrives_whatever_its_client_has_sent_behind_the_request() {
    const SIZE: usize = 300_000;
    const LATE: usize = 100_000;
    for (limit, fields) in [("requests_per_connection: 1", ""), ("requests_per_connection: 9", "Connection: close\r\n")]
    {
        let origin = Origin::echo("a").await;
        let proxy = limited(&origin, limit).await;
        let (io, _) = Client::with_small_buffer(proxy.listen).await.wire.into_parts();
        let (mut reader, mut writer) = tokio::io::split(io);
        let first = format!("GET /size/{SIZE} HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n");
        writer.write_all(first.as_bytes()).await.expect("room");
        let flood = tokio::spawn(async move {
            let _ = writer.write_all(get("/behind").repeat(8000).as_bytes()).await;
            writer
        });
        let (mut answer, mut part) = (Vec::new(), vec![0; 16 << 10]);
        while answer.len() < SIZE - LATE {
            let read = within("the answer", reader.read(&mut part)).await.expect("bytes");
            assert!(read > 0, "{limit}: ended after {}", answer.len());
            answer.extend_from_slice(&part[..read]);
        }
        // All of it was written by then, and nobody will serve what is behind.
        proxy.access_log(1).await;
        within("the rest", reader.read_to_end(&mut answer)).await.expect("no reset");
        let head = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
        assert_eq!(answer.len() - head, SIZE, "{limit}");
        assert_eq!(origin.total(), 1);
        drop(flood);
    }
}

#[tokio::test]
async fn a_chunk_that_is_declared_over_the_limit_is_413_before_it_has_come() {
    let origin = Origin::echo("a").await;
    let proxy = limited(&origin, "max_body_size: 1000B").await;
    let head = "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n";
    let first = format!("1f4\r\n{}\r\n", "x".repeat(500));
    for size in ["3e9\r\n", "fffffff\r\n01234"] {
        let mut client = proxy.client().await;
        client.send(format!("{head}{size}")).await;
        assert_eq!(client.response().await.status(), 413, "with the head: {size}");
        assert_eq!(client.closed().await, b"");
        let mut client = proxy.client().await;
        client.send(format!("{head}{first}")).await;
        client.send(size).await;
        assert_eq!(client.response().await.status(), 413, "later: {size}");
        assert_eq!(client.closed().await, b"");
    }
    assert_eq!(reasons(&proxy, 4).await, ["body_too_large"; 4]);
    let whole = format!("{head}3e8\r\n{}\r\n0\r\n\r\n", "x".repeat(1000));
    assert_eq!(proxy.client().await.ask(whole).await.length, 1000);
    assert_eq!(origin.total(), 1, "an origin saw a body that was cut");
}

#[tokio::test]
async fn an_upload_slower_than_the_rate_is_408() {
    let origin = Origin::echo("a").await;
    let proxy = limited(&origin, "min_body_rate: 1KiB").await;
    let begun = Instant::now();
    let mut slow = proxy.client().await;
    slow.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100000\r\n\r\n").await;
    let trickle = async {
        let mut answer = Vec::new();
        let (mut reader, mut writer) = tokio::io::split(slow.wire.into_parts().0);
        loop {
            // The client's pace: 100 bytes a second, each well within any deadline of a single read.
            match tokio::time::timeout(Duration::from_millis(100), reader.read_buf(&mut answer)).await {
                Ok(Ok(0) | Err(_)) => return answer,
                Ok(Ok(_)) => {}
                Err(_) => drop(tokio::io::AsyncWriteExt::write_all(&mut writer, b"0123456789").await),
            }
        }
    };
    // Ten times as fast as it has to be: it takes longer than the grace and is served.
    let fast = async {
        let mut client = proxy.client().await;
        client.send("POST /fast HTTP/1.1\r\nHost: a.test\r\nContent-Length: 70000\r\n\r\n").await;
        for _ in 0..70 {
            tokio::time::sleep(Duration::from_millis(100)).await;
            client.send(vec![b'x'; 1000]).await;
        }
        client.response().await
    };
    let (answer, fast) = tokio::join!(within("the cut", trickle), fast);
    let text = String::from_utf8_lossy(&answer);
    assert!(text.starts_with("HTTP/1.1 408") && text.contains("client_timeout"), "{text:?}");
    assert!(text.contains("Connection: close"), "{text:?}");
    assert!(begun.elapsed() > Duration::from_secs(5), "cut after {:?}", begun.elapsed());
    assert_eq!((fast.status(), fast.length), (200, 70_000));
    assert_eq!(origin.count("/"), 0, "an origin saw a body that was cut");
}

/// Who waits to be asked has a minute; who was asked and has begun is as anybody else.
#[tokio::test]
async fn a_body_that_was_asked_for_and_has_begun_keeps_the_rate() {
    let origin = Origin::echo("a").await;
    let proxy = limited(&origin, "min_body_rate: 1KiB").await;
    let mut slow = proxy.client().await;
    slow.send("POST / HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 100000\r\n\r\n").await;
    assert_eq!(slow.any_response().await.status(), 100);
    let begun = Instant::now();
    slow.send("x").await;
    assert_eq!(slow.any_response().await.status(), 408);
    let took = begun.elapsed();
    assert!((Duration::from_secs(4)..Duration::from_secs(15)).contains(&took), "cut after {took:?}");
}

#[tokio::test]
async fn who_need_not_wait_to_be_asked_has_the_grace_of_all() {
    let origin = Origin::echo("a").await;
    for engine in ["lane", "exchange", "pingora"] {
        let more = "
            engine: <engine>
            listeners: [{ address: <listen>, limits: { min_body_rate: 1KiB } }]";
        let proxy = Config::before(&[&origin], more).put("engine", engine).start().await;
        let silent = async |what: &str, head: &str, body: &str| {
            let mut client = proxy.client().await;
            client.send(format!("POST / {head}\r\nContent-Length: 900\r\n\r\n{body}")).await;
            let begun = Instant::now();
            if what == "was asked" {
                assert_eq!(client.any_response().await.status(), 100);
            }
            let answer = within(what, client.closed()).await;
            let (took, text) = (begun.elapsed(), String::from_utf8_lossy(&answer).into_owned());
            let status = text.lines().map(|line| line.split(' ').nth(1)).filter_map(|word| word?.parse().ok());
            assert_eq!(status.filter(|status| *status > 199).collect::<Vec<u16>>(), [408], "{engine}, {what}: {text}");
            assert!((4..9).contains(&took.as_secs()), "{engine}, {what}: {took:?}");
        };
        tokio::join!(
            silent("was asked", "HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue", ""),
            silent("has begun", "HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue", "x"),
            silent("knows no 100", "HTTP/1.0\r\nHost: a.test\r\nExpect: 100-continue", ""),
            silent("expects another thing", "HTTP/1.1\r\nHost: a.test\r\nExpect: foo", ""),
        );
    }
}

#[tokio::test]
async fn what_is_around_the_data_does_not_pay_for_the_rate() {
    let origin = Origin::echo("a").await;
    let proxy = limited(&origin, "min_body_rate: 1KiB").await;
    let mut slow = proxy.client().await;
    slow.send("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n").await;
    let (mut reader, mut writer) = tokio::io::split(slow.wire.into_parts().0);
    // More than 1 KiB a second, of which a tenth is data.
    let chunks = "1;xxxx\r\ny\r\n".repeat(16);
    let sent = async {
        while tokio::io::AsyncWriteExt::write_all(&mut writer, chunks.as_bytes()).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let mut answer = Vec::new();
    let cut = async {
        tokio::select! {
            () = sent => {}
            _ = reader.read_to_end(&mut answer) => {}
        }
    };
    tokio::time::timeout(Duration::from_secs(9), cut).await.expect("to be cut after the grace of 5 s");
    let text = String::from_utf8_lossy(&answer);
    assert!(text.starts_with("HTTP/1.1 408") && text.contains("client_timeout"), "{text:?}");
    assert_eq!(origin.total(), 0, "an origin saw a body that was cut");
}

#[tokio::test]
async fn a_reader_slower_than_the_rate_is_cut_and_one_that_keeps_it_is_not() {
    let origin = Origin::echo("a").await;
    let proxy = limited(&origin, "min_body_rate: 1KiB").await;
    let mut stuck = proxy.client().await;
    stuck.send(get("/size/100000000")).await;
    // Slow enough to outlast the grace, and many times as fast as it has to be.
    let steady = async {
        let mut client = proxy.client().await;
        client.send(get("/size/40000000")).await;
        let (mut stream, _) = client.wire.into_parts();
        let mut part = vec![0; 256 << 10];
        let mut all = 0;
        while all < 40_000_000 {
            tokio::time::sleep(Duration::from_millis(50)).await;
            match stream.read(&mut part).await {
                Ok(read) if read > 0 => all += read,
                end => panic!("cut after {all} bytes: {end:?}"),
            }
        }
    };
    let cut = proxy.metric("rrlb_failures_total", &["reason=\"too_slow\""], |n| n == 1.0);
    tokio::join!(within("the steady reader", steady), cut);
    assert!(stuck.closed().await.len() < 100_000_000);
    let reasons = reasons(&proxy, 2).await;
    assert!(reasons.contains(&"too_slow".to_owned()) && reasons.contains(&"ok".to_owned()), "{reasons:?}");
}

#[tokio::test]
async fn the_systems_buffers_do_not_take_a_whole_answer_off_a_reader_that_stands_still() {
    let origin = Origin::echo("a").await;
    let proxy = limited(&origin, "min_body_rate: 1KiB").await;
    let mut stuck = Client::with_small_buffer(proxy.listen).await;
    // Less than the system would hold for one connection if it were let.
    stuck.send(get("/size/1500000")).await;
    proxy.metric("rrlb_failures_total", &["reason=\"too_slow\""], |n| n == 1.0).await;
    assert!(stuck.closed().await.len() < 1_500_000);
}

#[tokio::test]
async fn the_last_request_of_a_connection_closes_it() {
    let origin = Origin::echo("a").await;
    let proxy = limited(&origin, "requests_per_connection: 3").await;
    let mut client = proxy.client().await;
    for n in 1..=3 {
        let reply = client.get("/").await;
        assert_eq!(reply.status(), 200);
        assert_eq!(reply.field("connection"), Some(if n == 3 { "close" } else { "keep-alive" }), "request {n}");
    }
    assert_eq!(client.closed().await, b"");
    let mut client = proxy.client().await;
    client.send([get("/1"), get("/2"), get("/3"), get("/4")].concat()).await;
    for _ in 0..3 {
        assert_eq!(client.response().await.status(), 200);
    }
    assert_eq!(client.closed().await, b"");
    assert_eq!(origin.count("/4"), 0);
}

/// It is told so, and its connection ends.
async fn is_one_too_many(mut client: Client) {
    assert_eq!(client.response().await.status(), 429);
    assert_eq!(client.closed().await, b"");
}

#[tokio::test]
async fn connections_over_the_limit_are_closed_with_429_as_they_come() {
    let origin = Origin::echo("a").await;
    let proxy = limited(&origin, "connections: 2").await;
    let (mut first, mut second) = (proxy.client().await, proxy.client().await);
    assert_eq!((first.get("/").await.status(), second.get("/").await.status()), (200, 200));
    is_one_too_many(proxy.client().await).await;
    proxy.metric("rrlb_connections_refused_total", &["cause=\"limit\""], |n| n == 1.0).await;
    assert_eq!(first.get("/").await.status(), 200);
    drop(second);
    crate::support::eventually("a place to be free", async || {
        let Ok(mut client) = Client::try_connect(proxy.listen).await else { return false };
        client.try_get("/").await.is_ok_and(|reply| reply.status() == 200)
    })
    .await;
}

#[tokio::test]
async fn connections_of_one_client_over_the_limit_are_closed_with_429_as_they_come() {
    let origin = Origin::echo("a").await;
    let proxy = limited(&origin, "connections_per_ip: 2").await;
    let from = |last: u8| Client::connect_from(IpAddr::from([127, 0, 0, last]), proxy.listen);
    let (mut first, mut second) = (from(1).await, from(1).await);
    assert_eq!((first.get("/").await.status(), second.get("/").await.status()), (200, 200));
    is_one_too_many(from(1).await).await;
    assert_eq!(from(2).await.get("/").await.status(), 200);
    proxy.metric("rrlb_connections_refused_total", &["cause=\"per_ip\""], |n| n == 1.0).await;
    drop(first);
    crate::support::eventually("a place to be free", async || {
        from(1).await.try_get("/").await.is_ok_and(|reply| reply.status() == 200)
    })
    .await;
}

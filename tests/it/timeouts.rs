//! Every timeout of an upstream takes effect, and ends in a status and a reason.

use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    failures::reason,
    support::{
        http1::{Client, get, post_once},
        http2::{Client2, request},
        misbehave::{self, Blackhole},
        origin::{Origin, Peer},
        proxy::{Config, Proxy},
        tls::Ca,
        wait_until, within,
    },
};

const LIMIT: Duration = Duration::from_secs(4);

/// A proxy that makes one attempt at one backend.
async fn before(address: impl ToString, timeouts: &str) -> Proxy {
    let yaml = "
        upstreams:
          app: { backends: [\"<a>\"], timeouts: { <timeouts> }, retry: { attempts: 1 } }";
    Config::new(yaml).put("a", address.to_string()).put("timeouts", timeouts).start().await
}

/// The reply's status is 504, it came in time, and it has a reason.
async fn gateway_timeout(proxy: &Proxy, least: Duration) -> String {
    let begun = Instant::now();
    let reply = proxy.get("/").await;
    let took = begun.elapsed();
    assert_eq!(reply.status(), 504, "{reply:?}");
    assert!((least.mul_f64(0.8)..LIMIT).contains(&took), "after {took:?}");
    reason(proxy, &reply).await
}

#[tokio::test]
async fn connect() {
    let hole = Blackhole::new();
    let proxy = before(hole.address, "connect: 300ms").await;
    gateway_timeout(&proxy, Duration::from_millis(300)).await;
}

#[tokio::test]
async fn tls_handshake() {
    let silent = Origin::script("a", misbehave::deaf).await;
    let yaml = "
        upstreams:
          app:
            backends: [\"<a>\"]
            tls: { sni: origin.test, ca: <ca> }
            protocol: <protocol>
            timeouts: { tls: 300ms }
            retry: { attempts: 1 }";
    for protocol in ["auto", "h1"] {
        let config = Config::new(yaml).put("a", &silent.address).put("protocol", protocol);
        let path = Ca::new().write(config.dir());
        let proxy = config.put("ca", path.display()).start().await;
        gateway_timeout(&proxy, Duration::from_millis(300)).await;
    }
}

#[tokio::test]
async fn first_byte() {
    let origin = Origin::script("a", misbehave::mute).await;
    let proxy = before(&origin.address, "first_byte: 300ms").await;
    gateway_timeout(&proxy, Duration::from_millis(300)).await;
}

#[tokio::test]
async fn first_byte_counts_from_the_end_of_the_request() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin.address, "first_byte: 300ms").await;
    let mut client = proxy.client().await;
    client.send("POST /p HTTP/1.1\r\nHost: a.test\r\nContent-Length: 8\r\n\r\n").await;
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(80)).await; // the client's pace: longer in all than `first_byte`
        client.send("x").await;
    }
    assert_eq!(client.response().await.text(), "xxxxxxxx");
}

#[tokio::test]
async fn read() {
    let origin = Origin::script("a", misbehave::stall_in_body).await;
    let proxy = before(&origin.address, "read: 300ms").await;
    let begun = Instant::now();
    let mut client = proxy.client().await;
    client.send(get("/")).await;
    let text = String::from_utf8_lossy(&client.closed().await).into_owned();
    assert!(text.starts_with("HTTP/1.1 200") && text.ends_with("hello"), "{text}");
    assert!(begun.elapsed() < LIMIT);
    let line = proxy.access_log(1).await.remove(0);
    assert!(line["reason"].as_str().is_some_and(|word| word.contains("timeout")), "{line}");
}

#[tokio::test]
async fn read_of_an_http2_client_too() {
    let origin = Origin::script("a", misbehave::stall_in_body).await;
    let more = "
        listeners: [{ address: \"<listen>\", h2c: true }]
        defaults: { timeouts: { first_byte: 300ms, read: 300ms } }";
    let proxy = Config::before(&[&origin], more).start().await;
    let begun = Instant::now();
    let broken = Client2::prior(proxy.listen).await.try_get("/").await;
    assert!(broken.is_err(), "{broken:?}");
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    assert_eq!(proxy.access_log(1).await[0]["reason"], "read_timeout");
}

#[tokio::test]
async fn read_is_between_two_reads_not_for_the_whole() {
    let origin = Origin::script("a", |mut peer| async move {
        while peer.request().await.is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\n").await;
            for _ in 0..8 {
                tokio::time::sleep(Duration::from_millis(80)).await; // the origin's pace
                peer.send("x").await;
            }
        }
    })
    .await;
    let proxy = before(&origin.address, "read: 400ms, first_byte: 400ms").await;
    assert_eq!(proxy.get("/").await.text(), "xxxxxxxx");
}

#[tokio::test]
async fn write() {
    let origin = Origin::script("a", misbehave::deaf).await;
    let proxy = before(&origin.address, "write: 300ms").await;
    let begun = Instant::now();
    let client = proxy.client().await;
    let (io, _) = client.wire.into_parts();
    let (mut reader, mut writer) = tokio::io::split(io);
    let sending = async {
        let head = "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000000\r\n\r\n";
        let _ = writer.write_all(head.as_bytes()).await;
        let block = vec![0; 256 << 10];
        while writer.write_all(&block).await.is_ok() {}
    };
    let receiving = async {
        let _ = reader.read_to_end(&mut Vec::new()).await;
    };
    let both = async {
        tokio::select! {
            () = receiving => {},
            () = sending => {},
        }
    };
    crate::support::within("the write timeout", both).await;
    assert!(begun.elapsed() < LIMIT, "{:?}", begun.elapsed());
    let line = proxy.access_log(1).await.remove(0);
    assert!(line["reason"].as_str().is_some_and(|word| word.contains("timeout")), "{line}");
}

#[tokio::test]
async fn total_covers_retries() {
    let origins = [Origin::script("a", misbehave::mute).await, Origin::script("b", misbehave::mute).await];
    let yaml = "
        upstreams:
          app: { backends: [\"<a>\", \"<b>\"], timeouts: { total: 400ms }, retry: { attempts: 2 } }";
    let config = Config::new(yaml).put("a", &origins[0].address).put("b", &origins[1].address);
    let proxy = config.start().await;
    gateway_timeout(&proxy, Duration::from_millis(400)).await;
}

#[tokio::test]
async fn total_covers_the_answers_body() {
    let origin = Origin::script("a", misbehave::stall_in_body).await;
    let proxy = before(&origin.address, "total: 300ms").await;
    let begun = Instant::now();
    let mut client = proxy.client().await;
    client.send(get("/")).await;
    client.closed().await;
    assert!(begun.elapsed() < LIMIT);
}

#[tokio::test]
async fn an_answer_whose_border_is_its_connections_end_never_looks_whole_when_a_deadline_ended_that() {
    for (timeouts, reason) in [("first_byte: 300ms, read: 300ms", "read_timeout"), ("total: 300ms", "total_timeout")] {
        let origin = Origin::script("a", misbehave::stall_without_a_length).await;
        let more = "
            listeners: [{ address: \"<listen>\", h2c: true }]
            defaults: { timeouts: { <timeouts> } }";
        let proxy = Config::before(&[&origin], more).put("timeouts", timeouts).start().await;
        let mut client = proxy.client().await;
        client.send(get("/")).await;
        let mut answer = client.response_head().await;
        let broken = within("its end", client.wire.body(&mut answer)).await;
        assert!(broken.is_err(), "{timeouts}: {answer:?}");
        assert_eq!(answer.text(), "hello");

        let mut old = proxy.client().await;
        old.send("GET / HTTP/1.0\r\nHost: a.test\r\n\r\n").await;
        let (mut io, mut seen) = (old.wire.into_parts().0, Vec::new());
        let ended = within("its end", io.read_to_end(&mut seen)).await;
        assert!(ended.is_err(), "{timeouts}: {}", String::from_utf8_lossy(&seen));

        let broken = Client2::prior(proxy.listen).await.try_get("/").await;
        assert!(broken.is_err(), "{timeouts}: {broken:?}");
        for line in proxy.access_log(3).await {
            assert_eq!(line["reason"], reason, "{line}");
        }
    }
}

/// Answers without end, as fast as it goes.
async fn endless(mut peer: Peer) {
    let Some(request) = peer.request().await else { return };
    let block = vec![b'x'; 64 << 10];
    let chunk = [&b"10000\r\n"[..], &block, b"\r\n"].concat();
    let (framing, part) = match request.target() {
        "/chunked" => ("Transfer-Encoding: chunked\r\n", &chunk),
        "/long" => ("Content-Length: 100000000000\r\n", &block),
        _ => ("", &block),
    };
    peer.send(format!("HTTP/1.1 200 OK\r\n{framing}\r\n")).await;
    while peer.wire.send(part).await.is_ok() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn total_holds_for_an_answer_that_never_ends_however_its_client_reads() {
    const TOTAL: Duration = Duration::from_millis(700);
    for (path, pace) in [
        ("/chunked", Some(20_000)),
        ("/long", Some(1_000_000)),
        ("/unframed", Some(100_000_000)),
        ("/chunked", None),
        ("/long", None),
    ] {
        let origin = Origin::script("a", endless).await;
        let proxy = before(&origin.address, "total: 700ms").await;
        let (mut io, _) = Client::with_small_buffer(proxy.listen).await.wire.into_parts();
        let begun = Instant::now();
        io.write_all(get(path).as_bytes()).await.expect("room");
        let mut part = vec![0; pace.unwrap_or(0) / 50];
        while pace.is_some() && begun.elapsed() < LIMIT {
            match within("something", io.read(&mut part)).await {
                Ok(1..) => tokio::time::sleep(Duration::from_millis(20)).await, // the client's pace
                _ => break,
            }
        }
        wait_until("the request at the backend", || origin.total() == 1).await;
        wait_until("the backend's connection to end", || origin.open() == 0).await;
        let took = begun.elapsed();
        assert!((TOTAL..LIMIT).contains(&took), "{path} {pace:?}: after {took:?}");
        let line = proxy.access_log(1).await.remove(0);
        assert_eq!(
            (&line["status"], &line["reason"]),
            (&200.into(), &"total_timeout".into()),
            "{path} {pace:?}: {line}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn total_holds_for_an_http2_client_that_opens_its_window_slowly_or_never() {
    for pace in [Some(2_000), None] {
        let origin = Origin::script("a", endless).await;
        let more = "
            listeners: [{ address: \"<listen>\", h2c: true }]
            defaults: { timeouts: { total: 700ms } }";
        let proxy = Config::before(&[&origin], more).start().await;
        let client = Client2::prior(proxy.listen).await;
        let begun = Instant::now();
        let (answer, _stream) = client.open(request("GET", "/long"), true).await.expect("a stream");
        let mut body = within("an answer", answer).await.expect("an answer").into_body();
        let broken = async {
            loop {
                match body.data().await {
                    Some(Ok(part)) => {
                        let Some(pace) = pace else { continue };
                        tokio::time::sleep(Duration::from_millis(20)).await; // the client's pace
                        let _ = body.flow_control().release_capacity(part.len().min(pace));
                    }
                    ended => return ended,
                }
            }
        };
        let broken = within("a reset", broken).await;
        let took = begun.elapsed();
        assert!(matches!(broken, Some(Err(ref error)) if error.is_reset()), "{pace:?}: {broken:?}");
        assert!(took < LIMIT, "{pace:?}: after {took:?}");
        assert_eq!(proxy.access_log(1).await[0]["reason"], "total_timeout", "{pace:?}");
        wait_until("the backend's connection to end", || origin.open() == 0).await;
    }
}

#[tokio::test]
async fn a_timeout_is_not_repeated_where_the_request_was_sent_with_a_body() {
    let origins = [Origin::script("a", misbehave::mute).await, Origin::script("b", misbehave::mute).await];
    let yaml = "
        upstreams:
          app: { backends: [\"<a>\", \"<b>\"], timeouts: { first_byte: 200ms }, retry: { attempts: 2 } }";
    let proxy = Config::new(yaml).put("a", &origins[0].address).put("b", &origins[1].address).start().await;
    assert_eq!(post_once(proxy.listen, "/", "body").await.status(), 504);
    assert_eq!(origins[0].total() + origins[1].total(), 1);
}

#[tokio::test]
async fn websocket_idle_and_not_total_ends_an_upgraded_connection() {
    let origin = Origin::script("a", crate::streaming::websocket).await;
    let proxy = before(&origin.address, "total: 300ms, read: 300ms, websocket_idle: 900ms").await;
    let mut client = Client::connect(proxy.listen).await;
    crate::streaming::upgrade(&mut client).await;
    for _ in 0..8 {
        tokio::time::sleep(Duration::from_millis(80)).await; // the client's pace: longer in all than `total`
        client.send("x").await;
        assert_eq!(client.wire.take(1).await.expect("an echo"), b"x");
    }
    let begun = Instant::now();
    client.closed().await;
    let took = begun.elapsed();
    assert!((Duration::from_millis(700)..LIMIT).contains(&took), "closed after {took:?}");
    assert_eq!(proxy.access_log(1).await[0]["reason"], "read_timeout");
}

#[tokio::test]
async fn a_websocket_whose_client_reads_nothing_is_an_idle_one() {
    let pushing = |mut peer: Peer| async move {
        if peer.request().await.is_some() {
            let accept = "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n";
            let head = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n";
            peer.send(format!("{head}{accept}\r\n")).await;
            while peer.wire.send(vec![0; 64 << 10]).await.is_ok() {}
        }
    };
    let origin = Origin::script("a", pushing).await;
    let proxy = before(&origin.address, "websocket_idle: 500ms").await;
    let mut client = Client::with_small_buffer(proxy.listen).await;
    crate::streaming::upgrade(&mut client).await;
    let begun = Instant::now();
    wait_until("the backend's connection to end", || origin.open() == 0).await;
    assert!(begun.elapsed() < LIMIT, "after {:?}", begun.elapsed());
    assert_eq!(proxy.access_log(1).await[0]["reason"], "read_timeout");
}

#[tokio::test]
async fn defaults_are_inherited_field_by_field() {
    let origin = Origin::script("a", misbehave::mute).await;
    let yaml = "
        defaults: { timeouts: { first_byte: 200ms }, retry: { attempts: 1 } }
        upstreams:
          app: { backends: [\"<a>\"], timeouts: { connect: 1s } }
          patient: { backends: [\"<a>\"], timeouts: { first_byte: 1h, total: 700ms } }
        routes:
          - { match: { path: /patient }, upstream: patient }
          - { upstream: app }";
    let proxy = Config::new(yaml).put("a", &origin.address).start().await;
    assert_eq!(gateway_timeout(&proxy, Duration::from_millis(200)).await, "first_byte_timeout");
    assert_eq!(proxy.get("/patient").await.status(), 504);
    assert_eq!(proxy.access_log(2).await[1]["reason"], "total_timeout");
}

#[tokio::test]
async fn an_upload_that_a_backend_does_not_take_is_504() {
    for engine in ["lane", "exchange", "pingora"] {
        let origin = Origin::script("a", misbehave::deaf).await;
        let yaml = "
            engine: <engine>
            upstreams:
              app: { backends: [\"<a>\"], timeouts: { write: 300ms } }";
        let proxy = Config::new(yaml).put("a", &origin.address).put("engine", engine).start().await;
        let client = proxy.client().await;
        let head = "PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 16000000\r\n\r\n";
        let (io, _) = client.wire.into_parts();
        let (mut reader, mut writer) = tokio::io::split(io);
        let sending = async {
            let _ = writer.write_all(head.as_bytes()).await;
            let _ = writer.write_all(&vec![0; 16_000_000]).await;
        };
        let receiving = async {
            let mut answer = Vec::new();
            let _ = reader.read_to_end(&mut answer).await;
            answer
        };
        let (_, answer) = crate::support::within("the answer", async { tokio::join!(sending, receiving) }).await;
        let answer = String::from_utf8_lossy(&answer);
        assert!(answer.starts_with("HTTP/1.1 504 "), "{engine}: {answer}");
        assert_eq!(proxy.access_log(1).await.remove(0)["reason"], "write_timeout", "{engine}");
    }
}

/// Whoever answers, and whichever protocol the client speaks.
#[tokio::test]
async fn the_request_timeout_of_a_listener_is_for_all_its_requests() {
    let mute = Origin::script("a", |mut peer: Peer| async move {
        while peer.request_head().await.is_some() {}
        std::future::pending::<()>().await;
    })
    .await;
    let silent = Origin::script("b", misbehave::mute).await;
    for engine in ["lane", "exchange", "pingora"] {
        let yaml = "
            engine: <engine>
            upstreams:
              patient: { backends: [\"<a>\"], timeouts: { total: 1m } }
              hasty: { backends: [\"<a>\"], timeouts: { total: 300ms } }
            listeners:
              - { address: <listen>, h2c: true, limits: { request_timeout: 1500ms, min_body_rate: off } }
            routes:
              - { match: { path: /hasty }, upstream: hasty }
              - { match: { path: /asked }, forward_auth: { url: \"http://<b>/\", timeout: 1m }, respond: { body: own } }
              - { match: { path: /own }, respond: { body: own } }
              - { upstream: patient }";
        let config = Config::new(yaml).put("engine", engine).put("a", &mute.address).put("b", &silent.address);
        let proxy = config.start().await;
        for (path, least) in [("/", 1500), ("/hasty", 300), ("/asked", 1500)] {
            let within_bounds = |took: Duration, who: &str| {
                let least = Duration::from_millis(least);
                assert!(took >= least && took < least + Duration::from_secs(1), "{engine}, {path}, {who}: {took:?}");
            };
            let begun = Instant::now();
            let reply = proxy.get(path).await;
            within_bounds(begun.elapsed(), "HTTP/1.1");
            assert_eq!((reply.status(), &*reason(&proxy, &reply).await), (504, "total_timeout"), "{engine}, {path}");
            let client = Client2::prior(proxy.listen).await;
            let begun = Instant::now();
            assert_eq!(client.get(path).await.status, 504, "{engine}, {path}");
            within_bounds(begun.elapsed(), "HTTP/2");
        }
        // A body that nobody asked for is not waited for any longer.
        let mut client = proxy.client().await;
        client.send("POST /own HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000\r\n\r\n").await;
        let begun = Instant::now();
        assert_eq!(client.response().await.text(), "own");
        client.closed().await;
        assert!(begun.elapsed() < LIMIT, "{engine}: {:?}", begun.elapsed());
        // Nor one on its way to a backend.
        let mut client = proxy.client().await;
        client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000\r\n\r\nx").await;
        let begun = Instant::now();
        client.closed().await;
        assert!(begun.elapsed() < LIMIT, "{engine}: {:?}", begun.elapsed());
        let lines = proxy.access_log(8).await;
        assert_eq!(lines.iter().filter(|line| line["reason"] == "total_timeout").count(), 7, "{engine}: {lines:#?}");
    }
}

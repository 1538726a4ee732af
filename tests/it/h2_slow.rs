//! HTTP/2 clients that are slow or say one thing of a body and send another: each stream is judged for itself.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use tokio::io::AsyncReadExt as _;

use crate::support::{
    eventually,
    frames::{
        ACK, DATA, END_HEADERS, END_STREAM, Frame, GOAWAY, HEADERS, PING, PREFACE, RST_STREAM, Raw, SETTINGS, block,
        frame, get, post, post_of, reset, settings, window,
    },
    http1::Client,
    http2::{self, Client2, Origin2},
    origin::{Origin, Peer},
    proxy::{Config, Proxy},
    tls::Ca,
    wait_until, within,
};

const NO_ERROR: u32 = 0;
const PROTOCOL_ERROR: u32 = 1;
const SETTINGS_TIMEOUT: u32 = 4;
const CANCEL: u32 = 8;
const CALM: u32 = 11;

async fn before(origin: &Origin, limits: &str) -> Proxy {
    let yaml = "listeners: [{ address: <listen>, h2c: true, limits: { <limits> } }]";
    Config::before(&[origin], yaml).put("limits", limits).start().await
}

/// Reads until the frame that is looked for, while sending this now and then.
async fn meanwhile(raw: &mut Raw, each: Duration, bytes: &[u8], found: impl Fn(&Frame) -> bool) -> Vec<Frame> {
    let mut seen = Vec::new();
    let mut tick = tokio::time::interval(each);
    let reading = async {
        loop {
            tokio::select! {
                frame = raw.read.next() => {
                    let frame = frame.expect("the connection to go on");
                    let last = found(&frame);
                    seen.push(frame);
                    if last {
                        return;
                    }
                }
                _ = tick.tick() => raw.send(bytes).await,
            }
        }
    };
    // A frame cut by the other branch would be lost, so each is read in one go: frames here are small and come whole.
    within("the frame", reading).await;
    seen
}

fn is_reset(frame: &Frame, stream: u32) -> bool {
    frame.kind == RST_STREAM && frame.stream == stream
}

/// The request's line in the access log.
async fn reason(proxy: &Proxy, path: &str) -> (String, u64) {
    let mut found = None;
    eventually("the request's line", async || {
        let lines = proxy.access_log_so_far();
        let line = lines.iter().find(|line| line["path"] == path);
        found = line.map(|line| {
            (line["reason"].as_str().expect("a reason").to_owned(), line["status"].as_u64().expect("a status"))
        });
        found.is_some()
    })
    .await;
    found.expect("just found")
}

#[tokio::test]
async fn an_upload_that_drips_is_answered_408_and_the_other_streams_go_on() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "idle_timeout: 60s").await;
    let mut raw = Raw::begin(proxy.listen, &[]).await;
    raw.send(&[get(1, "/hold"), post(3, "/drip")].concat()).await;
    let began = Instant::now();
    let drop = frame(DATA, 0, 3, b"x");
    let seen = meanwhile(&mut raw, Duration::from_millis(500), &drop, |frame| is_reset(frame, 3)).await;
    let took = began.elapsed();
    assert!((4..9).contains(&took.as_secs()), "{took:?}");
    assert_eq!(seen.last().map(|frame| frame.number(0)), Some(NO_ERROR), "an answer before the request's end");
    assert!(seen.iter().any(|frame| frame.kind == HEADERS && frame.stream == 3), "{seen:?}");
    assert_eq!(reason(&proxy, "/drip").await, ("client_timeout".to_owned(), 408));
    origin.release();
    raw.send(&get(5, "/")).await;
    let mut ended = Vec::new();
    while ended.len() < 2 {
        let frame = within("the answers", raw.read.next()).await.expect("the connection to go on");
        if frame.kind == DATA && frame.flags & END_STREAM != 0 {
            ended.push(frame.stream);
        }
    }
    assert!(ended.contains(&1) && ended.contains(&5), "{ended:?}");
    assert_eq!(origin.count("/drip"), 0, "no origin has seen it whole");
}

#[tokio::test]
async fn an_upload_that_drips_alone_takes_its_connection_along() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "idle_timeout: 60s").await;
    let mut raw = Raw::begin(proxy.listen, &[]).await;
    raw.send(&[post(1, "/drip"), frame(DATA, 0, 1, b"x")].concat()).await;
    let began = Instant::now();
    let ended = raw.read.read_to_end().await;
    assert_eq!((ended.answers, ended.goaway.map(|(code, _)| code)), (1, Some(NO_ERROR)));
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    assert_eq!(reason(&proxy, "/drip").await, ("client_timeout".to_owned(), 408));
}

/// Three frames each half second, of which three bytes are data: 1.5 KiB a second with their padding.
#[tokio::test]
async fn an_upload_of_padding_is_answered_408() {
    const PADDED: u8 = 8;
    let padded = |stream| frame(DATA, PADDED, stream, &[&[255, b'x'][..], &[0; 255]].concat()).repeat(3);
    for engine in ["lane", "exchange", "pingora"] {
        let origin = Origin::echo("a").await;
        let yaml = "
            engine: <engine>
            listeners: [{ address: <listen>, h2c: true, limits: { min_body_rate: 1KiB } }]";
        let proxy = Config::before(&[&origin], yaml).put("engine", engine).start().await;
        let mut raw = Raw::begin(proxy.listen, &[]).await;
        raw.send(&[get(1, "/hold"), post(3, "/padding")].concat()).await;
        let began = Instant::now();
        let seen = meanwhile(&mut raw, Duration::from_millis(500), &padded(3), |frame| is_reset(frame, 3)).await;
        let took = began.elapsed();
        assert!((4..9).contains(&took.as_secs()), "{engine}: {took:?}");
        assert!(seen.iter().any(|frame| frame.kind == HEADERS && frame.stream == 3), "{engine}: {seen:?}");
        assert_eq!(reason(&proxy, "/padding").await, ("client_timeout".to_owned(), 408), "{engine}");
    }
}

#[tokio::test]
async fn to_an_http2_origin_a_drip_is_ended_and_a_call_may_rest() {
    let origin = Origin2::start("a", None).await;
    let yaml = "
        upstreams: { app: { backends: [\"<a>\"], protocol: h2c } }
        listeners: [{ address: <listen>, h2c: true }]";
    let proxy = Config::new(yaml).put("a", origin.address).start().await;
    let client = Client2::prior(proxy.listen).await;
    // The origin answers a POST at its end, and neither sends more than now and then.
    let (_, mut call) = client.open(call("/call"), false).await.expect("a stream");
    let (drip, mut body) = client.open(http2::request("POST", "/drip"), false).await.expect("a stream");
    let began = Instant::now();
    let mut tick = tokio::time::interval(Duration::from_millis(500));
    let mut drip = std::pin::pin!(drip);
    let dripping = async {
        loop {
            tokio::select! {
                ended = &mut drip => return ended.map(|answer| answer.status().as_u16()),
                _ = tick.tick() => {
                    let _ = body.send_data("x".into(), false);
                    call.send_data("x".into(), false).expect("the call goes on");
                }
            }
        }
    };
    match within("the drip to be ended", dripping).await {
        Ok(status) => assert_eq!(status, 408),
        // Over Pingora's path.
        Err(error) => assert_eq!(error.reason(), Some(h2::Reason::CANCEL)),
    }
    assert!((4..9).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    assert_eq!(reason(&proxy, "/drip").await.0, "client_timeout");
    let until = began + Duration::from_secs(8);
    while Instant::now() < until {
        tick.tick().await;
        call.send_data("x".into(), false).expect("the call goes on");
    }
    call.send_data("x".into(), true).expect("the call goes on");
    wait_until("the call's end to reach its origin", || origin.requests().iter().any(|seen| seen.path == "/call"))
        .await;
}

/// A call that nobody answers before its end.
fn call(path: &str) -> http::Request<()> {
    let mut request = http2::request("POST", path);
    request.headers_mut().insert("content-type", "application/grpc-quiet".parse().expect("a value"));
    request
}

#[tokio::test]
async fn a_client_that_an_origin_lets_wait_is_not_blamed() {
    let origin = Origin::script("a", |mut peer: Peer| async move {
        while let Some(head) = peer.request_head().await {
            peer.held().await;
            let mut request = head;
            let _ = peer.wire.body(&mut request).await;
            peer.reply(200, "", &request.length.to_string()).await;
        }
    })
    .await;
    let proxy = before(&origin, "min_body_rate: 1MiB").await;
    let client = Client2::prior(proxy.listen).await;
    let (answer, mut body) = client.open(http2::request("POST", "/up"), false).await.expect("a stream");
    let size = 32 << 20;
    let sending = tokio::spawn(async move { http2::push(&mut body, vec![b'x'; size].into(), true).await });
    let mut answer = std::pin::pin!(answer);
    let early = tokio::time::timeout(Duration::from_secs(8), &mut answer).await;
    assert!(early.is_err(), "{early:?}");
    origin.release();
    assert_eq!(within("the answer", answer).await.expect("an answer").status(), 200);
    sending.await.expect("no panic").expect("all was sent");
}

#[tokio::test]
async fn settings_that_are_not_acknowledged_end_the_connection() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "header_timeout: 1s").await;
    let mut raw = Raw::silent(proxy.listen).await;
    let began = Instant::now();
    raw.send(&[PREFACE, &settings(&[]), &get(1, "/hold")].concat()).await;
    let ended = raw.read.read_to_end().await;
    assert_eq!(ended.goaway.map(|(code, _)| code), Some(SETTINGS_TIMEOUT));
    assert!(began.elapsed() < Duration::from_secs(4), "{:?}", began.elapsed());
    proxy.metric("rrlb_h2_abuse_total", &["kind=\"settings_timeout\""], |n| n == 1.0).await;
}

#[tokio::test]
async fn an_answer_that_is_not_read_is_reset_and_the_other_streams_go_on() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "min_body_rate: 64KiB").await;
    let memory = proxy.resident();
    let mut raw = Raw::begin(proxy.listen, &[]).await;
    raw.send(&[window(0, 0x7fff_0000 - 65_535), get(1, "/size/100000000"), get(3, "/hold")].concat()).await;
    wait_until("the origin to be asked", || origin.open() == 2).await;
    let began = Instant::now();
    // PINGs in place of requests keep the connection busy; the one that is held keeps it from being one stall.
    let ping = frame(PING, 0, 0, &[0; 8]);
    let seen = meanwhile(&mut raw, Duration::from_millis(500), &ping, |frame| is_reset(frame, 1)).await;
    let took = began.elapsed();
    assert!((4..10).contains(&took.as_secs()), "{took:?}");
    assert_eq!(seen.last().map(|frame| frame.number(0)), Some(CANCEL));
    let grown = proxy.resident().saturating_sub(memory);
    assert!(grown < 16 << 20, "{} KiB more", grown >> 10);
    assert_eq!(reason(&proxy, "/size/100000000").await.0, "too_slow");
    wait_until("the origin's connection to be given up", || origin.open() == 1).await;
    origin.release();
    let answered = |frame: &Frame| frame.kind == DATA && frame.stream == 3 && frame.flags & END_STREAM != 0;
    meanwhile(&mut raw, Duration::from_secs(5), &ping, answered).await;
}

/// Its windows are open and its socket is not read: nothing in HTTP/2 shows that it stalls.
#[tokio::test]
async fn a_socket_that_is_not_read_is_a_stall_and_its_answers_are_too_slow() {
    let origin = Origin::echo("a").await;
    for engine in ["lane", "exchange", "pingora"] {
        let yaml = "
            engine: <engine>
            listeners: [{ address: <listen>, h2c: true, limits: { min_body_rate: 64KiB } }]";
        let proxy = Config::before(&[&origin], yaml).put("engine", engine).start().await;
        let mut client = Client::with_small_buffer(proxy.listen).await;
        let windows =
            [settings(&[(4, 0x7fff_ffff)]), window(0, 0x7fff_0000 - 65_535), frame(SETTINGS, ACK, 0, &[])].concat();
        client.send([PREFACE, &windows, &get(1, "/size/100000000")].concat()).await;
        assert_eq!(reason(&proxy, "/size/100000000").await, ("too_slow".to_owned(), 200), "{engine}");
        proxy.metric("rrlb_h2_abuse_total", &["kind=\"stall\""], |n| n == 1.0).await;
        proxy.metric("rrlb_connections_open", &[], |n| n == 0.0).await;
        assert_eq!(proxy.access_log_so_far().len(), 1, "{engine}");
    }
}

/// The h2 crate resets these streams, or ends the connection; the client has not left.
#[tokio::test]
async fn a_stream_that_is_reset_for_what_its_client_did_is_a_bad_request() {
    let (overflow, nothing) = (window(1, 0x7fff_ffff), window(1, 0));
    let on_itself = frame(2, 0, 1, &[0, 0, 0, 1, 0]);
    for engine in ["lane", "exchange", "pingora"] {
        for (what, bytes) in [("overflow", &overflow), ("on itself", &on_itself), ("nothing", &nothing)] {
            let origin = Origin::echo("a").await;
            let yaml = "
                engine: <engine>
                listeners: [{ address: <listen>, h2c: true }]";
            let proxy = Config::before(&[&origin], yaml).put("engine", engine).start().await;
            let mut raw = Raw::begin(proxy.listen, &[]).await;
            raw.send(&get(1, "/hold")).await;
            wait_until("the origin to be asked", || origin.open() == 1).await;
            raw.send(bytes).await;
            let ended = loop {
                let frame = within(what, raw.read.next()).await.unwrap_or_else(|| panic!("{engine}, {what}: an end"));
                if frame.kind == GOAWAY || is_reset(&frame, 1) {
                    break frame.kind;
                }
            };
            assert_eq!(reason(&proxy, "/hold").await, ("bad_request".to_owned(), 0), "{engine}, {what}");
            if ended == GOAWAY {
                continue;
            }
            raw.send(&get(3, "/")).await;
            raw.end(3).await;
            // A client that leaves is still one.
            raw.send(&get(5, "/hold/left")).await;
            wait_until("the origin to be asked", || origin.count("/hold/left") == 1).await;
            raw.send(&reset(5)).await;
            assert_eq!(reason(&proxy, "/hold/left").await.0, "client_aborted", "{engine}, {what}");
        }
    }
}

#[tokio::test]
async fn a_fault_that_comes_with_its_request_is_not_its_client_who_leaves() {
    for engine in ["lane", "exchange", "pingora"] {
        let origin = Origin::echo("a").await;
        let yaml = "engine: <engine>\nlisteners: [{ address: <listen>, h2c: true }]";
        let proxy = Config::before(&[&origin], yaml).put("engine", engine).start().await;
        let mut raw = Raw::begin(proxy.listen, &[]).await;
        raw.send(&[get(1, "/hold"), frame(PING, 0, 0, b"bad")].concat()).await;
        assert!(raw.read.read_to_end().await.goaway.is_some(), "{engine}");
        assert_eq!(reason(&proxy, "/hold").await.0, "bad_request", "{engine}");
    }
}

/// What Pingora serves is dropped as it is where the client stands in its way; the log has what was known of it.
#[tokio::test]
async fn a_request_that_is_dropped_is_logged_with_its_answer_and_its_backend() {
    let origin = Origin::echo("a").await;
    let yaml = "
listeners: [{ address: <listen>, h2c: true }]
engine: pingora
upstreams: { a: { backends: [{ id: first, address: <a> }], timeouts: { total: 1s } } }
routes: [{ upstream: a }]
";
    let proxy = Config::new(yaml.trim_start()).put("a", &origin.address).start().await;
    let mut raw = Raw::begin(proxy.listen, &[]).await;
    raw.send(&get(1, "/size/1000000")).await;
    let mut body = 0;
    loop {
        let frame = within("the stream's end", raw.read.next()).await.expect("the connection to go on");
        if is_reset(&frame, 1) {
            break;
        }
        if frame.kind == DATA && frame.stream == 1 {
            body += frame.payload.len();
        }
    }
    assert_eq!(body, 65_535, "as much as the window lets through");
    eventually("the request's line", async || proxy.access_log_so_far().len() == 1).await;
    let line = &proxy.access_log_so_far()[0];
    let known = ["reason", "upstream", "backend"].map(|name| line[name].as_str().unwrap_or_default());
    assert_eq!(known, ["total_timeout", "a", "first"], "{line}");
    assert_eq!((line["status"].as_u64(), line["attempts"].as_u64()), (Some(200), Some(1)), "{line}");
    assert!(line["bytes"].as_u64() >= Some(65_535), "{line}");
    proxy.metric("rrlb_requests_total", &["upstream=\"a\""], |n| n == 1.0).await;
    assert_eq!(proxy.scrape().await.sum("rrlb_requests_in_flight", &[]), 0.0);
}

#[tokio::test]
async fn a_window_of_the_connection_that_is_opened_too_slowly_ends_it() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "min_body_rate: 64KiB").await;
    let mut raw = Raw::begin(proxy.listen, &[(4, 0x7fff_ffff)]).await;
    raw.send(&get(1, "/size/100000000")).await;
    let crumb = window(0, 1000);
    let seen = meanwhile(&mut raw, Duration::from_millis(500), &crumb, |frame| frame.kind == GOAWAY).await;
    assert_eq!(seen.last().map(|frame| frame.number(4)), Some(CALM));
    proxy.metric("rrlb_h2_abuse_total", &["kind=\"stall\""], |n| n == 1.0).await;
    assert_eq!(reason(&proxy, "/size/100000000").await, ("too_slow".to_owned(), 200));
}

#[tokio::test]
async fn a_body_of_another_length_than_declared_is_never_whole_for_an_origin() {
    let (data, end) = (|bytes: &[u8]| frame(DATA, 0, 1, bytes), |bytes: &[u8]| frame(DATA, END_STREAM, 1, bytes));
    for (what, declared, parts) in [
        ("none declared, some sent", 0, vec![end(b"x")]),
        ("none declared, some sent and not ended", 0, vec![data(b"x")]),
        ("none declared, some sent after an empty part", 0, vec![data(b""), data(b"x")]),
        ("more, after the whole", 5, vec![data(b"hello"), data(b"x")]),
        ("more, byte by byte", 1, vec![data(b"x"), data(b"y")]),
        ("less", 5, vec![data(b"hel"), end(b"")]),
    ] {
        let origin = Origin::echo("a").await;
        let proxy = before(&origin, "idle_timeout: 60s").await;
        let mut raw = Raw::begin(proxy.listen, &[]).await;
        raw.send(&post_of(1, "/", declared)).await;
        for (number, part) in parts.iter().enumerate() {
            if number > 0 && declared > 0 {
                // What was sent before has gone as far as it goes.
                wait_until("the origin to be connected to", || origin.connections() == 1).await;
                raw.send(&[get(3, "/status/204"), part.clone()].concat()).await;
            } else {
                raw.send(part).await;
            }
        }
        let reset = loop {
            let frame = within(what, raw.read.next()).await.unwrap_or_else(|| panic!("{what}: no reset"));
            if is_reset(&frame, 1) {
                break frame.number(0);
            }
        };
        assert_eq!(reset, PROTOCOL_ERROR, "{what}");
        drop(raw);
        wait_until("the connection to the origin to end", || origin.open() <= 1).await;
        assert_eq!(origin.count("/"), 0, "{what}: {:?}", origin.requests());
        assert_eq!(reason(&proxy, "/").await.0, "bad_request", "{what}");
    }
}

#[tokio::test]
async fn a_body_of_the_length_declared_is_passed_on_at_its_end() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "idle_timeout: 60s").await;
    let mut raw = Raw::begin(proxy.listen, &[]).await;
    raw.send(&[post_of(1, "/none", 0), post_of(3, "/some", 5), frame(DATA, 0, 3, b"hello")].concat()).await;
    wait_until("one of them to be on its way", || origin.connections() == 1).await;
    raw.send(&get(5, "/after")).await;
    wait_until("a request behind them", || origin.count("/after") == 1).await;
    assert_eq!((origin.count("/none"), origin.count("/some")), (0, 0));
    raw.send(&[frame(DATA, END_STREAM, 1, b""), frame(DATA, END_STREAM, 3, b"")].concat()).await;
    wait_until("both", || origin.count("/none") == 1 && origin.count("/some") == 1).await;
    let some = origin.requests().into_iter().find(|request| request.target() == "/some").expect("just seen");
    assert_eq!(some.text(), "hello");
    // In one part with the end, and with nothing behind the head.
    let whole = [post_of(7, "/whole", 5), frame(DATA, END_STREAM, 7, b"world")].concat();
    let mut none = block("POST", "/end");
    none.extend([0x0f, 0x0d, 1, b'0']);
    raw.send(&[whole, frame(HEADERS, END_HEADERS | END_STREAM, 9, &none)].concat()).await;
    wait_until("both", || origin.count("/whole") == 1 && origin.count("/end") == 1).await;
    assert_eq!(proxy.access_log(5).await.iter().filter(|line| line["reason"] == "ok").count(), 5);
}

#[tokio::test]
async fn an_empty_body_that_does_not_end_is_408() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "header_timeout: 1s, min_body_rate: off").await;
    let mut raw = Raw::begin(proxy.listen, &[]).await;
    raw.send(&[get(1, "/hold"), post_of(3, "/none", 0)].concat()).await;
    let seen = meanwhile(&mut raw, Duration::from_secs(60), &[], |frame| is_reset(frame, 3)).await;
    assert!(seen.iter().any(|frame| frame.kind == HEADERS && frame.stream == 3), "{seen:?}");
    assert_eq!(reason(&proxy, "/none").await, ("client_timeout".to_owned(), 408));
    assert_eq!(origin.count("/none"), 0);
}

#[tokio::test]
async fn the_last_request_of_a_connection_is_answered_and_ends_it() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "requests_per_connection: 3").await;
    let mut raw = Raw::begin(proxy.listen, &[]).await;
    let ended = |frame: &Frame| frame.kind == DATA && frame.flags & END_STREAM != 0;
    for stream in [1, 3] {
        raw.send(&get(stream, "/")).await;
        let seen = meanwhile(&mut raw, Duration::from_secs(60), &[], ended).await;
        assert!(seen.iter().all(|frame| frame.kind != GOAWAY), "{seen:?}");
    }
    raw.send(&get(5, "/")).await;
    let (mut answered, mut last) = (false, None);
    while let Some(frame) = within("the end", raw.read.next()).await {
        match frame.kind {
            GOAWAY => last = Some((frame.number(0), frame.number(4))),
            PING if frame.flags & ACK == 0 => raw.send(&self::frame(PING, ACK, 0, &frame.payload)).await,
            _ => answered |= ended(&frame),
        }
    }
    assert!(answered, "the last is answered");
    assert_eq!(last, Some((5, NO_ERROR)));
    assert_eq!(origin.count("/"), 3);
    let scrape = proxy.scrape().await;
    assert_eq!(scrape.sum("rrlb_h2_abuse_total", &[]), 0.0);
}

#[tokio::test]
async fn who_goes_on_after_the_last_request_is_cut_off() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "requests_per_connection: 3").await;
    let raw = Raw::begin(proxy.listen, &[]).await;
    // The PING by which the end is timed is never answered.
    let ended = raw.flood(500, Duration::from_millis(5), |wave| get(wave * 2 + 1, "/")).await;
    assert_eq!(ended.goaway.map(|(code, _)| code), Some(CALM));
    assert!(origin.count("/") <= 104, "{}", origin.count("/"));
    proxy.metric("rrlb_h2_abuse_total", &["kind=\"goaway_ignored\""], |n| n == 1.0).await;
}

/// Sends 24 MiB before it reads anything, then reads the request to its end; Pingora's window for answers is 8 MiB.
async fn talks_first(listener: tokio::net::TcpListener) {
    while let Ok((stream, _)) = listener.accept().await {
        tokio::spawn(async move {
            let mut connection = h2::server::handshake(stream).await.expect("a handshake");
            while let Some(Ok((request, mut respond))) = connection.accept().await {
                tokio::spawn(async move {
                    let mut out = respond.send_response(http::Response::new(()), false).expect("an answer");
                    if http2::push(&mut out, vec![b'x'; 24 << 20].into(), false).await.is_ok() {
                        let mut body = request.into_body();
                        let _ = http2::collect(&mut body).await;
                        let _ = out.send_data("end".into(), true);
                    }
                });
            }
        });
    }
}

/// Uploads 1 MiB and reads meanwhile; how many bytes came.
async fn both_ways(to: std::net::SocketAddr) -> Result<usize, h2::Error> {
    let client = Client2::prior(to).await;
    let (answer, mut body) = client.open(call("/call"), false).await?;
    let sending = tokio::spawn(async move { http2::push(&mut body, vec![b'x'; 1 << 20].into(), true).await });
    let (_, mut answer) = answer.await?.into_parts();
    let mut read = 0;
    while let Some(part) = answer.data().await {
        let part = part?;
        answer.flow_control().release_capacity(part.len())?;
        read += part.len();
    }
    sending.await.expect("no panic")?;
    Ok(read)
}

#[tokio::test]
async fn a_call_whose_ways_are_both_full_goes_on() {
    for engine in ["lane", "exchange"] {
        let at = crate::support::address::unused();
        tokio::spawn(talks_first(tokio::net::TcpListener::bind(at).await.expect("an address")));
        let yaml = "
            engine: <engine>
            upstreams: { app: { backends: [\"<a>\"], protocol: h2c } }
            listeners: [{ address: <listen>, h2c: true }]";
        let proxy = Config::new(yaml).put("a", at).put("engine", engine).start().await;
        let all = (24 << 20) + 3;
        assert_eq!(within("through the proxy", both_ways(proxy.listen)).await.expect("no stall"), all, "{engine}");
        assert_eq!(reason(&proxy, "/call").await, ("ok".to_owned(), 200), "{engine}");
    }
}

/// What Pingora 0.9.1 does: while it waits for a backend's window it takes nothing of the answer, see `docs/framing.md`.
#[tokio::test]
async fn on_pingoras_path_a_call_whose_ways_are_both_full_ends_at_its_deadline() {
    let at = crate::support::address::unused();
    let listener = tokio::net::TcpListener::bind(at).await.expect("an address");
    tokio::spawn(talks_first(listener));
    let all = (24 << 20) + 3;
    assert_eq!(within("without a proxy", both_ways(at)).await.expect("no stall"), all);
    let yaml = "
        engine: pingora
        upstreams: { app: { backends: [\"<a>\"], protocol: h2c, timeouts: { write: 1s, total: 6s } } }
        listeners: [{ address: <listen>, h2c: true }]";
    let proxy = Config::new(yaml).put("a", at).start().await;
    let began = Instant::now();
    let ended = within("through the proxy", both_ways(proxy.listen)).await;
    // Where this is no error any more, Pingora has learnt to do both at once, and the limit can go from the docs.
    assert!(ended.is_err(), "{ended:?}");
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    // Pingora gives up the request at `write` and goes on with the answer: all of it comes but its end, for which the origin
    // waits for the request's.
    assert!(proxy.stderr().contains("Upstream h2 body send error"), "{}", proxy.stderr());
    assert_eq!(reason(&proxy, "/call").await.0, "total_timeout");
}

/// TLS takes what is written at once: that its client does not shows when it is to leave.
#[tokio::test]
async fn a_socket_that_is_read_too_slowly_is_given_up_within_tls_too() {
    let origin = Origin::echo("a").await;
    let ca = Ca::new();
    let yaml = "certificates: { main: <main> }
listeners: [{ address: <listen>, tls: { certificates: [main] }, limits: { min_body_rate: 1MiB } }]";
    let config = Config::before(&[&origin], yaml);
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    let mut client = Client::tls(proxy.listen, "a.test", &ca.client(&["h2"])).await;
    let large = settings(&[(4, 0x7fff_ffff)]);
    client
        .send(
            [PREFACE, &large, &frame(SETTINGS, ACK, 0, &[]), &window(0, 0x7fff_0000), &get(1, "/size/100000000")]
                .concat(),
        )
        .await;
    let (mut stream, _) = client.wire.into_parts();
    let slowly = async {
        let mut part = [0; 4096];
        let mut tick = tokio::time::interval(Duration::from_millis(100));
        while matches!(stream.read(&mut part).await, Ok(1..)) {
            tick.tick().await;
        }
    };
    tokio::select! {
        () = slowly => {}
        _ = proxy.metric("rrlb_h2_abuse_total", &["kind=\"stall\""], |n| n == 1.0) => {}
    }
    assert_eq!(proxy.access_log(1).await[0]["reason"], "too_slow");
}

/// As some libraries do it (package:http2 of Dart). Who is slow has all but the rest of its window to give back, and each rest would cut what comes next.
#[tokio::test]
async fn who_gives_back_each_frame_as_it_came_gets_all_of_it() {
    const WINDOW: usize = 65_535;
    const ALL: usize = 1_200_000;
    /// To a client that gives nothing back before less room is left than a part may wait for: such a part waits as long as one may.
    const SOME: usize = 120_000;
    let origin = Origin::script("a", |mut peer: Peer| async move {
        while let Some(asked) = peer.request().await {
            let (size, all) = asked.target()[1..].split_once('/').expect("two numbers");
            let [size, all]: [usize; 2] = [size, all].map(|number| number.parse().expect("a number"));
            let chunk = format!("{size:x}\r\n{}\r\n", "x".repeat(size));
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            peer.send(chunk.repeat(all / size) + "0\r\n\r\n").await;
        }
    });
    let origin = origin.await;
    for (engine, part, little, all) in [
        ("lane", 300, 512, ALL),
        ("lane", 400, 512, ALL),
        ("lane", 1000, 512, ALL),
        ("lane", 1000, 256, SOME),
        ("exchange", 1000, 512, ALL),
        ("pingora", 300, 512, ALL),
        ("pingora", 1000, 512, ALL),
        ("pingora", 1000, 256, SOME),
    ] {
        let yaml = "listeners: [{ address: <listen>, h2c: true }]\nengine: <engine>";
        let proxy = Config::before(&[&origin], yaml).put("engine", engine).start().await;
        let mut raw = Raw::begin(proxy.listen, &[]).await;
        raw.send(&get(1, &format!("/{part}/{all}"))).await;
        let (mut came, mut given, mut held) = (0, WINDOW, VecDeque::new());
        loop {
            let frame = within("a frame", raw.read.next()).await.expect("no end of the connection");
            assert_ne!(frame.kind, GOAWAY, "{engine}, parts of {part}, after {came}: {frame:?}");
            if frame.kind != DATA {
                continue;
            }
            came += frame.payload.len();
            if frame.flags & END_STREAM != 0 {
                break;
            }
            held.push_back(frame.payload.len());
            while came + little > given
                && let Some(oldest) = held.pop_front()
            {
                if oldest > 0 {
                    let by = u32::try_from(oldest).expect("a frame's length");
                    raw.send(&[window(0, by), window(1, by)].concat()).await;
                    given += oldest;
                }
            }
        }
        assert_eq!(came, all, "{engine}, parts of {part}");
    }
}

/// There is room at nearly any moment, and never enough.
#[tokio::test]
async fn a_window_that_is_opened_by_a_byte_now_and_then_is_no_window() {
    const WINDOW: usize = 2000;
    let origin = Origin::echo("a").await;
    for engine in ["lane", "pingora"] {
        let yaml = "
            engine: <engine>
            listeners: [{ address: <listen>, h2c: true }]
            upstreams: { app: { backends: [\"<origin>\"], timeouts: { read: 1s } } }";
        let config = Config::new(yaml).put("engine", engine).put("origin", origin.address.clone());
        let proxy = config.start().await;
        let mut raw = Raw::begin(proxy.listen, &[(4, u32::try_from(WINDOW).expect("small"))]).await;
        raw.send(&[get(1, "/hold"), get(3, "/size/1000000")].concat()).await;
        let began = Instant::now();
        let byte = window(3, 1);
        let seen = meanwhile(&mut raw, Duration::from_millis(110), &byte, |frame| is_reset(frame, 3)).await;
        // The grace, and what the window's first bytes have paid for.
        let took = began.elapsed();
        assert!((5..10).contains(&took.as_secs()), "{engine}: {took:?}");
        assert_eq!(seen.last().map(|frame| frame.number(0)), Some(CANCEL), "{engine}");
        let body: usize = seen.iter().filter(|frame| frame.kind == DATA).map(|frame| frame.payload.len()).sum();
        assert!((WINDOW..WINDOW + 100).contains(&body), "{engine}: {body}");
        assert_eq!(reason(&proxy, "/size/1000000").await, ("too_slow".to_owned(), 200), "{engine}");
    }
}

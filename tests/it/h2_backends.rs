//! Backends on HTTP/2, frame by frame: what they say wrongly is no answer, and what they say rightly comes in the client's protocol.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    frames::{ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, Raw, SETTINGS, frame, settings},
    http1::Client,
    http2::{Client2, Origin2, push, request},
    origin::{Origin, Peer},
    proxy::{Config, Proxy},
    within,
};

/// Answers each request with these frames.
async fn speaks(peer: Peer, answer: fn(u32) -> Vec<u8>) {
    let (mut io, ahead) = peer.wire.into_parts();
    assert!(ahead.is_empty());
    let mut preface = [0; 24];
    if io.read_exact(&mut preface).await.is_err() || io.write_all(&settings(&[])).await.is_err() {
        return;
    }
    let mut head = [0; 9];
    while io.read_exact(&mut head).await.is_ok() {
        let length = usize::from(head[1]) << 8 | usize::from(head[2]);
        let mut payload = vec![0; length];
        if io.read_exact(&mut payload).await.is_err() {
            return;
        }
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let said = match head[3] {
            HEADERS => answer(stream),
            SETTINGS if head[4] & ACK == 0 => frame(SETTINGS, ACK, 0, b""),
            _ => continue,
        };
        if io.write_all(&said).await.is_err() {
            return;
        }
    }
}

/// HEADERS of an answer.
fn says(stream: u32, flags: u8, fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    let block: Vec<u8> = fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat()).collect();
    frame(HEADERS, END_HEADERS | flags, stream, &block)
}

async fn before(answer: fn(u32) -> Vec<u8>) -> (Origin, Proxy) {
    let origin = Origin::script("a", move |peer| speaks(peer, answer)).await;
    let proxy = in_front_of(&origin.address).await;
    (origin, proxy)
}

async fn in_front_of(address: &str) -> Proxy {
    let yaml = "
listeners: [{ address: <listen>, h2c: true }]
upstreams: { a: { backends: [<a>], protocol: h2c } }
routes: [{ upstream: a }]
";
    Config::new(yaml.trim_start()).put("a", address).start().await
}

#[tokio::test]
async fn a_body_where_there_can_be_none_is_nobodys() {
    let bodies: [fn(u32) -> Vec<u8>; 2] = [
        |stream| [says(stream, 0, &[(":status", "204")]), frame(DATA, END_STREAM, stream, b"okokok")].concat(),
        |stream| [says(stream, 0, &[(":status", "304")]), frame(DATA, END_STREAM, stream, b"ok")].concat(),
    ];
    for answer in bodies {
        let (_origin, proxy) = before(answer).await;
        let reply = Client2::prior(proxy.listen).await.try_get("/").await;
        // Both frames may have come before the head went on.
        let refused = reply.as_ref().map_or_else(h2::Error::is_reset, |reply| reply.status == 502);
        assert!(refused, "{reply:?}");
        assert_eq!(proxy.access_log(1).await[0]["reason"], "bad_response");
    }
}

#[tokio::test]
async fn an_answer_without_a_length_ends_with_the_connection_of_an_http10_client() {
    let (_origin, proxy) =
        before(|stream| [says(stream, 0, &[(":status", "200")]), frame(DATA, END_STREAM, stream, b"hello")].concat())
            .await;
    let mut client = Client::connect(proxy.listen).await;
    client.send("GET / HTTP/1.0\r\nHost: a.test\r\nConnection: keep-alive\r\n\r\n").await;
    let answer = String::from_utf8(client.closed().await).expect("text");
    assert!(!answer.to_ascii_lowercase().contains("transfer-encoding"), "{answer}");
    assert!(answer.ends_with("\r\n\r\nhello"), "{answer}");
    // Of HTTP/1.1 it has chunks.
    let answer = Client::connect(proxy.listen).await.get("/").await;
    assert_eq!((answer.field("transfer-encoding"), answer.text().as_str()), (Some("chunked"), "hello"));
}

#[tokio::test]
async fn a_malformed_answer_is_a_bad_response_and_is_asked_for_once() {
    let wrong: [fn(u32) -> Vec<u8>; 3] = [
        |stream| says(stream, END_STREAM, &[(":status", "200"), ("connection", "close")]),
        |stream| says(stream, END_STREAM, &[("server", "a")]),
        |stream| says(stream, END_STREAM, &[(":status", "200"), ("content-length", "2")]),
    ];
    for (number, answer) in wrong.into_iter().enumerate() {
        let (_origin, proxy) = before(answer).await;
        let reply = Client::connect(proxy.listen).await.get("/").await;
        let line = proxy.access_log(1).await.remove(0);
        assert_eq!((reply.status(), line["reason"].as_str()), (502, Some("bad_response")), "{number}: {line}");
        assert_eq!(line["attempts"], 1, "{number}");
    }
}

/// Pingora hears nothing of a backend's `100`, and some send none: so they are asked for none, and the client is told to go on.
#[tokio::test]
async fn who_waits_to_be_asked_for_a_body_is_asked_by_us() {
    let origin = Origin2::start("a", None).await;
    let proxy = in_front_of(&origin.address.to_string()).await;
    let mut client = Client::connect(proxy.listen).await;
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
    assert_eq!(within("to be asked", client.any_response()).await.status(), 100);
    client.send("hello").await;
    assert_eq!(within("the answer", client.response()).await.text(), "hello");
    let mut raw = Raw::begin(proxy.listen, &[]).await;
    let fields = [(":method", "POST"), (":scheme", "http"), (":path", "/"), (":authority", "a.test")];
    let asks = says(1, 0, &[&fields[..], &[("expect", "100-continue")]].concat());
    raw.send(&asks).await;
    let asked = loop {
        let frame = within("to be asked", raw.read.next()).await.expect("the connection to go on");
        if frame.stream == 1 {
            break frame;
        }
    };
    assert_eq!((asked.kind, asked.flags & END_STREAM), (HEADERS, 0));
    raw.send(&frame(DATA, END_STREAM, 1, b"hello")).await;
    assert_ne!(raw.end(1).await.kind, RST_STREAM);
    for seen in origin.requests() {
        assert!(!seen.headers.contains_key("expect"), "{seen:?}");
    }
    assert_eq!(origin.requests().len(), 2);
}

#[tokio::test]
async fn the_scheme_is_that_of_the_backends_connection_and_not_what_a_client_says() {
    let origin = Origin2::start("a", None).await;
    let proxy = in_front_of(&origin.address.to_string()).await;
    let mut said = request("GET", "/");
    *said.uri_mut() = "https://a.test/".parse().expect("a URI");
    assert_eq!(Client2::prior(proxy.listen).await.send(said, vec![], None).await.status, 200);
    assert_eq!(origin.requests()[0].scheme.as_deref(), Some("http"));
}

/// Engines that speak HTTP/2 to backends past Pingora's client.
const OURS: [&str; 2] = ["lane", "exchange"];

async fn through(engine: &str, address: &str, more: &str) -> Proxy {
    let yaml = "
engine: <engine>
threads: 1
listeners: [{ address: <listen>, h2c: true }]
upstreams: { a: { backends: [<a>], protocol: h2c, <more> } }
routes: [{ upstream: a }]
";
    Config::new(yaml.trim_start()).put("engine", engine).put("a", address).put("more", more).start().await
}

#[tokio::test]
async fn interim_answers_go_on_to_clients_of_either_protocol() {
    for engine in OURS {
        let origin = Origin::script("a", |peer| {
            speaks(peer, |stream| {
                let hint = says(stream, 0, &[(":status", "103"), ("link", "</a.css>; rel=preload")]);
                [hint, says(stream, END_STREAM, &[(":status", "200")])].concat()
            })
        })
        .await;
        let proxy = through(engine, &origin.address, "").await;
        let mut client = Client::connect(proxy.listen).await;
        client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        let hint = within("the hint", client.any_response()).await;
        assert_eq!((hint.status(), hint.field("link")), (103, Some("</a.css>; rel=preload")), "{engine}");
        assert_eq!(within("the answer", client.response()).await.status(), 200, "{engine}");
        if engine == "exchange" {
            // Pingora's session of an HTTP/2 client drops them.
            continue;
        }
        let mut raw = Raw::begin(proxy.listen, &[]).await;
        raw.send(&says(
            1,
            END_STREAM,
            &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a.test")],
        ))
        .await;
        let mut heads = 0;
        while heads < 2 {
            let frame = within("a head", raw.read.next()).await.expect("the connection to go on");
            if frame.stream == 1 {
                assert_eq!((frame.kind, frame.flags & END_STREAM != 0), (HEADERS, heads == 1), "{engine}");
                heads += 1;
            }
        }
    }
}

#[tokio::test]
async fn an_answer_without_a_body_ends_with_its_head() {
    // So does a gRPC call that fails at once, whose client looks for its status where the stream ends.
    for engine in OURS {
        let origin = Origin::script("a", |peer| {
            speaks(peer, |stream| says(stream, END_STREAM, &[(":status", "200"), ("grpc-status", "12")]))
        })
        .await;
        let proxy = through(engine, &origin.address, "").await;
        let mut raw = Raw::begin(proxy.listen, &[]).await;
        raw.send(&says(
            1,
            END_STREAM,
            &[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a.test")],
        ))
        .await;
        let end = raw.end(1).await;
        assert_eq!((end.kind, end.flags & END_STREAM), (HEADERS, END_STREAM), "{engine}");
    }
}

#[tokio::test]
async fn a_length_and_fields_behind_the_body_go_on_together() {
    for engine in OURS {
        let origin = Origin::script("a", |peer| {
            speaks(peer, |stream| {
                let head = says(stream, 0, &[(":status", "200"), ("content-length", "5")]);
                [head, frame(DATA, 0, stream, b"hello"), says(stream, END_STREAM, &[("grpc-status", "0")])].concat()
            })
        })
        .await;
        let proxy = through(engine, &origin.address, "").await;
        let reply = Client2::prior(proxy.listen).await.try_get("/").await.expect("an answer");
        assert_eq!(reply.headers["content-length"], "5", "{engine}");
        assert_eq!(reply.text(), "hello", "{engine}");
        assert_eq!(reply.trailers.expect("trailers")["grpc-status"], "0", "{engine}");
        // HTTP/1.1 has a place for one of them.
        let mut client = Client::connect(proxy.listen).await;
        for _ in 0..2 {
            let reply = client.get("/").await;
            assert_eq!((reply.field("content-length"), reply.text().as_str()), (Some("5"), "hello"), "{engine}");
        }
        assert_eq!(origin.connections(), 1, "{engine}: nobody's stream was reset, and all had one connection");
    }
}

#[tokio::test]
async fn an_answer_that_breaks_off_never_looks_whole() {
    let broken: [fn(u32) -> Vec<u8>; 2] = [
        |stream| {
            let head = says(stream, 0, &[(":status", "200"), ("content-length", "5")]);
            [head, frame(DATA, 0, stream, b"hello"), frame(RST_STREAM, 0, stream, &2u32.to_be_bytes())].concat()
        },
        |stream| {
            let head = says(stream, 0, &[(":status", "200")]);
            [head, frame(DATA, 0, stream, b"hello"), frame(RST_STREAM, 0, stream, &2u32.to_be_bytes())].concat()
        },
    ];
    for engine in OURS {
        for answer in broken {
            let origin = Origin::script("a", move |peer| speaks(peer, answer)).await;
            let proxy = through(engine, &origin.address, "").await;
            let mut client = Client::connect(proxy.listen).await;
            client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
            let text = String::from_utf8_lossy(&client.closed().await).to_lowercase();
            let whole = text.contains("content-length: 5\r\n") && text.ends_with("\r\n\r\nhello");
            assert!(!whole && !text.ends_with("0\r\n\r\n"), "{engine}: {text}");
            let reply = Client2::prior(proxy.listen).await.try_get("/").await;
            assert!(reply.is_err() || reply.as_ref().is_ok_and(|reply| reply.status == 502), "{engine}: {reply:?}");
        }
    }
}

#[tokio::test]
async fn who_is_silent_is_answered_504_and_others_on_its_connection_are_not() {
    for engine in OURS {
        let origin = Origin::script("a", |peer| {
            speaks(peer, |stream| match stream {
                1 | 5.. => says(stream, END_STREAM, &[(":status", "200")]),
                _ => Vec::new(),
            })
        })
        .await;
        let proxy = through(engine, &origin.address, "timeouts: { first_byte: 1s }").await;
        let client = Client2::prior(proxy.listen).await;
        assert_eq!(client.try_get("/").await.expect("an answer").status, 200, "{engine}");
        let (waits, _) = client.open(request("GET", "/"), true).await.expect("a stream");
        proxy.metric("rrlb_requests_in_flight", &[], |n| n == 1.0).await;
        assert_eq!(Client::connect(proxy.listen).await.get("/").await.status(), 200, "{engine}");
        assert_eq!(within("its deadline", waits).await.expect("an answer").status(), 504, "{engine}");
        assert_eq!(Client::connect(proxy.listen).await.get("/").await.status(), 200, "{engine}");
        assert_eq!(origin.connections(), 1, "{engine}");
        let log = proxy.access_log(4).await;
        assert!(log.iter().any(|line| line["reason"] == "first_byte_timeout"), "{engine}: {log:?}");
    }
}

#[tokio::test]
async fn what_a_backend_has_not_processed_is_asked_again_whatever_it_is() {
    let refusals: [fn(u32) -> Vec<u8>; 2] = [
        |stream| frame(RST_STREAM, 0, stream, &7u32.to_be_bytes()),
        // GOAWAY of all before the first.
        |_| frame(7, 0, 0, &[0; 8]),
    ];
    for engine in OURS {
        for refusal in refusals {
            let origin = Origin::script("a", move |peer| speaks(peer, refusal)).await;
            let good = Origin2::start("b", None).await;
            let more = "retry: { attempts: 2 }";
            let both = format!("{}, \"{}\"", origin.address, good.address);
            let proxy = through(engine, &both, more).await;
            for _ in 0..4 {
                let reply = Client::connect(proxy.listen)
                    .await
                    .ask("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nhello")
                    .await;
                assert_eq!((reply.status(), reply.text().as_str()), (200, "hello"), "{engine}");
            }
        }
    }
}

/// All streams of a connection share its window: who reads nothing must not have the whole of it.
#[tokio::test]
async fn clients_that_do_not_read_keep_nobody_else_waiting() {
    const SLOW: usize = 40;
    let origin = Origin2::start("a", None).await;
    let yaml = "
listeners: [{ address: <listen>, h2c: true }]
upstreams: { a: { backends: [<a>], protocol: h2c } }
routes: [{ upstream: a }]
threads: 1
";
    let proxy = Config::new(yaml.trim_start()).put("a", origin.address).start().await;
    assert_eq!(Client::connect(proxy.listen).await.get("/").await.origin(), "a");
    // Their client's window lets 64 KiB through for all of them.
    let slow = Client2::prior(proxy.listen).await;
    let mut held = Vec::new();
    for _ in 0..SLOW {
        let (answer, _) = slow.open(request("GET", "/bytes/16777216"), true).await.expect("a stream");
        held.push(within("a head", answer).await.expect("an answer"));
    }
    // Were there no end to what they hold, it would have come by now.
    for _ in 0..32 {
        let mut client = Client::connect(proxy.listen).await;
        assert_eq!(within("another's answer", client.get("/bytes/1048576")).await.body.len(), 1 << 20);
    }
    assert_eq!(origin.connections(), 1);
}

/// A machine that is gone says no word: those who come after the first must not wait for it.
#[tokio::test]
async fn a_connection_that_has_gone_silent_gets_no_new_requests() {
    for engine in OURS {
        let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let origin = Origin::script("a", move |peer| {
            let count = count.clone();
            async move {
                // Of the first connection only the first stream is answered.
                let first = count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) == 0;
                if first {
                    speaks(
                        peer,
                        |stream| if stream == 1 { says(1, END_STREAM, &[(":status", "200")]) } else { Vec::new() },
                    )
                    .await;
                } else {
                    speaks(peer, |stream| says(stream, END_STREAM, &[(":status", "200")])).await;
                }
            }
        })
        .await;
        let proxy = through(engine, &origin.address, "timeouts: { first_byte: 1500ms }").await;
        let statuses = async || Client::connect(proxy.listen).await.get("/").await.status();
        assert_eq!([statuses().await, statuses().await, statuses().await], [200, 504, 200], "{engine}");
        assert_eq!(origin.connections(), 2, "{engine}");
    }
}

#[tokio::test]
async fn small_frames_that_wait_for_their_clients_end_nobody_elses_connection() {
    let origin = Origin::script("a", |peer| {
        speaks(peer, |stream| match stream {
            // As much as its window lets through, in messages of 20 bytes.
            ..13 => {
                [says(stream, 0, &[(":status", "200")]), frame(DATA, 0, stream, &[b'x'; 20]).repeat(8_000)].concat()
            }
            _ => says(stream, END_STREAM, &[(":status", "200")]),
        })
    })
    .await;
    let proxy = through("lane", &origin.address, "").await;
    let mut slow = Raw::begin(proxy.listen, &[]).await;
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a.test")];
    for stream in (1..13).step_by(2) {
        slow.send(&says(stream, END_STREAM, &fields)).await;
        assert_eq!(slow.end(stream).await.kind, HEADERS);
    }
    for _ in 0..20 {
        assert_eq!(Client::connect(proxy.listen).await.get("/").await.status(), 200);
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn frames_without_data_are_no_abuse() {
    let origin = Origin::script("a", |peer| {
        speaks(peer, |stream| {
            let head = says(stream, 0, &[(":status", "200")]);
            let data = frame(DATA, END_STREAM, stream, b"hello");
            [head, frame(DATA, 0, stream, b""), data].concat()
        })
    })
    .await;
    let proxy = through("lane", &origin.address, "").await;
    let mut client = Client::connect(proxy.listen).await;
    for _ in 0..150 {
        assert_eq!(client.get("/").await.text(), "hello");
    }
    assert_eq!(origin.connections(), 1);
}

#[tokio::test]
async fn a_fault_of_the_connection_is_not_that_of_who_waits_on_it() {
    for engine in OURS {
        let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let origin = Origin::script("a", move |peer| {
            let count = count.clone();
            async move {
                if count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) > 0 {
                    return speaks(peer, |stream| says(stream, END_STREAM, &[(":status", "200")])).await;
                }
                speaks(peer, |stream| match stream {
                    1 => says(1, END_STREAM, &[(":status", "200")]),
                    3 => Vec::new(),
                    // DATA of no stream.
                    _ => frame(DATA, 0, 0, b"x"),
                })
                .await;
            }
        })
        .await;
        let proxy = through(engine, &origin.address, "").await;
        assert_eq!(Client::connect(proxy.listen).await.get("/").await.status(), 200);
        let mut waits = Client::connect(proxy.listen).await;
        waits.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
        proxy.metric("rrlb_requests_in_flight", &[], |n| n == 1.0).await;
        assert_eq!(Client::connect(proxy.listen).await.get("/").await.status(), 200, "{engine}");
        assert_eq!(within("the answer", waits.response()).await.status(), 200, "{engine}");
    }
}

#[tokio::test]
async fn an_upload_that_a_backend_does_not_take_is_its_own_fault_and_soon_over() {
    for engine in OURS {
        let origin = Origin::script("a", |peer| speaks(peer, |_| Vec::new())).await;
        let proxy = through(engine, &origin.address, "timeouts: { write: 1s }, retry: { attempts: 1 }").await;
        let began = std::time::Instant::now();
        let mut client = Client::connect(proxy.listen).await;
        let head = "POST /1 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 200000\r\n\r\n";
        client.send(&format!("{head}{}", "x".repeat(200_000))).await;
        assert_eq!(within("the answer", client.response()).await.status(), 504, "{engine}");
        let client = Client2::prior(proxy.listen).await;
        let (answer, mut body) = client.open(request("POST", "/2"), false).await.expect("a stream");
        let sending = tokio::spawn(async move { push(&mut body, vec![b'x'; 200_000].into(), true).await });
        assert_eq!(within("the answer", answer).await.expect("an answer").status(), 504, "{engine}");
        drop(sending);
        assert!(began.elapsed() < std::time::Duration::from_secs(15), "{engine}: {:?}", began.elapsed());
        for line in proxy.access_log(2).await {
            assert_eq!(line["reason"], "write_timeout", "{engine}: {line}");
        }
    }
}

#[tokio::test]
async fn a_refusal_after_the_client_was_told_to_go_on_is_asked_again_too() {
    for engine in OURS {
        let origin =
            Origin::script("a", |peer| speaks(peer, |stream| frame(RST_STREAM, 0, stream, &7u32.to_be_bytes()))).await;
        let good = Origin2::start("b", None).await;
        let proxy = through(engine, &format!("{}, \"{}\"", origin.address, good.address), "").await;
        for _ in 0..2 {
            let mut client = Client::connect(proxy.listen).await;
            client.send("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n").await;
            assert_eq!(within("to be asked", client.any_response()).await.status(), 100, "{engine}");
            client.send("hello").await;
            assert_eq!(within("the answer", client.response()).await.text(), "hello", "{engine}");
        }
        assert!(!origin.requests().is_empty() || origin.connections() > 0, "{engine}");
    }
}

#[tokio::test]
async fn a_backend_that_refuses_is_not_asked_twice_nor_on_connections_of_its_own() {
    for engine in OURS {
        let origin = Origin::script("a", |peer| {
            speaks(peer, |stream| match stream {
                1 => says(1, END_STREAM, &[(":status", "200")]),
                _ => frame(RST_STREAM, 0, stream, &7u32.to_be_bytes()),
            })
        })
        .await;
        let proxy = through(engine, &origin.address, "retry: { attempts: 5 }").await;
        assert_eq!(Client::connect(proxy.listen).await.get("/").await.status(), 200);
        for _ in 0..10 {
            assert_eq!(Client::connect(proxy.listen).await.get("/").await.status(), 502, "{engine}");
        }
        assert_eq!(origin.connections(), 1, "{engine}");
        assert_eq!(proxy.access_log(11).await[10]["attempts"], 1, "{engine}");
    }
}

#[tokio::test]
async fn an_answer_that_is_said_to_be_empty_is_whole_when_its_stream_ends() {
    let answer: fn(u32) -> Vec<u8> = |stream| {
        let head = says(stream, 0, &[(":status", "200"), ("content-length", "0")]);
        [head, frame(RST_STREAM, 0, stream, &2u32.to_be_bytes())].concat()
    };
    for engine in OURS {
        let origin = Origin::script("a", move |peer| speaks(peer, answer)).await;
        let proxy = through(engine, &origin.address, "retry: { attempts: 1 }").await;
        assert_eq!(Client::connect(proxy.listen).await.get("/").await.status(), 502, "{engine}");
    }
}

#[tokio::test]
async fn a_backend_that_dies_within_a_frames_head_has_not_ended_its_answer() {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
    static CUT: AtomicUsize = AtomicUsize::new(0);
    for engine in OURS {
        for cut in 1..=8 {
            CUT.store(cut, SeqCst);
            let origin = Origin::script("a", |peer| async move {
                let (mut io, _) = peer.wire.into_parts();
                let mut seen = vec![0; 24];
                io.read_exact(&mut seen).await.expect("a preface");
                io.write_all(&settings(&[])).await.expect("room");
                // A frame that would repeat as one that ends the stream.
                let head = [says(1, 0, &[(":status", "200")]), frame(DATA, 0, 1, b"begin")].concat();
                let last = [0, 0, 1, 0, 1, 0, 0, 0, 1];
                io.write_all(&[&head[..], &last[..CUT.load(SeqCst)]].concat()).await.expect("room");
                io.flush().await.expect("room");
            })
            .await;
            let proxy = through(engine, &origin.address, "retry: { attempts: 1 }").await;
            let mut client = Client::connect(proxy.listen).await;
            // It dies with our request unread, so its end may be known before its answer: a 502, which alone would end nothing.
            client.send("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
            let text = String::from_utf8_lossy(&within("its end", client.closed()).await).into_owned();
            assert!(!text.ends_with("0\r\n\r\n") || text.contains(" 502 "), "{engine}, {cut}: {text:?}");
            let line = proxy.access_log(1).await.remove(0);
            assert_ne!(line["reason"], "ok", "{engine}, {cut}: {line}");
        }
    }
}

#[tokio::test]
async fn a_client_that_leaves_as_it_is_told_to_go_on_is_no_fault_of_a_backend() {
    for engine in ["lane", "exchange", "pingora"] {
        let origin = Origin2::start("a", None).await;
        let more = "eject: { consecutive_failures: 2 }, retry: { attempts: 1 }";
        let good = Origin2::start("b", None).await;
        let proxy = through(engine, &format!("\"{}\", \"{}\"", origin.address, good.address), more).await;
        for _ in 0..20 {
            let mut client = tokio::net::TcpStream::connect(proxy.listen).await.expect("connects");
            let head = b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n";
            client.write_all(head).await.expect("room");
            client.set_zero_linger().expect("a socket");
        }
        for line in proxy.access_log(20).await {
            assert_eq!(line["reason"], "client_aborted", "{engine}: {line}");
        }
        assert!(!proxy.stderr().contains("backend.ejected"), "{engine}: {}", proxy.stderr());
    }
}

/// Nobody reads interim answers while their client takes nothing, and they are under no window.
#[tokio::test]
async fn interim_answers_without_end_end_their_connection_also_where_nobody_reads_them() {
    const LONG: usize = 100_000;
    let (told, mut tells) = tokio::sync::mpsc::unbounded_channel();
    let origin = Origin::script("a", move |peer| {
        let told = told.clone();
        async move {
            let mut io = peer.wire.into_parts().0;
            let mut asked = vec![0; 4096];
            let mut seen = Vec::new();
            _ = io.write_all(&settings(&[])).await;
            // The preface, frames of the connection, and then the request.
            while !seen.windows(4).any(|kind| kind == [HEADERS, END_STREAM | END_HEADERS, 0, 0]) {
                let Ok(read @ 1..) = io.read(&mut asked).await else { return };
                seen.extend_from_slice(&asked[..read]);
            }
            let long =
                |rest: usize| [&[0x48, 3], &b"103"[..], &[0, 1, b'a', 0x7f], &varint(rest), &vec![b'a'; rest]].concat();
            let block = long(LONG);
            let mut parts = block.chunks(16_384).enumerate().peekable();
            let mut head = Vec::new();
            while let Some((at, part)) = parts.next() {
                let flags = if parts.peek().is_none() { END_HEADERS } else { 0 };
                head.extend(frame(if at == 0 { HEADERS } else { CONTINUATION }, flags, 1, part));
            }
            for _ in 0..400 {
                if io.write_all(&head).await.is_err() {
                    _ = told.send("ended");
                    return;
                }
            }
            _ = told.send("all of them were taken");
        }
    })
    .await;
    let proxy = in_front_of(&origin.address).await;
    let mut client = Client::with_small_buffer(proxy.listen).await;
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(within("the end", tells.recv()).await, Some("ended"));
    drop(client);
    assert_ne!(proxy.access_log(1).await[0]["reason"], "ok");
}

/// A number behind a prefix that is full with 127 (RFC 7541 §5.1).
fn varint(number: usize) -> Vec<u8> {
    let mut rest = number - 127;
    let mut bytes = Vec::new();
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).expect("small") | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).expect("small"));
    bytes
}

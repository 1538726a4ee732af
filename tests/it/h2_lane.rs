//! Requests of HTTP/2 clients to backends on HTTP/1.1, straight from stream to connection.

use std::{future::poll_fn, time::Duration};

use bytes::Bytes;
use h2::Reason;
use http::{HeaderMap, HeaderValue};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    frames::{self, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, Raw, block_of, frame},
    http2::{Client2, collect, push, request},
    origin::{Origin, Peer},
    proxy::{Config, Proxy},
    wait_until, within,
};

/// Both ways of an HTTP/2 client's bytes: the lane, and Pingora's proxy.
const ENGINES: [&str; 3] = ["engine: lane", "engine: exchange", "engine: pingora"];

async fn before(origin: &Origin, more: &str) -> Proxy {
    let yaml = format!("listeners: [{{ address: <listen>, h2c: true }}]\n{more}");
    Config::before(&[origin], &yaml).start().await
}

/// Early hints, then the answer when it is released.
async fn hints(mut peer: Peer) {
    while peer.request().await.is_some() {
        peer.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\nConnection: x-gone\r\nX-Gone: 1\r\n\r\n")
            .await;
        peer.held().await;
        peer.reply(200, "", "a").await;
    }
}

#[tokio::test]
async fn early_hints_reach_http2_clients_before_the_answer() {
    for engine in ENGINES {
        let origin = Origin::script("a", hints).await;
        let proxy = before(&origin, engine).await;
        let client = Client2::prior(proxy.listen).await;
        let (mut response, _) = client.open(request("GET", "/"), true).await.expect("a stream");
        let told = within("early hints", poll_fn(|cx| response.poll_informational(cx))).await;
        let told = told.expect("an interim answer").expect("early hints");
        assert_eq!(
            (told.status().as_u16(), &told.headers()["link"]),
            (103, &HeaderValue::from_static("</a.css>; rel=preload"))
        );
        assert!(!told.headers().contains_key("x-gone") && !told.headers().contains_key("connection"), "{told:?}");
        origin.release();
        assert_eq!(within("the answer", response).await.expect("an answer").status(), 200, "{engine}");
    }
}

#[tokio::test]
async fn the_authority_and_a_host_may_name_one_host_in_two_ways() {
    for engine in ENGINES {
        let origin = Origin::echo("a").await;
        let proxy = before(&origin, engine).await;
        let mut raw = Raw::begin(proxy.listen, &[]).await;
        let cases = [
            ("a.test:80", Some("a.test"), Some("a.test:80")),
            ("a.test", Some("A.TEST:80"), Some("a.test")),
            ("a.test", Some("a.test"), Some("a.test")),
            ("a.test", None, Some("a.test")),
            ("a.test:8080", Some("a.test"), None),
            ("a.test:443", Some("a.test"), None),
            ("a.test", Some("b.test"), None),
        ];
        for (number, (authority, host, sent)) in (0..).zip(cases) {
            let (stream, before) = (number * 2 + 1, origin.total());
            let fields: Vec<_> = [(":authority", Some(authority)), ("host", host)]
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?)))
                .collect();
            raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block_of(&fields))).await;
            let answer = raw.end(stream).await;
            let status = if sent.is_some() { 0x88 } else { 0x8c };
            assert_eq!((answer.kind, answer.payload[0]), (HEADERS, status), "{engine}: {fields:?}");
            assert_eq!(origin.total() - before, usize::from(sent.is_some()), "{engine}: {fields:?}");
            if let Some(sent) = sent {
                let seen = origin.requests().pop().expect("a request");
                assert_eq!(seen.fields("host"), [sent], "{engine}: {fields:?}");
            }
        }
    }
}

#[tokio::test]
async fn trailers_of_requests_disturb_nothing_and_go_no_further() {
    for engine in ENGINES {
        let origin = Origin::echo("a").await;
        let proxy = before(&origin, engine).await;
        let client = Client2::prior(proxy.listen).await;
        let mut trailers = HeaderMap::new();
        trailers.insert("x-sum", HeaderValue::from_static("1"));
        for length in [None, Some("8")] {
            let mut post = request("POST", "/p");
            if let Some(length) = length {
                post.headers_mut().insert("content-length", HeaderValue::from_static(length));
            }
            let body = vec![Bytes::from_static(b"half"), Bytes::from_static(b"half")];
            let reply = client.send(post, body, Some(trailers.clone())).await;
            assert_eq!((reply.status, reply.text()), (200, "halfhalf".to_owned()), "{engine} {length:?}");
        }
        let seen = origin.requests();
        assert!(seen.len() == 2 && seen.iter().all(|seen| seen.field("x-sum").is_none()), "{engine}: {seen:?}");
    }
}

#[tokio::test]
async fn malformed_trailers_of_requests_reach_nobody() {
    for engine in ENGINES {
        let origin = Origin::echo("a").await;
        let proxy = before(&origin, engine).await;
        let client = Client2::prior(proxy.listen).await;
        for (name, value) in [("content-length", "4"), ("x-padded", "1 "), ("host", "b.test")] {
            let mut trailers = HeaderMap::new();
            trailers.insert(name, HeaderValue::from_bytes(value.as_bytes()).expect("a value"));
            let sent = client.try_send(request("POST", "/p"), vec![Bytes::from_static(b"body")], Some(trailers)).await;
            match sent {
                Ok(reply) => assert_eq!(reply.status, 400, "{engine}: {name}"),
                Err(error) => assert_eq!(error.reason(), Some(Reason::PROTOCOL_ERROR), "{engine}: {name}"),
            }
        }
        for line in proxy.access_log(3).await {
            assert_eq!(line["reason"], "bad_request", "{engine}: {line}");
        }
        assert_eq!(client.get("/").await.status, 200);
        // What was begun never became whole.
        assert_eq!(origin.total(), 1, "{engine}: {:?}", origin.requests());
    }
}

const MIB: usize = 1 << 20;

/// Writes 8 MiB whether or not the request is read, and reads it meanwhile.
async fn busy(mut peer: Peer) {
    let Some(head) = peer.request_head().await else { return };
    assert_eq!(head.field("transfer-encoding"), Some("chunked"));
    let (io, ahead) = peer.wire.into_parts();
    let (mut reader, mut writer) = tokio::io::split(io);
    let writing = async {
        let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", 8 * MIB);
        writer.write_all(head.as_bytes()).await.expect("a head");
        writer.write_all(&vec![b'x'; 8 * MIB]).await.expect("a body");
    };
    let reading = async {
        let (mut last, mut part) = (ahead, vec![0; 64 * 1024]);
        while !last.ends_with(b"0\r\n\r\n") {
            let read = reader.read(&mut part).await.expect("no reset");
            assert!(read > 0, "the request broke off");
            last.extend_from_slice(&part[..read]);
            let keep = last.len().saturating_sub(16);
            last.drain(..keep);
        }
    };
    tokio::join!(writing, reading);
}

/// Over the exchange the request would not be read on, and both would wait for each other.
#[tokio::test]
async fn a_client_may_send_all_before_it_reads_anything() {
    let origin = Origin::script("a", busy).await;
    let proxy = before(&origin, "engine: lane").await;
    let client = Client2::prior(proxy.listen).await;
    let (response, mut stream) = client.open(request("POST", "/"), false).await.expect("a stream");
    within("the upload", push(&mut stream, vec![b'y'; 8 * MIB].into(), true)).await.expect("all of it was taken");
    let (_, mut body) = within("the head", response).await.expect("an answer").into_parts();
    let (read, _) = within("the body", collect(&mut body)).await.expect("all of it");
    assert_eq!(read.len(), 8 * MIB);
}

#[tokio::test]
async fn a_reset_ends_the_backends_connection_also_while_it_takes_nothing() {
    let origin = Origin::script("a", |mut peer| async move {
        // Takes the head and no more, until its connection ends.
        let _ = peer.request_head().await;
        peer.held().await;
        let _ = peer.wire.rest().await;
    })
    .await;
    let proxy = before(&origin, "engine: lane").await;
    let client = Client2::prior(proxy.listen).await;
    let (response, mut stream) = client.open(request("POST", "/"), false).await.expect("a stream");
    // As much as the windows take.
    let pushing = push(&mut stream, vec![b'y'; 64 * MIB].into(), true);
    assert!(tokio::time::timeout(Duration::from_millis(500), pushing).await.is_err(), "64 MiB were taken");
    stream.send_reset(Reason::CANCEL);
    drop((response, stream));
    let line = proxy.access_log(1).await.remove(0);
    assert_eq!((line["reason"].as_str(), line["attempts"].as_u64()), (Some("client_aborted"), Some(1)), "{line}");
    origin.release();
    wait_until("the backend's connection to end", || origin.open() == 0).await;
}

#[tokio::test]
async fn a_body_longer_than_declared_never_reaches_a_backend_whole() {
    let origin = Origin::script("a", |mut peer| async move {
        let _ = peer.request().await;
        peer.reply(200, "", "whole").await;
    })
    .await;
    let proxy = before(&origin, "engine: lane").await;
    let mut raw = Raw::begin(proxy.listen, &[]).await;
    raw.send(&frames::post_of(1, "/", 4)).await;
    raw.send(&frame(DATA, 0, 1, b"body")).await;
    wait_until("the backend to be asked", || origin.connections() == 1).await;
    raw.send(&frame(DATA, END_STREAM, 1, b"!")).await;
    let ended = raw.end(1).await;
    assert_eq!((ended.kind, ended.number(0)), (RST_STREAM, 1), "PROTOCOL_ERROR");
    let line = proxy.access_log(1).await.remove(0);
    assert_eq!(line["reason"], "bad_request", "{line}");
}

/// Without a body, and with an end.
#[tokio::test]
async fn a_failure_that_answers_head_is_whole() {
    for engine in ENGINES {
        let origin = Origin::script("a", |peer| async move { drop(peer) }).await;
        let proxy = before(&origin, engine).await;
        let client = Client2::prior(proxy.listen).await;
        let reply = client.send(request("HEAD", "/"), vec![], None).await;
        assert_eq!((reply.status, reply.body.len()), (502, 0), "{engine}");
    }
}

#[tokio::test]
async fn answers_of_every_framing_arrive_as_they_are() {
    let origin = Origin::script("a", |mut peer| async move {
        while let Some(seen) = peer.request().await {
            let answer = match seen.target() {
                "/chunks" => "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nX-Sum: 5\r\nSet-Cookie: no\r\n\r\n",
                "/length" => "HTTP/1.1 200 OK\r\nContent-Length: 005\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\nabcde",
                "/empty" => "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
                "/none" => "HTTP/1.1 204 No Content\r\n\r\n",
                "/head" => "HTTP/1.1 200 OK\r\nContent-Length: 77\r\n\r\n",
                _ => "HTTP/1.0 200 OK\r\n\r\nabcde",
            };
            peer.send(answer).await;
            if seen.target() == "/close" {
                return;
            }
        }
    })
    .await;
    let proxy = before(&origin, "engine: lane").await;
    let client = Client2::prior(proxy.listen).await;
    let reply = client.get("/chunks").await;
    let sum = reply.trailers.as_ref().expect("trailers");
    assert_eq!((reply.text().as_str(), &sum["x-sum"], sum.len()), ("abcde", &HeaderValue::from_static("5"), 1));
    assert_eq!((reply.field("trailer"), reply.field("content-length")), (Some("X-Sum"), None));
    assert!(reply.field("date").is_some() && reply.field("transfer-encoding").is_none(), "{reply:?}");
    let reply = client.get("/length").await;
    assert_eq!((reply.text().as_str(), reply.field("content-length")), ("abcde", Some("5")));
    assert_eq!(reply.field("date"), Some("Sun, 06 Nov 1994 08:49:37 GMT"));
    for (path, status, length) in [("/empty", 200, Some("0")), ("/none", 204, None)] {
        let reply = client.get(path).await;
        assert_eq!((reply.status, reply.body.len(), reply.field("content-length")), (status, 0, length), "{path}");
    }
    let reply = client.send(request("HEAD", "/head"), vec![], None).await;
    assert_eq!((reply.status, reply.body.len(), reply.field("content-length")), (200, 0, Some("77")));
    assert_eq!(client.get("/close").await.text(), "abcde");
    // One connection was enough, but for the answer that ended its own.
    assert_eq!(client.get("/length").await.text(), "abcde");
    assert_eq!(origin.connections(), 2);
}

#[tokio::test]
async fn a_body_that_an_empty_frame_ends_has_one_last_chunk() {
    // Pingora wrote two, and the second was the beginning of the connection's next request.
    for engine in ENGINES {
        let origin = Origin::echo("a").await;
        let proxy = before(&origin, engine).await;
        let client = Client2::prior(proxy.listen).await;
        for parts in [&["abc", ""][..], &["abc", "", "de", ""], &[""], &["abc", "de"]] {
            let (answer, mut stream) = client.open(request("POST", "/"), false).await.expect("a stream");
            for (at, part) in parts.iter().enumerate() {
                let last = at + 1 == parts.len();
                match *part {
                    "" => stream.send_data(Bytes::new(), last).expect("a frame"),
                    part => push(&mut stream, Bytes::from(part), last).await.expect("room"),
                }
            }
            let mut answer = within("an answer", answer).await.expect("an answer");
            let body = collect(answer.body_mut()).await.expect("a body").0;
            let expected = if parts == [""] { "a".to_owned() } else { parts.concat() };
            let seen = (answer.status().as_u16(), String::from_utf8_lossy(&body).into_owned());
            assert_eq!(seen, (200, expected), "{engine}: {parts:?}");
        }
        assert_eq!(proxy.client().await.get("/").await.status(), 200);
        let methods: Vec<_> = origin.requests().iter().map(|request| request.method().to_owned()).collect();
        assert_eq!(methods, ["POST", "POST", "POST", "POST", "GET"], "{engine}");
        assert_eq!(proxy.scrape().await.sum("rrlb_retries_total", &[]), 0.0, "{engine}: the connection was used again");
    }
}

#[tokio::test]
async fn who_sends_malformed_trailers_again_and_again_has_to_go() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "engine: lane").await;
    let client = Client2::prior(proxy.listen).await;
    for _ in 0..100 {
        let mut trailers = HeaderMap::new();
        trailers.insert("content-length", HeaderValue::from_static("1"));
        let sent = client.try_send(request("POST", "/"), vec![Bytes::from("x")], Some(trailers)).await;
        assert!(sent.as_ref().map_or(true, |reply| reply.status == 400), "{sent:?}");
    }
    client.ended().await;
    proxy.metric("rrlb_h2_abuse_total", &["kind=\"malformed\""], |n| n == 1.0).await;
    assert!(origin.total() < 40, "{}", origin.total());
}

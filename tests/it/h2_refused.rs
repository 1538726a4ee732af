//! Requests over HTTP/2 that are refused before they are requests: each says why, and is logged and counted once.

use bytes::Bytes;

use crate::support::{
    frames::{self, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, Raw, block_of, frame},
    hpack::Blocks,
    http2::{Client2, Reply2, request},
    origin::Origin,
    proxy::{Config, Proxy},
};

async fn before(origin: &Origin, limits: &str) -> Proxy {
    let yaml = "listeners: [{ address: <listen>, h2c: true, limits: { <limits> } }]";
    Config::before(&[origin], yaml).put("limits", limits).start().await
}

#[tokio::test]
async fn who_is_refused_before_any_phase_is_told_why() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "max_header_size: 4KiB").await;
    let mut raw = Raw::begin(proxy.listen, &[]).await;
    let cases: [&[(&str, &str)]; 5] = [
        &[],
        &[(":authority", "me@a.test")],
        &[("host", "me@a.test")],
        &[(":authority", "a.test"), ("host", "b.test")],
        &[("host", "a.test"), ("host", "a.test")],
    ];
    let mut blocks = Blocks::default();
    for (number, fields) in (0..).zip(cases) {
        let stream = number * 2 + 1;
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block_of(fields))).await;
        let answer = raw.end(stream).await;
        assert_eq!((answer.kind, answer.payload[0]), (HEADERS, 0x8c), "{fields:?}");
        let told = blocks.read(&answer.payload);
        let says = |name: &str, text: &str| told.iter().any(|field| field == &(name.to_owned(), text.to_owned()));
        assert!(
            says("proxy-status", "rrlb; error=http_request_error; details=\"bad_request\""),
            "{fields:?}: {told:?}"
        );
    }
    for line in proxy.access_log(cases.len()).await {
        assert_eq!((line["reason"].as_str(), line["status"].as_u64()), (Some("bad_request"), Some(400)), "{line}");
    }
    // The next answer is the same connection's, and understood.
    let stream = 99;
    raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block_of(&[(":authority", "a.test")]))).await;
    assert_eq!(raw.end(stream).await.payload[0], 0x88);
    proxy.metric("rrlb_failures_total", &["reason=\"bad_request\""], |count| count == 5.0).await;
    assert_eq!(origin.total(), 1);
}

/// The length decides where a backend on HTTP/1.1 sees the request end.
#[tokio::test]
async fn a_length_that_is_none_is_seen_by_no_backend() {
    let wrong =
        ["", "9223372036854775808", "9999999999999999999", "99999999999999999999", "+5", "5 ", "-0", "0x5", "5,5"];
    for engine in ["lane", "exchange", "pingora"] {
        let origin = Origin::echo("a").await;
        let yaml = "listeners: [{ address: <listen>, h2c: true }]\nengine: <engine>";
        let proxy = Config::before(&[&origin], yaml).put("engine", engine).start().await;
        let mut raw = Raw::begin(proxy.listen, &[]).await;
        for (number, length) in (0..).zip(wrong) {
            let stream = number * 2 + 1;
            let head = block_of(&[(":authority", "a.test"), ("content-length", length)]);
            raw.send(&[frame(HEADERS, END_HEADERS, stream, &head), frame(DATA, END_STREAM, stream, b"")].concat())
                .await;
            let answer = raw.end(stream).await;
            let refused = answer.kind == RST_STREAM || (answer.kind, answer.payload[0]) == (HEADERS, 0x8c);
            assert!(refused, "{engine}: {length:?}: {answer:?}");
        }
        for line in proxy.access_log(wrong.len()).await {
            assert_eq!(line["reason"], "bad_request", "{engine}: {line}");
        }
        assert_eq!(origin.connections(), 0, "{engine}");
    }
}

#[tokio::test]
async fn what_the_http2_layer_resets_by_itself_is_logged_and_counted() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "max_header_size: 4KiB").await;
    let mut raw = Raw::begin(proxy.listen, &[]).await;
    let cases: [&[(&str, &str)]; 5] = [
        &[(":authority", "a.test"), (":status", "200")],
        &[(":authority", "a b")],
        &[(":authority", "a.test"), ("connection", "close")],
        &[(":authority", "a.test"), ("te", "gzip")],
        &[(":authority", "a.test"), ("content-length", "5")],
    ];
    for (number, fields) in (0..).zip(cases) {
        let stream = number * 2 + 1;
        raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, stream, &block_of(fields))).await;
        assert_eq!(raw.end(stream).await.kind, RST_STREAM, "{fields:?}");
    }
    for line in proxy.access_log(cases.len()).await {
        assert_eq!(line["reason"], "bad_request", "{line}");
    }
    proxy.metric("rrlb_failures_total", &["reason=\"bad_request\""], |count| count == 5.0).await;
    assert_eq!(origin.total(), 0);
}

#[tokio::test]
async fn streams_over_their_number_are_logged_and_counted() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "").await;
    let mut raw = Raw::begin(proxy.listen, &[]).await;
    let streams = (0..101).map(|number| number * 2 + 1);
    let all: Vec<u8> = streams.flat_map(|stream| frames::get(stream, "/hold")).collect();
    raw.send(&all).await;
    let refused = raw.end(201).await;
    assert_eq!((refused.kind, refused.number(0)), (RST_STREAM, 7));
    proxy.metric("rrlb_failures_total", &["reason=\"too_many_concurrent\""], |count| count == 1.0).await;
}

#[tokio::test]
async fn a_head_far_over_the_limit_is_told_why_and_logged_and_the_connection_goes_on() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "max_header_size: 4KiB").await;
    let client = Client2::prior(proxy.listen).await;
    let filled = |size: usize| {
        let mut request = request("POST", "/");
        request.headers_mut().insert("x-fill", "x".repeat(size).parse().expect("a value"));
        request
    };
    let told = |reply: &Reply2| reply.field("proxy-status").is_some_and(|told| told.contains("header_too_large"));
    let sizes = [9_000, 20_000, 30_000];
    for size in sizes {
        let reply = client.send(filled(size), vec![], None).await;
        assert!(reply.status == 431 && told(&reply), "{size}: {reply:?}");
        let reply = client.send(filled(1_000), vec![Bytes::from_static(b"body")], None).await;
        assert_eq!((reply.status, reply.text()), (200, "body".to_owned()));
    }
    proxy.metric("rrlb_failures_total", &["reason=\"header_too_large\""], |count| count == 3.0).await;
    let lines = proxy.access_log(2 * sizes.len()).await;
    assert_eq!(lines.iter().filter(|line| line["reason"] == "header_too_large" && line["status"] == 431).count(), 3);
    assert_eq!(origin.total(), 3);
}

//! Backends on HTTP/2, frame by frame: what they say wrongly is no answer, and what they say rightly comes in the client's protocol.

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    frames::{ACK, DATA, END_HEADERS, END_STREAM, HEADERS, RST_STREAM, Raw, SETTINGS, frame, settings},
    http1::Client,
    http2::{Client2, Origin2, request},
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

/// Pingora hears nothing of a backend's `100`, so it is asked for none and the client is told to go on.
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

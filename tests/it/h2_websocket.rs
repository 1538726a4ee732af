//! WebSockets over HTTP/2 (RFC 8441), to backends that know the upgrade of HTTP/1.1 alone.

use bytes::Bytes;
use h2::{Reason, SendStream, client::ResponseFuture, ext::Protocol};
use http::Request;
use tokio::io::AsyncWriteExt;

use crate::support::{
    http2::{Client2, Origin2, collect, push, request},
    origin::{Origin, Peer},
    proxy::{Config, Proxy},
    wait_until, within,
};

const LISTENER: &str = "listeners: [{ address: <listen>, h2c: true }]";

/// Answers the key that it gets, and then echoes bytes until they end.
async fn echoes(mut peer: Peer) {
    let Some(request) = peer.request().await else { return };
    assert_eq!((request.method(), request.field("sec-websocket-version")), ("GET", Some("13")));
    assert_eq!(request.field("upgrade"), Some("websocket"));
    let key = request.field("sec-websocket-key").expect("a key");
    let accept = answer(key);
    let fields = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: chat";
    peer.send(format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\nSec-WebSocket-Accept: {accept}\r\n\r\n")).await;
    let (io, ahead) = peer.wire.into_parts();
    let (mut reader, mut writer) = tokio::io::split(io);
    let _ = writer.write_all(&ahead).await;
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
    let _ = writer.shutdown().await;
}

/// What a backend says to a key (RFC 6455 §4.2.2).
fn answer(key: &str) -> String {
    use base64::Engine as _;
    let text = format!("{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
    base64::engine::general_purpose::STANDARD.encode(digest)
}

fn chat(protocol: &'static str) -> Request<()> {
    let mut chat = request("CONNECT", "/chat");
    chat.extensions_mut().insert(Protocol::from_static(protocol));
    chat.headers_mut().insert("sec-websocket-protocol", "chat".parse().expect("a value"));
    chat
}

async fn open(client: &Client2) -> (ResponseFuture, SendStream<Bytes>) {
    client.open(chat("websocket"), false).await.expect("a stream")
}

async fn before(origin: &Origin, more: &str) -> Proxy {
    Config::before(&[origin], &format!("{LISTENER}\n{more}")).start().await
}

#[tokio::test]
async fn a_websocket_over_http2_echoes() {
    for engine in ["engine: lane", "engine: pingora"] {
        let origin = Origin::script("a", echoes).await;
        let proxy = before(&origin, engine).await;
        let client = Client2::prior(proxy.listen).await;
        let (response, mut stream) = open(&client).await;
        let answer = within("the answer", response).await.expect("an answer");
        assert_eq!(
            (answer.status(), &answer.headers()["sec-websocket-protocol"]),
            (200.try_into().unwrap(), &"chat".parse::<http::HeaderValue>().unwrap())
        );
        for gone in ["upgrade", "connection", "sec-websocket-accept"] {
            assert!(!answer.headers().contains_key(gone), "{engine}: {gone}");
        }
        let mut body = answer.into_body();
        for part in ["hello", "again"] {
            push(&mut stream, Bytes::from(part), false).await.expect("taken");
            let echoed = within("an echo", body.data()).await.expect("no end").expect("an echo");
            assert_eq!(echoed, part);
            body.flow_control().release_capacity(echoed.len()).expect("released");
        }
        // What ends the stream ends the connection that it has become.
        stream.send_data(Bytes::new(), true).expect("an end");
        assert!(within("the end", collect(&mut body)).await.expect("an end").0.is_empty());
        wait_until("the backend's connection to end", || origin.open() == 0).await;
        let seen = origin.only_request();
        assert_eq!((seen.target(), seen.field("host")), ("/chat", Some("a.test")));
        let line = proxy.access_log(1).await.remove(0);
        assert_eq!(
            (line["protocol"].as_str(), line["reason"].as_str()),
            (Some("HTTP/2.0"), Some("ok")),
            "{engine}: {line}"
        );
    }
}

#[tokio::test]
async fn extended_connect_is_offered_and_refusals_end_their_stream_only() {
    let origin = Origin::script("a", |mut peer| async move {
        while let Some(request) = peer.request().await {
            match request.target() {
                "/chat" => peer.reply(403, "", "no").await,
                _ => peer.reply(200, "", "yes").await,
            }
        }
    })
    .await;
    let proxy = before(&origin, "").await;
    let stream = tokio::net::TcpStream::connect(proxy.listen).await.expect("connect");
    let (send, connection) = within("h2", h2::client::handshake(stream)).await.expect("h2");
    let connection = tokio::spawn(connection);
    let mut send = send.ready().await.expect("ready");
    let (response, _) = send.send_request(request("GET", "/"), true).expect("a stream");
    assert_eq!(within("answer", response).await.expect("an answer").status(), 200);
    assert!(send.is_extended_connect_protocol_enabled());
    for (protocol, status) in [("websocket", 403), ("connect-udp", 501)] {
        let (response, _stream) = send.send_request(chat(protocol), false).expect("a stream");
        let answer = within("the answer", response).await.expect("an answer");
        assert_eq!(answer.status(), status, "{protocol}");
    }
    let (response, _) = send.send_request(request("GET", "/"), true).expect("a stream");
    assert_eq!(within("answer", response).await.expect("an answer").status(), 200);
    connection.abort();
}

/// To the client a 200 would say that its WebSocket is there.
#[tokio::test]
async fn an_answer_to_another_request_is_no_websocket() {
    for engine in ["engine: lane", "engine: pingora"] {
        let origin = Origin::echo("a").await;
        let proxy = before(&origin, engine).await;
        let client = Client2::prior(proxy.listen).await;
        let (response, _stream) = open(&client).await;
        assert_eq!(within("the answer", response).await.expect("an answer").status(), 502);
        assert_eq!(proxy.access_log(1).await[0]["reason"], "upgrade_failed");
    }
}

#[tokio::test]
async fn a_backend_that_does_not_answer_the_key_is_no_websocket() {
    let origin = Origin::script("a", |mut peer| async move {
        let _ = peer.request().await;
        let fields = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";
        peer.send(format!("HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n\r\n")).await;
        let _ = peer.wire.rest().await;
    })
    .await;
    let proxy = before(&origin, "").await;
    let client = Client2::prior(proxy.listen).await;
    let (response, _stream) = open(&client).await;
    assert_eq!(within("the answer", response).await.expect("an answer").status(), 502);
    assert_eq!(proxy.access_log(1).await[0]["reason"], "bad_response");
}

#[tokio::test]
async fn backends_on_http2_alone_take_no_websocket() {
    let origin = Origin2::start("a", None).await;
    let yaml = format!("{LISTENER}\nupstreams: {{ app: {{ backends: [<origin>], protocol: h2c }} }}");
    let proxy = Config::new(&yaml).put("origin", origin.address).start().await;
    let client = Client2::prior(proxy.listen).await;
    let (response, _stream) = open(&client).await;
    assert_eq!(within("the answer", response).await.expect("an answer").status(), 502);
    assert_eq!(proxy.access_log(1).await[0]["reason"], "upgrade_failed");
}

#[tokio::test]
async fn a_reset_and_silence_end_both_sides() {
    let origin = Origin::script("a", echoes).await;
    let proxy = before(&origin, "defaults: { timeouts: { websocket_idle: 300ms } }").await;
    let client = Client2::prior(proxy.listen).await;
    let (response, mut stream) = open(&client).await;
    let answer = within("the answer", response).await.expect("an answer");
    assert_eq!(answer.status(), 200);
    stream.send_reset(Reason::CANCEL);
    drop((answer, stream));
    wait_until("the backend's connection to end", || origin.open() == 0).await;
    let (response, _stream) = open(&client).await;
    let mut body = within("the answer", response).await.expect("an answer").into_body();
    let _ = within("the end", collect(&mut body)).await;
    wait_until("the backend's connection to end", || origin.open() == 0).await;
}

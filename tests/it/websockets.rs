//! WebSockets in the lane: the handshake is strict both ways, and after it bytes go on as they are, whoever ends first.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use crate::{
    streaming::{upgrade, websocket},
    support::{
        address,
        http1::{Client, Message},
        http2::Origin2,
        origin::{Origin, Peer},
        proxy::{Config, Proxy},
        tls::Ca,
        wait_until, within,
    },
};

const ASK: &str = "GET /ws HTTP/1.1\r\nHost: a.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                   Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
const MIB: usize = 1 << 20;

/// Something that an origin does with a socket once the handshake is done.
type Socket = tokio::io::BufStream<Box<dyn crate::support::http1::Io>>;

/// An origin that agrees to every handshake.
async fn agreeing<F>(then: impl Fn(Socket) -> F + Copy + Send + Sync + 'static) -> Origin
where
    F: Future<Output = ()> + Send + 'static,
{
    Origin::script("a", move |mut peer| async move {
        if peer.request().await.is_some() {
            peer.send(SWITCH).await;
            let (io, ahead) = peer.wire.into_parts();
            assert!(ahead.is_empty(), "before it was agreed to");
            then(tokio::io::BufStream::new(io)).await;
        }
    })
    .await
}

/// An origin that answers every handshake so, and what comes of it: the answer, and what was logged.
async fn answered(answer: &'static str) -> (Message, serde_json::Value, Origin) {
    let origin = Origin::script("a", move |mut peer: Peer| async move {
        while peer.request().await.is_some() {
            peer.send(answer).await;
        }
    })
    .await;
    let proxy = lane(&origin, "").await;
    let mut client = proxy.client().await;
    client.send(ASK).await;
    let reply = client.response().await;
    assert_eq!(client.closed().await, b"", "after {answer:?}");
    let line = proxy.access_log(1).await.remove(0);
    (reply, line, origin)
}

async fn lane(origin: &Origin, upstream: &str) -> Proxy {
    let yaml = "
        engine: lane
        upstreams: { app: { backends: [\"<a>\"]<more> } }";
    Config::new(yaml).put("a", &origin.address).put("more", upstream).start().await
}

async fn opened(proxy: &Proxy) -> Client {
    let mut client = proxy.client().await;
    client.send(ASK).await;
    assert_eq!(client.response_head().await.status(), 101);
    client
}

#[tokio::test]
async fn both_ends_are_told_of_the_upgrade_once_and_of_nothing_that_is_between_neighbours() {
    let origin = Origin::script("a", |mut peer| async move {
        if peer.request().await.is_some() {
            peer.send("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").await;
            peer.send(
                "HTTP/1.1 101 Go On\r\nupgrade: WebSocket\r\nKeep-Alive: timeout=5\r\nconnection: x-hop, upgrade\r\nX-Hop: 1\r\n\
                 Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: chat\r\n\r\n",
            )
            .await;
            peer.wire.rest().await;
        }
    })
    .await;
    let proxy = lane(&origin, "").await;
    let mut client = proxy.client().await;
    client
        .send(
            "GET /ws?a=b HTTP/1.1\r\nHost: a.test\r\nupgrade: WebSocket\r\nConnection: keep-alive\r\nKeep-Alive: 5\r\n\
             connection: x-hop, UPGRADE\r\nX-Hop: 1\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat, superchat\r\n\r\n",
        )
        .await;
    assert_eq!(client.any_response().await.status(), 103);
    let reply = client.response_head().await;
    assert_eq!(reply.start, "HTTP/1.1 101 Go On");
    let told = |message: &Message, name: &str| message.field(name).map(str::to_owned).unwrap_or_default();
    let seen = origin.only_request();
    assert_eq!((seen.method(), seen.target()), ("GET", "/ws?a=b"));
    for message in [&seen, &reply] {
        assert_eq!((told(message, "connection"), told(message, "upgrade")), ("Upgrade".into(), "websocket".into()));
        for hop in ["x-hop", "keep-alive", "content-length", "transfer-encoding"] {
            assert_eq!(message.field(hop), None, "{message:?}");
        }
    }
    assert_eq!(told(&seen, "sec-websocket-key"), "dGhlIHNhbXBsZSBub25jZQ==");
    assert_eq!(told(&seen, "sec-websocket-version"), "13");
    assert_eq!(told(&seen, "sec-websocket-protocol"), "chat, superchat");
    assert_eq!(told(&seen, "x-forwarded-for"), "127.0.0.1");
    assert_eq!(told(&reply, "sec-websocket-accept"), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    assert_eq!(told(&reply, "sec-websocket-protocol"), "chat");
}

#[tokio::test]
async fn a_tls_backend_is_asked_in_http_1_1_whatever_else_it_speaks() {
    let ca = Ca::new();
    let leaf = ca.issue(&["origin.test"]);
    for alpn in [&["http/1.1"][..], &["h2", "http/1.1"], &[]] {
        let origin = Origin::tls_script("a", leaf.server(alpn), websocket).await;
        let secure = address::unused();
        let yaml = "
            engine: lane
            certificates: { main: <main> }
            listeners: [{ address: <listen> }, { address: \"<tls>\", tls: { certificates: [main] } }]
            upstreams: { app: { backends: [\"<a>\"], tls: { sni: origin.test, ca: <ca> } } }";
        let config = Config::new(yaml).put("tls", secure).put("a", &origin.address);
        let main = ca.issue(&["a.test"]).write(config.dir(), "main");
        let path = ca.write(config.dir());
        let proxy = config.put("main", main).put("ca", path.display()).start().await;
        for mut client in [proxy.client().await, Client::tls(secure, "a.test", &ca.client(&["http/1.1"])).await] {
            upgrade(&mut client).await;
            for size in [1, 125, 300_000] {
                let frame: Vec<u8> = (0..size).map(|n| (n % 251) as u8).collect();
                client.send(&frame).await;
                assert!(within("the echo", client.wire.take(size)).await.expect("an echo") == frame, "{size} bytes");
            }
            client.wire.finish().await.expect("end");
            assert_eq!(client.closed().await, b"");
        }
        let lines = proxy.access_log(2).await;
        assert!(lines.iter().all(|line| line["reason"] == "ok" && line["status"] == 101), "{lines:?}");
    }
}

#[tokio::test]
async fn a_handshake_may_come_in_any_two_pieces_on_either_side() {
    let origin = Origin::script("a", |mut peer| async move {
        let Some(request) = peer.request().await else { return };
        let at = request.target().trim_start_matches('/').parse().unwrap_or(0).min(SWITCH.len());
        peer.send(&SWITCH[..at]).await;
        tokio::time::sleep(Duration::from_millis(3)).await;
        peer.send(&SWITCH[at..]).await;
        peer.send("hello").await;
        let got = peer.wire.take(5).await;
        assert_eq!(got.expect("what the client sent"), b"world");
        peer.wire.rest().await;
    })
    .await;
    let proxy = lane(&origin, "").await;
    let mut all = tokio::task::JoinSet::new();
    for at in 0..ASK.len() + 3 {
        let listen = proxy.listen;
        all.spawn(async move {
            let ask = ASK.replace("/ws", &format!("/{at}")) + "world";
            let mut client = Client::connect(listen).await;
            client.send(&ask[..at]).await;
            tokio::time::sleep(Duration::from_millis(3)).await;
            client.send(&ask[at..]).await;
            let reply = client.response_head().await;
            assert_eq!(reply.status(), 101, "cut at {at}");
            assert_eq!(within("what was behind it", client.wire.take(5)).await.expect("all"), b"hello", "cut at {at}");
            client.wire.finish().await.expect("end");
            assert_eq!(client.closed().await, b"");
        });
    }
    all.join_all().await;
}

#[tokio::test]
async fn what_a_client_sends_early_waits_for_the_answer_and_what_a_backend_does_goes_on() {
    let origin = Origin::script("a", |mut peer| async move {
        if peer.request().await.is_none() {
            return;
        }
        let (mut io, ahead) = peer.wire.into_parts();
        assert!(ahead.is_empty(), "{ahead:?}");
        let early = tokio::time::timeout(Duration::from_millis(100), io.read_u8()).await;
        assert!(early.is_err(), "before it was agreed to");
        io.write_all([SWITCH, "at once"].concat().as_bytes()).await.expect("room");
        let (mut reader, mut writer) = tokio::io::split(io);
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
        let _ = writer.shutdown().await;
    })
    .await;
    let proxy = lane(&origin, "").await;
    // More than is kept before the answer has to wait with the client.
    for size in [5, 300_000] {
        let early: Vec<u8> = (0..size).map(|n| (n % 253) as u8).collect();
        let (mut reader, mut writer) = tokio::io::split(proxy.client().await.wire.into_parts().0);
        let sends = async { writer.write_all(&[ASK.as_bytes(), &early].concat()).await.expect("room") };
        let expected = [SWITCH.as_bytes(), b"at once", &early].concat();
        let mut all = vec![0; expected.len()];
        within("the echo", async { tokio::join!(sends, reader.read_exact(&mut all)).1.expect("all of it") }).await;
        assert!(all == expected, "{size} bytes");
        writer.shutdown().await.expect("end");
        assert_eq!(within("the end", reader.read(&mut all)).await.expect("the end"), 0);
    }
}

#[tokio::test]
async fn a_refused_handshake_is_an_answer_and_ends_the_clients_connection_alone() {
    let origin = Origin::script("a", |mut peer| async move {
        while let Some(request) = peer.request().await {
            let status = if request.field("upgrade").is_some() { 403 } else { 200 };
            peer.reply(status, "Connection: keep-alive\r\nUpgrade: websocket\r\n", "no").await;
        }
    })
    .await;
    let yaml = "
        engine: lane
        threads: 1
        upstreams: { app: { backends: [\"<a>\"] } }";
    let proxy = Config::new(yaml).put("a", &origin.address).start().await;
    for _ in 0..3 {
        let mut client = proxy.client().await;
        // Frames that nobody agreed to; for HTTP they would be another request.
        client.send([ASK, "GET /smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n"].concat()).await;
        let reply = client.response().await;
        assert_eq!((reply.status(), reply.text().as_str()), (403, "no"));
        assert_eq!((reply.field("connection"), reply.field("upgrade")), (Some("close"), None));
        assert_eq!(client.closed().await, b"");
        assert_eq!(proxy.get("/").await.status(), 200);
    }
    assert_eq!(origin.count("/smuggled"), 0);
    assert_eq!(origin.connections(), 1, "the backend's goes on");
}

#[tokio::test]
async fn an_answer_without_a_length_to_a_handshake_is_whole() {
    let origin = Origin::script("a", |mut peer| async move {
        if peer.request().await.is_some() {
            peer.send("HTTP/1.1 426 Upgrade Required\r\nSec-WebSocket-Version: 8\r\n\r\nanother version").await;
        }
    })
    .await;
    let proxy = lane(&origin, "").await;
    let mut client = proxy.client().await;
    let reply = client.ask(ASK).await;
    assert_eq!((reply.status(), reply.text().as_str()), (426, "another version"));
    assert_eq!(reply.field("sec-websocket-version"), Some("8"));
    assert_eq!(client.closed().await, b"");
}

#[tokio::test]
async fn a_switch_that_is_not_the_one_asked_for_is_502() {
    for answer in [
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: h2c\r\nConnection: Upgrade\r\n\r\nsecret",
        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n\r\nsecret",
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\nsecret",
        "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nsecret",
        "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 6\r\n\r\nsecret",
        "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nsecret\r\n",
        "HTTP/1.1 101 X\r\nUpgrade: websocket\nConnection: Upgrade\r\n\r\nsecret",
        "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\nsecret\r\n\r\n",
        "HTTP/1.1 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX: a\r\n folded\r\n\r\nsecret",
        "HTTP/1.1 101 X\r\nUpgrade : websocket\r\nConnection: Upgrade\r\n\r\nsecret",
        "HTTP/1.0 101 X\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\nsecret",
    ] {
        let (reply, line, origin) = answered(answer).await;
        assert_eq!((reply.status(), reply.field("connection")), (502, Some("close")), "{answer:?}");
        assert!(!reply.text().contains("secret"), "{reply:?}");
        assert_eq!((&line["status"], &line["reason"]), (&502.into(), &"bad_response".into()), "{answer:?}");
        wait_until("the origin to be left", || origin.open() == 0).await;
    }
}

#[tokio::test]
async fn the_end_of_either_side_is_told_to_the_other_which_may_go_on() {
    // The client first.
    let origin = agreeing(|mut socket| async move {
        let mut got = Vec::new();
        socket.read_to_end(&mut got).await.expect("to the end");
        assert_eq!(got, b"last words");
        socket.write_all(b"heard").await.expect("room");
        socket.shutdown().await.expect("end");
    })
    .await;
    let proxy = lane(&origin, "").await;
    let mut client = opened(&proxy).await;
    client.send("last words").await;
    client.wire.finish().await.expect("end");
    assert_eq!(client.closed().await, b"heard");
    let line = proxy.access_log(1).await.remove(0);
    assert_eq!((&line["status"], &line["reason"]), (&101.into(), &"ok".into()), "{line}");
    assert_eq!((&line["bytes_received"], &line["bytes"]), (&10.into(), &5.into()), "{line}");
    // The backend first.
    let origin = agreeing(|mut socket| async move {
        socket.write_all(b"last words").await.expect("room");
        socket.shutdown().await.expect("end");
        let mut got = Vec::new();
        socket.read_to_end(&mut got).await.expect("to the end");
        assert_eq!(got, b"heard");
    })
    .await;
    let proxy = lane(&origin, "").await;
    let mut client = opened(&proxy).await;
    assert_eq!(client.closed().await, b"last words");
    client.send("heard").await;
    client.wire.finish().await.expect("end");
    let line = proxy.access_log(1).await.remove(0);
    assert_eq!((&line["bytes_received"], &line["reason"]), (&5.into(), &"ok".into()), "{line}");
    wait_until("the origin to be left", || origin.open() == 0).await;
}

#[tokio::test]
async fn who_is_left_by_one_that_vanished_is_told_so() {
    let origin = agreeing(|mut socket| async move {
        let _ = socket.read_u8().await;
    })
    .await;
    let proxy = lane(&origin, "").await;
    let mut client = opened(&proxy).await;
    client.send("x").await;
    assert_eq!(client.closed().await, b"", "of a backend that ends");
    drop(client);
    proxy.access_log(1).await;
    let origin = Origin::script("a", |mut peer| async move {
        if peer.request().await.is_some() {
            peer.send(SWITCH).await;
            let _ = peer.wire.take(1).await;
            peer.reset();
        }
    })
    .await;
    let proxy = lane(&origin, "").await;
    let mut client = opened(&proxy).await;
    client.send("x").await;
    assert_eq!(client.closed().await, b"", "of a backend that breaks");
    assert_eq!(proxy.access_log(1).await.remove(0)["reason"], "response_truncated");
}

#[tokio::test]
async fn a_side_that_takes_nothing_holds_up_the_other_and_no_memory() {
    const FAR_MORE: usize = 64 * MIB;
    // The client is not read for while the backend does not read, and the other way round.
    let origin = agreeing(|mut socket| async move {
        if socket.read_u8().await.is_ok_and(|first| first == b'd') {
            let part = vec![7; MIB];
            for _ in 0..FAR_MORE / MIB {
                if socket.write_all(&part).await.is_err() {
                    return;
                }
            }
            let _ = socket.shutdown().await;
            let _ = socket.read_u8().await;
            return;
        }
        let (mut all, mut part) = (0, vec![0; 64 << 10]);
        tokio::time::sleep(Duration::from_millis(500)).await;
        while let Ok(read @ 1..) = socket.read(&mut part).await {
            all += read;
        }
        let _ = socket.write_all(all.to_string().as_bytes()).await;
        let _ = socket.shutdown().await;
    })
    .await;
    let proxy = lane(&origin, "").await;
    let before = proxy.resident_own();
    let mut reader = opened(&proxy).await;
    reader.send("d").await;
    let mut writer = opened(&proxy).await;
    let sends = async {
        writer.send("u").await;
        let part = vec![7; MIB];
        for _ in 0..FAR_MORE / MIB {
            within("room", writer.wire.send(&part)).await.expect("room");
        }
        writer.wire.finish().await.expect("end");
        String::from_utf8(writer.closed().await).expect("a number")
    };
    assert_eq!(sends.await, FAR_MORE.to_string());
    let most = proxy.resident_own().saturating_sub(before);
    assert!(most < 8 * MIB as u64, "{most} bytes for two WebSockets");
    assert_eq!(reader.closed().await.len(), FAR_MORE, "whole, for a slow reader");
}

#[tokio::test]
async fn silence_ends_a_websocket_of_a_client_that_takes_nothing_too() {
    let origin = agreeing(|mut socket| async move {
        let part = vec![7; MIB];
        while socket.write_all(&part).await.is_ok() {}
    })
    .await;
    let proxy = lane(&origin, ", timeouts: { websocket_idle: 500ms }").await;
    let _client = opened(&proxy).await;
    wait_until("the origin to be left", || origin.open() == 0).await;
    assert_eq!(proxy.access_log(1).await.remove(0)["reason"], "read_timeout");
}

#[tokio::test]
async fn many_idle_websockets_hold_no_buffers() {
    let origin = agreeing(|mut socket| async move {
        let mut part = [0; 64];
        while let Ok(read @ 1..) = socket.read(&mut part).await {
            if socket.write_all(&part[..read]).await.is_err() || socket.flush().await.is_err() {
                return;
            }
        }
    })
    .await;
    let proxy = lane(&origin, "").await;
    let mut open = Vec::new();
    for _ in 0..50 {
        open.push(opened(&proxy).await);
    }
    let before = proxy.resident_own();
    const MORE: u64 = 300;
    for _ in 0..MORE {
        let mut client = opened(&proxy).await;
        client.send("hello").await;
        assert_eq!(within("the echo", client.wire.take(5)).await.expect("an echo"), b"hello");
        open.push(client);
    }
    let each = proxy.resident_own().saturating_sub(before) / MORE;
    // In a debug build; a buffer would be 4 KiB and more for each side.
    assert!(each < 8 * 1024, "{each} bytes for each");
    eprintln!("{each} bytes for each idle WebSocket");
}

#[tokio::test]
async fn a_handshake_that_met_a_stale_connection_is_sent_again() {
    let origin = Origin::script("a", |mut peer| async move {
        let Some(first) = peer.request().await else { return };
        if first.field("upgrade").is_none() {
            peer.reply(200, "", "a").await;
            // Whatever comes next on this connection is not answered.
            return drop(peer.request().await);
        }
        peer.send(SWITCH).await;
        peer.wire.rest().await;
    })
    .await;
    let yaml = "
        engine: lane
        threads: 1
        upstreams: { app: { backends: [\"<a>\"] } }";
    let proxy = Config::new(yaml).put("a", &origin.address).start().await;
    assert_eq!(proxy.get("/").await.status(), 200);
    let mut client = opened(&proxy).await;
    client.wire.finish().await.expect("end");
    assert_eq!(client.closed().await, b"");
    assert_eq!(origin.connections(), 2);
    assert_eq!(proxy.access_log(2).await[1]["attempts"], 2);
}

#[tokio::test]
async fn backends_on_http2_have_no_upgrade_and_the_client_is_told() {
    let origin = Origin2::start("a", None).await;
    for engine in ["lane", "exchange", "pingora"] {
        let yaml = "
            engine: <engine>
            upstreams: { app: { backends: [\"<a>\"], protocol: h2c } }";
        let proxy = Config::new(yaml).put("a", origin.address).put("engine", engine).start().await;
        let reply = proxy.client().await.ask(ASK).await;
        assert_eq!((reply.status(), reply.field("connection")), (502, Some("close")), "{engine}: {reply:?}");
        assert_eq!(proxy.access_log(1).await.remove(0)["reason"], "upgrade_failed", "{engine}");
    }
}

#[tokio::test]
async fn a_request_of_another_method_than_get_asks_for_no_websocket() {
    let origin = Origin::echo("a").await;
    for engine in ["lane", "exchange", "pingora"] {
        let yaml = "engine: <engine>\nupstreams: { app: { backends: [<a>] } }\n";
        let proxy = Config::new(yaml).put("engine", engine).put("a", &origin.address).start().await;
        let mut client = Client::connect(proxy.listen).await;
        let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n";
        let post = format!("POST /{engine} HTTP/1.1\r\nHost: a.test\r\n{upgrade}Content-Length: 0\r\n\r\n");
        assert_eq!(client.ask(post).await.status(), 200, "{engine}");
        // What comes behind it is the next request.
        assert_eq!(client.get("/next").await.status(), 200, "{engine}");
        let path = format!("/{engine}");
        let seen = origin.requests().into_iter().find(|seen| seen.target() == path).expect("a request");
        assert_eq!((seen.method(), seen.field("upgrade")), ("POST", None));
    }
}

//! Bodies that are long, slow or never end, and connections that stop being HTTP.

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{
    http1::{Client, get},
    http2::{Client2, Origin2, collect, push, request},
    origin::{Origin, Peer},
    proxy::{Config, Proxy},
    tls::Ca,
    wait_until, within,
};

const MIB: u64 = 1 << 20;
const GROWTH: u64 = 64 * MIB;

/// Answers with the number of body bytes; does not keep them.
async fn count(mut peer: Peer) {
    while let Some(request) = peer.request().await {
        peer.reply(200, "", &request.length.to_string()).await;
    }
}

/// Uploads a body of this size while reading the answer, whose text is given.
async fn upload(client: Client, size: u64, chunked: bool) -> String {
    let (reader, mut writer) = tokio::io::split(client.wire.into_parts().0);
    let sending = async move {
        let framing = if chunked { "Transfer-Encoding: chunked".to_owned() } else { format!("Content-Length: {size}") };
        let head = format!("POST /up HTTP/1.1\r\nHost: a.test\r\n{framing}\r\n\r\n");
        writer.write_all(head.as_bytes()).await.expect("send the head");
        let block = vec![b'x'; 256 << 10];
        let mut left = size;
        while left > 0 {
            let now = &block[..block.len().min(usize::try_from(left).unwrap_or(usize::MAX))];
            if chunked {
                writer.write_all(format!("{:x}\r\n", now.len()).as_bytes()).await.expect("send a size");
            }
            writer.write_all(now).await.expect("send the body");
            if chunked {
                writer.write_all(b"\r\n").await.expect("send an end");
            }
            left -= now.len() as u64;
        }
        if chunked {
            writer.write_all(b"0\r\n\r\n").await.expect("send the end");
        }
        writer
    };
    let mut wire = crate::support::http1::Wire::new(tokio::io::join(reader, tokio::io::sink()));
    let receiving = async {
        let mut reply = wire.head().await.expect("an answer").expect("an answer");
        wire.body(&mut reply).await.expect("a body");
        assert_eq!(reply.status(), 200, "{reply:?}");
        reply.text()
    };
    tokio::join!(sending, receiving).1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_pass_both_ways() {
    let origin = Origin::script("a", count).await;
    let proxy = Proxy::before(&[&origin]).await;
    for chunked in [false, true] {
        let size = 64 * MIB + 1;
        let told = within("the upload", upload(proxy.client().await, size, chunked)).await;
        assert_eq!(told, size.to_string());
    }
    let source = Origin::echo("b").await;
    let proxy = Proxy::before(&[&source]).await;
    let mut client = proxy.client().await;
    assert_eq!(client.get(&format!("/size/{}", 64 * MIB + 1)).await.length, 64 * MIB + 1);
    assert_eq!(client.get("/").await.text(), "b");
}

/// A body in which no part is like another.
fn numbered(size: usize) -> Vec<u8> {
    (0..size.div_ceil(8)).flat_map(|n| (n as u64).to_le_bytes()).take(size).collect()
}

/// Sends back what it gets; to `/half` only half of it.
async fn mirrors(mut peer: Peer) {
    while let Some(request) = peer.request_head().await {
        let size = request.field("content-length").map_or(0, |size| size.parse().expect("a number"));
        let Ok(body) = peer.wire.take(size).await else { return };
        peer.send(format!("HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n")).await;
        if request.target() == "/half" {
            peer.send(&body[..size / 2]).await;
            return;
        }
        peer.send(&body).await;
    }
}

/// From some size on they go past the proxy's memory.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_all_sizes_come_as_they_were_sent_and_nothing_else_with_them() {
    let origin = Origin::script("a", mirrors).await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    for size in [1, 4 << 10, (64 << 10) + 7, 200 << 10, 640 << 10, (1 << 20) + 1, 5 << 20] {
        let body = numbered(size);
        // The next request is on its way before the body has left.
        let mut sent = format!("PUT /it HTTP/1.1\r\nHost: a.test\r\nContent-Length: {size}\r\n\r\n").into_bytes();
        sent.extend_from_slice(&body);
        sent.extend_from_slice(b"PUT /next HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\n\r\nafter");
        let (reader, mut writer) = tokio::io::split(client.wire.into_parts().0);
        let sending = async move {
            writer.write_all(&sent).await.expect("send");
            writer
        };
        let mut wire = crate::support::http1::Wire::new(tokio::io::join(reader, tokio::io::sink()));
        let receiving = async {
            let head = wire.head().await.expect("an answer").expect("an answer");
            assert_eq!((head.status(), head.field("content-length")), (200, Some(&*size.to_string())));
            assert!(wire.take(size).await.expect("a body") == body, "another body of {size} bytes");
            wire.head().await.expect("an answer").expect("an answer");
            assert_eq!(wire.take(5).await.expect("a body"), b"after");
        };
        within("both ways", async { tokio::join!(sending, receiving) }).await;
        client = proxy.client().await;
    }
}

/// What has not left of a body that broke off must not come to the next one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_body_that_breaks_off_leaves_nothing_behind() {
    let origin = Origin::script("a", mirrors).await;
    let proxy = Config::before(&[&origin], "threads: 1").start().await;
    let body = numbered(4 << 20);
    let put = |path: &str| format!("PUT {path} HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n", body.len());
    for round in 0..4 {
        // By the origin, in the answer.
        let mut client = proxy.client().await;
        client.send(put("/half")).await;
        client.send(&body).await;
        let answer = within("the end", client.closed()).await;
        let at = answer.windows(4).position(|four| four == b"\r\n\r\n").expect("a head") + 4;
        assert!(answer[at..] == body[..body.len() / 2], "{} bytes of half the body", answer.len() - at);
        // By the client, in its request and in the answer.
        let mut client = proxy.client().await;
        client.send(put("/cut")).await;
        client.send(&body[..body.len() / 2]).await;
        drop(client);
        let mut client = proxy.client().await;
        client.send(put("/left")).await;
        client.send(&body).await;
        client.wire.take(1 << 20).await.expect("the beginning");
        drop(client);
        let mut client = proxy.client().await;
        client.send(put("/whole")).await;
        client.send(&body).await;
        assert_eq!(client.response_head().await.status(), 200);
        let whole = within("the body", client.wire.take(body.len())).await.expect("a body");
        assert!(whole == body, "another body in round {round}");
    }
}

/// Pingora looks at its client only when the origin has answered, where the upload's last part filled its queue.
#[tokio::test]
async fn an_origin_is_left_when_its_client_leaves_after_a_long_upload() {
    for engine in ["engine: lane", "engine: exchange"] {
        let origin = Origin::script("a", |mut peer: Peer| async move {
            if peer.request().await.is_some() {
                peer.wire.rest().await;
            }
        })
        .await;
        let proxy = Config::before(&[&origin], engine).start().await;
        let mut client = proxy.client().await;
        client.send(format!("PUT / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {MIB}\r\n\r\n")).await;
        client.send(vec![b'x'; 1 << 20]).await;
        wait_until("the upload's end", || origin.total() == 1).await;
        drop(client);
        wait_until("the origin to be left", || origin.open() == 0).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_gibibytes_up_and_down_take_no_memory() {
    let size = 2048 * MIB;
    let (sink, source) = (Origin::script("a", count).await, Origin::echo("b").await);
    let yaml = "
        upstreams: { up: { backends: [\"<a>\"] }, down: { backends: [\"<b>\"] } }
        routes:
          - { match: { path: /up }, upstream: up }
          - { upstream: down }";
    let proxy = Config::new(yaml).put("a", &sink.address).put("b", &source.address).start().await;
    proxy.get("/").await;
    let before = proxy.resident();
    let mut most = 0;
    let up = upload(proxy.client().await, size, false);
    let told = watched(&proxy, up, &mut most).await;
    assert_eq!(told, size.to_string());
    let mut client = proxy.client().await;
    client.send(get(&format!("/size/{size}"))).await;
    let down = watched(&proxy, client.try_response(true), &mut most).await.expect("an answer");
    assert_eq!(down.length, size);
    let growth = most.saturating_sub(before);
    assert!(growth < GROWTH, "grew by {} MiB", growth / MIB);
}

/// Runs a transfer to its end and notes the most memory the proxy had meanwhile.
async fn watched<T>(proxy: &Proxy, transfer: impl Future<Output = T>, most: &mut u64) -> T {
    let mut transfer = std::pin::pin!(transfer);
    let mut tick = tokio::time::interval(std::time::Duration::from_millis(20));
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(120);
    loop {
        tokio::select! {
            done = &mut transfer => return done,
            _ = tick.tick() => *most = (*most).max(proxy.resident()),
            () = tokio::time::sleep_until(deadline) => panic!("2 GiB took more than two minutes"),
        }
    }
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_up_the_origin_and_not_the_memory() {
    let origin = Origin::echo("b").await;
    let proxy = Proxy::before(&[&origin]).await;
    let before = proxy.resident();
    let mut client = proxy.client().await;
    client.send(get(&format!("/size/{}", 512 * MIB))).await;
    let head = client.response_head().await;
    assert_eq!(head.status(), 200);
    let mut last = 0;
    let mut still = 0;
    wait_until("the memory to settle", || {
        let now = proxy.resident();
        still = if now == last { still + 1 } else { 0 };
        last = now;
        still > 40
    })
    .await;
    assert!(last.saturating_sub(before) < GROWTH, "grew by {} MiB", last.saturating_sub(before) / MIB);
}

/// To `/echo` each part of the body as it comes; to all else 24 MiB before any of the body is read, and its end after that.
async fn talks(mut peer: Peer) {
    const HEAD: &str = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
    let part = |data: &[u8]| [format!("{:x}\r\n", data.len()).as_bytes(), data, b"\r\n"].concat();
    while let Some(mut request) = peer.request_head().await {
        peer.send(HEAD).await;
        if request.target() == "/echo" {
            loop {
                let size = usize::from_str_radix(&peer.wire.line().await.expect("a size"), 16).expect("a size");
                let data = peer.wire.take(size).await.expect("data");
                peer.wire.line().await.expect("the end of the chunk");
                if size == 0 {
                    break;
                }
                peer.send(part(&data)).await;
            }
        } else {
            for _ in 0..24 {
                peer.send(part(&vec![b'x'; 1 << 20])).await;
            }
            peer.wire.body(&mut request).await.expect("a body");
        }
        peer.send("0\r\n\r\n").await;
    }
}

/// Uploads so much over HTTP/2 and reads meanwhile; how many bytes came.
async fn both_ways(client: &Client2, path: &str, size: usize) -> usize {
    let (answer, mut body) = client.open(request("POST", path), false).await.expect("a stream");
    let sending = tokio::spawn(async move { push(&mut body, vec![b'x'; size].into(), true).await });
    let (_, mut answer) = answer.await.expect("an answer").into_parts();
    let read = collect(&mut answer).await.expect("all of it").0.len();
    sending.await.expect("no panic").expect("all of it was taken");
    read
}

/// With less room between than is on its way: nobody who reads holds up the other direction.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_ways_at_once_never_stand_still() {
    const SIZE: usize = 48 << 20;
    let origin = Origin::script("a", talks).await;
    let yaml = "listeners: [{ address: <listen>, h2c: true }]\nengine: exchange";
    let proxy = Config::before(&[&origin], yaml).start().await;
    let client = Client2::prior(proxy.listen).await;
    assert_eq!(within("an echo", both_ways(&client, "/echo", SIZE)).await, SIZE);
    assert_eq!(within("24 MiB first", both_ways(&client, "/first", SIZE)).await, 24 << 20);
    for size in [SIZE as u64, 8 * MIB] {
        // Whole; the reader keeps the beginning.
        let text = within("24 MiB first", upload(proxy.client().await, size, true)).await;
        assert!(text.len() >= 1 << 20, "{} bytes", text.len());
    }
}

#[tokio::test]
async fn http2_bodies_pass_both_ways() {
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], "listeners: [{ address: <listen>, h2c: true }]").start().await;
    let client = Client2::prior(proxy.listen).await;
    assert_eq!(client.get(&format!("/size/{}", 8 * MIB)).await.body.len() as u64, 8 * MIB);
    let part = Bytes::from(vec![b'y'; 250_000]);
    let reply = client.send(request("POST", "/p"), vec![part.clone(), part], None).await;
    assert_eq!(reply.body, vec![b'y'; 500_000]);
}

/// Accepts a WebSocket upgrade and echoes bytes.
pub async fn websocket(mut peer: Peer) {
    let Some(request) = peer.request().await else { return };
    assert_eq!(request.field("sec-websocket-key"), Some("dGhlIHNhbXBsZSBub25jZQ=="));
    peer.send(
        "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
               Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n",
    )
    .await;
    let (io, ahead) = peer.wire.into_parts();
    let (mut reader, mut writer) = tokio::io::split(io);
    let _ = writer.write_all(&ahead).await;
    let _ = tokio::io::copy(&mut reader, &mut writer).await;
    let _ = writer.shutdown().await;
}

/// Asks for a WebSocket and expects it.
pub async fn upgrade(client: &mut Client) {
    client
        .send(
            "GET /ws HTTP/1.1\r\nHost: a.test\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\
               Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n",
        )
        .await;
    let reply = client.any_response().await;
    assert_eq!(reply.status(), 101, "{reply:?}");
    assert_eq!(reply.field("sec-websocket-accept"), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
    assert_eq!(reply.field("upgrade").map(str::to_lowercase).as_deref(), Some("websocket"));
}

#[tokio::test]
async fn a_websocket_echoes_frames_of_any_size() {
    let origin = Origin::script("a", websocket).await;
    let (ca, yaml) = (
        Ca::new(),
        "
        certificates: { main: <main> }
        listeners: [{ address: <listen> }, { address: \"<tls>\", tls: { certificates: [main] } }]",
    );
    let secure = crate::support::address::unused();
    let config = Config::before(&[&origin], yaml).put("tls", secure);
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    for mut client in [proxy.client().await, Client::tls(secure, "a.test", &ca.client(&["http/1.1"])).await] {
        upgrade(&mut client).await;
        for size in [1, 125, 70_000] {
            let frame = vec![0x82; size];
            client.send(&frame).await;
            assert!(within("the echo", client.wire.take(size)).await.expect("an echo") == frame, "{size} bytes");
        }
        client.wire.finish().await.expect("end");
        assert_eq!(client.closed().await, b"");
    }
}

#[tokio::test]
async fn grpc_passes_with_trailers_both_ways() {
    let ca = Ca::new();
    let leaf = ca.issue(&["origin.test"]);
    for (origin, backend) in [
        (Origin2::start("plain", None).await, "protocol: h2c"),
        (Origin2::start("tls", Some(leaf.server(&["h2"]))).await, "tls: { sni: origin.test, ca: <ca> }"),
    ] {
        let yaml = "
            listeners: [{ address: <listen>, h2c: true }]
            upstreams: { app: { backends: [\"<a>\"], <backend> } }";
        let config = Config::new(yaml).put("a", origin.address).put("backend", backend);
        let path = ca.write(config.dir());
        let proxy = config.put("ca", path.display()).start().await;
        let client = Client2::prior(proxy.listen).await;
        let mut call = request("POST", "/pkg.Service/Method");
        call.headers_mut().insert("content-type", "application/grpc".parse().expect("a value"));
        call.headers_mut().insert("te", "trailers".parse().expect("a value"));
        // Bidirectional: the answer begins before the request has ended.
        let (response, mut sending) = client.open(call, false).await.expect("a stream");
        push(&mut sending, Bytes::from_static(b"one"), false).await.expect("send");
        let (head, mut body) = within("the head", response).await.expect("an answer").into_parts();
        assert_eq!(head.status, 200);
        assert_eq!(within("the echo", body.data()).await.expect("data").expect("data"), "one");
        push(&mut sending, Bytes::from_static(b"two"), false).await.expect("send");
        sending.send_data(Bytes::new(), true).expect("the end");
        let (rest, trailers) = within("the end", collect(&mut body)).await.expect("the rest");
        assert_eq!(rest, b"two");
        let trailers = trailers.expect("trailers");
        assert_eq!(
            (&trailers["grpc-status"], &trailers["grpc-message"]),
            (&"0".parse().unwrap(), &"fine".parse().unwrap())
        );
        let seen = origin.requests().remove(0);
        assert_eq!(seen.headers["te"], "trailers");
    }
}

#[tokio::test]
async fn server_sent_events_are_passed_on_one_by_one() {
    let origin = Origin::script("a", |mut peer| async move {
        while peer.request().await.is_some() {
            peer.send("HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n").await;
            peer.send("8\r\ndata: 1\n\r\n").await;
            peer.held().await; // the second event comes only after the client has the first
            peer.send("8\r\ndata: 2\n\r\n0\r\n\r\n").await;
        }
    })
    .await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    client.send(get("/events")).await;
    let mut reply = client.response_head().await;
    assert_eq!(reply.field("content-type"), Some("text/event-stream"));
    while !reply.body.ends_with(b"data: 1\n") {
        within("the first event", client.wire.chunk(&mut reply)).await.expect("a chunk");
    }
    origin.release();
    while within("the rest", client.wire.chunk(&mut reply)).await.expect("a chunk").is_some() {}
    assert_eq!(reply.text(), "data: 1\ndata: 2\n");
}

#[tokio::test]
async fn a_request_body_is_passed_on_as_it_comes() {
    let origin = Origin::script("a", |mut peer| async move {
        let Some(mut request) = peer.request_head().await else { return };
        // Echoes each chunk before the next one was sent.
        peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
        while let Ok(Some(size)) = peer.wire.chunk(&mut request).await {
            let at = request.body.len() - usize::try_from(size).expect("small");
            let part = String::from_utf8_lossy(&request.body[at..]).into_owned();
            peer.send(format!("{size:x}\r\n{part}\r\n")).await;
        }
        peer.send("0\r\n\r\n").await;
    })
    .await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    client.send("POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n3\r\none\r\n").await;
    let mut reply = client.response_head().await;
    for part in ["one", "two", "end"] {
        while !reply.body.ends_with(part.as_bytes()) {
            within("the echo", client.wire.chunk(&mut reply)).await.expect("a chunk");
        }
        let next = if part == "one" {
            "3\r\ntwo\r\n"
        } else if part == "two" {
            "3\r\nend\r\n"
        } else {
            "0\r\n\r\n"
        };
        client.send(next).await;
    }
    assert_eq!(within("the end", client.wire.chunk(&mut reply)).await.expect("the last chunk"), None);
}

#[tokio::test]
async fn a_body_that_ends_with_the_connection_is_passed_on_whole() {
    let origin = Origin::script("a", |mut peer| async move {
        if peer.request().await.is_some() {
            peer.send(format!("HTTP/1.0 200 OK\r\n\r\n{}", "x".repeat(100_000))).await;
        }
    })
    .await;
    let proxy = Proxy::before(&[&origin]).await;
    assert_eq!(proxy.get("/").await.length, 100_000);
}

#[tokio::test]
async fn an_answer_before_the_requests_end_reaches_the_client() {
    let origin = Origin::script("a", |mut peer| async move {
        if peer.request_head().await.is_some() {
            peer.reply(413, "Connection: close\r\n", "too much").await;
            let _ = peer.wire.rest().await;
        }
    })
    .await;
    let proxy = Proxy::before(&[&origin]).await;
    let client = proxy.client().await;
    let (mut reader, mut writer) = tokio::io::split(client.wire.into_parts().0);
    let sender = tokio::spawn(async move {
        let _ = writer.write_all(b"POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100000000\r\n\r\n").await;
        while writer.write_all(&[0; 4096]).await.is_ok() {}
    });
    let mut answer = Vec::new();
    let read =
        async { while !answer.ends_with(b"too much") && reader.read_buf(&mut answer).await.is_ok_and(|n| n > 0) {} };
    within("the answer", read).await;
    sender.abort();
    assert!(answer.starts_with(b"HTTP/1.1 413"), "{}", String::from_utf8_lossy(&answer));
}

//! Clients who do nothing wrong. Before the origin that is always well each must get the right answer; before those that
//! die it is the right one, one that says what happened, or one that is seen to be cut off.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::HeaderValue;

use super::{
    IDLE,
    world::{Answer, Dice, World, answer, closed},
};
use crate::support::{
    http1::{Client, Message},
    http2::{Client2, Reply2, request},
};

/// What may become of a request while its origins die.
const MISFORTUNES: [&str; 10] = [
    "bad_response",
    "connect_failed",
    "connect_refused",
    "connect_timeout",
    "first_byte_timeout",
    "no_backend",
    "read_timeout",
    "reset_before_headers",
    "response_truncated",
    "write_timeout",
];

/// A request and what its answer must be.
struct Ask {
    place: &'static str,
    method: &'static str,
    path: String,
    fields: String,
    /// As it is meant, and as HTTP/1 sends it.
    body: Vec<u8>,
    framed: Vec<u8>,
    size: Option<usize>,
}

impl Ask {
    fn new(dice: &mut Dice) -> Self {
        let place = if dice.one_in(3) { "moody" } else { "steady" };
        let mut ask = Self {
            place,
            method: "GET",
            path: format!("/{place}/hello?n={}", dice.below(1000)),
            fields: String::new(),
            body: Vec::new(),
            framed: Vec::new(),
            size: None,
        };
        match dice.below(6) {
            0 => {}
            1 => ask.method = "HEAD",
            2 => {
                let size = dice.below(300_000);
                (ask.path, ask.size) = (format!("/{place}/size/{size}"), Some(size));
            }
            kind => {
                let most = if dice.one_in(4) { 60_000 } else { 2_000 };
                let size = dice.below(most) + 1;
                (ask.method, ask.body) = ("POST", dice.bytes(size));
                ask.path = format!("/{place}/{}", if dice.one_in(2) { "chunked" } else { "echo" });
                if kind == 3 {
                    ask.fields = "Transfer-Encoding: chunked\r\n".to_owned();
                    ask.framed = chunked(dice, &ask.body);
                } else {
                    ask.fields = format!("Content-Length: {size}\r\n");
                    ask.framed.clone_from(&ask.body);
                }
            }
        }
        ask
    }

    fn bytes(&self) -> Vec<u8> {
        let head = format!("{} {} HTTP/1.1\r\nHost: a.test\r\n{}\r\n", self.method, self.path, self.fields);
        [head.as_bytes(), &self.framed].concat()
    }

    /// Whether a body is what was asked for.
    fn is_right(&self, origin: &str, length: u64, body: &[u8]) -> bool {
        match self.size {
            Some(size) => length == size as u64 && body.iter().all(|byte| *byte == b'x'),
            None if self.method == "HEAD" => length == 0,
            None if self.body.is_empty() => body == origin.as_bytes(),
            None => body == self.body,
        }
    }

    fn judge(&self, world: &World, answer: &Answer) -> Result<(), String> {
        let message = match answer {
            Answer::Cut(message) if self.place == "moody" && message.status() == 200 => return Ok(()),
            Answer::Cut(message) => return Err(format!("cut off: {}", self.shown(message))),
            Answer::Whole(message) => message,
        };
        let told = message.field("proxy-status");
        let good = self.may_be(world, message.status(), message.origin(), told, message.length, &message.body);
        if good { Ok(()) } else { Err(self.shown(message)) }
    }

    fn may_be(&self, world: &World, status: u16, origin: &str, told: Option<&str>, length: u64, body: &[u8]) -> bool {
        match status {
            200 => self.is_right(origin, length, body),
            500 => self.place == "moody" && origin != "-",
            502..=504 => {
                self.place == "moody" && world.told(told).is_some_and(|word| MISFORTUNES.contains(&word.as_str()))
            }
            _ => false,
        }
    }

    fn shown(&self, message: &Message) -> String {
        let Message { start, fields, length, .. } = message;
        format!("{} {} of {} bytes: {start} {fields:?} with {length} bytes", self.method, self.path, self.body.len())
    }
}

/// A body in chunks of many sizes, some with extensions, some with a trailer.
fn chunked(dice: &mut Dice, mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while !body.is_empty() {
        let (now, rest) = body.split_at((dice.below(4000) + 1).min(body.len()));
        let extension = if dice.one_in(5) { ";a=\"b c\"" } else { "" };
        out.extend(format!("{:x}{extension}\r\n", now.len()).bytes());
        out.extend(now);
        out.extend(b"\r\n");
        body = rest;
    }
    out.extend(if dice.one_in(3) { &b"0\r\nX-Sum: 1\r\n\r\n"[..] } else { b"0\r\n\r\n" });
    out
}

/// HTTP/1.1: some requests on one connection, in one piece or several, one after the other or two at once.
pub async fn h1(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    let mut client = world.doors.h1(&mut dice).await.map_err(|error| format!("connect: {error}"))?;
    let mut last: Option<Instant> = None;
    for _ in 0..dice.below(15) + 1 {
        let mut asks = vec![Ask::new(&mut dice)];
        if dice.one_in(5) {
            asks.push(Ask::new(&mut dice));
        }
        // Where two are sent at once, the first must not end the connection.
        if asks.len() == 2 && asks.iter().any(|ask| ask.place == "moody") {
            asks.pop();
        }
        let bytes = asks.iter().flat_map(Ask::bytes).collect::<Vec<_>>();
        let sent = send(&mut client, &mut dice, &bytes).await;
        for ask in &asks {
            let Some(answer) = answer(&mut client, ask.method == "HEAD").await? else {
                // A connection that was idle for long may be closed at any moment.
                let idle = last.is_some_and(|last| last.elapsed() > IDLE / 2);
                return if idle { Ok(()) } else { Err(format!("no answer to {} ({sent:?})", ask.path)) };
            };
            ask.judge(&world, &answer)?;
            last = Some(Instant::now());
            let Answer::Whole(message) = answer else { return Ok(()) };
            if message.fields("connection").contains(&"close") {
                return Ok(());
            }
        }
        tokio::time::sleep(dice.millis(30)).await;
    }
    Ok(())
}

async fn send(client: &mut Client, dice: &mut Dice, bytes: &[u8]) -> std::io::Result<()> {
    if dice.one_in(2) {
        return client.wire.send(bytes).await;
    }
    let (first, second) = bytes.split_at(dice.below(bytes.len()));
    client.wire.send(first).await?;
    tokio::time::sleep(dice.millis(5)).await;
    client.wire.send(second).await
}

/// HTTP/2: some requests on one connection, up to three at a time, gRPC among them.
pub async fn h2(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    let client = world.doors.h2(&mut dice).await.map_err(|error| format!("connect: {error}"))?;
    for _ in 0..dice.below(5) + 1 {
        let dices = [0; 3].map(|_| Dice::new(dice.roll()));
        let [one, two, three] = dices.map(|dice| h2_exchange(&world, &client, dice));
        let (one, two, three) = tokio::join!(one, two, three);
        one.and(two).and(three)?;
    }
    Ok(())
}

async fn h2_exchange(world: &World, client: &Client2, mut dice: Dice) -> Result<(), String> {
    if dice.one_in(3) {
        return grpc(client, &mut dice).await;
    }
    let ask = Ask::new(&mut dice);
    let mut parts = Vec::new();
    let mut body = &ask.body[..];
    while !body.is_empty() {
        let (now, rest) = body.split_at((dice.below(9000) + 1).min(body.len()));
        parts.push(Bytes::copy_from_slice(now));
        body = rest;
    }
    match client.try_send(request(ask.method, &ask.path), parts, None).await {
        Ok(reply) => {
            let Reply2 { status, body, .. } = &reply;
            let (origin, told) = (reply.field("x-origin").unwrap_or("-"), reply.field("proxy-status"));
            if ask.may_be(world, *status, origin, told, body.len() as u64, body) {
                return Ok(());
            }
            Err(format!("{} {}: {status} {told:?} with {} bytes", ask.method, ask.path, body.len()))
        }
        Err(error) if ask.place == "moody" && error.is_reset() => Ok(()),
        Err(error) => Err(format!("{} {}: {error}", ask.method, ask.path)),
    }
}

async fn grpc(client: &Client2, dice: &mut Dice) -> Result<(), String> {
    let mut call = request("POST", "/grpc.Echo/Stream");
    call.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    call.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    let parts: Vec<_> = (0..dice.below(5) + 1).map(|_| Bytes::from(vec![7; dice.below(20_000) + 1])).collect();
    let length: usize = parts.iter().map(Bytes::len).sum();
    let reply = client.try_send(call, parts, None).await.map_err(|error| format!("gRPC: {error}"))?;
    let status = reply.trailers.as_ref().and_then(|trailers| trailers.get("grpc-status"));
    if (reply.status, reply.body.len(), status) == (200, length, Some(&HeaderValue::from_static("0"))) {
        return Ok(());
    }
    let Reply2 { status, headers, body, trailers } = reply;
    Err(format!("gRPC of {length} bytes: {status} {headers:?} with {} bytes, {trailers:?}", body.len()))
}

/// What asks for a WebSocket.
pub const UPGRADE: &str = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                           Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";

/// A WebSocket that echoes.
pub async fn websocket(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    let mut client = socket(&world, &mut dice).await?;
    for _ in 0..dice.below(10) {
        let size = dice.below(20_000) + 1;
        let frame = dice.bytes(size);
        let echo = async {
            client.wire.send(&frame).await?;
            client.wire.take(frame.len()).await
        };
        let echo = tokio::time::timeout(crate::support::PATIENCE, echo).await.map_err(|_| "no echo".to_owned())?;
        if echo.map_err(|error| format!("echo: {error}"))? != frame {
            return Err("another echo".to_owned());
        }
        tokio::time::sleep(dice.millis(50)).await;
    }
    if dice.one_in(2) {
        client.wire.finish().await.map_err(|error| format!("end: {error}"))?;
        closed(&mut client).await?;
    }
    Ok(())
}

/// An open WebSocket.
pub async fn socket(world: &World, dice: &mut Dice) -> Result<Client, String> {
    let mut client = world.doors.h1(dice).await.map_err(|error| format!("connect: {error}"))?;
    let head = format!("GET /ws HTTP/1.1\r\nHost: a.test\r\n{UPGRADE}\r\n");
    client.wire.send(head).await.map_err(|error| format!("send: {error}"))?;
    match answer(&mut client, true).await? {
        Some(Answer::Whole(reply)) if reply.status() == 101 => Ok(client),
        other => Err(format!("no WebSocket: {other:?}")),
    }
}

/// Slow, and fast enough: a body in small parts, or an answer taken in small parts.
pub async fn leisurely(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    const PACE: Duration = Duration::from_millis(20);
    let mut client = world.doors.h1(&mut dice).await.map_err(|error| format!("connect: {error}"))?;
    if dice.one_in(2) {
        let head = "POST /steady/echo HTTP/1.1\r\nHost: a.test\r\nContent-Length: 40000\r\n\r\n";
        client.wire.send(head).await.map_err(|error| format!("send: {error}"))?;
        for _ in 0..40 {
            tokio::time::sleep(PACE).await;
            client.wire.send(vec![b'y'; 1000]).await.map_err(|error| format!("send: {error}"))?;
        }
        return match answer(&mut client, false).await? {
            Some(Answer::Whole(reply)) if reply.status() == 200 && reply.length == 40_000 => Ok(()),
            other => Err(format!("slow upload: {other:?}")),
        };
    }
    let head = "GET /steady/size/3000000 HTTP/1.1\r\nHost: a.test\r\n\r\n";
    client.wire.send(head).await.map_err(|error| format!("send: {error}"))?;
    let reply = client.wire.head().await.map_err(|error| format!("head: {error}"))?.ok_or("no answer")?;
    let mut left = 3_000_000;
    while left > 0 && reply.status() == 200 {
        tokio::time::sleep(PACE).await;
        let part = client.wire.take(left.min(60_000)).await.map_err(|error| format!("slow download: {error}"))?;
        left -= part.len();
    }
    if left == 0 { Ok(()) } else { Err(format!("slow download: {reply:?}")) }
}

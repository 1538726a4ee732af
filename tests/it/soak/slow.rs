//! Clients who take their time, or leave without a word.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::net::TcpStream;

use super::{
    HEADER, IDLE,
    valid::socket,
    world::{Answer, Dice, World, answer, closed},
};
use crate::support::http1::{Client, Message, get};

/// What a busy machine may add to a deadline.
const SLACK: Duration = Duration::from_secs(4);
const PACE: Duration = Duration::from_millis(100);

fn connect(error: std::io::Error) -> String {
    format!("connect: {error}")
}

/// Sends a byte now and then until the other side has closed, and gives what came.
async fn trickle(world: &World, client: &mut Client, byte: &str) -> Option<Vec<u8>> {
    loop {
        match tokio::time::timeout(PACE, client.wire.rest()).await {
            Ok(rest) => return Some(rest),
            Err(_) if world.hurries() => return None,
            Err(_) => drop(client.wire.send(byte).await),
        }
    }
}

/// An answer as text, which must be this refusal.
fn refused(world: &World, bytes: &[u8], expected: (u16, &str)) -> Result<(), String> {
    let text = String::from_utf8_lossy(bytes);
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
    let fields = text.lines().filter_map(|line| line.split_once(": "));
    let told = fields.filter(|(name, _)| name.eq_ignore_ascii_case("proxy-status")).map(|(_, value)| value).next();
    world.refused(status, told, expected)
}

pub async fn head(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    let mut client = world.doors.h1(&mut dice).await.map_err(connect)?;
    let begun = Instant::now();
    let _ = client.wire.send("GET /steady/hello HTTP/1.1\r\nHost: a.test\r\nX-Drip: ").await;
    let Some(bytes) = trickle(&world, &mut client, "x").await else { return Ok(()) };
    if begun.elapsed() > HEADER + SLACK {
        return Err(format!("cut only after {:?}", begun.elapsed()));
    }
    refused(&world, &bytes, (408, "header_timeout"))
}

pub async fn body(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    let mut client = world.doors.h1(&mut dice).await.map_err(connect)?;
    let chunked = dice.one_in(2);
    let framing = if chunked { "Transfer-Encoding: chunked" } else { "Content-Length: 100000" };
    let head = format!("POST /steady/echo HTTP/1.1\r\nHost: a.test\r\n{framing}\r\n\r\n");
    let _ = client.wire.send(head).await;
    let part = if chunked { "1\r\nx\r\n" } else { "0123456789" };
    let Some(bytes) = trickle(&world, &mut client, part).await else { return Ok(()) };
    refused(&world, &bytes, (408, "client_timeout"))
}

/// Takes nothing of a large answer: after 5 s it may have 5 s more, for what the system has taken meanwhile.
pub async fn reader(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    let mut client = world.doors.h1(&mut dice).await.map_err(connect)?;
    let _ = client.wire.send(get("/steady/size/50000000")).await;
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(13) && !world.hurries() {
        tokio::time::sleep(PACE).await;
    }
    if world.hurries() {
        return Ok(());
    }
    let length = closed(&mut client).await?.len();
    if length < 50_000_000 { Ok(()) } else { Err("a reader that took nothing for 13 s got it all".to_owned()) }
}

/// Ends its own direction after the request: it may get its answer, or is taken to be gone.
pub async fn half_closed(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    let mut client = world.doors.h1(&mut dice).await.map_err(connect)?;
    let path = *dice.pick(&["/steady/hello", "/mute", "/moody/hello"]);
    let _ = client.wire.send(get(path)).await;
    let _ = client.wire.finish().await;
    match answer(&mut client, false).await? {
        Some(Answer::Whole(reply)) if !matches!(reply.status(), 200 | 500 | 502..=504) => Err(format!("{reply:?}")),
        Some(_) => closed(&mut client).await.map(drop),
        None => Ok(()),
    }
}

/// Says nothing more, or nothing at all.
pub async fn silent(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    let begun = Instant::now();
    let mut client = match dice.below(4) {
        0 => {
            let mut client = world.doors.h1(&mut dice).await.map_err(connect)?;
            client.wire.send(get("/steady/hello")).await.map_err(|error| format!("send: {error}"))?;
            answer(&mut client, false).await?;
            client
        }
        1 => Client::try_connect(world.doors.secure).await.map_err(connect)?,
        2 => Client::try_connect(world.doors.behind).await.map_err(connect)?,
        _ => world.doors.h1(&mut dice).await.map_err(connect)?,
    };
    let rest = closed(&mut client).await?;
    if !rest.is_empty() && !rest.starts_with(&[21]) {
        return Err(format!("told {:?}", String::from_utf8_lossy(&rest)));
    }
    let most = HEADER.max(IDLE) + SLACK;
    if begun.elapsed() < most { Ok(()) } else { Err(format!("closed only after {:?}", begun.elapsed())) }
}

/// A WebSocket on which nobody says anything.
pub async fn silent_socket(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    let mut client = socket(&world, &mut dice).await?;
    closed(&mut client).await.map(drop)
}

/// Goes away in the middle of a request or of an answer.
pub async fn leaving(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    let mut client = world.doors.h1(&mut dice).await.map_err(connect)?;
    let place = *dice.pick(&["steady", "moody"]);
    match dice.below(4) {
        0 => {
            let head = format!("POST /{place}/echo HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5000\r\n\r\nhello");
            let _ = client.wire.send(head).await;
        }
        1 => {
            let _ = client.wire.send(get(&format!("/{place}/size/5000000"))).await;
            let _: Option<Message> = client.wire.head().await.ok().flatten();
        }
        2 => {
            let _ = client.wire.send(get("/mute")).await;
            tokio::time::sleep(dice.millis(100)).await;
        }
        _ => {
            let _ = client.wire.send("GET /steady/hello HTTP/1.1\r\nHo").await;
        }
    }
    Ok(())
}

/// Connects and is gone, in order or by a reset; before or after a byte.
pub async fn passing(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    let doors = &world.doors;
    for _ in 0..dice.below(10) {
        let door = *dice.pick(&[doors.plain, doors.secure, doors.behind]);
        let stream = TcpStream::connect(door).await.map_err(connect)?;
        if dice.one_in(3) {
            let bytes = dice.bytes(3);
            let _ = stream.try_write(&bytes);
        }
        if dice.one_in(2) {
            let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
        }
    }
    Ok(())
}

//! Bytes that are no requests, and connections that only cost: random and mutated heads, TLS that is none, PROXY headers
//! that are none, floods of HTTP/2 frames. What is asked of them is that they end.

use std::{io::Write as _, sync::Arc, time::Duration};

use super::world::{Answer, Dice, World, answer, closed, proxy_header};
use crate::support::{
    frames::{
        CONTINUATION, DATA, END_HEADERS, END_STREAM, HEADERS, PING, PRIORITY, Raw, block, frame, get, post, reset,
        settings, window,
    },
    http1::{self, Client},
};

fn connect(error: std::io::Error) -> String {
    format!("connect: {error}")
}

/// Good requests, some bytes of which are changed, left out, repeated or put in; and plain noise.
pub async fn noise(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    let mut wire = world.doors.wire(&mut dice).await.map_err(connect)?;
    let bytes = if dice.one_in(4) {
        let count = dice.below(4000) + 1;
        dice.bytes(count)
    } else {
        let seeds: [&[u8]; 5] = [
            b"GET /steady/size/1000?a=b#c HTTP/1.1\r\nHost: a.test\r\nAccept: */*\r\n\r\n",
            b"POST /steady/echo HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\nhello\r\n0\r\nX: y\r\n\r\n",
            b"POST /moody/echo HTTP/1.1\r\nHost: a.test\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nhello",
            b"GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x05hello",
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0\0\0\x05\x01\x05\0\0\0\x01\x82\x86\x84\x41\x01a",
        ];
        let mut bytes = dice.pick(&seeds).repeat(dice.below(3) + 1);
        for _ in 0..dice.below(6) + 1 {
            mutate(&mut bytes, &mut dice);
        }
        bytes
    };
    let _ = wire.send(&bytes).await;
    // Either side may be the one that has had enough. For a minute stays open an HTTP/2 stream whose end was lost, and a
    // request whose client may wait to be asked for the rest.
    if dice.one_in(2) || bytes.starts_with(b"PRI") || bytes.windows(6).any(|part| part == b"Expect") {
        let _ = wire.finish().await;
    }
    let ended = tokio::time::timeout(crate::support::PATIENCE, wire.rest()).await;
    ended.map(drop).map_err(|_| format!("not ended: {:?}", String::from_utf8_lossy(&bytes)))
}

fn mutate(bytes: &mut Vec<u8>, dice: &mut Dice) {
    const NASTY: [&[u8]; 12] =
        [b"\0", b"\r", b"\n", b" ", b"\t", b":", b"\r\n\r\n", b"Host: b\r\n", b"%2e%2e/", b"-1", b"\xff\xfe", b",,"];
    if bytes.is_empty() {
        return;
    }
    let at = dice.below(bytes.len());
    match dice.below(4) {
        0 => bytes[at] = dice.roll().to_le_bytes()[0],
        1 => drop(bytes.remove(at)),
        2 => drop(bytes.splice(at..at, dice.pick(&NASTY).iter().copied())),
        _ => {
            let to = (at + dice.below(20)).min(bytes.len());
            let part = bytes[at..to].to_vec();
            bytes.splice(at..at, part);
        }
    }
}

/// Handshakes that are none, that are left, or that agree on nothing.
pub async fn tls(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    let mut client = Client::try_connect(world.doors.secure).await.map_err(connect)?;
    let mut hello = Vec::new();
    let mut config = (*world.doors.tls1).clone();
    if dice.one_in(4) {
        config.alpn_protocols = vec![b"spoken-by-nobody".to_vec()];
    }
    let mut session = rustls::ClientConnection::new(Arc::new(config), world.name.clone()).map_err(|e| e.to_string())?;
    session.write_tls(&mut hello).map_err(|error| error.to_string())?;
    let kind = dice.below(6);
    match kind {
        0 => hello = dice.bytes(500),
        1 => hello = http1::get("/steady/hello").into_bytes(),
        2 => hello.truncate(dice.below(hello.len())),
        3 => mutate(&mut hello, &mut dice),
        4 => hello.write_all(&dice.bytes(100)).map_err(|error| error.to_string())?,
        // Whole, and then nothing more.
        _ => {}
    }
    let _ = client.wire.send(&hello).await;
    if dice.one_in(3) {
        return Ok(()); // gone in the middle
    }
    if dice.one_in(2) {
        let _ = client.wire.finish().await;
    }
    if kind == 1 {
        match answer(&mut client, false).await? {
            Some(Answer::Whole(reply)) => {
                world.refused(reply.status(), reply.field("proxy-status"), (400, "plain_http"))?;
            }
            other => return Err(format!("{other:?} in place of 400")),
        }
    }
    closed(&mut client).await.map(drop)
}

/// PROXY headers that are none.
pub async fn proxy(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    let mut from = [127, 0, 0, 1];
    let bytes = match dice.below(7) {
        0 => http1::get("/steady/hello").into_bytes(),
        1 => b"PROXY TCP4 1.2.3.4 1.2.3.4 1 99999\r\n".to_vec(),
        2 => [b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat(),
        3 => b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x03abc".to_vec(),
        4 => {
            let mut header = proxy_header(&mut dice);
            mutate(&mut header, &mut dice);
            header
        }
        5 => {
            from = [127, 0, 0, 9];
            proxy_header(&mut dice)
        }
        // Begun, and never finished.
        _ => b"PROXY TCP4 1.2.3.4".to_vec(),
    };
    let mut client = Client::connect_from(from.into(), world.doors.behind).await;
    let _ = client.wire.send(&bytes).await;
    closed(&mut client).await.map(drop)
}

/// More connections than one client may have.
pub async fn crowd(world: Arc<World>, _: Dice) -> Result<(), String> {
    let mut clients = Vec::new();
    for _ in 0..5 {
        clients.push(Client::try_connect(world.doors.few).await.map_err(connect)?);
    }
    let mut served = 0;
    for client in &mut clients {
        served += usize::from(client.try_get("/steady/hello").await.is_ok_and(|reply| reply.status() == 200));
    }
    if served <= 2 { Ok(()) } else { Err(format!("{served} connections of one client were served")) }
}

/// Floods of frames over h2c, each with what it is counted as.
pub const FLOODS: [(&str, &[&str]); 13] = [
    ("rapid reset", &["reset"]),
    ("windows beyond their bounds", &["server_reset"]),
    ("CONTINUATION", &["continuation"]),
    ("SETTINGS", &["settings"]),
    ("PING", &["ping"]),
    ("PRIORITY", &["priority"]),
    ("WINDOW_UPDATE", &["window_update"]),
    ("empty DATA", &["data"]),
    ("header list", &["header_list"]),
    ("no requests", &["malformed"]),
    ("crumbs of a window", &["dribble"]),
    ("zero window", &["stall"]),
    ("half a block", &["header_timeout"]),
];

fn streams(wave: u32, each: u32) -> impl Iterator<Item = u32> {
    (0..each).map(move |number| (wave * each + number) * 2 + 1)
}

/// One of the floods, until the other side has had enough.
pub async fn frames(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    const WAVES: u32 = 200;
    const PACE: Duration = Duration::from_millis(2);
    let (name, _) = *dice.pick(&FLOODS);
    let values: &[(u16, u32)] = match name {
        "crumbs of a window" => &[(4, 1)],
        "zero window" => &[(4, 0)],
        _ => &[],
    };
    let raw = Raw::begin(world.doors.plain, values).await;
    let wave: fn(u32) -> Vec<u8> = match name {
        "rapid reset" => |n| streams(n, 50).flat_map(|id| [get(id, "/mute"), reset(id)].concat()).collect(),
        "windows beyond their bounds" => {
            |n| streams(n, 10).flat_map(|id| [get(id, "/mute"), window(id, 0x7fff_ffff)].concat()).collect()
        }
        "CONTINUATION" => |n| match n {
            0 => frame(HEADERS, END_STREAM, 1, &block("GET", "/")),
            _ => frame(CONTINUATION, 0, 1, &[]).repeat(100),
        },
        "SETTINGS" => |_| settings(&[]).repeat(100),
        "PING" => |_| frame(PING, 0, 0, &[7; 8]).repeat(100),
        "PRIORITY" => |_| frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1]).repeat(100),
        "WINDOW_UPDATE" => |_| window(0, 1).repeat(100),
        "empty DATA" => |n| match n {
            0 => post(1, "/steady/echo"),
            _ => frame(DATA, 0, 1, &[]).repeat(100),
        },
        "header list" => |n| {
            // One field of 4,000 bytes goes into the table; each byte after that repeats it.
            let mut bytes = block("GET", "/");
            bytes.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
            bytes.extend([b'y'; 4000]);
            bytes.extend([0xbe; 8000]);
            frame(HEADERS, END_HEADERS | END_STREAM, n * 2 + 1, &bytes)
        },
        "no requests" => |n| frame(HEADERS, END_HEADERS | END_STREAM, n * 2 + 1, &[0x82, 0x86, 0x84]),
        "crumbs of a window" => |n| match n {
            0 => streams(0, 4).flat_map(|id| get(id, "/steady/size/1000000")).collect(),
            _ => streams(0, 4).flat_map(|id| window(id, 1)).collect(),
        },
        "zero window" => |n| match n {
            0 => streams(0, 20).flat_map(|id| get(id, "/steady/size/1000000")).collect(),
            _ => Vec::new(),
        },
        _ => |n| if n == 0 { frame(HEADERS, END_STREAM, 1, &block("GET", "/")) } else { Vec::new() },
    };
    let pace = if name == "crumbs of a window" { PACE } else { Duration::ZERO };
    raw.flood(WAVES, pace, wave).await;
    Ok(())
}

/// Frames that are none, behind a good preface.
pub async fn frame_noise(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    let mut raw = Raw::begin(world.doors.plain, &[]).await;
    let good = [get(1, "/steady/hello"), post(3, "/moody/echo"), frame(DATA, END_STREAM, 3, b"hello"), reset(5)];
    let mut bytes = good.concat();
    for _ in 0..dice.below(8) + 1 {
        mutate(&mut bytes, &mut dice);
    }
    if dice.one_in(4) {
        bytes = dice.bytes(2000);
    }
    let Raw { read, write } = &mut raw;
    let _ = tokio::io::AsyncWriteExt::write_all(write, &bytes).await;
    // A stream whose end was lost may stay open for a minute; nobody waits for that.
    let _ = tokio::time::timeout(dice.millis(1000), read.read_to_end()).await;
    Ok(())
}

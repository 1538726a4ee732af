//! Origins that cost next to nothing: one thread, many ports. `origin FIRST COUNT` listens on 127.0.0.1.
//!
//! `GET /N` answers with a body of N bytes (up to 10 MiB), everything else with 13. A body sent with a Content-Length is
//! read first. An upgrade is answered with 101, and every byte after it is sent back.

use std::rc::Rc;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::{LocalSet, spawn_local},
};

const LARGEST: usize = 10 << 20;
const UPGRADED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
                          Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

fn main() -> std::io::Result<()> {
    let numbers: Vec<u16> = std::env::args().skip(1).filter_map(|word| word.parse().ok()).collect();
    let [first, count] = numbers[..] else {
        eprintln!("usage: origin FIRST COUNT");
        std::process::exit(2);
    };
    let body: Rc<[u8]> = vec![b'x'; LARGEST].into();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    LocalSet::new().block_on(&runtime, async {
        for port in first..first + count {
            let listener = TcpListener::bind(("127.0.0.1", port)).await?;
            spawn_local(accept(listener, body.clone()));
        }
        std::future::pending().await
    })
}

async fn accept(listener: TcpListener, body: Rc<[u8]>) {
    while let Ok((stream, _)) = listener.accept().await {
        let _ = stream.set_nodelay(true);
        spawn_local(answer(stream, body.clone()));
    }
}

/// Answers each request; ends with the connection, or where a head is longer than the buffer.
async fn answer(mut stream: TcpStream, body: Rc<[u8]>) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    let mut filled = 0;
    let mut out = Vec::with_capacity(8 << 10);
    loop {
        let Some(end) = head_end(&buffer[..filled]) else {
            let count = stream.read(&mut buffer[filled..]).await?;
            filled += count;
            if count == 0 {
                return Ok(());
            }
            continue;
        };
        let head = &buffer[..end];
        let sent = field(head, b"content-length").and_then(number).unwrap_or(0);
        let upgrade = field(head, b"upgrade").is_some();
        let size = head.strip_prefix(b"GET /").and_then(|rest| number(rest.split(|byte| *byte == b' ').next()?));
        let size = size.unwrap_or(13).min(LARGEST);
        let close = field(head, b"connection").is_some_and(|value| value.eq_ignore_ascii_case(b"close"));
        if upgrade {
            stream.write_all(UPGRADED).await?;
            stream.write_all(&buffer[end..filled]).await?;
            return echo(stream, buffer).await;
        }
        // What of the body has come with the head is dropped, and the rest as it comes.
        let here = sent.min(filled - end);
        buffer.copy_within(end + here..filled, 0);
        filled -= end + here;
        let mut missing = sent - here;
        while missing > 0 {
            let most = missing.min(buffer.len());
            let count = stream.read(&mut buffer[..most]).await?;
            if count == 0 {
                return Ok(());
            }
            missing -= count;
        }
        out.clear();
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: ");
        out.extend_from_slice(size.to_string().as_bytes());
        out.extend_from_slice(if close { b"\r\nConnection: close\r\n\r\n" } else { b"\r\n\r\n" });
        let small = size.min(4096);
        out.extend_from_slice(&body[..small]);
        stream.write_all(&out).await?;
        stream.write_all(&body[small..size]).await?;
        if close {
            return stream.shutdown().await;
        }
    }
}

async fn echo(mut stream: TcpStream, mut buffer: Vec<u8>) -> std::io::Result<()> {
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..count]).await?;
    }
}

fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|window| window == b"\r\n\r\n").map(|at| at + 4)
}

/// The value of a field; `name` in lower case.
fn field<'a>(head: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let (before, after) = line.split_at_checked(name.len())?;
        (before.eq_ignore_ascii_case(name) && after.first() == Some(&b':')).then(|| after[1..].trim_ascii())
    })
}

fn number(bytes: &[u8]) -> Option<usize> {
    std::str::from_utf8(bytes).ok()?.parse().ok()
}

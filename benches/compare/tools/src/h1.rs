//! HTTP/1.1 connections, plain or TLS, and WebSocket echo: one request after the other on each.

use std::{cell::Cell, rc::Rc, sync::Arc, time::Duration};

use rustls::{ClientConfig, HandshakeKind, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    sync::Notify,
    task::spawn_local,
    time::{Instant, timeout},
};
use tokio_rustls::TlsConnector;

use crate::{Failure, Options, Shared, pace::Pace, tls};

/// A message of 125 bytes in a frame with a mask of zeros, so that the origin can send it back as it is.
const FRAME: [u8; 131] = {
    let mut frame = [b'x'; 131];
    let head = [0x82, 0x80 | 125, 0, 0, 0, 0];
    let mut at = 0;
    while at < head.len() {
        frame[at] = head[at];
        at += 1;
    }
    frame
};

trait Stream: AsyncRead + AsyncWrite + Unpin {}
impl<T: AsyncRead + AsyncWrite + Unpin> Stream for T {}

/// A client's connection, opened again when the proxy has closed it.
pub(crate) struct Connection {
    address: std::net::SocketAddr,
    tls: Option<Arc<ClientConfig>>,
    stream: Option<Box<dyn Stream>>,
    request: Rc<[u8]>,
    close: bool,
    echo: bool,
    buffer: Vec<u8>,
    reconnects: u64,
    resumed: u64,
}

impl Connection {
    pub(crate) fn new(options: &Options) -> Result<Self, Failure> {
        let echo = options.mode == "ws";
        let mut request = Vec::new();
        let method = if options.post > 0 { "POST" } else { "GET" };
        request.extend_from_slice(format!("{method} {} HTTP/1.1\r\nHost: {}\r\n", options.path, tls::HOST).as_bytes());
        if options.post > 0 {
            request.extend_from_slice(format!("Content-Length: {}\r\n", options.post).as_bytes());
        }
        if echo {
            request.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n");
            request.extend_from_slice(b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n");
        }
        request.extend_from_slice(if options.close { b"Connection: close\r\n\r\n" } else { b"\r\n" });
        request.resize(request.len() + options.post, b'x');
        Ok(Self {
            address: options.address,
            tls: if options.tls { Some(tls::config(b"http/1.1", options.resume)?) } else { None },
            stream: None,
            request: request.into(),
            close: options.close,
            echo,
            // Large enough not to be what is measured, small enough for 10,000 of them.
            buffer: vec![0; if options.mode == "idle" { 1 << 10 } else { 256 << 10 }],
            reconnects: 0,
            resumed: 0,
        })
    }

    async fn connect(&mut self) -> Result<(), Failure> {
        let stream = TcpStream::connect(self.address).await?;
        stream.set_nodelay(true)?;
        self.stream = Some(match &self.tls {
            Some(config) => {
                let name = ServerName::try_from(tls::HOST)?;
                let stream = TlsConnector::from(config.clone()).connect(name, stream).await?;
                self.resumed += u64::from(stream.get_ref().1.handshake_kind() == Some(HandshakeKind::Resumed));
                Box::new(stream)
            }
            None => Box::new(stream),
        });
        if self.echo {
            self.request_once().await?;
        }
        Ok(())
    }

    /// One request with its whole answer, or one message there and back. Gives the bytes of the answer.
    pub(crate) async fn exchange(&mut self) -> Result<usize, Failure> {
        let fresh = self.stream.is_none();
        if fresh {
            self.connect().await?;
        }
        if self.echo {
            let stream = self.stream.as_mut().ok_or("not connected")?;
            stream.write_all(&FRAME).await?;
            return Ok(stream.read_exact(&mut self.buffer[..FRAME.len()]).await?);
        }
        match self.request_once().await {
            Ok(Some(bytes)) => return Ok(bytes),
            Err(error) if fresh => return Err(error),
            Ok(None) if fresh => return Err("closed without an answer".into()),
            _ => {}
        }
        // A kept connection may end at any time: that is no error, once.
        self.reconnects += 1;
        self.connect().await?;
        self.request_once().await?.ok_or_else(|| "closed without an answer".into())
    }

    /// None where the connection has ended before the answer's first byte.
    async fn request_once(&mut self) -> Result<Option<usize>, Failure> {
        let Some(mut stream) = self.stream.take() else { return Ok(None) };
        stream.write_all(&self.request).await?;
        let mut filled = 0;
        let end = loop {
            let count = stream.read(&mut self.buffer[filled..]).await?;
            if count == 0 {
                return if filled == 0 { Ok(None) } else { Err("ended inside a head".into()) };
            }
            filled += count;
            if let Some(at) = self.buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
                break at + 4;
            }
        };
        let head = &self.buffer[..end];
        let expected: &[u8] = if self.echo { b"101" } else { b"200" };
        if head.get(9..12) != Some(expected) {
            return Err(String::from_utf8_lossy(&head[..end.min(60)]).into());
        }
        if self.echo {
            self.stream = Some(stream);
            return Ok(Some(end));
        }
        let length: usize = field(head, b"content-length").ok_or("no Content-Length")?;
        let close = self.close || field::<String>(head, b"connection").is_some_and(|value| value == "close");
        let mut missing = (end + length).checked_sub(filled).ok_or("more bytes than Content-Length says")?;
        while missing > 0 {
            let most = missing.min(self.buffer.len());
            let count = stream.read(&mut self.buffer[..most]).await?;
            if count == 0 {
                return Err("ended inside a body".into());
            }
            missing -= count;
        }
        if !close {
            self.stream = Some(stream);
        }
        Ok(Some(length))
    }
}

/// Opens all connections and does one request on each.
pub(crate) async fn open(options: &Options) -> Result<Vec<Connection>, Failure> {
    let mut connections = Vec::new();
    for _ in 0..options.connections {
        let mut connection = Connection::new(options)?;
        connection.exchange().await?;
        (connection.reconnects, connection.resumed) = (0, 0);
        connections.push(connection);
    }
    Ok(connections)
}

/// Sends requests on all connections until the time is over; gives how many due ones were not answered.
pub(crate) async fn run(options: &Options, connections: Vec<Connection>, seen: &Shared) -> usize {
    if options.rate > 0.0 {
        return paced(options, connections, seen).await.unwrap_or_else(|error| {
            seen.borrow_mut().fail(error);
            0
        });
    }
    let end = Instant::now() + Duration::from_secs_f64(options.seconds);
    let tasks: Vec<_> = connections
        .into_iter()
        .map(|mut connection| {
            let seen = seen.clone();
            spawn_local(async move {
                let mut began = Instant::now();
                while began < end {
                    let result = timeout(Duration::from_secs(20), connection.exchange()).await;
                    began = record(result.unwrap_or_else(|_| Err("no answer in 20 s".into())), began, &seen);
                }
                seen.borrow_mut().reconnects += connection.reconnects;
                seen.borrow_mut().resumed += connection.resumed;
            })
        })
        .collect();
    for task in tasks {
        let _ = task.await;
    }
    0
}

/// Counts one exchange and gives the time it ended.
fn record(result: Result<usize, Failure>, began: Instant, seen: &Shared) -> Instant {
    let now = Instant::now();
    let mut seen = seen.borrow_mut();
    match result {
        Ok(bytes) => {
            seen.latencies.push((now - began).as_nanos() as u64);
            seen.bytes += bytes as u64;
        }
        Err(error) => seen.fail(error),
    }
    now
}

async fn paced(options: &Options, connections: Vec<Connection>, seen: &Shared) -> Result<usize, Failure> {
    let pace = Pace::start(options.rate, options.seconds)?;
    let (done, all) = (Rc::new(Cell::new(0_u32)), Rc::new(Notify::new()));
    let mut tasks = Vec::new();
    for mut connection in connections {
        let (pace, seen, done, all) = (pace.clone(), seen.clone(), done.clone(), all.clone());
        tasks.push(spawn_local(async move {
            while let Some(due) = pace.next().await {
                let result = connection.exchange().await;
                record(result, due, &seen);
                done.set(done.get() + 1);
                if done.get() == pace.total {
                    all.notify_one();
                }
            }
        }));
    }
    let patience = Duration::from_secs_f64(options.seconds * 1.5 + 1.0);
    let _ = timeout(patience, all.notified()).await;
    tasks.iter().for_each(tokio::task::JoinHandle::abort);
    // What was never answered has waited at least until now.
    let now = Instant::now();
    for number in done.get()..pace.total {
        let waited = now.saturating_duration_since(pace.due_at(number));
        seen.borrow_mut().latencies.push(waited.as_nanos() as u64);
    }
    Ok((pace.total - done.get()) as usize)
}

/// A field's value, parsed; `name` in lower case.
fn field<T: std::str::FromStr>(head: &[u8], name: &[u8]) -> Option<T> {
    head.split(|byte| *byte == b'\n').find_map(|line| {
        let (before, after) = line.split_at_checked(name.len())?;
        let found = before.eq_ignore_ascii_case(name) && after.first() == Some(&b':');
        std::str::from_utf8(found.then(|| after[1..].trim_ascii())?).ok()?.parse().ok()
    })
}

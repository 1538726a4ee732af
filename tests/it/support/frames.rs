//! HTTP/2 frame by frame, as no library would send them.

use std::{net::SocketAddr, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
};

use super::{PATIENCE, within};

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const ACK: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// How an HTTP/2 connection begins.
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// A frame's bytes.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("a frame's length").to_be_bytes();
    let mut bytes = Vec::with_capacity(9 + payload.len());
    bytes.extend_from_slice(&length[1..]);
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A SETTINGS frame.
pub fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let values = values.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()[..]].concat());
    frame(SETTINGS, 0, 0, &values.collect::<Vec<_>>())
}

/// The header block of a request for `http://a.test`.
pub fn block(method: &str, path: &str) -> Vec<u8> {
    let text = |name: u8, value: &str| [&[name, u8::try_from(value.len()).expect("short")], value.as_bytes()].concat();
    [text(0x02, method), vec![0x86], text(0x04, path), text(0x01, "a.test")].concat()
}

/// A header block of these fields as they are, after the method GET, the scheme and the path.
pub fn block_of(fields: &[(&str, &str)]) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).expect("short")], text.as_bytes()].concat();
    let fields = fields.iter().flat_map(|(name, value)| [vec![0], text(name), text(value)].concat());
    [0x82, 0x86, 0x84].into_iter().chain(fields).collect()
}

/// The HEADERS of a GET.
pub fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block("GET", path))
}

/// The HEADERS of a POST whose body is to come.
pub fn post(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream, &block("POST", path))
}

/// As [`post`], with the length of the body.
pub fn post_of(stream: u32, path: &str, length: usize) -> Vec<u8> {
    let length = length.to_string();
    let mut bytes = block("POST", path);
    bytes.extend([0x0f, 0x0d, u8::try_from(length.len()).expect("short")]); // content-length, not indexed
    bytes.extend(length.as_bytes());
    frame(HEADERS, END_HEADERS, stream, &bytes)
}

/// A WINDOW_UPDATE.
pub fn window(stream: u32, by: u32) -> Vec<u8> {
    frame(WINDOW_UPDATE, 0, stream, &by.to_be_bytes())
}

/// A RST_STREAM.
pub fn reset(stream: u32) -> Vec<u8> {
    frame(RST_STREAM, 0, stream, &8u32.to_be_bytes())
}

/// A frame that came.
#[derive(Clone, Debug)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

impl Frame {
    /// A number in its payload.
    pub fn number(&self, at: usize) -> u32 {
        u32::from_be_bytes(self.payload[at..at + 4].try_into().expect("four bytes"))
    }
}

/// The reading half.
pub struct Frames(OwnedReadHalf);

impl Frames {
    /// The next frame; `None` at the end, in order or not.
    pub async fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; usize::try_from(length).expect("a length")];
        self.0.read_exact(&mut payload).await.ok()?;
        let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
        Some(Frame { kind: head[3], flags: head[4], stream, payload })
    }

    /// Reads to the end.
    pub async fn read_to_end(&mut self) -> Ended {
        let mut ended = Ended::default();
        let reading = async {
            while let Some(frame) = self.next().await {
                ended.see(&frame);
            }
        };
        tokio::time::timeout(PATIENCE, reading).await.expect("the connection to end");
        ended
    }
}

/// What came before the end.
#[derive(Debug, Default)]
pub struct Ended {
    /// Code and text of the last GOAWAY.
    pub goaway: Option<(u32, String)>,
    /// RST_STREAM frames.
    pub resets: usize,
    /// HEADERS frames.
    pub answers: usize,
}

impl Ended {
    fn see(&mut self, frame: &Frame) {
        match frame.kind {
            GOAWAY => self.goaway = Some((frame.number(4), String::from_utf8_lossy(&frame.payload[8..]).into_owned())),
            RST_STREAM => self.resets += 1,
            HEADERS => self.answers += 1,
            _ => {}
        }
    }
}

/// A connection.
pub struct Raw {
    pub read: Frames,
    pub write: OwnedWriteHalf,
}

impl Raw {
    /// The stream's next answer, or its reset.
    pub async fn end(&mut self, stream: u32) -> Frame {
        loop {
            let frame = within("an answer", self.read.next()).await.expect("no end of the connection");
            if frame.stream == stream && matches!(frame.kind, HEADERS | RST_STREAM) {
                return frame;
            }
        }
    }

    /// Nothing is sent yet.
    pub async fn silent(to: SocketAddr) -> Self {
        let stream = within("connect", TcpStream::connect(to)).await.unwrap_or_else(|e| panic!("{to}: {e}"));
        stream.set_nodelay(true).expect("no delay");
        let (read, write) = stream.into_split();
        Self { read: Frames(read), write }
    }

    /// After the preface and these settings.
    pub async fn begin(to: SocketAddr, values: &[(u16, u32)]) -> Self {
        let mut raw = Self::silent(to).await;
        raw.send(&[PREFACE, &settings(values), &frame(SETTINGS, ACK, 0, &[])].concat()).await;
        raw
    }

    /// Sends; the connection must take it.
    pub async fn send(&mut self, bytes: &[u8]) {
        within("send", self.write.write_all(bytes)).await.expect("the connection to take bytes");
    }

    /// Sends wave after wave, `pace` apart, until the other side has had enough, or all are sent, and reads to the end.
    pub async fn flood(self, waves: u32, pace: Duration, wave: impl Fn(u32) -> Vec<u8>) -> Ended {
        let Self { mut read, mut write } = self;
        let sending = async move {
            for number in 0..waves {
                let sent = tokio::time::timeout(Duration::from_secs(5), write.write_all(&wave(number))).await;
                if !matches!(sent, Ok(Ok(()))) {
                    break;
                }
                if !pace.is_zero() {
                    tokio::time::sleep(pace).await;
                }
            }
            write // closing it would be an end of the client's own making
        };
        let (ended, _write) = tokio::join!(read.read_to_end(), sending);
        ended
    }
}

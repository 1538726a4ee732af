//! HTTP/1 on the wire, strict and small: what was sent is what is asserted, so no client library smooths anything over.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    path::Path,
    sync::Arc,
};

use rustls::{ClientConfig, HandshakeKind, NamedGroup, ProtocolVersion, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpSocket, TcpStream, UnixStream},
};

use super::within;

/// Any byte stream.
pub trait Io: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Io for T {}

/// Bytes of a body that a [`Message`] keeps; the rest is only counted.
pub const KEPT_BODY: usize = 1 << 20;

/// A request or a response as it came over the wire.
#[derive(Clone, Debug, Default)]
pub struct Message {
    /// Request line or status line.
    pub start: String,
    /// Fields in order, names as written.
    pub fields: Vec<(String, String)>,
    /// The first [`KEPT_BODY`] bytes, chunking removed.
    pub body: Vec<u8>,
    /// All bytes of the body.
    pub length: u64,
    /// Fields after a chunked body.
    pub trailers: Vec<(String, String)>,
}

impl Message {
    /// The value of a field that may be there once.
    pub fn field(&self, name: &str) -> Option<&str> {
        let mut all = self.fields(name).into_iter();
        let first = all.next();
        assert!(all.next().is_none(), "{name} is there more than once: {self:?}");
        first
    }

    /// All values of a field.
    pub fn fields(&self, name: &str) -> Vec<&str> {
        let named = self.fields.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
        named.map(|(_, value)| value.as_str()).collect()
    }

    /// The status of a response.
    pub fn status(&self) -> u16 {
        self.word(1).parse().unwrap_or_else(|_| panic!("no status: {self:?}"))
    }

    /// The method of a request.
    pub fn method(&self) -> &str {
        self.word(0)
    }

    /// The target of a request.
    pub fn target(&self) -> &str {
        self.word(1)
    }

    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// Which origin answered.
    pub fn origin(&self) -> &str {
        self.field("x-origin").unwrap_or("-")
    }

    fn word(&self, index: usize) -> &str {
        self.start.split(' ').nth(index).unwrap_or("")
    }

    fn framing(&self) -> Framing {
        if self.fields("transfer-encoding").iter().any(|te| te.eq_ignore_ascii_case("chunked")) {
            return Framing::Chunked;
        }
        match self.fields("content-length").first() {
            Some(length) => Framing::Length(length.parse().expect("content-length is a number")),
            None => Framing::Unframed,
        }
    }
}

/// How a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Framing {
    Chunked,
    Length(u64),
    Unframed,
}

/// One connection and what was read ahead.
pub struct Wire {
    io: Box<dyn Io>,
    ahead: Vec<u8>,
}

impl Wire {
    /// Takes a stream.
    pub fn new(io: impl Io + 'static) -> Self {
        Self { io: Box::new(io), ahead: Vec::new() }
    }

    /// The stream and what was read but not consumed.
    pub fn into_parts(self) -> (Box<dyn Io>, Vec<u8>) {
        (self.io, self.ahead)
    }

    /// Writes and flushes.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) -> io::Result<()> {
        self.io.write_all(bytes.as_ref()).await?;
        self.io.flush().await
    }

    /// Ends the sending direction.
    pub async fn finish(&mut self) -> io::Result<()> {
        self.io.shutdown().await
    }

    /// Reads a head; `None` where the peer closed before its first byte.
    pub async fn head(&mut self) -> io::Result<Option<Message>> {
        let end = loop {
            if let Some(at) = self.ahead.windows(4).position(|w| w == b"\r\n\r\n") {
                break at;
            }
            if self.fill().await? == 0 {
                if self.ahead.is_empty() {
                    return Ok(None);
                }
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, self.leftover()));
            }
        };
        let head: Vec<u8> = self.ahead.drain(..end + 4).take(end).collect();
        let text = String::from_utf8_lossy(&head);
        let mut lines = text.split("\r\n");
        let start = lines.next().unwrap_or("").to_owned();
        let fields = lines.map(field).collect::<io::Result<_>>()?;
        Ok(Some(Message { start, fields, ..Message::default() }))
    }

    /// Reads the body that belongs to a head. A response without framing ends with the connection.
    pub async fn body(&mut self, message: &mut Message) -> io::Result<()> {
        match message.framing() {
            Framing::Chunked => self.chunks(message).await,
            Framing::Length(length) => self.exactly(length, message).await,
            Framing::Unframed if message.start.starts_with("HTTP/") => {
                while self.fill().await? != 0 {
                    self.keep(self.ahead.len(), message);
                }
                self.keep(self.ahead.len(), message);
                Ok(())
            }
            Framing::Unframed => Ok(()),
        }
    }

    /// Reads the next chunk; `None` is the last one, with its trailers put into the message.
    pub async fn chunk(&mut self, message: &mut Message) -> io::Result<Option<u64>> {
        let line = self.line().await?;
        let size = line.split(';').next().unwrap_or("").trim();
        let size = u64::from_str_radix(size, 16).map_err(|_| invalid(&line))?;
        if size > 0 {
            self.exactly(size, message).await?;
            let end = self.line().await?;
            return if end.is_empty() { Ok(Some(size)) } else { Err(invalid(&end)) };
        }
        loop {
            let line = self.line().await?;
            if line.is_empty() {
                return Ok(None);
            }
            message.trailers.push(field(&line)?);
        }
    }

    /// Reads a line without its CRLF.
    pub async fn line(&mut self) -> io::Result<String> {
        loop {
            if let Some(at) = self.ahead.windows(2).position(|w| w == b"\r\n") {
                let line: Vec<u8> = self.ahead.drain(..at + 2).take(at).collect();
                return Ok(String::from_utf8_lossy(&line).into_owned());
            }
            self.need_more().await?;
        }
    }

    /// Reads an exact number of bytes.
    pub async fn take(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.ahead.len() < count {
            self.need_more().await?;
        }
        Ok(self.ahead.drain(..count).collect())
    }

    /// Reads until the peer closes and gives everything; a reset counts as a close.
    pub async fn rest(&mut self) -> Vec<u8> {
        while matches!(self.fill().await, Ok(n) if n > 0) {}
        std::mem::take(&mut self.ahead)
    }

    async fn chunks(&mut self, message: &mut Message) -> io::Result<()> {
        while self.chunk(message).await?.is_some() {}
        Ok(())
    }

    async fn exactly(&mut self, mut left: u64, message: &mut Message) -> io::Result<()> {
        while left > 0 {
            if self.ahead.is_empty() {
                self.need_more().await?;
            }
            let now = self.ahead.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            self.keep(now, message);
            left -= now as u64;
        }
        Ok(())
    }

    fn keep(&mut self, count: usize, message: &mut Message) {
        let room = KEPT_BODY.saturating_sub(message.body.len()).min(count);
        message.body.extend_from_slice(&self.ahead[..room]);
        message.length += count as u64;
        if count == self.ahead.len() {
            self.ahead.clear();
        } else {
            self.ahead.drain(..count);
        }
    }

    async fn need_more(&mut self) -> io::Result<()> {
        if self.fill().await? == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, self.leftover()));
        }
        Ok(())
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.ahead.reserve(128 << 10);
        self.io.read_buf(&mut self.ahead).await
    }

    fn leftover(&self) -> String {
        let shown = &self.ahead[..self.ahead.len().min(500)];
        format!("closed in the middle, after {:?}", String::from_utf8_lossy(shown))
    }
}

fn field(line: &str) -> io::Result<(String, String)> {
    let (name, value) = line.split_once(':').ok_or_else(|| invalid(line))?;
    Ok((name.to_owned(), value.trim().to_owned()))
}

fn invalid(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not understood: {what:?}"))
}

/// What the TLS handshake came to.
#[derive(Clone, Debug)]
pub struct Handshake {
    /// Full or resumed.
    pub kind: HandshakeKind,
    /// TLS version.
    pub version: ProtocolVersion,
    /// Agreed application protocol.
    pub alpn: Option<String>,
    /// Key exchange group; `None` where a resumption had none.
    pub group: Option<NamedGroup>,
    /// The end entity certificate shown by the peer, DER.
    pub certificate: Vec<u8>,
}

impl Handshake {
    fn of(session: &rustls::ClientConnection) -> Self {
        Self {
            kind: session.handshake_kind().expect("handshake is done"),
            version: session.protocol_version().expect("handshake is done"),
            alpn: session.alpn_protocol().map(|p| String::from_utf8_lossy(p).into_owned()),
            group: session.negotiated_key_exchange_group().map(|g| g.name()),
            certificate: session.peer_certificates().map(|c| c[0].to_vec()).unwrap_or_default(),
        }
    }
}

/// A client's connection to the proxy. Its methods panic where the promise is that they succeed.
pub struct Client {
    /// The bytes.
    pub wire: Wire,
    /// For TLS.
    pub handshake: Option<Handshake>,
}

impl Client {
    /// Connects over TCP.
    pub async fn connect(to: SocketAddr) -> Self {
        Self::try_connect(to).await.unwrap_or_else(|e| panic!("connect to {to}: {e}"))
    }

    /// Connects over TCP; for those who expect failures.
    pub async fn try_connect(to: SocketAddr) -> io::Result<Self> {
        let stream = within("connect", TcpStream::connect(to)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { wire: Wire::new(stream), handshake: None })
    }

    /// Connects from a chosen source address.
    pub async fn connect_from(from: IpAddr, to: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("socket");
        socket.bind(SocketAddr::new(from, 0)).unwrap_or_else(|e| panic!("bind {from}: {e}"));
        let stream = within("connect", socket.connect(to)).await.unwrap_or_else(|e| panic!("connect to {to}: {e}"));
        Self { wire: Wire::new(stream), handshake: None }
    }

    /// Connects over TCP, and lets next to nothing come before it is read.
    pub async fn with_small_buffer(to: SocketAddr) -> Self {
        let socket = TcpSocket::new_v4().expect("socket");
        socket.set_recv_buffer_size(4096).expect("a size");
        let stream = within("connect", socket.connect(to)).await.unwrap_or_else(|e| panic!("connect to {to}: {e}"));
        Self { wire: Wire::new(stream), handshake: None }
    }

    /// Connects to a unix socket.
    pub async fn unix(path: &Path) -> Self {
        let stream = UnixStream::connect(path).await.unwrap_or_else(|e| panic!("connect to {}: {e}", path.display()));
        Self { wire: Wire::new(stream), handshake: None }
    }

    /// Connects to a unix socket; for those who expect failures.
    pub async fn try_unix(path: &Path) -> io::Result<Self> {
        Ok(Self { wire: Wire::new(UnixStream::connect(path).await?), handshake: None })
    }

    /// Connects over TLS.
    pub async fn tls(to: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> Self {
        Self::try_tls(to, name, config).await.unwrap_or_else(|e| panic!("tls to {to}: {e}"))
    }

    /// Connects over TLS; for those who expect failures.
    pub async fn try_tls(to: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let stream = within("connect", TcpStream::connect(to)).await?;
        stream.set_nodelay(true)?;
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let stream = within("tls handshake", connector.connect(name, stream)).await?;
        let handshake = Handshake::of(stream.get_ref().1);
        Ok(Self { wire: Wire::new(stream), handshake: Some(handshake) })
    }

    /// Sends bytes.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        within("send", self.wire.send(bytes)).await.unwrap_or_else(|e| panic!("send: {e}"));
    }

    /// Sends a whole request and reads its final response.
    pub async fn ask(&mut self, request: impl AsRef<[u8]>) -> Message {
        self.send(request).await;
        self.response().await
    }

    /// As [`Client::ask`], for those who expect failures.
    pub async fn try_ask(&mut self, request: impl AsRef<[u8]>) -> io::Result<Message> {
        within("try_ask", async {
            self.wire.send(request).await?;
            self.try_response(true).await
        })
        .await
    }

    /// `GET` with a `Host`, on a connection that stays open.
    pub async fn get(&mut self, path: &str) -> Message {
        self.ask(get(path)).await
    }

    /// As [`Client::get`], for those who expect failures.
    pub async fn try_get(&mut self, path: &str) -> io::Result<Message> {
        within("try_get", async {
            self.wire.send(get(path)).await?;
            self.try_response(true).await
        })
        .await
    }

    /// The next response, whatever its status; 1xx have no body.
    pub async fn any_response(&mut self) -> Message {
        let read = async {
            let mut head = self.wire.head().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            if !bodiless(head.status()) {
                self.wire.body(&mut head).await?;
            }
            io::Result::Ok(head)
        };
        within("response", read).await.unwrap_or_else(|e| panic!("no response: {e}"))
    }

    /// The next final response.
    pub async fn response(&mut self) -> Message {
        within("response", self.try_response(true)).await.unwrap_or_else(|e| panic!("no response: {e}"))
    }

    /// The head of the next final response; its body is left to the caller, or there is none (`HEAD`).
    pub async fn response_head(&mut self) -> Message {
        within("response head", self.try_response(false)).await.unwrap_or_else(|e| panic!("no response: {e}"))
    }

    /// The next final response, for those who expect failures.
    pub async fn try_response(&mut self, with_body: bool) -> io::Result<Message> {
        loop {
            let mut head = self.wire.head().await?.ok_or(io::ErrorKind::UnexpectedEof)?;
            let status = head.status();
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            if with_body && !bodiless(status) {
                self.wire.body(&mut head).await?;
            }
            return Ok(head);
        }
    }

    /// Waits until the proxy closes and gives what came before that.
    pub async fn closed(&mut self) -> Vec<u8> {
        within("the connection to be closed", self.wire.rest()).await
    }
}

fn bodiless(status: u16) -> bool {
    status < 200 || status == 204 || status == 304
}

/// A plain `GET` that keeps the connection.
pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n")
}

/// `GET` over a connection of its own.
pub async fn get_once(to: SocketAddr, path: &str) -> Message {
    Client::connect(to).await.get(path).await
}

/// `GET` with more fields (each ending in CRLF) over a connection of its own.
pub async fn get_with(to: SocketAddr, path: &str, fields: &str) -> Message {
    let request = format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n");
    Client::connect(to).await.ask(request).await
}

/// `POST` over a connection of its own.
pub async fn post_once(to: SocketAddr, path: &str, body: &str) -> Message {
    let length = body.len();
    let request = format!("POST {path} HTTP/1.1\r\nHost: a.test\r\nContent-Length: {length}\r\n\r\n{body}");
    Client::connect(to).await.ask(request).await
}

//! A connection to a backend as the exchange uses it, past Pingora's connectors: a socket, plain or inside TLS, or a stream of
//! HTTP/2; how it is opened; and those of a worker that wait for their next request.

use std::{
    collections::{HashMap, hash_map::Entry},
    hash::{BuildHasherDefault, Hasher},
    io,
    os::fd::{AsRawFd, RawFd},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use pingora_core::{Error, ErrorType, Result, protocols::l4::socket::SocketAddr};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpStream, UnixStream},
    sync::Notify,
};
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

use super::{
    backend::Anchor,
    connect::{Connector, announce},
    deadlines::NO_SOCKET,
    http2::{self, Connection, Stream},
    tls::{Offer, TlsClient, chose_http2},
};

/// A connected socket.
pub type Socket = Either<TcpStream, UnixStream>;

/// A connection: `Left` is plain text.
pub type Line = Either<Socket, Box<Layer>>;

/// What stands between a request and a socket.
// Boxed where it is kept.
#[expect(clippy::large_enum_variant)]
#[derive(Debug)]
pub enum Layer {
    /// TLS.
    Tls(TlsStream<Socket>),
    /// HTTP/2: the socket is many requests'.
    Http2(Stream),
}

/// What a backend speaks on a connection that was opened.
#[derive(Debug)]
pub enum Opened {
    /// HTTP/1.1: it is one request's at a time.
    Http1(Line),
    /// HTTP/2.
    Http2(Connection),
}

/// The descriptor of a connection; [`NO_SOCKET`] where it has none of its own.
pub fn descriptor(line: &Line) -> RawFd {
    let socket = match line {
        Either::Left(socket) => socket,
        Either::Right(layer) => match &**layer {
            Layer::Tls(stream) => stream.get_ref().0,
            Layer::Http2(_) => return NO_SOCKET,
        },
    };
    match socket {
        Either::Left(tcp) => tcp.as_raw_fd(),
        Either::Right(unix) => unix.as_raw_fd(),
    }
}

impl AsyncRead for Layer {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, to),
            Self::Http2(stream) => Pin::new(stream).poll_read(cx, to),
        }
    }
}

impl AsyncWrite for Layer {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Http2(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
            Self::Http2(stream) => Pin::new(stream).poll_write_vectored(cx, parts),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
            Self::Http2(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Http2(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }

    fn is_write_vectored(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

/// Opens connections of our own to the backends of an upstream.
#[derive(Debug)]
pub struct Opener {
    connector: Arc<Connector>,
    offer: Offer,
    /// With the time that a handshake may take.
    tls: Option<(Arc<TlsClient>, Duration)>,
}

impl Opener {
    /// Opens sockets by `connector`, and speaks TLS on them where there is something to do so by. What they speak is one of
    /// `offer`; in plain text nobody chooses, and it is HTTP/2 where that is all there is.
    pub fn new(connector: Arc<Connector>, offer: Offer, tls: Option<(Arc<TlsClient>, Duration)>) -> Self {
        Self { connector, offer, tls }
    }

    /// What speaks TLS; `None` in plain text.
    pub fn client(&self) -> Option<&Arc<TlsClient>> {
        self.tls.as_ref().map(|(client, _)| client)
    }

    /// What its backends may choose from.
    pub fn offer(&self) -> Offer {
        self.offer
    }

    /// A connection to the backend at `to`, of that `name`. [`Offer::Http1`]: it must not be able to choose HTTP/2 for once.
    /// `header`: its first bytes, before TLS.
    ///
    /// # Errors
    /// There is none within the time, the handshake failed, or it has chosen what was not offered. It may be tried elsewhere.
    pub async fn open(&self, to: &SocketAddr, name: &str, offer: Offer, header: Option<&[u8]>) -> Result<Opened> {
        let mut socket = self.connector.dial(to).await?;
        if let Some(header) = header {
            announce(&mut socket, header, to).await?;
        }
        let Some((client, patience)) = &self.tls else {
            return match offer {
                Offer::Http2 => begin(socket, false, to).await,
                Offer::Http1 | Offer::Either => Ok(Opened::Http1(Either::Left(socket))),
            };
        };
        // Large, and not needed for plain text.
        let handshake = Box::pin(client.connect(socket, to, name, offer));
        let context = || format!("TLS with {to} by the name {name}");
        let mut error = match tokio::time::timeout(*patience, handshake).await {
            Ok(Ok(stream)) => match (chose_http2(&stream), offer) {
                (true, Offer::Either | Offer::Http2) => return begin(stream, true, to).await,
                (false, Offer::Either | Offer::Http1) => {
                    return Ok(Opened::Http1(Either::Right(Box::new(Layer::Tls(stream)))));
                }
                (true, Offer::Http1) => not_offered("HTTP/2, which was not offered"),
                (false, Offer::Http2) => not_offered("no HTTP/2, the only protocol that was offered"),
            },
            Ok(Err(error)) => Error::because(ErrorType::TLSHandshakeFailure, context(), error),
            Err(elapsed) => Error::because(ErrorType::TLSHandshakeTimedout, context(), elapsed),
        };
        // No request was sent.
        error.set_retry(true);
        Err(error)
    }
}

async fn begin(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    https: bool,
    to: &SocketAddr,
) -> Result<Opened> {
    Connection::begin(io, https).await.map(Opened::Http2).map_err(|error| {
        let mut error = Error::because(ErrorType::ConnectError, format!("cannot begin HTTP/2 with {to}"), error);
        error.set_retry(true);
        error
    })
}

fn not_offered(chosen: &str) -> Box<Error> {
    Error::explain(ErrorType::TLSHandshakeFailure, format!("the backend chose {chosen}"))
}

/// Whether nothing has come on a connection where nothing should: neither its end nor bytes that nobody asked for. What TLS
/// says for itself (session tickets, new keys) is read and is nothing.
fn is_quiet(line: &mut Line) -> bool {
    let mut byte = [0; 1];
    let nothing = |read: io::Result<usize>| read.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
    match line {
        // Mostly, and nobody need be woken by what comes later.
        Either::Left(Either::Left(tcp)) => nothing(tcp.try_read(&mut byte)),
        line => {
            let mut byte = ReadBuf::new(&mut byte);
            Pin::new(line).poll_read(&mut Context::from_waker(Waker::noop()), &mut byte).is_pending()
        }
    }
}

/// Idle connections of one worker, by what they lead to. Connections of different settings have different keys.
#[derive(Debug, Default)]
pub struct Pool {
    idle: Mutex<Waiting>,
    /// For one key.
    most: usize,
    filled: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    by_key: HashMap<u64, Shelf, BuildHasherDefault<Key>>,
    shared: http2::Connections,
    /// Somebody is to hear when there is one again.
    awaited: bool,
}

/// Connections to one address.
#[derive(Debug)]
struct Shelf {
    anchor: Anchor,
    /// The one that was used last is the last.
    lines: Vec<Idle>,
}

#[derive(Debug)]
struct Idle {
    line: Line,
    since: Instant,
    until: Instant,
}

/// Keys are hashes already.
#[derive(Default)]
struct Key(u64);

impl Hasher for Key {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |key, byte| key.rotate_left(8) ^ u64::from(*byte));
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

impl Pool {
    /// Keeps at most so many connections to one backend; 0 keeps none.
    pub fn new(most: usize) -> Self {
        Self { most, ..Self::default() }
    }

    /// The connection that was used last, of those that are still good. Those that are not are closed.
    pub fn take(&self, key: u64, now: Instant) -> Option<Line> {
        let mut idle = self.lock();
        let shelf = idle.by_key.get_mut(&key)?;
        while let Some(Idle { mut line, until, .. }) = shelf.lines.pop() {
            if until > now && is_quiet(&mut line) {
                return Some(line);
            }
        }
        None
    }

    /// A stream on a connection over HTTP/2 that is kept; see [`Connection::stream`].
    pub fn stream(&self, key: u64, lengths: bool) -> Option<Line> {
        let stream = self.lock().shared.stream(key, lengths)?;
        Some(Either::Right(Box::new(Layer::Http2(stream))))
    }

    /// Keeps a connection over HTTP/2 for other requests, until it has been idle for `patience`.
    pub fn share(&self, key: u64, connection: Connection, patience: Duration, anchor: Anchor) {
        let mut idle = self.lock();
        idle.shared.keep(key, connection, self.most, patience, anchor);
        if std::mem::take(&mut idle.awaited) {
            self.filled.notify_one();
        }
    }

    /// Keeps a connection for at most `patience`, and while `anchor` holds, which is asked for the first one. Where there are too many, the one that waits
    /// longest is closed.
    pub fn put(&self, key: u64, line: Line, now: Instant, patience: Duration, anchor: impl FnOnce() -> Option<Anchor>) {
        // What TLS has taken of an upload, and the backend has not, would wait for the next request.
        let spent = match &line {
            Either::Left(_) => false,
            Either::Right(layer) => match &**layer {
                Layer::Tls(stream) => stream.get_ref().1.wants_write(),
                Layer::Http2(_) => true,
            },
        };
        if spent || self.most == 0 || patience.is_zero() {
            return;
        }
        let mut idle = self.lock();
        let shelf = match idle.by_key.entry(key) {
            Entry::Occupied(shelf) => shelf.into_mut(),
            Entry::Vacant(room) => {
                let Some(anchor) = anchor() else { return };
                room.insert(Shelf { anchor, lines: Vec::new() })
            }
        };
        if shelf.lines.len() >= self.most {
            shelf.lines.remove(0);
        }
        shelf.lines.push(Idle { line, since: now, until: now + patience });
        if std::mem::take(&mut idle.awaited) {
            self.filled.notify_one();
        }
    }

    /// Closes the connection that has waited longest, whose descriptor another needs. Returns whether there was one.
    pub fn give_up(&self) -> bool {
        let mut idle = self.lock();
        let waiting = idle.by_key.values_mut().filter(|shelf| !shelf.lines.is_empty());
        let longest = waiting.min_by_key(|shelf| shelf.lines[0].since);
        longest.map(|shelf| drop(shelf.lines.remove(0))).is_some()
    }

    /// Closes what has waited too long, or before `unused` where descriptors are scarce, was closed by the backend or shut down by us,
    /// and what leads where no backend is any more. Returns how many are left.
    pub fn sweep(&self, now: Instant, unused: Option<Instant>) -> usize {
        let mut idle = self.lock();
        let mut left = idle.shared.sweep(now);
        idle.by_key.retain(|_, shelf| {
            if !shelf.anchor.holds() {
                return false;
            }
            shelf.lines.retain_mut(|idle| {
                idle.until > now && unused.is_none_or(|unused| idle.since > unused) && is_quiet(&mut idle.line)
            });
            left += shelf.lines.len();
            !shelf.lines.is_empty()
        });
        left
    }

    /// Returns when there is a connection in it. For one at a time.
    pub async fn filled(&self) {
        loop {
            {
                let mut idle = self.lock();
                if !idle.shared.is_empty() || idle.by_key.values().any(|shelf| !shelf.lines.is_empty()) {
                    return;
                }
                idle.awaited = true;
            }
            self.filled.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;
    use crate::{
        config::model,
        runtime::upstream::{Upstream, fixtures},
        types::{BackendAddress, HostPort},
    };

    const MINUTE: Duration = Duration::from_secs(60);
    const TICK: Duration = Duration::from_millis(10);

    /// An upstream of one backend by this name.
    fn home(name: &str) -> Arc<Upstream> {
        let mut model = fixtures::upstream("app", &[("a", 1)]);
        model.backends[0].address = BackendAddress::Host(HostPort { host: name.into(), port: 80 });
        let backends: Vec<model::Backend> = model.backends.clone();
        let home = Upstream::build(&model, backends, &fixtures::process(), None);
        home.backends()[0].set_target(([10, 0, 0, 1], 80).into());
        home
    }

    fn anchor(home: &Upstream) -> impl Fn() -> Option<Anchor> + Copy {
        move || Some(home.backends()[0].anchor(home.backends()[0].target().expect("an address")))
    }

    async fn pair() -> (Line, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let ours = TcpStream::connect(address).await.expect("connects");
        let theirs = listener.accept().await.expect("accepts").0;
        (Either::Left(Either::Left(ours)), theirs)
    }

    #[tokio::test]
    async fn the_connection_used_last_comes_first() {
        let home = home("app.test");
        let pool = Pool::new(8);
        let ((first, _first_far), (second, _second_far)) = (pair().await, pair().await);
        let (older, newer) = (descriptor(&first), descriptor(&second));
        let now = Instant::now();
        pool.put(1, first, now, MINUTE, anchor(&home));
        pool.put(1, second, now, MINUTE, anchor(&home));
        assert!(pool.take(2, now).is_none());
        let taken = [pool.take(1, now).expect("one"), pool.take(1, now).expect("another")];
        assert_eq!(taken.each_ref().map(descriptor), [newer, older]);
        assert!(pool.take(1, now).is_none());
    }

    #[tokio::test]
    async fn what_is_closed_speaks_out_of_turn_or_waited_too_long_is_not_used() {
        let home = home("app.test");
        let pool = Pool::new(8);
        let now = Instant::now();
        let (closed, closed_far) = pair().await;
        let (loud, mut loud_far) = pair().await;
        let (old, mut old_far) = pair().await;
        let fds = [&closed, &loud].map(descriptor);
        drop(closed_far);
        loud_far.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.expect("room");
        for line in [closed, loud] {
            if let Either::Left(Either::Left(tcp)) = &line {
                tcp.readable().await.expect("something came");
            }
            pool.put(1, line, now, MINUTE, anchor(&home));
        }
        pool.put(2, old, now, MINUTE, anchor(&home));
        assert!(pool.take(1, now).is_none(), "{fds:?}");
        assert_eq!(pool.sweep(now, None), 1);
        assert!(pool.take(2, now + MINUTE).is_none());
        assert_eq!(tokio::io::AsyncReadExt::read(&mut old_far, &mut [0; 1]).await.expect("its end"), 0);
    }

    #[tokio::test]
    async fn what_waits_is_given_up_where_its_descriptor_is_needed() {
        let home = home("app.test");
        let pool = Pool::new(8);
        let now = Instant::now();
        let later = now + Duration::from_secs(1);
        let (first, mut first_far) = pair().await;
        let (second, _second_far) = pair().await;
        let (third, _third_far) = pair().await;
        let kept = descriptor(&third);
        pool.put(1, first, now, MINUTE, anchor(&home));
        pool.put(2, second, now + TICK, MINUTE, anchor(&home));
        pool.put(2, third, later, MINUTE, anchor(&home));
        assert!(pool.give_up());
        assert_eq!(first_far.read(&mut [0; 1]).await.expect("its end"), 0, "it waited longest");
        assert_eq!(pool.sweep(later, Some(now + TICK)), 1, "one was used since then");
        assert_eq!(pool.take(2, later).as_ref().map(descriptor), Some(kept));
        assert!(!pool.give_up());
    }

    #[tokio::test]
    async fn what_leads_to_no_backend_any_more_is_closed() {
        let (pool, now) = (Pool::new(8), Instant::now());
        let (stays, moves, goes) = (home("stays.test"), home("moves.test"), home("goes.test"));
        let mut far = Vec::new();
        for (key, home) in [&stays, &moves, &goes].into_iter().enumerate() {
            let (line, end) = pair().await;
            pool.put(key as u64, line, now, MINUTE, anchor(home));
            far.push(end);
        }
        assert_eq!(pool.sweep(now, None), 3);
        moves.backends()[0].set_target(([10, 0, 0, 2], 80).into());
        assert_eq!(pool.sweep(now, None), 2);
        drop(goes);
        assert_eq!(pool.sweep(now, None), 1);
        assert!(pool.take(0, now).is_some());
    }

    #[tokio::test]
    async fn who_waits_for_connections_is_woken_by_the_first() {
        let (pool, now) = (Pool::new(8), Instant::now());
        let home = home("app.test");
        for _ in 0..2 {
            let (line, _end) = pair().await;
            let put = std::cell::Cell::new(false);
            let waits = async {
                pool.filled().await;
                assert!(put.get(), "it was empty");
            };
            let puts = async {
                put.set(true);
                pool.put(1, line, now, MINUTE, anchor(&home));
            };
            tokio::time::timeout(MINUTE, async { tokio::join!(waits, puts) }).await.expect("woken");
            pool.filled().await;
            assert!(pool.take(1, now).is_some());
        }
    }

    #[tokio::test]
    async fn there_are_never_too_many() {
        let home = home("app.test");
        let pool = Pool::new(2);
        let now = Instant::now();
        let mut far = Vec::new();
        for _ in 0..5 {
            let (line, end) = pair().await;
            pool.put(1, line, now, MINUTE, anchor(&home));
            far.push(end);
        }
        assert_eq!(pool.sweep(now, None), 2);
        let (line, _end) = pair().await;
        Pool::new(0).put(1, line, now, MINUTE, anchor(&home));
        assert_eq!(Pool::new(0).sweep(now, None), 0);
    }
}

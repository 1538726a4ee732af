//! A connection to a backend as the exchange uses it, past Pingora's connectors: a socket, plain or inside TLS; and those of a
//! worker that wait for their next request.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    os::fd::{AsRawFd, RawFd},
    pin::Pin,
    sync::{Mutex, MutexGuard, PoisonError},
    task::{Context, Waker},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncRead, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::client::TlsStream;
use tokio_util::either::Either;

/// A connected socket.
pub type Socket = Either<TcpStream, UnixStream>;

/// A connection: `Left` is plain text.
pub type Line = Either<Socket, Box<TlsStream<Socket>>>;

/// The descriptor of a connection.
pub fn descriptor(line: &Line) -> RawFd {
    let socket = match line {
        Either::Left(socket) => socket,
        Either::Right(stream) => stream.get_ref().0,
    };
    match socket {
        Either::Left(tcp) => tcp.as_raw_fd(),
        Either::Right(unix) => unix.as_raw_fd(),
    }
}

/// Whether nothing has come on a connection where nothing should: neither its end nor bytes that nobody asked for.
fn is_quiet(line: &mut Line) -> bool {
    let mut byte = [0; 1];
    let read = Pin::new(line).poll_read(&mut Context::from_waker(Waker::noop()), &mut ReadBuf::new(&mut byte));
    read.is_pending()
}

/// Idle connections of one worker, by what they lead to. Connections of different settings have different keys.
#[derive(Debug, Default)]
pub struct Pool {
    idle: Mutex<HashMap<u64, Vec<Idle>, BuildHasherDefault<Key>>>,
    /// For one key.
    most: usize,
}

#[derive(Debug)]
struct Idle {
    line: Line,
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
        Self { idle: Mutex::default(), most }
    }

    /// The connection that was used last, of those that are still good. Those that are not are closed.
    pub fn take(&self, key: u64, now: Instant) -> Option<Line> {
        let mut idle = self.lock();
        let waiting = idle.get_mut(&key)?;
        while let Some(Idle { mut line, until }) = waiting.pop() {
            if until > now && is_quiet(&mut line) {
                return Some(line);
            }
        }
        None
    }

    /// Keeps a connection for at most `patience`. Where there are too many, the one that waits longest is closed.
    pub fn put(&self, key: u64, line: Line, now: Instant, patience: Duration) {
        if self.most == 0 || patience.is_zero() {
            return;
        }
        let mut idle = self.lock();
        let waiting = idle.entry(key).or_default();
        if waiting.len() >= self.most {
            waiting.remove(0);
        }
        waiting.push(Idle { line, until: now + patience });
    }

    /// Closes what has waited too long, was closed by the backend or shut down by us. Returns how many are left.
    pub fn sweep(&self, now: Instant) -> usize {
        let mut left = 0;
        self.lock().retain(|_, waiting| {
            waiting.retain_mut(|idle| idle.until > now && is_quiet(&mut idle.line));
            left += waiting.len();
            !waiting.is_empty()
        });
        left
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Vec<Idle>, BuildHasherDefault<Key>>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{io::AsyncWriteExt, net::TcpListener};

    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    async fn pair() -> (Line, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let ours = TcpStream::connect(address).await.expect("connects");
        let theirs = listener.accept().await.expect("accepts").0;
        (Either::Left(Either::Left(ours)), theirs)
    }

    #[tokio::test]
    async fn the_connection_used_last_comes_first() {
        let pool = Pool::new(8);
        let ((first, _first_far), (second, _second_far)) = (pair().await, pair().await);
        let (older, newer) = (descriptor(&first), descriptor(&second));
        let now = Instant::now();
        pool.put(1, first, now, MINUTE);
        pool.put(1, second, now, MINUTE);
        assert!(pool.take(2, now).is_none());
        let taken = [pool.take(1, now).expect("one"), pool.take(1, now).expect("another")];
        assert_eq!(taken.each_ref().map(descriptor), [newer, older]);
        assert!(pool.take(1, now).is_none());
    }

    #[tokio::test]
    async fn what_is_closed_speaks_out_of_turn_or_waited_too_long_is_not_used() {
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
            pool.put(1, line, now, MINUTE);
        }
        pool.put(2, old, now, MINUTE);
        assert!(pool.take(1, now).is_none(), "{fds:?}");
        assert_eq!(pool.sweep(now), 1);
        assert!(pool.take(2, now + MINUTE).is_none());
        assert_eq!(tokio::io::AsyncReadExt::read(&mut old_far, &mut [0; 1]).await.expect("its end"), 0);
    }

    #[tokio::test]
    async fn there_are_never_too_many() {
        let pool = Pool::new(2);
        let now = Instant::now();
        let mut far = Vec::new();
        for _ in 0..5 {
            let (line, end) = pair().await;
            pool.put(1, line, now, MINUTE);
            far.push(end);
        }
        assert_eq!(pool.sweep(now), 2);
        let (line, _end) = pair().await;
        Pool::new(0).put(1, line, now, MINUTE);
        assert_eq!(Pool::new(0).sweep(now), 0);
    }
}

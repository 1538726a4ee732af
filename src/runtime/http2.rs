//! HTTP/2 towards backends (RFC 9113), past Pingora: connections of a worker, each of which carries many requests at once, and a
//! request's stream on one.
//!
//! A [`Stream`] is used as a connection over HTTP/1.1 would be: it is given a request in that protocol's bytes, as the exchange has written
//! it, and gives its answer in them, interim ones too. So whoever moves bytes does not ask what a backend speaks, both directions go on
//! side by side, and an answer is held to the rules of its parser. What is said twice in HTTP/1.1 and once here is left out: chunks are
//! frames, `Host` is `:authority`, and neighbours' fields stay with neighbours.
//!
//! It has no socket of its own. Whoever sets a deadline asks for it (see [`NO_SOCKET`](super::deadlines::NO_SOCKET)); dropped before its end
//! it is reset, which tells the backend that nobody waits any more.

mod awaited;
mod fault;
mod heads;
mod sieve;
mod stream;

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    backend::Anchor,
    peer::{H2_CONNECTION_WINDOW, H2_STREAM_WINDOW, MAX_H2_STREAMS},
};
use awaited::Awaited;
use fault::failed;
pub use fault::{is_malformed, is_reset, is_unprocessed};
use sieve::Sieve;
pub use stream::Stream;

/// A longer head is none, as over HTTP/1.1.
const MAX_HEAD: u32 = 256 * 1024;

/// Bytes of request bodies that wait for a backend's socket, of each stream.
const SEND_BUFFER: usize = 64 * 1024;
/// What the crate spends on small frames that nobody has read yet, 256 less its length for each: enough for windows full of
/// messages of 16 bytes. Who has more of one connection ends it for all that are on it.
const SMALL_FRAMES: usize = H2_CONNECTION_WINDOW as usize / 16 * 256;
/// Streams that were reset of late, of which frames may still be on their way. What comes for one that is not remembered is
/// answered by a reset, which is nobody's abuse: clients leave.
const REMEMBERED: usize = 1024;

/// A connection that requests share.
#[derive(Clone, Debug)]
pub struct Connection {
    requests: SendRequest<Bytes>,
    https: bool,
    load: Arc<Load>,
}

#[derive(Debug)]
struct Load {
    /// Streams in use, and when the last one ended.
    used: Mutex<(usize, Instant)>,
    /// It takes no more requests: nothing moves on it, or nobody knows whether anything does.
    over: AtomicBool,
    /// Counts what has come.
    heard: Arc<AtomicUsize>,
    awaited: Arc<Awaited>,
}

/// A place among a connection's streams.
#[derive(Debug)]
struct Place {
    load: Arc<Load>,
    /// What had come when it was taken.
    heard: usize,
    /// The stream's number, once it has one.
    stream: Option<u32>,
}

impl Connection {
    /// Begins one on `io`, over TLS where `https`. It ends when nobody keeps it and its last stream is over.
    ///
    /// # Errors
    /// The preface could not be written.
    pub async fn begin(io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, https: bool) -> io::Result<Self> {
        let (heard, awaited) = (Arc::<AtomicUsize>::default(), Arc::<Awaited>::default());
        let (requests, connection) = Builder::new()
            .initial_window_size(H2_STREAM_WINDOW)
            .initial_connection_window_size(H2_CONNECTION_WINDOW)
            .max_header_list_size(MAX_HEAD)
            .max_send_buffer_size(SEND_BUFFER)
            .enable_push(false)
            .data_frame_budget(SMALL_FRAMES)
            .max_concurrent_reset_streams(REMEMBERED)
            .max_local_error_reset_streams(None)
            .handshake(Sieve::new(io, heard.clone(), awaited.clone()))
            .await
            .map_err(failed)?;
        let load =
            Arc::new(Load { used: Mutex::new((0, Instant::now())), over: AtomicBool::new(false), heard, awaited });
        let over = load.clone();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                log::debug!("an HTTP/2 connection to a backend: {error}");
            }
            over.over.store(true, Ordering::Relaxed);
        });
        Ok(Self { requests, https, load })
    }

    /// A stream for one request; `None` where there is no room for another, or the backend wants no more. `lengths`: what says its
    /// length may still have fields behind its body, and is given in chunks beside that length.
    pub fn stream(&self, lengths: bool) -> Option<Stream> {
        let mut requests = self.requests.clone();
        let open = matches!(requests.poll_ready(&mut Context::from_waker(Waker::noop())), Poll::Ready(Ok(())));
        let mut used = self.load.used();
        let most = MAX_H2_STREAMS.min(requests.current_max_send_streams());
        if !open || self.load.over.load(Ordering::Relaxed) || used.0 >= most {
            return None;
        }
        used.0 += 1;
        drop(used);
        Some(Stream::new(requests, self.https, lengths, Place::new(&self.load)))
    }

    /// Whether it is worth keeping: it is in use, or was not long ago.
    fn is_good(&self, now: Instant, patience: Duration) -> bool {
        let (streams, since) = *self.load.used();
        !self.load.over.load(Ordering::Relaxed) && (streams > 0 || now < since + patience)
    }
}

impl Load {
    fn used(&self) -> MutexGuard<'_, (usize, Instant)> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    fn new(load: &Arc<Load>) -> Self {
        Self { load: load.clone(), heard: load.heard.load(Ordering::Relaxed), stream: None }
    }

    /// The stream has this number.
    fn begins(&mut self, stream: u32) {
        self.load.awaited.begins(stream);
        self.stream = Some(stream);
    }

    /// It was waited for in vain. Where nothing at all has come since, the other end may be gone without a word, and the connection is
    /// left to those that are on it.
    fn late(&self) {
        if self.load.heard.load(Ordering::Relaxed) == self.heard {
            self.load.over.store(true, Ordering::Relaxed);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(stream) = self.stream {
            self.load.awaited.ends(stream);
        }
        let mut used = self.load.used();
        *used = (used.0.saturating_sub(1), Instant::now());
    }
}

/// The connections of a worker, by what they lead to.
#[derive(Debug, Default)]
pub(super) struct Connections(HashMap<u64, Shelf>);

/// Connections to one address, the oldest first, so that younger ones come to rest.
#[derive(Debug)]
struct Shelf {
    anchor: Anchor,
    patience: Duration,
    connections: Vec<Connection>,
}

impl Connections {
    /// As [`Connection::stream`], on the first one with room.
    pub(super) fn stream(&self, key: u64, lengths: bool) -> Option<Stream> {
        self.0.get(&key)?.connections.iter().find_map(|connection| connection.stream(lengths))
    }

    /// Keeps one for others, at most `most`, until it has been idle for `patience`.
    pub(super) fn keep(&mut self, key: u64, connection: Connection, most: usize, patience: Duration, anchor: Anchor) {
        let shelf = self.0.entry(key).or_insert(Shelf { anchor, patience, connections: Vec::new() });
        shelf.patience = patience;
        shelf.connections.retain(|connection| !connection.load.over.load(Ordering::Relaxed));
        if shelf.connections.len() < most && !patience.is_zero() {
            shelf.connections.push(connection);
        }
    }

    /// Lets go of what is over, has been idle for too long or leads to no backend any more. Returns how many are left.
    pub(super) fn sweep(&mut self, now: Instant) -> usize {
        self.0.retain(|_, shelf| {
            let patience = shelf.patience;
            shelf.connections.retain(|connection| connection.is_good(now, patience));
            shelf.anchor.holds() && !shelf.connections.is_empty()
        });
        self.0.values().map(|shelf| shelf.connections.len()).sum()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

//! Accepts connections and gives each to the worker that holds the fewest: the kernel's own spreading (SO_REUSEPORT)
//! hashes, which is uneven, and loses what is queued when a worker goes.

use std::{
    future::{Future as _, poll_fn},
    io,
    net::{IpAddr, SocketAddr},
    os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd},
    pin::pin,
    sync::{Arc, atomic::Ordering},
    task::Poll,
    time::Duration,
};

use tokio::io::{Interest, unix::AsyncFd};

use super::{
    Crew, Draining, Endpoint, Listening,
    conn::Socket,
    crew::{Mail, Member},
    limits::Counted,
    worker,
};
use crate::{
    config::model::ListenerLimits,
    proxy::Kit,
    runtime::descriptors,
    telemetry::metrics::{AcceptError, Metrics, OpenConnection},
    types::Refusal,
};

/// Connections accepted in a row before other work of the worker gets its turn.
const BATCH: usize = 64;
/// The first pause after an error that will not go away by itself at once (no descriptors left); it doubles up to
/// [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// An accepted connection on its way to its worker.
pub(super) struct Accepted {
    pub(super) socket: socket2::Socket,
    /// `None` for a unix socket.
    pub(super) client: Option<SocketAddr>,
    pub(super) endpoint: Arc<Endpoint>,
    pub(super) open: Open,
}

/// Counts a connection for as long as it is held.
pub(super) struct Open {
    held: Held,
    counted: Counted,
}

/// Counts it for its worker and for the metrics.
struct Held {
    worker: Arc<Kit>,
    _metrics: OpenConnection,
}

impl Open {
    fn new(member: &Member, endpoint: &Endpoint, counted: Counted) -> Self {
        let worker = member.post.kit.clone();
        worker.open_connections().fetch_add(1, Ordering::Relaxed);
        let metrics = endpoint.metrics.open(&member.metrics);
        Self { held: Held { worker, _metrics: metrics }, counted }
    }

    /// Of a connection that nobody has accepted.
    #[cfg(any(test, fuzzing))]
    pub(super) fn alone(kit: &Arc<Kit>, endpoint: &Endpoint) -> Self {
        kit.open_connections().fetch_add(1, Ordering::Relaxed);
        let metrics = endpoint.metrics.open(kit.metrics().worker(kit.index()));
        let counted = endpoint.place().census().admit(None, &endpoint.model.limits);
        let counted = counted.unwrap_or_else(|cause| panic!("one is not too many: {cause:?}"));
        Self { held: Held { worker: kit.clone(), _metrics: metrics }, counted }
    }

    /// As [`Counted::of`].
    ///
    /// # Errors
    /// As there; nothing is counted any more.
    pub(super) fn of(self, client: Option<IpAddr>, limits: &ListenerLimits) -> Result<Self, Refusal> {
        let Self { held, counted } = self;
        Ok(Self { held, counted: counted.of(client, limits)? })
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.worker.open_connections().fetch_sub(1, Ordering::Relaxed);
        self.worker.lull().ended();
    }
}

/// Accepts from one listener until the drain begins or the listener is taken away, for worker `me`.
pub(super) async fn accept(
    listening: Arc<Listening>,
    crew: Arc<Crew>,
    me: usize,
    metrics: Arc<Metrics>,
    mut draining: Draining,
) {
    let mut closing = listening.follow();
    // SAFETY: the descriptor belongs to the listener, which `Registered` keeps for as long as it is registered.
    let registered = unsafe { AsyncFd::register_with_interest(Registered(listening.clone()), Interest::READABLE) };
    let socket = match registered {
        Ok(socket) => socket,
        Err(error) => {
            log::error!("{}: cannot wait for connections: {error}", listening.endpoint().model.address);
            return;
        }
    };
    let begun = [draining.clone(), closing.clone()];
    // Asked once, which has it wake us: to begin to wait costs more than a connection that is accepted.
    let mut over = pin!(async {
        tokio::select! {
            () = draining.begin() => {}
            () = closing.begin() => {}
        }
    });
    let mut asked = false;
    let mut pause = FIRST_PAUSE;
    loop {
        let ready = poll_fn(|cx| {
            let ends = begun.iter().any(Draining::begun)
                || (!std::mem::replace(&mut asked, true) && over.as_mut().poll(cx).is_ready());
            if ends { Poll::Ready(None) } else { socket.poll_read_ready(cx).map(Some) }
        });
        let mut ready = match ready.await {
            None => break,
            Some(Ok(ready)) => ready,
            Some(Err(error)) => {
                log::error!("{}: cannot wait for connections: {error}", listening.endpoint().model.address);
                return;
            }
        };
        match accept_some(&listening, &crew, me, &metrics) {
            Ok(Drained::All) => {
                ready.clear_ready();
                pause = FIRST_PAUSE;
            }
            Ok(Drained::Some) => {
                pause = FIRST_PAUSE;
                tokio::task::yield_now().await;
            }
            Err(error) => {
                log::warn!("{}: cannot accept for the next {pause:?}: {error}", listening.endpoint().model.address);
                tokio::select! {
                    () = &mut over => break,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(LONGEST_PAUSE);
            }
        }
    }
    // What the kernel has already completed would be reset with the socket.
    while matches!(accept_some(&listening, &crew, me, &metrics), Ok(Drained::Some)) {}
}

enum Drained {
    All,
    Some,
}

fn accept_some(listening: &Arc<Listening>, crew: &Crew, me: usize, metrics: &Metrics) -> io::Result<Drained> {
    for _ in 0..BATCH {
        if !listening.socket.is_waited_for() {
            return Ok(Drained::All);
        }
        match listening.socket.accept() {
            Ok((socket, address)) => {
                let (endpoint, client) = (listening.endpoint(), address.as_socket());
                // A load balancer's connections are its clients', as soon as it has told them.
                let counted =
                    client.map(|client| client.ip()).filter(|client| !endpoint.model.is_told_clients(*client));
                let admitted = listening.census().admit(counted, &endpoint.model.limits);
                let admitted = admitted.and_then(|counted| {
                    if descriptors::is_for_client(socket.as_raw_fd()) { Ok(counted) } else { Err(Refusal::Limit) }
                });
                match admitted {
                    Ok(counted) => {
                        let to = crew.least_loaded(me);
                        let worker = crew.member(to);
                        let open = Open::new(worker, &endpoint, counted);
                        let accepted = Accepted { socket, client, endpoint, open };
                        if to == me {
                            worker::start(&worker.post, accepted);
                        } else {
                            worker.send(Mail::Accepted(accepted));
                        }
                    }
                    Err(cause) => {
                        let post = &crew.member(me).post;
                        endpoint.refused(client.map(|client| client.ip()), cause, None);
                        if endpoint.tls.is_none() {
                            turn_away(&socket, &post.kit.one_too_many(cause));
                        }
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Drained::All),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => {
                let kind = AcceptError::from_io(&error);
                metrics.accept_failed(kind);
                // Only this one connection is gone (accept(2)); every other error would come again at once.
                if kind != AcceptError::ConnectionAborted {
                    return Err(error);
                }
            }
        }
    }
    Ok(Drained::Some)
}

/// Answers as far as the socket takes it, and does not wait: who is one too many must cost nothing.
fn turn_away(socket: &socket2::Socket, answer: &[u8]) {
    let mut scratch = [std::mem::MaybeUninit::uninit(); 4096];
    // What has been sent must have been read, or closing would take the answer away.
    for _ in 0..4 {
        if !matches!(socket.recv(&mut scratch), Ok(1..)) {
            break;
        }
    }
    _ = socket.send(answer);
    _ = socket.shutdown(std::net::Shutdown::Write);
}

/// The listening socket in a worker's event loop.
struct Registered(Arc<Listening>);

impl AsRawFd for Registered {
    fn as_raw_fd(&self) -> RawFd {
        self.0.socket.as_raw_fd()
    }
}

impl AsFd for Registered {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.socket.as_fd()
    }
}

/// Makes the accepted socket part of this worker's event loop.
pub(super) fn adopt(socket: socket2::Socket, client: Option<SocketAddr>) -> io::Result<Socket> {
    if client.is_none() {
        return tokio::net::UnixStream::from_std(socket.into()).map(Socket::Unix);
    }
    tokio::net::TcpStream::from_std(socket.into()).map(Socket::Tcp)
}

//! The admin API: what people and programs see and change while the process runs, on addresses and a thread of its own.
//! Here connections are accepted and bounded; what a request means is in the files beside this one, `router` first.

mod auth;
mod backends;
mod call;
mod config;
mod events;
mod explain;
mod json;
mod openapi;
pub mod operator;
mod problem;
mod query;
mod router;
mod serve;
mod state;
mod status;
mod stream;
#[cfg(test)]
mod tests;
mod upstreams;

use std::{
    convert::Infallible,
    io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use http::Request;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use pingora_core::{
    server::{ListenFds, ShutdownWatch},
    services::Service,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream, UnixListener, UnixStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};
use tokio_rustls::TlsAcceptor;

pub use self::auth::{LiveTokens, Tokens};
use self::{auth::Peer, call::Shared, operator::Parts, serve::Place, stream::Impatient};

/// What bounds the API. Its users are few; what is more than this waits, or is refused.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// Connections on each transport; more wait to be accepted.
    connections: usize,
    /// Readers of events, counted apart from those.
    streams: usize,
    /// The TLS handshake.
    handshake: Duration,
    /// The first request of a connection that was accepted before the process began to leave.
    first: Duration,
    /// The head of a request, from the end of the one before.
    head: Duration,
    /// The body of a request.
    body: Duration,
    /// A connection that takes nothing of an answer for this long is cut.
    write: Duration,
    /// Between two lines to readers of events, so that both sides see that the other is there.
    heartbeat: Duration,
    /// How long answers under way may take when the process leaves.
    farewell: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 64,
            streams: 16,
            handshake: Duration::from_secs(10),
            first: Duration::from_millis(300),
            head: Duration::from_secs(10),
            body: Duration::from_secs(30),
            write: Duration::from_secs(15),
            heartbeat: Duration::from_secs(15),
            farewell: Duration::from_secs(3),
        }
    }
}

/// A request's head in memory at most; hyper answers 431 to longer ones.
const LONGEST_HEAD: usize = 64 << 10;

/// The API on TCP: the listener, TLS where it has it, and who may do what.
pub type OnTcp = (std::net::TcpListener, Option<LiveTls>, LiveTokens);

/// What the next handshake is made with; another where a certificate was renewed.
pub type LiveTls = Arc<dyn Fn() -> Arc<rustls::ServerConfig> + Send + Sync>;

/// The admin API, as a Pingora service.
pub struct AdminApi {
    parts: Option<Parts>,
    unix: Option<std::os::unix::net::UnixListener>,
    tcp: Option<OnTcp>,
    gate: watch::Receiver<bool>,
    closing: watch::Receiver<bool>,
    limits: Limits,
}

impl AdminApi {
    /// Serves on bound listeners from when `gate` is open until `closing` becomes true; answers under way are finished
    /// then.
    pub fn new(
        parts: Parts,
        unix: Option<std::os::unix::net::UnixListener>,
        tcp: Option<OnTcp>,
        gate: watch::Receiver<bool>,
        closing: watch::Receiver<bool>,
    ) -> Self {
        Self { parts: Some(parts), unix, tcp, gate, closing, limits: Limits::default() }
    }

    async fn run(&mut self) -> io::Result<()> {
        let Some(Parts { store, operator, metrics, answering }) = self.parts.take() else { return Ok(()) };
        let (tcp, tokens) = match self.tcp.take() {
            Some((listener, tls, tokens)) => (Some((listener, tls)), Some(tokens)),
            None => (None, None),
        };
        let shared = Arc::new(Shared {
            store,
            operator,
            metrics,
            answering,
            tokens,
            streams: Arc::new(Semaphore::new(self.limits.streams)),
            limits: self.limits,
            closing: self.closing.clone(),
            warned: Default::default(),
        });
        let unix = self.unix.take().map(Listener::unix).transpose()?;
        let tcp = tcp.map(|(listener, tls)| Listener::tcp(listener, tls)).transpose()?;
        let _ = self.gate.wait_for(|open| *open).await;
        let accept = async |listener: Option<Listener>| {
            if let Some(listener) = listener {
                listener.serve(&shared).await;
            }
        };
        tokio::join!(accept(unix), accept(tcp));
        Ok(())
    }
}

#[async_trait]
impl Service for AdminApi {
    async fn start_service(&mut self, _: Option<ListenFds>, _: ShutdownWatch, _: usize) {
        if let Err(error) = self.run().await {
            log::error!("admin: {error}");
        }
    }

    fn name(&self) -> &str {
        "admin"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

/// Where connections come from.
enum Listener {
    Tcp(TcpListener, Option<LiveTls>),
    Unix(UnixListener),
}

/// A connection that was accepted.
enum Accepted {
    Tcp(TcpStream, Option<TlsAcceptor>),
    Unix(UnixStream),
}

impl Listener {
    fn unix(listener: std::os::unix::net::UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        UnixListener::from_std(listener).map(Self::Unix)
    }

    fn tcp(listener: std::net::TcpListener, tls: Option<LiveTls>) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::Tcp(TcpListener::from_std(listener)?, tls))
    }

    async fn accept(&self) -> io::Result<Accepted> {
        Ok(match self {
            Self::Tcp(listener, tls) => {
                let stream = listener.accept().await?.0;
                Accepted::Tcp(stream, tls.as_ref().map(acceptor))
            }
            Self::Unix(listener) => Accepted::Unix(listener.accept().await?.0),
        })
    }

    async fn serve(self, shared: &Arc<Shared>) {
        let places = Arc::new(Semaphore::new(shared.limits.connections));
        let mut closing = shared.closing.clone();
        loop {
            let next = async {
                let place = places.clone().acquire_owned().await;
                (place, self.accept().await)
            };
            let (place, accepted) = tokio::select! {
                _ = closing.wait_for(|closing| *closing) => break,
                next = next => next,
            };
            let Ok(place) = place else { break };
            match accepted {
                Ok(accepted) => drop(tokio::spawn(accepted.converse(shared.clone(), place))),
                Err(error) => {
                    log::warn!("admin: cannot accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(self);
        // All places are free when all answers are sent.
        let all = u32::try_from(shared.limits.connections).unwrap_or(u32::MAX);
        let _ = tokio::time::timeout(shared.limits.farewell, places.acquire_many(all)).await;
    }
}

fn acceptor(live: &LiveTls) -> TlsAcceptor {
    // Whatever the listener's kind of TLS offers elsewhere: here HTTP/1.1 is spoken.
    let mut config = rustls::ServerConfig::clone(&live());
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    TlsAcceptor::from(Arc::new(config))
}

impl Accepted {
    async fn converse(self, shared: Arc<Shared>, place: OwnedSemaphorePermit) {
        match self {
            Self::Unix(stream) => {
                let peer = Peer::Local(stream.peer_cred().ok().map(|peer| peer.uid()));
                converse(stream, peer, shared, place).await;
            }
            Self::Tcp(stream, None) => converse(stream, Peer::Remote, shared, place).await,
            Self::Tcp(stream, Some(tls)) => {
                match tokio::time::timeout(shared.limits.handshake, tls.accept(stream)).await {
                    Ok(Ok(stream)) => converse(stream, Peer::Remote, shared, place).await,
                    Ok(Err(error)) => log::debug!("admin: TLS: {error}"),
                    Err(_) => log::debug!("admin: the TLS handshake took too long"),
                }
            }
        }
    }
}

/// Answers the requests of one connection.
async fn converse<S>(stream: S, peer: Peer, shared: Arc<Shared>, place: OwnedSemaphorePermit)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let place = Arc::new(Place::new(place));
    let limits = shared.limits;
    let mut closing = shared.closing.clone();
    // Whoever has just connected has asked, or is about to: nobody would read it any more, and nobody else can.
    let fresh = Arc::new(Mutex::new(Some(shared.answering.one())));
    let unasked = fresh.clone();
    let (begun, mut begins) = watch::channel(false);
    let answer = service_fn(move |request: Request<Incoming>| {
        let (shared, place) = (shared.clone(), place.clone());
        let first = fresh.lock().unwrap_or_else(PoisonError::into_inner).take();
        begun.send_replace(true);
        async move {
            let _under_way = first.unwrap_or_else(|| shared.answering.one());
            Ok::<_, Infallible>(serve::answer(&shared, peer, &place, request).await)
        }
    });
    let stream = TokioIo::new(Impatient::new(stream, limits.write));
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head)
        .max_buf_size(LONGEST_HEAD)
        .serve_connection(stream, answer);
    let mut connection = std::pin::pin!(connection);
    let closed = async {
        let _ = closing.wait_for(|closing| *closing).await;
        let _ = tokio::time::timeout(limits.first, begins.wait_for(|begun| *begun)).await;
        drop(unasked.lock().unwrap_or_else(PoisonError::into_inner).take());
    };
    let served = tokio::select! {
        served = connection.as_mut() => Some(served),
        () = closed => None,
    };
    let served = match served {
        Some(served) => served,
        None => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        log::debug!("admin: {error}");
    }
}

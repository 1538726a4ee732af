//! HTTP/1 origins that name themselves and remember what they saw. All their tasks end with them.

use std::{
    future::Future,
    io,
    net::SocketAddr,
    os::fd::{AsRawFd, RawFd},
    path::Path,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use rustls::{HandshakeKind, ServerConfig};
use tokio::{
    net::{TcpListener, UnixListener},
    sync::watch,
    task::{JoinHandle, JoinSet},
};

use super::{
    address, eventually,
    http1::{Message, Wire},
    wait_until,
};

/// What an origin saw.
#[derive(Default)]
pub struct Seen {
    connections: AtomicUsize,
    open: AtomicUsize,
    silent: AtomicUsize,
    requests: Mutex<Vec<Message>>,
    handshakes: Mutex<Vec<SeenHandshake>>,
}

/// A TLS handshake as the origin saw it.
#[derive(Clone, Debug)]
pub struct SeenHandshake {
    /// Full or resumed; `None` where it failed.
    pub kind: Option<HandshakeKind>,
    /// The name asked for.
    pub sni: Option<String>,
    /// Whether the client showed a certificate.
    pub client_certificate: bool,
}

type Script = Arc<dyn Fn(Peer) -> Pin<Box<dyn Future<Output = ()> + Send>> + Send + Sync>;

/// An HTTP/1 origin.
pub struct Origin {
    /// As written into `backends`.
    pub address: String,
    /// What it puts into `X-Origin`.
    pub name: String,
    script: Script,
    tls: Option<Arc<ServerConfig>>,
    seen: Arc<Seen>,
    gate: watch::Sender<bool>,
    task: Option<JoinHandle<()>>,
}

impl Origin {
    /// Answers everything; see [`echo`] for its paths.
    pub async fn echo(name: &str) -> Self {
        Self::script(name, echo).await
    }

    /// As [`Origin::echo`], over TLS.
    pub async fn tls(name: &str, config: Arc<ServerConfig>) -> Self {
        Self::tls_at(address::unused(), name, config).await
    }

    /// As [`Origin::tls`], at a given address.
    pub async fn tls_at(address: SocketAddr, name: &str, config: Arc<ServerConfig>) -> Self {
        Self::start(address.to_string(), name, Some(config), boxed(echo)).await
    }

    /// As [`Origin::echo`], on a unix socket.
    pub async fn unix(name: &str, path: &Path) -> Self {
        Self::start(format!("unix:{}", path.display()), name, None, boxed(echo)).await
    }

    /// As [`Origin::echo`], at a given address.
    pub async fn at(address: SocketAddr, name: &str) -> Self {
        Self::start(address.to_string(), name, None, boxed(echo)).await
    }

    /// Does with each connection what the script says.
    pub async fn script<F>(name: &str, script: impl Fn(Peer) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start(address::unused().to_string(), name, None, boxed(script)).await
    }

    /// As [`Origin::script`], on a unix socket, whose buffers do not grow.
    pub async fn unix_script<F>(name: &str, path: &Path, script: impl Fn(Peer) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start(format!("unix:{}", path.display()), name, None, boxed(script)).await
    }

    /// As [`Origin::script`], over TLS.
    pub async fn tls_script<F>(
        name: &str,
        config: Arc<ServerConfig>,
        script: impl Fn(Peer) -> F + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        Self::start(address::unused().to_string(), name, Some(config), boxed(script)).await
    }

    async fn start(address: String, name: &str, tls: Option<Arc<ServerConfig>>, script: Script) -> Self {
        let (gate, _) = watch::channel(false);
        let seen = Arc::new(Seen::default());
        let mut origin = Self { address, name: name.to_owned(), script, tls, seen, gate, task: None };
        origin.restart().await;
        origin
    }

    /// Listens again after [`Origin::stop`], at the same address.
    pub async fn restart(&mut self) {
        let mut bound = Listener::bind(&self.address).await;
        // A process that is just being started has a copy of every socket, for a moment.
        eventually("the address to be free", async || {
            if bound.as_ref().is_err_and(|error| error.kind() == std::io::ErrorKind::AddrInUse) {
                bound = Listener::bind(&self.address).await;
                return false;
            }
            true
        })
        .await;
        let listener = bound.unwrap_or_else(|e| panic!("bind {}: {e}", self.address));
        let acceptor = self.tls.clone().map(tokio_rustls::TlsAcceptor::from);
        let (script, seen, gate) = (Arc::clone(&self.script), Arc::clone(&self.seen), self.gate.clone());
        let name = self.name.clone();
        self.task = Some(tokio::spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((wire, fd)) = listener.accept().await {
                seen.connections.fetch_add(1, Ordering::SeqCst);
                let (script, acceptor) = (Arc::clone(&script), acceptor.clone());
                let open = Open::new(Arc::clone(&seen));
                let (name, gate) = (name.clone(), gate.subscribe());
                connections.spawn(async move {
                    let wire = match acceptor {
                        None => wire,
                        Some(acceptor) => match handshake(&acceptor, wire, &open.0).await {
                            Some(wire) => wire,
                            None => return,
                        },
                    };
                    script(Peer { wire, name, open, gate, fd, heard: false }).await;
                });
                while connections.try_join_next().is_some() {}
            }
        }));
    }

    /// Closes the listening socket and every connection; new connections are refused.
    pub async fn stop(&mut self) {
        let Some(task) = self.task.take() else { return };
        task.abort();
        let _ = task.await;
        let seen = Arc::clone(&self.seen);
        wait_until("the origin's connections to be gone", move || seen.open.load(Ordering::SeqCst) == 0).await;
        if let Some(path) = self.address.strip_prefix("unix:") {
            let _ = std::fs::remove_file(path);
        }
    }

    /// Lets all `/hold` requests be answered, also later ones.
    pub fn release(&self) {
        self.gate.send_replace(true);
    }

    /// Requests so far, probes included.
    pub fn requests(&self) -> Vec<Message> {
        self.seen.requests.lock().expect("no panic under the lock").clone()
    }

    /// How many requests had this path.
    pub fn count(&self, path: &str) -> usize {
        let requests = self.seen.requests.lock().expect("no panic under the lock");
        requests.iter().filter(|r| r.target() == path).count()
    }

    /// How many requests there were.
    pub fn total(&self) -> usize {
        self.seen.requests.lock().expect("no panic under the lock").len()
    }

    /// The only request so far.
    pub fn only_request(&self) -> Message {
        let mut all = self.requests();
        assert_eq!(all.len(), 1, "{} saw other requests than one: {all:#?}", self.name);
        all.remove(0)
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// Connections open now.
    pub fn open(&self) -> usize {
        self.seen.open.load(Ordering::SeqCst)
    }

    /// Connections that ended without a byte from the other side: TCP probes.
    pub fn silent(&self) -> usize {
        self.seen.silent.load(Ordering::SeqCst)
    }

    /// TLS handshakes so far.
    pub fn handshakes(&self) -> Vec<SeenHandshake> {
        self.seen.handshakes.lock().expect("no panic under the lock").clone()
    }
}

impl Drop for Origin {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

fn boxed<F>(script: impl Fn(Peer) -> F + Send + Sync + 'static) -> Script
where
    F: Future<Output = ()> + Send + 'static,
{
    Arc::new(move |peer| Box::pin(script(peer)))
}

/// A connection at an origin.
pub struct Peer {
    /// The bytes.
    pub wire: Wire,
    name: String,
    open: Open,
    gate: watch::Receiver<bool>,
    fd: RawFd,
    heard: bool,
}

impl Peer {
    /// The next request with its body, remembered; `None` when the other side is done.
    pub async fn request(&mut self) -> Option<Message> {
        let mut request = self.head().await?;
        if request.field("expect").is_some() {
            self.send("HTTP/1.1 100 Continue\r\n\r\n").await;
        }
        self.wire.body(&mut request).await.ok()?;
        self.remember(request.clone());
        Some(request)
    }

    /// The next request's head, remembered without its body.
    pub async fn request_head(&mut self) -> Option<Message> {
        let head = self.head().await?;
        self.remember(head.clone());
        Some(head)
    }

    async fn head(&mut self) -> Option<Message> {
        let head = self.wire.head().await;
        match &head {
            Ok(None) if !self.heard => drop(self.open.0.silent.fetch_add(1, Ordering::SeqCst)),
            _ => self.heard = true,
        }
        head.ok().flatten()
    }

    fn remember(&self, request: Message) {
        self.open.0.requests.lock().expect("no panic under the lock").push(request);
    }

    /// Sends bytes; a peer that is gone is no failure of the origin.
    pub async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self.wire.send(bytes).await;
    }

    /// Sends a whole response with `X-Origin`.
    pub async fn reply(&mut self, status: u16, fields: &str, body: &str) {
        let (name, length) = (&self.name, body.len());
        let head = format!("HTTP/1.1 {status} Fine\r\nX-Origin: {name}\r\nContent-Length: {length}\r\n{fields}\r\n");
        self.send(head + body).await;
    }

    /// Waits for [`Origin::release`].
    pub async fn held(&mut self) {
        let _ = self.gate.wait_for(|open| *open).await;
    }

    /// Ends the connection with a TCP reset.
    pub fn reset(self) {
        let linger = libc::linger { l_onoff: 1, l_linger: 0 };
        let size = u32::try_from(size_of::<libc::linger>()).expect("small");
        // SAFETY: the descriptor is open as long as `self.wire`, and `linger` outlives the call.
        unsafe { libc::setsockopt(self.fd, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size) };
    }
}

/// Counts an open connection as long as it lives.
struct Open(Arc<Seen>);

impl Open {
    fn new(seen: Arc<Seen>) -> Self {
        seen.open.fetch_add(1, Ordering::SeqCst);
        Self(seen)
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::SeqCst);
    }
}

/// `/hold` waits for [`Origin::release`]; `/size/N` gives N bytes; `/chunked` two chunks; `/status/N` that status; anything
/// else the request's body, or the origin's name where there is none. A request with `X-Close` closes the connection.
pub async fn echo(mut peer: Peer) {
    while let Some(request) = peer.request().await {
        let path = request.target().to_owned();
        let name = peer.name.clone();
        if path.starts_with("/hold") {
            peer.held().await;
        }
        let close = request.fields("connection").contains(&"close") || request.field("x-close").is_some();
        if request.method() == "HEAD" {
            peer.send(format!("HTTP/1.1 200 OK\r\nX-Origin: {name}\r\nContent-Length: 5\r\n\r\n")).await;
        } else if let Some(size) = path.strip_prefix("/size/") {
            bytes(&mut peer, size.parse().expect("a size")).await;
        } else if path == "/chunked" {
            let head = format!("HTTP/1.1 200 OK\r\nX-Origin: {name}\r\nTransfer-Encoding: chunked\r\n\r\n");
            peer.send(head + "5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n").await;
        } else if let Some(status) = path.strip_prefix("/status/") {
            peer.reply(status.parse().expect("a status"), "", &name).await;
        } else if request.length > 0 {
            peer.reply(200, "", &request.text()).await;
        } else {
            peer.reply(200, if close { "Connection: close\r\n" } else { "" }, &name).await;
        }
        if close {
            return;
        }
    }
}

async fn bytes(peer: &mut Peer, size: u64) {
    let head = format!("HTTP/1.1 200 OK\r\nX-Origin: {}\r\nContent-Length: {size}\r\n\r\n", peer.name);
    peer.send(head).await;
    let block = vec![b'x'; 256 << 10];
    let mut left = size;
    while left > 0 {
        let now = block.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        if peer.wire.send(&block[..now]).await.is_err() {
            return;
        }
        left -= now as u64;
    }
}

async fn handshake(acceptor: &tokio_rustls::TlsAcceptor, wire: Wire, seen: &Seen) -> Option<Wire> {
    let (io, _) = wire.into_parts();
    let accepted = acceptor.accept(io).await;
    let told = match &accepted {
        Err(_) => SeenHandshake { kind: None, sni: None, client_certificate: false },
        Ok(stream) => {
            let session = stream.get_ref().1;
            SeenHandshake {
                kind: session.handshake_kind(),
                sni: session.server_name().map(str::to_owned),
                client_certificate: session.peer_certificates().is_some(),
            }
        }
    };
    seen.handshakes.lock().expect("no panic under the lock").push(told);
    accepted.ok().map(Wire::new)
}

enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl Listener {
    async fn bind(address: &str) -> io::Result<Self> {
        match address.strip_prefix("unix:") {
            Some(path) => UnixListener::bind(path).map(Self::Unix),
            None => TcpListener::bind(address).await.map(Self::Tcp),
        }
    }

    async fn accept(&self) -> io::Result<(Wire, RawFd)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                stream.set_nodelay(true)?;
                let fd = stream.as_raw_fd();
                Ok((Wire::new(stream), fd))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let fd = stream.as_raw_fd();
                Ok((Wire::new(stream), fd))
            }
        }
    }
}

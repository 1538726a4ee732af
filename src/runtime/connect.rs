//! Connecting to a backend: exactly `timeouts.connect` for the TCP or unix step, source addresses in turn, errors that
//! say what happened. TLS, TCP_NODELAY and pooling stay Pingora's: what is returned is a plain socket of its own type.

use std::{
    io,
    net::SocketAddr as InetAddr,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use pingora_core::{
    BError, Error, ErrorType, OrErr, Result,
    connectors::l4::{BindTo, Connect},
    protocols::l4::{
        ext::{connect as connect_tcp, connect_uds},
        socket::SocketAddr,
        stream::Stream,
    },
};

use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio_util::either::Either;

use super::{connections::Connections, descriptors, line::Socket};
use crate::{
    config::model,
    policy::proxy_protocol::{self, Agreed, Said, Version},
};

/// Opens the connections of one upstream.
#[derive(Debug)]
pub struct Connector {
    timeout: Duration,
    unacknowledged: Duration,
    from_v4: Vec<InetAddr>,
    from_v6: Vec<InetAddr>,
    turn: AtomicUsize,
    opened: Arc<AtomicU64>,
    connections: Option<Arc<Connections>>,
}

impl Connector {
    /// `timeout` bounds one connection; `opened` counts those that were made. What a backend has not taken after
    /// `unacknowledged` ends the connection (TCP_USER_TIMEOUT): Pingora's own write deadline notices, but goes on
    /// waiting for an answer.
    pub fn new(timeout: Duration, unacknowledged: Duration, process: &model::Process, opened: Arc<AtomicU64>) -> Self {
        let any_port = |ip: std::net::IpAddr| InetAddr::new(ip, 0);
        Self {
            timeout,
            unacknowledged,
            from_v4: process.client_bind_to_ipv4.iter().map(|ip| any_port((*ip).into())).collect(),
            from_v6: process.client_bind_to_ipv6.iter().map(|ip| any_port((*ip).into())).collect(),
            turn: AtomicUsize::new(0),
            opened,
            connections: None,
        }
    }

    /// As it is, and every connection is recorded, so that it can be closed when its backend is gone.
    pub fn recorded(self, connections: Arc<Connections>) -> Self {
        Self { connections: Some(connections), ..self }
    }

    fn source(&self, to: &InetAddr) -> Option<BindTo> {
        let sources = if to.is_ipv4() { &self.from_v4 } else { &self.from_v6 };
        let turn = self.turn.fetch_add(1, Ordering::Relaxed).checked_rem(sources.len())?;
        let mut source = BindTo::default();
        source.addr = sources.get(turn).copied();
        Some(source)
    }

    async fn open(&self, to: &SocketAddr) -> Result<Socket> {
        match to {
            SocketAddr::Inet(to) => {
                let stream = connect_tcp(to, self.source(to).as_ref()).await?;
                if let Err(error) = socket2::SockRef::from(&stream).set_tcp_user_timeout(Some(self.unacknowledged)) {
                    log::debug!("TCP_USER_TIMEOUT towards {to}: {error}");
                }
                stream.set_nodelay(true).or_err(ErrorType::ConnectError, "TCP_NODELAY")?;
                Ok(Either::Left(stream))
            }
            SocketAddr::Unix(to) => connect_uds(to.as_pathname().unwrap_or(Path::new(""))).await.map(Either::Right),
        }
    }

    /// A socket to a backend, counted and recorded.
    ///
    /// # Errors
    /// There is none within the time. It may be tried elsewhere.
    pub async fn dial(&self, to: &SocketAddr) -> Result<Socket> {
        // Probes find out what is up all the same.
        if self.connections.is_some() && !descriptors::is_next_for_backend() {
            return Err(no_descriptor(to));
        }
        let opened = match tokio::time::timeout(self.timeout, self.open(to)).await {
            Ok(opened) => opened.map_err(|error| connect_failure(error, to)),
            Err(elapsed) => Err(Error::because(
                ErrorType::ConnectTimedout,
                format!("no connection to {to} within {:?}", self.timeout),
                elapsed,
            )),
        };
        match opened {
            Ok(stream) => {
                self.opened.fetch_add(1, Ordering::Relaxed);
                if let Some(connections) = &self.connections {
                    match &stream {
                        Either::Left(tcp) => connections.record(tcp, to),
                        Either::Right(unix) => connections.record(unix, to),
                    }
                }
                Ok(stream)
            }
            Err(mut error) => {
                // Nothing was sent, so another backend may be tried whatever the request is.
                error.set_retry(true);
                Err(error)
            }
        }
    }
}

#[async_trait]
impl Connect for Connector {
    async fn connect(&self, to: &SocketAddr) -> Result<Stream> {
        Ok(match self.dial(to).await? {
            Either::Left(tcp) => Stream::from(tcp),
            Either::Right(unix) => Stream::from(unix),
        })
    }
}

/// As another connector, but the first bytes of each connection are a PROXY header, before TLS. For the connections of one
/// client only, so it is made for a request and not for an upstream.
#[derive(Debug)]
pub struct Announcing {
    connector: Arc<dyn Connect + Send + Sync>,
    header: Vec<u8>,
}

impl Announcing {
    /// Connects by `connector`, and sends `header`.
    pub fn new(connector: Arc<dyn Connect + Send + Sync>, header: Vec<u8>) -> Self {
        Self { connector, header }
    }
}

/// For probes, which are for no client: where backends are sent PROXY headers, theirs say so.
pub fn for_probes(connector: Connector, version: Option<Version>) -> Arc<dyn Connect + Send + Sync> {
    let connector = Arc::new(connector);
    match version {
        Some(version) => {
            Arc::new(Announcing::new(connector, proxy_protocol::write(version, Said::Local, &Agreed::default())))
        }
        None => connector,
    }
}

#[async_trait]
impl Connect for Announcing {
    async fn connect(&self, to: &SocketAddr) -> Result<Stream> {
        let mut stream = self.connector.connect(to).await?;
        announce(&mut stream, &self.header, to).await?;
        Ok(stream)
    }
}

/// Sends a PROXY header on a new connection to `to`.
///
/// # Errors
/// It cannot be sent; another backend may be tried.
pub async fn announce(stream: &mut (impl AsyncWrite + Unpin), header: &[u8], to: &SocketAddr) -> Result<()> {
    // Less than the buffer of a fresh socket, so that it does not wait.
    let sent = async {
        stream.write_all(header).await?;
        stream.flush().await
    };
    sent.await.map_err(|error| {
        let mut error = Error::because(ErrorType::ConnectError, format!("cannot send a PROXY header to {to}"), error);
        error.set_retry(true);
        error
    })
}

/// Whether there was no descriptor for a connection.
pub fn lacked_descriptor(error: &Error) -> bool {
    let cause = error.root_cause().downcast_ref::<io::Error>();
    cause.is_some_and(|cause| matches!(cause.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)))
}

/// What is left is for others. As where the system has none.
fn no_descriptor(to: &SocketAddr) -> BError {
    let none = io::Error::from_raw_os_error(libc::EMFILE);
    let mut error = Error::because(ErrorType::ConnectError, format!("cannot connect to {to}"), none);
    error.set_retry(true);
    error
}

/// Keeps the kinds an operator can act on; what Pingora calls its own or the socket's fault is a failed connection too.
fn connect_failure(mut error: BError, to: &SocketAddr) -> BError {
    if !matches!(error.etype, ErrorType::ConnectNoRoute | ErrorType::ConnectRefused | ErrorType::ConnectTimedout) {
        error.etype = ErrorType::ConnectError;
    }
    error.set_context(format!("cannot connect to {to}"));
    error
}

/// Whether this process or its system, and not the other side, is the cause: no descriptor, memory or source port left.
/// Pingora keeps of it only the text.
pub fn is_ours(error: &Error) -> bool {
    let text = error.to_string();
    [libc::EADDRNOTAVAIL, libc::EMFILE, libc::ENFILE, libc::ENOBUFS, libc::ENOMEM]
        .iter()
        .any(|number| text.contains(&format!("os error {number})")))
}

#[cfg(test)]
mod tests {
    use pingora_core::{
        connectors::{ConnectorOptions, TransportConnector},
        upstreams::peer::{HttpPeer, Peer},
    };
    use tokio::net::{TcpListener, UnixListener};

    use super::*;
    use crate::runtime::upstream::fixtures;

    fn peer(address: SocketAddr, connector: Arc<Connector>) -> HttpPeer {
        let mut peer = HttpPeer::new(InetAddr::from(([127, 0, 0, 1], 1)), false, String::new());
        peer._address = address;
        peer.options.custom_l4 = Some(connector);
        peer
    }

    fn connector(timeout: Duration) -> (Arc<Connector>, Arc<AtomicU64>) {
        let opened = Arc::new(AtomicU64::new(0));
        (Arc::new(Connector::new(timeout, timeout, &fixtures::process(), opened.clone())), opened)
    }

    #[tokio::test]
    async fn a_tcp_connection_is_pooled_and_reused() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let (connector, opened) = connector(Duration::from_secs(5));
        let peer = peer(SocketAddr::Inet(address), connector);
        let transport = TransportConnector::new(Some(ConnectorOptions::new(8)));
        let (first, reused) = transport.get_stream(&peer).await.expect("connects");
        assert!(!reused);
        let digest = first.get_socket_digest().expect("a digest");
        assert_eq!(digest.peer_addr().and_then(SocketAddr::as_inet), Some(&address));
        assert!(digest.local_addr().is_some());
        transport.release_stream(first, peer.reuse_hash(), None);
        let (_second, reused) = transport.get_stream(&peer).await.expect("reuses");
        assert!(reused);
        assert_eq!(opened.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn a_unix_connection_is_pooled_and_reused() {
        let path = std::env::temp_dir().join(format!("rrlb-connect-{}.sock", std::process::id()));
        let _ = std::fs::remove_file(&path);
        let _listener = UnixListener::bind(&path).expect("binds");
        let (connector, opened) = connector(Duration::from_secs(5));
        let address = std::os::unix::net::SocketAddr::from_pathname(&path).expect("short");
        let peer = peer(SocketAddr::Unix(address), connector);
        let transport = TransportConnector::new(Some(ConnectorOptions::new(8)));
        let (first, _) = transport.get_stream(&peer).await.expect("connects");
        transport.release_stream(first, peer.reuse_hash(), None);
        let (_second, reused) = transport.get_stream(&peer).await.expect("reuses");
        assert!(reused);
        assert_eq!(opened.load(Ordering::Relaxed), 1);
        let _ = std::fs::remove_file(&path);
    }

    #[tokio::test]
    async fn failures_keep_their_kind_and_cause_and_may_be_retried() {
        let free = TcpListener::bind("127.0.0.1:0").await.expect("loopback").local_addr().expect("bound");
        let (tcp, opened) = connector(Duration::from_secs(5));
        let refused = tcp.connect(&SocketAddr::Inet(free)).await.expect_err("nobody listens");
        assert_eq!(refused.etype(), &ErrorType::ConnectRefused);
        assert!(refused.retry());
        let mut cause: Option<&dyn std::error::Error> = Some(refused.root_cause());
        while let Some(error) = cause.filter(|error| !error.is::<io::Error>()) {
            cause = error.source();
        }
        let kind = cause.and_then(|cause| cause.downcast_ref::<io::Error>()).map(io::Error::kind);
        assert_eq!(kind, Some(io::ErrorKind::ConnectionRefused));

        let missing = std::os::unix::net::SocketAddr::from_pathname("/nonexistent/rrlb.sock").expect("short");
        let absent = tcp.connect(&SocketAddr::Unix(missing)).await.expect_err("no such socket");
        assert_eq!(absent.etype(), &ErrorType::ConnectError);
        assert_eq!(opened.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn the_connect_timeout_is_kept() {
        // A listener whose queue is full answers no further SYN.
        let socket = tokio::net::TcpSocket::new_v4().expect("socket");
        socket.bind(InetAddr::from(([127, 0, 0, 1], 0))).expect("binds");
        let listener = socket.listen(1).expect("listens");
        let address = listener.local_addr().expect("bound");
        let (slow, _) = connector(Duration::from_millis(100));
        let mut held = Vec::new();
        let timed_out = loop {
            let started = std::time::Instant::now();
            match slow.connect(&SocketAddr::Inet(address)).await {
                Ok(stream) => held.push(stream),
                Err(error) => break (error, started.elapsed()),
            }
            assert!(held.len() < 64, "the queue never filled");
        };
        assert_eq!(timed_out.0.etype(), &ErrorType::ConnectTimedout);
        assert!(timed_out.0.retry());
        assert!(timed_out.1 >= Duration::from_millis(100) && timed_out.1 < Duration::from_secs(2));
    }

    #[tokio::test]
    async fn source_addresses_take_turns() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let mut process = fixtures::process();
        process.client_bind_to_ipv4 = vec![[127, 0, 0, 2].into(), [127, 0, 0, 3].into()];
        let connector = Connector::new(Duration::from_secs(5), Duration::from_secs(5), &process, Arc::default());
        let mut seen = Vec::new();
        for _ in 0..4 {
            let _stream = connector.connect(&SocketAddr::Inet(address)).await.expect("connects");
            seen.push(listener.accept().await.expect("accepts").1.ip().to_string());
        }
        assert_eq!(seen, ["127.0.0.2", "127.0.0.3", "127.0.0.2", "127.0.0.3"]);
    }
}

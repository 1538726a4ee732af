//! Connections to authentication services that are asked over TLS: verified by the route's own `ca` or the system's roots,
//! with the URL's host as name. A pool for each configuration of TLS, so that who trusts one authority never uses a
//! connection that another has vouched for.

use std::{
    future::{Future, ready},
    io,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, Weak},
    task::{Context, Poll},
};

use http::Uri;
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector},
    rt::TokioIo,
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tower_service::Service;

use super::forward::Pooled;
use crate::runtime::{descriptors, line::Pool};

/// A client that speaks TLS.
pub(super) type SecureClient = Pooled<Connector>;

/// The clients of a worker.
pub(super) struct SecureClients {
    tcp: Tcp,
    clients: Mutex<Vec<(Weak<ClientConfig>, SecureClient)>>,
}

impl SecureClients {
    /// None yet; `tcp` is what they will be over.
    pub(super) fn new(tcp: Tcp) -> Self {
        Self { tcp, clients: Mutex::default() }
    }

    /// The client that verifies services like this. Those of configurations that are gone go with their connections when
    /// there is a new one.
    pub(super) fn of(&self, config: &Arc<ClientConfig>) -> SecureClient {
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        let known = clients.iter().find(|(of, _)| std::ptr::eq(of.as_ptr(), Arc::as_ptr(config)));
        if let Some((_, client)) = known {
            return client.clone();
        }
        clients.retain(|(of, _)| of.strong_count() > 0);
        // A copy, so that what is known of the configuration's life does not depend on the client's.
        let client = Pooled::new(Connector {
            tcp: self.tcp.clone(),
            tls: TlsConnector::from(Arc::new(ClientConfig::clone(config))),
        });
        clients.push((Arc::downgrade(config), client.clone()));
        client
    }
}

/// Plain connections, which have the descriptors that those to backends have, also those of the worker's that wait.
#[derive(Clone)]
pub(super) struct Tcp {
    connector: HttpConnector,
    waiting: Arc<Pool>,
}

impl Tcp {
    pub(super) fn new(waiting: Arc<Pool>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        connector.enforce_http(false);
        Self { connector, waiting }
    }
}

impl Service<Uri> for Tcp {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<TcpStream>>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.connector.poll_ready(cx).map_err(io::Error::other)
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        while !descriptors::is_next_for_backend() {
            if !self.waiting.give_up() {
                return Box::pin(ready(Err(io::Error::from_raw_os_error(libc::EMFILE))));
            }
        }
        let connecting = self.connector.call(url);
        Box::pin(async move { connecting.await.map_err(io::Error::other) })
    }
}

/// Makes a connection and its handshake; the question's deadline holds for both.
#[derive(Clone)]
pub(super) struct Connector {
    tcp: Tcp,
    tls: TlsConnector,
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Secured>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<TokioIo<Secured>>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.tcp.poll_ready(cx)
    }

    fn call(&mut self, url: Uri) -> Self::Future {
        let host = url.host().unwrap_or_default().trim_matches(['[', ']']);
        let name = ServerName::try_from(host.to_owned());
        let (connecting, tls) = (self.tcp.call(url), self.tls.clone());
        Box::pin(async move {
            let name = name.map_err(io::Error::other)?;
            let stream = connecting.await?.into_inner();
            Ok(TokioIo::new(Secured(tls.connect(name, stream).await?)))
        })
    }
}

/// A connection after its handshake.
pub(super) struct Secured(TlsStream<TcpStream>);

impl Connection for Secured {
    fn connected(&self) -> Connected {
        self.0.get_ref().0.connected()
    }
}

impl AsyncRead for Secured {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(cx, buf)
    }
}

impl AsyncWrite for Secured {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(cx)
    }
}

//! PROXY headers of load balancers, read before anything else on a connection: who the client is. What came with the
//! header (a ClientHello, a request) is kept for who reads on.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};

use super::{Endpoint, conn::Socket};
use crate::{
    policy::proxy_protocol::{self, Agreed, Header, Parsed, Source, Version},
    runtime::deadlines::Deadline,
    telemetry::metrics::ProxyHeader,
    types::{ListenAddress, Refusal},
};

/// Read at once; more than any header that carries no certificate.
const READ: usize = 512;

/// Both ends of a client's connection, as everything after this sees them.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    /// Who connected to us, whatever a header says; `None` for a unix socket.
    pub(super) peer: Option<IpAddr>,
    /// A load balancer connected for somebody, and did not say for whom.
    pub(super) hidden: bool,
    /// Whose connection this is, where that was not known when it was accepted; for `connections_per_ip`.
    pub(super) counted: Option<IpAddr>,
    /// `None` for a unix socket.
    pub(super) client: Option<SocketAddr>,
    /// Where the client connected to; `None` for a unix socket.
    pub(super) local: Option<SocketAddr>,
    /// What the client agreed on with whom it connected to.
    pub(super) agreed: Agreed,
}

impl Ends {
    /// As the connection itself says.
    pub(super) fn of(endpoint: &Endpoint, socket: &Socket, client: Option<SocketAddr>) -> Self {
        Self {
            peer: client.map(|client| client.ip()),
            hidden: false,
            counted: None,
            client,
            local: local(endpoint, socket),
            agreed: Agreed::default(),
        }
    }

    /// The client's address.
    pub(super) fn address(&self) -> Option<IpAddr> {
        self.client.map(|client| client.ip())
    }

    /// As a header says.
    fn told(self, source: Source, agreed: Agreed) -> Self {
        match source {
            Source::Inet { from, to } => {
                Self { client: Some(from), local: Some(to), counted: Some(from.ip()), agreed, ..self }
            }
            // Its own connections are no client's. Those it says nothing about may be of many: counted as one client's they
            // would be cut, and who believes the load balancer has `connections` for them.
            Source::Local => self,
            Source::Unknown => Self { hidden: true, ..self },
            Source::Unix => Self { client: None, local: None, agreed, ..self },
        }
    }
}

/// Where the client of `socket` connected to; `None` for a unix socket.
pub(super) fn local(endpoint: &Endpoint, socket: &Socket) -> Option<SocketAddr> {
    match (&endpoint.model.address, socket) {
        (ListenAddress::Inet(address), _) if !address.ip().is_unspecified() && address.port() > 0 => Some(*address),
        (_, Socket::Tcp(stream)) => stream.local_addr().ok(),
        _ => None,
    }
}

/// Reads the header that the listener asks for, if it does. Gives the ends of the connection and what came behind the
/// header. `deadline` is armed on the socket.
///
/// # Errors
/// The connection is not to be served; says why, unless it went away without a word.
pub(super) async fn read(
    socket: &mut Socket,
    ends: Ends,
    endpoint: &Endpoint,
    deadline: &Deadline,
) -> Result<(Ends, BytesMut), Option<Refusal>> {
    let Some(rule) = &endpoint.model.proxy_protocol else { return Ok((ends, BytesMut::new())) };
    let count = |result| endpoint.metrics.proxy_header(result);
    if !rule.believes(ends.address()) {
        // What it sends is never taken for a header.
        if rule.required {
            count(ProxyHeader::Refused);
            return Err(Some(Refusal::ProxyHeaderRefused));
        }
        return Ok((ends, BytesMut::new()));
    }
    let mut bytes = BytesMut::with_capacity(READ);
    let (header, length) = loop {
        match proxy_protocol::parse(&bytes) {
            Parsed::Absent if !rule.required => {
                return Ok((Ends { counted: ends.peer, ..ends }, bytes));
            }
            Parsed::Absent => {
                count(ProxyHeader::Missing);
                return Err(Some(Refusal::ProxyHeaderMissing));
            }
            Parsed::Complete(header, length) => break (header, length),
            Parsed::Incomplete => {}
            Parsed::Malformed => {
                count(ProxyHeader::Malformed);
                return Err(Some(Refusal::ProxyHeaderMalformed));
            }
        }
        if !matches!(socket.read_buf(&mut bytes).await, Ok(1..)) {
            return Err(if deadline.fired() {
                count(ProxyHeader::TimedOut);
                Some(Refusal::ProxyHeaderTimeout)
            } else if !bytes.is_empty() {
                count(ProxyHeader::Malformed);
                Some(Refusal::ProxyHeaderMalformed)
            } else {
                None
            });
        }
    };
    count(result(&header));
    log::debug!("{}: {:?} connects: {header:?}", endpoint.model.address, ends.client);
    bytes.advance(length);
    Ok((ends.told(header.source, header.agreed), bytes))
}

fn result(header: &Header) -> ProxyHeader {
    match (header.source, header.version) {
        (Source::Local, _) => ProxyHeader::Local,
        (_, Version::V1) => ProxyHeader::V1,
        (_, Version::V2) => ProxyHeader::V2,
    }
}

/// A socket, and what was read of it before.
#[derive(Debug)]
pub(super) struct Replayed {
    ahead: BytesMut,
    pub(super) socket: Socket,
}

impl Replayed {
    /// The socket itself where nothing was read.
    pub(super) fn over(socket: Socket, ahead: BytesMut) -> Socket {
        if ahead.is_empty() { socket } else { Socket::Replayed(Box::new(Self { ahead, socket })) }
    }

    /// The first byte that was read before.
    pub(super) fn first(&self) -> Option<u8> {
        self.ahead.first().copied()
    }
}

impl AsyncRead for Replayed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.ahead.is_empty() {
            return Pin::new(&mut this.socket).poll_read(cx, buf);
        }
        let now = this.ahead.split_to(this.ahead.len().min(buf.remaining()));
        buf.put_slice(&now);
        if this.ahead.is_empty() {
            this.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Replayed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, data)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(cx, parts)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}

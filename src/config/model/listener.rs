//! Where rrlb accepts, and what it allows there.

use std::{net::IpAddr, sync::Arc, time::Duration};

use ipnet::IpNet;

use super::{Engine, ListenerTls};
use crate::{
    policy::access::Access,
    types::{ByteSize, ListenAddress},
};

/// An address that accepts.
#[derive(Clone, Debug)]
pub struct Listener {
    /// Where to bind.
    pub address: ListenAddress,
    /// `None` is plain text.
    pub tls: Option<ListenerTls>,
    /// HTTP/2 by prior knowledge beside HTTP/1.1; plain listeners only.
    pub h2c: bool,
    /// Every request is answered with a redirect to `https://` and the same host.
    pub redirect_https: bool,
    /// Who says on whose behalf it connects; `None`: nobody, the default.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// Deadlines and sizes.
    pub limits: ListenerLimits,
    /// Whose requests are taken, by the connection's peer; `None` is everybody's.
    pub access: Option<Arc<Access>>,
    /// Who moves the bytes of its plain requests, where their route does not say; `None`: as everywhere.
    pub engine: Option<Engine>,
}

/// Load balancers that send PROXY protocol headers, version 1 or 2, before anything else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// Who may send one; never empty, but for a unix socket: who can open that may.
    pub from: Vec<IpNet>,
    /// They must send one, and nobody else is served; default true. Otherwise those who send none, and anybody else, are
    /// served as they are.
    pub required: bool,
}

impl Listener {
    /// Whether a connection from there may tell with a PROXY header whose it is.
    pub fn is_told_clients(&self, peer: IpAddr) -> bool {
        self.proxy_protocol.as_ref().is_some_and(|rule| rule.believes(Some(peer)))
    }
}

impl ProxyProtocol {
    /// Whether a header from there is believed; `None` is a unix socket.
    pub fn believes(&self, peer: Option<IpAddr>) -> bool {
        peer.is_none_or(|peer| self.from.iter().any(|network| network.contains(&peer.to_canonical())))
    }
}

/// Deadlines and sizes of a listener.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenerLimits {
    /// TLS handshake from accept to finished, no longer than `header_timeout`; default 10 s.
    pub handshake_timeout: Duration,
    /// The whole head of a request from its first byte (from accept on a fresh connection, whatever comes before it); default 10 s.
    pub header_timeout: Duration,
    /// Between requests; default 60 s.
    pub idle_timeout: Duration,
    /// A request in all, counted from the end of its head, whatever answers it; not a WebSocket. Default: no limit.
    pub request_timeout: Option<Duration>,
    /// Request line and all fields; default 32 KiB, 1 KiB to 1 MiB.
    pub max_header_size: ByteSize,
    /// The request's target; default 8 KiB, 64 B to 65,534 B.
    pub max_uri_length: ByteSize,
    /// Fields of a request's head; default 100, 1 to 256.
    pub max_headers: u32,
    /// A request's body; default: no limit.
    pub max_body_size: Option<ByteSize>,
    /// Bytes per second that a client has to send or to take while it is the one who is waited for, after a grace of
    /// 5 s; default 1 KiB.
    pub min_body_rate: Option<ByteSize>,
    /// Requests on one connection; default 10,000.
    pub requests_per_connection: u32,
    /// Connections open at once; default: no limit.
    pub connections: Option<u32>,
    /// Connections open at once of one client: an IPv4 address or an IPv6 /64; default: no limit.
    pub connections_per_ip: Option<u32>,
}

//! The validated configuration: what every other floor reads. No serde, no operator text left to parse; a `Model`
//! that exists is one that can be served, but for what only the machine can tell (a used port, a dead backend).

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use http::{HeaderValue, StatusCode};
use ipnet::IpNet;

mod guard;
mod listener;
mod tls;

pub use guard::{BasicAuth, ConcurrencyLimit, ForwardAuth, Guards, RateLimit, Secret, ServiceTls};
pub use listener::{Listener, ListenerLimits, ProxyProtocol};
pub use tls::{Certificate, CipherProfile, ClientAuth, ClientAuthMode, ListenerTls, Ocsp, RevocationLists};

pub use super::engine::Engine;
use crate::{
    policy::{
        balance::Balance, headers::HeaderEdits, health::Thresholds, outlier::EjectPolicy, path::SentPath,
        proxy_protocol, retry::RetryPolicy, route::RouteMatch,
    },
    types::{AdminState, BackendAddress, Name, Weight},
};

/// Everything one configuration file says.
#[derive(Clone, Debug)]
pub struct Model {
    /// Pingora's own keys.
    pub process: Process,
    /// Certificates by name.
    pub certificates: BTreeMap<Name, Arc<Certificate>>,
    /// At least one; no address twice.
    pub listeners: Vec<Listener>,
    /// Groups of backends by name.
    pub upstreams: BTreeMap<Name, Upstream>,
    /// First match wins. Where the file has none and one upstream, one catch-all route to it.
    pub routes: Vec<Route>,
    /// Peers whose `X-Forwarded-*` and `Forwarded` are believed; empty by default.
    pub trusted_proxies: Vec<IpNet>,
    /// The pseudonym in `Via` (RFC 9110 §7.6.3), default `rrlb`; `None` where the file says `via: off`.
    pub via: Option<Name>,
    /// `None` is off, the default.
    pub access_log: Option<AccessLog>,
    /// Where `/metrics`, `/healthz` and `/readyz` are served; `None` by default.
    pub metrics: Option<SocketAddr>,
    /// Where changes at run time are kept; `None` by default: they end with the process.
    pub state_file: Option<PathBuf>,
    /// The admin API; `None` by default.
    pub admin: Option<Admin>,
    /// Reload by itself when the file changes; default false.
    pub reload_on_change: bool,
    /// Who moves the bytes of plain requests, where neither their route nor their listener says.
    pub engine: Engine,
}

/// The admin API.
#[derive(Clone, Debug)]
pub struct Admin {
    /// A unix socket, mode 0660; default `admin.sock` beside the upgrade socket, chosen by `server/`.
    pub socket: Option<PathBuf>,
    /// TCP as well; needs a token, and TLS where it is not loopback.
    pub tcp: Option<AdminTcp>,
}

/// The admin API on TCP.
#[derive(Clone, Debug)]
pub struct AdminTcp {
    /// Where to bind.
    pub address: SocketAddr,
    /// May do everything.
    pub token: Token,
    /// May only look.
    pub read_token: Option<Token>,
    /// `None` is plain text, on loopback only.
    pub tls: Option<ListenerTls>,
}

/// A secret from a file, never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    /// The file, for messages and the effective configuration.
    pub path: PathBuf,
    /// What it holds, without blanks at its ends.
    pub secret: Arc<[u8]>,
}

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Token").field("path", &self.path).finish_non_exhaustive()
    }
}

/// Pingora's process keys, with Pingora's names, and what rrlb makes of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    /// Worker threads, 1 or more; default 1.
    pub threads: usize,
    /// Run in the background; also by `-d`.
    pub daemon: bool,
    /// Where standard error goes in the background.
    pub error_log: Option<PathBuf>,
    /// `None` writes none.
    pub pid_file: Option<PathBuf>,
    /// Where a successor asks for the listening sockets; `None` is the default place of `server/`.
    pub upgrade_sock: Option<PathBuf>,
    /// Account to change to after binding.
    pub user: Option<String>,
    /// Group to change to after binding; default the user's.
    pub group: Option<String>,
    /// Directory to change to in the background.
    pub working_directory: Option<PathBuf>,
    /// Trust store for all upstreams in place of the system's roots.
    pub ca_file: Option<PathBuf>,
    /// Upper bound of a drain; default 30 s.
    pub grace_period: Duration,
    /// How long a runtime may take to end after the drain; default 5 s.
    pub graceful_shutdown_timeout: Duration,
    /// Idle upstream connections kept per worker; default 128.
    pub upstream_keepalive_pool_size: usize,
    /// Source addresses for upstream connections.
    pub client_bind_to_ipv4: Vec<std::net::Ipv4Addr>,
    /// Source addresses for upstream connections.
    pub client_bind_to_ipv6: Vec<std::net::Ipv6Addr>,
}

/// A TLS version rrlb speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum TlsVersion {
    /// TLS 1.2
    V1_2,
    /// TLS 1.3
    V1_3,
}

/// An application protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alpn {
    /// `http/1.1`
    Http1,
    /// `h2`
    Http2,
}

/// A named group of backends.
#[derive(Clone, Debug)]
pub struct Upstream {
    /// The key in `upstreams`.
    pub name: Name,
    /// No id and no address twice; not all of weight 0. May be empty: filled at run time.
    pub backends: Vec<Backend>,
    /// Where more backends come from.
    pub discover: Option<Discover>,
    /// How a backend is chosen; default round robin.
    pub balance: Balance,
    /// `None` is plain text.
    pub tls: Option<UpstreamTls>,
    /// What is spoken to the backends.
    pub protocol: UpstreamProtocol,
    /// What goes into `Host` / `:authority`.
    pub host_header: HostHeader,
    /// Active checks; `None` probes nothing and counts every backend as up.
    pub health_check: Option<HealthCheck>,
    /// How long a backend that comes up or joins takes to its whole share, 1 s to 1 h; `None`: it has it at once, the
    /// default. Without effect where `balance` hashes.
    pub slow_start: Option<Duration>,
    /// Deadlines towards the backends.
    pub timeouts: Timeouts,
    /// When and how often another backend is tried.
    pub retry: RetryPolicy,
    /// When a backend that fails is taken out for a while; `None` is never, the default.
    pub eject: Option<EjectPolicy>,
    /// How each connection begins by saying for which client it is; `None`: it does not, the default. Never with HTTP/2,
    /// whose connections are for many clients.
    pub proxy_protocol: Option<proxy_protocol::Version>,
    /// gRPC-web is translated into gRPC; default false.
    pub grpc_web: bool,
}

/// Where backends come from beside the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Discover {
    /// A name in DNS; each address in the answer is a backend.
    Dns(DiscoverDns),
    /// A watched YAML or JSON list of backends, in the form of `backends`.
    List(DiscoverList),
}

/// Backends from DNS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoverDns {
    /// Lower case, without a trailing dot.
    pub name: String,
    /// Which records are asked for.
    pub records: DnsRecords,
    /// Between two lookups at most, spread by 10 %; an answer with a shorter TTL is asked for again sooner. Default 10 s, at
    /// least 1 s.
    pub refresh: Duration,
    /// Servers to ask; empty is the system's.
    pub servers: Vec<SocketAddr>,
}

/// Records of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DnsRecords {
    /// A and AAAA, on this port (written `name:port`).
    Addresses {
        /// 1–65535.
        port: u16,
    },
    /// SRV: port and weight come from the record (written as a name without a port).
    Srv,
}

/// Backends from a watched file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiscoverList {
    /// Absolute.
    pub path: PathBuf,
    /// How often the file is looked at; default 1 s, at least 100 ms.
    pub refresh: Duration,
}

/// One address of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// What the backend is; default the address as written.
    pub id: Name,
    /// Where it is reached.
    pub address: BackendAddress,
    /// Its share; default 1.
    pub weight: Weight,
    /// What people want of it; the file says nothing about that.
    pub admin: AdminState,
}

/// TLS towards the backends.
#[derive(Clone, Debug)]
pub struct UpstreamTls {
    /// Name in SNI and checked in the certificate; `None` only where every backend is a host name, which is then used.
    pub sni: Option<String>,
    /// Check chain and name; default true.
    pub verify: bool,
    /// Trust store in place of the system's roots: file and its certificates, DER.
    pub ca: Option<TrustStore>,
    /// Shown to backends that ask.
    pub client_cert: Option<Arc<Certificate>>,
    /// Offered protocols in order of preference; default h2, http/1.1. Overruled by `protocol: h1 | h2`.
    pub alpn: Vec<Alpn>,
}

/// Trusted certificates from a file.
#[derive(Clone, Debug)]
pub struct TrustStore {
    /// The file.
    pub path: PathBuf,
    /// Its certificates; at least one.
    pub certificates: Arc<[rustls::pki_types::CertificateDer<'static>]>,
}

/// What is spoken to the backends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UpstreamProtocol {
    /// By ALPN on TLS, else HTTP/1.1. The default.
    Auto,
    /// HTTP/1.1 only.
    Http1,
    /// HTTP/2 over TLS only.
    Http2,
    /// HTTP/2 in plain text by prior knowledge.
    H2c,
}

/// What goes into `Host` / `:authority` towards the backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostHeader {
    /// A fixed `host[:port]`.
    Fixed(HeaderValue),
    /// What the client sent. The default.
    Preserve,
    /// The SNI name.
    Sni,
}

/// Active health check.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthCheck {
    /// What a probe does.
    pub probe: Probe,
    /// Between the starts of two probes of one backend, spread by ±10 %; default 5 s, at least 10 ms.
    pub interval: Duration,
    /// The whole probe; default 1 s.
    pub timeout: Duration,
    /// When results change the verdict.
    pub thresholds: Thresholds,
}

/// What a probe does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A GET over the upstream's transport (TLS where the upstream has it).
    Http(HttpProbe),
    /// A connection; with the TLS handshake where the upstream has TLS.
    Tcp,
}

/// An HTTP probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpProbe {
    /// Path and query; default `/`.
    pub path: String,
    /// `Host`; default the SNI name, else the backend's address.
    pub host: Option<HeaderValue>,
    /// Statuses that are a success; default 200–299 (written as an empty list here).
    pub status: Vec<StatusCode>,
}

/// Deadlines towards a backend. `None` is off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// The TCP connection; default 3 s.
    pub connect: Duration,
    /// The TLS handshake, counted with the connection's remaining part; default 5 s.
    pub tls: Duration,
    /// From the last byte of the request to the first of the answer; default 60 s.
    pub first_byte: Duration,
    /// Between two reads of an answer's body; default 60 s.
    pub read: Duration,
    /// For one write of a request; default 60 s.
    pub write: Duration,
    /// How long an unused pooled connection is kept; default 55 s.
    pub idle: Duration,
    /// A request in all, retries included; default off. Ends with an upgrade (WebSocket).
    pub total: Option<Duration>,
    /// Silence on an upgraded connection, both ways; default 1 h.
    pub websocket_idle: Duration,
}

/// A match and what to do.
#[derive(Clone, Debug)]
pub struct Route {
    /// Default `route-N`, counted from 1.
    pub name: Name,
    /// The name is the file's; the default goes to another route as soon as one is put in front.
    pub named: bool,
    /// All given parts must match.
    pub matches: RouteMatch,
    /// What a request must pass first.
    pub guards: Guards,
    /// Who moves the bytes of its plain requests; `None`: as at their listener.
    pub engine: Option<Engine>,
    /// What is done with the request.
    pub action: RouteAction,
    /// Edits of the request towards the backend.
    pub request_headers: HeaderEdits,
    /// Edits of the answer towards the client.
    pub response_headers: HeaderEdits,
}

/// What is done with a matching request.
#[derive(Clone, Debug)]
pub enum RouteAction {
    /// Send it to an upstream.
    Proxy(ProxyAction),
    /// Answer with a redirect.
    Redirect(Redirect),
    /// Answer at once.
    Respond(Respond),
}

/// Send the request to an upstream.
#[derive(Clone, Debug)]
pub struct ProxyAction {
    /// Where to, with shares; one entry where there is no split. Every name exists. Not all shares are 0.
    pub upstreams: Vec<(Name, Weight)>,
    /// A path prefix that is taken off before the request is sent; on a segment border, without trailing slash.
    pub strip_prefix: Option<String>,
    /// What the backend is sent of the path; default as it came.
    pub path: SentPath,
}

/// Answer with a redirect.
#[derive(Clone, Debug)]
pub struct Redirect {
    /// `Location` as written: an absolute URL or an absolute path.
    pub to: HeaderValue,
    /// 301, 302, 303, 307 or 308; default 302.
    pub status: StatusCode,
}

/// Answer at once.
#[derive(Clone, Debug)]
pub struct Respond {
    /// 200–599; default 200.
    pub status: StatusCode,
    /// Default empty.
    pub body: bytes::Bytes,
}

/// Where and how requests are logged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessLog {
    /// File or standard output.
    pub target: LogTarget,
    /// The form of a line; default JSON.
    pub format: LogFormat,
}

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LogTarget {
    /// Appended to this file, which is opened again on SIGUSR1.
    File(PathBuf),
    /// `-`
    Stdout,
}

/// The form of a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// The combined log format of Apache and nginx.
    Combined,
    /// One JSON object.
    Json,
}

//! What is known of a connection and of a request while it is served.

use std::{
    borrow::Cow,
    net::{IpAddr, SocketAddr},
    os::fd::RawFd,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, Ordering},
    },
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::uri::PathAndQuery;
use pingora_core::protocols::http::bridge::grpc_web::GrpcWebCtx;
use rustls::ProtocolVersion;

use super::{
    cancel::Cancel,
    client::{TlsInfo, Verified},
    current::Current,
    guard::Admitted,
    id::Id,
};
use crate::{
    config::model,
    policy::{forwarded::Scheme, proxy_protocol::Agreed},
    runtime::{
        backend::{BackendState, Picked},
        deadlines::{Deadline, abort_on_close, queued},
        snapshot::{Member, Route},
    },
    telemetry::metrics::{AttemptInFlight, RequestInFlight},
    types::{AddressText, AttemptFailure, Reason},
};

/// No place in [`Reason::ALL`].
const NO_FAULT: u8 = u8::MAX;

/// What is known of a client's connection.
#[derive(Debug)]
pub struct ConnInfo {
    client: Option<SocketAddr>,
    /// The same without its port as text, of which every request tells.
    client_text: Option<AddressText>,
    local: Option<SocketAddr>,
    /// As the connection itself says.
    connected: Option<IpAddr>,
    hidden: bool,
    agreed: Agreed,
    tls: Option<TlsInfo>,
    verified: Verified,
    listener: Arc<model::Listener>,
    logged: AtomicBool,
    afterwards: AtomicU8,
    fault: AtomicU8,
    /// Made when somebody asks for it.
    blocked: OnceLock<Arc<AtomicBool>>,
    fd: RawFd,
}

/// What becomes of an HTTP/1 connection after a request, where Pingora gives it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Afterwards {
    /// It is closed.
    Drop,
    /// It is closed too, unless more of its client has come: that has said that it sends no more, and the system holds little for it.
    Close,
    /// The client is given time to read its answer before the connection is closed, until it closes its side.
    Linger,
    /// It serves another request.
    NextRequest,
}

impl ConnInfo {
    /// A connection from `client` (`None` for a unix socket), by the PROXY header where there was one, on the descriptor `fd`.
    pub fn new(client: Option<SocketAddr>, tls: Option<TlsInfo>, listener: Arc<model::Listener>, fd: RawFd) -> Self {
        Self {
            client,
            client_text: client.map(|client| AddressText::new(client.ip())),
            local: None,
            connected: client.map(|client| client.ip()),
            hidden: false,
            agreed: Agreed::default(),
            tls,
            verified: Verified::NotAsked,
            listener,
            logged: AtomicBool::new(false),
            afterwards: AtomicU8::new(Afterwards::Drop as u8),
            fault: AtomicU8::new(NO_FAULT),
            blocked: OnceLock::new(),
            fd,
        }
    }

    /// Whether requests are judged by this configuration of the listener.
    pub fn is_of(&self, listener: *const model::Listener) -> bool {
        std::ptr::eq(Arc::as_ptr(&self.listener), listener)
    }

    /// The same connection, between requests (HTTP/1), with another configuration of its listener to judge them by.
    #[must_use]
    pub fn judged_by(&self, listener: &Arc<model::Listener>) -> Self {
        let Self { client, local, connected, hidden, ref agreed, tls, ref verified, ref blocked, fd, .. } = *self;
        let (agreed, verified, blocked) = (agreed.clone(), verified.clone(), blocked.clone());
        let new = Self::new(client, tls, listener.clone(), fd);
        Self { local, connected, hidden, agreed, verified, blocked, ..new }
    }

    /// With what is known of the client's certificate.
    pub fn with_client(self, verified: Verified) -> Self {
        Self { verified, ..self }
    }

    /// What is known of the client's certificate.
    pub(super) fn verified(&self) -> &Verified {
        &self.verified
    }

    /// As it is, of a client who agreed on this with the first who spoke TLS to it.
    pub fn agreed_on(self, agreed: Agreed) -> Self {
        Self { agreed, ..self }
    }

    /// What the client agreed on in TLS, here or before a PROXY header.
    pub(super) fn agreed(&self) -> &Agreed {
        &self.agreed
    }

    /// As it is, from a client that connected to `local`.
    pub fn at(self, local: Option<SocketAddr>) -> Self {
        Self { local, ..self }
    }

    /// As it is, from somebody who connected from `connected`, and with a PROXY header hid for whom where `hidden`.
    pub fn from(self, connected: Option<IpAddr>, hidden: bool) -> Self {
        Self { connected, hidden, ..self }
    }

    /// Who connected, whatever a PROXY header says: for logs. `None` for a unix socket.
    pub(super) fn connected(&self) -> Option<IpAddr> {
        self.connected
    }

    /// Who wrote the fields of requests, if that is known: the client of a PROXY header and never the load balancer, which
    /// passes on what it has not read. Where the header names nobody, nobody is to be believed.
    pub(super) fn author(&self) -> Option<IpAddr> {
        if self.hidden { None } else { self.peer() }
    }

    /// The client's address and the one it connected to; `None` for a unix socket.
    pub(super) fn ends(&self) -> Option<(SocketAddr, SocketAddr)> {
        self.client.zip(self.local)
    }

    /// The peer's address, by the PROXY header where there was one; `None` for a unix socket.
    pub fn peer(&self) -> Option<IpAddr> {
        self.client.map(|client| client.ip())
    }

    /// As [`ConnInfo::peer`], as text.
    pub(super) fn peer_text(&self) -> Option<&AddressText> {
        self.client_text.as_ref()
    }

    /// An address as text; it is the peer's, most likely.
    pub(super) fn text_of(&self, address: IpAddr) -> Cow<'_, AddressText> {
        let is_peers = self.peer().is_some_and(|peer| peer.to_canonical() == address.to_canonical());
        let known = self.peer_text().filter(|_| is_peers);
        known.map_or_else(|| Cow::Owned(AddressText::new(address)), Cow::Borrowed)
    }

    /// Whether the listener serves this peer; behind a PROXY header that is the client it tells.
    pub(super) fn is_admitted(&self) -> bool {
        self.listener.access.as_ref().is_none_or(|access| access.allows(self.peer()))
    }

    /// `None` on plain text.
    pub fn tls(&self) -> Option<&TlsInfo> {
        self.tls.as_ref()
    }

    pub(super) fn scheme(&self) -> Scheme {
        if self.tls.is_some() { Scheme::Https } else { Scheme::Http }
    }

    pub(super) fn redirect_https(&self) -> bool {
        self.listener.redirect_https
    }

    /// Who moves the bytes of plain requests, where the listener says.
    pub(super) fn engine(&self) -> Option<model::Engine> {
        self.listener.engine
    }

    /// What the listener allows.
    pub fn limits(&self) -> &model::ListenerLimits {
        &self.listener.limits
    }

    /// As in logs; empty on plain text.
    pub(super) fn tls_version(&self) -> &'static str {
        match self.tls.and_then(|tls| tls.version) {
            Some(ProtocolVersion::TLSv1_2) => "TLSv1.2",
            Some(ProtocolVersion::TLSv1_3) => "TLSv1.3",
            _ => "",
        }
    }

    /// Whether the current request has been logged; for one request at a time (HTTP/1).
    pub fn logged(&self) -> bool {
        self.logged.load(Ordering::Relaxed)
    }

    /// Another request begins.
    pub fn begin_request(&self) {
        self.logged.store(false, Ordering::Relaxed);
        self.afterwards.store(Afterwards::Drop as u8, Ordering::Relaxed);
        self.fault.store(NO_FAULT, Ordering::Relaxed);
        self.set_blocked(false);
    }

    /// See [`ConnInfo::logged`].
    pub(super) fn set_logged(&self) {
        self.logged.store(true, Ordering::Relaxed);
    }

    /// What becomes of the connection if Pingora gives it up.
    pub fn afterwards(&self) -> Afterwards {
        match self.afterwards.load(Ordering::Relaxed) {
            value if value == Afterwards::NextRequest as u8 => Afterwards::NextRequest,
            value if value == Afterwards::Linger as u8 => Afterwards::Linger,
            _ => Afterwards::Drop,
        }
    }

    /// See [`ConnInfo::afterwards`].
    pub(super) fn set_afterwards(&self, afterwards: Afterwards) {
        self.afterwards.store(afterwards as u8, Ordering::Relaxed);
    }

    /// What the connection itself found wrong with the client in the current request.
    pub fn set_fault(&self, fault: Reason) {
        self.fault.store(fault as u8, Ordering::Relaxed);
    }

    /// See [`ConnInfo::set_fault`].
    pub(super) fn fault(&self) -> Option<Reason> {
        Reason::ALL.get(usize::from(self.fault.load(Ordering::Relaxed))).copied()
    }

    /// Whether the client does not take what is sent to it.
    pub fn set_blocked(&self, blocked: bool) {
        if blocked || self.blocked.get().is_some() {
            self.blocked().store(blocked, Ordering::Relaxed);
        }
    }

    pub(super) fn blocked(&self) -> &Arc<AtomicBool> {
        self.blocked.get_or_init(Arc::default)
    }

    pub(super) fn fd(&self) -> RawFd {
        self.fd
    }

    /// Whether the client has yet to take something of what was written to it.
    pub(super) fn is_behind(&self) -> bool {
        self.blocked.get().is_some_and(|blocked| blocked.load(Ordering::Relaxed)) || queued(self.fd) > 0
    }

    /// The connection ends in a reset when it is closed: the client must see that something is missing.
    pub fn abort(&self) {
        abort_on_close(self.fd);
    }
}

/// What the listener gives each request on its way.
#[derive(Clone, Debug)]
pub struct RequestStart {
    /// The connection.
    pub info: Arc<ConnInfo>,
    /// What the request is served by.
    pub current: Arc<Current>,
    /// Randomness of this request.
    pub seed: u64,
    /// When its head had come.
    pub began: Instant,
    /// Ends a request of an HTTP/2 client; `None` for HTTP/1.
    pub cancel: Option<Arc<Cancel>>,
}

/// What a deadline on the upstream connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Waiting {
    /// The end of the request as a whole only.
    End,
    /// The first byte of the answer.
    FirstByte,
    /// The next part of the request's body, from an HTTP/2 client; HTTP/1 has its own deadline in Pingora.
    Body,
    /// The next part of the answer.
    Read,
    /// Either side of an upgraded connection.
    WebSocket,
    /// The backend, to take the next part of the request's body.
    Write,
}

/// Whether an attempt must not use a pooled connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fresh {
    Done,
    Needed,
    NotNeeded,
}

/// A request while it is served. Small: everything that is the same for all requests is in [`Current`].
pub struct RequestCtx {
    pub(super) started: Instant,
    /// When the first attempt could begin: guards have let the request pass. Later where its body came slowly.
    pub(super) asked: Instant,
    pub(super) start: Option<RequestStart>,
    pub(super) route: Option<usize>,
    pub(super) upstream: Option<usize>,
    /// What backends are asked for, where that is not the target as it came.
    pub(super) target: Option<PathAndQuery>,
    pub(super) client: Option<IpAddr>,
    pub(super) peer_trusted: bool,
    pub(super) scheme: Scheme,
    pub(super) request_id: Option<Id>,
    /// What the route's guards left with it.
    pub(super) admitted: Option<Box<Admitted>>,
    pub(super) attempts: u32,
    /// Positions of backends that failed this request.
    pub(super) tried: Vec<usize>,
    pub(super) picked: Option<Picked>,
    /// It is the exchange that makes attempts.
    pub(super) exchanged: bool,
    /// Counts the attempt, and the request, as in flight.
    pub(super) attempt: Option<AttemptInFlight>,
    pub(super) in_flight: Option<RequestInFlight>,
    /// Of an attempt that failed, for the log.
    pub(super) last_backend: Option<Arc<BackendState>>,
    pub(super) deadline: Option<Deadline>,
    pub(super) waiting: Waiting,
    /// How long; `None` is until the end of the request.
    pub(super) patience: Option<Duration>,
    pub(super) upstream_fd: i32,
    /// When the request as a whole must be done.
    pub(super) total_due: Option<Instant>,
    /// Any byte of the body, or its end, has been given towards a backend.
    pub(super) body_sent: bool,
    /// All of the body was given when the backend's stream took no more of it.
    pub(super) all_given: bool,
    /// The request has a body, even if an empty one.
    pub(super) has_body: bool,
    /// Bytes after which a backend on HTTP/1.1 takes the body for whole, though the client has not ended it.
    pub(super) whole: Option<u64>,
    /// The last byte of such a body, until its end is seen.
    pub(super) held: Option<Bytes>,
    /// The attempt's connection came from the pool.
    pub(super) reused: bool,
    /// The last attempt failed on a stale connection, so the next is made on a fresh one; at most once.
    pub(super) fresh: Fresh,
    /// What called for the next attempt.
    pub(super) retry: Option<AttemptFailure>,
    /// What Pingora waits for each read of the answer.
    pub(super) read_timeout: Duration,
    pub(super) answered: bool,
    /// The answer is one that has no body (RFC 9110 §15.3.5, §15.4.5).
    pub(super) bodiless: bool,
    /// Interim answers of the attempt.
    pub(super) interim: u8,
    /// The attempt was counted for or against its backend, or is not to be.
    pub(super) judged: bool,
    /// A backend's answer has been on its way to the client.
    pub(super) relayed: bool,
    /// When all of the answer had left, where that is known.
    pub(super) ended: Option<Instant>,
    pub(super) upgraded: bool,
    /// How far the translation of gRPC-web is.
    pub(super) grpc_web: GrpcWebCtx,
    pub(super) reason: Option<Reason>,
    pub(super) logged: bool,
}

impl RequestCtx {
    pub(super) fn new(started: Instant) -> Self {
        Self {
            started,
            asked: started,
            start: None,
            route: None,
            upstream: None,
            target: None,
            client: None,
            peer_trusted: false,
            scheme: Scheme::Http,
            request_id: None,
            admitted: None,
            attempts: 0,
            tried: Vec::new(),
            picked: None,
            exchanged: false,
            attempt: None,
            in_flight: None,
            last_backend: None,
            deadline: None,
            waiting: Waiting::End,
            patience: None,
            upstream_fd: -1,
            all_given: false,
            total_due: None,
            body_sent: false,
            has_body: false,
            whole: None,
            held: None,
            reused: false,
            fresh: Fresh::NotNeeded,
            retry: None,
            read_timeout: Duration::MAX,
            answered: false,
            bodiless: false,
            interim: 0,
            judged: false,
            relayed: false,
            ended: None,
            upgraded: false,
            grpc_web: GrpcWebCtx::Disabled,
            reason: None,
            logged: false,
        }
    }

    pub(super) fn route(&self) -> Option<&Route> {
        Some(self.current()?.route(self.route?))
    }

    pub(super) fn member(&self) -> Option<&Member> {
        Some(self.current()?.member(self.upstream?))
    }

    /// What the request is served by. The listener gives it to every request; `None` is a fault of ours.
    pub(super) fn current(&self) -> Option<&Arc<Current>> {
        self.start.as_ref().map(|start| &start.current)
    }

    pub(super) fn info(&self) -> Option<&ConnInfo> {
        self.start.as_ref().map(|start| start.info.as_ref())
    }
}

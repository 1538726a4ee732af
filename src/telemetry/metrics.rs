//! The metrics: which families there are, the handles through which traffic is counted, and the text for a scrape.
//! Handles are made when a configuration is built, so that every family and every child is there before the first
//! request; counting costs atomic additions, no look-up, no lock and no memory. Counts that every request of every
//! worker touches are kept per worker and summed up at the scrape.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::{Instant, SystemTime, UNIX_EPOCH},
};

pub use self::abuse::H2Abuse;
pub use self::upstream::{AttemptInFlight, BackendMetrics, ConnectionUse, RequestInFlight, UpstreamMetrics};
use self::upstream::{CLASSES, add};
pub use super::cell::{Counter, Gauge};
use super::{failures::Failures, log_writer::LogCounts};
use crate::types::{Name, Reason, Refusal};

mod abuse;
mod text;
mod upstream;

/// The `upstream` label of requests that no upstream was asked for. No upstream can have this name.
const NO_UPSTREAM: &str = "-";

/// All metrics of a process. Owned by main, handed down as `Arc`.
#[derive(Debug)]
pub struct Metrics {
    version: &'static str,
    started: Instant,
    started_at: SystemTime,
    workers: Box<[Arc<WorkerMetrics>]>,
    accept_errors: [Counter; AcceptError::ALL.len()],
    h2_abuse: [Counter; H2Abuse::ALL.len()],
    failures: Box<[Counter]>,
    last_failures: Failures,
    admin_requests: [Counter; AdminOutcome::ALL.len()],
    log: Arc<LogCounts>,
    no_upstream: Arc<UpstreamMetrics>,
    /// Successful loads of the configuration, the first included.
    pub config_loads: Counter,
    /// Loads that failed and changed nothing.
    pub config_load_failures: Counter,
    /// Which configuration of this process runs, from 1.
    pub config_generation: Gauge,
    /// Changed files of certificates that were taken.
    pub certificate_reloads: Counter,
    /// Changed files of certificates that were of no use.
    pub certificate_reload_failures: Counter,
    /// OCSP responses that were fetched.
    pub ocsp_fetches: Counter,
    /// OCSP responses that were asked for and did not come, or are of no use.
    pub ocsp_fetch_failures: Counter,
    named: RwLock<Named>,
}

/// What has a name in the configuration.
#[derive(Debug, Default)]
struct Named {
    listeners: BTreeMap<Name, Arc<ListenerMetrics>>,
    upstreams: BTreeMap<Name, Arc<UpstreamMetrics>>,
    backends: BTreeMap<(Name, Name), Arc<BackendMetrics>>,
    discoveries: BTreeMap<Name, Arc<DiscoveryMetrics>>,
    certificates: BTreeMap<Name, Arc<CertificateMetrics>>,
    /// When each file of revocation lists is out of date, in seconds since 1970.
    crls: BTreeMap<PathBuf, Arc<Gauge>>,
    /// [`Metrics::answers`] of upstreams that are forgotten.
    forgotten: (u64, u64),
}

impl Metrics {
    /// `version`: of rrlb. `workers`: how many; their numbers begin at 0.
    pub fn new(version: &'static str, workers: usize) -> Self {
        Self {
            version,
            started: Instant::now(),
            started_at: SystemTime::now(),
            workers: (0..workers.max(1)).map(|_| Arc::default()).collect(),
            accept_errors: Default::default(),
            h2_abuse: Default::default(),
            failures: Reason::ALL.iter().map(|_| Counter::default()).collect(),
            last_failures: Failures::default(),
            admin_requests: Default::default(),
            log: Arc::default(),
            no_upstream: Arc::new(UpstreamMetrics::new(workers)),
            config_loads: Counter::default(),
            config_load_failures: Counter::default(),
            config_generation: Gauge::default(),
            certificate_reloads: Counter::default(),
            certificate_reload_failures: Counter::default(),
            ocsp_fetches: Counter::default(),
            ocsp_fetch_failures: Counter::default(),
            named: RwLock::default(),
        }
    }

    /// The handle of a listener, made where there is none yet. `name`: its address as written.
    pub fn listener(&self, name: &Name) -> Arc<ListenerMetrics> {
        Arc::clone(self.write().listeners.entry(name.clone()).or_default())
    }

    /// The handle of an upstream, made where there is none yet.
    pub fn upstream(&self, name: &Name) -> Arc<UpstreamMetrics> {
        let make = || Arc::new(UpstreamMetrics::new(self.workers.len()));
        Arc::clone(self.write().upstreams.entry(name.clone()).or_insert_with(make))
    }

    /// The handle of a backend, made where there is none yet.
    pub fn backend(&self, upstream: &Name, backend: &Name) -> Arc<BackendMetrics> {
        let key = (upstream.clone(), backend.clone());
        Arc::clone(self.write().backends.entry(key).or_default())
    }

    /// The handle of an upstream's discovery, made where there is none yet.
    pub fn discovery(&self, upstream: &Name) -> Arc<DiscoveryMetrics> {
        Arc::clone(self.write().discoveries.entry(upstream.clone()).or_default())
    }

    /// The handle of a certificate, made where there is none yet or it had no OCSP response and has one.
    pub fn certificate(&self, name: &Name, ocsp: bool) -> Arc<CertificateMetrics> {
        let mut named = self.write();
        let handle = named.certificates.entry(name.clone()).or_default();
        if handle.ocsp != ocsp {
            *handle = Arc::new(CertificateMetrics { ocsp, ..CertificateMetrics::default() });
        }
        Arc::clone(handle)
    }

    /// When a file of revocation lists is out of date, made where there is no such handle yet.
    pub fn crl(&self, file: &Path) -> Arc<Gauge> {
        Arc::clone(self.write().crls.entry(file.to_owned()).or_default())
    }

    /// As [`Metrics::retain`], for files of revocation lists.
    pub fn retain_crls(&self, crl: impl Fn(&Path) -> bool) {
        self.write().crls.retain(|file, _| crl(file));
    }

    /// As [`Metrics::retain`], for certificates.
    pub fn retain_certificates(&self, certificate: impl Fn(&Name) -> bool) {
        self.write().certificates.retain(|name, _| certificate(name));
    }

    /// The handle of a backend, where there is one: what is told late of one that is gone does not make it again.
    pub fn known_backend(&self, upstream: &Name, backend: &Name) -> Option<Arc<BackendMetrics>> {
        let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
        named.backends.get(&(upstream.clone(), backend.clone())).cloned()
    }

    /// Forgets what a new configuration no longer names; handles still held go on counting, unseen.
    pub fn retain(
        &self,
        listener: impl Fn(&Name) -> bool,
        upstream: impl Fn(&Name) -> bool,
        backend: impl Fn(&Name, &Name) -> bool,
    ) {
        let mut named = self.write();
        named.listeners.retain(|name, _| listener(name));
        let gone = named.upstreams.extract_if(.., |name, _| !upstream(name));
        let gone: Vec<_> = gone.map(|(_, counts)| counts.answers()).collect();
        named.forgotten = gone.into_iter().fold(named.forgotten, add);
        named.discoveries.retain(|name, _| upstream(name));
        named.backends.retain(|(upstream, name), _| backend(upstream, name));
    }

    /// The handle for requests that no upstream is asked for: redirects, fixed answers, no route.
    pub fn no_upstream(&self) -> &Arc<UpstreamMetrics> {
        &self.no_upstream
    }

    /// The handle of a worker, counted round.
    pub fn worker(&self, worker: usize) -> &Arc<WorkerMetrics> {
        &self.workers[worker % self.workers.len()] // never empty
    }

    /// Counts a failed accept.
    pub fn accept_failed(&self, error: AcceptError) {
        if let Some(counter) = self.accept_errors.get(error as usize) {
            counter.increment();
        }
    }

    /// Counts an HTTP/2 connection that was ended for what its client did.
    pub fn h2_abused(&self, kind: H2Abuse) {
        if let Some(counter) = self.h2_abuse.get(kind as usize) {
            counter.increment();
        }
    }

    /// Counts how a request ended; what is no failure is not counted here.
    pub fn ended(&self, reason: Reason) {
        if reason.is_failure()
            && let Some(counter) = self.failures.get(reason.index())
        {
            counter.increment();
        }
    }

    /// Finished requests so far, and those of them with a 5xx; also of upstreams that are gone.
    pub fn answers(&self) -> (u64, u64) {
        let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
        let upstreams = named.upstreams.values().chain([&self.no_upstream]);
        upstreams.map(|upstream| upstream.answers()).fold(named.forgotten, add)
    }

    /// The last failures themselves.
    pub fn last_failures(&self) -> &Failures {
        &self.last_failures
    }

    /// Counts an answer of the admin API.
    pub fn admin_answered(&self, outcome: AdminOutcome) {
        if let Some(counter) = self.admin_requests.get(outcome as usize) {
            counter.increment();
        }
    }

    /// Attempts at a backend so far; 0 where it is not known.
    pub fn backend_requests(&self, upstream: &Name, backend: &Name) -> u64 {
        let named = self.named.read().unwrap_or_else(PoisonError::into_inner);
        named.backends.get(&(upstream.clone(), backend.clone())).map_or(0, |counts| counts.requests.value())
    }

    /// Where the access log's writer counts.
    pub fn log_counts(&self) -> Arc<LogCounts> {
        Arc::clone(&self.log)
    }

    /// The text exposition format 0.0.4 (`text/plain; version=0.0.4; charset=utf-8`).
    pub fn encode(&self) -> String {
        text::encode(self)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Named> {
        self.named.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn started_at_seconds(&self) -> f64 {
        self.started_at.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
    }
}

/// Why an accept failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AcceptError {
    /// The client was gone before it was accepted.
    ConnectionAborted,
    /// The system has no file descriptors left.
    SystemFull,
    /// Anything else.
    Other,
    /// This process has no file descriptors left.
    ProcessFull,
}

impl AcceptError {
    /// Every kind.
    pub const ALL: [Self; 4] = [Self::ConnectionAborted, Self::SystemFull, Self::Other, Self::ProcessFull];

    /// By the error number.
    pub fn from_io(error: &std::io::Error) -> Self {
        match error.raw_os_error() {
            Some(libc::ECONNABORTED) => Self::ConnectionAborted,
            Some(libc::ENFILE) => Self::SystemFull,
            Some(libc::EMFILE) => Self::ProcessFull,
            _ => Self::Other,
        }
    }

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConnectionAborted => "econnaborted",
            Self::SystemFull => "enfile",
            Self::Other => "other",
            Self::ProcessFull => "emfile",
        }
    }
}

/// How a request to the admin API ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AdminOutcome {
    /// No token, or one that does not suffice; from a web page.
    Denied,
    /// A fault of the process or its disk.
    Failed,
    /// Not a request that the API knows.
    Invalid,
    /// Done.
    Ok,
    /// Understood, and not done as things are: the last ready backend, a version that has changed, another reload.
    Refused,
}

impl AdminOutcome {
    /// Every outcome.
    pub const ALL: [Self; 5] = [Self::Denied, Self::Failed, Self::Invalid, Self::Ok, Self::Refused];

    /// By the status of the answer.
    pub const fn from_status(status: u16) -> Self {
        match status {
            401 | 403 => Self::Denied,
            409 | 412 => Self::Refused,
            400..=499 => Self::Invalid,
            500.. => Self::Failed,
            _ => Self::Ok,
        }
    }

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Denied => "denied",
            Self::Failed => "failed",
            Self::Invalid => "invalid",
            Self::Ok => "ok",
            Self::Refused => "refused",
        }
    }
}

/// Counts of one worker.
#[derive(Debug, Default)]
#[repr(align(128))] // workers do not share cache lines
pub struct WorkerMetrics {
    /// Connections accepted.
    pub accepted: Counter,
    /// Connections open now; see [`ListenerMetrics::open`] for the guard.
    open: Gauge,
    /// Body bytes to clients.
    pub bytes_sent: Counter,
    /// Body bytes from clients.
    pub bytes_received: Counter,
}

/// How a TLS handshake with a client ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// It failed.
    Failed,
    /// A new session.
    Full,
    /// A session was resumed.
    Resumed,
    /// It was not finished in time.
    TimedOut,
}

impl Handshake {
    /// Every outcome.
    pub const ALL: [Self; 4] = [Self::Failed, Self::Full, Self::Resumed, Self::TimedOut];

    /// The labels `result` and `resumed`.
    const fn labels(self) -> (&'static str, &'static str) {
        match self {
            Self::Failed => ("failed", "no"),
            Self::Full => ("ok", "no"),
            Self::Resumed => ("ok", "yes"),
            Self::TimedOut => ("timeout", "no"),
        }
    }
}

/// Numbers of one certificate.
#[derive(Debug, Default)]
pub struct CertificateMetrics {
    /// When it expires, in seconds since 1970.
    pub not_after: Gauge,
    /// 1 where its OCSP response is sent along.
    pub stapled: Gauge,
    ocsp: bool,
}

/// What became of the PROXY header of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    /// The load balancer connected for itself.
    Local,
    /// It was not well-formed, or ended early.
    Malformed,
    /// None was sent where one must be.
    Missing,
    /// From elsewhere than where one may come from.
    Refused,
    /// It was not there in time.
    TimedOut,
    /// Version 1.
    V1,
    /// Version 2.
    V2,
}

impl ProxyHeader {
    /// Every outcome.
    pub const ALL: [Self; 7] =
        [Self::Local, Self::Malformed, Self::Missing, Self::Refused, Self::TimedOut, Self::V1, Self::V2];

    /// The label.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Malformed => "malformed",
            Self::Missing => "missing",
            Self::Refused => "refused",
            Self::TimedOut => "timeout",
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// Counts of one listener.
#[derive(Debug, Default)]
pub struct ListenerMetrics {
    connections: Counter,
    open: Gauge,
    handshakes: [Counter; Handshake::ALL.len()],
    refused: [Counter; Refusal::ALL.len()],
    proxy_headers: [Counter; ProxyHeader::ALL.len()],
}

impl ListenerMetrics {
    /// Counts an accepted connection, and as open until the guard is dropped.
    pub fn open(self: &Arc<Self>, worker: &Arc<WorkerMetrics>) -> OpenConnection {
        self.connections.increment();
        self.open.increment();
        worker.accepted.increment();
        worker.open.increment();
        OpenConnection { listener: Arc::clone(self), worker: Arc::clone(worker) }
    }

    /// Counts a connection that was turned away before anything was asked on it.
    pub fn refused(&self, cause: Refusal) {
        if let Some(counter) = self.refused.get(cause.index()) {
            counter.increment();
        }
    }

    /// Counts what became of a connection's PROXY header.
    pub fn proxy_header(&self, result: ProxyHeader) {
        if let Some(counter) = self.proxy_headers.get(result as usize) {
            counter.increment();
        }
    }

    /// Counts the end of a TLS handshake.
    pub fn handshake(&self, outcome: Handshake) {
        if let Some(counter) = self.handshakes.get(outcome as usize) {
            counter.increment();
        }
    }
}

/// An open connection; counted until it is dropped.
#[derive(Debug)]
pub struct OpenConnection {
    listener: Arc<ListenerMetrics>,
    worker: Arc<WorkerMetrics>,
}

impl OpenConnection {
    /// The listener that accepted it.
    pub fn listener(&self) -> &ListenerMetrics {
        &self.listener
    }
}

impl Drop for OpenConnection {
    fn drop(&mut self) {
        self.listener.open.decrement();
        self.worker.open.decrement();
    }
}

/// Counts of one upstream's discovery.
#[derive(Debug, Default)]
pub struct DiscoveryMetrics {
    /// Lookups that were answered, lists that were taken.
    pub found: Counter,
    /// Lookups without an answer or with an empty one, lists that could not be used.
    pub failed: Counter,
}

#[cfg(test)]
mod tests;

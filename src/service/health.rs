//! Active health checks as a Pingora background service: one task per checked backend, all on the service's thread,
//! each probe within one total deadline. When results change the verdict is decided by `policy::health`. Backends in
//! maintenance are not probed, and nothing is known of their health.

use std::{
    collections::{HashMap, HashSet},
    fmt,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::{HeaderValue, StatusCode, Uri, header};
use log::{debug, info};
use pingora::http::RequestHeader;
use pingora_core::{
    BError, ErrorType, OkOrErr, OrErr,
    connectors::{
        L4Connect, TransportConnector,
        http::v2::{H2HandshakeSettings, handshake},
    },
    protocols::{ALPN, Stream, http::v1::client::HttpSession as Http1Session},
    server::ShutdownWatch,
    services::background::BackgroundService,
    upstreams::peer::HttpPeer,
};
use tokio::{
    sync::{Notify, Semaphore, watch},
    task::JoinHandle,
    time::{Instant, sleep, sleep_until, timeout},
};

use crate::{
    config::model::{HealthCheck, HttpProbe, Probe, Process},
    policy::health::{Flip, Health, HealthState},
    runtime::{
        backend::BackendState,
        connect::{self, Connector},
        peer::TlsProfile,
        upstream::Upstream,
    },
    types::{AdminState, BackendAddress, Name},
};

/// First probes under way at the same time: what thousands of backends begin together must not look like an attack,
/// nor use up the descriptors. Their next probes are spread over the interval.
const FIRST_AT_ONCE: usize = 256;

/// Told what the probes find; called on the service's thread.
pub trait HealthObserver: Send + Sync {
    /// A probe has finished.
    fn probed(&self, upstream: &Name, backend: &BackendState, success: bool);
    /// The verdict changed; a first verdict is a change too.
    fn flipped(&self, upstream: &Name, backend: &BackendState, flip: Flip);
    /// It is in maintenance: what the probes found does not count any more.
    fn forgotten(&self, _upstream: &Name, _backend: &BackendState) {}
}

/// The service. It follows the list of upstreams: tasks of backends that stay as they were go on.
pub struct HealthChecks {
    upstreams: watch::Receiver<Vec<Arc<Upstream>>>,
    process: Process,
    observer: Arc<dyn HealthObserver>,
    first_round: watch::Sender<bool>,
    after: Option<FirstRound>,
}

/// Whether a first round is finished: every checked backend had its verdict, every name was looked up. Stays so from
/// then on.
#[derive(Clone, Debug)]
pub struct FirstRound(watch::Receiver<bool>);

impl FirstRound {
    pub(super) fn new(finished: watch::Receiver<bool>) -> Self {
        Self(finished)
    }

    /// Whether it is finished.
    pub fn is_finished(&self) -> bool {
        *self.0.borrow()
    }

    /// Returns when it is finished, or the service is gone.
    pub async fn finished(&mut self) {
        let _ = self.0.wait_for(|finished| *finished).await;
    }
}

impl HealthChecks {
    /// Probes nothing until it is run as a service.
    pub fn new(
        upstreams: watch::Receiver<Vec<Arc<Upstream>>>,
        process: Process,
        observer: Arc<dyn HealthObserver>,
    ) -> (Self, FirstRound) {
        let finished = upstreams.borrow().iter().all(|upstream| upstream.health_check.is_none());
        let (first_round, receiver) = watch::channel(finished);
        (Self { upstreams, process, observer, first_round, after: None }, FirstRound(receiver))
    }

    /// The first round includes the backends that are there when `other` is finished.
    pub fn after(mut self, other: FirstRound) -> Self {
        if !other.is_finished() {
            self.first_round.send_replace(false);
            self.after = Some(other);
        }
        self
    }
}

#[async_trait]
impl BackgroundService for HealthChecks {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut upstreams = self.upstreams.clone();
        let mut after = self.after.clone();
        let verdict = Arc::new(Notify::new());
        let mut probing = Probing::default();
        loop {
            let current = upstreams.borrow_and_update().clone();
            self.reconcile(&current, &mut probing, &verdict);
            loop {
                if after.is_none() && !*self.first_round.borrow() && probing.each_once() {
                    self.first_round.send_replace(true);
                }
                tokio::select! {
                    () = verdict.notified(), if !*self.first_round.borrow() => {}
                    // What it has added is among the upstreams by now.
                    () = finished(&mut after) => {
                        after = None;
                        break;
                    }
                    () = changed(&mut upstreams) => break,
                    // Ends the tasks: dropping one aborts it.
                    _ = shutdown.wait_for(|down| *down) => return,
                }
            }
        }
    }
}

/// Returns when it is finished; never where there is nothing to wait for.
pub(super) async fn finished(other: &mut Option<FirstRound>) {
    match other {
        Some(other) => other.finished().await,
        None => std::future::pending().await,
    }
}

/// Returns at a change; never where nobody can make one any more.
async fn changed(upstreams: &mut watch::Receiver<Vec<Arc<Upstream>>>) {
    if upstreams.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

/// What is probed now, and what it needs.
struct Probing {
    groups: HashMap<Name, Group>,
    connectors: HashMap<TlsProfile, Arc<TransportConnector>>,
    first: Arc<Semaphore>,
}

impl Probing {
    /// Whether this process has probed each backend. A verdict alone may be of the process before it.
    fn each_once(&self) -> bool {
        let mut tasks = self.groups.values().flat_map(|group| group.tasks.values());
        tasks.all(|task| task.probed.load(Ordering::Acquire))
    }
}

impl Default for Probing {
    fn default() -> Self {
        Self { groups: HashMap::new(), connectors: HashMap::new(), first: Arc::new(Semaphore::new(FIRST_AT_ONCE)) }
    }
}

/// The tasks of an upstream, by backend.
struct Group {
    /// The build they were made for.
    upstream: Arc<Upstream>,
    tasks: HashMap<Name, Task>,
}

struct Task {
    plan: Plan,
    /// A probe has finished.
    probed: Arc<AtomicBool>,
    handle: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl HealthChecks {
    /// Has exactly these upstreams probed. Those that are not built anew since the last time cost nothing but a look.
    fn reconcile(&self, upstreams: &[Arc<Upstream>], probing: &mut Probing, verdict: &Arc<Notify>) {
        let profiles: HashSet<&TlsProfile> = upstreams.iter().map(|upstream| &upstream.tls_profile).collect();
        probing.connectors.retain(|profile, _| profiles.contains(profile));
        let mut before = std::mem::take(&mut probing.groups);
        for upstream in upstreams {
            let Some(check) = &upstream.health_check else { continue };
            let group = match before.remove(&upstream.name) {
                Some(group) if Arc::ptr_eq(&group.upstream, upstream) => group,
                other => {
                    let tasks = other.map(|group| group.tasks).unwrap_or_default();
                    let tasks = self.tasks(upstream, check, tasks, probing, verdict);
                    Group { upstream: upstream.clone(), tasks }
                }
            };
            probing.groups.insert(upstream.name.clone(), group);
        }
    }

    fn tasks(
        &self,
        upstream: &Arc<Upstream>,
        check: &HealthCheck,
        mut before: HashMap<Name, Task>,
        probing: &mut Probing,
        verdict: &Arc<Notify>,
    ) -> HashMap<Name, Task> {
        let make =
            |profile: &TlsProfile| Arc::new(TransportConnector::new(Some(profile.connector_options(&self.process))));
        let connector = probing.connectors.entry(upstream.tls_profile.clone()).or_insert_with_key(make).clone();
        let dialer = Connector::new(check.timeout, check.timeout, &self.process, Arc::default());
        let dialer = connect::for_probes(dialer, upstream.proxy_protocol);
        let check = Arc::new(check.clone());
        let mut tasks = HashMap::new();
        for backend in upstream.backends() {
            let running = before.remove(&backend.id);
            if backend.admin == AdminState::Maint {
                drop(running);
                if backend.set_health(Health::Unknown) {
                    self.observer.forgotten(&upstream.name, backend);
                }
                continue;
            }
            let plan = Plan {
                upstream: upstream.name.clone(),
                backend: backend.clone(),
                check: check.clone(),
                connector: connector.clone(),
                dialer: dialer.clone(),
            };
            let task = running.filter(|task| task.plan.does_as(&plan)).unwrap_or_else(|| {
                let probed = Arc::new(AtomicBool::new(false));
                let told = Told { observer: self.observer.clone(), probed: probed.clone(), verdict: verdict.clone() };
                let handle = tokio::spawn(plan.clone().run(told, probing.first.clone()));
                Task { plan, probed, handle }
            });
            tasks.insert(backend.id.clone(), task);
        }
        tasks
    }
}

/// Who is told what a probe finds.
struct Told {
    observer: Arc<dyn HealthObserver>,
    probed: Arc<AtomicBool>,
    verdict: Arc<Notify>,
}

/// One backend and how it is probed.
#[derive(Clone)]
struct Plan {
    upstream: Name,
    backend: Arc<BackendState>,
    check: Arc<HealthCheck>,
    connector: Arc<TransportConnector>,
    dialer: Arc<dyn L4Connect + Send + Sync>,
}

impl Plan {
    /// Whether a task of this plan need not be replaced by one of the other.
    fn does_as(&self, other: &Self) -> bool {
        self.check == other.check
            && self.backend.same_backend(&other.backend)
            && self.backend.address == other.backend.address
            && self.backend.same_transport(&other.backend)
            && Arc::ptr_eq(&self.connector, &other.connector)
    }

    async fn run(self, told: Told, first: Arc<Semaphore>) {
        let Told { observer, probed, verdict } = told;
        let mut state =
            HealthState::resume(self.check.thresholds, self.backend.health()).having(self.backend.against());
        // Whoever has to wait for a place is one of many that began together.
        let mut crowded = first.available_permits() == 0;
        let mut place = first.acquire_owned().await.ok();
        loop {
            let started = Instant::now();
            let result = self.probe().await;
            drop(place.take());
            if result.as_ref().is_err_and(ProbeFailure::is_ours) {
                // No descriptor left: that says nothing of the backend.
                sleep_until(started + jittered(self.check.interval)).await;
                continue;
            }
            observer.probed(&self.upstream, &self.backend, result.is_ok());
            let flip = state.observe(result.is_ok());
            self.backend.set_against(state.against());
            if let Some(flip) = flip {
                let known = self.backend.health() != Health::Unknown;
                self.backend.set_health(state.health());
                self.report(flip, known, result.as_ref().err());
                observer.flipped(&self.upstream, &self.backend, flip);
            } else if let Err(failure) = result {
                debug!("upstream {}: backend {}: probe failed: {failure}", self.upstream, self.backend.id);
            }
            if !probed.swap(true, Ordering::AcqRel) {
                verdict.notify_one();
            }
            let pause = if crowded { anywhere_in(self.check.interval) } else { jittered(self.check.interval) };
            crowded = false;
            sleep_until(started + pause).await;
        }
    }

    fn report(&self, flip: Flip, known: bool, failure: Option<&ProbeFailure>) {
        let Self { upstream, backend, check, .. } = self;
        let (id, label) = (&backend.id, &backend.label);
        match (flip, failure) {
            (Flip::Down, Some(failure)) if known => {
                info!(
                    "upstream {upstream}: backend {id} ({label}) is down after {} failures: {failure}",
                    check.thresholds.fall
                );
            }
            (Flip::Down, Some(failure)) => info!("upstream {upstream}: backend {id} ({label}) is down: {failure}"),
            (Flip::Down, None) => info!("upstream {upstream}: backend {id} ({label}) is down"),
            (Flip::Up, _) => info!("upstream {upstream}: backend {id} ({label}) is up"),
        }
    }

    /// One probe within the check's deadline, whatever it waits for.
    async fn probe(&self) -> Result<(), ProbeFailure> {
        let limit = self.check.timeout;
        within(limit, self.attempt()).await.unwrap_or_else(|| {
            Err(if self.backend.has_target() { ProbeFailure::Timeout(limit) } else { ProbeFailure::NoAddress })
        })
    }

    async fn attempt(&self) -> Result<(), ProbeFailure> {
        let peer = self.peer().await;
        let stream = self.connector.new_stream(&peer).await.map_err(ProbeFailure::Connect)?;
        match &self.check.probe {
            Probe::Tcp => Ok(()),
            Probe::Http(probe) => {
                let status = self.ask(stream, &peer, probe).await.map_err(ProbeFailure::Protocol)?;
                if expected(probe, status) { Ok(()) } else { Err(ProbeFailure::Status(status)) }
            }
        }
    }

    /// The proxy's own peer, so that a probe speaks and verifies like a request, but never counts as one.
    async fn peer(&self) -> HttpPeer {
        /// At start the first probe may come before the first answer of the resolver.
        const RESOLVING: Duration = Duration::from_millis(10);
        let mut peer = loop {
            match self.backend.peer() {
                Some(peer) => break *peer,
                None => sleep(RESOLVING).await,
            }
        };
        peer.options.custom_l4 = Some(self.dialer.clone());
        peer.options.connection_timeout = None;
        peer.options.read_timeout = None;
        peer.options.write_timeout = None;
        peer
    }

    /// Sends the request and returns the final status.
    async fn ask(&self, stream: Stream, peer: &HttpPeer, probe: &HttpProbe) -> Result<StatusCode, BError> {
        let host = self.host(probe);
        let mut request = Box::new(RequestHeader::build("GET", probe.path.as_bytes(), None)?);
        request.insert_header(header::USER_AGENT, "rrlb-health")?;
        let h2 = match stream.selected_alpn_proto() {
            Some(proto) => proto == ALPN::H2,
            None => !peer.is_tls() && peer.options.alpn == ALPN::H2,
        };
        if h2 {
            let scheme = if peer.is_tls() { "https" } else { "http" };
            let uri = Uri::builder().scheme(scheme).authority(host.as_bytes()).path_and_query(probe.path.as_str());
            request.set_uri(uri.build().or_err(ErrorType::InternalError, "cannot make the probe's address")?);
            let mut settings = H2HandshakeSettings::new();
            settings.max_streams = 1;
            let connection = handshake(stream, settings).await?;
            let session = connection.spawn_stream().await?;
            let mut session = session.or_err(ErrorType::H2Error, "the backend takes no request")?;
            session.write_request_header(request, true)?;
            session.read_response_header().await?;
            let response = session.response_header().or_err(ErrorType::H2Error, "no answer")?;
            return Ok(response.status);
        }
        request.insert_header(header::HOST, host)?;
        request.insert_header(header::CONNECTION, "close")?;
        let mut session = Http1Session::new(stream);
        session.write_request_header(request).await?;
        loop {
            session.read_response().await?;
            let response = session.resp_header().or_err(ErrorType::H1Error, "no answer")?;
            if !response.status.is_informational() {
                return Ok(response.status);
            }
        }
    }

    fn host(&self, probe: &HttpProbe) -> HeaderValue {
        if let Some(host) = &probe.host {
            return host.clone();
        }
        let text = match (self.backend.sni(), &self.backend.address) {
            ("", BackendAddress::Unix(_)) => "localhost",
            ("", _) => &self.backend.label,
            (sni, _) => sni,
        };
        HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("localhost"))
    }
}

/// Why a probe failed, in words for the log.
#[derive(Debug)]
enum ProbeFailure {
    Connect(BError),
    NoAddress,
    Protocol(BError),
    Status(StatusCode),
    Timeout(Duration),
}

impl ProbeFailure {
    /// Whether this process, and not the backend, is the cause: EMFILE or ENFILE. Pingora keeps of it only the text.
    fn is_ours(&self) -> bool {
        let Self::Connect(error) = self else { return false };
        let text = error.to_string();
        ["os error 23)", "os error 24)"].iter().any(|number| text.contains(number))
    }
}

impl fmt::Display for ProbeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect(error) => match error.etype() {
                ErrorType::ConnectNoRoute => f.write_str("no route to the host"),
                ErrorType::ConnectRefused => f.write_str("connection refused"),
                ErrorType::ConnectTimedout => f.write_str("connection timed out"),
                _ => detail(error, f),
            },
            Self::NoAddress => f.write_str("its name has not resolved"),
            Self::Protocol(error) => {
                f.write_str("no valid answer: ")?;
                detail(error, f)
            }
            Self::Status(status) => write!(f, "status {status}"),
            Self::Timeout(limit) => write!(f, "no result within {limit:?}"),
        }
    }
}

/// The kind and what is behind it, without Pingora's chain of words between them. Of a failed handshake Pingora keeps
/// the reason as text only.
fn detail(error: &BError, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    f.write_str(error.etype().as_str())?;
    match (&error.cause, &error.context) {
        (Some(_), _) if *error.etype() != ErrorType::TLSHandshakeFailure => write!(f, ": {}", error.root_cause()),
        (_, Some(context)) => {
            let context = context.as_str();
            write!(f, ": {}", context.rsplit_once(" cause: ").map_or(context, |(_, reason)| reason))
        }
        (_, None) => Ok(()),
    }
}

async fn within<T>(limit: Duration, work: impl Future<Output = T>) -> Option<T> {
    timeout(limit, work).await.ok()
}

fn expected(probe: &HttpProbe, status: StatusCode) -> bool {
    if probe.status.is_empty() { status.is_success() } else { probe.status.contains(&status) }
}

/// Spreads probes that began together: within 10 % either way.
fn jittered(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.9..=1.1))
}

/// Spreads probes of many backends evenly, from the second on.
fn anywhere_in(interval: Duration) -> Duration {
    interval.mul_f64(rand::random_range(0.0..=1.0))
}

#[cfg(test)]
mod tests;

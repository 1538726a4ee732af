//! A named group of backends in one build: its members, the balancer over them, and everything the proxy reads about
//! them per request. State of backends that stay is carried over from the build before.

use std::{
    cell::LazyCell,
    collections::{BTreeSet, HashMap},
    fmt,
    future::Future,
    net::IpAddr,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Context, Poll, Waker},
    time::Instant,
};

use async_trait::async_trait;
use pingora_core::protocols::tls::ALPN;
use pingora_load_balancing::{Backend, Backends, LoadBalancer, discovery::ServiceDiscovery};

use super::{
    backend::{BackendState, Generation, Picked},
    connect::Connector,
    connections::Connections,
    line::Opener,
    outlier::Outliers,
    peer::{self, TlsProfile},
    selection::{Pool, Selection, SelectionConfig, entry},
    tls::Offer,
};
use crate::{
    config::model::{self, HealthCheck, HostHeader, Timeouts, UpstreamProtocol, UpstreamTls},
    policy::{balance::Balance, budget::RetryBudget, outlier::EjectPolicy, proxy_protocol, retry::RetryPolicy},
    types::{AdminState, Name},
};

/// A named group of backends.
pub struct Upstream {
    /// The key in `upstreams`.
    pub name: Name,
    /// `None` is plain text.
    pub tls: Option<UpstreamTls>,
    /// Which connector its connections are made by.
    pub tls_profile: TlsProfile,
    /// What is spoken to the backends.
    pub protocol: UpstreamProtocol,
    /// What goes into `Host` / `:authority`.
    pub host_header: HostHeader,
    /// Active checks.
    pub health_check: Option<HealthCheck>,
    /// Deadlines towards the backends.
    pub timeouts: Timeouts,
    /// When and how often another backend is tried.
    pub retry: RetryPolicy,
    /// When a backend that fails is taken out for a while; `None` is never.
    pub eject: Option<EjectPolicy>,
    /// How each connection begins by saying for which client it is.
    pub proxy_protocol: Option<proxy_protocol::Version>,
    /// gRPC-web is translated into gRPC.
    pub grpc_web: bool,
    /// Counts requests and retries, kept over builds; the share is `retry.budget`.
    pub budget: Arc<RetryBudget>,
    /// Opens connections of our own, where Pingora's upstream path is not needed.
    exchange: Option<Opener>,
    backends: Box<[Arc<BackendState>]>,
    balancer: LoadBalancer<Selection>,
    /// What `balancer` selects by; see [`Upstream::pick`].
    pool: Arc<Pool>,
    generation: Generation,
    /// Its first backends are known, and what comes now joins them. Kept over builds.
    settled: Arc<AtomicBool>,
    opened: Arc<AtomicU64>,
    connections: Arc<Connections>,
    /// Kept over builds.
    pub(super) outliers: Arc<Outliers>,
}

/// What is taken over of a backend that stays.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reuse {
    /// Its health, counts and the like.
    State,
    /// All of it, where nothing about it is other: it is built of the same configuration.
    Whole,
}

/// Why no backend can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoBackend {
    /// None with a weight over 0 is up.
    #[error("no backend is up")]
    AllDown,
    /// Every usable one failed this request already.
    #[error("every backend that is up was tried")]
    AllTried,
    /// Those that are up are host names that have not resolved yet.
    #[error("no backend has an address")]
    NoAddress,
}

impl Upstream {
    /// Builds an upstream of these backends, going on from the one of the same name in the build before.
    pub fn build(
        model: &model::Upstream,
        backends: Vec<model::Backend>,
        process: &model::Process,
        previous: Option<&Arc<Self>>,
    ) -> Arc<Self> {
        let connections = previous.map(|previous| previous.connections.clone()).unwrap_or_default();
        Self::build_with(model, backends, process, previous, connections)
    }

    /// As [`Upstream::build`]; its connections are recorded in `connections`.
    pub fn build_with(
        model: &model::Upstream,
        backends: Vec<model::Backend>,
        process: &model::Process,
        previous: Option<&Arc<Self>>,
        connections: Arc<Connections>,
    ) -> Arc<Self> {
        Self::build_from(model, backends, process, previous.map(|previous| (previous, Reuse::State)), connections)
    }

    /// The same upstream of the same configuration with another list of backends.
    pub(super) fn with_backends(
        self: &Arc<Self>,
        model: &model::Upstream,
        backends: Vec<model::Backend>,
        process: &model::Process,
    ) -> Arc<Self> {
        Self::build_from(model, backends, process, Some((self, Reuse::Whole)), self.connections.clone())
    }

    fn build_from(
        model: &model::Upstream,
        backends: Vec<model::Backend>,
        process: &model::Process,
        previous: Option<(&Arc<Self>, Reuse)>,
        connections: Arc<Connections>,
    ) -> Arc<Self> {
        let (previous, reuse) = previous.unzip();
        let opened = previous.map(|previous| previous.opened.clone()).unwrap_or_default();
        let generation = previous.map(|previous| previous.generation.clone()).unwrap_or_default();
        let settled = previous.map(|previous| previous.settled.clone()).unwrap_or_default();
        let tls_profile = TlsProfile::new(model.tls.as_ref(), process);
        let connector = Connector::new(model.timeouts.connect, model.timeouts.write, process, opened.clone());
        let connector = Arc::new(connector.recorded(connections.clone()));
        let whole = reuse == Some(Reuse::Whole);
        let backends = members(model, backends, &tls_profile, &connector, &generation, previous, whole);
        let start = previous.map(|previous| previous.pool.position()).unwrap_or_default();
        let config = Arc::new(SelectionConfig::new(model.balance, generation.clone(), start));
        let balancer = LoadBalancer::from_backends_with_config(
            Backends::new(Box::new(Members(backends.clone()))),
            Some(config.clone()),
        );
        update_now(&balancer);
        let exchange = offer(model).map(|offer| {
            let client = |tls| connections.tls().of(tls, &tls_profile, process, offer);
            Opener::new(connector, offer, model.tls.as_ref().map(|tls| (client(tls), model.timeouts.tls)))
        });
        let pool = config.pool();
        if pool.is_ramping() {
            // It may have been built between two steps of a slow start.
            generation.set_ramping();
        }
        Arc::new(Self {
            name: model.name.clone(),
            tls: model.tls.clone(),
            tls_profile,
            protocol: model.protocol,
            host_header: model.host_header.clone(),
            health_check: model.health_check.clone(),
            timeouts: model.timeouts,
            retry: model.retry,
            eject: model.eject,
            proxy_protocol: model.proxy_protocol,
            grpc_web: model.grpc_web,
            budget: previous.map(|previous| previous.budget.clone()).unwrap_or_default(),
            exchange,
            backends,
            pool,
            balancer,
            generation,
            settled,
            opened,
            connections,
            outliers: previous.map(|previous| previous.outliers.clone()).unwrap_or_default(),
        })
    }

    /// Chooses a backend that is not among `tried` (positions in [`Upstream::backends`]) and counts a request in
    /// flight at it. `client` matters to `ip_hash` alone.
    ///
    /// This asks the very [`Selection`] that [`Upstream::balancer`] holds, past `LoadBalancer::select_with`, which
    /// copies each candidate with its extensions (several allocations per request).
    ///
    /// # Errors
    /// No backend is left, with the reason.
    pub fn pick(&self, client: Option<IpAddr>, tried: &[usize]) -> Result<Picked, NoBackend> {
        let key = match client {
            Some(IpAddr::V4(ip)) => self.pool.key(&ip.octets()),
            Some(IpAddr::V6(ip)) => self.pool.key(&ip.octets()),
            None => None,
        };
        self.pool.choose(key, tried).map(|backend| Picked::new(backend.clone())).ok_or_else(|| self.why_none())
    }

    /// What opens connections past Pingora's upstream path; `None` where that is needed.
    pub fn exchange(&self) -> Option<&Opener> {
        self.exchange.as_ref()
    }

    /// All backends, in the order of the file; a backend's `index` is its position.
    pub fn backends(&self) -> &[Arc<BackendState>] {
        &self.backends
    }

    /// Pingora's balancer, which owns membership and selection.
    pub fn balancer(&self) -> &LoadBalancer<Selection> {
        &self.balancer
    }

    /// Turns taken of the schedule, from where it began.
    pub fn turn(&self) -> usize {
        self.pool.position()
    }

    /// Goes on at another turn of the schedule (taken round the cycle), as after an upgrade. For a start: requests
    /// that choose meanwhile may get one turn twice.
    pub fn begin_at(&self, turn: usize) {
        self.pool.begin_at(turn);
    }

    /// A backend that joins from now on begins slowly. Before, all come up together, and each has its whole share.
    pub fn settle(&self) {
        if !self.settled.load(Ordering::Relaxed) {
            self.settled.store(true, Ordering::Relaxed);
        }
    }

    /// Moves its backends' slow starts on. For the build that runs; costs a load where none is in one.
    pub fn advance_slow_starts(&self, now: Instant) {
        if !self.generation.take_ramping() {
            return;
        }
        let mut changed = false;
        for backend in &self.backends {
            changed |= backend.advance_slow_start(now);
        }
        let ramping = self.backends.iter().any(|backend| backend.slow_start_elapsed(now).is_some());
        // After a change another look: a build that has just taken this one's place may not have seen it.
        if changed || ramping {
            self.generation.set_ramping();
        }
        if changed || (!ramping && self.pool.is_ramping()) {
            self.pool.refresh();
        }
    }

    /// Connections made to the backends so far, of all builds.
    pub fn connections_opened(&self) -> u64 {
        self.opened.load(Ordering::Relaxed)
    }

    fn why_none(&self) -> NoBackend {
        let wanted = |backend: &&Arc<BackendState>| backend.admin == AdminState::Ready && backend.weight.value() > 0;
        let mut up = self.backends.iter().filter(wanted).filter(|backend| backend.is_up()).peekable();
        if up.peek().is_none() {
            NoBackend::AllDown
        } else if up.any(|backend| backend.has_target()) {
            NoBackend::AllTried
        } else {
            NoBackend::NoAddress
        }
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upstream").field("name", &self.name).field("backends", &self.backends).finish_non_exhaustive()
    }
}

/// What its backends may choose from; `None` where what they are asked is translated.
fn offer(model: &model::Upstream) -> Option<Offer> {
    let offer = match peer::alpn(model) {
        ALPN::H1 => Offer::Http1,
        ALPN::H2H1 => Offer::Either,
        ALPN::H2 => Offer::Http2,
        _ => return None,
    };
    (!model.grpc_web).then_some(offer)
}

fn members(
    model: &model::Upstream,
    backends: Vec<model::Backend>,
    profile: &TlsProfile,
    connector: &Arc<Connector>,
    generation: &Generation,
    previous: Option<&Arc<Upstream>>,
    whole: bool,
) -> Box<[Arc<BackendState>]> {
    let before = LazyCell::new(|| -> HashMap<&Name, &Arc<BackendState>> {
        let all = previous.iter().flat_map(|previous| previous.backends.iter());
        all.map(|backend| (&backend.id, backend)).collect()
    });
    let check = model.health_check.as_ref().map(|check| check.thresholds.initial);
    // A client's hash says where it goes: another weight would move clients there and back.
    let slow_start = model.slow_start.filter(|_| model.balance != Balance::IpHash);
    let joined = previous.is_some_and(|previous| previous.settled.load(Ordering::Relaxed));
    let in_place = |index: usize, backend: &model::Backend| {
        let before = previous.filter(|_| whole)?.backends.get(index)?;
        before.is_built_of(backend).then(|| before.clone())
    };
    let state = |(index, backend): (usize, model::Backend)| {
        if let Some(same) = in_place(index, &backend) {
            return same;
        }
        let peer = peer::template(model, profile, &backend, connector.clone());
        let previous = before.get(&backend.id).map(|previous| previous.as_ref());
        let state = BackendState::new(index, &backend, check, peer, generation, previous);
        let state = state.starting_slowly(slow_start, previous, joined);
        // An operator's word on it, or another address, and it begins anew.
        let known = previous.filter(|previous| {
            model.eject.is_some() && backend.admin != AdminState::Maint && previous.address == backend.address
        });
        Arc::new(match known {
            Some(previous) => state.with_ejection_of(previous),
            None => state,
        })
    };
    backends.into_iter().enumerate().map(state).collect()
}

/// Our members as Pingora's discovery sees them: fixed within a build.
struct Members(Box<[Arc<BackendState>]>);

#[async_trait]
impl ServiceDiscovery for Members {
    async fn discover(&self) -> pingora_core::Result<(BTreeSet<Backend>, HashMap<u64, bool>)> {
        Ok((self.0.iter().map(entry).collect(), HashMap::new()))
    }
}

/// Runs Pingora's asynchronous update where nothing in it waits.
fn update_now(balancer: &LoadBalancer<Selection>) {
    let updated = pin!(balancer.update()).poll(&mut Context::from_waker(Waker::noop()));
    debug_assert!(matches!(updated, Poll::Ready(Ok(()))), "our discovery neither waits nor fails");
}

#[cfg(test)]
mod tests;

#[cfg(test)]
pub(crate) mod fixtures {
    //! Models for tests.

    use std::time::Duration;

    use super::*;
    use crate::{
        policy::balance::Balance,
        types::{AdminState, BackendAddress, Percent, Weight},
    };

    /// A process with defaults.
    pub(crate) fn process() -> model::Process {
        model::Process {
            threads: 1,
            daemon: false,
            error_log: None,
            pid_file: None,
            upgrade_sock: None,
            user: None,
            group: None,
            working_directory: None,
            ca_file: None,
            grace_period: Duration::from_secs(30),
            graceful_shutdown_timeout: Duration::from_secs(5),
            upstream_keepalive_pool_size: 128,
            client_bind_to_ipv4: Vec::new(),
            client_bind_to_ipv6: Vec::new(),
        }
    }

    /// An upstream in plain text; `(id, weight)` per backend, at 127.0.0.1:10001 and up.
    pub(crate) fn upstream(name: &str, backends: &[(&str, u16)]) -> model::Upstream {
        let backend = |(index, (id, weight)): (usize, &(&str, u16))| model::Backend {
            id: (*id).into(),
            address: BackendAddress::Inet(([127, 0, 0, 1], 10_001 + index as u16).into()),
            weight: Weight::new(*weight).expect("a weight"),
            admin: AdminState::Ready,
        };
        model::Upstream {
            name: name.into(),
            backends: backends.iter().enumerate().map(backend).collect(),
            discover: None,
            balance: Balance::RoundRobin,
            tls: None,
            protocol: UpstreamProtocol::Auto,
            host_header: HostHeader::Preserve,
            health_check: None,
            slow_start: None,
            timeouts: Timeouts {
                connect: Duration::from_secs(3),
                tls: Duration::from_secs(5),
                first_byte: Duration::from_secs(60),
                read: Duration::from_secs(60),
                write: Duration::from_secs(60),
                idle: Duration::from_secs(55),
                total: None,
                websocket_idle: Duration::from_secs(3600),
            },
            retry: RetryPolicy {
                attempts: 2,
                on_connect: true,
                on_reset_before_headers: true,
                budget: Percent::new(20).expect("a percentage"),
            },
            eject: None,
            proxy_protocol: None,
            grpc_web: false,
        }
    }

    /// TLS with verification.
    pub(crate) fn tls() -> UpstreamTls {
        UpstreamTls {
            sni: Some("app.test".into()),
            verify: true,
            ca: None,
            client_cert: None,
            alpn: vec![model::Alpn::Http2, model::Alpn::Http1],
        }
    }

    /// A trust store that says it was read from `path`.
    pub(crate) fn trust_store(path: &str, certificate: &[u8]) -> model::TrustStore {
        let certificate = rustls::pki_types::CertificateDer::from(certificate.to_vec());
        model::TrustStore { path: path.into(), certificates: vec![certificate].into() }
    }
}

//! The immutable running configuration: routes compiled, upstreams built. Swapped as a whole.

use std::{collections::HashMap, sync::Arc};

use http::{HeaderValue, Method, Version, header};

use super::{
    connections::Connections,
    guards::{self, Carried, Guards, LimitSeed},
    peer::TlsProfile,
    upstream::Upstream,
};
use crate::{
    config::model::{self, Engine, Model, Redirect, Respond},
    policy::{
        believed::is_doubtful,
        fields::Fields,
        forwarded::TrustedProxies,
        headers::HeaderEdits,
        path::{Ambiguous, SentPath, split_target},
        route::{Found, RequestView, Router, pick_split},
    },
    telemetry::metrics::{BackendMetrics, Metrics, UpstreamMetrics},
    types::{Name, Weight},
};

/// Everything a request needs to know of the configuration.
pub struct Snapshot {
    rules: Arc<Rules>,
    upstreams: Box<[Arc<Member>]>,
    connections: Arc<Connections>,
    limit_seed: Arc<LimitSeed>,
}

/// What only a new configuration changes, shared by all snapshots of one.
struct Rules {
    router: Router,
    routes: Box<[Route]>,
    trusted: TrustedProxies,
    /// See [`Snapshot::asks_doubtful`].
    asks_doubtful: bool,
    engine: Engine,
    via: Option<Via>,
}

/// An upstream with its counters.
pub struct Member {
    /// The upstream.
    pub upstream: Arc<Upstream>,
    /// Its counters.
    pub metrics: Arc<UpstreamMetrics>,
    /// Those of its backends, in their order.
    pub backends: Box<[Arc<BackendMetrics>]>,
}

impl Member {
    fn build(
        upstream: &model::Upstream,
        backends: Vec<model::Backend>,
        process: &model::Process,
        previous: Option<&Arc<Upstream>>,
        connections: &Arc<Connections>,
        metrics: &Metrics,
    ) -> Self {
        let counters = backends.iter().map(|backend| metrics.backend(&upstream.name, &backend.id)).collect();
        Self {
            upstream: Upstream::build_with(upstream, backends, process, previous, connections.clone()),
            metrics: metrics.upstream(&upstream.name),
            backends: counters,
        }
    }

    /// The same upstream of the same configuration with another list of backends. Those that stay as and where they are
    /// are shared.
    fn with_backends(
        &self,
        upstream: &model::Upstream,
        backends: Vec<model::Backend>,
        process: &model::Process,
        metrics: &Metrics,
    ) -> Self {
        let mut before = self.upstream.backends().iter().zip(&self.backends);
        let counters = backends.iter().map(|backend| match before.next() {
            Some((known, counters)) if known.id == backend.id => counters.clone(),
            _ => metrics.backend(&upstream.name, &backend.id),
        });
        Self {
            metrics: self.metrics.clone(),
            backends: counters.collect(),
            upstream: self.upstream.with_backends(upstream, backends, process),
        }
    }
}

/// What is done with a matching request.
pub struct Route {
    /// For logs.
    pub name: Name,
    /// Under which its counters are found again.
    pub key: String,
    /// What a request must pass first; `None` where everything passes.
    pub guards: Option<Guards>,
    /// What is done.
    pub action: Action,
    /// Edits of the request.
    pub request_headers: HeaderEdits,
    /// Edits of the answer.
    pub response_headers: HeaderEdits,
    /// Who moves the bytes of its plain requests, where it says; see [`Snapshot::engine`].
    engine: Option<Engine>,
}

/// What is done with a request.
pub enum Action {
    /// Send it to one of these upstreams (positions in the snapshot), by share.
    Proxy {
        /// Where to.
        upstreams: Box<[(usize, Weight)]>,
        /// Taken off the path.
        strip_prefix: Option<String>,
        /// What is sent of the path.
        path: SentPath,
    },
    /// Answer with a redirect.
    Redirect(Redirect),
    /// Answer at once.
    Respond(Respond),
}

struct Via {
    http10: HeaderValue,
    http11: HeaderValue,
    http2: HeaderValue,
}

impl Snapshot {
    /// Builds the running configuration, going on from the state of `previous`. `backends` says who belongs to an
    /// upstream now: what the model has, and what was changed at run time.
    pub fn build(
        model: &Model,
        backends: impl Fn(&model::Upstream) -> Vec<model::Backend>,
        previous: Option<&Self>,
        metrics: &Metrics,
    ) -> Self {
        let before: HashMap<&Name, &Arc<Upstream>> = previous
            .iter()
            .flat_map(|previous| previous.upstreams.iter())
            .map(|member| (&member.upstream.name, &member.upstream))
            .collect();
        let connections = previous.map(|previous| previous.connections.clone()).unwrap_or_default();
        let limit_seed = previous.map(|previous| previous.limit_seed.clone()).unwrap_or_default();
        let member = |upstream: &model::Upstream| {
            let previous = before.get(&upstream.name).copied();
            let backends = backends(upstream);
            Arc::new(Member::build(upstream, backends, &model.process, previous, &connections, metrics))
        };
        let places: HashMap<&Name, usize> = model.upstreams.keys().enumerate().map(|(at, name)| (name, at)).collect();
        let mut carried: HashMap<&str, Carried> = HashMap::new();
        for before in previous.iter().flat_map(|previous| previous.rules.routes.iter()) {
            if let Some(guards) = &before.guards {
                carried.entry(&before.key).or_default().add(guards);
            }
        }
        let mut route = |route: &model::Route| {
            let key = guards::key(route);
            let mut nothing = Carried::default();
            let before = carried.get_mut(key.as_str()).unwrap_or(&mut nothing);
            Route::build(route, key, &places, before, &limit_seed)
        };
        let rules = Rules {
            router: Router::new(model.routes.iter().map(|route| &route.matches)),
            routes: model.routes.iter().map(&mut route).collect(),
            trusted: TrustedProxies::new(&model.trusted_proxies),
            asks_doubtful: model.routes.iter().any(|route| {
                let mut names = route.matches.headers.iter().map(|(name, _)| name);
                names.any(is_doubtful)
            }),
            engine: model.engine,
            via: model.via.as_ref().and_then(|name| Via::new(name.as_str())),
        };
        let upstreams = model.upstreams.values().map(member).collect();
        Self { rules: Arc::new(rules), upstreams, connections, limit_seed }
    }

    /// The same configuration with another list of backends for one upstream. Costs a pointer for each other upstream.
    pub fn with_backends(
        &self,
        upstream: &model::Upstream,
        backends: Vec<model::Backend>,
        process: &model::Process,
        metrics: &Metrics,
    ) -> Self {
        let rebuilt = |member: &Arc<Member>| {
            if member.upstream.name != upstream.name {
                return member.clone();
            }
            Arc::new(member.with_backends(upstream, backends.clone(), process, metrics))
        };
        let upstreams = self.upstreams.iter().map(rebuilt).collect();
        let (connections, limit_seed) = (self.connections.clone(), self.limit_seed.clone());
        Self { rules: self.rules.clone(), upstreams, connections, limit_seed }
    }

    /// The sockets to all backends, of all snapshots.
    pub fn connections(&self) -> &Connections {
        &self.connections
    }

    /// The seed of what guards count by, the same for all snapshots of a process.
    pub fn limit_seed(&self) -> &Arc<LimitSeed> {
        &self.limit_seed
    }

    /// Peers whose forwarding fields are believed.
    pub fn trusted(&self) -> &TrustedProxies {
        &self.rules.trusted
    }

    /// Whether a route matches by a field that is not simply the client's to say, so that whoever looks for a route must show
    /// [`crate::policy::believed::Believed`].
    pub fn asks_doubtful(&self) -> bool {
        self.rules.asks_doubtful
    }

    /// The first route that takes a request.
    ///
    /// # Errors
    /// It is not beyond doubt which one that is.
    pub fn find<'a>(&self, request: &RequestView<'a, impl Fields>) -> Result<Found<'a>, Ambiguous> {
        self.rules.router.find(request)
    }

    /// A route by its position.
    pub fn route(&self, index: usize) -> &Route {
        &self.rules.routes[index]
    }

    /// Who moves the bytes of a plain request of this route: what the route says, else its listener, else the configuration.
    pub fn engine(&self, route: &Route, listener: Option<Engine>) -> Engine {
        route.engine.or(listener).unwrap_or(self.rules.engine)
    }

    /// All routes.
    pub fn routes(&self) -> &[Route] {
        &self.rules.routes
    }

    /// An upstream by its position.
    pub fn member(&self, index: usize) -> &Member {
        &self.upstreams[index]
    }

    /// All upstreams.
    pub fn members(&self) -> &[Arc<Member>] {
        &self.upstreams
    }

    /// Every way of speaking TLS to backends but the default.
    pub fn tls_profiles(&self) -> impl Iterator<Item = &TlsProfile> {
        let default = TlsProfile::default();
        let profiles = self.upstreams.iter().map(|member| &member.upstream.tls_profile);
        profiles.filter(move |profile| **profile != default)
    }

    /// The upstream that a request will go to, if it goes to any; `target` is that of the request line or `:path`, and
    /// `seed` decides where a split sends it.
    pub fn upstream_for(
        &self,
        method: &Method,
        target: &str,
        headers: &impl Fields,
        authority: Option<&str>,
        seed: u64,
    ) -> Option<&Upstream> {
        let host = authority.or_else(|| headers.first(&header::HOST).and_then(|host| std::str::from_utf8(host).ok()));
        let (path, _) = split_target(method, target);
        let view = RequestView { host: host.unwrap_or_default(), path, method, headers };
        match &self.route(self.find(&view).ok()?.route?).action {
            Action::Proxy { upstreams, .. } => Some(&self.member(choose(upstreams, seed)).upstream),
            Action::Redirect(_) | Action::Respond(_) => None,
        }
    }

    /// What `Via` says of a message received as `version` (RFC 9110 §7.6.3).
    pub fn via(&self, version: Version) -> Option<&HeaderValue> {
        self.rules.via.as_ref().map(|via| match version {
            Version::HTTP_10 => &via.http10,
            Version::HTTP_2 => &via.http2,
            _ => &via.http11,
        })
    }
}

/// Which upstream of a split takes a request.
pub fn choose(upstreams: &[(usize, Weight)], seed: u64) -> usize {
    match upstreams {
        [(only, _)] => *only,
        split => split[pick_split(split, seed)].0,
    }
}

impl Route {
    fn build(
        route: &model::Route,
        key: String,
        places: &HashMap<&Name, usize>,
        before: &mut Carried,
        seed: &Arc<LimitSeed>,
    ) -> Self {
        let action = match &route.action {
            model::RouteAction::Proxy(proxy) => Action::Proxy {
                // Validation has seen to it that every name exists.
                upstreams: proxy
                    .upstreams
                    .iter()
                    .filter_map(|(name, weight)| Some((*places.get(name)?, *weight)))
                    .collect(),
                strip_prefix: proxy.strip_prefix.clone(),
                // A service that is asked about one path must not let in another one.
                path: if route.guards.forward_auth.is_some() { SentPath::Normalized } else { proxy.path },
            },
            model::RouteAction::Redirect(redirect) => Action::Redirect(redirect.clone()),
            model::RouteAction::Respond(respond) => Action::Respond(respond.clone()),
        };
        Self {
            name: route.name.clone(),
            key,
            guards: Guards::build(&route.guards, before, seed),
            action,
            request_headers: route.request_headers.clone(),
            response_headers: route.response_headers.clone(),
            engine: route.engine,
        }
    }
}

impl Via {
    fn new(name: &str) -> Option<Self> {
        let value = |version: &str| HeaderValue::try_from(format!("{version} {name}")).ok();
        Some(Self { http10: value("1.0")?, http11: value("1.1")?, http2: value("2.0")? })
    }
}

//! Resolves backends that are host names, off the request path: at start, after every change of the upstreams, and
//! every ten seconds. A name that does not resolve keeps its last address; traffic goes round one that never had any.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    net::SocketAddr,
    sync::Arc,
    time::Duration,
};

use async_trait::async_trait;
use log::{info, warn};
use pingora_core::{server::ShutdownWatch, services::background::BackgroundService};
use tokio::{sync::watch, task::JoinSet, time::timeout};

use super::health::FirstRound;
use crate::{
    runtime::{backend::BackendState, upstream::Upstream},
    types::{BackendAddress, HostPort},
};

/// Between two rounds, spread by 10 % either way.
const PERIOD: Duration = Duration::from_secs(10);
/// One lookup at most: a resolver that hangs must not stop the rounds.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);

/// The service. Backends with the same name and port share one lookup.
pub struct Resolver {
    upstreams: watch::Receiver<Vec<Arc<Upstream>>>,
    first_round: watch::Sender<bool>,
}

impl Resolver {
    /// Resolves nothing until it is run as a service.
    pub fn new(upstreams: watch::Receiver<Vec<Arc<Upstream>>>) -> (Self, FirstRound) {
        let finished = names(&upstreams.borrow()).is_empty();
        let (first_round, receiver) = watch::channel(finished);
        (Self { upstreams, first_round }, FirstRound::new(receiver))
    }
}

#[async_trait]
impl BackgroundService for Resolver {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut upstreams = self.upstreams.clone();
        // Names that did not resolve the last time, so that a lasting failure is logged once.
        let mut failing = BTreeSet::new();
        loop {
            let names = names(&upstreams.borrow_and_update());
            failing.retain(|name| names.contains_key(name));
            let pause = PERIOD.mul_f64(rand::random_range(0.9..=1.1));
            let round = async {
                resolve_all(&names, &mut failing).await;
                self.first_round.send_replace(true);
                tokio::time::sleep(pause).await;
            };
            tokio::select! {
                () = round => {}
                () = changed(&mut upstreams) => {}
                _ = shutdown.wait_for(|down| *down) => return,
            }
        }
    }
}

/// Returns at a change; never where nobody can make one any more.
async fn changed(upstreams: &mut watch::Receiver<Vec<Arc<Upstream>>>) {
    if upstreams.changed().await.is_err() {
        std::future::pending::<()>().await;
    }
}

type Names = BTreeMap<HostPort, Vec<Arc<BackendState>>>;

fn names(upstreams: &[Arc<Upstream>]) -> Names {
    let mut names = Names::new();
    for backend in upstreams.iter().flat_map(|upstream| upstream.backends()) {
        if let BackendAddress::Host(name) = &backend.address {
            names.entry(name.clone()).or_default().push(backend.clone());
        }
    }
    names
}

/// One round: all names at once; each takes effect when its own answer is there.
async fn resolve_all(names: &Names, failing: &mut BTreeSet<HostPort>) {
    let mut lookups = JoinSet::new();
    for name in names.keys().cloned() {
        lookups.spawn(async move {
            let answer = lookup(&name).await;
            (name, answer)
        });
    }
    while let Some(finished) = lookups.join_next().await {
        let Ok((name, answer)) = finished else { continue };
        let backends = names.get(&name).map(Vec::as_slice).unwrap_or_default();
        match answer {
            Ok(addresses) => {
                failing.remove(&name);
                backends.iter().for_each(|backend| apply(backend, &addresses));
            }
            Err(error) => {
                if failing.insert(name.clone()) {
                    warn!("backend name {} does not resolve, keeping what was known: {error}", name.host);
                }
            }
        }
    }
}

async fn lookup(name: &HostPort) -> io::Result<Vec<SocketAddr>> {
    let addresses = timeout(LOOKUP_TIMEOUT, tokio::net::lookup_host((name.host.as_str(), name.port))).await??;
    let addresses: Vec<SocketAddr> = addresses.collect();
    if addresses.is_empty() { Err(io::Error::other("it has no address")) } else { Ok(addresses) }
}

fn apply(backend: &BackendState, answer: &[SocketAddr]) {
    let current = backend.target().and_then(|target| target.as_inet().copied());
    let Some(address) = prefer(current, answer) else { return };
    if backend.set_target(address) {
        info!("backend {} ({}) is at {address}", backend.id, backend.label);
    }
}

/// The address in use while it is still in the answer; else the first IPv4 one, since what listens on both families
/// is reached by it and what listens on one is mostly that; else the first.
fn prefer(current: Option<SocketAddr>, answer: &[SocketAddr]) -> Option<SocketAddr> {
    current
        .filter(|current| answer.contains(current))
        .or_else(|| answer.iter().copied().find(SocketAddr::is_ipv4))
        .or_else(|| answer.first().copied())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::model,
        runtime::upstream::fixtures::{process, upstream},
    };

    fn named(host: &str) -> model::Upstream {
        let mut model = upstream("app", &[("a", 1)]);
        model.backends[0].address = BackendAddress::Host(HostPort { host: host.into(), port: 80 });
        model
    }

    #[test]
    fn the_address_in_use_is_kept_while_it_is_answered() {
        let address = |last: u8| SocketAddr::from(([192, 0, 2, last], 80));
        let six = SocketAddr::from(([0u16, 0, 0, 0, 0, 0, 0, 1], 80));
        assert_eq!(prefer(Some(address(2)), &[address(1), address(2)]), Some(address(2)));
        assert_eq!(prefer(Some(address(3)), &[address(1), address(2)]), Some(address(1)));
        assert_eq!(prefer(None, &[six, address(1)]), Some(address(1)));
        assert_eq!(prefer(None, &[six]), Some(six));
        assert_eq!(prefer(Some(address(3)), &[]), None);
    }

    #[tokio::test]
    async fn a_name_gets_its_address_and_a_bad_one_stops_nothing() {
        let good = Upstream::build(&named("localhost"), named("localhost").backends.clone(), &process(), None);
        let bad = Upstream::build(
            &named("does-not-exist.invalid"),
            named("does-not-exist.invalid").backends.clone(),
            &process(),
            None,
        );
        let (_changes, upstreams) = watch::channel(vec![good.clone(), bad.clone()]);
        let (stop, shutdown) = watch::channel(false);
        let service = tokio::spawn(async move { Resolver::new(upstreams).0.start(shutdown).await });
        timeout(Duration::from_secs(20), async {
            while !good.backends()[0].usable() {
                tokio::task::yield_now().await;
            }
        })
        .await
        .expect("localhost resolves");
        let target = good.backends()[0].target().expect("resolved");
        assert!(target.as_inet().is_some_and(|address| address.ip().is_loopback() && address.port() == 80));
        assert!(!bad.backends()[0].usable());
        stop.send(true).expect("the service listens");
        timeout(Duration::from_secs(20), service).await.expect("stops").expect("no panic");
    }
}

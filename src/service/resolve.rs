//! Resolves backends that are host names, off the request path: each name as soon as it is there, and then every ten
//! seconds. A name that does not resolve keeps its last address; traffic goes round one that never had any. A change of
//! the upstreams begins and ends lookups of the names that come and go, and disturbs no other.

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
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::health::FirstRound;
use crate::{
    runtime::{backend::BackendState, upstream::Upstream},
    types::{BackendAddress, HostPort},
};

/// Between two lookups of a name, spread by 10 % either way.
const PERIOD: Duration = Duration::from_secs(10);
/// One lookup at most: a resolver that hangs must not hold up other names for good.
const LOOKUP_TIMEOUT: Duration = Duration::from_secs(5);
/// Lookups under way at the same time; each has a thread for itself.
const AT_ONCE: usize = 32;
/// What the start waits for at most. Names are many, and where DNS is out each takes its whole time.
const FIRST_ROUND: Duration = Duration::from_secs(10);

/// The service. Backends with the same name and port share one lookup.
pub struct Resolver {
    upstreams: watch::Receiver<Vec<Arc<Upstream>>>,
    first_round: watch::Sender<bool>,
    after: Option<FirstRound>,
}

impl Resolver {
    /// Resolves nothing until it is run as a service.
    pub fn new(upstreams: watch::Receiver<Vec<Arc<Upstream>>>) -> (Self, FirstRound) {
        let finished = names(&upstreams.borrow()).is_empty();
        let (first_round, receiver) = watch::channel(finished);
        (Self { upstreams, first_round, after: None }, FirstRound::new(receiver))
    }

    /// The first round includes the names that are there when `other` is finished.
    pub fn after(mut self, other: FirstRound) -> Self {
        if !other.is_finished() {
            self.first_round.send_replace(false);
            self.after = Some(other);
        }
        self
    }
}

#[async_trait]
impl BackgroundService for Resolver {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut upstreams = self.upstreams.clone();
        let mut after = self.after.clone();
        let deadline = Instant::now() + FIRST_ROUND;
        let mut lookups = JoinSet::new();
        let mut known = Known::default();
        known.follow(&upstreams.borrow_and_update(), Instant::now());
        loop {
            while lookups.len() < AT_ONCE
                && let Some(name) = known.next_due(Instant::now())
            {
                lookups.spawn(async move {
                    let answer = lookup(&name).await;
                    (name, answer)
                });
            }
            if !*self.first_round.borrow() && (Instant::now() >= deadline || after.is_none() && known.were_all_asked())
            {
                self.first_round.send_replace(true);
            }
            let waking = known.wakes_at().filter(|_| lookups.len() < AT_ONCE);
            tokio::select! {
                Some(finished) = lookups.join_next() => {
                    if let Ok((name, answer)) = finished {
                        let pause = PERIOD.mul_f64(rand::random_range(0.9..=1.1));
                        known.answered(&name, answer, Instant::now() + pause);
                    }
                }
                () = until(waking) => {}
                () = until(Some(deadline)), if !*self.first_round.borrow() => {}
                () = super::health::finished(&mut after) => {
                    after = None;
                    known.follow(&upstreams.borrow_and_update(), Instant::now());
                }
                () = changed(&mut upstreams) => known.follow(&upstreams.borrow_and_update(), Instant::now()),
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

/// Returns at that time; never where there is none.
async fn until(time: Option<Instant>) {
    match time {
        Some(time) => sleep_until(time).await,
        None => std::future::pending().await,
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

/// The names that backends have now.
#[derive(Default)]
struct Known {
    names: BTreeMap<HostPort, Lookup>,
    /// Names that are to be looked up, by time. A name that is being looked up is not among them.
    due: BTreeSet<(Instant, HostPort)>,
}

#[derive(Default)]
struct Lookup {
    backends: Vec<Arc<BackendState>>,
    /// What it last resolved to.
    addresses: Vec<SocketAddr>,
    asked: bool,
    /// Its entry in `due`.
    due: Option<Instant>,
    /// The last time it did not resolve; a lasting failure is logged once.
    failing: bool,
}

impl Known {
    /// Has exactly the names of these upstreams. New ones are due at once.
    fn follow(&mut self, upstreams: &[Arc<Upstream>], now: Instant) {
        let mut current = names(upstreams);
        self.names.retain(|name, _| current.contains_key(name));
        self.due.retain(|(_, name)| current.contains_key(name));
        for (name, lookup) in &mut self.names {
            lookup.backends = current.remove(name).unwrap_or_default();
            // A backend that is new finds an answer here already.
            lookup.backends.iter().for_each(|backend| apply(backend, &lookup.addresses));
        }
        for (name, backends) in current {
            self.due.insert((now, name.clone()));
            self.names.insert(name, Lookup { backends, due: Some(now), ..Lookup::default() });
        }
    }

    /// Takes out a name that is to be looked up now.
    fn next_due(&mut self, now: Instant) -> Option<HostPort> {
        self.due.first().filter(|(due, _)| *due <= now)?;
        let (_, name) = self.due.pop_first()?;
        if let Some(lookup) = self.names.get_mut(&name) {
            lookup.due = None;
        }
        Some(name)
    }

    fn wakes_at(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    fn were_all_asked(&self) -> bool {
        self.names.values().all(|lookup| lookup.asked)
    }

    fn answered(&mut self, name: &HostPort, answer: io::Result<Vec<SocketAddr>>, next: Instant) {
        let Some(lookup) = self.names.get_mut(name) else { return };
        lookup.asked = true;
        match answer {
            Ok(addresses) => {
                lookup.failing = false;
                lookup.addresses = addresses;
                lookup.backends.iter().for_each(|backend| apply(backend, &lookup.addresses));
            }
            Err(error) => {
                if !std::mem::replace(&mut lookup.failing, true) {
                    warn!("backend name {} does not resolve, keeping what was known: {error}", name.host);
                }
            }
        }
        // It has one where it was gone for a while and is back.
        if let Some(due) = lookup.due.replace(next) {
            self.due.remove(&(due, name.clone()));
        }
        self.due.insert((next, name.clone()));
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

    fn shared(names: usize, each: usize) -> Vec<Arc<Upstream>> {
        let ids: Vec<String> = (0..each).map(|id| format!("b{id}")).collect();
        let backends: Vec<(&str, u16)> = ids.iter().map(|id| (id.as_str(), 1)).collect();
        let build = |name: usize| {
            let mut model = upstream(&format!("app{name}"), &backends);
            for backend in &mut model.backends {
                let host = format!("host{name}.test");
                backend.address = BackendAddress::Host(HostPort { host, port: 80 });
            }
            Upstream::build(&model, model.backends.clone(), &process(), None)
        };
        (0..names).map(build).collect()
    }

    fn all_due(known: &mut Known, now: Instant) -> Vec<HostPort> {
        std::iter::from_fn(|| known.next_due(now)).collect()
    }

    #[tokio::test]
    async fn a_name_of_many_backends_is_looked_up_once_and_all_get_its_address() {
        let (now, upstreams) = (Instant::now(), shared(2, 50));
        let mut known = Known::default();
        known.follow(&upstreams, now);
        let names = all_due(&mut known, now);
        assert_eq!(names.len(), 2);
        assert!(!known.were_all_asked());
        let next = now + PERIOD;
        for name in &names {
            known.answered(name, Ok(vec![([192, 0, 2, 1], 80).into()]), next);
        }
        assert!(known.were_all_asked());
        assert!(upstreams.iter().all(|upstream| upstream.backends().iter().all(|backend| backend.has_target())));
        assert_eq!((known.next_due(now), known.wakes_at()), (None, Some(next)));
    }

    #[tokio::test]
    async fn a_change_asks_again_for_no_name_that_stays_and_forgets_those_that_go() {
        let (now, mut upstreams) = (Instant::now(), shared(3, 1));
        let mut known = Known::default();
        known.follow(&upstreams[..2], now);
        let names = all_due(&mut known, now);
        known.answered(&names[0], Ok(vec![([192, 0, 2, 1], 80).into()]), now + PERIOD);
        // The second is being looked up when it goes, comes back, and its first answer arrives.
        let second = upstreams.remove(1);
        known.follow(&upstreams, now);
        assert_eq!(all_due(&mut known, now).len(), 1, "only the new one");
        upstreams.push(second);
        known.follow(&upstreams, now);
        known.answered(&names[1], Err(io::Error::other("no")), now + PERIOD);
        assert_eq!(all_due(&mut known, now), []);
        assert_eq!(all_due(&mut known, now + PERIOD).len(), 2, "each once");
        known.follow(&[], now);
        known.answered(&names[0], Err(io::Error::other("no")), now);
        assert_eq!((known.names.len(), known.due.len()), (0, 0));
    }

    #[tokio::test]
    async fn a_new_backend_of_a_known_name_has_its_address_at_once() {
        let (now, few, many) = (Instant::now(), shared(1, 1), shared(1, 2));
        let mut known = Known::default();
        known.follow(&few, now);
        let names = all_due(&mut known, now);
        known.answered(&names[0], Ok(vec![([192, 0, 2, 1], 80).into()]), now + PERIOD);
        known.follow(&many, now);
        assert!(many[0].backends()[1].has_target());
        assert_eq!(known.next_due(now), None);
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

//! Discovery as a Pingora background service: one task per upstream that has `discover`, which looks for backends again
//! and again and gives them to the store. What cannot be found stays as it was: an outage of DNS or a file half-written
//! never empties an upstream, and never holds up the start for longer than one lookup.

use std::{collections::HashMap, sync::Arc, time::Duration};

use async_trait::async_trait;
use log::{error, info, warn};
use pingora_core::{server::ShutdownWatch, services::background::BackgroundService};
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{sleep, timeout},
};

use self::{
    dns::{Finder, Found, LOOKUP_TIMEOUT, Lookups},
    list::{Look, Watched},
};
use super::health::FirstRound;
use crate::{
    config::model::{Discover, DiscoverDns, DiscoverList, DnsRecords, Model},
    runtime::{
        membership::Declared,
        store::{ChangeError, Store},
    },
    telemetry::metrics::DiscoveryMetrics,
    types::{BackendAddress, Name},
};

mod dns;
mod list;

/// Between two lookups at least, whatever TTL an answer has.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
/// After a lookup that failed at most.
const RETRY_PAUSE: Duration = Duration::from_secs(5);

/// The service. It follows the configuration: tasks of upstreams whose `discover` stays as it was go on.
pub struct Discovery {
    store: Arc<Store>,
    configs: watch::Receiver<Arc<Model>>,
    first_round: watch::Sender<bool>,
}

impl Discovery {
    /// Looks for nothing until it is run as a service. `configs` has what the store runs with: a new configuration comes
    /// to the store first.
    pub fn new(store: Arc<Store>, configs: watch::Receiver<Arc<Model>>) -> (Self, FirstRound) {
        let finished = sought(&configs.borrow()).next().is_none();
        let (first_round, receiver) = watch::channel(finished);
        (Self { store, configs, first_round }, FirstRound::new(receiver))
    }
}

#[async_trait]
impl BackgroundService for Discovery {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut configs = self.configs.clone();
        let lookups = Arc::new(Lookups::default());
        let mut running = HashMap::new();
        // Every task of the start holds a sender until it has looked once.
        let (first, mut looked) = mpsc::channel::<()>(1);
        self.reconcile(&configs.borrow_and_update().clone(), &mut running, &lookups, &first);
        drop(first);
        let first_round = async {
            let _ = timeout(LOOKUP_TIMEOUT, looked.recv()).await;
            self.first_round.send_replace(true);
            std::future::pending::<()>().await;
        };
        let follow = async {
            while configs.changed().await.is_ok() {
                let model = configs.borrow_and_update().clone();
                let (later, _) = mpsc::channel(1);
                self.reconcile(&model, &mut running, &lookups, &later);
            }
            std::future::pending::<()>().await;
        };
        tokio::select! {
            () = first_round => {}
            () = follow => {}
            // Ends the tasks: dropping one aborts it.
            _ = shutdown.wait_for(|down| *down) => {}
        }
    }
}

/// The upstreams that have backends to be found.
fn sought(model: &Model) -> impl Iterator<Item = (&Name, &Discover)> {
    model.upstreams.iter().filter_map(|(name, upstream)| Some((name, upstream.discover.as_ref()?)))
}

struct Task {
    discover: Discover,
    handle: JoinHandle<()>,
}

impl Drop for Task {
    fn drop(&mut self) {
        self.handle.abort();
    }
}

impl Discovery {
    fn reconcile(
        &self,
        model: &Model,
        running: &mut HashMap<Name, Task>,
        lookups: &Arc<Lookups>,
        first: &mpsc::Sender<()>,
    ) {
        let wanted: HashMap<&Name, &Discover> = sought(model).collect();
        running.retain(|name, task| wanted.get(name) == Some(&&task.discover));
        lookups.retain(|servers| {
            wanted.values().any(|discover| matches!(discover, Discover::Dns(dns) if dns.servers == servers))
        });
        for (name, discover) in wanted {
            if running.contains_key(name) {
                continue;
            }
            let seeker = Seeker {
                upstream: name.clone(),
                store: self.store.clone(),
                counters: self.store.metrics().discovery(name),
                failing: None,
                known: 0,
            };
            let first = first.clone();
            let handle = match discover.clone() {
                Discover::Dns(dns) => tokio::spawn(seeker.ask(dns, lookups.clone(), first)),
                Discover::List(list) => tokio::spawn(seeker.watch(list, first)),
            };
            running.insert(name.clone(), Task { discover: discover.clone(), handle });
        }
    }
}

/// What finds the backends of one upstream.
struct Seeker {
    upstream: Name,
    store: Arc<Store>,
    counters: Arc<DiscoveryMetrics>,
    /// What was last said about a failure that lasts.
    failing: Option<String>,
    /// Backends of the last list that was taken.
    known: usize,
}

impl Seeker {
    async fn ask(mut self, spec: DiscoverDns, lookups: Arc<Lookups>, first: mpsc::Sender<()>) {
        let mut finder = Finder::new(spec.clone(), lookups);
        let mut first = Some(first);
        let mut dropping = false;
        loop {
            let Found { backends, ttl, trouble, dropped } = finder.find().await;
            let refused = if backends.is_empty() { None } else { self.give(backends).err() };
            let failed = trouble.or(refused);
            if dropped > 0 && !dropping {
                let upstream = &self.upstream;
                warn!(
                    "upstream {upstream}: the answer to {} has {dropped} backends too many; they are left out",
                    spec.name
                );
            }
            dropping = dropped > 0;
            let pause = pause(spec.refresh, ttl, failed.is_some());
            self.count(failed.is_some());
            match failed {
                Some(why) if self.failing.is_none() => {
                    warn!(
                        "upstream {}: no full answer for {} ({}): {why}; {}",
                        self.upstream,
                        spec.name,
                        kind(spec.records),
                        self.kept()
                    );
                    self.failing = Some(why);
                }
                None if self.failing.take().is_some() => {
                    info!("upstream {}: {} is answered again", self.upstream, spec.name);
                }
                _ => {}
            }
            first.take();
            sleep(jittered(pause).max(SHORTEST_PAUSE)).await;
        }
    }

    async fn watch(mut self, spec: DiscoverList, first: mpsc::Sender<()>) {
        let mut first = Some(first);
        let mut watched = Watched::default();
        loop {
            let path = spec.path.clone();
            // Away from the other upstreams: a network file system may hang.
            let looked = tokio::task::spawn_blocking(move || {
                let look = watched.look(&path);
                (watched, look)
            });
            let look = match looked.await {
                Ok((after, look)) => {
                    watched = after;
                    look
                }
                Err(_) => {
                    watched = Watched::default();
                    Look::Same
                }
            };
            let given = match look {
                Look::Same => None,
                Look::Failed(why) => Some(Err(why)),
                Look::Taken(backends) => Some(self.give(backends)),
            };
            if let Some(given) = given {
                self.tell(&spec, given);
                first.take();
            }
            sleep(spec.refresh).await;
        }
    }

    fn tell(&mut self, spec: &DiscoverList, given: Result<(), String>) {
        self.count(given.is_err());
        match given {
            Err(why) if self.failing.as_ref() != Some(&why) => {
                error!("upstream {}: the list of backends cannot be used; {}: {why}", self.upstream, self.kept());
                self.failing = Some(why);
            }
            Ok(()) => {
                self.failing = None;
                info!("upstream {}: {} backends are listed in {}", self.upstream, self.known, spec.path.display());
            }
            Err(_) => {}
        }
    }

    /// Gives all of what was found to the store.
    fn give(&mut self, backends: Vec<Declared>) -> Result<(), String> {
        let model = self.store.model();
        let tls = model.upstreams.get(&self.upstream).and_then(|upstream| upstream.tls.as_ref());
        if tls.is_some_and(|tls| tls.sni.is_none())
            && let Some(nameless) = backends.iter().find(|one| !matches!(one.spec.address, BackendAddress::Host(_)))
        {
            return Err(ChangeError::SniMissing(nameless.spec.address.to_string()).to_string());
        }
        self.known = backends.len();
        self.store.discovered(&self.upstream, backends);
        Ok(())
    }

    fn count(&self, failed: bool) {
        let counter = if failed { &self.counters.failed } else { &self.counters.found };
        counter.increment();
    }

    fn kept(&self) -> String {
        match self.known {
            0 => "no backend is known yet".into(),
            1 => "the one backend that is known stays".into(),
            known => format!("the {known} backends that are known stay"),
        }
    }
}

fn kind(records: DnsRecords) -> &'static str {
    match records {
        DnsRecords::Addresses { .. } => "A, AAAA",
        DnsRecords::Srv => "SRV",
    }
}

/// How long what was found holds. An answer that failed is asked for again soon.
fn pause(refresh: Duration, ttl: Option<Duration>, failed: bool) -> Duration {
    let retry = if failed { RETRY_PAUSE } else { refresh };
    refresh.min(ttl.unwrap_or(refresh)).min(retry).max(SHORTEST_PAUSE)
}

/// Spreads lookups that began together: within 10 % either way.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::random_range(0.9..=1.1))
}

#[cfg(test)]
mod tests;

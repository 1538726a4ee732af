//! Health in the metrics and in the events. Follows the snapshot, so that the counts of a backend that is gone do not come
//! back with the last word of its probe.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, PoisonError, RwLock},
};

use crate::{
    policy::health::Flip,
    runtime::{
        backend::BackendState,
        snapshot::{Member, Snapshot},
    },
    service::health::HealthObserver,
    telemetry::{
        events::{Events, News},
        metrics::{BackendMetrics, Metrics},
    },
    types::Name,
};

/// Told what the probes find, and what runs.
pub(super) struct Observer {
    metrics: Arc<Metrics>,
    events: Arc<Events>,
    seen: RwLock<Seen>,
}

#[derive(Default)]
struct Seen {
    members: HashMap<Name, Arc<Member>>,
    backends: HashMap<Name, HashMap<Name, Arc<BackendMetrics>>>,
}

impl Observer {
    /// Knows no backend yet.
    pub(super) fn new(metrics: Arc<Metrics>, events: Arc<Events>) -> Self {
        Self { metrics, events, seen: RwLock::default() }
    }

    /// This runs from now on. What it no longer names is taken out of the metrics.
    pub(super) fn follow(&self, snapshot: &Snapshot) {
        let mut seen = self.seen.write().unwrap_or_else(PoisonError::into_inner);
        let members: HashMap<Name, Arc<Member>> =
            snapshot.members().iter().map(|member| (member.upstream.name.clone(), member.clone())).collect();
        let changed = |name: &Name, member: &Arc<Member>| {
            seen.members.get(name).is_none_or(|before| !Arc::ptr_eq(before, member))
        };
        let changed: Vec<Arc<Member>> =
            members.iter().filter(|(name, member)| changed(name, member)).map(|(_, member)| member.clone()).collect();
        let gone: HashSet<Name> = seen.members.keys().filter(|name| !members.contains_key(*name)).cloned().collect();
        let mut lost: HashSet<(Name, Name)> = HashSet::new();
        for member in changed {
            let name = &member.upstream.name;
            let backends: HashMap<Name, Arc<BackendMetrics>> = member
                .upstream
                .backends()
                .iter()
                .zip(&member.backends)
                .map(|(backend, metrics)| (backend.id.clone(), metrics.clone()))
                .collect();
            for (backend, metrics) in member.upstream.backends().iter().zip(&member.backends) {
                metrics.set_up(backend.is_up());
                metrics.set_ejected(backend.is_ejected());
            }
            let before = seen.backends.insert(name.clone(), backends).unwrap_or_default();
            let now = &seen.backends[name];
            lost.extend(before.into_keys().filter(|id| !now.contains_key(id)).map(|id| (name.clone(), id)));
        }
        for name in &gone {
            let before = seen.backends.remove(name).unwrap_or_default();
            lost.extend(before.into_keys().map(|id| (name.clone(), id)));
        }
        seen.members = members;
        if !gone.is_empty() || !lost.is_empty() {
            let kept = |upstream: &Name, id: &Name| !lost.contains(&(upstream.clone(), id.clone()));
            self.metrics.retain(|_| true, |upstream| !gone.contains(upstream), kept);
        }
    }

    fn counters(&self, upstream: &Name, backend: &BackendState) -> Option<Arc<BackendMetrics>> {
        let seen = self.seen.read().unwrap_or_else(PoisonError::into_inner);
        seen.backends.get(upstream)?.get(&backend.id).cloned()
    }
}

impl HealthObserver for Observer {
    fn probed(&self, upstream: &Name, backend: &BackendState, success: bool) {
        if let Some(counters) = self.counters(upstream, backend) {
            counters.checked(success);
        }
    }

    fn flipped(&self, upstream: &Name, backend: &BackendState, flip: Flip) {
        let Some(counters) = self.counters(upstream, backend) else { return };
        counters.flipped(flip == Flip::Up);
        counters.set_up(backend.is_up());
        let what = if flip == Flip::Up { "up" } else { "down" };
        let news = News {
            upstream: upstream.as_str().to_owned(),
            backend: backend.id.as_str().to_owned(),
            who: "health check".to_owned(),
            what: what.to_owned(),
            why: String::new(),
        };
        self.events.tell("backend.health", news);
    }

    fn forgotten(&self, upstream: &Name, backend: &BackendState) {
        if let Some(counters) = self.counters(upstream, backend) {
            counters.set_up(backend.is_up());
        }
    }
}

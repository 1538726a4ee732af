//! The one place where what runs is changed: by a new configuration, by people at run time, by discovery, by time. Each
//! change is decided on a copy, kept in the journal, built, and made visible to every worker before the one who asked
//! hears of it; one that fails on the way has changed nothing.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use super::{
    journal::{Journal, Overrides, SaveError},
    membership::{Conflict, Declared, Entry, Membership, Outcome, Override, Refusal, Spec},
    snapshot::Snapshot,
    upstream::Upstream,
};
use crate::{
    config::model::{self, Model},
    telemetry::{
        events::{Events, News},
        metrics::Metrics,
    },
    types::{Name, Source},
};

/// How long a backend whose lease ran out, and requests of one that was removed by discovery, may take.
pub const LEASE_DRAIN: u64 = 30_000;

/// Makes a snapshot visible: to the workers, the health checks, the resolver.
pub type Publish = Box<dyn Fn(&Arc<Snapshot>) + Send + Sync>;

/// Owner of the running configuration.
pub struct Store {
    running: Mutex<Running>,
    journal: Option<Journal>,
    metrics: Arc<Metrics>,
    events: Arc<Events>,
    epoch: Instant,
}

struct Running {
    model: Arc<Model>,
    members: BTreeMap<Name, Membership>,
    snapshot: Arc<Snapshot>,
    publish: Option<Publish>,
}

/// Another configuration, built and not in place.
pub struct Staged {
    model: Arc<Model>,
    snapshot: Arc<Snapshot>,
    from: Arc<Snapshot>,
}

impl Staged {
    /// What would run.
    pub fn snapshot(&self) -> &Arc<Snapshot> {
        &self.snapshot
    }
}

/// What is known of one upstream at run time.
pub struct View {
    /// Its members, and what was said about them.
    pub membership: Membership,
    /// Its members with health and requests in flight.
    pub upstream: Arc<Upstream>,
    /// As in `ETag`.
    pub version: u64,
}

/// What a change came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Changed {
    /// For the backend it was about.
    pub outcome: Outcome,
    /// Of the upstream from now on.
    pub version: u64,
}

/// Why nothing was changed.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the texts say it
pub enum ChangeError {
    #[error("there is no upstream {0}")]
    NoUpstream(Name),
    #[error(transparent)]
    NotKept(#[from] SaveError),
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error("the upstream has changed meanwhile")]
    Stale { current: u64 },
    #[error("{0} needs `sni` in the upstream's `tls`, because it has no host name")]
    SniMissing(String),
}

impl Store {
    /// Builds the first snapshot of `model` with what the journal kept (`restored`).
    pub fn new(
        model: Arc<Model>,
        restored: Overrides,
        journal: Option<Journal>,
        metrics: Arc<Metrics>,
        events: Arc<Events>,
    ) -> Self {
        let mut members: BTreeMap<Name, Membership> =
            restored.into_iter().map(|(name, overrides)| (name, Membership::restored(overrides))).collect();
        declare(&model, &mut members);
        let snapshot = build(&model, &members, None, &metrics);
        let running = Running { model, members, snapshot: Arc::new(snapshot), publish: None };
        Self { running: Mutex::new(running), journal, metrics, events, epoch: Instant::now() }
    }

    /// From now on changes are made visible by `publish`; it is called at once with what runs.
    pub fn publish_by(&self, publish: Publish) {
        let mut running = self.lock();
        publish(&running.snapshot);
        running.publish = Some(publish);
    }

    /// What runs.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.lock().snapshot.clone()
    }

    /// The configuration that runs, without what was changed at run time.
    pub fn model(&self) -> Arc<Model> {
        self.lock().model.clone()
    }

    /// Where changes are told.
    pub fn events(&self) -> &Arc<Events> {
        &self.events
    }

    /// The counters.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The journal, where one is kept.
    pub fn journal(&self) -> Option<&Journal> {
        self.journal.as_ref()
    }

    /// Milliseconds on the clock of leases and drains.
    pub fn now(&self) -> u64 {
        u64::try_from(self.epoch.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// What is known of an upstream; `None` where there is none of that name.
    pub fn view(&self, upstream: &Name) -> Option<View> {
        let running = self.lock();
        let membership = running.members.get(upstream).cloned().unwrap_or_default();
        let member = running.snapshot.members().iter().find(|member| member.upstream.name == *upstream)?;
        Some(View { version: membership.version(), upstream: member.upstream.clone(), membership })
    }

    /// What is known of every upstream, by name; also of those that the configuration has no more, whose overrides wait.
    pub fn overrides(&self) -> Overrides {
        overrides(&self.lock().members)
    }

    /// Changes who belongs to an upstream. `if_match`: only where its version is this. `tell` says what happened.
    ///
    /// # Errors
    /// No such upstream, it is not what the caller thought, the change is refused, or could not be kept.
    pub fn change(
        &self,
        upstream: &Name,
        if_match: Option<u64>,
        change: impl FnOnce(&mut Membership, u64) -> Result<Outcome, Refusal>,
    ) -> Result<Changed, ChangeError> {
        let now = self.now();
        let mut running = self.lock();
        let model = running.model.clone();
        let Some(config) = model.upstreams.get(upstream) else { return Err(ChangeError::NoUpstream(upstream.clone())) };
        let before = running.members.get(upstream).cloned().unwrap_or_default();
        let current = before.version();
        if if_match.is_some_and(|version| version != current) {
            return Err(ChangeError::Stale { current });
        }
        let mut after = before.clone();
        let outcome = change(&mut after, now)?;
        needs_sni(config, &after)?;
        if lasting(before.overrides()) != lasting(after.overrides()) {
            self.keep(&running, Some((upstream, &after)))?;
        }
        let version = after.version();
        running.members.insert(upstream.clone(), after);
        if version != current {
            self.rebuild(&mut running, config);
        }
        Ok(Changed { outcome, version })
    }

    /// Runs with another configuration from now on. Returns where it and what was said at run time disagree; the latter
    /// holds.
    pub fn reload(&self, model: Arc<Model>) -> Vec<(Name, Conflict)> {
        self.reload_with(self.stage(model), || ())
    }

    /// Builds what a reload would run with, and changes nothing: its new backends can be probed and resolved before they
    /// get traffic.
    pub fn stage(&self, model: Arc<Model>) -> Staged {
        let running = self.lock();
        let mut members = running.members.clone();
        declare(&model, &mut members);
        let snapshot = Arc::new(build(&model, &members, Some(&running.snapshot), &self.metrics));
        Staged { model, snapshot, from: running.snapshot.clone() }
    }

    /// As [`Store::reload`], with what was learned of staged backends; `prepare` is called before the new snapshot is made
    /// visible, and no other is between.
    pub fn reload_with(&self, staged: Staged, prepare: impl FnOnce()) -> Vec<(Name, Conflict)> {
        let Staged { model, snapshot, from } = staged;
        let mut running = self.lock();
        // Where something has changed meanwhile, staged backends begin anew: what is known of others counts more.
        let previous = if Arc::ptr_eq(&from, &running.snapshot) { snapshot } else { running.snapshot.clone() };
        let conflicts = declare(&model, &mut running.members);
        running
            .members
            .retain(|name, membership| model.upstreams.contains_key(name) || !membership.overrides().is_empty());
        let snapshot = build(&model, &running.members, Some(&previous), &self.metrics);
        running.model = model;
        if let Err(error) = self.keep(&running, None) {
            // What was kept is merged again at the next start, with the same result.
            log::error!("{error}");
        }
        prepare();
        self.put_in_place(&mut running, snapshot);
        conflicts
    }

    /// What discovery has found for an upstream. Keeps nothing: it is found again.
    pub fn discovered(&self, upstream: &Name, found: Vec<Declared>) {
        let mut running = self.lock();
        let model = running.model.clone();
        // A lookup may end after the configuration that wanted it.
        let Some(config) = model.upstreams.get(upstream).filter(|upstream| upstream.discover.is_some()) else { return };
        let membership = running.members.entry(upstream.clone()).or_default();
        let before = membership.entries();
        let conflicts = membership.declare_found(found);
        let after = membership.entries();
        tell_conflicts(conflicts.into_iter().map(|conflict| (upstream.clone(), conflict)));
        if before == after {
            return;
        }
        self.rebuild(&mut running, config);
        drop(running);
        self.tell_difference(upstream, &before, &after);
    }

    /// Does what is due: leases that ran out, backends whose requests are done.
    pub fn sweep(&self) {
        let now = self.now();
        let mut running = self.lock();
        let model = running.model.clone();
        let snapshot = running.snapshot.clone();
        let mut told = Vec::new();
        for member in snapshot.members() {
            let name = &member.upstream.name;
            let Some(membership) = running.members.get_mut(name) else { continue };
            if !membership.any_leaving() && membership.next_due().is_none_or(|due| due > now) {
                continue;
            }
            let in_flight = |id: &Name| {
                let found = member.upstream.backends().iter().find(|backend| backend.id == *id);
                found.map_or(0, |backend| backend.in_flight())
            };
            let changed = membership.sweep(now, LEASE_DRAIN, in_flight);
            if changed.is_empty() {
                continue;
            }
            if let Some(config) = model.upstreams.get(name) {
                self.rebuild(&mut running, config);
            }
            told.extend(changed.into_iter().map(|(id, outcome)| (name.clone(), id, outcome)));
        }
        if !told.is_empty()
            && let Err(error) = self.keep(&running, None)
        {
            log::error!("{error}");
        }
        drop(running);
        for (upstream, backend, outcome) in told {
            let (kind, what) = match outcome {
                Outcome::Leaving => ("backend.expired", "the lease ran out: draining"),
                _ => ("backend.removed", "removed, its requests are done or its time is up"),
            };
            self.tell(kind, &upstream, &backend, "time", what, "");
        }
    }

    /// Tells of a change.
    pub fn tell(&self, kind: &'static str, upstream: &Name, backend: &Name, who: &str, what: &str, why: &str) {
        let text = str::to_owned;
        let news = News {
            upstream: text(upstream.as_str()),
            backend: text(backend.as_str()),
            who: text(who),
            what: text(what),
            why: text(why),
        };
        self.events.tell(kind, news);
    }

    fn tell_difference(&self, upstream: &Name, before: &[Entry], after: &[Entry]) {
        let has = |entries: &[Entry], id: &Name| entries.iter().any(|entry| entry.id == *id);
        for entry in after.iter().filter(|entry| !has(before, &entry.id)) {
            let what = format!("added at {}", entry.spec.address);
            self.tell("backend.added", upstream, &entry.id, entry.source.as_str(), &what, "");
        }
        for entry in before.iter().filter(|entry| !has(after, &entry.id)) {
            self.tell("backend.removed", upstream, &entry.id, entry.source.as_str(), "not found any more", "");
        }
    }

    /// Writes the journal, with `changed` in place of what one upstream has.
    fn keep(&self, running: &Running, changed: Option<(&Name, &Membership)>) -> Result<(), SaveError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let mut all = overrides(&running.members);
        if let Some((name, membership)) = changed {
            all.insert(name.clone(), membership.overrides().clone());
        }
        journal.save(&all, self.now())
    }

    fn rebuild(&self, running: &mut Running, config: &model::Upstream) {
        let backends = backends(config, running.members.get(&config.name));
        let snapshot = running.snapshot.with_backends(config, backends, &running.model.process, &self.metrics);
        self.put_in_place(running, snapshot);
    }

    fn put_in_place(&self, running: &mut Running, snapshot: Snapshot) {
        let before = std::mem::replace(&mut running.snapshot, Arc::new(snapshot));
        if let Some(publish) = &running.publish {
            publish(&running.snapshot);
        }
        retire(&before, &running.snapshot);
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Logs where a declaration and what was said at run time disagree.
pub fn tell_conflicts(conflicts: impl IntoIterator<Item = (Name, Conflict)>) {
    for (upstream, Conflict { id, field, declared, kept }) in conflicts {
        log::warn!(
            "upstream {upstream}, backend {id}: {field} is {declared} where it is declared, and {kept} by a change at run time, \
             which holds; forget it with `rrlb backend forget {upstream} {id}`"
        );
    }
}

fn declare(model: &Model, members: &mut BTreeMap<Name, Membership>) -> Vec<(Name, Conflict)> {
    let mut conflicts = Vec::new();
    for (name, upstream) in &model.upstreams {
        let declared = |backend: &model::Backend| Declared {
            id: backend.id.clone(),
            spec: Spec { address: backend.address.clone(), weight: backend.weight },
            source: Source::File,
        };
        let membership = members.entry(name.clone()).or_default();
        if upstream.discover.is_none() {
            conflicts.extend(membership.declare_found(Vec::new()).into_iter().map(|one| (name.clone(), one)));
        }
        let file = upstream.backends.iter().map(declared).collect();
        conflicts.extend(membership.declare_file(file).into_iter().map(|one| (name.clone(), one)));
    }
    conflicts
}

fn build(
    model: &Model,
    members: &BTreeMap<Name, Membership>,
    previous: Option<&Snapshot>,
    metrics: &Metrics,
) -> Snapshot {
    Snapshot::build(model, |upstream| backends(upstream, members.get(&upstream.name)), previous, metrics)
}

fn backends(upstream: &model::Upstream, membership: Option<&Membership>) -> Vec<model::Backend> {
    let Some(membership) = membership else { return upstream.backends.clone() };
    let backend =
        |Entry { id, spec: Spec { address, weight }, admin, .. }| model::Backend { id, address, weight, admin };
    membership.entries().into_iter().map(backend).collect()
}

fn overrides(members: &BTreeMap<Name, Membership>) -> Overrides {
    let said = |(name, membership): (&Name, &Membership)| {
        let overrides = membership.overrides();
        (!overrides.is_empty()).then(|| (name.clone(), overrides.clone()))
    };
    members.iter().filter_map(said).collect()
}

/// What the journal keeps of overrides: not when a lease is due, which every renewal moves.
fn lasting(overrides: &BTreeMap<Name, Override>) -> BTreeMap<&Name, Override> {
    let still = |over: &Override| {
        let lease = over.lease.map(|lease| super::membership::Lease { due: 0, ..lease });
        Override { lease, ..over.clone() }
    };
    overrides.iter().filter(|(_, over)| !over.transient).map(|(id, over)| (id, still(over))).collect()
}

fn needs_sni(upstream: &model::Upstream, membership: &Membership) -> Result<(), ChangeError> {
    if upstream.tls.as_ref().is_none_or(|tls| tls.sni.is_some()) {
        return Ok(());
    }
    let nameless = |entry: &Entry| !matches!(entry.spec.address, crate::types::BackendAddress::Host(_));
    match membership.entries().into_iter().find(nameless) {
        Some(entry) => Err(ChangeError::SniMissing(entry.spec.address.to_string())),
        None => Ok(()),
    }
}

/// Closes idle connections to backends that are gone.
fn retire(before: &Snapshot, after: &Snapshot) {
    let _ = (before, after);
}

//! The one place where what runs is changed: by a new configuration, by people at run time, by discovery, by time. Each
//! change is decided on a copy, kept in the journal, built, and made visible to every worker before the one who asked
//! hears of it; one that fails on the way has changed nothing. Changes wait for each other and the disk; who only looks
//! waits for nobody.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Instant,
};

use arc_swap::ArcSwap;

use super::{
    connections::Retired,
    journal::{Journal, Overrides, SaveError},
    membership::{Conflict, Declared, Entry, Membership, Outcome, Refusal, Spec},
    snapshot::Snapshot,
};
use crate::{
    config::model::{self, Model},
    telemetry::{
        events::{Events, News},
        metrics::Metrics,
    },
    types::{Name, Source},
};

mod compare;
mod ejection;
mod guard;
mod look;
mod slow_start;
mod succession;
mod unmerge;
mod warn;

use compare::{Merged, forget_metrics, lasts_alike, merged};
use guard::{leaves_one_usable, needs_sni};
pub use look::View;
use look::{Seen, said_of};
pub use unmerge::give_back;
pub use warn::{Foreseen, tell_conflicts};

/// How long requests to a backend whose lease ran out may take, in milliseconds.
pub const LEASE_DRAIN: u64 = 30_000;
/// When what could not be kept is tried again, in milliseconds.
const KEEP_AGAIN: u64 = 5_000;

/// Makes a snapshot visible: to the workers, the health checks, the resolver. Must not call the store.
pub type Publish = Box<dyn Fn(&Arc<Snapshot>) + Send + Sync>;

/// Owner of the running configuration.
pub struct Store {
    /// Held while something is changed, also while that is written to the disk.
    running: Mutex<Running>,
    /// As `running` was after the last change.
    seen: ArcSwap<Seen>,
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
    /// Backends that are gone while their connections are not.
    retired: Retired,
    /// What the last reload, or the start, has made of overrides: as they were, and as it left them.
    merged: Vec<Merged>,
    /// The file that was read at the start has made overrides others than they are in the journal.
    merged_at_start: bool,
    /// When the journal was found not to be writable by what nobody waits for.
    not_kept: Option<u64>,
    /// The next process has all of this, and nothing is changed here any more.
    given_up: bool,
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
    #[error("this process is being replaced by its successor, which answers from now on")]
    GivenUp,
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
    /// Builds the first snapshot of `model` with what the journal kept (`restored`, as loaded at 0 on [`Store::now`]'s
    /// clock).
    pub fn new(
        model: Arc<Model>,
        restored: Overrides,
        journal: Option<Journal>,
        metrics: Arc<Metrics>,
        events: Arc<Events>,
    ) -> Self {
        let mut members: BTreeMap<Name, Membership> =
            restored.into_iter().map(|(name, overrides)| (name, Membership::restored(overrides))).collect();
        let before = members.clone();
        tell_conflicts(declare(&model, &mut members));
        let merged = merged(&before, &members);
        let merged_at_start = !merged.is_empty();
        let snapshot = Arc::new(build(&model, &members, None, &metrics));
        let (retired, not_kept) = (Retired::default(), None);
        let (publish, given_up) = (None, false);
        let running =
            Running { model, members, snapshot, publish, retired, merged, merged_at_start, not_kept, given_up };
        let seen = ArcSwap::from_pointee(Seen::of(&running));
        Self { running: Mutex::new(running), seen, journal, metrics, events, epoch: Instant::now() }
    }

    /// From now on changes are made visible by `publish`; it is called at once with what runs.
    pub fn publish_by(&self, publish: Publish) {
        let mut running = self.lock();
        publish(&running.snapshot);
        running.publish = Some(publish);
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

    /// Changes who belongs to an upstream. `if_match`: only where its version is this. `force`: also where no backend that
    /// is up would be left of those there are.
    ///
    /// # Errors
    /// A successor has taken over, no such upstream, it is not what the caller thought, the change is refused, or could not be kept.
    pub fn change(
        &self,
        upstream: &Name,
        if_match: Option<u64>,
        force: bool,
        change: impl FnOnce(&mut Membership, u64) -> Result<Outcome, Refusal>,
    ) -> Result<Changed, ChangeError> {
        let now = self.now();
        let mut running = self.lock();
        if running.given_up {
            return Err(ChangeError::GivenUp);
        }
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
        let members = running.snapshot.members();
        if let Some(member) = members.iter().find(|member| !force && member.upstream.name == *upstream) {
            leaves_one_usable(config, &member.upstream, &before, &after)?;
        }
        if !lasts_alike(before.overrides(), after.overrides()) {
            self.keep(&running, Some((upstream, &after)))?;
            running.not_kept = None;
        }
        let version = after.version();
        running.members.insert(upstream.clone(), after);
        match version == current {
            // A lease may hold on for longer.
            true => self.show(&running),
            false => self.rebuild(&mut running, config),
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
        let seen = self.seen.load_full();
        let mut members = seen.members.clone();
        declare(&model, &mut members);
        let snapshot = Arc::new(build(&model, &members, Some(&seen.snapshot), &self.metrics));
        Staged { model, snapshot, from: seen.snapshot.clone() }
    }

    /// As [`Store::reload`], with what was learned of staged backends; `prepare` is called before the new snapshot is made
    /// visible, and no other is between.
    pub fn reload_with(&self, staged: Staged, prepare: impl FnOnce()) -> Vec<(Name, Conflict)> {
        self.load(&mut self.lock(), staged, false, prepare)
    }

    /// Goes back to the configuration before the last reload, else as [`Store::reload_with`]. What was said at run time and
    /// that one made needless, or took over, holds again, unless something else was said since.
    pub fn revert_with(&self, staged: Staged, prepare: impl FnOnce()) -> Vec<(Name, Conflict)> {
        let mut running = self.lock();
        let merged = std::mem::take(&mut running.merged);
        let taken_back = !merged.is_empty();
        for (upstream, id, before, after) in merged {
            running.members.entry(upstream).or_default().take_back(&id, &before, after.as_ref());
        }
        self.load(&mut running, staged, taken_back, prepare)
    }

    fn load(&self, running: &mut Running, staged: Staged, keep: bool, prepare: impl FnOnce()) -> Vec<(Name, Conflict)> {
        let Staged { model, snapshot, from } = staged;
        // Where something has changed meanwhile, staged backends begin anew: what is known of others counts more.
        let previous = if Arc::ptr_eq(&from, &running.snapshot) { snapshot } else { running.snapshot.clone() };
        let before = running.members.clone();
        let conflicts = declare(&model, &mut running.members);
        running.merged = merged(&before, &running.members);
        running
            .members
            .retain(|name, membership| model.upstreams.contains_key(name) || !membership.overrides().is_empty());
        let snapshot = build(&model, &running.members, Some(&previous), &self.metrics);
        running.model = model;
        if keep || !running.merged.is_empty() {
            // What was kept is merged again at the next start, with the same result.
            self.keep_soon(running);
        }
        prepare();
        self.put_in_place(running, snapshot);
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
            return self.show(&running);
        }
        self.rebuild(&mut running, config);
        drop(running);
        self.tell_difference(upstream, &before, &after);
    }

    /// Does what is due: leases that ran out, backends whose requests are done, connections that nothing will use. To be
    /// called several times a second.
    pub fn sweep(&self) {
        let now = self.now();
        let mut running = self.lock();
        let model = running.model.clone();
        let snapshot = running.snapshot.clone();
        // What was retired before this sweep: every worker has the new snapshot since.
        running.retired.close_idle(&snapshot);
        let mut told = Vec::new();
        let mut shown = true;
        for member in snapshot.members() {
            let name = &member.upstream.name;
            let Some(membership) = running.members.get_mut(name) else { continue };
            if !membership.any_leaving() && membership.next_due().is_none_or(|due| due > now) {
                continue;
            }
            let backends = member.upstream.backends().iter();
            let counts: HashMap<&Name, u32> = backends.map(|backend| (&backend.id, backend.in_flight())).collect();
            let changed = membership.sweep(now, LEASE_DRAIN, |id| counts.get(id).copied().unwrap_or(0));
            if changed.is_empty() {
                continue;
            }
            match model.upstreams.get(name) {
                Some(config) => self.rebuild(&mut running, config),
                None => shown = false,
            }
            told.extend(changed.into_iter().map(|(id, outcome)| (name.clone(), id, outcome)));
        }
        if !shown {
            self.show(&running);
        }
        // Not before this process serves, and then soon: the next file is merged with what this one has left.
        let merged_at_start = std::mem::take(&mut running.merged_at_start);
        if merged_at_start
            || !told.is_empty()
            || running.not_kept.is_some_and(|since| since.saturating_add(KEEP_AGAIN) <= now)
        {
            self.keep_soon(&mut running);
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
        let was: HashMap<&Name, &Entry> = before.iter().map(|entry| (&entry.id, entry)).collect();
        let is: HashSet<&Name> = after.iter().map(|entry| &entry.id).collect();
        for Entry { id, spec: Spec { address, weight }, source, .. } in after {
            let (kind, what) = match was.get(id).map(|entry| &entry.spec) {
                None => ("backend.added", format!("added at {address}")),
                Some(old) if old.address != *address => ("backend.changed", format!("{} -> {address}", old.address)),
                Some(old) if old.weight != *weight => {
                    ("backend.changed", format!("weight {} -> {}", old.weight.value(), weight.value()))
                }
                Some(_) => continue,
            };
            self.tell(kind, upstream, id, source.as_str(), &what, "");
        }
        for entry in before.iter().filter(|entry| !is.contains(&entry.id)) {
            self.tell("backend.removed", upstream, &entry.id, entry.source.as_str(), "not found any more", "");
        }
    }

    /// Writes the journal, with `changed` in place of what one upstream has.
    fn keep(&self, running: &Running, changed: Option<(&Name, &Membership)>) -> Result<(), SaveError> {
        let Some(journal) = &self.journal else { return Ok(()) };
        let now = self.now();
        let Some((name, membership)) = changed else { return journal.save(said_of(&running.members), now) };
        // One that is declared has an entry of its own, which is left out.
        let others = said_of(&running.members).filter(|(other, _)| *other != name);
        journal.save(others.chain([(name, membership.said())]), now)
    }

    /// Writes the journal where nobody waits for it; later, where it cannot be written now.
    fn keep_soon(&self, running: &mut Running) {
        let kept = self.keep(running, None);
        let first = running.not_kept.is_none();
        running.not_kept = match kept {
            Ok(()) => None,
            // It is the successor's now, which merges the same.
            Err(SaveError::Sealed(_)) => None,
            Err(error) => {
                if first {
                    log::error!("{error}; it is tried again every {} s", KEEP_AGAIN / 1000);
                }
                Some(self.now())
            }
        };
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
        self.show(running);
        let after = running.snapshot.clone();
        running.retired.note(&before, &after);
        forget_metrics(&before, &after, &self.metrics);
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
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
        let file = upstream.backends.iter().map(declared).collect();
        conflicts.extend(membership.declare_file(file).into_iter().map(|one| (name.clone(), one)));
        if upstream.discover.is_none() {
            conflicts.extend(membership.declare_found(Vec::new()).into_iter().map(|one| (name.clone(), one)));
        }
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

#[cfg(test)]
mod tests;

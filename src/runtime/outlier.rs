//! Backends that fail the requests they are sent: counted by attempts, taken out, and given back in time. When that is so
//! is decided by `policy::outlier`. What is known of a backend is kept over builds while its id and address stay, it is not
//! in maintenance and `eject` is on.

use std::{
    cmp::Reverse,
    collections::BTreeSet,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, Instant},
};

use super::{backend::BackendState, upstream::Upstream};
use crate::{
    policy::outlier::{EjectPolicy, Fault, Record},
    types::Name,
};

#[cfg(test)]
mod tests;

/// What is known of one backend. Requests touch `failures` only.
#[derive(Debug, Default)]
pub struct Ejection {
    /// In a row.
    failures: AtomicU32,
    /// As in `kept`, for readers without the lock.
    out: AtomicBool,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    record: Record,
    /// Of the last ejection.
    why: String,
}

/// An ejection under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Out {
    /// How long it lasts yet; 0 where it is about to end.
    pub left: Duration,
    /// Ejections in a row, this one included.
    pub times: u32,
    /// For people.
    pub why: String,
}

/// What a successor is told of a backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Handed {
    /// In a row.
    pub failures: u32,
    /// Ejections in a row.
    pub times: u32,
    /// How long it is out yet; `None` where it is not.
    pub left: Option<Duration>,
    /// How long it has been back.
    pub back: Duration,
    /// Of the last ejection.
    pub why: String,
}

impl Ejection {
    /// Whether the backend is out.
    pub fn is_out(&self) -> bool {
        self.out.load(Ordering::Acquire)
    }

    /// The ejection under way.
    pub fn out(&self, now: Instant) -> Option<Out> {
        let kept = self.kept();
        match kept.record {
            Record::In { .. } => None,
            Record::Out { times, until } => {
                Some(Out { left: until.saturating_duration_since(now), times, why: kept.why.clone() })
            }
        }
    }

    /// For a successor; `None` where there is nothing to know.
    pub fn hand_over(&self, now: Instant) -> Option<Handed> {
        let kept = self.kept();
        let failures = self.failures.load(Ordering::Relaxed);
        let (times, left, back) = match kept.record {
            Record::In { since: None, .. } if failures == 0 => return None,
            Record::In { since, times } => (times, None, since.map(|since| now.saturating_duration_since(since))),
            Record::Out { times, until } => (times, Some(until.saturating_duration_since(now)), None),
        };
        Some(Handed { failures, times, left, back: back.unwrap_or_default(), why: kept.why.clone() })
    }

    fn take_over(&self, handed: Handed, policy: &EjectPolicy, now: Instant) {
        let Handed { failures, times, left, back, why } = handed;
        let record = match left {
            Some(left) => Record::Out { times: times.max(1), until: now + left.min(policy.longest()) },
            // Longer than the clock goes back is long enough to be forgiven.
            None => match now.checked_sub(back).filter(|_| times > 0) {
                Some(since) => Record::In { times, since: Some(since) },
                None => Record::default(),
            },
        };
        self.failures.store(failures, Ordering::Relaxed);
        *self.kept() = Kept { record, why };
        self.out.store(left.is_some(), Ordering::Release);
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What is known of an upstream's ejections as a whole, kept over its builds.
#[derive(Debug, Default)]
pub struct Outliers {
    /// Whether a sweep has anything to look at.
    busy: AtomicBool,
    /// Held while it is decided about one of the backends.
    news: Mutex<News>,
}

#[derive(Debug, Default)]
struct News {
    /// Not told yet.
    ejected: Vec<(Name, Change)>,
    /// Told to be out, or taken over so.
    out: BTreeSet<Name>,
}

/// What has become of a backend.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was taken out.
    Ejected {
        /// For how long.
        term: Duration,
        /// Ejections in a row, this one included.
        times: u32,
        /// For people.
        why: String,
    },
    /// It is not out any more.
    Returned {
        /// For people.
        why: &'static str,
    },
}

impl Outliers {
    fn news(&self) -> MutexGuard<'_, News> {
        self.news.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn give_back(backend: &BackendState, now: Instant) {
    backend.ejection().kept().record.give_back(now);
    backend.begin_slow_start();
    backend.ejection().out.store(false, Ordering::Release);
    backend.usability_changed();
}

impl Upstream {
    /// An attempt at one of the backends went well.
    pub fn went_well(&self, backend: &BackendState) {
        let failures = &backend.ejection().failures;
        // A store by every request would be felt by every worker.
        if self.eject.is_some() && failures.load(Ordering::Relaxed) != 0 {
            failures.store(0, Ordering::Relaxed);
        }
    }

    /// An attempt at one of the backends failed, and that was its own fault. It may be taken out for that.
    pub fn went_wrong(&self, backend: &BackendState, fault: Fault, now: Instant) {
        let Some(policy) = &self.eject else { return };
        // What it had to do yet when it was taken out says nothing new.
        if backend.is_ejected() {
            return;
        }
        let failures = backend.ejection().failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
        if policy.calls_for(failures) {
            self.eject(policy, backend, failures, fault, now);
        }
    }

    #[cold]
    fn eject(&self, policy: &EjectPolicy, backend: &BackendState, failures: u32, fault: Fault, now: Instant) {
        let mut news = self.outliers.news();
        let fit = || self.backends().iter().filter(|one| one.usable_but_for_ejection());
        let (fit, out) = (fit().count(), fit().filter(|one| one.is_ejected()).count());
        // It may have been taken out, drained or found to be down meanwhile.
        if !backend.usable() {
            return;
        }
        let (upstream, id) = (&self.name, &backend.id);
        if out >= policy.most(fit) {
            log::debug!("upstream {upstream}, backend {id}: {failures} failures in a row, but {out} of {fit} are out");
            return;
        }
        if !self.has_well(policy) {
            log::debug!("upstream {upstream}, backend {id}: {failures} failures in a row, but all that are left fail");
            return;
        }
        let ejection = backend.ejection();
        let why = match failures {
            1 => format!("a failure: {fault}"),
            _ => format!("{failures} failures in a row, the last: {fault}"),
        };
        let mut kept = ejection.kept();
        let term = kept.record.eject(policy, now);
        let times = kept.record.times(policy, now);
        kept.why.clone_from(&why);
        drop(kept);
        ejection.out.store(true, Ordering::Release);
        ejection.failures.store(0, Ordering::Relaxed);
        backend.usability_changed();
        news.ejected.push((id.clone(), Change::Ejected { term, times, why }));
        self.outliers.busy.store(true, Ordering::Release);
    }

    /// Whether one of those that are in does not fail, for all that is known.
    fn has_well(&self, policy: &EjectPolicy) -> bool {
        let well = |one: &Arc<BackendState>| !policy.is_failing(one.ejection().failures.load(Ordering::Relaxed));
        self.backends().iter().any(|one| one.usable() && well(one))
    }

    /// Gives back the backends whose time is over; all of them where none is left without; and those that have been out
    /// longest while more are out than may be, or while all that are left fail. So an ejection is never why nobody
    /// answers. Returns what has changed since the last time.
    pub fn sweep_ejected(&self, now: Instant) -> Vec<(Name, Change)> {
        const TIME: &str = "its time is over";
        const ALONE: &str = "no other backend is left";
        const FORGOTTEN: &str = "its address was changed, it is in maintenance, or `eject` is off";
        if !self.outliers.busy.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut news = self.outliers.news();
        let mut changes = std::mem::take(&mut news.ejected);
        // Only a sweep gives back: what is in again was forgotten, by another build.
        changes.retain(|(id, _)| self.backends().iter().any(|backend| backend.id == *id && backend.is_ejected()));
        news.out.extend(changes.iter().map(|(id, _)| id.clone()));
        let back = |backend: &BackendState| !backend.is_ejected() || backend.ejection().kept().record.is_due(now);
        let alone = !self.backends().iter().any(|backend| backend.usable_but_for_ejection() && back(backend));
        let mut returned = Vec::new();
        for backend in self.backends().iter().filter(|backend| backend.is_ejected()) {
            let due = backend.ejection().kept().record.is_due(now);
            let why = if due {
                TIME
            } else if alone && backend.usable_but_for_ejection() {
                ALONE
            } else {
                continue;
            };
            give_back(backend, now);
            returned.push((backend.id.clone(), why));
        }
        while let Some((backend, why)) = self.out_in_vain(now) {
            give_back(backend, now);
            returned.push((backend.id.clone(), why));
        }
        let out = self.backends().iter().filter(|backend| backend.is_ejected());
        let still: BTreeSet<Name> = out.map(|backend| backend.id.clone()).collect();
        for backend in self.backends().iter().filter(|one| news.out.contains(&one.id) && !still.contains(&one.id)) {
            let why = returned.iter().find(|(id, _)| *id == backend.id).map_or(FORGOTTEN, |(_, why)| why);
            changes.push((backend.id.clone(), Change::Returned { why }));
        }
        self.outliers.busy.store(!still.is_empty(), Ordering::Release);
        news.out = still;
        changes
    }

    /// The backend that has been out longest, where one is to be given back before its time, and why.
    fn out_in_vain(&self, now: Instant) -> Option<(&BackendState, &'static str)> {
        const FAILING: &str = "those that are left fail too";
        const TOO_MANY: &str = "more than `max_percent` were out";
        let policy = self.eject.as_ref()?;
        let fit = || self.backends().iter().filter(|one| one.usable_but_for_ejection());
        let out = || fit().filter(|one| one.is_ejected());
        let why = if out().count() > policy.most(fit().count()) {
            TOO_MANY
        } else if self.has_well(policy) {
            return None;
        } else {
            FAILING
        };
        let longest = out().min_by_key(|one| Reverse(one.ejection().kept().record.out_for(policy, now)))?;
        Some((longest, why))
    }

    /// Goes on with what another process knew of one of the backends.
    pub fn take_over_ejection(&self, backend: &BackendState, handed: Handed, now: Instant) {
        let Some(policy) = &self.eject else { return };
        let mut news = self.outliers.news();
        backend.ejection().take_over(handed, policy, now);
        if backend.is_ejected() {
            news.out.insert(backend.id.clone());
            self.outliers.busy.store(true, Ordering::Release);
            backend.usability_changed();
        }
    }
}

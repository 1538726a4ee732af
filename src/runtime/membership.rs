//! Who belongs to an upstream: what the file and discovery declare, and above it what was said at run time. Pure: time
//! comes in as milliseconds of a clock that only goes forward. Who keeps it, saves it and makes it take effect is `store`.
//!
//! An override remembers what was declared when it was made (its *base*). When the declaration changes, the three are
//! merged field by field: what the override left as it was follows the declaration, what it changed stays changed.

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{DefaultHasher, Hash, Hasher},
};

use crate::types::{AdminState, BackendAddress, Name, Source, Weight};

/// Backends that run-time changes may add to one upstream.
pub const MOST_ADDED: usize = 10_000;

/// What a backend is made of, beside its id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// Where it is reached.
    pub address: BackendAddress,
    /// Its share.
    pub weight: Weight,
}

/// A backend as the file or discovery has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Declared {
    /// What it is.
    pub id: Name,
    /// What it is made of.
    pub spec: Spec,
    /// Who says so.
    pub source: Source,
}

/// What was said at run time about one backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Override {
    /// In place of what is declared; `None` leaves that as it is.
    pub spec: Option<Spec>,
    /// What people want of it.
    pub admin: AdminState,
    /// Taken out, though declared.
    pub removed: bool,
    /// What was declared when this was last set, and by whom; `None`: nothing was.
    pub base: Option<(Spec, Source)>,
    /// Ends with the process.
    pub transient: bool,
    /// A registration that must be renewed.
    pub lease: Option<Lease>,
    /// It is removed when its requests are done, at this time at the latest.
    pub leaving: Option<u64>,
    /// Who said it, and why.
    pub note: Note,
}

/// A registration with a time to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// How long a renewal holds, in milliseconds.
    pub ttl: u64,
    /// When it runs out.
    pub due: u64,
}

/// Who did something, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// `uid 1000`, `token`, `lease`, `dns` …
    pub who: String,
    /// As given by `reason`; often empty.
    pub why: String,
    /// Seconds since 1970.
    pub at: u64,
}

/// A backend that belongs to the upstream now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What it is.
    pub id: Name,
    /// What it is made of, overrides included.
    pub spec: Spec,
    /// What people want of it; a backend that is leaving drains.
    pub admin: AdminState,
    /// Who says that it exists.
    pub source: Source,
}

/// A backend to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// Where it is reached.
    pub address: BackendAddress,
    /// `None` keeps the weight it has, or is 1.
    pub weight: Option<Weight>,
    /// Time to live in milliseconds; `None` is for good.
    pub ttl: Option<u64>,
    /// Ends with the process.
    pub transient: bool,
}

/// What is to change about a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// A new share.
    pub weight: Option<Weight>,
    /// What people want of it.
    pub admin: Option<AdminState>,
    /// Also where it is the last one that is ready.
    pub force: bool,
    /// Ends with the process.
    pub transient: bool,
}

/// What a change came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is a backend more.
    Created,
    /// A backend is another.
    Changed,
    /// Requests are finished first; it is gone then.
    Leaving,
    /// A backend less.
    Removed,
    /// Its lease holds on.
    Renewed,
    /// It was so already.
    Unchanged,
}

/// Why a change is refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The address is another's.
    #[error("{address} is the address of backend {other} already")]
    DuplicateAddress {
        /// The address.
        address: BackendAddress,
        /// Whose it is.
        other: Name,
    },
    /// Nobody would be left.
    #[error("{0} is the last backend that is ready")]
    LastReady(Name),
    /// A lease is for what only it registers.
    #[error("{id} belongs to {source_name}; a lease can hold only what it registers itself")]
    NotLeasable {
        /// The backend.
        id: Name,
        /// Who declares it.
        source_name: &'static str,
    },
    /// No such backend.
    #[error("there is no backend {0}")]
    NotFound(Name),
    /// There is nothing to forget.
    #[error("nothing was changed about {0} at run time")]
    NoOverride(Name),
    /// The bound is reached.
    #[error("at most {MOST_ADDED} backends can be added to an upstream at run time")]
    TooMany,
}

/// A declaration and an override that say different things of one field; the override holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The backend.
    pub id: Name,
    /// The field: `address`, `weight`, `removed`.
    pub field: &'static str,
    /// What the declaration says now.
    pub declared: String,
    /// What holds.
    pub kept: String,
}

/// The members of one upstream.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Membership {
    file: Vec<Declared>,
    found: Vec<Declared>,
    overrides: BTreeMap<Name, Override>,
}

impl Membership {
    /// Nothing declared yet, and these overrides, as read from the journal.
    pub fn restored(overrides: BTreeMap<Name, Override>) -> Self {
        Self { file: Vec::new(), found: Vec::new(), overrides }
    }

    /// Everything said at run time, by id; also what has no effect because its backend is not declared any more.
    pub fn overrides(&self) -> &BTreeMap<Name, Override> {
        &self.overrides
    }

    /// Whether an override has no effect: its backend was declared once and is not any more.
    pub fn is_dormant(&self, id: &Name) -> bool {
        self.declared(id).is_none() && self.overrides.get(id).is_some_and(|over| over.base.is_some())
    }

    /// The file says this now.
    pub fn declare_file(&mut self, file: Vec<Declared>) -> Vec<Conflict> {
        self.file = file;
        self.merge()
    }

    /// Discovery says this now.
    pub fn declare_found(&mut self, found: Vec<Declared>) -> Vec<Conflict> {
        self.found = found;
        self.merge()
    }

    /// The backends that belong to the upstream now: declared ones in their order, then added ones by id. No id and no
    /// address twice: the first holds.
    pub fn entries(&self) -> Vec<Entry> {
        let mut entries: Vec<Entry> = Vec::with_capacity(self.file.len() + self.found.len());
        let mut ids = BTreeSet::new();
        let mut addresses = BTreeSet::new();
        for declared in self.file.iter().chain(&self.found) {
            let over = self.overrides.get(&declared.id);
            if over.is_some_and(|over| over.removed) || ids.contains(&declared.id) {
                continue;
            }
            let spec = over.and_then(|over| over.spec.as_ref()).unwrap_or(&declared.spec);
            if addresses.insert(spec.address.clone()) {
                ids.insert(declared.id.clone());
                let admin = over.map_or(AdminState::Ready, Override::effective_admin);
                entries.push(Entry { id: declared.id.clone(), spec: spec.clone(), admin, source: declared.source });
            }
        }
        for (id, over) in &self.overrides {
            let Some(spec) = over.spec.as_ref().filter(|_| over.base.is_none() && !over.removed) else { continue };
            if !ids.contains(id) && addresses.insert(spec.address.clone()) {
                let source = if over.lease.is_some() { Source::Lease } else { Source::Api };
                entries.push(Entry { id: id.clone(), spec: spec.clone(), admin: over.effective_admin(), source });
            }
        }
        entries
    }

    /// One backend that belongs to the upstream now.
    pub fn entry(&self, id: &Name) -> Option<Entry> {
        self.entries().into_iter().find(|entry| entry.id == *id)
    }

    /// Changes whenever the members do; the same members have the same number in every process of this build.
    pub fn version(&self) -> u64 {
        let mut hasher = DefaultHasher::new();
        for Entry { id, spec, admin, source } in self.entries() {
            (id, spec, admin, source).hash(&mut hasher);
        }
        hasher.finish()
    }

    /// Has a backend be there, as it says.
    ///
    /// # Errors
    /// Another has the address; a lease on what is declared; too many.
    pub fn put(&mut self, id: &Name, put: Put, note: Note, now: u64) -> Result<Outcome, Refusal> {
        let before = self.entry(id);
        let declared = self.declared(id).cloned();
        if let (Some(declared), Some(_)) = (&declared, put.ttl) {
            return Err(Refusal::NotLeasable { id: id.clone(), source_name: declared.source.as_str() });
        }
        if put.ttl.is_some() && before.as_ref().is_some_and(|before| before.source == Source::Api) {
            return Err(Refusal::NotLeasable { id: id.clone(), source_name: Source::Api.as_str() });
        }
        self.free_address(id, &put.address)?;
        let added = self.overrides.values().filter(|over| over.base.is_none()).count();
        if declared.is_none() && !self.overrides.contains_key(id) && added >= MOST_ADDED {
            return Err(Refusal::TooMany);
        }
        let kept = before.as_ref().map(|before| before.spec.weight);
        let spec = Spec { address: put.address, weight: put.weight.or(kept).unwrap_or_default() };
        let over = self.overrides.entry(id.clone()).or_default();
        let returns = over.leaving.take().is_some();
        let lease = put.ttl.map(|ttl| Lease { ttl, due: now.saturating_add(ttl) });
        let renewed = over.lease.is_some() && lease.is_some();
        if over.removed || declared.is_none() && over.base.is_some() {
            // It begins anew.
            *over = Override::default();
        }
        over.removed = false;
        over.lease = lease;
        over.base = declared.map(|declared| (declared.spec, declared.source));
        over.spec = over.base.as_ref().is_none_or(|(base, _)| *base != spec).then(|| spec.clone());
        let same = before.as_ref().is_some_and(|before| before.spec == spec) && !returns;
        if !same {
            (over.note, over.transient) = (note, put.transient);
        }
        self.tidy();
        Ok(match before {
            None => Outcome::Created,
            Some(_) if !same => Outcome::Changed,
            Some(_) if renewed => Outcome::Renewed,
            Some(_) => Outcome::Unchanged,
        })
    }

    /// Changes a backend's share or state.
    ///
    /// # Errors
    /// There is no such backend; it is the last that is ready, and not forced.
    pub fn patch(&mut self, id: &Name, patch: Patch, note: Note) -> Result<Outcome, Refusal> {
        let before = self.entry(id).ok_or_else(|| Refusal::NotFound(id.clone()))?;
        let takes_out = patch.admin.is_some_and(|admin| admin != AdminState::Ready)
            || patch.weight.is_some_and(|weight| weight.value() == 0);
        if takes_out && !patch.force {
            self.others_ready(&before)?;
        }
        let declared = self.declared(id).cloned();
        let over = self.overrides.entry(id.clone()).or_default();
        over.base = declared.map(|declared| (declared.spec, declared.source));
        if let Some(weight) = patch.weight {
            let spec = Spec { weight, ..before.spec.clone() };
            over.spec = over.base.as_ref().is_none_or(|(base, _)| *base != spec).then_some(spec);
        }
        if let Some(admin) = patch.admin {
            over.admin = admin;
            over.leaving = None;
        }
        let after = over.clone();
        let changed = self.entry(id).as_ref() != Some(&before);
        if changed {
            self.overrides.insert(id.clone(), Override { note, transient: patch.transient, ..after });
        }
        self.tidy();
        Ok(if changed { Outcome::Changed } else { Outcome::Unchanged })
    }

    /// Removes a backend: at once, or when its requests are done and after `drain` milliseconds at the latest.
    ///
    /// # Errors
    /// There is no such backend; it is the last that is ready, and not forced.
    pub fn remove(&mut self, id: &Name, drain: u64, force: bool, note: Note, now: u64) -> Result<Outcome, Refusal> {
        let before = self.entry(id).ok_or_else(|| Refusal::NotFound(id.clone()))?;
        if !force {
            self.others_ready(&before)?;
        }
        let declared = self.declared(id).cloned();
        let over = self.overrides.entry(id.clone()).or_default();
        over.base = declared.map(|declared| (declared.spec, declared.source));
        over.note = note;
        over.transient = false;
        if drain == 0 {
            self.take_out(id);
            return Ok(Outcome::Removed);
        }
        over.leaving = Some(now.saturating_add(drain));
        Ok(Outcome::Leaving)
    }

    /// Has exactly these be there beside what is declared or leased. Those that are not named leave as by [`remove`] with
    /// `drain`. All or nothing.
    ///
    /// [`remove`]: Membership::remove
    ///
    /// # Errors
    /// As [`Membership::put`]; nobody would be ready any more, and not forced.
    pub fn replace(
        &mut self,
        puts: Vec<(Name, Put)>,
        drain: u64,
        force: bool,
        note: &Note,
        now: u64,
    ) -> Result<(), Refusal> {
        let mut next = self.clone();
        let named: BTreeSet<Name> = puts.iter().map(|(id, _)| id.clone()).collect();
        let owned = |entry: &Entry| entry.source == Source::Api && !named.contains(&entry.id);
        let gone: Vec<Entry> = self.entries().into_iter().filter(owned).collect();
        for entry in &gone {
            next.remove(&entry.id, 0, true, note.clone(), now)?;
        }
        for (id, put) in puts {
            next.put(&id, put, note.clone(), now)?;
        }
        if let Some(last) = gone.last()
            && !force
            && self.ready().next().is_some()
            && next.ready().next().is_none()
        {
            return Err(Refusal::LastReady(last.id.clone()));
        }
        if drain > 0 {
            // What leaves stays for its requests, unless its address or id was taken.
            for entry in gone {
                if let Some(over) = self.overrides.get(&entry.id)
                    && next.free_address(&entry.id, &entry.spec.address).is_ok()
                {
                    let over =
                        Override { leaving: Some(now.saturating_add(drain)), note: note.clone(), ..over.clone() };
                    next.overrides.insert(entry.id, over);
                }
            }
        }
        *self = next;
        Ok(())
    }

    /// Forgets what was said at run time about a backend: a declared one is as declared again, an added one is gone.
    ///
    /// # Errors
    /// Nothing was said.
    pub fn forget(&mut self, id: &Name) -> Result<Outcome, Refusal> {
        let before = self.entry(id);
        self.overrides.remove(id).ok_or_else(|| Refusal::NoOverride(id.clone()))?;
        Ok(match (before, self.entry(id)) {
            (None, Some(_)) => Outcome::Created,
            (Some(_), None) => Outcome::Removed,
            (before, after) if before == after => Outcome::Unchanged,
            _ => Outcome::Changed,
        })
    }

    /// What time does: leases that ran out begin to leave (for `drain` milliseconds at most), and what leaves is gone when
    /// it has no request in flight or its time is up. Returns those that changed.
    pub fn sweep(&mut self, now: u64, drain: u64, in_flight: impl Fn(&Name) -> u32) -> Vec<(Name, Outcome)> {
        let mut changed = Vec::new();
        for (id, over) in &mut self.overrides {
            if over.leaving.is_none() && over.lease.is_some_and(|lease| lease.due <= now) {
                over.leaving = Some(now.saturating_add(drain));
                over.note = Note { who: "lease".into(), why: "not renewed".into(), ..over.note.clone() };
                changed.push((id.clone(), Outcome::Leaving));
            }
        }
        let due = |(id, over): (&Name, &Override)| {
            over.leaving.is_some_and(|due| due <= now || in_flight(id) == 0).then(|| id.clone())
        };
        let gone: Vec<Name> = self.overrides.iter().filter_map(due).collect();
        // One sweep makes it drain, the next removes it: between them nobody begins a request that is not counted yet.
        for id in gone.into_iter().filter(|id| !changed.iter().any(|(other, _)| other == id)).collect::<Vec<_>>() {
            self.take_out(&id);
            changed.push((id, Outcome::Removed));
        }
        changed
    }

    /// When [`Membership::sweep`] has something to do next, but for requests that finish; `None` where it has not.
    pub fn next_due(&self) -> Option<u64> {
        let due = |over: &Override| over.leaving.or(over.lease.map(|lease| lease.due));
        self.overrides.values().filter_map(due).min()
    }

    /// Whether a backend waits for its requests to be done.
    pub fn any_leaving(&self) -> bool {
        self.overrides.values().any(|over| over.leaving.is_some())
    }

    fn declared(&self, id: &Name) -> Option<&Declared> {
        self.file.iter().chain(&self.found).find(|declared| declared.id == *id)
    }

    fn ready(&self) -> impl Iterator<Item = Entry> {
        let ready = |entry: &Entry| entry.admin == AdminState::Ready && entry.spec.weight.value() > 0;
        self.entries().into_iter().filter(ready)
    }

    /// Whether somebody is ready beside `entry`, or `entry` itself is not.
    fn others_ready(&self, entry: &Entry) -> Result<(), Refusal> {
        let ready: Vec<Entry> = self.ready().collect();
        match ready.as_slice() {
            [only] if only.id == entry.id => Err(Refusal::LastReady(entry.id.clone())),
            _ => Ok(()),
        }
    }

    fn free_address(&self, id: &Name, address: &BackendAddress) -> Result<(), Refusal> {
        match self.entries().into_iter().find(|entry| entry.id != *id && entry.spec.address == *address) {
            Some(other) => Err(Refusal::DuplicateAddress { address: address.clone(), other: other.id }),
            None => Ok(()),
        }
    }

    fn take_out(&mut self, id: &Name) {
        let Some(over) = self.overrides.get_mut(id) else { return };
        if over.base.is_none() {
            self.overrides.remove(id);
        } else {
            let (base, note, transient) = (over.base.take(), std::mem::take(&mut over.note), over.transient);
            *over = Override { removed: true, base, note, transient, ..Override::default() };
        }
    }

    /// Merges every override with what is declared now.
    fn merge(&mut self) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        let declared: BTreeMap<Name, Declared> =
            self.found.iter().chain(&self.file).map(|declared| (declared.id.clone(), declared.clone())).collect();
        self.overrides.retain(|id, over| match declared.get(id) {
            Some(declared) => {
                over.rebase(declared, &mut conflicts);
                true
            }
            // The file has taken it out as well. What discovery finds may only not be found yet.
            None => !(over.removed && over.base.as_ref().is_some_and(|(_, source)| *source == Source::File)),
        });
        self.tidy();
        conflicts
    }

    /// Drops overrides that say nothing.
    fn tidy(&mut self) {
        self.overrides.retain(|_, over| {
            over.spec.is_some() || over.removed || over.leaving.is_some() || over.admin != AdminState::Ready
        });
    }
}

impl Override {
    fn effective_admin(&self) -> AdminState {
        if self.leaving.is_some() && self.admin == AdminState::Ready { AdminState::Drain } else { self.admin }
    }

    fn rebase(&mut self, declared: &Declared, conflicts: &mut Vec<Conflict>) {
        let mut conflict = |field, declared_now: String, kept: String| {
            conflicts.push(Conflict { id: declared.id.clone(), field, declared: declared_now, kept });
        };
        let now = &declared.spec;
        let base = self.base.as_ref().map(|(spec, _)| spec);
        if self.removed {
            if base.is_some_and(|base| base != now) {
                conflict("removed", now.address.to_string(), "removed".into());
            }
        } else if let Some(spec) = &mut self.spec {
            match base.map(|base| &base.address) {
                Some(base) if *base == spec.address => spec.address = now.address.clone(),
                base if base != Some(&now.address) && spec.address != now.address => {
                    conflict("address", now.address.to_string(), spec.address.to_string());
                }
                _ => {}
            }
            match base.map(|base| base.weight) {
                Some(base) if base == spec.weight => spec.weight = now.weight,
                base if base != Some(now.weight) && spec.weight != now.weight => {
                    conflict("weight", now.weight.value().to_string(), spec.weight.value().to_string());
                }
                _ => {}
            }
        }
        if self.spec.as_ref() == Some(now) {
            self.spec = None;
        }
        // Whoever declares it answers for it from now on.
        self.lease = None;
        self.base = Some((now.clone(), declared.source));
    }
}

//! Who belongs to an upstream: what the file and discovery declare, and above it what was said at run time. Pure: time
//! comes in as milliseconds of a clock that only goes forward. Who keeps it, saves it and makes it take effect is `store`.
//!
//! An override remembers what was declared when it was made (its *base*). When the declaration changes, the three are
//! merged field by field: what the override left as it was follows the declaration, what it changed stays changed.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use crate::types::{AdminState, BackendAddress, Name};

mod change;
mod layers;
mod rows;

pub use change::{Outcome, Patch, Put, Refusal};
use change::{leasable, put_over};
pub use layers::{Conflict, Declared, Lease, Note, Override, Spec};
pub use rows::Entry;
use rows::{LastResolved, Resolved, Row, Rows};

/// Backends that run-time changes may add to one upstream.
pub const MOST_ADDED: usize = 10_000;

/// The members of one upstream. Cheap to clone: what is not changed is shared.
#[derive(Clone, Debug, Default)]
pub struct Membership {
    file: Arc<[Declared]>,
    found: Arc<[Declared]>,
    overrides: Said,
    resolved: LastResolved,
}

impl PartialEq for Membership {
    fn eq(&self, other: &Self) -> bool {
        (&self.file, &self.found, &self.overrides) == (&other.file, &other.found, &other.overrides)
    }
}

impl Eq for Membership {}

/// What was said at run time about an upstream's backends. Shared: what is changed is another, and so two that are the
/// same in memory say the same.
pub type Said = Arc<BTreeMap<Name, Override>>;

impl Membership {
    /// Nothing declared yet, and these overrides, as read from the journal. The file's declaration must come first, then
    /// discovery's.
    pub fn restored(overrides: BTreeMap<Name, Override>) -> Self {
        Self { overrides: Arc::new(overrides), ..Self::default() }
    }

    /// These overrides hold in place of those there are. `configured`: the file has this upstream, so what it does not
    /// declare of it is gone.
    pub fn resume(&mut self, overrides: BTreeMap<Name, Override>, configured: bool) -> Vec<Conflict> {
        let before = self.hidden();
        self.overrides = Arc::new(overrides);
        if configured {
            self.drop_fulfilled();
        }
        self.merge(&before)
    }

    /// Everything said at run time, by id; also what has no effect.
    pub fn overrides(&self) -> &BTreeMap<Name, Override> {
        &self.overrides
    }

    /// As [`Membership::overrides`], to share.
    pub(super) fn said(&self) -> &Said {
        &self.overrides
    }

    /// The overrides that wait: their backend was declared once and is not any more, or its address is another's, who is
    /// named then. Costs time in proportion to the number of all.
    pub fn waiting(&self) -> BTreeMap<Name, Option<Name>> {
        let rows = self.rows();
        let members: HashSet<&Name> = rows.members.iter().map(|row| row.id).collect();
        let declared = self.all_declared();
        let has_effect = |id: &Name, over: &Override| members.contains(id) || over.removed && declared.contains_key(id);
        let owners: HashMap<&Name, &Name> = rows.hidden.iter().map(|(id, _, owner)| (*id, *owner)).collect();
        let waits = self.overrides.iter().filter(|(id, over)| !has_effect(id, over));
        waits.map(|(id, _)| (id.clone(), owners.get(id).map(|owner| Name::clone(owner)))).collect()
    }

    /// The file says this now.
    pub fn declare_file(&mut self, file: Vec<Declared>) -> Vec<Conflict> {
        let before = self.hidden();
        self.file = file.into();
        self.drop_fulfilled();
        self.merge(&before)
    }

    /// Discovery says this now.
    pub fn declare_found(&mut self, found: Vec<Declared>) -> Vec<Conflict> {
        let before = self.hidden();
        self.found = found.into();
        self.merge(&before)
    }

    /// The backends that belong to the upstream now: declared ones in their order, then added ones by id. No id and no
    /// address twice: the first holds. Costs time in proportion to their number.
    pub fn entries(&self) -> Vec<Entry> {
        self.resolved().entries.to_vec()
    }

    /// One backend that belongs to the upstream now.
    pub fn entry(&self, id: &Name) -> Option<Entry> {
        self.resolved().entries.iter().find(|entry| entry.id == *id).cloned()
    }

    /// Changes whenever the members do; the same members have the same number in every process of this build.
    pub fn version(&self) -> u64 {
        self.resolved().version
    }

    /// What is made of all that, which is asked for several times in a change: made once.
    fn resolved(&self) -> Arc<Resolved> {
        let of = (self.file.clone(), self.found.clone(), self.overrides.clone());
        self.resolved.of(of, || {
            let rows = self.rows();
            let mut hasher = DefaultHasher::new();
            for Row { id, spec, admin, source } in &rows.members {
                (id, spec, admin, source).hash(&mut hasher);
            }
            (rows.members.iter().map(Row::entry).collect(), hasher.finish())
        })
    }

    /// Has a backend be there, as it says. What people want of it ([`AdminState`]) stays, but it is not leaving any more.
    ///
    /// # Errors
    /// Another has the address; a lease on what is declared or was added for good; too many; nobody would be ready, and not
    /// forced.
    pub fn put(&mut self, id: &Name, put: Put, note: Note, now: u64) -> Result<Outcome, Refusal> {
        let (declared, old) = (self.declared(id), self.overrides.get(id));
        leasable(id, &put, declared, old)?;
        let rows = self.rows();
        if let Some(other) = rows.owner(&put.address).filter(|other| *other != id) {
            return Err(self.taken(put.address, other.clone(), now));
        }
        let adds = |over: &Override| over.base.is_none() && over.leaving.is_none();
        if declared.is_none()
            && !old.is_some_and(adds)
            && self.overrides.values().filter(|over| adds(over)).count() >= MOST_ADDED
        {
            return Err(Refusal::TooMany);
        }
        let before = rows.find(id).map(Row::entry);
        let ready = rows.any_ready() && !put.force;
        let (over, outcome) = put_over(before.as_ref(), declared, old, put, note, now);
        self.set(id, Some(over), ready)?;
        Ok(outcome)
    }

    /// Changes a backend's share or state. `Ready` also keeps a backend that is leaving, unless that is because of its
    /// lease: only a renewal does it then.
    ///
    /// # Errors
    /// There is no such backend; it is the last that is ready, and not forced.
    pub fn patch(&mut self, id: &Name, patch: Patch, note: Note) -> Result<Outcome, Refusal> {
        let rows = self.rows();
        let before = rows.find(id).map(Row::entry).ok_or_else(|| Refusal::NotFound(id.clone()))?;
        let ready = rows.any_ready() && !patch.force;
        let old = self.overrides.get(id);
        let mut over = old.cloned().unwrap_or_default();
        over.base = self.declared(id).map(Declared::base);
        let mut after = before.clone();
        if let Some(weight) = patch.weight {
            after.spec.weight = weight;
            over.spec = over.base.as_ref().is_none_or(|(base, _)| *base != after.spec).then(|| after.spec.clone());
        }
        if let Some(admin) = patch.admin {
            over.admin = admin;
            if admin == AdminState::Ready && over.lease.is_none() {
                over.leaving = None;
            }
        }
        let said = |over: &Override| (over.admin, over.leaving);
        let was = old.map_or_else(Default::default, said);
        let lasts = old.is_some_and(|old| old.transient) && !patch.transient;
        if after == before && said(&over) == was && !lasts {
            return Ok(Outcome::Unchanged);
        }
        over.sign(old, note, patch.transient);
        self.set(id, Some(over), ready)?;
        Ok(Outcome::Changed)
    }

    /// Removes a backend: at once, or when its requests are done and after `drain` milliseconds at the latest.
    ///
    /// # Errors
    /// There is no such backend; it is the last that is ready, and not forced.
    pub fn remove(&mut self, id: &Name, drain: u64, force: bool, note: Note, now: u64) -> Result<Outcome, Refusal> {
        let rows = self.rows();
        rows.find(id).ok_or_else(|| Refusal::NotFound(id.clone()))?;
        let ready = rows.any_ready() && !force;
        let old = self.overrides.get(id);
        let mut over = old.cloned().unwrap_or_default();
        over.base = self.declared(id).map(Declared::base);
        // What was never kept need not be kept to be gone.
        let transient = over.transient && over.base.is_none() && over.beneath.is_none();
        over.sign(old, note, transient);
        if drain == 0 {
            self.set(id, over.taken_out(), ready)?;
            return Ok(Outcome::Removed);
        }
        over.leaving = Some(now.saturating_add(drain));
        self.set(id, Some(over), ready)?;
        Ok(Outcome::Leaving)
    }

    /// Has exactly these be there beside what is declared or leased. Those that are not named leave as by [`remove`] with
    /// `drain`, where their address is not given to another. All or nothing.
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
        let rows = self.rows();
        let before: HashMap<&Name, Entry> = rows.members.iter().map(|row| (row.id, row.entry())).collect();
        let declared = self.all_declared();
        let named: BTreeSet<Name> = puts.iter().map(|(id, _)| id.clone()).collect();
        let gone = |id: &Name, over: &Override| {
            over.base.is_none() && over.lease.is_none() && !declared.contains_key(id) && !named.contains(id)
        };
        let mut overrides = BTreeMap::clone(&self.overrides);
        let leavers: Vec<(Name, Override)> = overrides.extract_if(.., |id, over| gone(id, over)).collect();
        let left: HashSet<&Name> = leavers.iter().map(|(id, _)| id).chain(&named).collect();
        let stay = rows.members.iter().filter(|row| !left.contains(row.id));
        let mut owners: HashMap<BackendAddress, Name> =
            stay.map(|row| (row.spec.address.clone(), row.id.clone())).collect();
        for (id, put) in puts {
            let (declared, old) = (declared.get(&id).copied(), self.overrides.get(&id));
            leasable(&id, &put, declared, old)?;
            let owner = owners.entry(put.address.clone()).or_insert_with(|| id.clone());
            if *owner != id {
                return Err(self.taken(put.address, owner.clone(), now));
            }
            let (over, _) = put_over(before.get(&id), declared, old, put, note.clone(), now);
            if over.says_nothing() {
                overrides.remove(&id);
            } else {
                overrides.insert(id, over);
            }
        }
        let added = |over: &&Override| over.base.is_none() && over.leaving.is_none();
        if overrides.values().filter(added).count() > MOST_ADDED {
            return Err(Refusal::TooMany);
        }
        let mut next = Self { overrides: Arc::new(overrides), ..self.clone() };
        let after = next.rows();
        if let Some((_, address, other)) = after.hidden.iter().find(|(id, ..)| named.contains(*id)) {
            return Err(Refusal::DuplicateAddress { address: (*address).clone(), other: (*other).clone() });
        }
        if let Some(last) = rows.members.iter().find(|row| row.is_ready())
            && !force
            && !after.any_ready()
        {
            return Err(Refusal::LastReady(last.id.clone()));
        }
        let stays = |(id, over): &(Name, Override)| {
            let address = before.get(id).and(over.spec.as_ref()).map(|spec| &spec.address);
            drain > 0 && address.is_some_and(|address| after.owner(address).is_none())
        };
        let leave = |(id, mut over): (Name, Override)| {
            if over.leaving.is_none() {
                (over.leaving, over.note) = (Some(now.saturating_add(drain)), note.clone());
            }
            (id, over)
        };
        let leavers: Vec<_> = leavers.into_iter().filter(stays).map(leave).collect();
        Arc::make_mut(&mut next.overrides).extend(leavers);
        *self = next;
        Ok(())
    }

    /// Forgets what was said at run time about a backend: a declared one is as declared again, an added one is gone.
    ///
    /// # Errors
    /// Nothing was said; the declared address is another's meanwhile; nobody would be ready, and not forced.
    pub fn forget(&mut self, id: &Name, force: bool) -> Result<Outcome, Refusal> {
        if !self.overrides.contains_key(id) {
            return Err(Refusal::NoOverride(id.clone()));
        }
        let rows = self.rows();
        if let Some(Declared { spec: Spec { address, .. }, .. }) = self.declared(id)
            && let Some(other) = rows.owner(address).filter(|other| *other != id)
        {
            return Err(Refusal::DuplicateAddress { address: address.clone(), other: other.clone() });
        }
        let (before, ready) = (rows.find(id).map(Row::entry), rows.any_ready() && !force);
        let after = self.set(id, None, ready)?;
        Ok(match (before, after) {
            (None, Some(_)) => Outcome::Created,
            (Some(_), None) => Outcome::Removed,
            (before, after) if before == after => Outcome::Unchanged,
            _ => Outcome::Changed,
        })
    }

    /// What time does: leases that ran out begin to leave (for `drain` milliseconds at most), and what leaves is gone when
    /// it has no request in flight or its time is up. Returns those that changed.
    pub fn sweep(&mut self, now: u64, drain: u64, in_flight: impl Fn(&Name) -> u32) -> Vec<(Name, Outcome)> {
        // One sweep makes a lease drain, the next removes it: between them nobody begins a request that is not counted.
        let due = |(id, over): (&Name, &Override)| {
            over.leaving.is_some_and(|due| due <= now || in_flight(id) == 0).then(|| id.clone())
        };
        let gone: Vec<Name> = self.overrides.iter().filter_map(due).collect();
        let silent = |over: &Override| over.leaving.is_none() && over.lease.is_some_and(|lease| lease.due <= now);
        if gone.is_empty() && !self.overrides.values().any(silent) {
            return Vec::new();
        }
        let mut changed = Vec::new();
        let declared = all_declared(&self.file, &self.found);
        let overrides = Arc::make_mut(&mut self.overrides);
        for (id, over) in overrides.iter_mut().filter(|(_, over)| silent(over)) {
            over.leaving = Some(now.saturating_add(drain));
            over.note = Note { who: "lease".into(), why: "not renewed".into(), ..over.note.clone() };
            changed.push((id.clone(), Outcome::Leaving));
        }
        for id in gone {
            if let Some(out) = overrides.remove(&id).and_then(Override::taken_out)
                && (declared.contains_key(&id) || !out.is_fulfilled())
            {
                overrides.insert(id.clone(), out);
            }
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

    /// Takes back what a declaration has done to an override, where nothing was said since: `after` is what it had left.
    pub(super) fn take_back(&mut self, id: &Name, before: &Override, after: Option<&Override>) {
        if self.overrides.get(id) == after {
            Arc::make_mut(&mut self.overrides).insert(id.clone(), before.clone());
        }
    }

    /// The address is another's; for how long yet, where that one is leaving.
    fn taken(&self, address: BackendAddress, other: Name, now: u64) -> Refusal {
        match self.overrides.get(&other).and_then(|over| over.leaving) {
            Some(due) => Refusal::Leaving { address, other, within: due.saturating_sub(now) },
            None => Refusal::DuplicateAddress { address, other },
        }
    }

    fn declared(&self, id: &Name) -> Option<&Declared> {
        self.file.iter().chain(&*self.found).find(|declared| declared.id == *id)
    }

    fn all_declared(&self) -> HashMap<&Name, &Declared> {
        all_declared(&self.file, &self.found)
    }

    /// Sets or takes away an override. `ready`: somebody must be ready, else everything is as before.
    fn set(&mut self, id: &Name, over: Option<Override>, ready: bool) -> Result<Option<Entry>, Refusal> {
        let before = self.overrides.clone();
        let overrides = Arc::make_mut(&mut self.overrides);
        match over.filter(|over| !over.says_nothing()) {
            Some(over) => overrides.insert(id.clone(), over),
            None => overrides.remove(id),
        };
        let rows = self.rows();
        if !ready || rows.any_ready() {
            return Ok(rows.find(id).map(Row::entry));
        }
        self.overrides = before;
        Err(Refusal::LastReady(id.clone()))
    }

    fn rows(&self) -> Rows<'_> {
        Rows::new(self.file.iter().chain(&*self.found), &self.overrides)
    }

    /// Ids of what is declared or added but has no place, as its address is another's.
    fn hidden(&self) -> BTreeSet<Name> {
        self.rows().hidden.into_iter().map(|(id, ..)| id.clone()).collect()
    }

    /// Drops what wanted a backend of the file gone, where the file has it no more.
    fn drop_fulfilled(&mut self) {
        let (declared, fulfilled) = (all_declared(&self.file, &self.found), Override::is_fulfilled);
        Arc::make_mut(&mut self.overrides).retain(|id, over| {
            if !declared.contains_key(id) && over.beneath.as_deref().is_some_and(fulfilled) {
                over.beneath = None;
            }
            declared.contains_key(id) || !fulfilled(over)
        });
    }

    /// Merges every override with what is declared now. `hidden`: what had no place before.
    fn merge(&mut self, hidden: &BTreeSet<Name>) -> Vec<Conflict> {
        let mut conflicts = Vec::new();
        let declared = all_declared(&self.file, &self.found);
        Arc::make_mut(&mut self.overrides).retain(|id, over| {
            if let Some(declared) = declared.get(id) {
                over.rebase(declared, &mut conflicts);
            }
            !over.says_nothing()
        });
        let new = self.rows().hidden.into_iter().filter(|(id, ..)| !hidden.contains(*id));
        conflicts.extend(new.map(|(id, address, owner)| Conflict {
            id: id.clone(),
            field: "taken",
            declared: address.to_string(),
            kept: owner.to_string(),
        }));
        conflicts
    }
}

/// By id; the first holds.
fn all_declared<'a>(file: &'a [Declared], found: &'a [Declared]) -> HashMap<&'a Name, &'a Declared> {
    file.iter().chain(found).rev().map(|declared| (&declared.id, declared)).collect()
}

#[cfg(test)]
mod tests;

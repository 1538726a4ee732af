//! Who belongs to an upstream, made of what is declared and what was said: one pass, no id and no address twice.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map},
    fmt,
    sync::Arc,
};

use arc_swap::ArcSwapOption;

use super::{Declared, Override, Said, Spec};
use crate::types::{AdminState, BackendAddress, Name, Source};

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

/// As [`Entry`], borrowed.
#[derive(Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) id: &'a Name,
    pub(super) spec: &'a Spec,
    pub(super) admin: AdminState,
    pub(super) source: Source,
}

impl Row<'_> {
    pub(super) fn entry(&self) -> Entry {
        Entry { id: self.id.clone(), spec: self.spec.clone(), admin: self.admin, source: self.source }
    }

    pub(super) fn is_ready(&self) -> bool {
        self.admin == AdminState::Ready && self.spec.weight.value() > 0
    }
}

pub(super) struct Rows<'a> {
    pub(super) members: Vec<Row<'a>>,
    /// Without a place: the id, the address, and whose that is.
    pub(super) hidden: Vec<(&'a Name, &'a BackendAddress, &'a Name)>,
}

impl<'a> Rows<'a> {
    /// Of what is declared, in its order, and what was said at run time. Of two declarations of one id the first counts.
    pub(super) fn new(declared: impl Iterator<Item = &'a Declared>, overrides: &'a BTreeMap<Name, Override>) -> Self {
        let mut rows = Self { members: Vec::new(), hidden: Vec::new() };
        let mut owners = HashMap::new();
        let mut ids: HashSet<&Name> = HashSet::new();
        for Declared { id, spec, source } in declared.filter(|declared| ids.insert(&declared.id)) {
            let over = overrides.get(id);
            if over.is_some_and(|over| over.removed) {
                continue;
            }
            let spec = over.and_then(|over| over.spec.as_ref()).unwrap_or(spec);
            let admin = over.map_or(AdminState::Ready, Override::effective_admin);
            rows.add(Row { id, spec, admin, source: *source }, &mut owners);
        }
        for (id, over) in overrides {
            let Some(spec) = over.spec.as_ref().filter(|_| over.base.is_none() && !over.removed) else { continue };
            let source = if over.lease.is_some() { Source::Lease } else { Source::Api };
            rows.add(Row { id, spec, admin: over.effective_admin(), source }, &mut owners);
        }
        rows
    }

    fn add(&mut self, row: Row<'a>, owners: &mut HashMap<&'a BackendAddress, &'a Name>) {
        match owners.entry(&row.spec.address) {
            hash_map::Entry::Occupied(owner) => self.hidden.push((row.id, &row.spec.address, owner.get())),
            hash_map::Entry::Vacant(free) => {
                free.insert(row.id);
                self.members.push(row);
            }
        }
    }

    pub(super) fn find(&self, id: &Name) -> Option<&Row<'a>> {
        self.members.iter().find(|row| row.id == id)
    }

    pub(super) fn owner(&self, address: &BackendAddress) -> Option<&'a Name> {
        self.members.iter().find(|row| row.spec.address == *address).map(|row| row.id)
    }

    pub(super) fn any_ready(&self) -> bool {
        self.members.iter().any(Row::is_ready)
    }
}

/// What the file and discovery declare, and what was said.
type Parts = (Arc<[Declared]>, Arc<[Declared]>, Said);

/// The members, and their version.
pub(super) struct Resolved {
    /// What it was made of. As it is kept here, nothing else can come to be at the same place in memory.
    of: Parts,
    pub(super) entries: Box<[Entry]>,
    pub(super) version: u64,
}

/// What was resolved last; of no meaning where its parts are others.
#[derive(Default)]
pub(super) struct LastResolved(ArcSwapOption<Resolved>);

impl LastResolved {
    /// As `make` says, unless that is known.
    pub(super) fn of(&self, of: Parts, make: impl FnOnce() -> (Box<[Entry]>, u64)) -> Arc<Resolved> {
        let same = |known: &Arc<Resolved>| {
            Arc::ptr_eq(&known.of.0, &of.0) && Arc::ptr_eq(&known.of.1, &of.1) && Arc::ptr_eq(&known.of.2, &of.2)
        };
        if let Some(known) = self.0.load_full().filter(same) {
            return known;
        }
        let (entries, version) = make();
        let resolved = Arc::new(Resolved { of, entries, version });
        self.0.store(Some(resolved.clone()));
        resolved
    }
}

impl Clone for LastResolved {
    fn clone(&self) -> Self {
        Self(ArcSwapOption::new(self.0.load_full()))
    }
}

impl fmt::Debug for LastResolved {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LastResolved")
    }
}

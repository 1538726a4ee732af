//! Who belongs to an upstream, made of what is declared and what was said: one pass, no id and no address twice.

use std::collections::{BTreeMap, HashMap, HashSet, hash_map};

use super::{Declared, Override, Spec};
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

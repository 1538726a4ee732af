//! What whoever only looks at the store sees: all of one moment, as after the last change, and without a lock. A change that
//! waits for the disk keeps nobody from looking.

use std::{collections::BTreeMap, sync::Arc};

use super::{Foreseen, Running, Store, declare};
use crate::{
    config::model::Model,
    runtime::{
        journal::Overrides,
        membership::{Membership, Said},
        snapshot::Snapshot,
        upstream::Upstream,
    },
    types::Name,
};

/// What is known of one upstream at run time.
pub struct View {
    /// Its members, and what was said about them.
    pub membership: Membership,
    /// Its members with health and requests in flight.
    pub upstream: Arc<Upstream>,
    /// As in `ETag`.
    pub version: u64,
}

/// What whoever only looks sees, all of one moment.
pub(super) struct Seen {
    pub(super) model: Arc<Model>,
    pub(super) members: BTreeMap<Name, Membership>,
    pub(super) snapshot: Arc<Snapshot>,
}

impl Seen {
    pub(super) fn of(running: &Running) -> Self {
        let Running { model, members, snapshot, .. } = running;
        Self { model: model.clone(), members: members.clone(), snapshot: snapshot.clone() }
    }

    fn view(&self, upstream: &Arc<Upstream>) -> View {
        let membership = self.members.get(&upstream.name).cloned().unwrap_or_default();
        View { version: membership.version(), upstream: upstream.clone(), membership }
    }
}

impl Store {
    /// What runs.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.seen.load().snapshot.clone()
    }

    /// The configuration that runs, without what was changed at run time.
    pub fn model(&self) -> Arc<Model> {
        self.seen.load().model.clone()
    }

    /// What is known of an upstream; `None` where there is none of that name.
    pub fn view(&self, upstream: &Name) -> Option<View> {
        let seen = self.seen.load();
        let member = seen.snapshot.members().iter().find(|member| member.upstream.name == *upstream)?;
        Some(seen.view(&member.upstream))
    }

    /// What is known of every upstream of the configuration, all of one moment.
    pub fn views(&self) -> Vec<View> {
        let seen = self.seen.load_full();
        seen.snapshot.members().iter().map(|member| seen.view(&member.upstream)).collect()
    }

    /// What is known of every upstream, by name; also of those that the configuration has no more, whose overrides wait.
    pub fn overrides(&self) -> Overrides {
        let said = |(name, said): (&Name, &Said)| (name.clone(), BTreeMap::clone(said));
        said_of(&self.seen.load().members).map(said).collect()
    }

    /// What whoever loads `model` is to know. Changes nothing.
    pub fn foresee(&self, model: &Model) -> Foreseen {
        let seen = self.seen.load_full();
        let mut members = seen.members.clone();
        let conflicts = declare(model, &mut members);
        Foreseen::of(model, conflicts, &seen.members, &members)
    }

    /// Whoever looks from now on sees this.
    pub(super) fn show(&self, running: &Running) {
        self.seen.store(Arc::new(Seen::of(running)));
    }
}

/// What was said at run time, by upstream, where anything was.
pub(super) fn said_of(members: &BTreeMap<Name, Membership>) -> impl Iterator<Item = (&Name, &Said)> {
    let said = members.iter().map(|(name, membership)| (name, membership.said()));
    said.filter(|(_, said)| !said.is_empty())
}

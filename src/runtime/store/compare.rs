//! What is other between two states of the store: for the journal, for going back, for the metrics.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    sync::Arc,
};

use crate::{
    runtime::{
        membership::{Membership, Override},
        snapshot::{Member, Snapshot},
    },
    telemetry::metrics::Metrics,
    types::Name,
};

/// An override that a reload has made another: its upstream and backend, as it was, and as it was left.
pub(super) type Merged = (Name, Name, Override, Option<Override>);

/// Whether the journal keeps the same of both: not when a lease is due, which every renewal moves.
pub(super) fn lasts_alike(one: &BTreeMap<Name, Override>, other: &BTreeMap<Name, Override>) -> bool {
    fn lasting(all: &BTreeMap<Name, Override>) -> impl Iterator<Item = (&Name, &Override)> {
        all.iter().filter_map(|(id, over)| Some((id, over.lasting()?)))
    }
    let alike = |one: &Override, other: &Override| one.leaving == other.leaving && keeps_alike(one, other);
    let (mut one, mut other) = (lasting(one), lasting(other));
    loop {
        match (one.next(), other.next()) {
            (None, None) => return true,
            (Some((id, one)), Some((same, other))) if id == same && alike(one, other) => {}
            _ => return false,
        }
    }
}

/// As [`lasts_alike`], of two that last, which may have been read at different times: not when they are gone either.
pub(super) fn keeps_alike(one: &Override, other: &Override) -> bool {
    let ttl = |over: &Override| over.lease.map(|lease| lease.ttl);
    (&one.spec, one.admin, one.removed, &one.base, one.leaving.is_some(), &one.note, ttl(one))
        == (&other.spec, other.admin, other.removed, &other.base, other.leaving.is_some(), &other.note, ttl(other))
}

/// The overrides that are others than `before`, with both.
pub(super) fn merged(before: &BTreeMap<Name, Membership>, members: &BTreeMap<Name, Membership>) -> Vec<Merged> {
    let mut merged = Vec::new();
    for (upstream, membership) in before {
        let now = members.get(upstream).map(Membership::overrides);
        for (id, over) in membership.overrides().iter() {
            let after = now.and_then(|now| now.get(id));
            if after != Some(over) {
                merged.push((upstream.clone(), id.clone(), over.clone(), after.cloned()));
            }
        }
    }
    merged
}

/// Forgets the counters of upstreams and backends that are gone.
pub(super) fn forget_metrics(before: &Snapshot, after: &Snapshot, metrics: &Metrics) {
    let now: HashMap<&Name, &Arc<Member>> =
        after.members().iter().map(|member| (&member.upstream.name, member)).collect();
    let mut upstreams = HashSet::new();
    let mut backends = HashSet::new();
    for member in before.members() {
        let name = &member.upstream.name;
        let stay = match now.get(name) {
            Some(now) if Arc::ptr_eq(now, member) => continue,
            Some(now) => now.upstream.backends(),
            None => {
                upstreams.insert(name);
                &[]
            }
        };
        let before = member.upstream.backends();
        if stay.len() == before.len() && stay.iter().zip(before).all(|(now, before)| now.id == before.id) {
            continue;
        }
        let stay: HashSet<&Name> = stay.iter().map(|backend| &backend.id).collect();
        let gone = member.upstream.backends().iter().filter(|backend| !stay.contains(&backend.id));
        backends.extend(gone.map(|backend| (name, &backend.id)));
    }
    if !upstreams.is_empty() || !backends.is_empty() {
        metrics.retain(
            |_| true,
            |upstream| !upstreams.contains(upstream),
            |upstream, backend| !backends.contains(&(upstream, backend)),
        );
    }
}

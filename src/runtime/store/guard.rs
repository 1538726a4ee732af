//! What a change may not do to an upstream: leave it without a backend that takes requests, or make one that TLS has no
//! name for.

use std::{collections::HashMap, sync::Arc};

use crate::{
    config::model,
    policy::health::InitialHealth,
    runtime::{
        backend::BackendState,
        membership::{Entry, Membership, Refusal},
        store::ChangeError,
        upstream::Upstream,
    },
    types::{AdminState, BackendAddress, Name},
};

/// Refuses what takes the last backend away that requests go to now; `running` knows the health and the ejections
/// of those there are.
pub(super) fn leaves_one_usable(
    config: &model::Upstream,
    running: &Upstream,
    before: &Membership,
    after: &Membership,
) -> Result<(), Refusal> {
    // Mostly the first that takes requests goes on to, and nothing more has to be known.
    let stays = |state: &Arc<BackendState>| {
        after.entry(&state.id).is_some_and(|Entry { spec, admin, .. }| {
            spec.address == state.address && spec.weight.value() > 0 && admin == AdminState::Ready
        })
    };
    if running.backends().iter().find(|state| state.usable()).is_some_and(stays) {
        return Ok(());
    }
    let states: HashMap<&Name, &Arc<BackendState>> =
        running.backends().iter().map(|backend| (&backend.id, backend)).collect();
    // One that is new counts as what it is until its first probe.
    let starts_up = config.health_check.as_ref().is_none_or(|check| check.thresholds.initial == InitialHealth::Up);
    // One that is ejected gets no requests, but begins anew at another address.
    let ejected = |entry: &Entry| {
        states.get(&entry.id).is_some_and(|state| state.address == entry.spec.address && state.is_ejected())
    };
    let fit = |entry: &Entry| {
        let state = states.get(&entry.id);
        let up = state.map_or(starts_up, |state| state.is_up());
        let resolved = match state.filter(|state| state.address == entry.spec.address) {
            Some(state) => state.has_target(),
            None => !matches!(entry.spec.address, BackendAddress::Host(_)),
        };
        entry.admin == AdminState::Ready && entry.spec.weight.value() > 0 && up && resolved
    };
    let usable = |entry: &Entry| fit(entry) && !ejected(entry);
    let left = after.entries();
    match before.entries().into_iter().find(usable) {
        Some(last) if !left.iter().any(usable) => Err(match left.into_iter().find(fit) {
            Some(other) => Refusal::OthersEjected { last: last.id, ejected: other.id },
            None => Refusal::LastReady(last.id),
        }),
        _ => Ok(()),
    }
}

/// Refuses an address without a host name where TLS has no other name to ask for.
pub(super) fn needs_sni(upstream: &model::Upstream, membership: &Membership) -> Result<(), ChangeError> {
    if upstream.tls.as_ref().is_none_or(|tls| tls.sni.is_some()) {
        return Ok(());
    }
    let nameless = |entry: &Entry| !matches!(entry.spec.address, BackendAddress::Host(_));
    match membership.entries().into_iter().find(nameless) {
        Some(entry) => Err(ChangeError::SniMissing(entry.spec.address.to_string())),
        None => Ok(()),
    }
}

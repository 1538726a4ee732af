//! What was changed at run time, as the API shows it.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    call::{Answer, Call, Shared},
    problem::Problem,
    upstreams::seconds_until,
};
use crate::{
    runtime::{self, membership::Override},
    types::Name,
};

/// What was said at run time about one backend.
#[derive(Serialize)]
struct Shown {
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
    admin: &'static str,
    /// Taken out, though declared.
    removed: bool,
    /// Without effect: its backend is not declared any more, or its address is another's.
    dormant: bool,
    /// Whose the address is.
    #[serde(skip_serializing_if = "Option::is_none")]
    taken_by: Option<String>,
    /// Outlives the process.
    persist: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_ttl_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leaving_in: Option<u64>,
    who: String,
    why: String,
    /// Seconds since 1970.
    at: u64,
    /// What was declared when it was said.
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<Base>,
}

#[derive(Serialize)]
struct Base {
    address: String,
    weight: u16,
    source: &'static str,
}

/// `GET /v1/state`
pub(super) fn state(shared: &Shared, _: &Call) -> Result<Answer, Problem> {
    #[derive(Serialize)]
    struct State {
        upstreams: BTreeMap<String, BTreeMap<String, Shown>>,
    }
    let store = &shared.store;
    let now = store.now();
    let of_upstream = |(name, overrides): (Name, BTreeMap<Name, Override>)| {
        let waiting = store.view(&name).map(|view| view.membership.waiting());
        let shown = overrides.iter().map(|(id, over)| {
            let waits = waiting.as_ref().map_or(Some(&None), |waiting| waiting.get(id));
            (id.to_string(), show(over, waits, now))
        });
        let shown = shown.collect();
        (name.to_string(), shown)
    };
    Answer::json(&State { upstreams: store.overrides().into_iter().map(of_upstream).collect() })
}

/// `GET /v1/state/patch`
pub(super) fn patch(shared: &Shared, _: &Call) -> Result<Answer, Problem> {
    Ok(Answer::yaml(runtime::patch::patch(&shared.store.model(), &shared.store.overrides())))
}

/// `waits`: it is without effect, and whose its address is.
fn show(over: &Override, waits: Option<&Option<Name>>, now: u64) -> Shown {
    Shown {
        address: over.spec.as_ref().map(|spec| spec.address.to_string()),
        weight: over.spec.as_ref().map(|spec| spec.weight.value()),
        admin: over.admin.as_str(),
        removed: over.removed,
        dormant: waits.is_some(),
        taken_by: waits.and_then(Option::as_ref).map(Name::to_string),
        persist: !over.transient,
        lease_ttl_seconds: over.lease.map(|lease| lease.ttl.div_ceil(1000)),
        leaving_in: over.leaving.map(|due| seconds_until(due, now)),
        who: over.note.who.clone(),
        why: over.note.why.clone(),
        at: over.note.at,
        base: over.base.as_ref().map(|(spec, source)| Base {
            address: spec.address.to_string(),
            weight: spec.weight.value(),
            source: source.as_str(),
        }),
    }
}

//! Upstreams and their backends as the API shows them.

use std::{collections::HashMap, sync::Arc, time::Instant};

use http::StatusCode;
use serde::Serialize;

use super::{
    call::{Answer, Call, Shared},
    problem::{Kind, Problem, etag},
};
use crate::{
    config::{self, model::Discover},
    policy::{balance::Balance, health::Health},
    runtime::{
        backend::BackendState,
        membership::{Entry, Membership},
        store::View,
    },
    types::{AdminState, Name},
};

/// An upstream.
#[derive(Serialize)]
pub(super) struct Upstream {
    name: String,
    balance: &'static str,
    etag: String,
    backends: Vec<Backend>,
    /// Where more backends come from.
    discover: Option<&'static str>,
    /// Overrides without effect: their backend is not declared any more.
    waiting: Vec<String>,
}

/// A backend.
#[derive(Serialize)]
pub(super) struct Backend {
    id: String,
    address: String,
    /// What is connected to; `null` while a name has no address.
    target: Option<String>,
    weight: u16,
    admin: &'static str,
    health: &'static str,
    effective: &'static str,
    source: &'static str,
    /// What is declared of it was changed at run time.
    overridden: bool,
    in_flight: u32,
    requests: u64,
    /// While its share grows.
    #[serde(skip_serializing_if = "Option::is_none")]
    slow_start: Option<SlowStart>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_ttl_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lease_expires_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leaving_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ejected: Option<Ejected>,
    #[serde(skip_serializing_if = "Option::is_none")]
    changed: Option<Changed>,
}

/// Out for failing the requests it was sent.
#[derive(Serialize)]
struct Ejected {
    /// In seconds.
    returns_in: u64,
    /// In a row.
    times: u32,
    why: String,
}

/// How far a backend's share has grown since it came up.
#[derive(Serialize)]
struct SlowStart {
    percent: u8,
    /// Until it is whole; rounded up.
    remaining_seconds: u64,
}

/// Who changed it last at run time.
#[derive(Serialize)]
struct Changed {
    who: String,
    why: String,
    /// Seconds since 1970.
    at: u64,
}

/// `GET /v1/upstreams`
pub(super) fn list(shared: &Shared, _: &Call) -> Result<Answer, Problem> {
    #[derive(Serialize)]
    struct Upstreams {
        upstreams: Vec<Upstream>,
    }
    let views = shared.store.views();
    let upstreams = views.iter().map(|view| upstream(shared, &view.upstream.name, view)).collect();
    Answer::json(&Upstreams { upstreams })
}

/// `GET /v1/upstreams/{upstream}`
pub(super) fn one(shared: &Shared, call: &Call) -> Result<Answer, Problem> {
    let name = call.name("upstream");
    let view = view(shared, &name)?;
    Ok(Answer::json(&upstream(shared, &name, &view))?.version(view.version))
}

/// `GET /v1/upstreams/{upstream}/backends`
pub(super) fn backends(shared: &Shared, call: &Call) -> Result<Answer, Problem> {
    #[derive(Serialize)]
    struct Backends {
        backends: Vec<Backend>,
    }
    let name = call.name("upstream");
    let view = view(shared, &name)?;
    Ok(Answer::json(&Backends { backends: members(shared, &name, &view) })?.version(view.version))
}

/// `GET /v1/upstreams/{upstream}/backends/{backend}`
pub(super) fn backend(shared: &Shared, call: &Call) -> Result<Answer, Problem> {
    let (name, id) = (call.name("upstream"), call.name("backend"));
    let view = view(shared, &name)?;
    match shown_backend(shared, &name, &id, &view) {
        Some(backend) => Ok(Answer::json(&backend)?.version(view.version)),
        None => Err(no_backend(&view.membership, &id)),
    }
}

/// A backend as it is now, with a status; `None` where it is gone.
pub(super) fn answer(
    shared: &Shared,
    upstream: &Name,
    id: &Name,
    status: StatusCode,
) -> Result<Option<Answer>, Problem> {
    let view = view(shared, upstream)?;
    let Some(backend) = shown_backend(shared, upstream, id, &view) else { return Ok(None) };
    Ok(Some(Answer::json(&backend)?.status(status).version(view.version)))
}

/// What is known of an upstream.
///
/// # Errors
/// There is none of this name.
pub(super) fn view(shared: &Shared, name: &Name) -> Result<View, Problem> {
    shared.store.view(name).ok_or_else(|| {
        let model = shared.store.model();
        let near = config::did_you_mean(name.as_str(), model.upstreams.keys().map(Name::as_str));
        let problem =
            Problem::new(Kind::NotFound, format!("there is no upstream {}", super::problem::shown(name.as_str())));
        problem.hint(near.unwrap_or_else(|| "GET /v1/upstreams lists them".to_owned()))
    })
}

/// There is no backend of this id.
pub(super) fn no_backend(membership: &Membership, id: &Name) -> Problem {
    let entries = membership.entries();
    let near = config::did_you_mean(id.as_str(), entries.iter().map(|entry| entry.id.as_str()));
    let problem = Problem::new(Kind::NotFound, format!("there is no backend {}", super::problem::shown(id.as_str())));
    match near {
        Some(near) => problem.hint(near),
        None if membership.overrides().contains_key(id) => {
            problem.hint("it was taken out at run time; DELETE …/override brings back what is declared")
        }
        None => problem,
    }
}

fn upstream(shared: &Shared, name: &Name, view: &View) -> Upstream {
    let model = shared.store.model();
    let config = model.upstreams.get(name);
    Upstream {
        name: name.to_string(),
        balance: config.map_or("", |config| balance(config.balance)),
        etag: etag(view.version),
        backends: members(shared, name, view),
        discover: config.and_then(|config| config.discover.as_ref()).map(|discover| match discover {
            Discover::Dns(_) => "dns",
            Discover::List(_) => "list",
        }),
        waiting: view.membership.waiting().keys().map(Name::to_string).collect(),
    }
}

fn members(shared: &Shared, name: &Name, view: &View) -> Vec<Backend> {
    let states: HashMap<&Name, &Arc<BackendState>> =
        view.upstream.backends().iter().map(|backend| (&backend.id, backend)).collect();
    let show = |entry: Entry| {
        let state = states.get(&entry.id).copied();
        show(shared, name, view, entry, state)
    };
    view.membership.entries().into_iter().map(show).collect()
}

fn shown_backend(shared: &Shared, name: &Name, id: &Name, view: &View) -> Option<Backend> {
    let entry = view.membership.entry(id)?;
    let state = view.upstream.backends().iter().find(|backend| backend.id == *id);
    Some(show(shared, name, view, entry, state))
}

fn show(shared: &Shared, upstream: &Name, view: &View, entry: Entry, state: Option<&Arc<BackendState>>) -> Backend {
    let now = shared.store.now();
    let over = view.membership.overrides().get(&entry.id);
    let leaving = over.and_then(|over| over.leaving);
    let lease = over.and_then(|over| over.lease);
    Backend {
        target: state.and_then(|state| state.target()).map(|target| match target.as_inet() {
            Some(address) => address.to_string(),
            None => entry.spec.address.to_string(),
        }),
        weight: entry.spec.weight.value(),
        admin: entry.admin.as_str(),
        // What was found while it was probed says nothing of it any more.
        health: state.filter(|state| state.is_checked()).map_or(Health::Unknown, |state| state.health()).as_str(),
        effective: effective(&entry, state.map(AsRef::as_ref)),
        source: entry.source.as_str(),
        overridden: over.is_some_and(|over| over.base.is_some()),
        in_flight: state.map_or(0, |state| state.in_flight()),
        requests: shared.metrics.backend_requests(upstream, &entry.id),
        slow_start: state.and_then(|state| state.slow_start(Instant::now())).map(|slow_start| SlowStart {
            percent: slow_start.part.percent(),
            remaining_seconds: u64::try_from(slow_start.remaining.as_millis().div_ceil(1000)).unwrap_or(u64::MAX),
        }),
        lease_ttl_seconds: lease.map(|lease| lease.ttl.div_ceil(1000)),
        lease_expires_in: lease.map(|lease| seconds_until(lease.due, now)),
        leaving_in: leaving.map(|due| seconds_until(due, now)),
        ejected: state.and_then(|state| state.ejection().out(Instant::now())).map(|out| Ejected {
            returns_in: u64::try_from(out.left.as_millis().div_ceil(1000)).unwrap_or(u64::MAX),
            times: out.times,
            why: out.why,
        }),
        changed: over.filter(|over| over.note.at > 0).map(|over| Changed {
            who: over.note.who.clone(),
            why: over.note.why.clone(),
            at: over.note.at,
        }),
        address: entry.spec.address.to_string(),
        id: entry.id.to_string(),
    }
}

/// What traffic sees of a backend.
fn effective(entry: &Entry, state: Option<&BackendState>) -> &'static str {
    match entry.admin {
        AdminState::Maint => "maint",
        AdminState::Drain => "draining",
        AdminState::Ready if entry.spec.weight.value() == 0 => "disabled",
        AdminState::Ready => match state {
            Some(state) if !state.has_target() => "unresolved",
            Some(state) if !state.is_up() => "down",
            Some(state) if state.is_ejected() => "ejected",
            Some(_) => "up",
            None => "down",
        },
    }
}

/// Whole seconds, rounded up: 0 is over.
pub(super) fn seconds_until(due: u64, now: u64) -> u64 {
    due.saturating_sub(now).div_ceil(1000)
}

/// As in the configuration.
fn balance(balance: Balance) -> &'static str {
    match balance {
        Balance::IpHash => "ip_hash",
        Balance::LeastRequests => "least_requests",
        Balance::Random => "random",
        Balance::RoundRobin => "round_robin",
    }
}

//! Changes of an upstream's members: what a request asks for becomes one change of the store, and what that came to is
//! told with who did it and why.

use std::collections::{BTreeMap, BTreeSet};

use http::StatusCode;

use super::{
    call::{Answer, Call, IfMatch, Shared},
    json::{Fields, Json},
    problem::{Kind, Problem, shown},
    query::{DRAIN, FORCE, PERSIST, TTL},
    upstreams,
};
use crate::{
    config,
    runtime::{
        membership::{Entry, Membership, Outcome, Override, Patch, Put, Refusal},
        store::{ChangeError, Changed},
    },
    types::{AdminState, Name},
};

/// How long the requests of a backend that is removed may take, in milliseconds.
const DEFAULT_DRAIN: u64 = 30_000;
/// Characters of an id.
const LONGEST_ID: usize = 128;

/// `PUT /v1/upstreams/{upstream}/backends`
pub(super) fn replace(shared: &Shared, call: &Call) -> Result<Answer, Problem> {
    let upstream = call.name("upstream");
    let body = call.body()?;
    let (list, place) = match body {
        Json::Object(_) => {
            let fields = body.fields("", &["backends"])?;
            let missing = || Problem::value("backends", "`backends` is missing");
            (fields.find("backends").ok_or_else(missing)?.list("backends")?, "backends")
        }
        body => (body.list("")?, ""),
    };
    let mut puts: Vec<(Name, Put)> = Vec::with_capacity(list.len());
    let (mut ids, mut addresses) = (BTreeSet::new(), BTreeMap::new());
    for (index, item) in list.iter().enumerate() {
        let fields = item.fields(&format!("{place}[{index}]"), &["id", "address", "weight"])?;
        let id = Name::from(fields.needed("id")?);
        check_id(&id, &fields.path("id"))?;
        if !ids.insert(id.clone()) {
            return Err(Problem::value(fields.path("id"), format!("the id {id} stands twice")));
        }
        let put = put_of(&fields, None, call)?;
        if let Some(other) = addresses.insert(put.address.clone(), index) {
            let detail = format!("the address {} stands twice, in {place}[{other}] too", put.address);
            return Err(Problem::value(fields.path("address"), detail));
        }
        puts.push((id, put));
    }
    let (drain, force, note) = (drain(call), call.query.flag(&FORCE, false), call.note());
    change(shared, call, &upstream, force, |members, now| {
        members.replace(puts, drain, force, &note, now).map(|()| Outcome::Changed)
    })?;
    upstreams::one(shared, call)
}

/// `PUT /v1/upstreams/{upstream}/backends/{backend}`
pub(super) fn put(shared: &Shared, call: &Call) -> Result<Answer, Problem> {
    let (upstream, id) = (call.name("upstream"), call.name("backend"));
    check_id(&id, "backend")?;
    let fields = call.body()?.fields("", &["address", "weight"])?;
    let ttl = call.query.duration(&TTL).map(millis);
    let put = put_of(&fields, ttl, call)?;
    let (note, force) = (call.note(), call.query.flag(&FORCE, false));
    let only_new = call.only_new();
    let changed = change(shared, call, &upstream, force, |members, now| {
        if only_new && members.entry(&id).is_some() {
            return Err(Refusal::Exists(id.clone()));
        }
        members.put(&id, put, note, now)
    })?;
    let status = if changed.outcome == Outcome::Created { StatusCode::CREATED } else { StatusCode::OK };
    answer(shared, &upstream, &id, status)
}

/// `PATCH /v1/upstreams/{upstream}/backends/{backend}`
pub(super) fn patch(shared: &Shared, call: &Call) -> Result<Answer, Problem> {
    let (upstream, id) = (call.name("upstream"), call.name("backend"));
    let fields = call.body()?.fields("", &["weight", "admin"])?;
    let admin = fields.text("admin")?.map(|word| {
        word.parse::<AdminState>().map_err(|_| {
            let near = config::did_you_mean(word, AdminState::ALL.iter().map(|state| state.as_str()));
            let problem = Problem::value("admin", format!("`{}` is no state of a backend", shown(word)));
            problem.hint(format!("{} write ready, drain or maint", near.unwrap_or_default()).trim_start())
        })
    });
    let patch = Patch {
        weight: fields.weight("weight")?,
        admin: admin.transpose()?,
        force: call.query.flag(&FORCE, false),
        transient: !call.query.flag(&PERSIST, true),
    };
    if patch.weight.is_none() && patch.admin.is_none() {
        return Err(Problem::new(Kind::InvalidValue, "nothing is to change").hint("write `weight`, `admin` or both"));
    }
    let note = call.note();
    change(shared, call, &upstream, patch.force, |members, _| members.patch(&id, patch, note))?;
    answer(shared, &upstream, &id, StatusCode::OK)
}

/// `DELETE /v1/upstreams/{upstream}/backends/{backend}`
pub(super) fn remove(shared: &Shared, call: &Call) -> Result<Answer, Problem> {
    let (upstream, id) = (call.name("upstream"), call.name("backend"));
    let (drain, force, note) = (drain(call), call.query.flag(&FORCE, false), call.note());
    let changed = change(shared, call, &upstream, force, |members, now| members.remove(&id, drain, force, note, now))?;
    left(shared, &upstream, &id, changed, StatusCode::ACCEPTED)
}

/// `DELETE /v1/upstreams/{upstream}/backends/{backend}/override`
pub(super) fn forget(shared: &Shared, call: &Call) -> Result<Answer, Problem> {
    let (upstream, id) = (call.name("upstream"), call.name("backend"));
    let force = call.query.flag(&FORCE, false);
    let changed = change(shared, call, &upstream, force, |members, _| members.forget(&id, force))?;
    let note = call.note();
    shared.store.tell("backend.forgotten", &upstream, &id, &note.who, "changes at run time are forgotten", &note.why);
    left(shared, &upstream, &id, changed, StatusCode::OK)
}

/// The backend, or 204 where it is gone.
fn left(shared: &Shared, upstream: &Name, id: &Name, changed: Changed, status: StatusCode) -> Result<Answer, Problem> {
    let still = upstreams::answer(shared, upstream, id, status)?;
    Ok(still.unwrap_or_else(|| Answer::empty(StatusCode::NO_CONTENT).version(changed.version)))
}

fn answer(shared: &Shared, upstream: &Name, id: &Name, status: StatusCode) -> Result<Answer, Problem> {
    upstreams::answer(shared, upstream, id, status)?.ok_or_else(|| {
        Problem::new(Kind::NotFound, format!("it was done, and backend {id} was taken out by another since"))
    })
}

/// What a `PUT` asks for.
fn put_of(fields: &Fields<'_>, ttl: Option<u64>, call: &Call) -> Result<Put, Problem> {
    let address = config::parse_backend_address(fields.needed("address")?)
        .map_err(|detail| Problem::value(fields.path("address"), detail))?;
    let (force, transient) = (call.query.flag(&FORCE, false), !call.query.flag(&PERSIST, true));
    Ok(Put { address, weight: fields.weight("weight")?, ttl, force, transient })
}

fn check_id(id: &Name, place: &str) -> Result<(), Problem> {
    let text = id.as_str();
    let visible = |c: char| !c.is_control() && !c.is_whitespace();
    if (1..=LONGEST_ID).contains(&text.chars().count()) && text.chars().all(visible) {
        return Ok(());
    }
    let detail = format!("`{}` cannot be an id", shown(text));
    Err(Problem::value(place, detail).hint(format!("write 1 to {LONGEST_ID} visible characters without blanks")))
}

fn drain(call: &Call) -> u64 {
    call.query.duration(&DRAIN).map_or(DEFAULT_DRAIN, millis)
}

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// What an upstream's members were at one moment.
#[derive(Default)]
struct Scene {
    entries: Vec<Entry>,
    leaving: BTreeMap<Name, u64>,
}

impl Scene {
    fn of(members: &Membership) -> Self {
        let leaving = |(id, over): (&Name, &Override)| Some((id.clone(), over.leaving?));
        Self { entries: members.entries(), leaving: members.overrides().iter().filter_map(leaving).collect() }
    }
}

/// Changes an upstream's members where `If-Match` allows it, and tells of what is different. `force`: as in
/// [`Store::change`].
///
/// [`Store::change`]: crate::runtime::store::Store::change
fn change(
    shared: &Shared,
    call: &Call,
    upstream: &Name,
    force: bool,
    change: impl FnOnce(&mut Membership, u64) -> Result<Outcome, Refusal>,
) -> Result<Changed, Problem> {
    let only = match call.if_match()? {
        IfMatch::Any => None,
        IfMatch::OneOf(versions) => {
            let current = upstreams::view(shared, upstream)?.version;
            if !versions.contains(&current) {
                return Err(ChangeError::Stale { current }.into());
            }
            Some(current)
        }
    };
    let (mut before, mut after) = (Scene::default(), Scene::default());
    let mut known = Membership::default();
    let changed = shared.store.change(upstream, only, force, |members, now| {
        known = members.clone();
        before = Scene::of(members);
        let outcome = change(members, now)?;
        after = Scene::of(members);
        Ok(outcome)
    });
    let changed = changed.map_err(|error| match error {
        ChangeError::NoUpstream(name) => {
            upstreams::view(shared, &name).err().unwrap_or_else(|| Problem::new(Kind::NotFound, "it was taken out"))
        }
        ChangeError::Refused(Refusal::NotFound(id)) => upstreams::no_backend(&known, &id),
        error => error.into(),
    })?;
    let note = call.note();
    let now = shared.store.now();
    for (id, kind, what) in differences(&before, &after, now) {
        shared.store.tell(kind, upstream, &id, &note.who, &what, &note.why);
    }
    Ok(changed)
}

/// What happened to whom, in words.
fn differences(before: &Scene, after: &Scene, now: u64) -> Vec<(Name, &'static str, String)> {
    if before.entries == after.entries && before.leaving == after.leaving {
        return Vec::new();
    }
    // Those that stand where they stood need no search: of thousands mostly all but one.
    let in_place = |(was, is): &(&Entry, &Entry)| was == is && before.leaving.get(&was.id) == after.leaving.get(&is.id);
    let first = before.entries.iter().zip(&after.entries).take_while(in_place).count();
    let (was, is) = (before.entries.split_at(first).1, after.entries.split_at(first).1);
    let last = was.iter().rev().zip(is.iter().rev()).take_while(in_place).count();
    fn index(entries: &[Entry], last: usize) -> BTreeMap<&Name, &Entry> {
        entries.iter().rev().skip(last).map(|entry| (&entry.id, entry)).collect()
    }
    let (was, is) = (index(was, last), index(is, last));
    let ids: BTreeSet<&Name> = was.keys().chain(is.keys()).copied().collect();
    let mut told = Vec::new();
    for id in ids {
        let (kind, what) = match (was.get(id), is.get(id)) {
            (None, Some(entry)) => {
                let weight = entry.spec.weight.value();
                ("backend.added", format!("added at {}, weight {weight}, by {}", entry.spec.address, entry.source))
            }
            (Some(_), None) => ("backend.removed", "removed".to_owned()),
            (Some(was), Some(is)) => match (before.leaving.get(id), after.leaving.get(id)) {
                (None, Some(due)) => {
                    let seconds = upstreams::seconds_until(*due, now);
                    ("backend.leaving", format!("leaves when its requests are done, in {seconds} s at the latest"))
                }
                _ => match changes(was, is) {
                    what if what.is_empty() => continue,
                    what => ("backend.changed", what),
                },
            },
            (None, None) => continue,
        };
        told.push((id.clone(), kind, what));
    }
    told
}

fn changes(was: &Entry, is: &Entry) -> String {
    let mut parts = Vec::new();
    let mut differ = |what: &str, was: String, is: String| {
        if was != is {
            parts.push(format!("{what} {was} -> {is}"));
        }
    };
    differ("address", was.spec.address.to_string(), is.spec.address.to_string());
    differ("weight", was.spec.weight.value().to_string(), is.spec.weight.value().to_string());
    differ("state", was.admin.to_string(), is.admin.to_string());
    differ("source", was.source.to_string(), is.source.to_string());
    parts.join(", ")
}

//! What whoever loads a configuration is to know of what was said at run time, in lines.

use std::collections::BTreeMap;

use crate::{
    config::model::Model,
    runtime::membership::{Conflict, Entry, Membership, Override},
    types::{AdminState, Name},
};

/// What a configuration will meet.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Foreseen {
    /// Where it and what was said at run time disagree.
    pub conflicts: Vec<String>,
    /// Upstreams that have a backend that is ready, and will have none.
    pub unready: Vec<String>,
}

impl Foreseen {
    pub(super) fn of(
        model: &Model,
        conflicts: Vec<(Name, Conflict)>,
        before: &BTreeMap<Name, Membership>,
        after: &BTreeMap<Name, Membership>,
    ) -> Self {
        let ready = |membership: &Membership| membership.entries().iter().any(is_ready);
        let unready = |name: &Name| {
            let lost = after.get(name).filter(|after| !ready(after) && before.get(name).is_some_and(ready))?;
            Some(unready_line(name, lost))
        };
        Self {
            conflicts: conflicts.iter().map(|(upstream, conflict)| conflict_line(upstream, conflict)).collect(),
            unready: model.upstreams.keys().filter_map(unready).collect(),
        }
    }
}

/// Logs where a declaration and what was said at run time disagree.
pub fn tell_conflicts(conflicts: impl IntoIterator<Item = (Name, Conflict)>) {
    for (upstream, conflict) in conflicts {
        log::warn!("{}", conflict_line(&upstream, &conflict));
    }
}

fn conflict_line(upstream: &Name, Conflict { id, field, declared, kept }: &Conflict) -> String {
    if *field == "taken" {
        return format!(
            "upstream {upstream}, backend {id}: its address {declared} is that of backend {kept}, so it is left out"
        );
    }
    format!(
        "upstream {upstream}, backend {id}: {field} is {declared} where it is declared, and {kept} by a change at run time, \
         which holds; forget it with `rrlb backend forget {upstream} {id}`"
    )
}

fn is_ready(entry: &Entry) -> bool {
    entry.admin == AdminState::Ready && entry.spec.weight.value() > 0
}

/// With the first few who are not ready, and why.
fn unready_line(upstream: &Name, membership: &Membership) -> String {
    const FEW: usize = 4;
    let why = |id: &Name, over: &Override, what: &str| match over.note.who.as_str() {
        "" => format!("{id} is {what}"),
        who => format!("{id} is {what} by {who}"),
    };
    let entries = membership.entries();
    let states: BTreeMap<&Name, &Entry> = entries.iter().map(|entry| (&entry.id, entry)).collect();
    let said = membership.overrides().iter().filter_map(|(id, over)| match states.get(id) {
        None => over.removed.then(|| why(id, over, "removed")),
        Some(entry) if over.leaving.is_some() && entry.admin == AdminState::Drain => Some(why(id, over, "leaving")),
        Some(entry) => match entry.admin {
            AdminState::Drain => Some(why(id, over, "drained")),
            AdminState::Maint => Some(why(id, over, "in maintenance")),
            AdminState::Ready => over.spec.is_some().then(|| why(id, over, "given the weight 0")),
        },
    });
    let mut said: Vec<String> = said.collect();
    if said.len() > FEW {
        let more = said.split_off(FEW).len();
        said.push(format!("{more} more"));
    }
    let said = if said.is_empty() { String::new() } else { format!(" ({})", said.join(", ")) };
    format!("upstream {upstream}: no backend is ready after this{said}")
}

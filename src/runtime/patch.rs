//! What the configuration file would have to say so that run-time changes hold without the journal: YAML to copy from.
//! rrlb never edits the file itself.

use std::{collections::BTreeMap, fmt::Write};

use super::{
    journal::Overrides,
    membership::{Declared, Entry, Membership, Note, Override, Spec},
};
use crate::{
    config::model::{self, Model},
    telemetry::access_log::date,
    types::{AdminState, Name, Source},
};

/// The YAML that would make `overrides` permanent in the file that `model` was read from: each upstream with lasting changes,
/// with all its backends as they stand, and comments that say what is other, by whom and why. What no file can say
/// (states, leases, what discovery finds) is named in comments.
pub fn patch(model: &Model, overrides: &Overrides) -> String {
    let mut upstreams = String::new();
    let mut notes = String::new();
    for (name, overrides) in overrides {
        let lasting: BTreeMap<&Name, &Override> =
            overrides.iter().filter_map(|(id, over)| Some((id, over.lasting()?))).collect();
        match model.upstreams.get(name) {
            _ if lasting.is_empty() => {}
            Some(upstream) => write_upstream(upstream, &lasting, &mut upstreams),
            None => {
                let _ = writeln!(
                    notes,
                    "# Upstream {} is not in the file: what was changed about {} of its backends waits for it.",
                    plain(name),
                    lasting.len()
                );
            }
        }
    }
    if upstreams.is_empty() {
        return format!("# No change was made at run time that the file could take over.\n{notes}upstreams: {{}}\n");
    }
    format!(
        "# What was changed at run time, as the file would say it: put each `backends` below in place of the one in the\n\
         # file and reload. A change that the file has taken over is then forgotten by itself.\n\
         {notes}upstreams:\n{upstreams}"
    )
}

fn write_upstream(upstream: &model::Upstream, lasting: &BTreeMap<&Name, &Override>, out: &mut String) {
    let declared = |backend: &model::Backend| Declared {
        id: backend.id.clone(),
        spec: Spec { address: backend.address.clone(), weight: backend.weight },
        source: Source::File,
    };
    let file: Vec<Declared> = upstream.backends.iter().map(declared).collect();
    let before: BTreeMap<&Name, &Spec> = file.iter().map(|declared| (&declared.id, &declared.spec)).collect();
    let kept = lasting.iter().filter_map(|(id, over)| Some(((*id).clone(), kept(over)?))).collect();
    let mut membership = Membership::restored(kept);
    membership.declare_file(file.clone());
    let entries = membership.entries();

    let _ = write!(out, "  {}:\n    backends:", quoted(upstream.name.as_str()));
    out.push_str(if entries.is_empty() { " []\n" } else { "\n" });
    for entry in &entries {
        let over = lasting.get(&entry.id).copied();
        if let (Some(over), Some(what)) = (over, difference(before.get(&entry.id).copied(), entry)) {
            let _ = writeln!(out, "      # {what}{}", by(&over.note));
        }
        if let Some(over) = over.filter(|over| over.admin != AdminState::Ready) {
            let _ = writeln!(
                out,
                "      # {}{}: the file cannot say that, the journal goes on to",
                over.admin,
                by(&over.note)
            );
        }
        let Spec { address, weight } = &entry.spec;
        let (id, address) = (quoted(entry.id.as_str()), quoted(&address.to_string()));
        let _ = writeln!(out, "      - {{ id: {id}, address: {address}, weight: {} }}", weight.value());
    }
    for (id, over) in lasting {
        if entries.iter().any(|entry| entry.id == **id) {
            continue;
        }
        let id = plain(id);
        let declared = before.iter().any(|(known, _)| known.as_str() == id);
        let what = match &over.base {
            _ if over.lease.is_some() => format!("{id} registers itself, and so is left out"),
            Some((_, Source::Dns | Source::List)) => {
                format!("{id} is found by discovery: the file cannot say what was changed about it")
            }
            Some((spec, _)) if over.removed || over.leaving.is_some() => format!("removed: {id} at {}", spec.address),
            None if over.leaving.is_some() => format!("removed: {id}"),
            _ if declared => format!("{id} has the address of another and is left out"),
            _ => format!("{id} is not in the file any more: what was changed about it has no effect"),
        };
        let _ = writeln!(out, "      # {what}{}", by(&over.note));
    }
    if !entries.is_empty() && entries.iter().all(|entry| entry.spec.weight.value() == 0) {
        out.push_str(
            "      # All weights are 0, which the file may not say: give one backend a weight of 1 or more.\n",
        );
    }
}

/// What would hold if nothing went on leaving or had to be renewed.
fn kept(over: &Override) -> Option<Override> {
    match over {
        Override { lease: Some(_), .. } => None,
        Override { leaving: Some(_), base: None, .. } => None,
        Override { leaving: Some(_), base, .. } => {
            Some(Override { removed: true, base: base.clone(), ..Override::default() })
        }
        _ => Some(over.clone()),
    }
}

fn difference(before: Option<&Spec>, entry: &Entry) -> Option<String> {
    let Spec { address, weight } = &entry.spec;
    let Some(before) = before else { return Some("added".into()) };
    let mut parts = Vec::new();
    if before.address != *address {
        parts.push(format!("address {} -> {address}", before.address));
    }
    if before.weight != *weight {
        parts.push(format!("weight {} -> {}", before.weight.value(), weight.value()));
    }
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn by(note: &Note) -> String {
    let mut text = String::new();
    if !note.who.is_empty() {
        let _ = write!(text, ", by {}", note.who.escape_debug());
    }
    if note.at > 0 {
        let (year, month, day) = date(note.at / 86_400);
        let (hour, minute, second) = (note.at / 3600 % 24, note.at / 60 % 60, note.at % 60);
        let _ = write!(text, ", {year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z");
    }
    if !note.why.is_empty() {
        let _ = write!(text, ": {}", note.why.escape_debug());
    }
    text
}

/// A name for a comment.
fn plain(name: &Name) -> String {
    name.as_str().escape_debug().to_string()
}

/// Text in quotes; JSON's are YAML's too. `${` would be a variable.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text.replace("${", "$${")).to_string()
}

#[cfg(test)]
mod tests;

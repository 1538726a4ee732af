//! The journal's text: JSON with a version. Times are kept as what is left of them, since clocks begin anew.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::Overrides;
use crate::{
    config::parse_backend_address,
    runtime::membership::{Lease, Note, Override, Spec},
    types::{AdminState, Name, Source, Weight},
};

const FORMAT: &str = "rrlb-state";
const VERSION: u64 = 1;
const LONGEST_NAME: usize = 4096;

/// What every version begins with.
#[derive(Deserialize)]
struct Head {
    format: String,
    version: u64,
}

#[derive(Deserialize, Serialize)]
struct File {
    format: String,
    version: u64,
    upstreams: BTreeMap<String, BTreeMap<String, Said>>,
}

/// One override. A field that is left out says nothing.
#[derive(Default, Deserialize, Serialize)]
#[serde(default)]
struct Said {
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    admin: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    removed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<Base>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leaving_ms: Option<u64>,
    /// Only among what is handed over, as the next.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    transient: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    beneath: Option<Box<Said>>,
    who: String,
    why: String,
    at: u64,
}

#[derive(Deserialize, Serialize)]
struct Base {
    address: String,
    weight: u16,
    source: String,
}

/// The text that keeps what lasts of `overrides` at `now`.
pub(crate) fn encode(overrides: &Overrides, now: u64) -> Vec<u8> {
    let file = File::of(overrides, |over| Some(Said::new(over.lasting()?, now)));
    let mut text = serde_json::to_vec_pretty(&file).expect("maps with text for keys, and memory to write to");
    text.push(b'\n');
    text
}

/// All of `overrides` at `now`, for the next process: also what does not last.
pub(crate) fn encode_all(overrides: &Overrides, now: u64) -> String {
    let said = |over: &Override| Said {
        transient: over.transient,
        beneath: over.beneath.as_deref().map(|beneath| Box::new(Said::new(beneath, now))),
        ..Said::new(over, now)
    };
    let file = File::of(overrides, |over| Some(said(over)));
    serde_json::to_string(&file).expect("maps with text for keys, and memory to write to")
}

/// Reads the text of a journal at `now`.
///
/// # Errors
/// Where it is wrong, and how.
pub(crate) fn decode(bytes: &[u8], now: u64) -> Result<Overrides, String> {
    let text = std::str::from_utf8(bytes)
        .map_err(|error| format!("it is not UTF-8 text from byte {} on", error.valid_up_to()))?;
    let fault = |error: serde_json::Error| error.to_string();
    let Head { format, version } = serde_json::from_str(text).map_err(fault)?;
    if format != FORMAT {
        return Err(format!("its `format` is {format:.40?}, not {FORMAT:?}"));
    }
    if version != VERSION {
        return Err(format!("its `version` is {version}; this rrlb reads {VERSION}"));
    }
    let File { upstreams, .. } = serde_json::from_str(text).map_err(fault)?;
    let mut overrides = Overrides::new();
    for (upstream, said) in upstreams {
        let read = |(id, said): (String, Said)| {
            let wrong = |what: String| format!("at `upstreams`, {upstream:.80?}, {id:.80?}: {what}");
            let over = said.read(now).map_err(wrong)?;
            Ok((name(&id).map_err(wrong)?, over))
        };
        let said: BTreeMap<Name, Override> = said.into_iter().map(read).collect::<Result<_, String>>()?;
        overrides.insert(name(&upstream).map_err(|what| format!("at `upstreams`: {what}"))?, said);
    }
    Ok(overrides)
}

impl File {
    fn of(overrides: &Overrides, said: impl Fn(&Override) -> Option<Said>) -> Self {
        let said = |(id, over): (&Name, &Override)| Some((id.to_string(), said(over)?));
        let upstreams = overrides.iter().filter_map(|(name, overrides)| {
            let overrides: BTreeMap<String, Said> = overrides.iter().filter_map(said).collect();
            (!overrides.is_empty()).then(|| (name.to_string(), overrides))
        });
        Self { format: FORMAT.into(), version: VERSION, upstreams: upstreams.collect() }
    }
}

impl Said {
    fn new(over: &Override, now: u64) -> Self {
        let Override { spec, admin, removed, base, lease, leaving, note, .. } = over;
        Self {
            address: spec.as_ref().map(|spec| spec.address.to_string()),
            weight: spec.as_ref().map(|spec| spec.weight.value()),
            admin: (*admin != AdminState::Ready).then(|| admin.as_str().to_owned()),
            removed: *removed,
            base: base.as_ref().map(|(spec, source)| Base {
                address: spec.address.to_string(),
                weight: spec.weight.value(),
                source: source.as_str().to_owned(),
            }),
            ttl_ms: lease.map(|lease| lease.ttl),
            leaving_ms: leaving.map(|due| due.saturating_sub(now)),
            transient: false,
            beneath: None,
            who: note.who.clone(),
            why: note.why.clone(),
            at: note.at,
        }
    }

    fn read(self, now: u64) -> Result<Override, String> {
        let spec = match (self.address, self.weight) {
            (Some(text), Some(number)) => {
                Some(Spec { address: parse_backend_address(&text)?, weight: weight(number)? })
            }
            (None, None) => None,
            _ => return Err("`address` and `weight` need each other".into()),
        };
        let base = match self.base {
            None => None,
            Some(Base { address: text, weight: number, source }) => {
                let known = source.parse::<Source>().map_err(|_| format!("`source` cannot be {source:.40?}"))?;
                let spec = Spec { address: parse_backend_address(&text)?, weight: weight(number)? };
                Some((spec, known))
            }
        };
        let word = self.admin.as_deref().unwrap_or(AdminState::Ready.as_str());
        let admin = word.parse().map_err(|_| format!("`admin` cannot be {word:.40?}"))?;
        Ok(Override {
            spec,
            admin,
            removed: self.removed,
            base,
            transient: self.transient,
            beneath: self.beneath.map(|beneath| beneath.read(now).map(Box::new)).transpose()?,
            lease: self.ttl_ms.map(|ttl| Lease { ttl, due: now.saturating_add(ttl) }),
            leaving: self.leaving_ms.map(|left| now.saturating_add(left)),
            note: Note { who: self.who, why: self.why, at: self.at },
        })
    }
}

fn name(text: &str) -> Result<Name, String> {
    if (1..=LONGEST_NAME).contains(&text.len()) && !text.chars().any(char::is_control) {
        Ok(text.into())
    } else {
        Err(format!("{text:.80?} is not a name"))
    }
}

fn weight(number: u16) -> Result<Weight, String> {
    Weight::new(number).ok_or_else(|| format!("a weight of {number} is over {}", Weight::MAX))
}

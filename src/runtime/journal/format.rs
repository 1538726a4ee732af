//! The journal's text: JSON with a version. Times are kept as what is left of them, since clocks begin anew.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize, Serializer};

use super::Overrides;
use crate::{
    config::parse_backend_address,
    runtime::membership::{Lease, Note, Override, Said as Members, Spec},
    types::{AdminState, BackendAddress, Name, Source, Weight},
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

#[derive(Deserialize)]
struct File {
    upstreams: BTreeMap<String, BTreeMap<String, Said>>,
}

/// One override. A field that is left out says nothing. Written by [`Saying`].
#[derive(Default, Deserialize)]
#[serde(default)]
struct Said {
    address: Option<String>,
    weight: Option<u16>,
    admin: Option<String>,
    removed: bool,
    base: Option<Base>,
    ttl_ms: Option<u64>,
    left_ms: Option<u64>,
    leaving_ms: Option<u64>,
    transient: bool,
    beneath: Option<Box<Said>>,
    who: String,
    why: String,
    at: u64,
}

#[derive(Deserialize)]
struct Base {
    address: String,
    weight: u16,
    source: String,
}

/// As [`Said`], borrowed: thousands are written before an answer.
#[derive(Serialize)]
struct Saying<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    address: Option<Shown<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    admin: Option<&'static str>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    removed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    base: Option<BaseSaying<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ttl_ms: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    leaving_ms: Option<u64>,
    /// What is left of `ttl_ms`. Only among what is handed over, as the next two.
    #[serde(skip_serializing_if = "Option::is_none")]
    left_ms: Option<u64>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    transient: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    beneath: Option<Box<Saying<'a>>>,
    who: &'a str,
    why: &'a str,
    at: u64,
}

#[derive(Serialize)]
struct BaseSaying<'a> {
    address: Shown<'a>,
    weight: u16,
    source: &'static str,
}

/// An address as text.
struct Shown<'a>(&'a BackendAddress);

impl Serialize for Shown<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self.0)
    }
}

/// The text of one upstream with an override a line; empty where nothing of it lasts. With whether it is the same at any
/// other time.
pub(super) fn encode_upstream(name: &Name, said: &BTreeMap<Name, Override>, now: u64) -> (Vec<u8>, bool) {
    let mut timeless = true;
    let lasting = said.iter().filter_map(|(id, over)| {
        let over = over.lasting()?;
        timeless &= over.leaving.is_none();
        Some((id, Saying::new(over, now)))
    });
    (upstream(name, lasting), timeless)
}

/// The text that keeps these upstreams, as [`encode_upstream`] makes them, in place of what `text` holds.
pub(super) fn assemble<'a>(text: &mut Vec<u8>, upstreams: impl Iterator<Item = &'a [u8]>) {
    text.clear();
    text.extend_from_slice(format!("{{\"format\":\"{FORMAT}\",\"version\":{VERSION},\"upstreams\":{{").as_bytes());
    for (index, upstream) in upstreams.filter(|upstream| !upstream.is_empty()).enumerate() {
        text.extend_from_slice(if index == 0 { b"\n" } else { b",\n" });
        text.extend_from_slice(upstream);
    }
    text.extend_from_slice(b"\n}}\n");
}

/// The text that keeps what lasts of `overrides` at `now`.
#[cfg(test)]
pub(crate) fn encode(overrides: &Overrides, now: u64) -> Vec<u8> {
    let upstreams: Vec<Vec<u8>> = overrides.iter().map(|(name, said)| encode_upstream(name, said, now).0).collect();
    let mut text = Vec::new();
    assemble(&mut text, upstreams.iter().map(Vec::as_slice));
    text
}

/// All of `overrides` at `now`, for the next process: also what does not last.
pub(crate) fn encode_all<'a>(overrides: impl Iterator<Item = (&'a Name, &'a Members)>, now: u64) -> String {
    let left = |over: &Override| over.lease.map(|lease| lease.due.saturating_sub(now));
    let beneath = |over: &'a Override| Box::new(Saying { left_ms: left(over), ..Saying::new(over, now) });
    let saying = |over: &'a Override| Saying {
        left_ms: left(over),
        transient: over.transient,
        beneath: over.beneath.as_deref().map(beneath),
        ..Saying::new(over, now)
    };
    let one = |(name, said): (&Name, &'a Members)| upstream(name, said.iter().map(|(id, over)| (id, saying(over))));
    let upstreams: Vec<Vec<u8>> = overrides.map(one).collect();
    let mut text = Vec::new();
    assemble(&mut text, upstreams.iter().map(Vec::as_slice));
    String::from_utf8(text).expect("JSON is UTF-8")
}

fn upstream<'a>(name: &Name, said: impl Iterator<Item = (&'a Name, Saying<'a>)>) -> Vec<u8> {
    let mut text = Vec::new();
    for (id, saying) in said {
        if text.is_empty() {
            json(&mut text, name.as_str());
            text.extend_from_slice(b":{\n");
        } else {
            text.extend_from_slice(b",\n");
        }
        json(&mut text, id.as_str());
        text.push(b':');
        json(&mut text, &saying);
    }
    if !text.is_empty() {
        text.extend_from_slice(b"\n}");
    }
    text
}

fn json(text: &mut Vec<u8>, value: &(impl Serialize + ?Sized)) {
    serde_json::to_writer(text, value).expect("texts and numbers, and memory to write to");
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
    let File { upstreams } = serde_json::from_str(text).map_err(fault)?;
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

impl<'a> Saying<'a> {
    fn new(over: &'a Override, now: u64) -> Self {
        let Override { spec, admin, removed, base, lease, leaving, note, .. } = over;
        Self {
            address: spec.as_ref().map(|spec| Shown(&spec.address)),
            weight: spec.as_ref().map(|spec| spec.weight.value()),
            admin: (*admin != AdminState::Ready).then(|| admin.as_str()),
            removed: *removed,
            base: base.as_ref().map(|(spec, source)| BaseSaying {
                address: Shown(&spec.address),
                weight: spec.weight.value(),
                source: source.as_str(),
            }),
            ttl_ms: lease.map(|lease| lease.ttl),
            left_ms: None,
            leaving_ms: leaving.map(|due| due.saturating_sub(now)),
            transient: false,
            beneath: None,
            who: &note.who,
            why: &note.why,
            at: note.at,
        }
    }
}

impl Said {
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
            // Whoever renews one that was on the disk has the whole of it for that: nobody knows how long nothing ran.
            lease: self.ttl_ms.map(|ttl| Lease { ttl, due: now.saturating_add(self.left_ms.unwrap_or(ttl).min(ttl)) }),
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

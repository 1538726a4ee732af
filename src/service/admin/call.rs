//! A request as a route's function gets it, and what it answers: everything is read and checked by then but what the
//! function alone can know.

use std::{collections::BTreeSet, sync::Arc, time::SystemTime};

use http::{HeaderMap, StatusCode, header};
use serde::Serialize;
use tokio::sync::{Semaphore, watch};

use super::{
    auth::LiveTokens,
    json::Json,
    operator::Operator,
    problem::{Kind, Problem, etag},
    query::{Query, REASON},
};
use crate::{
    runtime::{membership::Note, store::Store},
    telemetry::metrics::Metrics,
    types::Name,
};

/// What all requests share.
pub(super) struct Shared {
    pub(super) store: Arc<Store>,
    pub(super) operator: Arc<dyn Operator>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) answering: super::operator::Answering,
    /// Of the TCP listener; `None` where there is none.
    pub(super) tokens: Option<LiveTokens>,
    /// Places for readers of events.
    pub(super) streams: Arc<Semaphore>,
    pub(super) limits: super::Limits,
    pub(super) closing: watch::Receiver<bool>,
    /// The second of the last warning about a request that was denied.
    pub(super) warned: std::sync::atomic::AtomicU64,
}

/// A request.
pub(super) struct Call {
    /// `uid 1000`, `token`, `read-token`
    pub(super) who: String,
    /// As [`super::auth::Caller::is_owner`].
    pub(super) is_owner: bool,
    /// What stands for `{…}` in the route's path, decoded.
    pub(super) path: Vec<(&'static str, String)>,
    pub(super) query: Query,
    pub(super) headers: HeaderMap,
    /// `None` where there is none.
    pub(super) body: Option<Json>,
}

impl Call {
    /// What stands for `{name}` in the route's path.
    pub(super) fn name(&self, name: &str) -> Name {
        self.path
            .iter()
            .find(|(other, _)| *other == name)
            .map_or_else(|| Name::from(""), |(_, text)| text.as_str().into())
    }

    /// Who does it, why and when.
    pub(super) fn note(&self) -> Note {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let why = self.query.text(&REASON).unwrap_or_default();
        Note { who: self.who.clone(), why: why.to_owned(), at: now.as_secs() }
    }

    /// The body.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn body(&self) -> Result<&Json, Problem> {
        self.body.as_ref().ok_or_else(|| Problem::new(Kind::BadJson, "the body is missing"))
    }

    /// Whether `If-None-Match` (RFC 9110 §13.1.2) asks that there be none yet.
    pub(super) fn only_new(&self) -> bool {
        self.headers.get_all(header::IF_NONE_MATCH).iter().any(|value| value.as_bytes().trim_ascii() == b"*")
    }

    /// What `If-None-Match` (RFC 9110 §13.1.2) says is known.
    pub(super) fn known(&self) -> Known {
        let mut known = Known::OneOf(BTreeSet::new());
        for value in self.headers.get_all(header::IF_NONE_MATCH) {
            known = match (known, value.as_bytes().trim_ascii()) {
                (Known::Any, _) | (_, b"*") => Known::Any,
                (Known::OneOf(mut versions), list) => {
                    versions.extend(opaque_tags(list).filter_map(version));
                    Known::OneOf(versions)
                }
            };
        }
        known
    }

    /// What `If-Match` (RFC 9110 §13.1.1) asks for.
    ///
    /// # Errors
    /// It is no list of entity tags.
    pub(super) fn if_match(&self) -> Result<IfMatch, Problem> {
        let mut versions = None;
        for value in self.headers.get_all(header::IF_MATCH) {
            let wrong = || {
                Problem::new(Kind::BadRequest, "`If-Match` is no list of entity tags")
                    .hint("send the ETag of the upstream as it was given, with its quotes, or *")
            };
            for tag in value.to_str().map_err(|_| wrong())?.split(',').map(str::trim).filter(|tag| !tag.is_empty()) {
                if tag == "*" {
                    return Ok(IfMatch::Any);
                }
                // A weak tag matches nothing here; one that we never gave neither.
                let strong = tag.strip_prefix("W/").unwrap_or(tag);
                let inner = strong.strip_prefix('"').and_then(|rest| rest.strip_suffix('"')).ok_or_else(wrong)?;
                let versions = versions.get_or_insert_with(BTreeSet::new);
                if strong == tag && inner.len() == 16 {
                    versions.extend(u64::from_str_radix(inner, 16).ok().filter(|version| etag(*version) == tag));
                }
            }
        }
        Ok(versions.map_or(IfMatch::Any, IfMatch::OneOf))
    }
}

/// Which versions of an upstream a change is meant for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum IfMatch {
    /// Any.
    Any,
    /// One of these; none matches where there is none.
    OneOf(BTreeSet<u64>),
}

/// Which versions of an upstream the caller has, and does not need again.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Known {
    /// Any there is.
    Any,
    /// These, perhaps none.
    OneOf(BTreeSet<u64>),
}

impl Known {
    /// Whether a version is known.
    pub(super) fn has(&self, version: u64) -> bool {
        match self {
            Self::Any => true,
            Self::OneOf(versions) => versions.contains(&version),
        }
    }
}

/// The texts between the quotes of a list of entity tags, weak and strong ones alike; ends before what is none. Such a text
/// may have commas in it.
fn opaque_tags(list: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = list;
    std::iter::from_fn(move || {
        let start = rest.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b','))?;
        let tag = &rest[start..];
        let inner = tag.strip_prefix(b"W/").unwrap_or(tag).strip_prefix(b"\"")?;
        let end = inner.iter().position(|byte| *byte == b'"')?;
        rest = &inner[end + 1..];
        Some(&inner[..end])
    })
}

/// The version behind the text of an entity tag that we gave.
fn version(inner: &[u8]) -> Option<u64> {
    let inner = std::str::from_utf8(inner).ok()?;
    let version = u64::from_str_radix(inner, 16).ok()?;
    (etag(version).trim_matches('"') == inner).then_some(version)
}

/// What a route answers.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: StatusCode,
    pub(super) content: Content,
    /// Of the upstream, in `ETag`.
    pub(super) version: Option<u64>,
}

/// A body.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    Empty,
    Json(Vec<u8>),
    Yaml(String),
}

impl Answer {
    /// 200 with a value.
    ///
    /// # Errors
    /// It cannot be written as JSON, which would be a fault of ours.
    pub(super) fn json(value: &impl Serialize) -> Result<Self, Problem> {
        let mut text = serde_json::to_vec(value).map_err(|error| Problem::new(Kind::Internal, error.to_string()))?;
        text.push(b'\n');
        Ok(Self { status: StatusCode::OK, content: Content::Json(text), version: None })
    }

    /// A status alone.
    pub(super) fn empty(status: StatusCode) -> Self {
        Self { status, content: Content::Empty, version: None }
    }

    /// 200 with a text.
    pub(super) fn yaml(text: String) -> Self {
        Self { status: StatusCode::OK, content: Content::Yaml(text), version: None }
    }

    /// With another status.
    pub(super) fn status(self, status: StatusCode) -> Self {
        Self { status, ..self }
    }

    /// With the version of the upstream.
    pub(super) fn version(self, version: u64) -> Self {
        Self { version: Some(version), ..self }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn call(name: header::HeaderName, values: &[&'static str]) -> Call {
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(&name, HeaderValue::from_static(value));
        }
        Call { who: String::new(), is_owner: false, path: Vec::new(), query: Query::default(), headers, body: None }
    }

    fn if_match(values: &[&'static str]) -> Result<IfMatch, Problem> {
        call(header::IF_MATCH, values).if_match()
    }

    #[test]
    fn what_is_known_is_compared_weakly() {
        let known = |values: &[&'static str]| call(header::IF_NONE_MATCH, values).known();
        let of = |versions: &[u64]| Known::OneOf(versions.iter().copied().collect());
        assert_eq!(known(&[]), of(&[]));
        assert_eq!(known(&["*"]), Known::Any);
        assert_eq!(known(&["\"x\"", " * "]), Known::Any);
        assert_eq!(known(&["\"00000000000000ff\""]), of(&[255]));
        assert_eq!(
            known(&["W/\"00000000000000ff\" , ,\"0000000000000001\"", "\"0000000000000002\""]),
            of(&[1, 2, 255])
        );
        assert_eq!(known(&["\"a, b\",\"00000000000000ff\""]), of(&[255]), "a comma in a tag is no end of it");
        for other in
            ["w/\"00000000000000ff\"", "00000000000000ff", "\"00000000000000FF\"", "\"ff\"", "\"00000000000000ff"]
        {
            assert_eq!(known(&[other]), of(&[]), "{other}");
        }
    }

    #[test]
    fn entity_tags_are_compared_strongly() {
        let of = |versions: &[u64]| IfMatch::OneOf(versions.iter().copied().collect());
        assert_eq!(if_match(&[]).ok(), Some(IfMatch::Any));
        assert_eq!(if_match(&["*"]).ok(), Some(IfMatch::Any));
        assert_eq!(if_match(&["\"00000000000000ff\", \"0000000000000001\""]).ok(), Some(of(&[1, 255])));
        assert_eq!(if_match(&["\"00000000000000ff\"", "\"0000000000000001\""]).ok(), Some(of(&[1, 255])));
        for other in ["W/\"00000000000000ff\"", "\"ff\"", "\"00000000000000FF\"", "\"+0000000000000ff\"", "\"\""] {
            assert_eq!(if_match(&[other]).ok(), Some(of(&[])), "{other}");
        }
        for bad in ["ff", "\"ff", "00000000000000ff"] {
            assert!(if_match(&[bad]).is_err(), "{bad}");
        }
    }
}

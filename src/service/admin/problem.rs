//! Why a request was not done, as `application/problem+json` (RFC 9457). The one table from a kind of problem to its
//! status, its word and its title.

use http::StatusCode;
use serde::{Serialize, Serializer};

use super::operator::OperatorError;
use crate::{
    config,
    runtime::{journal::SaveError, membership::Refusal, store::ChangeError},
};

/// Builds the enum and its table from one list, so that none can be forgotten.
macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident $status:ident $code:literal $title:literal;)*) => {
        /// What kind of problem it is.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub(super) enum Kind {
            $($(#[$doc])* $variant,)*
        }

        impl Kind {
            /// Every kind.
            #[cfg(test)]
            pub(super) const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Of the answer.
            pub(super) const fn status(self) -> StatusCode {
                match self {
                    $(Self::$variant => StatusCode::$status,)*
                }
            }

            /// The word in `type`: stable.
            pub(super) const fn code(self) -> &'static str {
                match self {
                    $(Self::$variant => $code,)*
                }
            }

            const fn title(self) -> &'static str {
                match self {
                    $(Self::$variant => $title,)*
                }
            }
        }
    };
}

kinds! {
    /// The body is not JSON.
    BadJson BAD_REQUEST "bad-json" "The body is not JSON";
    /// The query is not one that this operation takes.
    BadQuery BAD_REQUEST "bad-query" "The query is wrong";
    /// Something else about the request.
    BadRequest BAD_REQUEST "bad-request" "The request is wrong";
    /// A successor is about to answer; soon it does.
    BeingReplaced SERVICE_UNAVAILABLE "being-replaced" "A successor takes over";
    /// Another is under way.
    Busy CONFLICT "busy" "Another one is under way";
    /// From a web page.
    CrossOrigin FORBIDDEN "cross-origin" "Not for web pages";
    /// The address is another backend's.
    DuplicateAddress CONFLICT "duplicate-address" "The address is taken";
    /// There is one, and the sender wants none to be.
    Exists PRECONDITION_FAILED "exists" "There is one already";
    /// The process tried and did not succeed.
    Failed CONFLICT "failed" "It did not succeed";
    /// A fault of rrlb.
    Internal INTERNAL_SERVER_ERROR "internal" "A fault of rrlb";
    /// The configuration file is not valid.
    InvalidConfiguration UNPROCESSABLE_ENTITY "invalid-configuration" "The configuration is not valid";
    /// A value that is not possible.
    InvalidValue UNPROCESSABLE_ENTITY "invalid-value" "A value is wrong";
    /// Nobody would be left.
    LastReady CONFLICT "last-ready" "The last backend that is ready";
    /// Not a body in JSON.
    MediaType UNSUPPORTED_MEDIA_TYPE "media-type" "The body has to be JSON";
    /// There is such a path, but not for this method.
    MethodNotAllowed METHOD_NOT_ALLOWED "method-not-allowed" "The method is not for this path";
    /// The disk is full.
    NoSpace INSUFFICIENT_STORAGE "no-space" "No space left";
    /// Not for whoever asks, or not from there.
    NotAllowed FORBIDDEN "not-allowed" "Not allowed";
    /// No such path, upstream or backend.
    NotFound NOT_FOUND "not-found" "There is no such thing";
    /// The state file cannot be written.
    NotKept SERVICE_UNAVAILABLE "not-kept" "The change could not be kept";
    /// A lease on what others declare.
    NotLeasable CONFLICT "not-leasable" "Not a lease's to hold";
    /// No reload waits.
    NothingToConfirm CONFLICT "nothing-to-confirm" "Nothing to confirm";
    /// A read token.
    ReadOnly FORBIDDEN "read-only" "The token may only read";
    /// The upstream is not as the sender thought.
    Stale PRECONDITION_FAILED "stale" "The upstream has changed";
    /// The body did not come in time.
    TooSlow REQUEST_TIMEOUT "too-slow" "The body did not come in time";
    /// The body is too large.
    TooLarge PAYLOAD_TOO_LARGE "too-large" "The body is too large";
    /// A bound is reached.
    TooMany CONFLICT "too-many" "A bound is reached";
    /// Too many readers of events.
    TooManyStreams SERVICE_UNAVAILABLE "too-many-streams" "Too many read events";
    /// No token, or a wrong one.
    Unauthorized UNAUTHORIZED "unauthorized" "A token is needed";
}

/// Why a request was not done.
#[derive(Debug, Serialize)]
pub(super) struct Problem {
    /// Its status, word and title.
    #[serde(flatten)]
    pub(super) kind: Kind,
    /// A sentence about this very request.
    pub(super) detail: String,
    /// The parameter or field that is wrong: `ttl`, `backends[2].address`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) field: Option<Box<str>>,
    /// What would be right.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) hint: Option<Box<str>>,
    /// What `check` says, for people.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) report: Option<Box<str>>,
    /// What `check` says, for programs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) problems: Option<Box<serde_json::Value>>,
    /// The upstream's `ETag` now.
    #[serde(rename = "etag", skip_serializing_if = "Option::is_none", serialize_with = "as_etag")]
    pub(super) version: Option<u64>,
    /// Methods that the path is for.
    #[serde(skip)]
    pub(super) allow: Option<Box<str>>,
}

impl Serialize for Kind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("type", &format_args!("about:blank#{}", self.code()))?;
        map.serialize_entry("title", self.title())?;
        map.serialize_entry("status", &self.status().as_u16())?;
        map.end()
    }
}

impl Problem {
    /// A problem of this kind.
    pub(super) fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self {
            kind,
            detail: detail.into(),
            field: None,
            hint: None,
            report: None,
            problems: None,
            version: None,
            allow: None,
        }
    }

    /// The value of a field, or of a parameter that the operation has, is not possible.
    pub(super) fn value(field: impl Into<Box<str>>, detail: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..Self::new(Kind::InvalidValue, detail) }
    }

    /// There is no field or parameter of this name.
    pub(super) fn unknown(kind: Kind, what: &str, field: String, name: &str, known: &[&str]) -> Self {
        let detail = format!("there is no {what} `{}` here", shown(name));
        let all = match known {
            [] => format!("no {what} is taken here"),
            known => format!("known here: {}", known.join(", ")),
        };
        let near = config::did_you_mean(name, known.iter().copied());
        let hint = near.map_or(all.clone(), |near| format!("{near} {all}"));
        Self { field: Some(field.into()), hint: Some(hint.into()), ..Self::new(kind, detail) }
    }

    /// With what would be right.
    pub(super) fn hint(self, hint: impl Into<Box<str>>) -> Self {
        Self { hint: Some(hint.into()), ..self }
    }

    /// Whether a change that was meant to be was not made, as things are or by a fault. Slips in the request are not
    /// among them: whoever made them sees the answer.
    pub(super) fn is_failed_change(&self) -> bool {
        let status = self.kind.status();
        status == StatusCode::CONFLICT || status.is_server_error() || self.kind == Kind::InvalidConfiguration
    }
}

/// As in `ETag` and `If-Match`.
pub(super) fn etag(version: u64) -> String {
    format!("\"{version:016x}\"")
}

fn as_etag<S: Serializer>(version: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
    match version {
        Some(version) => serializer.serialize_some(&etag(*version)),
        None => serializer.serialize_none(),
    }
}

/// A text from outside in a sentence: not endless, and nothing that moves a terminal.
pub(super) fn shown(text: &str) -> String {
    let plain = text.chars().take(64).map(|c| if c.is_control() { char::REPLACEMENT_CHARACTER } else { c });
    let more = if text.chars().nth(64).is_some() { "…" } else { "" };
    plain.chain(more.chars()).collect()
}

impl From<ChangeError> for Problem {
    fn from(error: ChangeError) -> Self {
        let detail = error.to_string();
        match error {
            ChangeError::NoUpstream(_) => Self::new(Kind::NotFound, detail).hint("GET /v1/upstreams lists them"),
            ChangeError::NotKept(SaveError::NoSpace(_)) => {
                Self::new(Kind::NoSpace, format!("{detail}; nothing was changed"))
            }
            ChangeError::NotKept(SaveError::Write(..)) => {
                Self::new(Kind::NotKept, format!("{detail}; nothing was changed"))
                    .hint("make it writable, or do not keep it over a restart (persist=false)")
            }
            ChangeError::NotKept(SaveError::Unread(_)) => {
                Self::new(Kind::NotKept, format!("{detail}; nothing was changed"))
            }
            // Which of the two it was says nothing to who asks.
            ChangeError::GivenUp | ChangeError::NotKept(SaveError::Sealed(_)) => {
                Self::new(Kind::BeingReplaced, format!("{}; nothing was changed", ChangeError::GivenUp))
                    .hint("repeat it in a second: a new process answers then")
            }
            ChangeError::Refused(refusal) => refusal.into(),
            ChangeError::Stale { current } => Self { version: Some(current), ..Self::new(Kind::Stale, detail) }
                .hint("read the upstream again, and send its ETag in If-Match"),
            ChangeError::SniMissing(_) => {
                Self::value("address", detail).hint("write a host name, or `sni` in the upstream's `tls`")
            }
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let detail = refusal.to_string();
        match refusal {
            Refusal::DuplicateAddress { .. } => {
                Self { field: Some("address".into()), ..Self::new(Kind::DuplicateAddress, detail) }
                    .hint("take another address, or remove or change that backend first")
            }
            Refusal::Exists(_) => Self::new(Kind::Exists, detail).hint("leave If-None-Match out to change it"),
            Refusal::LastReady(_) => Self::new(Kind::LastReady, detail)
                .hint("make another one ready first, or repeat it with force=true (rrlb: --force); requests get 503 then"),
            Refusal::OthersEjected { .. } => Self::new(Kind::LastReady, detail).hint(
                "wait until one is back, or repeat it with force=true (rrlb: --force); the ejected get the requests then",
            ),
            Refusal::NotLeasable { .. } => Self { field: Some("ttl".into()), ..Self::new(Kind::NotLeasable, detail) }
                .hint("leave ttl out, or register under another id"),
            Refusal::Leaving { other, within, .. } => {
                let seconds = within.div_ceil(1000).max(1);
                let hint =
                    format!("it is gone within {seconds} s; repeat it then, or remove {other} with drain=0s first");
                Self { field: Some("address".into()), ..Self::new(Kind::DuplicateAddress, detail) }.hint(hint)
            }
            Refusal::NotFound(_) | Refusal::NoOverride(_) => Self::new(Kind::NotFound, detail),
            Refusal::TooMany => Self::new(Kind::TooMany, detail),
        }
    }
}

impl From<OperatorError> for Problem {
    fn from(error: OperatorError) -> Self {
        let detail = error.to_string();
        match error {
            OperatorError::Busy(_) => Self::new(Kind::Busy, detail).hint("wait until it is done"),
            OperatorError::Unconfirmed => Self::new(Kind::Busy, detail),
            OperatorError::Invalid { human, json } => Self {
                report: Some(human.into()),
                problems: serde_json::from_str(&json).ok().map(Box::new),
                ..Self::new(Kind::InvalidConfiguration, detail)
            },
            OperatorError::NothingToConfirm | OperatorError::TakenBack => Self::new(Kind::NothingToConfirm, detail),
            OperatorError::Reload(_) | OperatorError::Upgrade(_) => Self::new(Kind::Failed, detail),
        }
    }
}

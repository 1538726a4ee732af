//! The API's JSON, as far as it is printed for people. What another version leaves out is empty here, what it adds is
//! passed over.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::Value;

/// `GET /v1/status`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) version: String,
    pub(super) pid: u64,
    pub(super) started: u64,
    pub(super) state: String,
    pub(super) not_ready: String,
    pub(super) predecessor_draining: bool,
    pub(super) workers: u64,
    pub(super) connections: u64,
    pub(super) config: ConfigStatus,
    pub(super) listeners: Vec<String>,
}

/// The configuration in [`Status`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ConfigStatus {
    pub(super) file: String,
    pub(super) generation: u64,
    pub(super) loaded: u64,
    pub(super) confirm_within: Option<u64>,
    pub(super) runs: String,
    pub(super) last_error: String,
}

/// `GET /v1/upstreams`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Upstreams {
    pub(super) upstreams: Vec<Upstream>,
}

/// An upstream.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Upstream {
    pub(super) name: String,
    pub(super) balance: String,
    pub(super) backends: Vec<Backend>,
    pub(super) discover: Option<String>,
    pub(super) waiting: Vec<String>,
}

/// A backend.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Backend {
    pub(super) id: String,
    pub(super) address: String,
    pub(super) target: Option<String>,
    pub(super) weight: u64,
    pub(super) admin: String,
    pub(super) health: String,
    pub(super) effective: String,
    pub(super) source: String,
    pub(super) in_flight: u64,
    pub(super) requests: u64,
    pub(super) slow_start: Option<SlowStart>,
    pub(super) lease_ttl_seconds: Option<f64>,
    pub(super) lease_expires_in: Option<f64>,
    pub(super) leaving_in: Option<f64>,
    pub(super) ejected: Option<Ejected>,
    pub(super) changed: Option<Changed>,
}

/// Why a backend is out for a while.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Ejected {
    pub(super) returns_in: f64,
    pub(super) times: u64,
    pub(super) why: String,
}

/// A share that grows.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct SlowStart {
    pub(super) percent: u64,
    pub(super) remaining_seconds: f64,
}

/// Who changed a backend last.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Changed {
    pub(super) who: String,
    pub(super) why: String,
}

/// `POST /v1/config/reload`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ReloadReport {
    pub(super) generation: u64,
    pub(super) changes: Vec<Change>,
    pub(super) warnings: String,
    pub(super) confirm_within: Option<u64>,
}

/// One difference.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Change {
    pub(super) sign: String,
    pub(super) path: String,
    pub(super) detail: String,
    pub(super) needs_upgrade: bool,
}

/// `POST /v1/upgrade`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Upgraded {
    pub(super) pid: u64,
}

/// An event.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Event {
    pub(super) id: u64,
    pub(super) time: Value,
    pub(super) kind: String,
    pub(super) upstream: String,
    pub(super) backend: String,
    pub(super) who: String,
    pub(super) what: String,
    pub(super) why: String,
}

/// `GET /v1/errors`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Errors {
    pub(super) errors: Vec<Failed>,
}

/// A request that failed, or a change that was refused.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Failed {
    pub(super) time: Value,
    pub(super) kind: String,
    pub(super) reason: String,
    pub(super) upstream: String,
    pub(super) backend: String,
    // Of a request.
    pub(super) status: u16,
    pub(super) method: String,
    pub(super) host: String,
    pub(super) path: String,
    pub(super) request_id: String,
    // Of a change.
    pub(super) who: String,
    pub(super) what: String,
    pub(super) detail: String,
}

/// `GET /v1/state`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct State {
    pub(super) upstreams: BTreeMap<String, BTreeMap<String, Override>>,
}

/// What was said at run time about a backend.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Override {
    pub(super) address: Option<String>,
    pub(super) weight: Option<u64>,
    pub(super) admin: Option<String>,
    pub(super) removed: bool,
    pub(super) dormant: bool,
    pub(super) taken_by: Option<String>,
    pub(super) persist: Option<bool>,
    pub(super) lease_ttl_seconds: Option<f64>,
    pub(super) leaving_in: Option<f64>,
    pub(super) who: String,
    pub(super) why: String,
    /// Seconds since 1970.
    pub(super) at: u64,
    pub(super) base: Option<Base>,
}

/// What is declared in its place.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Base {
    pub(super) address: Option<String>,
    pub(super) weight: Option<u64>,
}

/// `POST /v1/route`.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Explained {
    pub(super) listeners: Vec<String>,
    pub(super) route: Option<ExplainedRoute>,
    pub(super) action: String,
    pub(super) upstreams: Vec<ExplainedUpstream>,
    pub(super) detail: Option<String>,
}

/// The route in [`Explained`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ExplainedRoute {
    pub(super) name: Option<String>,
    pub(super) index: Option<u64>,
}

/// An upstream in [`Explained`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ExplainedUpstream {
    pub(super) name: String,
    /// In percent.
    pub(super) share: Option<f64>,
    pub(super) backends: Vec<ExplainedBackend>,
    pub(super) chosen: Option<String>,
}

/// A backend in [`Explained`].
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct ExplainedBackend {
    pub(super) id: String,
    pub(super) address: String,
    pub(super) eligible: bool,
    pub(super) why: Option<String>,
    pub(super) last_resort: Option<String>,
}

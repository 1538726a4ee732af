//! What a worker serves by: the snapshot, the proxies that fit it, and the access log. Swapped as a whole, and each request
//! takes it once and keeps it: the proxy was chosen by the very snapshot that the request is then routed by, and its line
//! goes to the log of the configuration it began with.

use std::{fmt, ops::Deref, sync::Arc};

use pingora_proxy::HttpProxy;

use super::{App, ctx::RequestStart, profile::Proxies};
use crate::{config::model::LogFormat, runtime::snapshot::Snapshot, telemetry::log_writer::LogHandle};

/// A worker's own handle of what runs: counting its uses touches no other worker's memory.
pub struct Current {
    snapshot: Arc<Snapshot>,
    proxies: Arc<Proxies>,
    log: Option<Log>,
}

/// A worker's way to the access log, and the form of a line.
#[derive(Clone, Debug)]
pub struct Log {
    /// Where lines go.
    pub handle: Arc<LogHandle>,
    /// How they look.
    pub format: LogFormat,
}

impl Current {
    /// `proxies` must have one for every TLS profile of `snapshot`; `log` is `None` where no access log is kept.
    pub fn new(snapshot: Arc<Snapshot>, proxies: Arc<Proxies>, log: Option<Log>) -> Self {
        Self { snapshot, proxies, log }
    }

    /// Of a worker with Pingora's proxy as it comes, without a log.
    #[cfg(any(test, fuzzing))]
    pub fn alone(snapshot: Arc<Snapshot>, kit: &Arc<super::Kit>) -> Self {
        let app = App::new(kit.clone(), crate::runtime::peer::TlsProfile::default());
        let proxy = Arc::new(HttpProxy::new(app, Arc::default()));
        Self::new(snapshot, Arc::new(Proxies::new(proxy, std::collections::HashMap::new())), None)
    }

    /// The same tools for another list of backends.
    pub fn with(&self, snapshot: Arc<Snapshot>) -> Self {
        Self { snapshot, proxies: self.proxies.clone(), log: self.log.clone() }
    }

    /// The proxies, one for each TLS profile.
    pub fn proxies(&self) -> &Arc<Proxies> {
        &self.proxies
    }

    /// The access log.
    pub fn log(&self) -> Option<&Log> {
        self.log.as_ref()
    }

    /// The proxy for an HTTP/1 request with this head, which the front has parsed before.
    pub fn for_head(&self, head: &[u8], start: &RequestStart) -> &Arc<HttpProxy<App>> {
        self.proxies.for_head(&self.snapshot, head, start)
    }

    /// The proxy for an HTTP/2 request.
    pub fn for_request(&self, request: &http::request::Parts, start: &RequestStart) -> &Arc<HttpProxy<App>> {
        self.proxies.for_request(&self.snapshot, request, start)
    }
}

impl Deref for Current {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.snapshot
    }
}

impl fmt::Debug for Current {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Current").field("log", &self.log).finish_non_exhaustive()
    }
}

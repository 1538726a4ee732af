//! Who may use a route, how often, how much at once, and who says so.

use std::{path::PathBuf, sync::Arc, time::Duration};

use http::{HeaderName, HeaderValue, Uri};
use rustls::ClientConfig;

use super::TrustStore;
use crate::policy::{access::Access, limit_key::LimitKey, password::Users, rate::Rate};

/// What a request must pass before a route does anything with it, in this order. By default nothing.
#[derive(Clone, Debug, Default)]
pub struct Guards {
    /// By the client's address.
    pub access: Option<Arc<Access>>,
    /// How often; a request must keep within all of them.
    pub rate_limits: Vec<RateLimit>,
    /// How many at once.
    pub concurrency: Option<ConcurrencyLimit>,
    /// By user and password.
    pub basic_auth: Option<BasicAuth>,
    /// By another service's word.
    pub forward_auth: Option<ForwardAuth>,
}

/// How often requests of one key may come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RateLimit {
    /// By what requests are counted together; default the client's address.
    pub key: LimitKey,
    /// How often, and how many at once; `burst` is the rate's count by default.
    pub rate: Rate,
}

/// How many requests of one key may be in flight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConcurrencyLimit {
    /// By what requests are counted together; default the client's address.
    pub key: LimitKey,
    /// 1 to 1,000,000.
    pub limit: u32,
}

/// Basic authentication (RFC 7617) by an htpasswd file.
#[derive(Clone, Debug)]
pub struct BasicAuth {
    /// The file, for messages and the effective configuration.
    pub path: PathBuf,
    /// What it holds, to tell whether it has changed.
    pub content: Secret,
    /// Its users; at least one.
    pub users: Arc<Users>,
    /// What people are asked for; default `restricted`. No quote and no backslash.
    pub realm: String,
    /// Whether `Authorization` goes on to the backend; default false.
    pub keep: bool,
}

/// Bytes that are never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(pub Arc<[u8]>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("(not shown)")
    }
}

/// A service that is asked about each request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForwardAuth {
    /// What is asked: `http://` or `https://`, with a host.
    pub url: Uri,
    /// `Host` of the question.
    pub host: HeaderValue,
    /// For the whole question; default 2 s.
    pub timeout: Duration,
    /// Fields of its answer that the backend gets, in place of any that the client sent.
    pub copy_headers: Vec<HeaderName>,
    /// Of `https://`: how the service shows who it is.
    pub tls: Option<ServiceTls>,
}

/// How a service that is asked over TLS shows who it is.
#[derive(Clone, Debug)]
pub struct ServiceTls {
    /// Whom it must have its certificate from; `None` is the system's roots, the default.
    pub ca: Option<TrustStore>,
    /// Made of that.
    pub config: Arc<ClientConfig>,
}

impl PartialEq for ServiceTls {
    fn eq(&self, other: &Self) -> bool {
        let of = |tls: &Self| tls.ca.as_ref().map(|ca| (ca.path.clone(), ca.certificates.clone()));
        of(self) == of(other)
    }
}

impl Eq for ServiceTls {}

impl Guards {
    /// Whether everything passes.
    pub fn is_empty(&self) -> bool {
        let Self { access, rate_limits, concurrency, basic_auth, forward_auth } = self;
        access.is_none()
            && rate_limits.is_empty()
            && concurrency.is_none()
            && basic_auth.is_none()
            && forward_auth.is_none()
    }
}

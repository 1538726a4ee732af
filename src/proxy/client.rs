//! What TLS says of a client, for its requests and their backends.

use http::HeaderValue;
use rustls::ProtocolVersion;

use crate::{config::model::Alpn, policy::rewrite::ClientCert};

/// What is known of a client's TLS session.
#[derive(Clone, Copy, Debug)]
pub struct TlsInfo {
    /// The version.
    pub version: Option<ProtocolVersion>,
    /// The protocol agreed on; `None` where the client offered none.
    pub alpn: Option<Alpn>,
}

/// What came of asking a client for its certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verified {
    /// It showed none.
    None,
    /// It was not asked.
    NotAsked,
    /// It showed a good one.
    Success(Box<ClientCertificate>),
}

impl Verified {
    /// What is said of it, to backends and to who decides by it.
    pub(super) fn told(&self) -> ClientCert<'_> {
        match self {
            Self::None => ClientCert::None,
            Self::NotAsked => ClientCert::NotAsked,
            Self::Success(shown) => ClientCert::Success { subject: &shown.subject, fingerprint: &shown.fingerprint },
        }
    }
}

/// What backends are told of a client's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Its subject, as in RFC 4514.
    pub subject: HeaderValue,
    /// The SHA-256 of the whole, in hexadecimal digits.
    pub fingerprint: HeaderValue,
}

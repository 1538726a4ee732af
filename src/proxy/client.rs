//! What TLS says of a client, for its requests and their backends.

use http::HeaderValue;
use rustls::ProtocolVersion;

use crate::config::model::Alpn;

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

/// What backends are told of a client's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientCertificate {
    /// Its subject, as in RFC 4514.
    pub subject: HeaderValue,
    /// The SHA-256 of the whole, in hexadecimal digits.
    pub fingerprint: HeaderValue,
}

//! TLS of listeners: certificates with their keys, and whom a listener lets in.

use std::{path::PathBuf, sync::Arc};

use rustls::pki_types::{CertificateRevocationListDer, PrivateKeyDer};

use super::{Alpn, TlsVersion, TrustStore};
use crate::types::Name;

/// A certificate chain and its key, read and checked against each other.
#[derive(Clone)]
pub struct Certificate {
    /// The key in `certificates`.
    pub name: Name,
    /// The chain's file, for messages and the upstream client certificate.
    pub cert_path: PathBuf,
    /// The key's file.
    pub key_path: PathBuf,
    /// Chain, end entity first, with its signing key.
    pub key: Arc<rustls::sign::CertifiedKey>,
    /// DNS names and wildcards of the end entity, lower case.
    pub names: Vec<String>,
    /// When the end entity expires, in seconds since 1970.
    pub not_after: i64,
    /// The PKCS#8/PKCS#1/SEC1 key, DER, for those who must build their own signer.
    pub key_der: Arc<PrivateKeyDer<'static>>,
    /// Sent along with the certificate; `None` by default, and until one is fetched.
    pub ocsp: Option<Ocsp>,
    /// Whether it is asked of the issuer's responder; default false.
    pub ocsp_fetch: bool,
}

impl std::fmt::Debug for Certificate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Certificate")
            .field("name", &self.name)
            .field("cert_path", &self.cert_path)
            .finish_non_exhaustive()
    }
}

/// What the issuer says of a certificate (RFC 6960), for this certificate. The signature of a file's is the client's to
/// check; that of a fetched one has been.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ocsp {
    /// The file; `None` where it was fetched.
    pub path: Option<PathBuf>,
    /// The response as it is sent; empty where the file holds none for this certificate: it is followed on.
    pub der: Arc<[u8]>,
    /// Until when it holds, in seconds since 1970; `None` where it does not say.
    pub next_update: Option<i64>,
}

impl Ocsp {
    /// Whether it still holds at `now`, in seconds since 1970.
    pub fn holds(&self, now: i64) -> bool {
        !self.der.is_empty() && self.next_update.is_none_or(|next| now < next)
    }
}

/// TLS of a listener.
#[derive(Clone, Debug)]
pub struct ListenerTls {
    /// At least one; chosen by SNI, exact before wildcard; the last is the fallback.
    pub certificates: Vec<Arc<Certificate>>,
    /// Default intermediate.
    pub profile: CipherProfile,
    /// Default TLS 1.2, with the modern profile 1.3.
    pub min_version: TlsVersion,
    /// In order of preference; default h2, http/1.1. Never empty.
    pub alpn: Vec<Alpn>,
    /// `None` asks for no certificate, the default.
    pub client_auth: Option<ClientAuth>,
    /// Names without a certificate are refused, and clients that name none; default false.
    pub strict_sni: bool,
    /// The secrets of sessions are written to the file that `SSLKEYLOGFILE` names; default false.
    pub keylog: bool,
}

/// Versions and cipher suites, as Mozilla publishes them (Server Side TLS 5.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CipherProfile {
    /// TLS 1.2 with ECDHE and AEAD suites, and TLS 1.3.
    Intermediate,
    /// TLS 1.3.
    Modern,
}

/// Certificates of clients.
#[derive(Clone, Debug)]
pub struct ClientAuth {
    /// Whether one is needed.
    pub mode: ClientAuthMode,
    /// Who issues them.
    pub ca: TrustStore,
    /// Which are revoked; with lists, one of every issuer in a chain is needed. `None` asks no list.
    pub crl: Option<RevocationLists>,
}

/// Whether a client needs a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientAuthMode {
    /// A client without one is served; one with a bad one is not.
    Optional,
    /// A client without one is not served.
    Required,
}

impl ClientAuthMode {
    /// As in the file.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Optional => "optional",
            Self::Required => "required",
        }
    }
}

/// Revocation lists from a file.
#[derive(Clone, Debug)]
pub struct RevocationLists {
    /// The file.
    pub path: PathBuf,
    /// At least one.
    pub lists: Arc<[CertificateRevocationListDer<'static>]>,
    /// When the first of them is out of date, in seconds since 1970; `None` where none says.
    pub next_update: Option<i64>,
}

//! TLS towards backends over connections of our own: who is trusted, what is shown, and which sessions can go on. Made once
//! for all upstreams that want the same, and kept over builds, so that their sessions are resumed after a reload too.
//! What of this is Pingora's upstream path's is in `peer`.

use std::{
    collections::HashMap,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
};

use pingora_core::protocols::l4::socket::SocketAddr;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{WebPkiSupportedAlgorithms, aws_lc_rs, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    sign::SingleCertAndKey,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{line::Socket, peer::TlsProfile};
use crate::config::model;

/// Backends whose sessions are kept, some 2 KB each. Where there are more, all are forgotten, which costs each a handshake.
const MOST_BACKENDS: usize = 16 * 1024;
/// Sessions of one backend: rustls keeps as many of one server, and each backend has a store of its own.
const SESSIONS: usize = 8;

/// What backends may choose from (RFC 7301).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Offer {
    /// HTTP/2 or HTTP/1.1.
    Either,
    /// HTTP/1.1 alone.
    Http1,
    /// HTTP/2 alone.
    Http2,
}

const HTTP2: &[u8] = b"h2";
const HTTP1: &[u8] = b"http/1.1";

/// Whether a backend has chosen HTTP/2.
pub(super) fn chose_http2(stream: &TlsStream<Socket>) -> bool {
    stream.get_ref().1.alpn_protocol() == Some(HTTP2)
}

/// The client side of TLS to backends that are trusted, shown and offered the same.
#[derive(Debug)]
pub struct TlsClient {
    config: ClientConfig,
    /// As `config`, each with the sessions of one backend, by address, name and offer: what one has issued means nothing to another
    /// of the same name.
    backends: Mutex<HashMap<u64, Arc<ClientConfig>>>,
}

impl TlsClient {
    /// Whether backends may choose HTTP/2.
    pub(super) fn offers_http2(&self) -> bool {
        self.config.alpn_protocols.iter().any(|name| name == HTTP2)
    }

    fn new(tls: &model::UpstreamTls, process: &model::Process, offer: Offer) -> Self {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let algorithms = provider.signature_verification_algorithms;
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider has suites for TLS 1.2 and 1.3");
        let builder = if tls.verify {
            builder.with_root_certificates(roots(tls, process))
        } else {
            // One for all connections: sessions are resumed only under the verifier that they began under.
            builder.dangerous().with_custom_certificate_verifier(Arc::new(Unverified(algorithms)))
        };
        let mut config = match &tls.client_cert {
            None => builder.with_no_client_auth(),
            Some(certificate) => {
                builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(certificate.key.clone())))
            }
        };
        config.alpn_protocols = match offer {
            Offer::Either => vec![HTTP2.to_vec(), HTTP1.to_vec()],
            Offer::Http1 => vec![HTTP1.to_vec()],
            Offer::Http2 => vec![HTTP2.to_vec()],
        };
        Self { config, backends: Mutex::default() }
    }

    /// A handshake with the backend at `to`, in which the certificate is checked against `name`, an address or a DNS name.
    /// [`Offer::Http1`]: it may not choose HTTP/2, even where others may.
    ///
    /// # Errors
    /// It failed; the text is that of rustls.
    pub async fn connect(
        &self,
        socket: Socket,
        to: &SocketAddr,
        name: &str,
        offer: Offer,
    ) -> io::Result<TlsStream<Socket>> {
        let http1 = offer == Offer::Http1 && self.offers_http2();
        let connector = TlsConnector::from(self.towards(to, name, http1));
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        connector.connect(name, socket).await
    }

    /// `http1`: no HTTP/2 is offered for once.
    fn towards(&self, to: &SocketAddr, name: &str, http1: bool) -> Arc<ClientConfig> {
        let mut hasher = DefaultHasher::new();
        (to, name, http1).hash(&mut hasher);
        let backend = hasher.finish();
        let mut backends = lock(&self.backends);
        if let Some(config) = backends.get(&backend) {
            return config.clone();
        }
        if backends.len() >= MOST_BACKENDS {
            backends.clear();
        }
        let mut config = self.config.clone();
        config.resumption = Resumption::in_memory_sessions(SESSIONS);
        if http1 {
            config.alpn_protocols = vec![HTTP1.to_vec()];
        }
        backends.entry(backend).or_insert(Arc::new(config)).clone()
    }
}

/// The clients in use, by what they are made of.
#[derive(Debug, Default)]
pub struct TlsClients(Mutex<HashMap<(TlsProfile, bool, Offer), Weak<TlsClient>>>);

impl TlsClients {
    /// The client for an upstream's settings, of which `profile` is made; that of a build before where there is one. May
    /// read the system's roots.
    pub fn of(
        &self,
        tls: &model::UpstreamTls,
        profile: &TlsProfile,
        process: &model::Process,
        offer: Offer,
    ) -> Arc<TlsClient> {
        let mut clients = lock(&self.0);
        let key = (profile.clone(), tls.verify, offer);
        if let Some(client) = clients.get(&key).and_then(Weak::upgrade) {
            return client;
        }
        clients.retain(|_, client| client.strong_count() > 0);
        let client = Arc::new(TlsClient::new(tls, process, offer));
        clients.insert(key, Arc::downgrade(&client));
        client
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whom certificates are trusted of: the upstream's own `ca`, else `ca_file`, else the system's roots.
fn roots(tls: &model::UpstreamTls, process: &model::Process) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    let certificates = match (&tls.ca, &process.ca_file) {
        (Some(store), _) => store.certificates.to_vec(),
        (None, Some(path)) => match CertificateDer::pem_file_iter(path).and_then(Iterator::collect) {
            Ok(certificates) => certificates,
            Err(error) => {
                // It was good when the configuration was read. Without it nobody is trusted.
                log::error!("`ca_file` {} cannot be read any more: {error}", path.display());
                Vec::new()
            }
        },
        (None, None) => rustls_native_certs::load_native_certs().certs,
    };
    roots.add_parsable_certificates(certificates);
    roots
}

/// Takes any certificate, but only from who has its key.
#[derive(Debug)]
struct Unverified(WebPkiSupportedAlgorithms);

impl ServerCertVerifier for Unverified {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signature, &self.0)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signature, &self.0)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.supported_schemes()
    }
}

#[cfg(test)]
mod tests;

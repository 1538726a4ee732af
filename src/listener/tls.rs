//! TLS of a listener: rustls with every certificate chosen by SNI. Keys of session tickets are `tickets`.

use std::{collections::HashMap, sync::Arc};

use rustls::{
    ServerConfig, SupportedProtocolVersion,
    server::{ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert},
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};

use crate::config::model::{Alpn, Certificate, ListenerTls, TlsVersion};

/// The configuration of one listener. The ticketer is one for all listeners and workers, so that a session may be resumed
/// at any worker.
///
/// # Errors
/// The crypto provider does not support what is asked for.
pub fn server_config(
    tls: &ListenerTls,
    ticketer: Arc<dyn ProducesTickets>,
) -> Result<Arc<ServerConfig>, rustls::Error> {
    let both: &[&SupportedProtocolVersion] = &[&TLS13, &TLS12];
    let versions = match tls.min_version {
        TlsVersion::V1_2 => both,
        TlsVersion::V1_3 => &both[..1],
    };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)?
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(CertificateStore::new(&tls.certificates)));
    config.alpn_protocols = tls.alpn.iter().map(|protocol| alpn_name(*protocol).to_vec()).collect();
    // Tickets keep the session at the client; a store here would only keep the last few hundred.
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.ticketer = ticketer;
    Ok(Arc::new(config))
}

fn alpn_name(protocol: Alpn) -> &'static [u8] {
    match protocol {
        Alpn::Http1 => b"http/1.1",
        Alpn::Http2 => b"h2",
    }
}

/// A listener's certificates by name: exact before wildcard before the fallback.
#[derive(Debug)]
struct CertificateStore {
    exact: HashMap<String, Arc<CertifiedKey>>,
    /// By the name without its `*`: `.example.com`.
    wildcard: HashMap<String, Arc<CertifiedKey>>,
    fallback: Option<Arc<CertifiedKey>>,
}

impl CertificateStore {
    fn new(certificates: &[Arc<Certificate>]) -> Self {
        let mut store = Self {
            exact: HashMap::new(),
            wildcard: HashMap::new(),
            fallback: certificates.last().map(|certificate| certificate.key.clone()),
        };
        for certificate in certificates {
            for name in &certificate.names {
                let (names, name) = match name.strip_prefix('*') {
                    Some(suffix) => (&mut store.wildcard, suffix),
                    None => (&mut store.exact, name.as_str()),
                };
                // The first of two certificates for a name is used.
                names.entry(name.to_owned()).or_insert_with(|| certificate.key.clone());
            }
        }
        store
    }

    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        // rustls has lowered the name and taken off a trailing dot. A wildcard stands for exactly one label (RFC 9525 §6.3).
        let wildcard = || self.wildcard.get(&name[name.find('.')?..]);
        self.exact.get(name).or_else(wildcard)
    }
}

impl ResolvesServerCert for CertificateStore {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        hello.server_name().and_then(|name| self.find(name)).or(self.fallback.as_ref()).cloned()
    }
}

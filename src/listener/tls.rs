//! TLS of a listener: rustls with every certificate chosen by SNI, and the certificates of clients checked. Keys of session
//! tickets are `tickets`; what a file that has changed does to it is `certificates`.

use std::{collections::HashMap, io, sync::Arc};

use arc_swap::ArcSwap;
use aws_lc_rs::digest;
use http::HeaderValue;
use rustls::{
    RootCertStore, ServerConfig, ServerConnection, SupportedCipherSuite, SupportedProtocolVersion,
    crypto::{CryptoProvider, SupportedKxGroup, aws_lc_rs as provider},
    pki_types::{CertificateDer, UnixTime},
    server::{
        Acceptor, ClientHello, NoServerSessionStorage, ProducesTickets, ResolvesServerCert, WebPkiClientVerifier,
        danger::ClientCertVerifier,
    },
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};
use tokio::io::AsyncWriteExt;
use tokio_rustls::{LazyConfigAcceptor, TlsAcceptor, server::TlsStream};

use super::{conn::Socket, refusals::UnknownName, subject, tickets::TicketKeys};
use crate::{
    config::model::{Alpn, Certificate, CipherProfile, ClientAuth, ClientAuthMode, ListenerTls, TlsVersion},
    proxy::{ClientCertificate, Verified},
};

/// The suites of Mozilla's Server Side TLS 5.7 (intermediate; modern has the first three) but for DHE, which rustls does
/// not speak. The client's order counts, as published.
const SUITES: [SupportedCipherSuite; 9] = [
    provider::cipher_suite::TLS13_AES_128_GCM_SHA256,
    provider::cipher_suite::TLS13_AES_256_GCM_SHA384,
    provider::cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
    provider::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    provider::cipher_suite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
    provider::cipher_suite::TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    provider::cipher_suite::TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    provider::cipher_suite::TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
    provider::cipher_suite::TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
];
/// Of `SUITES`, those of TLS 1.3.
const MODERN: usize = 3;
/// The curves of both profiles, behind the post-quantum exchange.
const GROUPS: [&dyn SupportedKxGroup; 4] = [
    provider::kx_group::X25519MLKEM768,
    provider::kx_group::X25519,
    provider::kx_group::SECP256R1,
    provider::kx_group::SECP384R1,
];
/// A fatal alert, unrecognized_name (RFC 6066 §3), in a record of its own.
const UNRECOGNIZED_NAME: [u8; 7] = [21, 3, 3, 0, 2, 2, 112];

/// The TLS of one listener. What is behind it changes when a file does; handshakes that have begun keep what they had.
pub struct Tls(ArcSwap<Serving>);

/// What handshakes are made with.
pub(super) struct Serving {
    pub(super) model: ListenerTls,
    /// Of each certificate, whether its OCSP response is sent along.
    pub(super) stapled: Vec<bool>,
    config: Arc<ServerConfig>,
    names: Arc<CertificateStore>,
    clients: Option<(ClientAuthMode, Arc<dyn ClientCertVerifier>)>,
}

impl Tls {
    pub(super) fn new(serving: Serving) -> Self {
        Self(ArcSwap::from_pointee(serving))
    }

    /// For handshakes that are made elsewhere: the admin API's.
    pub fn config(&self) -> Arc<ServerConfig> {
        self.0.load().config.clone()
    }

    /// By whom clients are judged now.
    pub(super) fn clients(&self) -> Option<ClientAuth> {
        self.0.load().model.client_auth.clone()
    }

    pub(super) fn serving(&self) -> Arc<Serving> {
        self.0.load_full()
    }

    pub(super) fn change(&self, serving: Serving) {
        self.0.store(Arc::new(serving));
    }
}

impl Serving {
    /// `now` is in seconds since 1970. The ticket keys are the same for all listeners and workers, so that a session may be
    /// resumed at any worker; but only where clients are judged alike.
    ///
    /// # Errors
    /// The crypto provider does not support what is asked for.
    pub(super) fn build(tls: &ListenerTls, tickets: &Arc<TicketKeys>, now: i64) -> Result<Self, rustls::Error> {
        let provider = Arc::new(provider_of(tls.profile));
        let versions: &[&SupportedProtocolVersion] = match (tls.profile, tls.min_version) {
            (CipherProfile::Intermediate, TlsVersion::V1_2) => &[&TLS13, &TLS12],
            _ => &[&TLS13],
        };
        let names = Arc::new(CertificateStore::new(tls, now));
        let clients = match &tls.client_auth {
            Some(clients) => Some((clients.mode, verifier(clients, &provider)?)),
            None => None,
        };
        let builder = ServerConfig::builder_with_provider(provider).with_protocol_versions(versions)?;
        let builder = match &clients {
            Some((_, verifier)) => builder.with_client_cert_verifier(verifier.clone()),
            None => builder.with_no_client_auth(),
        };
        let mut config = builder.with_cert_resolver(names.clone());
        config.alpn_protocols = tls.alpn.iter().map(|protocol| alpn_name(*protocol).to_vec()).collect();
        // Tickets keep the session at the client; a store here would only keep the last few hundred.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.ticketer = match &tls.client_auth {
            // A ticket brings the client's certificate back as checked, so it must be good for no other check.
            Some(clients) => Arc::new(tickets.scoped(scope(clients))),
            None => tickets.clone() as Arc<dyn ProducesTickets>,
        };
        if tls.keylog {
            config.key_log = Arc::new(rustls::KeyLogFile::new());
        }
        Ok(Self { model: tls.clone(), stapled: stapled(tls, now), config: Arc::new(config), names, clients })
    }

    /// The handshake. With strict SNI, a name without a certificate ends it before it begins.
    ///
    /// # Errors
    /// It failed; the client was told why, where TLS has a word for it.
    pub(super) async fn accept(&self, socket: Socket) -> io::Result<TlsStream<Socket>> {
        if !self.model.strict_sni {
            return TlsAcceptor::from(self.config.clone()).accept(socket).await;
        }
        let mut start = LazyConfigAcceptor::new(Acceptor::default(), socket).await?;
        let name = start.client_hello().server_name().map(str::to_owned);
        if name.as_deref().is_some_and(|name| self.names.find(name).is_some()) {
            return start.into_stream(self.config.clone()).await;
        }
        // Whether the alert arrives or not, this is why.
        _ = start.io.write_all(&UNRECOGNIZED_NAME).await;
        _ = start.io.shutdown().await;
        Err(io::Error::other(UnknownName(name)))
    }

    /// What is known of the client after a handshake, where `again`, of its certificate anew: rustls takes one out of a ticket
    /// as it was, and it may have expired since; and a handshake may have been another configuration's.
    ///
    /// # Errors
    /// It is not good any more, or there should be one.
    pub(super) fn client(&self, session: &ServerConnection, again: bool) -> Result<Verified, rustls::Error> {
        let Some((mode, verifier)) = &self.clients else { return Ok(Verified::NotAsked) };
        let Some((first, rest)) = session.peer_certificates().and_then(<[_]>::split_first) else {
            return match mode {
                ClientAuthMode::Optional => Ok(Verified::None),
                ClientAuthMode::Required => Err(rustls::Error::NoCertificatesPresented),
            };
        };
        if again {
            verifier.verify_client_cert(first, rest, UnixTime::now())?;
        }
        Ok(Verified::Success(Box::new(shown(first))))
    }
}

/// Which OCSP responses are sent at `now`.
pub(super) fn stapled(tls: &ListenerTls, now: i64) -> Vec<bool> {
    let holds = |certificate: &Arc<Certificate>| certificate.ocsp.as_ref().is_some_and(|ocsp| ocsp.holds(now));
    tls.certificates.iter().map(holds).collect()
}

fn provider_of(profile: CipherProfile) -> CryptoProvider {
    let suites = match profile {
        CipherProfile::Intermediate => &SUITES[..],
        CipherProfile::Modern => &SUITES[..MODERN],
    };
    CryptoProvider { cipher_suites: suites.to_vec(), kx_groups: GROUPS.to_vec(), ..provider::default_provider() }
}

/// Who a client must have its certificate from. A revocation list that is out of date, or missing for one of a chain's
/// authorities, lets nobody in: an old list is what a thief would wish for.
fn verifier(
    clients: &ClientAuth,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, rustls::Error> {
    let mut roots = RootCertStore::empty();
    for authority in clients.ca.certificates.iter() {
        roots.add(authority.clone())?;
    }
    let mut builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    if let Some(crl) = &clients.crl {
        builder = builder.with_crls(crl.lists.iter().cloned()).enforce_revocation_expiration();
    }
    if clients.mode == ClientAuthMode::Optional {
        builder = builder.allow_unauthenticated();
    }
    builder.build().map_err(|error| rustls::Error::General(format!("client_auth: {error}")))
}

/// The same for listeners that judge clients alike, also in another process.
fn scope(clients: &ClientAuth) -> [u8; 32] {
    let mut hash = digest::Context::new(&digest::SHA256);
    let mut part = |bytes: &[u8]| {
        hash.update(&(bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    part(clients.mode.as_str().as_bytes());
    part(b"ca");
    clients.ca.certificates.iter().for_each(|der| part(der));
    part(b"crl");
    clients.crl.iter().flat_map(|crl| crl.lists.iter()).for_each(|der| part(der));
    let mut scope = [0; 32];
    scope.copy_from_slice(hash.finish().as_ref());
    scope
}

/// What backends are told of a certificate.
fn shown(der: &CertificateDer<'_>) -> ClientCertificate {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digest = digest::digest(&digest::SHA256, der);
    let digits = digest.as_ref().iter().flat_map(|byte| [byte >> 4, byte & 15]).map(|digit| DIGITS[usize::from(digit)]);
    let value = |text: &[u8]| HeaderValue::from_bytes(text).unwrap_or(HeaderValue::from_static(""));
    ClientCertificate {
        subject: value(subject::of(der).unwrap_or_default().as_bytes()),
        fingerprint: value(&digits.collect::<Vec<u8>>()),
    }
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
    fn new(tls: &ListenerTls, now: i64) -> Self {
        let mut store = Self { exact: HashMap::new(), wildcard: HashMap::new(), fallback: None };
        for certificate in &tls.certificates {
            let key = with_ocsp(certificate, now);
            for name in &certificate.names {
                let (names, name) = match name.strip_prefix('*') {
                    Some(suffix) => (&mut store.wildcard, suffix),
                    None => (&mut store.exact, name.as_str()),
                };
                // The first of two certificates for a name is used.
                names.entry(name.to_owned()).or_insert_with(|| key.clone());
            }
            store.fallback = Some(key);
        }
        if tls.strict_sni {
            store.fallback = None;
        }
        store
    }

    fn find(&self, name: &str) -> Option<&Arc<CertifiedKey>> {
        // rustls has lowered the name and taken off a trailing dot. A wildcard stands for exactly one label (RFC 9525 §6.3).
        let wildcard = || self.wildcard.get(&name[name.find('.')?..]);
        self.exact.get(name).or_else(wildcard)
    }
}

fn with_ocsp(certificate: &Certificate, now: i64) -> Arc<CertifiedKey> {
    match &certificate.ocsp {
        Some(ocsp) if ocsp.holds(now) => {
            let mut key = CertifiedKey::clone(&certificate.key);
            key.ocsp = Some(ocsp.der.to_vec());
            Arc::new(key)
        }
        _ => certificate.key.clone(),
    }
}

impl ResolvesServerCert for CertificateStore {
    fn resolve(&self, hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        hello.server_name().and_then(|name| self.find(name)).or(self.fallback.as_ref()).cloned()
    }
}

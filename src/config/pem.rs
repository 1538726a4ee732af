//! What the files of certificates hold: pure, from bytes to checked parts, with the words for what is wrong. Used when the
//! configuration is read, and again when such a file has changed (`renewal`).

use std::{io, path::Path};

use rustls::{
    RootCertStore,
    pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, pem::PemObject},
    server::WebPkiClientVerifier,
    sign::CertifiedKey,
};
use x509_parser::{
    certificate::X509Certificate, extensions::GeneralName, prelude::FromDer,
    revocation_list::CertificateRevocationList, time::ASN1Time, x509::X509Version,
};

use super::files::{Files, System};
use crate::policy::ocsp::{self, NotOcsp};

/// Larger files are not certificates.
pub(super) const LARGEST_FILE: u64 = 4 << 20;
/// Lists of large authorities are longer than certificates.
pub(super) const LARGEST_LIST: u64 = 64 << 20;

/// What is wrong with a file.
#[derive(Clone, Debug)]
pub(super) struct Bad {
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) help: &'static str,
}

impl Bad {
    fn new(code: &'static str, message: impl Into<String>, help: &'static str) -> Self {
        Self { code, message: message.into(), help }
    }
}

/// What is known of a chain's first certificate.
pub(super) struct Leaf {
    /// DNS names, lower case.
    pub(super) names: Vec<String>,
    pub(super) not_before: ASN1Time,
    pub(super) not_after: ASN1Time,
    serial: Vec<u8>,
}

/// A file of a certificate, key or token.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    System.read(path, LARGEST_FILE)
}

/// A file of revocation lists.
pub(super) fn read_lists(path: &Path) -> io::Result<Vec<u8>> {
    System.read(path, LARGEST_LIST)
}

/// All certificates, at least one; each is at least well-formed.
pub(super) fn chain(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Bad> {
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let certificates = certificates.unwrap_or_default();
    if certificates.is_empty() {
        let help = "it must hold -----BEGIN CERTIFICATE----- blocks (PEM)";
        return Err(Bad::new("no-certificate-in-file", "no certificate can be read from this file", help));
    }
    let well_formed = |der: &CertificateDer<'_>| x509_parser::parse_x509_certificate(der).is_ok();
    if let Some(at) = certificates.iter().position(|der| !well_formed(der)) {
        return Err(Bad::new("bad-certificate", format!("certificate {} of this file is damaged", at + 1), ""));
    }
    Ok(certificates)
}

/// What the first of a chain says.
pub(super) fn leaf(chain: &[CertificateDer<'_>]) -> Result<Leaf, Bad> {
    let first = chain.first().and_then(|der| X509Certificate::from_der(der).ok());
    let Some((_, certificate)) = first else {
        return Err(Bad::new("bad-certificate", "certificate 1 of this file is damaged", ""));
    };
    if certificate.version != X509Version::V3 {
        let help = "make one with a subjectAltName";
        return Err(Bad::new("bad-certificate", "the certificate is not of version 3", help));
    }
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let dns = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    let validity = certificate.validity();
    Ok(Leaf {
        names: dns.collect(),
        not_before: validity.not_before,
        not_after: validity.not_after,
        serial: certificate.raw_serial().to_vec(),
    })
}

/// A private key.
pub(super) fn private_key(pem: &[u8]) -> Result<PrivateKeyDer<'static>, Bad> {
    PrivateKeyDer::from_pem_slice(pem).map_err(|_| {
        let encrypted = pem.windows(9).any(|part| part == b"ENCRYPTED");
        let (message, help) = if encrypted {
            ("the key is encrypted", "decrypt it: openssl pkey -in KEY -out NEW")
        } else {
            ("no private key can be read from this file", "it must hold a -----BEGIN PRIVATE KEY----- block (PEM)")
        };
        Bad::new("no-key-in-file", message, help)
    })
}

/// A chain and its key, where they fit.
pub(super) fn pair(
    name: &str,
    chain: Vec<CertificateDer<'static>>,
    key: &PrivateKeyDer<'static>,
) -> Result<CertifiedKey, Bad> {
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    CertifiedKey::from_der(chain, key.clone_key(), &provider).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            let message = format!("the key does not match the certificate `{name}`");
            Bad::new("key-mismatch", message, "give the key that the certificate was made for")
        }
        _ => {
            let help = "use an RSA (2048 bits or more), ECDSA P-256, P-384, P-521 or Ed25519 key";
            Bad::new("bad-key", "the key is of a kind that cannot be used", help)
        }
    })
}

/// Until when an OCSP response holds, which must be of this certificate.
pub(super) fn ocsp(der: &[u8], leaf: &Leaf) -> Result<Option<i64>, Bad> {
    let bad = |message: &str, help| Bad::new("bad-ocsp", message, help);
    ocsp::next_update(der, &leaf.serial).map_err(|error| match error {
        NotOcsp::OtherCertificate => bad("the OCSP response is of another certificate", "ask for one again"),
        NotOcsp::Unsuccessful => bad("the OCSP response says that the responder gave no answer", "ask for one again"),
        _ => bad("this file is not an OCSP response", "it must be DER, as written by `openssl ocsp -respout FILE`"),
    })
}

/// Revocation lists, PEM or one in DER; at least one.
pub(super) fn lists(content: &[u8]) -> Result<Vec<CertificateRevocationListDer<'static>>, Bad> {
    let lists: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(content).collect();
    let mut lists = lists.unwrap_or_default();
    if lists.is_empty() && content.first() == Some(&0x30) {
        lists.push(CertificateRevocationListDer::from(content.to_vec()));
    }
    if lists.is_empty() || lists.iter().any(|list| CertificateRevocationList::from_der(list).is_err()) {
        let help = "it must hold -----BEGIN X509 CRL----- blocks (PEM), or one list in DER";
        return Err(Bad::new("bad-crl", "no revocation list can be read from this file", help));
    }
    Ok(lists)
}

/// The first time at which one of the lists is out of date.
pub(super) fn lists_end(lists: &[CertificateRevocationListDer<'_>]) -> Option<ASN1Time> {
    let end = |list: &CertificateRevocationListDer<'_>| {
        CertificateRevocationList::from_der(list).ok().and_then(|(_, list)| list.next_update())
    };
    lists.iter().filter_map(end).min()
}

/// Whether a certificate says that it is an authority's (RFC 5280 §4.2.1.9); one of an older version does not say.
pub(super) fn is_authority(der: &CertificateDer<'_>) -> bool {
    x509_parser::parse_x509_certificate(der)
        .is_ok_and(|(_, certificate)| certificate.version != X509Version::V3 || certificate.is_ca())
}

/// Whether clients can be judged by these.
pub(super) fn client_authorities(
    authorities: &[CertificateDer<'static>],
    lists: &[CertificateRevocationListDer<'static>],
) -> Result<(), Bad> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        let help = "it must hold certificates of authorities, X.509 version 3";
        let bad = |_| Bad::new("bad-certificate", "a certificate of this file cannot issue others", help);
        roots.add(authority.clone()).map_err(bad)?;
    }
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.into());
    let bad = |_| Bad::new("bad-crl", "a revocation list of this file cannot be used", "use X.509 CRL version 2");
    verifier.with_crls(lists.iter().cloned()).build().map(drop).map_err(bad)
}

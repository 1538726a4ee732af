//! `certificates` and trust stores: PEM files, read and checked against each other before anything is bound.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::{
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject},
    sign::CertifiedKey,
};
use x509_parser::{extensions::GeneralName, prelude::FromDer, x509::X509Version};

use super::{
    decode::{Decoder, Item, Table, value},
    model::{Certificate, TrustStore},
};
use crate::types::Name;

pub(super) const CERTIFICATE: Table =
    Table { what: "a certificate", keys: &[value("cert", "required"), value("key", "required")] };

/// Larger files are not certificates.
const LARGEST_FILE: u64 = 4 << 20;
const MISSING_FILE: &str = "relative paths begin at the configuration file's directory";

/// The certificates that could be read, and the names of all.
pub(super) struct Certificates {
    pub(super) good: BTreeMap<Name, Arc<Certificate>>,
    names: BTreeSet<Name>,
}

impl Certificates {
    /// The certificate that a value names. One that could not be read is no second problem.
    pub(super) fn named(&self, d: &mut Decoder<'_>, item: &Item<'_>) -> Option<Arc<Certificate>> {
        let text = d.scalar(item, "a name from `certificates`")?.value;
        if !self.names.contains(text.as_str()) {
            let near = d.did_you_mean(&text, self.names.iter().map(Name::as_str));
            let help = near.unwrap_or_else(|| "add it under `certificates`".to_owned());
            let message = format!("there is no certificate `{}`", item.node.shown());
            d.error(item, "unknown-certificate", message, &help);
        }
        self.good.get(text.as_str()).cloned()
    }
}

/// Decodes `certificates`.
pub(super) fn decode(d: &mut Decoder<'_>, item: Option<Item<'_>>) -> Certificates {
    let mut certificates = Certificates { good: BTreeMap::new(), names: BTreeSet::new() };
    let named = item.and_then(|item| d.named(&item, "a mapping from names to certificates"));
    for named in named.unwrap_or_default() {
        certificates.names.insert(named.name.into());
        let name = d.key_name(&named);
        if let Some(certificate) = certificate(d, &named.item, named.name.into())
            && let Some(name) = name
        {
            certificates.good.insert(name, Arc::new(certificate));
        }
    }
    certificates
}

fn certificate(d: &mut Decoder<'_>, item: &Item<'_>, name: Name) -> Option<Certificate> {
    let fields = d.fields(item, &CERTIFICATE)?;
    let cert_item = fields.required(d, "cert");
    let key_item = fields.required(d, "key");
    let chain = cert_item.as_ref().and_then(|item| {
        let cert_path = d.path(item)?;
        Some((certificates_in(d, item, &cert_path)?, cert_path))
    });
    let names = match (&chain, &cert_item) {
        (Some((chain, _)), Some(item)) => inspect(d, item, chain),
        _ => None,
    };
    let key = key_item.as_ref().and_then(|item| private_key(d, item));

    let ((chain, cert_path), names, (key_der, key_path)) = (chain?, names?, key?);
    let key_item = key_item?;
    let provider = rustls::crypto::aws_lc_rs::default_provider();
    let key = match CertifiedKey::from_der(chain, key_der.clone_key(), &provider) {
        Ok(key) => key,
        Err(rustls::Error::InconsistentKeys(_)) => {
            let message = format!("the key does not match the certificate `{name}`");
            d.error(&key_item, "key-mismatch", message, "give the key that the certificate was made for");
            return None;
        }
        Err(_) => {
            let help = "use an RSA (2048 bits or more), ECDSA P-256, P-384, P-521 or Ed25519 key";
            d.error(&key_item, "bad-key", "the key is of a kind that cannot be used", help);
            return None;
        }
    };
    Some(Certificate { name, cert_path, key_path, key: Arc::new(key), names, key_der: Arc::new(key_der) })
}

/// A file of trusted certificates.
pub(super) fn trust_store(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<TrustStore> {
    let path = d.path(item)?;
    let certificates = certificates_in(d, item, &path)?;
    Some(TrustStore { path, certificates: certificates.into() })
}

/// All certificates of a PEM file, at least one; each is at least well-formed.
fn certificates_in(d: &mut Decoder<'_>, item: &Item<'_>, path: &Path) -> Option<Vec<CertificateDer<'static>>> {
    let pem = read_file(d, item, path, MISSING_FILE)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let certificates = certificates.unwrap_or_default();
    if certificates.is_empty() {
        let help = "it must hold -----BEGIN CERTIFICATE----- blocks (PEM)";
        d.error(item, "no-certificate-in-file", "no certificate can be read from this file", help);
        return None;
    }
    let well_formed = |der: &CertificateDer<'_>| x509_parser::parse_x509_certificate(der).is_ok();
    if let Some(at) = certificates.iter().position(|der| !well_formed(der)) {
        let message = format!("certificate {} of this file is damaged", at + 1);
        d.error(item, "bad-certificate", message, "");
        return None;
    }
    Some(certificates)
}

/// The names of the first certificate, in lower case; warns where it is not valid today.
fn inspect(d: &mut Decoder<'_>, item: &Item<'_>, chain: &[CertificateDer<'_>]) -> Option<Vec<String>> {
    let (_, certificate) = x509_parser::certificate::X509Certificate::from_der(chain.first()?).ok()?;
    if certificate.version != X509Version::V3 {
        let help = "make one with a subjectAltName";
        d.error(item, "bad-certificate", "the certificate is not of version 3", help);
        return None;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    let validity = certificate.validity();
    if validity.not_after.timestamp() < now {
        let message = format!("the certificate expired on {}", date(validity.not_after));
        d.warn_at(item.node.mark(), &item.path, "certificate-expired", message, "renew it");
    }
    if validity.not_before.timestamp() > now {
        let message = format!("the certificate is not valid before {}", date(validity.not_before));
        d.warn_at(item.node.mark(), &item.path, "certificate-not-yet-valid", message, "check the clock");
    }
    let names = certificate.subject_alternative_name().ok().flatten();
    let names = names.map(|names| names.value.general_names.as_slice()).unwrap_or_default();
    let dns = names.iter().filter_map(|name| match name {
        GeneralName::DNSName(name) => Some(name.to_ascii_lowercase()),
        _ => None,
    });
    Some(dns.collect())
}

/// The day, as `2027-01-31`.
pub(super) fn date(time: x509_parser::time::ASN1Time) -> String {
    let time = time.to_datetime();
    format!("{:04}-{:02}-{:02}", time.year(), u8::from(time.month()), time.day())
}

fn private_key(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<(PrivateKeyDer<'static>, std::path::PathBuf)> {
    let path = d.path(item)?;
    let pem = read_file(d, item, &path, MISSING_FILE)?;
    let Ok(key) = PrivateKeyDer::from_pem_slice(&pem) else {
        let encrypted = pem.windows(9).any(|part| part == b"ENCRYPTED");
        let (message, help) = if encrypted {
            ("the key is encrypted", "decrypt it: openssl pkey -in KEY -out NEW")
        } else {
            ("no private key can be read from this file", "it must hold a -----BEGIN PRIVATE KEY----- block (PEM)")
        };
        d.error(item, "no-key-in-file", message, help);
        return None;
    };
    warn_open_key(d, item, &path);
    Some((key, path))
}

/// Warns where others than the owner may use a key.
fn warn_open_key(d: &mut Decoder<'_>, item: &Item<'_>, path: &Path) {
    use std::os::unix::fs::PermissionsExt as _;
    let mode = std::fs::metadata(path).map_or(0, |meta| meta.permissions().mode() & 0o777);
    if mode & 0o077 != 0 {
        let message = format!("others than the owner may use the key file (mode {mode:04o})");
        d.warn_at(item.node.mark(), &item.path, "open-key-file", message, "chmod 600");
    }
}

/// A file's content; `missing` is the help where there is no such file.
pub(super) fn read_file(d: &mut Decoder<'_>, item: &Item<'_>, path: &Path, missing: &str) -> Option<Vec<u8>> {
    // A pipe or a device would block, so it is not opened.
    let read = std::fs::metadata(path).and_then(|meta| match (meta.is_file(), meta.len()) {
        (false, _) => Err(std::io::Error::other("not a file")),
        (true, length) if length > LARGEST_FILE => {
            Err(std::io::Error::other("too large for a certificate, key or token"))
        }
        _ => std::fs::read(path),
    });
    match read {
        Ok(content) => Some(content),
        Err(error) => {
            let message = format!("cannot read `{}`: {}", item.node.shown(), super::reason(&error));
            let help = match error.kind() {
                std::io::ErrorKind::NotFound => missing,
                std::io::ErrorKind::PermissionDenied => "let the starting user read it",
                _ => "",
            };
            d.error(item, "cannot-read", message, help);
            None
        }
    }
}

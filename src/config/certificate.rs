//! `certificates` and trust stores: PEM files, read and checked against each other before anything is bound.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{
    decode::{Decoder, Item, Table, value},
    model::{Certificate, Ocsp, RevocationLists, TrustStore},
    pem::{self, Bad, Leaf},
};
use crate::{
    policy::ocsp::{NoQuestion, Question},
    types::Name,
};

pub(super) const CERTIFICATE: Table = Table {
    what: "a certificate",
    keys: &[value("cert", "required"), value("key", "required"), value("ocsp", "none")],
};

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
    let leaf = match (&chain, &cert_item) {
        (Some((chain, _)), Some(item)) => inspect(d, item, chain),
        _ => None,
    };
    let key = key_item.as_ref().and_then(|item| private_key(d, item));
    let ocsp_item = fields.get("ocsp");
    let ocsp_fetch = ocsp_item.as_ref().is_some_and(|item| item.is_word("fetch"));
    let ocsp_item = ocsp_item.filter(|_| !ocsp_fetch);
    let ocsp_file = ocsp_item.as_ref().map(|item| {
        let path = d.path(item)?;
        Some((d.files.read(&path, pem::LARGEST_FILE), path))
    });

    let ((chain, cert_path), leaf, (key_der, key_path)) = (chain?, leaf?, key?);
    let key = or_say(d, &key_item?, pem::pair(name.as_str(), chain, &key_der))?;
    let ocsp = match (ocsp_file, ocsp_item) {
        (Some(file), Some(item)) => Some(ocsp(d, &item, file?, &leaf)),
        _ => None,
    };
    if ocsp_fetch && let (Err(error), Some(item)) = (Question::about(&key.cert), fields.get("ocsp")) {
        let message = format!("nobody can be asked about this certificate: {error}");
        d.warn_at(
            item.node.mark(),
            &item.path,
            "ocsp-cannot-fetch",
            message,
            match error {
                NoQuestion::NoIssuer => "put the issuer's certificate behind it in the file",
                NoQuestion::NoResponder => "take `ocsp` out; issuers without OCSP revoke by lists",
            },
        );
    }
    Some(Certificate {
        name,
        cert_path,
        key_path,
        key: Arc::new(key),
        names: leaf.names,
        not_after: leaf.not_after.timestamp(),
        key_der: Arc::new(key_der),
        ocsp,
        ocsp_fetch,
    })
}

/// A response to be sent along; warns where there is none that can be. That is no reason not to serve: who brings the file
/// may come later, and clients that need it are told by the certificate.
fn ocsp(d: &mut Decoder<'_>, item: &Item<'_>, (read, path): (io::Result<Vec<u8>>, PathBuf), leaf: &Leaf) -> Ocsp {
    let mut warn = |code, message: String, help: &str| {
        let message = format!("{message}: the certificate is served without one");
        d.warn_at(item.node.mark(), &item.path, code, message, help);
    };
    let none = Ocsp { path: Some(path.clone()), der: Arc::default(), next_update: None };
    let der = match read {
        Ok(der) => der,
        Err(error) => {
            let message = format!("no OCSP response can be read: {}", super::reason(&error));
            warn("cannot-read-ocsp", message, "the file is followed, and taken when it is there");
            return none;
        }
    };
    match pem::ocsp(&der, leaf) {
        Ok(next_update) => {
            let ocsp = Ocsp { path: Some(path), der: der.into(), next_update };
            if !ocsp.holds(now()) {
                warn("ocsp-out-of-date", "the OCSP response is out of date".to_owned(), "ask the responder again");
            }
            ocsp
        }
        Err(Bad { code, message, help }) => {
            warn(code, message, help);
            none
        }
    }
}

/// What was read, or a problem.
fn or_say<T>(d: &mut Decoder<'_>, item: &Item<'_>, read: Result<T, Bad>) -> Option<T> {
    read.map_err(|Bad { code, message, help }| d.error(item, code, message, help)).ok()
}

pub(super) fn now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    i64::try_from(now).unwrap_or(i64::MAX)
}

/// A file of trusted certificates.
pub(super) fn trust_store(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<TrustStore> {
    let path = d.path(item)?;
    let certificates = certificates_in(d, item, &path)?;
    Some(TrustStore { path, certificates: certificates.into() })
}

/// A file of trusted certificates and one of revocation lists, for clients.
pub(super) fn client_authorities(
    d: &mut Decoder<'_>,
    ca: &Item<'_>,
    crl: Option<&Item<'_>>,
) -> Option<(TrustStore, Option<RevocationLists>)> {
    let authorities = trust_store(d, ca);
    let lists = crl.map(|item| revocation_lists(d, item));
    let (authorities, lists) = (authorities?, lists.map_or(Some(None), |lists| lists.map(Some))?);
    or_say(d, ca, pem::client_authorities(&authorities.certificates, &[]))?;
    if let Some(at) = authorities.certificates.iter().position(|authority| !pem::is_authority(authority)) {
        let message = format!("certificate {} of this file is no authority's: it issues none for clients", at + 1);
        let help = "give the certificate that theirs were signed by";
        d.warn_at(ca.node.mark(), &ca.path, "not-an-authority", message, help);
    }
    if let (Some(RevocationLists { lists, .. }), Some(item)) = (&lists, crl) {
        or_say(d, item, pem::client_authorities(&authorities.certificates, lists))?;
    }
    Some((authorities, lists))
}

fn revocation_lists(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<RevocationLists> {
    let path = d.path(item)?;
    let content = said(d, item, d.files.read(&path, pem::LARGEST_LIST), MISSING_FILE)?;
    let lists = or_say(d, item, pem::lists(&content))?;
    let next_update = pem::lists_end(&lists).map(|end| end.timestamp());
    let lists = RevocationLists { path, lists: lists.into(), next_update };
    if let Some(message) = old_lists(&lists, now()) {
        d.warn_at(item.node.mark(), &item.path, "crl-out-of-date", message, "get the authority's present list");
    }
    Some(lists)
}

/// All certificates of a PEM file, at least one; each is at least well-formed.
fn certificates_in(d: &mut Decoder<'_>, item: &Item<'_>, path: &Path) -> Option<Vec<CertificateDer<'static>>> {
    let pem = read_file(d, item, path, MISSING_FILE)?;
    or_say(d, item, pem::chain(&pem))
}

/// What the first certificate says; warns where it is not valid today.
fn inspect(d: &mut Decoder<'_>, item: &Item<'_>, chain: &[CertificateDer<'_>]) -> Option<Leaf> {
    let leaf = or_say(d, item, pem::leaf(chain))?;
    if let Some((code, message, help)) = out_of_time(&leaf, now()) {
        d.warn_at(item.node.mark(), &item.path, code, message, help);
    }
    Some(leaf)
}

/// What there is to say of a certificate that is not valid at `now`: code, message and help.
pub(super) fn out_of_time(leaf: &Leaf, now: i64) -> Option<(&'static str, String, &'static str)> {
    if leaf.not_after.timestamp() < now {
        let message = format!("the certificate expired on {}", date(leaf.not_after));
        return Some(("certificate-expired", message, "renew it"));
    }
    let message = || format!("the certificate is not valid before {}", date(leaf.not_before));
    (leaf.not_before.timestamp() > now).then(|| ("certificate-not-yet-valid", message(), "check the clock"))
}

/// What there is to say of revocation lists that are out of date at `now`.
pub(super) fn old_lists(crl: &RevocationLists, now: i64) -> Option<String> {
    let end = crl.next_update.filter(|end| *end < now)?;
    let end = x509_parser::time::ASN1Time::from_timestamp(end).map_or_else(|_| end.to_string(), date);
    Some(format!("the revocation list was to be replaced by {end}: no client certificate passes"))
}

/// The day, as `2027-01-31`.
pub(super) fn date(time: x509_parser::time::ASN1Time) -> String {
    let time = time.to_datetime();
    format!("{:04}-{:02}-{:02}", time.year(), u8::from(time.month()), time.day())
}

fn private_key(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<(PrivateKeyDer<'static>, PathBuf)> {
    let path = d.path(item)?;
    let pem = read_file(d, item, &path, MISSING_FILE)?;
    let key = or_say(d, item, pem::private_key(&pem))?;
    warn_open_key(d, item, &path);
    Some((key, path))
}

/// Warns where others than the owner may use a key.
fn warn_open_key(d: &mut Decoder<'_>, item: &Item<'_>, path: &Path) {
    if let Some(message) = open_key(d.files.mode(path)) {
        d.warn_at(item.node.mark(), &item.path, "open-key-file", message, "chmod 600");
    }
}

/// What there is to say of a key file of this mode that others than its owner may use.
pub(super) fn open_key(mode: u32) -> Option<String> {
    match mode {
        0o640 | 0o440 => {
            Some(format!("the key file's group may read it (mode {mode:04o}): let nobody be in it but rrlb"))
        }
        _ if mode & 0o077 != 0 => Some(format!("others than the owner may use the key file (mode {mode:04o})")),
        _ => None,
    }
}

/// A file's content; `missing` is the help where there is no such file.
pub(super) fn read_file(d: &mut Decoder<'_>, item: &Item<'_>, path: &Path, missing: &str) -> Option<Vec<u8>> {
    said(d, item, d.files.read(path, pem::LARGEST_FILE), missing)
}

fn said(d: &mut Decoder<'_>, item: &Item<'_>, read: std::io::Result<Vec<u8>>, missing: &str) -> Option<Vec<u8>> {
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

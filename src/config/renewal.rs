//! Files of certificates that are read again without the configuration that names them: what has changed in them is taken as
//! a whole or not at all. But an OCSP response is only sent along: one of the certificate before stops no renewal.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    certificate::{self, now},
    files::{self, Files as _, System},
    model::{Certificate, ClientAuth, Ocsp, RevocationLists, TrustStore},
    pem::{self, Bad},
};

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
#[error("{}: {what}", .file.display())]
pub struct RenewalError {
    file: PathBuf,
    what: String,
    passing: bool,
}

impl RenewalError {
    /// The file.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Whether it was the reading that failed, so that the same file may be of use a moment later.
    pub fn is_passing(&self) -> bool {
        self.passing
    }

    fn io(file: &Path) -> impl Fn(io::Error) -> Self {
        move |error| Self { file: file.to_owned(), what: super::reason(&error), passing: files::is_passing(&error) }
    }

    fn bad(file: &Path) -> impl Fn(Bad) -> Self {
        move |bad| Self { file: file.to_owned(), what: bad.message, passing: false }
    }
}

/// What was read of a certificate's files.
#[derive(Debug)]
pub struct Renewed {
    /// The certificate.
    pub certificate: Certificate,
    /// What is odd about it.
    pub remarks: Vec<String>,
    /// Its OCSP response could not be read just now; see [`RenewalError::is_passing`].
    pub without_ocsp: bool,
}

/// A certificate as its files are now.
///
/// # Errors
/// A file cannot be read, or they do not fit together.
pub fn renew_certificate(old: &Certificate) -> Result<Renewed, RenewalError> {
    let (mut remarks, mut without_ocsp) = (Vec::new(), false);
    let now = now();
    let Certificate { name, cert_path, key_path, ocsp, ocsp_fetch, .. } = old;
    let chain = pem::chain(&pem::read(cert_path).map_err(RenewalError::io(cert_path))?);
    let chain = chain.map_err(RenewalError::bad(cert_path))?;
    let leaf = pem::leaf(&chain).map_err(RenewalError::bad(cert_path))?;
    remarks.extend(certificate::out_of_time(&leaf, now).map(|(_, message, _)| message));
    remarks.extend(certificate::open_key(System.mode(key_path)));
    let key_der = pem::private_key(&pem::read(key_path).map_err(RenewalError::io(key_path))?);
    let key_der = key_der.map_err(RenewalError::bad(key_path))?;
    let key = pem::pair(name.as_str(), chain, &key_der).map_err(RenewalError::bad(key_path))?;
    // What was fetched is filled in by who keeps it.
    let ocsp = ocsp.as_ref().and_then(|Ocsp { path, .. }| path.as_ref()).map(|path| {
        let read = || -> Result<Ocsp, RenewalError> {
            let der = pem::read(path).map_err(RenewalError::io(path))?;
            let next_update = pem::ocsp(&der, &leaf).map_err(RenewalError::bad(path))?;
            Ok(Ocsp { path: Some(path.clone()), der: der.into(), next_update })
        };
        read().or_else(|error: RenewalError| {
            if key.cert == old.key.cert {
                // The one before goes on as long as it holds.
                return Err(error);
            }
            without_ocsp = error.is_passing();
            remarks.push(format!("it is served without an OCSP response until there is one for it: {error}"));
            Ok(Ocsp { path: Some(path.clone()), der: Arc::default(), next_update: None })
        })
    });
    let certificate = Certificate {
        name: name.clone(),
        cert_path: cert_path.clone(),
        key_path: key_path.clone(),
        key: Arc::new(key),
        names: leaf.names,
        not_after: leaf.not_after.timestamp(),
        key_der: Arc::new(key_der),
        ocsp: ocsp.transpose()?,
        ocsp_fetch: *ocsp_fetch,
    };
    Ok(Renewed { certificate, remarks, without_ocsp })
}

/// The authorities and lists for clients as their files are now, and what is odd about them.
///
/// # Errors
/// A file cannot be read, or is not what it was.
pub fn renew_client_auth(old: &ClientAuth) -> Result<(ClientAuth, Option<String>), RenewalError> {
    let ClientAuth { mode, ca, crl } = old;
    let authorities = pem::chain(&pem::read(&ca.path).map_err(RenewalError::io(&ca.path))?);
    let authorities = authorities.map_err(RenewalError::bad(&ca.path))?;
    let crl = crl.as_ref().map(|RevocationLists { path, .. }| {
        let lists = pem::lists(&pem::read_lists(path).map_err(RenewalError::io(path))?);
        let lists = lists.map_err(RenewalError::bad(path))?;
        let next_update = pem::lists_end(&lists).map(|end| end.timestamp());
        Ok(RevocationLists { path: path.clone(), lists: lists.into(), next_update })
    });
    let crl = crl.transpose()?;
    pem::client_authorities(&authorities, crl.as_ref().map_or(&[], |crl| &crl.lists))
        .map_err(RenewalError::bad(&ca.path))?;
    let ca = TrustStore { path: ca.path.clone(), certificates: authorities.into() };
    let remark = crl.as_ref().and_then(|crl| certificate::old_lists(crl, now()));
    Ok((ClientAuth { mode: *mode, ca, crl }, remark))
}

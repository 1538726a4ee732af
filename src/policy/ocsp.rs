//! OCSP (RFC 6960): the question about a certificate, and what an answer says. Of a file that an operator gives, only about
//! which certificate it is and until when it holds; of an answer that was fetched also whether the issuer, or one it has
//! charged with this, has signed it.

use aws_lc_rs::digest;
use rustls::pki_types::SignatureVerificationAlgorithm;
use x509_parser::{
    certificate::X509Certificate,
    extensions::{GeneralName, ParsedExtension},
    prelude::FromDer,
    time::ASN1Time,
};

const BIT_STRING: u8 = 0x03;
const SEQUENCE: u8 = 0x30;
const ENUMERATED: u8 = 0x0a;
const GENERALIZED_TIME: u8 = 0x18;
const INTEGER: u8 = 0x02;
const NULL: u8 = 0x05;
const OCTET_STRING: u8 = 0x04;
const OBJECT: u8 = 0x06;
/// `[0]`, around another element.
const EXPLICIT_0: u8 = 0xa0;
/// `good`
const GOOD: u8 = 0x80;
/// `revoked`, with a time.
const REVOKED: u8 = 0xa1;
/// `id-pkix-ocsp-basic`
const BASIC: [u8; 9] = [0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x01];
/// `id-sha1`. Responders know no other hash for certain (RFC 9654 is young); nothing is proven by it.
const SHA1: [u8; 5] = [0x2b, 0x0e, 0x03, 0x02, 0x1a];
/// `id-ad-ocsp`
const AT_RESPONDER: &str = "1.3.6.1.5.5.7.48.1";
/// How far a responder's clock may be ahead of ours.
const SKEW: i64 = 300;
/// How long an answer holds that does not say until when.
const UNSAID: i64 = 3600;

/// Why an answer is of no use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotOcsp {
    /// It is not a response in DER.
    #[error("it is not an OCSP response")]
    Malformed,
    /// It is of another certificate.
    #[error("it is of another certificate")]
    OtherCertificate,
    /// The responder gave no answer.
    #[error("the responder gave no answer")]
    Unsuccessful,
    /// The certificate was revoked.
    #[error("the certificate is revoked")]
    Revoked,
    /// The responder does not know the certificate.
    #[error("the responder does not know the certificate")]
    Unknown,
    /// It does not hold yet, or no longer.
    #[error("it does not hold at this time")]
    OutOfDate,
    /// Neither the issuer nor one it has charged has signed it.
    #[error("neither the issuer nor a responder of its has signed it")]
    NotSigned,
}

/// What a certificate needs for its responder to be asked about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// Whom to ask: `http://`.
    pub url: String,
    /// What to send.
    pub request: Vec<u8>,
    /// Of the certificate: the hashes of its issuer's name and key, its serial number.
    name_hash: Vec<u8>,
    key_hash: Vec<u8>,
    serial: Vec<u8>,
    issuer: Vec<u8>,
}

/// Why nobody can be asked about a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoQuestion {
    /// The certificate names no responder that is asked by `http://`.
    #[error("it names no OCSP responder")]
    NoResponder,
    /// The chain ends with it.
    #[error("its issuer is not in the chain's file")]
    NoIssuer,
}

/// An answer that may be sent along.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holds {
    /// From when, in seconds since 1970.
    pub this_update: i64,
    /// Until when.
    pub next_update: i64,
}

impl Question {
    /// About the first certificate of a chain.
    ///
    /// # Errors
    /// Nobody can be asked.
    pub fn about(chain: &[impl AsRef<[u8]>]) -> Result<Self, NoQuestion> {
        let mut parsed = chain.iter().map(|der| (der.as_ref(), X509Certificate::from_der(der.as_ref())));
        let Some((_, Ok((_, leaf)))) = parsed.next() else { return Err(NoQuestion::NoIssuer) };
        let url = responder(&leaf).ok_or(NoQuestion::NoResponder)?;
        let issuer = parsed.find_map(|(der, parsed)| {
            let (_, certificate) = parsed.ok()?;
            (certificate.subject().as_raw() == leaf.issuer().as_raw()).then_some((der, certificate))
        });
        let (der, issuer) = issuer.ok_or(NoQuestion::NoIssuer)?;
        let name_hash = sha1(leaf.issuer().as_raw());
        let key_hash = sha1(&issuer.public_key().subject_public_key.data);
        let serial = leaf.raw_serial().to_vec();
        let id = sequence(&[
            sequence(&[element(OBJECT, &SHA1), element(NULL, &[])]),
            element(OCTET_STRING, &name_hash),
            element(OCTET_STRING, &key_hash),
            element(INTEGER, &serial),
        ]);
        // OCSPRequest { TBSRequest { requestList { Request { CertID } } } }
        let request = sequence(&[sequence(&[sequence(&[sequence(&[id])])])]);
        Ok(Self { url, request, name_hash, key_hash, serial, issuer: der.to_vec() })
    }

    /// Whether an answer is one to this question, good, of this time, and signed.
    ///
    /// # Errors
    /// It is not.
    pub fn judge(
        &self,
        answer: &[u8],
        now: i64,
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> Result<Holds, NotOcsp> {
        let basic = Basic::of(answer)?;
        let mut responses = Elements(basic.responses);
        let single = loop {
            if responses.0.is_empty() {
                return Err(NotOcsp::OtherCertificate);
            }
            let single = responses.enter(SEQUENCE).and_then(Single::of).ok_or(NotOcsp::Malformed)?;
            let same_hash =
                single.hash == SHA1 && single.name_hash == self.name_hash && single.key_hash == self.key_hash;
            if same_hash && single.serial == self.serial {
                break single;
            }
        };
        if !basic.is_signed_for(&self.issuer, now, algorithms) {
            return Err(NotOcsp::NotSigned);
        }
        match single.status {
            GOOD => {}
            REVOKED => return Err(NotOcsp::Revoked),
            _ => return Err(NotOcsp::Unknown),
        }
        let holds = Holds {
            this_update: single.this_update,
            next_update: single.next_update.unwrap_or(single.this_update + UNSAID),
        };
        let in_time = holds.this_update <= now + SKEW && now < holds.next_update;
        if in_time && holds.this_update < holds.next_update { Ok(holds) } else { Err(NotOcsp::OutOfDate) }
    }
}

/// Until when a response holds for the certificate with this serial number, in seconds since 1970; `None` where it does
/// not say. Its signature is the client's to check.
///
/// # Errors
/// It is no response, or none for this certificate.
pub fn next_update(der: &[u8], serial: &[u8]) -> Result<Option<i64>, NotOcsp> {
    let mut responses = Elements(Basic::of(der)?.responses);
    while !responses.0.is_empty() {
        let single = responses.enter(SEQUENCE).and_then(Single::of).ok_or(NotOcsp::Malformed)?;
        if single.serial == serial {
            return Ok(single.next_update);
        }
    }
    Err(NotOcsp::OtherCertificate)
}

/// Where a certificate says that its issuer's responder is.
fn responder(certificate: &X509Certificate<'_>) -> Option<String> {
    let access = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
        ParsedExtension::AuthorityInfoAccess(access) => Some(access),
        _ => None,
    })?;
    let mut urls = access.iter().filter_map(|entry| match &entry.access_location {
        GeneralName::URI(url) if entry.access_method.to_id_string() == AT_RESPONDER => Some(*url),
        _ => None,
    });
    urls.find(|url| url.starts_with("http://")).map(ToOwned::to_owned)
}

/// What a response holds around its single answers.
struct Basic<'a> {
    /// What is signed.
    data: &'a [u8],
    /// The single answers.
    responses: &'a [u8],
    /// How it is signed, and the signature.
    algorithm: &'a [u8],
    signature: &'a [u8],
    /// Certificates of the responder.
    certificates: &'a [u8],
}

impl<'a> Basic<'a> {
    fn of(der: &'a [u8]) -> Result<Self, NotOcsp> {
        let mut response = Elements(der).enter(SEQUENCE).ok_or(NotOcsp::Malformed)?;
        match response.take(ENUMERATED) {
            Some([0]) => Self::in_response(response).ok_or(NotOcsp::Malformed),
            Some(_) => Err(NotOcsp::Unsuccessful),
            None => Err(NotOcsp::Malformed),
        }
    }

    fn in_response(mut response: Elements<'a>) -> Option<Self> {
        let mut bytes = response.enter(EXPLICIT_0)?.enter(SEQUENCE)?;
        if bytes.take(OBJECT)? != BASIC {
            return None;
        }
        let mut basic = Elements(bytes.take(OCTET_STRING)?).enter(SEQUENCE)?;
        let data = basic.whole()?;
        let mut inner = Elements(data).enter(SEQUENCE)?;
        // The version, where it is not the first.
        let _ = inner.take(EXPLICIT_0);
        let (responder, _) = inner.next()?;
        if !matches!(responder, 0xa1 | 0xa2) {
            return None;
        }
        inner.take(GENERALIZED_TIME)?;
        let responses = inner.take(SEQUENCE)?;
        let algorithm = basic.take(SEQUENCE)?;
        // All bits are used.
        let signature = basic.take(BIT_STRING)?.strip_prefix(&[0])?;
        let certificates = basic.enter(EXPLICIT_0).and_then(|mut all| all.take(SEQUENCE)).unwrap_or_default();
        Some(Self { data, responses, algorithm, signature, certificates })
    }

    /// Whether the issuer has signed this, or somebody with a certificate of the issuer for this (RFC 6960 §4.2.2.2).
    fn is_signed_for(&self, issuer: &[u8], now: i64, algorithms: &[&dyn SignatureVerificationAlgorithm]) -> bool {
        let Ok((_, issuer)) = X509Certificate::from_der(issuer) else { return false };
        let signed_by =
            |signer: &X509Certificate<'_>| verified(signer, self.algorithm, self.data, self.signature, algorithms);
        if signed_by(&issuer) {
            return true;
        }
        let mut certificates = Elements(self.certificates);
        while let Some(der) = certificates.whole() {
            let Ok((_, delegate)) = X509Certificate::from_der(der) else { return false };
            let charged = delegate.extended_key_usage().ok().flatten().is_some_and(|usage| usage.value.ocsp_signing);
            let validity = delegate.validity();
            let valid = (validity.not_before.timestamp()..=validity.not_after.timestamp()).contains(&now);
            if charged
                && valid
                && delegate.issuer().as_raw() == issuer.subject().as_raw()
                && is_issued_by(der, &issuer, algorithms)
                && signed_by(&delegate)
            {
                return true;
            }
        }
        false
    }
}

/// Whether a certificate's signature is the issuer's.
fn is_issued_by(der: &[u8], issuer: &X509Certificate<'_>, algorithms: &[&dyn SignatureVerificationAlgorithm]) -> bool {
    let parts = || {
        let mut certificate = Elements(der).enter(SEQUENCE)?;
        let signed = certificate.whole()?;
        let algorithm = certificate.take(SEQUENCE)?;
        Some((signed, algorithm, certificate.take(BIT_STRING)?.strip_prefix(&[0])?))
    };
    parts().is_some_and(|(signed, algorithm, signature)| verified(issuer, algorithm, signed, signature, algorithms))
}

fn verified(
    signer: &X509Certificate<'_>,
    algorithm: &[u8],
    signed: &[u8],
    signature: &[u8],
    algorithms: &[&dyn SignatureVerificationAlgorithm],
) -> bool {
    let key = signer.public_key();
    let Some(kind) = Elements(key.raw).enter(SEQUENCE).and_then(|mut key| key.take(SEQUENCE)) else { return false };
    algorithms.iter().any(|known| {
        known.public_key_alg_id().as_ref() == kind
            && known.signature_alg_id().as_ref() == algorithm
            && known.verify_signature(&key.subject_public_key.data, signed, signature).is_ok()
    })
}

/// The answer about one certificate.
struct Single<'a> {
    hash: &'a [u8],
    name_hash: &'a [u8],
    key_hash: &'a [u8],
    serial: &'a [u8],
    /// The tag of its status.
    status: u8,
    this_update: i64,
    next_update: Option<i64>,
}

impl<'a> Single<'a> {
    fn of(mut single: Elements<'a>) -> Option<Self> {
        let mut id = single.enter(SEQUENCE)?;
        let hash = id.enter(SEQUENCE)?.take(OBJECT)?;
        let (name_hash, key_hash) = (id.take(OCTET_STRING)?, id.take(OCTET_STRING)?);
        let serial = id.take(INTEGER)?;
        let (status, _) = single.next()?;
        let this_update = single.time()?;
        let next_update = match single.enter(EXPLICIT_0) {
            Some(mut next) => Some(next.time()?),
            None => None,
        };
        Some(Self { hash, name_hash, key_hash, serial, status, this_update, next_update })
    }
}

/// Elements in DER, one behind the other.
struct Elements<'a>(&'a [u8]);

impl<'a> Elements<'a> {
    /// The next one: its tag and its content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x83 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }

    /// The content of the next one, where it has this tag; else nothing is taken.
    fn take(&mut self, tag: u8) -> Option<&'a [u8]> {
        let mut ahead = Elements(self.0);
        let (found, content) = ahead.next()?;
        (found == tag).then(|| {
            self.0 = ahead.0;
            content
        })
    }

    /// What is in the next one.
    fn enter(&mut self, tag: u8) -> Option<Self> {
        self.take(tag).map(Elements)
    }

    /// The next one with its tag and length.
    fn whole(&mut self) -> Option<&'a [u8]> {
        let all = self.0;
        self.next()?;
        all.get(..all.len() - self.0.len())
    }

    /// A time, in seconds since 1970.
    fn time(&mut self) -> Option<i64> {
        if self.0.first() != Some(&GENERALIZED_TIME) {
            return None;
        }
        let (_, time) = ASN1Time::from_der(self.whole()?).ok()?;
        Some(time.timestamp())
    }
}

fn sha1(bytes: &[u8]) -> Vec<u8> {
    digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, bytes).as_ref().to_vec()
}

/// An element in DER, of up to 64 KiB.
fn element(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = content.len();
    let mut out = match length {
        0..0x80 => vec![tag, length as u8],
        0x80..0x100 => vec![tag, 0x81, length as u8],
        _ => vec![tag, 0x82, (length >> 8) as u8, length as u8],
    };
    out.extend_from_slice(content);
    out
}

fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
    element(SEQUENCE, &parts.concat())
}

#[cfg(test)]
mod tests;

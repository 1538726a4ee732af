//! What an OCSP response says (RFC 6960 §4.2): whether it is one, about which certificate, until when. Nothing else of it is
//! read, and its signature is the client's to check.

use x509_parser::{prelude::FromDer, time::ASN1Time};

const SEQUENCE: u8 = 0x30;
const ENUMERATED: u8 = 0x0a;
const GENERALIZED_TIME: u8 = 0x18;
const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT: u8 = 0x06;
/// `[0]`, around another element.
const EXPLICIT_0: u8 = 0xa0;
/// `id-pkix-ocsp-basic`
const BASIC: [u8; 9] = [0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x30, 0x01, 0x01];

/// Why a file is no response for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum NotOcsp {
    /// It is not a response in DER.
    Malformed,
    /// It is of another certificate.
    OtherCertificate,
    /// The responder gave no answer.
    Unsuccessful,
}

/// Until when the response holds for the certificate with this serial number, in seconds since 1970; `None` where it
/// does not say.
pub(super) fn next_update(der: &[u8], serial: &[u8]) -> Result<Option<i64>, NotOcsp> {
    let mut response = Elements(der).enter(SEQUENCE).ok_or(NotOcsp::Malformed)?;
    match response.take(ENUMERATED) {
        Some([0]) => {}
        Some(_) => return Err(NotOcsp::Unsuccessful),
        None => return Err(NotOcsp::Malformed),
    }
    let mut responses = single_responses(response).ok_or(NotOcsp::Malformed)?;
    while !responses.0.is_empty() {
        let single = responses.enter(SEQUENCE).ok_or(NotOcsp::Malformed)?;
        let (of, next_update) = single_response(single).ok_or(NotOcsp::Malformed)?;
        if of == serial {
            return Ok(next_update);
        }
    }
    Err(NotOcsp::OtherCertificate)
}

fn single_responses(mut response: Elements<'_>) -> Option<Elements<'_>> {
    let mut bytes = response.enter(EXPLICIT_0)?.enter(SEQUENCE)?;
    if bytes.take(OBJECT)? != BASIC {
        return None;
    }
    let mut data = Elements(bytes.take(OCTET_STRING)?).enter(SEQUENCE)?.enter(SEQUENCE)?;
    // The version, where it is not the first.
    let _ = data.take(EXPLICIT_0);
    let (responder, _) = data.next()?;
    if !matches!(responder, 0xa1 | 0xa2) {
        return None;
    }
    data.take(GENERALIZED_TIME)?;
    data.enter(SEQUENCE)
}

/// The serial number, and until when the answer holds.
fn single_response(mut single: Elements<'_>) -> Option<(&[u8], Option<i64>)> {
    let mut id = single.enter(SEQUENCE)?;
    id.take(SEQUENCE)?;
    id.take(OCTET_STRING)?;
    id.take(OCTET_STRING)?;
    let serial = id.take(INTEGER)?;
    // Good, revoked or unknown.
    single.next()?;
    single.take(GENERALIZED_TIME)?;
    let Some(mut next) = single.enter(EXPLICIT_0) else { return Some((serial, None)) };
    let (_, time) = ASN1Time::from_der(next.whole()?).ok()?;
    Some((serial, Some(time.timestamp())))
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
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = u8::try_from(content.len()).expect("short");
        let head = if length < 0x80 { vec![tag, length] } else { vec![tag, 0x81, length] };
        [head.as_slice(), content].concat()
    }

    fn sequence(parts: &[Vec<u8>]) -> Vec<u8> {
        element(SEQUENCE, &parts.concat())
    }

    fn response(status: u8, serial: &[u8], next_update: Option<&[u8]>) -> Vec<u8> {
        let time = |text: &[u8]| element(GENERALIZED_TIME, text);
        let id = sequence(&[
            sequence(&[element(OBJECT, &[0x2b, 0x0e, 3, 2, 0x1a])]),
            element(OCTET_STRING, &[1; 20]),
            element(OCTET_STRING, &[2; 20]),
            element(INTEGER, serial),
        ]);
        let next = next_update.map_or_else(Vec::new, |text| element(EXPLICIT_0, &time(text)));
        let single = sequence(&[id, element(0x80, &[]), time(b"20260101000000Z"), next]);
        let data =
            sequence(&[element(0xa2, &element(OCTET_STRING, &[3; 20])), time(b"20260101000000Z"), sequence(&[single])]);
        let basic = sequence(&[data, sequence(&[]), element(0x03, &[0, 1])]);
        let bytes = sequence(&[element(OBJECT, &BASIC), element(OCTET_STRING, &basic)]);
        sequence(&[element(ENUMERATED, &[status]), element(EXPLICIT_0, &bytes)])
    }

    #[test]
    fn the_answer_for_a_certificate_is_found_with_its_time() {
        let der = response(0, &[7, 8], Some(b"20260102000000Z"));
        assert_eq!(next_update(&der, &[7, 8]), Ok(Some(1_767_312_000)));
        assert_eq!(next_update(&response(0, &[7], None), &[7]), Ok(None));
        assert_eq!(next_update(&der, &[7]), Err(NotOcsp::OtherCertificate));
        assert_eq!(next_update(&sequence(&[element(ENUMERATED, &[3])]), &[7]), Err(NotOcsp::Unsuccessful));
    }

    #[test]
    fn what_is_cut_or_bent_is_never_more_than_an_error() {
        let der = response(0, &[7], Some(b"20260102000000Z"));
        for end in 0..der.len() {
            assert!(next_update(&der[..end], &[7]).is_err(), "cut to {end} bytes");
        }
        for at in 0..der.len() {
            for bit in 0..8 {
                let mut bent = der.clone();
                bent[at] ^= 1 << bit;
                let _ = next_update(&bent, &[7]);
            }
        }
    }
}

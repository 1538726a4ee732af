//! What is read of OCSP responses, and what is not taken for one.

use super::*;

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

// Questions and signed answers.

use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    SigningKey as _, date_time_ymd,
};
use rustls::crypto::aws_lc_rs::default_provider;

const NOW: i64 = 1_800_000_000;

struct Ca {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(rcgen::DnType::CommonName, "test CA");
        let key = KeyPair::generate().expect("a key");
        Self { certificate: params.self_signed(&key).expect("a certificate"), issuer: Issuer::new(params, key) }
    }

    fn issue(&self, change: impl FnOnce(&mut CertificateParams)) -> (Certificate, KeyPair) {
        let (key, mut params) =
            (KeyPair::generate().expect("a key"), CertificateParams::new(vec!["a.test".to_owned()]).expect("a name"));
        change(&mut params);
        (params.signed_by(&key, &self.issuer).expect("a certificate"), key)
    }

    /// A chain whose first certificate names a responder.
    fn chain(&self) -> Vec<Vec<u8>> {
        let (leaf, _) = self.issue(|params| params.custom_extensions.push(access("http://ocsp.test/")));
        vec![leaf.der().to_vec(), self.certificate.der().to_vec()]
    }
}

fn access(url: &str) -> CustomExtension {
    let at = element(OBJECT, &[0x2b, 6, 1, 5, 5, 7, 0x30, 1]);
    let access = sequence(&[sequence(&[at, element(0x86, url.as_bytes())])]);
    CustomExtension::from_oid_content(&[1, 3, 6, 1, 5, 5, 7, 1, 1], access)
}

fn time(at: i64) -> Vec<u8> {
    let at = ASN1Time::from_timestamp(at).expect("a time").to_datetime();
    let (date, time) = (at.date(), at.time());
    let text = format!(
        "{:04}{:02}{:02}{:02}{:02}{:02}Z",
        date.year(),
        u8::from(date.month()),
        date.day(),
        time.hour(),
        time.minute(),
        time.second()
    );
    element(GENERALIZED_TIME, text.as_bytes())
}

/// An answer to a question, signed by a key, with these certificates.
fn answer(question: &Question, status: u8, times: (i64, Option<i64>), key: &KeyPair, with: &[&Certificate]) -> Vec<u8> {
    let id = sequence(&[
        sequence(&[element(OBJECT, &SHA1), element(NULL, &[])]),
        element(OCTET_STRING, &question.name_hash),
        element(OCTET_STRING, &question.key_hash),
        element(INTEGER, &question.serial),
    ]);
    let status = element(status, &if status == REVOKED { time(NOW) } else { Vec::new() });
    let next = times.1.map_or_else(Vec::new, |next| element(EXPLICIT_0, &time(next)));
    let single = sequence(&[id, status, time(times.0), next]);
    let data = sequence(&[element(0xa2, &element(OCTET_STRING, &[3; 20])), time(times.0), sequence(&[single])]);
    let mut signature = vec![0];
    signature.extend(key.sign(&data).expect("a signature"));
    let algorithm = sequence(&[element(OBJECT, &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2])]);
    let mut basic = vec![data, algorithm, element(BIT_STRING, &signature)];
    if !with.is_empty() {
        let all: Vec<Vec<u8>> = with.iter().map(|certificate| certificate.der().to_vec()).collect();
        basic.push(element(EXPLICIT_0, &sequence(&all)));
    }
    let bytes = sequence(&[element(OBJECT, &BASIC), element(OCTET_STRING, &sequence(&basic))]);
    sequence(&[element(ENUMERATED, &[0]), element(EXPLICIT_0, &bytes)])
}

fn judge(question: &Question, answer: &[u8]) -> Result<Holds, NotOcsp> {
    question.judge(answer, NOW, default_provider().signature_verification_algorithms.all)
}

#[test]
fn a_question_needs_a_responder_and_the_issuer() {
    let ca = Ca::new();
    let chain = ca.chain();
    let question = Question::about(&chain).expect("a question");
    assert_eq!(question.url, "http://ocsp.test/");
    assert_eq!((question.name_hash.len(), question.key_hash.len()), (20, 20));
    assert_eq!(Question::about(&chain[..1]), Err(NoQuestion::NoIssuer));
    assert_eq!(Question::about(&[chain[0].clone(), chain[0].clone()]), Err(NoQuestion::NoIssuer));
    let (silent, _) = ca.issue(|_| {});
    let (secret, _) = ca.issue(|params| params.custom_extensions.push(access("https://ocsp.test/")));
    for leaf in [silent, secret] {
        assert_eq!(Question::about(&[leaf.der().to_vec(), chain[1].clone()]), Err(NoQuestion::NoResponder));
    }
}

#[test]
fn an_answer_of_the_issuer_or_of_one_it_has_charged_is_taken() {
    let ca = Ca::new();
    let question = Question::about(&ca.chain()).expect("a question");
    let times = (NOW - 10, Some(NOW + 10));
    let good = answer(&question, GOOD, times, ca.issuer.key(), &[]);
    assert_eq!(judge(&question, &good), Ok(Holds { this_update: NOW - 10, next_update: NOW + 10 }));
    let unsaid = answer(&question, GOOD, (NOW - 10, None), ca.issuer.key(), &[]);
    assert_eq!(judge(&question, &unsaid).map(|holds| holds.next_update), Ok(NOW - 10 + UNSAID));
    let signs =
        |params: &mut CertificateParams| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::OcspSigning];
    let (delegate, key) = ca.issue(signs);
    assert!(judge(&question, &answer(&question, GOOD, times, &key, &[&delegate])).is_ok());

    let (uncharged, key) = ca.issue(|params| params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth]);
    assert_eq!(judge(&question, &answer(&question, GOOD, times, &key, &[&uncharged])), Err(NotOcsp::NotSigned));
    let (old, key) = ca.issue(|params| {
        signs(params);
        params.not_after = date_time_ymd(2020, 1, 1);
    });
    assert_eq!(judge(&question, &answer(&question, GOOD, times, &key, &[&old])), Err(NotOcsp::NotSigned));
    // Of an authority with the same name.
    let (foreign, key) = Ca::new().issue(signs);
    assert_eq!(judge(&question, &answer(&question, GOOD, times, &key, &[&foreign])), Err(NotOcsp::NotSigned));
    assert_eq!(judge(&question, &answer(&question, GOOD, times, &key, &[&delegate])), Err(NotOcsp::NotSigned));
}

#[test]
fn an_answer_of_something_else_or_of_another_time_is_not_taken() {
    let ca = Ca::new();
    let question = Question::about(&ca.chain()).expect("a question");
    let times = (NOW - 10, Some(NOW + 10));
    let told = |status, times| judge(&question, &answer(&question, status, times, ca.issuer.key(), &[]));
    assert_eq!(told(REVOKED, times), Err(NotOcsp::Revoked));
    assert_eq!(told(0x82, times), Err(NotOcsp::Unknown));
    for times in [(NOW - 10, Some(NOW)), (NOW + 1000, Some(NOW + 2000)), (NOW + 100, Some(NOW + 50))] {
        assert_eq!(told(GOOD, times), Err(NotOcsp::OutOfDate), "{times:?}");
    }
    let another = Question::about(&ca.chain()).expect("a question");
    let other = answer(&another, GOOD, times, ca.issuer.key(), &[]);
    assert_eq!(judge(&question, &other), Err(NotOcsp::OtherCertificate));
    let same_serial = Question { serial: question.serial.clone(), key_hash: vec![0; 20], ..another };
    let other = answer(&same_serial, GOOD, times, ca.issuer.key(), &[]);
    assert_eq!(judge(&question, &other), Err(NotOcsp::OtherCertificate), "of another issuer");
    let good = answer(&question, GOOD, times, ca.issuer.key(), &[]);
    for at in 0..good.len() {
        let mut bent = good.clone();
        bent[at] ^= 1;
        // Only what is around the signed part may be bent and still be the same answer.
        if let Ok(holds) = judge(&question, &bent) {
            assert_eq!(holds, Holds { this_update: NOW - 10, next_update: NOW + 10 }, "byte {at}");
        }
    }
}

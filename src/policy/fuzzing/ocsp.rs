//! Certificates and what OCSP responders say of them: nothing unsigned holds, and nothing out of time.

use rustls::crypto::aws_lc_rs as provider;
use x509_parser::{certificate::X509Certificate, prelude::FromDer};

use super::super::ocsp::{Question, next_update};

/// A time within the seeds', and one before all.
const TIMES: [i64; 2] = [1_800_000_000, 0];

/// The length of a chain in two bytes, the chain, and an answer about its first certificate.
///
/// # Panics
/// If that does not hold.
pub fn ocsp(input: &[u8]) {
    let Some((length, rest)) = input.split_first_chunk::<2>() else { return };
    let (chain, answer) = rest.split_at(usize::from(u16::from_be_bytes(*length)).min(rest.len()));
    let leaf = X509Certificate::from_der(chain).ok();
    let serial = leaf.as_ref().map_or(&[7][..], |(_, leaf)| leaf.raw_serial());
    let until = next_update(answer, serial);
    if until.is_ok() {
        assert_eq!(next_update(&[answer, b"\x30\0"].concat(), serial), until, "something behind it was read");
    }
    let rest = leaf.as_ref().map_or(&[][..], |(rest, _)| rest);
    let Ok(question) = Question::about(&[&chain[..chain.len() - rest.len()], rest]) else { return };
    assert!(question.url.starts_with("http://"));
    assert!(question.request.starts_with(&[0x30]) && question.request.ends_with(serial));
    for now in TIMES {
        assert!(question.judge(answer, now, &[]).is_err(), "nobody has signed it");
        let algorithms = provider::default_provider().signature_verification_algorithms.all;
        if let Ok(holds) = question.judge(answer, now, algorithms) {
            assert!(holds.this_update < holds.next_update && now < holds.next_update, "{holds:?} at {now}");
            assert!(until.is_ok_and(|until| until.is_none_or(|until| until == holds.next_update)), "{holds:?}");
        }
    }
}

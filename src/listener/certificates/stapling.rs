//! OCSP responses that are fetched: of which certificates, when, and what is kept of the answers. Pure: who asks the
//! responders comes for the questions and brings the answers.

use std::{collections::BTreeMap, sync::Arc};

use rustls::pki_types::{CertificateDer, SignatureVerificationAlgorithm};

use crate::{
    config::model::{Certificate, Ocsp},
    policy::ocsp::{Holds, NoQuestion, NotOcsp, Question},
    types::Name,
};

/// In seconds: after the first failure, doubled by each further one up to the most.
const FIRST_PAUSE: i64 = 2;
const LONGEST_PAUSE: i64 = 3600;

/// A responder did not give what was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoStaple {
    /// It could not be asked.
    #[error("{0}")]
    NotAsked(String),
    /// What it said is of no use.
    #[error("{0}")]
    Bad(#[from] NotOcsp),
}

/// All certificates whose responses are fetched.
#[derive(Default)]
pub(super) struct Stapling(BTreeMap<Name, Entry>);

struct Entry {
    leaf: CertificateDer<'static>,
    question: Arc<Question>,
    answer: Option<Ocsp>,
    /// When to ask next, in seconds since 1970.
    due: i64,
    failures: u32,
    asked: bool,
}

impl Stapling {
    /// Follows the certificates as they are now. Gives those that nobody can be asked about and were not known so far.
    pub(super) fn follow<'c>(
        &mut self,
        certificates: impl Iterator<Item = &'c Arc<Certificate>>,
        given_up: &mut BTreeMap<Name, CertificateDer<'static>>,
    ) -> Vec<(Name, NoQuestion)> {
        let (mut kept, mut news) = (BTreeMap::new(), Vec::new());
        let mut out = BTreeMap::new();
        for certificate in certificates.filter(|certificate| certificate.ocsp_fetch) {
            let Some(leaf) = certificate.key.cert.first() else { continue };
            let name = &certificate.name;
            if let Some(entry) = self.0.remove(name).filter(|entry| entry.leaf == *leaf) {
                kept.insert(name.clone(), entry);
                continue;
            }
            match Question::about(&certificate.key.cert) {
                Ok(question) => {
                    let (leaf, question) = (leaf.clone(), Arc::new(question));
                    let entry = Entry { leaf, question, answer: None, due: 0, failures: 0, asked: false };
                    kept.insert(name.clone(), entry);
                }
                Err(error) => {
                    if given_up.get(name) != Some(leaf) {
                        news.push((name.clone(), error));
                    }
                    out.insert(name.clone(), leaf.clone());
                }
            }
        }
        self.0 = kept;
        *given_up = out;
        news
    }

    /// What is to be asked now. Each is due no more until its answer is brought.
    pub(super) fn due(&mut self, now: i64) -> Vec<(Name, Arc<Question>)> {
        let due = self.0.iter_mut().filter(|(_, entry)| !entry.asked && entry.due <= now);
        due.map(|(name, entry)| {
            entry.asked = true;
            (name.clone(), entry.question.clone())
        })
        .collect()
    }

    /// Takes an answer; `random` is from 0 to 1. A bad one leaves the last good one, which is sent along while it holds; but
    /// nobody is told that a certificate was good when it is known to be revoked. Gives when the next is asked for; `None`
    /// where the certificate has gone meanwhile.
    pub(super) fn answered(
        &mut self,
        (name, question): (&Name, &Arc<Question>),
        answer: Result<&[u8], NoStaple>,
        (now, random): (i64, f64),
        algorithms: &[&dyn SignatureVerificationAlgorithm],
    ) -> Option<(i64, Result<(), NoStaple>)> {
        let entry = self.0.get_mut(name).filter(|entry| Arc::ptr_eq(&entry.question, question))?;
        entry.asked = false;
        let judged = answer.and_then(|der| Ok((der, question.judge(der, now, algorithms)?)));
        let (pause, result) = match judged {
            Ok((der, holds)) => {
                entry.answer = Some(Ocsp { path: None, der: der.into(), next_update: Some(holds.next_update) });
                entry.failures = 0;
                (refresh(holds, now, random), Ok(()))
            }
            Err(error) => {
                if error == NoStaple::Bad(NotOcsp::Revoked) {
                    entry.answer = None;
                }
                entry.failures = entry.failures.saturating_add(1);
                (pause(entry.failures, random), Err(error))
            }
        };
        entry.due = now.saturating_add(pause);
        Some((pause, result))
    }

    /// The certificate with what is known of it.
    pub(super) fn filled(&self, certificate: &Arc<Certificate>) -> Arc<Certificate> {
        if !certificate.ocsp_fetch {
            return certificate.clone();
        }
        let entry = self.0.get(&certificate.name).filter(|entry| certificate.key.cert.first() == Some(&entry.leaf));
        let ocsp = entry.and_then(|entry| entry.answer.clone());
        if certificate.ocsp == ocsp {
            return certificate.clone();
        }
        Arc::new(Certificate { ocsp, ..Certificate::clone(certificate) })
    }
}

/// Until the next answer is asked for: half of the time that it holds, or of what is left of that; a tenth earlier at most, so
/// that not all ask at once.
fn refresh(holds: Holds, now: i64, random: f64) -> i64 {
    let half = holds.this_update + (holds.next_update - holds.this_update) / 2 - now;
    let half = if half > 0 { half } else { (holds.next_update - now) / 2 };
    scaled(half, 1.0 - random / 10.0)
}

/// Until the next attempt: from half of the pause to all of it.
fn pause(failures: u32, random: f64) -> i64 {
    let doubled = FIRST_PAUSE << failures.saturating_sub(1).min(16);
    scaled(doubled.min(LONGEST_PAUSE), 0.5 + random / 2.0)
}

fn scaled(seconds: i64, by: f64) -> i64 {
    ((seconds as f64 * by) as i64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_renewed_when_half_of_its_time_is_over() {
        let holds = Holds { this_update: 1_000, next_update: 3_000 };
        assert_eq!(refresh(holds, 1_000, 0.0), 1_000);
        assert_eq!(refresh(holds, 1_000, 1.0), 900);
        assert_eq!(refresh(holds, 1_500, 0.0), 500);
        assert_eq!(refresh(holds, 2_600, 0.0), 200, "an old one, of a cache");
        assert_eq!(refresh(holds, 2_999, 0.0), 1);
    }

    #[test]
    fn failures_are_followed_by_longer_and_longer_pauses_up_to_an_hour() {
        assert_eq!((pause(1, 1.0), pause(2, 1.0), pause(3, 1.0)), (2, 4, 8));
        assert_eq!((pause(40, 1.0), pause(40, 0.0), pause(u32::MAX, 1.0)), (3_600, 1_800, 3_600));
    }
}

//! The last requests that failed and the last changes that were refused: bounded lists for people who ask what went wrong
//! a moment ago. How many failed is the metrics' to say. Nothing is allocated for texts while nothing fails, and once the list
//! of requests is full its texts are used again.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;

use crate::types::Reason;

/// Failed requests that are kept.
pub const KEPT_REQUESTS: usize = 256;
/// Refused changes that are kept. They are apart, so that a flood of failing requests does not push them out.
pub const KEPT_CHANGES: usize = 64;
/// Bytes kept of a host, a path or a name.
const LONGEST_TEXT: usize = 256;
/// Bytes kept of a method.
const LONGEST_METHOD: usize = 32;
/// Bytes kept of what a refusal said; a report of a broken configuration is longer, and its beginning says enough.
const LONGEST_DETAIL: usize = 2048;

/// What is known of a request when it has failed.
#[derive(Clone, Copy, Debug)]
pub struct FailedRequest<'a> {
    /// When it ended.
    pub time: SystemTime,
    /// Why. What is no failure is not kept.
    pub reason: Reason,
    /// What the client got; 0 where it got nothing.
    pub status: u16,
    /// As sent.
    pub method: &'a [u8],
    /// As sent.
    pub host: &'a [u8],
    /// As sent; the query, which may hold secrets, is left out.
    pub path: &'a [u8],
    /// Empty where none was chosen.
    pub upstream: &'a str,
    /// Empty where none was chosen.
    pub backend: &'a str,
    /// Empty where it has none.
    pub request_id: &'a [u8],
}

/// What is known of a change that was refused or failed.
#[derive(Clone, Copy, Debug)]
pub struct FailedChange<'a> {
    /// When.
    pub time: SystemTime,
    /// Who wanted it.
    pub who: &'a str,
    /// What was wanted: `reload`, `patchBackend` …
    pub what: &'a str,
    /// The upstream, where it is about one.
    pub upstream: &'a str,
    /// The backend, where it is about one.
    pub backend: &'a str,
    /// A word for why.
    pub reason: &'static str,
    /// Why, in a sentence.
    pub detail: &'a str,
}

/// One entry of the lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Failure {
    /// A change that was refused or failed.
    Change(ChangeFailure),
    /// A request that failed.
    Request(RequestFailure),
}

/// As [`FailedRequest`], kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct RequestFailure {
    /// Milliseconds since 1970.
    pub time: u64,
    /// As in logs and metrics.
    pub reason: &'static str,
    /// 0: the client got nothing.
    pub status: u16,
    /// At most 32 bytes of it.
    pub method: String,
    /// At most 256 bytes of it.
    pub host: String,
    /// At most 256 bytes of it.
    pub path: String,
    /// As in the configuration.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub upstream: String,
    /// Its id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub backend: String,
    /// As in the access log.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub request_id: String,
}

/// As [`FailedChange`], kept.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ChangeFailure {
    /// Milliseconds since 1970.
    pub time: u64,
    /// A word for why.
    pub reason: &'static str,
    /// Who wanted it.
    pub who: String,
    /// What was wanted.
    pub what: String,
    /// As in the configuration.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub upstream: String,
    /// Its id.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub backend: String,
    /// Why, in a sentence.
    pub detail: String,
}

impl Failure {
    /// Milliseconds since 1970.
    pub fn time(&self) -> u64 {
        match self {
            Self::Change(change) => change.time,
            Self::Request(request) => request.time,
        }
    }
}

/// The lists.
#[derive(Debug)]
pub struct Failures {
    requests: Mutex<VecDeque<RequestFailure>>,
    changes: Mutex<VecDeque<ChangeFailure>>,
}

impl Default for Failures {
    /// With room for all: a list that grows with failures comes to lie between what requests have for their time, and holds
    /// the pages of that.
    fn default() -> Self {
        let (requests, changes) = (VecDeque::with_capacity(KEPT_REQUESTS), VecDeque::with_capacity(KEPT_CHANGES));
        Self { requests: Mutex::new(requests), changes: Mutex::new(changes) }
    }
}

impl Failures {
    /// Keeps a request that failed; one that did not is passed over. Cost: a lock and a copy of at most some kilobyte.
    pub fn record(&self, request: &FailedRequest<'_>) {
        if !request.reason.is_failure() {
            return;
        }
        let mut kept = lock(&self.requests);
        let full = kept.len() >= KEPT_REQUESTS;
        let mut slot = full.then(|| kept.pop_front()).flatten().unwrap_or_default();
        slot.time = millis(request.time);
        slot.reason = request.reason.as_str();
        slot.status = request.status;
        let path = request.path.split(|byte| *byte == b'?').next().unwrap_or_default();
        keep(&mut slot.method, request.method, LONGEST_METHOD);
        keep(&mut slot.host, request.host, LONGEST_TEXT);
        keep(&mut slot.path, path, LONGEST_TEXT);
        keep(&mut slot.upstream, request.upstream.as_bytes(), LONGEST_TEXT);
        keep(&mut slot.backend, request.backend.as_bytes(), LONGEST_TEXT);
        keep(&mut slot.request_id, request.request_id, LONGEST_TEXT);
        kept.push_back(slot);
    }

    /// Keeps a change that was refused or failed.
    pub fn record_change(&self, change: &FailedChange<'_>) {
        let mut slot = ChangeFailure { time: millis(change.time), reason: change.reason, ..ChangeFailure::default() };
        keep(&mut slot.who, change.who.as_bytes(), LONGEST_TEXT);
        keep(&mut slot.what, change.what.as_bytes(), LONGEST_TEXT);
        keep(&mut slot.upstream, change.upstream.as_bytes(), LONGEST_TEXT);
        keep(&mut slot.backend, change.backend.as_bytes(), LONGEST_TEXT);
        keep(&mut slot.detail, change.detail.as_bytes(), LONGEST_DETAIL);
        let mut kept = lock(&self.changes);
        if kept.len() >= KEPT_CHANGES {
            kept.pop_front();
        }
        kept.push_back(slot);
    }

    /// Puts what another process kept, the newest first, before all that is kept here.
    pub fn take_over(&self, failures: Vec<Failure>) {
        let (mut requests, mut changes) = (lock(&self.requests), lock(&self.changes));
        for failure in failures {
            match failure {
                Failure::Request(one) if requests.len() < KEPT_REQUESTS => requests.push_front(one),
                Failure::Change(one) if changes.len() < KEPT_CHANGES => changes.push_front(one),
                _ => {}
            }
        }
    }

    /// The last `most` of both, the newest first.
    pub fn last(&self, most: usize) -> Vec<Failure> {
        let requests: Vec<RequestFailure> = lock(&self.requests).iter().rev().take(most).cloned().collect();
        let changes: Vec<ChangeFailure> = lock(&self.changes).iter().rev().take(most).cloned().collect();
        let requests = requests.into_iter().map(Failure::Request);
        let mut all: Vec<Failure> = requests.chain(changes.into_iter().map(Failure::Change)).collect();
        all.sort_by_key(|failure| std::cmp::Reverse(failure.time()));
        all.truncate(most);
        all
    }
}

fn lock<T>(list: &Mutex<VecDeque<T>>) -> MutexGuard<'_, VecDeque<T>> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}

fn millis(time: SystemTime) -> u64 {
    u64::try_from(time.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

/// Puts at most `most` bytes of `bytes` in place of `text`, as text that moves no terminal; `…` says that it was longer.
fn keep(text: &mut String, bytes: &[u8], most: usize) {
    const MORE: char = '…';
    text.clear();
    // What is cut off is more than any replacement adds, so a prefix of this length decides.
    let head = bytes.get(..most + 4).unwrap_or(bytes);
    for chunk in head.utf8_chunks() {
        text.extend(
            chunk.valid().chars().map(|c| if c.is_control() && c != '\n' { char::REPLACEMENT_CHARACTER } else { c }),
        );
        if !chunk.invalid().is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
        }
    }
    if text.len() > most {
        let fits = |end: &usize| text.is_char_boundary(*end);
        let end = (0..=most - MORE.len_utf8()).rev().find(fits).unwrap_or(0);
        text.truncate(end);
        text.push(MORE);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(second: u64) -> SystemTime {
        UNIX_EPOCH + Duration::from_secs(second)
    }

    fn failed(second: u64, path: &[u8]) -> FailedRequest<'_> {
        FailedRequest {
            time: at(second),
            reason: Reason::ConnectRefused,
            status: 502,
            method: b"GET",
            host: b"app.test",
            path,
            upstream: "app",
            backend: "app-1",
            request_id: b"abc",
        }
    }

    #[test]
    fn only_failures_are_kept_and_the_newest_comes_first() {
        let failures = Failures::default();
        failures.record(&FailedRequest { reason: Reason::Ok, ..failed(1, b"/fine") });
        failures.record(&failed(2, b"/first?token=secret"));
        failures.record_change(&FailedChange {
            time: at(3),
            who: "uid 1000",
            what: "patchBackend",
            upstream: "app",
            backend: "app-1",
            reason: "last-ready",
            detail: "app-1 is the last backend that is ready",
        });
        failures.record(&failed(4, b"/second"));
        let last = failures.last(10);
        let texts: Vec<String> = last.iter().map(|one| serde_json::to_string(one).expect("JSON")).collect();
        assert_eq!(texts.len(), 3, "{texts:?}");
        assert!(texts[0].contains(r#""kind":"request""#) && texts[0].contains(r#""path":"/second""#), "{}", texts[0]);
        assert!(texts[1].contains(r#""kind":"change""#) && texts[1].contains("last-ready"), "{}", texts[1]);
        assert!(texts[2].contains(r#""path":"/first""#) && !texts[2].contains("secret"), "{}", texts[2]);
        assert_eq!(failures.last(1), last[..1]);
    }

    #[test]
    fn the_list_is_bounded_and_a_flood_of_requests_pushes_no_change_out() {
        let failures = Failures::default();
        let change = FailedChange {
            time: at(1),
            who: "token",
            what: "reload",
            upstream: "",
            backend: "",
            reason: "busy",
            detail: "another reload is under way",
        };
        failures.record_change(&change);
        for second in 0..3 * KEPT_REQUESTS as u64 {
            failures.record(&failed(second, b"/"));
        }
        let all = failures.last(usize::MAX);
        assert_eq!(all.len(), KEPT_REQUESTS + 1);
        assert!(all.iter().any(|one| matches!(one, Failure::Change(change) if change.reason == "busy")));
        assert_eq!(all[0].time(), (3 * KEPT_REQUESTS as u64 - 1) * 1000);
        for _ in 0..2 * KEPT_CHANGES {
            failures.record_change(&change);
        }
        assert_eq!(failures.last(usize::MAX).len(), KEPT_REQUESTS + KEPT_CHANGES);
    }

    #[test]
    fn long_and_broken_texts_are_shortened_to_plain_ones() {
        let failures = Failures::default();
        let long = "ü".repeat(400);
        failures.record(&failed(1, long.as_bytes()));
        failures.record(&failed(2, b"/a\x1b[31m\xff/b"));
        let [Failure::Request(broken), Failure::Request(long)] = &failures.last(2)[..] else { panic!("two requests") };
        assert_eq!(broken.path, "/a\u{fffd}[31m\u{fffd}/b");
        assert!(long.path.len() <= LONGEST_TEXT && long.path.ends_with("ü…"), "{}", long.path);
    }
}

//! Whose what backends got is, and what of it the client was answered. Requests that are alike cannot be told apart, so it is
//! looked for any way that explains all of it.

use std::collections::HashSet;

use super::{
    judge::{Asked, Given, given},
    lane::{Backend, Record},
    strict::{Message, Read},
};

/// A request is tried so often, and once more for each pooled connection that turns out to be closed.
const ATTEMPTS: usize = 6;
const IDEMPOTENT: [&[u8]; 6] = [b"DELETE", b"GET", b"HEAD", b"OPTIONS", b"PUT", b"TRACE"];

/// What a backend got of a request, on which connection, as which one there.
struct Attempt<'a> {
    backend: &'a Backend,
    position: usize,
    /// Its head and its data so far; `None` where not even the head has come. For that an attempt is nobody's or anybody's.
    got: Option<Message>,
    whole: bool,
}

/// The search.
struct Search<'a> {
    asked: &'a [Asked],
    answers: &'a [Message],
    attempts: Vec<Attempt<'a>>,
    /// What leads nowhere: requests of the client from here on, and attempts from there on.
    vain: HashSet<(usize, usize)>,
    /// Where most of it was explained, and what could not be.
    best: ((usize, usize), String),
}

/// Sees that what backends got are the client's requests in their order, each as often as it may be tried; and that what the client
/// got for each is the last attempt's answer, or one of ours.
///
/// # Panics
/// It is not so.
pub(super) fn explain(record: &Record, asked: &[Asked], answers: &[Message]) {
    let mut seen = vec![0; record.backends.len()];
    let attempts = record.order.iter().map(|index| {
        let (backend, position) = (&record.backends[*index], seen[*index]);
        seen[*index] += 1;
        let (got, whole) = match backend.request(position) {
            Read::Whole(got, _) => (Some(got), true),
            Read::Part(got) => (got, false),
            Read::Bad(why) | Read::Broken(_, why) => panic!("a backend got no request: {why}"),
        };
        Attempt { backend, position, got, whole }
    });
    let attempts = attempts.collect();
    let mut search = Search { asked, answers, attempts, vain: HashSet::new(), best: ((0, 0), String::new()) };
    let explained = search.from(0, 0);
    assert!(explained, "{}; with request and attempt {:?}", search.best.1, search.best.0);
}

impl Search<'_> {
    /// Whether the client's requests from `at` on explain the attempts from `first` on.
    fn from(&mut self, at: usize, first: usize) -> bool {
        if at == self.asked.len() {
            let Some(attempt) = self.attempts.get(first) else { return true };
            let got = attempt.got.as_ref().map(|got| got.start.clone());
            return self.no(at, first, format!("a backend got what no client has asked: {got:?}"));
        }
        if self.vain.contains(&(at, first)) {
            return false;
        }
        let mut last = first;
        loop {
            match self.answered(at, (last > first).then(|| &self.attempts[last - 1])) {
                Ok(()) if self.from(at + 1, last) => return true,
                Ok(()) => {}
                Err(why) => _ = self.no(at, last, why.to_owned()),
            }
            match self.tried(at, &self.attempts[first..], last - first) {
                Ok(()) => last += 1,
                Err(why) => {
                    _ = self.no(at, last, why.to_owned());
                    break;
                }
            }
        }
        self.vain.insert((at, first));
        false
    }

    fn no(&mut self, at: usize, attempt: usize, why: String) -> bool {
        if self.best.1.is_empty() || (at, attempt) > self.best.0 {
            self.best = ((at, attempt), why);
        }
        false
    }

    /// Whether the attempt after so many may be one of this request.
    fn tried(&self, at: usize, attempts: &[Attempt<'_>], before: usize) -> Result<(), &'static str> {
        let Some(attempt) = attempts.get(before) else { return Err("an answer that no backend gave") };
        let Asked { message, whole } = &self.asked[at];
        let to_head = message.start[0] == b"HEAD";
        if at > self.answers.len() {
            return Err("a request was sent though the one before it was not answered");
        }
        if let Some(got) = &attempt.got {
            let target = one_slash(&message.start[1]);
            let same = got.start[0] == message.start[0] && got.start[1] == target && got.start[2] == message.start[2];
            if !same || !got.all("host").eq(message.all("host")) {
                return Err("a backend got what no client has asked, or in another order");
            }
            let data =
                if attempt.whole { *whole && got.data == message.data } else { message.data.starts_with(&got.data) };
            if !data {
                return Err("a backend got other data than the client's");
            }
        }
        let Some(last) = before.checked_sub(1).map(|last| &attempts[last]) else { return Ok(()) };
        if before >= ATTEMPTS {
            return Err("a request was tried too often");
        }
        let seen = attempts[..before].iter().any(|attempt| !attempt.backend.got_nothing_of(attempt.position));
        if seen && !IDEMPOTENT.contains(&&message.start[0][..]) {
            return Err("a request was repeated that must not be");
        }
        if last.backend.has_answered(last.position, to_head) {
            return Err("a request was repeated though it was answered");
        }
        Ok(())
    }

    /// Whether what the client got for this request is the answer to `attempt`, the last one, or one of ours, or nothing.
    fn answered(&self, at: usize, attempt: Option<&Attempt<'_>>) -> Result<(), &'static str> {
        let Some(answer) = self.answers.get(at).filter(|answer| !answer.is_ours()) else { return Ok(()) };
        let attempt = attempt.ok_or("an answer that no backend gave")?;
        let to_head = self.asked[at].message.start[0] == b"HEAD";
        let given = given(attempt.backend.gave_for(attempt.position), to_head);
        let (from, given) = given.ok_or("an answer that is not the backend's")?;
        let whole = matches!(given, Given::Whole | Given::WithMore);
        if !(whole || from.open && attempt.backend.closed) {
            return Err("the backend's answer broke off, and the client is not told");
        }
        if (answer.status(), &answer.data) == (from.status(), &from.data) {
            Ok(())
        } else {
            Err("another answer than the backend's")
        }
    }
}

/// A target as backends get it: with one slash where it begins with several, which some take for an authority's.
fn one_slash(target: &[u8]) -> &[u8] {
    let slashes = target.iter().take_while(|byte| **byte == b'/').count();
    &target[slashes.saturating_sub(1)..]
}

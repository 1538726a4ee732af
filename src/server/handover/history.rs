//! What was told and what failed in the process before, so that people who ask its successor find it there and readers of
//! events go on with the numbers they have.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::telemetry::{
    events::{Epoch, Event, Events, KEPT},
    failures::{ChangeFailure, Failure, RequestFailure},
    metrics::Metrics,
};

/// Different words that are taken over; there are some dozens.
const WORDS: usize = 256;

/// As the admin API shows both.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(in crate::server) struct History {
    /// Of the events' numbers.
    epoch: Option<u64>,
    /// Oldest first.
    events: Vec<Value>,
    /// Newest first.
    failures: Vec<Value>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct HandedEvent {
    id: u64,
    time: u64,
    kind: String,
    upstream: String,
    backend: String,
    who: String,
    what: String,
    why: String,
}

/// A request's or a change's.
#[derive(Default, Deserialize)]
#[serde(default)]
struct HandedFailure {
    kind: String,
    time: u64,
    reason: String,
    status: u16,
    method: String,
    host: String,
    path: String,
    upstream: String,
    backend: String,
    request_id: String,
    who: String,
    what: String,
    detail: String,
}

impl History {
    /// All that is kept.
    pub(in crate::server) fn collect(events: &Events, metrics: &Metrics) -> Self {
        let Epoch(epoch) = events.epoch();
        let events = events.after(0, KEPT).0;
        let failures = metrics.last_failures().last(usize::MAX);
        Self {
            epoch: Some(epoch),
            events: events.iter().flat_map(serde_json::to_value).collect(),
            failures: failures.iter().flat_map(serde_json::to_value).collect(),
        }
    }

    /// Goes on from there. Returns who asked for the upgrade.
    pub(in crate::server) fn apply(&self, events: &Events, metrics: &Metrics) -> String {
        let mut words = Words::default();
        let told: Vec<HandedEvent> = self.events.iter().flat_map(HandedEvent::deserialize).collect();
        let asked = told.iter().rev().find(|event| event.kind == "process.upgrading");
        let who = asked.map_or_else(|| "-u".to_owned(), |event| event.who.clone());
        let mut last = 0;
        let mut list = Vec::with_capacity(told.len().min(KEPT));
        for event in told {
            let HandedEvent { id, time, kind, upstream, backend, who, what, why } = event;
            // Numbers grow, and leave room for those to come.
            if id > last && id < u64::MAX / 2 {
                last = id;
                list.push(Event { id, time, kind: words.kept(kind), upstream, backend, who, what, why });
            }
        }
        events.take_over(list, self.epoch.map(Epoch));
        let failures = self.failures.iter().flat_map(HandedFailure::deserialize);
        metrics.last_failures().take_over(failures.map(|failure| failure.kept(&mut words)).collect());
        who
    }
}

impl HandedFailure {
    fn kept(self, words: &mut Words) -> Failure {
        let Self { kind, time, reason, status, method, host, path, upstream, backend, request_id, who, what, detail } =
            self;
        let reason = words.kept(reason);
        match kind.as_str() {
            "change" => Failure::Change(ChangeFailure { time, reason, who, what, upstream, backend, detail }),
            _ => Failure::Request(RequestFailure {
                time,
                reason,
                status,
                method,
                host,
                path,
                upstream,
                backend,
                request_id,
            }),
        }
    }
}

/// Words that another build may know and this one not. They are kept for good, once each, as those of this one are.
#[derive(Default)]
struct Words(BTreeMap<String, &'static str>);

impl Words {
    fn kept(&mut self, word: String) -> &'static str {
        match self.0.get(&word) {
            Some(kept) => kept,
            None if self.0.len() >= WORDS => "other",
            None => {
                let kept: &'static str = Box::leak(word.clone().into_boxed_str());
                self.0.insert(word, kept);
                kept
            }
        }
    }
}

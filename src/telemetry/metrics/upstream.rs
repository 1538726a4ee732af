//! What is counted of upstreams and their backends.

use std::{ops::Deref, sync::Arc, time::Duration};

use super::{
    super::cell::{Durations, Padded, PerWorker},
    Counter, Gauge,
};
use crate::types::AttemptFailure;

/// Whether an upstream connection had served a request before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectionUse {
    /// Made for this request.
    Fresh,
    /// From the pool.
    Reused,
}

/// Counts of one upstream.
#[derive(Debug)]
pub struct UpstreamMetrics {
    pub(super) per_worker: PerWorker<UpstreamCounts>,
    pub(super) retries: [Counter; AttemptFailure::ALL.len()],
    /// Retries that the budget did not allow.
    pub retry_budget_exhausted: Counter,
}

#[derive(Debug, Default)]
pub(super) struct UpstreamCounts {
    /// Of statuses 1xx to 5xx; the last counts requests without an answer.
    pub(super) by_class: [Counter; CLASSES.len()],
    pub(super) durations: Durations,
    pub(super) in_flight: Gauge,
    pub(super) connections_fresh: Counter,
    pub(super) connections_reused: Counter,
}

/// Adds answers to answers.
pub(super) fn add(one: (u64, u64), other: (u64, u64)) -> (u64, u64) {
    (one.0 + other.0, one.1 + other.1)
}

/// The label `status`.
pub(super) const CLASSES: [&str; 6] = ["1xx", "2xx", "3xx", "4xx", "5xx", "none"];

impl UpstreamMetrics {
    pub(super) fn new(workers: usize) -> Self {
        Self {
            per_worker: PerWorker::new(workers),
            retries: Default::default(),
            retry_budget_exhausted: Counter::default(),
        }
    }

    /// Counts a request as in flight on `worker` until the guard is dropped.
    pub fn begin(&self, worker: usize) -> RequestInFlight {
        let counts = self.per_worker.of(worker);
        counts.in_flight.increment();
        RequestInFlight(Arc::clone(counts))
    }

    /// Finished requests so far, and those of them with a 5xx.
    pub(super) fn answers(&self) -> (u64, u64) {
        let of = |counts: &UpstreamCounts| {
            let all = counts.by_class.iter().map(|class| class.value()).sum();
            (all, counts.by_class.get(4).map_or(0, |class| class.value()))
        };
        self.per_worker.iter().map(of).fold((0, 0), add)
    }

    /// Counts a finished request. `status`: what the client got, 0 where it got none.
    pub fn finished(&self, worker: usize, status: u16, duration: Duration) {
        let counts = self.per_worker.of(worker);
        let class = match status {
            100..=599 => usize::from(status / 100 - 1),
            _ => CLASSES.len() - 1,
        };
        if let Some(counter) = counts.by_class.get(class) {
            counter.increment();
        }
        counts.durations.observe(duration);
    }

    /// Counts a connection that a request was sent on.
    pub fn connection(&self, worker: usize, used: ConnectionUse) {
        let counts = self.per_worker.of(worker);
        match used {
            ConnectionUse::Fresh => counts.connections_fresh.increment(),
            ConnectionUse::Reused => counts.connections_reused.increment(),
        }
    }

    /// Counts a retry by the failure that called for it.
    pub fn retried(&self, failure: AttemptFailure) {
        if let Some(counter) = self.retries.get(failure.index()) {
            counter.increment();
        }
    }

    pub(super) fn sum(&self, part: impl Fn(&UpstreamCounts) -> &Counter) -> u64 {
        self.per_worker.iter().map(|counts| part(counts).value()).sum()
    }
}

/// A request in flight; counted until it is dropped.
#[derive(Debug)]
pub struct RequestInFlight(Arc<Padded<UpstreamCounts>>);

impl Drop for RequestInFlight {
    fn drop(&mut self) {
        self.0.in_flight.decrement();
    }
}

/// Counts of one backend. `in_flight` is the number that balancing reads too.
#[derive(Debug, Default)]
#[repr(align(128))] // written by every worker; neighbours are read while balancing
pub struct BackendMetrics {
    pub(super) in_flight: Gauge,
    pub(super) requests: Counter,
    pub(super) up: Gauge,
    pub(super) checks_ok: Counter,
    pub(super) checks_failed: Counter,
    pub(super) flips_up: Counter,
    pub(super) flips_down: Counter,
    pub(super) ejected: Gauge,
    pub(super) ejections: Counter,
}

impl BackendMetrics {
    /// Counts an attempt at this backend, and as in flight until the guard is dropped.
    pub fn begin(self: &Arc<Self>) -> AttemptInFlight {
        self.requests.increment();
        self.in_flight.increment();
        AttemptInFlight(Arc::clone(self))
    }

    /// Attempts in flight now, over all workers.
    pub fn in_flight(&self) -> usize {
        usize::try_from(self.in_flight.value()).unwrap_or(0)
    }

    /// Tells whether the backend gets traffic.
    pub fn set_up(&self, up: bool) {
        self.up.set(up.into());
    }

    /// Tells whether it is out for failing the requests it was sent.
    pub fn set_ejected(&self, ejected: bool) {
        self.ejected.set(ejected.into());
    }

    /// Counts an ejection, which begins.
    pub fn ejected(&self) {
        self.ejections.increment();
        self.set_ejected(true);
    }

    /// Counts a probe.
    pub fn checked(&self, success: bool) {
        if success { &self.checks_ok } else { &self.checks_failed }.increment();
    }

    /// Counts a change of the verdict, to up or to down.
    pub fn flipped(&self, up: bool) {
        if up { &self.flips_up } else { &self.flips_down }.increment();
    }
}

/// An attempt in flight; counted until it is dropped.
#[derive(Debug)]
pub struct AttemptInFlight(Arc<BackendMetrics>);

impl Deref for AttemptInFlight {
    type Target = BackendMetrics;

    fn deref(&self) -> &BackendMetrics {
        &self.0
    }
}

impl Drop for AttemptInFlight {
    fn drop(&mut self) {
        self.0.in_flight.decrement();
    }
}

//! The numbers behind the metrics: atomics that cost a request an addition, spread over workers where every request of
//! every worker writes.

use std::{
    ops::Deref,
    sync::{
        Arc,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Adds `amount`.
    pub fn add(&self, amount: u64) {
        // Relaxed here and below: a number alone, nothing is published with it.
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// The number now.
    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds one.
    pub fn increment(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes one off.
    pub fn decrement(&self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }

    /// Puts a number in place.
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The number now.
    pub fn value(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// One value per worker, each on its own cache lines.
#[derive(Debug)]
pub(crate) struct PerWorker<T>(Box<[Arc<Padded<T>>]>);

/// A value of one worker. Its handles are counted beside it, so that counting them touches no other worker's memory either.
#[derive(Debug, Default)]
#[repr(align(128))] // two lines: prefetchers fetch in pairs
pub(crate) struct Padded<T>(T);

impl<T> Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Default> PerWorker<T> {
    pub(crate) fn new(workers: usize) -> Self {
        Self((0..workers.max(1)).map(|_| Arc::default()).collect())
    }

    /// The value of `worker`, counted round.
    pub(crate) fn of(&self, worker: usize) -> &Arc<Padded<T>> {
        let Self(values) = self;
        &values[worker % values.len()] // never empty
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(|value| &***value)
    }
}

/// Upper bounds of the duration buckets: what Prometheus clients use, with finer steps below 5 ms (a proxy on the same
/// network) and coarser ones up to the default timeout.
pub(crate) const BOUNDS: [(Duration, &str); 16] = [
    (Duration::from_micros(500), "0.0005"),
    (Duration::from_millis(1), "0.001"),
    (Duration::from_micros(2_500), "0.0025"),
    (Duration::from_millis(5), "0.005"),
    (Duration::from_millis(10), "0.01"),
    (Duration::from_millis(25), "0.025"),
    (Duration::from_millis(50), "0.05"),
    (Duration::from_millis(100), "0.1"),
    (Duration::from_millis(250), "0.25"),
    (Duration::from_millis(500), "0.5"),
    (Duration::from_secs(1), "1"),
    (Duration::from_millis(2_500), "2.5"),
    (Duration::from_secs(5), "5"),
    (Duration::from_secs(10), "10"),
    (Duration::from_secs(30), "30"),
    (Duration::from_secs(60), "60"),
];

/// Durations by size. The count is the sum of the buckets, so that a request costs two additions.
#[derive(Debug, Default)]
pub(crate) struct Durations {
    buckets: [Counter; BOUNDS.len() + 1],
    micros: Counter,
}

impl Durations {
    pub(crate) fn observe(&self, duration: Duration) {
        let bucket = BOUNDS.partition_point(|(bound, _)| *bound < duration);
        if let Some(bucket) = self.buckets.get(bucket) {
            bucket.increment();
        }
        self.micros.add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX));
    }

    /// Counts per bucket, not summed up; the last is beyond all bounds.
    pub(crate) fn counts(&self) -> [u64; BOUNDS.len() + 1] {
        self.buckets.each_ref().map(Counter::value)
    }

    pub(crate) fn micros(&self) -> u64 {
        self.micros.value()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let durations = Durations::default();
        for duration in [Duration::ZERO, BOUNDS[0].0, BOUNDS[0].0 + Duration::from_nanos(1), Duration::from_secs(61)] {
            durations.observe(duration);
        }
        let counts = durations.counts();
        assert_eq!((counts[0], counts[1], counts[16], counts.iter().sum::<u64>()), (2, 1, 1, 4));
        assert!(BOUNDS.is_sorted_by_key(|(bound, _)| *bound));
        for (bound, text) in BOUNDS {
            assert_eq!(text.parse(), Ok(bound.as_secs_f64()));
        }
    }

    #[test]
    fn any_worker_number_finds_a_cell() {
        let cells: PerWorker<Counter> = PerWorker::new(0);
        cells.of(7).increment();
        assert_eq!(cells.iter().map(Counter::value).sum::<u64>(), 1);
    }
}

//! What is said of HTTP/2 connections that were ended for what their client did: each is counted, and a line a second
//! is logged.

use std::{
    fmt::Display,
    net::IpAddr,
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use crate::telemetry::metrics::{H2Abuse, Metrics};

/// Between two lines of a worker.
const EVERY: Duration = Duration::from_secs(1);

/// A worker's share of the lines.
#[derive(Debug, Default)]
pub(in crate::listener) struct AbuseLog(Mutex<Lines>);

#[derive(Debug, Default)]
struct Lines {
    last: Option<Instant>,
    skipped: u64,
}

impl Lines {
    /// Whether to log now, and how many were not logged since the last.
    fn take(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.saturating_duration_since(last) < EVERY) {
            self.skipped += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.skipped))
    }
}

impl AbuseLog {
    /// Counts a connection that has ended, and logs it where it is time to.
    pub(super) fn ended(&self, metrics: &Metrics, listener: &impl Display, client: Option<IpAddr>, kind: H2Abuse) {
        metrics.h2_abused(kind);
        let line = self.0.lock().unwrap_or_else(PoisonError::into_inner).take(Instant::now());
        let Some(skipped) = line else { return };
        let kind = kind.as_str();
        match client {
            Some(client) => log::warn!(
                "{listener}: ended an HTTP/2 connection of {client}: {kind} ({skipped} more since the last such line)"
            ),
            None => {
                log::warn!("{listener}: ended an HTTP/2 connection: {kind} ({skipped} more since the last such line)")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_connections_is_a_line_a_second() {
        let mut lines = Lines::default();
        let start = Instant::now();
        assert_eq!(lines.take(start), Some(0));
        assert_eq!((1..1000).filter_map(|ms| lines.take(start + Duration::from_millis(ms))).count(), 0);
        assert_eq!(lines.take(start + EVERY), Some(999));
    }
}

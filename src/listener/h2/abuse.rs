//! What is said of HTTP/2 connections that were ended for what their client did: each is counted, and a line a second
//! is logged.

use std::{fmt::Display, net::IpAddr, time::Instant};

use super::super::lines::Lines;
use crate::telemetry::metrics::{H2Abuse, Metrics};

/// A worker's share of the lines.
#[derive(Debug, Default)]
pub(in crate::listener) struct AbuseLog(Lines);

impl AbuseLog {
    /// Counts a connection that has ended, and logs it where it is time to.
    pub(super) fn ended(&self, metrics: &Metrics, listener: &impl Display, client: Option<IpAddr>, kind: H2Abuse) {
        metrics.h2_abused(kind);
        let Some(skipped) = self.0.take(Instant::now()) else { return };
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

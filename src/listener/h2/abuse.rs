//! What is said of HTTP/2 connections that were ended for what their client did: each is counted, and a line a second
//! is logged. And what it is called where the h2 crate has ended one.

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

/// What a GOAWAY of the h2 crate is about; `None` for those that are no fault of the client's.
pub(super) fn named(code: u32, text: &[u8]) -> Option<H2Abuse> {
    const INTERNAL_ERROR: u32 = 2;
    const ENHANCE_YOUR_CALM: u32 = 11;
    match (code, text) {
        (0 | INTERNAL_ERROR, _) => None,
        (ENHANCE_YOUR_CALM, b"too_many_continuations") => Some(H2Abuse::Continuation),
        (ENHANCE_YOUR_CALM, b"too_many_data_frames") => Some(H2Abuse::Data),
        (ENHANCE_YOUR_CALM, b"header_list_way_too_large") => Some(H2Abuse::HeaderList),
        (ENHANCE_YOUR_CALM, b"too_many_internal_resets") => Some(H2Abuse::ServerReset),
        (ENHANCE_YOUR_CALM, b"too_many_resets") => Some(H2Abuse::Reset),
        _ => Some(H2Abuse::Protocol),
    }
}

/// The error code of the GOAWAY.
pub(super) const fn code(kind: H2Abuse) -> u32 {
    const PROTOCOL_ERROR: u32 = 1;
    const SETTINGS_TIMEOUT: u32 = 4;
    const ENHANCE_YOUR_CALM: u32 = 11;
    match kind {
        H2Abuse::Protocol => PROTOCOL_ERROR,
        H2Abuse::SettingsTimeout => SETTINGS_TIMEOUT,
        _ => ENHANCE_YOUR_CALM,
    }
}

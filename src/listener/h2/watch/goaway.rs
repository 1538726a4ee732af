//! What the h2 crate ends a connection for, by its GOAWAY.

use crate::telemetry::metrics::H2Abuse;

const ENHANCE_YOUR_CALM: u32 = 11;

/// What a GOAWAY of the h2 crate is about; `None` for those that are no fault of the client's.
pub(super) fn named(code: u32, text: &[u8]) -> Option<H2Abuse> {
    const INTERNAL_ERROR: u32 = 2;
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

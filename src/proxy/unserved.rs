//! Requests that come to no phase: what is logged of them.

use std::time::Instant;

use crate::types::Reason;

/// A request that never came to a phase, as far as it is known.
#[derive(Debug)]
pub struct Unserved {
    /// Why.
    pub reason: Reason,
    /// As sent, perhaps empty.
    pub method: String,
    /// As sent, perhaps empty.
    pub target: String,
    /// As sent, perhaps empty.
    pub host: String,
    /// `HTTP/1.1` or `HTTP/2.0`.
    pub protocol: &'static str,
    /// When its head had come.
    pub began: Instant,
}

impl Unserved {
    /// A request of which nothing is known.
    pub fn unseen(reason: Reason, protocol: &'static str) -> Self {
        Self {
            reason,
            method: String::new(),
            target: String::new(),
            host: String::new(),
            protocol,
            began: Instant::now(),
        }
    }
}

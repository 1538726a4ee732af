//! Decisions: pure functions and values. No Pingora, no tokio, no clock reads; time and randomness come in as arguments.

pub mod access;
pub mod balance;
pub mod believed;
pub mod budget;
pub mod concurrency;
pub mod fields;
pub mod forwarded;
pub mod framing;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod head;
pub mod headers;
pub mod health;
pub mod limit_key;
pub mod ocsp;
pub mod outlier;
pub mod password;
pub mod path;
pub mod pieces;
pub mod proxy_protocol;
pub mod rate;
pub mod retry;
pub mod rewrite;
pub mod room;
pub mod route;
pub mod slow_start;
pub mod trailers;

//! Stands in for `tokio-test`, of which it has a name only.
//!
//! Pingora's core says what a mock of a stream would do as a connection, and makes none outside its own tests. With the real
//! crate comes tokio's `test-util`, for which every look at the clock takes a lock and asks whether time was stopped. Gone when
//! Pingora keeps that for its tests.

/// Streams for tests.
pub mod io {
    /// A mock of a stream: there is none.
    pub enum Mock {}
}

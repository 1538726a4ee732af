//! The harness: addresses that never clash, the proxy as a child process, origins, clients, and waiting for conditions.

pub mod address;
pub mod admin;
pub mod frames;
pub mod hpack;
pub mod http1;
pub mod http2;
pub mod load;
pub mod metrics;
pub mod misbehave;
pub mod origin;
pub mod proxy;
pub mod run;
pub mod tls;

use std::{future::Future, time::Duration};

/// How long a condition may take to come true, or a peer to answer, before a test fails. Generous: two busy cores.
pub const PATIENCE: Duration = Duration::from_secs(20);

const STEP: Duration = Duration::from_millis(5);

/// Polls a condition until it holds.
pub async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    eventually(what, async || condition()).await;
}

/// Polls an async condition until it holds.
pub async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let poll = async {
        while !condition().await {
            tokio::time::sleep(STEP).await;
        }
    };
    within(what, poll).await;
}

/// Runs a future that must finish in time.
pub async fn within<T>(what: &str, work: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, work).await {
        Ok(value) => value,
        Err(_) => panic!("not within {PATIENCE:?}: {what}"),
    }
}

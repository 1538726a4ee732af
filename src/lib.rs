//! rrlb: an edge proxy and load balancer on Cloudflare's Pingora. `docs/architecture.md` is the map.

pub mod cli;
pub mod config;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
pub mod listener;
pub mod policy;
pub mod proxy;
pub mod runtime;
pub mod server;
pub mod service;
pub mod telemetry;
pub mod types;

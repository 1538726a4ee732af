//! Whole-proxy tests: they start the real binary with a YAML file, bring their own origins on loopback and talk to it
//! over real sockets. A test reads as: origin, proxy, client, assert; `support` hides addresses and waiting.

mod support;

mod access_log;
mod admission;
mod balancing;
mod cli;
mod config;
mod demo;
mod drain;
mod failures;
mod framing;
mod harness;
mod headers;
mod health;
mod informational;
mod layering;
mod listeners;
mod metrics;
mod regressions;
mod regressions_lifecycle;
mod routes;
mod safe_start;
mod streaming;
mod timeouts;
mod tls;
mod upgrade;
mod upstream_tls;
mod upstreams;

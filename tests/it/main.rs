//! Whole-proxy tests: they start the real binary with a YAML file, bring their own origins on loopback and talk to it
//! over real sockets. A test reads as: origin, proxy, client, assert; `support` hides addresses and waiting.

mod support;

mod access_log;
mod admission;
mod balancing;
mod certificates;
mod cli;
mod config;
mod confirm;
mod control;
mod demo;
mod discovery;
mod drain;
mod failures;
mod framing;
mod h2_abuse;
mod harness;
mod headers;
mod health;
mod informational;
mod journal;
mod layering;
mod limits;
mod listeners;
mod metrics;
mod normalisation;
mod overrides;
mod protocols;
mod proxy_protocol;
mod regressions;
mod regressions_lifecycle;
mod reload;
mod responses;
mod routes;
mod safe_start;
mod streaming;
mod successor;
mod timeouts;
mod tls;
mod tls_auth;
mod tokens;
mod upgrade;
mod upgrade_state;
mod upstream_tls;
mod upstreams;

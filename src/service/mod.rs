//! What runs beside the traffic: health checks, name resolution, discovery, OCSP, and the operator's HTTP endpoints.

pub mod admin;
pub mod discover;
pub mod health;
pub mod ocsp;
pub mod operations;
pub mod resolve;

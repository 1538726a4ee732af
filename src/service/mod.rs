//! What runs beside the traffic: health checks, name resolution, and the operator's HTTP endpoints.

pub mod admin;
pub mod health;
pub mod operations;
pub mod resolve;

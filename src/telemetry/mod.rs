//! What an operator sees: metrics, the access log and its writer. Nothing here decides about traffic or waits for I/O
//! on a request's path.

pub mod access_log;
mod cell;
pub mod events;
mod exposition;
pub mod failures;
pub mod log_writer;
pub mod metrics;
mod process;
pub mod process_log;

//! From a listening socket to requests: workers that accept, park idle connections, read each head in the front and
//! hand the request to Pingora's `HttpProxy`. Nothing is decided about a request here but whether it may be read.

mod accept;
pub mod certificates;
mod conn;
mod crew;
mod front;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod h1;
mod h2;
mod limits;
mod lines;
mod listening;
mod pace;
mod plain;
mod proxy_protocol;
mod pulse;
mod refusals;
mod socket;
mod subject;
pub mod tickets;
mod tls;
mod transport;
mod worker;

pub use crew::{Crew, Draining};
pub use limits::keep_descriptors;
pub use listening::{Endpoint, Listening};
pub use socket::{BindError, ListenSocket};
pub use tls::Tls;
pub use worker::Worker;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crate::{config::model::ListenerLimits, types::ByteSize};

    /// Small ones, for tests of the parts.
    pub(super) const LIMITS: ListenerLimits = ListenerLimits {
        handshake_timeout: Duration::from_secs(10),
        header_timeout: Duration::from_secs(10),
        idle_timeout: Duration::from_secs(60),
        request_timeout: None,
        max_header_size: ByteSize(4096),
        max_uri_length: ByteSize(1024),
        max_headers: 20,
        max_body_size: Some(ByteSize(1_000_000)),
        min_body_rate: Some(ByteSize(1024)),
        requests_per_connection: 10_000,
        connections: None,
        connections_per_ip: None,
    };
}

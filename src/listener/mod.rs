//! From a listening socket to requests: workers that accept, park idle connections, read each head in the front and
//! hand the request to Pingora's `HttpProxy`. Nothing is decided about a request here but whether it may be read.

mod accept;
mod border;
mod conn;
mod crew;
mod front;
mod h1;
mod h2;
mod listening;
mod proxy_protocol;
mod pulse;
mod socket;
pub mod tickets;
pub mod tls;
mod worker;

pub use crew::{Crew, Draining};
pub use listening::{Endpoint, Listening};
pub use socket::{BindError, ListenSocket};
pub use worker::Worker;

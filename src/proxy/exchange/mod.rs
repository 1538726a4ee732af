//! Our own HTTP/1.1 client side: what goes to a backend over HTTP/1.1 without Pingora's upstream path. `attempt` is one
//! request on one connection, `answer` reads heads. `session` serves a request that Pingora's front has read, `lane` one that
//! ours has, `stream` one of an HTTP/2 client.

mod answer;
mod asked;
mod attempt;
mod call;
mod connect;
mod fields;
mod heads;
mod lane;
mod memory;
mod patience;
mod session;
mod stream;
mod wire;

pub use asked::Way;
pub use lane::{Read, serve as serve_plain};
pub use memory::{Desk, Memory};
pub(super) use session::serve;
pub use stream::serve as serve_stream;
pub use wire::Wire;

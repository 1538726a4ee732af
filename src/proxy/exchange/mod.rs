//! Our own client side: what goes to a backend without Pingora's upstream path, in HTTP/1.1's bytes, also where
//! `runtime::http2` makes frames of them. `attempt` is one request on one connection, `answer` reads heads. `session` serves a
//! request that Pingora's front has read, `lane` one that ours has, `stream` one of an HTTP/2 client. `tunnel` carries a
//! WebSocket after its handshake, `websocket` that of a client in the lane.

mod answer;
mod asked;
mod attempt;
mod call;
mod chunks;
mod connect;
mod fields;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod heads;
mod lane;
mod memory;
mod patience;
mod pipe;
mod session;
mod stream;
mod tunnel;
mod turn;
mod websocket;
mod wire;

pub use asked::{Read, Wanted, Way};
pub use lane::serve as serve_plain;
pub use memory::{Desk, Memory};
pub use pipe::Pipe;
pub(super) use session::serve;
pub use stream::serve as serve_stream;
pub use websocket::{Served, WebSocket};
pub use wire::Wire;

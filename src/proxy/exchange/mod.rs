//! Our own HTTP/1.1 client side: what goes to a backend over HTTP/1.1 without Pingora's upstream path. `attempt` is one
//! request on one connection, `answer` reads heads. `session` serves a request that Pingora's front has read, `lane` one that
//! ours has. `tunnel` carries a WebSocket after its handshake, `websocket` that of a client in the lane.

mod answer;
mod asked;
mod attempt;
mod connect;
mod heads;
mod lane;
mod memory;
mod patience;
mod pipe;
mod session;
mod tunnel;
mod turn;
mod websocket;
mod wire;

pub use asked::{Read, Way};
pub use lane::serve as serve_plain;
pub use memory::{Desk, Memory};
pub use pipe::Pipe;
pub(super) use session::serve;
pub use websocket::{Served, WebSocket};
pub use wire::Wire;

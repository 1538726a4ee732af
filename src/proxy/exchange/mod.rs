//! Our own HTTP/1.1 client side: what goes to a backend over HTTP/1.1 without Pingora's upstream path. `attempt` is one
//! request on one connection, `answer` reads heads, `session` serves a request that Pingora's front has read.

#[allow(dead_code)] // for the front
mod answer;
#[allow(dead_code)] // for the front
mod attempt;
mod session;

pub(super) use session::serve;

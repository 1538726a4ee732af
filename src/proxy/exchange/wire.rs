//! What the lane asks of a client's connection.

use std::{
    io,
    os::fd::RawFd,
    task::{Context, Poll},
};

use pingora_core::{Error, ErrorType};
use tokio::io::AsyncRead;

use super::pipe::Pipe;

/// A client's connection while a request has it. Reads end at the request's border; at it, they end when the client leaves.
pub trait Wire: AsyncRead + Unpin {
    /// Writes of these parts, in their order, as much as is taken. The `last` ones may wait for the connection's end: whoever says
    /// so shuts it down or closes it next.
    fn poll_send(&mut self, cx: &mut Context<'_>, parts: &[io::IoSlice<'_>], last: bool) -> Poll<io::Result<usize>>;

    /// How much is left of a body that nobody need look at, of which no part is here, on a socket in plain text; 0 of any other.
    fn unseen(&self) -> u64;

    /// Moves what has come of [`Wire::unseen`] into `pipe`, which is empty. 0 bytes are the end of the stream.
    fn poll_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>>;

    /// Whether it is a socket in plain text, which takes bytes out of a pipe.
    fn takes_pipes(&self) -> bool;

    /// Takes of what is in a pipe, after all that was written.
    fn poll_pour(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>>;

    /// What TLS has taken leaves.
    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// The client is told that nothing more comes. What it sends still does.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Pending where nothing has come, neither a byte nor the end; else it is to be read.
    fn poll_stirs(&self, cx: &mut Context<'_>) -> Poll<()>;

    /// From here on nothing has a border: the connection is a WebSocket.
    fn switch(&mut self);

    /// The rest of the request's body is not waited for any more.
    fn rest(&mut self);

    /// Whether all of the request was read, and nothing is known against another one.
    fn is_at_border(&self) -> bool;

    /// The descriptor of the socket.
    fn descriptor(&self) -> RawFd;
}

/// A client that is not there any more.
#[cold]
pub(super) fn gone(cause: Option<io::Error>, when: &'static str) -> Box<Error> {
    let error = match cause {
        Some(cause) => Error::because(ErrorType::ConnectionClosed, when, cause),
        None => Error::explain(ErrorType::ConnectionClosed, when),
    };
    error.into_down()
}

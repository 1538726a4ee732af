//! What ends a stream before its time, as an error of reading and writing.

use std::io;

use h2::Reason;

/// A stream that the backend has not processed, and says so: REFUSED_STREAM, or a GOAWAY of those before it (RFC 9113 §8.7).
#[derive(Debug, thiserror::Error)]
#[error("not processed: {0}")]
struct Unprocessed(h2::Error);

/// Whether the backend says that it has not processed the request, so that it may be made again, whatever it is.
pub fn is_unprocessed(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<Unprocessed>())
}

/// Whether the backend has ended the stream alone, and not the connection.
pub fn is_reset(error: &io::Error) -> bool {
    let Some(error) = error.get_ref() else { return false };
    let refused = error.downcast_ref::<Unprocessed>().map(|Unprocessed(error)| error);
    refused.or_else(|| error.downcast_ref()).is_some_and(|error| error.is_reset() && error.is_remote())
}

/// What came on a stream is no answer. What is wrong with a connection is no one request's fault: it has ended, as by a reset.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Malformed(#[source] Box<dyn std::error::Error + Send + Sync>);

/// Whether what came is no answer.
pub fn is_malformed(error: &io::Error) -> bool {
    error.get_ref().is_some_and(|error| error.is::<Malformed>())
}

pub(super) fn failed(error: h2::Error) -> io::Error {
    if error.is_remote() && (error.reason() == Some(Reason::REFUSED_STREAM) || error.is_go_away()) {
        return io::Error::other(Unprocessed(error));
    }
    if error.is_library() && error.is_reset() {
        return io::Error::other(Malformed(error.into()));
    }
    match error.get_io() {
        // The crate keeps no more of it.
        Some(io) if io.kind() == io::ErrorKind::TimedOut => io::Error::from_raw_os_error(libc::ETIMEDOUT),
        Some(io) => io::Error::new(io.kind(), error),
        None => io::Error::new(io::ErrorKind::ConnectionReset, error),
    }
}

pub(super) fn bad(what: &'static str) -> io::Error {
    io::Error::other(Malformed(what.into()))
}

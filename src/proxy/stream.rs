//! The request of one HTTP/2 stream as it comes: its body, and the fields behind it, which are judged and go no further.

use std::{
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h2::RecvStream;
use http::{HeaderMap, StatusCode};
use pingora_core::{Error, ErrorType, Result};

use super::{cancel::Cancel, dropped::Side, outlet::Outlet, watch};
use crate::policy::{fields::Fields as _, framing};

/// A request's body.
#[derive(Debug)]
pub struct Upload {
    stream: RecvStream,
    /// Is told where the request turns out to be malformed.
    cancel: Arc<Cancel>,
    received: u64,
    /// Nothing more comes.
    done: bool,
    /// What comes is no data any more.
    trailing: bool,
}

impl Upload {
    /// Of a request whose head has come, and which `cancel` ends.
    pub fn new(stream: RecvStream, cancel: Arc<Cancel>) -> Self {
        let done = stream.is_end_stream();
        Self { stream, cancel, received: 0, done, trailing: false }
    }

    /// Whether all of it has come, with what is behind it.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Bytes that came.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// The next part, which may be empty; `None` at the end. The client may send as much again only when it is
    /// [released](Self::release).
    ///
    /// # Errors
    /// The client has left, or the request turns out to be malformed.
    pub fn poll_data(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        if self.done {
            return Poll::Ready(Ok(None));
        }
        if !self.trailing {
            if let Some(data) = ready!(self.stream.poll_data(cx)) {
                let data = data.map_err(failed)?;
                self.received += data.len() as u64;
                self.done = self.stream.is_end_stream();
                return Poll::Ready(Ok(Some(data)));
            }
            self.trailing = true;
        }
        let trailers = ready!(self.stream.poll_trailers(cx)).map_err(failed)?;
        self.done = true;
        if trailers.is_some_and(|trailers| !may_trail(&trailers)) {
            self.cancel.set_malformed();
            let error = Error::explain(ErrorType::InvalidHTTPHeader, "the request's trailers are malformed");
            return Poll::Ready(Err(error.into_down()));
        }
        Poll::Ready(Ok(None))
    }

    /// For the request's answer.
    pub fn outlet(&self) -> Outlet {
        Outlet::new(self.cancel.clone())
    }

    /// The stream is over, and so much of the answer has left.
    pub fn over(&self, answered: Option<StatusCode>, sent: u64) {
        self.cancel.remains().side = Side { answered, sent, received: self.received };
    }

    /// So many bytes have been taken: the client may send as many again.
    pub fn release(&mut self, bytes: usize) {
        if bytes > 0 {
            // It fails where the stream has ended, and then nobody sends.
            _ = self.stream.flow_control().release_capacity(bytes);
        }
    }
}

fn may_trail(trailers: &HeaderMap) -> bool {
    framing::may_trail(trailers.each()) && !trailers.values().any(watch::padded)
}

/// What is wrong with a stream, in Pingora's terms.
#[cold]
pub fn failed(error: h2::Error) -> Box<Error> {
    Error::because(ErrorType::ConnectionClosed, "within a stream", error).into_down()
}

/// Whether a request was found malformed: by us, or by the h2 crate, of a body that is not as long as declared.
pub fn is_malformed(error: &Error) -> bool {
    let found = error.root_cause().downcast_ref::<h2::Error>();
    *error.etype() == ErrorType::InvalidHTTPHeader || found.is_some_and(h2::Error::is_library)
}

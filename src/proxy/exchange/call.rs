//! A request of an HTTP/2 client in the lane, as far as it is; and what of its body is still on its way to a backend.

use bytes::{Buf as _, Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header, request::Parts, uri::PathAndQuery};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    super::{downstream::Downstream, edit::Client, stream::Upload},
    asked::RETAINED,
    attempt::Attempt,
    chunks::hexadecimal,
};
use crate::policy::framing;

/// A part of a body that is not larger is copied beside others, so that they leave in one piece.
const COPIED: usize = 4 * 1024;

/// A request on its stream.
pub(super) struct Call {
    head: Box<Parts>,
    pub(super) upload: Upload,
    body: bool,
    /// The length of the body, where the head says it.
    declared: Option<u64>,
    truncated: bool,
    pub(super) sent: u64,
    pub(super) answered: Option<StatusCode>,
}

impl Call {
    pub(super) fn new(head: Box<Parts>, upload: Upload) -> Self {
        let body = !upload.is_done();
        let length = if body { head.headers.get(header::CONTENT_LENGTH) } else { None };
        let declared = length.and_then(|length| framing::length(length.as_bytes()));
        Self { head, upload, body, declared, truncated: false, sent: 0, answered: None }
    }

    /// As [`Downstream::has_body`].
    pub(super) fn is_with_body(&self) -> bool {
        self.body
    }
}

impl Downstream for Call {
    type Fields = HeaderMap;

    fn request(&self) -> Client<'_, HeaderMap> {
        Client::of_stream(&self.head)
    }

    fn target(&self) -> &str {
        self.head.uri.path_and_query().map_or("/", PathAndQuery::as_str)
    }

    fn has_body(&mut self) -> bool {
        self.body
    }

    fn is_body_done(&mut self) -> bool {
        self.upload.is_done()
    }

    fn is_upgrade(&self) -> bool {
        false
    }

    fn received(&self) -> u64 {
        self.upload.received()
    }

    fn sent(&self) -> u64 {
        self.sent
    }

    fn answered(&self) -> Option<StatusCode> {
        self.answered
    }

    fn can_repeat(&self, _: bool) -> bool {
        !self.truncated
    }

    /// Others on the connection are not this one's affair.
    fn no_next_request(&mut self) {}
}

/// What has come of a body and has not left wholly.
#[derive(Default)]
pub(super) struct Outgoing {
    /// Goes past the attempt's own memory.
    part: Bytes,
    /// Of a body whose length was declared, the last byte until the client has ended it: when more comes, the request is
    /// malformed (RFC 9113 §8.1.1), and a backend must not have seen it whole.
    held: Option<Bytes>,
    /// Bytes that the client may send again when what is here has left.
    owed: usize,
    /// Something was given that has not left.
    unsent: bool,
}

impl Outgoing {
    /// Another attempt begins: what went towards the one before goes again. `given` is the beginning of the body.
    pub(super) fn begin<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        call: &Call,
        given: &[u8],
        attempt: &mut Attempt<S>,
    ) {
        self.part.clear();
        self.unsent = true;
        if call.declared.is_none() {
            attempt.chunk(given);
        } else {
            attempt.bytes(given);
        }
        if call.upload.is_done() {
            self.end(call, attempt);
        }
    }

    /// The same of a request without a body.
    pub(super) fn begin_empty(&mut self) {
        self.unsent = true;
    }

    /// Takes in what came of the body, perhaps the last of it.
    pub(super) fn take_in<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        call: &mut Call,
        mut data: Bytes,
        given: &mut BytesMut,
        scratch: &mut BytesMut,
        attempt: &mut Attempt<S>,
    ) {
        self.owed += data.len();
        let done = call.upload.is_done();
        if done {
            if let Some(held) = self.held.take() {
                keep(call, &held, given);
                attempt.bytes(&held);
            }
        } else if call.declared.is_some_and(|length| call.upload.received() >= length)
            && self.held.is_none()
            && !data.is_empty()
        {
            self.held = Some(data.split_off(data.len() - 1));
        }
        keep(call, &data, given);
        self.unsent = true;
        let chunked = call.declared.is_none();
        if data.len() > COPIED {
            if chunked {
                scratch.clear();
                hexadecimal(data.len(), scratch);
                scratch.extend_from_slice(b"\r\n");
                attempt.bytes(scratch);
            }
            self.part = data;
        } else if chunked {
            attempt.chunk(&data);
        } else {
            attempt.bytes(&data);
        }
        if done && self.part.is_empty() {
            self.end(call, attempt);
        }
    }

    /// Whether a part waits that does not fit into the attempt's memory.
    pub(super) fn is_behind(&self) -> bool {
        !self.part.is_empty()
    }

    /// What of that part could be given on; see [`Attempt::poll_upload`].
    pub(super) fn part(&self) -> &[u8] {
        &self.part
    }

    /// So much of the part has left.
    pub(super) fn left<S: AsyncRead + AsyncWrite + Unpin>(
        &mut self,
        taken: usize,
        call: &mut Call,
        attempt: &mut Attempt<S>,
    ) {
        self.part.advance(taken.min(self.part.len()));
        self.unsent = true;
        call.upload.release(taken.min(self.owed));
        self.owed = self.owed.saturating_sub(taken);
        if self.part.is_empty() {
            if call.declared.is_none() {
                attempt.bytes(b"\r\n");
            }
            if call.upload.is_done() {
                self.end(call, attempt);
            }
        }
    }

    /// Whether something has to be flushed.
    pub(super) fn is_unsent(&self) -> bool {
        self.unsent
    }

    /// All has left.
    pub(super) fn sent(&mut self, call: &mut Call) {
        self.unsent = false;
        call.upload.release(std::mem::take(&mut self.owed));
    }

    /// Nothing more comes, and all of it was given.
    fn end<S: AsyncRead + AsyncWrite + Unpin>(&mut self, call: &Call, attempt: &mut Attempt<S>) {
        if call.body && call.declared.is_none() {
            attempt.bytes(b"0\r\n\r\n");
        }
        self.unsent = true;
        attempt.complete();
    }
}

/// Keeps what goes towards a backend, for another one.
fn keep(call: &mut Call, data: &[u8], given: &mut BytesMut) {
    if call.is_answered() || call.upload.received() > RETAINED as u64 {
        call.truncated = true;
        given.clear();
    } else if !call.truncated {
        given.extend_from_slice(data);
    }
}

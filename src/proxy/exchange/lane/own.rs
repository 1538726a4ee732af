//! Answers of our own.

use std::future::poll_fn;

use bytes::Bytes;
use pingora_core::Result;
use pingora_http::ResponseHeader;

use super::{
    super::{super::admit, heads, wire::Wire},
    Lane, Out, RequestCtx,
};
use crate::proxy::downstream::Downstream as _;

impl<W: Wire> Lane<'_, W> {
    /// Asks the route's guards. Returns the answer to a request that is refused.
    pub(super) fn refusal(&mut self, ctx: &mut RequestCtx) -> Option<Result<(ResponseHeader, Bytes)>> {
        let refusal = admit::refused_by_guards(&self.asked.request(), ctx)?;
        if !self.asked.is_done() {
            // What is left of the request is not read.
            self.asked.no_next_request();
        }
        Some(refusal)
    }

    /// Writes an answer of our own. Returns whether it left.
    pub(super) async fn respond(&mut self, head: &ResponseHeader, body: &[u8]) -> bool {
        // What is left of interim answers goes before it.
        self.out = Out { ended: true, ..Out::default() };
        let sent =
            heads::ours(head, body, self.asked.is_head_only(), self.kit, self.asked.again, &mut self.desk.answer);
        match poll_fn(|cx| self.poll_leave(cx, None)).await {
            Ok(()) => {
                (self.asked.answered, self.asked.sent) = (Some(head.status), sent);
                true
            }
            Err(error) => {
                log::debug!("answering {}: {error}", head.status);
                false
            }
        }
    }
}

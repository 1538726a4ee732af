//! A request that is dropped as it is: of an HTTP/2 client, where Pingora waits for something that will not come (see `watch`). It is
//! judged, and what was known of it is kept for its line in the log.

use std::fmt;

use http::{HeaderMap, StatusCode, request::Parts};

use super::{cancel::Cancel, ctx::RequestCtx, downstream::Downstream, edit::Client, finish, judge, kit::Kit};
use crate::types::Reason;

/// What was known of a request and has not been logged.
#[derive(Default)]
pub struct Remains {
    // Large, and rare.
    ctx: Option<Box<RequestCtx>>,
    /// Of the answer and the body, as the client's side had them.
    pub(super) side: Side,
}

/// How far both bodies and the answer had come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Side {
    pub(super) answered: Option<StatusCode>,
    pub(super) sent: u64,
    pub(super) received: u64,
}

impl fmt::Debug for Remains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remains").field("side", &self.side).finish_non_exhaustive()
    }
}

impl Drop for RequestCtx {
    fn drop(&mut self) {
        judge::dropped(self);
        if !self.logged
            && let Some(cancel) = self.start.as_mut().and_then(|start| start.cancel.take())
        {
            let ctx = std::mem::replace(self, Self::new(self.started));
            cancel.remains().ctx = Some(Box::new(ctx));
        }
    }
}

/// Logs and counts the request that `cancel` belonged to. Returns whether anything is left of it that was not.
pub(super) fn log(kit: &Kit, head: &Parts, cancel: &Cancel, reason: Reason) -> bool {
    let Remains { ctx, side } = std::mem::take(&mut *cancel.remains());
    let Some(mut ctx) = ctx else { return false };
    ctx.reason = Some(reason);
    finish::served(kit, &Gone { head, side }, &mut ctx);
    true
}

/// A client whose stream is no more.
struct Gone<'a> {
    head: &'a Parts,
    side: Side,
}

impl Downstream for Gone<'_> {
    type Fields = HeaderMap;

    fn request(&self) -> Client<'_, HeaderMap> {
        Client::of_stream(self.head)
    }

    fn target(&self) -> &str {
        self.head.uri.path_and_query().map_or("/", |target| target.as_str())
    }

    fn has_body(&mut self) -> bool {
        false
    }

    fn is_body_done(&mut self) -> bool {
        true
    }

    fn is_upgrade(&self) -> bool {
        false
    }

    fn received(&self) -> u64 {
        self.side.received
    }

    fn sent(&self) -> u64 {
        self.side.sent
    }

    fn answered(&self) -> Option<StatusCode> {
        self.side.answered
    }

    fn can_repeat(&self, _: bool) -> bool {
        false
    }

    fn no_next_request(&mut self) {}
}

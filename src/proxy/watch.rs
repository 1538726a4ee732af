//! Deadlines on the upstream connection that Pingora does not keep: first byte apart from read, the request as a
//! whole, and silence on an upgraded connection.
//!
//! Pingora has one read deadline per attempt, the longer of `first_byte` and `read` (see `runtime/peer.rs`). The
//! shorter one, and the others, are kept in the worker's table, which ends the upstream connection when one passes. An
//! HTTP/2 connection is shared with other requests and is left alone; there Pingora's deadline is all there is.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{StatusCode, Version};
use pingora_core::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::Session;

use super::{
    ctx::{RequestCtx, Waiting},
    kit::Kit,
};
use crate::{
    runtime::deadlines::{How, Wait},
    types::Reason,
};

/// The head is about to be sent.
pub(super) fn request_begins(kit: &Kit, session: &mut Session, upstream: &RequestHeader, ctx: &mut RequestCtx) {
    ctx.answered = false;
    ctx.body_sent = false;
    let Some(timeouts) = ctx.member().map(|member| member.upstream.timeouts) else { return };
    let needed = ctx.total_due.is_some() || timeouts.first_byte != timeouts.read || session.is_upgrade_req();
    if !needed || upstream.version == Version::HTTP_2 {
        ctx.upstream_fd = -1;
        return;
    }
    if ctx.deadline.is_none() {
        ctx.deadline = Some(kit.deadlines().guard(How::Both));
    }
    if session.as_mut().is_body_empty() {
        wait_for(ctx, Waiting::FirstByte, Some(timeouts.first_byte));
    } else {
        wait_for(ctx, Waiting::End, None);
    }
}

/// A part of the request's body goes towards the backend.
pub(super) fn request_body(body: Option<&Bytes>, end: bool, ctx: &mut RequestCtx) {
    ctx.body_sent |= body.is_some_and(|body| !body.is_empty());
    if ctx.upgraded {
        renew(ctx);
    } else if end && !ctx.answered && ctx.waiting == Waiting::End {
        let first_byte = ctx.member().map(|member| member.upstream.timeouts.first_byte);
        wait_for(ctx, Waiting::FirstByte, first_byte);
    }
}

/// The answer's head has come.
///
/// # Errors
/// The backend switches protocols without having been asked.
pub(super) fn answer_begins(session: &Session, answer: &ResponseHeader, ctx: &mut RequestCtx) -> Result<()> {
    if answer.status == StatusCode::SWITCHING_PROTOCOLS {
        if !session.is_upgrade_req() {
            ctx.reason = Some(Reason::BadResponse);
            let mut error = Error::explain(ErrorType::InvalidHTTPHeader, "101 without a request to upgrade");
            error.as_up();
            return Err(error);
        }
        ctx.upgraded = true;
        ctx.answered = true;
        ctx.total_due = None;
        let silence = ctx.member().map(|member| member.upstream.timeouts.websocket_idle);
        wait_for(ctx, Waiting::WebSocket, silence);
    } else if !answer.status.is_informational() {
        ctx.answered = true;
        let timeouts = ctx.member().map(|member| member.upstream.timeouts);
        match timeouts.filter(|timeouts| timeouts.read < timeouts.first_byte) {
            Some(timeouts) => wait_for(ctx, Waiting::Read, Some(timeouts.read)),
            None => wait_for(ctx, Waiting::End, None),
        }
    }
    Ok(())
}

/// A part of the answer's body has come.
pub(super) fn answer_body(ctx: &RequestCtx) {
    renew(ctx);
}

fn renew(ctx: &RequestCtx) {
    let (Some(deadline), Some(member)) = (&ctx.deadline, ctx.member()) else { return };
    let timeouts = &member.upstream.timeouts;
    let now = Instant::now();
    match ctx.waiting {
        Waiting::Read => deadline.renew(now, until(ctx, now, Some(timeouts.read))),
        Waiting::WebSocket => deadline.renew(now, timeouts.websocket_idle),
        Waiting::End | Waiting::FirstByte => {}
    }
}

/// Arms the deadline for `waiting`, or for the end of the request where that is nearer.
fn wait_for(ctx: &mut RequestCtx, waiting: Waiting, patience: Option<Duration>) {
    ctx.waiting = waiting;
    let Some(deadline) = &ctx.deadline else { return };
    if ctx.upstream_fd < 0 || (patience.is_none() && ctx.total_due.is_none()) {
        deadline.disarm();
        return;
    }
    let now = Instant::now();
    deadline.arm(ctx.upstream_fd, Wait::Work, now, until(ctx, now, patience));
}

fn until(ctx: &RequestCtx, now: Instant, patience: Option<Duration>) -> Duration {
    let left = ctx.total_due.map_or(Duration::MAX, |due| due.saturating_duration_since(now));
    patience.unwrap_or(Duration::MAX).min(left)
}

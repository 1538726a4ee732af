//! What each attempt says of its backend, once: by the head of the answer where that is a failure already, else by how the
//! attempt ended. What is a failure is decided by `policy::outlier`.

use std::time::Instant;

use http::StatusCode;
use pingora_core::Error;

use super::{
    ctx::{RequestCtx, Waiting},
    watch::late,
};
use crate::{
    policy::outlier::{Failed, Verdict, by_failure, by_status},
    runtime::connect,
    types::{AttemptFailure, Reason},
};

/// The part of a request's time that may have passed before its backend was asked, for the backend to have had all of it.
const SLIGHT: u32 = 10;

/// The head of the answer has come.
pub(super) fn answered(ctx: &mut RequestCtx, status: StatusCode) {
    if let Some(fault) = by_status(status.as_u16()) {
        tell(ctx, Verdict::Failure(fault));
    } else if status == StatusCode::SWITCHING_PROTOCOLS {
        // How the two part, and when, is their own affair.
        tell(ctx, Verdict::Success);
    }
}

/// The attempt came to no connection.
pub(super) fn unconnected(ctx: &mut RequestCtx, reason: Reason, error: &Error) {
    if !watched(ctx) || connect::is_ours(error) {
        return;
    }
    let verdict = by_failure(Failed { reason, answered: false, waited: had_its_time(ctx) });
    tell(ctx, verdict);
}

/// The attempt failed after it had a connection.
pub(super) fn broken(ctx: &mut RequestCtx, reason: Reason, kind: AttemptFailure) {
    if kind == AttemptFailure::StaleConnection {
        ctx.judged = true;
        return;
    }
    let waited = ctx.waiting == Waiting::FirstByte && had_its_time(ctx);
    let verdict = by_failure(Failed { reason, answered: ctx.answered, waited });
    tell(ctx, verdict);
}

/// The request is over.
pub(super) fn ended(ctx: &mut RequestCtx, well: bool) {
    if well && ctx.answered {
        tell(ctx, Verdict::Success);
    }
    ctx.judged = true;
}

/// The request is dropped as it is.
pub(super) fn dropped(ctx: &mut RequestCtx) {
    if ctx.judged || ctx.picked.is_none() || !watched(ctx) {
        return;
    }
    if ctx.deadline.as_ref().is_some_and(|deadline| deadline.disarm()) {
        let reason = late(ctx, ctx.waiting);
        broken(ctx, reason, AttemptFailure::Other);
    }
}

/// Whether the attempt had nearly all the time of the request. Of what earlier attempts, guards and a slow client have left
/// of it no backend is to blame for using it up.
fn had_its_time(ctx: &RequestCtx) -> bool {
    let Some(due) = ctx.total_due else { return false };
    let total = due.saturating_duration_since(ctx.started);
    ctx.attempts == 1 && ctx.asked.saturating_duration_since(ctx.started) <= total / SLIGHT
}

fn watched(ctx: &RequestCtx) -> bool {
    ctx.member().is_some_and(|member| member.upstream.eject.is_some())
}

fn tell(ctx: &mut RequestCtx, verdict: Verdict) {
    if std::mem::replace(&mut ctx.judged, true) {
        return;
    }
    let (Some(member), Some(picked)) = (ctx.member(), &ctx.picked) else { return };
    match verdict {
        Verdict::Failure(fault) => member.upstream.went_wrong(picked.backend(), fault, Instant::now()),
        Verdict::Nothing => {}
        Verdict::Success => member.upstream.went_well(picked.backend()),
    }
}

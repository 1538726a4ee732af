//! Connections of an attempt: out of the worker's pool, or opened for it; and back.

use std::time::Instant;

use pingora_core::{Error, ErrorType, Result};

use super::super::{
    ctx::{Fresh, RequestCtx},
    kit::Kit,
    select,
};
use crate::{
    runtime::{
        deadlines::Deadline,
        line::{Line, descriptor},
        peer::announcing,
        tls::Offer,
    },
    telemetry::metrics::ConnectionUse,
};

/// Where a connection leads; a host name may mean another address by the time it is given back.
pub(super) struct Place {
    /// What the pool knows such connections by: what the backend's are known by, and to whom they belong where they began with that.
    key: u64,
    /// What the backend's are known by.
    home: u64,
    pub(super) reused: bool,
}

/// Whether the chosen backend speaks HTTP/2, as far as is known.
pub(super) fn chose_http2(ctx: &RequestCtx) -> bool {
    ctx.picked.as_ref().is_some_and(|picked| picked.backend().chose_http2())
}

/// A connection to the chosen backend that waits in the pool.
pub(super) fn pooled(kit: &Kit, ctx: &mut RequestCtx) -> Option<(Line, Place)> {
    if ctx.fresh == Fresh::Needed {
        ctx.fresh = Fresh::Done;
        return None;
    }
    let home = ctx.picked.as_ref()?.backend().connection_key()?;
    let key = announced(ctx).map_or(home, |header| announcing(home, &header));
    let place = Place { key, home, reused: true };
    // The first attempt begins with the request.
    let now = if ctx.attempts == 1 { ctx.asked } else { Instant::now() };
    kit.pool().take(place.key, now).map(|line| (line, place))
}

/// A new connection to the chosen backend; `None` where it has chosen HTTP/2.
///
/// # Errors
/// There is none within the time.
pub(super) async fn open(ctx: &RequestCtx) -> Result<Option<(Line, Place)>> {
    offering(ctx, Offer::Either).await
}

/// The PROXY header of the client, where the backends are sent one.
fn announced(ctx: &RequestCtx) -> Option<Vec<u8>> {
    Some(select::announced(ctx, ctx.member()?.upstream.proxy_protocol?))
}

async fn offering(ctx: &RequestCtx, offer: Offer) -> Result<Option<(Line, Place)>> {
    let opener = ctx.member().and_then(|member| member.upstream.exchange());
    let connection = ctx.picked.as_ref().and_then(|picked| Some((picked, picked.backend().connection()?)));
    let (Some(opener), Some((picked, (target, home)))) = (opener, connection) else {
        return Err(Error::explain(ErrorType::ConnectError, "the backend has no address"));
    };
    let header = announced(ctx);
    let key = header.as_ref().map_or(home, |header| announcing(home, header));
    let opening = opener.open(&target, picked.backend().sni(), offer, header.as_deref());
    let opened = match ctx.total_due {
        None => opening.await,
        Some(due) => tokio::time::timeout_at(due.into(), opening)
            .await
            .unwrap_or_else(|_| Err(Error::explain(ErrorType::ConnectTimedout, "no time left for connecting"))),
    };
    let line = opened?;
    if line.is_none() && offer == Offer::Either {
        picked.backend().set_chose_http2(true);
    }
    Ok(line.map(|line| (line, Place { key, home, reused: false })))
}

/// The same, with HTTP/1.1 alone on offer.
///
/// # Errors
/// As [`open`]; or it has chosen what it was not offered.
pub(super) async fn open_http1(ctx: &RequestCtx) -> Result<(Line, Place)> {
    let not_offered =
        || Error::explain(ErrorType::TLSHandshakeFailure, "the backend chose HTTP/2, which was not offered");
    offering(ctx, Offer::Http1).await?.ok_or_else(not_offered)
}

/// Counts a connection, and has deadlines end it.
pub(super) fn connected(kit: &Kit, line: &Line, reused: bool, ctx: &mut RequestCtx) {
    ctx.upstream_fd = descriptor(line);
    ctx.reused = reused;
    if let Some(member) = ctx.member() {
        let used = if reused { ConnectionUse::Reused } else { ConnectionUse::Fresh };
        member.metrics.connection(kit.index(), used);
    }
}

/// The attempt is over, and `again` is its connection where that may be used again.
pub(super) fn release(kit: &Kit, ctx: &mut RequestCtx, again: Option<Line>, place: Place) {
    // Before the socket is another request's; one that was shut down is nobody's.
    let late = ctx.deadline.as_ref().is_some_and(Deadline::disarm);
    ctx.upstream_fd = -1;
    if let (Some(line), Some(member), Some(picked)) = (again.filter(|_| !late), ctx.member(), &ctx.picked) {
        let patience = member.upstream.timeouts.idle;
        // It leads nowhere any more where the name means another address by now.
        let anchor = || picked.backend().connection().filter(|(_, home)| *home == place.home);
        let anchor = || anchor().map(|(target, _)| picked.backend().anchor(target));
        kit.pool().put(place.key, line, Instant::now(), patience, anchor);
    }
}

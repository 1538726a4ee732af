//! Connections of an attempt: out of the worker's pool, or opened for it; and back.

use std::time::Instant;

use pingora_core::{Error, ErrorType, Result};
use tokio_util::either::Either;

use super::{
    super::{
        ctx::{Fresh, RequestCtx},
        downstream::Downstream,
        kit::Kit,
        retry, select,
    },
    answer::Protocol,
};
use crate::{
    runtime::{
        backend::Anchor,
        connect::lacked_descriptor,
        deadlines::Deadline,
        line::{Layer, Line, Opened, descriptor},
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

/// What a connection is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    /// An answer to a client that speaks HTTP/1, whose body has a length or fields behind it.
    Http1,
    /// An answer to one that speaks HTTP/2, which may have both.
    Http2,
    /// A WebSocket, for which HTTP/1.1 has to be spoken (RFC 9113 §8.6).
    WebSocket,
}

/// A connection to the chosen backend that waits in the pool, or a stream on one. `home` is what the backend's are known by.
pub(super) fn pooled(kit: &Kit, what: For, home: u64, ctx: &mut RequestCtx) -> Option<(Line, Place)> {
    if ctx.fresh == Fresh::Needed {
        ctx.fresh = Fresh::Done;
        return None;
    }
    let key = announced(ctx).map_or(home, |header| announcing(home, &header));
    let place = Place { key, home, reused: true };
    // The first attempt begins with the request.
    let now = if ctx.attempts == 1 { ctx.asked } else { Instant::now() };
    let pool = kit.pool();
    let line = pool.take(key, now);
    let shared = || if what == For::WebSocket { None } else { pool.stream(key, what == For::Http2) };
    line.or_else(shared).map(|line| (line, place))
}

/// What is spoken on a connection.
pub(super) fn protocol(line: &Line, what: For) -> Protocol {
    match line {
        _ if what == For::WebSocket => Protocol::WebSocket,
        Either::Right(layer) if matches!(**layer, Layer::Http2(_)) => Protocol::Http2,
        Either::Left(_) | Either::Right(_) => Protocol::Http1,
    }
}

/// The PROXY header of the client, where the backends are sent one.
fn announced(ctx: &RequestCtx) -> Option<Vec<u8>> {
    Some(select::announced(ctx, ctx.member()?.upstream.proxy_protocol?))
}

/// A new connection to the chosen backend.
///
/// # Errors
/// There is none within the time.
pub(super) async fn open(kit: &Kit, what: For, ctx: &RequestCtx) -> Result<(Line, Place)> {
    let opener = ctx.member().and_then(|member| member.upstream.exchange());
    let connection = ctx.picked.as_ref().and_then(|picked| Some((picked, picked.backend().connection()?)));
    let (Some(opener), Some((picked, (target, home)))) = (opener, connection) else {
        return Err(Error::explain(ErrorType::ConnectError, "the backend has no address"));
    };
    let header = announced(ctx);
    let key = header.as_ref().map_or(home, |header| announcing(home, header));
    let offer = if what == For::WebSocket { Offer::Http1 } else { opener.offer() };
    let opening = async {
        loop {
            match opener.open(&target, picked.backend().sni(), offer, header.as_deref()).await {
                // Nobody may need the one that waits longest.
                Err(error) if lacked_descriptor(&error) && kit.pool().give_up() => {}
                opened => break opened,
            }
        }
    };
    let opened = match ctx.total_due {
        None => opening.await,
        Some(due) => tokio::time::timeout_at(due.into(), opening)
            .await
            .unwrap_or_else(|_| Err(Error::explain(ErrorType::ConnectTimedout, "no time left for connecting"))),
    };
    let place = Place { key, home, reused: false };
    let connection = match opened? {
        Opened::Http1(line) => return Ok((line, place)),
        Opened::Http2(connection) => connection,
    };
    let stream = connection.stream(what == For::Http2);
    let stream = stream.ok_or_else(|| Error::explain(ErrorType::ConnectError, "the connection was over at once"))?;
    if let Some((member, anchor)) = ctx.member().zip(anchor(ctx, home)) {
        kit.pool().share(key, connection, member.upstream.timeouts.idle, anchor);
    }
    Ok((Either::Right(Box::new(Layer::Http2(stream))), place))
}

/// What a connection that was known by `home` is kept by; `None` where the name means another address by now.
fn anchor(ctx: &RequestCtx, home: u64) -> Option<Anchor> {
    let backend = ctx.picked.as_ref()?.backend();
    backend.connection().filter(|(_, now)| *now == home).map(|(target, _)| backend.anchor(target))
}

/// An attempt on a connection has failed: perhaps of the connection, which had waited for it, and not of its backend.
pub(super) fn broken(
    kit: &Kit,
    client: &mut impl Downstream,
    ctx: &mut RequestCtx,
    error: Box<Error>,
    place: &Place,
) -> Box<Error> {
    // A stream that ended alone had waited for nothing.
    let stale = place.reused && error.etype() != &ErrorType::H2Error;
    retry::after_exchange(kit, client, ctx, error, stale)
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

/// The attempt is over `now`, and `again` is its connection where that may be used again.
pub(super) fn release(kit: &Kit, ctx: &mut RequestCtx, again: Option<Line>, place: Place, now: Instant) {
    // Before the socket is another request's; one that was shut down is nobody's.
    let late = ctx.deadline.as_ref().is_some_and(Deadline::disarm);
    ctx.upstream_fd = -1;
    if let (Some(line), Some(member)) = (again.filter(|_| !late), ctx.member()) {
        kit.pool().put(place.key, line, now, member.upstream.timeouts.idle, || anchor(ctx, place.home));
    }
}

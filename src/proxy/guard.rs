//! What a request must pass before its route does anything with it, in this order: addresses, rates, a
//! password, another service's word, rates by who that has said it is, concurrency. Who is refused is decided in `policy/`; here it is asked and answered.

mod basic;
mod forward;
mod questions;
mod secure;

use std::{sync::Arc, time::Instant};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, header};
use pingora_proxy::Session;
use tokio::time::timeout_at;

use self::{basic::Verifier, forward::AuthClient, questions::Questions};
use super::{
    admit::{self, refuse},
    ctx::RequestCtx,
    downstream::Downstream as _,
    edit::Client,
    kit::Kit,
};
use crate::{
    policy::{
        believed::Believed,
        concurrency::Permit,
        fields::Fields,
        limit_key::{Asker, TwoKeys},
    },
    runtime::{
        guards::{Guards, Rated},
        line::Pool,
    },
    types::Reason,
};

const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");
/// When a place may be free again, nobody knows.
const TOO_MANY_RETRY_AFTER: HeaderValue = HeaderValue::from_static("1");

/// What a worker needs to ask who somebody is.
pub(super) struct Asking {
    passwords: Verifier,
    services: AuthClient,
    questions: Questions,
}

impl Asking {
    /// `pool`: of connections whose descriptors a service's may have.
    pub(super) fn new(pool: &Arc<Pool>) -> Self {
        Self { passwords: Verifier::default(), services: AuthClient::new(pool), questions: Questions::default() }
    }
}

/// What a request has from its guards, until it ends.
#[derive(Default)]
pub(super) struct Admitted {
    /// `RateLimit` of the answer.
    rate: Option<HeaderValue>,
    /// Counts it as in flight.
    permit: Option<Permit>,
    /// What the service that was asked tells the backend.
    identity: Vec<(HeaderName, HeaderValue)>,
}

/// Whether somebody is who they say.
enum Asked {
    Good,
    No,
    Unavailable,
}

/// Asks all guards. Returns whether the request was refused, and so answered.
///
/// # Errors
/// The answer could not be sent.
pub(super) async fn admit(
    kit: &Kit,
    session: &mut Session,
    ctx: &mut RequestCtx,
    guards: &Guards,
) -> pingora_core::Result<bool> {
    if let Err(Refusal { reason, field }) = at_first(&session.request(), ctx, guards) {
        return refuse(session, ctx, reason, field).await;
    }
    if let Some(basic) = &guards.basic {
        let asked = kit.asking().passwords.ask(basic, ctx.client, &session.req_header().headers);
        match within(ctx.total_due, asked).await {
            Some(Asked::Good) => {}
            Some(Asked::No) => {
                let challenge = (header::WWW_AUTHENTICATE, basic.challenge.clone());
                return refuse(session, ctx, Reason::Unauthorized, Some(challenge)).await;
            }
            Some(Asked::Unavailable) => return refuse(session, ctx, Reason::AuthUnavailable, None).await,
            None => return refuse(session, ctx, Reason::TotalTimeout, None).await,
        }
    }
    if let Some(forward) = &guards.forward
        && forward::ask(kit, session, ctx, forward).await?
    {
        return Ok(true);
    }
    if let Err(Refusal { reason, field }) = at_last(&session.request(), ctx, guards) {
        return refuse(session, ctx, reason, field).await;
    }
    Ok(false)
}

/// Waits no longer than the request may take as a whole.
async fn within<T>(due: Option<Instant>, wait: impl Future<Output = T>) -> Option<T> {
    match due {
        Some(due) => timeout_at(due.into(), wait).await.ok(),
        None => Some(wait.await),
    }
}

/// Asks all guards of a route that has none that must wait for somebody; see [`by_head`].
///
/// # Errors
/// The request is refused.
pub(super) fn admit_by_head(
    request: &Client<'_, impl Fields>,
    ctx: &mut RequestCtx,
    guards: &Guards,
) -> Result<(), Refusal> {
    at_first(request, ctx, guards)?;
    at_last(request, ctx, guards)
}

/// Whether these guards decide by a request's head alone.
pub(super) fn by_head(guards: &Guards) -> bool {
    guards.basic.is_none() && guards.forward.is_none()
}

/// Why a request is not let in, and what it is told beside that.
pub(super) struct Refusal {
    pub(super) reason: Reason,
    pub(super) field: Option<(HeaderName, HeaderValue)>,
}

/// What limits count by: what a backend would be told of who asks.
fn believed<'a, F>(request: &Client<'a, F>, ctx: &'a RequestCtx) -> Believed<'a, F> {
    let Told { names, identity, .. } = towards_backend(ctx);
    Believed { told: names, identity, ..admit::believed(ctx.info(), ctx.peer_trusted, request.fields) }
}

fn asker<'a, F>(request: &Client<'a, F>, ctx: &RequestCtx, fields: &'a Believed<'a, F>) -> Asker<'a, Believed<'a, F>> {
    Asker { client: ctx.client, host: request.host, version: request.version, fields }
}

impl From<TwoKeys> for Refusal {
    fn from(TwoKeys: TwoKeys) -> Self {
        Self { reason: Reason::BadRequest, field: None }
    }
}

fn at_first(request: &Client<'_, impl Fields>, ctx: &mut RequestCtx, guards: &Guards) -> Result<(), Refusal> {
    if guards.access.as_ref().is_some_and(|access| !access.allows(ctx.client)) {
        return Err(Refusal { reason: Reason::Denied, field: None });
    }
    // Nobody has said anything of it yet.
    ctx.admitted = None;
    if let Some(limits) = &guards.rate {
        let fields = believed(request, ctx);
        let rated = limits.decide(&asker(request, ctx, &fields), Instant::now())?;
        rate(rated, ctx)?;
    }
    Ok(())
}

/// Keeps what is told of a rate, and refuses who is beyond it.
fn rate(rated: Rated, ctx: &mut RequestCtx) -> Result<(), Refusal> {
    let admitted = ctx.admitted.get_or_insert_default();
    let Some(seconds) = rated.retry_after else {
        admitted.rate = match (admitted.rate.take(), rated.field) {
            (Some(first), Some(last)) => {
                HeaderValue::from_maybe_shared(Bytes::from([first.as_bytes(), b", ", last.as_bytes()].concat())).ok()
            }
            (first, last) => first.or(last),
        };
        return Ok(());
    };
    admitted.rate = rated.field;
    let retry_after = (header::RETRY_AFTER, HeaderValue::from(seconds));
    Err(Refusal { reason: Reason::RateLimited, field: Some(retry_after) })
}

/// Last: who is not let in must not take the place of somebody who is.
fn at_last(request: &Client<'_, impl Fields>, ctx: &mut RequestCtx, guards: &Guards) -> Result<(), Refusal> {
    if guards.rate.is_none() && guards.concurrency.is_none() {
        return Ok(());
    }
    let fields = believed(request, ctx);
    let asker = asker(request, ctx, &fields);
    let rated = guards.rate.as_ref().map_or(Ok(None), |limits| limits.decide_last(&asker, Instant::now()))?;
    if let Some(rated) = rated {
        rate(rated, ctx)?;
    }
    if let Some(limit) = &guards.concurrency {
        let fields = believed(request, ctx);
        let permit = limit.enter(&self::asker(request, ctx, &fields))?;
        if permit.is_none() {
            let retry_after = (header::RETRY_AFTER, TOO_MANY_RETRY_AFTER);
            return Err(Refusal { reason: Reason::TooManyConcurrent, field: Some(retry_after) });
        }
        ctx.admitted.get_or_insert_default().permit = permit;
    }
    Ok(())
}

/// Rate limits of an answer (draft-ietf-httpapi-ratelimit-headers-10), to be added to those that a backend may have.
pub(super) fn rate_fields(ctx: &RequestCtx) -> Option<[(HeaderName, &HeaderValue); 2]> {
    let rate = ctx.admitted.as_ref()?.rate.as_ref()?;
    let limits = ctx.route()?.guards.as_ref()?.rate.as_ref()?;
    Some([(RATE_LIMIT_POLICY, &limits.policy), (RATE_LIMIT, rate)])
}

/// What a backend is told of who is asking, and not by the client itself.
#[derive(Default)]
pub(super) struct Told<'a> {
    /// The password was for us.
    pub(super) drop_authorization: bool,
    /// Fields that only the service that was asked says.
    pub(super) names: &'a [HeaderName],
    /// What it said.
    pub(super) identity: &'a [(HeaderName, HeaderValue)],
}

/// See [`Told`].
pub(super) fn towards_backend(ctx: &RequestCtx) -> Told<'_> {
    let Some(guards) = ctx.route().and_then(|route| route.guards.as_ref()) else { return Told::default() };
    let drop_authorization = guards.basic.as_ref().is_some_and(|basic| !basic.keep);
    let Some(forward) = &guards.forward else { return Told { drop_authorization, ..Told::default() } };
    let identity = ctx.admitted.as_ref().map_or(&[][..], |admitted| &admitted.identity);
    Told { drop_authorization, names: &forward.copy_headers, identity }
}

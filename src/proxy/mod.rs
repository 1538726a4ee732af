//! One request: [`App`] is the `ProxyHttp` that Pingora calls, and each of its phases calls one file. Nothing is
//! decided here; `policy/` decides, these files apply.

mod admit;
mod cancel;
mod client;
mod ctx;
mod current;
mod date;
mod downstream;
mod dropped;
mod edit;
pub mod exchange;
mod finish;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod grpc_web;
mod guard;
mod id;
mod judge;
mod kit;
mod old_client;
mod outlet;
mod profile;
mod reject;
mod retry;
mod select;
mod stream;
pub mod tunnel;
mod unserved;
mod watch;

use std::{any::Any, sync::Arc};

pub use admit::{is_served, well_formed};
use async_trait::async_trait;
use bytes::Bytes;
pub use cancel::Cancel;
pub use client::{ClientCertificate, TlsInfo, Verified};
pub use ctx::{Afterwards, ConnInfo, RequestCtx, RequestStart};
pub use current::{Current, Log};
use http::HeaderMap;
pub use kit::Kit;
pub use outlet::Outlet;
use pingora_core::{Error, Result, modules::http::HttpModules, protocols::Digest, upstreams::peer::HttpPeer};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, ProxyWarnLogContext, Session};
pub use profile::Proxies;
pub use reject::{PROXY_STATUS, proxy_status};
pub use stream::{Upload, failed as stream_failed, is_malformed};
pub use unserved::Unserved;

use crate::{runtime::peer::TlsProfile, telemetry::metrics::ConnectionUse};

/// The application of one worker, for upstreams of one TLS profile.
pub struct App {
    kit: Arc<Kit>,
    profile: TlsProfile,
}

impl App {
    /// An application with the worker's tools.
    pub fn new(kit: Arc<Kit>, profile: TlsProfile) -> Self {
        Self { kit, profile }
    }
}

#[async_trait]
impl ProxyHttp for App {
    type CTX = RequestCtx;

    fn new_ctx(&self) -> RequestCtx {
        RequestCtx::new(self.kit.epoch())
    }

    /// None: Pingora's compression would cost every request two allocations and do nothing.
    fn init_downstream_modules(&self, _: &mut HttpModules) {}

    fn on_connection_reuse(&self, _: &mut Session, ctx: &mut RequestCtx, start: Box<dyn Any + Send + Sync>) {
        ctx.start = start.downcast().ok().map(|start| *start);
    }

    async fn early_request_filter(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<()> {
        admit::begin(&self.kit, session, ctx);
        Ok(())
    }

    async fn request_filter(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<bool> {
        admit::route(&self.kit, session, ctx).await
    }

    async fn upstream_peer(&self, session: &mut Session, ctx: &mut RequestCtx) -> Result<Box<HttpPeer>> {
        select::peer(&self.kit, session, ctx, &self.profile)
    }

    async fn connected_to_upstream(
        &self,
        _: &mut Session,
        reused: bool,
        _: &HttpPeer,
        fd: std::os::unix::io::RawFd,
        _: Option<&Digest>,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        ctx.upstream_fd = fd;
        ctx.reused = reused;
        if let Some(member) = ctx.member() {
            let used = if reused { ConnectionUse::Reused } else { ConnectionUse::Fresh };
            member.metrics.connection(self.kit.index(), used);
        }
        Ok(())
    }

    fn fail_to_connect(
        &self,
        session: &mut Session,
        _: &HttpPeer,
        ctx: &mut RequestCtx,
        error: Box<Error>,
    ) -> Box<Error> {
        retry::after_connect(&self.kit, session, ctx, error)
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        edit::request(session, upstream, ctx)?;
        if edit::asks_for_body(session, upstream.version) {
            session.write_continue_response().await.map_err(Error::into_down)?;
        }
        watch::request_begins(&self.kit, session, upstream.version, ctx);
        watch::ends_writes(ctx);
        Ok(())
    }

    async fn request_body_filter(
        &self,
        session: &mut Session,
        body: &mut Option<Bytes>,
        end: bool,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        watch::request_body(session, body, end, ctx)
    }

    async fn upstream_response_filter(
        &self,
        session: &mut Session,
        answer: &mut ResponseHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        watch::answer_begins(session, answer, ctx)
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        answer: &mut ResponseHeader,
        ctx: &mut RequestCtx,
    ) -> Result<()> {
        edit::response(session, answer, ctx)
    }

    fn response_body_filter(
        &self,
        _: &mut Session,
        part: &mut Option<Bytes>,
        end: bool,
        ctx: &mut RequestCtx,
    ) -> Result<Option<std::time::Duration>> {
        watch::answer_part(part.as_ref(), end, ctx)?;
        Ok(None)
    }

    async fn response_trailer_filter(
        &self,
        _: &mut Session,
        trailers: &mut HeaderMap,
        ctx: &mut RequestCtx,
    ) -> Result<Option<Bytes>> {
        watch::trailers(trailers);
        // Nothing unless a gRPC-web call is under way: then trailers become the end of the body.
        ctx.grpc_web.response_trailer_filter(trailers)
    }

    fn error_while_proxy(
        &self,
        _: &HttpPeer,
        session: &mut Session,
        error: Box<Error>,
        ctx: &mut RequestCtx,
        reused: bool,
    ) -> Box<Error> {
        retry::after_exchange(&self.kit, session, ctx, error, reused)
    }

    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, ctx: &mut RequestCtx) -> FailToProxy {
        let reason = finish::failed(ctx, error);
        let error_code = reject::answer(session, ctx, reason).await;
        FailToProxy { error_code, can_reuse_downstream: false }
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, ctx: &mut RequestCtx) {
        finish::ended(&self.kit, session, ctx, error);
        if error.is_none() {
            finish::last(session, ctx);
        }
    }

    /// Failures are in the access log and, with their cause, in our own warnings.
    fn suppress_error_log(&self, _: &Session, _: &RequestCtx, _: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(&self, _: &Session, _: &RequestCtx, _: &Error, _: ProxyWarnLogContext) -> bool {
        true
    }
}

//! A worker's proxies, one for each way of speaking TLS to backends.
//!
//! Pingora keeps a TLS client's trust store, client certificate and resumable sessions in the connector of an
//! `HttpProxy`. Upstreams with a `ca` or `client_cert` of their own therefore have their own: only then are their
//! sessions resumed, and no pooled connection can be used under other settings. Which one a request needs is known
//! from its route, so with more than one the head is routed here already.

use std::{collections::HashMap, sync::Arc};

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use pingora_proxy::HttpProxy;

use super::{App, admit, ctx::RequestStart};
use crate::runtime::{peer::TlsProfile, snapshot::Snapshot};

/// Never empty.
pub struct Proxies {
    default: Arc<HttpProxy<App>>,
    others: HashMap<TlsProfile, Arc<HttpProxy<App>>>,
}

impl Proxies {
    /// `default` serves every upstream without a profile of its own.
    pub fn new(default: Arc<HttpProxy<App>>, others: HashMap<TlsProfile, Arc<HttpProxy<App>>>) -> Self {
        Self { default, others }
    }

    /// The proxy of a profile that is here already.
    pub fn of(&self, profile: &TlsProfile) -> Option<&Arc<HttpProxy<App>>> {
        if *profile == TlsProfile::default() { Some(&self.default) } else { self.others.get(profile) }
    }

    /// The proxy for an HTTP/1 request with this head, which the front has parsed before.
    pub(super) fn for_head(&self, snapshot: &Snapshot, head: &[u8], start: &RequestStart) -> &Arc<HttpProxy<App>> {
        if self.others.is_empty() {
            return &self.default;
        }
        let mut fields = [httparse::EMPTY_HEADER; 256];
        let mut request = httparse::Request::new(&mut fields);
        if request.parse(head).is_err() {
            return &self.default;
        }
        let method = request.method.and_then(|method| Method::from_bytes(method.as_bytes()).ok());
        let headers: HeaderMap = request
            .headers
            .iter()
            .filter_map(|field| {
                Some((HeaderName::from_bytes(field.name.as_bytes()).ok()?, HeaderValue::from_bytes(field.value).ok()?))
            })
            .collect();
        let (Some(method), Some(target)) = (method, request.path) else { return &self.default };
        self.pick(snapshot, &method, target, &headers, None, start)
    }

    /// The proxy for an HTTP/2 request.
    pub(super) fn for_request(
        &self,
        snapshot: &Snapshot,
        request: &http::request::Parts,
        start: &RequestStart,
    ) -> &Arc<HttpProxy<App>> {
        if self.others.is_empty() {
            return &self.default;
        }
        let target = request.uri.path_and_query().map_or("/", |target| target.as_str());
        let authority = request.uri.authority().map(http::uri::Authority::as_str);
        self.pick(snapshot, &request.method, target, &request.headers, authority, start)
    }

    fn pick(
        &self,
        snapshot: &Snapshot,
        method: &Method,
        target: &str,
        headers: &HeaderMap,
        authority: Option<&str>,
        start: &RequestStart,
    ) -> &Arc<HttpProxy<App>> {
        let info = Some(&*start.info);
        let host = authority.or_else(|| headers.get(header::HOST).and_then(|host| host.to_str().ok()));
        let headers = admit::believed(info, admit::is_trusted(snapshot, info), headers);
        let upstream = snapshot.upstream_for(method, target, &headers, host, start.seed);
        let upstream = upstream.filter(|upstream| upstream.tls.is_some());
        upstream.and_then(|upstream| self.others.get(&upstream.tls_profile)).unwrap_or(&self.default)
    }
}

//! A request in the lane: what its head says, whether it is one for the lane, and how far it is.

use std::sync::Arc;

use bytes::BytesMut;
use http::{HeaderName, Method, StatusCode, Version, header, request::Parts, uri::PathAndQuery};

use super::super::{
    admit,
    ctx::{Afterwards, ConnInfo, RequestCtx},
    current::Current,
    downstream::Downstream,
    edit::Client,
    guard,
};
use crate::{
    config::model::Engine,
    policy::{
        fields::{Fields, Index, Names, Raw},
        forwarded::is_client_cert_field,
        framing::Border,
        head::text,
        headers::is_websocket,
    },
    runtime::{
        snapshot::{Action, choose},
        tls::Offer,
    },
};

/// As much of a request's body is kept for another attempt; as much as Pingora keeps.
pub(super) const RETAINED: usize = 64 * 1024;

/// The system may hold so much of an answer for a client whose connection is closed, of which nobody hears any more whether it
/// takes it.
const HELD: u64 = 16 * 1024;

/// What the front has read of a request.
#[derive(Debug)]
pub struct Read<'a> {
    /// The head, and what has come of the body.
    pub bytes: &'a [u8],
    /// Bytes of the head.
    pub head: usize,
    /// Bytes of the body that have not come yet, of a body with a length; 0 of any other.
    pub left: u64,
    /// Whether all of it is here.
    pub whole: bool,
    /// The connection's last.
    pub last: bool,
}

/// Where a request goes that is one for the lane.
#[derive(Debug)]
pub struct Way {
    pub(super) method: Method,
    pub(super) route: usize,
    /// What the backend is asked for, where that is not the target as it came.
    pub(super) target: Option<PathAndQuery>,
    pub(super) upstream: usize,
    upgrade: bool,
}

/// What a request is for, as it came.
#[derive(Clone, Copy, Debug)]
pub struct Wanted<'a> {
    /// Path and query.
    pub(super) target: &'a str,
    pub(super) host: Option<&'a str>,
}

impl Way {
    /// The way of the request with this head, which the front has read; `None` where it is Pingora's. Nobody hears of the
    /// question.
    pub fn find<'a>(
        current: &Arc<Current>,
        info: &ConnInfo,
        head: &'a [u8],
        index: &'a Index,
        seed: u64,
    ) -> Option<(Self, Wanted<'a>)> {
        if !info.is_admitted() || info.redirect_https() {
            return None;
        }
        let (method, target) = match index.line(head) {
            Some((method, target)) => (method, text(target)?),
            None => request_line(head)?,
        };
        let method = Method::from_bytes(method).ok().filter(|method| *method != Method::TRACE)?;
        let fields = Raw::new(head, index);
        let mut upgrade = false;
        let pingoras = fields.likely(SPECIAL).any(|(name, _)| {
            upgrade |= is_upgrade(name);
            is_pingoras(name)
        });
        if pingoras || (upgrade && !is_websocket(method.as_str(), &fields)) {
            return None;
        }
        let wanted = Wanted::new(target, &fields);
        let (route, target, upstream) = lead(current, info, &wanted.of(&method, &fields), target, seed, upgrade)?;
        Some((Self { method, route, target, upstream, upgrade }, wanted))
    }

    /// The same of a request over HTTP/2.
    pub fn of_stream(current: &Arc<Current>, info: &ConnInfo, request: &Parts, seed: u64) -> Option<Self> {
        if !info.is_admitted() || info.redirect_https() {
            return None;
        }
        let method = &request.method;
        if matches!(*method, Method::CONNECT | Method::TRACE) {
            return None;
        }
        let counts = *method == Method::OPTIONS && request.headers.contains_key(header::MAX_FORWARDS);
        let pingoras = |name: &HeaderName| *name == header::UPGRADE || is_client_cert_field(name.as_str().as_bytes());
        if counts || !admit::is_served(request, info) || request.headers.keys().any(pingoras) {
            return None;
        }
        let target = request.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        let (route, target, upstream) = lead(current, info, &Client::of_stream(request), target, seed, false)?;
        Some(Self { method: method.clone(), route, target, upstream, upgrade: false })
    }

    /// Whether a WebSocket is asked for: what comes behind the head is no part of the request, and waits for the answer.
    pub fn is_upgrade(&self) -> bool {
        self.upgrade
    }
}

/// Where a request is led by its head, if it is led through the lane: the route, what the backend is asked for where that is not
/// the target as it came, and the upstream. `upgrade`: it asks for a WebSocket.
fn lead(
    current: &Arc<Current>,
    info: &ConnInfo,
    client: &Client<'_, impl Fields>,
    target: &str,
    seed: u64,
    upgrade: bool,
) -> Option<(usize, Option<PathAndQuery>, usize)> {
    let (route, target) = admit::decide(current, Some(info), client, target).ok()??;
    let found = current.route(route);
    if current.engine(found, info.engine()) != Engine::Lane || !found.guards.as_ref().is_none_or(guard::by_head) {
        return None;
    }
    let Action::Proxy { upstreams, .. } = &found.action else { return None };
    let upstream = choose(upstreams, seed);
    let to = &current.member(upstream).upstream;
    // An upgrade is HTTP/1.1's alone (RFC 9113 §8.6).
    let ours = to.exchange().is_some_and(|to| !upgrade || to.offer() != Offer::Http2);
    (ours && !to.grpc_web).then_some((route, target, upstream))
}

/// Method and target of a request in HTTP/1.1 whose target is a path; `None` of any other.
pub(super) fn request_line(head: &[u8]) -> Option<(&[u8], &str)> {
    let space = head.iter().position(|byte| *byte == b' ')?;
    let (method, rest) = (head.get(..space)?, head.get(space + 1..)?);
    let end = rest.iter().position(|byte| *byte == b' ')?;
    let target = std::str::from_utf8(rest.get(..end)?).ok()?;
    (target.starts_with('/') && rest.get(end..)?.starts_with(b" HTTP/1.1\r\n")).then_some((method, target))
}

fn is_upgrade(name: &[u8]) -> bool {
    name.len() == 7 && name.eq_ignore_ascii_case(header::UPGRADE.as_str().as_bytes())
}

/// [`is_upgrade`] and [`is_pingoras`].
const SPECIAL: Names = Names::of(&[
    "expect",
    "max-forwards",
    "upgrade",
    "x-client-cert-fingerprint",
    "x-client-cert-subject",
    "x-client-cert-verify",
]);

/// Fields whose requests are Pingora's: who has them waits to be asked, counts hops, or says what only we say.
fn is_pingoras(name: &[u8]) -> bool {
    match name.len() {
        6 => name.eq_ignore_ascii_case(header::EXPECT.as_str().as_bytes()),
        12 => name.eq_ignore_ascii_case(header::MAX_FORWARDS.as_str().as_bytes()),
        20.. => is_client_cert_field(name),
        _ => false,
    }
}

impl<'a> Wanted<'a> {
    pub(super) fn new(target: &'a str, fields: &Raw<'a>) -> Self {
        Self { target, host: fields.value(&header::HOST).and_then(text) }
    }

    fn of(self, method: &'a Method, fields: &'a Raw<'a>) -> Client<'a, Raw<'a>> {
        let (target, host) = (self.target.as_bytes(), self.host);
        Client { method, target, version: Version::HTTP_11, host, authority: None, fields }
    }
}

/// A request that is served, as far as it is.
pub(super) struct Asked<'a> {
    method: &'a Method,
    wanted: Wanted<'a>,
    fields: &'a Raw<'a>,
    body: Option<Incoming>,
    done: bool,
    received: u64,
    truncated: bool,
    pub(super) sent: u64,
    pub(super) answered: Option<StatusCode>,
    /// A WebSocket is asked for; and what comes behind the head has no border, as long as it may come.
    upgrade: bool,
    open: bool,
    /// The connection serves another request after this one.
    pub(super) again: bool,
    /// The client has said that it sends no other one.
    close: bool,
}

/// A body, as it comes.
#[derive(Clone, Copy, Debug)]
enum Incoming {
    Chunked(Border),
    Counted,
}

impl<'a> Asked<'a> {
    /// `last`: the connection ends after it. `length`: of the body, where it is not in chunks.
    pub(super) fn new(method: &'a Method, wanted: Wanted<'a>, fields: &'a Raw<'a>, length: u64, last: bool) -> Self {
        let chunked = fields.has(&header::TRANSFER_ENCODING);
        let body = match length {
            _ if chunked => Some(Incoming::Chunked(Border::CHUNKED)),
            0 => None,
            _ => Some(Incoming::Counted),
        };
        let connection = header::CONNECTION;
        let closes = |option: &[u8]| option.trim_ascii().eq_ignore_ascii_case(b"close");
        let close = fields.all(&connection).any(|value| value.split(|byte| *byte == b',').any(closes));
        Self {
            method,
            wanted,
            fields,
            body,
            done: body.is_none(),
            received: 0,
            truncated: false,
            sent: 0,
            answered: None,
            upgrade: false,
            open: false,
            again: !last && !close,
            close,
        }
    }

    /// What becomes of the connection of a last request that was answered: see `listener::h1::linger`.
    pub(super) fn parting(&self) -> Afterwards {
        if self.close && self.done && self.sent <= HELD { Afterwards::Close } else { Afterwards::Linger }
    }

    /// As it is, for a WebSocket where `upgrade`: whatever becomes of that, the connection serves no other request.
    pub(super) fn for_upgrade(self, upgrade: bool) -> Self {
        Self { upgrade, open: upgrade, again: self.again && !upgrade, ..self }
    }

    /// As it is when its WebSocket is over; `open`: the client may still send.
    pub(super) fn switched(self, received: u64, sent: u64, open: bool) -> Self {
        Self { answered: Some(StatusCode::SWITCHING_PROTOCOLS), received, sent, open, ..self.for_upgrade(true) }
    }

    /// Writes its head for a backend.
    pub(super) fn write(&self, ctx: &RequestCtx, out: &mut BytesMut) {
        let request = self.request();
        if self.upgrade {
            request.write_upgrade(ctx, b"", out);
        } else {
            request.write(ctx, self.body.is_some(), out);
        }
    }

    /// Takes in what came of the body, and says in `upload` what a backend is to be sent of it: of a chunked body its data
    /// in chunks of ours. Extensions and trailers go no further: what a backend may take for fields has been checked in the head
    /// alone. `done`: no more comes. Returns how many bytes of data there were.
    pub(super) fn take_in(
        &mut self,
        raw: &mut BytesMut,
        done: bool,
        upload: &mut BytesMut,
        given: &mut BytesMut,
    ) -> usize {
        let before = upload.len();
        let mut data = 0;
        match &mut self.body {
            Some(Incoming::Counted) => {
                data = raw.len();
                if upload.is_empty() {
                    std::mem::swap(upload, raw);
                } else {
                    upload.extend_from_slice(raw);
                }
            }
            Some(Incoming::Chunked(border)) => {
                let mut rest = &raw[..];
                while !rest.is_empty() && !border.reached() {
                    let (taken, is_data) = border.part(rest);
                    if is_data {
                        super::chunks::chunk(rest.get(..taken).unwrap_or_default(), upload);
                        data += taken;
                    } else if taken == 0 {
                        break;
                    }
                    rest = rest.get(taken..).unwrap_or_default();
                }
                if done {
                    upload.extend_from_slice(b"0\r\n\r\n");
                }
            }
            None => {}
        }
        self.received += data as u64;
        self.done = done;
        let fresh = upload.get(before..).unwrap_or_default();
        if self.is_answered() || self.received > RETAINED as u64 || given.len() + fresh.len() > 2 * RETAINED {
            self.truncated = true;
            given.clear();
        } else if !self.truncated {
            given.extend_from_slice(fresh);
        }
        data
    }

    /// Takes note that so many bytes of the body went to a backend unseen. It can be sent to no other.
    pub(super) fn take_past(&mut self, bytes: usize, done: bool, given: &mut BytesMut) {
        self.received += bytes as u64;
        (self.done, self.truncated) = (done, true);
        given.clear();
    }

    /// As [`Downstream::has_body`].
    pub(super) fn is_with_body(&self) -> bool {
        self.body.is_some()
    }

    /// As [`Downstream::is_body_done`].
    pub(super) fn is_done(&self) -> bool {
        self.done
    }

    pub(super) fn is_head_only(&self) -> bool {
        *self.method == Method::HEAD
    }
}

impl<'a> Downstream for Asked<'a> {
    type Fields = Raw<'a>;

    fn request(&self) -> Client<'_, Raw<'a>> {
        self.wanted.of(self.method, self.fields)
    }

    fn target(&self) -> &str {
        self.wanted.target
    }

    fn has_body(&mut self) -> bool {
        self.body.is_some()
    }

    fn is_body_done(&mut self) -> bool {
        self.done && !self.open
    }

    fn is_upgrade(&self) -> bool {
        self.upgrade
    }

    fn received(&self) -> u64 {
        self.received
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

    fn no_next_request(&mut self) {
        self.again = false;
    }
}

#[cfg(test)]
mod tests;

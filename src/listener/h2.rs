//! HTTP/2 on one connection, by ALPN or by prior knowledge. The frames are the h2 crate's; here is the loop that accepts
//! streams, ends idle connections, and says GOAWAY when the drain begins or the listener is taken away
//! (RFC 9113 §6.8), or has other rules or limits, or when the guard says that it is enough.

mod abuse;
mod alarm;
mod budget;
mod frames;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzzing;
mod guard;
mod idle;
mod pace;
mod preface;
mod refusals;
mod requests;
mod session;
mod watch;

use std::{
    future::poll_fn,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use h2::{
    RecvStream,
    server::{Builder, Connection, SendResponse},
};
use http::{Method, Request, Response, StatusCode, header, request::Parts};
use pingora_core::{apps::HttpServerApp, protocols::http::ServerSession};
use tokio::task::coop::has_budget_remaining;

pub(super) use self::{
    abuse::AbuseLog,
    preface::{NO_PREFACE, is_no_http1},
};
use self::{
    guard::{ALL, Guard, Told, Word},
    idle::Idle,
    pace::Patience,
    requests::{Bell, Requests},
    session::StreamSession,
    watch::Verdict,
};
use super::{Endpoint, accept::Open, conn::Conn, worker::Post};
use crate::{
    config::model::ListenerLimits,
    policy::{fields::Fields as _, framing, headers::same_host},
    proxy::{
        Cancel, ConnInfo, RequestStart, Unserved, Upload,
        exchange::{Way, serve_stream},
        is_malformed, is_served, tunnel, well_formed,
    },
    runtime::{deadlines::Deadlines, descriptors},
    telemetry::metrics::H2Abuse,
    types::Reason,
};

/// Bytes a client may send ahead on one stream and on the connection. Larger than HTTP/2's 64 KiB, which would cap an
/// upload at 64 KiB a round trip; the connection's is the most that one client can make us hold.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of answers held for one stream while the client's socket takes none: with 100 streams, 3.2 MiB a connection.
const SEND_BUFFER: usize = 32 * 1024;
/// Streams that a client may have open, and as many of which it is served while descriptors are scarce.
const STREAMS: u32 = 100;
const SHARE: usize = 8;
/// A client that takes nothing of its answers is given up after so long, or after the listener's idle timeout.
const STALL: Duration = Duration::from_secs(30);
/// How often a connection and its requests are asked in one turn whether they have made something to do for each other.
const PASSES: usize = 4;
/// What a client that has to go is given to read its GOAWAY.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long a client that was told to go, and has no stream left, may take to read the rest of its answers. The HTTP/2
/// layer closes the connection by itself as soon as everything is sent; this is for clients that are gone.
const LEAVE_GRACE: Duration = Duration::from_secs(60);

/// The same for a client that was idle: it has read its answers.
const IDLE_GRACE: Duration = Duration::from_secs(2);
/// How long a request that Pingora serves may take to see by itself that its client has reset it.
const RESET_GRACE: Duration = Duration::from_millis(100);

/// A connection and its requests.
struct Serving {
    connection: Connection<Guard, Bytes>,
    bell: Arc<Bell>,
    waker: Waker,
    requests: Requests,
    told: Arc<Told>,
    idle: Idle,
    /// It was said that the connection goes; how long it may be without a request then.
    leaving: Option<Duration>,
}

/// A request, and what it is answered by.
struct Asked {
    /// Boxed, as it is handed on many times.
    head: Box<Parts>,
    body: RecvStream,
    respond: SendResponse<Bytes>,
    /// As many requests of its connection were under way when it came.
    beside: usize,
}

/// What a connection has come to.
enum Turn {
    Accepted(Asked),
    /// There are no requests any more.
    Ended,
    /// There has been no request for as long as there may be none.
    Idle,
    /// The drain has begun, or the listener is gone.
    Last,
    Word(Word),
}

impl Asked {
    fn new(request: Request<RecvStream>, respond: SendResponse<Bytes>, beside: usize) -> Self {
        let (head, body) = request.into_parts();
        Self { head: Box::new(head), body, respond, beside }
    }
}

impl Serving {
    fn new(connection: Connection<Guard, Bytes>, told: Arc<Told>) -> Self {
        let bell = Bell::new(&told.ring);
        let (waker, requests) = (bell.clone().into(), Requests::new(told.ring.clone()));
        Self { connection, bell, waker, requests, told, idle: Idle::default(), leaving: None }
    }

    /// Ends it at once, for that reason; its socket stays open until it is dropped.
    async fn farewell(&mut self, verdict: Verdict, deadlines: &Deadlines) {
        match verdict {
            Verdict::Ours(H2Abuse::Stall) => self.requests.stalled(deadlines),
            // It is not they who leave.
            Verdict::Ours(_) => self.requests.broken(&[ALL]),
            Verdict::Theirs(_) => {}
        }
        self.requests.leave(&self.told.take_broken());
        if let Verdict::Ours(kind) = verdict {
            self.connection.abrupt_shutdown(abuse::code(kind).into());
        }
        let farewell = async { while let Some(Ok(_)) = self.connection.accept().await {} };
        let _ = tokio::time::timeout(FAREWELL, farewell).await;
    }

    /// Says GOAWAY.
    fn leave(&mut self, grace: Duration) {
        if self.leaving.is_none() {
            self.connection.graceful_shutdown();
            self.leaving = Some(grace);
            self.idle.begin_anew();
            // It has something to write.
            self.waker.wake_by_ref();
        }
    }

    /// Moves all that has something to do. `last`: the connection is to go; `wakes` then wakes the task.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        last: impl Fn() -> bool,
        wakes: Pin<&mut impl Future>,
        idle_timeout: Duration,
    ) -> Poll<Turn> {
        let other = self.told.ring.begin(cx);
        if other && self.leaving.is_none() {
            _ = wakes.poll(cx);
        }
        let limit = self.leaving.unwrap_or(idle_timeout);
        for _ in 0..PASSES {
            self.told.ring.heard();
            if let Some(word) = self.told.next() {
                return Poll::Ready(Turn::Word(word));
            }
            if self.leaving.is_none() && last() {
                return Poll::Ready(Turn::Last);
            }
            if self.bell.heard()
                && let Poll::Ready(accepted) = self.connection.poll_accept(&mut Context::from_waker(&self.waker))
            {
                return Poll::Ready(match accepted {
                    Some(Ok((request, respond))) => Turn::Accepted(Asked::new(request, respond, self.requests.count())),
                    None | Some(Err(_)) => Turn::Ended,
                });
            }
            self.requests.broken(&self.told.take_broken());
            self.told.held(self.requests.poll());
            if self.idle.poll(cx, self.requests.is_empty(), limit).is_ready() {
                return Poll::Ready(Turn::Idle);
            }
            ready!(self.told.ring.rest());
            if !has_budget_remaining() {
                break;
            }
        }
        // Others have their turn.
        self.told.ring.put_off(cx);
        Poll::Pending
    }
}

/// Serves a connection until it ends. Its preface is due counted from `since`.
// No `async fn`: that would keep each of these twice.
pub(super) fn serve(
    post: Arc<Post>,
    mut conn: Box<Conn>,
    mut info: Arc<ConnInfo>,
    endpoint: Arc<Endpoint>,
    (open, since): (Open, Instant),
) -> impl Future<Output = ()> + Send {
    conn.begin_h2();
    async move {
        // Boxed, so that an idle connection does not carry the room for its beginning and its end.
        let Some(mut serving) = Box::pin(begin(conn, &endpoint, since)).await else { return };
        let (mut draining, mut closing) = (post.draining.clone(), endpoint.place().follow());
        let mut wakes = pin!(async move {
            tokio::select! {
                () = draining.begin() => {}
                () = closing.begin() => {}
            }
        });
        let (mut requests, mut unheard) = (0_u32, 0);
        let verdict = loop {
            let turn = poll_fn(|cx| {
                let last = || endpoint.place().is_last(&post.draining);
                serving.poll(cx, last, wakes.as_mut(), info.limits().idle_timeout)
            });
            match turn.await {
                Turn::Word(Word::Over(verdict)) => break Some(verdict),
                Turn::Word(Word::Slow(slow)) => {
                    if serving.requests.end(slow, post.kit.deadlines()) {
                        serving.leave(IDLE_GRACE);
                    }
                }
                Turn::Word(Word::Left(left)) => serving.requests.left(&left),
                Turn::Word(Word::Refused(reasons)) => {
                    for (_, reason) in reasons {
                        post.log_unserved(&info, Unserved::unseen(reason, "HTTP/2.0"));
                        // Resets have a budget of their own.
                        if reason == Reason::HeaderTooLarge {
                            serving.told.malformed();
                        }
                    }
                }
                // Who is idle has read its answers.
                Turn::Last if serving.requests.is_empty() => serving.leave(IDLE_GRACE),
                Turn::Last => serving.leave(LEAVE_GRACE),
                Turn::Idle if serving.leaving.is_none() => serving.leave(IDLE_GRACE),
                Turn::Accepted(asked) => {
                    let id = asked.respond.stream_id().as_u32();
                    let (fresh, may_follow) = serving.told.accepted(id);
                    if may_follow {
                        // What else there is comes after that. Where there is none, the HTTP/2 layer has done all it can.
                        serving.waker.wake_by_ref();
                    }
                    if !fresh {
                        continue;
                    }
                    requests += 1;
                    unheard += u32::from(serving.leaving.is_some());
                    if unheard > STREAMS {
                        // More than can have been on their way when it was told to go.
                        serving.told.tell(Verdict::Ours(H2Abuse::GoawayIgnored));
                        continue;
                    }
                    let others = endpoint.follow(&mut info) && fixed(info.limits()) != fixed(&endpoint.model.limits);
                    let enough = requests >= info.limits().requests_per_connection;
                    if enough || others {
                        serving.leave(LEAVE_GRACE);
                    }
                    let (post, endpoint, told) = (post.clone(), endpoint.clone(), serving.told.clone());
                    let cancel = Arc::<Cancel>::default();
                    let served = request(post, info.clone(), endpoint, asked, cancel.clone(), told);
                    serving.requests.begin(id, cancel, served);
                }
                Turn::Idle | Turn::Ended => break None,
            }
        };
        match verdict {
            Some(verdict) => Box::pin(serving.farewell(verdict, post.kit.deadlines())).await,
            None => serving.requests.leave(&serving.told.take_broken()),
        }
        if let Some(Verdict::Ours(kind) | Verdict::Theirs(kind)) = serving.told.known() {
            if kind == H2Abuse::Stall {
                // What it does not take is not kept for it.
                info.abort();
            }
            post.abuse.ended(post.kit.metrics(), &endpoint.model.address, info.peer(), kind);
        }
        drop(serving);
        // It counts for as long as its socket is open.
        drop(open);
    }
}

async fn begin(conn: Box<Conn>, endpoint: &Endpoint, since: Instant) -> Option<Serving> {
    let (limits, told) = (&endpoint.model.limits, Arc::<Told>::default());
    let guard = Guard::new(conn, patience(limits), told.clone(), since);
    let left = limits.header_timeout.saturating_sub(since.elapsed());
    let opened = tokio::time::timeout(left, options(endpoint).handshake(guard)).await;
    let Ok(Ok(connection)) = opened else {
        log::debug!("{}: no HTTP/2 connection came about", endpoint.model.address);
        return None;
    };
    Some(Serving::new(connection, told))
}

fn patience(limits: &ListenerLimits) -> Patience {
    Patience {
        header: limits.header_timeout,
        stall: limits.idle_timeout.min(STALL),
        rate: limits.min_body_rate.map(|rate| rate.0),
    }
}

/// What a connection keeps to from its beginning; where the configuration says otherwise now, it is exchanged for another one.
fn fixed(limits: &ListenerLimits) -> (Patience, u64) {
    (patience(limits), limits.max_header_size.0)
}

// Boxed here, where it is put together in its place. No `async fn`: that would keep each of these twice.
fn request(
    post: Arc<Post>,
    info: Arc<ConnInfo>,
    endpoint: Arc<Endpoint>,
    asked: Asked,
    cancel: Arc<Cancel>,
    told: Arc<Told>,
) -> Pin<Box<dyn Future<Output = ()> + Send>> {
    let (seed, began) = (post.kit.random(), Instant::now());
    let Asked { mut head, body, mut respond, beside } = asked;
    let mut upload = Upload::new(body, cancel.clone());
    Box::pin(async move {
        one_host(&mut head);
        let refused = match head.method {
            _ if beside >= SHARE && descriptors::are_likely_scarce() => Some(Reason::TooManyConcurrent),
            Method::CONNECT => tunnel::refused(&head),
            _ => None,
        };
        if let Some(reason) = refused {
            if let Some(refusal) = post.kit.refusal_head(reason) {
                _ = respond.send_response(Response::from_parts(refusal.as_owned_parts(), ()), true);
            }
            return post.log_unserved(&info, unserved(&head, began, reason));
        }
        if head.method == Method::CONNECT && is_served(&head, &info) {
            tunnel::into_upgrade(&mut head, u128::from(post.kit.random()) << 64 | u128::from(post.kit.random()));
        }
        let length = || head.headers.first(&header::CONTENT_LENGTH).and_then(framing::length);
        if !upload.is_done() && length() == Some(0) {
            // Rare, and with a timer.
            let patience = endpoint.model.limits.header_timeout;
            if let Err(reason) = Box::pin(empty(&mut upload, &mut respond, patience, &cancel)).await {
                if reason == Reason::BadRequest {
                    told.malformed();
                }
                return post.log_unserved(&info, unserved(&head, began, reason));
            }
        }
        let current = post.current();
        let way = Way::of_stream(&current, &info, &head, seed);
        let start = RequestStart { info: info.clone(), current, seed, began, cancel: Some(cancel.clone()) };
        match way {
            Some(way) => serve_stream(&post.kit, start, way, head, upload, respond).await,
            None => {
                if !well_formed(&head) {
                    told.malformed();
                }
                // Large.
                Box::pin(by_pingora(&post, &endpoint, start, head, upload, respond, &cancel)).await;
            }
        }
        if cancel.is_malformed() {
            // By the fields behind its body.
            told.malformed();
        }
    })
}

/// Serves a request that is not for the lane.
async fn by_pingora(
    post: &Post,
    endpoint: &Endpoint,
    start: RequestStart,
    mut head: Box<Parts>,
    upload: Upload,
    respond: SendResponse<Bytes>,
    cancel: &Cancel,
) {
    let (info, current, began) = (start.info.clone(), start.current.clone(), start.began);
    // For a request that will not come to its own line in the log.
    let known = head.clone();
    let proxy = current.for_request(&head, &start);
    head.extensions.insert(start);
    let session = ServerSession::new_custom(Box::new(StreamSession::new((*head).into(), upload, respond)));
    let served = proxy.process_new_http(session, endpoint.place().last(&post.draining));
    let gone = async {
        cancel.left().await;
        // What waits for a backend on HTTP/2 to take something does not see it.
        tokio::time::sleep(RESET_GRACE).await;
    };
    // The stream is reset: the request is dropped with what it waits for, and there is nothing left to answer with.
    let reason = tokio::select! {
        biased;
        _ = served => return,
        reason = cancel.cancelled() => reason,
        () = gone => if cancel.is_broken() { Reason::BadRequest } else { Reason::ClientAborted },
    };
    if !post.kit.log_dropped(&known, cancel, reason) {
        post.log_unserved(&info, unserved(&known, began, reason));
    }
}

/// A request that comes to no phase.
fn unserved(head: &Parts, began: Instant, reason: Reason) -> Unserved {
    Unserved {
        reason,
        method: head.method.to_string(),
        target: head.uri.path_and_query().map_or_else(|| head.uri.to_string(), ToString::to_string),
        host: head.uri.authority().map(ToString::to_string).unwrap_or_default(),
        protocol: "HTTP/2.0",
        began,
    }
}

/// Takes out a `Host` that says what `:authority` says, which is the one that counts (RFC 9113 §8.3.1); if they differ, or there
/// are several, the request will be found malformed.
fn one_host(head: &mut Parts) {
    let Some(authority) = head.uri.authority().filter(|_| head.headers.has(&header::HOST)) else { return };
    let https = head.uri.scheme_str() == Some("https");
    let mut hosts = head.headers.get_all(header::HOST).iter();
    let same = hosts.next().is_some_and(|host| same_host(https, host.as_bytes(), authority.as_str().as_bytes()));
    if same && hosts.next().is_none() {
        head.headers.remove(header::HOST);
    }
}

/// Waits until a request that says that its body is empty has shown it: a backend on HTTP/1.1 takes it for whole at once
/// (RFC 9113 §8.1.1).
///
/// # Errors
/// There is a body, or no end in time.
async fn empty(
    upload: &mut Upload,
    respond: &mut SendResponse<Bytes>,
    patience: Duration,
    cancel: &Cancel,
) -> Result<(), Reason> {
    let end = async {
        loop {
            match poll_fn(|cx| upload.poll_data(cx)).await {
                Ok(Some(part)) if part.is_empty() => {}
                Ok(None) => return Ok(()),
                Ok(Some(_)) => return Err(Reason::BadRequest),
                Err(error) if is_malformed(&error) => return Err(Reason::BadRequest),
                Err(_) => return Err(Reason::ClientAborted),
            }
        }
    };
    let ended = tokio::select! {
        ended = end => ended,
        reason = cancel.cancelled() => Err(reason),
        () = tokio::time::sleep(patience) => Err(Reason::ClientTimeout),
    };
    match ended {
        // Dropping the stream resets it.
        Err(Reason::ClientTimeout) => {
            let mut answer = Response::new(());
            *answer.status_mut() = StatusCode::REQUEST_TIMEOUT;
            _ = respond.send_response(answer, true);
        }
        Err(Reason::BadRequest) => respond.send_reset(h2::Reason::PROTOCOL_ERROR),
        _ => {}
    }
    ended
}

fn options(endpoint: &Endpoint) -> Builder {
    // The h2 crate refuses a longer list with a bare 431 that nobody hears of; up to twice the limit we do it ourselves.
    let limit = u32::try_from(endpoint.model.limits.max_header_size.0.saturating_mul(2)).unwrap_or(u32::MAX);
    let mut options = Builder::new();
    options
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(limit)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER)
        // Whether a route takes a WebSocket is known from its request.
        .enable_connect_protocol();
    options
}

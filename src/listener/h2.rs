//! HTTP/2 on one connection, by ALPN or by prior knowledge. The frames are Pingora's; here is the loop that accepts
//! streams, ends idle connections, and says GOAWAY when the drain begins or the listener is taken away
//! (RFC 9113 §6.8), or has other rules or limits, or when the guard says that it is enough.

mod abuse;
mod budget;
mod frames;
#[cfg(any(test, fuzzing))]
pub(super) mod fuzzing;
mod guard;
mod pace;
mod refusals;
mod watch;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::{Method, StatusCode, header};
use pingora_core::{
    apps::HttpServerApp,
    protocols::{
        Digest,
        http::{
            ServerSession,
            v2::server::{H2Accept, H2Options, HttpSession, default_h2_options, handshake},
        },
    },
};
use pingora_http::ResponseHeader;
use tokio::sync::Notify;

pub(super) use self::abuse::AbuseLog;
use self::{
    guard::{Guard, Told, Word},
    watch::{Patience, Verdict},
};
use super::{Draining, Endpoint, conn::Conn, worker::Post};
use crate::{
    proxy::{Cancel, ConnInfo, RequestStart, Unserved},
    runtime::deadlines::Deadlines,
    telemetry::metrics::H2Abuse,
    types::Reason,
};

/// Bytes a client may send ahead on one stream and on the connection. Larger than HTTP/2's 64 KiB, which would cap an
/// upload at 64 KiB a round trip; the connection's is the most that one client can make us hold.
const STREAM_WINDOW: u32 = 256 * 1024;
const CONNECTION_WINDOW: u32 = 1024 * 1024;
/// Bytes of answers held for one stream while the client's socket takes none: with 100 streams, 6.4 MiB a connection.
const SEND_BUFFER: usize = 64 * 1024;
/// Streams that a client may have open.
const STREAMS: u32 = 100;
/// Requests that are none, on one connection.
const MALFORMED: usize = 32;
/// A client that takes nothing of its answers is given up after so long, or after the listener's idle timeout.
const STALL: Duration = Duration::from_secs(30);
/// What a client that has to go is given to read its GOAWAY.
const FAREWELL: Duration = Duration::from_secs(1);

/// How long a client that was told to go, and has no stream left, may take to read the rest of its answers. The HTTP/2
/// layer closes the connection by itself as soon as everything is sent; this is for clients that are gone.
const LEAVE_GRACE: Duration = Duration::from_secs(60);

/// To one who began neither HTTP/1 nor HTTP/2 where both are spoken: SETTINGS and GOAWAY with PROTOCOL_ERROR.
pub(super) const NO_PREFACE: &[u8] = b"\0\0\0\x04\0\0\0\0\0\0\0\x08\x07\0\0\0\0\0\0\0\0\0\0\0\0\x01";

/// Whether what was refused has not even the shape of an HTTP/1 request, so that a failed HTTP/2 preface is likelier:
/// a first line of three words, the second no path and the third no version.
pub(super) fn is_no_http1(bytes: &[u8]) -> bool {
    let line = bytes.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ');
    match (words.next(), words.next(), words.next(), words.next()) {
        (Some(_), Some(target), Some(version), None) => {
            !target.contains(&b'/') && target != b"*" && !version.is_empty() && !version.starts_with(b"HTTP/")
        }
        _ => false,
    }
}

/// The same for a client that was idle: it has read its answers.
const IDLE_GRACE: Duration = Duration::from_secs(2);

/// Streams under way: for the idle timeout, and to end each.
#[derive(Default)]
struct Active {
    streams: AtomicUsize,
    requests: Mutex<HashMap<u32, Arc<Cancel>>>,
    idle: Notify,
}

impl Active {
    fn begin(self: &Arc<Self>, id: u32) -> Stream {
        let cancel = Arc::<Cancel>::default();
        self.streams.fetch_add(1, Ordering::Relaxed);
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).insert(id, cancel.clone());
        Stream { active: self.clone(), id, cancel }
    }

    /// Ends those requests. Returns whether a client that is too slow with a request has no other under way.
    fn end(&self, slow: Vec<(u32, Reason)>, deadlines: &Deadlines) -> bool {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let mut alone = false;
        for (id, reason) in slow {
            let ended = requests.get(&id).is_some_and(|cancel| cancel.end(reason, deadlines));
            alone |= ended && reason == Reason::ClientTimeout && requests.len() == 1;
        }
        alone
    }
}

struct Stream {
    active: Arc<Active>,
    id: u32,
    cancel: Arc<Cancel>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.active.requests.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
        if self.active.streams.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.active.idle.notify_one();
        }
    }
}

/// Serves a connection until it ends.
pub(super) async fn serve(post: Arc<Post>, mut conn: Box<Conn>, mut info: Arc<ConnInfo>, endpoint: Arc<Endpoint>) {
    let digest = info.clone().into_digest();
    conn.begin_h2(digest.clone());
    let limits = endpoint.model.limits;
    let told = Arc::<Told>::default();
    let patience = Patience {
        header: limits.header_timeout,
        stall: limits.idle_timeout.min(STALL),
        rate: limits.min_body_rate.map(|rate| rate.0),
    };
    let guard = Box::new(Guard::new(conn, patience, told.clone()));
    let options = options(&endpoint);
    let opened = tokio::time::timeout(limits.header_timeout, handshake(guard, Some(options))).await;
    let Ok(Ok(mut connection)) = opened else {
        log::debug!("{}: no HTTP/2 connection came about", endpoint.model.address);
        return;
    };
    let digest = Arc::new(Digest { proxy_digest: Some(digest), ..Digest::default() });
    let active = Arc::new(Active::default());
    let (mut draining, mut closing) = (post.draining.clone(), endpoint.place().follow());
    let (mut leaving, mut requests, mut malformed, mut unheard) = (false, 0, 0, 0);
    let mut grace = LEAVE_GRACE;
    loop {
        let accepted = tokio::select! {
            biased;
            word = told.word() => {
                let verdict = match word {
                    Word::Over(verdict) => verdict,
                    Word::Slow(slow) => {
                        if active.end(slow, post.kit.deadlines()) && !leaving {
                            connection.graceful_shutdown();
                            (leaving, grace) = (true, IDLE_GRACE);
                        }
                        continue;
                    }
                    Word::Refused(reasons) => {
                        for reason in reasons {
                            post.log_unserved(&info, Unserved::unseen(reason, "HTTP/2.0"));
                            // Resets have a budget of their own.
                            malformed += usize::from(reason == Reason::HeaderTooLarge);
                        }
                        if malformed >= MALFORMED {
                            told.tell(Verdict::Ours(H2Abuse::Malformed));
                        }
                        continue;
                    }
                };
                if let Verdict::Ours(kind) = verdict {
                    connection.abrupt_shutdown(code(kind).into());
                }
                let farewell = async {
                    while let Ok(Some(_)) = HttpSession::from_h2_conn(&mut connection, digest.clone()).await {}
                };
                let _ = tokio::time::timeout(FAREWELL, farewell).await;
                break;
            }
            () = either(&mut draining, &mut closing), if !leaving => {
                connection.graceful_shutdown();
                leaving = true;
                continue;
            }
            accepted = HttpSession::from_h2_conn(&mut connection, digest.clone()) => accepted,
            () = idle(&active, if leaving { grace } else { limits.idle_timeout }) => {
                if leaving {
                    break;
                }
                connection.graceful_shutdown();
                (leaving, grace) = (true, IDLE_GRACE);
                continue;
            }
        };
        match accepted {
            Ok(Some(H2Accept::Session(session))) => {
                requests += 1;
                unheard += usize::from(leaving);
                if unheard > STREAMS as usize {
                    // More than can have been on their way when it was told to go.
                    told.tell(Verdict::Ours(H2Abuse::GoawayIgnored));
                    continue;
                }
                let enough = requests >= endpoint.model.limits.requests_per_connection as usize;
                // What the connection itself keeps to are the limits that it began with.
                let others = endpoint.follow(&mut info) && *info.limits() != limits;
                if (enough || others) && !leaving {
                    connection.graceful_shutdown();
                    leaving = true;
                }
                let stream = active.begin(told.accepted());
                let (post, info, endpoint) = (post.clone(), info.clone(), endpoint.clone());
                tokio::spawn(async move {
                    request(&post, &info, &endpoint, session, &stream.cancel).await;
                    drop(stream);
                });
            }
            Ok(Some(H2Accept::Rejected)) => {
                told.rejected();
                post.log_unserved(&info, Unserved::unseen(Reason::BadRequest, "HTTP/2.0"));
                malformed += 1;
                if malformed >= MALFORMED {
                    told.tell(Verdict::Ours(H2Abuse::Malformed));
                }
            }
            Ok(None) | Err(_) => break,
        }
    }
    if let Some(Verdict::Ours(kind) | Verdict::Theirs(kind)) = told.known() {
        if kind == H2Abuse::Stall {
            // What it does not take is not kept for it.
            info.abort();
        }
        post.abuse.ended(post.kit.metrics(), &endpoint.model.address, info.peer(), kind);
    }
}

/// The error code of the GOAWAY.
const fn code(kind: H2Abuse) -> u32 {
    const PROTOCOL_ERROR: u32 = 1;
    const SETTINGS_TIMEOUT: u32 = 4;
    const ENHANCE_YOUR_CALM: u32 = 11;
    match kind {
        H2Abuse::Protocol => PROTOCOL_ERROR,
        H2Abuse::SettingsTimeout => SETTINGS_TIMEOUT,
        _ => ENHANCE_YOUR_CALM,
    }
}

/// Returns when one of them begins.
async fn either(one: &mut Draining, other: &mut Draining) {
    tokio::select! {
        () = one.begin() => {}
        () = other.begin() => {}
    }
}

async fn request(
    post: &Post,
    info: &Arc<ConnInfo>,
    endpoint: &Endpoint,
    mut session: HttpSession,
    cancel: &Arc<Cancel>,
) {
    let seed = post.kit.random();
    let began = Instant::now();
    // Cheap to keep, for a request that will not come to its own line in the log.
    let (method, uri) = (session.req_header().method.clone(), session.req_header().uri.clone());
    let unserved = |reason| Unserved {
        reason,
        method: method.to_string(),
        target: uri.path_and_query().map_or_else(|| uri.to_string(), ToString::to_string),
        host: uri.authority().map(ToString::to_string).unwrap_or_default(),
        protocol: "HTTP/2.0",
        began,
    };
    if method == Method::CONNECT {
        // Pingora's own answer would not say why.
        if let Some(head) = post.kit.refusal_head(Reason::MethodNotAllowed) {
            let _ = session.write_response_header(head, true);
        }
        return post.log_unserved(info, unserved(Reason::MethodNotAllowed));
    }
    if let Err(reason) = empty(&mut session, endpoint.model.limits.header_timeout, cancel).await {
        return post.log_unserved(info, unserved(reason));
    }
    let mut session = ServerSession::new_http2(session);
    let current = post.current();
    let proxy = current.for_request(session.req_header(), seed);
    let start =
        RequestStart { info: info.clone(), current: current.clone(), seed, began, cancel: Some(cancel.clone()) };
    session.req_header_mut().extensions_mut().insert(start);
    let served = proxy.process_new_http(session, endpoint.place().last(&post.draining));
    tokio::select! {
        biased;
        _ = served => {}
        // The stream is reset: the request is dropped with what it waits for, and there is nothing left to answer with.
        reason = cancel.cancelled() => post.log_unserved(info, unserved(reason)),
    }
}

/// Waits until a request that says that its body is empty has shown it: a backend on HTTP/1.1 takes it for whole at once
/// (RFC 9113 §8.1.1).
///
/// # Errors
/// There is a body, or no end in time.
async fn empty(session: &mut HttpSession, patience: Duration, cancel: &Cancel) -> Result<(), Reason> {
    let length = session.req_header().headers.get(header::CONTENT_LENGTH);
    if length.and_then(|length| length.to_str().ok()?.parse().ok()) != Some(0_u64) {
        return Ok(());
    }
    let end = async {
        loop {
            match session.read_body_bytes().await {
                Ok(Some(part)) if part.is_empty() => {}
                Ok(None) => return Ok(()),
                Ok(Some(_)) => return Err(Reason::BadRequest),
                Err(error) => {
                    // What the h2 crate has found itself, and not been told.
                    let found = error.to_string().contains("error detected");
                    return Err(if found { Reason::BadRequest } else { Reason::ClientAborted });
                }
            }
        }
    };
    let ended = tokio::select! {
        ended = end => ended,
        reason = cancel.cancelled() => Err(reason),
        () = tokio::time::sleep(patience) => Err(Reason::ClientTimeout),
    };
    if ended == Err(Reason::ClientTimeout)
        && let Ok(answer) = ResponseHeader::build(StatusCode::REQUEST_TIMEOUT, Some(0))
    {
        // Dropping the session resets the stream.
        let _ = session.write_response_header(Box::new(answer), true);
    }
    ended
}

async fn idle(active: &Active, timeout: Duration) {
    while active.streams.load(Ordering::Relaxed) > 0 {
        active.idle.notified().await;
    }
    tokio::time::sleep(timeout).await;
}

fn options(endpoint: &Endpoint) -> H2Options {
    // The h2 crate refuses a longer list with a bare 431 that nobody hears of; up to twice the limit we do it ourselves.
    let limit = u32::try_from(endpoint.model.limits.max_header_size.0.saturating_mul(2)).unwrap_or(u32::MAX);
    let mut options = default_h2_options();
    options
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(limit)
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buffer_size(SEND_BUFFER);
    options
}

#[cfg(test)]
mod tests {
    use super::is_no_http1;

    #[test]
    fn only_what_has_no_shape_of_http1_counts_as_a_failed_preface() {
        assert!(is_no_http1(b"INVALID CONNECTION PREFACE\r\n\r\n"));
        for line in ["GET / HTTP/9.9\r\n", "GET /\r\n", "GET / HTTQ/1.1\r\n", "PRI * HTTP/2.0\r\n\r\nXX", "garbage", ""]
        {
            assert!(!is_no_http1(line.as_bytes()), "{line:?}");
        }
    }
}

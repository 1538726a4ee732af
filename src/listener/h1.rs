//! HTTP/1 on one connection: wait, read a head, serve the request in the lane or hand it to Pingora, take the connection back.

use std::{
    future::poll_fn,
    os::fd::RawFd,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::Poll,
    time::{Duration, Instant},
};

use bytes::Buf;
use pingora_core::{
    apps::{HttpServerApp, ReusedHttpStream},
    protocols::http::ServerSession,
};
use tokio::{
    io::{AsyncRead, AsyncWriteExt, ReadBuf},
    sync::watch,
};

use super::{
    Endpoint,
    accept::Open,
    conn::{Conn, Kept},
    front::{self, Head, Parsed, Refused},
    h2,
    listening::Place,
    worker::{self, FIRST_REQUEST_GRACE, NEXT_REQUEST_GRACE, Post},
};
use crate::{
    config::model::ListenerLimits,
    policy::framing::Border,
    proxy::{
        Afterwards, ConnInfo, Current, RequestStart, Unserved,
        exchange::{Desk, Read, Served, Way, WebSocket, serve_plain},
    },
    runtime::deadlines::{Deadline, How, Wait},
    types::Reason,
};

/// After its last answer, or an early one, the client may still be sending. So much is read and thrown away, for so long.
const LINGER_BYTES: usize = 4 * 1024 * 1024;
const LINGER_TIME: Duration = Duration::from_secs(2);
/// Longer only for a client that goes on taking its answer, by so many bytes a second.
const LINGER_RATE: u64 = 64 * 1024;

/// Serves a connection until it ends. The head of its first request is due counted from `since`.
///
/// The connection is boxed: it goes to Pingora and comes back as it is, and the task that waits with it stays small.
#[expect(clippy::manual_async_fn, reason = "see within")]
pub(super) fn serve(
    post: Arc<Post>,
    mut conn: Box<Conn>,
    mut info: Arc<ConnInfo>,
    endpoint: Arc<Endpoint>,
    (open, mut since): (Open, Instant),
) -> impl Future<Output = ()> + Send {
    // An `async fn` would keep all of these a second time, for as long as the connection is there.
    async move {
        let deadline = post.kit.deadlines().guard_of(endpoint.place().owner(), How::Read);
        let place: &Place = endpoint.place();
        let mut wait = Wait::First;
        let mut served = 0;
        loop {
            let mut desk = None;
            match head(&post, &mut conn, (&endpoint, &mut info), &deadline, (wait, since), &mut desk).await {
                Some(Parsed::Request(head)) => {
                    deadline.disarm();
                    served += 1;
                    let enough = served >= info.limits().requests_per_connection;
                    match request(&post, conn, head, desk.take(), &info, (place, enough)).await {
                        Next::Request(again, ended) if !enough => (conn, since) = (again, ended),
                        Next::Request(mut last, _) => return Box::pin(linger(&mut last, &deadline)).await,
                        Next::Linger(mut last) => return Box::pin(linger(&mut last, &deadline)).await,
                        Next::Nothing => return,
                        Next::Switched(last, websocket) => {
                            return Box::pin(tunnel(&post, last, &deadline, websocket)).await;
                        }
                    }
                    wait = Wait::Next;
                }
                Some(Parsed::H2Preface) => {
                    deadline.disarm();
                    // Boxed, so that an HTTP/1 connection does not carry its room.
                    return Box::pin(h2::serve(post, conn, info, endpoint, (open, since))).await;
                }
                Some(Parsed::Refused(refused)) => {
                    let foreign = endpoint.model.h2c && wait == Wait::First && h2::is_no_http1(conn.ahead());
                    return Box::pin(refuse(&post, &mut conn, &info, &deadline, *refused, foreign)).await;
                }
                Some(Parsed::Incomplete) | None => return conn.farewell().await,
            }
        }
    }
}

/// Waits for the next head, counted from `since`. `None` is the end of the connection. With a request, `desk` says where its fields are, and `info`
/// has what it is judged by: what is configured when it has come.
#[expect(clippy::manual_async_fn, reason = "as for `serve`")]
pub(super) fn head<'a>(
    post: &'a Post,
    conn: &'a mut Conn,
    (endpoint, info): (&'a Endpoint, &'a mut Arc<ConnInfo>),
    deadline: &'a Deadline,
    (wait, since): (Wait, Instant),
    desk: &'a mut Option<Box<Desk>>,
) -> impl Future<Output = Option<Parsed>> + Send + 'a {
    async move {
        let memory = post.kit.memory();
        let mut blank = false;
        let mut parse = !conn.ahead().is_empty();
        let mut due = Due { deadline, wait, since, begun: parse, armed: None };
        loop {
            if !blank && conn.ahead().starts_with(b"\r\n") {
                // One empty line is no request yet (RFC 9112 §2.2).
                conn.ahead().advance(2);
                blank = true;
            }
            if parse {
                if endpoint.follow(info) {
                    conn.set_pacing(worker::pacing(post, info.limits()));
                }
                // A preface begins its connection, or is none.
                let h2c = endpoint.model.h2c && wait == Wait::First && !blank;
                let index = &mut desk.get_or_insert_with(|| memory.desk()).asked;
                let parsed = front::read(conn.ahead(), info.limits(), h2c, index);
                if let Parsed::Request(_) = parsed {
                    return Some(parsed);
                }
                memory.put_back(desk);
                if parsed != Parsed::Incomplete {
                    // For who does not take an answer.
                    due.begin(conn.fd(), endpoint, info.limits());
                    return Some(parsed);
                }
            }
            due.begun |= !conn.ahead().is_empty();
            let filled = poll_fn(|cx| {
                let filled = conn.poll_fill(cx, || desk.get_or_insert_with(|| memory.desk()).head());
                if filled.is_pending() {
                    memory.put_back(desk);
                    due.begin(conn.fd(), endpoint, info.limits());
                }
                filled
            });
            match filled.await {
                // In TLS the end of reading is an error.
                Ok(0) | Err(_) if due.deadline.fired() && !conn.ahead().is_empty() => return Some(late()),
                Ok(0) | Err(_) => return None,
                Ok(read) => {
                    // A head ends with a line, so only a line's end can end it; and what is too long is refused soon.
                    let limit = usize::try_from(info.limits().max_header_size.0).unwrap_or(usize::MAX);
                    let bytes = conn.ahead();
                    let fresh = &bytes[bytes.len() - read..];
                    // Mostly it is all there is.
                    parse = fresh.ends_with(b"\n") || fresh.contains(&b'\n') || bytes.len() > limit;
                }
            }
        }
    }
}

/// When a head is due, which nobody asks the clock for before it has to be waited for.
struct Due<'a> {
    deadline: &'a Deadline,
    wait: Wait,
    since: Instant,
    /// Some of it is here.
    begun: bool,
    /// What the deadline is armed for.
    armed: Option<Wait>,
}

impl Due<'_> {
    /// There is something to wait for.
    fn begin(&mut self, fd: RawFd, endpoint: &Endpoint, limits: &ListenerLimits) {
        let awaited = if self.begun { Wait::Work } else { self.wait };
        if self.armed.replace(awaited) == Some(awaited) {
            return;
        }
        let gone = endpoint.place().is_gone();
        let patience = match awaited {
            Wait::First if gone => limits.header_timeout.min(FIRST_REQUEST_GRACE),
            Wait::First | Wait::Work => limits.header_timeout,
            Wait::Next if gone => limits.idle_timeout.min(NEXT_REQUEST_GRACE),
            Wait::Next => limits.idle_timeout,
        };
        // A first head is due counted from the beginning, whatever came before it; another one from when it has begun.
        let from = if self.begun && self.wait != Wait::First { Instant::now() } else { self.since };
        self.deadline.arm(fd, awaited, from, patience);
    }
}

fn late() -> Parsed {
    Parsed::Refused(Box::new(Refused {
        reason: Reason::HeaderTimeout,
        method: String::new(),
        target: String::new(),
        host: String::new(),
    }))
}

/// Where a connection that Pingora drops comes back.
type Slot = Arc<Mutex<Option<Box<Kept>>>>;

/// One request, by the way that is its. Boxed: who waits for the next request must not carry the room for it.
fn request<'a>(
    post: &'a Post,
    mut conn: Box<Conn>,
    head: Head,
    desk: Option<Box<Desk>>,
    info: &'a Arc<ConnInfo>,
    (place, last): (&'a Place, bool),
) -> Pin<Box<dyn Future<Output = Next> + Send + 'a>> {
    info.begin_request();
    // Of a body that is here in part nobody waits to be asked for the rest.
    conn.begin(head.border, head.expects && head.request == head.head);
    conn.belongs_to(info);
    let (current, seed) = (post.current(), post.kit.random());
    let start = RequestStart { info: info.clone(), current, seed, began: Instant::now(), cancel: None };
    Box::pin(async move {
        let (mut conn, start) = match desk {
            Some(desk) => match lane(post, conn, &head, desk, start, last || place.is_last(&post.draining)).await {
                Ok(next) => return next,
                Err(pingoras) => pingoras,
            },
            None => (conn, start),
        };
        let kept = Slot::default();
        conn.keep(&kept);
        let current = start.current.clone();
        let last = if last { &post.last } else { place.last(&post.draining) };
        let returned = exchange(&current, conn, head, start, last).await;
        afterwards(post, returned, info, &kept)
    })
}

/// One request in the lane.
///
/// # Errors
/// It is not one for the lane; gives back what it came with.
async fn lane(
    post: &Post,
    mut conn: Box<Conn>,
    head: &Head,
    mut desk: Box<Desk>,
    start: RequestStart,
    last: bool,
) -> Result<Next, (Box<Conn>, RequestStart)> {
    let mut bytes = std::mem::take(conn.ahead());
    if bytes.len() > head.request {
        *conn.ahead() = bytes.split_off(head.request);
    }
    let index = std::mem::take(&mut desk.asked);
    let (asked, behind) = bytes.split_at(head.head.min(bytes.len()));
    let Some((way, wanted)) = Way::find(&start.current, &start.info, asked, &index, start.seed) else {
        bytes.unsplit(std::mem::take(conn.ahead()));
        *conn.ahead() = bytes;
        desk.asked = index;
        post.kit.memory().put_desk(desk);
        return Err((conn, start));
    };
    let mut here = &bytes[..];
    if way.is_upgrade() {
        // What comes behind the head is kept until the backend has agreed to it.
        conn.begin(Border::END, false);
        conn.ahead().extend_from_slice(behind);
        here = asked;
    }
    let left = if let Border::Counted(left) = head.border { left } else { 0 };
    let read = Read { bytes: here, head: head.head, left, whole: head.border.reached(), last };
    let served = serve_plain(&post.kit, start, (way, wanted), (read, &index), &mut desk, &mut *conn).await;
    desk.asked = index;
    desk.put_head(bytes);
    post.kit.memory().put_desk(desk);
    Ok(match served {
        Served::Over(Afterwards::Drop, _) => {
            conn.farewell().await;
            Next::Nothing
        }
        Served::Over(Afterwards::Close, _) if conn.is_silent() => Next::Nothing,
        Served::Over(Afterwards::Close | Afterwards::Linger, _) => Next::Linger(conn),
        Served::Over(Afterwards::NextRequest, ended) => Next::Request(conn, ended.unwrap_or_else(Instant::now)),
        Served::Switched(websocket) => Next::Switched(conn, websocket),
    })
}

/// A WebSocket, until it is over. Apart from its request, whose room it must not hold.
async fn tunnel(post: &Post, mut conn: Box<Conn>, deadline: &Deadline, websocket: Box<WebSocket>) {
    match websocket.run(&post.kit, &mut *conn).await {
        Afterwards::Linger => linger(&mut conn, deadline).await,
        Afterwards::Drop | Afterwards::Close | Afterwards::NextRequest => conn.farewell().await,
    }
}

/// One request through Pingora. Not an `async fn`: that would hold the session a second time.
fn exchange<'a>(
    current: &'a Arc<Current>,
    mut conn: Box<Conn>,
    head: Head,
    start: RequestStart,
    last: &'a watch::Receiver<bool>,
) -> Pin<Box<dyn Future<Output = Option<ReusedHttpStream>> + Send + 'a>> {
    let mut bytes = conn.ahead().split_to(head.request);
    let length = front::one_spelling(&mut bytes, head.head);
    if conn.ahead().is_empty() {
        // The bytes are the request's alone then, and are freed with it.
        *conn.ahead() = bytes::BytesMut::new();
    }
    let proxy = current.for_head(&bytes[..length], &start);
    let mut session = ServerSession::new_http1(conn);
    session.set_pipelined_prefix(bytes);
    session.set_connection_user_context(Some(Box::new(start)));
    proxy.process_new_http(session, last)
}

/// What becomes of a connection after a request.
enum Next {
    Linger(Box<Conn>),
    Nothing,
    /// Its answer had left then.
    Request(Box<Conn>, Instant),
    Switched(Box<Conn>, Box<WebSocket>),
}

fn afterwards(post: &Post, returned: Option<ReusedHttpStream>, info: &ConnInfo, kept: &Slot) -> Next {
    if !info.logged() {
        post.log_unserved(info, Unserved::unseen(Reason::BadRequest, "HTTP/1.1"));
    }
    let Some(returned) = returned else {
        let kept = kept.lock().unwrap_or_else(PoisonError::into_inner).take();
        return kept.map_or(Next::Nothing, |kept| match kept.after {
            Afterwards::NextRequest => Next::Request(Box::new(Conn::from(*kept)), Instant::now()),
            Afterwards::Drop | Afterwards::Close | Afterwards::Linger => Next::Linger(Box::new(Conn::from(*kept))),
        });
    };
    let (stream, _) = returned.consume();
    match stream.into_any().downcast::<Conn>() {
        Ok(conn) if conn.at_border() => Next::Request(conn, Instant::now()),
        _ => Next::Nothing,
    }
}

/// Answers what is not served, and closes so that the answer arrives.
pub(super) async fn refuse(
    post: &Post,
    conn: &mut Conn,
    info: &ConnInfo,
    deadline: &Deadline,
    refused: Refused,
    foreign: bool,
) {
    let Refused { reason, method, target, host } = refused;
    let answer = if foreign { h2::NO_PREFACE.into() } else { post.kit.refusal(reason, method == "HEAD") };
    let unserved = Unserved { reason, method, target, host, protocol: "HTTP/1.1", began: Instant::now() };
    post.log_unserved(info, unserved);
    // A client that took nothing of the answers before will not take this one either.
    deadline.set_how(How::Both);
    deadline.arm(conn.fd(), Wait::Work, Instant::now(), LINGER_TIME);
    let written = conn.write_all(&answer).await;
    deadline.disarm();
    if written.is_ok() {
        linger(conn, deadline).await;
    }
}

/// Closes so that what was written arrives: closing while the client still sends would reset the connection. Who has said that it
/// sends no more, and of whom nothing more is here, need not be waited for: see [`Afterwards::Close`].
async fn linger(conn: &mut Conn, deadline: &Deadline) {
    deadline.set_how(How::Both);
    deadline.drains(LINGER_RATE);
    deadline.arm(conn.fd(), Wait::Work, Instant::now(), LINGER_TIME);
    if conn.shutdown().await.is_err() {
        return;
    }
    conn.begin(Border::Unbounded, false);
    let mut left = LINGER_BYTES;
    while left > 0 {
        match poll_fn(|cx| poll_discard(conn, cx)).await {
            0 => return,
            read => left = left.saturating_sub(read),
        }
    }
}

fn poll_discard(conn: &mut Conn, cx: &mut std::task::Context<'_>) -> Poll<usize> {
    let mut scratch = [std::mem::MaybeUninit::uninit(); 4096];
    let mut scratch = ReadBuf::uninit(&mut scratch);
    Pin::new(conn).poll_read(cx, &mut scratch).map(|read| if read.is_ok() { scratch.filled().len() } else { 0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a connection holds while it waits for a request.
    fn size<A, B, C, D, E, F: Future>(_: fn(A, B, C, D, E) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn an_idle_connection_carries_no_room_for_requests() {
        // The first, with what tokio puts round it, and the second are blocks of 512 and 2,560 bytes.
        assert!(size(serve) <= 392, "{}", size(serve));
        assert!(size(h2::serve) <= 2_560, "{}", size(h2::serve));
    }
}

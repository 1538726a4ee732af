//! A worker: one thread, one event loop, its own `HttpProxy` and upstream pool. A connection stays where it began.

use std::{
    net::IpAddr,
    os::fd::{AsRawFd, RawFd},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::BytesMut;
use pingora_core::{
    server::{ListenFds, ShutdownWatch},
    services::Service,
};
use tokio::{
    io::AsyncWriteExt,
    sync::{mpsc, watch},
};

use super::{
    Crew, Draining, Endpoint, Listening,
    accept::{Accepted, Open, accept, adopt},
    conn::{Conn, Socket, Transport},
    crew::{Mail, Member},
    h1, h2,
    pace::Pacing,
    plain,
    proxy_protocol::{self, Ends, Replayed},
    pulse::Pulse,
    refusals,
};
use crate::{
    config::model::{Alpn, ListenerLimits},
    policy::proxy_protocol::Agreed,
    proxy::{ConnInfo, Current, Kit, TlsInfo, Unserved},
    runtime::{
        deadlines::{Deadline, How, TICK, Wait},
        descriptors,
        lull::{self, Beats},
    },
    telemetry::metrics::Handshake,
    types::Refusal,
};

/// When a drain begins or a listener goes, connections that wait for their next request get this long: a client that is just about to
/// send one is still served, with `Connection: close`.
pub(super) const NEXT_REQUEST_GRACE: Duration = Duration::from_millis(500);
/// The same for connections that have not sent their first request yet.
pub(super) const FIRST_REQUEST_GRACE: Duration = Duration::from_secs(2);

/// How often idle connections to backends are looked at.
const POOL_BEAT: Duration = Duration::from_secs(1);

/// A worker before its start, as a Pingora service.
pub struct Worker {
    index: usize,
    name: String,
    listeners: Vec<Arc<Listening>>,
    crew: Arc<Crew>,
    inbox: Option<mpsc::UnboundedReceiver<Mail>>,
    post: Arc<Post>,
    gate: watch::Receiver<bool>,
    started: Arc<AtomicUsize>,
    pulse: Arc<Pulse>,
}

/// What every connection of a worker uses.
pub(super) struct Post {
    pub(super) kit: Arc<Kit>,
    pub(super) draining: Draining,
    /// What tells Pingora that a request is its connection's last.
    pub(super) last: watch::Receiver<bool>,
    /// Of HTTP/2 connections that had to go.
    pub(super) abuse: h2::AbuseLog,
    current: ArcSwap<Current>,
}

impl Post {
    /// Of a worker without listeners, which never drains.
    #[cfg(any(test, fuzzing))]
    pub(super) fn alone(kit: Arc<Kit>, current: Current) -> Self {
        Self::new(kit, Draining::switch().1, current)
    }

    fn new(kit: Arc<Kit>, draining: Draining, current: Current) -> Self {
        Self {
            kit,
            draining,
            last: watch::channel(true).1,
            abuse: h2::AbuseLog::default(),
            current: ArcSwap::from_pointee(current),
        }
    }

    /// What a request that begins now is served by; to be taken once for each.
    pub(super) fn current(&self) -> Arc<Current> {
        self.current.load_full()
    }

    pub(super) fn swap(&self, current: Arc<Current>) {
        self.current.store(current);
    }

    /// Logs and counts a request that came to no phase.
    pub(super) fn log_unserved(&self, info: &ConnInfo, unserved: Unserved) {
        self.kit.log_unserved(&self.current(), info, unserved);
    }
}

impl Worker {
    /// As many workers as there are kits, all accepting from `listeners` as soon as `gate` is open. `started`
    /// counts those that do.
    pub fn crew(
        listeners: &[Arc<Listening>],
        kits: Vec<(Arc<Kit>, Current)>,
        draining: &Draining,
        gate: &watch::Receiver<bool>,
        started: &Arc<AtomicUsize>,
    ) -> (Vec<Self>, Arc<Crew>) {
        let member = |(kit, current): (Arc<Kit>, Current)| {
            let (inbox, receiver) = mpsc::unbounded_channel();
            let (open, metrics) = (kit.open_connections().clone(), kit.metrics().worker(kit.index()).clone());
            let post = Arc::new(Post::new(kit, draining.clone(), current));
            (Member { open, metrics, inbox, post, pulse: Arc::new(Pulse::new()) }, receiver)
        };
        let (members, inboxes): (Vec<_>, Vec<_>) = kits.into_iter().map(member).unzip();
        let crew = Arc::new(Crew::new(members.into()));
        let workers = inboxes.into_iter().enumerate().map(|(index, inbox)| Self {
            index,
            name: format!("worker-{index}"),
            listeners: listeners.to_vec(),
            crew: crew.clone(),
            inbox: Some(inbox),
            post: crew.member(index).post.clone(),
            gate: gate.clone(),
            started: started.clone(),
            pulse: crew.member(index).pulse.clone(),
        });
        (workers.collect(), crew)
    }

    async fn run(&mut self) {
        // Closed only by the end of the process.
        let _ = self.gate.wait_for(|open| *open).await;
        for listening in std::mem::take(&mut self.listeners) {
            self.listen(listening);
        }
        tokio::spawn(sweep(self.post.clone()));
        tokio::spawn(tidy(self.post.clone()));
        tokio::spawn(give_back(self.post.clone()));
        let pulse = self.pulse.clone();
        tokio::spawn(async move { pulse.answer().await });
        self.started.fetch_add(1, Ordering::Release);
        let Some(mut inbox) = self.inbox.take() else { return };
        while let Some(mail) = inbox.recv().await {
            match mail {
                Mail::Accepted(accepted) => start(&self.post, accepted),
                Mail::Closed(place) => {
                    let (deadlines, now) = (self.post.kit.deadlines(), Instant::now());
                    deadlines.hasten_of(place.owner(), Wait::Next, now, NEXT_REQUEST_GRACE);
                    deadlines.hasten_of(place.owner(), Wait::First, now, FIRST_REQUEST_GRACE);
                }
                Mail::Listen(listening) => self.listen(listening),
            }
        }
    }

    fn listen(&self, listening: Arc<Listening>) {
        let metrics = self.post.kit.metrics().clone();
        tokio::spawn(accept(listening, self.crew.clone(), self.index, metrics, self.post.draining.clone()));
    }
}

#[async_trait]
impl Service for Worker {
    async fn start_service(&mut self, _: Option<ListenFds>, _: ShutdownWatch, _: usize) {
        self.run().await;
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

/// Ends what is due, and shortens the waiting of idle connections when the drain begins.
async fn sweep(post: Arc<Post>) {
    let deadlines = post.kit.deadlines();
    let mut draining = post.draining.clone();
    loop {
        let now = Instant::now();
        let begun = draining.begun();
        if begun {
            deadlines.hasten(Wait::Next, now, NEXT_REQUEST_GRACE);
            deadlines.hasten(Wait::First, now, FIRST_REQUEST_GRACE);
        }
        let next = deadlines.sweep(now).map(|next| if begun { next.min(now + TICK) } else { next });
        let due = async {
            match next {
                Some(next) => tokio::time::sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = deadlines.nearer() => tokio::time::sleep(TICK).await,
            () = draining.begin(), if !begun => {}
        }
    }
}

/// Closes connections to backends that are of no use any more, or of less than their descriptors. Sleeps while there are none at all.
async fn tidy(post: Arc<Post>) {
    let pool = post.kit.pool();
    loop {
        pool.filled().await;
        let before = Instant::now();
        tokio::time::sleep(POOL_BEAT).await;
        pool.sweep(Instant::now(), descriptors::are_scarce().then_some(before));
    }
}

/// Gives back what the worker has kept, whenever it has much less to do than before.
async fn give_back(post: Arc<Post>) {
    let mut beats = Beats::default();
    loop {
        post.kit.lull().comes(&mut beats).await;
        post.kit.forget();
        if let Some(log) = post.current().log() {
            log.handle.forget();
        }
        lull::give_back();
    }
}

/// Serves a connection in a task of its own, on the worker that calls this.
pub(super) fn start(post: &Arc<Post>, accepted: Accepted) {
    let Accepted { socket, client, endpoint, open } = accepted;
    let socket = match adopt(socket, client) {
        Ok(socket) => socket,
        Err(error) => {
            log::debug!("{}: a connection was gone before it was served: {error}", endpoint.model.address);
            return;
        }
    };
    let (post, since) = (post.clone(), Instant::now());
    if endpoint.tls.is_none() && endpoint.model.proxy_protocol.is_none() {
        let info = ConnInfo::new(client, None, endpoint.model.clone(), socket.as_raw_fd());
        let info = Arc::new(info.at(proxy_protocol::local(&endpoint, &socket)));
        let conn = Box::new(Conn::new(Transport::Plain(socket), pacing(&post, &endpoint.model.limits)));
        tokio::spawn(h1::serve(post, conn, info, endpoint, (open, since)));
        return;
    }
    let ends = Ends::of(&endpoint, &socket, client);
    if endpoint.tls.is_some() {
        tokio::spawn(secure(post, endpoint, socket, ends, open));
    } else {
        tokio::spawn(announced(post, endpoint, socket, ends, open));
    }
}

/// The ends of a connection, where its PROXY header lets it in; what came behind that; and it counted as its client's.
///
/// # Errors
/// It is turned away; says why, unless it went away without a word.
async fn announced_ends(
    socket: &mut Socket,
    ends: Ends,
    endpoint: &Endpoint,
    deadline: &Deadline,
    open: Open,
) -> Result<(Ends, BytesMut, Open), (Option<IpAddr>, Option<Refusal>)> {
    let peer = ends.address();
    let read = proxy_protocol::read(socket, ends, endpoint, deadline).await;
    let (ends, ahead) = read.map_err(|cause| (peer, cause))?;
    let counted = open.of(ends.counted, &endpoint.model.limits);
    let open = counted.map_err(|cause| (ends.address(), Some(cause)))?;
    Ok((ends, ahead, open))
}

/// What requests know of their connection.
pub(super) fn info(ends: Ends, tls: Option<TlsInfo>, endpoint: &Endpoint, fd: RawFd) -> ConnInfo {
    let Ends { peer, hidden, counted: _, client, local, agreed } = ends;
    ConnInfo::new(client, tls, endpoint.model.clone(), fd).at(local).from(peer, hidden).agreed_on(agreed)
}

pub(super) fn pacing(post: &Post, limits: &ListenerLimits) -> Option<Pacing> {
    Pacing::new(post.kit.deadlines(), limits.min_body_rate)
}

/// Plain text behind a PROXY header: both, the header and the head of the first request, may take as long as a head.
async fn announced(post: Arc<Post>, endpoint: Arc<Endpoint>, mut socket: Socket, ends: Ends, open: Open) {
    let deadline = post.kit.deadlines().guard_of(endpoint.place().owner(), How::Read);
    let since = Instant::now();
    deadline.arm(socket.as_raw_fd(), Wait::First, since, endpoint.model.limits.header_timeout);
    let (ends, ahead, open) = match Box::pin(announced_ends(&mut socket, ends, &endpoint, &deadline, open)).await {
        Ok(announced) => announced,
        Err((client, cause)) => {
            if let Some(cause) = cause {
                endpoint.refused(client, cause, None);
            }
            if let Some(cause @ Refusal::PerIp) = cause {
                _ = socket.write_all(&post.kit.one_too_many(cause)).await;
                _ = socket.shutdown().await;
            }
            return;
        }
    };
    drop(deadline);
    let mut conn = Box::new(Conn::new(Transport::Plain(socket), pacing(&post, &endpoint.model.limits)));
    *conn.ahead() = ahead;
    let info = Arc::new(info(ends, None, &endpoint, conn.fd()));
    h1::serve(post, conn, info, endpoint, (open, since)).await;
}

async fn secure(post: Arc<Post>, endpoint: Arc<Endpoint>, socket: Socket, ends: Ends, open: Open) {
    let since = Instant::now();
    let shaken = Box::pin(handshake(&post, &endpoint, socket, (ends, open), since)).await;
    let Some((conn, info, open)) = shaken else { return };
    // In a task of its own: this one has room for a handshake, which would stay for as long as the connection.
    match info.tls().map(|tls| tls.alpn) {
        // Boxed: for a task's alignment the allocator would take it from among larger blocks.
        Some(Some(Alpn::Http2)) => tokio::spawn(Box::pin(h2::serve(post, conn, info, endpoint, (open, since)))),
        _ => tokio::spawn(h1::serve(post, conn, info, endpoint, (open, since))),
    };
}

/// Of a connection that began at `since`: the head that comes after it is due counted from there, so it is due no later.
async fn handshake(
    post: &Post,
    endpoint: &Endpoint,
    mut socket: Socket,
    (ends, open): (Ends, Open),
    since: Instant,
) -> Option<(Box<Conn>, Arc<ConnInfo>, Open)> {
    let tls = endpoint.tls.as_ref()?.serving();
    let deadline = post.kit.deadlines().guard(How::Both);
    let limits = &endpoint.model.limits;
    deadline.arm(socket.as_raw_fd(), Wait::Work, since, limits.handshake_timeout.min(limits.header_timeout));
    let (mut ends, ahead, open) = match announced_ends(&mut socket, ends, endpoint, &deadline, open).await {
        Ok(announced) => announced,
        Err((client, cause)) => {
            cause.into_iter().for_each(|cause| endpoint.refused(client, cause, None));
            return None;
        }
    };
    let client = ends.address();
    let socket = Replayed::over(socket, ahead);
    match socket.peek().await {
        Ok(Some(first)) if plain::may_be_http(first) => {
            endpoint.metrics.handshake(Handshake::Failed);
            drop(deadline);
            Box::pin(plain::refuse(post, endpoint, socket, ends, since)).await;
            return None;
        }
        // Nobody said a word: a look whether the port is open.
        Ok(None) | Err(_) if !deadline.fired() => {
            endpoint.metrics.handshake(Handshake::Failed);
            return None;
        }
        _ => {}
    }
    let accepted = tls.accept(socket).await.and_then(|stream| {
        let session = stream.get_ref().1;
        let resumed = session.handshake_kind() == Some(rustls::HandshakeKind::Resumed);
        // Who is asked for more since it began must have it.
        let gone = || std::io::Error::other("the listener speaks no TLS any more");
        let now = endpoint.newest_tls().ok_or_else(gone)?.serving();
        let again = resumed || !Arc::ptr_eq(&now, &tls);
        let verified = now.client(session, again).map_err(std::io::Error::other)?;
        Ok((stream, resumed, verified))
    });
    match accepted {
        Ok((stream, resumed, verified)) => {
            let session = stream.get_ref().1;
            endpoint.metrics.handshake(if resumed { Handshake::Resumed } else { Handshake::Full });
            // Whoever was before us did not look into it.
            ends.agreed = Agreed {
                alpn: session.alpn_protocol().map(Box::from),
                authority: session.server_name().map(Box::from),
            };
            let info = TlsInfo {
                version: session.protocol_version(),
                alpn: session.alpn_protocol().map(|name| if name == b"h2" { Alpn::Http2 } else { Alpn::Http1 }),
            };
            let conn = Box::new(Conn::new(Transport::Tls(Box::new(stream)), pacing(post, &endpoint.model.limits)));
            let info = self::info(ends, Some(info), endpoint, conn.fd());
            Some((conn, Arc::new(info.with_client(verified)), open))
        }
        Err(_) if deadline.fired() => {
            endpoint.metrics.handshake(Handshake::TimedOut);
            endpoint.refused(client, Refusal::TlsTimeout, None);
            None
        }
        Err(error) => {
            endpoint.metrics.handshake(Handshake::Failed);
            endpoint.refused(client, refusals::of_handshake(&error), Some(&refusals::told(&error)));
            None
        }
    }
}

//! A bound address while it is listened on. What stands behind it may change: the socket stays, and so do connections that
//! are open; each of their requests is judged by what is configured when it comes. Only where clients are let in by other
//! rules than before, those who are in leave after the request they are at. Taken away, it is closed when what waits there
//! has been accepted.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicPtr, Ordering},
    },
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::{Draining, ListenSocket, Tls, certificates::same_clients, limits::Census, refusals::Refusals};
use crate::{
    config::model::{self, ClientAuth},
    proxy::ConnInfo,
    telemetry::metrics::ListenerMetrics,
};

/// One bound address, shared by all workers. The socket is closed as soon as nobody holds this any more; connections
/// hold only the [`Endpoint`].
pub struct Listening {
    pub(super) socket: ListenSocket,
    endpoint: ArcSwap<Endpoint>,
    site: Arc<Site>,
    closed: watch::Sender<bool>,
    follow: Draining,
    /// One change at a time; nobody who serves waits for it.
    turn: Mutex<()>,
}

/// What a connection needs to know of its listener; lives on while there are any.
pub struct Endpoint {
    /// What the configuration said when the connection began.
    pub model: Arc<model::Listener>,
    /// `None` is plain text.
    pub tls: Option<Arc<Tls>>,
    /// Counters of this listener.
    pub metrics: Arc<ListenerMetrics>,
    place: Arc<Place>,
}

/// What goes for all connections of a listener, whatever they began with.
struct Site {
    census: Arc<Census>,
    /// Of those that were turned away.
    refusals: Refusals,
    /// What is configured now.
    newest: ArcSwap<Newest>,
    /// Where the model of it is, so that who is judged by that need not take hold of it.
    judge: AtomicPtr<model::Listener>,
}

struct Newest {
    model: Arc<model::Listener>,
    tls: Option<Arc<Tls>>,
}

/// What the connections have in common that were let in by the same rules: whether they are to leave, as the listener was
/// taken away or its rules are others now.
pub(super) struct Place {
    /// For the way of a request, where looking at `closed` would be a lock that all workers share.
    gone: AtomicBool,
    closed: watch::Sender<bool>,
    follow: Draining,
    site: Arc<Site>,
    /// By whom clients were judged; files may have changed since the configuration was read.
    clients: Option<ClientAuth>,
}

impl Listening {
    /// Listens for nobody yet; see [`super::Crew::listen`].
    pub fn new(
        socket: ListenSocket,
        model: model::Listener,
        tls: Option<Arc<Tls>>,
        metrics: Arc<ListenerMetrics>,
    ) -> Self {
        let (closed, follow) = Draining::switch();
        let model = Arc::new(model);
        let site = Site::of(model.clone(), tls.clone());
        let place = Arc::new(Place::new(site.clone(), tls.as_deref()));
        let endpoint = Endpoint { model, tls, metrics, place };
        Self { socket, endpoint: ArcSwap::from_pointee(endpoint), site, closed, follow, turn: Mutex::default() }
    }

    /// What connections that are accepted now get.
    pub fn endpoint(&self) -> Arc<Endpoint> {
        self.endpoint.load_full()
    }

    /// Connections that are accepted from now on get this, and requests on those that are open are judged by it. Returns
    /// where those are that were let in by other rules: they are to leave.
    pub(super) fn change(&self, model: model::Listener, tls: Option<Arc<Tls>>) -> Option<Arc<Place>> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.put(Arc::new(model), tls)
    }

    /// The same as [`Listening::change`] after files of client authentication were read anew.
    pub(super) fn look_at_files(&self) -> Option<Arc<Place>> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let endpoint = self.endpoint();
        let clients = endpoint.tls.as_deref().and_then(Tls::clients);
        if same_clients(clients.as_ref(), endpoint.place.clients.as_ref()) {
            return None;
        }
        self.put(endpoint.model.clone(), endpoint.tls.clone())
    }

    fn put(&self, model: Arc<model::Listener>, tls: Option<Arc<Tls>>) -> Option<Arc<Place>> {
        let before = self.endpoint();
        let clients = tls.as_deref().and_then(Tls::clients);
        let alike =
            lets_in_alike(&before.model, &model) && same_clients(clients.as_ref(), before.place.clients.as_ref());
        let place = match alike {
            true => before.place.clone(),
            false => Arc::new(Place::new(self.site.clone(), tls.as_deref())),
        };
        self.site.newest.store(Arc::new(Newest { model: model.clone(), tls: tls.clone() }));
        self.site.judge.store(Arc::as_ptr(&model).cast_mut(), Ordering::Release);
        self.endpoint.store(Arc::new(Endpoint { model, tls, metrics: before.metrics.clone(), place }));
        (!alike).then(|| before.place.clone())
    }

    /// Nothing is accepted any more but what waits; returns where its connections are.
    pub(super) fn close(&self) -> Arc<Place> {
        self.closed.send_replace(true);
        self.endpoint().place.clone()
    }

    /// For those who accept.
    pub(super) fn follow(&self) -> Draining {
        self.follow.clone()
    }

    /// Its connections, whatever the configuration they began with.
    pub(super) fn census(&self) -> &Arc<Census> {
        &self.site.census
    }
}

/// Whether who was let in by the one would be by the other too, but for its certificate.
fn lets_in_alike(one: &model::Listener, other: &model::Listener) -> bool {
    let tls = match (&one.tls, &other.tls) {
        (None, None) => true,
        (Some(one), Some(other)) => {
            one.profile == other.profile && one.min_version == other.min_version && one.strict_sni == other.strict_sni
        }
        _ => false,
    };
    tls && one.proxy_protocol == other.proxy_protocol
}

impl AsFd for Listening {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Endpoint {
    /// One without a socket to accept from.
    #[cfg(any(test, fuzzing))]
    pub(super) fn alone(model: model::Listener, metrics: Arc<ListenerMetrics>) -> Self {
        let model = Arc::new(model);
        let place = Arc::new(Place::new(Site::of(model.clone(), None), None));
        Self { model, tls: None, metrics, place }
    }

    pub(super) fn place(&self) -> &Arc<Place> {
        &self.place
    }

    /// Has the next request judged by what is configured now; returns whether that is other than before. No lock, and
    /// nothing that workers share is written.
    pub(super) fn follow(&self, info: &mut Arc<ConnInfo>) -> bool {
        // Who is judged by a model holds it: at its place there is no other.
        if info.is_of(self.place.site.judge.load(Ordering::Acquire)) {
            return false;
        }
        let newest = self.place.site.newest.load();
        *info = Arc::new(info.judged_by(&newest.model));
        true
    }

    /// What a client must pass now, which may be other than what it was asked for; `None` where there is no TLS any more.
    pub(super) fn newest_tls(&self) -> Option<Arc<Tls>> {
        self.place.site.newest.load().tls.clone()
    }
}

impl Site {
    fn of(model: Arc<model::Listener>, tls: Option<Arc<Tls>>) -> Arc<Self> {
        let judge = AtomicPtr::new(Arc::as_ptr(&model).cast_mut());
        let newest = ArcSwap::from_pointee(Newest { model, tls });
        Arc::new(Self { census: Arc::default(), refusals: Refusals::default(), newest, judge })
    }
}

impl Place {
    fn new(site: Arc<Site>, tls: Option<&Tls>) -> Self {
        let (closed, follow) = Draining::switch();
        Self { gone: AtomicBool::new(false), closed, follow, site, clients: tls.and_then(Tls::clients) }
    }

    /// Its connections, whatever the configuration they began with.
    #[cfg(any(test, fuzzing))]
    pub(super) fn census(&self) -> &Arc<Census> {
        &self.site.census
    }

    pub(super) fn refusals(&self) -> &Refusals {
        &self.site.refusals
    }

    /// Its connections are to leave.
    pub(super) fn close(&self) {
        self.gone.store(true, Ordering::Release);
        self.closed.send_replace(true);
    }

    /// Whether its connections are to leave.
    pub(super) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// For those who wait until it is.
    pub(super) fn follow(&self) -> Draining {
        self.follow.clone()
    }

    /// Whether this is the last request of a connection.
    pub(super) fn is_last(&self, draining: &Draining) -> bool {
        self.is_gone() || draining.begun()
    }

    /// What tells Pingora whether this is the last request of a connection.
    pub(super) fn last<'a>(&'a self, draining: &'a Draining) -> &'a watch::Receiver<bool> {
        if self.is_gone() { self.follow.watch() } else { draining.watch() }
    }

    /// Tells the waiting of its connections from that of others; no two places have the same while both are there.
    pub(super) fn owner(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self).addr()
    }
}

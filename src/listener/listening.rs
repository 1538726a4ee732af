//! A bound address while it is listened on. What stands behind it may change: the socket stays, connections that are
//! open keep the endpoint they began with. Taken away, it is closed when what waits there has been accepted.

use std::{
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::{Draining, ListenSocket, Tls, limits::Census, refusals::Refusals};
use crate::{config::model, telemetry::metrics::ListenerMetrics};

/// One bound address, shared by all workers. The socket is closed as soon as nobody holds this any more; connections
/// hold only the [`Endpoint`].
pub struct Listening {
    pub(super) socket: ListenSocket,
    endpoint: ArcSwap<Endpoint>,
    place: Arc<Place>,
}

/// What a connection needs to know of its listener; lives on while there are any.
pub struct Endpoint {
    /// What the configuration says.
    pub model: model::Listener,
    /// `None` is plain text.
    pub tls: Option<Arc<Tls>>,
    /// Counters of this listener.
    pub metrics: Arc<ListenerMetrics>,
    place: Arc<Place>,
}

/// What is the same for all endpoints of a listener: whether it was taken away, its connections, those it turned away.
pub(super) struct Place {
    /// For the way of a request, where looking at `closed` would be a lock that all workers share.
    gone: AtomicBool,
    closed: watch::Sender<bool>,
    follow: Draining,
    census: Arc<Census>,
    refusals: Refusals,
}

impl Listening {
    /// Listens for nobody yet; see [`super::Crew::listen`].
    pub fn new(
        socket: ListenSocket,
        model: model::Listener,
        tls: Option<Arc<Tls>>,
        metrics: Arc<ListenerMetrics>,
    ) -> Self {
        let place = Place::new();
        let endpoint = Endpoint { model, tls, metrics, place: place.clone() };
        Self { socket, endpoint: ArcSwap::from_pointee(endpoint), place }
    }

    /// What connections that are accepted now get.
    pub fn endpoint(&self) -> Arc<Endpoint> {
        self.endpoint.load_full()
    }

    /// Connections that are accepted from now on get this; those that are open keep what they have.
    pub fn change(&self, model: model::Listener, tls: Option<Arc<Tls>>) {
        let metrics = self.endpoint().metrics.clone();
        self.endpoint.store(Arc::new(Endpoint { model, tls, metrics, place: self.place.clone() }));
    }

    pub(super) fn place(&self) -> &Arc<Place> {
        &self.place
    }
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
        Self { model, tls: None, metrics, place: Place::new() }
    }

    pub(super) fn place(&self) -> &Arc<Place> {
        &self.place
    }
}

impl Place {
    fn new() -> Arc<Self> {
        let (closed, follow) = Draining::switch();
        let (census, refusals) = Default::default();
        Arc::new(Self { gone: AtomicBool::new(false), closed, follow, census, refusals })
    }

    pub(super) fn refusals(&self) -> &Refusals {
        &self.refusals
    }

    /// Nothing is accepted any more but what waits.
    pub(super) fn close(&self) {
        self.gone.store(true, Ordering::Release);
        self.closed.send_replace(true);
    }

    /// Its connections, whatever the configuration they began with.
    pub(super) fn census(&self) -> &Arc<Census> {
        &self.census
    }

    /// Whether the listener was taken away.
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

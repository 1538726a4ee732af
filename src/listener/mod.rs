//! From a listening socket to requests: workers that accept, park idle connections, read each head in the front and
//! hand the request to Pingora's `HttpProxy`. Nothing is decided about a request here but whether it may be read.

mod accept;
mod border;
mod conn;
mod front;
mod h1;
mod h2;
mod profile;
mod pulse;
mod socket;
pub mod tickets;
pub mod tls;
mod worker;

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

pub use profile::Proxies;
pub use socket::{BindError, ListenSocket};
use tokio::sync::{mpsc, watch};
pub use worker::Worker;

use crate::{
    config::model,
    telemetry::metrics::{ListenerMetrics, WorkerMetrics},
};

/// One bound address, shared by all workers.
pub struct Listening {
    /// What every connection needs to know; lives on while there are any.
    pub endpoint: Arc<Endpoint>,
    /// Where connections come from; closed as soon as nobody accepts any more.
    pub socket: Arc<ListenSocket>,
}

/// What a connection needs to know of its listener.
pub struct Endpoint {
    /// What the configuration says.
    pub model: model::Listener,
    /// `None` is plain text.
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// Counters of this listener.
    pub metrics: Arc<ListenerMetrics>,
}

/// What all workers see of each other: how many connections each holds, and a way to give it one.
pub struct Crew {
    members: Box<[Member]>,
}

struct Member {
    open: Arc<AtomicUsize>,
    metrics: Arc<WorkerMetrics>,
    inbox: mpsc::UnboundedSender<accept::Accepted>,
    pulse: Arc<pulse::Pulse>,
}

impl Crew {
    /// Connections held by all workers.
    pub fn open(&self) -> usize {
        self.members.iter().map(|member| member.open.load(Ordering::Relaxed)).sum()
    }

    /// Whether every worker's event loop has turned since this was asked last; asks each again.
    pub fn turns(&self) -> bool {
        self.members.iter().filter(|member| !member.pulse.ask()).count() == 0
    }

    /// The worker with the fewest connections; `me` where it is one of them.
    fn least_loaded(&self, me: usize) -> usize {
        let load = |index: usize| self.members[index].open.load(Ordering::Relaxed);
        (0..self.members.len()).fold(me, |best, index| if load(index) < load(best) { index } else { best })
    }
}

/// Whether workers accept, or only finish what they have.
#[derive(Clone)]
pub struct Draining(watch::Receiver<bool>);

impl Draining {
    /// A switch and what follows it.
    pub fn switch() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self(receiver))
    }

    /// Whether the drain has begun.
    pub fn begun(&self) -> bool {
        *self.0.borrow()
    }

    /// Waits until the drain begins.
    pub async fn begin(&mut self) {
        // The sender lives as long as the process; were it gone, there would be nobody left to serve for.
        let _ = self.0.wait_for(|draining| *draining).await;
    }

    fn watch(&self) -> &watch::Receiver<bool> {
        &self.0
    }
}

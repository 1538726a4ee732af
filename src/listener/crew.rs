//! What all workers see of each other, and how they are told that something has changed.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use tokio::sync::{mpsc, watch};

use super::{Listening, Tls, accept::Accepted, listening::Place, pulse::Pulse, worker::Post};
use crate::{config::model::Listener, proxy::Current, telemetry::metrics::WorkerMetrics};

/// How many connections each worker holds, and a way to give it one, another listener, or something else to serve by.
pub struct Crew {
    members: Box<[Member]>,
}

pub(super) struct Member {
    pub(super) open: Arc<AtomicUsize>,
    pub(super) metrics: Arc<WorkerMetrics>,
    pub(super) inbox: mpsc::UnboundedSender<Mail>,
    pub(super) post: Arc<Post>,
    pub(super) pulse: Arc<Pulse>,
}

/// What a worker is sent.
pub(super) enum Mail {
    /// A connection to serve.
    Accepted(Accepted),
    /// Connections that are to leave: those that wait for a request are to end soon.
    Closed(Arc<Place>),
    /// A listener to accept from.
    Listen(Arc<Listening>),
}

impl Crew {
    pub(super) fn new(members: Box<[Member]>) -> Self {
        Self { members }
    }

    /// Connections held by all workers.
    pub fn open(&self) -> usize {
        self.members.iter().map(|member| member.open.load(Ordering::Relaxed)).sum()
    }

    /// Whether every worker's event loop has turned since this was asked last; asks each again.
    pub fn turns(&self) -> bool {
        self.members.iter().filter(|member| !member.pulse.ask()).count() == 0
    }

    /// What each worker serves by.
    pub fn current(&self) -> impl Iterator<Item = Arc<Current>> {
        self.members.iter().map(|member| member.post.current())
    }

    /// Requests that begin from now on are served by this, worker for worker.
    pub fn swap(&self, current: impl IntoIterator<Item = Current>) {
        for (member, current) in self.members.iter().zip(current) {
            member.post.swap(Arc::new(current));
        }
    }

    /// All workers accept from this listener as well.
    pub fn listen(&self, listening: &Arc<Listening>) {
        for member in &self.members {
            member.send(Mail::Listen(listening.clone()));
        }
    }

    /// No worker accepts from this listener any more, once what waits there is accepted. Its requests are finished, its
    /// connections end after that.
    pub fn close(&self, listening: &Listening) {
        self.dismiss(&listening.close());
    }

    /// Another configuration, and its TLS, for this listener. Who was let in by other rules leaves after the request it is at.
    pub fn change(&self, listening: &Listening, model: Listener, tls: Option<Arc<Tls>>) {
        if let Some(place) = listening.change(model, tls) {
            self.dismiss(&place);
        }
    }

    /// The same where files of client authentication have changed.
    pub fn look_at_files(&self, listening: &Listening) {
        if let Some(place) = listening.look_at_files() {
            self.dismiss(&place);
        }
    }

    fn dismiss(&self, place: &Arc<Place>) {
        // First the switch: who arms a deadline after this sees it, who did before is found by the mail.
        place.close();
        for member in &self.members {
            member.send(Mail::Closed(place.clone()));
        }
    }

    pub(super) fn member(&self, index: usize) -> &Member {
        &self.members[index]
    }

    /// The worker with the fewest connections; `me` where it is one of them.
    pub(super) fn least_loaded(&self, me: usize) -> usize {
        let load = |index: usize| self.members[index].open.load(Ordering::Relaxed);
        (0..self.members.len()).fold(me, |best, index| if load(index) < load(best) { index } else { best })
    }
}

impl Member {
    pub(super) fn send(&self, mail: Mail) {
        // A worker's inbox is closed only when the process ends.
        let _ = self.inbox.send(mail);
    }
}

/// Whether workers accept, or only finish what they have.
#[derive(Clone)]
pub struct Draining {
    switch: watch::Receiver<bool>,
    seen: bool,
}

impl Draining {
    /// A switch and what follows it.
    pub fn switch() -> (watch::Sender<bool>, Self) {
        let (sender, receiver) = watch::channel(false);
        (sender, Self { switch: receiver, seen: false })
    }

    /// Whether the drain has begun.
    pub fn begun(&self) -> bool {
        // Its value is behind a lock, whose count all workers would write for every request; its version is not.
        self.seen || self.switch.has_changed().unwrap_or_else(|_| *self.switch.borrow())
    }

    /// Waits until the drain begins.
    pub async fn begin(&mut self) {
        // The sender lives as long as the process; were it gone, there would be nobody left to serve for.
        let _ = self.switch.wait_for(|draining| *draining).await;
        self.seen = true;
    }

    pub(super) fn watch(&self) -> &watch::Receiver<bool> {
        &self.switch
    }
}

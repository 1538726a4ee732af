//! The requests under way on one HTTP/2 connection, and how each is ended from outside.

use std::sync::{
    Arc, MutexGuard,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use tokio::sync::Notify;

use super::{guard::Told, watch::Verdict};
use crate::{proxy::Cancel, runtime::deadlines::Deadlines, telemetry::metrics::H2Abuse, types::Reason};

/// Requests that are none, on one connection.
const MALFORMED: usize = 32;

/// Streams under way: for the idle timeout, and to end each.
pub(super) struct Active {
    pub(super) idle: Notify,
    told: Arc<Told>,
    malformed: AtomicUsize,
}

/// How a request ends from outside.
#[derive(Debug, Default)]
pub(super) struct Ends {
    pub(super) cancel: Arc<Cancel>,
    /// Its client has reset it.
    pub(super) left: AtomicBool,
    pub(super) leaves: Notify,
}

impl Ends {
    fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
        self.leaves.notify_one();
    }

    /// Its stream is reset for what its client did.
    pub(super) fn break_off(&self) {
        self.cancel.set_broken();
        self.leave();
    }
}

impl Active {
    pub(super) fn new(told: Arc<Told>) -> Self {
        Self { idle: Notify::new(), told, malformed: AtomicUsize::new(0) }
    }

    /// A request was none.
    pub(super) fn malformed(&self) {
        if self.malformed.fetch_add(1, Ordering::Relaxed) + 1 >= MALFORMED {
            self.told.tell(Verdict::Ours(H2Abuse::Malformed));
        }
    }

    pub(super) fn begin(self: &Arc<Self>, id: u32) -> Stream {
        let ends = Arc::<Ends>::default();
        self.streams().push((id, ends.clone()));
        Stream { active: self.clone(), id, ends }
    }

    /// Ends those requests. Returns whether a client that is too slow with a request has no other under way.
    pub(super) fn end(&self, slow: Vec<(u32, Reason)>, deadlines: &Deadlines) -> bool {
        let streams = self.streams();
        let mut alone = false;
        for (id, reason) in slow {
            let found = streams.iter().find(|(stream, _)| *stream == id);
            let ended = found.is_some_and(|(_, ends)| ends.cancel.end(reason, deadlines));
            alone |= ended && reason == Reason::ClientTimeout && streams.len() == 1;
        }
        alone
    }

    /// Ends all requests, whose client takes nothing of its answers; before the connection ends under them.
    pub(super) fn stalled(&self, deadlines: &Deadlines) {
        self.streams().iter().for_each(|(_, ends)| _ = ends.cancel.end(Reason::TooSlow, deadlines));
    }

    /// Tells those requests that their client has reset them.
    pub(super) fn left(&self, left: &[u32]) {
        for (_, ends) in self.streams().iter().filter(|(id, _)| left.contains(id)) {
            ends.leave();
        }
    }

    pub(super) fn streams(&self) -> MutexGuard<'_, Vec<(u32, Arc<Ends>)>> {
        self.told.streams()
    }
}

pub(super) struct Stream {
    pub(super) active: Arc<Active>,
    id: u32,
    pub(super) ends: Arc<Ends>,
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut streams = self.active.streams();
        if let Some(at) = streams.iter().position(|(id, _)| *id == self.id) {
            streams.swap_remove(at);
        }
        if streams.is_empty() {
            self.active.idle.notify_one();
        }
    }
}

//! How a request of an HTTP/2 client ends from outside, and what its connection knows of it.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::dropped::Remains;
use crate::{
    runtime::{
        deadlines::{Deadlines, Wait},
        signal::Signal,
    },
    types::Reason,
};

/// Ends a request of an HTTP/2 client from outside: the connection is not its own, and one to an HTTP/2 backend neither.
#[derive(Debug, Default)]
pub struct Cancel {
    pub(super) end: Arc<Signal>,
    pub(super) reason: Mutex<Option<Reason>>,
    /// The client was found too slow.
    slow: AtomicBool,
    /// The client may rest as it likes; `proxy/watch.rs` bounds its silence.
    pub(super) at_leisure: AtomicBool,
    malformed: AtomicBool,
    /// A part of the answer waits for more room than there is; see [`Outlet`](super::Outlet).
    held: AtomicBool,
    broken: AtomicBool,
    /// Its client has reset it, and who waits for that.
    left: AtomicBool,
    leaves: Notify,
    remains: Mutex<Remains>,
}

impl Cancel {
    /// Waits until the request is to end, and says why.
    pub async fn cancelled(&self) -> Reason {
        self.end.given().await;
        self.reason()
    }

    /// The request has turned out to be none.
    pub(super) fn set_malformed(&self) {
        self.malformed.store(true, Ordering::Relaxed);
    }

    /// Whether the request has turned out to be none.
    pub fn is_malformed(&self) -> bool {
        self.malformed.load(Ordering::Relaxed)
    }

    /// See [`Cancel::is_held`].
    pub fn set_held(&self, held: bool) {
        self.held.store(held, Ordering::Relaxed);
    }

    /// Whether a part of the answer waits though there is some room.
    pub fn is_held(&self) -> bool {
        self.held.load(Ordering::Relaxed)
    }

    /// Its stream is reset for what its client did on it.
    pub fn set_broken(&self) {
        self.broken.store(true, Ordering::Relaxed);
    }

    /// See [`Cancel::set_broken`].
    pub fn is_broken(&self) -> bool {
        self.broken.load(Ordering::Relaxed)
    }

    /// Its client has reset it.
    pub fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
        self.leaves.notify_one();
    }

    /// Waits until its client has reset it.
    pub async fn left(&self) {
        while !self.left.load(Ordering::Relaxed) {
            self.leaves.notified().await;
        }
    }

    /// Why the request is to end.
    pub(super) fn reason(&self) -> Reason {
        self.reason.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(Reason::TotalTimeout)
    }

    /// Ends the request because its client is too slow: with an answer where a deadline can bring it about, else by
    /// dropping it. Returns whether it does; who may rest goes on.
    pub fn end(&self, reason: Reason, deadlines: &Deadlines) -> bool {
        let upload = reason == Reason::ClientTimeout;
        if upload && self.at_leisure.load(Ordering::Relaxed) {
            return false;
        }
        *self.reason.lock().unwrap_or_else(PoisonError::into_inner) = Some(reason);
        self.slow.store(true, Ordering::Relaxed);
        if !upload || !deadlines.hasten_of(self.owner(), Wait::Work, Instant::now(), Duration::ZERO) {
            self.end.give();
        }
        true
    }

    /// See [`Cancel::end`].
    pub(super) fn is_slow(&self) -> bool {
        self.slow.load(Ordering::Relaxed)
    }

    /// What was known of the request, where it was dropped.
    pub(super) fn remains(&self) -> MutexGuard<'_, Remains> {
        self.remains.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whose deadlines are this request's.
    pub(super) fn owner(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

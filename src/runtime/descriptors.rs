//! Whom descriptors are for when there are few. The system gives the lowest number that is free, so the number of a fresh one says how
//! many there are, whoever has them; nobody counts.

use std::{
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
    sync::atomic::{AtomicI32, Ordering},
};

/// The process' own.
static DESCRIPTORS: Descriptors = Descriptors::new();

/// Which numbers are for whom.
struct Descriptors {
    /// From these numbers on there are none: for clients, for connections to backends.
    clients: AtomicI32,
    backends: AtomicI32,
    /// From this one on they are scarce.
    scarce: AtomicI32,
    /// The number of the last one that was looked at.
    last: AtomicI32,
}

/// There are `limit` of them, and a start leaves `free`. The last part is for files and the admin API, that before it for clients, who may be
/// served over a connection to a backend that there is; in the last eighth they are scarce, of which clients alone can have none.
pub fn keep(limit: u64, free: u64) {
    let number = |kept: u64| i32::try_from(limit.saturating_sub(kept)).unwrap_or(i32::MAX);
    DESCRIPTORS.clients.store(number((free / 32).max(4)), Ordering::Relaxed);
    DESCRIPTORS.backends.store(number((free / 16).max(8)), Ordering::Relaxed);
    DESCRIPTORS.scarce.store(number((free / 8).max(16)), Ordering::Relaxed);
}

/// Whether a client may have this one, which was just given.
pub fn is_for_client(fd: RawFd) -> bool {
    DESCRIPTORS.last.store(fd, Ordering::Relaxed);
    fd < DESCRIPTORS.clients.load(Ordering::Relaxed)
}

/// Whether the next one may be for a connection to a backend.
pub fn is_next_for_backend() -> bool {
    DESCRIPTORS.next() < DESCRIPTORS.backends.load(Ordering::Relaxed)
}

/// Whether there are few left, so that nobody may take many.
pub fn are_scarce() -> bool {
    DESCRIPTORS.are_scarce()
}

/// As [`are_scarce`], for who asks often: that they are not is mostly known from the last one, which was a client's or is a backend's.
pub fn are_likely_scarce() -> bool {
    DESCRIPTORS.last.load(Ordering::Relaxed) >= DESCRIPTORS.scarce.load(Ordering::Relaxed) && are_scarce()
}

impl Descriptors {
    const fn new() -> Self {
        const NONE: i32 = i32::MAX;
        let [clients, backends, scarce] = [AtomicI32::new(NONE), AtomicI32::new(NONE), AtomicI32::new(NONE)];
        Self { clients, backends, scarce, last: AtomicI32::new(0) }
    }

    fn are_scarce(&self) -> bool {
        self.next() >= self.scarce.load(Ordering::Relaxed)
    }

    /// The number that is given next: two system calls, of which a connection needs more than that.
    fn next(&self) -> RawFd {
        // SAFETY: no pointers; what is opened is ours, and closed at once.
        let fd = unsafe {
            let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
            if fd < 0 {
                return RawFd::MAX;
            }
            drop(OwnedFd::from_raw_fd(fd));
            fd
        };
        self.last.store(fd, Ordering::Relaxed);
        fd
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The last one that was looked at was a free one among those in use.
    #[test]
    fn that_descriptors_are_scarce_is_seen_though_the_last_number_was_low() {
        let descriptors = Descriptors::new();
        assert!(!descriptors.are_scarce(), "nothing is kept");
        descriptors.scarce.store(1, Ordering::Relaxed);
        descriptors.last.store(0, Ordering::Relaxed);
        assert!(descriptors.are_scarce());
    }
}

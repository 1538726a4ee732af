//! Whom descriptors are for when there are few. The system gives the lowest number that is free, so the number of a fresh one says how
//! many there are, whoever has them; nobody counts.

use std::{
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
    sync::atomic::{AtomicI32, Ordering},
};

/// From these numbers on there are none: for clients, for connections to backends.
static CLIENTS: AtomicI32 = AtomicI32::new(i32::MAX);
static BACKENDS: AtomicI32 = AtomicI32::new(i32::MAX);
/// From this one on they are scarce.
static SCARCE: AtomicI32 = AtomicI32::new(i32::MAX);
/// The number of the last one that was looked at.
static LAST: AtomicI32 = AtomicI32::new(0);

/// There are `limit` of them, and a start leaves `free`. The last part is for files and the admin API, that before it for clients, who may be
/// served over a connection to a backend that there is; in the last eighth they are scarce, of which clients alone can have none.
pub fn keep(limit: u64, free: u64) {
    let number = |kept: u64| i32::try_from(limit.saturating_sub(kept)).unwrap_or(i32::MAX);
    CLIENTS.store(number((free / 32).max(4)), Ordering::Relaxed);
    BACKENDS.store(number((free / 16).max(8)), Ordering::Relaxed);
    SCARCE.store(number((free / 8).max(16)), Ordering::Relaxed);
}

/// Whether a client may have this one, which was just given.
pub fn is_for_client(fd: RawFd) -> bool {
    LAST.store(fd, Ordering::Relaxed);
    fd < CLIENTS.load(Ordering::Relaxed)
}

/// Whether the next one may be for a connection to a backend.
pub fn is_next_for_backend() -> bool {
    next() < BACKENDS.load(Ordering::Relaxed)
}

/// Whether there are few left, so that nobody may take many. Mostly known from the last one.
pub fn are_scarce() -> bool {
    let scarce = SCARCE.load(Ordering::Relaxed);
    LAST.load(Ordering::Relaxed) >= scarce && next() >= scarce
}

/// The number that is given next: two system calls, of which a connection needs more than that.
fn next() -> RawFd {
    // SAFETY: no pointers; what is opened is ours, and closed at once.
    let fd = unsafe {
        let fd = libc::eventfd(0, libc::EFD_CLOEXEC);
        if fd < 0 {
            return RawFd::MAX;
        }
        drop(OwnedFd::from_raw_fd(fd));
        fd
    };
    LAST.store(fd, Ordering::Relaxed);
    fd
}

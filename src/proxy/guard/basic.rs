//! Basic authentication: passwords are verified off the thread that serves requests, a few at a time, and seldom.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use http::HeaderMap;
use tokio::{sync::Semaphore, time::timeout};

use super::Asked;
use crate::{policy::password::Credentials, runtime::guards::BasicAuth};

/// Verifications of a worker at a time; each takes a whole core.
const AT_ONCE: usize = 2;
/// Requests of a worker that wait for a verification, their own or others'. More would wait longer than people do.
const MOST_WAITING: usize = 64;
/// How long a request waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// Verifies passwords for one worker.
pub(super) struct Verifier {
    places: Arc<Semaphore>,
    waiting: AtomicUsize,
}

impl Default for Verifier {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(AT_ONCE)), waiting: AtomicUsize::new(0) }
    }
}

impl Verifier {
    /// Whether the client has shown a user's password.
    pub(super) async fn ask(&self, basic: &Arc<BasicAuth>, headers: &HeaderMap) -> Asked {
        let Some(credentials) = Credentials::of(headers) else { return Asked::No };
        let (tag, known) = basic.known(&credentials, Instant::now());
        if let Some(good) = known {
            return told(good);
        }
        let Some(_waiting) = Waiting::begin(&self.waiting) else { return Asked::Unavailable };
        let verification = async {
            let place = self.places.clone().acquire_owned().await.ok()?;
            // Another request of the same user may have been first.
            if let Some(good) = basic.verdict(&tag, Instant::now()) {
                return Some(good);
            }
            let basic = basic.clone();
            // The place is free again when the work is done, even where nobody waits for it any more.
            let work = move || {
                let good = basic.verify(&credentials, tag);
                drop(place);
                good
            };
            tokio::task::spawn_blocking(work).await.ok()
        };
        timeout(PATIENCE, verification).await.ok().flatten().map_or(Asked::Unavailable, told)
    }
}

fn told(good: bool) -> Asked {
    if good { Asked::Good } else { Asked::No }
}

/// A request that waits, until it is dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(count: &'a AtomicUsize) -> Option<Self> {
        let waiting = Self(count);
        (count.fetch_add(1, Ordering::Relaxed) < MOST_WAITING).then_some(waiting)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_wait_and_all_give_their_place_back() {
        let count = AtomicUsize::new(0);
        let waiting: Vec<_> = (0..MOST_WAITING + 5).filter_map(|_| Waiting::begin(&count)).collect();
        assert_eq!((waiting.len(), count.load(Ordering::Relaxed)), (MOST_WAITING, MOST_WAITING));
        drop(waiting);
        assert_eq!(count.load(Ordering::Relaxed), 0);
    }
}

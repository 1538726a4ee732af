//! How many questions a worker asks an authentication service at a time: a service that is slow, or a client that asks for much,
//! must not cost a connection and a request's memory for each request. Who asks for much waits behind itself.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use http::HeaderValue;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Questions of a worker to one service at a time, and so its connections.
const AT_ONCE: usize = 128;
/// As many of them may be about one client.
const AT_ONCE_PER_CLIENT: usize = 32;
/// Questions of a worker to one service that are asked or wait for it. More would wait longer than people do.
const MOST: usize = 1024;
/// As many of them may be about one client: more than a browser asks for at once.
const MOST_PER_CLIENT: usize = 256;

/// The services of a worker, by their authority.
#[derive(Default)]
pub(super) struct Questions(Mutex<HashMap<HeaderValue, Arc<Service>>>);

struct Service {
    at_once: Semaphore,
    inside: Mutex<Inside>,
}

/// Who asks or waits.
#[derive(Default)]
struct Inside {
    all: usize,
    clients: HashMap<u64, (Arc<Semaphore>, usize)>,
}

/// A question that is asked or waits for it, until it is dropped.
pub(super) struct Question {
    service: Arc<Service>,
    client: u64,
    at_once: Arc<Semaphore>,
}

/// A question that is asked, until it is dropped.
#[must_use]
pub(super) struct Turn<'q> {
    _client: SemaphorePermit<'q>,
    _service: SemaphorePermit<'q>,
}

impl Questions {
    /// Another question about `client`, a hash; `None` where too many wait.
    pub(super) fn enter(&self, service: &HeaderValue, client: u64) -> Option<Question> {
        let service = self.service(service);
        let at_once = {
            let mut inside = service.inside();
            if inside.all >= MOST {
                return None;
            }
            let fresh = || (Arc::new(Semaphore::new(AT_ONCE_PER_CLIENT)), 0);
            let (at_once, asked) = inside.clients.entry(client).or_insert_with(fresh);
            if *asked >= MOST_PER_CLIENT {
                return None;
            }
            *asked += 1;
            let at_once = at_once.clone();
            inside.all += 1;
            at_once
        };
        Some(Question { service, client, at_once })
    }

    fn service(&self, authority: &HeaderValue) -> Arc<Service> {
        let mut services = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = services.get(authority) {
            return known.clone();
        }
        // Those of a configuration that is gone.
        services.retain(|_, service| Arc::strong_count(service) > 1);
        let service = Arc::new(Service { at_once: Semaphore::new(AT_ONCE), inside: Mutex::default() });
        services.insert(authority.clone(), service.clone());
        service
    }
}

impl Service {
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Question {
    /// Waits until it may be asked: after those about the same client, and then after all before it.
    pub(super) async fn turn(&self) -> Option<Turn<'_>> {
        // Neither is ever closed.
        let client = self.at_once.acquire().await.ok()?;
        let service = self.service.at_once.acquire().await.ok()?;
        Some(Turn { _client: client, _service: service })
    }
}

impl Drop for Question {
    fn drop(&mut self) {
        let mut inside = self.service.inside();
        inside.all = inside.all.saturating_sub(1);
        if let Entry::Occupied(mut client) = inside.clients.entry(self.client) {
            match client.get().1.checked_sub(1) {
                Some(left) if left > 0 => client.get_mut().1 = left,
                _ => drop(client.remove()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::Future,
        pin::pin,
        task::{Context, Poll, Waker},
    };

    use super::*;

    /// What a future comes to at once.
    fn now<T>(future: impl Future<Output = T>) -> Option<T> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(outcome) => Some(outcome),
            Poll::Pending => None,
        }
    }

    const SERVICE: HeaderValue = HeaderValue::from_static("auth.test");

    #[test]
    fn one_client_neither_takes_all_turns_nor_fills_the_queue() {
        let questions = Questions::default();
        let greedy: Vec<Question> = (0..1000).filter_map(|_| questions.enter(&SERVICE, 1)).collect();
        assert_eq!(greedy.len(), MOST_PER_CLIENT);
        let turns: Vec<_> = greedy.iter().filter_map(|question| now(question.turn()).flatten()).collect();
        assert_eq!(turns.len(), AT_ONCE_PER_CLIENT);
        let other = questions.enter(&SERVICE, 2).expect("room for another");
        assert!(now(other.turn()).flatten().is_some(), "it waits for nobody");
        drop(turns);
        assert!(now(greedy[100].turn()).flatten().is_some());
        assert!(questions.enter(&HeaderValue::from_static("other.test"), 1).is_some());
    }

    #[test]
    fn all_together_are_bounded_and_what_is_over_is_forgotten() {
        let questions = Questions::default();
        let many: Vec<Question> = (0..5000).filter_map(|client| questions.enter(&SERVICE, client)).collect();
        assert_eq!(many.len(), MOST);
        let turns: Vec<_> = many.iter().filter_map(|question| now(question.turn()).flatten()).collect();
        assert_eq!(turns.len(), AT_ONCE);
        drop(turns);
        let service = questions.service(&SERVICE);
        drop(many);
        let inside = service.inside();
        assert_eq!((inside.all, inside.clients.len()), (0, 0));
    }
}

//! Basic authentication: passwords are verified off the thread that serves requests, a few at a time, and each once for all
//! requests that bring it.

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::HeaderMap;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};

use super::Asked;
use crate::{
    policy::{
        concurrency::{InFlight, Permit},
        limit_key::{Seed, of_client, of_site},
        password::{Credentials, Tag},
    },
    runtime::guards::BasicAuth,
};

/// Verifications of a worker at a time; each takes a whole core.
const AT_ONCE: usize = 2;
/// Credentials of a worker that are verified or wait for it. More would wait longer than people do.
const MOST_PENDING: usize = 64;
/// As many of them may come from one address, so that who guesses keeps nobody else out.
const MOST_PER_CLIENT: u32 = 16;
/// And from all networks of one IPv6 site, who may be one client.
const MOST_PER_SITE: u32 = 32;
/// As many from an address that has shown a wrong password lately.
const MOST_PER_SUSPECT: u32 = 4;
/// Those of all such addresses, and of others of their sites, take no more of the places: the rest is for people who come for the
/// first time.
const MOST_OF_SUSPECTS: usize = 32;
/// How long a wrong password is remembered of an address.
const SUSPICION: Duration = Duration::from_secs(60);
/// Addresses and sites of which it is, each about 30 bytes.
const MOST_SUSPECTS: usize = 8192;
/// How long a request waits.
const PATIENCE: Duration = Duration::from_secs(10);

/// Who shows a password, as places are shared out.
#[derive(Clone, Copy)]
struct Who {
    client: u64,
    site: Option<u64>,
}

impl Who {
    fn of(client: Option<IpAddr>, seed: &Seed) -> Self {
        Self { client: of_client(client, seed), site: of_site(client, seed) }
    }
}

/// Verifies passwords for one worker.
pub(super) struct Verifier {
    places: Arc<Semaphore>,
    pending: Arc<Pending>,
    clients: Arc<InFlight>,
    suspects: Arc<Suspects>,
    seed: Seed,
}

impl Default for Verifier {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(AT_ONCE)),
            pending: Arc::default(),
            clients: Arc::default(),
            suspects: Arc::default(),
            seed: Seed::new(rand::random()),
        }
    }
}

impl Verifier {
    /// Whether the client has shown a user's password.
    pub(super) async fn ask(&self, basic: &Arc<BasicAuth>, client: Option<IpAddr>, headers: &HeaderMap) -> Asked {
        let Some(credentials) = Credentials::of(headers) else { return Asked::No };
        let (tag, known) = basic.known(&credentials, Instant::now());
        let verdict = match known {
            Some(good) => Some(good),
            None => {
                let who = Who::of(client, &self.seed);
                let Some(mut verdict) = self.verdict(basic, credentials, tag, who) else { return Asked::Unavailable };
                let wait = timeout(PATIENCE, verdict.wait_for(Option::is_some)).await;
                wait.ok().and_then(Result::ok).and_then(|verdict| *verdict)
            }
        };
        match verdict {
            Some(true) => Asked::Good,
            Some(false) => Asked::No,
            None => Asked::Unavailable,
        }
    }

    fn join(&self, tag: Tag, Who { client, site }: Who, now: Instant) -> Join {
        let suspect = self.suspects.knows(client, now);
        // Who has many networks may show each password from another.
        let shared = suspect || site.is_some_and(|site| self.suspects.knows(site, now));
        let own = if suspect { MOST_PER_SUSPECT } else { MOST_PER_CLIENT };
        self.pending.join(tag, if shared { MOST_OF_SUSPECTS } else { MOST_PENDING }, || {
            let site = match site {
                Some(site) => Some(self.clients.enter(site, MOST_PER_SITE)?),
                None => None,
            };
            Some((self.clients.enter(client, own)?, site))
        })
    }

    /// Where the verdict will be: that of others with the same credentials, or a new one. `None` where too many wait.
    fn verdict(
        &self,
        basic: &Arc<BasicAuth>,
        credentials: Credentials,
        tag: Tag,
        who: Who,
    ) -> Option<watch::Receiver<Option<bool>>> {
        let place = match self.join(tag, who, Instant::now()) {
            Join::Found(verdict) => return Some(verdict),
            Join::Full => return None,
            Join::New(place) => place,
        };
        let (verdict, basic, places) = (place.tell.subscribe(), basic.clone(), self.places.clone());
        let suspects = self.suspects.clone();
        // A task of its own: a client that goes away takes the verdict from nobody else.
        tokio::spawn(async move {
            let Ok(core) = places.acquire_owned().await else { return };
            let work = move || {
                let good = basic.verify(&credentials, tag);
                if !good {
                    suspects.add(who, Instant::now());
                }
                place.tell.send_replace(Some(good));
                drop((core, place));
            };
            let _ = tokio::task::spawn_blocking(work).await;
        });
        Some(verdict)
    }
}

/// Credentials that are verified or wait for it, and where their verdict will be.
#[derive(Default)]
struct Pending(Mutex<HashMap<Tag, watch::Receiver<Option<bool>>>>);

enum Join {
    Found(watch::Receiver<Option<bool>>),
    Full,
    New(Place),
}

/// A place among the pending, until it is dropped.
struct Place {
    pending: Arc<Pending>,
    tag: Tag,
    tell: watch::Sender<Option<bool>>,
    _from: Permits,
}

/// A client's, and its site's.
type Permits = (Permit, Option<Permit>);

impl Pending {
    fn join(self: &Arc<Self>, tag: Tag, most: usize, enter: impl FnOnce() -> Option<Permits>) -> Join {
        let mut all = self.lock();
        if let Some(found) = all.get(&tag) {
            return Join::Found(found.clone());
        }
        let Some(from) = (all.len() < most).then(enter).flatten() else { return Join::Full };
        let (tell, verdict) = watch::channel(None);
        all.insert(tag, verdict);
        Join::New(Place { pending: self.clone(), tag, tell, _from: from })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Tag, watch::Receiver<Option<bool>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.pending.lock().remove(&self.tag);
    }
}

/// Clients, and sites of clients, that have shown a wrong password lately.
#[derive(Default)]
struct Suspects(Mutex<HashMap<u64, Instant>>);

impl Suspects {
    fn knows(&self, key: u64, now: Instant) -> bool {
        self.lock().get(&key).is_some_and(|since| now.saturating_duration_since(*since) < SUSPICION)
    }

    fn add(&self, Who { client, site }: Who, now: Instant) {
        let mut all = self.lock();
        for key in site.into_iter().chain([client]) {
            if all.len() >= MOST_SUSPECTS {
                all.retain(|_, since| now.saturating_duration_since(*since) < SUSPICION);
            }
            // Where it is full of them, one more makes no difference.
            if all.len() < MOST_SUSPECTS || all.contains_key(&key) {
                all.insert(key, now);
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Instant>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tag(number: usize) -> Tag {
        let mut tag = Tag::default();
        tag[..8].copy_from_slice(&number.to_be_bytes());
        tag
    }

    #[test]
    fn the_same_credentials_wait_for_the_same_verdict() {
        let (pending, clients) = (Arc::<Pending>::default(), Arc::<InFlight>::default());
        let enter = || Some((clients.enter(1, MOST_PER_CLIENT)?, None));
        let Join::New(place) = pending.join(tag(1), MOST_PENDING, enter) else { panic!("the first") };
        let Join::Found(verdict) = pending.join(tag(1), MOST_PENDING, enter) else { panic!("the second") };
        place.tell.send_replace(Some(true));
        assert_eq!(*verdict.borrow(), Some(true));
        drop(place);
        assert!(matches!(pending.join(tag(1), MOST_PENDING, enter), Join::New(_)));
        assert_eq!((pending.lock().len(), clients.keys()), (0, 0));
    }

    #[test]
    fn one_client_cannot_fill_the_queue_and_all_together_cannot_overfill_it() {
        let (pending, clients) = (Arc::<Pending>::default(), Arc::<InFlight>::default());
        let join = |number: usize, client: u64| match pending
            .join(tag(number), MOST_PENDING, || Some((clients.enter(client, MOST_PER_CLIENT)?, None)))
        {
            Join::New(place) => Some(place),
            Join::Found(_) | Join::Full => None,
        };
        let one: Vec<Place> = (0..100).filter_map(|number| join(number, 1)).collect();
        assert_eq!(one.len(), MOST_PER_CLIENT as usize);
        let others: Vec<Place> = (100..300).filter_map(|number| join(number, number as u64)).collect();
        assert_eq!(one.len() + others.len(), MOST_PENDING);
    }

    #[test]
    fn who_has_guessed_leaves_room_for_who_has_not() {
        let verifier = Verifier::default();
        let now = Instant::now();
        for client in 0..100 {
            verifier.suspects.add(Who { client, site: None }, now);
        }
        let join = |number: usize, client: u64| match verifier.join(tag(number), Who { client, site: None }, now) {
            Join::New(place) => Some(place),
            Join::Found(_) | Join::Full => None,
        };
        let guesses: Vec<Place> = (0..1000).filter_map(|number| join(number, number as u64 % 100)).collect();
        assert_eq!(guesses.len(), MOST_OF_SUSPECTS);
        assert!(join(1000, 1000).is_some(), "somebody new");
        assert!(!verifier.suspects.knows(1, now + SUSPICION));
        for client in 0..3 * MOST_SUSPECTS as u64 {
            verifier.suspects.add(Who { client, site: None }, now);
        }
        assert!(verifier.suspects.lock().len() <= MOST_SUSPECTS);
    }

    #[test]
    fn who_has_hundreds_of_networks_leaves_room_for_who_has_one() {
        let verifier = Verifier::default();
        let now = Instant::now();
        let who = |site: u16, network: u16| {
            let address = std::net::Ipv6Addr::new(0x2001, 0xdb8, site, network, 0, 0, 0, 1);
            Who::of(Some(address.into()), &verifier.seed)
        };
        let join = |number: usize, who: Who| match verifier.join(tag(number), who, now) {
            Join::New(place) => Some(place),
            Join::Found(_) | Join::Full => None,
        };
        let at_once: Vec<Place> = (0..600).filter_map(|number| join(number.into(), who(1, number))).collect();
        assert_eq!(at_once.len(), MOST_PER_SITE as usize, "of one site that nobody knows yet");
        assert!(join(600, who(2, 0)).is_some(), "somebody new");
        drop(at_once);
        assert_eq!(verifier.clients.keys(), 0);
        // Each network guesses once.
        for site in 1..=5 {
            verifier.suspects.add(who(site, 1000), now);
        }
        let guesses = (0..600).filter_map(|number| join(number.into(), who(1 + number % 5, number)));
        let guesses: Vec<Place> = guesses.collect();
        assert_eq!(guesses.len(), MOST_OF_SUSPECTS, "of five sites that have shown wrong ones");
        assert!(join(600, who(6, 0)).is_some(), "somebody new");
    }
}

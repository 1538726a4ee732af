//! Keys of session tickets: made, rotated, and handed to a successor, so that a client's session resumes there. In
//! place of rustls' own `Ticketer`, which lets nobody have its keys.
//!
//! A ticket is the key's name, a random nonce, and the session sealed by AES-256-GCM with the name as associated data.
//! All listeners share the keys. Those that ask for certificates of clients have a scope in addition, which is part of the
//! associated data: a ticket opens only in the scope it was made in.

use std::{
    fmt,
    sync::{Arc, PoisonError, RwLock, RwLockReadGuard},
    time::{Duration, Instant},
};

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey},
    rand,
};
use rustls::server::ProducesTickets;

/// How long a key makes tickets. It opens them for as long again. Even 100,000 tickets a second stay below the 2^32
/// random nonces that NIST SP 800-38D allows a key.
const ROTATION: Duration = Duration::from_secs(6 * 60 * 60);
/// What clients are told: no ticket is opened later.
const LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);

const NAME_LENGTH: usize = 16;
const TAG_LENGTH: usize = 16;

/// A key in the form in which one process gives it to the next.
#[derive(Clone, PartialEq, Eq)]
pub struct TicketKey {
    /// Stands at the head of each ticket.
    pub name: [u8; NAME_LENGTH],
    /// The AES-256 key.
    pub secret: [u8; 32],
    /// How long ago it was made.
    pub age: Duration,
}

impl fmt::Debug for TicketKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKey").field("age", &self.age).finish_non_exhaustive()
    }
}

/// The keys, shared by all listeners and workers.
pub struct TicketKeys {
    keys: RwLock<Keys>,
}

struct Keys {
    current: Key,
    previous: Option<Key>,
}

struct Key {
    name: [u8; NAME_LENGTH],
    secret: [u8; 32],
    made: Instant,
    cipher: RandomizedNonceKey,
}

impl TicketKeys {
    /// A first key.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn new() -> Result<Self, rustls::Error> {
        let current = Key::random(Instant::now()).ok_or_else(|| rustls::Error::General("no randomness".into()))?;
        Ok(Self { keys: RwLock::new(Keys { current, previous: None }) })
    }

    /// Goes on with the keys of another process, newest first. `None` where none of them is of use any more.
    pub fn adopt(exported: &[TicketKey]) -> Option<Self> {
        let now = Instant::now();
        let mut keys = exported.iter().take(2).filter(|key| key.age < LIFETIME).filter_map(|key| Key::import(key, now));
        let current = keys.next()?;
        Some(Self { keys: RwLock::new(Keys { current, previous: keys.next() }) })
    }

    /// The keys for another process, newest first.
    pub fn export(&self) -> Vec<TicketKey> {
        let keys = self.rolled(Instant::now());
        std::iter::once(&keys.current).chain(&keys.previous).map(Key::export).collect()
    }

    /// The keys, after a rotation where one is due. The old key stays in use where there is no randomness for a new one.
    fn rolled(&self, now: Instant) -> RwLockReadGuard<'_, Keys> {
        let keys = self.keys.read().unwrap_or_else(PoisonError::into_inner);
        if keys.current.age(now) < ROTATION {
            return keys;
        }
        drop(keys);
        let mut keys = self.keys.write().unwrap_or_else(PoisonError::into_inner);
        if keys.current.age(now) >= ROTATION
            && let Some(fresh) = Key::random(now)
        {
            let last = std::mem::replace(&mut keys.current, fresh);
            keys.previous = (last.age(now) < LIFETIME).then_some(last);
        }
        drop(keys);
        self.keys.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The same keys for tickets that no other scope opens. A scope is the same in the next process where it is made of the
    /// same.
    pub fn scoped(self: &Arc<Self>, scope: [u8; 32]) -> ScopedTickets {
        ScopedTickets { keys: self.clone(), scope }
    }

    fn seal(&self, scope: &[u8], session: &[u8], now: Instant) -> Option<Vec<u8>> {
        let keys = self.rolled(now);
        let Key { name, cipher, .. } = &keys.current;
        let mut sealed = session.to_vec();
        let nonce = cipher.seal_in_place_append_tag(associated(name, scope), &mut sealed).ok()?;
        let mut ticket = Vec::with_capacity(NAME_LENGTH + NONCE_LEN + sealed.len());
        ticket.extend_from_slice(name);
        ticket.extend_from_slice(nonce.as_ref());
        ticket.append(&mut sealed);
        Some(ticket)
    }

    fn open(&self, scope: &[u8], ticket: &[u8], now: Instant) -> Option<Vec<u8>> {
        let (name, rest) = ticket.split_at_checked(NAME_LENGTH)?;
        let (nonce, sealed) = rest.split_at_checked(NONCE_LEN)?;
        if sealed.len() < TAG_LENGTH {
            return None;
        }
        let keys = self.rolled(now);
        // Names are public: each ticket shows one.
        let named = |key: &&Key| key.name == name && key.age(now) < LIFETIME;
        let key = std::iter::once(&keys.current).chain(&keys.previous).find(named)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let mut session = sealed.to_vec();
        let length = key.cipher.open_in_place(nonce, associated(&key.name, scope), &mut session).ok()?.len();
        session.truncate(length);
        Some(session)
    }
}

/// The name and the scope, which is empty or of one length.
fn associated(name: &[u8; NAME_LENGTH], scope: &[u8]) -> Aad<Vec<u8>> {
    Aad::from([name.as_slice(), scope].concat())
}

impl Key {
    fn random(now: Instant) -> Option<Self> {
        let (mut name, mut secret) = ([0; NAME_LENGTH], [0; 32]);
        rand::fill(&mut name).ok()?;
        rand::fill(&mut secret).ok()?;
        Self::import(&TicketKey { name, secret, age: Duration::ZERO }, now)
    }

    fn import(key: &TicketKey, now: Instant) -> Option<Self> {
        let TicketKey { name, secret, age } = key.clone();
        let cipher = RandomizedNonceKey::new(&AES_256_GCM, &secret).ok()?;
        Some(Self { name, secret, made: now.checked_sub(age)?, cipher })
    }

    fn export(&self) -> TicketKey {
        TicketKey { name: self.name, secret: self.secret, age: self.made.elapsed() }
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.made)
    }
}

impl ProducesTickets for TicketKeys {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        LIFETIME.as_secs() as u32
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        self.seal(&[], session, Instant::now())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.open(&[], ticket, Instant::now())
    }
}

/// Keys in one scope.
#[derive(Debug)]
pub struct ScopedTickets {
    keys: Arc<TicketKeys>,
    scope: [u8; 32],
}

impl ProducesTickets for ScopedTickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        self.keys.lifetime()
    }

    fn encrypt(&self, session: &[u8]) -> Option<Vec<u8>> {
        self.keys.seal(&self.scope, session, Instant::now())
    }

    fn decrypt(&self, ticket: &[u8]) -> Option<Vec<u8>> {
        self.keys.open(&self.scope, ticket, Instant::now())
    }
}

impl fmt::Debug for TicketKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TicketKeys").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn keys() -> TicketKeys {
        TicketKeys::new().expect("randomness")
    }

    #[test]
    fn a_ticket_opens_where_its_keys_were_handed_to_and_nowhere_else() {
        let old = keys();
        let ticket = old.encrypt(b"session").expect("a ticket");
        assert!(!ticket.windows(7).any(|part| part == b"session"));
        let new = TicketKeys::adopt(&old.export()).expect("keys of use");
        assert_eq!(new.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        let back = new.encrypt(b"again").expect("a ticket");
        assert_eq!(old.decrypt(&back).as_deref(), Some(&b"again"[..]));
        assert_eq!(keys().decrypt(&ticket), None);
    }

    #[test]
    fn a_ticket_opens_in_its_scope_only_and_there_after_a_hand_over_too() {
        let old = Arc::new(keys());
        let (one, other) = (old.scoped([1; 32]), old.scoped([2; 32]));
        let ticket = one.encrypt(b"session").expect("a ticket");
        assert_eq!((other.decrypt(&ticket), old.decrypt(&ticket)), (None, None));
        assert_eq!(one.decrypt(&old.encrypt(b"session").expect("a ticket")), None);
        let new = Arc::new(TicketKeys::adopt(&old.export()).expect("keys of use"));
        assert_eq!(new.scoped([1; 32]).decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        assert_eq!(new.scoped([2; 32]).decrypt(&ticket), None);
    }

    #[test]
    fn no_two_tickets_are_alike() {
        let keys = keys();
        assert_ne!(keys.encrypt(b"session"), keys.encrypt(b"session"));
    }

    #[test]
    fn a_ticket_opens_for_one_rotation_more_and_then_never() {
        let (keys, start) = (keys(), Instant::now());
        let at = |hours: u32| start + HOUR * hours;
        let ticket = keys.seal(&[], b"session", at(0)).expect("a ticket");
        let late = keys.seal(&[], b"session", at(5)).expect("a ticket");
        assert_eq!(ticket[..NAME_LENGTH], late[..NAME_LENGTH], "rotated too early");
        let next = keys.seal(&[], b"session", at(7)).expect("a ticket");
        assert_ne!(ticket[..NAME_LENGTH], next[..NAME_LENGTH], "not rotated");
        assert!(keys.open(&[], &ticket, at(11)).is_some() && keys.open(&[], &next, at(11)).is_some());
        assert_eq!(keys.open(&[], &ticket, at(13)), None);
        assert!(keys.open(&[], &next, at(14)).is_some());
        assert_eq!(keys.open(&[], &next, at(40)), None, "after a long silence");
    }

    #[test]
    fn both_keys_are_handed_over_with_their_age() {
        let old = keys();
        let exported = TicketKey { age: HOUR * 8, ..old.export().remove(0) };
        let middle = TicketKeys::adopt(std::slice::from_ref(&exported)).expect("a key of use");
        let early = old.encrypt(b"session").expect("a ticket");
        let handed = middle.export();
        assert_eq!(handed.len(), 2, "rotated, with the old key behind the new one");
        assert!(handed[0].age < HOUR && handed[1].age >= HOUR * 8);
        let new = TicketKeys::adopt(&handed).expect("keys of use");
        assert_eq!(new.decrypt(&early).as_deref(), Some(&b"session"[..]));
        assert!(TicketKeys::adopt(&[TicketKey { age: HOUR * 12, ..exported }]).is_none(), "too old");
        assert!(TicketKeys::adopt(&[]).is_none());
    }

    #[test]
    fn what_is_no_ticket_is_none() {
        let keys = keys();
        let ticket = keys.encrypt(b"session").expect("a ticket");
        for end in 0..ticket.len() {
            assert_eq!(keys.decrypt(&ticket[..end]), None, "cut to {end} bytes");
        }
        for byte in 0..ticket.len() {
            let mut bent = ticket.clone();
            bent[byte] ^= 1;
            assert_eq!(keys.decrypt(&bent), None, "byte {byte} is another");
        }
        assert_eq!(keys.decrypt(&[ticket.as_slice(), b"x"].concat()), None);
        assert_eq!(keys.decrypt(&[0; 500]), None);
    }
}

//! How many connections there are, in all and of each client, against what the listener allows, over all workers. Counted
//! as they are accepted; those of a load balancer that tells its clients (PROXY protocol) by client when it has told. Whatever
//! listeners allow, clients never get all descriptors of the process: backends, files and the admin API need some.

use std::{
    collections::{HashMap, hash_map::RandomState},
    hash::BuildHasher,
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{config::model::ListenerLimits, types::Refusal};

/// Locks that workers rarely wait for; a power of two.
const SHARDS: usize = 16;

/// Connections of all listeners, and how many there may be.
static ALL: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Keeps a quarter of so many descriptors from clients.
pub fn keep_descriptors(free: u64) {
    MOST.store(usize::try_from(free - free / 4).unwrap_or(usize::MAX), Ordering::Relaxed);
}

/// The connections of one listener. Cost: four atomic additions each; with `connections_per_ip` also a short lock and an
/// entry for each client that has any.
#[derive(Debug, Default)]
pub(super) struct Census {
    open: AtomicUsize,
    /// Random, so that nobody can choose addresses that collide.
    hasher: RandomState,
    clients: [Mutex<HashMap<Client, u32>>; SHARDS],
}

/// Who counts as one client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Client {
    V4(u32),
    /// A /64: what one customer or one machine has, and can change addresses in at will.
    V6(u64),
}

/// A connection that is counted until this is dropped.
#[derive(Debug)]
pub(super) struct Counted {
    census: Arc<Census>,
    client: Option<Client>,
}

impl Census {
    /// Counts a connection from `client` (`None` for a unix socket: it has no address that could be counted).
    ///
    /// # Errors
    /// There are too many already. Those that came before `connections_per_ip` was set are not known to it.
    pub(super) fn admit(self: &Arc<Self>, client: Option<IpAddr>, limits: &ListenerLimits) -> Result<Counted, Refusal> {
        let open = self.open.fetch_add(1, Ordering::Relaxed) + 1;
        let all = ALL.fetch_add(1, Ordering::Relaxed) + 1;
        // Dropped, it takes back what it counted.
        let counted = Counted { census: self.clone(), client: None };
        if all > MOST.load(Ordering::Relaxed) || limits.connections.is_some_and(|most| open > to_usize(most)) {
            return Err(Refusal::Limit);
        }
        counted.of(client, limits)
    }

    fn shard(&self, client: Client) -> MutexGuard<'_, HashMap<Client, u32>> {
        let shard = self.hasher.hash_one(client) as usize % SHARDS;
        self.clients[shard].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Counted {
    /// Counts it as one of `client` too, if it is not yet one of somebody; `None` counts for nobody.
    ///
    /// # Errors
    /// That client has too many already.
    pub(super) fn of(mut self, client: Option<IpAddr>, limits: &ListenerLimits) -> Result<Self, Refusal> {
        let (Some(most), Some(client), None) = (limits.connections_per_ip, client.map(Client::of), self.client) else {
            return Ok(self);
        };
        let census = self.census.clone();
        let mut clients = census.shard(client);
        let of_client = clients.entry(client).or_insert(0);
        if *of_client >= most {
            return Err(Refusal::PerIp);
        }
        *of_client += 1;
        self.client = Some(client);
        Ok(self)
    }
}

impl Client {
    fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::V4(address.to_bits()),
            IpAddr::V6(address) => Self::V6((address.to_bits() >> 64) as u64),
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        ALL.fetch_sub(1, Ordering::Relaxed);
        self.census.open.fetch_sub(1, Ordering::Relaxed);
        let Some(client) = self.client else { return };
        let mut clients = self.census.shard(client);
        if let Some(count) = clients.get_mut(&client) {
            *count -= 1;
            if *count == 0 {
                clients.remove(&client);
            }
        }
    }
}

fn to_usize(count: u32) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(connections: Option<u32>, connections_per_ip: Option<u32>) -> ListenerLimits {
        ListenerLimits { connections, connections_per_ip, ..crate::listener::tests::LIMITS }
    }

    fn ip(text: &str) -> Option<IpAddr> {
        Some(text.parse().expect("an address"))
    }

    #[test]
    fn one_over_the_limit_is_refused_until_another_is_gone() {
        let census = Arc::new(Census::default());
        let limits = limits(Some(2), None);
        let first = census.admit(ip("192.0.2.1"), &limits).expect("free");
        let _second = census.admit(None, &limits).expect("free");
        assert_eq!(census.admit(ip("192.0.2.2"), &limits).err(), Some(Refusal::Limit));
        assert_eq!(census.admit(ip("192.0.2.2"), &limits).err(), Some(Refusal::Limit));
        drop(first);
        assert!(census.admit(ip("192.0.2.2"), &limits).is_ok());
    }

    #[test]
    fn a_client_is_an_ipv4_address_or_an_ipv6_64() {
        let census = Arc::new(Census::default());
        let limits = limits(None, Some(1));
        let v4 = census.admit(ip("192.0.2.1"), &limits).expect("free");
        assert_eq!(census.admit(ip("::ffff:192.0.2.1"), &limits).err(), Some(Refusal::PerIp));
        let _other = census.admit(ip("192.0.2.2"), &limits).expect("another client");
        let _v6 = census.admit(ip("2001:db8::1"), &limits).expect("free");
        assert_eq!(census.admit(ip("2001:db8::ffff:1"), &limits).err(), Some(Refusal::PerIp));
        assert!(census.admit(ip("2001:db8:0:1::1"), &limits).is_ok());
        assert!(census.admit(None, &limits).is_ok() && census.admit(None, &limits).is_ok());
        drop(v4);
        assert!(census.admit(ip("192.0.2.1"), &limits).is_ok());
    }

    #[test]
    fn nothing_is_kept_of_clients_that_are_gone() {
        let census = Arc::new(Census::default());
        let limits = limits(None, Some(1));
        for last in 0..100 {
            drop(census.admit(Some(IpAddr::from([192, 0, 2, last])), &limits));
        }
        let refused = census.admit(None, &ListenerLimits { connections: Some(0), ..limits });
        assert!(refused.is_err());
        assert_eq!(census.open.load(Ordering::Relaxed), 0);
        assert!(census.clients.iter().all(|shard| shard.lock().expect("no panic").is_empty()));
    }
}

//! How many at once, by key. A key that has nothing in flight takes no place, so that memory is bounded by the requests
//! that are.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// Parts, each under a lock of its own.
const SHARDS: usize = 16;
/// An empty part larger than this gives its memory back.
const KEPT: usize = 256;

/// Requests in flight by key.
#[derive(Default)]
pub struct InFlight {
    shards: [Mutex<HashMap<u64, u32>>; SHARDS],
}

/// One request in flight, until it is dropped.
#[must_use]
pub struct Permit {
    table: Arc<InFlight>,
    key: u64,
}

impl InFlight {
    /// Counts a request of `key`, a hash that clients cannot steer; `None` where `limit` are in flight.
    pub fn enter(self: &Arc<Self>, key: u64, limit: u32) -> Option<Permit> {
        match self.shard(key).entry(key) {
            Entry::Occupied(entry) if *entry.get() >= limit => return None,
            Entry::Occupied(mut entry) => *entry.get_mut() += 1,
            Entry::Vacant(_) if limit == 0 => return None,
            Entry::Vacant(entry) => drop(entry.insert(1)),
        }
        Some(Permit { table: self.clone(), key })
    }

    /// Keys with requests in flight.
    pub fn keys(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum()
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, HashMap<u64, u32>> {
        lock(&self.shards[(key >> 60) as usize % SHARDS])
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut shard = self.table.shard(self.key);
        if let Entry::Occupied(mut entry) = shard.entry(self.key) {
            match entry.get().checked_sub(1) {
                Some(left) if left > 0 => *entry.get_mut() = left,
                _ => drop(entry.remove()),
            }
        }
        if shard.is_empty() && shard.capacity() > KEPT {
            shard.shrink_to_fit();
        }
    }
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Permit")
    }
}

fn lock(shard: &Mutex<HashMap<u64, u32>>) -> MutexGuard<'_, HashMap<u64, u32>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_has_its_limit_and_gets_a_place_back_when_one_is_done() {
        let table = Arc::new(InFlight::default());
        let first = table.enter(7, 2).expect("a place");
        let _second = table.enter(7, 2).expect("a place");
        assert!(table.enter(7, 2).is_none());
        assert!(table.enter(8, 2).is_some(), "another key has its own");
        drop(first);
        assert!(table.enter(7, 2).is_some());
        assert!(table.enter(9, 0).is_none());
    }

    #[test]
    fn nothing_is_left_of_a_hundred_thousand_keys() {
        let table = Arc::new(InFlight::default());
        let permits: Vec<Permit> = (0..100_000u64).filter_map(|key| table.enter(key << 45 | key, 1)).collect();
        assert_eq!((permits.len(), table.keys()), (100_000, 100_000));
        drop(permits);
        let capacity: usize = table.shards.iter().map(|shard| lock(shard).capacity()).sum();
        assert_eq!((table.keys(), capacity), (0, 0));
    }
}

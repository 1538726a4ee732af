//! Counts the heads that come on each stream somebody waits on. The h2 crate keeps interim ones until they are read, however many there
//! are, and they are under no window: while a client takes nothing nobody reads them.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

/// More than are believed of one answer, with the answer's own and its trailers.
const MOST: u8 = 48;

/// The streams of a connection, each with how many heads came on it.
#[derive(Debug, Default)]
pub(super) struct Awaited(Mutex<HashMap<u32, u8>>);

impl Awaited {
    pub(super) fn begins(&self, stream: u32) {
        self.lock().insert(stream, 0);
    }

    pub(super) fn ends(&self, stream: u32) {
        let mut streams = self.lock();
        streams.remove(&stream);
        if streams.is_empty() && streams.capacity() > usize::from(MOST) {
            *streams = HashMap::new();
        }
    }

    /// A head has come. Returns whether it is one too many; of streams that nobody waits on the crate keeps none.
    pub(super) fn is_too_many(&self, stream: u32) -> bool {
        self.lock().get_mut(&stream).is_some_and(|heads| {
            *heads = heads.saturating_add(1);
            *heads > MOST
        })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, u8>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

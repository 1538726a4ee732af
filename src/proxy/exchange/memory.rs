//! Memory that requests use one after the other: a worker keeps some of it, so that a request takes none of its own.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;

use super::{
    attempt::{self, Room},
    pipe::Pipe,
};
use crate::{policy::fields::Index, runtime::descriptors};

/// Kept for requests to come. More are at work at once only where clients or backends are slow.
const MOST: usize = 64;
/// A larger piece is kept for as many only as are at work at once on large bodies, mostly.
const LARGE: usize = 16 * 1024;
const MOST_LARGE: usize = 8;
/// Pipes of a worker, two descriptors each; other bodies go through memory.
const MOST_PIPES: usize = 64;
/// A larger piece is not kept at all.
const LARGEST: usize = 2 * attempt::LARGEST;
/// Of a head and what comes with it.
const HEAD: usize = 4096;

/// Of one request in the lane.
#[derive(Debug, Default)]
pub struct Desk {
    /// Of a head to come and what comes with it; empty.
    head: BytesMut,
    /// Where the fields of the request are.
    pub asked: Index,
    /// Boxed, so that it goes to an attempt and comes back as it is.
    pub(super) room: Option<Box<Room>>,
    /// Of the request's body, as it comes.
    pub(super) incoming: BytesMut,
    /// Of the request's body, on its way to the backend.
    pub(super) upload: BytesMut,
    /// The beginning of the body, as it was given towards a backend.
    pub(super) given: BytesMut,
    /// Of the answer, on its way to the client.
    pub(super) answer: BytesMut,
    /// What goes past it, of the request's body and of the answer's.
    pub(super) up: Option<Pipe>,
    pub(super) down: Option<Pipe>,
}

impl Desk {
    /// Memory for a head, empty.
    pub fn head(&mut self) -> BytesMut {
        let mut head = std::mem::take(&mut self.head);
        head.reserve(HEAD);
        head
    }

    /// Gives it back.
    pub fn put_head(&mut self, head: BytesMut) {
        self.head = head;
    }
}

/// What a worker keeps.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Spare>);

#[derive(Debug, Default)]
struct Spare {
    // Boxed, so that a request takes and gives a pointer.
    #[expect(clippy::vec_box)]
    desks: Vec<Box<Desk>>,
    rooms: Vec<BytesMut>,
    /// Held by each pipe there is.
    piped: Arc<()>,
}

impl Memory {
    /// Memory for a request.
    pub fn desk(&self) -> Box<Desk> {
        self.lock().desks.pop().unwrap_or_default()
    }

    /// Gives it back.
    pub fn put_desk(&self, mut desk: Box<Desk>) {
        let mut spare = self.lock();
        let largest = if spare.desks.len() < MOST_LARGE { LARGEST } else { LARGE };
        let Desk { head, room, incoming, upload, given, answer, .. } = &mut *desk;
        let out = &mut room.get_or_insert_default().out;
        for piece in [head, out, incoming, upload, given, answer] {
            piece.clear();
            if piece.try_reclaim(largest + 1) {
                *piece = BytesMut::new();
            }
        }
        // A descriptor is not kept for nothing; and what is left of a body that broke off is no other one's.
        (desk.up, desk.down) = (None, None);
        if spare.desks.len() < MOST {
            spare.desks.push(desk);
        }
    }

    /// The same where there is something to give back.
    pub fn put_back(&self, desk: &mut Option<Box<Desk>>) {
        if let Some(desk) = desk.take() {
            self.put_desk(desk);
        }
    }

    /// Memory for what comes of an answer, empty.
    pub(super) fn room(&self) -> BytesMut {
        self.lock().rooms.pop().unwrap_or_else(attempt::room)
    }

    /// Gives it back.
    pub(super) fn put_room(&self, mut room: BytesMut) {
        room.clear();
        let mut spare = self.lock();
        // Of a piece that a part of a body still is in, nothing is left to lend.
        if spare.rooms.len() < MOST_LARGE && room.try_reclaim(attempt::LARGE) && !room.try_reclaim(LARGEST + 1) {
            spare.rooms.push(room);
        }
    }

    /// A pipe, empty; `None` where there are enough, or others need the descriptors.
    pub(super) fn pipe(&self) -> Option<Pipe> {
        if descriptors::are_scarce() {
            return None;
        }
        let place = Some(self.lock().piped.clone());
        // Counted with it.
        place.filter(|place| Arc::strong_count(place) <= MOST_PIPES + 1).and_then(Pipe::new)
    }

    /// Keeps nothing.
    pub fn forget(&self) {
        *self.lock() = Spare::default();
    }

    fn lock(&self) -> MutexGuard<'_, Spare> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_has_so_many_pipes_and_no_more() {
        let memory = Memory::default();
        let mut pipes: Vec<Pipe> = std::iter::from_fn(|| memory.pipe()).take(MOST_PIPES + 1).collect();
        assert_eq!(pipes.len(), MOST_PIPES);
        let mut desk = memory.desk();
        desk.up = pipes.pop();
        memory.put_desk(desk);
        assert!(memory.pipe().is_some());
    }

    #[test]
    fn large_memory_is_kept_for_some_requests_only() {
        let memory = Memory::default();
        for _ in 0..2 * MOST_LARGE {
            memory.put_room(attempt::room());
        }
        assert_eq!(memory.lock().rooms.len(), MOST_LARGE);
        memory.put_room(BytesMut::with_capacity(LARGEST + 1));
        assert_eq!(memory.lock().rooms.len(), MOST_LARGE);
    }
}

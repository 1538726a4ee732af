//! Memory that requests use one after the other: a worker keeps some of it, so that a request takes none of its own.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::BytesMut;

use super::attempt::Room;
use crate::policy::fields::Index;

/// Kept for requests to come. More are at work at once only where clients or backends are slow.
const MOST: usize = 64;
/// A larger piece is not kept.
const LARGEST: usize = 128 * 1024;
/// Of a head and what comes with it.
const HEAD: usize = 4096;

/// Of one request in the lane.
#[derive(Debug, Default)]
pub struct Desk {
    /// Where the fields of the request are.
    pub asked: Index,
    pub(super) room: Room,
    /// Of the request's body, as it comes.
    pub(super) incoming: BytesMut,
    /// Of the request's body, on its way to the backend.
    pub(super) upload: BytesMut,
    /// The beginning of the body, as it was given towards a backend.
    pub(super) given: BytesMut,
    /// Of the answer, on its way to the client.
    pub(super) answer: BytesMut,
}

/// What a worker keeps.
#[derive(Debug, Default)]
pub struct Memory(Mutex<Spare>);

#[derive(Debug, Default)]
struct Spare {
    // Boxed, so that a request takes and gives a pointer.
    #[expect(clippy::vec_box)]
    desks: Vec<Box<Desk>>,
    heads: Vec<BytesMut>,
}

impl Memory {
    /// Memory for a request.
    pub fn desk(&self) -> Box<Desk> {
        self.lock().desks.pop().unwrap_or_default()
    }

    /// Gives it back.
    pub fn put_desk(&self, mut desk: Box<Desk>) {
        let Desk { room, incoming, upload, given, answer, .. } = &mut *desk;
        for piece in [&mut room.ahead, &mut room.out, incoming, upload, given, answer] {
            piece.clear();
            if piece.capacity() > LARGEST {
                *piece = BytesMut::new();
            }
        }
        let mut spare = self.lock();
        if spare.desks.len() < MOST {
            spare.desks.push(desk);
        }
    }

    /// Memory for a head, empty.
    pub fn head(&self) -> BytesMut {
        let mut head = self.lock().heads.pop().unwrap_or_default();
        head.reserve(HEAD);
        head
    }

    /// Gives it back.
    pub fn put_head(&self, mut head: BytesMut) {
        head.clear();
        let mut spare = self.lock();
        if spare.heads.len() < MOST && (1..=LARGEST).contains(&head.capacity()) {
            spare.heads.push(head);
        }
    }

    /// Keeps nothing.
    pub fn forget(&self) {
        *self.lock() = Spare::default();
    }

    fn lock(&self) -> MutexGuard<'_, Spare> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

//! What is followed of each stream.

use std::{collections::VecDeque, time::Instant};

use super::super::pace::Pace;

#[derive(Debug)]
pub(super) struct Stream {
    /// What we may send.
    pub(super) window: i64,
    /// What the client may send.
    pub(super) room: i64,
    /// The request has not ended.
    pub(super) sending: bool,
    /// The answer has begun and not ended.
    pub(super) answered: bool,
    /// A part of it waits for more room than there is.
    pub(super) held: bool,
    pub(super) upload: Pace,
    pub(super) answer: Pace,
    /// Was found too slow.
    pub(super) judged: bool,
}

/// Those that are open. In the order of their numbers, which is that of their beginning, and mostly that in which they end.
#[derive(Debug, Default)]
pub(super) struct Streams(VecDeque<(u32, Stream)>);

impl Streams {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    /// One whose number is higher than all others'.
    pub(super) fn push(&mut self, id: u32, stream: Stream) {
        if self.0.capacity() == 0 {
            // Often it is the only one; by itself the list would take room for four.
            self.0 = VecDeque::with_capacity(1);
        }
        self.0.push_back((id, stream));
    }

    pub(super) fn find(&mut self, id: u32) -> Option<&mut Stream> {
        self.place(id).map(|at| &mut self.0[at].1)
    }

    pub(super) fn has(&self, id: u32) -> bool {
        self.place(id).is_some()
    }

    /// Who is idle keeps room for one.
    pub(super) fn remove(&mut self, id: u32) -> Option<Stream> {
        let (_, removed) = self.0.remove(self.place(id)?)?;
        if self.0.is_empty() && self.0.capacity() > 1 {
            self.0 = VecDeque::new();
        }
        Some(removed)
    }

    /// With their numbers.
    pub(super) fn each(&self) -> impl Iterator<Item = (u32, &Stream)> {
        self.0.iter().map(|(id, stream)| (*id, stream))
    }

    pub(super) fn each_mut(&mut self) -> impl Iterator<Item = (u32, &mut Stream)> {
        self.0.iter_mut().map(|(id, stream)| (*id, stream))
    }

    fn place(&self, id: u32) -> Option<usize> {
        self.0.binary_search_by_key(&id, |(id, _)| *id).ok()
    }
}

impl Stream {
    /// Notes whom it waits for. After an answer has begun, a request may rest: both sides of a call may talk when they
    /// like. `room`: the client may send on the connection.
    pub(super) fn settle(&mut self, room: bool, now: Instant) {
        self.upload.waits(self.sending && !self.answered && self.room > 0 && room, now);
        self.answer.waits(self.starved(), now);
    }

    /// Whether its answer waits for its client.
    pub(super) fn starved(&self) -> bool {
        self.answered && (self.window <= 0 || self.held)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(streams: &Streams) -> Vec<u32> {
        streams.each().map(|(id, _)| id).collect()
    }

    #[test]
    fn streams_are_found_in_whatever_order_they_end() {
        let mut streams = Streams::default();
        for id in [1, 5, 7, 9] {
            let (upload, answer) = (Pace::new(), Pace::new());
            let stream = Stream {
                window: id.into(),
                room: 0,
                sending: true,
                answered: false,
                held: false,
                upload,
                answer,
                judged: false,
            };
            streams.push(id, stream);
        }
        assert!(streams.remove(5).is_some() && streams.remove(5).is_none() && streams.remove(3).is_none());
        assert_eq!(numbers(&streams), [1, 7, 9]);
        assert_eq!(streams.find(7).map(|stream| stream.window), Some(7));
        assert!(streams.has(9) && !streams.has(5));
        for (id, left) in [(9, 2), (1, 1), (7, 0)] {
            assert!(streams.remove(id).is_some());
            assert_eq!(streams.len(), left);
        }
        assert!(streams.is_empty());
    }
}

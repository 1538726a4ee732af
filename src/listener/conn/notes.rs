//! What is noted while bytes move: who is waited for, and whether it has been for too long.

use std::{io, task::Poll};

use super::Conn;
use crate::{policy::framing::Border, types::Reason};

impl Conn {
    /// Tells whoever watches the backend that it is the client who is slow, and sees that it is not too slow. On an
    /// upgraded connection silence has a deadline of its own.
    pub(super) fn note_sent(&mut self, sent: &Poll<io::Result<usize>>) {
        if let Some(keeper) = &self.keeper {
            keeper.info.set_blocked(sent.is_pending());
        }
        match (sent, &mut self.reader) {
            (Poll::Ready(_), None) => {}
            (Poll::Ready(Ok(bytes)), Some(reader)) if *bytes > 0 => reader.moved(*bytes),
            (Poll::Ready(_), Some(reader)) => {
                if reader.ended() {
                    self.fault(Reason::TooSlow);
                }
            }
            (Poll::Pending, reader) => {
                let Some(pacing) = self.pacing.as_ref().filter(|_| self.h2 || self.border != Border::Unbounded) else {
                    return;
                };
                let fd = self.transport.fd();
                reader.get_or_insert_with(|| pacing.reader()).waits(fd);
            }
        }
    }

    /// The client is waited for, to send more of its request's body.
    pub(super) fn note_awaited(&mut self) {
        let Some(pacing) = self.pacing.as_ref().filter(|_| self.border != Border::Unbounded) else { return };
        let (fd, expects) = (self.transport.fd(), self.expects);
        self.sender.get_or_insert_with(|| pacing.sender(expects)).waits(fd);
    }

    /// This is on its way to the client: with `100 Continue` it is asked for its body, with an answer it is not. Other interim
    /// answers say neither.
    pub(super) fn note_said(&mut self, data: &[u8]) {
        let interim = data.starts_with(b"HTTP/1.1 1") && !data.starts_with(b"HTTP/1.1 100 ");
        if self.expects && !interim {
            self.expects = false;
            let fd = self.transport.fd();
            if let Some(sender) = &mut self.sender {
                sender.asked(fd);
            }
        }
    }

    /// So many bytes of its data came: what is around them (sizes, extensions, trailers) pays for nothing.
    pub(super) fn note_received(&mut self, data: usize) {
        if let Some(sender) = &mut self.sender {
            sender.moved(data);
        }
    }

    /// Nothing more comes.
    pub(super) fn note_ended(&mut self) {
        if self.sender.as_mut().is_some_and(|sender| sender.ended()) {
            self.fault(Reason::ClientTimeout);
        }
    }

    /// Whether the connection has ended for how slowly its client takes answers.
    pub(in crate::listener) fn is_given_up(&mut self) -> bool {
        self.reader.as_mut().is_some_and(|reader| reader.ended())
    }

    pub(super) fn fault(&self, fault: Reason) {
        if let Some(keeper) = &self.keeper {
            keeper.info.set_fault(fault);
        }
    }
}

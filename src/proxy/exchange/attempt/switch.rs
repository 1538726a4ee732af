//! An attempt after a switch: bytes both ways, which have no border.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf as _, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    super::{answer::Body, tunnel::Side},
    Attempt, Place, Room,
};

impl<S: AsyncRead + AsyncWrite + Unpin> Attempt<S> {
    /// After a head that is a switch: gives back the memory, of which the attempt has some of its own now only while something that
    /// came behind the head waits.
    pub(in super::super) fn switch(&mut self) -> Box<Room> {
        if let Place::Read(head) = self.place {
            self.room.ahead.advance(head.length);
        }
        self.place = Place::Body(Body::UntilClose);
        let early = Room { ahead: BytesMut::from(&self.room.ahead[..]), ..Room::default() };
        std::mem::replace(&mut self.room, Box::new(early))
    }
}

/// After a switch.
impl<S: AsyncRead + AsyncWrite + Unpin> Side for Attempt<S> {
    fn poll_take(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.room.ahead.is_empty() {
            return Pin::new(&mut self.link).poll_read(cx, into);
        }
        let early = self.room.ahead.split_to(self.room.ahead.len().min(into.remaining()));
        into.put_slice(&early);
        if self.room.ahead.is_empty() {
            self.room.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_give(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.link).poll_write(cx, data)
    }

    fn poll_given(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.link).poll_flush(cx)
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.link).poll_shutdown(cx)
    }
}

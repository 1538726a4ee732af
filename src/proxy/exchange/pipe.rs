//! A way from one socket to another past our memory (splice(2)): the system hands its pages on, and nothing is copied. What
//! goes so is seen by nobody, so it must be known beforehand how much it is.

use std::{
    io::{self, PipeReader, PipeWriter},
    os::fd::AsFd,
    task::{Context, Poll, ready},
};

use nix::fcntl::{FcntlArg, SpliceFFlags, fcntl, splice};
use tokio::{io::Interest, net::TcpStream};

/// Held at once. Bounds what a slow receiver's body holds.
const ROOM: usize = 256 * 1024;
/// The system gives less to those who have many; a smaller pipe is no gain.
const LEAST: usize = 64 * 1024;

/// A pipe of the system's, and how much it holds.
#[derive(Debug)]
pub struct Pipe {
    reader: PipeReader,
    writer: PipeWriter,
    held: usize,
}

impl Pipe {
    /// `None` where the system gives none that is of use.
    pub(super) fn new() -> Option<Self> {
        let (reader, writer) = io::pipe().ok()?;
        _ = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(i32::try_from(ROOM).ok()?));
        let room = fcntl(&writer, FcntlArg::F_GETPIPE_SZ).ok()?;
        usize::try_from(room).is_ok_and(|room| room >= LEAST).then_some(Self { reader, writer, held: 0 })
    }

    pub(super) fn is_empty(&self) -> bool {
        self.held == 0
    }

    /// Takes what has come on `from`, at most so many bytes. The pipe must be empty. 0 bytes are the end of the stream.
    pub fn poll_fill(&mut self, cx: &mut Context<'_>, from: &TcpStream, most: u64) -> Poll<io::Result<usize>> {
        debug_assert!(self.is_empty(), "a full pipe would be taken for a socket that nothing has come on");
        let most = usize::try_from(most).unwrap_or(usize::MAX).min(ROOM);
        loop {
            ready!(from.poll_read_ready(cx))?;
            match from.try_io(Interest::READABLE, || forward(from, &self.writer, most)) {
                Ok(taken) => {
                    self.held += taken;
                    return Poll::Ready(Ok(taken));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Gives `to` of what is held as much as it takes.
    pub fn poll_pour(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<usize>> {
        loop {
            ready!(to.poll_write_ready(cx))?;
            match to.try_io(Interest::WRITABLE, || forward(&self.reader, to, self.held)) {
                Ok(given) => {
                    self.held = self.held.saturating_sub(given);
                    return Poll::Ready(Ok(given));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }
}

fn forward(from: &impl AsFd, to: &impl AsFd, most: usize) -> io::Result<usize> {
    let flags = SpliceFFlags::SPLICE_F_MOVE | SpliceFFlags::SPLICE_F_NONBLOCK;
    Ok(splice(from, None, to, None, most, flags)?)
}

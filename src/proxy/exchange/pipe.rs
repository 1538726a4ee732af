//! A way from one socket to another past our memory (splice(2)): the system hands its pages on, and nothing is copied. What
//! goes so is seen by nobody, so it must be known beforehand how much it is.

use std::{
    io::{self, PipeReader, PipeWriter},
    os::fd::AsFd,
    sync::Arc,
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
    /// Counts it.
    _place: Arc<()>,
}

impl Pipe {
    /// One that `place` counts. `None` where the system gives none that is of use.
    pub(super) fn new(place: Arc<()>) -> Option<Self> {
        let (reader, writer) = io::pipe().ok()?;
        let given = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(i32::try_from(ROOM).ok()?));
        let room = given.or_else(|_| fcntl(&writer, FcntlArg::F_GETPIPE_SZ)).ok()?;
        usize::try_from(room).is_ok_and(|room| room >= LEAST).then_some(Self { reader, writer, held: 0, _place: place })
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

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::TcpListener,
    };

    use super::*;

    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let ours = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connects");
        (ours, listener.accept().await.expect("accepts").0)
    }

    #[tokio::test]
    async fn what_goes_in_comes_out_and_no_more_than_was_asked_for() {
        let ((mut from, ours), (theirs, mut to)) = (pair().await, pair().await);
        from.write_all(b"hello, and more").await.expect("room");
        let mut pipe = Pipe::new(Arc::default()).expect("a pipe");
        let mut taken = 0;
        while taken < 5 {
            taken += poll_fn(|cx| pipe.poll_fill(cx, &ours, 5 - taken as u64)).await.expect("open");
            while !pipe.is_empty() {
                poll_fn(|cx| pipe.poll_pour(cx, &theirs)).await.expect("open");
            }
        }
        let mut came = [0; 5];
        to.read_exact(&mut came).await.expect("five bytes");
        assert_eq!(&came, b"hello");
        drop(from);
        let rest = poll_fn(|cx| pipe.poll_fill(cx, &ours, 100)).await.expect("open");
        assert_eq!((taken, rest), (5, 10));
    }

    #[tokio::test]
    async fn an_end_is_no_bytes_and_nothing_is_waited_for() {
        let (from, ours) = pair().await;
        let mut pipe = Pipe::new(Arc::default()).expect("a pipe");
        let waiting = poll_fn(|cx| Poll::Ready(pipe.poll_fill(cx, &ours, 100).is_pending())).await;
        assert!(waiting && pipe.is_empty());
        drop(from);
        assert_eq!(poll_fn(|cx| pipe.poll_fill(cx, &ours, 100)).await.expect("open"), 0);
    }
}

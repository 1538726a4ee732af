//! What a client's bytes come over: TCP or a unix socket, in plain text or inside TLS.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsRawFd, RawFd},
    pin::Pin,
    task::{Context, Poll, ready},
};

use socket2::SockRef;
use tokio::{
    io::{AsyncRead, AsyncWrite, Interest, ReadBuf},
    net::{TcpStream, UnixStream},
};
use tokio_rustls::server::TlsStream;

use super::proxy_protocol::Replayed;

/// A connected socket.
#[derive(Debug)]
pub(super) enum Socket {
    /// One that was read from before.
    Replayed(Box<Replayed>),
    /// TCP
    Tcp(TcpStream),
    /// A unix socket.
    Unix(UnixStream),
}

/// A connection's byte stream.
#[derive(Debug)]
pub(super) enum Transport {
    /// Given back; see [`super::conn::Kept`].
    Gone,
    /// As it comes.
    Plain(Socket),
    /// Inside TLS.
    Tls(Box<TlsStream<Socket>>),
}

impl Transport {
    /// The descriptor of its socket; -1 where it is gone.
    pub(super) fn fd(&self) -> RawFd {
        match self {
            Self::Gone => -1,
            Self::Plain(socket) => socket.as_raw_fd(),
            Self::Tls(stream) => stream.get_ref().0.as_raw_fd(),
        }
    }
}

impl Socket {
    /// The first byte that is there to be read, left there; `None` at the end of the stream.
    pub(super) async fn peek(&self) -> io::Result<Option<u8>> {
        let mut byte = [MaybeUninit::uninit()];
        let mut peek = |socket: SockRef<'_>| socket.peek(&mut byte);
        let seen = match self {
            Self::Replayed(stream) => return Ok(stream.first()),
            Self::Tcp(stream) => stream.async_io(Interest::READABLE, || peek(stream.into())).await?,
            Self::Unix(stream) => stream.async_io(Interest::READABLE, || peek(stream.into())).await?,
        };
        // SAFETY: a byte that was seen was written.
        Ok((seen > 0).then(|| unsafe { byte[0].assume_init() }))
    }
}

/// As `poll_write_vectored`, where the connection is shut down or closed next: the bytes wait for that end, so that both leave in one
/// segment (`MSG_MORE`, send(2)), which spares the client a wake-up and us its way through the network.
pub(super) fn poll_write_last(
    tcp: &TcpStream,
    cx: &mut Context<'_>,
    parts: &[io::IoSlice<'_>],
) -> Poll<io::Result<usize>> {
    let (socket, flags) = (SockRef::from(tcp), libc::MSG_MORE | libc::MSG_NOSIGNAL);
    let send = || match parts {
        [only] => socket.send_with_flags(only, flags),
        parts => socket.send_vectored_with_flags(parts, flags),
    };
    loop {
        ready!(tcp.poll_write_ready(cx))?;
        match tcp.try_io(Interest::WRITABLE, send) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            sent => return Poll::Ready(sent),
        }
    }
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        match self {
            Self::Replayed(stream) => stream.socket.as_raw_fd(),
            Self::Tcp(stream) => stream.as_raw_fd(),
            Self::Unix(stream) => stream.as_raw_fd(),
        }
    }
}

macro_rules! each {
    ($value:expr, Socket, $inner:ident => $then:expr) => {
        match $value {
            Socket::Replayed($inner) => $then,
            Socket::Tcp($inner) => $then,
            Socket::Unix($inner) => $then,
        }
    };
    ($value:expr, Transport, $inner:ident => $then:expr) => {
        match $value {
            // Mostly, and the shortest way.
            Transport::Plain(Socket::Tcp($inner)) => $then,
            Transport::Plain($inner) => $then,
            Transport::Gone => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
            Transport::Tls($inner) => $then,
        }
    };
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), Socket, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), Socket, stream => Pin::new(stream).poll_write(cx, data))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // What TLS gives is mostly one record, and writev(2) costs 0.2 µs more than send(2).
        if let [only] = parts {
            return self.poll_write(cx, only);
        }
        each!(self.get_mut(), Socket, stream => Pin::new(stream).poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), Socket, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), Socket, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), Transport, stream => Pin::new(stream).poll_read(cx, buf))
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), Transport, stream => Pin::new(stream).poll_write(cx, data))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self.get_mut(), Transport, stream => Pin::new(stream).poll_write_vectored(cx, parts))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), Transport, stream => Pin::new(stream).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self.get_mut(), Transport, stream => Pin::new(stream).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use std::{future::poll_fn, io::Read as _};

    use super::*;

    #[tokio::test]
    async fn last_bytes_leave_with_their_connections_end() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let near = TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connect");
        let (mut far, _) = listener.accept().expect("a connection");
        far.set_nonblocking(true).expect("an open socket");
        let parts = [io::IoSlice::new(b"head "), io::IoSlice::new(b"body")];
        assert_eq!(poll_fn(|cx| poll_write_last(&near, cx, &parts)).await.expect("room"), 9);
        // On loopback what is sent is there when the call returns.
        let nothing = far.read(&mut [0; 16]).expect_err("it waits").kind();
        assert_eq!(nothing, io::ErrorKind::WouldBlock);
        drop(near);
        far.set_nonblocking(false).expect("an open socket");
        let mut all = String::new();
        far.read_to_string(&mut all).expect("its end");
        assert_eq!(all, "head body");
    }
}

//! Our own stream type: what Pingora's `HttpProxy` reads from and writes to.
//!
//! Reads end at the message's border, so pipelined bytes stay here. Writes are collected, so that a head and a small
//! body leave in one system call; what is collected leaves at a flush, or when the proxy turns back to reading.
//! An idle connection owns no buffer.

mod identity;
mod notes;

use std::{
    io,
    net::Shutdown,
    os::fd::RawFd,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll, Waker, ready},
};

use bytes::{Buf, BytesMut};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

pub(super) use super::transport::{Socket, Transport};
use super::{
    pace::{Pace, Pacing},
    socket, transport,
};
use crate::{
    policy::framing::{Border, Taken},
    proxy::{
        Afterwards, ConnInfo,
        exchange::{Pipe, Wire},
    },
    types::Reason,
};

/// Room for what is written first.
const FIRST: usize = 1024;
/// Collected writes leave when they would grow beyond this.
const WRITE_BUFFER: usize = 16 * 1024;
/// Pipelined bytes held while a request runs; beyond this the client waits.
const AHEAD_LIMIT: usize = 64 * 1024;

/// A client's connection as Pingora sees it.
#[derive(Debug)]
pub(super) struct Conn {
    transport: Transport,
    /// Bytes read from the transport and not yet given on.
    ahead: BytesMut,
    /// Bytes written and not yet sent.
    out: BytesMut,
    border: Border,
    closed: bool,
    h2: bool,
    keeper: Option<Keeper>,
    pacing: Option<Pacing>,
    /// Of the client's body, of the answer; `None` until the client is waited for.
    sender: Option<Box<Pace>>,
    reader: Option<Box<Pace>>,
    /// The client may wait to be asked for its body.
    expects: bool,
    /// The system may hold more of its answers than of others'; see [`socket::MOST_UNSENT`].
    flowing: bool,
    /// What was written last waits for the connection's end; see [`Wire::poll_send`].
    parting: bool,
}

/// Where a connection goes that Pingora drops too early: after an answer of our own in place of a backend's it is good
/// for another request, and after an answer before the request's end the client must have time to read it.
#[derive(Debug)]
struct Keeper {
    info: Arc<ConnInfo>,
    /// While Pingora has it.
    kept: Option<Arc<Mutex<Option<Box<Kept>>>>>,
}

/// A connection that Pingora has dropped.
#[derive(Debug)]
pub(super) struct Kept {
    transport: Transport,
    ahead: BytesMut,
    out: BytesMut,
    pacing: Option<Pacing>,
    pub(super) after: Afterwards,
}

impl From<Kept> for Conn {
    fn from(kept: Kept) -> Self {
        let mut conn = Self::new(kept.transport, kept.pacing);
        conn.ahead = kept.ahead;
        conn.out = kept.out;
        conn
    }
}

impl Drop for Conn {
    fn drop(&mut self) {
        if self.parting
            && let Transport::Plain(Socket::Tcp(tcp)) = &self.transport
        {
            // A close on bytes that nobody has read is a reset, with which the system forgets what it has not sent.
            _ = SockRef::from(tcp).shutdown(Shutdown::Write);
        }
        let Some(keeper) = self.keeper.take() else { return };
        let Some(place) = keeper.kept else { return };
        let after = match keeper.info.afterwards() {
            Afterwards::Drop | Afterwards::Close => return,
            Afterwards::NextRequest if self.at_border() && self.out.is_empty() => Afterwards::NextRequest,
            Afterwards::Linger | Afterwards::NextRequest => Afterwards::Linger,
        };
        let transport = std::mem::replace(&mut self.transport, Transport::Gone);
        let (ahead, out, pacing) = (std::mem::take(&mut self.ahead), std::mem::take(&mut self.out), self.pacing.take());
        let kept = Kept { transport, ahead, out, pacing, after };
        *place.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(kept));
    }
}

impl Conn {
    /// `pacing`: what is asked of the client, if anything.
    pub(super) fn new(transport: Transport, pacing: Option<Pacing>) -> Self {
        Self {
            transport,
            ahead: BytesMut::new(),
            out: BytesMut::new(),
            border: Border::END,
            closed: false,
            h2: false,
            keeper: None,
            pacing,
            sender: None,
            reader: None,
            expects: false,
            flowing: false,
            parting: false,
        }
    }

    /// Of requests from now on.
    pub(super) fn set_pacing(&mut self, pacing: Option<Pacing>) {
        self.pacing = pacing;
    }

    /// Whose it is, for what comes to be known of the client.
    pub(super) fn belongs_to(&mut self, info: &Arc<ConnInfo>) {
        if !self.keeper.as_ref().is_some_and(|keeper| Arc::ptr_eq(&keeper.info, info)) {
            self.keeper = Some(Keeper { info: info.clone(), kept: None });
        }
    }

    /// Has the connection given back where Pingora drops it without need.
    pub(super) fn keep(&mut self, kept: &Arc<Mutex<Option<Box<Kept>>>>) {
        if let Some(keeper) = &mut self.keeper {
            keeper.kept = Some(kept.clone());
        }
    }

    /// The descriptor of the socket.
    pub(super) fn fd(&self) -> RawFd {
        self.transport.fd()
    }

    /// Whether nothing of its client has come that was not read, on a socket in plain text. Its end is nothing to be read.
    pub(super) fn is_silent(&mut self) -> bool {
        let mut byte = [0; 1];
        let mut byte = ReadBuf::new(&mut byte);
        let Transport::Plain(socket) = &mut self.transport else { return false };
        _ = Pin::new(socket).poll_read(&mut Context::from_waker(Waker::noop()), &mut byte);
        self.ahead.is_empty() && byte.filled().is_empty()
    }

    /// Ends the connection in order: in TLS, the client learns that nothing was cut off.
    pub(super) async fn farewell(&mut self) {
        if matches!(self.transport, Transport::Tls(_)) {
            // Once: a client that does not read must not hold the connection.
            let mut this = Pin::new(self);
            std::future::poll_fn(|cx| {
                let _ = this.as_mut().poll_shutdown(cx);
                Poll::Ready(())
            })
            .await;
        }
    }

    /// Bytes of the next request that are here already.
    pub(super) fn ahead(&mut self) -> &mut BytesMut {
        &mut self.ahead
    }

    /// Gives the stream to a request, of which `border` is left; what came before has been taken out of
    /// [`Conn::ahead`]. `expects`: the client may wait to be asked for the rest.
    pub(super) fn begin(&mut self, border: Border, expects: bool) {
        self.border = border;
        self.expects = expects;
        self.sender = None;
        self.reader = None;
        if std::mem::take(&mut self.flowing)
            && let Transport::Plain(Socket::Tcp(tcp)) = &self.transport
        {
            socket::keep_unsent(tcp, socket::UNSENT);
        }
    }

    /// Whether the last request was read to its end, so that the next may begin.
    pub(super) fn at_border(&self) -> bool {
        self.border.reached() && !self.closed
    }

    /// Gives the stream to an HTTP/2 session, for good.
    pub(super) fn begin_h2(&mut self) {
        self.border = Border::Unbounded;
        self.h2 = true;
    }

    /// Reads what has arrived into [`Conn::ahead`], which `memory` gives room where it has none. 0 bytes are the end of the
    /// stream.
    pub(super) fn poll_fill(
        &mut self,
        cx: &mut Context<'_>,
        memory: impl FnOnce() -> BytesMut,
    ) -> Poll<io::Result<usize>> {
        let mut scratch = [std::mem::MaybeUninit::uninit(); 4096];
        let mut scratch = ReadBuf::uninit(&mut scratch);
        ready!(Pin::new(&mut self.transport).poll_read(cx, &mut scratch))?;
        let read = scratch.filled();
        if self.ahead.capacity() == 0 && !read.is_empty() {
            self.ahead = memory();
        }
        self.ahead.extend_from_slice(read);
        if read.is_empty() {
            self.closed = true;
        }
        Poll::Ready(Ok(read.len()))
    }

    /// Between two messages: nothing is given on, but the end of the stream is.
    fn poll_idle(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        loop {
            if self.closed {
                return Poll::Ready(Ok(()));
            }
            if self.ahead.len() >= AHEAD_LIMIT {
                return Poll::Pending;
            }
            ready!(self.poll_fill(cx, BytesMut::new))?;
        }
    }

    /// What must not go on of the bytes that were `taken`.
    fn objection(&self, taken: Taken) -> Option<Reason> {
        let most = self.keeper.as_ref().and_then(|keeper| keeper.info.limits().max_body_size);
        match self.border {
            Border::Malformed => Some(Reason::BadRequest),
            // Larger than all of the body may be.
            _ if most.is_some_and(|most| taken.largest > most.0) => Some(Reason::BodyTooLarge),
            _ => None,
        }
    }

    /// The body is not one, or none that is taken; says so to who will have to answer.
    fn refused(&mut self, reason: Reason) -> Poll<io::Result<()>> {
        self.fault(reason);
        self.closed = true;
        Poll::Ready(Err(io::ErrorKind::InvalidData.into()))
    }

    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let sent = Pin::new(&mut self.transport).poll_write(cx, &self.out);
            self.note_sent(&sent);
            let sent = ready!(sent)?;
            if sent == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(sent);
        }
        self.out = BytesMut::new();
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Conn {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = &mut *self;
        if !this.out.is_empty() {
            // The proxy has nothing more to write for now; what it wrote must not wait for that. A failure shows at
            // the next write.
            let _ = this.poll_send(cx);
        }
        let room = this.border.room().min(buf.remaining());
        if this.border.reached() {
            return this.poll_idle(cx);
        }
        if this.ahead.is_empty() {
            let mut limited = buf.take(room);
            let before = limited.filled().len();
            let received = Pin::new(&mut this.transport).poll_read(cx, &mut limited);
            let filled = limited.filled().len();
            match received {
                Poll::Pending => {
                    this.note_awaited();
                    return Poll::Pending;
                }
                Poll::Ready(Err(error)) => {
                    this.note_ended();
                    return Poll::Ready(Err(error));
                }
                Poll::Ready(Ok(())) if filled == before => {
                    this.note_ended();
                    this.closed = true;
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Ok(())) => {}
            }
            let read = &limited.filled()[before..];
            let taken @ Taken { all: ours, data, .. } = this.border.take(read);
            this.note_received(data);
            if let Some(reason) = this.objection(taken) {
                return this.refused(reason);
            }
            this.ahead.extend_from_slice(&read[ours..]);
            // SAFETY: `limited` is the first part of `buf`'s unfilled room, and `filled` bytes of it were written.
            unsafe { buf.assume_init(filled) };
            buf.advance(before + ours);
            return Poll::Ready(Ok(()));
        }
        let offered = room.min(this.ahead.len());
        let taken @ Taken { all: ours, .. } = this.border.take(&this.ahead[..offered]);
        if let Some(reason) = this.objection(taken) {
            return this.refused(reason);
        }
        buf.put_slice(&this.ahead[..ours]);
        this.ahead.advance(ours);
        if this.ahead.is_empty() {
            this.ahead = BytesMut::new();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Conn {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let this = &mut *self;
        this.note_said(data);
        if this.out.len() + data.len() <= WRITE_BUFFER {
            if this.out.capacity() == 0 {
                // Mostly a head, and a body comes after it.
                this.out.reserve(data.len().max(FIRST));
            }
            this.out.extend_from_slice(data);
            return Poll::Ready(Ok(data.len()));
        }
        if this.out.is_empty() {
            let sent = Pin::new(&mut this.transport).poll_write(cx, data);
            this.note_sent(&sent);
            return sent;
        }
        // Both in one call; what is left of the collected part stays collected.
        let parts = [io::IoSlice::new(&this.out), io::IoSlice::new(data)];
        let sent = Pin::new(&mut this.transport).poll_write_vectored(cx, &parts);
        this.note_sent(&sent);
        let sent = ready!(sent)?;
        let collected = sent.min(this.out.len());
        this.out.advance(collected);
        match sent - collected {
            0 if !data.is_empty() => {
                ready!(this.poll_send(cx))?;
                Pin::new(&mut this.transport).poll_write(cx, data)
            }
            taken => Poll::Ready(Ok(taken)),
        }
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        self.poll_sent(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_send(cx))?;
        self.parting = false;
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }
}

/// Past [`Conn`]'s own collecting: whoever writes so collects itself.
impl Wire for Conn {
    fn poll_send(&mut self, cx: &mut Context<'_>, parts: &[io::IoSlice<'_>], last: bool) -> Poll<io::Result<usize>> {
        let sent = match (parts, &self.transport) {
            (parts, Transport::Plain(Socket::Tcp(tcp))) if last => {
                self.parting = true;
                transport::poll_write_last(tcp, cx, parts)
            }
            ([only], _) => Pin::new(&mut self.transport).poll_write(cx, only),
            (parts, _) => Pin::new(&mut self.transport).poll_write_vectored(cx, parts),
        };
        self.note_sent(&sent);
        sent
    }

    fn unseen(&self) -> u64 {
        match self.border {
            Border::Counted(left) if self.ahead.is_empty() && self.takes_pipes() => left,
            _ => 0,
        }
    }

    fn poll_pipe(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        let (Border::Counted(left), Transport::Plain(Socket::Tcp(tcp))) = (&mut self.border, &self.transport) else {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        };
        let taken = pipe.poll_fill(cx, tcp, *left);
        match &taken {
            Poll::Pending => self.note_awaited(),
            Poll::Ready(Ok(taken @ 1..)) => {
                *left = left.saturating_sub(*taken as u64);
                self.note_received(*taken);
            }
            Poll::Ready(ended) => {
                self.closed |= ended.is_ok();
                self.note_ended();
            }
        }
        taken
    }

    fn takes_pipes(&self) -> bool {
        matches!(self.transport, Transport::Plain(Socket::Tcp(_)))
    }

    fn poll_pour(&mut self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        let Transport::Plain(Socket::Tcp(tcp)) = &self.transport else {
            return Poll::Ready(Err(io::ErrorKind::Unsupported.into()));
        };
        if !std::mem::replace(&mut self.flowing, true) {
            socket::keep_unsent(tcp, socket::MOST_UNSENT);
        }
        let sent = pipe.poll_pour(cx, tcp);
        self.note_sent(&sent);
        sent
    }

    fn poll_sent(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = Pin::new(&mut self.transport).poll_flush(cx);
        // However much it was: TLS takes a part whole, and it is here that its client is waited for.
        self.note_sent(&match &sent {
            Poll::Pending => Poll::Pending,
            Poll::Ready(sent) => Poll::Ready(Ok(usize::from(sent.is_ok()))),
        });
        sent
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.transport).poll_shutdown(cx)
    }

    fn poll_stirs(&self, cx: &mut Context<'_>) -> Poll<()> {
        match &self.transport {
            // An error shows at the reading.
            Transport::Plain(Socket::Tcp(tcp)) => tcp.poll_read_ready(cx).map(|_| ()),
            _ => Poll::Ready(()),
        }
    }

    fn switch(&mut self) {
        self.begin(Border::Unbounded, false);
    }

    fn rest(&mut self) {
        self.sender = None;
    }

    fn is_at_border(&self) -> bool {
        self.at_border()
    }

    fn descriptor(&self) -> RawFd {
        self.fd()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        future::poll_fn,
        io::{IoSlice, Read as _, Write as _},
    };

    use super::*;

    #[tokio::test]
    async fn a_last_answer_arrives_whatever_its_client_still_sends() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let near = tokio::net::TcpStream::connect(listener.local_addr().expect("bound")).await.expect("connect");
        let (mut far, _) = listener.accept().expect("a connection");
        // Nobody reads it, so the close is a reset.
        far.write_all(b"\r\n").expect("an open connection");
        let mut conn = Conn::new(Transport::Plain(Socket::Tcp(near)), None);
        let sent = poll_fn(|cx| Wire::poll_send(&mut conn, cx, &[IoSlice::new(b"an answer")], true)).await;
        assert_eq!(sent.expect("room"), 9);
        drop(conn);
        let mut answer = [0; 9];
        far.read_exact(&mut answer).expect("an answer");
        assert_eq!(&answer, b"an answer");
    }
}

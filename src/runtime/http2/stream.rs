//! A request on its stream: bytes of HTTP/1.1 in, frames out; and back.

use std::{
    fmt::Write as _,
    future::Future as _,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::{
    RecvStream, SendStream,
    client::{ResponseFuture, SendRequest},
};
use http::{Method, StatusCode, header, response};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{
    Place,
    fault::{bad, failed},
    heads::{request, write_head, write_trailers},
};
use crate::policy::framing::{self, Border};

/// A request on its stream.
#[derive(Debug)]
pub struct Stream {
    requests: SendRequest<Bytes>,
    https: bool,
    lengths: bool,
    /// The answer can have no body.
    bodiless: bool,
    sending: Sending,
    receiving: Receiving,
    /// Heads and framing that were not taken yet; goes before `data`.
    out: BytesMut,
    /// Of the body.
    data: Bytes,
    /// It is a chunk, and the end of that goes behind it.
    chunk: bool,
    /// The last byte of a body with a length, until its stream has ended.
    held: Bytes,
    place: Place,
}

#[derive(Debug)]
enum Sending {
    /// What has come of the head.
    Head(BytesMut),
    Body(SendStream<Bytes>, Border),
    /// All was given. Kept, as dropping it early is a reset.
    Done(#[expect(dead_code, reason = "held")] SendStream<Bytes>),
    Failed,
}

#[derive(Debug)]
enum Receiving {
    /// No request was made.
    Nothing,
    Head(ResponseFuture),
    /// The head waits in `out`'s place until it is known that no body comes.
    Bodiless(RecvStream, BytesMut),
    Chunks(RecvStream),
    /// So much is still to come.
    Counted(RecvStream, u64),
    Done,
    Failed(Option<io::Error>),
}

impl Stream {
    pub(super) fn new(requests: SendRequest<Bytes>, https: bool, lengths: bool, place: Place) -> Self {
        Self {
            requests,
            https,
            lengths,
            bodiless: false,
            sending: Sending::Head(BytesMut::new()),
            receiving: Receiving::Nothing,
            out: BytesMut::new(),
            data: Bytes::new(),
            chunk: false,
            held: Bytes::new(),
            place,
        }
    }

    /// Its answer was waited for in vain.
    pub fn late(&self) {
        self.place.late();
    }

    /// Opens the stream with the request whose head this is.
    fn open(&mut self, head: &[u8]) -> io::Result<()> {
        let (request, border) = request(head, self.https)?;
        self.bodiless = *request.method() == Method::HEAD;
        let (answer, sending) = self.requests.send_request(request, border.reached()).map_err(failed)?;
        self.place.begins(answer.stream_id().as_u32());
        self.receiving = Receiving::Head(answer);
        self.sending = if border.reached() { Sending::Done(sending) } else { Sending::Body(sending, border) };
        Ok(())
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match &mut self.sending {
            Sending::Head(head) => {
                let before = head.len();
                head.extend_from_slice(bytes);
                let Some(end) = head.windows(4).position(|end| end == b"\r\n\r\n") else {
                    return Poll::Ready(Ok(bytes.len()));
                };
                let head = head.split_to(end + 4);
                if let Err(error) = self.open(&head) {
                    (self.sending, self.receiving) = (Sending::Failed, Receiving::Failed(Some(error)));
                    return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
                }
                Poll::Ready(Ok(head.len() - before))
            }
            Sending::Body(..) => self.poll_body(cx, bytes),
            Sending::Done(_) | Sending::Failed => Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
        }
    }

    /// Of the request's body, as HTTP/1.1 has it.
    fn poll_body(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let Sending::Body(sending, border) = &mut self.sending else { return Poll::Ready(Ok(0)) };
        let mut next = *border;
        let (mut taken, data) = next.part(bytes);
        let mut part = Bytes::new();
        if data && taken > 0 {
            sending.reserve_capacity(taken);
            while sending.capacity() == 0 {
                match ready!(sending.poll_capacity(cx)) {
                    Some(room) => room.map_err(failed)?,
                    None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                };
            }
            taken = taken.min(sending.capacity());
            part = Bytes::copy_from_slice(&bytes[..taken]);
            next = *border;
            next.advance(&part);
        }
        if next == Border::Malformed {
            return Poll::Ready(Err(io::ErrorKind::InvalidInput.into()));
        }
        *border = next;
        let end = next.reached();
        if !part.is_empty() || end {
            sending.send_data(part, end).map_err(failed)?;
        }
        if end && let Sending::Body(sending, _) = std::mem::replace(&mut self.sending, Sending::Failed) {
            self.sending = Sending::Done(sending);
        }
        Poll::Ready(Ok(taken))
    }

    /// What comes next. Returns false at the end.
    fn poll_more(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<bool>> {
        match &mut self.receiving {
            Receiving::Nothing => Poll::Pending,
            Receiving::Head(answer) => {
                if let Poll::Ready(Some(interim)) = answer.poll_informational(cx) {
                    let interim = interim.map_err(failed)?.into_parts().0;
                    write_head(&interim, &mut self.out)?;
                    self.out.put_slice(b"\r\n");
                    return Poll::Ready(Ok(true));
                }
                let (head, body) = ready!(Pin::new(answer).poll(cx)).map_err(failed)?.into_parts();
                self.begin(&head, body)?;
                Poll::Ready(Ok(true))
            }
            Receiving::Bodiless(body, head) => {
                while let Some(part) = ready!(body.poll_data(cx)) {
                    if !part.map_err(failed)?.is_empty() {
                        return Poll::Ready(Err(bad("a body where there can be none")));
                    }
                }
                self.out = std::mem::take(head);
                self.receiving = Receiving::Done;
                Poll::Ready(Ok(true))
            }
            Receiving::Chunks(body) => {
                if let Some(part) = ready!(body.poll_data(cx)) {
                    self.data = part.map_err(failed)?;
                    self.chunk = !self.data.is_empty();
                    if self.chunk {
                        write!(self.out, "{:x}\r\n", self.data.len()).map_err(io::Error::other)?;
                    }
                    return Poll::Ready(Ok(true));
                }
                let fields = ready!(body.poll_trailers(cx)).map_err(failed)?;
                self.out.put_slice(b"0\r\n");
                write_trailers(&fields.unwrap_or_default(), &mut self.out);
                self.receiving = Receiving::Done;
                Poll::Ready(Ok(true))
            }
            Receiving::Counted(body, left) => {
                if let Some(part) = ready!(body.poll_data(cx)) {
                    let mut part = part.map_err(failed)?;
                    *left = left.saturating_sub(part.len() as u64);
                    if *left == 0 && !part.is_empty() && !body.is_end_stream() {
                        self.held = part.split_off(part.len() - 1);
                    }
                    self.data = part;
                    return Poll::Ready(Ok(true));
                }
                if *left > 0 {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
                ready!(body.poll_trailers(cx)).map_err(failed)?;
                self.data = std::mem::take(&mut self.held);
                self.receiving = Receiving::Done;
                Poll::Ready(Ok(true))
            }
            Receiving::Done => Poll::Ready(Ok(false)),
            Receiving::Failed(error) => {
                Poll::Ready(Err(error.take().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into())))
            }
        }
    }

    /// The answer itself begins.
    fn begin(&mut self, head: &response::Parts, body: RecvStream) -> io::Result<()> {
        let length = head.headers.get(header::CONTENT_LENGTH).map(|length| {
            // The crate has held it to what comes.
            framing::length(length.as_bytes()).ok_or_else(|| bad("a length that is none"))
        });
        let length = length.transpose()?;
        let mut out = BytesMut::new();
        write_head(head, &mut out)?;
        let nothing = matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || (length == Some(0) && !body.is_end_stream());
        if self.bodiless || nothing {
            out.put_slice(b"\r\n");
            self.receiving = Receiving::Bodiless(body, out);
            return Ok(());
        }
        self.receiving = match length {
            _ if body.is_end_stream() => {
                if length.is_none() {
                    out.put_slice(b"content-length: 0\r\n");
                }
                out.put_slice(b"\r\n");
                Receiving::Done
            }
            Some(length) if !self.lengths => {
                out.put_slice(b"\r\n");
                Receiving::Counted(body, length)
            }
            _ => {
                out.put_slice(b"transfer-encoding: chunked\r\n\r\n");
                Receiving::Chunks(body)
            }
        };
        self.out = out;
        Ok(())
    }

    /// Gives what is here.
    fn give(&mut self, to: &mut ReadBuf<'_>) {
        while !self.is_given() && to.remaining() > 0 {
            if !self.out.is_empty() {
                let framing = self.out.split_to(self.out.len().min(to.remaining()));
                to.put_slice(&framing);
                continue;
            }
            let data = self.data.split_to(self.data.len().min(to.remaining()));
            to.put_slice(&data);
            if let Receiving::Chunks(body) | Receiving::Counted(body, _) = &mut self.receiving {
                // It fails where the stream has ended, and then nobody sends.
                _ = body.flow_control().release_capacity(data.len());
            }
            if self.data.is_empty() && std::mem::take(&mut self.chunk) {
                self.out.put_slice(b"\r\n");
            }
        }
    }

    fn is_given(&self) -> bool {
        self.out.is_empty() && self.data.is_empty()
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = to.filled().len();
        loop {
            self.give(to);
            if to.remaining() == 0 {
                return Poll::Ready(Ok(()));
            }
            match self.poll_more(cx) {
                Poll::Ready(Ok(true)) => {}
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(())),
                more if to.filled().len() > before => {
                    if let Poll::Ready(Err(error)) = more {
                        self.receiving = Receiving::Failed(Some(error));
                    }
                    return Poll::Ready(Ok(()));
                }
                Poll::Ready(Err(error)) => {
                    self.receiving = Receiving::Failed(None);
                    return Poll::Ready(Err(error));
                }
                Poll::Pending => return Poll::Pending,
            }
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, bytes)
    }

    /// What was given leaves by itself.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

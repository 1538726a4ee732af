//! Takes DATA frames without data out of what a backend sends, unless they end their stream. RFC 9113 §6.1 allows them, and the h2
//! crate ends a connection at the hundredth, however long it lasts and whosever they are. And ends one that says heads without end.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, ready},
};

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::{awaited::Awaited, fault::bad};

const HEAD: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// A connection whose reads are sifted.
#[derive(Debug)]
pub(super) struct Sieve<T> {
    io: T,
    /// Of a frame's payload, so much has not passed.
    left: usize,
    /// The beginning of a frame's head.
    head: [u8; HEAD],
    have: usize,
    /// What has passed, and there was too little room for.
    passed: BytesMut,
    /// Counts what has come, passed or not.
    heard: Arc<AtomicUsize>,
    awaited: Arc<Awaited>,
}

impl<T> Sieve<T> {
    pub(super) fn new(io: T, heard: Arc<AtomicUsize>, awaited: Arc<Awaited>) -> Self {
        Self { io, left: 0, head: [0; HEAD], have: 0, passed: BytesMut::new(), heard, awaited }
    }

    /// Moves what passes to the beginning of `bytes`. Returns how much it is; a head that is not whole is kept.
    ///
    /// # Errors
    /// There are more heads on a stream than any answer has.
    fn pass(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let (mut at, mut end) = (0, 0);
        while at < bytes.len() {
            let mut take = self.left.min(bytes.len() - at);
            if self.left == 0 {
                let Some(head) = bytes.get(at..at + HEAD) else {
                    let rest = &bytes[at..];
                    self.head[..rest.len()].copy_from_slice(rest);
                    self.have = rest.len();
                    break;
                };
                self.left = HEAD + usize::from(head[0]) * 65536 + usize::from(head[1]) * 256 + usize::from(head[2]);
                if self.left == HEAD && head[3] == DATA && head[4] & END_STREAM == 0 {
                    (self.left, at) = (0, at + HEAD);
                    continue;
                }
                let stream = u32::from_be_bytes([head[5] & 0x7f, head[6], head[7], head[8]]);
                if head[3] == HEADERS && self.awaited.is_too_many(stream) {
                    return Err(bad("interim answers without end"));
                }
                take = self.left.min(bytes.len() - at);
            }
            if at != end {
                bytes.copy_within(at..at + take, end);
            }
            (self.left, at, end) = (self.left - take, at + take, end + take);
        }
        Ok(end)
    }
}

impl<T: AsyncRead + Unpin> Sieve<T> {
    /// Reads what passes into `to`, where there is more room than for a head.
    fn poll_pass(&mut self, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = to.filled().len();
        loop {
            to.put_slice(&self.head[..self.have]);
            let begun = to.filled().len();
            let read = Pin::new(&mut self.io).poll_read(cx, to);
            let came = to.filled().len() - begun;
            if came == 0 || !matches!(read, Poll::Ready(Ok(()))) {
                to.set_filled(before);
                ready!(read)?;
                // An end within a head is no end of an answer.
                let cut = std::mem::take(&mut self.have) > 0;
                return Poll::Ready(if cut { Err(io::ErrorKind::UnexpectedEof.into()) } else { Ok(()) });
            }
            self.heard.fetch_add(1, Ordering::Relaxed);
            self.have = 0;
            let passed = self.pass(&mut to.filled_mut()[before..]);
            to.set_filled(before + *passed.as_ref().unwrap_or(&0));
            let passed = passed?;
            if passed > 0 {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Sieve<T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, to: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.passed.is_empty() && to.remaining() > HEAD {
            return self.poll_pass(cx, to);
        }
        if self.passed.is_empty() {
            let mut room = [0; 512];
            let mut room = ReadBuf::new(&mut room);
            ready!(self.poll_pass(cx, &mut room))?;
            self.passed.extend_from_slice(room.filled());
        }
        let length = self.passed.len().min(to.remaining());
        to.put_slice(&self.passed.split_to(length));
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Sieve<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, parts)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = u8::try_from(payload.len()).expect("short");
        [&[0, 0, length, kind, flags, 0, 0, 0, 1], payload].concat()
    }

    proptest! {
        #[test]
        fn what_has_data_or_ends_a_stream_passes_however_it_is_cut(
            frames in proptest::collection::vec((0u8..3, 0u8..2, 0usize..20), 0..20),
            cuts in proptest::collection::vec(1usize..30, 1..40),
            room in 1usize..32,
            lost in 0usize..40,
        ) {
            let of = |(kind, flags, length): &(u8, u8, usize)| frame(*kind, *flags, &vec![b'x'; *length]);
            let all: Vec<u8> = frames.iter().flat_map(of).collect();
            let stays = |(kind, flags, length): &&(u8, u8, usize)| *kind != DATA || *flags != 0 || *length > 0;
            let passes: Vec<u8> = frames.iter().filter(stays).flat_map(of).collect();
            let all = &all[..all.len().saturating_sub(lost)];
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
            let (read, whole) = runtime.block_on(async {
                let (ours, mut theirs) = tokio::io::duplex(64);
                let writes = async {
                    let (mut rest, mut cuts) = (all, cuts.iter().cycle());
                    while !rest.is_empty() {
                        let (part, more) = rest.split_at(rest.len().min(*cuts.next().expect("endless")));
                        theirs.write_all(part).await.expect("room");
                        tokio::task::yield_now().await;
                        rest = more;
                    }
                    drop(theirs);
                };
                let reads = async {
                    let (mut sieve, mut read) = (Sieve::new(ours, Arc::default(), Arc::default()), Vec::new());
                    let mut part = vec![0; room];
                    loop {
                        match sieve.read(&mut part).await {
                            Ok(0) => {
                                // It stays so.
                                assert_eq!(sieve.read(&mut part).await.expect("the end"), 0);
                                return (read, true);
                            }
                            Ok(more) => read.extend_from_slice(&part[..more]),
                            Err(_) => {
                                assert_eq!(sieve.read(&mut part).await.expect("the end"), 0);
                                return (read, false);
                            }
                        }
                    }
                };
                tokio::join!(reads, writes).0
            });
            prop_assert!(passes.starts_with(&read));
            prop_assert!(lost > 0 || (whole && read == passes));
        }
    }
}

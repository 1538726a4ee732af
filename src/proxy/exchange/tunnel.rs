//! A WebSocket after its handshake: bytes both ways between a client and a backend, as they are, until both sides have ended or
//! neither said anything for `websocket_idle`. The end of one side is told to the other, which may go on, as long as it does not
//! rest for long. A side that takes nothing is not read for; memory is held only for what it has not taken.
//!
//! Whoever serves a client asks for the upgrade by `Attempt::speaking`, with a head by `edit::Client::write_upgrade`. When the
//! attempt comes to a head that is a switch, it calls `watch::upgraded` and passes the head on in its own way, takes the attempt's
//! memory back by `Attempt::switch`, and calls [`carry`] with the client as a [`Side`]. `websocket` does so for the lane.

use std::{
    future::poll_fn,
    io,
    mem::MaybeUninit,
    task::{Context, Poll, Waker},
};

use bytes::{Buf as _, BytesMut};
use pingora_core::{Error, ErrorType, Result};
use tokio::io::ReadBuf;

use super::super::{ctx::RequestCtx, watch};

/// Read at once; of what was read, at most as much waits for a side that does not take it.
const PART: usize = 16 * 1024;
/// Parts that go one way before it is the other's turn.
const TURN: usize = 8;

/// One end of a tunnel.
pub(super) trait Side {
    /// Reads what comes; nothing is the end.
    fn poll_take(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>>;

    /// Writes; returns how much was taken.
    fn poll_give(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>>;

    /// What was taken leaves.
    fn poll_given(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;

    /// Says that nothing more comes. The other way stays open.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>>;
}

/// Both ways of a tunnel, as far as they are.
#[derive(Debug, Default)]
pub(super) struct Carried {
    /// From the client.
    pub(super) up: Flow,
    /// To the client.
    pub(super) down: Flow,
    /// One of them is over.
    half: bool,
}

/// One way.
#[derive(Debug, Default)]
pub(super) struct Flow {
    /// Bytes that came.
    pub(super) bytes: u64,
    /// Of them, those that were not taken.
    held: BytesMut,
    /// Something was taken that may not have left.
    behind: bool,
    /// Something came or went.
    moved: bool,
    /// Nothing more comes.
    pub(super) ended: bool,
    /// And that was said, or there is nobody to say it to.
    told: bool,
}

/// A side that failed.
enum Lost {
    /// The one that was read.
    From(io::Error),
    /// The one that was written to.
    To(io::Error),
}

/// Whether a way is to be asked again at once.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Went {
    On,
    Waits,
}

/// Carries what comes until it is over.
///
/// # Errors
/// A side failed, or both were silent; the request's context says which.
pub(super) async fn carry(
    ctx: &mut RequestCtx,
    client: &mut impl Side,
    backend: &mut impl Side,
    carried: &mut Carried,
) -> Result<()> {
    let mut waker = Waker::noop().clone();
    poll_fn(|cx| {
        if !waker.will_wake(cx.waker()) {
            // Who is waited for may be either side, and one that is shut down does not wake who waits for the other.
            watch::wake_at_silence(ctx, cx);
            waker.clone_from(cx.waker());
        }
        if watch::is_over(ctx) {
            return Poll::Ready(Err(Error::explain(ErrorType::ReadTimedout, "on a WebSocket").into_up()));
        }
        carried.poll(cx, ctx, client, backend)
    })
    .await
}

impl Carried {
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        ctx: &mut RequestCtx,
        client: &mut impl Side,
        backend: &mut impl Side,
    ) -> Poll<Result<()>> {
        loop {
            let up = match self.up.poll(cx, client, backend) {
                Ok(went) => went,
                Err(Lost::From(_)) if self.down.told => {
                    // Both have said that they end; how a client does it then is its own affair.
                    self.up.end();
                    Went::On
                }
                Err(Lost::From(error)) => return Poll::Ready(Err(lost(error, "a WebSocket's client").into_down())),
                // It has said that it ends, and then did: what the client says now reaches nobody.
                Err(Lost::To(error)) if error.kind() == io::ErrorKind::BrokenPipe => {
                    self.up.end();
                    Went::On
                }
                Err(Lost::To(error)) => return Poll::Ready(Err(lost(error, "a WebSocket's backend").into_up())),
            };
            let down = match self.down.poll(cx, backend, client) {
                Ok(went) => went,
                Err(Lost::From(error)) => return Poll::Ready(Err(lost(error, "a WebSocket's backend").into_up())),
                Err(Lost::To(error)) => return Poll::Ready(Err(lost(error, "a WebSocket's client").into_down())),
            };
            if self.up.told && self.down.told {
                return Poll::Ready(Ok(()));
            }
            if (up, down) == (Went::Waits, Went::Waits) {
                break;
            }
        }
        let moved = [&mut self.up, &mut self.down].map(|way| std::mem::take(&mut way.moved));
        if !self.half && (self.up.told || self.down.told) {
            self.half = true;
            watch::half_closed(ctx);
        } else if moved.contains(&true) {
            watch::carried(ctx);
        }
        Poll::Pending
    }
}

impl Flow {
    fn poll(&mut self, cx: &mut Context<'_>, from: &mut impl Side, to: &mut impl Side) -> Result<Went, Lost> {
        let mut room = [const { MaybeUninit::uninit() }; PART];
        for _ in 0..TURN {
            if self.told {
                return Ok(Went::Waits);
            }
            if self.poll_held(cx, to).map_err(Lost::To)?.is_pending() {
                return Ok(Went::Waits);
            }
            if self.ended {
                // A failure shows in the other way.
                self.told = to.poll_end(cx).is_ready();
                return Ok(Went::Waits);
            }
            let mut part = ReadBuf::uninit(&mut room);
            match from.poll_take(cx, &mut part) {
                Poll::Pending => return Ok(Went::Waits),
                Poll::Ready(taken) => taken.map_err(Lost::From)?,
            }
            let data = part.filled();
            self.moved = true;
            self.ended = data.is_empty();
            self.bytes += data.len() as u64;
            if !self.ended {
                self.give(cx, data, to).map_err(Lost::To)?;
            }
        }
        Ok(Went::On)
    }

    /// Gives on what has just come, past any memory but the system's where that takes it.
    fn give(&mut self, cx: &mut Context<'_>, data: &[u8], to: &mut impl Side) -> io::Result<()> {
        let given = match to.poll_give(cx, data)? {
            Poll::Pending => 0,
            Poll::Ready(given) => given,
        };
        self.behind |= given > 0;
        self.held.extend_from_slice(data.get(given..).unwrap_or_default());
        Ok(())
    }

    /// Gives on what was not taken before.
    fn poll_held(&mut self, cx: &mut Context<'_>, to: &mut impl Side) -> io::Result<Poll<()>> {
        while !self.held.is_empty() {
            match to.poll_give(cx, &self.held)? {
                Poll::Pending => return Ok(Poll::Pending),
                Poll::Ready(0) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(given) => self.held.advance(given),
            }
            (self.behind, self.moved) = (true, true);
            if self.held.is_empty() {
                self.held = BytesMut::new();
            }
        }
        if self.behind {
            if to.poll_given(cx)?.is_pending() {
                return Ok(Poll::Pending);
            }
            self.behind = false;
        }
        Ok(Poll::Ready(()))
    }

    /// What still comes goes nowhere, and nobody is told.
    fn end(&mut self) {
        self.held = BytesMut::new();
        (self.told, self.behind) = (true, false);
    }
}

fn lost(error: io::Error, whose: &'static str) -> Box<Error> {
    Error::because(ErrorType::ConnectionClosed, whose, error)
}

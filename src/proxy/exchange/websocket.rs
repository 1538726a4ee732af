//! A WebSocket of a client in the lane: what is kept of its request until it is over, and no more than that.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
    time::Instant,
};

use http::Method;
use tokio::io::ReadBuf;

use super::{
    super::{
        admit::WRITE_TIMEOUT,
        ctx::{Afterwards, ConnInfo, RequestCtx},
        finish,
        kit::Kit,
        retry,
    },
    asked::{Asked, Wanted, request_line},
    attempt::Attempt,
    patience::Patience,
    tunnel::{self, Carried, Side},
    wire::Wire,
};
use crate::{
    policy::fields::{Index, Raw},
    runtime::{deadlines::How, line::Line},
};

/// What came of a request.
pub enum Served {
    /// It is over; what becomes of the client's connection, and when all of the answer had left, where that is known.
    Over(Afterwards, Option<Instant>),
    /// It has become a WebSocket.
    Switched(Box<WebSocket>),
}

/// A WebSocket whose handshake is done.
pub struct WebSocket {
    ctx: RequestCtx,
    attempt: Attempt<Line>,
    /// The head of the request, for the log.
    head: Box<[u8]>,
    index: Index,
}

impl WebSocket {
    /// After `attempt` has switched in answer to the request with this head.
    pub(super) fn new(ctx: RequestCtx, attempt: Attempt<Line>, head: &[u8], index: &Index) -> Box<Self> {
        // Copies, without the room that is kept for requests to come.
        Box::new(Self { ctx, attempt, head: head.into(), index: index.clone() })
    }

    /// Carries what comes, until it is over. Returns what becomes of the client's connection.
    pub async fn run(mut self: Box<Self>, kit: &Kit, wire: &mut impl Wire) -> Afterwards {
        let this = &mut *self;
        wire.switch();
        let mut carried = Carried::default();
        let mut client = Client { kit, wire, reader: Patience::default() };
        let done = tunnel::carry(&mut this.ctx, &mut client, &mut this.attempt, &mut carried).await;
        let fields = Raw::new(&this.head, &this.index);
        let target = request_line(&this.head).map_or("/", |(_, target)| target);
        let (method, ctx) = (Method::GET, &mut this.ctx);
        let asked = Asked::new(&method, Wanted::new(target, &fields), &fields, 0, true);
        let mut asked = asked.switched(carried.up.bytes, carried.down.bytes, !carried.up.ended);
        let error = done.err().map(|error| {
            let reused = ctx.reused;
            retry::after_exchange(kit, &mut asked, ctx, error, reused)
        });
        if let Some(error) = &error {
            finish::failed(ctx, error);
        }
        finish::ended(kit, &mut asked, ctx, error.as_deref());
        ctx.info().map_or(Afterwards::Drop, ConnInfo::afterwards)
    }
}

/// The client's end.
struct Client<'a, W> {
    kit: &'a Kit,
    wire: &'a mut W,
    /// To take what is sent to it.
    reader: Patience,
}

impl<W: Wire> Client<'_, W> {
    fn waits(&mut self, waits: bool) {
        if waits {
            self.reader.waits(self.kit, self.wire.descriptor(), How::Both, WRITE_TIMEOUT);
        } else {
            self.reader.moved();
        }
    }
}

impl<W: Wire> Side for Client<'_, W> {
    fn poll_take(&mut self, cx: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.wire).poll_read(cx, into)
    }

    fn poll_give(&mut self, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let sent = self.wire.poll_send(cx, &[io::IoSlice::new(data)], false);
        self.waits(sent.is_pending());
        sent
    }

    fn poll_given(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let sent = self.wire.poll_sent(cx);
        self.waits(sent.is_pending());
        sent
    }

    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.wire.poll_end(cx)
    }
}

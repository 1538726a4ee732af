//! HTTP in plain text on a listener that speaks TLS: answered as nginx does, 400, so that who mistyped a URL is told.

use std::{sync::Arc, time::Instant};

use super::{
    Endpoint,
    conn::{Conn, Socket, Transport},
    front::{self, Parsed, Refused},
    h1,
    proxy_protocol::Ends,
    worker::{self, Post},
};
use crate::{
    runtime::deadlines::{How, Wait},
    types::{Reason, Refusal},
};

/// Whether a connection that begins so may be HTTP; a record of TLS begins with a control character.
pub(super) fn may_be_http(first: u8) -> bool {
    first.is_ascii_alphabetic()
}

/// Reads the head of a request, which is due counted from `since`, and refuses it. What is no HTTP either is left without an answer.
pub(super) async fn refuse(post: &Post, endpoint: &Endpoint, socket: Socket, ends: Ends, since: Instant) {
    let deadline = post.kit.deadlines().guard_of(endpoint.place().owner(), How::Read);
    let client = ends.address();
    let mut conn = Conn::new(Transport::Plain(socket), None);
    let mut info = Arc::new(worker::info(ends, None, endpoint, conn.fd()));
    let refused =
        match h1::head(post, &mut conn, (endpoint, &mut info), &deadline, (Wait::First, since), &mut None).await {
            Some(Parsed::Request(head)) => {
                deadline.arm(conn.fd(), Wait::Work, since, info.limits().header_timeout);
                front::told(&conn.ahead()[..head.head], Reason::PlainHttp)
            }
            // Whatever is wrong with it besides.
            Some(Parsed::Refused(refused)) if !refused.method.is_empty() => {
                Refused { reason: Reason::PlainHttp, ..*refused }
            }
            Some(Parsed::Refused(refused)) if refused.reason == Reason::HeaderTimeout => {
                return endpoint.refused(client, Refusal::TlsTimeout, None);
            }
            _ => return endpoint.refused(client, Refusal::TlsMalformed, None),
        };
    endpoint.refused(client, Refusal::PlainHttp, None);
    h1::refuse(post, &mut conn, &info, &deadline, refused, false).await;
}

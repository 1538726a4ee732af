//! Serves a request that Pingora's front has read over a connection of our own: the same phases as on Pingora's upstream
//! path, in the same order; what differs is who moves the bytes to and from the backend.

use std::{
    future::{Future as _, poll_fn},
    pin::pin,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use http::{HeaderName, HeaderValue, Version, header};
use pingora_core::{Error, ErrorType, OrErr, Result, protocols::http::HttpTask};
use pingora_http::ResponseHeader;
use pingora_proxy::Session;

use super::{
    super::{ctx::RequestCtx, downstream::Downstream as _, edit, kit::Kit, retry, select, watch},
    answer::{Body, Head, Protocol},
    attempt::{Attempt, Failure, Room, Step},
    connect::{self, For},
    fields::after_body,
};
use crate::{
    policy::{fields::Fields as _, framing::Border},
    runtime::{http2, line::Line},
};

/// Parts of an answer that are given to the client at once.
const PARTS: usize = 4;

/// Asks backends until one answers, and gives its answer to the client.
///
/// # Errors
/// None did, or the answer or the client broke off; the request's context says why.
pub(in crate::proxy) async fn serve(kit: &Kit, session: &mut Session, ctx: &mut RequestCtx) -> Result<()> {
    ctx.exchanged = true;
    let done = loop {
        match once(kit, session, ctx).await {
            Err(error) if error.retry() => {}
            done => break done,
        }
    };
    ctx.exchanged = false;
    done
}

/// One attempt.
async fn once(kit: &Kit, session: &mut Session, ctx: &mut RequestCtx) -> Result<()> {
    let home = select::backend(ctx)?;
    ctx.read_timeout = Duration::MAX;
    let what = if takes_trailers(session) { For::Http2 } else { For::Http1 };
    let connected = match connect::pooled(kit, what, home, ctx) {
        Some(pooled) => Ok(pooled),
        None => connect::open(kit, what, ctx).await,
    };
    let (line, place) = match connected {
        Ok(connected) => connected,
        Err(error) => return Err(retry::after_connect(kit, session, ctx, error)),
    };
    connect::connected(kit, &line, place.reused, ctx);
    watch::request_begins(kit, session, Version::HTTP_11, ctx);
    match exchange(session, ctx, line, what).await {
        Ok(again) => {
            connect::release(kit, ctx, again, place, Instant::now());
            Ok(())
        }
        Err(error) => Err(connect::broken(kit, session, ctx, error, &place)),
    }
}

/// The request and its answer on `line`. Returns the connection where it may be used again.
async fn exchange(session: &mut Session, ctx: &mut RequestCtx, line: Line, what: For) -> Result<Option<Line>> {
    let body = !session.as_mut().is_body_empty();
    let mut room = Box::<Room>::default();
    room.out.reserve(1024);
    let client = edit::Client::of(session.req_header());
    let chunked = client.write(ctx, body, &mut room.out);
    let (protocol, version) = (connect::protocol(&line, what), client.version);
    let mut attempt = Attempt::new(line, client.method.clone(), room, !body, true);
    attempt.speaks(protocol);
    if protocol == Protocol::Http2 && edit::asks_for_body(session, Version::HTTP_2) {
        session.write_continue_response().await.map_err(Error::into_down)?;
    }
    session.as_mut().enable_retry_buffering();
    let mut done = session.as_mut().is_body_done();
    if body && let Some(sent_before) = session.as_ref().get_retry_buffer() {
        give(session, ctx, &mut attempt, Some(sent_before), done, chunked)?;
    } else if body && done {
        give(session, ctx, &mut attempt, None, true, chunked)?;
    }
    loop {
        let behind = attempt.is_behind();
        let reads = done || (attempt.wants_body() && !behind);
        tokio::select! {
            body = session.as_mut().read_body_or_idle(done), if reads => {
                let body = body.map_err(Error::into_down)?;
                done = body.is_none() || session.as_mut().is_body_done();
                give(session, ctx, &mut attempt, body, done, chunked)?;
            }
            step = poll_fn(|cx| {
                if watch::poll_due(ctx, cx) {
                    return Poll::Ready(Some(Err(attempt.break_off_late())));
                }
                let flushed = watch::upload(version, ctx, attempt.poll_flush(cx)).is_ready();
                match attempt.poll_answer(cx) {
                    // There is room for the next part of the body.
                    Poll::Pending if behind && flushed => Poll::Ready(None),
                    step => step.map(Some),
                }
            }) => {
                let Some(step) = step else { continue };
                if step.is_err() && session.is_answered() {
                    // What the client has of the answer already must not wait for a rest that never comes.
                    poll_fn(|cx| {
                        let _ = pin!(session.as_mut().read_body_or_idle(true)).poll(cx);
                        Poll::Ready(())
                    })
                    .await;
                }
                if hand_on(session, ctx, &mut attempt, step).await? {
                    return Ok(attempt.finish().1);
                }
                done |= session.as_mut().is_body_done();
            }
        }
    }
}

/// A part of the request's body, or its end, on its way to the backend.
fn give(
    session: &Session,
    ctx: &mut RequestCtx,
    attempt: &mut Attempt<Line>,
    mut body: Option<Bytes>,
    end: bool,
    chunked: bool,
) -> Result<()> {
    watch::request_body(session, &mut body, end, ctx)?;
    match &body {
        Some(body) if chunked => attempt.chunk(body),
        Some(body) => attempt.bytes(body),
        None => {}
    }
    if end {
        if chunked {
            attempt.bytes(b"0\r\n\r\n");
        }
        attempt.complete();
    }
    Ok(())
}

/// What came of the answer on its way to the client. Returns whether it was the last of it.
async fn hand_on(
    session: &mut Session,
    ctx: &mut RequestCtx,
    attempt: &mut Attempt<Line>,
    step: Result<Step, Failure>,
) -> Result<bool> {
    let mut tasks = Vec::with_capacity(PARTS);
    let mut step = step.map_err(|failure| failed(attempt, failure))?;
    let end = loop {
        match step {
            Step::Head(head) => {
                let mut answer = answer(attempt, &head)?;
                watch::answer_begins(session, &mut answer, ctx)?;
                let bodiless = head.body == Body::Bordered(Border::END);
                let http11 = session.req_header().version == Version::HTTP_11;
                if http11 && head.body == Body::UntilClose {
                    // The client's connection need not end with the backend's.
                    answer.insert_header(header::TRANSFER_ENCODING, "chunked")?;
                }
                // Without chunks there is no place for any.
                let trailing = head.body == Body::Bordered(Border::CHUNKED) && takes_trailers(session);
                let announced = answer.headers.get(header::TRAILER).filter(|_| trailing).cloned();
                edit::response(session, &mut answer, ctx)?;
                if let Some(announced) = announced {
                    answer.insert_header(header::TRAILER, announced)?;
                }
                tasks.push(HttpTask::Header(answer, bodiless && !head.is_interim()));
                if head.is_interim() {
                    break false;
                }
            }
            Step::Body => {
                watch::answer_body(ctx);
                tasks.push(HttpTask::Body(Some(attempt.split_body()), false));
            }
            Step::End => {
                let trailers =
                    Some(attempt.trailers()).filter(|section| !section.is_empty() && takes_trailers(session));
                let trailers = trailers.map(|section| after_body(section, ctx)).filter(|fields| !fields.is_empty());
                tasks.push(trailers.map_or(HttpTask::Done, |fields| HttpTask::Trailer(Some(Box::new(fields)))));
                break true;
            }
        }
        if tasks.len() >= PARTS {
            break false;
        }
        // What is here already leaves in one write.
        match attempt.poll_answer(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(Ok(next)) => step = next,
            // A failure is met again.
            Poll::Pending | Poll::Ready(Err(_)) => break false,
        }
    };
    let written = {
        let mut writing = pin!(session.write_response_tasks(tasks));
        poll_fn(|cx| {
            if attempt.is_behind() {
                // A client that does not read yet must not keep from the backend what it has sent.
                _ = attempt.poll_flush(cx);
            }
            match writing.as_mut().poll(cx) {
                Poll::Pending if watch::poll_over(ctx, cx) => Poll::Ready(None),
                written => written.map(Some),
            }
        })
        .await
    };
    let Some(written) = written else {
        let failure = attempt.break_off();
        return Err(failed(attempt, failure));
    };
    let over = written.map_err(Error::into_down)?;
    watch::answer_given(session, ctx);
    Ok(over || end)
}

/// Whether fields after the body go on to the client: Pingora's HTTP/1 side writes none.
fn takes_trailers(session: &Session) -> bool {
    session.req_header().version == Version::HTTP_2
}

/// The answer's head as Pingora has it.
fn answer(attempt: &Attempt<Line>, head: &Head) -> Result<Box<ResponseHeader>> {
    let fields = attempt.head();
    let (mut parts, ()) = http::Response::new(()).into_parts();
    (parts.status, parts.version) = (head.status, head.version);
    parts.headers.reserve(fields.count() + 4);
    let framed = head.version == Version::HTTP_2 && fields.has(&header::CONTENT_LENGTH);
    for (name, value) in fields.each() {
        if framed && name == header::TRANSFER_ENCODING.as_str().as_bytes() {
            // Of the stream, beside the length that its backend has said.
            continue;
        }
        let name = HeaderName::from_bytes(name).or_err(ErrorType::InvalidHTTPHeader, "a field's name")?;
        let value = HeaderValue::from_bytes(value).or_err(ErrorType::InvalidHTTPHeader, "a field's value")?;
        parts.headers.try_append(name, value).or_err(ErrorType::InvalidHTTPHeader, "too many fields")?;
    }
    let mut answer = ResponseHeader::from(parts);
    let phrase = std::str::from_utf8(attempt.phrase()).unwrap_or_default();
    if head.status.canonical_reason() != Some(phrase) {
        answer.set_reason_phrase(Some(phrase))?;
    }
    Ok(Box::new(answer))
}

/// A failure in Pingora's terms, which `retry` reads.
#[cold]
pub(super) fn failed(attempt: &Attempt<Line>, failure: Failure) -> Box<Error> {
    match failure {
        Failure::Bad(why) => Error::explain(ErrorType::InvalidHTTPHeader, why),
        Failure::Ended(Some(cause)) if http2::is_malformed(&cause) => {
            Error::because(ErrorType::InvalidHTTPHeader, "no answer", cause)
        }
        Failure::Ended(Some(cause)) if http2::is_unprocessed(&cause) => {
            let kind = if http2::is_reset(&cause) { ErrorType::H2Error } else { ErrorType::ConnectionClosed };
            let mut error = Error::because(kind, "before an answer", cause);
            error.set_retry(true);
            error
        }
        Failure::Ended(Some(cause)) if http2::is_reset(&cause) => {
            Error::because(ErrorType::H2Error, "before an answer", cause)
        }
        Failure::Ended(cause) => {
            let kind = match attempt.written() {
                _ if attempt.is_stalled() => ErrorType::WriteTimedout,
                0 => ErrorType::WriteError,
                _ => ErrorType::ConnectionClosed,
            };
            match cause {
                Some(cause) => Error::because(kind, "before an answer", cause),
                None => Error::explain(kind, "before an answer"),
            }
        }
        Failure::Truncated => Error::explain(ErrorType::ConnectionClosed, "within the answer"),
    }
    .into_up()
}

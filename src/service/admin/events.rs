//! Changes as they happen, as server-sent events (<https://html.spec.whatwg.org/multipage/server-sent-events.html>). A
//! reader gets what is kept after the event it names, and is told what it missed. What waits for a slow one is bounded:
//! its events are read from the common list when there is room.

use std::{
    convert::Infallible,
    fmt::Write as _,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName};
use hyper::body::{Body, Frame};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use super::{
    call::Shared,
    problem::{Kind, Problem},
};
use crate::telemetry::events::{Event, EventId, Events};

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Events in one part of the body.
const BATCH: usize = 64;
/// Parts that wait for the connection.
const PARTS: usize = 4;

/// The body of an answer that goes on.
pub(super) struct EventStream {
    parts: mpsc::Receiver<Bytes>,
    _place: OwnedSemaphorePermit,
}

impl Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        self.parts.poll_recv(cx).map(|part| part.map(|part| Ok(Frame::data(part))))
    }
}

/// Begins a stream.
///
/// # Errors
/// There are as many readers as there may be; `Last-Event-ID` is no id.
pub(super) fn stream(shared: &Arc<Shared>, headers: &HeaderMap) -> Result<EventStream, Problem> {
    let last = match headers.get(LAST_EVENT_ID) {
        None => None,
        Some(value) => {
            let id = value.to_str().ok().and_then(|text| text.trim().parse::<EventId>().ok());
            Some(id.ok_or_else(|| {
                Problem::new(Kind::BadRequest, "`Last-Event-ID` is not the id of an event")
                    .hint("send an id as the stream gave it, or a whole number, or leave it out")
            })?)
        }
    };
    let place = shared.streams.clone().try_acquire_owned().map_err(|_| {
        Problem::new(Kind::TooManyStreams, format!("{} others read events", shared.limits.streams))
            .hint("try again later")
    })?;
    let (sender, parts) = mpsc::channel(PARTS);
    tokio::spawn(send(shared.clone(), last, sender));
    Ok(EventStream { parts, _place: place })
}

/// Fills the body until the reader is gone or the process leaves.
async fn send(shared: Arc<Shared>, last: Option<EventId>, parts: mpsc::Sender<Bytes>) {
    let events = shared.store.events();
    let mut news = events.last();
    let mut closing = shared.closing.clone();
    tokio::select! {
        () = events.numbered() => {}
        () = parts.closed() => return,
        _ = closing.wait_for(|closing| *closing) => return,
    }
    let newest = *news.borrow();
    let mut after = last.map_or(newest, |last| last.number);
    let foreign = last.and_then(|last| last.epoch).is_some_and(|epoch| epoch != events.epoch());
    // The first part has the head sent at once, and says how soon to come back.
    let mut text = "retry: 2000\n\n".to_owned();
    if foreign || after > newest {
        // It was given by a process that handed nothing over, before this one. What that told since is not known here.
        text.push_str("event: missed\ndata: {\"missed\":null}\n\n");
        after = 0;
    }
    loop {
        news.mark_unchanged();
        after = write(events, after, &mut text);
        let more = !text.is_empty();
        let next = async {
            if more {
                return parts.send(Bytes::from(std::mem::take(&mut text))).await.is_ok();
            }
            match tokio::time::timeout(shared.limits.heartbeat, news.changed()).await {
                Ok(Ok(())) => true,
                Ok(Err(_)) => false,
                Err(_) => parts.send(Bytes::from_static(b": still here\n\n")).await.is_ok(),
            }
        };
        let goes_on = tokio::select! {
            goes_on = next => goes_on,
            () = parts.closed() => false,
            _ = closing.wait_for(|closing| *closing) => false,
        };
        if !goes_on {
            return;
        }
    }
}

/// Writes the next events and returns the id of the last.
fn write(events: &Events, after: u64, text: &mut String) -> u64 {
    let (next, missed) = events.after(after, BATCH);
    if missed > 0 {
        let _ = write!(text, "event: missed\ndata: {{\"missed\":{missed}}}\n\n");
    }
    let epoch = Some(events.epoch());
    for event in &next {
        one(event, EventId { epoch, number: event.id }, text);
    }
    next.last().map_or(after, |event| event.id)
}

fn one(event: &Event, id: EventId, text: &mut String) {
    // A line ends an entry of the stream; JSON has none within its texts.
    if let Ok(data) = serde_json::to_string(event) {
        let _ = write!(text, "id: {id}\nevent: {}\ndata: {data}\n\n", event.kind);
    }
}

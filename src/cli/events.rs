//! `rrlb events` and `rrlb errors`: what changed and what failed.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::time::{Instant, sleep, timeout};

use super::{
    client::{Call, Client},
    failure::Failure,
    screen::Screen,
    sse::{Frame, Reader},
    table::{clean_line, moment},
    wire::{Errors, Event, Status},
};

/// What is kept comes at once; after this silence it was all.
const QUIET: Duration = Duration::from_millis(500);
/// The instance says something every 15 s.
const SILENT: Duration = Duration::from_secs(45);
/// An upgrade may keep the instance out of reach for a moment.
const ABSENT: Duration = Duration::from_secs(10);

/// Prints what failed last.
///
/// # Errors
/// Any [`Failure`].
pub(super) async fn errors(limit: u32, json: bool, client: &Client, screen: &mut Screen) -> Result<(), Failure> {
    let answer = client.call(Call::get(&["errors"]).query("limit", &limit.to_string())).await?;
    if json {
        return screen.print(&answer.text());
    }
    let errors = answer.read::<Errors>()?.errors;
    let lines: String = errors.iter().map(|event| line(event) + "\n").collect();
    screen.print(if lines.is_empty() { "nothing failed\n" } else { &lines })
}

/// Prints the events that are kept.
///
/// # Errors
/// Any [`Failure`].
pub(super) async fn events(after: u64, json: bool, client: &Client, screen: &mut Screen) -> Result<(), Failure> {
    let body = client.stream(Call::get(&["events"]).last_event(after)).await?;
    let mut last = after;
    print(body, QUIET, &mut last, json, screen).await
}

/// Prints the events that are kept and those that come, until Ctrl-C; goes on with a successor of the instance.
///
/// # Errors
/// Any [`Failure`]; an instance that is gone only after a while.
pub(super) async fn follow(after: u64, json: bool, client: &Client, screen: &mut Screen) -> Result<(), Failure> {
    tokio::select! {
        _ = tokio::signal::ctrl_c() => Ok(()),
        ended = follow_on(after, json, client, screen) => ended,
    }
}

async fn follow_on(after: u64, json: bool, client: &Client, screen: &mut Screen) -> Result<(), Failure> {
    let (mut last, mut process, mut seen) = (after, None, Instant::now());
    loop {
        let again = async {
            let now = client.call(Call::get(&["status"])).await?.read::<Status>()?.pid;
            if process.replace(now).is_some_and(|before| before != now) {
                // Each process counts its own.
                last = 0;
            }
            let body = client.stream(Call::get(&["events"]).last_event(last)).await?;
            seen = Instant::now();
            print(body, SILENT, &mut last, json, screen).await
        };
        match again.await {
            Ok(()) => {}
            Err(Failure::NoInstance { .. }) if seen.elapsed() < ABSENT => {}
            Err(failure) => return Err(failure),
        }
        sleep(screen.pace).await;
    }
}

/// Until the stream ends or is silent for a while. `last` becomes the number of the last one printed.
async fn print(
    mut body: Incoming,
    silence: Duration,
    last: &mut u64,
    json: bool,
    screen: &mut Screen,
) -> Result<(), Failure> {
    let mut reader = Reader::default();
    while let Ok(Some(Ok(frame))) = timeout(silence, body.frame()).await {
        let Some(data) = frame.data_ref() else { continue };
        for frame in reader.read(data)? {
            if let Some(id) = frame.id {
                *last = id;
            }
            match text(&frame, json) {
                Some(text) => screen.print(&text)?,
                None => screen.note(&format!("some events are not kept any more: {}", clean_line(&frame.data))),
            }
        }
    }
    Ok(())
}

fn text(frame: &Frame, json: bool) -> Option<String> {
    match frame.event.as_str() {
        "missed" => None,
        _ if json => Some(frame.data.clone()),
        _ => Some(match serde_json::from_str::<Event>(&frame.data) {
            Ok(event) => line(&event),
            Err(_) => clean_line(&frame.data).into_owned(),
        }),
    }
}

/// `17  2026-01-02 03:04:05  backend.changed app/app-1: ready -> drain, by uid 0 (deploy)`
fn line(event: &Event) -> String {
    let id = if event.id == 0 { String::new() } else { format!("{:<5} ", event.id) };
    let place = match (event.upstream.as_str(), event.backend.as_str()) {
        ("", "") => String::new(),
        ("", one) | (one, "") => format!(" {one}"),
        (upstream, backend) => format!(" {upstream}/{backend}"),
    };
    let by = if event.who.is_empty() { String::new() } else { format!(", by {}", event.who) };
    let why = if event.why.is_empty() { String::new() } else { format!(" ({})", event.why) };
    let text = format!("{id}{}  {}{place}: {}{by}{why}", moment(&event.time), event.kind, event.what);
    clean_line(&text).into_owned()
}

//! `rrlb events` and `rrlb errors`: what changed and what failed.

use std::time::Duration;

use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::{
    client::{Call, Client},
    failure::Failure,
    screen::Screen,
    sse::{Frame, Reader},
    table::{clean_line, count, moment},
    wire::{Errors, Event, Failed},
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
    let lines: String = errors.iter().map(|failed| failure_line(failed) + "\n").collect();
    screen.print(if lines.is_empty() { "nothing failed\n" } else { &lines })
}

/// Prints the events that are kept.
///
/// # Errors
/// Any [`Failure`].
pub(super) async fn events(after: u64, json: bool, client: &Client, screen: &mut Screen) -> Result<(), Failure> {
    let mut last = after.to_string();
    let body = client.stream(Call::get(&["events"]).last_event(&last)).await?;
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
    let (mut last, mut seen) = (after.to_string(), Instant::now());
    loop {
        let again = async {
            let body = client.stream(Call::get(&["events"]).last_event(&last)).await?;
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

/// Until the stream ends or is silent for a while. `last` becomes the id of the last one printed.
async fn print(
    mut body: Incoming,
    silence: Duration,
    last: &mut String,
    json: bool,
    screen: &mut Screen,
) -> Result<(), Failure> {
    let mut reader = Reader::default();
    while let Ok(Some(Ok(frame))) = timeout(silence, body.frame()).await {
        let Some(data) = frame.data_ref() else { continue };
        for frame in reader.read(data)? {
            if let Some(id) = &frame.id {
                last.clone_from(id);
            }
            match text(&frame, json) {
                Some(text) => screen.print(&text)?,
                None => screen.note(&missed(&frame.data)),
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

/// What is said of events that cannot be had any more.
fn missed(data: &str) -> String {
    let number = serde_json::from_str::<Value>(data).ok().and_then(|data| data.get("missed").and_then(Value::as_u64));
    match number {
        Some(number) => format!("({} before this are not kept any more)", count(number, "event")),
        None => "(the process was started anew; some events before this may be missing)".to_owned(),
    }
}

/// `2026-01-02 03:04:05  502 connect_refused GET a.test/x, app/app-1, request 7f`, or
/// `2026-01-02 03:04:05  last-ready patchBackend app/app-1: nobody would be left, by uid 0`.
fn failure_line(failed: &Failed) -> String {
    let Failed { reason, method, host, path, who, what, detail, request_id, .. } = failed;
    let at = moment(&failed.time);
    let place = place(&failed.upstream, &failed.backend);
    let text = if failed.kind == "request" {
        let status = if failed.status == 0 { "---".to_owned() } else { failed.status.to_string() };
        let place = if place.is_empty() { place } else { format!(", {place}") };
        let id = if request_id.is_empty() { String::new() } else { format!(", request {request_id}") };
        format!("{at}  {status} {reason} {method} {host}{path}{place}{id}")
    } else {
        let place = if place.is_empty() { place } else { format!(" {place}") };
        let by = if who.is_empty() { String::new() } else { format!(", by {who}") };
        // A report has several lines; the first says what it is about.
        let detail = detail.lines().next().unwrap_or_default();
        format!("{at}  {reason} {what}{place}: {detail}{by}")
    };
    clean_line(&text).into_owned()
}

fn place(upstream: &str, backend: &str) -> String {
    match (upstream, backend) {
        ("", one) | (one, "") => one.to_owned(),
        (upstream, backend) => format!("{upstream}/{backend}"),
    }
}

/// `17  2026-01-02 03:04:05  backend.changed app/app-1: ready -> drain, by uid 0 (deploy)`
fn line(event: &Event) -> String {
    let id = if event.id == 0 { String::new() } else { format!("{:<5} ", event.id) };
    let place = place(&event.upstream, &event.backend);
    let place = if place.is_empty() { place } else { format!(" {place}") };
    let by = if event.who.is_empty() { String::new() } else { format!(", by {}", event.who) };
    let why = if event.why.is_empty() { String::new() } else { format!(" ({})", event.why) };
    let text = format!("{id}{}  {}{place}: {}{by}{why}", moment(&event.time), event.kind, event.what);
    clean_line(&text).into_owned()
}

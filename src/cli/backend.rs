//! `rrlb backend …`: backends listed and changed at run time.

use http::Method;
use serde_json::{Value, json};

use super::{
    arguments::{AdminChange, BackendCommand, Targets},
    client::{Answer, Call, Client},
    failure::Failure,
    screen::Screen,
    table::{Cell, Paint, Side, Table, clean_line, count, span},
    wait::{Until, wait},
    wire::{Backend, Upstream, Upstreams},
};

const COLUMNS: &[(&str, Side)] = &[
    ("ID", Side::Left),
    ("ADDRESS", Side::Left),
    ("WEIGHT", Side::Right),
    ("STATE", Side::Left),
    ("HEALTH", Side::Left),
    ("SOURCE", Side::Left),
    ("IN FLIGHT", Side::Right),
    ("REQUESTS", Side::Right),
    ("NOTE", Side::Left),
];

/// Does one of the commands.
///
/// # Errors
/// Any [`Failure`].
pub(super) async fn run(command: &BackendCommand, client: &Client, screen: &mut Screen) -> Result<(), Failure> {
    match command {
        BackendCommand::List { upstream: Some(name), json } => {
            let answer = client.call(Call::get(&["upstreams", name])).await?;
            if json.json {
                return screen.print(&answer.text());
            }
            let text = upstream_text(&answer.read()?, screen.colour);
            screen.print(&text)
        }
        BackendCommand::List { upstream: None, json } => {
            let answer = client.call(Call::get(&["upstreams"])).await?;
            if json.json {
                return screen.print(&answer.text());
            }
            let upstreams = answer.read::<Upstreams>()?.upstreams;
            let texts: Vec<String> = upstreams.iter().map(|upstream| upstream_text(upstream, screen.colour)).collect();
            screen.print(&if texts.is_empty() { "no upstreams\n".to_owned() } else { texts.join("\n") })
        }
        BackendCommand::Add { upstream, id, address, weight, ttl, force, no_persist, note } => {
            let mut body = json!({ "address": address });
            if let (Some(weight), Some(body)) = (weight, body.as_object_mut()) {
                body.insert("weight".to_owned(), Value::from(*weight));
            }
            let call = Call::new(Method::PUT, &["upstreams", upstream, "backends", id])
                .query_time("ttl", *ttl)
                .query_if(*force, "force", "true")
                .query_if(*no_persist, "persist", "false")
                .query_some("reason", note.reason.as_deref())
                .json(body);
            let answer = client.call(call).await?;
            if note.json.json {
                return screen.print(&answer.text());
            }
            let backend: Backend = answer.read()?;
            let done = if answer.status == 201 { "added" } else { "is there" };
            let lease = backend
                .lease_ttl_seconds
                .map_or_else(String::new, |ttl| format!(", a lease of {} that this command renews", span(whole(ttl))));
            let (address, weight, state) = (&backend.address, backend.weight, state(&backend));
            say(screen, upstream, id, &format!("{done}: {address}, weight {weight}, {state}{lease}"))
        }
        BackendCommand::Rm { targets, drain, force, wait: waiting, note } => {
            let call = |id: &str| {
                Call::new(Method::DELETE, &["upstreams", &targets.upstream, "backends", id])
                    .query_time("drain", *drain)
                    .query_if(*force, "force", "true")
                    .query_some("reason", note.reason.as_deref())
            };
            for_each(targets, note.json.json, client, screen, call, removed).await?;
            if waiting.wait {
                wait(targets, Until::Gone, waiting.timeout, note.json.json, client, screen).await
            } else {
                Ok(())
            }
        }
        BackendCommand::Drain { targets, change, wait: waiting } => {
            admin(targets, "drain", change, client, screen).await?;
            if waiting.wait {
                wait(targets, Until::Idle, waiting.timeout, change.note.json.json, client, screen).await
            } else {
                Ok(())
            }
        }
        BackendCommand::Maint { targets, change, wait: waiting } => {
            admin(targets, "maint", change, client, screen).await?;
            if waiting.wait {
                wait(targets, Until::Idle, waiting.timeout, change.note.json.json, client, screen).await
            } else {
                Ok(())
            }
        }
        BackendCommand::Ready { targets, change } => admin(targets, "ready", change, client, screen).await,
        BackendCommand::Weight { upstream, id, weight, change } => {
            let answer = client.call(patch(upstream, id, change, json!({ "weight": weight }))).await?;
            if change.note.json.json {
                return screen.print(&answer.text());
            }
            let backend: Backend = answer.read()?;
            say(screen, upstream, id, &format!("weight {}, {}", backend.weight, state(&backend)))
        }
        BackendCommand::Forget { targets, force, note } => {
            let call = |id: &str| {
                Call::new(Method::DELETE, &["upstreams", &targets.upstream, "backends", id, "override"])
                    .query_if(*force, "force", "true")
                    .query_some("reason", note.reason.as_deref())
            };
            for_each(targets, note.json.json, client, screen, call, forgotten).await
        }
    }
}

async fn admin(
    targets: &Targets,
    to: &str,
    change: &AdminChange,
    client: &Client,
    screen: &mut Screen,
) -> Result<(), Failure> {
    let call = |id: &str| patch(&targets.upstream, id, change, json!({ "admin": to }));
    for_each(targets, change.note.json.json, client, screen, call, changed).await
}

fn patch(upstream: &str, id: &str, change: &AdminChange, body: Value) -> Call {
    Call::new(Method::PATCH, &["upstreams", upstream, "backends", id])
        .query_if(change.force, "force", "true")
        .query_if(change.no_persist, "persist", "false")
        .query_some("reason", change.note.reason.as_deref())
        .json(body)
}

/// One after the other, until one fails.
async fn for_each(
    targets: &Targets,
    json: bool,
    client: &Client,
    screen: &mut Screen,
    call: impl Fn(&str) -> Call,
    told: fn(&Answer) -> Result<String, Failure>,
) -> Result<(), Failure> {
    for (at, id) in targets.ids.iter().enumerate() {
        match client.call(call(id)).await {
            Ok(answer) if json => screen.print(&answer.text())?,
            Ok(answer) => say(screen, &targets.upstream, id, &told(&answer)?)?,
            Err(failure) => {
                let rest = targets.ids.get(at + 1..).unwrap_or_default();
                if targets.ids.len() > 1 {
                    let rest =
                        if rest.is_empty() { String::new() } else { format!("; not tried: {}", rest.join(", ")) };
                    screen.note(&format!("{} failed{rest}", place(&targets.upstream, id)));
                }
                return Err(failure);
            }
        }
    }
    Ok(())
}

fn removed(answer: &Answer) -> Result<String, Failure> {
    if answer.status == 204 {
        return Ok("gone".to_owned());
    }
    let backend: Backend = answer.read()?;
    let at_latest =
        backend.leaving_in.map_or_else(String::new, |left| format!(", gone in {} at the latest", span(whole(left))));
    Ok(format!("leaving, {} in flight{at_latest}", count(backend.in_flight, "request")))
}

fn changed(answer: &Answer) -> Result<String, Failure> {
    let backend: Backend = answer.read()?;
    let flight = if backend.admin == "ready" {
        String::new()
    } else {
        format!(", {} in flight", count(backend.in_flight, "request"))
    };
    Ok(format!("{}{flight}", state(&backend)))
}

fn forgotten(answer: &Answer) -> Result<String, Failure> {
    if answer.status == 204 {
        return Ok("gone".to_owned());
    }
    let backend: Backend = answer.read()?;
    Ok(format!("as declared again: {}, weight {}, {}", backend.address, backend.weight, state(&backend)))
}

/// What people want of it, and what traffic sees where that is another thing.
fn state(backend: &Backend) -> String {
    if backend.admin.is_empty() || backend.effective.is_empty() {
        return format!("{}{}", backend.admin, backend.effective);
    }
    format!("{} ({})", backend.admin, backend.effective)
}

fn say(screen: &mut Screen, upstream: &str, id: &str, text: &str) -> Result<(), Failure> {
    screen.print(&clean_line(&format!("{}: {text}", place(upstream, id))))
}

/// `app/app-1`.
pub(super) fn place(upstream: &str, id: &str) -> String {
    format!("{upstream}/{id}")
}

/// Seconds as the API writes them.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // cut at both ends
pub(super) fn whole(seconds: f64) -> u64 {
    seconds.max(0.0).ceil() as u64
}

/// The colour of an effective state.
pub(super) fn state_paint(effective: &str) -> Paint {
    match effective {
        "up" => Paint::Good,
        "down" | "unresolved" => Paint::Bad,
        _ => Paint::Warn,
    }
}

fn upstream_text(upstream: &Upstream, colour: bool) -> String {
    let discover = upstream.discover.as_deref().map_or_else(String::new, |by| format!(", discovered by {by}"));
    let mut text = clean_line(&format!("{} ({}{discover})", upstream.name, upstream.balance)).into_owned() + "\n";
    let mut table = Table::new(COLUMNS);
    for backend in &upstream.backends {
        table.row(vec![
            backend.id.as_str().into(),
            backend.address.as_str().into(),
            backend.weight.to_string().into(),
            Cell::painted(&backend.effective, state_paint(&backend.effective)),
            backend.health.as_str().into(),
            backend.source.as_str().into(),
            backend.in_flight.to_string().into(),
            backend.requests.to_string().into(),
            note(backend).into(),
        ]);
    }
    text += &if table.is_empty() { "no backends\n".to_owned() } else { table.render(colour) };
    if !upstream.waiting.is_empty() {
        let waiting = upstream.waiting.join(", ");
        text += &clean_line(&format!("changed at run time, but not there now: {waiting}"));
        text.push('\n');
    }
    text
}

fn note(backend: &Backend) -> String {
    let mut parts = Vec::new();
    if let Some(target) = backend.target.as_ref().filter(|target| **target != backend.address) {
        parts.push(format!("at {target}"));
    }
    if let Some(slow_start) = &backend.slow_start {
        let (percent, left) = (slow_start.percent, span(whole(slow_start.remaining_seconds)));
        parts.push(format!("slow start: {percent} % of its share, all of it in {left}"));
    }
    if let Some(left) = backend.lease_expires_in {
        parts.push(format!("lease runs out in {}", span(whole(left))));
    }
    if let Some(left) = backend.leaving_in {
        parts.push(format!("leaves in {} at the latest", span(whole(left))));
    }
    if let Some(ejected) = &backend.ejected {
        let again = if ejected.times > 1 { format!(" {} times in a row", ejected.times) } else { String::new() };
        let left = span(whole(ejected.returns_in));
        parts.push(format!("ejected{again}, back in {left}: {}", ejected.why));
    }
    if let Some(changed) = backend.changed.as_ref().filter(|changed| !changed.who.is_empty()) {
        let why = if changed.why.is_empty() { String::new() } else { format!(": {}", changed.why) };
        parts.push(format!("changed by {}{why}", changed.who));
    }
    parts.join("; ")
}

//! `rrlb status`: the running instance in numbers.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::{Instant, sleep};

use super::{
    client::{Call, Client},
    failure::Failure,
    screen::Screen,
    table::{Cell, Paint, Side, Table, clean_line, moment_of, paint, span},
    wire::{Status, Upstream, Upstreams},
};

/// An upgrade may keep the instance out of reach for a moment.
const ABSENT: Duration = Duration::from_secs(10);
/// More are counted only; those with something to say come first.
const UPSTREAMS: usize = 40;

const COLUMNS: &[(&str, Side)] = &[
    ("UPSTREAM", Side::Left),
    ("BALANCE", Side::Left),
    ("UP", Side::Right),
    ("ALL", Side::Right),
    ("IN FLIGHT", Side::Right),
    ("REQUESTS", Side::Right),
    ("NOT UP", Side::Left),
];

/// Prints it once.
///
/// # Errors
/// Any [`Failure`].
pub(super) async fn status(json: bool, client: &Client, screen: &mut Screen) -> Result<(), Failure> {
    let text = text(json, client, screen.colour).await?;
    screen.print(&text)
}

/// Prints it over and over until Ctrl-C.
///
/// # Errors
/// Any [`Failure`]; an instance that is gone only after a while.
pub(super) async fn watch(json: bool, client: &Client, screen: &mut Screen) -> Result<(), Failure> {
    let ended = tokio::signal::ctrl_c();
    tokio::pin!(ended);
    let mut seen = Instant::now();
    loop {
        let again = async {
            match text(json, client, screen.colour).await {
                Ok(text) => {
                    seen = Instant::now();
                    if json { screen.print(&text)? } else { screen.paint(&text)? }
                }
                Err(Failure::NoInstance { .. }) if seen.elapsed() < ABSENT => {
                    screen.progress(&format!("no answer since {}", span(seen.elapsed().as_secs())));
                }
                Err(failure) => return Err(failure),
            }
            sleep(screen.pace).await;
            Ok(())
        };
        tokio::select! {
            _ = &mut ended => return Ok(()),
            done = again => done?,
        }
    }
}

async fn text(json: bool, client: &Client, colour: bool) -> Result<String, Failure> {
    let answer = client.call(Call::get(&["status"])).await?;
    if json {
        return Ok(answer.text());
    }
    let status = answer.read()?;
    let upstreams = client.call(Call::get(&["upstreams"])).await?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Ok(render(&status, upstreams.read::<Upstreams>()?.upstreams, now, colour))
}

fn render(status: &Status, upstreams: Vec<Upstream>, now: Duration, colour: bool) -> String {
    let ago = |millis: u64| span(now.saturating_sub(Duration::from_millis(millis)).as_secs());
    let state = match status.state.as_str() {
        "serving" => paint("serving", Paint::Good, colour),
        other => paint(&clean_line(other), Paint::Warn, colour),
    };
    let not_ready = match status.not_ready.as_str() {
        "" => String::new(),
        why => format!(", not ready: {}", clean_line(why.trim_end())),
    };
    let mut text = format!("rrlb {}  {state}{not_ready}\n", clean_line(&status.version));
    let mut line = |name: &str, value: String| text += &format!("{name:<14}{}\n", clean_line(&value));
    line("process", format!("{}, started {} UTC ({} ago)", status.pid, moment_of(status.started), ago(status.started)));
    if status.predecessor_draining {
        line("", "the process before this one still has requests".to_owned());
    }
    line("workers", status.workers.to_string());
    line("connections", status.connections.to_string());
    line("listeners", status.listeners.join(", "));
    let config = &status.config;
    let loaded = format!("loaded {} UTC ({} ago)", moment_of(config.loaded), ago(config.loaded));
    line("configuration", format!("{}, generation {}, {loaded}", config.file, config.generation));
    if config.runs == "last_confirmed" {
        let words = "the last confirmed configuration runs, and not the file";
        text += &format!("{:<14}{}\n", "", paint(words, Paint::Bad, colour));
    }
    if let Some(left) = config.confirm_within {
        let words = format!("goes back by itself in {} unless `rrlb confirm` comes", span(left));
        text += &format!("{:<14}{}\n", "", paint(&words, Paint::Warn, colour));
    }
    let names = std::iter::once("last reload").chain(std::iter::repeat(""));
    for (name, words) in names.zip(config.last_error.lines()) {
        text += &format!("{name:<14}{}\n", paint(&clean_line(words), Paint::Bad, colour));
    }
    text + &upstreams_text(upstreams, colour)
}

fn upstreams_text(mut upstreams: Vec<Upstream>, colour: bool) -> String {
    if upstreams.is_empty() {
        return String::new();
    }
    let all = upstreams.len();
    let up = |upstream: &Upstream| upstream.backends.iter().filter(|backend| backend.effective == "up").count();
    upstreams.sort_by_key(|upstream| up(upstream) == upstream.backends.len() && up(upstream) > 0);
    let mut table = Table::new(COLUMNS);
    for upstream in upstreams.iter().take(UPSTREAMS) {
        let sum = |of: fn(&super::wire::Backend) -> u64| upstream.backends.iter().map(of).sum::<u64>().to_string();
        let (up, backends) = (up(upstream), upstream.backends.len());
        let colour = match up {
            0 => Paint::Bad,
            up if up < backends => Paint::Warn,
            _ => Paint::Good,
        };
        table.row(vec![
            upstream.name.as_str().into(),
            upstream.balance.as_str().into(),
            Cell::painted(&up.to_string(), colour),
            backends.to_string().into(),
            sum(|backend| backend.in_flight).into(),
            sum(|backend| backend.requests).into(),
            not_up(upstream).into(),
        ]);
    }
    let mut text = format!("\n{}", table.render(colour));
    if all > UPSTREAMS {
        text += &format!("and {} more: rrlb backend list\n", all - UPSTREAMS);
    }
    text
}

/// `app-1 down, app-2 draining, app-3 slow start 35 %`, the first few.
fn not_up(upstream: &Upstream) -> String {
    const FEW: usize = 4;
    let rest = || upstream.backends.iter().filter(|one| one.effective != "up" || one.slow_start.is_some());
    let word = |backend: &super::wire::Backend| match &backend.slow_start {
        Some(slow_start) => format!("{} slow start {} %", backend.id, slow_start.percent),
        None => format!("{} {}", backend.id, backend.effective),
    };
    let mut shown: Vec<String> = rest().take(FEW).map(word).collect();
    if rest().count() > FEW {
        shown.push(format!("{} more", rest().count() - FEW));
    }
    shown.join(", ")
}

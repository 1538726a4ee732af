//! `rrlb reload`, `diff` and `confirm`.

use std::time::Duration;

use http::Method;

use super::{
    client::{Call, Client},
    failure::Failure,
    screen::Screen,
    table::{Paint, clean, clean_line, count, paint, span},
    wire::{Change, ReloadReport},
};

/// Building a large configuration and binding its addresses takes its time.
const PATIENCE: Duration = Duration::from_secs(120);

/// How to reload.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ask<'a> {
    pub(super) dry_run: bool,
    pub(super) confirm: Option<Duration>,
    pub(super) abort_if: Option<&'a str>,
    pub(super) json: bool,
}

/// Reloads, or says what that would change.
///
/// # Errors
/// The file is not valid; the instance refused.
pub(super) async fn reload(ask: Ask<'_>, client: &Client, screen: &mut Screen) -> Result<(), Failure> {
    let call = Call::new(Method::POST, &["config", "reload"])
        .query_if(ask.dry_run, "dry_run", "true")
        .query_time("confirm", ask.confirm)
        .query_some("abort_if", ask.abort_if)
        .patience(PATIENCE);
    let what = if ask.dry_run { "comparing" } else { "reloading" };
    let answer = match screen.waiting(what, client.call(call)).await {
        Err(Failure::Invalid { report, problems }) if ask.json => {
            // Programs read standard output.
            screen.print(&problems.as_ref().map_or_else(String::new, ToString::to_string))?;
            return Err(Failure::Invalid { report, problems });
        }
        answer => answer?,
    };
    if ask.json {
        return screen.print(&answer.text());
    }
    let report: ReloadReport = answer.read()?;
    if !report.warnings.is_empty() {
        screen.note(&clean(report.warnings.trim_end()));
    }
    let text = render(&report, ask, screen.colour);
    screen.print(&text)
}

/// Keeps a reload that waits for it.
///
/// # Errors
/// None waits.
pub(super) async fn confirm(client: &Client, screen: &mut Screen) -> Result<(), Failure> {
    client.call(Call::new(Method::POST, &["config", "confirm"])).await?;
    screen.print("confirmed: the configuration that runs stays")
}

fn render(report: &ReloadReport, ask: Ask<'_>, colour: bool) -> String {
    let mut text: String = report.changes.iter().map(|change| line(change, colour)).collect();
    let (changes, generation) = (count(report.changes.len() as u64, "change"), report.generation);
    let upgrade = report.changes.iter().filter(|change| change.needs_upgrade).count() as u64;
    text += &match (report.changes.is_empty(), ask.dry_run) {
        (true, true) => "a reload would change nothing\n".to_owned(),
        (true, false) => format!("reloaded, nothing is different: generation {generation}\n"),
        (false, true) => format!("{changes}; nothing was done\n"),
        (false, false) => format!("reloaded, {changes}: generation {generation}\n"),
    };
    if upgrade > 0 {
        let verb = if upgrade == 1 { "takes" } else { "take" };
        text += &format!("{} {verb} effect only by `rrlb upgrade`\n", count(upgrade, "change"));
    }
    if let Some(left) = report.confirm_within {
        let early = ask.abort_if.map_or_else(String::new, |condition| format!(", and at once if {condition}"));
        let words = format!("it goes back by itself in {} unless `rrlb confirm` comes{early}", span(left));
        text += &format!("{}\n", paint(&words, Paint::Warn, colour));
    }
    text
}

fn line(change: &Change, colour: bool) -> String {
    let kind = match change.sign.as_str() {
        "+" => Paint::Good,
        "-" => Paint::Bad,
        _ => Paint::Warn,
    };
    let detail = if change.detail.is_empty() { String::new() } else { format!(": {}", change.detail) };
    let upgrade = if change.needs_upgrade { "  (needs an upgrade)" } else { "" };
    let words = format!("{} {}{detail}{upgrade}", change.sign, change.path);
    format!("{}\n", paint(&clean_line(&words), kind, colour))
}

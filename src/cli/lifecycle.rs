//! `rrlb upgrade` and `rrlb stop`.

use std::{
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use http::Method;
use serde_json::{Map, Value, json};
use tokio::time::{Instant, sleep};

use super::{
    client::{Call, Client, time_text},
    failure::Failure,
    screen::Screen,
    wire::{Status, Upgraded},
};

/// The instance's own default for how long a successor may take.
const DEFAULT: Duration = Duration::from_secs(60);
/// What it may take longer: ending a successor that hangs.
const GRACE: Duration = Duration::from_secs(15);
/// How long it is asked who serves, where the instance broke off, and how often.
const AFTERMATH: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_millis(200);
/// What the clock of an instance may differ from ours.
const SKEW: Duration = Duration::from_secs(1);

/// Starts a successor and waits until it serves.
///
/// # Errors
/// It did not come to serve; the instance goes on then.
pub(super) async fn upgrade(
    binary: Option<&Path>,
    timeout: Option<Duration>,
    json: bool,
    client: &Client,
    screen: &mut Screen,
) -> Result<(), Failure> {
    let mut body = Map::new();
    if let Some(binary) = binary {
        // Relative to where we are, not to where the instance is.
        let path: PathBuf = std::path::absolute(binary).unwrap_or_else(|_| binary.to_owned());
        let Some(text) = path.to_str() else {
            return Err(Failure::Usage(format!("--binary {}: the path is not UTF-8", path.display())));
        };
        body.insert("binary".to_owned(), Value::from(text));
    }
    if let Some(timeout) = timeout {
        body.insert("timeout".to_owned(), Value::from(time_text(timeout)));
    }
    let patience = timeout.unwrap_or(DEFAULT).saturating_add(GRACE);
    let call = Call::new(Method::POST, &["upgrade"]).json(Value::Object(body)).patience(patience);
    let began = SystemTime::now();
    let answer = match screen.waiting("waiting for the successor to serve", client.call(call)).await {
        Err(Failure::BrokenOff(why)) => {
            let pid = screen.waiting("the instance broke off; asking who serves", survivor(client, began, why)).await?;
            return screen.print(&match json {
                true => json!({ "pid": pid }).to_string(),
                false => format!("upgraded: process {pid} serves; the one before it ended before it could say so"),
            });
        }
        answer => answer?,
    };
    if json {
        return screen.print(&answer.text());
    }
    let upgraded: Upgraded = answer.read()?;
    screen.print(&format!("upgraded: process {} serves, the one before it drains", upgraded.pid))
}

/// The process that serves, where the one that was asked for a successor broke off: the successor may serve all the same.
///
/// # Errors
/// Nobody does in time; the one that serves is none that was started since `began`.
async fn survivor(client: &Client, began: SystemTime, why: String) -> Result<u64, Failure> {
    let until = Instant::now() + AFTERMATH;
    let since = began.checked_sub(SKEW).and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
    let since = since.and_then(|since| u64::try_from(since.as_millis()).ok()).unwrap_or_default();
    loop {
        let status = match client.call(Call::get(&["status"]).patience(GRACE)).await {
            Ok(answer) => Some(answer.read::<Status>()?),
            Err(Failure::BrokenOff(_) | Failure::Deadline(_) | Failure::NoInstance { .. }) => None,
            Err(other) => return Err(other),
        };
        match status {
            Some(status) if status.state == "serving" && status.started >= since => return Ok(status.pid),
            Some(status) if status.started < since => {
                let goes_on =
                    format!("{why}; process {}, which was there before, goes on ({})", status.pid, status.state);
                return Err(Failure::BrokenOff(goes_on));
            }
            _ if Instant::now() >= until => {
                let within = AFTERMATH.as_secs();
                return Err(Failure::BrokenOff(format!("{why}; nobody serves at its place after {within} s")));
            }
            _ => sleep(AGAIN).await,
        }
    }
}

/// Has the instance drain and leave, or leave at once.
///
/// # Errors
/// It refused.
pub(super) async fn stop(now: bool, client: &Client, screen: &mut Screen) -> Result<(), Failure> {
    let call = Call::new(Method::POST, &["stop"]).query_if(now, "now", "true");
    match client.call(call).await {
        // It may be gone before its answer is.
        Err(Failure::BrokenOff(_)) if now => {}
        answer => _ = answer?,
    }
    screen.print(if now { "leaving at once" } else { "draining; it leaves when its requests are done" })
}

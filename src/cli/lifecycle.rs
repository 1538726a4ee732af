//! `rrlb upgrade` and `rrlb stop`.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use http::Method;
use serde_json::{Map, Value};

use super::{
    client::{Call, Client, time_text},
    failure::Failure,
    screen::Screen,
    wire::Upgraded,
};

/// The instance's own default for how long a successor may take.
const DEFAULT: Duration = Duration::from_secs(60);
/// What it may take longer: ending a successor that hangs.
const GRACE: Duration = Duration::from_secs(15);

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
    let answer = screen.waiting("waiting for the successor to serve", client.call(call)).await?;
    if json {
        return screen.print(&answer.text());
    }
    let upgraded: Upgraded = answer.read()?;
    screen.print(&format!("upgraded: process {} serves, the one before it drains", upgraded.pid))
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

//! What the admin API asks of the process as a whole. The process implements it; a test double does too.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use serde::Serialize;

/// The process, as the API sees it.
#[async_trait]
pub trait Operator: Send + Sync {
    /// Reads the configuration file again and runs with it, or only says what that would change.
    ///
    /// # Errors
    /// The file is not valid, an address cannot be bound, another reload or an upgrade is under way. Nothing has changed then.
    async fn reload(&self, how: Reload, who: &str) -> Result<ReloadReport, OperatorError>;

    /// Keeps a reload that waits for its confirmation.
    ///
    /// # Errors
    /// None waits.
    async fn confirm(&self, who: &str) -> Result<(), OperatorError>;

    /// Starts a successor and waits until it serves; this process drains then.
    ///
    /// # Errors
    /// Another upgrade is under way, a reload waits for its confirmation. The successor did not come to serve, with what it printed last. This process goes on.
    async fn upgrade(&self, how: Upgrade, who: &str) -> Result<Upgraded, OperatorError>;

    /// Drains and leaves, as by SIGTERM; `now`: leaves at once, as by SIGINT.
    async fn stop(&self, now: bool, who: &str);

    /// The process in numbers.
    fn status(&self) -> Status;

    /// The configuration that runs, as text of the file's form, with secrets left out and every default written.
    fn effective_config(&self) -> String;
}

/// How to reload.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Reload {
    /// Change nothing.
    pub dry_run: bool,
    /// Go back by itself after this unless [`Operator::confirm`] comes.
    pub confirm: Option<Duration>,
    /// Go back by itself, while it waits for the confirmation, as soon as this is so.
    pub abort_if: Option<AbortIf>,
}

/// Share of answers with 5xx since the reload, over this and over the share of the minute before.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AbortIf {
    /// In hundredths of a percent: 200 is 2 %.
    pub share: u32,
}

/// What a reload changed, or would change.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct ReloadReport {
    /// Counts the configurations of this process, from 1.
    pub generation: u64,
    /// What is different.
    pub changes: Vec<Change>,
    /// Rendered as `check` does; empty where there are none.
    pub warnings: String,
    /// Seconds until it goes back by itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirm_within: Option<u64>,
}

/// One difference between two configurations.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Change {
    /// `+`, `-` or `~`.
    pub sign: char,
    /// The place in the file: `upstreams.app.backends`, `listeners 0.0.0.0:80`, `threads`.
    pub path: String,
    /// What is other: `1 -> 2`; empty where that would be long or secret.
    pub detail: String,
    /// Takes effect only by an upgrade.
    pub needs_upgrade: bool,
}

/// How to upgrade.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Upgrade {
    /// Another binary than the one that runs.
    pub binary: Option<std::path::PathBuf>,
    /// How long the successor may take until it serves; default 60 s.
    pub timeout: Option<Duration>,
}

/// A successor serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Upgraded {
    /// Its process.
    pub pid: u32,
}

/// Why the process did not do as asked.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs)] // the texts say it
pub enum OperatorError {
    #[error("another {0} is under way")]
    Busy(&'static str),
    /// The report of `check`, for people and as JSON.
    #[error("the configuration is not valid; nothing was changed")]
    Invalid { human: String, json: String },
    #[error("no reload waits for a confirmation")]
    NothingToConfirm,
    #[error("{0}; nothing was changed")]
    Reload(String),
    #[error(
        "no reload waits for a confirmation any more: it was taken back; `rrlb reload` runs with the file all the same"
    )]
    TakenBack,
    #[error("a reload waits for its confirmation: confirm it (`rrlb confirm`), or wait until it is taken back")]
    Unconfirmed,
    #[error("the upgrade failed: {0}; this process goes on")]
    Upgrade(String),
}

/// The process in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct Status {
    /// As `rrlb version` prints it.
    pub version: &'static str,
    /// The process.
    pub pid: u32,
    /// Milliseconds since 1970.
    pub started: u64,
    /// `starting`, `serving`, `draining`.
    pub state: &'static str,
    /// What still holds up readiness; empty where nothing does.
    pub not_ready: String,
    /// A process before this one, which has handed over, still has connections.
    pub predecessor_draining: bool,
    /// Event loops.
    pub workers: usize,
    /// Client connections open.
    pub connections: usize,
    /// Of the configuration: the file, which one of this process it is, when it was loaded.
    pub config: ConfigStatus,
    /// Listening addresses.
    pub listeners: Vec<String>,
}

/// The configuration in numbers.
#[derive(Clone, Debug, Serialize)]
pub struct ConfigStatus {
    /// The file.
    pub file: String,
    /// Counted from 1.
    pub generation: u64,
    /// Milliseconds since 1970.
    pub loaded: u64,
    /// Seconds until it goes back by itself unless confirmed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub confirm_within: Option<u64>,
    /// `file`, or `last_confirmed`: the file was to be confirmed and was taken back.
    pub runs: &'static str,
    /// Why the last reload failed; empty where it did not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_error: String,
}

/// What the API needs.
pub struct Parts {
    /// Who belongs to which upstream.
    pub store: Arc<crate::runtime::store::Store>,
    /// The process.
    pub operator: Arc<dyn Operator>,
    /// For `/v1/status` and `/v1/upstreams`.
    pub metrics: Arc<crate::telemetry::metrics::Metrics>,
    /// Answers under way.
    pub answering: Answering,
}

/// Counts the answers under way, for who must not end the process before they are out.
#[derive(Clone, Debug, Default)]
pub struct Answering(Arc<AtomicUsize>);

/// One answer, until this is dropped.
#[derive(Debug)]
pub struct OneAnswer(Answering);

impl Answering {
    /// Another answer is under way.
    pub fn one(&self) -> OneAnswer {
        self.0.fetch_add(1, Ordering::AcqRel);
        OneAnswer(self.clone())
    }

    /// Whether there are any.
    pub fn any(&self) -> bool {
        self.0.load(Ordering::Acquire) > 0
    }
}

impl Drop for OneAnswer {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Reads `5xx > 2%`.
///
/// # Errors
/// It is written in another way; the text says which would be right.
pub fn parse_abort_if(text: &str) -> Result<AbortIf, String> {
    let wrong = || format!("`{text}` is not a condition; write `5xx > 2%`");
    let share =
        text.trim().strip_prefix("5xx").and_then(|rest| rest.trim_start().strip_prefix('>')).ok_or_else(wrong)?;
    let number = share.trim().strip_suffix('%').ok_or_else(wrong)?.trim_end();
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() || whole.len() > 3 || part.len() > 2 || !digits(whole) || !digits(part) {
        return Err(wrong());
    }
    let hundredths = format!("{part:0<2}");
    let share = whole.parse::<u32>().map_err(|_| wrong())? * 100 + hundredths.parse::<u32>().map_err(|_| wrong())?;
    if share > 10_000 {
        return Err(wrong());
    }
    Ok(AbortIf { share })
}

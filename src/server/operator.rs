//! What the admin API and signals ask of the process: each is done on a thread that may block, so that who asks goes on
//! with other work.

use std::{
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;

use super::running::Running;
use crate::service::admin::operator::{
    ConfigStatus, Operator, OperatorError, Reload, ReloadReport, Status, Upgrade, Upgraded,
};

/// The process as those see it who ask something of it.
pub(super) struct Desk {
    running: Arc<Running>,
}

impl Desk {
    /// For one process.
    pub(super) fn new(running: Arc<Running>) -> Self {
        Self { running }
    }
}

#[async_trait]
impl Operator for Desk {
    async fn reload(&self, how: Reload, who: &str) -> Result<ReloadReport, OperatorError> {
        let (running, who) = (self.running.clone(), who.to_owned());
        let done = tokio::task::spawn_blocking(move || running.reload(&how, &who)).await;
        done.unwrap_or_else(|error| Err(OperatorError::Reload(format!("a fault of rrlb: {error}"))))
    }

    async fn confirm(&self, who: &str) -> Result<(), OperatorError> {
        self.running.confirm(who)
    }

    async fn upgrade(&self, how: Upgrade, who: &str) -> Result<Upgraded, OperatorError> {
        // TODO: when `server/upgrade.rs` can start a successor, that.
        let _ = (how, who);
        Err(OperatorError::Upgrade("this build cannot start a successor; use `rrlb -u -c FILE`".to_owned()))
    }

    async fn stop(&self, now: bool, who: &str) {
        // TODO: when `Control` takes commands, one of them; until then what a person would do.
        let signal = if now { libc::SIGINT } else { libc::SIGTERM };
        log::info!("asked to stop by {who}");
        // SAFETY: a plain system call on this process.
        unsafe { libc::kill(libc::getpid(), signal) };
    }

    fn status(&self) -> Status {
        let running = &self.running;
        let listeners = running.held().listeners.iter().map(|(address, _)| address.to_string()).collect();
        let ledger = running.ledger();
        let now = Instant::now();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            started: millis(running.began),
            state: running.readiness.phase(),
            not_ready: running.readiness.not_ready().to_owned(),
            workers: running.kits.len(),
            connections: running.crew.open(),
            config: ConfigStatus {
                file: running.file.display().to_string(),
                generation: ledger.generation,
                loaded: millis(ledger.loaded),
                confirm_within: ledger
                    .pending
                    .as_ref()
                    .map(|pending| pending.due.saturating_duration_since(now).as_secs()),
                last_error: ledger.last_error.clone(),
            },
            listeners,
        }
    }

    fn effective_config(&self) -> String {
        // TODO: when `config` can write a model, that.
        format!("# {}\n", self.running.file.display())
    }
}

fn millis(at: SystemTime) -> u64 {
    u64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

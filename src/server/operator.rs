//! What the admin API and signals ask of the process: each is done on a thread that may block, so that who asks goes on
//! with other work.

use std::{
    sync::Arc,
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use async_trait::async_trait;
use tokio::sync::mpsc;

use super::{running::Running, signals::Command};
use crate::{
    config,
    service::admin::operator::{
        ConfigStatus, Operator, OperatorError, Reload, ReloadReport, Status, Upgrade, Upgraded,
    },
    telemetry::events::News,
};

/// The process as those see it who ask something of it.
pub(super) struct Desk {
    running: Arc<Running>,
    control: mpsc::Sender<Command>,
}

impl Desk {
    /// For one process.
    pub(super) fn new(running: Arc<Running>, control: mpsc::Sender<Command>) -> Self {
        Self { running, control }
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
        let news = |what: &str| News { who: who.to_owned(), what: what.to_owned(), ..News::default() };
        let events = self.running.store.events();
        events.tell("process.upgrading", news("a successor is started"));
        let done = match self.running.is_unconfirmed() {
            // It would be kept without anybody's having said so.
            true => Err(OperatorError::Unconfirmed),
            false => self.running.successors.start(how).await,
        };
        match &done {
            Ok(Upgraded { pid }) => events.tell("process.draining", news(&format!("process {pid} serves"))),
            Err(error) => events.tell("process.upgrade_failed", news(&error.to_string())),
        }
        done
    }

    async fn stop(&self, now: bool, who: &str) {
        // The loop takes commands for as long as the process lives; one more than it has room for changes nothing.
        let _ = self.control.try_send(Command::Stop { now, who: who.to_owned() });
    }

    fn status(&self) -> Status {
        let running = &self.running;
        let mut held = running.held();
        let listeners = held.listeners.iter().map(|(address, _)| address.to_string()).collect();
        let predecessor_draining = held.predecessor_draining();
        drop(held);
        let ledger = running.ledger();
        let now = Instant::now();
        Status {
            version: env!("CARGO_PKG_VERSION"),
            pid: std::process::id(),
            started: millis(running.began),
            state: running.readiness.phase(),
            not_ready: running.readiness.not_ready().to_owned(),
            predecessor_draining,
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
                runs: if ledger.taken_back.is_some() { "last_confirmed" } else { "file" },
                last_error: ledger.last_error.clone(),
            },
            listeners,
        }
    }

    fn effective_config(&self) -> String {
        let text = config::effective(&self.running.store.model());
        match self.running.instead_of_file() {
            Some(other) => format!("# {}\n{text}", other.replace('\n', " ")),
            None => text,
        }
    }
}

fn millis(at: SystemTime) -> u64 {
    u64::try_from(at.duration_since(UNIX_EPOCH).unwrap_or_default().as_millis()).unwrap_or(u64::MAX)
}

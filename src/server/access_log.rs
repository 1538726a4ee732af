//! The access log's writers: the one in use, and those of configurations before, until their last request has ended.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Duration,
};

use super::{StartError, process::Account};
use crate::{
    config::model::{AccessLog, LogTarget},
    telemetry::{
        log_writer::{DEFAULT_LIMIT, LogHandle, LogWriter, Target},
        metrics::Metrics,
    },
};

/// The writers.
#[derive(Default)]
pub(super) struct Logs(Mutex<Writers>);

#[derive(Default)]
struct Writers {
    used: Option<Open>,
    retired: Vec<Retired>,
    /// Before, the process may yet fork, and threads would be lost.
    started: bool,
}

/// An open log.
pub(super) struct Open {
    target: LogTarget,
    writer: Arc<LogWriter>,
}

struct Retired {
    writer: Arc<LogWriter>,
    users: Vec<Weak<LogHandle>>,
}

/// What becomes of the log with another configuration.
pub(super) enum Next {
    /// It is written where it was.
    Kept,
    /// There is none.
    Off,
    /// It is written elsewhere.
    Opened(Open),
}

impl Open {
    /// Opens the target of a log; writes nothing yet.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(super) fn of(log: &AccessLog, metrics: &Metrics, account: Option<&Account>) -> Result<Self, StartError> {
        let target = match &log.target {
            LogTarget::File(path) => Target::File(path.clone()),
            LogTarget::Stdout => Target::Stdout,
        };
        let failed = |error| match &log.target {
            LogTarget::File(path) => StartError::AccessLog(path.clone(), error),
            LogTarget::Stdout => StartError::AccessLog("-".into(), error),
        };
        let made = matches!(&log.target, LogTarget::File(path) if std::fs::symlink_metadata(path).is_err());
        let writer = LogWriter::open(target, DEFAULT_LIMIT, metrics.log_counts()).map_err(failed)?;
        if let (Some(account), LogTarget::File(path)) = (account.filter(|_| made), &log.target) {
            account.own(path).map_err(failed)?;
        }
        Ok(Self { target: log.target.clone(), writer: Arc::new(writer) })
    }

    /// A way for one worker to write lines.
    pub(super) fn handle(&self) -> Arc<LogHandle> {
        Arc::new(self.writer.handle())
    }

    fn start(&self) {
        if let Err(error) = self.writer.start() {
            log::error!("cannot start the access log's writer: {error}");
        }
    }
}

impl Logs {
    /// Begins with this one.
    pub(super) fn new(used: Option<Open>) -> Self {
        Self(Mutex::new(Writers { used, ..Writers::default() }))
    }

    /// Starts to write.
    pub(super) fn start(&self) {
        let mut writers = self.lock();
        writers.started = true;
        writers.used.iter().for_each(Open::start);
    }

    /// Has the files opened anew, as after a rotation. Returns whether there is a log.
    pub(super) fn reopen(&self) -> bool {
        let writers = self.lock();
        let all = writers.used.iter().map(|open| &open.writer);
        all.chain(writers.retired.iter().map(|retired| &retired.writer)).for_each(|writer| writer.reopen());
        writers.used.is_some()
    }

    /// Opens what another configuration asks for; nothing changes yet.
    ///
    /// # Errors
    /// It cannot be opened.
    pub(super) fn prepare(&self, log: Option<&AccessLog>, metrics: &Metrics) -> Result<Next, StartError> {
        let Some(log) = log else { return Ok(Next::Off) };
        if self.lock().used.as_ref().is_some_and(|used| used.target == log.target) {
            return Ok(Next::Kept);
        }
        Open::of(log, metrics, None).map(Next::Opened)
    }

    /// Puts it in place. The log before is closed when `users`, its handles, are gone: a request's line goes to the log
    /// that it began with.
    pub(super) fn replace(&self, next: Next, users: Vec<Weak<LogHandle>>) {
        let used = match next {
            Next::Kept => return,
            Next::Off => None,
            Next::Opened(open) => Some(open),
        };
        let mut writers = self.lock();
        if writers.started {
            used.iter().for_each(Open::start);
        }
        if let Some(before) = std::mem::replace(&mut writers.used, used) {
            writers.retired.push(Retired { writer: before.writer, users });
        }
    }

    /// Closes what is not used any more.
    pub(super) fn sweep(&self) {
        /// A reader that stalls must not hold up other work; what it does not take is lost.
        const PATIENCE: Duration = Duration::from_secs(1);
        let unused = |retired: &mut Retired| retired.users.iter().all(|user| user.strong_count() == 0);
        let done: Vec<Retired> = self.lock().retired.extract_if(.., unused).collect();
        for retired in done {
            if !retired.writer.shutdown(PATIENCE) {
                log::warn!("the access log before this one could not be written to its end");
            }
        }
    }

    /// Writes what is left. `false` where that took longer than `patience`.
    pub(super) fn shutdown(&self, patience: Duration) -> bool {
        let writers = self.lock();
        let used = writers.used.iter().map(|open| &open.writer);
        // Not lazily: each is to be written.
        let ended: Vec<bool> = used
            .chain(writers.retired.iter().map(|retired| &retired.writer))
            .map(|writer| writer.shutdown(patience))
            .collect();
        ended.into_iter().all(|ended| ended)
    }

    fn lock(&self) -> MutexGuard<'_, Writers> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

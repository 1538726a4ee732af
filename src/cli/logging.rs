//! The process's own log, on standard error: one line per event, with time and level. `RUST_LOG` chooses other levels.

use env_logger::{Builder, Env, Target};

use crate::telemetry::process_log::ProcessLog;

/// rrlb from info, everything else from warn; of Pingora nothing: what goes wrong with a request is logged here, with
/// the upstream's name and at a bounded rate.
const LEVELS: &str = "warn,rrlb=info,pingora=off,pingora_core=off,pingora_proxy=off";

/// Starts logging. A second start changes nothing.
pub(super) fn start() -> ProcessLog {
    let log = ProcessLog::default();
    let mut builder = Builder::from_env(Env::default().default_filter_or(LEVELS));
    let target = Target::Pipe(Box::new(log.clone()));
    let _ = builder.format_timestamp_millis().format_target(false).target(target).try_init();
    log
}

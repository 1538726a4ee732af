//! The process's own log, on standard error: one line per event, with time and level. `RUST_LOG` chooses other levels.

use env_logger::{Builder, Env};

/// rrlb from info, everything else from warn; of Pingora only errors: what goes wrong with a request is logged here with
/// the upstream's name.
const LEVELS: &str = "warn,rrlb=info,pingora=error,pingora_core=error,pingora_proxy=error";

/// Starts logging. A second start changes nothing.
pub(super) fn start() {
    let mut builder = Builder::from_env(Env::default().default_filter_or(LEVELS));
    let _ = builder.format_timestamp_millis().format_target(false).try_init();
}

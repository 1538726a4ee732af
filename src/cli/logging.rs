//! The process's own log, on standard error: one line per event, with time and level. `RUST_LOG` chooses other levels. Lines
//! to systemd's journal say how grave they are (`sd-daemon(3)`), so that `journalctl -p err` finds what went wrong.

use std::{
    borrow::Cow,
    env,
    io::{self, Write},
    os::fd::BorrowedFd,
};

use env_logger::{Builder, Env, Target};
use log::{Level, LevelFilter};
use nix::sys::stat::{FileStat, SFlag, fstat};

use crate::{server::LOG_FD, telemetry::process_log::ProcessLog};

/// rrlb from info, everything else from error; of Pingora nothing: what goes wrong with a request is logged here, with
/// the upstream's name and at a bounded rate.
const LEVELS: &str = "error,rrlb=info,pingora=off,pingora_core=off,pingora_proxy=off";
/// Silent unless it is asked for by name: it warns of what strangers send, at length and without bound. Why a handshake
/// failed is counted, and told at a bounded rate, by `listener/refusals.rs`.
const RUSTLS: &str = "rustls";

/// Starts logging. A second start changes nothing.
pub(super) fn start() -> ProcessLog {
    let log = ProcessLog::default();
    let mut builder = Builder::from_env(Env::default().default_filter_or(LEVELS));
    if !env::var("RUST_LOG").is_ok_and(|levels| levels.contains(RUSTLS)) {
        builder.filter_module(RUSTLS, LevelFilter::Off);
    }
    let journal = Journal::of_environment();
    builder.format(move |out, record| {
        let text = record.args().to_string().replace('\n', "\n    ");
        let text = format!("[{} {:<5}] {text}\n", out.timestamp_millis(), record.level());
        out.write_all(journal.marked(record.level(), &text).as_bytes())
    });
    let target = Target::Pipe(Box::new(log.clone()));
    let _ = builder.target(target).try_init();
    log
}

/// Says on standard error, in whole lines, why the process cannot start.
pub(super) fn complain(text: &str) {
    let text = Journal::of_environment().marked(Level::Error, text);
    // Where standard error is gone there is nobody left to tell.
    let _ = io::stderr().write_all(text.as_bytes());
}

/// The journal that the service manager has connected standard error to, if it has.
#[derive(Clone, Copy, Debug)]
struct Journal {
    /// Device and inode (`systemd.exec(5)`).
    stream: Option<(u64, u64)>,
    /// Of a successor: what the process before it has as its standard error, and passes on to.
    passed_on: Option<i32>,
}

impl Journal {
    fn of_environment() -> Self {
        let stream = env::var("JOURNAL_STREAM").ok().and_then(|text| {
            let (device, inode) = text.split_once(':')?;
            Some((device.parse().ok()?, inode.parse().ok()?))
        });
        Self { stream, passed_on: env::var(LOG_FD).ok().and_then(|number| number.parse().ok()) }
    }

    /// Whole lines, as they are written. Looks each time: standard error may become another.
    fn marked<'a>(&self, level: Level, lines: &'a str) -> Cow<'a, str> {
        if !self.is_standard_error() {
            return lines.into();
        }
        lines.split_inclusive('\n').flat_map(|line| [priority(level), line]).collect()
    }

    fn is_standard_error(&self) -> bool {
        let Some(stream) = self.stream else { return false };
        let is_stream = |stat: &FileStat| (stat.st_dev, stat.st_ino) == stream;
        let Ok(own) = fstat(io::stderr()) else { return false };
        is_stream(&own)
            || (SFlag::from_bits_truncate(own.st_mode) & SFlag::S_IFMT == SFlag::S_IFIFO
                && self.passed_on.and_then(of_number).is_some_and(|stat| is_stream(&stat)))
    }
}

fn of_number(number: i32) -> Option<FileStat> {
    // SAFETY: it is only asked about; where it is open no more that fails.
    fstat(unsafe { BorrowedFd::borrow_raw(number) }).ok()
}

/// As syslog counts.
fn priority(level: Level) -> &'static str {
    match level {
        Level::Error => "<3>",
        Level::Warn => "<4>",
        Level::Info => "<6>",
        Level::Debug | Level::Trace => "<7>",
    }
}

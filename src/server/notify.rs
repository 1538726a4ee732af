//! What systemd is told (`sd_notify(3)`): that the process serves, which process is the main one, that it reloads or
//! stops, and that it lives. Nothing where `NOTIFY_SOCKET` is not set.

use std::{
    io,
    time::{Duration, Instant},
};

use sd_notify::NotifyState::{self, Custom, MainPid, Ready, Reloading, Status, Stopping, Watchdog as Alive};

use crate::listener::Crew;

/// How long threads and logs may take to end after a drain.
const AFTER_DRAIN: Duration = Duration::from_secs(15);

/// This process serves, and is the main one: also where one before it could not say so.
pub(super) fn serving(status: &str) {
    tell(&[MainPid(std::process::id()), Ready, Status(status)]);
}

/// Another process serves from now on. From here on only that one may speak.
pub(super) fn upgraded(pid: i32) {
    if let Ok(pid) = u32::try_from(pid) {
        tell(&[MainPid(pid)]);
    }
}

/// The configuration is read again; [`reloaded`] must follow, whatever comes of it.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[Reloading, now]),
        Err(error) => failed(&error),
    }
}

/// The reload is over, well or not.
pub(super) fn reloaded(status: &str) {
    tell(&[Ready, Status(status)]);
}

/// One line for `systemctl status`, which goes with [`reloaded`] too.
pub(super) fn status(text: &str) {
    tell(&[Status(text)]);
}

/// The process drains for `within` at most, and nobody comes after it. It must have that long, whatever `TimeoutStopSec`
/// says.
pub(super) fn stopping(status: &str, within: Duration) {
    let micros = within.saturating_add(AFTER_DRAIN).as_micros().min(u128::from(u64::MAX));
    // The crate's own variant ends at 71 minutes.
    let extend = format!("EXTEND_TIMEOUT_USEC={micros}");
    tell(&[Stopping, Status(status), Custom(&extend)]);
}

/// Whether somebody listens, who starts this process again when it has failed.
pub(super) fn is_managed() -> bool {
    std::env::var_os("NOTIFY_SOCKET").is_some()
}

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        failed(&error);
    }
}

fn failed(error: &io::Error) {
    log::warn!("cannot tell the service manager: {error}");
}

/// Says that the process lives, at half the time after which systemd would end it, as long as the signal loop (who calls
/// this) and the event loop of every worker turn. It does not look at health checks, the log or the admin API.
pub(super) struct Watchdog {
    every: Option<Duration>,
    next: Instant,
    told: bool,
}

impl Watchdog {
    /// As `WATCHDOG_USEC` says; never due where it does not.
    pub(super) fn new() -> Self {
        let every = sd_notify::watchdog_enabled().map(|limit| limit / 2).filter(|every| !every.is_zero());
        Self { every, next: Instant::now(), told: false }
    }

    /// Waits until it is time to [`Watchdog::beat`].
    pub(super) async fn due(&self) {
        match self.every {
            Some(_) => tokio::time::sleep_until(self.next.into()).await,
            None => std::future::pending().await,
        }
    }

    /// Says it if all workers turn; looks again soon where one does not.
    pub(super) fn beat(&mut self, crew: &Crew) {
        let Some(every) = self.every else { return };
        let turns = crew.turns();
        if turns {
            tell(&[Alive]);
        } else if !self.told {
            log::error!("a worker does not answer; without it the watchdog is not told that this process lives");
        }
        self.told = !turns;
        self.next = Instant::now() + if turns { every } else { every / 10 };
    }
}

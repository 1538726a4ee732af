//! What reaches a running process from outside: signals, and commands of the admin API, which mean the same.

use std::io;

use nix::sys::signal::{SigSet, Signal as HeldSignal};
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    sync::mpsc,
};

/// What the admin API asks of the signal loop.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Command {
    /// As SIGTERM, or as SIGINT.
    Stop {
        /// Cut off what is under way.
        now: bool,
        /// Who asks, for the log.
        who: String,
    },
}

/// Until the signal loop runs, a signal must neither end the process without order nor be lost: it waits.
pub(super) fn hold_signals() {
    let mut held = SigSet::empty();
    for signal in [HeldSignal::SIGINT, HeldSignal::SIGQUIT, HeldSignal::SIGTERM] {
        held.add(signal);
    }
    if let Err(error) = held.thread_block() {
        log::warn!("cannot hold signals back during the start: {error}");
    }
}

/// Everything that the signal loop waits for.
pub(super) struct Signals {
    pub(super) commands: Option<mpsc::Receiver<Command>>,
    pub(super) hangup: Signal,
    pub(super) interrupt: Signal,
    pub(super) quit: Signal,
    pub(super) reopen: Signal,
    pub(super) terminate: Signal,
    pub(super) user2: Signal,
}

impl Signals {
    /// From here on signals are heard, and those that were held back too.
    ///
    /// # Errors
    /// As `sigaction(2)`.
    pub(super) fn listen(commands: Option<mpsc::Receiver<Command>>) -> io::Result<Self> {
        let signals = Self {
            commands,
            hangup: signal(SignalKind::hangup())?,
            interrupt: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            reopen: signal(SignalKind::user_defined1())?,
            terminate: signal(SignalKind::terminate())?,
            user2: signal(SignalKind::user_defined2())?,
        };
        // What came since the start of the process has waited; see `hold_signals`.
        SigSet::all().thread_unblock()?;
        Ok(signals)
    }

    /// The next command; never comes where nobody can give one.
    pub(super) async fn command(commands: &mut Option<mpsc::Receiver<Command>>) -> Command {
        if let Some(receiver) = commands
            && let Some(command) = receiver.recv().await
        {
            return command;
        }
        *commands = None;
        std::future::pending().await
    }
}

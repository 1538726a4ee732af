//! Signals, hand-over and drain: when the process begins to serve, when it stops, and what it leaves behind. Stands in
//! for Pingora's own signal loop, which sleeps the whole grace period and leaves even where a hand-over failed.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use pingora_core::server::{ShutdownSignal, ShutdownSignalWatch};
use tokio::{
    io::unix::AsyncFd,
    sync::{mpsc, watch},
};

pub(super) use super::signals::hold_signals;
use super::{
    StartError,
    access_log::Logs,
    admin::HeldAdmin,
    handover::{Farewell, HandedOver},
    notify::{self, Watchdog},
    process::{self, OwnLog, PidFile},
    signals::{Command, Signals},
    successor::{self, Successors},
    upgrade::{DRAINING_KEY, Estate, HandOver, HandOverError, Successor, UpgradeSocket, is_there},
};
use crate::{
    config::model::Process,
    listener::{Crew, Listening, tickets::TicketKeys},
    runtime::store::Store,
    service::{
        admin::operator::{Operator, OperatorError, Reload, Upgrade},
        operations::Readiness,
    },
    telemetry::process_log::ProcessLog,
    types::ListenAddress,
};

/// How often a drain looks whether anything is left.
const LOOK: Duration = Duration::from_millis(10);
/// How long an answer to who asked for the end may take.
const ANSWERING: Duration = Duration::from_secs(1);
/// How long the first rounds and the workers may take before anything is served.
const START_PATIENCE: Duration = Duration::from_secs(30);

/// Everything that the end of the process concerns.
pub(super) struct Control {
    /// Workers that accept, and how many there are to be.
    pub(super) started: Arc<AtomicUsize>,
    pub(super) workers: usize,
    pub(super) crew: Arc<Crew>,
    pub(super) drain: watch::Sender<bool>,
    pub(super) close_operations: watch::Sender<bool>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) logs: Arc<Logs>,
    pub(super) process_log: ProcessLog,
    pub(super) upgrade_sock: PathBuf,
    pub(super) pid_file: Option<PidFile>,
    /// Opened when workers and metrics are to accept.
    pub(super) gate: watch::Sender<bool>,
    /// The process that waits for this one to serve in the background.
    pub(super) daemon_parent: Option<i32>,
    pub(super) state: Arc<Mutex<Held>>,
    /// What is handed over beside the sockets.
    pub(super) store: Arc<Store>,
    pub(super) tickets: Arc<TicketKeys>,
    /// When the workers' clock began.
    pub(super) epoch: Instant,
    pub(super) successors: Successors,
    /// Where this process logs when it serves.
    pub(super) own_log: OwnLog,
    pub(super) process: Process,
    /// Who reloads.
    pub(super) operator: Arc<dyn Operator>,
    pub(super) commands: Mutex<Option<mpsc::Receiver<Command>>>,
    pub(super) hooks: Hooks,
    /// Why nothing was served, for the exit code.
    pub(super) failed: Arc<Mutex<Option<StartError>>>,
}

/// What others do when processes change. All may be called on any thread.
#[derive(Clone)]
pub(super) struct Hooks {
    /// Why a successor gets nothing now.
    pub(super) refusal: Arc<dyn Fn() -> Option<OperatorError> + Send + Sync>,
    /// A reload is to be as soon as one can be.
    pub(super) reload_later: Arc<dyn Fn() + Send + Sync>,
    /// A successor serves; it goes on when this returns. What is kept for it on the disk must be so by then.
    pub(super) on_upgraded: Arc<dyn Fn() -> Farewell + Send + Sync>,
    /// The process before this one has given up its names, and changes nothing any more.
    pub(super) on_taken_over: Arc<dyn Fn(Farewell) + Send + Sync>,
    /// Whether an answer is still on its way to somebody who asked for the end of this process.
    pub(super) answering: Arc<dyn Fn() -> bool + Send + Sync>,
}

/// What is given up along the way.
pub(super) struct Held {
    pub(super) listeners: Vec<(ListenAddress, Arc<Listening>)>,
    /// Upper bound of a drain.
    pub(super) grace: Duration,
    /// The metrics listener, kept for a successor.
    pub(super) operations: Option<(String, Arc<std::net::TcpListener>)>,
    /// The admin API's sockets, kept for a successor.
    pub(super) admin: HeldAdmin,
    /// The process to tell that this one serves.
    pub(super) predecessor: Option<Successor>,
    /// Of processes before this one; each is closed by the end of its process.
    pub(super) predecessors: Vec<OwnedFd>,
    /// Open until the end of this process, for the one that comes after it.
    pub(super) handed_over: Option<HandOver>,
}

impl Held {
    /// Whether a process before this one may still have requests.
    pub(super) fn predecessor_draining(&mut self) -> bool {
        self.predecessors.retain(is_there);
        !self.predecessors.is_empty()
    }

    /// Descriptors of their own for a successor, by address.
    fn copies(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let listeners = self
            .listeners
            .iter()
            .map(|(address, socket)| Ok((address.to_string(), socket.as_fd().try_clone_to_owned()?)));
        let operations = self
            .operations
            .iter()
            .map(|(address, socket)| Ok((operations_key(address), socket.as_fd().try_clone_to_owned()?)));
        let draining = self.predecessors.iter().filter(|connection| is_there(connection)).enumerate();
        let draining =
            draining.map(|(number, connection)| Ok((format!("{DRAINING_KEY}{number}"), connection.try_clone()?)));
        listeners.chain(operations).chain(self.admin.copies()).chain(draining).collect()
    }
}

/// What a successor gets.
struct House {
    held: Arc<Mutex<Held>>,
    store: Arc<Store>,
    tickets: Arc<TicketKeys>,
    epoch: Instant,
    hooks: Hooks,
}

impl Estate for House {
    fn refusal(&self, pid: i32) -> Option<String> {
        let why = (self.hooks.refusal)()?.to_string();
        log::warn!("process {pid} wants to take over and may not: {why}");
        Some(why)
    }

    fn sockets(&self, pid: i32) -> io::Result<Vec<(String, OwnedFd)>> {
        log::info!("process {pid} asks for the listeners");
        self.held.lock().unwrap_or_else(PoisonError::into_inner).copies()
    }

    fn state(&self) -> HandedOver {
        HandedOver::collect(&self.store.snapshot(), &self.tickets, self.epoch.elapsed())
            .with_overrides(self.store.hand_over())
    }

    fn given(&self, pid: i32) -> Farewell {
        let farewell = (self.hooks.on_upgraded)();
        // Before it answers: this process may end before the other comes to speak.
        notify::upgraded(pid);
        farewell
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// Nobody comes after this process, but perhaps one that has asked for the listeners.
    Terminated {
        /// One has.
        claimed: bool,
    },
    /// This new process serves.
    Upgraded(i32),
}

#[async_trait]
impl ShutdownSignalWatch for Control {
    async fn recv(&self) -> ShutdownSignal {
        if let Err(error) = self.process_log.detach() {
            log::error!("cannot start the log's writer: {error}");
        }
        let commands = self.commands.lock().unwrap_or_else(PoisonError::into_inner).take();
        match Signals::listen(commands) {
            Ok(signals) => self.serve(signals).await,
            Err(error) => self.fail(StartError::Io { what: "cannot wait for signals".into(), error }),
        }
        if !self.logs.shutdown(Duration::from_secs(5)) {
            log::warn!("the access log could not be written to its end");
        }
        // All that a graceful shutdown is has been done; Pingora has only to end its threads.
        ShutdownSignal::FastShutdown
    }
}

impl Control {
    async fn serve(&self, mut signals: Signals) {
        self.logs.start();
        if !self.workers_accept(&mut signals).await {
            return;
        }
        let mut upgrades = self.begin();
        let (report, mut reports) = mpsc::channel(1);
        let claimed = self.successors.claimed().clone();
        let mut watchdog = Watchdog::new();
        loop {
            let stop = tokio::select! {
                _ = signals.terminate.recv() => Command::Stop { now: false, who: "SIGTERM".into() },
                _ = signals.interrupt.recv() => Command::Stop { now: true, who: "SIGINT".into() },
                command = Signals::command(&mut signals.commands) => command,
                () = watchdog.due() => { watchdog.beat(&self.crew); continue; }
                _ = signals.quit.recv() => {
                    match claimed.load(Ordering::Acquire) {
                        true => log::info!("SIGQUIT: a new process is starting; this one drains as soon as that serves"),
                        false => log::warn!(
                            "SIGQUIT ignored: no new process has asked for the listeners; start one with `rrlb upgrade -c FILE`"
                        ),
                    }
                    continue;
                }
                _ = signals.hangup.recv() => { self.reload(); continue; }
                _ = signals.reopen.recv() => {
                    if !self.logs.reopen() {
                        log::info!("SIGUSR1: there is no access log to open again");
                    }
                    continue;
                }
                _ = signals.user2.recv() => { self.upgrade(); continue; }
                asked = next(upgrades.as_ref()) => {
                    match asked {
                        Ok(hand_over) => self.hand_over(hand_over, &claimed, report.clone()),
                        Err(error) => log::warn!("upgrade socket: {error}"),
                    }
                    continue;
                }
                Some((pid, outcome)) = reports.recv() => match outcome {
                    Ok(()) => {
                        log::info!("process {pid} serves: draining, for at most {:?}", self.held().grace);
                        self.successors.served(pid);
                        return self.leave(Leaving::Upgraded(pid), &mut signals, watchdog).await;
                    }
                    Err(error) => {
                        let error: io::Error = error;
                        log::error!("process {pid} ended the upgrade before it served ({error}); going on as before");
                        continue;
                    }
                }
            };
            let Command::Stop { now, who } = stop;
            if let Some(upgrades) = upgrades.take() {
                upgrades.into_inner().remove();
            }
            // One that was started here is not to outlive this process; one that was started by hand may.
            let claimed = !self.successors.call_off() && claimed.load(Ordering::Acquire);
            if !now {
                log::info!("{who}: draining, for at most {:?}", self.held().grace);
                notify::stopping("draining", self.held().grace);
                return self.leave(Leaving::Terminated { claimed }, &mut signals, watchdog).await;
            }
            log::info!("{who}: leaving at once");
            notify::stopping("leaving", Duration::ZERO);
            if !claimed {
                self.forget_unix_sockets();
            }
            return self.answered().await;
        }
    }

    /// As SIGHUP asks.
    fn reload(&self) {
        let (operator, later) = (self.operator.clone(), self.hooks.reload_later.clone());
        tokio::spawn(async move {
            // It tells of its failure itself.
            let done = operator.reload(Reload::default(), "SIGHUP").await;
            if let Err(OperatorError::Busy(_) | OperatorError::Unconfirmed) = done {
                // What is under way may have read the file before it was changed.
                later();
            }
        });
    }

    /// As SIGUSR2 asks, which is nginx's signal for it.
    fn upgrade(&self) {
        log::info!("SIGUSR2: starting a new process");
        let operator = self.operator.clone();
        tokio::spawn(async move {
            let started = operator.upgrade(Upgrade::default(), "SIGUSR2").await;
            if let Err(error) = started {
                log::debug!("{error}");
            }
        });
    }

    /// Waits, not for long, until who asked for the end of this process has an answer.
    async fn answered(&self) {
        let began = Instant::now();
        while (self.hooks.answering)() && began.elapsed() < ANSWERING {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Opens the gate and waits until every worker accepts. A successor opens it only when it knows its backends:
    /// until then the process before it serves. Returns whether all went well.
    async fn workers_accept(&self, signals: &mut Signals) -> bool {
        let successor = self.held().predecessor.is_some();
        let started = async {
            if successor {
                self.readiness.first_rounds().await;
            }
            self.gate.send_replace(true);
            while self.started.load(Ordering::Acquire) < self.workers {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            done = tokio::time::timeout(START_PATIENCE, started) => match done {
                Ok(()) => return true,
                Err(_) => self.fail(StartError::NotReady(START_PATIENCE)),
            },
            _ = signals.terminate.recv() => log::info!("SIGTERM before anything was served: leaving"),
            _ = signals.interrupt.recv() => log::info!("SIGINT before anything was served: leaving"),
        }
        if !successor {
            self.forget_unix_sockets();
        }
        false
    }

    /// This process serves from here on: the one before it may go, and it can be upgraded itself.
    fn begin(&self) -> Option<AsyncFd<UpgradeSocket>> {
        let (predecessor, addresses) = {
            let mut held = self.held();
            let listeners = held.listeners.iter().map(|(address, _)| format!("serving on {address}"));
            let operations = held.operations.iter().map(|(address, _)| format!("metrics on {address}"));
            let addresses: Vec<_> = listeners.chain(operations).collect();
            (held.predecessor.take(), addresses)
        };
        if let Some(predecessor) = predecessor {
            // Its end would be the end of the pipe that this one logs into.
            self.own_log.take(&self.process);
            let farewell = predecessor.serving().unwrap_or_else(|error| {
                log::warn!("the process before this one has gone by itself: {error}");
                None
            });
            (self.hooks.on_taken_over)(farewell.unwrap_or_default());
        }
        // Only now its names: had this process died before, the old one would still be found under them.
        let upgrades = UpgradeSocket::listen(&self.upgrade_sock).and_then(|socket| {
            // SAFETY: `UpgradeSocket` keeps the descriptor open for as long as it is registered.
            unsafe { AsyncFd::register(socket) }.map_err(Into::into)
        });
        let upgrades = upgrades.inspect_err(|error| {
            log::error!("no upgrade with -u is possible: {}: {error}", self.upgrade_sock.display());
        });
        if let Some(pid_file) = &self.pid_file {
            pid_file.write();
        }
        for address in addresses {
            log::info!("{address}");
        }
        self.readiness.serve();
        notify::serving("serving");
        if let Some(parent) = self.daemon_parent {
            process::tell_parent(parent, self.upgrade_sock.clone());
        }
        upgrades.ok()
    }

    fn fail(&self, error: StartError) {
        *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
    }

    fn hand_over(&self, hand_over: HandOver, claimed: &Arc<AtomicBool>, report: mpsc::Sender<(i32, io::Result<()>)>) {
        let pid = hand_over.pid();
        let (held, store, tickets) = (self.state.clone(), self.store.clone(), self.tickets.clone());
        let (epoch, hooks, claimed) = (self.epoch, self.hooks.clone(), claimed.clone());
        let house = House { held, store, tickets, epoch, hooks };
        // A thread and not a task: it waits for as long as the new process likes, and must not keep this one from ending.
        std::thread::spawn(move || {
            let outcome = match hand_over.run(&house, &claimed) {
                Ok(()) => {
                    house.held.lock().unwrap_or_else(PoisonError::into_inner).handed_over = Some(hand_over);
                    Ok(())
                }
                Err(HandOverError::Failed(error)) => Err(error),
                Err(HandOverError::NotAsked(error)) => return log::debug!("upgrade socket: {error}"),
            };
            // Nobody listens any more where the process is ending.
            let _ = report.blocking_send((pid, outcome));
        });
    }

    /// Finishes what is under way.
    async fn leave(&self, mut leaving: Leaving, signals: &mut Signals, mut watchdog: Watchdog) {
        self.readiness.drain();
        let began = Instant::now();
        match leaving {
            Leaving::Upgraded(_) => drop(self.close_operations.send_replace(true)),
            Leaving::Terminated { claimed: true } => {}
            Leaving::Terminated { claimed: false } => self.forget_unix_sockets(),
        }
        let sockets: Vec<_> = {
            let mut held = self.held();
            held.operations = None;
            held.admin.give_up();
            held.listeners.drain(..).map(|(_, socket)| Arc::downgrade(&socket)).collect()
        };
        self.drain.send_replace(true);
        loop {
            // A worker gives up a listener only after it has taken what waited there.
            let accepting = sockets.iter().any(|socket| socket.strong_count() > 0);
            let open = self.crew.open();
            if !accepting && open == 0 {
                log::info!("drained after {:?}", began.elapsed());
                return self.answered().await;
            }
            if let Leaving::Upgraded(pid) = leaving
                && notify::is_managed()
                && successor::has_failed(pid)
            {
                // Nobody listens any more, and nobody is started as long as this process is there.
                return log::error!("process {pid} has died: {open} connections cut off, so that another is started");
            }
            let grace = self.held().grace;
            if began.elapsed() >= grace {
                log::warn!("{open} connections cut off after the grace period of {grace:?}");
                return;
            }
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                // After an upgrade it is the other's life that counts.
                () = watchdog.due(), if !matches!(leaving, Leaving::Upgraded(_)) => watchdog.beat(&self.crew),
                Command::Stop { now, who } = Signals::command(&mut signals.commands) => match now {
                    true => return log::warn!("{who}: {open} connections cut off"),
                    false => log::info!("{who}: draining already"),
                },
                _ = signals.terminate.recv() => match leaving {
                    Leaving::Terminated { .. } => return log::warn!("second SIGTERM: {open} connections cut off"),
                    Leaving::Upgraded(_) => {
                        log::info!("SIGTERM: draining already; a second one cuts {open} connections off");
                        leaving = Leaving::Terminated { claimed: true };
                    }
                },
                _ = signals.interrupt.recv() => return log::warn!("SIGINT: {open} connections cut off"),
                _ = signals.quit.recv() => log::info!("SIGQUIT: draining already"),
                _ = signals.reopen.recv() => drop(self.logs.reopen()),
                _ = signals.hangup.recv() => {}
                _ = signals.user2.recv() => {}
            }
        }
    }

    /// Unix listeners leave a file behind, which would look like a dead server.
    fn forget_unix_sockets(&self) {
        self.held().admin.forget();
        for (address, _) in &self.held().listeners {
            if let ListenAddress::Unix(path) = address
                && let Err(error) = std::fs::remove_file(path)
            {
                log::debug!("removing {address}: {error}");
            }
        }
    }

    fn held(&self) -> std::sync::MutexGuard<'_, Held> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The metrics listener among the sockets of a hand-over.
pub(super) fn operations_key(address: &str) -> String {
    format!("metrics {address}")
}

async fn next(upgrades: Option<&AsyncFd<UpgradeSocket>>) -> io::Result<HandOver> {
    let Some(upgrades) = upgrades else { return std::future::pending().await };
    loop {
        let mut ready = upgrades.readable().await?;
        match ready.try_io(|socket| socket.get_ref().accept()) {
            Ok(accepted) => return accepted,
            Err(_) => continue,
        }
    }
}

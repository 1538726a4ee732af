//! Assembly: from a validated model to a running process. Everything that can fail does so here, before the process
//! serves, and with an error that says what to do.

mod access_log;
mod admin;
mod assembly;
mod confirm;
mod control;
mod handover;
mod note;
mod notify;
mod observer;
mod operator;
mod place;
mod process;
mod reload;
mod running;
mod signals;
mod stapling;
mod successor;
mod unconfirmed;
mod upgrade;
mod upkeep;

use std::{
    io,
    path::PathBuf,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Instant, SystemTime},
};

use access_log::{Logs, Open};
use admin::AdminSockets;
use control::{Control, Held, Hooks};
use handover::HandedOver;
use observer::Observer;
use operator::Desk;
use pingora_core::{
    server::{RunArgs, Server},
    services::background::background_service,
};
pub(crate) use place::{AdminSocket, admin_sockets, only_admin_socket};
pub(crate) use process::LOG_FD;
use process::{Account, BoundFiles, OwnLog, PidFile};
use running::{Ledger, NextTools, Running};
use signals::Command;
use successor::Successors;
use tokio::sync::{mpsc, watch};
pub use unconfirmed::Beginning;
use unconfirmed::Unconfirmed;
use upgrade::{Inherited, UpgradeSocket};
use upkeep::{Seen, Upkeep};

use crate::{
    config::model::Model,
    listener::{BindError, Draining, Worker, certificates::Certificates},
    proxy::{Current, Kit, Log},
    runtime::{
        journal::{Journal, Overrides},
        snapshot::Snapshot,
        store::{Store, give_back},
        upstream::Upstream,
    },
    service::{
        admin::operator::{Answering, Operator, Parts},
        discover::Discovery,
        health::HealthChecks,
        ocsp::Fetching,
        operations::{Operations, Readiness},
        resolve::Resolver,
    },
    telemetry::{events::Events, metrics::Metrics, process_log::ProcessLog},
    types::{ListenAddress, Name},
};

/// Descriptors beside listeners and event loops without which nothing could be served.
const SPARE_DESCRIPTORS: u64 = 32;

/// How to start.
#[derive(Clone, Debug)]
pub struct Start {
    /// The configuration file, which names the default upgrade socket.
    pub config: PathBuf,
    /// Go to the background.
    pub daemon: bool,
    /// Take the listening sockets over from the running process.
    pub upgrade: bool,
}

/// Why the process could not start; the text says what to do about it.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the texts say it
pub enum StartError {
    #[error("an rrlb that listens at {} is running; take over from it with -u, or give this one another `upgrade_sock:`", .0.display())]
    AlreadyRunning(PathBuf),
    #[error("cannot open the access log {}: {}; its folder must exist and be writable", .0.display(), .1)]
    AccessLog(PathBuf, io::Error),
    #[error(transparent)]
    Bind(#[from] BindError),
    #[error("{0}; this process itself listens on {1}, which must be given up in a reload of its own first")]
    BindOverlap(BindError, ListenAddress),
    #[error("cannot become user {0}: {1}")]
    ChangeUser(String, io::Error),
    #[error("`group: {0}` needs `user:` as well")]
    GroupWithoutUser(String),
    #[error("the process at {} did not hand its listeners over: {}; it goes on serving", .0.display(), .1)]
    HandOver(PathBuf, io::Error),
    #[error(
        "the running process goes on: another upgrade is under way, or a reload waits for its confirmation; wait until it is done, or confirm it"
    )]
    HandOverBusy,
    #[error("{what}: {error}")]
    Io { what: String, error: io::Error },
    #[error("there is no group {0}; create it or change `group:`")]
    NoSuchGroup(String),
    #[error("there is no user {0}; create it or change `user:`")]
    NoSuchUser(String),
    #[error("only root can change to user {0}; start as root, or as {0} without `user:`")]
    NotRoot(String),
    #[error("a reload was confirmed or taken back while this process started; the running process goes on, try again")]
    Outdated,
    #[error(
        "not ready to serve within {0:?}: health checks or name resolution have no result yet; the process before this one goes on"
    )]
    NotReady(std::time::Duration),
    #[error("nothing to take over: no rrlb listens at {}; start without -u, or check `upgrade_sock:`", .0.display())]
    NothingToTakeOver(PathBuf),
    #[error("cannot write the pid file {}: {}; its folder must exist and be writable", .0.display(), .1)]
    PidFile(PathBuf, io::Error),
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error(
        "the system has no trusted certificates, and upstream {0} verifies its backends by them; install ca-certificates or set `ca:`"
    )]
    NoRoots(Name),
    #[error("cannot make the folder {} for `upgrade_sock:`: {}", .0.display(), .1)]
    UpgradeFolder(PathBuf, io::Error),
    #[error(
        "only {limit} file descriptors may be open, at least {needed} are needed; raise the limit (ulimit -n, LimitNOFILE=)"
    )]
    TooFewDescriptors { needed: u64, limit: u64 },
    #[error("the folder {} of `upgrade_sock:` belongs to user {}, and must belong to user {}, who rrlb runs as; chown it or name another", .0.display(), .1, .2)]
    UpgradeFolderOwner(PathBuf, u32, u32),
    #[error("others can write the folder {} of `upgrade_sock:`, and so could take the listeners; chmod go-w it or name another", .0.display())]
    UpgradeFolderOpen(PathBuf),
}

/// Starts, serves, and returns when the process has drained.
///
/// # Errors
/// Nothing was served: a port is used, a user is unknown, there is nothing to take over …
pub fn run(beginning: Beginning, start: &Start, process_log: &ProcessLog) -> Result<(), StartError> {
    let Beginning { loaded, mut past } = beginning;
    let model = &loaded.model;
    ignore_early_signals();
    let own_log = OwnLog::inherited();
    let daemon = (start.daemon || model.process.daemon) && !own_log.is_successor();
    let successors = Successors::new(&start.config);
    if !daemon {
        // In the background the first process has its own way with signals.
        control::hold_signals();
    }
    let process = &model.process;
    process::raise_descriptor_limit(SPARE_DESCRIPTORS + (model.listeners.len() + 8 * process.threads) as u64)?;
    let account = Account::of(process)?;
    let account = account.as_ref();
    let default_sock = || process::default_upgrade_sock(&start.config, account);
    let upgrade_sock = process.upgrade_sock.clone().unwrap_or_else(default_sock);
    process::private_folder(&upgrade_sock, account)?;
    if !start.upgrade && UpgradeSocket::is_served(&upgrade_sock) {
        return Err(StartError::AlreadyRunning(upgrade_sock));
    }
    let mut inherited = start.upgrade.then(|| Inherited::take(&upgrade_sock)).transpose()?;
    if inherited.is_some() && past.is_outdated() {
        return Err(StartError::Outdated);
    }

    // Everything that is bound and opened.
    let mut bound = BoundFiles::default();
    let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION"), process.threads));
    let tickets = HandedOver::tickets(inherited.as_ref().and_then(Inherited::state))?;
    let events = Arc::new(if inherited.is_some() { Events::held() } else { Events::default() });
    let certificates = Arc::new(Certificates::new(tickets.clone(), metrics.clone(), events.clone()));
    certificates.follow(&model.certificates);
    let mut listeners = Vec::with_capacity(model.listeners.len());
    for listener in &model.listeners {
        listeners.push(assembly::listener(listener, &certificates, &metrics, inherited.as_mut(), &mut bound)?);
    }
    let operations = model.metrics.map(|address| assembly::operations(address, inherited.as_mut())).transpose()?;
    let admin = AdminSockets::open(model, &upgrade_sock, inherited.as_mut(), &mut bound, account, &certificates)?;
    let log = model.access_log.as_ref().map(|log| Open::of(log, &metrics, account)).transpose()?;
    assembly::check_roots(model)?;

    // Who belongs to the upstreams, and what the workers serve by.
    let (journal, mut restored) = journal(
        model,
        start.upgrade,
        inherited.as_ref().and_then(Inherited::state).and_then(|handed| handed.overrides(0)),
    );
    let merged = past.merged();
    if let Some((before, after)) = merged.clone().filter(|_| past.is_undone()) {
        give_back(&mut restored, before, &after);
    }
    let store = Arc::new(Store::new(Arc::new(model.clone()), restored, journal, metrics.clone(), events.clone()));
    match merged {
        Some(_) if past.is_undone() => store.keep_start(),
        Some((before, after)) => store.resume_merged(before, &after),
        None => {}
    }
    let snapshot = store.snapshot();
    if let Some(handed) = inherited.as_ref().and_then(Inherited::state) {
        handed.apply(&snapshot);
    }
    metrics.config_loads.increment();
    metrics.config_generation.set(1);
    let conf = assembly::worker_conf();
    let epoch = Instant::now();
    // Another size needs an upgrade: kits, and what they keep, outlive reloads.
    let kit = |index| Arc::new(Kit::new(index, epoch, metrics.clone(), process.upstream_keepalive_pool_size));
    let kits: Vec<Arc<Kit>> = (0..process.threads).map(kit).collect();
    let profiles = assembly::profiles(model);
    let format = model.access_log.as_ref().map(|log| log.format);
    let current = |kit: &Arc<Kit>| {
        let proxies = assembly::proxies(&conf, kit, process, &profiles, &[]);
        let log = log.as_ref().map(Open::handle).zip(format).map(|(handle, format)| Log { handle, format });
        (kit.clone(), Current::new(snapshot.clone(), proxies, log))
    };
    let (gate, open) = watch::channel(false);
    let (drain, draining) = Draining::switch();
    let started = Arc::new(AtomicUsize::new(0));
    let (workers, crew) = Worker::crew(&listeners, kits.iter().map(current).collect(), &draining, &open, &started);

    // The services, each on a thread of its own.
    let mut server = Server::new_with_opt_and_conf(None, assembly::server_conf(model, daemon, &upgrade_sock));
    for worker in workers {
        server.add_service(worker);
    }
    let (to_upstreams, upstreams) = watch::channel(upstreams_of(&snapshot));
    let observer = Arc::new(Observer::new(metrics.clone(), events));
    // Whoever looks for backends follows the model.
    let configs = watch::Sender::new(store.model());
    let (discovery, first_found) = Discovery::new(store.clone(), configs.subscribe());
    server.add_service(background_service("discovery", discovery));
    let (health, first_round) = HealthChecks::new(upstreams.clone(), process.clone(), observer.clone());
    server.add_service(background_service("health checks", health.after(first_found.clone())));
    let (resolver, first_lookups) = Resolver::new(upstreams);
    server.add_service(background_service("name resolution", resolver.after(first_found.clone())));
    let readiness = Readiness::new(vec![first_found, first_round, first_lookups]);
    let (close_operations, closing) = watch::channel(false);
    let (to_operations, socket) = watch::channel(operations.as_ref().map(|(_, socket)| socket.clone()));
    let (ready, closes) = (readiness.clone(), closing.clone());
    server.add_service(Operations::new(socket, metrics.clone(), ready, open.clone(), closes));
    let tools = NextTools::default();
    store.publish_by(running::publish(crew.clone(), tools.clone(), observer, to_upstreams.clone()));

    let logs = Arc::new(Logs::new(log));
    let sockets =
        listeners.drain(..).map(|listening| (listening.endpoint().model.address.clone(), listening)).collect();
    let awaiting = AtomicBool::new(inherited.is_some());
    let predecessors = inherited.as_mut().map(Inherited::predecessors).unwrap_or_default();
    let held = Arc::new(Mutex::new(Held {
        listeners: sockets,
        grace: process.grace_period,
        operations,
        admin: admin.hold().map_err(|error| StartError::Io { what: "admin sockets".into(), error })?,
        predecessor: inherited.map(Inherited::into_successor),
        predecessors,
        handed_over: None,
    }));
    let file = config_file(start, daemon);
    let unconfirmed = Unconfirmed::of(&mut past, model, &start.config);
    server.add_service(background_service("OCSP", Fetching::new(certificates.clone())));
    let running = Arc::new(Running {
        seen: Mutex::new(Seen::now(&file)),
        file,
        began: SystemTime::now(),
        store: store.clone(),
        metrics: metrics.clone(),
        readiness: readiness.clone(),
        crew: crew.clone(),
        kits,
        conf,
        certificates,
        held: held.clone(),
        logs: logs.clone(),
        operations: to_operations,
        tools,
        admin: admin.keys(),
        upstreams: to_upstreams,
        configs,
        turn: Mutex::new(()),
        successors: successors.clone(),
        wanted: AtomicBool::new(false),
        awaiting,
        ledger: Mutex::new(Ledger::new(past.source)),
        unconfirmed,
    });
    running.stand(past.standing);
    let (to_control, commands) = mpsc::channel::<Command>(4);
    let operator: Arc<dyn Operator> = Arc::new(Desk::new(running.clone(), to_control));

    let [refusing, waiting, giving, taking] = [(); 4].map(|()| running.clone());
    server.add_service(background_service("upkeep", Upkeep { running, gate: open.clone() }));
    let answering = Answering::default();
    admin.serve(
        &mut server,
        Parts { store: store.clone(), operator: operator.clone(), metrics, answering: answering.clone() },
        open,
        closing,
    );

    let pid_file = process.pid_file.as_ref().map(|path| PidFile::open(path, account)).transpose()?;
    if let Some(account) = account {
        account.assume()?;
        assembly::warn_of_rotation(model);
    }
    assembly::check_background(model, daemon)?;
    let failed = Arc::new(Mutex::new(None));
    let hooks = Hooks {
        refusal: Arc::new(move || refusing.holds_up_upgrade()),
        reload_later: Arc::new(move || waiting.wanted.store(true, Ordering::Release)),
        on_upgraded: Arc::new(move || giving.farewell()),
        on_taken_over: Arc::new(move |farewell| taking.taken_over(&farewell)),
        answering: Arc::new(move || answering.any()),
    };
    let control = Control {
        started,
        workers: process.threads,
        crew,
        drain,
        close_operations,
        readiness,
        logs,
        operator,
        process_log: process_log.clone(),
        upgrade_sock,
        pid_file,
        gate,
        daemon_parent: daemon.then(|| i32::try_from(std::process::id()).unwrap_or(0)),
        state: held,
        failed: failed.clone(),
        store,
        tickets,
        epoch,
        successors,
        own_log,
        process: process.clone(),
        commands: Mutex::new(Some(commands)),
        hooks,
    };
    bound.keep();
    server.run(RunArgs { shutdown_signal: Box::new(control) });
    let failed = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
    failed.map_or(Ok(()), Err)
}

/// The journal, and what was said at run time. A successor leaves the file alone: it is the other process's until that
/// has drained, and what that has `handed` over counts more.
fn journal(model: &Model, successor: bool, handed: Option<Overrides>) -> (Option<Journal>, Overrides) {
    let journal = model.state_file.as_deref().map(Journal::new);
    // The store's clock begins now.
    let restored = match &journal {
        Some(journal) if successor => {
            journal.seal();
            let load = || {
                journal.load(0).inspect_err(|error| log::warn!("{error}; the process before this one goes on with it"))
            };
            handed.or_else(|| load().ok())
        }
        Some(journal) => Some(journal.restore(0)),
        None => handed,
    };
    (journal, restored.unwrap_or_default())
}

/// The file to read again. In the background the process works in another folder, where a relative path leads elsewhere.
fn config_file(start: &Start, daemon: bool) -> PathBuf {
    let full = || std::path::absolute(&start.config).ok();
    daemon.then(full).flatten().unwrap_or_else(|| start.config.clone())
}

fn upstreams_of(snapshot: &Snapshot) -> Vec<Arc<Upstream>> {
    snapshot.members().iter().map(|member| member.upstream.clone()).collect()
}

/// Until the signal loop runs, signals that have a meaning here must not end the process.
fn ignore_early_signals() {
    for signal in [libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2] {
        // SAFETY: ignoring a signal has no handler that could do harm; the signal loop replaces it.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

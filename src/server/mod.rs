//! Assembly: from a validated model to a running process. Everything that can fail does so here, before the process
//! serves, and with an error that says what to do.

mod control;
mod process;
mod upgrade;

use std::{
    collections::HashMap,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError, atomic::AtomicUsize},
    time::Instant,
};

use control::{Control, Held, operations_key};
use pingora_core::{
    server::{RunArgs, Server, configuration::ServerConf},
    services::background::background_service,
};
use pingora_proxy::{HttpProxy, ProxyServiceBuilder};
use process::{Account, BoundFiles, PidFile};
use tokio::sync::watch;
use upgrade::{Inherited, UpgradeSocket};

use crate::{
    config::model::{self, LogTarget, Model},
    listener::{BindError, Draining, Endpoint, ListenSocket, Listening, Proxies, Worker, tls},
    policy::health::Flip,
    proxy::{App, Kit},
    runtime::{
        backend::BackendState, journal::Overrides, peer::TlsProfile, snapshot::Snapshot, store::Store,
        upstream::Upstream,
    },
    service::{
        health::{HealthChecks, HealthObserver},
        operations::{Operations, Readiness},
        resolve::Resolver,
    },
    telemetry::{
        events::Events,
        log_writer::{DEFAULT_LIMIT, LogWriter, Target},
        metrics::Metrics,
        process_log::ProcessLog,
    },
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
    #[error("cannot become user {0}: {1}")]
    ChangeUser(String, io::Error),
    #[error("`group: {0}` needs `user:` as well")]
    GroupWithoutUser(String),
    #[error("the process at {} did not hand its listeners over: {}; it goes on serving", .0.display(), .1)]
    HandOver(PathBuf, io::Error),
    #[error("another upgrade is under way; wait until it is done")]
    HandOverBusy,
    #[error("{what}: {error}")]
    Io { what: String, error: io::Error },
    #[error("there is no group {0}; create it or change `group:`")]
    NoSuchGroup(String),
    #[error("there is no user {0}; create it or change `user:`")]
    NoSuchUser(String),
    #[error("only root can change to user {0}; start as root, or as {0} without `user:`")]
    NotRoot(String),
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
pub fn run(model: &Model, start: &Start, process_log: &ProcessLog) -> Result<(), StartError> {
    ignore_early_signals();
    let daemon = start.daemon || model.process.daemon;
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

    let mut bound = BoundFiles::default();
    let metrics = Arc::new(Metrics::new(env!("CARGO_PKG_VERSION"), process.threads));
    let listeners = listeners(model, &metrics, inherited.as_mut(), &mut bound)?;
    let operations = model.metrics.map(|address| operations_listener(address, inherited.as_mut())).transpose()?;
    let log = access_log(model, &metrics, account)?;
    let events = Arc::new(Events::default());
    let store = Arc::new(Store::new(Arc::new(model.clone()), Overrides::new(), None, metrics.clone(), events));
    let snapshot = store.snapshot();
    check_roots(model)?;
    metrics.config_loads.increment();

    let (gate, open) = watch::channel(false);
    let (drain, draining) = Draining::switch();
    let started = Arc::new(AtomicUsize::new(0));
    let kits = kits(model, &snapshot, &metrics, log.as_deref());
    let (workers, crew) = Worker::crew(&listeners, kits, &draining, &open, &started);

    let mut server = Server::new_with_opt_and_conf(None, server_conf(model, daemon, &upgrade_sock));
    for worker in workers {
        server.add_service(worker);
    }
    let upstreams: Vec<Arc<Upstream>> = snapshot.members().iter().map(|member| member.upstream.clone()).collect();
    let (_upstreams, upstreams) = watch::channel(upstreams);
    let observer = Arc::new(Observer::new(metrics.clone(), &snapshot));
    let (health, first_round) = HealthChecks::new(upstreams.clone(), process.clone(), observer);
    server.add_service(background_service("health checks", health));
    let (resolver, first_lookups) = Resolver::new(upstreams);
    server.add_service(background_service("name resolution", resolver));
    let readiness = Readiness::new(vec![first_round, first_lookups]);
    let (close_operations, closing) = watch::channel(false);
    let operations = match operations {
        Some((address, listener)) => {
            let serving = listener.try_clone().map_err(|error| StartError::Io { what: "metrics".into(), error })?;
            server.add_service(Operations::new(serving, metrics.clone(), readiness.clone(), open, closing));
            Some((address, Arc::new(listener)))
        }
        None => None,
    };

    let pid_file = process.pid_file.as_ref().map(|path| PidFile::open(path, account)).transpose()?;
    if let Some(account) = account {
        account.assume()?;
        warn_of_rotation(model);
    }
    check_background(model, daemon)?;
    let failed = Arc::new(Mutex::new(None));
    let sockets = listeners
        .iter()
        .map(|listening| (listening.endpoint.model.address.clone(), listening.socket.clone()))
        .collect();
    let control = Control {
        started,
        workers: process.threads,
        crew,
        drain,
        close_operations,
        readiness,
        grace: process.grace_period,
        log,
        process_log: process_log.clone(),
        upgrade_sock,
        pid_file,
        gate,
        daemon_parent: daemon.then(|| i32::try_from(std::process::id()).unwrap_or(0)),
        state: Arc::new(Mutex::new(Held {
            listeners: sockets,
            operations,
            predecessor: inherited.map(Inherited::into_successor),
        })),
        failed: failed.clone(),
    };
    drop(listeners);
    bound.keep();
    server.run(RunArgs { shutdown_signal: Box::new(control) });
    let failed = failed.lock().unwrap_or_else(PoisonError::into_inner).take();
    failed.map_or(Ok(()), Err)
}

/// Until the signal loop runs, signals that have a meaning here must not end the process.
fn ignore_early_signals() {
    for signal in [libc::SIGHUP, libc::SIGUSR1, libc::SIGUSR2] {
        // SAFETY: ignoring a signal has no handler that could do harm; the signal loop replaces it.
        unsafe { libc::signal(signal, libc::SIG_IGN) };
    }
}

fn listeners(
    model: &Model,
    metrics: &Metrics,
    mut inherited: Option<&mut Inherited>,
    bound: &mut BoundFiles,
) -> Result<Vec<Arc<Listening>>, StartError> {
    let ticketer = tls::ticketer()?;
    let open = |listener: &model::Listener| -> Result<Arc<Listening>, StartError> {
        let name = Name::from(listener.address.to_string());
        let socket = match inherited.as_deref_mut().and_then(|inherited| inherited.remove(name.as_str())) {
            Some(fd) => ListenSocket::inherit(fd).map_err(|error| StartError::Io { what: name.to_string(), error })?,
            None => {
                let socket = ListenSocket::bind(&listener.address)?;
                if let ListenAddress::Unix(path) = &listener.address {
                    bound.add(path);
                }
                socket
            }
        };
        let tls = listener.tls.as_ref().map(|tls| tls::server_config(tls, ticketer.clone())).transpose()?;
        let metrics = metrics.listener(&name);
        let endpoint = Arc::new(Endpoint { model: listener.clone(), tls, metrics });
        Ok(Arc::new(Listening { endpoint, socket: Arc::new(socket) }))
    };
    model.listeners.iter().map(open).collect()
}

fn operations_listener(
    address: SocketAddr,
    inherited: Option<&mut Inherited>,
) -> Result<(String, std::net::TcpListener), StartError> {
    let name = address.to_string();
    let fd: OwnedFd = match inherited.and_then(|inherited| inherited.remove(&operations_key(&name))) {
        Some(fd) => fd,
        None => ListenSocket::bind(&ListenAddress::Inet(address))?.into(),
    };
    let listener = std::net::TcpListener::from(fd);
    listener.set_nonblocking(true).map_err(|error| StartError::Io { what: format!("metrics on {name}"), error })?;
    Ok((name, listener))
}

fn access_log(
    model: &Model,
    metrics: &Metrics,
    account: Option<&Account>,
) -> Result<Option<Arc<LogWriter>>, StartError> {
    let Some(log) = &model.access_log else { return Ok(None) };
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
    Ok(Some(Arc::new(writer)))
}

/// Pingora's connectors panic where they find no roots, so it must be known before.
fn check_roots(model: &Model) -> Result<(), StartError> {
    if model.process.ca_file.is_some() || has_roots() {
        return Ok(());
    }
    let needs = |upstream: &&model::Upstream| upstream.tls.as_ref().is_some_and(|tls| tls.verify && tls.ca.is_none());
    model.upstreams.values().find(needs).map_or(Ok(()), |upstream| Err(StartError::NoRoots(upstream.name.clone())))
}

fn has_roots() -> bool {
    !rustls_native_certs::load_native_certs().certs.is_empty()
}

/// The tools and proxies of each worker.
fn kits(
    model: &Model,
    snapshot: &Arc<Snapshot>,
    metrics: &Arc<Metrics>,
    log: Option<&LogWriter>,
) -> Vec<(Arc<Kit>, Proxies)> {
    let format = model.access_log.as_ref().map(|log| log.format);
    let conf = Arc::new(ServerConf { threads: 1, ..ServerConf::default() });
    let epoch = Instant::now();
    (0..model.process.threads)
        .map(|index| {
            let log = log.map(LogWriter::handle).zip(format);
            let kit = Arc::new(Kit::new(index, epoch, snapshot.clone(), metrics.clone(), log));
            let default = proxy(&conf, &kit, TlsProfile::default(), model);
            let mut others = HashMap::new();
            for profile in snapshot.tls_profiles() {
                if !others.contains_key(profile) {
                    others.insert(profile.clone(), proxy(&conf, &kit, profile.clone(), model));
                }
            }
            (kit, Proxies::new(default, others))
        })
        .collect()
}

/// An `HttpProxy` with the connector of its TLS profile. Pingora's builder makes it inside a service; it is taken out.
fn proxy(conf: &Arc<ServerConf>, kit: &Arc<Kit>, profile: TlsProfile, model: &Model) -> Arc<HttpProxy<App>> {
    let options = profile.connector_options(&model.process);
    let app = || App::new(kit.clone(), profile.clone());
    let mut service = ProxyServiceBuilder::new(conf, app()).client_options(options).build();
    let inside = service.app_logic_mut().expect("a service that was never started has its application");
    let spare = HttpProxy::new(app(), conf.clone());
    Arc::new(std::mem::replace(inside, spare))
}

fn server_conf(model: &Model, daemon: bool, upgrade_sock: &Path) -> ServerConf {
    let process = &model.process;
    let text = |path: &PathBuf| path.to_string_lossy().into_owned();
    ServerConf {
        daemon,
        // The first process ends when the one in the background serves, or fails.
        daemon_wait_for_ready: daemon,
        error_log: process.error_log.as_ref().map(text),
        // Pingora's daemon needs one to see whether the background process lives; the operator's is ours to write.
        pid_file: text(&upgrade_sock.with_extension("starting")),
        // Binding is done by now, and so the user is changed already.
        user: None,
        group: None,
        working_directory: process.working_directory.clone(),
        threads: process.threads,
        // One event loop on one thread per worker; see `listener/worker.rs`.
        work_stealing: false,
        grace_period_seconds: Some(0),
        graceful_shutdown_timeout_seconds: Some(process.graceful_shutdown_timeout.as_secs()),
        ..ServerConf::default()
    }
}

/// Pingora's daemon panics after the fork where these fail, when nobody is there to hear it.
fn check_background(model: &Model, daemon: bool) -> Result<(), StartError> {
    let process = &model.process;
    let io = |what: &str, path: &Path, error| StartError::Io { what: format!("{what} {}", path.display()), error };
    if !daemon {
        return Ok(());
    }
    if let Some(path) = &process.error_log {
        let opened = std::fs::OpenOptions::new().create(true).append(true).open(path);
        opened.map_err(|error| io("cannot open `error_log`", path, error))?;
    }
    if let Some(path) = &process.working_directory {
        std::fs::read_dir(path).map_err(|error| io("cannot use `working_directory`", path, error))?;
    }
    Ok(())
}

/// A log that cannot be opened again after a rotation goes on into the old file; better said now than then.
fn warn_of_rotation(model: &Model) {
    if let Some(model::AccessLog { target: LogTarget::File(path), .. }) = &model.access_log
        && let Some(folder) = path.parent()
        && nix::unistd::access(folder, nix::unistd::AccessFlags::W_OK).is_err()
    {
        log::warn!(
            "{} is not writable for the user of `user:`; the access log cannot be made anew after a rotation",
            folder.display()
        );
    }
}

/// Health in the metrics.
struct Observer {
    metrics: Arc<Metrics>,
}

impl Observer {
    fn new(metrics: Arc<Metrics>, snapshot: &Snapshot) -> Self {
        let observer = Self { metrics };
        for upstream in snapshot.members().iter().map(|member| &member.upstream) {
            for backend in upstream.backends() {
                observer.metrics.backend(&upstream.name, &backend.id).set_up(backend.is_up());
            }
        }
        observer
    }
}

impl HealthObserver for Observer {
    fn probed(&self, upstream: &Name, backend: &BackendState, success: bool) {
        if let Some(counters) = self.metrics.known_backend(upstream, &backend.id) {
            counters.checked(success);
        }
    }

    fn flipped(&self, upstream: &Name, backend: &BackendState, flip: Flip) {
        let Some(counters) = self.metrics.known_backend(upstream, &backend.id) else { return };
        counters.flipped(flip == Flip::Up);
        counters.set_up(backend.is_up());
    }
}

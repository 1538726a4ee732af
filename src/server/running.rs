//! The live process: everything that a reload changes, and what it needs to change it.

use std::{
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Instant, SystemTime},
};

use pingora_core::server::configuration::ServerConf;
use tokio::sync::watch;

use super::{
    access_log::Logs,
    admin::Keys,
    confirm::{Pending, Samples},
    control::Held,
    handover::{Farewell, History},
    note::Source,
    observer::Observer,
    successor::Successors,
    unconfirmed::Unconfirmed,
    upkeep::Seen,
};
use crate::{
    config::model::Model,
    listener::{Crew, certificates::Certificates},
    proxy::{Current, Kit, Log, Proxies},
    runtime::{
        store::{Publish, Store},
        upstream::Upstream,
    },
    service::operations::Readiness,
    telemetry::{events::News, metrics::Metrics},
};

/// The live process.
pub(super) struct Running {
    /// The configuration file.
    pub(super) file: PathBuf,
    pub(super) began: SystemTime,
    /// Owns the model and the snapshot.
    pub(super) store: Arc<Store>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) readiness: Arc<Readiness>,
    pub(super) crew: Arc<Crew>,
    /// Of each worker.
    pub(super) kits: Vec<Arc<Kit>>,
    /// For new proxies.
    pub(super) conf: Arc<ServerConf>,
    /// For new listeners; their session tickets are of the same keys, so that sessions outlive a changed listener.
    pub(super) certificates: Arc<Certificates>,
    /// Listeners and metrics sockets, shared with who hands them over.
    pub(super) held: Arc<Mutex<Held>>,
    pub(super) logs: Arc<Logs>,
    /// Where the metrics listener is put.
    pub(super) operations: watch::Sender<Option<Arc<std::net::TcpListener>>>,
    pub(super) tools: NextTools,
    /// Told of each model that runs, for those who follow it: discovery.
    pub(super) configs: watch::Sender<Arc<Model>>,
    /// Of the admin API on TCP; `None` where there is none.
    pub(super) admin: Option<Keys>,
    /// Who is probed and resolved.
    pub(super) upstreams: watch::Sender<Vec<Arc<Upstream>>>,
    /// Held by the one reload there is at a time.
    pub(super) turn: Mutex<()>,
    /// Nothing is reloaded while one of them is under way: it has read the file, and serves by that.
    pub(super) successors: Successors,
    /// A reload was asked for that could not be at that time.
    pub(super) wanted: AtomicBool,
    pub(super) ledger: Mutex<Ledger>,
    /// For the next start, where nobody confirms.
    pub(super) unconfirmed: Unconfirmed,
    /// The process before this one has not said its last: what is due is its to see to.
    pub(super) awaiting: AtomicBool,
    /// The file as it was read last.
    pub(super) seen: Mutex<Option<Seen>>,
}

/// What is known of the configurations so far.
pub(super) struct Ledger {
    /// From 1.
    pub(super) generation: u64,
    /// When the one that runs was loaded.
    pub(super) loaded: SystemTime,
    /// Why the last reload failed or was taken back; empty where it was not.
    pub(super) last_error: String,
    /// Where what runs came from.
    pub(super) source: Source,
    /// Waits for its confirmation.
    pub(super) pending: Option<Pending>,
    /// Why what runs is the last confirmed configuration and not the file; `None`: it is not so.
    pub(super) taken_back: Option<String>,
    /// This start runs with a file that was not confirmed and could not be taken back.
    pub(super) kept_unconfirmed: bool,
    pub(super) samples: Samples,
}

/// What a worker has beside the snapshot.
pub(super) struct Tools {
    pub(super) proxies: Arc<Proxies>,
    pub(super) log: Option<Log>,
}

/// What comes into use with the next snapshot, worker for worker; see [`publish`].
pub(super) type NextTools = Arc<Mutex<Option<Vec<Tools>>>>;

impl Ledger {
    /// The configuration of the start, which came from there.
    pub(super) fn new(source: Source) -> Self {
        Self {
            source,
            taken_back: None,
            kept_unconfirmed: false,
            generation: 1,
            loaded: SystemTime::now(),
            last_error: String::new(),
            pending: None,
            samples: Samples::default(),
        }
    }
}

impl Running {
    pub(super) fn held(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Another configuration runs. Returns its number.
    pub(super) fn count(&self) -> u64 {
        let mut ledger = self.ledger();
        ledger.generation += 1;
        ledger.loaded = SystemTime::now();
        ledger.last_error = String::new();
        (ledger.taken_back, ledger.kept_unconfirmed) = (None, false);
        self.metrics.config_generation.set(i64::try_from(ledger.generation).unwrap_or(i64::MAX));
        ledger.generation
    }

    /// Where what runs is not what the file says because that was not confirmed: which, and why.
    pub(super) fn instead_of_file(&self) -> Option<String> {
        let why = self.ledger().taken_back.clone()?;
        Some(format!("what runs is the last confirmed configuration, and not {}: {why}", self.file.display()))
    }

    /// Tells of a change of the process as a whole.
    pub(super) fn tell(&self, kind: &'static str, who: &str, what: String, why: String) {
        self.store.events().tell(kind, News { who: who.to_owned(), what, why, ..News::default() });
    }

    /// What the process that serves from now on is told at last; nothing is changed here any more.
    pub(super) fn farewell(&self) -> Farewell {
        // What was not told yet is told while others still hear of it.
        self.store.sweep_ejected(Instant::now());
        let overrides = self.store.give_up();
        let history = History::collect(self.store.events(), &self.metrics);
        let mut farewell =
            Farewell::new(overrides, self.wanted.load(Ordering::Acquire)).with_backends_of(&self.store.snapshot());
        farewell.history = history;
        farewell
    }

    /// The process before this one has said its last.
    pub(super) fn taken_over(&self, farewell: &Farewell) {
        let who = farewell.history.apply(self.store.events(), &self.metrics);
        let what = format!("process {} serves in place of the one before", std::process::id());
        self.tell("process.took_over", &who, what, String::new());
        // Its own first rounds are finished: what was added meanwhile joins others.
        self.store.advance_slow_starts(true);
        self.store.take_over(farewell.overrides(self.store.now()));
        farewell.apply(&self.store.snapshot());
        self.awaiting.store(false, Ordering::Release);
        self.wanted.store(farewell.reload, Ordering::Release);
    }

    /// What upkeep does in each of its rounds; `second` in the first of a second.
    pub(super) fn keep_up(&self, second: bool) {
        if self.awaiting.load(Ordering::Acquire) {
            return;
        }
        let now = Instant::now();
        self.store.sweep();
        if self.store.is_kept() {
            self.unconfirmed.tidy();
        }
        self.store.sweep_ejected(now);
        self.store.advance_slow_starts(self.readiness.not_ready().is_empty());
        self.logs.sweep();
        if second {
            let answers = self.metrics.answers();
            self.ledger().samples.push(answers);
        }
        self.judge(now, second);
        self.reload_wanted();
        if second {
            self.certificates.look();
            self.held().listeners.iter().for_each(|(_, listening)| self.crew.look_at_files(listening));
        }
        if second && self.store.model().reload_on_change {
            self.look_at_file();
        }
    }
}

/// Makes a snapshot visible: first to the workers, each with one swap of all that it serves by, then in the metrics, then
/// to those who probe and resolve.
///
/// The store calls it under its lock, so that no two snapshots are between each other. New tools are put into `tools`
/// under that lock too, right before the snapshot that needs them (`Store::reload_with`): a worker never has a
/// snapshot without a proxy for each of its TLS profiles.
pub(super) fn publish(
    crew: Arc<Crew>,
    tools: NextTools,
    observer: Arc<Observer>,
    upstreams: watch::Sender<Vec<Arc<Upstream>>>,
) -> Publish {
    Box::new(move |snapshot| {
        let next = tools.lock().unwrap_or_else(PoisonError::into_inner).take();
        let current: Vec<Current> = match next {
            Some(tools) => {
                tools.into_iter().map(|Tools { proxies, log }| Current::new(snapshot.clone(), proxies, log)).collect()
            }
            None => crew.current().map(|current| current.with(snapshot.clone())).collect(),
        };
        crew.swap(current);
        observer.follow(snapshot);
        upstreams.send_replace(snapshot.members().iter().map(|member| member.upstream.clone()).collect());
    })
}

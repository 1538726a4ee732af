//! A reload: the file is read, everything new is built and bound aside, and then put in place. What can fail does so
//! before anything has changed.
//!
//! New backends are probed and resolved first, so that those of before are not exchanged for ones that nobody knows yet.
//!
//! Order: each worker gets snapshot, proxies and log in one swap; then listeners that stay change what is behind
//! them; then new ones accept, which therefore never meet the old routes; then those that are gone close.

use std::{
    collections::HashMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Arc, PoisonError, TryLockError, Weak, atomic::Ordering},
    time::{Duration, Instant},
};

use super::{
    StartError, access_log,
    admin::{self, NextKeys},
    assembly,
    note::Source,
    notify,
    process::BoundFiles,
    running::{Running, Tools},
};
use crate::{
    config::{
        self, Format,
        model::{self, Listener, ListenerTls, Model},
    },
    listener::{Listening, Tls, certificates},
    policy::health::Health,
    proxy::{Log, Proxies},
    runtime::{
        backend::BackendState,
        snapshot::Snapshot,
        store::{Foreseen, tell_conflicts},
    },
    service::admin::operator::{Change, OperatorError, Reload, ReloadReport},
    types::{ListenAddress, Name},
};

/// How long new backends may take until they are known; with the usual timeout of a probe, one that is dead is by then.
const PROBING: Duration = Duration::from_secs(3);
/// How long sockets that are gone may take to be closed before the reload is called done; a worker that is busy takes
/// longer, and nobody waits for it.
const CLOSING: Duration = Duration::from_secs(1);

/// Built and bound, and not in place yet. Dropped, it leaves nothing behind.
struct Plan {
    listeners: Vec<(ListenAddress, Arc<Listening>, Step)>,
    gone: Vec<(ListenAddress, Arc<Listening>)>,
    /// `None`: as it is.
    operations: Option<Option<(String, Arc<std::net::TcpListener>)>>,
    log: access_log::Next,
    tools: Vec<Tools>,
    /// Of the admin API on TCP, where there is one.
    keys: Option<NextKeys>,
    bound: BoundFiles,
}

/// What becomes of a listener.
enum Step {
    Added,
    Changed(Box<Listener>, Option<Arc<Tls>>),
    Kept,
}

/// Whether another configuration is new, or the one before.
#[derive(Clone, Copy)]
pub(super) enum Way<'a> {
    /// The one before, with the proxies it had, worker for worker: they are used again where they fit.
    Back(&'a [Arc<Proxies>]),
    /// A new one.
    Onward,
}

impl Running {
    /// Reads the file again and runs with it, or only says what that would change.
    ///
    /// # Errors
    /// As [`crate::service::admin::operator::Operator::reload`].
    pub(super) fn reload(&self, how: &Reload, who: &str) -> Result<ReloadReport, OperatorError> {
        if how.dry_run {
            return self.dry_run();
        }
        let _turn = match self.turn.try_lock() {
            Ok(turn) => turn,
            Err(TryLockError::Poisoned(turn)) => turn.into_inner(),
            Err(TryLockError::WouldBlock) => return Err(not_now(who, OperatorError::Busy("reload"))),
        };
        self.reload_in_turn(how, who)
    }

    /// Does what SIGHUP has asked for when it could not be done.
    pub(super) fn reload_wanted(&self) {
        if self.is_unconfirmed() || self.successors.under_way() || !self.wanted.load(Ordering::Acquire) {
            return;
        }
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        // Before the file is read: who asks from here on wants it to be read again.
        self.wanted.store(false, Ordering::Release);
        if let Err(OperatorError::Busy(_) | OperatorError::Unconfirmed) =
            self.reload_in_turn(&Reload::default(), "SIGHUP")
        {
            self.wanted.store(true, Ordering::Release);
        }
    }

    fn reload_in_turn(&self, how: &Reload, who: &str) -> Result<ReloadReport, OperatorError> {
        if self.is_unconfirmed() {
            return Err(not_now(who, OperatorError::Unconfirmed));
        }
        if self.readiness.is_draining() {
            return Err(OperatorError::Reload("this process is draining".to_owned()));
        }
        if self.successors.under_way() {
            return Err(not_now(who, OperatorError::Busy("upgrade")));
        }
        if how.abort_if.is_some() && how.confirm.is_none() {
            let why = "`abort_if` needs `confirm`: it is looked at while a reload waits for its confirmation";
            return Err(OperatorError::Reload(why.to_owned()));
        }
        self.note_file();
        notify::reloading();
        let outcome = self.load_and_replace(how, who);
        match &outcome {
            Ok(report) => {
                self.metrics.config_loads.increment();
                notify::reloaded(&match report.confirm_within {
                    None => format!("serving configuration {}", report.generation),
                    Some(_) => format!("serving configuration {}, which waits for its confirmation", report.generation),
                });
            }
            Err((error, short)) => {
                let first = short.lines().next().unwrap_or_default();
                notify::reloaded(&format!("serving; the last reload failed: {first}"));
                self.metrics.config_load_failures.increment();
                for line in short.lines() {
                    log::error!("not reloaded: {line}");
                }
                self.ledger().last_error = format!("{error}\n{short}").trim_end().to_owned();
                self.tell("config.reload_failed", who, "nothing was changed".to_owned(), short.clone());
            }
        }
        outcome.map_err(|(error, _)| error)
    }

    fn dry_run(&self) -> Result<ReloadReport, OperatorError> {
        let loaded = config::load(&self.file).map_err(|report| invalid(&report).0)?;
        let other = self.instead_of_file();
        Ok(ReloadReport {
            generation: self.ledger().generation,
            changes: changes(&self.store.model(), &loaded.model),
            warnings: warnings(&loaded.warnings, &self.store.foresee(&loaded.model), other),
            confirm_within: None,
        })
    }

    /// The error comes with what is logged of it.
    fn load_and_replace(&self, how: &Reload, who: &str) -> Result<ReloadReport, (OperatorError, String)> {
        let loaded = config::text(&self.file).and_then(|text| Ok((config::parse(&text, &self.file)?, text)));
        let (loaded, text) = loaded.map_err(|report| {
            if report.passing {
                // Nothing has to change for it to be read again.
                self.forget_file();
            }
            invalid(&report)
        })?;
        for line in loaded.warnings.render(Format::Short).lines() {
            log::warn!("{line}");
        }
        let before = self.store.model();
        let changes = changes(&before, &loaded.model);
        let foreseen = self.store.foresee(&loaded.model);
        let proxies = self.crew.current().map(|current| current.proxies().clone()).collect();
        // Before it runs: it may be what ends this process.
        let noted = self.note_unconfirmed(&text, &loaded.model, how, who);
        if let Err(error) = self.replace(Arc::new(runnable(&before, loaded.model)), Way::Onward) {
            if let Some((before, _)) = noted {
                self.unconfirmed.put_back(before);
            }
            let text = error.to_string();
            return Err((OperatorError::Reload(text.clone()), text));
        }
        for line in &foreseen.unready {
            log::warn!("{line}");
        }
        let generation = self.count();
        self.await_confirmation(how, before, proxies);
        self.ledger().source = Source::new(&self.file, text);
        let what = match (changes.len(), how.confirm) {
            (count, None) => format!("configuration {generation}: {count} changes"),
            (count, Some(within)) => {
                format!("configuration {generation}: {count} changes, to be confirmed within {within:?}")
            }
        };
        self.tell("config.reloaded", who, what, String::new());
        for change in changes.iter().filter(|change| change.needs_upgrade) {
            log::warn!("{} has changed in the file and stays as it is until an upgrade", change.path);
        }
        let lost = noted.and_then(|(_, lost)| lost);
        Ok(ReloadReport {
            generation,
            changes,
            warnings: warnings(&loaded.warnings, &foreseen, lost),
            confirm_within: how.confirm.map(|within| within.as_secs()),
        })
    }

    /// Runs with another model. Proxies in use are used again where they fit.
    ///
    /// # Errors
    /// An address cannot be bound, a file cannot be opened. Nothing has changed then.
    pub(super) fn replace(&self, model: Arc<Model>, way: Way<'_>) -> Result<(), StartError> {
        let kept = if let Way::Back(kept) = way { kept } else { &[] };
        let plan = self.plan(&model, kept).inspect_err(|_| self.forget_metrics_but(&self.store.model()))?;
        self.put_in_place(plan, model, way);
        Ok(())
    }

    fn plan(&self, model: &Model, kept: &[Arc<Proxies>]) -> Result<Plan, StartError> {
        assembly::check_roots(model)?;
        let (held, operations) = {
            let held = self.held();
            (held.listeners.clone(), held.operations.as_ref().map(|(address, _)| address.clone()))
        };
        let mut bound = BoundFiles::default();
        let mut listeners = Vec::with_capacity(model.listeners.len());
        for listener in &model.listeners {
            let address = listener.address.clone();
            let found = held.iter().find(|(held, _)| *held == address).map(|(_, listening)| listening.clone());
            let planned = match found {
                None => {
                    let added = assembly::listener(listener, &self.certificates, &self.metrics, None, &mut bound)
                        .map_err(|error| overlap(error, &address, &held))?;
                    (address, added, Step::Added)
                }
                Some(listening) if same(&listening.endpoint().model, listener) => (address, listening, Step::Kept),
                Some(listening) => {
                    let tls = assembly::tls(listener, &self.certificates)?;
                    (address, listening, Step::Changed(Box::new(listener.clone()), tls))
                }
            };
            listeners.push(planned);
        }
        let stays = |address: &ListenAddress| model.listeners.iter().any(|listener| listener.address == *address);
        let gone = held.into_iter().filter(|(address, _)| !stays(address)).collect();
        let operations = match model.metrics {
            Some(address) if operations.as_ref() == Some(&address.to_string()) => None,
            Some(address) => Some(Some(assembly::operations(address, None)?)),
            None => operations.is_some().then_some(None),
        };
        let log = self.logs.prepare(model.access_log.as_ref(), &self.metrics)?;
        let tools = self.tools(model, &log, kept)?;
        let tcp = model.admin.as_ref().and_then(|admin| admin.tcp.as_ref());
        let keys = tcp.map(|tcp| NextKeys::new(tcp, &self.certificates)).transpose()?;
        Ok(Plan { listeners, gone, operations, log, tools, keys, bound })
    }

    /// What each worker has beside the snapshot.
    fn tools(&self, model: &Model, log: &access_log::Next, kept: &[Arc<Proxies>]) -> Result<Vec<Tools>, StartError> {
        let profiles = assembly::profiles(model);
        let format = model.access_log.as_ref().map(|log| log.format);
        let one = |(index, current): (usize, Arc<crate::proxy::Current>)| {
            let mut before = vec![current.proxies().as_ref()];
            before.extend(kept.get(index).map(Arc::as_ref));
            let proxies = assembly::proxies(&self.conf, &self.kits[index], &model.process, &profiles, &before);
            let handle = match log {
                access_log::Next::Kept => current.log().map(|log| log.handle.clone()),
                access_log::Next::Off => None,
                access_log::Next::Opened(open) => Some(open.handle()),
            };
            Tools { proxies, log: handle.zip(format).map(|(handle, format)| Log { handle, format }) }
        };
        // Pingora's connector panics where a file of a TLS profile cannot be read any more.
        catch_unwind(AssertUnwindSafe(|| self.crew.current().enumerate().map(one).collect())).map_err(|_| {
            StartError::Io {
                what: "TLS towards the backends".to_owned(),
                error: std::io::Error::other("a `ca`, `client_cert` or `ca_file` could not be read any more"),
            }
        })
    }

    fn put_in_place(&self, plan: Plan, model: Arc<Model>, way: Way<'_>) {
        let Plan { listeners, gone, operations, log, tools, keys, bound } = plan;
        bound.keep();
        let handles = self.crew.current().filter_map(|current| current.log().map(|log| Arc::downgrade(&log.handle)));
        let users = handles.collect();
        let staged = self.store.stage(model.clone());
        self.get_to_know(staged.snapshot());
        let prepare = || *self.tools.lock().unwrap_or_else(PoisonError::into_inner) = Some(tools);
        tell_conflicts(match way {
            Way::Back(_) => self.store.revert_with(staged, prepare),
            Way::Onward => self.store.reload_with(staged, prepare),
        });
        self.configs.send_replace(model.clone());
        self.certificates.follow(&model.certificates);
        if let (Some(current), Some(next)) = (&self.admin, keys) {
            current.change(next);
        }
        self.logs.replace(log, users);
        let mut held = Vec::with_capacity(listeners.len());
        for (address, listening, step) in listeners {
            match step {
                Step::Added => {
                    self.crew.listen(&listening);
                    self.tell("listener.added", "reload", address.to_string(), String::new());
                }
                Step::Changed(listener, tls) => self.crew.change(&listening, *listener, tls),
                Step::Kept => {}
            }
            held.push((address, listening));
        }
        self.hold(held, operations, model.process.grace_period);
        self.close(gone);
        self.forget_metrics_but(&model);
    }

    /// Waits until new backends have their first verdict and address, for [`PROBING`] at most.
    fn get_to_know(&self, staged: &Snapshot) {
        let running = self.store.snapshot();
        let known: HashMap<(&Name, &Name), &Arc<BackendState>> = backends(&running).collect();
        let was_so = |upstream: &Name, backend: &BackendState| {
            known.get(&(upstream, &backend.id)).is_some_and(|before| {
                before.address == backend.address
                    && before.is_up() == backend.is_up()
                    && before.has_target() == backend.has_target()
            })
        };
        let news: Vec<Arc<BackendState>> = backends(staged)
            .filter(|(_, backend)| unknown(backend))
            .filter(|((upstream, _), backend)| !was_so(upstream, backend))
            .map(|(_, backend)| backend.clone())
            .collect();
        if news.is_empty() {
            return;
        }
        let stays = |upstream: &Name| staged.members().iter().any(|member| member.upstream.name == *upstream);
        let all =
            staged.members().iter().chain(running.members().iter().filter(|member| !stays(&member.upstream.name)));
        self.upstreams.send_replace(all.map(|member| member.upstream.clone()).collect());
        wait(PROBING, || !news.iter().any(|backend| unknown(backend)));
    }

    /// What a successor gets from now on.
    fn hold(
        &self,
        listeners: Vec<(ListenAddress, Arc<Listening>)>,
        operations: Option<Option<(String, Arc<std::net::TcpListener>)>>,
        grace: Duration,
    ) {
        let mut held = self.held();
        held.grace = grace;
        // A drain that has begun has given everything up already, and waits for the sockets to be gone.
        if self.readiness.is_draining() {
            return;
        }
        held.listeners = listeners;
        if let Some(operations) = operations {
            // The new one is put in place before the old one is closed.
            self.operations.send_replace(operations.as_ref().map(|(_, socket)| socket.clone()));
            held.operations = operations;
        }
    }

    /// Closes listeners, and waits until their addresses are free, so that the next reload may bind them again.
    fn close(&self, gone: Vec<(ListenAddress, Arc<Listening>)>) {
        for (address, listening) in &gone {
            if let ListenAddress::Unix(path) = address
                && let Err(error) = std::fs::remove_file(path)
            {
                log::warn!("removing {address}: {error}");
            }
            self.crew.close(listening);
            self.tell("listener.removed", "reload", address.to_string(), String::new());
        }
        let closing: Vec<Weak<Listening>> = gone.iter().map(|(_, listening)| Arc::downgrade(listening)).collect();
        drop(gone);
        wait(CLOSING, || closing.iter().all(|listening| listening.strong_count() == 0));
    }

    fn forget_metrics_but(&self, model: &Model) {
        let named = |name: &Name| model.listeners.iter().any(|listener| listener.address.to_string() == name.as_str());
        self.metrics.retain(named, |_| true, |_, _| true);
    }
}

/// Blocks until `done` is so, for `most` at most.
fn wait(most: Duration, done: impl Fn() -> bool) {
    let until = Instant::now() + most;
    while !done() && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Backends by upstream and id.
fn backends(snapshot: &Snapshot) -> impl Iterator<Item = ((&Name, &Name), &Arc<BackendState>)> {
    let upstreams = snapshot.members().iter().map(|member| &member.upstream);
    upstreams.flat_map(|upstream| upstream.backends().iter().map(|backend| ((&upstream.name, &backend.id), backend)))
}

/// Whether it gets no traffic for no other reason than that nothing is known of it yet.
fn unknown(backend: &BackendState) -> bool {
    !backend.has_target() || (backend.health() == Health::Unknown && !backend.is_up())
}

/// Says where it is ourselves who stand in the way: `0.0.0.0:80` and `127.0.0.1:80` cannot both be listened on.
fn overlap(error: StartError, address: &ListenAddress, held: &[(ListenAddress, Arc<Listening>)]) -> StartError {
    let port = |address: &ListenAddress| match address {
        ListenAddress::Inet(address) => Some(address.port()),
        ListenAddress::Unix(_) => None,
    };
    let ours = held.iter().map(|(held, _)| held).find(|held| port(held).is_some() && port(held) == port(address));
    match (error, ours) {
        (StartError::Bind(error), Some(ours)) => StartError::BindOverlap(error, ours.clone()),
        (error, _) => error,
    }
}

fn not_now(who: &str, error: OperatorError) -> OperatorError {
    log::warn!("not reloaded for {who}: {error}");
    error
}

fn invalid(report: &config::Report) -> (OperatorError, String) {
    let error = OperatorError::Invalid { human: report.render(Format::Human), json: report.render(Format::Json) };
    (error, report.render(Format::Short))
}

/// What is odd in the file, and what it meets.
fn warnings(file: &config::Report, foreseen: &Foreseen, more: Option<String>) -> String {
    let mut text = file.render(Format::Human);
    for line in foreseen.conflicts.iter().chain(&foreseen.unready).chain(&more) {
        text.push_str(&format!("warning: {line}\n"));
    }
    text
}

/// The configuration that a reload runs with: what only an upgrade changes stays as it is.
pub(super) fn runnable(before: &Model, loaded: Model) -> Model {
    let process = model::Process { grace_period: loaded.process.grace_period, ..before.process.clone() };
    let admin = admin::runnable(before.admin.as_ref(), loaded.admin.as_ref());
    Model { process, admin, state_file: before.state_file.clone(), ..loaded }
}

/// Whether connections to both listeners are served alike; else what is behind the socket is made anew.
fn same(one: &Listener, other: &Listener) -> bool {
    let Listener { address, tls, h2c, redirect_https, proxy_protocol, limits, access, engine } = one;
    *address == other.address
        && *h2c == other.h2c
        && *redirect_https == other.redirect_https
        && *proxy_protocol == other.proxy_protocol
        && *limits == other.limits
        && *access == other.access
        && *engine == other.engine
        && match (tls, &other.tls) {
            (None, None) => true,
            (Some(one), Some(other)) => same_tls(one, other),
            _ => false,
        }
}

/// A certificate that was renewed has its name and files as before, and other contents.
fn same_tls(one: &ListenerTls, other: &ListenerTls) -> bool {
    let ListenerTls { certificates: all, profile, min_version, alpn, client_auth, strict_sni, keylog } = one;
    *profile == other.profile
        && *min_version == other.min_version
        && *alpn == other.alpn
        && *strict_sni == other.strict_sni
        && *keylog == other.keylog
        && certificates::same_clients(client_auth.as_ref(), other.client_auth.as_ref())
        && all.len() == other.certificates.len()
        && all.iter().zip(&other.certificates).all(|(one, other)| certificates::same(one, other))
}

/// What is different in the file.
fn changes(before: &Model, after: &Model) -> Vec<Change> {
    let change =
        |config::Difference { sign, path, detail, needs_upgrade }| Change { sign, path, detail, needs_upgrade };
    config::difference(before, after).into_iter().map(change).collect()
}

#[cfg(test)]
mod tests;

//! Reloads of a process whose workers were never started: what is decided, what is kept, what is taken back.

use std::{
    fs,
    path::Path,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize},
    },
    time::SystemTime,
};

use tempfile::TempDir;
use tokio::sync::watch;

use super::*;
use crate::{
    listener::{Crew, Draining, Worker, certificates::Certificates, tickets::TicketKeys},
    proxy::{Current, Kit},
    runtime::{
        membership::{Note, Patch},
        store::Store,
    },
    server::{
        access_log::{Logs, Open},
        admin::HeldAdmin,
        control::Held,
        observer::Observer,
        running::{Ledger, NextTools, publish},
        successor::Successors,
        unconfirmed::{Beginning, Unconfirmed},
        upkeep::Seen,
    },
    service::{admin::operator::AbortIf, operations::Readiness},
    telemetry::{events::Events, metrics::Metrics},
    types::{AdminState, Name, Weight},
};

/// A process of one worker that serves nobody.
struct Process {
    running: Running,
    folder: TempDir,
    _workers: Vec<Worker>,
}

const LISTENERS: &str = "listeners: [{ address: \"unix:<dir>/a.sock\" }]\n";

fn write(folder: &Path, yaml: &str) -> std::path::PathBuf {
    let file = folder.join("rrlb.yaml");
    let listeners = if yaml.contains("listeners:") { "" } else { LISTENERS };
    let text = format!("version: 1\nupgrade_sock: <dir>/upgrade.sock\n{listeners}{yaml}")
        .replace("<dir>", &folder.display().to_string());
    fs::write(&file, text).expect("write");
    file
}

fn app(backends: &str) -> String {
    format!("upstreams: {{ app: {{ backends: [{backends}] }} }}\n")
}

impl Process {
    fn of(yaml: &str) -> Self {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = write(folder.path(), yaml);
        let Beginning { loaded, mut past } = Beginning::of(&file).expect("a good file");
        let model = loaded.model;
        let unconfirmed = Unconfirmed::of(&mut past, &model, &file);
        let metrics = Arc::new(Metrics::new("1", 1));
        let (tickets, mut bound) = (TicketKeys::new().map(Arc::new).expect("keys"), BoundFiles::default());
        let events = Arc::new(Events::default());
        let certificates = Arc::new(Certificates::new(tickets, metrics.clone(), events.clone()));
        let listeners: Vec<Arc<Listening>> = model
            .listeners
            .iter()
            .map(|listener| assembly::listener(listener, &certificates, &metrics, None, &mut bound).expect("bind"))
            .collect();
        bound.keep();
        let log = model.access_log.as_ref().map(|log| Open::of(log, &metrics, None).expect("a log"));
        let format = model.access_log.as_ref().map(|log| log.format);
        let store = Store::new(Arc::new(model.clone()), <_>::default(), None, metrics.clone(), events.clone());
        let (conf, kit) = (assembly::worker_conf(), Arc::new(Kit::new(0, Instant::now(), metrics.clone(), 8)));
        let proxies = assembly::proxies(&conf, &kit, &model.process, &assembly::profiles(&model), &[]);
        let line = log.as_ref().map(Open::handle).zip(format).map(|(handle, format)| Log { handle, format });
        let current = Current::new(store.snapshot(), proxies, line);
        let (_, gate) = watch::channel(false);
        let started = Arc::new(AtomicUsize::new(0));
        let (_, draining) = Draining::switch();
        let (workers, crew): (_, Arc<Crew>) =
            Worker::crew(&listeners, vec![(kit.clone(), current)], &draining, &gate, &started);
        let tools = NextTools::default();
        let observer = Arc::new(Observer::new(metrics.clone(), events));
        store.publish_by(publish(crew.clone(), tools.clone(), observer, watch::Sender::new(Vec::new())));
        let held = Held {
            listeners: listeners.into_iter().map(|one| (one.endpoint().model.address.clone(), one)).collect(),
            grace: model.process.grace_period,
            operations: None,
            admin: HeldAdmin::default(),
            predecessor: None,
            predecessors: Vec::new(),
            handed_over: None,
        };
        let running = Running {
            seen: Mutex::new(Seen::now(&file)),
            file,
            began: SystemTime::now(),
            store: Arc::new(store),
            metrics,
            readiness: Readiness::new(Vec::new()),
            crew,
            kits: vec![kit],
            conf,
            certificates,
            held: Arc::new(Mutex::new(held)),
            logs: Arc::new(Logs::new(log)),
            operations: watch::Sender::new(None),
            tools,
            admin: None,
            upstreams: watch::Sender::new(Vec::new()),
            configs: watch::Sender::new(Arc::new(model)),
            turn: Mutex::new(()),
            successors: Successors::new(Path::new("/rrlb.yaml")),
            wanted: AtomicBool::new(false),
            awaiting: AtomicBool::new(false),
            ledger: Mutex::new(Ledger::new(past.source)),
            unconfirmed,
        };
        Self { running, folder, _workers: workers }
    }

    fn write(&self, yaml: &str) {
        write(self.folder.path(), yaml);
    }

    fn reload(&self, how: &Reload) -> Result<ReloadReport, OperatorError> {
        self.running.reload(how, "test")
    }

    fn current(&self) -> Arc<Current> {
        self.running.crew.current().next().expect("one worker")
    }

    fn backends(&self) -> Vec<String> {
        self.current()
            .members()
            .iter()
            .flat_map(|member| member.upstream.backends())
            .map(|b| b.id.to_string())
            .collect()
    }

    fn told(&self) -> Vec<&'static str> {
        self.running.store.events().after(0, 100).0.into_iter().map(|event| event.kind).collect()
    }
}

fn confirmed_within(seconds: u64) -> Reload {
    Reload { confirm: Some(Duration::from_secs(seconds)), ..Reload::default() }
}

#[test]
fn a_dry_run_says_what_would_change_and_changes_nothing() {
    let process = Process::of(&app("10.0.0.1:80"));
    process.write(&(app("10.0.0.2:80") + "threads: 7\n"));
    let report = process.reload(&Reload { dry_run: true, ..Reload::default() }).expect("a good file");
    let needs: Vec<_> = report.changes.iter().map(|change| change.needs_upgrade).collect();
    assert_eq!((report.generation, needs), (1, vec![true, false, false]));
    assert_eq!(process.backends(), ["10.0.0.1:80"]);
    assert!(process.told().is_empty());
    process.write("upstreams: 7\n");
    let error = process.reload(&Reload { dry_run: true, ..Reload::default() }).expect_err("a bad file");
    assert!(
        matches!(error, OperatorError::Invalid { human, json } if human.contains("error[") && json.starts_with('{'))
    );
    assert_eq!(process.running.metrics.config_load_failures.value(), 0, "nothing was to be loaded");
}

#[test]
fn a_drained_backend_stays_so_over_a_reload() {
    let process = Process::of(&app("10.0.0.1:80, 10.0.0.2:80"));
    let (upstream, id): (Name, Name) = ("app".into(), "10.0.0.1:80".into());
    let drain = Patch { admin: Some(AdminState::Drain), ..Patch::default() };
    process
        .running
        .store
        .change(&upstream, None, false, |members, _| members.patch(&id, drain, Note::default()))
        .expect("another is ready");
    process.write(&app("10.0.0.1:80, 10.0.0.3:80"));
    process.reload(&Reload::default()).expect("a good file");
    assert_eq!(process.backends(), ["10.0.0.1:80", "10.0.0.3:80"]);
    let current = process.current();
    assert_eq!(current.members()[0].upstream.backends()[0].admin, AdminState::Drain);
}

#[test]
fn whoever_reloads_hears_what_was_said_at_run_time_does_to_it() {
    let process = Process::of(&app("{ id: a, address: 10.0.0.1:80 }, { id: b, address: 10.0.0.2:80 }"));
    let change = |id: &str, patch: Patch| {
        let note = Note { who: "uid 0".into(), ..Note::default() };
        process
            .running
            .store
            .change(&"app".into(), None, false, |members, _| members.patch(&id.into(), patch, note))
            .expect("another is ready");
    };
    change("b", Patch { admin: Some(AdminState::Drain), weight: Weight::new(5), ..Patch::default() });
    process.write(&app("{ id: b, address: 10.0.0.2:80, weight: 3 }"));
    for dry_run in [true, false] {
        let report = process.reload(&Reload { dry_run, ..Reload::default() }).expect("a good file");
        let expected = "warning: upstream app, backend b: weight is 3 where it is declared, and 5 by a change at run time, \
                        which holds; forget it with `rrlb backend forget app b`\n\
                        warning: upstream app: no backend is ready after this (b is drained by uid 0)\n";
        assert_eq!(report.warnings, expected);
    }
    let again = process.reload(&Reload::default()).expect("a good file");
    assert_eq!(again.warnings, "", "nothing new");
}

#[test]
fn a_bad_file_is_told_and_counted() {
    let process = Process::of(&app("10.0.0.1:80"));
    process.write("upstreams: 7\n");
    assert!(matches!(process.reload(&Reload::default()), Err(OperatorError::Invalid { .. })));
    assert_eq!(process.told(), ["config.reload_failed"]);
    assert_eq!(process.running.metrics.config_load_failures.value(), 1);
    assert!(process.running.ledger().last_error.contains("rrlb.yaml"), "{}", process.running.ledger().last_error);
    process.write(&app("10.0.0.2:80"));
    process.reload(&Reload::default()).expect("a good file");
    assert_eq!(process.running.ledger().last_error, "");
}

#[test]
fn unchanged_proxies_are_used_on() {
    let process = Process::of(&app("10.0.0.1:80"));
    let before = process.current();
    process.write(&app("10.0.0.2:80"));
    let configs = process.running.configs.subscribe();
    process.reload(&Reload::default()).expect("a good file");
    assert!(configs.has_changed().expect("the process is there"), "who follows the model hears of it");
    let one = |current: &Current| current.proxies().of(&<_>::default()).cloned().expect("the default");
    assert!(Arc::ptr_eq(&one(&before), &one(&process.current())));
}

#[test]
fn an_unconfirmed_reload_is_taken_back_and_a_confirmed_one_is_kept() {
    let process = Process::of(&app("10.0.0.1:80"));
    process.write(&app("10.0.0.2:80"));
    let report = process.reload(&confirmed_within(60)).expect("a good file");
    assert_eq!((report.generation, report.confirm_within), (2, Some(60)));
    let now = Instant::now();
    process.running.judge(now + Duration::from_secs(50), true);
    assert_eq!(process.backends(), ["10.0.0.2:80"], "there is still time");
    process.running.judge(now + Duration::from_secs(61), false);
    assert_eq!(process.backends(), ["10.0.0.1:80"]);
    assert_eq!(process.told(), ["config.reloaded", "config.reverted"]);
    assert!(process.running.ledger().last_error.contains("not confirmed within 60s"));
    assert_eq!(process.running.confirm("test"), Err(OperatorError::TakenBack));

    process.reload(&confirmed_within(60)).expect("a good file");
    process.running.confirm("test").expect("one waits");
    process.running.judge(now + Duration::from_secs(600), true);
    assert_eq!(process.backends(), ["10.0.0.2:80"]);
    assert_eq!(process.running.ledger().generation, 4);
}

#[test]
fn while_one_waits_for_its_confirmation_another_is_refused() {
    let process = Process::of(&app("10.0.0.1:80"));
    process.write(&app("10.0.0.2:80"));
    process.reload(&confirmed_within(60)).expect("a good file");
    process.write(&app("10.0.0.3:80"));
    for how in [Reload::default(), confirmed_within(5)] {
        assert!(matches!(process.reload(&how), Err(OperatorError::Unconfirmed)));
    }
    assert!(process.reload(&Reload { dry_run: true, ..Reload::default() }).is_ok(), "it changes nothing");
    assert_eq!(process.backends(), ["10.0.0.2:80"]);
}

#[test]
fn more_errors_than_before_take_a_reload_back_early() {
    let process = Process::of(&app("10.0.0.1:80"));
    let answer = |count: usize, status: u16| {
        let metrics = &process.running.metrics;
        (0..count).for_each(|_| metrics.upstream(&"app".into()).finished(0, status, Duration::ZERO));
        process.running.ledger().samples.push(metrics.answers());
    };
    answer(0, 200);
    answer(100, 200);
    process.write(&app("10.0.0.2:80"));
    let how = Reload { abort_if: Some(AbortIf { share: 200 }), ..confirmed_within(60) };
    process.reload(&how).expect("a good file");
    let now = Instant::now();
    answer(19, 503);
    process.running.judge(now, true);
    assert_eq!(process.backends(), ["10.0.0.2:80"], "too few to judge");
    answer(1, 200);
    process.running.judge(now, false);
    assert_eq!(process.backends(), ["10.0.0.2:80"], "looked at once a second");
    process.running.judge(now, true);
    assert_eq!(process.backends(), ["10.0.0.1:80"]);
    assert!(process.running.ledger().last_error.contains("19 of 20"), "{}", process.running.ledger().last_error);
    assert!(matches!(
        process.reload(&Reload { abort_if: how.abort_if, ..Reload::default() }),
        Err(OperatorError::Reload(_))
    ));
}

#[test]
fn listeners_of_a_reload_that_is_taken_back_are_closed_again() {
    let process = Process::of(&app("10.0.0.1:80"));
    let two = "listeners: [{ address: \"unix:<dir>/a.sock\" }, { address: \"unix:<dir>/b.sock\" }]\n";
    process.write(&(two.to_owned() + &app("10.0.0.1:80")));
    process.reload(&confirmed_within(1)).expect("a good file");
    let names = || process.running.held().listeners.len();
    assert_eq!((names(), process.folder.path().join("b.sock").exists()), (2, true));
    process.running.judge(Instant::now() + Duration::from_secs(2), false);
    assert_eq!((names(), process.folder.path().join("b.sock").exists()), (1, false));
    assert!(process.folder.path().join("a.sock").exists());
}

#[test]
fn what_could_not_be_taken_back_is_tried_again_and_can_be_confirmed() {
    for confirmed in [false, true] {
        let two = "listeners: [{ address: \"unix:<dir>/a.sock\" }, { address: \"unix:<dir>/b.sock\" }]\n";
        let process = Process::of(&(two.to_owned() + &app("10.0.0.1:80")));
        process.write(&app("10.0.0.2:80"));
        process.reload(&confirmed_within(60)).expect("a good file");
        // What it would go back to is taken meanwhile.
        let taken = process.folder.path().join("b.sock");
        fs::create_dir(&taken).expect("a folder");
        let late = Instant::now() + Duration::from_secs(61);
        for after in [0, 1, 10, 11, 29] {
            process.running.judge(late + Duration::from_secs(after), true);
        }
        assert_eq!(process.backends(), ["10.0.0.2:80"]);
        let tries = process.told().into_iter().filter(|kind| *kind == "config.reload_failed").count();
        assert_eq!(tries, 2, "at once, and 10 s later");
        let error = process.running.ledger().last_error.clone();
        assert!(error.contains("could not be taken back (not confirmed within 60s)"), "{error}");
        assert!(matches!(process.reload(&Reload::default()), Err(OperatorError::Unconfirmed)));
        if confirmed {
            process.running.confirm("test").expect("it still waits");
            assert_eq!(process.running.ledger().last_error, "");
        }
        fs::remove_dir(&taken).expect("removes");
        process.running.judge(late + Duration::from_secs(30), true);
        assert_eq!(process.backends(), [if confirmed { "10.0.0.2:80" } else { "10.0.0.1:80" }]);
        assert_eq!(process.running.ledger().taken_back.is_some(), !confirmed);
    }
}

#[test]
fn where_a_configuration_came_from_is_known_in_every_folder() {
    let process = Process::of(&app("10.0.0.1:80"));
    let up: std::path::PathBuf =
        std::env::current_dir().expect("a folder").components().skip(1).map(|_| "..").collect();
    let relative = up.join(process.running.file.strip_prefix("/").expect("from the root"));
    let Beginning { past, .. } = Beginning::of(&relative).expect("a good file");
    assert!(past.source.file.is_absolute() && past.source.file.exists(), "{:?}", past.source.file);
    // After a start with another file's text.
    process.running.ledger().source.file = "/elsewhere/rrlb.yaml".into();
    process.reload(&Reload::default()).expect("a good file");
    assert_eq!(process.running.ledger().source.file, process.running.file);
}

#[test]
fn a_changed_file_is_reloaded_by_itself_and_a_bad_one_once() {
    let process = Process::of(&app("10.0.0.1:80"));
    process.write(&app("10.0.0.2:80"));
    process.running.look_at_file();
    assert_eq!(process.backends(), ["10.0.0.1:80"], "it may still be written");
    process.running.look_at_file();
    assert_eq!(process.backends(), ["10.0.0.2:80"]);
    process.write("upstreams: 7\n");
    for _ in 0..5 {
        process.running.look_at_file();
    }
    assert_eq!(process.told(), ["config.reloaded", "config.reload_failed"]);
}

#[test]
fn a_process_that_drains_is_not_reloaded() {
    let process = Process::of(&app("10.0.0.1:80"));
    process.running.readiness.drain();
    process.write(&app("10.0.0.2:80"));
    assert!(matches!(process.reload(&Reload::default()), Err(OperatorError::Reload(_))));
    assert_eq!(process.backends(), ["10.0.0.1:80"]);
}

#[test]
fn no_successor_gets_anything_while_a_reload_waits_for_its_confirmation() {
    let process = Process::of(&app("10.0.0.1:80"));
    assert_eq!(process.running.holds_up_upgrade(), None);
    process.write(&app("10.0.0.2:80"));
    process.reload(&confirmed_within(60)).expect("a good file");
    assert_eq!(process.running.holds_up_upgrade(), Some(OperatorError::Unconfirmed));
    process.running.confirm("test").expect("one waits");
    assert_eq!(process.running.holds_up_upgrade(), None);
}

#[test]
fn nothing_is_reloaded_while_a_successor_is_under_way() {
    let process = Process::of(&app("10.0.0.1:80"));
    process.write(&app("10.0.0.2:80"));
    let claimed = process.running.successors.claimed();
    claimed.store(true, Ordering::Release);
    assert_eq!(process.reload(&Reload::default()), Err(OperatorError::Busy("upgrade")));
    assert_eq!(process.reload(&confirmed_within(60)), Err(OperatorError::Busy("upgrade")));
    assert_eq!(process.backends(), ["10.0.0.1:80"]);
    claimed.store(false, Ordering::Release);
    process.reload(&Reload::default()).expect("a good file");
    assert_eq!(process.backends(), ["10.0.0.2:80"]);
}

#[test]
fn a_reload_that_could_not_be_is_done_once_as_soon_as_it_can_be() {
    let process = Process::of(&app("10.0.0.1:80"));
    process.write(&app("10.0.0.2:80"));
    process.reload(&confirmed_within(60)).expect("a good file");
    process.write(&app("10.0.0.3:80"));
    process.running.wanted.store(true, Ordering::Release);
    process.running.keep_up(false);
    assert_eq!(process.backends(), ["10.0.0.2:80"], "it waits for the confirmation");
    process.running.confirm("test").expect("one waits");
    process.running.keep_up(false);
    process.running.keep_up(false);
    assert_eq!(process.backends(), ["10.0.0.3:80"]);
    assert_eq!(process.told(), ["config.reloaded", "config.confirmed", "config.reloaded"]);
}

#[test]
fn a_dry_run_waits_for_nobody() {
    let process = Process::of(&app("10.0.0.1:80"));
    let _turn = process.running.turn.lock().expect("no panic");
    assert!(process.reload(&Reload { dry_run: true, ..Reload::default() }).is_ok());
    assert_eq!(process.reload(&Reload::default()), Err(OperatorError::Busy("reload")));
}

//! What is handed over comes out at the other end, and what is bent does no harm.

use super::*;
use crate::{config, config::model::Model, policy::outlier::Fault, telemetry::metrics::Metrics};

fn model(app: &str) -> Model {
    let yaml = format!("version: 1\nlisteners: [{{ address: 127.0.0.1:1 }}]\nupstreams:\n  app:\n    {app}\n");
    config::parse(&yaml, std::path::Path::new("test.yaml")).unwrap_or_else(|report| panic!("{report:?}")).model
}

fn snapshot(backends: &str) -> Snapshot {
    snapshot_of(&format!("health_check: tcp\n    backends: [{backends}]"))
}

fn snapshot_of(app: &str) -> Snapshot {
    let metrics = Metrics::new("0", 1);
    Snapshot::build(&model(app), |upstream| upstream.backends.clone(), None, &metrics)
}

fn keys() -> TicketKeys {
    TicketKeys::new().expect("randomness")
}

fn app(snapshot: &Snapshot) -> &Upstream {
    &snapshot.members()[0].upstream
}

fn picks(snapshot: &Snapshot, count: usize) -> Vec<String> {
    let pick = |_| app(snapshot).pick(None, &[]).expect("a backend").backend().label.clone();
    (0..count).map(pick).collect()
}

fn passed(handed: &HandedOver) -> HandedOver {
    HandedOver::read(handed.write().expect("a memfd")).expect("readable")
}

fn file(text: &str) -> OwnedFd {
    let mut file = tempfile::tempfile().expect("a file");
    file.write_all(text.as_bytes()).expect("room");
    file.into()
}

#[test]
fn verdicts_rows_and_turns_go_on_at_the_successor() {
    let all = "10.0.0.1:1, 10.0.0.2:1, 10.0.0.3:1";
    let (old, tickets) = (snapshot(all), keys());
    for (backend, health) in app(&old).backends().iter().zip([Health::Up, Health::Down, Health::Up]) {
        backend.set_health(health);
    }
    app(&old).backends()[0].set_against(2);
    assert_eq!(picks(&old, 3), ["10.0.0.1:1", "10.0.0.3:1", "10.0.0.1:1"]);
    (0..7).for_each(|_| app(&old).budget.on_request(58_000));
    let handed = passed(&HandedOver::collect(&old, &tickets, Duration::from_secs(60)));
    let new = snapshot(all);
    handed.apply(&new);
    let of = |n: usize| (app(&new).backends()[n].health(), app(&new).backends()[n].against());
    assert_eq!([of(0), of(1), of(2)], [(Health::Up, 2), (Health::Down, 0), (Health::Up, 0)]);
    assert_eq!(app(&new).budget.export(0), [(0, 0), (0, 0), (7, 0)], "the retry budget looks back across the upgrade");
    assert_eq!(picks(&new, 2), ["10.0.0.3:1", "10.0.0.1:1"], "goes on where the old one stands");
    let ticket = rustls::server::ProducesTickets::encrypt(&tickets, b"session").expect("a ticket");
    let keys = HandedOver::tickets(Some(&handed)).expect("keys");
    assert_eq!(rustls::server::ProducesTickets::decrypt(&*keys, &ticket).as_deref(), Some(&b"session"[..]));
}

#[test]
fn ejections_go_on_at_the_successor_at_the_same_address() {
    let all = |second: &str| {
        snapshot_of(&format!("eject: {{}}\n    backends: [10.0.0.1:1, {{ id: b, address: {second} }}, 10.0.0.3:1]"))
    };
    let (old, now) = (all("10.0.0.2:1"), Instant::now());
    let fail = |snapshot: &Snapshot, backend: usize, times: u32| {
        (0..times).for_each(|_| app(snapshot).went_wrong(&app(snapshot).backends()[backend], Fault::Status(502), now));
    };
    let out = |snapshot: &Snapshot| app(snapshot).backends().iter().map(|one| one.is_ejected()).collect::<Vec<_>>();
    fail(&old, 1, 5);
    fail(&old, 2, 4);
    assert_eq!(out(&old), [false, true, false]);
    let handed = passed(&HandedOver::collect(&old, &keys(), Duration::ZERO));
    let new = all("10.0.0.2:1");
    handed.apply(&new);
    assert_eq!(out(&new), [false, true, false]);
    let ejection = app(&new).backends()[1].ejection().out(now).expect("it is out");
    assert_eq!((ejection.times, ejection.why.as_str()), (1, "5 failures in a row, the last: status 502"));
    assert!(app(&new).sweep_ejected(now).is_empty(), "it was told by the process before");
    assert_eq!(app(&new).sweep_ejected(now + Duration::from_secs(11)).len(), 1);
    fail(&new, 2, 1);
    assert_eq!(out(&new), [false, false, true], "the row of failures was handed over");
    let moved = all("10.0.0.9:1");
    handed.apply(&moved);
    assert_eq!(out(&moved), [false; 3]);
    let off = snapshot_of("backends: [10.0.0.1:1, { id: b, address: 10.0.0.2:1 }, 10.0.0.3:1]");
    handed.apply(&off);
    assert_eq!(out(&off), [false; 3]);
}

#[test]
fn what_began_after_the_state_was_taken_comes_with_the_farewell() {
    let build = || {
        let mut model = model("eject: { max_percent: 100% }\n    backends: [10.0.0.1:1, 10.0.0.2:1, 10.0.0.3:1]");
        model.upstreams.values_mut().for_each(|upstream| upstream.slow_start = Some(Duration::from_secs(100)));
        Snapshot::build(&model, |upstream| upstream.backends.clone(), None, &Metrics::new("0", 1))
    };
    let (old, new, now) = (build(), build(), Instant::now());
    passed(&HandedOver::collect(&old, &keys(), Duration::ZERO)).apply(&new);
    let fail = |snapshot: &Snapshot, n: usize, times: u32| {
        (0..times).for_each(|_| app(snapshot).went_wrong(&app(snapshot).backends()[n], Fault::Status(502), now));
    };
    fail(&old, 1, 5);
    app(&old).backends()[2].resume_slow_start(Duration::from_secs(40), now);
    fail(&old, 0, 2);
    let farewell = Farewell::new(String::new(), false).with_backends_of(&old);
    Farewell::read(farewell.write().expect("a memfd")).expect("readable").apply(&new);
    let backends = app(&new).backends();
    assert_eq!(backends.iter().map(|one| one.is_ejected()).collect::<Vec<_>>(), [false, true, false]);
    let elapsed = backends[2].slow_start_elapsed(Instant::now()).expect("in slow start").as_secs();
    assert!((40..60).contains(&elapsed), "{elapsed}");
    assert_eq!(backends[0].slow_start_elapsed(now), None);
    fail(&new, 0, 3);
    assert!(backends[0].is_ejected(), "the row of failures was not handed over");
}

#[test]
fn a_verdict_holds_for_its_address_only() {
    let old = snapshot("{ id: a, address: 10.0.0.1:1 }, { id: gone, address: 10.0.0.2:1 }");
    for backend in app(&old).backends() {
        backend.set_health(Health::Up);
    }
    let new = snapshot("{ id: a, address: 10.0.0.9:1 }, { id: fresh, address: 10.0.0.2:1 }");
    passed(&HandedOver::collect(&old, &keys(), Duration::ZERO)).apply(&new);
    assert!(app(&new).backends().iter().all(|backend| backend.health() == Health::Unknown));
}

#[test]
fn a_slow_start_goes_on_at_the_successor_whatever_its_address() {
    let slowly = |yaml: &str| {
        let mut model = model(&format!("health_check: tcp\n    backends: [{yaml}]"));
        model.upstreams.values_mut().for_each(|upstream| upstream.slow_start = Some(Duration::from_secs(100)));
        Snapshot::build(&model, |upstream| upstream.backends.clone(), None, &Metrics::new("0", 1))
    };
    let old = slowly("{ id: a, address: 10.0.0.1:1 }, { id: b, address: 10.0.0.2:1 }, { id: c, address: 10.0.0.3:1 }");
    let now = Instant::now();
    let [a, b, c] = [0, 1, 2].map(|n| app(&old).backends()[n].clone());
    for backend in [&b, &c] {
        backend.set_health(Health::Down);
    }
    for backend in [&a, &b, &c] {
        backend.set_health(Health::Up);
    }
    b.resume_slow_start(Duration::from_secs(40), now);
    let new = slowly("{ id: a, address: 10.0.0.1:1 }, { id: b, address: 10.0.0.9:1 }, { id: c, address: 10.0.0.3:1 }");
    passed(&HandedOver::collect(&old, &keys(), Duration::ZERO)).apply(&new);
    let [a, b, c] = [0, 1, 2].map(|n| app(&new).backends()[n].clone());
    let elapsed = b.slow_start_elapsed(Instant::now()).expect("in slow start").as_secs();
    assert!((40..60).contains(&elapsed), "{elapsed}");
    assert!((40..60).contains(&b.part().percent()), "{:?}", b.part());
    assert_eq!((a.part().percent(), c.part().percent()), (100, 10), "a has its whole share, c begins");
    assert_eq!(c.slow_start(now).expect("in slow start").remaining, Duration::from_secs(100));
}

#[test]
fn what_is_not_known_is_ignored() {
    let text = r#"{"version":1,"later":[1],"upstreams":{"app":{"turn":1,"rate_limits":{},
        "backends":{"10.0.0.1:1":{"address":"10.0.0.1:1","health":"up","later":5},
                    "10.0.0.2:1":{"address":"10.0.0.2:1","health":"ejected"}}},"other":{}}}"#;
    let new = snapshot("10.0.0.1:1, 10.0.0.2:1");
    HandedOver::read(file(text)).expect("readable").apply(&new);
    let health: Vec<_> = app(&new).backends().iter().map(|backend| backend.health()).collect();
    assert_eq!(health, [Health::Up, Health::Unknown]);
}

#[test]
fn what_is_bent_is_an_error_and_no_more() {
    for text in [
        "",
        "{",
        "[]",
        "{\"version\":1,\"upstreams\":[]}",
        "{\"version\":1,\"rate_limits\":{\"seed\":[1]}}",
        "{\"version\":1,\"tickets\":[{\"name\":[1]}]}",
    ] {
        assert!(matches!(HandedOver::read(file(text)), Err(StateError::Malformed(_))), "{text}");
    }
    let later = HandedOver::read(file("{\"version\":2,\"upstreams\":[]}"));
    assert!(matches!(later, Err(StateError::Version(2))), "{later:?}");
    let (pipe, _writer) = io::pipe().expect("a pipe");
    assert!(matches!(HandedOver::read(pipe.into()), Err(StateError::Io(_))));
}

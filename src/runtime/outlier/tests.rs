//! Promises of ejection: who is out, for how long, and that somebody is always left; against a plain model of it.

use std::{collections::BTreeSet, sync::Arc};

use proptest::prelude::*;

use super::*;
use crate::{
    config::model,
    policy::{
        balance::Balance,
        health::{Health, InitialHealth, Thresholds},
    },
    runtime::upstream::{NoBackend, fixtures},
    types::{AdminState, BackendAddress, Percent, Reason},
};

const FAULT: Fault = Fault::Status(503);
const IDS: [&str; 6] = ["a", "b", "c", "d", "e", "f"];

fn policy(consecutive_failures: u32, percent: u8) -> EjectPolicy {
    let max_percent = Percent::new(percent).expect("a percentage");
    EjectPolicy { consecutive_failures, base: Duration::from_secs(10), max_percent }
}

fn model(backends: usize, policy: EjectPolicy) -> model::Upstream {
    let ids: Vec<(&str, u16)> = IDS.iter().take(backends).map(|id| (*id, 1)).collect();
    let mut model = fixtures::upstream("app", &ids);
    model.eject = Some(policy);
    model
}

fn built(model: &model::Upstream, previous: Option<&Arc<Upstream>>) -> Arc<Upstream> {
    Upstream::build(model, model.backends.clone(), &fixtures::process(), previous)
}

fn upstream(backends: usize, policy: EjectPolicy) -> Arc<Upstream> {
    built(&model(backends, policy), None)
}

fn fail(upstream: &Upstream, backend: usize, times: u32, now: Instant) {
    (0..times).for_each(|_| upstream.went_wrong(&upstream.backends()[backend], FAULT, now));
}

fn picked(upstream: &Upstream) -> BTreeSet<String> {
    let pick = |_| upstream.pick(None, &[]).ok().map(|picked| picked.backend().id.to_string());
    (0..2 * upstream.backends().len()).filter_map(pick).collect()
}

fn set(ids: &[&str]) -> BTreeSet<String> {
    ids.iter().map(|id| (*id).to_owned()).collect()
}

fn seconds(start: Instant, seconds: u64) -> Instant {
    start + Duration::from_secs(seconds)
}

#[test]
fn failures_in_a_row_take_a_backend_out_and_a_success_breaks_the_row() {
    let (upstream, now) = (upstream(3, policy(3, 50)), Instant::now());
    fail(&upstream, 0, 2, now);
    upstream.went_well(&upstream.backends()[0]);
    fail(&upstream, 0, 2, now);
    assert_eq!(picked(&upstream), set(&["a", "b", "c"]));
    fail(&upstream, 0, 1, now);
    assert_eq!(picked(&upstream), set(&["b", "c"]), "at once, with no sweep");
    let why = "3 failures in a row, the last: status 503".to_owned();
    let out = upstream.backends()[0].ejection().out(seconds(now, 4)).expect("it is out");
    assert_eq!(out, Out { left: Duration::from_secs(6), times: 1, why: why.clone() });
    let ejected = Change::Ejected { term: Duration::from_secs(10), times: 1, why };
    assert_eq!(upstream.sweep_ejected(seconds(now, 9)), [("a".into(), ejected)]);
    assert_eq!(upstream.sweep_ejected(seconds(now, 9)), []);
    let back = Change::Returned { why: "its time is over" };
    assert_eq!(upstream.sweep_ejected(seconds(now, 10)), [("a".into(), back)]);
    assert_eq!(picked(&upstream), set(&["a", "b", "c"]));
    assert_eq!(upstream.sweep_ejected(seconds(now, 11)), []);
}

#[test]
fn the_next_ejection_lasts_longer() {
    let (upstream, now) = (upstream(2, policy(1, 50)), Instant::now());
    fail(&upstream, 0, 1, now);
    upstream.sweep_ejected(seconds(now, 10));
    fail(&upstream, 0, 1, seconds(now, 12));
    upstream.sweep_ejected(seconds(now, 31));
    assert_eq!(picked(&upstream), set(&["b"]));
    upstream.sweep_ejected(seconds(now, 32));
    assert_eq!(picked(&upstream), set(&["a", "b"]));
}

#[test]
fn whoever_may_not_be_taken_out_is_asked_about_again() {
    let (upstream, now) = (upstream(2, policy(2, 100)), Instant::now());
    fail(&upstream, 0, 2, now);
    fail(&upstream, 1, 3, now);
    assert_eq!(picked(&upstream), set(&["b"]), "the last one is left");
    upstream.sweep_ejected(seconds(now, 10));
    fail(&upstream, 1, 1, seconds(now, 10));
    assert_eq!(picked(&upstream), set(&["a"]));
}

#[test]
fn an_ejection_is_never_why_nobody_is_left() {
    let mut model = model(2, policy(1, 50));
    let (first, now) = (built(&model, None), Instant::now());
    fail(&first, 0, 1, now);
    model.backends[1].admin = AdminState::Drain;
    let second = built(&model, Some(&first));
    assert_eq!(picked(&second), set(&["a"]), "before any sweep");
    let changes: Vec<Change> = second.sweep_ejected(now).into_iter().map(|(_, change)| change).collect();
    assert!(matches!(&changes[..], [Change::Ejected { .. }, Change::Returned { why: "no other backend is left" }]));
    assert!(!second.backends()[0].is_ejected());
}

#[test]
fn when_those_that_are_left_fail_too_the_one_that_is_out_longest_is_given_back() {
    let (upstream, now) = (upstream(3, policy(3, 100)), Instant::now());
    let why = "those that are left fail too";
    let back = |id: &str| [(id.into(), Change::Returned { why })];
    fail(&upstream, 0, 3, now);
    fail(&upstream, 1, 3, seconds(now, 1));
    fail(&upstream, 2, 2, seconds(now, 2));
    assert_eq!(upstream.sweep_ejected(seconds(now, 2)).len(), 2);
    assert_eq!(upstream.sweep_ejected(seconds(now, 2)), [], "c has not failed often enough");
    fail(&upstream, 2, 1, seconds(now, 2));
    assert_eq!(picked(&upstream), set(&["c"]));
    assert_eq!(upstream.sweep_ejected(seconds(now, 2)), back("a"));
    assert_eq!(picked(&upstream), set(&["a", "c"]));
    assert_eq!(upstream.sweep_ejected(seconds(now, 2)), [], "of a nothing bad is known yet");
    fail(&upstream, 0, 3, seconds(now, 3));
    assert_eq!(picked(&upstream), set(&["a", "c"]), "nobody else is any better");
    assert_eq!(upstream.sweep_ejected(seconds(now, 3)), back("b"));
    upstream.went_well(&upstream.backends()[1]);
    fail(&upstream, 2, 3, seconds(now, 4));
    fail(&upstream, 0, 3, seconds(now, 4));
    assert_eq!(picked(&upstream), set(&["b"]));
}

#[test]
fn one_that_is_out_is_a_second_choice() {
    for balance in [Balance::RoundRobin, Balance::LeastRequests, Balance::IpHash, Balance::Random] {
        let mut model = model(3, policy(1, 100));
        model.balance = balance;
        let (upstream, client) = (built(&model, None), Some([192, 0, 2, 1].into()));
        fail(&upstream, 0, 1, Instant::now());
        let pick = |tried: &[usize]| upstream.pick(client, tried).map(|picked| picked.backend().index);
        assert_eq!((pick(&[1]), pick(&[2])), (Ok(2), Ok(1)), "those that are in come first");
        assert_eq!(pick(&[1, 2]), Ok(0), "{balance:?}");
        assert_eq!(pick(&[2, 1, 0]), Err(NoBackend::AllTried), "{balance:?}");
    }
}

#[test]
fn max_percent_is_kept_when_others_leave() {
    let mut model = model(6, policy(1, 50));
    let (first, now) = (built(&model, None), Instant::now());
    for (backend, at) in [(1, 0), (0, 1), (2, 2)] {
        fail(&first, backend, 1, seconds(now, at));
    }
    assert_eq!(first.sweep_ejected(seconds(now, 2)).len(), 3);
    model.backends[3].admin = AdminState::Drain;
    let second = built(&model, Some(&first));
    let back = |id: &str| [(id.into(), Change::Returned { why: "more than `max_percent` were out" })];
    assert_eq!(second.sweep_ejected(seconds(now, 3)), back("b"), "three of five");
    model.backends[4].admin = AdminState::Maint;
    let third = built(&model, Some(&second));
    assert_eq!(third.sweep_ejected(seconds(now, 3)), [], "two of four");
    model.backends.truncate(3);
    let fourth = built(&model, Some(&third));
    assert_eq!(fourth.sweep_ejected(seconds(now, 3)), back("a"), "two of three");
    assert_eq!(picked(&fourth), set(&["a", "b"]));
}

#[test]
fn a_backend_that_is_drained_is_not_ejected() {
    let mut model = model(3, policy(1, 50));
    model.backends[0].admin = AdminState::Drain;
    let upstream = built(&model, None);
    fail(&upstream, 0, 4, Instant::now());
    assert!(!upstream.backends()[0].is_ejected());
}

#[test]
fn an_ejection_outlives_builds_but_no_change_of_address_no_maintenance_and_not_its_policy() {
    let (mut changed, now) = (model(4, policy(1, 100)), Instant::now());
    let first = built(&changed, None);
    (0..3).for_each(|backend| fail(&first, backend, 1, now));
    changed.backends.reverse();
    let second = built(&changed, Some(&first));
    assert_eq!(picked(&second), set(&["d"]));
    assert_eq!(second.sweep_ejected(now).len(), 3);
    changed.backends[3].address = BackendAddress::Inet(([10, 0, 0, 1], 1).into());
    changed.backends[2].admin = AdminState::Maint;
    let third = built(&changed, Some(&second));
    assert_eq!(picked(&third), set(&["a", "d"]), "a has another address, b is in maintenance, c is out");
    // A request that began before does not bring it back.
    fail(&second, 3, 1, now);
    let told: Vec<Name> = third.sweep_ejected(now).into_iter().map(|(id, _)| id).collect();
    assert_eq!(told, ["b".into(), "a".into()]);
    changed.backends[2].admin = AdminState::Ready;
    let fourth = built(&changed, Some(&third));
    assert_eq!(picked(&fourth), set(&["a", "b", "d"]));
    changed.eject = None;
    let fifth = built(&changed, Some(&fourth));
    assert_eq!(picked(&fifth), set(&["a", "b", "c", "d"]));
    fail(&fifth, 0, 9, now);
    assert_eq!(picked(&fifth).len(), 4, "eject is off");
    let told: Vec<Name> = fifth.sweep_ejected(now).into_iter().map(|(id, _)| id).collect();
    assert_eq!(told, ["c".into()]);
}

#[test]
fn a_successor_goes_on_with_what_it_is_handed() {
    let (old, now) = (upstream(3, policy(3, 50)), Instant::now());
    fail(&old, 0, 3, now);
    old.sweep_ejected(seconds(now, 10));
    fail(&old, 0, 3, seconds(now, 11));
    fail(&old, 1, 2, now);
    let handed = |backend: usize| old.backends()[backend].ejection().hand_over(seconds(now, 15));
    assert_eq!(handed(2), None);
    let new = upstream(3, policy(3, 50));
    let then = seconds(now, 1000);
    for backend in 0..2 {
        new.take_over_ejection(&new.backends()[backend], handed(backend).expect("it is known"), then);
    }
    assert_eq!(picked(&new), set(&["b", "c"]));
    assert_eq!(new.backends()[0].ejection().out(then), old.backends()[0].ejection().out(seconds(now, 15)));
    assert!(new.sweep_ejected(seconds(now, 1015)).is_empty(), "16 of 20 seconds are left");
    let back = Change::Returned { why: "its time is over" };
    assert_eq!(new.sweep_ejected(seconds(now, 1016)), [("a".into(), back)]);
    fail(&new, 1, 1, then);
    assert_eq!(picked(&new), set(&["a", "c"]), "two failures of the row were handed over");
    fail(&new, 0, 3, seconds(now, 1020));
    assert!(new.backends()[1].is_ejected() && !new.backends()[0].is_ejected(), "one of three");
    // How long it has been back is known as well.
    let mut long = handed(0).expect("it is known");
    (long.left, long.back) = (None, Duration::from_secs(10));
    let third = upstream(3, policy(3, 50));
    third.take_over_ejection(&third.backends()[0], long, then);
    fail(&third, 0, 3, then);
    assert_eq!(third.backends()[0].ejection().out(then).map(|out| out.times), Some(2));
}

#[test]
fn what_is_handed_over_by_a_stranger_is_bounded() {
    let (upstream, now) = (upstream(2, policy(3, 50)), Instant::now());
    let handed = Handed { left: Some(Duration::MAX), back: Duration::MAX, times: 0, ..Handed::default() };
    upstream.take_over_ejection(&upstream.backends()[0], handed.clone(), now);
    let out = upstream.backends()[0].ejection().out(now).expect("it is out");
    assert_eq!((out.left, out.times), (Duration::from_secs(300), 1));
    upstream.take_over_ejection(&upstream.backends()[1], Handed { left: None, times: 7, ..handed }, now);
    assert!(!upstream.backends()[1].is_ejected());
    upstream.sweep_ejected(seconds(now, 300));
    fail(&upstream, 1, 3, now);
    assert_eq!(upstream.backends()[1].ejection().out(now).map(|out| out.times), Some(1));
}

#[derive(Clone, Debug)]
enum Step {
    Fail(usize),
    Health(usize, bool),
    Sweep,
    Succeed(usize),
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        12 => (0..IDS.len()).prop_map(Step::Fail),
        2 => (0..IDS.len(), any::<bool>()).prop_map(|(at, up)| Step::Health(at, up)),
        4 => Just(Step::Sweep),
        2 => (0..IDS.len()).prop_map(Step::Succeed),
        3 => (0u64..25).prop_map(Step::Wait),
    ]
}

/// A backend as plainly as can be: times in seconds.
#[derive(Clone, Debug, Default)]
struct Plain {
    down: bool,
    failures: u32,
    until: Option<u64>,
    times: u64,
    back: u64,
}

#[derive(Debug)]
struct Reference {
    needed: u32,
    percent: usize,
    now: u64,
    backends: Vec<Plain>,
}

impl Reference {
    fn allowed(&self, fit: usize) -> usize {
        (fit * self.percent / 100).max(1).min(fit.saturating_sub(1))
    }

    fn somebody_is_well(&self) -> bool {
        self.backends.iter().any(|one| !one.down && one.until.is_none() && one.failures < self.needed)
    }

    fn fail(&mut self, at: usize) {
        let fit = self.backends.iter().filter(|one| !one.down).count();
        let out = self.backends.iter().filter(|one| !one.down && one.until.is_some()).count();
        let backend = &mut self.backends[at];
        if backend.until.is_some() {
            return;
        }
        backend.failures += 1;
        let asked = backend.failures.is_multiple_of(self.needed) && !backend.down;
        if !asked || out >= self.allowed(fit) || !self.somebody_is_well() {
            return;
        }
        let backend = &mut self.backends[at];
        let times = backend.times.saturating_sub((self.now - backend.back) / 10) + 1;
        let until = Some(self.now + (10 * times).min(300));
        *backend = Plain { failures: 0, times, until, ..*backend };
    }

    fn sweep(&mut self) {
        let now = self.now;
        let due = |one: &Plain| one.until.is_none_or(|until| until <= now);
        let alone = !self.backends.iter().any(|one| !one.down && due(one));
        for one in self.backends.iter_mut().filter(|one| one.until.is_some()) {
            if due(one) || (alone && !one.down) {
                (one.until, one.back) = (None, now);
            }
        }
        loop {
            let fit = self.backends.iter().filter(|one| !one.down).count();
            let out: Vec<usize> = (0..self.backends.len())
                .filter(|at| !self.backends[*at].down && self.backends[*at].until.is_some())
                .collect();
            if out.is_empty() || (out.len() <= self.allowed(fit) && self.somebody_is_well()) {
                return;
            }
            let since = |at: &usize| {
                let one = &self.backends[*at];
                one.until.unwrap_or_default() as i64 - (10 * one.times).min(300) as i64
            };
            let longest = out.iter().copied().min_by_key(since).unwrap_or_default();
            (self.backends[longest].until, self.backends[longest].back) = (None, now);
        }
    }

    fn picked(&self) -> BTreeSet<String> {
        let ids = |wanted: &dyn Fn(&Plain) -> bool| -> BTreeSet<String> {
            let found = self.backends.iter().zip(IDS).filter(|(one, _)| !one.down && wanted(one));
            found.map(|(_, id)| id.to_owned()).collect()
        };
        let usable = ids(&|one| one.until.is_none());
        if usable.is_empty() { ids(&|_| true) } else { usable }
    }
}

proptest! {
    #[test]
    fn it_does_as_the_plain_model(
        backends in 1..=IDS.len(),
        needed in 1u32..4,
        percent in 1u8..=100,
        steps in prop::collection::vec(step(), 0..120),
    ) {
        let mut model = model(backends, policy(needed, percent));
        model.health_check = Some(model::HealthCheck {
            probe: model::Probe::Tcp,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(1),
            thresholds: Thresholds { rise: 1, fall: 1, initial: InitialHealth::Up },
        });
        let (upstream, start) = (built(&model, None), Instant::now());
        let plain = vec![Plain::default(); backends];
        let mut reference = Reference { needed, percent: percent.into(), now: 0, backends: plain };
        let mut told = BTreeSet::new();
        for step in steps {
            let now = seconds(start, reference.now);
            match step {
                Step::Fail(at) | Step::Health(at, _) | Step::Succeed(at) if at >= backends => {}
                Step::Fail(at) => {
                    reference.fail(at);
                    upstream.went_wrong(&upstream.backends()[at], Fault::Failed(Reason::ConnectRefused), now);
                }
                Step::Health(at, up) => {
                    reference.backends[at].down = !up;
                    upstream.backends()[at].set_health(if up { Health::Up } else { Health::Down });
                }
                Step::Succeed(at) => {
                    reference.backends[at].failures = 0;
                    upstream.went_well(&upstream.backends()[at]);
                }
                Step::Sweep => {
                    reference.sweep();
                    for (id, change) in upstream.sweep_ejected(now) {
                        let id = id.to_string();
                        // Each is told in turn, and what is told is so in the end.
                        let in_turn = match change {
                            Change::Ejected { .. } => told.insert(id),
                            Change::Returned { .. } => told.remove(&id),
                        };
                        prop_assert!(in_turn);
                    }
                    let out = upstream.backends().iter().filter(|one| one.is_ejected());
                    prop_assert_eq!(&told, &out.map(|one| one.id.to_string()).collect::<BTreeSet<_>>());
                }
                Step::Wait(seconds) => reference.now += seconds,
            }
            prop_assert_eq!(picked(&upstream), reference.picked());
            for (backend, plain) in upstream.backends().iter().zip(&reference.backends) {
                let out = backend.ejection().out(start).map(|out| (start + out.left, u64::from(out.times)));
                prop_assert_eq!(out, plain.until.map(|until| (seconds(start, until), plain.times)));
            }
        }
    }
}

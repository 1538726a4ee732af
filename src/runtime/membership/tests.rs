//! Promises of the membership, one by one; `reference` holds all of them at once against a plain model.

use super::*;
use crate::types::{Source, Weight};

mod reference;

fn at(port: u16) -> BackendAddress {
    BackendAddress::Inet(([10, 0, 0, 1], port).into())
}

fn spec(port: u16, weight: u16) -> Spec {
    Spec { address: at(port), weight: Weight::new(weight).expect("a weight") }
}

fn file(backends: &[(&str, u16, u16)]) -> Vec<Declared> {
    from(Source::File, backends)
}

fn from(source: Source, backends: &[(&str, u16, u16)]) -> Vec<Declared> {
    backends
        .iter()
        .map(|(id, port, weight)| Declared { id: (*id).into(), spec: spec(*port, *weight), source })
        .collect()
}

fn declared(backends: &[(&str, u16, u16)]) -> Membership {
    let mut membership = Membership::default();
    assert_eq!(membership.declare_file(file(backends)), []);
    membership
}

fn note(who: &str) -> Note {
    Note { who: who.into(), ..Note::default() }
}

fn put(port: u16) -> Put {
    Put { address: at(port), weight: None, ttl: None, force: false, transient: false }
}

fn lease(port: u16, ttl: u64) -> Put {
    Put { ttl: Some(ttl), ..put(port) }
}

fn to(admin: AdminState) -> Patch {
    Patch { admin: Some(admin), ..Patch::default() }
}

fn any_ready(membership: &Membership) -> bool {
    membership.entries().iter().any(|entry| entry.admin == AdminState::Ready && entry.spec.weight.value() > 0)
}

/// `id@port*weight`, and the state where it is not ready.
fn shown(membership: &Membership) -> String {
    let one = |Entry { id, spec: Spec { address, weight }, admin, .. }: Entry| {
        let port = address.to_string().rsplit(':').next().map(str::to_owned).unwrap_or_default();
        let state = if admin == AdminState::Ready { "" } else { admin.as_str() };
        format!("{id}@{port}*{}{state}", weight.value())
    };
    membership.entries().into_iter().map(one).collect::<Vec<_>>().join(" ")
}

#[test]
fn what_was_changed_stays_and_the_rest_follows_the_file() {
    let mut all = declared(&[("a", 1, 1), ("b", 2, 1)]);
    all.patch(&"a".into(), Patch { weight: Weight::new(5), ..Patch::default() }, note("me")).expect("a");
    assert_eq!(all.declare_file(file(&[("a", 9, 1), ("b", 2, 1)])), []);
    assert_eq!(shown(&all), "a@9*5 b@2*1");
    let conflicts = all.declare_file(file(&[("a", 9, 3), ("b", 2, 1)]));
    let expected = Conflict { id: "a".into(), field: "weight", declared: "3".into(), kept: "5".into() };
    assert_eq!((shown(&all).as_str(), conflicts), ("a@9*5 b@2*1", vec![expected]));
    assert_eq!(all.declare_file(file(&[("a", 9, 3), ("b", 2, 1)])), [], "a conflict is told once");
    // The file says the same at last: from then on it is followed again.
    assert_eq!(all.declare_file(file(&[("a", 9, 5), ("b", 2, 1)])), []);
    assert!(all.overrides().is_empty());
}

#[test]
fn a_removed_backend_stays_out_until_the_file_has_it_no_more() {
    let mut all = declared(&[("a", 1, 1), ("b", 2, 1)]);
    assert_eq!(all.remove(&"b".into(), 0, false, note("me"), 0), Ok(Outcome::Removed));
    let restored = all.overrides().clone();
    assert_eq!(all.declare_file(file(&[("a", 1, 1), ("b", 2, 4)])).len(), 1, "it is told");
    assert_eq!(shown(&all), "a@1*1");
    all.declare_file(file(&[("a", 1, 1)]));
    assert!(all.overrides().is_empty());
    // After a restart discovery may declare it before the file does not.
    let mut again = Membership::restored(restored);
    again.declare_found(Vec::new());
    again.declare_file(file(&[("a", 1, 1), ("b", 2, 1)]));
    assert_eq!(shown(&again), "a@1*1");
}

#[test]
fn what_discovery_loses_for_a_while_keeps_what_was_said() {
    let mut all = declared(&[("a", 1, 1)]);
    let found = from(Source::Dns, &[("x", 5, 1), ("y", 6, 1)]);
    all.declare_found(found.clone());
    all.patch(&"x".into(), to(AdminState::Drain), note("me")).expect("x");
    all.remove(&"y".into(), 0, false, note("me"), 0).expect("y");
    all.declare_found(Vec::new());
    assert_eq!((shown(&all).as_str(), all.waiting()), ("a@1*1", [("x".into(), None), ("y".into(), None)].into()));
    all.declare_found(found);
    assert_eq!((shown(&all).as_str(), all.waiting()), ("a@1*1 x@5*1drain", [].into()));
}

#[test]
fn the_last_ready_backend_is_lost_only_by_force() {
    let last = |id: &str| Err(Refusal::LastReady(id.into()));
    let mut all = declared(&[("a", 1, 1), ("b", 2, 0)]);
    let before = all.clone();
    assert_eq!(all.patch(&"a".into(), to(AdminState::Maint), note("me")), last("a"));
    assert_eq!(all.patch(&"a".into(), Patch { weight: Weight::new(0), ..Patch::default() }, note("me")), last("a"));
    assert_eq!(all.remove(&"a".into(), 5, false, note("me"), 0), last("a"));
    assert_eq!(all.put(&"a".into(), Put { weight: Weight::new(0), ..put(1) }, note("me"), 0), last("a"));
    assert_eq!(all, before, "a refusal changes nothing");
    assert_eq!(
        all.patch(&"a".into(), Patch { force: true, ..to(AdminState::Drain) }, note("me")),
        Ok(Outcome::Changed)
    );
    assert_eq!(all.remove(&"b".into(), 0, false, note("me"), 0), Ok(Outcome::Removed), "none is ready already");

    let mut added = Membership::default();
    added.put(&"x".into(), put(1), note("me"), 0).expect("x");
    assert_eq!(added.forget(&"x".into(), false), last("x"));
    let away = Put { weight: Weight::new(0), force: true, ..put(1) };
    assert_eq!(added.clone().put(&"x".into(), away, note("me"), 0), Ok(Outcome::Changed));
    assert_eq!(added.clone().forget(&"x".into(), true), Ok(Outcome::Removed));
    assert_eq!(added.replace(Vec::new(), 0, false, &note("me"), 0), Err(Refusal::LastReady("x".into())));
    assert_eq!(added.replace(Vec::new(), 0, true, &note("me"), 0), Ok(()));
    assert_eq!(shown(&added), "");
}

#[test]
fn a_lease_drains_when_it_runs_out_and_is_gone_by_the_next_sweep() {
    let mut all = declared(&[("a", 1, 1)]);
    assert_eq!(all.put(&"x".into(), lease(5, 10), note("x"), 0), Ok(Outcome::Created));
    assert_eq!(all.put(&"x".into(), lease(5, 10), note("x"), 8), Ok(Outcome::Renewed));
    assert_eq!((all.next_due(), all.sweep(17, 30, |_| 0)), (Some(18), vec![]));
    assert_eq!(all.sweep(18, 30, |_| 0), [("x".into(), Outcome::Leaving)]);
    assert_eq!(shown(&all), "a@1*1 x@5*1drain");
    assert_eq!(all.patch(&"x".into(), to(AdminState::Ready), note("me")), Ok(Outcome::Unchanged));
    assert_eq!(all.sweep(47, 30, |_| 1), []);
    // A renewal brings it back.
    assert_eq!(all.put(&"x".into(), lease(5, 10), note("x"), 47), Ok(Outcome::Changed));
    assert_eq!(shown(&all), "a@1*1 x@5*1");
    all.sweep(57, 30, |_| 1);
    assert_eq!(all.sweep(87, 30, |_| 1), [("x".into(), Outcome::Removed)], "its time is up");
    assert!(all.overrides().is_empty());
}

#[test]
fn a_lease_holds_only_what_nobody_else_answers_for() {
    let mut all = declared(&[("a", 1, 1)]);
    all.put(&"mine".into(), put(5), note("me"), 0).expect("adds");
    for id in ["a", "mine"] {
        assert!(matches!(all.put(&id.into(), lease(7, 10), note("x"), 0), Err(Refusal::NotLeasable { .. })), "{id}");
    }
    // The other way round a person takes it over, and then the file does.
    all.put(&"x".into(), lease(6, 10), note("x"), 0).expect("leases");
    assert_eq!(all.put(&"x".into(), put(6), note("me"), 0), Ok(Outcome::Changed));
    assert_eq!(all.entry(&"x".into()).map(|entry| entry.source), Some(Source::Api));
    all.put(&"y".into(), lease(8, 10), note("x"), 0).expect("leases");
    all.declare_file(file(&[("a", 1, 1), ("y", 9, 1)]));
    assert_eq!(all.entry(&"y".into()).map(|entry| entry.spec), Some(spec(9, 1)));
    assert_eq!(all.sweep(1_000, 30, |_| 0), []);
}

#[test]
fn replace_knows_the_end_and_not_the_way() {
    let mut all = declared(&[("a", 1, 1)]);
    all.put(&"leased".into(), lease(9, 10), note("x"), 0).expect("leases");
    for (id, port) in [("x", 5), ("y", 6), ("z", 7)] {
        all.put(&id.into(), put(port), note("me"), 0).expect("adds");
    }
    // x and y change places, z leaves.
    let puts = vec![("x".into(), put(6)), ("y".into(), put(5))];
    assert_eq!(all.replace(puts.clone(), 30, false, &note("me"), 0), Ok(()));
    assert_eq!(shown(&all), "a@1*1 leased@9*1 x@6*1 y@5*1 z@7*1drain");
    assert_eq!(all.replace(puts, 30, false, &note("me"), 20), Ok(()));
    assert_eq!(all.overrides()[&Name::from("z")].leaving, Some(30), "it has no more time than before");
    // What leaves yields its address at once.
    assert_eq!(all.replace(vec![("n".into(), put(7))], 30, false, &note("me"), 20), Ok(()));
    assert_eq!(shown(&all), "a@1*1 leased@9*1 n@7*1 x@6*1drain y@5*1drain");
    let before = all.clone();
    for wrong in [vec![("n".into(), put(7)), ("m".into(), put(1))], vec![("n".into(), put(7)), ("m".into(), put(7))]] {
        let refused = all.replace(wrong, 0, false, &note("me"), 0);
        assert!(matches!(refused, Err(Refusal::DuplicateAddress { .. })), "{refused:?}");
    }
    assert_eq!(all, before);
}

#[test]
fn the_address_of_what_is_leaving_is_refused_with_the_time_that_it_takes() {
    let mut all = declared(&[("a", 1, 1)]);
    all.put(&"old".into(), put(5), note("me"), 0).expect("adds");
    let refused = |all: &Membership| all.clone().put(&"new".into(), put(5), note("me"), 10).expect_err("taken");
    assert_eq!(refused(&all), Refusal::DuplicateAddress { address: at(5), other: "old".into() });
    all.remove(&"old".into(), 30, false, note("me"), 5).expect("leaves");
    assert_eq!(refused(&all), Refusal::Leaving { address: at(5), other: "old".into(), within: 25 });
    all.sweep(40, 30, |_| 1);
    assert_eq!(all.put(&"new".into(), put(5), note("me"), 40), Ok(Outcome::Created));
}

#[test]
fn forgetting_restores_the_declaration_or_refuses() {
    let mut all = declared(&[("a", 1, 1), ("b", 2, 1)]);
    all.put(&"a".into(), put(5), note("me"), 0).expect("a moves");
    all.put(&"x".into(), put(1), note("me"), 0).expect("x takes its address");
    let taken = Refusal::DuplicateAddress { address: at(1), other: "x".into() };
    assert_eq!(all.forget(&"a".into(), false), Err(taken));
    assert_eq!(all.forget(&"x".into(), false), Ok(Outcome::Removed));
    assert_eq!(all.forget(&"a".into(), false), Ok(Outcome::Changed));
    assert_eq!(all.forget(&"a".into(), false), Err(Refusal::NoOverride("a".into())));
    assert_eq!(shown(&all), "a@1*1 b@2*1");
}

#[test]
fn an_address_that_the_file_gives_to_another_is_told_and_waits() {
    let mut all = declared(&[("a", 1, 1)]);
    all.put(&"x".into(), put(5), note("me"), 0).expect("adds");
    let conflicts = all.declare_file(file(&[("a", 1, 1), ("n", 5, 1)]));
    let taken = Conflict { id: "x".into(), field: "taken", declared: at(5).to_string(), kept: "n".into() };
    assert_eq!(conflicts, [taken]);
    assert_eq!((shown(&all).as_str(), all.waiting()), ("a@1*1 n@5*1", [("x".into(), Some("n".into()))].into()));
    assert_eq!(all.declare_file(file(&[("a", 1, 1), ("n", 5, 2)])), []);
    all.declare_file(file(&[("a", 1, 1)]));
    assert_eq!(shown(&all), "a@1*1 x@5*1");
}

#[test]
fn a_transient_change_covers_a_lasting_one_and_ends() {
    let mut all = declared(&[("a", 1, 1), ("b", 2, 1)]);
    all.patch(&"a".into(), to(AdminState::Drain), note("me")).expect("drains");
    let lasting = all.overrides()[&Name::from("a")].clone();
    all.patch(&"a".into(), Patch { transient: true, ..to(AdminState::Ready) }, note("test")).expect("ready");
    assert_eq!(shown(&all), "a@1*1 b@2*1");
    assert_eq!(all.overrides()[&Name::from("a")].lasting(), Some(&lasting));
    // Said once more, for good.
    assert_eq!(all.patch(&"a".into(), to(AdminState::Ready), note("me")), Ok(Outcome::Changed));
    assert!(all.overrides().is_empty());
}

#[test]
fn a_backend_that_was_put_back_keeps_its_state() {
    let mut all = declared(&[("a", 1, 1), ("b", 2, 1)]);
    all.patch(&"a".into(), to(AdminState::Maint), note("me")).expect("a");
    all.remove(&"a".into(), 30, false, note("me"), 0).expect("leaves");
    assert_eq!(all.put(&"a".into(), put(1), note("me"), 1), Ok(Outcome::Changed));
    assert_eq!((shown(&all).as_str(), all.any_leaving()), ("a@1*1maint b@2*1", false));
    all.declare_file(file(&[("b", 2, 1)]));
    assert_eq!(all.put(&"a".into(), put(1), note("me"), 1), Ok(Outcome::Created));
    assert_eq!(shown(&all), "b@2*1 a@1*1maint");
}

#[test]
fn at_most_so_many_are_added() {
    let mut all = Membership::default();
    let many = |from: usize| (from..from + MOST_ADDED).map(|n| (format!("n{n}").into(), put((n % 65_000) as u16)));
    all.replace(many(0).collect(), 0, false, &note("me"), 0).expect("as many as are allowed");
    assert_eq!(all.entries().len(), MOST_ADDED);
    assert_eq!(all.put(&"one".into(), put(65_001), note("me"), 0), Err(Refusal::TooMany));
    assert_eq!(all.put(&"n5".into(), put(65_001), note("me"), 0), Ok(Outcome::Changed));
    let more: Vec<_> = many(0).chain([("one".into(), put(65_001))]).collect();
    assert_eq!(all.replace(more, 0, false, &note("me"), 0), Err(Refusal::TooMany));
    // All at other addresses, while the old ones drain.
    let others = (0..MOST_ADDED).map(|n| (format!("m{n}").into(), put(20_000 + n as u16))).collect();
    all.replace(others, 30, false, &note("me"), 0).expect("those that leave do not count");
    assert_eq!(all.entries().len(), 2 * MOST_ADDED);
    assert_eq!(all.sweep(0, 0, |_| 0).len(), MOST_ADDED);
}

#[test]
fn ten_thousand_backends_cost_one_pass_and_not_one_each() {
    let backends: Vec<Declared> = (0..10_000u16)
        .map(|n| Declared { id: format!("b{n}").into(), spec: spec(n + 1, 1), source: Source::File })
        .collect();
    let mut all = Membership::default();
    let started = std::time::Instant::now();
    all.declare_file(backends);
    for n in 0..100u16 {
        all.put(&format!("b{n}").into(), put(20_000 + n), note("me"), 0).expect("moves");
    }
    let puts = (0..10_000u16).map(|n| (format!("n{n}").into(), put(30_000 + n))).collect();
    all.replace(puts, 0, false, &note("me"), 0).expect("adds");
    assert_eq!(all.entries().len(), 20_000);
    // Quadratic it would be minutes; unoptimized, on a busy machine, it is a few seconds at most.
    assert!(started.elapsed().as_secs() < 20, "{:?}", started.elapsed());
}

#[test]
fn what_another_process_hands_over_is_fulfilled_by_the_file_of_this_one() {
    let mut old = declared(&[("a", 1, 1), ("b", 2, 1)]);
    old.remove(&"a".into(), 0, false, note("me"), 0).expect("removes");
    let mut new = declared(&[("b", 2, 1)]);
    assert_eq!(new.resume(old.overrides().clone(), true), []);
    assert!(new.overrides().is_empty());
    new.declare_file(file(&[("a", 1, 1), ("b", 2, 1)]));
    assert_eq!(shown(&new), "a@1*1 b@2*1");
    // An upstream that is not in the file waits as a whole.
    let mut without = Membership::default();
    assert_eq!(without.resume(old.overrides().clone(), false), []);
    without.declare_file(file(&[("a", 1, 1), ("b", 2, 1)]));
    assert_eq!(shown(&without), "b@2*1");
}

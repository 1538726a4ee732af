//! Promises of a slow start: who begins slowly and who does not, and what share that is.

use std::time::{Duration, Instant};

use super::*;

const OVER: Duration = Duration::from_secs(20);

fn slowly(backends: &[(&str, u16)]) -> model::Upstream {
    let mut model = checked(upstream("app", backends), InitialHealth::Up);
    model.slow_start = Some(OVER);
    model
}

fn again(model: &model::Upstream, before: &Arc<Upstream>) -> Arc<Upstream> {
    Upstream::build(model, model.backends.clone(), &process(), Some(before))
}

fn flap(upstream: &Upstream, index: usize) {
    upstream.backends()[index].set_health(Health::Down);
    upstream.backends()[index].set_health(Health::Up);
}

/// By id, in order; 0 for none.
fn of(upstream: &Upstream, picks: usize) -> Vec<usize> {
    let shares = shares(upstream, picks);
    upstream.backends().iter().map(|backend| shares.get(backend.id.as_str()).copied().unwrap_or(0)).collect()
}

fn percents(upstream: &Upstream) -> Vec<u8> {
    upstream.backends().iter().map(|backend| backend.part().percent()).collect()
}

#[test]
fn the_share_of_one_that_comes_back_grows_to_the_whole() {
    let upstream = built(&slowly(&[("a", 1), ("b", 1)]));
    upstream.advance_slow_starts(Instant::now());
    assert_eq!(of(&upstream, 20), [10, 10]);
    flap(&upstream, 1);
    assert_eq!(of(&upstream, 22), [20, 2], "before any tick");
    let began = Instant::now();
    upstream.advance_slow_starts(began);
    for (seconds, picks, expected) in [
        (0, 22, [20, 2]),
        (1, 22, [20, 2]),
        (5, 25, [20, 5]),
        (10, 30, [20, 10]),
        (19, 39, [20, 19]),
        (20, 20, [10, 10]),
    ] {
        upstream.advance_slow_starts(began + Duration::from_secs(seconds));
        assert_eq!(of(&upstream, picks), expected, "after {seconds} s");
    }
    assert!(upstream.backends()[1].slow_start(began).is_none());
}

#[test]
fn it_begins_when_requests_may_come_and_not_before() {
    let model = slowly(&[("a", 1), ("b", 1)]);
    let first = built(&model);
    let mut drained = model.clone();
    drained.backends[1].admin = AdminState::Maint;
    let second = again(&drained, &first);
    second.backends()[1].set_health(Health::Down);
    let third = again(&model, &second);
    let began = Instant::now();
    third.advance_slow_starts(began);
    third.advance_slow_starts(began + OVER);
    third.backends()[1].set_health(Health::Up);
    assert_eq!(percents(&third), [100, 10], "it was down all the time");
    third.advance_slow_starts(began + OVER);
    third.advance_slow_starts(began + OVER + OVER / 2);
    assert_eq!(percents(&third), [100, 50]);
    let remaining = third.backends()[1].slow_start(began + OVER + OVER / 2).map(|slow_start| slow_start.remaining);
    assert_eq!(remaining, Some(OVER / 2));
}

#[test]
fn a_first_verdict_is_no_return() {
    let mut model = slowly(&[("a", 1), ("b", 1)]);
    model.health_check.as_mut().expect("a check").thresholds.initial = InitialHealth::Down;
    let upstream = built(&model);
    for backend in upstream.backends() {
        backend.set_health(Health::Up);
    }
    assert_eq!(percents(&upstream), [100, 100]);
    assert!(!upstream.generation.take_ramping(), "nobody is looked at");
}

#[test]
fn one_that_joins_begins_slowly_where_the_others_have_settled() {
    let mut model = slowly(&[("a", 1)]);
    let first = built(&model);
    model.backends = slowly(&[("a", 1), ("b", 1)]).backends;
    let second = again(&model, &first);
    assert_eq!(percents(&second), [100, 100], "found at the start");
    second.settle();
    model.backends = slowly(&[("a", 1), ("b", 1), ("c", 1)]).backends;
    let third = again(&model, &second);
    assert_eq!(percents(&third), [100, 100, 10]);
    assert_eq!(of(&third, 42), [20, 20, 2]);
}

#[test]
fn weight_and_address_change_nothing_of_it_and_ready_begins_it() {
    let model = slowly(&[("a", 1), ("b", 1)]);
    let first = built(&model);
    flap(&first, 1);
    let began = Instant::now();
    first.advance_slow_starts(began);
    first.advance_slow_starts(began + OVER / 2);
    let mut changed = model.clone();
    changed.backends[1].weight = Weight::new(2).expect("a weight");
    changed.backends[1].address = BackendAddress::Inet(([127, 0, 0, 1], 10_099).into());
    let second = again(&changed, &first);
    assert_eq!(of(&second, 40), [20, 20], "half of twice the weight");
    assert_eq!(second.backends()[1].slow_start_elapsed(began + OVER / 2), Some(OVER / 2));
    // Never slow, whatever its weight.
    changed.backends[0].weight = Weight::new(7).expect("a weight");
    assert_eq!(percents(&again(&changed, &second)), [100, 50]);
    for change in
        [(|backend: &mut model::Backend| backend.admin = AdminState::Drain) as fn(&mut model::Backend), |backend| {
            backend.weight = Weight::new(0).expect("a weight")
        }]
    {
        let mut out = model.clone();
        change(&mut out.backends[0]);
        let back = again(&model, &again(&out, &built(&model)));
        assert_eq!(percents(&back), [10, 100]);
    }
}

#[test]
fn a_build_between_the_last_two_steps_gets_the_whole_share_too() {
    let model = slowly(&[("a", 1), ("b", 1)]);
    let first = built(&model);
    flap(&first, 1);
    let began = Instant::now();
    first.advance_slow_starts(began);
    first.advance_slow_starts(began + OVER / 2);
    let second = again(&model, &first);
    // Upkeep still had the build before in its hands.
    first.advance_slow_starts(began + OVER);
    assert_eq!(of(&second, 30), [20, 10]);
    second.advance_slow_starts(began + OVER);
    assert_eq!(of(&second, 20), [10, 10]);
    assert!(!second.generation.take_ramping());
}

#[test]
fn all_that_come_up_together_share_by_weight() {
    let upstream = built(&slowly(&[("a", 3), ("b", 1)]));
    for index in [0, 1] {
        flap(&upstream, index);
    }
    assert_eq!(percents(&upstream), [10, 10]);
    assert_eq!(of(&upstream, 40), [30, 10]);
}

#[test]
fn idle_backends_take_turns_by_least_requests_too() {
    let mut model = slowly(&[("a", 1), ("b", 1)]);
    model.balance = Balance::LeastRequests;
    let upstream = built(&model);
    flap(&upstream, 1);
    assert_eq!(of(&upstream, 22), [20, 2], "one at a time");
    let held: Vec<Picked> = (0..110).map(|_| upstream.pick(None, &[]).expect("a backend")).collect();
    let in_flight: Vec<u32> = upstream.backends().iter().map(|backend| backend.in_flight()).collect();
    assert!((9..=11).contains(&in_flight[1]), "{in_flight:?} of 110");
    drop(held);
}

#[test]
fn chance_holds_it_back_too_and_a_hash_does_not() {
    let mut model = slowly(&[("a", 1), ("b", 1)]);
    model.balance = Balance::Random;
    let upstream = built(&model);
    flap(&upstream, 1);
    let share = of(&upstream, 2200)[1];
    assert!((120..=290).contains(&share), "200 of 2200 were expected, not {share}");
    model.balance = Balance::IpHash;
    let upstream = built(&model);
    flap(&upstream, 1);
    assert_eq!(percents(&upstream), [100, 100]);
    // The second look finds nothing to do.
    upstream.advance_slow_starts(Instant::now());
    upstream.advance_slow_starts(Instant::now());
    assert!(!upstream.generation.take_ramping());
}

#[test]
fn without_the_key_nothing_is_held_back() {
    let mut model = slowly(&[("a", 1), ("b", 1)]);
    model.slow_start = None;
    let upstream = built(&model);
    flap(&upstream, 1);
    assert_eq!(of(&upstream, 20), [10, 10]);
    assert!(upstream.backends()[1].slow_start(Instant::now()).is_none());
    upstream.advance_slow_starts(Instant::now());
    // Nor when it is written later: what has come back before has all of its share.
    assert_eq!(percents(&again(&slowly(&[("a", 1), ("b", 1)]), &upstream)), [100, 100]);
}

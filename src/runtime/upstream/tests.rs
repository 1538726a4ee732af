//! Promises of an upstream: shares, what is skipped, and what a build carries over.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv6Addr,
    thread,
};

use super::{fixtures::*, *};
use crate::{
    policy::{
        balance::Balance,
        health::{Health, InitialHealth, Thresholds},
    },
    types::{BackendAddress, HostPort, Weight},
};

mod slow_start;

fn built(model: &model::Upstream) -> Arc<Upstream> {
    Upstream::build(model, model.backends.clone(), &process(), None)
}

fn checked(mut model: model::Upstream, initial: InitialHealth) -> model::Upstream {
    model.health_check = Some(HealthCheck {
        probe: model::Probe::Tcp,
        interval: std::time::Duration::from_secs(5),
        timeout: std::time::Duration::from_secs(1),
        thresholds: Thresholds { rise: 2, fall: 3, initial },
    });
    model
}

fn shares(upstream: &Upstream, picks: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..picks {
        let picked = upstream.pick(None, &[]).expect("a backend");
        *shares.entry(picked.backend().id.to_string()).or_default() += 1;
    }
    shares
}

fn select(upstream: &Upstream) -> Option<String> {
    let backend = upstream.balancer().select(b"", 16)?;
    backend.ext.get::<Arc<BackendState>>().map(|backend| backend.id.to_string())
}

#[test]
fn the_order_is_smooth_through_pingoras_balancer() {
    let upstream = built(&upstream("app", &[("1", 5), ("2", 1), ("3", 1)]));
    let order: Vec<String> = (0..14).filter_map(|_| select(&upstream)).collect();
    let cycle = ["1", "1", "2", "1", "3", "1", "1"];
    assert_eq!(order, [cycle, cycle].concat());
}

#[test]
fn pick_and_the_balancer_share_one_sequence() {
    let upstream = built(&upstream("app", &[("1", 1), ("2", 1), ("3", 1)]));
    let mut order = Vec::new();
    for _ in 0..3 {
        order.extend(select(&upstream));
        order.extend(upstream.pick(None, &[]).map(|picked| picked.backend().id.to_string()));
    }
    assert_eq!(order, ["1", "2", "3", "1", "2", "3"]);
}

#[test]
fn shares_are_exact_over_many_threads() {
    for weights in [&[1, 1, 1][..], &[5, 1, 1], &[3, 2, 7, 1], &[10, 0, 1], &[1000, 999]] {
        let names = ["a", "b", "c", "d"];
        let backends: Vec<(&str, u16)> = names.into_iter().zip(weights.iter().copied()).collect();
        let total: usize = weights.iter().map(|weight| usize::from(*weight)).sum();
        let upstream = built(&upstream("app", &backends));
        // Not a whole number of cycles: the rest may put each share off by one.
        let (threads, each) = (4, total * 3 + 1);
        let mut sum: BTreeMap<String, usize> = BTreeMap::new();
        thread::scope(|scope| {
            let work = |index: usize| {
                let upstream = &upstream;
                scope.spawn(move || match index % 2 {
                    0 => shares(upstream, each),
                    _ => (0..each).filter_map(|_| select(upstream)).fold(BTreeMap::new(), |mut shares, id| {
                        *shares.entry(id).or_default() += 1;
                        shares
                    }),
                })
            };
            let running: Vec<_> = (0..threads).map(work).collect();
            for part in running {
                for (id, count) in part.join().expect("no panic") {
                    *sum.entry(id).or_default() += count;
                }
            }
        });
        for (id, weight) in &backends {
            let exact = (threads * each) as f64 * f64::from(*weight) / total as f64;
            let got = sum.get(*id).copied().unwrap_or(0) as f64;
            assert!((got - exact).abs() <= threads as f64, "{id} of {weights:?}: {got}, not {exact}");
            assert!(*weight > 0 || got == 0.0);
        }
    }
}

#[test]
fn every_window_of_a_cycle_is_within_one_of_the_weights() {
    let backends = [("a", 4), ("b", 2), ("c", 1)];
    let upstream = built(&upstream("app", &backends));
    let picks: Vec<String> =
        (0..70).map(|_| upstream.pick(None, &[]).expect("a backend").backend().id.to_string()).collect();
    for window in picks.windows(7) {
        for (id, weight) in backends {
            let got = window.iter().filter(|picked| *picked == id).count();
            assert!(got.abs_diff(weight.into()) <= 1, "{window:?}");
        }
    }
}

#[test]
fn a_dead_backends_share_is_spread_over_all_others() {
    let model = checked(upstream("app", &[("a", 1), ("b", 1), ("c", 1), ("d", 1)]), InitialHealth::Up);
    let upstream = built(&model);
    assert_eq!(shares(&upstream, 40).values().copied().collect::<Vec<_>>(), [10; 4]);
    assert!(upstream.backends()[1].set_health(Health::Down));
    let spread = shares(&upstream, 30);
    assert_eq!(spread.get("b"), None);
    assert_eq!(spread.values().copied().collect::<Vec<_>>(), [10; 3]);
    upstream.backends()[1].set_health(Health::Up);
    assert_eq!(shares(&upstream, 40).values().copied().collect::<Vec<_>>(), [10; 4]);
}

#[test]
fn weight_zero_gets_nothing_even_as_the_last_one() {
    for balance in [Balance::IpHash, Balance::LeastRequests, Balance::Random, Balance::RoundRobin] {
        let mut model = checked(upstream("app", &[("a", 1), ("spare", 0)]), InitialHealth::Up);
        model.balance = balance;
        let upstream = built(&model);
        let client = Some(IpAddr::from([192, 0, 2, 1]));
        for _ in 0..20 {
            assert_eq!(upstream.pick(client, &[]).expect("a").backend().id.as_str(), "a");
        }
        assert_eq!(upstream.pick(client, &[0]).expect_err("none is left"), NoBackend::AllTried);
        upstream.backends()[0].set_health(Health::Down);
        assert_eq!(upstream.pick(client, &[]).expect_err("none is up"), NoBackend::AllDown);
        assert!(upstream.balancer().select(b"", 16).is_none());
    }
}

#[test]
fn the_same_backend_is_never_tried_twice() {
    for balance in [Balance::IpHash, Balance::LeastRequests, Balance::Random, Balance::RoundRobin] {
        let mut model = upstream("app", &[("a", 100), ("b", 1), ("c", 1)]);
        model.balance = balance;
        let upstream = built(&model);
        for _ in 0..50 {
            let mut tried = Vec::new();
            while let Ok(picked) = upstream.pick(Some(IpAddr::from([192, 0, 2, 1])), &tried) {
                assert!(!tried.contains(&picked.backend().index));
                tried.push(picked.backend().index);
            }
            assert_eq!(tried.len(), 3);
        }
    }
}

#[test]
fn retries_take_no_turn_and_are_spread() {
    let upstream = built(&upstream("app", &[("a", 1), ("b", 1), ("c", 1)]));
    let mut retried = [0usize; 3];
    let mut firsts = Vec::new();
    for _ in 0..600 {
        let first = upstream.pick(None, &[]).expect("a backend").backend().index;
        firsts.push(first);
        if first == 0 {
            retried[upstream.pick(None, &[0]).expect("another").backend().index] += 1;
        }
    }
    assert!(firsts.chunks(3).all(|cycle| cycle == [0, 1, 2]));
    assert_eq!(retried[0], 0);
    assert!(retried[1] > 60 && retried[2] > 60, "{retried:?}");
}

#[test]
fn an_unresolved_name_is_skipped_until_it_has_an_address() {
    let mut model = upstream("app", &[("a", 1), ("b", 1)]);
    for (backend, port) in model.backends.iter_mut().zip([1, 2]) {
        backend.address = BackendAddress::Host(HostPort { host: "app.test".into(), port });
    }
    let upstream = built(&model);
    assert_eq!(upstream.pick(None, &[]).expect_err("no address"), NoBackend::NoAddress);
    let address = ([127, 0, 0, 1], 80).into();
    assert!(upstream.backends()[0].set_target(address));
    assert!(!upstream.backends()[0].set_target(address));
    let picked = upstream.pick(None, &[]).expect("a backend");
    assert_eq!(picked.peer().expect("an address")._address.as_inet(), Some(&address));
    // Two names may stand for one address.
    upstream.backends()[1].set_target(address);
    assert_eq!(shares(&upstream, 10).len(), 2);
}

#[test]
fn requests_in_flight_decide_least_requests() {
    let mut model = upstream("app", &[("a", 2), ("b", 1)]);
    model.balance = Balance::LeastRequests;
    let upstream = built(&model);
    let held: Vec<Picked> = (0..30).map(|_| upstream.pick(None, &[]).expect("a backend")).collect();
    assert_eq!(upstream.backends()[0].in_flight(), 20);
    assert_eq!(upstream.backends()[1].in_flight(), 10);
    drop(held);
    assert_eq!(upstream.backends().iter().map(|backend| backend.in_flight()).sum::<u32>(), 0);
    assert_eq!(shares(&upstream, 20).len(), 1, "nothing is in flight: the heavier one");
}

#[test]
fn a_client_keeps_its_backend_while_it_is_up() {
    let mut model = checked(upstream("app", &[("a", 1), ("b", 1), ("c", 1)]), InitialHealth::Up);
    model.balance = Balance::IpHash;
    let upstream = built(&model);
    let of = |client: u16| {
        let client = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, client));
        upstream.pick(Some(client), &[]).expect("a backend").backend().index
    };
    let before: Vec<usize> = (0..300).map(of).collect();
    assert_eq!(before, (0..300).map(of).collect::<Vec<_>>());
    assert_eq!(before.iter().collect::<BTreeSet<_>>().len(), 3);
    upstream.backends()[1].set_health(Health::Down);
    for (client, before) in before.iter().enumerate() {
        let now = of(client as u16);
        assert!(now == *before || *before == 1);
    }
}

#[test]
fn state_is_carried_over_by_name() {
    let model = checked(upstream("app", &[("a", 1), ("b", 1)]), InitialHealth::Down);
    let first = built(&model);
    assert_eq!(first.pick(None, &[]).expect_err("nothing was probed"), NoBackend::AllDown);
    first.backends()[0].set_health(Health::Up);
    let held = first.pick(None, &[]).expect("a is up");
    let mut changed = model.clone();
    changed.backends.reverse();
    changed.backends[1].weight = Weight::new(7).expect("a weight");
    let second = Upstream::build(&changed, changed.backends.clone(), &process(), Some(&first));
    let a = &second.backends()[1];
    assert_eq!((a.id.as_str(), a.index, a.health(), a.in_flight()), ("a", 1, Health::Up, 1));
    assert_eq!(second.pick(None, &[]).expect("a is up").backend().id.as_str(), "a");
    drop(held);
    assert_eq!(a.in_flight(), 0);
    // A verdict reaches both builds.
    second.backends()[0].set_health(Health::Up);
    assert_eq!(shares(&first, 10).len(), 2);
    assert!(Arc::ptr_eq(&first.budget, &second.budget));
    // A check that was removed has no say any more.
    a.set_health(Health::Down);
    let mut unchecked = changed.clone();
    unchecked.health_check = None;
    assert_eq!(
        shares(&Upstream::build(&unchecked, unchecked.backends.clone(), &process(), Some(&second)), 16).len(),
        2
    );
}

#[test]
fn the_round_robin_goes_on_over_a_build() {
    let model = upstream("app", &[("a", 1), ("b", 1), ("c", 1)]);
    let first = built(&model);
    assert_eq!(shares(&first, 1).keys().collect::<Vec<_>>(), ["a"]);
    let second = Upstream::build(&model, model.backends.clone(), &process(), Some(&first));
    assert_eq!(shares(&second, 1).keys().collect::<Vec<_>>(), ["b"]);
}

#[test]
fn a_change_of_one_backend_builds_that_one() {
    let model = upstream("app", &[("a", 1), ("b", 1), ("c", 1), ("d", 1)]);
    let first = built(&model);
    let mut backends = model.backends.clone();
    backends[1].weight = Weight::new(5).expect("a weight");
    backends[3].admin = AdminState::Maint;
    let second = first.with_backends(&model, backends.clone(), &process());
    let shared = |one: &Upstream, other: &Upstream| -> Vec<bool> {
        one.backends().iter().zip(other.backends()).map(|(one, other)| Arc::ptr_eq(one, other)).collect()
    };
    assert_eq!(shared(&first, &second), [true, false, true, false]);
    assert!(first.backends()[1].same_backend(&second.backends()[1]));
    assert_eq!(second.backends()[1].weight.value(), 5);
    let third = second.with_backends(&model, backends.clone(), &process());
    assert_eq!(shared(&second, &third), [true, true, true, false], "in maint it begins anew each time");
    // Where one is gone the others stand elsewhere.
    backends.remove(0);
    let fourth = third.with_backends(&model, backends, &process());
    assert!(fourth.backends().iter().enumerate().all(|(place, backend)| backend.index == place));
    assert!(fourth.backends()[0].same_backend(&third.backends()[1]));
    // Another configuration may say other things of the same backend.
    let other = checked(model, InitialHealth::Down);
    let fifth = Upstream::build(&other, other.backends.clone(), &process(), Some(&first));
    assert_eq!(shared(&first, &fifth), [false; 4]);
    assert!(fifth.backends().iter().all(|backend| !backend.is_up()));
}

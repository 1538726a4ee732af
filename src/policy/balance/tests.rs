//! Shares, smoothness and stability of the algorithms.

use std::{sync::Arc, thread};

use proptest::prelude::*;

use super::*;

fn counts(order: &[u32], backends: usize) -> Vec<u64> {
    let mut counts = vec![0; backends];
    for index in order {
        counts[*index as usize] += 1;
    }
    counts
}

fn longest_run(order: &[u32], index: u32) -> usize {
    let round = order.iter().chain(order);
    let mut run = 0;
    round.fold(0, |longest, taken| {
        run = if *taken == index { run + 1 } else { 0 };
        longest.max(run)
    })
}

#[test]
fn five_one_one_is_smooth() {
    let order = smooth_order(&[5, 1, 1]);
    assert_eq!(order, [0, 0, 1, 0, 2, 0, 0]);
    assert!(longest_run(&order, 0) <= 4);
    assert!(longest_run(&earliest_deadline(&[5, 1, 1], 7), 0) <= 3);
}

#[test]
fn equal_weights_take_turns_and_reduce() {
    assert_eq!(smooth_order(&[1000, 1000, 0, 1000]), [0, 1, 3]);
    assert_eq!(smooth_order(&[4, 2]).len(), 3);
    assert!(smooth_order(&[]).is_empty());
    assert!(smooth_order(&[0, 0]).is_empty());
}

#[test]
fn a_long_cycle_is_scaled_and_loses_nobody() {
    let weights: Vec<u16> = (0..2000).map(|n| n % 1000 + 1).collect();
    let order = smooth_order(&weights);
    let counts = counts(&order, weights.len());
    assert!(order.len() as u64 <= LONGEST_CYCLE && counts.iter().all(|count| *count >= 1));
    assert!(counts[999] > 60 && counts[999] < 70, "{}", counts[999]);
}

#[test]
fn more_backends_than_places_still_each_get_a_turn() {
    let mut weights = vec![999u16; 70_000];
    weights[0] = 1000;
    assert_eq!(smooth_order(&weights).len(), 70_000);
}

proptest! {
    #[test]
    fn shares_are_exact_per_cycle(weights in prop::collection::vec(0u16..=40, 1..12)) {
        let order = smooth_order(&weights);
        let divisor = weights.iter().fold(0, |divisor, weight| gcd(divisor, u32::from(*weight))).max(1);
        let exact: Vec<_> = weights.iter().map(|weight| u64::from(*weight) / u64::from(divisor)).collect();
        prop_assert_eq!(counts(&order, weights.len()), exact);
    }

    #[test]
    fn the_deadline_order_is_never_a_turn_off(weights in prop::collection::vec(1u32..=40, 1..12)) {
        let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        let order = earliest_deadline(&weights, total);
        prop_assert_eq!(order.len() as u64, total);
        let mut taken = vec![0u64; weights.len()];
        for (step, index) in order.iter().enumerate() {
            taken[*index as usize] += 1;
            for (count, weight) in taken.iter().zip(&weights) {
                let off = (count * total).abs_diff((step as u64 + 1) * u64::from(*weight));
                prop_assert!(off < total, "{:?} at {}", weights, step);
            }
        }
    }

    #[test]
    fn the_least_loaded_is_never_beaten(loads in prop::collection::vec((0usize..20, 0u16..5), 0..9), start in any::<usize>()) {
        match least_loaded(loads.iter().copied(), start) {
            None => prop_assert!(loads.iter().all(|(_, weight)| *weight == 0)),
            Some(index) => {
                prop_assert!(loads[index].1 > 0);
                for load in loads.iter().filter(|(_, weight)| *weight > 0) {
                    prop_assert!(compare_load(loads[index], *load) != std::cmp::Ordering::Greater);
                }
            }
        }
    }

    #[test]
    fn chance_takes_only_what_has_weight(weights in prop::collection::vec(0u16..5, 0..9), random in any::<u64>()) {
        match weighted_random(weights.iter().copied(), random) {
            None => prop_assert!(weights.iter().all(|weight| *weight == 0)),
            Some(index) => prop_assert!(weights[index] > 0),
        }
    }

    #[test]
    fn a_leaving_member_moves_only_its_own_keys(key in any::<u64>(), gone in 0usize..8) {
        let members: Vec<_> = (0..8u64).map(|n| (hash_bytes(&n.to_le_bytes()), 1 + n as u16 % 3)).collect();
        let before = rendezvous(finish(key), members.iter().copied());
        let without = members.iter().enumerate().map(|(n, (hash, weight))| (*hash, if n == gone { 0 } else { *weight }));
        let after = rendezvous(finish(key), without);
        prop_assert!(before == Some(gone) || before == after);
    }
}

#[test]
fn equal_loads_take_turns_exactly() {
    let loads = [(3, 1), (0, 1), (0, 0), (0, 1), (1, 2)];
    let taken: Vec<_> = (0..6).map(|start| least_loaded(loads.iter().copied(), start)).collect();
    assert_eq!(taken, [1, 3, 4, 1, 3, 4].map(Some));
}

#[test]
fn threads_share_one_exact_sequence() {
    const CYCLES: usize = 3_000;
    let rotation = Arc::new(Rotation::new(smooth_order(&[5, 1, 1]), 0));
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let rotation = Arc::clone(&rotation);
            thread::spawn(move || (0..7 * CYCLES).filter_map(|_| rotation.next()).collect::<Vec<_>>())
        })
        .collect();
    let taken: Vec<u32> = threads.into_iter().flat_map(|thread| thread.join().expect("no panic")).collect();
    assert_eq!(counts(&taken, 3), [5, 1, 1].map(|weight| weight * 4 * CYCLES as u64));
    assert_eq!(rotation.position(), 4 * 7 * CYCLES);
    assert_eq!(Rotation::default().next(), None);
}

#[test]
fn rendezvous_shares_are_near_the_weights() {
    let members: Vec<_> =
        [("a", 5u16), ("b", 3), ("c", 2), ("d", 0)].map(|(id, weight)| (hash_bytes(id.as_bytes()), weight)).into();
    let mut counts = [0u32; 4];
    for n in 0..20_000u32 {
        counts[rendezvous(hash_bytes(&n.to_le_bytes()), members.iter().copied()).expect("a member")] += 1;
    }
    for (count, expected) in counts.iter().zip([10_000u32, 6_000, 4_000, 0]) {
        assert!(count.abs_diff(expected) <= 300, "{counts:?}");
    }
}

#[test]
fn hashes_stay_the_same_over_releases() {
    assert_eq!(hash_bytes(b""), finish(0xcbf2_9ce4_8422_2325));
    // FNV-1a of "a" is 0xaf63dc4c8601ec8c (the algorithm's published test vector).
    assert_eq!(hash_bytes(b"a"), finish(0xaf63_dc4c_8601_ec8c));
}

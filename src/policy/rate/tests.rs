//! The rate holds for each key, whatever comes, and the table stays within its bound.

use std::hash::{BuildHasher as _, RandomState};

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000_000;

fn passes(verdict: Verdict) -> bool {
    matches!(verdict, Verdict::Pass { .. })
}

fn table(count: u32, period: Duration, burst: u32) -> RateTable {
    RateTable::new(Rate::new(count, period, burst).expect("a rate"))
}

#[test]
fn a_burst_passes_and_then_the_rate() {
    let table = table(10, Duration::from_secs(1), 5);
    let start = 7 * SECOND;
    let burst: Vec<bool> = (0..6).map(|_| passes(table.decide(42, start))).collect();
    assert_eq!(burst, [true, true, true, true, true, false]);
    assert_eq!(table.decide(42, start), Verdict::Exceeded { retry_after: Duration::from_millis(100) });
    assert!(!passes(table.decide(42, start + SECOND / 10 - 1)));
    assert!(passes(table.decide(42, start + SECOND / 10)));
    assert!(passes(table.decide(43, start)), "another key has its own");
    let whole = Verdict::Pass { remaining: 4, reset: Duration::from_millis(100) };
    assert_eq!(table.decide(42, start + 10 * SECOND), whole);
}

#[test]
fn looking_counts_nothing() {
    let table = table(1, Duration::from_secs(1), 1);
    assert!((0..5).all(|_| passes(table.look(42, SECOND))));
    assert!(passes(table.decide(42, SECOND)) && !passes(table.look(42, SECOND)));
    assert_eq!(table.look(42, SECOND), table.decide(42, SECOND));
}

#[test]
fn a_key_of_zero_is_a_key() {
    let table = table(1, Duration::from_secs(1), 1);
    assert!(passes(table.decide(0, SECOND)) && !passes(table.decide(0, SECOND)));
}

#[test]
fn a_clock_that_another_thread_read_earlier_does_no_harm() {
    let table = table(1, Duration::from_secs(1), 1);
    assert!(passes(table.decide(42, 2 * SECOND)));
    assert!(!passes(table.decide(42, SECOND)));
    assert!(passes(table.decide(42, 3 * SECOND)));
}

#[test]
fn a_hundred_thousand_live_keys_each_have_their_limit() {
    let table = table(1, Duration::from_secs(60), 2);
    let seed = RandomState::new();
    let mut wrong = 0;
    for round in 0..3u64 {
        for number in 1..=100_000u64 {
            let passed = passes(table.decide(seed.hash_one(number), SECOND + round));
            wrong += usize::from(passed != (round < 2));
        }
    }
    assert!(wrong < 300, "{wrong} of 300,000 decisions: only where a row overflows a key may begin anew");
    assert!(table.size() <= 4 << 20, "{}", table.size());
}

#[test]
fn a_flood_of_keys_does_not_grow_the_table_beyond_its_bound() {
    let table = table(1, Duration::from_secs(3600), 1);
    assert_eq!(table.size(), 0, "a limit that nobody meets costs nothing");
    let seed = RandomState::new();
    for number in 0..600_000u64 {
        table.decide(seed.hash_one(number), SECOND);
    }
    assert_eq!(table.size(), 4 << 20);
}

#[test]
fn keys_that_are_idle_give_their_place_away_before_the_table_grows() {
    let table = table(1, Duration::from_secs(1), 1);
    let seed = RandomState::new();
    for number in 0..100_000u64 {
        table.decide(seed.hash_one(number), number * SECOND / 20);
    }
    assert!(table.size() <= 64 << 10, "about 20 keys are live at a time: {}", table.size());
}

#[test]
fn a_key_keeps_its_time_when_the_table_doubles() {
    let table = table(1, Duration::from_secs(3600), 1);
    let seed = RandomState::new();
    assert!(passes(table.decide(seed.hash_one("kept"), SECOND)));
    for number in 0..20_000u64 {
        table.decide(seed.hash_one(number), SECOND);
    }
    assert!(!passes(table.decide(seed.hash_one("kept"), SECOND)));
}

#[test]
fn what_cannot_be_a_rate_is_none() {
    assert_eq!(Rate::new(0, Duration::from_secs(1), 1), None);
    assert_eq!(Rate::new(1, Duration::from_secs(1), 0), None);
    assert_eq!(Rate::new(1, Duration::ZERO, 1), None);
    assert_eq!(Rate::new(u32::MAX, Duration::from_nanos(1), 1), None);
}

#[test]
fn the_slowest_rate_with_the_largest_burst_does_not_overflow() {
    let rate = Rate::new(1, Duration::from_secs(400 * 366 * 86_400), u32::MAX).expect("a rate");
    let mut arrival = 0;
    for _ in 0..3 {
        arrival = rate.decide(arrival, u64::MAX / 2).1;
    }
    assert!(passes(rate.decide(0, u64::MAX - 1).0));
}

proptest! {
    #[test]
    fn never_more_than_rate_and_burst_and_never_less(
        count in 1u32..100, burst in 1u32..50, gaps in proptest::collection::vec(0u64..SECOND / 5, 1..300),
    ) {
        let rate = Rate::new(count, Duration::from_secs(1), burst).expect("a rate");
        let (mut arrival, mut now, mut passed) = (0, SECOND, 0u64);
        for gap in gaps {
            now += gap;
            let (verdict, after) = rate.decide(arrival, now);
            arrival = after;
            match verdict {
                Verdict::Pass { remaining, .. } => {
                    passed += 1;
                    prop_assert!(remaining < burst);
                }
                Verdict::Exceeded { retry_after } => {
                    let wait = u64::try_from(retry_after.as_nanos()).expect("short");
                    prop_assert!(passes(rate.decide(arrival, now + wait).0), "when it says so");
                    prop_assert!(wait == 0 || !passes(rate.decide(arrival, now + wait - 1).0), "and not before");
                }
            }
            let most = u64::from(burst) + (now - SECOND) * u64::from(count) / SECOND;
            prop_assert!(passed <= most, "{passed} of {most}");
        }
    }
}

#[test]
fn a_key_that_was_exported_is_held_to_what_it_has_used_under_another_clock() {
    let (old, new) = (table(1, Duration::from_secs(60), 2), table(1, Duration::from_secs(60), 2));
    let (there, here) = (900 * SECOND, SECOND);
    assert!(passes(old.decide(42, there)) && passes(old.decide(42, there)) && passes(old.decide(43, there)));
    let exported = old.export(10, there + 20 * SECOND);
    assert_eq!((exported.len(), old.live(there + 20 * SECOND)), (2, 2));
    for live in exported {
        new.adopt(live, here);
    }
    assert_eq!(new.decide(42, here), Verdict::Exceeded { retry_after: Duration::from_secs(40) });
    assert!(passes(new.decide(42, here + 40 * SECOND)), "when the old one would have let it");
    assert!(passes(new.decide(43, here)) && !passes(new.decide(43, here)), "it had one left");
    assert_eq!(old.export(10, there + 120 * SECOND), [], "a burst that is whole again is not told");
}

#[test]
fn of_too_many_keys_the_busiest_are_exported() {
    let table = table(1, Duration::from_secs(60), 10);
    for key in 1..=9u64 {
        for _ in 0..key {
            table.decide(key << 58 | key, SECOND);
        }
    }
    let mut kept: Vec<u64> = table.export(3, SECOND).iter().map(|live| live.key & 0xff).collect();
    kept.sort_unstable();
    assert_eq!(kept, [7, 8, 9]);
    assert_eq!(table.export(0, SECOND), []);
}

#[test]
fn what_is_adopted_forgives_nothing_and_blocks_nobody_beyond_a_burst() {
    let table = table(1, Duration::from_secs(60), 1);
    assert!(passes(table.decide(42, SECOND)));
    table.adopt(Live { key: 42, left: 1 }, SECOND);
    assert_eq!(table.look(42, SECOND), Verdict::Exceeded { retry_after: Duration::from_secs(60) });
    table.adopt(Live { key: 43, left: u64::MAX }, SECOND);
    assert_eq!(table.look(43, SECOND), Verdict::Exceeded { retry_after: Duration::from_secs(60) });
    table.adopt(Live { key: 44, left: 0 }, SECOND);
    assert!(passes(table.look(44, SECOND)));
}

//! Slow start: what part of its share a backend has that came up a while ago, and the weights that balancing uses
//! meanwhile. The part grows in steps, so that a schedule is built anew a bounded number of times. Who has come up, and
//! when, is not decided here.

use std::time::Duration;

/// In a whole share.
const TWENTIETHS: u8 = 20;
/// At the beginning: 10 %, as Envoy's `min_weight_percent`. Less would show nothing of a backend that fails.
const FIRST: u8 = 2;

/// A part of a backend's share, in steps of 5 %: 10 % to 100 %, never nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part(u8);

impl Part {
    /// What a backend begins with: 10 %.
    pub const FIRST: Self = Self(FIRST);
    /// Its whole share.
    pub const WHOLE: Self = Self(TWENTIETHS);

    /// After so long of a slow start `over` this time: linear, rounded down to a step, at least [`Part::FIRST`].
    /// Whole when the time is up, not before.
    pub fn at(elapsed: Duration, over: Duration) -> Self {
        if elapsed >= over {
            return Self::WHOLE;
        }
        let steps = elapsed.as_nanos().saturating_mul(TWENTIETHS.into()) / over.as_nanos().max(1);
        Self(u8::try_from(steps).unwrap_or(TWENTIETHS).clamp(FIRST, TWENTIETHS - 1))
    }

    /// Of [`Part::twentieths`]; what is out of range is brought into it.
    pub fn from_twentieths(twentieths: u8) -> Self {
        Self(twentieths.clamp(FIRST, TWENTIETHS))
    }

    /// 2 to 20.
    pub fn twentieths(self) -> u8 {
        self.0
    }

    /// 10 to 100.
    pub fn percent(self) -> u8 {
        self.0 * (100 / TWENTIETHS)
    }

    /// Whether nothing is held back any more.
    pub fn is_whole(self) -> bool {
        self == Self::WHOLE
    }
}

/// Whether any of these, by weight and part, has less than its share. Weight 0 has none to begin with.
pub fn any_ramping(shares: &[(u16, Part)]) -> bool {
    shares.iter().any(|(weight, part)| *weight > 0 && !part.is_whole())
}

/// The weights to balance by. While one of them is in slow start all are multiplied by 20, so that a part of weight 1
/// can be told; else they are as they were. Those over 0 stay so. Exact up to a weight of 3,276.
pub fn effective(shares: &[(u16, Part)]) -> Vec<u16> {
    let ramping = any_ramping(shares);
    let weight =
        |(weight, part): &(u16, Part)| if ramping { weight.saturating_mul(u16::from(part.0)) } else { *weight };
    shares.iter().map(weight).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::policy::balance::smooth_order;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn it_begins_with_a_tenth_and_is_whole_at_the_end_and_not_before() {
        let percent = |tenths: u32| Part::at(SECOND * tenths, SECOND * 100).percent();
        assert_eq!([0, 9, 14, 15, 50, 99, 100, 1000].map(percent), [10, 10, 10, 15, 50, 95, 100, 100]);
        assert!(Part::at(Duration::ZERO, Duration::ZERO).is_whole());
    }

    #[test]
    fn a_weight_of_one_ramps_too() {
        assert_eq!(effective(&[(1, Part::WHOLE), (1, Part::FIRST), (0, Part::FIRST)]), [20, 2, 0]);
        assert_eq!(effective(&[(5, Part::WHOLE), (1, Part::WHOLE), (0, Part::FIRST)]), [5, 1, 0]);
    }

    #[test]
    fn a_schedule_of_many_with_one_in_slow_start_fits_and_leaves_it_the_smallest_share() {
        let mut shares = vec![(1000, Part::WHOLE); 300];
        shares[7].1 = Part::FIRST;
        let order = smooth_order(&effective(&shares));
        let count = |wanted| order.iter().filter(|index| **index == wanted).count();
        assert_eq!((count(7) * 10, count(8)), (count(6), count(6)));
        assert!(order.len() <= 65_536);
    }

    proptest! {
        #[test]
        fn it_never_falls_and_has_a_bounded_number_of_steps(over in 1u64..4_000_000, times in prop::collection::vec(0u64..5_000_000, 2..80)) {
            let mut times = times;
            times.sort_unstable();
            let over = Duration::from_millis(over);
            let mut parts: Vec<Part> = times.iter().map(|at| Part::at(Duration::from_millis(*at), over)).collect();
            prop_assert!(parts.is_sorted());
            parts.dedup();
            prop_assert!(parts.len() <= 19);
        }

        #[test]
        fn it_is_a_step_from_linear_at_most(elapsed in 0u64..4_000_000, over in 1u64..4_000_000) {
            let part = f64::from(Part::at(Duration::from_millis(elapsed), Duration::from_millis(over)).percent());
            let linear = (elapsed as f64 * 100.0 / over as f64).clamp(10.0, 100.0);
            prop_assert!(part <= linear + 1e-6 && part > linear - 5.0 - 1e-6, "{part} {linear}");
            prop_assert_eq!(part == 100.0, elapsed >= over);
        }

        #[test]
        fn nobody_with_a_weight_is_left_without_a_turn(shares in prop::collection::vec((0u16..=1000, 2u8..=20), 1..20)) {
            let shares: Vec<(u16, Part)> = shares.into_iter().map(|(weight, part)| (weight, Part::from_twentieths(part))).collect();
            let weights = effective(&shares);
            let order = smooth_order(&weights);
            for (index, ((weight, part), effective)) in shares.iter().zip(&weights).enumerate() {
                prop_assert_eq!(*weight > 0, order.contains(&(index as u32)));
                if any_ramping(&shares) {
                    prop_assert_eq!(u32::from(*effective) * 5, u32::from(*weight) * u32::from(part.percent()));
                } else {
                    prop_assert_eq!(effective, weight);
                }
            }
        }

        #[test]
        fn backends_that_come_up_together_share_as_ever(weights in prop::collection::vec(0u16..=50, 1..10), part in 2u8..=20) {
            let shares: Vec<(u16, Part)> = weights.iter().map(|weight| (*weight, Part::from_twentieths(part))).collect();
            prop_assert_eq!(smooth_order(&effective(&shares)), smooth_order(&weights));
        }
    }
}

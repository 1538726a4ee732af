//! How a backend is chosen among those that may be used: the arithmetic of each algorithm over weights, loads and
//! hashes. Which backends may be used is not decided here; indices are places in the caller's list.

use std::{
    cmp::Reverse,
    collections::BinaryHeap,
    sync::atomic::{AtomicUsize, Ordering},
};

/// How a backend is chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// By a hash of the client's address, so that a client keeps its backend while it is up.
    IpHash,
    /// The one with the fewest requests in flight for its weight.
    LeastRequests,
    /// By chance, weighted.
    Random,
    /// Smooth weighted round robin.
    RoundRobin,
}

/// The longest cycle of a round robin: bounds the memory of an order to 256 KiB.
const LONGEST_CYCLE: u64 = 65_536;

/// Steps times backends up to which the order is nginx's; beyond, building it would hold up a reload.
const SWRR_WORK: u64 = 8_000_000;

/// The indices of `weights` in smooth weighted round robin order: one cycle, in which each index stands as often as its
/// weight (all divided by their greatest common divisor) says. 5:1:1 is 0 0 1 0 2 0 0. Empty where all weights are 0.
///
/// Where the cycle would be longer than 65,536 the weights are scaled down to fit, those over 0 to no less than 1 (with
/// more backends than that, all count as equal). Cost: one allocation, at most some ten milliseconds.
pub fn smooth_order(weights: &[u16]) -> Vec<u32> {
    let weights = reduce(weights);
    let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
    let Some(first) = weights.iter().find(|weight| **weight > 0) else { return Vec::new() };
    if weights.iter().all(|weight| *weight == 0 || weight == first) {
        let used = weights.iter().zip(0u32..).filter(|(weight, _)| **weight > 0);
        return used.map(|(_, index)| index).collect();
    }
    if total.saturating_mul(weights.len() as u64) <= SWRR_WORK {
        swrr(&weights, total)
    } else {
        earliest_deadline(&weights, total)
    }
}

/// Divides by the greatest common divisor and scales down to [`LONGEST_CYCLE`].
fn reduce(weights: &[u16]) -> Vec<u32> {
    let divisor = weights.iter().fold(0, |divisor, weight| gcd(divisor, u32::from(*weight))).max(1);
    let mut reduced: Vec<u32> = weights.iter().map(|weight| u32::from(*weight) / divisor).collect();
    let total: u64 = reduced.iter().map(|weight| u64::from(*weight)).sum();
    if total > LONGEST_CYCLE {
        // Each of those over 0 may be lifted to 1, so as many places are kept back.
        let used = reduced.iter().filter(|weight| **weight > 0).count() as u64;
        let room = LONGEST_CYCLE.saturating_sub(used);
        for weight in reduced.iter_mut().filter(|weight| **weight > 0) {
            *weight = u32::try_from(u64::from(*weight) * room / total).unwrap_or(1).max(1);
        }
    }
    reduced
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// nginx's smooth weighted round robin (`ngx_http_upstream_round_robin.c`, commit 52327e0): each step adds every weight
/// to its counter, takes the largest counter and subtracts the total from it. Cost: total × backends.
fn swrr(weights: &[u32], total: u64) -> Vec<u32> {
    let mut counters = vec![0i64; weights.len()];
    let step = |_| {
        let mut best = (i64::MIN, 0usize);
        for (index, (counter, weight)) in counters.iter_mut().zip(weights).enumerate() {
            *counter += i64::from(*weight);
            if *weight > 0 && *counter > best.0 {
                best = (*counter, index);
            }
        }
        if let Some(counter) = counters.get_mut(best.1) {
            *counter -= total.cast_signed();
        }
        u32::try_from(best.1).unwrap_or(u32::MAX)
    };
    (0..total).map(step).collect()
}

/// The k-th turn of a backend is due between k and k+1 times total/weight; the earliest deadline goes first (Steiner
/// and Yeomans, "Level schedules for mixed-model, just-in-time processes", 1993). No prefix of the order is off
/// the exact share by a whole turn. Cost: total × log backends.
fn earliest_deadline(weights: &[u32], total: u64) -> Vec<u32> {
    let window = |turn: u64, weight: u32| {
        let weight = u64::from(weight);
        (turn * total / weight, ((turn + 1) * total).div_ceil(weight))
    };
    let used = weights.iter().zip(0u32..).filter(|(weight, _)| **weight > 0);
    let mut later: BinaryHeap<_> = used
        .map(|(weight, index)| {
            let (release, deadline) = window(0, *weight);
            Reverse((release, deadline, index, 0u64, *weight))
        })
        .collect();
    let mut due = BinaryHeap::new();
    let mut order = Vec::new();
    for now in 0..total {
        while let Some(Reverse((release, deadline, index, turn, weight))) = later.peek().copied() {
            if release > now {
                break;
            }
            later.pop();
            due.push(Reverse((deadline, index, turn, weight)));
        }
        if let Some(Reverse((_, index, turn, weight))) = due.pop() {
            order.push(index);
            if turn + 1 < u64::from(weight) {
                let (release, deadline) = window(turn + 1, weight);
                later.push(Reverse((release, deadline, index, turn + 1, weight)));
            }
        }
    }
    order
}

/// An order walked round and round by any number of threads, in one common sequence.
#[derive(Debug, Default)]
pub struct Rotation {
    order: Box<[u32]>,
    position: AtomicUsize,
}

impl Rotation {
    /// Begins at `position` (taken round the cycle), so that a rebuilt order need not begin at its head again.
    pub fn new(order: Vec<u32>, position: usize) -> Self {
        Self { order: order.into(), position: AtomicUsize::new(position) }
    }

    /// The next index; `None` where the order is empty. One atomic addition: every turn is given out exactly once.
    pub fn next(&self) -> Option<u32> {
        if self.order.is_empty() {
            return None;
        }
        // Relaxed: the number alone matters, nothing is published with it.
        let turn = self.position.fetch_add(1, Ordering::Relaxed);
        self.order.get(turn % self.order.len()).copied()
    }

    /// Goes on at `position`.
    pub fn begin_at(&self, position: usize) {
        self.position.store(position, Ordering::Relaxed);
    }

    /// How many turns were taken, from where it began.
    pub fn position(&self) -> usize {
        self.position.load(Ordering::Relaxed)
    }

    /// One cycle.
    pub fn order(&self) -> &[u32] {
        &self.order
    }
}

/// The backend with the fewest requests in flight for its weight, by `(in_flight + 1) / weight`; of equal ones the
/// `start`-th, counted round. Weight 0 is never taken.
pub fn least_loaded(loads: impl Iterator<Item = (usize, u16)> + Clone, start: usize) -> Option<usize> {
    let mut best: Option<(usize, usize, u16)> = None;
    let mut ties = 0usize;
    for (index, (in_flight, weight)) in loads.clone().enumerate().filter(|(_, (_, weight))| *weight > 0) {
        let order = best.map(|(_, load, least)| compare_load((in_flight, weight), (load, least)));
        match order {
            Some(std::cmp::Ordering::Greater) => {}
            Some(std::cmp::Ordering::Equal) => ties += 1,
            None | Some(std::cmp::Ordering::Less) => {
                best = Some((index, in_flight, weight));
                ties = 1;
            }
        }
    }
    let (first, load, least) = best?;
    if ties <= 1 {
        return Some(first);
    }
    // Loads may have moved since the first pass; the first of the equal ones is right in any case.
    let equal = |candidate: &(usize, (usize, u16))| {
        candidate.1.1 > 0 && compare_load(candidate.1, (load, least)) == std::cmp::Ordering::Equal
    };
    loads.enumerate().filter(equal).nth(start % ties).map_or(Some(first), |(index, _)| Some(index))
}

fn compare_load(a: (usize, u16), b: (usize, u16)) -> std::cmp::Ordering {
    let cross = |load: usize, weight: u16| (load as u64).saturating_add(1).saturating_mul(u64::from(weight));
    cross(a.0, b.1).cmp(&cross(b.0, a.1))
}

/// An index by chance and weight; `None` where all weights are 0. `random` is evenly spread over all of `u64`.
pub fn weighted_random(weights: impl Iterator<Item = u16> + Clone, random: u64) -> Option<usize> {
    let total: u64 = weights.clone().map(u64::from).sum();
    let mut left = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    for (index, weight) in weights.map(u64::from).enumerate() {
        if left < weight {
            return Some(index);
        }
        left -= weight;
    }
    None
}

/// The member that keeps `key_hash`: weighted rendezvous hashing (Thaler and Ravishankar 1996, with the logarithmic
/// method of Schindelhauer and Schomaker, "Weighted Distributed Hash Tables", 2005). A member that comes or goes moves
/// only the keys it gains or loses. Members are `(hash of the identity, weight)`; weight 0 is never taken.
/// Cost: one hash step and one logarithm per member.
pub fn rendezvous(key_hash: u64, members: impl Iterator<Item = (u64, u16)>) -> Option<usize> {
    let mut best: Option<(f64, usize)> = None;
    for (index, (member, weight)) in members.enumerate().filter(|(_, (_, weight))| *weight > 0) {
        // 53 bits and a half make a fraction strictly between 0 and 1: the logarithm is finite and below 0.
        let fraction = ((finish(key_hash ^ member) >> 11) as f64 + 0.5) / (1u64 << 53) as f64;
        let score = -f64::from(weight) / fraction.ln();
        if best.is_none_or(|(highest, _)| score > highest) {
            best = Some((score, index));
        }
    }
    best.map(|(_, index)| index)
}

/// A hash that is the same in every worker, process and release: FNV-1a 64 with MurmurHash3's finalizer. Not for
/// tables that a client could flood.
pub fn hash_bytes(bytes: &[u8]) -> u64 {
    let fnv = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3));
    finish(fnv)
}

/// MurmurHash3's 64-bit finalizer: every bit of the input moves every bit of the output.
fn finish(mut hash: u64) -> u64 {
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash = (hash ^ (hash >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests;

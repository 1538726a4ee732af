//! How often: the generic cell rate algorithm (ITU-T I.371, annex A) with one number per key, in a table that grows with
//! the keys that are live and never beyond a bound. A key whose burst is whole again needs no place.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

#[cfg(test)]
mod tests;

/// A rate and how many may come at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    count: u32,
    period: Duration,
    burst: u32,
    /// Nanoseconds between two of a steady stream, at least 1.
    interval: u64,
}

/// What becomes of one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It may not.
    Exceeded {
        /// Until one may pass.
        retry_after: Duration,
    },
    /// It may pass.
    Pass {
        /// As many more could come at once.
        remaining: u32,
        /// Until the whole burst could come again.
        reset: Duration,
    },
}

impl Rate {
    /// `count` in each `period`, and `burst` at once; `None` where one of them is 0, or the rate is over one a nanosecond.
    pub fn new(count: u32, period: Duration, burst: u32) -> Option<Self> {
        let period_nanos = u64::try_from(period.as_nanos()).ok()?;
        if count == 0 || burst == 0 || period_nanos < u64::from(count) {
            return None;
        }
        // Rounded up: never more than was asked for.
        Some(Self { count, period, burst, interval: period_nanos.div_ceil(count.into()) })
    }

    /// How many in each [`Rate::period`].
    pub fn count(&self) -> u32 {
        self.count
    }

    /// See [`Rate::count`].
    pub fn period(&self) -> Duration {
        self.period
    }

    /// How many may come at once.
    pub fn burst(&self) -> u32 {
        self.burst
    }

    /// How long a whole burst takes to be there again.
    pub fn window(&self) -> Duration {
        Duration::from_nanos(self.window_nanos())
    }

    fn window_nanos(&self) -> u64 {
        self.interval.saturating_mul(self.burst.into())
    }

    /// Decides about a request at `now` of a key whose theoretical arrival time is `arrival` (both in nanoseconds of one
    /// clock; 0 is a key that is not known). Returns the verdict and the arrival time after it.
    pub fn decide(&self, arrival: u64, now: u64) -> (Verdict, u64) {
        let tolerance = self.interval.saturating_mul(u64::from(self.burst - 1));
        let due = arrival.max(now);
        let early = due - now;
        if early > tolerance {
            return (Verdict::Exceeded { retry_after: Duration::from_nanos(early - tolerance) }, arrival);
        }
        let after = due.saturating_add(self.interval);
        let used = after - now;
        let remaining = self.window_nanos().saturating_sub(used) / self.interval;
        let remaining = u32::try_from(remaining).unwrap_or(self.burst);
        (Verdict::Pass { remaining, reset: Duration::from_nanos(used) }, after)
    }
}

/// Whether a decision counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    /// The request comes.
    Charge,
    /// It is only asked what would be.
    Look,
}

/// Places in one row; a key can stand in any place of its row.
const WAYS: usize = 16;
/// Parts of a table, each under a lock of its own.
const SHARDS: usize = 16;
/// Rows of a shard at most: 16 shards of 1,024 rows of 16 places of 16 bytes are 4 MiB, in which 100,000 live keys leave
/// hardly a row full.
const MOST_ROWS: usize = 1024;

/// A key that has used something of its burst, as another table of the same rate goes on with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// Its number.
    pub key: u64,
    /// Nanoseconds until its theoretical arrival time, when its burst is whole again.
    pub left: u64,
}

#[derive(Clone, Copy, Default)]
struct Row {
    keys: [u64; WAYS],
    arrivals: [u64; WAYS],
}

/// The keys of one rate. It begins small and doubles where a row is full of live keys. At its largest the key that is
/// nearest to idle gives way and gets its burst anew: an attacker with very many keys loosens the limit of some, but uses
/// no more memory.
pub struct RateTable {
    rate: Rate,
    shards: [Mutex<Vec<Row>>; SHARDS],
}

impl RateTable {
    /// An empty table.
    pub fn new(rate: Rate) -> Self {
        Self { rate, shards: std::array::from_fn(|_| Mutex::default()) }
    }

    /// The rate.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Decides about a request of `key`, a hash that clients cannot steer, at `now` in nanoseconds.
    pub fn decide(&self, key: u64, now: u64) -> Verdict {
        self.apply(key, now, Mode::Charge)
    }

    /// What [`RateTable::decide`] would say, without counting the request.
    pub fn look(&self, key: u64, now: u64) -> Verdict {
        self.apply(key, now, Mode::Look)
    }

    fn apply(&self, key: u64, now: u64, mode: Mode) -> Verdict {
        // 0 is an empty place.
        let key = key.max(1);
        let mut rows = self.shard(key);
        if let Some(row) = row_of(&mut rows, key)
            && let Some(at) = row.keys.iter().position(|held| *held == key)
        {
            let (verdict, after) = self.rate.decide(row.arrivals[at], now);
            if mode == Mode::Charge {
                row.arrivals[at] = after;
            }
            return verdict;
        }
        let (verdict, after) = self.rate.decide(0, now);
        if mode == Mode::Charge {
            place(&mut rows, key, after, now);
        }
        verdict
    }

    /// How many keys have used something of their burst.
    pub fn live(&self, now: u64) -> usize {
        let live = |row: &Row| row.arrivals.iter().filter(|arrival| **arrival > now).count();
        let in_shard = |shard| lock(shard).iter().map(live).sum::<usize>();
        self.shards.iter().map(in_shard).sum()
    }

    /// Those keys, in no order; where there are more than `most`, the busiest: those with the most time left. Each part
    /// is locked for as long as it takes to copy it.
    pub fn export(&self, most: usize, now: u64) -> Vec<Live> {
        let mut all = Vec::new();
        for shard in &self.shards {
            let rows = lock(shard);
            let places = rows.iter().flat_map(|row| row.keys.iter().zip(&row.arrivals));
            let live = places.filter(|(_, arrival)| **arrival > now);
            all.extend(live.map(|(key, arrival)| Live { key: *key, left: arrival - now }));
        }
        if all.len() > most {
            all.select_nth_unstable_by_key(most, |live| std::cmp::Reverse(live.left));
            all.truncate(most);
        }
        all
    }

    /// Goes on with a key of another table of the same rate. What is known of it here is not forgiven.
    pub fn adopt(&self, live: Live, now: u64) {
        // No key can have more left than a whole burst: what says so is bent.
        let arrival = now.saturating_add(live.left.min(self.rate.window_nanos()));
        let key = live.key.max(1);
        if arrival == now {
            return;
        }
        let mut rows = self.shard(key);
        if let Some(row) = row_of(&mut rows, key)
            && let Some(at) = row.keys.iter().position(|held| *held == key)
        {
            row.arrivals[at] = row.arrivals[at].max(arrival);
            return;
        }
        place(&mut rows, key, arrival, now);
    }

    fn shard(&self, key: u64) -> MutexGuard<'_, Vec<Row>> {
        // The shard by other bits than the row.
        let at = (key >> 60) as usize % SHARDS;
        lock(&self.shards[at])
    }

    /// Bytes that the table holds.
    pub fn size(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).len()).sum::<usize>() * size_of::<Row>()
    }
}

fn lock(shard: &Mutex<Vec<Row>>) -> MutexGuard<'_, Vec<Row>> {
    shard.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The row a key belongs to; the number of rows is 0 or a power of two.
fn row_of(rows: &mut [Row], key: u64) -> Option<&mut Row> {
    let last = rows.len().checked_sub(1)?;
    rows.get_mut(key as usize & last)
}

/// Puts a new key into its row: where a place is free or its key idle, else where there is room after doubling, else over
/// the key that is nearest to idle.
fn place(rows: &mut Vec<Row>, key: u64, arrival: u64, now: u64) {
    if rows.is_empty() {
        rows.push(Row::default());
    }
    loop {
        let may_double = rows.len() < MOST_ROWS;
        let Some(row) = row_of(rows, key) else { return };
        let idlest = row.arrivals.iter().enumerate().min_by_key(|(_, arrival)| **arrival);
        let (at, idle_from) = idlest.map_or((0, 0), |(at, arrival)| (at, *arrival));
        if idle_from <= now || !may_double {
            row.keys[at] = key;
            row.arrivals[at] = arrival;
            return;
        }
        double(rows);
    }
}

/// Twice as many rows; each key goes to its old row or to the one as far behind it as there were rows.
fn double(rows: &mut Vec<Row>) {
    let old = rows.len();
    rows.extend_from_within(..);
    for (at, row) in rows.iter_mut().enumerate() {
        for (key, arrival) in row.keys.iter_mut().zip(&mut row.arrivals) {
            if *key as usize & (2 * old - 1) != at {
                (*key, *arrival) = (0, 0);
            }
        }
    }
}

impl std::fmt::Debug for RateTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RateTable").field("rate", &self.rate).finish_non_exhaustive()
    }
}

//! Our selection for Pingora's `LoadBalancer`: which of an upstream's backends is next. The schedule over the backends
//! usable now is rebuilt when their generation changes, so that a dead backend's share is spread over all others;
//! between changes choosing takes no lock and no memory. The arithmetic is `policy::balance`.

use std::{
    collections::BTreeSet,
    fmt,
    sync::{
        Arc, Mutex, OnceLock, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use arc_swap::{ArcSwap, Guard};
use pingora_core::protocols::l4::socket::SocketAddr;
use pingora_load_balancing::{
    Backend, Extensions,
    selection::{BackendIter, BackendSelection},
};

use super::backend::{BackendState, Generation};
use crate::{
    policy::{
        balance::{self, Balance, Rotation},
        slow_start::{self, Part},
    },
    types::BackendAddress,
};

/// How a [`Selection`] is built, and where what was built is found again: `LoadBalancer` gives nobody its selector.
#[derive(Debug)]
pub struct SelectionConfig {
    balance: Balance,
    generation: Generation,
    start: usize,
    built: ArcSwap<Pool>,
}

impl SelectionConfig {
    /// `generation` changes with what the backends are usable for; the round robin begins at turn `start`.
    pub fn new(balance: Balance, generation: Generation, start: usize) -> Self {
        let empty = Pool::new(Box::default(), balance, generation.clone(), start);
        Self { balance, generation, start, built: ArcSwap::from_pointee(empty) }
    }

    /// What the balancer selects by since its last update.
    pub fn pool(&self) -> Arc<Pool> {
        self.built.load_full()
    }
}

/// The selector inside Pingora's `LoadBalancer`.
#[derive(Debug)]
pub struct Selection {
    pool: Arc<Pool>,
    /// As Pingora knows the backends, by position in the pool; made when it chooses first.
    entries: OnceLock<Box<[Backend]>>,
}

impl BackendSelection for Selection {
    type Config = Arc<SelectionConfig>;
    type Iter = Candidates;

    fn build_with_config(backends: &BTreeSet<Backend>, config: &Self::Config) -> Self {
        let mut members: Vec<Arc<BackendState>> =
            backends.iter().filter_map(|entry| entry.ext.get().cloned()).collect();
        members.sort_by_key(|backend| backend.index);
        let pool = Arc::new(Pool::new(members.into(), config.balance, config.generation.clone(), config.start));
        config.built.store(pool.clone());
        Self { pool, entries: OnceLock::new() }
    }

    fn build(backends: &BTreeSet<Backend>) -> Self {
        let config = SelectionConfig::new(Balance::RoundRobin, Generation::default(), 0);
        Self::build_with_config(backends, &Arc::new(config))
    }

    fn iter(self: &Arc<Self>, key: &[u8]) -> Candidates {
        Candidates { selection: self.clone(), key: self.pool.key(key), tried: Vec::new() }
    }
}

/// First the backend whose turn it is, then the other usable ones, each once.
#[derive(Debug)]
pub struct Candidates {
    selection: Arc<Selection>,
    key: Option<u64>,
    tried: Vec<usize>,
}

impl BackendIter for Candidates {
    fn next(&mut self) -> Option<&Backend> {
        let index = self.selection.pool.choose(self.key, &self.tried)?.index;
        self.tried.push(index);
        let Selection { pool, entries } = &*self.selection;
        entries.get_or_init(|| pool.members.iter().map(|member| entry(&member.backend)).collect()).get(index)
    }
}

/// A backend in Pingora's terms. Pingora tells members apart by address and weight, so a host name, which may have no
/// address yet and share one with its neighbour later, stands under an address of the discard prefix (RFC 6666).
pub(super) fn entry(backend: &Arc<BackendState>) -> Backend {
    let addr = match (&backend.address, backend.target()) {
        (BackendAddress::Inet(_) | BackendAddress::Unix(_), Some(target)) => SocketAddr::clone(&target),
        _ => {
            let ip = std::net::Ipv6Addr::from((0x0100_u128 << 112) | backend.index as u128);
            SocketAddr::Inet((ip, 0).into())
        }
    };
    let mut ext = Extensions::new();
    ext.insert(backend.clone());
    Backend { addr, weight: usize::from(backend.weight.value()), ext }
}

/// The backends of an upstream and the schedule over those that are usable now.
pub struct Pool {
    members: Box<[Member]>,
    balance: Balance,
    generation: Generation,
    schedule: ArcSwap<Schedule>,
    /// Held while the schedule is rebuilt, so that one change starts one sequence.
    rebuilding: Mutex<()>,
    /// Where `least_requests` begins among equals.
    turn: AtomicUsize,
}

struct Member {
    backend: Arc<BackendState>,
    /// Of the id: `ip_hash` holds over address changes and restarts.
    hash: u64,
}

/// Made of one generation.
struct Schedule {
    generation: u64,
    /// Positions of the usable members, with the weights that count now.
    usable: Box<[(u32, u16)]>,
    /// The same of those that only an ejection keeps out: they get what no usable one is left for.
    spare: Box<[(u32, u16)]>,
    /// One of the usable is in slow start.
    ramping: bool,
    /// One cycle of them by weight.
    rotation: Rotation,
}

impl Pool {
    /// `members[n].index` is `n`.
    fn new(members: Box<[Arc<BackendState>]>, balance: Balance, generation: Generation, start: usize) -> Self {
        let hashed = |backend: Arc<BackendState>| {
            let hash = balance::hash_bytes(backend.id.as_str().as_bytes());
            Member { backend, hash }
        };
        let members: Box<[Member]> = members.into_iter().map(hashed).collect();
        let schedule = Schedule::new(&members, generation.current(), start);
        Self {
            members,
            balance,
            generation,
            schedule: ArcSwap::from_pointee(schedule),
            rebuilding: Mutex::new(()),
            turn: AtomicUsize::new(start),
        }
    }

    /// What [`Pool::choose`] takes for a client with these bytes; `None` where the client does not matter.
    pub fn key(&self, client: &[u8]) -> Option<u64> {
        (self.balance == Balance::IpHash && !client.is_empty()).then(|| balance::hash_bytes(client))
    }

    /// A usable backend that is not among `tried`; where none is left, one that is ejected. Only a request's first choice
    /// takes a turn of the round robin; a repeated one is by chance and weight, so that what a failing backend leaves is
    /// spread evenly.
    pub fn choose(&self, key: Option<u64>, tried: &[usize]) -> Option<&Arc<BackendState>> {
        let schedule = self.schedule();
        let position = match (self.balance, key) {
            (Balance::IpHash, Some(key)) => self.by_hash(&schedule, key, tried),
            (Balance::LeastRequests, _) => self.least_requests(&schedule, tried),
            (Balance::IpHash | Balance::RoundRobin, _) if tried.is_empty() => schedule.rotation.next(),
            (Balance::IpHash | Balance::Random | Balance::RoundRobin, _) => schedule.by_chance(tried),
        };
        let position = position.or_else(|| self.second_choice(&schedule, tried))?;
        self.members.get(position as usize).map(|member| &member.backend)
    }

    /// Turns taken, of the round robin or among equals.
    pub fn position(&self) -> usize {
        match self.balance {
            Balance::LeastRequests => self.turn.load(Ordering::Relaxed),
            Balance::IpHash | Balance::Random | Balance::RoundRobin => self.schedule.load().rotation.position(),
        }
    }

    /// Goes on at turn `start`.
    pub fn begin_at(&self, start: usize) {
        self.turn.store(start, Ordering::Relaxed);
        // Also where the schedule is out of date: the next one goes on from it.
        let _one_at_a_time = self.rebuilding.lock().unwrap_or_else(PoisonError::into_inner);
        self.schedule.load().rotation.begin_at(start);
    }

    /// Whether the schedule holds somebody back.
    pub fn is_ramping(&self) -> bool {
        self.schedule.load().ramping
    }

    /// Builds the schedule anew, for weights that have changed by time. Choosing goes on by the old one meanwhile, without
    /// waiting.
    pub fn refresh(&self) {
        let _one_at_a_time = self.rebuilding.lock().unwrap_or_else(PoisonError::into_inner);
        self.build_anew(self.generation.current());
    }

    fn schedule(&self) -> Guard<Arc<Schedule>> {
        let schedule = self.schedule.load();
        if schedule.generation == self.generation.current() { schedule } else { self.rebuild() }
    }

    #[cold]
    fn rebuild(&self) -> Guard<Arc<Schedule>> {
        let _one_at_a_time = self.rebuilding.lock().unwrap_or_else(PoisonError::into_inner);
        // Read before the members are: a later change makes another generation.
        let generation = self.generation.current();
        if self.schedule.load().generation != generation {
            self.build_anew(generation);
        }
        self.schedule.load()
    }

    fn build_anew(&self, generation: u64) {
        let next = Schedule::new(&self.members, generation, self.schedule.load().rotation.position());
        self.schedule.store(Arc::new(next));
    }

    fn by_hash(&self, schedule: &Schedule, key: u64, tried: &[usize]) -> Option<u32> {
        let members = self.untried(&schedule.usable, tried).map(|(member, weight)| (member.hash, weight));
        schedule.usable.get(balance::rendezvous(key, members)?).map(|(position, _)| *position)
    }

    #[cold]
    fn second_choice(&self, schedule: &Schedule, tried: &[usize]) -> Option<u32> {
        let loads =
            self.untried(&schedule.spare, tried).map(|(one, weight)| (one.backend.in_flight() as usize, weight));
        let least = balance::least_loaded(loads, self.turn.fetch_add(1, Ordering::Relaxed))?;
        schedule.spare.get(least).map(|(position, _)| *position)
    }

    fn least_requests(&self, schedule: &Schedule, tried: &[usize]) -> Option<u32> {
        // Of idle ones the heaviest is the least loaded, always: one in slow start would get nothing. So the idle ones take
        // turns by weight meanwhile.
        if schedule.ramping && tried.is_empty() {
            let turn = schedule.rotation.next()?;
            if self.members.get(turn as usize)?.backend.in_flight() == 0 {
                return Some(turn);
            }
        }
        let start = self.turn.fetch_add(1, Ordering::Relaxed);
        let loads = self.untried(&schedule.usable, tried);
        let loads = loads.map(|(member, weight)| (member.backend.in_flight() as usize, weight));
        schedule.usable.get(balance::least_loaded(loads, start)?).map(|(position, _)| *position)
    }

    /// These members with their weights, 0 for what was tried.
    fn untried<'a>(
        &'a self,
        members: &'a [(u32, u16)],
        tried: &'a [usize],
    ) -> impl Iterator<Item = (&'a Member, u16)> + Clone {
        let open = |(position, weight): &(u32, u16)| {
            let member = self.members.get(*position as usize)?;
            Some((member, if tried.contains(&(*position as usize)) { 0 } else { *weight }))
        };
        members.iter().filter_map(open)
    }
}

impl Schedule {
    fn new(members: &[Member], generation: u64, start: usize) -> Self {
        // An ejection is never the reason why nobody is left; a sweep ends it soon.
        let alone = !members.iter().any(|member| member.backend.usable());
        let usable = |one: &BackendState| one.usable() || (alone && one.usable_but_for_ejection());
        let share = |Member { backend, .. }: &Member| {
            if usable(backend) { (backend.weight.value(), backend.part()) } else { (0, Part::WHOLE) }
        };
        let shares: Vec<(u16, Part)> = members.iter().map(share).collect();
        let weights = slow_start::effective(&shares);
        let usable = weights.iter().zip(0u32..).filter(|(weight, _)| **weight > 0);
        let spare = members.iter().zip(0u32..).filter(|(one, _)| {
            let backend = &one.backend;
            backend.is_ejected() && backend.usable_but_for_ejection() && !alone
        });
        Self {
            generation,
            usable: usable.map(|(weight, position)| (position, *weight)).collect(),
            spare: spare.map(|(one, position)| (position, one.backend.weight.value())).collect(),
            ramping: slow_start::any_ramping(&shares),
            rotation: Rotation::new(balance::smooth_order(&weights), start),
        }
    }

    /// One of the cycle by chance, which stands in it as often as its weight says.
    fn by_chance(&self, tried: &[usize]) -> Option<u32> {
        /// Draws that may hit a tried one before the next in the cycle is taken.
        const DRAWS: usize = 8;
        let order = self.rotation.order();
        let draw = || ((u128::from(rand::random::<u64>()) * order.len() as u128) >> 64) as usize;
        let open = |position: &&u32| !tried.contains(&(**position as usize));
        let mut drawn = 0;
        for _ in 0..DRAWS {
            drawn = draw();
            if let Some(position) = order.get(drawn).filter(open) {
                return Some(*position);
            }
        }
        order.iter().cycle().skip(drawn).take(order.len()).find(open).copied()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool")
            .field("balance", &self.balance)
            .field("members", &self.members.len())
            .field("generation", &self.generation)
            .finish_non_exhaustive()
    }
}

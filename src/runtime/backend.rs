//! One backend of an upstream: what never changes in a build, and the state that outlives builds (health, requests in
//! flight, the resolved address). Who may use it is said here; who probes or resolves it is not.

use std::{
    fmt,
    hash::{DefaultHasher, Hash as _, Hasher as _},
    ops::Deref,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwapOption;
use pingora_core::{protocols::l4::socket::SocketAddr, upstreams::peer::HttpPeer};

use super::{
    outlier::Ejection,
    ramp::{Ramp, SlowStart},
};
use crate::{
    config::model,
    policy::{
        health::{Health, InitialHealth},
        slow_start::Part,
    },
    types::{AdminState, BackendAddress, Name, Weight},
};

/// Counts the changes that a schedule depends on: health and addresses of an upstream's backends. Shared by all of
/// them and by all builds of the upstream.
#[derive(Clone, Debug, Default)]
pub struct Generation(Arc<Changes>);

#[derive(Debug, Default)]
struct Changes {
    count: AtomicU64,
    /// A backend may be in slow start.
    ramping: AtomicBool,
}

impl Generation {
    /// The number of changes so far.
    pub fn current(&self) -> u64 {
        self.0.count.load(Ordering::Acquire)
    }

    /// Tells everybody who kept a schedule that it is out of date. Call after the change is visible.
    pub fn bump(&self) {
        self.0.count.fetch_add(1, Ordering::AcqRel);
    }

    /// A backend may be in slow start.
    pub fn set_ramping(&self) {
        self.0.ramping.store(true, Ordering::Release);
    }

    /// Whether a backend may have been in slow start since this was asked last.
    pub fn take_ramping(&self) -> bool {
        // Mostly not, and then nothing is written.
        self.0.ramping.load(Ordering::Acquire) && self.0.ramping.swap(false, Ordering::AcqRel)
    }
}

/// One backend of an upstream in one build.
pub struct BackendState {
    /// The position in the upstream's list, from 0.
    pub index: usize,
    /// What the operator calls it.
    pub id: Name,
    /// The address as written, for logs and metrics.
    pub label: String,
    /// Where it is reached.
    pub address: BackendAddress,
    /// Its share, 0 to 1000.
    pub weight: Weight,
    /// What people want of it.
    pub admin: AdminState,
    /// `None` where nothing is probed: it always counts as up.
    check: Option<InitialHealth>,
    /// How long it takes to its whole share after it came up; `None`: it has it at once.
    slow_start: Option<Duration>,
    /// Everything of the peer but the address.
    peer: HttpPeer,
    /// Kept over builds while the id stays.
    state: Arc<State>,
    /// Kept over builds while the address stays. `None` while a host name has none.
    target: Arc<ArcSwapOption<Target>>,
    /// What its attempts came to; see [`BackendState::with_ejection_of`].
    ejection: Arc<Ejection>,
}

struct State {
    health: AtomicU8,
    /// Probe results in a row against the verdict; kept here for a successor.
    against: AtomicU32,
    in_flight: AtomicU32,
    ramp: Ramp,
    generation: Generation,
}

impl BackendState {
    /// A backend at `index`, which goes on from `previous` (the same upstream and id in the build before).
    pub fn new(
        index: usize,
        backend: &model::Backend,
        check: Option<InitialHealth>,
        peer: HttpPeer,
        generation: &Generation,
        previous: Option<&Self>,
    ) -> Self {
        let state = previous.map_or_else(
            || {
                Arc::new(State {
                    health: AtomicU8::new(UNKNOWN),
                    against: AtomicU32::new(0),
                    in_flight: AtomicU32::new(0),
                    ramp: Ramp::default(),
                    generation: generation.clone(),
                })
            },
            |previous| previous.state.clone(),
        );
        let known = previous.filter(|previous| previous.address == backend.address);
        let target = known.map_or_else(
            || Arc::new(ArcSwapOption::from_pointee(fixed_target(&backend.address).map(Target::new))),
            |previous| previous.target.clone(),
        );
        Self {
            index,
            id: backend.id.clone(),
            label: backend.address.to_string(),
            address: backend.address.clone(),
            weight: backend.weight,
            admin: backend.admin,
            check,
            slow_start: None,
            peer,
            state,
            target,
            ejection: Arc::default(),
        }
    }

    /// With a slow start over this time. `previous` is as for [`BackendState::new`]; `joined`: where there is none, it joins
    /// others that have traffic.
    pub fn starting_slowly(self, over: Option<Duration>, previous: Option<&Self>, joined: bool) -> Self {
        let came = |previous: &Self| (self.is_wanted() && !previous.is_wanted()) || (self.is_up() && !previous.is_up());
        if previous.map_or(joined, came) {
            self.begin_slow_start();
        }
        Self { slow_start: over, ..self }
    }

    /// A reason why it got no requests is going away: its share grows from the beginning when it is usable. Call before
    /// that can be seen. Who kept it out (probes, people, ejection) must call this for its return.
    pub fn begin_slow_start(&self) {
        self.state.ramp.begin();
        self.state.generation.set_ramping();
    }

    /// Moves its slow start on. Returns whether it has another part of its share than before.
    pub fn advance_slow_start(&self, now: Instant) -> bool {
        self.state.ramp.advance(self.slow_start, self.usable(), now)
    }

    /// What balancing gives it of its share.
    pub fn part(&self) -> Part {
        if self.slow_start.is_some() { self.state.ramp.part() } else { Part::WHOLE }
    }

    /// Where it stands in its slow start; `None` where it is in none, or gets nothing at all.
    pub fn slow_start(&self, now: Instant) -> Option<SlowStart> {
        let over = self.slow_start.filter(|_| self.usable())?;
        let elapsed = self.state.ramp.elapsed(now)?;
        Some(SlowStart { part: self.state.ramp.part(), remaining: over.saturating_sub(elapsed) })
    }

    /// How long its slow start has been going on, for a successor; `None` where it is in none.
    pub fn slow_start_elapsed(&self, now: Instant) -> Option<Duration> {
        self.slow_start.and(self.state.ramp.elapsed(now))
    }

    /// Goes on with a slow start that has been going on for so long.
    pub fn resume_slow_start(&self, elapsed: Duration, now: Instant) {
        if let Some(over) = self.slow_start {
            self.state.ramp.resume(elapsed, over, now);
            self.state.generation.set_ramping();
            self.state.generation.bump();
        }
    }

    /// Whether people want it to get requests.
    pub(super) fn is_wanted(&self) -> bool {
        self.admin == AdminState::Ready && self.weight.value() > 0
    }

    /// Goes on with what the attempts at `previous` came to.
    pub fn with_ejection_of(self, previous: &Self) -> Self {
        Self { ejection: previous.ejection.clone(), ..self }
    }

    /// Whether new requests may go to it: wanted, a weight over 0, up, not ejected, and an address to go to.
    pub fn usable(&self) -> bool {
        self.usable_but_for_ejection() && !self.is_ejected()
    }

    /// As [`BackendState::usable`], ejected or not.
    pub fn usable_but_for_ejection(&self) -> bool {
        self.is_wanted() && self.is_up() && self.has_target()
    }

    /// Whether it counts as up: by its probes, by `initial` before the first one, always where nothing is probed.
    pub fn is_up(&self) -> bool {
        self.check.is_none_or(|initial| self.health().usable(initial))
    }

    /// What the probes say.
    pub fn health(&self) -> Health {
        match self.state.health.load(Ordering::Acquire) {
            UP => Health::Up,
            DOWN => Health::Down,
            _ => Health::Unknown,
        }
    }

    /// Keeps a verdict. Returns whether it is another one than before; schedules are rebuilt then.
    pub fn set_health(&self, health: Health) -> bool {
        let value = match health {
            Health::Down => DOWN,
            Health::Unknown => UNKNOWN,
            Health::Up => UP,
        };
        // A first verdict is no return: at its start a process would have nobody with a whole share.
        if self.health() == Health::Down && self.check.is_none_or(|initial| health.usable(initial)) {
            self.begin_slow_start();
        }
        let changed = self.state.health.swap(value, Ordering::AcqRel) != value;
        if changed {
            self.state.generation.bump();
        }
        changed
    }

    /// Whether it is out for failing the requests it was sent.
    pub fn is_ejected(&self) -> bool {
        self.ejection.is_out()
    }

    /// What its attempts came to.
    pub fn ejection(&self) -> &Ejection {
        &self.ejection
    }

    /// Schedules are rebuilt.
    pub(super) fn usability_changed(&self) {
        self.state.generation.bump();
    }

    /// Whether it is probed.
    pub fn is_checked(&self) -> bool {
        self.check.is_some()
    }

    /// Probe results in a row against the verdict.
    pub fn against(&self) -> u32 {
        self.state.against.load(Ordering::Relaxed)
    }

    /// Keeps how many probe results in a row were against the verdict.
    pub fn set_against(&self, against: u32) {
        self.state.against.store(against, Ordering::Relaxed);
    }

    /// Whether there is an address to connect to.
    pub fn has_target(&self) -> bool {
        self.target.load().is_some()
    }

    /// The address to connect to; `None` while a host name has none.
    pub fn target(&self) -> Option<Arc<Target>> {
        self.target.load_full()
    }

    /// Keeps what a host name resolved to. Returns whether it is another address than before; schedules are rebuilt
    /// where there was none.
    pub fn set_target(&self, address: std::net::SocketAddr) -> bool {
        let before = self.target.swap(Some(Arc::new(Target::new(SocketAddr::Inet(address)))));
        if before.is_none() {
            self.state.generation.bump();
        }
        before.and_then(|before| before.as_inet().copied()) != Some(address)
    }

    /// A peer for one connection attempt; `None` while there is no address.
    pub fn peer(&self) -> Option<Box<HttpPeer>> {
        let target = self.target.load();
        let address = target.as_deref()?;
        let mut peer = Box::new(self.peer.clone());
        peer._address = address.address.clone();
        Some(peer)
    }

    /// Where an own connection leads, and its [`BackendState::connection_key`].
    pub fn connection(&self) -> Option<(Arc<Target>, u64)> {
        let target = self.target.load_full()?;
        let key = self.key_to(&target);
        Some((target, key))
    }

    /// A number that only own connections have which are made alike to the same address; `None` while there is no address.
    pub fn connection_key(&self) -> Option<u64> {
        self.target.load().as_deref().map(|target| self.key_to(target))
    }

    fn key_to(&self, target: &Target) -> u64 {
        // Both are hashes.
        target.hash ^ self.peer.group_key.rotate_left(32)
    }

    /// Of what use connections to `target` are, which was this backend's address.
    pub fn anchor(&self, target: Arc<Target>) -> Anchor {
        Anchor { current: Arc::downgrade(&self.target), target }
    }

    /// The name in SNI, empty where the upstream has no TLS.
    pub fn sni(&self) -> &str {
        &self.peer.sni
    }

    /// Whom to ask for where the client has not said: the name in SNI, else the address as written.
    pub fn authority(&self) -> &str {
        match &self.address {
            // An IPv6 address is no host as it stands there.
            _ if !self.peer.sni.is_empty() && !self.peer.sni.contains(':') => &self.peer.sni,
            BackendAddress::Host(_) | BackendAddress::Inet(_) => &self.label,
            BackendAddress::Unix(_) => "localhost",
        }
    }

    /// Requests in flight, of all builds.
    pub fn in_flight(&self) -> u32 {
        self.state.in_flight.load(Ordering::Relaxed)
    }

    /// Whether a build of this, at the same place in the same configuration, would be no other. In `maint` each build begins
    /// with nothing held against it.
    pub(super) fn is_built_of(&self, backend: &model::Backend) -> bool {
        let model::Backend { id, address, weight, admin } = backend;
        self.id == *id
            && self.address == *address
            && self.weight == *weight
            && self.admin == *admin
            && self.admin != AdminState::Maint
    }

    /// Whether both are builds of one backend.
    pub fn same_backend(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.state, &other.state)
    }

    /// Whether no other build of this backend at this address is left in memory.
    pub(super) fn is_only_build(&self) -> bool {
        Arc::strong_count(&self.target) == 1
    }

    /// Whether connections to both are made alike (TLS, protocol; see the group key of `peer.rs`).
    pub fn same_transport(&self, other: &Self) -> bool {
        self.peer.group_key == other.peer.group_key
    }
}

/// Where connections lead. Every request asks for the hash of it, so it is kept.
#[derive(Debug)]
pub struct Target {
    address: SocketAddr,
    hash: u64,
}

impl Target {
    fn new(address: SocketAddr) -> Self {
        let mut hasher = DefaultHasher::new();
        address.hash(&mut hasher);
        Self { hash: hasher.finish(), address }
    }
}

impl Deref for Target {
    type Target = SocketAddr;

    fn deref(&self) -> &SocketAddr {
        &self.address
    }
}

impl fmt::Debug for BackendState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BackendState")
            .field("id", &self.id)
            .field("label", &self.label)
            .field("weight", &self.weight)
            .field("health", &self.health())
            .field("in_flight", &self.in_flight())
            .finish_non_exhaustive()
    }
}

/// Says whether an address is still that of a backend.
#[derive(Debug)]
pub struct Anchor {
    /// Gone with the last build of the backend at what it is written as.
    current: Weak<ArcSwapOption<Target>>,
    target: Arc<Target>,
}

impl Anchor {
    /// Whether the backend is there, and its name still means this address.
    pub fn holds(&self) -> bool {
        self.current
            .upgrade()
            .is_some_and(|current| current.load().as_deref().is_some_and(|now| **now == **self.target))
    }
}

/// A backend chosen for one attempt, counted as in flight until this is dropped.
#[derive(Debug)]
pub struct Picked {
    backend: Arc<BackendState>,
}

impl Picked {
    /// Counts one more request in flight.
    pub fn new(backend: Arc<BackendState>) -> Self {
        backend.state.in_flight.fetch_add(1, Ordering::Relaxed);
        Self { backend }
    }

    /// The backend.
    pub fn backend(&self) -> &Arc<BackendState> {
        &self.backend
    }

    /// As [`BackendState::peer`].
    pub fn peer(&self) -> Option<Box<HttpPeer>> {
        self.backend.peer()
    }
}

impl Drop for Picked {
    fn drop(&mut self) {
        self.backend.state.in_flight.fetch_sub(1, Ordering::Relaxed);
    }
}

const UNKNOWN: u8 = 0;
const UP: u8 = 1;
const DOWN: u8 = 2;

/// The address of a backend that needs no resolving. A unix path that is too long for the system has none.
fn fixed_target(address: &BackendAddress) -> Option<SocketAddr> {
    match address {
        BackendAddress::Host(_) => None,
        BackendAddress::Inet(address) => Some(SocketAddr::Inet(*address)),
        BackendAddress::Unix(path) => std::os::unix::net::SocketAddr::from_pathname(path).ok().map(SocketAddr::Unix),
    }
}

//! One table of deadlines per worker in place of a timer per request: the worker sweeps it when the nearest is due, at
//! most every [`TICK`], and what is due has its socket shut down. The one who waits on the socket then wakes, and asks its guard why.
//! What was on its way is still read from a socket that was shut down: whether a deadline has passed is asked, and not seen by an end.
//!
//! A socket that is shut down stays open, so its number cannot be given to another connection while its owner holds
//! it. The guard must not outlive the socket by a turn of the worker's event loop: the sweep runs on the same thread,
//! so owner and guard may end in any order within one turn.

use std::{
    net::Shutdown,
    os::fd::{BorrowedFd, RawFd},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering},
    },
    task::{Context, Waker},
    time::{Duration, Instant},
};

use tokio::sync::Notify;

use super::signal::Signal;

/// In place of a descriptor: there is no socket to shut down, and whoever waits asks [`Deadline::poll_fired`].
pub const NO_SOCKET: RawFd = -2;
/// How late a deadline may be noticed, so that many that are near each other cost one sweep.
pub const TICK: Duration = Duration::from_millis(25);
/// How much longer a paused deadline gets each time it is due, in milliseconds.
const PAUSE: u64 = 250;
/// Who has not come to its end so long after its deadline, in milliseconds, stands where nothing else wakes it.
const LAST: u64 = 250;

/// A worker's deadlines. Cost: a sweep looks at every entry, some 110 bytes each.
pub struct Deadlines {
    start: Instant,
    table: Mutex<Table>,
    /// How many have passed and were not taken note of: mostly none, so that who asks need not look into the table.
    fired: AtomicUsize,
    /// Told when a deadline is set that is nearer than the next sweep.
    nearer: Notify,
}

#[derive(Default)]
struct Table {
    entries: Vec<Entry>,
    free: Vec<u32>,
    /// When the table is swept next.
    next: u64,
}

struct Entry {
    /// Milliseconds since the table's start.
    due: u64,
    fd: RawFd,
    state: State,
    how: How,
    wait: Wait,
    /// Whose it is; see [`Deadlines::guard_of`].
    owner: usize,
    /// While this is true the deadline does not count; see [`Deadline::pause_while`].
    paused: Option<Arc<AtomicBool>>,
    /// It counts from then on even so.
    latest: u64,
    /// Not due while the socket's client takes what is queued for it; see [`Deadline::drains`].
    drains: Option<Drains>,
    /// Given in place of shutting a socket down; see [`Deadline::wake`].
    wake: Option<Arc<Signal>>,
    /// Woken beside it; see [`Deadline::poll_fired`].
    waiter: Option<Waker>,
    /// Who is written to meanwhile; see [`Deadline::ends_writes`].
    reader: Option<Reader>,
}

/// The other side of what a deadline ends: somebody may stand in a write to it, and hear nothing else.
#[derive(Clone, Debug)]
pub enum Reader {
    /// The socket, and whether it takes nothing at the moment. If so it ends too, in a reset.
    Socket(RawFd, Arc<AtomicBool>),
    /// Who ends what still stands a moment after the deadline.
    Owner(Arc<Signal>),
}

/// What is looked at when a deadline is due that waits for a reader.
#[derive(Clone, Copy)]
struct Drains {
    /// Bytes per second.
    rate: u64,
    /// Bytes in the system's buffer when it was looked at last.
    queued: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Armed,
    Fired,
    Free,
    Idle,
}

/// What is done to the socket when the deadline passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// The connection ends both ways, and what the system holds for the peer is thrown away when it is closed: one that does not
    /// take it would leave it there for minutes.
    Abort,
    /// Nothing more is read: the reader sees the end of the stream and can still answer.
    Read,
    /// The connection ends both ways, at once.
    Both,
}

/// What an armed deadline waits for; a drain cuts some of it short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The first request of a fresh connection, of which nothing has come yet.
    First,
    /// The next request of a kept connection, of which nothing has come yet.
    Next,
    /// Anything that is under way.
    Work,
}

impl Deadlines {
    /// An empty table.
    pub fn new() -> Arc<Self> {
        Arc::new(Self {
            start: Instant::now(),
            table: Mutex::default(),
            fired: AtomicUsize::new(0),
            nearer: Notify::new(),
        })
    }

    /// Nothing yet; it has a place in the table from the first time on that something is set.
    pub fn guard(self: &Arc<Self>, how: How) -> Deadline {
        self.guard_of(0, how)
    }

    /// As [`Deadlines::guard`], for [`Deadlines::hasten_of`]; 0 is nobody's.
    pub fn guard_of(self: &Arc<Self>, owner: usize, how: How) -> Deadline {
        Deadline { table: self.clone(), owner, slot: AtomicU32::new(NOWHERE), how }
    }

    /// Shuts down every socket whose deadline has passed. Returns when to sweep next; `None` where nothing is armed.
    pub fn sweep(&self, now: Instant) -> Option<Instant> {
        let millis = self.millis(now);
        let mut table = self.lock();
        let mut nearest = u64::MAX;
        for entry in table.entries.iter_mut() {
            match (entry.state, &entry.reader) {
                (State::Armed, _) => {}
                (State::Fired, Some(Reader::Owner(owner))) if entry.due <= millis => {
                    owner.give();
                    entry.reader = None;
                    continue;
                }
                (State::Fired, Some(Reader::Owner(_))) => {
                    nearest = nearest.min(entry.due);
                    continue;
                }
                _ => continue,
            }
            let paused = entry.paused.as_ref().is_some_and(|paused| paused.load(Ordering::Relaxed));
            if entry.due <= millis && paused && millis < entry.latest {
                entry.due = millis.saturating_add(PAUSE).min(entry.latest);
            } else if entry.due <= millis
                && let Some(rest) = entry.drains.as_mut().and_then(|drains| drains.rest(entry.fd))
            {
                entry.due = millis.saturating_add(rest);
            } else if entry.due <= millis {
                self.fired.fetch_add(1, Ordering::Relaxed);
                if !entry.fire(millis) {
                    continue;
                }
            }
            nearest = nearest.min(entry.due);
        }
        table.next = nearest;
        let rest = Duration::from_millis(nearest.saturating_sub(millis)).max(TICK);
        (nearest != u64::MAX).then(|| now + rest)
    }

    /// Returns when a deadline was set that is nearer than the last sweep said.
    pub async fn nearer(&self) {
        self.nearer.notified().await;
    }

    /// Brings the deadlines of those who wait for `wait` forward, so that they are at most `rest` away.
    pub fn hasten(&self, wait: Wait, now: Instant, rest: Duration) {
        let latest = self.millis(now + rest);
        for entry in &mut self.lock().entries {
            if entry.state == State::Armed && entry.wait == wait {
                entry.due = entry.due.min(latest);
            }
        }
    }

    /// As [`Deadlines::hasten`], for those of one owner; the sweep is told. Returns whether there were any.
    pub fn hasten_of(&self, owner: usize, wait: Wait, now: Instant, rest: Duration) -> bool {
        let latest = self.millis(now + rest);
        let mut table = self.lock();
        let of = |entry: &&mut Entry| entry.state == State::Armed && entry.wait == wait && entry.owner == owner;
        let mut any = false;
        for entry in table.entries.iter_mut().filter(of) {
            entry.due = entry.due.min(latest);
            any = true;
        }
        if any && latest < table.next {
            table.next = latest;
            drop(table);
            self.nearer.notify_one();
        }
        any
    }

    /// Gives up the places that nobody has, but for those in between.
    pub fn forget(&self) {
        let mut table = self.lock();
        let used = table.entries.iter().rposition(|entry| entry.state != State::Free).map_or(0, |last| last + 1);
        table.entries.truncate(used);
        table.entries.shrink_to_fit();
        table.free.retain(|slot| (*slot as usize) < used);
        table.free.shrink_to_fit();
    }

    /// Rounded up: what passes early is taken for something else by those who ask the clock why.
    fn due(&self, now: Instant, after: Duration) -> u64 {
        let at = now.saturating_duration_since(self.start).saturating_add(after);
        at.as_secs().saturating_mul(1000).saturating_add(u64::from(at.subsec_nanos().div_ceil(1_000_000)))
    }

    fn millis(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.start).as_millis()).unwrap_or(u64::MAX)
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One deadline; gone when dropped.
pub struct Deadline {
    table: Arc<Deadlines>,
    owner: usize,
    /// Read and written under the table's lock, but for its owner's question whether there is one.
    slot: AtomicU32,
    how: How,
}

/// The slot of who has no place in the table.
const NOWHERE: u32 = u32::MAX;

impl Deadline {
    /// Shut `fd` down `after` from `now`, in place of what was set before.
    pub fn arm(&self, fd: RawFd, wait: Wait, now: Instant, after: Duration) {
        let due = self.table.due(now, after);
        self.with(due, |entry| {
            let drains = entry.drains.map(|drains| Drains { queued: queued(fd), ..drains });
            (entry.due, entry.fd, entry.state, entry.wait) = (due, fd, State::Armed, wait);
            (entry.paused, entry.latest, entry.drains) = (None, u64::MAX, drains);
        });
    }

    /// While `paused` is true the armed deadline does not count: it is another who is slow. From `latest` on it does.
    pub fn pause_while(&self, paused: Arc<AtomicBool>, latest: Option<Instant>) {
        let latest = latest.map_or(u64::MAX, |latest| self.table.due(latest, Duration::ZERO));
        self.with(u64::MAX, |entry| (entry.paused, entry.latest) = (Some(paused), latest));
    }

    /// When the deadline passes, a write to `reader` that stands ends too. Whoever writes by polling asks
    /// [`Deadline::poll_fired`] in place of that.
    pub fn ends_writes(&self, reader: Reader) {
        self.with(u64::MAX, |entry| entry.reader = Some(reader));
    }

    /// From now on the deadline waits for a reader: when it is due, each byte that was taken from the system's buffer
    /// meanwhile defers it by its share of a second at `rate` bytes per second.
    pub fn drains(&self, rate: u64) {
        self.with(u64::MAX, |entry| entry.drains = Some(Drains { rate: rate.max(1), queued: 0 }));
    }

    /// From now on `wake` is given when the deadline passes, and no socket is touched.
    pub fn wake(&self, wake: Option<Arc<Signal>>) {
        self.with(u64::MAX, |entry| entry.wake = wake);
    }

    /// What is done to the socket from now on.
    pub fn set_how(&self, how: How) {
        self.with(u64::MAX, |entry| entry.how = how);
    }

    /// Moves an armed deadline to `after` from `now`; one that was not armed or has fired stays as it is.
    pub fn renew(&self, now: Instant, after: Duration) {
        let due = self.table.due(now, after);
        self.with(due, |entry| {
            if entry.state == State::Armed {
                entry.due = due;
            }
        });
    }

    /// No deadline any more. Returns whether it had fired.
    pub fn disarm(&self) -> bool {
        self.is_placed()
            && self.with(u64::MAX, |entry| std::mem::replace(&mut entry.state, State::Idle) == State::Fired)
    }

    /// Whether the deadline has passed and the socket was shut down. What is read since then is no answer of its peer's, its end
    /// least of all.
    pub fn fired(&self) -> bool {
        self.is_placed()
            && self.table.fired.load(Ordering::Relaxed) > 0
            && self.with(u64::MAX, |entry| entry.state == State::Fired)
    }

    /// As [`Deadline::fired`]; if not, who waits for something else than the socket is woken when it does.
    pub fn poll_fired(&self, cx: &Context<'_>) -> bool {
        self.with(u64::MAX, |entry| {
            if entry.state == State::Armed {
                entry.waiter = Some(cx.waker().clone());
            }
            entry.state == State::Fired
        })
    }

    fn is_placed(&self) -> bool {
        self.slot.load(Ordering::Relaxed) != NOWHERE
    }

    /// Changes the entry, which there is from then on; `due` is when it may have to be swept.
    fn with<R>(&self, due: u64, change: impl FnOnce(&mut Entry) -> R) -> R {
        let mut table = self.table.lock();
        let mut slot = self.slot.load(Ordering::Relaxed);
        if slot == NOWHERE {
            slot = table.place(Entry::new(self.owner, self.how));
            self.slot.store(slot, Ordering::Relaxed);
        }
        let entry = &mut table.entries[slot as usize];
        let fired = entry.state == State::Fired;
        let done = change(entry);
        if fired && entry.state != State::Fired {
            self.table.fired.fetch_sub(1, Ordering::Relaxed);
        }
        if due < table.next {
            table.next = due;
            drop(table);
            self.table.nearer.notify_one();
        }
        done
    }
}

impl Table {
    fn place(&mut self, entry: Entry) -> u32 {
        if let Some(slot) = self.free.pop() {
            self.entries[slot as usize] = entry;
            return slot;
        }
        self.entries.push(entry);
        u32::try_from(self.entries.len() - 1).expect("fewer than 2^32 connections fit into a process")
    }
}

impl Entry {
    fn new(owner: usize, how: How) -> Self {
        let (state, wait) = (State::Idle, Wait::Work);
        let (due, fd, latest) = (0, -1, u64::MAX);
        let (paused, drains, wake, waiter, reader) = (None, None, None, None, None);
        Self { due, fd, state, how, wait, owner, paused, latest, drains, wake, waiter, reader }
    }

    /// The deadline has passed. Returns whether it is to be swept once more.
    fn fire(&mut self, millis: u64) -> bool {
        self.state = State::Fired;
        match &self.wake {
            Some(wake) => wake.give(),
            None => shut_down(self.fd, self.how),
        }
        if let Some(waiter) = self.waiter.take() {
            waiter.wake();
        }
        match &self.reader {
            Some(Reader::Socket(fd, blocked)) if blocked.load(Ordering::Relaxed) => shut_down(*fd, How::Abort),
            Some(Reader::Owner(_)) => self.due = millis.saturating_add(LAST),
            _ => {}
        }
        matches!(self.reader, Some(Reader::Owner(_)))
    }
}

impl Drains {
    /// By how many milliseconds the deadline is deferred; `None` where nothing was taken.
    fn rest(&mut self, fd: RawFd) -> Option<u64> {
        /// No more at once: what was still on its way into the client's own buffer must not pay for minutes of silence.
        const MOST: u64 = 5_000;
        let before = std::mem::replace(&mut self.queued, queued(fd));
        let taken = before.saturating_sub(self.queued);
        (taken > 0).then(|| (taken.saturating_mul(1000) / self.rate).clamp(1, MOST))
    }
}

/// Bytes that were written and have not arrived (`TIOCOUTQ`, tcp(7), unix(7)); 0 where the system does not say.
pub fn queued(fd: RawFd) -> u64 {
    let mut bytes: libc::c_int = 0;
    // SAFETY: `bytes` outlives the call, which writes one int; any other descriptor is an error.
    let done = unsafe { libc::ioctl(fd, libc::TIOCOUTQ, &raw mut bytes) };
    if done == 0 { u64::try_from(bytes).unwrap_or(0) } else { 0 }
}

impl Drop for Deadline {
    fn drop(&mut self) {
        if !self.is_placed() {
            return;
        }
        let slot = *self.slot.get_mut();
        let mut table = self.table.lock();
        let entry = &mut table.entries[slot as usize];
        if std::mem::replace(&mut entry.state, State::Free) == State::Fired {
            self.table.fired.fetch_sub(1, Ordering::Relaxed);
        }
        entry.paused = None;
        entry.wake = None;
        entry.waiter = None;
        entry.reader = None;
        table.free.push(slot);
    }
}

/// Has the connection end in a reset when it is closed: the peer learns that something is missing, and the system forgets what
/// it held for it. `fd` must be open.
pub fn abort_on_close(fd: RawFd) {
    if fd < 0 {
        return;
    }
    // SAFETY: `fd` is not -1, and the caller's connection is open.
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    if let Err(error) = socket2::SockRef::from(&socket).set_linger(Some(Duration::ZERO)) {
        log::debug!("SO_LINGER: {error}");
    }
}

fn shut_down(fd: RawFd, how: How) {
    if fd < 0 {
        return;
    }
    // SAFETY: `fd` is not -1, and its owner keeps it open while its guard is armed (see the module's text).
    let socket = unsafe { BorrowedFd::borrow_raw(fd) };
    if how == How::Abort {
        abort_on_close(fd);
    }
    let done = socket2::SockRef::from(&socket).shutdown(match how {
        How::Read => Shutdown::Read,
        How::Abort | How::Both => Shutdown::Both,
    });
    if let Err(error) = done {
        log::debug!("shutting down a socket whose deadline passed: {error}");
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::Read,
        net::{TcpListener, TcpStream},
        os::fd::AsRawFd,
    };

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
        let client = TcpStream::connect(listener.local_addr().expect("address")).expect("connect");
        (client, listener.accept().expect("accept").0)
    }

    #[test]
    fn a_deadline_does_not_pass_early() {
        // By up to two milliseconds it did, and a request that ended by `total` was said to have waited for a first byte.
        let (_client, server) = pair();
        let deadlines = Deadlines::new();
        let guard = deadlines.guard(How::Read);
        let (now, after) = (deadlines.start + Duration::from_micros(900), Duration::from_micros(10_900));
        guard.arm(server.as_raw_fd(), Wait::Work, now, after);
        deadlines.sweep(now + after - Duration::from_micros(1));
        assert!(!guard.fired());
        deadlines.sweep(now + after + Duration::from_millis(1));
        assert!(guard.fired());
    }

    #[test]
    fn a_passed_deadline_ends_the_read_and_says_so() {
        let (_client, mut server) = pair();
        let deadlines = Deadlines::new();
        let guard = deadlines.guard(How::Read);
        let now = Instant::now();
        guard.arm(server.as_raw_fd(), Wait::Next, now, Duration::from_secs(5));
        deadlines.sweep(now + Duration::from_secs(4));
        assert!(!guard.fired());
        deadlines.sweep(now + Duration::from_millis(5001));
        assert!(guard.fired());
        assert_eq!(server.read(&mut [0; 8]).expect("read"), 0);
    }

    #[test]
    fn a_paused_deadline_waits_no_longer_than_it_may() {
        let (_client, server) = pair();
        let deadlines = Deadlines::new();
        let guard = deadlines.guard(How::Both);
        let now = Instant::now();
        guard.arm(server.as_raw_fd(), Wait::Work, now, Duration::from_secs(1));
        guard.pause_while(Arc::new(AtomicBool::new(true)), Some(now + Duration::from_secs(2)));
        for _ in 0..10 {
            deadlines.sweep(now + Duration::from_millis(1900));
        }
        assert!(!guard.fired());
        deadlines.sweep(now + Duration::from_millis(2001));
        assert!(guard.fired());
        assert!(guard.disarm());
        assert!(!guard.fired());
        assert_eq!(deadlines.fired.load(Ordering::Relaxed), 0);
    }

    #[tokio::test]
    async fn a_write_that_stands_ends_with_its_deadline_and_no_other_does() {
        let (_client, server) = pair();
        let ((_reader, taking), (_other, standing)) = (pair(), pair());
        let deadlines = Deadlines::new();
        let now = Instant::now();
        let guards: [Deadline; 3] = std::array::from_fn(|_| deadlines.guard(How::Both));
        for guard in &guards {
            guard.arm(server.as_raw_fd(), Wait::Work, now, Duration::from_secs(1));
        }
        guards[0].ends_writes(Reader::Socket(taking.as_raw_fd(), Arc::default()));
        guards[1].ends_writes(Reader::Socket(standing.as_raw_fd(), Arc::new(AtomicBool::new(true))));
        let owner = Arc::<Signal>::default();
        guards[2].ends_writes(Reader::Owner(owner.clone()));
        let due = now + Duration::from_millis(1001);
        assert_eq!(deadlines.sweep(due), Some(due + Duration::from_millis(LAST)));
        std::io::Write::write(&mut &taking, b"x").expect("it goes on");
        std::io::Write::write(&mut &standing, b"x").expect_err("it was shut down");
        assert_eq!(deadlines.sweep(due + Duration::from_millis(LAST)), None);
        owner.given().await;
    }

    #[test]
    fn a_disarmed_or_dropped_deadline_does_nothing() {
        let (_client, server) = pair();
        let deadlines = Deadlines::new();
        let now = Instant::now();
        let first = deadlines.guard(How::Both);
        first.arm(server.as_raw_fd(), Wait::Work, now, Duration::ZERO);
        assert!(!first.disarm());
        let second = deadlines.guard(How::Both);
        second.arm(server.as_raw_fd(), Wait::Work, now, Duration::ZERO);
        drop(second);
        deadlines.sweep(now + Duration::from_secs(1));
        server.set_nonblocking(true).expect("non-blocking");
        let error = (&server).read(&mut [0; 1]).expect_err("nothing was sent, and the connection lives");
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        assert_eq!(deadlines.lock().entries.len(), 2);
        let third = deadlines.guard(How::Read);
        assert!(!third.disarm() && !third.fired());
        assert_eq!(deadlines.lock().free.len(), 1, "nothing is set, so it has no place");
        third.arm(-1, Wait::Work, now, Duration::ZERO);
        assert_eq!(deadlines.lock().entries.len(), 2, "a free place is used again");
    }

    #[test]
    fn places_are_given_up_when_nobody_has_them() {
        let deadlines = Deadlines::new();
        let places = || {
            let held = deadlines.lock();
            (held.entries.len(), held.free.len())
        };
        let guard = |_| {
            let guard = deadlines.guard(How::Both);
            guard.arm(-1, Wait::Work, Instant::now(), Duration::from_secs(60));
            guard
        };
        let mut guards: Vec<_> = (0..100).map(guard).collect();
        let (first, kept) = (guards.remove(0), guards.remove(49));
        drop(guards);
        drop(first);
        deadlines.forget();
        assert_eq!(places(), (51, 50));
        let again: Vec<_> = (0..51).map(guard).collect();
        assert_eq!(places(), (52, 0));
        drop((kept, again));
        deadlines.forget();
        assert_eq!(places(), (0, 0));
    }

    #[test]
    fn hastening_one_owner_leaves_the_others_alone() {
        let ((_first, ours), (_second, theirs)) = (pair(), pair());
        let deadlines = Deadlines::new();
        let now = Instant::now();
        let (mine, other) = (deadlines.guard_of(1, How::Read), deadlines.guard_of(2, How::Read));
        mine.arm(ours.as_raw_fd(), Wait::Next, now, Duration::from_secs(60));
        other.arm(theirs.as_raw_fd(), Wait::Next, now, Duration::from_secs(60));
        deadlines.hasten_of(1, Wait::Next, now, Duration::from_millis(500));
        deadlines.sweep(now + Duration::from_millis(501));
        assert!(mine.fired() && !other.fired());
    }

    #[test]
    fn hastening_leaves_nearer_deadlines_alone() {
        let (_client, server) = pair();
        let deadlines = Deadlines::new();
        let now = Instant::now();
        let guard = deadlines.guard(How::Read);
        guard.arm(server.as_raw_fd(), Wait::Next, now, Duration::from_secs(60));
        deadlines.hasten(Wait::Next, now, Duration::from_millis(500));
        deadlines.sweep(now + Duration::from_millis(499));
        assert!(!guard.fired());
        deadlines.sweep(now + Duration::from_millis(501));
        assert!(guard.fired());
    }
}

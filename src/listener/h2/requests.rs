//! The requests of one HTTP/2 connection, served in the connection's own task: none costs a task, and what they have for the client
//! leaves in the same turn. Each is polled when it was woken, and so is the connection: [`Bell`] says who was.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Wake, Waker},
    time::Instant,
};

use tokio::task::coop::has_budget_remaining;

use super::guard::ALL;
use crate::{proxy::Cancel, runtime::deadlines::Deadlines, types::Reason};

/// Wakes a connection's task, unless that is at work and will look itself.
#[derive(Debug, Default)]
pub(super) struct Ring {
    task: Mutex<Option<Waker>>,
    at_work: AtomicBool,
    /// Somebody has rung since it was looked.
    rung: AtomicBool,
}

impl Ring {
    /// There is something to do.
    pub(super) fn ring(&self) {
        self.rung.store(true, Ordering::SeqCst);
        if !self.at_work.load(Ordering::SeqCst) {
            let task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
            task.iter().for_each(Waker::wake_by_ref);
        }
    }

    /// The task begins to work, and is to be woken as `cx` says when it has ended. Returns whether that is another one than before.
    pub(super) fn begin(&self, cx: &Context<'_>) -> bool {
        self.at_work.store(true, Ordering::SeqCst);
        let mut task = self.task.lock().unwrap_or_else(PoisonError::into_inner);
        let other = !task.as_ref().is_some_and(|task| task.will_wake(cx.waker()));
        if other {
            *task = Some(cx.waker().clone());
        }
        other
    }

    /// Whether somebody has rung since this was asked.
    pub(super) fn heard(&self) -> bool {
        // Only looked at, mostly.
        self.rung.load(Ordering::SeqCst) && self.rung.swap(false, Ordering::SeqCst)
    }

    /// The task goes to sleep, unless somebody has rung.
    pub(super) fn rest(&self) -> Poll<()> {
        self.at_work.store(false, Ordering::SeqCst);
        if !self.rung.load(Ordering::SeqCst) {
            return Poll::Pending;
        }
        self.at_work.store(true, Ordering::SeqCst);
        Poll::Ready(())
    }

    /// The task goes on with its work after others.
    pub(super) fn put_off(&self, cx: &Context<'_>) {
        self.at_work.store(false, Ordering::SeqCst);
        cx.waker().wake_by_ref();
    }
}

/// One that the task polls. It has rung at first.
#[derive(Debug)]
pub(super) struct Bell {
    ring: Arc<Ring>,
    rung: AtomicBool,
}

impl Bell {
    pub(super) fn new(ring: &Arc<Ring>) -> Arc<Self> {
        ring.ring();
        Arc::new(Self { ring: ring.clone(), rung: AtomicBool::new(true) })
    }

    /// Whether it has rung since this was asked.
    pub(super) fn heard(&self) -> bool {
        self.rung.load(Ordering::SeqCst) && self.rung.swap(false, Ordering::SeqCst)
    }
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::SeqCst);
        self.ring.ring();
    }
}

/// Those that are under way.
pub(super) struct Requests {
    ring: Arc<Ring>,
    served: Vec<Served>,
    /// Who is looked at next.
    next: usize,
}

struct Served {
    stream: u32,
    cancel: Arc<Cancel>,
    bell: Arc<Bell>,
    waker: Waker,
    /// What was known last; see [`Cancel::is_held`].
    held: bool,
    /// Until it has ended.
    future: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl Served {
    fn poll(&mut self) {
        let Some(future) = &mut self.future else { return };
        let mut cx = Context::from_waker(&self.waker);
        let polled = catch_unwind(AssertUnwindSafe(|| future.as_mut().poll(&mut cx)));
        if !matches!(polled, Ok(Poll::Pending)) {
            self.future = None;
        }
    }
}

impl Requests {
    pub(super) fn new(ring: Arc<Ring>) -> Self {
        Self { ring, served: Vec::new(), next: 0 }
    }

    /// Has a request served.
    pub(super) fn begin(&mut self, stream: u32, cancel: Arc<Cancel>, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        let bell = Bell::new(&self.ring);
        let waker = bell.clone().into();
        if self.served.capacity() == 0 {
            // Often it is the only one; by itself the list would take room for four.
            self.served = Vec::with_capacity(1);
        }
        self.served.push(Served { stream, cancel, bell, waker, held: false, future: Some(future) });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.served.is_empty()
    }

    pub(super) fn count(&self) -> usize {
        self.served.len()
    }

    /// Polls those that have rung, until the task has done enough for one turn. One that panics ends alone, as a task of its own
    /// would. Returns on which streams an answer waits for its client from now on though there is some room, or does not any more.
    pub(super) fn poll(&mut self) -> Vec<(u32, bool, Instant)> {
        let (count, mut ended, mut told) = (self.served.len(), false, Vec::new());
        let first = if self.next < count { self.next } else { 0 };
        for at in (first..count).chain(0..first) {
            if !has_budget_remaining() {
                self.next = at;
                self.ring.ring();
                break;
            }
            let served = &mut self.served[at]; // below `count`
            if served.bell.heard() {
                served.poll();
                ended |= served.future.is_none();
                let held = served.cancel.is_held();
                if held != served.held {
                    served.held = held;
                    told.push((served.stream, held, Instant::now()));
                }
            }
        }
        if ended {
            self.served.retain(|served| served.future.is_some());
            if self.served.is_empty() && self.served.capacity() > 1 {
                // An idle connection keeps room for one.
                self.served = Vec::new();
            }
        }
        told
    }

    /// Ends those requests. Returns whether a client that is too slow with a request has no other under way.
    pub(super) fn end(&self, slow: Vec<(u32, Reason)>, deadlines: &Deadlines) -> bool {
        let mut alone = false;
        for (id, reason) in slow {
            let found = self.served.iter().find(|served| served.stream == id);
            let ended = found.is_some_and(|served| served.cancel.end(reason, deadlines));
            alone |= ended && reason == Reason::ClientTimeout && self.served.len() == 1;
        }
        alone
    }

    /// Ends all of them, whose client takes nothing of its answers, before the connection ends under them.
    pub(super) fn stalled(&mut self, deadlines: &Deadlines) {
        self.served.iter().for_each(|served| _ = served.cancel.end(Reason::TooSlow, deadlines));
        self.poll();
    }

    /// Tells those requests that their client has reset them.
    pub(super) fn left(&self, left: &[u32]) {
        self.of(left).for_each(Cancel::leave);
    }

    /// Tells those requests that their streams are reset for what their client did.
    pub(super) fn broken(&self, broken: &[u32]) {
        if broken.is_empty() {
            return;
        }
        for request in self.of(broken) {
            request.set_broken();
            request.leave();
        }
    }

    fn of(&self, streams: &[u32]) -> impl Iterator<Item = &Cancel> {
        let all = streams.contains(&ALL);
        self.served.iter().filter(move |served| all || streams.contains(&served.stream)).map(|served| &*served.cancel)
    }

    /// Lets them come to their ends without their connection, in a task of their own; those of `broken` know why it ends.
    pub(super) fn leave(&mut self, broken: &[u32]) {
        self.broken(broken);
        if self.is_empty() {
            return;
        }
        let mut left = Self { ring: self.ring.clone(), served: std::mem::take(&mut self.served), next: 0 };
        tokio::spawn(poll_fn(move |cx| {
            left.ring.begin(cx);
            left.ring.heard();
            left.poll();
            if left.is_empty() {
                return Poll::Ready(());
            }
            if left.ring.rest().is_ready() {
                left.ring.put_off(cx);
            }
            Poll::Pending
        }));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;

    use tokio::sync::Notify;

    use super::*;

    /// Requests, each counted when it is polled and over when it is told.
    struct Fixture {
        ring: Arc<Ring>,
        requests: Requests,
        polled: Arc<[AtomicUsize; 3]>,
        go: [Arc<Notify>; 3],
    }

    impl Fixture {
        fn new() -> Self {
            let ring = Arc::<Ring>::default();
            let mut fixture =
                Self { requests: Requests::new(ring.clone()), ring, polled: Arc::default(), go: Default::default() };
            for (at, go) in fixture.go.clone().into_iter().enumerate() {
                let polled = fixture.polled.clone();
                let served = async move {
                    let mut told = Box::pin(async move { go.notified().await });
                    poll_fn(|cx| {
                        polled[at].fetch_add(1, Ordering::Relaxed);
                        told.as_mut().poll(cx)
                    })
                    .await;
                    assert!(at != 1, "this one panics");
                };
                fixture.requests.begin(u32::try_from(at).expect("small"), Arc::default(), Box::pin(served));
            }
            fixture
        }

        fn counts(&self) -> [usize; 3] {
            std::array::from_fn(|at| self.polled[at].load(Ordering::Relaxed))
        }
    }

    #[tokio::test]
    async fn only_who_was_woken_is_polled() {
        let mut fixture = Fixture::new();
        fixture.requests.poll();
        fixture.requests.poll();
        assert_eq!(fixture.counts(), [1, 1, 1]);
        fixture.go[2].notify_one();
        assert!(fixture.ring.heard());
        fixture.requests.poll();
        assert_eq!(fixture.counts(), [1, 1, 2]);
        assert_eq!(fixture.requests.served.len(), 2);
    }

    #[tokio::test]
    async fn who_is_held_is_told_once() {
        let (ring, cancel) = (Arc::<Ring>::default(), Arc::<Cancel>::default());
        let mut requests = Requests::new(ring);
        let (told, go) = (cancel.clone(), Arc::<Notify>::default());
        let ready = go.clone();
        let served = async move {
            for held in [false, true, true, false] {
                told.set_held(held);
                ready.notified().await;
            }
        };
        requests.begin(7, cancel, Box::pin(served));
        for seen in [vec![], vec![(7, true)], vec![], vec![(7, false)], vec![]] {
            let held = requests.poll().into_iter().map(|(stream, held, _)| (stream, held));
            assert_eq!(held.collect::<Vec<_>>(), seen);
            go.notify_one();
        }
    }

    #[tokio::test]
    async fn none_is_passed_over_when_others_end() {
        for first in 0..3 {
            let mut fixture = Fixture::new();
            fixture.requests.poll();
            fixture.requests.next = first;
            fixture.go.iter().for_each(|go| go.notify_one());
            fixture.requests.poll();
            assert!(fixture.requests.is_empty(), "from {first} on");
        }
    }

    #[tokio::test]
    async fn who_panics_takes_no_other_with_it() {
        let mut fixture = Fixture::new();
        fixture.requests.poll();
        fixture.go[1].notify_one();
        fixture.requests.poll();
        assert_eq!(fixture.requests.served.len(), 2);
        fixture.go.iter().for_each(|go| go.notify_one());
        fixture.requests.poll();
        assert!(fixture.requests.is_empty());
    }

    #[tokio::test]
    async fn who_is_left_comes_to_its_end() {
        let mut fixture = Fixture::new();
        let (polled, go) = (fixture.polled.clone(), fixture.go.clone());
        fixture.requests.leave(&[]);
        tokio::task::yield_now().await;
        go[0].notify_one();
        while polled[0].load(Ordering::Relaxed) < 2 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn whoever_rings_while_the_task_works_does_not_wake_it() {
        let ring = Arc::<Ring>::default();
        let mut turns = 0;
        poll_fn(|cx| {
            assert!(turns > 0 || ring.begin(cx), "its first waker");
            turns += 1;
            ring.ring();
            assert!(ring.rest().is_ready() && ring.heard());
            assert!(ring.rest().is_pending());
            Poll::Ready(())
        })
        .await;
        // It sleeps, and is woken.
        let woken = tokio::spawn({
            let ring = ring.clone();
            poll_fn(move |cx| {
                ring.begin(cx);
                if ring.heard() { Poll::Ready(()) } else { ring.rest() }
            })
        });
        tokio::task::yield_now().await;
        ring.ring();
        woken.await.expect("no panic");
    }
}

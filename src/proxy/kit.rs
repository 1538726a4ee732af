//! What all requests of one worker share, whatever the configuration. Nothing here is shared with another worker but what says so.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::{Instant, SystemTime},
};

use bytes::{BufMut as _, Bytes, BytesMut};
use http::{HeaderValue, header, request::Parts};
use pingora_http::ResponseHeader;

use super::{
    cancel::Cancel,
    ctx::{ConnInfo, RequestCtx},
    current::Current,
    date::DateText,
    dropped,
    exchange::Memory,
    finish,
    guard::Asking,
    reject,
    unserved::Unserved,
};
use crate::{
    runtime::{deadlines::Deadlines, line::Pool, lull::Lull},
    telemetry::metrics::Metrics,
    types::{Reason, Refusal},
};

/// A worker's tools.
pub struct Kit {
    deadlines: Arc<Deadlines>,
    metrics: Arc<Metrics>,
    open: Arc<AtomicUsize>,
    random: AtomicU64,
    index: usize,
    epoch: Instant,
    /// The second of the last warnings, and how many there were in it.
    warned: (AtomicU64, AtomicU64),
    asking: Asking,
    pool: Arc<Pool>,
    memory: Memory,
    lull: Lull,
    date: DateText,
}

/// Warnings of a worker in one second; what goes wrong for every request must not fill the disk.
const WARNINGS: u64 = 10;

impl Kit {
    /// The tools of worker `index`. `epoch` is the same for all workers. At most `pooled` idle connections to one backend are
    /// kept.
    pub fn new(index: usize, epoch: Instant, metrics: Arc<Metrics>, pooled: usize) -> Self {
        let pool = Arc::new(Pool::new(pooled));
        Self {
            deadlines: Deadlines::new(),
            metrics,
            open: Arc::default(),
            random: AtomicU64::new(rand::random()),
            index,
            epoch,
            warned: Default::default(),
            asking: Asking::new(&pool),
            pool,
            memory: Memory::default(),
            lull: Lull::default(),
            date: DateText::default(),
        }
    }

    /// This worker's deadlines.
    pub fn deadlines(&self) -> &Arc<Deadlines> {
        &self.deadlines
    }

    /// Counters, shared by all workers.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// Connections this worker holds.
    pub fn open_connections(&self) -> &Arc<AtomicUsize> {
        &self.open
    }

    /// This worker's number, from 0.
    pub fn index(&self) -> usize {
        self.index
    }

    /// The beginning of the clock that all workers count by.
    pub(super) fn epoch(&self) -> Instant {
        self.epoch
    }

    /// Milliseconds on the clock that all workers count retry budgets by.
    pub fn millis(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.epoch).as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether another warning about a request may be logged now. The metrics count them all.
    pub fn may_warn(&self, now: Instant) -> bool {
        let second = self.millis(now) / 1000;
        let (last, count) = &self.warned;
        if last.swap(second, Ordering::Relaxed) != second {
            count.store(0, Ordering::Relaxed);
        }
        count.fetch_add(1, Ordering::Relaxed) < WARNINGS
    }

    /// A random number, good for spreading and for request ids, not for secrets (SplitMix64, Steele et al. 2014).
    pub fn random(&self) -> u64 {
        // One thread uses this, so the counter needs no atomic addition.
        let next = self.random.load(Ordering::Relaxed).wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.store(next, Ordering::Relaxed);
        let mixed = (next ^ (next >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The whole answer to an HTTP/1 request that is refused before it is a request; `to_head`: to one of HEAD.
    pub fn refusal(&self, reason: Reason, to_head: bool) -> Bytes {
        reject::raw_answer(reason, to_head, &self.date_line())
    }

    /// The same to one of HTTP/2; `None` where nobody is to be answered.
    pub fn refusal_head(&self, reason: Reason) -> Option<Box<ResponseHeader>> {
        let (mut head, _) = reject::failure(&RequestCtx::new(self.epoch), reject::status(reason)?, reason).ok()?;
        head.insert_header(header::DATE, self.date_value()).ok()?;
        Some(Box::new(head))
    }

    /// The whole answer, in HTTP/1, to a client whose connection is one too many.
    pub fn one_too_many(&self, cause: Refusal) -> Bytes {
        reject::one_too_many(cause, &self.date_line())
    }

    /// Logs and counts a request that came to no phase.
    pub fn log_unserved(&self, current: &Current, info: &ConnInfo, unserved: Unserved) {
        finish::unserved(self, current, info, &unserved);
    }

    /// Logs and counts a request that was dropped as it was. Returns whether it had come to a phase, and to no end.
    pub fn log_dropped(&self, head: &Parts, cancel: &Cancel, reason: Reason) -> bool {
        dropped::log(self, head, cancel, reason)
    }

    /// Idle connections to backends.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// What requests use one after the other.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }

    /// Told what ends on this worker.
    pub fn lull(&self) -> &Lull {
        &self.lull
    }

    /// Gives up what is kept for requests and connections to come.
    pub fn forget(&self) {
        self.memory.forget();
        self.deadlines.forget();
    }

    /// Writes the field `Date` of an answer that goes now.
    pub(super) fn date(&self, out: &mut BytesMut) {
        out.put_slice(b"Date: ");
        self.date.write(SystemTime::now(), out);
        out.put_slice(b"\r\n");
    }

    /// That field as text.
    fn date_line(&self) -> String {
        let mut line = BytesMut::with_capacity(48);
        self.date(&mut line);
        String::from_utf8_lossy(&line).into_owned()
    }

    /// The value of that field.
    pub(super) fn date_value(&self) -> HeaderValue {
        let mut text = BytesMut::with_capacity(32);
        self.date.write(SystemTime::now(), &mut text);
        HeaderValue::from_maybe_shared(text.freeze()).unwrap_or(const { HeaderValue::from_static("") })
    }

    /// For those who must show who they are.
    pub(super) fn asking(&self) -> &Asking {
        &self.asking
    }
}

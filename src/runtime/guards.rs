//! A route's guards with their counters. What counts goes on where a new configuration says the same of it: a reload or a
//! change at run time forgives nobody.

mod carried;

use std::{
    fmt::Write as _,
    ops::Range,
    sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError},
    time::Instant,
};

use http::HeaderValue;

pub use self::carried::{Carried, key};
use crate::{
    config::model::{self, ForwardAuth, Secret},
    policy::{
        access::Access,
        concurrency::{InFlight, Permit},
        fields::Fields,
        limit_key::{Asker, LimitKey, Seed, TwoKeys},
        password::{Credentials, Tag, Users, Verdicts},
        rate::{Live, Rate, RateTable, Verdict},
    },
};

/// The seed of all keys of a process, shared by its snapshots: the one its predecessor handed over, else a random one
/// from the first use on.
#[derive(Debug, Default)]
pub struct LimitSeed(OnceLock<Seed>);

impl LimitSeed {
    /// The seed.
    pub fn get(&self) -> &Seed {
        self.0.get_or_init(|| Seed::new(rand::random()))
    }

    /// Goes on with another process's seed; `false` where keys have been counted by another one already.
    #[must_use]
    pub fn adopt(&self, seed: Seed) -> bool {
        *self.0.get_or_init(|| seed) == seed
    }
}

/// What a request must pass before a route does anything with it, in this order.
pub struct Guards {
    /// By the client's address.
    pub access: Option<Arc<Access>>,
    /// How often.
    pub rate: Option<RateLimits>,
    /// How many at once.
    pub concurrency: Option<ConcurrencyLimit>,
    /// By user and password.
    pub basic: Option<Arc<BasicAuth>>,
    /// By another service's word.
    pub forward: Option<ForwardAuth>,
}

impl Guards {
    /// The guards of a route, going on from what is carried to it; `None` where everything passes.
    pub fn build(model: &model::Guards, before: &mut Carried, seed: &Arc<LimitSeed>) -> Option<Self> {
        if model.is_empty() {
            return None;
        }
        let rate = RateLimits::build(&model.rate_limits, before, seed);
        let concurrency = model.concurrency.as_ref();
        let concurrency = concurrency.map(|model| ConcurrencyLimit::build(model, before, seed));
        let basic = model.basic_auth.as_ref().map(|model| BasicAuth::build(model, before));
        let forward = model.forward_auth.clone();
        Some(Self { access: model.access.clone(), rate, concurrency, basic, forward })
    }
}

/// Rate limits that a request must all keep within.
pub struct RateLimits {
    /// Those whose key is known only when a request has been let in come last.
    limits: Box<[Arc<RateLimit>]>,
    /// How many come before those.
    first: usize,
    /// What they are called in fields.
    names: Box<[String]>,
    /// `RateLimit-Policy`, the same for all answers.
    pub policy: HeaderValue,
}

/// One rate limit. Its clock belongs to its counters.
pub struct RateLimit {
    key: LimitKey,
    table: RateTable,
    seed: Arc<LimitSeed>,
    epoch: Instant,
}

impl RateLimit {
    /// By what requests are counted together.
    pub fn key(&self) -> &LimitKey {
        &self.key
    }

    /// How often.
    pub fn rate(&self) -> Rate {
        self.table.rate()
    }

    /// How many keys have used something of their burst.
    pub fn live(&self, now: Instant) -> usize {
        self.table.live(self.clock(now))
    }

    /// As [`RateTable::export`].
    pub fn export(&self, most: usize, now: Instant) -> Vec<Live> {
        self.table.export(most, self.clock(now))
    }

    /// Goes on with keys of another process whose seed this one has adopted.
    pub fn adopt(&self, keys: impl IntoIterator<Item = Live>, now: Instant) {
        let now = self.clock(now);
        keys.into_iter().for_each(|live| self.table.adopt(live, now));
    }

    fn clock(&self, now: Instant) -> u64 {
        // A second, because 0 is the time of keys that are not known.
        let now = now.saturating_duration_since(self.epoch).as_nanos().saturating_add(1_000_000_000);
        u64::try_from(now).unwrap_or(u64::MAX)
    }
}

/// What rate limits say of a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Rated {
    /// `RateLimit`, for the answer.
    pub field: Option<HeaderValue>,
    /// Seconds until the request may come again; `None` where it passes.
    pub retry_after: Option<u64>,
}

impl RateLimits {
    fn build(models: &[model::RateLimit], before: &mut Carried, seed: &Arc<LimitSeed>) -> Option<Self> {
        if models.is_empty() {
            return None;
        }
        let mut limits = Vec::with_capacity(models.len());
        let (last, first): (Vec<_>, Vec<_>) = models.iter().partition(|model| model.key.is_identity());
        for model::RateLimit { key, rate } in first.iter().chain(&last) {
            let fresh = || {
                let (table, seed) = (RateTable::new(*rate), seed.clone());
                Arc::new(RateLimit { key: key.clone(), table, seed, epoch: Instant::now() })
            };
            limits.push(before.rate(key, *rate).unwrap_or_else(fresh));
        }
        let names: Box<[String]> = (0..limits.len()).map(|at| name(&limits, at)).collect();
        let items: Vec<String> =
            names.iter().zip(&limits).map(|(name, limit)| policy(name, limit.table.rate())).collect();
        let policy = HeaderValue::try_from(items.join(", ")).expect("words and numbers are a value");
        Some(Self { limits: limits.into(), first: first.len(), names, policy })
    }

    /// Each of them, as the configuration lists them, but for those that wait for who somebody is.
    pub fn limits(&self) -> &[Arc<RateLimit>] {
        &self.limits
    }

    /// Decides about a request at `now`, before it is known who asks. One that exceeds any of these limits counts for none of them, so
    /// that a client beyond its own does not use up what all share.
    ///
    /// # Errors
    /// It has two keys of one limit, and counts for none.
    pub fn decide(&self, asker: &Asker<'_, impl Fields>, now: Instant) -> Result<Rated, TwoKeys> {
        self.within(0..self.first, asker, now)
    }

    /// The same for the limits by who somebody is; `None` where there is none.
    ///
    /// # Errors
    /// As there.
    pub fn decide_last(&self, asker: &Asker<'_, impl Fields>, now: Instant) -> Result<Option<Rated>, TwoKeys> {
        let last = self.first..self.limits.len();
        if last.is_empty() { Ok(None) } else { self.within(last, asker, now).map(Some) }
    }

    fn within(&self, which: Range<usize>, asker: &Asker<'_, impl Fields>, now: Instant) -> Result<Rated, TwoKeys> {
        let limits = self.limits.get(which.clone()).unwrap_or_default();
        let names = self.names.get(which).unwrap_or_default();
        let asked = |limit: &RateLimit| {
            let key = limit.key.of(asker, limit.seed.get());
            key.map(|key| (key, limit.clock(now)))
        };
        if let [only] = limits {
            let (key, now) = asked(only)?;
            return Ok(told(names, &[only.table.decide(key, now)]));
        }
        let asked = limits.iter().map(|limit| asked(limit).map(|asked| (&**limit, asked)));
        let asked = asked.collect::<Result<Vec<(&RateLimit, (u64, u64))>, TwoKeys>>()?;
        let looked: Vec<Verdict> = asked.iter().map(|(limit, (key, now))| limit.table.look(*key, *now)).collect();
        if looked.iter().any(|verdict| matches!(verdict, Verdict::Exceeded { .. })) {
            return Ok(told(names, &looked));
        }
        // Another thread may have been quicker; then this request counts for some of the limits and is refused.
        let verdicts: Vec<Verdict> = asked.iter().map(|(limit, (key, now))| limit.table.decide(*key, *now)).collect();
        Ok(told(names, &verdicts))
    }
}

/// The fields of draft-ietf-httpapi-ratelimit-headers-10. Of a refused request only the exceeded limits are told.
fn told(names: &[String], verdicts: &[Verdict]) -> Rated {
    let longest = verdicts.iter().filter_map(|verdict| match verdict {
        Verdict::Exceeded { retry_after } => Some(seconds(*retry_after)),
        Verdict::Pass { .. } => None,
    });
    let retry_after = longest.max();
    let mut text = String::with_capacity(32 * verdicts.len());
    for (name, verdict) in names.iter().zip(verdicts) {
        let (remaining, reset) = match verdict {
            Verdict::Exceeded { retry_after } => (0, *retry_after),
            Verdict::Pass { remaining, reset } if retry_after.is_none() => (*remaining, *reset),
            Verdict::Pass { .. } => continue,
        };
        let comma = if text.is_empty() { "" } else { ", " };
        // Writing to memory cannot fail.
        let _ = write!(text, "{comma}\"{name}\";r={remaining};t={}", seconds(reset));
    }
    Rated { field: HeaderValue::try_from(text).ok().filter(|text| !text.is_empty()), retry_after }
}

/// Whole seconds, rounded up, at least 1.
fn seconds(duration: std::time::Duration) -> u64 {
    (duration.as_secs() + u64::from(duration.subsec_nanos() > 0)).max(1)
}

/// What a limit is called in fields: its key's word, with a number from the second of a kind on.
fn name(limits: &[Arc<RateLimit>], at: usize) -> String {
    let word = limits.get(at).map_or("", |limit| limit.key.as_str());
    let nth = limits.iter().take(at).filter(|before| before.key.as_str() == word).count() + 1;
    if nth > 1 { format!("{word}-{nth}") } else { word.to_owned() }
}

/// `"client_ip";q=100;w=2`: so many in so many seconds. The burst, where it takes a second or more to be there again; else
/// what the rate gives in a second.
fn policy(name: &str, rate: Rate) -> String {
    let window = rate.window();
    let (quota, window) = match window.as_secs() {
        0 => (u64::from(rate.count()) * 1_000_000_000 / (rate.period().as_nanos() as u64).max(1), 1),
        _ => (u64::from(rate.burst()), seconds(window)),
    };
    format!("\"{name}\";q={};w={window}", quota.max(1))
}

/// How many requests of one key may be in flight.
pub struct ConcurrencyLimit {
    key: LimitKey,
    limit: u32,
    table: Arc<InFlight>,
    seed: Arc<LimitSeed>,
}

impl ConcurrencyLimit {
    fn build(model: &model::ConcurrencyLimit, before: &mut Carried, seed: &Arc<LimitSeed>) -> Self {
        let model::ConcurrencyLimit { key, limit } = model;
        let table = before.in_flight(key).unwrap_or_default();
        // Of the same seed always: builds that go on from one another share one.
        Self { key: key.clone(), limit: *limit, table, seed: seed.clone() }
    }

    /// Counts a request as long as the permit lives; `None` where too many are in flight.
    ///
    /// # Errors
    /// It has two keys.
    pub fn enter(&self, asker: &Asker<'_, impl Fields>) -> Result<Option<Permit>, TwoKeys> {
        Ok(self.table.enter(self.key.of(asker, self.seed.get())?, self.limit))
    }
}

/// Basic authentication with what was verified lately.
pub struct BasicAuth {
    content: Secret,
    users: Arc<Users>,
    verdicts: Arc<Mutex<Verdicts>>,
    /// `WWW-Authenticate`.
    pub challenge: HeaderValue,
    /// Whether `Authorization` goes on to the backend.
    pub keep: bool,
}

impl BasicAuth {
    fn build(model: &model::BasicAuth, before: &Carried) -> Arc<Self> {
        let challenge = format!("Basic realm=\"{}\", charset=\"UTF-8\"", model.realm);
        let challenge = HeaderValue::try_from(challenge).expect("a realm is visible ASCII");
        let (users, verdicts) = match before.verified(&model.content) {
            Some(before) => (before.users.clone(), before.verdicts.clone()),
            None => (model.users.clone(), Arc::new(Mutex::new(Verdicts::new(&rand::random())))),
        };
        Arc::new(Self { content: model.content.clone(), users, verdicts, challenge, keep: model.keep })
    }

    /// What stands for credentials in the cache, and what it knows of them.
    pub fn known(&self, credentials: &Credentials, now: Instant) -> (Tag, Option<bool>) {
        let mut verdicts = self.verdicts();
        let tag = verdicts.tag(credentials);
        let verdict = verdicts.get(&tag, now);
        (tag, verdict)
    }

    /// Verifies and keeps the verdict. Slow on purpose: not for a thread that serves requests.
    pub fn verify(&self, credentials: &Credentials, tag: Tag) -> bool {
        let good = self.users.verify(credentials);
        self.verdicts().put(tag, good, Instant::now());
        good
    }

    fn verdicts(&self) -> MutexGuard<'_, Verdicts> {
        self.verdicts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;

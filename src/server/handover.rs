//! What a process knows beyond its configuration, for its successor: verdicts on backends and ejections, turns of the balancers, keys
//! of session tickets, what rate limits and retry budgets have counted, what was changed at run time. JSON in a file without a name. A part that either
//! side does not know is left out or ignored, so a release may add parts (more keys of an
//! upstream or a backend) and leave the number alone; that changes only with the meaning of a part.

mod history;
mod limits;

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::FileExt},
    sync::Arc,
    time::{Duration, Instant},
};

pub(super) use history::History;
use limits::HandedLimits;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::{Deserialize, Serialize};

use crate::{
    listener::tickets::{TicketKey, TicketKeys},
    policy::health::Health,
    runtime::{
        backend::BackendState,
        journal::{self, Overrides},
        outlier,
        snapshot::Snapshot,
        upstream::Upstream,
    },
};

/// Of the format.
const VERSION: u32 = 1;
/// What is longer is not read: 10,000 backends make 2 MiB, and rate limits at most 5.
const LONGEST: u64 = 64 << 20;

/// What one process hands to the next.
#[derive(Debug, Deserialize, Serialize)]
pub struct HandedOver {
    version: u32,
    #[serde(default)]
    upstreams: BTreeMap<String, HandedUpstream>,
    /// Newest first.
    #[serde(default)]
    tickets: Vec<HandedKey>,
    #[serde(default)]
    rate_limits: Option<HandedLimits>,
    /// What was said at run time, as [`Store::hand_over`] writes it.
    ///
    /// [`Store::hand_over`]: crate::runtime::store::Store::hand_over
    #[serde(default)]
    overrides: Option<String>,
}

/// What a process tells its successor last: when that serves, and nothing is changed here any more.
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub(super) struct Farewell {
    /// As [`HandedOver::overrides`].
    overrides: Option<String>,
    /// A reload was asked for and has not been done.
    pub(super) reload: bool,
    /// Ejections and slow starts, which may have begun since [`HandedOver`] was made.
    upstreams: BTreeMap<String, HandedUpstream>,
    /// What was told, and what failed.
    pub(super) history: History,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct HandedUpstream {
    /// Turns taken of its schedule.
    turn: usize,
    /// Requests and retries of the last seconds, newest first.
    budget: Vec<(u32, u32)>,
    backends: BTreeMap<String, HandedBackend>,
}

#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct HandedBackend {
    /// A verdict holds for this address only.
    address: String,
    /// As [`Health::as_str`].
    health: String,
    /// Probe results in a row against the verdict.
    against: u32,
    /// What its attempts came to; `None` where that is nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    ejection: Option<HandedEjection>,
    /// For how many milliseconds its share has been growing; whatever its address.
    slow_start: Option<u64>,
}

/// As [`Ejection::hand_over`], times in milliseconds.
///
/// [`Ejection::hand_over`]: crate::runtime::outlier::Ejection::hand_over
#[derive(Debug, Default, Deserialize, Serialize)]
#[serde(default)]
struct HandedEjection {
    failures: u32,
    times: u32,
    left: Option<u64>,
    back: u64,
    why: String,
}

#[derive(Deserialize, Serialize)]
struct HandedKey {
    name: [u8; 16],
    secret: [u8; 32],
    /// In seconds.
    age: u64,
}

impl std::fmt::Debug for HandedKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("HandedKey").field("age", &self.age).finish_non_exhaustive()
    }
}

/// Why what was handed over is of no use.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the texts say it
pub(super) enum StateError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("it is not what was expected: {0}")]
    Malformed(#[from] serde_json::Error),
    #[error("its version is {0}, and must be {VERSION}")]
    Version(u32),
}

impl Farewell {
    /// With what [`Store::give_up`] returned.
    ///
    /// [`Store::give_up`]: crate::runtime::store::Store::give_up
    pub(super) fn new(overrides: String, reload: bool) -> Self {
        Self { overrides: bounded(overrides), reload, ..Self::default() }
    }

    /// With the ejections and slow starts of `snapshot`.
    pub(super) fn with_backends_of(self, snapshot: &Snapshot) -> Self {
        let now = Instant::now();
        let of = |upstream: &Upstream| {
            let all = upstream.backends().iter().map(|one| (one.id.to_string(), backend(one, now)));
            let told: BTreeMap<_, _> =
                all.filter(|(_, one)| one.ejection.is_some() || one.slow_start.is_some()).collect();
            (!told.is_empty()).then(|| HandedUpstream { backends: told, ..HandedUpstream::default() })
        };
        let members = snapshot.members().iter().map(|member| &member.upstream);
        let upstreams = members.filter_map(|upstream| Some((upstream.name.to_string(), of(upstream)?))).collect();
        Self { upstreams, ..self }
    }

    /// Goes on with the ejections and slow starts that the process before this one had at its end; where this process has
    /// found more by itself, that holds.
    pub(super) fn apply(&self, snapshot: &Snapshot) {
        let now = Instant::now();
        for upstream in snapshot.members().iter().map(|member| &member.upstream) {
            let Some(handed) = self.upstreams.get(upstream.name.as_str()) else { continue };
            for state in upstream.backends() {
                let Some(handed) = handed.backends.get(state.id.as_str()) else { continue };
                let ejection = handed.ejection.as_ref().filter(|_| handed.address == state.label);
                if let Some(ejection) = ejection.filter(|ejection| ejection.left.is_some() || !state.is_ejected()) {
                    upstream.take_over_ejection(state, ejection.outlier(), now);
                }
                if let Some(elapsed) = handed.slow_start.map(Duration::from_millis)
                    && state.slow_start_elapsed(now).is_none_or(|own| own > elapsed)
                {
                    state.resume_slow_start(elapsed, now);
                }
            }
        }
    }

    /// What was said at run time; `None` where it is not known.
    pub(super) fn overrides(&self, now: u64) -> Option<Overrides> {
        decoded(self.overrides.as_deref(), now)
    }

    /// Into a file that only its descriptor leads to.
    pub(super) fn write(&self) -> io::Result<OwnedFd> {
        file_of(self)
    }

    /// Out of the file.
    pub(super) fn read(fd: OwnedFd) -> Result<Self, StateError> {
        Ok(serde_json::from_slice(&text_of(fd)?)?)
    }
}

impl HandedOver {
    /// What is known now, `uptime` after the workers' clock began.
    pub fn collect(snapshot: &Snapshot, tickets: &TicketKeys, uptime: Duration) -> Self {
        let millis = u64::try_from(uptime.as_millis()).unwrap_or(u64::MAX);
        let now = Instant::now();
        let upstream = |upstream: &Upstream| HandedUpstream {
            turn: upstream.turn(),
            budget: upstream.budget.export(millis),
            backends: upstream.backends().iter().map(|one| (one.id.to_string(), backend(one, now))).collect(),
        };
        let members = snapshot.members().iter().map(|member| &member.upstream);
        let key = |TicketKey { name, secret, age }| HandedKey { name, secret, age: age.as_secs() };
        Self {
            version: VERSION,
            upstreams: members.map(|member| (member.name.to_string(), upstream(member))).collect(),
            tickets: tickets.export().into_iter().map(key).collect(),
            rate_limits: HandedLimits::collect(snapshot, now),
            overrides: None,
        }
    }

    /// With what was said at run time.
    pub(super) fn with_overrides(self, overrides: String) -> Self {
        Self { overrides: bounded(overrides), ..self }
    }

    /// What was said at run time; `None` where it is not known.
    pub(super) fn overrides(&self, now: u64) -> Option<Overrides> {
        decoded(self.overrides.as_deref(), now)
    }

    /// Goes on from there: before the first probe and the first request, as the workers' clock begins. What is not there any more is passed over.
    pub fn apply(&self, snapshot: &Snapshot) {
        let now = Instant::now();
        if let Some(limits) = &self.rate_limits {
            limits.apply(snapshot, now);
        }
        for upstream in snapshot.members().iter().map(|member| &member.upstream) {
            let Some(handed) = self.upstreams.get(upstream.name.as_str()) else { continue };
            upstream.begin_at(handed.turn);
            upstream.budget.adopt(&handed.budget, 0);
            for state in upstream.backends() {
                let Some(handed) = handed.backends.get(state.id.as_str()) else { continue };
                let same_address = handed.address == state.label;
                if let Some(ejection) = handed.ejection.as_ref().filter(|_| same_address) {
                    upstream.take_over_ejection(state, ejection.outlier(), now);
                }
                if state.is_checked()
                    && same_address
                    && let Some(health) = [Health::Down, Health::Up].into_iter().find(|h| h.as_str() == handed.health)
                {
                    state.set_health(health);
                    state.set_against(handed.against);
                }
                if let Some(elapsed) = handed.slow_start {
                    state.resume_slow_start(Duration::from_millis(elapsed), now);
                }
            }
        }
    }

    /// The keys of session tickets; new ones where nothing of use was handed over.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn tickets(handed: Option<&Self>) -> Result<Arc<TicketKeys>, rustls::Error> {
        let key = |HandedKey { name, secret, age }: &HandedKey| TicketKey {
            name: *name,
            secret: *secret,
            age: Duration::from_secs(*age),
        };
        let keys: Vec<TicketKey> = handed.iter().flat_map(|handed| &handed.tickets).map(key).collect();
        TicketKeys::adopt(&keys).map_or_else(TicketKeys::new, Ok).map(Arc::new)
    }

    /// Into a file that only its descriptor leads to.
    pub(super) fn write(&self) -> io::Result<OwnedFd> {
        file_of(self)
    }

    /// Out of the file.
    pub(super) fn read(fd: OwnedFd) -> Result<Self, StateError> {
        /// Read first: what another version means need not be of this shape.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let text = text_of(fd)?;
        let Versioned { version } = serde_json::from_slice(&text)?;
        if version != VERSION {
            return Err(StateError::Version(version));
        }
        Ok(serde_json::from_slice(&text)?)
    }
}

impl HandedEjection {
    fn new(handed: outlier::Handed) -> Self {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let outlier::Handed { failures, times, left, back, why } = handed;
        Self { failures, times, left: left.map(millis), back: millis(back), why }
    }

    fn outlier(&self) -> outlier::Handed {
        outlier::Handed {
            failures: self.failures,
            times: self.times,
            left: self.left.map(Duration::from_millis),
            back: Duration::from_millis(self.back),
            why: self.why.clone(),
        }
    }
}

fn file_of(value: &impl Serialize) -> io::Result<OwnedFd> {
    let text = serde_json::to_vec(value)?;
    let mut file = File::from(memfd_create("rrlb-state", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(&text)?;
    Ok(file.into())
}

fn text_of(fd: OwnedFd) -> Result<Vec<u8>, StateError> {
    let file = File::from(fd);
    let metadata = file.metadata()?;
    if !metadata.is_file() || metadata.len() > LONGEST {
        return Err(io::Error::other(format!("{} bytes, or not a file", metadata.len())).into());
    }
    let mut text = vec![0; usize::try_from(metadata.len()).unwrap_or(0)];
    file.read_exact_at(&mut text, 0)?;
    Ok(text)
}

/// Where there is too much to be read, the journal has to do.
fn bounded(overrides: String) -> Option<String> {
    // Within another text every quote of it takes two bytes.
    let fits = overrides.len() as u64 <= LONGEST / 4;
    if !fits {
        log::warn!("too many changes at run time to hand them over: what is not in the state file is lost");
    }
    fits.then_some(overrides)
}

fn decoded(overrides: Option<&str>, now: u64) -> Option<Overrides> {
    let read = journal::decode(overrides?.as_bytes(), now);
    read.inspect_err(|error| log::error!("what was changed at run time was handed over and cannot be read: {error}"))
        .ok()
}

fn backend(state: &Arc<BackendState>, now: Instant) -> HandedBackend {
    let millis = |elapsed: Duration| u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX);
    HandedBackend {
        address: state.label.clone(),
        health: state.health().as_str().to_owned(),
        against: state.against(),
        ejection: state.ejection().hand_over(now).map(HandedEjection::new),
        slow_start: state.slow_start_elapsed(now).map(millis),
    }
}

#[cfg(test)]
mod tests;

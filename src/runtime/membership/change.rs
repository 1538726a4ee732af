//! What may be asked of a membership, what comes of it, and what is said of a backend after it was put there.

use super::{Declared, Entry, Lease, MOST_ADDED, Note, Override, Spec};
use crate::types::{AdminState, BackendAddress, Name, Source, Weight};

/// A backend to be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Put {
    /// Where it is reached.
    pub address: BackendAddress,
    /// `None` keeps the weight it has, or is 1.
    pub weight: Option<Weight>,
    /// Time to live in milliseconds; `None` is for good.
    pub ttl: Option<u64>,
    /// Also where nobody is ready then; of a replacement that is asked as a whole.
    pub force: bool,
    /// Ends with the process.
    pub transient: bool,
}

/// What is to change about a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Patch {
    /// A new share.
    pub weight: Option<Weight>,
    /// What people want of it.
    pub admin: Option<AdminState>,
    /// Also where it is the last one that is ready.
    pub force: bool,
    /// Ends with the process.
    pub transient: bool,
}

/// What a change came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is a backend more.
    Created,
    /// A backend is another.
    Changed,
    /// Requests are finished first; it is gone then.
    Leaving,
    /// A backend less.
    Removed,
    /// Its lease holds on.
    Renewed,
    /// It was so already.
    Unchanged,
}

/// Why a change is refused. Nothing has changed then.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The address is another's, or will be.
    #[error("{address} is the address of backend {other} already")]
    DuplicateAddress {
        /// The address.
        address: BackendAddress,
        /// Whose it is.
        other: Name,
    },
    /// As [`Refusal::DuplicateAddress`], of one that finishes its requests and is gone then.
    #[error("{address} is still the address of backend {other}, which is leaving")]
    Leaving {
        /// The address.
        address: BackendAddress,
        /// Whose it is.
        other: Name,
        /// Milliseconds until it is gone at the latest.
        within: u64,
    },
    /// It was to be a new one.
    #[error("there is a backend {0} already")]
    Exists(Name),
    /// Nobody would be left.
    #[error("{0} is the last backend that requests can go to")]
    LastReady(Name),
    /// Nobody would be left but those that are ejected.
    #[error("{last} is the last backend that requests go to; {ejected} is ready, but ejected")]
    OthersEjected {
        /// Whom it is about.
        last: Name,
        /// The first of those that are out.
        ejected: Name,
    },
    /// A lease is for what only it registers.
    #[error("{id} belongs to {source_name}; a lease can hold only what it registers itself")]
    NotLeasable {
        /// The backend.
        id: Name,
        /// Who declares it.
        source_name: &'static str,
    },
    /// No such backend.
    #[error("there is no backend {0}")]
    NotFound(Name),
    /// There is nothing to forget.
    #[error("nothing was changed about {0} at run time")]
    NoOverride(Name),
    /// The bound is reached.
    #[error("at most {MOST_ADDED} backends can be added to an upstream at run time")]
    TooMany,
}

/// A lease may hold only what no other answers for.
pub(super) fn leasable(
    id: &Name,
    put: &Put,
    declared: Option<&Declared>,
    old: Option<&Override>,
) -> Result<(), Refusal> {
    if put.ttl.is_none() {
        return Ok(());
    }
    let for_good = |over: &&Override| over.base.is_none() && over.lease.is_none() && over.spec.is_some();
    let source = declared.map(|declared| declared.source).or(old.filter(for_good).map(|_| Source::Api));
    match source {
        Some(source) => Err(Refusal::NotLeasable { id: id.clone(), source_name: source.as_str() }),
        None => Ok(()),
    }
}

/// What is said of a backend after a [`Put`], signed where that is something else than before.
pub(super) fn put_over(
    before: Option<&Entry>,
    declared: Option<&Declared>,
    old: Option<&Override>,
    put: Put,
    note: Note,
    now: u64,
) -> (Override, Outcome) {
    let stays = old.filter(|old| !old.removed);
    // One that is not declared any more begins anew, but for its state.
    let said = stays.filter(|old| declared.is_some() || old.base.is_none()).and_then(|old| old.spec.as_ref());
    let kept = before.map(|before| &before.spec).or(said).or(declared.map(|declared| &declared.spec));
    let weight = put.weight.or(kept.map(|spec| spec.weight));
    let spec = Spec { address: put.address, weight: weight.unwrap_or_default() };
    let base = declared.map(Declared::base);
    let lease = put.ttl.map(|ttl| Lease { ttl, due: now.saturating_add(ttl) });
    let differs = base.as_ref().is_none_or(|(base, _)| *base != spec);
    let mut over = Override {
        removed: false,
        leaving: None,
        lease,
        base,
        spec: differs.then(|| spec.clone()),
        ..stays.cloned().unwrap_or_default()
    };
    let source = declared.map_or(if lease.is_some() { Source::Lease } else { Source::Api }, |declared| declared.source);
    let stood = |before: &Entry| before.spec == spec && before.source == source;
    let left = old.is_some_and(|old| old.leaving.is_some());
    let lasts = old.is_some_and(|old| old.transient) && !put.transient;
    let same = before.is_some_and(stood) && !left;
    if !same || lasts {
        over.sign(old, note, put.transient);
    }
    let outcome = match before {
        None => Outcome::Created,
        Some(_) if !same => Outcome::Changed,
        Some(_) if lease.is_some() => Outcome::Renewed,
        Some(_) if lasts => Outcome::Changed,
        Some(_) => Outcome::Unchanged,
    };
    (over, outcome)
}

//! What is said of one backend: by who declares it, and above that at run time. Here the two are merged.

use crate::types::{AdminState, BackendAddress, Name, Source, Weight};

/// What a backend is made of, beside its id.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Spec {
    /// Where it is reached.
    pub address: BackendAddress,
    /// Its share.
    pub weight: Weight,
}

/// A backend as the file or discovery has it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Declared {
    /// What it is.
    pub id: Name,
    /// What it is made of.
    pub spec: Spec,
    /// Who says so.
    pub source: Source,
}

/// What was said at run time about one backend.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Override {
    /// In place of what is declared; `None` leaves that as it is.
    pub spec: Option<Spec>,
    /// What people want of it.
    pub admin: AdminState,
    /// Taken out, though declared.
    pub removed: bool,
    /// What was declared when this was last set, and by whom; `None`: nothing was.
    pub base: Option<(Spec, Source)>,
    /// Not in the journal: handed over in an upgrade, and gone after a restart.
    pub transient: bool,
    /// What holds again after that: what was said for good before the first transient change.
    pub beneath: Option<Box<Override>>,
    /// A registration that must be renewed.
    pub lease: Option<Lease>,
    /// It is removed when its requests are done, at this time at the latest.
    pub leaving: Option<u64>,
    /// Who said it, and why.
    pub note: Note,
}

/// A registration with a time to live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lease {
    /// How long a renewal holds, in milliseconds.
    pub ttl: u64,
    /// When it runs out.
    pub due: u64,
}

/// Who did something, and why.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// `uid 1000`, `token`, `lease`, `dns` …
    pub who: String,
    /// As given by `reason`; often empty.
    pub why: String,
    /// Seconds since 1970.
    pub at: u64,
}

/// A declaration and something else that cannot both hold; the declaration does not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// The backend.
    pub id: Name,
    /// The field: `address`, `weight`, `removed`; `taken` where its address is another backend's.
    pub field: &'static str,
    /// What is declared now.
    pub declared: String,
    /// What holds; with `taken` the other backend's id.
    pub kept: String,
}

impl Declared {
    /// What an override that is made now remembers.
    pub(super) fn base(&self) -> (Spec, Source) {
        (self.spec.clone(), self.source)
    }
}

impl Override {
    /// What outlives the process, and so what the journal keeps; `None` where nothing does.
    pub fn lasting(&self) -> Option<&Self> {
        if self.transient { self.beneath.as_deref() } else { Some(self) }
    }

    /// As [`AdminState`] is seen by traffic: what is leaving drains.
    pub(super) fn effective_admin(&self) -> AdminState {
        if self.leaving.is_some() && self.admin == AdminState::Ready { AdminState::Drain } else { self.admin }
    }

    /// Nothing is other than without it.
    pub(super) fn says_nothing(&self) -> bool {
        let said = self.spec.is_some() || self.removed || self.leaving.is_some() || self.admin != AdminState::Ready;
        !said && self.beneath.is_none()
    }

    /// It wanted its backend gone, and the file, which had it, has it no more. What discovery has found may only not be
    /// found yet.
    pub(super) fn is_fulfilled(&self) -> bool {
        let from_file = self.base.as_ref().is_some_and(|(_, source)| *source == Source::File);
        from_file && (self.removed || self.leaving.is_some())
    }

    /// Signs a change that made this of `before`.
    pub(super) fn sign(&mut self, before: Option<&Self>, note: Note, transient: bool) {
        self.note = note;
        match before {
            _ if !transient => self.beneath = None,
            Some(before) if !before.transient => self.beneath = Some(Box::new(before.clone())),
            _ => {}
        }
        self.transient = transient;
    }

    /// This, once its backend is out; `None` where nothing is left to say.
    pub(super) fn taken_out(self) -> Option<Self> {
        let Self { base, note, transient, .. } = self;
        base.as_ref()?;
        Some(Self { removed: true, base, note, transient, ..Self::default() })
    }

    /// Goes on above what is declared now: what is as it was declared before follows, what is not stays.
    pub(super) fn rebase(&mut self, declared: &Declared, conflicts: &mut Vec<Conflict>) {
        if let Some(beneath) = &mut self.beneath {
            beneath.rebase(declared, &mut Vec::new());
            if beneath.says_nothing() {
                self.beneath = None;
            }
        }
        if self.lease.take().is_some() {
            // Whoever declares it answers for it from now on, also if the registration was on its way out.
            (self.spec, self.leaving) = (None, None);
        }
        let mut conflict = |field, declared_now: String, kept: String| {
            conflicts.push(Conflict { id: declared.id.clone(), field, declared: declared_now, kept });
        };
        let now = &declared.spec;
        let base = self.base.as_ref().map(|(spec, _)| spec);
        if self.removed {
            if base.is_some_and(|base| base != now) {
                conflict("removed", now.address.to_string(), "removed".into());
            }
        } else if let Some(spec) = &mut self.spec {
            match base.map(|base| &base.address) {
                Some(base) if *base == spec.address => spec.address = now.address.clone(),
                base if base != Some(&now.address) && spec.address != now.address => {
                    conflict("address", now.address.to_string(), spec.address.to_string());
                }
                _ => {}
            }
            match base.map(|base| base.weight) {
                Some(base) if base == spec.weight => spec.weight = now.weight,
                base if base != Some(now.weight) && spec.weight != now.weight => {
                    conflict("weight", now.weight.value().to_string(), spec.weight.value().to_string());
                }
                _ => {}
            }
        }
        if self.spec.as_ref() == Some(now) {
            self.spec = None;
        }
        self.base = Some((now.clone(), declared.source));
    }
}

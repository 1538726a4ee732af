//! The reference: the same rules in the plainest form, field by field, searched through from the start each time.

use super::*;

mod property;

const DRAIN: u64 = 30;

/// What was said of one backend. A field that is `None` is as declared.
#[derive(Clone, Debug, Default, PartialEq)]
struct Said {
    address: Option<u16>,
    weight: Option<u16>,
    admin: AdminState,
    removed: bool,
    leaving: Option<u64>,
    /// ttl and due
    lease: Option<(u64, u64)>,
    /// Who declared it; `None` is added at run time.
    origin: Option<Source>,
    transient: bool,
}

impl Said {
    fn is_silent(&self) -> bool {
        let Self { address: None, weight: None, admin: AdminState::Ready, removed: false, leaving: None, .. } = self
        else {
            return false;
        };
        true
    }

    /// Returns whether it stays.
    fn merge(&mut self, declared: Option<&Thing>, by_file: bool) -> bool {
        match declared {
            Some(thing) => {
                if self.lease.is_some() {
                    (self.lease, self.address, self.weight, self.leaving) = (None, None, None, None);
                }
                self.origin = Some(thing.source);
                self.address = self.address.filter(|address| *address != thing.address);
                self.weight = self.weight.filter(|weight| *weight != thing.weight);
                true
            }
            None => !(by_file && self.origin == Some(Source::File) && (self.removed || self.leaving.is_some())),
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
struct Thing {
    id: &'static str,
    address: u16,
    weight: u16,
    admin: AdminState,
    source: Source,
}

impl Thing {
    fn is_ready(&self) -> bool {
        self.admin == AdminState::Ready && self.weight > 0
    }
}

#[derive(Clone, Debug, Default)]
struct Reference {
    file: Vec<Thing>,
    found: Vec<Thing>,
    live: BTreeMap<&'static str, Said>,
    /// What a restart would find.
    disk: BTreeMap<&'static str, Said>,
}

#[derive(Debug, PartialEq)]
enum No {
    Duplicate,
    LastReady,
    NotFound,
    NotLeasable,
    Unsaid,
}

impl Reference {
    fn members(&self) -> Vec<Thing> {
        let mut all: Vec<Thing> = Vec::new();
        let declared: Vec<&Thing> = self.file.iter().chain(&self.found).collect();
        for (place, thing) in declared.iter().enumerate() {
            if declared[..place].iter().any(|earlier| earlier.id == thing.id) {
                continue;
            }
            let said = self.live.get(thing.id).cloned().unwrap_or_default();
            let address = said.address.unwrap_or(thing.address);
            let weight = said.weight.unwrap_or(thing.weight);
            if !said.removed && !all.iter().any(|other| other.address == address) {
                all.push(Thing { address, weight, admin: state(&said), ..(*thing).clone() });
            }
        }
        for (id, said) in &self.live {
            if let Said { origin: None, address: Some(address), weight: Some(weight), lease, .. } = *said
                && !all.iter().any(|other| other.id == *id || other.address == address)
            {
                let source = if lease.is_some() { Source::Lease } else { Source::Api };
                all.push(Thing { id, address, weight, admin: state(said), source });
            }
        }
        all
    }

    fn member(&self, id: &str) -> Option<Thing> {
        self.members().into_iter().find(|thing| thing.id == id)
    }

    fn any_ready(&self) -> bool {
        self.members().iter().any(Thing::is_ready)
    }

    fn declared(&self, id: &str) -> Option<Thing> {
        self.file.iter().chain(&self.found).find(|thing| thing.id == id).cloned()
    }

    /// What is left after a change, where it may be.
    fn settle(&mut self, before: &Self, force: bool) -> Result<(), No> {
        let disk = &self.disk;
        self.live.retain(|id, said| !said.is_silent() || said.transient && disk.contains_key(id));
        if !force && before.any_ready() && !self.any_ready() {
            *self = before.clone();
            return Err(No::LastReady);
        }
        self.disk.retain(|id, _| self.live.contains_key(id));
        for (id, said) in self.live.iter().filter(|(_, said)| !said.transient) {
            self.disk.insert(id, said.clone());
        }
        Ok(())
    }

    fn declare(&mut self, by_file: bool) {
        let before = self.clone();
        let merge = |(id, said): (&&str, &mut Said)| said.merge(before.declared(id).as_ref(), by_file);
        self.disk.retain(|id, said| merge((id, said)) && !said.is_silent());
        self.live.retain(|id, said| merge((id, said)));
        self.settle(&before, true).expect("forced");
    }

    fn put_said(&mut self, id: &'static str, put: &PutOp, before: Option<&Thing>, now: u64) -> Outcome {
        let (declared, old) = (self.declared(id), self.live.get(id).cloned());
        let stood = old.clone().filter(|old| !old.removed);
        let dormant = declared.is_none() && stood.as_ref().is_some_and(|old| old.origin.is_some());
        let said_weight = stood.as_ref().filter(|_| !dormant).and_then(|old| old.weight);
        let declared_weight = declared.as_ref().map(|thing| thing.weight);
        let weight = put.weight.or(before.map(|thing| thing.weight)).or(said_weight).or(declared_weight).unwrap_or(1);
        let lease = put.ttl.map(|ttl| (ttl, now + ttl));
        let other = |said: u16, declared: Option<u16>| Some(said).filter(|said| declared != Some(*said));
        let mut said = Said {
            address: other(put.address, declared.as_ref().map(|thing| thing.address)),
            weight: other(weight, declared_weight),
            removed: false,
            leaving: None,
            lease,
            origin: declared.as_ref().map(|thing| thing.source),
            ..stood.unwrap_or_default()
        };
        let source = match (&declared, lease) {
            (Some(thing), _) => thing.source,
            (None, Some(_)) => Source::Lease,
            (None, None) => Source::Api,
        };
        let left = old.as_ref().is_some_and(|old| old.leaving.is_some());
        let same = !left
            && before.is_some_and(|thing| (thing.address, thing.weight, thing.source) == (put.address, weight, source));
        let lasts = old.is_some_and(|old| old.transient) && !put.transient;
        if !same || lasts {
            said.transient = put.transient;
        }
        self.live.insert(id, said);
        match before {
            None => Outcome::Created,
            Some(_) if !same => Outcome::Changed,
            Some(_) if lease.is_some() => Outcome::Renewed,
            Some(_) if lasts => Outcome::Changed,
            Some(_) => Outcome::Unchanged,
        }
    }

    fn put(&mut self, id: &'static str, put: &PutOp, now: u64) -> Result<Outcome, No> {
        let before = self.clone();
        let for_good = |said: &Said| said.origin.is_none() && said.lease.is_none();
        if put.ttl.is_some() && (self.declared(id).is_some() || self.live.get(id).is_some_and(for_good)) {
            return Err(No::NotLeasable);
        }
        if self.members().iter().any(|thing| thing.id != id && thing.address == put.address) {
            return Err(No::Duplicate);
        }
        let outcome = self.put_said(id, put, before.member(id).as_ref(), now);
        self.settle(&before, put.force).map(|()| outcome)
    }

    fn patch(&mut self, id: &'static str, op: &PatchOp) -> Result<Outcome, No> {
        let before = self.clone();
        let was = self.member(id).ok_or(No::NotFound)?;
        let declared = self.declared(id);
        let old = self.live.get(id).cloned();
        let mut said = old.clone().unwrap_or_default();
        said.origin = declared.as_ref().map(|thing| thing.source);
        if let Some(weight) = op.weight {
            said.weight = Some(weight).filter(|weight| declared.as_ref().is_none_or(|thing| thing.weight != *weight));
        }
        if let Some(admin) = op.admin {
            said.admin = admin;
            if admin == AdminState::Ready && said.lease.is_none() {
                said.leaving = None;
            }
        }
        let old = old.unwrap_or_default();
        let lasts = old.transient && !op.transient;
        let same = op.weight.is_none_or(|weight| weight == was.weight);
        if same && said.admin == old.admin && said.leaving == old.leaving && !lasts {
            return Ok(Outcome::Unchanged);
        }
        said.transient = op.transient;
        self.live.insert(id, said);
        self.settle(&before, op.force).map(|()| Outcome::Changed)
    }

    fn remove(&mut self, id: &'static str, drain: u64, force: bool, now: u64) -> Result<Outcome, No> {
        let before = self.clone();
        self.member(id).ok_or(No::NotFound)?;
        let mut said = self.live.get(id).cloned().unwrap_or_default();
        said.origin = self.declared(id).map(|thing| thing.source);
        said.transient &= said.origin.is_none() && !self.disk.contains_key(id);
        if drain > 0 {
            said.leaving = Some(now + drain);
            self.live.insert(id, said);
            return self.settle(&before, force).map(|()| Outcome::Leaving);
        }
        self.take_out(id, &said);
        self.settle(&before, force).map(|()| Outcome::Removed)
    }

    fn take_out(&mut self, id: &'static str, said: &Said) {
        self.disk.remove(id);
        self.live.remove(id);
        let fulfilled = self.declared(id).is_none() && said.origin == Some(Source::File);
        if said.origin.is_some() && !fulfilled {
            let out = Said { removed: true, origin: said.origin, transient: said.transient, ..Said::default() };
            self.live.insert(id, out);
        }
    }

    fn replace(&mut self, puts: &[(&'static str, PutOp)], drain: u64, force: bool, now: u64) -> Result<(), No> {
        let before = self.clone();
        let named = |id: &str| puts.iter().any(|(other, _)| *other == id);
        let gone = |id: &str, said: &Said| {
            said.origin.is_none() && said.lease.is_none() && before.declared(id).is_none() && !named(id)
        };
        let gone: Vec<&'static str> =
            before.live.iter().filter(|(id, said)| gone(id, said)).map(|(id, _)| *id).collect();
        self.live.retain(|id, _| !gone.contains(id));
        for (at, (id, put)) in puts.iter().enumerate() {
            let taken = before
                .members()
                .into_iter()
                .any(|thing| thing.address == put.address && !named(thing.id) && !gone.contains(&thing.id));
            let twice = puts[..at].iter().any(|(other, earlier)| other != id && earlier.address == put.address);
            if taken || twice {
                *self = before;
                return Err(No::Duplicate);
            }
            // Each is put beside what was there before.
            match before.live.get(id) {
                Some(said) => self.live.insert(id, said.clone()),
                None => self.live.remove(id),
            };
            self.put_said(id, put, before.member(id).as_ref(), now);
        }
        if puts.iter().any(|(id, _)| self.member(id).is_none()) {
            *self = before;
            return Err(No::Duplicate);
        }
        let members = self.members();
        let ready = self.any_ready();
        for id in gone {
            let said = &before.live[id];
            let free = !members.iter().any(|thing| Some(thing.address) == said.address);
            if drain > 0 && before.member(id).is_some() && free {
                let leaving = said.leaving.or(Some(now + drain));
                self.live.insert(id, Said { leaving, ..said.clone() });
            }
        }
        if !force && before.any_ready() && !ready {
            *self = before;
            return Err(No::LastReady);
        }
        self.settle(&before, true)
    }

    fn forget(&mut self, id: &'static str, force: bool) -> Result<Outcome, No> {
        let before = self.clone();
        self.live.get(id).ok_or(No::Unsaid)?;
        let declared = self.declared(id);
        if self
            .members()
            .iter()
            .any(|thing| thing.id != id && Some(thing.address) == declared.as_ref().map(|d| d.address))
        {
            return Err(No::Duplicate);
        }
        self.live.remove(id);
        self.settle(&before, force)?;
        Ok(match (before.member(id), self.member(id)) {
            (None, Some(_)) => Outcome::Created,
            (Some(_), None) => Outcome::Removed,
            (was, is) if was == is => Outcome::Unchanged,
            _ => Outcome::Changed,
        })
    }

    fn sweep(&mut self, now: u64, busy: &[&str]) -> Vec<(&'static str, Outcome)> {
        let before = self.clone();
        let mut changed = Vec::new();
        for (id, said) in &mut self.live {
            if said.leaving.is_none() && said.lease.is_some_and(|(_, due)| due <= now) {
                said.leaving = Some(now + DRAIN);
                changed.push((*id, Outcome::Leaving));
            }
        }
        for (id, said) in &before.live {
            if said.leaving.is_some_and(|due| due <= now || !busy.contains(id)) {
                self.take_out(id, said);
                changed.push((id, Outcome::Removed));
            }
        }
        self.settle(&before, true).expect("forced");
        changed
    }

    fn restart(&mut self, before: u64, now: u64) {
        self.live = self.disk.clone();
        for said in self.live.values_mut().chain(self.disk.values_mut()) {
            said.leaving = said.leaving.map(|due| now + due.saturating_sub(before));
            said.lease = said.lease.map(|(ttl, _)| (ttl, now + ttl));
        }
    }
}

fn state(said: &Said) -> AdminState {
    match (said.admin, said.leaving) {
        (AdminState::Ready, Some(_)) => AdminState::Drain,
        (admin, _) => admin,
    }
}

#[derive(Clone, Debug)]
struct PutOp {
    address: u16,
    weight: Option<u16>,
    ttl: Option<u64>,
    force: bool,
    transient: bool,
}

#[derive(Clone, Debug)]
struct PatchOp {
    weight: Option<u16>,
    admin: Option<AdminState>,
    force: bool,
    transient: bool,
}

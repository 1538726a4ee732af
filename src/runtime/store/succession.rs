//! From one process to the next: what was said at run time is handed over by who knows it, and not by way of the disk,
//! which may be damaged, full or elsewhere. Only a process that serves writes the journal.

use std::collections::BTreeSet;

use super::{Store, compare::keeps_alike, said_of, tell_conflicts};
use crate::{
    runtime::{
        journal::{Overrides, SaveError, encode_all},
        membership::{Override, Said},
    },
    types::Name,
};

impl Store {
    /// Everything said at run time, as the journal has it, for the next process.
    pub fn hand_over(&self) -> String {
        encode_all(said_of(&self.seen.load().members), self.now())
    }

    /// As [`Store::hand_over`], to the process that serves from now on: nothing is changed here any more. The journal has
    /// it all when this returns, and is left to the other one.
    pub fn give_up(&self) -> String {
        let mut running = self.lock();
        running.given_up = true;
        match self.keep(&running, None) {
            Ok(()) | Err(SaveError::Unread(_)) => {}
            Err(error) => log::error!("{error}; the next process, which knows what is to be kept, tries again"),
        }
        if let Some(journal) = &self.journal {
            journal.seal();
        }
        encode_all(said_of(&running.members), self.now())
    }

    /// The process before this one changes nothing any more, and gave up this. Without it the journal tells what was
    /// changed for good since this process has begun; in any case that is this one's from now on.
    pub fn take_over(&self, handed: Option<Overrides>) {
        let mut running = self.lock();
        let mut kept = handed;
        let mut keep = kept.is_some();
        if let Some(journal) = &self.journal {
            journal.unseal();
            match journal.load(self.now()) {
                Ok(read) => kept = kept.or_else(|| Some(with_transient(read, said_of(&running.members)))),
                Err(error) => {
                    log::error!("{error}; what this process knows is kept in its place");
                    journal.secure();
                    keep = true;
                }
            }
        }
        if let Some(mut kept) = kept {
            let mut names: BTreeSet<Name> = running.members.keys().cloned().collect();
            names.extend(kept.keys().cloned());
            let model = running.model.clone();
            for name in names {
                let overrides = kept.remove(&name).unwrap_or_default();
                let membership = running.members.entry(name.clone()).or_default();
                let before = membership.entries();
                tell_conflicts(
                    membership
                        .resume(overrides, model.upstreams.contains_key(&name))
                        .into_iter()
                        .map(|conflict| (name.clone(), conflict)),
                );
                let changed = before != membership.entries();
                if let Some(config) = model.upstreams.get(&name).filter(|_| changed) {
                    self.rebuild(&mut running, config);
                }
            }
        }
        self.show(&running);
        if keep {
            self.keep_soon(&mut running);
        }
    }
}

/// What a journal has, covered by what does not last and is in none: unless something else was said for good since.
fn with_transient<'a>(mut journal: Overrides, known: impl Iterator<Item = (&'a Name, &'a Said)>) -> Overrides {
    for (upstream, said) in known {
        for (id, over) in said.iter().filter(|(_, over)| over.transient) {
            let kept = journal.get(upstream).and_then(|kept| kept.get(id));
            let same = match (kept, over.beneath.as_deref()) {
                (None, None) => true,
                (Some(kept), Some(beneath)) => keeps_alike(kept, beneath),
                _ => false,
            };
            if same {
                let over = Override { beneath: kept.cloned().map(Box::new), ..over.clone() };
                journal.entry(upstream.clone()).or_default().insert(id.clone(), over);
            }
        }
    }
    journal
}

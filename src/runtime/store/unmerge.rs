//! What a reload has made of overrides, for who takes that reload back after the end of the process that did it.

use std::{collections::BTreeMap, sync::Arc};

use super::{Store, build, compare::Merged, declare, tell_conflicts};
use crate::{
    runtime::{
        journal::{Overrides, encode_all},
        membership::Said,
    },
    types::Name,
};

impl Store {
    /// What the last reload, or this start, has made of overrides: as they were, and as it left them, in the journal's form.
    /// `None`: nothing.
    pub fn merged_texts(&self) -> Option<(String, String)> {
        let running = self.lock();
        if running.merged.is_empty() {
            return None;
        }
        let (mut before, mut after) = (Overrides::new(), Overrides::new());
        for (upstream, id, was, is) in &running.merged {
            before.entry(upstream.clone()).or_default().insert(id.clone(), was.clone());
            if let Some(is) = is {
                after.entry(upstream.clone()).or_default().insert(id.clone(), is.clone());
            }
        }
        Some((self.texts(before), self.texts(after)))
    }

    fn texts(&self, overrides: Overrides) -> String {
        let said: BTreeMap<Name, Said> = overrides.into_iter().map(|(name, all)| (name, Arc::new(all))).collect();
        encode_all(said.iter(), self.now())
    }

    /// A process before this one had [`Store::merged_texts`] of these. `undone`: this start is without that reload, and what
    /// it has taken holds again; else that is so when this process takes it back.
    pub fn resume_merged(&self, before: Overrides, after: &Overrides, undone: bool) {
        let mut running = self.lock();
        let merged = before.into_iter().flat_map(|(upstream, all)| {
            let is = after.get(&upstream);
            let one =
                move |(id, was)| (upstream.clone(), Name::clone(&id), was, is.and_then(|is| is.get(&id)).cloned());
            all.into_iter().map(one)
        });
        let merged: Vec<Merged> = merged.collect();
        if !undone {
            // What this start has merged came later.
            let later = std::mem::replace(&mut running.merged, merged);
            running.merged.extend(later);
            return;
        }
        for (upstream, id, was, is) in merged {
            running.members.entry(upstream).or_default().take_back(&id, &was, is.as_ref());
        }
        let model = running.model.clone();
        tell_conflicts(declare(&model, &mut running.members));
        let snapshot = build(&model, &running.members, Some(&running.snapshot), &self.metrics);
        running.merged_at_start = true;
        self.put_in_place(&mut running, snapshot);
    }
}

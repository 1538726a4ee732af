//! What a reload has made of overrides, for who takes that reload back after the end of the process that did it.

use std::{collections::BTreeMap, sync::Arc};

use super::{Store, compare::Merged};
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

    /// A process before this one had [`Store::merged_texts`] of these, and this one may take its reload back.
    pub fn resume_merged(&self, before: Overrides, after: &Overrides) {
        let mut running = self.lock();
        let merged: Vec<Merged> = pairs(before, after).collect();
        // What this start has merged came later.
        let later = std::mem::replace(&mut running.merged, merged);
        running.merged.extend(later);
    }

    /// This start began with other overrides than the journal has, by [`give_back`].
    pub fn keep_start(&self) {
        self.lock().merged_at_start = true;
    }

    /// Whether the journal has what it is to have; where there is none it has.
    pub fn is_kept(&self) -> bool {
        let running = self.lock();
        !running.merged_at_start && running.not_kept.is_none()
    }
}

/// A process before this one had [`Store::merged_texts`] of these, and this start is without its reload: what that has
/// taken of overrides they have again, where nothing was said since. To be called before they meet the file.
pub fn give_back(overrides: &mut Overrides, before: Overrides, after: &Overrides) {
    for (upstream, id, was, is) in pairs(before, after) {
        let all = overrides.entry(upstream).or_default();
        if all.get(&id) == is.as_ref() {
            all.insert(id, was);
        }
    }
}

fn pairs(before: Overrides, after: &Overrides) -> impl Iterator<Item = Merged> {
    before.into_iter().flat_map(move |(upstream, all)| {
        let is = after.get(&upstream);
        all.into_iter()
            .map(move |(id, was)| (upstream.clone(), Name::clone(&id), was, is.and_then(|is| is.get(&id)).cloned()))
    })
}

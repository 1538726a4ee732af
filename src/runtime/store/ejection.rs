//! What ejections have come to, in the metrics and in the events.

use std::time::Instant;

use super::Store;
use crate::{runtime::outlier::Change, types::Name};

impl Store {
    /// Gives back ejected backends whose time is over, and tells of those that were taken out or given back since the last
    /// time. To be called several times a second; costs a look at each upstream where nobody is ejected.
    pub fn sweep_ejected(&self, now: Instant) {
        let snapshot = self.snapshot();
        for member in snapshot.members() {
            for (id, change) in member.upstream.sweep_ejected(now) {
                self.tell_ejection(&member.upstream.name, &id, &change);
            }
        }
    }

    fn tell_ejection(&self, upstream: &Name, id: &Name, change: &Change) {
        let metrics = self.metrics.known_backend(upstream, id);
        let (kind, what, why) = match change {
            Change::Ejected { term, times, why } => {
                metrics.iter().for_each(|metrics| metrics.ejected());
                let again = if *times > 1 { format!(", ejected {times} times in a row") } else { String::new() };
                ("backend.ejected", format!("out for {term:?}{again}"), why.as_str())
            }
            Change::Returned { why } => {
                metrics.iter().for_each(|metrics| metrics.set_ejected(false));
                ("backend.returned", "not ejected any more".to_owned(), *why)
            }
        };
        self.tell(kind, upstream, id, "passive check", &what, why);
    }
}

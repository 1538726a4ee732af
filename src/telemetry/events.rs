//! What changed, who changed it and why: a bounded list that streams read from, and a line each in the process log.
//! Whoever reads more slowly than things happen misses the oldest and is told so.

use std::{
    collections::VecDeque,
    fmt,
    str::FromStr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use tokio::sync::watch;

/// Events that are kept for readers.
pub const KEPT: usize = 1024;

/// One change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Event {
    /// Counted from 1, over upgrades.
    pub id: u64,
    /// Milliseconds since 1970.
    pub time: u64,
    /// What kind of change: `backend.added`, `backend.health`, `backend.ejected`, `config.reloaded` …
    pub kind: &'static str,
    /// The upstream, where it is about one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub upstream: String,
    /// The backend, where it is about one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub backend: String,
    /// `uid 1000`, `token`, `lease`, `health check`, `passive check`, `signal` …
    pub who: String,
    /// What changed, for people: `ready -> drain`.
    pub what: String,
    /// As given by who did it; often empty.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
}

/// Numbers of one row: processes that hand over count on in it, and one that is started alone begins another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Epoch(pub u64);

/// How a stream names an event: `18f3a2b-17`, or a number alone, which is of whatever row there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EventId {
    /// Of which row.
    pub epoch: Option<Epoch>,
    /// As [`Event::id`].
    pub number: u64,
}

impl fmt::Display for EventId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.epoch {
            Some(Epoch(epoch)) => write!(f, "{epoch:x}-{}", self.number),
            None => write!(f, "{}", self.number),
        }
    }
}

/// It names no event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoEventId;

impl FromStr for EventId {
    type Err = NoEventId;

    fn from_str(text: &str) -> Result<Self, NoEventId> {
        let (epoch, number) = text.split_once('-').map_or((None, text), |(epoch, number)| (Some(epoch), number));
        let epoch = epoch.map(|epoch| u64::from_str_radix(epoch, 16).map(Epoch)).transpose();
        Ok(Self { epoch: epoch.map_err(|_| NoEventId)?, number: number.parse().map_err(|_| NoEventId)? })
    }
}

/// What is said of a change; id and time are added.
#[derive(Clone, Debug, Default)]
pub struct News {
    /// As in [`Event`].
    pub upstream: String,
    /// As in [`Event`].
    pub backend: String,
    /// As in [`Event`].
    pub who: String,
    /// As in [`Event`].
    pub what: String,
    /// As in [`Event`].
    pub why: String,
}

/// The list.
#[derive(Debug)]
pub struct Events {
    kept: Mutex<VecDeque<Event>>,
    /// As [`Epoch`]. Settled when numbers are.
    epoch: AtomicU64,
    last: watch::Sender<u64>,
    /// The process before this one still counts; see [`Events::held`].
    held: watch::Sender<bool>,
}

impl Default for Events {
    fn default() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // No two starts have the same.
        let epoch = AtomicU64::new(u64::try_from(now.as_nanos()).unwrap_or(u64::MAX));
        Self { kept: Mutex::default(), epoch, last: watch::Sender::new(0), held: watch::Sender::new(false) }
    }
}

impl Events {
    /// Adds an event, wakes whoever reads, and logs it.
    pub fn tell(&self, kind: &'static str, news: News) {
        let News { upstream, backend, who, what, why } = news;
        let place = match (upstream.is_empty(), backend.is_empty()) {
            (true, _) => String::new(),
            (false, true) => format!(" {upstream}"),
            (false, false) => format!(" {upstream}/{backend}"),
        };
        let because = if why.is_empty() { String::new() } else { format!(" ({why:?})") };
        let bad = ["failed", "reverted", "ejected", "unconfirmed"].iter().any(|end| kind.ends_with(end));
        let level = if bad { log::Level::Warn } else { log::Level::Info };
        log::log!(level, "{kind}{place}: {what}, by {who}{because}");
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        let mut kept = self.lock();
        let id = kept.back().map_or(1, |last| last.id + 1);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(Event { id, time, kind, upstream, backend, who, what, why });
        drop(kept);
        if !*self.held.borrow() {
            self.last.send_replace(id);
        }
    }

    /// A list whose events are numbered when it is known what the process before has told; see [`Events::take_over`].
    pub fn held() -> Self {
        Self { held: watch::Sender::new(true), ..Self::default() }
    }

    /// Goes on behind what the process before this one has told, in its row where that is known.
    pub fn take_over(&self, told: Vec<Event>, epoch: Option<Epoch>) {
        let mut kept = self.lock();
        if let Some(Epoch(epoch)) = epoch {
            self.epoch.store(epoch, Ordering::Release);
        }
        let own = std::mem::replace(&mut *kept, told.into());
        let mut last = kept.back().map_or(0, |event| event.id);
        for event in own {
            last += 1;
            kept.push_back(Event { id: last, ..event });
        }
        let over = kept.len().saturating_sub(KEPT);
        drop(kept.drain(..over));
        self.held.send_replace(false);
        drop(kept);
        self.last.send_replace(last);
    }

    /// Waits until numbers are what they stay.
    pub async fn numbered(&self) {
        // The sender is our own.
        let _ = self.held.subscribe().wait_for(|held| !held).await;
    }

    /// The events after number `after`, oldest first, at most `most`; and how many before them are not kept any more.
    pub fn after(&self, after: u64, most: usize) -> (Vec<Event>, u64) {
        let kept = self.lock();
        let oldest = kept.front().map_or(1, |first| first.id);
        let missed = oldest.saturating_sub(after.saturating_add(1));
        (kept.iter().filter(|event| event.id > after).take(most).cloned().collect(), missed)
    }

    /// The row that events are numbered in.
    pub fn epoch(&self) -> Epoch {
        Epoch(self.epoch.load(Ordering::Acquire))
    }

    /// The number of the last event; changes with each.
    pub fn last(&self) -> watch::Receiver<u64> {
        self.last.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tell(events: &Events, what: &str) {
        events.tell("backend.changed", News { what: what.into(), ..News::default() });
    }

    fn told(events: &Events, after: u64) -> (Vec<(u64, String)>, u64) {
        let (list, missed) = events.after(after, KEPT);
        (list.into_iter().map(|event| (event.id, event.what)).collect(), missed)
    }

    #[test]
    fn an_id_names_its_row_or_is_a_number_alone() {
        let id = EventId { epoch: Some(Epoch(0x18f)), number: 7 };
        assert_eq!((id.to_string(), "18f-7".parse()), ("18f-7".into(), Ok(id)));
        assert_eq!("7".parse(), Ok(EventId { epoch: None, number: 7 }));
        for wrong in ["", "-", "7-", "-7", "x-7", "1-2-3", "-1"] {
            assert_eq!(wrong.parse::<EventId>(), Err(NoEventId), "{wrong}");
        }
    }

    #[test]
    fn numbers_go_on_behind_those_of_the_process_before() {
        let (old, new) = (Events::default(), Events::held());
        for number in 0..KEPT + 3 {
            tell(&old, &number.to_string());
        }
        tell(&new, "own");
        assert_eq!(*new.last().borrow(), 0, "nobody is told of numbers that change yet");
        assert_ne!(new.epoch(), old.epoch());
        new.take_over(old.after(0, KEPT).0, Some(old.epoch()));
        assert_eq!(new.epoch(), old.epoch());
        tell(&new, "later");
        let last = KEPT as u64 + 3;
        assert_eq!(told(&new, last), (vec![(last + 1, "own".into()), (last + 2, "later".into())], 0));
        assert_eq!(told(&new, 0).1, 5, "what a reader missed is counted across both");
        assert_eq!(*new.last().borrow(), last + 2);
        let alone = Events::held();
        tell(&alone, "own");
        alone.take_over(Vec::new(), None);
        assert_eq!((told(&alone, 0), *alone.last().borrow()), ((vec![(1, "own".into())], 0), 1));
    }
}

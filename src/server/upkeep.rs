//! What has to be done now and then, on a thread of its own: leases, drains and ejections that are due, logs and memory that nobody
//! uses any more, reloads that were not confirmed, a configuration file that has changed.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::{Arc, PoisonError},
    time::Duration,
};

use async_trait::async_trait;
use pingora_core::{server::ShutdownWatch, services::background::BackgroundService};
use tokio::sync::watch;

use super::running::Running;
use crate::{
    policy::balance::hash_bytes,
    runtime::lull,
    service::admin::operator::{OperatorError, Reload},
};

/// Between two rounds.
const ROUND: Duration = Duration::from_millis(200);
/// Rounds in a second.
const ROUNDS: u64 = 5;

/// The service. Idle until the process serves: until then it is the one before that keeps what is shared.
pub(super) struct Upkeep {
    pub(super) running: Arc<Running>,
    pub(super) gate: watch::Receiver<bool>,
}

#[async_trait]
impl BackgroundService for Upkeep {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        let mut gate = self.gate.clone();
        tokio::select! {
            _ = gate.wait_for(|open| *open) => {}
            _ = shutdown.wait_for(|down| *down) => return,
        }
        let mut rounds = tokio::time::interval(ROUND);
        rounds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut round = 0;
        loop {
            tokio::select! {
                _ = rounds.tick() => {}
                _ = shutdown.wait_for(|down| *down) => return,
            }
            // The thread is for this alone, so it may block.
            self.running.keep_up(round % ROUNDS == 0);
            if round % ROUNDS == 0 {
                lull::give_back_pages();
            }
            round += 1;
        }
    }
}

/// The configuration file, as last read and as last looked at.
#[derive(Clone, Debug)]
pub(super) struct Seen {
    read: Stamp,
    content: u64,
    /// Other than what was read, in the last look; a file that is still being written changes again.
    other: Option<Stamp>,
}

/// Tells one state of a file from another without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    inode: u64,
    size: u64,
}

impl Stamp {
    /// `None` where there is no file, or a pipe, which can be read only once.
    fn of(file: &Path) -> Option<Self> {
        let found = fs::metadata(file).ok().filter(fs::Metadata::is_file)?;
        Some(Self { modified: (found.mtime(), found.mtime_nsec()), inode: found.ino(), size: found.size() })
    }
}

impl Seen {
    /// The file as it is now.
    pub(super) fn now(file: &Path) -> Option<Self> {
        let read = Stamp::of(file)?;
        Some(Self { read, content: hash_bytes(&fs::read(file).ok()?), other: None })
    }

    /// Whether the file is to be read again: it has changed, and has been so for one look.
    fn look(&mut self, file: &Path) -> bool {
        let Some(stamp) = Stamp::of(file) else { return false };
        if stamp == self.read {
            self.other = None;
            return false;
        }
        if self.other.replace(stamp.clone()) != Some(stamp) {
            return false;
        }
        let Some(now) = Self::now(file) else { return false };
        if now.content == self.content {
            // Touched, or written again as it was.
            *self = now;
            return false;
        }
        true
    }
}

impl Running {
    /// The file is read now, by whatever has asked for it.
    pub(super) fn note_file(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = Seen::now(&self.file);
    }

    /// The file is read at the next look, whether it changes or not.
    pub(super) fn forget_file(&self) {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Reloads where the file has changed and has been stable for one look. A bad file is not tried again before it changes; one that
    /// could not be read is.
    pub(super) fn look_at_file(&self) {
        let changed = {
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *seen {
                Some(seen) => seen.look(&self.file),
                None => {
                    *seen = Seen::now(&self.file);
                    seen.is_some()
                }
            }
        };
        if changed
            && let Err(error @ (OperatorError::Busy(_) | OperatorError::Unconfirmed)) =
                self.reload(&Reload::default(), "file change")
        {
            // Said once a second while it waits, which is not often.
            log::info!("the configuration file has changed, and is read later: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_read_when_it_was_stable_for_one_look() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = folder.path().join("rrlb.yaml");
        fs::write(&file, "one").expect("write");
        let mut seen = Seen::now(&file).expect("a file");
        assert!(!seen.look(&file));
        fs::write(&file, "one, two").expect("write");
        assert!(!seen.look(&file), "it may still be written");
        fs::write(&file, "one, two, three").expect("write");
        assert!(!seen.look(&file), "it was still being written");
        assert!(seen.look(&file));
    }

    #[test]
    fn a_file_with_the_same_content_is_not_read_again() {
        let folder = tempfile::tempdir().expect("temporary folder");
        let file = folder.path().join("rrlb.yaml");
        fs::write(&file, "one").expect("write");
        let mut seen = Seen::now(&file).expect("a file");
        let other = folder.path().join("other");
        fs::write(&other, "one").expect("write");
        fs::rename(&other, &file).expect("rename");
        assert!(!seen.look(&file));
        assert!(!seen.look(&file));
        assert!(!seen.look(&file));
        fs::remove_file(&file).expect("remove");
        assert!(!seen.look(&file), "a file that is gone is no other configuration");
    }
}

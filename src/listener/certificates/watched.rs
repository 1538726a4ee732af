//! Files as they look, and whether they are to be read again.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

/// What files held, and how they looked then.
pub(super) struct Watched<T> {
    pub(super) current: T,
    files: Vec<PathBuf>,
    /// How they looked when they were read.
    read: Stamps,
    /// They were read after they looked so. Not before the first look: the configuration was read a moment earlier.
    certain: bool,
    /// Other than what was read, in the last look.
    other: Option<Stamps>,
    /// They could not be read just now, and are read at the next look whether they change or not.
    again: bool,
    /// The last OCSP response was sent along; `None` before the first look.
    pub(super) stapled: Option<bool>,
    /// By what name it was said that they are not what is served, as long as they are not.
    pub(super) trouble: Option<String>,
}

type Stamps = Vec<Option<Stamp>>;

/// Tells one state of a file from another without reading it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Stamp {
    modified: (i64, i64),
    changed: (i64, i64),
    inode: u64,
    size: u64,
}

impl Stamp {
    fn of(file: &Path) -> Option<Self> {
        let found = fs::metadata(file).ok()?;
        let (modified, changed) = ((found.mtime(), found.mtime_nsec()), (found.ctime(), found.ctime_nsec()));
        Some(Self { modified, changed, inode: found.ino(), size: found.size() })
    }
}

impl<T> Watched<T> {
    pub(super) fn new(current: T, files: Vec<PathBuf>) -> Self {
        let read = stamps(&files);
        Self { current, files, read, certain: false, other: None, again: false, stapled: None, trouble: None }
    }

    /// Whether the files are to be read now: they are other than they were, and have been so for one look. Or they could not be
    /// read at the last one.
    pub(super) fn look(&mut self) -> bool {
        let stamps = stamps(&self.files);
        if self.certain && self.read == stamps {
            self.other = None;
            return self.again;
        }
        if self.other.as_ref() == Some(&stamps) {
            return true;
        }
        self.other = Some(stamps);
        false
    }

    /// The files are read, well or not, and not again before they change, unless the reading itself failed (`passing`).
    pub(super) fn settle(&mut self, passing: bool) -> Settled {
        self.certain = true;
        let again = std::mem::replace(&mut self.again, passing);
        let Some(stamps) = self.other.take() else { return if again { Settled::Again } else { Settled::AsBefore } };
        let before = std::mem::replace(&mut self.read, stamps);
        if before == self.read { Settled::AsBefore } else { Settled::Changed }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.certain && self.other.is_none()
    }
}

/// Why files were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Settled {
    /// They could not be the last time, and have not changed since.
    Again,
    /// For certainty, at the first look.
    AsBefore,
    /// They have changed.
    Changed,
}

fn stamps(files: &[PathBuf]) -> Stamps {
    files.iter().map(|file| Stamp::of(file)).collect()
}

//! The files that a configuration names, as its reader sees them: bounded, and never a pipe or a device, which would block.
//! Nothing else that is read of a configuration comes from the system.

use std::{
    cell::Cell,
    fs::{self, File},
    io::{self, Read as _},
    os::unix::fs::PermissionsExt as _,
    path::Path,
};

/// What is asked about files. The fuzzer has files of its own.
pub(super) trait Files {
    /// Whether this is a folder.
    fn is_folder(&self, path: &Path) -> io::Result<bool>;
    /// The permissions, 0 where they cannot be known.
    fn mode(&self, path: &Path) -> u32;
    /// The content of a file of at most so many bytes.
    fn read(&self, path: &Path, largest: u64) -> io::Result<Vec<u8>>;
}

/// The system's.
#[derive(Clone, Copy, Debug)]
pub(super) struct System;

impl Files for System {
    fn is_folder(&self, path: &Path) -> io::Result<bool> {
        fs::metadata(path).map(|meta| meta.is_dir())
    }

    fn mode(&self, path: &Path) -> u32 {
        fs::metadata(path).map_or(0, |meta| meta.permissions().mode() & 0o777)
    }

    fn read(&self, path: &Path, largest: u64) -> io::Result<Vec<u8>> {
        // A pipe or a device would block, so it is not opened.
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::other("not a file"));
        }
        // What the system makes up as it is read has no length before.
        let mut content = Vec::new();
        File::open(path)?.take(largest.saturating_add(1)).read_to_end(&mut content)?;
        if content.len() as u64 > largest {
            return Err(io::Error::other("too large for a certificate, key or token"));
        }
        Ok(content)
    }
}

/// Others' files, and whether one could not be read for what may pass (see [`is_passing`]).
pub(super) struct Noting<'a> {
    pub(super) files: &'a dyn Files,
    pub(super) passing: Cell<bool>,
}

impl Noting<'_> {
    fn note<T>(&self, read: io::Result<T>) -> io::Result<T> {
        read.inspect_err(|error| self.passing.set(self.passing.get() || is_passing(error)))
    }
}

impl Files for Noting<'_> {
    fn is_folder(&self, path: &Path) -> io::Result<bool> {
        self.note(self.files.is_folder(path))
    }

    fn mode(&self, path: &Path) -> u32 {
        self.files.mode(path)
    }

    fn read(&self, path: &Path, largest: u64) -> io::Result<Vec<u8>> {
        self.note(self.files.read(path, largest))
    }
}

/// Whether a file that could not be read for this may be read a moment later though nobody touches it: no descriptor was left,
/// or no memory, or a disk or network failed. What is not there, not to be read or no file is so until it changes.
pub(super) fn is_passing(error: &io::Error) -> bool {
    use io::ErrorKind::{
        InvalidData, InvalidFilename, InvalidInput, IsADirectory, NotADirectory, NotFound, Other, PermissionDenied,
    };
    let lasting = [
        InvalidData,
        InvalidFilename,
        InvalidInput,
        IsADirectory,
        NotADirectory,
        NotFound,
        // Our own words about it.
        Other,
        PermissionDenied,
    ];
    !lasting.contains(&error.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_is_read_of_a_file_than_it_may_have() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("file");
        fs::write(&path, [b'x'; 10]).expect("a file");
        assert_eq!(System.read(&path, 10).map(|content| content.len()).ok(), Some(10));
        assert!(System.read(&path, 9).is_err_and(|error| error.to_string().starts_with("too large")));
        // Its length is 0 until somebody reads it.
        let made_up = Path::new("/proc/self/status");
        assert!(!made_up.exists() || System.read(made_up, 9).is_err());
        assert!(System.read(folder.path(), 9).is_err() && System.read(Path::new("/dev/zero"), 9).is_err());
    }

    #[test]
    fn what_is_wrong_with_a_file_lasts_and_what_is_wrong_with_reading_it_passes() {
        for code in [libc::EMFILE, libc::ENFILE, libc::EIO, libc::ENOMEM, libc::ESTALE, libc::EINTR, libc::ETIMEDOUT] {
            assert!(is_passing(&io::Error::from_raw_os_error(code)), "{code}");
        }
        for code in [libc::ENOENT, libc::EACCES, libc::EPERM, libc::EISDIR, libc::ENOTDIR, libc::ENAMETOOLONG] {
            assert!(!is_passing(&io::Error::from_raw_os_error(code)), "{code}");
        }
        let folder = tempfile::tempdir().expect("a folder");
        assert!(System.read(folder.path(), 9).is_err_and(|error| !is_passing(&error)));
    }
}

//! Backends from a file that somebody else writes: when it has changed, and whether what is in it can be taken. The
//! file is looked at again and again, because notifications do not tell of network file systems and renamed folders.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::MetadataExt,
    path::Path,
    time::Duration,
};

use crate::{
    config::{self, model::Backend},
    runtime::membership::{Declared, Spec},
    types::Source,
};

/// A file that changes within this is being written, and is looked at the next time.
const SETTLE: Duration = Duration::from_millis(50);
/// Larger files are no lists of backends.
const LARGEST_FILE: u64 = 8 << 20;
/// Longer lists are a mistake of their writer.
const MOST: usize = 10_000;

/// What is known of the file.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// Of the last look that came to a result.
    seen: Option<Print>,
    /// What was read then.
    text: Option<String>,
}

/// What a look came to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// The file cannot be read, or what is in it cannot be taken. Said again only when that changes.
    Failed(String),
    /// As at the last look, or being written just now.
    Same,
    /// Another list. An empty one is meant: somebody wrote it.
    Taken(Vec<Declared>),
}

/// By what a change is noticed. The time of change cannot be set back, as the time of modification can.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Print {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Print {
    fn of(path: &Path) -> io::Result<Self> {
        let meta = fs::metadata(path)?;
        if !meta.is_file() {
            return Err(io::Error::other("it is not a file"));
        }
        Ok(Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        })
    }
}

impl Watched {
    /// Looks at the file. Blocks for a moment where it has changed.
    pub(super) fn look(&mut self, path: &Path) -> Look {
        match Print::of(path) {
            Ok(print) if self.seen == Some(print) => Look::Same,
            Ok(print) => self.read(path, print),
            Err(error) => self.unreadable(path, &error),
        }
    }

    fn read(&mut self, path: &Path, print: Print) -> Look {
        let still = || Print::of(path).is_ok_and(|now| now == print);
        std::thread::sleep(SETTLE);
        if !still() {
            return Look::Same;
        }
        let text = match read(path) {
            Ok(text) => text,
            Err(error) => return self.unreadable(path, &error),
        };
        if !still() {
            return Look::Same;
        }
        self.seen = Some(print);
        if self.text.as_ref() == Some(&text) {
            return Look::Same;
        }
        let look = match config::parse_backend_list(&text, path) {
            Ok(backends) if backends.len() > MOST => {
                let length = backends.len();
                Look::Failed(format!("{}: {length} backends; at most {MOST} can be listed", path.display()))
            }
            Ok(backends) => Look::Taken(backends.into_iter().map(declared).collect()),
            Err(report) => Look::Failed(report.to_string()),
        };
        self.text = Some(text);
        look
    }

    fn unreadable(&mut self, path: &Path, error: &io::Error) -> Look {
        // When it can be read again it is news, also where it is as it was.
        *self = Self::default();
        Look::Failed(format!("cannot read {}: {error}", path.display()))
    }
}

fn declared(Backend { id, address, weight, .. }: Backend) -> Declared {
    Declared { id, spec: Spec { address, weight }, source: Source::List }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(LARGEST_FILE + 1).read_to_string(&mut text)?;
    if text.len() as u64 > LARGEST_FILE {
        return Err(io::Error::other("it is larger than 8 MiB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    struct Fixture {
        dir: tempfile::TempDir,
        watched: Watched,
    }

    impl Fixture {
        fn new() -> Self {
            Self { dir: tempfile::tempdir().expect("temporary folder"), watched: Watched::default() }
        }

        fn path(&self) -> PathBuf {
            self.dir.path().join("backends.yaml")
        }

        fn write(&self, text: &str) {
            fs::write(self.path(), text).expect("writes");
        }

        fn look(&mut self) -> Look {
            self.watched.look(&self.dir.path().join("backends.yaml"))
        }

        /// The ids of a list that was taken.
        fn taken(&mut self) -> Vec<String> {
            match self.look() {
                Look::Taken(list) => list.iter().map(|one| one.id.to_string()).collect(),
                other => panic!("{other:?}"),
            }
        }

        fn failed(&mut self) -> String {
            match self.look() {
                Look::Failed(why) => why,
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_list_is_taken_once_and_again_when_it_has_changed() {
        let mut file = Fixture::new();
        file.write("- 10.0.0.1:80\n- { id: two, address: app.internal:80, weight: 5 }\n");
        let Look::Taken(list) = file.look() else { panic!("it is a list") };
        assert_eq!(list[1].id.as_str(), "two");
        assert_eq!((list[1].spec.weight.value(), list[1].source), (5, Source::List));
        assert_eq!(file.look(), Look::Same);
        file.write("[\"10.0.0.3:80\"]");
        assert_eq!(file.taken(), ["10.0.0.3:80"]);
        file.write("[]");
        assert_eq!(file.taken(), [""; 0]);
    }

    #[test]
    fn a_file_that_is_touched_or_written_alike_is_no_news() {
        let mut file = Fixture::new();
        file.write("[10.0.0.1:80]");
        file.taken();
        file.write("[10.0.0.1:80]");
        assert_eq!(file.look(), Look::Same);
    }

    #[test]
    fn a_change_of_the_same_length_and_time_is_seen() {
        let mut file = Fixture::new();
        file.write("[10.0.0.1:80]");
        file.taken();
        let modified = fs::metadata(file.path()).and_then(|meta| meta.modified()).expect("a time");
        file.write("[10.0.0.2:80]");
        File::options().write(true).open(file.path()).and_then(|file| file.set_modified(modified)).expect("sets");
        assert_eq!(file.taken(), ["10.0.0.2:80"]);
    }

    #[test]
    fn a_file_that_is_renamed_into_place_is_taken() {
        let mut file = Fixture::new();
        file.write("[10.0.0.1:80]");
        file.taken();
        let other = file.dir.path().join("new");
        fs::write(&other, "[10.0.0.2:80]").expect("writes");
        fs::rename(other, file.path()).expect("renames");
        assert_eq!(file.taken(), ["10.0.0.2:80"]);
    }

    #[test]
    fn what_is_wrong_is_said_once_and_in_the_words_of_check() {
        let mut file = Fixture::new();
        file.write("- 10.0.0.1:80\n- 10.0.0.300:80\n");
        let why = file.failed();
        assert!(why.contains("error[bad-address]") && why.contains("backends.yaml:2:"), "{why}");
        assert_eq!(file.look(), Look::Same);
        file.write("");
        assert!(file.failed().contains("write []"), "an empty file is not an empty list");
        file.write("[10.0.0.1:80");
        assert!(file.failed().contains("error[syntax]"), "half a list");
        file.write("[10.0.0.1:80]");
        assert_eq!(file.taken(), ["10.0.0.1:80"]);
    }

    #[test]
    fn a_missing_file_is_a_failure_and_news_when_it_is_back() {
        let mut file = Fixture::new();
        assert!(file.failed().contains("No such file"));
        file.write("[10.0.0.1:80]");
        file.taken();
        fs::remove_file(file.path()).expect("removes");
        assert!(file.failed().contains("No such file"));
        file.write("[10.0.0.1:80]");
        assert_eq!(file.taken(), ["10.0.0.1:80"], "the writer of before is told to have recovered");
        fs::remove_file(file.path()).and_then(|()| fs::create_dir(file.path())).expect("a folder in its place");
        assert!(file.failed().contains("it is not a file"));
    }

    #[test]
    fn too_large_and_too_long_are_said() {
        let mut file = Fixture::new();
        file.write(&format!("[]\n#{}", "x".repeat(8 << 20)));
        assert!(file.failed().contains("larger than 8 MiB"));
        let long: String = (0..=MOST).map(|n| format!("- 10.{}.{}.1:80\n", n / 250, n % 250)).collect();
        file.write(&long);
        assert!(file.failed().contains("10001 backends; at most 10000"));
    }

    #[test]
    fn a_file_that_is_being_written_is_not_read() {
        let mut file = Fixture::new();
        let path = file.path();
        let (go, stop) = std::sync::mpsc::channel::<()>();
        let writer = std::thread::spawn(move || {
            let mut lines = 0;
            // A writer that adds a line every millisecond, each beginning being a right list of its own.
            let mut out = File::create(path).expect("creates");
            while stop.try_recv().is_err() && lines < 5_000 {
                lines += 1;
                io::Write::write_all(&mut out, format!("- 10.{}.{}.1:80\n", lines / 250, lines % 250).as_bytes())
                    .expect("writes");
                std::thread::sleep(Duration::from_millis(1));
            }
            lines
        });
        while !file.path().exists() {
            std::thread::yield_now();
        }
        assert_eq!(file.look(), Look::Same, "it is being written");
        go.send(()).expect("it writes");
        let lines = writer.join().expect("no panic");
        assert_eq!(file.taken().len(), lines, "all of it or nothing");
    }
}

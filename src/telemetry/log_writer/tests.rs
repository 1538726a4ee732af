//! The writer against files, a stalled pipe and a full disk.

use std::{
    fs,
    io::Read,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

use super::*;

const PATIENCE: Duration = Duration::from_secs(20);

/// A directory of its own for each test, removed afterwards.
struct Directory(PathBuf);

impl Directory {
    fn new(test: &str) -> Self {
        let path = std::env::temp_dir().join(format!("rrlb-log-{}-{test}", std::process::id()));
        fs::create_dir_all(&path).expect("a temporary directory");
        Self(path)
    }

    fn file(&self) -> PathBuf {
        self.0.join("access.log")
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn open(path: &Path, limit: usize) -> (LogWriter, Arc<LogCounts>) {
    let counts = Arc::new(LogCounts::default());
    let writer = LogWriter::open(Target::File(path.into()), limit, Arc::clone(&counts)).expect("opens");
    (writer, counts)
}

fn text_line(handle: &LogHandle, text: &str) {
    handle.line(|buffer, _| {
        buffer.extend_from_slice(text.as_bytes());
        buffer.push(b'\n');
    });
}

fn eventually(what: &str, condition: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        thread::yield_now();
    }
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[test]
fn a_line_is_written_when_traffic_stops() {
    let directory = Directory::new("idle");
    let (writer, counts) = open(&directory.file(), DEFAULT_LIMIT);
    let handle = writer.handle();
    text_line(&handle, "before the start");
    writer.start().expect("starts");
    eventually("the first line", || read(&directory.file()) == "before the start\n");
    text_line(&handle, "later");
    eventually("the second line", || read(&directory.file()) == "before the start\nlater\n");
    eventually("the count", || counts.written.value() == 2);
    let mode = fs::metadata(directory.file()).expect("exists").permissions().mode();
    assert_eq!(mode & 0o137, 0, "no more than 0640: {mode:o}");
    assert!(writer.shutdown(PATIENCE));
}

#[test]
fn room_for_lines_is_given_up_and_no_line_with_it() {
    let directory = Directory::new("forget");
    let (writer, counts) = open(&directory.file(), DEFAULT_LIMIT);
    let handle = writer.handle();
    text_line(&handle, "waits");
    handle.forget();
    writer.start().expect("starts");
    let room = || {
        let slot = lock(&handle.slot);
        slot.buffer.capacity() + slot.spare.capacity()
    };
    for count in 1..=3 {
        eventually("the line", || counts.written.value() == count);
        eventually("room for the next", || room() > 0);
        handle.forget();
        assert_eq!(room(), 0);
        text_line(&handle, "comes later");
    }
    assert!(writer.shutdown(PATIENCE));
    assert_eq!(read(&directory.file()), "waits\ncomes later\ncomes later\ncomes later\n");
}

#[test]
fn every_line_of_every_worker_arrives_whole() {
    let directory = Directory::new("workers");
    let (writer, counts) = open(&directory.file(), usize::MAX);
    writer.start().expect("starts");
    let workers: Vec<_> = (0..4)
        .map(|worker| {
            let handle = writer.handle();
            thread::spawn(move || (0..5_000).for_each(|n| text_line(&handle, &format!("worker {worker} line {n}"))))
        })
        .collect();
    workers.into_iter().for_each(|worker| worker.join().expect("no panic"));
    assert!(writer.shutdown(PATIENCE));
    let text = read(&directory.file());
    for worker in 0..4 {
        let prefix = format!("worker {worker} line ");
        let numbers = text.lines().filter_map(|line| line.strip_prefix(&prefix)).map(|number| number.parse::<usize>());
        assert!(numbers.eq((0..5_000).map(Ok)), "worker {worker}'s lines in order");
    }
    assert_eq!((counts.written.value(), counts.dropped.value()), (20_000, 0));
    assert!(lock(&writer.shared.slots).is_empty(), "buffers of workers that are gone are given back");
}

#[test]
fn reopening_follows_a_rename_and_survives_a_failure() {
    let directory = Directory::new("reopen");
    let (file, moved) = (directory.file(), directory.0.join("access.log.1"));
    let (writer, _) = open(&file, DEFAULT_LIMIT);
    writer.start().expect("starts");
    let handle = writer.handle();
    text_line(&handle, "one");
    eventually("the line", || read(&file) == "one\n");
    fs::rename(&file, &moved).expect("renames");
    text_line(&handle, "two");
    eventually("the old file", || read(&moved) == "one\ntwo\n");
    writer.reopen();
    eventually("the new file", || file.exists());
    text_line(&handle, "three");
    eventually("the new line", || read(&file) == "three\n");

    fs::rename(&file, &moved).expect("renames");
    fs::create_dir(&file).expect("a directory cannot be opened for writing");
    writer.reopen();
    eventually("the failure is behind", || !lock(&writer.shared.state).reopen);
    text_line(&handle, "four");
    assert!(writer.shutdown(PATIENCE));
    assert_eq!(read(&moved), "three\nfour\n");
}

#[test]
fn a_stalled_reader_costs_lines_and_neither_memory_nor_time() {
    const LIMIT: usize = 256 * 1024;
    const LINES: u64 = 20_000;
    let directory = Directory::new("fifo");
    let made = std::process::Command::new("mkfifo").arg(directory.file()).status().expect("mkfifo");
    assert!(made.success());
    // Open for reading and writing, so that neither side waits for the other.
    let mut pipe = OpenOptions::new().read(true).write(true).open(directory.file()).expect("opens");
    let (writer, counts) = open(&directory.file(), LIMIT);
    writer.start().expect("starts");
    let handle = writer.handle();
    let line = "x".repeat(199);
    for _ in 0..LINES {
        text_line(&handle, &line);
        assert!(writer.shared.pending.load(Ordering::Relaxed) <= LIMIT + 200);
        assert!(lock(&handle.slot).buffer.capacity() <= 2 * (LIMIT + 200));
    }
    assert!(counts.dropped.value() > 0);
    assert!(!writer.shutdown(Duration::from_millis(1)), "the pipe is full");
    let reader = thread::spawn(move || {
        let mut lines = 0;
        let mut chunk = vec![0; 64 * 1024];
        while lines < LINES {
            let count = pipe.read(&mut chunk).expect("reads");
            lines += line_count(&chunk[..count]);
            if chunk[..count].ends_with(b"end\n") {
                return lines - 1;
            }
        }
        lines
    });
    assert!(writer.shutdown(PATIENCE));
    let mut end = OpenOptions::new().append(true).open(directory.file()).expect("opens");
    end.write_all(b"end\n").expect("writes");
    assert_eq!(reader.join().expect("no panic"), counts.written.value());
    assert_eq!(counts.written.value() + counts.dropped.value(), LINES);
}

#[test]
fn a_full_disk_costs_lines_and_is_survived() {
    let (writer, counts) = open(Path::new("/dev/full"), DEFAULT_LIMIT);
    writer.start().expect("starts");
    let handle = writer.handle();
    (0..3).for_each(|_| text_line(&handle, "lost"));
    eventually("the count", || counts.dropped.value() == 3);
    eventually("nothing to be pending", || writer.shared.pending.load(Ordering::Relaxed) == 0);
    assert!(writer.shutdown(PATIENCE));
}

#[test]
fn what_was_never_started_still_writes_its_lines() {
    let directory = Directory::new("unstarted");
    let (writer, _) = open(&directory.file(), DEFAULT_LIMIT);
    text_line(&writer.handle(), "only");
    assert!(writer.shutdown(PATIENCE));
    assert_eq!(read(&directory.file()), "only\n");
    assert!(LogWriter::open(Target::File("/proc/none/x".into()), 1, Arc::default()).is_err());
}

//! Lines from workers to a file, off the request path. Each worker appends to one of two buffers of its own; one thread takes
//! the full one, while the worker fills the other, and writes. A full memory share or a failing disk costs lines, which are counted, and
//! never a request's time. The first line into an empty buffer wakes the thread, so that no timer runs while there is
//! no traffic and no line stays unwritten when traffic stops.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    mem,
    os::unix::fs::OpenOptionsExt,
    path::PathBuf,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{access_log::ClockText, cell::Counter};

/// How long a line waits for company before it is written.
const BATCH_TIME: Duration = Duration::from_millis(200);

/// A buffer of this size is written at once.
const BATCH_BYTES: usize = 64 * 1024;

/// Lines in memory, those being written included, where nothing else is asked for: about 20,000 lines.
pub const DEFAULT_LIMIT: usize = 8 * 1024 * 1024;

/// A failing disk is reported this often.
const REPORT_EVERY: Duration = Duration::from_secs(60);

/// How long a target that would block is left alone; only where somebody made standard output non-blocking.
const BUSY_PAUSE: Duration = Duration::from_millis(10);

/// Where lines go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Appended to this file, made with mode 0640.
    File(PathBuf),
    /// Standard output.
    Stdout,
}

/// Lines so far, for the metrics.
#[derive(Debug, Default)]
pub struct LogCounts {
    /// Lines that reached the target.
    pub written: Counter,
    /// Lines that did not: no memory left for them, or the target failed.
    pub dropped: Counter,
}

/// The writer. Made before the process forks or gives up privileges, started afterwards.
#[derive(Debug)]
pub struct LogWriter {
    shared: Arc<Shared>,
}

impl LogWriter {
    /// Opens the target. `limit`: bytes of lines in memory at most, [`DEFAULT_LIMIT`] unless there is a reason.
    ///
    /// # Errors
    /// The file cannot be opened for appending.
    pub fn open(target: Target, limit: usize, counts: Arc<LogCounts>) -> io::Result<Self> {
        let sink = Sink::open(&target)?;
        let state = State { idle_sink: Some(sink), ..State::default() };
        let shared = Shared {
            target,
            limit,
            counts,
            pending: AtomicUsize::new(0),
            slots: Mutex::default(),
            state: Mutex::new(state),
            work: Condvar::new(),
            ended: Condvar::new(),
        };
        Ok(Self { shared: Arc::new(shared) })
    }

    /// A handle for one worker. Lines may be given before the start; they wait in memory.
    pub fn handle(&self) -> LogHandle {
        let slot = Arc::new(Mutex::default());
        lock(&self.shared.slots).push(Arc::clone(&slot));
        LogHandle { shared: Arc::clone(&self.shared), slot }
    }

    /// Starts the thread; again, or after the shutdown, does nothing.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn start(&self) -> io::Result<()> {
        let Some(sink) = lock(&self.shared.state).idle_sink.take() else { return Ok(()) };
        let shared = Arc::clone(&self.shared);
        thread::Builder::new().name("access-log".into()).spawn(move || write_lines(&shared, sink)).map(drop)
    }

    /// Has the file opened anew, as after a rotation. Where that fails the old one is kept and the failure logged.
    pub fn reopen(&self) {
        lock(&self.shared.state).reopen = true;
        self.shared.work.notify_one();
    }

    /// Writes what is left and ends the thread. `false` if that took longer than `patience`, as with a reader that
    /// has stalled.
    pub fn shutdown(&self, patience: Duration) -> bool {
        let mut state = lock(&self.shared.state);
        state.stop = true;
        if let Some(sink) = state.idle_sink.take() {
            drop(state);
            write_lines(&self.shared, sink); // never started: no thread, but perhaps lines
            return true;
        }
        self.shared.work.notify_one();
        let waited = self.shared.ended.wait_timeout_while(state, patience, |state| !state.ended);
        waited.unwrap_or_else(PoisonError::into_inner).0.ended
    }
}

/// One worker's way to the writer.
#[derive(Debug)]
pub struct LogHandle {
    shared: Arc<Shared>,
    slot: Arc<Mutex<Slot>>,
}

impl LogHandle {
    /// Takes one line, which `write` appends with its line feed. Never waits for I/O: the lock is this worker's own,
    /// but for the moment in which the writer swaps the buffer. Where the memory share is used up the line is
    /// dropped and counted.
    pub fn line(&self, write: impl FnOnce(&mut Vec<u8>, &mut ClockText)) {
        let mut slot = lock(&self.slot);
        let Slot { buffer, clock, lines, .. } = &mut *slot;
        // Relaxed: a limit, not a hand-over; workers may pass it by a line each.
        if self.shared.pending.load(Ordering::Relaxed) >= self.shared.limit {
            self.shared.counts.dropped.increment();
            return;
        }
        let before = buffer.len();
        write(buffer, clock);
        *lines += 1;
        let after = buffer.len();
        self.shared.pending.fetch_add(after - before, Ordering::Relaxed);
        drop(slot);
        let full = before < BATCH_BYTES && after >= BATCH_BYTES;
        if before == 0 || full {
            let mut state = lock(&self.shared.state);
            state.lines = true;
            state.full |= full;
            drop(state);
            self.shared.work.notify_one();
        }
    }

    /// Gives up the room that is kept for lines to come. For the worker, whose memory it is.
    pub fn forget(&self) {
        let mut slot = lock(&self.slot);
        slot.spare = Vec::new();
        if slot.buffer.is_empty() {
            slot.buffer = Vec::new();
        }
    }
}

#[derive(Debug, Default)]
struct Slot {
    buffer: Vec<u8>,
    /// Empty; without room while its lines are being written. Not shared by all: whose memory it is can give it back.
    spare: Vec<u8>,
    clock: ClockText,
    lines: u64,
}

#[derive(Debug)]
struct Shared {
    target: Target,
    limit: usize,
    counts: Arc<LogCounts>,
    /// Bytes in all buffers, the one being written included.
    pending: AtomicUsize,
    slots: Mutex<Vec<Arc<Mutex<Slot>>>>,
    state: Mutex<State>,
    work: Condvar,
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The open target until the thread takes it over.
    idle_sink: Option<Sink>,
    /// Some buffer has lines.
    lines: bool,
    /// Some buffer should be written at once.
    full: bool,
    reopen: bool,
    stop: bool,
    ended: bool,
}

/// Nothing under these locks panics half-way through a change, so what a panicking thread left is sound.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread: waits for lines, then for company, then writes everything there is.
fn write_lines(shared: &Shared, mut sink: Sink) {
    loop {
        let state = lock(&shared.state);
        let idle = |state: &mut State| !(state.lines || state.reopen || state.stop);
        let state = shared.work.wait_while(state, idle).unwrap_or_else(PoisonError::into_inner);
        let alone = |state: &mut State| !(state.full || state.reopen || state.stop);
        let waited = shared.work.wait_timeout_while(state, BATCH_TIME, alone);
        let mut state = waited.unwrap_or_else(PoisonError::into_inner).0;
        // Reset before the buffers are taken: a line that comes meanwhile sets it again.
        (state.lines, state.full) = (false, false);
        let (reopen, stop) = (mem::take(&mut state.reopen), state.stop);
        drop(state);
        write_slots(shared, &mut sink);
        if reopen {
            sink.reopen(&shared.target);
        }
        if stop {
            lock(&shared.state).ended = true;
            shared.ended.notify_all();
            return;
        }
    }
}

fn write_slots(shared: &Shared, sink: &mut Sink) {
    let slots: Vec<_> = lock(&shared.slots).clone();
    for slot in &slots {
        let (mut text, lines) = {
            let mut slot = lock(slot);
            if slot.buffer.is_empty() {
                continue;
            }
            let spare = mem::take(&mut slot.spare);
            (mem::replace(&mut slot.buffer, spare), mem::take(&mut slot.lines))
        };
        let lost = sink.write(&text);
        shared.counts.written.add(lines.saturating_sub(lost));
        shared.counts.dropped.add(lost);
        // Saturating: bytes of a line whose writing panicked were never counted in.
        let less = |pending: usize| Some(pending.saturating_sub(text.len()));
        let _ = shared.pending.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        text.clear();
        text.shrink_to(4 * BATCH_BYTES); // a stalled target may have let it grow
        lock(slot).spare = text;
    }
    drop(slots);
    // A handle that is gone gives no more lines; the list alone still holds its buffer.
    lock(&shared.slots).retain(|slot| Arc::strong_count(slot) > 1 || !lock(slot).buffer.is_empty());
}

fn line_count(text: &[u8]) -> u64 {
    text.iter().filter(|byte| **byte == b'\n').count() as u64
}

/// The open target.
#[derive(Debug)]
struct Sink {
    file: Option<File>,
    /// The last write ended within a line.
    torn: bool,
    reported: Option<Instant>,
}

impl Sink {
    fn open(target: &Target) -> io::Result<Self> {
        let file = match target {
            Target::File(path) => Some(OpenOptions::new().append(true).create(true).mode(0o640).open(path)?),
            Target::Stdout => None,
        };
        Ok(Self { file, torn: false, reported: None })
    }

    fn reopen(&mut self, target: &Target) {
        match Self::open(target) {
            Ok(opened) => *self = opened,
            Err(error) => log::error!("access log not reopened, the old file is kept: {error}"),
        }
    }

    /// Writes whole lines and returns how many were lost.
    fn write(&mut self, lines: &[u8]) -> u64 {
        if self.torn && self.write_all(b"\n").is_err() {
            return line_count(lines);
        }
        let Err((written, error)) = self.write_all(lines) else {
            self.torn = false;
            return 0;
        };
        let (done, rest) = lines.split_at(written.min(lines.len()));
        self.torn = done.last().map_or(self.torn, |last| *last != b'\n');
        let lost = line_count(rest);
        if self.reported.is_none_or(|reported| reported.elapsed() >= REPORT_EVERY) {
            self.reported = Some(Instant::now());
            log::error!("access log not written, {lost} lines lost now (all are counted in the metrics): {error}");
        }
        lost
    }

    /// # Errors
    /// How many bytes were written, and why no more.
    fn write_all(&mut self, bytes: &[u8]) -> Result<(), (usize, io::Error)> {
        let mut written = 0;
        while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
            match self.write_some(rest) {
                Ok(0) => return Err((written, io::ErrorKind::WriteZero.into())),
                Ok(count) => written += count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(BUSY_PAUSE),
                Err(error) => return Err((written, error)),
            }
        }
        Ok(())
    }

    fn write_some(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.file {
            Some(file) => file.write(bytes),
            None => {
                // Standard output keeps a line buffer of its own; flushing makes its errors ours.
                let mut stdout = io::stdout().lock();
                let written = stdout.write(bytes)?;
                stdout.flush()?;
                Ok(written)
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! The process's own log on standard error, written by a thread of its own: a reader of standard error that stalls
//! must not stop the workers. Bounded: what does not fit is counted and said later.

use std::{
    io::{self, Write},
    sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError},
    thread,
    time::Duration,
};

/// Bytes of lines that wait at most.
const LIMIT: usize = 1024 * 1024;

/// A handle on the log; all clones are one log.
#[derive(Clone, Debug, Default)]
pub struct ProcessLog(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    queue: Mutex<Queue>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    waiting: Vec<u8>,
    dropped: u64,
    /// A thread writes; until it is started lines are written by who logs them.
    detached: bool,
    writing: bool,
}

impl ProcessLog {
    /// From now on a thread writes. To be called after a possible fork, which would lose the thread.
    ///
    /// # Errors
    /// The system gives no thread.
    pub fn detach(&self) -> io::Result<()> {
        let mut queue = self.lock();
        if queue.detached {
            return Ok(());
        }
        let log = self.clone();
        thread::Builder::new().name("process-log".into()).spawn(move || log.write_lines())?;
        queue.detached = true;
        Ok(())
    }

    /// Waits until everything is written, for at most `patience`.
    pub fn flush(&self, patience: Duration) {
        let queue = self.lock();
        let busy = |queue: &mut Queue| queue.detached && (queue.writing || !queue.waiting.is_empty());
        drop(self.0.changed.wait_timeout_while(queue, patience, busy));
    }

    fn write_lines(&self) {
        let mut lines = Vec::new();
        loop {
            let mut queue = self.lock();
            queue.writing = false;
            self.0.changed.notify_all();
            while queue.waiting.is_empty() {
                queue = self.0.changed.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            std::mem::swap(&mut lines, &mut queue.waiting);
            queue.writing = true;
            let dropped = std::mem::take(&mut queue.dropped);
            drop(queue);
            // Where standard error is gone there is nobody left to tell.
            let _ = io::stderr().write_all(&lines);
            if dropped > 0 {
                let _ =
                    writeln!(io::stderr(), "[{dropped} lines of this log were dropped: it was not read fast enough]");
            }
            lines.clear();
        }
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.0.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for ProcessLog {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut queue = self.lock();
        if !queue.detached {
            drop(queue);
            return io::stderr().write(line);
        }
        if queue.waiting.len() + line.len() > LIMIT {
            queue.dropped += 1;
        } else {
            queue.waiting.extend_from_slice(line);
            self.0.changed.notify_all();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_dropped_and_counted() {
        let mut log = ProcessLog::default();
        // As if the thread were stuck in a write.
        log.lock().detached = true;
        let line = vec![b'x'; 1000];
        for _ in 0..2000 {
            log.write_all(&line).expect("never fails");
        }
        let queue = log.lock();
        assert!(queue.waiting.len() <= LIMIT);
        assert_eq!(queue.waiting.len() / 1000 + queue.dropped as usize, 2000);
    }
}

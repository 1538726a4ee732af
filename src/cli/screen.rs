//! Where commands print: results to standard output, what is said beside them to standard error. Knows what a terminal
//! may be sent.

use std::{
    future::Future,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use tokio::time::{Instant, MissedTickBehavior, interval_at};

use super::failure::Failure;

/// Standard output and error, and what they can do.
pub(super) struct Screen {
    out: Box<dyn Write>,
    err: Box<dyn Write>,
    /// Colours may be sent to standard output.
    pub(super) colour: bool,
    /// Standard output may be painted over.
    pub(super) repaint: bool,
    /// Progress may be written to standard error, over and over on one line.
    progress: bool,
    /// Between two reports of progress, and two paintings of `--watch`.
    pub(super) pace: Duration,
    shown: bool,
}

impl Screen {
    /// The process's own.
    pub(super) fn standard() -> Self {
        let (out, err) = (io::stdout().is_terminal(), io::stderr().is_terminal());
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self {
            out: Box::new(io::stdout()),
            err: Box::new(io::stderr()),
            colour: out && !dumb && !set("NO_COLOR"),
            repaint: out && !dumb,
            progress: err && !dumb,
            pace: Duration::from_secs(1),
            shown: false,
        }
    }

    /// For tests.
    #[cfg(test)]
    pub(super) fn new(out: Box<dyn Write>, err: Box<dyn Write>, terminal: bool, pace: Duration) -> Self {
        Self { out, err, colour: terminal, repaint: terminal, progress: terminal, pace, shown: false }
    }

    /// Prints a result, with a line feed at its end.
    ///
    /// # Errors
    /// Nobody reads it any more.
    pub(super) fn print(&mut self, text: &str) -> Result<(), Failure> {
        self.clear();
        self.out.write_all(text.as_bytes())?;
        if !text.is_empty() && !text.ends_with('\n') {
            self.out.write_all(b"\n")?;
        }
        Ok(self.out.flush()?)
    }

    /// Prints in place of what was printed before, where that can be done.
    ///
    /// # Errors
    /// As [`Screen::print`].
    pub(super) fn paint(&mut self, text: &str) -> Result<(), Failure> {
        if self.repaint {
            // To the corner, line by line with the rest of each cleared, then whatever is below.
            let text = text.replace('\n', "\x1b[K\n");
            return self.print(&format!("\x1b[H{text}\x1b[J"));
        }
        self.print(&format!("{text}\n"))
    }

    /// Says something beside the result.
    pub(super) fn note(&mut self, text: &str) {
        self.clear();
        let end = if text.is_empty() || text.ends_with('\n') { "" } else { "\n" };
        // Nothing can be said about a standard error that is gone.
        let _ = write!(self.err, "{text}{end}");
    }

    /// Shows how far something is, where somebody looks.
    pub(super) fn progress(&mut self, text: &str) {
        if self.progress {
            let _ = write!(self.err, "\r{text}\x1b[K");
            let _ = self.err.flush();
            self.shown = true;
        }
    }

    /// Waits, and shows from the first second on that and for how long.
    pub(super) async fn waiting<T>(&mut self, what: &str, work: impl Future<Output = T>) -> T {
        let begun = Instant::now();
        let mut ticks = interval_at(begun + self.pace, self.pace);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        tokio::pin!(work);
        loop {
            tokio::select! {
                biased;
                done = &mut work => {
                    self.clear();
                    return done;
                }
                _ = ticks.tick() => self.progress(&format!("{what}, {} s", begun.elapsed().as_secs())),
            }
        }
    }

    fn clear(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(self.err, "\r\x1b[K");
            let _ = self.err.flush();
        }
    }
}

//! Starts the process that is to take over, and watches it until it serves. One that ends, hangs or cannot be started
//! is put away, and this process goes on as if nothing had been asked.

use std::{
    collections::VecDeque,
    env,
    io::{self, Read, Write},
    mem,
    os::{fd::AsRawFd, unix::process::CommandExt},
    path::{Path, PathBuf},
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use tokio::sync::watch;

use super::{notify, process::LOG_FD};
use crate::service::admin::operator::{OperatorError, Upgrade, Upgraded};

/// How long a successor may take until it serves.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked after.
const LOOK: Duration = Duration::from_millis(10);
/// How long the end of a process may take to be known everywhere.
const AFTERMATH: Duration = Duration::from_secs(2);
/// Of the last words of a successor.
const LINES: usize = 20;
const LINES_SIZE: usize = 8 << 10;

/// The one place where successors are started.
#[derive(Clone)]
pub(super) struct Successors(Arc<Inner>);

struct Inner {
    /// Absolute: the working directory may be another by now.
    config: PathBuf,
    /// The process that has taken over, which may be one that was started by hand.
    served: watch::Sender<Option<i32>>,
    /// Whether a hand-over is under way.
    claimed: Arc<AtomicBool>,
    busy: AtomicBool,
    child: Mutex<Option<Child>>,
}

impl Successors {
    /// Successors are to run with this file.
    pub(super) fn new(config: &Path) -> Self {
        Self(Arc::new(Inner {
            config: std::path::absolute(config).unwrap_or_else(|_| config.to_owned()),
            served: watch::channel(None).0,
            claimed: Arc::default(),
            busy: AtomicBool::new(false),
            child: Mutex::new(None),
        }))
    }

    /// Starts a successor and waits until it serves; this process drains then. What happens happens also where nobody
    /// waits for it any more.
    ///
    /// # Errors
    /// Another one is under way. The successor could not be started, ended, or took too long: it is gone then, and this
    /// process goes on.
    pub(super) async fn start(&self, how: Upgrade) -> Result<Upgraded, OperatorError> {
        if self.0.claimed.load(Ordering::Acquire) || self.0.busy.swap(true, Ordering::AcqRel) {
            return Err(OperatorError::Busy("upgrade"));
        }
        let inner = self.0.clone();
        let outcome = tokio::spawn(async move {
            let busy = Busy(&inner.busy);
            let outcome = inner.run(how).await;
            drop(busy);
            if outcome.is_err() {
                notify::status("serving; the last upgrade failed");
            }
            outcome
        });
        outcome.await.unwrap_or_else(|error| Err(OperatorError::Upgrade(error.to_string())))
    }

    /// Whether a hand-over is under way; kept by who hands over.
    pub(super) fn claimed(&self) -> &Arc<AtomicBool> {
        &self.0.claimed
    }

    /// Whether a successor is being started or has asked for the listeners.
    pub(super) fn under_way(&self) -> bool {
        self.0.busy.load(Ordering::Acquire) || self.0.claimed.load(Ordering::Acquire)
    }

    /// A process has taken over.
    pub(super) fn served(&self, pid: i32) {
        self.0.served.send_replace(Some(pid));
    }

    /// This process is to end with no successor: the one that was started here ends too. Returns whether there was one.
    pub(super) fn call_off(&self) -> bool {
        let mut child = self.0.lock();
        child.as_mut().is_some_and(|child| kill(child) && child.wait().is_ok())
    }
}

/// Held while a successor is started.
struct Busy<'a>(&'a AtomicBool);

impl Drop for Busy<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// How a successor's start ended.
enum End {
    Exited(ExitStatus),
    Lost(io::Error),
    Served(i32),
    TimedOut,
}

impl Inner {
    async fn run(&self, how: Upgrade) -> Result<Upgraded, OperatorError> {
        let failed = OperatorError::Upgrade;
        let binary = match how.binary {
            Some(binary) => binary,
            None => own_binary().map_err(|error| failed(format!("cannot tell what binary runs: {error}")))?,
        };
        notify::status("upgrading");
        let timeout = how.timeout.unwrap_or(PATIENCE);
        let mut served = self.served.subscribe();
        let (pid, words) =
            self.spawn(&binary).map_err(|error| failed(format!("cannot start {}: {error}", binary.display())))?;
        log::info!("upgrade: {} is process {pid}; it has {timeout:?} until it must serve", binary.display());
        let end = self.watch(Instant::now() + timeout, &mut served).await;
        if let End::Served(pid) = end {
            if self.lock().take().is_some_and(|child| i64::from(child.id()) != i64::from(pid)) {
                log::info!("upgrade: process {pid} was first");
            }
            return Ok(Upgraded { pid: u32::try_from(pid).unwrap_or_default() });
        }
        self.put_away().await;
        let why = match end {
            End::Exited(status) => format!("process {pid} ended before it served ({status})"),
            End::Lost(error) => format!("process {pid} was lost: {error}"),
            End::Served(_) | End::TimedOut => format!("process {pid} did not serve within {timeout:?} and was killed"),
        };
        let last = words.last().await;
        Err(failed(if last.is_empty() { why } else { format!("{why}; its last words:\n{last}\n") }))
    }

    fn spawn(&self, binary: &Path) -> io::Result<(u32, Words)> {
        // Through a pipe, so that the last lines are known; it takes our standard error itself before it serves, as the
        // pipe ends with this process. This copy alone is not closed by exec.
        let log = nix::unistd::dup(io::stderr())?;
        let mut child = Command::new(binary)
            .arg("-u")
            .arg("-c")
            .arg(&self.config)
            .env(LOG_FD, log.as_raw_fd().to_string())
            // It names this process; the successor is to be watched as well.
            .env_remove("WATCHDOG_PID")
            // It may be a script that starts rrlb: what it has started is put away with it.
            .process_group(0)
            .stdin(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        drop(log);
        let pid = child.id();
        let pipe = child.stderr.take();
        *self.lock() = Some(child);
        Ok((pid, Words::of(pipe)))
    }

    async fn watch(&self, deadline: Instant, served: &mut watch::Receiver<Option<i32>>) -> End {
        let mut exited: Option<(ExitStatus, Instant)> = None;
        loop {
            if let Some(pid) = *served.borrow_and_update() {
                return End::Served(pid);
            }
            let now = Instant::now();
            match &exited {
                // One that goes to the background ends well, when the one behind it serves.
                Some((status, since)) if !status.success() || now.duration_since(*since) >= AFTERMATH => {
                    return End::Exited(*status);
                }
                Some(_) => {}
                None => match self.ended() {
                    Ok(status) => exited = status.map(|status| (status, now)),
                    Err(error) => return End::Lost(error),
                },
            }
            if now >= deadline {
                return End::TimedOut;
            }
            tokio::select! {
                _ = served.changed() => {}
                () = tokio::time::sleep(LOOK) => {}
            }
        }
    }

    fn ended(&self) -> io::Result<Option<ExitStatus>> {
        match self.lock().as_mut() {
            Some(child) => child.try_wait(),
            None => Ok(None),
        }
    }

    /// Kills the successor if it is still there, and waits until it and its claim are gone.
    async fn put_away(&self) {
        if let Some(child) = self.lock().as_mut() {
            kill(child);
        }
        let began = Instant::now();
        while began.elapsed() < AFTERMATH && (matches!(self.ended(), Ok(None)) || self.claimed.load(Ordering::Acquire))
        {
            tokio::time::sleep(LOOK).await;
        }
        *self.lock() = None;
    }

    fn lock(&self) -> MutexGuard<'_, Option<Child>> {
        self.child.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Kills a successor with all that it has started. Returns whether something was there.
fn kill(child: &Child) -> bool {
    // Where it has ended and nothing is left of its group, the number belongs to nobody.
    let group = nix::unistd::Pid::from_raw(child.id().cast_signed());
    nix::sys::signal::killpg(group, nix::sys::signal::SIGKILL).is_ok()
}

/// Whether the successor with this number has ended, and not well. It stays a zombie: the service manager, who is its parent
/// when this process has gone, is to learn how it ended. Of one that was not started here nobody knows.
pub(super) fn has_failed(pid: i32) -> bool {
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: of zeros it says that nothing has ended; the call fills it in, and does nothing else.
    let mut ended: libc::siginfo_t = unsafe { mem::zeroed() };
    // SAFETY: as above; the fields read are those of SIGCHLD.
    unsafe {
        libc::waitid(libc::P_PID, pid.cast_unsigned(), &raw mut ended, options) == 0
            && ended.si_pid() == pid
            && (ended.si_code != libc::CLD_EXITED || ended.si_status() != 0)
    }
}

/// The binary that runs. One that was replaced on the disk since is known under its old path with a mark behind it: what
/// stands there now is the new release.
fn own_binary() -> io::Result<PathBuf> {
    let path = env::current_exe()?;
    let original = path.to_str().and_then(|path| path.strip_suffix(" (deleted)")).map(PathBuf::from);
    match original {
        Some(original) if !path.exists() && original.exists() => Ok(original),
        Some(_) if !path.exists() => {
            let called = env::args_os().next().map(PathBuf::from).filter(|called| called.is_absolute());
            called.ok_or_else(|| io::Error::other(format!("{} is gone", path.display())))
        }
        _ => Ok(path),
    }
}

/// What a process writes to standard error: passed on to ours, and its end kept.
struct Words {
    last: Arc<Mutex<VecDeque<u8>>>,
    reader: Option<JoinHandle<()>>,
}

impl Words {
    fn of(pipe: Option<ChildStderr>) -> Self {
        let last = Arc::new(Mutex::new(VecDeque::new()));
        let kept = last.clone();
        let read = move |pipe| pass_on(pipe, &kept);
        let reader = pipe.map(|pipe| thread::Builder::new().name("successor".into()).spawn(move || read(pipe)));
        Self { last, reader: reader.and_then(Result::ok) }
    }

    /// The last lines, of all that was said.
    async fn last(self) -> String {
        let began = Instant::now();
        // A process behind it may hold the pipe open.
        while self.reader.as_ref().is_some_and(|reader| !reader.is_finished()) && began.elapsed() < AFTERMATH {
            tokio::time::sleep(LOOK).await;
        }
        let bytes: Vec<u8> = self.last.lock().unwrap_or_else(PoisonError::into_inner).iter().copied().collect();
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().map(without_priority).filter(|line| !line.trim().is_empty()).collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }
}

/// What a line says, without how grave it is: that is for the journal.
fn without_priority(line: &str) -> &str {
    match line.as_bytes() {
        [b'<', b'0'..=b'7', b'>', ..] => line.get(3..).unwrap_or_default(),
        _ => line,
    }
}

fn pass_on(mut pipe: ChildStderr, last: &Mutex<VecDeque<u8>>) {
    let mut part = [0; 4096];
    loop {
        let part = match pipe.read(&mut part) {
            Ok(0) => return,
            Ok(length) => part.get(..length).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(_) => return,
        };
        let _ = io::stderr().write_all(part);
        let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
        last.extend(part);
        let over = last.len().saturating_sub(LINES_SIZE);
        drop(last.drain(..over));
    }
}

#[cfg(test)]
mod tests;

//! Runs of the binary that end by themselves: `check`, `version`, failing starts.

use std::{
    fs::File,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

/// The binary under test; `RRLB_BIN` at run time names another build of it.
pub fn command() -> Command {
    command_of(&binary())
}

/// Where the binary under test is.
pub fn binary() -> PathBuf {
    std::env::var_os("RRLB_BIN").unwrap_or_else(|| env!("CARGO_BIN_EXE_rrlb").into()).into()
}

/// Another binary, started as the one under test is.
pub fn command_of(binary: &Path) -> Command {
    let mut command = Command::new(binary);
    command.env_remove("RUST_LOG").env_remove("RUST_BACKTRACE").stdin(Stdio::null());
    // SAFETY: prctl is async-signal-safe; a test that dies takes its child along.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
            Ok(())
        })
    };
    command
}

/// A run that has ended.
#[derive(Debug)]
pub struct Finished {
    /// `None` where a signal ended it.
    pub code: Option<i32>,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// From start to end.
    pub took: Duration,
}

impl Finished {
    /// Asserts the exit code, and that nothing looks like a crash.
    pub fn ended_with(self, code: i32) -> Self {
        assert_eq!(self.code, Some(code), "{self:#?}");
        for word in ["panicked", "RUST_BACKTRACE", "stack backtrace"] {
            assert!(!self.stderr.contains(word), "{self:#?}");
        }
        self
    }
}

/// Runs `rrlb` with these arguments to its end.
pub async fn rrlb(args: &[&str]) -> Finished {
    let mut command = command();
    command.args(args);
    finish(command).await
}

/// Runs a command to its end.
pub async fn finish(mut command: Command) -> Finished {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (out, err) = (folder.path().join("stdout"), folder.path().join("stderr"));
    command.stdout(File::create(&out).expect("stdout file")).stderr(File::create(&err).expect("stderr file"));
    let begun = Instant::now();
    let mut child = Reaped(command.spawn().expect("start the binary"));
    let mut code = None;
    let what = format!("{command:?} to end");
    super::wait_until(&what, || match child.0.try_wait().expect("wait for the child") {
        None => false,
        Some(status) => {
            code = status.code();
            true
        }
    })
    .await;
    let took = begun.elapsed();
    Finished { code, stdout: read(&out), stderr: read(&err), took }
}

/// A file's text, whatever it holds; empty where there is none.
pub fn read(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}

/// Kills the child where a test ends before it.
pub struct Reaped(pub Child);

impl Drop for Reaped {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

//! Successors that are shell scripts, and what is told of them.

use std::fs;

use super::*;

struct Scripts(tempfile::TempDir);

impl Scripts {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    fn write(&self, text: &str, mode: u32) -> PathBuf {
        let path = self.0.path().join(format!("binary-{}", fs::read_dir(self.0.path()).expect("a folder").count()));
        // By another process: what this one has open for writing, a child of another test may have too for a moment, and
        // a file that is open for writing cannot be executed.
        let write = format!("printf %s \"$1\" > \"$2\" && chmod {mode:o} \"$2\"");
        let written = Command::new("sh").args(["-c", &write, "sh", text]).arg(&path).status();
        assert!(written.expect("a shell").success());
        path
    }
}

fn how(binary: PathBuf, timeout: u64) -> Upgrade {
    Upgrade { binary: Some(binary), timeout: Some(Duration::from_millis(timeout)) }
}

fn successors() -> Successors {
    Successors::new(Path::new("/etc/rrlb/rrlb.yaml"))
}

async fn refused(successors: &Successors, binary: PathBuf, timeout: u64) -> String {
    match successors.start(how(binary, timeout)).await {
        Err(OperatorError::Upgrade(reason)) => reason,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn one_that_ends_is_told_with_its_last_words_and_the_next_may_try() {
    let (scripts, successors) = (Scripts::new(), successors());
    let text = "#!/bin/sh\nfor n in $(seq 1 30); do echo \"line $n of $*\" >&2; done\nexit 6\n";
    for _ in 0..2 {
        let reason = refused(&successors, scripts.write(text, 0o755), 20_000).await;
        assert!(reason.contains("ended before it served (exit status: 6)"), "{reason}");
        assert!(reason.contains("line 30 of -u -c /etc/rrlb/rrlb.yaml") && !reason.contains("line 5 of"), "{reason}");
    }
}

#[tokio::test]
async fn one_that_hangs_is_killed_and_reaped() {
    let (scripts, successors) = (Scripts::new(), successors());
    let reason = refused(&successors, scripts.write("#!/bin/sh\necho $$ >&2\nexec sleep 1000\n", 0o755), 300).await;
    assert!(reason.contains("did not serve within 300ms"), "{reason}");
    let pid: i32 = reason.lines().last().and_then(|line| line.parse().ok()).expect("the script's number");
    assert!(!Path::new(&format!("/proc/{pid}")).exists(), "still there, or not reaped");
}

#[tokio::test]
async fn what_is_no_program_or_no_rrlb_is_refused() {
    let (scripts, successors) = (Scripts::new(), successors());
    let reason = refused(&successors, scripts.write("#!/bin/sh\n", 0o644), 20_000).await;
    // Root may read what it may not execute; the system says so all the same.
    assert!(reason.contains("cannot start") && reason.contains("ermission denied"), "{reason}");
    let reason = refused(&successors, scripts.write("no program", 0o755), 20_000).await;
    assert!(reason.contains("cannot start") || reason.contains("ended before"), "{reason}");
    let reason = refused(&successors, scripts.0.path().join("missing"), 20_000).await;
    assert!(reason.contains("cannot start") && reason.contains("o such file"), "{reason}");
    let reason = refused(&successors, scripts.write("#!/bin/sh\nexit 0\n", 0o755), 20_000).await;
    assert!(reason.contains("ended before it served (exit status: 0)"), "{reason}");
}

#[tokio::test]
async fn there_is_one_at_a_time_and_whoever_serves_ends_the_wait() {
    let (scripts, successors) = (Scripts::new(), successors());
    let script = scripts.write("#!/bin/sh\nexec sleep 1000\n", 0o755);
    let first = tokio::spawn({
        let (successors, script) = (successors.clone(), script.clone());
        async move { successors.start(how(script, 20_000)).await }
    });
    while successors.0.lock().is_none() {
        tokio::task::yield_now().await;
    }
    assert_eq!(successors.start(how(script.clone(), 20_000)).await, Err(OperatorError::Busy("upgrade")));
    let pid = successors.0.lock().as_ref().map(Child::id).expect("a child");
    successors.served(i32::try_from(pid).expect("a number"));
    assert_eq!(first.await.expect("no panic"), Ok(Upgraded { pid }));
    // Nobody puts away one that serves.
    assert!(Path::new(&format!("/proc/{pid}")).exists());
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid.cast_signed()), nix::sys::signal::SIGKILL).expect("killed");
    successors.claimed().store(true, Ordering::Release);
    assert_eq!(successors.start(how(script, 20_000)).await, Err(OperatorError::Busy("upgrade")), "one by hand");
}

#[tokio::test]
async fn one_that_is_called_off_is_killed() {
    let (scripts, successors) = (Scripts::new(), successors());
    assert!(!successors.call_off());
    let script = scripts.write("#!/bin/sh\nexec sleep 1000\n", 0o755);
    let start = tokio::spawn({
        let successors = successors.clone();
        async move { successors.start(how(script, 20_000)).await }
    });
    while successors.0.lock().is_none() {
        tokio::task::yield_now().await;
    }
    assert!(successors.call_off());
    let end = start.await.expect("no panic");
    assert!(matches!(&end, Err(OperatorError::Upgrade(reason)) if reason.contains("SIGKILL")), "{end:?}");
}

#[tokio::test]
async fn what_a_script_has_started_is_killed_with_it() {
    let (scripts, successors) = (Scripts::new(), successors());
    // The one that is started holds no pipe of ours, so that nobody waits for it.
    let text = "#!/bin/sh\nsleep 1000 2>/dev/null >/dev/null &\necho $! >&2\nwait\n";
    for text in [text, &text.replace("wait", "exit 3")] {
        let reason = refused(&successors, scripts.write(text, 0o755), 300).await;
        let pid: i32 = reason.lines().last().and_then(|line| line.parse().ok()).expect("its number");
        let gone = || {
            let state = fs::read_to_string(format!("/proc/{pid}/stat"));
            state.map_or(true, |state| state.contains(") Z "))
        };
        let began = Instant::now();
        while !gone() {
            assert!(began.elapsed() < Duration::from_secs(10), "still there");
            thread::yield_now();
        }
    }
}

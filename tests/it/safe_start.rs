//! The process's own affairs: pid file, background, user, sockets left behind.

use std::{os::unix::fs::PermissionsExt, path::Path};

use crate::support::{
    http1::get_once,
    origin::Origin,
    proxy::{Config, Proxy},
    run, wait_until,
};

fn pid_in(path: &Path) -> Option<i32> {
    run::read(path).trim().parse().ok()
}

#[tokio::test]
async fn the_pid_file_is_written_in_the_foreground_and_removed_at_the_end() {
    let origin = Origin::echo("a").await;
    let mut proxy = Config::before(&[&origin], "pid_file: <dir>/rrlb.pid").start().await;
    let path = proxy.config.dir().join("rrlb.pid");
    assert_eq!(pid_in(&path), i32::try_from(proxy.pid()).ok());
    proxy.signal(libc::SIGTERM);
    assert!(proxy.ended().await.success());
    assert!(!path.exists());
}

#[tokio::test]
async fn after_an_upgrade_the_pid_file_names_the_new_process() {
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], "pid_file: <dir>/rrlb.pid").start().await;
    let mut proxy = proxy.upgrade().await;
    let path = proxy.config.dir().join("rrlb.pid");
    assert_eq!(pid_in(&path), i32::try_from(proxy.pid()).ok());
    proxy.signal(libc::SIGTERM);
    assert!(proxy.ended().await.success());
    assert!(!path.exists());
}

#[tokio::test]
async fn without_a_pid_file_none_is_written_and_nothing_is_left_behind() {
    let origin = Origin::echo("a").await;
    let mut proxy = Config::before(&[&origin], "listeners: [{ address: \"unix:<dir>/http.sock\" }]").start().await;
    proxy.signal(libc::SIGTERM);
    assert!(proxy.ended().await.success());
    let left: Vec<_> =
        std::fs::read_dir(proxy.config.dir()).expect("folder").map(|e| e.expect("entry").file_name()).collect();
    for gone in ["http.sock", "rrlb.pid"] {
        assert!(!left.iter().any(|name| name == gone), "{left:?}");
    }
    assert!(!proxy.config.dir().join("up/upgrade.sock").exists());
}

#[tokio::test]
async fn d_runs_in_the_background_and_the_pid_file_names_the_daemon() {
    let origin = Origin::echo("a").await;
    let more = "pid_file: <dir>/rrlb.pid\nerror_log: <dir>/error.log";
    let config = Config::before(&[&origin], more);
    let (path, log) = (config.dir().join("rrlb.pid"), config.dir().join("error.log"));
    let mut parent = config.spawn(&["-d"]);
    let _killed = Daemon(path.clone());
    assert!(parent.ended().await.success(), "{}", parent.stderr());
    wait_until("the pid file", || pid_in(&path).is_some()).await;
    let pid = pid_in(&path).expect("just seen");
    assert_ne!(u32::try_from(pid).ok(), Some(parent.pid()), "the pid file names the process that has left");
    crate::support::eventually("the daemon to be ready", async || parent.probe("/readyz").await == Some(200)).await;
    assert_eq!(get_once(parent.listen, "/").await.origin(), "a");
    let stat = run::read(Path::new(&format!("/proc/{pid}/stat")));
    let session = stat.rsplit(") ").next().and_then(|rest| rest.split(' ').nth(3)).and_then(|s| s.parse::<u32>().ok());
    // SAFETY: a plain system call.
    let ours = u32::try_from(unsafe { libc::getsid(0) }).ok();
    assert_ne!(session, ours, "the daemon is in the terminal's session: {stat}");
    // SAFETY: a plain system call on the daemon this test started.
    unsafe { libc::kill(pid, libc::SIGTERM) };
    wait_until("the daemon to leave", || !path.exists()).await;
    assert!(!run::read(&log).contains("panicked"), "{}", run::read(&log));
}

#[tokio::test]
async fn a_daemon_whose_port_is_used_tells_by_its_exit_code() {
    let config = Config::new("upstreams: { app: { backends: [127.0.0.1:9] } }\npid_file: <dir>/rrlb.pid");
    let _killed = Daemon(config.dir().join("rrlb.pid"));
    let taken = std::net::TcpListener::bind(config.listen).expect("bind");
    config.run(&["-d"]).await.ended_with(6);
    drop(taken);
}

/// Kills the daemon that a pid file names, if it is still there.
struct Daemon(std::path::PathBuf);

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = pid_in(&self.0).filter(|pid| *pid > 1) {
            // SAFETY: a plain system call on the daemon this test started.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

#[tokio::test]
async fn user_and_group_are_changed_after_binding() {
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        return; // only root can change the user
    }
    let origin = Origin::echo("a").await;
    let at = std::net::SocketAddr::new(crate::support::address::unused().ip(), 82);
    let more = "user: nobody\nlisteners: [{ address: \"<at>\" }]\npid_file: <dir>/rrlb.pid";
    let config = Config::before(&[&origin], more).put("at", at);
    std::fs::set_permissions(config.dir(), std::fs::Permissions::from_mode(0o777)).expect("mode");
    let proxy = config.start().await;
    assert_eq!(get_once(at, "/").await.origin(), "a");
    let status = run::read(Path::new(&format!("/proc/{}/status", proxy.pid())));
    for line in status.lines().filter(|line| line.starts_with("Uid:") || line.starts_with("Gid:")) {
        assert!(line.split_whitespace().skip(1).all(|id| id == "65534"), "still root: {status}");
    }
    let groups = status.lines().find(|line| line.starts_with("Groups:")).unwrap_or_default();
    assert!(!groups.split_whitespace().skip(1).any(|id| id == "0"), "still in root's group: {groups}");
    for task in std::fs::read_dir(format!("/proc/{}/task", proxy.pid())).expect("threads") {
        let status = run::read(&task.expect("a thread").path().join("status"));
        assert!(status.lines().any(|line| line.starts_with("Uid:\t65534")), "a thread is still root: {status}");
    }
}

#[tokio::test]
async fn an_unknown_user_ends_the_start() {
    let config = Config::new("user: no-such-user-here\nupstreams: { app: { backends: [127.0.0.1:9] } }");
    let finished = config.run(&[]).await;
    assert!(matches!(finished.code, Some(1 | 6)), "{finished:?}");
    assert!(finished.stderr.contains("no-such-user-here"), "{finished:?}");
}

#[tokio::test]
async fn the_default_upgrade_socket_is_in_a_private_folder() {
    let origin = Origin::echo("a").await;
    let config = Config::before(&[&origin], "").without("upgrade_sock");
    let runtime = config.dir().join("run");
    std::fs::create_dir(&runtime).expect("folder");
    std::fs::set_permissions(&runtime, std::fs::Permissions::from_mode(0o700)).expect("mode");
    let mut proxy: Proxy = config.spawn_with(&[], |command| {
        command.env("XDG_RUNTIME_DIR", &runtime);
    });
    proxy.ready().await;
    let mut folders = vec![runtime.clone()];
    let mut sockets = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("folder") {
            let entry = entry.expect("entry");
            let mode = entry.metadata().expect("there").permissions().mode() & 0o777;
            if entry.file_type().expect("a type").is_dir() {
                assert_eq!(mode, 0o700, "{entry:?}");
                folders.push(entry.path());
            } else {
                sockets.push((entry.path(), mode));
            }
        }
    }
    assert_eq!(sockets.len(), 1, "{sockets:?}");
    assert_eq!(sockets[0].1, 0o600, "{sockets:?}");
}

#[tokio::test]
async fn a_process_without_privileges_needs_no_folder_outside_its_own() {
    let origin = Origin::echo("a").await;
    let yaml = format!("upstreams: {{ app: {{ backends: [\"{}\"] }} }}", origin.address);
    let config = Config::new(&yaml).without("upgrade_sock").without("access_log");
    let temporary = config.dir().join("tmp");
    std::fs::create_dir(&temporary).expect("folder");
    let mut proxy = config.spawn_with(&[], |command| {
        command.env_remove("XDG_RUNTIME_DIR").env_remove("HOME").env("TMPDIR", &temporary);
    });
    proxy.ready().await;
    assert_eq!(proxy.get("/").await.origin(), "a");
}

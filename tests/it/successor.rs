//! A process that starts its own successor (SIGUSR2; `rrlb upgrade` does the same): one that crashes, hangs or is none
//! at all leaves the old one serving, and systemd knows which process is the main one.

use std::{
    os::unix::net::UnixDatagram,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use crate::support::{
    http1::{Client, get},
    misbehave,
    origin::Origin,
    proxy::{Config, Proxy},
    run, wait_until,
};

/// A process that is no child of the test; it is killed at the end.
struct Grandchild(i32);

impl Grandchild {
    fn running(&self) -> bool {
        let stat = run::read(Path::new(&format!("/proc/{}/stat", self.0)));
        // One that nobody waits for is gone all the same.
        stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
    }

    fn signal(&self, signal: i32) {
        // SAFETY: a plain system call on a process that this test had started.
        unsafe { libc::kill(self.0, signal) };
    }

    async fn ended(&self) {
        wait_until("the process to end", || !self.running()).await;
    }
}

impl Drop for Grandchild {
    fn drop(&mut self) {
        self.signal(libc::SIGKILL);
    }
}

/// A binary of its own in the configuration's folder, which can be replaced.
fn own_binary(config: &Config) -> PathBuf {
    let path = config.dir().join("bin");
    replace(&path, &run::binary());
    path
}

/// Puts another file in the place of `path`, as an installation does. Copied by another process: one that this process has
/// open for writing could not be executed.
fn replace(path: &Path, by: &Path) {
    let script = "cp \"$1\" \"$2.new\" && chmod 755 \"$2.new\" && mv \"$2.new\" \"$2\"";
    let replaced = Command::new("sh").args(["-c", script, "sh"]).args([by, path]).status().expect("a shell");
    assert!(replaced.success());
}

fn replace_by_script(path: &Path, text: &str) {
    let script = path.with_extension("sh");
    std::fs::write(&script, text).expect("written");
    replace(path, &script);
}

/// The number behind the `count`-th "is process".
async fn started(proxy: &Proxy, count: usize) -> Grandchild {
    let numbers = || -> Vec<i32> {
        let text = proxy.stderr();
        let numbers = text.split("is process ").skip(1);
        numbers.filter_map(|rest| rest.split(';').next()?.parse().ok()).collect()
    };
    wait_until("the start of a successor", || numbers().len() >= count).await;
    Grandchild(numbers()[count - 1])
}

async fn failed(proxy: &Proxy, count: usize) -> String {
    let upgrades = || proxy.stderr().matches("the upgrade failed").count();
    wait_until("the failure in the log", || upgrades() >= count).await;
    assert_eq!(upgrades(), count);
    proxy.stderr()
}

/// Requests on connections of their own until the end.
struct Load(Arc<AtomicBool>, Arc<AtomicUsize>, tokio::task::JoinHandle<Vec<String>>);

impl Load {
    fn on(proxy: &Proxy) -> Self {
        let (stop, done, to) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)), proxy.listen);
        let (stopped, count) = (stop.clone(), done.clone());
        let task = tokio::spawn(async move {
            let mut failures = Vec::new();
            while !stopped.load(Ordering::SeqCst) {
                match async { Client::try_connect(to).await?.try_get("/").await }.await {
                    Ok(reply) if reply.status() == 200 => {}
                    Ok(reply) => failures.push(reply.start),
                    Err(error) => failures.push(error.to_string()),
                }
                count.fetch_add(1, Ordering::SeqCst);
            }
            failures
        });
        Self(stop, done, task)
    }

    async fn goes_on(&self) {
        let before = self.1.load(Ordering::SeqCst);
        wait_until("requests", || self.1.load(Ordering::SeqCst) > before + 10).await;
    }

    async fn nothing_failed(self) {
        self.goes_on().await;
        self.0.store(true, Ordering::SeqCst);
        let failures = self.2.await.expect("no panic");
        assert!(failures.is_empty(), "{failures:#?}");
    }
}

#[tokio::test]
async fn sigusr2_starts_a_successor_whose_log_goes_on() {
    let origin = Origin::echo("a").await;
    let mut old = Proxy::before(&[&origin]).await;
    let load = Load::on(&old);
    old.signal(libc::SIGUSR2);
    let new = started(&old, 1).await;
    assert!(old.ended().await.success(), "{}", old.stderr());
    load.nothing_failed().await;
    assert!(new.running());
    // Standard error is the file itself, and not the pipe to a process that is gone.
    new.signal(libc::SIGTERM);
    new.ended().await;
    old.logged("SIGTERM: draining").await;
    assert_eq!(old.stderr().matches("drained after").count(), 2, "{}", old.stderr());
}

#[tokio::test]
async fn a_new_release_that_fails_changes_nothing_and_the_next_one_takes_over() {
    let origin = Origin::echo("a").await;
    let config = Config::before(&[&origin], "");
    let binary = own_binary(&config);
    let mut old = config.spawn_binary(&binary, &[], |_| {});
    old.ready().await;
    let load = Load::on(&old);
    // Crashes.
    replace_by_script(&binary, "#!/bin/sh\necho \"crash: no memory\" >&2\nkill -SEGV $$\n");
    old.signal(libc::SIGUSR2);
    let log = failed(&old, 1).await;
    assert!(log.contains("ended before it served (signal: 11") && log.contains("crash: no memory"), "{log}");
    // Is none.
    std::fs::write(binary.with_extension("data"), "neither a program nor a script").expect("written");
    replace(&binary, &binary.with_extension("data"));
    old.signal(libc::SIGUSR2);
    failed(&old, 2).await;
    // Hangs before it has said anything.
    replace_by_script(&binary, "#!/bin/sh\nexec sleep 1000\n");
    old.signal(libc::SIGUSR2);
    let hanging = started(&old, 2).await;
    load.goes_on().await;
    assert!(hanging.running());
    hanging.signal(libc::SIGKILL);
    let log = failed(&old, 3).await;
    assert!(log.contains("signal: 9"), "{log}");
    // Is good.
    replace(&binary, &run::binary());
    old.signal(libc::SIGUSR2);
    let new = started(&old, 3).await;
    assert!(old.ended().await.success(), "{}", old.stderr());
    assert!(new.running());
    load.nothing_failed().await;
}

#[tokio::test]
async fn a_configuration_that_is_bad_or_never_ready_changes_nothing() {
    let (origin, mute) = (Origin::echo("a").await, Origin::script("b", misbehave::mute).await);
    let mut old = Config::before(&[&origin], "").start().await;
    let good = run::read(&old.config.write());
    let load = Load::on(&old);
    old.config.write_text("version: 1\nlisteners: nowhere\n");
    old.signal(libc::SIGUSR2);
    let log = failed(&old, 1).await;
    assert!(log.contains("exit status: 1") && log.contains("nowhere"), "{log}");
    // It asks for the listeners and hangs in its first round.
    let check = "    health_check: { type: http, path: /, interval: 1h, timeout: 1h }\n";
    let backends = good.lines().find(|line| line.contains("backends:")).expect("backends");
    let stuck = good.replace(backends, &format!("    backends: [\"{}\"]\n{check}", mute.address));
    old.config.write_text(&stuck);
    old.signal(libc::SIGUSR2);
    let hanging = started(&old, 2).await;
    old.logged(&format!("process {} asks for the listeners", hanging.0)).await;
    load.goes_on().await;
    hanging.signal(libc::SIGKILL);
    failed(&old, 2).await;
    old.config.write_text(&good);
    old.signal(libc::SIGUSR2);
    let new = started(&old, 3).await;
    assert!(old.ended().await.success(), "{}", old.stderr());
    assert!(new.running());
    load.nothing_failed().await;
}

#[tokio::test]
async fn a_process_that_leaves_takes_the_successor_it_has_started_along() {
    let origin = Origin::echo("a").await;
    let config = Config::before(&[&origin], "");
    let binary = own_binary(&config);
    let mut old = config.spawn_binary(&binary, &[], |_| {});
    old.ready().await;
    replace_by_script(&binary, "#!/bin/sh\nexec sleep 1000\n");
    old.signal(libc::SIGUSR2);
    let hanging = started(&old, 1).await;
    wait_until("the script", || hanging.running()).await;
    old.signal(libc::SIGTERM);
    assert!(old.ended().await.success(), "{}", old.stderr());
    hanging.ended().await;
}

/// What systemd would hear.
struct Notified {
    socket: UnixDatagram,
    heard: Vec<String>,
}

impl Notified {
    fn at(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a socket");
        socket.set_nonblocking(true).expect("a mode");
        Self { socket, heard: Vec::new() }
    }

    /// Waits for a message with all of these lines; gives its place.
    async fn hears(&mut self, lines: &[String]) -> usize {
        let mut found = None;
        wait_until(&format!("{lines:?} at the service manager"), || {
            let mut message = [0; 4096];
            while let Ok(length) = self.socket.recv(&mut message) {
                self.heard.push(String::from_utf8_lossy(&message[..length]).into_owned());
            }
            let all = |message: &String| lines.iter().all(|line| message.lines().any(|l| l == line));
            found = self.heard.iter().position(all);
            found.is_some()
        })
        .await;
        found.expect("just seen")
    }

    fn forget(&mut self) {
        self.heard.clear();
    }
}

/// A proxy under a service manager that wants to hear from it every `watchdog` microseconds; not at all where that is empty.
async fn managed(origin: &Origin, watchdog: &str) -> (Notified, Proxy) {
    let config = Config::before(&[origin], "");
    let path = config.dir().join("notify.sock");
    let manager = Notified::at(&path);
    let mut proxy = config.spawn_with(&[], |command| {
        command.env("NOTIFY_SOCKET", &path);
        if !watchdog.is_empty() {
            command.env("WATCHDOG_USEC", watchdog);
        }
    });
    proxy.ready().await;
    (manager, proxy)
}

#[tokio::test]
async fn the_service_manager_hears_of_start_upgrade_life_and_stop() {
    let origin = Origin::echo("a").await;
    let (mut manager, mut old) = managed(&origin, "200000").await;
    let (ready, alive) = ("READY=1".to_owned(), "WATCHDOG=1".to_owned());
    manager.hears(&[format!("MAINPID={}", old.pid()), ready.clone()]).await;
    manager.hears(std::slice::from_ref(&alive)).await;
    manager.forget();
    old.signal(libc::SIGUSR2);
    let new = started(&old, 1).await;
    manager.hears(&["STATUS=upgrading".to_owned()]).await;
    let main = format!("MAINPID={}", new.0);
    manager.hears(&[main.clone(), ready]).await;
    assert!(old.ended().await.success(), "{}", old.stderr());
    let first = manager.heard.iter().position(|message| message.contains(&main)).expect("heard");
    assert_eq!(manager.heard[first].trim_end(), main, "the old process says it before it may end");
    assert!(!manager.heard.iter().any(|message| message.contains("STOPPING")), "{:?}", manager.heard);
    manager.forget();
    manager.hears(std::slice::from_ref(&alive)).await;
    new.signal(libc::SIGTERM);
    // However short systemd's own patience is: it is the grace period, and what comes after it.
    manager.hears(&["STOPPING=1".to_owned(), "EXTEND_TIMEOUT_USEC=45000000".to_owned()]).await;
    new.ended().await;
}

#[tokio::test]
async fn the_service_manager_hears_of_reloads_and_how_they_went() {
    let origin = Origin::echo("a").await;
    let (mut manager, mut old) = managed(&origin, "").await;
    let (reloading, ready) = ("RELOADING=1".to_owned(), "READY=1".to_owned());
    manager.hears(std::slice::from_ref(&ready)).await;
    manager.forget();
    old.signal(libc::SIGHUP);
    let began = manager.hears(std::slice::from_ref(&reloading)).await;
    assert!(manager.heard[began].contains("MONOTONIC_USEC="), "{:?}", manager.heard);
    let ended = manager.hears(&[ready.clone(), "STATUS=serving configuration 2".to_owned()]).await;
    assert!(began < ended, "{:?}", manager.heard);
    manager.forget();
    old.config.write_text("version: 1\nlisteners: nowhere\n");
    old.signal(libc::SIGHUP);
    manager.hears(&[reloading]).await;
    let ended = manager.hears(&[ready]).await;
    assert!(manager.heard[ended].contains("STATUS=serving; the last reload failed: "), "{:?}", manager.heard);
    assert!(manager.heard[ended].contains("rrlb.yaml"), "{:?}", manager.heard);
    assert!(old.running());
}

/// Upgrades while a request is under way at the old process, and kills the new one.
async fn killed_while_the_old_one_drains(origin: &Origin, managed: bool) -> (Proxy, Client) {
    let config = Config::before(&[origin], "");
    let path = config.dir().join("notify.sock");
    let _manager = Notified::at(&path);
    let mut old = config.spawn_with(&[], |command| {
        if managed {
            command.env("NOTIFY_SOCKET", &path);
        }
    });
    old.ready().await;
    let mut client = old.client().await;
    client.send(get("/hold")).await;
    wait_until("the request at the origin", || origin.count("/hold") == 1).await;
    old.signal(libc::SIGUSR2);
    let new = started(&old, 1).await;
    old.logged("serves: draining").await;
    new.signal(libc::SIGKILL);
    new.ended().await;
    (old, client)
}

#[tokio::test]
async fn a_process_that_drains_makes_room_where_its_successor_has_died_and_another_will_be_started() {
    let origin = Origin::echo("a").await;
    let (mut old, _client) = killed_while_the_old_one_drains(&origin, true).await;
    assert!(old.ended().await.success(), "{}", old.stderr());
    assert!(old.stderr().contains("has died: 1 connections cut off"), "{}", old.stderr());
}

#[tokio::test]
async fn a_process_that_drains_finishes_its_requests_where_its_successor_has_died_and_nobody_starts_another() {
    let origin = Origin::echo("a").await;
    let (mut old, mut client) = killed_while_the_old_one_drains(&origin, false).await;
    origin.release();
    assert_eq!(client.response().await.status(), 200);
    assert!(old.ended().await.success(), "{}", old.stderr());
    assert!(!old.stderr().contains("has died"), "{}", old.stderr());
}

#[tokio::test]
async fn the_service_manager_hears_of_a_failed_upgrade() {
    let origin = Origin::echo("a").await;
    let (mut manager, mut old) = managed(&origin, "").await;
    old.config.write_text("version: 1\nlisteners: nowhere\n");
    old.signal(libc::SIGUSR2);
    manager.hears(&["STATUS=serving; the last upgrade failed".to_owned()]).await;
    assert!(!manager.heard.iter().any(|message| message.contains("WATCHDOG")), "nobody asked for it");
    assert!(old.running());
}

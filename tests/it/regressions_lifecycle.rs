//! Faults of the process that were found once and are not to come back: upgrades, drains, users, its own log.

use std::{
    io::{PipeReader, Read},
    net::SocketAddr,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{MetadataExt, PermissionsExt, symlink},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::task::JoinSet;

use crate::support::{
    PATIENCE, address,
    http1::{Client, get},
    origin::Origin,
    proxy::{Config, Proxy},
    run, wait_until,
};

/// How long after the grace period a process may take to leave, on two busy cores.
const SOON: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_successor_whose_first_health_checks_are_slow_costs_no_request() {
    // The new process said it served before its first probes had ended, and answered 503 until then.
    let origin = Origin::script("a", |mut peer| async move {
        while let Some(request) = peer.request().await {
            if request.target() == "/healthz" {
                tokio::time::sleep(Duration::from_millis(300)).await; // the origin's pace
            }
            peer.reply(200, "", "a").await;
        }
    })
    .await;
    let check = "{ type: http, path: /healthz, interval: 100ms, timeout: 5s, initial: down }";
    let yaml = "upstreams: { app: { backends: [\"<a>\"], health_check: <check> } }";
    let config = Config::new(yaml).put("a", &origin.address).put("check", check).without("access_log");
    let mut proxy = config.start().await;
    let load = Load::default();
    let mut tasks = JoinSet::new();
    for _ in 0..4 {
        tasks.spawn(load.clone().keep_alive(proxy.listen));
    }
    for _ in 0..3 {
        load.goes_on().await;
        proxy = proxy.upgrade().await;
    }
    load.goes_on().await;
    load.stop.store(true, Ordering::SeqCst);
    let failures: Vec<String> = tasks.join_all().await.into_iter().flatten().collect();
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Clients that go on until they are told to stop.
#[derive(Clone, Default)]
struct Load {
    stop: Arc<AtomicBool>,
    good: Arc<AtomicUsize>,
}

impl Load {
    async fn goes_on(&self) {
        let before = self.good.load(Ordering::SeqCst);
        wait_until("answers", || self.good.load(Ordering::SeqCst) > before + 50).await;
    }

    /// Gives the failures. One on a connection that was used before is none: the proxy may close between requests.
    async fn keep_alive(self, to: SocketAddr) -> Vec<String> {
        let (mut failures, mut kept) = (Vec::new(), None);
        while !self.stop.load(Ordering::SeqCst) {
            let used = kept.is_some();
            let connection = match kept.take() {
                Some(client) => Ok(client),
                None => Client::try_connect(to).await,
            };
            let exchange = async {
                let mut client: Client = connection?;
                let reply = client.try_get("/").await?;
                std::io::Result::Ok((client, reply))
            };
            match exchange.await {
                Ok((client, reply)) if reply.status() == 200 => {
                    self.good.fetch_add(1, Ordering::SeqCst);
                    kept = (!reply.fields("connection").contains(&"close")).then_some(client);
                }
                Ok((_, reply)) => failures.push(reply.start),
                Err(_) if used => {}
                Err(error) => failures.push(error.to_string()),
            }
        }
        failures
    }
}

#[tokio::test]
async fn a_standard_error_that_nobody_reads_stops_no_request() {
    // Messages were written by the workers themselves, which stood still as soon as the pipe was full.
    let origin = Origin::echo("a").await;
    let yaml = "
        upstreams: { app: { backends: [\"<a>\"] }, dead: { backends: [\"<dead>\"] } }
        routes:
          - { match: { path: /dead }, upstream: dead }
          - { upstream: app }";
    let config = Config::new(yaml).put("a", &origin.address).put("dead", address::unused()).without("access_log");
    let (reader, writer) = std::io::pipe().expect("a pipe");
    // SAFETY: a plain system call on an open descriptor.
    let capacity = unsafe { libc::fcntl(writer.as_raw_fd(), libc::F_SETPIPE_SZ, 4096) };
    assert_eq!(capacity, 4096, "the pipe's size");
    let mut proxy = config.spawn_with(&[], |command| {
        command.stderr(writer).env("RUST_LOG", "debug");
    });
    proxy.ready().await;
    let mut dead = proxy.client().await;
    for n in 0..3000 {
        if n % 2 == 0 {
            proxy.client().await.send("BROKEN\r\n\r\n").await;
        } else if dead.get("/dead").await.field("connection") == Some("close") {
            dead = proxy.client().await;
        }
        if n % 100 == 0 {
            assert_eq!(proxy.get("/").await.origin(), "a", "after {n}");
        }
    }
    assert!(waiting(&reader) > 2048, "the pipe is not full, so this test shows nothing: {}", waiting(&reader));
    assert_eq!(proxy.get("/").await.origin(), "a");
    assert_eq!(proxy.probe("/readyz").await, Some(200));
    let begun = Instant::now();
    proxy.signal(libc::SIGTERM);
    proxy.ended().await;
    assert!(begun.elapsed() < SOON, "left after {:?}", begun.elapsed());
}

/// Bytes that wait in a pipe.
fn waiting(reader: &PipeReader) -> libc::c_int {
    let mut bytes = 0;
    // SAFETY: the descriptor is open and `bytes` outlives the call.
    unsafe { libc::ioctl(reader.as_raw_fd(), libc::FIONREAD, &raw mut bytes) };
    bytes
}

#[tokio::test]
async fn a_second_start_at_the_same_upgrade_socket_is_refused_and_does_no_harm() {
    // It took the socket's name, so that the first could never be upgraded again.
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut second = Config::before(&[&origin], "").after(&proxy);
    (second.listen, second.metrics) = (address::unused(), address::unused());
    for _ in 0..2 {
        let finished = second.run(&[]).await.ended_with(6);
        assert!(finished.stderr.contains("upgrade.sock"), "{finished:?}");
    }
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!(proxy.upgrade().await.get("/").await.status(), 200);
}

/// A proxy with a request that waits at the origin.
async fn busy(origin: &Origin, more: &str) -> (Proxy, Client) {
    let proxy = Config::before(&[origin], more).start().await;
    let mut client = proxy.client().await;
    client.send(get("/hold")).await;
    wait_until("the request at the origin", || origin.count("/hold") == 1).await;
    (proxy, client)
}

#[tokio::test]
async fn the_first_sigterm_to_a_process_that_drains_after_an_upgrade_cuts_nothing() {
    // It counted as the second one, as a supervisor that stops the service sends it to both processes.
    let origin = Origin::echo("a").await;
    let (mut old, mut client) = busy(&origin, "").await;
    let mut new = old.successor();
    old.logged("draining").await;
    old.signal(libc::SIGTERM);
    old.logged("SIGTERM").await;
    assert!(old.running(), "{}", old.stderr());
    origin.release();
    assert_eq!(client.response().await.status(), 200);
    assert!(old.ended().await.success(), "{}", old.stderr());
    new.ready().await;
    assert_eq!(new.get("/").await.status(), 200);
}

/// Asks for the listeners as a successor does, takes the first, and says no more.
fn asks_for_the_listeners(proxy: &Proxy) -> UnixStream {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None).expect("a socket");
    let path = proxy.config.dir().join("up/upgrade.sock");
    socket.connect(&socket2::SockAddr::unix(path).expect("a path")).expect("connect");
    socket.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    socket.send(b"rrlb-upgrade 1").expect("send");
    let mut stream = UnixStream::from(OwnedFd::from(socket));
    let mut message = [0; 512];
    let length = stream.read(&mut message).expect("a listener");
    let address = String::from_utf8_lossy(&message[..length]);
    assert!(address.contains(':'), "not a listener's address: {address:?}");
    stream
}

#[tokio::test]
async fn a_hand_over_that_is_abandoned_changes_nothing() {
    // Would show an old process that drains for it, or that takes every later successor for one too many.
    let origin = Origin::echo("a").await;
    let mut proxy = Proxy::before(&[&origin]).await;
    for n in 1..=3 {
        drop(asks_for_the_listeners(&proxy));
        assert_eq!(proxy.get("/").await.status(), 200);
        assert_eq!(proxy.probe("/readyz").await, Some(200));
        wait_until("its end to be seen", || proxy.stderr().matches("going on as before").count() == n).await;
    }
    assert!(proxy.running());
    assert_eq!(proxy.upgrade().await.get("/").await.status(), 200);
}

#[tokio::test]
async fn a_hand_over_that_is_open_does_not_hold_up_sigterm() {
    // The process waited for the successor's word, whatever it was told meanwhile.
    let origin = Origin::echo("a").await;
    let (mut proxy, mut client) = busy(&origin, "").await;
    let successor = asks_for_the_listeners(&proxy);
    proxy.signal(libc::SIGTERM);
    proxy.logged("SIGTERM").await;
    assert!(proxy.running(), "left with a request in flight");
    let begun = Instant::now();
    origin.release();
    assert_eq!(client.response().await.status(), 200);
    assert!(proxy.ended().await.success(), "{}", proxy.stderr());
    assert!(begun.elapsed() < SOON, "left after {:?}", begun.elapsed());
    drop(successor);
}

#[tokio::test]
async fn slow_clients_do_not_keep_a_process_past_its_grace() {
    // Would show a wait that each byte begins anew, or that is outside of what the end of the grace period cuts off.
    let origin = Origin::echo("a").await;
    let more = "
        listeners: [{ address: <listen>, h2c: true }]
        grace_period_seconds: 1
        graceful_shutdown_timeout_seconds: 1";
    let mut proxy = Config::before(&[&origin], more).start().await;
    let mut stalled = proxy.client().await;
    stalled.send(get("/size/100000000")).await;
    stalled.response_head().await;
    let mut half_prefaced = proxy.client().await;
    half_prefaced.send("PRI * HT").await;
    let beginnings = [
        "GET / HTTP/1.1\r\nHost: a.test\r\nX: ",
        "GET /1 HTTP/1.1\r\nHost: a.test\r\n\r\nGET /2 HTTP/1.1\r\nHost: a.test\r\nX: ",
        "POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000000\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\nfffff\r\n",
    ];
    let mut tasks = JoinSet::new();
    for beginning in beginnings {
        let mut client = proxy.client().await;
        client.send(beginning).await;
        tasks.spawn(async move {
            while client.wire.send("x").await.is_ok() {
                tokio::time::sleep(Duration::from_millis(50)).await; // the client's pace
            }
        });
    }
    proxy.metric("rrlb_requests_in_flight", &[], |n| n >= 3.0).await;
    let begun = Instant::now();
    proxy.signal(libc::SIGTERM);
    proxy.ended().await;
    assert!(begun.elapsed() < SOON, "left after {:?}", begun.elapsed());
    drop((stalled, half_prefaced));
}

/// `nobody` on all systems that have it.
const NOBODY: &str = "65534";

fn is_root() -> bool {
    // SAFETY: a plain system call.
    unsafe { libc::geteuid() == 0 }
}

fn pid_in(path: &Path) -> Option<i32> {
    run::read(path).trim().parse().ok()
}

/// Ends the daemon that a pid file names, if it is still there.
struct Daemon(PathBuf);

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(pid) = pid_in(&self.0).filter(|pid| *pid > 1) {
            // SAFETY: a plain system call on the daemon this test started.
            unsafe { libc::kill(pid, libc::SIGKILL) };
        }
    }
}

/// A configuration with a user, in a folder that the user can write, with the pid file in one of these modes.
fn as_nobody(origin: &Origin, more: &str, mode: u32) -> (Config, PathBuf) {
    let more = format!("user: nobody\npid_file: <dir>/run/rrlb.pid\n{more}");
    let config = Config::before(&[origin], &more);
    let folder = config.dir().join("run");
    std::fs::create_dir(&folder).expect("folder");
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(mode)).expect("mode");
    std::fs::set_permissions(config.dir(), std::fs::Permissions::from_mode(0o777)).expect("mode");
    (config, folder.join("rrlb.pid"))
}

#[tokio::test]
async fn a_daemon_with_a_user_has_its_group_too_and_takes_its_pid_away() {
    // The group stayed root's, and the pid file named the parent, or a process that had gone.
    if !is_root() {
        return; // only root can change the user
    }
    let origin = Origin::echo("a").await;
    for mode in [0o777, 0o755] {
        let (config, path) = as_nobody(&origin, "error_log: <dir>/error.log", mode);
        let mut parent = config.spawn(&["-d"]);
        let _killed = Daemon(path.clone());
        assert!(parent.ended().await.success(), "{}", parent.stderr());
        wait_until("the pid file", || pid_in(&path).is_some()).await;
        let pid = pid_in(&path).expect("just seen");
        assert_ne!(u32::try_from(pid).ok(), Some(parent.pid()), "the pid file names the process that has left");
        crate::support::eventually("the daemon to be ready", async || parent.probe("/readyz").await == Some(200)).await;
        assert_eq!(parent.get("/").await.origin(), "a");
        let status = run::read(Path::new(&format!("/proc/{pid}/status")));
        for name in ["Uid:", "Gid:", "Groups:"] {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default();
            assert!(line.split_whitespace().all(|id| id == NOBODY), "{name}{line}");
            assert!(name == "Groups:" || !line.trim().is_empty(), "{status}");
        }
        // SAFETY: a plain system call on the daemon this test started.
        unsafe { libc::kill(pid, libc::SIGTERM) };
        wait_until("the pid to be gone from the file", || run::read(&path).is_empty()).await;
        wait_until("the daemon to leave", || !Path::new(&format!("/proc/{pid}/exe")).exists()).await;
    }
}

#[tokio::test]
async fn a_file_behind_a_link_is_not_given_away() {
    // An access log that is a link had the file behind it changed to the user.
    if !is_root() {
        return; // only root can change the user
    }
    let origin = Origin::echo("a").await;
    let (config, _) = as_nobody(&origin, "", 0o777);
    let (precious, link) = (config.dir().join("precious"), config.dir().join("access.log"));
    std::fs::write(&precious, "").expect("a file");
    std::fs::set_permissions(&precious, std::fs::Permissions::from_mode(0o600)).expect("mode");
    symlink(&precious, &link).expect("a link");
    let mut proxy = config.spawn(&[]);
    wait_until("the proxy to serve or to leave", || {
        !proxy.running() || std::net::TcpStream::connect(proxy.metrics).is_ok()
    })
    .await;
    let owner = std::fs::metadata(&precious).expect("there");
    assert_eq!((owner.uid(), owner.gid(), owner.mode() & 0o777), (0, 0, 0o600));
    assert!(std::fs::symlink_metadata(&link).expect("there").is_symlink());
}

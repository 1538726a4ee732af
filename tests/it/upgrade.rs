//! `-u`: a second process takes the sockets over, and nobody notices.

use std::{
    os::unix::fs::PermissionsExt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::io::AsyncWriteExt;

use crate::{
    streaming,
    support::{
        address,
        http1::{Client, get, get_once},
        http2::Client2,
        origin::{Origin, Peer},
        proxy::{Config, Proxy},
        tls::Ca,
        wait_until, within,
    },
};

/// Upgrades under load; `RRLB_TEST_UPGRADES` for more.
const UPGRADES: usize = 20;

#[tokio::test]
async fn a_successor_takes_over_and_the_old_process_leaves() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let old = proxy.pid();
    let mut proxy = proxy.upgrade().await;
    assert_ne!(proxy.pid(), old);
    assert_eq!(proxy.get("/").await.origin(), "a");
    assert!(proxy.running());
}

#[tokio::test]
async fn pingoras_ritual_works() {
    let origin = Origin::echo("a").await;
    let mut old = Proxy::before(&[&origin]).await;
    let mut new = old.successor();
    old.signal(libc::SIGQUIT);
    assert!(old.ended().await.success(), "{}", old.stderr());
    new.ready().await;
    assert_eq!(new.get("/").await.origin(), "a");
}

#[tokio::test]
async fn requests_in_flight_finish_in_the_old_process() {
    let origin = Origin::echo("a").await;
    let mut old = Proxy::before(&[&origin]).await;
    let mut client = old.client().await;
    client.send(crate::support::http1::get("/hold")).await;
    wait_until("the request at the origin", || origin.total() == 1).await;
    let mut new = old.successor();
    crate::support::eventually("the new process to serve", async || {
        old.get("/").await;
        new.running() && new.probe("/readyz").await == Some(200)
    })
    .await;
    assert!(old.running(), "left with a request in flight");
    origin.release();
    assert_eq!(client.response().await.status(), 200);
    assert!(old.ended().await.success());
    assert_eq!(new.get("/").await.status(), 200);
}

#[tokio::test]
async fn the_configuration_may_change_with_the_process() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let mut old = Config::before(&[&a], "").start().await;
    let added = address::unused();
    let yaml = "
        listeners: [{ address: <listen> }, { address: \"<added>\" }]
        upstreams: { app: { backends: [\"<b>\"] } }";
    let next = Config::new(yaml).put("added", added).put("b", &b.address).after(&old);
    let mut new = next.spawn(&["-u"]);
    assert!(old.ended().await.success(), "{}", old.stderr());
    new.ready().await;
    assert_eq!(new.get("/").await.origin(), "b");
    assert_eq!(get_once(added, "/").await.origin(), "b");
}

#[tokio::test]
async fn a_successor_with_a_bad_configuration_changes_nothing() {
    let origin = Origin::echo("a").await;
    let mut proxy = Proxy::before(&[&origin]).await;
    let broken = proxy.config.dir().join("broken.yaml");
    std::fs::write(&broken, "version: 1\nlisteners: []\n").expect("write");
    let finished = crate::support::run::rrlb(&["-u", "-c", &broken.display().to_string()]).await.ended_with(1);
    assert!(finished.stderr.contains("error"), "{finished:?}");
    still_serves(&mut proxy).await;
    assert_eq!(proxy.upgrade().await.get("/").await.status(), 200);
}

#[tokio::test]
async fn a_successor_that_cannot_bind_changes_nothing() {
    let origin = Origin::echo("a").await;
    let mut proxy = Proxy::before(&[&origin]).await;
    let taken = std::net::TcpListener::bind(address::unused()).expect("bind");
    let at = taken.local_addr().expect("bound");
    let yaml = "
        listeners: [{ address: <listen> }, { address: \"<taken>\" }]
        upstreams: { app: { backends: [\"<a>\"] } }";
    let next = Config::new(yaml).put("taken", at).put("a", &origin.address).after(&proxy);
    next.run(&["-u"]).await.ended_with(6);
    still_serves(&mut proxy).await;
    assert_eq!(proxy.upgrade().await.get("/").await.status(), 200);
}

#[tokio::test]
async fn a_successor_that_dies_on_the_way_changes_nothing() {
    let origin = Origin::echo("a").await;
    let mut proxy = Proxy::before(&[&origin]).await;
    // Killed at ever later moments of its start; where it has come to serve, the old one may rightly have left.
    for steps in 0..12 {
        let mut next = proxy.successor();
        for _ in 0..steps * 200 {
            std::thread::yield_now();
        }
        next.signal(libc::SIGKILL);
        let pid = next.pid();
        next.ended().await;
        // What it said before it died is heard in any case.
        let says = |what: &str| proxy.stderr().contains(&format!("process {pid} {what}"));
        if says("asks") {
            crate::support::wait_until("the end of the hand-over", || says("serves") || says("ended")).await;
        }
        if says("serves") {
            return;
        }
        still_serves(&mut proxy).await;
    }
    assert_eq!(proxy.upgrade().await.get("/").await.status(), 200);
}

/// Serves on new connections, is ready, and takes SIGQUIT for nothing.
async fn still_serves(proxy: &mut Proxy) {
    for _ in 0..5 {
        assert_eq!(proxy.get("/").await.status(), 200);
    }
    assert_eq!(proxy.probe("/readyz").await, Some(200));
    assert!(proxy.running());
}

#[tokio::test]
async fn a_stranger_on_the_upgrade_socket_gets_nothing_and_does_no_harm() {
    let origin = Origin::echo("a").await;
    let mut proxy = Proxy::before(&[&origin]).await;
    let socket = proxy.config.dir().join("up/upgrade.sock");
    for noise in [&b""[..], b"x", &[0xff; 5000]] {
        let stranger = stranger(&socket);
        let _ = stranger.send(noise);
    }
    let _silent = stranger(&socket);
    still_serves(&mut proxy).await;
    assert_eq!(proxy.upgrade().await.get("/").await.status(), 200);
}

fn stranger(path: &std::path::Path) -> socket2::Socket {
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None).expect("a socket");
    socket.connect(&socket2::SockAddr::unix(path).expect("a path")).expect("connect");
    socket
}

#[tokio::test]
async fn the_upgrade_socket_is_the_owners_alone() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let socket = proxy.config.dir().join("up/upgrade.sock");
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&socket), 0o600);
    assert_eq!(mode(socket.parent().expect("a folder")), 0o700);
    let proxy = proxy.upgrade().await;
    assert_eq!(mode(&socket), 0o600, "after an upgrade");
    drop(proxy);
}

#[tokio::test]
async fn an_upgrade_folder_that_others_can_write_is_refused() {
    let origin = Origin::echo("a").await;
    let config = Config::before(&[&origin], "");
    let folder = config.dir().join("up");
    std::fs::create_dir(&folder).expect("folder");
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o777)).expect("mode");
    let mut proxy = config.spawn(&[]);
    let mut code = None;
    wait_until("a refusal, or a folder made safe", || {
        let mode = std::fs::metadata(&folder).expect("there").permissions().mode() & 0o022;
        if !proxy.running() {
            code = Some(true);
        }
        code.is_some() || mode == 0
    })
    .await;
    if code.is_some() {
        assert_eq!(proxy.ended().await.code(), Some(6), "{}", proxy.stderr());
    }
}

#[tokio::test]
async fn more_than_32_listeners_of_all_kinds_are_handed_over() {
    let origin = Origin::echo("a").await;
    let addresses: Vec<_> = (0..40).map(|_| address::unused()).collect();
    let list: String = addresses.iter().map(|a| format!("  - address: {a}\n")).collect();
    let more = format!("listeners:\n{list}  - address: \"unix:<dir>/http.sock\"\n");
    let mut proxy = Config::before(&[&origin], &more).start().await;
    for _ in 0..2 {
        proxy = proxy.upgrade().await;
        for at in &addresses {
            assert_eq!(get_once(*at, "/").await.origin(), "a", "{at}");
        }
        let path = proxy.config.dir().join("http.sock");
        assert_eq!(Client::unix(&path).await.get("/").await.origin(), "a");
    }
}

/// Keep-alive, a connection per request, TLS, HTTP/2 and WebSockets, all the time: not one request may fail. One download
/// and one WebSocket stay in the first process over all upgrades, and when they end it is gone within a second.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_in_twenty_upgrades_under_load() {
    let (ca, origin) = (Ca::new(), Origin::script("a", everything).await);
    let secure = address::unused();
    let yaml = "
        certificates: { main: <main> }
        access_log: off
        grace_period_seconds: 3600
        listeners:
          - { address: <listen>, h2c: true }
          - { address: \"<secure>\", tls: { certificates: [main] } }";
    let config = Config::before(&[&origin], yaml).put("secure", secure);
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let mut first = config.put("main", main).start().await;
    let load = Load::default();
    let mut download = first.client().await;
    download.send(get("/download")).await;
    let mut head = download.response_head().await;
    let download = tokio::spawn(async move {
        download.wire.body(&mut head).await?;
        std::io::Result::Ok((head, download))
    });
    let mut socket = first.client().await;
    streaming::upgrade(&mut socket).await;
    let (plain, h1, h2) = (first.listen, ca.client(&["http/1.1"]), ca.client(&["h2"]));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..2 {
        tasks.spawn(load.clone().keep_alive(plain));
        tasks.spawn(load.clone().connection_per_request(plain));
    }
    tasks.spawn(load.clone().websockets(plain));
    tasks.spawn(load.clone().tls_per_request(secure, h1));
    tasks.spawn(load.clone().http2(secure, h2));
    let upgrades = std::env::var("RRLB_TEST_UPGRADES").ok().and_then(|n| n.parse().ok()).unwrap_or(UPGRADES);
    let before = load.done();
    wait_until("load", || load.done() > before + 20).await;
    let mut proxy = first.successor();
    first.logged("serves: draining").await;
    for _ in 1..upgrades {
        let before = load.done();
        wait_until("load", || load.done() > before + 20).await;
        proxy = proxy.upgrade().await;
        socket.send(b"ping").await;
        assert_eq!(within("the echo", socket.wire.take(4)).await.expect("an echo"), b"ping");
    }
    let before = load.done();
    wait_until("load after the last upgrade", || load.done() > before + 20).await;
    assert!(first.running(), "left with a download and a WebSocket in flight");
    socket.wire.finish().await.expect("end");
    assert_eq!(socket.closed().await, b"");
    origin.release();
    let (reply, client) = within("the end of the download", download).await.expect("no panic").expect("all of it");
    let ended = Instant::now();
    drop(client);
    assert!(reply.text().ends_with("the end") && reply.length > 1000, "{} bytes", reply.length);
    assert!(first.ended().await.success());
    assert!(ended.elapsed() < Duration::from_secs(1), "gone {:?} after its last request", ended.elapsed());
    load.stop.store(true, Ordering::SeqCst);
    let failures: Vec<String> = tasks.join_all().await.into_iter().flatten().collect();
    assert!(failures.is_empty(), "{} of {} requests failed: {failures:#?}", failures.len(), load.done());
}

/// Echoes on `/ws`, sends on `/download` until released, and gives its name on anything else.
async fn everything(mut peer: Peer) {
    while let Some(request) = peer.request().await {
        match request.target() {
            "/ws" => {
                peer.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n").await;
                peer.send("Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n").await;
                let (io, ahead) = peer.wire.into_parts();
                let (mut reader, mut writer) = tokio::io::split(io);
                let _ = writer.write_all(&ahead).await;
                let _ = tokio::io::copy(&mut reader, &mut writer).await;
                return drop(writer.shutdown().await);
            }
            "/download" => {
                peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").await;
                // A slow stream: bytes pass while processes change.
                while tokio::time::timeout(Duration::from_millis(20), peer.held()).await.is_err() {
                    peer.send(format!("64\r\n{}\r\n", "x".repeat(100))).await;
                }
                peer.send("7\r\nthe end\r\n0\r\n\r\n").await;
            }
            _ => peer.reply(200, "", "").await,
        }
    }
}

/// Clients that go on until they are told to stop, and remember each failure.
#[derive(Clone, Default)]
struct Load {
    stop: Arc<AtomicBool>,
    requests: Arc<AtomicUsize>,
}

impl Load {
    fn done(&self) -> usize {
        self.requests.load(Ordering::SeqCst)
    }

    fn going(&self) -> bool {
        !self.stop.load(Ordering::SeqCst)
    }

    fn note<E: std::fmt::Display>(&self, kind: &str, result: Result<u16, E>, failures: &mut Vec<String>) {
        self.requests.fetch_add(1, Ordering::SeqCst);
        match result {
            Ok(200) => {}
            Ok(status) => failures.push(format!("{kind}: {status}")),
            Err(error) => failures.push(format!("{kind}: {error}")),
        }
    }

    /// One connection until the proxy closes it between two requests, as any HTTP client has to expect: a request on a
    /// connection that was closed before it was sent is sent again on a new one, once.
    async fn keep_alive(self, to: std::net::SocketAddr) -> Vec<String> {
        let mut failures = Vec::new();
        let mut client = None;
        while self.going() {
            let reused = client.is_some();
            let mut connection: Client = match client.take() {
                Some(connection) => connection,
                None => match Client::try_connect(to).await {
                    Ok(connection) => connection,
                    Err(error) => {
                        failures.push(format!("connect: {error}"));
                        continue;
                    }
                },
            };
            match connection.try_get("/").await {
                Ok(reply) => {
                    let close = reply.fields("connection").contains(&"close");
                    self.note("keep-alive", Ok::<_, std::io::Error>(reply.status()), &mut failures);
                    client = (!close).then_some(connection);
                }
                Err(_) if reused => {}
                Err(error) => self.note("keep-alive, first request", Err(error), &mut failures),
            }
        }
        failures
    }

    async fn connection_per_request(self, to: std::net::SocketAddr) -> Vec<String> {
        let mut failures = Vec::new();
        while self.going() {
            let result = async { Client::try_connect(to).await?.try_get("/").await }.await;
            self.note("connection per request", result.map(|reply| reply.status()), &mut failures);
        }
        failures
    }

    /// Short WebSockets, one after the other.
    async fn websockets(self, to: std::net::SocketAddr) -> Vec<String> {
        const ASK: &str = "GET /ws HTTP/1.1\r\nHost: a.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\
                           Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n";
        let mut failures = Vec::new();
        while self.going() {
            let talk = async {
                let mut client = Client::try_connect(to).await?;
                client.wire.send(ASK).await?;
                let status = client.try_response(false).await?.status();
                for _ in 0..10 {
                    client.wire.send(b"hello").await?;
                    let echo = client.wire.take(5).await?;
                    assert_eq!(echo, b"hello");
                }
                client.wire.finish().await?;
                std::io::Result::Ok(if status == 101 { 200 } else { status })
            };
            self.note("WebSocket", within("a WebSocket", talk).await, &mut failures);
        }
        failures
    }

    async fn tls_per_request(self, to: std::net::SocketAddr, config: Arc<rustls::ClientConfig>) -> Vec<String> {
        let mut failures = Vec::new();
        while self.going() {
            let result = async { Client::try_tls(to, "a.test", &config).await?.try_get("/").await }.await;
            self.note("TLS", result.map(|reply| reply.status()), &mut failures);
        }
        failures
    }

    /// One HTTP/2 connection until GOAWAY; streams the peer has not taken (RFC 9113 section 8.7) are sent again.
    async fn http2(self, to: std::net::SocketAddr, config: Arc<rustls::ClientConfig>) -> Vec<String> {
        let mut failures = Vec::new();
        while self.going() {
            let client = match Client2::try_tls(to, "a.test", &config).await {
                Ok(client) => client,
                Err(error) => {
                    failures.push(format!("h2 connect: {error}"));
                    continue;
                }
            };
            while self.going() {
                match client.try_get("/").await {
                    Ok(reply) => self.note("h2", Ok::<_, h2::Error>(reply.status), &mut failures),
                    Err(error) if error.is_go_away() && error.reason() == Some(h2::Reason::NO_ERROR) => break,
                    Err(error) if error.reason() == Some(h2::Reason::REFUSED_STREAM) => break,
                    Err(error) => {
                        self.note("h2", Err(error), &mut failures);
                        break;
                    }
                }
            }
        }
        failures
    }
}

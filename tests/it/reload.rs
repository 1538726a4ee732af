//! SIGHUP: another configuration in the same process. What it does not name is untouched, and no request fails.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use rustls::HandshakeKind;
use tokio::task::JoinHandle;

use crate::{
    streaming::{upgrade, websocket},
    support::{
        address, eventually,
        http1::{Client, get, get_once},
        http2::{Client2, request},
        origin::Origin,
        proxy::{Config, Proxy},
        run,
        tls::Ca,
        wait_until, within,
    },
};

const MIB: u64 = 1 << 20;

/// A client that asks without a pause, and what came of it.
struct Load {
    stop: Arc<AtomicBool>,
    answers: Arc<AtomicUsize>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Load {
    /// Keeps its connection for as long as it may; any failure fails the test at its end.
    fn keep_alive(to: SocketAddr) -> Self {
        let (stop, answers, connections) = <(Arc<AtomicBool>, Arc<AtomicUsize>, Arc<AtomicUsize>)>::default();
        let (until, count, opened) = (stop.clone(), answers.clone(), connections.clone());
        let task = tokio::spawn(async move {
            while !until.load(Ordering::SeqCst) {
                let mut client = Client::connect(to).await;
                opened.fetch_add(1, Ordering::SeqCst);
                while !until.load(Ordering::SeqCst) {
                    let reply = client.get("/").await;
                    assert_eq!(reply.status(), 200, "{reply:?}");
                    count.fetch_add(1, Ordering::SeqCst);
                    if reply.fields("connection").contains(&"close") {
                        break;
                    }
                }
            }
        });
        Self { stop, answers, connections, task }
    }

    /// Waits for this many more answers.
    async fn more(&self, answers: usize) {
        let from = self.answers.load(Ordering::SeqCst);
        wait_until("answers under load", || {
            self.task.is_finished() || self.answers.load(Ordering::SeqCst) >= from + answers
        })
        .await;
    }

    /// Ends it; returns how many connections it needed.
    async fn end(self) -> usize {
        self.stop.store(true, Ordering::SeqCst);
        within("the load to end", self.task).await.expect("no request failed");
        self.connections.load(Ordering::SeqCst)
    }
}

fn one(origin: &Origin, listeners: &str) -> String {
    format!("listeners: {listeners}\nupstreams: {{ app: {{ backends: [\"{}\"] }} }}\n", origin.address)
}

async fn refused(at: SocketAddr) {
    eventually("the listener to be closed", async || Client::try_connect(at).await.is_err()).await;
}

#[tokio::test]
async fn listeners_come_and_go_and_no_request_of_another_notices() {
    let origin = Origin::echo("a").await;
    let proxy = Config::new(&one(&origin, "[{ address: <listen> }]")).start().await;
    let added = address::unused();
    let loads: Vec<Load> = (0..4).map(|_| Load::keep_alive(proxy.listen)).collect();
    for _ in 0..5 {
        let more = one(&origin, "[{ address: <listen> }, { address: \"<added>\" }]");
        proxy.config.instead(&more).put("added", added).write();
        proxy.reload().await;
        assert_eq!(get_once(added, "/").await.origin(), "a", "served as soon as the reload is done");
        proxy.config.instead(&one(&origin, "[{ address: <listen> }]")).write();
        proxy.reload().await;
        assert!(Client::try_connect(added).await.is_err(), "closed as soon as the reload is done");
        loads[0].more(20).await;
    }
    for load in loads {
        assert_eq!(load.end().await, 1, "connections of an unchanged listener stay open");
    }
    let scrape = proxy.scrape().await;
    assert_eq!(scrape.sum("rrlb_config_generation", &[]), 11.0);
    assert_eq!(scrape.sum("rrlb_connections_open", &[&added.to_string()]), 0.0);
    assert!(!scrape.0.contains(&format!("{added}")), "a listener that is gone is not in the metrics");
}

#[tokio::test]
async fn a_removed_listener_finishes_its_requests_and_ends_its_connections() {
    let origin = Origin::echo("a").await;
    let gone = address::unused();
    let config = Config::new(&one(
        &origin,
        "[{ address: <listen> }, { address: \"<gone>\", h2c: true }, { address: \"unix:<dir>/http.sock\" }]",
    ));
    let proxy = config.put("gone", gone).start().await;
    let socket = proxy.config.dir().join("http.sock");
    let (mut idle, mut busy, mut kept) =
        (Client::connect(gone).await, Client::connect(gone).await, proxy.client().await);
    let mut unix = Client::unix(&socket).await;
    for client in [&mut idle, &mut kept, &mut unix] {
        assert_eq!(client.get("/").await.status(), 200);
    }
    let two = Client2::prior(gone).await;
    let (held, _) = two.open(request("GET", "/hold"), true).await.expect("a stream");
    busy.send(get("/hold")).await;
    wait_until("the requests at the origin", || origin.count("/hold") == 2).await;
    proxy.config.instead(&one(&origin, "[{ address: <listen> }]")).write();
    proxy.reload().await;
    refused(gone).await;
    assert!(!socket.exists(), "the file of a unix listener goes with it");
    // An idle client has a moment to ask once more, and is told that it was the last time.
    assert_eq!(idle.get("/").await.field("connection"), Some("close"));
    assert_eq!(idle.closed().await, b"");
    assert_eq!(unix.closed().await, b"");
    origin.release();
    assert_eq!(busy.response().await.status(), 200);
    assert_eq!(busy.closed().await, b"");
    assert_eq!(within("the stream", held).await.expect("an answer").status(), 200);
    two.ended().await;
    assert_eq!(kept.get("/").await.status(), 200);
}

#[tokio::test]
async fn a_changed_listener_keeps_its_socket_and_the_connections_that_are_open() {
    let (origin, ca) = (Origin::echo("a").await, Ca::new());
    let secure = address::unused();
    let yaml = |main: &str, redirect: bool| {
        let listeners = format!(
            "[{{ address: <listen>, redirect_https: {redirect} }}, {{ address: \"{secure}\", tls: {{ certificates: [main] }} }}]"
        );
        format!("certificates: {{ main: {main} }}\n{}", one(&origin, &listeners))
    };
    let config = Config::new("upstreams: { app: { backends: [\"127.0.0.1:1\"] } }");
    let first = ca.issue(&["a.test"]);
    let main = first.write(config.dir(), "main").to_string();
    let config = config.instead(&yaml(&main, false));
    let proxy = config.start().await;
    let client = ca.client(&["http/1.1"]);
    let (mut plain, mut old) = (proxy.client().await, Client::tls(secure, "a.test", &client).await);
    assert_eq!(plain.get("/").await.status(), 200);
    let mut waiting = Vec::new();
    // A certificate renewed under the same name, and another answer for whoever comes from now on.
    let second = ca.issue(&["a.test"]);
    second.write(proxy.config.dir(), "main");
    proxy.config.instead(&yaml(&main, true)).write();
    proxy.signal(libc::SIGHUP);
    for _ in 0..50 {
        waiting.push(proxy.client().await);
    }
    proxy.metric("rrlb_config_generation", &[], |generation| generation == 2.0).await;
    for mut client in waiting {
        assert!([200, 308].contains(&client.get("/").await.status()), "no connection in the queue is lost");
    }
    assert_eq!(proxy.get("/").await.status(), 308, "new connections get what is new");
    assert_eq!(plain.get("/").await.status(), 308, "and so do requests on those that are open");
    assert_eq!(old.get("/").await.status(), 200);
    assert_eq!(old.handshake.as_ref().expect("TLS").certificate, first.der.as_ref());
    let resumed = Client::tls(secure, "a.test", &client).await;
    assert_eq!(resumed.handshake.expect("TLS").kind, HandshakeKind::Resumed, "sessions outlive a changed listener");
    let new = Client::tls(secure, "a.test", &ca.client(&["http/1.1"])).await;
    assert_eq!(new.handshake.as_ref().expect("TLS").certificate, second.der.as_ref());
}

#[tokio::test]
async fn a_listener_changed_under_load_fails_no_request() {
    let origin = Origin::echo("a").await;
    let yaml = |idle: usize| one(&origin, &format!("[{{ address: <listen>, limits: {{ idle_timeout: {idle}s }} }}]"));
    let proxy = Config::new(&yaml(60)).start().await;
    let loads: Vec<Load> = (0..4).map(|_| Load::keep_alive(proxy.listen)).collect();
    for round in 0..10 {
        proxy.config.instead(&yaml(61 + round)).write();
        proxy.reload().await;
        assert_eq!(proxy.get("/").await.status(), 200);
        loads[0].more(5).await;
    }
    for load in loads {
        assert_eq!(load.end().await, 1);
    }
}

#[tokio::test]
async fn a_download_and_a_websocket_survive_even_the_end_of_their_upstream() {
    let (files, sockets, other) =
        (Origin::echo("f").await, Origin::script("w", websocket).await, Origin::echo("o").await);
    let yaml = format!(
        "
        upstreams: {{ files: {{ backends: [\"{}\"] }}, sockets: {{ backends: [\"{}\"] }} }}
        routes: [{{ match: {{ path: /ws }}, upstream: sockets }}, {{ upstream: files }}]",
        files.address, sockets.address
    );
    let proxy = Config::new(&yaml).start().await;
    let mut download = proxy.client().await;
    download.send(get(&format!("/size/{}", 64 * MIB))).await;
    let mut body = download.response_head().await;
    let mut socket = proxy.client().await;
    upgrade(&mut socket).await;
    proxy.config.instead(&one(&other, "[{ address: <listen> }]")).write();
    for _ in 0..3 {
        proxy.reload().await;
        assert_eq!(proxy.get("/").await.origin(), "o");
        socket.send("still here").await;
        assert_eq!(within("the echo", socket.wire.take(10)).await.expect("an echo"), b"still here");
    }
    within("the body", download.wire.body(&mut body)).await.expect("the whole body");
    assert_eq!(body.length, 64 * MIB);
    assert!(!proxy.scrape().await.0.contains("upstream=\"files\""), "an upstream that is gone is not in the metrics");
}

#[tokio::test]
async fn pooled_connections_of_an_unchanged_upstream_are_used_on() {
    let (origin, other) = (Origin::echo("a").await, Origin::echo("b").await);
    let yaml = |more: &str| {
        format!(
            "
            threads: 1
            upstreams: {{ app: {{ backends: [\"{}\"] }}, other: {{ backends: [\"{}\"{more}] }} }}
            routes: [{{ match: {{ path: /other }}, upstream: other }}, {{ upstream: app }}]",
            origin.address, other.address
        )
    };
    let proxy = Config::new(&yaml("")).start().await;
    let mut client = proxy.client().await;
    client.get("/").await;
    for round in 0..5u32 {
        let more = if round.is_multiple_of(2) { ", \"127.0.0.1:1\"" } else { "" };
        proxy.config.instead(&yaml(more)).write();
        proxy.reload().await;
        assert_eq!(client.get("/").await.origin(), "a");
    }
    assert_eq!(origin.connections(), 1, "one connection for all requests");
}

#[tokio::test]
async fn tls_settings_towards_backends_change_under_load_and_no_request_fails() {
    let ca = Ca::new();
    let server = ca.issue(&["a.test"]);
    let origin = Origin::tls("a", server.server(&[])).await;
    let config = Config::new("upstreams: { app: { backends: [\"127.0.0.1:1\"] } }");
    let path = ca.write(config.dir());
    let more = config.dir().join("more.pem");
    let both = run::read(&path)
        + &{
            let folder = tempfile::tempdir().expect("temporary folder");
            run::read(&Ca::new().write(folder.path()))
        };
    std::fs::write(&more, both).expect("write");
    let yaml = |ca: &std::path::Path| {
        format!(
            "upstreams: {{ app: {{ backends: [\"{}\"], tls: {{ sni: a.test, ca: {} }} }} }}",
            origin.address,
            ca.display()
        )
    };
    let proxy = config.instead(&yaml(&path)).start().await;
    let loads: Vec<Load> = (0..4).map(|_| Load::keep_alive(proxy.listen)).collect();
    for round in 0..10u32 {
        proxy.config.instead(&yaml(if round.is_multiple_of(2) { &more } else { &path })).write();
        proxy.reload().await;
        loads[0].more(20).await;
    }
    for load in loads {
        load.end().await;
    }
    assert_eq!(proxy.scrape().await.sum("rrlb_failures_total", &[]), 0.0);
}

#[tokio::test]
async fn a_bad_file_changes_nothing_and_says_what_check_says() {
    let origin = Origin::echo("a").await;
    let mut proxy = Proxy::before(&[&origin]).await;
    let bad = proxy.config.instead("upstreams: { app: { backends: [] , balance: magic } }\nlistenrs: []");
    let path = bad.write();
    proxy.reload().await;
    assert_eq!(proxy.get("/").await.origin(), "a");
    let scrape = proxy.scrape().await;
    assert_eq!(scrape.sum("rrlb_config_loads_total", &["failed"]), 1.0);
    assert_eq!(scrape.sum("rrlb_config_loads_total", &["ok"]), 1.0);
    assert_eq!(scrape.sum("rrlb_config_generation", &[]), 1.0);
    let check = run::rrlb(&["check", "--format", "short", "-c", &path.display().to_string()]).await.ended_with(1);
    for line in check.stdout.lines() {
        proxy.logged(line).await;
    }
    proxy.config.write();
    proxy.reload().await;
    assert_eq!(proxy.scrape().await.sum("rrlb_config_generation", &[]), 2.0, "a good file is taken again");
    assert!(proxy.running());
}

#[tokio::test]
async fn an_address_that_cannot_be_bound_changes_nothing() {
    let (origin, other) = (Origin::echo("a").await, Origin::echo("b").await);
    let proxy = Config::new(&one(&origin, "[{ address: <listen> }]")).start().await;
    let taken = std::net::TcpListener::bind(address::unused()).expect("bind");
    let (free, taken) = (address::unused(), taken.local_addr().map(|at| (at, taken)).expect("bound"));
    let listeners = "[{ address: \"<free>\" }, { address: \"unix:<dir>/new.sock\" }, { address: \"<taken>\" }]";
    proxy.config.instead(&one(&other, listeners)).put("free", free).put("taken", taken.0).write();
    proxy.reload().await;
    proxy.logged("another process listens there").await;
    assert_eq!(proxy.get("/").await.origin(), "a");
    assert!(Client::try_connect(free).await.is_err(), "what was bound is closed again");
    assert!(!proxy.config.dir().join("new.sock").exists());
    let scrape = proxy.scrape().await;
    assert_eq!(scrape.sum("rrlb_config_generation", &[]), 1.0);
    assert!(!scrape.0.contains(&free.to_string()));
}

#[tokio::test]
async fn the_access_log_moves_and_each_request_is_in_the_one_it_began_with() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut busy = proxy.client().await;
    busy.send(get("/hold")).await;
    wait_until("the request at the origin", || origin.count("/hold") == 1).await;
    let yaml = |log: &str| one(&origin, "[{ address: <listen> }]") + &format!("access_log: {log}\n");
    proxy.config.instead(&yaml("{ path: <dir>/other.log, format: combined }")).write();
    proxy.reload().await;
    proxy.get("/moved").await;
    origin.release();
    busy.response().await;
    let other = proxy.config.dir().join("other.log");
    wait_until("the line", || run::read(&other).contains("\"GET /moved HTTP/1.1\" 200")).await;
    assert_eq!(proxy.access_log(1).await[0]["path"], "/hold");
    let held = || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", proxy.pid())).expect("descriptors");
        fds.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|to| to.ends_with("access.log"))
    };
    wait_until("the old log to be closed", || !held()).await;
    proxy.config.instead(&yaml("off")).write();
    proxy.reload().await;
    assert_eq!(proxy.get("/unseen").await.status(), 200);
    wait_until("the log to be closed", || {
        let fds = std::fs::read_dir(format!("/proc/{}/fd", proxy.pid())).expect("descriptors");
        !fds.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok()).any(|to| to.ends_with("other.log"))
    })
    .await;
    assert!(!run::read(&other).contains("/unseen"));
}

#[tokio::test]
async fn the_metrics_move_to_another_address() {
    let origin = Origin::echo("a").await;
    let mut proxy = Proxy::before(&[&origin]).await;
    let (old, new) = (proxy.metrics, address::unused());
    let yaml = one(&origin, "[{ address: <listen> }]");
    proxy.config.instead(&(yaml.clone() + "metrics: { address: \"<new>\" }\n")).put("new", new).write();
    proxy.signal(libc::SIGHUP);
    proxy.metrics = new;
    eventually("the new address", async || proxy.probe("/readyz").await == Some(200)).await;
    proxy.metric("rrlb_config_generation", &[], |generation| generation == 2.0).await;
    refused(old).await;
    // A successor gets it as well.
    let config = proxy.config.instead(&(yaml + "metrics: { address: \"<new>\" }\n")).put("new", new);
    config.write();
    proxy.config = config;
    let proxy = proxy.upgrade().await;
    assert_eq!(proxy.probe("/readyz").await, Some(200));
}

#[tokio::test]
async fn a_successor_gets_listeners_that_a_reload_added() {
    let origin = Origin::echo("a").await;
    let mut proxy = Config::new(&one(&origin, "[{ address: <listen> }]")).start().await;
    let added = address::unused();
    let more = one(&origin, "[{ address: <listen> }, { address: \"<added>\" }]");
    proxy.config = proxy.config.instead(&more).put("added", added);
    proxy.config.write();
    proxy.reload().await;
    let load = Load::keep_alive(added);
    load.more(5).await;
    let proxy = proxy.upgrade().await;
    load.more(5).await;
    load.end().await;
    assert_eq!(proxy.get("/").await.status(), 200);
}

#[tokio::test]
async fn what_needs_an_upgrade_is_said_and_the_rest_is_done() {
    let (origin, other) = (Origin::echo("a").await, Origin::echo("b").await);
    let mut proxy = Config::new(&one(&origin, "[{ address: <listen> }]")).start().await;
    let yaml = one(&other, "[{ address: <listen> }]") + "threads: 3\ngrace_period_seconds: 1\n";
    proxy.config.instead(&yaml).write();
    proxy.reload().await;
    proxy.logged("stays as it is until an upgrade").await;
    let mut busy = proxy.client().await;
    assert_eq!(proxy.get("/").await.origin(), "b");
    assert_eq!(proxy.scrape().await.sum("rrlb_workers", &[]), 2.0);
    busy.send(get("/hold")).await;
    wait_until("the request at the origin", || other.count("/hold") == 1).await;
    proxy.signal(libc::SIGTERM);
    assert!(proxy.ended().await.success());
    proxy.logged("cut off after the grace period of 1s").await;
}

#[tokio::test]
async fn a_new_backend_is_probed_and_one_that_is_gone_is_forgotten() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let yaml = |backends: &str| {
        format!(
            "
            defaults: {{ health_check: {{ type: http, interval: 20ms }} }}
            upstreams: {{ app: {{ backends: [{backends}] }} }}"
        )
    };
    let proxy = Config::new(&yaml(&format!("\"{}\"", a.address))).start().await;
    proxy.config.instead(&yaml(&format!("\"{}\"", b.address))).write();
    proxy.reload().await;
    proxy.metric("rrlb_backend_up", &[&b.address], |up| up == 1.0).await;
    assert_eq!(proxy.get("/").await.origin(), "b");
    let probed = a.total();
    proxy.metric("rrlb_health_checks_total", &[&b.address, "ok"], |probes| probes > 5.0).await;
    assert!(a.total() <= probed + 1, "a backend that is gone is not probed any more");
    assert!(!proxy.scrape().await.0.contains(&a.address), "nor is it in the metrics");
}

#[tokio::test]
async fn checked_backends_are_exchanged_under_load_and_no_request_fails() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let yaml = |origin: &Origin| {
        let address = &origin.address;
        format!(
            "
            defaults: {{ health_check: {{ type: http, interval: 1s }} }}
            upstreams: {{ app: {{ backends: [\"{address}\"] }} }}"
        )
    };
    let proxy = Config::new(&yaml(&a)).start().await;
    let loads: Vec<Load> = (0..4).map(|_| Load::keep_alive(proxy.listen)).collect();
    for (origin, name) in [(&b, "b"), (&a, "a"), (&b, "b"), (&a, "a")] {
        proxy.config.instead(&yaml(origin)).write();
        proxy.reload().await;
        assert_eq!(proxy.get("/").await.origin(), name);
        loads[0].more(20).await;
    }
    for load in loads {
        assert_eq!(load.end().await, 1);
    }
}

#[tokio::test]
async fn an_address_that_another_listener_stands_on_is_refused_with_a_way_out() {
    let origin = Origin::echo("a").await;
    let free = std::net::TcpListener::bind("127.0.0.1:0").expect("bind").local_addr().expect("bound").port();
    let listeners = |host: &str| format!("[{{ address: <listen> }}, {{ address: \"{host}:{free}\" }}]");
    let proxy = Config::new(&one(&origin, &listeners("0.0.0.0"))).start().await;
    proxy.config.instead(&one(&origin, &listeners("127.0.0.1"))).write();
    proxy.reload().await;
    proxy.logged(&format!("this process itself listens on 0.0.0.0:{free}")).await;
    assert_eq!(proxy.get("/").await.status(), 200);
}

#[tokio::test]
async fn everything_changes_at_once_and_no_client_of_any_kind_notices() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let added = address::unused();
    let yaml = |round: usize| {
        let (idle, more) = (60 + round, if round.is_multiple_of(2) { "" } else { ", { address: \"<added>\" }" });
        let listeners = format!("[{{ address: <listen>, h2c: true, limits: {{ idle_timeout: {idle}s }} }}{more}]");
        let backends =
            if round.is_multiple_of(3) { a.address.clone() } else { format!("{}\", \"{}", a.address, b.address) };
        let format = if round.is_multiple_of(2) { "json" } else { "combined" };
        format!(
            "
            listeners: {listeners}
            access_log: {{ path: <dir>/access.{round}.log, format: {format} }}
            upstreams: {{ app: {{ backends: [\"{backends}\"] }} }}
            routes: [{{ match: {{ path: /round/{round} }}, upstream: app }}, {{ upstream: app }}]"
        )
    };
    let proxy = Config::new(&yaml(0)).put("added", added).start().await;
    let loads: Vec<Load> = (0..2).map(|_| Load::keep_alive(proxy.listen)).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let (at, until) = (proxy.listen, stop.clone());
    let closing = tokio::spawn(async move {
        while !until.load(Ordering::SeqCst) {
            let mut client = Client::connect(at).await;
            let reply = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
            assert_eq!(reply.status(), 200);
            assert_eq!(client.closed().await, b"");
        }
    });
    let until = stop.clone();
    let streams = tokio::spawn(async move {
        let client = Client2::prior(at).await;
        while !until.load(Ordering::SeqCst) {
            assert_eq!(client.get("/").await.status, 200, "one connection for all streams");
        }
    });
    for round in 1..=12 {
        proxy.config.instead(&yaml(round)).put("added", added).write();
        proxy.reload().await;
        loads[0].more(10).await;
    }
    stop.store(true, Ordering::SeqCst);
    within("the clients", closing).await.expect("no request failed");
    within("the streams", streams).await.expect("no stream failed");
    for load in loads {
        assert_eq!(load.end().await, 1);
    }
    let scrape = proxy.scrape().await;
    assert_eq!(scrape.sum("rrlb_failures_total", &[]), 0.0);
    assert_eq!(scrape.sum("rrlb_config_generation", &[]), 13.0);
    assert_eq!(scrape.sum("rrlb_access_log_dropped_total", &[]), 0.0);
}

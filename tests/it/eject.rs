//! Backends that fail the requests they are sent are taken out for a while: others take their load, they come back by
//! themselves, and somebody is always left.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::{Duration, Instant},
};

use crate::support::{
    address,
    admin::Api,
    eventually,
    frames::{self, Raw},
    http1::get,
    http2::{Client2, Origin2},
    misbehave,
    origin::{Origin, Peer},
    proxy::{Config, Proxy},
    run, wait_until,
};

/// Longer than any test.
const LONG: &str = "10m";

/// `app` with backends `a`, `b` … at these addresses.
fn app<A: ToString>(backends: &[A], eject: &str, more: &str) -> Config {
    let backend = |(at, id): (&A, char)| format!("      - {{ id: {id}, address: \"{}\" }}\n", at.to_string());
    let backends: String = backends.iter().zip('a'..).map(backend).collect();
    let (eject, more) = (eject.to_owned(), more.to_owned());
    Config::new(&format!(
        "admin: {{ socket: <dir>/admin.sock }}\nupstreams:\n  app:\n    eject: {eject}\n    backends:\n{backends}{more}"
    ))
}

/// Answers everything with the status that can be changed.
async fn with_status(name: &str, status: u16) -> (Origin, Arc<AtomicU16>) {
    let status = Arc::new(AtomicU16::new(status));
    let shared = status.clone();
    let script = move |mut peer: Peer| {
        let status = shared.clone();
        async move {
            while peer.request().await.is_some() {
                peer.reply(status.load(Ordering::SeqCst), "", "").await;
            }
        }
    };
    (Origin::script(name, script).await, status)
}

async fn statuses(proxy: &Proxy, requests: usize) -> Vec<u16> {
    let mut statuses = Vec::new();
    for _ in 0..requests {
        statuses.push(proxy.get("/").await.status());
    }
    statuses
}

/// Requests until the backends of `app` are these; what they see matters not.
async fn asked_until(proxy: &Proxy, api: &Api, backends: &[&str]) {
    eventually(&format!("{backends:?}"), async || {
        proxy.get("/").await;
        api.backends().await == backends
    })
    .await;
}

/// How many of `app` are out, as its next request sees it; metrics follow within a moment.
async fn out(proxy: &Proxy) -> usize {
    Api::of(proxy).backends().await.iter().filter(|backend| backend.ends_with(":ejected")).count()
}

#[tokio::test]
async fn a_backend_that_answers_500_is_out_after_so_many_and_others_take_all_its_load() {
    let ((bad, _), good, other) = (with_status("bad", 500).await, Origin::echo("b").await, Origin::echo("c").await);
    let backends = [&bad.address, &good.address, &other.address];
    let eject = format!("{{ consecutive_failures: 3, base: {LONG} }}");
    let proxy = app(&backends, &eject, "").start().await;
    let seen = statuses(&proxy, 60).await;
    assert_eq!(seen.iter().filter(|status| **status == 500).count(), 3, "{seen:?}");
    assert!(seen[9..].iter().all(|status| *status == 200), "{seen:?}");
    assert_eq!((bad.total(), good.total() + other.total()), (3, 57));
    assert!(good.total().abs_diff(other.total()) <= 4, "{} and {}", good.total(), other.total());
    proxy.metric("rrlb_backend_ejected", &["backend=\"a\""], |n| n == 1.0).await;
    proxy.metric("rrlb_backend_ejections_total", &["backend=\"a\""], |n| n == 1.0).await;
    proxy.logged("backend.ejected app/a").await;
    let line = proxy.stderr().lines().find(|line| line.contains("backend.ejected")).expect("a line").to_owned();
    assert!(line.contains("WARN") && line.contains("3 failures in a row, the last: status 500"), "{line}");
    let socket = proxy.config.dir().join("admin.sock");
    let socket = socket.to_str().expect("text");
    for (command, words) in [
        ("status", &["a ejected"][..]),
        ("backend list app", &["ejected", "3 failures in a row", "back in"]),
        ("route GET http://a.test/", &["ejected; gets only retries of requests that have tried all others"]),
        ("events", &["backend.ejected app/a: out for 600s, by passive check", "status 500"]),
    ] {
        let args: Vec<&str> = ["--socket", socket].into_iter().chain(command.split(' ')).collect();
        let shown = run::rrlb(&args).await.ended_with(0).stdout;
        assert!(words.iter().all(|word| shown.contains(word)), "{command}: {shown}");
    }
}

#[tokio::test]
async fn it_returns_without_traffic_and_the_second_ejection_lasts_longer() {
    let ((bad, status), good) = (with_status("bad", 503).await, Origin::echo("b").await);
    let proxy = app(&[&bad.address, &good.address], "{ consecutive_failures: 2, base: 2s }", "").start().await;
    let api = Api::of(&proxy);
    let begun = Instant::now();
    asked_until(&proxy, &api, &["a:ejected", "b:up"]).await;
    api.settles(&["a:up", "b:up"]).await;
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    // At once: each `base` that it stays in takes one off.
    let begun = Instant::now();
    asked_until(&proxy, &api, &["a:ejected", "b:up"]).await;
    let shown = api.get("/v1/upstreams/app/backends/a").await;
    assert_eq!(shown["ejected"]["times"], 2, "{shown}");
    status.store(200, Ordering::SeqCst);
    let before = bad.total();
    assert_eq!(statuses(&proxy, 10).await, [200; 10]);
    assert_eq!(bad.total(), before);
    api.settles(&["a:up", "b:up"]).await;
    assert!(begun.elapsed() >= Duration::from_secs(4), "{:?}", begun.elapsed());
    assert_eq!(statuses(&proxy, 10).await, [200; 10]);
    assert_eq!(bad.total(), before + 5);
    proxy.metric("rrlb_backend_ejected", &[], |n| n == 0.0).await;
    proxy.metric("rrlb_backend_ejections_total", &[], |n| n == 2.0).await;
    let told = |kind: &str| proxy.stderr().matches(kind).count();
    assert_eq!((told("backend.ejected app/a"), told("backend.returned app/a")), (2, 2), "{}", proxy.stderr());
}

#[tokio::test]
async fn a_success_breaks_the_row() {
    let (origin, status) = with_status("a", 500).await;
    let other = Origin::echo("b").await;
    let eject = format!("{{ consecutive_failures: 3, base: {LONG} }}");
    // Of two workers one may answer before the other has counted.
    let proxy = app(&[&origin.address, &other.address], &eject, "threads: 1\n").start().await;
    for _ in 0..4 {
        status.store(500, Ordering::SeqCst);
        statuses(&proxy, 4).await;
        // As is whatever is about the request.
        status.store(404, Ordering::SeqCst);
        statuses(&proxy, 2).await;
    }
    assert_eq!((origin.total(), out(&proxy).await), (12, 0));
}

#[tokio::test]
async fn no_more_than_max_percent_are_out() {
    let mut origins = Vec::new();
    for (name, status) in [("a", 503), ("b", 503), ("c", 503), ("d", 200)] {
        origins.push(with_status(name, status).await.0);
    }
    let addresses: Vec<&String> = origins.iter().map(|origin| &origin.address).collect();
    let eject = format!("{{ consecutive_failures: 1, base: {LONG}, max_percent: 50% }}");
    let proxy = app(&addresses, &eject, "").start().await;
    statuses(&proxy, 40).await;
    assert_eq!(out(&proxy).await, 2);
    proxy.metric("rrlb_backend_ejections_total", &[], |n| n == 2.0).await;
    let mut totals: Vec<usize> = origins.iter().map(Origin::total).collect();
    totals.sort_unstable();
    assert_eq!(totals, [1, 1, 19, 19], "two go on with what they have");
}

#[tokio::test]
async fn the_last_one_is_never_ejected() {
    let ((a, _), (b, _)) = (with_status("a", 500).await, with_status("b", 500).await);
    let eject = format!("{{ consecutive_failures: 1, base: {LONG}, max_percent: 100% }}");
    let proxy = app(&[&a.address, &b.address], &eject, "").start().await;
    // Their own answer, and not one of rrlb's.
    assert_eq!(statuses(&proxy, 20).await, [500; 20]);
    assert_eq!(a.total() + b.total(), 20);
    eventually("both in, as neither is better", async || {
        proxy.get("/").await;
        out(&proxy).await == 0
    })
    .await;
    let alone = app(&[&a.address], &eject, "").start().await;
    assert_eq!(statuses(&alone, 10).await, [500; 10]);
    assert_eq!(out(&alone).await, 0);
}

#[tokio::test]
async fn one_that_is_out_takes_over_at_once_when_no_other_is_left() {
    let ((bad, status), mut good) = (with_status("bad", 500).await, Origin::echo("b").await);
    let check = "    health_check: { type: tcp, interval: 50ms, fall: 1 }\n    retry: { attempts: 1 }\n";
    let eject = format!("{{ consecutive_failures: 1, base: {LONG} }}");
    let proxy = app(&[&bad.address, &good.address], &eject, check).start().await;
    let api = Api::of(&proxy);
    asked_until(&proxy, &api, &["a:ejected", "b:up"]).await;
    status.store(200, Ordering::SeqCst);
    good.stop().await;
    api.settles(&["a:up", "b:down"]).await;
    assert_eq!(statuses(&proxy, 5).await, [200; 5]);
    proxy.logged("no other backend is left").await;
}

#[tokio::test]
async fn one_that_is_out_takes_over_when_the_last_one_dies_and_nothing_is_probed() {
    let ((a, status), mut b) = (with_status("a", 500).await, Origin::echo("b").await);
    let eject = format!("{{ consecutive_failures: 3, base: {LONG} }}");
    let proxy = app(&[&a.address, &b.address], &eject, "    retry: { attempts: 1 }\n").start().await;
    let api = Api::of(&proxy);
    asked_until(&proxy, &api, &["a:ejected", "b:up"]).await;
    status.store(200, Ordering::SeqCst);
    b.stop().await;
    asked_until(&proxy, &api, &["a:up", "b:ejected"]).await;
    assert_eq!(statuses(&proxy, 10).await, [200; 10]);
    proxy.logged("those that are left fail too").await;
}

#[tokio::test]
async fn a_retry_may_go_to_one_that_is_out() {
    let ((a, status), mut b) = (with_status("a", 500).await, Origin::echo("b").await);
    let eject = format!("{{ consecutive_failures: 3, base: {LONG} }}");
    let proxy = app(&[&a.address, &b.address], &eject, "").start().await;
    let api = Api::of(&proxy);
    asked_until(&proxy, &api, &["a:ejected", "b:up"]).await;
    status.store(200, Ordering::SeqCst);
    b.stop().await;
    assert_eq!(statuses(&proxy, 20).await, [200; 20], "none of them saw that b is dead");
}

/// Answers 200 so much later.
async fn late(name: &str, by: Duration) -> Origin {
    let script = move |mut peer: Peer| async move {
        while peer.request().await.is_some() {
            tokio::time::sleep(by).await;
            peer.reply(200, "", "").await;
        }
    };
    Origin::script(name, script).await
}

/// `app`, where each request waits for an auth service that takes so long.
async fn guarded(backends: &[&String], service: &Origin, timeouts: &str) -> Proxy {
    let route = format!(
        "    timeouts: {timeouts}\nroutes: [{{ upstream: app, forward_auth: {{ url: \"http://{}/\", timeout: 5s }} }}]\n",
        service.address
    );
    app(backends, &format!("{{ consecutive_failures: 1, base: {LONG} }}"), &route).start().await
}

#[tokio::test]
async fn the_time_that_a_guard_takes_is_not_the_backends() {
    let auth = late("auth", Duration::from_millis(900)).await;
    let (a, b) = (late("a", Duration::from_millis(600)).await, late("b", Duration::from_millis(600)).await);
    let proxy = guarded(&[&a.address], &auth, "{ first_byte: 1200ms }").await;
    // The second and third on a pooled connection.
    assert_eq!(statuses(&proxy, 3).await, [200; 3]);
    let proxy = guarded(&[&a.address, &b.address], &auth, "{ total: 1200ms }").await;
    assert_eq!(statuses(&proxy, 4).await, [504; 4]);
    assert_eq!(out(&proxy).await, 0, "they had a quarter of the time");
    let auth = late("auth", Duration::ZERO).await;
    let proxy = guarded(&[&a.address, &b.address], &auth, "{ total: 500ms }").await;
    assert_eq!(statuses(&proxy, 4).await, [504; 4]);
    proxy.logged("total_timeout").await;
    assert!(proxy.stderr().contains("backend.ejected"), "they had all of it: {}", proxy.stderr());
}

#[tokio::test]
async fn every_way_of_failing_counts() {
    let good = Origin::echo("b").await;
    let refused = address::unused().to_string();
    let (hole, mute) = (misbehave::Blackhole::new(), Origin::script("mute", misbehave::mute).await);
    let (hole, closing) = (hole.address.to_string(), Origin::script("closing", misbehave::close_at_once).await);
    let resetting = Origin::script("resetting", misbehave::reset_after_request).await;
    let babbling = Origin::script("babbling", misbehave::babble).await;
    let truncating = Origin::script("truncating", misbehave::close_in_body).await;
    let stalling = Origin::script("stalling", misbehave::stall_in_body).await;
    let lengthless = Origin::script("lengthless", misbehave::stall_without_a_length).await;
    for (address, why) in [
        (&refused, "connect_refused"),
        (&hole, "connect_timeout"),
        (&mute.address, "first_byte_timeout"),
        (&closing.address, "reset_before_headers"),
        (&resetting.address, "reset_before_headers"),
        (&babbling.address, "bad_response"),
        // The head of an answer is no success if the rest does not come.
        (&truncating.address, "response_truncated"),
        (&stalling.address, "read_timeout"),
        (&lengthless.address, "read_timeout"),
    ] {
        let eject = format!("{{ consecutive_failures: 2, base: {LONG} }}");
        let timeouts = "    timeouts: { connect: 200ms, first_byte: 200ms, read: 200ms }\n";
        let proxy = app(&[address, &good.address], &eject, timeouts).start().await;
        for _ in 0..4 {
            let mut client = proxy.client().await;
            client.send("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
            client.closed().await;
        }
        proxy.logged(&format!("2 failures in a row, the last: {why}")).await;
        assert_eq!(Api::of(&proxy).backends().await, ["a:ejected", "b:up"], "{why}");
    }
}

#[tokio::test]
async fn stale_pooled_connections_do_not_count() {
    let script = |mut peer: Peer| async move {
        if peer.request().await.is_some() {
            peer.held().await;
            peer.reply(200, "", "first").await;
            let _ = peer.wire.head().await; // the next request is read and the connection closed
        }
    };
    let (a, b) = (Origin::script("a", script).await, Origin::script("b", script).await);
    let eject = format!("{{ consecutive_failures: 1, base: {LONG} }}");
    let proxy = app(&[&a.address, &b.address], &eject, "threads: 1\n").start().await;
    let mut clients = Vec::new();
    for _ in 0..6 {
        let mut client = proxy.client().await;
        client.send(get("/hold")).await;
        clients.push(client);
    }
    wait_until("six requests at the origins", || a.total() + b.total() == 6).await;
    a.release();
    b.release();
    for client in &mut clients {
        assert_eq!(client.response().await.status(), 200);
    }
    assert_eq!(a.open() + b.open(), 6, "pooled");
    for n in 0..12 {
        assert_eq!(proxy.get("/again").await.status(), 200, "request {n}");
    }
    proxy.metric("rrlb_retries_total", &["stale_connection"], |n| n >= 2.0).await;
    assert_eq!(out(&proxy).await, 0);
}

#[tokio::test]
async fn clients_that_go_away_or_do_not_finish_do_not_count() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let eject = format!("{{ consecutive_failures: 1, base: {LONG} }}");
    let limits = "listeners: [{ address: \"<listen>\", limits: { max_body_size: 1KiB } }]\n";
    let proxy = app(&[&a.address, &b.address], &eject, limits).start().await;
    for n in 0..4 {
        // Before the answer.
        let mut client = proxy.client().await;
        client.send(get(&format!("/hold{n}"))).await;
        wait_until("the request at an origin", || a.total() + b.total() == 3 * n + 1).await;
        drop(client);
        // Within it.
        let mut client = proxy.client().await;
        client.send(get("/size/100000000")).await;
        client.response_head().await;
        drop(client);
        // Within its own request, and with too long a one.
        let mut client = proxy.client().await;
        client.send("POST /p HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1000\r\n\r\nxxx").await;
        wait_until("a connection for it", || a.connections() + b.connections() > n).await;
        drop(client);
        let mut client = proxy.client().await;
        let head = "POST /p HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n";
        client.send(format!("{head}800\r\n{}\r\n0\r\n\r\n", "x".repeat(0x800))).await;
        assert_eq!(client.response().await.status(), 413);
        assert_eq!(proxy.get("/").await.status(), 200);
    }
    wait_until("their lines in the log", || run::read(&proxy.config.dir().join("access.log")).lines().count() == 20)
        .await;
    let log = run::read(&proxy.config.dir().join("access.log"));
    assert!(log.matches("client_aborted").count() >= 8, "{log}");
    assert_eq!(out(&proxy).await, 0, "{log}");
}

#[tokio::test]
async fn a_request_between_two_http2_sides_that_is_dropped_counts_too() {
    let (good, address) = (Origin2::start("b", None).await, address::unused());
    let listener = tokio::net::TcpListener::bind(address).await.expect("bind");
    let silent = tokio::spawn(async move {
        let mut held = Vec::new();
        while let Ok((stream, _)) = listener.accept().await {
            held.push(tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                let mut unanswered = Vec::new();
                while let Some(Ok(request)) = connection.accept().await {
                    unanswered.push(request);
                }
            }));
        }
    });
    let more = "    protocol: h2c\n    timeouts: { first_byte: 200ms, read: 20s }\nlisteners: [{ address: \"<listen>\", h2c: true }]\n";
    let eject = format!("{{ consecutive_failures: 2, base: {LONG} }}");
    let proxy = app(&[address, good.address], &eject, more).start().await;
    let client = Client2::prior(proxy.listen).await;
    let mut failed = 0;
    for _ in 0..12 {
        // Over Pingora's path it is reset.
        failed += usize::from(client.try_get("/").await.map_or(true, |answer| answer.status == 504));
    }
    assert_eq!(failed, 2);
    assert_eq!(Api::of(&proxy).backends().await, ["a:ejected", "b:up"]);
    proxy.logged("2 failures in a row, the last: first_byte_timeout").await;
    // A client that resets its streams does not count.
    let config = app(&[address, good.address], "{ consecutive_failures: 1, base: 10m }", &more.replace("200ms", "1h"));
    let proxy = config.start().await;
    let mut raw = Raw::begin(proxy.listen, &[]).await;
    for stream in (0..8).map(|n| 2 * n + 1) {
        raw.send(&frames::get(stream, "/")).await;
    }
    proxy.metric("rrlb_backend_requests_total", &[], |n| n == 8.0).await;
    for stream in (0..8).map(|n| 2 * n + 1) {
        raw.send(&frames::reset(stream)).await;
    }
    let lines = proxy.access_log(8).await;
    assert!(
        lines.iter().filter(|line| line["backend"] == "a").all(|line| line["reason"] == "client_aborted"),
        "{lines:?}"
    );
    assert_eq!(out(&proxy).await, 0);
    silent.abort();
}

#[tokio::test]
async fn an_ejection_outlives_reloads_and_upgrades() {
    let ((bad, status), good) = (with_status("bad", 500).await, Origin::echo("b").await);
    let backends = [&bad.address, &good.address];
    let proxy = app(&backends, "{ consecutive_failures: 2, base: 15s }", "").start().await;
    let api = Api::of(&proxy);
    let begun = Instant::now();
    asked_until(&proxy, &api, &["a:ejected", "b:up"]).await;
    let ejected = Instant::now();
    proxy.reload().await;
    let before = bad.total();
    assert_eq!(statuses(&proxy, 6).await, [200; 6]);
    let mut proxy = proxy.upgrade().await.upgrade().await;
    proxy.ready().await;
    assert_eq!(statuses(&proxy, 6).await, [200; 6]);
    assert_eq!((bad.total(), api.backends().await), (before, vec!["a:ejected".to_owned(), "b:up".to_owned()]));
    let shown = api.get("/v1/upstreams/app/backends/a").await;
    assert_eq!(shown["ejected"]["why"], "2 failures in a row, the last: status 500");
    let left = shown["ejected"]["returns_in"].as_u64().expect("seconds");
    assert!(left <= 16 - ejected.elapsed().as_secs().min(15), "{left} s are left after {:?}", ejected.elapsed());
    proxy.metric("rrlb_backend_ejected", &["backend=\"a\""], |n| n == 1.0).await;
    status.store(200, Ordering::SeqCst);
    api.settles(&["a:up", "b:up"]).await;
    assert!(begun.elapsed() >= Duration::from_secs(14), "{:?}", begun.elapsed());
    proxy.logged("backend.returned app/a").await;
    proxy.metric("rrlb_backend_ejected", &["backend=\"a\""], |n| n == 0.0).await;
    statuses(&proxy, 2).await;
    assert_eq!(bad.total(), before + 1);
}

#[tokio::test]
async fn a_reload_that_turns_it_off_brings_everybody_back() {
    let ((bad, _), good) = (with_status("bad", 500).await, Origin::echo("b").await);
    let backends = [&bad.address, &good.address];
    let proxy = app(&backends, &format!("{{ consecutive_failures: 1, base: {LONG} }}"), "").start().await;
    let api = Api::of(&proxy);
    asked_until(&proxy, &api, &["a:ejected", "b:up"]).await;
    let file = proxy.config.dir().join("rrlb.yaml");
    let text = run::read(&file).replace("{ consecutive_failures: 1, base: 10m }", "off");
    proxy.config.write_text(&text);
    proxy.reload().await;
    api.settles(&["a:up", "b:up"]).await;
    let seen = statuses(&proxy, 20).await;
    assert_eq!(seen.iter().filter(|status| **status == 500).count(), 10, "{seen:?}");
    proxy.metric("rrlb_backend_ejected", &[], |n| n == 0.0).await;
}

#[tokio::test]
async fn one_that_comes_back_from_an_ejection_begins_slowly() {
    let ((bad, status), good) = (with_status("bad", 500).await, Origin::echo("b").await);
    let eject = "{ consecutive_failures: 2, base: 500ms }\n    slow_start: 1h";
    let proxy = app(&[&bad.address, &good.address], eject, "").start().await;
    let api = Api::of(&proxy);
    asked_until(&proxy, &api, &["a:ejected", "b:up"]).await;
    status.store(200, Ordering::SeqCst);
    let target = "/v1/upstreams/app/backends/a";
    eventually("its slow start", async || api.get(target).await["slow_start"]["percent"] == 10).await;
    let before = bad.total();
    assert!(statuses(&proxy, 22).await.iter().all(|status| *status == 200));
    assert_eq!(bad.total() - before, 2, "a tenth of what b has");
}

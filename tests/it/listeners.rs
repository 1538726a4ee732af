//! Listeners: where they accept, how connections are spread and kept, and their deadlines.

use std::{
    os::unix::process::CommandExt,
    time::{Duration, Instant},
};

use crate::support::{
    address,
    http1::{Client, get, get_once},
    http2::{Client2, request},
    origin::Origin,
    proxy::{Config, Proxy},
    wait_until, within,
};

#[tokio::test]
async fn ipv4_and_unix_sockets_are_served() {
    let origin = Origin::echo("a").await;
    let more = "listeners: [{ address: <listen> }, { address: \"unix:<dir>/http.sock\" }]";
    let proxy = Config::before(&[&origin], more).start().await;
    assert_eq!(proxy.get("/").await.origin(), "a");
    let path = proxy.config.dir().join("http.sock");
    assert_eq!(Client::unix(&path).await.get("/").await.origin(), "a");
}

#[tokio::test]
async fn ipv6_is_served() {
    if !address::has_v6() {
        return; // nothing to test on
    }
    let origin = Origin::echo("a").await;
    let six = address::unused_v6();
    let proxy = Config::before(&[&origin], "listeners: [{ address: \"<six>\" }]").put("six", six).start().await;
    assert_eq!(get_once(six, "/").await.origin(), "a");
    drop(proxy);
}

#[tokio::test]
async fn forty_listeners_are_served_at_once() {
    let origin = Origin::echo("a").await;
    let addresses: Vec<_> = (0..40).map(|_| address::unused()).collect();
    let list: String = addresses.iter().map(|a| format!("  - address: {a}\n")).collect();
    let _proxy = Config::before(&[&origin], &format!("listeners:\n{list}")).start().await;
    for at in addresses {
        assert_eq!(get_once(at, "/").await.origin(), "a", "{at}");
    }
}

#[tokio::test]
async fn connections_are_spread_evenly_over_workers() {
    let origin = Origin::echo("a").await;
    spread_evenly(&Proxy::before(&[&origin]).await, 2).await;
}

#[tokio::test]
async fn connections_are_spread_evenly_after_an_upgrade_to_another_number_of_workers() {
    let origin = Origin::echo("a").await;
    let mut proxy = Config::before(&[&origin], "threads: 1").start().await;
    for workers in [4, 3] {
        let yaml = format!("upstreams: {{ app: {{ backends: [\"{}\"] }} }}\nthreads: {workers}\n", origin.address);
        proxy.config = proxy.config.instead(&yaml);
        proxy = proxy.upgrade().await;
        spread_evenly(&proxy, workers).await;
    }
}

/// 64 connections and more: no worker has more than 1.2 of the mean, nor less than 0.8.
async fn spread_evenly(proxy: &Proxy, workers: u32) {
    let mut clients = Vec::new();
    for _ in 0..32 * workers {
        let mut client = proxy.client().await;
        client.get("/").await;
        clients.push(client);
    }
    for worker in 0..workers {
        let worker = format!("worker=\"{worker}\"");
        proxy.metric("rrlb_connections_per_worker", &[&worker], |n| (25.6..=38.4).contains(&n)).await;
    }
    drop(clients);
    proxy.metric("rrlb_connections_per_worker", &[], |n| n == 0.0).await;
}

fn descriptors(limit: libc::rlim_t) -> libc::rlimit {
    libc::rlimit { rlim_cur: limit, rlim_max: limit.max(96) }
}

/// A proxy that may have so many descriptors.
async fn with_few_descriptors(origin: &Origin, most: libc::rlim_t) -> Proxy {
    let more = "listeners: [{ address: <listen>, h2c: true }]";
    spawn_with_few_descriptors(Config::before(&[origin], more), most).await
}

async fn spawn_with_few_descriptors(config: Config, most: libc::rlim_t) -> Proxy {
    let mut proxy = config.spawn_with(&[], |command| {
        // SAFETY: setrlimit is async-signal-safe.
        unsafe {
            command.pre_exec(move || {
                if libc::setrlimit(libc::RLIMIT_NOFILE, &descriptors(most)) == 0 {
                    return Ok(());
                }
                Err(std::io::Error::last_os_error())
            })
        };
    });
    proxy.ready().await;
    proxy
}

#[tokio::test]
async fn clients_never_get_all_descriptors() {
    let origin = Origin::echo("a").await;
    let proxy = with_few_descriptors(&origin, 96).await;
    let mut first = proxy.client().await;
    let mut silent = Vec::new();
    for _ in 0..160 {
        silent.push(proxy.client().await);
    }
    proxy.metric("rrlb_connections_refused_total", &["cause=\"limit\""], |count| (120.0..160.0).contains(&count)).await;
    // Who is in is served, by a new connection to the backend; files and the admin API can be opened.
    assert_eq!(within("an answer", first.get("/")).await.origin(), "a");
    proxy.reload().await;
    drop(silent);
    // Who comes before they are seen to have left is turned away as well.
    proxy.metric("rrlb_connections_open", &[], |count| count < 10.0).await;
    assert_eq!(within("service again", proxy.get("/")).await.origin(), "a");
    assert_eq!(proxy.scrape().await.sum("rrlb_accept_errors_total", &[]), 0.0);
}

#[tokio::test]
async fn running_out_of_descriptors_is_counted_and_does_not_spin() {
    let origin = Origin::echo("a").await;
    let mut proxy = with_few_descriptors(&origin, 96).await;
    let limit = |limit| {
        let pid = libc::pid_t::try_from(proxy.pid()).expect("a process");
        // SAFETY: the new limit is read, and the old one not asked for.
        let set = unsafe { libc::prlimit(pid, libc::RLIMIT_NOFILE, &descriptors(limit), std::ptr::null_mut()) };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    };
    // Others than clients have taken the rest.
    limit(16);
    let mut client = proxy.client().await;
    let (begun, before) = (Instant::now(), proxy.cpu());
    tokio::time::sleep(Duration::from_millis(600)).await; // no wait: the span over which CPU time is measured
    let share = (proxy.cpu() - before).as_secs_f64() / begun.elapsed().as_secs_f64();
    assert!(share < 0.25, "spins: {share:.2} of a core");
    limit(96);
    assert_eq!(within("service again", client.get("/")).await.origin(), "a");
    proxy.metric("rrlb_accept_errors_total", &[], |n| n >= 1.0).await;
    assert!(proxy.running());
}

#[tokio::test]
async fn http2_by_prior_knowledge_stands_beside_http1_where_the_listener_says_so() {
    let origin = Origin::echo("a").await;
    let more = "listeners: [{ address: <listen>, h2c: true }, { address: \"<plain>\" }]";
    let plain = address::unused();
    let proxy = Config::before(&[&origin], more).put("plain", plain).start().await;
    assert_eq!(Client2::prior(proxy.listen).await.get("/").await.text(), "a");
    assert_eq!(proxy.get("/").await.text(), "a");
    let refused = match Client2::try_prior(plain).await {
        Ok(client) => client.try_get("/").await.is_err(),
        Err(_) => true,
    };
    assert!(refused, "h2c was spoken where it is off");
}

#[tokio::test]
async fn a_request_shorter_than_the_h2_preface_is_answered_on_an_h2c_listener() {
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], "listeners: [{ address: <listen>, h2c: true }]").start().await;
    let reply = proxy.client().await.ask("GET / HTTP/1.0\r\n\r\n").await;
    assert_eq!(reply.status(), 200, "{reply:?}");
}

#[tokio::test]
async fn a_redirecting_listener_sends_everybody_to_https() {
    let origin = Origin::echo("a").await;
    let more = "listeners: [{ address: <listen>, redirect_https: true }]";
    let proxy = Config::before(&[&origin], more).start().await;
    let mut client = proxy.client().await;
    for host in ["a.test", "a.test:8080"] {
        let reply = client.ask(format!("GET /x?y=1 HTTP/1.1\r\nHost: {host}\r\n\r\n")).await;
        assert!(matches!(reply.status(), 301 | 308), "{reply:?}");
        assert_eq!(reply.field("location"), Some("https://a.test/x?y=1"));
    }
    assert_eq!(origin.total(), 0);
}

#[tokio::test]
async fn a_connection_serves_many_requests_one_after_the_other() {
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], "threads: 1").start().await;
    let mut client = proxy.client().await;
    for _ in 0..200 {
        assert_eq!(client.get("/").await.origin(), "a");
    }
    assert_eq!(origin.connections(), 1, "the upstream connection was not kept");
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    client.send((201..=210).map(|n| get(&format!("/status/{n}"))).collect::<String>().replace("204", "220")).await;
    for status in (201..=210).map(|n| if n == 204 { 220 } else { n }) {
        assert_eq!(client.response().await.status(), status);
    }
}

#[tokio::test]
async fn a_request_may_follow_a_body_in_the_same_packet() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let bodies =
        ["Content-Length: 5\r\n\r\nhello", "Transfer-Encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n"];
    for body in bodies {
        let mut client = proxy.client().await;
        client.send(format!("POST /p HTTP/1.1\r\nHost: a.test\r\n{body}{}", get("/status/202"))).await;
        assert_eq!(client.response().await.text(), "hello", "{body:?}");
        assert_eq!(client.response().await.status(), 202, "{body:?}");
        assert_eq!(client.get("/").await.status(), 200, "{body:?}");
    }
}

#[tokio::test]
async fn an_answer_to_connection_close_closes() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    let reply = client.ask("GET / HTTP/1.1\r\nHost: a.test\r\nConnection: close\r\n\r\n").await;
    assert_eq!((reply.status(), reply.field("connection")), (200, Some("close")));
    assert_eq!(client.closed().await, b"");
}

#[tokio::test]
async fn a_head_that_drips_in_is_cut_at_the_deadline() {
    let origin = Origin::echo("a").await;
    let more = "listeners: [{ address: <listen>, limits: { header_timeout: 400ms } }]";
    let proxy = Config::before(&[&origin], more).start().await;
    let begun = Instant::now();
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\nX-Drip: ").await;
    let drip = async {
        while client.wire.send("x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await; // the client's pace, each byte well inside the deadline
        }
    };
    within("the cut", drip).await;
    let took = begun.elapsed();
    assert!((Duration::from_millis(350)..Duration::from_secs(4)).contains(&took), "cut after {took:?}");
    assert_eq!(origin.total(), 0);
}

#[tokio::test]
async fn a_connection_that_says_nothing_is_cut_at_the_header_deadline() {
    let origin = Origin::echo("a").await;
    for h2c in ["false", "true"] {
        let more = "listeners: [{ address: <listen>, h2c: <h2c>, limits: { header_timeout: 300ms } }]";
        let proxy = Config::before(&[&origin], more).put("h2c", h2c).start().await;
        let begun = Instant::now();
        proxy.client().await.closed().await;
        let took = begun.elapsed();
        assert!((Duration::from_millis(250)..Duration::from_secs(4)).contains(&took), "cut after {took:?}");
    }
}

#[tokio::test]
async fn an_idle_connection_is_closed_after_the_idle_timeout() {
    let origin = Origin::echo("a").await;
    let more = "listeners: [{ address: <listen>, h2c: true, limits: { idle_timeout: 300ms } }]";
    let proxy = Config::before(&[&origin], more).start().await;
    let mut client = proxy.client().await;
    client.get("/").await;
    let begun = Instant::now();
    assert_eq!(client.closed().await, b"");
    let took = begun.elapsed();
    assert!((Duration::from_millis(250)..Duration::from_secs(4)).contains(&took), "closed after {took:?}");
    let client = Client2::prior(proxy.listen).await;
    client.get("/").await;
    client.ended().await;
}

#[tokio::test]
async fn a_head_over_the_limit_is_431() {
    let origin = Origin::echo("a").await;
    let more = "listeners: [{ address: <listen>, limits: { max_header_size: 4KiB } }]";
    let proxy = Config::before(&[&origin], more).start().await;
    let fill = |size: usize| format!("GET / HTTP/1.1\r\nHost: a.test\r\nX-Fill: {}\r\n\r\n", "x".repeat(size));
    assert_eq!(proxy.client().await.ask(fill(3_800)).await.status(), 200);
    for size in [4_096, 60_000] {
        let mut client = proxy.client().await;
        let reply = client.ask(fill(size)).await;
        assert_eq!(reply.status(), 431, "{size}: {reply:?}");
    }
    let fields: String = (0..300).map(|n| format!("X-{n}: 1234567890\r\n")).collect();
    let reply = proxy.client().await.ask(format!("GET / HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n")).await;
    assert_eq!(reply.status(), 431);
    assert_eq!(origin.total(), 1);
}

#[tokio::test]
async fn heads_split_anywhere_are_understood() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let request = "POST /p HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\nabc";
    let mut client = proxy.client().await;
    for at in 1..request.len() {
        client.send(&request[..at]).await;
        tokio::task::yield_now().await;
        assert_eq!(client.ask(&request[at..]).await.text(), "abc", "split at {at}");
    }
}

/// A request over HTTP/2 costs its client some bytes, and us a connection to a backend.
#[tokio::test]
async fn who_asks_for_much_at_once_over_http2_does_not_take_the_descriptors_of_others() {
    let origin = Origin::echo("a").await;
    let proxy = with_few_descriptors(&origin, 256).await;
    let (mut greedy, mut asked) = (Vec::new(), Vec::new());
    for _ in 0..3 {
        let client = Client2::prior(proxy.listen).await;
        for _ in 0..100 {
            asked.push(client.open(request("GET", "/hold"), true).await.expect("a stream").0);
        }
        greedy.push(client);
    }
    proxy.metric("rrlb_failures_total", &["reason=\"too_many_concurrent\""], |count| count >= 40.0).await;
    assert_eq!(within("an answer", proxy.get("/")).await.origin(), "a");
    proxy.reload().await;
    assert_eq!(proxy.scrape().await.sum("rrlb_accept_errors_total", &[]), 0.0);
    origin.release();
}

/// A pool keeps what a burst has left, and clients the rest.
#[tokio::test]
async fn connections_that_wait_make_room_for_those_to_other_backends() {
    let (busy, other) = (Origin::echo("busy").await, Origin::echo("other").await);
    let yaml = "listeners: [{ address: <listen>, h2c: true }]\nthreads: 1\n\
        upstreams: { busy: { backends: [<busy>] }, other: { backends: [<other>] } }\n\
        routes:\n\
        - { match: { path: /other }, upstream: other }\n\
        - { match: { path: /asked }, forward_auth: { url: \"http://<other>/\" }, upstream: busy }\n\
        - { upstream: busy }";
    let config = Config::new(yaml).put("busy", &busy.address).put("other", &other.address);
    let proxy = spawn_with_few_descriptors(config, 256).await;
    let mut first = proxy.client().await;
    let burst = Client2::prior(proxy.listen).await;
    let mut asked = Vec::new();
    for _ in 0..95 {
        asked.push(burst.open(request("GET", "/hold"), true).await.expect("a stream").0);
    }
    wait_until("the burst", || busy.count("/hold") == 95).await;
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(proxy.client().await);
    }
    proxy.metric("rrlb_connections_refused_total", &["cause=\"limit\""], |count| count > 0.0).await;
    busy.release();
    for answer in asked {
        assert_eq!(within("an answer", answer).await.expect("an answer").status(), 200);
    }
    assert_eq!(within("an answer", first.get("/other")).await.origin(), "other");
    assert_eq!(within("an answer", first.get("/asked")).await.origin(), "busy");
}

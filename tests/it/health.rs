//! Active health checks, counted at the origin.

use std::{pin::pin, time::Duration};

use crate::support::{
    address,
    http1::Message,
    misbehave,
    origin::Origin,
    proxy::{Config, Proxy},
    run,
    tls::Ca,
    wait_until,
};

/// One upstream `app` of these backends with a check.
fn checked(backends: &[&str], check: &str, more: &str) -> Config {
    let list: Vec<_> = backends.iter().map(|backend| format!("\"{backend}\"")).collect();
    let list = list.join(", ");
    Config::new(&format!("upstreams:\n  app:\n    backends: [{list}]\n    health_check: {{ {check} }}\n    {more}\n"))
}

/// Waits until a request is answered by somebody, or with a status.
async fn answers(proxy: &Proxy, fits: impl Fn(&Message) -> bool) {
    crate::support::eventually("another answer", async || fits(&proxy.get("/traffic").await)).await;
}

#[tokio::test]
async fn tcp_probes_start_at_once_and_go_on() {
    let origin = Origin::echo("a").await;
    let _slow = checked(&[&origin.address], "type: tcp, interval: 1h", "").start().await;
    wait_until("the first probe", || origin.silent() == 1).await;
    let quick = Origin::echo("b").await;
    let _proxy = checked(&[&quick.address], "type: tcp, interval: 30ms", "").start().await;
    wait_until("probe after probe", || quick.silent() >= 10).await;
    assert_eq!(origin.silent(), 1, "an interval of an hour");
    assert_eq!(quick.total(), 0);
}

#[tokio::test]
async fn a_check_may_be_one_word() {
    let origin = Origin::echo("a").await;
    let yaml = "upstreams: { app: { backends: [\"<a>\"], health_check: tcp } }";
    let proxy = Config::new(yaml).put("a", &origin.address).start().await;
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!(origin.silent(), 1);
}

#[tokio::test]
async fn http_probes_ask_for_the_path_at_the_host() {
    let origin = Origin::echo("a").await;
    let check = "type: http, path: \"/healthz?deep=1\", host: app.internal, interval: 30ms";
    let _proxy = checked(&[&origin.address], check, "").start().await;
    wait_until("probes", || origin.count("/healthz?deep=1") >= 3).await;
    let probe = origin.requests().remove(0);
    assert_eq!((probe.method(), probe.field("host")), ("GET", Some("app.internal")));
}

#[tokio::test]
async fn only_the_expected_statuses_are_good() {
    let origin = Origin::echo("a").await;
    for (status, expected, good) in [
        (200, "", true),
        (204, "", true),
        (404, "", false),
        (500, "", false),
        (301, "", false),
        (404, "404", true),
        (200, "204, 404", false),
    ] {
        let statuses = if expected.is_empty() { String::new() } else { format!(", status: [{expected}]") };
        let check = format!("type: http, path: /status/{status}, interval: 50ms{statuses}");
        let proxy = checked(&[&origin.address], &check, "").start().await;
        let got = proxy.get("/traffic").await.status();
        assert_eq!(got, if good { 200 } else { 503 }, "{status} where [{expected}] is expected");
    }
}

#[tokio::test]
async fn a_backend_that_dies_is_out_after_fall_failures_and_back_after_rise() {
    let (mut a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let check = "type: http, path: /probe, interval: 100ms, timeout: 1s, rise: 2, fall: 3";
    let proxy = checked(&[&a.address, &b.address], check, "retry: { attempts: 1 }").start().await;
    let mut order = Vec::new();
    for _ in 0..4 {
        order.push(proxy.get("/traffic").await.origin().to_owned());
    }
    order.sort();
    assert_eq!(order, ["a", "a", "b", "b"]);
    a.stop().await;
    let down = |n: f64| n >= 3.0;
    proxy.metric("rrlb_health_checks_total", &["result=\"fail"], down).await;
    answers(&proxy, |reply| reply.status() == 200).await;
    wait_until("the verdict in the log", || proxy.stderr().contains("down")).await;
    for _ in 0..10 {
        assert_eq!(proxy.get("/traffic").await.origin(), "b");
    }
    let before = a.count("/probe");
    a.restart().await;
    answers(&proxy, |reply| reply.origin() == "a").await;
    assert!(a.count("/probe") >= before + 2, "back before {} probes", 2);
}

#[tokio::test]
async fn one_failure_is_not_enough() {
    let failing = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = std::sync::Arc::clone(&failing);
    let origin = Origin::script("a", move |mut peer| {
        let count = std::sync::Arc::clone(&count);
        async move {
            while let Some(request) = peer.request().await {
                let probe = request.target() == "/probe";
                // Every second probe fails: never two in a row.
                let bad = probe && count.fetch_add(1, std::sync::atomic::Ordering::SeqCst) % 2 == 1;
                peer.reply(if bad { 500 } else { 200 }, "", "").await;
            }
        }
    })
    .await;
    let check = "type: http, path: /probe, interval: 30ms, rise: 1, fall: 2";
    let proxy = checked(&[&origin.address], check, "").start().await;
    let mut client = proxy.client().await;
    while origin.count("/probe") < 12 {
        assert_eq!(client.get("/traffic").await.status(), 200);
    }
}

#[tokio::test]
async fn a_probe_has_a_total_deadline() {
    let origin = Origin::script("a", misbehave::drip).await;
    let check = "type: http, path: /, interval: 100ms, timeout: 300ms";
    let proxy = checked(&[&origin.address], check, "").start().await;
    assert_eq!(proxy.get("/traffic").await.status(), 503);
    wait_until("the next probes", || origin.connections() >= 3).await;
}

#[tokio::test]
async fn a_slow_backend_does_not_hold_up_the_probes_of_others() {
    let holes = [misbehave::Blackhole::new(), misbehave::Blackhole::new()];
    let origin = Origin::echo("a").await;
    let [first, second] = holes.each_ref().map(|hole| hole.address.to_string());
    let check = "type: tcp, interval: 50ms, timeout: 5s";
    let proxy = checked(&[&first, &second, &origin.address], check, "").spawn(&[]);
    wait_until("probes in parallel", || origin.silent() >= 5).await;
    drop(proxy);
}

#[tokio::test]
async fn initial_down_sends_nothing_before_the_first_probe_has_finished() {
    let origin = Origin::script("a", misbehave::mute).await;
    let check = "type: http, path: /, interval: 1h, timeout: 1h";
    for (initial, expect_traffic) in [("", false), (", initial: down", false), (", initial: up", true)] {
        let proxy = checked(&[&origin.address], &format!("{check}{initial}"), "").spawn(&[]);
        wait_until("the proxy to accept", || std::net::TcpStream::connect(proxy.listen).is_ok()).await;
        crate::support::eventually("the metrics to be served", async || proxy.probe("/readyz").await.is_some()).await;
        assert_eq!(proxy.probe("/readyz").await, Some(503), "ready before the first round{initial}");
        let mut client = proxy.client().await;
        client.send(crate::support::http1::get("/traffic")).await;
        if expect_traffic {
            wait_until("traffic", || origin.count("/traffic") == 1).await;
        } else {
            assert_eq!(client.response().await.status(), 503);
            assert_eq!(origin.count("/traffic"), 0);
        }
    }
}

#[tokio::test]
async fn the_first_result_decides_at_once() {
    let origin = Origin::echo("a").await;
    let check = "type: tcp, interval: 1h, rise: 5, fall: 5";
    let proxy = checked(&[&origin.address], check, "").start().await;
    assert_eq!(proxy.get("/").await.status(), 200);
    let dead = address::unused().to_string();
    let proxy = checked(&[&dead], &format!("{check}, initial: up"), "").start().await;
    assert_eq!(proxy.get("/").await.status(), 503);
}

#[tokio::test]
async fn probes_of_a_tls_upstream_are_made_over_tls() {
    let ca = Ca::new();
    let origin = Origin::tls("a", ca.issue(&["origin.test"]).server(&["http/1.1"])).await;
    for check in ["type: tcp, interval: 50ms", "type: http, path: /probe, interval: 50ms"] {
        let config = checked(&[&origin.address], check, "tls: { sni: origin.test, ca: <ca> }");
        let path = ca.write(config.dir());
        let proxy = config.put("ca", path.display()).start().await;
        assert_eq!(proxy.get("/traffic").await.status(), 200, "{check}");
        assert!(origin.handshakes().iter().all(|h| h.kind.is_some()), "{check}: {:?}", origin.handshakes());
    }
    assert_eq!(
        origin.requests().iter().find(|r| r.target() == "/probe").and_then(|r| r.field("host")),
        Some("origin.test")
    );
    let config = checked(&[&origin.address], "type: tcp, interval: 50ms", "tls: { sni: wrong.test, ca: <ca> }");
    let path = ca.write(config.dir());
    let proxy = config.put("ca", path.display()).start().await;
    assert_eq!(proxy.get("/traffic").await.status(), 503, "a probe without verification");
}

#[tokio::test]
async fn probes_of_many_backends_are_spread_over_the_interval() {
    let origin = Origin::echo("a").await;
    let proxy = checked(&[&origin.address], "type: tcp, interval: 40ms", "").start().await;
    let mut window = pin!(tokio::time::sleep(Duration::from_secs(1)));
    let before = origin.silent();
    window.as_mut().await; // no wait: the span in which probes are counted
    let probes = origin.silent() - before;
    assert!((10..=32).contains(&probes), "{probes} probes in 25 intervals");
    let log = run::read(&proxy.config.dir().join("access.log"));
    assert!(log.is_empty(), "probes are no requests: {log}");
}

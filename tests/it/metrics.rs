//! `/metrics`, `/healthz`, `/readyz` and nothing else.

use crate::support::{
    http1::{self, get_once},
    misbehave,
    origin::Origin,
    proxy::{Config, Proxy},
    wait_until,
};

const FAMILIES: [&str; 13] = [
    "rrlb_requests_total",
    "rrlb_request_duration_seconds",
    "rrlb_requests_in_flight",
    "rrlb_failures_total",
    "rrlb_backend_up",
    "rrlb_connections_total",
    "rrlb_connections_open",
    "rrlb_connections_per_worker",
    "rrlb_tls_handshakes_total",
    "rrlb_accept_errors_total",
    "rrlb_health_checks_total",
    "rrlb_retries_total",
    "rrlb_access_log_dropped_total",
];

#[tokio::test]
async fn every_family_is_there_from_the_first_scrape() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let reply = get_once(proxy.metrics, "/metrics").await;
    assert_eq!(reply.status(), 200);
    assert!(reply.field("content-type").is_some_and(|t| t.starts_with("text/plain") || t.contains("openmetrics")));
    let first = proxy.scrape().await;
    let missing: Vec<_> = FAMILIES.iter().filter(|family| !first.has(family)).collect();
    assert!(missing.is_empty(), "missing {missing:?} in {}", first.0);
    let types = |text: &str| text.lines().filter(|l| l.starts_with("# TYPE")).map(str::to_owned).collect::<Vec<_>>();
    proxy.get("/").await;
    proxy.client().await.ask("garbage\r\n\r\n").await;
    proxy.metric("rrlb_requests_total", &[], |n| n >= 2.0).await;
    assert_eq!(types(&first.0), types(&proxy.scrape().await.0), "families came later");
}

#[tokio::test]
async fn families_have_help_and_no_family_comes_twice() {
    let origin = Origin::echo("a").await;
    let text = Proxy::before(&[&origin]).await.scrape().await.0;
    let mut families: Vec<_> = text.lines().filter_map(|l| l.strip_prefix("# TYPE ")?.split(' ').next()).collect();
    for family in &families {
        assert!(text.contains(&format!("# HELP {family} ")), "{family} has no help");
        assert!(family.starts_with("rrlb_") || family.starts_with("process_"), "{family}");
    }
    let count = families.len();
    families.sort_unstable();
    families.dedup();
    assert_eq!(families.len(), count);
}

#[tokio::test]
async fn requests_are_counted_and_labels_are_bounded() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    for n in 0..30 {
        client.get(&format!("/random/{n}")).await;
    }
    for n in 0..20 {
        let request = format!("M{n} / HTTP/1.1\r\nHost: h{n}.test\r\nContent-Length: 0\r\n\r\n");
        client.ask(request).await;
    }
    proxy.metric("rrlb_requests_total", &[], |n| n == 50.0).await;
    proxy.metric("rrlb_requests_total", &["\"app\""], |n| n == 50.0).await;
    proxy.metric("rrlb_request_duration_seconds_count", &[], |n| n == 50.0).await;
    let scrape = proxy.scrape().await;
    assert!(!scrape.0.contains("random") && !scrape.0.contains("h7.test"), "a label is made of traffic");
    assert!(scrape.samples("rrlb_requests_total").count() < 20);
}

#[tokio::test]
async fn requests_in_flight_go_up_and_down() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        let mut client = proxy.client().await;
        client.send(http1::get("/hold")).await;
        clients.push(client);
    }
    proxy.metric("rrlb_requests_in_flight", &[], |n| n == 3.0).await;
    origin.release();
    for client in &mut clients {
        client.response().await;
    }
    proxy.metric("rrlb_requests_in_flight", &[], |n| n == 0.0).await;
}

#[tokio::test]
async fn failures_are_counted_by_reason() {
    let origin = Origin::script("a", misbehave::reset_after_request).await;
    let proxy = Proxy::before(&[&origin]).await;
    let reply = proxy.get("/").await;
    let reason = crate::failures::reason(&proxy, &reply).await;
    proxy.metric("rrlb_failures_total", &[&format!("reason=\"{reason}\"")], |n| n == 1.0).await;
}

#[tokio::test]
async fn readiness_waits_for_the_first_health_round() {
    let origin = Origin::script("a", |mut peer| async move {
        while peer.request().await.is_some() {
            peer.held().await;
            peer.reply(200, "", "").await;
        }
    })
    .await;
    let yaml = "
        upstreams:
          app: { backends: [\"<a>\"], health_check: { type: http, path: /, timeout: 1h } }";
    let mut proxy = Config::new(yaml).put("a", &origin.address).spawn(&[]);
    wait_until("the probe", || origin.total() == 1).await;
    assert_eq!(proxy.probe("/readyz").await, Some(503));
    assert_eq!(proxy.probe("/healthz").await, Some(200));
    origin.release();
    proxy.ready().await;
    assert_eq!(proxy.get("/").await.status(), 200);
}

#[tokio::test]
async fn there_is_nothing_else_and_nothing_can_be_changed() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    for path in ["/", "/metrics/x", "/v1/status", "/debug"] {
        assert_eq!(proxy.probe(path).await, Some(404), "{path}");
    }
    assert_eq!(http1::post_once(proxy.metrics, "/metrics", "").await.status(), 405);
    assert_eq!(origin.total(), 0);
}

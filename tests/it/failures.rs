//! What happens when a backend fails: another one, or an honest status with a reason; never a request made twice
//! that must not be.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::support::{
    address,
    http1::{Message, get_with, post_once},
    misbehave::{self, Blackhole},
    origin::Origin,
    proxy::{Config, Proxy},
    run, wait_until,
};

/// The reason word of the request that had this reply: in `Proxy-Status` (RFC 9209), and in the access log (whose lines of
/// two workers come in any order).
pub async fn reason(proxy: &Proxy, reply: &Message) -> String {
    let told = reply.field("proxy-status").unwrap_or_else(|| panic!("no Proxy-Status: {reply:?}"));
    assert!(told.starts_with("rrlb"), "Proxy-Status begins with the proxy's name: {told}");
    let path = proxy.config.dir().join("access.log");
    let logged = || {
        let lines = run::read(&path);
        let lines = lines.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
        let lines = lines.filter(|line| line["status"] == reply.status());
        lines
            .filter_map(|line| line["reason"].as_str().map(str::to_owned))
            .find(|word| word.len() > 1 && told.contains(word))
    };
    wait_until(&format!("a line of the access log with the reason of {told:?}"), || logged().is_some()).await;
    logged().unwrap_or_default()
}

/// One upstream `app` of these addresses.
fn app(backends: &[&str], more: &str) -> Config {
    let list: Vec<_> = backends.iter().map(|backend| format!("\"{backend}\"")).collect();
    Config::new(&format!("upstreams:\n  app:\n    backends: [{}]\n    {more}\n", list.join(", ")))
}

#[tokio::test]
async fn a_refused_connection_goes_to_another_backend() {
    let origin = Origin::echo("a").await;
    let dead = address::unused().to_string();
    let proxy = app(&[&dead, &origin.address], "").start().await;
    for _ in 0..6 {
        assert_eq!(proxy.get("/").await.origin(), "a");
        assert_eq!(post_once(proxy.listen, "/p", "body").await.text(), "body");
    }
    let lines = proxy.access_log(12).await;
    assert!(lines.iter().any(|line| line["attempts"] == 2), "no second attempt is told: {lines:?}");
    proxy.metric("rrlb_retries_total", &[], |n| n >= 6.0).await;
}

#[tokio::test]
async fn a_connection_that_times_out_goes_to_another_backend() {
    let (hole, origin) = (Blackhole::new(), Origin::echo("a").await);
    let proxy = app(&[&hole.address.to_string(), &origin.address], "timeouts: { connect: 200ms }").start().await;
    for _ in 0..4 {
        assert_eq!(post_once(proxy.listen, "/p", "body").await.origin(), "a");
    }
}

#[tokio::test]
async fn attempts_are_bounded_and_never_at_the_same_backend() {
    let mut origins = Vec::new();
    for name in ["a", "b", "c", "d"] {
        origins.push(Origin::script(name, misbehave::reset_after_request).await);
    }
    let addresses: Vec<&str> = origins.iter().map(|origin| origin.address.as_str()).collect();
    for (attempts, expected) in [(1, 1), (2, 2), (3, 3), (10, 4)] {
        let before: Vec<usize> = origins.iter().map(Origin::total).collect();
        let proxy = app(&addresses, &format!("retry: {{ attempts: {attempts} }}")).start().await;
        assert_eq!(proxy.get("/").await.status(), 502);
        let seen: Vec<usize> = origins.iter().zip(&before).map(|(origin, before)| origin.total() - before).collect();
        assert_eq!(seen.iter().sum::<usize>(), expected, "attempts: {attempts}");
        assert!(seen.iter().all(|count| *count <= 1), "the same backend twice: {seen:?}");
        assert_eq!(proxy.access_log(1).await[0]["attempts"], expected);
    }
}

#[tokio::test]
async fn a_get_is_repeated_after_a_reset_before_the_answer() {
    let (bad, good) = (Origin::script("bad", misbehave::reset_after_request).await, Origin::echo("good").await);
    let proxy = app(&[&bad.address, &good.address], "").start().await;
    for _ in 0..4 {
        assert_eq!(proxy.get("/").await.origin(), "good");
    }
    assert!(bad.total() >= 1);
}

#[tokio::test]
async fn a_post_that_was_sent_is_not_repeated() {
    let (bad, good) = (Origin::script("bad", misbehave::reset_after_request).await, Origin::echo("good").await);
    let proxy = app(&[&bad.address, &good.address], "").start().await;
    let mut failed = 0;
    for n in 0..6 {
        let reply = post_once(proxy.listen, &format!("/{n}"), "body").await;
        failed += usize::from(reply.status() == 502);
        let seen = bad.count(&format!("/{n}")) + good.count(&format!("/{n}"));
        assert_eq!(seen, 1, "POST /{n} was seen {seen} times");
    }
    assert_eq!((failed, bad.total(), good.total()), (3, 3, 3));
}

#[tokio::test]
async fn a_post_without_body_is_not_repeated_either() {
    let (bad, good) = (Origin::script("bad", misbehave::reset_after_request).await, Origin::echo("good").await);
    let proxy = app(&[&bad.address, &good.address], "").start().await;
    for n in 0..4 {
        post_once(proxy.listen, &format!("/{n}"), "").await;
        assert_eq!(bad.count(&format!("/{n}")) + good.count(&format!("/{n}")), 1, "POST /{n}");
    }
}

#[tokio::test]
async fn an_idempotent_request_with_a_body_is_repeated_whole_or_not_at_all() {
    let (bad, good) = (Origin::script("bad", misbehave::reset_after_request).await, Origin::echo("good").await);
    let proxy = app(&[&bad.address, &good.address], "").start().await;
    for _ in 0..4 {
        let put = "PUT /p HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\nbody";
        let reply = proxy.client().await.ask(put).await;
        assert!(matches!(reply.status(), 200 | 502), "{reply:?}");
        assert!(reply.status() != 200 || reply.text() == "body", "{reply:?}");
    }
    assert!(good.requests().iter().all(|request| request.text() == "body"));
}

#[tokio::test]
async fn a_body_in_chunks_that_is_empty_is_repeated_as_any_other() {
    let (bad, good) = (Origin::script("bad", misbehave::reset_after_request).await, Origin::echo("good").await);
    // Pingora would never send its end a second time.
    for engine in ["lane", "exchange"] {
        let proxy = Config::before(&[&bad, &good], &format!("engine: {engine}")).start().await;
        for _ in 0..4 {
            let put = "PUT /p HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
            let reply = proxy.client().await.ask(put).await;
            assert_eq!((reply.status(), reply.origin()), (200, "good"), "{engine}");
        }
    }
    assert!(bad.total() >= 2);
}

#[tokio::test]
async fn a_stale_pooled_connection_fails_no_request_not_even_a_post() {
    let origin = Origin::script("a", misbehave::close_when_idle).await;
    let proxy = app(&[&origin.address], "").start().await;
    let mut client = proxy.client().await;
    for n in 0..30 {
        let post = format!("POST /{n} HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\nbody");
        let reply = client.ask(post).await;
        assert_eq!(reply.status(), 200, "request {n}");
        assert_eq!(origin.count(&format!("/{n}")), 1);
        wait_until("the pooled connection to be closed by the origin", || origin.open() == 0).await;
    }
}

#[tokio::test]
async fn a_get_over_a_stale_pooled_connection_needs_no_second_backend() {
    let origin = Origin::script("a", misbehave::close_when_idle).await;
    let proxy = app(&[&origin.address], "retry: { attempts: 2 }").start().await;
    let mut client = proxy.client().await;
    for n in 0..50 {
        assert_eq!(client.get("/").await.status(), 200, "request {n}");
    }
}

#[tokio::test]
async fn each_failure_has_its_status_and_its_own_reason() {
    let refused = address::unused().to_string();
    let (hole, mute) = (Blackhole::new(), Origin::script("mute", misbehave::mute).await);
    let closing = Origin::script("closing", misbehave::close_at_once).await;
    let resetting = Origin::script("resetting", misbehave::reset_after_request).await;
    let babbling = Origin::script("babbling", misbehave::babble).await;
    let hole_at = hole.address.to_string();
    let cases = [
        ("refused", refused.as_str(), 502),
        ("connect timeout", &hole_at, 504),
        ("no answer", &mute.address, 504),
        ("closed", &closing.address, 502),
        ("reset", &resetting.address, 502),
        ("not HTTP", &babbling.address, 502),
    ];
    let mut reasons = Vec::new();
    for (what, address, status) in cases {
        let proxy = app(&[address], "timeouts: { connect: 200ms, first_byte: 200ms }").start().await;
        let reply = proxy.get("/").await;
        assert_eq!(reply.status(), status, "{what}: {reply:?}");
        reasons.push((what, reason(&proxy, &reply).await));
        let lines = proxy.access_log(1).await;
        assert_eq!(lines[0]["upstream"], "app", "{what}");
        let (named, word) = (lines[0]["reason"].clone(), &reasons[reasons.len() - 1].1);
        assert_eq!(named, word.as_str());
        proxy.metric("rrlb_requests_total", &[], |n| n >= 1.0).await;
    }
    let word = |what: &str| reasons.iter().find(|(name, _)| *name == what).map(|(_, word)| word.clone());
    let distinct: std::collections::BTreeSet<_> =
        ["refused", "connect timeout", "no answer", "reset", "not HTTP"].iter().map(|what| word(what)).collect();
    assert_eq!(distinct.len(), 5, "{reasons:?}");
}

#[tokio::test]
async fn an_answer_that_breaks_off_is_not_passed_on_as_whole() {
    let origin = Origin::script("a", misbehave::close_in_body).await;
    let proxy = app(&[&origin.address], "").start().await;
    let mut client = proxy.client().await;
    client.send(crate::support::http1::get("/")).await;
    let reply = client.wire.head().await.expect("a head").expect("a head");
    assert_eq!(reply.status(), 200);
    let mut message = reply;
    assert!(client.wire.body(&mut message).await.is_err(), "the cut was hidden: {message:?}");
    assert_eq!(origin.total(), 1, "a started answer was asked for again");
    let line = proxy.access_log(1).await.remove(0);
    assert!(line["reason"].as_str().is_some_and(|word| !word.is_empty() && word != "ok"), "{line}");
}

#[tokio::test]
async fn a_failure_of_a_backend_does_not_close_the_clients_connection() {
    let origin = Origin::echo("a").await;
    let dead = address::unused();
    let yaml = "
        upstreams: { app: { backends: [\"<a>\"] }, dead: { backends: [\"<dead>\"] } }
        routes:
          - { match: { path: /dead }, upstream: dead }
          - { upstream: app }";
    let proxy = Config::new(yaml).put("a", &origin.address).put("dead", dead).start().await;
    let mut client = proxy.client().await;
    for _ in 0..3 {
        assert_eq!(client.get("/dead").await.status(), 502);
        assert_eq!(client.get("/").await.status(), 200);
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_request_at_the_origin() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    client.send(crate::support::http1::get("/hold")).await;
    wait_until("the request at the origin", || origin.total() == 1).await;
    drop(client);
    proxy.metric("rrlb_requests_in_flight", &[], |n| n == 0.0).await;
    let line = proxy.access_log(1).await.remove(0);
    assert_eq!(line["reason"], "client_aborted", "{line}");
    origin.release(); // it reads on only after its answer
    wait_until("the origin to be left", || origin.open() == 0).await;
}

#[tokio::test]
async fn statuses_of_an_origin_are_no_failures_of_the_proxy() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    for status in [404, 500, 502, 503, 504] {
        let reply = proxy.get(&format!("/status/{status}")).await;
        assert_eq!((reply.status(), reply.text().as_str()), (status, "a"));
    }
    assert_eq!(origin.total(), 5, "an answer was asked for again");
}

#[tokio::test]
async fn an_error_reply_tells_the_client_nothing_about_the_inside() {
    let dead = address::unused();
    let proxy = app(&[&dead.to_string()], "").start().await;
    let reply = get_with(proxy.listen, "/", "X-Request-Id: known-1\r\n").await;
    let all = format!("{:?}{}", reply.fields, reply.text());
    assert!(!all.contains(&dead.to_string()) && !all.contains("Pingora"), "{all}");
}

#[tokio::test]
async fn retries_have_a_budget() {
    let tries = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&tries);
    let broken = move |mut peer: crate::support::origin::Peer| {
        let tries = Arc::clone(&counted);
        async move {
            if peer.request().await.is_some() {
                tries.fetch_add(1, Ordering::SeqCst);
                peer.reset();
            }
        }
    };
    let (a, b) = (Origin::script("a", broken.clone()).await, Origin::script("b", broken).await);
    let proxy = app(&[&a.address, &b.address], "retry: { attempts: 2, budget: 0% }").start().await;
    let begun = std::time::Instant::now();
    for _ in 0..200 {
        assert_eq!(proxy.get("/").await.status(), 502);
    }
    let allowed = 10 * (usize::try_from(begun.elapsed().as_secs()).expect("seconds") + 2);
    let retries = tries.load(Ordering::SeqCst) - 200;
    assert!((1..=allowed).contains(&retries), "{retries} retries, {allowed} allowed");
}

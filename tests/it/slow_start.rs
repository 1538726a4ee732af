//! Slow start, seen by who gets the requests: a share that begins small, grows to the whole, and is not forgotten.

use serde_json::{Value, json};

use crate::support::{
    admin::Api,
    eventually,
    origin::Origin,
    proxy::{Config, Proxy},
};

const A: &str = "/v1/upstreams/app/backends/a";
const B: &str = "/v1/upstreams/app/backends/b";

/// `app` with `a` and `b`; the time of the slow start, and more keys of the upstream.
fn yaml(slow_start: &str, more: &str) -> String {
    format!(
        "
        admin: {{ socket: <dir>/admin.sock }}
        state_file: <dir>/state.json
        upstreams:
          app:
            backends: [{{ id: a, address: \"<a>\" }}, {{ id: b, address: \"<b>\" }}]
            slow_start: {slow_start}
            {more}"
    )
}

async fn start(slow_start: &str, more: &str) -> (Proxy, Api, Origin, Origin) {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let config = Config::new(&yaml(slow_start, more)).put("a", &a.address).put("b", &b.address);
    let proxy = config.start().await;
    let api = Api::of(&proxy);
    (proxy, api, a, b)
}

/// How many of so many requests came to an origin.
async fn share(proxy: &Proxy, origin: &str, requests: usize) -> usize {
    let mut count = 0;
    for _ in 0..requests {
        let reply = proxy.get("/traffic").await;
        assert_eq!(reply.status(), 200);
        count += usize::from(reply.origin() == origin);
    }
    count
}

/// What a backend has of its share, 100 for all of it.
async fn percent(api: &Api, target: &str) -> u64 {
    api.get(target).await["slow_start"]["percent"].as_u64().unwrap_or(100)
}

async fn remaining(api: &Api, target: &str) -> Option<u64> {
    api.get(target).await["slow_start"]["remaining_seconds"].as_u64()
}

async fn drain_and_ready(api: &Api) {
    for admin in ["drain", "ready"] {
        api.change("PATCH", B, json!({ "admin": admin })).await;
    }
}

#[tokio::test]
async fn a_process_begins_with_whole_shares() {
    let (proxy, api, _a, _b) = start("1h", "health_check: { type: tcp, interval: 50ms }").await;
    assert_eq!(share(&proxy, "b", 20).await, 10);
    assert_eq!(api.get(B).await["slow_start"], Value::Null);
}

#[tokio::test]
async fn one_that_is_ready_again_begins_with_a_tenth_and_grows_to_the_whole() {
    let (proxy, api, a, b) = start("1h", "").await;
    drain_and_ready(&api).await;
    assert_eq!(percent(&api, B).await, 10);
    assert_eq!(share(&proxy, "b", 22).await, 2, "a tenth of what a has");
    let route = api.change("POST", "/v1/route", json!({ "url": "http://a.test/" })).await;
    let why = |at: usize| route["upstreams"][0]["backends"][at]["why"].clone();
    assert_eq!([why(0), why(1)], ["up", "up, in slow start"]);
    // The same clock with less to go.
    let quick = proxy.config.instead(&yaml("6s", "")).put("a", &a.address).put("b", &b.address);
    quick.write();
    proxy.reload().await;
    let mut seen = Vec::new();
    loop {
        let before = percent(&api, B).await;
        let got = share(&proxy, "b", 20).await;
        let after = percent(&api, B).await;
        let expected = |percent: u64| 20.0 * percent as f64 / (100 + percent) as f64;
        // Two more or less: each step begins another cycle.
        let fits = expected(before) - 2.0..=expected(after) + 2.0;
        assert!(fits.contains(&(got as f64)), "{got} of 20 between {before} % and {after} %");
        assert!(seen.last().is_none_or(|last| *last <= before), "{before} % after {seen:?}");
        seen.push(before);
        if before == 100 {
            break;
        }
    }
    seen.dedup();
    assert!(seen.len() >= 4, "{seen:?} %: it did not grow step by step");
    assert_eq!(share(&proxy, "b", 20).await, 10);
}

#[tokio::test]
async fn one_that_was_down_begins_slowly() {
    let check = "health_check: { type: tcp, interval: 50ms, rise: 1, fall: 1 }";
    let (proxy, api, _a, mut b) = start("1h", check).await;
    b.stop().await;
    api.settles(&["a:up", "b:down"]).await;
    b.restart().await;
    api.settles(&["a:up", "b:up"]).await;
    assert_eq!(share(&proxy, "b", 22).await, 2);
    assert_eq!(percent(&api, A).await, 100);
}

#[tokio::test]
async fn one_that_is_added_begins_slowly() {
    for balance in ["round_robin", "least_requests"] {
        let (proxy, api, _a, _b) = start("1h", &format!("balance: {balance}")).await;
        let (c, d) = (Origin::echo("c").await, Origin::echo("d").await);
        let (at_c, at_d) = ("/v1/upstreams/app/backends/c", "/v1/upstreams/app/backends/d");
        // What is added within the first moments of a process begins with all others.
        eventually("a slow start", async || {
            api.change("PUT", at_c, json!({ "address": c.address })).await;
            let slow = percent(&api, at_c).await == 10;
            if !slow {
                api.change("DELETE", &format!("{at_c}?drain=0s"), Value::Null).await;
            }
            slow
        })
        .await;
        assert_eq!(share(&proxy, "c", 42).await, 2, "{balance}");
        api.change("PUT", &format!("{at_d}?ttl=1h"), json!({ "address": d.address })).await;
        assert_eq!(share(&proxy, "d", 44).await, 2, "{balance}");
        assert_eq!([percent(&api, A).await, percent(&api, B).await], [100, 100], "{balance}");
    }
}

#[tokio::test]
async fn a_change_a_reload_and_an_upgrade_keep_the_clock() {
    let (mut proxy, api, a, b) = start("1h", "").await;
    drain_and_ready(&api).await;
    assert_eq!(remaining(&api, B).await, Some(3600));
    eventually("some seconds", async || remaining(&api, B).await.is_some_and(|left| left <= 3597)).await;
    let kept = async |after: &str| {
        let left = remaining(&api, B).await;
        assert!(left.is_some_and(|left| (3000..=3597).contains(&left)), "{left:?} after {after}");
        assert_eq!(remaining(&api, A).await, None, "after {after}");
    };
    api.change("PATCH", B, json!({ "weight": 3 })).await;
    kept("a change of weight").await;
    assert_eq!(share(&proxy, "b", 26).await, 6, "a tenth of three times what a has");
    let moved = Origin::echo("moved").await;
    api.change("PUT", B, json!({ "address": moved.address, "weight": 1 })).await;
    kept("a change of address").await;
    assert_eq!(share(&proxy, "moved", 22).await, 2);
    let other = proxy.config.instead(&yaml("1h", "retry: { attempts: 1 }")).put("a", &a.address).put("b", &b.address);
    other.write();
    proxy.reload().await;
    kept("a reload").await;
    for _ in 0..2 {
        proxy = proxy.upgrade().await;
        kept("an upgrade").await;
        assert_eq!(share(&proxy, "moved", 22).await, 2);
    }
    // And it begins anew where it has come back anew.
    drain_and_ready(&api).await;
    assert!(remaining(&api, B).await.is_some_and(|left| left > 3597));
}

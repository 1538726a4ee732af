//! What would become of a request, against what the configuration of the tests says.

use std::time::Instant;

use serde_json::{Value, json};

use super::support::Bench;
use crate::policy::outlier::Fault;

async fn explain(bench: &Bench, question: Value) -> Value {
    bench.expect(200, "POST", "/v1/route", &question.to_string()).await
}

#[tokio::test]
async fn the_route_is_the_one_that_a_request_would_take() {
    let bench = Bench::start().await;
    let canary = json!({ "url": "http://API.test:8080/v1/x?q=1", "headers": { "X-Canary": "yes" } });
    let answer = explain(&bench, canary.clone()).await;
    assert_eq!(answer["route"], json!({ "name": "api", "index": 0 }));
    assert_eq!((&answer["action"], &answer["detail"]), (&"proxy".into(), &"sent as /x?q=1".into()));
    assert_eq!(answer["listeners"], json!(["127.0.0.1:8080"]));
    let backends = json!([
        { "id": "app-1", "address": "127.0.0.1:9001", "eligible": true, "why": "up" },
        { "id": "app-2", "address": "127.0.0.1:9002", "eligible": true, "why": "up" },
    ]);
    assert_eq!(answer["upstreams"], json!([{ "name": "app", "share": 100.0, "backends": backends }]));
    for (question, action, detail) in [
        (json!({ "url": "http://api.test/v1/x" }), "none", "404 no_route"),
        (
            json!({ "url": "http://api.test/v1/x", "method": "POST", "headers": { "X-Canary": "yes" } }),
            "none",
            "404 no_route",
        ),
        (json!({ "url": "http://x.test/", "headers": { "Host": "fixed.test" } }), "respond", "418 with 6 bytes"),
        (json!({ "url": "http://x.test/old?a" }), "redirect", "308 to /new"),
        (json!({ "url": "http://live.test/a/%2e./b" }), "proxy", "400 ambiguous_path"),
        (json!({ "url": "http://live.test/" }), "proxy", "503 no_backend"),
        (json!({ "url": "http://fixed.test:8081/a" }), "redirect", "308 to https://fixed.test/a"),
        (json!({ "url": "https://fixed.test/" }), "respond", "no listener of this configuration takes this https URL"),
        (json!({ "url": "http://192.0.2.1/old" }), "redirect", "no listener"),
        (json!({ "url": "http://x.test/", "method": "CONNECT" }), "none", "405 method_not_allowed"),
        (json!({ "url": "http://x.test/", "method": "TRACE" }), "none", "405 method_not_allowed"),
        (json!({ "url": "http://x.test/a{b}" }), "none", "400 bad_request"),
        (json!({ "url": "http://fixed.test:8081/a{b}" }), "none", "400 bad_request"),
    ] {
        let answer = explain(&bench, question.clone()).await;
        assert_eq!(answer["action"], action, "{question} {answer}");
        assert!(answer["detail"].as_str().is_some_and(|text| text.contains(detail)), "{question} {answer}");
    }
}

#[tokio::test]
async fn shares_and_the_reasons_against_a_backend_are_told() {
    let bench = Bench::start().await;
    bench.expect(200, "PATCH", "/v1/upstreams/app/backends/app-1", r#"{"admin":"drain"}"#).await;
    bench.expect(201, "PUT", "/v1/upstreams/app/backends/n", r#"{"address":"app.internal:80"}"#).await;
    bench.expect(201, "PUT", "/v1/upstreams/app/backends/z", r#"{"address":"h:80","weight":0}"#).await;
    let answer = explain(&bench, json!({ "url": "http://split.test/" })).await;
    assert_eq!((&answer["upstreams"][0]["share"], &answer["upstreams"][1]["share"]), (&75.0.into(), &25.0.into()));
    let why = |at: usize| answer["upstreams"][0]["backends"][at]["why"].clone();
    assert_eq!([why(0), why(1), why(2), why(3)], ["drain", "up", "no address", "weight 0"]);
    let before = bench.store.snapshot();
    let in_flight = || {
        before.members().iter().flat_map(|member| member.upstream.backends()).map(|one| one.in_flight()).sum::<u32>()
    };
    let hashed = explain(&bench, json!({ "url": "http://hash.test/", "from": "192.0.2.7" })).await;
    assert_eq!((&hashed["upstreams"][0]["chosen"], in_flight()), (&"127.0.0.1:9101".into(), 0));
}

#[tokio::test]
async fn one_in_slow_start_is_shown_as_such() {
    let bench = Bench::start().await;
    let upstream = bench.store.view(&"app".into()).expect("app").upstream;
    upstream.backends()[1].begin_slow_start();
    upstream.advance_slow_starts(Instant::now());
    let answer = explain(&bench, json!({ "url": "http://split.test/" })).await;
    let of = |key: &str| answer["upstreams"][0]["backends"][1][key].clone();
    assert_eq!((of("eligible"), of("why")), (true.into(), "up, in slow start".into()));
}

#[tokio::test]
async fn one_that_is_ejected_is_shown_as_such_with_its_reason() {
    let bench = Bench::start().await;
    let upstream = bench.store.view(&"app".into()).expect("app").upstream;
    upstream.went_wrong(&upstream.backends()[0], Fault::Status(503), Instant::now());
    let shown = bench.expect(200, "GET", "/v1/upstreams/app/backends/app-1", "").await;
    assert_eq!(
        (&shown["effective"], &shown["health"], &shown["admin"]),
        (&"ejected".into(), &"unknown".into(), &"ready".into())
    );
    assert_eq!(shown["ejected"], json!({ "returns_in": 10, "times": 1, "why": "a failure: status 503" }));
    let other = bench.expect(200, "GET", "/v1/upstreams/app/backends/app-2", "").await;
    assert_eq!((&other["effective"], other.get("ejected")), (&"up".into(), None));
    let answer = explain(&bench, json!({ "url": "http://split.test/" })).await;
    let of = |key: &str| answer["upstreams"][0]["backends"][0][key].clone();
    assert_eq!((of("eligible"), of("why")), (false.into(), "ejected".into()));
    assert_eq!(of("last_resort"), "gets only retries of requests that have tried all others");
    assert_eq!(answer["upstreams"][0]["backends"][1].get("last_resort"), None);
    let refused = bench.ask("PATCH", "/v1/upstreams/app/backends/app-2", r#"{"admin":"drain"}"#).await;
    assert_eq!(
        (refused.status, refused.problem().0.as_str()),
        (409, "last-ready"),
        "an ejected one takes nobody's place"
    );
    let text = |key: &str| refused.json()[key].as_str().unwrap_or_default().to_owned();
    assert_eq!(text("detail"), "app-2 is the last backend that requests go to; app-1 is ready, but ejected");
    let hint = text("hint");
    assert!(hint.contains("force=true") && hint.contains("--force") && !hint.contains("503"), "{hint}");
    bench.expect(200, "PATCH", "/v1/upstreams/app/backends/app-2?force=true", r#"{"admin":"drain"}"#).await;
    let answer = explain(&bench, json!({ "url": "http://split.test/" })).await;
    let of = |key: &str| answer["upstreams"][0]["backends"][0][key].clone();
    assert_eq!((of("eligible"), of("why")), (true.into(), "ejected".into()), "nobody else is left: {answer}");
    assert_eq!(of("last_resort"), "gets requests all the same: no other backend is left");
    bench.expect(200, "PATCH", "/v1/upstreams/app/backends/app-2", r#"{"admin":"ready"}"#).await;
    bench.expect(200, "PATCH", "/v1/upstreams/app/backends/app-1", r#"{"admin":"maint"}"#).await;
    let ready = bench.expect(200, "PATCH", "/v1/upstreams/app/backends/app-1", r#"{"admin":"ready"}"#).await;
    assert_eq!(ready["effective"], "up", "maintenance forgets it");
}

#[tokio::test]
async fn questions_are_read_strictly() {
    let bench = Bench::start().await;
    for (question, field) in [
        (json!({}), "url"),
        (json!({ "url": "/path" }), "url"),
        (json!({ "url": "ftp://h/" }), "url"),
        (json!({ "url": "http://user@h/" }), "url"),
        (json!({ "url": "http://h/ /" }), "url"),
        (json!({ "url": "http://h/", "method": "G T" }), "method"),
        (json!({ "url": "http://h/", "from": "localhost" }), "from"),
        (json!({ "url": "http://h/", "header": {} }), "header"),
        (json!({ "url": "http://h/", "headers": [] }), "headers"),
        (json!({ "url": "http://h/", "headers": { "a b": "c" } }), "headers.a b"),
        (json!({ "url": "http://h/", "headers": { "a": ["b", 1] } }), "headers.a"),
        (json!({ "url": "http://h/", "headers": { "Host": "h/h" } }), "headers.host"),
    ] {
        let reply = bench.ask("POST", "/v1/route", &question.to_string()).await;
        assert_eq!((reply.status, reply.problem().1.as_deref()), (422, Some(field)), "{question}");
    }
}

//! The OpenAPI document, the table and the answers are of one mind.

use std::collections::BTreeSet;

use serde_json::Value;

use super::{
    super::{
        openapi::document,
        router::{Body, ROUTES, Shape},
    },
    support::{Bench, documented, fits, raw, request, schema},
};

const APP: &str = "/v1/upstreams/app";

/// For each operation a request that is done, with its status.
const GOOD: &[(&str, &str, &str, &str, u16)] = &[
    ("status", "GET", "/v1/status", "", 200),
    ("config", "GET", "/v1/config", "", 200),
    ("reload", "POST", "/v1/config/reload?confirm=60s&abort_if=5xx%20%3E%202%25", "", 200),
    ("confirm", "POST", "/v1/config/confirm", "", 204),
    ("upgrade", "POST", "/v1/upgrade", r#"{"binary":"/bin/rrlb","timeout":"60s"}"#, 200),
    ("stop", "POST", "/v1/stop?now=true", "", 202),
    ("listUpstreams", "GET", "/v1/upstreams", "", 200),
    ("getUpstream", "GET", "/v1/upstreams/app", "", 200),
    ("listBackends", "GET", "/v1/upstreams/app/backends", "", 200),
    ("replaceBackends", "PUT", "/v1/upstreams/app/backends", r#"[{"id":"x","address":"127.0.0.1:9010"}]"#, 200),
    ("getBackend", "GET", "/v1/upstreams/app/backends/app-1", "", 200),
    ("putBackend", "PUT", "/v1/upstreams/app/backends/y?ttl=15s", r#"{"address":"127.0.0.1:9011"}"#, 201),
    ("putBackend", "PUT", "/v1/upstreams/app/backends/y?ttl=15s", r#"{"address":"127.0.0.1:9011"}"#, 200),
    ("patchBackend", "PATCH", "/v1/upstreams/app/backends/app-1", r#"{"weight":3,"admin":"drain"}"#, 200),
    ("removeBackend", "DELETE", "/v1/upstreams/app/backends/app-2", "", 202),
    ("removeBackend", "DELETE", "/v1/upstreams/app/backends/app-2?drain=0s", "", 204),
    ("state", "GET", "/v1/state", "", 200),
    ("statePatch", "GET", "/v1/state/patch", "", 200),
    ("forgetOverride", "DELETE", "/v1/upstreams/app/backends/app-1/override", "", 200),
    ("forgetOverride", "DELETE", "/v1/upstreams/app/backends/x/override", "", 204),
    ("errors", "GET", "/v1/errors?limit=5", "", 200),
    ("explainRoute", "POST", "/v1/route", r#"{"url":"http://split.test/","from":"192.0.2.1"}"#, 200),
    ("openapi", "GET", "/v1/openapi.json", "", 200),
];

#[tokio::test]
async fn every_operation_is_done_and_answers_as_documented() {
    let bench = Bench::start().await;
    let mut seen = BTreeSet::from(["events"]); // see `streams`
    for (id, method, path, body, status) in GOOD {
        bench.expect(*status, method, path, body).await;
        seen.insert(id);
    }
    let all: BTreeSet<&str> = ROUTES.iter().map(|route| route.id).collect();
    assert_eq!(seen, all, "each operation has an example here");
    let served = bench.ask("GET", "/v1/openapi.json", "").await.json();
    assert_eq!(Some(served), document().ok());
}

#[tokio::test]
async fn every_documented_path_is_there() {
    let bench = Bench::start().await;
    let Ok(document) = document() else { panic!("a document") };
    let Some(Value::Object(paths)) = document.get("paths") else { panic!("paths") };
    let mut count = 0;
    for (path, methods) in paths {
        let path = path.replace("{upstream}", "app").replace("{backend}", "app-1");
        let Value::Object(methods) = methods else { panic!("methods of {path}") };
        for method in methods.keys().map(|method| method.to_uppercase()) {
            count += 1;
            if path == "/v1/events" {
                continue;
            }
            let reply = bench.ask(&method, &path, "").await;
            let is_there = reply.status != 405 && (reply.status != 404 || path.ends_with("/override"));
            assert!(is_there, "{method} {path}: {}", reply.status);
        }
    }
    assert_eq!(count, ROUTES.len());
}

#[test]
fn every_schema_that_is_named_exists() {
    let Ok(document) = document() else { panic!("a document") };
    for route in ROUTES {
        let body = match route.body {
            Body::Needed(name) | Body::Optional(name) => Some(name),
            Body::Refused => None,
        };
        let answers = route.answers.iter().filter_map(|(_, shape)| match shape {
            Shape::Json(name) | Shape::Events(name) => Some(*name),
            _ => None,
        });
        for name in body.into_iter().chain(answers) {
            assert!(document["components"]["schemas"].get(name).is_some(), "{}: {name}", route.id);
        }
    }
    let mut places = Vec::new();
    references(&document, &mut places);
    assert!(places.len() > 30);
    for place in places {
        assert!(document.pointer(place.trim_start_matches('#')).is_some(), "{place}");
    }
}

fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str).map(str::to_owned));
            fields.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[test]
fn the_reader_of_schemas_sees_what_is_wrong() {
    let Ok(document) = document() else { panic!("a document") };
    let good = serde_json::json!({ "pid": 1 });
    assert_eq!(fits(&document, &schema("Upgraded"), &good), Ok(()));
    for bad in [serde_json::json!({ "pid": "1" }), serde_json::json!({}), serde_json::json!({ "pid": 1, "x": 1 })] {
        assert!(fits(&document, &schema("Upgraded"), &bad).is_err(), "{bad}");
    }
}

#[tokio::test]
async fn what_is_not_there_says_what_is() {
    let bench = Bench::start().await;
    for (path, status, code, hint) in [
        ("/", 404, "not-found", "openapi"),
        ("/v1/upstreams/ap", 404, "not-found", "did you mean `app`?"),
        ("/v1/upstreams/app/backends/app-3", 404, "not-found", "did you mean `app-1`?"),
        ("/v1/upstreams/%00", 404, "not-found", ""),
        ("/v1/upstreams/%zz", 400, "bad-request", ""),
        ("/v1/status?verbose=1", 400, "bad-query", "no parameter is taken here"),
        ("/v1/errors?limt=5", 400, "bad-query", "did you mean `limit`?"),
    ] {
        let reply = bench.ask("GET", path, "").await;
        assert_eq!((reply.status, reply.problem().0.as_str()), (status, code), "{path}");
        assert!(reply.json()["hint"].as_str().unwrap_or_default().contains(hint), "{path}: {}", reply.json());
    }
    for (method, path, allow) in [
        ("POST", "/v1/status", "GET, HEAD"),
        ("DELETE", "/v1/config/reload", "POST"),
        ("POST", "/v1/upstreams/app/backends/x", "GET, HEAD, PUT, PATCH, DELETE"),
        ("OPTIONS", APP, "GET, HEAD"),
        ("BREW", APP, "GET, HEAD"),
    ] {
        let reply = bench.ask(method, path, "").await;
        assert_eq!((reply.status, reply.header("allow")), (405, Some(allow)), "{method} {path}");
    }
    let head = raw(bench.connect().await, &request("HEAD", APP, "", "")).await;
    documented("HEAD", APP, &head);
    assert!(head.status == 200 && head.body.is_empty() && head.header("etag").is_some());
}

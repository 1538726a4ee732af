//! `rrlb backend …`.

use serde_json::{Value, json};

use super::{
    super::Exit,
    fake::{Fake, Reply},
};

fn backend(id: &str, admin: &str, effective: &str, in_flight: u64) -> Value {
    json!({
        "id": id, "address": "10.0.0.1:80", "target": "10.0.0.1:80", "weight": 2, "admin": admin, "health": "up",
        "effective": effective, "source": "file", "overridden": false, "in_flight": in_flight, "requests": 1234,
    })
}

fn with(mut backend: Value, more: Value) -> Value {
    for (name, value) in more.as_object().expect("an object") {
        backend[name] = value.clone();
    }
    backend
}

fn not_found() -> Reply {
    Reply::problem(404, "no such backend", "app has no backend b", json!({}))
}

#[test]
fn the_list_is_a_table_of_what_is_there() {
    let leaving = json!({ "leaving_in": 12, "changed": { "who": "uid 0", "why": "old\u{1b}[2J", "at": 0 } });
    let ejected =
        json!({ "ejected": { "returns_in": 15, "times": 2, "why": "5 failures in a row, the last: status 503" } });
    let upstream = json!({
        "name": "app", "balance": "round_robin", "etag": "\"0\"", "discover": "dns", "waiting": ["gone-1"],
        "backends": [
            with(backend("app-1", "ready", "up", 0), json!({ "target": "10.9.9.9:80" })),
            with(backend("app-22", "ready", "draining", 17), leaving),
            with(backend("e", "ready", "ejected", 0), ejected),
            with(backend("l", "ready", "up", 1), json!({ "lease_expires_in": 9.5, "source": "lease" })),
            with(backend("s", "ready", "up", 0), json!({ "slow_start": { "percent": 35, "remaining_seconds": 20 } })),
        ],
    });
    let fake = Fake::new(vec![Reply::json(200, upstream.clone()), Reply::json(200, upstream)]);
    let done = fake.run(&["backend", "list", "app"]);
    let expected = "\
app (round_robin, discovered by dns)
ID      ADDRESS      WEIGHT  STATE     HEALTH  SOURCE  IN FLIGHT  REQUESTS  NOTE
app-1   10.0.0.1:80       2  up        up      file            0      1234  at 10.9.9.9:80
app-22  10.0.0.1:80       2  draining  up      file           17      1234  leaves in 12 s at the latest; changed by uid 0: old\u{fffd}[2J
e       10.0.0.1:80       2  ejected   up      file            0      1234  ejected 2 times in a row, back in 15 s: 5 failures in a row, the last: status 503
l       10.0.0.1:80       2  up        up      lease           1      1234  lease runs out in 10 s
s       10.0.0.1:80       2  up        up      file            0      1234  slow start: 35 % of its share, all of it in 20 s
changed at run time, but not there now: gone-1
";
    assert_eq!((done.exit, done.out.as_str(), done.err.as_str()), (Exit::Ok, expected, ""));
    let coloured = fake.run_on_terminal(&["backend", "list", "app"]);
    assert!(coloured.out.contains("\u{1b}[32mup\u{1b}[0m"), "{}", coloured.out);
    assert_eq!(fake.lines(), ["GET /v1/upstreams/app", "GET /v1/upstreams/app"]);
}

#[test]
fn the_list_of_all_has_every_upstream() {
    let all = json!({ "upstreams": [
        { "name": "a", "balance": "random", "backends": [] },
        { "name": "b", "balance": "p2c", "backends": [backend("b-1", "ready", "up", 0)] },
    ] });
    let fake = Fake::new(vec![Reply::json(200, all)]);
    let done = fake.run(&["backend", "list"]);
    assert!(done.out.starts_with("a (random)\nno backends\n\nb (p2c)\nID "), "{}", done.out);
    assert_eq!(fake.lines(), ["GET /v1/upstreams"]);
}

#[test]
fn programs_get_the_apis_own_json() {
    let upstream = json!({ "name": "app", "something": ["new"] });
    let fake =
        Fake::new(vec![Reply::json(200, upstream.clone()), Reply::json(200, backend("a", "drain", "draining", 1))]);
    assert_eq!(fake.run(&["backend", "list", "app", "--json"]).out, format!("{upstream}\n"));
    let done = fake.run(&["backend", "drain", "app", "a", "--json"]);
    assert_eq!(serde_json::from_str::<Value>(&done.out).expect("JSON")["in_flight"], 1);
}

#[test]
fn add_puts_and_says_whether_it_was_there_before() {
    let added = with(backend("[::1]:80", "ready", "up", 0), json!({ "lease_ttl_seconds": 15 }));
    let fake = Fake::new(vec![Reply::json(201, added), Reply::json(200, backend("b", "ready", "down", 0))]);
    let args = [
        "backend",
        "add",
        "app",
        "[::1]:80",
        "10.0.0.1:80",
        "--weight",
        "2",
        "--ttl",
        "15s",
        "--reason",
        "a b",
        "--no-persist",
    ];
    let done = fake.run(&args);
    let expected = "app/[::1]:80: added: 10.0.0.1:80, weight 2, ready (up), a lease of 15 s that this command renews\n";
    assert_eq!((done.exit, done.out.as_str()), (Exit::Ok, expected));
    assert_eq!(fake.body(), json!({ "address": "10.0.0.1:80", "weight": 2 }));
    assert_eq!(fake.seen()[0].headers["content-type"], "application/json");
    let done = fake.run(&["backend", "add", "app", "b", "10.0.0.1:80"]);
    assert_eq!(done.out, "app/b: is there: 10.0.0.1:80, weight 2, ready (down)\n");
    assert_eq!(serde_json::from_str::<Value>(&fake.seen()[1].body).expect("JSON"), json!({ "address": "10.0.0.1:80" }));
    assert_eq!(
        fake.lines(),
        [
            "PUT /v1/upstreams/app/backends/%5B%3A%3A1%5D%3A80?ttl=15s&persist=false&reason=a%20b",
            "PUT /v1/upstreams/app/backends/b"
        ]
    );
}

#[test]
fn drain_maint_and_ready_change_each_backend_in_turn() {
    let replies =
        ["drain", "drain", "maint", "ready"].map(|admin| Reply::json(200, backend("x", admin, "draining", 1)));
    let fake = Fake::new(replies.into());
    let done = fake.run(&["backend", "drain", "app", "a", "b", "--force", "--reason", "deploy"]);
    assert_eq!(
        done.out,
        "app/a: drain (draining), 1 request in flight\napp/b: drain (draining), 1 request in flight\n"
    );
    assert_eq!(fake.run(&["backend", "maint", "app", "a"]).exit, Exit::Ok);
    assert_eq!(fake.run(&["backend", "ready", "app", "a", "--no-persist"]).out, "app/a: ready (draining)\n");
    assert_eq!(
        fake.lines(),
        [
            "PATCH /v1/upstreams/app/backends/a?force=true&reason=deploy",
            "PATCH /v1/upstreams/app/backends/b?force=true&reason=deploy",
            "PATCH /v1/upstreams/app/backends/a",
            "PATCH /v1/upstreams/app/backends/a?persist=false",
        ]
    );
    let bodies: Vec<String> = fake.seen().iter().map(|seen| seen.body.clone()).collect();
    assert_eq!(bodies, ["drain", "drain", "maint", "ready"].map(|admin| format!("{{\"admin\":\"{admin}\"}}")));
}

#[test]
fn a_refusal_is_told_in_full_and_the_rest_is_not_tried() {
    let hint = json!({ "hint": "use --force", "field": "admin" });
    let last = Reply::problem(409, "last ready backend", "nobody would serve app", hint);
    let fake = Fake::new(vec![Reply::json(200, backend("a", "drain", "draining", 0)), last]);
    let done = fake.run(&["backend", "drain", "app", "a", "b", "c"]);
    assert_eq!(done.exit, Exit::Refused);
    let expected = "app/b failed; not tried: c\nerror: last ready backend: nobody would serve app\n  field: admin\n  help: use --force\n";
    assert_eq!(done.err, expected);
    assert_eq!(fake.lines().len(), 2);
}

#[test]
fn weight_and_forget_ask_and_tell() {
    let replies = vec![
        Reply::json(200, backend("a", "ready", "up", 0)),
        Reply::json(200, backend("a", "ready", "up", 0)),
        Reply::empty(204),
    ];
    let fake = Fake::new(replies);
    assert_eq!(fake.run(&["backend", "weight", "app", "a", "2"]).out, "app/a: weight 2, ready (up)\n");
    assert_eq!(fake.body(), json!({ "weight": 2 }));
    let done = fake.run(&["backend", "forget", "app", "a", "b", "--force", "--reason", "x"]);
    assert_eq!(done.out, "app/a: as declared again: 10.0.0.1:80, weight 2, ready (up)\napp/b: gone\n");
    let path = "/v1/upstreams/app/backends";
    assert_eq!(
        fake.lines(),
        [
            format!("PATCH {path}/a"),
            format!("DELETE {path}/a/override?force=true&reason=x"),
            format!("DELETE {path}/b/override?force=true&reason=x")
        ]
    );
}

#[test]
fn rm_tells_what_is_gone_and_what_leaves() {
    let leaving = with(backend("b", "ready", "draining", 3), json!({ "leaving_in": 60 }));
    let fake = Fake::new(vec![Reply::empty(204), Reply::json(202, leaving)]);
    let done = fake.run(&["backend", "rm", "app", "a", "b", "--drain", "1m", "--force", "--reason", "x"]);
    assert_eq!(done.out, "app/a: gone\napp/b: leaving, 3 requests in flight, gone in 1 min 0 s at the latest\n");
    assert_eq!(fake.lines()[1], "DELETE /v1/upstreams/app/backends/b?drain=60s&force=true&reason=x");
}

#[test]
fn waiting_ends_when_no_request_is_in_flight_and_shows_how_far_it_is() {
    let at = |in_flight| Reply::json(200, backend("a", "drain", "draining", in_flight));
    let fake = Fake::new(vec![at(3), at(3), at(1), at(0), status(false)]);
    let done = fake.run_on_terminal(&["backend", "drain", "app", "a", "--wait"]);
    assert_eq!(done.exit, Exit::Ok, "{}", done.err);
    assert!(done.out.ends_with("app/a: no request in flight\n"), "{}", done.out);
    assert!(done.err.contains("\ra: 1 request in flight, 0 s\u{1b}[K"), "{:?}", done.err);
    assert_eq!(fake.lines()[1..4], vec!["GET /v1/upstreams/app/backends/a"; 3]);
    assert_eq!(fake.lines()[4..], ["GET /v1/status"]);
}

fn status(predecessor_draining: bool) -> Reply {
    Reply::json(200, json!({ "predecessor_draining": predecessor_draining }))
}

#[test]
fn waiting_goes_on_while_a_process_before_still_has_requests() {
    let idle = || Reply::json(200, backend("a", "drain", "draining", 0));
    let fake = Fake::new(vec![idle(), idle(), status(true), idle(), status(false)]);
    let done = fake.run_on_terminal(&["backend", "drain", "app", "a", "--wait"]);
    assert_eq!(done.exit, Exit::Ok, "{}", done.err);
    assert!(done.out.ends_with("app/a: no request in flight\n"), "{}", done.out);
    assert_eq!(fake.lines().len(), 5);
    let replies = [idle()].into_iter().chain((0..50).flat_map(|_| [idle(), status(true)]));
    let done = Fake::new(replies.collect()).run(&["backend", "drain", "app", "a", "--wait", "--timeout", "10ms"]);
    assert_eq!(done.exit, Exit::DeadlinePassed);
    assert!(done.err.contains("the process before still has requests"), "{}", done.err);
}

#[test]
fn waiting_for_a_removal_ends_when_all_are_gone() {
    let leaving =
        |in_flight| Reply::json(202, with(backend("a", "ready", "draining", in_flight), json!({ "leaving_in": 5 })));
    // Without a request in flight it is not gone yet.
    let fake = Fake::new(vec![
        leaving(1),
        leaving(1),
        leaving(0),
        not_found(),
        status(false),
        leaving(0),
        not_found(),
        status(false),
    ]);
    let done = fake.run(&["backend", "rm", "app", "a", "b", "--wait", "--timeout", "1m"]);
    assert_eq!((done.exit, done.err.as_str()), (Exit::Ok, ""));
    assert!(done.out.ends_with("app/b: gone\napp/a: gone\n"), "{}", done.out);
    assert_eq!(fake.lines().len(), 8);
}

#[test]
fn waiting_ends_with_5_when_the_time_is_up() {
    let fake = Fake::new((0..50).map(|_| Reply::json(200, backend("a", "drain", "draining", 3))).collect());
    let done = fake.run(&["backend", "drain", "app", "a", "--wait", "--timeout", "10ms"]);
    assert_eq!(done.exit, Exit::DeadlinePassed);
    assert!(done.err.starts_with("error: still a: 3 requests in flight after 0 s"), "{}", done.err);
}

#[test]
fn waiting_ends_when_somebody_makes_the_backend_ready_again() {
    let ready = with(backend("a", "ready", "up", 3), json!({ "changed": { "who": "uid 7", "why": "", "at": 0 } }));
    let fake = Fake::new(vec![Reply::json(200, backend("a", "drain", "draining", 3)), Reply::json(200, ready)]);
    let done = fake.run(&["backend", "drain", "app", "a", "--wait"]);
    assert_eq!(done.exit, Exit::Refused);
    assert!(done.err.contains("ready again") && done.err.contains("uid 7"), "{}", done.err);
}

#[test]
fn a_change_that_falls_between_two_processes_is_repeated() {
    let refused = || {
        let kind = json!({ "type": "about:blank#being-replaced" });
        Reply::problem(503, "A successor takes over", "nothing was changed", kind)
    };
    let fake = Fake::new(vec![refused(), refused(), Reply::json(200, backend("a", "ready", "up", 0))]);
    let done = fake.run(&["backend", "weight", "app", "a", "2"]);
    assert_eq!((done.exit, fake.lines().len(), done.err.as_str()), (Exit::Ok, 3, ""));
    assert_eq!(done.out, "app/a: weight 2, ready (up)\n");
}

#[test]
fn another_503_is_not_repeated() {
    let kind = json!({ "type": "about:blank#not-kept" });
    let fake = Fake::new(vec![Reply::problem(503, "The change could not be kept", "read-only", kind)]);
    let done = fake.run(&["backend", "weight", "app", "a", "2"]);
    assert_eq!((done.exit, fake.lines().len()), (Exit::Refused, 1), "{}", done.err);
}

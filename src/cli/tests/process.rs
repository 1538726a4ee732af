//! Status, reload, upgrade, stop, configuration, route, events and state.

use serde_json::{Value, json};

use super::{
    super::Exit,
    fake::{Fake, Printed, Reply, run_with},
};

fn status(pid: u64) -> Value {
    json!({
        "version": "0.1.0", "pid": pid, "started": 1_700_000_000_000_u64, "state": "serving", "not_ready": "",
        "workers": 4, "connections": 120,
        "config": { "file": "/etc/rrlb.yaml", "generation": 3, "loaded": 1_700_000_000_000_u64, "confirm_within": 42,
                    "last_error": "unknown key\nrrlb.yaml:3:1" },
        "listeners": ["0.0.0.0:80", "[::]:443"],
    })
}

fn upstreams() -> Value {
    let backend =
        |id: &str, effective: &str| json!({ "id": id, "effective": effective, "in_flight": 2, "requests": 5 });
    json!({ "upstreams": [
        { "name": "good", "balance": "p2c", "backends": [backend("g", "up")] },
        { "name": "app", "balance": "round_robin", "backends": [backend("a", "up"), backend("b", "down")] },
    ] })
}

#[test]
fn status_shows_the_process_and_its_upstreams_the_troubled_first() {
    let fake = Fake::new(vec![Reply::json(200, status(7)), Reply::json(200, upstreams())]);
    let done = fake.run(&["status"]);
    assert_eq!(done.exit, Exit::Ok, "{}", done.err);
    for part in [
        "rrlb 0.1.0  serving\n",
        "process       7, started 2023-11-14 22:13:20 UTC (",
        "listeners     0.0.0.0:80, [::]:443\n",
        "configuration /etc/rrlb.yaml, generation 3, loaded",
        "goes back by itself in 42 s unless `rrlb confirm` comes\n",
        "last reload   unknown key\n              rrlb.yaml:3:1\n",
        "app       round_robin   1    2          4        10  b down\ngood      p2c           1    1          2         5\n",
    ] {
        assert!(done.out.contains(part), "no {part:?} in {}", done.out);
    }
    assert_eq!(fake.lines(), ["GET /v1/status", "GET /v1/upstreams"]);
    assert_eq!(fake.seen()[0].headers["user-agent"], concat!("rrlb/", env!("CARGO_PKG_VERSION")));
}

#[test]
fn status_for_programs_is_the_apis_json() {
    let fake = Fake::new(vec![Reply::json(200, status(7))]);
    assert_eq!(fake.run(&["status", "--json"]).out, format!("{}\n", status(7)));
}

#[test]
fn watching_paints_over_what_it_painted_until_it_is_refused() {
    let round = || [Reply::json(200, status(7)), Reply::json(200, upstreams())];
    let refused = Reply::problem(403, "not allowed", "", json!({}));
    let replies = round().into_iter().chain(round()).chain([refused]).collect();
    let done = Fake::new(replies).run_on_terminal(&["status", "--watch"]);
    assert_eq!(done.exit, Exit::Refused);
    assert_eq!(done.out.matches("\u{1b}[Hrrlb 0.1.0").count(), 2, "{:?}", done.out);
    assert_eq!(done.err, "error: not allowed\n");
}

fn report() -> Value {
    json!({ "generation": 4, "warnings": "warning[x]: y\n", "changes": [
        { "sign": "+", "path": "listeners 0.0.0.0:81", "detail": "", "needs_upgrade": false },
        { "sign": "~", "path": "threads", "detail": "2 -> 4", "needs_upgrade": true },
    ] })
}

#[test]
fn reload_tells_what_changed_and_what_needs_an_upgrade() {
    let fake = Fake::new(vec![Reply::json(200, report())]);
    let done = fake.run(&["reload"]);
    let expected = "+ listeners 0.0.0.0:81\n~ threads: 2 -> 4  (needs an upgrade)\nreloaded, 2 changes: generation 4\n\
                    1 change takes effect only by `rrlb upgrade`\n";
    assert_eq!((done.exit, done.out.as_str(), done.err.as_str()), (Exit::Ok, expected, "warning[x]: y\n"));
    assert_eq!(fake.lines(), ["POST /v1/config/reload"]);
}

#[test]
fn reload_with_a_confirmation_says_that_it_goes_back() {
    let report = json!({ "generation": 4, "changes": [], "warnings": "", "confirm_within": 60 });
    let fake = Fake::new(vec![Reply::json(200, report), Reply::empty(204)]);
    let done = fake.run(&["reload", "--confirm", "1m", "--abort-if", "5xx > 2%"]);
    let expected = "reloaded, nothing is different: generation 4\n\
                    it goes back by itself in 1 min 0 s unless `rrlb confirm` comes, and at once if 5xx > 2%\n";
    assert_eq!(done.out, expected);
    assert_eq!(fake.run(&["confirm"]).exit, Exit::Ok);
    assert_eq!(
        fake.lines(),
        ["POST /v1/config/reload?confirm=60s&abort_if=5xx%20%3E%202%25", "POST /v1/config/confirm"]
    );
}

#[test]
fn diff_is_a_reload_that_does_nothing() {
    let fake = Fake::new(vec![Reply::json(200, report()), Reply::json(200, report())]);
    let done = fake.run_on_terminal(&["diff"]);
    assert!(done.out.contains("\u{1b}[32m+ listeners 0.0.0.0:81\u{1b}[0m\n"), "{:?}", done.out);
    assert!(done.out.contains("2 changes; nothing was done\n"), "{}", done.out);
    assert_eq!(fake.run(&["reload", "--dry-run", "--json"]).out, format!("{}\n", report()));
    assert_eq!(fake.lines(), vec!["POST /v1/config/reload?dry_run=true"; 2]);
}

#[test]
fn a_configuration_that_is_not_valid_ends_with_1_and_its_report() {
    let problem = || {
        let more =
            json!({ "report": "error[unknown-key]: `x`\n --> f:1:1\n", "problems": [{ "code": "unknown-key" }] });
        Reply::problem(422, "invalid", "", more)
    };
    let fake = Fake::new(vec![problem(), problem()]);
    let done = fake.run(&["reload"]);
    assert_eq!(done.exit, Exit::InvalidConfiguration);
    assert_eq!(
        done.err,
        "error[unknown-key]: `x`\n --> f:1:1\nerror: the configuration is not valid; nothing was changed\n"
    );
    let done = fake.run(&["reload", "--json"]);
    assert_eq!((done.exit, done.out.as_str()), (Exit::InvalidConfiguration, "[{\"code\":\"unknown-key\"}]\n"));
}

#[test]
fn nothing_to_confirm_is_a_refusal() {
    let fake = Fake::new(vec![Reply::problem(409, "nothing to confirm", "no reload waits", json!({}))]);
    let done = fake.run(&["confirm"]);
    assert_eq!((done.exit, done.err.as_str()), (Exit::Refused, "error: nothing to confirm: no reload waits\n"));
}

#[test]
fn upgrade_shows_that_it_waits_and_names_the_successor() {
    let err = Printed::default();
    let (shown, asked) = (err.clone(), ["upgrade", "--binary", "/opt/rrlb", "--timeout", "90s"]);
    let reply =
        Reply::json(200, json!({ "pid": 4242 })).when(move || shown.text().contains("waiting for the successor"));
    let fake = Fake::new(vec![reply]);
    let done = run_with(&asked, Some(&fake), true, Some(err));
    assert_eq!(done.out, "upgraded: process 4242 serves, the one before it drains\n");
    assert!(done.err.ends_with("\r\u{1b}[K"), "the line is left: {:?}", done.err);
    assert_eq!(fake.lines(), ["POST /v1/upgrade"]);
    assert_eq!(fake.body(), json!({ "binary": "/opt/rrlb", "timeout": "90s" }));
}

#[test]
fn an_upgrade_whose_instance_dies_reports_who_serves() {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("after 1970").as_millis();
    let (mut starting, mut serving) = (status(77), status(77));
    (starting["started"], serving["started"]) = (json!(now as u64 + 1), json!(now as u64 + 1));
    starting["state"] = json!("starting");
    let fake = Fake::new(vec![Reply::dies(), Reply::dies(), Reply::json(200, starting), Reply::json(200, serving)]);
    let done = fake.run(&["upgrade"]);
    assert_eq!(done.exit, Exit::Ok, "{}", done.err);
    assert_eq!(done.out, "upgraded: process 77 serves; the one before it ended before it could say so\n");
    assert_eq!(fake.lines().len(), 4, "the upgrade is asked for once, and who serves until somebody does");
    // The one that was asked goes on.
    let fake = Fake::new(vec![Reply::dies(), Reply::json(200, status(7))]);
    let done = fake.run(&["upgrade"]);
    assert_eq!(done.exit, Exit::Internal);
    assert!(done.err.contains("process 7, which was there before, goes on"), "{}", done.err);
}

#[test]
fn an_upgrade_that_failed_ends_with_4_and_the_reason() {
    let detail = "the successor left with code 6: port used";
    let fake = Fake::new(vec![Reply::problem(409, "upgrade failed", detail, json!({ "report": "last line" }))]);
    let done = fake.run(&["upgrade"]);
    assert_eq!(done.exit, Exit::Refused);
    assert_eq!(done.err, format!("error: upgrade failed: {detail}\n  | last line\n"));
    assert_eq!(fake.body(), json!({}));
}

#[test]
fn stop_drains_unless_it_is_now() {
    let fake = Fake::new(vec![Reply::empty(202), Reply::empty(202)]);
    assert_eq!(fake.run(&["stop"]).out, "draining; it leaves when its requests are done\n");
    assert_eq!(fake.run(&["stop", "--now"]).out, "leaving at once\n");
    assert_eq!(fake.lines(), ["POST /v1/stop", "POST /v1/stop?now=true"]);
}

#[test]
fn config_prints_what_runs() {
    let fake = Fake::new(vec![Reply::text("text/yaml", "version: 1\nthreads: 2\n")]);
    let done = fake.run(&["config", "--effective", "-c", "/nonexistent/rrlb.yaml"]);
    assert_eq!((done.exit, done.out.as_str()), (Exit::Ok, "version: 1\nthreads: 2\n"));
    assert_eq!(fake.lines(), ["GET /v1/config"]);
}

#[test]
fn route_sends_the_request_and_explains_what_becomes_of_it() {
    let backends = json!([
        { "id": "a", "address": "10.0.0.1:80", "eligible": true, "why": "up" },
        { "id": "b", "address": "10.0.0.2:80", "eligible": false, "why": "drain" },
    ]);
    let explained = json!({
        "listeners": ["0.0.0.0:80"], "route": { "name": "api", "index": 2 }, "action": "proxy", "detail": "first match",
        "upstreams": [{ "name": "app", "share": 95.0, "backends": backends, "chosen": "a" }, { "name": "live", "share": 5, "backends": [] }],
    });
    let fake = Fake::new(vec![Reply::json(200, explained)]);
    let url = "https://example.com/v1/?q=1";
    let done = fake.run(&["route", "GET", url, "-H", "X-A: 1", "-H", "x-a: 2", "--from", "1.2.3.4"]);
    let expected = "\
listeners 0.0.0.0:80
route     api (routes[2])
action    proxy
          first match

upstream  app (95 %)
BACKEND  ADDRESS      MAY BE CHOSEN  WHY
a        10.0.0.1:80  yes            up
b        10.0.0.2:80  no             drain
this client's requests go to a

upstream  live (5 %)
no backends
";
    assert_eq!((done.exit, done.out.as_str()), (Exit::Ok, expected));
    assert_eq!(fake.body(), json!({ "method": "GET", "url": url, "headers": { "x-a": "1, 2" }, "from": "1.2.3.4" }));
    assert_eq!(fake.lines(), ["POST /v1/route"]);
}

#[test]
fn a_request_that_no_route_takes_is_explained_too() {
    let explained =
        json!({ "listeners": ["0.0.0.0:80"], "route": null, "action": "none", "upstreams": [], "detail": null });
    let done = Fake::new(vec![Reply::json(200, explained)]).run(&["route", "POST", "http://a/"]);
    assert_eq!(done.out, "listeners 0.0.0.0:80\nroute     none matches\naction    none\n");
}

fn event(id: u64) -> String {
    let data = json!({ "id": id, "time": 1_700_000_000_000_u64, "kind": "backend.changed", "upstream": "app",
                       "backend": "a", "who": "uid 0", "what": "ready -> drain", "why": "deploy" });
    format!("id: 18f-{id}\nevent: backend.changed\ndata: {data}\n\n")
}

#[test]
fn errors_are_lines_for_people() {
    let request = json!({ "kind": "request", "time": 1_700_000_000_000_u64, "reason": "connect_refused", "status": 502,
                          "method": "GET", "host": "a.test", "path": "/x", "upstream": "app", "backend": "a",
                          "request_id": "7f" });
    let change = json!({ "kind": "change", "time": 1_700_000_000_000_u64, "reason": "last-ready", "who": "uid 0",
                         "what": "patchBackend", "upstream": "app", "backend": "a", "detail": "nobody is left\nmore" });
    let errors = json!({ "errors": [request, change] });
    let fake = Fake::new(vec![Reply::json(200, errors), Reply::json(200, json!({ "errors": [] }))]);
    let done = fake.run(&["errors", "--limit", "5"]);
    let expected = "2023-11-14 22:13:20  502 connect_refused GET a.test/x, app/a, request 7f\n\
                    2023-11-14 22:13:20  last-ready patchBackend app/a: nobody is left, by uid 0\n";
    assert_eq!(done.out, expected);
    assert_eq!(fake.run(&["errors"]).out, "nothing failed\n");
    assert_eq!(fake.lines(), ["GET /v1/errors?limit=5", "GET /v1/errors?limit=100"]);
}

#[test]
fn events_prints_what_is_kept_and_ends_though_the_stream_does_not() {
    let text = format!("event: missed\ndata: {{\"missed\":12}}\n\n: hello\n\n{}", event(13));
    let fake = Fake::new(vec![Reply::text("text/event-stream", &text).endless()]);
    let done = fake.run(&["events"]);
    let expected = "13    2023-11-14 22:13:20  backend.changed app/a: ready -> drain, by uid 0 (deploy)\n";
    assert_eq!((done.exit, done.out.as_str()), (Exit::Ok, expected));
    assert_eq!(done.err, "(12 events before this are not kept any more)\n");
    assert_eq!(fake.seen()[0].headers["last-event-id"], "0");
}

#[test]
fn following_goes_on_where_it_was_cut() {
    let stream = |id| Reply::text("text/event-stream", &event(id));
    let fake = Fake::new(vec![stream(5), stream(6), stream(7), Reply::problem(401, "no token", "", json!({}))]);
    let done = fake.run(&["events", "--follow", "--json", "--after", "4"]);
    assert_eq!(done.exit, Exit::Refused);
    let ids: Vec<Value> =
        done.out.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")["id"].clone()).collect();
    assert_eq!(ids, [5, 6, 7]);
    let asked: Vec<String> = fake
        .seen()
        .iter()
        .filter_map(|seen| seen.headers.get("last-event-id").map(|id| id.to_str().expect("text").to_owned()))
        .collect();
    assert_eq!(asked, ["4", "18f-5", "18f-6", "18f-7"], "ids go back as they came");
}

#[test]
fn state_shows_each_change_and_prints_the_patch() {
    let state = json!({ "upstreams": { "app": {
        "a": { "address": "10.0.0.1:80", "weight": 5, "admin": "drain", "removed": false, "dormant": false, "persist": true,
               "who": "uid 0", "why": "test", "at": 1_700_000_000,
               "base": { "address": "10.0.0.1:80", "weight": 1, "source": "file" } },
        "b": { "address": "10.0.0.2:80", "weight": 1, "admin": "ready", "lease_ttl_seconds": 15, "persist": false, "who": "token",
               "why": "", "at": 0 },
        "c": { "admin": "ready", "removed": true, "dormant": true, "who": "token", "why": "", "at": 0 },
        "d": { "address": "10.0.0.1:80", "weight": 1, "admin": "ready", "dormant": true, "taken_by": "a", "who": "token",
               "why": "", "at": 0 },
    } } });
    let patch = "upstreams:\n  app: {}\n";
    let fake = Fake::new(vec![
        Reply::json(200, state),
        Reply::text("text/yaml", patch),
        Reply::json(200, json!({ "upstreams": {} })),
    ]);
    let done = fake.run(&["state", "show"]);
    for part in [
        "app       a        weight 1 -> 5, drain ",
        "uid 0  2023-11-14 22:13:20  test\n",
        "app       b        added: 10.0.0.2:80, weight 1, lease of 15 s, until a restart ",
        "app       c        removed, without effect: nobody declares it now ",
        "app       d        added: 10.0.0.1:80, weight 1, without effect: its address is that of a ",
    ] {
        assert!(done.out.contains(part), "no {part:?} in {}", done.out);
    }
    assert_eq!(fake.run(&["state", "patch"]).out, patch);
    assert_eq!(fake.run(&["state", "show"]).out, "nothing was changed at run time\n");
    assert_eq!(fake.lines(), ["GET /v1/state", "GET /v1/state/patch", "GET /v1/state"]);
}

#[test]
fn an_answer_that_is_not_understood_is_a_fault() {
    let fake = Fake::new(vec![
        Reply::text("text/html", "<p>"),
        Reply::empty(502),
        Reply::problem(500, "internal", "a panic", json!({})),
    ]);
    for part in ["another version", "status 502", "internal: a panic"] {
        let done = fake.run(&["status"]);
        assert_eq!(done.exit, Exit::Internal, "{}", done.err);
        assert!(done.err.contains(part), "no {part:?} in {}", done.err);
    }
}

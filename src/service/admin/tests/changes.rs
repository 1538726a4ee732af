//! Changes of backends: what they do, what they refuse, and what is told of them.

use std::time::{Duration, Instant};

use super::{
    super::problem::{Kind, Problem},
    support::Bench,
};
use crate::{
    policy::health::Health,
    runtime::{
        journal::SaveError,
        membership::{Membership, Note, Outcome, Put},
        store::ChangeError,
    },
    types::{AdminState, BackendAddress, Name},
};

const APP: &str = "/v1/upstreams/app";
const NEW: &str = "/v1/upstreams/app/backends/new";

#[tokio::test]
async fn a_backend_is_added_changed_and_removed_and_each_step_is_told_with_who_and_why() {
    let bench = Bench::start().await;
    let added = bench
        .expect(201, "PUT", &format!("{NEW}?reason=more+load"), r#"{"address":"127.0.0.1:9003","weight":5}"#)
        .await;
    assert_eq!((&added["weight"], &added["source"], &added["effective"]), (&5.into(), &"api".into(), &"up".into()));
    assert_eq!(added["changed"]["why"], "more load");
    assert_eq!(added["changed"]["who"], bench.me());
    let snapshot = bench.store.snapshot();
    let serving = snapshot.members().iter().find(|member| member.upstream.name.as_str() == "app").expect("app");
    assert!(serving.upstream.backends().iter().any(|backend| backend.id.as_str() == "new"), "visible by the answer");
    // Again is nothing new, and a weight that is left out stays.
    let again = bench.expect(200, "PUT", NEW, r#"{"address":"127.0.0.1:9003"}"#).await;
    assert_eq!(again["weight"], 5);
    let drained = bench.expect(200, "PATCH", &format!("{NEW}?reason=tests"), r#"{"admin":"drain","weight":1}"#).await;
    assert_eq!((&drained["admin"], &drained["effective"]), (&"drain".into(), &"draining".into()));
    bench.expect(200, "PATCH", NEW, r#"{"admin":"maint"}"#).await;
    bench.expect(200, "PATCH", NEW, r#"{"admin":"ready"}"#).await;
    let leaving = bench.expect(202, "DELETE", &format!("{NEW}?drain=45s"), "").await;
    assert_eq!(leaving["leaving_in"], 45);
    bench.expect(204, "DELETE", &format!("{NEW}?drain=0s"), "").await;
    bench.expect(404, "GET", NEW, "").await;
    let told: Vec<_> = bench.events();
    let told: Vec<_> = told.iter().map(|event| (event.kind, event.what.as_str(), event.why.as_str())).collect();
    assert_eq!(
        told,
        [
            ("backend.added", "added at 127.0.0.1:9003, weight 5, by api", "more load"),
            ("backend.changed", "weight 5 -> 1, state ready -> drain", "tests"),
            ("backend.changed", "state drain -> maint", ""),
            ("backend.changed", "state maint -> ready", ""),
            ("backend.leaving", "leaves when its requests are done, in 45 s at the latest", ""),
            ("backend.removed", "removed", ""),
        ]
    );
    let me = bench.me();
    assert!(bench.events().iter().all(|event| event.who == me && event.upstream == "app" && event.backend == "new"));
}

#[tokio::test]
async fn an_override_shows_in_the_state_and_is_forgotten() {
    let bench = Bench::start().await;
    bench.expect(200, "PATCH", &format!("{APP}/backends/app-1?persist=false"), r#"{"weight":7}"#).await;
    let app = bench.expect(200, "GET", APP, "").await;
    let first = &app["backends"][0];
    assert_eq!((&first["weight"], &first["overridden"], &first["source"]), (&7.into(), &true.into(), &"file".into()));
    let state = bench.expect(200, "GET", "/v1/state", "").await;
    let over = &state["upstreams"]["app"]["app-1"];
    assert_eq!((&over["weight"], &over["base"]["weight"], &over["persist"]), (&7.into(), &2.into(), &false.into()));
    let patch = bench.ask("GET", "/v1/state/patch", "").await;
    assert!(
        String::from_utf8_lossy(&patch.body).contains("No change"),
        "what ends with the process is not for the file"
    );
    let back = bench.expect(200, "DELETE", &format!("{APP}/backends/app-1/override"), "").await;
    assert_eq!((&back["weight"], &back["overridden"]), (&2.into(), &false.into()));
    assert_eq!(bench.events().last().map(|event| event.kind), Some("backend.forgotten"));
    bench.expect(404, "DELETE", &format!("{APP}/backends/app-1/override"), "").await;
}

#[tokio::test]
async fn the_last_ready_backend_stays_unless_forced() {
    let bench = Bench::start().await;
    let one = "/v1/upstreams/one/backends/127.0.0.1:9101";
    let list = "/v1/upstreams/live/backends";
    bench.expect(200, "PUT", list, r#"[{"id":"a","address":"127.0.0.1:9201"}]"#).await;
    for (method, path, body) in [
        ("PATCH", one.to_owned(), r#"{"admin":"drain"}"#),
        ("PATCH", one.to_owned(), r#"{"weight":0}"#),
        ("PUT", one.to_owned(), r#"{"address":"127.0.0.1:9101","weight":0}"#),
        ("DELETE", one.to_owned(), ""),
        ("DELETE", format!("{one}?drain=0s"), ""),
        ("PUT", list.to_owned(), "[]"),
        ("DELETE", format!("{list}/a/override"), ""),
    ] {
        let reply = bench.ask(method, &path, body).await;
        assert_eq!((reply.status, reply.problem().0.as_str()), (409, "last-ready"), "{method} {path} {body}");
    }
    assert!(bench.events().iter().all(|event| event.upstream == "live" && event.kind == "backend.added"));
    bench.expect(200, "PATCH", &format!("{one}?force=true"), r#"{"admin":"drain"}"#).await;
    bench.expect(200, "PUT", &format!("{list}?force=true&drain=0s"), "[]").await;
    let errors = bench.expect(200, "GET", "/v1/errors", "").await;
    assert_eq!(errors["errors"].as_array().map(Vec::len), Some(7));
    assert_eq!(
        (&errors["errors"][0]["reason"], &errors["errors"][0]["who"]),
        (&"last-ready".into(), &bench.me().into())
    );
}

#[tokio::test]
async fn the_set_of_the_api_is_replaced_and_the_rest_stays() {
    let bench = Bench::start().await;
    let list = format!("{APP}/backends");
    let three =
        r#"{"backends":[{"id":"a","address":"127.0.0.1:9201"},{"id":"b","address":"127.0.0.1:9202","weight":4}]}"#;
    bench.expect(200, "PUT", &list, three).await;
    bench.expect(201, "PUT", &format!("{list}/leased?ttl=1h"), r#"{"address":"127.0.0.1:9203"}"#).await;
    let after =
        bench.expect(200, "PUT", &format!("{list}?drain=0s"), r#"[{"id":"b","address":"127.0.0.1:9202"}]"#).await;
    let ids: Vec<_> = after["backends"].as_array().expect("a list").iter().map(|one| one["id"].clone()).collect();
    assert_eq!(ids, ["app-1", "app-2", "b", "leased"]);
    assert_eq!(after["backends"][2]["weight"], 4);
    bench.expect(200, "PUT", &list, "[]").await;
    let leaving = bench.expect(200, "GET", &format!("{list}/b"), "").await;
    assert!(leaving["leaving_in"].as_u64().is_some_and(|seconds| (29..=30).contains(&seconds)), "{leaving}");
}

#[tokio::test]
async fn a_lease_is_for_what_only_it_registers() {
    let bench = Bench::start().await;
    let leased = bench.expect(201, "PUT", &format!("{NEW}?ttl=90s"), r#"{"address":"127.0.0.1:9003"}"#).await;
    assert_eq!((&leased["source"], &leased["lease_ttl_seconds"]), (&"lease".into(), &90.into()));
    assert!(leased["lease_expires_in"].as_u64().is_some_and(|seconds| (85..=90).contains(&seconds)));
    bench.expect(200, "PUT", &format!("{NEW}?ttl=90s"), r#"{"address":"127.0.0.1:9003"}"#).await;
    assert_eq!(bench.events().len(), 1, "a renewal is not told");
    let reply = bench.ask("PUT", &format!("{APP}/backends/app-1?ttl=90s"), r#"{"address":"127.0.0.1:9001"}"#).await;
    assert_eq!((reply.status, reply.problem()), (409, ("not-leasable".into(), Some("ttl".into()))));
}

#[tokio::test]
async fn a_change_meant_for_another_version_is_refused_with_the_current_one() {
    let bench = Bench::start().await;
    let read = bench.ask("GET", APP, "").await;
    let etag = read.header("etag").expect("an ETag").to_owned();
    assert_eq!(read.json()["etag"], etag.as_str());
    let weight = |weight: u32| format!("{{\"weight\":{weight}}}");
    let path = format!("{APP}/backends/app-1");
    let fields = |etag: &str| format!("Content-Type: application/json\r\nIf-Match: {etag}\r\n");
    let first = bench.ask_with("PATCH", &path, &fields(&etag), &weight(3)).await;
    let now = first.header("etag").expect("an ETag").to_owned();
    assert!(first.status == 200 && now != etag);
    for tag in [etag.as_str(), "\"0000000000000000\"", "\"other\"", &format!("W/{now}")] {
        let stale = bench.ask_with("PATCH", &path, &fields(tag), &weight(4)).await;
        assert_eq!((stale.status, stale.problem().0.as_str()), (412, "stale"), "{tag}");
        assert_eq!((stale.header("etag"), stale.json()["etag"].as_str()), (Some(now.as_str()), Some(now.as_str())));
    }
    assert_eq!(bench.expect(200, "GET", &path, "").await["weight"], 3);
    assert_eq!(bench.ask_with("PATCH", &path, &fields("*"), &weight(4)).await.status, 200);
    let now = bench.ask("GET", APP, "").await.header("etag").expect("an ETag").to_owned();
    assert_eq!(bench.ask_with("PATCH", &path, &fields(&format!("{etag}, {now}")), &weight(5)).await.status, 200);
    for (method, path) in [("DELETE", path.clone()), ("DELETE", format!("{path}/override"))] {
        assert_eq!(bench.ask_with(method, &path, &format!("If-Match: {etag}\r\n"), "").await.status, 412, "{path}");
    }
    let broken = bench.ask_with("DELETE", &path, "If-Match: 12\r\n", "").await;
    assert_eq!(broken.status, 400);
    let elsewhere = bench.ask_with("DELETE", "/v1/upstreams/x/backends/y", "If-Match: *\r\n", "").await;
    assert_eq!(elsewhere.status, 404);
}

#[tokio::test]
async fn wrong_values_are_named() {
    let bench = Bench::start().await;
    let app1 = format!("{APP}/backends/app-1");
    let list = format!("{APP}/backends");
    let long_id = format!("{APP}/backends/{}", "x".repeat(129));
    let good = r#"{"address":"127.0.0.1:9003"}"#;
    let twice = r#"[{"id":"a","address":"h:1"},{"id":"a","address":"h:2"}]"#;
    let same = r#"{"backends":[{"id":"a","address":"h:1"},{"id":"b","address":"h:1"}]}"#;
    for (method, path, body, status, field) in [
        ("PUT", NEW, "{}", 422, Some("address")),
        ("PUT", NEW, "[]", 422, None),
        ("PUT", NEW, "null", 422, None),
        ("PUT", NEW, "{", 400, None),
        ("PUT", NEW, "", 400, None),
        ("PUT", NEW, r#"{"address":"x:1","address":"y:1"}"#, 400, None),
        ("PUT", NEW, r#"{"address":5}"#, 422, Some("address")),
        ("PUT", NEW, r#"{"address":"nowhere"}"#, 422, Some("address")),
        ("PUT", NEW, r#"{"address":"127.0.0.1:0"}"#, 422, Some("address")),
        ("PUT", NEW, r#"{"address":"unix:relative"}"#, 422, Some("address")),
        ("PUT", NEW, r#"{"address":"h:1","weight":1001}"#, 422, Some("weight")),
        ("PUT", NEW, r#"{"address":"h:1","wieght":1}"#, 422, Some("wieght")),
        ("PUT", NEW, r#"{"address":"127.0.0.1:9001"}"#, 409, Some("address")),
        ("PUT", &format!("{NEW}?ttl=1ms"), good, 422, Some("ttl")),
        ("PUT", &format!("{NEW}?ttl=2d"), good, 422, Some("ttl")),
        ("PUT", &format!("{NEW}?drain=1s"), good, 400, Some("drain")),
        ("PUT", &format!("{NEW}?reason=%07"), good, 422, Some("reason")),
        ("PUT", &format!("{APP}/backends/a%20b"), good, 422, Some("backend")),
        ("PUT", &long_id, good, 422, Some("backend")),
        ("PUT", "/v1/upstreams/no/backends/x", good, 404, None),
        ("PATCH", &app1, "{}", 422, None),
        ("PATCH", &app1, r#"{"admin":"drained"}"#, 422, Some("admin")),
        ("PATCH", &app1, r#"{"address":"h:1"}"#, 422, Some("address")),
        ("PATCH", NEW, r#"{"weight":1}"#, 404, None),
        ("DELETE", &format!("{app1}?force=1"), "", 422, Some("force")),
        ("DELETE", &format!("{app1}?drain=90"), "", 422, Some("drain")),
        ("DELETE", &app1, "{}", 400, None),
        ("DELETE", NEW, "", 404, None),
        ("PUT", &list, "{}", 422, Some("backends")),
        ("PUT", &list, "7", 422, None),
        ("PUT", &list, r#"[{"address":"h:1"}]"#, 422, Some("[0].id")),
        (
            "PUT",
            &list,
            r#"{"backends":[{"id":"a","address":"h:1"},{"id":"b","address":"h"}]}"#,
            422,
            Some("backends[1].address"),
        ),
        ("PUT", &list, r#"[{"id":"a","address":"h:1","ttl":1}]"#, 422, Some("[0].ttl")),
        ("PUT", &list, twice, 422, Some("[1].id")),
        ("PUT", &list, same, 422, Some("backends[1].address")),
    ] {
        let reply = bench.ask(method, path, body).await;
        let got = (reply.status, reply.problem().1);
        assert_eq!(got, (status, field.map(str::to_owned)), "{method} {path} {body}: {}", reply.json());
    }
    assert!(bench.events().is_empty() && bench.store.overrides().is_empty(), "nothing was changed");
}

#[tokio::test]
async fn ids_may_have_any_visible_character() {
    let bench = Bench::start().await;
    let path = "/v1/upstreams/live/backends/unix:%2Frun%2Fa%3Fb.sock%23%C3%BC";
    let added = bench.expect(201, "PUT", path, r#"{"address":"unix:/run/a.sock"}"#).await;
    assert_eq!((&added["id"], &added["target"]), (&"unix:/run/a?b.sock#ü".into(), &"unix:/run/a.sock".into()));
    bench.expect(200, "GET", path, "").await;
    let named = bench.expect(201, "PUT", "/v1/upstreams/live/backends/n", r#"{"address":"App.Internal.:80"}"#).await;
    assert_eq!((&named["address"], &named["effective"]), (&"app.internal:80".into(), &"unresolved".into()));
    assert_eq!(named["target"], serde_json::Value::Null);
}

#[tokio::test]
async fn what_traffic_sees_is_said_in_one_word() {
    let bench = Bench::start().await;
    let app2 = format!("{APP}/backends/app-2");
    let effective = async |body: &str| bench.expect(200, "PATCH", &app2, body).await["effective"].clone();
    assert_eq!(effective(r#"{"weight":0}"#).await, "disabled");
    assert_eq!(effective(r#"{"admin":"drain"}"#).await, "draining");
    assert_eq!(effective(r#"{"admin":"maint"}"#).await, "maint");
    assert_eq!(effective(r#"{"weight":1,"admin":"ready"}"#).await, "up");
    let view = bench.store.view(&Name::from("app")).expect("app");
    assert!(view.membership.entries().iter().all(|entry| entry.admin == AdminState::Ready));
}

#[test]
fn a_disk_that_is_full_or_read_only_has_its_own_status() {
    let full = ChangeError::NotKept(SaveError::NoSpace("/state".into()));
    let read_only =
        ChangeError::NotKept(SaveError::Write("/state".into(), std::io::ErrorKind::ReadOnlyFilesystem.into()));
    for (error, kind, status) in [(full, Kind::NoSpace, 507), (read_only, Kind::NotKept, 503)] {
        let problem = Problem::from(error);
        assert_eq!((problem.kind, problem.kind.status().as_u16()), (kind, status));
        assert!(problem.is_failed_change() && problem.detail.contains("/state"), "{problem:?}");
    }
    let sni = Problem::from(ChangeError::SniMissing("127.0.0.1:1".into()));
    assert_eq!((sni.kind.status().as_u16(), sni.field.as_deref()), (422, Some("address")));
}

#[tokio::test]
async fn a_change_between_two_processes_has_one_text_and_says_when_to_repeat_it() {
    let bench = Bench::start().await;
    bench.store.give_up();
    let put = bench.ask("PUT", NEW, r#"{"address":"127.0.0.1:9003"}"#).await;
    assert_eq!((put.status, put.problem().0.as_str()), (503, "being-replaced"));
    assert_eq!(put.header("retry-after"), Some("1"));
    let sealed = Problem::from(ChangeError::NotKept(SaveError::Sealed("/state".into())));
    assert_eq!(put.json()["detail"], sealed.detail);
    assert_eq!(put.json()["title"], "A successor takes over");
}

#[tokio::test]
async fn an_address_that_is_being_left_is_refused_with_when_to_come_again() {
    let bench = Bench::start().await;
    let body = r#"{"address":"127.0.0.1:9003"}"#;
    bench.expect(201, "PUT", NEW, body).await;
    bench.ask("DELETE", &format!("{NEW}?drain=1h"), "").await;
    let again = bench.ask("PUT", "/v1/upstreams/app/backends/newer", body).await;
    assert_eq!((again.status, again.problem()), (409, ("duplicate-address".to_owned(), Some("address".to_owned()))));
    let (detail, hint) = (again.json()["detail"].to_string(), again.json()["hint"].to_string());
    assert!(detail.contains("is leaving") && hint.contains("gone within 3600 s"), "{detail} {hint}");
}

#[test]
fn words_of_problems_are_distinct_and_plain() {
    let words: std::collections::BTreeSet<_> = Kind::ALL.iter().map(|kind| kind.code()).collect();
    assert_eq!(words.len(), Kind::ALL.len());
    assert!(words.iter().all(|word| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-')), "{words:?}");
}

#[tokio::test]
async fn a_backend_that_must_be_new_is_not_changed() {
    let bench = Bench::start().await;
    let body = r#"{"address":"127.0.0.1:9003"}"#;
    let fields = "Content-Type: application/json\r\nIf-None-Match: *\r\n";
    assert_eq!(bench.ask_with("PUT", NEW, fields, body).await.status, 201);
    let again = bench.ask_with("PUT", NEW, fields, r#"{"address":"127.0.0.1:9004"}"#).await;
    assert_eq!((again.status, again.problem().0.as_str()), (412, "exists"));
    assert_eq!(bench.expect(200, "GET", NEW, "").await["address"], "127.0.0.1:9003");
}

#[tokio::test]
async fn an_old_verdict_on_what_is_not_probed_any_more_is_not_shown() {
    let bench = Bench::start().await;
    let app = bench.store.view(&Name::from("app")).expect("app").upstream;
    app.backends()[0].set_health(Health::Down);
    let first = bench.expect(200, "GET", &format!("{APP}/backends/app-1"), "").await;
    assert_eq!((&first["health"], &first["effective"]), (&"unknown".into(), &"up".into()));
}

#[tokio::test]
async fn what_is_shown_costs_in_proportion_to_what_was_said() {
    let bench = Bench::start().await;
    let said = |from: usize, to: usize| {
        let put = |n: usize| (Name::from(n.to_string()), at(n));
        let puts = (from..to).map(put).collect();
        let replace = |members: &mut Membership, now| {
            members.replace(puts, 0, true, &Note::default(), now).map(|()| Outcome::Changed)
        };
        bench.store.change(&"app".into(), None, true, replace).expect("added");
    };
    let cost = async |path: &str| {
        let mut best = Duration::MAX;
        for _ in 0..3 {
            let began = Instant::now();
            bench.expect(200, "GET", path, "").await;
            best = best.min(began.elapsed());
        }
        best
    };
    said(0, 500);
    let few = [cost(APP).await, cost("/v1/state").await];
    said(0, 5000);
    let many = [cost(APP).await, cost("/v1/state").await];
    for (few, many) in few.into_iter().zip(many) {
        assert!(many < few * 40, "ten times as many: {few:?}, then {many:?}");
    }
}

fn at(n: usize) -> Put {
    let port = u16::try_from(n).expect("a port") + 10_000;
    Put {
        address: BackendAddress::Inet(([127, 0, 0, 2], port).into()),
        weight: None,
        ttl: None,
        force: false,
        transient: false,
    }
}

#[tokio::test]
async fn what_the_caller_has_already_is_not_sent_again() {
    let bench = Bench::start().await;
    let places = [APP, "/v1/upstreams/app/backends", "/v1/upstreams/app/backends/app-1"];
    let etag = bench.ask("GET", APP, "").await.header("etag").expect("an ETag").to_owned();
    let ask = async |method: &str, place: &str, known: &str| {
        bench.ask_with(method, place, &format!("If-None-Match: {known}\r\n"), "").await
    };
    for place in places {
        for known in [etag.clone(), format!("W/{etag}"), format!("\"0000000000000000\", {etag}"), "*".to_owned()] {
            for method in ["GET", "HEAD"] {
                let reply = ask(method, place, &known).await;
                assert_eq!(
                    (reply.status, reply.header("etag")),
                    (304, Some(etag.as_str())),
                    "{method} {place} {known}"
                );
                assert_eq!(reply.header("content-length"), None, "it would be the length of what is not sent");
            }
        }
        for other in ["\"0000000000000000\"", "other", ""] {
            assert_eq!(ask("GET", place, other).await.status, 200, "{place} {other}");
        }
    }
    bench.expect(200, "PATCH", places[2], r#"{"weight":7}"#).await;
    let after = ask("GET", places[2], &etag).await;
    assert_eq!((after.status, after.json()["weight"].as_u64()), (200, Some(7)));
    // What is not there is not unchanged, and what has no ETag is always sent.
    assert_eq!(ask("GET", "/v1/upstreams/app/backends/none", "*").await.status, 404);
    assert_eq!(ask("GET", "/v1/status", "*").await.status, 200);
}

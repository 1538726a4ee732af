//! What was said at run time beside a file that changes: each case of the merge of old file, new file and journal, by a
//! reload and by a restart. And the guard of the last backend that is ready, by every way to take it.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::support::{
    admin::Api,
    eventually,
    origin::Origin,
    proxy::{Config, Proxy},
    run,
};

/// One backend: id, port, weight.
type Declared = (&'static str, u16, u16);

/// One row of the table in `docs/control.md`.
struct Case {
    /// The upstream's name, which says what it is about.
    name: &'static str,
    old: &'static [Declared],
    /// Method, what follows the upstream's path, body.
    said: &'static [(&'static str, &'static str, &'static str)],
    /// Each file that comes then.
    new: &'static [Next],
}

/// A later file (`None`: without this upstream), what is there by then, and what the log says.
type Next = (Option<&'static [Declared]>, &'static str, Option<&'static str>);

const A: Declared = ("a", 1, 1);
const B: Declared = ("b", 2, 1);
const DRAIN_A: (&str, &str, &str) = ("PATCH", "/backends/a", r#"{"admin":"drain"}"#);
const WEIGH_A: (&str, &str, &str) = ("PATCH", "/backends/a", r#"{"weight":5}"#);
const MOVE_A: (&str, &str, &str) = ("PUT", "/backends/a", r#"{"address":"127.0.0.1:7"}"#);
const REMOVE_A: (&str, &str, &str) = ("DELETE", "/backends/a?drain=0s", "");

const CASES: &[Case] = &[
    Case {
        name: "nothing-said",
        old: &[A, B],
        said: &[],
        new: &[(Some(&[("a", 9, 3), ("c", 3, 1)]), "a@9*3 c@3*1", None)],
    },
    Case {
        name: "another-field-of-the-file",
        old: &[A, B],
        said: &[WEIGH_A],
        new: &[(Some(&[("a", 9, 1), B, ("c", 3, 1)]), "a@9*5 b@2*1 c@3*1", None)],
    },
    Case {
        name: "another-address-said",
        old: &[A, B],
        said: &[MOVE_A],
        new: &[(Some(&[("a", 1, 3), B]), "a@7*3 b@2*1", None)],
    },
    Case {
        name: "both-weights",
        old: &[A, B],
        said: &[WEIGH_A],
        new: &[(
            Some(&[("a", 1, 3), B]),
            "a@1*5 b@2*1",
            Some("weight is 3 where it is declared, and 5 by a change at run time"),
        )],
    },
    Case {
        name: "both-addresses",
        old: &[A, B],
        said: &[MOVE_A],
        new: &[(
            Some(&[("a", 9, 1), B]),
            "a@7*1 b@2*1",
            Some("address is 127.0.0.1:9 where it is declared, and 127.0.0.1:7"),
        )],
    },
    Case {
        name: "the-file-agrees-at-last",
        old: &[A, B],
        said: &[WEIGH_A],
        new: &[(Some(&[("a", 1, 5), B]), "a@1*5 b@2*1", None), (Some(&[("a", 1, 2), B]), "a@1*2 b@2*1", None)],
    },
    Case {
        name: "drained",
        old: &[A, B],
        said: &[DRAIN_A],
        new: &[(Some(&[("a", 9, 3), B]), "a@9*3:drain b@2*1", None), (Some(&[A, B]), "a@1*1:drain b@2*1", None)],
    },
    Case {
        name: "in-maintenance",
        old: &[A, B],
        said: &[("PATCH", "/backends/a", r#"{"admin":"maint","weight":4}"#)],
        new: &[(Some(&[("a", 9, 1), B]), "a@9*4:maint b@2*1", None)],
    },
    Case {
        name: "removed-and-changed",
        old: &[A, B],
        said: &[REMOVE_A],
        new: &[(
            Some(&[("a", 9, 1), B]),
            "b@2*1",
            Some("removed is 127.0.0.1:9 where it is declared, and removed by a change"),
        )],
    },
    Case {
        name: "removed-in-both",
        old: &[A, B],
        said: &[REMOVE_A],
        new: &[(Some(&[B]), "b@2*1", None), (Some(&[A, B]), "a@1*1 b@2*1", None)],
    },
    Case {
        name: "added-and-then-declared-otherwise",
        old: &[B],
        said: &[MOVE_A],
        new: &[(
            Some(&[("a", 9, 1), B]),
            "a@7*1 b@2*1",
            Some("address is 127.0.0.1:9 where it is declared, and 127.0.0.1:7"),
        )],
    },
    Case {
        name: "added-and-then-declared-alike",
        old: &[B],
        said: &[MOVE_A],
        new: &[(Some(&[("a", 7, 1), B]), "a@7*1 b@2*1", None), (Some(&[B]), "b@2*1", None)],
    },
    Case {
        name: "added-where-another-is-declared",
        old: &[B],
        said: &[MOVE_A],
        new: &[(Some(&[B, ("z", 7, 1)]), "b@2*1 z@7*1", Some("its address 127.0.0.1:7 is that of backend z"))],
    },
    Case {
        name: "gone-from-the-file-for-a-while",
        old: &[A, B],
        said: &[DRAIN_A, WEIGH_A],
        new: &[(Some(&[B]), "b@2*1", None), (Some(&[("a", 9, 1), B]), "a@9*5:drain b@2*1", None)],
    },
    Case {
        name: "the-upstream-of-a-removed-one-gone-for-a-while",
        old: &[A, B],
        said: &[REMOVE_A],
        new: &[(None, "", None), (Some(&[A, B]), "b@2*1", None)],
    },
    Case {
        name: "the-upstream-gone-for-a-while",
        old: &[A, B],
        said: &[DRAIN_A, ("PUT", "/backends/x", r#"{"address":"127.0.0.1:8","weight":2}"#)],
        new: &[(None, "", None), (Some(&[A, B]), "a@1*1:drain b@2*1 x@8*2", None)],
    },
];

fn config(upstreams: impl Iterator<Item = (&'static str, &'static [Declared])>) -> String {
    let upstreams: Vec<_> = upstreams.collect();
    let mut text = "admin: { socket: <dir>/admin.sock }\nstate_file: <dir>/state.json\nroutes:\n".to_owned();
    for (name, _) in &upstreams {
        text += &format!("  - {{ match: {{ host: {name}.test }}, upstream: {name} }}\n");
    }
    text += "upstreams:\n";
    for (name, backends) in upstreams {
        let one =
            |(id, port, weight): &Declared| format!("{{ id: {id}, address: \"127.0.0.1:{port}\", weight: {weight} }}");
        let backends: Vec<String> = backends.iter().map(one).collect();
        text += &format!("  {name}: {{ backends: [{}] }}\n", backends.join(", "));
    }
    text
}

/// The file of a step; 0 is the old one. Steps that a case has not are as its last.
fn file(step: usize) -> String {
    config(CASES.iter().filter_map(|case| {
        let declared = match step {
            0 => Some(case.old),
            step => case.new[(step - 1).min(case.new.len() - 1)].0,
        };
        Some((case.name, declared?))
    }))
}

/// Of each upstream `id@port*weight`, with the state where it is not ready.
async fn shown(api: &Api) -> BTreeMap<String, String> {
    let all = api.get("/v1/upstreams").await;
    let one = |backend: &Value| {
        let text = |key: &str| backend[key].as_str().unwrap_or_default().to_owned();
        let state = if text("admin") == "ready" { String::new() } else { format!(":{}", text("admin")) };
        format!(
            "{}@{}*{}{state}",
            text("id"),
            text("address").rsplit(':').next().unwrap_or_default(),
            backend["weight"]
        )
    };
    let upstream = |upstream: &Value| {
        let backends: Vec<String> = upstream["backends"].as_array().expect("a list").iter().map(one).collect();
        (upstream["name"].as_str().unwrap_or_default().to_owned(), backends.join(" "))
    };
    all["upstreams"].as_array().expect("a list").iter().map(upstream).collect()
}

/// Changes the file step by step; `load` makes each take effect.
async fn merges(load: impl AsyncFn(Proxy, Config) -> Proxy) {
    let mut proxy = Config::new(&file(0)).start().await;
    let api = Api::of(&proxy);
    for case in CASES {
        for (method, place, body) in case.said {
            let body = serde_json::from_str(body).unwrap_or(Value::Null);
            api.change(method, &format!("/v1/upstreams/{}{place}", case.name), body).await;
        }
    }
    let steps = CASES.iter().map(|case| case.new.len()).max().expect("cases");
    for step in 1..=steps {
        let (process, before) = (proxy.pid(), proxy.stderr().len());
        let next = proxy.config.instead(&file(step));
        next.write();
        proxy = load(proxy, next).await;
        let all = shown(&api).await;
        let log = proxy.stderr();
        // Each process has a log of its own.
        let news = if proxy.pid() == process { &log[before..] } else { &log };
        for case in CASES.iter().filter(|case| case.new.len() >= step) {
            let (declared, expected, told) = case.new[step - 1];
            assert_eq!(
                all.get(case.name).map(String::as_str),
                declared.map(|_| expected),
                "{}, file {step}",
                case.name
            );
            let place = format!("upstream {}, backend ", case.name);
            let said = || news.lines().filter(|line| line.contains(&place)).collect::<Vec<_>>();
            match told {
                Some(text) => assert!(said().iter().any(|line| line.contains(text)), "{}: {:?}", case.name, said()),
                None => assert!(said().is_empty(), "{}: {:?}", case.name, said()),
            }
        }
    }
    // What is forgotten is as the file has it.
    for case in CASES {
        for id in ["a", "x"] {
            api.ask("DELETE", &format!("/v1/upstreams/{}/backends/{id}/override", case.name), Value::Null).await;
        }
    }
    let all = shown(&api).await;
    for case in CASES {
        let declared = case.new[case.new.len() - 1].0.expect("the last file has it");
        let expected: Vec<String> = declared.iter().map(|(id, port, weight)| format!("{id}@{port}*{weight}")).collect();
        assert_eq!(all[case.name], expected.join(" "), "{}", case.name);
    }
    assert_eq!(api.get("/v1/state").await, json!({ "upstreams": {} }));
}

#[tokio::test]
async fn a_reload_merges_the_new_file_with_what_was_said() {
    merges(async |proxy, _| {
        proxy.reload().await;
        proxy
    })
    .await;
}

#[tokio::test]
async fn a_restart_merges_the_new_file_with_what_was_said() {
    merges(async |mut proxy, next| {
        let (api, file) = (Api::of(&proxy), proxy.config.dir().join("state.json"));
        // What the start has made of the journal is written soon after it.
        eventually("the journal to be as it was merged", async || {
            let kept: Value = serde_json::from_str(&run::read(&file)).unwrap_or_default();
            let names = |all: &Value| -> Vec<(String, Vec<String>)> {
                let of = |all: &serde_json::Map<String, Value>| all.keys().cloned().collect();
                let all = all["upstreams"].as_object().into_iter().flatten();
                all.map(|(name, said)| (name.clone(), said.as_object().map(of).unwrap_or_default())).collect()
            };
            names(&kept) == names(&api.get("/v1/state").await)
        })
        .await;
        proxy.signal(libc::SIGKILL);
        proxy.ended().await;
        next.start().await
    })
    .await;
}

#[tokio::test]
async fn an_upgrade_merges_the_new_file_with_what_was_said() {
    merges(async |mut proxy, next| {
        proxy.config = next;
        proxy.upgrade().await
    })
    .await;
}

#[tokio::test]
async fn the_last_ready_backend_is_guarded_on_every_way_to_take_it() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let text = format!(
        "admin: {{ socket: <dir>/admin.sock }}\nstate_file: <dir>/state.json\nupstreams:\n  app: {{ backends: [{{ id: a, address: \"{}\" }}] }}\n",
        a.address
    );
    let proxy = Config::new(&text).start().await;
    let api = Api::of(&proxy);
    let file = proxy.config.dir().join("state.json");
    let none = json!({ "address": b.address, "weight": 0 });
    let listed = json!([{ "id": "b", "address": b.address, "weight": 0 }]);
    let ways = [
        ("PATCH", "/b", json!({ "admin": "drain" })),
        ("PATCH", "/b", json!({ "admin": "maint" })),
        ("PATCH", "/b", json!({ "weight": 0 })),
        ("PUT", "/b", none),
        ("PUT", "", json!([])),
        ("PUT", "", listed),
        ("DELETE", "/b", Value::Null),
        ("DELETE", "/b?drain=0s", Value::Null),
        ("DELETE", "/b/override", Value::Null),
    ];
    for (method, place, body) in ways {
        // Only `b` is ready, and only the API knows it.
        let put = json!({ "address": b.address, "weight": 1 });
        api.change("PUT", "/v1/upstreams/app/backends/b", put).await;
        api.change("PATCH", "/v1/upstreams/app/backends/b", json!({ "admin": "ready" })).await;
        api.change("PATCH", "/v1/upstreams/app/backends/a", json!({ "admin": "drain" })).await;
        assert_eq!(proxy.get("/").await.origin(), "b");
        let target = format!("/v1/upstreams/app/backends{place}");
        let way = format!("{method} {target} {body}");
        let before = (api.get("/v1/upstreams/app").await["etag"].clone(), api.get("/v1/state").await);
        let kept = std::fs::read(&file).expect("a state file");
        let (status, problem) = api.ask(method, &target, body.clone()).await;
        assert_eq!((status, &problem["type"]), (409, &json!("about:blank#last-ready")), "{way}: {problem}");
        let hint = problem["hint"].as_str().unwrap_or_default();
        assert!(["force=true", "--force", "503"].iter().all(|part| hint.contains(part)), "{way}: {problem}");
        let after = (api.get("/v1/upstreams/app").await["etag"].clone(), api.get("/v1/state").await);
        assert_eq!(after, before, "{way} changed something");
        assert_eq!(std::fs::read(&file).expect("a state file"), kept, "{way} wrote something");
        assert_eq!(proxy.get("/").await.origin(), "b");
        let force = if target.contains('?') { "&force=true" } else { "?force=true" };
        api.change(method, &(target + force), body).await;
        assert_eq!(proxy.get("/").await.status(), 503, "{way} with force");
    }
}

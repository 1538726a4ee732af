//! What an operator changes while the process runs: it takes effect at once, no request fails, and it is never lost.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::{
    admin::Api,
    eventually,
    http1::get,
    load::Load,
    origin::Origin,
    proxy::{Config, Proxy},
    wait_until,
};

/// `app` with backends `a`, `b` … at these origins.
fn config(origins: &[&Origin]) -> Config {
    config_with("", "", origins)
}

/// As [`config`], with these lines before everything, and these in `app`.
fn config_with(before: &str, lines: &str, origins: &[&Origin]) -> Config {
    let backend = |(origin, id): (&&Origin, char)| format!("      - {{ id: {id}, address: \"{}\" }}\n", origin.address);
    let backends: String = origins.iter().zip('a'..).map(backend).collect();
    Config::new(&format!(
        "{before}admin: {{ socket: <dir>/admin.sock }}\nstate_file: <dir>/state.json\nupstreams:\n  app:\n{lines}    backends:\n{backends}"
    ))
}

async fn start(origins: &[&Origin]) -> (Proxy, Api) {
    let proxy = config(origins).start().await;
    let api = Api::of(&proxy);
    (proxy, api)
}

/// Who answers so many requests, each once.
async fn answering(proxy: &Proxy, requests: usize) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..requests {
        names.push(proxy.get("/").await.origin().to_owned());
    }
    names.sort();
    names.dedup();
    names
}

#[tokio::test]
async fn a_change_is_in_effect_when_its_answer_is_there() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let (proxy, api) = start(&[&a]).await;
    let (status, backend) = api.ask("PUT", "/v1/upstreams/app/backends/b", json!({ "address": b.address })).await;
    assert_eq!((status, &backend["source"]), (201, &json!("api")));
    assert_eq!(answering(&proxy, 8).await, ["a", "b"]);
    let (status, _) = api.ask("PUT", "/v1/upstreams/app/backends/b", json!({ "address": b.address })).await;
    assert_eq!(status, 200, "the same again is no change");
    api.change("PATCH", "/v1/upstreams/app/backends/a", json!({ "admin": "drain" })).await;
    assert_eq!(answering(&proxy, 8).await, ["b"]);
    api.change("PATCH", "/v1/upstreams/app/backends/a", json!({ "admin": "ready", "weight": 3 })).await;
    let before = a.total();
    answering(&proxy, 8).await;
    assert_eq!(a.total() - before, 6);
    let (status, _) = api.ask("DELETE", "/v1/upstreams/app/backends/b?drain=0s", Value::Null).await;
    assert_eq!(status, 204);
    assert_eq!(answering(&proxy, 4).await, ["a"]);
    assert_eq!(api.backends().await, ["a:up"]);
}

#[tokio::test]
async fn requests_of_a_removed_backend_finish_and_its_idle_connections_close() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let (proxy, api) = start(&[&a]).await;
    api.change("PUT", "/v1/upstreams/app/backends/b", json!({ "address": b.address })).await;
    api.change("PATCH", "/v1/upstreams/app/backends/a", json!({ "admin": "drain" })).await;
    proxy.get("/").await;
    let mut held = proxy.client().await;
    held.send(get("/hold")).await;
    wait_until("the request at the origin", || b.count("/hold") == 1).await;
    let mut other = proxy.client().await;
    other.get("/").await;
    api.change("PATCH", "/v1/upstreams/app/backends/a", json!({ "admin": "ready" })).await;
    let leaving = api.change("DELETE", "/v1/upstreams/app/backends/b?drain=60s", Value::Null).await;
    assert_eq!(leaving["effective"], "draining");
    assert_eq!(answering(&proxy, 4).await, ["a"]);
    assert_eq!(api.backends().await, ["a:up", "b:draining"]);
    b.release();
    let reply = held.response().await;
    assert_eq!((reply.status(), reply.origin()), (200, "b"));
    api.settles(&["a:up"]).await;
    wait_until("the idle connections to be closed", || b.open() == 0).await;
    assert_eq!(proxy.scrape().await.sum("rrlb_backend_requests_total", &["backend=\"b\""]), 0.0, "it is forgotten");
}

#[tokio::test]
async fn the_idle_connections_of_a_drained_backend_close_after_its_last_request() {
    for engine in ["lane", "exchange", "pingora"] {
        for how in [json!({ "admin": "drain" }), json!({ "admin": "maint" }), json!({ "weight": 0 })] {
            let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
            let proxy = config_with(&format!("engine: {engine}\nthreads: 1\n"), "", &[&a, &b]).start().await;
            let api = Api::of(&proxy);
            let mut held = [proxy.client().await, proxy.client().await];
            for client in &mut held {
                client.send(get("/hold")).await;
            }
            wait_until("a request at each", || a.count("/hold") == 1 && b.count("/hold") == 1).await;
            // One at `b` waits, and two are idle.
            let mut more = [proxy.client().await, proxy.client().await, proxy.client().await, proxy.client().await];
            for client in &mut more {
                client.send(get("/hold/too")).await;
            }
            wait_until("two more at each", || a.open() == 3 && b.open() == 3).await;
            api.change("PATCH", "/v1/upstreams/app/backends/b", how.clone()).await;
            assert_eq!(answering(&proxy, 4).await, ["a"]);
            assert_eq!(b.open(), 3, "{engine}, {how}: requests are finished first");
            a.release();
            b.release();
            for client in held.iter_mut().chain(&mut more) {
                assert_eq!(client.response().await.status(), 200, "{engine}, {how}");
            }
            wait_until("the idle connections to be closed", || b.open() == 0).await;
            assert!(a.open() > 0, "{engine}, {how}: those of the other stay");
            api.change("PATCH", "/v1/upstreams/app/backends/b", json!({ "admin": "ready", "weight": 1 })).await;
            assert_eq!(answering(&proxy, 4).await, ["a", "b"], "{engine}, {how}");
        }
    }
}

#[tokio::test]
async fn connections_to_an_address_that_a_backend_has_left_are_closed() {
    for engine in ["lane", "exchange", "pingora"] {
        let (a, b, c) = (Origin::echo("a").await, Origin::echo("b").await, Origin::echo("c").await);
        let proxy = config_with(&format!("engine: {engine}\n"), "", &[&a, &b]).start().await;
        let api = Api::of(&proxy);
        assert_eq!(answering(&proxy, 8).await, ["a", "b"]);
        assert!(b.open() > 0);
        api.change("PUT", "/v1/upstreams/app/backends/b", json!({ "address": c.address })).await;
        assert_eq!(answering(&proxy, 8).await, ["a", "c"]);
        wait_until("the connections to the old address to be closed", || b.open() == 0).await;
        assert!(a.open() > 0 && c.open() > 0, "{engine}");
    }
}

#[tokio::test]
async fn the_last_backend_is_not_taken_out_by_mistake() {
    let a = Origin::echo("a").await;
    let (proxy, api) = start(&[&a]).await;
    for (method, target, body) in [
        ("PATCH", "/v1/upstreams/app/backends/a", json!({ "admin": "drain" })),
        ("PATCH", "/v1/upstreams/app/backends/a", json!({ "admin": "maint" })),
        ("PATCH", "/v1/upstreams/app/backends/a", json!({ "weight": 0 })),
        ("DELETE", "/v1/upstreams/app/backends/a", Value::Null),
    ] {
        let (status, problem) = api.ask(method, target, body).await;
        assert_eq!(status, 409, "{method}: {problem}");
        assert!(problem["hint"].as_str().is_some_and(|hint| hint.contains("force")), "{problem}");
    }
    assert_eq!(proxy.get("/").await.status(), 200);
    api.change("PATCH", "/v1/upstreams/app/backends/a?force=true", json!({ "admin": "drain" })).await;
    assert_eq!(proxy.get("/").await.status(), 503);
}

#[tokio::test]
async fn what_was_changed_survives_a_kill_an_upgrade_and_a_reload() {
    let (a, b, c) = (Origin::echo("a").await, Origin::echo("b").await, Origin::echo("c").await);
    let (mut proxy, api) = start(&[&a, &b]).await;
    api.change("PUT", "/v1/upstreams/app/backends/c", json!({ "address": c.address, "weight": 2 })).await;
    api.change("PATCH", "/v1/upstreams/app/backends/a?reason=disk", json!({ "admin": "drain" })).await;
    let expected = ["a:draining", "b:up", "c:up"];
    assert_eq!(api.backends().await, expected);
    proxy.signal(libc::SIGHUP);
    proxy.logged("config.reloaded").await;
    assert_eq!(api.backends().await, expected, "after a reload");
    proxy = proxy.upgrade().await;
    assert_eq!(api.backends().await, expected, "after an upgrade");
    proxy.signal(libc::SIGKILL);
    proxy.ended().await;
    let proxy = proxy.config.clone().start().await;
    assert_eq!(api.backends().await, expected, "after kill -9");
    assert_eq!(answering(&proxy, 6).await, ["b", "c"]);
    let backend = api.get("/v1/upstreams/app/backends/a").await;
    assert_eq!(backend["changed"]["why"], "disk");
}

#[tokio::test]
async fn a_damaged_state_file_is_moved_aside_and_the_configuration_serves() {
    let a = Origin::echo("a").await;
    for text in
        ["{\"format\":\"rrlb-state\",\"version\":1,\"upstr", "", "hello", "{\"format\":\"rrlb-state\",\"version\":99}"]
    {
        let config = config(&[&a]);
        std::fs::write(config.dir().join("state.json"), text).expect("write");
        let proxy = config.start().await;
        assert_eq!(proxy.get("/").await.status(), 200);
        proxy.logged("state.json.damaged").await;
        let kept = std::fs::read_dir(proxy.config.dir()).expect("folder").flatten().any(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            name.starts_with("state.json.damaged")
                && std::fs::read_to_string(entry.path()).is_ok_and(|kept| kept == text)
        });
        assert!(kept, "{text:?} is kept");
    }
}

#[tokio::test]
async fn a_change_that_cannot_be_kept_is_refused_and_nothing_has_changed() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let folder = tempfile::tempdir().expect("folder");
    let more =
        format!("admin: {{ socket: <dir>/admin.sock }}\nstate_file: {}/gone/state.json\n", folder.path().display());
    std::fs::create_dir(folder.path().join("gone")).expect("folder");
    let proxy = Config::before(&[&a, &b], &more).start().await;
    let api = Api::of(&proxy);
    std::fs::remove_dir_all(folder.path().join("gone")).expect("removes");
    let before = api.backends().await;
    let target = format!("/v1/upstreams/app/backends/{}", a.address);
    let (status, problem) = api.ask("PATCH", &target, json!({ "admin": "drain" })).await;
    assert_eq!(status, 503, "{problem}");
    assert_eq!(api.backends().await, before);
    let (status, _) = api.ask("PATCH", &(target + "?persist=false"), json!({ "admin": "drain" })).await;
    assert_eq!(status, 200, "what is not to be kept needs no file");
}

#[tokio::test]
async fn two_who_change_at_once_do_not_overwrite_each_other() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let (_proxy, api) = start(&[&a, &b]).await;
    let etag = api.get("/v1/upstreams/app").await["etag"].as_str().expect("an etag").to_owned();
    let ask = async |state: &str| {
        let body = json!({ "admin": state }).to_string();
        let head = format!(
            "PATCH /v1/upstreams/app/backends/a HTTP/1.1\r\nHost: x\r\nIf-Match: {etag}\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            body.len()
        );
        crate::support::http1::Client::unix(&_proxy.config.dir().join("admin.sock"))
            .await
            .ask(head + &body)
            .await
            .status()
    };
    assert_eq!(ask("drain").await, 200);
    assert_eq!(ask("maint").await, 412);
    assert_eq!(api.backends().await, ["a:draining", "b:up"]);
}

#[tokio::test]
async fn a_lease_ends_in_silence() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let (proxy, api) = start(&[&a]).await;
    let register =
        async || api.change("PUT", "/v1/upstreams/app/backends/b?ttl=1s", json!({ "address": b.address })).await;
    assert_eq!(register().await["source"], "lease");
    assert_eq!(answering(&proxy, 4).await, ["a", "b"]);
    let load = Load::on(proxy.listen);
    register().await;
    api.settles(&["a:up"]).await;
    load.more().await;
    load.ends_without_failure().await;
    assert_eq!(answering(&proxy, 4).await, ["a"]);
}

/// Processes that register and die at random, for `RRLB_TEST_LEASES` seconds (5 by default; 120 is the long form).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backends_that_register_and_die_at_random_cost_no_request() {
    let seconds = std::env::var("RRLB_TEST_LEASES").ok().and_then(|text| text.parse().ok()).unwrap_or(5);
    let stable = Origin::echo("stable").await;
    let more = "    retry: { attempts: 5 }\n    health_check: { type: tcp, interval: 100ms, timeout: 1s, rise: 1, fall: 1, initial: up }\n";
    let backends =
        format!("upstreams:\n  app:\n    backends: [{{ id: stable, address: \"{}\" }}]\n{more}", stable.address);
    let proxy = Config::new(&("admin: { socket: <dir>/admin.sock }\n".to_owned() + &backends)).start().await;
    let api = Api::of(&proxy);
    let load = Load::on(proxy.listen);
    let end = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let (local, mut lives) = (tokio::task::LocalSet::new(), tokio::task::JoinSet::new());
    for number in 0..20u64 {
        let api = api.clone();
        let life = async move {
            let mut seed = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            while tokio::time::Instant::now() < end {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                let mut origin = Origin::echo("leased").await;
                let target = format!("/v1/upstreams/app/backends/p{number}?ttl=1s");
                for _ in 0..seed % 5 {
                    api.change("PUT", &target, json!({ "address": origin.address })).await;
                    tokio::time::sleep(Duration::from_millis(200 + seed % 300)).await;
                }
                origin.stop().await;
            }
        };
        lives.spawn_local_on(life, &local);
    }
    local.run_until(lives.join_all()).await;
    let settled = tokio::time::Instant::now();
    api.settles(&["stable:up"]).await;
    assert!(settled.elapsed() < Duration::from_secs(2), "ttl and a second; took {:?}", settled.elapsed());
    load.more().await;
    load.ends_without_failure().await;
    assert_eq!(proxy.scrape().await.samples("rrlb_backend_up").count(), 1, "nothing is left of the others");
}

#[tokio::test]
async fn events_say_who_what_and_why() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let (proxy, api) = start(&[&a, &b]).await;
    api.change("PATCH", "/v1/upstreams/app/backends/a?reason=new%20disk", json!({ "admin": "drain" })).await;
    let uid = nix::unistd::getuid();
    proxy.logged(&format!("uid {uid}")).await;
    let line = proxy.stderr().lines().find(|line| line.contains("backend.changed")).expect("a line").to_owned();
    for word in ["app/a", "drain", "new disk"] {
        assert!(line.contains(word), "{line}");
    }
}

#[tokio::test]
async fn the_last_failures_are_listed() {
    let mut a = Origin::echo("a").await;
    let (proxy, api) = start(&[&a]).await;
    proxy.client().await.ask("GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n").await;
    a.stop().await;
    assert_eq!(proxy.get("/x?token=secret").await.status(), 502);
    // A request is noted when it has ended, which its client may know first.
    eventually("both, the newest first", async || {
        let errors = api.get("/v1/errors").await;
        assert!(!errors.to_string().contains("secret"), "queries are left out");
        let errors = errors["errors"].as_array().expect("a list");
        let reasons: Vec<&str> = errors.iter().filter_map(|error| error["reason"].as_str()).collect();
        reasons == ["connect_refused", "bad_request"]
    })
    .await;
}

#[tokio::test]
async fn the_command_line_does_what_the_api_does() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let (proxy, api) = start(&[&a, &b]).await;
    let socket = proxy.config.dir().join("admin.sock");
    let rrlb = async |words: &str| {
        let mut args = vec!["--socket", socket.to_str().expect("text")];
        args.extend(words.split(' '));
        crate::support::run::rrlb(&args).await
    };
    let listed = rrlb("backend list app").await.ended_with(0);
    assert!(listed.stdout.contains(&a.address) && listed.stdout.contains(&b.address), "{listed:?}");
    rrlb("backend drain app a --reason disk --wait").await.ended_with(0);
    assert_eq!(api.backends().await, ["a:draining", "b:up"]);
    let refused = rrlb("backend drain app b").await.ended_with(4);
    assert!(refused.stderr.contains("last"), "{refused:?}");
    rrlb("backend ready app a").await.ended_with(0);
    rrlb("backend weight app a 5").await.ended_with(0);
    rrlb("backend rm app b --wait").await.ended_with(0);
    assert_eq!(api.backends().await, ["a:up"]);
    let shown = rrlb("state show").await.ended_with(0);
    assert!(shown.stdout.contains('b'), "{shown:?}");
    let patch = rrlb("state patch").await.ended_with(0);
    assert!(patch.stdout.contains("weight: 5"), "{patch:?}");
    let explained = rrlb("route GET http://x.test/").await.ended_with(0);
    assert!(explained.stdout.contains("app"), "{explained:?}");
    let status = rrlb("status --json").await.ended_with(0);
    let status: Value = serde_json::from_str(&status.stdout).expect("JSON");
    assert_eq!(status["pid"], json!(proxy.pid()));
    rrlb("backend rm app nobody").await.ended_with(4);
    let nobody = crate::support::run::rrlb(&["--socket", "/nonexistent/x.sock", "status"]).await.ended_with(3);
    assert!(nobody.stderr.contains("/nonexistent/x.sock"), "{nobody:?}");
}

#[tokio::test]
async fn an_upgrade_does_not_confirm_a_reload() {
    let a = Origin::echo("a").await;
    let (mut proxy, api) = start(&[&a]).await;
    api.change("POST", "/v1/config/reload?confirm=600s", Value::Null).await;
    let (status, problem) = api.ask("POST", "/v1/upgrade", Value::Null).await;
    assert_eq!(status, 409, "{problem}");
    assert!(problem.to_string().contains("waits for its confirmation"), "{problem}");
    proxy.signal(libc::SIGUSR2);
    wait_until("the refusal of the signal", || proxy.stderr().matches("process.upgrade_failed").count() == 2).await;
    let mut by_hand = proxy.successor();
    assert!(!by_hand.ended().await.success());
    assert!(by_hand.stderr().contains("waits for its confirmation"), "{}", by_hand.stderr());
    assert!(proxy.running());
    api.change("POST", "/v1/config/confirm", Value::Null).await;
    assert_eq!(proxy.upgrade().await.get("/").await.status(), 200);
}

/// A successor that has all it needs but the verdict on a backend which never answers. `good` is the text of the file.
async fn stuck_successor(proxy: &Proxy, good: &str, a: &Origin, mute: &Origin) -> i32 {
    let check = "    health_check: { type: http, path: /, interval: 1h, timeout: 1h }\n";
    let stuck = good.replace("    backends:\n", &format!("{check}    backends:\n"));
    proxy.config.write_text(&stuck.replace(&a.address.to_string(), &mute.address.to_string()));
    proxy.signal(libc::SIGUSR2);
    wait_until("the probe of the successor", || mute.connections() > 0).await;
    let log = proxy.stderr();
    let pid = log.split(" asks for the listeners").next().and_then(|head| head.rsplit(' ').next());
    pid.and_then(|pid| pid.parse().ok()).unwrap_or_else(|| panic!("no process asks: {log}"))
}

fn kill(pid: i32) {
    // SAFETY: a plain system call on a process that this test had started.
    unsafe { libc::kill(pid, libc::SIGKILL) };
}

#[tokio::test]
async fn a_reload_during_an_upgrade_is_refused_and_that_of_a_signal_is_done_after_it() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let mute = Origin::script("mute", crate::support::misbehave::mute).await;
    let (proxy, api) = start(&[&a]).await;
    let good = std::fs::read_to_string(proxy.config.write()).expect("text");
    let next = stuck_successor(&proxy, &good, &a, &mute).await;
    proxy.config.write_text(&good.replace(&a.address.to_string(), &b.address.to_string()));
    let (status, problem) = api.ask("POST", "/v1/config/reload", Value::Null).await;
    assert_eq!(status, 409, "{problem}");
    proxy.signal(libc::SIGHUP);
    proxy.logged("not reloaded for SIGHUP: another upgrade is under way").await;
    assert_eq!(proxy.get("/").await.origin(), "a");
    kill(next);
    proxy.logged("config.reloaded").await;
    assert_eq!(proxy.get("/").await.origin(), "b");
}

#[tokio::test]
async fn an_upgrade_loses_nothing_whatever_became_of_the_state_file() {
    let (a, b, c) = (Origin::echo("a").await, Origin::echo("b").await, Origin::echo("c").await);
    let (mut proxy, api) = start(&[&a, &b]).await;
    let file = proxy.config.dir().join("state.json");
    api.change("PATCH", "/v1/upstreams/app/backends/a", json!({ "admin": "drain" })).await;
    api.change("PUT", "/v1/upstreams/app/backends/c?persist=false", json!({ "address": c.address })).await;
    let expected = ["a:draining", "b:up", "c:up"];
    for text in [None, Some("damaged"), Some("{\"format\":\"rrlb-state\",\"version\":99}")] {
        match text {
            None => std::fs::remove_file(&file).expect("removes"),
            Some(text) => std::fs::write(&file, text).expect("writes"),
        }
        proxy = proxy.upgrade().await;
        assert_eq!(api.backends().await, expected, "{text:?}");
    }
    proxy.signal(libc::SIGKILL);
    proxy.ended().await;
    let _proxy = proxy.config.clone().start().await;
    assert_eq!(api.backends().await, ["a:draining", "b:up"], "what was to be kept was, and no more");
}

#[tokio::test]
async fn without_a_state_file_changes_outlive_an_upgrade() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let proxy = Config::before(&[&a, &b], "admin: { socket: <dir>/admin.sock }\n").start().await;
    let api = Api::of(&proxy);
    let target = format!("/v1/upstreams/app/backends/{}", a.address);
    api.change("PATCH", &target, json!({ "admin": "drain" })).await;
    let expected = api.backends().await;
    let proxy = proxy.upgrade().await;
    assert_eq!(api.backends().await, expected);
    assert_eq!(answering(&proxy, 4).await, ["b"]);
}

#[tokio::test]
async fn a_successor_that_never_serves_leaves_the_state_file_alone() {
    let a = Origin::echo("a").await;
    let mute = Origin::script("mute", crate::support::misbehave::mute).await;
    let (proxy, _api) = start(&[&a]).await;
    let file = proxy.config.dir().join("state.json");
    let good = std::fs::read_to_string(proxy.config.write()).expect("text");
    std::fs::write(&file, "of a later release").expect("writes");
    kill(stuck_successor(&proxy, &good, &a, &mute).await);
    proxy.logged("process.upgrade_failed").await;
    assert_eq!(std::fs::read_to_string(&file).expect("as it was"), "of a later release");
}

#[tokio::test]
async fn a_state_file_that_cannot_be_read_or_moved_is_not_written() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let config = config(&[&a, &b]);
    std::fs::create_dir(config.dir().join("state.json")).expect("a folder");
    let proxy = config.start().await;
    proxy.logged("neither read nor moved aside").await;
    let api = Api::of(&proxy);
    let (status, problem) = api.ask("PATCH", "/v1/upstreams/app/backends/a", json!({ "admin": "drain" })).await;
    assert_eq!(status, 503, "{problem}");
    api.change("PATCH", "/v1/upstreams/app/backends/a?persist=false", json!({ "admin": "drain" })).await;
    assert_eq!(answering(&proxy, 4).await, ["b"]);
}

/// A change that must have come to one of these.
async fn expected(api: &Api, method: &str, target: &str, body: Value, statuses: &[u16]) {
    let (status, answer) = api.ask(method, target, body).await;
    assert!(statuses.contains(&status), "{method} {target}: {status} {answer}");
}

/// Reloads, changes, health flips and upgrades at random under load, for `RRLB_TEST_STORM` seconds (8 by default; 300 is
/// the long form).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_at_once_costs_no_request() {
    let seconds = std::env::var("RRLB_TEST_STORM").ok().and_then(|text| text.parse().ok()).unwrap_or(8);
    let (stable, b, mut flips) = (Origin::echo("a").await, Origin::echo("b").await, Origin::echo("c").await);
    // Whoever comes back does so slowly, and whoever refuses connections is ejected.
    let policies = "    eject: { consecutive_failures: 3, base: 1s }\n    slow_start: 1s\n";
    let mut proxy = config_with("", policies, &[&stable, &b, &flips]).start().await;
    let api = Api::of(&proxy);
    let load = Load::on(proxy.listen);
    let end = tokio::time::Instant::now() + Duration::from_secs(seconds);
    let mut seed = 0x2545_f491_4f6c_dd1du64;
    let mut up = true;
    while tokio::time::Instant::now() < end {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let target = "/v1/upstreams/app/backends/b";
        match seed % 8 {
            0 => proxy.signal(libc::SIGHUP),
            // One that SIGHUP has begun may still be under way.
            1 => {
                let (status, answer) = api.ask("POST", "/v1/config/reload", Value::Null).await;
                assert!(matches!(status, 200 | 409), "{answer}");
            }
            // It may be gone; `a` is always ready, so none of these takes the last one out.
            2 => expected(&api, "PATCH", target, json!({ "admin": "drain" }), &[200, 404]).await,
            3 => {
                expected(&api, "PATCH", target, json!({ "admin": "ready", "weight": seed % 4 + 1 }), &[200, 404]).await
            }
            4 => expected(&api, "DELETE", &format!("{target}?drain=1s"), Value::Null, &[200, 202, 204, 404]).await,
            5 => expected(&api, "PUT", target, json!({ "address": b.address }), &[200, 201]).await,
            6 if up => {
                flips.stop().await;
                up = false;
            }
            6 => {
                flips.restart().await;
                up = true;
            }
            _ => proxy = proxy.upgrade().await,
        }
        load.more().await;
    }
    load.ends_without_failure().await;
}

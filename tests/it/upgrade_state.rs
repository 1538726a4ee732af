//! What a successor knows from the process before it: health, turns, ticket keys, rate limits. And no more than it should.

use rustls::{HandshakeKind, version};

use crate::support::{
    address,
    admin::Api,
    eventually,
    http1::Client,
    origin::Origin,
    proxy::{Config, Proxy},
    run,
    tls::Ca,
    wait_until,
};

async fn answers(proxy: &Proxy, count: usize) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..count {
        names.push(proxy.get("/").await.origin().to_owned());
    }
    names
}

#[tokio::test]
async fn the_round_robin_goes_on_where_it_was() {
    let origins = [Origin::echo("a").await, Origin::echo("b").await, Origin::echo("c").await];
    let mut proxy = Proxy::before(&origins.each_ref()).await;
    let mut expected = ["a", "b", "c"].into_iter().cycle();
    for count in [4, 1, 3] {
        let names: Vec<_> = expected.by_ref().take(count).collect();
        assert_eq!(answers(&proxy, count).await, names);
        proxy = proxy.upgrade().await;
    }
    assert_eq!(answers(&proxy, 1).await, [expected.next().expect("a name")]);
}

/// One good probe brings no backend back, and one bad probe takes none out, that another process has judged by more.
#[tokio::test]
async fn a_verdict_outlives_the_process_and_the_first_round_is_awaited() {
    let (mut a, at) = (Origin::echo("a").await, address::unused());
    let yaml = "
        upstreams:
          app:
            backends: [\"<a>\", \"<b>\"]
            health_check: { type: tcp, interval: 1h, rise: 2, fall: 2 }";
    let config = Config::new(yaml).put("a", &a.address).put("b", at);
    let proxy = config.start().await;
    assert_eq!(answers(&proxy, 4).await, ["a"; 4], "b does not listen");
    let b = Origin::at(at, "b").await;
    let proxy = proxy.upgrade().await;
    assert_eq!(b.silent(), 1, "the successor served before it had probed");
    assert_eq!(answers(&proxy, 4).await, ["a"; 4], "b was brought back by one probe");
    let proxy = proxy.upgrade().await;
    assert_eq!(b.silent(), 2);
    let names = answers(&proxy, 4).await;
    assert!(names.contains(&"b".to_owned()), "the row of good probes was not handed over: {names:?}");
    a.stop().await;
    let proxy = proxy.upgrade().await;
    a.restart().await;
    let names = answers(&proxy, 4).await;
    assert!(names.contains(&"a".to_owned()), "a was taken out by one probe: {names:?}");
}

#[tokio::test]
async fn a_verdict_is_not_applied_to_another_address() {
    let (good, dead) = (Origin::echo("good").await, address::unused());
    let yaml = "upstreams: { app: { backends: [{ id: one, address: \"<one>\" }], health_check: { type: tcp, interval: 1h } } }";
    let mut old = Config::new(yaml).put("one", dead).start().await;
    assert_eq!(old.get("/").await.status(), 503);
    let mut new = Config::new(yaml).put("one", &good.address).after(&old).spawn(&["-u"]);
    assert!(old.ended().await.success(), "{}", old.stderr());
    new.ready().await;
    assert_eq!(new.get("/").await.origin(), "good");
}

#[tokio::test]
async fn a_tls_session_resumes_at_the_successor() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let yaml = "
        certificates: { main: <main> }
        listeners: [{ address: <listen>, tls: { certificates: [main] } }]";
    let config = Config::before(&[&origin], yaml);
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let mut proxy = config.put("main", main).start().await;
    let clients = [&version::TLS12, &version::TLS13].map(|version| ca.client_with(&["http/1.1"], &[version]));
    for expected in [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Resumed] {
        for config in &clients {
            let mut client = Client::tls(proxy.listen, "a.test", config).await;
            let handshake = client.handshake.clone().expect("tls");
            assert_eq!(handshake.kind, expected, "{:?} at process {}", handshake.version, proxy.pid());
            assert_eq!(client.get("/").await.status(), 200);
        }
        proxy = proxy.upgrade().await;
    }
}

#[tokio::test]
async fn a_client_that_has_used_up_its_burst_is_refused_by_the_successor_too() {
    let origin = Origin::echo("a").await;
    let yaml = "routes: [{ name: api, upstream: app, rate_limit: { key: { header: X-Key }, rate: 2/h } }]\n";
    let mut proxy = Config::before(&[&origin], yaml).start().await;
    let ask = async |proxy: &Proxy, key: &str| {
        let request = format!("GET / HTTP/1.1\r\nHost: a.test\r\nX-Key: {key}\r\n\r\n");
        proxy.client().await.ask(&request).await.status()
    };
    for expected in [200, 200, 429] {
        assert_eq!(ask(&proxy, "used up").await, expected);
    }
    assert_eq!(ask(&proxy, "one left").await, 200);
    proxy = proxy.upgrade().await;
    assert_eq!(ask(&proxy, "used up").await, 429, "after one upgrade");
    assert_eq!(ask(&proxy, "one left").await, 200);
    proxy = proxy.upgrade().await;
    for key in ["used up", "one left"] {
        assert_eq!(ask(&proxy, key).await, 429, "{key}, after two upgrades");
    }
    assert_eq!(ask(&proxy, "new").await, 200);
    assert_eq!(origin.total(), 5);
}

#[tokio::test]
async fn what_was_told_and_what_failed_is_known_to_the_successor() {
    let dead = address::unused();
    let yaml = "
        admin: { socket: <dir>/admin.sock }
        upstreams: { app: { backends: [\"<dead>\"] } }";
    let mut proxy = Config::new(yaml).put("dead", dead).start().await;
    assert_eq!(proxy.get("/lost").await.status(), 502);
    let api = Api::of(&proxy);
    let changed = "/v1/upstreams/app/backends/more?persist=false&reason=why";
    api.change("PUT", changed, serde_json::json!({ "address": address::unused().to_string() })).await;
    for upgrades in 1..=2 {
        proxy = proxy.upgrade().await;
        let errors = api.get("/v1/errors").await;
        assert_eq!(errors["errors"][0]["path"], "/lost", "after {upgrades}: {errors}");
        assert_eq!(errors["errors"][0]["reason"], "connect_refused");
        let mut reader = Client::unix(&proxy.config.dir().join("admin.sock")).await;
        reader.send("GET /v1/events HTTP/1.1\r\nHost: rrlb\r\nLast-Event-ID: 0\r\n\r\n").await;
        let mut reply = reader.response_head().await;
        let last = format!("process {} serves", proxy.pid());
        while !reply.text().contains(&last) {
            reader.wire.chunk(&mut reply).await.expect("a part").expect("another part");
        }
        let text = reply.text();
        assert!(text.contains("backend.added") && text.contains("\"why\":\"why\""), "{text}");
        assert_eq!(text.matches("process.took_over\ndata").count(), upgrades, "{text}");
        let ids: Vec<(&str, &str)> =
            text.lines().filter_map(|line| line.strip_prefix("id: ")?.split_once('-')).collect();
        let numbers: Vec<u64> = ids.iter().filter_map(|(_, number)| number.parse().ok()).collect();
        assert_eq!(numbers, (1..=ids.len() as u64).collect::<Vec<_>>(), "{text}");
        assert!(ids.iter().all(|(row, _)| *row == ids[0].0), "one row over all upgrades: {text}");
    }
}

#[tokio::test]
async fn who_goes_on_reading_events_after_a_restart_is_told_that_numbers_began_anew() {
    let origin = Origin::echo("one").await;
    let yaml = "
        admin: { socket: <dir>/admin.sock }
        upstreams: { app: { backends: [{ id: a, address: \"<a>\" }] } }";
    let mut proxy = Config::new(yaml).put("a", &origin.address).start().await;
    let socket = proxy.config.dir().join("admin.sock");
    let change = async |weight: u16| {
        let body = serde_json::json!({ "weight": weight });
        let api = Api::of(&proxy);
        api.change("PATCH", "/v1/upstreams/app/backends/a?persist=false", body).await;
    };
    change(2).await;
    change(3).await;
    let read = async |last: &str, until: &str| {
        let mut reader = Client::unix(&socket).await;
        reader.send(format!("GET /v1/events HTTP/1.1\r\nHost: rrlb\r\nLast-Event-ID: {last}\r\n\r\n")).await;
        let mut reply = reader.response_head().await;
        while !reply.text().contains(until) {
            reader.wire.chunk(&mut reply).await.expect("a part").expect("another part");
        }
        reply.text()
    };
    let text = read("0", "weight 2 -> 3").await;
    let id = text.lines().filter_map(|line| line.strip_prefix("id: ")).next_back().expect("an id").to_owned();
    proxy.signal(libc::SIGKILL);
    proxy.ended().await;
    let proxy = proxy.config.clone().start().await;
    // As many as were told before, and other ones.
    for weight in [5, 6, 7] {
        let body = serde_json::json!({ "weight": weight });
        Api::of(&proxy).change("PATCH", "/v1/upstreams/app/backends/a?persist=false", body).await;
    }
    let text = read(&id, "weight 6 -> 7").await;
    assert!(text.contains("event: missed\ndata: {\"missed\":null}\n\n"), "{text}");
    assert!(text.contains("weight 1 -> 5") && text.contains("weight 5 -> 6"), "nothing is passed over: {text}");
    let (row, _) = id.split_once('-').expect("a row and a number");
    assert!(text.lines().all(|line| !line.starts_with(&format!("id: {row}-"))), "{text}");
}

#[tokio::test]
async fn waiting_for_a_drain_includes_the_requests_of_every_process_before() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let yaml = "
        admin: { socket: <dir>/admin.sock }
        upstreams: { app: { backends: [{ id: a, address: \"<a>\" }, { id: b, address: \"<b>\" }] } }";
    let mut first = Config::new(yaml).put("a", &a.address).put("b", &b.address).start().await;
    let api = Api::of(&first);
    let mut client = first.client().await;
    client.send(crate::support::http1::get("/hold")).await;
    wait_until("the request at the origin", || a.total() + b.total() == 1).await;
    let busy = if a.total() == 1 { "a" } else { "b" };
    assert_eq!(api.get("/v1/status").await["predecessor_draining"], false);
    let mut second = first.successor();
    eventually("the second to serve", async || api.get("/v1/status").await["pid"] == second.pid()).await;
    eventually("the second to serve", async || second.probe("/readyz").await == Some(200)).await;
    let mut third = second.successor();
    assert!(second.ended().await.success(), "{}", second.stderr());
    third.ready().await;
    let status = api.get("/v1/status").await;
    assert_eq!(status["pid"], third.pid());
    assert_eq!(status["predecessor_draining"], true, "{status}");
    let socket = first.config.dir().join("admin.sock");
    let socket = socket.to_str().expect("text");
    let words = ["--socket", socket, "backend", "drain", "app", busy, "--wait", "--timeout"];
    let waited = run::rrlb(&[&words[..], &["300ms"]].concat()).await.ended_with(5);
    assert!(waited.stderr.contains("the process before still has requests"), "{waited:?}");
    a.release();
    b.release();
    assert_eq!(client.response().await.status(), 200);
    let waited = run::rrlb(&[&words[..], &["30s"]].concat()).await.ended_with(0);
    assert!(waited.stdout.contains("no request in flight"), "{waited:?}");
    assert!(first.ended().await.success());
    assert_eq!(api.get("/v1/status").await["predecessor_draining"], false);
}

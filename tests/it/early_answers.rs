//! Answers that come before the request has left wholly, and clients that stand still behind TLS: what waits inside the proxy
//! then must be nobody else's.

use std::{path::Path, sync::Arc};

use tokio::sync::watch;

use crate::support::{
    http1::{Client, get},
    origin::Origin,
    proxy::{Config, Proxy},
    run::read,
    tls::Ca,
    within,
};

const ENGINES: [&str; 3] = ["lane", "exchange", "pingora"];

/// Each worker has had its turn.
async fn turn(proxy: &Proxy) {
    for _ in 0..4 {
        let mut client = proxy.client().await;
        assert_eq!(client.get("/turn").await.status(), 200);
    }
}

/// Sizes are such that at some of them the last part of the body has come from the client and not left for the backend, whose
/// unix socket holds some 200 KB.
#[tokio::test]
async fn an_answer_before_the_bodys_end_leaves_no_connection_for_another_request() {
    for engine in ENGINES {
        let folder = tempfile::tempdir().expect("folder");
        let (answers, may_answer) = watch::channel(0_usize);
        let bad = Arc::new(std::sync::Mutex::new(Vec::new()));
        let seen = bad.clone();
        let path = folder.path().join("origin.sock");
        let origin = Origin::unix_script("a", &path, move |mut peer| {
            let (mut may_answer, seen) = (may_answer.clone(), seen.clone());
            async move {
                while let Some(head) = peer.request_head().await {
                    let length = head.field("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
                    if length > 0 {
                        let number: usize = head.target().trim_start_matches("/first/").parse().expect("a number");
                        may_answer.wait_for(|answered| *answered >= number).await.expect("the test goes on");
                    }
                    peer.reply(200, "", "").await;
                    let Ok(body) = peer.wire.take(length).await else { return };
                    if body.iter().any(|byte| *byte != b'x') {
                        seen.lock().expect("no panic").push(head.target().to_owned());
                    }
                }
            }
        })
        .await;
        let routes =
            "routes: [{ match: { path: /turn }, respond: { status: 200 } }, { upstream: app }]\nengine: <engine>";
        let proxy = Config::before(&[&origin], routes).put("engine", engine).start().await;
        for number in 1..=16 {
            let size = 120_000 + number * 40_000;
            let mut first = proxy.client().await;
            let head = format!("POST /first/{number} HTTP/1.1\r\nHost: a.test\r\nContent-Length: {size}\r\n\r\n");
            first.send(head + &"x".repeat(size)).await;
            turn(&proxy).await;
            answers.send_replace(number);
            assert_eq!(first.response().await.status(), 200, "{engine}");
            assert_eq!(proxy.client().await.get("/second").await.status(), 200, "{engine}");
        }
        assert!(bad.lock().expect("no panic").is_empty(), "{engine}: others' bytes in the bodies of {bad:?}");
    }
}

#[tokio::test]
async fn a_client_that_leaves_while_the_end_of_its_upload_waits_is_noticed() {
    for engine in ENGINES {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("origin.sock");
        let origin = Origin::unix_script("a", &path, async |mut peer| {
            peer.request_head().await;
            std::future::pending().await
        })
        .await;
        let proxy = Config::before(&[&origin], "engine: <engine>").put("engine", engine).start().await;
        // A little more than the backend's socket takes, so that a part waits, and the proxy has read all of it.
        let held: usize = read(Path::new("/proc/sys/net/core/wmem_default")).trim().parse().expect("a number");
        let size = held + 45_000;
        let mut client = proxy.client().await;
        let head = format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {size}\r\n\r\n");
        client.send(head + &"x".repeat(size)).await;
        drop(client);
        // The first of the backend's deadlines is 60 s away.
        assert_eq!(proxy.access_log(1).await[0]["reason"], "client_aborted", "{engine}");
    }
}

/// TLS takes a part of the answer whole, and waits for its client afterwards.
#[tokio::test]
async fn a_tls_client_that_does_not_read_is_too_slow_and_its_backend_is_not_to_blame() {
    let ca = Ca::new();
    for engine in ENGINES {
        let origin = Origin::echo("a").await;
        let yaml = "
            engine: <engine>
            certificates: { mine: <mine> }
            listeners: [{ address: <listen>, tls: { certificates: [mine] } }]
            upstreams: { app: { backends: [\"<a>\"], timeouts: { read: 2s } } }";
        let config = Config::new(yaml).put("engine", engine).put("a", &origin.address);
        let mine = ca.issue(&["a.test"]).write(config.dir(), "mine");
        let proxy = config.put("mine", mine).start().await;
        let mut stuck = Client::tls(proxy.listen, "a.test", &ca.client(&["http/1.1"])).await;
        stuck.send(get("/size/100000000")).await;
        let line = within("the cut", proxy.access_log(1)).await.remove(0);
        assert_eq!(line["reason"], "too_slow", "{engine}: {line}");
    }
}

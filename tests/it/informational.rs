//! 1xx answers: `100 Continue` and 103.

use std::time::{Duration, Instant};

use crate::support::{
    misbehave,
    origin::{Origin, Peer},
    proxy::{Config, Proxy},
    wait_until,
};

/// Both ways of the bytes to a backend over HTTP/1.1.
const ENGINES: [&str; 2] = ["engine: exchange", "engine: pingora"];
const HINTS: &str = "HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n";

const EXPECTING: &str = "POST /p HTTP/1.1\r\nHost: a.test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n";

#[tokio::test]
async fn a_client_that_expects_100_is_told_to_go_on() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    for _ in 0..2 {
        client.send(EXPECTING).await;
        assert_eq!(client.any_response().await.status(), 100);
        assert_eq!(client.ask("body").await.text(), "body");
    }
}

#[tokio::test]
async fn a_client_that_expects_100_need_not_send_what_is_refused() {
    let proxy = crate::support::proxy::Config::new("routes: [{ respond: { status: 403 } }]").start().await;
    let mut client = proxy.client().await;
    client.send(EXPECTING).await;
    assert_eq!(client.any_response().await.status(), 403);
}

#[tokio::test]
async fn a_client_that_does_not_wait_for_100_is_served_too() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    client.send(format!("{EXPECTING}body")).await;
    assert_eq!(client.response().await.text(), "body");
}

#[tokio::test]
async fn early_hints_are_passed_on_before_the_answer() {
    let origin = Origin::script("a", |mut peer| async move {
        while peer.request().await.is_some() {
            peer.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n").await;
            peer.held().await;
            peer.reply(200, "", "a").await;
        }
    })
    .await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    client.send(crate::support::http1::get("/")).await;
    let hints = client.any_response().await;
    assert_eq!((hints.status(), hints.field("link")), (103, Some("</a.css>; rel=preload")));
    origin.release();
    assert_eq!(client.response().await.text(), "a");
}

#[tokio::test]
async fn http_1_0_clients_get_no_1xx() {
    let origin = Origin::script("a", |mut peer| async move {
        while peer.request().await.is_some() {
            peer.send("HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n").await;
            peer.reply(200, "", "a").await;
        }
    })
    .await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.0\r\nHost: a.test\r\n\r\n").await;
    let text = String::from_utf8_lossy(&client.closed().await).into_owned();
    assert!(text.contains(" 200 ") && !text.contains("103"), "{text}");
}

#[tokio::test]
async fn a_switch_of_protocols_nobody_asked_for_is_refused() {
    let origin = Origin::script("a", |mut peer| async move {
        if peer.request().await.is_some() {
            peer.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nsecret").await;
        }
    })
    .await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    client.send(crate::support::http1::get("/")).await;
    let reply = client.any_response().await;
    assert!(reply.status() == 502 && !reply.text().contains("secret"), "{reply:?}");
    wait_until("the origin to be left", || origin.open() == 0).await;
}

#[tokio::test]
async fn answers_without_a_body_leave_the_connection_in_order() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    client.send("HEAD / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let head = client.response_head().await;
    assert_eq!((head.status(), head.field("content-length")), (200, Some("5")));
    assert_eq!(client.get("/").await.text(), "a");
}

#[tokio::test]
async fn not_modified_and_no_content_have_no_body() {
    let origin = Origin::script("a", |mut peer| async move {
        while let Some(request) = peer.request().await {
            let status = request.target().trim_start_matches('/').to_owned();
            peer.send(format!("HTTP/1.1 {status} Fine\r\nETag: \"x\"\r\n\r\n")).await;
        }
    })
    .await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    for status in [204, 304, 204] {
        let reply = client.get(&format!("/{status}")).await;
        assert_eq!((reply.status(), reply.field("etag")), (status, Some("\"x\"")));
        assert_eq!(reply.fields("transfer-encoding"), [""; 0]);
    }
}

/// A backend that gives only interim answers keeps nobody for longer than it takes to count them.
#[tokio::test]
async fn interim_answers_without_end_are_a_bad_response() {
    for engine in ENGINES {
        let origin = Origin::script("a", |mut peer| async move {
            if peer.request().await.is_some() {
                for _ in 0..1000 {
                    peer.send(HINTS).await;
                }
                while peer.request().await.is_some() {}
            }
        })
        .await;
        let proxy = Config::before(&[&origin], engine).start().await;
        let mut client = proxy.client().await;
        client.send(crate::support::http1::get("/")).await;
        let mut hints = 0;
        let answer = loop {
            let answer = client.any_response().await;
            if answer.status() != 103 {
                break answer;
            }
            hints += 1;
        };
        assert_eq!((answer.status(), hints <= 32), (502, true), "{engine}: {hints} interim answers");
        assert!(answer.field("proxy-status").is_some_and(|status| status.contains("bad_response")), "{answer:?}");
        assert_eq!(proxy.access_log(1).await[0]["reason"], "bad_response", "{engine}");
        wait_until("the origin to be left", || origin.open() == 0).await;
    }
}

#[tokio::test]
async fn as_many_interim_answers_as_anybody_needs_are_passed_on() {
    for engine in ENGINES {
        let origin = Origin::script("a", |mut peer| async move {
            while peer.request().await.is_some() {
                peer.send(HINTS.repeat(16)).await;
                peer.reply(200, "", "a").await;
            }
        })
        .await;
        let proxy = Config::before(&[&origin], engine).start().await;
        let mut client = proxy.client().await;
        for _ in 0..4 {
            client.send(crate::support::http1::get("/")).await;
            for _ in 0..16 {
                assert_eq!(client.any_response().await.status(), 103, "{engine}");
            }
            assert_eq!(client.any_response().await.text(), "a", "{engine}");
        }
    }
}

/// The deadline is of the whole head, and interim answers do not put it off.
#[tokio::test]
async fn a_final_head_that_does_not_come_is_not_waited_for_longer_than_first_byte() {
    for engine in ENGINES {
        for (what, origin) in [
            ("bytes of a head", Origin::script("a", misbehave::drip).await),
            ("interim answers", Origin::script("a", hint_slowly).await),
        ] {
            let more = format!("defaults: {{ timeouts: {{ first_byte: 1s }}, retry: {{ attempts: 1 }} }}\n{engine}");
            let proxy = Config::before(&[&origin], &more).start().await;
            let began = Instant::now();
            let mut client = proxy.client().await;
            client.send(crate::support::http1::get("/")).await;
            let answer = loop {
                let answer = client.any_response().await;
                if answer.status() != 103 {
                    break answer;
                }
            };
            assert_eq!(answer.status(), 504, "{engine}, {what}: {answer:?}");
            assert!(began.elapsed() < Duration::from_millis(2500), "{engine}, {what}: {:?}", began.elapsed());
            assert_eq!(proxy.access_log(1).await[0]["reason"], "first_byte_timeout", "{engine}, {what}");
        }
    }
}

/// Fewer interim answers than would be too many, until it is left.
async fn hint_slowly(mut peer: Peer) {
    if peer.request().await.is_some() {
        while peer.wire.send(HINTS).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(150)).await; // the origin's pace
        }
    }
}

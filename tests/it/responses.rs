//! Answers from origins that do not say where they end, or say it in two ways: the client gets a 502 or a message that
//! breaks off, never one that looks complete; and nothing of one answer becomes a part of the next.

use std::sync::Arc;

use crate::support::{
    http1::get,
    origin::Origin,
    proxy::{Config, Proxy},
};

/// An origin whose `/N` is the Nth of these answers, with what comes after it; `/` and everything else is `fine`. It
/// keeps its connections where `keeps`.
async fn answering(answers: Vec<String>, keeps: bool) -> Origin {
    let answers = Arc::new(answers);
    Origin::script("a", move |mut peer| {
        let answers = answers.clone();
        async move {
            while let Some(request) = peer.request().await {
                match request.target()[1..].parse::<usize>().ok().and_then(|n| answers.get(n)) {
                    Some(answer) => peer.send(answer).await,
                    None => peer.reply(200, "", "fine").await,
                }
                if !keeps {
                    return;
                }
            }
        }
    })
    .await
}

async fn refused(answers: &[&str]) {
    let origin = answering(answers.iter().map(ToString::to_string).collect(), false).await;
    let proxy = Proxy::before(&[&origin]).await;
    for (n, answer) in answers.iter().enumerate() {
        let reply = proxy.get(&format!("/{n}")).await;
        assert_eq!(reply.status(), 502, "{answer:?} became {reply:?}");
        let told = reply.field("proxy-status").unwrap_or_default();
        assert!(told.contains("bad_response"), "{answer:?}: {told}");
    }
    assert_eq!(proxy.get("/").await.text(), "fine");
}

#[tokio::test]
async fn an_answer_with_ambiguous_framing_is_a_502() {
    refused(&[
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: identity\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello!",
        "HTTP/1.1 200 OK\r\nContent-Length: 5, 5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: +5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 0x5\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length:\r\n\r\nhello",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\nhello",
    ])
    .await;
}

#[tokio::test]
async fn a_head_that_is_none_is_a_502() {
    refused(&[
        "HTTP/1.1 200 OK\r\nX: a\0b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX: a\rb\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nX\0Y: b\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 200 OK\r\nnonsense\r\nContent-Length: 0\r\n\r\n",
        "HTTP/2.0 200 OK\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.1 20 OK\r\nContent-Length: 0\r\n\r\n",
        "ICY 200 OK\r\n\r\nhello",
        "hello\r\n\r\n",
    ])
    .await;
}

#[tokio::test]
async fn a_body_that_breaks_off_is_never_a_whole_one_for_the_client() {
    let counted = |body: &str| format!("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n{body}");
    let chunked = |body: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    let answers = vec![
        counted(""),
        counted("hello"),
        chunked(""),
        chunked("5"),
        chunked("5\r\nhel"),
        chunked("5\r\nhello"),
        chunked("5\r\nhello\r\n"),
        chunked("5\r\nhello\r\n0"),
        chunked("5\r\nhello\r\n0\r\n"),
        chunked("5\r\nhello\r\n0\r\nX: y\r\n"),
        chunked("zz\r\nhello\r\n0\r\n\r\n"),
        chunked("-5\r\nhello\r\n0\r\n\r\n"),
        chunked("+5\r\nhello\r\n0\r\n\r\n"),
        chunked("5\nhello\r\n0\r\n\r\n"),
        chunked("5\r\nhelloXX0\r\n\r\n"),
        chunked("5\r\nhello\n0\r\n\r\n"),
        chunked("fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
        chunked("ffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    ];
    let origin = answering(answers.clone(), false).await;
    let proxy = Proxy::before(&[&origin]).await;
    for (n, answer) in answers.iter().enumerate() {
        let mut client = proxy.client().await;
        match client.try_get(&format!("/{n}")).await {
            Err(_) => {}
            Ok(reply) => assert_eq!(reply.status(), 502, "{answer:?} looks complete: {reply:?}"),
        }
    }
    assert_eq!(proxy.get("/").await.text(), "fine");
}

#[tokio::test]
async fn a_chunk_of_an_answer_has_a_well_formed_extension_and_a_size_below_two_to_the_63() {
    let chunked = |body: &str| format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{body}");
    let good = chunked("2\r\nhe\r\n3; a=b;c=\"\\\";\"\r\nllo\r\n0;last\r\n\r\n");
    let mut answers = vec![good];
    for extension in ["", "=x", "a=\"x", "a b c", ";;;", "\u{ff}", "a ", "a="] {
        answers.push(chunked(&format!("2\r\nhe\r\n3;{extension}\r\nllo\r\n0\r\n\r\n")));
    }
    answers.push(chunked("2\r\nhe\r\n8000000000000000\r\nllo"));
    let origin = answering(answers.clone(), false).await;
    // Pingora skips them unread.
    for engine in ["lane", "exchange"] {
        let proxy = Config::before(&[&origin], &format!("engine: {engine}")).start().await;
        assert_eq!(proxy.get("/0").await.text(), "hello");
        for (n, answer) in answers.iter().enumerate().skip(1) {
            let reply = proxy.client().await.try_get(&format!("/{n}")).await;
            assert!(reply.is_err(), "{engine}: {answer:?} looks complete: {reply:?}");
        }
    }
}

#[tokio::test]
async fn what_comes_after_an_answer_is_never_the_next_answer() {
    let evil = "HTTP/1.1 200 OK\r\nX-Evil: 1\r\nContent-Length: 4\r\n\r\nevil";
    let after = |head: &str| format!("{head}{evil}");
    let answers = vec![
        after("HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello"),
        after("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"),
        after("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n"),
        after("HTTP/1.1 204 No Content\r\n\r\n"),
        after("HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\n"),
        after("HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n"),
        after("HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\n"),
        after("HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n"),
    ];
    let origin = answering(answers.clone(), true).await;
    let proxy = Proxy::before(&[&origin]).await;
    for (n, answer) in answers.iter().enumerate() {
        let mut client = proxy.client().await;
        client.try_get(&format!("/{n}")).await.unwrap_or_else(|error| panic!("{answer:?}: {error}"));
        for _ in 0..3 {
            let next = client.get("/").await;
            assert_eq!((next.field("x-evil"), next.text().as_str()), (None, "fine"), "after {answer:?}");
        }
    }
    // A body where a HEAD has none.
    let mut client = proxy.client().await;
    client.send("HEAD /0 HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(client.response_head().await.field("content-length"), Some("5"));
    for _ in 0..3 {
        assert_eq!(client.get("/").await.text(), "fine");
    }
}

#[tokio::test]
async fn what_has_no_body_reaches_the_client_without_framing() {
    let answers = vec![
        "HTTP/1.1 204 No Content\r\nContent-Length: 4\r\n\r\n".to_owned(),
        "HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        "HTTP/1.1 304 Not Modified\r\nTransfer-Encoding: chunked\r\n\r\n".to_owned(),
        "HTTP/1.1 103 Early Hints\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
         HTTP/1.1 200 OK\r\nX-Last: 1\r\nContent-Length: 0\r\n\r\n"
            .to_owned(),
    ];
    let origin = answering(answers.clone(), true).await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    for (n, answer) in answers.iter().enumerate() {
        client.send(get(&format!("/{n}"))).await;
        let reply = client.any_response().await;
        assert!(reply.field("transfer-encoding").is_none(), "{answer:?}: {reply:?}");
        assert!(reply.field("content-length").is_none(), "{answer:?}: {reply:?}");
    }
    assert_eq!(client.response().await.field("x-last"), Some("1"));
    assert_eq!(client.get("/").await.text(), "fine");
}

#[tokio::test]
async fn what_is_unusual_and_has_one_meaning_is_passed_on_in_order() {
    let answers = vec![
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\r\nX-A: a\r\n  b\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\r\nX-A : a b\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\nX-A: a b\nContent-Length: 5\n\nhello".to_owned(),
    ];
    let origin = answering(answers.clone(), true).await;
    let proxy = Config::before(&[&origin], "engine: pingora").start().await;
    for (n, answer) in answers.iter().enumerate() {
        let reply = proxy.get(&format!("/{n}")).await;
        assert_eq!((reply.text().as_str(), reply.field("content-length")), ("hello", Some("5")), "{answer:?}");
        assert_eq!(reply.field("x-a"), (n > 0).then_some("a b"), "{answer:?}");
    }
}

/// Our own client side is as strict with origins as the front is with clients.
#[tokio::test]
async fn the_exchange_passes_on_no_answer_that_two_parsers_could_read_in_two_ways() {
    let answers = vec![
        "HTTP/1.1 200 OK\r\nX-A: a\r\n  b\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\r\nX-A : a b\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
        "HTTP/1.1 200 OK\nX-A: a b\nContent-Length: 5\n\nhello".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n".to_owned(),
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\nhello".to_owned(),
    ];
    for engine in ["engine: lane", "engine: exchange"] {
        let origin = answering(answers.clone(), true).await;
        let proxy = Config::before(&[&origin], engine).start().await;
        for (n, answer) in answers.iter().enumerate() {
            let reply = proxy.get(&format!("/{n}")).await;
            let good = n == answers.len() - 1;
            assert_eq!(reply.status(), if good { 200 } else { 502 }, "{answer:?}");
            let reason = proxy.access_log(n + 1).await.remove(n)["reason"].clone();
            assert_eq!(reason, if good { "ok" } else { "bad_response" }, "{answer:?}");
        }
    }
}

/// RFC 9112 §6.3 lets a proxy take the coding and drop the length; Pingora 0.9.1 does (v1/client.rs), before any filter sees
/// the answer, so that it cannot be refused.
#[tokio::test]
async fn of_an_answer_with_a_length_and_a_coding_the_length_is_dropped() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n";
    let origin = answering(vec![answer.to_owned()], true).await;
    let proxy = Config::before(&[&origin], "engine: pingora").start().await;
    let reply = proxy.get("/0").await;
    assert_eq!((reply.text().as_str(), reply.field("content-length")), ("hello", None));
}

/// The end of the connection would be the border of what an HTTP/1.0 client gets without chunks.
#[tokio::test]
async fn an_http10_client_sees_that_a_chunked_answer_broke_off() {
    let answer = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
    for engine in ["engine: exchange", "engine: pingora"] {
        let origin = answering(vec![answer.to_owned()], false).await;
        let proxy = Config::before(&[&origin], engine).start().await;
        let mut client = proxy.client().await;
        client.send("GET /0 HTTP/1.0\r\nHost: a.test\r\n\r\n").await;
        let (mut io, _) = client.wire.into_parts();
        let end = tokio::io::AsyncReadExt::read_to_end(&mut io, &mut Vec::new()).await;
        assert_eq!(end.expect_err("an end that is none").kind(), std::io::ErrorKind::ConnectionReset, "{engine}");
    }
}

#[tokio::test]
async fn what_an_origin_says_is_not_in_the_log() {
    for engine in ["engine: lane", "engine: exchange", "engine: pingora"] {
        let answers = vec![
            "HTTP/1.1 200 OK\r\nSet-Cookie: session=secret\r\nX: a\0b\r\n\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nsecret\r\n".to_owned(),
        ];
        let origin = answering(answers, false).await;
        let proxy = Config::before(&[&origin], engine).start().await;
        assert_eq!(proxy.get("/0").await.status(), 502);
        let mut client = proxy.client().await;
        client.send(get("/1")).await;
        client.closed().await;
        proxy.logged("bad_response").await;
        proxy.access_log(2).await;
        assert!(!proxy.stderr().contains("secret"), "{}", proxy.stderr());
    }
}

#[tokio::test]
async fn trailers_say_nothing_that_the_head_may_not_have_said() {
    let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n";
    let trailers =
        "Set-Cookie: a=b\r\nX-Gone: 1\r\nX-Set: 1\r\nX-Request-Id: zz\r\nCache-Control: public\r\nX-Sum:  1 \r\n\r\n";
    let origin = answering(vec![head.to_owned() + trailers, head.to_owned() + "\r\n"], true).await;
    let edits = "routes: [{ upstream: app, response_headers: { remove: [X-Gone], set: { X-Set: ours } } }]";
    let proxy = Config::before(&[&origin], edits).start().await;
    let mut client = proxy.client().await;
    let reply = client.get("/0").await;
    assert_eq!((reply.text().as_str(), reply.field("x-set")), ("hello", Some("ours")));
    assert!(reply.trailers.iter().all(|(name, value)| (name.as_str(), value.as_str()) == ("X-Sum", "1")), "{reply:?}");
    let reply = client.get("/1").await;
    assert_eq!((reply.text().as_str(), reply.trailers.len()), ("hello", 0));
    assert_eq!(client.get("/").await.status(), 200);
    assert_eq!(origin.connections(), 1);
}

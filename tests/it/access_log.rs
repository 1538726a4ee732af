//! The access log: one line per request whatever became of it, and nobody can forge one.

use serde_json::Value;

use crate::support::{
    http1::{Client, get_with},
    http2::{Client2, request},
    origin::Origin,
    proxy::{Config, Proxy},
    run,
    tls::Ca,
    wait_until,
};

const FIELDS: [&str; 16] = [
    "time",
    "client",
    "peer",
    "method",
    "host",
    "path",
    "status",
    "bytes",
    "duration",
    "upstream",
    "backend",
    "attempts",
    "reason",
    "tls_version",
    "protocol",
    "request_id",
];

#[tokio::test]
async fn a_json_line_has_every_field() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let reply = get_with(proxy.listen, "/x?y=1", "X-Request-Id: id-1\r\n").await;
    let line = proxy.access_log(1).await.remove(0);
    for field in FIELDS {
        assert!(line.get(field).is_some(), "{field} is missing: {line}");
    }
    assert_eq!(line["method"], "GET");
    assert_eq!(line["host"], "a.test");
    assert!(line["path"].as_str().is_some_and(|path| path.starts_with("/x")), "{line}");
    assert_eq!(line["status"], 200);
    assert_eq!(line["bytes"], reply.length);
    assert_eq!(line["upstream"], "app");
    assert_eq!(line["backend"], origin.address);
    assert_eq!(line["attempts"], 1);
    assert_eq!(line["request_id"], "id-1");
    assert_eq!(line["protocol"], "HTTP/1.1");
    assert!(line["client"].as_str().is_some_and(|client| client.starts_with("127.0.0.1")), "{line}");
    assert!(line["duration"].as_f64().is_some_and(|seconds| (0.0..10.0).contains(&seconds)), "{line}");
    assert!(line["time"].as_str().is_some_and(|time| time.len() >= 20 && time.starts_with("20")), "{line}");
}

#[tokio::test]
async fn tls_and_http2_are_told() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let yaml = "
        certificates: { main: <main> }
        listeners: [{ address: <listen>, tls: { certificates: [main] } }]";
    let config = Config::before(&[&origin], yaml);
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    Client2::tls(proxy.listen, "a.test", &ca.client(&["h2"])).await.get("/").await;
    let line = proxy.access_log(1).await.remove(0);
    assert!(line["tls_version"].as_str().is_some_and(|version| version.contains("1.3")), "{line}");
    assert!(line["protocol"].as_str().is_some_and(|protocol| protocol.starts_with("HTTP/2")), "{line}");
    assert_eq!(line["host"], "a.test");
}

#[tokio::test]
async fn every_request_of_a_connection_has_its_line() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    let mut client = proxy.client().await;
    for n in 0..20 {
        client.get(&format!("/{n}")).await;
    }
    let paths: Vec<_> = proxy.access_log(20).await.iter().map(|l| l["path"].as_str().map(str::to_owned)).collect();
    assert_eq!(paths, (0..20).map(|n| Some(format!("/{n}"))).collect::<Vec<_>>());
}

#[tokio::test]
async fn refused_requests_have_a_line_with_a_reason() {
    let origin = Origin::echo("a").await;
    let more = "listeners: [{ address: <listen>, limits: { max_header_size: 4KiB, header_timeout: 300ms } }]";
    let proxy = Config::before(&[&origin], more).start().await;
    let large = format!("GET /large HTTP/1.1\r\nHost: a.test\r\nX-Fill: {}\r\n\r\n", "x".repeat(5_000));
    let both = "POST /both HTTP/1.1\r\nHost: a.test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n";
    let cases = [
        ("garbage\r\n\r\n", 400),
        ("GET /nohost HTTP/1.1\r\n\r\n", 400),
        (both, 400),
        ("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n", 405),
        (large.as_str(), 431),
    ];
    for (index, (request, status)) in cases.into_iter().enumerate() {
        let mut client = proxy.client().await;
        client.send(request).await;
        client.closed().await;
        let line = proxy.access_log(index + 1).await.remove(index);
        let logged = line["status"].as_u64().unwrap_or_default();
        assert!(logged == status || (status == 405 && logged == 400), "{request:?}: {line}");
        assert!(line["reason"].as_str().is_some_and(|word| !word.is_empty() && word != "-"), "{line}");
    }
    let mut client = proxy.client().await;
    client.send("GET /never HTTP/1.1\r\nHost: a.te").await;
    client.closed().await;
    let line = proxy.access_log(6).await.remove(5);
    assert_eq!(line["status"], 408, "{line}");
}

#[tokio::test]
async fn a_connection_without_a_request_has_no_line() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    drop(proxy.client().await);
    proxy.get("/").await;
    proxy.access_log(1).await;
}

#[tokio::test]
async fn control_characters_cannot_forge_a_line() {
    let origin = Origin::echo("a").await;
    for format in ["json", "combined"] {
        let more = format!("access_log: {{ path: <dir>/access.log, format: {format} }}");
        let proxy = Config::before(&[&origin], &more).start().await;
        let nasty = "\x1b[2J\\\"\u{202e}";
        for (n, request) in [
            format!(
                "GET /%0a%0d?{nasty} HTTP/1.1\r\nHost: a.test\r\nUser-Agent: {nasty}\r\nReferer: \" {nasty}\r\n\r\n"
            ),
            "GET /a\nforged HTTP/1.1\r\nHost: a.test\r\n\r\n".to_owned(),
            "GE\rT / HTTP/1.1\r\nHost: a\x0btest\r\n\r\n".to_owned(),
            "GET / HTTP/1.1\r\nHost: a.test\r\nX-Request-Id: a\tb\"c\\\r\nConnection: close\r\n\r\n".to_owned(),
        ]
        .into_iter()
        .enumerate()
        {
            let mut client = proxy.client().await;
            client.send(&request).await;
            if n != 0 {
                client.closed().await;
            } else {
                client.response().await;
            }
            let text = proxy.access_log_text(n + 1).await;
            let line = text.lines().last().unwrap_or_default();
            assert!(!line.chars().any(char::is_control), "{format}: {line:?}");
            if format == "json" {
                let _: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{line:?}: {e}"));
            } else {
                assert_eq!(line.matches('"').count() - line.matches("\\\"").count(), 6, "{line:?}");
            }
        }
    }
}

#[tokio::test]
async fn the_combined_format_is_apaches() {
    let origin = Origin::echo("a").await;
    let more = "access_log: { path: <dir>/access.log, format: combined }";
    let proxy = Config::before(&[&origin], more).start().await;
    get_with(proxy.listen, "/x?y=1", "Referer: http://r.test/\r\nUser-Agent: tester/1\r\n").await;
    let line = proxy.access_log_text(1).await;
    let (front, rest) = line.trim_end().split_once(" [").expect("a time");
    assert!(front.starts_with("127.0.0.1 - -"), "{line}");
    let (time, rest) = rest.split_once("] ").expect("a time");
    assert_eq!((time.len(), time.matches('/').count(), time.matches(':').count()), (26, 2, 3), "{time}");
    assert_eq!(rest, "\"GET /x?y=1 HTTP/1.1\" 200 1 \"http://r.test/\" \"tester/1\"");
}

#[tokio::test]
async fn standard_output_may_take_the_lines() {
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], "access_log: { path: \"-\", format: json }").start().await;
    proxy.get("/out").await;
    let path = proxy.config.dir().join("stdout.0.log");
    wait_until("the line", || run::read(&path).contains("/out")).await;
}

#[tokio::test]
async fn without_an_access_log_nothing_is_written() {
    let origin = Origin::echo("a").await;
    let proxy = Config::before(&[&origin], "access_log: off").start().await;
    assert_eq!(proxy.get("/").await.status(), 200);
    assert!(!proxy.config.dir().join("access.log").exists());
}

#[tokio::test]
async fn sigusr1_opens_the_file_again() {
    let origin = Origin::echo("a").await;
    let mut proxy = Proxy::before(&[&origin]).await;
    proxy.get("/before").await;
    proxy.access_log(1).await;
    let (path, old) = (proxy.config.dir().join("access.log"), proxy.config.dir().join("access.log.1"));
    std::fs::rename(&path, &old).expect("rotate");
    proxy.signal(libc::SIGUSR1);
    wait_until("the new file", || path.exists()).await;
    proxy.get("/after").await;
    assert_eq!(proxy.access_log(1).await[0]["path"], "/after");
    assert_eq!(run::read(&old).lines().count(), 1);
    assert!(proxy.running());
}

#[tokio::test]
async fn lines_are_there_after_the_end() {
    let origin = Origin::echo("a").await;
    let mut proxy = Proxy::before(&[&origin]).await;
    let mut client = Client::connect(proxy.listen).await;
    for _ in 0..50 {
        client.get("/").await;
    }
    proxy.signal(libc::SIGTERM);
    proxy.ended().await;
    assert_eq!(run::read(&proxy.config.dir().join("access.log")).lines().count(), 50);
}

/// Of an answer of our own too it is said that it never came to its client.
#[tokio::test]
async fn an_answer_of_our_own_that_breaks_off_was_left_by_its_client() {
    let origin = Origin::echo("a").await;
    let yaml = "
listeners: [{ address: <listen>, h2c: true }]
routes: [{ match: { path: /long }, respond: { body: \"<long>\" } }, { upstream: app }]
";
    let proxy = Config::before(&[&origin], yaml.trim_start()).put("long", "y".repeat(6 << 20)).start().await;
    let mut client = Client::with_small_buffer(proxy.listen).await;
    client.send("GET /long HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    assert_eq!(client.response_head().await.status(), 200);
    drop(client);
    let client = Client2::prior(proxy.listen).await;
    let (answer, mut sending) = client.open(request("GET", "/long"), true).await.expect("a stream");
    assert_eq!(answer.await.expect("an answer").status(), 200);
    sending.send_reset(h2::Reason::CANCEL);
    let lines = proxy.access_log(2).await;
    assert!(lines.iter().all(|line| line["reason"] == "client_aborted"), "{lines:?}");
}

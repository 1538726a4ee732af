//! Streams of events: what a reader gets, what it is told it missed, and what becomes of one that does not read.

use std::time::Duration;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
};

use super::{
    super::{Limits, openapi::document},
    support::{Bench, SOON, documented, fits, raw, request, schema, until},
};
use crate::telemetry::events::{EventId, KEPT, News};

/// A reader of events.
struct Reader {
    stream: UnixStream,
    text: String,
}

impl Reader {
    async fn start(bench: &Bench, fields: &str) -> Self {
        let mut stream = bench.connect().await;
        let head = format!("GET /v1/events HTTP/1.1\r\nHost: admin\r\n{fields}\r\n");
        stream.write_all(head.as_bytes()).await.expect("it is sent");
        let mut reader = Self { stream, text: String::new() };
        reader.until("retry: 2000").await;
        assert!(reader.text.starts_with("HTTP/1.1 200 OK\r\n") && reader.text.contains("text/event-stream"));
        reader
    }

    /// Reads on until `part` has come.
    async fn until(&mut self, part: &str) {
        while !self.text.contains(part) {
            let mut bytes = [0; 4096];
            let read = tokio::time::timeout(SOON, self.stream.read(&mut bytes)).await;
            let length = read.unwrap_or_else(|_| panic!("no {part:?} in {:?}", self.text)).expect("a stream");
            assert!(length > 0, "the stream ended before {part:?}: {:?}", self.text);
            self.text.push_str(&String::from_utf8_lossy(&bytes[..length]));
        }
    }
}

fn tell(bench: &Bench, what: &str) {
    let news = News { who: "tests".into(), what: what.into(), ..News::default() };
    bench.store.events().tell("config.reloaded", news);
}

#[tokio::test]
async fn changes_are_streamed_as_they_happen() {
    let bench = Bench::start().await;
    tell(&bench, "before");
    let mut reader = Reader::start(&bench, "").await;
    bench.expect(200, "PATCH", "/v1/upstreams/app/backends/app-1?reason=why", r#"{"admin":"drain"}"#).await;
    reader.until("\"why\":\"why\"}\n\n").await;
    let id = EventId { epoch: Some(bench.store.events().epoch()), number: 2 };
    let begins = format!("id: {id}\nevent: backend.changed\ndata: {{\"id\":2,");
    assert!(reader.text.contains(&begins), "{}", reader.text);
    assert!(!reader.text.contains("before"), "without an id it begins now");
    let data = reader.text.split("data: ").nth(1).and_then(|rest| rest.lines().next()).expect("data");
    let Ok(document) = document() else { panic!("a document") };
    let value = serde_json::from_str(data).expect("JSON");
    assert_eq!(fits(&document, &schema("Event"), &value), Ok(()));
}

#[tokio::test]
async fn a_reader_goes_on_after_the_event_it_names() {
    let bench = Bench::start().await;
    for number in 1..=5 {
        tell(&bench, &format!("number {number}"));
    }
    let mut reader = Reader::start(&bench, "Last-Event-ID: 3\r\n").await;
    reader.until("number 5").await;
    assert!(reader.text.contains("number 4") && !reader.text.contains("number 3") && !reader.text.contains("missed"));
    let mut all = Reader::start(&bench, "Last-Event-ID: 0\r\n").await;
    all.until("number 5").await;
    assert!(all.text.contains("number 1"));
    let mut other = Reader::start(&bench, "Last-Event-ID: 4000\r\n").await;
    other.until("number 5").await;
    assert!(other.text.contains("event: missed\ndata: {\"missed\":null}\n\n"), "of a process before: {}", other.text);
    let id = all.text.lines().filter_map(|line| line.strip_prefix("id: ")).nth(2).expect("a third").to_owned();
    let mut same = Reader::start(&bench, &format!("Last-Event-ID: {id}\r\n")).await;
    same.until("number 5").await;
    assert!(!same.text.contains("number 3") && !same.text.contains("missed"), "{}", same.text);
    // The same number of another row: it says nothing about this one.
    let (_, number) = id.split_once('-').expect("a row and a number");
    let mut before = Reader::start(&bench, &format!("Last-Event-ID: 18f-{number}\r\n")).await;
    before.until("number 5").await;
    assert!(before.text.contains("event: missed\ndata: {\"missed\":null}\n\n") && before.text.contains("number 1"));
    let wrong = bench.ask_with("GET", "/v1/events", "Last-Event-ID: first\r\n", "").await;
    assert_eq!(wrong.status, 400);
}

#[tokio::test]
async fn what_is_not_kept_any_more_is_said_to_be_missed() {
    let bench = Bench::start().await;
    for number in 0..KEPT + 10 {
        tell(&bench, &format!("number {number}."));
    }
    let mut reader = Reader::start(&bench, "Last-Event-ID: 3\r\n").await;
    reader.until(&format!("number {}.", KEPT + 9)).await;
    assert!(reader.text.contains("event: missed\ndata: {\"missed\":7}\n\n"), "{}", &reader.text[..2000]);
    assert_eq!(reader.text.matches("event: config.reloaded").count(), KEPT);
}

#[tokio::test]
async fn a_reader_that_does_not_read_is_cut_and_gives_its_place_back() {
    let limits = Limits { streams: 1, write: Duration::from_millis(200), ..Limits::default() };
    let bench = Bench::with(limits, None).await;
    let stuck = Reader::start(&bench, "").await;
    let refused = bench.ask("GET", "/v1/events", "").await;
    assert_eq!((refused.status, refused.problem().0.as_str()), (503, "too-many-streams"));
    // More than the sockets hold, until it is cut; what it does not take is not kept for it.
    let long = "x".repeat(4096);
    let deadline = tokio::time::Instant::now() + SOON;
    loop {
        for _ in 0..64 {
            tell(&bench, &long);
        }
        let mut stream = bench.connect().await;
        stream.write_all(b"GET /v1/events HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("it is sent");
        let mut head = [0; 12];
        stream.read_exact(&mut head).await.expect("an answer");
        if &head == b"HTTP/1.1 200" {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "the stuck reader still has its place");
    }
    drop(stuck);
}

#[tokio::test]
async fn readers_of_events_take_no_place_from_others() {
    let limits = Limits { connections: 1, streams: 3, ..Limits::default() };
    let bench = Bench::with(limits, None).await;
    let readers = [Reader::start(&bench, "").await, Reader::start(&bench, "").await, Reader::start(&bench, "").await];
    bench.expect(200, "GET", "/v1/status", "").await;
    drop(readers);
    let mut answered = 0;
    let deadline = tokio::time::Instant::now() + SOON;
    while answered != 200 {
        assert!(tokio::time::Instant::now() < deadline, "places of readers who left are free again");
        let head = "GET /v1/events HTTP/1.1\r\nHost: a\r\n\r\n";
        let mut stream = bench.connect().await;
        stream.write_all(head.as_bytes()).await.expect("it is sent");
        let mut line = [0; 12];
        stream.read_exact(&mut line).await.expect("an answer");
        answered = String::from_utf8_lossy(&line[9..]).parse().expect("a status");
    }
}

#[tokio::test]
async fn a_quiet_stream_shows_that_it_lives_and_ends_with_the_process() {
    let limits = Limits { heartbeat: Duration::from_millis(20), ..Limits::default() };
    let bench = Bench::with(limits, None).await;
    let mut reader = Reader::start(&bench, "").await;
    reader.until(": still here\n\n").await;
    let head = raw(bench.connect().await, &request("HEAD", "/v1/events", "", "")).await;
    documented("HEAD", "/v1/events", &head);
    bench.close.send_replace(true);
    let mut rest = Vec::new();
    tokio::time::timeout(SOON, reader.stream.read_to_end(&mut rest)).await.expect("it ends").expect("in order");
    assert!(rest.ends_with(b"0\r\n\r\n"), "the body is whole: {:?}", String::from_utf8_lossy(&rest));
    until("the service ends", || bench.served.is_finished()).await;
}

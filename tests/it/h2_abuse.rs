//! HTTP/2 clients that cost work and carry nothing: each is told to go or cut off, is counted, and costs the others
//! nothing.

use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::support::{
    eventually,
    frames::{
        ACK, CONTINUATION, DATA, END_HEADERS, END_STREAM, Ended, HEADERS, PING, PREFACE, PRIORITY, Raw, SETTINGS,
        block, frame, get, post, reset, settings, window,
    },
    http2::{self, Client2},
    metrics::Scrape,
    origin::Origin,
    proxy::{Config, Proxy},
    wait_until,
};

const PROTOCOL_ERROR: u32 = 1;
const STREAM_CLOSED: u32 = 5;
const CALM: u32 = 11;
/// Attackers at a time.
const CONNECTIONS: usize = 8;
/// Waves each would send, if it were let.
const WAVES: u32 = 200;
/// Between the waves of those who let their streams be accepted first.
const PACE: Duration = Duration::from_millis(2);
/// What all of them together may leave behind.
const MEMORY: u64 = 48 << 20;

async fn before(origin: &Origin, limits: &str) -> Proxy {
    let yaml = "listeners: [{ address: <listen>, h2c: true, limits: { <limits> } }]";
    Config::before(&[origin], yaml).put("limits", limits).start().await
}

fn streams(wave: u32, each: u32) -> impl Iterator<Item = u32> {
    (0..each).map(move |number| (wave * each + number) * 2 + 1)
}

/// Many such clients at once, and one who wants only an answer.
async fn withstands(kinds: &str, values: &'static [(u16, u32)], wave: fn(u32) -> Vec<u8>) -> Vec<Ended> {
    withstands_at(Duration::ZERO, kinds, values, wave).await
}

/// As [`withstands`], of attackers who take their time.
async fn withstands_at(
    pace: Duration,
    kinds: &str,
    values: &'static [(u16, u32)],
    wave: fn(u32) -> Vec<u8>,
) -> Vec<Ended> {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "header_timeout: 10s").await;
    let good = Client2::prior(proxy.listen).await;
    assert_eq!(good.get("/before").await.text(), "a");
    let (memory, cpu) = (proxy.resident(), proxy.cpu());
    let mut attackers = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let listen = proxy.listen;
        attackers.spawn(async move { Raw::begin(listen, values).await.flood(WAVES, pace, wave).await });
    }
    let mut ended = Vec::new();
    while let Some(end) = attackers.join_next().await {
        ended.push(end.expect("an attacker's report"));
        let asked = Instant::now();
        assert_eq!(good.get("/meanwhile").await.text(), "a");
        assert!(asked.elapsed() < Duration::from_secs(5), "others waited {:?}", asked.elapsed());
    }
    #[expect(clippy::cast_precision_loss, reason = "a small number")]
    let all = CONNECTIONS as f64;
    let kinds: Vec<_> = kinds.split('|').collect();
    let counted = |scrape: &Scrape| -> f64 {
        kinds.iter().map(|kind| scrape.sum("rrlb_h2_abuse_total", &[&format!("kind=\"{kind}\"")])).sum()
    };
    eventually("every connection to be counted", async || proxy.scrape().await.sum("rrlb_h2_abuse_total", &[]) == all)
        .await;
    let scrape = proxy.scrape().await;
    let abuse: Vec<_> = scrape.samples("rrlb_h2_abuse_total").filter(|(_, count)| *count > 0.0).collect();
    assert_eq!(counted(&scrape), all, "{abuse:?}, not {kinds:?}");
    // Each is counted before it is logged.
    proxy.logged("ended an HTTP/2 connection of 127.0.0.1").await;
    let ends = |line: &&str| kinds.iter().any(|kind| line.contains(&format!("HTTP/2 connection of 127.0.0.1: {kind}")));
    let lines = proxy.stderr().lines().filter(ends).count();
    assert!((1..=CONNECTIONS).contains(&lines), "{lines} lines\n{}", proxy.stderr());
    assert!(!proxy.stderr().contains("panicked"), "{}", proxy.stderr());
    let grown = proxy.resident().saturating_sub(memory);
    assert!(grown < MEMORY, "{kinds:?}: {} KiB more", grown >> 10);
    let spent = proxy.cpu() - cpu;
    assert!(spent < Duration::from_secs(8), "{kinds:?}: {spent:?} of CPU");
    assert_eq!(good.get("/after").await.text(), "a");
    ended
}

/// Who read on saw why; of those whose socket was full, some lose it to the reset of the connection.
fn told(ended: &[Ended], codes: impl IntoIterator<Item = u32>) {
    let codes: Vec<_> = codes.into_iter().collect();
    for end in ended {
        assert!(end.goaway.as_ref().is_none_or(|(code, _)| codes.contains(code)), "{end:?}");
    }
    assert!(ended.iter().any(|end| end.goaway.is_some()), "{ended:?}");
}

#[tokio::test]
async fn rapid_reset_is_ended() {
    let ended = withstands("reset", &[], |wave| {
        streams(wave, 50).flat_map(|stream| [get(stream, "/hold"), reset(stream)].concat()).collect()
    });
    told(&ended.await, [CALM]);
}

#[tokio::test]
async fn rapid_reset_of_streams_that_are_served_is_ended() {
    // Each stream is reset a wave later, when it has been accepted: the h2 crate does not count these.
    let ended = withstands_at(PACE, "reset", &[], |wave| {
        let last = wave.checked_sub(1).into_iter().flat_map(|last| streams(last, 10)).flat_map(reset);
        last.chain(streams(wave, 10).flat_map(|stream| get(stream, "/hold"))).collect()
    });
    told(&ended.await, [CALM]);
}

#[tokio::test]
async fn made_you_reset_by_a_window_beyond_its_bounds_is_ended() {
    let ended = withstands("server_reset", &[], |wave| {
        streams(wave, 10).flat_map(|stream| [get(stream, "/hold"), window(stream, 0x7fff_ffff)].concat()).collect()
    });
    told(&ended.await, [CALM]);
}

#[tokio::test]
async fn made_you_reset_by_data_after_the_end_is_ended() {
    let ended = withstands("server_reset|protocol", &[], |wave| {
        streams(wave, 10).flat_map(|stream| [get(stream, "/hold"), frame(DATA, 0, stream, b"x")].concat()).collect()
    });
    told(&ended.await, [CALM, PROTOCOL_ERROR, STREAM_CLOSED]);
}

#[tokio::test]
async fn made_you_reset_by_a_priority_on_itself_is_ended() {
    let ended = withstands("server_reset|priority|protocol", &[], |wave| {
        let itself = |stream: u32| frame(PRIORITY, 0, stream, &[&stream.to_be_bytes()[..], &[0]].concat());
        streams(wave, 10).flat_map(|stream| [get(stream, "/hold"), itself(stream)].concat()).collect()
    });
    told(&ended.await, [CALM, PROTOCOL_ERROR, STREAM_CLOSED]);
}

#[tokio::test]
async fn made_you_reset_by_a_window_opened_by_nothing_is_ended() {
    let ended = withstands("protocol", &[], |wave| {
        streams(wave, 10).flat_map(|stream| [get(stream, "/hold"), window(stream, 0)].concat()).collect()
    });
    told(&ended.await, [PROTOCOL_ERROR]);
}

#[tokio::test]
async fn more_streams_than_allowed_are_refused_and_then_ended() {
    let ended =
        withstands("server_reset", &[], |wave| streams(wave, 50).flat_map(|stream| get(stream, "/hold")).collect());
    told(&ended.await, [CALM]);
}

#[tokio::test]
async fn a_continuation_flood_is_ended() {
    let ended = withstands("continuation", &[], |wave| match wave {
        0 => frame(HEADERS, END_STREAM, 1, &block("GET", "/")),
        _ => frame(CONTINUATION, 0, 1, &[]).repeat(100),
    });
    told(&ended.await, [CALM]);
}

#[tokio::test]
async fn settings_floods_are_ended() {
    told(&withstands("settings", &[], |_| settings(&[]).repeat(100)).await, [CALM]);
    told(&withstands("settings", &[], |_| settings(&[(4, 1000); 300]).repeat(10)).await, [CALM]);
}

#[tokio::test]
async fn an_acknowledgement_of_nothing_is_ended() {
    told(&withstands("protocol|settings", &[], |_| frame(SETTINGS, ACK, 0, &[])).await, [PROTOCOL_ERROR, CALM]);
}

#[tokio::test]
async fn ping_floods_are_ended() {
    told(&withstands("ping", &[], |_| frame(PING, 0, 0, &[7; 8]).repeat(100)).await, [CALM]);
    told(&withstands("ping", &[], |_| frame(PING, ACK, 0, &[7; 8]).repeat(100)).await, [CALM]);
}

#[tokio::test]
async fn what_is_under_way_when_we_end_a_connection_has_not_been_left_by_its_client() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "").await;
    let mut raw = Raw::begin(proxy.listen, &[]).await;
    raw.send(&get(1, "/hold")).await;
    wait_until("the request to be under way", || origin.total() == 1).await;
    raw.send(&frame(PING, 0, 0, &[7; 8]).repeat(200)).await;
    assert!(raw.read.read_to_end().await.goaway.is_some());
    assert_eq!(proxy.access_log(1).await[0]["reason"], "bad_request");
}

#[tokio::test]
async fn floods_of_priorities_and_unknown_frames_are_ended() {
    told(&withstands("priority", &[], |_| frame(PRIORITY, 0, 3, &[0, 0, 0, 0, 1]).repeat(100)).await, [CALM]);
    told(&withstands("priority", &[], |_| frame(0xee, 0, 0, &[1; 40]).repeat(100)).await, [CALM]);
}

#[tokio::test]
async fn a_window_update_flood_is_ended() {
    told(&withstands("window_update", &[], |_| window(0, 1).repeat(100)).await, [CALM]);
}

#[tokio::test]
async fn empty_data_is_ended() {
    let ended = withstands("data", &[], |wave| match wave {
        0 => post(1, "/"),
        _ => frame(DATA, 0, 1, &[]).repeat(100),
    });
    told(&ended.await, [CALM]);
}

#[tokio::test]
async fn a_header_list_that_unpacks_to_far_too_much_is_ended() {
    // One field of 4,000 bytes goes into the table; each byte after that repeats it.
    let ended = withstands("header_list", &[], |wave| {
        let mut bytes = block("GET", "/");
        bytes.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]); // a name of one byte, a value of 127 + 33 + 30 * 128
        bytes.extend([b'y'; 4000]);
        bytes.extend([0xbe; 8000]);
        frame(HEADERS, END_HEADERS | END_STREAM, wave * 2 + 1, &bytes)
    });
    told(&ended.await, [CALM]);
}

#[tokio::test]
async fn a_window_of_crumbs_is_ended() {
    let ended = withstands_at(PACE, "dribble", &[(4, 1)], |wave| match wave {
        0 => streams(0, 4).flat_map(|stream| get(stream, "/size/1000000")).collect(),
        _ => streams(0, 4).flat_map(|stream| window(stream, 1)).collect(),
    });
    told(&ended.await, [CALM]);
}

#[tokio::test]
async fn requests_that_are_none_end_the_connection() {
    let ended = withstands("malformed", &[], |wave| {
        // No authority.
        frame(HEADERS, END_HEADERS | END_STREAM, wave * 2 + 1, &[0x82, 0x86, 0x84])
    });
    let ended = ended.await;
    assert!(ended.iter().all(|end| end.answers <= 33), "{ended:?}");
    told(&ended, [CALM]);
}

#[tokio::test]
async fn a_window_that_stays_closed_ends_the_connection_and_the_memory_is_given_back() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "idle_timeout: 1s").await;
    let good = Client2::prior(proxy.listen).await;
    assert_eq!(good.get("/").await.text(), "a");
    let memory = proxy.resident();
    let mut attackers = JoinSet::new();
    for _ in 0..CONNECTIONS {
        let listen = proxy.listen;
        attackers.spawn(async move {
            let mut raw = Raw::begin(listen, &[(4, 0)]).await;
            raw.send(&streams(0, 100).flat_map(|stream| get(stream, "/size/10000000")).collect::<Vec<_>>()).await;
            raw.read.read_to_end().await
        });
    }
    let ended = attackers.join_all().await;
    assert!(ended.iter().all(|end| end.goaway.as_ref().is_some_and(|(code, _)| *code == CALM)), "{ended:?}");
    proxy.metric("rrlb_h2_abuse_total", &["kind=\"stall\""], |n| n >= 8.0).await;
    let grown = proxy.resident().saturating_sub(memory);
    assert!(grown < 48 << 20, "{} KiB more", grown >> 10); // 800 answers under way, of each 16 KiB and what serves it
    wait_until("the origin's connections to be given up", || origin.open() < 64).await;
    assert_eq!(Client2::prior(proxy.listen).await.get("/").await.text(), "a");
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "idle_timeout: 1s").await;
    let memory = proxy.resident();
    let mut raw = Raw::begin(proxy.listen, &[(4, 0x7fff_ffff)]).await;
    raw.send(&window(0, 0x7fff_0000)).await;
    raw.send(&streams(0, 100).flat_map(|stream| get(stream, "/size/100000000")).collect::<Vec<_>>()).await;
    proxy.metric("rrlb_h2_abuse_total", &["kind=\"stall\""], |n| n == 1.0).await;
    let grown = proxy.resident().saturating_sub(memory);
    assert!(grown < 64 << 20, "{} KiB more", grown >> 10);
    proxy.metric("rrlb_connections_open", &[], |n| n == 0.0).await;
}

#[tokio::test]
async fn what_is_begun_and_not_finished_is_ended() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "header_timeout: 1s, idle_timeout: 60s").await;
    let begun = Instant::now();
    let mut no_preface = Raw::silent(proxy.listen).await;
    no_preface.send(b"PRI * HTTP/2.0\r\n").await;
    let mut no_settings = Raw::silent(proxy.listen).await;
    no_settings.send(PREFACE).await;
    let mut half_settings = Raw::silent(proxy.listen).await;
    half_settings.send(&[PREFACE, &settings(&[(4, 1)])[..12]].concat()).await;
    let mut half_block = Raw::begin(proxy.listen, &[]).await;
    // A request under way keeps the connection from being idle.
    half_block.send(&get(1, "/hold")).await;
    half_block.send(&frame(HEADERS, END_STREAM, 3, &block("GET", "/"))).await;
    let mut half_frame = Raw::begin(proxy.listen, &[]).await;
    half_frame.send(&[get(1, "/hold"), get(3, "/")[..15].to_vec()].concat()).await;
    for (what, raw) in [
        ("preface", &mut no_preface),
        ("no settings", &mut no_settings),
        ("half settings", &mut half_settings),
        ("half a block", &mut half_block),
        ("half a frame", &mut half_frame),
    ] {
        let ended = raw.read.read_to_end().await;
        assert!(begun.elapsed() < Duration::from_secs(4), "{what}: {ended:?} after {:?}", begun.elapsed());
        let calm = ended.goaway.as_ref().is_some_and(|(code, _)| *code == CALM);
        assert!(calm || what == "preface", "{what}: {ended:?}");
    }
    proxy.metric("rrlb_h2_abuse_total", &["kind=\"header_timeout\""], |n| n == 4.0).await;
}

#[tokio::test]
async fn an_idle_connection_is_closed_in_order_though_it_pings() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "idle_timeout: 500ms").await;
    let raw = Raw::begin(proxy.listen, &[]).await;
    let ended = raw.flood(40, Duration::from_millis(50), |_| frame(PING, 0, 0, &[1; 8]));
    assert_eq!(ended.await.goaway.map(|(code, _)| code), Some(0));
    assert_eq!(proxy.scrape().await.sum("rrlb_h2_abuse_total", &[]), 0.0);
}

#[tokio::test]
async fn a_busy_client_is_no_attacker() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "header_timeout: 10s").await;
    let client = Client2::prior(proxy.listen).await;
    for _ in 0..1000 {
        assert_eq!(client.get("/").await.text(), "a");
    }
    assert_eq!(client.get("/size/20000000").await.body.len(), 20_000_000);
    // Half of all answers are given up half way, as browsers do.
    for _ in 0..150 {
        let (response, _) = client.open(http2::request("GET", "/size/1000000"), true).await.expect("a stream");
        drop(response.await.expect("an answer"));
        assert_eq!(client.get("/").await.text(), "a");
    }
    assert_eq!(proxy.scrape().await.sum("rrlb_h2_abuse_total", &[]), 0.0);
}

#[tokio::test]
async fn what_is_neither_http1_nor_http2_gets_goaway_where_both_are_spoken() {
    let origin = Origin::echo("a").await;
    let proxy = before(&origin, "header_timeout: 10s").await;
    let mut raw = Raw::silent(proxy.listen).await;
    raw.send(b"INVALID CONNECTION PREFACE\r\n\r\n").await;
    assert_eq!(raw.read.read_to_end().await.goaway.map(|(code, _)| code), Some(1));
}

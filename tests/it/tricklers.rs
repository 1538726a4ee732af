//! Thousands of clients who send a byte now and then: everyone else is served, the memory for each of them is bounded, and
//! all are gone soon after the deadline, and most of their memory with them.

use std::{
    net::SocketAddr,
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::Semaphore,
    task::JoinSet,
};
use tokio_rustls::TlsConnector;

use crate::support::{
    address, eventually,
    frames::{ACK, HEADERS, PREFACE, SETTINGS, block, frame, settings},
    http1::Client,
    origin::Origin,
    proxy::{Config, Proxy},
    run,
    tls::Ca,
};

/// What is measured of 300 clients that is not theirs: buffers made once, pages that the allocator takes ahead.
const SLACK: u64 = 8 << 20;
/// The share of the memory for them that may stay: what is in use has come to lie on more pages, and the C library that
/// encrypts keeps some.
const REST: u64 = 5;

/// What trickles.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    /// The head of a request.
    Plain,
    /// The same within TLS.
    Secure,
    /// A ClientHello.
    Handshake,
    /// A HEADERS frame.
    Http2,
}

/// `RRLB_TEST_TRICKLERS=5000` is the long form; both processes need as many descriptors. `most`: bytes for each.
async fn trickle(kind: Kind, most: u64) {
    let count: usize = std::env::var("RRLB_TEST_TRICKLERS").ok().and_then(|n| n.parse().ok()).unwrap_or(300);
    // They all have to be there at once, and handshakes take their time.
    let timeout = Duration::from_secs(3) + Duration::from_millis(count as u64 * 4);
    let (origin, ca) = (Origin::echo("a").await, Ca::new());
    let yaml = "
        certificates: { main: <main> }
        x-limits: &limits { header_timeout: <timeout>, handshake_timeout: <timeout> }
        listeners:
          - { address: <listen>, h2c: true, limits: *limits }
          - { address: \"<secure>\", tls: { certificates: [main] }, limits: *limits }";
    let secure = address::unused();
    let config =
        Config::before(&[&origin], yaml).put("secure", secure).put("timeout", format!("{}ms", timeout.as_millis()));
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    let tls = ca.client(&["http/1.1"]);
    Client::tls(secure, "a.test", &tls).await.get("/").await;
    let mut client = proxy.client().await;
    assert_eq!(client.get("/").await.status(), 200);
    let before = proxy.resident();
    let (mut tricklers, listen) = (JoinSet::new(), proxy.listen);
    let coming = Arc::new(Semaphore::new(64));
    for _ in 0..count {
        let (tls, coming) = (tls.clone(), coming.clone());
        tricklers.spawn(async move {
            let permit = coming.acquire().await;
            let mut client = match kind {
                Kind::Plain | Kind::Http2 => Client::connect(listen).await,
                Kind::Handshake => Client::connect(secure).await,
                Kind::Secure => Client::tls(secure, "a.test", &tls).await,
            };
            let begun = Instant::now();
            let (first, drip) = match kind {
                Kind::Plain | Kind::Secure => (b"GET / HTTP/1.1\r\nHost: a.test\r\nX-Drip: ".to_vec(), b"x"),
                // A record of 512 bytes, of which a message of 508.
                Kind::Handshake => (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03".to_vec(), b"x"),
                Kind::Http2 => {
                    let headers = frame(HEADERS, 5, 1, &[block("GET", "/"), vec![b'x'; 4000]].concat());
                    let acknowledged = frame(SETTINGS, ACK, 0, &[]);
                    ([PREFACE, &settings(&[]), &acknowledged, &headers[..20]].concat(), b"x")
                }
            };
            client.send(first).await;
            drop(permit);
            // A byte now and then, until the other side has closed.
            while tokio::time::timeout(Duration::from_millis(250), client.wire.rest()).await.is_err() {
                let _ = client.wire.send(drip).await;
            }
            begun.elapsed()
        });
    }
    let (mut slowest, mut served, mut peak, mut together) = (Duration::ZERO, 1, before, 0);
    while !tricklers.is_empty() {
        let begun = Instant::now();
        assert_eq!(client.get("/").await.status(), 200);
        assert_eq!(proxy.get("/").await.status(), 200);
        slowest = slowest.max(begun.elapsed());
        served += 2;
        let open = proxy.scrape().await.sum("rrlb_connections_open", &[]) as usize;
        (together, peak) = (together.max(open), peak.max(proxy.resident()));
        while let Some(gone) = tricklers.try_join_next() {
            let took = gone.expect("no panic");
            assert!(took < timeout + Duration::from_secs(2), "a trickler was gone only after {took:?}");
        }
    }
    // What is free is given back when the allocator is asked for something, a second later.
    let mut after = proxy.resident();
    eventually("memory to be given back", async || {
        served += 1;
        assert_eq!(client.get("/").await.status(), 200);
        after = after.min(proxy.resident());
        after < before + SLACK / 2 + (peak - before) / REST
    })
    .await;
    let each = (peak - before) / count as u64;
    println!(
        "{kind:?}: {count} tricklers, {together} connections at once; {served} requests of others served, the slowest in \
         {slowest:?}; resident {} KiB before, {} KiB at the peak ({each} bytes each), {} KiB after",
        before >> 10,
        peak >> 10,
        after >> 10
    );
    assert!(together >= count, "only {together} connections at once");
    assert!(served > 50 && slowest < Duration::from_secs(2), "{served} served, the slowest in {slowest:?}");
    assert!(peak - before < SLACK + most * count as u64, "{each} bytes for each");
    assert_eq!(origin.total(), served + 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_served_while_heads_trickle_and_the_tricklers_go_in_time() {
    trickle(Kind::Plain, 8 << 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_served_while_heads_trickle_within_tls_and_the_tricklers_go_in_time() {
    trickle(Kind::Secure, 16 << 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_served_while_handshakes_trickle_and_the_tricklers_go_in_time() {
    trickle(Kind::Handshake, 20 << 10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn others_are_served_while_frames_trickle_and_the_tricklers_go_in_time() {
    trickle(Kind::Http2, 48 << 10).await;
}

/// Of 2 MiB each, of which the kernel makes many where a few KiB are in use: memory would grow on, with no leak.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn memory_is_not_held_in_huge_pages() {
    let origin = Origin::echo("a").await;
    let proxy = Proxy::before(&[&origin]).await;
    assert_eq!(proxy.get("/").await.status(), 200);
    let of = |file: &str, name: &str| {
        let text = run::read(Path::new(&format!("/proc/{}/{file}", proxy.pid())));
        text.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
    };
    // Linux tells since 5.0.
    assert!(of("status", "THP_enabled:").is_none_or(|enabled| enabled == "0"));
    let huge: u64 = of("smaps_rollup", "AnonHugePages:")
        .and_then(|size| size.strip_suffix(" kB")?.parse().ok())
        .expect("a number of KiB");
    // Where the system makes them unasked, one may be there before our first instruction.
    assert!(huge <= 4 << 10, "{huge} KiB");
}

/// A client that is silent for so long before it shakes hands, and then sends `G` without an end; how long it was let.
async fn let_for_secure(to: SocketAddr, silent: Duration, config: &Arc<ClientConfig>) -> Duration {
    let stream = TcpStream::connect(to).await.expect("connect");
    let began = Instant::now();
    tokio::time::sleep(silent).await; // the client's pace
    let name = ServerName::try_from("a.test").expect("a name");
    let mut stream = TlsConnector::from(config.clone()).connect(name, stream).await.expect("a handshake");
    let mut scratch = [0; 1024];
    while stream.write_all(b"G").await.is_ok() && stream.flush().await.is_ok() {
        let read = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut scratch)).await;
        if matches!(read, Ok(Ok(0) | Err(_))) {
            break;
        }
    }
    began.elapsed()
}

/// A client that sends these bytes one by one and then `G` without an end; how long it was let.
async fn let_for(to: SocketAddr, bytes: &[u8]) -> Duration {
    let mut stream = TcpStream::connect(to).await.expect("connect");
    let began = Instant::now();
    let mut scratch = [0; 1024];
    for byte in bytes.iter().chain(std::iter::repeat(&b'G')) {
        if stream.write_all(&[*byte]).await.is_err() {
            break;
        }
        let read = tokio::time::timeout(Duration::from_millis(20), stream.read(&mut scratch)).await;
        if matches!(read, Ok(Ok(0) | Err(_))) {
            break;
        }
    }
    began.elapsed()
}

#[tokio::test]
async fn what_comes_before_a_head_wins_it_no_time() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let (timeout, secure) = (Duration::from_millis(1500), address::unused());
    let yaml = "
        certificates: { main: <main> }
        x-limits: &limits { header_timeout: 1500ms }
        listeners:
          - { address: <listen>, proxy_protocol: { from: 127.0.0.1 }, limits: *limits }
          - { address: <secure>, proxy_protocol: { from: 127.0.0.1 }, tls: { certificates: [main] }, limits: *limits }";
    let config = Config::before(&[&origin], yaml).put("secure", secure);
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    // Takes most of the time by itself.
    let header = b"PROXY TCP4 203.0.113.7 198.51.100.9 4242 443\r\n";
    let (plain, plain_on_tls) = tokio::join!(let_for(proxy.listen, header), let_for(secure, header));
    for (client, was_let) in [("plain text", plain), ("plain text on TLS", plain_on_tls)] {
        assert!(was_let >= timeout && was_let < timeout + Duration::from_millis(700), "{client}: {was_let:?}");
    }
}

#[tokio::test]
async fn a_handshake_wins_a_head_no_time() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let timeout = Duration::from_millis(1500);
    let yaml = "
        certificates: { main: <main> }
        listeners:
          - { address: <listen>, tls: { certificates: [main] }, limits: { header_timeout: 1500ms } }";
    let config = Config::before(&[&origin], yaml);
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    let silent = Duration::from_millis(1000);
    let (http1, http2) = (ca.client(&["http/1.1"]), ca.client(&["h2"]));
    // The beginning of a record that has a long ClientHello, at the pace of the others.
    let hello = [&b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03"[..], &[b'r'; 500]].concat();
    let (http1, http2, hello) = tokio::join!(
        let_for_secure(proxy.listen, silent, &http1),
        let_for_secure(proxy.listen, silent, &http2),
        let_for(proxy.listen, &hello),
    );
    for (client, was_let) in [("HTTP/1.1", http1), ("HTTP/2", http2), ("a ClientHello", hello)] {
        assert!(was_let < timeout + Duration::from_millis(700), "{client}: {was_let:?}");
    }
    assert!(http1 >= timeout && hello >= timeout, "{http1:?}, {hello:?}");
}

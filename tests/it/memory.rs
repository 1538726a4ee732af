//! What clients have cost in memory is given back when they have left, and nobody need come for it.

use tokio::task::JoinSet;

use crate::support::{
    eventually,
    http1::Client,
    http2::Client2,
    origin::Origin,
    proxy::{Config, Proxy},
};

/// What may stay: what is in use has come to lie on more pages.
const REST: u64 = 4 << 20;

async fn start(origin: &Origin) -> Proxy {
    let yaml = "listeners: [{ address: <listen>, h2c: true }]\ndefaults: { timeouts: { idle: 1s } }";
    let proxy = Config::before(&[origin], yaml).start().await;
    assert_eq!(proxy.get("/").await.status(), 200);
    assert_eq!(Client2::prior(proxy.listen).await.get("/").await.status, 200);
    proxy
}

/// Nobody asks for anything meanwhile.
async fn comes_back(proxy: &Proxy, before: u64, peak: u64, least: u64) {
    let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
    println!("{:.1} MiB before, {:.1} at the peak", mib(before), mib(peak));
    assert!(peak > before + least, "not worth giving back: {before}, {peak}");
    eventually("memory to come back", async || proxy.resident_own() < before + REST).await;
    println!("{:.1} MiB after", mib(proxy.resident_own()));
}

/// `RRLB_TEST_IDLE=10000` is the long form; both processes need as many descriptors.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn idle_http2_clients_that_leave_take_their_memory_along() {
    let count: usize = std::env::var("RRLB_TEST_IDLE").ok().and_then(|count| count.parse().ok()).unwrap_or(1000);
    let origin = Origin::echo("a").await;
    let proxy = start(&origin).await;
    let before = proxy.resident_own();
    let mut clients = Vec::new();
    for _ in 0..count {
        let client = Client2::prior(proxy.listen).await;
        assert_eq!(client.get("/").await.status, 200);
        clients.push(client);
    }
    let peak = proxy.resident_own();
    drop(clients);
    comes_back(&proxy, before, peak, 3 * REST).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_kept_for_large_bodies_is_kept_while_they_come() {
    let origin = Origin::echo("a").await;
    let proxy = start(&origin).await;
    let before = proxy.resident_own();
    let (mut clients, mut peak) = (JoinSet::new(), before);
    for _ in 0..64 {
        let listen = proxy.listen;
        clients.spawn(async move {
            let mut client = Client::connect(listen).await;
            let body = "x".repeat(300_000);
            for _ in 0..5 {
                let head = format!("POST / HTTP/1.1\r\nHost: a.test\r\nContent-Length: {}\r\n\r\n", body.len());
                assert_eq!(client.ask(head + &body).await.text(), body);
            }
        });
    }
    while let Some(done) = clients.join_next().await {
        done.expect("no panic");
        peak = peak.max(proxy.resident_own());
    }
    comes_back(&proxy, before, peak, REST).await;
}

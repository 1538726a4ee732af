//! Which backend a request goes to.

use std::{collections::BTreeMap, net::IpAddr};

use crate::{
    failures::reason,
    support::{
        address,
        http1::Client,
        origin::Origin,
        proxy::{Config, Proxy},
        tls::Ca,
        wait_until,
    },
};

/// One upstream `app` of these origins with weights.
fn weighted(backends: &[(&Origin, u32)], more: &str) -> Config {
    let list: String = backends
        .iter()
        .map(|(origin, weight)| {
            format!("      - {{ id: {}, address: \"{}\", weight: {weight} }}\n", origin.name, origin.address)
        })
        .collect();
    Config::new(&format!("upstreams:\n  app:\n    {more}\n    backends:\n{list}"))
}

async fn three() -> [Origin; 3] {
    [Origin::echo("a").await, Origin::echo("b").await, Origin::echo("c").await]
}

/// Origins of this many requests over one connection.
async fn order(client: &mut Client, requests: usize) -> String {
    let mut order = String::new();
    for _ in 0..requests {
        let reply = client.get("/").await;
        assert_eq!(reply.status(), 200, "{reply:?}");
        order.push_str(reply.origin());
    }
    order
}

/// Origins of this many requests over a connection each, counted.
async fn shares(proxy: &Proxy, requests: usize) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    for _ in 0..requests {
        *shares.entry(proxy.get("/").await.origin().to_owned()).or_default() += 1;
    }
    shares
}

#[tokio::test]
async fn weights_5_1_1_are_smooth() {
    let [a, b, c] = three().await;
    let proxy = weighted(&[(&a, 5), (&b, 1), (&c, 1)], "").start().await;
    let order = order(&mut proxy.client().await, 70).await;
    for cycle in 0..10 {
        let cycle = &order[cycle * 7..][..7];
        assert_eq!(
            (cycle.matches('a').count(), cycle.matches('b').count(), cycle.matches('c').count()),
            (5, 1, 1),
            "{order}"
        );
    }
    assert!(!order.contains("aaaaa"), "bursty: {order}");
    assert!(!order.contains("bc") && !order.contains("cb"), "the light ones come together: {order}");
}

#[tokio::test]
async fn equal_weights_take_turns() {
    let [a, b, c] = three().await;
    let proxy = Proxy::before(&[&a, &b, &c]).await;
    let order = order(&mut proxy.client().await, 30).await;
    for turn in 0..10 {
        assert_eq!(order[turn * 3..][..3], order[..3], "{order}");
    }
    let mut first: Vec<_> = order[..3].chars().collect();
    first.sort_unstable();
    assert_eq!(first, ['a', 'b', 'c']);
}

#[tokio::test]
async fn there_is_one_sequence_over_all_workers_and_connections() {
    let [a, b, c] = three().await;
    let proxy = weighted(&[(&a, 5), (&b, 1), (&c, 1)], "").start().await;
    let mut clients = Vec::new();
    for _ in 0..8 {
        clients.push(proxy.client().await);
    }
    for round in 0..14 {
        for client in &mut clients {
            client.get(&format!("/{round}")).await;
        }
    }
    assert_eq!((a.total(), b.total(), c.total()), (80, 16, 16));
    assert_eq!(shares(&proxy, 70).await, [("a", 50), ("b", 10), ("c", 10)].map(|(n, s)| (n.to_owned(), s)).into());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_are_exact_under_concurrent_load() {
    let [a, b, c] = three().await;
    let proxy = weighted(&[(&a, 3), (&b, 2), (&c, 1)], "").start().await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..12 {
        let at = proxy.listen;
        tasks.spawn(async move {
            let mut client = Client::connect(at).await;
            for _ in 0..50 {
                assert_eq!(client.get("/").await.status(), 200);
            }
        });
    }
    tasks.join_all().await;
    assert_eq!((a.total(), b.total(), c.total()), (300, 200, 100));
}

#[tokio::test]
async fn weight_zero_gets_no_new_requests() {
    let [a, b, c] = three().await;
    for balance in ["round_robin", "random", "least_requests", "ip_hash"] {
        let proxy = weighted(&[(&a, 1), (&b, 0), (&c, 1)], &format!("balance: {balance}")).start().await;
        shares(&proxy, 20).await;
        assert_eq!(b.total(), 0, "{balance}");
    }
}

#[tokio::test]
async fn weight_zero_gets_nothing_even_where_the_others_are_dead() {
    let [mut a, b, _c] = three().await;
    let proxy = weighted(&[(&a, 1), (&b, 0)], "").start().await;
    a.stop().await;
    assert_eq!(proxy.get("/").await.status(), 502);
    assert_eq!(b.total(), 0);
}

#[tokio::test]
async fn a_dead_backends_share_is_spread_over_the_others() {
    let [mut a, b, c] = three().await;
    let check = "health_check: { type: tcp, interval: 50ms, rise: 1, fall: 1 }";
    let proxy = weighted(&[(&a, 1), (&b, 1), (&c, 1)], check).start().await;
    a.stop().await;
    proxy.logged("down").await;
    wait_until("the dead backend to be known as down", || proxy.stderr().matches("down").count() >= 1).await;
    let (before_b, before_c) = (b.total(), c.total());
    shares(&proxy, 40).await;
    assert_eq!((b.total() - before_b, c.total() - before_c), (20, 20));
}

#[tokio::test]
async fn a_refusing_backends_share_is_spread_without_any_check() {
    let [mut a, b, c] = three().await;
    let proxy = Proxy::before(&[&a, &b, &c]).await;
    a.stop().await;
    let shares = shares(&proxy, 60).await;
    assert!(shares.values().all(|share| (24..=36).contains(share)), "given to a neighbour: {shares:?}");
    assert_eq!(b.total() + c.total(), 60);
}

#[tokio::test]
async fn no_backend_up_is_503_with_a_reason() {
    let [mut a, mut b, _c] = three().await;
    a.stop().await;
    b.stop().await;
    let check = "health_check: { type: tcp, interval: 50ms, rise: 1, fall: 1 }";
    for balance in ["round_robin", "random", "least_requests", "ip_hash"] {
        let more = format!("{check}\n    balance: {balance}");
        let mut proxy = weighted(&[(&a, 1), (&b, 1)], &more).start().await;
        let reply = proxy.get("/").await;
        assert_eq!(reply.status(), 503, "{balance}: {reply:?}");
        assert!(!reason(&proxy, &reply).await.is_empty());
        assert!(proxy.running());
    }
}

#[tokio::test]
async fn random_uses_every_backend() {
    let [a, b, c] = three().await;
    let proxy = weighted(&[(&a, 1), (&b, 1), (&c, 1)], "balance: random").start().await;
    let shares = shares(&proxy, 120).await;
    assert!(shares.len() == 3 && shares.values().all(|share| *share >= 15), "{shares:?}");
}

#[tokio::test]
async fn least_requests_avoids_the_busy_backend() {
    let [a, b, _c] = three().await;
    let proxy = weighted(&[(&a, 1), (&b, 1)], "balance: least_requests").start().await;
    let mut waiting = Vec::new();
    for _ in 0..4 {
        let mut client = proxy.client().await;
        client.send(crate::support::http1::get("/hold")).await;
        waiting.push(client);
    }
    wait_until("the held requests to be spread", || a.total() == 2 && b.total() == 2).await;
    a.release();
    let mut quick = 0;
    for client in &mut waiting {
        if let Ok(reply) = tokio::time::timeout(std::time::Duration::from_millis(500), client.response()).await {
            assert_eq!(reply.origin(), "a");
            quick += 1;
        }
    }
    assert_eq!(quick, 2);
    let before = b.total();
    shares(&proxy, 10).await;
    assert_eq!(b.total(), before, "the busy backend got new requests");
}

#[tokio::test]
async fn ip_hash_keeps_a_client_at_its_backend() {
    let [a, b, c] = three().await;
    let proxy = weighted(&[(&a, 1), (&b, 1), (&c, 1)], "balance: ip_hash").start().await;
    let mut used = BTreeMap::<String, usize>::new();
    for last in 1..=30 {
        let from: IpAddr = [127, 0, 1, last].into();
        let mut origins = Vec::new();
        for _ in 0..3 {
            let reply = Client::connect_from(from, proxy.listen).await.get("/").await;
            origins.push(reply.origin().to_owned());
        }
        origins.dedup();
        assert_eq!(origins.len(), 1, "{from} moved");
        *used.entry(origins.remove(0)).or_default() += 1;
    }
    assert_eq!(used.len(), 3, "{used:?}");
}

#[tokio::test]
async fn http2_streams_are_balanced_one_by_one() {
    let (ca, [a, b, c]) = (Ca::new(), three().await);
    let yaml = "
        certificates: { main: <main> }
        listeners: [{ address: <listen>, tls: { certificates: [main] } }]";
    let config = Config::before(&[&a, &b, &c], yaml);
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    let client = crate::support::http2::Client2::tls(proxy.listen, "a.test", &ca.client(&["h2"])).await;
    for _ in 0..30 {
        assert_eq!(client.get("/").await.status, 200);
    }
    assert_eq!((a.total(), b.total(), c.total()), (10, 10, 10));
}

#[tokio::test]
async fn backends_that_never_existed_are_no_panic() {
    let dead = address::unused();
    let yaml = "upstreams: { app: { backends: [\"<dead>\"] } }";
    let mut proxy = Config::new(yaml).put("dead", dead).start().await;
    for _ in 0..5 {
        assert_eq!(proxy.get("/").await.status(), 502);
    }
    assert!(proxy.running() && !proxy.stderr().contains("panicked"));
}

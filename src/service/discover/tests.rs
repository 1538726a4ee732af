//! Discovery against a DNS server on loopback that says what the test wants, and against files.

use std::{
    collections::{BTreeMap, HashMap},
    net::{Ipv4Addr, SocketAddr},
    path::Path,
    sync::Mutex,
};

use hickory_resolver::proto::{
    op::{Message, ResponseCode},
    rr::{Name as DnsName, RData, Record, RecordType, rdata},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, UdpSocket},
    time::Instant,
};

use super::*;
use crate::{
    config::model,
    runtime::{journal::Overrides, membership::Entry, upstream::fixtures},
    telemetry::{events::Events, metrics::Metrics},
    types::Source,
};

/// What the server does with a question.
#[derive(Clone)]
enum Reply {
    /// TTL in seconds, and the records.
    Answer(u32, Vec<RData>),
    Code(ResponseCode),
    /// An answer over UDP with the truncation bit; the records over TCP.
    OverTcp(Vec<RData>),
    Silence,
}

type Zone = Arc<Mutex<HashMap<(String, RecordType), Reply>>>;
type Asked = Arc<Mutex<Vec<(String, RecordType)>>>;

struct Server {
    address: SocketAddr,
    zone: Zone,
    asked: Asked,
}

impl Server {
    /// Knows no name.
    async fn start() -> Self {
        // A free port for both transports.
        let (udp, tcp) = loop {
            let tcp = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
            if let Ok(udp) = UdpSocket::bind(tcp.local_addr().expect("bound")).await {
                break (udp, tcp);
            }
        };
        let server = Self { address: udp.local_addr().expect("bound"), zone: Zone::default(), asked: Asked::default() };
        let (zone, asked) = (server.zone.clone(), server.asked.clone());
        tokio::spawn(async move {
            let mut buffer = [0; 4096];
            while let Ok((length, from)) = udp.recv_from(&mut buffer).await {
                if let Some(answer) = answer(&buffer[..length], &zone, &asked, false) {
                    let _ = udp.send_to(&answer, from).await;
                }
            }
        });
        let (zone, asked) = (server.zone.clone(), server.asked.clone());
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = tcp.accept().await {
                let (zone, asked) = (zone.clone(), asked.clone());
                tokio::spawn(async move {
                    while let Ok(length) = stream.read_u16().await {
                        let mut question = vec![0; length.into()];
                        stream.read_exact(&mut question).await.expect("a question");
                        let Some(answer) = answer(&question, &zone, &asked, true) else { continue };
                        stream.write_u16(answer.len().try_into().expect("it fits")).await.expect("writes");
                        stream.write_all(&answer).await.expect("writes");
                    }
                });
            }
        });
        server
    }

    fn says(&self, name: &str, kind: RecordType, reply: Reply) {
        self.zone.lock().expect("no panic").insert((name.into(), kind), reply);
    }

    /// A name with IPv4 addresses and no others.
    fn has_v4(&self, name: &str, ttl: u32, last: &[u8]) {
        self.says(name, RecordType::A, Reply::Answer(ttl, last.iter().map(|last| v4(*last)).collect()));
        self.says(name, RecordType::AAAA, Reply::Answer(ttl, Vec::new()));
    }

    fn both(&self, name: &str, reply: &Reply) {
        self.says(name, RecordType::A, reply.clone());
        self.says(name, RecordType::AAAA, reply.clone());
    }

    fn count(&self, name: &str, kind: RecordType) -> usize {
        let asked = self.asked.lock().expect("no panic");
        asked.iter().filter(|(asked, asked_kind)| asked == name && *asked_kind == kind).count()
    }
}

fn answer(question: &[u8], zone: &Zone, asked: &Asked, tcp: bool) -> Option<Vec<u8>> {
    let mut message = Message::from_vec(question).expect("a message").into_response();
    let query = message.queries.first()?.clone();
    let (name, kind) = (query.name().to_string(), query.query_type());
    asked.lock().expect("no panic").push((name.clone(), kind));
    let reply = zone.lock().expect("no panic").get(&(name, kind)).cloned();
    let mut fill = |ttl: u32, data: Vec<RData>| {
        message.add_answers(data.into_iter().map(|data| Record::from_rdata(query.name().clone(), ttl, data)));
    };
    match reply {
        Some(Reply::Answer(ttl, data)) => fill(ttl, data),
        Some(Reply::Code(code)) => message.metadata.response_code = code,
        Some(Reply::OverTcp(data)) if tcp => fill(60, data),
        Some(Reply::OverTcp(_)) => message.metadata.truncation = true,
        Some(Reply::Silence) => return None,
        None => message.metadata.response_code = ResponseCode::NXDomain,
    }
    Some(message.to_vec().expect("it can be written"))
}

fn v4(last: u8) -> RData {
    RData::A(rdata::A(Ipv4Addr::new(192, 0, 2, last)))
}

fn v6(last: u16) -> RData {
    RData::AAAA(rdata::AAAA([0x2001, 0xdb8, 0, 0, 0, 0, 0, last].into()))
}

fn srv(priority: u16, weight: u16, port: u16, target: &str) -> RData {
    RData::SRV(rdata::SRV::new(priority, weight, port, DnsName::from_ascii(target).expect("a name")))
}

const HOUR: Duration = Duration::from_secs(3600);
const SECOND: Duration = Duration::from_secs(1);

fn addresses(name: &str, refresh: Duration, servers: &[SocketAddr]) -> Discover {
    let records = DnsRecords::Addresses { port: 80 };
    Discover::Dns(DiscoverDns { name: name.into(), records, refresh, servers: servers.to_vec() })
}

fn service(name: &str, servers: &[SocketAddr]) -> Discover {
    Discover::Dns(DiscoverDns {
        name: name.into(),
        records: DnsRecords::Srv,
        refresh: SECOND,
        servers: servers.to_vec(),
    })
}

fn list(path: &Path) -> Discover {
    Discover::List(DiscoverList { path: path.to_owned(), refresh: Duration::from_millis(100) })
}

fn model(upstreams: &[(&str, Discover)]) -> Arc<Model> {
    let upstream = |(name, discover): &(&str, Discover)| {
        let upstream = model::Upstream { discover: Some(discover.clone()), ..fixtures::upstream(name, &[]) };
        (Name::from(*name), upstream)
    };
    Arc::new(Model {
        process: fixtures::process(),
        certificates: BTreeMap::new(),
        listeners: Vec::new(),
        upstreams: upstreams.iter().map(upstream).collect(),
        routes: Vec::new(),
        trusted_proxies: Vec::new(),
        via: None,
        engine: model::Engine::default(),
        access_log: None,
        metrics: None,
        state_file: None,
        admin: None,
        reload_on_change: false,
    })
}

struct Running {
    store: Arc<Store>,
    configs: watch::Sender<Arc<Model>>,
    first_round: FirstRound,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
}

fn run(model: Arc<Model>) -> Running {
    let metrics = Arc::new(Metrics::new("test", 1));
    let store = Arc::new(Store::new(model.clone(), Overrides::new(), None, metrics, Arc::new(Events::default())));
    let (configs, receiver) = watch::channel(model);
    let (service, first_round) = Discovery::new(store.clone(), receiver);
    let (stop, shutdown) = watch::channel(false);
    let task = tokio::spawn(async move { service.start(shutdown).await });
    Running { store, configs, first_round, stop, task }
}

impl Running {
    fn entries(&self, upstream: &str) -> Vec<Entry> {
        self.store.view(&upstream.into()).expect("an upstream").membership.entries()
    }

    /// `id*weight` of each backend.
    fn shares(&self, upstream: &str) -> Vec<String> {
        self.entries(upstream).iter().map(|entry| format!("{}*{}", entry.id, entry.spec.weight.value())).collect()
    }

    fn ids(&self, upstream: &str) -> Vec<String> {
        self.entries(upstream).iter().map(|entry| entry.id.to_string()).collect()
    }

    fn failed(&self, upstream: &str) -> u64 {
        self.store.metrics().discovery(&upstream.into()).failed.value()
    }

    fn found(&self, upstream: &str) -> u64 {
        self.store.metrics().discovery(&upstream.into()).found.value()
    }

    async fn has(&self, upstream: &str, ids: &[&str]) {
        until(&format!("{ids:?}"), || self.ids(upstream) == ids).await;
    }

    fn reload(&self, model: Arc<Model>) {
        self.store.reload(model.clone());
        self.configs.send_replace(model);
    }

    async fn end(self) {
        self.stop.send(true).expect("it listens");
        self.task.await.expect("no panic");
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

#[tokio::test]
async fn addresses_of_both_families_are_backends() {
    let server = Server::start().await;
    server.says("app.test.", RecordType::A, Reply::Answer(60, vec![v4(2), v4(1)]));
    server.says("app.test.", RecordType::AAAA, Reply::Answer(60, vec![v6(1)]));
    let mut running = run(model(&[("app", addresses("app.test", HOUR, &[server.address]))]));
    running.first_round.finished().await;
    assert_eq!(running.shares("app"), ["192.0.2.1:80*1", "192.0.2.2:80*1", "[2001:db8::1]:80*1"]);
    assert!(running.entries("app").iter().all(|entry| entry.source == Source::Dns));
    assert_eq!((running.found("app"), running.failed("app")), (1, 0));
    running.end().await;
}

#[tokio::test]
async fn a_short_ttl_is_asked_again_before_the_refresh_and_what_is_gone_leaves() {
    let server = Server::start().await;
    server.has_v4("app.test.", 1, &[1, 2]);
    let running = run(model(&[("app", addresses("app.test", HOUR, &[server.address]))]));
    running.has("app", &["192.0.2.1:80", "192.0.2.2:80"]).await;
    let started = Instant::now();
    server.has_v4("app.test.", 0, &[2, 3]);
    running.has("app", &["192.0.2.2:80", "192.0.2.3:80"]).await;
    assert!(started.elapsed() >= Duration::from_millis(800), "at least a second between lookups");
    server.has_v4("app.test.", 3600, &[3]);
    running.has("app", &["192.0.2.3:80"]).await;
    assert_eq!(server.count("app.test.", RecordType::A), 3);
    running.end().await;
}

#[tokio::test]
async fn the_refresh_is_kept_where_the_ttl_is_longer() {
    let server = Server::start().await;
    server.has_v4("app.test.", 86_400, &[1]);
    let running = run(model(&[("app", addresses("app.test", SECOND, &[server.address]))]));
    running.has("app", &["192.0.2.1:80"]).await;
    server.has_v4("app.test.", 86_400, &[2]);
    running.has("app", &["192.0.2.2:80"]).await;
    running.end().await;
}

#[tokio::test]
async fn an_outage_takes_nothing_away() {
    let server = Server::start().await;
    let outages = [
        ("empty", Reply::Answer(1, Vec::new())),
        ("gone", Reply::Code(ResponseCode::NXDomain)),
        ("broken", Reply::Code(ResponseCode::ServFail)),
        ("refusing", Reply::Code(ResponseCode::Refused)),
        ("silent", Reply::Silence),
        ("blocked", Reply::Answer(1, vec![RData::A(rdata::A(Ipv4Addr::UNSPECIFIED))])),
    ];
    let upstreams: Vec<(&str, Discover)> = outages
        .iter()
        .map(|(name, _)| {
            server.has_v4(&format!("{name}.test."), 1, &[1, 2]);
            (*name, addresses(&format!("{name}.test"), SECOND, &[server.address]))
        })
        .collect();
    let running = run(model(&upstreams));
    for (name, outage) in &outages {
        running.has(name, &["192.0.2.1:80", "192.0.2.2:80"]).await;
        server.both(&format!("{name}.test."), outage);
    }
    for (name, _) in &outages {
        until(&format!("two failures: {name}"), || running.failed(name) >= 2).await;
        assert_eq!(running.ids(name), ["192.0.2.1:80", "192.0.2.2:80"], "{name}");
    }
    for (name, _) in &outages {
        server.has_v4(&format!("{name}.test."), 1, &[2]);
    }
    for (name, _) in &outages {
        running.has(name, &["192.0.2.2:80"]).await;
    }
    running.end().await;
}

#[tokio::test]
async fn a_family_that_fails_stays_while_the_other_changes() {
    let server = Server::start().await;
    server.says("app.test.", RecordType::A, Reply::Answer(1, vec![v4(1)]));
    server.says("app.test.", RecordType::AAAA, Reply::Answer(1, vec![v6(1)]));
    let running = run(model(&[("app", addresses("app.test", SECOND, &[server.address]))]));
    running.has("app", &["192.0.2.1:80", "[2001:db8::1]:80"]).await;
    server.says("app.test.", RecordType::AAAA, Reply::Code(ResponseCode::ServFail));
    server.says("app.test.", RecordType::A, Reply::Answer(1, vec![v4(2)]));
    running.has("app", &["192.0.2.2:80", "[2001:db8::1]:80"]).await;
    // That there is none is an answer, where the other family has one.
    server.says("app.test.", RecordType::AAAA, Reply::Answer(1, Vec::new()));
    running.has("app", &["192.0.2.2:80"]).await;
    running.end().await;
}

#[tokio::test]
async fn a_silent_server_does_not_hold_up_the_start() {
    let server = Server::start().await;
    server.both("app.test.", &Reply::Silence);
    let mut running = run(model(&[("app", addresses("app.test", SECOND, &[server.address]))]));
    assert!(!running.first_round.is_finished());
    let started = Instant::now();
    timeout(Duration::from_secs(20), running.first_round.finished()).await.expect("it is bounded");
    assert!(started.elapsed() < LOOKUP_TIMEOUT + SECOND * 2, "{:?}", started.elapsed());
    assert_eq!(running.ids("app"), [""; 0]);
    server.has_v4("app.test.", 1, &[1]);
    running.has("app", &["192.0.2.1:80"]).await;
    running.end().await;
}

#[tokio::test]
async fn names_are_asked_as_they_are_and_with_no_search_domain() {
    let server = Server::start().await;
    let running = run(model(&[("app", addresses("app", SECOND, &[server.address]))]));
    until("a failure", || running.failed("app") >= 1).await;
    let asked = server.asked.lock().expect("no panic").clone();
    assert!(asked.iter().all(|(name, _)| name == "app."), "{asked:?}");
    running.end().await;
}

#[tokio::test]
async fn srv_gives_ports_and_weights_of_the_lowest_priority() {
    let server = Server::start().await;
    let records = vec![
        srv(10, 30, 8080, "a.test."),
        srv(10, 0, 8081, "A.test."),
        srv(10, 70, 8080, "b.test."),
        srv(20, 100, 8080, "spare.test."),
    ];
    server.says("_http._tcp.app.test.", RecordType::SRV, Reply::Answer(1, records));
    server.has_v4("a.test.", 60, &[1]);
    server.has_v4("b.test.", 60, &[2, 3]);
    server.has_v4("spare.test.", 60, &[9]);
    let running = run(model(&[("app", service("_http._tcp.app.test", &[server.address]))]));
    let expected = ["192.0.2.1:8080*30", "192.0.2.1:8081*1", "192.0.2.2:8080*70", "192.0.2.3:8080*70"];
    until("the targets", || running.shares("app") == expected).await;
    assert_eq!(server.count("spare.test.", RecordType::A), 0);
    // A target without an address keeps the one it had; `.` is no offer at all.
    server.both("a.test.", &Reply::Code(ResponseCode::NXDomain));
    let records = vec![srv(10, 20_000, 8080, "a.test."), srv(10, 10_000, 8080, "b.test.")];
    server.says("_http._tcp.app.test.", RecordType::SRV, Reply::Answer(1, records));
    let expected = ["192.0.2.1:8080*1000", "192.0.2.2:8080*500", "192.0.2.3:8080*500"];
    until("smaller weights", || running.shares("app") == expected).await;
    let before = running.failed("app");
    server.says("_http._tcp.app.test.", RecordType::SRV, Reply::Answer(1, vec![srv(0, 0, 0, ".")]));
    until("failures", || running.failed("app") >= before + 2).await;
    assert_eq!(running.shares("app"), expected);
    running.end().await;
}

#[tokio::test]
async fn a_truncated_answer_is_asked_for_over_tcp_and_bounded() {
    let server = Server::start().await;
    let many = |count: u32| (0..count).map(|n| RData::A(rdata::A((0x0a00_0001 + n).into()))).rev().collect();
    server.says("app.test.", RecordType::A, Reply::OverTcp(many(1_200)));
    server.says("app.test.", RecordType::AAAA, Reply::Answer(60, Vec::new()));
    let mut running = run(model(&[("app", addresses("app.test", HOUR, &[server.address]))]));
    running.first_round.finished().await;
    let ids = running.ids("app");
    assert_eq!((ids.len(), ids[0].as_str(), ids[999].as_str()), (1_000, "10.0.0.1:80", "10.0.3.232:80"));
    running.end().await;
}

#[tokio::test]
async fn the_next_server_is_asked_where_one_fails() {
    let (broken, good) = (Server::start().await, Server::start().await);
    broken.both("app.test.", &Reply::Code(ResponseCode::ServFail));
    good.has_v4("app.test.", 60, &[1]);
    let closed = UdpSocket::bind("127.0.0.1:0").await.and_then(|socket| socket.local_addr()).expect("loopback");
    let servers = [closed, broken.address, good.address];
    let mut running = run(model(&[("app", addresses("app.test", HOUR, &servers))]));
    running.first_round.finished().await;
    assert_eq!(running.ids("app"), ["192.0.2.1:80"]);
    assert!(broken.count("app.test.", RecordType::A) >= 1);
    running.end().await;
}

#[tokio::test]
async fn a_new_configuration_begins_and_ends_lookups_and_disturbs_no_other() {
    let server = Server::start().await;
    for name in ["stays.test.", "goes.test.", "comes.test."] {
        server.has_v4(name, 1, &[1]);
    }
    let stays = ("stays", addresses("stays.test", HOUR, &[server.address]));
    server.has_v4("stays.test.", 3600, &[1]);
    let running = run(model(&[stays.clone(), ("goes", addresses("goes.test", SECOND, &[server.address]))]));
    running.has("stays", &["192.0.2.1:80"]).await;
    running.has("goes", &["192.0.2.1:80"]).await;
    running.reload(model(&[stays, ("comes", addresses("comes.test", SECOND, &[server.address]))]));
    let gone = server.count("goes.test.", RecordType::A);
    running.has("comes", &["192.0.2.1:80"]).await;
    until("later lookups", || server.count("comes.test.", RecordType::A) >= 3).await;
    assert!(server.count("goes.test.", RecordType::A) <= gone + 1, "one may have been under way");
    assert_eq!(server.count("stays.test.", RecordType::A), 1);
    assert_eq!(running.ids("stays"), ["192.0.2.1:80"]);
    running.end().await;
}

#[tokio::test]
async fn a_list_is_followed_and_a_wrong_one_changes_nothing() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("backends.yaml");
    let mut running = run(model(&[("app", list(&path))]));
    timeout(Duration::from_secs(20), running.first_round.finished()).await.expect("no file stops no start");
    let write = |text: &str| std::fs::write(&path, text).expect("writes");
    write("- { id: one, address: 127.0.0.1:9001, weight: 3 }\n- 127.0.0.1:9002\n");
    until("the list", || running.shares("app") == ["one*3", "127.0.0.1:9002*1"]).await;
    assert!(running.entries("app").iter().all(|entry| entry.source == Source::List));
    let before = running.failed("app");
    write("- { id: one, address: ");
    until("a failure", || running.failed("app") > before).await;
    assert_eq!(running.shares("app"), ["one*3", "127.0.0.1:9002*1"]);
    write("[]");
    running.has("app", &[]).await;
    running.end().await;
}

#[tokio::test]
async fn backends_without_a_name_need_an_sni_where_certificates_are_checked() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("backends.yaml");
    let mut model = Arc::unwrap_or_clone(model(&[("app", list(&path))]));
    for upstream in model.upstreams.values_mut() {
        upstream.tls = Some(model::UpstreamTls { sni: None, ..fixtures::tls() });
    }
    std::fs::write(&path, "[app.test:443]").expect("writes");
    let running = run(Arc::new(model));
    running.has("app", &["app.test:443"]).await;
    std::fs::write(&path, "[127.0.0.1:443]").expect("writes");
    until("a failure", || running.failed("app") == 1).await;
    assert_eq!(running.ids("app"), ["app.test:443"]);
    running.end().await;
}

#[tokio::test]
async fn nothing_to_find_is_finished_at_once() {
    let running = run(model(&[]));
    assert!(running.first_round.is_finished());
    running.end().await;
}

#[test]
fn the_next_lookup_is_when_the_first_of_refresh_and_ttl_is_over() {
    let seconds = Duration::from_secs;
    for (refresh, ttl, failed, expected) in [
        (10, Some(60), false, 10),
        (10, Some(5), false, 5),
        (10, Some(0), false, 1),
        (10, None, true, 5),
        (2, None, true, 2),
        (3600, Some(3600), true, 5),
    ] {
        let got = pause(seconds(refresh), ttl.map(seconds), failed);
        assert_eq!(got, seconds(expected), "{refresh} {ttl:?} {failed}");
    }
}

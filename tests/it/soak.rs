//! The soak: clients who are good, slow and hostile, all at once and through every kind of listener, while origins die and
//! come back, the file is loaded again and the log turned over. Nobody brings the process down or keeps anything of it;
//! the good get their answers; each refusal has its word in the answer, in the log and in the metrics, equally often.
//!
//! `RRLB_TEST_SOAK=600` is the long form, in seconds; `RRLB_TEST_SEED` has everybody do again what they did.

mod hostile;
mod origins;
mod refused;
mod slow;
mod valid;
mod watch;
mod world;

use std::{
    collections::BTreeMap,
    future::Future,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use rrlb::types::Reason;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use self::{
    origins::{Mood, Temper},
    watch::{Held, Log, by_label, descriptors, no_panic, quiet},
    world::{Dice, Doors, World},
};
use crate::support::{
    address,
    admin::Api,
    http1::Client,
    http2::{Client2, Origin2},
    misbehave::Blackhole,
    origin::Origin,
    proxy::{Config, Proxy},
    tls::{Ca, self_signed},
    wait_until,
};

/// The limits of the listeners, as in [`LISTENERS`].
const HEADER: Duration = Duration::from_secs(2);
const IDLE: Duration = Duration::from_secs(3);
const HEADER_SIZE: usize = 8 << 10;
const URI: usize = 1 << 10;
const BODY: usize = 128 << 10;

/// How long a client may take from its beginning to its end.
const LONGEST: Duration = Duration::from_secs(60);

/// As often the process is looked at, 50 ms each, so that a worker has come to rest and has given back what it kept.
const ROUNDS: u32 = 100;

/// What may stay in memory over what there was at the start, when all have left: what is in use has come to lie on more pages. In the
/// long form they are the same ones, mostly; it is half a million requests, so that a leak of two bytes each is as much.
const KEPT: u64 = 4 << 20;
const KEPT_LONG: u64 = 1 << 20;

const LISTENERS: &str = "
certificates: { main: <main> }
admin: { socket: <dir>/admin.sock }
upstream_keepalive_pool_size: 16
x-limits: &limits
  header_timeout: 2s
  handshake_timeout: 2s
  idle_timeout: 3s
  max_header_size: 8KiB
  max_uri_length: 1KiB
  max_headers: 50
  max_body_size: 128KiB
  min_body_rate: 1KiB
  requests_per_connection: 100
listeners:
  - { address: <listen>, h2c: true, deny: 127.0.66.0/24, limits: *limits }
  - { address: \"<secure>\", tls: { certificates: [main] }, limits: *limits }
  - { address: \"<behind>\", h2c: true, proxy_protocol: { from: 127.0.0.1 }, limits: *limits }
  - { address: \"<few>\", limits: { connections_per_ip: 2, idle_timeout: 1s } }
defaults:
  timeouts: { connect: 300ms, tls: 300ms, first_byte: 500ms, read: 500ms, idle: 1s, websocket_idle: 1s }
";

/// Upstreams of one backend, each for the route of its name.
const ALONE: [(&str, &str); 21] = [
    ("steady", ""),
    ("grpc", "protocol: h2c"),
    ("babble", ""),
    ("bad-framing", ""),
    ("missing", ""),
    ("refused", ""),
    ("hole", ""),
    ("no-name", ""),
    ("mute", ""),
    ("down", "health_check: { type: tcp, interval: 500ms }"),
    ("reset", "retry: { attempts: 1 }"),
    ("no-tls", "tls: { sni: origin.test, ca: <ca> }"),
    ("mute-tls", "tls: { sni: origin.test, ca: <ca> }"),
    ("untrusted", "tls: { sni: origin.test, ca: <ca> }"),
    ("wrong-name", "tls: { sni: origin.test, ca: <ca> }"),
    ("expired", "tls: { sni: origin.test, ca: <ca> }"),
    ("total", "timeouts: { first_byte: 5s, read: 5s, total: 300ms }"),
    ("stall", ""),
    ("truncate", ""),
    ("truncate-chunks", ""),
    ("bad-chunk", ""),
];

const ROUTES: &str = "
  - { match: { path: /ws }, upstream: steady }
  - { match: { path: /grpc.Echo }, upstream: grpc }
  - { match: { path: /denied }, deny: [0.0.0.0/0, \"::/0\"], upstream: steady }
  - { match: { path: /limited }, rate_limit: { rate: 1/d, key: route }, upstream: steady }
  - { match: { path: /single }, concurrency: { limit: 1, key: { header: X-Key } }, upstream: steady }
  - { match: { path: /private }, basic_auth: { file: users }, upstream: steady }
  - { match: { path: /asked }, forward_auth: { url: \"http://<nobody>/\", timeout: 500ms }, upstream: steady }
";

/// Failures that are not provoked here: one that must never be, and one that needs a body larger than all socket buffers.
const NOT_PROVOKED: [Reason; 2] = [Reason::Internal, Reason::WriteTimeout];
/// Failures of which no client can be told: it is gone, or its answer has begun.
const NOT_TOLD: [Reason; 4] = [Reason::ClientAborted, Reason::ReadTimeout, Reason::ResponseTruncated, Reason::TooSlow];

/// The proxy and all that stands behind it.
struct Stage {
    proxy: Proxy,
    api: Api,
    doors: Doors,
    moody: Vec<(Temper, Origin, bool)>,
    log: Log,
    dice: Dice,
    seed: u64,
    acts: BTreeMap<&'static str, u64>,
    told: BTreeMap<String, u64>,
    _origins: Vec<Origin>,
    _grpc: Origin2,
    _hole: Blackhole,
}

impl Stage {
    async fn set(seed: u64) -> Self {
        let ca = Ca::new();
        let grpc = Origin2::start("grpc", None).await;
        let hole = Blackhole::new();
        let mut moody = Vec::new();
        for name in ["m1", "m2", "m3"] {
            let temper = Temper::new(Mood::Well);
            let origin = origins::start(name, &temper).await;
            moody.push((temper, origin, true));
        }
        let always = origins::always;
        let plain = vec![
            ("steady", always("steady", Mood::Well).await),
            ("babble", always("babble", Mood::Babble).await),
            ("bad-framing", always("bad-framing", Mood::BadFraming).await),
            ("mute", always("mute", Mood::Mute).await),
            ("reset", always("reset", Mood::Reset).await),
            ("no-tls", origins::banner().await),
            ("mute-tls", always("mute-tls", Mood::Mute).await),
            ("total", always("total", Mood::Mute).await),
            ("stall", always("stall", Mood::Stall).await),
            ("truncate", always("truncate", Mood::Truncate).await),
            ("truncate-chunks", always("truncate-chunks", Mood::TruncateChunks).await),
            ("bad-chunk", always("bad-chunk", Mood::BadChunk).await),
            ("untrusted", Origin::tls("untrusted", self_signed(&["origin.test"]).server(&["http/1.1"])).await),
            ("wrong-name", Origin::tls("wrong-name", ca.issue(&["else.test"]).server(&["http/1.1"])).await),
            ("expired", Origin::tls("expired", ca.expired(&["origin.test"]).server(&["http/1.1"])).await),
        ];
        let nobody = address::unused().to_string();
        let mut upstreams = String::from("upstreams:\n");
        for (name, more) in ALONE {
            let own = plain.iter().find(|(own, _)| *own == name).map(|(_, origin)| origin.address.clone());
            let address = match name {
                "grpc" => grpc.address.to_string(),
                "hole" => hole.address.to_string(),
                "missing" => "unix:/nowhere/at/all.sock".to_owned(),
                "no-name" => "nowhere.invalid:80".to_owned(),
                _ => own.unwrap_or_else(|| nobody.clone()),
            };
            upstreams += &format!(
                "  {name}: {{ backends: [\"{address}\"]{}{more} }}\n",
                if more.is_empty() { "" } else { ", " }
            );
        }
        let backends: Vec<_> = moody
            .iter()
            .map(|(_, origin, _)| format!("{{ id: {}, address: \"{}\" }}", origin.name, origin.address))
            .collect();
        upstreams += &format!(
            "  moody: {{ backends: [{}], health_check: {{ type: tcp, interval: 300ms, timeout: 200ms, rise: 1, fall: 2, initial: up }} }}\n",
            backends.join(", ")
        );
        let mut routes = format!("routes:{ROUTES}  - {{ match: {{ path: /moody }}, upstream: moody }}\n");
        for (name, _) in ALONE {
            routes += &format!("  - {{ match: {{ path: /{name} }}, upstream: {name} }}\n");
        }
        let (secure, behind, few) = (address::unused(), address::unused(), address::unused());
        let config = Config::new(&format!("{}{upstreams}{routes}", LISTENERS.trim_start()))
            .put("secure", secure)
            .put("behind", behind)
            .put("few", few)
            .put("nobody", nobody);
        std::fs::write(config.dir().join("users"), format!("a:{}\n", bcrypt::hash("secret", 4).expect("a hash")))
            .expect("write");
        let main = ca.issue(&["a.test"]).write(config.dir(), "main");
        let ca_file = ca.write(config.dir());
        let proxy = config.put("main", main).put("ca", ca_file.display()).start().await;
        let doors = Doors {
            plain: proxy.listen,
            secure,
            behind,
            few,
            tls1: ca.client(&["http/1.1"]),
            tls2: ca.client(&["h2"]),
        };
        Self {
            api: Api::of(&proxy),
            log: Log::of(&proxy),
            proxy,
            doors,
            moody,
            dice: Dice::new(seed),
            seed,
            acts: BTreeMap::new(),
            told: BTreeMap::new(),
            _origins: plain.into_iter().map(|(_, origin)| origin).collect(),
            _grpc: grpc,
            _hole: hole,
        }
    }

    /// One of everything that the process makes when it is first needed.
    async fn warmed_up(&self) -> Held {
        assert_eq!(Client2::prior(self.doors.plain).await.get("/steady/hello").await.text(), "steady");
        let mut secure = Client::tls(self.doors.secure, "a.test", &self.doors.tls1).await;
        for path in ["/steady/hello", "/moody/hello", "/asked", "/private", "/no-name"] {
            secure.get(path).await;
        }
        let with_password = "GET /private HTTP/1.1\r\nHost: a.test\r\nAuthorization: Basic YTpzZWNyZXQ=\r\n\r\n";
        assert_eq!(secure.ask(with_password).await.status(), 200);
        self.api.get("/v1/status").await;
        self.proxy.reload().await;
        drop(secure);
        self.settled(None).await
    }

    /// What the process holds when nobody is there; not more than `most`, as soon as it has given back what is not used.
    async fn settled(&self, most: Option<Held>) -> Held {
        quiet(&self.proxy).await;
        let open = || self.moody.iter().map(|(_, origin, _)| origin.open()).sum::<usize>();
        wait_until("pooled connections to be given up", || open() <= self.moody.len()).await;
        let begun = Instant::now();
        // Probes come and go; what is held besides shows between two of them.
        let (mut least, mut threads) = (Held::by(&self.proxy), 0);
        for round in 0.. {
            tokio::time::sleep(Duration::from_millis(50)).await;
            let now = Held::by(&self.proxy);
            least = least.least(now);
            threads = now.threads.max(threads);
            let fits = most.is_none_or(|most| least.least(most) == least);
            if fits && round >= ROUNDS {
                break;
            }
            let shown = || descriptors(&self.proxy);
            assert!(begun.elapsed() < LONGEST, "{least:?} is more than {most:?}: {:#?}", shown());
        }
        // How many threads there may be is what there were at most.
        if most.is_none() { Held { threads, ..least } } else { least }
    }

    /// Everybody at once for a while; then nobody.
    async fn part(&mut self, length: Duration, whole: bool) {
        let world = Arc::new(World::new(self.doors.clone(), whole));
        let mut crowd = Crowd { tasks: JoinSet::new(), world: world.clone(), dice: Dice::new(self.dice.roll()) };
        crowd.joins("valid HTTP/1.1", 4, 10, valid::h1);
        crowd.joins("valid HTTP/2", 3, 20, valid::h2);
        crowd.joins("valid WebSocket", 1, 50, valid::websocket);
        crowd.joins("slow enough", 2, 50, valid::leisurely);
        crowd.joins("slow head", 2, 50, slow::head);
        crowd.joins("slow body", 3, 50, slow::body);
        crowd.joins("slow reader", 2, 50, slow::reader);
        crowd.joins("half closed", 1, 50, slow::half_closed);
        crowd.joins("silent", 3, 50, slow::silent);
        crowd.joins("silent WebSocket", 1, 50, slow::silent_socket);
        crowd.joins("leaving", 1, 50, slow::leaving);
        crowd.joins("passing", 1, 100, slow::passing);
        crowd.joins("broken head", 2, 30, refused::head_broken);
        crowd.joins("refused HTTP/1.1", 3, 30, refused::h1);
        crowd.joins("refused HTTP/2", 2, 30, refused::h2);
        crowd.joins("admission", 1, 50, refused::admission);
        crowd.joins("noise", 3, 30, hostile::noise);
        crowd.joins("TLS noise", 2, 50, hostile::tls);
        crowd.joins("PROXY noise", 2, 50, hostile::proxy);
        crowd.joins("too many", 1, 200, hostile::crowd);
        crowd.joins("frame flood", 2, 100, hostile::frames);
        crowd.joins("frame noise", 1, 50, hostile::frame_noise);
        let (pid, end) = (self.proxy.pid(), Instant::now() + length);
        let watching = world.clone();
        let clock = tokio::spawn(async move { watching.watch_the_clock(pid).await });
        let mut ended = 0;
        while !crowd.tasks.is_empty() {
            if Instant::now() >= end {
                world.stop();
                ended += 1;
            }
            self.stir(ended > 0).await;
            assert!(self.proxy.running() && self.proxy.pid() == pid, "the process ended");
            while let Some(left) = crowd.tasks.try_join_next() {
                if let Err(error) = left {
                    world.fail(end, format!("a client panicked: {error}"));
                }
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        clock.abort();
        for (temper, origin, up) in &mut self.moody {
            temper.set(Mood::Well);
            if !std::mem::replace(up, true) {
                origin.restart().await;
            }
        }
        let book = world.book();
        let Self { seed, .. } = self;
        assert!(book.failed == 0, "RRLB_TEST_SEED={seed}: {} failures: {:#?}", book.failed, book.failures);
        // A few, of a whole: a test that stands still all the time has shown nothing.
        let visits: u64 = book.acts.values().sum();
        println!("{} of {visits} visits excused: {:#?}", book.excused.len(), book.excused);
        assert!(book.excused.len() as u64 <= 20 + visits / 1000, "the machine is too busy for this test");
        for (act, count) in &book.acts {
            *self.acts.entry(act).or_default() += count;
        }
        for (word, count) in &book.told {
            *self.told.entry(word.clone()).or_default() += count;
        }
    }

    /// An operator at work and origins that change their mind.
    async fn stir(&mut self, ending: bool) {
        self.log.follow();
        let which = self.dice.below(self.moody.len());
        let (temper, origin, up) = &mut self.moody[which];
        match self.dice.below(if ending { 4 } else { 24 }) {
            0 if *up => {
                origin.stop().await;
                *up = false;
            }
            0 | 1 if !*up => {
                origin.restart().await;
                *up = true;
            }
            2 => temper.set(*self.dice.pick(&Mood::ALL)),
            3 => temper.set(Mood::Well),
            4 => self.proxy.signal(libc::SIGHUP),
            5 => {
                let (status, answer) = self.api.ask("POST", "/v1/config/reload", Value::Null).await;
                assert!(matches!(status, 200 | 409), "{status} {answer}");
            }
            6 | 7 => {
                let target = format!("/v1/upstreams/moody/backends/{}", origin.name);
                let change = *self.dice.pick(&["ready", "drain", "ready", "maint", "ready"]);
                let weight = self.dice.below(4) + 1;
                let (status, answer) =
                    self.api.ask("PATCH", &target, json!({ "admin": change, "weight": weight })).await;
                assert!(matches!(status, 200 | 409), "{status} {answer}");
            }
            8 | 9 => {
                let target = *self.dice.pick(&["/v1/status", "/v1/upstreams", "/v1/errors", "/v1/config", "/v1/state"]);
                self.api.get(target).await;
            }
            10 => self.log.rotate(&self.proxy).await,
            11 => drop(self.proxy.scrape().await),
            _ => {}
        }
    }
}

/// Clients that come again and again.
struct Crowd {
    tasks: JoinSet<()>,
    world: Arc<World>,
    dice: Dice,
}

impl Crowd {
    /// `count` of one kind, each with up to `pause` milliseconds between two visits.
    fn joins<F>(&mut self, name: &'static str, count: usize, pause: usize, act: fn(Arc<World>, Dice) -> F)
    where
        F: Future<Output = Result<(), String>> + Send + 'static,
    {
        for _ in 0..count {
            let (world, mut dice) = (self.world.clone(), Dice::new(self.dice.roll()));
            self.tasks.spawn(async move {
                while !world.stopped() {
                    let since = Instant::now();
                    let visit = act(world.clone(), Dice::new(dice.roll()));
                    match tokio::time::timeout(LONGEST, visit).await {
                        Ok(Ok(())) => world.did(name),
                        Ok(Err(failure)) => world.fail(since, format!("{name}: {failure}")),
                        Err(_) => world.fail(since, format!("{name}: not ended within {LONGEST:?}")),
                    }
                    tokio::time::sleep(dice.millis(pause)).await;
                }
            });
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_soak_ends_with_what_it_began_with_and_every_refusal_has_its_word() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse().ok());
    let seconds = number("RRLB_TEST_SOAK").unwrap_or(6);
    // The short form has not the time for what is slowest, and for each of the floods.
    let long = seconds >= 60;
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970");
    let seed = number("RRLB_TEST_SEED").unwrap_or(now.as_micros() as u64);
    println!("RRLB_TEST_SEED={seed}");
    let mut stage = Stage::set(seed).await;
    println!("when each thing was done once: {:?}", stage.warmed_up().await);
    // The start is when everybody has been there: a worker's arenas, tables and lists are as long as what goes on needs them.
    stage.part(Duration::from_secs((seconds / 10).max(2)), false).await;
    let start = stage.settled(None).await;
    println!("at the start: {start:?}");

    stage.part(Duration::from_secs(seconds / 3), false).await;
    let most = Held { memory: start.memory + if long { KEPT_LONG } else { KEPT }, ..start };
    let first = stage.settled(Some(most)).await;
    println!("after a third: {first:?}");
    stage.part(Duration::from_secs(seconds - seconds / 3), long).await;
    let last = stage.settled(Some(most)).await;
    println!("at the end: {last:?}");
    no_panic(&stage.proxy);

    let Stage { proxy, mut log, told, acts, .. } = stage;
    let scrape = log.agrees(&proxy).await;
    println!("{} requests; visits: {acts:?}; words in answers: {told:?}; in the log: {:?}", log.lines, log.reasons);
    assert_eq!(scrape.sum("rrlb_failures_total", &["reason=\"internal\""]), 0.0);
    for reason in Reason::ALL.iter().filter(|reason| reason.is_failure() && !NOT_PROVOKED.contains(reason)) {
        let word = reason.as_str();
        let logged = log.reasons.get(word).copied().unwrap_or(0); // as often in the metrics, see above
        let answers = told.get(word).copied().unwrap_or(0);
        if !long && matches!(reason, Reason::ClientTimeout | Reason::TooSlow) {
            continue;
        }
        assert!(logged > 0 && logged >= answers, "{word}: {logged} lines, {answers} answers");
        assert!(answers > 0 || NOT_TOLD.contains(reason), "{word}: in no Proxy-Status");
    }
    let counted = |name: &str, label: &str, values: &[&str]| {
        let sums = by_label(&scrape, name, label);
        for value in values {
            assert!(sums.get(*value).is_some_and(|count| *count > 0.0), "{name}: {value} in {sums:?}");
        }
    };
    counted("rrlb_proxy_protocol_total", "result", &["malformed", "missing", "refused", "timeout", "v1", "v2"]);
    counted("rrlb_tls_handshakes_total", "result", &["failed", "ok", "timeout"]);
    let of_headers = ["proxy_header_malformed", "proxy_header_missing", "proxy_header_refused", "proxy_header_timeout"];
    counted("rrlb_connections_refused_total", "cause", &of_headers);
    let of_others = ["per_ip", "plain_http", "tls_malformed", "tls_timeout"];
    counted("rrlb_connections_refused_total", "cause", &of_others);
    if long {
        let kinds: Vec<_> = hostile::FLOODS.iter().flat_map(|(_, kinds)| kinds.iter().copied()).collect();
        counted("rrlb_h2_abuse_total", "kind", &kinds);
    }
    assert!(proxy.stderr().contains("ended an HTTP/2 connection of 127.0.0.1"), "no word of HTTP/2 floods");
    drop(proxy);
}

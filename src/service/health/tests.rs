//! Health checks against origins on loopback that count their probes.

use std::sync::{
    Mutex,
    atomic::{AtomicU16, AtomicUsize, Ordering},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use super::*;
use crate::{
    config::model,
    policy::health::{InitialHealth, Thresholds},
    runtime::upstream::fixtures,
};

/// What an origin does with a connection.
#[derive(Clone, Copy)]
enum Manner {
    Answer,
    Drip,
    /// Answers when 50 ms are over, so that probes pile up.
    Slow,
}

struct Origin {
    address: std::net::SocketAddr,
    probes: Arc<AtomicUsize>,
    /// 0 closes the connection without an answer.
    status: Arc<AtomicU16>,
    heads: Arc<Mutex<Vec<String>>>,
    /// Connections open now, and at most so far.
    open: Arc<[AtomicUsize; 2]>,
}

async fn origin(manner: Manner) -> Origin {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let (probes, status, heads) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicU16::new(200)), Arc::default());
    let origin = Origin { address, probes, status, heads, open: Arc::default() };
    let (probes, status, heads) = (origin.probes.clone(), origin.status.clone(), origin.heads.clone());
    let open = origin.open.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            probes.fetch_add(1, Ordering::SeqCst);
            let (status, heads): (_, Arc<Mutex<Vec<String>>>) = (status.load(Ordering::SeqCst), heads.clone());
            let open = open.clone();
            open[1].fetch_max(open[0].fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            tokio::spawn(async move {
                let mut head = vec![0; 4096];
                let read = stream.read(&mut head).await.unwrap_or(0);
                head.truncate(read);
                heads.lock().expect("no panic").push(String::from_utf8_lossy(&head).into_owned());
                if matches!(manner, Manner::Slow) {
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    open[0].fetch_sub(1, Ordering::SeqCst);
                }
                match manner {
                    Manner::Answer if status == 0 => {}
                    Manner::Answer | Manner::Slow => {
                        let answer =
                            format!("HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n");
                        let _ = stream.write_all(answer.as_bytes()).await;
                    }
                    Manner::Drip => {
                        for byte in b"HTTP/1.1 200 OK\r\nX: y".iter().cycle() {
                            if stream.write_all(&[*byte]).await.is_err() {
                                break;
                            }
                            tokio::time::sleep(Duration::from_millis(5)).await;
                        }
                    }
                }
            });
        }
    });
    origin
}

fn model(origins: &[std::net::SocketAddr], probe: Probe) -> model::Upstream {
    let names = ["a", "b", "c"];
    let backends: Vec<(&str, u16)> = names.into_iter().zip(origins).map(|(name, _)| (name, 1)).collect();
    let mut model = fixtures::upstream("app", &backends);
    for (backend, address) in model.backends.iter_mut().zip(origins) {
        backend.address = BackendAddress::Inet(*address);
    }
    model.health_check = Some(HealthCheck {
        probe,
        interval: Duration::from_millis(20),
        timeout: Duration::from_secs(2),
        thresholds: Thresholds { rise: 2, fall: 3, initial: InitialHealth::Down },
    });
    model
}

fn http(path: &str) -> Probe {
    Probe::Http(HttpProbe { path: path.into(), host: None, status: Vec::new() })
}

#[derive(Default)]
struct Seen {
    results: Mutex<Vec<bool>>,
    flips: Mutex<Vec<(Flip, usize)>>,
    forgotten: AtomicUsize,
}

impl HealthObserver for Seen {
    fn probed(&self, _: &Name, _: &BackendState, success: bool) {
        self.results.lock().expect("no panic").push(success);
    }

    fn flipped(&self, _: &Name, _: &BackendState, flip: Flip) {
        let after = self.results.lock().expect("no panic").len();
        self.flips.lock().expect("no panic").push((flip, after));
    }

    fn forgotten(&self, _: &Name, _: &BackendState) {
        self.forgotten.fetch_add(1, Ordering::SeqCst);
    }
}

struct Service {
    upstreams: watch::Sender<Vec<Arc<Upstream>>>,
    stop: watch::Sender<bool>,
    task: JoinHandle<()>,
    first_round: FirstRound,
    seen: Arc<Seen>,
}

fn run(upstreams: Vec<Arc<Upstream>>) -> Service {
    let (sender, receiver) = watch::channel(upstreams);
    let seen = Arc::new(Seen::default());
    let (service, first_round) = HealthChecks::new(receiver, fixtures::process(), seen.clone());
    let (stop, shutdown) = watch::channel(false);
    let task = tokio::spawn(async move { service.start(shutdown).await });
    Service { upstreams: sender, stop, task, first_round, seen }
}

impl Service {
    async fn end(self) {
        self.stop.send(true).expect("it listens");
        self.task.await.expect("no panic");
    }
}

async fn until(what: &str, condition: impl Fn() -> bool) {
    let wait = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    timeout(Duration::from_secs(20), wait).await.unwrap_or_else(|_| panic!("never: {what}"));
}

fn built(model: &model::Upstream) -> Arc<Upstream> {
    Upstream::build(model, model.backends.clone(), &fixtures::process(), None)
}

#[tokio::test]
async fn a_backend_leaves_after_fall_and_comes_back_after_rise() {
    let origin = origin(Manner::Answer).await;
    let upstream = built(&model(&[origin.address], http("/healthz?x=1")));
    let mut service = run(vec![upstream.clone()]);
    assert!(!service.first_round.is_finished());
    service.first_round.finished().await;
    assert!(service.first_round.is_finished());
    let backend = &upstream.backends()[0];
    assert!(backend.usable(), "the first result decides");
    origin.status.store(500, Ordering::SeqCst);
    until("down", || !backend.usable()).await;
    origin.status.store(204, Ordering::SeqCst);
    until("up again", || backend.usable()).await;
    let results = service.seen.results.lock().expect("no panic").clone();
    let flips = service.seen.flips.lock().expect("no panic").clone();
    assert_eq!(flips.iter().map(|flip| flip.0).collect::<Vec<_>>(), [Flip::Up, Flip::Down, Flip::Up]);
    let ending =
        |flip: usize, length: usize| results[..flips[flip].1].iter().rev().take(length).copied().collect::<Vec<_>>();
    assert_eq!(ending(1, 4), [false, false, false, true], "exactly three failures");
    assert_eq!(ending(2, 3), [true, true, false], "exactly two successes");
    assert!(origin.probes.load(Ordering::SeqCst) >= results.len());
    let head = origin.heads.lock().expect("no panic")[0].to_lowercase();
    assert!(head.starts_with("get /healthz?x=1 http/1.1\r\n"), "{head}");
    for field in
        [format!("host: {}\r\n", origin.address), "user-agent: rrlb-health\r\n".into(), "connection: close\r\n".into()]
    {
        assert!(head.contains(&field), "{field:?} not in {head}");
    }
    service.end().await;
}

#[tokio::test]
async fn probes_keep_their_interval_and_end_with_the_service() {
    let origin = origin(Manner::Answer).await;
    let mut model = model(&[origin.address], Probe::Tcp);
    model.health_check.iter_mut().for_each(|check| check.interval = Duration::from_millis(50));
    let service = run(vec![built(&model)]);
    until("the first probe", || origin.probes.load(Ordering::SeqCst) == 1).await;
    let started = std::time::Instant::now();
    until("ten more probes", || origin.probes.load(Ordering::SeqCst) >= 11).await;
    assert!(started.elapsed() >= Duration::from_millis(250), "{:?}", started.elapsed());
    service.end().await;
}

#[tokio::test]
async fn a_dripping_origin_fails_within_the_deadline_and_holds_up_nobody() {
    let (dripping, good) = (origin(Manner::Drip).await, origin(Manner::Answer).await);
    let mut model = model(&[dripping.address, good.address], http("/"));
    model.health_check.iter_mut().for_each(|check| check.timeout = Duration::from_secs(1));
    let upstream = built(&model);
    let mut service = run(vec![upstream.clone()]);
    until("the good one", || upstream.backends()[1].health() == Health::Up).await;
    assert_eq!(upstream.backends()[0].health(), Health::Unknown);
    timeout(Duration::from_secs(20), service.first_round.finished()).await.expect("the deadline is total");
    assert_eq!(upstream.backends()[0].health(), Health::Down);
    service.end().await;
}

#[tokio::test]
async fn what_is_not_expected_is_a_failure() {
    let origin = origin(Manner::Answer).await;
    let probe = |status: &[u16]| {
        let status = status.iter().filter_map(|status| StatusCode::from_u16(*status).ok()).collect();
        Probe::Http(HttpProbe { path: "/".into(), host: Some(HeaderValue::from_static("app.test")), status })
    };
    let free = TcpListener::bind("127.0.0.1:0").await.expect("loopback").local_addr().expect("bound");
    for (address, probe, answer, health) in [
        (origin.address, probe(&[301]), 301, Health::Up),
        (origin.address, probe(&[]), 301, Health::Down),
        (origin.address, probe(&[204]), 200, Health::Down),
        (origin.address, probe(&[]), 0, Health::Down),
        (free, probe(&[]), 200, Health::Down),
        (free, Probe::Tcp, 200, Health::Down),
        (origin.address, Probe::Tcp, 0, Health::Up),
    ] {
        origin.status.store(answer, Ordering::SeqCst);
        let upstream = built(&model(&[address], probe.clone()));
        let mut service = run(vec![upstream.clone()]);
        service.first_round.finished().await;
        assert_eq!(upstream.backends()[0].health(), health, "{probe:?} {answer}");
        service.end().await;
    }
    assert!(origin.heads.lock().expect("no panic")[0].to_lowercase().contains("host: app.test\r\n"));
}

#[tokio::test]
async fn failures_are_said_in_words() {
    let free = TcpListener::bind("127.0.0.1:0").await.expect("loopback").local_addr().expect("bound");
    let dumb = origin(Manner::Answer).await;
    dumb.status.store(0, Ordering::SeqCst);
    let (missing, teapot) = (BackendAddress::Unix("/nonexistent/rrlb.sock".into()), origin(Manner::Answer).await);
    teapot.status.store(418, Ordering::SeqCst);
    let host = BackendAddress::Host(crate::types::HostPort { host: "app.test".into(), port: 80 });
    for (address, words) in [
        (BackendAddress::Inet(free), "connection refused"),
        (missing, "ConnectError: No such file or directory (os error 2)"),
        (BackendAddress::Inet(dumb.address), "no valid answer: ConnectionClosed"),
        (BackendAddress::Inet(teapot.address), "status 418 I'm a teapot"),
        (host, "its name has not resolved"),
    ] {
        let mut model = model(&[free], http("/"));
        if matches!(address, BackendAddress::Host(_)) {
            model.health_check.iter_mut().for_each(|check| check.timeout = Duration::from_millis(30));
        }
        model.backends[0].address = address;
        let upstream = built(&model);
        let plan = Plan {
            upstream: upstream.name.clone(),
            backend: upstream.backends()[0].clone(),
            check: Arc::new(model.health_check.clone().expect("set")),
            connector: Arc::new(TransportConnector::new(None)),
            dialer: Arc::new(Connector::new(
                Duration::from_secs(5),
                Duration::from_secs(5),
                &fixtures::process(),
                Arc::default(),
            )),
        };
        let failure = plan.probe().await.expect_err(words).to_string();
        assert!(failure.starts_with(words), "{failure:?}, not {words:?}");
    }
}

#[tokio::test]
async fn h2c_backends_are_probed_over_h2() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("bound");
    let preface = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("accepts");
        let mut preface = vec![0; 24];
        stream.read_exact(&mut preface).await.expect("a preface");
        // SETTINGS, then HEADERS of stream 1 with END_STREAM and `:status: 204` (static table entry 9).
        stream.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0, 0, 0, 1, 1, 5, 0, 0, 0, 1, 0x89]).await.expect("writes");
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        preface
    });
    let mut model = model(&[address], http("/"));
    model.protocol = model::UpstreamProtocol::H2c;
    model.health_check.iter_mut().for_each(|check| check.interval = Duration::from_secs(60));
    let upstream = built(&model);
    let mut service = run(vec![upstream.clone()]);
    service.first_round.finished().await;
    assert_eq!(upstream.backends()[0].health(), Health::Up);
    assert_eq!(preface.await.expect("no panic"), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    service.end().await;
}

#[tokio::test]
async fn tasks_of_unchanged_backends_go_on_over_a_reload() {
    let origins = [origin(Manner::Answer).await, origin(Manner::Answer).await];
    let mut model = model(&[origins[0].address, origins[1].address], Probe::Tcp);
    model.health_check.iter_mut().for_each(|check| check.interval = Duration::from_secs(60));
    let first = built(&model);
    let mut service = run(vec![first.clone()]);
    service.first_round.finished().await;
    let count = |origin: &Origin| origin.probes.load(Ordering::SeqCst);
    until("both probed", || origins.iter().all(|origin| count(origin) == 1)).await;
    // The second backend moves to the first one's address: a new task, which probes at once.
    model.backends[1].address = model.backends[0].address.clone();
    model.backends[1].id = "c".into();
    let second = Upstream::build(&model, model.backends.clone(), &fixtures::process(), Some(&first));
    service.upstreams.send(vec![second.clone()]).expect("it listens");
    until("the new one", || second.backends()[1].health() == Health::Up).await;
    assert_eq!((count(&origins[0]), count(&origins[1])), (2, 1));
    assert!(service.first_round.is_finished());
    service.end().await;
}

/// The same upstream with one backend in another state.
fn with_admin(model: &mut model::Upstream, before: &Arc<Upstream>, at: usize, admin: AdminState) -> Arc<Upstream> {
    model.backends[at].admin = admin;
    Upstream::build(model, model.backends.clone(), &fixtures::process(), Some(before))
}

#[tokio::test]
async fn in_maintenance_nothing_is_probed_or_known_and_after_it_at_once() {
    let origins = [origin(Manner::Answer).await, origin(Manner::Answer).await];
    let count = |at: usize| origins[at].probes.load(Ordering::SeqCst);
    let mut model = model(&[origins[0].address, origins[1].address], http("/"));
    model.backends[0].admin = AdminState::Maint;
    let first = built(&model);
    let mut service = run(vec![first.clone()]);
    service.first_round.finished().await;
    until("probes of the other", || count(1) >= 5).await;
    assert_eq!((count(0), first.backends()[0].health()), (0, Health::Unknown), "the first round goes without it");
    // An interval as long as this: only the first probe counts.
    model.health_check.iter_mut().for_each(|check| check.interval = Duration::from_secs(60));
    let second = with_admin(&mut model, &first, 0, AdminState::Ready);
    service.upstreams.send(vec![second.clone()]).expect("it listens");
    until("it is probed at once", || second.backends()[0].health() == Health::Up).await;
    let third = with_admin(&mut model, &second, 0, AdminState::Maint);
    service.upstreams.send(vec![third.clone()]).expect("it listens");
    until("its health is forgotten", || third.backends()[0].health() == Health::Unknown).await;
    until("and it is told", || service.seen.forgotten.load(Ordering::SeqCst) == 1).await;
    assert_eq!(third.backends()[1].health(), Health::Up, "the other one's is not");
    let fourth = with_admin(&mut model, &third, 0, AdminState::Ready);
    service.upstreams.send(vec![fourth.clone()]).expect("it listens");
    until("it is probed again", || fourth.backends()[0].health() == Health::Up).await;
    assert_eq!(count(0), 2);
    service.end().await;
}

#[tokio::test]
async fn a_drained_backend_is_probed_as_before() {
    let origin = origin(Manner::Answer).await;
    let mut model = model(&[origin.address], http("/"));
    let first = built(&model);
    let mut service = run(vec![first.clone()]);
    service.first_round.finished().await;
    let second = with_admin(&mut model, &first, 0, AdminState::Drain);
    service.upstreams.send(vec![second.clone()]).expect("it listens");
    let before = origin.probes.load(Ordering::SeqCst);
    until("more probes", || origin.probes.load(Ordering::SeqCst) >= before + 5).await;
    origin.status.store(500, Ordering::SeqCst);
    until("its verdict", || second.backends()[0].health() == Health::Down).await;
    service.end().await;
}

/// Many backends at one address.
fn crowd(name: &str, backends: usize, address: std::net::SocketAddr, probe: Probe) -> model::Upstream {
    let ids: Vec<String> = (0..backends).map(|id| format!("b{id}")).collect();
    let ids: Vec<(&str, u16)> = ids.iter().map(|id| (id.as_str(), 1)).collect();
    let mut model = fixtures::upstream(name, &ids);
    model.backends.iter_mut().for_each(|backend| backend.address = BackendAddress::Inet(address));
    model.health_check = self::model(&[address], probe).health_check;
    model.health_check.iter_mut().for_each(|check| check.interval = Duration::from_secs(3600));
    model
}

#[tokio::test]
async fn first_probes_of_many_backends_are_bounded_and_all_are_made() {
    let origin = origin(Manner::Slow).await;
    let upstream = built(&crowd("app", 600, origin.address, http("/")));
    let mut service = run(vec![upstream.clone()]);
    timeout(Duration::from_secs(20), service.first_round.finished()).await.expect("all of them");
    assert!(upstream.backends().iter().all(|backend| backend.health() == Health::Up));
    let most = origin.open[1].load(Ordering::SeqCst);
    assert!((2..=FIRST_AT_ONCE).contains(&most), "{most} at once");
    service.end().await;
}

/// Prints what a change costs the checks.
#[tokio::test]
async fn a_change_of_one_upstream_leaves_the_tasks_of_all_others() {
    let nobody = "127.0.0.1:9".parse().expect("an address");
    let models: Vec<_> = (0..1_000).map(|n| crowd(&format!("app{n}"), 10, nobody, Probe::Tcp)).collect();
    let mut upstreams: Vec<_> = models.iter().map(built).collect();
    let seen = Arc::new(Seen::default());
    let (_sender, receiver) = watch::channel(Vec::new());
    let (checks, _) = HealthChecks::new(receiver, fixtures::process(), seen);
    let (mut probing, verdict) = (Probing::default(), Arc::new(Notify::new()));
    let started = Instant::now();
    checks.reconcile(&upstreams, &mut probing, &verdict);
    let first = started.elapsed();
    let ids = |probing: &Probing| -> HashSet<_> {
        probing.groups.values().flat_map(|group| group.tasks.values()).map(|task| task.handle.id()).collect()
    };
    let before = ids(&probing);
    assert_eq!(before.len(), 10_000);
    let mut changed = models[500].clone();
    changed.backends.remove(3);
    upstreams[500] = Upstream::build(&changed, changed.backends.clone(), &fixtures::process(), Some(&upstreams[500]));
    let started = Instant::now();
    checks.reconcile(&upstreams, &mut probing, &verdict);
    println!("10,000 backends: {first:?} to begin, {:?} for a change of one upstream", started.elapsed());
    let after = ids(&probing);
    assert_eq!((after.len(), before.difference(&after).count()), (9_999, 1));
    // The most that one change can concern.
    let mut model = crowd("all", 10_000, nobody, Probe::Tcp);
    let first = built(&model);
    checks.reconcile(std::slice::from_ref(&first), &mut probing, &verdict);
    let before = ids(&probing);
    let second = with_admin(&mut model, &first, 0, AdminState::Drain);
    let started = Instant::now();
    checks.reconcile(&[second], &mut probing, &verdict);
    println!("10,000 backends in one upstream: {:?} for a change of one backend", started.elapsed());
    assert_eq!(ids(&probing), before);
}

#[tokio::test]
async fn the_first_round_includes_what_another_adds_to_it() {
    let origin = origin(Manner::Answer).await;
    let (other, finished) = watch::channel(false);
    let (upstreams, receiver) = watch::channel(Vec::new());
    let seen = Arc::new(Seen::default());
    let (service, mut first_round) = HealthChecks::new(receiver, fixtures::process(), seen);
    let service = service.after(FirstRound::new(finished));
    let (stop, shutdown) = watch::channel(false);
    let task = tokio::spawn(async move { service.start(shutdown).await });
    assert!(!first_round.is_finished());
    let upstream = built(&model(&[origin.address], http("/")));
    upstreams.send_replace(vec![upstream.clone()]);
    other.send_replace(true);
    timeout(Duration::from_secs(20), first_round.finished()).await.expect("in time");
    assert_eq!(upstream.backends()[0].health(), Health::Up);
    stop.send(true).expect("it listens");
    task.await.expect("no panic");
}

#[tokio::test]
async fn nothing_to_check_is_finished_at_once() {
    let unchecked = Upstream::build(
        &fixtures::upstream("app", &[("a", 1)]),
        fixtures::upstream("app", &[("a", 1)]).backends,
        &fixtures::process(),
        None,
    );
    let service = run(vec![unchecked]);
    assert!(service.first_round.is_finished());
    service.end().await;
}

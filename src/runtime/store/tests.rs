//! Promises of the store: a change is kept, visible and told, or it is refused and nothing is other than before.

use std::{
    fs,
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::Path,
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::Duration,
};

use pingora_core::{
    connectors::{ConnectorOptions, TransportConnector},
    upstreams::peer::Peer,
};
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::*;
use crate::{
    config::{self, model::Discover},
    policy::health::Health,
    runtime::{
        backend::Picked,
        membership::{Note, Patch, Put},
    },
    types::{AdminState, BackendAddress, Weight},
};

mod ejection;
mod lookers;
mod successors;

const TWO: &str = "[{ id: a, address: 127.0.0.1:1 }, { id: b, address: 127.0.0.1:2 }]";

fn model(backends: &str) -> Arc<Model> {
    with_upstreams(&format!("  app: {{ backends: {backends} }}\n"))
}

fn with_upstreams(upstreams: &str) -> Arc<Model> {
    let text =
        format!("listeners: [{{ address: \"127.0.0.1:0\" }}]\nupstreams:\n{upstreams}routes: [{{ upstream: app }}]\n");
    let text = format!("version: 1\n{text}");
    Arc::new(config::parse(&text, Path::new("test.yaml")).unwrap_or_else(|report| panic!("{report:?}\n{text}")).model)
}

fn app() -> Name {
    "app".into()
}

fn store(model: Arc<Model>, file: Option<&Path>) -> Store {
    let journal = file.map(Journal::new);
    let restored = journal.as_ref().map(|journal| journal.load(0).expect("a journal")).unwrap_or_default();
    Store::new(model, restored, journal, Arc::new(Metrics::new("0", 1)), Arc::default())
}

fn add(store: &Store, id: &str, put: Put) -> Result<Changed, ChangeError> {
    store.change(&app(), None, false, |all, now| all.put(&id.into(), put, Note::default(), now))
}

fn set(store: &Store, id: &str, admin: AdminState) -> Result<Changed, ChangeError> {
    let patch = Patch { admin: Some(admin), ..Patch::default() };
    store.change(&app(), None, false, |all, _| all.patch(&id.into(), patch, Note::default()))
}

fn remove(store: &Store, id: &str, drain: u64) -> Result<Changed, ChangeError> {
    store.change(&app(), None, true, |all, now| all.remove(&id.into(), drain, true, Note::default(), now))
}

fn at(port: u16) -> Put {
    let address = BackendAddress::Inet(([127, 0, 0, 1], port).into());
    Put { address, weight: None, ttl: None, force: false, transient: false }
}

/// What traffic sees.
fn shown(store: &Store) -> String {
    let view = store.view(&app()).expect("an upstream");
    let one = |backend: &Arc<crate::runtime::backend::BackendState>| match backend.admin {
        AdminState::Ready => backend.id.to_string(),
        admin => format!("{}:{admin}", backend.id),
    };
    view.upstream.backends().iter().map(one).collect::<Vec<_>>().join(" ")
}

fn picked(store: &Store, id: &str) -> Picked {
    let view = store.view(&app()).expect("an upstream");
    let found = view.upstream.backends().iter().find(|backend| backend.id.as_str() == id).cloned();
    Picked::new(found.expect("a backend"))
}

#[test]
fn a_change_survives_the_process() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("state.json");
    let first = store(model(TWO), Some(&file));
    add(&first, "x", at(9)).expect("adds");
    set(&first, "a", AdminState::Drain).expect("drains");
    remove(&first, "b", 0).expect("removes");
    let version = first.view(&app()).expect("an upstream").version;
    drop(first);
    let second = store(model(TWO), Some(&file));
    assert_eq!(shown(&second), "a:drain x");
    assert_eq!(second.view(&app()).expect("an upstream").version, version);
    // Also when the configuration was edited meanwhile.
    let third = store(model("[{ id: a, address: 127.0.0.1:7 }, { id: c, address: 127.0.0.1:3 }]"), Some(&file));
    assert_eq!(shown(&third), "a:drain c x");
}

#[test]
fn what_cannot_be_kept_is_refused_and_changes_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let (place, away) = (folder.path().join("state"), folder.path().join("away"));
    fs::create_dir(&place).expect("a folder");
    let store = store(model(TWO), Some(&place.join("state.json")));
    let published = Arc::new(AtomicUsize::new(0));
    let count = published.clone();
    store.publish_by(Box::new(move |_| {
        count.fetch_add(1, Ordering::Relaxed);
    }));
    set(&store, "a", AdminState::Drain).expect("drains");
    let before = store.view(&app()).expect("an upstream");
    // A file is where the folder was: nobody can write there, root neither.
    fs::rename(&place, &away).expect("moves");
    fs::write(&place, "").expect("writes");
    let snapshot = store.snapshot();
    for refused in [set(&store, "a", AdminState::Ready), add(&store, "x", at(9)), remove(&store, "b", 0)] {
        assert!(matches!(refused, Err(ChangeError::NotKept(SaveError::Write(..)))), "{refused:?}");
    }
    let after = store.view(&app()).expect("an upstream");
    assert_eq!((after.version, after.membership), (before.version, before.membership));
    assert!(Arc::ptr_eq(&store.snapshot(), &snapshot));
    assert_eq!(published.load(Ordering::Relaxed), 2);
    // What is not kept anyway needs no place.
    add(&store, "t", Put { transient: true, ..at(8) }).expect("adds");
    fs::remove_file(&place).expect("removes");
    fs::rename(&away, &place).expect("moves");
    let kept = Journal::new(&place.join("state.json")).load(0).expect("as it was");
    assert_eq!(kept[&app()].keys().map(Name::as_str).collect::<Vec<_>>(), ["a"]);
    add(&store, "x", at(9)).expect("adds");
    store.journal().expect("a journal").seal();
    assert!(matches!(remove(&store, "x", 0), Err(ChangeError::NotKept(SaveError::Sealed(_)))));
    assert_eq!(shown(&store), "a:drain b t x");
}

#[test]
fn a_change_is_visible_before_it_returns() {
    let store = store(model(TWO), None);
    let seen = Arc::new(Mutex::new(Vec::new()));
    let publish = seen.clone();
    store.publish_by(Box::new(move |snapshot| {
        let count = snapshot.members()[0].upstream.backends().len();
        publish.lock().expect("no panic").push(count);
    }));
    add(&store, "x", at(9)).expect("adds");
    assert_eq!(*seen.lock().expect("no panic"), [2, 3]);
    assert_eq!(add(&store, "x", at(9)).expect("is there").outcome, Outcome::Unchanged);
    assert_eq!(*seen.lock().expect("no panic"), [2, 3], "nothing is built for nothing");
}

#[test]
fn no_change_is_lost_among_many() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("state.json");
    let shared = store(model(TWO), Some(&file));
    thread::scope(|scope| {
        for worker in 0..4u16 {
            let shared = &shared;
            scope.spawn(move || {
                for n in 0..5 {
                    add(shared, &format!("w{worker}-{n}"), at(1_000 + worker * 10 + n)).expect("adds");
                    if n % 2 == 1 {
                        remove(shared, &format!("w{worker}-{n}"), 0).expect("removes");
                    }
                }
            });
        }
    });
    assert_eq!(shown(&shared).split(' ').count(), 2 + 4 * 3);
    assert_eq!(shown(&store(model(TWO), Some(&file))), shown(&shared));
}

#[test]
fn a_change_meant_for_another_version_is_refused() {
    let store = store(model(TWO), None);
    let version = store.view(&app()).expect("an upstream").version;
    set(&store, "a", AdminState::Drain).expect("drains");
    let late = store.change(&app(), Some(version), false, |_, _| panic!("not asked"));
    assert!(matches!(late, Err(ChangeError::Stale { current }) if current != version));
    let nowhere = store.change(&"none".into(), None, false, |_, _| panic!("not asked"));
    assert!(matches!(nowhere, Err(ChangeError::NoUpstream(_))));
}

#[test]
fn the_last_backend_that_is_up_is_not_taken_away() {
    let checked = "  app: { backends: [{ id: a, address: 127.0.0.1:1 }, { id: b, address: 127.0.0.1:2 }], \
                   health_check: { type: tcp } }\n";
    let store = store(with_upstreams(checked), None);
    let health = |of_a, of_b| {
        for (backend, health) in store.view(&app()).expect("app").upstream.backends().iter().zip([of_a, of_b]) {
            backend.set_health(health);
        }
    };
    let drain = |id: &str, force| {
        let patch = Patch { admin: Some(AdminState::Drain), force, ..Patch::default() };
        store.change(&app(), None, force, |all, _| all.patch(&id.into(), patch, Note::default()))
    };
    health(Health::Down, Health::Up);
    let refused = drain("b", false);
    assert!(matches!(&refused, Err(ChangeError::Refused(Refusal::LastReady(id))) if id.as_str() == "b"), "{refused:?}");
    assert_eq!(shown(&store), "a b");
    // A new one is nothing until its first probe.
    let others = vec![("c".into(), at(3))];
    let set = |all: &mut Membership, now| {
        all.remove(&"b".into(), 0, false, Note::default(), now)?;
        all.replace(others, 0, false, &Note::default(), now).map(|()| Outcome::Changed)
    };
    assert!(matches!(store.change(&app(), None, false, set), Err(ChangeError::Refused(Refusal::LastReady(_)))));
    drain("a", false).expect("nobody uses it");
    drain("b", true).expect("forced");
    set_ready(&store);
    health(Health::Down, Health::Down);
    drain("a", false).expect("no request goes anywhere as it is");
}

fn set_ready(store: &Store) {
    for id in ["a", "b"] {
        set(store, id, AdminState::Ready).expect("a backend");
    }
}

#[test]
fn tls_without_a_name_takes_only_host_names() {
    let store = store(with_upstreams("  app: { backends: [\"a.test:443\"], tls: {} }\n"), None);
    assert!(matches!(add(&store, "x", at(9)), Err(ChangeError::SniMissing(_))));
    assert_eq!(shown(&store), "a.test:443");
}

#[test]
fn a_backend_that_leaves_is_gone_when_its_last_request_is() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("state.json");
    let store = store(model(TWO), Some(&file));
    add(&store, "x", at(9)).expect("adds");
    let request = picked(&store, "x");
    assert_eq!(remove(&store, "x", 60_000).expect("leaves").outcome, Outcome::Leaving);
    store.sweep();
    assert_eq!(shown(&store), "a b x:drain");
    assert!(store.metrics.encode().contains("backend=\"x\""));
    drop(request);
    store.sweep();
    assert_eq!(shown(&store), "a b");
    assert!(!store.metrics.encode().contains("backend=\"x\""), "its counters are forgotten");
    assert_eq!(Journal::new(&file).load(0).expect("a journal"), Overrides::new());
    let kinds: Vec<&str> = store.events().after(0, 10).0.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, ["backend.removed"]);
}

#[test]
fn a_lease_is_written_once_and_ends_by_silence() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("state.json");
    let store = store(model(TWO), Some(&file));
    let lease = Put { ttl: Some(60_000), ..at(9) };
    add(&store, "x", lease.clone()).expect("leases");
    let inode = fs::metadata(&file).expect("a file").ino();
    assert_eq!(add(&store, "x", lease).expect("renews").outcome, Outcome::Renewed);
    assert_eq!(fs::metadata(&file).expect("a file").ino(), inode, "a renewal writes nothing");
    add(&store, "x", Put { ttl: Some(1), ..at(9) }).expect("renews");
    let started = Instant::now();
    while shown(&store) != "a b" {
        store.sweep();
        assert!(started.elapsed() < Duration::from_secs(10), "{}", shown(&store));
    }
    let kinds: Vec<&str> = store.events().after(0, 10).0.iter().map(|event| event.kind).collect();
    assert_eq!(kinds, ["backend.expired", "backend.removed"]);
    assert_eq!(Journal::new(&file).load(0).expect("a journal"), Overrides::new());
}

#[test]
fn a_reload_keeps_what_was_said_and_forgets_what_is_gone() {
    let store = store(model(TWO), None);
    set(&store, "a", AdminState::Drain).expect("drains");
    add(&store, "x", at(9)).expect("adds");
    let health = store.view(&app()).expect("an upstream").upstream.backends()[0].clone();
    let next =
        with_upstreams("  app: { backends: [{ id: a, address: 127.0.0.1:1 }] }\n  new: { backends: [127.0.0.1:5] }\n");
    assert_eq!(store.reload(next), []);
    assert_eq!(shown(&store), "a:drain x");
    assert!(store.view(&app()).expect("an upstream").upstream.backends()[0].same_backend(&health));
    let metrics = store.metrics.encode();
    assert!(!metrics.contains("backend=\"b\"") && metrics.contains("upstream=\"new\""));
    store.reload(model(TWO));
    assert_eq!(shown(&store), "a:drain b x");
    assert!(!store.metrics.encode().contains("upstream=\"new\""));
    let conflicts = store.reload(model("[{ id: c, address: 127.0.0.1:9 }]"));
    assert_eq!(conflicts.iter().map(|(_, conflict)| conflict.field).collect::<Vec<_>>(), ["taken"]);
}

#[test]
fn going_back_brings_back_what_the_reload_made_needless() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("state.json");
    let store = store(model(TWO), Some(&file));
    add(&store, "x", at(9)).expect("adds");
    remove(&store, "b", 0).expect("removes");
    let weight = Patch { weight: Weight::new(5), ..Patch::default() };
    store.change(&app(), None, false, |all, _| all.patch(&"a".into(), weight, Note::default())).expect("a");
    let before = store.view(&app()).expect("an upstream").membership;
    store.reload(model("[{ id: a, address: 127.0.0.1:1, weight: 5 }]"));
    assert_eq!(store.overrides()[&app()].len(), 1);
    set(&store, "x", AdminState::Drain).expect("drains");
    store.revert_with(store.stage(model(TWO)), || ());
    let after = store.view(&app()).expect("an upstream").membership;
    let but_x = |all: &Membership| all.overrides().iter().filter(|(id, _)| id.as_str() != "x").count();
    assert_eq!((but_x(&before), but_x(&after)), (2, 2));
    assert_eq!(shown(&store), "a x:drain", "what was said since stays too");
    assert_eq!(after.entry(&"a".into()).map(|entry| entry.spec.weight), Weight::new(5));
    assert_eq!(Journal::new(&file).load(0).expect("a journal"), store.overrides());
}

#[test]
fn discovery_adds_and_takes_away_and_is_told() {
    let text = model(TWO);
    let mut found = (*text).clone();
    let list = model::DiscoverList { path: "/x".into(), refresh: Duration::from_secs(1) };
    found.upstreams.get_mut(&app()).expect("an upstream").discover = Some(Discover::List(list));
    let store = store(Arc::new(found), None);
    let one = |port, weight| Declared {
        id: "found".into(),
        spec: Spec { address: at(port).address, weight: Weight::new(weight).expect("a weight") },
        source: Source::List,
    };
    for declared in [vec![one(5, 1)], vec![one(5, 2)], vec![one(6, 2)], Vec::new(), Vec::new()] {
        store.discovered(&app(), declared);
    }
    let told = store.events().after(0, 10).0;
    let told: Vec<String> = told.iter().map(|event| format!("{} {}", event.kind, event.what)).collect();
    let expected = [
        "backend.added added at 127.0.0.1:5",
        "backend.changed weight 1 -> 2",
        "backend.changed 127.0.0.1:5 -> 127.0.0.1:6",
        "backend.removed not found any more",
    ];
    assert_eq!(told, expected);
    store.reload(text);
    store.discovered(&app(), vec![one(5, 1)]);
    assert_eq!(shown(&store), "a b", "late news count for nothing");
}

/// Connections to one origin, pooled as traffic's are.
struct Wire {
    listener: TcpListener,
    transport: TransportConnector,
}

impl Wire {
    async fn new() -> (Self, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        (Self { listener, transport: TransportConnector::new(Some(ConnectorOptions::new(8))) }, address)
    }

    /// A connection to a backend, and the origin's end of it.
    async fn open(&self, picked: &Picked) -> (pingora_core::protocols::Stream, TcpStream) {
        let peer = picked.peer().expect("an address");
        let (ours, theirs) = tokio::join!(self.transport.new_stream(&*peer), self.listener.accept());
        (ours.expect("connects"), theirs.expect("accepts").0)
    }

    fn pool(&self, stream: pingora_core::protocols::Stream, picked: &Picked) {
        self.transport.release_stream(stream, picked.peer().expect("an address").reuse_hash(), None);
    }
}

async fn is_closed(origin: &mut TcpStream) -> bool {
    matches!(timeout(Duration::from_secs(5), origin.read(&mut [0])).await, Ok(Ok(0)))
}

async fn is_open(origin: &mut TcpStream) -> bool {
    timeout(Duration::from_millis(30), origin.read(&mut [0])).await.is_err()
}

fn sweep_twice(store: &Store) {
    store.sweep();
    store.sweep();
}

#[tokio::test]
async fn idle_connections_are_closed_after_a_removal_and_busy_ones_after_their_request() {
    let (wire, address) = Wire::new().await;
    let store = store(model(TWO), None);
    add(&store, "x", at(address.port())).expect("adds");
    let request = picked(&store, "x");
    let (idle, mut idle_origin) = wire.open(&request).await;
    let (busy, mut busy_origin) = wire.open(&request).await;
    wire.pool(idle, &request);
    remove(&store, "x", 0).expect("removes");
    sweep_twice(&store);
    assert!(is_open(&mut idle_origin).await && is_open(&mut busy_origin).await, "a request is in flight");
    wire.pool(busy, &request);
    drop(request);
    sweep_twice(&store);
    assert!(is_closed(&mut idle_origin).await && is_closed(&mut busy_origin).await);
}

#[tokio::test]
async fn a_connection_that_another_upstream_shares_stays() {
    let (wire, address) = Wire::new().await;
    let app_only = format!("  app: {{ backends: [\"127.0.0.1:1\", {{ id: x, address: \"{address}\" }}] }}\n");
    let both = format!("{app_only}  other: {{ backends: [\"{address}\"] }}\n");
    let store = store(with_upstreams(&both), None);
    let request = picked(&store, "x");
    let (stream, mut origin) = wire.open(&request).await;
    wire.pool(stream, &request);
    drop(request);
    remove(&store, "x", 0).expect("removes");
    sweep_twice(&store);
    assert!(is_open(&mut origin).await, "`other` goes on with it");
    store.reload(with_upstreams("  app: { backends: [\"127.0.0.1:1\"] }\n"));
    sweep_twice(&store);
    assert!(is_closed(&mut origin).await);
}

#[tokio::test]
async fn the_old_addresss_connections_are_closed_though_the_backend_is_busy_at_the_new_one() {
    let (wire, address) = Wire::new().await;
    let store = store(model(TWO), None);
    add(&store, "x", at(address.port())).expect("adds");
    let old = picked(&store, "x");
    let (stream, mut origin) = wire.open(&old).await;
    wire.pool(stream, &old);
    add(&store, "x", at(9)).expect("moves");
    let new = picked(&store, "x");
    sweep_twice(&store);
    assert!(is_open(&mut origin).await, "a request is in flight at the old address");
    drop(old);
    assert_eq!(new.backend().in_flight(), 1);
    sweep_twice(&store);
    assert!(is_closed(&mut origin).await);
}

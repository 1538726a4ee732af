//! Counters outlive a configuration that says the same of them; what the fields of rate limits say.

use std::{path::Path, time::Duration};

use http::{HeaderMap, Version};

use super::*;
use crate::{
    config::parse_with,
    runtime::{journal::Overrides, snapshot::Snapshot, store::Store},
    telemetry::{events::Events, metrics::Metrics},
};

fn model(route: &str) -> model::Model {
    let text = format!(
        "listeners: [{{ address: 127.0.0.1:0 }}]\nupstreams: {{ app: {{ backends: [a:1] }} }}\n\
         routes: [{{ name: api, upstream: app, {route} }}]\n"
    );
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/test.yaml");
    let loaded = parse_with(&text, &file, &|_| None);
    loaded.unwrap_or_else(|report| panic!("{}", report.render(crate::config::Format::Human))).model
}

fn guards(route: &str, previous: Option<&Guards>) -> Guards {
    // As all snapshots of a process do.
    let before = previous.and_then(|before| {
        let rate = before.rate.as_ref().map(|limits| limits.limits[0].seed.clone());
        rate.or_else(|| Some(before.concurrency.as_ref()?.seed.clone()))
    });
    let mut carried = Carried::default();
    previous.into_iter().for_each(|previous| carried.add(previous));
    Guards::build(&model(route).routes[0].guards, &mut carried, &before.unwrap_or_default()).expect("guards")
}

/// What `client` asks, without fields.
fn rated(limits: &RateLimits, client: Option<[u8; 4]>, now: Instant) -> Rated {
    let asker =
        Asker { client: client.map(Into::into), host: None, version: Version::HTTP_11, fields: &HeaderMap::new() };
    limits.decide(&asker, now).expect("one key")
}

fn place(guards: &Guards) -> Option<Permit> {
    let asker = Asker { client: None, host: None, version: Version::HTTP_11, fields: &HeaderMap::new() };
    guards.concurrency.as_ref().expect("a limit").enter(&asker).expect("one key")
}

fn passes(guards: &Guards, now: Instant) -> bool {
    let limits = guards.rate.as_ref().expect("rate limits");
    rated(limits, Some([192, 0, 2, 1]), now).retry_after.is_none()
}

const RATE: &str = "rate_limit: { rate: 1/h, burst: 2 }, concurrency: { limit: 1 }";

#[test]
fn counters_go_on_under_the_same_limit_and_begin_anew_under_another() {
    let now = Instant::now();
    let first = guards(RATE, None);
    assert!(passes(&first, now) && passes(&first, now) && !passes(&first, now));
    let permit = place(&first).expect("a place");
    let same = guards(&format!("{RATE}, allow: 10.0.0.0/8"), Some(&first));
    assert!(!passes(&same, now));
    let enter = |guards: &Guards| place(guards).is_some();
    assert!(!enter(&same));
    let moved = guards("rate_limit: [{ rate: 5/s }, { rate: 1/h, burst: 2 }], concurrency: { limit: 2 }", Some(&same));
    assert!(!passes(&moved, now), "in another place of the list");
    assert!(enter(&moved), "another limit of the same requests");
    let other = guards("rate_limit: { rate: 1/h, burst: 3 }, concurrency: { key: route, limit: 1 }", Some(&moved));
    assert!(passes(&other, now) && enter(&other));
    drop(permit);
    assert!(enter(&same));
}

#[test]
fn two_limits_alike_have_each_their_own_counters() {
    let twice = "rate_limit: [{ rate: 2/h }, { rate: 2/h }]";
    let now = Instant::now();
    let first = guards(twice, None);
    assert!(passes(&first, now));
    let again = guards(twice, Some(&first));
    assert!(passes(&again, now) && !passes(&again, now));
}

#[test]
fn a_reload_and_a_change_of_backends_keep_the_counters() {
    let metrics = Arc::new(Metrics::new("test", 1));
    let store = Store::new(Arc::new(model(RATE)), Overrides::new(), None, metrics, Arc::new(Events::default()));
    let now = Instant::now();
    let passes_now = |snapshot: &Snapshot| passes(snapshot.route(0).guards.as_ref().expect("guards"), now);
    assert!(passes_now(&store.snapshot()) && passes_now(&store.snapshot()) && !passes_now(&store.snapshot()));
    store.reload(Arc::new(model(&format!("{RATE}, match: {{ path: /v1 }}"))));
    assert!(!passes_now(&store.snapshot()), "after a reload");
    let put = crate::runtime::membership::Put {
        address: crate::config::parse_backend_address("b:1").expect("an address"),
        weight: None,
        ttl: None,
        force: false,
        transient: false,
    };
    let added =
        store.change(&"app".into(), None, false, |members, now| members.put(&"b".into(), put, Default::default(), now));
    added.expect("another backend");
    assert_eq!(store.snapshot().member(0).backends.len(), 2);
    let seed = *store.snapshot().limit_seed().get();
    assert!(!passes_now(&store.snapshot()), "after a change of backends");
    store.reload(Arc::new(model("rate_limit: { rate: 9/h }")));
    let snapshot = store.snapshot();
    assert_eq!(*snapshot.limit_seed().get(), seed, "a limit of a later reload counts by the same seed");
    let limits = snapshot.route(0).guards.as_ref().and_then(|guards| guards.rate.as_ref()).expect("a limit");
    assert!(Arc::ptr_eq(&limits.limits[0].seed, snapshot.limit_seed()));
}

#[test]
fn a_request_beyond_one_limit_uses_up_no_other() {
    let guards = guards("rate_limit: [{ key: route, rate: 2/h }, { rate: 1/h }]", None);
    let limits = guards.rate.as_ref().expect("rate limits");
    let now = Instant::now();
    let ask = |client: [u8; 4]| rated(limits, Some(client), now).retry_after.is_none();
    assert!(ask([192, 0, 2, 1]));
    assert!((0..10).all(|_| !ask([192, 0, 2, 1])));
    assert!(ask([192, 0, 2, 2]), "what all share is still there");
    assert!(!ask([192, 0, 2, 3]));
}

#[test]
fn a_request_with_two_keys_of_one_limit_uses_up_no_other() {
    let guards = guards("rate_limit: [{ key: route, rate: 1/h }, { key: { header: X-Key }, rate: 9/h }]", None);
    let limits = guards.rate.as_ref().expect("rate limits");
    let mut fields = HeaderMap::new();
    fields.append("x-key", HeaderValue::from_static("a"));
    fields.append("x-key", HeaderValue::from_static("b"));
    let now = Instant::now();
    for _ in 0..3 {
        let asker = Asker { client: None, host: None, version: Version::HTTP_11, fields: &fields };
        assert_eq!(limits.decide(&asker, now), Err(TwoKeys));
    }
    assert_eq!(rated(limits, None, now).retry_after, None);
}

#[test]
fn fields_say_what_is_left_and_for_how_long_not() {
    let guards = guards("rate_limit: [{ rate: 50/s, burst: 100 }, { key: route, rate: 2/m }, { rate: 9/h }]", None);
    let limits = guards.rate.as_ref().expect("rate limits");
    assert_eq!(limits.policy, r#""client_ip";q=100;w=2, "route";q=2;w=60, "client_ip-2";q=9;w=3600"#);
    let now = Instant::now();
    let ask = |now| rated(limits, None, now);
    let field = |rated: &Rated| rated.field.clone().expect("a field").to_str().expect("text").to_owned();
    assert_eq!(field(&ask(now)), r#""client_ip";r=99;t=1, "route";r=1;t=30, "client_ip-2";r=8;t=400"#);
    ask(now);
    let refused = ask(now + Duration::from_millis(500));
    assert_eq!((field(&refused).as_str(), refused.retry_after), (r#""route";r=0;t=30"#, Some(30)));
    assert_eq!(ask(now + Duration::from_secs(30)).retry_after, None, "when it says so");
}

#[test]
fn a_short_burst_is_told_as_what_a_second_gives() {
    let told = |limit: &str| guards(&format!("rate_limit: {{ {limit} }}"), None).rate.expect("a limit").policy;
    assert_eq!(told("rate: 50/s, burst: 1"), r#""client_ip";q=50;w=1"#);
    assert_eq!(told("rate: 1/10s, key: { header: X-Key }"), r#""header";q=1;w=10"#);
    assert_eq!(told("rate: 1000000/s, burst: 1"), r#""client_ip";q=1000000;w=1"#);
}

#[test]
fn another_password_file_is_asked_at_once() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("users");
    let route = format!("basic_auth: {{ file: {} }}", file.display());
    let write = |password: &str| {
        let hash = bcrypt::hash(password, 4).expect("a hash");
        std::fs::write(&file, format!("a:{hash}\n")).expect("written");
    };
    let credentials = || {
        let mut headers = HeaderMap::new();
        headers.insert(http::header::AUTHORIZATION, HeaderValue::from_static("Basic YTpi"));
        Credentials::of(&headers).expect("credentials")
    };
    let (now, known) =
        (Instant::now(), |guards: &Guards, now| guards.basic.as_ref().expect("basic").known(&credentials(), now));
    write("b");
    let first = guards(&route, None);
    let (tag, verdict) = known(&first, now);
    assert_eq!(verdict, None);
    assert!(first.basic.as_ref().expect("basic").verify(&credentials(), tag));
    let same = guards(&format!("{route}, allow: 10.0.0.0/8"), Some(&first));
    assert_eq!(known(&same, now).1, Some(true));
    write("c");
    let changed = guards(&route, Some(&same));
    let (tag, verdict) = known(&changed, now);
    assert_eq!(verdict, None);
    assert!(!changed.basic.as_ref().expect("basic").verify(&credentials(), tag));
    assert_eq!(known(&changed, now).1, Some(false));
}

#[test]
fn a_seed_is_adopted_before_its_first_use_and_not_after() {
    let (old, new) = (LimitSeed::default(), LimitSeed::default());
    let seed = *old.get();
    assert!(new.adopt(seed));
    assert_eq!(*new.get(), seed);
    assert!(new.adopt(seed), "the same again does no harm");
    let used = LimitSeed::default();
    used.get();
    assert!(!used.adopt(seed));
    assert_ne!(*used.get(), seed);
}

#[test]
fn a_route_without_a_name_is_found_again_by_what_it_matches() {
    let key_of = |matches: &str| key(&named(&format!("match: {{ {matches} }}, upstream: app")));
    let same = key_of("host: [a.test, \"*.b.test\"], path: /v1/, method: [GET, POST], header: { X-A: \"1\" }");
    assert_eq!(same, "match path=/v1/ header=x-a:\"1\" host=*.b.test host=a.test method=GET method=POST");
    assert_eq!(same, key_of("header: { X-A: \"1\" }, method: [POST, GET], host: [\"*.b.test\", a.test], path: /v1"));
    assert_ne!(key_of("path: /v1"), key_of("path_exact: /v1"));
    assert_eq!(key(&named("name: api, match: { path: /v1 }, upstream: app")), "api");
}

fn named(route: &str) -> model::Route {
    let text = format!(
        "listeners: [{{ address: 127.0.0.1:0 }}]\nupstreams: {{ app: {{ backends: [a:1] }} }}\nroutes: [{{ {route} }}]\n"
    );
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf/test.yaml");
    let loaded = parse_with(&text, &file, &|_| None);
    loaded.unwrap_or_else(|report| panic!("{}", report.render(crate::config::Format::Human))).model.routes.remove(0)
}

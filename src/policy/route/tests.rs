//! The compiled router against a naive one, and the promises of its helpers.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;

fn naive(routes: &[RouteMatch], request: &RequestView<'_>) -> Option<usize> {
    let host = without_port(request.host).to_ascii_lowercase();
    let host = host.strip_suffix('.').unwrap_or(&host);
    routes.iter().position(|route| {
        let host_matches = route.hosts.is_empty()
            || route.hosts.iter().any(|pattern| match pattern {
                HostPattern::Exact(name) => name == host,
                HostPattern::Wildcard(suffix) => host.len() > suffix.len() && host.ends_with(suffix.as_str()),
            });
        let path_matches = match &route.path {
            PathPattern::Any => true,
            PathPattern::Exact(path) => path == request.path,
            PathPattern::Prefix(prefix) => is_below(request.path, prefix),
        };
        host_matches && path_matches && route.conditions_hold(request)
    })
}

fn host_pattern() -> impl Strategy<Value = HostPattern> {
    prop_oneof![
        prop::sample::select(vec!["a.test", "b.test", "x.a.test", "y.x.a.test"])
            .prop_map(|name| HostPattern::Exact(name.into())),
        prop::sample::select(vec![".test", ".a.test", ".x.a.test"])
            .prop_map(|suffix| HostPattern::Wildcard(suffix.into())),
    ]
}

fn path_pattern() -> impl Strategy<Value = PathPattern> {
    let path = || prop::sample::select(vec!["/v1", "/v1/x", "/v1/x/y", "/v2"]);
    prop_oneof![
        Just(PathPattern::Any),
        path().prop_map(|path| PathPattern::Exact(path.into())),
        path().prop_map(|path| PathPattern::Prefix(path.into())),
        Just(PathPattern::Prefix(String::new())),
    ]
}

fn route() -> impl Strategy<Value = RouteMatch> {
    let canary = (HeaderName::from_static("x-canary"), HeaderValue::from_static("1"));
    (
        prop::collection::vec(host_pattern(), 0..3),
        path_pattern(),
        prop::sample::subsequence(vec![Method::GET, Method::POST], 0..2),
        prop::sample::subsequence(vec![canary], 0..=1),
    )
        .prop_map(|(hosts, path, methods, headers)| RouteMatch { hosts, path, methods, headers })
}

const HOSTS: [&str; 10] =
    ["a.test", "A.Test:8080", "b.test.", "x.a.test", "y.X.a.test:1", "z.y.x.a.test", ".test", "test", "", "[::1]:80"];
const PATHS: [&str; 12] =
    ["/", "*", "", "/v1", "/v1/", "/v1x", "/v1/x", "/v1/x/", "/v1/x/y/z", "/v2/a", "//v1", "/v1//x"];

proptest! {
    #[test]
    fn the_router_agrees_with_a_naive_one(
        routes in prop::collection::vec(route(), 0..12),
        host in prop::sample::select(&HOSTS[..]),
        path in prop::sample::select(&PATHS[..]),
        method in prop::sample::select(vec![Method::GET, Method::POST, Method::PUT]),
        canary in any::<bool>(),
    ) {
        let mut headers = HeaderMap::new();
        if canary {
            headers.append("x-canary", HeaderValue::from_static("0"));
            headers.append("x-canary", HeaderValue::from_static("1"));
        }
        let request = RequestView { host, path, method: &method, headers: &headers };
        prop_assert_eq!(Router::new(routes.iter()).find(&request), naive(&routes, &request));
    }

    #[test]
    fn a_covered_route_never_wins_after_its_cover(
        first in route(),
        second in route(),
        host in prop::sample::select(&HOSTS[..]),
        path in prop::sample::select(&PATHS[..]),
        canary in any::<bool>(),
    ) {
        let mut headers = HeaderMap::new();
        if canary {
            headers.append("x-canary", HeaderValue::from_static("1"));
        }
        let request = RequestView { host, path, method: &Method::GET, headers: &headers };
        if first.covers(&second) {
            prop_assert_ne!(naive(&[first, second], &request), Some(1));
        }
    }

    #[test]
    fn a_stripped_path_begins_with_one_slash(tail in "[/a?]{0,8}") {
        let path = format!("/site{tail}");
        let stripped = strip_prefix(&path, "/site");
        prop_assert!(stripped.starts_with('/') && !stripped.starts_with("//"), "{}", stripped);
    }
}

#[test]
fn covers_is_conservative_and_sees_the_plain_cases() {
    let host = |pattern: HostPattern| RouteMatch { hosts: vec![pattern], ..RouteMatch::default() };
    let path = |path: PathPattern| RouteMatch { path, ..RouteMatch::default() };
    let everything = RouteMatch::default();
    let wildcard = host(HostPattern::Wildcard(".example.com".into()));
    let exact = host(HostPattern::Exact("api.example.com".into()));
    assert!(everything.covers(&wildcard) && wildcard.covers(&exact));
    assert!(!exact.covers(&wildcard) && !wildcard.covers(&everything));
    assert!(path(PathPattern::Prefix("/v1".into())).covers(&path(PathPattern::Exact("/v1/x".into()))));
    assert!(!path(PathPattern::Prefix("/v1".into())).covers(&path(PathPattern::Prefix("/v1x".into()))));
    let get = RouteMatch { methods: vec![Method::GET], ..RouteMatch::default() };
    assert!(everything.covers(&get) && !get.covers(&everything));
}

#[test]
fn ten_thousand_routes_cost_a_request_no_scan() {
    let routes: Vec<_> = (0..10_000)
        .map(|n| RouteMatch {
            hosts: if n % 2 == 0 { vec![HostPattern::Exact(format!("h{n}.test"))] } else { Vec::new() },
            path: if n % 2 == 0 { PathPattern::Any } else { PathPattern::Prefix(format!("/p{n}")) },
            ..RouteMatch::default()
        })
        .collect();
    let router = Router::new(routes.iter());
    let headers = HeaderMap::new();
    let begin = Instant::now();
    for n in 0..10_000 {
        let (host, path) = (format!("h{n}.test"), format!("/p{n}/x"));
        let request = RequestView { host: &host, path: &path, method: &Method::GET, headers: &headers };
        assert_eq!(router.find(&request), Some(n));
    }
    // A linear scan makes 50 million comparisons and takes many times as long, even in a slow debug build.
    assert!(begin.elapsed() < Duration::from_secs(2), "{:?}", begin.elapsed());
}

#[test]
fn a_hostile_host_or_path_costs_no_more_than_a_route_could_name() {
    let routes = [
        RouteMatch { hosts: vec![HostPattern::Wildcard(".a.test".into())], ..RouteMatch::default() },
        RouteMatch { path: PathPattern::Prefix("/v1".into()), ..RouteMatch::default() },
    ];
    let router = Router::new(routes.iter());
    let headers = HeaderMap::new();
    let (dots, slashes) = (".".repeat(32_000), "/".repeat(32_000));
    let request = RequestView { host: &dots, path: &slashes, method: &Method::GET, headers: &headers };
    assert_eq!(router.find(&request), None);
}

#[test]
fn split_shares_follow_the_weights() {
    let share = |weight| ((), Weight::new(weight).expect("in range"));
    let shares = [share(95), share(0), share(5)];
    let mut counts = [0u32; 3];
    for n in 0..1000u64 {
        counts[pick_split(&shares, n * (u64::MAX / 1000))] += 1;
    }
    assert_eq!((counts[1], counts[0].abs_diff(950) <= 1, counts[2].abs_diff(50) <= 1), (0, true, true));
    assert_eq!(pick_split(&[share(0)], 7), 0);
    assert_eq!(pick_split::<()>(&[], 7), 0);
    assert_eq!(pick_split(&shares, u64::MAX), 2);
}

#[test]
fn prefixes_are_taken_off_on_borders() {
    for (from, to) in [
        ("/site/x?y", "/x?y"),
        ("/site", "/"),
        ("/site/", "/"),
        ("/site?x", "/?x"),
        ("/site//evil.test/", "/evil.test/"),
        ("/sites", "/sites"),
        ("/other", "/other"),
    ] {
        assert_eq!(strip_prefix(from, "/site"), to, "{from}");
    }
}

#[test]
fn ports_go_and_addresses_stay() {
    for (from, to) in
        [("a:80", "a"), ("a", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("a:x", "a:x"), ("a:", "a")]
    {
        assert_eq!(without_port(from), to);
    }
}

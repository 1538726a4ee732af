//! The compiled router against a naive one, and the promises of its helpers.

use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::policy::path::SentPath;

/// As [`Router::find`], where the path is beyond doubt.
fn find(router: &Router, request: &RequestView<'_>) -> Option<usize> {
    router.find(request).expect("the path is beyond doubt").route
}

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
const PATHS: [&str; 8] = ["/", "/v1", "/v1/", "/v1x", "/v1/x", "/v1/x/", "/v1/x/y/z", "/v2/a"];

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
        prop_assert_eq!(find(&Router::new(routes.iter()), &request), naive(&routes, &request));
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
        assert_eq!(find(&router, &request), Some(n));
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
    assert_eq!(find(&router, &request), None);
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
fn ports_go_and_addresses_stay() {
    for (from, to) in
        [("a:80", "a"), ("a", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("a:x", "a:x"), ("a:", "a")]
    {
        assert_eq!(without_port(from), to);
    }
}

fn prefix(path: &str) -> RouteMatch {
    RouteMatch { path: PathPattern::Prefix(path.to_owned()), ..RouteMatch::default() }
}

fn decided(routes: &[RouteMatch], method: Method, host: &str, path: &str) -> Result<Option<usize>, Ambiguous> {
    let headers = HeaderMap::new();
    let request = RequestView { host, path, method: &method, headers: &headers };
    Router::new(routes.iter()).find(&request).map(|found| found.route)
}

#[test]
fn a_path_that_another_reader_gives_to_another_route_is_refused() {
    let routes = [prefix("/admin"), RouteMatch::default()];
    let find = |path| decided(&routes, Method::GET, "a", path);
    for path in ["/admin", "/%61dmin/x", "//admin", "/x/../admin", "/admin/;x", "/admin/x%2Fy", "/admin//"] {
        assert_eq!(find(path), Ok(Some(0)), "{path}");
    }
    for path in ["/a", "/x%2Fadmin", "/x;v=1/y", "/ADMIN", "/admin%20", "/%2561dmin", "/x\\admin", "/%C3%A9"] {
        assert_eq!(find(path), Ok(Some(1)), "{path}");
    }
    for path in [
        "/admin;x",
        "/admin%2Fx",
        "/%2Fadmin",
        "/admin%5Cx",
        "/\\admin",
        "/;x/admin",
        "/admin%3Bx",
        "/%2f;x/admin",
        "/;a%2Fb/admin%2Fx",
        "/%C1%A1dmin",
        "/admin%C0%AFx",
        "/%E0%80%AFadmin/x",
        "/%F0%80%80%AFadmin/x",
    ] {
        assert_eq!(find(path), Err(Ambiguous), "{path}");
    }
    // Where there is only one way to go, nothing is refused.
    assert_eq!(decided(&routes[1..], Method::GET, "a", "/admin%2Fx;y\\z"), Ok(Some(0)));
}

#[test]
fn a_star_is_for_options_only() {
    let routes = [RouteMatch::default()];
    assert_eq!(decided(&routes, Method::OPTIONS, "a", "*"), Ok(Some(0)));
    assert_eq!(decided(&routes, Method::GET, "a", "*"), Err(Ambiguous));
}

#[test]
fn every_spelling_of_a_host_is_the_same_host() {
    let host = |name: &str| RouteMatch { hosts: vec![HostPattern::Exact(name.into())], ..RouteMatch::default() };
    let routes = [host("a.test"), host("[2001:db8::1]"), host("10.0.0.1"), RouteMatch::default()];
    for (sent, route) in [
        ("a.test", Ok(Some(0))),
        ("A.tEst.", Ok(Some(0))),
        ("a.test.:8080", Ok(Some(0))),
        ("a.test:", Ok(Some(0))),
        ("a.test..", Ok(Some(3))),
        ("[2001:DB8:0:0::1]", Ok(Some(1))),
        ("[2001:db8::1]:443", Ok(Some(1))),
        ("[2001:db8::2]", Ok(Some(3))),
        ("10.0.0.1:80", Ok(Some(2))),
        ("%61.test", Err(Ambiguous)),
    ] {
        assert_eq!(decided(&routes, Method::GET, sent, "/"), route, "{sent}");
    }
}

/// What nginx makes of a path: decoded once, slashes merged, dots resolved; `None` where it refuses.
fn nginx(path: &str) -> Option<String> {
    resolved(&percent_decoded(path)?)
}

/// What Tomcat makes of it: parameters off, then decoded, then resolved.
fn servlet(path: &str) -> Option<String> {
    resolved(&percent_decoded(&without_parameters(path))?)
}

/// What a container that decodes first makes of it.
fn late_servlet(path: &str) -> Option<String> {
    resolved(&without_parameters(&percent_decoded(path)?))
}

/// What a server that takes backslashes for slashes makes of it.
fn windows(path: &str) -> Option<String> {
    resolved(&percent_decoded(path)?.replace('\\', "/"))
}

fn percent_decoded(path: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut parts = path.split('%');
    out.extend_from_slice(parts.next()?.as_bytes());
    for part in parts {
        let value = u8::from_str_radix(part.get(..2)?, 16).ok().filter(|value| *value != 0)?;
        out.push(value);
        out.extend_from_slice(part.get(2..)?.as_bytes());
    }
    Some(String::from_utf8_lossy(&out).into_owned())
}

fn without_parameters(path: &str) -> String {
    path.split('/').map(|segment| segment.split(';').next().unwrap_or_default()).collect::<Vec<_>>().join("/")
}

/// As `new URL(target, base)`, after it has decoded: what follows two slashes is an authority, and a backslash is a slash.
fn reference(path: &str) -> Option<String> {
    let path = percent_decoded(path)?.replace('\\', "/");
    let rest = path.trim_start_matches('/');
    match path.len() - rest.len() {
        0 | 1 => resolved(&path),
        _ => resolved(rest.find('/').and_then(|at| rest.get(at..)).unwrap_or("/")),
    }
}

fn resolved(path: &str) -> Option<String> {
    let mut segments = Vec::new();
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => drop(segments.pop()?),
            name => segments.push(name),
        }
    }
    Some(format!("/{}", segments.join("/")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(20_000))]
    #[test]
    fn no_spelling_brings_a_backend_below_a_path_that_was_not_decided_by(
        pieces in prop::collection::vec(prop::sample::select(&[
            "/", "/", "/", "//", "admin", "admin", "x@y", "x", "%61", "dmin", "a", ".", "..", "%2e", "%2E.", "%2f",
            "%2F", "\\", "%5c", ";", ";v=1", "%3b", "%25", "%252f", "%00", "%20", "%40", "@", "%C0%AF", "%C1%A1", "\u{e9}",
        ][..]), 0..9),
        normalized in any::<bool>(),
    ) {
        let path = format!("/{}", pieces.concat());
        let how = if normalized { SentPath::Normalized } else { SentPath::Raw };
        let routes = [prefix("/admin"), prefix("/x@y"), RouteMatch::default()];
        let (method, headers) = (Method::GET, HeaderMap::new());
        let request = RequestView { host: "a", path: &path, method: &method, headers: &headers };
        if let Ok(found) = Router::new(routes.iter()).find(&request)
            && let Ok(sent) = found.form.sent(&path, how, None)
        {
            for reader in [nginx, servlet, late_servlet, windows, reference] {
                if let Some(seen) = reader(sent) {
                    let due = ["/admin", "/x@y"].iter().position(|prefix| is_below(&seen, prefix)).unwrap_or(2);
                    prop_assert_eq!(Some(due), found.route, "{} sent as {} is {}", path, sent, seen);
                }
            }
        }
    }
}

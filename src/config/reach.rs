//! Routes that can never match because an earlier one takes every request that they would take. Earlier routes are
//! indexed by host, path, method and field, so that a file of many routes is looked through in nearly linear time.

use std::collections::HashMap;

use http::{HeaderName, HeaderValue, Method};

use super::{
    decode::{Decoder, Item},
    model::Route,
    tree::Value,
};
use crate::policy::route::{HostPattern, PathPattern, RouteMatch};

/// Routes that one route is compared with for each place in the index. Only routes that are alike in all that the index
/// knows share a place; behind so many of them a warning may be missed.
const MOST_COMPARED: usize = 256;

/// Warns of every route behind one that is as wide or wider.
pub(super) fn warn(d: &mut Decoder<'_>, routes: &[(Item<'_>, Route)]) {
    let matches: Vec<&RouteMatch> = routes.iter().map(|(_, route)| &route.matches).collect();
    for ((item, _), covering) in routes.iter().zip(first_covering(&matches)) {
        if let Some((earlier, _)) = covering.and_then(|at| routes.get(at)) {
            let message = format!("{} can never match: {} before it takes all", label(item), label(earlier));
            let help = "put the narrower route first; the first match wins";
            d.warn_at(item.node.head(), &item.path, "unreachable-route", message, help);
        }
    }
}

/// A route's name as written, which may be a variable, else its place in the list.
fn label(item: &Item<'_>) -> String {
    let name = match &item.node.value {
        Value::Map(entries) => entries.iter().find(|entry| &*entry.key == "name"),
        _ => None,
    };
    name.map_or_else(|| item.path.clone(), |name| format!("the route `{}`", name.node.shown()))
}

/// For each route, the first before it that covers it.
fn first_covering(routes: &[&RouteMatch]) -> Vec<Option<usize>> {
    let uses = Uses::of(routes);
    let mut index = Index::default();
    let mut found = Vec::with_capacity(routes.len());
    for (at, route) in routes.iter().enumerate() {
        let covering = index.first_covering(route, routes, &uses);
        // What a covered route covers is covered by the same earlier one, so it need not be known.
        if covering.is_none() {
            index.insert(at, route, &uses);
        }
        found.push(covering);
    }
    found
}

type Field = (HeaderName, HeaderValue);

/// How often hosts and fields are named. A route is filed under its rarest field and looked for by its rarest host,
/// which tell it best from others.
struct Uses<'r> {
    hosts: HashMap<&'r HostPattern, usize>,
    fields: HashMap<&'r Field, usize>,
}

impl<'r> Uses<'r> {
    fn of(routes: &[&'r RouteMatch]) -> Self {
        let mut uses = Self { hosts: HashMap::new(), fields: HashMap::new() };
        for route in routes {
            route.hosts.iter().for_each(|host| *uses.hosts.entry(host).or_default() += 1);
            route.headers.iter().for_each(|field| *uses.fields.entry(field).or_default() += 1);
        }
        uses
    }

    fn rarest_host<'a>(&self, route: &'a RouteMatch) -> Option<&'a HostPattern> {
        route.hosts.iter().min_by_key(|host| self.hosts.get(host))
    }

    fn rarest_field<'a>(&self, route: &'a RouteMatch) -> Option<&'a Field> {
        route.headers.iter().min_by_key(|field| self.fields.get(field))
    }
}

/// Routes by each of their hosts, then by path, then by the rest.
#[derive(Default)]
struct Index<'r> {
    hosts: HashMap<HostKey<'r>, Paths<'r>>,
}

#[derive(Default)]
struct Paths<'r> {
    paths: HashMap<PathKey<'r>, HashMap<Condition<'r>, Vec<usize>>>,
    longest_prefix: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum HostKey<'r> {
    Any,
    Exact(&'r str),
    Wildcard(&'r str),
}

#[derive(Clone, Copy, PartialEq, Eq, Hash)]
enum PathKey<'r> {
    Any,
    Exact(&'r str),
    Prefix(&'r str),
}

/// A field that is asked for, and one of the methods; `None` is none and any.
type Condition<'r> = (Option<&'r Field>, Option<&'r Method>);

impl<'r> Index<'r> {
    fn insert(&mut self, at: usize, route: &'r RouteMatch, uses: &Uses<'_>) {
        let path = match &route.path {
            PathPattern::Any => PathKey::Any,
            PathPattern::Exact(path) => PathKey::Exact(path),
            PathPattern::Prefix(prefix) => PathKey::Prefix(prefix),
        };
        let field = uses.rarest_field(route);
        for host in or_none(&route.hosts) {
            let host = match host {
                None => HostKey::Any,
                Some(HostPattern::Exact(name)) => HostKey::Exact(name),
                Some(HostPattern::Wildcard(suffix)) => HostKey::Wildcard(suffix),
            };
            let paths = self.hosts.entry(host).or_default();
            if let PathKey::Prefix(prefix) = path {
                paths.longest_prefix = paths.longest_prefix.max(prefix.len());
            }
            let conditions = paths.paths.entry(path).or_default();
            for method in or_none(&route.methods) {
                conditions.entry((field, method)).or_default().push(at);
            }
        }
    }

    /// Looks wherever a route that covers this one must be filed: under a host, a path and a method as wide or wider,
    /// and under no field or one that this route asks for too.
    fn first_covering(&self, route: &RouteMatch, routes: &[&RouteMatch], uses: &Uses<'_>) -> Option<usize> {
        let mut best: Option<usize> = None;
        let host = uses.rarest_host(route);
        let paths = wider_hosts(host).filter_map(|host| self.hosts.get(&host));
        let paths = paths
            .flat_map(|paths| wider_paths(&route.path, paths.longest_prefix).filter_map(|path| paths.paths.get(&path)));
        for conditions in paths {
            for field in std::iter::once(None).chain(route.headers.iter().map(Some)) {
                for method in std::iter::once(None).chain(route.methods.first().map(Some)) {
                    let filed = conditions.get(&(field, method)).map(Vec::as_slice).unwrap_or_default();
                    let earlier = filed.iter().copied().take_while(|at| best.is_none_or(|best| *at < best));
                    let covers = |at: &usize| routes.get(*at).is_some_and(|wide| wide.covers(route));
                    best = earlier.take(MOST_COMPARED).find(covers).or(best);
                }
            }
        }
        best
    }
}

/// Each of a list, or `None` once for an empty one.
fn or_none<T>(list: &[T]) -> impl Iterator<Item = Option<&T>> {
    list.iter().map(Some).chain(list.is_empty().then_some(None))
}

fn wider_hosts(host: Option<&HostPattern>) -> impl Iterator<Item = HostKey<'_>> {
    let (exact, name, first_dot) = match host {
        None => (None, "", 0),
        Some(HostPattern::Exact(name)) => (Some(HostKey::Exact(name)), name.as_str(), 1),
        Some(HostPattern::Wildcard(suffix)) => (None, suffix.as_str(), 0),
    };
    let dots = name.match_indices('.').map(|(at, _)| at).filter(move |at| *at >= first_dot);
    let wildcards = dots.filter_map(|at| name.get(at..)).map(HostKey::Wildcard);
    std::iter::once(HostKey::Any).chain(exact).chain(wildcards)
}

fn wider_paths(path: &PathPattern, longest_prefix: usize) -> impl Iterator<Item = PathKey<'_>> {
    let (exact, text) = match path {
        PathPattern::Any => (None, ""),
        PathPattern::Exact(path) => (Some(PathKey::Exact(path)), path.as_str()),
        PathPattern::Prefix(prefix) => (None, prefix.as_str()),
    };
    let borders = text.match_indices('/').map(|(at, _)| at).chain(std::iter::once(text.len()));
    let prefixes = borders.take_while(move |at| *at <= longest_prefix).filter_map(|at| text.get(..at));
    std::iter::once(PathKey::Any).chain(exact).chain(prefixes.map(PathKey::Prefix))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn hosts() -> impl Strategy<Value = Vec<HostPattern>> {
        let exact = prop::sample::select(vec!["a.test", "b.test", "x.a.test", "y.x.a.test", "test", ""]);
        let wild = prop::sample::select(vec![".test", ".a.test", ".x.a.test"]);
        let host = prop_oneof![
            exact.prop_map(|host| HostPattern::Exact(host.to_owned())),
            wild.prop_map(|host| HostPattern::Wildcard(host.to_owned())),
        ];
        prop::collection::vec(host, 0..3)
    }

    fn path() -> impl Strategy<Value = PathPattern> {
        let text = prop::sample::select(vec!["/", "/a", "/a/", "/a/b", "/ab", "/a/b/c", "//", "/b"]);
        (0..3, text).prop_map(|(kind, text)| match kind {
            0 => PathPattern::Any,
            1 => PathPattern::Exact(text.to_owned()),
            _ => PathPattern::Prefix(text.trim_end_matches('/').to_owned()),
        })
    }

    fn route() -> impl Strategy<Value = RouteMatch> {
        let field = |at: u8| {
            let name = if at < 2 { "x-a" } else { "x-b" };
            (HeaderName::from_static(name), HeaderValue::from(u16::from(at % 2)))
        };
        let headers = prop::collection::vec((0..4_u8).prop_map(field), 0..3);
        let methods = prop::collection::vec(prop::sample::select(vec![Method::GET, Method::POST, Method::PUT]), 0..3);
        (hosts(), path(), methods, headers).prop_map(|(hosts, path, methods, headers)| RouteMatch {
            hosts,
            path,
            methods,
            headers,
        })
    }

    proptest! {
        #[test]
        fn the_index_finds_what_comparing_all_routes_finds(routes in prop::collection::vec(route(), 0..40)) {
            let routes: Vec<&RouteMatch> = routes.iter().collect();
            let all = |at: usize| routes.iter().take(at).position(|wide| wide.covers(routes[at]));
            let expected: Vec<Option<usize>> = (0..routes.len()).map(all).collect();
            prop_assert_eq!(first_covering(&routes), expected);
        }
    }
}

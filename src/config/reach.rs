//! Routes that can never match because an earlier one takes every request that they would take.

use super::{
    decode::{Decoder, Item},
    model::Route,
    tree::Value,
};
use crate::policy::route::{HostPattern, PathPattern, RouteMatch};

/// Warns of every route behind one that is as wide or wider.
pub(super) fn warn(d: &mut Decoder<'_>, routes: &[(Item<'_>, Route)]) {
    for (at, (item, route)) in routes.iter().enumerate() {
        let earlier = routes.iter().take(at).find(|(_, earlier)| covers(&earlier.matches, &route.matches));
        if let Some((earlier, _)) = earlier {
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

/// Whether `wide` matches every request that `narrow` matches.
fn covers(wide: &RouteMatch, narrow: &RouteMatch) -> bool {
    let hosts = wide.hosts.is_empty()
        || (!narrow.hosts.is_empty()
            && narrow.hosts.iter().all(|narrow| wide.hosts.iter().any(|wide| covers_host(wide, narrow))));
    let methods = wide.methods.is_empty()
        || (!narrow.methods.is_empty() && narrow.methods.iter().all(|method| wide.methods.contains(method)));
    let headers = wide.headers.iter().all(|field| narrow.headers.contains(field));
    hosts && methods && headers && covers_path(&wide.path, &narrow.path)
}

fn covers_host(wide: &HostPattern, narrow: &HostPattern) -> bool {
    match (wide, narrow) {
        (HostPattern::Exact(wide), HostPattern::Exact(narrow)) => wide == narrow,
        (HostPattern::Exact(_), HostPattern::Wildcard(_)) => false,
        (HostPattern::Wildcard(wide), HostPattern::Exact(narrow)) => {
            narrow.len() > wide.len() && narrow.ends_with(wide)
        }
        (HostPattern::Wildcard(wide), HostPattern::Wildcard(narrow)) => narrow.ends_with(wide),
    }
}

fn covers_path(wide: &PathPattern, narrow: &PathPattern) -> bool {
    match (wide, narrow) {
        (PathPattern::Any, _) => true,
        (_, PathPattern::Any) => false,
        (PathPattern::Exact(wide), PathPattern::Exact(narrow)) => wide == narrow,
        (PathPattern::Exact(_), PathPattern::Prefix(_)) => false,
        (PathPattern::Prefix(wide), PathPattern::Exact(narrow) | PathPattern::Prefix(narrow)) => {
            narrow.strip_prefix(wide.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(path: PathPattern) -> RouteMatch {
        RouteMatch { path, ..RouteMatch::default() }
    }

    fn host(host: HostPattern) -> RouteMatch {
        RouteMatch { hosts: vec![host], ..RouteMatch::default() }
    }

    #[test]
    fn a_prefix_covers_what_is_below_it_on_segment_borders() {
        let v1 = path(PathPattern::Prefix("/v1".into()));
        assert!(covers(&v1, &path(PathPattern::Prefix("/v1/a".into()))));
        assert!(covers(&v1, &path(PathPattern::Exact("/v1".into()))));
        assert!(!covers(&v1, &path(PathPattern::Exact("/v1x".into()))));
        assert!(!covers(&v1, &path(PathPattern::Any)));
        assert!(covers(&path(PathPattern::Any), &v1));
    }

    #[test]
    fn a_wildcard_covers_deeper_names_and_not_its_own_domain() {
        let wild = host(HostPattern::Wildcard(".example.com".into()));
        assert!(covers(&wild, &host(HostPattern::Exact("a.example.com".into()))));
        assert!(covers(&wild, &host(HostPattern::Wildcard(".a.example.com".into()))));
        assert!(!covers(&wild, &host(HostPattern::Exact("example.com".into()))));
        assert!(!covers(&wild, &RouteMatch::default()));
        assert!(covers(&RouteMatch::default(), &wild));
    }

    #[test]
    fn more_conditions_are_narrower() {
        let field = |name: &'static str| (http::HeaderName::from_static(name), http::HeaderValue::from_static("1"));
        let one = RouteMatch { headers: vec![field("x-a")], ..RouteMatch::default() };
        let two = RouteMatch { headers: vec![field("x-a"), field("x-b")], ..RouteMatch::default() };
        assert!(covers(&one, &two) && !covers(&two, &one));
        let get = RouteMatch { methods: vec![http::Method::GET], ..RouteMatch::default() };
        assert!(!covers(&get, &RouteMatch::default()) && covers(&RouteMatch::default(), &get));
    }
}

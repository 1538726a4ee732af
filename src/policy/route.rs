//! Which route a request takes: the first whose parts all match. Routes are indexed by host and path, so that a
//! request pays for its own labels and segments and not for the number of routes. A request that another reader of its
//! path would give to another route is refused. What a route does is not decided here.

use std::{collections::HashMap, io::Write as _, net::Ipv6Addr};

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use super::{
    fields::Fields,
    path::{Ambiguous, Canonical, canonical, is_below},
};
use crate::types::Weight;

/// A longer host is no DNS name (RFC 1035 §2.3.4): `valid_host` refuses it, so that it passes by no route of a host.
pub(super) const LONGEST_HOST: usize = 255;

/// The parts of a match; an empty part matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteMatch {
    /// Any of these.
    pub hosts: Vec<HostPattern>,
    /// The path.
    pub path: PathPattern,
    /// Any of these.
    pub methods: Vec<Method>,
    /// All of these fields, with exactly these values. `Host` is none of them, as it has many spellings: see `hosts`.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// A host to match, lower case, without a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HostPattern {
    /// `api.example.com`
    Exact(String),
    /// `*.example.com`: one label or more before the suffix, which is kept with its leading dot (`.example.com`).
    Wildcard(String),
}

/// A path to match, without the query; in the spelling of [`super::path::pattern`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum PathPattern {
    /// Every path.
    #[default]
    Any,
    /// Exactly this path.
    Exact(String),
    /// This path and everything below it, on segment borders: `/v1` and `/v1/` both take `/v1`, `/v1/` and
    /// `/v1/x`, not `/v1x`. Kept without the trailing slash.
    Prefix(String),
}

/// What of a request decides its route.
#[derive(Debug)]
pub struct RequestView<'a, F = HeaderMap> {
    /// `Host` or `:authority` as sent; case, port, a trailing dot and the spelling of an IPv6 address do not matter.
    pub host: &'a str,
    /// The path as sent, without the query; its spelling does not matter.
    pub path: &'a str,
    /// The method.
    pub method: &'a Method,
    /// The fields.
    pub headers: &'a F,
}

impl<F> Clone for RequestView<'_, F> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<F> Copy for RequestView<'_, F> {}

/// What was decided of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Found<'a> {
    /// The first route that takes it.
    pub route: Option<usize>,
    /// The path by which it was found.
    pub form: Canonical<'a>,
}

impl RouteMatch {
    /// Whether every request that `other` takes is taken by this too. Conservative: `false` may be a missed yes, as
    /// where two matches cover a third only together.
    pub fn covers(&self, other: &Self) -> bool {
        let hosts = self.hosts.is_empty()
            || (!other.hosts.is_empty()
                && other.hosts.iter().all(|theirs| self.hosts.iter().any(|ours| ours.covers(theirs))));
        let methods = self.methods.is_empty()
            || (!other.methods.is_empty() && other.methods.iter().all(|method| self.methods.contains(method)));
        let headers = self.headers.iter().all(|field| other.headers.contains(field));
        hosts && methods && headers && self.path.covers(&other.path)
    }

    fn conditions_hold(&self, request: &RequestView<'_, impl Fields>) -> bool {
        (self.methods.is_empty() || self.methods.contains(request.method))
            && self.headers.iter().all(|(name, value)| request.headers.all(name).any(|sent| sent == value))
    }

    fn is_unconditional(&self) -> bool {
        self.methods.is_empty() && self.headers.is_empty()
    }
}

impl HostPattern {
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Exact(ours), Self::Exact(theirs)) => ours == theirs,
            (Self::Exact(_), Self::Wildcard(_)) => false,
            (Self::Wildcard(ours), Self::Exact(theirs)) => theirs.len() > ours.len() && theirs.ends_with(ours.as_str()),
            (Self::Wildcard(ours), Self::Wildcard(theirs)) => theirs.ends_with(ours.as_str()),
        }
    }
}

impl PathPattern {
    fn covers(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Any, _) => true,
            (_, Self::Any) => false,
            (Self::Exact(ours), Self::Exact(theirs)) => ours == theirs,
            (Self::Exact(_), Self::Prefix(_)) => false,
            (Self::Prefix(ours), Self::Exact(theirs) | Self::Prefix(theirs)) => is_below(theirs, ours),
        }
    }
}

/// The routes, compiled. First match wins.
#[derive(Debug, Default)]
pub struct Router {
    conditions: Box<[RouteMatch]>,
    exact_hosts: HashMap<Box<str>, PathIndex>,
    /// By suffix with its leading dot.
    wildcard_hosts: HashMap<Box<str>, PathIndex>,
    longest_wildcard: usize,
    any_host: PathIndex,
}

impl Router {
    /// Compiles routes in their order.
    pub fn new<'a>(routes: impl Iterator<Item = &'a RouteMatch>) -> Self {
        let mut router = Self::default();
        let mut conditions = Vec::new();
        for (index, route) in routes.enumerate() {
            let entry = Entry { index, unconditional: route.is_unconditional() };
            if route.hosts.is_empty() {
                router.any_host.insert(&route.path, entry);
            }
            for host in &route.hosts {
                let paths = match host {
                    HostPattern::Exact(name) => router.exact_hosts.entry(name.as_str().into()).or_default(),
                    HostPattern::Wildcard(suffix) => {
                        router.longest_wildcard = router.longest_wildcard.max(suffix.len());
                        router.wildcard_hosts.entry(suffix.as_str().into()).or_default()
                    }
                };
                paths.insert(&route.path, entry);
            }
            // Hosts and paths live in the index; only what is compared per candidate is kept.
            conditions.push(RouteMatch {
                methods: route.methods.clone(),
                headers: route.headers.clone(),
                ..RouteMatch::default()
            });
        }
        router.conditions = conditions.into();
        router
    }

    /// The first route that takes the request. Cost: one scan of the path, one hash per host label and path segment that
    /// any route could name, and one comparison per candidate with a method or a field; where a path has encoded slashes
    /// or parameters, the same again for each way to read it, at most thirty.
    ///
    /// # Errors
    /// The path is ambiguous by itself, or a backend could read it as one that another route takes. Or the host has
    /// percent-encoded parts, which no name needs; or the target is `*` and the method not OPTIONS (RFC 9112 §3.2.4).
    pub fn find<'a>(&self, request: &RequestView<'a, impl Fields>) -> Result<Found<'a>, Ambiguous> {
        let form = canonical(request.path)?;
        if request.host.contains('%') || (form.path == "*" && *request.method != Method::OPTIONS) {
            return Err(Ambiguous);
        }
        let key = form.key();
        let route = self.first(&RequestView { path: &key, ..*request });
        for reading in form.readings()? {
            if self.first(&RequestView { path: &reading, ..*request }) != route {
                return Err(Ambiguous);
            }
        }
        drop(key);
        Ok(Found { route, form })
    }

    fn first(&self, request: &RequestView<'_, impl Fields>) -> Option<usize> {
        let mut best = None;
        self.search(&self.any_host, request, &mut best);
        if self.exact_hosts.is_empty() && self.wildcard_hosts.is_empty() {
            return best;
        }
        let mut buffer = [0; LONGEST_HOST];
        let Some(host) = canonical_host(request.host, &mut buffer) else { return best };
        if let Some(paths) = self.exact_hosts.get(host) {
            self.search(paths, request, &mut best);
        }
        if !self.wildcard_hosts.is_empty() {
            let earliest = host.len().saturating_sub(self.longest_wildcard).max(1);
            let dots = host.bytes().enumerate().skip(earliest).filter(|(_, byte)| *byte == b'.');
            for suffix in dots.filter_map(|(at, _)| host.get(at..)) {
                if let Some(paths) = self.wildcard_hosts.get(suffix) {
                    self.search(paths, request, &mut best);
                }
            }
        }
        best
    }

    /// Lowers `best` to the first route in `paths` that takes the request, if it is earlier.
    fn search(&self, paths: &PathIndex, request: &RequestView<'_, impl Fields>, best: &mut Option<usize>) {
        let mut consider = |candidates: &[usize]| {
            for &index in candidates {
                if best.is_some_and(|best| best <= index) {
                    return;
                }
                if self.conditions.get(index).is_some_and(|route| route.conditions_hold(request)) {
                    *best = Some(index);
                    return;
                }
            }
        };
        consider(&paths.any.routes);
        if let Some(candidates) = paths.exact.get(request.path) {
            consider(&candidates.routes);
        }
        if paths.prefixes.is_empty() {
            return;
        }
        let path = request.path;
        let borders = path.bytes().take(paths.longest_prefix + 1).enumerate();
        let borders = borders.filter(|(_, byte)| *byte == b'/').map(|(at, _)| at);
        let end = (path.len() <= paths.longest_prefix).then_some(path.len());
        for prefix in borders.chain(end).filter_map(|at| path.get(..at)) {
            if let Some(candidates) = paths.prefixes.get(prefix) {
                consider(&candidates.routes);
            }
        }
    }
}

/// The routes of one host by path.
#[derive(Debug, Default)]
struct PathIndex {
    any: Candidates,
    exact: HashMap<Box<str>, Candidates>,
    prefixes: HashMap<Box<str>, Candidates>,
    longest_prefix: usize,
}

impl PathIndex {
    fn insert(&mut self, path: &PathPattern, entry: Entry) {
        let candidates = match path {
            PathPattern::Any => &mut self.any,
            PathPattern::Exact(path) => self.exact.entry(path.as_str().into()).or_default(),
            PathPattern::Prefix(prefix) => {
                self.longest_prefix = self.longest_prefix.max(prefix.len());
                self.prefixes.entry(prefix.as_str().into()).or_default()
            }
        };
        candidates.push(entry);
    }
}

/// Routes of the same host and path, in order, up to the first that asks for nothing more.
#[derive(Debug, Default)]
struct Candidates {
    routes: Vec<usize>,
    closed: bool,
}

impl Candidates {
    fn push(&mut self, entry: Entry) {
        if !self.closed && self.routes.last() != Some(&entry.index) {
            self.routes.push(entry.index);
            self.closed = entry.unconditional;
        }
    }
}

#[derive(Clone, Copy)]
struct Entry {
    index: usize,
    unconditional: bool,
}

/// `host` without its port: `a.example:80` is `a.example`, `[::1]:80` is `[::1]`.
pub fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|byte| byte.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) =>
        {
            name
        }
        _ => host,
    }
}

/// `host` as patterns are written: lower case, without port and without one trailing dot, an IPv6 address in its shortest
/// form (RFC 5952).
pub(super) fn canonical_host<'a>(host: &str, buffer: &'a mut [u8; LONGEST_HOST]) -> Option<&'a str> {
    let name = without_port(host);
    let name = name.strip_suffix('.').unwrap_or(name);
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    let length = match address.and_then(|address| address.parse::<Ipv6Addr>().ok()) {
        Some(address) => {
            let mut rest = &mut buffer[..];
            write!(rest, "[{address}]").ok()?;
            let left = rest.len();
            LONGEST_HOST - left
        }
        None => {
            buffer.get_mut(..name.len())?.copy_from_slice(name.as_bytes());
            name.len()
        }
    };
    let copy = buffer.get_mut(..length)?;
    copy.make_ascii_lowercase();
    std::str::from_utf8(copy).ok()
}

/// Which of `shares` takes a request, by weight. `random` is evenly spread over all of `u64`. 0 where all weights are 0.
pub fn pick_split<T>(shares: &[(T, Weight)], random: u64) -> usize {
    let total: u64 = shares.iter().map(|(_, weight)| u64::from(weight.value())).sum();
    let mut left = ((u128::from(random) * u128::from(total)) >> 64) as u64;
    for (index, (_, weight)) in shares.iter().enumerate() {
        let weight = u64::from(weight.value());
        if left < weight {
            return index;
        }
        left -= weight;
    }
    0
}

#[cfg(test)]
mod tests;

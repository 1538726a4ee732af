//! Which route a request takes: the first whose parts all match. Routes are indexed by host and path, so that a
//! request pays for its own labels and segments and not for the number of routes. What a route does is not decided here.

use std::{borrow::Cow, collections::HashMap};

use http::{HeaderMap, HeaderName, HeaderValue, Method};

use crate::types::Weight;

/// A longer host is no DNS name (RFC 1035 §2.3.4) and takes only routes that name no host.
const LONGEST_HOST: usize = 255;

/// The parts of a match; an empty part matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteMatch {
    /// Any of these.
    pub hosts: Vec<HostPattern>,
    /// The path.
    pub path: PathPattern,
    /// Any of these.
    pub methods: Vec<Method>,
    /// All of these fields, with exactly these values.
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

/// A path to match, without the query.
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
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// `Host` or `:authority` as sent; case, port and a trailing dot do not matter.
    pub host: &'a str,
    /// The path as sent, without the query.
    pub path: &'a str,
    /// The method.
    pub method: &'a Method,
    /// The fields.
    pub headers: &'a HeaderMap,
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

    fn conditions_hold(&self, request: &RequestView<'_>) -> bool {
        (self.methods.is_empty() || self.methods.contains(request.method))
            && self.headers.iter().all(|(name, value)| request.headers.get_all(name).iter().any(|sent| sent == value))
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

    /// The first route that takes the request. Cost: one hash per host label and path segment that any route could
    /// name, and one comparison per candidate with a method or a field.
    pub fn find(&self, request: &RequestView<'_>) -> Option<usize> {
        let mut best = None;
        self.search(&self.any_host, request, &mut best);
        if self.exact_hosts.is_empty() && self.wildcard_hosts.is_empty() {
            return best;
        }
        let mut buffer = [0; LONGEST_HOST];
        let Some(host) = lower_case_host(request.host, &mut buffer) else { return best };
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
    fn search(&self, paths: &PathIndex, request: &RequestView<'_>, best: &mut Option<usize>) {
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

fn lower_case_host<'a>(host: &str, buffer: &'a mut [u8; LONGEST_HOST]) -> Option<&'a str> {
    let name = without_port(host);
    let name = name.strip_suffix('.').unwrap_or(name);
    let copy = buffer.get_mut(..name.len())?;
    copy.copy_from_slice(name.as_bytes());
    copy.make_ascii_lowercase();
    std::str::from_utf8(copy).ok()
}

/// Whether `path` is `prefix` or below it, on a segment border.
fn is_below(path: &str, prefix: &str) -> bool {
    path.strip_prefix(prefix).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

/// Whether a segment of `path` is `.` or `..`, also percent-encoded (RFC 3986 §5.2.4, §6.2.2.2).
pub fn has_dot_segment(path: &str) -> bool {
    // Nearly no path has a dot or an encoded one at the beginning of a segment.
    (path.contains('.') || path.contains('%')) && path.split('/').any(is_dot_segment)
}

fn is_dot_segment(segment: &str) -> bool {
    let mut rest = segment.as_bytes();
    let mut dots = 0;
    while !rest.is_empty() {
        rest = match rest {
            [b'.', rest @ ..] | [b'%', b'2', b'e' | b'E', rest @ ..] if dots < 2 => rest,
            _ => return false,
        };
        dots += 1;
    }
    dots > 0
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

/// Takes `prefix` (on a segment border, without a trailing slash) off a path with its query. What is left begins with
/// exactly one slash, so that no backend reads it as `//authority`. Without the prefix the path stays as it is.
pub fn strip_prefix<'a>(path_and_query: &'a str, prefix: &str) -> Cow<'a, str> {
    let Some(rest) = path_and_query.strip_prefix(prefix) else { return Cow::Borrowed(path_and_query) };
    match rest.as_bytes().first() {
        None => Cow::Borrowed("/"),
        Some(b'/') => {
            let slashes = rest.len() - rest.trim_start_matches('/').len();
            Cow::Borrowed(rest.get(slashes.saturating_sub(1)..).unwrap_or("/"))
        }
        Some(b'?') => Cow::Owned(["/", rest].concat()),
        Some(_) => Cow::Borrowed(path_and_query),
    }
}

#[cfg(test)]
mod tests;

//! Paths as other servers read them: no spelling reaches a route that its plain form would not reach.

use http::{HeaderMap, Method};

use super::super::{
    headers::valid_host,
    path::{Ambiguous, Canonical, SentPath, canonical, pattern, split_target},
    route::{HostPattern, PathPattern, RequestView, RouteMatch, Router, without_port},
};

/// How a backend reads a path. Written anew and plainly, on bytes, as a second opinion on `path.rs`.
#[derive(Clone, Copy, Debug)]
struct Server {
    /// Decodes first, so `%2F` parts segments.
    decodes_first: bool,
    backslashes: bool,
    overlongs: bool,
    parameters: Option<Parameters>,
}

/// When a backend leaves out `;parameters`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Parameters {
    BeforeDecoding,
    AfterDecoding,
}

const PLAIN: Server = Server { decodes_first: false, backslashes: false, overlongs: false, parameters: None };

fn servers() -> impl Iterator<Item = Server> {
    let parameters = [None, Some(Parameters::BeforeDecoding), Some(Parameters::AfterDecoding)];
    parameters.into_iter().flat_map(|parameters| {
        let of =
            move |decodes_first, backslashes, overlongs| Server { decodes_first, backslashes, overlongs, parameters };
        [of(false, false, false), of(true, false, false), of(true, true, false), of(true, true, true)]
    })
}

/// Stands for a slash that is data; no path has it.
const DATA_SLASH: u8 = 0;

impl Server {
    /// The path as this server sees it, and whether there were dot segments.
    fn read(self, path: &str) -> (Vec<u8>, bool) {
        normal(&self.understood(path))
    }

    /// The path where this server takes what it understood for a reference, and it has an authority.
    fn read_as_reference(self, path: &str) -> Option<Vec<u8>> {
        let path = self.understood(path);
        let slashes = path.iter().take_while(|byte| **byte == b'/').count();
        let rest = path.get(slashes..).filter(|_| slashes > 1)?;
        let path = rest.iter().position(|byte| *byte == b'/').and_then(|at| rest.get(at..)).unwrap_or(b"/");
        Some(normal(path).0)
    }

    fn understood(self, path: &str) -> Vec<u8> {
        let mut path = path.as_bytes().to_vec();
        if self.parameters == Some(Parameters::BeforeDecoding) {
            path = without_parameters(&path);
        }
        path = decoded(&path, self.decodes_first);
        if self.overlongs {
            path = short(&path);
        }
        if self.backslashes {
            path.iter_mut().filter(|byte| **byte == b'\\').for_each(|byte| *byte = b'/');
        }
        if self.parameters == Some(Parameters::AfterDecoding) {
            path = without_parameters(&path);
        }
        path
    }
}

/// The path without dots and with single slashes, and whether there were dot segments.
fn normal(path: &[u8]) -> (Vec<u8>, bool) {
    let mut segments: Vec<&[u8]> = Vec::new();
    let (mut dots, mut directory) = (false, false);
    for segment in path.split(|byte| *byte == b'/') {
        directory = matches!(segment, b"" | b"." | b"..");
        dots |= matches!(segment, b"." | b"..");
        match segment {
            b"" | b"." => {}
            b".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    let mut read = vec![b'/'];
    read.extend(segments.join(&b'/'));
    if directory && read.last() != Some(&b'/') {
        read.push(b'/');
    }
    (read, dots)
}

fn without_parameters(path: &[u8]) -> Vec<u8> {
    let name = |segment: &[u8]| segment.split(|byte| *byte == b';').next().unwrap_or_default().to_vec();
    path.split(|byte| *byte == b'/').map(name).collect::<Vec<_>>().join(&b'/')
}

fn decoded(path: &[u8], slashes: bool) -> Vec<u8> {
    let mut out = Vec::new();
    let mut at = 0;
    while let Some(&byte) = path.get(at) {
        let digits = path.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        let value = digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()).filter(|_| byte == b'%');
        at += if value.is_some() { 3 } else { 1 };
        out.push(match value {
            Some(b'/') if !slashes => DATA_SLASH,
            Some(value) => value,
            None => byte,
        });
    }
    out
}

/// ASCII in two or three bytes of UTF-8 as one byte.
fn short(path: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let mut rest = path;
    while let [byte, after @ ..] = rest {
        let (value, left) = match rest {
            [high @ 0xc0..=0xc1, low @ 0x80..=0xbf, left @ ..] => ((high & 1) << 6 | low & 0x3f, left),
            [0xe0, high @ 0x80..=0x81, low @ 0x80..=0xbf, left @ ..] => ((high & 1) << 6 | low & 0x3f, left),
            _ => (*byte, after),
        };
        out.push(value);
        rest = left;
    }
    out
}

/// Routes of a site with something to hide, and those that the input brings along.
fn routes<'a>(own: impl Iterator<Item = &'a str>) -> Vec<RouteMatch> {
    let prefix = |path: &str| PathPattern::Prefix(path.to_owned());
    let of = |hosts, path| RouteMatch { hosts, path, ..RouteMatch::default() };
    let mut routes = vec![
        of(vec![HostPattern::Exact("admin.example".to_owned())], PathPattern::Any),
        of(Vec::new(), prefix("/admin")),
        of(vec![HostPattern::Wildcard(".example".to_owned())], prefix("/a/b")),
        of(Vec::new(), PathPattern::Exact("/a".to_owned())),
        of(Vec::new(), PathPattern::Exact("/a/c/".to_owned())),
        of(Vec::new(), prefix("/%5Bx%5D")),
    ];
    for line in own.take(4) {
        let (exact, path) = line.strip_prefix('=').map_or((false, line), |path| (true, path));
        if let Ok(path) = pattern(path).map(|path| path.trim_end_matches('/').to_owned())
            && path.starts_with('/')
        {
            let path = if exact { PathPattern::Exact(path) } else { PathPattern::Prefix(path) };
            routes.push(of(Vec::new(), path));
        }
    }
    routes.push(of(Vec::new(), PathPattern::Any));
    routes
}

/// The first route that takes a path as a server reads it.
fn first(routes: &[RouteMatch], host: &str, path: &[u8]) -> Option<usize> {
    let name = without_port(host);
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let plain = |pattern: &str| decoded(pattern.as_bytes(), true);
    routes.iter().position(|route| {
        let host = route.hosts.is_empty()
            || route.hosts.iter().any(|host| match host {
                HostPattern::Exact(own) => *own == name,
                HostPattern::Wildcard(suffix) => name.len() > suffix.len() && name.ends_with(suffix),
            });
        host && match &route.path {
            PathPattern::Any => true,
            PathPattern::Exact(own) => path == plain(own),
            PathPattern::Prefix(own) => {
                path.strip_prefix(&*plain(own)).is_some_and(|rest| matches!(rest, [] | [b'/', ..]))
            }
        }
    })
}

/// The input is a path, a host, and paths of routes, a line each.
///
/// # Panics
/// If a form is not canonical, or a spelling changes a decision.
pub fn route(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let mut lines = text.split('\n');
    let target = lines.next().unwrap_or_default();
    let host = lines.next().unwrap_or_default();
    let (path, query) = split_target(&Method::GET, target);
    assert!(query.is_empty() || query.starts_with('?'));
    assert!(target.contains(path) || path == "/");
    // Another one comes to no route.
    let host = if host.len() > 200 || host.contains(['%', '[']) || !valid_host(host) { "" } else { host };
    let routes = routes(lines);
    let router = Router::new(routes.iter());
    let headers = HeaderMap::new();
    let find =
        |host: &str, path: &str| decide(&router, &RequestView { host, path, method: &Method::GET, headers: &headers });

    if let Ok(form) = canonical(path) {
        is_canonical(&form);
    }
    let found = find(host, path);
    assert_eq!(found, find(host, &spelled(path, input)), "another spelling of {path}");
    let Ok((route, form)) = found else { return };
    assert_eq!(Ok((route, form.clone())), find(host, &form), "its own form");
    let key = canonical(path).map(|form| form.key().into_owned());
    assert_eq!(find(host, key.as_deref().unwrap_or_default()).map(|(route, _)| route), Ok(route), "its key");
    for host in [host.to_ascii_uppercase(), format!("{}:80", without_port(host)), host.to_owned()] {
        assert_eq!(find(&host, path).map(|(route, _)| route), Ok(route), "for {host}");
    }
    let Ok(canonical) = canonical(path) else { return };
    for how in [SentPath::Normalized, SentPath::Raw] {
        let Ok(sent) = canonical.sent(path, how, None) else { continue };
        assert!(!sent.starts_with("//"), "{sent} has an authority");
        for server in servers() {
            let (read, dots) = server.read(sent);
            assert!(!dots, "{server:?} sees dots in {sent}");
            assert_eq!(first(&routes, host, &read), route, "{server:?} sees {:?}", String::from_utf8_lossy(&read));
            if let Some(read) = server.read_as_reference(sent) {
                assert_eq!(
                    first(&routes, host, &read),
                    route,
                    "{server:?} resolves {:?}",
                    String::from_utf8_lossy(&read)
                );
            }
        }
        stripped(&routes, &canonical, path, how);
    }
}

fn decide(router: &Router, request: &RequestView<'_>) -> Result<(Option<usize>, String), Ambiguous> {
    router.find(request).map(|found| (found.route, found.form.path.into_owned()))
}

/// Some of the characters that may be plain, encoded; `seed` says which.
fn spelled(path: &str, seed: &[u8]) -> String {
    let seed = seed.iter().fold(0x9e37_79b9_u32, |seed, byte| (seed ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    let (mut out, mut digits) = (String::new(), 0_u8);
    for (at, c) in path.char_indices() {
        let plain = (c.is_ascii_alphanumeric() || "-._~".contains(c)) && digits == 0;
        digits = if c == '%' { 2 } else { digits.saturating_sub(1) };
        match plain && seed >> (at % 32) & 1 == 1 {
            true => out.push_str(&format!("%{:02x}", u32::from(c))),
            false => out.push(c),
        }
    }
    out
}

fn is_canonical(form: &Canonical<'_>) {
    let path = &*form.path;
    if path == "*" {
        return;
    }
    let again = canonical(path).expect("a form is not ambiguous");
    assert_eq!((&*again.path, again.had_dots), (path, false));
    assert!(path.starts_with('/') && !path.contains("//"), "{path}");
    assert!(path.bytes().all(|byte| byte.is_ascii_graphic() && !b"\\\"<>[]{}|^`?#".contains(&byte)), "{path}");
    let (_, dots) = PLAIN.read(path);
    assert!(!dots, "{path}");
    for (at, _) in path.match_indices('%') {
        let digits = path.get(at + 1..at + 3).expect("two digits");
        let value = u8::from_str_radix(digits, 16).expect("two digits");
        assert_eq!(digits, format!("{value:02X}"));
        assert!(!value.is_ascii_control() && !value.is_ascii_alphanumeric() && !b"-._~".contains(&value), "{path}");
    }
    let key = form.key();
    assert_eq!(canonical(&key).map(|form| form.key().into_owned()).as_deref(), Ok(&*key));
}

/// What is left without a prefix is a path, and the same one whichever way it is spelled.
fn stripped(routes: &[RouteMatch], form: &Canonical<'_>, path: &str, how: SentPath) {
    for route in routes {
        let PathPattern::Prefix(prefix) = &route.path else { continue };
        let Ok(sent) = form.sent(path, how, Some(prefix)) else { continue };
        if path == "*" {
            assert_eq!(sent, "*");
            continue;
        }
        let normalized = form.sent(path, SentPath::Normalized, Some(prefix)).expect("it has no dots");
        assert!(sent.starts_with('/') && !sent.starts_with("//"), "{sent}");
        assert_eq!(canonical(sent).map(|form| form.path.into_owned()).as_deref(), Ok(normalized));
    }
}

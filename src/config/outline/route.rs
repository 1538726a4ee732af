//! A route as the file would say it, and which header fields are not shown.

use std::{borrow::Cow, collections::HashMap};

use http::{HeaderName, HeaderValue};

use super::{
    super::model::{ProxyAction, Redirect, Respond, Route, RouteAction},
    Part, bare, entry, guard, list, text, value,
};
use crate::{
    policy::{
        headers::HeaderEdits,
        path::SentPath,
        route::{HostPattern, PathPattern, RouteMatch},
    },
    types::Weight,
};

/// A route under its name.
pub(super) fn route(route: &Route) -> (Cow<'_, str>, Part<'_>) {
    let Route { name, named: _, matches, guards, engine, action, request_headers, response_headers } = route;
    let mut out = vec![entry("name", text(name.as_str())), entry("match", route_match(matches))];
    guard::guards(guards, &mut out);
    out.extend(engine.map(|engine| entry("engine", bare(engine.as_str()))));
    match action {
        RouteAction::Proxy(ProxyAction { upstreams, strip_prefix, path }) => {
            let upstream = match &upstreams[..] {
                [(name, weight)] if *weight == Weight::default() => text(name.as_str()),
                shares => Part::Map(
                    shares.iter().map(|(name, weight)| (name.as_str().into(), bare(weight.value()))).collect(),
                ),
            };
            out.push(entry("upstream", upstream));
            let sent = if *path == SentPath::Raw { "raw" } else { "normalized" };
            out.push(entry("path", bare(sent)));
            // One slash at the end is not kept; a second one would be.
            let end = |prefix: &str| if prefix.ends_with('/') { "/" } else { "" };
            out.extend(
                strip_prefix.iter().map(|prefix| entry("strip_prefix", text(format!("{prefix}{}", end(prefix))))),
            );
        }
        RouteAction::Redirect(Redirect { to, status }) => {
            out.push(entry("redirect", Part::Map(vec![entry("to", value(to)), entry("status", bare(status.as_u16()))])))
        }
        RouteAction::Respond(Respond { status, body }) => out.push(entry(
            "respond",
            Part::Map(vec![
                entry("status", bare(status.as_u16())),
                entry("body", Part::Text(String::from_utf8_lossy(body))),
            ]),
        )),
    }
    // Without effect where no request is sent on, so that they are written only where somebody wrote them.
    if matches!(action, RouteAction::Proxy(_)) || *request_headers != HeaderEdits::default() {
        out.push(entry("request_headers", edits(request_headers)));
    }
    out.push(entry("response_headers", edits(response_headers)));
    (name.as_str().into(), Part::Map(out))
}

fn route_match(matches: &RouteMatch) -> Part<'_> {
    let RouteMatch { hosts, path, methods, headers } = matches;
    let mut out = Vec::new();
    if !hosts.is_empty() {
        out.push(entry("host", list(hosts, host)));
    }
    out.push(match path {
        PathPattern::Any => entry("path", text("/")),
        PathPattern::Exact(path) => entry("path_exact", text(path)),
        PathPattern::Prefix(path) => entry("path", text(format!("{path}/"))),
    });
    if !methods.is_empty() {
        out.push(entry("method", list(methods, |method| text(method.as_str()))));
    }
    if !headers.is_empty() {
        out.push(entry("header", fields(headers)));
    }
    Part::Map(out)
}

fn host(host: &HostPattern) -> Part<'_> {
    match host {
        HostPattern::Exact(host) => text(host),
        HostPattern::Wildcard(suffix) => text(format!("*{suffix}")),
    }
}

fn edits(edits: &HeaderEdits) -> Part<'_> {
    let HeaderEdits { remove, set, add } = edits;
    Part::Map(vec![
        entry("remove", list(remove, |name| text(name.as_str()))),
        entry("set", fields(set)),
        entry("add", fields(add)),
    ])
}

/// Header fields. The same field twice is possible in another spelling only.
fn fields(fields: &[(HeaderName, HeaderValue)]) -> Part<'_> {
    let mut seen: HashMap<&HeaderName, usize> = HashMap::new();
    let mut out = Vec::with_capacity(fields.len());
    for (name, value) in fields {
        let nth = *seen.entry(name).and_modify(|nth| *nth += 1).or_insert(0);
        let part = if is_secret(name, value) { Part::Hidden(value) } else { super::value(value) };
        out.push((spelled(name, nth).into(), part));
    }
    Part::Map(out)
}

/// The nth spelling of a field's name: its letters in upper case as the bits of `nth` say.
fn spelled(name: &HeaderName, nth: usize) -> String {
    let mut letters = 0;
    let spell = |c: char| {
        let upper = c.is_ascii_lowercase() && nth.checked_shr(letters).unwrap_or(0) & 1 == 1;
        letters += u32::from(c.is_ascii_lowercase());
        if upper { c.to_ascii_uppercase() } else { c }
    };
    name.as_str().chars().map(spell).collect()
}

/// Whether a field's value is not to be seen: it comes from the environment, or has a name that secrets have.
fn is_secret(name: &HeaderName, value: &HeaderValue) -> bool {
    const PARTS: [&str; 6] = ["auth", "cookie", "key", "passw", "secret", "token"];
    value.is_sensitive() || PARTS.iter().any(|part| name.as_str().contains(part))
}

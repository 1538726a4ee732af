//! `routes`: what a request is matched by, and what is done with it.

use std::collections::{BTreeMap, BTreeSet};

use http::{HeaderName, HeaderValue, Method, StatusCode, header};

use super::{
    address::dns_name,
    decode::{Decoder, Fields, Item, Named, Table, table, value},
    guard,
    model::{Engine, ProxyAction, Redirect, Respond, Route, RouteAction},
};
use crate::{
    policy::{
        forwarded::{CERTIFICATE_FIELDS, is_client_cert_field, is_forged_field},
        headers::{HeaderEdits, valid_host},
        path::{self, SentPath},
        route::{HostPattern, PathPattern, RouteMatch},
    },
    types::{Name, Weight},
};

pub(super) const ROUTE: Table = Table {
    what: "a route",
    keys: &[
        value("name", "route-N, from 1"),
        table("match", "everything", &MATCH),
        guard::ALLOW,
        guard::DENY,
        guard::RATE_LIMIT,
        guard::CONCURRENCY,
        guard::BASIC_AUTH,
        guard::FORWARD_AUTH,
        value("engine", "as at its listener"),
        value("upstream", "one of upstream, redirect, respond"),
        value("strip_prefix", "nothing"),
        value("path", "raw"),
        table("redirect", "one of upstream, redirect, respond", &REDIRECT),
        table("respond", "one of upstream, redirect, respond", &RESPOND),
        table("request_headers", "no edits", &EDITS),
        table("response_headers", "no edits", &EDITS),
    ],
};

const MATCH: Table = Table {
    what: "a match",
    keys: &[
        value("host", "every host"),
        value("path", "every path"),
        value("path_exact", "every path"),
        value("method", "every method"),
        value("header", "no condition"),
    ],
};

const REDIRECT: Table = Table { what: "a redirect", keys: &[value("to", "required"), value("status", "302")] };
const RESPOND: Table = Table { what: "a response", keys: &[value("status", "200"), value("body", "empty")] };
const EDITS: Table =
    Table { what: "header edits", keys: &[value("set", "{}"), value("add", "{}"), value("remove", "[]")] };

const EVERYTHING: &str = "leave the key out to match everything";

/// Fields that belong to one connection or frame the message: the proxy's own business.
const FRAMING: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::CONTENT_LENGTH,
];

/// Decodes `routes`, each with its place.
pub(super) fn decode<'t>(
    d: &mut Decoder<'_>,
    item: &Item<'t>,
    upstreams: &BTreeSet<Name>,
) -> Option<Vec<(Item<'t>, Route)>> {
    let items = d.items(item, "a list of routes")?;
    if items.is_empty() {
        d.error(item, "no-routes", "without a route nothing would be answered", "write `routes: [{ upstream: NAME }]`");
        return None;
    }
    let mut names = BTreeMap::new();
    let mut number = 0;
    d.all(Some(items), |d, item| {
        number += 1;
        let fields = d.fields(item, &ROUTE)?;
        let named = fields.get("name");
        let name = named.as_ref().map_or_else(|| Some(format!("route-{number}").into()), |item| d.name(item));
        if let Some(name) = &name
            && let Some(first) = names.insert(name.clone(), item.path.clone())
        {
            let span = named.as_ref().map_or(item.node.head(), |item| item.node.mark());
            let message = format!("this route has the same name as {first}");
            d.error_at(span, &item.path, "duplicate-name", message, "give each route a name of its own");
        }
        let matches = fields.get("match").map_or(Some(RouteMatch::default()), |item| matches(d, &item));
        let guards = guard::guards(d, &fields);
        let engine = fields.get("engine").map_or(Some(None), |item| d.choice(&item, &Engine::WORDS).map(Some));
        let action = action(d, &fields, upstreams);
        let request_headers = edits(d, fields.get("request_headers"), Head::Request);
        let response_headers = edits(d, fields.get("response_headers"), Head::Response);
        if let (Some(edits), None) = (fields.get("request_headers"), fields.get("upstream")) {
            let message = "`request_headers` has no effect: no request is sent on";
            d.warn_at(edits.node.head(), &edits.path, "no-effect", message, "take it out");
        }
        let route = Route {
            name: name?,
            named: named.is_some(),
            matches: matches?,
            guards: guards?,
            action: action?,
            request_headers: request_headers?,
            response_headers: response_headers?,
            engine: engine?,
        };
        Some((item.clone(), route))
    })
}

fn matches(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<RouteMatch> {
    let fields = d.fields(item, &MATCH)?;
    let hosts = fields.get("host").map_or(Some(Vec::new()), |item| {
        let items = d.at_least_one(&item, "a host or a list of hosts", EVERYTHING);
        d.all(items, |d, item| host(d, item))
    });
    let path = match (fields.get("path"), fields.get("path_exact")) {
        (Some(_), Some(exact)) => {
            let message = "`path` and `path_exact` exclude each other";
            d.error_at(exact.node.head(), &exact.path, "two-paths", message, "keep one of the two");
            None
        }
        (Some(prefix), None) => pattern(d, &prefix).map(|path| match path.strip_suffix('/') {
            Some("") => PathPattern::Any,
            Some(path) => PathPattern::Prefix(path.to_owned()),
            None => PathPattern::Prefix(path),
        }),
        (None, Some(exact)) => pattern(d, &exact).map(PathPattern::Exact),
        (None, None) => Some(PathPattern::Any),
    };
    let methods = fields.get("method").map_or(Some(Vec::new()), |item| {
        let items = d.at_least_one(&item, "a method or a list of methods", EVERYTHING);
        d.all(items, |d, item| method(d, item))
    });
    let headers = fields.get("header").map_or(Some(Vec::new()), |item| matched_fields(d, &item));
    Some(RouteMatch { hosts: hosts?, path: path?, methods: methods?, headers: headers? })
}

fn host(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<HostPattern> {
    let text = d.scalar(item, "a host")?.value;
    let address = || {
        let bare = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).map(str::parse::<std::net::Ipv6Addr>);
        let v6 = bare.and_then(Result::ok).map(|address| format!("[{address}]"));
        v6.or_else(|| text.parse::<std::net::Ipv4Addr>().ok().map(|address| address.to_string()))
    };
    let pattern = match text.strip_prefix("*.") {
        Some(suffix) => dns_name(suffix).map(|suffix| HostPattern::Wildcard(format!(".{suffix}"))),
        None => dns_name(&text).or_else(address).map(HostPattern::Exact),
    };
    if pattern.is_none() {
        let help = match text.rsplit_once(':') {
            _ if text == "*" => "leave `host` out to match every host",
            Some((_, port)) if port.parse::<u16>().is_ok() => "leave out the port",
            _ => "write api.example.com or \"*.example.com\"",
        };
        d.error(item, "bad-host", format!("`{}` is not a host to match", item.node.shown()), help);
    }
    pattern
}

/// A path as in a request line; with a query only where that is said.
pub(super) fn path_text(d: &mut Decoder<'_>, item: &Item<'_>, query: bool) -> Option<String> {
    let text = d.string(item)?;
    let fault = if !text.starts_with('/') {
        "it must begin with `/`"
    } else if text.contains('#') || (text.contains('?') && !query) {
        "a path has no `?` and no `#`"
    } else if !text.bytes().all(|b| b.is_ascii_graphic()) {
        "write blanks, control and non-ASCII characters as %20 and the like"
    } else {
        return Some(text);
    };
    d.error(item, "bad-path", format!("`{}` is not a path", item.node.shown()), fault);
    None
}

/// A path that requests are compared with: only in the one spelling by which every request is decided.
fn pattern(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<String> {
    let text = path_text(d, item, false)?;
    let shown = item.node.shown();
    match path::pattern(&text) {
        Ok(canonical) if canonical == text => return Some(text),
        Ok(canonical) => {
            // What came by a variable is not shown.
            let canonical = if shown == text { canonical } else { "it in its canonical form".to_owned() };
            let message = format!("`{shown}` is not in canonical form, by which requests are matched");
            d.error(item, "not-canonical", message, &format!("write {canonical}"));
        }
        Err(path::Ambiguous) => {
            let message = format!("`{shown}` is not the same path to all backends, so no route can depend on it");
            let help = "write it without `;`, `..`, backslashes, %2F, %5C, %3B, control characters, and stray `%`";
            d.error(item, "ambiguous-path", message, help);
        }
    }
    None
}

fn method(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<Method> {
    let text = d.scalar(item, "a method")?.value;
    let upper = text.to_ascii_uppercase();
    let method = Method::from_bytes(text.as_bytes()).ok().filter(|_| text == upper);
    if method.is_none() {
        let known = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "TRACE"];
        let near = d.did_you_mean(&text, known.into_iter());
        let help = near.unwrap_or_else(|| "write it in upper case, such as GET".to_owned());
        d.error(item, "bad-method", format!("`{}` is not a method", item.node.shown()), &help);
    }
    method
}

fn header_map(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let mut fields = Vec::new();
    let mut complete = true;
    for named in d.entries(item, "a mapping from field names to values")? {
        match (d.header_key(&named), d.header_value(&named.item)) {
            (Some(name), Some(value)) => fields.push((name, value)),
            _ => complete = false,
        }
    }
    complete.then_some(fields)
}

fn matched_fields(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<Vec<(HeaderName, HeaderValue)>> {
    let entries = item.is_map().then(|| d.entries(item, "a mapping from field names to values")).flatten();
    let is_host = |named: &Named<'_>| named.name.eq_ignore_ascii_case(header::HOST.as_str());
    for named in entries.unwrap_or_default().into_iter().filter(is_host) {
        let message = "a host has many spellings, and HTTP/2 another field for it";
        d.error_at(named.span, &named.item.path, "host-as-header", message, "write it as `host` of this match");
    }
    let fields = header_map(d, item)?;
    let nobodys =
        |name: &HeaderName| is_forged_field(name) || (is_client_cert_field(name) && !CERTIFICATE_FIELDS.contains(name));
    let mut complete = true;
    for (name, _) in fields.iter().filter(|(name, _)| nobodys(name)) {
        let message = format!("`{name}` is taken out of every request, so this route would never match");
        d.error(item, "never-said", message, "write the name with `-`, or take it out");
        complete = false;
    }
    (complete && fields.iter().all(|(name, _)| *name != header::HOST)).then_some(fields)
}

fn action(d: &mut Decoder<'_>, fields: &Fields<'_>, upstreams: &BTreeSet<Name>) -> Option<RouteAction> {
    let mut actions = ["upstream", "redirect", "respond"].into_iter().filter_map(|name| fields.get(name));
    let (first, second) = (actions.next(), actions.next());
    let strip_prefix = fields.get("strip_prefix").map_or(Some(None), |item| strip_prefix(d, &item).map(Some));
    if let (Some(item), None) = (fields.get("strip_prefix"), fields.get("upstream")) {
        let message = "`strip_prefix` needs `upstream`: no request is sent on";
        d.error_at(item.node.head(), &item.path, "not-a-proxy-route", message, "take it out");
    }
    let forms = [("normalized", SentPath::Normalized), ("raw", SentPath::Raw)];
    let path = fields.get("path").map_or(Some(SentPath::default()), |item| d.choice(&item, &forms));
    if let (Some(item), None) = (fields.get("path"), fields.get("upstream")) {
        let message = "`path` needs `upstream`: no request is sent on";
        let help = "to match by a path, put it under `match`";
        d.error_at(item.node.head(), &item.path, "not-a-proxy-route", message, help);
    }
    let upstream = fields.get("upstream").map(|item| split(d, &item, upstreams));
    let redirect = fields.get("redirect").map(|item| redirect(d, &item));
    let respond = fields.get("respond").map(|item| respond(d, &item));
    let item = fields.item();
    match (first, second) {
        (None, _) => {
            let message = "a route needs something to do";
            let help = "add one of `upstream`, `redirect` and `respond`";
            d.error_at(item.node.head(), &item.path, "no-action", message, help);
            None
        }
        (_, Some(second)) => {
            let message = "a route can do only one thing";
            let help = "keep one of `upstream`, `redirect` and `respond`";
            d.error_at(second.node.head(), &second.path, "two-actions", message, help);
            None
        }
        _ => match (upstream, redirect, respond) {
            (Some(upstreams), ..) => {
                let (upstreams, strip_prefix, path) = (upstreams?, strip_prefix?, path?);
                Some(RouteAction::Proxy(ProxyAction { upstreams, strip_prefix, path }))
            }
            (_, Some(redirect), _) => redirect.map(RouteAction::Redirect),
            (.., respond) => respond.flatten().map(RouteAction::Respond),
        },
    }
}

fn split(d: &mut Decoder<'_>, item: &Item<'_>, upstreams: &BTreeSet<Name>) -> Option<Vec<(Name, Weight)>> {
    if item.is_scalar() {
        let text = d.scalar(item, "an upstream's name")?.value;
        let name = known_upstream(d, &text, item.node.mark(), item, upstreams)?;
        return Some(vec![(name, Weight::default())]);
    }
    let mut shares = Vec::new();
    let mut complete = true;
    for named in d.named(item, "an upstream's name, or a mapping from names to weights")? {
        let name = known_upstream(d, named.name, named.span, &named.item, upstreams);
        match (name, d.weight(&named.item)) {
            (Some(name), Some(weight)) => shares.push((name, weight)),
            _ => complete = false,
        }
    }
    if complete && shares.iter().all(|(_, weight)| weight.value() == 0) {
        let message = "all weights are 0: no upstream would get a request";
        d.error_at(item.node.head(), &item.path, "all-weights-zero", message, "give one a weight of 1 or more");
        return None;
    }
    complete.then_some(shares)
}

fn known_upstream(
    d: &mut Decoder<'_>,
    name: &str,
    span: super::source::Span,
    item: &Item<'_>,
    upstreams: &BTreeSet<Name>,
) -> Option<Name> {
    if let Some(known) = upstreams.get(name) {
        return Some(known.clone());
    }
    let near = d.did_you_mean(name, upstreams.iter().map(Name::as_str));
    let help = near.unwrap_or_else(|| "add it under `upstreams`".to_owned());
    // A scalar names the upstream, possibly by a variable; below a mapping it is the key.
    let shown = if item.node.mark() == span { item.node.shown() } else { name.chars().take(80).collect() };
    d.error_at(span, &item.path, "unknown-upstream", format!("there is no upstream `{shown}`"), &help);
    None
}

fn strip_prefix(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<String> {
    let path = pattern(d, item)?;
    let prefix = path.strip_suffix('/').unwrap_or(&path);
    if prefix.is_empty() {
        d.error(item, "bad-path", "there is nothing to strip", "write a prefix such as /site");
        return None;
    }
    Some(prefix.to_owned())
}

fn redirect(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<Redirect> {
    let fields = d.fields(item, &REDIRECT)?;
    let to = fields.required(d, "to").and_then(|item| {
        let value = d.header_value(&item)?;
        let text = value.to_str().unwrap_or_default();
        let absolute = text.parse::<http::Uri>().is_ok_and(|uri| match uri.scheme_str() {
            Some(scheme) => scheme == "http" || scheme == "https",
            None => text.starts_with('/'),
        });
        if !absolute {
            let help = "write a path such as /new, or a URL such as https://example.com/new";
            d.error(&item, "bad-redirect", format!("`{}` cannot be redirected to", item.node.shown()), help);
            return None;
        }
        Some(value)
    });
    let status = fields.get("status").map_or(Some(StatusCode::FOUND), |item| {
        let number = d.count(&item, 100..=599)?;
        let known = [301, 302, 303, 307, 308].contains(&number);
        if !known {
            let message = format!("`{}` is not the status of a redirect", item.node.shown());
            d.error(&item, "bad-status", message, "write 301, 302, 303, 307 or 308");
        }
        status_code(number).filter(|_| known)
    });
    Some(Redirect { to: to?, status: status? })
}

fn respond(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<Respond> {
    let fields = d.fields(item, &RESPOND)?;
    let status = fields.get("status").map_or(Some(StatusCode::OK), |item| {
        let number = d.count(&item, 0..=999)?;
        if !(200..=599).contains(&number) {
            let message = format!("`{}` is not a status to answer with", item.node.shown());
            d.error(&item, "bad-status", message, "write a status from 200 to 599");
            return None;
        }
        status_code(number)
    });
    let body = fields.get("body").map_or(Some(String::new()), |item| d.string(&item));
    Some(Respond { status: status?, body: body?.into() })
}

fn status_code(number: u32) -> Option<StatusCode> {
    u16::try_from(number).ok().and_then(|number| StatusCode::from_u16(number).ok())
}

#[derive(Clone, Copy, PartialEq)]
enum Head {
    Request,
    Response,
}

fn edits(d: &mut Decoder<'_>, item: Option<Item<'_>>, head: Head) -> Option<HeaderEdits> {
    let Some(item) = item else { return Some(HeaderEdits::default()) };
    let fields = d.fields(&item, &EDITS)?;
    let set = fields.get("set").map_or(Some(Vec::new()), |item| editable(d, &item, head == Head::Request));
    let add = fields.get("add").map_or(Some(Vec::new()), |item| editable(d, &item, false));
    let remove = fields.get("remove").map_or(Some(Vec::new()), |item| {
        let items = d.one_or_more(&item, "a field name or a list of field names");
        d.all(items, |d, item| {
            let name = d.header_name(item)?;
            if let Some(why) = untouchable(&name, false) {
                d.error(item, "forbidden-header", why.0, why.1);
                return None;
            }
            Some(name)
        })
    });
    Some(HeaderEdits { remove: remove?, set: set?, add: add? })
}

fn editable(d: &mut Decoder<'_>, item: &Item<'_>, host: bool) -> Option<Vec<(HeaderName, HeaderValue)>> {
    for named in d.entries(item, "a mapping from field names to values").unwrap_or_default() {
        let name = HeaderName::from_bytes(named.name.as_bytes()).ok();
        if let Some((message, help)) = name.and_then(|name| untouchable(&name, host)) {
            d.error_at(named.span, &named.item.path, "forbidden-header", message, help);
        }
    }
    let fields = item.is_map().then(|| header_map(d, item)).flatten()?;
    let is_host = |value: &HeaderValue| value.to_str().is_ok_and(valid_host);
    if fields.iter().any(|(name, value)| *name == header::HOST && !is_host(value)) {
        d.error(item, "bad-host", "the `host` to set is not one".to_owned(), "write host or host:port");
        return None;
    }
    Some(fields)
}

/// Why a field may not be edited, and what to do instead.
pub(super) fn untouchable(name: &HeaderName, host: bool) -> Option<(String, &'static str)> {
    if FRAMING.contains(name) {
        return Some((
            format!("`{name}` is the proxy's own business"),
            "take it out; rrlb writes it where it is needed",
        ));
    }
    (name == header::HOST && !host)
        .then(|| ("`host` can only be set in requests".to_owned(), "use `set`, or the upstream's `host_header`"))
}

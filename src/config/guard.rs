//! What guards a route or a listener: `allow` and `deny`, `rate_limit`, `concurrency`, `basic_auth`, `forward_auth`.

use std::{sync::Arc, time::Duration};

use http::{HeaderName, Uri, header};
use rustls::{ClientConfig, RootCertStore, pki_types::ServerName};

use super::{
    certificate::{read_file, trust_store},
    decode::{Decoder, Fields, Item, Key, Table, list, table, value},
    model::{BasicAuth, ConcurrencyLimit, ForwardAuth, Guards, RateLimit, Secret, ServiceTls},
    route::untouchable,
};
use crate::{
    policy::{
        access::Access,
        forwarded::{CERTIFICATE_FIELDS, is_client_cert_field, is_forged_field, is_forwarding_field},
        headers::{HOP_BY_HOP, is_like},
        limit_key::LimitKey,
        password::{Users, parse_line},
        rate::Rate,
    },
    types::parse_duration,
};

pub(super) const ALLOW: Key = value("allow", "everybody, but for deny");
pub(super) const DENY: Key = value("deny", "nobody");
pub(super) const RATE_LIMIT: Key = list("rate_limit", "no limit", &RATE);
pub(super) const CONCURRENCY: Key = table("concurrency", "no limit", &AT_ONCE);
pub(super) const BASIC_AUTH: Key = table("basic_auth", "nobody is asked", &BASIC);
pub(super) const FORWARD_AUTH: Key = table("forward_auth", "nobody is asked", &FORWARD);

const RATE: Table = Table {
    what: "a rate limit",
    keys: &[table("key", "client_ip", &KEY), value("rate", "required"), value("burst", "the count of the rate")],
};
const AT_ONCE: Table =
    Table { what: "a concurrency limit", keys: &[table("key", "client_ip", &KEY), value("limit", "required")] };
const KEY: Table = Table { what: "a limit's key", keys: &[value("header", "none"), value("cookie", "none")] };
const BASIC: Table = Table {
    what: "basic authentication",
    keys: &[value("file", "required"), value("realm", "restricted"), value("keep", "false")],
};
const FORWARD: Table = Table {
    what: "forward authentication",
    keys: &[
        value("url", "required"),
        value("timeout", "2s"),
        value("copy_headers", "[]"),
        value("ca", "the system's roots"),
    ],
};

/// Counts and bursts beyond this are no limits.
const MOST: u32 = 1_000_000;
const CERTIFICATE_HELP: &str = "write X-Client-Cert-Fingerprint or X-Client-Cert-Subject";
const RATE_FORM: &str = "write a number from 1 to 1000000 and a time: 50/s, 100/m, 1000/h, 10/30s";
/// Problems of one htpasswd file that are told one by one.
const MOST_LINES_TOLD: usize = 10;

/// Decodes what guards a route.
pub(super) fn guards(d: &mut Decoder<'_>, fields: &Fields<'_>) -> Option<Guards> {
    let access = access(d, fields);
    let rate_limits = fields.get("rate_limit").map_or(Some(Vec::new()), |item| rate_limits(d, &item));
    let concurrency = optional(fields, "concurrency", |item| concurrency(d, &item));
    let basic_auth = optional(fields, "basic_auth", |item| basic_auth(d, &item));
    let forward_auth = optional(fields, "forward_auth", |item| forward_auth(d, &item));
    let mut guards = Guards {
        access: access?,
        rate_limits: rate_limits?,
        concurrency: concurrency?,
        basic_auth: basic_auth?,
        forward_auth: forward_auth?,
    };
    let Guards { rate_limits, concurrency, basic_auth, forward_auth, .. } = &mut guards;
    let keys = rate_limits.iter_mut().map(|limit| &mut limit.key);
    for key in keys.chain(concurrency.as_mut().map(|limit| &mut limit.key)) {
        identify(key, basic_auth.as_ref(), forward_auth.as_ref());
    }
    Some(guards)
}

/// A field that only a guard of the route says is counted by what that says, and never by what a client does.
fn identify(key: &mut LimitKey, basic_auth: Option<&BasicAuth>, forward_auth: Option<&ForwardAuth>) {
    let LimitKey::Header(name) = &*key else { return };
    let mut told = forward_auth.iter().flat_map(|service| &service.copy_headers);
    if let Some(told) = told.find(|told| is_like(name.as_str().as_bytes(), told.as_str().as_bytes())) {
        *key = LimitKey::Told(told.clone());
    } else if basic_auth.is_some() && *name == header::AUTHORIZATION {
        *key = LimitKey::User;
    }
}

/// Decodes `allow` and `deny`; `Some(None)` where neither is there.
pub(super) fn access(d: &mut Decoder<'_>, fields: &Fields<'_>) -> Option<Option<Arc<Access>>> {
    let (allow, deny) = (fields.get("allow"), fields.get("deny"));
    if allow.is_none() && deny.is_none() {
        return Some(None);
    }
    let mut networks = |item: Option<Item<'_>>, help: &str| {
        item.map_or(Some(Vec::new()), |item| {
            let items = d.at_least_one(&item, "a network or a list of networks", help);
            d.all(items, |d, item| d.network(item))
        })
    };
    let allow = networks(allow, "leave `allow` out to let everybody in, or write `deny: [0.0.0.0/0, \"::/0\"]`");
    let deny = networks(deny, "leave `deny` out to deny nobody");
    Some(Some(Arc::new(Access::new(allow?, deny?))))
}

/// `Some(None)` where the key is not there, `None` where it is wrong.
fn optional<'t, T>(fields: &Fields<'t>, name: &str, decode: impl FnOnce(Item<'t>) -> Option<T>) -> Option<Option<T>> {
    fields.get(name).map_or(Some(None), |item| decode(item).map(Some))
}

fn rate_limits(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<Vec<RateLimit>> {
    if item.is_map() {
        return rate_limit(d, item).map(|limit| vec![limit]);
    }
    let items = d.items(item, "a rate limit or a list of rate limits")?;
    if items.is_empty() {
        d.error(item, "empty-list", "an empty list limits nothing", "leave `rate_limit` out for no limit");
        return None;
    }
    d.all(Some(items), rate_limit)
}

fn rate_limit(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<RateLimit> {
    let fields = d.fields(item, &RATE)?;
    let key = key(d, &fields);
    let rate = fields.required(d, "rate").and_then(|item| {
        let text = d.scalar(&item, "a rate such as 50/s")?.value;
        let rate = parse_rate(&text);
        if rate.is_none() {
            d.error(&item, "bad-rate", format!("`{}` is not a rate", item.node.shown()), RATE_FORM);
        }
        rate
    });
    let burst = optional(&fields, "burst", |item| d.count(&item, 1..=MOST));
    let (rate, burst) = (rate?, burst?);
    let rate = Rate::new(rate.count(), rate.period(), burst.unwrap_or(rate.count()))?;
    Some(RateLimit { key: key?, rate })
}

/// `50/s`, `10/30s`; the burst is the count.
fn parse_rate(text: &str) -> Option<Rate> {
    let (count, period) = text.split_once('/')?;
    let one_unit = ["s", "m", "h", "d"].contains(&period);
    let period: Duration =
        if one_unit { parse_duration(&format!("1{period}")) } else { parse_duration(period) }.ok()?;
    let digits = !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit());
    let count = count.parse().ok().filter(|count| digits && (1..=MOST).contains(count))?;
    Rate::new(count, period, count)
}

fn concurrency(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<ConcurrencyLimit> {
    let fields = d.fields(item, &AT_ONCE)?;
    let key = key(d, &fields);
    let limit = fields.required(d, "limit").and_then(|item| d.count(&item, 1..=MOST));
    Some(ConcurrencyLimit { key: key?, limit: limit? })
}

fn key(d: &mut Decoder<'_>, fields: &Fields<'_>) -> Option<LimitKey> {
    let Some(item) = fields.get("key") else { return Some(LimitKey::ClientIp) };
    if !item.is_map() {
        let words = [("client_ip", false), ("route", true)];
        let route = d.choice(&item, &words)?;
        return Some(if route { LimitKey::Route } else { LimitKey::ClientIp });
    }
    let fields = d.fields(&item, &KEY)?;
    match (fields.get("header"), fields.get("cookie")) {
        (Some(item), None) => {
            let name = d.header_name(&item)?;
            if is_forwarding_field(&name) {
                let message =
                    format!("`{name}` is whatever a client says, so it could be another one with each request");
                d.error(&item, "hearsay-key", message, "write `key: client_ip`, which goes by `trusted_proxies`");
                return None;
            }
            if is_client_cert_field(&name) && !CERTIFICATE_FIELDS.contains(&name) {
                d.error(&item, "hearsay-key", format!("nobody says `{name}`"), CERTIFICATE_HELP);
                return None;
            }
            Some(if name == header::HOST { LimitKey::Host } else { LimitKey::Header(name) })
        }
        (None, Some(item)) => {
            let name = d.string(&item)?;
            // A cookie's name is a token (RFC 6265 §4.1.1), as a field's is.
            if HeaderName::from_bytes(name.as_bytes()).is_err() {
                let message = format!("`{}` is not a cookie's name", item.node.shown());
                d.error(&item, "bad-cookie-name", message, "letters, digits, hyphens and underscores");
                return None;
            }
            Some(LimitKey::Cookie(name))
        }
        _ => {
            let help = "write client_ip, route, `{ header: NAME }` or `{ cookie: NAME }`";
            d.error(&item, "bad-key", "a key is one thing", help);
            None
        }
    }
}

fn basic_auth(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<BasicAuth> {
    let fields = d.fields(item, &BASIC)?;
    let file = fields.required(d, "file").and_then(|item| users(d, &item));
    let realm = fields.get("realm").map_or(Some("restricted".to_owned()), |item| {
        let text = d.string(&item)?;
        let plain = |byte: u8| (byte == b' ' || byte.is_ascii_graphic()) && byte != b'"' && byte != b'\\';
        if !(1..=100).contains(&text.len()) || !text.bytes().all(plain) {
            let help = "1 to 100 characters of ASCII, no quotes and no backslash";
            d.error(&item, "bad-realm", format!("`{}` is not a realm", item.node.shown()), help);
            return None;
        }
        Some(text)
    });
    let keep = fields.get("keep").map_or(Some(false), |item| d.boolean(&item));
    let (path, content, users) = file?;
    Some(BasicAuth { path, content, users, realm: realm?, keep: keep? })
}

fn users(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<(std::path::PathBuf, Secret, Arc<Users>)> {
    const HELP: &str = "add users with: htpasswd -B FILE USER";
    let path = d.path(item)?;
    let content = read_file(d, item, &path, "make one: htpasswd -B -c FILE USER")?;
    let Ok(text) = std::str::from_utf8(&content) else {
        d.error(item, "bad-htpasswd", "the htpasswd file is not UTF-8 text", HELP);
        return None;
    };
    // Some editors begin a file with it; it would be a part of the first user's name.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let (mut lines, mut wrong): (Vec<(String, _)>, usize) = (Vec::new(), 0);
    let mut names = std::collections::BTreeMap::new();
    for (number, line) in text.lines().enumerate().map(|(at, line)| (at + 1, line.trim_end())) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let fault = match parse_line(line) {
            Ok((name, hash)) => match names.insert(name.clone(), number) {
                Some(first) => format!("the same user as in line {first}"),
                None => {
                    lines.push((name, hash));
                    continue;
                }
            },
            Err(error) => error.to_string(),
        };
        wrong += 1;
        if wrong <= MOST_LINES_TOLD {
            d.error(item, "bad-htpasswd", format!("line {number} of `{}`: {fault}", item.node.shown()), HELP);
        }
    }
    if wrong > MOST_LINES_TOLD {
        let message = format!("{} more lines of `{}` are wrong", wrong - MOST_LINES_TOLD, item.node.shown());
        d.error(item, "bad-htpasswd", message, HELP);
    }
    if wrong > 0 {
        return None;
    }
    if lines.is_empty() {
        d.error(item, "bad-htpasswd", format!("there is no user in `{}`", item.node.shown()), HELP);
        return None;
    }
    Some((path, Secret(content.into()), Arc::new(Users::new(lines))))
}

fn forward_auth(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<ForwardAuth> {
    let fields = d.fields(item, &FORWARD)?;
    let url = fields.required(d, "url").and_then(|item| url(d, &item));
    let timeout = fields.get("timeout").map_or(Some(Duration::from_secs(2)), |item| d.duration(&item));
    let copy_headers = fields.get("copy_headers").map_or(Some(Vec::new()), |item| {
        let items = d.one_or_more(&item, "a field name or a list of field names");
        let mut seen: Vec<HeaderName> = Vec::new();
        d.all(items, |d, item| {
            let name = d.header_name(item)?;
            if name == "*" {
                d.error(
                    item,
                    "bad-header-name",
                    "`*` stands for no other fields",
                    "name each that the backend is to get",
                );
                return None;
            }
            if let Some(like) = seen.iter().find(|seen| is_like(name.as_str().as_bytes(), seen.as_str().as_bytes())) {
                let message = if *like == name {
                    format!("`{name}` stands here twice")
                } else {
                    format!("some backends take `{name}` for `{like}`, which stands here too")
                };
                d.error(item, "duplicate-value", message, "keep one of the two");
                return None;
            }
            seen.push(name.clone());
            let own = || {
                let told = is_forwarding_field(&name) || is_client_cert_field(&name) || is_forged_field(&name);
                (HOP_BY_HOP.contains(&name) || told || name == "x-request-id")
                    .then(|| (format!("`{name}` is the proxy's own business"), "take it out"))
            };
            if let Some((message, help)) = untouchable(&name, false).or_else(own) {
                d.error(item, "forbidden-header", message, help);
                return None;
            }
            Some(name)
        })
    });
    let tls = url.as_ref().map(|(url, _)| service_tls(d, item, url, fields.get("ca")));
    let ((url, host), tls) = (url?, tls??);
    Some(ForwardAuth { url, host, timeout: timeout?, copy_headers: copy_headers?, tls })
}

/// How a service is verified; `Some(None)` where it is asked in plain text.
fn service_tls(d: &mut Decoder<'_>, item: &Item<'_>, url: &Uri, ca: Option<Item<'_>>) -> Option<Option<ServiceTls>> {
    if url.scheme_str() != Some("https") {
        let Some(ca) = ca else { return Some(None) };
        d.error(
            &ca,
            "ca-without-tls",
            "only an https:// service shows a certificate",
            "take `ca` out, or ask by https://",
        );
        return None;
    }
    let mut roots = RootCertStore::empty();
    let trusted = match &ca {
        Some(item) => {
            let store = trust_store(d, item)?;
            let bad = store.certificates.iter().any(|authority| roots.add(authority.clone()).is_err());
            if bad {
                let help = "it must hold certificates of authorities, X.509 version 3";
                d.error(item, "bad-certificate", "a certificate of this file cannot issue others", help);
                return None;
            }
            Some(store)
        }
        None => {
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            None
        }
    };
    if roots.is_empty() {
        let help = "install ca-certificates, or give the issuer's certificate as `ca`";
        d.error(item, "no-roots", "the system has no trusted certificates to verify the service by", help);
        return None;
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    // It can only fail for versions that the provider has no suites for.
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().ok()?;
    let mut config = builder.with_root_certificates(roots).with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Some(Some(ServiceTls { ca: trusted, config: Arc::new(config) }))
}

fn url(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<(Uri, http::HeaderValue)> {
    let text = d.string(item)?;
    let parsed = text.parse::<Uri>().ok().filter(|_| !text.contains('#'));
    let help = "write a URL such as http://127.0.0.1:9091/verify";
    let url = parsed.filter(|url| matches!(url.scheme_str(), Some("http" | "https")));
    let good = url.and_then(|url| {
        let authority = url.authority().filter(|authority| !authority.as_str().contains('@'))?;
        if url.scheme_str() == Some("https") {
            // What its certificate must be for.
            ServerName::try_from(authority.host().trim_matches(['[', ']'])).ok()?;
        }
        let host = http::HeaderValue::from_str(authority.as_str()).ok()?;
        Some((url, host))
    });
    if good.is_none() {
        d.error(item, "bad-url", format!("`{}` is not a URL that can be asked", item.node.shown()), help);
    }
    good
}

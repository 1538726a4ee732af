//! What guards a route or a listener, as the file would say it.

use super::{
    super::model::{BasicAuth, ConcurrencyLimit, ForwardAuth, Guards, RateLimit, Secret, ServiceTls},
    Content, Entries, Part, bare, duration, entry, list, shown, text,
};
use crate::policy::{access::Access, limit_key::LimitKey, rate::Rate};

/// `allow` and `deny`.
pub(super) fn access<'m>(access: Option<&'m Access>, out: &mut Entries<'m>) {
    let Some(access) = access else { return };
    let given = [("allow", access.allow()), ("deny", access.deny())];
    out.extend(given.into_iter().filter(|(_, all)| !all.is_empty()).map(|(key, all)| entry(key, list(all, shown))));
}

/// Everything that guards a route.
pub(super) fn guards<'m>(guards: &'m Guards, out: &mut Entries<'m>) {
    let Guards { access: networks, rate_limits, concurrency, basic_auth, forward_auth } = guards;
    access(networks.as_deref(), out);
    if !rate_limits.is_empty() {
        out.push(entry("rate_limit", list(rate_limits, rate_limit)));
    }
    out.extend(concurrency.as_ref().map(|ConcurrencyLimit { key, limit }| {
        entry("concurrency", Part::Map(vec![entry("key", limit_key(key)), entry("limit", bare(limit))]))
    }));
    out.extend(basic_auth.as_ref().map(|BasicAuth { path, content: Secret(content), users: _, realm, keep }| {
        let file = Part::File(path.to_string_lossy(), Content::Secret(content));
        let part = vec![entry("file", file), entry("realm", text(realm)), entry("keep", bare(keep))];
        entry("basic_auth", Part::Map(part))
    }));
    // The host is the URL's.
    out.extend(forward_auth.as_ref().map(|ForwardAuth { url, host: _, timeout, copy_headers, tls }| {
        let copy_headers = list(copy_headers, |name| text(name.as_str()));
        let mut part =
            vec![entry("url", shown(url)), entry("timeout", duration(*timeout)), entry("copy_headers", copy_headers)];
        let ca = tls.as_ref().and_then(|ServiceTls { ca, config: _ }| ca.as_ref());
        part.extend(
            ca.map(|ca| entry("ca", Part::File(ca.path.to_string_lossy(), Content::Certificates(&ca.certificates)))),
        );
        entry("forward_auth", Part::Map(part))
    }));
}

fn rate_limit(RateLimit { key, rate }: &RateLimit) -> Part<'_> {
    Part::Map(vec![
        entry("key", limit_key(key)),
        entry("rate", text(rate_text(rate))),
        entry("burst", bare(rate.burst())),
    ])
}

fn rate_text(rate: &Rate) -> String {
    let period = match duration(rate.period()) {
        Part::Bare(text) => text.into_owned(),
        _ => String::new(),
    };
    // `60s` is how a minute is written elsewhere.
    let period = match period.as_str() {
        "60s" => "m",
        "1s" => "s",
        "1h" => "h",
        "1d" => "d",
        other => other,
    };
    format!("{}/{period}", rate.count())
}

fn limit_key(key: &LimitKey) -> Part<'_> {
    match key {
        LimitKey::ClientIp | LimitKey::Route => bare(key.as_str()),
        LimitKey::Cookie(name) => Part::Map(vec![entry("cookie", text(name))]),
        LimitKey::Host => Part::Map(vec![entry("header", text("host"))]),
        LimitKey::Header(name) | LimitKey::Told(name) => Part::Map(vec![entry("header", text(name.as_str()))]),
        LimitKey::User => Part::Map(vec![entry("header", text("authorization"))]),
    }
}

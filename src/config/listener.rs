//! `listeners`: where rrlb accepts, and how.

use std::sync::Arc;

use super::{
    certificate::{Certificates, client_authorities},
    decode::{Decoder, Fields, Item, Table, table, value},
    guard,
    model::{
        Alpn, Certificate, CipherProfile, ClientAuth, ClientAuthMode, Engine, Listener, ListenerLimits, ListenerTls,
        ProxyProtocol, TlsVersion,
    },
};
use crate::types::{ByteSize, ListenAddress};

pub(super) const LISTENER: Table = Table {
    what: "a listener",
    keys: &[
        value("address", "required"),
        table("tls", "none: plain text", &TLS),
        value("h2c", "false"),
        value("redirect_https", "false"),
        table("proxy_protocol", "none", &PROXY_PROTOCOL),
        table("limits", "see there", &LIMITS),
        guard::ALLOW,
        guard::DENY,
        value("engine", "as everywhere"),
    ],
};

const TLS: Table = Table {
    what: "a listener's tls",
    keys: &[
        value("certificates", "required"),
        value("profile", "intermediate"),
        value("min_version", "\"1.2\""),
        value("alpn", "[h2, http/1.1]"),
        table("client_auth", "none", &CLIENT_AUTH),
        value("strict_sni", "false"),
        value("keylog", "false"),
    ],
};

const CLIENT_AUTH: Table = Table {
    what: "client_auth",
    keys: &[value("mode", "required"), value("ca", "required with optional and required"), value("crl", "none")],
};

const PROXY_PROTOCOL: Table = Table {
    what: "proxy_protocol",
    keys: &[value("from", "required, but for a unix socket"), value("required", "true")],
};

const LIMITS: Table = Table {
    what: "limits",
    keys: &[
        value("handshake_timeout", "10s"),
        value("header_timeout", "10s"),
        value("idle_timeout", "60s"),
        value("request_timeout", "off"),
        value("max_header_size", "32KiB"),
        value("max_uri_length", "8KiB"),
        value("max_headers", "100"),
        value("max_body_size", "off"),
        value("min_body_rate", "1KiB"),
        value("requests_per_connection", "10000"),
        value("connections", "off"),
        value("connections_per_ip", "off"),
    ],
};

/// As long a target as the http crate takes: backends on HTTP/2, guards and Pingora have it as a `Uri`.
const MAX_TARGET: u64 = 65_534;

/// One listener, with the place of its address for a message about two alike.
pub(super) fn decode<'t>(
    d: &mut Decoder<'_>,
    item: &Item<'t>,
    certificates: &Certificates,
) -> Option<(Listener, Item<'t>)> {
    let fields = d.fields(item, &LISTENER)?;
    let address_item = fields.required(d, "address");
    let address = address_item.as_ref().and_then(|item| d.listen_address(item));
    let tls = fields.get("tls").map_or(Some(None), |item| tls(d, &item, certificates).map(Some));
    let h2c = fields.get("h2c").map_or(Some(false), |item| d.boolean(&item));
    let redirect_https = fields.get("redirect_https").map_or(Some(false), |item| d.boolean(&item));
    let unix = matches!(address, Some(ListenAddress::Unix(_)));
    let proxy_protocol =
        fields.get("proxy_protocol").map_or(Some(None), |item| proxy_protocol(d, &item, unix).map(Some));
    let limits = limits(d, fields.get("limits"));
    let access = guard::access(d, &fields);
    let engine = fields.get("engine").map_or(Some(None), |item| d.choice(&item, &Engine::WORDS).map(Some));

    if let (Some(_), Some(true), Some(item)) = (fields.get("tls"), h2c, fields.get("h2c")) {
        let help = "take one out; on TLS, HTTP/2 is `alpn: [h2, http/1.1]`";
        d.error_at(item.node.head(), &item.path, "h2c-with-tls", "h2c is HTTP/2 without TLS", help);
    }
    if let (Some(_), Some(true), Some(item)) = (fields.get("tls"), redirect_https, fields.get("redirect_https")) {
        let message = "a TLS listener would redirect to itself";
        let help = "write `redirect_https` on the listener for port 80";
        d.error_at(item.node.head(), &item.path, "redirect-with-tls", message, help);
    }
    if let Some(ListenAddress::Unix(_)) = &address {
        for item in ["allow", "deny"].into_iter().filter_map(|name| fields.get(name)) {
            let message = "clients of a unix socket have no addresses";
            let help = "take it out; the mode of the socket's folder says who may connect";
            d.error_at(item.node.head(), &item.path, "access-without-address", message, help);
        }
    }
    let listener = Listener {
        address: address?,
        tls: tls?,
        h2c: h2c?,
        redirect_https: redirect_https?,
        proxy_protocol: proxy_protocol?,
        limits: limits?,
        access: access?,
        engine: engine?,
    };
    Some((listener, address_item?))
}

fn proxy_protocol(d: &mut Decoder<'_>, item: &Item<'_>, unix: bool) -> Option<ProxyProtocol> {
    const HELP: &str = "write the addresses of your load balancers, such as `from: [10.0.0.0/8]`";
    let fields = d.fields(item, &PROXY_PROTOCOL)?;
    let required = fields.get("required").map_or(Some(true), |item| d.boolean(&item));
    let from = match fields.get("from") {
        Some(from) => {
            let networks = d.at_least_one(&from, "a network or a list of networks", HELP);
            d.all(networks, |d, item| d.network(item))
        }
        // Who can open the socket may.
        None if unix => Some(Vec::new()),
        None => {
            let message = "`from` is missing: whoever may send a PROXY header can claim to be any client";
            d.error_at(item.node.head(), &item.path, "missing-key", message, HELP);
            None
        }
    };
    Some(ProxyProtocol { from: from?, required: required? })
}

fn tls(d: &mut Decoder<'_>, item: &Item<'_>, certificates: &Certificates) -> Option<ListenerTls> {
    let fields = d.fields(item, &TLS)?;
    let certificates = chosen_certificates(d, &fields, certificates);
    let profiles = [("intermediate", CipherProfile::Intermediate), ("modern", CipherProfile::Modern)];
    let profile = fields.get("profile").map_or(Some(CipherProfile::Intermediate), |item| d.choice(&item, &profiles));
    let mut version = min_version(d, &fields);
    if profile == Some(CipherProfile::Modern) {
        match (fields.get("min_version"), version) {
            (Some(item), Some(TlsVersion::V1_2)) => {
                let message = "the modern profile speaks TLS 1.3 only";
                let help = "take `min_version` out, or write `profile: intermediate`";
                d.error(&item, "profile-and-version", message, help);
                version = None;
            }
            _ => version = version.map(|_| TlsVersion::V1_3),
        }
    }
    let alpn = alpn(d, fields.get("alpn"));
    let client_auth = fields.get("client_auth").map_or(Some(None), |item| client_auth(d, &item));
    let strict_sni = fields.get("strict_sni").map_or(Some(false), |item| d.boolean(&item));
    let keylog = fields.get("keylog").map_or(Some(false), |item| d.boolean(&item));
    if let (Some(true), Some(item)) = (keylog, fields.get("keylog")) {
        let message = "whoever reads the file that SSLKEYLOGFILE names can read what clients send and get";
        d.warn_at(item.node.mark(), &item.path, "keylog", message, "for finding faults only");
    }
    Some(ListenerTls {
        certificates: certificates?,
        profile: profile?,
        min_version: version?,
        alpn: alpn?,
        client_auth: client_auth?,
        strict_sni: strict_sni?,
        keylog: keylog?,
    })
}

/// The inner `None` asks for no certificate.
fn client_auth(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<Option<ClientAuth>> {
    let fields = d.fields(item, &CLIENT_AUTH)?;
    let mode = fields.required(d, "mode");
    let modes =
        [("none", None), ("optional", Some(ClientAuthMode::Optional)), ("required", Some(ClientAuthMode::Required))];
    let mode = mode.and_then(|item| d.choice(&item, &modes))?;
    let Some(mode) = mode else {
        for unused in ["ca", "crl"].iter().filter_map(|name| fields.get(name)) {
            let message = "it is not read with `mode: none`";
            d.warn_at(unused.node.mark(), &unused.path, "no-effect", message, "take it out");
        }
        return Some(None);
    };
    let ca = fields.required(d, "ca")?;
    let (ca, crl) = client_authorities(d, &ca, fields.get("crl").as_ref())?;
    Some(Some(ClientAuth { mode, ca, crl }))
}

/// The certificates that `certificates` names; at least one.
pub(super) fn chosen_certificates(
    d: &mut Decoder<'_>,
    fields: &Fields<'_>,
    certificates: &Certificates,
) -> Option<Vec<Arc<Certificate>>> {
    let item = fields.required(d, "certificates")?;
    let items = d.one_or_more(&item, "a list of names from `certificates`")?;
    if items.is_empty() {
        let help = "name one of `certificates`";
        d.error(&item, "no-certificates", "TLS needs at least one certificate", help);
        return None;
    }
    d.all(Some(items), |d, item| certificates.named(d, item))
}

/// The lowest TLS version that is spoken; default 1.2.
pub(super) fn min_version(d: &mut Decoder<'_>, fields: &Fields<'_>) -> Option<TlsVersion> {
    let versions = [("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];
    fields.get("min_version").map_or(Some(TlsVersion::V1_2), |item| d.choice(&item, &versions))
}

/// Protocols in order of preference, each once; default h2, http/1.1.
pub(super) fn alpn(d: &mut Decoder<'_>, item: Option<Item<'_>>) -> Option<Vec<Alpn>> {
    let Some(item) = item else { return Some(vec![Alpn::Http2, Alpn::Http1]) };
    let words = [("h2", Alpn::Http2), ("http/1.1", Alpn::Http1)];
    let items = d.one_or_more(&item, "a list of h2 and http/1.1")?;
    if items.is_empty() {
        d.error(&item, "empty-list", "at least one protocol is needed", "write [h2, http/1.1]");
        return None;
    }
    let mut seen = Vec::new();
    d.all(Some(items), |d, item| {
        let alpn = d.choice(item, &words)?;
        if seen.contains(&alpn) {
            let message = format!("`{}` stands here twice", item.node.shown());
            d.error(item, "duplicate-value", message, "keep one of the two");
        }
        seen.push(alpn);
        Some(alpn)
    })
}

fn limits(d: &mut Decoder<'_>, item: Option<Item<'_>>) -> Option<ListenerLimits> {
    const MOST: u32 = 1_000_000_000;
    let seconds = std::time::Duration::from_secs;
    let built_in = ListenerLimits {
        handshake_timeout: seconds(10),
        header_timeout: seconds(10),
        idle_timeout: seconds(60),
        request_timeout: None,
        max_header_size: ByteSize(32 << 10),
        max_uri_length: ByteSize(8 << 10),
        max_headers: 100,
        max_body_size: None,
        min_body_rate: Some(ByteSize(1 << 10)),
        requests_per_connection: 10_000,
        connections: None,
        connections_per_ip: None,
    };
    let Some(item) = item else { return Some(built_in) };
    let fields = d.fields(&item, &LIMITS)?;
    let mut timeout = |name: &str, base| fields.get(name).map_or(Some(base), |item| d.duration(&item));
    let handshake_timeout = timeout("handshake_timeout", built_in.handshake_timeout);
    let header_timeout = timeout("header_timeout", built_in.header_timeout);
    let idle_timeout = timeout("idle_timeout", built_in.idle_timeout);
    let request_timeout =
        off_or(d, fields.get("request_timeout"), built_in.request_timeout, |d, item| d.duration(item));
    let size = |d: &mut Decoder<'_>, name: &str, base, range| {
        fields.get(name).map_or(Some(base), |item| size_within(d, &item, range))
    };
    let max_header_size = size(d, "max_header_size", built_in.max_header_size, (1 << 10, 1 << 20));
    let max_uri_length = size(d, "max_uri_length", built_in.max_uri_length, (64, MAX_TARGET));
    if let (Some(head), Some(uri), Some(item)) = (max_header_size, max_uri_length, fields.get("max_uri_length"))
        && uri > head
    {
        let message =
            format!("a head has {head} at most, so no target is as long as that: it is refused with 431 first");
        let help = "make it smaller than `max_header_size`";
        d.warn_at(item.node.mark(), &item.path, "no-effect", message, help);
    }
    let max_headers = fields.get("max_headers").map_or(Some(built_in.max_headers), |item| d.count(&item, 1..=256));
    let max_body_size = off_or(d, fields.get("max_body_size"), built_in.max_body_size, |d, item| d.size(item));
    let min_body_rate = match fields.get("min_body_rate") {
        Some(item) if d.is_word(&item, "0") || d.is_word(&item, "0B") => {
            d.error(&item, "out-of-range", format!("`{}` is no rate", item.node.shown()), "write `off` for none");
            None
        }
        item => off_or(d, item, built_in.min_body_rate, |d, item| size_within(d, item, (1, 1 << 30))),
    };
    let requests_per_connection = fields
        .get("requests_per_connection")
        .map_or(Some(built_in.requests_per_connection), |item| d.count(&item, 1..=MOST));
    let connections = off_or(d, fields.get("connections"), None, |d, item| d.count(item, 1..=MOST));
    let connections_per_ip = off_or(d, fields.get("connections_per_ip"), None, |d, item| d.count(item, 1..=MOST));
    Some(ListenerLimits {
        handshake_timeout: handshake_timeout?,
        header_timeout: header_timeout?,
        idle_timeout: idle_timeout?,
        request_timeout: request_timeout?,
        max_header_size: max_header_size?,
        max_uri_length: max_uri_length?,
        max_headers: max_headers?,
        max_body_size: max_body_size?,
        min_body_rate: min_body_rate?,
        requests_per_connection: requests_per_connection?,
        connections: connections?,
        connections_per_ip: connections_per_ip?,
    })
}

/// A limit that may be `off`; `base` where it is not given.
fn off_or<T>(
    d: &mut Decoder<'_>,
    item: Option<Item<'_>>,
    base: Option<T>,
    read: impl FnOnce(&mut Decoder<'_>, &Item<'_>) -> Option<T>,
) -> Option<Option<T>> {
    match item {
        None => Some(base),
        Some(item) if d.is_word(&item, "off") => Some(None),
        Some(item) => read(d, &item).map(Some),
    }
}

/// A size from one to another, in bytes.
fn size_within(d: &mut Decoder<'_>, item: &Item<'_>, (smallest, largest): (u64, u64)) -> Option<ByteSize> {
    let (smallest, largest) = (ByteSize(smallest), ByteSize(largest));
    let size = d.size(item)?;
    if !(smallest..=largest).contains(&size) {
        let help = format!("write a size from {smallest} to {largest}");
        d.error(item, "out-of-range", format!("`{}` is out of range", item.node.shown()), &help);
        return None;
    }
    Some(size)
}

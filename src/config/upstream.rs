//! `upstreams`: groups of backends, and how they are spoken to.

use std::collections::BTreeMap;

use super::{
    certificate::{Certificates, trust_store},
    decode::{Decoder, Fields, Item, Table, list, table, value},
    defaults::{self, Defaults, EJECT, HEALTH_CHECK, RETRY, TIMEOUTS, host_value},
    discover::{self, DISCOVER},
    listener::alpn,
    model::{Alpn, Backend, Discover, DnsRecords, HostHeader, Upstream, UpstreamProtocol, UpstreamTls},
    tree::{Node, Value},
};
use crate::{
    policy::{balance::Balance, proxy_protocol::Version},
    types::{AdminState, BackendAddress, Name, Weight},
};

pub(super) const UPSTREAM: Table = Table {
    what: "an upstream",
    keys: &[
        list("backends", "[]; required where there is neither discover nor admin", &BACKEND),
        table("discover", "none", &DISCOVER),
        value("balance", "round_robin"),
        table("tls", "none: plain text", &TLS),
        value("protocol", "auto"),
        value("host_header", "preserve"),
        table("health_check", "off", &HEALTH_CHECK),
        value("slow_start", "off"),
        table("timeouts", "those of defaults", &TIMEOUTS),
        table("retry", "that of defaults", &RETRY),
        table("eject", "off", &EJECT),
        value("proxy_protocol", "off"),
        value("grpc_web", "false"),
    ],
};

const BACKEND: Table = Table {
    what: "a backend",
    keys: &[value("id", "the address as written"), value("address", "required"), value("weight", "1")],
};

const TLS: Table = Table {
    what: "an upstream's tls",
    keys: &[
        value("sni", "each backend's host name"),
        value("verify", "true"),
        value("ca", "ca_file, else the system's roots"),
        value("client_cert", "none"),
        value("alpn", "[h2, http/1.1]"),
    ],
};

/// What an upstream is read against.
pub(super) struct Around<'a> {
    /// What it inherits.
    pub(super) defaults: &'a Defaults,
    pub(super) certificates: &'a Certificates,
    /// Whether an admin API can fill it.
    pub(super) admin: bool,
}

/// Decodes `upstreams`.
pub(super) fn decode(
    d: &mut Decoder<'_>,
    item: Option<Item<'_>>,
    around: &Around<'_>,
) -> Option<BTreeMap<Name, Upstream>> {
    let Some(item) = item else { return Some(BTreeMap::new()) };
    let named = d.named(&item, "a mapping from names to upstreams")?;
    let mut upstreams = BTreeMap::new();
    let mut complete = true;
    for named in named {
        let name = d.key_name(&named);
        let upstream = upstream(d, &named.item, named.name, around);
        match (name, upstream) {
            (Some(name), Some(upstream)) => {
                upstreams.insert(name, upstream);
            }
            _ => complete = false,
        }
    }
    complete.then_some(upstreams)
}

fn upstream(d: &mut Decoder<'_>, item: &Item<'_>, name: &str, around: &Around<'_>) -> Option<Upstream> {
    let fields = d.fields(item, &UPSTREAM)?;
    let discover = fields.get("discover").map_or(Some(None), |item| discover::decode(d, &item).map(Some));
    let backends = match fields.get("backends") {
        Some(item) => d.items(&item, "a list of backends").and_then(|items| backends(d, &item, items)),
        None => Some(Vec::new()),
    };
    if backends.as_ref().is_some_and(Vec::is_empty) && fields.get("discover").is_none() && !around.admin {
        let (span, path) = fields
            .get("backends")
            .map_or_else(|| (item.node.head(), item.path.clone()), |item| (item.node.mark(), item.path.clone()));
        let message = "at least one backend is needed: without `discover` and `admin` nothing could ever add one";
        let help = "write `backends: [10.0.0.11:3000]`, or add `discover`, or `admin: {}` at the top level";
        d.error_at(span, &path, "no-backends", message, help);
    }
    let words = [
        ("round_robin", Balance::RoundRobin),
        ("least_requests", Balance::LeastRequests),
        ("random", Balance::Random),
        ("ip_hash", Balance::IpHash),
    ];
    let balance = fields.get("balance").map_or(Some(Balance::RoundRobin), |item| d.choice(&item, &words));
    let nameless = nameless(name, backends.as_deref().unwrap_or_default(), discover.as_ref());
    let tls = fields.get("tls").map_or(Some(None), |item| tls(d, &item, name, nameless, around.certificates).map(Some));
    let protocol = protocol(d, &fields);
    let proxy_protocol = proxy_protocol(d, &fields);
    let protocol = one_client(d, &fields, protocol, proxy_protocol, &tls);
    let grpc_web = grpc_web(d, &fields, protocol, &tls);
    let host_header = host_header(d, &fields);
    let inherited = defaults::inherited(d, &fields, around.defaults);
    let inherited = inherited?;
    if let (Some(item), Some(_), Some(Balance::IpHash)) = (fields.get("slow_start"), inherited.slow_start, balance) {
        let message = "`balance: ip_hash` sends a client to its backend at once: `slow_start` has no effect";
        d.warn_at(item.node.mark(), &item.path, "no-effect", message, "take it out, or choose another `balance`");
    }
    Some(Upstream {
        name: name.into(),
        backends: backends?,
        discover: discover?,
        balance: balance?,
        tls: tls?,
        protocol: protocol?,
        host_header: host_header?,
        health_check: inherited.health_check,
        slow_start: inherited.slow_start,
        timeouts: inherited.timeouts,
        retry: inherited.retry,
        eject: inherited.eject,
        proxy_protocol: proxy_protocol?,
        grpc_web: grpc_web?,
    })
}

/// A file that holds a list of backends and nothing else. It may be empty.
pub(super) fn backend_list(d: &mut Decoder<'_>, root: &Node) -> Option<Vec<Backend>> {
    if matches!(root.value, Value::Null) {
        d.problems.push(super::tree::whole_file("empty-file", "the file is empty", super::LIST_HELP));
        return None;
    }
    let item = Item { node: root, path: String::new() };
    let items = d.items(&item, "a list of backends")?;
    backends(d, &item, items)
}

/// Decodes the items of a list; the empty one is right here.
fn backends(d: &mut Decoder<'_>, item: &Item<'_>, items: Vec<Item<'_>>) -> Option<Vec<Backend>> {
    let mut addresses: BTreeMap<BackendAddress, String> = BTreeMap::new();
    let mut ids: BTreeMap<Name, String> = BTreeMap::new();
    let backends = d.all(Some(items), |d, item| {
        let (backend, address, id) = backend(d, item)?;
        if let Some(first) = addresses.insert(backend.address.clone(), item.path.clone()) {
            let message = format!("`{}` is the address of {first} too", address.node.shown());
            d.error(&address, "duplicate-backend", message, "keep one of the two, and give it a larger weight");
        } else if let Some(first) = ids.insert(backend.id.clone(), item.path.clone()) {
            let at = id.unwrap_or(address);
            let message = format!("`{}` is the id of {first} too", at.node.shown());
            d.error(&at, "duplicate-id", message, "give each backend an id of its own");
        }
        Some(backend)
    })?;
    if !backends.is_empty() && backends.iter().all(|backend| backend.weight.value() == 0) {
        let message = "all weights are 0: no backend would get a request";
        d.error_at(item.node.head(), &item.path, "all-weights-zero", message, "give one a weight of 1 or more");
        return None;
    }
    Some(backends)
}

/// A backend, with the places of its address and id.
fn backend<'t>(d: &mut Decoder<'_>, item: &Item<'t>) -> Option<(Backend, Item<'t>, Option<Item<'t>>)> {
    if !item.is_map() {
        if !item.is_scalar() && !matches!(item.node.value, Value::List(_)) {
            d.wrong_type(item, "an address or a mapping with `address`", "write 10.0.0.11:3000");
            return None;
        }
        let address = d.backend_address(item)?;
        let id = default_id(d, item)?;
        return Some((
            Backend { id, address, weight: Weight::default(), admin: AdminState::Ready },
            item.clone(),
            None,
        ));
    }
    let fields = d.fields(item, &BACKEND)?;
    let address_item = fields.required(d, "address");
    let address = address_item.as_ref().and_then(|item| d.backend_address(item));
    let id_item = fields.get("id");
    let id = match (&id_item, &address_item, &address) {
        (Some(item), ..) => d.id(item),
        (None, Some(item), Some(_)) => default_id(d, item),
        _ => None,
    };
    let weight = fields.get("weight").map_or(Some(Weight::default()), |item| d.weight(&item));
    Some((Backend { id: id?, address: address?, weight: weight?, admin: AdminState::Ready }, address_item?, id_item))
}

fn default_id(d: &mut Decoder<'_>, address: &Item<'_>) -> Option<Name> {
    d.scalar(address, "an address").map(|text| text.value.into())
}

fn tls(
    d: &mut Decoder<'_>,
    item: &Item<'_>,
    upstream: &str,
    nameless: Option<String>,
    certificates: &Certificates,
) -> Option<UpstreamTls> {
    let fields = d.fields(item, &TLS)?;
    let sni = fields.get("sni").map_or(Some(None), |item| sni(d, &item).map(Some));
    let verify = fields.get("verify").map_or(Some(true), |item| {
        let verify = d.boolean(&item)?;
        if !verify {
            let message = format!("the certificates of the backends of `{upstream}` are not checked");
            let help = "anybody between can read and change the traffic; give the issuer's certificate as `ca`";
            d.warn_at(item.node.mark(), &item.path, "no-verification", message, help);
        }
        Some(verify)
    });
    let ca = fields.get("ca").map_or(Some(None), |item| trust_store(d, &item).map(Some));
    let client_cert = fields.get("client_cert").map_or(Some(None), |item| certificates.named(d, &item).map(Some));
    let alpn = alpn(d, fields.get("alpn"));
    if let (None, Some(message)) = (fields.get("sni"), nameless) {
        let help = "write `tls: { sni: name.in.the.certificate }`";
        d.error_at(item.node.head(), &item.path, "missing-sni", message, help);
    }
    Some(UpstreamTls { sni: sni?, verify: verify?, ca: ca?, client_cert: client_cert?, alpn: alpn? })
}

/// Why TLS needs a name here, if it does. Where none is given each backend's own is taken; an address has none.
fn nameless(upstream: &str, backends: &[Backend], discover: Option<&Option<Discover>>) -> Option<String> {
    if backends.iter().any(|one| !matches!(one.address, BackendAddress::Host(_))) {
        return Some(format!("`{upstream}` has backends without a host name: TLS needs `sni`"));
    }
    let found = match discover?.as_ref()? {
        Discover::Dns(dns) => dns.records != DnsRecords::Srv,
        Discover::List(_) => true,
    };
    found.then(|| format!("`{upstream}` may find backends without a host name: TLS needs `sni`"))
}

fn sni(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<String> {
    let text = d.scalar(item, "a host name")?.value;
    let name = super::address::dns_name(&text)
        .or_else(|| text.parse::<std::net::IpAddr>().ok().map(|address| address.to_string()))
        .filter(|name| rustls::pki_types::ServerName::try_from(name.as_str()).is_ok());
    if name.is_none() {
        let message = format!("`{}` is not a name that a certificate can have", item.node.shown());
        d.error(item, "bad-host", message, "write the name in the backend's certificate, without a port");
    }
    name
}

fn protocol(d: &mut Decoder<'_>, fields: &Fields<'_>) -> Option<UpstreamProtocol> {
    let Some(item) = fields.get("protocol") else { return Some(UpstreamProtocol::Auto) };
    let words = [
        ("auto", UpstreamProtocol::Auto),
        ("h1", UpstreamProtocol::Http1),
        ("h2", UpstreamProtocol::Http2),
        ("h2c", UpstreamProtocol::H2c),
    ];
    let protocol = d.choice(&item, &words)?;
    let (code, message, help) = match (protocol, fields.get("tls").is_some()) {
        (UpstreamProtocol::Http2, false) => ("h2-without-tls", "`h2` needs `tls`", "add `tls`, or write h2c"),
        (UpstreamProtocol::H2c, true) => ("h2c-with-tls", "`h2c` is HTTP/2 without TLS", "take out `tls`, or write h2"),
        _ => return Some(protocol),
    };
    d.error(&item, code, message, help);
    None
}

fn proxy_protocol(d: &mut Decoder<'_>, fields: &Fields<'_>) -> Option<Option<Version>> {
    let Some(item) = fields.get("proxy_protocol") else { return Some(None) };
    d.choice(&item, &[("off", None), ("v1", Some(Version::V1)), ("v2", Some(Version::V2))])
}

/// With PROXY headers a connection is for one client, so HTTP/1.1 is spoken.
fn one_client(
    d: &mut Decoder<'_>,
    fields: &Fields<'_>,
    protocol: Option<UpstreamProtocol>,
    proxy_protocol: Option<Option<Version>>,
    tls: &Option<Option<UpstreamTls>>,
) -> Option<UpstreamProtocol> {
    let (Some(Some(_)), Some(item)) = (proxy_protocol, fields.get("proxy_protocol")) else { return protocol };
    let h2_only = matches!(tls, Some(Some(tls)) if !tls.alpn.contains(&Alpn::Http1));
    match protocol? {
        UpstreamProtocol::Auto if !h2_only => Some(UpstreamProtocol::Http1),
        UpstreamProtocol::Http1 => Some(UpstreamProtocol::Http1),
        UpstreamProtocol::Auto | UpstreamProtocol::H2c | UpstreamProtocol::Http2 => {
            let message = "an HTTP/2 connection carries many clients, and a PROXY header names one";
            d.error(&item, "proxy-protocol-with-h2", message, "write `protocol: h1`, or take `proxy_protocol` out");
            None
        }
    }
}

fn grpc_web(
    d: &mut Decoder<'_>,
    fields: &Fields<'_>,
    protocol: Option<UpstreamProtocol>,
    tls: &Option<Option<UpstreamTls>>,
) -> Option<bool> {
    let Some(item) = fields.get("grpc_web") else { return Some(false) };
    let wanted = d.boolean(&item)?;
    let h2 = match protocol? {
        UpstreamProtocol::Auto => matches!(tls, Some(Some(tls)) if tls.alpn.contains(&Alpn::Http2)),
        UpstreamProtocol::H2c | UpstreamProtocol::Http2 => true,
        UpstreamProtocol::Http1 => false,
    };
    if wanted && !h2 {
        let help = "write `protocol: h2c`, or h2 with `tls`";
        d.error(&item, "grpc-web-without-h2", "gRPC is spoken over HTTP/2 only", help);
        return None;
    }
    Some(wanted)
}

fn host_header(d: &mut Decoder<'_>, fields: &Fields<'_>) -> Option<HostHeader> {
    let Some(item) = fields.get("host_header") else { return Some(HostHeader::Preserve) };
    if d.is_word(&item, "preserve") {
        return Some(HostHeader::Preserve);
    }
    if !d.is_word(&item, "sni") {
        return host_value(d, &item).map(HostHeader::Fixed);
    }
    if fields.get("tls").is_none() {
        let help = "add `tls: { sni: ... }`, or write the name here";
        d.error(&item, "sni-without-tls", "there is no SNI without `tls`", help);
        return None;
    }
    Some(HostHeader::Sni)
}

//! `upstreams`: groups of backends, and how they are spoken to.

use std::collections::BTreeMap;

use super::{
    certificate::{Certificates, trust_store},
    decode::{Decoder, Fields, Item, Table, list, table, value},
    defaults::{self, Defaults, HEALTH_CHECK, RETRY, TIMEOUTS, host_value},
    listener::alpn,
    model::{Backend, HostHeader, Upstream, UpstreamProtocol, UpstreamTls},
    tree::{Node, Value},
};
use crate::{
    policy::balance::Balance,
    types::{AdminState, BackendAddress, Name, Weight},
};

pub(super) const UPSTREAM: Table = Table {
    what: "an upstream",
    keys: &[
        list("backends", "required", &BACKEND),
        table("discover", "none", &DISCOVER),
        value("balance", "round_robin"),
        table("tls", "none: plain text", &TLS),
        value("protocol", "auto"),
        value("host_header", "preserve"),
        table("health_check", "off", &HEALTH_CHECK),
        table("timeouts", "those of defaults", &TIMEOUTS),
        table("retry", "that of defaults", &RETRY),
    ],
};

const DISCOVER: Table = Table {
    what: "discover",
    keys: &[value("dns", "none"), value("file", "none"), value("refresh", "10s"), value("servers", "the system's")],
};

/// A stand-in.
fn stand_in(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<super::model::Discover> {
    use super::model::{Discover, DiscoverDns, DiscoverList, DnsRecords};
    let fields = d.fields(item, &DISCOVER)?;
    let refresh = fields.get("refresh").and_then(|item| d.duration(&item));
    if let Some(file) = fields.get("file") {
        let path = d.base.join(d.scalar(&file, "a path")?.value);
        return Some(Discover::List(DiscoverList {
            path,
            refresh: refresh.unwrap_or(std::time::Duration::from_secs(1)),
        }));
    }
    let name = d.scalar(&fields.get("dns")?, "a name")?.value;
    let (name, records) = match name.split_once(':') {
        Some((name, port)) => (name.to_owned(), DnsRecords::Addresses { port: port.parse().ok()? }),
        None => (name, DnsRecords::Srv),
    };
    let servers = match fields.get("servers") {
        Some(item) => {
            let items = d.items(&item, "servers");
            d.all(items, |d, item| d.inet_address(item))?
        }
        None => Vec::new(),
    };
    let refresh = refresh.unwrap_or(std::time::Duration::from_secs(10));
    Some(Discover::Dns(DiscoverDns { name, records, refresh, servers }))
}

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

/// Decodes `upstreams`. Where `base` is `None`, `defaults` are wrong: the rest is still checked.
pub(super) fn decode(
    d: &mut Decoder<'_>,
    item: Option<Item<'_>>,
    base: Option<&Defaults>,
    certificates: &Certificates,
) -> Option<BTreeMap<Name, Upstream>> {
    let Some(item) = item else { return Some(BTreeMap::new()) };
    let named = d.named(&item, "a mapping from names to upstreams")?;
    let built_in = Defaults::default();
    let mut upstreams = BTreeMap::new();
    let mut complete = base.is_some();
    for named in named {
        let name = d.key_name(&named);
        let upstream = upstream(d, &named.item, named.name, base.unwrap_or(&built_in), certificates);
        match (name, upstream) {
            (Some(name), Some(upstream)) => {
                upstreams.insert(name, upstream);
            }
            _ => complete = false,
        }
    }
    complete.then_some(upstreams)
}

fn upstream(
    d: &mut Decoder<'_>,
    item: &Item<'_>,
    name: &str,
    base: &Defaults,
    certificates: &Certificates,
) -> Option<Upstream> {
    let fields = d.fields(item, &UPSTREAM)?;
    let discover = fields.get("discover").and_then(|item| stand_in(d, &item));
    let backends = fields.get("backends").map_or(Some(Vec::new()), |item| {
        let items = d.items(&item, "a list of backends")?;
        backends(d, &item, items)
    });
    let words = [
        ("round_robin", Balance::RoundRobin),
        ("least_requests", Balance::LeastRequests),
        ("random", Balance::Random),
        ("ip_hash", Balance::IpHash),
    ];
    let balance = fields.get("balance").map_or(Some(Balance::RoundRobin), |item| d.choice(&item, &words));
    let tls =
        fields.get("tls").map_or(Some(None), |item| tls(d, &item, name, backends.as_deref(), certificates).map(Some));
    let protocol = protocol(d, &fields);
    let host_header = host_header(d, &fields);
    let inherited = defaults::inherited(d, &fields, base);
    let inherited = inherited?;
    Some(Upstream {
        name: name.into(),
        backends: backends?,
        discover,
        balance: balance?,
        tls: tls?,
        protocol: protocol?,
        host_header: host_header?,
        health_check: inherited.health_check,
        timeouts: inherited.timeouts,
        retry: inherited.retry,
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
    backends: Option<&[Backend]>,
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

    let nameless = backends.and_then(|all| all.iter().find(|one| !matches!(one.address, BackendAddress::Host(_))));
    if let (None, Some(_)) = (fields.get("sni"), nameless) {
        let message = format!("`{upstream}` has backends without a host name: TLS needs `sni`");
        let help = "write `tls: { sni: name.in.the.certificate }`";
        d.error_at(item.node.head(), &item.path, "missing-sni", message, help);
    }
    Some(UpstreamTls { sni: sni?, verify: verify?, ca: ca?, client_cert: client_cert?, alpn: alpn? })
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

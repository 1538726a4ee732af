//! `discover`: where the backends of an upstream come from, beside those that stand in the file.

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use super::{
    address::{dns_name, host_port},
    decode::{Decoder, Fields, Item, Table, value},
    model::{Discover, DiscoverDns, DiscoverList, DnsRecords},
};

pub(super) const DISCOVER: Table = Table {
    what: "discover",
    keys: &[
        value("dns", "one of dns, file"),
        value("file", "one of dns, file"),
        value("refresh", "10s with dns, 1s with file"),
        value("servers", "the system's"),
    ],
};

const DNS_PORT: u16 = 53;
const DNS_FORM: &str = "write app.internal:8080 (A and AAAA records) or _http._tcp.app.internal (SRV records)";

/// Decodes `discover`.
pub(super) fn decode(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<Discover> {
    let fields = d.fields(item, &DISCOVER)?;
    match (fields.get("dns"), fields.get("file")) {
        (Some(_), Some(file)) => {
            let message = "`dns` and `file` exclude each other";
            d.error_at(file.node.head(), &file.path, "two-sources", message, "keep one of the two");
            None
        }
        (Some(name), None) => {
            let name = dns(d, &name);
            let refresh = refresh(d, &fields, Duration::from_secs(10), Duration::from_secs(1), "1s");
            let servers = fields.get("servers").map_or(Some(Vec::new()), |item| {
                let items = d.one_or_more(&item, "a list of DNS servers");
                d.all(items, server)
            });
            let (name, records) = name?;
            Some(Discover::Dns(DiscoverDns { name, records, refresh: refresh?, servers: servers? }))
        }
        (None, Some(file)) => {
            if let Some(item) = fields.get("servers") {
                let message = "`servers` are DNS servers: a file needs none";
                d.error_at(item.node.head(), &item.path, "not-a-dns-source", message, "take it out");
            }
            let path = d.path(&file);
            let refresh = refresh(d, &fields, Duration::from_secs(1), Duration::from_millis(100), "100ms");
            Some(Discover::List(DiscoverList { path: path?, refresh: refresh? }))
        }
        (None, None) => {
            let message = "`discover` needs a source";
            d.error_at(item.node.head(), &item.path, "no-source", message, "add one of `dns` and `file`");
            None
        }
    }
}

/// `name:port` asks for addresses, a name alone for services.
fn dns(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<(String, DnsRecords)> {
    let text = d.address_text(item)?;
    let shown = item.node.shown();
    let host = text.rsplit_once(':').map_or(text.as_str(), |(host, _)| host);
    let address = [text.as_str(), host].iter().any(|text| {
        let inside = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(text);
        inside.parse::<IpAddr>().is_ok()
    });
    if address {
        let message = format!("`{shown}` is an IP address: there is no name to look up");
        d.error(item, "bad-address", message, "write it into `backends`");
        return None;
    }
    let looks_like_srv = text.starts_with('_');
    if !text.contains(':') {
        let Some(name) = dns_name(&text) else {
            d.error(item, "bad-address", format!("`{shown}` is not a name to look up"), DNS_FORM);
            return None;
        };
        if !looks_like_srv {
            let message = format!("`{shown}` has no port, so its SRV records are asked for");
            let help = "add the port for its addresses; SRV names are such as _http._tcp.app.internal";
            d.warn_at(item.node.mark(), &item.path, "unusual-dns-name", message, help);
        }
        return Some((name, DnsRecords::Srv));
    }
    let read = match host_port(&text) {
        Ok(read) => read,
        Err(fault) => {
            let message = format!("`{shown}` is not a name to look up: {}", fault.message());
            d.error(item, "bad-address", message, DNS_FORM);
            return None;
        }
    };
    if looks_like_srv {
        let message = format!("`{shown}` has a port, so its addresses are asked for and no SRV records");
        d.warn_at(item.node.mark(), &item.path, "unusual-dns-name", message, "leave out the port for SRV records");
    }
    Some((read.host, DnsRecords::Addresses { port: read.port }))
}

fn refresh(
    d: &mut Decoder<'_>,
    fields: &Fields<'_>,
    default: Duration,
    least: Duration,
    shown_least: &str,
) -> Option<Duration> {
    let Some(item) = fields.get("refresh") else { return Some(default) };
    let refresh = d.duration(&item)?;
    if refresh < least {
        let message = format!("`{}` is out of range", item.node.shown());
        d.error(&item, "out-of-range", message, &format!("write {shown_least} or more"));
        return None;
    }
    Some(refresh)
}

/// A server to ask: an IP address, with a port where it is not 53.
fn server(d: &mut Decoder<'_>, item: &Item<'_>) -> Option<SocketAddr> {
    const FORMS: &str = "10.0.0.2, 10.0.0.2:53 or \"[fd00::2]:53\"";
    let text = d.address_text(item)?;
    if let Ok(address) = text.parse::<IpAddr>() {
        return Some(SocketAddr::new(address, DNS_PORT));
    }
    let address = d.socket_address(item, &text, FORMS)?;
    if address.port() == 0 {
        d.error(item, "bad-address", "a DNS server cannot have port 0", &format!("write {FORMS}"));
        return None;
    }
    Some(address)
}

//! `listeners`: where rrlb accepts, and how.

use std::sync::Arc;

use super::{
    certificate::Certificates,
    decode::{Decoder, Fields, Item, Table, table, value},
    model::{Alpn, Certificate, Listener, ListenerLimits, ListenerTls, ProxyProtocol, TlsVersion},
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
    ],
};

const TLS: Table = Table {
    what: "a listener's tls",
    keys: &[value("certificates", "required"), value("min_version", "\"1.2\""), value("alpn", "[h2, http/1.1]")],
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
        value("max_header_size", "32KiB"),
    ],
};

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

    if let (Some(_), Some(true), Some(item)) = (fields.get("tls"), h2c, fields.get("h2c")) {
        let help = "take one out; on TLS, HTTP/2 is `alpn: [h2, http/1.1]`";
        d.error_at(item.node.head(), &item.path, "h2c-with-tls", "h2c is HTTP/2 without TLS", help);
    }
    if let (Some(_), Some(true), Some(item)) = (fields.get("tls"), redirect_https, fields.get("redirect_https")) {
        let message = "a TLS listener would redirect to itself";
        let help = "write `redirect_https` on the listener for port 80";
        d.error_at(item.node.head(), &item.path, "redirect-with-tls", message, help);
    }
    let listener = Listener {
        address: address?,
        tls: tls?,
        h2c: h2c?,
        redirect_https: redirect_https?,
        proxy_protocol: proxy_protocol?,
        limits: limits?,
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
    let min_version = min_version(d, &fields);
    let alpn = alpn(d, fields.get("alpn"));
    Some(ListenerTls { certificates: certificates?, min_version: min_version?, alpn: alpn? })
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
    const SMALLEST: ByteSize = ByteSize(1 << 10);
    const LARGEST: ByteSize = ByteSize(1 << 20);
    let seconds = std::time::Duration::from_secs;
    let built_in = ListenerLimits {
        handshake_timeout: seconds(10),
        header_timeout: seconds(10),
        idle_timeout: seconds(60),
        max_header_size: ByteSize(32 << 10),
    };
    let Some(item) = item else { return Some(built_in) };
    let fields = d.fields(&item, &LIMITS)?;
    let mut timeout = |name: &str, base| fields.get(name).map_or(Some(base), |item| d.duration(&item));
    let handshake_timeout = timeout("handshake_timeout", built_in.handshake_timeout);
    let header_timeout = timeout("header_timeout", built_in.header_timeout);
    let idle_timeout = timeout("idle_timeout", built_in.idle_timeout);
    let max_header_size = fields.get("max_header_size").map_or(Some(built_in.max_header_size), |item| {
        let size = d.size(&item)?;
        if !(SMALLEST..=LARGEST).contains(&size) {
            let help = format!("write a size from {SMALLEST} to {LARGEST}");
            d.error(&item, "out-of-range", format!("`{}` is out of range", item.node.shown()), &help);
            return None;
        }
        Some(size)
    });
    Some(ListenerLimits {
        handshake_timeout: handshake_timeout?,
        header_timeout: header_timeout?,
        idle_timeout: idle_timeout?,
        max_header_size: max_header_size?,
    })
}

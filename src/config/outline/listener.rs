//! A listener as the file would say it.

use super::{
    super::model::{
        CipherProfile, ClientAuth, Listener, ListenerLimits, ListenerTls, ProxyProtocol, RevocationLists, TlsVersion,
        TrustStore,
    },
    Content, Part, bare, duration, entry, guard, list, or_off, protocol, shown, text,
};

/// One of `listeners`.
pub(super) fn listener(listener: &Listener) -> Part<'_> {
    let Listener { address, tls, h2c, redirect_https, proxy_protocol, limits, access, engine } = listener;
    let limits = listener_limits(limits);
    let mut out = vec![entry("address", shown(address))];
    out.extend(tls.as_ref().map(|tls| entry("tls", listener_tls(tls, true))));
    out.extend([entry("h2c", bare(h2c)), entry("redirect_https", bare(redirect_https))]);
    out.extend(proxy_protocol.as_ref().map(|ProxyProtocol { from, required }| {
        let from = (!from.is_empty()).then(|| entry("from", list(from, shown)));
        entry("proxy_protocol", Part::Map(from.into_iter().chain([entry("required", bare(required))]).collect()))
    }));
    out.push(entry("limits", limits));
    guard::access(access.as_deref(), &mut out);
    out.extend(engine.map(|engine| entry("engine", bare(engine.as_str()))));
    Part::Map(out)
}

fn listener_limits(limits: &ListenerLimits) -> Part<'_> {
    let ListenerLimits {
        handshake_timeout,
        header_timeout,
        idle_timeout,
        request_timeout,
        max_header_size,
        max_uri_length,
        max_headers,
        max_body_size,
        min_body_rate,
        requests_per_connection,
        connections,
        connections_per_ip,
    } = limits;
    Part::Map(vec![
        entry("handshake_timeout", duration(*handshake_timeout)),
        entry("header_timeout", duration(*header_timeout)),
        entry("idle_timeout", duration(*idle_timeout)),
        entry("request_timeout", request_timeout.map_or_else(|| bare("off"), duration)),
        entry("max_header_size", bare(max_header_size)),
        entry("max_uri_length", bare(max_uri_length)),
        entry("max_headers", bare(max_headers)),
        entry("max_body_size", or_off(max_body_size.as_ref())),
        entry("min_body_rate", or_off(min_body_rate.as_ref())),
        entry("requests_per_connection", bare(requests_per_connection)),
        entry("connections", or_off(connections.as_ref())),
        entry("connections_per_ip", or_off(connections_per_ip.as_ref())),
    ])
}

/// TLS of a listener. `whole` is false for the admin API, which has a part of it to choose.
pub(super) fn listener_tls(tls: &ListenerTls, whole: bool) -> Part<'_> {
    let ListenerTls { certificates, profile, min_version, alpn, client_auth: clients, strict_sni, keylog } = tls;
    let version = match min_version {
        TlsVersion::V1_2 => "1.2",
        TlsVersion::V1_3 => "1.3",
    };
    let profile = match profile {
        CipherProfile::Intermediate => "intermediate",
        CipherProfile::Modern => "modern",
    };
    let mut out = vec![
        entry("certificates", list(certificates, |certificate| text(certificate.name.as_str()))),
        entry("min_version", text(version)),
    ];
    if whole {
        out.extend([
            entry("profile", bare(profile)),
            entry("alpn", list(alpn, protocol)),
            entry("client_auth", client_auth(clients.as_ref())),
            entry("strict_sni", bare(strict_sni)),
            entry("keylog", bare(keylog)),
        ]);
    }
    Part::Map(out)
}

fn client_auth(clients: Option<&ClientAuth>) -> Part<'_> {
    let Some(ClientAuth { mode, ca, crl }) = clients else { return Part::Map(vec![entry("mode", bare("none"))]) };
    let TrustStore { path, certificates } = ca;
    let mut out = vec![
        entry("mode", bare(mode.as_str())),
        entry("ca", Part::File(path.to_string_lossy(), Content::Certificates(certificates))),
    ];
    out.extend(crl.as_ref().map(|RevocationLists { path, lists, next_update: _ }| {
        entry("crl", Part::File(path.to_string_lossy(), Content::Revocations(lists)))
    }));
    Part::Map(out)
}

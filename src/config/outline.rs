//! The model as the file would say it, with every default: one tree, which `effective` writes and `difference` compares.
//! Every struct is taken apart field by field, so that the compiler asks here about a new one.

use std::{borrow::Cow, collections::HashMap, fmt::Display, path::Path, time::Duration};

use http::HeaderValue;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer};

use super::{
    model::{
        AccessLog, Admin, AdminTcp, Alpn, Backend, Certificate, Discover, DiscoverDns, DiscoverList, DnsRecords,
        HealthCheck, HostHeader, HttpProbe, Listener, LogFormat, LogTarget, Model, Ocsp, Probe, Process, Timeouts,
        Token, TrustStore, Upstream, UpstreamProtocol, UpstreamTls,
    },
    scalar::is_id,
};
use crate::{
    policy::{
        balance::Balance,
        health::{InitialHealth, Thresholds},
        outlier::EjectPolicy,
        proxy_protocol::Version,
        retry::RetryPolicy,
    },
    types::Name,
};

mod guard;
mod listener;
mod route;

use self::listener::{listener, listener_tls};

/// A key of the top level.
pub(super) struct Section<'m> {
    pub(super) key: &'static str,
    pub(super) part: Part<'m>,
    /// A change takes effect only in a new process.
    pub(super) needs_upgrade: bool,
}

/// A value of the file.
#[derive(PartialEq)]
pub(super) enum Part<'m> {
    /// Never in quotes: a number, a truth value, a word or a number with a unit.
    Bare(Cow<'m, str>),
    /// What a file held. Compared, but no part of the text; its key is empty, its place its parent's.
    Content(Content<'m>),
    /// A path, and what its file held.
    File(Cow<'m, str>, Content<'m>),
    /// May be a secret: compared, never shown.
    Hidden(&'m HeaderValue),
    /// A list of mappings that are told apart by a key.
    Items(Items<'m>),
    /// A list of scalars.
    List(Vec<Self>),
    /// A mapping.
    Map(Entries<'m>),
    /// Nothing, where Pingora's keys may say so.
    Null,
    /// A string.
    Text(Cow<'m, str>),
}

/// Keys and values in the file's order.
pub(super) type Entries<'m> = Vec<(Cow<'m, str>, Part<'m>)>;

/// A list of mappings.
#[derive(PartialEq)]
pub(super) struct Items<'m> {
    /// Whether another order is a difference.
    pub(super) ordered: bool,
    /// What stands in paths before an item's key and behind it.
    pub(super) joints: (char, char),
    /// Each under the key that tells it apart.
    pub(super) items: Entries<'m>,
}

/// What a file held.
#[derive(PartialEq)]
pub(super) enum Content<'m> {
    Certificates(&'m [CertificateDer<'static>]),
    Revocations(&'m [CertificateRevocationListDer<'static>]),
    Secret(&'m [u8]),
}

/// The whole configuration.
pub(super) fn sections(model: &Model) -> Vec<Section<'_>> {
    let Model {
        process: pingora,
        certificates,
        listeners,
        upstreams,
        routes,
        trusted_proxies,
        via,
        access_log: log,
        metrics,
        state_file,
        admin: api,
        reload_on_change,
        engine,
    } = model;
    let mut out = vec![at_reload("version", bare("1"))];
    process(pingora, &mut out);
    out.extend(state_file.as_ref().map(|file| by_upgrade("state_file", path(file))));
    out.push(at_reload("reload_on_change", bare(*reload_on_change)));
    out.push(at_reload("engine", bare(engine.as_str())));
    out.push(at_reload("certificates", named(certificates, |one| certificate(one))));
    out.push(at_reload("listeners", self::listeners(listeners)));
    out.push(at_reload("upstreams", named(upstreams, upstream)));
    if !routes.is_empty() {
        let items = routes.iter().map(route::route).collect();
        out.push(at_reload("routes", Part::Items(Items { ordered: true, joints: ('.', '.'), items })));
    }
    out.push(at_reload("trusted_proxies", list(trusted_proxies, shown)));
    out.push(at_reload("via", via.as_ref().map_or_else(|| bare("off"), |name| text(name.as_str()))));
    out.push(at_reload("access_log", log.as_ref().map_or_else(|| bare("off"), access_log)));
    let metrics = metrics.map_or_else(|| bare("off"), |address| Part::Map(vec![entry("address", shown(&address))]));
    out.push(at_reload("metrics", metrics));
    out.push(by_upgrade("admin", api.as_ref().map_or_else(|| bare("off"), admin)));
    out
}

fn process<'m>(process: &'m Process, out: &mut Vec<Section<'m>>) {
    let Process {
        threads,
        daemon,
        error_log,
        pid_file,
        upgrade_sock,
        user,
        group,
        working_directory,
        ca_file,
        grace_period,
        graceful_shutdown_timeout,
        upstream_keepalive_pool_size,
        client_bind_to_ipv4,
        client_bind_to_ipv6,
    } = process;
    let or_null = |file: &'m Option<_>| file.as_ref().map_or(Part::Null, |file: &std::path::PathBuf| path(file));
    out.extend([
        by_upgrade("threads", bare(threads)),
        by_upgrade("daemon", bare(daemon)),
        by_upgrade("error_log", or_null(error_log)),
        by_upgrade("pid_file", or_null(pid_file)),
        by_upgrade("upgrade_sock", or_null(upgrade_sock)),
        by_upgrade("user", user.as_ref().map_or(Part::Null, text)),
        by_upgrade("group", group.as_ref().map_or(Part::Null, text)),
        by_upgrade("working_directory", or_null(working_directory)),
        by_upgrade("ca_file", or_null(ca_file)),
        at_reload("grace_period_seconds", bare(grace_period.as_secs())),
        by_upgrade("graceful_shutdown_timeout_seconds", bare(graceful_shutdown_timeout.as_secs())),
        by_upgrade("upstream_keepalive_pool_size", bare(upstream_keepalive_pool_size)),
        by_upgrade("client_bind_to_ipv4", list(client_bind_to_ipv4, shown)),
        by_upgrade("client_bind_to_ipv6", list(client_bind_to_ipv6, shown)),
    ]);
}

fn certificate(certificate: &Certificate) -> Part<'_> {
    // The key fits the certificate, so that another key shows as another certificate; the names are the certificate's.
    let Certificate { name: _, cert_path, key_path, key, names: _, not_after: _, key_der: _, ocsp, ocsp_fetch } =
        certificate;
    let mut out = vec![
        (Cow::Borrowed(""), Part::Content(Content::Certificates(&key.cert))),
        entry("cert", path(cert_path)),
        entry("key", path(key_path)),
    ];
    if *ocsp_fetch {
        out.push(entry("ocsp", bare("fetch")));
    }
    out.extend(ocsp.as_ref().and_then(|Ocsp { path, der, next_update: _ }| {
        let path = path.as_ref()?;
        Some(entry("ocsp", Part::File(path.to_string_lossy(), Content::Secret(der))))
    }));
    Part::Map(out)
}

fn listeners(all: &[Listener]) -> Part<'_> {
    // The same address twice is possible with port 0.
    let mut seen = HashMap::new();
    let items = all.iter().map(|one| {
        let address = one.address.to_string();
        let count = seen.entry(address.clone()).and_modify(|count| *count += 1).or_insert(1);
        let key = if *count > 1 { format!("{address} ({count})") } else { address };
        (key.into(), listener(one))
    });
    Part::Items(Items { ordered: false, joints: (' ', ' '), items: items.collect() })
}

fn protocol(alpn: &Alpn) -> Part<'_> {
    bare(match alpn {
        Alpn::Http1 => "http/1.1",
        Alpn::Http2 => "h2",
    })
}

fn upstream(upstream: &Upstream) -> Part<'_> {
    let Upstream {
        name: _,
        backends,
        discover: source,
        balance,
        tls,
        protocol,
        host_header,
        health_check: check,
        slow_start,
        timeouts,
        retry,
        eject: ejection,
        proxy_protocol,
        grpc_web,
    } = upstream;
    let items = backends.iter().map(|one| (one.id.as_str().into(), backend(one))).collect();
    let mut out = vec![entry("backends", Part::Items(Items { ordered: true, joints: ('.', ' '), items }))];
    out.extend(source.as_ref().map(|source| entry("discover", discover(source))));
    let balance = match balance {
        Balance::IpHash => "ip_hash",
        Balance::LeastRequests => "least_requests",
        Balance::Random => "random",
        Balance::RoundRobin => "round_robin",
    };
    out.push(entry("balance", bare(balance)));
    out.extend(tls.as_ref().map(|tls| entry("tls", upstream_tls(tls))));
    let protocol = match protocol {
        UpstreamProtocol::Auto => "auto",
        UpstreamProtocol::H2c => "h2c",
        UpstreamProtocol::Http1 => "h1",
        UpstreamProtocol::Http2 => "h2",
    };
    let host_header = match host_header {
        HostHeader::Fixed(host) => value(host),
        HostHeader::Preserve => bare("preserve"),
        HostHeader::Sni => bare("sni"),
    };
    let proxy_protocol = match proxy_protocol {
        None => "off",
        Some(Version::V1) => "v1",
        Some(Version::V2) => "v2",
    };
    out.extend([
        entry("protocol", bare(protocol)),
        entry("host_header", host_header),
        entry("health_check", check.as_ref().map_or_else(|| bare("off"), health_check)),
        entry("slow_start", slow_start.map_or_else(|| bare("off"), duration)),
        entry("timeouts", self::timeouts(timeouts)),
        entry("retry", self::retry(retry)),
        entry("eject", ejection.as_ref().map_or_else(|| bare("off"), eject)),
        entry("proxy_protocol", bare(proxy_protocol)),
        entry("grpc_web", bare(grpc_web)),
    ]);
    Part::Map(out)
}

fn backend(backend: &Backend) -> Part<'_> {
    // The file says nothing about what people want of a backend.
    let Backend { id, address, weight, admin: _ } = backend;
    // An id that could not be written as one is the address as the file has it.
    let mut out = if is_id(id.as_str()) {
        vec![entry("id", text(id.as_str())), entry("address", shown(address))]
    } else {
        vec![entry("address", text(id.as_str()))]
    };
    out.push(entry("weight", bare(weight.value())));
    Part::Map(out)
}

fn discover(source: &Discover) -> Part<'_> {
    match source {
        Discover::Dns(DiscoverDns { name, records, refresh, servers }) => Part::Map(vec![
            entry(
                "dns",
                match records {
                    DnsRecords::Addresses { port } => text(format!("{name}:{port}")),
                    DnsRecords::Srv => text(name),
                },
            ),
            entry("refresh", duration(*refresh)),
            entry("servers", list(servers, shown)),
        ]),
        Discover::List(DiscoverList { path: file, refresh }) => {
            Part::Map(vec![entry("file", path(file)), entry("refresh", duration(*refresh))])
        }
    }
}

fn upstream_tls(tls: &UpstreamTls) -> Part<'_> {
    let UpstreamTls { sni, verify, ca, client_cert, alpn } = tls;
    let mut out: Entries<'_> = sni.iter().map(|sni| entry("sni", text(sni))).collect();
    out.push(entry("verify", bare(verify)));
    out.extend(ca.as_ref().map(|TrustStore { path: file, certificates }| {
        entry("ca", Part::File(file.to_string_lossy(), Content::Certificates(certificates)))
    }));
    out.extend(client_cert.as_ref().map(|certificate| entry("client_cert", text(certificate.name.as_str()))));
    out.push(entry("alpn", list(alpn, protocol)));
    Part::Map(out)
}

fn health_check(check: &HealthCheck) -> Part<'_> {
    let HealthCheck { probe, interval, timeout, thresholds } = check;
    let Thresholds { rise, fall, initial } = thresholds;
    let kind = match probe {
        Probe::Http(_) => "http",
        Probe::Tcp => "tcp",
    };
    let initial = match initial {
        InitialHealth::Down => "down",
        InitialHealth::Up => "up",
    };
    let mut out = vec![
        entry("type", bare(kind)),
        entry("interval", duration(*interval)),
        entry("timeout", duration(*timeout)),
        entry("rise", bare(rise)),
        entry("fall", bare(fall)),
        entry("initial", bare(initial)),
    ];
    if let Probe::Http(HttpProbe { path, host, status }) = probe {
        out.push(entry("path", text(path)));
        out.extend(host.as_ref().map(|host| entry("host", value(host))));
        if !status.is_empty() {
            out.push(entry("status", list(status, |status| bare(status.as_u16()))));
        }
    }
    Part::Map(out)
}

fn eject(policy: &EjectPolicy) -> Part<'_> {
    let EjectPolicy { consecutive_failures, base, max_percent } = policy;
    Part::Map(vec![
        entry("consecutive_failures", bare(consecutive_failures)),
        entry("base", duration(*base)),
        entry("max_percent", bare(max_percent)),
    ])
}

fn timeouts(timeouts: &Timeouts) -> Part<'_> {
    let Timeouts { connect, tls, first_byte, read, write, idle, total, websocket_idle } = timeouts;
    Part::Map(vec![
        entry("connect", duration(*connect)),
        entry("tls", duration(*tls)),
        entry("first_byte", duration(*first_byte)),
        entry("read", duration(*read)),
        entry("write", duration(*write)),
        entry("idle", duration(*idle)),
        entry("total", total.map_or_else(|| bare("off"), duration)),
        entry("websocket_idle", duration(*websocket_idle)),
    ])
}

fn retry(retry: &RetryPolicy) -> Part<'_> {
    let RetryPolicy { attempts, on_connect, on_reset_before_headers, budget } = retry;
    let on = [("connect", on_connect), ("reset_before_headers", on_reset_before_headers)];
    let on = on.into_iter().filter(|(_, on)| **on).map(|(word, _)| bare(word)).collect();
    Part::Map(vec![entry("attempts", bare(attempts)), entry("on", Part::List(on)), entry("budget", bare(budget))])
}

fn access_log(log: &AccessLog) -> Part<'_> {
    let AccessLog { target, format } = log;
    let target = match target {
        LogTarget::File(file) => path(file),
        LogTarget::Stdout => text("-"),
    };
    let format = match format {
        LogFormat::Combined => "combined",
        LogFormat::Json => "json",
    };
    Part::Map(vec![entry("path", target), entry("format", bare(format))])
}

fn admin(admin: &Admin) -> Part<'_> {
    let Admin { socket, tcp } = admin;
    let mut out: Entries<'_> = socket.iter().map(|socket| entry("socket", path(socket))).collect();
    if let Some(AdminTcp { address, token: write, read_token, tls }) = tcp {
        out.extend([entry("address", shown(address)), entry("token_file", token(write))]);
        out.extend(read_token.as_ref().map(|read| entry("read_token_file", token(read))));
        // HTTP/1.1 only, so there is nothing to choose from.
        out.extend(tls.as_ref().map(|tls| entry("tls", listener_tls(tls, false))));
    }
    Part::Map(out)
}

fn token(Token { path, secret }: &Token) -> Part<'_> {
    Part::File(path.to_string_lossy(), Content::Secret(secret))
}

fn at_reload<'m>(key: &'static str, part: Part<'m>) -> Section<'m> {
    Section { key, part, needs_upgrade: false }
}

fn by_upgrade<'m>(key: &'static str, part: Part<'m>) -> Section<'m> {
    Section { key, part, needs_upgrade: true }
}

fn entry<'m>(key: &'static str, part: Part<'m>) -> (Cow<'m, str>, Part<'m>) {
    (Cow::Borrowed(key), part)
}

fn named<'m, T>(all: &'m std::collections::BTreeMap<Name, T>, part: impl Fn(&'m T) -> Part<'m>) -> Part<'m> {
    Part::Map(all.iter().map(|(name, one)| (name.as_str().into(), part(one))).collect())
}

fn list<'m, T>(all: &'m [T], part: impl Fn(&'m T) -> Part<'m>) -> Part<'m> {
    Part::List(all.iter().map(part).collect())
}

fn or_off(value: Option<&impl Display>) -> Part<'static> {
    value.map_or_else(|| bare("off"), bare)
}

fn bare(value: impl Display) -> Part<'static> {
    Part::Bare(value.to_string().into())
}

/// Text by way of `Display`.
fn shown<'m>(value: &impl Display) -> Part<'m> {
    Part::Text(value.to_string().into())
}

fn text<'m>(text: impl Into<Cow<'m, str>>) -> Part<'m> {
    Part::Text(text.into())
}

fn value(value: &HeaderValue) -> Part<'_> {
    Part::Text(String::from_utf8_lossy(value.as_bytes()))
}

fn path(path: &Path) -> Part<'_> {
    Part::Text(path.to_string_lossy())
}

/// The largest unit in which it is a whole number, but seconds up to two minutes.
fn duration(duration: Duration) -> Part<'static> {
    let (seconds, millis) = (duration.as_secs(), duration.subsec_millis());
    let units = [(86_400, 86_400, "d"), (3_600, 3_600, "h"), (60, 120, "m"), (1, 0, "s")];
    let fits = |(unit, from, _): &(u64, u64, &str)| seconds >= *from && seconds.is_multiple_of(*unit) && millis == 0;
    match units.iter().find(|unit| fits(unit)) {
        Some((unit, _, name)) => bare(format_args!("{}{name}", seconds / unit)),
        None => bare(format_args!("{}ms", duration.as_millis())),
    }
}

impl Part<'_> {
    /// Whether it is neither a list nor a mapping.
    pub(super) fn is_scalar(&self) -> bool {
        !matches!(self, Self::Items(_) | Self::List(_) | Self::Map(_))
    }
}

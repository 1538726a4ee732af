//! The top level of the file: every key there is, and the order in which the parts are decoded.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    path::{Path, PathBuf},
};

use super::{
    admin, believed, certificate,
    decode::{
        Decoder, Fields, Ignored::Boolean, Ignored::Count, Ignored::Scale, Item, Table, ignored, list, map, table,
        value,
    },
    defaults::{self, Defaults},
    files::Files,
    listener,
    model::{AccessLog, Discover, Engine, LogFormat, LogTarget, Model, Process, Route, RouteAction, Upstream},
    process, reach, route,
    tree::{Node, Value},
    upstream,
};
use crate::{
    policy::{headers::HeaderEdits, path::SentPath, route::RouteMatch},
    types::{ListenAddress, Name, Weight},
};

/// The top level. Pingora's keys are those of `ServerConf` in pingora-core 0.9.1, all of them.
pub(super) const ROOT: Table = Table {
    what: "the configuration",
    keys: &[
        value("version", "1"),
        // Pingora's keys.
        value("threads", "1"),
        value("daemon", "false"),
        value("error_log", "standard error"),
        value("pid_file", "none is written"),
        value("upgrade_sock", "a private folder, named after the file"),
        value("user", "the starting user"),
        value("group", "the user's"),
        value("working_directory", "unchanged"),
        value("ca_file", "the system's roots"),
        value("grace_period_seconds", "30"),
        value("graceful_shutdown_timeout_seconds", "5"),
        value("upstream_keepalive_pool_size", "128"),
        value("client_bind_to_ipv4", "[]"),
        value("client_bind_to_ipv6", "[]"),
        ignored("listener_tasks_per_fd", Count, "every worker accepts from every listener"),
        ignored("work_stealing", Boolean, "a connection stays on its worker"),
        ignored("runtime_enable_alt_timer", Boolean, "workers do not steal work"),
        ignored("s2n_config_cache_size", Count, "TLS is rustls, not s2n"),
        ignored("upstream_connect_offload_threadpools", Count, "workers connect themselves"),
        ignored("upstream_connect_offload_thread_per_pool", Count, "workers connect themselves"),
        ignored("downstream_tls_offload_threadpools", Count, "workers do the handshakes"),
        ignored("downstream_tls_offload_thread_per_pool", Count, "workers do the handshakes"),
        ignored("upstream_debug_ssl_keylog", Boolean, "TLS keys are never written"),
        ignored("max_retries", Count, "`retry.attempts` of the upstream decides"),
        ignored("upgrade_sock_connect_accept_max_retries", Count, "the hand-over has a deadline of its own"),
        ignored("max_blocking_threads", Count, "requests need no blocking threads"),
        ignored("blocking_threads_ttl_seconds", Count, "requests need no blocking threads"),
        ignored("fast_timeout_to_tokio_threshold_seconds", Count, "deadlines are kept by the workers"),
        ignored("runtime_metrics_poll_time_histogram", Boolean, "it needs a build with tokio_unstable"),
        ignored("runtime_metrics_poll_time_histogram_scale", Scale, "it needs a build with tokio_unstable"),
        ignored("runtime_metrics_poll_time_histogram_resolution_micros", Count, "it needs a build with tokio_unstable"),
        ignored("runtime_metrics_poll_time_histogram_buckets", Count, "it needs a build with tokio_unstable"),
        ignored("daemon_wait_for_ready", Boolean, "`-u` waits for the successor itself"),
        ignored("daemon_ready_timeout_seconds", Count, "`-u` waits for the successor itself"),
        ignored("daemon_notify_timeout_seconds", Count, "`-u` waits for the successor itself"),
        // rrlb's keys.
        list("listeners", "required", &listener::LISTENER),
        map("certificates", "none", &certificate::CERTIFICATE),
        map("upstreams", "none", &upstream::UPSTREAM),
        list("routes", "everything to the one upstream", &route::ROUTE),
        table("defaults", "the built-in values", &defaults::DEFAULTS),
        value("trusted_proxies", "[]"),
        value("via", "rrlb"),
        table("access_log", "off", &ACCESS_LOG),
        table("metrics", "off", &METRICS),
        value("state_file", "none: run-time changes end with the process"),
        value("reload_on_change", "false"),
        value("engine", "lane"),
        table("admin", "off", &admin::ADMIN),
    ],
};

const ACCESS_LOG: Table =
    Table { what: "the access log", keys: &[value("path", "- (standard output)"), value("format", "json")] };

const METRICS: Table = Table { what: "metrics", keys: &[value("address", "required")] };

/// Decodes the whole file; `None` only where an error was reported.
pub(super) fn decode(d: &mut Decoder<'_>, root: &Node) -> Option<Model> {
    let item = Item { node: root, path: String::new() };
    if matches!(root.value, Value::Null) {
        d.problems.push(super::tree::whole_file("empty-file", "the file is empty", super::EMPTY_HELP));
        return None;
    }
    let fields = d.fields(&item, &ROOT)?;

    if let Some(version) = fields.get("version") {
        check_version(d, &version);
    }
    let process = process::decode(d, &fields);
    let certificates = certificate::decode(d, fields.get("certificates"));
    let listeners = listeners(d, &fields, &certificates);
    let metrics = metrics(d, &fields, listeners.as_deref().unwrap_or_default());
    let defaults = fields.get("defaults").map_or(Some(Defaults::default()), |item| defaults::decode(d, &item));
    let upstream_names = names_below(fields.get("upstreams"));
    let built_in = Defaults::default();
    let around = upstream::Around {
        // Where `defaults` are wrong, the rest is still checked.
        defaults: defaults.as_ref().unwrap_or(&built_in),
        certificates: &certificates,
        admin: admin::is_wanted(d, fields.get("admin").as_ref()),
    };
    let upstreams = upstream::decode(d, fields.get("upstreams"), &around);
    let trusted_proxies = fields.get("trusted_proxies").map_or(Some(Vec::new()), |item| {
        let items = d.one_or_more(&item, "a network or a list of networks");
        d.all(items, |d, item| d.network(item))
    });
    // Where they are wrong, nothing is said of them a second time.
    let trusts = trusted_proxies.as_ref().is_none_or(|networks| !networks.is_empty());
    let routes = routes(d, &fields, &upstream_names, (listeners.as_deref(), trusts));
    let via = via(d, &fields);
    let access_log = access_log(d, &fields);
    let taken = admin::Taken {
        listeners: listeners.as_deref().unwrap_or_default(),
        metrics: metrics.flatten(),
        upgrade_sock: process.as_ref().and_then(|process| process.upgrade_sock.as_deref()),
    };
    let admin = admin::decode(d, fields.get("admin"), &certificates, &taken);
    let reload_on_change = fields.get("reload_on_change").map_or(Some(false), |item| d.boolean(&item));
    let engine = fields.get("engine").map_or(Some(Engine::default()), |item| d.choice(&item, &Engine::WORDS));
    let state_file = state_file(d, &fields, process.as_ref(), access_log.as_ref(), upstreams.as_ref());
    defaults?;

    Some(Model {
        process: process?,
        certificates: certificates.good,
        listeners: listeners?,
        upstreams: upstreams?,
        routes: routes?,
        trusted_proxies: trusted_proxies?,
        via: via?,
        access_log: access_log?,
        metrics: metrics?,
        state_file: state_file?,
        admin: admin?,
        reload_on_change: reload_on_change?,
        engine: engine?,
    })
}

fn check_version(d: &mut Decoder<'_>, item: &Item<'_>) {
    if let Some(version) = d.integer(item, 0..=u64::MAX)
        && version != 1
    {
        let message = format!("version `{}` is not known", item.node.shown());
        d.error(item, "unknown-version", message, "this release reads version 1");
    }
}

fn listeners(
    d: &mut Decoder<'_>,
    fields: &Fields<'_>,
    certificates: &certificate::Certificates,
) -> Option<Vec<super::model::Listener>> {
    const HELP: &str = "write `listeners: [{ address: 0.0.0.0:8080 }]`";
    let Some(item) = fields.get("listeners") else {
        d.problems.push(super::tree::whole_file("no-listeners", "there are no `listeners`", HELP));
        return None;
    };
    let items = d.items(&item, "a list of listeners")?;
    if items.is_empty() {
        d.error(&item, "no-listeners", "at least one listener is needed", HELP);
        return None;
    }
    let mut seen = BTreeMap::new();
    d.all(Some(items), |d, item| {
        let (listener, address) = listener::decode(d, item, certificates)?;
        let any_port = matches!(listener.address, ListenAddress::Inet(address) if address.port() == 0);
        if let Some(first) = seen.insert(listener.address.clone(), item.path.clone()).filter(|_| !any_port) {
            let message = format!("`{}` is the address of {first} too", address.node.shown());
            d.error(&address, "duplicate-listener", message, "keep one of the two");
        }
        Some(listener)
    })
}

fn metrics(
    d: &mut Decoder<'_>,
    fields: &Fields<'_>,
    listeners: &[super::model::Listener],
) -> Option<Option<std::net::SocketAddr>> {
    let Some(item) = fields.get("metrics") else { return Some(None) };
    if d.is_word(&item, "off") {
        return Some(None);
    }
    let fields = d.fields(&item, &METRICS)?;
    let item = fields.required(d, "address")?;
    let address = d.inet_address(&item, "127.0.0.1:9145 or \"[::1]:9145\"")?;
    let used = |listener: &super::model::Listener| listener.address == ListenAddress::Inet(address);
    if address.port() != 0 && listeners.iter().any(used) {
        let message = format!("`{}` is the address of a listener too", item.node.shown());
        d.error(&item, "duplicate-listener", message, "give metrics a port of their own");
    }
    Some(Some(address))
}

/// The names that the operator gave, whether or not what is below them is right: a reference to a broken upstream is
/// not a second problem.
fn names_below(item: Option<Item<'_>>) -> BTreeSet<Name> {
    match item.map(|item| &item.node.value) {
        Some(Value::Map(entries)) => {
            entries.iter().filter(|entry| !entry.key.starts_with("x-")).map(|entry| Name::from(&*entry.key)).collect()
        }
        _ => BTreeSet::new(),
    }
}

fn routes(
    d: &mut Decoder<'_>,
    fields: &Fields<'_>,
    upstreams: &BTreeSet<Name>,
    (listeners, trusts): (Option<&[super::model::Listener]>, bool),
) -> Option<Vec<Route>> {
    if let Some(item) = fields.get("routes") {
        let routes = route::decode(d, &item, upstreams);
        if let Some(routes) = &routes {
            reach::warn(d, routes);
            believed::warn(d, routes, listeners, trusts);
        }
        if let (Some(routes), Some(upstreams)) = (&routes, fields.get("upstreams")) {
            warn_unused(d, &upstreams, routes.iter().map(|(_, route)| route));
        }
        return routes.map(|routes| routes.into_iter().map(|(_, route)| route).collect());
    }
    let only_redirects = listeners.is_none_or(|all| all.iter().all(|listener| listener.redirect_https));
    match (upstreams.first(), upstreams.len()) {
        (Some(name), 1) => Some(vec![catch_all(name)]),
        (None, _) if only_redirects => Some(Vec::new()),
        (None, _) => {
            let help = "write `upstreams: { app: { backends: [127.0.0.1:9001] } }`";
            let message = "there are no `upstreams` and no `routes`: nothing would be answered";
            d.problems.push(super::tree::whole_file("no-routes", message, help));
            None
        }
        _ => {
            let span = fields.get("upstreams").map_or(Default::default(), |item| item.node.head());
            let message = "with more than one upstream, `routes` must say which is used";
            let example =
                format!("write `routes: [{{ upstream: {} }}]`", upstreams.first().map_or("app", Name::as_str));
            d.error_at(span, "upstreams", "no-routes", message, &example);
            None
        }
    }
}

fn catch_all(upstream: &Name) -> Route {
    Route {
        name: "route-1".into(),
        named: false,
        matches: RouteMatch::default(),
        guards: super::model::Guards::default(),
        action: RouteAction::Proxy(super::model::ProxyAction {
            upstreams: vec![(upstream.clone(), Weight::default())],
            strip_prefix: None,
            path: SentPath::default(),
        }),
        request_headers: HeaderEdits::default(),
        response_headers: HeaderEdits::default(),
        engine: None,
    }
}

fn warn_unused<'r>(d: &mut Decoder<'_>, upstreams: &Item<'_>, routes: impl Iterator<Item = &'r Route>) {
    let mut used = BTreeSet::new();
    for route in routes {
        if let RouteAction::Proxy(action) = &route.action {
            used.extend(action.upstreams.iter().map(|(name, _)| name.clone()));
        }
    }
    let Value::Map(entries) = &upstreams.node.value else { return };
    for entry in entries.iter().filter(|entry| !entry.key.starts_with("x-") && !used.contains(&*entry.key)) {
        let message = format!("no route uses the upstream `{}`", entry.key);
        let path = super::decode::join("upstreams", &entry.key);
        d.warn_at(entry.key_span, &path, "unused-upstream", message, "take it out, or add a route to it");
    }
}

fn via(d: &mut Decoder<'_>, fields: &Fields<'_>) -> Option<Option<Name>> {
    let Some(item) = fields.get("via") else { return Some(Some("rrlb".into())) };
    let text = d.scalar(&item, "a name or off")?.value;
    if text == "off" {
        return Some(None);
    }
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    if (1..=100).contains(&text.len()) && text.bytes().all(token) {
        return Some(Some(text.into()));
    }
    let message = format!("`{}` cannot stand in a Via field", item.node.shown());
    d.error(&item, "bad-name", message, "write one word such as rrlb, or off");
    None
}

fn access_log(d: &mut Decoder<'_>, fields: &Fields<'_>) -> Option<Option<AccessLog>> {
    let Some(item) = fields.get("access_log") else { return Some(None) };
    if d.is_word(&item, "off") {
        return Some(None);
    }
    if !item.is_map() {
        d.wrong_type(
            &item,
            "a mapping with `path` and `format`, or off",
            "write `access_log: { path: \"-\", format: json }`",
        );
        return None;
    }
    let fields = d.fields(&item, &ACCESS_LOG)?;
    let target = match fields.get("path") {
        Some(path) if d.is_word(&path, "-") => Some(LogTarget::Stdout),
        Some(path) => d.path(&path).map(LogTarget::File),
        None => Some(LogTarget::Stdout),
    };
    let words = [("combined", LogFormat::Combined), ("json", LogFormat::Json)];
    let format = fields.get("format").map_or(Some(LogFormat::Json), |item| d.choice(&item, &words));
    Some(Some(AccessLog { target: target?, format: format? }))
}

/// The folder of a file where there is none; that of the configuration is where that is.
fn missing_folder<'a>(files: &dyn Files, path: &'a Path, own: &Path) -> Option<&'a Path> {
    let folder = path.parent().filter(|folder| Some(*folder) != own.parent())?;
    match files.is_folder(folder) {
        Ok(is_folder) => (!is_folder).then_some(folder),
        // What may not be looked at may be there.
        Err(error) => matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory).then_some(folder),
    }
}

/// The journal's file. It is replaced as a whole, so it is nothing else's.
fn state_file(
    d: &mut Decoder<'_>,
    fields: &Fields<'_>,
    process: Option<&Process>,
    access_log: Option<&Option<AccessLog>>,
    upstreams: Option<&BTreeMap<Name, Upstream>>,
) -> Option<Option<PathBuf>> {
    let Some(item) = fields.get("state_file") else { return Some(None) };
    let path = d.path(&item)?;
    let access_log = access_log.and_then(Option::as_ref).and_then(|log| match &log.target {
        LogTarget::File(path) => Some(path.as_path()),
        LogTarget::Stdout => None,
    });
    let lists = upstreams.into_iter().flat_map(BTreeMap::values).filter_map(|upstream| match &upstream.discover {
        Some(Discover::List(list)) => Some(("a list of backends", list.path.as_path())),
        _ => None,
    });
    let own = std::path::absolute(d.file).unwrap_or_else(|_| d.file.to_owned());
    let mut used = std::iter::once(("the configuration", own.as_path()))
        .chain(access_log.map(|path| ("the access log", path)))
        .chain(process.and_then(|process| process.pid_file.as_deref()).map(|path| ("the pid file", path)))
        .chain(process.and_then(|process| process.error_log.as_deref()).map(|path| ("the error log", path)))
        .chain(lists);
    if let Some((what, _)) = used.find(|(_, used)| *used == path) {
        let message = format!("`{}` is {what} too", item.node.shown());
        d.error(&item, "file-used-twice", message, "give the state a file of its own");
    } else if let Some(folder) = missing_folder(d.files, &path, &own) {
        let message = format!("the folder {} does not exist", folder.display());
        d.error(&item, "state-folder", message, "create it, writable by the user that rrlb runs as");
    }
    Some(Some(path))
}

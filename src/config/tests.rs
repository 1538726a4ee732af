//! What the decoder makes of right files, and that no text at all makes it panic.

use std::{path::Path, time::Duration};

use super::{
    Format, Loaded, Report, Severity,
    model::{
        Alpn, Discover, DiscoverDns, DiscoverList, DnsRecords, HostHeader, LogFormat, LogTarget, Probe, RouteAction,
        TlsVersion,
    },
    parse_with,
};
use crate::{
    policy::{
        balance::Balance,
        health::InitialHealth,
        route::{HostPattern, PathPattern},
    },
    types::{BackendAddress, ByteSize, ListenAddress},
};

mod sources;

const HEAD: &str = "listeners: [{ address: 127.0.0.1:8080 }]\n";

fn env(name: &str) -> Option<String> {
    match name {
        "PORT" => Some("9001".to_owned()),
        "THREADS" => Some("3".to_owned()),
        "OFF" => Some("off".to_owned()),
        "TOKEN" => Some("hunter2-the-secret".to_owned()),
        _ => None,
    }
}

fn read(text: &str) -> Result<Loaded, Report> {
    parse_with(text, Path::new("/etc/rrlb/rrlb.yaml"), &env)
}

fn good(text: &str) -> Loaded {
    read(text).unwrap_or_else(|report| panic!("{}", report.render(Format::Human)))
}

fn codes(text: &str) -> Vec<&'static str> {
    let report = read(text).map_or_else(|report| report, |loaded| loaded.warnings);
    report.problems.iter().map(|problem| problem.code).collect()
}

#[test]
fn a_minimal_file_has_the_documented_defaults() {
    let model = good(&format!("{HEAD}upstreams: {{ app: {{ backends: [127.0.0.1:9001] }} }}\n")).model;
    assert_eq!(model.process.threads, 1);
    assert_eq!(model.process.grace_period, Duration::from_secs(30));
    assert_eq!(model.process.graceful_shutdown_timeout, Duration::from_secs(5));
    assert_eq!(model.process.upstream_keepalive_pool_size, 128);
    assert_eq!(model.process.pid_file, None);
    assert_eq!(model.via.as_ref().map(AsRef::as_ref), Some("rrlb"));
    assert!(model.access_log.is_none() && model.metrics.is_none() && model.trusted_proxies.is_empty());
    let listener = &model.listeners[0];
    assert!(listener.tls.is_none() && !listener.h2c && !listener.redirect_https);
    assert_eq!(listener.limits.header_timeout, Duration::from_secs(10));
    assert_eq!(listener.limits.max_header_size, ByteSize(32 << 10));
    let app = &model.upstreams["app"];
    assert_eq!((app.balance, &app.host_header), (Balance::RoundRobin, &HostHeader::Preserve));
    assert_eq!(app.backends[0].id.as_str(), "127.0.0.1:9001");
    assert_eq!(app.backends[0].weight.value(), 1);
    assert_eq!((app.timeouts.connect, app.timeouts.total), (Duration::from_secs(3), None));
    assert_eq!((app.retry.attempts, app.retry.on_connect, app.retry.on_reset_before_headers), (2, true, true));
    assert!(app.health_check.is_none() && app.eject.is_none());
    assert_eq!(model.routes.len(), 1);
    assert!(matches!(&model.routes[0].action, RouteAction::Proxy(proxy) if proxy.upstreams[0].0.as_str() == "app"));
}

#[test]
fn defaults_are_inherited_field_by_field() {
    let model = good(&format!(
        "{HEAD}
defaults:
  timeouts: {{ connect: 1s, total: 1m }}
  retry: {{ attempts: 4, on: connect }}
  health_check: {{ type: http, path: /up, interval: 2s, rise: 7, status: 204 }}
  eject: {{ base: 3s }}
upstreams:
  plain: {{ backends: [a:1] }}
  own:
    backends: [b:1]
    timeouts: {{ connect: 250ms, total: off }}
    retry: {{ budget: 0% }}
    health_check: {{ fall: 9, initial: up }}
    eject: {{ consecutive_failures: 2, max_percent: 100% }}
  tcp: {{ backends: [c:1], health_check: tcp }}
  off: {{ backends: [d:1], health_check: off, eject: off }}
routes: [{{ upstream: {{ plain: 1, own: 1, tcp: 1, off: 0 }} }}]
"
    ))
    .model;
    let plain = &model.upstreams["plain"];
    assert_eq!((plain.timeouts.connect, plain.timeouts.total), (Duration::from_secs(1), Some(Duration::from_secs(60))));
    assert_eq!((plain.retry.attempts, plain.retry.on_connect, plain.retry.on_reset_before_headers), (4, true, false));
    let own = &model.upstreams["own"];
    assert_eq!((own.timeouts.connect, own.timeouts.total), (Duration::from_millis(250), None));
    assert_eq!(own.timeouts.tls, Duration::from_secs(5));
    assert_eq!((own.retry.attempts, own.retry.budget.to_string().as_str()), (4, "0%"));
    let check = own.health_check.as_ref().expect("it is inherited");
    assert_eq!((check.interval, check.timeout), (Duration::from_secs(2), Duration::from_secs(1)));
    assert_eq!((check.thresholds.rise, check.thresholds.fall, check.thresholds.initial), (7, 9, InitialHealth::Up));
    assert!(matches!(&check.probe, Probe::Http(http) if http.path == "/up" && http.status.len() == 1));
    let tcp = model.upstreams["tcp"].health_check.as_ref().expect("it is set");
    assert_eq!((&tcp.probe, tcp.interval), (&Probe::Tcp, Duration::from_secs(2)));
    assert!(model.upstreams["off"].health_check.is_none());
    let eject = |name: &str| {
        model.upstreams[name]
            .eject
            .map(|policy| (policy.consecutive_failures, policy.base.as_secs(), policy.max_percent.to_string()))
    };
    assert_eq!(eject("plain"), Some((5, 3, "50%".into())));
    assert_eq!(eject("own"), Some((2, 3, "100%".into())));
    assert_eq!(eject("off"), None);
}

#[test]
fn anchors_and_merge_keys_work_and_own_keys_win() {
    let model = good(&format!(
        "{HEAD}
x-base: &base {{ backends: [a:1], balance: random, x-note: free }}
x-more: &more {{ balance: ip_hash, host_header: app.internal }}
upstreams:
  x-not-an-upstream: 5
  one: {{ <<: *base, balance: least_requests }}
  two: {{ <<: [*base, *more] }}
routes: [{{ upstream: {{ one: 1, two: 1 }}, x-why: because }}]
"
    ))
    .model;
    assert_eq!(model.upstreams.len(), 2);
    assert_eq!(model.upstreams["one"].balance, Balance::LeastRequests);
    assert_eq!(model.upstreams["two"].balance, Balance::Random);
    assert_eq!(model.upstreams["two"].host_header, HostHeader::Fixed("app.internal".parse().expect("it is a value")));
}

#[test]
fn variables_are_replaced_after_parsing() {
    let model = good(&format!(
        "{HEAD}
threads: ${{THREADS}}
user: $${{NOT_A_VARIABLE}}
access_log: ${{OFF}}
upstreams: {{ app: {{ backends: [\"127.0.0.1:${{PORT}}\"], timeouts: {{ total: \"${{OFF}}\" }} }} }}
x-unused: ${{NOT_SET_BUT_FREE}}
routes: [{{ upstream: app, request_headers: {{ set: {{ X-Port: \"${{PORT}}\", X-Token: \"${{TOKEN}}\" }} }} }}]
"
    ))
    .model;
    assert_eq!(model.process.threads, 3);
    assert_eq!(model.process.user.as_deref(), Some("${NOT_A_VARIABLE}"));
    assert!(model.access_log.is_none());
    assert_eq!(model.upstreams["app"].backends[0].address.to_string(), "127.0.0.1:9001");
    assert_eq!(model.routes[0].request_headers.set[0].1, "9001");
    assert_eq!(codes("threads: \"${THREADS}\"\n").first(), Some(&"no-listeners"));
    assert!(codes(&format!("{HEAD}threads: \"${{THREADS}}\"\n")).contains(&"wrong-type"));
}

#[test]
fn values_of_the_environment_are_never_printed() {
    // The variable in every place that takes a scalar.
    let full = include_str!("../../conf/full.yaml");
    let base = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/conf/full.yaml"));
    for (at, line) in full.lines().enumerate() {
        let Some((key, rest)) = line.split_once(": ") else { continue };
        let value = rest.split(" #").next().unwrap_or(rest).trim();
        if key.trim_start().starts_with('#') || value.is_empty() || value.starts_with(['{', '[', '&']) {
            continue;
        }
        let changed: Vec<String> = full
            .lines()
            .enumerate()
            .map(|(other, line)| if other == at { format!("{key}: \"${{TOKEN}}\"") } else { line.to_owned() })
            .collect();
        let report = parse_with(&changed.join("\n"), base, &env).map_or_else(|report| report, |ok| ok.warnings);
        for format in [Format::Human, Format::Short, Format::Json] {
            let text = report.render(format);
            assert!(!text.contains("hunter2"), "line {}: {text}", at + 1);
        }
    }
}

#[test]
fn addresses_of_every_kind_are_read() {
    let model = good(
        "
listeners:
  - address: 0.0.0.0:80
  - address: \"[::]:80\"
  - address: unix:run/rrlb.sock
  - address: 127.0.0.1:0
  - address: 127.0.0.1:0
upstreams:
  app: { backends: [10.0.0.1:80, \"[fd00::1]:80\", App.Internal.:80, unix:/run/app.sock] }
trusted_proxies: [10.0.0.0/8, \"::1\"]
access_log: { path: access.log, format: combined }
metrics: { address: \"[::1]:9145\" }
",
    )
    .model;
    assert_eq!(model.listeners[2].address, ListenAddress::Unix("/etc/rrlb/run/rrlb.sock".into()));
    let addresses: Vec<String> = model.upstreams["app"].backends.iter().map(|b| b.address.to_string()).collect();
    assert_eq!(addresses, ["10.0.0.1:80", "[fd00::1]:80", "app.internal:80", "unix:/run/app.sock"]);
    assert!(matches!(model.upstreams["app"].backends[2].address, BackendAddress::Host(_)));
    assert_eq!(model.trusted_proxies.len(), 2);
    let log = model.access_log.expect("it is set");
    assert_eq!((log.target, log.format), (LogTarget::File("/etc/rrlb/access.log".into()), LogFormat::Combined));
}

#[test]
fn routes_are_read_as_they_stand() {
    let model = good(&format!(
        "{HEAD}
upstreams: {{ app: {{ backends: [a:1] }} }}
routes:
  - match: {{ host: [API.example.com, \"*.Example.com\"], path: /v1/, method: GET, header: {{ X-Canary: \"1\" }} }}
    strip_prefix: /v1/
    upstream: app
  - match: {{ path_exact: /old/ }}
    redirect: {{ to: \"https://example.com/new\" }}
  - name: rest
    match: {{ path: / }}
    respond: {{ body: \"no\\n\" }}
"
    ))
    .model;
    let first = &model.routes[0].matches;
    assert_eq!(first.hosts[0], HostPattern::Exact("api.example.com".into()));
    assert_eq!(first.hosts[1], HostPattern::Wildcard(".example.com".into()));
    assert_eq!(first.path, PathPattern::Prefix("/v1".into()));
    assert!(matches!(&model.routes[0].action, RouteAction::Proxy(p) if p.strip_prefix.as_deref() == Some("/v1")));
    assert_eq!(model.routes[1].matches.path, PathPattern::Exact("/old/".into()));
    assert!(matches!(&model.routes[1].action, RouteAction::Redirect(redirect) if redirect.status == 302));
    assert_eq!(model.routes[2].matches.path, PathPattern::Any);
    assert_eq!((model.routes[1].name.as_str(), model.routes[2].name.as_str()), ("route-2", "rest"));
}

#[test]
fn the_full_example_means_what_it_says() {
    let path = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/conf/full.yaml"));
    let model = super::load(path).unwrap_or_else(|report| panic!("{report}")).model;
    let tls = model.listeners[1].tls.as_ref().expect("it has TLS");
    assert_eq!(tls.min_version, TlsVersion::V1_2);
    assert_eq!(tls.certificates[0].names, ["example.com", "*.example.com"]);
    let origin = model.upstreams["origin"].tls.as_ref().expect("it has TLS");
    assert_eq!((origin.sni.as_deref(), origin.verify), (Some("one.one.one.one"), true));
    assert!(origin.client_cert.is_some());
    assert!(!format!("{model:?}").contains("PRIVATE"));
}

#[test]
fn a_redirect_only_server_needs_no_upstream() {
    let model = good("listeners: [{ address: 127.0.0.1:8080, redirect_https: true }]\n").model;
    assert!(model.routes.is_empty() && model.upstreams.is_empty());
}

#[test]
fn an_alias_with_a_fault_is_reported_once() {
    let text = format!(
        "{HEAD}x-t: &t {{ conect: 1s }}\nupstreams:\n  a: {{ backends: [a:1], timeouts: *t }}\n  b: {{ backends: [b:1], timeouts: *t }}\nroutes: [{{ upstream: {{ a: 1, b: 1 }} }}]\n"
    );
    assert_eq!(codes(&text), ["unknown-key"]);
}

fn tokens(text: &str) -> Result<Loaded, Report> {
    parse_with(text, Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/config/rrlb.yaml")), &env)
}

#[test]
fn run_time_control_is_off_unless_asked_for() {
    let app = format!("{HEAD}upstreams: {{ app: {{ backends: [a:1] }} }}\n");
    for off in ["", "admin: off\nreload_on_change: false\n"] {
        let model = good(&format!("{app}{off}")).model;
        assert!(model.admin.is_none() && model.state_file.is_none() && !model.reload_on_change);
    }
    let model = good(&format!("{app}admin: {{}}\nreload_on_change: true\nstate_file: state.json\n")).model;
    let admin = model.admin.expect("it is asked for");
    assert!(admin.socket.is_none() && admin.tcp.is_none() && model.reload_on_change);
    assert_eq!(model.state_file.as_deref(), Some(Path::new("/etc/rrlb/state.json")));
}

#[test]
fn the_admin_api_is_read_with_its_tokens() {
    let text = format!(
        "{HEAD}certificates: {{ main: {{ cert: tls/good.pem, key: tls/good.key }} }}
upstreams: {{ app: {{}} }}
admin:
  socket: run/admin.sock
  address: 0.0.0.0:9180
  token_file: tokens/write.token
  read_token_file: tokens/read.token
  tls: {{ certificates: [main], min_version: \"1.3\" }}
"
    );
    let model = tokens(&text).unwrap_or_else(|report| panic!("{report}")).model;
    assert!(!format!("{model:?}").contains("SECRET"));
    let admin = model.admin.expect("it is there");
    assert!(admin.socket.is_some_and(|path| path.is_absolute() && path.ends_with("tests/config/run/admin.sock")));
    let tcp = admin.tcp.expect("it has an address");
    // Less the line break, and nothing else.
    assert_eq!(&*tcp.token.secret, b"SECRET-write-0123456789abcdef");
    assert_eq!(&*tcp.read_token.expect("it is there").secret, b"SECRET-read-0123456789abcdef");
    let tls = tcp.tls.expect("it is there");
    assert_eq!((tls.min_version, tls.alpn.as_slice()), (TlsVersion::V1_3, [Alpn::Http1].as_slice()));
    assert!(model.upstreams["app"].backends.is_empty());
}

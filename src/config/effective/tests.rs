//! The effective configuration reads as the same model again, says every default and shows no secret.

use std::{path::Path, sync::Arc, time::Duration};

use super::effective;
use crate::config::{
    Format, difference, load,
    model::{Admin, AdminTcp, Discover, DiscoverDns, DiscoverList, DnsRecords, Model, Token},
    parse_with,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

fn env(name: &str) -> Option<String> {
    (name == "TOKEN").then(|| "hunter2-the-secret".to_owned())
}

fn read(text: &str, file: &Path) -> Option<Model> {
    parse_with(text, file, &env).ok().map(|loaded| loaded.model)
}

fn good(text: &str) -> Model {
    let loaded = parse_with(text, Path::new("/etc/rrlb/rrlb.yaml"), &env);
    loaded.unwrap_or_else(|report| panic!("{}\n{text}", report.render(Format::Human))).model
}

fn survives(model: &Model) {
    let text = effective(model);
    let again = good(&text);
    assert_eq!(difference(model, &again), [], "{text}");
    // Every route is written with its name.
    let all = |model: &Model| format!("{model:#?}").replace("named: false", "named: true");
    assert_eq!(all(model), all(&again), "{text}");
    assert_eq!(text, effective(&again));
}

#[test]
fn every_shipped_file_survives() {
    let entries = std::fs::read_dir(Path::new(ROOT).join("conf")).expect("a folder of the repository");
    let mut survived = 0;
    for path in entries.map(|entry| entry.expect("an entry").path()) {
        if path.extension().is_some_and(|extension| extension == "yaml") {
            survives(&load(&path).unwrap_or_else(|report| panic!("{report}")).model);
            survived += 1;
        }
    }
    assert!(survived >= 4, "{survived}");
}

/// The full example without one line, for each line: many are wrong then, the others mean something else.
#[test]
fn the_full_example_survives_without_any_of_its_lines() {
    let path = Path::new(ROOT).join("conf/full.yaml");
    let full = std::fs::read_to_string(&path).expect("it is in the repository");
    let whole = read(&full, &path).expect("it is right");
    let (mut survived, mut different) = (0, 0);
    for (at, line) in full.lines().enumerate().filter(|(_, line)| !line.trim_start().starts_with('#')) {
        let rest: String =
            full.lines().enumerate().filter(|(other, _)| *other != at).map(|(_, line)| format!("{line}\n")).collect();
        if let Some(model) = read(&rest, &path) {
            survives(&model);
            survived += 1;
            different += usize::from(!difference(&whole, &model).is_empty());
        } else {
            assert!(!line.is_empty(), "an empty line is needed");
        }
    }
    assert!(survived > 40 && different > 20, "{survived} {different}");
}

#[test]
fn every_choice_survives() {
    let texts = [
        "listeners: [{ address: 127.0.0.1:8080, redirect_https: true }]",
        r#"
threads: 3
daemon: true
error_log: log
pid_file: "run/a b.pid"
upgrade_sock: run/up.sock
user: "$${NOT_A_VARIABLE}"
group: "10"
working_directory: /
grace_period_seconds: 0
graceful_shutdown_timeout_seconds: 604800
client_bind_to_ipv4: [10.0.0.5, 10.0.0.6]
client_bind_to_ipv6: ["fd00::5"]
listeners:
  - { address: 127.0.0.1:0, h2c: true, limits: { handshake_timeout: 1500ms, header_timeout: 90s, idle_timeout: 2d1h, request_timeout: 1m30s, max_header_size: 1025B, max_uri_length: 2KiB, max_headers: 7, max_body_size: 3MiB, min_body_rate: off, requests_per_connection: 3, connections: 9, connections_per_ip: 4 } }
  - { address: 127.0.0.1:0 }
  - { address: "[::1]:0", allow: "::1", deny: ["::2/128", 1.2.3.4] }
  - address: "unix:run/l\xe4rm \u00a0.sock"
upstreams:
  a:
    backends: [a.b:1, { id: x, address: "[::1]:80", weight: 0 }, "unix:/run/app s.sock", { id: "[b]:/-", address: unix:/run/app.sock, weight: 7 }]
    balance: least_requests
    protocol: h2c
    host_header: "a.b:8080"
    health_check: { type: http, interval: 10ms, timeout: 3600s, rise: 1, fall: 1000, initial: up }
    slow_start: 90s
    timeouts: { connect: 120s, tls: 86400s, first_byte: 61m, read: 7s, write: 8s, idle: 9s, total: 1m, websocket_idle: 36500d }
    retry: { attempts: 10, on: [], budget: 100% }
  b: { backends: [b:1], balance: random, tls: {}, protocol: h1, host_header: sni, retry: { on: reset_before_headers }, eject: { consecutive_failures: 1000, base: 1500ms, max_percent: 1% } }
  c: { backends: [c:1], balance: ip_hash, tls: { verify: false, alpn: http/1.1 }, protocol: h2, health_check: tcp }
  d: { discover: { dns: "Services.:8080", refresh: 1s, servers: [10.0.0.2, "[::1]:5353"] } }
  e: { discover: { dns: _http._tcp.app.internal } }
  f: { discover: { file: "b c.json", refresh: 100ms }, backends: [b:1] }
  "null": { backends: [d:1] }
  "7": { backends: [e:1] }
  "off": { backends: [f:1] }
routes:
  - { name: "1.5", upstream: "null", path: normalized, strip_prefix: /a/, match: { path: /a/, header: { X-A: "1", x-a: "2", X-a: "\"3\\" } } }
  - { upstream: { a: 0, "7": 9, "off": 1 }, match: { host: ["[::1]", 10.0.0.1, "*.b.c"], method: [GET, M-SEARCH], path_exact: "/${TOKEN}$$x" } }
  - { upstream: { b: 1 }, match: { path: / }, request_headers: { set: { Host: a.b }, add: { X-A: "", x-a: "a, {b}: #c" }, remove: [x-b, "null"] } }
  - { upstream: { c: 5 }, match: { path: /c, host: c } }
  - { upstream: a, match: { path: /f }, allow: [10.0.0.0/8, "fd00::/8"], deny: 10.0.0.1, rate_limit: { rate: 90/60s }, concurrency: { limit: 7, key: { cookie: "null" } } }
  - { upstream: a, match: { path: /g }, deny: "::/0", rate_limit: [{ rate: 1/m, key: route, burst: 1000000 }, { rate: 7/90s, key: { header: X-Key } }, { rate: 5/1500ms }, { rate: 3/7d }] }
  - { upstream: a, match: { path: /h }, basic_auth: { file: ROOT/conf/users.htpasswd, realm: "it's: #1", keep: true } }
  - { upstream: a, match: { path: /i }, forward_auth: { url: "http://[::1]:9091/a?b=$${c}&d", timeout: 1500ms, copy_headers: X-User } }
  - { match: { path: /d }, redirect: { to: "https://a.b/?c=$${d}&e=#f" }, request_headers: { remove: x-y } }
  - { match: { path: /e }, respond: { status: 599, body: "\0\t\e\x7f\r\n  $${A} \u2028 \ufeff \U0001F600 'x' \"y\" \\ \u65e5\u672c: -\n" }, response_headers: { set: { a: b } } }
  - { respond: {} }
trusted_proxies: [10.0.0.0/8, "::1"]
via: "a'b"
access_log: { path: "a: b", format: combined }
metrics: { address: "[::1]:9145" }
state_file: state.json
reload_on_change: true
admin: { socket: a.sock }
"#,
        "
listeners: [{ address: 127.0.0.1:1 }]
upstreams: { app: { backends: [b:1] } }
via: off
access_log: { path: '-' }
admin: {}
",
    ];
    for text in texts {
        let model = good(&text.replace("ROOT", ROOT));
        survives(&model);
    }
}

#[test]
fn an_admin_api_survives_with_its_tokens() {
    let folder = tempfile::tempdir().expect("a folder");
    let put = |name: &str| {
        std::fs::write(folder.path().join(name), format!("hunter2-{name}-0123456789")).expect("it is ours")
    };
    put("write");
    put("read");
    let text = format!(
        "
certificates: {{ main: {{ cert: {ROOT}/conf/tls/demo.pem, key: {ROOT}/conf/tls/demo.key }} }}
listeners: [{{ address: 127.0.0.1:1, redirect_https: true }}]
upstreams: {{ empty: {{}} }}
admin:
  address: 0.0.0.0:9180
  token_file: {folder}/write
  read_token_file: {folder}/read
  tls: {{ certificates: main, min_version: 1.3 }}
",
        folder = folder.path().display()
    );
    let model = good(&text);
    survives(&model);
    assert!(!effective(&model).contains("hunter2"));
}

#[test]
fn long_lists_survive() {
    let networks: Vec<String> = (0..100).map(|n| format!("10.{n}.0.0/16")).collect();
    let text = format!(
        "listeners: [{{ address: 127.0.0.1:1, redirect_https: true }}]\ntrusted_proxies: [{}]\n",
        networks.join(", ")
    );
    let model = good(&text);
    survives(&model);
    assert!(effective(&model).contains("\ntrusted_proxies:\n  - 10.0.0.0/16\n  - 10.1.0.0/16\n"));
    let id = "i".repeat(100);
    let text = format!(
        "listeners: [{{ address: 127.0.0.1:1 }}]\nupstreams: {{ a: {{ backends: [{{ id: {id}, address: a:1 }}, b:2] }} }}\n"
    );
    let model = good(&text);
    survives(&model);
    let expected =
        format!("    backends:\n      - id: {id}\n        address: a:1\n        weight: 1\n      - {{ id: b:2,");
    assert!(effective(&model).contains(&expected), "{}", effective(&model));
}

#[test]
fn a_small_file_is_told_with_all_its_defaults() {
    let model = good("listeners: [{ address: 127.0.0.1:8080 }]\nupstreams: { app: { backends: [10.0.0.1:80] } }\n");
    let expected = r#"# The effective configuration, every default written out; paths are absolute.
version: 1
threads: 1
daemon: false
error_log: null
pid_file: null
upgrade_sock: null
user: null
group: null
working_directory: null
ca_file: null
grace_period_seconds: 30
graceful_shutdown_timeout_seconds: 5
upstream_keepalive_pool_size: 128
client_bind_to_ipv4: []
client_bind_to_ipv6: []
reload_on_change: false
engine: lane
certificates: {}
listeners:
  - address: 127.0.0.1:8080
    h2c: false
    redirect_https: false
    limits:
      handshake_timeout: 10s
      header_timeout: 10s
      idle_timeout: 60s
      request_timeout: off
      max_header_size: 32KiB
      max_uri_length: 8KiB
      max_headers: 100
      max_body_size: off
      min_body_rate: 1KiB
      requests_per_connection: 10000
      connections: off
      connections_per_ip: off
upstreams:
  app:
    backends:
      - { id: 10.0.0.1:80, address: 10.0.0.1:80, weight: 1 }
    balance: round_robin
    protocol: auto
    host_header: preserve
    health_check: off
    slow_start: off
    timeouts:
      connect: 3s
      tls: 5s
      first_byte: 60s
      read: 60s
      write: 60s
      idle: 55s
      total: off
      websocket_idle: 1h
    retry:
      attempts: 2
      on: [connect, reset_before_headers]
      budget: 20%
    eject: off
    proxy_protocol: off
    grpc_web: false
routes:
  - name: route-1
    match:
      path: /
    upstream: app
    path: raw
    request_headers:
      remove: []
      set: {}
      add: {}
    response_headers:
      remove: []
      set: {}
      add: {}
trusted_proxies: []
via: rrlb
access_log: off
metrics: off
admin: off
"#;
    assert_eq!(effective(&model), expected);
}

#[test]
fn secrets_are_not_told() {
    let secret: Arc<[u8]> = Arc::from(&b"hunter2-the-secret"[..]);
    let mut model = good(
        r#"
certificates: { main: { cert: CERT, key: KEY } }
listeners: [{ address: 127.0.0.1:8080 }]
upstreams: { app: { backends: [b:1] } }
routes:
  - upstream: app
    match: { header: { X-Door: "${TOKEN}" } }
    request_headers: { set: { Authorization: Bearer hunter2, X-Env: "a ${TOKEN}" }, add: { X-Api-Key: hunter2, X-Plain: seen } }
"#
        .replace("CERT", &format!("{ROOT}/conf/tls/demo.pem"))
        .replace("KEY", &format!("{ROOT}/conf/tls/demo.key"))
        .as_str(),
    );
    let token = |name: &str| Token { path: name.into(), secret: Arc::clone(&secret) };
    model.admin = Some(Admin {
        socket: Some("/run/admin.sock".into()),
        tcp: Some(AdminTcp {
            address: "127.0.0.1:9180".parse().expect("an address"),
            token: token("/etc/rrlb/admin.token"),
            read_token: Some(token("/etc/rrlb/read.token")),
            tls: None,
        }),
    });
    let text = effective(&model);
    assert!(!text.contains("hunter2") && !text.contains("PRIVATE"), "{text}");
    assert!(text.contains("x-plain: seen\n") && text.contains("authorization: \"(not shown)\"\n"), "{text}");
    assert!(text.contains(&format!("    key: {ROOT}/conf/tls/demo.key\n")), "{text}");
    let admin = "admin:
  socket: /run/admin.sock
  address: 127.0.0.1:9180
  token_file: /etc/rrlb/admin.token
  read_token_file: /etc/rrlb/read.token
";
    assert!(text.ends_with(admin), "{text}");
    // What is blotted out is all that is lost.
    model.admin = None;
    let again = good(&effective(&model));
    let paths: Vec<String> = difference(&model, &again).into_iter().map(|one| one.path).collect();
    let expected = [
        "match.header.x-door",
        "request_headers.set.authorization",
        "request_headers.set.x-env",
        "request_headers.add.x-api-key",
    ];
    assert_eq!(paths, expected.map(|path| format!("routes.route-1.{path}")));
    for debug in [format!("{:?}", token("/a")), format!("{model:?}")] {
        assert!(!debug.contains("hunter2-the-secret"), "{debug}");
    }
}

#[test]
fn what_comes_at_run_time_is_told() {
    let mut model = good("listeners: [{ address: 127.0.0.1:8080 }]\nupstreams: { app: { backends: [b:1] } }\n");
    model.state_file = Some("/var/lib/rrlb/state.json".into());
    model.reload_on_change = true;
    model.admin = Some(Admin { socket: None, tcp: None });
    let mut with = |discover: Discover| {
        let app = model.upstreams.values_mut().next().expect("there is one");
        app.discover = Some(discover);
        app.backends.clear();
        effective(&model)
    };
    let refresh = Duration::from_secs(10);
    let servers = vec!["127.0.0.1:5353".parse().expect("an address")];
    let records = DnsRecords::Addresses { port: 8080 };
    let text = with(Discover::Dns(DiscoverDns { name: "app.internal".to_owned(), records, refresh, servers }));
    let expected = "  app:
    backends: []
    discover:
      dns: app.internal:8080
      refresh: 10s
      servers: [127.0.0.1:5353]
";
    assert!(text.contains(expected), "{text}");
    assert!(text.contains("\nstate_file: /var/lib/rrlb/state.json\nreload_on_change: true\n"), "{text}");
    assert!(text.ends_with("\nadmin: {}\n"), "{text}");
    let name = "_http._tcp.app.internal".to_owned();
    let srv = DiscoverDns { name, records: DnsRecords::Srv, refresh, servers: Vec::new() };
    let text = with(Discover::Dns(srv));
    assert!(text.contains("dns: _http._tcp.app.internal\n      refresh: 10s\n      servers: []\n"), "{text}");
    let text = with(Discover::List(DiscoverList { path: "/etc/b.yaml".into(), refresh: Duration::from_millis(100) }));
    assert!(text.contains("    discover:\n      file: /etc/b.yaml\n      refresh: 100ms\n"), "{text}");
}

//! Each change of a file is told with its place, and nothing else is.

use std::{path::Path, sync::Arc, time::Duration};

use super::difference;
use crate::config::{
    Format,
    model::{Admin, AdminTcp, Discover, DiscoverList, Model, Token},
    parse_with,
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

const BASE: &str = r#"
threads: 2
certificates:
  main: { cert: tests/config/tls/good.pem, key: tests/config/tls/good.key }
  other: { cert: tests/config/tls/other.pem, key: tests/config/tls/other.key }
listeners:
  - { address: 0.0.0.0:80, limits: { header_timeout: 5s } }
  - { address: 0.0.0.0:443, tls: { certificates: [main, other] } }
defaults: { timeouts: { read: 30s } }
upstreams:
  app: { backends: [{ id: a, address: 10.0.0.1:80 }, { id: b, address: 10.0.0.2:80, weight: 3 }], health_check: tcp }
  web: { backends: [10.0.0.3:80], tls: { sni: a.b, ca: tests/config/tls/good.pem } }
routes:
  - { name: api, match: { path: /v1, host: a.b }, upstream: app, request_headers: { set: { X-Edge: a, X-Token: hunter2 } } }
  - { name: rest, upstream: web }
  - { name: last, respond: { status: 404 } }
metrics: { address: 127.0.0.1:9145 }
"#;

fn read(text: &str) -> Model {
    let env = |name: &str| (name == "SECRET").then(|| "hunter2".to_owned());
    let loaded = parse_with(text, &Path::new(ROOT).join("rrlb.yaml"), &env);
    loaded.unwrap_or_else(|report| panic!("{}", report.render(Format::Human))).model
}

fn lines(old: &Model, new: &Model) -> Vec<String> {
    difference(old, new).iter().map(ToString::to_string).collect()
}

#[test]
fn a_configuration_is_not_different_from_itself() {
    assert_eq!(lines(&read(BASE), &read(BASE)), [""; 0]);
    let noted = format!("{BASE}\nx-note: free\nvia: rrlb\naccess_log: off\n");
    assert_eq!(lines(&read(BASE), &read(&noted)), [""; 0]);
}

#[test]
fn each_change_is_told_with_its_place() {
    let changes: &[(&str, &str, &[&str])] = &[
        ("threads: 2", "threads: 3", &["~ threads: 2 -> 3 (needs an upgrade)"]),
        ("threads: 2", "threads: 2\ndaemon: true", &["~ daemon: false -> true (needs an upgrade)"]),
        ("threads: 2", "threads: 2\nuser: u", &["+ user: u (needs an upgrade)"]),
        ("threads: 2", "threads: 2\ngrace_period_seconds: 9", &["~ grace_period_seconds: 30 -> 9"]),
        (
            "threads: 2",
            "threads: 2\ngraceful_shutdown_timeout_seconds: 9",
            &["~ graceful_shutdown_timeout_seconds: 5 -> 9 (needs an upgrade)"],
        ),
        (
            "threads: 2",
            "threads: 2\nclient_bind_to_ipv4: [10.0.0.1]",
            &["~ client_bind_to_ipv4: [] -> [10.0.0.1] (needs an upgrade)"],
        ),
        ("0.0.0.0:80,", "0.0.0.0:81,", &["- listeners 0.0.0.0:80", "+ listeners 0.0.0.0:81"]),
        ("header_timeout: 5s", "header_timeout: 90s", &["~ listeners 0.0.0.0:80 limits.header_timeout: 5s -> 90s"]),
        (", tls: { certificates: [main, other] }", "", &["- listeners 0.0.0.0:443 tls"]),
        ("[main, other] }", "[other] }", &["~ listeners 0.0.0.0:443 tls.certificates: [main, other] -> [other]"]),
        (
            "[main, other]",
            "main, min_version: 1.3",
            &[
                "~ listeners 0.0.0.0:443 tls.certificates: [main, other] -> [main]",
                "~ listeners 0.0.0.0:443 tls.min_version: 1.2 -> 1.3",
            ],
        ),
        (
            "read: 30s",
            "read: 10s",
            &["~ upstreams.app.timeouts.read: 30s -> 10s", "~ upstreams.web.timeouts.read: 30s -> 10s"],
        ),
        (
            "read: 30s",
            "read: 30s, total: 9s",
            &["~ upstreams.app.timeouts.total: off -> 9s", "~ upstreams.web.timeouts.total: off -> 9s"],
        ),
        ("weight: 3", "weight: 4", &["~ upstreams.app.backends.b weight: 3 -> 4"]),
        (", weight: 3", "", &["~ upstreams.app.backends.b weight: 3 -> 1"]),
        ("address: 10.0.0.2:80", "address: h:80", &["~ upstreams.app.backends.b address: 10.0.0.2:80 -> h:80"]),
        ("{ id: a, address: 10.0.0.1:80 }, ", "", &["- upstreams.app.backends.a: 10.0.0.1:80"]),
        ("[10.0.0.3:80]", "[10.0.0.3:80, \"[::1]:80\"]", &["+ upstreams.web.backends.[::1]:80"]),
        (
            "[10.0.0.3:80]",
            "[10.0.0.4:80]",
            &["- upstreams.web.backends.10.0.0.3:80", "+ upstreams.web.backends.10.0.0.4:80"],
        ),
        ("health_check: tcp", "health_check: off", &["- upstreams.app.health_check"]),
        ("health_check: tcp", "health_check: { rise: 5 }", &["~ upstreams.app.health_check.rise: 2 -> 5"]),
        ("health_check: tcp", "health_check: tcp, slow_start: 30s", &["~ upstreams.app.slow_start: off -> 30s"]),
        (
            "health_check: tcp",
            "balance: random",
            &["~ upstreams.app.balance: round_robin -> random", "- upstreams.app.health_check"],
        ),
        ("health_check: tcp", "health_check: tcp, eject: {}", &["+ upstreams.app.eject"]),
        ("sni: a.b", "sni: b.c", &["~ upstreams.web.tls.sni: a.b -> b.c"]),
        ("sni: a.b, ca", "sni: a.b, client_cert: main, ca", &["+ upstreams.web.tls.client_cert: main"]),
        ("upstreams:", "upstreams:\n  new: { backends: [n:1] }", &["+ upstreams.new"]),
        ("name: api", "name: apis", &["- routes.api", "+ routes.apis"]),
        ("path: /v1", "path: /v2", &["~ routes.api.match.path: /v1/ -> /v2/"]),
        (
            "path: /v1, host: a.b",
            "host: [a.b, c.d]",
            &["~ routes.api.match.host: [a.b] -> [a.b, c.d]", "~ routes.api.match.path: /v1/ -> /"],
        ),
        ("path: /v1, host: a.b", "path: /v1", &["- routes.api.match.host: [a.b]"]),
        ("upstream: app", "upstream: { app: 9, web: 1 }", &["~ routes.api.upstream: app -> { app: 9, web: 1 }"]),
        ("X-Edge: a", "X-Edge: b", &["~ routes.api.request_headers.set.x-edge: a -> b"]),
        ("X-Edge: a", "X-Edge: \"${SECRET}\"", &["~ routes.api.request_headers.set.x-edge"]),
        ("X-Token: hunter2", "X-Token: hunter3", &["~ routes.api.request_headers.set.x-token"]),
        (", X-Token: hunter2", "", &["- routes.api.request_headers.set.x-token"]),
        ("X-Edge: a, ", "X-Edge: a, X-Secret: hunter2, ", &["+ routes.api.request_headers.set.x-secret"]),
        ("status: 404", "status: 404, body: \"a\\nb\"", &["~ routes.last.respond.body: \"\" -> \"a\\nb\""]),
        (
            "respond: { status: 404 }",
            "upstream: app",
            &[
                "- routes.last.respond",
                "+ routes.last.upstream: app",
                "+ routes.last.path: raw",
                "+ routes.last.request_headers",
            ],
        ),
        ("metrics: { address: 127.0.0.1:9145 }", "", &["- metrics: 127.0.0.1:9145"]),
        ("metrics:", "access_log: {}\nmetrics:", &["+ access_log"]),
        ("metrics:", "via: off\nmetrics:", &["~ via: rrlb -> off"]),
        ("metrics:", "trusted_proxies: 10.0.0.0/8\nmetrics:", &["~ trusted_proxies: [] -> [10.0.0.0/8]"]),
        ("  - { name: rest, upstream: web }\n", "", &["- routes.rest"]),
    ];
    let base = read(BASE);
    for (from, to, expected) in changes {
        assert_eq!(BASE.matches(from).count(), 1, "{from}");
        let new = read(&BASE.replace(from, to));
        assert_eq!(lines(&base, &new), *expected, "{from} to {to}");
        // And back: as many differences at the same places.
        let mut there: Vec<String> = difference(&base, &new).into_iter().map(|one| one.path).collect();
        let mut back: Vec<String> = difference(&new, &base).into_iter().map(|one| one.path).collect();
        there.sort();
        back.sort();
        assert_eq!(there, back, "{from} to {to}");
    }
}

#[test]
fn order_counts_where_the_first_wins() {
    let rest = "  - { name: rest, upstream: web }\n";
    let moved = BASE.replace(rest, "").replace("  - { name: api", &format!("{rest}  - {{ name: api"));
    assert_eq!(lines(&read(BASE), &read(&moved)), ["~ routes order: api, rest, last -> rest, api, last"]);
    // One more in front moves nobody.
    let more =
        BASE.replace("  - { name: api", "  - { name: new, upstream: web, match: { path: /n } }\n  - { name: api");
    assert_eq!(lines(&read(BASE), &read(&more)), ["+ routes.new"]);
    let listeners = BASE
        .replace("  - { address: 0.0.0.0:80, limits: { header_timeout: 5s } }\n", "")
        .replace("defaults:", "  - { address: 0.0.0.0:80, limits: { header_timeout: 5s } }\ndefaults:");
    assert_eq!(lines(&read(BASE), &read(&listeners)), [""; 0]);
}

#[test]
fn a_renewed_certificate_is_told_by_its_serial_number() {
    let folder = tempfile::tempdir().expect("a folder");
    let put = |from: &str| {
        for (name, extension) in [("main", "pem"), ("main", "key"), ("ca", "pem")] {
            let source = Path::new(ROOT).join(format!("tests/config/tls/{from}.{extension}"));
            std::fs::copy(source, folder.path().join(format!("{name}.{extension}"))).expect("it can be copied");
        }
    };
    let at = folder.path().display();
    let text = format!(
        "certificates: {{ main: {{ cert: {at}/main.pem, key: {at}/main.key }} }}
listeners: [{{ address: 0.0.0.0:443, tls: {{ certificates: main }} }}]
upstreams: {{ app: {{ backends: [a:1], tls: {{ ca: {at}/ca.pem, client_cert: main }} }} }}\n"
    );
    put("good");
    let (old, same) = (read(&text), read(&text));
    assert_eq!(lines(&old, &same), [""; 0]);
    put("other");
    let found = lines(&old, &read(&text));
    assert_eq!(found.len(), 2, "{found:?}");
    for (line, place) in found.iter().zip(["certificates.main", "upstreams.app.tls.ca"]) {
        assert!(line.starts_with(&format!("~ {place}: serial ")), "{line}");
        assert!(line.contains(" -> ") && line.contains(", valid until 2"), "{line}");
    }
}

#[test]
fn what_belongs_to_the_process_needs_an_upgrade() {
    let old = read(BASE);
    let token = |secret: &str| Token { path: "/etc/token".into(), secret: Arc::from(secret.as_bytes()) };
    let admin = |secret: &str| {
        let address = "127.0.0.1:9180".parse().expect("an address");
        Some(Admin { socket: None, tcp: Some(AdminTcp { address, token: token(secret), read_token: None, tls: None }) })
    };
    let mut new = old.clone();
    new.admin = admin("hunter2");
    new.state_file = Some("/var/state.json".into());
    new.reload_on_change = true;
    assert_eq!(
        lines(&old, &new),
        [
            "~ reload_on_change: false -> true",
            "+ admin: 127.0.0.1:9180 (needs an upgrade)",
            "+ state_file: /var/state.json (needs an upgrade)",
        ]
    );
    let before = new.clone();
    new.admin = admin("hunter3");
    assert_eq!(lines(&before, &new), ["~ admin.token_file: other contents"]);
    let tcp = |model: &mut Model| model.admin.as_mut().and_then(|admin| admin.tcp.take()).expect("on TCP");
    let mut moved = new.clone();
    let there = AdminTcp {
        address: "127.0.0.1:9181".parse().expect("an address"),
        read_token: Some(token("looker")),
        ..tcp(&mut moved)
    };
    moved.admin = Some(Admin { socket: None, tcp: Some(there) });
    assert_eq!(
        lines(&new, &moved),
        ["~ admin.address: 127.0.0.1:9180 -> 127.0.0.1:9181 (needs an upgrade)", "+ admin.read_token_file: /etc/token"]
    );
    tcp(&mut moved);
    assert!(lines(&moved, &new).iter().all(|line| line.ends_with("(needs an upgrade)")), "{:?}", lines(&moved, &new));
    assert_eq!(lines(&new, &read(BASE)).len(), 3);
}

#[test]
fn discovery_is_told() {
    let old = read(BASE);
    let with = |seconds: u64| {
        let mut new = old.clone();
        let refresh = Duration::from_secs(seconds);
        let list = Discover::List(DiscoverList { path: "/etc/b.yaml".into(), refresh });
        new.upstreams.values_mut().next().expect("there is one").discover = Some(list);
        new
    };
    assert_eq!(lines(&old, &with(1)), ["+ upstreams.app.discover"]);
    assert_eq!(lines(&with(1), &with(200)), ["~ upstreams.app.discover.refresh: 1s -> 200s"]);
}

/// Ten thousand differences: the cost must not grow with the square.
#[test]
fn large_configurations_are_compared_quickly() {
    let text = |weight: u32| {
        let mut text = "listeners: [{ address: 127.0.0.1:1 }]\nupstreams:\n".to_owned();
        for n in 0..1000 {
            text.push_str(&format!("  u{n}: {{ backends: ["));
            for b in 0..10 {
                text.push_str(&format!("{{ id: b{b}, address: 10.0.{b}.1:80, weight: {weight} }}, "));
            }
            text.push_str("] }\n");
        }
        text.push_str("routes:\n");
        for n in 0..1000 {
            text.push_str(&format!("  - {{ upstream: u{n}, match: {{ path: /{n} }} }}\n"));
        }
        text
    };
    let (old, new) = (read(&text(1)), read(&text(2)));
    let before = std::time::Instant::now();
    assert_eq!(difference(&old, &new).len(), 10_000);
    assert!(before.elapsed() < Duration::from_secs(10), "{:?}", before.elapsed());
}

#[test]
fn another_password_file_is_told_without_what_it_holds() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("users");
    let with = |password: &str| {
        let hash = bcrypt::hash(password, 4).expect("a hash");
        std::fs::write(&file, format!("a:{hash}\n")).expect("written");
        let guard = format!("{{ name: rest, basic_auth: {{ file: {} }},", file.display());
        read(&BASE.replace("{ name: rest,", &guard))
    };
    let path = "routes.rest.basic_auth.file";
    assert_eq!(lines(&with("x"), &with("y")), [format!("~ {path}: other contents")]);
    assert_eq!(lines(&read(BASE), &with("y")), ["+ routes.rest.basic_auth"]);
}

#[test]
fn a_changed_limit_is_told_with_what_it_was() {
    let with = |guards: &str| read(&BASE.replace("{ name: rest,", &format!("{{ name: rest, {guards},")));
    let (old, new) = (with("rate_limit: { rate: 5/s }, deny: 10.0.0.1"), with("rate_limit: { rate: 6/s, burst: 5 }"));
    let rate = |rate: &str| format!("[{{ key: client_ip, rate: {rate}, burst: 5 }}]");
    assert_eq!(
        lines(&old, &new),
        [
            "- routes.rest.deny: [10.0.0.1/32]".to_owned(),
            format!("~ routes.rest.rate_limit: {} -> {}", rate("5/s"), rate("6/s")),
        ]
    );
}

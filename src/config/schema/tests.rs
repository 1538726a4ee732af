//! The schema takes what the readers take and refuses what is plainly wrong. The checker knows the keywords that the
//! schema uses and panics on any other.

use std::path::Path;

use regex::Regex;
use serde_json::{Value, json};

use super::{KEYS, described, schema};
use crate::config::{
    Format,
    decode::join,
    effective, known_keys, load, parse_with,
    tree::{self, Node, plain_kind},
};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// The file as an editor sees it: anchors and merge keys followed.
fn json_of(text: &str) -> Value {
    let mut problems = Vec::new();
    let root = tree::read(text, "", &mut problems);
    assert!(problems.is_empty(), "{problems:?}");
    value(&root.expect("it is not empty"))
}

fn value(node: &Node) -> Value {
    match &node.value {
        tree::Value::Broken => panic!("a broken file"),
        tree::Value::List(items) => items.iter().map(value).collect(),
        tree::Value::Map(entries) => {
            Value::Object(entries.iter().map(|entry| (entry.key.to_string(), value(&entry.node))).collect())
        }
        tree::Value::Null => Value::Null,
        tree::Value::Scalar { text, plain } => match plain_kind(text) {
            "a number" | "a decimal number" if *plain => serde_json::from_str(text).expect("a number"),
            "true or false" if *plain => json!(text.eq_ignore_ascii_case("true")),
            _ => json!(&**text),
        },
    }
}

/// Every fault of a value, with its path.
fn faults(value: &Value) -> Vec<String> {
    let root = schema();
    let mut faults = Vec::new();
    check(&root, &root, value, "", &mut faults);
    faults
}

fn passes(root: &Value, schema: &Value, value: &Value) -> bool {
    let mut faults = Vec::new();
    check(root, schema, value, "", &mut faults);
    faults.is_empty()
}

fn check(root: &Value, schema: &Value, value: &Value, path: &str, faults: &mut Vec<String>) {
    let Value::Object(keywords) = schema else {
        if schema == &Value::Bool(false) {
            faults.push(format!("{path}: not allowed"));
        }
        return;
    };
    let all = |list: &Value| list.as_array().expect("a list of schemas").clone();
    let object = value.as_object();
    let matches = |pattern: &str, text: &str| Regex::new(pattern).expect("a pattern").is_match(text);
    for (keyword, rule) in keywords {
        let good = match keyword.as_str() {
            "$schema" | "title" | "$defs" | "description" | "deprecated" => true,
            "$ref" => {
                let name = rule.as_str().and_then(|name| name.strip_prefix("#/$defs/")).expect("a definition");
                check(root, root["$defs"].get(name).expect("it is defined"), value, path, faults);
                true
            }
            "type" => match rule.as_str().expect("one type") {
                "array" => value.is_array(),
                "boolean" => value.is_boolean(),
                "integer" => value.is_u64() || value.is_i64(),
                "null" => value.is_null(),
                "number" => value.is_number(),
                "object" => value.is_object(),
                "string" => value.is_string(),
                other => panic!("no type: {other}"),
            },
            "enum" => all(rule).contains(value),
            "const" => rule == value,
            "pattern" => value.as_str().is_none_or(|text| matches(rule.as_str().expect("a pattern"), text)),
            "minimum" => value.as_f64().is_none_or(|number| number >= rule.as_f64().expect("a number")),
            "maximum" => value.as_f64().is_none_or(|number| number <= rule.as_f64().expect("a number")),
            "anyOf" => all(rule).iter().any(|one| passes(root, one, value)),
            "oneOf" => all(rule).iter().filter(|one| passes(root, one, value)).count() == 1,
            "not" => !passes(root, rule, value),
            "required" => object
                .is_none_or(|object| all(rule).iter().all(|key| object.contains_key(key.as_str().expect("a key")))),
            "items" => {
                for (at, item) in value.as_array().into_iter().flatten().enumerate() {
                    check(root, rule, item, &format!("{path}[{at}]"), faults);
                }
                true
            }
            "propertyNames" => {
                for key in object.into_iter().flat_map(|object| object.keys()) {
                    check(root, rule, &json!(key), &join(path, key), faults);
                }
                true
            }
            "properties" => true,
            "patternProperties" => true,
            "additionalProperties" => {
                for (key, below) in object.into_iter().flatten() {
                    let mut known = keywords
                        .get("properties")
                        .and_then(|properties| properties.get(key))
                        .into_iter()
                        .collect::<Vec<_>>();
                    let patterns = keywords.get("patternProperties").and_then(Value::as_object);
                    known.extend(patterns.into_iter().flatten().filter(|(p, _)| matches(p, key)).map(|(_, rule)| rule));
                    for rule in if known.is_empty() { vec![rule] } else { known } {
                        check(root, rule, below, &join(path, key), faults);
                    }
                }
                true
            }
            other => panic!("the checker does not know {other}"),
        };
        if !good {
            faults.push(format!("{path}: {keyword} {rule}: {value}"));
        }
    }
    assert!(!keywords.contains_key("properties") || keywords.contains_key("additionalProperties"));
}

fn yaml_files(folder: &str) -> Vec<std::path::PathBuf> {
    let entries = std::fs::read_dir(Path::new(ROOT).join(folder)).expect("a folder of the repository");
    let paths = entries.map(|entry| entry.expect("an entry").path());
    paths.filter(|path| path.extension().is_some_and(|extension| extension == "yaml")).collect()
}

#[test]
fn every_shipped_file_validates_and_so_does_its_effective_form() {
    let files = yaml_files("conf");
    assert!(files.len() >= 4);
    for path in files {
        let text = std::fs::read_to_string(&path).expect("text");
        assert_eq!(faults(&json_of(&text)), [""; 0], "{}", path.display());
        let model = load(&path).unwrap_or_else(|report| panic!("{report}")).model;
        assert_eq!(faults(&json_of(&effective(&model))), [""; 0], "{}", path.display());
    }
}

#[test]
fn what_the_readers_take_the_schema_takes() {
    let mut taken = 0;
    for path in yaml_files("tests/config") {
        let Ok(text) = std::fs::read_to_string(&path) else { continue };
        if load(&path).is_ok() {
            taken += 1;
            assert_eq!(faults(&json_of(&text)), [""; 0], "{}", path.display());
        }
    }
    assert!(taken >= 2, "{taken}");
    let text = "
x-base: &base { backends: [a:1], balance: random, x-note: free }
threads: ${THREADS}
pid_file: null
grace_period_seconds: ~
max_retries: 3
work_stealing: false
listeners:
  - { address: 127.0.0.1:0, limits: { idle_timeout: 1m30s } }
  - address: unix:${DIR}/x.sock
    h2c: ${YES}
    x-why: []
upstreams:
  x-not an upstream: 5
  1: { <<: *base, timeouts: { total: off, read: \"${READ}\" }, retry: { on: connect } }
  two: { backends: [{ address: b:1, weight: 0 }, c:2], health_check: off, eject: off, balance: \"${BALANCE}\" }
routes:
  - { name: 7, upstream: { 1: 5, two: 0, x-a: b } }
  - { match: { path: /g }, upstream: two, rate_limit: { rate: 50/s, key: client_ip }, concurrency: { limit: 5, key: { cookie: a } }, deny: 10.0.0.0/8 }
  - { match: { path: /h }, upstream: two, rate_limit: [{ rate: 5/30s, burst: 9, key: { header: X-A } }, { rate: 1/h, key: route }] }
  - { match: { path: /i }, upstream: two, forward_auth: { url: http://a/, copy_headers: X-A } }
  - { match: { path_exact: /a, method: M-SEARCH }, redirect: { to: /b, status: 301 } }
trusted_proxies: 10.0.0.0/8
access_log: off
metrics: { address: \"[::1]:0\" }
admin: off
";
    let env = |name: &str| {
        let set = [("THREADS", "2"), ("DIR", "/run"), ("YES", "true"), ("READ", "9s"), ("BALANCE", "ip_hash")];
        set.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).to_owned())
    };
    parse_with(text, Path::new("/etc/rrlb.yaml"), &env)
        .unwrap_or_else(|report| panic!("{}", report.render(Format::Human)));
    assert_eq!(faults(&json_of(text)), [""; 0]);
}

#[test]
fn wrong_values_fail() {
    let with = |more: &str| json_of(&format!("listeners: [{{ address: a:1 }}]\n{more}\n"));
    assert_eq!(faults(&with("threads: 2")), [""; 0]);
    for more in [
        "thread: 2",
        "threads: 0",
        "threads: many",
        "threads: [1]",
        "daemon: yes",
        "version: 2",
        "pid_file: 5",
        "access_log: on",
        "access_log: { format: xml }",
        "metrics: {}",
        "state_file: 5",
        "admin: on",
        "admin: { tls: {} }",
        "upstreams: { app: { discover: { refresh: 5 } } }",
        "defaults: { timeouts: { read: 10 } }",
        "defaults: { timeouts: { read: 10sec } }",
        "defaults: { timeouts: { read: off } }",
        "defaults: { retry: { budget: 20 } }",
        "defaults: { retry: { on: [always] } }",
        "defaults: { eject: on }",
        "defaults: { eject: { consecutive_failures: 0 } }",
        "defaults: { eject: { max_percent: 50 } }",
        "defaults: { health_check: udp }",
        "defaults: { health_check: { status: [99] } }",
        "certificates: { a: { cert: x } }",
        "certificates: { \"a b\": { cert: x, key: y } }",
        "routes: [{}]",
        "routes: [{ upstream: app, respond: {} }]",
        "routes: [{ upstream: app, match: { path: /a, path_exact: /b } }]",
        "routes: [{ upstream: app, match: { path: a } }]",
        "routes: [{ upstream: { app: 1001 } }]",
        "routes: [{ redirect: { to: /, status: 300 } }]",
        "routes: [{ redirect: { to: /, status: \"301\" } }]",
        "routes: [{ upstream: app, request_headers: { set: { X-A: 1 } } }]",
        "routes: [{ upstream: app, rate_limit: {} }]",
        "routes: [{ upstream: app, rate_limit: { rate: 50 } }]",
        "routes: [{ upstream: app, rate_limit: [{ rate: 5/s, key: ip }] }]",
        "routes: [{ upstream: app, concurrency: { key: route } }]",
        "routes: [{ upstream: app, basic_auth: { realm: x } }]",
        "routes: [{ upstream: app, forward_auth: { url: ftp://a } }]",
        "work_stealing: 5",
        "runtime_metrics_poll_time_histogram_scale: square",
    ] {
        assert_ne!(faults(&with(more)), [""; 0], "{more}");
    }
}

/// The known keys' parents, as paths of mappings with known keys.
fn tables() -> std::collections::BTreeSet<String> {
    let parent = |key: &String| key.rsplit_once('.').map_or("", |(parent, _)| parent).to_owned();
    known_keys().iter().map(parent).collect()
}

/// Calls `at` with every mapping below `value` and its path in the form of `known_keys`.
fn mappings(
    value: &mut Value,
    path: &str,
    tables: &std::collections::BTreeSet<String>,
    at: &mut dyn FnMut(&str, &mut Value),
) {
    match value {
        Value::Array(items) => items.iter_mut().for_each(|item| mappings(item, &format!("{path}[]"), tables, at)),
        Value::Object(_) => {
            at(path, value);
            let any = format!("{}*", if path.is_empty() { String::new() } else { format!("{path}.") });
            for (key, below) in value.as_object_mut().into_iter().flatten() {
                let below_path = if tables.contains(path) { join(path, key) } else { any.clone() };
                mappings(below, &below_path, tables, at);
            }
        }
        _ => {}
    }
}

#[test]
fn an_unknown_key_fails_wherever_keys_are_known() {
    let text = std::fs::read_to_string(Path::new(ROOT).join("conf/full.yaml")).expect("it is in the repository");
    let tables = tables();
    let mut tried = std::collections::BTreeSet::new();
    let mut places = Vec::new();
    mappings(&mut json_of(&text), "", &tables, &mut |path, _| places.push(path.to_owned()));
    for (nth, place) in places.iter().enumerate().filter(|(_, place)| tables.contains(*place)) {
        for (key, allowed) in [("x-free", true), ("unknown", false)] {
            let mut whole = json_of(&text);
            let mut count = 0;
            mappings(&mut whole, "", &tables, &mut |_, mapping| {
                if count == nth {
                    mapping.as_object_mut().expect("a mapping").insert(key.to_owned(), json!(1));
                }
                count += 1;
            });
            assert_eq!(faults(&whole).is_empty(), allowed, "{key} in {place}");
        }
        tried.insert(place.clone());
    }
    // The full example has no TLS of the admin API, which takes a token's file.
    let tables: Vec<_> = tables.iter().filter(|place| *place != "admin.tls").collect();
    assert_eq!(tables, tried.iter().collect::<Vec<_>>());
}

#[test]
fn every_key_of_the_readers_has_a_type_and_a_description() {
    let root = schema();
    for path in known_keys() {
        let mut at = &root;
        for step in path.split('.') {
            let (name, list) = step.strip_suffix("[]").map_or((step, false), |name| (name, true));
            at = match name {
                "*" => &at["additionalProperties"],
                _ => &properties(at)[name],
            };
            if list {
                // One item may stand in the list's place.
                let alternatives = at["anyOf"].as_array().into_iter().flatten();
                let list = std::iter::once(at).chain(alternatives).find(|one| one["items"].is_object());
                at = &list.unwrap_or_else(|| panic!("no list: {at}"))["items"];
            }
        }
        assert!(at["description"].is_string(), "{path} is not in the schema");
        assert!(at["deprecated"] == true || described(&path).is_some(), "{path} is not in KEYS");
        assert!(at.as_object().is_some_and(|rules| rules.len() >= 2), "{path} has no type: {at}");
    }
}

/// The properties of a mapping, which may be one of several alternatives.
fn properties(schema: &Value) -> &Value {
    let alternatives = schema["anyOf"].as_array().into_iter().flatten();
    let found = std::iter::once(schema).chain(alternatives).find(|one| one["properties"].is_object());
    &found.unwrap_or_else(|| panic!("no mapping: {schema}"))["properties"]
}

#[test]
fn no_description_is_left_over() {
    let known = known_keys();
    for (path, ..) in KEYS {
        assert!(known.iter().any(|key| key == path), "{path} is no key of the readers");
    }
}

//! The JSON Schema of the file, for editors: names, nesting, defaults and what is required from the readers' own tables
//! of keys; types and descriptions from the table here. It is no reader: what it lets through may still be wrong.

use serde_json::{Map, Value, json};

use super::{
    decode::{Below, Ignored, Key, Table},
    document::ROOT,
};

use Kind::{
    Boolean, Duration, DurationOr, Fields, Integer, List, Name, Nested, NestedOne, NestedOr, Nullable, Numbers, OffOr,
    OneOrMore, Pattern, Percent, Shares, Size, Text, Words,
};

#[cfg(test)]
mod tests;

/// What may stand behind a key.
enum Kind {
    Boolean,
    Duration,
    /// A duration or a word.
    DurationOr(&'static str),
    /// Header fields.
    Fields,
    /// From, to.
    Integer(u64, u64),
    List(&'static Self),
    Name,
    /// What the readers' table says; of a mapping, the words that may stand in its place.
    Nested(&'static [&'static str]),
    /// As `Nested`, of a list; a single item may stand in its place.
    NestedOne,
    /// As `Nested`, of a list whose items may be short.
    NestedOr(&'static Self),
    Nullable(&'static Self),
    Numbers(&'static [u16]),
    /// A value or `off`.
    OffOr(&'static Self),
    OneOrMore(&'static Self),
    Pattern(&'static str),
    Percent,
    /// One upstream, or several with weights.
    Shares,
    Size,
    Text,
    Words(&'static [&'static str]),
}

const WEEK: u64 = 7 * 86_400;
const MOST: u64 = 1_000_000_000;
const ADDRESS: Kind = Pattern("^.+:[0-9]+$");
const SOCKET: &str = "^(unix:.+|.+:[0-9]+)$";
const ID: Kind = Pattern("^[A-Za-z0-9._:/\\[\\]-]{1,100}$");
const ALPN: Kind = OneOrMore(&Words(&["h2", "http/1.1"]));
const STATUS: Kind = Integer(200, 599);
const ABSOLUTE_PATH: Kind = Pattern("^/[!-~]*$");
const FILE: Kind = Text;
const TABLE: Kind = Nested(&[]);
const NETWORKS: Kind = OneOrMore(&Text);
const LIMIT_KEY: Kind = Nested(&["client_ip", "route"]);

/// Types and descriptions by path. What is inherited stands here once, under `defaults`; edits of answers are those of
/// requests, the TLS of the admin API that of listeners.
const KEYS: &[(&str, Kind, &str)] = &[
    ("version", Integer(1, 1), "The version of this format; 1 is the only one."),
    ("threads", Integer(1, 1024), "Workers: threads that serve requests."),
    ("daemon", Boolean, "Run in the background, as -d does."),
    ("error_log", Nullable(&FILE), "Where messages go in the background."),
    ("pid_file", Nullable(&FILE), "Where the process id is written."),
    ("upgrade_sock", Nullable(&FILE), "Where a successor (-u) asks for the listening sockets."),
    ("user", Nullable(&Text), "Account to change to once the sockets are bound."),
    ("group", Nullable(&Text), "Group to change to once the sockets are bound."),
    ("working_directory", Nullable(&FILE), "Directory to change to in the background."),
    ("ca_file", Nullable(&FILE), "Trust store for all upstreams: a PEM file."),
    ("grace_period_seconds", Nullable(&Integer(0, WEEK)), "Upper bound of a drain; rrlb leaves as soon as it is idle."),
    (
        "graceful_shutdown_timeout_seconds",
        Nullable(&Integer(0, WEEK)),
        "How long the threads may take to end after it.",
    ),
    (
        "upstream_keepalive_pool_size",
        Integer(1, 1_000_000),
        "Idle connections to one backend that each worker keeps; where `engine` is pingora, to all together.",
    ),
    ("client_bind_to_ipv4", List(&Text), "Source addresses of connections to backends."),
    ("client_bind_to_ipv6", List(&Text), "Source addresses of connections to backends, IPv6."),
    ("state_file", FILE, "Where changes at run time are kept; without it they end with the process."),
    ("reload_on_change", Boolean, "Reload by itself when this file changes."),
    ("certificates", TABLE, "Certificates by name: PEM files."),
    ("certificates.*.cert", FILE, "The chain, this host's own certificate first."),
    ("certificates.*.key", FILE, "Its key, not encrypted."),
    (
        "certificates.*.ocsp",
        FILE,
        "An OCSP response for it, DER, sent to clients; or `fetch`, to ask the responder that it names.",
    ),
    ("listeners", TABLE, "Where rrlb accepts; at least one."),
    ("listeners[].address", Pattern(SOCKET), "0.0.0.0:8080, \"[::]:8080\" or unix:/run/rrlb.sock."),
    ("listeners[].tls", TABLE, "TLS of this listener."),
    (
        "listeners[].tls.certificates",
        OneOrMore(&Name),
        "Names of certificates, chosen by SNI; the last is the fallback.",
    ),
    ("listeners[].tls.profile", Words(&["intermediate", "modern"]), "Versions and ciphers as Mozilla publishes them."),
    ("listeners[].tls.client_auth", TABLE, "Certificates of clients."),
    ("listeners[].tls.client_auth.mode", Words(&["none", "optional", "required"]), "Whether a client needs one."),
    ("listeners[].tls.client_auth.ca", FILE, "Who issues them: a PEM file."),
    ("listeners[].tls.client_auth.crl", FILE, "Revocation lists of all who issue them: PEM or DER."),
    ("listeners[].tls.strict_sni", Boolean, "Refuse names without a certificate, and clients that name none."),
    ("listeners[].tls.keylog", Boolean, "Write session secrets to the file that SSLKEYLOGFILE names."),
    ("listeners[].tls.min_version", Words(&["1.2", "1.3"]), "The oldest version of TLS that is spoken."),
    ("listeners[].tls.alpn", ALPN, "Protocols in order of preference."),
    ("listeners[].h2c", Boolean, "HTTP/2 by prior knowledge beside HTTP/1.1, without TLS only."),
    ("listeners[].redirect_https", Boolean, "Answer everything with a redirect to https:// and the same host."),
    ("listeners[].proxy_protocol", TABLE, "Load balancers that say on whose behalf they connect."),
    ("listeners[].proxy_protocol.from", OneOrMore(&Text), "Networks that may send a PROXY header, version 1 or 2."),
    ("listeners[].proxy_protocol.required", Boolean, "They must send one, and nobody else is served."),
    ("listeners[].limits", TABLE, "Deadlines and sizes."),
    (
        "listeners[].limits.handshake_timeout",
        Duration,
        "The whole TLS handshake, with the PROXY header before it; never longer than header_timeout.",
    ),
    (
        "listeners[].limits.header_timeout",
        Duration,
        "A request's whole head, not each read; of a first one with the PROXY header and the TLS handshake before it.",
    ),
    ("listeners[].limits.idle_timeout", Duration, "Between requests."),
    (
        "listeners[].limits.request_timeout",
        DurationOr("off"),
        "A request in all, from its head on, whatever answers it.",
    ),
    ("listeners[].limits.max_header_size", Size, "Request line and fields, 1KiB to 1MiB."),
    ("listeners[].allow", NETWORKS, "Whose connections are served; the longest prefix decides, 403 to all others."),
    ("listeners[].deny", NETWORKS, "Whose connections are not; wins over the same prefix in allow."),
    ("listeners[].engine", Words(&["exchange", "lane", "pingora"]), "Who moves the bytes of its plain requests."),
    ("listeners[].limits.max_uri_length", Size, "A request's target, 64B to 65534B."),
    ("listeners[].limits.max_headers", Integer(1, 256), "Fields of a request's head."),
    ("listeners[].limits.max_body_size", OffOr(&Size), "A request's body."),
    ("listeners[].limits.min_body_rate", OffOr(&Size), "Bytes a second that clients send or take, after 5 s of grace."),
    ("listeners[].limits.requests_per_connection", Integer(1, MOST), "The last answer closes the connection."),
    ("listeners[].limits.connections", OffOr(&Integer(1, MOST)), "Open at once; more are closed as they come."),
    (
        "listeners[].limits.connections_per_ip",
        OffOr(&Integer(1, MOST)),
        "Open at once of one IPv4 address or IPv6 /64; more are closed as they come.",
    ),
    ("defaults", TABLE, "Inherited field by field by every upstream."),
    ("defaults.timeouts", TABLE, "Deadlines towards backends."),
    ("defaults.timeouts.connect", Duration, "The TCP connection."),
    ("defaults.timeouts.tls", Duration, "The TLS handshake."),
    ("defaults.timeouts.first_byte", Duration, "From the request's last byte to the answer's first."),
    ("defaults.timeouts.read", Duration, "Between two reads of an answer's body."),
    ("defaults.timeouts.write", Duration, "One write of a request."),
    ("defaults.timeouts.idle", Duration, "How long an unused connection is kept."),
    ("defaults.timeouts.total", DurationOr("off"), "A request in all, retries included."),
    ("defaults.timeouts.websocket_idle", Duration, "Silence on an upgraded connection."),
    ("defaults.retry", TABLE, "When another backend is tried."),
    ("defaults.retry.attempts", Integer(1, 10), "Attempts in all, the first included."),
    ("defaults.retry.on", OneOrMore(&Words(&["connect", "reset_before_headers"])), "After what; [] is never."),
    ("defaults.retry.budget", Percent, "Retries as a share of the last 10 s, but always 10 a second."),
    ("defaults.health_check", Nested(&["tcp", "http", "off"]), "Active health check."),
    ("defaults.health_check.type", Words(&["tcp", "http"]), "What a probe does."),
    ("defaults.health_check.interval", Duration, "Between the starts of two probes, 10ms or more."),
    ("defaults.health_check.timeout", Duration, "The whole probe."),
    ("defaults.health_check.rise", Integer(1, 1000), "Successes in a row that bring a backend up."),
    ("defaults.health_check.fall", Integer(1, 1000), "Failures in a row that take a backend down."),
    ("defaults.health_check.initial", Words(&["down", "up"]), "What counts until the first probe has finished."),
    ("defaults.health_check.path", ABSOLUTE_PATH, "Path and query of an HTTP probe."),
    ("defaults.health_check.host", Text, "Host of an HTTP probe."),
    ("defaults.health_check.status", OneOrMore(&STATUS), "Statuses of an HTTP probe that are a success."),
    ("defaults.eject", Nested(&["off"]), "Backends that fail the requests they are sent are taken out for a while."),
    ("defaults.eject.consecutive_failures", Integer(1, 1000), "Failures in a row that take a backend out."),
    (
        "defaults.eject.base",
        Duration,
        "For how long the first time, 100ms or more; longer each time in a row, up to 5m.",
    ),
    (
        "defaults.eject.max_percent",
        Percent,
        "The most that may be out at once, 1% or more; one may, and one is always left.",
    ),
    ("defaults.slow_start", DurationOr("off"), "How long a backend that comes up takes to its whole share, 1s to 1h."),
    ("upstreams", TABLE, "Groups of backends by name."),
    ("upstreams.*.backends", NestedOr(&Pattern(SOCKET)), "Addresses, or mappings with an address."),
    ("upstreams.*.backends[].id", ID, "What the backend is, whatever its address."),
    ("upstreams.*.backends[].address", Pattern(SOCKET), "10.0.0.11:3000, a host name and port, or unix:/run/app.sock."),
    ("upstreams.*.backends[].weight", Integer(0, 1000), "Its share; 0 gets no new requests."),
    ("upstreams.*.discover", TABLE, "Where more backends come from: `dns` or `file`."),
    ("upstreams.*.discover.dns", Text, "A name and port (A, AAAA), or a name such as _http._tcp.app.internal (SRV)."),
    ("upstreams.*.discover.file", FILE, "A watched YAML or JSON list in the form of `backends`."),
    ("upstreams.*.discover.refresh", Duration, "How often it is looked at."),
    ("upstreams.*.discover.servers", OneOrMore(&Text), "DNS servers to ask."),
    ("upstreams.*.balance", Words(&["round_robin", "least_requests", "random", "ip_hash"]), "How a backend is chosen."),
    ("upstreams.*.tls", TABLE, "TLS towards the backends."),
    ("upstreams.*.tls.sni", Text, "The name in SNI and in the backend's certificate."),
    ("upstreams.*.tls.verify", Boolean, "Check chain and name."),
    ("upstreams.*.tls.ca", FILE, "Trust store: a PEM file."),
    ("upstreams.*.tls.client_cert", Name, "A certificate that is shown to backends that ask."),
    ("upstreams.*.tls.alpn", ALPN, "Protocols in order of preference."),
    (
        "upstreams.*.protocol",
        Words(&["auto", "h1", "h2", "h2c"]),
        "What is spoken; auto is ALPN on TLS, else HTTP/1.1.",
    ),
    ("upstreams.*.host_header", Text, "preserve (what the client sent), sni, or a name."),
    (
        "upstreams.*.proxy_protocol",
        Words(&["off", "v1", "v2"]),
        "Connections begin with a PROXY header that names the client; HTTP/1.1 only.",
    ),
    ("upstreams.*.grpc_web", Boolean, "Translate gRPC-web into gRPC."),
    ("routes", TABLE, "The first that matches wins; with one upstream they may be left out."),
    ("routes[].name", Name, "No two alike."),
    ("routes[].match", TABLE, "All that is given must match."),
    ("routes[].match.host", OneOrMore(&Text), "api.example.com or \"*.example.com\"."),
    ("routes[].match.path", ABSOLUTE_PATH, "This path and everything below it."),
    ("routes[].match.path_exact", ABSOLUTE_PATH, "Exactly this path."),
    ("routes[].match.method", OneOrMore(&Pattern("^[^a-z]+$")), "GET, POST, ..."),
    ("routes[].match.header", Fields, "Fields that must have exactly these values."),
    ("routes[].allow", NETWORKS, "Which clients may use it; the longest prefix decides, 403 to all others."),
    ("routes[].deny", NETWORKS, "Which clients may not; wins over the same prefix in allow."),
    ("routes[].rate_limit", NestedOne, "How often requests may come; 429 to those beyond. One limit or several."),
    ("routes[].rate_limit[].key", LIMIT_KEY, "By what requests are counted together."),
    ("routes[].rate_limit[].key.header", Text, "The values of this field."),
    ("routes[].rate_limit[].key.cookie", Text, "The value of this cookie."),
    ("routes[].rate_limit[].rate", Pattern("^[0-9]+/([0-9]+ms|([0-9]+)?[smhd])$"), "50/s, 100/m, 10/30s."),
    ("routes[].rate_limit[].burst", Integer(1, 1_000_000), "How many may come at once."),
    ("routes[].concurrency", TABLE, "How many requests may be in flight; 429 to those beyond."),
    ("routes[].concurrency.limit", Integer(1, 1_000_000), "In flight for each key."),
    ("routes[].basic_auth", TABLE, "User and password by an htpasswd file; 401 without."),
    ("routes[].basic_auth.file", FILE, "Lines of user:hash, bcrypt or argon2."),
    ("routes[].basic_auth.realm", Text, "What people are asked for."),
    ("routes[].basic_auth.keep", Boolean, "Send Authorization on to the backend."),
    ("routes[].forward_auth", TABLE, "A service that is asked about each request; what is not 2xx goes to the client."),
    ("routes[].forward_auth.url", Pattern("^https?://.+$"), "What is asked, by GET."),
    ("routes[].forward_auth.timeout", Duration, "For the whole question; 503 beyond."),
    ("routes[].forward_auth.copy_headers", OneOrMore(&Text), "Fields of its answer that the backend gets."),
    ("routes[].forward_auth.ca", FILE, "Whom an https:// service must have its certificate from, PEM."),
    ("routes[].upstream", Shares, "An upstream, or upstreams with weights."),
    (
        "routes[].path",
        Words(&["raw", "normalized"]),
        "What of the path the backend is sent: as it came, or in its canonical form.",
    ),
    ("routes[].strip_prefix", ABSOLUTE_PATH, "Taken off the path before the request is sent."),
    ("routes[].redirect", TABLE, "Answer with a redirect."),
    ("routes[].redirect.to", Text, "A path or a URL."),
    ("routes[].redirect.status", Numbers(&[301, 302, 303, 307, 308]), "Its status."),
    ("routes[].respond", TABLE, "Answer at once."),
    ("routes[].respond.status", STATUS, "Its status."),
    ("routes[].respond.body", Text, "Its body."),
    ("routes[].request_headers", TABLE, "Edits of requests, in the order remove, set, add."),
    ("routes[].response_headers", TABLE, "Edits of answers, in the order remove, set, add."),
    ("routes[].request_headers.set", Fields, "Fields that have this value and no other."),
    ("routes[].request_headers.add", Fields, "Fields that are added."),
    ("routes[].request_headers.remove", OneOrMore(&Text), "Fields that are taken out."),
    (
        "routes[].engine",
        Words(&["exchange", "lane", "pingora"]),
        "Who moves the bytes of its plain requests; wins over the listener's.",
    ),
    ("trusted_proxies", OneOrMore(&Text), "Networks whose X-Forwarded-* and Forwarded are believed."),
    ("via", Text, "rrlb's name in Via fields, or off."),
    ("engine", Words(&["exchange", "lane", "pingora"]), "Who moves the bytes of plain requests."),
    ("access_log", Nested(&["off"]), "Where and how requests are logged."),
    ("access_log.path", FILE, "A file, opened again on SIGUSR1; \"-\" is standard output."),
    ("access_log.format", Words(&["json", "combined"]), "The form of a line."),
    ("metrics", Nested(&["off"]), "Where metrics are served."),
    ("metrics.address", ADDRESS, "For /metrics, /healthz and /readyz, nothing else."),
    ("admin", Nested(&["off"]), "The admin API."),
    ("admin.socket", FILE, "Its unix socket, mode 0660."),
    ("admin.address", ADDRESS, "TCP as well; needs token_file, and tls where it is not loopback."),
    ("admin.token_file", FILE, "A file with the token that may do everything."),
    ("admin.read_token_file", FILE, "A file with a token that may only look."),
    ("admin.tls", TABLE, "TLS of the address."),
];

/// The JSON Schema (2020-12) of the file. A value may be a variable wherever it is a scalar, and `x-*` keys are free.
pub fn schema() -> Value {
    let mut schema = Map::new();
    schema.insert("$schema".to_owned(), json!("https://json-schema.org/draft/2020-12/schema"));
    schema.insert("title".to_owned(), json!("rrlb's configuration"));
    schema.extend(mapping(&ROOT, ""));
    schema.insert("$defs".to_owned(), definitions());
    Value::Object(schema)
}

fn definitions() -> Value {
    let text = |pattern: &str| or_variable(json!({ "type": "string", "pattern": pattern }));
    json!({
        "duration": text("^([0-9]+(ms|s|m|h|d))+$"),
        "fields": { "type": "object", "additionalProperties": { "type": "string" } },
        "name": { "anyOf": [text(NAME), { "type": "number" }] },
        "percent": text("^[0-9]{1,3}%$"),
        "size": text("^[0-9]+(B|KiB|MiB|GiB)$"),
        "variable": {
            "description": "A variable of the environment.",
            "type": "string",
            "pattern": "\\$\\{[A-Za-z_][A-Za-z0-9_]*\\}",
        },
    })
}

const NAME: &str = "^[A-Za-z0-9._-]{1,100}$";

/// The schema of a mapping with known keys.
fn mapping(table: &Table, path: &str) -> Map<String, Value> {
    let properties: Map<_, _> = table.keys.iter().map(|key| (key.name.to_owned(), property(key, path))).collect();
    let required: Vec<&str> = table.keys.iter().filter(|key| key.default == "required").map(|key| key.name).collect();
    let mut out = Map::new();
    out.insert("type".to_owned(), json!("object"));
    out.insert("properties".to_owned(), Value::Object(properties));
    out.insert("patternProperties".to_owned(), json!({ "^x-": true }));
    out.insert("additionalProperties".to_owned(), json!(false));
    if !required.is_empty() {
        out.insert("required".to_owned(), json!(required));
    }
    match path {
        "routes[]" => {
            let one = |name: &str| json!({ "required": [name] });
            out.insert("oneOf".to_owned(), json!([one("upstream"), one("redirect"), one("respond")]));
        }
        "routes[].match" => {
            out.insert("not".to_owned(), json!({ "required": ["path", "path_exact"] }));
        }
        _ => {}
    }
    out
}

/// The schema behind a key of the mapping at `path`.
fn property(key: &Key, path: &str) -> Value {
    let path = if path.is_empty() { key.name.to_owned() } else { format!("{path}.{}", key.name) };
    if let Below::Ignored(kind, why) = key.below {
        let mut schema = ignored(kind);
        schema.insert("description".to_owned(), json!(format!("No effect in rrlb: {why}.")));
        schema.insert("deprecated".to_owned(), json!(true));
        return Value::Object(schema);
    }
    let (kind, description) = described(&path).map_or((None, ""), |(kind, text)| (Some(kind), text));
    let words: &[&str] = match kind {
        Some(Nested(words)) => words,
        _ => &[],
    };
    let schema = match key.below {
        Below::List(table) => {
            let item = Value::Object(mapping(table, &format!("{path}[]")));
            let item = match kind {
                Some(NestedOr(short)) => json!({ "anyOf": [of_kind(short), item] }),
                _ => item,
            };
            let list = json!({ "type": "array", "items": item });
            match kind {
                Some(NestedOne) => json!({ "anyOf": [item, list] }),
                _ => list,
            }
        }
        Below::Map(table) => json!({
            "type": "object",
            "patternProperties": { "^x-": true },
            "propertyNames": { "anyOf": [{ "pattern": NAME }, { "pattern": "^x-" }] },
            "additionalProperties": mapping(table, &format!("{path}.*")),
        }),
        Below::Table(table) if words.is_empty() => Value::Object(mapping(table, &path)),
        Below::Table(table) => {
            json!({ "anyOf": [of_kind(&Words(words)), mapping(table, &path)] })
        }
        Below::Ignored(..) | Below::Value => kind.map_or_else(|| json!({}), of_kind),
    };
    let Value::Object(mut schema) = schema else { return schema };
    let default = if key.default == "required" { "Required." } else { &format!("Default: {}.", key.default) };
    schema.insert("description".to_owned(), json!(format!("{description} {default}").trim()));
    Value::Object(schema)
}

/// Type and description of a key.
fn described(path: &str) -> Option<(&'static Kind, &'static str)> {
    let moved = [
        ("upstreams.*.timeouts", "defaults.timeouts"),
        ("upstreams.*.retry", "defaults.retry"),
        ("upstreams.*.health_check", "defaults.health_check"),
        ("upstreams.*.eject", "defaults.eject"),
        ("upstreams.*.slow_start", "defaults.slow_start"),
        ("routes[].response_headers.", "routes[].request_headers."),
        ("routes[].concurrency.key", "routes[].rate_limit[].key"),
        ("admin.tls.", "listeners[].tls."),
    ];
    let found = moved.iter().find_map(|(from, to)| path.strip_prefix(from).map(|rest| format!("{to}{rest}")));
    let path = found.as_deref().unwrap_or(path);
    KEYS.iter().find(|(key, ..)| *key == path).map(|(_, kind, text)| (kind, *text))
}

fn of_kind(kind: &Kind) -> Value {
    let reference = |name: &str| json!({ "$ref": format!("#/$defs/{name}") });
    let any = |schemas: &[Value]| json!({ "anyOf": schemas });
    match kind {
        Boolean => or_variable(json!({ "type": "boolean" })),
        Duration => reference("duration"),
        DurationOr(word) => any(&[reference("duration"), json!({ "const": word })]),
        Fields => reference("fields"),
        Integer(from, to) => or_variable(json!({ "type": "integer", "minimum": from, "maximum": to })),
        List(kind) => json!({ "type": "array", "items": of_kind(kind) }),
        Name => reference("name"),
        Nested(_) | NestedOne | NestedOr(_) => json!({}),
        Nullable(kind) => any(&[of_kind(kind), json!({ "type": "null" })]),
        OffOr(kind) => any(&[of_kind(kind), json!({ "const": "off" })]),
        Numbers(numbers) => or_variable(json!({ "enum": numbers })),
        OneOrMore(kind) => any(&[of_kind(kind), json!({ "type": "array", "items": of_kind(kind) })]),
        Pattern(pattern) => or_variable(json!({ "type": "string", "pattern": pattern })),
        Percent => reference("percent"),
        Shares => any(&[
            reference("name"),
            json!({ "type": "object", "additionalProperties": of_kind(&Integer(0, 1000)), "patternProperties": { "^x-": true } }),
        ]),
        Size => reference("size"),
        Text => json!({ "type": "string" }),
        // A word that looks like a number may stand without quotes.
        Words(words) => {
            let numbers = words.iter().filter_map(|word| serde_json::from_str::<serde_json::Number>(word).ok());
            let words: Vec<Value> = words.iter().map(|word| json!(word)).chain(numbers.map(Value::Number)).collect();
            or_variable(json!({ "enum": words }))
        }
    }
}

fn ignored(kind: Ignored) -> Map<String, Value> {
    let schema = match kind {
        Ignored::Boolean => of_kind(&Boolean),
        Ignored::Count => of_kind(&Nullable(&Integer(0, u64::MAX))),
        Ignored::Scale => of_kind(&Nullable(&Words(&["linear", "log"]))),
    };
    match schema {
        Value::Object(schema) => schema,
        _ => Map::new(),
    }
}

fn or_variable(schema: Value) -> Value {
    json!({ "anyOf": [schema, { "$ref": "#/$defs/variable" }] })
}

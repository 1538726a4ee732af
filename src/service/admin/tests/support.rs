//! A service with its store on a unix socket and on TCP, a client that reads whole answers, and a reader of schemas.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use async_trait::async_trait;
use http::Method;
use serde_json::Value;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    sync::watch,
    task::JoinHandle,
};

use super::super::{
    AdminApi, Limits, Tokens,
    openapi::{document, problems},
    operator::{
        Answering, Change, ConfigStatus, Operator, OperatorError, Parts, Reload, ReloadReport, Status, Upgrade,
        Upgraded,
    },
    router::{self, Shape},
};
use crate::{
    config::{self, Format, model::Token},
    runtime::{journal::Overrides, store::Store},
    telemetry::{
        events::{Event, Events},
        metrics::Metrics,
    },
};

/// How long anything may take.
pub const SOON: Duration = Duration::from_secs(20);

pub const CONFIG: &str = "\
listeners:
  - { address: 127.0.0.1:8080 }
  - { address: 127.0.0.1:8081, redirect_https: true }
upstreams:
  app:
    eject: { consecutive_failures: 1 }
    slow_start: 10m
    backends:
      - { id: app-1, address: 127.0.0.1:9001, weight: 2 }
      - { id: app-2, address: 127.0.0.1:9002 }
  one: { balance: ip_hash, backends: [127.0.0.1:9101] }
  live: { backends: [127.0.0.1:9] } # taken out below
routes:
  - { name: api, match: { host: api.test, path: /v1/, method: [GET], header: { X-Canary: yes } }, strip_prefix: /v1, upstream: app }
  - { name: split, match: { host: split.test }, upstream: { app: 3, one: 1 } }
  - { name: hashed, match: { host: hash.test }, upstream: one }
  - { name: empty, match: { host: live.test }, upstream: live }
  - { name: moved, match: { path_exact: /old }, redirect: { to: /new, status: 308 } }
  - { name: fixed, match: { host: fixed.test }, respond: { status: 418, body: teapot } }
";

/// The process, as far as the API asks it.
#[derive(Default)]
pub struct Double {
    pub calls: Mutex<Vec<String>>,
    pub refuses: Mutex<Option<OperatorError>>,
    /// Calls wait here while it is held.
    pub hold: tokio::sync::Mutex<()>,
    /// Calls that came to their end.
    pub finished: AtomicUsize,
}

impl Double {
    async fn called(&self, call: String) -> Result<(), OperatorError> {
        self.calls.lock().expect("no panic").push(call);
        let _free = self.hold.lock().await;
        self.finished.fetch_add(1, Ordering::SeqCst);
        self.refuses.lock().expect("no panic").clone().map_or(Ok(()), Err)
    }

    pub fn last_call(&self) -> String {
        self.calls.lock().expect("no panic").last().cloned().unwrap_or_default()
    }
}

#[async_trait]
impl Operator for Double {
    async fn reload(&self, how: Reload, who: &str) -> Result<ReloadReport, OperatorError> {
        let confirm_within = how.confirm.map(|time| time.as_secs());
        self.called(format!("{how:?} by {who}")).await?;
        let path = "upstreams.app.backends".to_owned();
        let change = Change { sign: '~', path, detail: "1 -> 2".into(), needs_upgrade: false };
        Ok(ReloadReport { generation: 2, changes: vec![change], warnings: String::new(), confirm_within })
    }

    async fn confirm(&self, who: &str) -> Result<(), OperatorError> {
        self.called(format!("confirm by {who}")).await
    }

    async fn upgrade(&self, how: Upgrade, who: &str) -> Result<Upgraded, OperatorError> {
        self.called(format!("{how:?} by {who}")).await?;
        Ok(Upgraded { pid: 4711 })
    }

    async fn stop(&self, now: bool, who: &str) {
        let _ = self.called(format!("stop now={now} by {who}")).await;
    }

    fn status(&self) -> Status {
        Status {
            version: "1.2.3",
            pid: 1,
            started: 1,
            state: "serving",
            not_ready: String::new(),
            predecessor_draining: false,
            workers: 2,
            connections: 3,
            config: ConfigStatus {
                file: "rrlb.yaml".into(),
                generation: 1,
                loaded: 1,
                confirm_within: None,
                runs: "file",
                last_error: String::new(),
            },
            listeners: vec!["127.0.0.1:8080".into()],
        }
    }

    fn effective_config(&self) -> String {
        "threads: 1\n".into()
    }
}

/// A running service.
pub struct Bench {
    _folder: tempfile::TempDir,
    pub socket: PathBuf,
    pub tcp: SocketAddr,
    pub store: Arc<Store>,
    pub operator: Arc<Double>,
    pub metrics: Arc<Metrics>,
    pub answering: Answering,
    pub close: watch::Sender<bool>,
    pub served: JoinHandle<()>,
    _gate: watch::Sender<bool>,
}

/// An answer.
#[derive(Debug)]
pub struct Reply {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Reply {
    pub fn parse(raw: &[u8]) -> Self {
        let end = raw.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or_else(|| panic!("a head in {raw:?}"));
        let head = std::str::from_utf8(&raw[..end]).expect("text");
        let mut lines = head.split("\r\n");
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|word| word.parse().ok());
        let field = |line: &str| line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()));
        Self {
            status: status.expect("a status"),
            headers: lines.filter_map(field).collect(),
            body: raw[end + 4..].to_vec(),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|error| panic!("{error} in {:?}", String::from_utf8_lossy(&self.body)))
    }

    /// The word of a problem and the field that it names.
    pub fn problem(&self) -> (String, Option<String>) {
        let json = self.json();
        let code = json["type"].as_str().and_then(|kind| kind.strip_prefix("about:blank#")).expect("a type").to_owned();
        (code, json["field"].as_str().map(str::to_owned))
    }
}

impl Bench {
    pub async fn start() -> Self {
        Self::with(Limits::default(), None).await
    }

    pub async fn with(limits: Limits, tls: Option<Arc<rustls::ServerConfig>>) -> Self {
        let loaded = config::parse(CONFIG, Path::new("/etc/rrlb/rrlb.yaml"));
        let mut model = loaded.unwrap_or_else(|report| panic!("{}", report.render(Format::Human))).model;
        model.upstreams.get_mut("live").expect("live").backends.clear();
        let metrics = Arc::new(Metrics::new("1.2.3", 1));
        let events = Arc::new(Events::default());
        let store = Arc::new(Store::new(Arc::new(model), Overrides::new(), None, metrics.clone(), events));
        let operator = Arc::new(Double::default());
        let folder = tempfile::tempdir().expect("a folder");
        let socket = folder.path().join("admin.sock");
        let unix = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let tcp = listener.local_addr().expect("an address");
        let token = |text: &str| Token { path: "token".into(), secret: text.as_bytes().into() };
        let tokens = Arc::new(Arc::new(Tokens::new(&token("secret"), Some(&token("looker")))).into());
        let (gate, open) = watch::channel(true);
        let (close, closing) = watch::channel(false);
        let answering = Answering::default();
        let parts = Parts {
            store: store.clone(),
            operator: operator.clone(),
            metrics: metrics.clone(),
            answering: answering.clone(),
        };
        let mut api = AdminApi::new(parts, Some(unix), Some((listener, tls.map(live), tokens)), open, closing);
        api.limits = limits;
        let served = tokio::spawn(async move { api.run().await.expect("it serves") });
        Self { _folder: folder, socket, tcp, store, operator, metrics, answering, close, served, _gate: gate }
    }

    pub async fn connect(&self) -> UnixStream {
        UnixStream::connect(&self.socket).await.expect("a connection")
    }

    /// One request on a connection of its own; its answer must be as documented.
    pub async fn ask(&self, method: &str, path: &str, body: &str) -> Reply {
        let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
        self.ask_with(method, path, kind, body).await
    }

    /// As [`Bench::ask`], with these fields (each with its line's end).
    pub async fn ask_with(&self, method: &str, path: &str, fields: &str, body: &str) -> Reply {
        let reply = raw(self.connect().await, &request(method, path, fields, body)).await;
        documented(method, path, &reply);
        reply
    }

    pub async fn ask_tcp(&self, method: &str, path: &str, fields: &str, body: &str) -> Reply {
        let stream = TcpStream::connect(self.tcp).await.expect("a connection");
        let reply = raw(stream, &request(method, path, fields, body)).await;
        documented(method, path, &reply);
        reply
    }

    /// As [`Bench::ask`], and the status must be this.
    pub async fn expect(&self, status: u16, method: &str, path: &str, body: &str) -> Value {
        let reply = self.ask(method, path, body).await;
        let text = String::from_utf8_lossy(&reply.body);
        assert_eq!(reply.status, status, "{method} {path} {body}: {text}");
        let is_json = reply.header("content-type").is_some_and(|kind| kind.contains("json"));
        if is_json { reply.json() } else { Value::Null }
    }

    pub fn events(&self) -> Vec<Event> {
        self.store.events().after(0, usize::MAX).0
    }

    /// `uid N` of this process.
    pub fn me(&self) -> String {
        format!("uid {}", nix::unistd::getuid())
    }
}

pub fn request(method: &str, path: &str, fields: &str, body: &str) -> String {
    format!(
        "{method} {path} HTTP/1.1\r\nHost: admin\r\nConnection: close\r\n{fields}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Sends a text and reads to the end.
pub async fn raw(mut stream: impl AsyncRead + AsyncWrite + Unpin, text: &str) -> Reply {
    // A refused body may be cut off while it is still sent; its answer counts.
    let _ = stream.write_all(text.as_bytes()).await;
    let mut answer = Vec::new();
    let read = tokio::time::timeout(SOON, stream.read_to_end(&mut answer)).await.expect("an answer in time");
    assert!(read.is_ok() || !answer.is_empty(), "{read:?}");
    Reply::parse(&answer)
}

/// An answer must be one that the document has for its route.
pub fn documented(method: &str, path: &str, reply: &Reply) {
    let Ok(document) = document() else { panic!("a document") };
    let place = format!("{method} {path} -> {}: {}", reply.status, String::from_utf8_lossy(&reply.body));
    let kind = reply.header("content-type").unwrap_or_default();
    if reply.status >= 400 {
        assert_eq!(kind, "application/problem+json", "{place}");
        fits(&document, &schema("Problem"), &reply.json()).unwrap_or_else(|why| panic!("{place}: {why}"));
        assert_eq!(reply.json()["status"], reply.status, "{place}");
    }
    let path = path.split('?').next().unwrap_or_default();
    let Ok((route, _)) = router::find(&Method::from_bytes(method.as_bytes()).expect("a method"), path) else {
        assert!(matches!(reply.status, 400 | 401 | 403 | 404 | 405), "{place}");
        return;
    };
    if reply.status >= 400 {
        assert!(problems(route).contains(&reply.status), "{place} is not documented");
        return;
    }
    let shape = route.answers.iter().find(|(status, _)| *status == reply.status).map(|(_, shape)| *shape);
    match shape.unwrap_or_else(|| panic!("{place} is not documented")) {
        Shape::Empty => assert!(reply.body.is_empty() && kind.is_empty(), "{place}"),
        Shape::Json(name) if method != "HEAD" => {
            assert_eq!(kind, "application/json", "{place}");
            fits(&document, &schema(name), &reply.json()).unwrap_or_else(|why| panic!("{place}: {why}"));
        }
        Shape::Free | Shape::Json(_) => assert_eq!(kind, "application/json", "{place}"),
        Shape::Yaml => assert_eq!(kind, "text/yaml; charset=utf-8", "{place}"),
        Shape::Events(_) => assert_eq!(kind, "text/event-stream", "{place}"),
    }
}

pub fn schema(name: &str) -> Value {
    serde_json::json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// Whether a value is of a schema, as far as our schemas use the language.
pub fn fits(document: &Value, schema: &Value, value: &Value) -> Result<(), String> {
    const KNOWN: [&str; 13] = [
        "$ref",
        "anyOf",
        "type",
        "enum",
        "properties",
        "required",
        "additionalProperties",
        "items",
        "minimum",
        "maximum",
        "description",
        "minLength",
        "maxLength",
    ];
    let rules = schema.as_object().ok_or("a schema is an object")?;
    if let Some(strange) = rules.keys().find(|key| !KNOWN.contains(&key.as_str()) && *key != "minProperties") {
        return Err(format!("`{strange}` is not read here"));
    }
    if let Some(Value::String(place)) = rules.get("$ref") {
        let target = document.pointer(place.trim_start_matches('#')).ok_or(format!("{place} leads nowhere"))?;
        return fits(document, target, value);
    }
    if let Some(Value::Array(ways)) = rules.get("anyOf") {
        let tried: Vec<_> = ways.iter().map(|way| fits(document, way, value)).collect();
        return if tried.iter().any(Result::is_ok) { Ok(()) } else { Err(format!("{tried:?}")) };
    }
    let kind = match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_u64() || number.is_i64() => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let is = |wanted: &Value| wanted == kind || (wanted == "number" && kind == "integer");
    match rules.get("type") {
        Some(Value::Array(kinds)) if kinds.iter().any(is) => {}
        Some(wanted) if is(wanted) => {}
        None => {}
        Some(wanted) => return Err(format!("{value} is no {wanted}")),
    }
    if let Some(Value::Array(words)) = rules.get("enum")
        && !words.contains(value)
    {
        return Err(format!("{value} is none of {words:?}"));
    }
    let number = value.as_f64().unwrap_or_default();
    let bound = |name: &str| rules.get(name).and_then(Value::as_f64);
    if bound("minimum").is_some_and(|least| number < least) || bound("maximum").is_some_and(|most| number > most) {
        return Err(format!("{value} is out of range"));
    }
    if let (Some(items), Value::Array(values)) = (rules.get("items"), value) {
        values.iter().try_for_each(|value| fits(document, items, value))?;
    }
    let Value::Object(fields) = value else { return Ok(()) };
    if let Some(Value::Array(required)) = rules.get("required")
        && let Some(missing) = required.iter().find(|name| !fields.contains_key(name.as_str().unwrap_or_default()))
    {
        return Err(format!("{missing} is missing"));
    }
    for (name, value) in fields {
        let known = rules.get("properties").and_then(|known| known.get(name));
        match known.or_else(|| rules.get("additionalProperties")) {
            Some(Value::Bool(true)) | None => {}
            Some(Value::Bool(false)) => return Err(format!("`{name}` is not documented")),
            Some(schema) => fits(document, schema, value).map_err(|why| format!("{name}: {why}"))?,
        }
    }
    Ok(())
}

/// Waits until something is so.
pub async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + SOON;
    while !so() {
        assert!(tokio::time::Instant::now() < deadline, "not within {SOON:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

fn live(config: Arc<rustls::ServerConfig>) -> crate::service::admin::LiveTls {
    Arc::new(move || config.clone())
}

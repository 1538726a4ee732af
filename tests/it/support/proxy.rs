//! The proxy as a child process: configuration with placeholders, start, signals, logs, end.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde_json::Value;
use tempfile::TempDir;

use super::{
    address, eventually,
    http1::{self, Client, Message},
    metrics::Scrape,
    origin::Origin,
    run::{self, Finished},
    wait_until,
};

/// What every test's file has where it does not say otherwise.
const PRELUDE: [(&str, &str); 6] = [
    ("version", "1"),
    ("threads", "2"),
    ("upgrade_sock", "<dir>/up/upgrade.sock"),
    ("listeners", "[{ address: \"<listen>\" }]"),
    ("metrics", "{ address: \"<metrics>\" }"),
    ("access_log", "{ path: <dir>/access.log, format: json }"),
];

/// `pingora` or `exchange`: who moves the bytes in every configuration that does not say.
const ENGINE: &str = "RRLB_TEST_ENGINE";

/// A configuration in a folder of its own. `<listen>`, `<metrics>`, `<dir>` and the names put in stand for values.
#[derive(Clone)]
pub struct Config {
    /// Text with the placeholders of [`Config::put`] filled in.
    text: String,
    dir: Arc<TempDir>,
    runs: Arc<AtomicUsize>,
    /// The address of the listener that the prelude adds.
    pub listen: SocketAddr,
    /// Where `/metrics` is.
    pub metrics: SocketAddr,
}

impl Config {
    /// Takes the YAML; the prelude's keys are added where it has none.
    pub fn new(yaml: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("rrlb-it-").tempdir().expect("temporary folder");
        Self {
            text: with_prelude(&dedent(yaml)),
            dir: Arc::new(dir),
            runs: Arc::default(),
            listen: address::unused(),
            metrics: address::unused(),
        }
    }

    /// One upstream `app` of these origins and whatever else the YAML adds.
    pub fn before(origins: &[&Origin], more: &str) -> Self {
        let backends: Vec<_> = origins.iter().map(|origin| format!("\"{}\"", origin.address)).collect();
        let app = format!("upstreams:\n  app:\n    backends: [{}]\n", backends.join(", "));
        Self::new(&(app + &dedent(more)))
    }

    /// Another text for the same file: addresses and folder stay, placeholders are put in anew.
    pub fn instead(&self, yaml: &str) -> Self {
        Self { text: with_prelude(&dedent(yaml)), ..self.clone() }
    }

    /// Replaces `<name>`.
    pub fn put(mut self, name: &str, value: impl ToString) -> Self {
        self.text = self.text.replace(&format!("<{name}>"), &value.to_string());
        self
    }

    /// Takes a top-level key out again, to see its default.
    pub fn without(mut self, key: &str) -> Self {
        let lines = self.text.lines().filter(|line| !line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')));
        self.text = lines.map(|line| format!("{line}\n")).collect();
        self
    }

    /// The configuration of another version of a running proxy: the same addresses and upgrade socket.
    pub fn after(mut self, proxy: &Proxy) -> Self {
        (self.listen, self.metrics) = (proxy.listen, proxy.metrics);
        self = self.without("upgrade_sock");
        let socket = proxy.config.dir().join("up/upgrade.sock");
        self.text.push_str(&format!("upgrade_sock: {}\n", socket.display()));
        self
    }

    /// The folder.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Writes the file and gives its path.
    pub fn write(&self) -> PathBuf {
        let text = self.text.replace("<listen>", &self.listen.to_string());
        let text = text.replace("<metrics>", &self.metrics.to_string());
        self.write_text(&text.replace("<dir>", &self.dir().display().to_string()))
    }

    /// Writes other text into the file.
    pub fn write_text(&self, text: &str) -> PathBuf {
        let path = self.dir().join("rrlb.yaml");
        std::fs::write(&path, text).expect("write the configuration");
        path
    }

    /// `rrlb -c FILE` and these arguments, run to its end.
    pub async fn run(&self, args: &[&str]) -> Finished {
        let mut command = self.command(args);
        command.env("RUST_LOG", "info");
        run::finish(command).await
    }

    fn command(&self, args: &[&str]) -> Command {
        self.command_of(&run::binary(), args)
    }

    fn command_of(&self, binary: &Path, args: &[&str]) -> Command {
        let mut command = run::command_of(binary);
        command.arg("-c").arg(self.write()).args(args);
        command
    }

    /// Starts the proxy and waits until it is ready.
    pub async fn start(self) -> Proxy {
        let mut proxy = self.spawn(&[]);
        proxy.ready().await;
        proxy
    }

    /// Starts the proxy and waits for nothing.
    pub fn spawn(self, args: &[&str]) -> Proxy {
        self.spawn_with(args, |_| {})
    }

    /// As [`Config::spawn`], with a change of the command.
    pub fn spawn_with(self, args: &[&str], change: impl FnOnce(&mut Command)) -> Proxy {
        self.spawn_binary(&run::binary(), args, change)
    }

    /// As [`Config::spawn_with`], of a binary elsewhere.
    pub fn spawn_binary(self, binary: &Path, args: &[&str], change: impl FnOnce(&mut Command)) -> Proxy {
        let run = self.runs.fetch_add(1, Ordering::SeqCst);
        let log = self.dir().join(format!("stderr.{run}.log"));
        let mut command = self.command_of(binary, args);
        command.env("RUST_LOG", "info");
        command.stderr(File::create(&log).expect("log file"));
        command.stdout(File::create(self.dir().join(format!("stdout.{run}.log"))).expect("log file"));
        change(&mut command);
        let child = command.spawn().expect("start the binary");
        let (listen, metrics) = (self.listen, self.metrics);
        Proxy { child, config: self, log, listen, metrics }
    }
}

fn with_prelude(yaml: &str) -> String {
    let has = |key: &str| yaml.lines().any(|line| line.strip_prefix(key).is_some_and(|rest| rest.starts_with(':')));
    let added = PRELUDE.iter().filter(|(key, _)| !has(key)).map(|(key, value)| format!("{key}: {value}\n"));
    let engine = std::env::var(ENGINE).ok().filter(|engine| !engine.is_empty() && !has("engine"));
    let engine = engine.map(|engine| format!("engine: {engine}\n"));
    engine.unwrap_or_default() + &added.collect::<String>() + yaml
}

fn dedent(yaml: &str) -> String {
    let lines = || yaml.lines().filter(|line| !line.trim().is_empty());
    let margin = lines().map(|line| line.len() - line.trim_start().len()).min().unwrap_or(0);
    lines().map(|line| format!("{}\n", &line[margin..])).collect()
}

/// A running proxy. Dropping it kills the process; in a failing test its log is shown.
pub struct Proxy {
    child: Child,
    /// Its configuration.
    pub config: Config,
    log: PathBuf,
    /// The listener the prelude added.
    pub listen: SocketAddr,
    /// Where `/metrics` is.
    pub metrics: SocketAddr,
}

impl Proxy {
    /// One upstream `app` of these origins, round robin, no checks.
    pub async fn before(origins: &[&Origin]) -> Self {
        Config::before(origins, "").start().await
    }

    /// Waits until `/readyz` says so; fails at once where the process has ended.
    pub async fn ready(&mut self) {
        let metrics = self.metrics;
        eventually("the proxy to be ready", async || {
            if let Some(status) = self.child.try_wait().expect("wait for the child") {
                panic!("the proxy ended at its start: {status}\n{}", self.stderr());
            }
            probe(metrics, "/readyz").await == Some(200)
        })
        .await;
    }

    /// The status of a path beside `/metrics`; `None` where nobody answers.
    pub async fn probe(&self, path: &str) -> Option<u16> {
        probe(self.metrics, path).await
    }

    /// A connection to the listener.
    pub async fn client(&self) -> Client {
        Client::connect(self.listen).await
    }

    /// `GET` over a connection of its own.
    pub async fn get(&self, path: &str) -> Message {
        http1::get_once(self.listen, path).await
    }

    /// A scrape.
    pub async fn scrape(&self) -> Scrape {
        Scrape(http1::get_once(self.metrics, "/metrics").await.text())
    }

    /// Waits until a sum of samples fulfils a condition.
    pub async fn metric(&self, name: &str, labels: &[&str], fulfils: impl Fn(f64) -> bool) {
        eventually(&format!("{name}{labels:?}"), async || fulfils(self.scrape().await.sum(name, labels))).await;
    }

    /// The access log as soon as it has this many lines, each one JSON; more lines are a failure.
    pub async fn access_log(&self, lines: usize) -> Vec<Value> {
        let text = self.access_log_text(lines).await;
        let parsed = text.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("not JSON: {l:?}: {e}")));
        parsed.collect()
    }

    /// The access log's text as soon as it has this many lines; more lines are a failure.
    pub async fn access_log_text(&self, lines: usize) -> String {
        let path = self.config.dir().join("access.log");
        wait_until(&format!("{lines} lines in the access log"), || run::read(&path).lines().count() >= lines).await;
        let text = run::read(&path);
        assert_eq!(text.lines().count(), lines, "{text}");
        text
    }

    /// The lines that the access log has so far, each one JSON.
    pub fn access_log_so_far(&self) -> Vec<Value> {
        let text = run::read(&self.config.dir().join("access.log"));
        let whole = text.rsplit_once('\n').map_or("", |(whole, _)| whole);
        whole.lines().map(|l| serde_json::from_str(l).unwrap_or_else(|e| panic!("not JSON: {l:?}: {e}"))).collect()
    }

    /// What the process wrote to standard error so far.
    pub fn stderr(&self) -> String {
        run::read(&self.log)
    }

    /// Waits for a text in standard error.
    pub async fn logged(&self, text: &str) {
        wait_until(&format!("{text:?} in the log"), || self.stderr().contains(text)).await;
    }

    /// The process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: i32) {
        let pid = i32::try_from(self.child.id()).expect("a pid");
        // SAFETY: a plain system call; the child has not been waited for unless it has ended, and then this fails.
        unsafe { libc::kill(pid, signal) };
    }

    /// Whether the process is still there.
    pub fn running(&mut self) -> bool {
        self.child.try_wait().expect("wait for the child").is_none()
    }

    /// Waits until the process has ended.
    pub async fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        wait_until("the proxy to end", || {
            status = self.child.try_wait().expect("wait for the child");
            status.is_some()
        })
        .await;
        status.expect("just seen")
    }

    /// Starts a second process of the same configuration with `-u`.
    pub fn successor(&self) -> Self {
        let mut next = self.config.clone().spawn(&["-u"]);
        (next.listen, next.metrics) = (self.listen, self.metrics);
        next
    }

    /// Has the file read again and waits until that is done, well or not.
    pub async fn reload(&self) {
        let name = "rrlb_config_loads_total";
        let before = self.scrape().await.sum(name, &[]);
        self.signal(libc::SIGHUP);
        self.metric(name, &[], |loads| loads > before).await;
    }

    /// Lets a second process take over, and waits until the first has left in peace.
    pub async fn upgrade(mut self) -> Self {
        let mut next = self.successor();
        let status = self.ended().await;
        assert!(status.success(), "the old process left with {status}\n{}", self.stderr());
        next.ready().await;
        next
    }

    /// Resident memory in bytes.
    pub fn resident(&self) -> u64 {
        self.status_bytes("VmRSS:")
    }

    /// Resident memory in bytes without what is in files: the program and its libraries.
    pub fn resident_own(&self) -> u64 {
        self.status_bytes("RssAnon:")
    }

    fn status_bytes(&self, name: &str) -> u64 {
        let status = run::read(Path::new(&format!("/proc/{}/status", self.pid())));
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of that name");
        let kib: u64 = line.trim().trim_end_matches("kB").trim().parse().expect("a number of KiB");
        kib << 10
    }

    /// CPU time so far, all threads.
    pub fn cpu(&self) -> Duration {
        let stat = run::read(Path::new(&format!("/proc/{}/stat", self.pid())));
        let after_name = stat.rsplit(") ").next().expect("fields after the name");
        let ticks: u64 = after_name.split(' ').skip(11).take(2).map(|t| t.parse::<u64>().expect("ticks")).sum();
        Duration::from_millis(ticks * 10)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- standard error of rrlb {} ---\n{}---", self.child.id(), self.stderr());
        }
    }
}

async fn probe(at: SocketAddr, path: &str) -> Option<u16> {
    let mut client = Client::try_connect(at).await.ok()?;
    client.try_get(path).await.ok().map(|reply| reply.status())
}

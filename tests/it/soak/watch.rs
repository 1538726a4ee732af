//! What is seen of the process from outside: descriptors, threads, memory, its access log and its metrics.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
};

use serde_json::Value;

use crate::support::{eventually, metrics::Scrape, proxy::Proxy, run, wait_until};

/// What a process holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Held {
    pub descriptors: usize,
    pub threads: usize,
    /// Bytes, without the program itself.
    pub memory: u64,
}

impl Held {
    pub fn by(proxy: &Proxy) -> Self {
        let count = |what: &str| fs::read_dir(format!("/proc/{}/{what}", proxy.pid())).map_or(0, Iterator::count);
        Self { descriptors: count("fd"), threads: count("task"), memory: proxy.resident_own() }
    }

    /// The lesser of each.
    pub fn least(self, other: Self) -> Self {
        Self {
            descriptors: self.descriptors.min(other.descriptors),
            threads: self.threads.min(other.threads),
            memory: self.memory.min(other.memory),
        }
    }
}

/// What the descriptors are, for a test that fails.
pub fn descriptors(proxy: &Proxy) -> Vec<String> {
    let all = fs::read_dir(format!("/proc/{}/fd", proxy.pid())).into_iter().flatten().flatten();
    let mut names: Vec<_> = all
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.display().to_string().split(['[', '(']).next().unwrap_or_default().to_owned())
        .collect();
    names.sort_unstable();
    names.dedup_by(|one, other| one == other && !one.starts_with("socket"));
    names
}

/// The sum of a family without its empty part, by a label's value.
pub fn by_label(scrape: &Scrape, name: &str, label: &str) -> BTreeMap<String, f64> {
    let mut sums = BTreeMap::new();
    for (labels, value) in scrape.samples(name) {
        let start = format!("{label}=\"");
        let Some((_, rest)) = labels.split_once(&start) else { continue };
        let text = rest.split('"').next().unwrap_or_default().to_owned();
        *sums.entry(text).or_default() += value;
    }
    sums
}

/// Waits until no client and no request is left.
pub async fn quiet(proxy: &Proxy) {
    for gauge in ["rrlb_connections_open", "rrlb_requests_in_flight", "rrlb_backend_in_flight"] {
        eventually(&format!("{gauge} to be 0"), async || {
            let scrape = proxy.scrape().await;
            assert!(scrape.samples(gauge).all(|(_, value)| value >= 0.0), "{gauge} is negative: {scrape:?}");
            scrape.sum(gauge, &[]) == 0.0
        })
        .await;
    }
}

/// Reads the access log as it grows, each line once, and turns it over as an operator does.
pub struct Log {
    path: PathBuf,
    file: File,
    partial: Vec<u8>,
    /// Lines by reason.
    pub reasons: BTreeMap<String, u64>,
    pub lines: u64,
}

impl Log {
    pub fn of(proxy: &Proxy) -> Self {
        let path = proxy.config.dir().join("access.log");
        let file = File::open(&path).expect("an access log");
        Self { path, file, partial: Vec::new(), reasons: BTreeMap::new(), lines: 0 }
    }

    /// Takes what has come; every line must be JSON, whatever a client has sent.
    pub fn follow(&mut self) {
        self.file.read_to_end(&mut self.partial).expect("the access log to be read");
        let Some(end) = self.partial.iter().rposition(|byte| *byte == b'\n') else { return };
        for line in self.partial[..end].split(|byte| *byte == b'\n') {
            let parsed: Value = serde_json::from_slice(line)
                .unwrap_or_else(|error| panic!("no JSON: {error}: {}", String::from_utf8_lossy(line)));
            let reason = parsed["reason"].as_str().expect("a reason").to_owned();
            *self.reasons.entry(reason).or_default() += 1;
            self.lines += 1;
        }
        self.partial.drain(..=end);
    }

    /// A new file; what was written into the old one is read first.
    pub async fn rotate(&mut self, proxy: &Proxy) {
        let old = self.path.with_extension("old");
        fs::rename(&self.path, &old).expect("the access log to be moved");
        proxy.signal(libc::SIGUSR1);
        let path: &Path = &self.path;
        wait_until("a new access log", || path.exists()).await;
        self.follow();
        assert!(self.partial.is_empty(), "a line was cut: {:?}", String::from_utf8_lossy(&self.partial));
        self.file = File::open(&self.path).expect("the new access log");
        fs::remove_file(&old).expect("the old access log to be removed");
    }

    /// Log and metrics must say the same, once the last line is written: as many requests, and as many of each reason.
    pub async fn agrees(&mut self, proxy: &Proxy) -> Scrape {
        let finished = |scrape: &Scrape| scrape.sum("rrlb_requests_total", &[]) as u64;
        eventually("the last line of the access log", async || {
            self.follow();
            self.lines >= finished(&proxy.scrape().await)
        })
        .await;
        let scrape = proxy.scrape().await;
        assert_eq!(scrape.sum("rrlb_access_log_dropped_total", &[]), 0.0);
        assert_eq!(self.lines, finished(&scrape), "lines in the log, and requests counted");
        let counted = by_label(&scrape, "rrlb_failures_total", "reason");
        for (reason, count) in counted {
            let logged = self.reasons.get(&reason).copied().unwrap_or(0);
            assert_eq!(logged, count as u64, "{reason}: lines in the log, and failures counted");
        }
        scrape
    }
}

/// Nothing in what the process said looks like a crash.
pub fn no_panic(proxy: &Proxy) {
    let text = proxy.stderr();
    for word in ["panicked", "RUST_BACKTRACE", "a request failed inside rrlb"] {
        let line = text.lines().find(|line| line.contains(word));
        assert!(line.is_none(), "{line:?}");
    }
    assert!(run::read(&proxy.config.dir().join("stdout.0.log")).is_empty());
}

//! The scrape: every family with its name, help and samples. This is the one place where names and labels are written.

use std::{fmt, sync::PoisonError};

use super::{
    AcceptError, AdminOutcome, CLASSES, H2Abuse, Handshake, Metrics, NO_UPSTREAM, Named, ProxyHeader, UpstreamMetrics,
};
use crate::{
    telemetry::{
        cell::BOUNDS,
        exposition::{Exposition, Kind},
        process::ProcessNumbers,
    },
    types::{AttemptFailure, Reason, Refusal},
};

pub(super) fn encode(metrics: &Metrics) -> String {
    let mut out = Exposition::default();
    let named = metrics.named.read().unwrap_or_else(PoisonError::into_inner);
    requests(&mut out, metrics, &named);
    upstreams(&mut out, &named);
    discoveries(&mut out, &named);
    backends(&mut out, &named);
    connections(&mut out, metrics, &named);
    certificates(&mut out, metrics, &named);
    instance(&mut out, metrics);
    process(&mut out, metrics);
    out.finish()
}

fn requests(out: &mut Exposition, metrics: &Metrics, named: &Named) {
    let upstreams = || {
        let configured = named.upstreams.iter().map(|(name, upstream)| (name.as_str(), upstream));
        configured.chain([(NO_UPSTREAM, &metrics.no_upstream)])
    };
    let name = "rrlb_requests_total";
    out.family(name, Kind::Counter, "Finished requests by the status the client got (none: no answer).");
    for (upstream, counts) in upstreams() {
        for (class, label) in CLASSES.iter().enumerate() {
            let value: u64 = counts
                .per_worker
                .iter()
                .filter_map(|counts| counts.by_class.get(class))
                .map(|count| count.value())
                .sum();
            out.sample(name, &[("upstream", upstream), ("status", label)], value);
        }
    }
    let name = "rrlb_request_duration_seconds";
    out.family(name, Kind::Histogram, "From a request's first byte to the last of its answer.");
    for (upstream, counts) in upstreams() {
        durations(out, upstream, counts);
    }
    let name = "rrlb_requests_in_flight";
    out.family(name, Kind::Gauge, "Requests under way.");
    for (upstream, counts) in upstreams() {
        let value: i64 = counts.per_worker.iter().map(|counts| counts.in_flight.value()).sum();
        out.sample(name, &[("upstream", upstream)], value);
    }
    let name = "rrlb_failures_total";
    out.family(name, Kind::Counter, "Requests that did not end well, by reason.");
    for reason in Reason::ALL.iter().filter(|reason| reason.is_failure()) {
        let value = metrics.failures.get(reason.index()).map_or(0, |counter| counter.value());
        out.sample(name, &[("reason", reason.as_str())], value);
    }
}

fn durations(out: &mut Exposition, upstream: &str, counts: &UpstreamMetrics) {
    let mut buckets = [0u64; BOUNDS.len() + 1];
    let mut micros = 0u64;
    for worker in counts.per_worker.iter() {
        for (sum, count) in buckets.iter_mut().zip(worker.durations.counts()) {
            *sum += count;
        }
        micros = micros.wrapping_add(worker.durations.micros());
    }
    let mut below = 0;
    let bounds = BOUNDS.iter().map(|(_, text)| *text).chain(["+Inf"]);
    for (count, bound) in buckets.into_iter().zip(bounds) {
        below += count;
        out.sample("rrlb_request_duration_seconds_bucket", &[("upstream", upstream), ("le", bound)], below);
    }
    out.sample("rrlb_request_duration_seconds_sum", &[("upstream", upstream)], Micros(micros));
    out.sample("rrlb_request_duration_seconds_count", &[("upstream", upstream)], below);
}

fn upstreams(out: &mut Exposition, named: &Named) {
    let name = "rrlb_retries_total";
    out.family(name, Kind::Counter, "Attempts made again, by the failure that called for it.");
    for (upstream, counts) in &named.upstreams {
        for (counter, failure) in counts.retries.iter().zip(AttemptFailure::ALL) {
            out.sample(name, &[("upstream", upstream.as_str()), ("reason", failure.as_str())], counter.value());
        }
    }
    let name = "rrlb_retry_budget_exhausted_total";
    out.family(name, Kind::Counter, "Retries that the budget did not allow.");
    for (upstream, counts) in &named.upstreams {
        out.sample(name, &[("upstream", upstream.as_str())], counts.retry_budget_exhausted.value());
    }
    let name = "rrlb_upstream_connections_total";
    out.family(name, Kind::Counter, "Connections that requests were sent on, new or from the pool.");
    for (upstream, counts) in &named.upstreams {
        let upstream = ("upstream", upstream.as_str());
        out.sample(name, &[upstream, ("reused", "no")], counts.sum(|counts| &counts.connections_fresh));
        out.sample(name, &[upstream, ("reused", "yes")], counts.sum(|counts| &counts.connections_reused));
    }
}

fn discoveries(out: &mut Exposition, named: &Named) {
    let name = "rrlb_discovery_total";
    out.family(name, Kind::Counter, "Lookups of backends in DNS, and lists of backends read, by result.");
    for (upstream, counts) in &named.discoveries {
        let upstream = ("upstream", upstream.as_str());
        out.sample(name, &[upstream, ("result", "found")], counts.found.value());
        out.sample(name, &[upstream, ("result", "failed")], counts.failed.value());
    }
}

fn backends(out: &mut Exposition, named: &Named) {
    let backends = || {
        let labelled = |((upstream, backend), counts)| ([("upstream", upstream), ("backend", backend)], counts);
        named
            .backends
            .iter()
            .map(|((upstream, backend), counts)| ((upstream.as_str(), backend.as_str()), counts))
            .map(labelled)
    };
    let name = "rrlb_backend_up";
    out.family(name, Kind::Gauge, "1 where the backend is up, as far as probes say.");
    for (labels, counts) in backends() {
        out.sample(name, &labels, counts.up.value());
    }
    let name = "rrlb_backend_in_flight";
    out.family(name, Kind::Gauge, "Attempts under way.");
    for (labels, counts) in backends() {
        out.sample(name, &labels, counts.in_flight.value());
    }
    let name = "rrlb_backend_requests_total";
    out.family(name, Kind::Counter, "Attempts, retries included.");
    for (labels, counts) in backends() {
        out.sample(name, &labels, counts.requests.value());
    }
    let name = "rrlb_backend_ejected";
    out.family(name, Kind::Gauge, "1 while the backend is out for failing the requests it was sent.");
    for (labels, counts) in backends() {
        out.sample(name, &labels, counts.ejected.value());
    }
    let name = "rrlb_backend_ejections_total";
    out.family(name, Kind::Counter, "How often the backend was taken out for that.");
    for (labels, counts) in backends() {
        out.sample(name, &labels, counts.ejections.value());
    }
    let name = "rrlb_health_checks_total";
    out.family(name, Kind::Counter, "Finished probes.");
    for ([upstream, backend], counts) in backends() {
        out.sample(name, &[upstream, backend, ("result", "ok")], counts.checks_ok.value());
        out.sample(name, &[upstream, backend, ("result", "failed")], counts.checks_failed.value());
    }
    let name = "rrlb_health_flips_total";
    out.family(name, Kind::Counter, "Changes of the verdict.");
    for ([upstream, backend], counts) in backends() {
        out.sample(name, &[upstream, backend, ("to", "up")], counts.flips_up.value());
        out.sample(name, &[upstream, backend, ("to", "down")], counts.flips_down.value());
    }
}

fn connections(out: &mut Exposition, metrics: &Metrics, named: &Named) {
    let name = "rrlb_connections_total";
    out.family(name, Kind::Counter, "Connections accepted.");
    for (listener, counts) in &named.listeners {
        out.sample(name, &[("listener", listener.as_str())], counts.connections.value());
    }
    let name = "rrlb_connections_open";
    out.family(name, Kind::Gauge, "Connections open, idle ones included.");
    for (listener, counts) in &named.listeners {
        out.sample(name, &[("listener", listener.as_str())], counts.open.value());
    }
    let name = "rrlb_connections_refused_total";
    out.family(name, Kind::Counter, "Connections turned away before anything was asked on them, by cause.");
    for (listener, counts) in &named.listeners {
        for (counter, cause) in counts.refused.iter().zip(Refusal::ALL) {
            out.sample(name, &[("listener", listener.as_str()), ("cause", cause.as_str())], counter.value());
        }
    }
    let name = "rrlb_tls_handshakes_total";
    out.family(name, Kind::Counter, "TLS handshakes with clients.");
    for (listener, counts) in &named.listeners {
        for (counter, outcome) in counts.handshakes.iter().zip(Handshake::ALL) {
            let (result, resumed) = outcome.labels();
            let labels = [("listener", listener.as_str()), ("result", result), ("resumed", resumed)];
            out.sample(name, &labels, counter.value());
        }
    }
    let name = "rrlb_proxy_protocol_total";
    out.family(name, Kind::Counter, "What became of the PROXY headers of connections.");
    for (listener, counts) in &named.listeners {
        for (counter, result) in counts.proxy_headers.iter().zip(ProxyHeader::ALL) {
            out.sample(name, &[("listener", listener.as_str()), ("result", result.as_str())], counter.value());
        }
    }
    let name = "rrlb_connections_per_worker";
    out.family(name, Kind::Gauge, "Connections open on each worker.");
    let workers = || metrics.workers.iter().enumerate().map(|(number, worker)| (number.to_string(), worker));
    for (number, worker) in workers() {
        out.sample(name, &[("worker", &number)], worker.open.value());
    }
    let name = "rrlb_worker_connections_total";
    out.family(name, Kind::Counter, "Connections accepted by each worker.");
    for (number, worker) in workers() {
        out.sample(name, &[("worker", &number)], worker.accepted.value());
    }
    let name = "rrlb_accept_errors_total";
    out.family(name, Kind::Counter, "Failed accepts.");
    for (counter, error) in metrics.accept_errors.iter().zip(AcceptError::ALL) {
        out.sample(name, &[("error", error.as_str())], counter.value());
    }
    let name = "rrlb_h2_abuse_total";
    out.family(name, Kind::Counter, "HTTP/2 connections ended for what their client did, by what it was.");
    for (counter, kind) in metrics.h2_abuse.iter().zip(H2Abuse::ALL) {
        out.sample(name, &[("kind", kind.as_str())], counter.value());
    }
    let sent: u64 = metrics.workers.iter().map(|worker| worker.bytes_sent.value()).sum();
    out.single("rrlb_bytes_sent_total", Kind::Counter, "Body bytes sent to clients.", sent);
    let received: u64 = metrics.workers.iter().map(|worker| worker.bytes_received.value()).sum();
    out.single("rrlb_bytes_received_total", Kind::Counter, "Body bytes received from clients.", received);
}

fn certificates(out: &mut Exposition, metrics: &Metrics, named: &Named) {
    let name = "rrlb_certificate_not_after_seconds";
    out.family(name, Kind::Gauge, "When a certificate expires, in seconds since 1970.");
    for (certificate, numbers) in &named.certificates {
        out.sample(name, &[("certificate", certificate.as_str())], numbers.not_after.value());
    }
    let name = "rrlb_certificate_ocsp_stapled";
    out.family(
        name,
        Kind::Gauge,
        "1 where a certificate's OCSP response is sent along, 0 where there is none or it is out of date.",
    );
    for (certificate, numbers) in named.certificates.iter().filter(|(_, numbers)| numbers.ocsp) {
        out.sample(name, &[("certificate", certificate.as_str())], numbers.stapled.value());
    }
    let name = "rrlb_crl_next_update_timestamp_seconds";
    out.family(
        name,
        Kind::Gauge,
        "When a file of revocation lists is out of date, in seconds since 1970, 0 where it does not say: no client certificate passes then.",
    );
    for (file, at) in &named.crls {
        let file = file.to_string_lossy();
        out.sample(name, &[("file", &*file)], at.value());
    }
    let name = "rrlb_certificate_reloads_total";
    out.family(name, Kind::Counter, "Changed files of certificates, taken or of no use.");
    out.sample(name, &[("result", "ok")], metrics.certificate_reloads.value());
    out.sample(name, &[("result", "failed")], metrics.certificate_reload_failures.value());
    let name = "rrlb_certificate_ocsp_fetches_total";
    out.family(name, Kind::Counter, "Questions to OCSP responders, answered or not.");
    out.sample(name, &[("result", "ok")], metrics.ocsp_fetches.value());
    out.sample(name, &[("result", "failed")], metrics.ocsp_fetch_failures.value());
}

fn instance(out: &mut Exposition, metrics: &Metrics) {
    let name = "rrlb_access_log_lines_total";
    out.single(name, Kind::Counter, "Lines written to the access log.", metrics.log.written.value());
    let name = "rrlb_access_log_dropped_total";
    out.single(name, Kind::Counter, "Lines that did not reach the access log.", metrics.log.dropped.value());
    let name = "rrlb_config_loads_total";
    out.family(name, Kind::Counter, "Loads of the configuration.");
    out.sample(name, &[("result", "ok")], metrics.config_loads.value());
    out.sample(name, &[("result", "failed")], metrics.config_load_failures.value());
    let name = "rrlb_config_generation";
    out.single(
        name,
        Kind::Gauge,
        "Which configuration of this process runs, from 1.",
        metrics.config_generation.value(),
    );
    let name = "rrlb_admin_requests_total";
    out.family(name, Kind::Counter, "Requests to the admin API, by how they ended.");
    for (counter, outcome) in metrics.admin_requests.iter().zip(AdminOutcome::ALL) {
        out.sample(name, &[("outcome", outcome.as_str())], counter.value());
    }
    out.family("rrlb_build_info", Kind::Gauge, "Always 1.");
    out.sample("rrlb_build_info", &[("version", metrics.version)], 1);
    let name = "rrlb_workers";
    out.single(name, Kind::Gauge, "Worker threads.", metrics.workers.len());
    let uptime = format_args!("{:.3}", metrics.started.elapsed().as_secs_f64()).to_string();
    out.single("rrlb_uptime_seconds", Kind::Gauge, "Since this process started.", uptime);
}

fn process(out: &mut Exposition, metrics: &Metrics) {
    let numbers = ProcessNumbers::read();
    let name = "process_start_time_seconds";
    out.single(name, Kind::Gauge, "Start, in seconds since 1970.", metrics.started_at_seconds());
    let name = "process_cpu_seconds_total";
    out.single(name, Kind::Counter, "User and system time.", numbers.cpu_seconds);
    let name = "process_resident_memory_bytes";
    out.single(name, Kind::Gauge, "Resident memory.", numbers.resident_bytes);
    out.single("process_open_fds", Kind::Gauge, "Open file descriptors.", numbers.open_fds);
    out.single("process_max_fds", Kind::Gauge, "File descriptors at most.", numbers.max_fds);
    out.single("process_threads", Kind::Gauge, "Threads.", numbers.threads);
}

/// Microseconds, written as seconds.
struct Micros(u64);

impl fmt::Display for Micros {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}", self.0 / 1_000_000, self.0 % 1_000_000)
    }
}

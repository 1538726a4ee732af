//! What a scrape holds before and after traffic.

use std::{collections::HashSet, io, time::Duration};

use super::*;
use crate::types::AttemptFailure;

fn value(text: &str, sample: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.strip_prefix(sample).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

fn configured() -> Metrics {
    let metrics = Metrics::new("1.2.3", 2);
    metrics.listener(&"0.0.0.0:80".into());
    metrics.upstream(&"app".into());
    metrics.backend(&"app".into(), &"app-1".into());
    metrics.discovery(&"app".into());
    metrics.certificate(&"main".into(), true);
    metrics.crl(std::path::Path::new("clients.crl"));
    metrics
}

#[test]
fn every_family_has_samples_before_any_traffic() {
    let text = configured().encode();
    let names: Vec<_> = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")).collect();
    assert!(names.len() >= 30, "{names:?}");
    assert_eq!(names.iter().collect::<HashSet<_>>().len(), names.len(), "a family stands once");
    for family in names {
        let (name, kind) = family.split_once(' ').expect("name and kind");
        let sample = if kind == "histogram" { format!("{name}_bucket") } else { name.to_owned() };
        assert!(
            text.lines().any(|line| line.strip_prefix(&sample).is_some_and(|rest| rest.starts_with([' ', '{']))),
            "{name}"
        );
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name}");
    }
    for sample in [
        r#"rrlb_requests_total{upstream="app",status="5xx"}"#,
        r#"rrlb_requests_total{upstream="-",status="2xx"}"#,
        r#"rrlb_failures_total{reason="no_backend"}"#,
        r#"rrlb_retries_total{upstream="app",reason="stale_connection"}"#,
        r#"rrlb_tls_handshakes_total{listener="0.0.0.0:80",result="ok",resumed="yes"}"#,
        r#"rrlb_discovery_total{upstream="app",result="failed"}"#,
        r#"rrlb_backend_up{upstream="app",backend="app-1"}"#,
        r#"rrlb_backend_ejected{upstream="app",backend="app-1"}"#,
        r#"rrlb_backend_ejections_total{upstream="app",backend="app-1"}"#,
        r#"rrlb_accept_errors_total{error="emfile"}"#,
        r#"rrlb_h2_abuse_total{kind="server_reset"}"#,
        r#"rrlb_connections_per_worker{worker="1"}"#,
        r#"rrlb_admin_requests_total{outcome="refused"}"#,
        r#"rrlb_certificate_reloads_total{result="failed"}"#,
        r#"rrlb_certificate_ocsp_fetches_total{result="failed"}"#,
    ] {
        assert_eq!(value(&text, sample), Some(0.0), "{sample}");
    }
    assert_eq!(value(&text, r#"rrlb_build_info{version="1.2.3"}"#), Some(1.0));
}

#[test]
fn workers_are_summed_up() {
    let metrics = configured();
    let upstream = metrics.upstream(&"app".into());
    for worker in 0..5 {
        let _request = upstream.begin(worker);
        upstream.finished(worker, 204, Duration::from_millis(3));
    }
    let _open = upstream.begin(1);
    upstream.finished(0, 0, Duration::from_secs(100));
    upstream.connection(0, ConnectionUse::Reused);
    upstream.connection(1, ConnectionUse::Reused);
    let text = metrics.encode();
    for (sample, expected) in [
        (r#"rrlb_requests_total{upstream="app",status="2xx"}"#, 5.0),
        (r#"rrlb_requests_total{upstream="app",status="none"}"#, 1.0),
        (r#"rrlb_requests_in_flight{upstream="app"}"#, 1.0),
        (r#"rrlb_request_duration_seconds_bucket{upstream="app",le="0.0025"}"#, 0.0),
        (r#"rrlb_request_duration_seconds_bucket{upstream="app",le="0.005"}"#, 5.0),
        (r#"rrlb_request_duration_seconds_bucket{upstream="app",le="60"}"#, 5.0),
        (r#"rrlb_request_duration_seconds_bucket{upstream="app",le="+Inf"}"#, 6.0),
        (r#"rrlb_request_duration_seconds_count{upstream="app"}"#, 6.0),
        (r#"rrlb_request_duration_seconds_sum{upstream="app"}"#, 100.015),
        (r#"rrlb_upstream_connections_total{upstream="app",reused="yes"}"#, 2.0),
    ] {
        assert_eq!(value(&text, sample), Some(expected), "{sample}");
    }
}

#[test]
fn guards_count_until_they_are_dropped() {
    let metrics = configured();
    let listener = metrics.listener(&"0.0.0.0:80".into());
    let backend = metrics.backend(&"app".into(), &"app-1".into());
    let (connection, attempt) = (listener.open(metrics.worker(1)), backend.begin());
    let samples = [
        r#"rrlb_connections_open{listener="0.0.0.0:80"}"#,
        r#"rrlb_connections_per_worker{worker="1"}"#,
        r#"rrlb_backend_in_flight{upstream="app",backend="app-1"}"#,
    ];
    assert_eq!(backend.in_flight(), 1);
    let text = metrics.encode();
    assert!(samples.iter().all(|sample| value(&text, sample) == Some(1.0)), "{text}");
    drop((connection, attempt));
    let text = metrics.encode();
    assert!(samples.iter().all(|sample| value(&text, sample) == Some(0.0)), "{text}");
    assert_eq!(value(&text, r#"rrlb_connections_total{listener="0.0.0.0:80"}"#), Some(1.0));
    assert_eq!(value(&text, r#"rrlb_backend_requests_total{upstream="app",backend="app-1"}"#), Some(1.0));
}

#[test]
fn reasons_errors_and_outcomes_find_their_labels() {
    let metrics = configured();
    metrics.ended(Reason::Ok);
    for reason in Reason::ALL {
        metrics.ended(*reason);
    }
    metrics.accept_failed(AcceptError::from_io(&io::Error::from_raw_os_error(libc::EMFILE)));
    let listener = metrics.listener(&"0.0.0.0:80".into());
    listener.handshake(Handshake::Resumed);
    metrics.upstream(&"app".into()).retried(AttemptFailure::Connect);
    for status in [101, 200, 308, 401, 404, 412, 507] {
        metrics.admin_answered(AdminOutcome::from_status(status));
    }
    let text = metrics.encode();
    let failures = Reason::ALL.iter().filter(|reason| reason.is_failure());
    for reason in failures {
        assert_eq!(value(&text, &format!("rrlb_failures_total{{reason=\"{}\"}}", reason.as_str())), Some(1.0));
    }
    assert!(!text.contains(r#"reason="ok""#));
    for sample in [
        r#"rrlb_accept_errors_total{error="emfile"}"#,
        r#"rrlb_tls_handshakes_total{listener="0.0.0.0:80",result="ok",resumed="yes"}"#,
        r#"rrlb_retries_total{upstream="app",reason="connect"}"#,
        r#"rrlb_admin_requests_total{outcome="denied"}"#,
        r#"rrlb_admin_requests_total{outcome="failed"}"#,
        r#"rrlb_admin_requests_total{outcome="invalid"}"#,
        r#"rrlb_admin_requests_total{outcome="refused"}"#,
    ] {
        assert_eq!(value(&text, sample), Some(1.0), "{sample}");
    }
}

#[test]
fn a_new_configuration_forgets_what_it_no_longer_names() {
    let metrics = configured();
    metrics.upstream(&"app".into()).finished(0, 200, Duration::ZERO);
    metrics.upstream(&"old".into());
    metrics.retain(|_| true, |name| name.as_str() == "app", |_, _| false);
    let text = metrics.encode();
    assert!(!text.contains("old") && !text.contains("app-1"));
    assert!(metrics.known_backend(&"app".into(), &"app-1".into()).is_none());
    assert!(!metrics.encode().contains("app-1"), "asking does not make it again");
    assert_eq!(value(&text, r#"rrlb_requests_total{upstream="app",status="2xx"}"#), Some(1.0));
}

#[test]
fn answers_of_an_upstream_that_is_gone_are_not_taken_back() {
    let metrics = configured();
    metrics.upstream(&"old".into()).finished(0, 502, Duration::ZERO);
    metrics.upstream(&"app".into()).finished(0, 200, Duration::ZERO);
    let before = metrics.answers();
    metrics.retain(|_| true, |name| name.as_str() == "app", |_, _| true);
    assert_eq!((metrics.answers(), before), ((2, 1), (2, 1)));
    metrics.upstream(&"old".into()).finished(0, 200, Duration::ZERO);
    assert_eq!(metrics.answers(), (3, 1));
}

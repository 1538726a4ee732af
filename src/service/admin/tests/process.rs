//! Reload, upgrade and stop as they reach the process, and its refusals as they reach who asked.

use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    super::operator::OperatorError,
    support::{Bench, Reply, SOON, documented, raw, request, until},
};

#[tokio::test]
async fn what_is_asked_reaches_the_process_with_who_asked() {
    let bench = Bench::start().await;
    let me = bench.me();
    let report = bench.expect(200, "POST", "/v1/config/reload?confirm=1m&abort_if=5xx+%3E+2.5%25", "").await;
    assert_eq!((&report["confirm_within"], &report["changes"][0]["sign"]), (&60.into(), &"~".into()));
    let wanted = "Reload { dry_run: false, confirm: Some(60s), abort_if: Some(AbortIf { share: 250 }) }";
    assert_eq!(bench.operator.last_call(), format!("{wanted} by {me}"));
    bench.expect(200, "POST", "/v1/config/reload?dry_run=true", "").await;
    assert_eq!(
        bench.operator.last_call(),
        format!("Reload {{ dry_run: true, confirm: None, abort_if: None }} by {me}")
    );
    bench.expect(204, "POST", "/v1/config/confirm", "").await;
    assert_eq!(bench.operator.last_call(), format!("confirm by {me}"));
    assert_eq!(bench.expect(200, "POST", "/v1/upgrade", "").await["pid"], 4711);
    assert_eq!(bench.operator.last_call(), format!("Upgrade {{ binary: None, timeout: None }} by {me}"));
    bench.expect(200, "POST", "/v1/upgrade", r#"{"binary":"/opt/rrlb","timeout":"90s"}"#).await;
    let wanted = format!("Upgrade {{ binary: Some(\"/opt/rrlb\"), timeout: Some(90s) }} by {me}");
    assert_eq!(bench.operator.last_call(), wanted);
    bench.expect(202, "POST", "/v1/stop?now=true", "").await;
    until("the process is asked to stop", || bench.operator.last_call() == format!("stop now=true by {me}")).await;
    let config = bench.ask("GET", "/v1/config", "").await;
    assert_eq!(config.body, b"threads: 1\n");
    assert_eq!(bench.expect(200, "GET", "/v1/status", "").await["pid"], 1);
}

#[tokio::test]
async fn what_makes_no_sense_does_not_reach_the_process() {
    let bench = Bench::start().await;
    for (path, body, status, field) in [
        ("/v1/config/reload?abort_if=5xx%3E2%25", "", 422, "abort_if"),
        ("/v1/config/reload?confirm=60s&abort_if=4xx%3E2%25", "", 422, "abort_if"),
        ("/v1/config/reload?confirm=60s&dry_run=true", "", 422, "confirm"),
        ("/v1/config/reload?confirm=60", "", 422, "confirm"),
        ("/v1/config/reload?dryrun=true", "", 400, "dryrun"),
        ("/v1/upgrade", r#"{"binary":"rrlb"}"#, 422, "binary"),
        ("/v1/upgrade", r#"{"timeout":"0s"}"#, 422, "timeout"),
        ("/v1/upgrade", r#"{"path":"/x"}"#, 422, "path"),
        ("/v1/stop?now=1", "", 422, "now"),
    ] {
        let reply = bench.ask("POST", path, body).await;
        assert_eq!((reply.status, reply.problem().1.as_deref()), (status, Some(field)), "{path} {body}");
    }
    assert_eq!(bench.operator.last_call(), "");
}

#[tokio::test]
async fn nobody_on_tcp_says_which_program_is_run() {
    let bench = Bench::start().await;
    let fields = "Authorization: Bearer secret\r\nContent-Type: application/json\r\n";
    let reply = bench.ask_tcp("POST", "/v1/upgrade", fields, r#"{"binary":"/bin/sh"}"#).await;
    assert_eq!((reply.status, reply.problem()), (403, ("not-allowed".to_owned(), Some("binary".to_owned()))));
    assert_eq!(bench.operator.last_call(), "");
    let reply = bench.ask_tcp("POST", "/v1/upgrade", fields, r#"{"timeout":"90s"}"#).await;
    assert_eq!(reply.status, 200);
    assert_eq!(bench.operator.last_call(), "Upgrade { binary: None, timeout: Some(90s) } by token");
}

#[tokio::test]
async fn refusals_of_the_process_are_answered_and_kept() {
    let bench = Bench::start().await;
    let invalid = OperatorError::Invalid {
        human: "error[unknown-key]: …\n".into(),
        json: r#"{"problems":[{"code":"unknown-key"}]}"#.into(),
    };
    for (error, path, status, code) in [
        (OperatorError::Busy("reload"), "/v1/config/reload", 409, "busy"),
        (invalid, "/v1/config/reload", 422, "invalid-configuration"),
        (OperatorError::Reload("cannot bind".into()), "/v1/config/reload", 409, "failed"),
        (OperatorError::NothingToConfirm, "/v1/config/confirm", 409, "nothing-to-confirm"),
        (OperatorError::Upgrade("it crashed".into()), "/v1/upgrade", 409, "failed"),
    ] {
        *bench.operator.refuses.lock().expect("no panic") = Some(error);
        let reply = bench.ask("POST", path, "").await;
        assert_eq!((reply.status, reply.problem().0.as_str()), (status, code));
        if status == 422 {
            assert_eq!(reply.json()["report"], "error[unknown-key]: …\n");
            assert_eq!(reply.json()["problems"]["problems"][0]["code"], "unknown-key");
        }
    }
    let errors = bench.expect(200, "GET", "/v1/errors", "").await;
    let errors = errors["errors"].as_array().expect("a list");
    assert_eq!(errors.len(), 5);
    assert!(
        errors
            .iter()
            .any(|one| one["what"] == "upgrade"
                && one["detail"].as_str().is_some_and(|text| text.contains("it crashed")))
    );
    assert!(errors.iter().any(|one| one["reason"] == "invalid-configuration" && one["who"] == bench.me()));
    let one = bench.expect(200, "GET", "/v1/errors?limit=1", "").await;
    assert_eq!(one["errors"].as_array().map(Vec::len), Some(1));
}

#[tokio::test]
async fn what_was_begun_is_finished_though_nobody_waits_for_the_answer() {
    let bench = Bench::start().await;
    let held = bench.operator.hold.lock().await;
    let mut stream = bench.connect().await;
    stream.write_all(request("POST", "/v1/config/reload", "", "").as_bytes()).await.expect("it is sent");
    until("the reload began", || bench.operator.last_call().starts_with("Reload")).await;
    drop(stream);
    // Others are served meanwhile, and the service has seen by then that the connection is gone.
    bench.expect(200, "GET", "/v1/status", "").await;
    drop(held);
    until("it is done", || bench.operator.finished.load(Ordering::SeqCst) == 1).await;
}

#[tokio::test]
async fn an_answer_under_way_is_sent_before_the_process_leaves() {
    let bench = Bench::start().await;
    let held = bench.operator.hold.lock().await;
    let stream = bench.connect().await;
    let upgrade = tokio::spawn(async move { raw(stream, &request("POST", "/v1/upgrade", "", "")).await });
    until("the upgrade began", || bench.operator.last_call().starts_with("Upgrade")).await;
    let idle = bench.connect().await;
    bench.close.send_replace(true);
    until("no new connections are taken", || std::os::unix::net::UnixStream::connect(&bench.socket).is_err()).await;
    drop(held);
    let reply = upgrade.await.expect("an answer");
    documented("POST", "/v1/upgrade", &reply);
    assert_eq!(reply.status, 200);
    drop(idle);
    tokio::time::timeout(SOON, bench.served).await.expect("it ends").expect("without a panic");
}

#[tokio::test]
async fn who_has_connected_before_the_end_is_answered_and_who_says_nothing_does_not_hold_it_up() {
    let bench = Bench::start().await;
    let (mut asks, mut silent) = (bench.connect().await, bench.connect().await);
    // Connections are accepted in their order: these two are by then.
    bench.expect(200, "GET", "/v1/status", "").await;
    bench.close.send_replace(true);
    // The service sees it before the request is there.
    for _ in 0..100 {
        tokio::task::yield_now().await;
    }
    asks.write_all(b"GET /v1/status HTTP/1.1\r\nHost: a\r\n\r\n").await.expect("it is sent");
    let mut answer = Vec::new();
    tokio::time::timeout(SOON, asks.read_to_end(&mut answer)).await.expect("in time").expect("an answer, not a reset");
    assert_eq!(Reply::parse(&answer).status, 200);
    let mut rest = Vec::new();
    tokio::time::timeout(SOON, silent.read_to_end(&mut rest)).await.expect("it is closed").expect("in peace");
    tokio::time::timeout(SOON, bench.served).await.expect("it ends").expect("no panic");
    assert!(rest.is_empty() && !bench.answering.any());
}

//! Which instance a command speaks with, and what it says where there is none.

use std::{os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use clap::Parser;
use serde_json::json;

use super::{
    super::{Exit, arguments::Arguments},
    fake::{Done, Fake, Reply, run_arguments, run_with},
};

fn confirmed() -> Vec<Reply> {
    vec![Reply::empty(204)]
}

fn text(path: &Path) -> String {
    path.to_str().expect("text").to_owned()
}

fn with_file(dir: &Path, yaml: &str, args: &[&str]) -> Done {
    let file = dir.join("rrlb.yaml");
    std::fs::write(&file, yaml).expect("a file");
    run_with(&[&["-c", &text(&file)], args].concat(), None, false, None)
}

#[test]
fn a_place_is_taken_before_and_after_the_command() {
    let fake = Fake::new(vec![Reply::empty(204), Reply::empty(204)]);
    let socket = text(&fake.socket());
    for args in [["--socket", &socket, "confirm"], ["confirm", "--socket", &socket]] {
        assert_eq!(run_with(&args, None, false, None).exit, Exit::Ok);
    }
}

#[test]
fn a_file_leads_to_its_socket_whatever_else_is_wrong_with_it() {
    for yaml in [
        "admin: { socket: admin.sock }\n",
        "version: 99\nno_such_key: 1\nadmin:\n  socket: admin.sock\n",
        "upstreams: { app: { backends: [ }\nadmin: { socket: admin.sock }\n",
        // Beside the upgrade socket, by default.
        "upgrade_sock: upgrade.sock\nadmin: {}\n",
    ] {
        let fake = Fake::new(confirmed());
        let done = with_file(fake.dir.path(), yaml, &["confirm"]);
        assert_eq!(done.exit, Exit::Ok, "{yaml}: {}", done.err);
    }
}

#[test]
fn the_environment_names_the_socket_where_nothing_else_does() {
    let fake = Fake::new(confirmed());
    let arguments = Arguments::try_parse_from(["rrlb", "confirm"]).expect("arguments");
    assert_eq!(run_arguments(&arguments, false, None, Some(fake.socket())).exit, Exit::Ok);
    // A file that does not say anything about it.
    let fake = Fake::new(confirmed());
    let arguments = Arguments::try_parse_from(["rrlb", "-c", "/nonexistent/rrlb.yaml", "confirm"]).expect("arguments");
    assert_eq!(run_arguments(&arguments, false, None, Some(fake.socket())).exit, Exit::Ok);
}

#[test]
fn without_an_instance_the_places_that_were_tried_are_named() {
    let dir = tempfile::tempdir().expect("a folder");
    let missing = text(&dir.path().join("none.sock"));
    let done = run_with(&["--socket", &missing, "status"], None, false, None);
    assert_eq!(done.exit, Exit::NoInstance);
    assert!(done.err.contains(&format!("no running instance at {missing}: there is no such socket")), "{}", done.err);
    assert!(done.err.contains("help: start one with"), "{}", done.err);

    let dead = dir.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).expect("bind"));
    let done = run_with(&["--socket", &text(&dead), "status"], None, false, None);
    assert_eq!(done.exit, Exit::NoInstance);
    assert!(done.err.contains("nobody listens"), "{}", done.err);

    let done = with_file(dir.path(), "version: 1\nupgrade_sock: u.sock\n", &["status"]);
    assert_eq!(done.exit, Exit::NoInstance);
    assert!(done.err.contains("has no `admin:`"), "{}", done.err);
}

#[test]
fn config_effective_without_an_instance_is_of_the_file() {
    let dir = tempfile::tempdir().expect("a folder");
    let done = with_file(dir.path(), "admin: { socket: a.sock }\n", &["config"]);
    assert_eq!(done.exit, Exit::NoInstance, "{}", done.err);
    let done = with_file(dir.path(), "no_such_key: 1\nupgrade_sock: u.sock\n", &["config", "--effective"]);
    assert_eq!(done.exit, Exit::InvalidConfiguration, "{}", done.err);
    assert!(done.err.contains("no_such_key"), "{}", done.err);
}

#[test]
fn places_that_contradict_each_other_are_a_usage_error() {
    let cases: &[(&[&str], &str)] = &[
        (&["--socket", "a", "--address", "http://127.0.0.1:1"], "two instances"),
        (&["--token-file", "a"], "belongs to --address"),
        (&["--ca", "a"], "belongs to --address"),
        (&["--address", "http://127.0.0.1:1"], "--token-file"),
        (&["--address", "127.0.0.1:1", "--token-file", "/dev/null"], "http://127.0.0.1:PORT"),
        (&["--address", "http://127.0.0.1:1/x", "--token-file", "/dev/null"], "http://127.0.0.1:PORT"),
        (&["--address", "http://192.0.2.1:1", "--token-file", "/dev/null"], "in the clear"),
        (&["--address", "http://127.0.0.1:1", "--token-file", "/dev/null"], "one word"),
        (&["--address", "http://127.0.0.1:1", "--token-file", "/nonexistent"], "no such file"),
        (&["--address", "https://a.test:1", "--token-file", "/dev/null", "--ca", "/dev/null"], "no certificate"),
    ];
    for (args, part) in cases {
        let done = run_with(&[args, &["status"][..]].concat(), None, false, None);
        assert_eq!(done.exit, Exit::Usage, "{args:?}: {}", done.err);
        assert!(done.err.contains(part), "{args:?}: {}", done.err);
    }
}

#[test]
fn over_tcp_the_token_goes_along() {
    let (fake, address) = Fake::tcp(vec![Reply::empty(204), Reply::problem(401, "no such token", "", json!({}))], None);
    let token = fake.dir.path().join("token");
    std::fs::write(&token, "s3cret\n").expect("a file");
    let url = format!("http://{address}");
    let args = ["confirm", "--address", &url, "--token-file", &text(&token)];
    assert_eq!(run_with(&args, None, false, None).exit, Exit::Ok);
    assert_eq!(fake.seen()[0].headers["authorization"], "Bearer s3cret");
    assert_eq!(fake.seen()[0].headers["host"], address.to_string());
    let done = run_with(&args, None, false, None);
    assert_eq!((done.exit, done.err.as_str()), (Exit::Refused, "error: no such token\n"));
}

#[test]
fn over_tls_only_a_trusted_certificate_gets_the_token() {
    let own = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let key = rustls::pki_types::PrivateKeyDer::try_from(own.signing_key.serialize_der()).expect("a key");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .expect("a certificate and its key");
    let (fake, address) = Fake::tcp(confirmed(), Some(Arc::new(config).into()));
    let (token, ca, other) =
        (fake.dir.path().join("token"), fake.dir.path().join("ca.pem"), fake.dir.path().join("other.pem"));
    std::fs::write(&token, "s3cret").expect("a file");
    std::fs::write(&ca, own.cert.pem()).expect("a file");
    let stranger = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    std::fs::write(&other, stranger.cert.pem()).expect("a file");
    let url = format!("https://{address}");
    let confirm = |ca: &Path| {
        run_with(&["confirm", "--address", &url, "--token-file", &text(&token), "--ca", &text(ca)], None, false, None)
    };
    let done = confirm(&other);
    assert_eq!(done.exit, Exit::Refused, "{}", done.err);
    assert!(done.err.contains("--ca"), "{}", done.err);
    assert!(fake.seen().is_empty(), "asked before the certificate was checked");
    let done = confirm(&ca);
    assert_eq!(done.exit, Exit::Ok, "{}", done.err);
    assert_eq!(fake.seen()[0].headers["authorization"], "Bearer s3cret");
}

#[test]
fn a_socket_that_one_may_not_open_is_a_refusal_with_the_remedy() {
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } == 0 {
        return; // root may open everything
    }
    let fake = Fake::new(confirmed());
    std::fs::set_permissions(fake.socket(), std::fs::Permissions::from_mode(0o000)).expect("mode");
    let done = fake.run(&["confirm"]);
    assert_eq!(done.exit, Exit::Refused);
    assert!(done.err.contains("permission denied; run as"), "{}", done.err);
}

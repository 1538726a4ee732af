//! The command line: flags, exit codes, and one clear line for what can go wrong at a start.

use std::{
    os::unix::{fs::PermissionsExt, process::CommandExt},
    time::Duration,
};

use crate::support::{
    address,
    origin::Origin,
    proxy::Config,
    run::{self, Finished, rrlb},
    tls::{Ca, self_signed},
};

const QUICK: Duration = Duration::from_secs(5);

fn small() -> Config {
    Config::new("upstreams: { app: { backends: [127.0.0.1:9] } }")
}

/// One line that begins with `error` (beside the count at the end), and it says all of this.
fn one_error_with(finished: &Finished, parts: &[&str]) {
    let count = |line: &str| line.ends_with(" 1 error") || line.contains(" 1 error,");
    let errors: Vec<_> = finished.stderr.lines().filter(|line| line.starts_with("error") && !count(line)).collect();
    assert_eq!(errors.len(), 1, "not one line that begins with `error`: {finished:#?}");
    for part in parts {
        assert!(finished.stderr.contains(part), "nothing about {part:?}: {finished:#?}");
    }
}

#[tokio::test]
async fn help_names_every_flag_and_command() {
    let help = rrlb(&["--help"]).await.ended_with(0).stdout;
    for word in ["--conf", "--test", "--upgrade", "--daemon", "check", "demo", "version"] {
        assert!(help.contains(word), "{word} is missing in {help}");
    }
    for command in ["check", "demo", "version"] {
        rrlb(&[command, "--help"]).await.ended_with(0);
    }
}

#[tokio::test]
async fn version_is_the_packages() {
    for args in [["version"], ["--version"]] {
        let stdout = rrlb(&args).await.ended_with(0).stdout;
        assert!(stdout.contains(env!("CARGO_PKG_VERSION")), "{stdout}");
    }
}

#[tokio::test]
async fn an_unknown_flag_or_command_is_a_usage_error() {
    for args in [["--no-such-flag"], ["-x"], ["no-such-command"]] {
        let finished = rrlb(&args).await.ended_with(2);
        assert!(finished.stderr.contains(args[0]), "{finished:#?}");
        assert!(finished.stdout.is_empty(), "{finished:#?}");
    }
}

#[tokio::test]
async fn a_missing_file_is_named() {
    for args in [&["-c", "/nonexistent/rrlb.yaml"][..], &["-t", "-c", "/nonexistent/rrlb.yaml"]] {
        let finished = rrlb(args).await.ended_with(1);
        one_error_with(&finished, &["/nonexistent/rrlb.yaml"]);
    }
}

#[tokio::test]
async fn a_good_file_passes_the_check_and_nothing_is_bound() {
    let config = small();
    let taken = std::net::TcpListener::bind(config.listen).expect("bind");
    for args in [&["-t"][..], &["--test"], &["check"], &["check", "--format", "json"]] {
        config.run(args).await.ended_with(0);
    }
    drop(taken);
}

#[tokio::test]
async fn a_check_reports_all_problems_in_one_run_in_every_format() {
    let config = Config::new("thread: 3\nupstreams: { app: { backends: [127.0.0.1:9] } }\nroutes: [{ upstream: apq }]");
    let human = config.run(&["check"]).await.ended_with(1);
    assert!(human.stderr.contains("thread") && human.stderr.contains("apq"), "{human:#?}");
    assert!(human.stderr.contains("--> "), "{human:#?}");
    let short = config.run(&["check", "--format", "short"]).await.ended_with(1);
    let text = short.stdout.clone() + &short.stderr;
    assert!(text.contains("thread") && text.contains("apq") && !text.contains("--> "), "{short:#?}");
    let json = config.run(&["check", "--format", "json"]).await.ended_with(1);
    let values: Vec<serde_json::Value> =
        serde_json::Deserializer::from_str(&json.stdout).into_iter().collect::<Result<_, _>>().expect("JSON");
    let text = serde_json::to_string(&values).expect("JSON");
    assert!(text.contains("thread") && text.contains("apq") && text.contains("line"), "{text}");
}

#[tokio::test]
async fn an_invalid_file_does_not_start() {
    let finished = Config::new("upstreams: { app: { backends: [] } }").run(&[]).await.ended_with(1);
    assert!(finished.stderr.contains("backends"), "{finished:#?}");
}

#[tokio::test]
async fn an_unreadable_key_is_named() {
    let yaml = "
        listeners: [{ address: <listen>, tls: { certificates: [main] } }]
        certificates: { main: { cert: <dir>/main.pem, key: <dir>/folder.key } }
        upstreams: { app: { backends: [127.0.0.1:9] } }";
    let config = Config::new(yaml);
    self_signed(&["a.test"]).write(config.dir(), "main");
    std::fs::create_dir(config.dir().join("folder.key")).expect("folder");
    one_error_with(&config.run(&[]).await.ended_with(1), &["folder.key"]);
}

#[tokio::test]
async fn a_key_of_another_certificate_is_refused() {
    let yaml = "
        listeners: [{ address: <listen>, tls: { certificates: [main] } }]
        certificates: { main: { cert: <dir>/main.pem, key: <dir>/other.key } }
        upstreams: { app: { backends: [127.0.0.1:9] } }";
    let (config, ca) = (Config::new(yaml), Ca::new());
    ca.issue(&["a.test"]).write(config.dir(), "main");
    ca.issue(&["a.test"]).write(config.dir(), "other");
    let finished = config.run(&[]).await.ended_with(1);
    one_error_with(&finished, &["other.key"]);
    assert!(!finished.stderr.contains("PRIVATE KEY"), "{finished:#?}");
}

#[tokio::test]
async fn a_used_port_ends_the_start_at_once_with_the_remedy() {
    let config = small();
    let taken = std::net::TcpListener::bind(config.listen).expect("bind");
    let finished = config.run(&[]).await.ended_with(6);
    one_error_with(&finished, &[&config.listen.to_string(), "in use"]);
    assert!(finished.took < QUICK, "{finished:#?}");
    drop(taken);
}

#[tokio::test]
async fn a_used_metrics_port_ends_the_start_too() {
    let config = small();
    let taken = std::net::TcpListener::bind(config.metrics).expect("bind");
    one_error_with(&config.run(&[]).await.ended_with(6), &[&config.metrics.to_string()]);
    drop(taken);
}

#[tokio::test]
async fn a_socket_of_a_running_proxy_is_not_taken_away() {
    let yaml = "
        listeners: [{ address: \"unix:<dir>/http.sock\" }]
        upstreams: { app: { backends: [127.0.0.1:9] } }";
    let config = Config::new(yaml);
    let _taken = std::os::unix::net::UnixListener::bind(config.dir().join("http.sock")).expect("bind");
    one_error_with(&config.run(&[]).await.ended_with(6), &["http.sock"]);
}

#[tokio::test]
async fn a_stale_socket_file_does_not_stop_the_start() {
    let origin = Origin::echo("a").await;
    let config = Config::before(&[&origin], "listeners: [{ address: \"unix:<dir>/http.sock\" }]");
    let path = config.dir().join("http.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
    let _proxy = config.start().await;
    let reply = crate::support::http1::Client::unix(&path).await.get("/").await;
    assert_eq!(reply.origin(), "a");
}

#[tokio::test]
async fn an_address_of_no_interface_ends_the_start() {
    let yaml = "listeners: [{ address: 192.0.2.1:8080 }]\nupstreams: { app: { backends: [127.0.0.1:9] } }";
    one_error_with(&Config::new(yaml).run(&[]).await.ended_with(6), &["192.0.2.1:8080"]);
}

#[tokio::test]
async fn a_privileged_port_without_the_right_ends_the_start_with_the_remedy() {
    let first_free = run::read("/proc/sys/net/ipv4/ip_unprivileged_port_start".as_ref());
    if first_free.trim().parse::<u16>().is_ok_and(|port| port <= 81) {
        return; // this machine has no privileged ports
    }
    let (ip, dir) = (address::unused().ip(), tempfile::tempdir().expect("temporary folder"));
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).expect("mode");
    let path = dir.path().join("rrlb.yaml");
    let yaml = format!(
        "version: 1\nlisteners: [{{ address: \"{ip}:81\" }}]\nupstreams: {{ a: {{ backends: [127.0.0.1:9] }} }}\n"
    );
    std::fs::write(&path, yaml).expect("write the configuration");
    let binary = run::command().get_program().to_owned();
    let mut command = run::command();
    command.arg("-c").arg(&path);
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } == 0 {
        let mut trial = std::process::Command::new(binary);
        if trial.arg("version").uid(65534).gid(65534).output().is_err() {
            return; // the binary is where another user cannot reach it
        }
        command.uid(65534).gid(65534);
    }
    let finished = run::finish(command).await.ended_with(6);
    one_error_with(&finished, &[":81"]);
    let lower = finished.stderr.to_lowercase();
    assert!(lower.contains("cap_net_bind_service") || lower.contains("root"), "no remedy: {finished:#?}");
}

#[tokio::test]
async fn an_upgrade_of_nothing_ends_with_6() {
    let finished = small().run(&["-u"]).await.ended_with(6);
    assert!(finished.took < Duration::from_secs(15), "{finished:#?}");
    assert!(finished.stderr.contains("upgrade.sock"), "{finished:#?}");
}

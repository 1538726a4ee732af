//! `rrlb demo`: three origins and the proxy in one process, something to try, a clean end.

use std::{collections::BTreeSet, fs::File, time::Duration};

use crate::support::{
    http1,
    run::{self, Reaped},
    wait_until,
};

/// One test, because the demo's ports are fixed.
#[tokio::test]
async fn the_demo_answers_from_three_origins_and_ends_cleanly() {
    let folder = tempfile::tempdir().expect("temporary folder");
    let (out, err) = (folder.path().join("stdout"), folder.path().join("stderr"));
    let mut command = run::command();
    command.arg("demo").current_dir(folder.path());
    command.stdout(File::create(&out).expect("file")).stderr(File::create(&err).expect("file"));
    let mut child = Reaped(command.spawn().expect("start the binary"));
    let said = || run::read(&out) + &run::read(&err);
    wait_until("a line to try", || {
        let ended = child.0.try_wait().expect("wait for the child");
        assert!(ended.is_none(), "the demo ended: {ended:?}\n{}", said());
        said().contains("curl http://127.0.0.1:")
    })
    .await;
    let text = said();
    let line = text.lines().find_map(|line| line.split("curl http://").nth(1)).expect("the line to try");
    let at: std::net::SocketAddr = line.split('/').next().unwrap_or("").parse().expect("an address");
    wait_until("the demo to accept", || std::net::TcpStream::connect(at).is_ok()).await;
    let mut bodies = BTreeSet::new();
    for _ in 0..6 {
        let reply = http1::get_once(at, "/").await;
        assert_eq!(reply.status(), 200, "{}", said());
        bodies.insert(reply.text());
    }
    assert_eq!(bodies.len(), 3, "{bodies:?}");
    for port in ["9001", "9002", "9003"] {
        assert!(bodies.iter().any(|body| body.contains(port)), "no origin is named {port}: {bodies:?}");
    }
    wait_until("the terminal to show which backend answered", || {
        ["9001", "9002", "9003"].iter().all(|port| said().matches(port).count() > text.matches(port).count())
    })
    .await;

    let second = run::rrlb(&["demo"]).await.ended_with(6);
    assert!(second.took < Duration::from_secs(5), "{second:#?}");

    let pid = i32::try_from(child.0.id()).expect("a pid");
    // SAFETY: a plain system call on our own child, which has not been waited for.
    unsafe { libc::kill(pid, libc::SIGINT) };
    let mut code = None;
    wait_until("the demo to end", || {
        code = child.0.try_wait().expect("wait for the child");
        code.is_some()
    })
    .await;
    assert_eq!(code.and_then(|status| status.code()), Some(0), "{}", said());
    assert!(!said().contains("panicked"), "{}", said());
}

//! What systemd's journal is told of how grave a line is. The journal is whatever `JOURNAL_STREAM` names: here a file.

use std::{os::unix::fs::MetadataExt, path::Path, process::Command};

use crate::support::{
    admin::Api,
    origin::Origin,
    proxy::{Config, Proxy},
    run,
};

fn yaml(origin: &Origin) -> String {
    format!(
        "admin: {{ socket: <dir>/admin.sock }}\nupstreams: {{ app: {{ backends: [{{ id: a, address: \"{}\" }}] }} }}\n",
        origin.address
    )
}

/// Says that the log of the first run in this folder is the journal's.
fn journal(command: &mut Command, folder: &Path) {
    let log = std::fs::metadata(folder.join("stderr.0.log")).expect("a log");
    command.env("JOURNAL_STREAM", format!("{}:{}", log.dev(), log.ino()));
}

async fn under_systemd(config: Config) -> Proxy {
    let folder = config.dir().to_owned();
    let mut proxy = config.spawn_with(&[], |command| journal(command, &folder));
    proxy.ready().await;
    proxy
}

#[tokio::test]
async fn lines_to_the_journal_say_how_grave_they_are_also_those_of_a_successor() {
    let origin = Origin::echo("one").await;
    let mut proxy = under_systemd(Config::new(&yaml(&origin))).await;
    let socket = proxy.config.dir().join("admin.sock");
    let socket = socket.to_str().expect("text");
    proxy.config.write_text("version: 1\nlisteners: 7\nroutes: 8\n");
    run::rrlb(&["--socket", socket, "reload"]).await.ended_with(1);
    proxy.logged("config.reload_failed").await;
    // A successor ends for that file: the line it ends by is as grave, and whoever asked reads it without a mark.
    let failed = run::rrlb(&["--socket", socket, "upgrade"]).await.ended_with(4);
    assert!(failed.stderr.contains("listeners") && !failed.stderr.contains("<3>"), "{failed:?}");
    proxy.config.instead(&yaml(&origin)).write();
    run::rrlb(&["--socket", socket, "upgrade"]).await.ended_with(0);
    proxy.logged("process.took_over").await;
    assert!(proxy.ended().await.success());
    let log = proxy.stderr();
    for line in log.lines() {
        let mark = match line {
            _ if line.contains(" ERROR] ") => "<3>[",
            _ if line.contains(" WARN ] ") => "<4>[",
            _ if line.contains(" INFO ] ") => "<6>[",
            // What a report or an error says in more lines.
            _ => "<",
        };
        assert!(line.starts_with(mark), "{line}\n{log}");
    }
    for grave in ["<3>[", "<4>[", "<6>["] {
        assert!(log.lines().any(|line| line.starts_with(grave)), "{grave}\n{log}");
    }
    assert!(log.lines().any(|line| line.starts_with("<3>error")), "why the successor ended: {log}");
    run::rrlb(&["--socket", socket, "stop"]).await.ended_with(0);
    let api = Api::of(&proxy);
    crate::support::eventually("the successor to leave", async || {
        api.try_ask("GET", "/v1/status", serde_json::Value::Null).await.is_err()
    })
    .await;
}

#[tokio::test]
async fn lines_to_anything_else_have_no_mark() {
    let origin = Origin::echo("one").await;
    let other = Config::new(&yaml(&origin));
    let folder = other.dir().to_owned();
    std::fs::write(folder.join("journal"), "").expect("writes");
    let journal = std::fs::metadata(folder.join("journal")).expect("a file");
    let mut proxy = other.spawn_with(&[], |command| {
        command.env("JOURNAL_STREAM", format!("{}:{}", journal.dev(), journal.ino()));
    });
    proxy.ready().await;
    proxy.logged("serving on").await;
    let log = proxy.stderr();
    assert!(log.lines().all(|line| line.starts_with('[')), "{log}");
}

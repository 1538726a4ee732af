//! Commit-confirmed: a reload that does harm goes back by itself, and says so wherever somebody may look.

use crate::support::{
    admin::Api,
    eventually,
    origin::{Origin, Peer},
    proxy::Config,
    run,
};

async fn broken(mut peer: Peer) {
    while peer.request().await.is_some() {
        peer.reply(500, "", "broken").await;
    }
}

fn yaml(origin: &Origin) -> String {
    format!(
        "admin: {{ socket: <dir>/admin.sock }}\nupstreams: {{ app: {{ backends: [{{ id: a, address: \"{}\" }}] }} }}\n",
        origin.address
    )
}

#[tokio::test]
async fn a_reload_that_brings_errors_goes_back_before_its_time() {
    let (good, bad) = (Origin::echo("good").await, Origin::script("bad", broken).await);
    let proxy = Config::new(&yaml(&good)).start().await;
    let (api, socket) = (Api::of(&proxy), proxy.config.dir().join("admin.sock"));
    for _ in 0..30 {
        assert_eq!(proxy.get("/").await.status(), 200);
    }
    proxy.config.instead(&yaml(&bad)).write();
    let socket = socket.to_str().expect("text");
    let words = ["--socket", socket, "reload", "--confirm", "600s", "--abort-if", "5xx > 2%"];
    let reloaded = run::rrlb(&words).await.ended_with(0);
    assert!(reloaded.stdout.contains("at once if 5xx > 2%"), "{reloaded:?}");
    assert_eq!(proxy.get("/").await.status(), 500, "the new configuration runs");
    // It is judged when there were enough answers, and long before the ten minutes are over.
    let mut errors = 1;
    eventually("the reload to be taken back", async || {
        let status = proxy.get("/").await.status();
        errors += usize::from(status == 500);
        status == 200
    })
    .await;
    assert!(errors >= 20, "it was judged by {errors} answers");
    proxy.logged("config.reverted").await;
    let line = proxy.stderr().lines().find(|line| line.contains("config.reverted")).expect("a line").to_owned();
    assert!(
        line.contains("configuration 2 taken back") && line.contains("5xx") && line.contains("allowed 2.00 %"),
        "{line}"
    );
    let status = api.get("/v1/status").await;
    let told = status["config"]["last_error"].as_str().unwrap_or_default();
    assert!(told.contains("configuration 2 was taken back") && told.contains("5xx"), "{status}");
    assert_eq!(status["config"].get("confirm_within"), None, "nothing waits any more: {status}");
    let confirmed = run::rrlb(&["--socket", socket, "confirm"]).await.ended_with(4);
    assert!(confirmed.stderr.contains("no reload waits"), "{confirmed:?}");
    for _ in 0..10 {
        assert_eq!(proxy.get("/").await.origin(), "good");
    }
}

#[tokio::test]
async fn a_start_with_a_file_that_nobody_confirmed_says_so_until_somebody_does() {
    let (one, two) = (Origin::echo("one").await, Origin::echo("two").await);
    let mut proxy = Config::new(&yaml(&one)).start().await;
    let socket = proxy.config.dir().join("admin.sock");
    let socket = socket.to_str().expect("text");
    proxy.config.instead(&yaml(&two)).write();
    run::rrlb(&["--socket", socket, "reload", "--confirm", "600s"]).await.ended_with(0);
    for _ in 0..2 {
        proxy.signal(libc::SIGKILL);
        proxy.ended().await;
        proxy = proxy.config.instead(&yaml(&two)).start().await;
        proxy.logged("nobody has confirmed it").await;
        let status = Api::of(&proxy).get("/v1/status").await;
        let told = status["config"]["last_error"].as_str().unwrap_or_default();
        assert!(told.contains("nobody has confirmed it") && told.contains("600 s"), "{status}");
    }
    run::rrlb(&["--socket", socket, "confirm"]).await.ended_with(0);
    proxy.signal(libc::SIGKILL);
    proxy.ended().await;
    let proxy = proxy.config.instead(&yaml(&two)).start().await;
    let status = Api::of(&proxy).get("/v1/status").await;
    assert_eq!(status["config"].get("last_error"), None, "{status}");
    assert!(!proxy.stderr().contains("nobody has confirmed it"), "{}", proxy.stderr());
}

//! Commit-confirmed: a reload that does harm goes back by itself, and says so wherever somebody may look.

use std::{os::unix::fs::PermissionsExt, path::PathBuf, time::Duration};

use serde_json::{Value, json};

use crate::support::{
    address,
    admin::Api,
    eventually,
    origin::{Origin, Peer},
    proxy::{Config, Proxy},
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

/// A proxy whose file `two` was loaded for `confirm`, where `one` was before; and its admin socket.
async fn tried(one: &str, two: &str, confirm: &[&str]) -> (Proxy, String) {
    let proxy = Config::new(one).start().await;
    let socket = proxy.config.dir().join("admin.sock").to_str().expect("text").to_owned();
    proxy.config.instead(two).write();
    run::rrlb(&[&["--socket", &socket, "reload"], confirm].concat()).await.ended_with(0);
    (proxy, socket)
}

/// Kills the process, and gives the configuration that starts another with this file.
async fn killed(mut proxy: Proxy, file: &str) -> Config {
    proxy.signal(libc::SIGKILL);
    proxy.ended().await;
    proxy.config.instead(file)
}

/// Where the note is of a proxy without a state file.
fn note(config: &Config) -> PathBuf {
    config.dir().join("up/upgrade.sock.unconfirmed")
}

/// Has the note be of a reload so long ago.
fn age(config: &Config, by: Duration) {
    let mut noted: Value = serde_json::from_slice(&std::fs::read(note(config)).expect("a note")).expect("JSON");
    let at = noted["at"].as_u64().expect("a time") - u64::try_from(by.as_millis()).expect("not as long");
    noted["at"] = at.into();
    std::fs::write(note(config), noted.to_string()).expect("writes");
}

const LONG: [&str; 2] = ["--confirm", "600s"];
const TEN_MINUTES: Duration = Duration::from_secs(600);

#[tokio::test]
async fn a_start_before_the_deadline_goes_on_counting_and_can_be_confirmed() {
    let (one, two) = (Origin::echo("one").await, Origin::echo("two").await);
    let (mut proxy, socket) = tried(&yaml(&one), &yaml(&two), &LONG).await;
    let mode = std::fs::metadata(note(&proxy.config)).expect("a note").permissions().mode() & 0o777;
    assert_eq!(mode, 0o600, "a configuration may hold secrets");
    for _ in 0..2 {
        proxy = killed(proxy, &yaml(&two)).await.start().await;
        proxy.logged("config.unconfirmed").await;
        assert_eq!(proxy.get("/").await.origin(), "two");
        let status = Api::of(&proxy).get("/v1/status").await;
        assert!(status["config"]["confirm_within"].as_u64().is_some_and(|left| (1..=600).contains(&left)), "{status}");
        assert_eq!(status["config"]["runs"], "file");
        // As before: nobody may take its place until it is decided.
        let refused = run::rrlb(&["--socket", &socket, "upgrade"]).await.ended_with(4);
        assert!(refused.stderr.contains("waits for its confirmation"), "{refused:?}");
        run::rrlb(&["--socket", &socket, "reload"]).await.ended_with(4);
    }
    run::rrlb(&["--socket", &socket, "confirm"]).await.ended_with(0);
    assert!(!note(&proxy.config).exists());
    let proxy = killed(proxy, &yaml(&two)).await.start().await;
    let status = Api::of(&proxy).get("/v1/status").await;
    assert_eq!((status["config"].get("confirm_within"), status["config"].get("last_error")), (None, None), "{status}");
    assert!(!proxy.stderr().contains("config.unconfirmed"), "{}", proxy.stderr());
}

#[tokio::test]
async fn a_start_before_the_deadline_goes_back_at_it() {
    let (one, two) = (Origin::echo("one").await, Origin::echo("two").await);
    let (proxy, socket) = tried(&yaml(&one), &yaml(&two), &LONG).await;
    let config = killed(proxy, &yaml(&two)).await;
    age(&config, TEN_MINUTES - Duration::from_secs(5));
    let proxy = config.start().await;
    proxy.logged("config.unconfirmed").await;
    eventually("the file to be taken back", async || proxy.get("/").await.origin() == "one").await;
    proxy.logged("config.reverted").await;
    // What was taken back stays so, whatever the file says.
    let proxy = killed(proxy, &yaml(&two)).await.start().await;
    assert_eq!(proxy.get("/").await.origin(), "one");
    let status = Api::of(&proxy).get("/v1/status").await;
    assert_eq!(status["config"]["runs"], "last_confirmed", "{status}");
    run::rrlb(&["--socket", &socket, "confirm"]).await.ended_with(4);
}

#[tokio::test]
async fn a_start_after_the_deadline_runs_with_the_last_confirmed_configuration_and_says_so() {
    let (one, two) = (Origin::echo("one").await, Origin::echo("two").await);
    let (proxy, socket) = tried(&yaml(&one), &yaml(&two), &LONG).await;
    let file = std::fs::read(proxy.config.dir().join("rrlb.yaml")).expect("a file");
    let config = killed(proxy, &yaml(&two)).await;
    age(&config, TEN_MINUTES);
    let mut proxy = config.start().await;
    proxy.logged("config.reverted").await;
    // Also the process that takes over does, and is no more silent about it.
    for upgraded in [false, true] {
        if upgraded {
            proxy = proxy.upgrade().await;
        }
        assert_eq!(proxy.get("/").await.origin(), "one");
        let told = |line: &str| {
            assert!(line.contains("last confirmed configuration") && line.contains("rrlb.yaml"), "{line}");
        };
        let status = run::rrlb(&["--socket", &socket, "status"]).await.ended_with(0);
        told(&status.stdout);
        assert!(status.stdout.contains("not confirmed within 600s"), "{status:?}");
        let diff = run::rrlb(&["--socket", &socket, "diff"]).await.ended_with(0);
        told(&diff.stderr);
        assert!(diff.stdout.contains("upstreams.app.backends"), "{diff:?}");
        let effective = run::rrlb(&["--socket", &socket, "config", "--effective"]).await.ended_with(0);
        told(effective.stdout.lines().next().unwrap_or_default());
        assert!(effective.stdout.contains(&one.address.to_string()), "{effective:?}");
        assert!(proxy.stderr().contains("ERROR] this start runs with the last confirmed"), "{}", proxy.stderr());
        let late = run::rrlb(&["--socket", &socket, "confirm"]).await.ended_with(4);
        assert!(late.stderr.contains("taken back") && late.stderr.contains("rrlb reload"), "{late:?}");
    }
    assert_eq!(std::fs::read(proxy.config.dir().join("rrlb.yaml")).expect("a file"), file, "it is the user's");
    run::rrlb(&["--socket", &socket, "reload"]).await.ended_with(0);
    assert_eq!(proxy.get("/").await.origin(), "two");
    assert!(!note(&proxy.config).exists());
    let proxy = killed(proxy, &yaml(&two)).await.start().await;
    assert_eq!(proxy.get("/").await.origin(), "two");
}

#[tokio::test]
async fn a_file_that_was_changed_meanwhile_counts() {
    let (one, two, three) = (Origin::echo("one").await, Origin::echo("two").await, Origin::echo("three").await);
    let (proxy, _) = tried(&yaml(&one), &yaml(&two), &LONG).await;
    let config = killed(proxy, &yaml(&three)).await;
    age(&config, TEN_MINUTES);
    let proxy = config.start().await;
    assert_eq!(proxy.get("/").await.origin(), "three");
    let status = Api::of(&proxy).get("/v1/status").await;
    assert_eq!((&status["config"]["runs"], status["config"].get("last_error")), (&"file".into(), None), "{status}");
    eventually("the note to be gone", async || !note(&proxy.config).exists()).await;
    // Not even the file that it was about is taken back any more.
    let proxy = killed(proxy, &yaml(&two)).await.start().await;
    assert_eq!(proxy.get("/").await.origin(), "two");
}

#[tokio::test]
async fn where_what_was_confirmed_is_not_valid_any_more_the_file_goes_on_until_it_is_kept() {
    let (one, two) = (Origin::echo("one").await, Origin::echo("two").await);
    let admin = "admin.sock, address: \"127.0.0.1:<port>\", token_file: <dir>/token }";
    let start = Config::new(&yaml(&one).replace("admin.sock }", admin)).put("port", address::unused().port());
    let token = start.dir().join("token");
    std::fs::write(&token, "0123456789abcdef0123456789abcdef").expect("writes");
    std::fs::set_permissions(&token, std::fs::Permissions::from_mode(0o600)).expect("a mode");
    let proxy = start.start().await;
    let socket = proxy.config.dir().join("admin.sock").to_str().expect("text").to_owned();
    proxy.config.instead(&yaml(&two)).write();
    run::rrlb(&["--socket", &socket, "reload", "--confirm", "600s"]).await.ended_with(0);
    let config = killed(proxy, &yaml(&two)).await;
    age(&config, TEN_MINUTES);
    std::fs::remove_file(&token).expect("removes");
    let proxy = config.start().await;
    assert_eq!(proxy.get("/").await.origin(), "two");
    assert!(proxy.stderr().contains("ERROR]") && proxy.stderr().contains("cannot be taken back"), "{}", proxy.stderr());
    let status = Api::of(&proxy).get("/v1/status").await;
    let told = status["config"]["last_error"].as_str().unwrap_or_default();
    assert!(told.contains("is not valid any more") && told.contains("token"), "{status}");
    run::rrlb(&["--socket", &socket, "confirm"]).await.ended_with(0);
    assert!(!note(&proxy.config).exists());
    let status = Api::of(&proxy).get("/v1/status").await;
    assert_eq!(status["config"].get("last_error"), None, "{status}");
}

#[tokio::test]
async fn a_file_that_is_not_valid_any_more_goes_back_before_its_time() {
    let (one, two) = (Origin::echo("one").await, Origin::echo("two").await);
    let config = Config::new(&yaml(&one));
    let list = config.dir().join("users");
    let hash = bcrypt::hash("secret", 4).expect("a hash");
    std::fs::write(&list, format!("user:{hash}\n")).expect("writes");
    std::fs::set_permissions(&list, std::fs::Permissions::from_mode(0o600)).expect("a mode");
    let proxy = config.start().await;
    let socket = proxy.config.dir().join("admin.sock").to_str().expect("text").to_owned();
    let guarded = yaml(&two) + "routes: [{ upstream: app, basic_auth: { file: <dir>/users } }]\n";
    proxy.config.instead(&guarded).write();
    run::rrlb(&["--socket", &socket, "reload", "--confirm", "600s"]).await.ended_with(0);
    let config = killed(proxy, &guarded).await;
    std::fs::remove_file(&list).expect("removes");
    let proxy = config.start().await;
    assert_eq!(proxy.get("/").await.origin(), "one", "it is there for its clients");
    let status = Api::of(&proxy).get("/v1/status").await;
    let told = status["config"]["last_error"].as_str().unwrap_or_default();
    assert!(told.contains("it is not valid any more") && told.contains("users"), "{status}");
}

#[tokio::test]
async fn a_note_that_is_torn_is_kept_aside_and_the_file_counts() {
    let (one, two) = (Origin::echo("one").await, Origin::echo("two").await);
    let (proxy, socket) = tried(&yaml(&one), &yaml(&two), &LONG).await;
    let config = killed(proxy, &yaml(&two)).await;
    let text = std::fs::read(note(&config)).expect("a note");
    std::fs::write(note(&config), &text[..text.len() / 2]).expect("writes");
    let proxy = config.start().await;
    assert_eq!(proxy.get("/").await.origin(), "two");
    proxy.logged("is no note of rrlb, or is damaged").await;
    let kept = std::fs::read_dir(proxy.config.dir().join("up")).expect("a folder").flatten();
    let kept = kept.filter(|entry| entry.file_name().to_string_lossy().contains(".unconfirmed.damaged-")).count();
    assert_eq!((kept, note(&proxy.config).exists()), (1, false));
    let refused = run::rrlb(&["--socket", &socket, "confirm"]).await.ended_with(4);
    assert!(refused.stderr.contains("no reload waits"), "{refused:?}");
}

#[tokio::test]
async fn errors_after_a_start_take_the_file_back_too() {
    let (good, bad) = (Origin::echo("good").await, Origin::script("bad", broken).await);
    let (proxy, _) = tried(&yaml(&good), &yaml(&bad), &["--confirm", "600s", "--abort-if", "5xx > 2%"]).await;
    let proxy = killed(proxy, &yaml(&bad)).await.start().await;
    proxy.logged("config.unconfirmed").await;
    eventually("the file to be taken back", async || proxy.get("/").await.status() == 200).await;
    proxy.logged("config.reverted").await;
    // It is before the deadline, and no start tries it again.
    let proxy = killed(proxy, &yaml(&bad)).await.start().await;
    assert_eq!(proxy.get("/").await.status(), 200);
    assert!(proxy.stderr().contains("were 5xx"), "{}", proxy.stderr());
}

#[tokio::test]
async fn what_the_reload_has_made_of_overrides_is_undone_with_it() {
    let origin = Origin::echo("one").await;
    let with = |weight: u16| {
        format!(
            "admin: {{ socket: <dir>/admin.sock }}\nstate_file: <dir>/state.json\n\
             upstreams: {{ app: {{ backends: [{{ id: a, address: \"{}\", weight: {weight} }}] }} }}\n",
            origin.address
        )
    };
    for late in [true, false] {
        let proxy = Config::new(&with(1)).start().await;
        let (api, socket) = (Api::of(&proxy), proxy.config.dir().join("admin.sock"));
        api.change("PATCH", "/v1/upstreams/app/backends/a", json!({ "weight": 7 })).await;
        // With this file the override says nothing more.
        proxy.config.instead(&with(7)).write();
        let confirm = ["--socket", socket.to_str().expect("text"), "reload", "--confirm", "600s"];
        run::rrlb(&confirm).await.ended_with(0);
        assert_eq!(api.get("/v1/state").await["upstreams"], json!({}));
        let config = killed(proxy, &with(7)).await;
        let place = config.dir().join("state.json.unconfirmed");
        let mut noted: Value = serde_json::from_slice(&std::fs::read(&place).expect("a note")).expect("JSON");
        let ago = if late { 600_000 } else { 595_000 };
        noted["at"] = (noted["at"].as_u64().expect("a time") - ago).into();
        std::fs::write(&place, noted.to_string()).expect("writes");
        let mut proxy = config.start().await;
        for _ in 0..2 {
            eventually("the override to be there again", async || {
                api.get("/v1/state").await["upstreams"]["app"]["a"]["weight"] == 7
            })
            .await;
            assert_eq!(api.get("/v1/upstreams/app/backends/a").await["weight"], 7);
            eventually("the process to say so", async || {
                api.get("/v1/status").await["config"]["runs"] == "last_confirmed"
            })
            .await;
            proxy.signal(libc::SIGTERM);
            assert!(proxy.ended().await.success());
            proxy = proxy.config.instead(&with(7)).start().await;
        }
    }
}

#[tokio::test]
async fn a_file_that_names_another_state_file_is_found_to_be_unconfirmed_too() {
    let (one, two) = (Origin::echo("one").await, Origin::echo("two").await);
    let with = |origin: &Origin, state: &str| yaml(origin) + &format!("state_file: <dir>/{state}\n");
    let (proxy, socket) = tried(&with(&one, "one.json"), &with(&two, "two.json"), &LONG).await;
    let places = ["one.json.unconfirmed", "two.json.unconfirmed"].map(|name| proxy.config.dir().join(name));
    let proxy = killed(proxy, &with(&two, "two.json")).await.start().await;
    let api = Api::of(&proxy);
    assert!(api.get("/v1/status").await["config"]["confirm_within"].is_u64());
    // What takes an upgrade was not tried.
    api.change("PATCH", "/v1/upstreams/app/backends/a", json!({ "weight": 7 })).await;
    let is_there = |name: &str| proxy.config.dir().join(name).exists();
    assert!(is_there("one.json") && !is_there("two.json"));
    run::rrlb(&["--socket", &socket, "confirm"]).await.ended_with(0);
    assert!(!places[0].exists() && !places[1].exists());
}

#[tokio::test]
async fn a_note_that_another_user_wrote_is_kept_aside_and_nothing_it_says_is_done() {
    let (one, two) = (Origin::echo("one").await, Origin::echo("two").await);
    let (proxy, socket) = tried(&yaml(&one), &yaml(&two), &LONG).await;
    let config = killed(proxy, &yaml(&two)).await;
    age(&config, TEN_MINUTES);
    let precious = config.dir().join("precious");
    std::fs::write(&precious, "precious").expect("writes");
    let mut noted: Value = serde_json::from_slice(&std::fs::read(note(&config)).expect("a note")).expect("JSON");
    noted["places"] = json!([note(&config), &precious]);
    std::fs::write(note(&config), noted.to_string()).expect("writes");
    if std::os::unix::fs::chown(note(&config), Some(65_534), None).is_err() {
        return eprintln!("only root can give a file away");
    }
    let proxy = config.start().await;
    assert_eq!(proxy.get("/").await.origin(), "two");
    proxy.logged("belongs to user 65534").await;
    eventually("the note to be gone", async || !note(&proxy.config).exists()).await;
    let kept = std::fs::read_dir(proxy.config.dir().join("up")).expect("a folder").flatten();
    let kept = kept.filter(|entry| entry.file_name().to_string_lossy().contains(".unconfirmed.damaged-")).count();
    assert_eq!(kept, 1);
    run::rrlb(&["--socket", &socket, "confirm"]).await.ended_with(0);
    run::rrlb(&["--socket", &socket, "reload"]).await.ended_with(0);
    assert_eq!(std::fs::read_to_string(&precious).expect("it is there"), "precious");
}

#[tokio::test]
async fn an_override_is_there_again_where_the_file_before_is_put_back_after_a_crash() {
    let origin = Origin::echo("one").await;
    let with = |weight: u16| {
        yaml(&origin).replace(" }] }", &format!(", weight: {weight} }}] }}")) + "state_file: <dir>/state.json\n"
    };
    for drained in [false, true] {
        let proxy = Config::new(&with(1)).start().await;
        let (api, socket) = (Api::of(&proxy), proxy.config.dir().join("admin.sock"));
        let backend = "/v1/upstreams/app/backends/a";
        api.change("PATCH", backend, json!({ "weight": 7 })).await;
        if drained {
            // Something is left of this one in the file that makes its weight needless.
            api.change("PATCH", &format!("{backend}?force=true"), json!({ "admin": "drain" })).await;
        }
        proxy.config.instead(&with(7)).write();
        let confirm = ["--socket", socket.to_str().expect("text"), "reload", "--confirm", "600s"];
        run::rrlb(&confirm).await.ended_with(0);
        assert_eq!(api.get("/v1/state").await["upstreams"]["app"]["a"].get("weight"), None);
        // Who finds the process dead puts back what there was.
        let mut proxy = killed(proxy, &with(1)).await.start().await;
        for _ in 0..2 {
            assert_eq!(api.get(backend).await["weight"], 7, "drained: {drained}");
            eventually("the note to be gone", async || !proxy.config.dir().join("state.json.unconfirmed").exists())
                .await;
            proxy = killed(proxy, &with(1)).await.start().await;
        }
    }
}

#[tokio::test]
async fn whoever_asks_hears_that_a_start_by_root_would_not_go_by_what_another_user_can_write() {
    let origin = Origin::echo("one").await;
    let config = Config::new(&(yaml(&origin) + "user: nobody\n"));
    // SAFETY: a plain system call.
    if unsafe { libc::geteuid() } != 0 {
        return; // only root can change the user
    }
    std::fs::set_permissions(config.dir(), std::fs::Permissions::from_mode(0o777)).expect("a mode");
    let proxy = config.start().await;
    let socket = proxy.config.dir().join("admin.sock");
    let words = ["--socket", socket.to_str().expect("text"), "reload", "--confirm", "600s"];
    let reloaded = run::rrlb(&words).await.ended_with(0);
    assert!(reloaded.stderr.contains("warning: user nobody can write what is noted"), "{reloaded:?}");
}

//! The admin API on TCP: its tokens and certificates change with a reload, and the process is the same.

use std::net::SocketAddr;

use crate::support::{
    address,
    http1::Client,
    origin::Origin,
    proxy::{Config, Proxy},
    run,
    tls::Ca,
};

const FIRST: &str = "the first token of all";
const SECOND: &str = "another token instead";

fn write(proxy: &Config, name: &str, token: &str) {
    std::fs::write(proxy.dir().join(name), token.replace(' ', "-") + "\n").expect("a token");
}

async fn ask(client: &mut Client, method: &str, token: &str) -> u16 {
    let token = token.replace(' ', "-");
    let target = if method == "GET" { "/v1/status" } else { "/v1/config/confirm" };
    let head = format!("{method} {target} HTTP/1.1\r\nHost: rrlb\r\nAuthorization: Bearer {token}\r\n\r\n");
    client.ask(head).await.status()
}

async fn diff(proxy: &Proxy) -> String {
    let socket = proxy.config.dir().join("admin.sock");
    let file = proxy.config.dir().join("rrlb.yaml");
    let words = ["--socket", socket.to_str().expect("text"), "-c", file.to_str().expect("text"), "diff"];
    run::rrlb(&words).await.ended_with(0).stdout
}

fn yaml(more: &str) -> String {
    format!("admin: {{ socket: <dir>/admin.sock, address: \"<admin>\", token_file: <dir>/write.token{more} }}\n")
}

fn app(origin: &Origin, more: &str) -> String {
    format!("upstreams: {{ app: {{ backends: [\"{}\"] }} }}\n{}", origin.address, yaml(more))
}

#[tokio::test]
async fn a_reload_exchanges_the_tokens() {
    let origin = Origin::echo("a").await;
    let admin = address::unused();
    let config = Config::new(&app(&origin, "")).put("admin", admin);
    write(&config, "write.token", FIRST);
    let proxy = config.start().await;
    let mut kept = Client::connect(admin).await;
    assert_eq!(ask(&mut kept, "GET", FIRST).await, 200);
    assert_eq!(ask(&mut kept, "GET", SECOND).await, 401);
    write(&proxy.config, "write.token", SECOND);
    write(&proxy.config, "read.token", "somebody who looks");
    proxy.config.instead(&app(&origin, ", read_token_file: <dir>/read.token")).put("admin", admin).write();
    let foreseen = diff(&proxy).await;
    assert!(
        foreseen.contains("~ admin.token_file: other contents") && foreseen.contains("+ admin.read_token_file"),
        "{foreseen}"
    );
    assert!(!foreseen.contains("upgrade"), "{foreseen}");
    assert_eq!(ask(&mut kept, "GET", FIRST).await, 200, "a comparison changes nothing");
    proxy.reload().await;
    for client in [&mut kept, &mut Client::connect(admin).await] {
        assert_eq!(ask(client, "GET", FIRST).await, 401, "the old one is refused, also where it was let in before");
        assert_eq!(ask(client, "GET", SECOND).await, 200);
        assert_eq!(ask(client, "GET", "somebody who looks").await, 200);
        assert_eq!(ask(client, "POST", "somebody who looks").await, 403);
        assert_eq!(ask(client, "POST", SECOND).await, 409, "it may, but nothing waits for a confirmation");
    }
    // A file that is no token changes nothing, and one that is taken back has the old tokens again.
    std::fs::write(proxy.config.dir().join("write.token"), "short").expect("a file");
    proxy.signal(libc::SIGHUP);
    proxy.logged("not reloaded").await;
    assert_eq!(ask(&mut kept, "GET", SECOND).await, 200);
    write(&proxy.config, "write.token", FIRST);
    let socket = proxy.config.dir().join("admin.sock");
    run::rrlb(&["--socket", socket.to_str().expect("text"), "reload", "--confirm", "1s"]).await.ended_with(0);
    assert_eq!(ask(&mut kept, "GET", FIRST).await, 200);
    proxy.logged("config.reverted").await;
    assert_eq!(ask(&mut kept, "GET", FIRST).await, 401);
    assert_eq!(ask(&mut kept, "GET", SECOND).await, 200);
    // Another address takes another process, and the tokens do not wait for that.
    let other = address::unused();
    write(&proxy.config, "write.token", FIRST);
    proxy.config.instead(&app(&origin, "")).put("admin", other).write();
    assert!(diff(&proxy).await.contains("1 change takes effect only by `rrlb upgrade`"), "{}", diff(&proxy).await);
    proxy.reload().await;
    assert!(Client::try_connect(other).await.is_err());
    assert_eq!(ask(&mut kept, "GET", FIRST).await, 200);
    assert_eq!(ask(&mut kept, "GET", "somebody who looks").await, 401);
}

/// The certificate that is shown at an address.
async fn shown(to: SocketAddr, ca: &Ca) -> Vec<u8> {
    let client = Client::tls(to, "admin.test", &ca.client(&["http/1.1"])).await;
    client.handshake.clone().expect("tls").certificate
}

#[tokio::test]
async fn a_reload_exchanges_the_certificates() {
    let (origin, ca, admin) = (Origin::echo("a").await, Ca::new(), address::unused());
    let yaml = |name: &str| {
        app(&origin, &format!(", tls: {{ certificates: [{name}] }}")) + "certificates: { one: <one>, two: <two> }\n"
    };
    let config = Config::new(&yaml("one")).put("admin", admin);
    write(&config, "write.token", FIRST);
    let one = ca.issue(&["admin.test"]).write(config.dir(), "one");
    let two = ca.issue(&["admin.test"]).write(config.dir(), "two");
    let proxy = config.put("one", &one).put("two", &two).start().await;
    let before = shown(admin, &ca).await;
    proxy.config.instead(&yaml("two")).put("admin", admin).put("one", &one).put("two", &two).write();
    let foreseen = diff(&proxy).await;
    assert!(foreseen.contains("admin.tls.certificates") && !foreseen.contains("upgrade"), "{foreseen}");
    proxy.reload().await;
    let after = shown(admin, &ca).await;
    assert_ne!(before, after);
    // Back to plain text on the same address takes an upgrade: it would be read by others who listen there.
    proxy
        .config
        .instead(&(app(&origin, "") + "certificates: { two: <two> }\n"))
        .put("admin", admin)
        .put("two", &two)
        .write();
    assert!(diff(&proxy).await.contains("needs an upgrade"));
    proxy.reload().await;
    assert_eq!(shown(admin, &ca).await, after);
}

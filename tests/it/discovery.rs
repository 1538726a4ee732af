//! Discovery through the whole proxy: a real DNS server on loopback (dnsmasq, which `make test` installs where it can),
//! and watched lists.

use std::{
    io::Write,
    net::{Ipv4Addr, SocketAddr, SocketAddrV4},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::support::{
    address, eventually,
    http1::{Message, get},
    origin::Origin,
    proxy::{Config, Proxy},
    run, wait_until,
};

/// A dnsmasq that knows what is in a hosts file, and nothing else below `test`.
struct DnsServer {
    child: Child,
    dir: tempfile::TempDir,
    address: SocketAddr,
}

impl DnsServer {
    /// `None`, said where nobody can miss it, where there is no dnsmasq.
    async fn start(test: &str, hosts: &str, more: &[String]) -> Option<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from));
        let Some(binary) = folders.map(|folder| folder.join("dnsmasq")).find(|binary| binary.is_file()) else {
            // Past the harness, which keeps what passing tests print to itself.
            let said = writeln!(std::io::stderr(), "SKIPPED {test}: there is no dnsmasq; apt-get install dnsmasq-base");
            said.expect("standard error");
            return None;
        };
        let dir = tempfile::tempdir().expect("temporary folder");
        let address = address::unused();
        let mut command = Command::new(binary);
        command.args(["--keep-in-foreground", "--conf-file=/dev/null", "--no-resolv", "--no-hosts", "--local=/test/"]);
        command.args(["--local-ttl=1", "--bind-interfaces", "--user=root", "--group=root", "--pid-file="]);
        command.arg("--log-facility=-").args(more);
        command.arg(format!("--listen-address={}", address.ip())).arg(format!("--port={}", address.port()));
        command.arg(format!("--addn-hosts={}", dir.path().join("hosts").display()));
        std::fs::write(dir.path().join("hosts"), hosts).expect("writes");
        command.stderr(std::fs::File::create(dir.path().join("log")).expect("log file")).stdout(Stdio::null());
        let server = Self { child: command.spawn().expect("start dnsmasq"), dir, address };
        wait_until("dnsmasq to have read its hosts", || server.log().contains("read ")).await;
        Some(server)
    }

    fn log(&self) -> String {
        run::read(&self.dir.path().join("log"))
    }

    /// Has it read other hosts.
    async fn knows(&self, hosts: &str) {
        let reads = || self.log().matches("read ").count();
        let before = reads();
        std::fs::write(self.dir.path().join("hosts"), hosts).expect("writes");
        // SAFETY: a plain system call; the child has not been waited for.
        unsafe { libc::kill(self.child.id().try_into().expect("a pid"), libc::SIGHUP) };
        wait_until("dnsmasq to read its hosts again", || reads() > before).await;
    }
}

impl Drop for DnsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Origins on the same port of neighbouring addresses.
async fn neighbours(names: &[&str]) -> (u16, Vec<Origin>) {
    let port = address::unused().port();
    let mut origins = Vec::new();
    for (index, name) in names.iter().enumerate() {
        let SocketAddr::V4(own) = address::unused() else { panic!("an IPv4 address") };
        let [_, high, middle, low] = own.ip().octets();
        // 127.128.0.0 and up: nobody else's.
        let ip = Ipv4Addr::new(127, high + 64 * (index as u8 + 1), middle, low);
        origins.push(Origin::at(SocketAddrV4::new(ip, port).into(), name).await);
    }
    (port, origins)
}

/// Lines of a hosts file.
fn hosts(name: &str, origins: &[&Origin]) -> String {
    let ip = |origin: &Origin| origin.address.rsplit_once(':').expect("a port").0.to_owned();
    origins.iter().map(|origin| format!("{} {name}\n", ip(origin))).collect()
}

/// Who answers the next requests, each in 200.
async fn answered_by(proxy: &Proxy, requests: usize) -> Vec<String> {
    let mut names = Vec::new();
    for _ in 0..requests {
        let answer: Message = proxy.get("/").await;
        assert_eq!(answer.status(), 200, "{}", proxy.stderr());
        names.push(answer.origin().to_owned());
    }
    names.sort();
    names
}

async fn serves(proxy: &Proxy, names: &[&str]) {
    eventually(&format!("{names:?}"), async || answered_by(proxy, names.len()).await == names).await;
}

#[tokio::test]
async fn backends_follow_a_dns_server_and_outlive_it() {
    let (port, origins) = neighbours(&["a", "b"]).await;
    let [a, b] = origins.as_slice() else { panic!("two origins") };
    let test = "backends_follow_a_dns_server_and_outlive_it";
    let Some(server) = DnsServer::start(test, &hosts("app.test", &[a, b]), &[]).await else { return };
    let yaml = "
        upstreams:
          app:
            discover: { dns: \"app.test:<port>\", refresh: 1s, servers: [\"<server>\"] }
            health_check: tcp";
    let proxy = Config::new(yaml).put("port", port).put("server", server.address).start().await;
    // Ready means found and probed.
    assert_eq!(answered_by(&proxy, 4).await, ["a", "a", "b", "b"]);
    let found = proxy.scrape().await.sum("rrlb_discovery_total", &["upstream=\"app\"", "result=\"found\""]);
    assert!(found >= 1.0);
    // A request under way at a backend that leaves is finished.
    let mut held = proxy.client().await;
    held.send(get("/hold")).await;
    wait_until("the request at an origin", || a.count("/hold") + b.count("/hold") == 1).await;
    let (leaves, stays) = if a.count("/hold") == 1 { (a, b) } else { (b, a) };
    server.knows(&hosts("app.test", &[stays])).await;
    serves(&proxy, &[&stays.name, &stays.name]).await;
    leaves.release();
    assert_eq!(held.response().await.origin(), leaves.name);
    // No such name, then no server at all.
    let failed = ["upstream=\"app\"", "result=\"failed\""];
    server.knows("").await;
    proxy.metric("rrlb_discovery_total", &failed, |n| n >= 1.0).await;
    proxy.logged("the one backend that is known stays").await;
    let before = proxy.scrape().await.sum("rrlb_discovery_total", &failed);
    drop(server);
    proxy.metric("rrlb_discovery_total", &failed, |n| n >= before + 1.0).await;
    assert_eq!(answered_by(&proxy, 2).await, [stays.name.clone(), stays.name.clone()]);
    assert_eq!(proxy.stderr().matches("no full answer").count(), 1, "a lasting failure is told once");
}

#[tokio::test]
async fn srv_records_give_ports_and_weights() {
    let [a, b, spare] = [Origin::echo("a").await, Origin::echo("b").await, Origin::echo("spare").await];
    let place = |origin: &Origin| origin.address.parse::<SocketAddr>().expect("an address");
    let record = |origin: &Origin, priority: u16, weight: u16| {
        format!("--srv-host=_http._tcp.app.test,host.test,{},{priority},{weight}", place(origin).port())
    };
    let records = [record(&a, 1, 3), record(&b, 1, 1), record(&spare, 2, 9)];
    let hosts = format!("{} host.test\n", place(&a).ip());
    let Some(server) = DnsServer::start("srv_records_give_ports_and_weights", &hosts, &records).await else { return };
    let yaml = "upstreams: { app: { discover: { dns: _http._tcp.app.test, servers: [\"<server>\"] } } }";
    let proxy = Config::new(yaml).put("server", server.address).start().await;
    let names = answered_by(&proxy, 8).await;
    assert_eq!(names, ["a", "a", "a", "a", "a", "a", "b", "b"]);
    assert_eq!(spare.total(), 0);
}

#[tokio::test]
async fn a_name_that_does_not_resolve_does_not_stop_the_start() {
    let yaml = "
        upstreams:
          app: { discover: { dns: \"app.test:80\", servers: [\"<nobody>\"] } }";
    let proxy = Config::new(yaml).put("nobody", address::unused()).start().await;
    assert_eq!(proxy.get("/").await.status(), 503);
    proxy.logged("no backend is known yet").await;
}

fn replace(path: &Path, text: &str) {
    let beside = path.with_extension("new");
    std::fs::write(&beside, text).expect("writes");
    std::fs::rename(beside, path).expect("renames");
}

#[tokio::test]
async fn a_watched_list_is_followed() {
    let (a, b) = (Origin::echo("a").await, Origin::echo("b").await);
    let yaml = "upstreams: { app: { discover: { file: backends.yaml, refresh: 100ms } } }";
    let proxy = Config::new(yaml).start().await;
    assert_eq!(proxy.get("/").await.status(), 503);
    proxy.logged("No such file").await;
    let path = proxy.config.dir().join("backends.yaml");
    replace(&path, &format!("- {{ id: one, address: \"{}\" }}\n- \"{}\"\n", a.address, b.address));
    eventually("the list", async || proxy.get("/").await.status() == 200).await;
    assert_eq!(answered_by(&proxy, 4).await, ["a", "a", "b", "b"]);
    // Half of a list, written in place.
    std::fs::write(&path, "- { id: one, addr").expect("writes");
    proxy.logged("the 2 backends that are known stay").await;
    assert!(proxy.stderr().contains("error[") && proxy.stderr().contains("backends.yaml:1:"), "{}", proxy.stderr());
    assert_eq!(answered_by(&proxy, 4).await, ["a", "a", "b", "b"]);
    replace(&path, &format!("[\"{}\"]", b.address));
    serves(&proxy, &["b", "b", "b"]).await;
    replace(&path, "[]");
    eventually("nobody", async || proxy.get("/").await.status() == 503).await;
}

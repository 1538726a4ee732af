//! Certificates that are renewed while the process serves.

use std::{
    fs,
    path::Path,
    sync::{Arc, Mutex},
};

use rustls::{ClientConfig, HandshakeKind};

use crate::support::{
    eventually,
    http1::Client,
    origin::{Origin, Peer},
    proxy::{Config, Proxy},
    tls::{Ca, Leaf, client_seeing_ocsp, client_trusting_any},
};

const RELOADS: &str = "rrlb_certificate_reloads_total";
const FETCHES: &str = "rrlb_certificate_ocsp_fetches_total";

async fn proxy_with(leaf: &Leaf, origin: &Origin, more: &str) -> Proxy {
    let yaml = "
        certificates: { main: <main> }
        listeners: [{ address: <listen>, tls: { certificates: [main] } }]";
    let config = Config::before(&[origin], yaml);
    let main = leaf.write(config.dir(), "main");
    config.put("main", main.replace(" }", &format!("{more} }}"))).start().await
}

async fn shown(proxy: &Proxy) -> Vec<u8> {
    let client = Client::tls(proxy.listen, "a.test", &client_trusting_any()).await;
    client.handshake.expect("tls").certificate.to_vec()
}

/// Replaces one of a certificate's two files, as a tool that writes aside and renames.
fn replace(from: &Leaf, folder: &Path, extension: &str) {
    let aside = folder.join("aside");
    fs::create_dir_all(&aside).expect("folder");
    from.write(&aside, "main");
    let file = format!("main.{extension}");
    fs::rename(aside.join(&file), folder.join(&file)).expect("rename");
}

#[tokio::test]
async fn a_renewed_pair_is_used_without_a_reload_and_connections_and_sessions_stay() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let (old, new) = (ca.issue(&["a.test"]), ca.sign_until(&["a.test", "new.test"], 2091));
    let proxy = proxy_with(&old, &origin, "").await;
    let config: Arc<ClientConfig> = ca.client(&["http/1.1"]);
    let mut open = Client::tls(proxy.listen, "a.test", &config).await;
    assert_eq!(open.get("/").await.status(), 200);
    let not_after = |leaf: &Leaf| leaf.not_after() as f64;
    proxy.metric("rrlb_certificate_not_after_seconds", &["main"], |at| at == not_after(&old)).await;
    replace(&new, proxy.config.dir(), "pem");
    replace(&new, proxy.config.dir(), "key");
    proxy.metric(RELOADS, &["ok"], |reloads| reloads == 1.0).await;
    assert!(shown(&proxy).await == *new.der);
    proxy.metric("rrlb_certificate_not_after_seconds", &["main"], |at| at == not_after(&new)).await;
    assert_eq!(open.get("/").await.status(), 200);
    let resumed = Client::tls(proxy.listen, "a.test", &config).await.handshake.map(|handshake| handshake.kind);
    assert_eq!(resumed, Some(HandshakeKind::Resumed));
    assert!(Client::try_tls(proxy.listen, "new.test", &config).await.is_ok(), "its names are new too");
    proxy.logged("certificate.reloaded: main").await;
    // The configuration as it is now finds the same certificate.
    proxy.reload().await;
    assert!(shown(&proxy).await == *new.der);
    assert_eq!(proxy.scrape().await.sum(RELOADS, &[]), 1.0);
}

#[tokio::test]
async fn what_does_not_fit_together_keeps_the_old_pair() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let (old, new) = (ca.issue(&["a.test"]), ca.issue(&["a.test"]));
    let proxy = proxy_with(&old, &origin, "").await;
    let cert = proxy.config.dir().join("main.pem");
    let whole = fs::read(&cert).expect("read");
    replace(&new, proxy.config.dir(), "pem");
    proxy.metric(RELOADS, &["failed"], |failed| failed >= 1.0).await;
    assert!(shown(&proxy).await == *old.der, "the key does not match");
    proxy.logged("certificate.failed: main").await;
    fs::write(&cert, &whole[..whole.len() / 2]).expect("write");
    proxy.metric(RELOADS, &["failed"], |failed| failed >= 2.0).await;
    assert!(shown(&proxy).await == *old.der, "half written");
    replace(&new, proxy.config.dir(), "pem");
    replace(&new, proxy.config.dir(), "key");
    proxy.metric(RELOADS, &["ok"], |reloads| reloads == 1.0).await;
    assert!(shown(&proxy).await == *new.der);
    assert_eq!(origin.total(), 0);
}

#[tokio::test]
async fn files_that_are_good_again_as_they_were_are_told_of_once() {
    const GOOD: &str = "certificate main: its files are good again";
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let (old, new) = (ca.issue(&["a.test"]), ca.issue(&["a.test"]));
    let proxy = proxy_with(&old, &origin, "").await;
    let said = || proxy.stderr().matches(GOOD).count();
    for times in 1..=2 {
        replace(&new, proxy.config.dir(), "pem");
        proxy.metric(RELOADS, &["failed"], |failed| failed == f64::from(times)).await;
        replace(&old, proxy.config.dir(), "pem");
        eventually("the all-clear", async || said() >= times as usize).await;
    }
    replace(&new, proxy.config.dir(), "pem");
    replace(&new, proxy.config.dir(), "key");
    // Of another pair this is said, and is enough.
    proxy.logged("certificate.reloaded: main").await;
    assert_eq!(said(), 2, "{}", proxy.stderr());
}

/// From now on the process may open so many files, those that are open included. Returns how many it might before.
fn allow_descriptors(proxy: &Proxy, most: libc::rlim_t) -> libc::rlim_t {
    let pid = libc::pid_t::try_from(proxy.pid()).expect("a pid");
    let mut before = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: both are limits of ours, and the process is our child.
    unsafe {
        assert_eq!(libc::prlimit(pid, libc::RLIMIT_NOFILE, std::ptr::null(), &raw mut before), 0);
        let limit = libc::rlimit { rlim_cur: most, ..before };
        assert_eq!(libc::prlimit(pid, libc::RLIMIT_NOFILE, &raw const limit, std::ptr::null_mut()), 0);
    }
    before.rlim_cur
}

#[tokio::test]
async fn what_could_not_be_read_for_want_of_descriptors_is_read_again_though_nobody_touches_it() {
    let (ca, clients, origin) = (Ca::new(), Ca::new(), Origin::echo("a").await);
    let yaml = "
        certificates: { main: <main> }
        listeners: [{ address: <listen>, tls: { certificates: [main], client_auth: {
            mode: optional, ca: <dir>/ca.pem, crl: <dir>/clients.crl } } }]";
    let config = Config::before(&[&origin], yaml);
    clients.write(config.dir());
    let list = config.dir().join("clients.crl");
    fs::write(&list, clients.revoke(&[], 2090)).expect("write");
    let (old, new) = (ca.issue(&["a.test"]), ca.issue(&["a.test"]));
    let main = old.write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    let gone = clients.issue_client("gone");
    let config = gone.client(&ca, &["http/1.1"], &[&rustls::version::TLS12, &rustls::version::TLS13]);
    let is_served = async || match Client::try_tls(proxy.listen, "a.test", &config).await {
        Ok(mut client) => client.try_get("/").await.is_ok_and(|answer| answer.status() == 200),
        Err(_) => false,
    };
    assert!(is_served().await);
    let before = allow_descriptors(&proxy, 3);
    replace(&new, proxy.config.dir(), "pem");
    replace(&new, proxy.config.dir(), "key");
    fs::write(&list, clients.revoke(&[&gone], 2090)).expect("write");
    proxy.logged("certificate main stays as it was").await;
    // The first file of the two that clients are judged by.
    proxy.logged("ca.pem stays as it was").await;
    allow_descriptors(&proxy, before);
    eventually("the new certificate", async || shown(&proxy).await == *new.der).await;
    eventually("the revoked one to be refused", async || !is_served().await).await;
    // It could be read again, and was as before.
    proxy.logged("ca.pem: its files are good again").await;
    // Once for each of the two files at most, as they may have been seen one by one.
    let said = proxy.stderr().matches("ERROR] certificate main stays as it was").count();
    assert!((1..=2).contains(&said), "said {said} times: {}", proxy.stderr());
}

#[tokio::test]
async fn a_configuration_that_could_not_be_read_for_want_of_descriptors_is_read_again() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let yaml = "
        certificates: { main: <main> }
        reload_on_change: true
        listeners: [{ address: <listen>, tls: { certificates: [main] } }]";
    let config = Config::before(&[&origin], yaml);
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    let file = proxy.config.write();
    let before = allow_descriptors(&proxy, 3);
    let text = fs::read_to_string(&file).expect("read");
    fs::write(&file, format!("{text}\nvia: other\n")).expect("write");
    proxy.signal(libc::SIGHUP);
    proxy.logged("not reloaded").await;
    allow_descriptors(&proxy, before);
    proxy.metric("rrlb_config_generation", &[], |generation| generation >= 2.0).await;
}

#[tokio::test]
async fn an_ocsp_response_is_sent_while_it_holds() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let leaf = ca.issue(&["a.test"]);
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("main.ocsp");
    let (first, second, old) =
        (leaf.ocsp("20900101000000Z"), leaf.ocsp("20910101000000Z"), leaf.ocsp("20210101000000Z"));
    fs::write(&file, &first).expect("write");
    let proxy = proxy_with(&leaf, &origin, &format!(", ocsp: {}", file.display())).await;
    let sent = async || {
        let (config, seen) = client_seeing_ocsp();
        Client::tls(proxy.listen, "a.test", &config).await;
        seen.ocsp.lock().expect("no panic").clone()
    };
    assert!(sent().await == first);
    proxy.metric("rrlb_certificate_ocsp_stapled", &["main"], |stapled| stapled == 1.0).await;
    fs::write(&file, &second).expect("write");
    eventually("the next response", async || sent().await == second).await;
    fs::write(&file, ca.issue(&["a.test"]).ocsp("20900101000000Z")).expect("write");
    proxy.metric(RELOADS, &["failed"], |failed| failed == 1.0).await;
    assert!(sent().await == second, "a response of another certificate");
    fs::write(&file, &old).expect("write");
    eventually("no response", async || sent().await.is_empty()).await;
    proxy.metric("rrlb_certificate_ocsp_stapled", &["main"], |stapled| stapled == 0.0).await;
    proxy.logged("out of date").await;
}

#[tokio::test]
async fn no_ocsp_response_stands_in_the_way_of_a_certificate() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let (first, second) = (ca.issue(&["a.test"]), ca.issue(&["a.test"]));
    let folder = tempfile::tempdir().expect("folder");
    let file = folder.path().join("main.ocsp");
    // It starts with none at all.
    let proxy = proxy_with(&first, &origin, &format!(", ocsp: {}", file.display())).await;
    let sent = async || {
        let (config, seen) = client_seeing_ocsp();
        Client::tls(proxy.listen, "a.test", &config).await;
        seen.ocsp.lock().expect("no panic").clone()
    };
    let stapled = async |value: f64| {
        proxy.metric("rrlb_certificate_ocsp_stapled", &["main"], |stapled| stapled == value).await;
    };
    assert!(sent().await.is_empty());
    stapled(0.0).await;
    proxy.logged("no OCSP response can be read").await;
    fs::write(&file, first.ocsp("20900101000000Z")).expect("write");
    eventually("the response", async || sent().await == first.ocsp("20900101000000Z")).await;
    stapled(1.0).await;
    // A renewal, and the response is still the one of the certificate before.
    replace(&second, proxy.config.dir(), "pem");
    replace(&second, proxy.config.dir(), "key");
    eventually("the new certificate", async || shown(&proxy).await == *second.der).await;
    assert!(sent().await.is_empty(), "not that of another certificate");
    stapled(0.0).await;
    proxy.logged("is served without an OCSP response").await;
    // A reload of the same serves on; so does whoever begins now.
    proxy.reload().await;
    proxy.metric("rrlb_config_generation", &[], |generation| generation == 2.0).await;
    proxy.config.run(&["-t"]).await.ended_with(0);
    fs::write(&file, second.ocsp("20900101000000Z")).expect("write");
    eventually("its own response", async || sent().await == second.ocsp("20900101000000Z")).await;
    stapled(1.0).await;
}

#[tokio::test]
async fn what_a_start_would_warn_of_is_said_of_a_renewal_too() {
    use std::os::unix::fs::PermissionsExt as _;

    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let yaml = "
        certificates: { main: <main> }
        listeners: [{ address: <listen>, tls: { certificates: [main], strict_sni: true } }]";
    let config = Config::before(&[&origin], yaml);
    let main = ca.issue(&["a.test", "b.test"]).write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    let key = proxy.config.dir().join("main.key");
    let renew = |leaf: &Leaf| {
        replace(leaf, proxy.config.dir(), "key");
        replace(leaf, proxy.config.dir(), "pem");
    };
    renew(&ca.expired(&["a.test", "b.test"]));
    proxy.logged("certificate main: the certificate expired on").await;
    renew(&ca.issue(&["a.test"]));
    proxy.logged("certificate main: it is not for b.test any more, and `strict_sni` refuses them").await;
    renew(&ca.issue(&["a.test"]));
    fs::set_permissions(&key, fs::Permissions::from_mode(0o666)).expect("it is ours");
    proxy.logged("others than the owner may use the key file (mode 0666)").await;
    // Without another certificate.
    fs::set_permissions(&key, fs::Permissions::from_mode(0o604)).expect("it is ours");
    proxy.logged("others than the owner may use the key file (mode 0604)").await;
}

#[tokio::test]
async fn a_name_that_another_certificate_has_is_not_lost() {
    let (ca, origin) = (Ca::new(), Origin::echo("a").await);
    let yaml = "
        certificates: { main: <main>, other: <other> }
        listeners: [{ address: <listen>, tls: { certificates: [main, other], strict_sni: true } }]";
    let config = Config::before(&[&origin], yaml);
    let main = ca.issue(&["a.test", "b.test", "x.c.test", "d.test"]).write(config.dir(), "main");
    let other = ca.issue(&["b.test", "*.c.test"]).write(config.dir(), "other");
    let proxy = config.put("main", main).put("other", other).start().await;
    let new = ca.issue(&["a.test"]);
    replace(&new, proxy.config.dir(), "key");
    replace(&new, proxy.config.dir(), "pem");
    proxy.logged("certificate main: it is not for d.test any more, and `strict_sni` refuses them").await;
}

/// An OCSP responder that says what it is given; nothing is 500.
async fn responder(says: &Arc<Mutex<Vec<u8>>>) -> Origin {
    let says = says.clone();
    Origin::script("ocsp", move |mut peer: Peer| {
        let says = says.clone();
        async move {
            while peer.request().await.is_some() {
                let body = says.lock().expect("no panic").clone();
                let status = if body.is_empty() { "500 No" } else { "200 OK" };
                let head = format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\n\r\n", body.len());
                peer.send([head.as_bytes(), &body].concat()).await;
            }
        }
    })
    .await
}

async fn stapled(proxy: &Proxy) -> Vec<u8> {
    let (config, seen) = client_seeing_ocsp();
    Client::tls(proxy.listen, "a.test", &config).await;
    seen.ocsp.lock().expect("no panic").clone()
}

#[tokio::test]
async fn an_ocsp_response_is_fetched_kept_over_a_reload_and_renewed_while_it_holds() {
    let (ca, origin, says) = (Ca::new(), Origin::echo("a").await, Arc::<Mutex<Vec<u8>>>::default());
    let responder = responder(&says).await;
    let leaf = ca.issue_told_by(&["a.test"], &format!("http://{}/ocsp", responder.address));
    let first = ca.vouch(&leaf, 8);
    *says.lock().expect("no panic") = first.clone();
    let proxy = proxy_with(&leaf, &origin, ", ocsp: fetch").await;
    eventually("the first response", async || stapled(&proxy).await == first).await;
    let question = responder.only_request();
    assert_eq!((question.method(), question.target()), ("POST", "/ocsp"));
    assert_eq!(question.field("content-type"), Some("application/ocsp-request"));
    proxy.metric("rrlb_certificate_ocsp_stapled", &["main"], |stapled| stapled == 1.0).await;
    proxy.metric(FETCHES, &["ok"], |fetches| fetches == 1.0).await;
    proxy.reload().await;
    assert!(stapled(&proxy).await == first, "a reload forgets it");
    // Before it is out of date.
    let second = ca.vouch(&leaf, 3600);
    *says.lock().expect("no panic") = second.clone();
    eventually("the second response", async || {
        let sent = stapled(&proxy).await;
        assert!(sent == first || sent == second, "neither is sent");
        sent == second
    })
    .await;
    assert_eq!(proxy.scrape().await.sum(FETCHES, &["failed"]), 0.0);
    // Off and on again.
    let file = proxy.config.write();
    let text = fs::read_to_string(&file).expect("read");
    fs::write(&file, text.replace(", ocsp: fetch", "")).expect("write");
    proxy.reload().await;
    assert!(stapled(&proxy).await.is_empty());
    fs::write(&file, text).expect("write");
    proxy.reload().await;
    eventually("a response again", async || stapled(&proxy).await == second).await;
}

#[tokio::test]
async fn a_responder_that_fails_is_asked_again_and_nothing_stale_or_foreign_is_sent() {
    let (ca, origin, says) = (Ca::new(), Origin::echo("a").await, Arc::<Mutex<Vec<u8>>>::default());
    let responder = responder(&says).await;
    let leaf = ca.issue_told_by(&["a.test"], &format!("http://{}/ocsp", responder.address));
    let proxy = proxy_with(&leaf, &origin, ", ocsp: fetch").await;
    proxy.metric(FETCHES, &["failed"], |failed| failed >= 1.0).await;
    proxy.logged("it answered 500").await;
    // Of another authority with the same name.
    *says.lock().expect("no panic") = Ca::new().vouch(&leaf, 3600);
    proxy.logged("it is of another certificate").await;
    assert!(stapled(&proxy).await.is_empty());
    let good = ca.vouch(&leaf, 8);
    *says.lock().expect("no panic") = good.clone();
    eventually("a response", async || stapled(&proxy).await == good).await;
    says.lock().expect("no panic").clear();
    eventually("it to be out of date", async || stapled(&proxy).await.is_empty()).await;
    proxy.metric("rrlb_certificate_ocsp_stapled", &["main"], |stapled| stapled == 0.0).await;
}

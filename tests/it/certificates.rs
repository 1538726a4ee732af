//! Certificates that are renewed while the process serves.

use std::{fs, path::Path, sync::Arc};

use rustls::{ClientConfig, HandshakeKind};

use crate::support::{
    eventually,
    http1::Client,
    origin::Origin,
    proxy::{Config, Proxy},
    tls::{Ca, Leaf, client_seeing_ocsp, client_trusting_any},
};

const RELOADS: &str = "rrlb_certificate_reloads_total";

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

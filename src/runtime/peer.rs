//! From the model to Pingora's connect target: the only place where peer and connector options are set. Which address
//! a peer has is filled in per attempt (`backend.rs`); deadlines of a whole request are the proxy's.

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    net::SocketAddr,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use pingora_core::{
    connectors::{ConnectorOptions, L4Connect},
    protocols::tls::ALPN,
    upstreams::peer::HttpPeer,
};

use super::connect::Announcing;
use crate::{
    config::model::{self, Alpn, UpstreamProtocol},
    types::{BackendAddress, HostPort},
};

/// Requests at once on one HTTP/2 connection to a backend; the backend's own limit holds too.
pub const MAX_H2_STREAMS: usize = 100;
/// What a backend may send ahead on one HTTP/2 connection: bounds the memory of slow clients' answers.
pub const H2_CONNECTION_WINDOW: u32 = 16 << 20;
/// What it may on one stream: so much that clients who read nothing never have it all among them, and others always have theirs.
pub const H2_STREAM_WINDOW: u32 = H2_CONNECTION_WINDOW / MAX_H2_STREAMS as u32;

/// What a client side of TLS is built from. Pingora builds a new one per connection where a peer brings its own trust
/// store or client certificate, which loses session resumption; so there is one Pingora connector per profile instead,
/// and peers of equal profiles share it. Upstreams without TLS have the default profile.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsProfile {
    /// The trust store's file; `None` is the system's.
    pub ca: Option<PathBuf>,
    /// Files of the client certificate's chain and key.
    pub client_cert: Option<(PathBuf, PathBuf)>,
    /// Of what the files held when they were read, so that a changed file under the same name is another profile.
    contents: u64,
}

impl TlsProfile {
    /// The profile of an upstream.
    pub fn new(tls: Option<&model::UpstreamTls>, process: &model::Process) -> Self {
        let Some(tls) = tls else {
            return Self::default();
        };
        let mut contents = DefaultHasher::new();
        if let Some(store) = &tls.ca {
            store.certificates.iter().for_each(|certificate| certificate.as_ref().hash(&mut contents));
        }
        if let Some(certificate) = &tls.client_cert {
            certificate.key.cert.iter().for_each(|link| link.as_ref().hash(&mut contents));
            certificate.key_der.secret_der().hash(&mut contents);
        }
        Self {
            ca: tls.ca.as_ref().map(|store| store.path.clone()).or_else(|| process.ca_file.clone()),
            client_cert: tls.client_cert.as_ref().map(|cert| (cert.cert_path.clone(), cert.key_path.clone())),
            contents: contents.finish(),
        }
    }

    /// Options of the Pingora connector (or `HttpProxy`) for this profile. Building a connector panics inside Pingora
    /// where a file cannot be read any more, so do it at start and reload, right after the files were checked.
    pub fn connector_options(&self, process: &model::Process) -> ConnectorOptions {
        let text = |path: &PathBuf| path.to_string_lossy().into_owned();
        let mut options = ConnectorOptions::new(process.upstream_keepalive_pool_size);
        options.ca_file = self.ca.as_ref().map(text);
        options.cert_key_file = self.client_cert.as_ref().map(|(cert, key)| (text(cert), text(key)));
        options
    }
}

/// A peer for `backend` with everything but its address.
pub fn template(
    upstream: &model::Upstream,
    profile: &TlsProfile,
    backend: &model::Backend,
    connector: Arc<dyn L4Connect + Send + Sync>,
) -> HttpPeer {
    let sni = upstream.tls.as_ref().map(|tls| server_name(tls, &backend.address)).unwrap_or_default();
    // A socket address is taken as it is; a string would be resolved, blocking, here.
    let mut peer = HttpPeer::new(SocketAddr::from(([0, 0, 0, 0], 0)), upstream.tls.is_some(), sni);
    peer.group_key = group_key(upstream, profile, &peer.sni);
    let timeouts = &upstream.timeouts;
    let options = &mut peer.options;
    options.alpn = alpn(upstream);
    options.max_h2_streams = MAX_H2_STREAMS;
    options.h2_stream_window_size = Some(H2_STREAM_WINDOW);
    options.h2_connection_window_size = Some(H2_CONNECTION_WINDOW);
    options.idle_timeout = Some(timeouts.idle);
    options.read_timeout = Some(read_timeout(upstream));
    options.write_timeout = Some(timeouts.write);
    // Connecting is ours (`connect.rs`), so Pingora applies this to the handshake alone.
    options.connection_timeout = Some(timeouts.tls);
    if let Some(tls) = &upstream.tls {
        options.verify_cert = tls.verify;
        options.verify_hostname = tls.verify;
    }
    options.custom_l4 = Some(connector);
    peer
}

/// Has a new connection for `peer` begin with a PROXY header, and a pooled one taken only if it began with the same.
pub fn announce(peer: &mut HttpPeer, header: Vec<u8>) {
    peer.group_key = announcing(peer.group_key, &header);
    if let Some(connector) = peer.options.custom_l4.take() {
        peer.options.custom_l4 = Some(Arc::new(Announcing::new(connector, header)));
    }
}

/// What a pool knows connections by that begin with `header`, and would know by `key` without one.
pub fn announcing(key: u64, header: &[u8]) -> u64 {
    let mut hasher = DefaultHasher::new();
    (key, header).hash(&mut hasher);
    hasher.finish()
}

/// The name in SNI, which the certificate is checked against. Never empty: Pingora checks nothing without a name.
pub fn server_name(tls: &model::UpstreamTls, address: &BackendAddress) -> String {
    match (&tls.sni, address) {
        (Some(name), _) => name.clone(),
        (None, BackendAddress::Host(HostPort { host, .. })) => host.clone(),
        (None, BackendAddress::Inet(address)) => address.ip().to_string(),
        (None, BackendAddress::Unix(_)) => "localhost".to_owned(),
    }
}

/// What is offered to a backend. Pingora knows no order with HTTP/1.1 before HTTP/2, so both are offered h2 first.
pub(super) fn alpn(upstream: &model::Upstream) -> ALPN {
    match (upstream.protocol, &upstream.tls) {
        (UpstreamProtocol::Http1, _) | (UpstreamProtocol::Auto, None) => ALPN::H1,
        (UpstreamProtocol::Http2 | UpstreamProtocol::H2c, _) => ALPN::H2,
        (UpstreamProtocol::Auto, Some(tls)) => match (tls.alpn.contains(&Alpn::Http2), tls.alpn.contains(&Alpn::Http1))
        {
            (true, true) => ALPN::H2H1,
            (true, false) => ALPN::H2,
            (false, _) => ALPN::H1,
        },
    }
}

/// Pingora has one deadline for each read of an answer. HTTP/2 gets the longer of ours. HTTP/1.1 starts with that for
/// the first byte where it is the longer one, else with that between two reads, and the proxy sees to the rest.
fn read_timeout(upstream: &model::Upstream) -> Duration {
    upstream.timeouts.first_byte.max(upstream.timeouts.read)
}

/// Connections are shared only where this is equal, beside what Pingora compares itself (address, scheme, SNI,
/// verification).
fn group_key(upstream: &model::Upstream, profile: &TlsProfile, sni: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    profile.hash(&mut hasher);
    sni.hash(&mut hasher);
    upstream.tls.as_ref().map(|tls| tls.verify).hash(&mut hasher);
    alpn(upstream).hash(&mut hasher);
    std::mem::discriminant(&upstream.protocol).hash(&mut hasher);
    upstream.timeouts.idle.hash(&mut hasher);
    // A socket has it from its beginning (`connect.rs`).
    upstream.timeouts.write.hash(&mut hasher);
    upstream.proxy_protocol.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use pingora_core::upstreams::peer::Peer;

    use super::*;
    use crate::policy::proxy_protocol::{self, Agreed, Said};
    use crate::runtime::{connect::Connector, upstream::fixtures};

    fn peer(upstream: &model::Upstream) -> HttpPeer {
        let process = fixtures::process();
        let profile = TlsProfile::new(upstream.tls.as_ref(), &process);
        let connector =
            Arc::new(Connector::new(upstream.timeouts.connect, upstream.timeouts.write, &process, Arc::default()));
        template(upstream, &profile, &upstream.backends[0], connector)
    }

    fn tls_upstream() -> model::Upstream {
        let mut upstream = fixtures::upstream("app", &[("a", 1)]);
        upstream.tls = Some(fixtures::tls());
        upstream
    }

    #[test]
    fn different_tls_settings_never_share_a_connection() {
        let base = tls_upstream();
        let mut variants = vec![base.clone(), fixtures::upstream("app", &[("a", 1)])];
        let edits: [fn(&mut model::UpstreamTls); 6] = [
            |tls| tls.verify = false,
            |tls| tls.sni = Some("other.test".into()),
            |tls| tls.alpn = vec![Alpn::Http1],
            |tls| tls.alpn = vec![Alpn::Http2],
            |tls| tls.ca = Some(fixtures::trust_store("/ca.pem", b"one")),
            |tls| tls.ca = Some(fixtures::trust_store("/ca.pem", b"two")),
        ];
        for edit in edits {
            let mut changed = base.clone();
            changed.tls.iter_mut().for_each(edit);
            variants.push(changed);
        }
        let hashes: std::collections::BTreeSet<u64> =
            variants.iter().map(|upstream| peer(upstream).reuse_hash()).collect();
        assert_eq!(hashes.len(), variants.len());
    }

    #[test]
    fn what_a_socket_has_from_its_beginning_is_not_shared_with_what_it_should_have_now() {
        let mut other = tls_upstream();
        other.timeouts.write += Duration::from_secs(1);
        assert_ne!(peer(&tls_upstream()).reuse_hash(), peer(&other).reuse_hash());
    }

    #[test]
    fn equal_settings_share_connections_whatever_the_upstream_is_called() {
        let mut other = tls_upstream();
        other.name = "other".into();
        assert_eq!(peer(&tls_upstream()).reuse_hash(), peer(&other).reuse_hash());
    }

    #[test]
    fn a_connection_that_was_opened_with_another_deadline_is_not_taken() {
        // `write` is set on the socket, `idle` when it goes to the pool.
        let base = fixtures::upstream("app", &[("a", 1)]);
        let edits: [fn(&mut model::Timeouts); 2] =
            [|timeouts| timeouts.write += Duration::from_secs(1), |timeouts| timeouts.idle += Duration::from_secs(1)];
        for edit in edits {
            let mut changed = base.clone();
            edit(&mut changed.timeouts);
            assert_ne!(peer(&base).reuse_hash(), peer(&changed).reuse_hash());
        }
    }

    #[test]
    fn a_connection_for_one_client_is_not_taken_for_another() {
        let mut upstream = fixtures::upstream("app", &[("a", 1)]);
        upstream.proxy_protocol = Some(proxy_protocol::Version::V2);
        let agreed = |said, agreed: &Agreed| {
            let mut peer = peer(&upstream);
            announce(&mut peer, proxy_protocol::write(proxy_protocol::Version::V2, said, agreed));
            peer.reuse_hash()
        };
        let announced = |said| agreed(said, &Agreed::default());
        let client =
            |from: &str| Said::Client { from: from.parse().expect("an address"), to: ([10, 0, 0, 1], 80).into() };
        let all = [client("192.0.2.1:1"), client("192.0.2.1:2"), client("192.0.2.2:1"), Said::Local, Said::Unknown];
        let hashes: std::collections::BTreeSet<u64> = all.into_iter().map(announced).collect();
        assert_eq!(hashes.len(), all.len());
        assert_eq!(announced(client("192.0.2.1:1")), announced(client("192.0.2.1:1")));
        let of = |name: &str| Agreed { authority: Some(name.into()), alpn: None };
        assert_ne!(agreed(client("192.0.2.1:1"), &of("a.test")), agreed(client("192.0.2.1:1"), &of("b.test")));
        assert_ne!(agreed(client("192.0.2.1:1"), &of("a.test")), announced(client("192.0.2.1:1")));
        assert_ne!(peer(&upstream).reuse_hash(), peer(&fixtures::upstream("app", &[("a", 1)])).reuse_hash());
    }

    #[test]
    fn the_protocol_decides_the_versions() {
        let mut upstream = fixtures::upstream("app", &[("a", 1)]);
        assert_eq!(peer(&upstream).options.alpn, ALPN::H1);
        upstream.protocol = UpstreamProtocol::H2c;
        assert_eq!(peer(&upstream).options.alpn, ALPN::H2);
        assert!(!peer(&upstream).is_tls());
        let mut upstream = tls_upstream();
        assert_eq!(peer(&upstream).options.alpn, ALPN::H2H1);
        upstream.protocol = UpstreamProtocol::Http1;
        assert_eq!(peer(&upstream).options.alpn, ALPN::H1);
    }

    #[test]
    fn a_name_is_always_checked_where_verification_is_on() {
        let mut tls = fixtures::tls();
        tls.sni = None;
        let host = BackendAddress::Host(HostPort { host: "app.test".into(), port: 443 });
        assert_eq!(server_name(&tls, &host), "app.test");
        assert_eq!(server_name(&tls, &BackendAddress::Inet(SocketAddr::from(([10, 0, 0, 1], 443)))), "10.0.0.1");
        assert!(!server_name(&tls, &BackendAddress::Unix("/run/x".into())).is_empty());
    }

    #[test]
    fn the_process_trust_store_is_the_default() {
        let mut process = fixtures::process();
        process.ca_file = Some("/process.pem".into());
        let mut tls = fixtures::tls();
        assert_eq!(TlsProfile::new(Some(&tls), &process).ca, Some("/process.pem".into()));
        assert_eq!(TlsProfile::new(None, &process), TlsProfile::default());
        tls.ca = Some(fixtures::trust_store("/own.pem", b"x"));
        let profile = TlsProfile::new(Some(&tls), &process);
        assert_eq!(profile.connector_options(&process).ca_file.as_deref(), Some("/own.pem"));
    }
}

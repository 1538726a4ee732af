//! Against a TLS backend of the test itself: sessions, tickets, names, and what is shared.

use std::{
    future::poll_fn,
    net::SocketAddr as InetAddr,
    pin::Pin,
    task::Poll,
    time::{Duration, Instant},
};

use pingora_core::ErrorType;
use rustls::{HandshakeKind, ServerConfig, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncReadExt, AsyncWrite as _, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, server};
use tokio_util::either::Either;

use super::*;
use crate::runtime::{
    connect::Connector,
    line::{Layer, Line, Opener, Pool},
    upstream::{Upstream, fixtures},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A TLS backend, and what trusts it under the name `app.test`.
struct Backend {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    address: InetAddr,
    tls: model::UpstreamTls,
}

impl Backend {
    async fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(["app.test".to_owned()]).expect("certificate");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("key");
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.expect("versions").with_no_client_auth();
        let mut server = builder.with_single_cert(vec![made.cert.der().clone()], key).expect("certificate and key");
        server.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let address = listener.local_addr().expect("bound");
        let ca = fixtures::trust_store("/ca.pem", made.cert.der());
        let tls = model::UpstreamTls { ca: Some(ca), ..fixtures::tls() };
        Self { listener, acceptor: TlsAcceptor::from(Arc::new(server)), address, tls }
    }

    async fn accept(&self) -> io::Result<server::TlsStream<TcpStream>> {
        let socket = self.listener.accept().await?.0;
        self.acceptor.accept(socket).await
    }

    /// Both ends of a connection of `client`'s.
    async fn connected(&self, client: &TlsClient) -> (TlsStream<Socket>, server::TlsStream<TcpStream>) {
        self.offered(client, Offer::Either).await
    }

    /// The same, where no more than this is offered.
    async fn offered(&self, client: &TlsClient, offer: Offer) -> (TlsStream<Socket>, server::TlsStream<TcpStream>) {
        let socket = TcpStream::connect(self.address).await.expect("connects");
        let to = SocketAddr::Inet(self.address);
        let connect = client.connect(Either::Left(socket), &to, "app.test", offer);
        let (ours, theirs) = tokio::join!(connect, self.accept());
        (ours.expect("a handshake"), theirs.expect("a handshake"))
    }

    /// One byte to us and the end, so that tickets were read. Returns how the handshake went.
    async fn visited(&self, client: &TlsClient) -> Option<HandshakeKind> {
        let (mut ours, mut theirs) = self.connected(client).await;
        theirs.write_all(b"x").await.expect("room");
        theirs.shutdown().await.expect("open");
        ours.read_to_end(&mut Vec::new()).await.expect("a byte");
        ours.get_ref().1.handshake_kind()
    }
}

fn client(tls: &model::UpstreamTls) -> Arc<TlsClient> {
    offering(tls, Offer::Http1)
}

fn offering(tls: &model::UpstreamTls, offer: Offer) -> Arc<TlsClient> {
    let process = fixtures::process();
    TlsClients::default().of(tls, &TlsProfile::new(Some(tls), &process), &process, offer)
}

fn opener(tls: &model::UpstreamTls, patience: Duration) -> Opener {
    let connector = Connector::new(PATIENCE, PATIENCE, &fixtures::process(), Arc::default());
    Opener::new(Arc::new(connector), Offer::Either, Some((client(tls), patience)))
}

#[tokio::test]
async fn sessions_are_resumed_verified_or_not_and_each_backend_has_its_own() {
    for verify in [true, false] {
        let (backend, other) = (Backend::start().await, Backend::start().await);
        let trust = |backend: &Backend| backend.tls.ca.as_ref().expect("a store").certificates[0].clone();
        let both = model::TrustStore { path: "/both".into(), certificates: [trust(&backend), trust(&other)].into() };
        let client = client(&model::UpstreamTls { verify, ca: Some(both), ..fixtures::tls() });
        assert_eq!(backend.visited(&client).await, Some(HandshakeKind::Full));
        for _ in 0..12 {
            // Tickets of one that has the same name are not tried at the other, nor do they push out its own.
            other.visited(&client).await;
        }
        assert_eq!(backend.visited(&client).await, Some(HandshakeKind::Resumed), "verify: {verify}");
        assert_eq!(other.visited(&client).await, Some(HandshakeKind::Resumed), "verify: {verify}");
    }
}

#[tokio::test]
async fn http2_is_offered_where_it_may_be_spoken() {
    let backend = Backend::start().await;
    for (offer, chosen) in [(Offer::Http1, &b"http/1.1"[..]), (Offer::Either, HTTP2), (Offer::Http2, HTTP2)] {
        let (ours, _theirs) = backend.connected(&offering(&backend.tls, offer)).await;
        assert_eq!(ours.get_ref().1.alpn_protocol(), Some(chosen));
        assert_eq!(chose_http2(&ours), offer != Offer::Http1);
    }
}

#[tokio::test]
async fn for_once_http2_is_not_offered_and_then_it_is_again() {
    let backend = Backend::start().await;
    let client = offering(&backend.tls, Offer::Either);
    for (offer, chosen) in
        [(Offer::Either, HTTP2), (Offer::Http1, HTTP1), (Offer::Either, HTTP2), (Offer::Http1, HTTP1)]
    {
        let (ours, _theirs) = backend.offered(&client, offer).await;
        assert_eq!(ours.get_ref().1.alpn_protocol(), Some(chosen));
    }
}

#[tokio::test]
async fn the_same_settings_have_one_client_and_others_another() {
    let (process, clients) = (fixtures::process(), TlsClients::default());
    let of = |tls: &model::UpstreamTls| clients.of(tls, &TlsProfile::new(Some(tls), &process), &process, Offer::Http1);
    let tls = model::UpstreamTls { ca: Some(fixtures::trust_store("/ca.pem", b"one")), ..fixtures::tls() };
    let first = of(&tls);
    let named = model::UpstreamTls { sni: Some("other.test".into()), ..tls.clone() };
    assert!(Arc::ptr_eq(&first, &of(&named)), "the name is not the client's");
    let loose = of(&model::UpstreamTls { verify: false, ..tls.clone() });
    let renewed = of(&model::UpstreamTls { ca: Some(fixtures::trust_store("/ca.pem", b"two")), ..tls.clone() });
    assert!(!Arc::ptr_eq(&first, &loose) && !Arc::ptr_eq(&first, &renewed));
    assert_eq!(lock(&clients.0).len(), 3);
    drop((loose, renewed));
    let _another = of(&model::UpstreamTls { ca: Some(fixtures::trust_store("/ca.pem", b"three")), ..tls.clone() });
    assert_eq!(lock(&clients.0).len(), 2, "what nobody uses is forgotten");
}

#[tokio::test]
async fn an_upstream_that_is_built_again_keeps_its_client() {
    let (process, backend) = (fixtures::process(), Backend::start().await);
    let mut model = fixtures::upstream("app", &[("a", 1)]);
    model.tls = Some(model::UpstreamTls { alpn: vec![model::Alpn::Http1], ..backend.tls.clone() });
    let first = Upstream::build(&model, model.backends.clone(), &process, None);
    let again = Upstream::build(&model, model.backends.clone(), &process, Some(&first));
    let shown = |upstream: &Upstream| upstream.exchange().map(|opener| opener.client().map(Arc::as_ptr));
    assert!(shown(&first).flatten().is_some());
    assert_eq!(shown(&first), shown(&again));
    model.tls = Some(model::UpstreamTls { verify: false, alpn: vec![model::Alpn::Http1], ..backend.tls.clone() });
    let loose = Upstream::build(&model, model.backends.clone(), &process, Some(&again));
    assert_ne!(shown(&again), shown(&loose));
    model.tls = Some(backend.tls.clone());
    let either = Upstream::build(&model, model.backends.clone(), &process, Some(&again));
    assert!(shown(&either).is_some_and(|client| shown(&again) != Some(client)), "it may speak HTTP/2");
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_ends_and_may_be_tried_elsewhere() {
    let backend = Backend::start().await;
    let target = SocketAddr::Inet(backend.address);
    let late = opener(&backend.tls, Duration::from_millis(50)).open(&target, "app.test", Offer::Either, None).await;
    let late = late.map(|_| ()).expect_err("nobody answers");
    assert_eq!(late.etype(), &ErrorType::TLSHandshakeTimedout);
    assert!(late.retry());
}

#[tokio::test]
async fn a_certificate_for_another_name_is_refused_in_rustls_words() {
    let backend = Backend::start().await;
    let target = SocketAddr::Inet(backend.address);
    let opener = opener(&backend.tls, PATIENCE);
    let (refused, _) = tokio::join!(opener.open(&target, "else.test", Offer::Either, None), backend.accept());
    let refused = refused.map(|_| ()).expect_err("another name");
    assert_eq!(refused.etype(), &ErrorType::TLSHandshakeFailure);
    assert!(refused.to_string().contains("not valid for name"), "{refused}");
    assert!(refused.retry());
}

#[tokio::test]
async fn tickets_are_no_noise_on_an_idle_connection_and_bytes_are() {
    let backend = Backend::start().await;
    let home = home();
    let anchor = || Some(home.backends()[0].anchor(home.backends()[0].target().expect("an address")));
    let (pool, client, now) = (Pool::new(8), client(&backend.tls), Instant::now());
    for (said, kept) in [(None, true), (Some(&b"HTTP/1.1 200 OK\r\n\r\n"[..]), false), (Some(b""), false)] {
        let (ours, mut theirs) = backend.connected(&client).await;
        // The tickets, which came after the handshake.
        readable(&ours).await;
        pool.put(1, Either::Right(Box::new(Layer::Tls(ours))), now, PATIENCE, anchor);
        assert_eq!(pool.sweep(now, None), 1);
        let Some(Line::Right(line)) = pool.take(1, now) else { panic!("tickets are noise") };
        match said {
            None => {}
            Some(b"") => drop(theirs),
            Some(bytes) => theirs.write_all(bytes).await.expect("room"),
        }
        if !kept {
            let Layer::Tls(stream) = &*line else { panic!("not HTTP/2") };
            readable(stream).await;
        }
        pool.put(1, Either::Right(line), now, PATIENCE, anchor);
        assert_eq!(pool.sweep(now, None), usize::from(kept), "{said:?}");
        assert_eq!(pool.take(1, now).is_some(), kept, "{said:?}");
    }
}

#[tokio::test]
async fn a_connection_that_still_has_something_to_write_is_not_kept() {
    let backend = Backend::start().await;
    let (mut ours, _theirs) = backend.connected(&client(&backend.tls)).await;
    // Nobody reads.
    while let Poll::Ready(written) = poll_fn(|cx| Poll::Ready(Pin::new(&mut ours).poll_write(cx, &[0; 65536]))).await {
        written.expect("open");
    }
    let (pool, now, home) = (Pool::new(8), Instant::now(), home());
    let anchor = || Some(home.backends()[0].anchor(home.backends()[0].target().expect("an address")));
    pool.put(1, Either::Right(Box::new(Layer::Tls(ours))), now, PATIENCE, anchor);
    assert!(pool.take(1, now).is_none());
}

fn home() -> Arc<Upstream> {
    let model = fixtures::upstream("app", &[("a", 1)]);
    Upstream::build(&model, model.backends.clone(), &fixtures::process(), None)
}

async fn readable(stream: &TlsStream<Socket>) {
    let Either::Left(tcp) = stream.get_ref().0 else { panic!("not a unix socket") };
    tokio::time::timeout(PATIENCE, tcp.readable()).await.expect("in time").expect("open");
}

//! The PROXY protocol: from load balancers to listeners, and from rrlb to backends.

use std::{net::SocketAddr, sync::Arc};

use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, BufWriter},
    net::TcpListener,
    sync::mpsc::{UnboundedSender, unbounded_channel},
};

use crate::support::{
    address,
    http1::{Client, Wire, get},
    http2::request,
    origin::{Origin, Peer},
    proxy::{Config, Proxy},
    tls::Ca,
    within,
};

const V1: &str = "PROXY TCP4 203.0.113.7 198.51.100.9 4242 443\r\n";
const BELIEVED: &str = "listeners: [{ address: <listen>, h2c: true, proxy_protocol: { from: 127.0.0.0/8 } }]";

/// The same as [`V1`] in version 2, with extensions: ALPN, authority, no-op and an unknown one.
fn v2() -> Vec<u8> {
    let rest = b"\x01\x00\x02h2\x02\x00\x06a.test\x04\x00\x03xxx\xe0\x00\x01?";
    let length = u8::try_from(12 + rest.len()).expect("short");
    let addresses = [203, 0, 113, 7, 198, 51, 100, 9, 0x10, 0x92, 1, 0xbb];
    [b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0", &[length][..], &addresses, rest].concat()
}

async fn believed(origin: &Origin) -> Proxy {
    Config::before(&[origin], BELIEVED).start().await
}

fn forwarded_for(origin: &Origin) -> Vec<String> {
    origin.requests().iter().map(|request| request.field("x-forwarded-for").unwrap_or("-").to_owned()).collect()
}

#[tokio::test]
async fn the_client_is_who_the_header_says() {
    let origin = Origin::echo("a").await;
    let proxy = believed(&origin).await;
    for header in [V1.as_bytes().to_vec(), v2()] {
        let mut client = proxy.client().await;
        // Coalesced with the first request; the second is ordinary.
        client.send([&header[..], get("/").as_bytes()].concat()).await;
        assert_eq!(client.response().await.status(), 200);
        assert_eq!(client.get("/").await.status(), 200);
    }
    assert_eq!(forwarded_for(&origin), ["203.0.113.7"; 4]);
    for line in proxy.access_log(4).await {
        assert_eq!(line["client"], "203.0.113.7", "{line}");
    }
    for result in ["v1", "v2"] {
        let label = format!("result=\"{result}\"");
        proxy.metric("rrlb_proxy_protocol_total", &[&label], |n| n == 1.0).await;
    }
}

#[tokio::test]
async fn a_header_may_come_byte_by_byte() {
    let origin = Origin::echo("a").await;
    let proxy = believed(&origin).await;
    for header in [V1.as_bytes().to_vec(), v2()] {
        let mut client = proxy.client().await;
        for byte in header.iter().chain(get("/").as_bytes()) {
            client.send([*byte]).await;
            tokio::task::yield_now().await;
        }
        assert_eq!(client.response().await.status(), 200);
        for split in (1..header.len()).step_by(7) {
            let mut client = proxy.client().await;
            client.send(&header[..split]).await;
            tokio::task::yield_now().await;
            client.send([&header[split..], get("/").as_bytes()].concat()).await;
            assert_eq!(client.response().await.status(), 200);
        }
    }
    assert!(forwarded_for(&origin).iter().all(|client| client == "203.0.113.7"));
}

#[tokio::test]
async fn a_header_that_names_nobody_leaves_the_connections_own_address() {
    let origin = Origin::echo("a").await;
    let proxy = believed(&origin).await;
    for header in ["PROXY UNKNOWN\r\n", "\r\n\r\n\0\r\nQUIT\n\x20\0\0\0", "\r\n\r\n\0\r\nQUIT\n\x21\0\0\0"] {
        let mut client = proxy.client().await;
        client.send(format!("{header}{}", get("/"))).await;
        assert_eq!(client.response().await.status(), 200);
    }
    assert_eq!(forwarded_for(&origin), ["127.0.0.1"; 3]);
    proxy.metric("rrlb_proxy_protocol_total", &["result=\"local\""], |n| n == 1.0).await;
}

#[tokio::test]
async fn http2_by_prior_knowledge_may_follow_the_header() {
    let origin = Origin::echo("a").await;
    let proxy = believed(&origin).await;
    let mut stream = BufWriter::new(tokio::net::TcpStream::connect(proxy.listen).await.expect("connect"));
    stream.write_all(&v2()).await.expect("write");
    let (send, connection) = within("h2", h2::client::handshake(stream)).await.expect("h2");
    let connection = tokio::spawn(connection);
    let mut send = send.ready().await.expect("ready");
    let (response, _) = send.send_request(request("GET", "/"), true).expect("a stream");
    assert_eq!(within("answer", response).await.expect("an answer").status(), 200);
    assert_eq!(forwarded_for(&origin), ["203.0.113.7"]);
    connection.abort();
}

async fn over_tls(to: SocketAddr, header: &[u8], config: &Arc<ClientConfig>, together: bool) -> Wire {
    let stream = tokio::net::TcpStream::connect(to).await.expect("connect");
    stream.set_nodelay(true).expect("nodelay");
    // What is not flushed leaves together with the ClientHello.
    let mut stream = BufWriter::new(stream);
    if !header.is_empty() {
        stream.write_all(header).await.expect("write");
    }
    if !together {
        stream.flush().await.expect("flush");
    }
    let connector = tokio_rustls::TlsConnector::from(config.clone());
    let name = ServerName::try_from("a.test").expect("a name");
    Wire::new(within("handshake", connector.connect(name, stream)).await.expect("a handshake"))
}

#[tokio::test]
async fn tls_begins_behind_the_header() {
    let (origin, ca) = (Origin::echo("a").await, Ca::new());
    let yaml = "
        certificates: { main: <main> }
        listeners: [{ address: <listen>, tls: { certificates: [main] }, proxy_protocol: { from: [127.0.0.1, 127.0.0.2], required: <required> } }]";
    let leaf = ca.issue(&["a.test"]);
    for required in [true, false] {
        let config = Config::before(&[&origin], yaml).put("required", required);
        let main = leaf.write(config.dir(), "main");
        let proxy = config.put("main", main).start().await;
        let config = ca.client(&["http/1.1"]);
        for (header, together) in [(V1.as_bytes(), true), (V1.as_bytes(), false), (&v2(), true), (&v2(), false)] {
            let mut wire = over_tls(proxy.listen, header, &config, together).await;
            wire.send(get("/")).await.expect("send");
            let head = within("answer", wire.head()).await.expect("an answer").expect("an answer");
            assert_eq!(head.status(), 200);
        }
        if !required {
            let mut wire = over_tls(proxy.listen, b"", &config, true).await;
            wire.send(get("/plain")).await.expect("send");
            assert!(within("answer", wire.head()).await.expect("an answer").is_some());
        }
    }
    let seen = forwarded_for(&origin);
    assert_eq!(seen[..8], ["203.0.113.7"; 8]);
    assert_eq!(seen[8..], ["127.0.0.1"]);
}

#[tokio::test]
async fn without_the_header_nobody_is_served_where_it_is_required() {
    let origin = Origin::echo("a").await;
    let proxy = believed(&origin).await;
    for (sent, result) in [
        (get("/").into_bytes(), "missing"),
        (b"\x16\x03\x01\x02\0".to_vec(), "missing"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 99999\r\n".to_vec(), "malformed"),
        (b"PROXY TCP4 1.2.3.4 1.2.3.4 1 2\n".to_vec(), "malformed"),
        ([b"PROXY UNKNOWN ", &[b'x'; 200][..]].concat(), "malformed"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x03abc".to_vec(), "malformed"),
        // A checksum that is wrong.
        (
            b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x13\x01\x02\x03\x04\x01\x02\x03\x04\0\x01\0\x02\x03\0\x04\0\0\0\0"
                .to_vec(),
            "malformed",
        ),
    ] {
        let label = format!("result=\"{result}\"");
        let before = proxy.scrape().await.sum("rrlb_proxy_protocol_total", &[&label]);
        let mut client = proxy.client().await;
        client.send([&sent[..], get("/").as_bytes()].concat()).await;
        assert_eq!(client.closed().await, b"", "{sent:?}");
        proxy.metric("rrlb_proxy_protocol_total", &[&label], |n| n == before + 1.0).await;
    }
    assert_eq!(origin.total(), 0);
}

#[tokio::test]
async fn a_header_from_elsewhere_is_never_believed() {
    let origin = Origin::echo("a").await;
    let yaml = "
        listeners:
          - { address: <listen>, proxy_protocol: { from: [10.0.0.0/8, \"fd00::/8\"] } }
          - { address: \"<lenient>\", proxy_protocol: { from: [10.0.0.0/8], required: false } }";
    let lenient = address::unused();
    let proxy = Config::before(&[&origin], yaml).put("lenient", lenient).start().await;
    for sent in [format!("{V1}{}", get("/")), get("/")] {
        let mut client = proxy.client().await;
        client.send(sent).await;
        assert_eq!(client.closed().await, b"");
    }
    proxy.metric("rrlb_proxy_protocol_total", &["result=\"refused\""], |n| n == 2.0).await;
    for header in [V1.as_bytes().to_vec(), v2()] {
        let mut client = Client::connect(lenient).await;
        assert_eq!(client.ask([&header[..], get("/").as_bytes()].concat()).await.status(), 400);
    }
    assert_eq!(origin.total(), 0);
    assert_eq!(Client::connect(lenient).await.get("/").await.status(), 200);
    assert_eq!(forwarded_for(&origin), ["127.0.0.1"]);
}

#[tokio::test]
async fn where_it_is_not_required_a_believed_peer_may_do_without() {
    let origin = Origin::echo("a").await;
    let yaml = "listeners: [{ address: <listen>, proxy_protocol: { from: 127.0.0.1, required: false } }]";
    let proxy = Config::before(&[&origin], yaml).start().await;
    for header in ["", V1] {
        let mut client = proxy.client().await;
        client.send(header).await;
        assert_eq!(client.ask("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 2\r\n\r\nhi").await.text(), "hi");
    }
    assert_eq!(forwarded_for(&origin), ["127.0.0.1", "203.0.113.7"]);
}

/// A header of version 1 for this client.
fn told_of(client: &str) -> String {
    let (family, to) = if client.contains(':') { ("TCP6", "2001:db8::9") } else { ("TCP4", "198.51.100.9") };
    format!("PROXY {family} {client} {to} 4242 443\r\n")
}

#[tokio::test]
async fn connections_are_counted_by_the_client_that_the_header_tells() {
    let (origin, ca) = (Origin::echo("a").await, Ca::new());
    let yaml = "
        certificates: { main: <main> }
        listeners:
          - { address: <listen>, proxy_protocol: { from: 127.0.0.0/8, required: false }, limits: { connections_per_ip: 1 } }
          - { address: \"<tls>\", tls: { certificates: [main] }, proxy_protocol: { from: 127.0.0.0/8 }, limits: { connections_per_ip: 1 } }";
    let secure = address::unused();
    let config = Config::before(&[&origin], yaml).put("tls", secure);
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    let served = async |header: &str| {
        let mut client = proxy.client().await;
        client.send(format!("{header}{}", get("/"))).await;
        assert_eq!(client.response().await.status(), 200, "{header:?}");
        client
    };
    let refused = async |header: &str| {
        let mut client = proxy.client().await;
        client.send(format!("{header}{}", get("/"))).await;
        assert_eq!(client.response().await.status(), 429, "{header:?}");
        assert_eq!(client.closed().await, b"", "{header:?}");
    };
    let first = served(&told_of("203.0.113.1")).await;
    let _others = [
        served(&told_of("203.0.113.2")).await,
        served(&told_of("2001:db8::1")).await,
        served(&told_of("2001:db8:0:1::1")).await,
        // The load balancer's own, and those it says nothing about: held by `connections` alone.
        served("PROXY UNKNOWN\r\n").await,
        served("PROXY UNKNOWN\r\n").await,
        served("\r\n\r\n\0\r\nQUIT\n\x20\0\0\0").await,
        served("\r\n\r\n\0\r\nQUIT\n\x20\0\0\0").await,
        // Without a header it is a client as any other.
        served("").await,
    ];
    for header in [told_of("203.0.113.1"), told_of("2001:db8::ffff:1"), String::new()] {
        refused(&header).await;
    }
    proxy.metric("rrlb_connections_refused_total", &["cause=\"per_ip\""], |n| n == 3.0).await;
    drop(first);
    crate::support::eventually("a place to be free", async || {
        let mut client = proxy.client().await;
        client.send(told_of("203.0.113.1")).await;
        client.try_get("/").await.is_ok_and(|reply| reply.status() == 200)
    })
    .await;
    let config = ca.client(&["http/1.1"]);
    let _first = over_tls(secure, told_of("203.0.113.1").as_bytes(), &config, true).await;
    let _second = over_tls(secure, told_of("203.0.113.2").as_bytes(), &config, true).await;
    let mut third = Client::connect(secure).await;
    third.send(told_of("203.0.113.1")).await;
    assert_eq!(third.closed().await, b"");
}

#[tokio::test]
async fn of_balancer_and_client_each_is_asked_what_it_can_answer() {
    const LOCAL: &str = "\r\n\r\n\0\r\nQUIT\n\x20\0\0\0";
    const UNKNOWN: &str = "PROXY UNKNOWN\r\n";
    let origin = Origin::echo("a").await;
    // Both the balancer's network and one of clients are trusted to say who they speak for.
    let yaml = "
        trusted_proxies: [127.0.0.0/8, 192.0.2.0/24]
        listeners: [{ address: <listen>, proxy_protocol: { from: 127.0.0.0/8 }, deny: [203.0.113.66] }]";
    let proxy = Config::before(&[&origin], yaml).start().await;
    let claims = "GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 198.51.100.1\r\n\r\n";
    for (header, client) in [
        // What the client wrote went through the balancer unread.
        (told_of("203.0.113.7"), "203.0.113.7"),
        (told_of("192.0.2.1"), "198.51.100.1"),
        (UNKNOWN.to_owned(), "127.0.0.1"),
        (LOCAL.to_owned(), "198.51.100.1"),
    ] {
        let mut asking = proxy.client().await;
        assert_eq!(asking.ask(format!("{header}{claims}")).await.status(), 200);
        let line = proxy.access_log(origin.total()).await.pop().expect("a line");
        assert_eq!((&line["client"], &line["peer"]), (&client.into(), &"127.0.0.1".into()), "{header:?}: {line}");
    }
    let mut denied = proxy.client().await;
    assert_eq!(denied.ask(format!("{}{claims}", told_of("203.0.113.66"))).await.status(), 403);
}

#[tokio::test]
async fn a_header_that_does_not_come_ends_with_the_deadline() {
    let (origin, ca) = (Origin::echo("a").await, Ca::new());
    let yaml = "
        certificates: { main: <main> }
        listeners:
          - { address: <listen>, proxy_protocol: { from: 127.0.0.1 }, limits: { header_timeout: 200ms } }
          - { address: \"<tls>\", tls: { certificates: [main] }, proxy_protocol: { from: 127.0.0.1 }, limits: { handshake_timeout: 200ms } }";
    let secure = address::unused();
    let config = Config::before(&[&origin], yaml).put("tls", secure);
    let main = ca.issue(&["a.test"]).write(config.dir(), "main");
    let proxy = config.put("main", main).start().await;
    for (index, to) in [proxy.listen, secure].into_iter().enumerate() {
        let mut client = Client::connect(to).await;
        client.send(&V1[..20]).await;
        assert_eq!(client.closed().await, b"");
        let expected = index as f64 + 1.0;
        proxy.metric("rrlb_proxy_protocol_total", &["result=\"timeout\""], |n| n == expected).await;
    }
}

#[tokio::test]
async fn ip_hash_goes_by_the_client_of_the_header() {
    let origins = [Origin::echo("a").await, Origin::echo("b").await];
    let yaml = format!(
        "upstreams: {{ app: {{ backends: [\"{}\", \"{}\"], balance: ip_hash }} }}\n{BELIEVED}",
        origins[0].address, origins[1].address
    );
    let proxy = Config::new(&yaml).start().await;
    let mut seen = std::collections::BTreeSet::new();
    for host in 1..40 {
        let mut first = None;
        for port in [1, 2] {
            let mut client = proxy.client().await;
            client.send(format!("PROXY TCP4 192.0.2.{host} 192.0.2.1 {port} 80\r\n")).await;
            let origin = client.get("/").await.origin().to_owned();
            assert_eq!(*first.get_or_insert(origin.clone()), origin);
            seen.insert(origin);
        }
    }
    assert_eq!(seen.len(), 2);
}

/// Reads a PROXY header and answers every request with it.
async fn told(mut peer: Peer) {
    let Some(header) = header(&mut peer.wire).await else { return };
    while peer.request().await.is_some() {
        peer.reply(200, "", &header).await;
    }
}

/// The header as words: version, then the line, or the parts of version 2.
async fn header(wire: &mut Wire) -> Option<String> {
    let start = wire.take(6).await.ok()?;
    if start == b"PROXY " {
        return wire.line().await.ok().map(|line| format!("v1 {line}"));
    }
    let rest = wire.take(10).await.ok()?;
    assert_eq!([&start[..], &rest[..6]].concat(), b"\r\n\r\n\0\r\nQUIT\n");
    let addresses = wire.take(usize::from(u16::from_be_bytes([rest[8], rest[9]]))).await.ok()?;
    let text = |ip: &[u8]| ip.iter().map(u8::to_string).collect::<Vec<_>>().join(".");
    let port = |at: usize| u16::from_be_bytes([addresses[at], addresses[at + 1]]);
    Some(match addresses.len() {
        0 => format!("v2 {:x} {:x}", rest[6], rest[7]),
        12 => format!("v2 TCP4 {} {} {} {}", text(&addresses[..4]), text(&addresses[4..8]), port(8), port(10)),
        other => panic!("{other} bytes of addresses"),
    })
}

#[tokio::test]
async fn a_backend_is_told_who_the_client_is() {
    for (version, words) in [("v1", "v1 TCP4"), ("v2", "v2 TCP4")] {
        let origin = Origin::script("a", told).await;
        let yaml = format!(
            "upstreams: {{ app: {{ backends: [\"{}\"], proxy_protocol: {version} }} }}\n\
             listeners: [{{ address: <listen> }}, {{ address: \"<behind>\", h2c: true, proxy_protocol: {{ from: 127.0.0.1 }} }}]\n",
            origin.address
        );
        let behind = address::unused();
        let proxy = Config::new(&yaml).put("behind", behind).start().await;
        // One connection for one client: its requests share it, others do not.
        let mut headers = Vec::new();
        for _ in 0..3 {
            let mut client = proxy.client().await;
            let first = client.get("/").await.text();
            assert_eq!(client.get("/").await.text(), first);
            let (start, end) =
                (format!("{words} 127.0.0.1 {} ", proxy.listen.ip()), format!(" {}", proxy.listen.port()));
            assert!(first.starts_with(&start) && first.ends_with(&end), "{first}");
            headers.push(first);
        }
        headers.sort_unstable();
        headers.dedup();
        assert_eq!((headers.len(), origin.connections()), (3, 3));
        // What a load balancer said is passed on.
        let mut client = Client::connect(behind).await;
        client.send(V1).await;
        assert_eq!(client.get("/").await.text(), format!("{words} 203.0.113.7 198.51.100.9 4242 443"));
    }
}

/// Pingora takes an empty line for the last chunk; who is told of its clients is answered for by our own client side as others are.
#[tokio::test]
async fn the_answers_of_who_is_told_are_held_to_their_framing_too() {
    let origin = Origin::script("a", |mut peer| async move {
        let Some(_) = header(&mut peer.wire).await else { return };
        while peer.request().await.is_some() {
            let chunks = "6\r\nfirst \r\n\r\n6\r\nsecond\r\n0\r\n\r\n";
            peer.send(format!("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}")).await;
        }
    })
    .await;
    let yaml = format!(
        "upstreams: {{ app: {{ backends: [\"{}\"], proxy_protocol: v2 }} }}\nlisteners: [{{ address: <listen> }}]\n",
        origin.address
    );
    let proxy = Config::new(&yaml).start().await;
    let mut client = proxy.client().await;
    client.send("GET / HTTP/1.1\r\nHost: a.test\r\n\r\n").await;
    let answer = String::from_utf8(client.closed().await).expect("text");
    assert!(!answer.ends_with("0\r\n\r\n"), "{answer}");
    assert_eq!(proxy.access_log(1).await[0]["reason"], "response_truncated");
}

#[tokio::test]
async fn a_client_without_an_address_is_unknown_to_the_backend() {
    for (version, told_as) in [("v1", "v1 UNKNOWN"), ("v2", "v2 21 0")] {
        let origin = Origin::script("a", told).await;
        let yaml = format!(
            "upstreams: {{ app: {{ backends: [\"{}\"], proxy_protocol: {version} }} }}\n\
             listeners: [{{ address: \"unix:<dir>/in.sock\" }}]\n",
            origin.address
        );
        let proxy = Config::new(&yaml).start().await;
        let mut client = Client::unix(&proxy.config.dir().join("in.sock")).await;
        assert_eq!(client.get("/").await.text(), told_as);
    }
}

/// A TLS origin that expects the header in plain text before the handshake.
async fn told_before_tls(config: Arc<ServerConfig>, told: UnboundedSender<String>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
    let address = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (acceptor, told) = (tokio_rustls::TlsAcceptor::from(config.clone()), told.clone());
            tokio::spawn(async move {
                // By the line and no byte further: the ClientHello comes next.
                let mut line = Vec::new();
                while !line.ends_with(b"\r\n") {
                    line.push(stream.read_u8().await.expect("a header"));
                }
                let _ = told.send(String::from_utf8_lossy(&line).into_owned());
                let mut wire = Wire::new(acceptor.accept(stream).await.expect("a handshake"));
                while let Ok(Some(_)) = wire.head().await {
                    let _ = wire.send("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn the_header_goes_before_the_handshake_with_a_backend() {
    let (ca, (send, mut receive)) = (Ca::new(), unbounded_channel());
    let address = told_before_tls(ca.issue(&["origin.test"]).server(&["h2", "http/1.1"]), send).await;
    let yaml = "upstreams: { app: { backends: [\"<a>\"], proxy_protocol: v1, tls: { sni: origin.test, ca: <ca> } } }";
    let config = Config::new(yaml).put("a", address);
    let path = ca.write(config.dir());
    let proxy = config.put("ca", path.display()).start().await;
    // HTTP/1.1, though the origin would take HTTP/2.
    assert_eq!(proxy.get("/").await.text(), "ok");
    let told = receive.recv().await.expect("a header");
    assert!(told.starts_with(&format!("PROXY TCP4 127.0.0.1 {} ", proxy.listen.ip())), "{told:?}");
}

#[tokio::test]
async fn probes_speak_for_themselves() {
    for (version, told_as) in [("v1", "v1 UNKNOWN"), ("v2", "v2 20 0")] {
        for check in ["tcp", "http"] {
            let (send, mut receive) = unbounded_channel();
            let origin = Origin::script("a", move |mut peer| {
                let send = send.clone();
                async move {
                    let Some(header) = header(&mut peer.wire).await else { return };
                    let _ = send.send(header.clone());
                    while peer.request().await.is_some() {
                        peer.reply(200, "", &header).await;
                    }
                }
            })
            .await;
            let yaml = format!(
                "upstreams: {{ app: {{ backends: [\"{}\"], proxy_protocol: {version}, \
                 health_check: {{ type: {check}, interval: 50ms, rise: 1 }} }} }}\n",
                origin.address
            );
            let proxy = Config::new(&yaml).start().await;
            assert_eq!(within("a probe", receive.recv()).await.as_deref(), Some(told_as));
            proxy.metric("rrlb_backend_up", &[], |up| up == 1.0).await;
            assert!(proxy.get("/").await.text().contains("TCP4 127.0.0.1"));
        }
    }
}

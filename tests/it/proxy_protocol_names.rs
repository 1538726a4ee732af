//! What a PROXY header of version 2 tells a backend beside addresses: the name and the protocol of the client's TLS.

use std::sync::Arc;

use rustls::ClientConfig;
use tokio::io::AsyncWriteExt;

use crate::support::{
    address,
    http1::{Client, Wire, get},
    http2::Client2,
    origin::{Origin, Peer},
    proxy::{Config, Proxy},
    tls::Ca,
};

/// The start of each header.
const START: &[u8] = b"\r\n\r\n\0\r\nQUIT\n\x21\x11";
/// 203.0.113.7:4242 to 198.51.100.9:443, as two parts of a header: the length is between.
const ADDRESSES: [u8; 12] = [203, 0, 113, 7, 198, 51, 100, 9, 0x10, 0x92, 1, 0xbb];

/// Answers each request with the header of its connection, in hexadecimal digits.
async fn quote(mut peer: Peer) {
    let Ok(start) = peer.wire.take(16).await else { return };
    let length = usize::from(u16::from_be_bytes([start[14], start[15]]));
    let Ok(rest) = peer.wire.take(length).await else { return };
    let digits: String = [start, rest].concat().iter().map(|byte| format!("{byte:02x}")).collect();
    while peer.request().await.is_some() {
        peer.reply(200, "", &digits).await;
    }
}

/// A header for the client of [`ADDRESSES`] with these extensions.
fn header(extensions: &[u8]) -> Vec<u8> {
    let length = u8::try_from(ADDRESSES.len() + extensions.len()).expect("short");
    [START, &[0, length], &ADDRESSES, extensions].concat()
}

/// A header as the origin quotes it.
fn quoted(header: &[u8]) -> String {
    header.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Plain text and TLS, each behind a load balancer that tells its clients.
async fn behind(origin: &Origin, ca: &Ca) -> (Proxy, std::net::SocketAddr) {
    let yaml = format!(
        "upstreams: {{ app: {{ backends: [\"{}\"], proxy_protocol: v2 }} }}\n\
         certificates: {{ main: <main> }}\n\
         listeners:\n\
         \x20 - {{ address: <listen>, proxy_protocol: {{ from: 127.0.0.0/8 }} }}\n\
         \x20 - {{ address: \"<tls>\", tls: {{ certificates: [main] }}, proxy_protocol: {{ from: 127.0.0.0/8 }} }}\n",
        origin.address
    );
    let secure = address::unused();
    let config = Config::new(&yaml).put("tls", secure);
    let main = ca.issue(&["a.test", "b.test"]).write(config.dir(), "main");
    (config.put("main", main).start().await, secure)
}

/// A client that a header tells of, inside TLS.
async fn told_tls(to: std::net::SocketAddr, header: &[u8], name: &'static str, config: &Arc<ClientConfig>) -> Wire {
    let mut stream = tokio::net::TcpStream::connect(to).await.expect("connect");
    stream.write_all(header).await.expect("write");
    let name = rustls::pki_types::ServerName::try_from(name).expect("a name");
    Wire::new(tokio_rustls::TlsConnector::from(config.clone()).connect(name, stream).await.expect("a handshake"))
}

#[tokio::test]
async fn what_was_agreed_on_before_us_is_passed_on_byte_by_byte() {
    let (ca, origin) = (Ca::new(), Origin::script("a", quote).await);
    let (proxy, _) = behind(&origin, &ca).await;
    const BOTH: &[u8] = b"\x01\x00\x02h2\x02\x00\x06a.test";
    // What else a load balancer says is between it and us.
    let noise = [&b"\x04\x00\x01x\xe0\x00\x01?"[..], BOTH].concat();
    for (sent, expected) in [
        (&b""[..], &b""[..]),
        (BOTH, BOTH),
        (&noise, BOTH),
        (b"\x02\x00\x06a.test\x01\x00\x02h2", BOTH),
        (b"\x02\x00\x06b.test", b"\x02\x00\x06b.test"),
        (b"\x01\x00\x08http/1.1", b"\x01\x00\x08http/1.1"),
    ] {
        let mut client = proxy.client().await;
        client.send([&header(sent)[..], get("/").as_bytes()].concat()).await;
        assert_eq!(client.response().await.text(), quoted(&header(expected)), "{:?}", sent.escape_ascii().to_string());
        assert_eq!(client.get("/").await.text(), quoted(&header(expected)));
    }
    // A header of version 1 has no words for it.
    let mut client = proxy.client().await;
    client.send(format!("PROXY TCP4 203.0.113.7 198.51.100.9 4242 443\r\n{}", get("/"))).await;
    assert_eq!(client.response().await.text(), quoted(&header(b"")));
}

/// The same client by its address, told with another name, is another: its requests never share a connection.
#[tokio::test]
async fn a_connection_announced_for_one_name_is_not_used_for_another() {
    let (ca, origin) = (Ca::new(), Origin::script("a", quote).await);
    let (proxy, _) = behind(&origin, &ca).await;
    for round in 1..=2 {
        for name in [&b"\x02\x00\x06a.test"[..], b"\x02\x00\x06b.test", b""] {
            let mut client = proxy.client().await;
            client.send([&header(name)[..], get("/").as_bytes()].concat()).await;
            assert_eq!(client.response().await.text(), quoted(&header(name)), "round {round}");
        }
    }
}

#[tokio::test]
async fn where_tls_ends_here_its_own_name_and_protocol_are_told() {
    let (ca, origin) = (Ca::new(), Origin::script("a", quote).await);
    let (_proxy, secure) = behind(&origin, &ca).await;
    // Whatever the load balancer says of them.
    let told = header(b"\x01\x00\x02h3\x02\x00\x06c.test");
    for (name, alpn, expected) in [
        ("a.test", &["http/1.1"][..], &b"\x01\x00\x08http/1.1\x02\x00\x06a.test"[..]),
        ("b.test", &[], b"\x02\x00\x06b.test"),
    ] {
        let mut client = Client { wire: told_tls(secure, &told, name, &ca.client(alpn)).await, handshake: None };
        assert_eq!(client.get("/").await.text(), quoted(&header(expected)), "{name}");
    }
    let wire = told_tls(secure, &told, "a.test", &ca.client(&["h2"])).await;
    let client = Client2::over(wire.into_parts().0).await.expect("h2");
    let expected = quoted(&header(b"\x01\x00\x02h2\x02\x00\x06a.test"));
    assert_eq!(client.get("/").await.text(), expected);
}

//! What of a request goes to a backend and what is kept of it, and which requests are for the lane.

use proptest::prelude::*;

use super::*;

/// What a backend is sent of this body, when it comes in these pieces; and what is kept of it.
fn sent(head: &str, pieces: &[&[u8]]) -> (Vec<u8>, Vec<u8>, u64) {
    let index = indexed(head);
    let fields = Raw::new(head.as_bytes(), &index);
    let length = pieces.iter().map(|piece| piece.len() as u64).sum();
    let mut asked = Asked::new(&Method::POST, Wanted::new("/", &fields), &fields, length, false);
    let (mut upload, mut given, mut all) = (BytesMut::new(), BytesMut::new(), Vec::new());
    for (n, piece) in pieces.iter().enumerate() {
        asked.take_in(&mut BytesMut::from(*piece), n + 1 == pieces.len(), &mut upload, &mut given);
        all.extend_from_slice(&upload.split());
    }
    assert!(asked.is_done());
    (all, if asked.can_repeat(true) { given.to_vec() } else { Vec::new() }, asked.received())
}

fn indexed(head: &str) -> Index {
    let mut fields = [httparse::EMPTY_HEADER; 16];
    let mut request = httparse::Request::new(&mut fields);
    assert!(request.parse(head.as_bytes()).expect("a head").is_complete());
    let mut index = Index::default();
    index.fill(head.as_bytes(), request.headers);
    index
}

fn unchunked(mut rest: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    let mut border = Border::CHUNKED;
    while !rest.is_empty() {
        let (taken, is_data) = border.part(rest);
        data.extend_from_slice(if is_data { &rest[..taken] } else { b"" });
        rest = &rest[taken..];
    }
    assert!(border.reached(), "a last chunk, and nothing after it");
    data
}

const CHUNKED: &str = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
const COUNTED: &str = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\n";

#[test]
fn a_backend_gets_neither_extensions_nor_trailers() {
    let body = b"5;x=\"y\"\r\nhello\r\n0;z\r\nX-Forwarded-For: 10.0.0.1\r\nCookie: a\r\n\r\n";
    let (all, given, received) = sent(CHUNKED, &[body]);
    assert_eq!(all, b"5\r\nhello\r\n0\r\n\r\n");
    assert_eq!((given, received), (all, 5));
}

proptest! {
    #[test]
    fn a_chunked_body_stays_itself_however_it_is_cut(at in 0usize..60, second in 0usize..60) {
        let body = &b"5\r\nhello\r\n6;e\r\n world\r\n1\r\n!\r\n0\r\nX-T: u\r\n\r\n"[..];
        let (first, second) = (at.min(second).min(body.len()), at.max(second).min(body.len()));
        let (all, given, received) = sent(CHUNKED, &[&body[..first], &body[first..second], &body[second..]]);
        prop_assert_eq!(unchunked(&all), b"hello world!");
        prop_assert_eq!((given, received), (all, 12));
    }

    #[test]
    fn of_a_body_so_much_is_kept_and_no_more(size in 0usize..200_000, piece in 1usize..70_000) {
        let body = vec![b'x'; size + 1];
        let pieces: Vec<&[u8]> = body.chunks(piece).collect();
        let (all, given, received) = sent(COUNTED, &pieces);
        prop_assert_eq!(&all, &body);
        prop_assert_eq!(received, body.len() as u64);
        prop_assert_eq!(given, if body.len() <= RETAINED { body } else { Vec::new() });
    }
}

#[test]
fn only_plain_request_lines_are_for_the_lane() {
    assert_eq!(request_line(b"GET /a?b HTTP/1.1\r\nHost: a\r\n\r\n"), Some((&b"GET"[..], "/a?b")));
    for other in ["GET / HTTP/1.0\r\n\r\n", "OPTIONS * HTTP/1.1\r\n\r\n", "GET http://a/ HTTP/1.1\r\n\r\n", "GET /", ""]
    {
        assert_eq!(request_line(other.as_bytes()), None, "{other}");
    }
    for (name, pingoras) in [
        ("Expect", true),
        ("X-Client-Cert-Subject", true),
        ("x_client_cert_verify", true),
        ("Accept", false),
        ("X-Client-Cert-Serial-Number", false),
    ] {
        assert_eq!(is_pingoras(name.as_bytes()), pingoras, "{name}");
        let head = format!("GET / HTTP/1.1\r\n{name}: x\r\n\r\n");
        let index = indexed(&head);
        assert_eq!(Raw::new(head.as_bytes(), &index).likely(SPECIAL).next().is_some(), pingoras, "{name}");
    }
}

#[test]
fn handshakes_for_a_websocket_are_for_the_lane_and_no_other_upgrade() {
    let is = |method: Method, fields: &str| {
        let head = format!("{method} / HTTP/1.1\r\nHost: a\r\n{fields}\r\n");
        let index = indexed(&head);
        is_websocket(method.as_str(), &Raw::new(head.as_bytes(), &index))
    };
    for good in [
        "Upgrade: websocket\r\nConnection: Upgrade\r\n",
        "upgrade:  WebSocket \r\nConnection: keep-alive\r\nConnection: x, upgrade\r\n",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 00\r\n",
    ] {
        assert!(is(Method::GET, good), "{good}");
        assert!(!is(Method::POST, good), "{good}");
    }
    for other in [
        "Upgrade: websocket\r\n",
        "Upgrade: websocket\r\nConnection: keep-alive\r\n",
        "Upgrade: h2c\r\nConnection: Upgrade\r\n",
        "Upgrade: websocket, h2c\r\nConnection: Upgrade\r\n",
        "Upgrade: websocket\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 1\r\n",
        "Upgrade: websocket\r\nConnection: Upgrade\r\nTransfer-Encoding: chunked\r\n",
    ] {
        assert!(!is(Method::GET, other), "{other}");
    }
    assert!(is_upgrade(b"uPGRADE") && !is_upgrade(b"Upgraded"));
}

#[test]
fn who_asks_for_a_websocket_is_not_done_before_it_is_over() {
    let head = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    let index = indexed(head);
    let fields = Raw::new(head.as_bytes(), &index);
    let asked = || Asked::new(&Method::GET, Wanted::new("/", &fields), &fields, 0, false);
    let mut plain = asked().for_upgrade(false);
    assert!(plain.again && plain.is_body_done() && !plain.is_upgrade());
    let mut handshake = asked().for_upgrade(true);
    assert!(!handshake.again && !handshake.is_body_done() && handshake.is_done() && handshake.is_upgrade());
    let mut over = asked().switched(3, 4, false);
    assert!(over.is_body_done() && over.is_answered() && !over.again);
    assert_eq!((over.received(), over.sent()), (3, 4));
    assert!(!asked().switched(3, 4, true).is_body_done());
}

#[test]
fn whoever_says_close_ends_the_connection() {
    for (connection, again) in
        [("keep-alive", true), ("close", false), ("x, Close", false), ("keep-alive\r\nConnection: close", false)]
    {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: {connection}\r\n\r\n");
        let index = indexed(&head);
        let fields = Raw::new(head.as_bytes(), &index);
        assert_eq!(Asked::new(&Method::GET, Wanted::new("/", &fields), &fields, 0, false).again, again, "{connection}");
        assert!(!Asked::new(&Method::GET, Wanted::new("/", &fields), &fields, 0, true).again);
    }
}

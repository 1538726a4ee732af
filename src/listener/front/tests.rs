//! The front, head by head.

use super::*;
use crate::{listener::tests::LIMITS, types::ByteSize};

fn reason(head: &[u8]) -> Option<Reason> {
    match parse(head, &LIMITS, true) {
        Parsed::Refused(refused) => Some(refused.reason),
        _ => None,
    }
}

fn with(fields: &str) -> String {
    format!("POST / HTTP/1.1\r\nHost: x\r\n{fields}\r\n\r\n")
}

#[test]
fn a_request_ends_where_its_framing_says() {
    let head = "GET /a HTTP/1.1\r\nHost: x\r\n";
    for (fields, border) in [
        ("\r\n", Border::END),
        ("Content-Length: 12\r\n\r\n", Border::Counted(12)),
        ("transfer-encoding: Chunked\r\n\r\n", Border::CHUNKED),
        ("Upgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n\r\n", Border::Unbounded),
        ("Upgrade: websocket\r\n\r\n", Border::END),
        ("Upgrade: h2c\r\nConnection: Upgrade, HTTP2-Settings\r\n\r\n", Border::END),
        ("Upgrade: websocket, h2c\r\nConnection: Upgrade\r\n\r\n", Border::END),
        ("Upgrade: websocket\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", Border::END),
        ("Upgrade: h2c\r\nUpgrade: websocket\r\nConnection: x\r\nConnection: upgrade\r\n\r\n", Border::END),
        ("Upgrade:  WebSocket \r\nConnection: x\r\nConnection: upgrade\r\n\r\n", Border::Unbounded),
        ("Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 00\r\n\r\n", Border::Unbounded),
        ("Upgrade: websocket\r\nConnection: Upgrade\r\nContent-Length: 7\r\n\r\n", Border::Counted(7)),
    ] {
        let text = format!("{head}{fields}");
        let head = Head { head: text.len(), request: text.len(), border, expects: false };
        assert_eq!(parse(text.as_bytes(), &LIMITS, false), Parsed::Request(head), "{text}");
    }
    let text = with("Upgrade: websocket\r\nConnection: Upgrade");
    let head = Head { head: text.len(), request: text.len(), border: Border::END, expects: false };
    assert_eq!(parse(text.as_bytes(), &LIMITS, false), Parsed::Request(head), "of another method it is none");
}

#[test]
fn what_is_here_of_a_body_is_read_with_the_head() {
    let text = with("Transfer-Encoding: chunked\r\nExpect: 100-continue") + "5\r\nhello\r\n0\r\n\r\nGET /next";
    let Parsed::Request(head) = parse(text.as_bytes(), &LIMITS, false) else { panic!("a request") };
    assert!(text[head.request..].starts_with("GET") && head.border.reached() && head.expects);
    let text = with("Transfer-Encoding: chunked") + "5\r\nhelloXX";
    assert_eq!(reason(text.as_bytes()), Some(Reason::BadRequest));
}

#[test]
fn only_a_client_of_http11_that_expects_100_waits_to_be_asked() {
    for (version, fields, expected) in [
        ("1.1", "Expect: 100-continue", true),
        ("1.1", "expect:  100-Continue ", true),
        ("1.1", "Expect: foo", false),
        ("1.1", "Expect: 100-continue=1", false),
        ("1.1", "X: y", false),
        ("1.0", "Expect: 100-continue", false),
    ] {
        let text = format!("POST / HTTP/{version}\r\nHost: x\r\nContent-Length: 5\r\n{fields}\r\n\r\n");
        let Parsed::Request(head) = parse(text.as_bytes(), &LIMITS, false) else { panic!("a request") };
        assert_eq!(head.expects, expected, "{text}");
    }
}

#[test]
fn ambiguous_framing_is_refused() {
    for fields in [
        "Content-Length: 5\r\nTransfer-Encoding: chunked",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: 5\r\nContent-Length: 5",
        "Content-Length: 5, 5",
        "Content-Length: +5",
        "Content-Length: -1",
        "Content-Length: 0x5",
        "Content-Length: 5 5",
        "Content-Length: 5;",
        "Content-Length: 9223372036854775808",
        "Content-Length: 99999999999999999999",
        "Content-Length:",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: gzip, chunked",
        "Transfer-Encoding: chunked, identity",
        "Transfer-Encoding: chunked,",
        "Transfer-Encoding: ,chunked",
        "Transfer-Encoding: chunked;q=1",
        "Transfer-Encoding: \"chunked\"",
        "Transfer-Encoding: identity",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding:",
    ] {
        assert_eq!(reason(with(fields).as_bytes()), Some(Reason::AmbiguousFraming), "{fields}");
    }
    let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
    assert_eq!(reason(old), Some(Reason::AmbiguousFraming));
}

#[test]
fn a_bad_head_is_refused() {
    for head in [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost:\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a,b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: user@a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a:99999\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\n Host: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\r\n b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX\0Y: x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX(Y): x\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: \x0b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: \x7f\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: close, Content-Length\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: host\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nConnection: a,b,c,d,e\r\nConnection: f,g,h,i,j\r\n\r\n",
        "GET / HTTP/2.0\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.2\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.10\r\nHost: a\r\n\r\n",
        "GET / http/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1 \r\nHost: a\r\n\r\n",
        "GET /  HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET\t/ HTTP/1.1\r\nHost: a\r\n\r\n",
        " GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET(x) / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\r\n\r\n",
        "GET /\r\nHost: a\r\n\r\n",
        "\0GET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\nGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "\rGET / HTTP/1.1\r\nHost: a\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n",
        "GET admin/x HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET ?x=1 HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /<> HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a#b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\u{e4} HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /\x7f HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://b/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a:443/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a..b/ HTTP/1.0\r\n\r\n",
        "GET http://a/#b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://u@a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET ftp://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http:/// HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET a:80 HTTP/1.1\r\nHost: a:80\r\n\r\n",
    ] {
        assert_eq!(reason(head.as_bytes()), Some(Reason::BadRequest), "{head:?}");
    }
    assert_eq!(reason(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n"), Some(Reason::MethodNotAllowed));
}

#[test]
fn a_line_ends_in_crlf_and_in_nothing_else() {
    let good = "POST /a HTTP/1.1\r\nHost: a\r\nX:\r\nY: y\r\n\r\n";
    assert_eq!(reason(good.as_bytes()), None);
    for (at, _) in good.match_indices("\r\n") {
        let lf = [&good[..at], &good[at + 1..]].concat();
        let whole = matches!(parse(lf.as_bytes(), &LIMITS, false), Parsed::Request(_));
        assert!(!whole, "bare LF at {at}");
        let cr = [&good[..at + 1], &good[at + 2..]].concat();
        let whole = matches!(parse(cr.as_bytes(), &LIMITS, false), Parsed::Request(_));
        assert!(!whole, "bare CR at {at}");
    }
    assert_eq!(reason(b"GET / HTTP/1.0\n\n"), Some(Reason::BadRequest));
    assert_eq!(reason(b"GET / HTTP/1.0\r\n\n"), Some(Reason::BadRequest));
}

#[test]
fn what_is_unusual_and_right_is_served() {
    for head in [
        "purge /a HTTP/1.1\r\nHost: a\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nHost: A\r\n\r\n",
        "GET http://a:80/ HTTP/1.1\r\nHost: A\r\n\r\n",
        "GET https://a/ HTTP/1.1\r\nHost: a:443\r\n\r\n",
        "GET http://a/ HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: [::1]:80\r\nX: \t a \u{e4} \t\r\nY:\r\n\r\n",
        "GET /?[]={} HTTP/1.1\r\nHost: a\r\nConnection: , keep-alive,\r\n\r\n",
    ] {
        assert_eq!(reason(head.as_bytes()), None, "{head:?}");
    }
}

#[test]
fn an_absolute_target_and_host_are_given_on_in_one_spelling() {
    let target = "GET http://A.example:80/X?http://B/ HTTP/1.1\r\nY: 1\r\n";
    let spelled = |head: &str| {
        let mut bytes = BytesMut::from(format!("{head}body").as_bytes());
        let length = one_spelling(&mut bytes, head.len());
        assert_eq!(&bytes[length..], b"body");
        String::from_utf8_lossy(&bytes[..length]).into_owned()
    };
    let right = format!("{target}host:  A.example:80 \r\n\r\n");
    for host in ["a.EXAMPLE:80", "A.example:80", "a.example"] {
        assert_eq!(spelled(&format!("{target}host:  {host} \r\n\r\n")), right);
    }
    let old = "GET http://a/ HTTP/1.0\r\n";
    assert_eq!(spelled(&format!("{old}\r\n")), format!("{old}Host: a\r\n\r\n"));
    assert_eq!(spelled(&format!("{old}X: y\r\n\r\n")), format!("{old}Host: a\r\nX: y\r\n\r\n"));
    for other in ["GET /http://b/ HTTP/1.1\r\nHost: a\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n"] {
        assert_eq!(spelled(other), other);
    }
}

#[test]
fn what_is_too_large_is_refused_with_its_own_reason() {
    let long = format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}\r\n\r\n", "x".repeat(5000));
    assert_eq!(reason(long.as_bytes()), Some(Reason::HeaderTooLarge));
    assert_eq!(reason(&long.as_bytes()[..4200]), Some(Reason::HeaderTooLarge));
    let target = |length: usize| format!("GET /{} HTTP/1.1\r\nHost: a\r\n\r\n", "x".repeat(length - 1));
    assert_eq!(reason(target(1024).as_bytes()), None);
    assert_eq!(reason(target(1025).as_bytes()), Some(Reason::UriTooLong));
    assert_eq!(reason(&target(5000).as_bytes()[..4500]), Some(Reason::UriTooLong));
    assert_eq!(reason(&[b'M'; 5000]), Some(Reason::BadRequest), "a method without an end");
    let method = |target: usize| [&[b'M'; 4000][..], b" /", &b"x".repeat(target)[..]].concat();
    assert_eq!(reason(&method(500)), Some(Reason::HeaderTooLarge));
    assert_eq!(reason(&method(1500)), Some(Reason::UriTooLong));
    let named =
        |length: usize| [&b"GET / HTTP/1.1\r\nHost: a\r\n"[..], &b"n".repeat(length)[..], b": y\r\n\r\n"].concat();
    let limits = ListenerLimits { max_header_size: ByteSize(1 << 20), ..LIMITS };
    assert!(matches!(parse(&named(MAX_NAME), &limits, false), Parsed::Request(_)));
    let Parsed::Refused(refused) = parse(&named(MAX_NAME + 1), &limits, false) else { panic!("no request") };
    assert_eq!(refused.reason, Reason::HeaderTooLarge);
    let fields = |count: usize| format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(count - 1));
    assert_eq!(reason(fields(20).as_bytes()), None);
    assert_eq!(reason(fields(21).as_bytes()), Some(Reason::HeaderTooLarge));
    assert_eq!(reason(fields(300).as_bytes()), Some(Reason::HeaderTooLarge));
    assert_eq!(reason(with("Content-Length: 1000000").as_bytes()), None);
    assert_eq!(reason(with("Content-Length: 1000001").as_bytes()), Some(Reason::BodyTooLarge));
}

#[test]
fn every_part_of_a_head_is_incomplete() {
    let head = with("Content-Length: 5");
    for split in 0..head.len() {
        assert_eq!(parse(&head.as_bytes()[..split], &LIMITS, true), Parsed::Incomplete, "at {split}");
    }
}

#[test]
fn http2_by_prior_knowledge_is_seen_at_any_split() {
    for split in 4..H2_PREFACE.len() {
        assert_eq!(parse(&H2_PREFACE[..split], &LIMITS, true), Parsed::Incomplete);
    }
    assert_eq!(parse(H2_PREFACE, &LIMITS, true), Parsed::H2Preface);
    assert!(matches!(parse(H2_PREFACE, &LIMITS, false), Parsed::Refused(_)));
}

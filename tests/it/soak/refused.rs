//! Requests that are refused, each with the status and the word it must get: by the framing guard, by limits, by guards
//! of routes, and because of origins that are as they should not be.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;

use super::{
    BODY, HEADER_SIZE, URI,
    valid::UPGRADE,
    world::{Answer, Dice, World, answer, closed},
};
use crate::support::{
    PATIENCE,
    http1::{Client, Message, get},
    http2::{Client2, request},
};

/// What must come of a request.
type Expected = (u16, &'static str);

const BAD: Expected = (400, "bad_request");
const AMBIGUOUS: Expected = (400, "ambiguous_framing");
const LONG_HEAD: Expected = (431, "header_too_large");
const LONG_URI: Expected = (414, "uri_too_long");
const LONG_BODY: Expected = (413, "body_too_large");

fn post(fields: &str, rest: &str) -> Vec<u8> {
    format!("POST /steady/echo HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n{rest}").into_bytes()
}

fn head(fields: &str) -> Vec<u8> {
    format!("GET /steady/hello HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n").into_bytes()
}

/// A head that no origin may hear of; the connection ends after its answer.
fn broken(dice: &mut Dice) -> (Vec<u8>, Expected) {
    const CHUNKED: &str = "Transfer-Encoding: chunked\r\n";
    const SMUGGLED: &str = "0\r\n\r\nGET /steady/smuggled HTTP/1.1\r\nHost: a.test\r\n\r\n";
    let long = |count: usize| "x".repeat(count);
    match dice.below(28) {
        0 => (post("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", SMUGGLED), AMBIGUOUS),
        1 => (post("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", SMUGGLED), AMBIGUOUS),
        2 => (post("Content-Length: 5\r\nContent-Length: 6\r\n", "hello!"), AMBIGUOUS),
        3 => (post("Content-Length: +5\r\n", "hello"), AMBIGUOUS),
        4 => (post("Content-Length: 99999999999999999999\r\n", "hello"), AMBIGUOUS),
        5 => (post("Transfer-Encoding: gzip, chunked\r\n", SMUGGLED), AMBIGUOUS),
        6 => (b"POST / HTTP/1.0\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n".to_vec(), AMBIGUOUS),
        7 => (post(CHUNKED, "zz\r\nhello\r\n0\r\n\r\n"), BAD),
        8 => (post(CHUNKED, "5\r\nhelloXX0\r\n\r\n"), BAD),
        9 => (post(CHUNKED, "fffffffffffffffff\r\n"), BAD),
        10 => (post(CHUNKED, "0\r\nContent-Length: 5\r\n\r\n"), BAD),
        11 => (head("X-A: a\0b\r\n"), BAD),
        12 => (head("X-A: 1\r\n  2\r\n"), BAD),
        13 => (head("X-A : 1\r\n"), BAD),
        14 => (head("X-A: a\rb\r\n"), BAD),
        15 => (head("nonsense\r\n"), BAD),
        16 => (head("Host: b.test\r\n"), BAD),
        17 => (b"GET / HTTP/1.1\r\n\r\n".to_vec(), BAD),
        18 => (b"GET / HTTP/1.1\nHost: a.test\r\n\r\n".to_vec(), BAD),
        19 => (b"GET / HTTP/9.9\r\nHost: a.test\r\n\r\n".to_vec(), BAD),
        20 => (b"GET http://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n".to_vec(), BAD),
        21 => (head("Connection: content-length\r\n"), BAD),
        22 => (head(&format!("X-Long: {}\r\n", long(HEADER_SIZE + dice.below(60_000)))), LONG_HEAD),
        23 => (head(&"X: y\r\n".repeat(60 + dice.below(300))), LONG_HEAD),
        24 => (get(&format!("/{}", long(URI + dice.below(20_000)))).into_bytes(), LONG_URI),
        25 => (post(&format!("Content-Length: {}\r\n", BODY + 1), "x"), LONG_BODY),
        26 => (post(CHUNKED, &format!("{:x}\r\n{}\r\n1\r\nx\r\n", BODY, long(BODY))), LONG_BODY),
        _ => (b"CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n".to_vec(), (405, "method_not_allowed")),
    }
}

/// A broken head, whole or in two parts, alone or behind a good request.
pub async fn head_broken(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    let (bytes, expected) = broken(&mut dice);
    let mut client = world.doors.h1(&mut dice).await.map_err(|error| format!("connect: {error}"))?;
    let shown = || String::from_utf8_lossy(&bytes[..bytes.len().min(200)]).into_owned();
    if dice.one_in(4) {
        let _ = client.wire.send(get("/steady/hello")).await;
        let first = answer(&mut client, false).await?;
        if !matches!(&first, Some(Answer::Whole(reply)) if reply.status() == 200) {
            return Err(format!("before {:?}: {first:?}", shown()));
        }
    }
    let (first, second) = bytes.split_at(if dice.one_in(3) { dice.below(bytes.len()) } else { 0 });
    if !first.is_empty() {
        let _ = client.wire.send(first).await;
        tokio::time::sleep(dice.millis(5)).await;
    }
    let _ = client.wire.send(second).await;
    refusal(&world, &mut client, expected).await.map_err(|error| format!("{:?}: {error}", shown()))?;
    let after = closed(&mut client).await?;
    if after.is_empty() {
        Ok(())
    } else {
        Err(format!("{:?}: went on with {:?}", shown(), String::from_utf8_lossy(&after)))
    }
}

async fn refusal(world: &World, client: &mut Client, expected: Expected) -> Result<(), String> {
    match answer(client, false).await? {
        Some(Answer::Whole(reply)) => {
            world.refused(reply.status(), reply.field("proxy-status"), expected).map_err(|error| error + &shown(&reply))
        }
        other => Err(format!("{other:?} in place of {expected:?}")),
    }
}

fn shown(reply: &Message) -> String {
    format!(" ({} {:?})", reply.start, reply.fields)
}

/// Paths that are refused by what their route asks, or that lead to an origin that is not well.
const PATHS: [(&str, &str, Expected); 22] = [
    ("/denied", "", (403, "denied")),
    ("/private", "", (401, "unauthorized")),
    ("/private", "Authorization: Basic YTp3cm9uZw==\r\n", (401, "unauthorized")),
    ("/asked", "", (503, "auth_unavailable")),
    ("/nowhere", "", (404, "no_route")),
    ("/steady/..%2fx", "", (400, "ambiguous_path")),
    ("/steady/%00", "", (400, "ambiguous_path")),
    ("/babble", "", (502, "bad_response")),
    ("/bad-framing", "", (502, "bad_response")),
    ("/missing", "", (502, "connect_failed")),
    ("/refused", "", (502, "connect_refused")),
    ("/hole", "", (504, "connect_timeout")),
    ("/no-name", "", (502, "dns_failure")),
    ("/mute", "", (504, "first_byte_timeout")),
    ("/down", "", (503, "no_backend")),
    ("/reset", "", (502, "reset_before_headers")),
    ("/no-tls", "", (502, "tls_failed")),
    ("/mute-tls", "", (504, "tls_handshake_timeout")),
    ("/untrusted", "", (502, "tls_untrusted")),
    ("/wrong-name", "", (502, "tls_wrong_name")),
    ("/expired", "", (502, "tls_expired")),
    ("/total", "", (504, "total_timeout")),
];

/// Good requests that are refused, or that their origins do no good.
pub async fn h1(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    let mut client = world.doors.h1(&mut dice).await.map_err(|error| format!("connect: {error}"))?;
    if dice.one_in(8) {
        let head = format!("GET /grpc/ws HTTP/1.1\r\nHost: a.test\r\n{UPGRADE}\r\n");
        let _ = client.wire.send(head).await;
        return refusal(&world, &mut client, (502, "upgrade_failed")).await;
    }
    if dice.one_in(8) {
        return cut(&world, &mut client, &mut dice).await;
    }
    for _ in 0..dice.below(4) + 1 {
        let (path, fields, expected) = *dice.pick(&PATHS);
        let asked = client.wire.send(format!("GET {path} HTTP/1.1\r\nHost: a.test\r\n{fields}\r\n")).await;
        let Some(Answer::Whole(reply)) = answer(&mut client, false).await? else {
            return Err(format!("{path}: no answer ({asked:?})"));
        };
        let told = world.refused(reply.status(), reply.field("proxy-status"), expected);
        told.map_err(|error| format!("{path}: {error}{}", shown(&reply)))?;
        if reply.fields("connection").contains(&"close") {
            return closed(&mut client).await.map(drop);
        }
    }
    Ok(())
}

/// Answers that stop in the middle must be seen to be cut off.
async fn cut(world: &World, client: &mut Client, dice: &mut Dice) -> Result<(), String> {
    let path = *dice.pick(&["/stall", "/truncate", "/truncate-chunks", "/bad-chunk"]);
    let _ = client.wire.send(get(path)).await;
    match answer(client, false).await? {
        Some(Answer::Cut(reply)) if reply.status() == 200 => Ok(()),
        // The end came before anything was sent on.
        Some(Answer::Whole(reply)) if reply.status() >= 500 => {
            let word = world.told(reply.field("proxy-status"));
            let expected = ["read_timeout", "response_truncated"];
            if word.as_deref().is_some_and(|word| expected.contains(&word)) { Ok(()) } else { Err(shown(&reply)) }
        }
        // The same; the head has gone nowhere.
        None => Ok(()),
        other => Err(format!("{path} looks complete: {other:?}")),
    }
}

/// The same over HTTP/2, and what only HTTP/2 can say.
pub async fn h2(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    let client = world.doors.h2(&mut dice).await.map_err(|error| format!("connect: {error}"))?;
    for _ in 0..dice.below(4) + 1 {
        let (request, body, expected) = h2_request(&mut dice);
        let shown =
            format!("{} {}", request.method(), &request.uri().to_string()[..request.uri().to_string().len().min(60)]);
        h2_refused(&world, &client, request, body, expected).await.map_err(|error| format!("{shown}: {error}"))?;
    }
    Ok(())
}

fn h2_request(dice: &mut Dice) -> (Request<()>, Vec<Bytes>, Expected) {
    let with = |name: &'static str, value: &str| {
        let mut request = request("POST", "/steady/echo");
        request.headers_mut().append(name, value.parse().expect("a value"));
        request
    };
    match dice.below(14) {
        0 => (request("GET", &format!("/{}", "x".repeat(URI))), vec![], LONG_URI),
        1 => {
            let mut many = request("GET", "/steady/hello");
            for _ in 0..60 {
                many.headers_mut().append("x", "y".parse().expect("a value"));
            }
            (many, vec![], LONG_HEAD)
        }
        6 => (with("x-long", &"x".repeat(HEADER_SIZE)), vec![], LONG_HEAD),
        2 => (with("content-length", &(BODY + 1).to_string()), vec![], LONG_BODY),
        3 => (request("POST", "/steady/echo"), vec![Bytes::from(vec![b'x'; BODY / 2 + 1]); 2], LONG_BODY),
        4 => (with("host", "b.test"), vec![], BAD),
        5 => {
            let connect = Request::builder().method("CONNECT").uri("a.test:443").body(()).expect("a request");
            (connect, vec![], (405, "method_not_allowed"))
        }
        7 => {
            let mut connect = request("CONNECT", "/steady/hello");
            connect.extensions_mut().insert(h2::ext::Protocol::from_static("connect-udp"));
            (connect, vec![], (501, "protocol_unknown"))
        }
        _ => {
            let (path, fields, expected) = *dice.pick(&PATHS);
            let mut request = request("GET", path);
            if let Some((name, value)) = fields.trim_end().split_once(": ") {
                let name: http::HeaderName = name.parse().expect("a name");
                request.headers_mut().insert(name, value.parse().expect("a value"));
            }
            (request, vec![], expected)
        }
    }
}

async fn h2_refused(
    world: &World,
    client: &Client2,
    request: Request<()>,
    body: Vec<Bytes>,
    expected: Expected,
) -> Result<(), String> {
    if expected == LONG_BODY && body.is_empty() {
        // Too much is announced, and nothing is sent.
        let (answer, _body) = client.open(request, false).await.map_err(|error| error.to_string())?;
        let answer = tokio::time::timeout(PATIENCE, answer).await.map_err(|_| "no answer in time")?;
        let answer = answer.map_err(|error| error.to_string())?;
        let told = answer.headers().get("proxy-status").and_then(|told| told.to_str().ok());
        return world.refused(answer.status().as_u16(), told, expected);
    }
    let pingoras = request.headers().contains_key("host");
    let reply = client.try_send(request, body, None).await.map_err(|error| error.to_string())?;
    let told = reply.field("proxy-status");
    if pingoras && (reply.status, told) == (expected.0, None) {
        // Pingora answers a host that is not the authority while it accepts the stream; nobody can add a field to that.
        return Ok(());
    }
    world.refused(reply.status, told, expected)
}

/// More often, or more at once, than a route allows; from an address that a listener does not serve.
pub async fn admission(world: Arc<World>, mut dice: Dice) -> Result<(), String> {
    let connect = |error| format!("connect: {error}");
    match dice.below(3) {
        0 => {
            let mut client = Client::connect_from([127, 0, 66, 1].into(), world.doors.plain).await;
            let _ = client.wire.send(get("/steady/hello")).await;
            refusal(&world, &mut client, (403, "denied")).await
        }
        1 => {
            let mut client = world.doors.h1(&mut dice).await.map_err(connect)?;
            // The first of a day passes.
            for allowed in [true, false] {
                let _ = client.wire.send(get("/limited")).await;
                match answer(&mut client, false).await? {
                    Some(Answer::Whole(reply)) if allowed && reply.status() == 200 => {}
                    Some(Answer::Whole(reply)) => {
                        world.refused(reply.status(), reply.field("proxy-status"), (429, "rate_limited"))?;
                    }
                    other => return Err(format!("/limited: {other:?}")),
                }
            }
            Ok(())
        }
        _ => {
            let key = format!("X-Key: {}\r\n", dice.roll());
            let mut first = world.doors.h1(&mut dice).await.map_err(connect)?;
            let mut second = world.doors.h1(&mut dice).await.map_err(connect)?;
            let head = format!("POST /single HTTP/1.1\r\nHost: a.test\r\n{key}Content-Length: 5\r\n\r\n");
            let _ = first.wire.send(head).await;
            // Who of them comes first is not said; where it is always the second one, the first is refused.
            for _ in 0..20 {
                let _ = second.wire.send(format!("GET /single HTTP/1.1\r\nHost: a.test\r\n{key}\r\n")).await;
                match answer(&mut second, false).await? {
                    Some(Answer::Whole(reply)) if reply.status() == 200 => {}
                    Some(Answer::Whole(reply)) => {
                        world.refused(reply.status(), reply.field("proxy-status"), (429, "too_many_concurrent"))?;
                        break;
                    }
                    other => return Err(format!("/single: {other:?}")),
                }
            }
            let _ = first.wire.send("hello").await;
            match answer(&mut first, false).await? {
                Some(Answer::Whole(reply)) if reply.status() == 200 && reply.body == b"hello" => Ok(()),
                // The other one was in flight as this one came.
                Some(Answer::Whole(reply)) => {
                    world.refused(reply.status(), reply.field("proxy-status"), (429, "too_many_concurrent"))
                }
                other => Err(format!("/single: {other:?}")),
            }
        }
    }
}

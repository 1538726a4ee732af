//! The differences between the engines that are meant, each with its reason. A case may differ only where the flaw is in the
//! answers that were sent, and only towards the strict side.

use super::{
    plan::{Ask, Body, Case, Protocol},
    stage::Seen,
};

/// Why this may differ; `None` where it is a bug.
pub fn meant(case: &Case, pingora: &Seen, exchange: &Seen, key: &str) -> Option<&'static str> {
    let of = ask_of(key);
    if let Some((pingora, exchange)) = pingora.get(key).zip(exchange.get(key)) {
        let rules: [Rule; 7] = [via, phrase, early, closing, empty, announced, pooled];
        if let Some(why) = rules.iter().find_map(|rule| rule(case, of, pingora, exchange)) {
            return Some(why);
        }
    }
    strict(case, of, exchange)
        .or_else(|| bodiless(case, of, pingora))
        .or_else(|| hints(key, of, pingora))
        .or_else(|| stray(case, key, pingora, exchange))
        .or_else(|| reset(case, key, pingora, exchange))
}

/// The same for the exchange and the lane, which share all but the client's side.
pub fn meant_in_lane(case: &Case, exchange: &Seen, lane: &Seen, key: &str) -> Option<&'static str> {
    if let Some(why) = reset(case, key, exchange, lane) {
        return Some(why);
    }
    // `close` in any `Connection` field of a request ends its connection (RFC 9112 §9.3); Pingora reads the first.
    let several = |ask: &Ask| {
        let options: Vec<_> = ask.fields.iter().filter(|(name, _)| name.eq_ignore_ascii_case("connection")).collect();
        options.len() > 1 && options.iter().any(|(_, value)| *value == "close")
    };
    if case.protocol == Protocol::H11 && case.asks.iter().any(several) {
        return Some("several Connection fields of a request");
    }
    // An answer to a handshake is read by Pingora where the engine is the exchange.
    let upgrade = case.asks.iter().any(Ask::is_upgrade);
    if upgrade && let Some(why) = meant(case, exchange, lane, key) {
        return Some(why);
    }
    if upgrade
        && key.ends_with(".fields")
        && exchange.get(&status_of(key)).is_some_and(|status| status.contains(" 101 "))
    {
        return Some("fields of a 101 between neighbours");
    }
    let log = format!("log.{}", ask_of(key));
    let broken = exchange.get(&log).is_some_and(|line| line.contains("\"response_truncated\""));
    let (exchange, lane) = exchange.get(key).zip(lane.get(key))?;
    // Chunks go on as they came, so a part of a chunk's frame may be the last that does.
    let frame = |byte: u8| byte.is_ascii_hexdigit() || b"\r\n;".contains(&byte);
    if broken
        && key.ends_with(".rest")
        && lane.strip_prefix(exchange.as_str()).is_some_and(|rest| rest.bytes().all(frame))
    {
        return Some("a part of a chunk's frame where an answer breaks off");
    }
    if key.ends_with(".fields")
        && lane.replace(", \"X-Sum\"]", "]").replace("\"trailer\": [\"X-Sum\"], ", "") == *exchange
    {
        return Some("trailers are announced that come");
    }
    let sorted = |text: &str| {
        let mut bytes = text.as_bytes().to_vec();
        bytes.sort_unstable();
        bytes
    };
    if key.ends_with(".interim") && sorted(exchange) == sorted(lane) {
        return Some("the order of fields");
    }
    phrase(case, ask_of(key), exchange, lane)
}

fn status_of(key: &str) -> String {
    key.replace(".fields", ".status")
}

type Rule = fn(&Case, usize, &str, &str) -> Option<&'static str>;

/// The place in the case's requests of the one that a thing seen belongs to; what comes after them has one beyond all.
fn ask_of(key: &str) -> usize {
    let mut words = key.split('.');
    let number = match words.next() {
        Some("log") => words.next(),
        // `origin.c17.0.1.body` is of request 0; the probe's has no number of its own.
        Some("origin") => words.next().filter(|id| *id != "probe").and_then(|_| words.next()),
        word => word,
    };
    number.and_then(|number| number.parse().ok()).unwrap_or(usize::MAX)
}

/// `Via` says the version in which the answer was received (RFC 9110 §7.6.3). Pingora sets it to 1.1 before any filter sees
/// it, where it has no length.
fn via(case: &Case, of: usize, pingora: &str, exchange: &str) -> Option<&'static str> {
    let old = case.asks.get(of)?.answers.iter().any(|answer| answer.bytes.windows(9).any(|part| part == b"HTTP/1.0 "));
    let same = pingora.replace("\"1.1 rrlb\"", "\"1.0 rrlb\"") == exchange.replace("\"1.1 rrlb\"", "\"1.0 rrlb\"");
    (old && same).then_some("the version in Via")
}

/// Pingora drops a reason phrase that is not ASCII; it may be so (RFC 9112 §4).
fn phrase(_: &Case, _: usize, pingora: &str, exchange: &str) -> Option<&'static str> {
    let status = |line: &str| line.starts_with("HTTP/1.1 ") && line.len() == 13;
    (status(pingora) && exchange.starts_with(pingora) && !exchange.is_ascii()).then_some("a reason phrase beyond ASCII")
}

/// Over the exchange a handshake for a WebSocket takes Pingora's way, which has a pool of its own.
fn pooled(case: &Case, of: usize, pingora: &str, exchange: &str) -> Option<&'static str> {
    let reused = |start: &str| start.replace("reused: true", "reused: false");
    let same = pingora.contains("reused: ") && reused(pingora) == reused(exchange);
    (same && case.asks.get(of)?.is_upgrade()).then_some("the pool of a handshake for a WebSocket")
}

/// Trailers go on from the exchange to HTTP/2 clients, and so does what announces them.
fn announced(case: &Case, _: usize, pingora: &str, exchange: &str) -> Option<&'static str> {
    let without = exchange.replace("\"trailer\": [\"X-Sum\"], ", "").replace(", \"trailer\": [\"X-Sum\"]", "");
    (case.protocol == Protocol::H2 && without != exchange && without == pingora)
        .then_some("trailers that are announced")
}

/// See [`stray`]: a connection that Pingora has written too much on it does not use again.
fn empty(case: &Case, _: usize, pingora: &str, exchange: &str) -> Option<&'static str> {
    let empty = |ask: &Ask| matches!(ask.body, Body::Chunked(_));
    let reused = |start: &str| start.replace("reused: true", "reused: false");
    let same = pingora.contains("reused: ") && reused(pingora) == reused(exchange);
    (same && case.protocol == Protocol::H2 && case.asks.iter().any(empty)).then_some("a stray last chunk")
}

/// After an answer before the request's end Pingora goes on reading the request, and logs that the client left it. The exchange
/// is done with it, as the client is told (`Connection: close`, RFC 9112 §9.3).
fn early(case: &Case, of: usize, pingora: &str, exchange: &str) -> Option<&'static str> {
    let known = |line: &str| {
        let words = line.split(' ');
        words.map(|word| if word.starts_with("reason=") { "reason" } else { word }).collect::<Vec<_>>().join(" ")
    };
    let left = ["\"client_aborted\"", "\"client_timeout\""].iter().any(|word| pingora.contains(word))
        && exchange.contains("\"ok\"");
    (case.asks.get(of)?.half && left && known(pingora) == known(exchange))
        .then_some("an upload that an answer cut short")
}

/// Of several `Connection` fields Pingora reads one. Whichever says `close`, the connection ends (RFC 9110 §7.6.1, RFC 9112 §9.3).
fn closing(case: &Case, _: usize, pingora: &str, exchange: &str) -> Option<&'static str> {
    let several = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
        text.matches("\r\nconnection:").count() > 1 && text.contains("\r\nconnection: close")
    };
    let answers = case.asks.iter().flat_map(|ask| &ask.answers);
    let only_reuse = pingora.replace("reused: true", "reused: false") == exchange;
    (only_reuse && answers.into_iter().any(|answer| several(&answer.bytes))).then_some("several Connection fields")
}

/// Pingora refuses 1xx and 204 for what they say of a body that they cannot have; it means nothing (RFC 9112 §6.3, 1.).
fn bodiless(case: &Case, of: usize, pingora: &Seen) -> Option<&'static str> {
    let framed = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).to_ascii_lowercase();
        let mut heads = text.split("\r\n\r\n").take(3);
        heads.any(|head| {
            let status = head.get(8..12).unwrap_or_default();
            let framed = head.contains("\r\ncontent-length") || head.contains("\r\ntransfer-encoding");
            framed && (status.starts_with(" 1") || status == " 204")
        })
    };
    let refused = |n: usize| pingora.get(&format!("log.{n}")).is_some_and(|line| line.contains("\"bad_response\""));
    let mut asks = case.asks.iter().enumerate().take(of.saturating_add(1));
    asks.any(|(n, ask)| refused(n) && ask.answers.iter().any(|answer| framed(&answer.bytes)))
        .then_some("framing of an answer that has no body")
}

/// A broken answer ends in a reset for a client of HTTP/1.0, which may take with it what the client has not read yet.
fn reset(case: &Case, key: &str, one: &Seen, other: &Seen) -> Option<&'static str> {
    let log = format!("log.{}", ask_of(key));
    let broken = |seen: &Seen| seen.get(&log).is_some_and(|line| line.contains("\"response_truncated\""));
    let less = match (one.get(key), other.get(key)) {
        (Some(one), Some(other)) => one.starts_with(other.as_str()) || other.starts_with(one.as_str()),
        _ => true,
    };
    let of_client = key.starts_with(|first: char| first.is_ascii_digit());
    (case.protocol == Protocol::H10 && of_client && broken(one) && broken(other) && less)
        .then_some("what a reset took with it")
}

/// 1xx that came together with a head that is refused: Pingora drops what it has not passed on yet.
fn hints(key: &str, of: usize, pingora: &Seen) -> Option<&'static str> {
    let refused = pingora.get(&format!("log.{of}")).is_some_and(|line| line.contains("\"bad_response\""));
    (refused && key.ends_with(".interim")).then_some("1xx before a refused answer")
}

/// Of an HTTP/2 request whose body turns out to be empty Pingora may write the last chunk though its head said that there is no
/// body: the next thing on that connection is then `0`, which is no request (RFC 9112 §6.3 knows of no such bytes).
fn stray(case: &Case, key: &str, pingora: &Seen, exchange: &Seen) -> Option<&'static str> {
    let chunk = pingora.get("origin..1.start").is_some_and(|start| start.starts_with("0 at "));
    let only = !exchange.keys().any(|key| key.starts_with("origin.."));
    (case.protocol == Protocol::H2 && chunk && only && key.starts_with("origin..")).then_some("a stray last chunk")
}

/// The exchange refused this request's answer, or one before it on the connection, or broke it off, for a flaw it has.
fn strict(case: &Case, of: usize, exchange: &Seen) -> Option<&'static str> {
    let refused = |n: usize| {
        let line = exchange.get(&format!("log.{n}"));
        line.is_some_and(|line| line.contains("\"bad_response\"") || line.contains("\"response_truncated\""))
    };
    let asks = case.asks.iter().enumerate().take(of.saturating_add(1));
    let mut flaws = asks
        .filter(|(n, _)| refused(*n))
        .flat_map(|(_, ask)| ask.answers.iter().filter_map(|answer| flaw(&answer.bytes, ask.method)));
    flaws.next()
}

/// What is wrong with an answer that Pingora takes all the same.
fn flaw(answer: &[u8], method: &str) -> Option<&'static str> {
    let mut rest = answer;
    loop {
        let (lines, after) = match head(rest) {
            Ok(head) => head,
            Err(why) => return Some(why),
        };
        rest = after;
        let status = lines.first().and_then(|line| line.get(9..12)).unwrap_or_default();
        if status.starts_with(b"1") && status != b"101" {
            continue;
        }
        if status == b"101" {
            return switch(&lines);
        }
        let has = |name: &str| lines.iter().any(|line| line.to_ascii_lowercase().starts_with(name.as_bytes()));
        let coded = has("transfer-encoding:");
        if coded && has("content-length:") {
            return Some("a length beside a coding (RFC 9112 §6.3: may be handled as an error)");
        }
        if method == "HEAD" || status == b"204" || status == b"304" || !coded {
            return None;
        }
        return chunks(rest).err();
    }
}

/// What is wrong with a 101 as the beginning of a WebSocket (RFC 6455 §4.1, RFC 9110 §7.8, §15.2.2).
fn switch(lines: &[&[u8]]) -> Option<&'static str> {
    let all = |name: &str| -> Vec<String> {
        let lines = lines.iter().map(|line| String::from_utf8_lossy(line).to_ascii_lowercase());
        lines.filter_map(|line| Some(line.strip_prefix(name)?.strip_prefix(':')?.trim().to_owned())).collect()
    };
    let framed = !all("content-length").is_empty() || !all("transfer-encoding").is_empty();
    let named = all("connection").iter().any(|value| value.split(',').any(|item| item.trim() == "upgrade"));
    (framed || !named || all("upgrade") != ["websocket"]).then_some("a 101 that begins no WebSocket")
}

type Lines<'a> = (Vec<&'a [u8]>, &'a [u8]);

fn head(bytes: &[u8]) -> Result<Lines<'_>, &'static str> {
    let (mut lines, mut rest) = (Vec::new(), bytes);
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = &rest[..end];
        rest = &rest[end + 1..];
        let Some(line) = line.strip_suffix(b"\r") else {
            return Err("a bare LF (RFC 9112 §2.2: a recipient may take it)");
        };
        if line.is_empty() && lines.is_empty() {
            return Err("an empty line before the status line (RFC 9112 §2.2 is about requests)");
        }
        if line.is_empty() {
            return Ok((lines, rest));
        }
        if !lines.is_empty() && line.starts_with(b" ") | line.starts_with(b"\t") {
            return Err("a folded line (RFC 9112 §5.2: a proxy may refuse it)");
        }
        let name = line.split(|byte| *byte == b':').next().unwrap_or_default();
        if !lines.is_empty() && name.last().is_some_and(|byte| b" \t".contains(byte)) {
            return Err(
                "a blank before a colon (RFC 9112 §5.1: a proxy takes it out; the exchange trusts no such answer)",
            );
        }
        lines.push(line);
    }
    // It ends too early, which is the same for both.
    Ok((lines, rest))
}

/// Chunks as RFC 9112 §7.1 has them, and nothing that two parsers could read in two ways.
fn chunks(mut rest: &[u8]) -> Result<(), &'static str> {
    loop {
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else { return loose(rest) };
        let line = rest[..end].strip_suffix(b"\r").ok_or("a chunk's size that ends in a bare LF")?;
        let digits = line.split(|byte| *byte == b';').next().unwrap_or_default();
        if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return Err("a chunk's size that is more than digits (RFC 9112 §7.1 knows no blanks there)");
        }
        if line.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t') {
            return Err("a control character in a chunk's extension");
        }
        if !is_extension(&line[digits.len()..]) {
            return Err("an ill-formed extension of a chunk (RFC 9112 §7.1.1), which Pingora skips");
        }
        let size = std::str::from_utf8(digits).ok().and_then(|digits| usize::from_str_radix(digits, 16).ok());
        let size = size.ok_or("a chunk's size beyond all bounds")?;
        rest = &rest[end + 1..];
        if size == 0 {
            return trailers(rest);
        }
        let Some(after) = rest.get(size..) else { return Ok(()) };
        rest = match after {
            [b'\r', b'\n', rest @ ..] => rest,
            [] | [b'\r'] => return Ok(()),
            _ => return Err("a chunk's data that no CRLF ends"),
        };
    }
}

/// Of those that are made here, and what mutation makes of them.
fn is_extension(mut rest: &[u8]) -> bool {
    let token = |rest: &[u8]| {
        let tchar = |byte: &&u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(*byte);
        rest.iter().take_while(tchar).count()
    };
    while let Some(named) = rest.strip_prefix(b";") {
        let name = token(named);
        if name == 0 {
            return false;
        }
        rest = &named[name..];
        let Some(value) = rest.strip_prefix(b"=") else { continue };
        let length = match value.strip_prefix(b"\"") {
            Some(quoted) => quoted.iter().position(|byte| *byte == b'"').map_or(0, |end| end + 2),
            None => token(value),
        };
        if length == 0 {
            return false;
        }
        rest = &value[length..];
    }
    rest.is_empty()
}

fn loose(rest: &[u8]) -> Result<(), &'static str> {
    let good = |byte: &u8| byte.is_ascii_hexdigit() || *byte == b'\r';
    if rest.iter().all(good) { Ok(()) } else { Err("a chunk's size that is more than digits") }
}

fn trailers(mut rest: &[u8]) -> Result<(), &'static str> {
    const ODD: &str = "ill-formed trailers, which Pingora throws away unread";
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let line = rest[..end].strip_suffix(b"\r").ok_or(ODD)?;
        if line.is_empty() {
            return Ok(());
        }
        let (name, value) = line.split_at(line.iter().position(|byte| *byte == b':').ok_or(ODD)?);
        let token = |byte: &u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
        if name.is_empty()
            || !name.iter().all(token)
            || value.iter().any(|byte| byte.is_ascii_control() && *byte != b'\t')
        {
            return Err(ODD);
        }
        rest = &rest[end + 1..];
    }
    if rest.iter().all(u8::is_ascii_graphic) { Ok(()) } else { Err(ODD) }
}

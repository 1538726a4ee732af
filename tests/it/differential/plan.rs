//! What is sent and answered in one case, made from a number alone.

/// Numbers that look random and are the same for the same seed (SplitMix64).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, most: usize) -> usize {
        usize::try_from(self.next() % most.max(1) as u64).unwrap_or(0)
    }

    fn one_in(&mut self, chances: usize) -> bool {
        self.below(chances) == 0
    }

    fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    fn bytes(&mut self, count: usize) -> Vec<u8> {
        let alphabet = b"abcdefghijklmnopqrstuvwxyz0123456789\r\n: ";
        (0..count).map(|_| self.pick(alphabet)).collect()
    }

    fn cuts(&mut self, length: usize) -> Vec<usize> {
        let count = self.pick(&[0, 0, 0, 1, 2, 5]);
        let mut cuts: Vec<usize> = (0..count).map(|_| self.below(length)).collect();
        cuts.sort_unstable();
        cuts
    }

    fn size(&mut self) -> usize {
        let most = self.pick(&[1, 20, 20, 2_000, 2_000, 20_000, 200_000]);
        self.below(most)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    H10,
    H11,
    H2,
}

/// What the client does when it has sent what it sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Says that nothing more comes, and reads on.
    HalfClose,
    /// Goes away as soon as an origin has the request, and what it sent of an answer has come.
    Leave,
    Stay,
}

/// A connection of a client, and what origins do with its requests.
#[derive(Clone, Debug)]
pub struct Case {
    pub number: u64,
    pub protocol: Protocol,
    pub pipelined: bool,
    pub end: End,
    pub asks: Vec<Ask>,
}

#[derive(Clone)]
pub enum Body {
    Chunked(Vec<Vec<u8>>),
    Counted(Vec<u8>),
    None,
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Chunked(parts) => write!(f, "Chunked {:?}", parts.iter().map(Vec::len).collect::<Vec<_>>()),
            Self::Counted(body) => write!(f, "Counted {}", body.len()),
            Self::None => write!(f, "None"),
        }
    }
}

#[derive(Clone, Debug)]
pub struct Ask {
    pub method: &'static str,
    pub target: String,
    pub fields: Vec<(&'static str, &'static str)>,
    pub body: Body,
    pub expects: bool,
    /// The body is sent by half only; the client then waits for its answer.
    pub half: bool,
    pub cuts: Vec<usize>,
    /// What the first attempt gets, the second, and so on; the last one all that follow.
    pub answers: Vec<Answer>,
}

impl Ask {
    /// Whether it asks for a WebSocket.
    pub fn is_upgrade(&self) -> bool {
        self.fields.contains(&HANDSHAKE[0])
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    Close,
    Keep,
    Reset,
    /// Nothing, until the other side leaves.
    Wait,
}

#[derive(Clone)]
pub struct Answer {
    /// The request's body is read first.
    pub whole: bool,
    pub bytes: Vec<u8>,
    pub cuts: Vec<usize>,
    pub then: Then,
}

impl std::fmt::Debug for Answer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(700)]);
        let (length, whole, cuts, then) = (self.bytes.len(), self.whole, &self.cuts, self.then);
        write!(f, "Answer {{ whole: {whole}, {length} bytes cut at {cuts:?}, then {then:?}: {shown:?} }}")
    }
}

const FIELDS: [(&str, &str); 24] = [
    ("Accept", "*/*"),
    ("aCCept", "text/html"),
    ("X-Dup", "1"),
    ("x-dup", "2"),
    ("Cookie", "a=1"),
    ("Cookie", "b=2"),
    ("X-Empty", ""),
    ("X-Tab", "a\tb"),
    ("Connection", "x-hop, keep-alive"),
    ("Connection", "close"),
    ("X-Hop", "gone"),
    ("Keep-Alive", "timeout=5"),
    ("TE", "trailers"),
    ("Proxy-Connection", "keep-alive"),
    ("Proxy-Authorization", "Basic eA=="),
    ("Trailer", "X-Sum"),
    ("X-Forwarded-For", "192.0.2.1"),
    ("X_Forwarded_For", "192.0.2.2"),
    ("Forwarded", "for=192.0.2.3"),
    ("X-Forwarded-Proto", "https"),
    ("Via", "1.0 other"),
    ("Proxy", "http://evil.test"),
    ("Upgrade", "h2c"),
    ("Range", "bytes=0-1"),
];

/// Of these HTTP/2 knows nothing (RFC 9113 §8.2.2).
const NOT_IN_H2: [&str; 6] = ["connection", "keep-alive", "proxy-connection", "te", "upgrade", "transfer-encoding"];

pub fn case(number: u64) -> Case {
    let mut dice = Dice::new(number);
    let protocol = dice.pick(&[Protocol::H11, Protocol::H11, Protocol::H11, Protocol::H10, Protocol::H2]);
    let end =
        dice.pick(&[End::Stay, End::Stay, End::Stay, End::Stay, End::Stay, End::Stay, End::Leave, End::HalfClose]);
    let end = if protocol == Protocol::H2 && end == End::HalfClose { End::Stay } else { end };
    let count = if end == End::Stay { dice.pick(&[1, 1, 2, 3]) } else { 1 };
    let mut asks: Vec<Ask> = (0..count).map(|_| ask(&mut dice, protocol)).collect();
    // Whether the next request of a pipeline or the end of the origin's connection is first is left to chance.
    let closes =
        asks.iter().flat_map(|ask| &ask.answers).any(|answer| matches!(answer.then, Then::Close | Then::Reset));
    let pipelined = protocol == Protocol::H11 && !closes && asks.len() > 1;
    for ask in &mut asks {
        if pipelined || end == End::HalfClose {
            (ask.half, ask.expects) = (false, false);
        }
        if end != End::Stay {
            // Of more Pingora's queue is full at the end, and then it looks at its client only when the origin has answered.
            match &mut ask.body {
                Body::Chunked(parts) => {
                    parts.truncate(1);
                    parts.iter_mut().for_each(|part| part.truncate(5_000));
                }
                Body::Counted(body) => body.truncate(20_000),
                Body::None => {}
            }
        }
        match end {
            End::Stay => {}
            End::HalfClose => ask.answers.iter_mut().for_each(|answer| answer.whole = true),
            End::Leave => {
                let bytes = dice.pick(&["", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "HTTP/1.1 20"]);
                let bytes = if ask.method == "HEAD" { "" } else { bytes };
                ask.expects = false;
                let whole = !ask.half;
                ask.answers = vec![Answer { whole, bytes: bytes.into(), cuts: vec![], then: Then::Wait }];
            }
        }
        if matches!(ask.body, Body::None) {
            (ask.half, ask.expects) = (false, false);
        }
        if ask.half
            && let Body::Counted(body) = &mut ask.body
        {
            // Of more, chance decides whether all that was read is still at hand for another attempt.
            body.truncate(40_000);
        }
        if ask.half && end == End::Stay {
            // Whether the answer or the body's end is first must not be left to chance.
            for answer in &mut ask.answers {
                answer.whole = false;
            }
        }
        if !ask.half && !matches!(ask.body, Body::None) {
            ask.answers.iter_mut().for_each(|answer| answer.whole = true);
        }
    }
    // Thrown apart, so that there is the same in all that asks for no upgrade.
    let mut dice = Dice::new(!number);
    let upgrades = protocol == Protocol::H11 && dice.one_in(5);
    if upgrades && let Some(last) = asks.last_mut() {
        upgrade(&mut dice, last, end);
    }
    Case { number, protocol, pipelined: pipelined && !upgrades, end, asks }
}

/// Makes it ask for a WebSocket. Some get one, some what is none, and the others what they would have got.
fn upgrade(dice: &mut Dice, ask: &mut Ask, end: End) {
    (ask.method, ask.body, ask.half, ask.expects) = ("GET", Body::None, false, false);
    ask.fields.retain(|(name, _)| !["connection", "upgrade"].contains(&name.to_ascii_lowercase().as_str()));
    ask.fields.extend(HANDSHAKE);
    if end != End::Stay {
        return;
    }
    for answer in &mut ask.answers {
        let (with, without) = if dice.one_in(3) { (dice.pick(&SWITCH_LINES), dice.below(4)) } else { ("", 9) };
        let lines = ["HTTP/1.1 101 Switching Protocols", "Upgrade: websocket", "Connection: upgrade", with];
        let lines = lines.iter().enumerate().filter(|(n, line)| (*n == 0 || *n != without) && !line.is_empty());
        let lines: Vec<_> = lines.map(|(_, line)| *line).collect();
        let mut bytes = (lines.join("\r\n") + "\r\n\r\n").into_bytes();
        let size = dice.size();
        bytes.extend(dice.bytes(size));
        if dice.one_in(2) {
            let cuts = dice.cuts(bytes.len());
            *answer = Answer { whole: true, bytes, cuts, then: Then::Close };
        }
    }
}

const HANDSHAKE: [(&str, &str); 4] = [
    ("Upgrade", "websocket"),
    ("Connection", "keep-alive, Upgrade"),
    ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ("Sec-WebSocket-Version", "13"),
];

/// In a 101.
const SWITCH_LINES: [&str; 12] = [
    "",
    "Upgrade: h2c",
    "Connection: close",
    "Connection: x-hop",
    "X-Hop: gone",
    "Keep-Alive: timeout=5",
    "Content-Length: 3",
    "Transfer-Encoding: chunked",
    "Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=",
    " folded",
    "X-Bare: a\nX-Lf: b",
    "X-Blank : x",
];

fn ask(dice: &mut Dice, protocol: Protocol) -> Ask {
    let method = dice.pick(&["GET", "GET", "GET", "POST", "POST", "PUT", "HEAD", "DELETE", "OPTIONS", "PATCH", "foo"]);
    let target =
        dice.pick(&["/", "/a", "/a?b=c&d", "/%41%2e", "/a%20b", "//x", "/a;b=c", "/?", "/a'(b)*", "/%zz", "/a/../b"]);
    let many = dice.pick(&[0, 1, 3, 6]);
    let mut fields: Vec<_> = (0..many).map(|_| dice.pick(&FIELDS)).collect();
    fields.retain(|(name, _)| {
        let name = name.to_ascii_lowercase();
        protocol != Protocol::H2 || !NOT_IN_H2.contains(&name.as_str())
    });
    let body = match (method, dice.below(4)) {
        ("POST" | "PUT" | "PATCH" | "foo", 0 | 1) | ("GET" | "DELETE", 0) => {
            let size = dice.size();
            Body::Counted(dice.bytes(size))
        }
        ("POST" | "PUT" | "PATCH", 2) if protocol != Protocol::H10 => {
            let parts = dice.below(4);
            let mut part = || {
                let size = dice.size();
                dice.bytes(size + 1)
            };
            Body::Chunked((0..parts).map(|_| part()).collect())
        }
        _ => Body::None,
    };
    let (half, expects) = (dice.one_in(8), dice.one_in(6) && protocol == Protocol::H11);
    let cuts = dice.cuts(400);
    let attempts = dice.pick(&[1, 1, 2, 3]);
    let mut answers: Vec<Answer> = (0..attempts).map(|_| answer(dice, method)).collect();
    // Then comes one that ends it.
    answers.push(Answer {
        whole: true,
        bytes: b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Last: 1\r\n\r\nlast"
            [..if method == "HEAD" { 49 } else { 53 }]
            .to_vec(),
        cuts: vec![],
        then: Then::Keep,
    });
    Ask { method, target: target.into(), fields, body, expects, half, cuts, answers }
}

const ANSWER_FIELDS: [&str; 22] = [
    "Server: x",
    "SERVER: y",
    "Set-Cookie: a=1",
    "set-cookie: b=2; Path=/",
    "X-Empty:",
    "X-Blank:  \t v \t ",
    "X-High: \u{e4}",
    "Connection: x-hop",
    "Connection: close",
    "Connection: keep-alive",
    "X-Hop: gone",
    "Keep-Alive: timeout=5, max=100",
    "Proxy-Authenticate: Basic",
    "Proxy-Connection: close",
    "Trailer: X-Sum",
    "Upgrade: h2c",
    "TE: trailers",
    "Via: 1.0 other",
    "X-Request-Id: theirs",
    "Date: Thu, 01 Jan 1970 00:00:00 GMT",
    "Content-Type: text/plain",
    "Content-Encoding: gzip",
];

const LINES: [&str; 24] = [
    "Content-Length: 3",
    "Content-Length: 5",
    "Content-Length: +5",
    "Content-Length: 5, 5",
    "Content-Length:",
    "Content-Length: 0x5",
    "Content-Length: 99999999999999999999",
    "Content-Length : 5",
    "Transfer-Encoding: chunked",
    "Transfer-Encoding: gzip, chunked",
    "Transfer-Encoding: Chunked ",
    "Transfer-Encoding: xchunked",
    "Transfer-Encoding: identity",
    "Transfer-Encoding : chunked",
    "Transfer-Encoding:",
    " folded",
    "\tfolded",
    "no colon",
    ": no name",
    "X(y): z",
    "X-Bare: a\nX-Lf: b",
    "X-Cr: a\rb",
    "X-Nul: a\0b",
    "Connection: content-length, transfer-encoding",
];

const STATUS_LINES: [&str; 17] = [
    "HTTP/1.1 200",
    "HTTP/1.1 200 ",
    "HTTP/1.1 200 Very Fine \u{e4}",
    "HTTP/1.1  200 OK",
    "HTTP/1.1 20 OK",
    "HTTP/1.1 2000 OK",
    "HTTP/1.1 099 OK",
    "HTTP/1.1 600 OK",
    "HTTP/1.1 999 OK",
    "HTTP/1.2 200 OK",
    "HTTP/2.0 200 OK",
    "HTTP/0.9 200 OK",
    "http/1.1 200 OK",
    "\r\nHTTP/1.1 200 OK",
    "HTTP/1.1 101 Switching Protocols",
    "HTTP/1.1 100 Continue",
    "HTTP/1.1 199 Odd",
];

fn answer(dice: &mut Dice, method: &str) -> Answer {
    let mut bytes = Vec::new();
    for _ in 0..dice.pick(&[0, 0, 0, 0, 1, 2]) {
        let interim = dice.pick(&["100 Continue", "103 Early Hints\r\nLink: </a>", "102 Processing\r\nConnection: x"]);
        bytes.extend(format!("HTTP/1.1 {interim}\r\n\r\n").into_bytes());
    }
    let version = dice.pick(&["1.1", "1.1", "1.1", "1.0"]);
    let status = dice.pick(&[
        "200 OK",
        "200 OK",
        "200 OK",
        "201 Made",
        "204 No Content",
        "304 Not Modified",
        "404 ",
        "205 Reset Content",
        "302 Found",
    ]);
    let first = if dice.one_in(12) { dice.pick(&STATUS_LINES).to_owned() } else { format!("HTTP/{version} {status}") };
    let mut lines = vec![first.clone()];
    let odd = !first.starts_with(&format!("HTTP/{version} {status}"));
    for _ in 0..dice.pick(&[0, 1, 3, 6]) {
        lines.push(dice.pick(&ANSWER_FIELDS).into());
    }
    let size = dice.size();
    let body = dice.bytes(size);
    let bodiless = method == "HEAD" || status.starts_with("204") || status.starts_with("304");
    let framing = dice.below(3);
    let (line, framed) = match framing {
        0 => (format!("Content-Length: {}", body.len()), body),
        1 if version == "1.1" => ("Transfer-Encoding: chunked".to_owned(), chunked(dice, &body)),
        _ => (String::new(), body),
    };
    let until_close = line.is_empty();
    if !(until_close || bodiless && dice.one_in(2)) {
        let at = 1 + dice.below(lines.len());
        lines.insert(at, line);
    }
    let mut mutated = odd;
    if dice.one_in(6) {
        let at = 1 + dice.below(lines.len());
        lines.insert(at, dice.pick(&LINES).into());
        mutated = true;
    }
    bytes.extend(lines.join("\r\n").into_bytes());
    bytes.extend(b"\r\n\r\n");
    let head = bytes.len();
    if !bodiless || dice.one_in(10) {
        bytes.extend(framed);
    }
    let mut then = if until_close && !bodiless {
        Then::Close
    } else {
        dice.pick(&[Then::Keep, Then::Keep, Then::Keep, Then::Close])
    };
    if dice.one_in(12) {
        bytes.extend(dice.pick(&[
            &b"x"[..],
            b"\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nX-Smuggled: 1\r\n\r\nevil",
        ]));
    }
    match dice.below(12) {
        0 => {
            bytes.truncate(dice.below(bytes.len()));
            then = dice.pick(&[Then::Close, Then::Reset]);
        }
        1 => {
            bytes.clear();
            then = dice.pick(&[Then::Close, Then::Reset]);
        }
        2 => {
            mutated = true;
            // Mostly where framing is: in the head, or right behind it.
            for _ in 0..dice.pick(&[1, 1, 2]) {
                let at = dice.below((head + 20).min(bytes.len()));
                let with = dice.pick(&[
                    &b"\r"[..],
                    b"\n",
                    b"\r\n",
                    b" ",
                    b"\t",
                    b"\0",
                    b":",
                    b",",
                    b";",
                    b"0",
                    b"f",
                    b"+",
                    b"-",
                    b"\x7f",
                    b"\xff",
                    b"",
                ]);
                let over = dice.below(2).min(bytes.len() - at);
                bytes.splice(at..at + over, with.iter().copied());
            }
        }
        _ => {}
    }
    if mutated && then != Then::Reset {
        then = Then::Close;
    }
    let cuts = dice.cuts(bytes.len());
    Answer { whole: dice.one_in(2), bytes, cuts, then }
}

fn chunked(dice: &mut Dice, body: &[u8]) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::new(), body);
    while !rest.is_empty() {
        let (part, after) = rest.split_at(1 + dice.below(rest.len()));
        let extension = if dice.one_in(6) { ";x=\"y\"" } else { "" };
        let zeros = if dice.one_in(8) { "00" } else { "" };
        out.extend(format!("{zeros}{:X}{extension}\r\n", part.len()).into_bytes());
        out.extend(part);
        out.extend(b"\r\n");
        rest = after;
    }
    if dice.one_in(15) {
        let odd = dice.pick(&[
            "zz\r\n",
            "5 \r\nhello\r\n",
            "1\nx\r\n",
            "1\r\nxy\r\n",
            "-1\r\n",
            "\r\n",
            "fffffffffffffffff\r\n",
        ]);
        out.extend(odd.as_bytes());
    }
    out.extend(
        dice.pick(&["0\r\n\r\n", "0\r\n\r\n", "0\r\n\r\n", "000\r\n\r\n", "0;x\r\n\r\n", "0\r\nX-Sum: 1\r\n\r\n"])
            .as_bytes(),
    );
    out
}

//! One case played on one engine: two origins that do as the case says, a client that does, and all that was to be seen.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

use super::plan::{Answer, Ask, Body, Case, End, Protocol, Then};
use crate::support::{
    address,
    http1::{Client, Message, Wire},
    http2::{Client2, push},
    within,
};

/// Between parts of a message, so that they come apart.
const MOMENT: Duration = Duration::from_millis(1);
/// For which an origin waits that the other side leaves.
const SOON: Duration = Duration::from_secs(5);

/// The backend that came first, under which the log's are known; not compared.
pub const FIRST: &str = "first backend";

/// The client waited in vain.
pub const STUCK: &str = "stuck";

/// What was to be seen, by a name for it.
pub type Seen = BTreeMap<String, String>;

/// An upstream of two backends, and what it plays at present.
pub struct Stage {
    pub host: String,
    pub backends: [SocketAddr; 2],
    play: Arc<Play>,
    _tasks: JoinSet<()>,
}

struct Play {
    case: Mutex<Arc<Case>>,
    attempts: Mutex<Vec<Attempt>>,
    /// Counts cases; connections of an earlier one are closed.
    turn: watch::Sender<u64>,
    /// Counts requests that have come, and answers that were sent.
    news: watch::Sender<usize>,
    open: AtomicUsize,
}

struct Attempt {
    id: String,
    backend: SocketAddr,
    reused: bool,
    head: Message,
    whole: bool,
    left: Option<bool>,
}

impl Stage {
    pub async fn new(host: &str) -> Self {
        let backends = [address::unused(), address::unused()];
        let nothing = Case { number: 0, protocol: Protocol::H11, pipelined: false, end: End::Stay, asks: vec![] };
        let play = Play {
            case: Mutex::new(Arc::new(nothing)),
            attempts: Mutex::default(),
            turn: watch::channel(0).0,
            news: watch::channel(0).0,
            open: AtomicUsize::new(0),
        };
        let (play, mut tasks) = (Arc::new(play), JoinSet::new());
        for backend in backends {
            let listener = TcpListener::bind(backend).await.expect("loopback");
            let play = play.clone();
            tasks.spawn(async move {
                let mut open = JoinSet::new();
                while let Ok((stream, _)) = listener.accept().await {
                    let play = play.clone();
                    play.open.fetch_add(1, Ordering::SeqCst);
                    open.spawn(async move {
                        let mut turn = play.turn.subscribe();
                        tokio::select! {
                            () = serve(&play, stream, backend) => {}
                            _ = turn.changed() => {}
                        }
                        play.open.fetch_sub(1, Ordering::SeqCst);
                    });
                    while open.try_join_next().is_some() {}
                }
            });
        }
        Self { host: host.to_owned(), backends, play, _tasks: tasks }
    }

    /// Plays a case and tells what client and origins saw.
    pub async fn play(&self, listen: SocketAddr, case: &Arc<Case>) -> Seen {
        *self.play.case.lock().expect("no panic") = case.clone();
        self.play.attempts.lock().expect("no panic").clear();
        self.play.turn.send_modify(|turn| *turn += 1);
        self.play.news.send_replace(0);
        let mut seen = Seen::new();
        let acts = async {
            match case.protocol {
                Protocol::H2 => self.client2(listen, case, &mut seen).await,
                _ => self.client(listen, case, &mut seen).await,
            }
        };
        if tokio::time::timeout(2 * SOON, acts).await.is_err() {
            seen.insert(STUCK.into(), format!("for {:?}", 2 * SOON));
        }
        self.attempts(case, &mut seen).await;
        // The pools of both engines begin each case empty.
        self.play.turn.send_modify(|turn| *turn += 1);
        while self.play.open.load(Ordering::SeqCst) > 0 {
            tokio::time::sleep(MOMENT).await;
        }
        seen
    }

    async fn client(&self, listen: SocketAddr, case: &Case, seen: &mut Seen) {
        let mut client = Client::connect(listen).await;
        let mut open = true;
        if case.pipelined {
            let all: Vec<u8> =
                case.asks.iter().enumerate().flat_map(|(n, ask)| self.request(case, n, ask).concat()).collect();
            send(&mut client.wire, &all, &case.asks[0].cuts).await;
        }
        for (n, ask) in case.asks.iter().enumerate() {
            if !open {
                break;
            }
            let [head, body] = self.request(case, n, ask);
            if n > 0 && !case.pipelined {
                // By then an origin that closes after its answer has done so.
                tokio::time::sleep(5 * MOMENT).await;
            }
            let mut waits = ask.expects.then_some(&body[..]);
            if !case.pipelined {
                let rest =
                    if ask.expects { &[][..] } else { &body[..if ask.half { body.len() / 2 } else { body.len() }] };
                send(&mut client.wire, &[&head[..], rest].concat(), &ask.cuts).await;
            }
            match case.end {
                End::Stay => {}
                End::HalfClose => {
                    self.until(|news| news >= 1).await;
                    let _ = client.wire.finish().await;
                }
                End::Leave => {
                    let begun = ask.answers[0].bytes.ends_with(b"half");
                    // What was refused comes to no origin, and is answered.
                    tokio::select! {
                        () = self.until(|news| news >= 2), if !begun => {}
                        _ = client.wire.head() => {}
                    }
                    return;
                }
            }
            let answer = within("an answer", answer(&mut client.wire, ask, &mut waits)).await;
            open = answer.tell(n, seen) && !ask.half && waits.is_none();
            if !open && !ask.half {
                let rest = within("the connection's end", client.wire.rest()).await;
                seen.insert(format!("{n}.rest"), String::from_utf8_lossy(&rest).into_owned());
            }
        }
        if open && case.end == End::Stay {
            // Whether it still serves.
            tokio::time::sleep(5 * MOMENT).await;
            let probe = format!("GET /probe HTTP/1.1\r\nHost: {}\r\nX-Request-Id: probe\r\n\r\n", self.host);
            let _ = client.wire.send(probe).await;
            let probed = within("a probe", client.try_response(true)).await;
            seen.insert(
                "probe".into(),
                probed.map_or_else(|_| "closed".into(), |reply| reply.status().to_string() + &reply.text()),
            );
        }
    }

    async fn client2(&self, listen: SocketAddr, case: &Case, seen: &mut Seen) {
        let client = Client2::prior(listen).await;
        for (n, ask) in case.asks.iter().enumerate() {
            if n > 0 {
                tokio::time::sleep(5 * MOMENT).await;
            }
            let mut request =
                http::Request::builder().method(ask.method).uri(format!("http://{}{}", self.host, ask.target));
            for (name, value) in &ask.fields {
                request = request.header(*name, *value);
            }
            request = request.header("x-request-id", format!("c{}.{n}", case.number));
            let parts: Vec<Vec<u8>> = match &ask.body {
                Body::None => vec![],
                Body::Counted(body) => {
                    request = request.header("content-length", body.len());
                    vec![body.clone()]
                }
                Body::Chunked(parts) => parts.iter().cloned().chain([vec![]]).collect(),
            };
            let half = |part: &Vec<u8>| part[..part.len() / 2].to_vec();
            let parts = if ask.half { parts.first().map(half).into_iter().collect() } else { parts };
            let Ok(request) = request.body(()) else { return };
            let opened = client.open(request, parts.is_empty() && !ask.half).await;
            let Ok((response, mut stream)) = opened else {
                seen.insert(format!("{n}.status"), "connection closed".into());
                return;
            };
            let last = if ask.half { usize::MAX } else { parts.len() };
            let mut response = Box::pin(response);
            let uploads = async {
                for (at, part) in parts.into_iter().enumerate() {
                    if part.is_empty() {
                        let _ = stream.send_data(Bytes::new(), at + 1 == last);
                    } else if push(&mut stream, part.into(), at + 1 == last).await.is_err() {
                        return;
                    }
                }
            };
            within("an upload", uploads).await;
            if case.end == End::Leave {
                let begun = ask.answers[0].bytes.ends_with(b"half");
                tokio::select! {
                    () = self.until(|news| news >= 2), if !begun => {}
                    _ = response.as_mut() => {}
                }
                stream.send_reset(h2::Reason::CANCEL);
                drop((response, stream));
                // The connection stays, so that it is the stream that counts.
                self.left().await;
                return;
            }
            let told = |key: &str| format!("{n}.{key}");
            match within("an answer", response.as_mut()).await {
                Err(error) => drop(seen.insert(told("status"), format!("{:?}", error.reason()))),
                Ok(reply) => {
                    seen.insert(told("status"), reply.status().as_u16().to_string());
                    let fields = reply.headers().iter();
                    let fields = fields.map(|(name, value)| {
                        (name.to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned())
                    });
                    fields_told(&told("fields"), fields, seen);
                    let (mut body, mut all) = (reply.into_body(), Vec::new());
                    let end = loop {
                        match within("a body", body.data()).await {
                            None => break "whole".to_owned(),
                            Some(Err(error)) => break format!("broken {:?}", error.reason()),
                            Some(Ok(part)) => {
                                let _ = body.flow_control().release_capacity(part.len());
                                all.extend_from_slice(&part);
                            }
                        }
                    };
                    seen.insert(told("body"), hex(&all));
                    seen.insert(told("end"), end);
                }
            }
        }
    }

    fn request(&self, case: &Case, n: usize, ask: &Ask) -> [Vec<u8>; 2] {
        let version = if case.protocol == Protocol::H10 { "1.0" } else { "1.1" };
        let mut head = format!("{} {} HTTP/{version}\r\nHost: {}\r\n", ask.method, ask.target, self.host);
        for (name, value) in &ask.fields {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("X-Request-Id: c{}.{n}\r\n", case.number);
        if ask.expects {
            head += "Expect: 100-continue\r\n";
        }
        let body = match &ask.body {
            Body::None => vec![],
            Body::Counted(body) => {
                head += &format!("Content-Length: {}\r\n", body.len());
                body.clone()
            }
            Body::Chunked(parts) => {
                head += "Transfer-Encoding: chunked\r\n";
                let chunk = |part: &Vec<u8>| [format!("{:x}\r\n", part.len()).as_bytes(), part, b"\r\n"].concat();
                parts.iter().map(chunk).chain([b"0\r\n\r\n".to_vec()]).collect::<Vec<_>>().concat()
            }
        };
        [(head + "\r\n").into_bytes(), body]
    }

    async fn until(&self, comes: impl Fn(usize) -> bool) {
        let mut news = self.play.news.subscribe();
        // Where the request was refused no origin ever has it.
        let _ = tokio::time::timeout(SOON, news.wait_for(|news| comes(*news))).await;
    }

    /// Waits until whoever waits for the other side to leave has seen it.
    async fn left(&self) {
        let pending = || {
            let attempts = self.play.attempts.lock().expect("no panic");
            attempts.iter().any(|attempt| attempt.left.is_none())
        };
        let _ = tokio::time::timeout(SOON, async {
            while pending() {
                tokio::time::sleep(MOMENT).await;
            }
        })
        .await;
    }

    async fn attempts(&self, case: &Case, seen: &mut Seen) {
        if case.end == End::Leave {
            self.left().await;
        }
        let attempts = self.play.attempts.lock().expect("no panic");
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        let first = attempts.first().map(|attempt| attempt.backend);
        seen.insert(FIRST.into(), first.map(|first| first.to_string()).unwrap_or_default());
        for attempt in attempts.iter() {
            let count = counts.entry(&attempt.id).or_default();
            *count += 1;
            let told = |key: &str| format!("origin.{}.{count}.{key}", attempt.id);
            // Whose turn it is later depends on all that was before.
            let place = match Some(attempt.backend) == first {
                _ if !attempt.id.ends_with(".0") => "next",
                true => "first",
                false => "second",
            };
            seen.insert(told("start"), format!("{} at the {place}, reused: {}", attempt.head.start, attempt.reused));
            let fields = attempt
                .head
                .fields
                .iter()
                .map(|(name, value)| (name.to_ascii_lowercase(), value.replace(&self.host, "host")));
            fields_told(&told("fields"), fields, seen);
            seen.insert(told("body"), hex(&attempt.head.body));
            seen.insert(told("whole"), attempt.whole.to_string());
            if case.end == End::Leave {
                seen.insert(told("left"), format!("{:?}", attempt.left));
            }
        }
    }
}

fn fields_told(key: &str, fields: impl Iterator<Item = (String, String)>, seen: &mut Seen) {
    let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, value) in fields.filter(|(name, _)| name != "date") {
        all.entry(name).or_default().push(value);
    }
    seen.insert(key.to_owned(), format!("{all:?}"));
}

/// Enough to tell bodies apart.
fn hex(body: &[u8]) -> String {
    let fold = body
        .iter()
        .fold(0xcbf2_9ce4_8422_2325_u64, |fold, byte| (fold ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{} bytes {fold:016x} {:?}", body.len(), String::from_utf8_lossy(&body[..body.len().min(40)]))
}

async fn send(wire: &mut Wire, bytes: &[u8], cuts: &[usize]) {
    let mut at = 0;
    for cut in cuts.iter().copied().chain([bytes.len()]) {
        let cut = cut.clamp(at, bytes.len());
        if wire.send(&bytes[at..cut]).await.is_err() {
            return;
        }
        at = cut;
        if at < bytes.len() {
            tokio::time::sleep(MOMENT).await;
        }
    }
}

/// An answer as it came.
#[derive(Default)]
struct Came {
    interim: Vec<Message>,
    head: Option<Message>,
    whole: bool,
}

impl Came {
    /// Returns whether the connection may go on.
    fn tell(&self, n: usize, seen: &mut Seen) -> bool {
        let told = |key: &str| format!("{n}.{key}");
        let lower = |head: &Message| {
            head.fields.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone())).collect::<Vec<_>>()
        };
        let interim: Vec<_> = self.interim.iter().map(|head| (&head.start, lower(head))).collect();
        seen.insert(told("interim"), format!("{interim:?}"));
        let Some(head) = &self.head else {
            seen.insert(told("status"), "none".into());
            return false;
        };
        seen.insert(told("status"), head.start.clone());
        let fields = head.fields.iter().map(|(name, value)| (name.to_ascii_lowercase(), value.clone()));
        fields_told(&told("fields"), fields, seen);
        seen.insert(told("body"), hex(&head.body));
        seen.insert(told("end"), if self.whole { "whole".into() } else { "broken".into() });
        let closes = head.fields("connection").iter().any(|value| value.eq_ignore_ascii_case("close"));
        // What comes behind a 101 is no HTTP.
        self.whole && !closes && head.status() != 101
    }
}

async fn answer(wire: &mut Wire, ask: &Ask, waits: &mut Option<&[u8]>) -> Came {
    let mut came = Came::default();
    while let Ok(Some(mut head)) = wire.head().await {
        let status = head.status();
        if status == 100
            && let Some(body) = waits.take()
        {
            let _ = wire.send(body).await;
        }
        if (100..200).contains(&status) && status != 101 {
            came.interim.push(head);
            continue;
        }
        came.whole = ask.method == "HEAD" || status == 204 || status == 304 || wire.body(&mut head).await.is_ok();
        came.head = Some(head);
        break;
    }
    came
}

async fn serve(play: &Play, stream: TcpStream, backend: SocketAddr) {
    let _ = stream.set_nodelay(true);
    let raw = std::os::fd::AsRawFd::as_raw_fd(&stream);
    let mut wire = Wire::new(stream);
    let mut reused = false;
    while let Ok(Some(mut head)) = wire.head().await {
        let id = head.field("x-request-id").unwrap_or_default().to_owned();
        let (place, before) = {
            let mut attempts = play.attempts.lock().expect("no panic");
            let before = attempts.iter().filter(|attempt| attempt.id == id).count();
            let (head, whole) = (head.clone(), false);
            attempts.push(Attempt { id: id.clone(), backend, reused, head, whole, left: None });
            (attempts.len() - 1, before)
        };
        let change = |with: &dyn Fn(&mut Attempt)| play.attempts.lock().expect("no panic").get_mut(place).map(with);
        let case = play.case.lock().expect("no panic").clone();
        let ask = id.rsplit('.').next().and_then(|n| case.asks.get(n.parse::<usize>().ok()?));
        let Some((ask, answer)) = ask.and_then(|ask| Some((ask, ask.answers.get(before.min(ask.answers.len() - 1))?)))
        else {
            let _ = wire.send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nprobed").await;
            reused = true;
            continue;
        };
        if answer.whole {
            if head.field("expect").is_some() {
                let _ = wire.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            }
            let whole = wire.body(&mut head).await.is_ok();
            change(&|attempt| (attempt.head, attempt.whole) = (head.clone(), whole));
            if !whole {
                return;
            }
        }
        play.news.send_modify(|news| *news += 1);
        if case.end == End::HalfClose {
            // By then it is seen.
            tokio::time::sleep(100 * MOMENT).await;
        }
        send(&mut wire, &answer.bytes, &answer.cuts).await;
        play.news.send_modify(|news| *news += 1);
        reused = true;
        match answer.then {
            Then::Keep if answer.whole || matches!(ask.body, Body::None) => {}
            Then::Close | Then::Keep => {
                close(wire, answer).await;
                return;
            }
            Then::Reset => {
                tokio::time::sleep(5 * MOMENT).await;
                let linger = libc::linger { l_onoff: 1, l_linger: 0 };
                let size = u32::try_from(size_of::<libc::linger>()).expect("small");
                // SAFETY: the descriptor is open as long as `wire`, and `linger` outlives the call.
                unsafe { libc::setsockopt(raw, libc::SOL_SOCKET, libc::SO_LINGER, (&raw const linger).cast(), size) };
                return;
            }
            Then::Wait => {
                let left = tokio::time::timeout(SOON, wire.rest()).await.is_ok();
                change(&|attempt| attempt.left = Some(left));
                return;
            }
        }
    }
}

/// Without a reset, which unread bytes would bring about.
async fn close(mut wire: Wire, answer: &Answer) {
    if answer.then == Then::Close {
        let _ = wire.finish().await;
    }
    wire.rest().await;
}

//! What must hold of any bytes of a client and any bytes of its backends, of a whole connection: front, lane and attempt with a
//! worker's own tools, over pairs of unix sockets. No clock has a part in it: what has come to rest is seen by that nothing moves.

use std::{
    cell::RefCell,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
    runtime::{Builder, Runtime},
    task::{JoinHandle, yield_now},
};
use tokio_util::either::Either;

use super::{
    super::{
        Endpoint,
        accept::Open,
        conn::{Conn, Socket, Transport},
        h1,
        worker::Post,
    },
    judge,
    strict::{self, Read},
};
use crate::{
    config::{
        self,
        model::{Model, Upstream},
    },
    proxy::{ConnInfo, Current, Kit},
    runtime::snapshot::Snapshot,
    telemetry::metrics::Metrics,
};

/// Turns of the event loop without a byte moved after which nothing moves any more.
const STILL: usize = 40;
/// Between what the client sends and the backends' answers.
const SEPARATOR: u8 = 0;

thread_local! {
    static STAGE: RefCell<Stage> = RefCell::new(Stage::new());
}

/// What all inputs are played on.
struct Stage {
    runtime: Runtime,
    socket: PathBuf,
    model: Model,
    metrics: Arc<Metrics>,
    /// With what another engine takes long to make: it reads all roots of the system.
    current: Current,
}

impl Stage {
    fn new() -> Self {
        // As Rust does before `main`, of which a fuzzer has another one: who writes to a peer that is gone is told, and not killed.
        // SAFETY: no handler is set.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        // A turn looks for what has come each time.
        let runtime = Builder::new_current_thread().enable_all().event_interval(1).build().expect("a runtime");
        let name = format!("rrlb-lane-{}-{:?}", std::process::id(), std::thread::current().id());
        let socket = std::env::temp_dir().join(name.replace(['(', ')'], ""));
        let yaml = format!(
            "listeners: [{{ address: 127.0.0.1:1, limits: {{ max_header_size: 1KiB, max_body_size: 4KiB }} }}]\n\
             engine: lane\nupstreams: {{ app: {{ backends: [\"unix:{}\"] }} }}\n",
            socket.display()
        );
        let model = config::parse(&yaml, Path::new("/rrlb.yaml")).unwrap_or_else(|report| panic!("{report}")).model;
        let metrics = Arc::new(Metrics::new("0", 1));
        let current = Current::alone(snapshot(&model, &metrics), &kit(&metrics));
        Self { runtime, socket, model, metrics, current }
    }
}

fn kit(metrics: &Arc<Metrics>) -> Arc<Kit> {
    Arc::new(Kit::new(0, Instant::now(), metrics.clone(), 8))
}

fn snapshot(model: &Model, metrics: &Arc<Metrics>) -> Arc<Snapshot> {
    let members = |upstream: &Upstream| upstream.backends.clone();
    Arc::new(Snapshot::build(model, members, None, metrics))
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// How an input is played.
#[derive(Clone, Copy)]
struct Manner {
    /// Answers begin before anything is asked, after a head, or after the whole request.
    when: When,
    /// Backends close when they have no answer left.
    closes: bool,
    /// Connections that wait in the pool at the beginning.
    pooled: usize,
    /// The largest piece at once, of the client and of backends.
    pieces: (usize, usize),
    seed: u32,
}

#[derive(Clone, Copy, PartialEq)]
enum When {
    Asked,
    AtOnce,
    Head,
}

impl Manner {
    fn new(flags: u8, seed: u8) -> Self {
        let piece = |small: bool| if small { 3 } else { 4096 };
        Self {
            when: match flags & 3 {
                0 => When::AtOnce,
                1 => When::Head,
                _ => When::Asked,
            },
            closes: flags & 4 != 0,
            pooled: usize::from(flags >> 3 & 3),
            pieces: (piece(flags & 32 != 0), piece(flags & 64 != 0)),
            seed: u32::from(seed),
        }
    }
}

/// Small numbers, always the same ones.
struct Dice(u32);

impl Dice {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (self.0 >> 16) as usize % bound.max(1)
    }
}

/// What has happened.
#[derive(Default)]
pub(super) struct Record {
    /// Bytes that moved, and ends that were seen.
    moved: u64,
    /// What backends are still to answer with, the next one last.
    answers: Vec<Vec<u8>>,
    /// Backends are gone.
    pub(super) over: bool,
    /// By the client.
    pub(super) sent: Vec<u8>,
    /// By the proxy, to the client.
    pub(super) client: Far,
    pub(super) backends: Vec<Backend>,
    /// The connections of the requests that backends got, as these began.
    pub(super) order: Vec<usize>,
    tasks: Vec<JoinHandle<()>>,
}

/// What came out of the proxy on one connection.
#[derive(Default)]
pub(super) struct Far {
    pub(super) got: Vec<u8>,
    pub(super) ended: bool,
}

/// A connection to a backend.
#[derive(Default)]
pub(super) struct Backend {
    pub(super) far: Far,
    pub(super) gave: Vec<u8>,
    /// Of each request: where it begins in what was got, and where its answer begins in what was given. A new connection is made for
    /// one, so where the backend answers at once its first one is here though nothing of it may ever be read.
    pub(super) requests: Vec<(usize, usize)>,
    /// The backend has closed it.
    pub(super) closed: bool,
}

type Shared = Arc<Mutex<Record>>;

fn lock(record: &Shared) -> MutexGuard<'_, Record> {
    record.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The input is two bytes that say how it is played, what a client sends, and after a NUL each what a backend answers the
/// next request with; none closes. Whatever they are: nothing panics or stands still; what backends get is whole requests, each
/// one of the client's, in their order, or a connection that breaks off; what the client gets is whole answers, or a connection
/// that breaks off; and only what was whole on both sides is used again.
///
/// # Panics
/// If that does not hold.
pub fn lane(input: &[u8]) {
    let [flags, seed, rest @ ..] = input else { return };
    let manner = Manner::new(*flags, *seed);
    let mut parts = rest.split(|byte| *byte == SEPARATOR);
    let client = ours(parts.next().unwrap_or_default());
    let mut answers: Vec<Vec<u8>> = parts.map(<[u8]>::to_vec).collect();
    answers.reverse();
    STAGE.with_borrow(|stage| {
        let record = Shared::new(Mutex::new(Record { answers, ..Record::default() }));
        stage.runtime.block_on(play(stage, manner, client, &record));
    });
}

/// The beginning of the stream that holds nothing for another engine.
fn ours(stream: &[u8]) -> &[u8] {
    let mut at = 0;
    loop {
        let (request, length) = match next(stream, at) {
            Some(Read::Whole(request, length)) => (request, length),
            Some(Read::Part(Some(request)) | Read::Broken(request, _)) => (request, stream.len() - at),
            _ => return stream,
        };
        let [method, target, version] = &request.start;
        let named =
            |name: &str| matches!(name, "expect" | "upgrade" | "max-forwards") || name.starts_with("x-client-cert-");
        let plain = version == b"HTTP/1.1" && target.starts_with(b"/") && method != b"TRACE" && method != b"CONNECT";
        if !plain || request.fields.iter().any(|(name, _)| named(name)) {
            return &stream[..at];
        }
        at += length;
    }
}

/// What stands at this place of a client's stream, behind the one empty line that may come before; `None` at its end.
pub(super) fn next(stream: &[u8], at: usize) -> Option<Read> {
    let rest = &stream[at..];
    if rest.is_empty() {
        return None;
    }
    let blank = if rest.starts_with(b"\r\n") { 2 } else { 0 };
    Some(match strict::request(&rest[blank..]) {
        Read::Whole(request, length) => Read::Whole(request, blank + length),
        read => read,
    })
}

async fn play(stage: &Stage, manner: Manner, stream: &[u8], record: &Shared) {
    let _ = std::fs::remove_file(&stage.socket);
    let listener = UnixListener::bind(&stage.socket).expect("a socket");
    let (kit, snapshot) = (kit(&stage.metrics), snapshot(&stage.model, &stage.metrics));
    let mut dice = Dice(manner.seed);
    for _ in 0..manner.pooled {
        let (ours, theirs) = UnixStream::pair().expect("a pair");
        let backend = snapshot.member(0).upstream.backends()[0].clone();
        let (target, key) = backend.connection().expect("an address");
        let line = Either::Left(Either::Right(ours));
        kit.pool().put(key, line, Instant::now(), Duration::from_secs(3600), || Some(backend.anchor(target)));
        attend(theirs, manner, dice.below(1 << 16), false, record);
    }
    let accepting = tokio::spawn({
        let (record, mut dice) = (record.clone(), Dice(manner.seed + 1));
        async move {
            while let Ok((theirs, _)) = listener.accept().await {
                attend(theirs, manner, dice.below(1 << 16), true, &record);
            }
        }
    });

    let (near, mut far) = UnixStream::pair().expect("a pair");
    let endpoint = Arc::new(Endpoint::alone(stage.model.listeners[0].clone(), stage.metrics.listener(&"l".into())));
    let post = Arc::new(Post::alone(kit.clone(), stage.current.with(snapshot)));
    let conn = Box::new(Conn::new(Transport::Plain(Socket::Unix(near)), None));
    let info = Arc::new(ConnInfo::new(None, None, endpoint.model.clone(), conn.fd()));
    let open = Open::alone(&kit, &endpoint);
    let serving = tokio::spawn(h1::serve(post, conn, info, endpoint, (open, Instant::now())));
    {
        let (mut reader, mut writer) = far.split();
        let reads = async {
            let mut buffer = [0; 4096];
            loop {
                let read = reader.read(&mut buffer).await.unwrap_or(0);
                let mut record = lock(record);
                record.moved += 1;
                record.client.got.extend_from_slice(&buffer[..read]);
                record.client.ended |= read == 0;
                if read == 0 {
                    break;
                }
            }
            std::future::pending::<()>().await;
        };
        let writes = async {
            let mut rest = stream;
            while !rest.is_empty() && !lock(record).client.ended {
                let (now, later) = rest.split_at(rest.len().min(1 + dice.below(manner.pieces.0)));
                if writer.write_all(now).await.is_err() {
                    break;
                }
                lock(record).sent.extend_from_slice(now);
                lock(record).moved += 1;
                rest = later;
                for _ in 0..dice.below(4) {
                    yield_now().await;
                }
            }
            settle(record, &kit).await;
            // No backend is there any more.
            let tasks = {
                let mut record = lock(record);
                record.over = true;
                record.backends.iter_mut().for_each(|backend| backend.closed |= !backend.far.ended);
                std::mem::take(&mut record.tasks)
            };
            tasks.iter().for_each(JoinHandle::abort);
            settle(record, &kit).await;
        };
        tokio::select! {
            () = reads => {}
            () = writes => {}
        }
    }
    // The client leaves.
    drop(far);
    still(record).await;
    assert!(serving.is_finished(), "the connection is still served though its client has left");
    serving.await.expect("no panic");
    accepting.abort();
    let _ = accepting.await;
    judge::ended(&lock(record));
}

/// Waits until nothing moves, and sees that it is right so.
async fn settle(record: &Shared, kit: &Kit) {
    still(record).await;
    // As a worker's own sweep does.
    kit.pool().sweep(Instant::now(), None);
    still(record).await;
    judge::settled(&lock(record), kit.pool().sweep(Instant::now(), None));
}

/// Waits until nothing moves.
async fn still(record: &Shared) {
    let mut seen = lock(record).moved;
    let mut turns = 0;
    while turns < STILL {
        yield_now().await;
        let now = lock(record).moved;
        turns = if now == seen { turns + 1 } else { 0 };
        seen = now;
    }
}

/// A backend takes a connection; `fresh`: made for a request.
fn attend(stream: UnixStream, manner: Manner, seed: usize, fresh: bool, record: &Shared) {
    let mut all = lock(record);
    let (index, over) = (all.backends.len(), all.over);
    all.backends.push(Backend { closed: over, ..Backend::default() });
    all.moved += 1;
    if !over {
        let begun = fresh && manner.when == When::AtOnce;
        if begun {
            all.backends[index].requests.push((0, 0));
            all.order.push(index);
        }
        let serving = serve(stream, index, manner, Dice(seed as u32), begun, record.clone());
        all.tasks.push(tokio::spawn(serving));
    }
}

/// `begun`: its first request is in the record already.
async fn serve(mut stream: UnixStream, index: usize, manner: Manner, mut dice: Dice, mut begun: bool, record: Shared) {
    let mut answered = manner.when == When::AtOnce;
    let mut open = !answered || give(&mut stream, index, manner, &mut dice, &record).await;
    let mut at = 0;
    let mut buffer = [0; 4096];
    while open {
        let read = stream.read(&mut buffer).await.unwrap_or(0);
        {
            let mut record = lock(&record);
            record.moved += 1;
            record.backends[index].far.got.extend_from_slice(&buffer[..read]);
            record.backends[index].far.ended |= read == 0;
        }
        if read == 0 {
            return;
        }
        while open {
            let next = {
                let mut record = lock(&record);
                let backend = &mut record.backends[index];
                if at == backend.far.got.len() {
                    break;
                }
                let next = strict::request(&backend.far.got[at..]);
                if !std::mem::replace(&mut begun, true) {
                    let from = if at == 0 { 0 } else { backend.gave.len() };
                    backend.requests.push((at, from));
                    record.order.push(index);
                }
                next
            };
            let (due, whole) = match next {
                Read::Whole(_, length) => (true, Some(length)),
                Read::Part(Some(_)) => (manner.when == When::Head, None),
                Read::Part(None) | Read::Bad(_) | Read::Broken(..) => (false, None),
            };
            if due && !std::mem::replace(&mut answered, true) {
                open = give(&mut stream, index, manner, &mut dice, &record).await;
            }
            let Some(length) = whole else { break };
            (at, begun, answered) = (at + length, false, false);
        }
    }
    let mut record = lock(&record);
    record.backends[index].closed = true;
    record.moved += 1;
}

/// Gives the next answer. Returns whether the connection stays open.
async fn give(stream: &mut UnixStream, index: usize, manner: Manner, dice: &mut Dice, record: &Shared) -> bool {
    let Some(answer) = lock(record).answers.pop() else { return !manner.closes };
    let to_head = lock(record).sent.windows(5).any(|word| word == b"HEAD ");
    let end = end(&answer, false).min(if to_head { end(&answer, true) } else { usize::MAX });
    let mut rest = &answer[..];
    while !rest.is_empty() {
        let piece = rest.len().min(1 + dice.below(manner.pieces.1));
        let ends = answer.len() - rest.len() + piece >= end;
        let (now, later) = rest.split_at(if ends { rest.len() } else { piece });
        if stream.write_all(now).await.is_err() {
            break;
        }
        lock(record).backends[index].gave.extend_from_slice(now);
        lock(record).moved += 1;
        rest = later;
        for _ in 0..dice.below(3) {
            yield_now().await;
        }
    }
    !(answer.is_empty() || (manner.closes && lock(record).answers.is_empty()))
}

/// Where an answer ends: what stands behind it is given together with its last byte. If it came once the next request is on its way,
/// nobody could tell it from the answer to that.
fn end(answer: &[u8], to_head: bool) -> usize {
    let (at, read) = judge::last(answer, to_head);
    if let Read::Whole(_, length) = read { at + length } else { usize::MAX }
}

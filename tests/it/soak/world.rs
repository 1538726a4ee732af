//! What all clients of a soak share: the doors they come through, their dice, and the book of what they saw.

use std::{
    collections::{BTreeMap, HashMap},
    fs, io,
    net::{Ipv4Addr, SocketAddr},
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{io::AsyncWriteExt, net::TcpStream};

use crate::support::{
    PATIENCE,
    http1::{Client, Message, Wire},
    http2::Client2,
};

/// Failures that are kept; the rest is counted.
const KEPT_FAILURES: usize = 30;
/// The test stood still if a moment took as long as this, and a thread if it waited for a core as long: half of what an
/// origin may take.
const STALL: Duration = Duration::from_millis(250);

/// Random numbers that the same seed gives again (splitmix64).
#[derive(Clone, Debug)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// From 0 up to, and not, `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.roll() % bound as u64) as usize
    }

    pub fn one_in(&mut self, count: usize) -> bool {
        self.below(count) == 0
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }

    pub fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.roll().to_le_bytes()[0]).collect()
    }

    pub fn millis(&mut self, bound: usize) -> Duration {
        Duration::from_millis(self.below(bound) as u64)
    }
}

/// The listeners.
#[derive(Clone)]
pub struct Doors {
    /// HTTP/1.1 and h2c.
    pub plain: SocketAddr,
    /// Over TLS.
    pub secure: SocketAddr,
    /// HTTP/1.1 and h2c behind a PROXY header.
    pub behind: SocketAddr,
    /// Of few connections for each client.
    pub few: SocketAddr,
    pub tls1: Arc<ClientConfig>,
    pub tls2: Arc<ClientConfig>,
}

impl Doors {
    /// An HTTP/1.1 client through one of the doors.
    pub async fn h1(&self, dice: &mut Dice) -> io::Result<Client> {
        match dice.below(4) {
            0 => Client::try_tls(self.secure, "a.test", &self.tls1).await,
            1 => {
                let mut client = Client::try_connect(self.behind).await?;
                client.wire.send(proxy_header(dice)).await?;
                Ok(client)
            }
            _ => Client::try_connect(self.plain).await,
        }
    }

    /// As [`Doors::h1`], HTTP/2.
    pub async fn h2(&self, dice: &mut Dice) -> io::Result<Client2> {
        match dice.below(3) {
            0 => Client2::try_tls(self.secure, "a.test", &self.tls2).await,
            1 => {
                let mut stream = TcpStream::connect(self.behind).await?;
                stream.set_nodelay(true)?;
                stream.write_all(&proxy_header(dice)).await?;
                Client2::over(Box::new(stream)).await
            }
            _ => Client2::try_prior(self.plain).await,
        }
    }

    /// Bytes, with TLS or without; nothing has been sent but what comes before HTTP.
    pub async fn wire(&self, dice: &mut Dice) -> io::Result<Wire> {
        Ok(self.h1(dice).await?.wire)
    }
}

/// A good PROXY header of version 1 or 2.
pub fn proxy_header(dice: &mut Dice) -> Vec<u8> {
    let client = Ipv4Addr::new(203, 0, 113, dice.below(250) as u8);
    if dice.one_in(2) {
        return format!("PROXY TCP4 {client} 198.51.100.9 4242 443\r\n").into_bytes();
    }
    let ends = [&client.octets()[..], &[198, 51, 100, 9, 0x10, 0x92, 1, 0xbb]].concat();
    [&b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c"[..], &ends].concat()
}

/// What all of them know.
pub struct World {
    pub doors: Doors,
    /// Of the certificate.
    pub name: ServerName<'static>,
    stop: AtomicBool,
    began: Instant,
    /// When this test, or a part of it or of the proxy, stood still, and for how long: nobody is to blame for what that makes late.
    stalls: Mutex<Stalls>,
    /// Everybody is seen to the end, however slow.
    whole: bool,
    book: Mutex<Book>,
}

/// Times in which something did not run that should have.
struct Stalls {
    past: Vec<(Instant, Duration)>,
    /// When the clock was looked at last. Who wakes first after a stall is not the one who looks at the clock.
    beat: Instant,
}

impl Stalls {
    /// Whether the test stood still after `since`.
    fn were_after(&self, since: Instant) -> bool {
        self.past.iter().any(|(at, long)| *at + *long >= since) || self.beat.elapsed() > STALL
    }
}

/// How long each thread of a process has waited for a core so far.
fn waits(process: u32) -> impl Iterator<Item = (PathBuf, Duration)> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    threads.filter_map(|thread| {
        // Nanoseconds on a core, nanoseconds in wait for one, and how often.
        let text = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        let wait = text.split(' ').nth(1)?.parse().ok()?;
        Some((thread.path(), Duration::from_nanos(wait)))
    })
}

/// What was seen.
#[derive(Debug, Default)]
pub struct Book {
    /// What must not be.
    pub failures: Vec<String>,
    pub failed: usize,
    /// How often each kind of client came.
    pub acts: BTreeMap<&'static str, u64>,
    /// Answers by the word in their `Proxy-Status`.
    pub told: BTreeMap<String, u64>,
    /// Failures while the test stood still.
    pub excused: Vec<String>,
}

impl World {
    pub fn new(doors: Doors, whole: bool) -> Self {
        let name = ServerName::try_from("a.test").expect("a name");
        let began = Instant::now();
        let stalls = Mutex::new(Stalls { past: Vec::new(), beat: began });
        Self { doors, name, stop: AtomicBool::new(false), began, stalls, whole, book: Mutex::default() }
    }

    /// No client begins anew.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::SeqCst);
    }

    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::SeqCst)
    }

    /// Whether somebody very slow may leave.
    pub fn hurries(&self) -> bool {
        self.stopped() && !self.whole
    }

    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn did(&self, act: &'static str) {
        *self.book().acts.entry(act).or_default() += 1;
    }

    fn stalls(&self) -> MutexGuard<'_, Stalls> {
        self.stalls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For as long as there is anybody. Notes when the test, or a thread of it or of `proxy`, is not run, as on a machine
    /// that does other work too.
    pub async fn watch_the_clock(&self, proxy: u32) {
        const BEAT: Duration = Duration::from_millis(20);
        let mut waited = HashMap::new();
        loop {
            let before = Instant::now();
            tokio::time::sleep(BEAT).await;
            let mut stalls = self.stalls();
            let now = Instant::now();
            stalls.beat = now;
            if now - before > STALL {
                stalls.past.push((before, now - before));
            }
            for (thread, wait) in [proxy, std::process::id()].into_iter().flat_map(waits) {
                // Of twice that time, in one piece or in many.
                let (from, before) = waited.entry(thread).or_insert((now, wait));
                if wait.saturating_sub(*before) > STALL {
                    stalls.past.push((now, Duration::ZERO));
                }
                if now - *from > STALL * 2 {
                    (*from, *before) = (now, wait);
                }
            }
        }
    }

    /// A failure of a client that came then.
    pub fn fail(&self, since: Instant, failure: String) {
        let failure = format!("{:?} to {:?}: {failure}", since - self.began, self.began.elapsed());
        let stood_still = self.stalls().were_after(since);
        let mut book = self.book();
        if stood_still {
            return book.excused.push(failure);
        }
        book.failed += 1;
        if book.failures.len() < KEPT_FAILURES {
            book.failures.push(failure);
        }
    }

    /// The word of a failure in `Proxy-Status`, counted.
    pub fn told(&self, proxy_status: Option<&str>) -> Option<String> {
        let (_, word) = proxy_status?.split_once("details=\"")?;
        let word = word.strip_suffix('"')?.to_owned();
        *self.book().told.entry(word.clone()).or_default() += 1;
        Some(word)
    }

    /// A refusal must be the one that was called for.
    pub fn refused(&self, status: u16, proxy_status: Option<&str>, expected: (u16, &str)) -> Result<(), String> {
        let word = self.told(proxy_status);
        if (status, word.as_deref()) == (expected.0, Some(expected.1)) {
            return Ok(());
        }
        Err(format!("{status} with Proxy-Status {proxy_status:?} in place of {expected:?}"))
    }
}

/// A final answer.
#[derive(Debug)]
pub enum Answer {
    /// It ended before its end.
    Cut(Message),
    Whole(Message),
}

/// The next final answer of a connection. `None`: the connection ended before any byte of it.
pub async fn answer(client: &mut Client, bodiless: bool) -> Result<Option<Answer>, String> {
    let reading = async {
        loop {
            let head = client.wire.head().await;
            let mut head = match head {
                Ok(None) => return Ok(None),
                Ok(Some(head)) => head,
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
                // The same in TLS.
                Err(error) if error.to_string().contains("close_notify") => return Ok(None),
                Err(error) => return Err(format!("no answer: {error}")),
            };
            let status = head.status();
            if (100..200).contains(&status) && status != 101 {
                continue;
            }
            if bodiless || matches!(status, 101 | 204 | 304) {
                return Ok(Some(Answer::Whole(head)));
            }
            let read = client.wire.body(&mut head).await;
            return Ok(Some(if read.is_ok() { Answer::Whole(head) } else { Answer::Cut(head) }));
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.map_err(|_| "no answer in time".to_owned())?
}

/// Reads until the other side closes.
pub async fn closed(client: &mut Client) -> Result<Vec<u8>, String> {
    let rest = tokio::time::timeout(PATIENCE, client.wire.rest()).await;
    rest.map_err(|_| "the connection was not closed".to_owned())
}

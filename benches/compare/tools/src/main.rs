//! The load of the comparison: `load MODE key=value...`, one thread, answers as JSON on standard output.
//!
//! It opens its connections, does one request on each, prints `ready` and waits for a line on standard input; then it
//! measures for `seconds`, prints the result and waits for the end of standard input. So whoever runs it can read the
//! proxy's CPU time exactly before and after. Modes: h1, h2, ws, idle; the keys are in `Options`.

mod h1;
mod h2load;
mod idle;
mod pace;
mod tls;

use std::{cell::RefCell, io::BufRead, rc::Rc, time::Duration};

use tokio::{task::LocalSet, time::Instant};

type Failure = Box<dyn std::error::Error>;

/// What is asked of the load.
#[derive(Clone)]
struct Options {
    mode: String,
    /// Where the proxy listens.
    address: std::net::SocketAddr,
    /// The request's path; `/N` gives an answer of N bytes.
    path: String,
    connections: usize,
    /// Streams at once on each connection, for h2.
    streams: usize,
    seconds: f64,
    /// Requests a second in all, from the moment each was due; 0 is as fast as answers come.
    rate: f64,
    /// Bytes of the request's body; more than 0 makes it a POST.
    post: usize,
    tls: bool,
    /// A connection per request.
    close: bool,
    /// Resume TLS sessions.
    resume: bool,
    /// Numbers of idle connections to stop at.
    counts: Vec<usize>,
}

impl Options {
    fn read() -> Result<Self, Failure> {
        let mut words = std::env::args().skip(1);
        let mut options = Self {
            mode: words.next().ok_or("usage: load MODE key=value...")?,
            address: "127.0.0.1:80".parse()?,
            path: "/13".to_owned(),
            connections: 16,
            streams: 1,
            seconds: 1.0,
            rate: 0.0,
            post: 0,
            tls: false,
            close: false,
            resume: false,
            counts: Vec::new(),
        };
        for word in words {
            let (key, value) = word.split_once('=').ok_or_else(|| format!("{word}: not key=value"))?;
            match key {
                "address" => options.address = value.parse()?,
                "path" => options.path = value.to_owned(),
                "connections" => options.connections = value.parse()?,
                "streams" => options.streams = value.parse()?,
                "seconds" => options.seconds = value.parse()?,
                "rate" => options.rate = value.parse()?,
                "post" => options.post = value.parse()?,
                "tls" => options.tls = value.parse()?,
                "close" => options.close = value.parse()?,
                "resume" => options.resume = value.parse()?,
                "counts" => options.counts = value.split(',').map(str::parse).collect::<Result<_, _>>()?,
                _ => return Err(format!("{key}: unknown").into()),
            }
        }
        Ok(options)
    }
}

/// What all connections of a run have seen.
#[derive(Default)]
struct Seen {
    /// Nanoseconds of each request.
    latencies: Vec<u64>,
    errors: u64,
    /// The first error's text.
    error: Option<String>,
    /// Connections that the proxy closed between two requests, as it may.
    reconnects: u64,
    /// TLS sessions that were resumed.
    resumed: u64,
    bytes: u64,
}

type Shared = Rc<RefCell<Seen>>;

impl Seen {
    fn fail(&mut self, error: impl ToString) {
        self.errors += 1;
        self.error.get_or_insert_with(|| error.to_string());
    }

    /// The result as one line of JSON.
    fn json(&mut self, elapsed: Duration, unfinished: usize) -> String {
        self.latencies.sort_unstable();
        let at = |share: f64| -> f64 {
            let last = self.latencies.len().saturating_sub(1);
            let value = self.latencies.get((last as f64 * share).round() as usize).copied().unwrap_or(0);
            value as f64 / 1e3
        };
        let error = self.error.as_deref().unwrap_or("").replace(['"', '\\', '\n', '\r'], " ");
        format!(
            "{{\"requests\":{},\"seconds\":{:.6},\"errors\":{},\"error\":\"{error}\",\"reconnects\":{},\"resumed\":{},\"bytes\":{},\
             \"unfinished\":{unfinished},\"p50\":{:.1},\"p90\":{:.1},\"p99\":{:.1},\"p999\":{:.1},\"max\":{:.1}}}",
            self.latencies.len(),
            elapsed.as_secs_f64(),
            self.errors,
            self.reconnects,
            self.resumed,
            self.bytes,
            at(0.5),
            at(0.9),
            at(0.99),
            at(0.999),
            at(1.0),
        )
    }
}

/// Prints `ready` and waits until it is told to begin.
fn wait_for_start() {
    println!("ready");
    let _ = std::io::stdin().lock().read_line(&mut String::new());
}

fn main() -> Result<(), Failure> {
    let options = Options::read()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, async {
        let seen = Shared::default();
        if options.mode == "idle" {
            return idle::run(&options).await;
        }
        let began;
        let unfinished;
        if options.mode == "h2" {
            let connections = h2load::open(&options).await?;
            wait_for_start();
            began = Instant::now();
            unfinished = h2load::run(&options, connections, &seen).await;
        } else {
            let connections = h1::open(&options).await?;
            wait_for_start();
            began = Instant::now();
            unfinished = h1::run(&options, connections, &seen).await;
        }
        println!("{}", seen.borrow_mut().json(began.elapsed(), unfinished));
        let _ = std::io::stdin().lock().read_line(&mut String::new());
        Ok(())
    })
}

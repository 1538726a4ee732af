//! An admin API that answers what it was told to, in that order, and keeps what it was asked.

use std::{
    collections::VecDeque,
    convert::Infallible,
    io::Write,
    path::PathBuf,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard},
    task::{Context, Poll},
    thread,
    time::Duration,
};

use bytes::Bytes;
use clap::Parser;
use http::{HeaderMap, Request, Response};
use http_body_util::BodyExt;
use hyper::{
    body::{Body, Frame, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use tokio::sync::oneshot;

use super::super::{Exit, arguments::Arguments, control, instance::Stream, screen::Screen};

/// What is answered.
#[derive(Default)]
pub(super) struct Reply {
    status: u16,
    kind: &'static str,
    body: String,
    endless: bool,
    when: Option<Box<dyn Fn() -> bool + Send + Sync>>,
}

impl Reply {
    pub(super) fn json(status: u16, body: serde_json::Value) -> Self {
        Self { status, kind: "application/json", body: body.to_string(), ..Self::default() }
    }

    pub(super) fn text(kind: &'static str, body: &str) -> Self {
        Self { status: 200, kind, body: body.to_owned(), ..Self::default() }
    }

    pub(super) fn empty(status: u16) -> Self {
        Self { status, kind: "text/plain", ..Self::default() }
    }

    /// The connection ends instead.
    pub(super) fn dies() -> Self {
        // No status, so that no answer can be written.
        Self::empty(0)
    }

    pub(super) fn problem(status: u16, title: &str, detail: &str, more: serde_json::Value) -> Self {
        let mut body = serde_json::json!({ "type": "about:blank", "title": title, "status": status, "detail": detail });
        for (name, value) in more.as_object().expect("an object") {
            body[name] = value.clone();
        }
        Self { kind: "application/problem+json", ..Self::json(status, body) }
    }

    /// The body does not end.
    pub(super) fn endless(self) -> Self {
        Self { endless: true, ..self }
    }

    /// Answered when this is so.
    pub(super) fn when(self, so: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { when: Some(Box::new(so)), ..self }
    }
}

struct Canned {
    data: Option<Bytes>,
    endless: bool,
}

impl Body for Canned {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.data.take() {
            Some(data) => Poll::Ready(Some(Ok(Frame::data(data)))),
            None if self.endless => Poll::Pending,
            None => Poll::Ready(None),
        }
    }
}

/// What was asked.
#[derive(Debug)]
pub(super) struct Seen {
    /// `GET /v1/status`
    pub(super) line: String,
    pub(super) headers: HeaderMap,
    pub(super) body: String,
}

struct State {
    replies: Mutex<VecDeque<Reply>>,
    seen: Mutex<Vec<Seen>>,
}

/// The server; ends when dropped.
pub(super) struct Fake {
    pub(super) dir: tempfile::TempDir,
    state: Arc<State>,
    _end: oneshot::Sender<()>,
}

impl Fake {
    pub(super) fn new(replies: Vec<Reply>) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        let listener = std::os::unix::net::UnixListener::bind(dir.path().join("admin.sock")).expect("bind");
        listener.set_nonblocking(true).expect("non-blocking");
        Self::start(dir, replies, async move |state| {
            let listener = tokio::net::UnixListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, state.clone()));
            }
        })
    }

    /// On TCP, with TLS where there is an acceptor.
    pub(super) fn tcp(replies: Vec<Reply>, tls: Option<tokio_rustls::TlsAcceptor>) -> (Self, std::net::SocketAddr) {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("bind");
        let address = listener.local_addr().expect("an address");
        listener.set_nonblocking(true).expect("non-blocking");
        let fake = Self::start(tempfile::tempdir().expect("a folder"), replies, async move |state| {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((stream, _)) = listener.accept().await {
                match &tls {
                    None => _ = tokio::spawn(serve(stream, state.clone())),
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            tokio::spawn(serve(stream, state.clone()));
                        }
                    }
                }
            }
        });
        (fake, address)
    }

    fn start<F>(dir: tempfile::TempDir, replies: Vec<Reply>, accept: F) -> Self
    where
        F: AsyncFnOnce(Arc<State>) + Send + 'static,
    {
        let state = Arc::new(State { replies: Mutex::new(replies.into()), seen: Mutex::default() });
        let (end, ended) = oneshot::channel::<()>();
        let served = state.clone();
        thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                tokio::select! {
                    () = accept(served) => {}
                    _ = ended => {}
                }
            });
        });
        Self { dir, state, _end: end }
    }

    pub(super) fn socket(&self) -> PathBuf {
        self.dir.path().join("admin.sock")
    }

    pub(super) fn seen(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.state.seen.lock().expect("no panic")
    }

    /// `METHOD target` of each request.
    pub(super) fn lines(&self) -> Vec<String> {
        self.seen().iter().map(|seen| seen.line.clone()).collect()
    }

    /// The body of the only request, as JSON.
    pub(super) fn body(&self) -> serde_json::Value {
        serde_json::from_str(&self.seen()[0].body).expect("JSON")
    }

    /// Runs `rrlb --socket … ARGS`, not on a terminal.
    pub(super) fn run(&self, args: &[&str]) -> Done {
        run_with(args, Some(self), false, None)
    }

    /// As [`Fake::run`], on a terminal.
    pub(super) fn run_on_terminal(&self, args: &[&str]) -> Done {
        run_with(args, Some(self), true, None)
    }
}

async fn serve(stream: impl Stream + 'static, state: Arc<State>) {
    let answer = service_fn(|request: Request<Incoming>| {
        let state = state.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await.expect("a body").to_bytes();
            let line = format!("{} {}", head.method, head.uri);
            let body = String::from_utf8(body.to_vec()).expect("text");
            state.seen.lock().expect("no panic").push(Seen { line, headers: head.headers, body });
            let reply = state.replies.lock().expect("no panic").pop_front();
            let reply =
                reply.unwrap_or_else(|| Reply::problem(500, "nothing more to answer", "", serde_json::json!({})));
            while reply.when.as_ref().is_some_and(|so| !so()) {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
            let body = Canned { data: (!reply.body.is_empty()).then(|| reply.body.into()), endless: reply.endless };
            Response::builder().status(reply.status).header("content-type", reply.kind).body(body)
        }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

/// What was printed so far.
#[derive(Clone, Default)]
pub(super) struct Printed(Arc<Mutex<Vec<u8>>>);

impl Printed {
    pub(super) fn text(&self) -> String {
        String::from_utf8(self.0.lock().expect("no panic").clone()).expect("text")
    }
}

impl Write for Printed {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().expect("no panic").extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// How a command ended.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) exit: Exit,
    pub(super) out: String,
    pub(super) err: String,
}

/// Runs `rrlb ARGS`; with `--socket` of the server, where there is one.
pub(super) fn run_with(args: &[&str], fake: Option<&Fake>, terminal: bool, err: Option<Printed>) -> Done {
    let socket = fake.map(|fake| fake.socket().to_str().expect("text").to_owned());
    let place = socket.iter().flat_map(|socket| ["--socket", socket]);
    let args: Vec<&str> = ["rrlb"].into_iter().chain(place).chain(args.iter().copied()).collect();
    let arguments = Arguments::try_parse_from(&args).unwrap_or_else(|error| panic!("{args:?}: {error}"));
    run_arguments(&arguments, terminal, err, None)
}

/// As [`run_with`], with RRLB_SOCKET.
pub(super) fn run_arguments(arguments: &Arguments, terminal: bool, err: Option<Printed>, env: Option<PathBuf>) -> Done {
    let (out, err) = (Printed::default(), err.unwrap_or_default());
    let mut screen = Screen::new(Box::new(out.clone()), Box::new(err.clone()), terminal, Duration::from_millis(10));
    let command = arguments.command.as_ref().expect("a command");
    let exit = control(arguments, command, &mut screen, env);
    Done { exit, out: out.text(), err: err.text() }
}

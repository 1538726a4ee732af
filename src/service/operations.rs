//! `/metrics`, `/healthz` and `/readyz` on an address and a thread of their own, so that they answer however busy the
//! workers are.

use std::{
    convert::Infallible,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use pingora_core::{
    server::{ListenFds, ShutdownWatch},
    services::Service,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
};

use super::health::FirstRound;
use crate::{runtime::lull, telemetry::metrics::Metrics};

/// Scrapers and probes are few; more than this wait.
const CONNECTIONS: usize = 64;
/// A client that sends its head slower than this is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(2);
/// What answers have left free is given back so often at most, when the next one is asked for.
const LEFT: Duration = Duration::from_secs(10);

/// Whether the process should get traffic.
#[derive(Debug)]
pub struct Readiness {
    first_rounds: Vec<FirstRound>,
    serving: AtomicBool,
    draining: AtomicBool,
}

impl Readiness {
    /// Ready once this process serves and the first rounds (health checks, name resolution) are finished.
    pub fn new(first_rounds: Vec<FirstRound>) -> Arc<Self> {
        Arc::new(Self { first_rounds, serving: AtomicBool::new(false), draining: AtomicBool::new(false) })
    }

    /// The process serves.
    pub fn serve(&self) {
        self.serving.store(true, Ordering::Release);
    }

    /// Not ready any more, for good.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
    }

    /// Waits until the first rounds are finished.
    pub async fn first_rounds(&self) {
        for round in &self.first_rounds {
            round.clone().finished().await;
        }
    }

    /// Whether the process only finishes what it has.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }

    /// `starting`, `serving` or `draining`.
    pub fn phase(&self) -> &'static str {
        match (self.is_draining(), self.serving.load(Ordering::Acquire)) {
            (true, _) => "draining",
            (false, true) => "serving",
            (false, false) => "starting",
        }
    }

    /// What still holds up readiness; empty where nothing does.
    pub fn not_ready(&self) -> &'static str {
        self.state().err().unwrap_or_default().trim_end()
    }

    fn state(&self) -> Result<(), &'static str> {
        if self.draining.load(Ordering::Acquire) {
            Err("draining\n")
        } else if !self.serving.load(Ordering::Acquire) {
            Err("starting\n")
        } else if !self.first_rounds.iter().all(FirstRound::is_finished) {
            Err("waiting for the first round of health checks and name resolution\n")
        } else {
            Ok(())
        }
    }
}

/// The endpoints, as a Pingora service.
pub struct Operations {
    socket: watch::Receiver<Option<Arc<std::net::TcpListener>>>,
    metrics: Arc<Metrics>,
    readiness: Arc<Readiness>,
    gate: watch::Receiver<bool>,
    closing: watch::Receiver<bool>,
}

impl Operations {
    /// Serves on the bound, non-blocking socket that is put there last, from when `gate` is open until `closing` becomes
    /// true.
    pub fn new(
        socket: watch::Receiver<Option<Arc<std::net::TcpListener>>>,
        metrics: Arc<Metrics>,
        readiness: Arc<Readiness>,
        gate: watch::Receiver<bool>,
        closing: watch::Receiver<bool>,
    ) -> Self {
        Self { socket, metrics, readiness, gate, closing }
    }

    async fn run(&mut self) {
        let _ = self.gate.wait_for(|open| *open).await;
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut listener = adopt(&mut self.socket);
        let mut given_back = Instant::now();
        loop {
            let accepted = tokio::select! {
                _ = self.closing.wait_for(|closing| *closing) => return,
                Ok(()) = self.socket.changed() => {
                    listener = adopt(&mut self.socket);
                    continue;
                }
                accepted = accept(listener.as_ref(), &places) => accepted,
            };
            let (stream, place) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    log::warn!("metrics: cannot accept: {error}");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            if given_back.elapsed() >= LEFT {
                lull::give_back();
                given_back = Instant::now();
            }
            let (metrics, readiness) = (self.metrics.clone(), self.readiness.clone());
            tokio::spawn(async move {
                let answer = service_fn(|request: Request<Incoming>| {
                    let response = answer(&request, &metrics, &readiness);
                    async { Ok::<_, Infallible>(response) }
                });
                let served = http1::Builder::new()
                    .timer(TokioTimer::new())
                    .header_read_timeout(HEADER_TIMEOUT)
                    .serve_connection(TokioIo::new(stream), answer);
                if let Err(error) = served.await {
                    log::debug!("metrics: {error}");
                }
                drop(place);
            });
        }
    }
}

/// The socket that is there now, for this event loop.
fn adopt(socket: &mut watch::Receiver<Option<Arc<std::net::TcpListener>>>) -> Option<TcpListener> {
    let socket = socket.borrow_and_update().clone()?;
    let adopted = socket.try_clone().and_then(TcpListener::from_std);
    adopted.inspect_err(|error| log::error!("metrics: {error}")).ok()
}

async fn accept(
    listener: Option<&TcpListener>,
    places: &Arc<Semaphore>,
) -> std::io::Result<(TcpStream, OwnedSemaphorePermit)> {
    let Some(listener) = listener else { return std::future::pending().await };
    let place = places.clone().acquire_owned().await.map_err(std::io::Error::other)?;
    Ok((listener.accept().await?.0, place))
}

fn answer(request: &Request<Incoming>, metrics: &Metrics, readiness: &Readiness) -> Response<Full<Bytes>> {
    let text = "text/plain; charset=utf-8";
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut response = respond(StatusCode::METHOD_NOT_ALLOWED, text, "only GET and HEAD are served\n");
        response.headers_mut().insert(header::ALLOW, HeaderValue::from_static("GET, HEAD"));
        return response;
    }
    match request.uri().path() {
        "/metrics" => respond(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", metrics.encode()),
        "/healthz" => respond(StatusCode::OK, text, "ok\n"),
        "/readyz" => match readiness.state() {
            Ok(()) => respond(StatusCode::OK, text, "ready\n"),
            Err(why) => respond(StatusCode::SERVICE_UNAVAILABLE, text, why),
        },
        _ => respond(StatusCode::NOT_FOUND, text, "there are /metrics, /healthz and /readyz\n"),
    }
}

fn respond(status: StatusCode, kind: &'static str, body: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    response
}

#[async_trait]
impl Service for Operations {
    async fn start_service(&mut self, _: Option<ListenFds>, _: ShutdownWatch, _: usize) {
        self.run().await;
    }

    fn name(&self) -> &str {
        "operations"
    }

    fn threads(&self) -> Option<usize> {
        Some(1)
    }
}

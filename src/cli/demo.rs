//! `rrlb demo`: three small origins inside the process and the proxy of `conf/pingora.yaml` in front of them.

use std::{convert::Infallible, net::SocketAddr, path::Path, thread, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;

use super::{Exit, ask, logging, run};
use crate::{
    config::{self, Format},
    server::{Beginning, Start},
    types::{BackendAddress, ListenAddress},
};

const CONFIGURATION: &str = include_str!("../../conf/pingora.yaml");

/// Runs the demonstration until it is ended.
pub(super) fn run_demo() -> Exit {
    let file = Path::new("conf/pingora.yaml");
    let loaded = match config::parse(CONFIGURATION, file) {
        Ok(loaded) => loaded,
        Err(report) => {
            eprint!("{}", report.render(Format::Human));
            return Exit::Internal;
        }
    };
    let model = &loaded.model;
    let backends: Vec<SocketAddr> = model
        .upstreams
        .values()
        .flat_map(|upstream| &upstream.backends)
        .filter_map(|backend| match &backend.address {
            BackendAddress::Inet(address) => Some(*address),
            BackendAddress::Host(_) | BackendAddress::Unix(_) => None,
        })
        .collect();
    for address in &backends {
        if let Err(error) = origin(*address) {
            eprintln!(
                "error: the demo's origin cannot listen on {address}: {error}; stop what listens there and try again"
            );
            return Exit::StartFailed;
        }
        eprintln!("origin   http://{address}/");
    }
    for listener in &model.listeners {
        if let ListenAddress::Inet(address) = listener.address {
            eprintln!("proxy    http://{address}/");
        }
    }
    if let Some(address) = model.metrics {
        eprintln!("metrics  http://{address}/metrics");
    }
    if let (Some(listener), Some(metrics)) = (model.listeners.first(), model.metrics) {
        invite(&listener.address, metrics);
    }
    let log = logging::start();
    run(
        Beginning::with(loaded, CONFIGURATION, file),
        &Start { config: file.to_owned(), daemon: false, upgrade: false },
        &log,
    )
}

/// Says what to try, as soon as it will work.
fn invite(address: &ListenAddress, metrics: SocketAddr) {
    let line =
        format!("\nTry it from another terminal, several times; Ctrl-C ends the demo:\n\n    curl http://{address}/\n");
    thread::spawn(move || {
        for _ in 0..200 {
            if ask(metrics, "/readyz").is_ok_and(|status| status.starts_with("HTTP/1.1 200")) {
                return eprintln!("{line}");
            }
            thread::sleep(Duration::from_millis(50));
        }
    });
}

/// An origin on a thread of its own that says who it is and what it was asked.
fn origin(address: SocketAddr) -> std::io::Result<()> {
    let listener = std::net::TcpListener::bind(address)?;
    listener.set_nonblocking(true)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::Builder::new().name(format!("origin {}", address.port())).spawn(move || {
        runtime.block_on(async move {
            let listener = match tokio::net::TcpListener::from_std(listener) {
                Ok(listener) => listener,
                Err(error) => return eprintln!("origin {address}: {error}"),
            };
            while let Ok((stream, _)) = listener.accept().await {
                let answer = service_fn(move |request: Request<Incoming>| async move {
                    let text = format!("Hello from origin {address}, asked for {}\n", request.uri());
                    Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
                });
                tokio::spawn(async move {
                    // A client that leaves in the middle is none of the demo's business.
                    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
                });
            }
        });
    })?;
    Ok(())
}

//! HTTP/2 connections over TLS, some streams at once on each.

use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::Request;
use rustls::pki_types::ServerName;
use tokio::{net::TcpStream, task::spawn_local, time::Instant};
use tokio_rustls::TlsConnector;

use crate::{Failure, Options, Shared, tls};

/// One connection with TLS and HTTP/2 set up.
pub(crate) async fn connect(
    options: &Options,
    config: std::sync::Arc<rustls::ClientConfig>,
) -> Result<SendRequest<Bytes>, Failure> {
    let stream = TcpStream::connect(options.address).await?;
    stream.set_nodelay(true)?;
    let stream = TlsConnector::from(config).connect(ServerName::try_from(tls::HOST)?, stream).await?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err("the proxy does not speak h2 here".into());
    }
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1 << 20).initial_connection_window_size(4 << 20);
    let (send, connection) = builder.handshake(stream).await?;
    spawn_local(async move {
        let _ = connection.await;
    });
    Ok(send)
}

/// One request with its whole answer; gives the bytes of its body.
pub(crate) async fn exchange(send: &SendRequest<Bytes>, path: &str) -> Result<usize, Failure> {
    let request = Request::get(format!("https://{}{path}", tls::HOST)).body(())?;
    let (answer, _) = send.clone().ready().await?.send_request(request, true)?;
    let answer = answer.await?;
    if answer.status() != 200 {
        return Err(answer.status().to_string().into());
    }
    let (mut body, mut bytes) = (answer.into_body(), 0);
    while let Some(part) = body.data().await {
        let part = part?;
        bytes += part.len();
        body.flow_control().release_capacity(part.len())?;
    }
    Ok(bytes)
}

/// Opens all connections and does one request on each.
pub(crate) async fn open(options: &Options) -> Result<Vec<SendRequest<Bytes>>, Failure> {
    let config = tls::config(b"h2", false)?;
    let mut connections = Vec::new();
    for _ in 0..options.connections {
        let send = connect(options, config.clone()).await?;
        exchange(&send, &options.path).await?;
        connections.push(send);
    }
    Ok(connections)
}

/// Keeps the streams of all connections busy until the time is over.
pub(crate) async fn run(options: &Options, connections: Vec<SendRequest<Bytes>>, seen: &Shared) -> usize {
    let end = Instant::now() + Duration::from_secs_f64(options.seconds);
    let mut tasks = Vec::new();
    for send in connections {
        for _ in 0..options.streams {
            let (seen, mut send, options) = (seen.clone(), send.clone(), options.clone());
            tasks.push(spawn_local(async move {
                let mut began = Instant::now();
                while began < end {
                    let result = exchange(&send, &options.path).await;
                    let now = Instant::now();
                    match result {
                        Ok(bytes) => {
                            seen.borrow_mut().bytes += bytes as u64;
                            seen.borrow_mut().latencies.push((now - began).as_nanos() as u64);
                        }
                        // A proxy may end a connection by GOAWAY after many requests; the next one is on a new connection.
                        Err(error) => {
                            let fresh = async { connect(&options, tls::config(b"h2", false)?).await };
                            match (error.downcast_ref::<h2::Error>().is_some_and(h2::Error::is_go_away), fresh.await) {
                                (true, Ok(fresh)) => {
                                    send = fresh;
                                    seen.borrow_mut().reconnects += 1;
                                }
                                (_, fresh) => {
                                    seen.borrow_mut().fail(error);
                                    let Ok(fresh) = fresh else { return };
                                    send = fresh;
                                }
                            }
                        }
                    }
                    began = now;
                }
            }));
        }
    }
    for task in tasks {
        let _ = task.await;
    }
    0
}

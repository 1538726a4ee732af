//! Origins as they should not be.

use std::{
    future::pending,
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::AsRawFd,
    time::Duration,
};

use super::{address, origin::Peer};

/// Closes each connection at once.
pub async fn close_at_once(peer: Peer) {
    drop(peer);
}

/// Reads a request and never answers.
pub async fn mute(mut peer: Peer) {
    if peer.request().await.is_some() {
        pending().await
    }
}

/// Never reads more than a request's head and never answers.
pub async fn deaf(mut peer: Peer) {
    if peer.request_head().await.is_some() {
        pending().await
    }
}

/// Sends a head and the first half of a body, and then nothing.
pub async fn stall_in_body(mut peer: Peer) {
    if peer.request().await.is_some() {
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").await;
        pending().await
    }
}

/// The same of a body that ends with its connection.
pub async fn stall_without_a_length(mut peer: Peer) {
    if peer.request().await.is_some() {
        peer.send("HTTP/1.1 200 OK\r\n\r\nhello").await;
        pending().await
    }
}

/// Sends a head and the first half of a body, and closes.
pub async fn close_in_body(mut peer: Peer) {
    if peer.request().await.is_some() {
        peer.send("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello").await;
    }
}

/// Reads a whole request and resets the connection.
pub async fn reset_after_request(mut peer: Peer) {
    if peer.request().await.is_some() {
        peer.reset();
    }
}

/// Answers one request as if the connection stayed open, and closes it.
pub async fn close_when_idle(mut peer: Peer) {
    if peer.request().await.is_some() {
        peer.reply(200, "", "once").await;
    }
}

/// Answers with something that is not HTTP.
pub async fn babble(mut peer: Peer) {
    if peer.request().await.is_some() {
        peer.send("SSH-2.0-OpenSSH_9.2\r\n\r\n").await;
    }
}

/// Answers a probe byte by byte, forever: no single read takes long.
pub async fn drip(mut peer: Peer) {
    if peer.request().await.is_some() {
        peer.send("HTTP/1.1 200 OK\r\nX-Drip: ").await;
        while peer.wire.send("x").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

/// An address whose packets go nowhere: its backlog is full, so the kernel drops every further SYN.
pub struct Blackhole {
    /// As written into `backends`.
    pub address: SocketAddr,
    _listener: TcpListener,
    _fill: Vec<TcpStream>,
}

impl Blackhole {
    /// Fills the backlog.
    pub fn new() -> Self {
        let address = address::unused();
        let listener = TcpListener::bind(address).unwrap_or_else(|e| panic!("bind {address}: {e}"));
        // SAFETY: the descriptor is open; a second `listen` only changes the backlog.
        unsafe { libc::listen(listener.as_raw_fd(), 0) };
        let mut fill = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(200)) {
            fill.push(stream);
            assert!(fill.len() < 16, "the backlog does not fill up");
        }
        Self { address, _listener: listener, _fill: fill }
    }
}

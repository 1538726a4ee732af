//! Origins of a soak: one that is always well, and others whose mood changes. None keeps what it saw, and none outlives
//! its connection.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::support::{
    http1::Message,
    origin::{Origin, Peer},
};

/// How an origin answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mood {
    Babble,
    BadChunk,
    BadFraming,
    CloseAtOnce,
    CloseIdle,
    Error,
    Mute,
    Reset,
    Stall,
    Truncate,
    TruncateChunks,
    Well,
}

impl Mood {
    pub const ALL: [Self; 12] = [
        Self::Babble,
        Self::BadChunk,
        Self::BadFraming,
        Self::CloseAtOnce,
        Self::CloseIdle,
        Self::Error,
        Self::Mute,
        Self::Reset,
        Self::Stall,
        Self::Truncate,
        Self::TruncateChunks,
        Self::Well,
    ];
}

/// An origin's mood, to be changed.
#[derive(Clone)]
pub struct Temper(Arc<AtomicUsize>);

impl Temper {
    pub fn new(mood: Mood) -> Self {
        let temper = Self(Arc::default());
        temper.set(mood);
        temper
    }

    pub fn set(&self, mood: Mood) {
        self.0.store(Mood::ALL.iter().position(|one| *one == mood).expect("one of all"), Ordering::SeqCst);
    }

    fn mood(&self) -> Mood {
        Mood::ALL[self.0.load(Ordering::SeqCst)]
    }
}

/// An origin that names itself.
pub async fn start(name: &'static str, temper: &Temper) -> Origin {
    let temper = temper.clone();
    Origin::script(name, move |peer| serve(peer, name, temper.clone())).await
}

/// One that never changes.
pub async fn always(name: &'static str, mood: Mood) -> Origin {
    start(name, &Temper::new(mood)).await
}

async fn serve(mut peer: Peer, name: &'static str, temper: Temper) {
    if temper.mood() == Mood::CloseAtOnce {
        return;
    }
    while let Ok(Some(mut request)) = peer.wire.head().await {
        if request.field("upgrade").is_some() {
            return websocket(peer).await;
        }
        if peer.wire.body(&mut request).await.is_err() {
            return;
        }
        match temper.mood() {
            Mood::Babble => return peer.send("SSH-2.0-OpenSSH_9.2\r\n\r\n").await,
            Mood::BadChunk => {
                return peer.send(head(name, "200 OK", "Transfer-Encoding: chunked\r\n") + "zz\r\nhello\r\n").await;
            }
            Mood::BadFraming => {
                return peer.send(head(name, "200 OK", "Content-Length: 5\r\nContent-Length: 6\r\n") + "hello").await;
            }
            Mood::CloseAtOnce => return,
            Mood::CloseIdle => return well(&mut peer, name, &request).await,
            Mood::Error => peer.send(head(name, "500 Oh", "Content-Length: 3\r\n") + "sad").await,
            Mood::Mute => return drop(peer.wire.rest().await),
            Mood::Reset => return peer.reset(),
            Mood::Stall => {
                peer.send(head(name, "200 OK", "Content-Length: 10\r\n") + "xxxxx").await;
                return drop(peer.wire.rest().await);
            }
            Mood::Truncate => return peer.send(head(name, "200 OK", "Content-Length: 10\r\n") + "xxxxx").await,
            Mood::TruncateChunks => {
                return peer.send(head(name, "200 OK", "Transfer-Encoding: chunked\r\n") + "5\r\nxxxxx\r\n").await;
            }
            Mood::Well => well(&mut peer, name, &request).await,
        }
    }
}

fn head(name: &str, status: &str, fields: &str) -> String {
    format!("HTTP/1.1 {status}\r\nX-Origin: {name}\r\n{fields}\r\n")
}

/// `…/size/N` gives N bytes, `…/chunked` the request's body in chunks; anything else the body as it came, or the name.
async fn well(peer: &mut Peer, name: &str, request: &Message) {
    let size = request.target().rsplit_once("/size/").and_then(|(_, size)| size.parse::<usize>().ok());
    let length = |length: usize| format!("Content-Length: {length}\r\n");
    if request.method() == "HEAD" {
        peer.send(head(name, "200 OK", &length(5))).await;
    } else if let Some(size) = size {
        // Somebody may have changed a digit.
        let mut left = size.min(64 << 20);
        peer.send(head(name, "200 OK", &length(left))).await;
        let block = vec![b'x'; 64 << 10];
        while left > 0 {
            let now = left.min(block.len());
            if peer.wire.send(&block[..now]).await.is_err() {
                return;
            }
            left -= now;
        }
    } else if request.target().ends_with("/chunked") {
        let mut answer = head(name, "200 OK", "Transfer-Encoding: chunked\r\n").into_bytes();
        for chunk in request.body.chunks(1000) {
            answer.extend(format!("{:x}\r\n", chunk.len()).bytes());
            answer.extend(chunk);
            answer.extend(b"\r\n");
        }
        answer.extend(b"0\r\nX-Sum: 1\r\n\r\n");
        peer.send(answer).await;
    } else {
        let body = if request.body.is_empty() { name.as_bytes() } else { &request.body };
        peer.send([head(name, "200 OK", &length(body.len())).as_bytes(), body].concat()).await;
    }
}

async fn websocket(mut peer: Peer) {
    peer.send("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n").await;
    let (io, ahead) = peer.wire.into_parts();
    let (mut reader, mut writer) = tokio::io::split(io);
    if tokio::io::AsyncWriteExt::write_all(&mut writer, &ahead).await.is_ok() {
        let _ = tokio::io::copy(&mut reader, &mut writer).await;
        let _ = tokio::io::AsyncWriteExt::shutdown(&mut writer).await;
    }
}

/// Speaks first, and something else than TLS.
pub async fn banner() -> Origin {
    Origin::script("banner", |mut peer| async move {
        peer.send("SSH-2.0-OpenSSH_9.2\r\n").await;
        peer.wire.rest().await;
    })
    .await
}

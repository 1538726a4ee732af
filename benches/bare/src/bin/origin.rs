//! An origin that costs next to nothing: one thread, a fixed answer of 13 bytes for every head without a body.
//!
//! `origin LISTEN...`

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 13\r\n\r\nHello, world!";
const HEAD_END: &[u8] = b"\r\n\r\n";

fn main() -> std::io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    runtime.block_on(async {
        let mut accepting = Vec::new();
        for address in std::env::args().skip(1) {
            let listener = TcpListener::bind(address).await?;
            accepting.push(tokio::spawn(accept(listener)));
        }
        for task in accepting {
            task.await??;
        }
        Ok(())
    })
}

async fn accept(listener: TcpListener) -> std::io::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(answer(stream));
    }
}

/// Answers each head; ends with the connection, or where a head is longer than the buffer.
async fn answer(mut stream: TcpStream) {
    let mut buffer = [0; 8192];
    let mut filled = 0;
    while filled < buffer.len() {
        match stream.read(&mut buffer[filled..]).await {
            Ok(count) if count > 0 => filled += count,
            _ => return,
        }
        while let Some(at) = buffer[..filled].windows(HEAD_END.len()).position(|window| window == HEAD_END) {
            if stream.write_all(ANSWER).await.is_err() {
                return;
            }
            let end = at + HEAD_END.len();
            buffer.copy_within(end..filled, 0);
            filled -= end;
        }
    }
}

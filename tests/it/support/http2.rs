//! HTTP/2 on both sides of the proxy, by the `h2` crate: frames, trailers and GOAWAY are visible.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::Bytes;
use h2::{RecvStream, SendStream, client, server};
use http::{HeaderMap, HeaderValue, Request, Response};
use rustls::{ClientConfig, ServerConfig, pki_types::ServerName};
use tokio::{
    net::{TcpListener, TcpStream},
    task::{JoinHandle, JoinSet},
};

use super::{PATIENCE, address, eventually, http1::Io, within};

/// A client's HTTP/2 connection to the proxy.
pub struct Client2 {
    send: client::SendRequest<Bytes>,
    connection: JoinHandle<Result<(), h2::Error>>,
}

/// A response.
#[derive(Clone, Debug)]
pub struct Reply2 {
    /// Status code.
    pub status: u16,
    /// Fields of the head.
    pub headers: HeaderMap,
    /// The whole body.
    pub body: Vec<u8>,
    /// Fields after the body.
    pub trailers: Option<HeaderMap>,
}

impl Reply2 {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// A field's value as text.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().expect("text"))
    }
}

impl Client2 {
    /// HTTP/2 in plain text by prior knowledge.
    pub async fn prior(to: SocketAddr) -> Self {
        Self::try_prior(to).await.unwrap_or_else(|e| panic!("h2c to {to}: {e}"))
    }

    /// As [`Client2::prior`], for those who expect failures.
    pub async fn try_prior(to: SocketAddr) -> io::Result<Self> {
        let stream = within("connect", TcpStream::connect(to)).await?;
        stream.set_nodelay(true)?;
        Self::over(Box::new(stream)).await
    }

    /// HTTP/2 over TLS.
    pub async fn tls(to: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> Self {
        Self::try_tls(to, name, config).await.unwrap_or_else(|e| panic!("h2 over TLS to {to}: {e}"))
    }

    /// As [`Client2::tls`], for those who expect failures.
    pub async fn try_tls(to: SocketAddr, name: &str, config: &Arc<ClientConfig>) -> io::Result<Self> {
        let stream = within("connect", TcpStream::connect(to)).await?;
        stream.set_nodelay(true)?;
        let connector = tokio_rustls::TlsConnector::from(Arc::clone(config));
        let name = ServerName::try_from(name.to_owned()).map_err(io::Error::other)?;
        let stream = within("tls handshake", connector.connect(name, stream)).await?;
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]), "h2 was not agreed on");
        Self::over(Box::new(stream)).await
    }

    /// HTTP/2 over any stream.
    pub async fn over(io: Box<dyn Io>) -> io::Result<Self> {
        let handshake = within("h2 handshake", client::handshake(io)).await;
        let (send, connection) = handshake.map_err(io::Error::other)?;
        Ok(Self { send, connection: tokio::spawn(connection) })
    }

    /// `GET`.
    pub async fn get(&self, path: &str) -> Reply2 {
        self.try_get(path).await.unwrap_or_else(|e| panic!("GET {path}: {e}"))
    }

    /// As [`Client2::get`], for those who expect failures.
    pub async fn try_get(&self, path: &str) -> Result<Reply2, h2::Error> {
        self.try_send(request("GET", path), vec![], None).await
    }

    /// A request with a body in these parts and trailers.
    pub async fn send(&self, request: Request<()>, body: Vec<Bytes>, trailers: Option<HeaderMap>) -> Reply2 {
        self.try_send(request, body, trailers).await.unwrap_or_else(|e| panic!("request: {e}"))
    }

    /// As [`Client2::send`], for those who expect failures.
    pub async fn try_send(
        &self,
        request: Request<()>,
        body: Vec<Bytes>,
        trailers: Option<HeaderMap>,
    ) -> Result<Reply2, h2::Error> {
        let exchange = async {
            let (response, mut stream) = self.open(request, body.is_empty() && trailers.is_none()).await?;
            let sending = async {
                let last = body.len();
                for (index, part) in body.into_iter().enumerate() {
                    push(&mut stream, part, index + 1 == last && trailers.is_none()).await?;
                }
                trailers.map_or(Ok(()), |trailers| stream.send_trailers(trailers))
            };
            let receiving = async {
                let (head, mut body) = response.await?.into_parts();
                let (body, trailers) = collect(&mut body).await?;
                Ok::<_, h2::Error>((head, body, trailers))
            };
            // A response may come before the request's end, and its sender then need not read on.
            let (sent, received) = tokio::join!(sending, receiving);
            let (head, body, trailers) = received.map_err(|e| sent.err().unwrap_or(e))?;
            Ok(Reply2 { status: head.status.as_u16(), headers: head.headers, body, trailers })
        };
        within("h2 response", exchange).await
    }

    /// Sends a request's head; the rest is the caller's.
    pub async fn open(
        &self,
        request: Request<()>,
        end: bool,
    ) -> Result<(client::ResponseFuture, SendStream<Bytes>), h2::Error> {
        let mut send = self.send.clone().ready().await?;
        send.send_request(request, end)
    }

    /// Waits until the connection has ended; dropping the client lets it end when no stream is left.
    pub async fn ended(self) {
        let Self { send, connection } = self;
        let end = tokio::time::timeout(PATIENCE, connection).await;
        drop(send);
        let _ = end.expect("the connection to be closed").expect("no panic");
    }
}

/// A request for `http://a.test`.
pub fn request(method: &str, path: &str) -> Request<()> {
    Request::builder().method(method).uri(format!("http://a.test{path}")).body(()).expect("a request")
}

/// Sends one part of a body as the window allows.
pub async fn push(stream: &mut SendStream<Bytes>, mut part: Bytes, end: bool) -> Result<(), h2::Error> {
    while !part.is_empty() {
        stream.reserve_capacity(part.len());
        let room = match poll_fn(|cx| stream.poll_capacity(cx)).await {
            Some(room) => room?.min(part.len()),
            None => return Err(h2::Reason::STREAM_CLOSED.into()),
        };
        let now = part.split_to(room);
        stream.send_data(now, end && part.is_empty())?;
    }
    Ok(())
}

/// Reads a body to its end.
pub async fn collect(body: &mut RecvStream) -> Result<(Vec<u8>, Option<HeaderMap>), h2::Error> {
    let mut all = Vec::new();
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        all.extend_from_slice(&part);
    }
    Ok((all, body.trailers().await?))
}

/// A request that an HTTP/2 origin saw, without its body.
#[derive(Clone, Debug)]
pub struct Seen2 {
    /// Path and query.
    pub path: String,
    /// `:scheme`.
    pub scheme: Option<String>,
    /// `:authority`.
    pub authority: Option<String>,
    /// Fields of the head.
    pub headers: HeaderMap,
    /// Fields after the body.
    pub trailers: Option<HeaderMap>,
}

/// An HTTP/2 origin. `application/grpc` requests are echoed part by part with trailers; others get its name, or their
/// own body back.
pub struct Origin2 {
    /// As written into `backends`.
    pub address: SocketAddr,
    requests: Arc<Mutex<Vec<Seen2>>>,
    connections: Arc<AtomicUsize>,
    task: JoinHandle<()>,
}

impl Origin2 {
    /// In plain text by prior knowledge, or over TLS where the configuration offers `h2`.
    pub async fn start(name: &str, tls: Option<Arc<ServerConfig>>) -> Self {
        Self::at(address::unused(), name, tls).await
    }

    /// As [`Origin2::start`], at a given address.
    pub async fn at(address: SocketAddr, name: &str, tls: Option<Arc<ServerConfig>>) -> Self {
        let mut bound = TcpListener::bind(address).await;
        // A process that another test has just begun may hold what was bound before until it becomes that other program.
        eventually(&format!("{address} to be free"), async || {
            if bound.is_err() {
                bound = TcpListener::bind(address).await;
            }
            bound.is_ok()
        })
        .await;
        let listener = bound.unwrap_or_else(|e| panic!("bind {address}: {e}"));
        let (requests, connections) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
        let (name, log, count) = (name.to_owned(), Arc::clone(&requests), Arc::clone(&connections));
        let acceptor = tls.map(tokio_rustls::TlsAcceptor::from);
        let task = tokio::spawn(async move {
            let mut open = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                count.fetch_add(1, Ordering::SeqCst);
                let stream_task = connection(stream, acceptor.clone(), name.clone(), Arc::clone(&log));
                open.spawn(stream_task);
            }
        });
        Self { address, requests, connections, task }
    }

    /// Requests whose body has ended, so far.
    pub fn requests(&self) -> Vec<Seen2> {
        self.requests.lock().expect("no panic under the lock").clone()
    }

    /// Closes the listening socket and every connection.
    pub async fn stop(mut self) {
        self.task.abort();
        let _ = (&mut self.task).await;
    }

    /// Connections accepted so far.
    pub fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

impl Drop for Origin2 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: Option<tokio_rustls::TlsAcceptor>,
    name: String,
    log: Arc<Mutex<Vec<Seen2>>>,
) {
    let io: Box<dyn Io> = match acceptor {
        None => Box::new(stream),
        Some(acceptor) => match acceptor.accept(stream).await {
            Ok(stream) => Box::new(stream),
            Err(_) => return,
        },
    };
    let Ok(mut connection) = server::handshake(io).await else { return };
    let mut exchanges = JoinSet::new();
    while let Some(Ok((request, respond))) = connection.accept().await {
        let (name, log) = (name.clone(), Arc::clone(&log));
        exchanges.spawn(async move {
            let _ = exchange(request, respond, name, log).await;
        });
    }
}

async fn exchange(
    request: Request<RecvStream>,
    mut respond: server::SendResponse<Bytes>,
    name: String,
    log: Arc<Mutex<Vec<Seen2>>>,
) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let mut seen = Seen2 {
        path: head.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
        scheme: head.uri.scheme_str().map(str::to_owned),
        authority: head.uri.authority().map(ToString::to_string),
        headers: head.headers,
        trailers: None,
    };
    let grpc = seen.headers.get("content-type").is_some_and(|t| t.as_bytes().starts_with(b"application/grpc"));
    let mut response = Response::builder().header("x-origin", &name).body(()).expect("a response");
    if !grpc {
        let (data, trailers) = collect(&mut body).await?;
        seen.trailers = trailers;
        let size = seen.path.strip_prefix("/bytes/").map(|size| size.parse().expect("a number"));
        log.lock().expect("no panic under the lock").push(seen);
        let data = match size {
            Some(size) => vec![b'x'; size].into(),
            None if data.is_empty() => Bytes::from(name),
            None => data.into(),
        };
        return push(&mut respond.send_response(response, false)?, data, true).await;
    }
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    let mut stream = respond.send_response(response, false)?;
    while let Some(part) = body.data().await {
        let part = part?;
        body.flow_control().release_capacity(part.len())?;
        push(&mut stream, part, false).await?;
    }
    seen.trailers = body.trailers().await?;
    log.lock().expect("no panic under the lock").push(seen);
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("grpc-message", HeaderValue::from_static("fine"));
    stream.send_trailers(trailers)
}

//! Protocols over HTTP: gRPC in all its forms, gRPC-web, trailers, CONNECT.

use std::{net::SocketAddr, sync::Arc};

use bytes::Bytes;
use h2::{Reason, RecvStream, server::SendResponse};
use http::{HeaderMap, HeaderValue, Request, Response};
use rustls::ServerConfig;
use tokio::{
    net::TcpListener,
    sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel},
    task::JoinHandle,
};

use crate::support::{
    address,
    http1::{Client, Io, get},
    http2::{Client2, collect, push, request},
    origin::Origin,
    proxy::{Config, Proxy},
    tls::Ca,
    within,
};

/// A gRPC origin; what it does is in the path: `/unary` answers the whole message with itself, `/trailers-only` with a head
/// alone, `/server` with three messages, `/client` with the length of all it got, `/bidi` message by message, `/reset` with
/// a reset after the head, `/padded-head` and `/padded` with white space around a value of the head or of the trailers, and `/hold` not at all,
/// and tells how the call ended.
struct Grpc {
    address: SocketAddr,
    heads: UnboundedReceiver<HeaderMap>,
    ends: UnboundedReceiver<Reason>,
    task: JoinHandle<()>,
}

impl Drop for Grpc {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Grpc {
    async fn start(tls: Option<Arc<ServerConfig>>) -> Self {
        let address = address::unused();
        let listener = TcpListener::bind(address).await.expect("bind");
        let ((told_heads, heads), (told_ends, ends)) = (unbounded_channel(), unbounded_channel());
        let acceptor = tls.map(tokio_rustls::TlsAcceptor::from);
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, heads, ends) = (acceptor.clone(), told_heads.clone(), told_ends.clone());
                tokio::spawn(async move {
                    let io: Box<dyn Io> = match acceptor {
                        None => Box::new(stream),
                        Some(acceptor) => Box::new(acceptor.accept(stream).await.expect("a handshake")),
                    };
                    let Ok(mut connection) = h2::server::handshake(io).await else { return };
                    while let Some(Ok((call, respond))) = connection.accept().await {
                        let _ = heads.send(call.headers().clone());
                        let ends = ends.clone();
                        tokio::spawn(async move { drop(serve(call, respond, ends).await) });
                    }
                });
            }
        });
        Self { address, heads, ends, task }
    }
}

async fn serve(
    call: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    ends: UnboundedSender<Reason>,
) -> Result<(), h2::Error> {
    let path = call.uri().path().to_owned();
    let mut body = call.into_body();
    let head = |status: Option<&'static str>| {
        let mut head = Response::new(());
        head.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        if let Some(status) = status {
            head.headers_mut().insert("grpc-status", HeaderValue::from_static(status));
        }
        head
    };
    match path.as_str() {
        "/trailers-only" => {
            collect(&mut body).await?;
            respond.send_response(head(Some("5")), true)?;
            return Ok(());
        }
        "/reset" => {
            let mut stream = respond.send_response(head(None), false)?;
            push(&mut stream, message(b"part"), false).await?;
            // What has not left yet is lost at a reset; so the client says when it has it.
            body.data().await;
            body.data().await;
            stream.send_reset(Reason::CANCEL);
            return Ok(());
        }
        "/padded-head" => {
            let mut padded = head(None);
            padded.headers_mut().insert("x-padded", HeaderValue::from_static(" x"));
            respond.send_response(padded, true)?;
            return Ok(());
        }
        "/hold" => {
            let _ = body.data().await;
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await?;
            let _ = ends.send(reason);
            return Ok(());
        }
        _ => {}
    }
    let mut stream = if matches!(path.as_str(), "/client" | "/unary") {
        let (all, _) = collect(&mut body).await?;
        let mut stream = respond.send_response(head(None), false)?;
        let answer = if path == "/unary" { all.into() } else { message(all.len().to_string().as_bytes()) };
        push(&mut stream, answer, false).await?;
        stream
    } else {
        respond.send_response(head(None), false)?
    };
    if path == "/server" {
        for part in [b"one", b"two", b"six"] {
            push(&mut stream, message(part), false).await?;
        }
    }
    if path == "/bidi" {
        while let Some(part) = body.data().await {
            let part = part?;
            body.flow_control().release_capacity(part.len())?;
            push(&mut stream, part, false).await?;
        }
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    trailers.insert("x-bin", HeaderValue::from_static("AAEC"));
    if path == "/padded" {
        trailers.insert("x-padded", HeaderValue::from_static("x "));
    }
    stream.send_trailers(trailers)
}

/// A message in gRPC's frame.
fn message(bytes: &[u8]) -> Bytes {
    let length = u32::try_from(bytes.len()).expect("short").to_be_bytes();
    [&[0][..], &length, bytes].concat().into()
}

fn call(path: &str) -> Request<()> {
    let mut call = request("POST", path);
    call.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    call.headers_mut().insert("te", HeaderValue::from_static("trailers"));
    call.headers_mut().insert("grpc-timeout", HeaderValue::from_static("20S"));
    call
}

/// In front of origins in plain text and over TLS.
async fn both() -> Vec<(Grpc, Proxy)> {
    let ca = Ca::new();
    let leaf = ca.issue(&["origin.test"]);
    let mut all = Vec::new();
    for (origin, how) in [
        (Grpc::start(None).await, "protocol: h2c"),
        (Grpc::start(Some(leaf.server(&["h2"]))).await, "tls: { sni: origin.test, ca: <ca> }"),
    ] {
        let yaml = "
            listeners: [{ address: <listen>, h2c: true }]
            upstreams: { app: { backends: [\"<a>\"], <how> } }";
        let config = Config::new(yaml).put("a", origin.address).put("how", how);
        let path = ca.write(config.dir());
        all.push((origin, config.put("ca", path.display()).start().await));
    }
    all
}

#[tokio::test]
async fn every_kind_of_grpc_call_passes() {
    for (mut origin, proxy) in both().await {
        let client = Client2::prior(proxy.listen).await;
        let status = |trailers: &Option<HeaderMap>| trailers.as_ref().map(|all| all["grpc-status"].clone());
        let zero = Some(HeaderValue::from_static("0"));

        let reply = client.send(call("/unary"), vec![message(b"hello")], None).await;
        assert_eq!((reply.status, &reply.body[..]), (200, &message(b"hello")[..]));
        assert_eq!((status(&reply.trailers), reply.field("content-type")), (zero.clone(), Some("application/grpc")));
        assert_eq!(reply.trailers.expect("trailers")["x-bin"], "AAEC");
        let seen = origin.heads.recv().await.expect("a call");
        assert_eq!((&seen["te"], &seen["grpc-timeout"]), (&"trailers".parse().unwrap(), &"20S".parse().unwrap()));

        let reply = client.send(call("/server"), vec![message(b"")], None).await;
        assert_eq!(reply.body, [message(b"one"), message(b"two"), message(b"six")].concat());
        assert_eq!(status(&reply.trailers), zero);

        let parts = vec![message(b"one"), message(b"two")];
        let reply = client.send(call("/client"), parts, None).await;
        assert_eq!((reply.body, status(&reply.trailers)), (message(b"16").to_vec(), zero.clone()));

        let reply = client.send(call("/trailers-only"), vec![message(b"x")], None).await;
        assert_eq!((reply.status, reply.field("grpc-status"), reply.body.len()), (200, Some("5"), 0));
        assert!(reply.trailers.is_none());

        let (response, mut sending) = client.open(call("/bidi"), false).await.expect("a stream");
        let mut body = None;
        let mut response = Some(response);
        for part in [&b"one"[..], b"two", b"six"] {
            push(&mut sending, message(part), false).await.expect("send");
            if let Some(response) = response.take() {
                body = Some(within("the head", response).await.expect("an answer").into_body());
            }
            let body = body.as_mut().expect("a body");
            assert_eq!(within("the echo", body.data()).await.expect("data").expect("data"), message(part));
        }
        sending.send_data(Bytes::new(), true).expect("the end");
        let (rest, trailers) = within("the end", collect(body.as_mut().expect("a body"))).await.expect("the rest");
        assert_eq!((rest.len(), status(&trailers)), (0, zero));
    }
}

/// One after the other: while Pingora waits for an origin to take a part of the body it passes none of the answer on
/// (`send_body_to2` in pingora-proxy's `proxy_h2.rs`), so a call with several MiB under way in both directions at once may
/// stand still until its deadlines end it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_grpc_messages_pass_both_ways() {
    for (_origin, proxy) in both().await {
        let client = Client2::prior(proxy.listen).await;
        let large = message(&vec![7; 8 << 20]);
        let reply = client.send(call("/unary"), vec![large.clone()], None).await;
        assert!(reply.body == large, "{} bytes", reply.body.len());
        assert!(reply.trailers.is_some());
    }
}

#[tokio::test]
async fn a_call_that_the_client_cancels_is_cancelled_at_the_origin() {
    for (mut origin, proxy) in both().await {
        let client = Client2::prior(proxy.listen).await;
        let (response, mut sending) = client.open(call("/hold"), false).await.expect("a stream");
        push(&mut sending, message(b"x"), false).await.expect("send");
        origin.heads.recv().await.expect("a call");
        sending.send_reset(Reason::CANCEL);
        within("the reset", response).await.expect_err("no answer");
        let reason = within("the end at the origin", origin.ends.recv()).await.expect("an end");
        assert!(matches!(reason, Reason::CANCEL | Reason::NO_ERROR), "{reason:?}");
        // The connections go on.
        assert_eq!(client.send(call("/unary"), vec![message(b"a")], None).await.status, 200);
    }
}

#[tokio::test]
async fn a_call_that_the_origin_resets_is_reset_at_the_client() {
    for (_origin, proxy) in both().await {
        let client = Client2::prior(proxy.listen).await;
        let (response, mut sending) = client.open(call("/reset"), false).await.expect("a stream");
        push(&mut sending, message(b"x"), false).await.expect("send");
        let mut body = within("the head", response).await.expect("an answer").into_body();
        assert_eq!(within("a part", body.data()).await.expect("data").expect("data"), message(b"part"));
        push(&mut sending, message(b"y"), false).await.expect("send");
        let failed = within("the reset", body.data()).await.expect("an end").expect_err("a reset");
        assert!(failed.is_reset(), "{failed:?}");
        assert_eq!(client.send(call("/unary"), vec![message(b"a")], None).await.status, 200);
    }
}

/// A body of gRPC-web, by frames: their flags and contents.
fn frames(mut body: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut all = Vec::new();
    while let [flag, a, b, c, d, rest @ ..] = body {
        let (now, rest) = rest.split_at(u32::from_be_bytes([*a, *b, *c, *d]) as usize);
        all.push((*flag, now.to_vec()));
        body = rest;
    }
    assert!(body.is_empty(), "{body:?}");
    all
}

fn web(kind: &str, path: &str) -> Vec<u8> {
    let body = message(b"hello");
    let head = format!(
        "POST {path} HTTP/1.1\r\nHost: a.test\r\nContent-Type: {kind}\r\nX-Grpc-Web: 1\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), &body].concat()
}

#[tokio::test]
async fn grpc_web_becomes_grpc_where_it_is_asked_for() {
    let (mut origin, other) = (Grpc::start(None).await, Origin::echo("plain").await);
    let yaml = "
        listeners: [{ address: <listen>, h2c: true }]
        upstreams:
          web: { backends: [\"<a>\"], protocol: h2c, grpc_web: true }
          bare: { backends: [\"<a>\"], protocol: h2c }
          plain: { backends: [\"<b>\"] }
        routes:
          - { match: { path: /bare }, strip_prefix: /bare, upstream: bare }
          - { match: { path: /plain }, upstream: plain }
          - { upstream: web }";
    let proxy = Config::new(yaml).put("a", origin.address).put("b", &other.address).start().await;
    let mut client = proxy.client().await;
    for path in ["/unary", "/server"] {
        let reply = client.ask(web("application/grpc-web+proto", path)).await;
        let seen = origin.heads.recv().await.expect("a call");
        assert_eq!(
            (&seen["content-type"], &seen["te"]),
            (&"application/grpc+proto".parse().unwrap(), &"trailers".parse().unwrap())
        );
        assert_eq!((reply.status(), reply.field("content-type")), (200, Some("application/grpc-web")));
        let mut frames = frames(&reply.body);
        let (flag, trailers) = frames.pop().expect("trailers");
        let trailers = String::from_utf8_lossy(&trailers).to_lowercase().replace(": ", ":");
        assert!(flag == 0x80 && trailers.contains("grpc-status:0") && trailers.contains("x-bin:aaec"), "{trailers:?}");
        let messages: Vec<_> = frames.into_iter().map(|(_, message)| message).collect();
        let expected = if path == "/unary" { vec![&b"hello"[..]] } else { vec![&b"one"[..], b"two", b"six"] };
        assert_eq!(messages, expected);
    }
    let reply = client.ask(web("application/grpc-web", "/trailers-only")).await;
    assert_eq!((reply.status(), reply.field("grpc-status"), reply.length), (200, Some("5"), 0));
    assert_eq!(reply.field("content-type"), Some("application/grpc-web"));
    origin.heads.recv().await.expect("a call");

    // Over HTTP/2 too, and beside ordinary gRPC.
    let client2 = Client2::prior(proxy.listen).await;
    let mut by_web = call("/unary");
    by_web.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc-web"));
    let reply = client2.send(by_web, vec![message(b"hello")], None).await;
    assert_eq!((frames(&reply.body).len(), reply.field("content-type")), (2, Some("application/grpc-web")));
    let reply = client2.send(call("/unary"), vec![message(b"hello")], None).await;
    assert_eq!(reply.trailers.expect("trailers")["grpc-status"], "0");
    origin.heads.recv().await.expect("a call");
    origin.heads.recv().await.expect("a call");

    // Without the key nothing is translated.
    client.send(web("application/grpc-web", "/bare/unary")).await;
    client.response().await;
    assert_eq!(origin.heads.recv().await.expect("a call")["content-type"], "application/grpc-web");
    // The base64 form is not known to the bridge, and goes on as it is.
    client.send(web("application/grpc-web-text", "/unary")).await;
    client.response().await;
    assert_eq!(origin.heads.recv().await.expect("a call")["content-type"], "application/grpc-web-text");
    assert_eq!(client.get("/plain").await.text(), "plain");
}

/// Those of answers pass to HTTP/1.1 clients in the lane; those of requests are dropped. What is left must be a whole message, and the next must be its own.
#[tokio::test]
async fn http1_trailers_of_requests_are_dropped_and_messages_stay_whole() {
    for engine in ["lane", "exchange", "pingora"] {
        let origin = Origin::script("a", |mut peer| async move {
            while peer.request().await.is_some() {
                let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n";
                peer.send(format!("{head}5\r\nhello\r\n0\r\nX-Sum: 1\r\nX-More: 2\r\n\r\n")).await;
            }
        })
        .await;
        let listener = format!("engine: {engine}\nlisteners: [{{ address: <listen>, h2c: true }}]");
        let proxy = Config::before(&[&origin], &listener).start().await;
        let mut client = proxy.client().await;
        let chunked =
            "POST /one HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\nTrailer: X-Up\r\nTE: trailers\r\n\r\n";
        for _ in 0..2 {
            let reply = client.ask(format!("{chunked}3\r\nabc\r\n0\r\nX-Up: 1\r\nX-More: 2\r\n\r\n")).await;
            assert_eq!((reply.status(), reply.text().as_str()), (200, "hello"));
            let (trailers, told) = if engine == "lane" { (2, Some("X-Sum")) } else { (0, None) };
            let seen = (reply.trailers.len(), reply.field("trailer"), reply.field("x-sum"));
            assert_eq!(seen, (trailers, told, None), "{engine}");
        }
        // Both on the same connections, pipelined behind the trailers.
        client.send(format!("{chunked}3\r\nabc\r\n0\r\nX-Up: 1\r\n\r\n{}", get("/two"))).await;
        assert_eq!((client.response().await.text(), client.response().await.text()), ("hello".into(), "hello".into()));
        let seen = origin.requests();
        let paths: Vec<_> = seen.iter().map(|request| request.target()).collect();
        assert_eq!(paths, ["/one", "/one", "/one", "/two"]);
        for request in &seen {
            assert_eq!(
                (request.trailers.len(), request.field("x-up"), request.field("host")),
                (0, None, Some("a.test"))
            );
            assert_eq!(request.field("trailer"), None);
        }
        assert_eq!(origin.connections(), 1);
        // Towards an HTTP/2 client as well.
        assert_eq!(Client2::prior(proxy.listen).await.get("/").await.text(), "hello");
    }
}

/// What a route says goes first, then what the listener says, then what stands for all; whoever asks. An engine shows by
/// whom it gives a backend's trailers to.
#[tokio::test]
async fn the_engine_is_the_routes_else_the_listeners_else_that_of_all() {
    let origin = Origin::script("a", |mut peer| async move {
        while peer.request().await.is_some() {
            peer.send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n").await;
        }
    })
    .await;
    let yaml = "engine: pingora
listeners:
  - { address: <listen>, h2c: true }
  - { address: \"<exchange>\", h2c: true, engine: exchange }
  - { address: \"<lane>\", h2c: true, engine: lane }
routes:
  - { match: { path: /pingora }, engine: pingora, upstream: app }
  - { match: { path: /exchange }, engine: exchange, upstream: app }
  - { match: { path: /lane }, engine: lane, upstream: app }
  - { upstream: app }";
    let (exchange, lane) = (address::unused(), address::unused());
    let config = Config::before(&[&origin], yaml).put("exchange", exchange).put("lane", lane);
    let proxy = config.start().await;
    for (listener, its) in [(proxy.listen, "pingora"), (exchange, "exchange"), (lane, "lane")] {
        for (path, engine) in [("/", its), ("/pingora", "pingora"), ("/exchange", "exchange"), ("/lane", "lane")] {
            let one = Client::connect(listener).await.get(path).await;
            let two = Client2::prior(listener).await.get(path).await;
            assert_eq!((one.text(), two.text()), ("hello".into(), "hello".into()));
            let seen = (!one.trailers.is_empty(), two.trailers.is_some_and(|trailers| !trailers.is_empty()));
            assert_eq!(seen, (engine == "lane", engine != "pingora"), "{path} at the listener of {its}");
        }
    }
    let changed = yaml.replace("engine: exchange }\n", "engine: lane }\n");
    let changed = format!("{changed}\nupstreams: {{ app: {{ backends: [\"{}\"] }} }}", origin.address);
    proxy.config.instead(&changed).put("exchange", exchange).put("lane", lane).write();
    proxy.reload().await;
    assert!(!Client::connect(exchange).await.get("/").await.trailers.is_empty(), "a reload changes it");
}

/// Over the exchange, which reads them; Pingora throws them away.
#[tokio::test]
async fn trailers_of_http1_backends_go_on_to_http2_clients() {
    let origin = Origin::script("a", |mut peer| async move {
        while peer.request().await.is_some() {
            let head = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum, Grpc-Status\r\n\r\n";
            let trailers = "X-Sum:  1 \r\nGrpc-Status: 0\r\nSet-Cookie: a=b\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n";
            peer.send(format!("{head}5\r\nhello\r\n0\r\n{trailers}")).await;
        }
    })
    .await;
    for (engine, found) in [("exchange", true), ("pingora", false)] {
        let yaml = "listeners: [{ address: <listen>, h2c: true }]\nengine: <engine>";
        let proxy = Config::before(&[&origin], yaml).put("engine", engine).start().await;
        let client = Client2::prior(proxy.listen).await;
        for path in ["/one", "/two"] {
            let mut asked = request("GET", path);
            asked.headers_mut().insert("te", HeaderValue::from_static("trailers"));
            let reply = client.send(asked, vec![], None).await;
            assert_eq!((reply.status, reply.text().as_str()), (200, "hello"));
            let trailers = reply.trailers.clone().unwrap_or_default();
            let value = |name: &str| trailers.get(name).map(|value| value.to_str().expect("text"));
            assert_eq!(
                (value("x-sum"), value("grpc-status")),
                (found.then_some("1"), found.then_some("0")),
                "{engine}"
            );
            assert_eq!((value("set-cookie"), value("x-forwarded-for")), (None, None));
            assert_eq!(reply.field("trailer"), found.then_some("X-Sum, Grpc-Status"), "{engine}");
            let seen = origin.requests().pop().expect("a request");
            assert_eq!(seen.field("te"), found.then_some("trailers"), "{engine}");
        }
    }
    assert_eq!(origin.connections(), 2, "each engine's connection is used again");
}

#[tokio::test]
async fn values_with_white_space_around_them_go_nowhere_from_http2_backends() {
    for (_origin, proxy) in both().await {
        let client = Client2::prior(proxy.listen).await;
        let reply = client.send(call("/padded-head"), vec![message(b"a")], None).await;
        assert!(reply.field("proxy-status").is_some_and(|told| told.contains("bad_response")), "{reply:?}");
        proxy.metric("rrlb_failures_total", &["reason=\"bad_response\""], |count| count == 1.0).await;
        let reply = client.send(call("/padded"), vec![message(b"a")], None).await;
        let trailers = reply.trailers.expect("trailers");
        assert_eq!((trailers.get("x-padded"), trailers["grpc-status"].as_bytes()), (None, &b"0"[..]));
        assert_eq!(client.send(call("/unary"), vec![message(b"a")], None).await.status, 200);
    }
}

#[tokio::test]
async fn connect_is_refused() {
    let origin = Origin::echo("a").await;
    let config = Config::before(&[&origin], "listeners: [{ address: <listen>, h2c: true }]");
    let proxy = config.start().await;
    let mut client = proxy.client().await;
    let reply = client.ask("CONNECT a.test:443 HTTP/1.1\r\nHost: a.test:443\r\n\r\n").await;
    assert_eq!(reply.status(), 405);
    let client = Client2::prior(proxy.listen).await;
    let connect = Request::builder().method("CONNECT").uri("a.test:443").body(()).expect("a request");
    assert_eq!(client.send(connect, vec![], None).await.status, 405);
    assert_eq!(client.get("/").await.status, 200);
    assert_eq!(origin.total(), 1);
    let lines = proxy.access_log(3).await;
    let refused = |line: &&serde_json::Value| line["status"] == 405 && line["reason"] == "method_not_allowed";
    assert_eq!(lines.iter().filter(refused).count(), 2, "{lines:?}");
}

#[tokio::test]
async fn a_websocket_ends_after_its_own_silence_and_not_before() {
    let origin = Origin::script("a", crate::streaming::websocket).await;
    let yaml = format!(
        "upstreams: {{ app: {{ backends: [\"{}\"], timeouts: {{ read: 200ms, first_byte: 200ms, websocket_idle: 800ms }} }} }}",
        origin.address
    );
    let proxy = Config::new(&yaml).start().await;
    let mut client: Client = proxy.client().await;
    crate::streaming::upgrade(&mut client).await;
    let began = std::time::Instant::now();
    let mut beat = tokio::time::interval(std::time::Duration::from_millis(300));
    for _ in 0..5 {
        beat.tick().await;
        client.send("x").await;
        assert_eq!(within("the echo", client.wire.take(1)).await.expect("an echo"), b"x");
    }
    assert!(began.elapsed() > std::time::Duration::from_secs(1), "no longer than the silence itself");
    let silent = std::time::Instant::now();
    assert_eq!(client.closed().await, b"");
    assert!(silent.elapsed() >= std::time::Duration::from_millis(700), "{:?}", silent.elapsed());
}

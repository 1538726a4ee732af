//! A minimal Pingora proxy, as its own examples write one: stock listener, work stealing, Pingora's round robin over the
//! backends given. With the forwarding fields and the access log that the other proxies of the comparison have, and
//! nothing else. What rrlb is measured against.
//!
//! `bare THREADS LISTEN TLS_LISTEN CERT KEY LOG BACKEND...`; LOG is a file, or `-` for none.

use std::{
    fs::File,
    io::{BufWriter, Write},
    sync::{Arc, Mutex},
    time::Instant,
};

use async_trait::async_trait;
use pingora_core::{
    Error, ErrorType, Result,
    listeners::tls::TlsSettings,
    server::{Server, configuration::ServerConf},
    services::background::background_service,
    upstreams::peer::HttpPeer,
};
use pingora_http::RequestHeader;
use pingora_load_balancing::{LoadBalancer, selection::RoundRobin};
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

/// The same allocator as rrlb's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Bare {
    backends: Arc<LoadBalancer<RoundRobin>>,
    log: Option<Mutex<BufWriter<File>>>,
}

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = Instant;

    fn new_ctx(&self) -> Instant {
        Instant::now()
    }

    async fn upstream_peer(&self, _: &mut Session, _: &mut Instant) -> Result<Box<HttpPeer>> {
        let none = || Error::explain(ErrorType::HTTPStatus(503), "no backend is up");
        let backend = self.backends.select(b"", 256).ok_or_else(none)?;
        Ok(Box::new(HttpPeer::new(backend, false, String::new())))
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        request: &mut RequestHeader,
        _: &mut Instant,
    ) -> Result<()> {
        let client = session.client_addr().and_then(|address| address.as_inet()).map(|address| address.ip());
        let client = client.map(|address| address.to_string()).unwrap_or_default();
        let tls = session.digest().is_some_and(|digest| digest.ssl_digest.is_some());
        let scheme = if tls { "https" } else { "http" };
        let host = request.headers.get("host").and_then(|host| host.to_str().ok());
        let host = host.or(request.uri.host()).unwrap_or_default().to_owned();
        request.insert_header("X-Forwarded-For", &client)?;
        request.insert_header("X-Forwarded-Proto", scheme)?;
        request.insert_header("X-Forwarded-Host", &host)?;
        request.insert_header("Forwarded", format!("for={client};host={host};proto={scheme}"))?;
        request.insert_header("Via", "1.1 bare")?;
        request.insert_header("X-Request-Id", format!("{:032x}", rand::random::<u128>()))?;
        Ok(())
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, began: &mut Instant) {
        let Some(log) = &self.log else { return };
        let status = session.response_written().map_or(0, |answer| answer.status.as_u16());
        let (head, seconds) = (session.req_header(), began.elapsed().as_secs_f64());
        let client = session.client_addr().map(|address| address.to_string()).unwrap_or_default();
        let Ok(mut log) = log.lock() else { return };
        let _ = writeln!(
            log,
            "{{\"client\":\"{client}\",\"method\":\"{}\",\"path\":\"{}\",\"status\":{status},\"bytes\":{},\"seconds\":{seconds:.6},\"error\":{}}}",
            head.method,
            head.uri,
            session.body_bytes_sent(),
            error.is_some(),
        );
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [threads, listen, tls, cert, key, log, backends @ ..] = arguments.as_slice() else {
        eprintln!("usage: bare THREADS LISTEN TLS_LISTEN CERT KEY LOG BACKEND...");
        std::process::exit(2);
    };
    let backends = LoadBalancer::try_from_iter(backends).expect("BACKEND is an address, such as 127.0.0.1:9001");
    let backends = background_service("backends", backends);
    let open = || Mutex::new(BufWriter::with_capacity(64 << 10, File::create(log).expect("LOG can be written")));
    let app = Bare { backends: backends.task(), log: (log != "-").then(open) };

    let threads = threads.parse().expect("THREADS is a number");
    let conf = ServerConf {
        threads,
        grace_period_seconds: Some(0),
        upstream_keepalive_pool_size: 1024, // as all the others
        ..ServerConf::default()
    };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut proxy = http_proxy_service(&server.configuration, app);
    proxy.add_tcp(listen);
    let mut settings = TlsSettings::intermediate(cert, key).expect("CERT and KEY are PEM files");
    settings.enable_h2();
    proxy.add_tls_with_settings(tls, None, settings);
    server.add_service(backends);
    server.add_service(proxy);
    server.run_forever();
}

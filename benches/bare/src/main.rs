//! A minimal Pingora proxy, as its own examples write one: stock listener, work stealing, round robin over the backends
//! given as arguments, TCP health checks, nothing else. What rrlb is measured against.
//!
//! `bare LISTEN THREADS BACKEND...`

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use pingora_core::{
    Error, ErrorType, Result,
    server::{Server, configuration::ServerConf},
    services::background::background_service,
    upstreams::peer::HttpPeer,
};
use pingora_load_balancing::{LoadBalancer, health_check::TcpHealthCheck, selection::RoundRobin};
use pingora_proxy::{ProxyHttp, Session, http_proxy_service};

/// The same allocator as rrlb's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

struct Bare(Arc<LoadBalancer<RoundRobin>>);

#[async_trait]
impl ProxyHttp for Bare {
    type CTX = ();

    fn new_ctx(&self) {}

    async fn upstream_peer(&self, _: &mut Session, (): &mut ()) -> Result<Box<HttpPeer>> {
        let none = || Error::explain(ErrorType::HTTPStatus(503), "no backend is up");
        let backend = self.0.select(b"", 256).ok_or_else(none)?;
        Ok(Box::new(HttpPeer::new(backend, false, String::new())))
    }
}

fn main() {
    let mut arguments = std::env::args().skip(1);
    let (Some(listen), Some(Ok(threads))) = (arguments.next(), arguments.next().map(|threads| threads.parse())) else {
        eprintln!("usage: bare LISTEN THREADS BACKEND...");
        std::process::exit(2);
    };
    let mut backends = LoadBalancer::try_from_iter(arguments).expect("BACKEND is an address, such as 127.0.0.1:9001");
    backends.set_health_check(TcpHealthCheck::new());
    backends.health_check_frequency = Some(Duration::from_secs(1));
    let health = background_service("health", backends);

    let conf = ServerConf { threads, grace_period_seconds: Some(0), ..ServerConf::default() };
    let mut server = Server::new_with_opt_and_conf(None, conf);
    server.bootstrap();
    let mut proxy = http_proxy_service(&server.configuration, Bare(health.task()));
    proxy.add_tcp(&listen);
    server.add_service(health);
    server.add_service(proxy);
    server.run_forever();
}

//! Clients that go on until they are told to stop, and remember every failure.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use tokio::task::JoinSet;

use super::{http1::Client, wait_until};

/// Load on one address.
pub struct Load {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    done: AtomicUsize,
    failures: Mutex<Vec<String>>,
}

impl Load {
    /// Two clients that keep their connection and one that does not, asking for `/`.
    pub fn on(to: SocketAddr) -> Self {
        let shared = Arc::<Shared>::default();
        let mut tasks = JoinSet::new();
        for keep in [true, true, false] {
            tasks.spawn(shared.clone().run(to, keep));
        }
        Self { shared, tasks }
    }

    /// Requests so far.
    pub fn done(&self) -> usize {
        self.shared.done.load(Ordering::SeqCst)
    }

    /// Waits for some more requests.
    pub async fn more(&self) {
        let before = self.done();
        wait_until("load", || self.done() > before + 30).await;
    }

    /// Ends it; not one request may have failed.
    pub async fn ends_without_failure(self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        self.tasks.join_all().await;
        let failures = self.shared.failures.lock().expect("no panic under the lock");
        let done = self.shared.done.load(Ordering::SeqCst);
        assert!(
            failures.is_empty(),
            "{} of {done} requests failed: {:#?}",
            failures.len(),
            &failures[..failures.len().min(10)]
        );
    }
}

impl Shared {
    /// A request on a kept connection that was closed before it was answered at all is sent again on a new one, once,
    /// as any client has to.
    async fn run(self: Arc<Self>, to: SocketAddr, keep: bool) {
        let mut kept: Option<Client> = None;
        while !self.stop.load(Ordering::SeqCst) {
            let reused = kept.is_some();
            let connected = match kept.take() {
                Some(client) => Ok(client),
                None => Client::try_connect(to).await,
            };
            let mut client = match connected {
                Ok(client) => client,
                Err(error) => {
                    self.fail(format!("connect: {error}"));
                    continue;
                }
            };
            match client.try_get("/").await {
                Ok(reply) => {
                    self.done.fetch_add(1, Ordering::SeqCst);
                    if reply.status() != 200 {
                        self.fail(format!("{} {:?}", reply.status(), reply.field("proxy-status")));
                    }
                    let close = reply.fields("connection").contains(&"close");
                    kept = (keep && !close).then_some(client);
                }
                Err(_) if reused => {}
                Err(error) => self.fail(format!("{error}")),
            }
        }
    }

    fn fail(&self, failure: String) {
        self.failures.lock().expect("no panic under the lock").push(failure);
    }
}

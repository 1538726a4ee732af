//! Asks OCSP responders about certificates, over plain HTTP as it is done (RFC 6960 appendix A.1): an answer is signed, and
//! says nothing that is not public. Whether it is a good one is decided elsewhere.

use std::{sync::Arc, time::Duration};

use async_trait::async_trait;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::TokioExecutor,
};
use pingora_core::{server::ShutdownWatch, services::background::BackgroundService};
use tokio::time::{interval, timeout};

use crate::{policy::ocsp::Question, types::Name};

/// Between looks for what is due.
const ROUND: Duration = Duration::from_millis(500);
/// For one whole question.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longer answers are none.
const LONGEST: usize = 64 << 10;

/// Who knows what is to be asked, and takes the answers.
pub trait Stapler: Send + Sync + 'static {
    /// What is to be asked now.
    fn due(&self) -> Vec<(Name, Arc<Question>)>;
    /// What a responder said, or why nobody did.
    fn answered(&self, name: &Name, question: &Arc<Question>, answer: Result<Bytes, String>);
}

/// The service. Questions are asked beside each other: a responder that is slow holds up no other.
pub struct Fetching {
    stapler: Arc<dyn Stapler>,
}

impl Fetching {
    /// Asks for this stapler until the process ends.
    pub fn new(stapler: Arc<dyn Stapler>) -> Self {
        Self { stapler }
    }
}

#[async_trait]
impl BackgroundService for Fetching {
    async fn start(&self, mut shutdown: ShutdownWatch) {
        // A connection for each question: there is one in days.
        let client = Client::builder(TokioExecutor::new()).pool_max_idle_per_host(0).build(HttpConnector::new());
        let mut rounds = interval(ROUND);
        loop {
            tokio::select! {
                _ = rounds.tick() => {}
                _ = shutdown.wait_for(|down| *down) => return,
            }
            for (name, question) in self.stapler.due() {
                let (client, stapler) = (client.clone(), self.stapler.clone());
                tokio::spawn(async move {
                    let answer = timeout(PATIENCE, ask(&client, &question)).await;
                    let answer = answer.unwrap_or_else(|_| Err(format!("no answer within {PATIENCE:?}")));
                    stapler.answered(&name, &question, answer);
                });
            }
        }
    }
}

async fn ask(client: &Client<HttpConnector, Full<Bytes>>, question: &Question) -> Result<Bytes, String> {
    let mut request = Request::new(Full::new(Bytes::copy_from_slice(&question.request)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = question.url.parse().map_err(|_| "its responder's URL is none".to_owned())?;
    let fields = request.headers_mut();
    fields.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/ocsp-request"));
    fields.insert(header::ACCEPT, HeaderValue::from_static("application/ocsp-response"));
    let answer = client.request(request).await.map_err(|error| causes(&error))?;
    if answer.status() != StatusCode::OK {
        return Err(format!("it answered {}", answer.status()));
    }
    let body = Limited::new(answer.into_body(), LONGEST).collect().await;
    Ok(body.map_err(|error| format!("its answer: {error}"))?.to_bytes())
}

/// An error with its causes, which hyper keeps to itself.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

//! Requests to the admin API: one connection each, so that an instance may be replaced between two of them.

use std::{fmt::Write as _, time::Duration};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::rt::TokioIo;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use super::{failure::Failure, instance::Instance};

/// For what an instance does at once.
const PATIENCE: Duration = Duration::from_secs(30);
/// Tens of thousands of backends have a tenth of it.
const LARGEST_ANSWER: usize = 256 << 20;

/// How long a change is repeated that is refused because a successor takes over just then, and how often.
const REPLACING: Duration = Duration::from_secs(10);
const AGAIN: Duration = Duration::from_millis(200);

/// A request.
#[derive(Clone)]
pub(super) struct Call {
    method: Method,
    target: String,
    has_query: bool,
    last_event: Option<String>,
    body: Option<Value>,
    patience: Duration,
}

impl Call {
    /// To a path below `/v1`, of these parts.
    pub(super) fn new(method: Method, path: &[&str]) -> Self {
        let mut target = "/v1".to_owned();
        for part in path {
            target.push('/');
            encode(part, &mut target);
        }
        Self { method, target, has_query: false, last_event: None, body: None, patience: PATIENCE }
    }

    /// A look.
    pub(super) fn get(path: &[&str]) -> Self {
        Self::new(Method::GET, path)
    }

    /// With `name=value`.
    pub(super) fn query(mut self, name: &str, value: &str) -> Self {
        self.target.push(if self.has_query { '&' } else { '?' });
        self.has_query = true;
        encode(name, &mut self.target);
        self.target.push('=');
        encode(value, &mut self.target);
        self
    }

    /// With `name=value`, where there is a value.
    pub(super) fn query_some(self, name: &str, value: Option<&str>) -> Self {
        match value {
            Some(value) => self.query(name, value),
            None => self,
        }
    }

    /// With `name=value`, where it is so.
    pub(super) fn query_if(self, so: bool, name: &str, value: &str) -> Self {
        self.query_some(name, so.then_some(value))
    }

    /// With `name=TIME`, where there is one.
    pub(super) fn query_time(self, name: &str, time: Option<Duration>) -> Self {
        self.query_some(name, time.map(time_text).as_deref())
    }

    /// With a JSON body.
    pub(super) fn json(mut self, body: Value) -> Self {
        self.body = Some(body);
        self
    }

    /// With `Last-Event-ID`.
    pub(super) fn last_event(mut self, id: &str) -> Self {
        self.last_event = Some(id.to_owned());
        self
    }

    /// With another patience than usual.
    pub(super) fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }
}

/// A good answer.
#[derive(Debug)]
pub(super) struct Answer {
    /// 200 to 299.
    pub(super) status: u16,
    body: Bytes,
}

impl Answer {
    /// The body.
    pub(super) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body's value.
    ///
    /// # Errors
    /// It has another form; the instance may be of another version.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.body).map_err(|error| {
            Failure::Unexpected(format!(
                "an answer that this rrlb does not understand ({error}); is it of another version?"
            ))
        })
    }
}

/// Speaks with one instance.
pub(super) struct Client {
    instance: Instance,
}

impl Client {
    /// To this instance.
    pub(super) fn new(instance: Instance) -> Self {
        Self { instance }
    }

    /// Asks, and reads the answer. A change that fell between two processes is asked for again: the old one has said that
    /// it did nothing, and the new one is about to answer.
    ///
    /// # Errors
    /// Nobody is there; it refused; no answer came in time.
    pub(super) async fn call(&self, call: Call) -> Result<Answer, Failure> {
        let until = Instant::now() + REPLACING;
        loop {
            match self.call_once(call.clone()).await {
                Err(Failure::Refused(problem)) if problem.is_being_replaced() && Instant::now() < until => {
                    sleep(AGAIN).await;
                }
                answer => return answer,
            }
        }
    }

    async fn call_once(&self, call: Call) -> Result<Answer, Failure> {
        let patience = call.patience;
        let whole = async {
            let (status, body) = self.send(call).await?;
            let body = Limited::new(body, LARGEST_ANSWER).collect().await;
            let body = body.map_err(|error| Failure::BrokenOff(error.to_string()))?.to_bytes();
            if (200..300).contains(&status) {
                return Ok(Answer { status, body });
            }
            Err(Failure::of_answer(status, &body))
        };
        timeout(patience, whole).await.unwrap_or_else(|_| Err(Failure::no_answer(patience)))
    }

    /// Asks, and hands on an answer that has no end.
    ///
    /// # Errors
    /// As [`Client::call`].
    pub(super) async fn stream(&self, call: Call) -> Result<Incoming, Failure> {
        let patience = call.patience;
        let whole = async {
            let (status, body) = self.send(call).await?;
            if status == 200 {
                return Ok(body);
            }
            let body = Limited::new(body, LARGEST_ANSWER).collect().await.map(|body| body.to_bytes());
            Err(Failure::of_answer(status, &body.unwrap_or_default()))
        };
        timeout(patience, whole).await.unwrap_or_else(|_| Err(Failure::no_answer(patience)))
    }

    async fn send(&self, call: Call) -> Result<(u16, Incoming), Failure> {
        let broken = |error: hyper::Error| Failure::BrokenOff(cause(&error));
        let stream = self.instance.connect().await?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(broken)?;
        // Ends with the connection, which ends with the answer's body.
        tokio::spawn(connection);
        let response = sender.send_request(self.request(call)?).await.map_err(broken)?;
        Ok((response.status().as_u16(), response.into_body()))
    }

    fn request(&self, call: Call) -> Result<Request<Full<Bytes>>, Failure> {
        let body = call.body.map(|body| Bytes::from(body.to_string()));
        let mut request = Request::builder()
            .method(call.method)
            .uri(call.target)
            .header(header::HOST, self.instance.authority())
            .header(header::USER_AGENT, concat!("rrlb/", env!("CARGO_PKG_VERSION")));
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        if let Some(id) = &call.last_event {
            request = request.header("last-event-id", id);
        }
        if let Some(token) = self.instance.token() {
            let value = HeaderValue::from_str(&format!("Bearer {token}"));
            let mut value = value.map_err(|_| Failure::Usage("the token is not visible ASCII".to_owned()))?;
            value.set_sensitive(true);
            request = request.header(header::AUTHORIZATION, value);
        }
        let request = request.body(Full::new(body.unwrap_or_default()));
        request.map_err(|error| Failure::Unexpected(format!("a request that cannot be written: {error}")))
    }
}

fn cause(error: &hyper::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), |source| format!("{error}: {source}"))
}

/// A time in the API's form.
pub(super) fn time_text(time: Duration) -> String {
    if time.subsec_millis() == 0 { format!("{}s", time.as_secs()) } else { format!("{}ms", time.as_millis()) }
}

/// Percent-encodes everything but RFC 3986's unreserved characters.
fn encode(text: &str, out: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_an_id_has_in_it_stays_one_part_of_the_path() {
        let call = Call::get(&["upstreams", "app", "backends", "[::1]:80/a b?"])
            .query_if(true, "reason", "50% & ä")
            .query_time("ttl", Some(Duration::from_millis(1500)))
            .query_time("drain", Some(Duration::from_secs(60)))
            .query_some("no", None);
        let path = "/v1/upstreams/app/backends/%5B%3A%3A1%5D%3A80%2Fa%20b%3F";
        assert_eq!(call.target, format!("{path}?reason=50%25%20%26%20%C3%A4&ttl=1500ms&drain=60s"));
    }
}

//! A client of the admin API, over its unix socket.

use std::{io, path::PathBuf};

use serde_json::Value;

use super::{eventually, http1::Client, proxy::Proxy};

/// The API of a running proxy.
#[derive(Clone)]
pub struct Api {
    socket: PathBuf,
}

impl Api {
    /// The API of a proxy whose configuration says `admin: { socket: <dir>/admin.sock }`.
    pub fn of(proxy: &Proxy) -> Self {
        Self { socket: proxy.config.dir().join("admin.sock") }
    }

    /// A request with a JSON body, `Null` for none; status and answer, `Null` where that is not JSON.
    pub async fn ask(&self, method: &str, target: &str, body: Value) -> (u16, Value) {
        let mut client = Client::unix(&self.socket).await;
        let reply = client.ask(request(method, target, &body)).await;
        (reply.status(), serde_json::from_str(&reply.text()).unwrap_or_default())
    }

    /// As [`Api::ask`], for those who expect failures.
    pub async fn try_ask(&self, method: &str, target: &str, body: Value) -> io::Result<(u16, Value)> {
        let mut client = Client::try_unix(&self.socket).await?;
        let reply = client.try_ask(request(method, target, &body)).await?;
        Ok((reply.status(), serde_json::from_str(&reply.text()).unwrap_or_default()))
    }

    /// `GET`, which must succeed.
    pub async fn get(&self, target: &str) -> Value {
        let (status, answer) = self.ask("GET", target, Value::Null).await;
        assert_eq!(status, 200, "{target}: {answer}");
        answer
    }

    /// A change, which must succeed.
    pub async fn change(&self, method: &str, target: &str, body: Value) -> Value {
        let (status, answer) = self.ask(method, target, body).await;
        assert!((200..300).contains(&status), "{method} {target}: {status} {answer}");
        answer
    }

    /// The backends of upstream `app`, each as `id:effective`.
    pub async fn backends(&self) -> Vec<String> {
        let answer = self.get("/v1/upstreams/app").await;
        let backends = answer["backends"].as_array().expect("a list");
        let text = |backend: &Value, key: &str| backend[key].as_str().unwrap_or_default().to_owned();
        backends.iter().map(|backend| text(backend, "id") + ":" + &text(backend, "effective")).collect()
    }

    /// Waits until the backends of `app` are these.
    pub async fn settles(&self, backends: &[&str]) {
        eventually(&format!("{backends:?}"), async || self.backends().await == backends).await;
    }
}

fn request(method: &str, target: &str, body: &Value) -> String {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let kind = if body.is_empty() { "" } else { "Content-Type: application/json\r\n" };
    format!("{method} {target} HTTP/1.1\r\nHost: rrlb\r\n{kind}Content-Length: {}\r\n\r\n{body}", body.len())
}

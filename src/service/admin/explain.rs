//! What would become of a request: which listeners take it, which route it goes by, and which backends may get it. Decided
//! by the same routes and the same rules as for a real one; nothing is sent or counted.

use std::net::IpAddr;

use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header, uri::Scheme};
use serde::Serialize;

use super::{
    call::{Answer, Call, Shared},
    json::{Fields, Json},
    problem::{Kind, Problem, shown},
};
use crate::{
    config::model::{self, Model},
    policy::{
        balance::Balance,
        believed::Believed,
        forwarded::{X_CLIENT_CERT_FINGERPRINT, X_CLIENT_CERT_SUBJECT, X_CLIENT_CERT_VERIFY},
        headers::valid_host,
        path::is_uri_path,
        rewrite::ClientCert,
        route::{RequestView, without_port},
    },
    runtime::{
        backend::BackendState,
        snapshot::{Action, Snapshot},
    },
    types::{AdminState, ListenAddress, Weight},
};

/// What is asked.
struct Question {
    method: Method,
    https: bool,
    /// In the URL.
    port: Option<u16>,
    /// As the proxy sees it.
    host: String,
    path: String,
    path_and_query: String,
    headers: HeaderMap,
    from: Option<IpAddr>,
}

/// What is answered.
#[derive(Serialize)]
struct Explanation {
    /// Addresses that would take the connection.
    listeners: Vec<String>,
    route: Option<RouteTaken>,
    action: &'static str,
    upstreams: Vec<Share>,
    /// For people.
    detail: String,
}

#[derive(Serialize)]
struct RouteTaken {
    name: String,
    /// Counted from 0.
    index: usize,
}

/// An upstream that may get the request.
#[derive(Serialize)]
struct Share {
    name: String,
    /// In percent.
    share: f64,
    backends: Vec<Candidate>,
    /// Where the client's address decides: the backend it would be.
    #[serde(skip_serializing_if = "Option::is_none")]
    chosen: Option<String>,
}

/// A backend, and whether it may get the request.
#[derive(Serialize)]
struct Candidate {
    id: String,
    address: String,
    eligible: bool,
    why: &'static str,
    /// When it gets requests though it is ejected.
    #[serde(skip_serializing_if = "Option::is_none")]
    last_resort: Option<&'static str>,
}

/// `POST /v1/route`
pub(super) fn explain(shared: &Shared, call: &Call) -> Result<Answer, Problem> {
    let question = Question::read(&call.body()?.fields("", &["method", "url", "headers", "from"])?)?;
    let (model, snapshot) = (shared.store.model(), shared.store.snapshot());
    Answer::json(&answer(&question, &model, &snapshot))
}

impl Question {
    fn read(fields: &Fields<'_>) -> Result<Self, Problem> {
        let method = fields.text("method")?.unwrap_or("GET");
        let method = Method::from_bytes(method.as_bytes())
            .map_err(|_| Problem::value("method", format!("`{}` is no method", shown(method))))?;
        let url = fields.needed("url")?;
        let wrong = || {
            let problem = Problem::value("url", format!("`{}` is no URL of a request", shown(url)));
            problem.hint("write http://host/path or https://host/path")
        };
        let uri: Uri = url.parse().map_err(|_| wrong())?;
        let https = match uri.scheme() {
            Some(scheme) if *scheme == Scheme::HTTP => false,
            Some(scheme) if *scheme == Scheme::HTTPS => true,
            _ => return Err(wrong()),
        };
        let authority = uri.authority().filter(|authority| valid_host(authority.as_str())).ok_or_else(wrong)?;
        let mut headers = HeaderMap::new();
        if let Some(value) = fields.find("headers") {
            read_headers(value, &fields.path("headers"), &mut headers)?;
        }
        let host = match headers.get(header::HOST).map(HeaderValue::to_str) {
            None => {
                let value = HeaderValue::from_str(authority.as_str()).map_err(|_| wrong())?;
                headers.insert(header::HOST, value);
                authority.as_str().to_owned()
            }
            Some(Ok(host)) if valid_host(host) => host.to_owned(),
            Some(_) => return Err(Problem::value("headers.host", "it is no host")),
        };
        let from = fields.text("from")?.map(|text| {
            let wrong = || Problem::value("from", format!("`{}` is no IP address", shown(text)));
            text.parse::<IpAddr>().map_err(|_| wrong().hint("write 192.0.2.1 or 2001:db8::1"))
        });
        let target = uri.path_and_query().map_or("/", |target| target.as_str());
        Ok(Self {
            method,
            https,
            port: authority.port_u16(),
            host,
            path: uri.path().to_owned(),
            path_and_query: target.to_owned(),
            headers,
            from: from.transpose()?,
        })
    }
}

/// Fields as an object of texts, or of lists of texts where a name stands several times.
fn read_headers(value: &Json, place: &str, headers: &mut HeaderMap) -> Result<(), Problem> {
    for (name, value) in value.entries(place)? {
        let path = format!("{place}.{}", shown(name));
        let name = HeaderName::from_bytes(name.as_bytes())
            .map_err(|_| Problem::value(path.as_str(), format!("`{}` is no name of a field", shown(name))))?;
        let values = match value {
            Json::List(values) => values.as_slice(),
            value => std::slice::from_ref(value),
        };
        for value in values {
            let text = value.text(&path)?;
            let value = HeaderValue::from_str(text);
            let value = value.map_err(|_| Problem::value(path.as_str(), "it is no value of a field"))?;
            headers
                .try_append(name.clone(), value)
                .map_err(|_| Problem::new(Kind::InvalidValue, "there are too many fields"))?;
        }
    }
    Ok(())
}

fn answer(question: &Question, model: &Model, snapshot: &Snapshot) -> Explanation {
    let listeners: Vec<&model::Listener> =
        model.listeners.iter().filter(|listener| may_accept(listener, question)).collect();
    let mut explanation = Explanation {
        listeners: listeners.iter().map(|listener| listener.address.to_string()).collect(),
        route: None,
        action: "none",
        upstreams: Vec::new(),
        detail: String::new(),
    };
    if !is_uri_path(&question.path) || !question.path_and_query.is_ascii() {
        explanation.detail = "400 bad_request: the path has characters that no path of a URI has".into();
        return explanation;
    }
    if !listeners.is_empty() && listeners.iter().all(|listener| listener.redirect_https) {
        explanation.action = "redirect";
        let host = without_port(&question.host);
        explanation.detail =
            format!("308 to https://{host}{}, by `redirect_https` of the listener", question.path_and_query);
        return explanation;
    }
    if matches!(question.method, Method::CONNECT | Method::TRACE) {
        explanation.detail = format!("405 method_not_allowed: {} is not served", question.method);
        return explanation;
    }
    let nothing = HeaderValue::from_static("");
    let headers = believed(question, snapshot, &nothing);
    let view = RequestView { host: &question.host, path: &question.path, method: &question.method, headers: &headers };
    let Ok(found) = snapshot.find(&view) else {
        explanation.detail = "400 ambiguous_path: two readers could understand the path as two".into();
        return explanation;
    };
    let Some(index) = found.route else {
        explanation.detail = "404 no_route: no route matches".into();
        return explanation;
    };
    let route = snapshot.route(index);
    explanation.route = Some(RouteTaken { name: route.name.to_string(), index });
    match &route.action {
        Action::Proxy { upstreams, strip_prefix, path } => {
            explanation.action = "proxy";
            explanation.upstreams = shares(upstreams, question, model, snapshot);
            match found.form.sent(&question.path, *path, strip_prefix.as_deref()) {
                Ok(sent) if sent != question.path => {
                    let query = question.path_and_query.strip_prefix(question.path.as_str()).unwrap_or_default();
                    explanation.detail = format!("sent as {sent}{query}");
                }
                Ok(_) => {}
                Err(error) => {
                    explanation.detail = format!("400 ambiguous_path: {error}");
                    return explanation;
                }
            }
            if explanation.upstreams.iter().all(|share| share.backends.iter().all(|backend| !backend.eligible)) {
                explanation.detail = "503 no_backend: no backend may be used".into();
            }
        }
        Action::Redirect(redirect) => {
            explanation.action = "redirect";
            let to = String::from_utf8_lossy(redirect.to.as_bytes());
            explanation.detail = format!("{} to {to}", redirect.status.as_u16());
        }
        Action::Respond(respond) => {
            explanation.action = "respond";
            explanation.detail = format!("{} with {} bytes", respond.status.as_u16(), respond.body.len());
        }
    }
    if explanation.listeners.is_empty() {
        let what = if question.https { "https" } else { "http" };
        let before = if explanation.detail.is_empty() { "" } else { "; " };
        explanation.detail.push_str(&format!("{before}no listener of this configuration takes this {what} URL"));
    }
    explanation
}

/// What of the question's fields routes may go by: those about hops only where `from` is a trusted proxy; those about a client's
/// certificate are what its listener would say.
fn believed<'a>(question: &'a Question, snapshot: &Snapshot, nothing: &'a HeaderValue) -> Believed<'a, HeaderMap> {
    let said = |name: &HeaderName| question.headers.get(name);
    let verified = said(&X_CLIENT_CERT_VERIFY).map(HeaderValue::as_bytes);
    let certificate = match (verified, said(&X_CLIENT_CERT_SUBJECT), said(&X_CLIENT_CERT_FINGERPRINT)) {
        (Some(verified), ..) if verified == ClientCert::NONE => ClientCert::None,
        (Some(_), subject, fingerprint) => {
            ClientCert::Success { subject: subject.unwrap_or(nothing), fingerprint: fingerprint.unwrap_or(nothing) }
        }
        (None, ..) => ClientCert::NotAsked,
    };
    let peer_trusted = question.from.is_some_and(|from| snapshot.trusted().contains(from));
    Believed { sent: &question.headers, peer_trusted, certificate, told: &[], identity: &[] }
}

/// Whether a connection for the URL may come in here: by scheme, by port where the URL has one, and by address where its
/// host is one.
fn may_accept(listener: &model::Listener, question: &Question) -> bool {
    if listener.tls.is_some() != question.https {
        return false;
    }
    let ListenAddress::Inet(address) = &listener.address else { return question.port.is_none() };
    let host = without_port(&question.host).trim_start_matches('[').trim_end_matches(']');
    let by_address = match host.parse::<IpAddr>() {
        Ok(wanted) => address.ip().is_unspecified() || address.ip() == wanted,
        Err(_) => true,
    };
    by_address && question.port.is_none_or(|port| port == address.port())
}

fn shares(upstreams: &[(usize, Weight)], question: &Question, model: &Model, snapshot: &Snapshot) -> Vec<Share> {
    let total: u32 = upstreams.iter().map(|(_, weight)| u32::from(weight.value())).sum();
    let share = |(index, weight): &(usize, Weight)| {
        let upstream = &snapshot.member(*index).upstream;
        let by_client = model.upstreams.get(&upstream.name).is_some_and(|config| config.balance == Balance::IpHash);
        let alone = !upstream.backends().iter().any(|backend| backend.usable());
        let chosen = question.from.filter(|_| by_client).and_then(|from| upstream.pick(Some(from), &[]).ok());
        Share {
            name: upstream.name.to_string(),
            share: match (upstreams.len(), total) {
                (1, _) => 100.0,
                (_, 0) => 0.0,
                (_, total) => (f64::from(weight.value()) * 10_000.0 / f64::from(total)).round() / 100.0,
            },
            backends: upstream.backends().iter().map(|backend| candidate(backend, alone)).collect(),
            chosen: chosen.map(|picked| picked.backend().id.to_string()),
        }
    };
    upstreams.iter().map(share).collect()
}

/// `alone`: none is left but those that are ejected, if these.
fn candidate(backend: &BackendState, alone: bool) -> Candidate {
    let why = match backend.admin {
        AdminState::Drain => "drain",
        AdminState::Maint => "maint",
        AdminState::Ready if backend.weight.value() == 0 => "weight 0",
        AdminState::Ready if !backend.has_target() => "no address",
        AdminState::Ready if !backend.is_up() => "down",
        AdminState::Ready if backend.is_ejected() => "ejected",
        AdminState::Ready if !backend.part().is_whole() => "up, in slow start",
        AdminState::Ready => "up",
    };
    let out = backend.is_ejected() && backend.usable_but_for_ejection();
    Candidate {
        id: backend.id.to_string(),
        address: backend.label.clone(),
        eligible: backend.usable() || (out && alone),
        why,
        last_resort: out.then_some(match alone {
            true => "gets requests all the same: no other backend is left",
            false => "gets only retries of requests that have tried all others",
        }),
    }
}

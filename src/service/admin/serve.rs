//! From a request to its answer: who asks, for what, with which body; then the route's function; then the answer's head,
//! and the counts and lists that every answer goes into.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    task::{Context, Poll},
    time::{SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, LengthLimitError, Limited};
use hyper::body::{Frame, Incoming, SizeHint};
use tokio::sync::OwnedSemaphorePermit;

use super::{
    auth::{self, Access, Caller, Peer},
    call::{Answer, Call, Content, Shared},
    events::{self, EventStream},
    json::Json,
    problem::{Kind, Problem, etag},
    query::Query,
    router::{self, Body, Route, Run, Verb},
};
use crate::telemetry::{failures::FailedChange, metrics::AdminOutcome};

/// Bytes of a request's body.
const LARGEST_BODY: usize = 1 << 20;

/// A connection's place among those that are served; given back early by readers of events, which are counted apart.
pub(super) struct Place(Mutex<Option<OwnedSemaphorePermit>>);

impl Place {
    /// Held until it is dropped or given back.
    pub(super) fn new(permit: OwnedSemaphorePermit) -> Self {
        Self(Mutex::new(Some(permit)))
    }

    fn give_back(&self) {
        drop(self.0.lock().unwrap_or_else(PoisonError::into_inner).take());
    }
}

/// The body of an answer.
pub(super) enum AdminBody {
    Events(EventStream),
    Whole(Full<Bytes>),
}

impl hyper::body::Body for AdminBody {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match self.get_mut() {
            Self::Events(stream) => Pin::new(stream).poll_frame(cx),
            Self::Whole(body) => Pin::new(body).poll_frame(cx),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Events(_) => false,
            Self::Whole(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Events(_) => SizeHint::default(),
            Self::Whole(body) => body.size_hint(),
        }
    }
}

/// What is known of a request when it turns out to be a problem.
#[derive(Default)]
struct Asked {
    who: String,
    route: Option<&'static Route>,
    path: Vec<(&'static str, String)>,
}

/// What a request came to.
enum Done {
    Answer(Answer),
    Events(EventStream),
}

/// Answers one request.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    peer: Peer,
    place: &Place,
    request: Request<Incoming>,
) -> Response<AdminBody> {
    let mut asked = Asked::default();
    let response = match decide(shared, peer, request, &mut asked).await {
        Ok(Done::Answer(answer)) => plain(answer),
        Ok(Done::Events(stream)) => {
            place.give_back();
            let mut response = Response::new(AdminBody::Events(stream));
            set(&mut response, header::CONTENT_TYPE, "text/event-stream");
            // Its place is another's by now.
            set(&mut response, header::CONNECTION, "close");
            response
        }
        Err(problem) => {
            remember(shared, &asked, &problem);
            refuse(problem)
        }
    };
    shared.metrics.admin_answered(AdminOutcome::from_status(response.status().as_u16()));
    finished(response)
}

async fn decide(
    shared: &Arc<Shared>,
    peer: Peer,
    request: Request<Incoming>,
    asked: &mut Asked,
) -> Result<Done, Problem> {
    let (head, body) = request.into_parts();
    if head.headers.contains_key(header::ORIGIN) {
        return Err(Problem::new(Kind::CrossOrigin, "requests of web pages, which have an `Origin`, are not served"));
    }
    let Caller { who, access, is_owner } = {
        let tokens = shared.tokens.as_ref().map(|tokens| tokens.load());
        auth::authenticate(peer, tokens.as_deref().map(AsRef::as_ref), &head.headers)?
    };
    asked.who.clone_from(&who);
    let (route, path) = router::find(&head.method, head.uri.path())?;
    asked.route = Some(route);
    asked.path.clone_from(&path);
    if route.access == Access::Change && access == Access::Read {
        return Err(Problem::new(Kind::ReadOnly, "the token may only read").hint("use the one of `token_file`"));
    }
    let query = Query::parse(head.uri.query(), route.query)?;
    let body = read(shared, route, &head.headers, body).await?;
    let call = Call { who, is_owner, path, query, headers: head.headers, body };
    let known = (route.verb == Verb::Get).then(|| call.known());
    let failed = |error: tokio::task::JoinError| {
        log::error!("admin: {}: {error}", route.id);
        Problem::new(Kind::Internal, "rrlb could not do it; its log says why")
    };
    Ok(match route.run {
        Run::Events => Done::Events(events::stream(shared, &call.headers)?),
        Run::Blocking(run) => {
            let shared = shared.clone();
            let answer = tokio::task::spawn_blocking(move || run(&shared, &call)).await.map_err(failed)??;
            let unchanged = answer.version.is_some_and(|version| known.is_some_and(|known| known.has(version)));
            Done::Answer(if unchanged {
                Answer { content: Content::Empty, ..answer.status(StatusCode::NOT_MODIFIED) }
            } else {
                answer
            })
        }
        // In a task of its own: it goes on where the connection does not.
        Run::Waiting(run) => Done::Answer(tokio::spawn(run(shared.clone(), call)).await.map_err(failed)??),
    })
}

/// Reads the body that a route takes.
async fn read(shared: &Shared, route: &Route, headers: &HeaderMap, body: Incoming) -> Result<Option<Json>, Problem> {
    let too_large = || {
        let problem = Problem::new(Kind::TooLarge, "the body is too large");
        problem.hint(format!("send at most {} KiB", LARGEST_BODY >> 10))
    };
    let length = hyper::body::Body::size_hint(&body).lower();
    if length > LARGEST_BODY as u64 {
        return Err(too_large());
    }
    if length > 0 && route.body != Body::Refused {
        media_type(headers)?;
    }
    let whole = tokio::time::timeout(shared.limits.body, Limited::new(body, LARGEST_BODY).collect()).await;
    let bytes = match whole {
        Ok(Ok(whole)) => whole.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(too_large()),
        Ok(Err(_)) => return Err(Problem::new(Kind::BadRequest, "the body broke off")),
        Err(_) => {
            let seconds = shared.limits.body.as_secs();
            return Err(Problem::new(Kind::TooSlow, format!("the body did not come within {seconds} s")));
        }
    };
    match (route.body, bytes.is_empty()) {
        (Body::Refused, true) | (Body::Optional(_), true) => Ok(None),
        (Body::Refused, false) => Err(Problem::new(Kind::BadRequest, "this operation takes no body")),
        (Body::Needed(_), true) => Err(Problem::new(Kind::BadJson, "the body is missing")),
        (Body::Needed(_) | Body::Optional(_), false) => {
            media_type(headers)?;
            Json::parse(&bytes).map(Some)
        }
    }
}

fn media_type(headers: &HeaderMap) -> Result<(), Problem> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let kind = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if kind == "application/json" || kind.starts_with("application/") && kind.ends_with("+json") {
        return Ok(());
    }
    Err(Problem::new(Kind::MediaType, "the body is not said to be JSON").hint("send Content-Type: application/json"))
}

/// Keeps what went wrong for whoever asks, and says in the log where somebody was not let in.
fn remember(shared: &Shared, asked: &Asked, problem: &Problem) {
    let status = problem.kind.status();
    if matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        // One line a second: whoever guesses tokens must not fill the disk.
        if shared.warned.swap(now, Ordering::Relaxed) != now {
            log::warn!("admin: a request was denied: {}", problem.detail);
        }
    }
    let Some(route) = asked.route.filter(|route| route.access == Access::Change) else { return };
    if problem.is_failed_change() {
        let part = |name| asked.path.iter().find(|(other, _)| *other == name).map_or("", |(_, text)| text.as_str());
        shared.metrics.last_failures().record_change(&FailedChange {
            time: SystemTime::now(),
            who: &asked.who,
            what: route.id,
            upstream: part("upstream"),
            backend: part("backend"),
            reason: problem.kind.code(),
            detail: problem.report.as_deref().unwrap_or(&problem.detail),
        });
    }
}

fn plain(answer: Answer) -> Response<AdminBody> {
    let (kind, bytes) = match answer.content {
        Content::Empty => (None, Bytes::new()),
        Content::Json(text) => (Some("application/json"), Bytes::from(text)),
        Content::Yaml(text) => (Some("text/yaml; charset=utf-8"), Bytes::from(text)),
    };
    let mut response = Response::new(AdminBody::Whole(Full::new(bytes)));
    *response.status_mut() = answer.status;
    if let Some(kind) = kind {
        set(&mut response, header::CONTENT_TYPE, kind);
    }
    if let Some(version) = answer.version {
        set(&mut response, header::ETAG, &etag(version));
    }
    response
}

fn refuse(problem: Problem) -> Response<AdminBody> {
    let mut text = serde_json::to_vec(&problem).unwrap_or_default();
    text.push(b'\n');
    let mut response = Response::new(AdminBody::Whole(Full::new(Bytes::from(text))));
    let status = problem.kind.status();
    *response.status_mut() = status;
    set(&mut response, header::CONTENT_TYPE, "application/problem+json");
    if let Some(allow) = &problem.allow {
        set(&mut response, header::ALLOW, allow);
    }
    if let Some(version) = problem.version {
        set(&mut response, header::ETAG, &etag(version));
    }
    match problem.kind {
        Kind::BeingReplaced => set(&mut response, header::RETRY_AFTER, "1"),
        Kind::Unauthorized => set(&mut response, header::WWW_AUTHENTICATE, "Bearer realm=\"rrlb\""),
        // The rest of the body is not read; the next request could not be told from it.
        Kind::TooLarge | Kind::TooSlow => set(&mut response, header::CONNECTION, "close"),
        _ => {}
    }
    response
}

fn finished(mut response: Response<AdminBody>) -> Response<AdminBody> {
    set(&mut response, header::CACHE_CONTROL, "no-store");
    set(&mut response, header::X_CONTENT_TYPE_OPTIONS, "nosniff");
    response
}

fn set(response: &mut Response<AdminBody>, name: HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
}

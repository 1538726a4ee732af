//! The one table of routes: what there is, who may ask for it, what it takes and what it answers. Routing, the statuses
//! 404 and 405, and the OpenAPI document all come from it, so that they cannot differ.

use std::{pin::Pin, sync::Arc};

use http::Method;

use super::{
    auth::Access,
    backends,
    call::{Answer, Call, Shared},
    config, explain, openapi,
    problem::{Kind, Problem, shown},
    query::{ABORT_IF, CONFIRM, DRAIN, DRY_RUN, FORCE, LIMIT, NOW, PERSIST, Parameter, REASON, TTL, percent_decode},
    state, status, upstreams,
};

/// One operation.
pub(super) struct Route {
    /// `GET` serves `HEAD` too.
    pub(super) verb: Verb,
    /// `{name}` stands for one segment.
    pub(super) path: &'static str,
    /// The operation's id in the OpenAPI document.
    pub(super) id: &'static str,
    /// For people.
    pub(super) summary: &'static str,
    pub(super) access: Access,
    pub(super) query: &'static [Parameter],
    pub(super) body: Body,
    /// Statuses of success, and what comes with them.
    pub(super) answers: &'static [(u16, Shape)],
    /// Statuses of problems, beside those that every route has.
    pub(super) problems: &'static [u16],
    pub(super) run: Run,
}

/// The method of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Verb {
    Delete,
    Get,
    Patch,
    Post,
    Put,
}

impl Verb {
    /// As in a request.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Delete => "DELETE",
            Self::Get => "GET",
            Self::Patch => "PATCH",
            Self::Post => "POST",
            Self::Put => "PUT",
        }
    }
}

/// Whether a route takes a body, and the name of its schema.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Body {
    Needed(&'static str),
    Optional(&'static str),
    Refused,
}

/// What an answer's body is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    Empty,
    /// A stream of events; the schema is that of one event's data.
    Events(&'static str),
    /// JSON of any kind.
    Free,
    /// JSON of a schema.
    Json(&'static str),
    Yaml,
}

/// A future of an answer.
pub(super) type Waiting = Pin<Box<dyn Future<Output = Result<Answer, Problem>> + Send>>;

/// What a route does.
#[derive(Clone, Copy)]
pub(super) enum Run {
    /// May wait for a lock or the disk, and so has a thread of its own.
    Blocking(fn(&Shared, &Call) -> Result<Answer, Problem>),
    /// Goes on for as long as the reader likes.
    Events,
    /// Waits for the process. It is brought to its end even where nobody waits for the answer any more.
    Waiting(fn(Arc<Shared>, Call) -> Waiting),
}

/// Statuses of problems that every route has.
pub(super) const COMMON_PROBLEMS: &[u16] = &[400, 401, 403, 408, 413, 500];
/// Those of routes with a body.
pub(super) const BODY_PROBLEMS: &[u16] = &[415, 422];

const UPSTREAMS: &str = "/v1/upstreams";
const UPSTREAM: &str = "/v1/upstreams/{upstream}";
const BACKENDS: &str = "/v1/upstreams/{upstream}/backends";
const BACKEND: &str = "/v1/upstreams/{upstream}/backends/{backend}";
const OVERRIDE: &str = "/v1/upstreams/{upstream}/backends/{backend}/override";

const CHANGE_PROBLEMS: &[u16] = &[404, 409, 412, 422, 503, 507];

/// What only looks, without a query or a body.
const fn look(
    path: &'static str,
    id: &'static str,
    summary: &'static str,
    shape: &'static [(u16, Shape)],
    run: Run,
) -> Route {
    Route {
        verb: Verb::Get,
        path,
        id,
        summary,
        access: Access::Read,
        query: &[],
        body: Body::Refused,
        answers: shape,
        problems: &[],
        run,
    }
}

/// The table.
pub(super) const ROUTES: &[Route] = &[
    look(
        "/v1/status",
        "status",
        "The process in numbers",
        &[(200, Shape::Json("Status"))],
        Run::Blocking(status::status),
    ),
    look(
        "/v1/config",
        "config",
        "The configuration that runs, defaults written out and secrets left out",
        &[(200, Shape::Yaml)],
        Run::Blocking(config::effective),
    ),
    Route {
        verb: Verb::Post,
        path: "/v1/config/reload",
        id: "reload",
        summary: "Read the configuration file again and run with it",
        access: Access::Change,
        query: &[DRY_RUN, CONFIRM, ABORT_IF],
        body: Body::Refused,
        answers: &[(200, Shape::Json("ReloadReport"))],
        problems: &[409, 422],
        run: Run::Waiting(|shared, call| Box::pin(config::reload(shared, call))),
    },
    Route {
        verb: Verb::Post,
        path: "/v1/config/confirm",
        id: "confirm",
        summary: "Keep a reload that waits for its confirmation",
        access: Access::Change,
        query: &[],
        body: Body::Refused,
        answers: &[(204, Shape::Empty)],
        problems: &[409],
        run: Run::Waiting(|shared, call| Box::pin(config::confirm(shared, call))),
    },
    Route {
        verb: Verb::Post,
        path: "/v1/upgrade",
        id: "upgrade",
        summary: "Start a successor; once it serves, this process drains and leaves",
        access: Access::Change,
        query: &[],
        body: Body::Optional("Upgrade"),
        answers: &[(200, Shape::Json("Upgraded"))],
        problems: &[409],
        run: Run::Waiting(|shared, call| Box::pin(config::upgrade(shared, call))),
    },
    Route {
        verb: Verb::Post,
        path: "/v1/stop",
        id: "stop",
        summary: "Drain and leave",
        access: Access::Change,
        query: &[NOW],
        body: Body::Refused,
        answers: &[(202, Shape::Empty)],
        problems: &[422],
        run: Run::Waiting(|shared, call| Box::pin(config::stop(shared, call))),
    },
    look(
        UPSTREAMS,
        "listUpstreams",
        "Every upstream with its backends",
        &[(200, Shape::Json("Upstreams"))],
        Run::Blocking(upstreams::list),
    ),
    Route {
        problems: &[404],
        ..look(
            UPSTREAM,
            "getUpstream",
            "One upstream with its backends",
            &[(200, Shape::Json("Upstream")), (304, Shape::Empty)],
            Run::Blocking(upstreams::one),
        )
    },
    Route {
        problems: &[404],
        ..look(
            BACKENDS,
            "listBackends",
            "The backends of an upstream",
            &[(200, Shape::Json("Backends")), (304, Shape::Empty)],
            Run::Blocking(upstreams::backends),
        )
    },
    Route {
        verb: Verb::Put,
        path: BACKENDS,
        id: "replaceBackends",
        summary: "Replace the backends that the API has added; declared and leased ones stay",
        access: Access::Change,
        query: &[DRAIN, FORCE, PERSIST, REASON],
        body: Body::Needed("BackendList"),
        answers: &[(200, Shape::Json("Upstream"))],
        problems: CHANGE_PROBLEMS,
        run: Run::Blocking(backends::replace),
    },
    Route {
        problems: &[404],
        ..look(
            BACKEND,
            "getBackend",
            "One backend",
            &[(200, Shape::Json("Backend")), (304, Shape::Empty)],
            Run::Blocking(upstreams::backend),
        )
    },
    Route {
        verb: Verb::Put,
        path: BACKEND,
        id: "putBackend",
        summary: "Have a backend be there as the body says; with `ttl` it is a lease, renewed by repeating",
        access: Access::Change,
        query: &[TTL, FORCE, PERSIST, REASON],
        body: Body::Needed("BackendPut"),
        answers: &[(200, Shape::Json("Backend")), (201, Shape::Json("Backend"))],
        problems: CHANGE_PROBLEMS,
        run: Run::Blocking(backends::put),
    },
    Route {
        verb: Verb::Patch,
        path: BACKEND,
        id: "patchBackend",
        summary: "Change a backend's weight or state",
        access: Access::Change,
        query: &[FORCE, PERSIST, REASON],
        body: Body::Needed("BackendPatch"),
        answers: &[(200, Shape::Json("Backend"))],
        problems: CHANGE_PROBLEMS,
        run: Run::Blocking(backends::patch),
    },
    Route {
        verb: Verb::Delete,
        path: BACKEND,
        id: "removeBackend",
        summary: "Take a backend out when its requests are done; 202 while they are not",
        access: Access::Change,
        query: &[DRAIN, FORCE, REASON],
        body: Body::Refused,
        answers: &[(202, Shape::Json("Backend")), (204, Shape::Empty)],
        problems: CHANGE_PROBLEMS,
        run: Run::Blocking(backends::remove),
    },
    Route {
        verb: Verb::Delete,
        path: OVERRIDE,
        id: "forgetOverride",
        summary: "Forget what was changed at run time: as declared again, or gone where nobody declares it",
        access: Access::Change,
        query: &[FORCE, REASON],
        body: Body::Refused,
        answers: &[(200, Shape::Json("Backend")), (204, Shape::Empty)],
        problems: CHANGE_PROBLEMS,
        run: Run::Blocking(backends::forget),
    },
    look(
        "/v1/state",
        "state",
        "Everything that was changed at run time",
        &[(200, Shape::Json("State"))],
        Run::Blocking(state::state),
    ),
    look(
        "/v1/state/patch",
        "statePatch",
        "What to write into the configuration so that the changes become permanent",
        &[(200, Shape::Yaml)],
        Run::Blocking(state::patch),
    ),
    Route {
        query: &[LIMIT],
        problems: &[422],
        ..look(
            "/v1/errors",
            "errors",
            "The last requests that failed and changes that were refused, the newest first",
            &[(200, Shape::Json("Errors"))],
            Run::Blocking(status::errors),
        )
    },
    Route {
        problems: &[503],
        ..look(
            "/v1/events",
            "events",
            "Changes as they happen; goes on after `Last-Event-ID`",
            &[(200, Shape::Events("Event"))],
            Run::Events,
        )
    },
    Route {
        verb: Verb::Post,
        access: Access::Read,
        body: Body::Needed("Question"),
        ..look(
            "/v1/route",
            "explainRoute",
            "What would become of a request",
            &[(200, Shape::Json("Explanation"))],
            Run::Blocking(explain::explain),
        )
    },
    look("/v1/openapi.json", "openapi", "This description", &[(200, Shape::Free)], Run::Blocking(openapi::serve)),
];

/// A route and what stands for the `{…}` of its path.
pub(super) type Found = (&'static Route, Vec<(&'static str, String)>);

/// The route of a request.
///
/// # Errors
/// There is no such path, or not for this method.
pub(super) fn find(method: &Method, path: &str) -> Result<Found, Problem> {
    let asked = if *method == Method::HEAD { Verb::Get.as_str() } else { method.as_str() };
    let mut allowed: Vec<&str> = Vec::new();
    for route in ROUTES {
        let Some(parameters) = matches(route.path, path) else { continue };
        if route.verb.as_str() != asked {
            allowed.push(route.verb.as_str());
            if route.verb == Verb::Get {
                allowed.push("HEAD");
            }
            continue;
        }
        let decode = |(name, text): (&'static str, &str)| percent_decode(text).map(|text| (name, text));
        let parameters: Option<Vec<_>> = parameters.into_iter().map(decode).collect();
        let wrong = || Problem::new(Kind::BadRequest, "the path is not percent-encoded UTF-8");
        return Ok((route, parameters.ok_or_else(wrong)?));
    }
    if allowed.is_empty() {
        let problem = Problem::new(Kind::NotFound, format!("there is no path {}", shown(path)));
        return Err(problem.hint("GET /v1/openapi.json lists them"));
    }
    let allow = allowed.join(", ");
    let detail = format!("{} is not for this path", shown(method.as_str()));
    let problem = Problem::new(Kind::MethodNotAllowed, detail).hint(format!("possible here: {allow}"));
    Err(Problem { allow: Some(allow.into()), ..problem })
}

/// What stands for the `{…}` of a pattern; `None` where the path is not of it.
fn matches<'a>(pattern: &'static str, path: &'a str) -> Option<Vec<(&'static str, &'a str)>> {
    let mut parameters = Vec::new();
    let (mut patterns, mut segments) = (pattern.split('/'), path.split('/'));
    loop {
        match (patterns.next(), segments.next()) {
            (None, None) => return Some(parameters),
            (Some(pattern), Some(segment)) => match pattern.strip_prefix('{').and_then(|name| name.strip_suffix('}')) {
                Some(_) if segment.is_empty() => return None,
                Some(name) => parameters.push((name, segment)),
                None if pattern == segment => {}
                None => return None,
            },
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn paths_find_their_route_and_their_parts_decoded() {
        let (route, path) = find(&Method::PUT, "/v1/upstreams/a%20b/backends/unix:%2Frun%2Fx.sock").expect("a route");
        assert_eq!(route.id, "putBackend");
        assert_eq!(path, [("upstream", "a b".to_owned()), ("backend", "unix:/run/x.sock".to_owned())]);
        assert_eq!(find(&Method::HEAD, "/v1/status").map(|(route, _)| route.id).ok(), Some("status"));
        assert_eq!(find(&Method::GET, "/v1/upstreams/%ff").err().map(|problem| problem.kind), Some(Kind::BadRequest));
        for path in ["", "/", "/v1", "/v1/status/", "//v1/status", "/v1/upstreams/", "/v1/upstreams/a/backends/", "*"] {
            assert_eq!(find(&Method::GET, path).err().map(|problem| problem.kind), Some(Kind::NotFound), "{path}");
        }
        let problem = find(&Method::POST, "/v1/upstreams/a/backends/b").err().expect("a problem");
        assert_eq!(problem.allow.as_deref(), Some("GET, HEAD, PUT, PATCH, DELETE"));
    }

    #[test]
    fn operations_are_told_apart_and_only_get_is_without_consequence() {
        let ids: HashSet<_> = ROUTES.iter().map(|route| route.id).collect();
        let places: HashSet<_> = ROUTES.iter().map(|route| (route.verb, route.path)).collect();
        assert_eq!((ids.len(), places.len()), (ROUTES.len(), ROUTES.len()));
        for route in ROUTES {
            let looks = route.verb == Verb::Get || route.id == "explainRoute";
            assert_eq!(route.access == Access::Read, looks, "{}", route.id);
        }
    }
}

//! The OpenAPI 3.1 document, made from the table of routes and the schemas beside it.

use http::StatusCode;
use serde_json::{Map, Value, json};

use super::{
    auth::Access,
    call::{Answer, Call, Shared},
    problem::{Kind, Problem},
    query::ParameterKind,
    router::{BODY_PROBLEMS, Body, COMMON_PROBLEMS, ROUTES, Route, Shape},
};

const SCHEMAS: &str = include_str!("schemas.json");

/// `GET /v1/openapi.json`
pub(super) fn serve(_: &Shared, _: &Call) -> Result<Answer, Problem> {
    Answer::json(&document()?)
}

/// The document.
///
/// # Errors
/// The schemas are not JSON, which a test sees before anybody else does.
pub(super) fn document() -> Result<Value, Problem> {
    let schemas: Value =
        serde_json::from_str(SCHEMAS).map_err(|error| Problem::new(Kind::Internal, format!("the schemas: {error}")))?;
    let mut paths: Map<String, Value> = Map::new();
    for route in ROUTES {
        let methods = paths.entry(route.path).or_insert_with(|| json!({}));
        if let Value::Object(methods) = methods {
            methods.insert(route.verb.as_str().to_ascii_lowercase(), operation(route));
        }
    }
    Ok(json!({
        "openapi": "3.1.0",
        "info": {
            "title": "rrlb admin API",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What people and programs see and change while rrlb runs. Over the unix socket whoever may open it \
                may do everything; on TCP a token is needed. Requests with an `Origin` field are refused.",
        },
        "servers": [{ "url": "/" }],
        "security": [{ "token": [] }, {}],
        "paths": paths,
        "components": {
            "securitySchemes": { "token": { "type": "http", "scheme": "bearer" } },
            "schemas": schemas,
        },
    }))
}

/// Statuses that a route may answer problems with.
pub(super) fn problems(route: &Route) -> Vec<u16> {
    let body: &[u16] = if route.body == Body::Refused { &[] } else { BODY_PROBLEMS };
    let mut all = [COMMON_PROBLEMS, body, route.problems].concat();
    all.sort_unstable();
    all.dedup();
    all
}

fn operation(route: &Route) -> Value {
    let mut responses = Map::new();
    for (status, shape) in route.answers {
        let mut response = json!({ "description": reason(*status) });
        if let Some((kind, schema)) = content(*shape) {
            response["content"] = json!({ kind: { "schema": schema } });
        }
        if route.path.contains("{upstream}") {
            response["headers"] =
                json!({ "ETag": { "description": "the version of the upstream", "schema": { "type": "string" } } });
        }
        responses.insert(status.to_string(), response);
    }
    for status in problems(route) {
        let schema = json!({ "$ref": "#/components/schemas/Problem" });
        let response = json!({
            "description": reason(status),
            "content": { "application/problem+json": { "schema": schema } },
        });
        responses.insert(status.to_string(), response);
    }
    let mut operation = json!({
        "operationId": route.id,
        "summary": route.summary,
        "parameters": parameters(route),
        "responses": responses,
        "x-access": match route.access {
            Access::Change => "change",
            Access::Read => "read",
        },
    });
    let (schema, required) = match route.body {
        Body::Needed(schema) => (schema, true),
        Body::Optional(schema) => (schema, false),
        Body::Refused => return operation,
    };
    operation["requestBody"] = json!({
        "required": required,
        "content": { "application/json": { "schema": { "$ref": format!("#/components/schemas/{schema}") } } },
    });
    operation
}

fn parameters(route: &Route) -> Vec<Value> {
    let text = json!({ "type": "string" });
    let mut all: Vec<Value> = route
        .path
        .split('/')
        .filter_map(|segment| segment.strip_prefix('{')?.strip_suffix('}'))
        .map(|name| json!({ "name": name, "in": "path", "required": true, "schema": text }))
        .collect();
    all.extend(route.query.iter().map(|parameter| {
        let schema = match parameter.kind {
            ParameterKind::Count(most) => json!({ "type": "integer", "minimum": 1, "maximum": most }),
            ParameterKind::Duration(..) => json!({ "type": "string", "examples": ["30s"] }),
            ParameterKind::Flag => json!({ "type": "boolean" }),
            ParameterKind::Text(most) => json!({ "type": "string", "maxLength": most }),
        };
        json!({ "name": parameter.name, "in": "query", "description": parameter.text, "schema": schema })
    }));
    let field = |name: &str, text: &str| json!({ "name": name, "in": "header", "description": text, "schema": { "type": "string" } });
    if route.access == Access::Change && route.path.contains("{upstream}") {
        all.push(field("If-Match", "the ETag that the upstream must have, or *"));
    }
    if route.answers.iter().any(|(status, _)| *status == 304) {
        all.push(field(
            "If-None-Match",
            "ETags of the upstream that are known; 304 where it has one of them, whatever its backends' health",
        ));
    }
    if route.id == "events" {
        all.push(field(
            "Last-Event-ID",
            "the id of the last event that is known, as the stream gave it; one of a process that was not upgraded but started \
             anew since is answered with an event `missed` and everything that is kept. A number alone is of this process; \
             0: everything that is kept",
        ));
    }
    all
}

fn content(shape: Shape) -> Option<(&'static str, Value)> {
    let schema = |name: &str| json!({ "$ref": format!("#/components/schemas/{name}") });
    Some(match shape {
        Shape::Empty => return None,
        Shape::Events(_) => ("text/event-stream", json!({ "type": "string" })),
        Shape::Free => ("application/json", json!({ "type": "object" })),
        Shape::Json(name) => ("application/json", schema(name)),
        Shape::Yaml => ("text/yaml", json!({ "type": "string" })),
    })
}

fn reason(status: u16) -> &'static str {
    StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason()).unwrap_or_default()
}

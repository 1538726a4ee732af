//! `rrlb route`: what would become of a request.

use std::net::IpAddr;

use http::Method;
use serde_json::{Map, Value, json};

use super::{
    client::{Call, Client},
    failure::Failure,
    screen::Screen,
    table::{Cell, Paint, Side, Table, clean_line},
    wire::{Explained, ExplainedUpstream},
};

const COLUMNS: &[(&str, Side)] =
    &[("BACKEND", Side::Left), ("ADDRESS", Side::Left), ("MAY BE CHOSEN", Side::Left), ("WHY", Side::Left)];

/// The request.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) method: &'a Method,
    pub(super) url: &'a str,
    pub(super) headers: &'a [(String, String)],
    pub(super) from: Option<IpAddr>,
    pub(super) json: bool,
}

/// Asks the instance and prints its answer.
///
/// # Errors
/// Any [`Failure`].
pub(super) async fn explain(asked: &Asked<'_>, client: &Client, screen: &mut Screen) -> Result<(), Failure> {
    let mut body = json!({ "method": asked.method.as_str(), "url": asked.url });
    if let Some(body) = body.as_object_mut() {
        if !asked.headers.is_empty() {
            body.insert("headers".to_owned(), headers(asked.headers));
        }
        if let Some(from) = asked.from {
            body.insert("from".to_owned(), Value::from(from.to_string()));
        }
    }
    let answer = client.call(Call::new(Method::POST, &["route"]).json(body)).await?;
    if asked.json {
        return screen.print(&answer.text());
    }
    let text = render(&answer.read()?, screen.colour);
    screen.print(&text)
}

/// A field that is there twice is one with both values (RFC 9110 §5.3).
fn headers(fields: &[(String, String)]) -> Value {
    let mut map = Map::new();
    for (name, value) in fields {
        let joined = match map.get(name).and_then(Value::as_str) {
            Some(before) => format!("{before}, {value}"),
            None => value.clone(),
        };
        map.insert(name.clone(), Value::from(joined));
    }
    Value::Object(map)
}

fn render(explained: &Explained, colour: bool) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| text += &format!("{name:<10}{}\n", clean_line(value));
    line("listeners", &if explained.listeners.is_empty() { "none".to_owned() } else { explained.listeners.join(", ") });
    line(
        "route",
        &match &explained.route {
            None => "none matches".to_owned(),
            Some(route) => match (route.name.as_deref().filter(|name| !name.is_empty()), route.index) {
                (Some(name), Some(index)) => format!("{name} (routes[{index}])"),
                (Some(name), None) => name.to_owned(),
                (None, Some(index)) => format!("routes[{index}]"),
                (None, None) => "one without a name".to_owned(),
            },
        },
    );
    line("action", &explained.action);
    if let Some(detail) = explained.detail.as_deref().filter(|detail| !detail.is_empty()) {
        line("", detail);
    }
    for upstream in &explained.upstreams {
        text += &upstream_text(upstream, explained.upstreams.len() > 1, colour);
    }
    text
}

fn upstream_text(upstream: &ExplainedUpstream, shares: bool, colour: bool) -> String {
    let share = upstream.share.filter(|_| shares).map_or_else(String::new, |share| format!(" ({share} %)"));
    let head = format!("{:<10}{}{share}", "upstream", upstream.name);
    let mut table = Table::new(COLUMNS);
    for backend in &upstream.backends {
        let chosen = if backend.eligible { Cell::painted("yes", Paint::Good) } else { Cell::painted("no", Paint::Bad) };
        let why = backend.why.as_deref().unwrap_or_default();
        let why = match &backend.last_resort {
            Some(when) => format!("{why}; {when}"),
            None => why.to_owned(),
        };
        table.row(vec![backend.id.as_str().into(), backend.address.as_str().into(), chosen, why.as_str().into()]);
    }
    let chosen = upstream
        .chosen
        .as_ref()
        .map_or_else(String::new, |id| clean_line(&format!("this client's requests go to {id}")).into_owned() + "\n");
    let body = if table.is_empty() { "no backends\n".to_owned() } else { table.render(colour) };
    format!("\n{}\n{body}{chosen}", clean_line(&head))
}

//! `rrlb config` and `rrlb schema`.

use std::path::Path;

use serde_json::Value;

use super::{
    client::{Call, Client},
    failure::Failure,
    screen::Screen,
    table::clean,
};
use crate::config::{self, Format, model::Model};

/// Prints the configuration that runs; with a `file`, that one's where no instance runs.
///
/// # Errors
/// No instance runs and there is no file, or it is not valid.
pub(super) async fn config(file: Option<&Path>, client: &Client, screen: &mut Screen) -> Result<(), Failure> {
    match (client.call(Call::get(&["config"])).await, file) {
        (Err(Failure::NoInstance { .. }), Some(file)) => {
            let text = of_file(file)?;
            screen.note(&format!("no instance runs; this is what {} gives", file.display()));
            screen.print(&clean(&text))
        }
        (answer, _) => screen.print(&clean(&answer?.text())),
    }
}

fn of_file(file: &Path) -> Result<String, Failure> {
    match config::load(file) {
        Ok(loaded) => effective(&loaded.model).ok_or_else(|| not_built_in("the effective configuration of a file")),
        Err(report) => Err(Failure::Invalid { report: report.render(Format::Human), problems: None }),
    }
}

/// Prints the JSON Schema.
///
/// # Errors
/// Nobody reads it.
pub(super) fn print_schema(screen: &mut Screen) -> Result<(), Failure> {
    let schema = schema().ok_or_else(|| not_built_in("the JSON Schema"))?;
    let text = serde_json::to_string_pretty(&schema).map_err(|error| Failure::Unexpected(error.to_string()))?;
    screen.print(&text)
}

fn not_built_in(what: &str) -> Failure {
    Failure::Unexpected(format!("{what} is not built in"))
}

/// `Some(config::effective(model))`, once `config` has it.
fn effective(_model: &Model) -> Option<String> {
    None
}

/// `Some(config::schema())`, once `config` has it.
fn schema() -> Option<Value> {
    None
}

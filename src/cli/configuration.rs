//! `rrlb config` and `rrlb schema`.

use std::path::Path;

use super::{
    client::{Call, Client},
    failure::Failure,
    screen::Screen,
    table::clean,
};
use crate::config::{self, Format};

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
        Ok(loaded) => Ok(config::effective(&loaded.model)),
        Err(report) => Err(Failure::Invalid { report: report.render(Format::Human), problems: None }),
    }
}

/// Prints the JSON Schema.
///
/// # Errors
/// Nobody reads it.
pub(super) fn print_schema(screen: &mut Screen) -> Result<(), Failure> {
    let text =
        serde_json::to_string_pretty(&config::schema()).map_err(|error| Failure::Unexpected(error.to_string()))?;
    screen.print(&text)
}

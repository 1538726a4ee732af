//! From the operator's file to a [`model::Model`]: the only reader of operator text. YAML becomes a tree with spans
//! (`tree`), the tree a model (`document` and its neighbours, by tables of keys), and whatever is wrong a [`Report`]
//! with every problem in it.

use std::{cell::Cell, path::Path};

mod address;
mod admin;
mod believed;
mod certificate;
mod decode;
mod defaults;
mod difference;
mod discover;
mod document;
mod effective;
mod engine;
mod files;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod guard;
mod listener;
pub mod model;
mod outline;
mod pem;
mod place;
mod process;
mod reach;
mod render;
mod renewal;
mod report;
mod route;
mod scalar;
mod schema;
mod source;
#[cfg(test)]
mod tests;
mod tree;
mod upstream;

pub use address::parse_backend_address;
pub use decode::did_you_mean;
pub use difference::{Difference, difference};
pub use effective::effective;
pub use place::{Place, place, place_in};
pub use renewal::{RenewalError, Renewed, renew_certificate, renew_client_auth};
pub use report::{Format, Problem, Report, Severity, UnknownFormat};
pub use schema::schema;
pub use source::{Position, Span};

/// Larger files are not configurations; ten thousand routes take 2 to 5 MiB.
const LARGEST_FILE: u64 = 16 << 20;
const EMPTY_HELP: &str = "see conf/minimal.yaml for the smallest useful file";
const LIST_HELP: &str = "write [] for no backends at all";

/// A configuration that can be served.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// What the file says.
    pub model: model::Model,
    /// What does not stop the start; often empty.
    pub warnings: Report,
}

/// Reads a configuration file.
///
/// # Errors
/// Every problem of the file, warnings included; one problem without a place where it cannot be read.
pub fn load(path: &Path) -> Result<Loaded, Report> {
    parse(&text(path)?, path)
}

/// Reads the text of a configuration file, for [`parse`].
///
/// # Errors
/// It cannot be read, is too large, or no text: one problem.
pub fn text(path: &Path) -> Result<String, Report> {
    let refused =
        |message: String, help: &str| Report::new(path, "", vec![tree::whole_file("cannot-read", message, help)]);
    // A pipe (`/dev/stdin`, a shell's `<(...)`) is read like a file; only the length is bounded.
    let mut bytes = Vec::new();
    let read = std::fs::File::open(path)
        .and_then(|file| std::io::Read::read_to_end(&mut std::io::Read::take(file, LARGEST_FILE + 1), &mut bytes));
    if let Err(error) = read {
        let passing = files::is_passing(&error);
        let help = match error.kind() {
            std::io::ErrorKind::NotFound => "name the file with -c",
            std::io::ErrorKind::PermissionDenied => "let the starting user read it",
            _ => "",
        };
        let report = refused(format!("cannot read the configuration: {}", reason(&error)), help);
        return Err(report.passing(passing));
    }
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(refused(format!("the configuration is larger than {} MiB", LARGEST_FILE >> 20), ""));
    }
    String::from_utf8(bytes).map_err(|error| {
        let valid = error.as_bytes().get(..error.utf8_error().valid_up_to()).unwrap_or_default();
        let valid = String::from_utf8_lossy(valid);
        let span = Span { start: valid.len(), end: valid.len() + 1 };
        let problem = tree::whole_file("not-utf-8", "the file is not UTF-8 text from here on", "save it as UTF-8");
        Report::new(path, &valid, vec![Problem { span: Some(span), ..problem }])
    })
}

/// Reads a configuration from text. Relative paths begin at `file`'s directory.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str, file: &Path) -> Result<Loaded, Report> {
    parse_with(text, file, &|name| std::env::var(name).ok())
}

/// As [`parse`], with another environment for `${VAR}`.
///
/// # Errors
/// As [`load`].
pub fn parse_with(text: &str, file: &Path, env: &dyn Fn(&str) -> Option<String>) -> Result<Loaded, Report> {
    read(text, file, env, &files::System)
}

fn read(
    text: &str,
    file: &Path,
    env: &dyn Fn(&str) -> Option<String>,
    files: &dyn files::Files,
) -> Result<Loaded, Report> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut problems = Vec::new();
    let root = tree::read(text, EMPTY_HELP, &mut problems);
    let files = files::Noting { files, passing: Cell::default() };
    let mut decoder = decode::Decoder::new(file, env, problems);
    decoder.files = &files;
    let model = root.and_then(|root| document::decode(&mut decoder, &root));
    let report = Report::new(file, text, decoder.problems).passing(files.passing.get());
    match model {
        Some(model) if !report.has_errors() => Ok(Loaded { model, warnings: report }),
        _ => Err(report),
    }
}

/// Reads a list of backends, as a file that is watched holds it: YAML or JSON, in the form and with the checks of
/// `backends`. An empty list (`[]`) is one; an empty file is a mistake. Relative paths begin at `file`'s directory.
///
/// # Errors
/// Every problem of the list. Without errors there are no warnings either.
pub fn parse_backend_list(text: &str, file: &Path) -> Result<Vec<model::Backend>, Report> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let env = |name: &str| std::env::var(name).ok();
    let mut problems = Vec::new();
    let root = tree::read(text, LIST_HELP, &mut problems);
    let mut decoder = decode::Decoder::new(file, &env, problems);
    let backends = root.and_then(|root| upstream::backend_list(&mut decoder, &root));
    let report = Report::new(file, text, decoder.problems);
    match backends {
        Some(backends) if !report.has_errors() => Ok(backends),
        _ => Err(report),
    }
}

/// The path of every key that the decoder knows, such as `upstreams.*.backends[].weight`.
pub fn known_keys() -> Vec<String> {
    key_reference().into_iter().map(|(path, _)| path).collect()
}

/// Every key that the decoder knows, with its default in words.
pub fn key_reference() -> Vec<(String, &'static str)> {
    let mut keys = Vec::new();
    document::ROOT.paths("", &mut keys);
    keys
}

/// What went wrong with a file, without the system's error number.
fn reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::NotFound => "there is no such file".to_owned(),
        std::io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
        std::io::ErrorKind::IsADirectory => "it is a directory".to_owned(),
        _ => {
            let text = error.to_string();
            text.split(" (os error").next().unwrap_or_default().to_owned()
        }
    }
}

//! What must hold of any text that is read as a configuration. Files that it names are made up, so that none of the
//! system's is ever read.

use std::{io, path::Path};

use super::{Format, Report, difference, effective, files::Files, parse_backend_list, place, read};

const FILE: &str = "/etc/rrlb/rrlb.yaml";

/// Files by their names, in whatever folder.
struct MadeUp;

impl Files for MadeUp {
    fn is_folder(&self, path: &Path) -> io::Result<bool> {
        if path.ends_with("missing") { Err(io::ErrorKind::NotFound.into()) } else { Ok(true) }
    }

    fn mode(&self, path: &Path) -> u32 {
        if path.ends_with("open") { 0o644 } else { 0o600 }
    }

    fn read(&self, path: &Path, _: u64) -> io::Result<Vec<u8>> {
        let content: &[u8] = match path.file_name().and_then(|name| name.to_str()) {
            Some("demo.pem") => include_bytes!("../../conf/tls/demo.pem"),
            Some("demo.key") => include_bytes!("../../conf/tls/demo.key"),
            Some("token" | "open") => b"0123456789abcdef0123456789abcdef\n",
            Some("other") => b"fedcba9876543210fedcba9876543210\n",
            Some("users") => b"# users\nme:$2y$05$......................0123456789012345678901234567890\n",
            Some("wrong") => b"\xff\n:\nme:{SHA}x\n",
            _ => return Err(io::ErrorKind::NotFound.into()),
        };
        Ok(content.to_vec())
    }
}

fn env(name: &str) -> Option<String> {
    let value = match name {
        "EMPTY" => "",
        "PORT" => "9001",
        "SECRET" => "hunter2\u{202e}\u{1b}[0m ${PORT}\n",
        "TEXT" => "app.example",
        _ => return None,
    };
    Some(value.to_owned())
}

/// Any text is a model or problems, each with its place in the text. What is written of a model is the same model again.
///
/// # Panics
/// If that does not hold.
pub fn config(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let read = |text: &str| read(text, Path::new(FILE), &env, &MadeUp);
    place::of_text(text, Path::new(FILE), &env);
    // Cheap to tell apart: nearly no text is both.
    if text.starts_with(['[', '-'])
        && let Err(report) = parse_backend_list(text, Path::new("/etc/rrlb/list.yaml"))
    {
        assert!(report.has_errors(), "refused without a reason");
        check(&report, text);
    }
    let model = match read(text) {
        Ok(loaded) => {
            assert!(!loaded.warnings.has_errors());
            check(&loaded.warnings, text);
            loaded.model
        }
        Err(report) => {
            assert!(report.has_errors(), "refused without a reason");
            return check(&report, text);
        }
    };
    let written = effective(&model);
    let again = match read(&written) {
        Ok(loaded) => loaded.model,
        Err(report) => panic!("the effective form is refused:\n{report}\nof\n{written}"),
    };
    assert_eq!(effective(&again), written, "the effective form of the effective form");
    if !written.contains(super::effective::BLOT) {
        let differences = difference(&model, &again);
        assert!(differences.is_empty(), "{differences:?} by\n{written}");
    }
}

fn check(report: &Report, text: &str) {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let lines = text.matches('\n').count() + 1;
    for problem in &report.problems {
        let Some(span) = problem.span else { continue };
        // The mark of what is missing at the end stands behind it.
        assert!(span.start <= span.end && span.start <= text.len() && span.end <= text.len() + 1, "{problem:?}");
        let place = report.position(problem).expect("it has a span");
        assert!((1..=lines).contains(&place.line) && (place.line..=lines).contains(&place.end_line), "{place:?}");
        assert!(place.column > 0 && place.end_column > 0, "{place:?}");
    }
    for format in [Format::Human, Format::Short] {
        let rendered = report.render(format);
        let unsafe_character = rendered.chars().find(|c| c.is_control() && *c != '\n');
        assert_eq!(unsafe_character, None, "a terminal would obey it:\n{rendered:?}");
        assert!(!rendered.contains("hunter2"), "a value of the environment is shown:\n{rendered}");
    }
    serde_json::from_str::<serde_json::Value>(&report.render(Format::Json)).expect("JSON");
}

//! A report as text: like rustc's for people, one line each for editors, JSON for programs. Of the file only the marked
//! lines are shown, and nothing in them can move the terminal's cursor.

use std::fmt::Write as _;

use serde::Serialize;
use unicode_width::UnicodeWidthChar;

use super::{
    report::{Problem, Report, Severity},
    source::{Span, line_at},
};

/// Longer lines are cut around the mark, in characters.
const LONGEST_LINE: usize = 160;
const TAB_WIDTH: usize = 4;

pub(super) fn human(report: &Report, text: &str) -> String {
    let file = plain(&report.file().display().to_string());
    let mut out = String::new();
    for problem in &report.problems {
        push(&mut out, format_args!("{}[{}]: {}\n", problem.severity.as_str(), problem.code, plain(&problem.message)));
        match (problem.span, report.position(problem)) {
            (Some(span), Some(position)) => {
                let gutter = position.line.to_string().len();
                let (line, mark) = marked_line(text, span);
                push(&mut out, format_args!("{:gutter$}--> {file}:{}:{}\n", "", position.line, position.column));
                push(&mut out, format_args!("{:gutter$} |\n", ""));
                push(&mut out, format_args!("{} | {line}\n", position.line));
                push(&mut out, format_args!("{:gutter$} | {mark}\n", ""));
                if let Some(help) = &problem.help {
                    push(&mut out, format_args!("{:gutter$} |\n{:gutter$} = help: {}\n", "", "", plain(help)));
                }
            }
            _ => {
                push(&mut out, format_args!(" --> {file}\n"));
                if let Some(help) = &problem.help {
                    push(&mut out, format_args!("  = help: {}\n", plain(help)));
                }
            }
        }
        out.push('\n');
    }
    if let Some(summary) = summary(report) {
        let severity = if report.has_errors() { Severity::Error } else { Severity::Warning };
        push(&mut out, format_args!("{}: {file}: {summary}\n", severity.as_str()));
    }
    out
}

pub(super) fn short(report: &Report) -> String {
    let file = plain(&report.file().display().to_string());
    let mut out = String::new();
    for problem in &report.problems {
        push(&mut out, format_args!("{file}"));
        if let Some(position) = report.position(problem) {
            push(&mut out, format_args!(":{}:{}", position.line, position.column));
        }
        let message = plain(&problem.message);
        push(&mut out, format_args!(": {}[{}]: {message}", problem.severity.as_str(), problem.code));
        if let Some(help) = &problem.help {
            push(&mut out, format_args!(" ({})", plain(help)));
        }
        out.push('\n');
    }
    out
}

pub(super) fn json(report: &Report) -> String {
    #[derive(Serialize)]
    struct Object<'a> {
        file: String,
        valid: bool,
        errors: usize,
        warnings: usize,
        problems: Vec<Entry<'a>>,
    }
    #[derive(Serialize)]
    struct Entry<'a> {
        severity: &'a str,
        code: &'a str,
        message: &'a str,
        help: Option<&'a str>,
        file: String,
        line: Option<usize>,
        column: Option<usize>,
        end_line: Option<usize>,
        end_column: Option<usize>,
        path: &'a str,
    }
    let file = report.file().display().to_string();
    let entry = |problem: &'_ Problem| {
        let position = report.position(problem);
        (problem.severity.as_str(), position)
    };
    let problems = report
        .problems
        .iter()
        .map(|problem| {
            let (severity, position) = entry(problem);
            Entry {
                severity,
                code: problem.code,
                message: &problem.message,
                help: problem.help.as_deref(),
                file: file.clone(),
                line: position.map(|at| at.line),
                column: position.map(|at| at.column),
                end_line: position.map(|at| at.end_line),
                end_column: position.map(|at| at.end_column),
                path: &problem.path,
            }
        })
        .collect();
    let object = Object {
        file: file.clone(),
        valid: !report.has_errors(),
        errors: report.count(Severity::Error),
        warnings: report.count(Severity::Warning),
        problems,
    };
    let mut out = serde_json::to_string(&object).expect("strings and numbers are always JSON");
    out.push('\n');
    out
}

/// `3 errors, 1 warning`; `None` where there is nothing to count.
fn summary(report: &Report) -> Option<String> {
    let counted = |count: usize, word: &str| match count {
        0 => None,
        1 => Some(format!("1 {word}")),
        _ => Some(format!("{count} {word}s")),
    };
    let parts: Vec<String> =
        [counted(report.count(Severity::Error), "error"), counted(report.count(Severity::Warning), "warning")]
            .into_iter()
            .flatten()
            .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

/// The line a span begins in, safe to print, and the carets under the span's part of it.
fn marked_line(text: &str, span: Span) -> (String, String) {
    let (line_start, line) = line_at(text, span.start);
    let mark_from = span.start.saturating_sub(line_start);
    let mark_to = span.end.saturating_sub(line_start).max(mark_from + 1);
    // Only what is near the mark is looked at: a line may be the whole of a large file.
    let long = line.chars().nth(LONGEST_LINE).is_some();
    let before = line.get(..line.floor_char_boundary(mark_from)).unwrap_or(line);
    let cut = before.char_indices().rev().nth(LONGEST_LINE / 3 - 1).filter(|_| long).map_or(0, |(at, _)| at);
    let rest = line.get(cut..).unwrap_or_default();

    let (mut shown, mut indent, mut carets) = (String::new(), 0, 0);
    if cut > 0 {
        shown.push_str("...");
        indent += 3;
    }
    for (at, c) in rest.char_indices().take(LONGEST_LINE).map(|(at, c)| (cut + at, c)) {
        let piece = printable(c);
        let width: usize = piece.chars().map(|c| c.width().unwrap_or(0)).sum();
        if at < mark_from {
            indent += width;
        } else if at < mark_to {
            carets += width;
        }
        shown.push_str(&piece);
    }
    if rest.chars().nth(LONGEST_LINE).is_some() {
        shown.push_str("...");
    }
    let mark = format!("{:indent$}{:^<carets$}", "", "", carets = carets.max(1));
    (shown.trim_end().to_owned(), mark)
}

fn printable(c: char) -> String {
    match c {
        '\t' => " ".repeat(TAB_WIDTH),
        _ if moves_cursor(c) => c.escape_unicode().to_string(),
        _ => c.to_string(),
    }
}

/// Control characters, and those that change the direction of text or cannot be seen.
fn moves_cursor(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{ad}' | '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// Text that may come from the file or be the file's name, on one line and without control characters.
pub(super) fn plain(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut out, c| {
        if moves_cursor(c) {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
        out
    })
}

fn push(out: &mut String, text: std::fmt::Arguments<'_>) {
    out.write_fmt(text).expect("a String takes everything");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(text: &str, part: &str) -> (String, String) {
        let start = text.find(part).expect("the part is in the text");
        marked_line(text, Span { start, end: start + part.len() })
    }

    #[test]
    fn tabs_and_wide_characters_keep_the_caret_right() {
        assert_eq!(mark("\ta: x", "x"), ("    a: x".into(), "       ^".into()));
        assert_eq!(mark("\u{65e5}\u{672c}: x", "x"), ("\u{65e5}\u{672c}: x".into(), "      ^".into()));
        assert_eq!(mark("a: \u{65e5}\u{672c}", "\u{65e5}\u{672c}").1, "   ^^^^");
        assert_eq!(mark("a: e\u{301}x y", "y").1, "      ^");
    }

    #[test]
    fn control_characters_are_escaped() {
        let (line, mark) = mark("a\u{1b}[31m: x", "x");
        assert_eq!(line, "a\\u{1b}[31m: x");
        assert_eq!(mark.len(), line.len());
        assert_eq!(plain("a\nb\u{202e}"), "a\\nb\\u{202e}");
    }

    #[test]
    fn a_long_line_is_cut_around_the_mark() {
        let text = format!("{}NEEDLE{}", "a".repeat(500), "b".repeat(500));
        let (line, mark) = mark(&text, "NEEDLE");
        assert!(line.len() <= LONGEST_LINE + 6, "{line}");
        assert_eq!(line.find("NEEDLE"), mark.find('^'));
    }

    #[test]
    fn only_the_first_line_of_a_span_is_shown() {
        assert_eq!(mark("a: [x,\n SECRET]", "[x,\n SECRET]"), ("a: [x,".into(), "   ^^^".into()));
    }
}

//! What is wrong with a configuration file: problems, in the order of their places.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{
    render,
    source::{Lines, Position, Span},
};

/// Whether a problem stops the start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// It does.
    Error,
    /// It does not.
    Warning,
}

impl Severity {
    /// `error` or `warning`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// One thing that is wrong, and what would be right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Whether it stops the start.
    pub severity: Severity,
    /// A stable word for scripts, such as `unknown-key`.
    pub code: &'static str,
    /// One sentence; holds no value that came from the environment.
    pub message: String,
    /// What to write instead.
    pub help: Option<String>,
    /// The key's path, such as `upstreams.app.backends[0].weight`; empty for the file as a whole.
    pub path: String,
    /// The place in the file; `None` where the file as a whole is meant.
    pub span: Option<Span>,
}

/// How a report is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people, with the marked line. The default.
    #[default]
    Human,
    /// One JSON object.
    Json,
    /// One line for each problem.
    Short,
}

/// A format that does not exist.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown format; write human, short or json")]
pub struct UnknownFormat;

impl std::str::FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(text: &str) -> Result<Self, UnknownFormat> {
        match text {
            "human" => Ok(Self::Human),
            "json" => Ok(Self::Json),
            "short" => Ok(Self::Short),
            _ => Err(UnknownFormat),
        }
    }
}

/// Nobody reads more, and what is made of a report must stay small.
const MOST_PROBLEMS: usize = 1_000;

/// Keeps the first problems, errors before warnings, and says how many more there are.
fn bound(problems: &mut Vec<Problem>) {
    let errors = problems.iter().filter(|problem| problem.severity == Severity::Error).count();
    let (mut errors_left, mut warnings_left) = (MOST_PROBLEMS, MOST_PROBLEMS.saturating_sub(errors));
    let all = problems.len();
    problems.retain(|problem| {
        let left = match problem.severity {
            Severity::Error => &mut errors_left,
            Severity::Warning => &mut warnings_left,
        };
        let kept = *left > 0;
        *left = left.saturating_sub(1);
        kept
    });
    if problems.len() < all {
        let message = format!("{} more problems are not shown", all - problems.len());
        let severity = if errors > MOST_PROBLEMS { Severity::Error } else { Severity::Warning };
        let help = "begin with the first of these".to_owned();
        let (code, path) = ("too-many-problems", String::new());
        problems.push(Problem { severity, code, message, help: Some(help), path, span: None });
    }
}

/// All problems of one file, at most some thousand, sorted by place. Holds the file's text to print marked lines; neither `Debug` nor any
/// rendering shows another part of it.
#[derive(Clone)]
pub struct Report {
    /// The problems; empty where all is well.
    pub problems: Vec<Problem>,
    /// Whether a file could not be read just now, so that the same configuration may be good a moment later.
    pub passing: bool,
    file: PathBuf,
    text: Arc<str>,
    lines: Lines,
}

impl Report {
    pub(super) fn new(file: &Path, text: &str, mut problems: Vec<Problem>) -> Self {
        // Problems of the whole file come first. An alias is decoded at each use: say the same thing once.
        problems.sort_by_key(|problem| problem.span);
        let mut seen = std::collections::HashSet::new();
        problems.retain(|problem| seen.insert((problem.span, problem.code, problem.message.clone())));
        bound(&mut problems);
        Self { problems, passing: false, file: file.to_owned(), text: text.into(), lines: Lines::of(text) }
    }

    /// It is one of a file that could not be read just now, or not.
    pub(super) fn passing(self, passing: bool) -> Self {
        Self { passing, ..self }
    }

    /// The file, as it was named.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Whether any problem stops the start.
    pub fn has_errors(&self) -> bool {
        self.count(Severity::Error) > 0
    }

    /// How many problems of one severity there are.
    pub fn count(&self, severity: Severity) -> usize {
        self.problems.iter().filter(|problem| problem.severity == severity).count()
    }

    /// Line and column of a problem of this report; `None` for the file as a whole.
    pub fn position(&self, problem: &Problem) -> Option<Position> {
        problem.span.map(|span| self.lines.position(span, &self.text))
    }

    /// The report as text, every line ended; empty for an empty report but in [`Format::Json`].
    pub fn render(&self, format: Format) -> String {
        match format {
            Format::Human => render::human(self, &self.text),
            Format::Json => render::json(self),
            Format::Short => render::short(self),
        }
    }
}

impl fmt::Debug for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Report").field("file", &self.file).field("problems", &self.problems).finish_non_exhaustive()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.render(Format::Human).trim_end())
    }
}

impl std::error::Error for Report {}

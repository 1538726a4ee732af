//! How a command fails: one text for people and one exit code for programs.

use std::{fmt::Write as _, io, time::Duration};

use serde::Deserialize;

use super::Exit;

/// Why a command did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)] // the texts say it
pub(super) enum Failure {
    /// The connection ended before the answer.
    #[error("the instance broke off: {0}")]
    BrokenOff(String),
    #[error("{0}")]
    Deadline(String),
    /// The system did not let us.
    #[error("{0}")]
    Denied(String),
    /// The report of `check`.
    #[error("the configuration is not valid; nothing was changed")]
    Invalid { report: String, problems: Option<serde_json::Value> },
    #[error("no running instance{}", places(.tried))]
    NoInstance { tried: Vec<(String, String)>, help: String },
    #[error("cannot print: {0}")]
    Print(#[from] io::Error),
    #[error("{}", .0.text())]
    Refused(Box<Problem>),
    #[error("{0}")]
    Unexpected(String),
    #[error("{0}")]
    Usage(String),
}

/// `application/problem+json`, as far as it is printed.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Problem {
    /// Ends with `#` and the word of its kind.
    #[serde(rename = "type")]
    pub(super) kind: String,
    pub(super) title: String,
    pub(super) status: u16,
    pub(super) detail: String,
    pub(super) field: Option<String>,
    pub(super) hint: Option<String>,
    pub(super) report: Option<String>,
    pub(super) problems: Option<serde_json::Value>,
}

impl Problem {
    /// Whether it was refused only because another process answers in a moment.
    pub(super) fn is_being_replaced(&self) -> bool {
        self.kind.ends_with("#being-replaced")
    }

    fn text(&self) -> String {
        match (self.title.is_empty(), self.detail.is_empty()) {
            (true, true) => format!("refused with status {}", self.status),
            (true, false) => self.detail.clone(),
            (false, true) => self.title.clone(),
            (false, false) if self.detail.starts_with(&self.title) => self.detail.clone(),
            (false, false) => format!("{}: {}", self.title, self.detail),
        }
    }
}

impl Failure {
    /// An answer other than what was asked for.
    pub(super) fn of_answer(status: u16, body: &[u8]) -> Self {
        let Ok(mut problem) = serde_json::from_slice::<Problem>(body) else {
            return Self::Unexpected(format!("the instance answered with status {status} and no reason"));
        };
        if problem.status == 0 {
            problem.status = status;
        }
        if let Some(report) = problem.report.take_if(|_| status == 422) {
            return Self::Invalid { report, problems: problem.problems };
        }
        if status == 500 || status < 400 {
            return Self::Unexpected(format!("the instance answered with status {status}: {}", problem.text()));
        }
        Self::Refused(Box::new(problem))
    }

    /// A refusal that is known without asking.
    pub(super) fn refused(title: impl Into<String>, hint: Option<String>) -> Self {
        Self::Refused(Box::new(Problem { title: title.into(), hint, ..Problem::default() }))
    }

    /// No answer came within a time.
    pub(super) fn no_answer(within: Duration) -> Self {
        Self::Deadline(format!("no answer within {} s; the instance may still do what was asked", within.as_secs()))
    }

    /// The code.
    pub(super) fn exit(&self) -> Exit {
        match self {
            Self::Deadline(_) => Exit::DeadlinePassed,
            Self::Denied(_) | Self::Refused(_) => Exit::Refused,
            Self::Invalid { .. } => Exit::InvalidConfiguration,
            Self::NoInstance { .. } => Exit::NoInstance,
            // A reader that has gone (`| head`) has seen what it wanted.
            Self::Print(error) if error.kind() == io::ErrorKind::BrokenPipe => Exit::Ok,
            Self::BrokenOff(_) | Self::Print(_) | Self::Unexpected(_) => Exit::Internal,
            Self::Usage(_) => Exit::Usage,
        }
    }

    /// What people read; empty where there is nothing to say.
    pub(super) fn render(&self) -> String {
        if self.exit() == Exit::Ok {
            return String::new();
        }
        let mut text = match self {
            Self::Invalid { report, .. } => format!("{}\n", report.trim_end()),
            _ => String::new(),
        };
        let _ = writeln!(text, "error: {self}");
        match self {
            Self::NoInstance { help, .. } => _ = writeln!(text, "  help: {help}"),
            Self::Refused(problem) => {
                if let Some(field) = &problem.field {
                    let _ = writeln!(text, "  field: {field}");
                }
                if let Some(report) = &problem.report {
                    for line in report.lines() {
                        let _ = writeln!(text, "  | {line}");
                    }
                }
                if let Some(hint) = &problem.hint {
                    let _ = writeln!(text, "  help: {hint}");
                }
            }
            _ => {}
        }
        text
    }
}

fn places(tried: &[(String, String)]) -> String {
    match tried {
        [] => String::new(),
        [(place, why)] => format!(" at {place}: {why}"),
        several => several.iter().fold("; tried".to_owned(), |text, (place, why)| format!("{text}\n  {place}: {why}")),
    }
}

//! Queries, read strictly: only the parameters that a route names, each once, each of the kind it is.

use std::time::Duration;

use super::problem::{Kind, Problem, shown};
use crate::types::parse_duration;

/// A parameter of a route.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Parameter {
    /// In the query.
    pub(super) name: &'static str,
    /// For people.
    pub(super) text: &'static str,
    /// What its values are.
    pub(super) kind: ParameterKind,
}

/// What the values of a parameter are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum ParameterKind {
    /// A whole number from 1 to this.
    Count(u64),
    /// `15s`, from and to these seconds.
    Duration(u64, u64),
    /// `true` or `false`
    Flag,
    /// At most so many characters, none of them a control character.
    Text(usize),
}

const DAY: u64 = 24 * 3600;

/// Whether a change outlives the process.
pub(super) const PERSIST: Parameter =
    Parameter { name: "persist", text: "false: ends with the process; default true", kind: ParameterKind::Flag };
/// Also where nobody would be left.
pub(super) const FORCE: Parameter = Parameter {
    name: "force",
    text: "true: also where no backend would be ready any more; default false",
    kind: ParameterKind::Flag,
};
/// Why somebody does it.
pub(super) const REASON: Parameter =
    Parameter { name: "reason", text: "why, for the events and the log", kind: ParameterKind::Text(200) };
/// A lease.
pub(super) const TTL: Parameter = Parameter {
    name: "ttl",
    text: "the backend is gone unless this is repeated within this time; default: for good",
    kind: ParameterKind::Duration(1, DAY),
};
/// How long requests may take to finish.
pub(super) const DRAIN: Parameter = Parameter {
    name: "drain",
    text: "how long its requests may take to finish; default 30s",
    kind: ParameterKind::Duration(0, DAY),
};
/// Says what would change.
pub(super) const DRY_RUN: Parameter =
    Parameter { name: "dry_run", text: "true: only say what would change; default false", kind: ParameterKind::Flag };
/// Goes back unless confirmed.
pub(super) const CONFIRM: Parameter = Parameter {
    name: "confirm",
    text: "go back after this time unless confirmed; default: keep it",
    kind: ParameterKind::Duration(1, DAY),
};
/// Goes back early.
pub(super) const ABORT_IF: Parameter = Parameter {
    name: "abort_if",
    text: "go back at once when this becomes so, as `5xx > 2%`; needs `confirm`",
    kind: ParameterKind::Text(64),
};
/// At once.
pub(super) const NOW: Parameter = Parameter {
    name: "now",
    text: "true: leave at once, without waiting for requests; default false",
    kind: ParameterKind::Flag,
};
/// How many.
pub(super) const LIMIT: Parameter =
    Parameter { name: "limit", text: "how many at most; default 100", kind: ParameterKind::Count(1000) };

/// The query of one request.
#[derive(Debug, Default)]
pub(super) struct Query(Vec<(&'static Parameter, String)>);

impl Query {
    /// Reads a query that has none but these parameters.
    ///
    /// # Errors
    /// Another parameter, one twice, a text that is not UTF-8, a value that is not possible.
    pub(super) fn parse(text: Option<&str>, known: &'static [Parameter]) -> Result<Self, Problem> {
        let mut query = Self::default();
        for pair in text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let decode = |text: &str| percent_decode(&text.replace('+', " "));
            let (Some(name), Some(value)) = (decode(name), decode(value)) else {
                return Err(Problem::new(Kind::BadQuery, "the query is not percent-encoded UTF-8"));
            };
            let Some(parameter) = known.iter().find(|parameter| parameter.name == name) else {
                let names: Vec<&str> = known.iter().map(|parameter| parameter.name).collect();
                return Err(Problem::unknown(Kind::BadQuery, "parameter", shown(&name), &name, &names));
            };
            if query.0.iter().any(|(other, _)| other.name == name) {
                let detail = format!("the parameter `{name}` stands twice");
                return Err(Problem { field: Some(name.into()), ..Problem::new(Kind::BadQuery, detail) });
            }
            parameter.check(&value)?;
            query.0.push((parameter, value));
        }
        Ok(query)
    }

    /// A parameter's text.
    pub(super) fn text(&self, parameter: &Parameter) -> Option<&str> {
        self.0.iter().find(|(other, _)| other.name == parameter.name).map(|(_, value)| value.as_str())
    }

    /// Whether a parameter says yes; `default` where it is left out.
    pub(super) fn flag(&self, parameter: &Parameter, default: bool) -> bool {
        self.text(parameter).map_or(default, |value| value == "true")
    }

    /// A parameter's duration.
    pub(super) fn duration(&self, parameter: &Parameter) -> Option<Duration> {
        self.text(parameter).and_then(|value| parse_duration(value).ok())
    }

    /// A parameter's number.
    pub(super) fn count(&self, parameter: &Parameter) -> Option<usize> {
        self.text(parameter).and_then(|value| value.parse().ok())
    }
}

impl Parameter {
    fn check(&self, value: &str) -> Result<(), Problem> {
        let wrong = |needed: String| {
            Err(Problem::value(self.name, format!("`{}` is not a value of `{}`", shown(value), self.name)).hint(needed))
        };
        match self.kind {
            ParameterKind::Count(most) => match value.parse::<u64>() {
                Ok(count) if (1..=most).contains(&count) => Ok(()),
                _ => wrong(format!("write a whole number from 1 to {most}")),
            },
            ParameterKind::Duration(least, most) => match parse_duration(value) {
                Ok(time) if (Duration::from_secs(least)..=Duration::from_secs(most)).contains(&time) => Ok(()),
                Ok(_) => wrong(format!("write a time from {least}s to {}h", most / 3600)),
                Err(error) => wrong(error.to_string()),
            },
            ParameterKind::Flag if matches!(value, "true" | "false") => Ok(()),
            ParameterKind::Flag => wrong("write true or false".into()),
            ParameterKind::Text(most) if value.chars().count() > most => {
                wrong(format!("write at most {most} characters"))
            }
            ParameterKind::Text(_) if value.chars().any(char::is_control) => wrong("write it in one line".into()),
            ParameterKind::Text(_) => Ok(()),
        }
    }
}

/// The text behind `%41`; `None` where it is not well-formed or not UTF-8.
pub(super) fn percent_decode(text: &str) -> Option<String> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                (digit()? << 4) | digit()?
            }
            byte => byte,
        });
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Parameter] = &[TTL, FORCE, REASON, LIMIT];

    #[test]
    fn values_are_decoded_and_typed() {
        let query = Query::parse(Some("ttl=1m30s&force=true&reason=disk+full%20%26c&limit=7"), KNOWN).expect("a query");
        assert_eq!(query.duration(&TTL), Some(Duration::from_secs(90)));
        assert!(query.flag(&FORCE, false) && query.flag(&PERSIST, true));
        assert_eq!(query.text(&REASON), Some("disk full &c"));
        assert_eq!(query.count(&LIMIT), Some(7));
        assert!(Query::parse(None, &[]).is_ok() && Query::parse(Some(""), &[]).is_ok());
    }

    #[test]
    fn what_is_not_known_stands_twice_or_is_out_of_range_is_refused() {
        let long = format!("reason={}", "x".repeat(201));
        for (text, kind, field) in [
            ("tll=5s", Kind::BadQuery, Some("tll")),
            ("ttl=5s&ttl=5s", Kind::BadQuery, Some("ttl")),
            ("reason=%zz", Kind::BadQuery, None),
            ("reason=%ff", Kind::BadQuery, None),
            ("reason=%4", Kind::BadQuery, None),
            ("ttl=5", Kind::InvalidValue, Some("ttl")),
            ("ttl=999ms", Kind::InvalidValue, Some("ttl")),
            ("ttl=25h", Kind::InvalidValue, Some("ttl")),
            ("ttl", Kind::InvalidValue, Some("ttl")),
            ("force=yes", Kind::InvalidValue, Some("force")),
            ("limit=0", Kind::InvalidValue, Some("limit")),
            ("reason=a%0ab", Kind::InvalidValue, Some("reason")),
            (&long, Kind::InvalidValue, Some("reason")),
        ] {
            let problem = Query::parse(Some(text), KNOWN).expect_err(text);
            assert_eq!((problem.kind, problem.field.as_deref()), (kind, field), "{text}");
        }
    }
}

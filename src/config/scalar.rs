//! Scalars: variables, numbers, words, durations, sizes, names, paths, header fields.

use std::{path::PathBuf, time::Duration};

use http::{HeaderName, HeaderValue};

use super::{
    decode::{Decoder, Item, Named},
    tree::{Value, plain_kind},
};
use crate::types::{ByteSize, Name, Percent, UnitError, Weight, parse_duration};

/// A scalar with its variables replaced.
pub(super) struct Text {
    /// The value; not for messages, it may be a secret.
    pub(super) value: String,
    /// May be a number or a truth value.
    plain: bool,
    from_env: bool,
}

impl Decoder<'_> {
    /// Any scalar as text; `expected` says what should stand there.
    pub(super) fn scalar(&mut self, item: &Item<'_>, expected: &str) -> Option<Text> {
        let Value::Scalar { text, plain } = &item.node.value else {
            self.wrong_type(item, expected, "");
            return None;
        };
        const ESCAPE: &str = "write $${ for the text ${";
        match expand(text, self.env) {
            Ok((value, from_env)) => Some(Text { value, plain: *plain, from_env }),
            Err(VariableFault::Malformed) => {
                let message = "a variable is not written as `${NAME}`";
                self.error(item, "bad-variable", message, &format!("letters, digits and _; {ESCAPE}"));
                None
            }
            Err(VariableFault::Unset(name)) => {
                let message = format!("the environment variable `{name}` is not set");
                self.error(item, "unset-variable", message, &format!("set it, or {ESCAPE}"));
                None
            }
        }
    }

    /// A string: a number or truth value without quotes is an error.
    pub(super) fn string(&mut self, item: &Item<'_>) -> Option<String> {
        let text = self.scalar(item, "a string")?;
        if text.plain && !text.from_env && plain_kind(&text.value) != "a string" {
            self.wrong_type(item, "a string", &format!("put it in quotes: \"{}\"", item.node.shown()));
            return None;
        }
        Some(text.value)
    }

    /// Whether the value is the bare word, variables replaced. Reports nothing.
    pub(super) fn is_word(&self, item: &Item<'_>, word: &str) -> bool {
        match &item.node.value {
            Value::Scalar { text, .. } => expand(text, self.env).is_ok_and(|(text, _)| text == word),
            _ => false,
        }
    }

    /// `true` or `false`.
    pub(super) fn boolean(&mut self, item: &Item<'_>) -> Option<bool> {
        let text = self.scalar(item, "true or false")?;
        match text.value.as_str() {
            "true" | "True" | "TRUE" if text.plain => Some(true),
            "false" | "False" | "FALSE" if text.plain => Some(false),
            _ => {
                self.wrong_type(item, "true or false", "write true or false, without quotes");
                None
            }
        }
    }

    /// A whole number within a range.
    pub(super) fn integer(&mut self, item: &Item<'_>, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let (low, high) = (*range.start(), *range.end());
        let help = match (low, high) {
            (0, u64::MAX) => "write a whole number".to_owned(),
            (_, u64::MAX) => format!("write a whole number from {low} up"),
            _ => format!("write a whole number from {low} to {high}"),
        };
        let text = self.scalar(item, "a whole number")?;
        let digits = text.value.strip_prefix(['-', '+']).unwrap_or(&text.value);
        let whole = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        if !text.plain || !whole {
            let help = if whole { "write it without quotes" } else { &help };
            self.wrong_type(item, "a whole number", help);
            return None;
        }
        let number = text.value.parse::<u64>().ok().filter(|number| range.contains(number));
        if number.is_none() {
            self.error(item, "out-of-range", format!("`{}` is out of range", item.node.shown()), &help);
        }
        number
    }

    /// A whole number that fits `u32`.
    pub(super) fn count(&mut self, item: &Item<'_>, range: std::ops::RangeInclusive<u32>) -> Option<u32> {
        let number = self.integer(item, u64::from(*range.start())..=u64::from(*range.end()))?;
        u32::try_from(number).ok()
    }

    /// A weight, 0 to 1000.
    pub(super) fn weight(&mut self, item: &Item<'_>) -> Option<Weight> {
        self.integer(item, 0..=u64::from(Weight::MAX)).and_then(|n| u16::try_from(n).ok()).and_then(Weight::new)
    }

    /// A duration of more than nothing.
    pub(super) fn duration(&mut self, item: &Item<'_>) -> Option<Duration> {
        let read = self.unit(item, "a duration such as 5s", "s", parse_duration)?;
        if read.is_zero() {
            self.error(item, "zero-duration", "a duration of 0 would always be over", "write 1ms or more");
            return None;
        }
        Some(read)
    }

    /// A size with its unit.
    pub(super) fn size(&mut self, item: &Item<'_>) -> Option<ByteSize> {
        self.unit(item, "a size such as 32KiB", "B", ByteSize::parse)
    }

    /// A percentage with its sign.
    pub(super) fn percent(&mut self, item: &Item<'_>) -> Option<Percent> {
        self.unit(item, "a percentage such as 20%", "%", Percent::parse)
    }

    fn unit<T>(
        &mut self,
        item: &Item<'_>,
        expected: &str,
        unit: &str,
        parse: fn(&str) -> Result<T, UnitError>,
    ) -> Option<T> {
        let text = self.scalar(item, expected)?;
        let shown = item.node.shown();
        let (code, message, form) = match parse(&text.value) {
            Ok(value) => return Some(value),
            Err(UnitError::MissingUnit(form)) => {
                let help = format!("did you mean `{shown}{unit}`? Write {form}");
                self.error(item, "missing-unit", format!("`{shown}` has no unit"), &help);
                return None;
            }
            Err(UnitError::Malformed(form)) => ("bad-unit", format!("`{shown}` is not {expected}"), form),
            Err(UnitError::OutOfRange(form)) => ("out-of-range", format!("`{shown}` is out of range"), form),
        };
        self.error(item, code, message, &format!("write {form}"));
        None
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&mut self, item: &Item<'_>, words: &[(&str, T)]) -> Option<T> {
        let list = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
        let text = self.scalar(item, &format!("one of {list}"))?;
        let found = words.iter().find(|(word, _)| *word == text.value).map(|(_, value)| *value);
        if found.is_none() {
            let near = self.did_you_mean(&text.value, words.iter().map(|(word, _)| *word));
            let help = near.unwrap_or_else(|| format!("write one of {list}"));
            self.error(item, "unknown-value", format!("`{}` is not known here", item.node.shown()), &help);
        }
        found
    }

    /// A file or directory; a relative one begins at the configuration's directory.
    pub(super) fn path(&mut self, item: &Item<'_>) -> Option<PathBuf> {
        let text = self.string(item)?;
        if text.is_empty() || text.contains('\0') {
            self.error(item, "bad-path", format!("`{}` is not a path", item.node.shown()), "");
            return None;
        }
        let path = self.base.join(text);
        // Absolute, because a daemon changes its directory.
        Some(std::path::absolute(&path).unwrap_or(path))
    }

    /// A name as a value.
    pub(super) fn name(&mut self, item: &Item<'_>) -> Option<Name> {
        let text = self.scalar(item, "a name")?.value;
        if is_name(&text) {
            return Some(text.into());
        }
        self.error(item, "bad-name", format!("`{}` is not a name", item.node.shown()), NAME_FORM);
        None
    }

    /// A name as a key.
    pub(super) fn key_name(&mut self, named: &Named<'_>) -> Option<Name> {
        if is_name(named.name) {
            return Some(named.name.into());
        }
        self.error_at(named.span, &named.item.path, "bad-name", "the key is not a name", NAME_FORM);
        None
    }

    /// A backend's id, which may look like an address.
    pub(super) fn id(&mut self, item: &Item<'_>) -> Option<Name> {
        let text = self.scalar(item, "an id")?.value;
        if is_id(&text) {
            return Some(text.into());
        }
        let help = "1 to 100 letters, digits and . _ - : / [ ]";
        self.error(item, "bad-name", format!("`{}` is not an id", item.node.shown()), help);
        None
    }

    /// A header field's name as a value.
    pub(super) fn header_name(&mut self, item: &Item<'_>) -> Option<HeaderName> {
        let text = self.string(item)?;
        let name = HeaderName::from_bytes(text.as_bytes()).ok();
        if name.is_none() {
            self.error(item, "bad-header-name", format!("`{}` is not a field name", item.node.shown()), HEADER_FORM);
        }
        name
    }

    /// A header field's name as a key.
    pub(super) fn header_key(&mut self, named: &Named<'_>) -> Option<HeaderName> {
        let name = HeaderName::from_bytes(named.name.as_bytes()).ok();
        if name.is_none() {
            let message = "the key is not a field name";
            self.error_at(named.span, &named.item.path, "bad-header-name", message, HEADER_FORM);
        }
        name
    }

    /// A header field's value, marked as sensitive where it comes from the environment.
    pub(super) fn header_value(&mut self, item: &Item<'_>) -> Option<HeaderValue> {
        let text = self.string(item)?;
        let mut value = HeaderValue::from_str(&text).ok().filter(|_| text.trim() == text);
        if let (Some(value), Value::Scalar { text, .. }) = (&mut value, &item.node.value) {
            value.set_sensitive(expand(text, self.env).is_ok_and(|(_, from_env)| from_env));
        }
        if value.is_none() {
            let help = "visible ASCII, no line break, no blank at either end";
            self.error(item, "bad-header-value", "not a value that a header field can have", help);
        }
        value
    }
}

const LONGEST_NAME: usize = 100;
const NAME_FORM: &str = "1 to 100 letters, digits and . _ -";
const HEADER_FORM: &str = "letters, digits and hyphens";

/// Names go into metrics, logs and URLs.
fn is_name(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-".contains(&b);
    (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(allowed)
}

/// What an `id` of a backend may be.
pub(super) fn is_id(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"._-:/[]".contains(&b);
    (1..=LONGEST_NAME).contains(&text.len()) && text.bytes().all(allowed)
}

/// Why variables could not be replaced.
enum VariableFault {
    Malformed,
    Unset(String),
}

/// Replaces `${NAME}`, and `$${` by `${`; tells whether anything came from the environment.
fn expand(text: &str, env: &dyn Fn(&str) -> Option<String>) -> Result<(String, bool), VariableFault> {
    let (mut out, mut rest, mut from_env) = (String::new(), text, false);
    while let Some((before, inside)) = rest.split_once("${") {
        if let Some(escaped) = before.strip_suffix('$') {
            out.push_str(escaped);
            out.push_str("${");
            rest = inside;
            continue;
        }
        let (name, after) = inside.split_once('}').ok_or(VariableFault::Malformed)?;
        if !is_variable(name) {
            return Err(VariableFault::Malformed);
        }
        out.push_str(before);
        out.push_str(&env(name).ok_or_else(|| VariableFault::Unset(name.to_owned()))?);
        from_env = true;
        rest = after;
    }
    out.push_str(rest);
    Ok((out, from_env))
}

fn is_variable(name: &str) -> bool {
    !name.is_empty()
        && !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

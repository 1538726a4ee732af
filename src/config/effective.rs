//! A model as text of the file's own form, with every default written out. Secrets are never in it: certificates, keys
//! and tokens are paths, header fields that look like secrets or come from the environment are blotted out.

use std::borrow::Cow;

use super::{
    model::Model,
    outline::{Entries, Part, sections},
    tree::plain_kind,
};

#[cfg(test)]
mod tests;

const HEAD: &str = "# The effective configuration, every default written out; paths are absolute.\n";
/// In place of a value that may be a secret.
pub(super) const BLOT: &str = "\"(not shown)\"";
/// Longer lists and mappings take a line for each entry.
const LINE: usize = 110;

/// The configuration as YAML. Reading it gives the same model again, but for header fields whose value is not shown.
pub fn effective(model: &Model) -> String {
    let mut out = HEAD.to_owned();
    for section in sections(model) {
        entry(&mut out, 0, section.key, &section.part);
    }
    out
}

/// A key and its value, at an indentation.
fn entry(out: &mut String, indent: usize, key: &str, part: &Part<'_>) {
    if matches!(part, Part::Content(_)) {
        return;
    }
    out.extend(std::iter::repeat_n(' ', indent));
    out.push_str(&quoted(key));
    out.push(':');
    match part {
        Part::Map(entries) if !entries.is_empty() => {
            out.push('\n');
            block(out, indent + 2, entries);
        }
        Part::Items(items) if !items.items.is_empty() => {
            out.push('\n');
            for (_, item) in &items.items {
                list_item(out, indent + 2, item);
            }
        }
        Part::List(items) if flow(part).len() > LINE => {
            out.push('\n');
            for item in items {
                list_item(out, indent + 2, item);
            }
        }
        _ => {
            out.push(' ');
            out.push_str(&flow(part));
            out.push('\n');
        }
    }
}

fn block(out: &mut String, indent: usize, entries: &Entries<'_>) {
    for (key, part) in entries {
        entry(out, indent, key, part);
    }
}

fn list_item(out: &mut String, indent: usize, item: &Part<'_>) {
    let start = out.len();
    match item {
        Part::Map(entries) if flow(item).len() > LINE || entries.iter().any(|(_, part)| !part.is_scalar()) => {
            block(out, indent + 2, entries);
            // The first key stands behind the hyphen.
            out.replace_range(start + indent..start + indent + 1, "-");
        }
        _ => {
            out.extend(std::iter::repeat_n(' ', indent));
            out.push_str("- ");
            out.push_str(&flow(item));
            out.push('\n');
        }
    }
}

/// A value on one line.
pub(super) fn flow(part: &Part<'_>) -> String {
    let join = |parts: Vec<String>| parts.join(", ");
    match part {
        Part::Bare(word) => word.to_string(),
        Part::Content(_) => String::new(),
        Part::File(path, _) => scalar(path),
        Part::Hidden(_) => BLOT.to_owned(),
        Part::Items(items) => format!("[{}]", join(items.items.iter().map(|(_, item)| flow(item)).collect())),
        Part::List(items) => format!("[{}]", join(items.iter().map(flow).collect())),
        Part::Map(entries) => {
            let shown = entries.iter().filter(|(_, part)| !matches!(part, Part::Content(_)));
            let shown: Vec<String> = shown.map(|(key, part)| format!("{}: {}", quoted(key), flow(part))).collect();
            if shown.is_empty() { "{}".to_owned() } else { format!("{{ {} }}", join(shown)) }
        }
        Part::Null => "null".to_owned(),
        Part::Text(text) => scalar(text),
    }
}

/// A string as a value, in which `${` would be a variable.
fn scalar(text: &str) -> String {
    if text.contains("${") { quoted(&text.replace("${", "$${")).into_owned() } else { quoted(text).into_owned() }
}

/// Text in quotes, but where a reader of YAML 1.2 takes it for a string without them.
fn quoted(text: &str) -> Cow<'_, str> {
    let starts = text.starts_with(|c: char| c.is_ascii_alphanumeric() || c == '/' || c == '_');
    let inside = |b: u8| b.is_ascii_alphanumeric() || b"/_.:+%@-".contains(&b);
    let special = text.eq_ignore_ascii_case("null") || plain_kind(text) != "a string";
    if starts && text.bytes().all(inside) && !text.ends_with(':') && !special {
        return Cow::Borrowed(text);
    }
    let mut out = String::from('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            ' '..='~' => out.push(c),
            _ if c.is_alphanumeric() => out.push(c),
            _ => out.push_str(&format!("\\U{:08X}", u32::from(c))),
        }
    }
    out.push('"');
    Cow::Owned(out)
}

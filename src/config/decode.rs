//! Small combinators from nodes to values. A decoder reads all of a mapping before it gives up, so that every problem is
//! found in one run; `None` always means that the problem has been reported.

use std::path::Path;

use super::{
    files::{Files, System},
    report::{Problem, Severity},
    source::Span,
    tree::{Node, Value},
};

/// The keys of one mapping, as an operator may write them.
pub(super) struct Table {
    /// What the mapping describes, for messages: `a listener`.
    pub(super) what: &'static str,
    pub(super) keys: &'static [Key],
}

/// One key: its name, its default in words, and what may stand below it.
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) default: &'static str,
    pub(super) below: Below,
}

/// What may stand below a key.
pub(super) enum Below {
    /// A Pingora key that is checked but has no effect, and why.
    Ignored(Ignored, &'static str),
    /// A list of mappings.
    List(&'static Table),
    /// Mappings by a name that the operator gives.
    Map(&'static Table),
    /// A mapping.
    Table(&'static Table),
    /// A scalar, a list of scalars, or free keys.
    Value,
}

/// The type of a Pingora key without effect.
#[derive(Clone, Copy)]
pub(super) enum Ignored {
    /// `true` or `false`.
    Boolean,
    /// A whole number or null.
    Count,
    /// `linear`, `log` or null.
    Scale,
}

/// A key with a plain value.
pub(super) const fn value(name: &'static str, default: &'static str) -> Key {
    Key { name, default, below: Below::Value }
}

/// A key with a mapping.
pub(super) const fn table(name: &'static str, default: &'static str, table: &'static Table) -> Key {
    Key { name, default, below: Below::Table(table) }
}

/// A key with a list of mappings.
pub(super) const fn list(name: &'static str, default: &'static str, table: &'static Table) -> Key {
    Key { name, default, below: Below::List(table) }
}

/// A key with mappings by name.
pub(super) const fn map(name: &'static str, default: &'static str, table: &'static Table) -> Key {
    Key { name, default, below: Below::Map(table) }
}

/// A Pingora key that rrlb checks and does not use.
pub(super) const fn ignored(name: &'static str, kind: Ignored, why: &'static str) -> Key {
    Key { name, default: "no effect", below: Below::Ignored(kind, why) }
}

impl Table {
    /// Every key's path below `prefix`, with its default.
    pub(super) fn paths(&self, prefix: &str, out: &mut Vec<(String, &'static str)>) {
        for key in self.keys {
            let path = join(prefix, key.name);
            out.push((path.clone(), key.default));
            match key.below {
                Below::List(table) => table.paths(&format!("{path}[]"), out),
                Below::Map(table) => table.paths(&format!("{path}.*"), out),
                Below::Table(table) => table.paths(&path, out),
                Below::Ignored(..) | Below::Value => {}
            }
        }
    }
}

/// A node and the path of keys that leads to it.
#[derive(Clone, Debug)]
pub(super) struct Item<'t> {
    pub(super) node: &'t Node,
    pub(super) path: String,
}

impl Item<'_> {
    /// Whether the value is plain or quoted text.
    pub(super) fn is_scalar(&self) -> bool {
        matches!(self.node.value, Value::Scalar { .. })
    }

    /// Whether the value is exactly this text.
    pub(super) fn is_word(&self, word: &str) -> bool {
        matches!(&self.node.value, Value::Scalar { text, .. } if **text == *word)
    }

    /// Whether the value is a mapping.
    pub(super) fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }
}

/// A mapping whose keys have been checked against a table.
pub(super) struct Fields<'t> {
    item: Item<'t>,
    table: &'static Table,
}

impl<'t> Fields<'t> {
    /// The value of a key of the table, if it is there.
    pub(super) fn get(&self, name: &str) -> Option<Item<'t>> {
        debug_assert!(self.table.keys.iter().any(|key| key.name == name), "{name} is not in the table");
        let Value::Map(entries) = &self.item.node.value else { return None };
        let entry = entries.iter().find(|entry| &*entry.key == name)?;
        Some(Item { node: &entry.node, path: join(&self.item.path, name) })
    }

    /// The value of a key that must be there.
    pub(super) fn required(&self, d: &mut Decoder<'_>, name: &str) -> Option<Item<'t>> {
        let found = self.get(name);
        if found.is_none() {
            let message = format!("{} needs `{name}`", self.table.what);
            d.error_at(self.item.node.head(), &self.item.path, "missing-key", message, &format!("add `{name}: ...`"));
        }
        found
    }

    /// The mapping itself.
    pub(super) fn item(&self) -> &Item<'t> {
        &self.item
    }
}

/// A key that the operator chose, and its value.
pub(super) struct Named<'t> {
    pub(super) name: &'t str,
    pub(super) span: Span,
    pub(super) item: Item<'t>,
}

/// Collects problems, replaces variables, knows the base directory.
pub(super) struct Decoder<'a> {
    /// The file that is read.
    pub(super) file: &'a Path,
    /// Relative paths begin here: at its directory.
    pub(super) base: &'a Path,
    /// The environment.
    pub(super) env: &'a dyn Fn(&str) -> Option<String>,
    /// The files that are named.
    pub(super) files: &'a dyn Files,
    /// What was found so far.
    pub(super) problems: Vec<Problem>,
    /// Names that may still be compared for suggestions.
    comparisons: usize,
}

/// Suggestions are for files with a few typing errors. A generated file with thousands of wrong names is told the first.
const MOST_COMPARISONS: usize = 100_000;

impl<'a> Decoder<'a> {
    /// Goes on from the problems of the tree.
    pub(super) fn new(file: &'a Path, env: &'a dyn Fn(&str) -> Option<String>, problems: Vec<Problem>) -> Self {
        let base = file.parent().unwrap_or(Path::new(""));
        Self { file, base, env, files: &System, problems, comparisons: MOST_COMPARISONS }
    }
}

impl Decoder<'_> {
    /// The help for a name that is close to a valid one.
    pub(super) fn did_you_mean<'n>(&mut self, name: &str, valid: impl Iterator<Item = &'n str>) -> Option<String> {
        nearest(name, valid, &mut self.comparisons).map(|best| format!("did you mean `{best}`?"))
    }

    /// Reports an error at a value. An empty `help` is none.
    pub(super) fn error(&mut self, item: &Item<'_>, code: &'static str, message: impl Into<String>, help: &str) {
        self.error_at(item.node.mark(), &item.path, code, message, help);
    }

    /// Reports an error at a place.
    pub(super) fn error_at(
        &mut self,
        span: Span,
        path: &str,
        code: &'static str,
        message: impl Into<String>,
        help: &str,
    ) {
        self.push(Severity::Error, span, path, code, message.into(), help);
    }

    /// Reports a warning at a place.
    pub(super) fn warn_at(
        &mut self,
        span: Span,
        path: &str,
        code: &'static str,
        message: impl Into<String>,
        help: &str,
    ) {
        self.push(Severity::Warning, span, path, code, message.into(), help);
    }

    fn push(&mut self, severity: Severity, span: Span, path: &str, code: &'static str, message: String, help: &str) {
        let help = (!help.is_empty()).then(|| help.to_owned());
        self.problems.push(Problem { severity, code, message, help, path: path.to_owned(), span: Some(span) });
    }

    /// Reports a value of the wrong type; silent where it was reported before.
    pub(super) fn wrong_type(&mut self, item: &Item<'_>, expected: &str, help: &str) {
        if !matches!(item.node.value, Value::Broken) {
            let message = format!("expected {expected}, found {}", item.node.kind());
            self.error(item, "wrong-type", message, help);
        }
    }

    /// The mapping at `item`, its keys checked against the table.
    pub(super) fn fields<'t>(&mut self, item: &Item<'t>, table: &'static Table) -> Option<Fields<'t>> {
        let Value::Map(entries) = &item.node.value else {
            self.wrong_type(item, &format!("a mapping for {}", table.what), &valid_keys(table));
            return None;
        };
        for entry in entries.iter() {
            if is_free(&entry.key) || table.keys.iter().any(|key| key.name == &*entry.key) {
                continue;
            }
            let message = format!("unknown key `{}` in {}", cut(&entry.key), table.what);
            let near = self.did_you_mean(&entry.key, table.keys.iter().map(|key| key.name));
            let help = near.unwrap_or_else(|| valid_keys(table));
            let path = join(&item.path, &entry.key);
            self.error_at(entry.key_span, &path, "unknown-key", message, &help);
        }
        Some(Fields { item: item.clone(), table })
    }

    /// The entries of a mapping whose keys the operator chose; `x-*` left out.
    pub(super) fn named<'t>(&mut self, item: &Item<'t>, expected: &str) -> Option<Vec<Named<'t>>> {
        let mut named = self.entries(item, expected)?;
        named.retain(|named| !is_free(named.name));
        Some(named)
    }

    /// As [`Self::named`], for header fields, where `x-*` is a name like any other.
    pub(super) fn entries<'t>(&mut self, item: &Item<'t>, expected: &str) -> Option<Vec<Named<'t>>> {
        let Value::Map(entries) = &item.node.value else {
            self.wrong_type(item, expected, "");
            return None;
        };
        let named = |entry: &'t super::tree::Entry| Named {
            name: &entry.key,
            span: entry.key_span,
            item: Item { node: &entry.node, path: join(&item.path, &entry.key) },
        };
        Some(entries.iter().map(named).collect())
    }

    /// The items of a list.
    pub(super) fn items<'t>(&mut self, item: &Item<'t>, expected: &str) -> Option<Vec<Item<'t>>> {
        let Value::List(nodes) = &item.node.value else {
            self.wrong_type(item, expected, "");
            return None;
        };
        let path = |at: usize| format!("{}[{at}]", item.path);
        Some(nodes.iter().enumerate().map(|(at, node)| Item { node, path: path(at) }).collect())
    }

    /// The items of a list, or the one scalar that stands in its place.
    pub(super) fn one_or_more<'t>(&mut self, item: &Item<'t>, expected: &str) -> Option<Vec<Item<'t>>> {
        if item.is_scalar() { Some(vec![item.clone()]) } else { self.items(item, expected) }
    }

    /// As [`Self::one_or_more`], but an empty list is an error.
    pub(super) fn at_least_one<'t>(&mut self, item: &Item<'t>, expected: &str, help: &str) -> Option<Vec<Item<'t>>> {
        let items = self.one_or_more(item, expected)?;
        if items.is_empty() {
            self.error(item, "empty-list", "an empty list matches nothing", help);
            return None;
        }
        Some(items)
    }

    /// Decodes every item; `None` if any failed, but only after all were tried.
    pub(super) fn all<'t, T>(
        &mut self,
        items: Option<Vec<Item<'t>>>,
        mut decode: impl FnMut(&mut Self, &Item<'t>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let decoded: Vec<Option<T>> = items?.iter().map(|item| decode(self, item)).collect();
        decoded.into_iter().collect()
    }
}

/// `parent.key`
pub(super) fn join(parent: &str, key: &str) -> String {
    let key = cut(key);
    if parent.is_empty() { key } else { format!("{parent}.{key}") }
}

/// The first 80 characters of a text of one line.
pub(super) fn cut(text: &str) -> String {
    if text.contains(['\n', '\r']) { "...".to_owned() } else { text.chars().take(80).collect() }
}

/// Keys that belong to the operator, at every level: anchors, notes.
fn is_free(key: &str) -> bool {
    key.starts_with("x-")
}

fn valid_keys(table: &Table) -> String {
    let names: Vec<&str> = table.keys.iter().map(|key| key.name).collect();
    let few = names.len() <= 12;
    if few { format!("valid here: {}", names.join(", ")) } else { String::new() }
}

/// The help for a name that is close to a valid one.
pub fn did_you_mean<'n>(name: &str, valid: impl Iterator<Item = &'n str>) -> Option<String> {
    nearest(name, valid, &mut { MOST_COMPARISONS }).map(|best| format!("did you mean `{best}`?"))
}

/// The valid name that is close to this one. `budget` is how many may still be compared.
fn nearest<'n>(name: &str, valid: impl Iterator<Item = &'n str>, budget: &mut usize) -> Option<&'n str> {
    let simple = |text: &str| text.to_ascii_lowercase().replace(['-', ' ', '.'], "_");
    let wanted = simple(name);
    if wanted.len() > 100 {
        return None;
    }
    let tolerated = (wanted.chars().count() / 3).clamp(1, 4);
    let mut best = None;
    for valid in valid {
        *budget = budget.checked_sub(1)?;
        // A character takes 1 to 4 bytes; names that differ more in length cannot be close.
        if valid.len().abs_diff(wanted.len()) <= 4 * tolerated {
            let found = (strsim::osa_distance(&wanted, &simple(valid)), valid);
            best = Some(best.map_or(found, |best| found.min(best)));
        }
    }
    best.filter(|(distance, _)| *distance <= tolerated).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn near_names_are_suggested_and_far_ones_are_not() {
        let valid = ["threads", "timeouts", "tls"];
        let suggest = |name: &str| nearest(name, valid.into_iter(), &mut 3);
        assert_eq!(suggest("thread"), Some("threads"));
        assert_eq!(suggest("TimeOut"), Some("timeouts"));
        assert_eq!(suggest("tsl"), Some("tls"));
        assert_eq!(suggest("workers"), None);
    }

    #[test]
    fn suggestions_end_with_their_budget() {
        let mut budget = 5;
        let mut suggest = || nearest("thread", ["tls", "timeouts", "threads"].into_iter(), &mut budget);
        assert_eq!(suggest(), Some("threads"));
        assert_eq!(suggest(), None);
    }
}

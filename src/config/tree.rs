//! YAML text to a tree of nodes with spans. Decides what is YAML's business: aliases (with a bound), merge keys,
//! duplicate keys, one document. Knows no key of rrlb's.

use std::{
    collections::{HashMap, HashSet},
    rc::Rc,
};

use granit_parser::{ErrorKind, Event, Parser, ScalarStyle, ScanError, StructureStyle, Tag};

use super::{
    report::{Problem, Severity},
    source::{Lines, Span, line_at},
};

/// Nodes that aliases may add in all: far above any use, far below what hurts.
const MAX_ALIASED_NODES: usize = 20_000;
/// Collections in collections, aliases followed; bounds recursion.
const MAX_DEPTH: usize = 48;

/// A value and its place.
#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) value: Value,
    /// The value; empty for a block collection.
    span: Span,
    /// The key it stands behind.
    label: Option<Span>,
    /// The value's text goes over several lines.
    several_lines: bool,
    size: usize,
    depth: usize,
}

/// What a node is. Shared parts make an alias cheap.
#[derive(Clone, Debug)]
pub(super) enum Value {
    /// Already reported; decoders pass over it in silence.
    Broken,
    List(Rc<[Node]>),
    Map(Rc<[Entry]>),
    Null,
    /// Text before `${VAR}` is replaced; `plain` is without quotes, so it may be a number.
    Scalar {
        text: Rc<str>,
        plain: bool,
    },
}

/// A key and its value.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: Rc<str>,
    pub(super) key_span: Span,
    pub(super) node: Node,
}

impl Node {
    fn new(value: Value, span: Span) -> Self {
        let children = match &value {
            Value::List(items) => items.iter().map(|node| (node.size, node.depth)).collect(),
            Value::Map(entries) => entries.iter().map(|entry| (entry.node.size, entry.node.depth)).collect(),
            _ => Vec::new(),
        };
        let size = children.iter().fold(1, |sum: usize, (size, _)| sum.saturating_add(*size));
        let depth = children.iter().map(|(_, depth)| depth + 1).max().unwrap_or(0);
        Self { value, span, label: None, several_lines: false, size, depth }
    }

    /// What to underline when something is wrong with the value: the value where it stands on a line, else its key.
    pub(super) fn mark(&self) -> Span {
        if self.span.end > self.span.start && !self.several_lines {
            return self.span;
        }
        self.head()
    }

    /// What to underline when something is missing in the value: its key, else its first part.
    pub(super) fn head(&self) -> Span {
        let first = || match &self.value {
            Value::Map(entries) => entries.first().map(|entry| entry.key_span),
            Value::List(items) => items.first().map(Node::head),
            _ => None,
        };
        self.label.or_else(first).unwrap_or(self.span)
    }

    /// What the value is, in a reader's words.
    pub(super) fn kind(&self) -> &'static str {
        match &self.value {
            Value::Broken => "something broken",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
            Value::Null => "nothing",
            Value::Scalar { text, plain: true } => plain_kind(text),
            Value::Scalar { .. } => "a string",
        }
    }

    /// The text as written, for messages: short, and only where it stands on the line that is marked.
    pub(super) fn shown(&self) -> String {
        match &self.value {
            Value::Scalar { text, .. } if !self.several_lines => {
                let cut: String = text.chars().take(80).collect();
                if cut.len() < text.len() { format!("{cut}...") } else { cut }
            }
            _ => "...".to_owned(),
        }
    }
}

/// What YAML's core schema makes of text without quotes.
pub(super) fn plain_kind(text: &str) -> &'static str {
    let digits = text.strip_prefix(['-', '+']).unwrap_or(text);
    let numeric = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.');
    match text {
        "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => "true or false",
        _ if !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit()) => "a number",
        _ if text.strip_prefix("0x").is_some_and(|hex| u64::from_str_radix(hex, 16).is_ok()) => "a number",
        _ if text.strip_prefix("0o").is_some_and(|octal| u64::from_str_radix(octal, 8).is_ok()) => "a number",
        _ if numeric && text.parse::<f64>().is_ok() => "a decimal number",
        _ => "a string",
    }
}

/// The root of the file's one document; `None` where there is none or it cannot be read, which is then in `problems`.
/// `empty_help` says what to write in an empty file.
pub(super) fn read(text: &str, empty_help: &str, problems: &mut Vec<Problem>) -> Option<Node> {
    let options = granit_parser::options! { emit_comments: false, emit_unresolved_aliases: true, flow_nesting_limit: MAX_DEPTH, block_nesting_limit: MAX_DEPTH };
    let mut builder = Builder { text, problems, open: Vec::new(), anchors: HashMap::new(), aliased: 0, root: None };
    let mut documents = 0;
    for event in Parser::new_from_str_with_options(text, options) {
        let (event, span) = match event {
            Ok((event, span)) => (event, builder.span(span)),
            Err(error) => {
                builder.syntax_error(&error);
                return None;
            }
        };
        if matches!(event, Event::DocumentStart(..)) {
            documents += 1;
            if documents > 1 {
                builder.problem(span, "several-documents", "a second YAML document begins here", "keep one document");
                break;
            }
        }
        builder.take(event, span)?;
    }
    let root = builder.root.take();
    if root.is_none() && documents == 0 {
        problems.push(whole_file("empty-file", "the file is empty", empty_help));
    }
    root
}

pub(super) fn whole_file(code: &'static str, message: impl Into<String>, help: &str) -> Problem {
    let help = (!help.is_empty()).then(|| help.to_owned());
    Problem { severity: Severity::Error, code, message: message.into(), help, path: String::new(), span: None }
}

struct Builder<'a> {
    text: &'a str,
    problems: &'a mut Vec<Problem>,
    open: Vec<Open>,
    anchors: HashMap<usize, Node>,
    aliased: usize,
    root: Option<Node>,
}

/// A collection whose end has not been seen.
enum Open {
    List {
        start: Span,
        anchor: usize,
        items: Vec<Node>,
    },
    Map {
        start: Span,
        anchor: usize,
        entries: Vec<Entry>,
        seen: HashMap<Rc<str>, Span>,
        key: Option<Key>,
        merges: Vec<Node>,
    },
}

/// A key whose value has not been seen.
enum Key {
    Bad,
    Merge,
    Name(Rc<str>, Span),
}

impl Builder<'_> {
    /// `None` ends the reading; why is in `problems`.
    fn take(&mut self, event: Event<'_>, span: Span) -> Option<()> {
        match event {
            Event::Scalar(text, style, anchor, tag) => {
                let plain = matches!(style, ScalarStyle::Plain) && !tag.as_deref().is_some_and(is_string_tag);
                let null = plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL");
                let value = if null { Value::Null } else { Value::Scalar { text: (*text).into(), plain } };
                let mut node = Node::new(value, span);
                node.several_lines = self.text.get(span.start..span.end).is_none_or(|raw| raw.contains(['\n', '\r']));
                self.check_tag(tag.as_deref(), span);
                self.anchors.insert(anchor, node.clone());
                self.place(node)?;
            }
            Event::SequenceStart(style, anchor, tag) => {
                self.check_tag(tag.as_deref(), span);
                let start = opening(style, span);
                self.open.push(Open::List { start, anchor, items: Vec::new() });
            }
            Event::MappingStart(style, anchor, tag) => {
                self.check_tag(tag.as_deref(), span);
                let (entries, seen, merges) = (Vec::new(), HashMap::new(), Vec::new());
                self.open.push(Open::Map { start: opening(style, span), anchor, entries, seen, key: None, merges });
            }
            Event::SequenceEnd | Event::MappingEnd => self.close(span)?,
            Event::Alias(id) => {
                let Some(mut node) = self.anchors.get(&id).cloned() else {
                    self.problem(span, "recursive-alias", "an alias inside the value that it names", "");
                    return self.place(Node::new(Value::Broken, span));
                };
                node.label = None;
                self.aliased = self.aliased.saturating_add(node.size);
                if self.aliased > MAX_ALIASED_NODES {
                    let message = format!("aliases make the file larger than {MAX_ALIASED_NODES} values");
                    self.problem(span, "too-many-aliases", message, "write the values out, or use fewer aliases");
                    return None;
                }
                self.place(node)?;
            }
            Event::UnresolvedAlias(name) => {
                let message = format!("no anchor `&{name}` stands before this alias");
                self.problem(span, "unknown-alias", message, "");
                self.place(Node::new(Value::Broken, span))?;
            }
            _ => {}
        }
        Some(())
    }

    fn close(&mut self, end: Span) -> Option<()> {
        let (node, anchor) = match self.open.pop()? {
            Open::List { start, anchor, items } => (self.collection(Value::List(items.into()), start, end), anchor),
            Open::Map { start, anchor, mut entries, merges, .. } => {
                let mut own = entries.iter().map(|entry| Rc::clone(&entry.key)).collect();
                for merge in &merges {
                    self.merge(merge, &mut own, &mut entries);
                }
                (self.collection(Value::Map(entries.into()), start, end), anchor)
            }
        };
        if node.depth > MAX_DEPTH {
            let message = format!("more than {MAX_DEPTH} collections inside each other");
            self.problem(node.head(), "too-deep", message, "");
            return None;
        }
        self.anchors.insert(anchor, node.clone());
        self.place(node)
    }

    fn collection(&self, value: Value, start: Span, end: Span) -> Node {
        let flow = start.end > start.start;
        let span = if flow { Span { start: start.start, end: end.end.max(start.end) } } else { start };
        Node::new(value, span)
    }

    /// Puts a finished node where it belongs: the root, an item, a key or a value.
    fn place(&mut self, mut node: Node) -> Option<()> {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::List { items, .. }) => items.push(node),
            Some(Open::Map { entries, seen, key, merges, .. }) => match key.take() {
                None => match &node.value {
                    Value::Scalar { text, plain: true } if &**text == "<<" => *key = Some(Key::Merge),
                    Value::Scalar { text, .. } => {
                        let text = Rc::clone(text);
                        let first = seen.get(&text).copied();
                        let (span, shown) = (node.span, node.shown());
                        *key = Some(if first.is_some() { Key::Bad } else { Key::Name(text, span) });
                        if let Some(first) = first {
                            let line = Lines::of(self.text).position(first, self.text).line;
                            let message = format!("the key `{shown}` stands here twice; first on line {line}");
                            self.problem(span, "duplicate-key", message, "keep one of the two");
                        }
                    }
                    Value::Broken => *key = Some(Key::Bad),
                    _ => {
                        *key = Some(Key::Bad);
                        let (kind, span) = (node.kind(), node.head());
                        self.problem(span, "bad-key", format!("a key must be a string, not {kind}"), "");
                    }
                },
                Some(Key::Merge) => merges.push(node),
                Some(Key::Name(name, span)) => {
                    node.label = Some(span);
                    seen.insert(Rc::clone(&name), span);
                    entries.push(Entry { key: name, key_span: span, node });
                }
                Some(Key::Bad) => {}
            },
        }
        Some(())
    }

    /// `<<`: keys that the mapping does not have itself; of several mappings the first that has a key wins.
    fn merge(&mut self, from: &Node, own: &mut HashSet<Rc<str>>, into: &mut Vec<Entry>) {
        match &from.value {
            Value::Map(entries) => {
                for entry in entries.iter() {
                    if own.insert(Rc::clone(&entry.key)) {
                        into.push(entry.clone());
                    }
                }
            }
            Value::List(items) if items.iter().all(|item| matches!(item.value, Value::Map(_))) => {
                for item in items.iter() {
                    self.merge(item, own, into);
                }
            }
            Value::Broken => {}
            _ => {
                let message = format!("`<<` takes a mapping or a list of mappings, not {}", from.kind());
                self.problem(from.mark(), "bad-merge", message, "write `<<: *anchor`");
            }
        }
    }

    fn check_tag(&mut self, tag: Option<&Tag>, span: Span) {
        if let Some(tag) = tag.filter(|tag| !tag.is_yaml_core_schema()) {
            let message = format!("the tag `{}` has no meaning here", super::render::plain(&tag.original()));
            self.problem(span, "unknown-tag", message, "take it out");
        }
    }

    fn problem(&mut self, span: Span, code: &'static str, message: impl Into<String>, help: &str) {
        self.problems.push(Problem { span: Some(span), ..whole_file(code, message, help) });
    }

    fn span(&self, span: granit_parser::Span) -> Span {
        let start = span.start.byte_offset().unwrap_or(self.text.len());
        Span { start, end: span.end.byte_offset().unwrap_or(start).max(start) }
    }

    fn syntax_error(&mut self, error: &ScanError) {
        let at = error.marker().byte_offset().unwrap_or(self.text.len());
        let (line_start, line) = line_at(self.text, at);
        // An error at the end of a line is found on the next, possibly empty one.
        let span = Span { start: at, end: at + 1 };
        if let Some((from, to)) = unquoted_ipv6(line).filter(|(from, _)| line_start + from <= at) {
            let span = Span { start: line_start + from, end: line_start + to };
            let address = line.get(from..to).unwrap_or("[::]:80");
            let help = format!("quote it: \"{address}\"");
            self.problem(span, "unquoted-address", "an address with brackets needs quotes", &help);
            return;
        }
        let before = self.text.get(line_start..at).unwrap_or("");
        let help = if before.trim_end().ends_with('$') {
            "inside [] and {} a variable needs quotes: \"${NAME}\""
        } else {
            match error.kind() {
                ErrorKind::TabInBlockIndentation => "indent with spaces",
                ErrorKind::MappingValueNotAllowed => {
                    "a second `:` in one line; check the indentation, or quote a value that holds `: `"
                }
                ErrorKind::UnclosedQuotedScalar => "close the quote that begins here",
                _ => "",
            }
        };
        self.problem(span, "syntax", error.info(), help);
    }
}

/// Where `[::]:80` and the like stand in a line without a quote before them.
fn unquoted_ipv6(line: &str) -> Option<(usize, usize)> {
    for (from, _) in line.match_indices('[') {
        let rest = line.get(from + 1..)?;
        let close = rest.find(']')?;
        let inside = rest.get(..close)?;
        let after = rest.get(close + 1..)?;
        let digits = after.strip_prefix(':').map_or(0, |port| port.bytes().take_while(u8::is_ascii_digit).count());
        let quoted = line.get(..from).is_some_and(|before| before.ends_with(['"', '\'']));
        let address = inside.contains(':') && inside.chars().all(|c| c.is_ascii_hexdigit() || c == ':' || c == '.');
        if address && digits > 0 && !quoted {
            return Some((from, from + 1 + close + 1 + 1 + digits));
        }
    }
    None
}

/// The bracket of a flow collection; an empty span for a block.
fn opening(style: StructureStyle, span: Span) -> Span {
    match style {
        StructureStyle::Flow => Span { start: span.start, end: span.end.max(span.start + 1) },
        StructureStyle::Block => Span { start: span.start, end: span.start },
    }
}

fn is_string_tag(tag: &Tag) -> bool {
    tag.is_yaml_core_schema_tag("str")
}

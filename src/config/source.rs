//! Places in a configuration file: byte spans, and the lines and columns people count.

/// A range of bytes in the file's text; the end is exclusive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// The byte after the last; never before `start`.
    pub end: usize,
}

/// Where a span begins and ends for people: lines and columns from 1, columns in characters, the end column exclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    /// Line of the first character.
    pub line: usize,
    /// Column of the first character.
    pub column: usize,
    /// Line of the end.
    pub end_line: usize,
    /// Column after the last character.
    pub end_column: usize,
}

/// Where the lines of a text begin, so that each of many positions is found quickly.
#[derive(Clone, Debug)]
pub(super) struct Lines {
    starts: Vec<usize>,
}

impl Lines {
    pub(super) fn of(text: &str) -> Self {
        let after_breaks = text.match_indices('\n').map(|(at, _)| at + 1);
        Self { starts: std::iter::once(0).chain(after_breaks).collect() }
    }

    /// The position of a span; a span outside the text is moved to its end.
    pub(super) fn position(&self, span: Span, text: &str) -> Position {
        let (line, column) = self.line_and_column(span.start, text);
        let (end_line, end_column) = self.line_and_column(span.end.max(span.start), text);
        Position { line, column, end_line, end_column }
    }

    /// The line of a byte, from 1.
    pub(super) fn line(&self, offset: usize) -> usize {
        self.starts.partition_point(|start| *start <= offset).max(1)
    }

    fn line_and_column(&self, offset: usize, text: &str) -> (usize, usize) {
        let offset = floor_char_boundary(text, offset);
        let line = self.line(offset);
        let start = line.checked_sub(1).and_then(|at| self.starts.get(at)).copied().unwrap_or(0);
        let column = text.get(start..offset).unwrap_or("").chars().count() + 1;
        (line, column)
    }
}

/// The line that holds a byte, without its line break, and the line's first byte.
pub(super) fn line_at(text: &str, offset: usize) -> (usize, &str) {
    let offset = floor_char_boundary(text, offset);
    let start = text.get(..offset).and_then(|before| before.rfind('\n')).map_or(0, |at| at + 1);
    let rest = text.get(start..).unwrap_or("");
    let line = rest.split('\n').next().unwrap_or("");
    (start, line.strip_suffix('\r').unwrap_or(line))
}

fn floor_char_boundary(text: &str, offset: usize) -> usize {
    let mut at = offset.min(text.len());
    while !text.is_char_boundary(at) {
        at -= 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_count_characters() {
        let text = "a: 1\nf\u{fc}: [x]\n";
        let start = text.find('[').expect("it is there");
        let position = Lines::of(text).position(Span { start, end: start + 3 }, text);
        assert_eq!(position, Position { line: 2, column: 5, end_line: 2, end_column: 8 });
        assert_eq!(line_at(text, start), (5, "f\u{fc}: [x]"));
    }

    #[test]
    fn a_span_outside_the_text_is_its_end() {
        let position = Lines::of("ab\n").position(Span { start: 90, end: 95 }, "ab\n");
        assert_eq!((position.line, position.column), (2, 1));
        assert_eq!(line_at("ab\r\n", 1), (0, "ab"));
        assert_eq!(line_at("", 9), (0, ""));
    }
}

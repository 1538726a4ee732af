//! Aligned columns for people, times and spans as people read them, and text from elsewhere made safe for a terminal.

use std::borrow::Cow;

use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use crate::telemetry::access_log::date;

/// A colour with a meaning.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Paint {
    Bad,
    Good,
    #[default]
    None,
    Warn,
}

/// One place in a table.
#[derive(Clone, Debug, Default)]
pub(super) struct Cell {
    text: String,
    paint: Paint,
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self { text: clean_line(&text.into()).into_owned(), paint: Paint::None }
    }
}

impl Cell {
    /// With a colour.
    pub(super) fn painted(text: &str, paint: Paint) -> Self {
        Self { paint, ..Self::from(text) }
    }
}

/// To which side a column's text goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Left,
    Right,
}

/// Rows below a head.
#[derive(Clone, Debug)]
pub(super) struct Table {
    columns: &'static [(&'static str, Side)],
    rows: Vec<Vec<Cell>>,
}

impl Table {
    /// Without rows.
    pub(super) fn new(columns: &'static [(&'static str, Side)]) -> Self {
        Self { columns, rows: Vec::new() }
    }

    /// Adds a row, with a cell for each column.
    pub(super) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// Whether there is nothing in it.
    pub(super) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The text; columns that are empty in every row are left out.
    pub(super) fn render(&self, colour: bool) -> String {
        let head: Vec<Cell> = self.columns.iter().map(|(name, _)| Cell::from(*name)).collect();
        let text = |row: &'_ Vec<Cell>, at: usize| row.get(at).map_or(0, |cell| cell.text.width());
        let used: Vec<(usize, Side, usize)> = self
            .columns
            .iter()
            .enumerate()
            .map(|(at, (name, side))| {
                (at, *side, name.width(), self.rows.iter().map(|row| text(row, at)).max().unwrap_or(0))
            })
            .filter(|(.., widest)| *widest > 0)
            .map(|(at, side, name, widest)| (at, side, name.max(widest)))
            .collect();
        let mut out = String::new();
        for row in [&head].into_iter().chain(&self.rows) {
            let mut line = String::new();
            for (at, side, width) in &used {
                let cell = row.get(*at).cloned().unwrap_or_default();
                let blank = " ".repeat(width.saturating_sub(cell.text.width()));
                let shown = paint(&cell.text, cell.paint, colour);
                match side {
                    Side::Left => line.extend([shown.as_str(), &blank, "  "]),
                    Side::Right => line.extend([blank.as_str(), &shown, "  "]),
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

/// The text in its colour.
pub(super) fn paint(text: &str, paint: Paint, colour: bool) -> String {
    let code = match paint {
        Paint::Bad => "31",
        Paint::Good => "32",
        Paint::Warn => "33",
        Paint::None => return text.to_owned(),
    };
    if colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

/// One line: what could move a cursor, or is a line feed, is replaced. Reasons and names come from other people.
pub(super) fn clean_line(text: &str) -> Cow<'_, str> {
    if text.contains(char::is_control) {
        return text.replace(char::is_control, "\u{fffd}").into();
    }
    text.into()
}

/// Several lines, as [`clean_line`].
pub(super) fn clean(text: &str) -> Cow<'_, str> {
    let harmful = |c: char| c.is_control() && c != '\n' && c != '\t';
    if text.contains(harmful) { text.replace(harmful, "\u{fffd}").into() } else { text.into() }
}

/// `1 request`, `2 requests`.
pub(super) fn count(number: u64, one: &str) -> String {
    if number == 1 { format!("1 {one}") } else { format!("{number} {one}s") }
}

/// `12 s`, `3 min 20 s`, `5 h 10 min`, `4 d 2 h`.
pub(super) fn span(seconds: u64) -> String {
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min {} s", seconds % 60),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// A moment in milliseconds since 1970 as `2026-01-02 03:04:05` in UTC; a text as it is.
pub(super) fn moment(value: &Value) -> String {
    match value {
        Value::Number(number) => number.as_u64().map_or_else(|| number.to_string(), moment_of),
        Value::String(text) => text.clone(),
        _ => String::new(),
    }
}

/// As [`moment`].
pub(super) fn moment_of(millis: u64) -> String {
    let seconds = millis / 1000;
    let (year, month, day) = date(seconds / 86_400);
    let (hour, minute, second) = (seconds / 3600 % 24, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    const COLUMNS: &[(&str, Side)] = &[("ID", Side::Left), ("WEIGHT", Side::Right), ("NOTE", Side::Left)];

    #[test]
    fn columns_are_aligned_by_what_is_seen_and_empty_ones_left_out() {
        let mut table = Table::new(COLUMNS);
        table.row(vec!["世界".into(), "1".into(), "".into()]);
        table.row(vec![Cell::painted("abcdef", Paint::Bad), "1000".into(), "".into()]);
        assert_eq!(table.render(false), "ID      WEIGHT\n世界         1\nabcdef    1000\n");
        assert!(table.render(true).contains("\x1b[31mabcdef\x1b[0m    1000\n"));
    }

    #[test]
    fn nothing_from_elsewhere_reaches_the_terminal_as_a_command() {
        let mut table = Table::new(COLUMNS);
        table.row(vec!["a\x1b[2J".into(), "1".into(), "x\ny\u{9b}".into()]);
        let text = table.render(true);
        assert!(!text.contains(['\x1b', '\u{9b}']) && text.lines().count() == 2, "{text:?}");
        assert_eq!(clean("a: 1\n\tb\x07"), "a: 1\n\tb\u{fffd}");
    }

    #[test]
    fn times_are_written_for_people() {
        assert_eq!([59, 60, 3_725, 90_000].map(span), ["59 s", "1 min 0 s", "1 h 2 min", "1 d 1 h"].map(str::to_owned));
        assert_eq!(moment_of(1_700_000_000_999), "2023-11-14 22:13:20");
        assert_eq!([count(1, "request"), count(3, "request")], ["1 request", "3 requests"]);
    }
}

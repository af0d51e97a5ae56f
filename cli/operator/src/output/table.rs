//! Tables as kubectl draws them: no borders, three spaces between columns, one line a row. On a terminal the last column
//! gives way, which is the one with words in it; in a pipe nothing is trimmed.

use comfy_table::{Cell as Drawn, Color, ColumnConstraint, ContentArrangement, Row};

const GUTTER: u16 = 3;
/// Below this, trimming the last column leaves nothing to read.
const LAST_COLUMN: u16 = 12;

/// Text, and what it means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cell {
    pub(crate) text: String,
    color: Option<Color>,
}

impl Cell {
    pub(crate) fn plain(text: impl ToString) -> Self {
        // One row is one line, and no service can move the operator's cursor.
        let text = text.to_string().replace(char::is_control, " ");
        Self { text, color: None }
    }

    /// `-` where there is nothing.
    pub(crate) fn maybe(text: Option<impl ToString>) -> Self {
        text.map_or_else(|| Self::plain("-"), Self::plain)
    }

    pub(crate) fn good(text: impl ToString) -> Self {
        Self { color: Some(Color::Green), ..Self::plain(text) }
    }

    pub(crate) fn careful(text: impl ToString) -> Self {
        Self { color: Some(Color::Yellow), ..Self::plain(text) }
    }

    pub(crate) fn bad(text: impl ToString) -> Self {
        Self { color: Some(Color::Red), ..Self::plain(text) }
    }
}

/// Rows under headers.
#[derive(Debug, Default)]
pub(crate) struct Table {
    header: Option<Vec<String>>,
    rows: Vec<Vec<Cell>>,
}

impl Table {
    pub(crate) fn new(header: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { header: Some(header.into_iter().map(Into::into).collect()), rows: Vec::new() }
    }

    pub(crate) fn without_header() -> Self {
        Self::default()
    }

    pub(crate) fn row(&mut self, cells: Vec<Cell>) {
        self.rows.push(cells);
    }

    /// The table as text, each line ended, trimmed to `width` where one is given.
    pub(crate) fn draw(&self, width: Option<u16>) -> String {
        if self.header.is_none() && self.rows.is_empty() {
            return String::new();
        }
        let mut table = comfy_table::Table::new();
        table
            .load_style(comfy_table::presets::NOTHING)
            .set_truncation_indicator("…")
            .enforce_styling()
            .style_text_only();
        if let Some(header) = &self.header {
            table.set_header(one_line(header.iter().map(|title| Drawn::new(title.to_uppercase()))));
        }
        for row in &self.rows {
            table.add_row(one_line(row.iter().map(|cell| match cell.color {
                Some(color) => Drawn::new(&cell.text).fg(color),
                None => Drawn::new(&cell.text),
            })));
        }
        let widths = table.column_max_content_widths();
        let columns = widths.len();
        for column in table.column_iter_mut() {
            column.set_padding((0, if column.index + 1 < columns { GUTTER } else { 0 }));
        }
        fit(&mut table, &widths, width);
        let mut text = String::new();
        for line in table.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Keeps every column but the last as wide as its content, and lets the last have the rest; where that leaves too little,
/// all give way.
fn fit(table: &mut comfy_table::Table, widths: &[u16], width: Option<u16>) {
    let Some(width) = width else {
        table.set_content_arrangement(ContentArrangement::Disabled);
        return;
    };
    table.set_content_arrangement(ContentArrangement::Dynamic).set_width(width);
    let Some((_, kept)) = widths.split_last() else { return };
    let taken: u16 = kept.iter().map(|column| column.saturating_add(GUTTER)).fold(0, u16::saturating_add);
    if taken.saturating_add(LAST_COLUMN) <= width {
        for column in table.column_iter_mut().take(kept.len()) {
            column.set_constraint(ColumnConstraint::ContentWidth);
        }
    }
}

fn one_line(cells: impl Iterator<Item = Drawn>) -> Row {
    let mut row = Row::from(cells);
    row.max_height(1);
    row
}

#[cfg(test)]
mod tests {
    use super::*;

    fn services() -> Table {
        let mut table = Table::new(["name", "state", "reason"]);
        table.row(vec![Cell::plain("orders"), Cell::good("ready"), Cell::plain("")]);
        table.row(vec![
            Cell::plain("inventory-with-a-long-name"),
            Cell::bad("failed"),
            Cell::plain("health check: connection refused on 127.0.0.1:20014\nand another line of words that go on"),
        ]);
        table
    }

    fn plain(text: &str) -> String {
        anstream::adapter::strip_str(text).to_string()
    }

    #[test]
    fn a_pipe_gets_everything() {
        insta::assert_snapshot!(plain(&services().draw(None)), @r"
        NAME                         STATE    REASON
        orders                       ready
        inventory-with-a-long-name   failed   health check: connection refused on 127.0.0.1:20014 and another line of words that go on
        ");
    }

    #[test]
    fn a_terminal_gets_one_line_a_row() {
        let text = services().draw(Some(60));
        assert!(text.contains("\u{1b}["), "states are coloured");
        insta::assert_snapshot!(plain(&text), @r"
        NAME                         STATE    REASON
        orders                       ready
        inventory-with-a-long-name   failed   health check:…
        ");
    }
}

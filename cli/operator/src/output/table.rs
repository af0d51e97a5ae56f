//! Tables as kubectl draws them: no borders, three spaces between columns, one line a row. On a terminal the widest
//! columns give way, which are the ones with words in them; in a pipe nothing is trimmed.

use comfy_table::{Cell as Drawn, Color, ColumnConstraint, ContentArrangement, Row, Width};
use unicode_width::UnicodeWidthStr;

const GUTTER: u16 = 3;
/// Below this, trimming a column leaves nothing to read.
const NARROW: u16 = 12;

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
        Self { color: Some(Color::DarkGreen), ..Self::plain(text) }
    }

    pub(crate) fn careful(text: impl ToString) -> Self {
        Self { color: Some(Color::DarkYellow), ..Self::plain(text) }
    }

    pub(crate) fn bad(text: impl ToString) -> Self {
        Self { color: Some(Color::DarkRed), ..Self::plain(text) }
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

    /// The same for what is named elsewhere.
    pub(crate) fn without_first_column(mut self) -> Self {
        for row in &mut self.rows {
            row.remove(0);
        }
        if let Some(header) = &mut self.header {
            header.remove(0);
        }
        self
    }

    /// Whether nothing has to give way at `width`.
    pub(crate) fn fits(&self, width: Option<u16>) -> bool {
        let text = self.draw(None);
        let text = anstream::adapter::strip_str(&text).to_string();
        width.is_none_or(|width| text.lines().all(|line| line.width() <= width.into()))
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
        let widths = fit(&table.column_max_content_widths(), width);
        table.set_content_arrangement(ContentArrangement::Dynamic).set_width(u16::MAX);
        for (column, width) in table.column_iter_mut().zip(&widths) {
            let gutter = if column.index + 1 < widths.len() { GUTTER } else { 0 };
            column.set_padding((0, gutter));
            column.set_constraint(match width {
                0 => ColumnConstraint::Hidden,
                _ => ColumnConstraint::Absolute(Width::Fixed(width.saturating_add(gutter))),
            });
        }
        let mut text = String::new();
        for line in table.lines() {
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// The widths at which columns of these widths fit into `total`: the widest give way, down to a width that can be read;
/// where that is not enough, the last are left out. The first, which holds the name, gives way last: it is what one copies.
fn fit(widths: &[u16], total: Option<u16>) -> Vec<u16> {
    let mut widths = widths.to_vec();
    let Some(total) = total.map(u32::from) else { return widths };
    let taken = |widths: &mut dyn Iterator<Item = u16>| {
        widths.filter(|width| *width > 0).map(|width| u32::from(width + GUTTER)).sum::<u32>()
    };
    let available = total + u32::from(GUTTER);
    let name = NARROW.max(u16::try_from(total / 2).unwrap_or(u16::MAX));
    let least = |(at, width): (usize, &u16)| (*width).min(if at == 0 { name } else { NARROW });
    while let Some(last) = widths.iter().rposition(|width| *width > 0)
        && taken(&mut widths.iter().enumerate().map(least)) > available
    {
        widths[last] = 0;
    }
    while taken(&mut widths.iter().copied()) > available {
        // Among those that have more than their least; where none has, whatever is widest.
        let spare = widths.iter().enumerate().filter(|(at, width)| **width > least((*at, width)));
        let all = widths.iter().enumerate();
        let Some((at, _)) = spare.max_by_key(|(_, width)| **width).or_else(|| all.max_by_key(|(_, width)| **width))
        else {
            break;
        };
        widths[at] -= 1;
    }
    widths
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
    fn columns_fit_a_terminal() {
        assert_eq!(fit(&[6, 40, 50], None), [6, 40, 50]);
        assert_eq!(fit(&[6, 40, 50], Some(80)), [6, 34, 34]);
        assert_eq!(fit(&[6, 20, 6], Some(80)), [6, 20, 6]);
        assert_eq!(fit(&[20, 12, 40], Some(30)), [15, 12, 0]);
        assert_eq!(fit(&[12], Some(5)), [0]);
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

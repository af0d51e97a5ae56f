//! Rows under columns. Only those in sight are drawn, however many there are.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::Style;
use unicode_width::UnicodeWidthStr;

use super::{Theme, cut, say_empty};
use crate::tui::model::grid::{GUTTER, Grid, Tone};
use crate::tui::model::{Model, Screen};

/// The cursor and the mark.
const MARGIN: u16 = 2;

pub(super) fn draw(model: &Model, theme: Theme, frame: &mut Frame, area: Rect) {
    let screen = model.front();
    if screen.grid.rows.is_empty() {
        say_empty(model, theme, frame, area);
        return;
    }
    draw_header(&screen.grid, screen.sort, theme, frame, area);
    let rows = Rect { y: area.y + 1, height: area.height.saturating_sub(1), ..area };
    draw_rows(screen, screen.top, theme, frame, rows);
    if let Some(why) = &screen.trouble {
        // The rows are those of before.
        let line = Rect { y: area.bottom().saturating_sub(1), height: 1, ..area };
        let text = cut(&format!("not up to date: {why}"), area.width.into(), theme.ellipsis());
        let text = format!("{text:<width$}", width = usize::from(area.width));
        frame.buffer_mut().set_string(line.x, line.y, text, theme.style(Tone::Bad));
    }
}

fn draw_header(grid: &Grid, sort: Option<(usize, bool)>, theme: Theme, frame: &mut Frame, area: Rect) {
    let mut x = area.x + MARGIN;
    for (at, width) in grid.fit(area.width.saturating_sub(MARGIN)) {
        let column = &grid.columns[at];
        let mut title = column.title.to_uppercase();
        if let Some((sorted, reversed)) = sort
            && sorted == at
        {
            title += theme.arrow(reversed);
        }
        put(frame, theme, (x, area.y), width, &title, column.right, theme.style(Tone::Strong));
        x += width + GUTTER;
    }
}

/// The rows from `top` on, as many as there is room for.
pub(super) fn draw_rows(screen: &Screen, top: usize, theme: Theme, frame: &mut Frame, area: Rect) {
    let grid = &screen.grid;
    let shown = grid.fit(area.width.saturating_sub(MARGIN));
    for (y, (at, row)) in (area.y..area.bottom()).zip(grid.rows.iter().enumerate().skip(top)) {
        let mut x = area.x + MARGIN;
        for (column, width) in &shown {
            let cell = &row.cells[*column];
            let right = grid.columns[*column].right;
            put(frame, theme, (x, y), *width, &cell.text, right, theme.style(cell.tone));
            x += width + GUTTER;
        }
        let sign = match (at == screen.cursor, screen.marked.contains(&row.id)) {
            (true, true) => ">*",
            (true, false) => ">",
            (false, true) => " *",
            (false, false) => "",
        };
        frame.buffer_mut().set_string(area.x, y, sign, Style::new());
        if at == screen.cursor {
            frame.buffer_mut().set_style(Rect { y, height: 1, ..area }, theme.cursor());
        }
    }
}

fn put(frame: &mut Frame, theme: Theme, at: (u16, u16), width: u16, text: &str, right: bool, style: Style) {
    let text = cut(text, width.into(), theme.ellipsis());
    let indent = if right { width.saturating_sub(u16::try_from(text.width()).unwrap_or(width)) } else { 0 };
    let edge = frame.area().right();
    let x = at.0 + indent;
    if x < edge {
        frame.buffer_mut().set_stringn(x, at.1, text, usize::from(edge - x), style);
    }
}

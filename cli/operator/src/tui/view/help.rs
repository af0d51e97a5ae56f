//! The help, written from the table of keys and the table of views.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::Theme;
use crate::tui::keymap::{BINDINGS, Place};
use crate::tui::model::grid::Tone;
use crate::tui::model::views::VIEWS;

/// Below this, keys and views stand below each other.
const TWO_COLUMNS: u16 = 150;
/// What the keys take then.
const KEYS: u16 = 76;

pub(super) fn draw(scrolled: usize, theme: Theme, frame: &mut Frame, area: Rect) {
    let (keys, views) = (keys(theme), views(theme));
    if area.width < TWO_COLUMNS {
        let lines: Vec<Line> = keys.into_iter().chain([Line::default()]).chain(views).collect();
        draw_column(lines, scrolled, frame, area);
        return;
    }
    let left = Rect { width: KEYS, ..area };
    draw_column(keys, scrolled, frame, left);
    draw_column(views, scrolled, frame, Rect { x: area.x + KEYS, width: area.width - KEYS, ..area });
}

fn draw_column(lines: Vec<Line<'static>>, scrolled: usize, frame: &mut Frame, area: Rect) {
    let top = scrolled.min(lines.len().saturating_sub(area.height.into()));
    let shown: Vec<Line> = lines.into_iter().skip(top).take(area.height.into()).collect();
    frame.render_widget(Paragraph::new(shown), area);
}

fn keys(theme: Theme) -> Vec<Line<'static>> {
    let mut lines = Vec::new();
    let mut places: Vec<Place> = vec![Place::Anywhere, Place::List];
    for binding in BINDINGS {
        if !places.contains(&binding.place) {
            places.push(binding.place);
        }
    }
    let mut title = "";
    for place in places {
        if place.title() != title {
            title = place.title();
            lines.push(Line::styled(title.to_uppercase(), theme.style(Tone::Strong)));
        }
        lines.extend(BINDINGS.iter().filter(|binding| binding.place == place).map(|binding| {
            Line::from(vec![Span::styled(format!("  {:<13}", binding.shown), theme.accent()), Span::raw(binding.help)])
        }));
    }
    lines
}

fn views(theme: Theme) -> Vec<Line<'static>> {
    let title = Line::styled("VIEWS, AFTER :", theme.style(Tone::Strong));
    let view = |named: &crate::tui::model::views::Named| {
        let names = named.names[..named.names.len().min(2)].join(" ");
        Line::from(vec![
            Span::styled(format!("  {names:<18} "), theme.accent()),
            Span::raw(named.help),
            Span::styled(format!("  {}", named.argument), theme.style(Tone::Faint)),
        ])
    };
    std::iter::once(title).chain(VIEWS.iter().map(view)).collect()
}

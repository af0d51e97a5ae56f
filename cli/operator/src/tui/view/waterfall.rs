//! A trace from top to bottom: what was done, how long it took, and when. The critical path, what determined when everything
//! ended, is drawn solid; gaps are named, not hidden. Below it everything about the span under the cursor.

use meshctl_model::trace::{Node, Tree, What};
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;

use super::{Theme, cut, say_empty};
use crate::show::{Timeline, milliseconds};
use crate::tui::model::grid::Tone;
use crate::tui::model::{Loaded, Model};

/// For the span under the cursor, where the screen is small.
const DETAILS: u16 = 7;

pub(super) fn draw(model: &Model, theme: Theme, frame: &mut Frame, area: Rect) {
    let screen = model.front();
    let Some(Loaded::Trace { trace, tree }) = &screen.loaded else {
        say_empty(model, theme, frame, area);
        return;
    };
    let gaps = u16::try_from(trace.gaps.len()).unwrap_or(u16::MAX).min(3);
    let [head, rows, missing, details] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(gaps),
        Constraint::Length(DETAILS.max(area.height / 3).min(area.height / 2)),
    ])
    .areas(area);
    let complete = if trace.complete { ("complete", Tone::Good) } else { ("not complete", Tone::Careful) };
    let about = format!(
        "{}  {} spans, {} together, the caller waited {}  ",
        trace.start_at.strftime("%H:%M:%S%.3f"),
        trace.spans.len(),
        milliseconds(trace.duration_ms),
        tree.latency_ms().map_or_else(|| "-".to_owned(), milliseconds),
    );
    let about = vec![Span::raw(about), Span::styled(complete.0, theme.style(complete.1))];
    frame.render_widget(Line::from(about), head);
    draw_rows(model, tree, theme, frame, rows);
    for (y, gap) in (missing.y..missing.bottom()).zip(&trace.gaps) {
        let text = cut(&format!("gap: {gap}"), area.width.into(), theme.ellipsis());
        frame.buffer_mut().set_string(area.x, y, text, theme.style(Tone::Careful));
    }
    let at = screen.current().and_then(|id| id.parse::<usize>().ok());
    if let Some(node) = at.and_then(|at| tree.nodes.get(at)) {
        draw_details(node, theme, frame, details);
    }
}

fn draw_rows(model: &Model, tree: &Tree, theme: Theme, frame: &mut Frame, area: Rect) {
    let screen = model.front();
    let height = usize::from(area.height);
    let timeline = Timeline::of(tree);
    let top = screen.top.max((screen.cursor + 1).saturating_sub(height)).min(screen.cursor);
    // What, how long, when; a wide screen has room for how it went.
    let label = (area.width * 2 / 5).min(60);
    let how = if area.width >= 110 { area.width / 5 } else { 0 };
    let took = 9;
    let bars = area.width.saturating_sub(label + took + how + 3);
    for (y, (place, row)) in (area.y..area.bottom()).zip(screen.grid.rows.iter().enumerate().skip(top)) {
        let Some(node) = row.id.parse::<usize>().ok().and_then(|at| tree.nodes.get(at)) else { continue };
        let [what, duration, went] = row.cells.as_slice() else { continue };
        let buffer = frame.buffer_mut();
        let put = |buffer: &mut ratatui::buffer::Buffer, x: u16, width: u16, text: &str, style: Style| {
            buffer.set_string(x, y, cut(text, width.into(), theme.ellipsis()), style);
        };
        put(buffer, area.x, label, &what.text, theme.style(what.tone));
        put(buffer, area.x + label, took, &format!("{:>8}", duration.text), Style::new());
        let x = area.x + label + took + 1;
        put(buffer, x, how, &went.text, theme.style(went.tone));
        let x = if how > 0 { x + how + 1 } else { x };
        draw_bar(node, &timeline, (x, y), bars, theme, frame, theme.style(what.tone));
        if place == screen.cursor {
            frame.buffer_mut().set_style(Rect { y, height: 1, width: label + took, ..area }, theme.cursor());
        }
    }
}

fn draw_bar(
    node: &Node,
    timeline: &Timeline,
    at: (u16, u16),
    width: u16,
    theme: Theme,
    frame: &mut Frame,
    style: Style,
) {
    if width == 0 {
        return;
    }
    let (from, to) = timeline.columns(node.start_ms, node.start_ms + node.duration_ms, width.into());
    let sign = match (&node.what, node.critical_ms, theme.unicode) {
        (What::Wait(_), _, true) => "·",
        (What::Wait(_), _, false) => ".",
        (_, Some(_), true) => "█",
        (_, Some(_), false) => "#",
        (_, None, true) => "▒",
        (_, None, false) => "-",
    };
    let x = at.0 + u16::try_from(from).unwrap_or(0);
    frame.buffer_mut().set_string(x, at.1, sign.repeat(to.saturating_sub(from)), style);
}

fn draw_details(node: &Node, theme: Theme, frame: &mut Frame, area: Rect) {
    let mut facts: Vec<(String, String)> = vec![
        ("begins after".into(), milliseconds(node.start_ms)),
        ("takes".into(), format!("{}, itself {}", milliseconds(node.duration_ms), milliseconds(node.self_ms))),
    ];
    if let Some(ms) = node.critical_ms {
        facts.push(("critical path".into(), format!("{} of it is this", milliseconds(ms))));
    }
    if let Some(span) = node.span() {
        if let Some(message) = &span.message {
            facts.push(("failed".into(), message.clone()));
        }
        facts.push(("span".into(), span.span_id.clone()));
        facts.extend(
            span.attributes
                .iter()
                .map(|(name, value)| (name.clone(), value.as_str().map_or_else(|| value.to_string(), str::to_owned))),
        );
    }
    let rule = if theme.unicode { "─" } else { "-" }.repeat(area.width.into());
    let mut lines = vec![Line::styled(rule, theme.style(Tone::Faint))];
    // Two facts a line where there is room.
    let columns = if area.width >= 100 { 2 } else { 1 };
    let width = usize::from(area.width) / columns;
    for pair in facts.chunks(columns) {
        let fact = |(name, value): &(String, String)| {
            let value = value.replace(char::is_control, " ");
            let name = format!("{name:<16} ");
            let value = cut(&value, width.saturating_sub(name.len() + 1), theme.ellipsis());
            let rest = width.saturating_sub(name.len() + value.len());
            [Span::styled(name, theme.accent()), Span::raw(value + &" ".repeat(rest))]
        };
        lines.push(Line::from_iter(pair.iter().flat_map(fact)));
    }
    frame.render_widget(Paragraph::new(lines), area);
}

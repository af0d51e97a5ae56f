//! The dialog before something is done, and the outcome after it.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Clear, Padding, Paragraph};
use unicode_width::UnicodeWidthStr;

use super::Theme;
use crate::tui::model::Model;
use crate::tui::model::deeds::{Dialog, JobState, radius};
use crate::tui::model::grid::Tone;

const WIDTH: u16 = 76;

pub(super) fn draw(model: &Model, theme: Theme, frame: &mut Frame, area: Rect) {
    let Some(dialog) = &model.dialog else { return };
    let width = WIDTH.min(area.width);
    let block = Block::bordered()
        .border_set(theme.border())
        .title(Span::styled(format!(" {} ", dialog.title()), theme.style(Tone::Strong)))
        .padding(Padding::horizontal(1));
    let job = dialog.job.and_then(|number| model.jobs.iter().find(|job| job.number == number));
    let (lines, cursor) = match job {
        Some(job) => (outcome(model, job, theme), None),
        None => question(dialog, theme),
    };
    let lines: Vec<Line> = lines.into_iter().flat_map(|line| folded(line, width.saturating_sub(4).into())).collect();
    let height = u16::try_from(lines.len() + 2).unwrap_or(u16::MAX).min(area.height);
    let area = Rect { x: area.x + (area.width - width) / 2, y: area.y + (area.height - height) / 2, width, height };
    frame.render_widget(Clear, area);
    let inside = block.inner(area);
    frame.render_widget(block, area);
    frame.render_widget(Paragraph::new(lines), inside);
    if let Some((column, line)) = cursor {
        frame.set_cursor_position((inside.x + column.min(inside.width.saturating_sub(1)), inside.y + line));
    }
}

/// The fields first, so that they are in sight however much would be hit; and where the cursor is.
fn question(dialog: &Dialog, theme: Theme) -> (Vec<Line<'static>>, Option<(u16, u16)>) {
    let label = dialog.fields.iter().map(|field| field.label.len()).max().unwrap_or(0) + 2;
    let mut lines = Vec::new();
    for (at, field) in dialog.fields.iter().enumerate() {
        let style = if at == dialog.focus { theme.accent() } else { theme.style(Tone::Plain) };
        let mut spans =
            vec![Span::styled(format!("{:<label$}", field.label), style), Span::raw(field.input.text().to_owned())];
        if field.input.text().is_empty() {
            spans.push(Span::styled(format!(" {}", field.hint), theme.style(Tone::Faint)));
        }
        lines.push(Line::from(spans));
    }
    let column = label + dialog.fields[dialog.focus].input.before().width();
    let cursor = (u16::try_from(column).unwrap_or(u16::MAX), u16::try_from(dialog.focus).unwrap_or(0));
    lines.push(Line::default());
    match &dialog.radius {
        None if dialog.complaint.is_none() => {
            lines.push(Line::styled("asking what it would mean", theme.style(Tone::Faint)))
        }
        None => {}
        Some(Err(why)) => lines.push(Line::styled(format!("it would be refused: {why}"), theme.style(Tone::Bad))),
        Some(Ok(answer)) => {
            lines.extend(radius(answer).into_iter().map(|(tone, text)| Line::styled(text, theme.style(tone))))
        }
    }
    if let Ok(order) = dialog.order(false) {
        lines.push(Line::default());
        lines.push(Line::styled(format!("$ {}", order.command()), theme.style(Tone::Faint)));
    }
    if let Some(why) = &dialog.complaint {
        lines.push(Line::styled(why.clone(), theme.style(Tone::Bad)));
    }
    (lines, Some(cursor))
}

/// A line of one style over as many as it needs; one of several styles is short by itself.
fn folded(line: Line<'static>, width: usize) -> Vec<Line<'static>> {
    if line.width() <= width || line.spans.len() > 1 {
        return vec![line];
    }
    let text: String = line.iter().map(|span| span.content.as_ref()).collect();
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let last = lines.last_mut().expect("there is always one");
        if !last.is_empty() && last.width() + 1 + word.width() > width {
            lines.push(format!("  {word}"));
        } else {
            *last = if last.is_empty() { word.to_owned() } else { format!("{last} {word}") };
        }
    }
    lines.into_iter().map(|text| Line::styled(text, line.style)).collect()
}

fn outcome(model: &Model, job: &crate::tui::model::deeds::Job, theme: Theme) -> Vec<Line<'static>> {
    let (tone, word) = match &job.state {
        JobState::Over { good: true, .. } => (Tone::Good, "done"),
        JobState::Over { good: false, .. } => (Tone::Bad, "failed"),
        _ => (Tone::Careful, "under way"),
    };
    let mut lines = vec![
        Line::styled(format!("$ {}", job.order.command()), theme.style(Tone::Faint)),
        Line::default(),
        Line::styled(format!("{word}: {}", job.state.text()), theme.style(tone)),
    ];
    if let JobState::Rolling { .. } = job.state
        && let Some(status) = &model.status
    {
        let unready = status.items.iter().filter(|service| service.ready < service.desired);
        lines.extend(
            unready.map(|service| Line::raw(format!("  {} {}/{}", service.name, service.ready, service.desired))),
        );
    }
    if !matches!(job.state, JobState::Over { .. }) {
        lines.push(Line::styled("esc leaves; it goes on, and its outcome is told below", theme.style(Tone::Faint)));
    }
    lines
}

//! The screen, drawn from the model and nothing else:
//!
//! ```text
//! shop  revision 7  ready  12/12 instances                       ● live      the system
//! overview › services › instances of orders   3 of 12   /ord   sort rate      where one is
//! NAME          READY  STATE    RATE/S  ERRORS …                              the view
//! …
//! enter open  d describe  / filter  : view  ? help  q quit                    keys, or what is typed, or the last word
//! ```

mod dialog;
mod help;
mod overview;
mod table;
mod text;
mod theme;
mod waterfall;

use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

pub(crate) use theme::Theme;

use super::figures::grouped;
use super::keymap::{self, Place};
use super::model::Model;
use super::model::grid::Tone;
use super::model::views::View;

/// Draws everything.
pub(crate) fn view(model: &Model, theme: Theme, frame: &mut Frame) {
    let [system, place, body, foot] =
        Layout::vertical([Constraint::Length(1), Constraint::Length(1), Constraint::Fill(1), Constraint::Length(1)])
            .areas(frame.area());
    frame.render_widget(about_system(model, theme, system.width), system);
    frame.render_widget(Paragraph::new(about_place(model, theme, place.width)), place);
    if let Some(scrolled) = model.help {
        help::draw(scrolled, theme, frame, body);
    } else {
        draw_view(model, theme, frame, body);
        if model.staleness().is_some() && model.gone_since.is_some() {
            frame.buffer_mut().set_style(body, Style::new().add_modifier(Modifier::DIM));
        }
    }
    if model.dialog.is_some() {
        dialog::draw(model, theme, frame, body);
    }
    draw_foot(model, theme, frame, foot);
}

fn draw_view(model: &Model, theme: Theme, frame: &mut Frame, area: Rect) {
    let screen = model.front();
    match &screen.view {
        View::Overview => overview::draw(model, theme, frame, area),
        View::Trace(_) => waterfall::draw(model, theme, frame, area),
        View::Logs(_) => text::log(model, theme, frame, area),
        view if view.is_text() => text::draw(model, theme, frame, area),
        _ => table::draw(model, theme, frame, area),
    }
}

fn about_system(model: &Model, theme: Theme, width: u16) -> Paragraph<'static> {
    let mut left = Vec::new();
    match &model.status {
        None => left.push(Span::raw("nothing heard yet")),
        Some(status) if status.name.is_empty() => left.push(Span::raw("nothing applied yet")),
        Some(status) => {
            let (ready, desired) = status
                .items
                .iter()
                .fold((0, 0), |(ready, desired), service| (ready + service.ready, desired + service.desired));
            let (word, tone) = if status.ready { ("ready", Tone::Good) } else { ("not ready", Tone::Bad) };
            left.push(Span::styled(status.name.clone(), theme.style(Tone::Strong)));
            left.push(Span::raw(format!("  revision {}  ", status.revision)));
            left.push(Span::styled(word, theme.style(tone)));
            left.push(Span::raw(format!("  {}/{} instances", grouped(ready.into()), grouped(desired.into()))));
        }
    }
    let running =
        model.jobs.iter().filter(|job| !matches!(job.state, super::model::deeds::JobState::Over { .. })).count();
    let mut right = Vec::new();
    if running > 0 {
        right.push(Span::styled(format!("{running} under way  "), theme.style(Tone::Careful)));
    }
    match model.staleness() {
        Some(why) => right.push(Span::styled(why, theme.style(Tone::Bad))),
        None if model.status.is_none() => {}
        None => right.push(Span::styled(format!("{} live", theme.dot()), theme.style(Tone::Good))),
    }
    Paragraph::new(apart(left, right, width))
}

/// `left` and `right` at both ends of a line; where there is no room for both, `right` counts.
fn apart(mut left: Vec<Span<'static>>, right: Vec<Span<'static>>, width: u16) -> Line<'static> {
    let right_width: usize = right.iter().map(Span::width).sum();
    let room = usize::from(width).saturating_sub(right_width + 1);
    let mut taken = 0;
    for span in &mut left {
        let fits = room.saturating_sub(taken);
        if span.width() > fits {
            span.content = cut(&span.content, fits, "").into();
        }
        taken += span.width();
    }
    left.push(Span::raw(" ".repeat(usize::from(width).saturating_sub(taken + right_width))));
    left.extend(right);
    Line::from(left)
}

fn about_place(model: &Model, theme: Theme, width: u16) -> Line<'static> {
    let screen = model.front();
    let came_through = &model.screens[..model.screens.len() - 1];
    let title = screen.view.title();
    let mut before: Vec<String> = came_through.iter().map(|screen| screen.view.title()).collect();
    let mut right = Vec::new();
    let mut say = |text: String| right.push(Span::styled(format!("  {text}"), theme.style(Tone::Faint)));
    if !screen.view.is_text() && !matches!(screen.view, View::Overview | View::Trace(_)) {
        let (shown, total) = (screen.grid.rows.len(), screen.grid.total);
        say(if shown == total {
            grouped(total as u64)
        } else {
            format!("{} of {}", grouped(shown as u64), grouped(total as u64))
        });
        if !screen.marked.is_empty() {
            say(format!("{} marked", screen.marked.len()));
        }
        if let Some((column, reversed)) = screen.sort
            && let Some(column) = screen.grid.columns.get(column)
        {
            say(format!("by {}{}", column.title, if reversed { " reversed" } else { "" }));
        }
    }
    if !screen.filter.is_empty() {
        right.push(Span::styled(format!("  /{}", screen.filter), theme.style(Tone::Careful)));
    }
    let room = usize::from(width).saturating_sub(right.iter().map(Span::width).sum::<usize>() + 1);
    let into = theme.into();
    // What is furthest away goes first.
    while !before.is_empty() && before.join(into).width() + into.width() + title.width() > room {
        before.remove(0);
    }
    let mut left = Vec::new();
    if !before.is_empty() {
        left.push(Span::styled(before.join(into) + into, theme.style(Tone::Faint)));
    }
    left.push(Span::styled(title, theme.accent()));
    apart(left, right, width)
}

fn draw_foot(model: &Model, theme: Theme, frame: &mut Frame, area: Rect) {
    if let Some(prompt) = &model.prompt {
        let sign = if prompt.is_filter { "/" } else { ":" };
        let mut spans = vec![Span::styled(sign, theme.accent()), Span::raw(prompt.input.text().to_owned())];
        match &prompt.complaint {
            Some(why) => spans.push(Span::styled(format!("  {why}"), theme.style(Tone::Bad))),
            None if !prompt.candidates.is_empty() => {
                spans.push(Span::styled(format!("  {}", prompt.candidates.join("  ")), theme.style(Tone::Faint)));
            }
            None => {}
        }
        frame.render_widget(Paragraph::new(Line::from(spans)), area);
        let column = u16::try_from(prompt.input.before().width() + 1).unwrap_or(u16::MAX);
        frame.set_cursor_position((area.x + column.min(area.width.saturating_sub(1)), area.y));
        return;
    }
    if let Some((good, text)) = &model.notice {
        let style = theme.style(if *good { Tone::Good } else { Tone::Bad });
        frame.render_widget(Span::styled(cut(text, area.width.into(), theme.ellipsis()), style), area);
        return;
    }
    let hints: Vec<(&str, &str)> = match &model.dialog {
        Some(dialog) if dialog.job.is_some() => vec![("esc", "leave")],
        Some(_) => keymap::hints_in(Place::Dialog).collect(),
        None if model.help.is_some() => vec![("up", "down"), ("any other key", "back")],
        None => keymap::hints(&model.front().view).collect(),
    };
    // The last ones, which are the same everywhere, stay; what does not fit goes from before them.
    let width = |hint: &(&str, &str)| hint.0.width() + hint.1.width() + 3;
    let everywhere = hints.len().min(4);
    let (own, common) = hints.split_at(hints.len() - everywhere);
    let mut room = usize::from(area.width).saturating_sub(common.iter().map(width).sum());
    let own = own.iter().take_while(|hint| {
        let fits = width(hint) <= room;
        room = room.saturating_sub(width(hint));
        fits
    });
    let spans = own.chain(common).flat_map(|(key, hint)| {
        [Span::styled((*key).to_owned(), theme.accent()), Span::styled(format!(" {hint}  "), theme.style(Tone::Faint))]
    });
    frame.render_widget(Paragraph::new(Line::from_iter(spans)), area);
}

/// `text` in at most `width` columns; what is cut off is marked.
fn cut(text: &str, width: usize, ellipsis: &str) -> String {
    if text.width() <= width {
        return text.to_owned();
    }
    let room = width.saturating_sub(ellipsis.width());
    let mut taken = 0;
    let kept: String = text
        .chars()
        .take_while(|c| {
            taken += c.width().unwrap_or(0);
            taken <= room
        })
        .collect();
    if width < ellipsis.width() { String::new() } else { kept + ellipsis }
}

/// Says why a view is empty.
fn say_empty(model: &Model, theme: Theme, frame: &mut Frame, area: Rect) {
    let screen = model.front();
    let (tone, text) = match (&screen.trouble, &screen.view) {
        (Some(why), _) => (Tone::Bad, why.clone()),
        (None, _) if !screen.filter.is_empty() => (Tone::Faint, format!("nothing here contains {}", screen.filter)),
        (None, View::Breakers) if model.vitals.is_none() => {
            let why = model.vitals_trouble.as_deref().unwrap_or("they have not come yet");
            (Tone::Faint, format!("no signals: {why}"))
        }
        (None, view) if view.is_asked_for() && screen.loaded.is_none() => (Tone::Faint, "asking".to_owned()),
        _ => (Tone::Faint, "none".to_owned()),
    };
    frame.render_widget(Paragraph::new(Span::styled(text, theme.style(tone))).wrap(Default::default()), area);
}

#[cfg(test)]
pub(crate) mod tests;

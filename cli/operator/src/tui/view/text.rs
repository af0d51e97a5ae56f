//! Text to scroll in: pages, and what services write.

use ratatui::Frame;
use ratatui::layout::Rect;
use ratatui::style::{Color, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::Paragraph;
use serde_json::Value;
use unicode_width::UnicodeWidthStr;

use super::{Theme, say_empty};
use crate::tui::model::Model;
use crate::tui::model::grid::Tone;

pub(super) fn draw(model: &Model, theme: Theme, frame: &mut Frame, area: Rect) {
    let screen = model.front();
    let lines = screen.lines();
    if lines.is_empty() || screen.trouble.is_some() {
        say_empty(model, theme, frame, area);
        return;
    }
    let shown = lines.iter().skip(screen.top).take(area.height.into());
    let styled = |line: &&str| match line.find(": ").filter(|_| !line.trim_start().starts_with('{')) {
        // `Name: value` as pages have it; the name is what the eye looks for.
        Some(at) if line[..at].trim().split(' ').count() <= 3 => {
            Line::from(vec![Span::styled(line[..=at].to_owned(), theme.accent()), Span::raw(line[at + 1..].to_owned())])
        }
        _ => Line::raw((*line).to_owned()),
    };
    frame.render_widget(Paragraph::new(shown.map(styled).collect::<Vec<_>>()).scroll((0, screen.left)), area);
}

pub(super) fn log(model: &Model, theme: Theme, frame: &mut Frame, area: Rect) {
    let screen = model.front();
    let lines = screen.log();
    if lines.is_empty() {
        say_empty(model, theme, frame, area);
        return;
    }
    let shown: Vec<_> = lines.into_iter().skip(screen.top).take(area.height.into()).collect();
    let widest = shown.iter().map(|line| line.instance.width()).max().unwrap_or(0);
    let drawn = shown.iter().map(|line| {
        let tone = if line.stream == "stderr" { Tone::Careful } else { Tone::Plain };
        Line::from(vec![
            Span::styled(line.at.strftime("%H:%M:%S ").to_string(), theme.style(Tone::Faint)),
            Span::styled(format!("{:<widest$} ", line.instance), of_instance(&line.instance, theme)),
            Span::styled(told(&line.line), theme.style(tone)),
        ])
    });
    frame.render_widget(Paragraph::new(drawn.collect::<Vec<_>>()).scroll((0, screen.left)), area);
}

/// An instance's colour: the same whenever it is seen.
fn of_instance(instance: &str, theme: Theme) -> Style {
    const COLORS: [Color; 5] = [Color::Cyan, Color::Green, Color::Magenta, Color::Blue, Color::LightCyan];
    let hash = instance.bytes().fold(0usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    if theme.color { Style::new().fg(COLORS[hash % COLORS.len()]) } else { theme.style(Tone::Strong) }
}

/// Structured lines as sentences: `info: reserved, sku=desk`. When and who stands before them already.
fn told(line: &str) -> String {
    let Ok(Value::Object(mut fields)) = serde_json::from_str(line) else { return plain(line) };
    let text = |value: Value| match value {
        Value::String(text) => text,
        other => other.to_string(),
    };
    let mut take = |names: &[&str]| names.iter().find_map(|name| fields.remove(*name)).map(text);
    let level = take(&["level", "severity"]).map(|level| level.to_lowercase() + ": ").unwrap_or_default();
    let message = take(&["message", "msg", "event"]).unwrap_or_default();
    take(&["at", "time", "timestamp", "ts"]);
    take(&["instance"]);
    take(&["service"]);
    let rest: Vec<String> = fields.into_iter().map(|(name, value)| format!("{name}={}", text(value))).collect();
    let comma = if message.is_empty() || rest.is_empty() { "" } else { ", " };
    plain(&format!("{level}{message}{comma}{}", rest.join(" ")))
}

/// Without escapes: no service can move the operator's cursor.
fn plain(line: &str) -> String {
    anstream::adapter::strip_str(line).to_string().replace('\t', "    ").replace(char::is_control, " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structured_lines_read_as_sentences() {
        let line =
            r#"{"at":"2026-11-23T10:00:00Z","instance":"a-1","level":"INFO","message":"reserved","sku":"desk","n":2}"#;
        assert_eq!(told(line), "info: reserved, n=2 sku=desk");
        assert_eq!(told("as it \u{1b}[31mis\u{1b}[0m"), "as it is");
    }
}

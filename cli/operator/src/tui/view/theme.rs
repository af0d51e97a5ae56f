//! What the terminal can show: with colours or without, with all signs or ASCII. Nothing is said by colour alone.

use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::{bar, border};

use crate::tui::model::grid::Tone;

#[derive(Clone, Copy, Debug)]
pub(crate) struct Theme {
    pub(crate) color: bool,
    pub(crate) unicode: bool,
}

const ASCII_BARS: bar::Set<'static> = bar::Set {
    full: "#",
    seven_eighths: "#",
    three_quarters: "+",
    five_eighths: "+",
    half: "=",
    three_eighths: "-",
    one_quarter: ":",
    one_eighth: ".",
    empty: " ",
};

const ASCII_BORDER: border::Set<'static> = border::Set {
    top_left: "+",
    top_right: "+",
    bottom_left: "+",
    bottom_right: "+",
    vertical_left: "|",
    vertical_right: "|",
    horizontal_top: "-",
    horizontal_bottom: "-",
};

impl Theme {
    pub(crate) fn style(self, tone: Tone) -> Style {
        let style = Style::new();
        match (tone, self.color) {
            (Tone::Plain, _) => style,
            (Tone::Faint, _) => style.add_modifier(Modifier::DIM),
            (Tone::Strong, _) => style.add_modifier(Modifier::BOLD),
            (Tone::Good, true) => style.fg(Color::Green),
            (Tone::Good, false) => style,
            (Tone::Careful, true) => style.fg(Color::Yellow),
            (Tone::Careful, false) => style.add_modifier(Modifier::BOLD),
            (Tone::Bad, true) => style.fg(Color::Red).add_modifier(Modifier::BOLD),
            (Tone::Bad, false) => style.add_modifier(Modifier::BOLD | Modifier::UNDERLINED),
        }
    }

    /// Of what is under the cursor.
    pub(crate) fn cursor(self) -> Style {
        Style::new().add_modifier(Modifier::REVERSED)
    }

    /// Of titles and keys.
    pub(crate) fn accent(self) -> Style {
        if self.color { Style::new().fg(Color::Cyan) } else { Style::new().add_modifier(Modifier::BOLD) }
    }

    pub(crate) fn bars(self) -> bar::Set<'static> {
        if self.unicode { bar::NINE_LEVELS } else { ASCII_BARS }
    }

    pub(crate) fn border(self) -> border::Set<'static> {
        if self.unicode { border::ROUNDED } else { ASCII_BORDER }
    }

    pub(crate) fn ellipsis(self) -> &'static str {
        if self.unicode { "…" } else { "~" }
    }

    /// Between the screens that one came through.
    pub(crate) fn into(self) -> &'static str {
        if self.unicode { " › " } else { " > " }
    }

    pub(crate) fn dot(self) -> &'static str {
        if self.unicode { "●" } else { "*" }
    }

    pub(crate) fn arrow(self, reversed: bool) -> &'static str {
        match (self.unicode, reversed) {
            (true, false) => "↓",
            (true, true) => "↑",
            (false, false) => "v",
            (false, true) => "^",
        }
    }
}

//! What a command shows: the result on stdout, everything else on stderr.
//!
//! Text may carry styles anywhere; the streams take them out where they are not wanted (not a terminal, `NO_COLOR`,
//! `--color never`), so that no command has to ask.

mod age;
mod document;
pub(crate) mod findings;
mod jsonpath;
mod table;

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};

use anstyle::{AnsiColor, Style};

pub(crate) use age::age;
pub(crate) use document::Format;
pub(crate) use document::{document, find, order};
pub(crate) use table::{Cell, Table};

use crate::failure::{Failure, writing};

pub(crate) const BOLD: Style = Style::new().bold();
pub(crate) const DIM: Style = Style::new().dimmed();
pub(crate) const GOOD: Style = AnsiColor::Green.on_default();
pub(crate) const CAREFUL: Style = AnsiColor::Yellow.on_default();
pub(crate) const BAD: Style = AnsiColor::Red.on_default();

/// Text in a style.
pub(crate) fn styled(style: Style, text: impl Display) -> String {
    format!("{style}{text}{style:#}")
}

/// The name of a service or an instance in its colour, which is the same wherever it is shown.
pub(crate) fn tinted(name: &str) -> String {
    styled(tint(name), name)
}

pub(crate) fn tint(name: &str) -> Style {
    const COLORS: [AnsiColor; 6] = [
        AnsiColor::Cyan,
        AnsiColor::Green,
        AnsiColor::Magenta,
        AnsiColor::Yellow,
        AnsiColor::Blue,
        AnsiColor::BrightCyan,
    ];
    let hash = name.bytes().fold(0usize, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
    Style::new().fg_color(Some(COLORS[hash % COLORS.len()].into()))
}

/// Writes `text`, which ends its own lines, to stdout.
///
/// # Errors
/// A silent success where the reader is gone; a failure where the disk is full.
pub(crate) fn print(text: impl Display) -> Result<(), Failure> {
    let mut stdout = anstream::stdout().lock();
    write!(stdout, "{text}").and_then(|()| stdout.flush()).map_err(|error| writing(&error))
}

/// Writes one line to stdout.
pub(crate) fn print_line(text: impl Display) -> Result<(), Failure> {
    print(format_args!("{text}\n"))
}

/// Writes one line to stderr. Nobody can be told where that fails.
pub(crate) fn say(text: impl Display) {
    let _ = writeln!(anstream::stderr().lock(), "{text}");
}

/// Prints why a command failed.
pub(crate) fn failure(failure: &Failure) {
    if failure.message.is_empty() {
        return;
    }
    say(format_args!("{}: {}", styled(BAD.bold(), "error"), failure.message));
    for cause in &failure.causes {
        say(format_args!("  caused by: {cause}"));
    }
    if let Some(hint) = &failure.hint {
        say(format_args!("  {}: {hint}", styled(BOLD, "hint")));
    }
}

pub(crate) fn warn(text: impl Display) {
    say(format_args!("{}: {text}", styled(CAREFUL.bold(), "warning")));
}

/// How wide stdout's terminal is; `None` where it is not one, and nothing is trimmed.
pub(crate) fn width() -> Option<u16> {
    width_of(&io::stdout())
}

pub(crate) fn stderr_width() -> Option<u16> {
    width_of(&io::stderr())
}

fn width_of(stream: &(impl IsTerminal + std::os::fd::AsFd)) -> Option<u16> {
    if !stream.is_terminal() {
        return None;
    }
    let wanted = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
    wanted.or_else(|| terminal_size::terminal_size_of(stream).map(|(width, _)| width.0)).filter(|width| *width > 0)
}

/// Whether a person sits at both ends: can be asked, and sees what is drawn.
pub(crate) fn interactive() -> bool {
    io::stdin().is_terminal() && io::stderr().is_terminal()
}

/// Whether stderr can be drawn on, beyond one line after the other.
pub(crate) fn can_draw() -> bool {
    io::stderr().is_terminal() && std::env::var_os("TERM").is_some_and(|term| term != "dumb")
}

/// Whether signs beyond ASCII are shown: on a terminal whose locale says so. A pipe gets ASCII.
pub(crate) fn speaks_unicode() -> bool {
    let locale =
        ["LC_ALL", "LC_CTYPE", "LANG"].iter().find_map(|name| std::env::var(name).ok().filter(|v| !v.is_empty()));
    let is_utf8 = locale.is_some_and(|locale| locale.to_lowercase().replace('-', "").contains("utf8"));
    io::stdout().is_terminal() && is_utf8
}

/// √ or ×, where they can be shown.
pub(crate) fn sign(is_good: bool) -> Cell {
    match (is_good, speaks_unicode()) {
        (true, true) => Cell::good("√"),
        (true, false) => Cell::good("ok"),
        (false, true) => Cell::bad("×"),
        (false, false) => Cell::bad("XX"),
    }
}

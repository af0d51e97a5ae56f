//! How far a run is, on stderr: on a terminal one line that moves, in a pipe one line a second.

use std::fmt::Display;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use meshctl_load::report::Tick;

use crate::output;
use crate::show::load::{self, grouped, seconds};
use crate::show::milliseconds;

const LINE_EVERY: Duration = Duration::from_secs(1);

pub(super) enum View {
    Quiet,
    /// What was last said, and when.
    Plain(Option<(&'static str, Instant)>),
    Drawn(ProgressBar),
}

impl View {
    pub(super) fn new(quiet: bool) -> Self {
        if quiet {
            return Self::Quiet;
        }
        if !output::can_draw() {
            return Self::Plain(None);
        }
        let bar = ProgressBar::with_draw_target(Some(1), ProgressDrawTarget::stderr());
        let signs = if output::speaks_unicode() { "█▉▊▋▌▍▎▏ " } else { "#- " };
        if let Ok(style) = ProgressStyle::with_template("{bar:10} {wide_msg}") {
            bar.set_style(style.progress_chars(signs));
        }
        Self::Drawn(bar)
    }

    pub(super) fn show(&mut self, tick: &Tick) {
        match self {
            Self::Quiet => {}
            Self::Plain(said) => {
                // The first line of a phase comes at once; a second may be short of a tick's breadth.
                let due = said.is_none_or(|(phase, at)| {
                    phase != tick.phase || at.elapsed() + Duration::from_millis(125) >= LINE_EVERY
                });
                if due && tick.phase != "done" {
                    *said = Some((tick.phase, Instant::now()));
                    output::say(line(tick));
                }
            }
            Self::Drawn(bar) => {
                bar.set_length((tick.total_s * 1e3) as u64);
                bar.set_position((tick.elapsed_s * 1e3) as u64);
                bar.set_message(line(tick));
            }
        }
    }

    /// Says something above the line that moves.
    pub(super) fn say(&self, text: impl Display) {
        match self {
            Self::Quiet => {}
            Self::Plain(_) => output::say(text),
            Self::Drawn(bar) => bar.suspend(|| output::say(text)),
        }
    }

    pub(super) fn close(&self) {
        if let Self::Drawn(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// `measuring 4s/13s · 998/s · p50 1.2ms · p99 4.5ms · 0 errors · 12 in flight · lag 0.1ms`
fn line(tick: &Tick) -> String {
    let Tick { phase, elapsed_s, total_s, connections, in_flight, errors, per_s, p50_ms, p99_ms, behind_ms, .. } = tick;
    let at = format!("{phase} {}/{}", seconds(elapsed_s.floor()), seconds(total_s.ceil()));
    if *phase == "opening" {
        return format!("{at} · {}", load::connections(*connections));
    }
    format!(
        "{at} · {}/s · p50 {} · p99 {} · {} errors · {} in flight · lag {}",
        grouped(per_s.round() as u64),
        milliseconds(*p50_ms),
        milliseconds(*p99_ms),
        grouped(*errors),
        grouped(*in_flight),
        milliseconds(*behind_ms),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_fits_a_terminal() {
        let tick = Tick {
            phase: "measuring",
            elapsed_s: 4.3,
            total_s: 12.9,
            connections: 10_000,
            in_flight: 1234,
            requests: 40_000,
            errors: 7,
            per_s: 9998.4,
            p50_ms: 1.234,
            p99_ms: 45.6,
            behind_ms: 0.1,
        };
        let line = line(&tick);
        assert_eq!(line, "measuring 4s/13s · 9,998/s · p50 1.23ms · p99 46ms · 7 errors · 1,234 in flight · lag 0.1ms");
        let opening = Tick { phase: "opening", ..tick };
        assert_eq!(super::line(&opening), "opening 4s/13s · 10,000 connections");
    }
}

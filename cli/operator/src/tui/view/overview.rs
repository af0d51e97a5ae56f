//! The overview: what is wrong now, the golden signals and where they come from, and on a large screen everything else at one
//! glance.

use jiff::Timestamp;
use meshctl_api::view::vitals::Signals;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::Style;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Sparkline};

use super::{Theme, cut, table};
use crate::output::age;
use crate::show::milliseconds;
use crate::tui::figures::{grouped, percent, rate, share};
use crate::tui::model::grid::Tone;
use crate::tui::model::{Model, Sample};

/// From this width on there are two columns.
const TWO_COLUMNS: u16 = 150;
/// Of the signals: rate, errors, p99, and what waits.
const SIGNALS: u16 = 4;
/// What of a second a curve shows.
type Curve = fn(&Sample) -> Option<f64>;

/// Before a curve.
const FIGURES: u16 = 30;

pub(super) fn draw(model: &Model, theme: Theme, frame: &mut Frame, area: Rect) {
    let (main, side) = if area.width >= TWO_COLUMNS {
        let [main, side] = Layout::horizontal([Constraint::Fill(1), Constraint::Fill(1)]).spacing(3).areas(area);
        (main, Some(side))
    } else {
        (area, None)
    };
    let troubles = u16::try_from(model.front().grid.rows.len()).unwrap_or(u16::MAX).max(1);
    // A tall screen has room for tall curves; what is wrong gets at most half of the rest.
    let tall = if area.height >= 40 { 2 } else { 1 };
    let rest = area.height.saturating_sub(SIGNALS * tall + 1);
    let wrong = troubles.min((rest / 2).max(3));
    let [signals, wrong, routes] =
        Layout::vertical([Constraint::Length(SIGNALS * tall + 1), Constraint::Length(wrong + 2), Constraint::Fill(1)])
            .areas(main);
    draw_signals(model, theme, frame, signals, tall);
    draw_troubles(model, theme, frame, wrong);
    match side {
        None => draw_busiest(model, theme, frame, routes, "route", model.vitals.as_ref().map(|v| v.routes.as_slice())),
        Some(side) => {
            let vitals = model.vitals.as_ref();
            let [upper, lower] = Layout::vertical([Constraint::Fill(1), Constraint::Fill(1)]).areas(routes);
            draw_busiest(model, theme, frame, upper, "route", vitals.map(|v| v.routes.as_slice()));
            draw_busiest(model, theme, frame, lower, "edge", vitals.map(|v| v.edges.as_slice()));
            let channels = u16::try_from(model.channels().len()).unwrap_or(u16::MAX);
            let [services, channels, events] = Layout::vertical([
                Constraint::Fill(2),
                Constraint::Length(if channels == 0 { 0 } else { (channels + 2).min(side.height / 4) }),
                Constraint::Fill(1),
            ])
            .areas(side);
            draw_busiest(model, theme, frame, services, "service", vitals.map(|v| v.services.as_slice()));
            draw_channels(model, theme, frame, channels);
            draw_events(model, theme, frame, events);
        }
    }
}

fn draw_signals(model: &Model, theme: Theme, frame: &mut Frame, area: Rect, tall: u16) {
    let sample = model.sample();
    let none = || "-".to_owned();
    let dead = model.vitals.as_ref().map(|vitals| vitals.dead_letters);
    let in_flight = model.vitals.as_ref().map(|vitals| vitals.routes.iter().map(|route| route.in_flight).sum());
    let failing = sample.map_or(0.0, |sample| share(sample.errors_per_s, sample.requests_per_s));
    let p99 = sample.and_then(|sample| sample.p99_ms);
    let errors = sample.map_or_else(none, |sample| {
        format!("{}/s  {}", rate(sample.errors_per_s), percent(sample.errors_per_s, sample.requests_per_s))
    });
    let lines: [(&str, String, Tone, Option<Curve>); 4] = [
        (
            "requests",
            sample.map_or_else(none, |sample| format!("{}/s", rate(sample.requests_per_s))),
            Tone::Strong,
            Some(|sample| Some(sample.requests_per_s)),
        ),
        (
            "errors",
            errors,
            if failing > 0.0 { Tone::Bad } else { Tone::Plain },
            Some(|sample| Some(sample.errors_per_s)),
        ),
        ("worst p99", p99.map_or_else(none, milliseconds), Tone::Strong, Some(|sample| sample.p99_ms)),
        (
            "in flight",
            format!("{}  dead letters {}", in_flight.map_or_else(none, grouped), dead.map_or_else(none, grouped)),
            if dead.unwrap_or(0) > 0 { Tone::Careful } else { Tone::Plain },
            None,
        ),
    ];
    let mut y = area.y;
    for (name, text, tone, curve) in lines {
        let height = if curve.is_some() { tall } else { 1 };
        if y + height > area.bottom() {
            break;
        }
        let buffer = frame.buffer_mut();
        buffer.set_string(area.x, y, name, theme.accent());
        buffer.set_stringn(area.x + 11, y, &text, usize::from(area.width.saturating_sub(11)), theme.style(tone));
        if let Some(curve) = curve {
            let place = Rect { x: area.x + FIGURES, y, width: area.width.saturating_sub(FIGURES), height };
            draw_curve(model, curve, theme, frame, place);
        }
        y += height;
    }
    if let (None, Some(why)) = (sample, &model.vitals_trouble) {
        let text = cut(&format!("no signals: {why}"), area.width.into(), theme.ellipsis());
        frame.buffer_mut().set_string(area.x, y.min(area.bottom() - 1), text, theme.style(Tone::Faint));
    }
}

/// The latest at the right.
fn draw_curve(model: &Model, value: Curve, theme: Theme, frame: &mut Frame, area: Rect) {
    let width = usize::from(area.width);
    let skipped = model.history.len().saturating_sub(width);
    // Whole numbers are what the curve is made of; a thousandth is fine enough.
    let point = |sample: &Sample| value(sample).map(|value| (value * 1000.0).max(0.0) as u64);
    let empty = (0..width.saturating_sub(model.history.len())).map(|_| None);
    let data: Vec<Option<u64>> = empty.chain(model.history.iter().skip(skipped).map(point)).collect();
    let style: Style = theme.accent();
    frame.render_widget(
        Sparkline::default().data(data).style(style).bar_set(theme.bars()).absent_value_symbol(" "),
        area,
    );
}

fn title(text: String, theme: Theme, frame: &mut Frame, area: Rect) -> Rect {
    if area.height == 0 {
        return area;
    }
    frame.buffer_mut().set_stringn(area.x, area.y, text, area.width.into(), theme.style(Tone::Strong));
    Rect { y: area.y + 1, height: area.height - 1, ..area }
}

fn draw_troubles(model: &Model, theme: Theme, frame: &mut Frame, area: Rect) {
    let screen = model.front();
    let rows = screen.grid.rows.len();
    let inside = title(format!("WRONG NOW ({rows})"), theme, frame, area);
    if rows == 0 {
        let text = if model.status.is_some() { "nothing" } else { "not known yet" };
        frame.render_widget(Span::styled(text, theme.style(Tone::Good)), inside);
        return;
    }
    let inside = Rect { height: inside.height.saturating_sub(1), ..inside };
    let top = screen.cursor.saturating_sub(usize::from(inside.height).saturating_sub(1));
    table::draw_rows(screen, top, theme, frame, inside);
    let hidden = rows.saturating_sub(top + usize::from(inside.height));
    if hidden > 0 {
        frame.buffer_mut().set_string(
            inside.x + 2,
            inside.bottom(),
            format!("and {hidden} more"),
            theme.style(Tone::Faint),
        );
    }
}

/// The busiest of them, as many as there is room for; with an error before all without.
fn draw_busiest(model: &Model, theme: Theme, frame: &mut Frame, area: Rect, what: &str, of: Option<&[Signals]>) {
    const COLUMNS: [(&str, u16); 5] = [("RATE/S", 8), ("ERRORS", 8), ("P50", 9), ("P99", 9), ("IN FLIGHT", 11)];
    if area.height < 2 {
        return;
    }
    let Some(of) = of else {
        if model.vitals_trouble.is_none() {
            title(format!("{}S: not known yet", what.to_uppercase()), theme, frame, area);
        }
        return;
    };
    let figures: u16 = COLUMNS.iter().map(|(_, width)| width).sum();
    let name = area.width.saturating_sub(figures).min(50);
    let inside = title(what.to_uppercase(), theme, frame, area);
    let right = |frame: &mut Frame, at: usize, y: u16, text: &str, style: Style| {
        let before: u16 = COLUMNS[..at].iter().map(|(_, width)| width).sum();
        let width = usize::from(COLUMNS[at].1);
        frame.buffer_mut().set_stringn(area.x + name + before, y, format!("{text:>width$}"), width, style);
    };
    for (at, (title, _)) in COLUMNS.iter().enumerate() {
        right(frame, at, area.y, title, theme.style(Tone::Strong));
    }
    let mut busiest: Vec<&Signals> = of.iter().collect();
    busiest.sort_by(|left, right| {
        let key = |signals: &Signals| (signals.errors_per_s, signals.requests_per_s);
        key(right).partial_cmp(&key(left)).unwrap_or(std::cmp::Ordering::Equal).then_with(|| left.name.cmp(&right.name))
    });
    for (y, signals) in (inside.y..inside.bottom()).zip(busiest) {
        let text = cut(&signals.name, name.saturating_sub(1).into(), theme.ellipsis());
        frame.buffer_mut().set_string(area.x, y, text, Style::new());
        let latency = |ms: Option<f64>| ms.map_or_else(|| "-".to_owned(), milliseconds);
        let tone = if signals.errors_per_s > 0.0 { Tone::Bad } else { Tone::Plain };
        let figures = [
            (rate(signals.requests_per_s), Tone::Plain),
            (percent(signals.errors_per_s, signals.requests_per_s), tone),
            (latency(signals.latency_p50_ms), Tone::Plain),
            (latency(signals.latency_p99_ms), Tone::Plain),
            (grouped(signals.in_flight), Tone::Plain),
        ];
        for (at, (text, tone)) in figures.iter().enumerate() {
            right(frame, at, y, text, theme.style(*tone));
        }
    }
}

fn draw_channels(model: &Model, theme: Theme, frame: &mut Frame, area: Rect) {
    if area.height < 2 {
        return;
    }
    let head = format!("{:<30}{:>9}{:>9}{:>9}{:>9}{:>9}", "CHANNEL", "DEPTH", "LAG", "DEAD", "IN/S", "OUT/S");
    let inside = title(head, theme, frame, area);
    let line = |channel: &meshctl_api::view::messages::Channel| {
        let tone = if channel.dead_letters > 0 { Tone::Bad } else { Tone::Plain };
        let name = cut(&channel.name, 29, theme.ellipsis());
        Line::from(vec![
            Span::raw(format!("{name:<30}{:>9}{:>9}", channel.depth, channel.lag)),
            Span::styled(format!("{:>9}", channel.dead_letters), theme.style(tone)),
            Span::raw(format!("{:>9}{:>9}", rate(channel.published_per_s), rate(channel.delivered_per_s))),
        ])
    };
    let lines: Vec<Line> = model.channels().iter().map(line).collect();
    frame.render_widget(Paragraph::new(lines), inside);
}

fn draw_events(model: &Model, theme: Theme, frame: &mut Frame, area: Rect) {
    let inside = title("LATELY".to_owned(), theme, frame, area);
    let ago = |at: Timestamp| age(at, model.now);
    let line = |event: &meshctl_model::event::Event| {
        let tone = match event.severity {
            meshctl_model::event::EventSeverity::Info => Tone::Plain,
            meshctl_model::event::EventSeverity::Warning => Tone::Careful,
            meshctl_model::event::EventSeverity::Error => Tone::Bad,
        };
        let text = format!("{}: {}", event.subject, event.message).replace(char::is_control, " ");
        Line::from(vec![
            Span::styled(format!("{:>6}  ", ago(event.created_at)), theme.style(Tone::Faint)),
            Span::styled(text, theme.style(tone)),
        ])
    };
    let lines: Vec<Line> = model.events.iter().rev().take(inside.height.into()).map(line).collect();
    frame.render_widget(Paragraph::new(lines), inside);
}

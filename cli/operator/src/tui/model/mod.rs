//! Everything that the screen is drawn from: plain data, changed by [`update`](super::update::update) alone.

pub(crate) mod deeds;
pub(crate) mod grid;
pub(crate) mod input;
mod rows;
mod troubles;
pub(crate) mod views;

use std::collections::{BTreeSet, VecDeque};

use jiff::Timestamp;
use meshctl_api::view::breakers::Breaker;
use meshctl_api::view::messages::{Channel, DeadLetter, Replay};
use meshctl_api::view::traces::{Trace, TraceList};
use meshctl_api::view::vitals::{Signals, Vitals};
use meshctl_api::view::{Edge, LogLine, Route, Status};
use meshctl_model::event::Event;
use meshctl_model::trace::Tree;

pub(crate) use troubles::Trouble;

use deeds::{Dialog, Job};
use grid::Grid;
use input::Input;
use views::View;

/// Events that are kept to look at.
const EVENTS: usize = 1000;
/// Lines of output that are kept to look at.
const LINES: usize = 5000;
/// Seconds that the overview looks back.
const HISTORY: usize = 300;
/// Lines of the frame that are not the view's: two above, one below.
pub(crate) const FRAME: u16 = 3;
/// Signals come once a second; after so many without any they are stale.
const STALE_AFTER_S: i64 = 5;

#[derive(Clone, Debug)]
pub(crate) struct Model {
    /// As of the last tick.
    pub(crate) now: Timestamp,
    /// Columns and rows of the terminal.
    pub(crate) size: (u16, u16),
    pub(crate) status: Option<Status>,
    /// Since when the daemon is gone; `None` while it tells.
    pub(crate) gone_since: Option<Timestamp>,
    pub(crate) vitals: Option<Vitals>,
    /// When they came.
    pub(crate) vitals_at: Option<Timestamp>,
    /// Why none come.
    pub(crate) vitals_trouble: Option<String>,
    pub(crate) history: VecDeque<Sample>,
    /// Oldest first.
    pub(crate) events: VecDeque<Event>,
    /// From where one came to where one is; never empty.
    pub(crate) screens: Vec<Screen>,
    pub(crate) prompt: Option<Prompt>,
    pub(crate) dialog: Option<Dialog>,
    /// Scrolled so far, while it is shown.
    pub(crate) help: Option<usize>,
    /// The last thing to say, and whether it is good news.
    pub(crate) notice: Option<(bool, String)>,
    pub(crate) jobs: Vec<Job>,
    /// For screens, dry runs and jobs: none is given twice.
    pub(super) numbers: u64,
    /// The front screen's rows are not those of the data any more.
    pub(super) is_unsettled: bool,
}

/// The system as a whole in one second.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sample {
    pub(crate) requests_per_s: f64,
    pub(crate) errors_per_s: f64,
    /// Of the worst route: percentiles are not averaged.
    pub(crate) p99_ms: Option<f64>,
}

/// A view, and where one is in it.
#[derive(Clone, Debug)]
pub(crate) struct Screen {
    pub(crate) number: u64,
    pub(crate) view: View,
    pub(crate) filter: String,
    /// By which column, and whether the other way round.
    pub(crate) sort: Option<(usize, bool)>,
    pub(crate) cursor: usize,
    /// The row under the cursor, which it stays on.
    pub(crate) selected: Option<String>,
    /// The first row, or line, in sight.
    pub(crate) top: usize,
    /// Columns that long lines are moved by.
    pub(crate) left: u16,
    pub(crate) marked: BTreeSet<String>,
    pub(crate) grid: Grid,
    pub(crate) loaded: Option<Loaded>,
    pub(super) asked_at: Option<Timestamp>,
    /// Asked, and not answered yet.
    pub(super) is_asking: bool,
    /// Why it could not be loaded.
    pub(crate) trouble: Option<String>,
    /// Logs: the end stays in sight, and lines are coming.
    pub(crate) is_following: bool,
    pub(super) is_streaming: bool,
}

/// What was asked for a screen.
#[derive(Clone, Debug)]
pub(crate) enum Loaded {
    Routes(Vec<Route>),
    Edges(Vec<Edge>),
    Letters(Vec<DeadLetter>),
    Replays(Vec<Replay>),
    Traces(Box<TraceList>),
    Trace {
        trace: Box<Trace>,
        tree: Tree,
    },
    Logs(VecDeque<LogLine>),
    /// A page; of a dead letter with the trace in which it died.
    Text {
        lines: Vec<String>,
        trace: Option<String>,
    },
}

/// A line typed at the bottom.
#[derive(Clone, Debug)]
pub(crate) struct Prompt {
    pub(crate) is_filter: bool,
    pub(crate) input: Input,
    pub(crate) complaint: Option<String>,
    /// What Tab offers.
    pub(crate) candidates: Vec<String>,
}

impl Model {
    pub(crate) fn new(now: Timestamp, size: (u16, u16)) -> Self {
        let mut model = Self {
            now,
            size,
            status: None,
            gone_since: None,
            vitals: None,
            vitals_at: None,
            vitals_trouble: None,
            history: VecDeque::new(),
            events: VecDeque::new(),
            screens: Vec::new(),
            prompt: None,
            dialog: None,
            help: None,
            notice: None,
            jobs: Vec::new(),
            numbers: 0,
            is_unsettled: true,
        };
        let overview = Screen::new(model.number(), View::Overview);
        model.screens.push(overview);
        model
    }

    pub(super) fn number(&mut self) -> u64 {
        self.numbers += 1;
        self.numbers
    }

    pub(crate) fn front(&self) -> &Screen {
        self.screens.last().expect("the first screen is never left")
    }

    pub(super) fn front_mut(&mut self) -> &mut Screen {
        self.screens.last_mut().expect("the first screen is never left")
    }

    /// Rows, or lines, of the front view that are in sight.
    pub(crate) fn page(&self) -> usize {
        let header = u16::from(!self.front().view.is_text());
        usize::from(self.size.1.saturating_sub(FRAME + header)).max(1)
    }

    /// Makes the front screen's rows those of the data, if they are not: before each frame and each key.
    pub(crate) fn settle(&mut self) {
        if !std::mem::take(&mut self.is_unsettled) {
            return;
        }
        let screen = self.front();
        let (columns, rows) = rows::rows(self, &screen.view);
        let grid = Grid::new(columns, rows, &screen.filter, screen.sort);
        let page = self.page();
        let screen = self.front_mut();
        let found = screen.selected.as_ref().and_then(|id| grid.rows.iter().position(|row| row.id == *id));
        // Who looks at the newest goes on to do so.
        let is_newest = screen.cursor == 0 && screen.view.is_newest_first();
        let cursor = if is_newest { 0 } else { found.unwrap_or(screen.cursor) };
        screen.grid = grid;
        if !screen.view.is_text() {
            screen.move_to(cursor, page);
        }
    }

    /// Why what is shown may not be so any more; `None` while everything is live.
    pub(crate) fn staleness(&self) -> Option<String> {
        let seconds = |since: Timestamp| self.now.duration_since(since).as_secs().max(0);
        if let Some(since) = self.gone_since {
            return Some(format!("stale since {} s: the daemon is gone", seconds(since)));
        }
        let at = self.vitals_at.filter(|at| seconds(*at) >= STALE_AFTER_S)?;
        Some(format!("signals stale since {} s", seconds(at)))
    }

    /// The channels as they were seen last.
    pub(crate) fn channels(&self) -> &[Channel] {
        match (&self.vitals, &self.status) {
            (Some(vitals), _) => &vitals.channels,
            (None, Some(status)) => &status.channels,
            (None, None) => &[],
        }
    }

    pub(crate) fn breakers(&self) -> &[Breaker] {
        self.vitals.as_ref().map_or(&[], |vitals| &vitals.breakers)
    }

    /// The second that just passed, of all routes together.
    pub(crate) fn sample(&self) -> Option<Sample> {
        self.history.back().copied()
    }

    pub(crate) fn troubles(&self) -> Vec<Trouble> {
        troubles::troubles(self)
    }

    pub(super) fn remember(&mut self, event: Event) {
        let number = |event: &Event| event.id.parse().unwrap_or(0u64);
        if self.events.back().is_some_and(|last| number(last) >= number(&event)) {
            return;
        }
        if self.events.len() == EVENTS {
            self.events.pop_front();
        }
        self.events.push_back(event);
    }

    pub(super) fn sense(&mut self, vitals: Vitals) {
        let sum = |value: fn(&Signals) -> f64| vitals.routes.iter().map(value).sum();
        let p99_ms = vitals.routes.iter().filter_map(|route| route.latency_p99_ms).max_by(f64::total_cmp);
        let sample = Sample {
            requests_per_s: sum(|route| route.requests_per_s),
            errors_per_s: sum(|route| route.errors_per_s),
            p99_ms,
        };
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history.push_back(sample);
        self.vitals = Some(vitals);
        self.vitals_at = Some(self.now);
        self.vitals_trouble = None;
    }
}

impl Screen {
    pub(super) fn new(number: u64, view: View) -> Self {
        Self {
            number,
            is_following: matches!(view, View::Logs(_)),
            view,
            filter: String::new(),
            sort: None,
            cursor: 0,
            selected: None,
            top: 0,
            left: 0,
            marked: BTreeSet::new(),
            grid: Grid::default(),
            loaded: None,
            asked_at: None,
            is_asking: false,
            trouble: None,
            is_streaming: false,
        }
    }

    /// The id of the row under the cursor.
    pub(crate) fn current(&self) -> Option<&str> {
        self.grid.rows.get(self.cursor).map(|row| row.id.as_str())
    }

    /// Puts the cursor on a row, and the row in sight.
    pub(super) fn move_to(&mut self, row: usize, page: usize) {
        let last = self.grid.rows.len().saturating_sub(1);
        self.cursor = row.min(last);
        self.selected = self.current().map(str::to_owned);
        // Not below what fills the page, so that rows that went leave no hole.
        let lowest = (last + 1).saturating_sub(page);
        self.top = self.top.clamp(self.cursor.saturating_sub(page - 1), self.cursor).min(lowest);
    }

    /// The lines of a text, as filtered.
    pub(crate) fn lines(&self) -> Vec<&str> {
        let (inverse, wanted) = match self.filter.strip_prefix('!') {
            Some(rest) => (true, rest.to_lowercase()),
            None => (false, self.filter.to_lowercase()),
        };
        let is_match = |line: &&str| wanted.is_empty() || line.to_lowercase().contains(&wanted) != inverse;
        match &self.loaded {
            Some(Loaded::Text { lines, .. }) => lines.iter().map(String::as_str).filter(is_match).collect(),
            _ => Vec::new(),
        }
    }

    /// The lines of the log, as filtered.
    pub(crate) fn log(&self) -> Vec<&LogLine> {
        let (inverse, wanted) = match self.filter.strip_prefix('!') {
            Some(rest) => (true, rest.to_lowercase()),
            None => (false, self.filter.to_lowercase()),
        };
        let is_match = |line: &&LogLine| {
            wanted.is_empty()
                || [&line.line, &line.instance].iter().any(|text| text.to_lowercase().contains(&wanted)) != inverse
        };
        match &self.loaded {
            Some(Loaded::Logs(lines)) => lines.iter().filter(is_match).collect(),
            _ => Vec::new(),
        }
    }

    /// How many lines there are to scroll in.
    pub(crate) fn length(&self) -> usize {
        if matches!(self.view, View::Logs(_)) { self.log().len() } else { self.lines().len() }
    }

    /// When the last line was written.
    pub(super) fn log_end(&self) -> Option<Timestamp> {
        match &self.loaded {
            Some(Loaded::Logs(lines)) => lines.back().map(|line| line.at),
            _ => None,
        }
    }

    pub(super) fn write_down(&mut self, lines: Vec<LogLine>) {
        let Some(Loaded::Logs(log)) = &mut self.loaded else {
            self.loaded = Some(Loaded::Logs(lines.into_iter().rev().take(LINES).rev().collect()));
            return;
        };
        // A log that is followed again begins with the line that it ended with.
        let last = log.back().map(|line| line.at);
        let is_resumed = !self.is_streaming;
        log.extend(lines.into_iter().filter(|line| !is_resumed || last.is_none_or(|last| line.at > last)));
        log.drain(..log.len().saturating_sub(LINES));
    }
}

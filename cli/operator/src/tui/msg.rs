//! Everything that can happen to the screen.

use crossterm::event::KeyEvent;
use jiff::Timestamp;
use meshctl_api::ApiError;
use meshctl_api::view::messages::Replay;
use meshctl_api::view::vitals::Vitals;
use meshctl_api::view::{LogLine, Told};
use meshctl_model::event::Event;

use super::model::Loaded;
use super::model::deeds::Answer;

#[derive(Debug)]
pub(crate) enum Msg {
    Key(KeyEvent),
    Paste(String),
    /// Columns and rows.
    Resize(u16, u16),
    /// A second has passed.
    Tick(Timestamp),
    Told(Box<Told>),
    /// The daemon is gone; it is waited for.
    Gone,
    Vitals(Box<Vitals>),
    NoVitals(String),
    /// Events from before the stream began, oldest first.
    Past(Vec<Event>),
    /// What was asked for a screen.
    Loaded {
        screen: u64,
        result: Result<Loaded, ApiError>,
    },
    Written {
        screen: u64,
        lines: Vec<LogLine>,
    },
    /// No more lines come.
    LogEnded {
        screen: u64,
        why: Option<String>,
    },
    /// What a dry run says.
    WouldBe {
        dry_run: u64,
        result: Result<Answer, ApiError>,
    },
    /// What the daemon says to an order.
    Did {
        job: u64,
        result: Result<Answer, ApiError>,
    },
    ReplayIs {
        job: u64,
        result: Result<Replay, ApiError>,
    },
}

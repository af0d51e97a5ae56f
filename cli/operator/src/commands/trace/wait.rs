//! Waiting until everything that follows from a request is done.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use meshctl_api::client::Client;
use meshctl_api::view::traces::Trace;
use meshctl_model::exit;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep, sleep_until};

use super::one;
use crate::failure::{Failure, Outcome};
use crate::output::{self, Format};
use crate::session::Session;
use crate::traces::resolve;

/// Nothing tells of a trace's progress: it is asked for, at first often, and less so while nothing changes, because for each
/// answer everybody is asked who may remember more.
const POLL: Duration = Duration::from_millis(200);
const SLOWEST: Duration = Duration::from_secs(1);
/// Spans are sent a tenth of a second late, and each process sends its own: a trace to which nothing was added for so long, and in
/// which nothing is missing, is complete.
const QUIET: Duration = Duration::from_millis(800);

enum Ending {
    Complete,
    TimedOut,
    Interrupted,
}

/// Waits for the trace that `id` means, until `timeout` after `begun`, and shows it.
pub(super) async fn until_complete(
    session: &Session,
    client: &Client,
    id: &str,
    (begun, timeout): (Instant, Duration),
    format: &Format,
) -> Outcome {
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|error| Failure::file("cannot listen for Ctrl-C", &error))?;
    let mut view = View::new(session.is_quiet());
    let deadline = sleep_until(begun + timeout);
    tokio::pin!(deadline);
    let mut trace: Option<Trace> = None;
    let mut since = Instant::now();
    let mut pause = POLL;
    let ending = loop {
        let next = tokio::select! {
            next = resolve(client, id) => next,
            _ = interrupt.recv() => break Ending::Interrupted,
            () = &mut deadline => break Ending::TimedOut,
        };
        match next {
            Ok(next) => {
                if trace.as_ref().is_none_or(|trace| trace.spans.len() != next.spans.len() || trace.gaps != next.gaps) {
                    (since, pause) = (Instant::now(), POLL);
                }
                trace = Some(next);
            }
            // Its first span is on its way.
            Err(failure) if failure.exit == exit::NOT_FOUND && trace.is_none() => {}
            Err(failure) => {
                view.close();
                return Err(failure);
            }
        }
        if trace.as_ref().is_some_and(|trace| trace.complete) && since.elapsed() >= QUIET {
            break Ending::Complete;
        }
        view.show(&awaited(trace.as_ref()));
        tokio::select! {
            () = sleep(pause) => {}
            _ = interrupt.recv() => break Ending::Interrupted,
            () = &mut deadline => break Ending::TimedOut,
        }
        pause = (pause * 5 / 4).min(SLOWEST);
    };
    view.close();
    if let Some(trace) = &trace {
        one(session, trace, format)?;
    }
    match ending {
        Ending::Complete => Ok(exit::OK),
        Ending::Interrupted => Ok(exit::INTERRUPTED),
        Ending::TimedOut => Err(Failure::new(
            exit::TIMED_OUT,
            format!("after {timeout:?} the trace is not complete: {}", missing(trace.as_ref())),
        )
        .hint(format!("`meshctl trace {id} --wait --timeout 5m` waits longer; `meshctl status` and `meshctl channel ls` tell what stands still"))),
    }
}

/// What is waited for, by name.
fn awaited(trace: Option<&Trace>) -> String {
    match trace {
        Some(trace) if trace.complete => "everything is there; waiting for stragglers".to_owned(),
        trace => format!("waiting: {}", missing(trace)),
    }
}

fn missing(trace: Option<&Trace>) -> String {
    match trace.map(|trace| trace.gaps.as_slice()) {
        None => "no span of it was received yet".to_owned(),
        Some([]) => "spans may still come".to_owned(),
        Some([only]) => only.clone(),
        Some([first, rest @ ..]) => format!("{first}, and {} more", rest.len()),
    }
    .replace(char::is_control, " ")
}

/// On a terminal a line that changes, in a pipe a line for each change.
enum View {
    Quiet,
    Plain(String),
    Drawn(ProgressBar),
}

impl View {
    fn new(quiet: bool) -> Self {
        if quiet {
            return Self::Quiet;
        }
        if !output::can_draw() {
            return Self::Plain(String::new());
        }
        let line = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{spinner} {wide_msg}") {
            line.set_style(style);
        }
        line.enable_steady_tick(Duration::from_millis(120));
        Self::Drawn(line)
    }

    fn show(&mut self, text: &str) {
        match self {
            Self::Quiet => {}
            Self::Plain(said) if said == text => {}
            Self::Plain(said) => {
                output::say(text);
                text.clone_into(said);
            }
            Self::Drawn(line) => line.set_message(text.to_owned()),
        }
    }

    fn close(&self) {
        if let Self::Drawn(line) = self {
            line.finish_and_clear();
        }
    }
}

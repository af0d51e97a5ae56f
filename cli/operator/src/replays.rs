//! Following a replay: its counts on stderr until the last message has an outcome, and how it ended.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use meshctl_api::client::Client;
use meshctl_api::error::ErrorCode;
use meshctl_api::view::messages::Replay;
use meshctl_model::exit;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, sleep};

use crate::failure::{Failure, Outcome};
use crate::kinds::Kind;
use crate::output::{self, Format, document, print, print_line};
use crate::progress::RETURN;
use crate::session::Session;
use crate::show;

/// Nothing tells of a replay's progress: it is asked for.
const POLL: Duration = Duration::from_millis(250);

enum Ending {
    Over,
    TimedOut,
    Interrupted,
}

/// Shows `replay` until it is over, for at most `timeout`, and reports how it ended.
pub(crate) async fn pursue(
    session: &Session,
    client: &Client,
    replay: Replay,
    timeout: Duration,
    format: &Format,
) -> Outcome {
    let (ending, replay) = follow(session, client, replay, timeout).await?;
    let id = &replay.replay_id;
    if matches!(ending, Ending::Interrupted) {
        session.say(format_args!("detached: replay {id} goes on without this command"));
        session.say(format_args!("  `meshctl replay show {id} -w` follows it, `meshctl replay cancel {id}` ends it"));
        return Ok(exit::INTERRUPTED);
    }
    report(&replay, format)?;
    if matches!(ending, Ending::TimedOut) {
        let Replay { pending, selected, .. } = replay;
        return Err(Failure::new(exit::TIMED_OUT, format!("{pending} of {selected} messages are still pending")).hint(
            format!("it goes on: `meshctl replay show {id} -w` follows it, `meshctl replay cancel {id}` ends it"),
        ));
    }
    verdict(&replay)
}

/// Whether it went well. A replay that is not over has not failed.
pub(crate) fn verdict(replay: &Replay) -> Outcome {
    let Replay { replay_id: id, failed_again, selected, issued, withdrawn, processed, .. } = replay;
    if *failed_again > 0 {
        return Err(Failure::new(exit::FAILURE, format!("{failed_again} of {selected} messages failed again"))
            .hint(format!("`meshctl dlq ls --where 'replayId = \"{id}\"'` shows them and why")));
    }
    if replay.state == "cancelled" {
        let left = selected.saturating_sub(*issued);
        return Err(Failure::new(exit::FAILURE, format!("the replay was cancelled: {left} messages were not issued"))
            .hint("they are dead letters as before; `meshctl audit` shows who cancelled it and why"));
    }
    if replay.state == "done" && processed < selected {
        return Err(Failure::new(
            exit::FAILURE,
            format!("only {processed} of {selected} messages were processed: {withdrawn} were withdrawn"),
        )
        .hint("`meshctl events` shows why the broker would not take them; `meshctl dlq ls` what is dead"));
    }
    Ok(exit::OK)
}

async fn follow(
    session: &Session,
    client: &Client,
    mut replay: Replay,
    timeout: Duration,
) -> Result<(Ending, Replay), Failure> {
    let mut view = View::new(session.is_quiet(), &replay);
    // From here on Ctrl-C ends the waiting, not this process.
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|error| Failure::file("cannot listen for Ctrl-C", &error))?;
    let deadline = sleep(timeout);
    tokio::pin!(deadline);
    let mut gone_since: Option<Instant> = None;
    let ending = loop {
        view.show(&replay);
        if is_over(&replay) {
            break Ending::Over;
        }
        let next = async {
            sleep(POLL).await;
            client.replay(&replay.replay_id).await
        };
        let next = tokio::select! {
            next = next => next,
            _ = interrupt.recv() => break Ending::Interrupted,
            () = &mut deadline => break Ending::TimedOut,
        };
        match next {
            Ok(next) => (replay, gone_since) = (next, None),
            // A replay outlives its daemon; the next one goes on with it.
            Err(error) if is_absent(error.code) && gone_since.is_none_or(|since| since.elapsed() < RETURN) => {
                if gone_since.is_none() {
                    view.say(&format!("the daemon is gone; waiting up to {RETURN:?} for one that goes on"));
                    gone_since = Some(Instant::now());
                }
            }
            Err(error) => {
                view.close();
                return Err(error.into());
            }
        }
    };
    view.close();
    Ok((ending, replay))
}

fn is_over(replay: &Replay) -> bool {
    !matches!(replay.state.as_str(), "running" | "paused")
}

fn is_absent(code: ErrorCode) -> bool {
    matches!(code, ErrorCode::Unreachable | ErrorCode::Silent | ErrorCode::Unavailable | ErrorCode::TimedOut)
}

/// The result on stdout.
pub(crate) fn report(replay: &Replay, format: &Format) -> Result<(), Failure> {
    let listing = show::replays(vec![replay.clone()], Timestamp::now());
    if let Some(item) = listing.items.first()
        && document(format, &show::alone(Kind::Replay, item))?
    {
        return Ok(());
    }
    if *format == Format::Name {
        return print(listing.names());
    }
    print_line(format_args!("replay/{} {}: {}", replay.replay_id, replay.state, counts(replay)))
}

/// `selected 42, issued 42, processed 40, failed again 2, pending 0`.
fn counts(replay: &Replay) -> String {
    let Replay { selected, issued, processed, failed_again, withdrawn, pending, .. } = replay;
    format!(
        "selected {selected}, issued {issued}, processed {processed}, failed again {failed_again}, pending {pending}{}",
        if *withdrawn > 0 { format!(", withdrawn {withdrawn}") } else { String::new() }
    )
}

/// On a terminal a bar, in a pipe a line for every tenth of the way.
enum View {
    Quiet,
    Plain(Option<(String, u64)>),
    Drawn(ProgressBar),
}

impl View {
    fn new(quiet: bool, replay: &Replay) -> Self {
        if quiet {
            return Self::Quiet;
        }
        if !output::can_draw() {
            return Self::Plain(None);
        }
        let bar = ProgressBar::with_draw_target(Some(replay.selected), ProgressDrawTarget::stderr());
        if let Ok(style) = ProgressStyle::with_template("{bar:20} {wide_msg}") {
            bar.set_style(style);
        }
        Self::Drawn(bar)
    }

    fn show(&mut self, replay: &Replay) {
        let Replay { selected, issued, processed, failed_again, withdrawn, pending, state, .. } = replay;
        let done = processed + failed_again + withdrawn;
        let line = format!(
            "{issued}/{selected} issued · {processed} processed · {failed_again} failed again · {pending} pending{}",
            if state == "paused" { " · paused" } else { "" }
        );
        match self {
            Self::Quiet => {}
            Self::Plain(said) => {
                let place = (state.clone(), done * 10 / (*selected).max(1));
                if said.as_ref() != Some(&place) {
                    output::say(line);
                    *said = Some(place);
                }
            }
            Self::Drawn(bar) => {
                bar.set_position(done);
                bar.set_message(line);
            }
        }
    }

    fn say(&self, text: &str) {
        match self {
            Self::Quiet => {}
            Self::Plain(_) => output::say(text),
            Self::Drawn(bar) => bar.suspend(|| output::say(text)),
        }
    }

    fn close(&self) {
        if let Self::Drawn(bar) = self {
            bar.finish_and_clear();
        }
    }
}

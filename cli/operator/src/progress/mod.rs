//! Following a change until it is done: what the daemon tells is folded into one picture, the picture is shown, and an
//! event decides how it ended.

mod lines;
mod picture;
mod view;

use std::time::Duration;

use futures_util::FutureExt;
use meshctl_api::client::{Heard, Watch};
use meshctl_api::view::{Status, Told};
use meshctl_model::event::Event;
use serde::{Deserialize, Serialize};
use tokio::signal::unix::{SignalKind, signal};

pub(crate) use lines::waiting;
pub(crate) use picture::fold;

use crate::failure::Failure;
use crate::session::Session;
use view::View;

/// How long a command waits for a daemon that went away in the middle of a change.
pub(crate) const RETURN: Duration = Duration::from_secs(10);

/// What is waited for.
#[derive(Clone, Debug)]
pub(crate) enum Goal {
    /// The outcome of this revision, told after this event.
    Outcome { revision: u64, after: String },
    /// Everything is ready, as it is wanted now.
    Ready,
    /// The daemon has ended.
    Down,
}

/// How it ended.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Ending {
    Applied,
    Failed(Box<Failed>),
    /// Somebody wants another revision by now.
    Superseded(u64),
    /// Somebody takes the system down: who, in words.
    TakenDown(String),
    /// The daemon is gone.
    Gone,
    TimedOut,
    /// Ctrl-C.
    Interrupted,
}

/// The data of `revision.failed`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct Failed {
    pub(crate) revision: u64,
    pub(crate) failures: Vec<FailedService>,
    pub(crate) blocked: Vec<BlockedService>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct FailedService {
    pub(crate) service: String,
    pub(crate) reason: String,
    /// Its last lines of output.
    pub(crate) log: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(crate) struct BlockedService {
    pub(crate) service: String,
    pub(crate) by: String,
}

/// Shows what `watch` tells until `goal` is reached, for at most `timeout`. Returns the last picture with the ending.
///
/// # Errors
/// When what the daemon tells is not understood.
pub(crate) async fn follow(
    session: &Session,
    mut watch: Watch,
    goal: &Goal,
    timeout: Duration,
) -> Result<(Ending, Option<Status>), Failure> {
    let mut status = None;
    let mut view = View::new(session.is_quiet());
    // From here on Ctrl-C ends the waiting, not this process.
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|error| Failure::file("cannot listen for Ctrl-C", &error))?;
    let deadline = tokio::time::sleep(timeout);
    tokio::pin!(deadline);
    let ending = loop {
        // What has arrived is taken in before anything is shown: a hundred services change at once.
        let heard = match watch.hear().now_or_never() {
            Some(heard) => heard?,
            None => {
                if let Some(status) = &status {
                    view.show(status);
                }
                tokio::select! {
                    heard = watch.hear() => heard?,
                    _ = interrupt.recv() => break Ending::Interrupted,
                    () = &mut deadline => break Ending::TimedOut,
                }
            }
        };
        let told = match heard {
            Heard::Told(told) => *told,
            Heard::Broken => {
                if matches!(goal, Goal::Outcome { .. } | Goal::Ready) {
                    view.say(format_args!("the daemon is gone; waiting up to {RETURN:?} for one that goes on"));
                }
                continue;
            }
            Heard::Ended => break Ending::Gone,
        };
        if let Told::Event(event) = &told
            && let Some(ending) = outcome(goal, event)
        {
            break ending;
        }
        fold(&mut status, told);
        if matches!(goal, Goal::Ready) && status.as_ref().is_some_and(|status| status.ready) {
            break Ending::Applied;
        }
    };
    if let Some(status) = &status {
        view.show(status);
    }
    view.close();
    Ok((ending, status))
}

/// What `event` decides about `goal`.
fn outcome(goal: &Goal, event: &Event) -> Option<Ending> {
    let failed = || Ending::Failed(Box::new(serde_json::from_value(event.data.clone()).unwrap_or_default()));
    let about = event.data.get("revision").and_then(serde_json::Value::as_u64);
    match (goal, event.kind.as_str()) {
        // After a break the stream begins with what was missed, and that may reach further back than asked for.
        (Goal::Outcome { after, .. }, _) if number(&event.id) <= number(after) => None,
        // Then nothing is wanted any more, and no revision has an outcome.
        (Goal::Outcome { .. } | Goal::Ready, "system.goingDown" | "system.down") => {
            Some(Ending::TakenDown(event.message.clone()))
        }
        (Goal::Ready, "revision.failed") => Some(failed()),
        (Goal::Outcome { revision, .. }, "revision.applied" | "revision.failed") if about > Some(*revision) => {
            about.map(Ending::Superseded)
        }
        (Goal::Outcome { revision, .. }, "revision.applied") if about == Some(*revision) => Some(Ending::Applied),
        (Goal::Outcome { revision, .. }, "revision.failed") if about == Some(*revision) => Some(failed()),
        _ => None,
    }
}

/// Ids of events are numbers that rise.
fn number(id: &str) -> u64 {
    id.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use meshctl_model::event::EventSeverity;
    use serde_json::json;

    use super::*;

    fn event(id: &str, kind: &str, data: serde_json::Value) -> Event {
        Event {
            id: id.into(),
            kind: kind.into(),
            subject: "system".into(),
            message: String::new(),
            severity: EventSeverity::Info,
            data,
            created_at: jiff::Timestamp::UNIX_EPOCH,
        }
    }

    #[test]
    fn only_the_outcome_of_this_revision_ends_it() {
        let goal = Goal::Outcome { revision: 3, after: "9".into() };
        let failed = json!({
            "revision": 3, "failures": [{ "service": "orders", "reason": "exited with status 1", "log": ["boom"] }],
            "blocked": [{ "service": "shipping", "by": "orders" }]
        });
        let ended = |id, kind, data| outcome(&goal, &event(id, kind, data));
        assert_eq!(ended("8", "revision.applied", json!({ "revision": 3 })), None, "an event from before");
        assert_eq!(ended("10", "revision.applied", json!({ "revision": 2 })), None);
        assert_eq!(ended("100", "revision.applied", json!({ "revision": 3 })), Some(Ending::Applied));
        assert_eq!(ended("11", "revision.applied", json!({ "revision": 4 })), Some(Ending::Superseded(4)));
        assert_eq!(ended("11", "instance.ready", json!({})), None);
        assert_eq!(ended("8", "system.goingDown", json!({})), None, "the system was down before");
        assert_eq!(ended("11", "system.goingDown", json!({})), Some(Ending::TakenDown(String::new())));
        let Some(Ending::Failed(failed)) = ended("11", "revision.failed", failed) else { panic!("it failed") };
        assert_eq!(
            (failed.failures[0].log.as_slice(), failed.blocked[0].by.as_str()),
            (&["boom".to_owned()][..], "orders")
        );
    }
}

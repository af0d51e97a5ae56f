//! Dialogs, orders, and what became of them.

use meshctl_api::ApiError;
use meshctl_api::view::messages::Replay;
use meshctl_model::event::Event;
use serde_json::Value;

use super::with_hint;
use crate::tui::effects::Effect;
use crate::tui::model::Model;
use crate::tui::model::deeds::{Answer, Deed, Dialog, Job, JobState, Order, is_nothing};

/// Jobs that are remembered once they are over.
const PAST_JOBS: usize = 20;

/// Opens the dialog, and asks what it would mean.
pub(super) fn propose(model: &mut Model, deed: Deed) -> Vec<Effect> {
    model.dialog = Some(Dialog::new(deed));
    dry_run(model)
}

/// Asks what the order as it stands would mean.
pub(super) fn dry_run(model: &mut Model) -> Vec<Effect> {
    let number = model.number();
    let Some(dialog) = &mut model.dialog else { return Vec::new() };
    dialog.radius = None;
    dialog.dry_run = number;
    match dialog.order(true) {
        Ok(order) => {
            dialog.complaint = None;
            vec![Effect::DryRun { dry_run: number, order }]
        }
        Err(why) => {
            dialog.complaint = Some(why);
            Vec::new()
        }
    }
}

pub(super) fn would_be(model: &mut Model, dry_run: u64, result: Result<Answer, ApiError>) {
    if let Some(dialog) = model.dialog.as_mut().filter(|dialog| dialog.dry_run == dry_run) {
        dialog.radius = Some(result.map_err(|error| with_hint(&error.message, error.hint.as_deref())));
    }
}

/// Does it, if everything that has to be known is known. A reason is what keeps a slip of the finger from doing it.
pub(super) fn confirm(model: &mut Model) -> Vec<Effect> {
    let number = model.number();
    let Some(dialog) = &mut model.dialog else { return Vec::new() };
    if dialog.job.is_some() {
        model.dialog = None;
        return Vec::new();
    }
    let order = dialog.order(false);
    dialog.complaint = match (&dialog.radius, &order) {
        (_, Err(why)) => Some(why.clone()),
        (None, _) => Some("what it would mean is not known yet".to_owned()),
        (Some(Err(_)), _) => Some("it would be refused".to_owned()),
        (Some(Ok(answer)), _) if is_nothing(answer) => Some("there is nothing to do".to_owned()),
        _ if dialog.reason().is_empty() => Some("say why: a reason confirms it".to_owned()),
        _ => None,
    };
    let Ok(order) = order else { return Vec::new() };
    if dialog.complaint.is_some() {
        return Vec::new();
    }
    dialog.job = Some(number);
    model.jobs.push(Job { number, order: order.clone(), state: JobState::Sent });
    while model.jobs.len() > PAST_JOBS && matches!(model.jobs[0].state, JobState::Over { .. }) {
        model.jobs.remove(0);
    }
    vec![Effect::Do { job: number, order }]
}

/// A job goes on to `state`; where it ends and nobody looks at it, that is said.
fn advance(model: &mut Model, number: u64, state: JobState) {
    let is_shown = model.dialog.as_ref().is_some_and(|dialog| dialog.job == Some(number));
    let Some(job) = model.jobs.iter_mut().find(|job| job.number == number) else { return };
    if let JobState::Over { good, text } = &state
        && !is_shown
    {
        model.notice = Some((*good, text.clone()));
    }
    job.state = state;
}

pub(super) fn did(model: &mut Model, number: u64, result: Result<Answer, ApiError>) {
    let state = match result {
        Ok(answer) => JobState::of(answer),
        Err(error) => JobState::Over { good: false, text: with_hint(&error.message, error.hint.as_deref()) },
    };
    let is_rolling = matches!(state, JobState::Rolling { .. });
    advance(model, number, state);
    if is_rolling {
        // What came of it may have been told before the answer.
        let told: Vec<Event> = model.events.iter().cloned().collect();
        told.iter().for_each(|event| hear(model, event));
    }
}

pub(super) fn replay_is(model: &mut Model, number: u64, result: Result<Replay, ApiError>) {
    // A replay outlives its daemon: what cannot be asked now is asked again.
    if let Ok(replay) = result {
        advance(model, number, JobState::of_replay(replay));
    }
}

/// An event may be the outcome of a revision that is pursued.
pub(super) fn hear(model: &mut Model, event: &Event) {
    let id = |text: &str| text.parse().unwrap_or(0u64);
    let about = event.data.get("revision").and_then(Value::as_u64);
    let ended: Vec<(u64, JobState)> = model
        .jobs
        .iter()
        .filter_map(|job| {
            let JobState::Rolling { revision, after } = &job.state else { return None };
            if id(&event.id) <= id(after) {
                return None;
            }
            let over = |good: bool, text: String| Some((job.number, JobState::Over { good, text }));
            match event.kind.as_str() {
                "revision.applied" | "revision.failed" if about > Some(*revision) => {
                    over(false, format!("revision {revision} gave way to revision {}", about.unwrap_or_default()))
                }
                "revision.applied" if about == Some(*revision) => {
                    over(true, format!("revision {revision} is applied; `meshctl rollout undo` goes back"))
                }
                "revision.failed" if about == Some(*revision) => {
                    over(false, format!("revision {revision} failed: {}", event.message))
                }
                "system.goingDown" | "system.down" => over(false, event.message.clone()),
                _ => None,
            }
        })
        .collect();
    ended.into_iter().for_each(|(number, state)| advance(model, number, state));
}

/// Gateways acknowledge after the answer: the breakers tell.
pub(super) fn acknowledge(model: &mut Model) {
    let seen = |job: &Job| match (&job.state, &job.order) {
        (JobState::Acknowledging(known), Order::Force { force, .. }) => {
            let breaker = model.breakers().iter().find(|breaker| breaker.edge == known.edge)?;
            Some((job.number, JobState::of_breaker(force.word(), breaker.clone())))
        }
        _ => None,
    };
    let seen: Vec<(u64, JobState)> = model.jobs.iter().filter_map(seen).collect();
    seen.into_iter().for_each(|(number, state)| advance(model, number, state));
}

/// Nothing tells of a replay's progress: it is asked for, once a second.
pub(super) fn look_after(model: &mut Model) -> Vec<Effect> {
    let running = model.jobs.iter().filter_map(|job| match &job.state {
        JobState::Replaying(replay) => Some(Effect::LookAtReplay { job: job.number, id: replay.replay_id.clone() }),
        _ => None,
    });
    running.collect()
}

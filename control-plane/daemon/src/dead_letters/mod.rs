//! Dead letters: what subscribers could not be given, kept until somebody has dealt with it.
//!
//! `intake` consumes the dead channels and the receipts, writes them down, and only then settles; `runner` sends replays on
//! their way; both, and operators, change the `store` in transactions whose rules are in `take_in`, `sets` and `replays`.
//! `replay` is pure. So each message is counted once wherever a daemon dies, and a replay issues each letter at most once.

mod closing;
mod fingerprint;
mod forget;
mod intake;
mod letters;
mod notices;
mod replay;
mod replays;
mod runner;
mod sets;
mod sql;
pub mod store;
mod take_in;
#[cfg(test)]
mod tests;
mod transfer;

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::messages::{
    DeadLetter, DeadLetterGroup, DeadLetterOutcome, DeadLetterQuery, DeadLetterRequest, Replay,
};
use meshctl_drivers::broker::SharedBroker;
use meshctl_model::delivery::Channel;
use meshctl_model::event::EventSeverity;
use serde_json::{Value, json};
use tokio::sync::{Notify, mpsc, watch};

pub use replay::Wish;
pub use replays::WINDOW;
pub use sets::Action;
pub use transfer::Import;

use crate::audit::{self, Deed};
use crate::control::Message;
use crate::operate::Asked;
use crate::report::Report;
use crate::traces::Traces;
use sql::Where;
use store::Store;

/// Characters of a selection that the audit shows; the fingerprint stands for all of it.
const SUBJECT: usize = 500;

/// What the store knows of a subscription. `takenIn` and `issued` only ever rise; the rest is what is there now. With the broker's
/// counts of the same instant: everything accepted, and everything imported, is somewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Messages that came through the dead channel, each once.
    pub taken_in: u64,
    /// What the channel never accepted: letters from elsewhere, and second copies of those that a replay had given up and that
    /// came through after all. The ledger's accepted side has them, too.
    pub imported: u64,
    pub dead: u64,
    pub parked: u64,
    /// By an operator, and second copies of messages that were dead letters already.
    pub discarded: u64,
    /// In the replay channel or the retries behind it.
    pub replaying: u64,
    /// By a replay.
    pub processed: u64,
    /// Published to the replay channel as far as is known, each once.
    pub issued: u64,
}

/// Everything that can be done with dead letters. Cheap to clone.
#[derive(Clone, Debug)]
pub struct DeadLetters {
    store: Store,
    /// There is something to replay.
    wake: Arc<Notify>,
    tell: Tell,
}

/// Tells what happens by way of the control loop.
#[derive(Clone, Debug)]
pub struct Tell(mpsc::Sender<Message>);

impl Tell {
    async fn happened(
        &self,
        severity: EventSeverity,
        kind: &'static str,
        subject: String,
        message: String,
        data: Value,
    ) {
        let report = Report::Happened { severity, kind, subject, message, data };
        // A loop that has ended tells nobody anything.
        let _ = self.0.send(Message::Report(report)).await;
    }

    /// Every letter of a replay has its outcome.
    async fn finished(&self, store: &Store, id: String) {
        let replay = id.clone();
        let Ok(done) = store.read("show a replay", move |from| replays::show(from, &replay)).await else { return };
        let Replay { selected, processed, failed_again, withdrawn, .. } = done;
        let severity = if processed < selected { EventSeverity::Warning } else { EventSeverity::Info };
        let mut message =
            format!("of {selected} dead letters {processed} were processed and {failed_again} failed again");
        if withdrawn > 0 {
            message.push_str(&format!("; {withdrawn} were not issued"));
        }
        let data = json!({
            "selected": selected, "processed": processed, "failedAgain": failed_again, "withdrawn": withdrawn,
        });
        self.happened(severity, "replay.done", format!("replay/{id}"), message, data).await;
    }
}

impl DeadLetters {
    /// Nothing is taken in and nothing replayed before [`Self::start`].
    pub fn new(store: Store, messages: mpsc::Sender<Message>) -> Self {
        Self { store, wake: Arc::default(), tell: Tell(messages) }
    }

    /// Takes in what dies in these channels, and sends replays on their way, until the runtime ends.
    /// What they pass through with us is said in `traces`.
    pub fn start(&self, broker: SharedBroker, channels: watch::Receiver<BTreeMap<String, Channel>>, traces: Traces) {
        let (store, tell) = (self.store.clone(), self.tell.clone());
        tokio::spawn(intake::follow(store, Arc::clone(&broker), tell, traces.clone(), channels.clone()));
        let wake = Arc::clone(&self.wake);
        let runner = runner::Runner::new(self.store.clone(), broker, self.tell.clone(), traces, wake, channels);
        tokio::spawn(runner.run());
        tokio::spawn(forget::now_and_then(self.store.clone()));
    }

    /// The latest failure first.
    ///
    /// # Errors
    /// When the filter is none, or the store cannot be read. So it is with all that follow.
    pub async fn list(&self, query: DeadLetterQuery) -> Result<Vec<DeadLetter>, ApiError> {
        let wanted = Where::of(&query, Timestamp::now())?;
        self.store.read("list dead letters", move |from| letters::list(from, &query, &wanted)).await
    }

    /// By what `query.group_by` names, the largest group first.
    pub async fn group(&self, query: DeadLetterQuery) -> Result<Vec<DeadLetterGroup>, ApiError> {
        let wanted = Where::of(&query, Timestamp::now())?;
        let by = query.group_by.unwrap_or_default();
        self.store.read("group dead letters", move |from| letters::group(from, &by, &wanted)).await
    }

    pub async fn show(&self, id: String) -> Result<DeadLetter, ApiError> {
        self.store.read("show a dead letter", move |from| letters::show(from, &id)).await
    }

    /// By channel and subscription, all at one instant.
    pub async fn counts(&self) -> Result<BTreeMap<(String, String), Counts>, ApiError> {
        self.store.read("count dead letters", letters::counts).await
    }

    /// What has become of those of these messages that died on their way to a subscription, by message id: a letter's state.
    pub async fn states(
        &self,
        channel: &str,
        subscription: &str,
        messages: Vec<String>,
    ) -> Result<BTreeMap<String, String>, ApiError> {
        let place = take_in::Place { channel: channel.to_owned(), subscription: subscription.to_owned() };
        self.store.read("look for dead letters", move |from| letters::states(from, &place, &messages)).await
    }

    /// What the broker knows of a subscription that a store which began anew knows nothing of: so many messages were taken in
    /// and so many were issued. What was lost with the former store is then missing in the ledger.
    pub async fn seed(&self, channel: &str, subscription: &str, taken_in: u64, issued: u64) -> Result<(), ApiError> {
        let place = take_in::Place { channel: channel.to_owned(), subscription: subscription.to_owned() };
        let seeded = self.store.write("begin to count", move |to| take_in::seed(to, &place, taken_in, issued));
        seeded.await
    }

    /// Forgets a subscription whose channels are no more, with every letter of it, and says how many of them were still to be
    /// dealt with: none, unless they are to be discarded. In the audit it is the daemon's deed; who asked for the revision stands with the revision.
    pub async fn close(&self, channel: &str, subscription: &str, discard: bool) -> Result<u64, ApiError> {
        let place = take_in::Place { channel: channel.to_owned(), subscription: subscription.to_owned() };
        let now = Timestamp::now();
        let closed = self.store.write("forget a subscription", move |to| {
            let open = closing::close(to, &place, now)?;
            if open > 0 && !discard {
                let message = format!("{}/{} has {open} dead letters to deal with", place.channel, place.subscription);
                return Err(ApiError::new(ErrorCode::Conflict, message).hint("see `meshctl dlq ls`").into());
            }
            if open > 0 {
                let asked = Asked { by: "daemon".into(), reason: Some("its channel is no longer wanted".into()) };
                let subject = format!("{}/{}", place.channel, place.subscription);
                audit::write(to, &Deed::done(&asked, "deadletter.discard", subject, json!({"count": open})), now)?;
            }
            Ok(open)
        });
        closed.await
    }

    /// Discards, parks or restores.
    pub async fn change(
        &self,
        action: Action,
        request: DeadLetterRequest,
        asked: Asked,
    ) -> Result<DeadLetterOutcome, ApiError> {
        let this = self.clone();
        to_its_end(async move { this.changed(action, request, asked).await }).await
    }

    async fn changed(
        &self,
        action: Action,
        request: DeadLetterRequest,
        asked: Asked,
    ) -> Result<DeadLetterOutcome, ApiError> {
        let now = Timestamp::now();
        let dry_run = request.dry_run;
        let subject = subject(&request.select);
        let wanted = match Where::of(&request.select, now) {
            Err(why) if !dry_run => return self.audited(Err(why), &asked, action.deed(), &subject).await,
            wanted => wanted?,
        };
        let outcome = move |set: &sets::Set| DeadLetterOutcome {
            action: action.as_str().into(),
            fingerprint: set.fingerprint.clone(),
            selected: set.letters.len() as u64,
            changed: if dry_run { 0 } else { set.letters.len() as u64 },
            dry_run,
        };
        if dry_run {
            let look = move |from: &rusqlite::Connection| {
                sets::select(from, &request.select, &wanted, action, request.fingerprint.as_deref())
            };
            return self.store.read("select dead letters", look).await.map(|set| outcome(&set));
        }
        let deed = (asked.clone(), subject.clone());
        let changed = self.store.write("change dead letters", move |to| {
            let set = sets::select(to, &request.select, &wanted, action, request.fingerprint.as_deref())?;
            sets::change(to, &set, action)?;
            audit::write(to, &Deed::done(&deed.0, action.deed(), deed.1, described(&set)), now)?;
            Ok(outcome(&set))
        });
        let changed = self.audited(changed.await, &asked, action.deed(), &subject).await?;
        let message = format!("{} did {} to {} dead letters", asked.by, changed.action, changed.changed);
        let data = json!({"count": changed.changed, "fingerprint": changed.fingerprint, "reason": asked.reason});
        self.tell.happened(EventSeverity::Info, action.event(), "deadletters".into(), message, data).await;
        Ok(changed)
    }

    /// Freezes the selected letters as a set and begins to send them to their own subscriptions.
    pub async fn replay(&self, request: DeadLetterRequest, asked: Asked) -> Result<Replay, ApiError> {
        let this = self.clone();
        to_its_end(async move { this.begin(request, asked).await }).await
    }

    async fn begin(&self, request: DeadLetterRequest, asked: Asked) -> Result<Replay, ApiError> {
        let action = Action::Replay;
        let now = Timestamp::now();
        let subject = subject(&request.select);
        let wanted = match possible(request.rate_per_s).and_then(|()| Where::of(&request.select, now)) {
            Err(why) if !request.dry_run => return self.audited(Err(why), &asked, action.deed(), &subject).await,
            wanted => wanted?,
        };
        let (by, reason) = (asked.by.clone(), asked.reason.clone());
        let order = replays::Order { by, reason, rate_per_s: request.rate_per_s };
        let select = move |from: &rusqlite::Connection| {
            sets::select(from, &request.select, &wanted, action, request.fingerprint.as_deref())
        };
        if request.dry_run {
            let look = move |from: &rusqlite::Connection| Ok(replays::dry_run(&select(from)?, &order, now));
            return self.store.read("select dead letters", look).await;
        }
        let deed = asked.clone();
        let created = self.store.write("make a replay", move |to| {
            let set = select(to)?;
            let replay = replays::create(to, &set, &order, now)?;
            audit::write(to, &Deed::done(&deed, action.deed(), &replay.replay_id, described(&set)), now)?;
            Ok(replay)
        });
        let replay = self.audited(created.await, &asked, action.deed(), &subject).await?;
        self.wake.notify_one();
        let message = format!("{} replays {} dead letters", asked.by, replay.selected);
        let data = json!({"selected": replay.selected, "fingerprint": replay.fingerprint, "reason": asked.reason});
        let subject = format!("replay/{}", replay.replay_id);
        self.tell.happened(EventSeverity::Info, action.event(), subject, message, data).await;
        Ok(replay)
    }

    /// The latest first.
    pub async fn replays(&self) -> Result<Vec<Replay>, ApiError> {
        self.store.read("list replays", replays::list).await
    }

    pub async fn show_replay(&self, id: String) -> Result<Replay, ApiError> {
        self.store.read("show a replay", move |from| replays::show(from, &id)).await
    }

    /// Pauses, resumes or cancels a replay.
    pub async fn steer(&self, id: String, wish: Wish, asked: Asked) -> Result<Replay, ApiError> {
        let this = self.clone();
        to_its_end(async move { this.steered(id, wish, asked).await }).await
    }

    async fn steered(&self, id: String, wish: Wish, asked: Asked) -> Result<Replay, ApiError> {
        let (name, kind) = match wish {
            Wish::Pause => ("replay.pause", "replay.paused"),
            Wish::Resume => ("replay.resume", "replay.resumed"),
            Wish::Cancel => ("replay.cancel", "replay.cancelled"),
        };
        let now = Timestamp::now();
        let (replay, deed) = (id.clone(), asked.clone());
        let steered = self.store.write("steer a replay", move |to| {
            let replay = replays::steer(to, &replay, wish, now)?;
            let data = json!({"issued": replay.issued, "pending": replay.pending});
            audit::write(to, &Deed::done(&deed, name, &replay.replay_id, data), now)?;
            Ok(replay)
        });
        let replay = self.audited(steered.await, &asked, name, &id).await?;
        self.wake.notify_one();
        let message = format!("the replay is {}, by {}", replay.state, asked.by);
        let data = json!({"issued": replay.issued, "reason": asked.reason});
        self.tell.happened(EventSeverity::Info, kind, format!("replay/{id}"), message, data).await;
        Ok(replay)
    }

    /// What was refused is in the audit as well.
    async fn audited<T>(
        &self,
        outcome: Result<T, ApiError>,
        asked: &Asked,
        action: &'static str,
        subject: &str,
    ) -> Result<T, ApiError> {
        if let Err(why) = &outcome {
            let deed = Deed::refused(asked, action, subject, why);
            let written = self.store.write("write the audit", move |to| audit::write(to, &deed, Timestamp::now()));
            if let Err(unwritten) = written.await {
                tracing::error!(%unwritten, %why, action, "a refusal could not be audited");
            }
        }
        outcome
    }
}

/// Also where whoever asked goes away meanwhile: what the store has done is audited, told, and gone on with.
async fn to_its_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, ApiError>> + Send + 'static,
) -> Result<T, ApiError> {
    let broke_off = |why| ApiError::new(ErrorCode::Internal, format!("work on dead letters broke off: {why}"));
    tokio::spawn(work).await.map_err(broke_off)?
}

fn possible(rate: Option<f64>) -> Result<(), ApiError> {
    let Some(rate) = rate.filter(|rate| !(rate.is_finite() && *rate > 0.0)) else { return Ok(()) };
    let message = format!("cannot replay {rate} messages per second: a rate is above 0");
    Err(ApiError::new(ErrorCode::Invalid, message))
}

/// What was selected, in the words of who selected it, as far as an audit has room for it.
fn subject(query: &DeadLetterQuery) -> String {
    let text = match (&query.ids, &query.r#where) {
        (Some(ids), _) => ids,
        (None, Some(filter)) => filter,
        (None, None) => return "all".into(),
    };
    match text.char_indices().nth(SUBJECT) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.clone(),
    }
}

fn described(set: &sets::Set) -> Value {
    json!({
        "count": set.letters.len(), "fingerprint": set.fingerprint, "subscriptions": set.subscriptions,
        "leftOut": set.left_out,
    })
}

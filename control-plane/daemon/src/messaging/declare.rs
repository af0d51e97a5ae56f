//! Makes the broker's channels those of the present revision. Level-triggered: whatever the broker has, it is compared with what
//! is wanted and made the same, again for each revision and each broker process, so that a daemon that dies half way needs no
//! memory of it.
//!
//! It is done in two goes. As soon as the broker is there everything new is declared and nothing is taken away, since couriers of
//! the former revision still consume. When the last of them is gone, what is not wanted any more goes too.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use meshctl_api::error::ApiError;
use meshctl_drivers::broker::{Broker, BrokerError, ChannelSpec, ChannelState};
use meshctl_model::delivery::{BROKER, Behind, COURIER, Channel};
use meshctl_model::instance::ProcessId;
use meshctl_model::plan::Phase;
use tokio::sync::{mpsc, watch};

use super::Messaging;
use super::lines::lines;
use super::removal::{Removal, keep_paused, remove};
use crate::control::Message;
use crate::dead_letters::{DeadLetters, WINDOW};
use crate::report::Report;
use crate::state::State;

/// Nobody looks at a settled message behind a subscription for longer than it takes to find out what happened.
const BEHIND_RETENTION: Duration = Duration::from_secs(3600);
/// Between two tries while the broker does not answer,
const SOON: Duration = Duration::from_millis(100);
/// and while it refuses: messages may be drained meanwhile.
const LATER: Duration = Duration::from_secs(5);

/// What makes a declaration necessary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Occasion {
    /// Rises each time that an operator asks for something.
    pub asked: u64,
    /// The process that is told; `None` when there is to be none any more, and what it has kept may go.
    pub broker: Option<ProcessId>,
    /// No courier of another form is left: what is not wanted any more may go.
    pub last: bool,
}

/// What the broker is to have.
#[derive(Clone, Debug, PartialEq)]
pub struct Declaration {
    pub occasion: Occasion,
    pub channels: BTreeMap<String, Channel>,
    /// Whether messages may be lost by it.
    pub discard: bool,
}

/// What a declaration has changed, of the channels that operators know.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Declared {
    pub new: Vec<String>,
    pub removed: Vec<String>,
}

impl State {
    /// Why channels are to be declared now; `None` while there is no broker to tell, and when the system goes down, which
    /// takes no messages with it.
    pub fn occasion(&self) -> Option<Occasion> {
        if self.going_down || self.desired.gateway.is_none() {
            return None;
        }
        let asked = self.asked;
        if !self.desired.services.contains_key(BROKER) {
            // Without channels there is no broker. What it has kept stays for when it is wanted again.
            let gone = self.observed.of(BROKER).next().is_none();
            return (gone && self.discard_messages).then_some(Occasion { asked, broker: None, last: true });
        }
        let broker = self.observed.of(BROKER).find(|broker| broker.phase == Phase::Ready)?.process.clone();
        let couriers = self.desired.services.get(COURIER).map(|courier| courier.hash.as_str());
        let last = self.observed.of(COURIER).all(|courier| Some(courier.hash.as_str()) == couriers);
        broker.is_some().then_some(Occasion { asked, broker, last })
    }

    pub fn declaration(&self) -> Option<Declaration> {
        let (channels, discard) = (self.desired.channels.clone(), self.discard_messages);
        Some(Declaration { occasion: self.occasion()?, channels, discard })
    }
}

/// The channels that are wanted: those behind a subscription before the one in front of them, so that whoever receives a message
/// has somewhere to put it.
pub fn specs(channels: &BTreeMap<String, Channel>) -> Vec<ChannelSpec> {
    let mut specs = Vec::new();
    for (name, channel) in channels {
        for (subscription, wanted) in &channel.subscriptions {
            specs.extend(Behind::of(&wanted.retry).map(|behind| behind_spec(name, subscription, channel, behind)));
        }
        specs.push(ChannelSpec {
            name: name.clone(),
            partitions: channel.partitions,
            retention: channel.retention.get(),
            max_size_bytes: channel.max_size.0,
            idempotency_window: channel.idempotency_window.get(),
            groups: channel.subscriptions.keys().cloned().collect(),
        });
    }
    specs
}

fn behind_spec(name: &str, subscription: &str, channel: &Channel, behind: Behind) -> ChannelSpec {
    ChannelSpec {
        name: behind.channel(name, subscription),
        partitions: match behind {
            Behind::Retry(_) | Behind::Replay => channel.partitions,
            Behind::Dead | Behind::Replayed => 1,
        },
        retention: BEHIND_RETENTION,
        max_size_bytes: channel.max_size.0,
        idempotency_window: match behind {
            Behind::Replay => WINDOW,
            _ => channel.idempotency_window.get(),
        },
        groups: vec![behind.group().to_owned()],
    }
}

/// The same without taking anything away from what is there.
fn gently(mut spec: ChannelSpec, state: Option<&ChannelState>) -> ChannelSpec {
    if let Some(state) = state {
        spec.partitions = spec.partitions.max(state.partitions);
        let more = state.groups.iter().map(|group| &group.name).filter(|name| !spec.groups.contains(name));
        let more: Vec<_> = more.cloned().collect();
        spec.groups.extend(more);
    }
    spec
}

pub fn unsettled(state: &ChannelState) -> u64 {
    state.groups.iter().map(|group| group.unsettled).sum()
}

/// Declares whenever there is another occasion, and again until it has succeeded. Whose dead letters are to be taken in is told
/// to `living`: those of channels on their way out, too. `kept` is the broker's folder. Ends with the daemon.
pub async fn declare_for_ever(
    mut wanted: watch::Receiver<Option<Arc<Declaration>>>,
    living: watch::Sender<BTreeMap<String, Channel>>,
    messaging: Messaging,
    kept: PathBuf,
    reports: mpsc::Sender<Message>,
) {
    let (broker, letters) = (messaging.broker, messaging.letters);
    let mut said = None;
    loop {
        let declaration = wanted.borrow_and_update().clone();
        let pause = match declaration {
            None => None,
            Some(declaration) => {
                let outcome = match declaration.occasion.broker {
                    Some(_) => declare(broker.as_ref(), &letters, &declaration).await,
                    None => give_up(&letters, &kept).await,
                };
                let pause = match &outcome {
                    Ok(_) => {
                        live(&living, &declaration);
                        None
                    }
                    // The broker's own checks tell of that.
                    Err(Undeclared::Away(why)) => {
                        tracing::debug!(%why, "the channels are not declared yet");
                        Some(SOON)
                    }
                    Err(Undeclared::Refused(_)) => Some(LATER),
                };
                let outcome = match outcome {
                    Ok(declared) => Some(Ok(declared)),
                    Err(Undeclared::Away(_)) => None,
                    Err(Undeclared::Refused(why)) => Some(Err(why)),
                };
                // What is refused again in the same words is told once.
                let telling = (declaration.occasion.clone(), outcome.clone().and_then(Result::err));
                if let Some(outcome) = outcome.filter(|outcome| outcome.is_ok() || said.as_ref() != Some(&telling)) {
                    said = Some(telling);
                    let report = Report::Declared { occasion: declaration.occasion.clone(), outcome };
                    if reports.send(Message::Report(report)).await.is_err() {
                        return;
                    }
                }
                pause
            }
        };
        let again = async {
            match pause {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = again => {}
        }
    }
}

fn live(living: &watch::Sender<BTreeMap<String, Channel>>, declared: &Declaration) {
    let mut next = declared.channels.clone();
    if !declared.occasion.last {
        for (name, channel) in &*living.borrow() {
            let next = next.entry(name.clone()).or_insert_with(|| channel.clone());
            for (subscription, of) in &channel.subscriptions {
                next.subscriptions.entry(subscription.clone()).or_insert_with(|| of.clone());
            }
        }
    }
    living.send_if_modified(|now| std::mem::replace(now, next.clone()) != next);
}

/// Why the broker does not have what is wanted.
#[derive(Debug)]
pub enum Undeclared {
    /// It does not answer; it will.
    Away(BrokerError),
    /// In words, for people.
    Refused(String),
}

/// The words for a broker that does not do what it was asked.
pub fn about(attempt: String) -> impl FnOnce(BrokerError) -> Undeclared {
    move |why| match why {
        BrokerError::Unreachable(_) | BrokerError::Unknown(_) => Undeclared::Away(why),
        why => Undeclared::Refused(format!("cannot {attempt}: {why}")),
    }
}

pub async fn declare(broker: &dyn Broker, letters: &DeadLetters, wanted: &Declaration) -> Result<Declared, Undeclared> {
    let states = broker.state().await.map_err(about("ask the broker for its channels".into()))?;
    let mut known: BTreeMap<&str, &ChannelState> = states.iter().map(|state| (state.name.as_str(), state)).collect();
    let mut declared = Declared::default();
    let specs = specs(&wanted.channels);
    let (last, discard) = (wanted.occasion.last, wanted.discard);

    seed(&states, letters).await?;
    let removal = if last { Removal::of(&states, &specs, &wanted.channels) } else { Removal::default() };
    if !removal.is_empty() && !discard {
        let counts = letters.counts().await.map_err(unreadable)?;
        if let Some(refusal) = removal.refusal(&states, &counts) {
            return Err(Undeclared::Refused(refusal));
        }
    }
    remove(&removal.anew, broker, letters, discard).await?;
    for name in &removal.anew {
        known.remove(name.as_str());
    }
    if discard {
        removal.discard(broker).await?;
    }
    for spec in specs {
        let state = known.get(spec.name.as_str()).copied();
        if state.is_none() && Behind::parse(&spec.name).is_none() {
            declared.new.push(spec.name.clone());
        }
        let attempt = format!("declare the channel {}", spec.name);
        let spec = if last { spec } else { gently(spec, state) };
        broker.ensure(&spec).await.map_err(about(attempt))?;
    }
    remove(&removal.unwanted, broker, letters, discard).await?;
    declared.removed = removal.unwanted.into_iter().filter(|name| Behind::parse(name).is_none()).collect();
    keep_paused(broker, &states, &wanted.channels, &known).await?;
    Ok(declared)
}

/// A store that began anew beside a broker that did not is told what it had taken in: what was lost with it is missing, and
/// must not be counted as dead letters that are still on their way.
async fn seed(states: &[ChannelState], letters: &DeadLetters) -> Result<(), Undeclared> {
    let lines: Vec<_> = lines(states).into_iter().map(|(of, line)| (of, line.taken_in(), line)).collect();
    if lines.iter().all(|(_, taken_in, _)| *taken_in == 0) {
        return Ok(());
    }
    // Asked after the broker: what the daemon has settled, it has counted before.
    let counts = letters.counts().await.map_err(unreadable)?;
    for ((channel, subscription), taken_in, line) in lines.into_iter().filter(|(_, taken_in, _)| *taken_in > 0) {
        if !counts.contains_key(&(channel.to_owned(), subscription.to_owned())) {
            let issued = line.accepted(Behind::Replay);
            letters.seed(channel, subscription, taken_in, issued).await.map_err(unreadable)?;
        }
    }
    Ok(())
}

/// Everything that the broker has kept is discarded, and the store begins anew with it.
async fn give_up(letters: &DeadLetters, kept: &Path) -> Result<Declared, Undeclared> {
    for (channel, subscription) in letters.counts().await.map_err(unreadable)?.into_keys() {
        letters.close(&channel, &subscription, true).await.map_err(unreadable)?;
    }
    match tokio::fs::remove_dir_all(kept).await {
        Err(why) if why.kind() != std::io::ErrorKind::NotFound => {
            Err(Undeclared::Refused(format!("cannot remove {}: {why}", kept.display())))
        }
        _ => Ok(Declared::default()),
    }
}

pub fn unreadable(why: ApiError) -> Undeclared {
    Undeclared::Refused(why.message)
}

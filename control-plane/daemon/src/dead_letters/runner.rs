//! Sends replays on their way: one round after another over all that have something to publish. Whatever it has to
//! remember is in the store, so that a daemon that is killed between any two lines goes on where it was.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use meshctl_api::error::ApiError;
use meshctl_drivers::broker::{BrokerError, Publish, SharedBroker};
use meshctl_model::delivery::{Behind, Channel};
use meshctl_model::event::EventSeverity;
use serde_json::json;
use tokio::sync::{Notify, watch};

use super::Tell;
use super::replay::{Pace, Told};
use super::replays::{self, Ready, Step};
use super::store::Store;
use super::take_in::Place;
use crate::traces::Traces;
use crate::traces::own::{self, Issue};

/// Until the broker, or the disk, is tried again.
const PATIENCE: Duration = Duration::from_millis(500);

/// Until we look for work though nobody has told us of any.
const IDLE: Duration = Duration::from_secs(1);

/// What the broker said of letters for one subscription.
#[derive(Default)]
struct Said {
    told: Vec<(i64, Told)>,
    /// Of some it said nothing for good.
    waits: bool,
}

pub struct Runner {
    store: Store,
    broker: SharedBroker,
    tell: Tell,
    traces: Traces,
    wake: Arc<Notify>,
    /// What is wanted now.
    channels: watch::Receiver<BTreeMap<String, Channel>>,
    /// By replay: how fast it may go, and what the broker said that is not written down yet.
    under_way: HashMap<String, (Pace, Vec<(i64, Told)>)>,
}

impl Runner {
    pub fn new(
        store: Store,
        broker: SharedBroker,
        tell: Tell,
        traces: Traces,
        wake: Arc<Notify>,
        channels: watch::Receiver<BTreeMap<String, Channel>>,
    ) -> Self {
        Self { store, broker, tell, traces, wake, channels, under_way: HashMap::new() }
    }

    pub async fn run(mut self) {
        loop {
            let wait = match self.round().await {
                Ok(wait) => wait,
                Err(why) => {
                    tracing::warn!(%why, "replays cannot go on");
                    Some(PATIENCE)
                }
            };
            let wait = wait.unwrap_or(IDLE);
            if !wait.is_zero() {
                let _ = tokio::time::timeout(wait, self.wake.notified()).await;
            }
        }
    }

    /// One step of every replay; says how long none has anything to do, `None` for until there is a new one.
    async fn round(&mut self) -> Result<Option<Duration>, ApiError> {
        let busy = self.store.read("look for replays", replays::busy).await?;
        self.under_way.retain(|id, _| busy.iter().any(|(known, _)| known == id));
        let mut wait: Option<Duration> = None;
        for (id, rate) in busy {
            let next = self.step(id, rate).await?;
            wait = [wait, next].into_iter().flatten().min();
        }
        Ok(wait)
    }

    async fn step(&mut self, id: String, rate: Option<f64>) -> Result<Option<Duration>, ApiError> {
        let now = Timestamp::now();
        let (mut pace, told) = self.under_way.remove(&id).unwrap_or_else(|| (Pace::new(rate, now), Vec::new()));
        let replay = id.clone();
        // What the broker said is lost with an error, and said again: what stays intended is published again.
        let step = self.store.write("go on with a replay", move |to| {
            let step = replays::step(to, &replay, &told, &mut pace, now)?;
            Ok((step, pace))
        });
        let (step, pace) = step.await?;
        let (told, wait) = match step {
            Step::Publish(ready) => self.publish(&id, ready).await,
            Step::Wait(wait) => (Vec::new(), Some(wait)),
            Step::Nothing => (Vec::new(), None),
            Step::Finished => {
                self.tell.finished(&self.store, id.clone()).await;
                (Vec::new(), None)
            }
        };
        self.under_way.insert(id, (pace, told));
        Ok(wait)
    }

    async fn publish(&self, id: &str, ready: Vec<Ready>) -> (Vec<(i64, Told)>, Option<Duration>) {
        let mut by_place: BTreeMap<Place, (Vec<i64>, Vec<_>)> = BTreeMap::new();
        for Ready { letter, place, publish } in ready {
            let (letters, messages) = by_place.entry(place).or_default();
            letters.push(letter);
            messages.push(publish);
        }
        let (mut told, mut wait) = (Vec::new(), Duration::ZERO);
        for (place, (letters, messages)) in by_place {
            let said = self.publish_to(id, &place, letters, messages).await;
            told.extend(said.told);
            wait = wait.max(if said.waits { PATIENCE } else { Duration::ZERO });
        }
        (told, Some(wait))
    }

    /// All of them at once, or, where that is refused, in halves: one letter that is too large, or so many that they are too
    /// large together, keep none of the others from being replayed.
    async fn publish_to(&self, id: &str, place: &Place, letters: Vec<i64>, mut messages: Vec<Publish>) -> Said {
        let channel = Behind::Replay.channel(&place.channel, &place.subscription);
        let of = (place.channel.as_str(), place.subscription.as_str());
        let begun = letters.iter().zip(&mut messages);
        let mut issues: HashMap<i64, Issue> = begun
            .filter_map(|(letter, publish)| Some((*letter, Issue::begin(id, of, &mut publish.message)?)))
            .collect();
        let mut spans = own::Said::default();
        let mut said = Said::default();
        let mut refused: Option<(usize, BrokerError)> = None;
        let mut batches = vec![(letters, messages)];
        while let Some((mut letters, mut messages)) = batches.pop() {
            let why = match self.broker.publish(&channel, messages.clone()).await {
                Ok(_) => {
                    letters.iter().filter_map(|letter| issues.remove(letter)).for_each(|issue| issue.end(&mut spans));
                    said.told.extend(letters.into_iter().map(|letter| (letter, Told::Confirmed)));
                    continue;
                }
                Err(why) => why,
            };
            match why {
                BrokerError::Refused(_) if letters.len() > 1 => {
                    let half = letters.len() / 2;
                    batches.push((letters.split_off(half), messages.split_off(half)));
                    batches.push((letters, messages));
                }
                // A fresh broker does not know yet what is wanted: the daemon is about to tell it.
                BrokerError::NotFound(_) if self.is_wanted(place) => said.waits = true,
                // It will not be otherwise later: they stay dead letters.
                BrokerError::NotFound(_) | BrokerError::Refused(_) => {
                    let before = refused.map_or(0, |(count, _)| count);
                    refused = Some((before + letters.len(), why));
                    said.told.extend(letters.into_iter().map(|letter| (letter, Told::GiveUp)));
                }
                why => {
                    tracing::warn!(%why, channel, "a replay waits");
                    said.waits = true;
                    // What is left stays intended, and is published again.
                    break;
                }
            }
        }
        self.traces.record(spans);
        if let Some((count, why)) = refused {
            self.given_up(id, place, count, &why).await;
        }
        said
    }

    fn is_wanted(&self, place: &Place) -> bool {
        let channels = self.channels.borrow();
        channels.get(&place.channel).is_some_and(|channel| channel.subscriptions.contains_key(&place.subscription))
    }

    async fn given_up(&self, id: &str, place: &Place, count: usize, why: &BrokerError) {
        let name = format!("{}/{}", place.channel, place.subscription);
        let message = format!("{count} dead letters for {name} cannot be replayed and stay what they are: {why}");
        let data = json!({"channel": place.channel, "subscription": place.subscription, "count": count});
        self.tell.happened(EventSeverity::Warning, "replay.withdrawn", format!("replay/{id}"), message, data).await;
    }
}

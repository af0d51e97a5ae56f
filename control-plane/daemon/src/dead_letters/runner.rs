//! Sends replays on their way: one round after another over all that have something to publish. Whatever it has to
//! remember is in the store, so that a daemon that is killed between any two lines goes on where it was.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use meshctl_api::error::ApiError;
use meshctl_drivers::broker::{BrokerError, SharedBroker};
use meshctl_model::delivery::Behind;
use meshctl_model::event::EventSeverity;
use serde_json::json;
use tokio::sync::Notify;

use super::Tell;
use super::replay::{Pace, Told};
use super::replays::{self, Ready, Step};
use super::store::Store;
use super::take_in::Place;

/// Until the broker, or the disk, is tried again.
const PATIENCE: Duration = Duration::from_millis(500);

pub struct Runner {
    store: Store,
    broker: SharedBroker,
    tell: Tell,
    wake: Arc<Notify>,
    /// By replay: how fast it may go, and what the broker said that is not written down yet.
    under_way: HashMap<String, (Pace, Vec<(i64, Told)>)>,
}

impl Runner {
    pub fn new(store: Store, broker: SharedBroker, tell: Tell, wake: Arc<Notify>) -> Self {
        Self { store, broker, tell, wake, under_way: HashMap::new() }
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
            match wait {
                Some(Duration::ZERO) => {}
                Some(wait) => {
                    let _ = tokio::time::timeout(wait, self.wake.notified()).await;
                }
                None => self.wake.notified().await,
            }
        }
    }

    /// One step of every replay; says how long none has anything to do, `None` for until somebody wakes us.
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
            let channel = Behind::Replay.channel(&place.channel, &place.subscription);
            let said = match self.broker.publish(&channel, messages).await {
                Ok(_) => Told::Confirmed,
                // It will not be otherwise later: they stay dead letters.
                Err(why @ (BrokerError::NotFound(_) | BrokerError::Refused(_))) => {
                    self.given_up(id, &place, letters.len(), &why).await;
                    Told::GiveUp
                }
                Err(why) => {
                    tracing::warn!(%why, channel, "a replay waits");
                    wait = PATIENCE;
                    continue;
                }
            };
            told.extend(letters.into_iter().map(|letter| (letter, said)));
        }
        (told, Some(wait))
    }

    async fn given_up(&self, id: &str, place: &Place, count: usize, why: &BrokerError) {
        let name = format!("{}/{}", place.channel, place.subscription);
        let message = format!("{count} dead letters for {name} cannot be replayed and stay what they are: {why}");
        let data = json!({"channel": place.channel, "subscription": place.subscription, "count": count});
        self.tell.happened(EventSeverity::Warning, "replay.withdrawn", format!("replay/{id}"), message, data).await;
    }
}

//! From the broker into the store: written down first, settled then. What is delivered again after a crash in between is known
//! by `take_in`.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use meshctl_drivers::broker::{Consumer, Delivery, Outcome, Settlement, SharedBroker};
use meshctl_model::delivery::{Alert, Behind, Channel, DAEMON};
use meshctl_model::event::EventSeverity;
use serde_json::json;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::Tell;
use super::notices::{Notice, Notices};
use super::store::Store;
use super::take_in::{self, Arrived, Place};
use crate::traces::Traces;
use crate::traces::own::Said;

/// Deliveries that are with us at once, and the most that one transaction takes.
const BATCH: u32 = 500;

/// Between two tries to join, while the broker is away or does not know the channel yet.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));

/// Takes in what dies in these channels, whatever they are from time to time.
pub async fn follow(
    store: Store,
    broker: SharedBroker,
    tell: Tell,
    traces: Traces,
    mut channels: watch::Receiver<BTreeMap<String, Channel>>,
) {
    let mut subscriptions: BTreeMap<Place, (Option<Alert>, JoinSet<()>)> = BTreeMap::new();
    loop {
        let wanted = wanted(&channels.borrow_and_update());
        // Ending an intake at any point does no harm: what it has not settled is delivered to the next.
        subscriptions.retain(|place, (alert, _)| wanted.get(place) == Some(alert));
        for (place, alert) in wanted {
            subscriptions.entry(place.clone()).or_insert_with(|| {
                let mut intakes = JoinSet::new();
                for from in [Behind::Dead, Behind::Replayed] {
                    let (place, notices) = (place.clone(), Notices::new(alert.clone()));
                    let (store, broker, tell, traces) = (store.clone(), broker.clone(), tell.clone(), traces.clone());
                    intakes.spawn(Intake { place, from, store, broker, tell, traces, notices }.run());
                }
                (alert, intakes)
            });
        }
        if channels.changed().await.is_err() {
            // The daemon ends.
            return;
        }
    }
}

fn wanted(channels: &BTreeMap<String, Channel>) -> BTreeMap<Place, Option<Alert>> {
    let of = |(channel, wanted): (&String, &Channel)| {
        let of = |(name, subscription): (&String, &meshctl_model::delivery::Subscription)| {
            (Place { channel: channel.clone(), subscription: name.clone() }, subscription.alert.clone())
        };
        wanted.subscriptions.iter().map(of).collect::<Vec<_>>()
    };
    channels.iter().flat_map(of).collect()
}

/// One channel behind a subscription.
struct Intake {
    place: Place,
    from: Behind,
    store: Store,
    broker: SharedBroker,
    tell: Tell,
    traces: Traces,
    notices: Notices,
}

impl Intake {
    async fn run(mut self) {
        let channel = self.from.channel(&self.place.channel, &self.place.subscription);
        let mut pause = PAUSES.0;
        loop {
            match self.broker.consume(&channel, DAEMON, BATCH).await {
                Ok(consumer) => {
                    tracing::debug!(channel, "taking in");
                    if self.take(consumer).await {
                        pause = PAUSES.0;
                    }
                }
                Err(why) => tracing::debug!(channel, %why, "cannot take in yet"),
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// Until the broker is away, or something cannot be written; says whether anything was taken in.
    async fn take(&mut self, mut consumer: Consumer) -> bool {
        let mut taken = false;
        let mut arrived = Vec::new();
        loop {
            let quiet = self.notices.next().map(|at| at.duration_since(Timestamp::now()));
            let quiet = quiet.map_or(Duration::MAX, |wait| wait.try_into().unwrap_or_default());
            tokio::select! {
                count = consumer.deliveries.recv_many(&mut arrived, BATCH as usize) => {
                    if count == 0 {
                        return taken;
                    }
                    if let Err(why) = self.write(std::mem::take(&mut arrived), &consumer).await {
                        tracing::warn!(subscription = ?self.place, %why, "dead letters stay with the broker");
                        return taken;
                    }
                    taken = true;
                }
                () = tokio::time::sleep(quiet) => {}
            }
            self.notify().await;
        }
    }

    async fn write(&mut self, deliveries: Vec<Delivery>, consumer: &Consumer) -> Result<(), String> {
        let settled = |delivery: &Delivery| Settlement { position: delivery.position, outcome: Outcome::Processed };
        let settlements = deliveries.iter().map(settled).collect();
        let arrived = |Delivery { position, message, accepted_at, .. }| Arrived { position, message, accepted_at };
        let arrived: Vec<Arrived> = deliveries.into_iter().map(arrived).collect();
        let spans = self.spans(&arrived);
        let (place, from) = (self.place.clone(), self.from);
        let write = self.store.write("take in dead letters", move |to| match from {
            Behind::Dead => take_in::deaths(to, &place, &arrived),
            _ => take_in::receipts(to, &place, &arrived),
        });
        let taken = write.await.map_err(|why| why.message)?;
        self.traces.record(spans);
        // Told as soon as it is written: should settling fail, it is no news any more when it is delivered again.
        if self.from == Behind::Dead {
            self.notices.died(u64::from(taken.count), Timestamp::now());
        }
        for replay in taken.finished {
            self.tell.finished(&self.store, replay).await;
        }
        self.notify().await;
        consumer.settler.settle(settlements).await.map_err(|why| why.to_string())
    }

    /// What the traces of these messages say of it.
    fn spans(&self, arrived: &[Arrived]) -> Said {
        let (mut said, now) = (Said::default(), Timestamp::now());
        if self.from == Behind::Dead {
            for Arrived { message, accepted_at, .. } in arrived {
                let place = (self.place.channel.as_str(), self.place.subscription.as_str());
                said.dead_letter(place, &take_in::id(&self.place, &message.id), message, *accepted_at, now);
            }
        }
        said
    }

    async fn notify(&mut self) {
        let name = format!("{}/{}", self.place.channel, self.place.subscription);
        for notice in self.notices.due(Timestamp::now()) {
            let (severity, kind, count, message) = match notice {
                Notice::Arrived(count) => {
                    let message = format!("{count} messages for {name} are dead letters now");
                    (EventSeverity::Warning, "deadletter.arrived", count, message)
                }
                Notice::Alert(count) => {
                    let message = format!("{count} messages for {name} died within the time of its alert");
                    (EventSeverity::Error, "deadletters.alert", count, message)
                }
            };
            let data = json!({"channel": self.place.channel, "subscription": self.place.subscription, "count": count});
            self.tell.happened(severity, kind, format!("subscription/{name}"), message, data).await;
        }
    }
}

//! A broker in memory, with the contract's promises and switches for what goes wrong.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use meshctl_drivers::Pending;
use meshctl_drivers::broker::{
    Broker, BrokerError, ChannelSpec, ChannelState, Confirmed, Consumer, Delivery, From, Outcome, Position, Publish,
    Seek, Settlement, Settler, Stored,
};
use meshctl_model::message::Message;
use tokio::sync::{Notify, mpsc};

use super::at;

#[derive(Default)]
pub struct Memory {
    channels: Mutex<BTreeMap<String, Channel>>,
    changed: Notify,
    /// Publishes that are still done and whose confirmations are lost.
    pub lost_confirms: Mutex<u32>,
    /// Settlements that are still refused.
    pub refused_settlements: Mutex<u32>,
    /// Whether somebody published to a channel that is not there.
    in_vain: Mutex<bool>,
    /// More at once are refused.
    pub most: Mutex<Option<usize>>,
}

#[derive(Default)]
struct Channel {
    messages: Vec<Message>,
    settled: Vec<bool>,
    keys: HashMap<String, usize>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One less, if there is one.
fn take(count: &Mutex<u32>) -> bool {
    let mut count = lock(count);
    let taken = *count > 0;
    *count -= u32::from(taken);
    taken
}

impl Memory {
    pub fn put(&self, channel: &str, message: Message) {
        self.put_all(channel, vec![Publish { message, idempotency_key: None }]);
    }

    fn put_all(&self, channel: &str, messages: Vec<Publish>) -> Vec<Confirmed> {
        let mut channels = lock(&self.channels);
        let kept = channels.entry(channel.to_owned()).or_default();
        let put = |Publish { message, idempotency_key }: Publish| {
            let next = kept.messages.len();
            let at = idempotency_key.map_or(next, |key| *kept.keys.entry(key).or_insert(next));
            if at == next {
                kept.messages.push(message);
                kept.settled.push(false);
            }
            let position = Position { partition: 0, offset: at as u64 };
            Confirmed { message_id: kept.messages[at].id.clone(), position, duplicate: at != next }
        };
        let confirmed = messages.into_iter().map(put).collect();
        drop(channels);
        self.changed.notify_waiters();
        confirmed
    }

    /// Everything that was ever published to it.
    pub fn all(&self, channel: &str) -> Vec<Message> {
        lock(&self.channels).get(channel).map(|channel| channel.messages.clone()).unwrap_or_default()
    }

    pub fn asked_in_vain(&self) -> bool {
        *lock(&self.in_vain)
    }

    pub fn unsettled(&self, channel: &str) -> usize {
        let channels = lock(&self.channels);
        channels.get(channel).map_or(0, |channel| channel.settled.iter().filter(|settled| !**settled).count())
    }

    /// As soon as it holds; it is looked at after every change.
    pub async fn until(&self, holds: impl Fn(&Self) -> bool) {
        loop {
            let changed = self.changed.notified();
            if holds(self) {
                return;
            }
            changed.await;
        }
    }
}

/// The broker as one who consumes sees it.
#[derive(Clone)]
pub struct Handle(pub Arc<Memory>);

impl Broker for Handle {
    fn ensure<'a>(&'a self, channel: &'a ChannelSpec) -> Pending<'a, Result<(), BrokerError>> {
        lock(&self.0.channels).entry(channel.name.clone()).or_default();
        Box::pin(async { Ok(()) })
    }

    fn remove<'a>(&'a self, channel: &'a str, _: bool) -> Pending<'a, Result<(), BrokerError>> {
        lock(&self.0.channels).remove(channel);
        Box::pin(async { Ok(()) })
    }

    fn publish<'a>(
        &'a self,
        channel: &'a str,
        messages: Vec<Publish>,
    ) -> Pending<'a, Result<Vec<Confirmed>, BrokerError>> {
        Box::pin(async move {
            if !lock(&self.0.channels).contains_key(channel) {
                *lock(&self.0.in_vain) = true;
                self.0.changed.notify_waiters();
                return Err(BrokerError::NotFound(format!("channel {channel}")));
            }
            if lock(&self.0.most).is_some_and(|most| messages.len() > most) {
                return Err(BrokerError::Refused(format!("{} at once are too large", messages.len())));
            }
            let confirmed = self.0.put_all(channel, messages);
            if take(&self.0.lost_confirms) {
                return Err(BrokerError::Unknown("the connection broke".into()));
            }
            Ok(confirmed)
        })
    }

    fn consume<'a>(
        &'a self,
        channel: &'a str,
        _group: &'a str,
        prefetch: u32,
    ) -> Pending<'a, Result<Consumer, BrokerError>> {
        Box::pin(async move {
            if !lock(&self.0.channels).contains_key(channel) {
                return Err(BrokerError::NotFound(format!("channel {channel}")));
            }
            let (sender, deliveries) = mpsc::channel(prefetch as usize);
            tokio::spawn(deliver(Arc::clone(&self.0), channel.to_owned(), sender));
            let settler = Arc::new(Member { memory: Arc::clone(&self.0), channel: channel.to_owned() });
            Ok(Consumer { deliveries, settler })
        })
    }

    fn seek<'a>(&'a self, _: &'a str, _: &'a str, _: Seek) -> Pending<'a, Result<(), BrokerError>> {
        Box::pin(async { Err(BrokerError::Refused("no test seeks".into())) })
    }

    fn pause<'a>(&'a self, _: &'a str, _: &'a str, _: Option<String>) -> Pending<'a, Result<(), BrokerError>> {
        Box::pin(async { Err(BrokerError::Refused("no test pauses".into())) })
    }

    fn state(&self) -> Pending<'_, Result<Vec<ChannelState>, BrokerError>> {
        let state = |(name, channel): (&String, &Channel)| ChannelState {
            name: name.clone(),
            partitions: 1,
            accepted: channel.messages.len() as u64,
            ..ChannelState::default()
        };
        let states = lock(&self.0.channels).iter().map(state).collect();
        Box::pin(async { Ok(states) })
    }

    fn browse<'a>(&'a self, _: &'a str, _: From, _: u32) -> Pending<'a, Result<Vec<Stored>, BrokerError>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

/// From the first that is not settled on, in order.
async fn deliver(memory: Arc<Memory>, channel: String, to: mpsc::Sender<Delivery>) {
    let mut next = 0;
    loop {
        let changed = memory.changed.notified();
        let found = {
            let channels = lock(&memory.channels);
            let Some(kept) = channels.get(&channel) else { return };
            let found = (next..kept.messages.len()).find(|at| !kept.settled[*at]);
            found.map(|at| (at, kept.messages[at].clone()))
        };
        let Some((at_offset, message)) = found else {
            tokio::select! {
                () = changed => continue,
                () = to.closed() => return,
            }
        };
        next = at_offset + 1;
        let position = Position { partition: 0, offset: at_offset as u64 };
        let delivery = Delivery { position, message, accepted_at: at(0), redelivered: false };
        if to.send(delivery).await.is_err() {
            return;
        }
    }
}

struct Member {
    memory: Arc<Memory>,
    channel: String,
}

impl Settler for Member {
    fn settle(&self, settlements: Vec<Settlement>) -> Pending<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            if take(&self.memory.refused_settlements) {
                return Err(BrokerError::Unknown("the connection broke".into()));
            }
            for Settlement { position, outcome } in settlements {
                if let Some(kept) = lock(&self.memory.channels).get_mut(&self.channel)
                    && let Some(settled) = kept.settled.get_mut(usize::try_from(position.offset).unwrap_or(usize::MAX))
                {
                    *settled = true;
                }
                if let Outcome::Moved { channel, message } = outcome {
                    self.memory.put(&channel, message);
                }
            }
            self.memory.changed.notify_waiters();
            Ok(())
        })
    }
}

//! A broker of plain values: one partition, no disk; with the faults that a real one shows only now and then.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Weak};

use jiff::Timestamp;
use meshctl_drivers::Pending;
use meshctl_drivers::broker::{
    Broker, BrokerError, ChannelSpec, ChannelState, Confirmed, Consumer, Delivery, From, Outcome, Position, Publish,
    Seek, Settlement, Settler, Stored,
};
use meshctl_model::message::Message;
use parking_lot::Mutex;
use tokio::sync::mpsc;

#[derive(Default)]
pub struct Memory(Arc<Mutex<State>>);

#[derive(Default)]
pub struct State {
    channels: BTreeMap<String, Channel>,
    members: u64,
    /// What the next publishes and settles end in; a settle that fails has settled nothing.
    pub publish_errors: VecDeque<BrokerError>,
    pub settle_errors: VecDeque<BrokerError>,
    /// Nobody can join or publish.
    pub away: bool,
    /// How many settlements each settle had.
    pub settles: Vec<usize>,
}

#[derive(Default)]
struct Channel {
    kept: Vec<(Message, Timestamp)>,
    keys: HashMap<String, (String, u64)>,
    groups: BTreeMap<String, Group>,
}

#[derive(Default)]
struct Group {
    waiting: VecDeque<u64>,
    with: BTreeMap<u64, u64>,
    members: Vec<Member>,
}

/// Leaves when nobody receives its deliveries any more, and has what it holds until its settler is gone too.
struct Member {
    id: u64,
    settler: Weak<()>,
    prefetch: usize,
    deliveries: mpsc::Sender<Delivery>,
}

impl Memory {
    pub fn new<'a>(channels: impl IntoIterator<Item = (String, &'a str)>) -> Self {
        let memory = Self::default();
        for (channel, group) in channels {
            memory.0.lock().channels.entry(channel).or_default().groups.insert(group.to_owned(), Group::default());
        }
        memory
    }

    pub fn state(&self) -> parking_lot::MutexGuard<'_, State> {
        self.0.lock()
    }

    /// Everything in a channel, settled or not.
    pub fn all(&self, channel: &str) -> Vec<Message> {
        self.0.lock().channels[channel].kept.iter().map(|(message, _)| message.clone()).collect()
    }

    pub fn unsettled(&self) -> usize {
        let state = self.0.lock();
        let groups = state.channels.values().flat_map(|channel| channel.groups.values());
        groups.map(|group| group.waiting.len() + group.with.len()).sum()
    }

    /// Waits until no consumer of the channel receives deliveries any more.
    pub async fn until_nobody_receives(&self, channel: &str) {
        let receivers: Vec<_> = {
            let state = self.0.lock();
            let members = state.channels[channel].groups.values().flat_map(|group| &group.members);
            members.map(|member| member.deliveries.clone()).collect()
        };
        for receiver in receivers {
            receiver.closed().await;
        }
    }

    /// Breaks every connection.
    pub fn cut(&self) {
        let mut state = self.0.lock();
        for group in state.channels.values_mut().flat_map(|channel| channel.groups.values_mut()) {
            group.members.clear();
            let with = std::mem::take(&mut group.with);
            with.into_keys().rev().for_each(|offset| group.waiting.push_front(offset));
        }
    }
}

impl State {
    fn accept(&mut self, channel: &str, message: Message) -> Result<Position, BrokerError> {
        let channel = self.channels.get_mut(channel).ok_or_else(|| BrokerError::NotFound(channel.to_owned()))?;
        let offset = channel.kept.len() as u64;
        channel.kept.push((message, Timestamp::now()));
        channel.groups.values_mut().for_each(|group| group.waiting.push_back(offset));
        Ok(Position { partition: 0, offset })
    }

    fn deliver(&mut self) {
        for channel in self.channels.values_mut() {
            for group in channel.groups.values_mut() {
                group.members.retain(|member| member.settler.strong_count() > 0);
                let members: Vec<u64> = group.members.iter().map(|member| member.id).collect();
                let gone: Vec<u64> =
                    group.with.iter().filter(|(_, with)| !members.contains(with)).map(|(offset, _)| *offset).collect();
                for offset in gone.into_iter().rev() {
                    group.with.remove(&offset);
                    group.waiting.push_front(offset);
                }
                // One partition: one member has it.
                let Some(member) = group.members.first().filter(|member| !member.deliveries.is_closed()) else {
                    continue;
                };
                while group.with.len() < member.prefetch
                    && let Some(offset) = group.waiting.pop_front()
                {
                    let (message, accepted_at) = channel.kept[usize::try_from(offset).expect("small")].clone();
                    let position = Position { partition: 0, offset };
                    let delivery = Delivery { position, message, accepted_at, redelivered: false };
                    member.deliveries.try_send(delivery).expect("room for the prefetch");
                    group.with.insert(offset, member.id);
                }
            }
        }
    }
}

struct Membership {
    state: Arc<Mutex<State>>,
    channel: String,
    group: String,
    id: u64,
    _alive: Arc<()>,
}

impl Settler for Membership {
    fn settle(&self, settlements: Vec<Settlement>) -> Pending<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            let mut state = self.state.lock();
            if let Some(error) = state.settle_errors.pop_front() {
                return Err(error);
            }
            let group = state.channels.get_mut(&self.channel).and_then(|channel| channel.groups.get_mut(&self.group));
            let group = group.expect("joined");
            if settlements.iter().any(|one| group.with.get(&one.position.offset) != Some(&self.id)) {
                return Err(BrokerError::Lost(self.channel.clone()));
            }
            group.with.retain(|offset, _| settlements.iter().all(|one| one.position.offset != *offset));
            state.settles.push(settlements.len());
            for settlement in settlements {
                if let Outcome::Moved { channel, message } = settlement.outcome {
                    state.accept(&channel, message)?;
                }
            }
            state.deliver();
            Ok(())
        })
    }
}

impl Broker for Memory {
    fn ensure<'a>(&'a self, _: &'a ChannelSpec) -> Pending<'a, Result<(), BrokerError>> {
        Box::pin(async { Err(BrokerError::Refused("a courier declares nothing".into())) })
    }

    fn remove<'a>(&'a self, _: &'a str, _: bool) -> Pending<'a, Result<(), BrokerError>> {
        Box::pin(async { Err(BrokerError::Refused("a courier removes nothing".into())) })
    }

    fn publish<'a>(
        &'a self,
        channel: &'a str,
        messages: Vec<Publish>,
    ) -> Pending<'a, Result<Vec<Confirmed>, BrokerError>> {
        Box::pin(async move {
            let mut state = self.0.lock();
            if state.away {
                return Err(BrokerError::Unreachable("as a test".into()));
            }
            if let Some(error) = state.publish_errors.pop_front() {
                return Err(error);
            }
            let mut confirmed = Vec::new();
            for Publish { message, idempotency_key } in messages {
                let known = &state.channels.get(channel).ok_or_else(|| BrokerError::NotFound(channel.to_owned()))?.keys;
                if let Some((id, offset)) = idempotency_key.as_ref().and_then(|key| known.get(key)) {
                    let position = Position { partition: 0, offset: *offset };
                    confirmed.push(Confirmed { message_id: id.clone(), position, duplicate: true });
                    continue;
                }
                let message_id = message.id.clone();
                let position = state.accept(channel, message)?;
                if let (Some(key), Some(channel)) = (idempotency_key, state.channels.get_mut(channel)) {
                    channel.keys.insert(key, (message_id.clone(), position.offset));
                }
                confirmed.push(Confirmed { message_id, position, duplicate: false });
            }
            state.deliver();
            Ok(confirmed)
        })
    }

    fn consume<'a>(
        &'a self,
        channel: &'a str,
        group: &'a str,
        prefetch: u32,
    ) -> Pending<'a, Result<Consumer, BrokerError>> {
        Box::pin(async move {
            let mut state = self.0.lock();
            if state.away {
                return Err(BrokerError::Unreachable("as a test".into()));
            }
            state.members += 1;
            let id = state.members;
            let its = state.channels.get_mut(channel).and_then(|channel| channel.groups.get_mut(group));
            let its = its.ok_or_else(|| BrokerError::NotFound(format!("{channel} {group}")))?;
            let prefetch = prefetch as usize;
            let (sender, deliveries) = mpsc::channel(prefetch);
            let alive = Arc::new(());
            its.members.push(Member { id, settler: Arc::downgrade(&alive), prefetch, deliveries: sender });
            state.deliver();
            let (channel, group) = (channel.to_owned(), group.to_owned());
            let settler = Membership { state: Arc::clone(&self.0), channel, group, id, _alive: alive };
            Ok(Consumer { deliveries, settler: Arc::new(settler) })
        })
    }

    fn seek<'a>(&'a self, _: &'a str, _: &'a str, _: Seek) -> Pending<'a, Result<(), BrokerError>> {
        Box::pin(async { Err(BrokerError::Refused("a courier seeks nothing".into())) })
    }

    fn pause<'a>(&'a self, _: &'a str, _: &'a str, _: Option<String>) -> Pending<'a, Result<(), BrokerError>> {
        Box::pin(async { Err(BrokerError::Refused("a courier pauses nothing at the broker".into())) })
    }

    fn state(&self) -> Pending<'_, Result<Vec<ChannelState>, BrokerError>> {
        Box::pin(async { Err(BrokerError::Refused("a courier asks for no state".into())) })
    }

    fn browse<'a>(&'a self, _: &'a str, _: From, _: u32) -> Pending<'a, Result<Vec<Stored>, BrokerError>> {
        Box::pin(async { Err(BrokerError::Refused("a courier browses nothing".into())) })
    }
}

//! What happens to the messages of one subscription: which may be tried now, and what follows from the answer.
//!
//! Every message that arrives is *held* until it is settled or forgotten. Invariants: no more than `concurrency` attempts are
//! under way; of the messages with one key only the first is tried, where order is kept; an attempt counts only while the
//! subscriber as a whole is there (see [`Pause`]); a message leaves by exactly one settlement.
//!
//! Pure: time and chance are arguments, and the simulation beside it drives it through thousands of faults.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use meshctl_drivers::broker::{Delivery, Outcome, Position, Settlement};
use meshctl_model::delivery::{Behind, Retry, Subscription};
use meshctl_model::message::{Attempt, Death, DeathReason, Failure, Message, header};

use super::pause::{self, Gate, Pause};
use crate::spans::{Became, State};

/// The longest pause that a subscriber can ask for.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(3600);

/// One point in time on both clocks: nanoseconds that only rise, and the time of day, which stands in messages.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Now {
    pub(crate) nanos: u64,
    pub(crate) time: Timestamp,
}

/// What a subscriber made of an attempt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Processed,
    Failed(Failed),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failed {
    pub(crate) failure: Failure,
    pub(crate) reason: String,
    pub(crate) status: Option<u16>,
    /// What it asked for.
    pub(crate) retry_after: Option<Duration>,
    pub(crate) duration: Duration,
}

/// A held message, for as long as it is held.
pub(crate) type Ticket = u64;
/// One membership in a group of consumers. What it was delivered is ours until it is lost.
pub(crate) type Lane = u64;

/// An attempt that is to be made now.
#[derive(Debug)]
pub(crate) struct Begin {
    pub(crate) ticket: Ticket,
    pub(crate) message: Rc<Message>,
    /// From 1, through retries and replays.
    pub(crate) number: u32,
}

/// A message that is done with here.
#[derive(Debug)]
pub(crate) struct Settled {
    pub(crate) lane: Lane,
    pub(crate) settlement: Settlement,
    pub(crate) end: End,
    /// Since the subscription was to have it.
    pub(crate) age: Duration,
}

/// What followed from the answer to an attempt.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) became: Became,
    /// When it is tried again, from now.
    pub(crate) again: Option<Duration>,
    /// How the subscription is now; of a probe, that it was one.
    pub(crate) state: State,
    /// What is to be settled, unless the message goes on being held.
    pub(crate) settled: Option<Settled>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Processed,
    Retried,
    Dead,
}

struct Held {
    lane: Lane,
    position: Position,
    message: Rc<Message>,
    history: Vec<Attempt>,
    accepted_at: Timestamp,
    /// Its turn among the messages with its key; `None` where order is not kept.
    key: Option<String>,
    /// Not to be tried before, in nanoseconds.
    due: u64,
    place: Place,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Behind another with its key.
    Behind,
    /// Ready, or waiting for its time.
    Waiting,
    UnderWay {
        probe: bool,
    },
    /// Under way, and no longer ours: its answer tells of the subscriber only.
    Orphan {
        probe: bool,
    },
}

pub(crate) struct Deliveries {
    channel: String,
    subscription: String,
    retry: Retry,
    ordered: bool,
    concurrency: usize,
    pause: Pause,
    held: HashMap<Ticket, Held>,
    issued: Ticket,
    /// In the order in which they are tried.
    ready: VecDeque<Ticket>,
    later: BinaryHeap<Reverse<(u64, Ticket)>>,
    /// For each key that is held, those behind the first.
    keys: HashMap<String, VecDeque<Ticket>>,
    under_way: usize,
    retried_in_place: u64,
    ended: bool,
}

impl Deliveries {
    pub(crate) fn new(channel: &str, subscription: &str, config: &Subscription, ordered: bool) -> Self {
        Self {
            channel: channel.to_owned(),
            subscription: subscription.to_owned(),
            retry: config.retry.clone(),
            ordered,
            concurrency: config.concurrency.max(1) as usize,
            pause: Pause::default(),
            held: HashMap::new(),
            issued: 0,
            ready: VecDeque::new(),
            later: BinaryHeap::new(),
            keys: HashMap::new(),
            under_way: 0,
            retried_in_place: 0,
            ended: false,
        }
    }

    /// A message came from the broker.
    pub(crate) fn arrive(&mut self, lane: Lane, delivery: Delivery, now: Now) {
        self.issued += 1;
        let ticket = self.issued;
        let Delivery { position, message, accepted_at, .. } = delivery;
        let not_before = message.header(header::NOT_BEFORE).and_then(|text| text.parse::<Timestamp>().ok());
        let due = not_before.map_or(0, |at| now.nanos.saturating_add(nanos(at.duration_since(now.time))));
        let key = if self.ordered { message.key.clone() } else { None };
        let behind = key.as_ref().is_some_and(|key| match self.keys.get_mut(key) {
            Some(line) => {
                line.push_back(ticket);
                true
            }
            None => {
                self.keys.insert(key.clone(), VecDeque::new());
                false
            }
        });
        let place = if behind { Place::Behind } else { Place::Waiting };
        let (history, message) = (message.history(), Rc::new(message));
        self.held.insert(ticket, Held { lane, position, message, history, accepted_at, key, due, place });
        if !behind {
            self.line_up(ticket, due, now.nanos);
        }
    }

    fn line_up(&mut self, ticket: Ticket, due: u64, now: u64) {
        if due <= now {
            self.ready.push_back(ticket);
        } else {
            self.later.push(Reverse((due, ticket)));
        }
    }

    /// The next attempt, if one may begin now.
    pub(crate) fn begin(&mut self, now: u64) -> Option<Begin> {
        while let Some(Reverse((due, ticket))) = self.later.peek().copied()
            && due <= now
        {
            self.later.pop();
            self.ready.push_back(ticket);
        }
        if self.ended || self.under_way >= self.concurrency {
            return None;
        }
        let probe = match self.pause.gate(now) {
            Gate::Open => false,
            Gate::Probe => true,
            Gate::Until(_) | Gate::Probing => return None,
        };
        while let Some(ticket) = self.ready.pop_front() {
            let Some(held) = self.held.get_mut(&ticket) else { continue };
            held.place = Place::UnderWay { probe };
            self.under_way += 1;
            if probe {
                self.pause.probe();
            }
            return Some(Begin { ticket, message: Rc::clone(&held.message), number: next_number(&held.history) });
        }
        None
    }

    /// When to ask [`Self::begin`] again, if nothing else happens before.
    pub(crate) fn wake_at(&self) -> Option<u64> {
        let later = self.later.peek().map(|Reverse((due, _))| *due);
        let probe = match self.pause.gate(0) {
            Gate::Until(at) if !self.ready.is_empty() && self.under_way < self.concurrency => Some(at),
            _ => None,
        };
        later.into_iter().chain(probe).min().filter(|_| !self.ended)
    }

    /// An attempt ended. `chance` is uniform in `0..1`. `None` if it was none.
    pub(crate) fn finish(&mut self, ticket: Ticket, answer: Answer, now: Now, chance: f64) -> Option<Finished> {
        let held = self.held.get(&ticket)?;
        let (probe, ours) = match held.place {
            Place::UnderWay { probe } => (probe, true),
            Place::Orphan { probe } => (probe, false),
            Place::Behind | Place::Waiting => return None,
        };
        self.under_way -= 1;
        let (became, again, settled) = self.conclude(ticket, answer, probe, ours, now, chance);
        let state = match self.pause.reason() {
            _ if probe => State::Probing,
            Some(_) => State::Paused,
            None => State::Flowing,
        };
        Some(Finished { became, again, state, settled })
    }

    fn conclude(
        &mut self,
        ticket: Ticket,
        answer: Answer,
        probe: bool,
        ours: bool,
        now: Now,
        chance: f64,
    ) -> (Became, Option<Duration>, Option<Settled>) {
        let Some(held) = self.held.get_mut(&ticket) else { return (Became::Lost, None, None) };
        let counts = match &answer {
            Answer::Failed(failed) if failed.failure != Failure::Rejected => {
                let (message, fresh) = (&held.message.id, tries(&held.message, &held.history) == 0);
                let (failure, reason) = (failed.failure, &failed.reason);
                let wait = crate::clock::nanos(failed.retry_after.unwrap_or_default().min(LONGEST_RETRY_AFTER));
                self.pause.failed(now.nanos, pause::Attempt { message, fresh, failure, reason, wait, probe })
            }
            _ => {
                self.pause.answered();
                true
            }
        };
        if !ours {
            self.release(ticket, now.nanos);
            return (Became::Lost, None, None);
        }
        let Answer::Failed(failed) = answer else { return (Became::Processed, None, self.processed(ticket, now)) };
        if !counts {
            // Behind the others: the next probe is of another message.
            held.place = Place::Waiting;
            self.ready.push_back(ticket);
            return (Became::Waits, None, None);
        }
        let asked = failed.retry_after;
        let (failure, number) = (failed.failure, next_number(&held.history));
        held.history.push(Attempt {
            number,
            at: now.time,
            failure,
            reason: failed.reason,
            status: failed.status,
            duration_ms: u64::try_from(failed.duration.as_millis()).unwrap_or(u64::MAX),
            replay: held.message.header(header::REPLAY).map(str::to_owned),
        });
        let attempts = tries(&held.message, &held.history);
        if failure == Failure::Rejected {
            return (Became::Dead, None, self.dead(ticket, DeathReason::Poison, now));
        }
        if attempts > self.retry.attempts as usize {
            return (Became::Dead, None, self.dead(ticket, DeathReason::Exhausted, now));
        }
        let (tier, wait) = pause_after(&self.retry, attempts, chance);
        let wait = wait.max(asked.unwrap_or_default().min(LONGEST_RETRY_AFTER));
        if held.key.is_some() {
            let due = now.nanos.saturating_add(crate::clock::nanos(wait));
            self.retried_in_place += 1;
            (held.place, held.due) = (Place::Waiting, due);
            self.line_up(ticket, due, now.nanos);
            return (Became::Retried, Some(wait), None);
        }
        let not_before = now.time.saturating_add(wait).unwrap_or(Timestamp::MAX);
        let channel = Behind::Retry(tier).channel(&self.channel, &self.subscription);
        let settled = self.moved(ticket, channel, End::Retried, now, |message, history| {
            message.set_history(history);
            message.set_header(header::NOT_BEFORE, not_before.to_string());
        });
        (Became::Retried, Some(wait), settled)
    }

    fn processed(&mut self, ticket: Ticket, now: Now) -> Option<Settled> {
        let replayed = self.held.get(&ticket)?.message.header(header::REPLAY).is_some();
        if replayed {
            let channel = Behind::Replayed.channel(&self.channel, &self.subscription);
            return self.moved(ticket, channel, End::Processed, now, |message, _| {
                message.payload = bytes::Bytes::new();
                message.remove_header(header::NOT_BEFORE);
            });
        }
        let held = self.release(ticket, now.nanos)?;
        let settlement = Settlement { position: held.position, outcome: Outcome::Processed };
        Some(Settled { lane: held.lane, settlement, end: End::Processed, age: age(&held, now) })
    }

    fn dead(&mut self, ticket: Ticket, reason: DeathReason, now: Now) -> Option<Settled> {
        let (channel, subscription) = (self.channel.clone(), self.subscription.clone());
        let to = Behind::Dead.channel(&channel, &subscription);
        self.moved(ticket, to, End::Dead, now, |message, history| {
            let attempts = history.last().map_or(0, |last| last.number);
            message.set_history(history);
            message.remove_header(header::NOT_BEFORE);
            message.set_death(&Death { channel, subscription, reason, attempts, at: now.time });
        })
    }

    fn moved(
        &mut self,
        ticket: Ticket,
        channel: String,
        end: End,
        now: Now,
        change: impl FnOnce(&mut Message, &[Attempt]),
    ) -> Option<Settled> {
        let held = self.release(ticket, now.nanos)?;
        let age = age(&held, now);
        let Held { lane, position, message, history, .. } = held;
        let mut message = Rc::unwrap_or_clone(message);
        change(&mut message, &history);
        let settlement = Settlement { position, outcome: Outcome::Moved { channel, message } };
        Some(Settled { lane, settlement, end, age })
    }

    /// Holds it no longer; the next one with its key takes its place.
    fn release(&mut self, ticket: Ticket, now: u64) -> Option<Held> {
        let held = self.held.remove(&ticket)?;
        if let Some(key) = held.key.as_ref().filter(|_| held.place != Place::Behind)
            && let Some(line) = self.keys.get_mut(key)
        {
            let next = std::iter::from_fn(|| line.pop_front()).find(|next| self.held.contains_key(next));
            match next.and_then(|next| Some((next, self.held.get_mut(&next)?))) {
                Some((next, first)) => {
                    first.place = Place::Waiting;
                    let due = first.due;
                    self.line_up(next, due, now);
                }
                None => drop(self.keys.remove(key)),
            }
        }
        Some(held)
    }

    /// The membership is lost: what came through it will come again. Attempts under way go on, and keep their keys until
    /// they end, so that nothing overtakes them.
    pub(crate) fn forget(&mut self, lane: Lane, now: u64) {
        let of_lane = self.held.iter().filter(|(_, held)| held.lane == lane);
        let mut tickets: Vec<Ticket> = of_lane.map(|(ticket, _)| *ticket).collect();
        // The last first: a key's next message is one that stays.
        tickets.sort_unstable_by_key(|ticket| Reverse(*ticket));
        for ticket in tickets {
            match self.held.get_mut(&ticket) {
                Some(Held { place, .. }) if matches!(place, Place::UnderWay { .. }) => {
                    let Place::UnderWay { probe } = *place else { continue };
                    *place = Place::Orphan { probe };
                }
                Some(Held { place: Place::Orphan { .. }, .. }) | None => {}
                Some(_) => drop(self.release(ticket, now)),
            }
        }
        // They would be passed over in time, but a membership that is lost again and again must not pile them up.
        self.ready.retain(|ticket| self.held.contains_key(ticket));
        self.later.retain(|Reverse((_, ticket))| self.held.contains_key(ticket));
        self.keys.values_mut().for_each(|line| line.retain(|ticket| self.held.contains_key(ticket)));
    }

    /// Nothing begins any more.
    pub(crate) fn end(&mut self) {
        self.ended = true;
    }

    pub(crate) fn under_way(&self) -> usize {
        self.under_way
    }

    pub(crate) fn held(&self) -> usize {
        self.held.len()
    }

    /// Failed attempts whose messages stayed here for another, since this was last asked.
    pub(crate) fn take_retried_in_place(&mut self) -> u64 {
        std::mem::take(&mut self.retried_in_place)
    }

    /// Why the subscription is paused.
    pub(crate) fn paused(&self) -> Option<&str> {
        self.pause.reason()
    }
}

fn next_number(history: &[Attempt]) -> u32 {
    history.last().map_or(1, |last| last.number.saturating_add(1))
}

/// Attempts that counted since the message, or its replay, began.
fn tries(message: &Message, history: &[Attempt]) -> usize {
    let replay = message.header(header::REPLAY);
    history.iter().filter(|attempt| attempt.replay.as_deref() == replay).count()
}

fn age(held: &Held, now: Now) -> Duration {
    Duration::from_nanos(nanos(now.time.duration_since(held.accepted_at)))
}

fn nanos(span: SignedDuration) -> u64 {
    u64::try_from(span.as_nanos().max(0)).unwrap_or(u64::MAX)
}

/// The tier for the pause after so many attempts, from 1, and the pause.
fn pause_after(retry: &Retry, attempts: usize, chance: f64) -> (u32, Duration) {
    let tiers = retry.backoff.len().min(retry.attempts as usize).max(1);
    let tier = attempts.clamp(1, tiers);
    let pause = retry.backoff.get(tier - 1).map_or(Duration::ZERO, |span| span.get());
    let factor = 1.0 + retry.jitter.0 * (2.0 * chance - 1.0);
    let pause = Duration::try_from_secs_f64(pause.as_secs_f64() * factor).unwrap_or(pause);
    (u32::try_from(tier).unwrap_or(u32::MAX), pause)
}

#[cfg(test)]
mod tests {
    use meshctl_model::units::{Percent, Span};
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn nothing_is_left_of_a_membership_that_is_lost() {
        let retry = Retry { attempts: 3, backoff: vec![Span::from_secs(1)], jitter: Percent(0.0) };
        let (service, url, timeout) = ("billing".into(), "http://127.0.0.1:1/".into(), Span::from_secs(1));
        let config = Subscription { service, url, concurrency: 1, timeout, retry, alert: None };
        let mut deliveries = Deliveries::new("order.placed", "billing", &config, true);
        let now = Now { nanos: 1, time: Timestamp::UNIX_EPOCH };
        for lane in 1..10 {
            for offset in 0..30 {
                let key = Some(format!("k{}", offset % 5));
                let mut message = Message { id: offset.to_string(), key, ..Message::default() };
                if offset % 5 == 4 {
                    message.set_header(header::NOT_BEFORE, "2026-01-01T00:00:00Z");
                }
                let position = Position { partition: 0, offset };
                deliveries.arrive(lane, Delivery { position, message, accepted_at: now.time, redelivered: true }, now);
            }
            let begun = deliveries.begin(now.nanos);
            assert_eq!(begun.is_some(), lane == 1, "one at a time");
            deliveries.forget(lane, now.nanos);
            assert_eq!((deliveries.held(), deliveries.under_way()), (1, 1), "the orphan");
            assert_eq!((deliveries.ready.len(), deliveries.later.len()), (0, 0));
            assert_eq!(deliveries.keys.values().map(VecDeque::len).collect::<Vec<_>>(), [0]);
        }
    }

    proptest! {
        #[test]
        fn pauses_are_those_of_the_tiers_give_or_take_their_jitter(
            attempts in 1..100u32, backoff in prop::collection::vec(0..100_000u64, 1..16), jitter in 0.0..=1.0,
            after in 1..100usize, chance in 0.0..1.0,
        ) {
            let spans = backoff.iter().map(|ms| Span::from_millis(*ms)).collect();
            let retry = Retry { attempts, backoff: spans, jitter: Percent(jitter) };
            let (tier, pause) = pause_after(&retry, after, chance);
            let tiers: Vec<Behind> = Behind::of(&retry).collect();
            prop_assert!(tiers.contains(&Behind::Retry(tier)), "a tier that nobody declared");
            prop_assert_eq!(tier as usize, after.min(backoff.len()).min(attempts as usize));
            let plain = backoff[tier as usize - 1] as f64 / 1000.0;
            let off = (pause.as_secs_f64() - plain).abs();
            prop_assert!(off <= plain * jitter + 1e-6, "{} is {} off", plain, off);
        }
    }
}

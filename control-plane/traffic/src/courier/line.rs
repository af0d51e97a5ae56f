//! The line of one subscription: one task that owns its [`Deliveries`], takes what the broker delivers from the channel
//! itself, its retry tiers and its replays, makes the attempts, and settles. No other subscription waits for it.

use std::cell::Cell;
use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use jiff::Timestamp;
use meshctl_drivers::broker::{Consumer, Delivery, Settlement, SharedBroker};
use meshctl_model::delivery::{Behind, Channel};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::delivery::{Answer, Begin, Deliveries, Lane, Now, Settled, Ticket};
use super::report::{Report, Tally};
use super::settle::Settling;
use super::spans::{DeliverySpan, Recorder};
use super::subscriber::Subscriber;
use crate::clock;

/// Groups of deliveries on their way from the broker's client to their line, and the largest; the broker's own limit counts
/// those that are held.
const ARRIVING: usize = 16;
const AT_ONCE: usize = 64;
/// What this process holds in memory at most, by the size that a channel's messages may have. Half of each subscription's
/// share is for its channel, half for what is behind it; twice what is under way fits in any case, so that one half is
/// attempted while the other is being settled.
const HELD_BYTES: u64 = 1 << 30;
/// The most that one group holds of messages that wait: for others with their key, for their time.
const WAITING: u32 = 16_384;
const REJOIN: Duration = Duration::from_millis(50);
const SLOWEST_REJOIN: Duration = Duration::from_secs(1);
const LOOK_AFTER_EVERY: Duration = Duration::from_secs(1);

pub(crate) struct Line {
    pub(crate) broker: SharedBroker,
    pub(crate) deliveries: Deliveries,
    pub(crate) subscriber: Rc<Subscriber>,
    pub(crate) tally: Rc<Tally>,
    pub(crate) report: Rc<Report>,
    pub(crate) recorder: Rc<Recorder>,
    /// Each with which the broker knows this subscription.
    pub(crate) groups: Vec<Group>,
    /// Becomes true when nothing is to begin any more.
    pub(crate) ending: watch::Receiver<bool>,
}

/// A group of consumers.
pub(crate) struct Group {
    channel: String,
    name: String,
    /// How many deliveries are held of it.
    prefetch: u32,
}

/// What a membership tells its line.
enum News {
    Joined(Lane, mpsc::Sender<Settlement>),
    Arrived(Lane, Vec<Delivery>),
    Lost(Lane),
}

/// The groups of a subscription, one of `subscriptions` of this process: its own, and those of the channels behind it from
/// which couriers consume.
///
/// Where messages wait, for one with their key or for their time, the others are behind them, and how many are held is all
/// that keeps those who could go from waiting as well: as many as fit. Elsewhere more than are under way, because one waits
/// for its commit.
pub(crate) fn groups(channel: &str, name: &str, config: &Channel, subscriptions: usize) -> Vec<Group> {
    let Some(its) = config.subscriptions.get(name) else { return Vec::new() };
    let half = HELD_BYTES / 2 / subscriptions.max(1) as u64;
    let behind = Behind::of(&its.retry).filter(|behind| matches!(behind, Behind::Retry(_) | Behind::Replay));
    let behind: Vec<Behind> = behind.collect();
    let prefetch = |wanted: u32, bytes: u64| {
        let fit = u32::try_from(bytes / config.max_message.0.max(1)).unwrap_or(u32::MAX);
        wanted.min(fit.max(its.concurrency.saturating_mul(2)))
    };
    let wanted = if config.ordered { WAITING } else { its.concurrency.saturating_mul(4).max(64) };
    let own = Group { channel: channel.to_owned(), name: name.to_owned(), prefetch: prefetch(wanted, half) };
    let share = half / behind.len().max(1) as u64;
    let behind = behind.into_iter().map(|behind| Group {
        channel: behind.channel(channel, name),
        name: behind.group().to_owned(),
        prefetch: prefetch(WAITING, share),
    });
    std::iter::once(own).chain(behind).collect()
}

impl Line {
    /// Delivers until asked to end, and then until what is under way is delivered and settled.
    pub(crate) async fn run(mut self) {
        let (tell, mut told) = mpsc::channel(ARRIVING);
        let lanes = Rc::new(Cell::new(0));
        let mut memberships = JoinSet::new();
        for group in self.groups {
            let of = Rc::from(format!("{} as {}", group.channel, group.name));
            let membership = Membership {
                broker: self.broker.clone(),
                group,
                of,
                tell: tell.clone(),
                lanes: Rc::clone(&lanes),
                report: Rc::clone(&self.report),
                ending: self.ending.clone(),
            };
            memberships.spawn_local(membership.keep());
        }
        drop(tell);
        let mut settles = HashMap::new();
        let mut attempts = FuturesUnordered::new();
        let mut look_after = tokio::time::interval(LOOK_AFTER_EVERY);
        let (mut news, mut open, mut ending) = (Vec::new(), true, false);
        let deliveries = &mut self.deliveries;
        let of = (self.recorder.channel(&self.tally.channel), self.recorder.subscription(&self.tally.subscription));
        while !ending || deliveries.under_way() > 0 {
            let now = now();
            while let Some(begin) = deliveries.begin(now.nanos) {
                attempts.push(attempt(Rc::clone(&self.subscriber), self.recorder.begin(&begin), begin));
            }
            self.tally.under_way.set(deliveries.under_way() as u64);
            self.tally.held.set(deliveries.held() as u64);
            let wake_at = deliveries.wake_at();
            tokio::select! {
                Some((ticket, answer, span)) = attempts.next() => {
                    let now = self::now();
                    let finished = deliveries.finish(ticket, answer, now, rand::random());
                    if let Some(finished) = &finished {
                        self.recorder.delivered(span, of, finished);
                    }
                    let settled = finished.and_then(|finished| finished.settled);
                    self.tally.paused(deliveries.paused());
                    self.tally.retried_in_place(deliveries.take_retried_in_place());
                    if let Some(settled) = settled {
                        settle(&settles, &self.tally, settled);
                    }
                }
                count = told.recv_many(&mut news, ARRIVING), if open => {
                    open = count > 0;
                    let now = self::now();
                    for news in news.drain(..) {
                        match news {
                            News::Joined(lane, settle) => drop(settles.insert(lane, settle)),
                            News::Arrived(lane, arrived) => {
                                arrived.into_iter().for_each(|delivery| deliveries.arrive(lane, delivery, now));
                            }
                            News::Lost(lane) => {
                                settles.remove(&lane);
                                deliveries.forget(lane, now.nanos);
                            }
                        }
                    }
                }
                () = sleep_until(wake_at), if wake_at.is_some() => {}
                _ = look_after.tick() => self.subscriber.close_idle(),
                _ = self.ending.wait_for(|ending| *ending), if !ending => {
                    ending = true;
                    deliveries.end();
                }
                // Before the end only a panic ends one; then this line ends too, and the courier with it.
                Some(_panicked) = memberships.join_next(), if !ending => return,
            }
        }
        // Nothing more is to be settled; the memberships end when all of it is.
        drop((settles, told));
        while memberships.join_next().await.is_some() {}
    }
}

fn now() -> Now {
    Now { nanos: clock::now(), time: Timestamp::now() }
}

async fn sleep_until(at: Option<u64>) {
    if let Some(at) = at {
        tokio::time::sleep_until(clock::instant(at)).await;
    }
}

async fn attempt(subscriber: Rc<Subscriber>, mut span: DeliverySpan, begin: Begin) -> (Ticket, Answer, DeliverySpan) {
    let answer = subscriber.deliver(&begin.message, begin.number, &span.trace).await;
    span.answered(&answer);
    (begin.ticket, answer, span)
}

fn settle(settles: &HashMap<Lane, mpsc::Sender<Settlement>>, tally: &Tally, settled: Settled) {
    tally.ended(settled.end, settled.age);
    // There is room for all that the broker delivers at once; where there is none, or nobody, the membership is lost and
    // the message comes again.
    if let Some(settle) = settles.get(&settled.lane) {
        drop(settle.try_send(settled.settlement));
    }
}

/// A place in one group of consumers, taken anew whenever it is lost.
struct Membership {
    broker: SharedBroker,
    group: Group,
    of: Rc<str>,
    tell: mpsc::Sender<News>,
    lanes: Rc<Cell<Lane>>,
    report: Rc<Report>,
    ending: watch::Receiver<bool>,
}

impl Membership {
    async fn keep(mut self) {
        let mut failed = 0u32;
        loop {
            let joining = tokio::select! {
                joining = self.broker.consume(&self.group.channel, &self.group.name, self.group.prefetch) => joining,
                _ = self.ending.wait_for(|ending| *ending) => return,
            };
            match joining {
                Ok(consumer) => {
                    failed = 0;
                    if self.consume(consumer).await {
                        return;
                    }
                }
                Err(error) => {
                    if failed == 0 {
                        tracing::warn!(of = %self.of, %error, "cannot consume; trying until it works");
                    }
                    failed += 1;
                }
            }
            tokio::select! {
                () = tokio::time::sleep((REJOIN * 2u32.pow(failed.min(10))).min(SLOWEST_REJOIN)) => {}
                _ = self.ending.wait_for(|ending| *ending) => return,
            }
        }
    }

    /// Passes on what is delivered. Whether it ended because it was to end.
    async fn consume(&mut self, consumer: Consumer) -> bool {
        let Consumer { mut deliveries, settler } = consumer;
        let lane = self.lanes.get() + 1;
        self.lanes.set(lane);
        let lost = Rc::new(Cell::new(false));
        let settling = Settling { of: Rc::clone(&self.of), settler, lost: Rc::clone(&lost) };
        let (settle, done) = mpsc::channel(self.group.prefetch as usize + 1);
        let mut settling = tokio::task::spawn_local(settling.run(done));
        let mut going_on = self.tell.send(News::Joined(lane, settle)).await.is_ok();
        self.report.joined();
        while going_on {
            let mut arrived = Vec::new();
            let count = tokio::select! {
                count = deliveries.recv_many(&mut arrived, AT_ONCE) => count,
                _ = self.ending.wait_for(|ending| *ending) => break,
                // Before the end only a panic ends it: without it nothing more would be settled.
                _ = &mut settling => return true,
            };
            if count == 0 {
                lost.set(true);
                self.report.lost();
                let _ending = self.tell.send(News::Lost(lane)).await;
                return false;
            }
            going_on = tokio::select! {
                told = self.tell.send(News::Arrived(lane, arrived)) => told.is_ok(),
                _ = self.ending.wait_for(|ending| *ending) => false,
            };
        }
        // The broker delivers nothing more; the membership lasts until the last delivery is settled.
        drop(deliveries);
        let _panicked = settling.await;
        self.report.lost();
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use meshctl_model::delivery::{Retry, Subscription};
    use meshctl_model::units::{Bytes, Percent, Span};

    use super::*;

    fn channel(max_message: u64, ordered: bool) -> Channel {
        let retry = Retry { attempts: 3, backoff: vec![Span::from_secs(1), Span::from_secs(2)], jitter: Percent(0.0) };
        let its = Subscription {
            service: "billing".into(),
            url: "http://127.0.0.1:1/".into(),
            concurrency: 10,
            timeout: Span::from_secs(1),
            retry,
            alert: None,
        };
        Channel {
            partitions: 1,
            key: None,
            ordered,
            retention: Span::from_secs(1),
            max_size: Bytes(1 << 40),
            max_message: Bytes(max_message),
            idempotency_window: Span::from_secs(1),
            subscriptions: BTreeMap::from([("billing".to_owned(), its)]),
        }
    }

    #[test]
    fn as_many_are_held_as_wait_for_others_and_as_fit_into_memory() {
        let of = |max_message, ordered, subscriptions| -> Vec<u32> {
            let groups = groups("c", "billing", &channel(max_message, ordered), subscriptions);
            groups.iter().map(|group| group.prefetch).collect()
        };
        assert_eq!(of(1024, true, 1), [WAITING; 4]);
        assert_eq!(of(1024, false, 1), [64, WAITING, WAITING, WAITING], "no message waits for another");
        assert_eq!(of(u64::MAX, true, 1), [20; 4], "what is under way, and as many that are being settled");
        for subscriptions in [1, 3, 7] {
            let held: u64 = of(1 << 20, true, subscriptions).into_iter().map(|count| u64::from(count) << 20).sum();
            assert!(held * subscriptions as u64 <= HELD_BYTES, "{subscriptions}: {held}");
        }
    }
}

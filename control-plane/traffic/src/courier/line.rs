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
use meshctl_model::delivery::{Behind, Channel, Subscription};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::delivery::{Answer, Begin, Deliveries, Lane, Now, Settled, Ticket};
use super::report::{Report, Tally};
use super::settle::Settling;
use super::subscriber::Subscriber;
use crate::clock;

/// Groups of deliveries on their way from the broker's client to their line, and the largest; the broker's own limit counts
/// those that are held.
const ARRIVING: usize = 16;
const AT_ONCE: usize = 64;
/// What is held in memory at most, by the size that a channel's messages may have.
const HELD_BYTES: u64 = 1 << 30;
const REJOIN: Duration = Duration::from_millis(50);
const SLOWEST_REJOIN: Duration = Duration::from_secs(1);
const LOOK_AFTER_EVERY: Duration = Duration::from_secs(1);

pub(crate) struct Line {
    pub(crate) broker: SharedBroker,
    pub(crate) deliveries: Deliveries,
    pub(crate) subscriber: Rc<Subscriber>,
    pub(crate) tally: Rc<Tally>,
    pub(crate) report: Rc<Report>,
    /// Each group with which the broker knows this subscription: channel and name.
    pub(crate) groups: Vec<(String, String)>,
    pub(crate) prefetch: u32,
    /// Becomes true when nothing is to begin any more.
    pub(crate) ending: watch::Receiver<bool>,
}

/// What a membership tells its line.
enum News {
    Joined(Lane, mpsc::Sender<Settlement>),
    Arrived(Lane, Vec<Delivery>),
    Lost(Lane),
}

/// The groups of a subscription: its own, and those of the channels behind it from which couriers consume.
pub(crate) fn groups(channel: &str, name: &str, config: &Subscription) -> Vec<(String, String)> {
    let behind = Behind::of(&config.retry).filter(|behind| matches!(behind, Behind::Retry(_) | Behind::Replay));
    let behind = behind.map(|behind| (behind.channel(channel, name), behind.group().to_owned()));
    std::iter::once((channel.to_owned(), name.to_owned())).chain(behind).collect()
}

/// How many deliveries a line holds of each group. More than are under way, because one waits for its commit, for its time
/// or for another with its key.
pub(crate) fn prefetch(channel: &Channel, config: &Subscription) -> u32 {
    let wanted = config.concurrency.saturating_mul(if channel.ordered { 16 } else { 4 }).max(64);
    let fit = u32::try_from(HELD_BYTES / channel.max_message.0.max(1)).unwrap_or(u32::MAX);
    wanted.min(fit.max(config.concurrency))
}

impl Line {
    /// Delivers until asked to end, and then until what is under way is delivered and settled.
    pub(crate) async fn run(mut self) {
        let (tell, mut told) = mpsc::channel(ARRIVING);
        let lanes = Rc::new(Cell::new(0));
        let mut memberships = JoinSet::new();
        for (channel, group) in &self.groups {
            let membership = Membership {
                broker: self.broker.clone(),
                channel: channel.clone(),
                group: group.clone(),
                prefetch: self.prefetch,
                of: Rc::from(format!("{channel} as {group}")),
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
        while !ending || deliveries.under_way() > 0 {
            let now = now();
            while let Some(begin) = deliveries.begin(now.nanos) {
                attempts.push(attempt(Rc::clone(&self.subscriber), begin));
            }
            self.tally.under_way.set(deliveries.under_way() as u64);
            self.tally.held.set(deliveries.held() as u64);
            let wake_at = deliveries.wake_at();
            tokio::select! {
                Some((ticket, answer)) = attempts.next() => {
                    let now = self::now();
                    let settled = deliveries.finish(ticket, answer, now, rand::random());
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

async fn attempt(subscriber: Rc<Subscriber>, begin: Begin) -> (Ticket, Answer) {
    (begin.ticket, subscriber.deliver(&begin.message, begin.number).await)
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
    channel: String,
    group: String,
    prefetch: u32,
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
                joining = self.broker.consume(&self.channel, &self.group, self.prefetch) => joining,
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
    async fn consume(&mut self, mut consumer: Consumer) -> bool {
        let lane = self.lanes.get() + 1;
        self.lanes.set(lane);
        let lost = Rc::new(Cell::new(false));
        let settling = Settling { of: Rc::clone(&self.of), settler: consumer.settler, lost: Rc::clone(&lost) };
        let (settle, done) = mpsc::channel(self.prefetch as usize + 1);
        let mut settling = tokio::task::spawn_local(settling.run(done));
        let mut going_on = self.tell.send(News::Joined(lane, settle)).await.is_ok();
        self.report.joined();
        while going_on {
            let mut arrived = Vec::new();
            let count = tokio::select! {
                count = consumer.deliveries.recv_many(&mut arrived, AT_ONCE) => count,
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
        // The membership lasts until the last delivery is settled.
        let _panicked = settling.await;
        self.report.lost();
        true
    }
}

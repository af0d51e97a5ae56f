//! What a courier counts, and how it tells: `/status` for the daemon, `/metrics` for Prometheus.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;
use std::time::Duration;

use jiff::Timestamp;
use meshctl_model::delivery::{CourierStatus, SubscriptionStatus};

use super::delivery::End;
use crate::clock::nanos;
use crate::metrics::{Outcome, Red, Totals};
use crate::page::{durations, family, label, process};

/// How often the durations are noted, to tell those of the last minute apart.
pub(crate) const NOTE_EVERY: Duration = Duration::from_secs(5);
const NOTES: usize = 12;

/// Everything that this courier counts; of one thread.
#[derive(Default)]
pub(crate) struct Report {
    pub(crate) subscriptions: Vec<Rc<Tally>>,
    /// By channel.
    pub(crate) published: RefCell<BTreeMap<String, Published>>,
    /// Groups to be joined, and those that are.
    pub(crate) groups: Cell<usize>,
    pub(crate) joined: Cell<usize>,
    /// Whether all had been joined at some time.
    pub(crate) ready: Cell<bool>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct Published {
    pub(crate) accepted: u64,
    pub(crate) duplicates: u64,
    /// By cause.
    pub(crate) refused: BTreeMap<&'static str, u64>,
}

/// What is counted of one subscription.
pub(crate) struct Tally {
    pub(crate) channel: String,
    pub(crate) subscription: String,
    processed: Cell<u64>,
    retried: Cell<u64>,
    dead: Cell<u64>,
    pub(crate) under_way: Cell<u64>,
    pub(crate) held: Cell<u64>,
    paused: RefCell<Option<String>>,
    since: Cell<Timestamp>,
    /// From accepted to processed.
    ages: Red,
    notes: RefCell<VecDeque<Totals>>,
}

impl Tally {
    pub(crate) fn new(channel: &str, subscription: &str) -> Self {
        Self {
            channel: channel.to_owned(),
            subscription: subscription.to_owned(),
            processed: Cell::default(),
            retried: Cell::default(),
            dead: Cell::default(),
            under_way: Cell::default(),
            held: Cell::default(),
            paused: RefCell::default(),
            since: Cell::new(Timestamp::now()),
            ages: Red::default(),
            notes: RefCell::default(),
        }
    }

    pub(crate) fn ended(&self, end: End, age: Duration) {
        let counter = match end {
            End::Processed => {
                let (status, took) = (Some(http::StatusCode::OK), nanos(age));
                self.ages.request(&Outcome { status, took, reached: true, ..Outcome::default() });
                &self.processed
            }
            End::Retried => &self.retried,
            End::Dead => &self.dead,
        };
        counter.set(counter.get() + 1);
    }

    pub(crate) fn retried_in_place(&self, count: u64) {
        self.retried.set(self.retried.get() + count);
    }

    /// Tells of a change, and only of a change.
    pub(crate) fn paused(&self, reason: Option<&str>) {
        let mut paused = self.paused.borrow_mut();
        if paused.is_some() == reason.is_some() {
            return;
        }
        let (channel, subscription) = (&self.channel, &self.subscription);
        match reason {
            Some(reason) => tracing::warn!(channel, subscription, reason, "paused: the subscriber is down"),
            None => tracing::info!(channel, subscription, "resumed: the subscriber is back"),
        }
        *paused = reason.map(str::to_owned);
        self.since.set(Timestamp::now());
    }

    fn totals(&self) -> Totals {
        Totals::of(std::slice::from_ref(&self.ages))
    }

    fn status(&self) -> SubscriptionStatus {
        let (totals, notes) = (self.totals(), self.notes.borrow());
        let before = notes.front().filter(|_| notes.len() == NOTES);
        let ages = totals.since(before, 0).latencies;
        SubscriptionStatus {
            channel: self.channel.clone(),
            subscription: self.subscription.clone(),
            paused: self.paused.borrow().clone(),
            since: self.since.get(),
            in_flight: self.under_way.get(),
            processed: self.processed.get(),
            retried: self.retried.get(),
            dead: self.dead.get(),
            latency_p50_ms: ages.quantile_ms(0.5),
            latency_p99_ms: ages.quantile_ms(0.99),
        }
    }
}

impl Report {
    /// To be called every [`NOTE_EVERY`].
    pub(crate) fn note(&self) {
        for tally in &self.subscriptions {
            let mut notes = tally.notes.borrow_mut();
            if notes.len() == NOTES {
                notes.pop_front();
            }
            notes.push_back(tally.totals());
        }
    }

    pub(crate) fn joined(&self) {
        self.joined.set(self.joined.get() + 1);
        self.ready.set(self.ready.get() || self.connected());
    }

    pub(crate) fn lost(&self) {
        self.joined.set(self.joined.get() - 1);
    }

    fn connected(&self) -> bool {
        self.joined.get() == self.groups.get()
    }

    pub(crate) fn published(&self, channel: &str, count: impl FnOnce(&mut Published)) {
        if let Some(published) = self.published.borrow_mut().get_mut(channel) {
            count(published);
        }
    }

    pub(crate) fn status(&self) -> CourierStatus {
        let subscriptions = self.subscriptions.iter().map(|tally| tally.status()).collect();
        CourierStatus { connected: self.connected(), subscriptions }
    }

    /// `spans`: recorded so far, and lost of these.
    pub(crate) fn metrics(&self, spans: (u64, u64)) -> String {
        let mut page = String::new();
        let published = self.published.borrow();
        let channels: Vec<(String, &Published)> =
            published.iter().map(|(name, counts)| (label("channel", name), counts)).collect();
        family(&mut page, "meshctl_courier_published_total", "counter", "Messages accepted: durable.", |put| {
            channels.iter().for_each(|(name, counts)| put(&format!("{{{name}}}"), counts.accepted as f64));
        });
        let help = "Messages that had been published before.";
        family(&mut page, "meshctl_courier_duplicates_total", "counter", help, |put| {
            channels.iter().for_each(|(name, counts)| put(&format!("{{{name}}}"), counts.duplicates as f64));
        });
        family(&mut page, "meshctl_courier_refused_total", "counter", "Publishes refused, by cause.", |put| {
            for (name, counts) in &channels {
                let refused = counts.refused.iter();
                refused.for_each(|(cause, count)| put(&format!("{{{name},cause=\"{cause}\"}}"), *count as f64));
            }
        });
        let tallies: Vec<(String, &Tally)> = self
            .subscriptions
            .iter()
            .map(|tally| {
                let labels =
                    format!("{},{}", label("channel", &tally.channel), label("subscription", &tally.subscription));
                (labels, &**tally)
            })
            .collect();
        let flag = |on: bool| u64::from(on);
        type Pick<'a> = &'a dyn Fn(&Tally) -> u64;
        let families: [(&str, &str, &str, Pick<'_>); 6] = [
            ("delivered_total", "counter", "Messages that the subscriber has processed.", &|t| t.processed.get()),
            ("retried_total", "counter", "Failed attempts that are followed by another.", &|t| t.retried.get()),
            ("dead_total", "counter", "Messages that became dead letters.", &|t| t.dead.get()),
            ("in_flight", "gauge", "Attempts under way.", &|t| t.under_way.get()),
            ("held", "gauge", "Messages held: under way, ready, or waiting for their time.", &|t| t.held.get()),
            ("paused", "gauge", "1 while the subscriber is down.", &|t| flag(t.paused.borrow().is_some())),
        ];
        for (name, kind, help, pick) in families {
            family(&mut page, &format!("meshctl_courier_{name}"), kind, help, |put| {
                tallies.iter().for_each(|(labels, tally)| put(&format!("{{{labels}}}"), pick(tally) as f64));
            });
        }
        let ages: Vec<(String, Totals)> =
            tallies.iter().map(|(labels, tally)| (labels.clone(), tally.totals())).collect();
        durations(&mut page, "meshctl_courier_delivery_duration_seconds", "From accepted to processed.", &ages);
        let help = "1 while every group is joined.";
        family(&mut page, "meshctl_courier_connected", "gauge", help, |put| {
            put("", f64::from(u8::from(self.connected())));
        });
        for (name, help, count) in [
            ("recorded", "Spans recorded.", spans.0),
            ("dropped", "Spans recorded, and lost before anybody read them.", spans.1),
        ] {
            family(&mut page, &format!("meshctl_courier_spans_{name}_total"), "counter", help, |put| {
                put("", count as f64);
            });
        }
        process(&mut page);
        page
    }
}

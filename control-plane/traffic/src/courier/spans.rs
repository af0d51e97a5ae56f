//! The spans of messages: one for each that is published, one for each attempt to deliver it. See [`crate::spans`].

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use meshctl_drivers::spans::Spans;
use meshctl_model::delivery::{COURIER, CourierConfig};
use meshctl_model::message::{Message, header};
use tokio::sync::Notify;

use super::delivery::{Answer, Begin, Finished};
use crate::clock;
use crate::problem::Problem;
use crate::spans::{
    self, Became, Id, Label, Names, Reading, Record, Ring, Sampler, Sampling, Source, State, What, Why, encode,
};
use crate::trace::Trace;

/// Everything that this courier remembers; of one thread.
pub(crate) struct Recorder {
    ring: RefCell<Ring>,
    names: Names,
    /// By name.
    channels: HashMap<String, Label>,
    subscriptions: HashMap<String, Label>,
    sampler: Sampler,
    sampling: Sampling,
    recorded: Cell<u64>,
    /// Told when there are recorded ones where there were none.
    waiting: Rc<Notify>,
    reading: Reading,
}

/// An attempt to deliver, from its begin to what became of it.
pub(crate) struct DeliverySpan {
    pub(crate) trace: Trace,
    began: u64,
    took: u64,
    message: Id,
    replay: Id,
    number: u32,
    status: u16,
    why: Option<Why>,
    words: Option<String>,
}

impl Recorder {
    pub(crate) fn new(config: &CourierConfig) -> Self {
        let (mut names, mut channels, mut subscriptions) = (Names::default(), HashMap::new(), HashMap::new());
        for (name, channel) in &config.channels {
            channels.insert(name.clone(), names.give(name, name));
            for subscription in channel.subscriptions.keys() {
                subscriptions.entry(subscription.clone()).or_insert_with(|| names.give(subscription, subscription));
            }
        }
        Self {
            ring: RefCell::new(Ring::new(spans::REMEMBERED)),
            names,
            channels,
            subscriptions,
            sampler: Sampler::default(),
            sampling: Sampling::of(&config.tracing),
            recorded: Cell::new(0),
            waiting: Rc::default(),
            reading: Reading::default(),
        }
    }

    /// Whether a trace that begins here is sampled.
    pub(crate) fn samples(&self) -> bool {
        self.sampler.takes(self.sampling, clock::now())
    }

    /// A message was published, by a request that began at `began`.
    pub(crate) fn published(&self, trace: &Trace, channel: &str, began: u64, message: &str, duplicate: bool) {
        let what = What::Publish { channel: self.channel(channel), message: Id::of(message), why: None, duplicate };
        self.publish(trace, what, began, false, None);
    }

    /// A publish was refused.
    pub(crate) fn refused(&self, trace: &Trace, channel: &str, began: u64, problem: &Problem) {
        let why = Some(Why::Cause(problem.cause));
        let what = What::Publish { channel: self.channel(channel), message: Id::NONE, why, duplicate: false };
        self.publish(trace, what, began, problem.cause.status().is_server_error(), Some(&problem.detail));
    }

    fn publish(&self, trace: &Trace, what: What, began: u64, failed: bool, words: Option<&str>) {
        let took = clock::now().saturating_sub(began);
        let recorded = trace.sampled() || failed || took >= self.sampling.slow;
        self.remember(Record { began, took, failed, recorded, ..trace.record(what) }, words.filter(|_| recorded));
    }

    /// An attempt to deliver begins.
    pub(crate) fn begin(&self, begin: &Begin) -> DeliverySpan {
        let message: &Message = &begin.message;
        let parent = message.header(header::TRACEPARENT).map(str::as_bytes);
        let trace = Trace::after(parent, rand::random, |said| said.unwrap_or_else(|| self.samples()));
        DeliverySpan {
            trace,
            began: clock::now(),
            took: 0,
            message: Id::of(&message.id),
            replay: message.header(header::REPLAY).map_or(Id::NONE, Id::of),
            number: begin.number,
            status: 0,
            why: None,
            words: None,
        }
    }

    /// It is known what followed from it.
    pub(crate) fn delivered(&self, span: DeliverySpan, of: (Label, Label), finished: &Finished) {
        let DeliverySpan { trace, began, took, message, replay, number, status, why, words } = span;
        let (channel, subscription) = of;
        let Finished { became, state, .. } = *finished;
        let again_ms = finished.again.map(|again| u32::try_from(again.as_millis()).unwrap_or(u32::MAX));
        let what =
            What::Deliver { channel, subscription, message, replay, number, status, why, became, state, again_ms };
        let usual = became == Became::Processed && state == State::Flowing && number == 1 && replay == Id::NONE;
        let recorded = trace.sampled() || !usual || took >= self.sampling.slow;
        let record = Record { began, took, failed: why.is_some(), recorded, ..trace.record(what) };
        self.remember(record, words.as_deref());
    }

    fn remember(&self, record: Record, words: Option<&str>) {
        let mut ring = self.ring.borrow_mut();
        ring.push(record, words);
        if record.recorded {
            self.recorded.set(self.recorded.get() + 1);
            if ring.waiting() == 1 {
                self.waiting.notify_one();
            }
        }
    }

    pub(crate) fn channel(&self, name: &str) -> Label {
        self.channels.get(name).copied().unwrap_or_default()
    }

    pub(crate) fn subscription(&self, name: &str) -> Label {
        self.subscriptions.get(name).copied().unwrap_or_default()
    }

    /// Told when there is something for a reader.
    pub(crate) fn waiting(&self) -> Rc<Notify> {
        Rc::clone(&self.waiting)
    }

    /// Spans recorded so far, and those of them that no reader got.
    pub(crate) fn counts(&self) -> (u64, u64) {
        (self.recorded.get(), self.ring.borrow().dropped() + self.reading.lost())
    }
}

impl DeliverySpan {
    pub(crate) fn answered(&mut self, answer: &Answer) {
        self.took = clock::now().saturating_sub(self.began);
        if let Answer::Failed(failed) = answer {
            self.status = failed.status.unwrap_or_default();
            self.why = Some(Why::Delivery(failed.failure));
            self.words = Some(failed.reason.clone());
        }
    }
}

impl Source for Recorder {
    fn reading(&self) -> &Reading {
        &self.reading
    }

    async fn take(&self) -> (Spans, usize) {
        let taken = self.ring.borrow_mut().take();
        (encode(COURIER, &self.names, &taken, self.counts().1), taken.len())
    }

    async fn recall(&self, traces: Vec<u128>) -> Spans {
        let recalled = self.ring.borrow().recall(&traces);
        encode(COURIER, &self.names, &recalled, self.counts().1)
    }
}

//! One thread with its share of the connections and of the schedule: an event loop that sends what is due and reads what comes.
//!
//! *Which connection takes a request?* In an open loop any idle one of its thread, drawn at random; where none is idle, requests wait in the
//! order of their intended times for the first that becomes so. An independent user would not wait for another's answer, so
//! a request is not tied to a connection that happens to be busy; what it waits because all are busy counts in its latency. In
//! a closed loop each connection sends its next request when it has its answer.
//!
//! *How far behind is the generator?* The lag of a request is the time from its intended send time until this loop took it from
//! the schedule; waiting for a connection is the service's doing and not part of it. In a closed loop, where nothing is
//! scheduled, it is how late the loop's heartbeat comes.

mod beat;
mod opening;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io;
use std::net::IpAddr;
use std::sync::atomic::Ordering::Relaxed;

use hdrhistogram::Histogram;
use rand::RngExt;
use rand::rngs::Xoshiro256PlusPlus;

use crate::completion::{Effect, Pending};
use crate::connection::{Connection, Received};
use crate::plan::{Arrivals, Plan};
use crate::poller::{Event, Poller, Usage, monotonic};
use crate::progress::{Control, Gauge, recent_histogram};
use crate::recorder::{Cause, Recorder, Request};
use crate::schedule::{self, Arrival, Schedule, Window};
use crate::template::Compiled;
use crate::trace::Traces;

const MILLISECOND: u64 = 1_000_000;
const BEAT: u64 = 10 * MILLISECOND;
/// Arrivals that are taken before sockets are looked at again.
const BATCH: usize = 256;
/// Beyond so many that wait for a connection, further ones count as not sent: the memory of an overrun schedule is bounded.
const MAX_WAITING: usize = 1 << 20;
/// A closed loop's connection does not ask again at once after a failure: it would do nothing else.
const PAUSE: u64 = 100 * MILLISECOND;
/// Connections for asking whether effects show, beside those of the plan.
pub(crate) const ASKERS: u32 = 64;
const READ_BUFFER: usize = 64 * 1024;

enum Job {
    Request(Request),
    Ask { effect: Effect, asked: u64 },
}

/// What a thread brings home.
pub(crate) struct Harvest {
    pub recorder: Recorder,
    /// Over the measured time.
    pub usage: Usage,
    /// Connections that were open when the schedule began.
    pub opened: u32,
}

pub(crate) struct Worker<'a> {
    plan: &'a Plan,
    templates: &'a [Compiled],
    sources: &'a [IpAddr],
    control: &'a Control,
    gauge: &'a Gauge,
    poller: Poller,
    /// First those of the plan, then the askers.
    connections: Vec<Connection<Job>>,
    senders: u32,
    connecting: u32,
    idle: Vec<u32>,
    idle_askers: Vec<u32>,
    /// Have ended a job and may have another.
    ready: VecDeque<u32>,
    schedule: Schedule,
    /// In an open loop.
    next: Option<Arrival>,
    waiting: VecDeque<Arrival>,
    /// In a closed loop: when which connection sends (its first, or after a failure).
    later: BinaryHeap<Reverse<(u64, u32)>>,
    pending: Pending,
    window: Window,
    timeout: u64,
    /// Monotonic nanoseconds of the time 0.
    base: u64,
    beat_at: u64,
    sweep_at: u64,
    hand_over_at: u64,
    usage: (Option<Usage>, Option<Usage>),
    recorder: Recorder,
    recent: Histogram<u64>,
    finished: u64,
    errors: u64,
    behind: u64,
    traces: Traces,
    random: Xoshiro256PlusPlus,
    request: Vec<u8>,
    buffer: Box<[u8]>,
}

impl<'a> Worker<'a> {
    pub fn new(
        plan: &'a Plan,
        templates: &'a [Compiled],
        sources: &'a [IpAddr],
        control: &'a Control,
        gauge: &'a Gauge,
        thread: usize,
    ) -> io::Result<Self> {
        let senders = schedule::connections_of_thread(plan, thread);
        let askers = if templates.iter().any(|template| template.completion.is_some()) { ASKERS } else { 0 };
        let mut schedule = Schedule::of_thread(plan, thread);
        let open = matches!(plan.arrivals, Arrivals::Open { .. });
        let stagger = |i: u32| (plan.ramp.as_nanos() as f64 * f64::from(i) / f64::from(senders)) as u64;
        Ok(Self {
            poller: Poller::new()?,
            connections: (0..senders + askers).map(|_| Connection::new()).collect(),
            idle: if open { (0..senders).collect() } else { Vec::new() },
            idle_askers: (senders..senders + askers).collect(),
            later: if open { BinaryHeap::new() } else { (0..senders).map(|i| Reverse((stagger(i), i))).collect() },
            next: open.then(|| schedule.next_arrival()),
            schedule,
            window: Window::of(plan),
            timeout: schedule::nanos(plan.timeout),
            recorder: Recorder::new(templates.len()),
            recent: recent_histogram(),
            traces: Traces::new(plan.threads),
            random: rand::make_rng(),
            buffer: vec![0; READ_BUFFER].into(),
            base: monotonic(),
            connecting: 0,
            ready: VecDeque::new(),
            waiting: VecDeque::new(),
            pending: Pending::default(),
            beat_at: 0,
            sweep_at: 0,
            hand_over_at: 0,
            usage: (None, None),
            finished: 0,
            errors: 0,
            behind: 0,
            request: Vec::new(),
            plan,
            templates,
            sources,
            control,
            gauge,
            senders,
        })
    }

    /// To the end of the run. Errors are the machine's; the service's are in the record.
    pub fn run(mut self) -> io::Result<Harvest> {
        let mut events = Vec::new();
        self.open_all(&mut events)?;
        let opened = self.open_count();
        self.gauge.connections.store(u64::from(opened), Relaxed);
        self.gauge.opened.store(true, Relaxed);
        let start = loop {
            if self.control.is_cancelled() {
                return Ok(Harvest { recorder: self.recorder, usage: Usage::default(), opened });
            }
            let now = self.now();
            match self.control.start() {
                Some(start) => break start,
                None => self.turn(now + 5 * MILLISECOND, &mut events)?,
            }
        };
        while monotonic() < start {
            self.poller.wait(start, &mut events)?;
            self.handle(&events);
        }
        self.base = start;
        self.traces = Traces::new(self.plan.threads);
        let mut settled = false;
        loop {
            let now = self.now();
            self.window.to = self.control.end();
            if now >= self.beat_at {
                self.beat(now);
            }
            self.take_arrivals(now);
            self.take_later(now);
            self.ask(now);
            self.give_ready();
            if !settled && self.is_settled(now) {
                self.settle(now);
                settled = true;
            }
            if settled && (self.all_shown() || self.is_cut_short(now)) {
                break;
            }
            self.turn(self.wake_at(), &mut events)?;
        }
        let now = self.now();
        self.recorder.in_flight.advance(self.window, now);
        self.sample_usage(now);
        self.gauge.hand_over(&mut self.recent);
        self.publish();
        let usage = match self.usage {
            (Some(from), Some(to)) => to.since(from),
            _ => Usage::default(),
        };
        Ok(Harvest { recorder: self.recorder, usage, opened })
    }

    fn now(&self) -> u64 {
        monotonic().saturating_sub(self.base)
    }

    /// Sleeps at most until `until`, and does what has become possible.
    fn turn(&mut self, until: u64, events: &mut Vec<Event>) -> io::Result<()> {
        self.poller.wait(self.base.saturating_add(until), events)?;
        self.handle(events);
        Ok(())
    }

    fn wake_at(&self) -> u64 {
        if !self.ready.is_empty() {
            return 0;
        }
        let arrival = self.next.map(|next| next.at).filter(|&at| at < self.window.to);
        let later = self.later.peek().map(|later| later.0.0);
        let question = self.pending.next_at().filter(|_| !self.idle_askers.is_empty());
        [arrival, later, question].into_iter().flatten().fold(self.beat_at, u64::min)
    }

    // The schedule.

    fn take_arrivals(&mut self, now: u64) {
        for _ in 0..BATCH {
            let Some(arrival) = self.next.filter(|next| next.at <= now && next.at < self.window.to) else { return };
            self.next = Some(self.schedule.next_arrival());
            let seen = self.now();
            self.lagged(arrival.at, seen);
            if !self.idle.is_empty() {
                let index = self.idle.swap_remove(self.random.random_range(0..self.idle.len()));
                self.begin(index, arrival, seen);
            } else if self.waiting.len() < MAX_WAITING {
                self.waiting.push_back(arrival);
            } else {
                self.not_sent(arrival, seen);
            }
        }
    }

    fn lagged(&mut self, due: u64, seen: u64) {
        let lag = seen.saturating_sub(due);
        self.behind = self.behind.max(lag);
        if self.window.contains(due) {
            self.recorder.lag.saturating_record(lag);
        }
    }

    fn take_later(&mut self, now: u64) {
        while let Some(Reverse((_, index))) = self.later.peek().copied().filter(|later| later.0.0 <= now) {
            self.later.pop();
            if now < self.window.to {
                let arrival = self.schedule.request_at(now);
                self.begin(index, arrival, now);
            }
        }
    }

    /// Gives those that have ended a job their next.
    fn give_ready(&mut self) {
        // Only those that are here now: a service that refuses at once must not keep the loop from everything else.
        for _ in 0..self.ready.len() {
            let Some(index) = self.ready.pop_front() else { return };
            if index >= self.senders {
                self.idle_askers.push(index);
                continue;
            }
            let now = self.now();
            if self.next.is_some() {
                match self.waiting.pop_front() {
                    Some(arrival) => self.begin(index, arrival, now),
                    None => self.idle.push(index),
                }
            } else if now < self.window.to {
                let arrival = self.schedule.request_at(now);
                self.begin(index, arrival, now);
            }
        }
    }

    fn not_sent(&mut self, arrival: Arrival, now: u64) {
        let request =
            Request { n: arrival.n, template: arrival.template, intended: arrival.at, sent: now, trace: None };
        self.count(&request, Err(Cause::NotSent), now);
    }

    fn is_settled(&self, now: u64) -> bool {
        let taken = self.next.is_none_or(|next| next.at >= self.window.to);
        let quiet = taken && self.waiting.is_empty() && self.recorder.in_flight.count == 0;
        now >= self.window.to && (quiet || now >= self.window.to.saturating_add(self.timeout))
    }

    /// No effect is waited for.
    fn all_shown(&self) -> bool {
        self.pending.len() == 0 && self.idle_askers.len() == self.connections.len() - self.senders as usize
    }

    /// Who stops a run does not wait for effects longer than for answers: those not shown by then are not counted.
    fn is_cut_short(&self, now: u64) -> bool {
        self.control.is_stopped() && now >= self.window.to.saturating_add(self.timeout)
    }

    /// What has not ended by now never will.
    fn settle(&mut self, now: u64) {
        for index in 0..self.senders {
            if matches!(self.connections[index as usize].job, Some(Job::Request(_))) {
                self.fail(index, Cause::Timeout, now);
            }
        }
        self.ready.retain(|&index| index >= self.senders);
        self.later.clear();
        while let Some(arrival) = self.waiting.pop_front() {
            self.not_sent(arrival, now);
        }
        let mut never = 0;
        while let Some(arrival) = self.next.filter(|next| next.at < self.window.to) {
            never += u64::from(self.window.contains(arrival.at));
            self.lagged(arrival.at, now);
            self.next = Some(self.schedule.next_arrival());
        }
        self.recorder.never_begun(never);
        self.gauge.settled.store(true, Relaxed);
    }

    // One request.

    fn begin(&mut self, index: u32, arrival: Arrival, now: u64) {
        let request =
            Request { n: arrival.n, template: arrival.template, intended: arrival.at, sent: now, trace: None };
        self.recorder.in_flight.begin(self.window, now);
        self.employ(index, Job::Request(request), now);
    }

    fn employ(&mut self, index: u32, job: Job, now: u64) {
        let connection = &mut self.connections[index as usize];
        connection.job = Some(job);
        if connection.is_open() {
            self.transmit(index, now);
        } else if connection.is_closed() && !self.connect(index) {
            self.fail(index, Cause::Connect, now);
        } else if self.connections[index as usize].is_open() {
            self.transmit(index, now);
        }
    }

    /// Writes the request of the connection's job.
    fn transmit(&mut self, index: u32, now: u64) {
        let connection = &mut self.connections[index as usize];
        self.request.clear();
        match &mut connection.job {
            Some(Job::Request(request)) => {
                let template = &self.templates[usize::from(request.template)];
                let (parent, id) = self.traces.next(now);
                request.trace = template.traced().then_some(id);
                template.write(request.n, &parent, &mut self.request);
            }
            Some(Job::Ask { effect, .. }) => {
                self.request.extend_from_slice(&effect.question);
                self.request.extend_from_slice(&self.traces.next(0).0);
                self.request.extend_from_slice(b"\r\n\r\n");
            }
            None => return,
        }
        if connection.write(&self.request).is_err() {
            self.fail(index, Cause::Reset, now);
        }
    }

    /// The job ends without an answer, and its connection with it.
    fn fail(&mut self, index: u32, cause: Cause, now: u64) {
        self.end_job(index, Err(cause), now);
        self.reopen(index, now);
    }

    fn end_job(&mut self, index: u32, outcome: Result<u16, Cause>, now: u64) {
        let connection = &mut self.connections[index as usize];
        match connection.job.take() {
            Some(Job::Request(request)) => {
                let answer = std::mem::take(&mut connection.answer);
                let template = &self.templates[usize::from(request.template)];
                let outcome = outcome.and_then(|status| match template.expects(status) {
                    true => Ok(status),
                    false => Err(Cause::Status(status)),
                });
                self.recorder.in_flight.end(self.window, now);
                self.count(&request, outcome, now);
                if outcome.is_ok() {
                    self.expect_effect(&request, &answer, now);
                }
                if self.next.is_none() && outcome.is_err() {
                    self.later.push(Reverse((now + PAUSE, index)));
                } else {
                    self.ready.push_back(index);
                }
            }
            Some(Job::Ask { effect, .. }) => {
                if outcome == Ok(200) {
                    self.recorder.completed(&effect, now);
                } else {
                    self.await_effect(effect, now);
                }
                self.ready.push_back(index);
            }
            None => {}
        }
    }

    fn count(&mut self, request: &Request, outcome: Result<u16, Cause>, now: u64) {
        self.finished += 1;
        match outcome {
            Ok(_) => self.recent.saturating_record(now.saturating_sub(request.intended)),
            Err(_) => self.errors += 1,
        }
        self.recorder.finished(self.window, request, outcome, now);
    }

    // Effects.

    fn expect_effect(&mut self, request: &Request, answer: &[u8], now: u64) {
        let Some(completion) = &self.templates[usize::from(request.template)].completion else { return };
        if !self.window.contains(request.intended) {
            return;
        }
        match completion.question(request.n, answer) {
            Ok(question) => {
                let effect = Effect {
                    intended: request.intended,
                    template: request.template,
                    n: request.n,
                    trace: request.trace,
                    question: question.into(),
                    every: completion.every,
                    deadline: request.intended + completion.within,
                };
                self.await_effect(effect, now);
            }
            Err(field) => self.recorder.without_field(field),
        }
    }

    fn await_effect(&mut self, effect: Effect, now: u64) {
        if let Err(effect) = self.pending.wait(effect, now) {
            self.recorder.incomplete(&effect, now);
        }
    }

    fn ask(&mut self, now: u64) {
        while let Some(index) = self.idle_askers.pop() {
            let Some(effect) = self.pending.take(now) else {
                self.idle_askers.push(index);
                return;
            };
            self.employ(index, Job::Ask { effect, asked: now }, now);
        }
    }

    // Sockets.

    fn handle(&mut self, events: &[Event]) {
        for event in events {
            let index = event.token as u32;
            if !self.connections[index as usize].is_meant(event) {
                continue;
            }
            if self.connections[index as usize].is_connecting() {
                self.connected(index, event);
            }
            if self.connections[index as usize].is_open() {
                self.transfer(index, event);
            }
        }
    }

    fn connected(&mut self, index: u32, event: &Event) {
        let Some(result) = self.connections[index as usize].connected(event) else { return };
        self.connecting -= 1;
        let now = self.now();
        match result {
            Ok(()) => self.transmit(index, now),
            Err(error) => {
                self.note(error);
                self.end_job(index, Err(Cause::Connect), now);
            }
        }
    }

    fn transfer(&mut self, index: u32, event: &Event) {
        let connection = &mut self.connections[index as usize];
        if event.writable && connection.flush().is_err() {
            let now = self.now();
            return self.fail(index, Cause::Reset, now);
        }
        if !event.readable && !event.hung_up {
            return;
        }
        let (to_head, keep) = match &connection.job {
            Some(Job::Request(request)) => {
                let template = &self.templates[usize::from(request.template)];
                (template.to_head, template.completion.is_some())
            }
            _ => (false, false),
        };
        let (bytes, received) = connection.read(&mut self.buffer, event.hung_up, to_head, keep);
        let now = self.now();
        if now >= self.window.from && now < self.window.to {
            self.recorder.bytes += bytes;
        }
        match received {
            Received::More => {}
            Received::Answered(done) => {
                self.end_job(index, Ok(done.status), now);
                if done.close {
                    self.reopen(index, now);
                }
            }
            Received::Ended => self.fail(index, Cause::Reset, now),
            Received::Malformed => self.fail(index, Cause::Malformed, now),
        }
        // Between answers, too: a batch of them must not make the schedule late.
        if self.next.is_some_and(|next| next.at <= now) {
            self.take_arrivals(now);
        }
        self.give_ready();
    }

    /// Closes the connection, and opens it again so that the next request finds it open, as long as there is one to come.
    fn reopen(&mut self, index: u32, now: u64) {
        let connection = &mut self.connections[index as usize];
        self.connecting -= u32::from(connection.is_connecting());
        let again = connection.is_proven() && index < self.senders && now < self.window.to;
        connection.close();
        if again {
            self.connect(index);
        }
    }
}

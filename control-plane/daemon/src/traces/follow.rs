//! Reads what gateways and couriers record, and asks them for the rest of what they did not: a trace that is kept because
//! something in it failed or was slow was not recorded by those to whom it was like any other, but they still remember it.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use meshctl_drivers::spans::{self, RECALL_AT_ONCE, Spans};
use meshctl_model::GATEWAY;
use meshctl_model::delivery::COURIER;
use meshctl_model::plan::DesiredTelemetry;
use prost::Message as _;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::id::{self, TraceId};
use super::store::{Bounds, lock};
use super::{Traces, listener, otlp};
use crate::execute::SharedGateway;
use crate::server::Shared;

/// Between two looks at who there is.
const INTERVAL: Duration = Duration::from_millis(500);

/// Between two recalls.
const RECALLS: Duration = Duration::from_millis(250);

/// A trace is asked for soon, before rings turn over, and again when what follows asynchronously has happened.
const SOON: Duration = Duration::from_millis(200);
const LATER: Duration = Duration::from_millis(2500);

/// A trace for which was asked is not asked for again within this time.
const ASKED: Duration = Duration::from_secs(5);

/// Traces that wait to be asked for, or for which was asked. Where more come at once, they stay as they are.
const MOST: usize = 8192;

/// Recalls in one go.
const BATCHES: usize = 4;

/// How long a process may take to remember.
const PATIENCE: Duration = Duration::from_secs(1);

/// A process of the data plane.
#[derive(Clone)]
pub enum Process {
    Gateway(SharedGateway),
    Courier(SocketAddr),
}

impl Process {
    async fn follow(&self) -> Result<mpsc::Receiver<Spans>, String> {
        match self {
            Self::Gateway(gateway) => gateway.spans().await.map_err(|why| why.to_string()),
            Self::Courier(address) => spans::follow(*address).await.map_err(|why| why.to_string()),
        }
    }

    async fn recall(&self, traces: &[String]) -> Result<Spans, String> {
        match self {
            Self::Gateway(gateway) => gateway.recall(traces).await.map_err(|why| why.to_string()),
            Self::Courier(address) => spans::recall(*address, traces).await.map_err(|why| why.to_string()),
        }
    }
}

/// Traces of which the rest is to be asked for.
#[derive(Debug, Default)]
pub struct Recall {
    /// By when.
    due: VecDeque<(Instant, TraceId)>,
    again: VecDeque<(Instant, TraceId)>,
    asked: HashMap<TraceId, Instant>,
}

impl Recall {
    pub fn want(&mut self, traces: HashSet<TraceId>, now: Instant) {
        for trace in traces {
            if self.asked.len() < MOST && !self.asked.contains_key(&trace) {
                self.asked.insert(trace, now);
                self.due.push_back((now + SOON, trace));
                self.again.push_back((now + LATER, trace));
            }
        }
    }

    /// Those whose time has come, at most as many as can be asked for at once.
    fn take(&mut self, now: Instant) -> Vec<String> {
        self.asked.retain(|_, since| now.duration_since(*since) < ASKED);
        let mut taken = Vec::new();
        for queue in [&mut self.due, &mut self.again] {
            while taken.len() < RECALL_AT_ONCE && queue.front().is_some_and(|(due, _)| *due <= now) {
                taken.extend(queue.pop_front().map(|(_, trace)| id::trace_text(trace)));
            }
        }
        taken
    }
}

/// Follows whoever there is, for as long as the daemon lives.
pub async fn follow_for_ever(shared: Shared, traces: Traces) {
    tokio::spawn(recall_for_ever(traces.clone()));
    let mut followed: BTreeMap<String, Arc<AtomicBool>> = BTreeMap::new();
    let mut listening = listener::Listening::default();
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let look = shared.look(|control| {
            let observed = &control.state.observed;
            let running = |name| observed.of(name).filter(|instance| instance.process.is_some());
            let gateways = running(GATEWAY)
                .map(|one| (one.spec.id.clone(), Process::Gateway(control.executor.gateway(&one.spec))));
            let couriers =
                running(COURIER).filter_map(|one| Some((one.spec.id.clone(), Process::Courier(one.address()?))));
            let there: BTreeMap<String, Process> = gateways.chain(couriers).collect();
            Ok((there, control.state.desired.telemetry.clone()))
        });
        let Ok((there, telemetry)) = look.await else { return };
        if let Some(telemetry) = &telemetry {
            traces.store.bound(bounds(telemetry));
        }
        listening.at(telemetry.map(|telemetry| telemetry.listen), &traces, &shared.messages).await;
        followed.retain(|id, wanted| {
            let stays = there.contains_key(id);
            // What is on its way out is read to its end.
            wanted.store(stays, Ordering::Relaxed);
            stays
        });
        for (id, process) in &there {
            followed.entry(id.clone()).or_insert_with(|| {
                let wanted = Arc::new(AtomicBool::new(true));
                tokio::spawn(follow(id.clone(), process.clone(), traces.clone(), Arc::clone(&wanted)));
                wanted
            });
        }
        *lock(&traces.processes) = there;
        traces.tick();
    }
}

fn bounds(telemetry: &DesiredTelemetry) -> Bounds {
    Bounds {
        keep: telemetry.keep.get(),
        max_size: telemetry.max_size.0,
        slow: Duration::from_millis(telemetry.tracing.slow_ms),
    }
}

/// Reads one process until it is no more.
async fn follow(id: String, process: Process, traces: Traces, wanted: Arc<AtomicBool>) {
    while wanted.load(Ordering::Relaxed) {
        match process.follow().await {
            Ok(mut batches) => {
                while let Some(batch) = batches.recv().await {
                    let bytes = batch.encoded_len();
                    let read = otlp::read(batch, bytes);
                    if let Some(dropped) = read.dropped {
                        traces.store.lost(&id, dropped);
                    }
                    lock(&traces.recall).want(read.unsampled, Instant::now());
                    traces.store.put(read.batch).await;
                }
            }
            Err(why) => tracing::debug!(id, why, "its spans cannot be read yet"),
        }
        tokio::time::sleep(INTERVAL / 2).await;
    }
}

async fn recall_for_ever(traces: Traces) {
    let mut ticks = tokio::time::interval(RECALLS);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        for _ in 0..BATCHES {
            let ids = lock(&traces.recall).take(Instant::now());
            if ids.is_empty() {
                break;
            }
            for read in recall(&traces.processes, &ids).await {
                traces.store.put(read.batch).await;
            }
        }
    }
}

/// What all processes still remember of these traces. Who does not answer has nothing to say.
pub async fn recall(processes: &Mutex<BTreeMap<String, Process>>, ids: &[String]) -> Vec<otlp::Read> {
    let there = lock(processes).clone();
    let asked = there.into_iter().map(|(id, process)| async move {
        match tokio::time::timeout(PATIENCE, process.recall(ids)).await {
            Ok(Ok(batch)) => {
                let bytes = batch.encoded_len();
                Some(otlp::read(batch, bytes))
            }
            Ok(Err(why)) => {
                tracing::debug!(id, why, "it does not remember");
                None
            }
            Err(_) => None,
        }
    });
    let heard = futures_util::future::join_all(asked).await;
    heard.into_iter().flatten().filter(|read| !read.batch.spans.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trace_is_asked_for_twice_and_then_not_for_a_while() {
        let mut recall = Recall::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let one = id::trace_text(7);
        recall.want(HashSet::from([7]), at(0));
        recall.want(HashSet::from([7]), at(10));
        assert_eq!(recall.take(at(100)), [""; 0]);
        assert_eq!(recall.take(at(200)), [one.as_str()]);
        recall.want(HashSet::from([7]), at(1000));
        assert_eq!(recall.take(at(2400)), [""; 0]);
        assert_eq!(recall.take(at(2500)), [one.as_str()]);
        assert_eq!(recall.take(at(5000)), [""; 0]);
        // Something of it failed again: a retry half a minute later.
        recall.want(HashSet::from([7]), at(30_000));
        assert_eq!(recall.take(at(30_200)), [one.as_str()]);
    }

    #[test]
    fn a_flood_is_asked_for_in_pieces_and_up_to_a_bound() {
        let mut recall = Recall::default();
        let start = Instant::now();
        recall.want((1..=100_000).collect(), start);
        let now = start + LATER;
        let mut taken = 0;
        loop {
            let ids = recall.take(now);
            assert!(ids.len() <= RECALL_AT_ONCE);
            if ids.is_empty() {
                break;
            }
            taken += ids.len();
        }
        assert_eq!(taken, 2 * MOST);
    }
}

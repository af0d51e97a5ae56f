//! The golden signals of everything, made of what every gateway says of its last ten seconds.
//!
//! Gateways are asked only while somebody wants to know: once for a single answer, once a second for as long as anybody
//! follows, however many they are. Counts and latencies are added up over gateways before a percentile is taken.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use meshctl_api::error::ApiError;
use meshctl_api::view::vitals::{Signals, Vitals};
use meshctl_drivers::runtime::process::{Usage, usage};
use meshctl_model::plan::Phase;
use meshctl_model::recent::{Latencies, Recent};
use meshctl_model::snapshot::GatewayStatus;
use meshctl_model::{API_VERSION, GATEWAY};
use tokio::sync::{Notify, watch};

use crate::breakers::Standings;
use crate::execute::SharedGateway;
use crate::messaging::channels::Wanted;
use crate::messaging::wanted;
use crate::server::{Shared, looks};

const EVERY: Duration = Duration::from_secs(1);
/// A gateway that takes longer is silent: the others are worth more than it now.
const GATEWAY_ANSWERS: Duration = Duration::from_millis(500);
/// Processor time is counted in hundredths of a second: over less than this a share of it says nothing.
const SHORTEST_USE: Duration = Duration::from_millis(250);
/// A share of processor time is of what came since the last look, if that is not longer ago.
const LONGEST_USE: Duration = Duration::from_secs(10);

/// Where whoever wants to know finds them.
#[derive(Clone, Debug)]
pub struct Samples {
    latest: watch::Sender<Option<Arc<Vitals>>>,
    wanted: Arc<Notify>,
    used: Arc<Mutex<Used>>,
}

/// What every process had used at the last looks, by pid.
#[derive(Debug, Default)]
struct Used(BTreeMap<u32, (Instant, Duration)>);

impl Default for Samples {
    fn default() -> Self {
        Self { latest: watch::Sender::new(None), wanted: Arc::default(), used: Arc::default() }
    }
}

impl Samples {
    /// As it is now.
    ///
    /// # Errors
    /// When the daemon is ending.
    pub async fn now(&self, shared: &Shared) -> Result<Vitals, ApiError> {
        let scene = Scene::of(shared).await?;
        if !self.used().knows(&scene.pids) {
            self.used().look(&scene.pids);
            tokio::time::sleep(SHORTEST_USE).await;
        }
        Ok(self.sample(shared, scene).await)
    }

    /// The same once a second, from the next one on.
    pub fn follow(&self) -> watch::Receiver<Option<Arc<Vitals>>> {
        let following = self.latest.subscribe();
        self.wanted.notify_one();
        following
    }

    /// Samples for as long as anybody follows; never returns.
    pub async fn sample_for_ever(self, shared: Shared) {
        let mut second = tokio::time::interval(EVERY);
        second.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            if self.latest.receiver_count() == 0 {
                self.wanted.notified().await;
                continue;
            }
            second.tick().await;
            match Scene::of(&shared).await {
                Ok(scene) => drop(self.latest.send_replace(Some(Arc::new(self.sample(&shared, scene).await)))),
                Err(why) => tracing::debug!(%why, "no vitals this time"),
            }
        }
    }

    fn used(&self) -> std::sync::MutexGuard<'_, Used> {
        self.used.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn sample(&self, shared: &Shared, scene: Scene) -> Vitals {
        let (answers, channels) = tokio::join!(scene.ask(), looks::channels(shared, &scene.wanted));
        let (silent, statuses) = answers;
        let processes = self.used().look(&scene.pids);
        let sum = Sum::of(&statuses);
        let edges: Vec<Signals> = scene.edges.iter().map(|name| sum.edge(name)).collect();
        Vitals {
            api_version: API_VERSION.into(),
            kind: "Vitals".into(),
            at: Timestamp::now(),
            routes: scene.routes.iter().map(|name| sum.route(name)).collect(),
            services: scene.services.iter().map(|(name, pids)| sum.service(name, pids, &processes)).collect(),
            breakers: scene.breakers.seen(statuses.iter().map(|(_, status)| status)),
            edges,
            dead_letters: channels.iter().map(|channel| channel.dead_letters).sum(),
            channels,
            silent,
        }
    }
}

/// What there is, by name, and whom to ask.
struct Scene {
    routes: Vec<String>,
    edges: Vec<String>,
    /// With the processes of each one's instances.
    services: Vec<(String, Vec<u32>)>,
    pids: Vec<u32>,
    gateways: Vec<(String, SharedGateway)>,
    breakers: Standings,
    wanted: Wanted,
}

impl Scene {
    async fn of(shared: &Shared) -> Result<Self, ApiError> {
        shared
            .look(|control| {
                let state = &control.state;
                let services = state.desired.services.keys().map(|name| {
                    let processes = state.observed.of(name).filter_map(|instance| instance.process.as_ref());
                    (name.clone(), processes.map(|process| process.pid).collect::<Vec<_>>())
                });
                let services: Vec<_> = services.collect();
                let running = state
                    .observed
                    .of(GATEWAY)
                    .filter(|gateway| gateway.process.is_some() && !matches!(gateway.phase, Phase::BackingOff { .. }));
                let gateways = running.map(|one| (one.spec.id.clone(), control.executor.gateway(&one.spec)));
                Ok(Self {
                    routes: state.desired.routes.iter().map(|route| route.name.clone()).collect(),
                    edges: state.desired.edges.keys().cloned().collect(),
                    pids: services.iter().flat_map(|(_, pids)| pids.iter().copied()).collect(),
                    services,
                    gateways: gateways.collect(),
                    breakers: Standings::of(state),
                    wanted: wanted(state),
                })
            })
            .await
    }

    /// The ids of those that did not answer, and what the others said.
    async fn ask(&self) -> (Vec<String>, Vec<(String, GatewayStatus)>) {
        let asked = self.gateways.iter().map(async |(id, gateway)| {
            let answer = tokio::time::timeout(GATEWAY_ANSWERS, gateway.status()).await;
            answer.ok().and_then(Result::ok).map(|status| (id.clone(), status)).ok_or_else(|| id.clone())
        });
        let (mut silent, mut said) = (Vec::new(), Vec::new());
        for answer in futures_util::future::join_all(asked).await {
            match answer {
                Ok(status) => said.push(status),
                Err(id) => silent.push(id),
            }
        }
        (silent, said)
    }
}

/// One thing, all gateways together.
#[derive(Clone, Debug, Default)]
struct Part {
    requests_per_s: f64,
    errors_per_s: f64,
    refused_per_s: f64,
    in_flight: u64,
    queued: u64,
    latencies: Latencies,
}

impl Part {
    fn add(&mut self, recent: &Recent, in_flight: u64, queued: u64) {
        self.requests_per_s += recent.per_s(recent.requests);
        self.errors_per_s += recent.per_s(recent.errors);
        self.refused_per_s += recent.per_s(recent.refused);
        self.in_flight += in_flight;
        self.queued += queued;
        self.latencies.merge(&recent.latencies);
    }

    fn signals(&self, name: &str) -> Signals {
        Signals {
            name: name.to_owned(),
            requests_per_s: rounded(self.requests_per_s),
            errors_per_s: rounded(self.errors_per_s),
            refused_per_s: rounded(self.refused_per_s),
            latency_p50_ms: self.latencies.quantile_ms(0.5).map(rounded),
            latency_p99_ms: self.latencies.quantile_ms(0.99).map(rounded),
            in_flight: self.in_flight,
            queued: self.queued,
            cpu_percent: None,
            memory_bytes: None,
        }
    }
}

/// To a thousandth: more would claim what nobody measured.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// What all gateways said, by name.
#[derive(Default)]
struct Sum<'a> {
    routes: BTreeMap<&'a str, Part>,
    edges: BTreeMap<&'a str, Part>,
    services: BTreeMap<&'a str, Part>,
}

impl<'a> Sum<'a> {
    fn of(statuses: &'a [(String, GatewayStatus)]) -> Self {
        let mut sum = Self::default();
        for (_, status) in statuses {
            for route in &status.routes {
                sum.routes.entry(&route.route).or_default().add(&route.recent, route.in_flight, route.queued);
            }
            for edge in &status.edges {
                sum.edges.entry(&edge.edge).or_default().add(&edge.recent, edge.in_flight, edge.queued);
                let callee = edge.edge.split_once(':').map_or(edge.edge.as_str(), |(_, callee)| callee);
                sum.services.entry(callee).or_default().add(&edge.recent, edge.in_flight, edge.queued);
            }
        }
        sum
    }

    fn route(&self, name: &str) -> Signals {
        self.routes.get(name).cloned().unwrap_or_default().signals(name)
    }

    fn edge(&self, name: &str) -> Signals {
        self.edges.get(name).cloned().unwrap_or_default().signals(name)
    }

    fn service(&self, name: &str, pids: &[u32], processes: &BTreeMap<u32, Process>) -> Signals {
        let seen: Vec<&Process> = pids.iter().filter_map(|pid| processes.get(pid)).collect();
        let cpu: Vec<f64> = seen.iter().filter_map(|process| process.cpu_percent).collect();
        Signals {
            cpu_percent: (!cpu.is_empty()).then(|| rounded(cpu.iter().sum())),
            memory_bytes: (!seen.is_empty()).then(|| seen.iter().map(|process| process.memory_bytes).sum()),
            ..self.services.get(name).cloned().unwrap_or_default().signals(name)
        }
    }
}

/// Of the last ten seconds of one edge, in milliseconds, over all gateways: the half and the 99th hundredth.
pub fn latencies<'a>(seen: impl Iterator<Item = &'a Recent>) -> (Option<f64>, Option<f64>) {
    let mut all = Latencies::default();
    seen.for_each(|recent| all.merge(&recent.latencies));
    (all.quantile_ms(0.5).map(rounded), all.quantile_ms(0.99).map(rounded))
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Process {
    /// `None` where there is nothing to compare with yet.
    cpu_percent: Option<f64>,
    memory_bytes: u64,
}

impl Used {
    /// Whether a look now can tell of each of these how much processor time it has been using.
    fn knows(&self, pids: &[u32]) -> bool {
        pids.iter().all(|pid| self.0.get(pid).is_some_and(|(at, _)| at.elapsed() <= LONGEST_USE))
    }

    fn look(&mut self, pids: &[u32]) -> BTreeMap<u32, Process> {
        let seen = pids.iter().filter_map(|pid| Some((*pid, usage(*pid)?))).collect();
        self.seen(Instant::now(), seen)
    }

    fn seen(&mut self, now: Instant, seen: BTreeMap<u32, Usage>) -> BTreeMap<u32, Process> {
        let mut former = std::mem::take(&mut self.0);
        let process = |(pid, usage): (u32, Usage)| {
            let before = former.remove(&pid).filter(|(at, _)| now.saturating_duration_since(*at) <= LONGEST_USE);
            let over = before.map(|(at, used)| (now.saturating_duration_since(at), usage.cpu.saturating_sub(used)));
            // Two who look at nearly the same time: the former look is kept to compare with.
            let kept = match (before, over) {
                (Some(before), Some((time, _))) if time < SHORTEST_USE => before,
                _ => (now, usage.cpu),
            };
            self.0.insert(pid, kept);
            let share = |(time, used): (Duration, Duration)| {
                (time >= SHORTEST_USE).then(|| 100.0 * used.as_secs_f64() / time.as_secs_f64())
            };
            (pid, Process { cpu_percent: over.and_then(share), memory_bytes: usage.memory_bytes })
        };
        seen.into_iter().map(process).collect()
    }
}

#[cfg(test)]
mod tests {
    use meshctl_model::recent::bucket_of;
    use meshctl_model::snapshot::{BreakerState, EdgeStatus, RouteStatus};

    use super::*;

    fn recent(over_ms: u64, requests: u64, millis: u64) -> Recent {
        let mut latencies = Latencies::default();
        latencies.add(bucket_of(millis * 1_000_000), requests);
        Recent { over_ms, requests, errors: requests / 10, latencies, ..Recent::default() }
    }

    fn gateway(id: &str, breaker: BreakerState, recent: Recent) -> (String, GatewayStatus) {
        let edge = |edge: &str| EdgeStatus {
            edge: edge.into(),
            breaker,
            since: Timestamp::UNIX_EPOCH,
            reason: None,
            would_open: None,
            in_flight: 2,
            queued: 1,
            requests: 0,
            failures: 0,
            retries: 0,
            fallbacks: 0,
            recent: recent.clone(),
        };
        let route = RouteStatus { route: "GET /".into(), in_flight: 2, queued: 0, recent: recent.clone() };
        let status = GatewayStatus {
            pid: 1,
            version: String::new(),
            revision: 1,
            generation: 1,
            refused: Vec::new(),
            connections: 0,
            in_flight: 0,
            draining: false,
            edges: vec![edge("gateway:orders"), edge("billing:orders")],
            routes: vec![route],
            ejected: Vec::new(),
        };
        (id.into(), status)
    }

    #[test]
    fn gateways_and_edges_are_added_up_and_percentiles_are_of_the_sum() {
        let statuses = [
            gateway("gateway-1", BreakerState::Closed, recent(10_000, 900, 2)),
            gateway("gateway-2", BreakerState::Open, recent(5_000, 100, 400)),
        ];
        let sum = Sum::of(&statuses);
        let route = sum.route("GET /");
        assert_eq!((route.requests_per_s, route.errors_per_s, route.in_flight), (110.0, 11.0, 4));
        let (median, last) = (route.latency_p50_ms.expect("some"), route.latency_p99_ms.expect("some"));
        assert!((1.5..2.6).contains(&median) && (330.0..500.0).contains(&last), "{median} {last}");
        let orders = sum.service("orders", &[], &BTreeMap::new());
        assert_eq!((orders.requests_per_s, orders.queued, orders.memory_bytes), (220.0, 4, None));
        let idle = sum.edge("orders:inventory");
        assert_eq!((idle.requests_per_s, idle.latency_p50_ms, idle.latency_p99_ms), (0.0, None, None));
    }

    #[test]
    fn a_share_of_processor_time_is_of_what_came_since() {
        let (mut used, begin) = (Used::default(), Instant::now());
        let at = |ms| Usage { cpu: Duration::from_millis(ms), memory_bytes: 7 };
        let mut look = |after_ms: u64, cpu_ms: u64| {
            used.seen(begin + Duration::from_millis(after_ms), [(1, at(cpu_ms))].into())[&1].cpu_percent
        };
        assert_eq!(look(0, 500), None, "with nothing to compare");
        assert_eq!(look(1_000, 1_000), Some(50.0));
        assert_eq!(look(1_100, 1_100), None, "too short to say");
        assert_eq!(look(2_000, 3_000), Some(200.0), "and compared with the look before that");
        assert_eq!(look(60_000, 3_000), None, "too long ago");
    }
}

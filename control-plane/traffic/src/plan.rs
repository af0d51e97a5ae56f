//! A snapshot made ready for carrying requests, and what outlives it: the state of edges, routes and endpoints is kept
//! under their names, so that a swap neither closes an open breaker nor forgets a count.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};

use http::HeaderName;
use http::HeaderValue;
use meshctl_model::policy::Policy;
use meshctl_model::snapshot::{EdgeRule, GatewayEvent, PathMatch, Serves, Snapshot};
use meshctl_model::topology::RateLimit;
use tokio::sync::Notify;

use crate::balance::Latency;
use crate::breaker::Breaker;
use crate::bulkhead::Bulkhead;
use crate::clock;
use crate::eject::{Ejector, SilentOnes};
use crate::events::Events;
use crate::fallback::Fallback;
use crate::metrics::Red;
use crate::rate_limit::{Limiter, Pace};
use crate::retry::Budget;
use crate::route::RouteTable;
use crate::spans::{Label, Names};

/// One generation, ready to use; shared by all threads and never changed.
pub(crate) struct Plan {
    pub(crate) snapshot: Snapshot,
    pub(crate) table: RouteTable,
    pub(crate) routes: Vec<Route>,
    pub(crate) edges: Vec<Edge>,
    pub(crate) edge_at: HashMap<String, usize>,
    pub(crate) services: Vec<Service>,
}

pub(crate) struct Route {
    pub(crate) state: Arc<RouteState>,
    pub(crate) policy: Policy,
    pub(crate) fallback: Option<Fallback>,
    /// Edges, each with the sum of the weights up to it.
    pub(crate) targets: Vec<(usize, f64)>,
    pub(crate) idempotency_key: Option<HeaderName>,
    pub(crate) pace: Option<Pace>,
}

pub(crate) struct Edge {
    pub(crate) state: Arc<EdgeState>,
    pub(crate) policy: Policy,
    pub(crate) fallback: Option<Fallback>,
    pub(crate) service: usize,
}

pub(crate) struct Service {
    pub(crate) name: String,
    pub(crate) expected: bool,
    pub(crate) endpoints: Vec<Arc<EndpointState>>,
}

pub(crate) struct EdgeState {
    pub(crate) name: String,
    /// Who asks, as the callee is told.
    pub(crate) caller: HeaderValue,
    pub(crate) label: Label,
    pub(crate) breaker: Breaker,
    pub(crate) bulkhead: Bulkhead,
    pub(crate) budget: Budget,
    /// One for each worker thread.
    pub(crate) metrics: Vec<Red>,
}

pub(crate) struct RouteState {
    pub(crate) name: String,
    pub(crate) label: Label,
    path: PathMatch,
    limit: Option<RateLimit>,
    pub(crate) limiter: Option<Limiter>,
    /// Shared by all states of one name: another limit begins anew, what has been counted does not.
    pub(crate) metrics: Arc<[Red]>,
    /// Passed on and not yet answered to the end; kept over states like the counts.
    pub(crate) in_flight: Arc<AtomicU32>,
    pub(crate) queued: Arc<AtomicU32>,
}

pub(crate) struct EndpointState {
    pub(crate) service: String,
    pub(crate) id: String,
    pub(crate) address: SocketAddr,
    pub(crate) label: Label,
    in_flight: AtomicU32,
    /// No longer in the live snapshot: whoever waits for it to be drained wants to hear of its last request.
    pub(crate) leaving: AtomicBool,
    pub(crate) latency: Latency,
    pub(crate) ejector: Ejector,
    freed: Arc<Notify>,
}

impl EndpointState {
    pub(crate) fn in_flight(&self) -> u32 {
        self.in_flight.load(SeqCst)
    }

    pub(crate) fn request_begins(&self) {
        self.in_flight.fetch_add(1, SeqCst);
    }

    pub(crate) fn request_ends(&self) {
        if self.in_flight.fetch_sub(1, SeqCst) == 1 && self.leaving.load(SeqCst) {
            self.freed.notify_waiters();
        }
    }
}

impl Plan {
    /// Has the breakers do what operators want of them.
    pub(crate) fn rule_breakers(&self) {
        let (now, wall) = (clock::now(), jiff::Timestamp::now());
        for edge in &self.edges {
            if let Some(rule) = self.snapshot.edges.get(&edge.state.name) {
                edge.state.breaker.rule(rule.force.as_ref(), rule.breaker_epoch, now, wall);
            }
        }
    }

    /// Ends what operators forced for a time that is over. Returns when the next is over.
    pub(crate) fn expire_breakers(&self) -> Option<jiff::Timestamp> {
        let (now, wall) = (clock::now(), jiff::Timestamp::now());
        self.edges.iter().filter_map(|edge| edge.state.breaker.expire(now, wall)).min()
    }

    pub(crate) fn edge(&self, name: &str) -> Option<&Edge> {
        self.edge_at.get(name).map(|at| &self.edges[*at])
    }
}

/// What outlives snapshots. Owned by the control thread.
pub(crate) struct Memory {
    workers: usize,
    events: Events,
    /// Told when an endpoint that is leaving has no request left.
    pub(crate) freed: Arc<Notify>,
    silent_ones: Arc<SilentOnes>,
    /// What spans call edges, routes and endpoints.
    pub(crate) names: Names,
    edges: HashMap<String, Arc<EdgeState>>,
    routes: HashMap<String, Arc<RouteState>>,
    endpoints: HashMap<(String, String, SocketAddr), Arc<EndpointState>>,
    /// Endpoints that are no longer in the snapshot, for as long as a request is under way to them.
    leaving: Vec<Arc<EndpointState>>,
}

impl Memory {
    pub(crate) fn new(workers: usize, events: Events) -> Self {
        Self {
            workers,
            events,
            freed: Arc::default(),
            silent_ones: Arc::default(),
            names: Names::default(),
            edges: HashMap::new(),
            routes: HashMap::new(),
            endpoints: HashMap::new(),
            leaving: Vec::new(),
        }
    }

    /// # Errors
    /// What in the snapshot does not hold together.
    pub(crate) fn plan(&mut self, snapshot: Snapshot) -> Result<Plan, String> {
        let mut services = Vec::with_capacity(snapshot.services.len());
        let mut service_at = HashMap::new();
        for (name, endpoints) in &snapshot.services {
            service_at.insert(name.as_str(), services.len());
            let states = endpoints.endpoints.iter().map(|e| self.endpoint(name, &e.id, e.address)).collect();
            services.push(Service { name: name.clone(), expected: endpoints.expected, endpoints: states });
        }
        let mut edges = Vec::with_capacity(snapshot.edges.len());
        let mut edge_at = HashMap::new();
        for (name, rule) in &snapshot.edges {
            let service = *service_at
                .get(rule.callee.as_str())
                .ok_or_else(|| format!("edge `{name}` leads to service `{}`, which is not listed", rule.callee))?;
            edge_at.insert(name.clone(), edges.len());
            let fallback = fallback(&rule.policy).map_err(|why| format!("edge `{name}`: {why}"))?;
            edges.push(Edge { state: self.edge(name, rule), policy: rule.policy.clone(), fallback, service });
        }
        let mut routes = Vec::with_capacity(snapshot.routes.len());
        for rule in &snapshot.routes {
            let mut sum = 0.0;
            let targets = rule.targets.iter().map(|(edge, weight)| {
                sum += weight;
                let at = edge_at.get(edge);
                at.map(|at| (*at, sum))
                    .ok_or_else(|| format!("route `{}` leads to edge `{edge}`, which is not listed", rule.name))
            });
            let targets = targets.collect::<Result<Vec<_>, _>>()?;
            if targets.is_empty() {
                return Err(format!("route `{}` leads nowhere", rule.name));
            }
            let key = rule.idempotency_key.as_ref().map(|name| name.parse()).transpose();
            routes.push(Route {
                state: self.route(&rule.name, &rule.path, rule.rate_limit.as_ref()),
                policy: rule.policy.clone(),
                fallback: fallback(&rule.policy).map_err(|why| format!("route `{}`: {why}", rule.name))?,
                targets,
                idempotency_key: key.map_err(|_| format!("route `{}`: its idempotency key is no header", rule.name))?,
                pace: rule.rate_limit.as_ref().map(Pace::of),
            });
        }
        for listener in &snapshot.listeners {
            if let Serves::Edge(edge) = &listener.serves
                && !edge_at.contains_key(edge)
            {
                return Err(format!("listener {} serves edge `{edge}`, which is not listed", listener.address));
            }
        }
        let table = RouteTable::new(&snapshot.routes)?;
        Ok(Plan { snapshot, table, routes, edges, edge_at, services })
    }

    /// Lets go of everything that the plan, which is live now, no longer names.
    pub(crate) fn settle(&mut self, plan: &Plan) {
        for edge in &plan.edges {
            edge.state.bulkhead.policy_changed();
        }
        let names = &mut self.names;
        self.edges.retain(|name, edge| {
            let stays = plan.edge_at.contains_key(name);
            if !stays {
                names.gone(edge.label);
            }
            stays
        });
        let routes: std::collections::HashSet<&str> = plan.routes.iter().map(|r| r.state.name.as_str()).collect();
        self.routes.retain(|name, route| {
            let stays = routes.contains(name.as_str());
            if !stays {
                names.gone(route.label);
            }
            stays
        });
        let present: std::collections::HashSet<*const EndpointState> =
            plan.services.iter().flat_map(|service| &service.endpoints).map(Arc::as_ptr).collect();
        let leaving = &mut self.leaving;
        self.endpoints.retain(|_, endpoint| {
            let stays = present.contains(&Arc::as_ptr(endpoint));
            if !stays {
                names.gone(endpoint.label);
                endpoint.leaving.store(true, SeqCst);
                leaving.push(Arc::clone(endpoint));
            }
            stays
        });
        self.leaving.retain(|endpoint| endpoint.in_flight() > 0);
    }

    /// Requests under way to these endpoints, in the snapshot or on their way out of it.
    pub(crate) fn in_flight_to(&self, ids: &[String]) -> u64 {
        let all = self.endpoints.values().chain(&self.leaving);
        all.filter(|endpoint| ids.contains(&endpoint.id)).map(|endpoint| u64::from(endpoint.in_flight())).sum()
    }

    fn edge(&mut self, name: &str, rule: &EdgeRule) -> Arc<EdgeState> {
        let (events, workers, names) = (&self.events, self.workers, &mut self.names);
        let state = self.edges.entry(name.to_owned()).or_insert_with(|| {
            let (events, edge) = (events.clone(), name.to_owned());
            let breaker = Breaker::new(move |change| {
                events.emit(GatewayEvent::Breaker {
                    edge: edge.clone(),
                    from: change.from,
                    to: change.to,
                    reason: change.reason,
                    at: jiff::Timestamp::now(),
                });
            });
            Arc::new(EdgeState {
                name: name.to_owned(),
                caller: HeaderValue::from_str(&rule.caller).unwrap_or_else(|_| HeaderValue::from_static("unknown")),
                label: names.give(name, &rule.callee),
                breaker,
                bulkhead: Bulkhead::default(),
                budget: Budget::default(),
                metrics: (0..workers).map(|_| Red::default()).collect(),
            })
        });
        Arc::clone(state)
    }

    fn route(&mut self, name: &str, path: &PathMatch, limit: Option<&RateLimit>) -> Arc<RouteState> {
        let before = self.routes.get(name);
        if let Some(state) = before
            && state.limit.as_ref() == limit
            && state.path == *path
        {
            return Arc::clone(state);
        }
        if let Some(before) = before {
            self.names.gone(before.label);
        }
        let metrics = before.map(|state| Arc::clone(&state.metrics));
        let kept =
            |of: fn(&RouteState) -> &Arc<AtomicU32>| before.map(|state| Arc::clone(of(state))).unwrap_or_default();
        let state = Arc::new(RouteState {
            name: name.to_owned(),
            label: self.names.give(name, &pattern(path)),
            path: path.clone(),
            limit: limit.cloned(),
            limiter: limit.map(Limiter::new),
            metrics: metrics.unwrap_or_else(|| (0..self.workers).map(|_| Red::default()).collect()),
            in_flight: kept(|state| &state.in_flight),
            queued: kept(|state| &state.queued),
        });
        self.routes.insert(name.to_owned(), Arc::clone(&state));
        state
    }

    fn endpoint(&mut self, service: &str, id: &str, address: SocketAddr) -> Arc<EndpointState> {
        let key = (service.to_owned(), id.to_owned(), address);
        let (freed, silent_ones, names) = (&self.freed, &self.silent_ones, &mut self.names);
        let state = self.endpoints.entry(key).or_insert_with(|| {
            Arc::new(EndpointState {
                service: service.to_owned(),
                id: id.to_owned(),
                address,
                label: names.give(id, id),
                in_flight: AtomicU32::new(0),
                leaving: AtomicBool::new(false),
                latency: Latency::default(),
                ejector: Ejector::new(silent_ones),
                freed: Arc::clone(freed),
            })
        });
        Arc::clone(state)
    }
}

fn fallback(policy: &Policy) -> Result<Option<Fallback>, String> {
    policy.fallback.as_ref().map(Fallback::new).transpose()
}

/// As the topology writes it: `/orders/*`.
fn pattern(path: &PathMatch) -> String {
    let below = path.below.then_some("*");
    let segments: Vec<&str> = path.segments.iter().map(String::as_str).chain(below).collect();
    format!("/{}", segments.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::{Outcome, Totals};

    #[test]
    fn another_rate_limit_forgets_no_count() {
        let mut memory = Memory::new(1, Events::new());
        let limit = |rate| RateLimit { rate: meshctl_model::units::Rate(rate), burst: None, per: None };
        let path = PathMatch { segments: vec!["all".into()], below: true };
        let before = memory.route("all", &path, Some(&limit(1.0)));
        before.metrics[0].request(&Outcome::default());
        let after = memory.route("all", &path, Some(&limit(2.0)));
        assert!(!Arc::ptr_eq(&before, &after));
        // A request that began under the old limit and ends now counts, too.
        before.metrics[0].request(&Outcome::default());
        assert_eq!(Totals::of(&after.metrics).requests(), 2);
        assert!(Arc::ptr_eq(&after, &memory.route("all", &path, Some(&limit(2.0)))));
        assert_eq!(memory.names.shown(after.label), Some("/all/*"));
    }
}

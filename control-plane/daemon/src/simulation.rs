//! The control loop's decisions under any order of events: a seeded world in which steps finish late, instances crash and
//! the daemon dies, thousands of times over. A seed reproduces its run.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use meshctl_drivers::runtime::Running;
use meshctl_model::delivery::BROKER;
use meshctl_model::instance::{Exit, ProcessId};
use meshctl_model::plan::{GatewayLink, Overlay, Phase, Ports, Step, render};
use meshctl_model::snapshot::{GatewayStatus, Snapshot};
use meshctl_model::topology::{Channel, DeadLetter, DeliveryRetry, Service, Subscription, Topology};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::gateways;
use crate::report::Report;
use crate::state::State;
use crate::store::{Remembered, RevisionBody, RevisionRow, Store};

/// What really runs, beside what the daemon believes.
struct World {
    random: StdRng,
    now: Timestamp,
    state: State,
    /// Processes by instance id, with their number.
    running: BTreeMap<String, u32>,
    /// What each gateway slot carries.
    live: BTreeMap<u32, Snapshot>,
    under_way: Vec<(Step, Snapshot)>,
    started: u32,
    /// The channels that the broker has, which outlive its processes.
    channels: BTreeSet<String>,
    /// It gives up no channel.
    refusing: bool,
    /// Versions of services that never become ready.
    broken: BTreeSet<String>,
    faults: bool,
}

fn topology(replicas: [u32; 3], version: u32, third: bool) -> Topology {
    let mut topology = Topology { name: Some("sim".into()), ..Topology::default() };
    for (index, name) in ["a", "b", "c"].into_iter().enumerate().take(if third { 3 } else { 2 }) {
        let service = Service {
            command: Some(vec![format!("{name}-v{version}")]),
            replicas: Some(replicas[index]),
            depends_on: if name == "b" { vec!["a".into()] } else { Vec::new() },
            working_dir: Some("/".into()),
            ..Service::default()
        };
        topology.services.insert(name.into(), service);
    }
    // Brings a broker, which cannot run twice, and a courier, which is replaced when a channel changes. Every other version has
    // a channel of a name of its own.
    let subscription = Subscription {
        deliver: "/".into(),
        service: None,
        concurrency: None,
        timeout: None,
        retry: DeliveryRetry::default(),
        dead_letter: DeadLetter::default(),
    };
    let subscriptions = [("a".to_owned(), subscription)].into();
    let channel = Channel { partitions: Some(version + 1), subscriptions, ..Channel::default() };
    if version % 2 == 1 {
        topology.channels.insert(format!("events-{version}"), channel.clone());
    }
    topology.channels.insert("events".into(), channel);
    topology
}

impl World {
    fn new(seed: u64) -> Self {
        let mut world = Self {
            random: StdRng::seed_from_u64(seed),
            now: "2026-01-01T00:00:00Z".parse().expect("a time"),
            state: State::restore(Remembered::default(), 0),
            running: BTreeMap::new(),
            live: BTreeMap::new(),
            under_way: Vec::new(),
            started: 0,
            channels: BTreeSet::new(),
            refusing: false,
            broken: BTreeSet::new(),
            faults: true,
        };
        world.want(topology([1, 1, 1], 0, true));
        world
    }

    fn want(&mut self, topology: Topology) {
        let mut ports: Ports = self.state.ports.clone();
        self.state.revision += 1;
        // Every revision wants another broker.
        let restarts = [(BROKER.to_owned(), self.state.revision)].into();
        let overlay = Overlay { restarts, ..Overlay::default() };
        self.state.desired = render(&topology, &overlay, &mut ports).expect("enough ports");
        self.state.ports = ports;
        self.state.revision_state = "applying";
        self.state.awaited = Some(self.state.revision);
        self.state.asked += 1;
        for record in self.state.observed.services.values_mut() {
            record.failing = None;
        }
    }

    /// One round of the control loop.
    fn round(&mut self) {
        let state = &mut self.state;
        state.gateways = gateways::templates(state.desired.gateway.as_ref(), std::path::Path::new("/s"), "build");
        let steps = state.next_steps(self.now, BTreeSet::new);
        let touched = std::mem::take(&mut state.untold).services;
        state.settle(&touched);
        let snapshot = state.snapshot.as_ref().clone();
        self.under_way.extend(steps.into_iter().map(|step| (step, snapshot.clone())));
        self.check();
    }

    fn check(&self) {
        for (name, service) in &self.state.desired.services {
            // What is just being started can only be stopped once it is there.
            let there = |i: &&meshctl_model::plan::Instance| !i.being_started();
            let staying = self.state.observed.staying(name).filter(there).count() as u32;
            let good = self.state.observed.services.get(name).and_then(|record| record.good.as_ref());
            let most = service.replicas.max(good.map_or(0, |good| good.replicas));
            // Those that were there before fewer were wanted, and one more while one replaces another.
            assert!(staying <= most.max(4) + 1, "{staying} instances of {name} for {most}");
        }
        let brokers: Vec<&String> = self.running.keys().filter(|id| id.starts_with("broker-")).collect();
        assert!(brokers.len() <= 1, "several brokers at once: {brokers:?}");
        let ports: Vec<u16> = self.state.observed.instances.values().filter_map(|i| i.spec.port).collect();
        assert_eq!(ports.len(), ports.iter().collect::<BTreeSet<_>>().len(), "two instances on one port");
    }

    fn tick(&mut self) {
        match self.random.random_range(0..100) {
            0..55 if !self.under_way.is_empty() => {
                let index = self.random.random_range(0..self.under_way.len());
                let (step, snapshot) = self.under_way.swap_remove(index);
                self.finish(step, &snapshot);
            }
            0..80 => self.check_one(),
            80..85 => self.declare(),
            85..90 if self.faults => self.crash_one(),
            90..92 if self.faults => self.daemon_dies(),
            _ => {
                let ms = self.random.random_range(1..400);
                self.now = self.now.checked_add(Duration::from_millis(ms)).expect("in range");
            }
        }
        self.round();
    }

    fn report(&mut self, report: Report) {
        self.state.fold(report, self.now);
    }

    fn finish(&mut self, step: Step, snapshot: &Snapshot) {
        match step {
            Step::Start { spec, .. } => self.start(spec.id.clone()),
            Step::Restart { id } => self.start(id),
            Step::Drain { .. } => {}
            Step::AwaitDrained { id, .. } => {
                // A gateway that is down calls nobody; when it comes back, a refused connection is tried elsewhere.
                let links = &self.state.observed.gateways;
                let up = |slot: u32| links.iter().any(|(id, link)| link.slot == slot && self.running.contains_key(id));
                let looping = self
                    .state
                    .observed
                    .of(meshctl_model::GATEWAY)
                    .any(|gateway| gateway.failures >= 3 && gateway.phase != Phase::Ready);
                for (slot, live) in self.live.iter().filter(|(slot, _)| up(**slot) && !looping) {
                    let still = live.services.values().flat_map(|s| &s.endpoints).any(|endpoint| endpoint.id == id);
                    assert!(!still, "{id} is drained while gateway {slot} still calls it");
                }
                self.report(Report::Drained { id, trouble: None });
            }
            Step::Stop { id, .. } => {
                self.running.remove(&id);
                let outcome = Ok(self.exit(Some(0)));
                self.report(Report::Stopped { id, outcome, log: Vec::new() });
            }
            Step::Push { gateway } => {
                let Some(link) = self.state.observed.gateways.get(&gateway).cloned() else { return };
                if self.running.contains_key(&gateway) {
                    self.live.insert(link.slot, snapshot.clone());
                    let status = status(snapshot);
                    self.report(Report::Pushed { gateway, outcome: Ok(status) });
                } else {
                    let why =
                        meshctl_drivers::gateway::GatewayError::Unreachable { id: gateway.clone(), why: "gone".into() };
                    self.report(Report::Pushed { gateway, outcome: Err(why) });
                }
            }
        }
    }

    fn start(&mut self, id: String) {
        // Starting what runs returns what runs: the contract of every runtime.
        let number = *self.running.entry(id.clone()).or_insert_with(|| {
            self.started += 1;
            self.started
        });
        let process = ProcessId { pid: number, start_time: 0, boot_id: String::new() };
        self.report(Report::Started { id, outcome: Ok(Running { process, started_at: self.now }) });
    }

    fn exit(&self, code: Option<i32>) -> Exit {
        Exit { at: self.now, code, signal: None, asked: false, reason: None }
    }

    /// Some running instance is looked at.
    fn check_one(&mut self) {
        let ids: Vec<String> = self.running.keys().cloned().collect();
        if ids.is_empty() {
            return;
        }
        let id = ids[self.random.random_range(0..ids.len())].clone();
        let broken = self.state.observed.instances.get(&id).is_some_and(|i| self.broken.contains(&i.hash));
        let flaky = self.faults && self.random.random_range(0..20) == 0;
        let outcome = if broken || flaky { Err("no".to_owned()) } else { Ok(()) };
        self.report(Report::Checked { id, outcome });
    }

    /// The broker is told of channels, as it would be, unless it was told already.
    fn declare(&mut self) {
        let Some(wanted) = self.state.declaration() else { return };
        if self.state.declared.as_ref().is_some_and(|(occasion, _)| *occasion == wanted.occasion) {
            return;
        }
        let names: BTreeSet<String> =
            crate::messaging::declare::specs(&wanted.channels).into_iter().map(|spec| spec.name).collect();
        if wanted.occasion.last && self.refusing {
            let outcome = Err("it holds 12 messages that are not settled".to_owned());
            return self.report(Report::Declared { occasion: wanted.occasion, outcome });
        }
        if wanted.occasion.last {
            self.channels.retain(|name| names.contains(name));
        }
        self.channels.extend(names);
        self.report(Report::Declared { occasion: wanted.occasion, outcome: Ok(Default::default()) });
    }

    fn crash_one(&mut self) {
        let ids: Vec<String> = self.running.keys().cloned().collect();
        if let Some(id) = ids.get(self.random.random_range(0..ids.len().max(1))).cloned() {
            self.running.remove(&id);
            let exit = self.exit(Some(1));
            self.report(Report::Exited { id, exit, log: Vec::new() });
        }
    }

    /// The daemon dies at any moment: each step under way may have happened or not. The next one remembers what was written
    /// and finds what runs.
    fn daemon_dies(&mut self) {
        for (step, snapshot) in std::mem::take(&mut self.under_way) {
            if self.random.random_range(0..2) == 0 {
                match step {
                    Step::Start { spec, .. } => drop(self.running.entry(spec.id.clone()).or_insert(u32::MAX)),
                    Step::Restart { id } => drop(self.running.entry(id).or_insert(u32::MAX)),
                    Step::Stop { id, .. } => drop(self.running.remove(&id)),
                    Step::Push { gateway } => {
                        if let Some(link) = self.state.observed.gateways.get(&gateway) {
                            self.live.insert(link.slot, snapshot);
                        }
                    }
                    Step::Drain { .. } | Step::AwaitDrained { .. } => {}
                }
            }
        }
        let old = std::mem::replace(&mut self.state, State::restore(Remembered::default(), 0));
        self.state = State::restore(written(old), 0);
        let state = &mut self.state;
        for id in state.observed.instances.keys().cloned().collect::<Vec<_>>() {
            let spec = &state.observed.instances[&id].spec;
            if spec.service == meshctl_model::GATEWAY {
                let slot = gateways::slot_of(spec);
                state.observed.gateways.insert(id.clone(), GatewayLink { slot, ..GatewayLink::default() });
            }
            match self.running.get(&id) {
                Some(pid) => {
                    let process = ProcessId { pid: *pid, start_time: 0, boot_id: String::new() };
                    crate::adopt::running(state, &id, Running { process, started_at: self.now }, self.now);
                }
                None => {
                    let exit = Exit { at: self.now, code: None, signal: None, asked: false, reason: None };
                    crate::adopt::ended_meanwhile(state, &id, &exit, self.now);
                }
            }
        }
    }

    /// From here on nothing goes wrong that is not broken for good; it must come to rest.
    fn come_to_rest(&mut self) {
        self.faults = false;
        for _ in 0..20_000 {
            self.tick();
            if self.state.ready && self.under_way.is_empty() {
                return;
            }
        }
        let under_way: Vec<_> = self.under_way.iter().map(|(step, _)| step).collect();
        panic!("it never comes to rest: {:#?}, under way: {under_way:#?}", self.state.observed);
    }
}

/// What a daemon that dies leaves behind in its store.
fn written(state: State) -> Remembered {
    let row = RevisionRow {
        revision: state.revision,
        created_at: Timestamp::MIN,
        by: String::new(),
        reason: None,
        cause: "apply".into(),
        state: state.revision_state.into(),
    };
    let body = RevisionBody {
        topology: state.topology,
        overlay: state.overlay,
        environment: state.environment,
        desired: state.desired,
        discard_messages: state.discard_messages,
    };
    Remembered {
        revision: Some((row, body)),
        instances: state.observed.instances.into_values().collect(),
        services: state.observed.services.into_iter().collect(),
        ports: state.ports.assigned,
        leases: Vec::new(),
        breakers: state.standings.into_iter().collect(),
        generation: state.observed.generation,
        last_event: state.last_event,
    }
}

fn status(snapshot: &Snapshot) -> GatewayStatus {
    GatewayStatus {
        pid: 1,
        version: String::new(),
        revision: snapshot.revision,
        generation: snapshot.generation,
        refused: Vec::new(),
        connections: 0,
        in_flight: 0,
        draining: false,
        edges: Vec::new(),
        routes: Vec::new(),
        ejected: Vec::new(),
    }
}

#[test]
fn any_order_of_events_ends_where_it_was_to_end() {
    for seed in 0..300 {
        let mut world = World::new(seed);
        world.round();
        let mut last = Topology::default();
        for version in 0..4 {
            let replicas = [0; 3].map(|_| world.random.random_range(0..4));
            let third = world.random.random_range(0..2) == 0;
            last = topology(replicas, version, third);
            world.want(last.clone());
            for _ in 0..world.random.random_range(0..150) {
                world.tick();
            }
        }
        // Crashes may have looked like a version that does not come up: it is asked for once more, in peace.
        world.want(last);
        world.come_to_rest();
        let state = &world.state;
        assert!(state.ready, "seed {seed}: {:#?} {:#?}", state.observed.services, state.observed.instances);
        let wanted: u32 = state.desired.services.values().map(|service| service.replicas).sum();
        let gateways = state.gateways.len() as u32;
        assert_eq!(world.running.len() as u32, wanted + gateways, "seed {seed}: orphans or missing ones");
        for (name, service) in &state.desired.services {
            assert!(state.observed.of(name).all(|i| i.hash == service.hash && i.phase == Phase::Ready), "seed {seed}");
        }
        for live in world.live.values() {
            assert_eq!(live, state.snapshot.as_ref(), "seed {seed}: a gateway carries something else");
        }
        let wanted = crate::messaging::declare::specs(&state.desired.channels);
        let wanted: BTreeSet<String> = wanted.into_iter().map(|spec| spec.name).collect();
        assert_eq!(world.channels, wanted, "seed {seed}: it is ready, and the broker has other channels");
    }
}

#[test]
fn channels_that_the_broker_refuses_make_a_change_fail_until_it_takes_them() {
    for seed in 0..20 {
        let mut world = World::new(seed);
        world.round();
        world.come_to_rest();
        world.refusing = true;
        world.want(topology([1, 1, 1], 1, true));
        let mut ticks = 0;
        while world.state.awaited.is_some() {
            world.tick();
            ticks += 1;
            assert!(ticks < 20_000, "seed {seed}: it has no outcome");
        }
        assert_eq!(world.state.revision_state, "failed", "seed {seed}");
        assert!(!world.state.ready, "seed {seed}");
        // It was drained, and is asked again.
        world.refusing = false;
        world.state.declared = None;
        world.come_to_rest();
        assert_eq!(world.state.revision_state, "applied", "seed {seed}");
    }
}

#[test]
fn a_version_that_never_becomes_ready_goes_back_by_itself_and_none_is_missed_meanwhile() {
    for seed in 0..100 {
        let mut world = World::new(seed);
        world.want(topology([3, 2, 1], 1, true));
        world.round();
        world.come_to_rest();
        assert!(world.state.ready, "seed {seed}");
        let before = world.state.desired.services["a"].hash.clone();
        world.want(topology([3, 2, 1], 2, true));
        world.broken.insert(world.state.desired.services["a"].hash.clone());
        for _ in 0..20_000 {
            world.tick();
            let serving = world.state.observed.of("a").filter(|i| i.phase == Phase::Ready).count();
            assert!(serving >= 3, "seed {seed}: {serving} of 3 serve");
            if world.state.awaited.is_none() {
                break;
            }
        }
        assert_eq!(world.state.revision_state, "failed", "seed {seed}");
        assert!(world.state.observed.of("a").all(|i| i.hash == before), "seed {seed}");
    }
}

#[test]
fn without_faults_a_rolling_change_never_has_fewer_than_wanted() {
    for seed in 0..100 {
        let mut world = World::new(seed);
        world.want(topology([2, 3, 1], 1, true));
        world.round();
        world.come_to_rest();
        world.want(topology([2, 3, 1], 2, true));
        for _ in 0..20_000 {
            world.tick();
            for (name, wanted) in [("a", 2), ("b", 3), ("c", 1)] {
                let live = world.live.values().next().expect("a gateway");
                let routed = live.services[name].endpoints.iter().filter(|e| world.running.contains_key(&e.id)).count();
                assert!(routed >= wanted, "seed {seed}: {routed} of {wanted} {name} serve");
                assert!(
                    live.services[name].endpoints.len() == routed,
                    "seed {seed}: a stopped instance is still called"
                );
            }
            if world.state.awaited.is_none() {
                break;
            }
        }
        assert!(world.state.ready, "seed {seed}");
    }
}

#[test]
fn what_is_taken_down_stays_down_whenever_the_daemon_dies() {
    for seed in 0..200 {
        let mut world = World::new(seed);
        world.want(topology([2, 1, 1], 1, true));
        for _ in 0..world.random.random_range(0..120) {
            world.tick();
        }
        let folder = tempfile::tempdir().expect("a folder");
        let mut store = Store::open(&folder.path().join("state.db")).expect("a store");
        world.state.down(&crate::operate::Asked::default(), &mut store);
        let mut ticks = 0;
        while !world.running.is_empty() || !world.state.observed.instances.is_empty() {
            world.tick();
            assert!(!world.state.ready, "seed {seed}: nothing is wanted, and it says that it is ready");
            ticks += 1;
            assert!(ticks < 20_000, "seed {seed}: {:?} still run", world.running);
        }
        world.daemon_dies();
        world.round();
        assert!(world.running.is_empty() && world.under_way.is_empty(), "seed {seed}: something came back");
        assert_eq!(world.state.revision_state, "down", "seed {seed}");
    }
}

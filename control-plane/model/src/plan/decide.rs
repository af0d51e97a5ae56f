//! The next steps, from what is wanted and what is seen. Level-triggered: it looks at the whole every time and never at
//! what it said before, so that nothing has to be undone after a crash.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;

use super::desired::{Desired, DesiredService};
use super::observed::{AfterStop, Instance, Observed, Phase, Unready};
use super::ports::Ports;
use crate::instance::InstanceSpec;
use crate::units::Span;

/// One thing to do. Executing it makes no choice.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// A new instance.
    Start {
        spec: Box<InstanceSpec>,
        hash: String,
    },
    /// The same instance again, after its pause.
    Restart {
        id: String,
    },
    /// Out of routing.
    Drain {
        id: String,
    },
    /// Wait until no request is under way to it, for so long at most.
    AwaitDrained {
        id: String,
        within: Span,
    },
    Stop {
        id: String,
        then: AfterStop,
        why: Option<String>,
    },
    /// Hand the present snapshot to a gateway.
    Push {
        gateway: String,
    },
}

/// Ends in a row after which a service counts as failing: once may be chance, three times is a loop.
pub const CRASH_LOOP: u32 = 3;

/// An instance whose checks fail for this long is started again.
const UNHEALTHY_FOR: Duration = Duration::from_secs(30);
/// One that has no other beside it, as the broker, holds up everybody meanwhile.
const UNHEALTHY_ALONE_FOR: Duration = Duration::from_secs(8);

/// How long a gateway may take to end once another has taken its place.
const GATEWAY_DRAIN: Duration = Duration::from_secs(40);

/// The pause before an instance is started again after so many `failures` in a row: 0.1 s, 0.25 s, doubling, 30 s at most.
pub fn backoff(failures: u32) -> Duration {
    match failures {
        0 | 1 => Duration::from_millis(100),
        n => Duration::from_millis(250 << (n - 2).min(7)).min(Duration::from_secs(30)),
    }
}

/// Everything that should be done now. `gateways` are the templates of the gateway processes that are wanted, by slot.
pub fn decide(
    desired: &Desired,
    gateways: &BTreeMap<u32, DesiredService>,
    observed: &Observed,
    ports: &mut Ports,
    now: Timestamp,
) -> Vec<Step> {
    let mut steps = wishes(desired, gateways, observed, ports, now);
    // What is just being started is stopped once it is there: stopped any earlier, it would come to life afterwards.
    steps.retain(|step| match step {
        Step::Stop { id, .. } => observed.instances.get(id).is_none_or(|instance| !instance.being_started()),
        _ => true,
    });
    steps
}

fn wishes(
    desired: &Desired,
    gateways: &BTreeMap<u32, DesiredService>,
    observed: &Observed,
    ports: &mut Ports,
    now: Timestamp,
) -> Vec<Step> {
    let mut steps = Vec::new();
    gateway_steps(gateways, observed, now, &mut steps);
    let nothing_wanted = desired.gateway.is_none();
    if nothing_wanted {
        // The edge closes first, so that nobody is refused by a service that is already gone.
        if observed.instances.values().any(Instance::is_gateway) {
            return steps;
        }
        let rest = observed.instances.values().filter(|instance| !matches!(instance.phase, Phase::Stopping { .. }));
        steps.extend(rest.map(|instance| stop(instance, AfterStop::Forget, None)));
        return steps;
    }

    let names: BTreeSet<&str> = observed
        .instances
        .values()
        .filter(|instance| !instance.is_gateway())
        .map(|instance| instance.spec.service.as_str())
        .chain(desired.services.keys().map(String::as_str))
        .collect();
    for name in names {
        let instances: Vec<&Instance> = observed.of(name).collect();
        match desired.services.get(name) {
            Some(service) => service_steps(name, service, desired, observed, &instances, ports, now, &mut steps),
            None => {
                instances.iter().filter(|i| !i.retiring()).for_each(|i| steps.push(retire(i)));
            }
        }
        for instance in &instances {
            let drain = desired.services.get(name).map_or(Span::from_secs(10), |service| service.drain);
            steps.extend(leaving(instance, observed, drain));
        }
    }
    steps
}

/// What a service is to be now: the wanted form, or the last good one while the wanted one fails.
pub(super) fn target<'a>(service: &'a DesiredService, observed: &'a Observed, name: &str) -> &'a DesiredService {
    let record = observed.services.get(name);
    let failing = record.and_then(|record| record.failing.as_ref());
    match (failing, record.and_then(|record| record.good.as_ref())) {
        (Some(failing), Some(good)) if failing.hash == service.hash && good.hash != service.hash => good,
        _ => service,
    }
}

impl Desired {
    /// Why `name` is not what is wanted; `None` when it is: all instances ready, of the wanted form, and no other left.
    pub fn unready(&self, name: &str, observed: &Observed) -> Option<Unready> {
        let service = self.services.get(name)?;
        let all: Vec<_> = observed.of(name).collect();
        let ready = all.iter().filter(|i| i.hash == service.hash && i.phase == Phase::Ready).count();
        if ready == service.replicas as usize && all.len() == ready {
            return None;
        }
        if let Some(blocker) = self.blocker(name, observed) {
            return Some(Unready::BlockedBy(blocker));
        }
        let failing = observed.services.get(name).is_some_and(|record| record.failing.is_some());
        Some(if failing { Unready::Failing } else { Unready::Moving })
    }

    /// The first service that must be ready before `name` may start, and is not.
    pub fn blocker(&self, name: &str, observed: &Observed) -> Option<String> {
        let service = self.services.get(name)?;
        service
            .depends_on
            .iter()
            .find(|dependency| {
                let Some(needed) = self.services.get(*dependency) else { return false };
                let ready =
                    observed.of(dependency).filter(|i| i.phase == Phase::Ready && i.hash == needed.hash).count();
                ready < needed.replicas as usize
            })
            .cloned()
    }
}

#[allow(clippy::too_many_arguments, reason = "one plain function, called once")]
fn service_steps(
    name: &str,
    service: &DesiredService,
    desired: &Desired,
    observed: &Observed,
    instances: &[&Instance],
    ports: &mut Ports,
    now: Timestamp,
    steps: &mut Vec<Step>,
) {
    let service = target(service, observed, name);
    let wanted = service.replicas as usize;
    let (mut current, old): (Vec<&Instance>, Vec<&Instance>) =
        instances.iter().copied().filter(|i| !i.retiring()).partition(|i| i.hash == service.hash);
    for instance in &current {
        steps.extend(keep_alive(instance, service, now));
    }

    let moving_out = instances.iter().any(|i| i.retiring());
    let ready = |group: &[&Instance]| group.iter().filter(|i| i.phase == Phase::Ready).count();
    // What serves nothing goes at once; what serves goes only when something else serves in its place.
    let (serving, idle): (Vec<&Instance>, Vec<&Instance>) = old.into_iter().partition(|i| i.phase == Phase::Ready);
    idle.iter().for_each(|i| steps.push(retire(i)));

    if current.len() > wanted {
        // The ones that do not serve go first, then the youngest.
        current.sort_by_key(|i| (i.phase == Phase::Ready, std::cmp::Reverse(ordinal(i))));
        let surplus = current.len() - wanted;
        current.drain(..surplus).for_each(|i| steps.push(retire(i)));
    }
    if wanted == 0 {
        serving.iter().for_each(|i| steps.push(retire(i)));
        return;
    }

    let in_place = service.template.exclusive || service.template.fixed_port.is_some();
    let missing = wanted - current.len();
    if serving.is_empty() {
        // Nothing serves: there is nothing to go easy on, except that an address must be free before it is taken again.
        let blocked = desired.blocker(name, observed).is_some();
        let vacant = !moving_out && idle.is_empty();
        if missing > 0 && !blocked && (vacant || !in_place) {
            start(name, service, missing, observed, ports, steps);
        }
        return;
    }
    if in_place {
        // One address or one folder, one owner: the old one leaves before the new one comes; callers wait meanwhile.
        if !moving_out && desired.blocker(name, observed).is_none() {
            serving.iter().take(1).for_each(|i| steps.push(retire(i)));
        }
        return;
    }
    // One at a time: a new one comes, then an old one goes, and never fewer serve than are wanted.
    let settled = ready(&current) == current.len();
    if settled && !moving_out {
        if current.len() + serving.len() > wanted {
            let surplus = serving.iter().min_by_key(|i| ordinal(i));
            steps.extend(surplus.map(|i| retire(i)));
        } else if missing > 0 && desired.blocker(name, observed).is_none() {
            start(name, service, 1, observed, ports, steps);
        }
    }
}

fn ordinal(instance: &Instance) -> u64 {
    instance.spec.id.rsplit('-').next().and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn start(
    name: &str,
    service: &DesiredService,
    count: usize,
    observed: &Observed,
    ports: &mut Ports,
    steps: &mut Vec<Step>,
) {
    let next = observed.services.get(name).map_or(1, |record| record.next_ordinal.max(1));
    for ordinal in (next..).take(count) {
        let id = format!("{name}-{ordinal}");
        let port = match (service.template.fixed_port, service.template.listens) {
            (Some(port), _) => Some(port),
            (None, true) => ports.assign(&format!("instance/{id}")),
            (None, false) => None,
        };
        let spec = service.template.instantiate(name, &id, port);
        steps.push(Step::Start { spec: Box::new(spec), hash: service.hash.clone() });
    }
}

/// What an instance that is to stay needs.
fn keep_alive(instance: &Instance, service: &DesiredService, now: Timestamp) -> Option<Step> {
    let elapsed = now.duration_since(instance.since);
    let longer_than = |limit: Duration| elapsed.unsigned_abs() > limit && !elapsed.is_negative();
    let unhealthy_for = if service.template.exclusive { UNHEALTHY_ALONE_FOR } else { UNHEALTHY_FOR };
    match instance.phase {
        Phase::BackingOff { until } if until <= now => Some(Step::Restart { id: instance.spec.id.clone() }),
        Phase::Starting if longer_than(service.start_timeout.get()) => {
            let seen = instance.reason.as_deref().unwrap_or("it never answered");
            let why = format!("not ready within {}: {seen}", service.start_timeout);
            Some(stop(instance, AfterStop::Retry, Some(why)))
        }
        Phase::Unhealthy if longer_than(unhealthy_for) => {
            let seen = instance.reason.as_deref().unwrap_or("its checks fail");
            let why = format!("unhealthy for {}s: {seen}", unhealthy_for.as_secs());
            Some(stop(instance, AfterStop::Retry, Some(why)))
        }
        _ => None,
    }
}

/// What serves is taken out of routing first; what does not is stopped.
fn retire(instance: &Instance) -> Step {
    match instance.phase {
        Phase::Ready => Step::Drain { id: instance.spec.id.clone() },
        _ => stop(instance, AfterStop::Forget, None),
    }
}

fn stop(instance: &Instance, then: AfterStop, why: Option<String>) -> Step {
    Step::Stop { id: instance.spec.id.clone(), then, why }
}

/// The next step of an instance on its way out.
fn leaving(instance: &Instance, observed: &Observed, drain: Span) -> Option<Step> {
    match instance.phase {
        Phase::Draining { generation } if observed.generation >= generation && observed.acknowledged(generation) => {
            Some(Step::AwaitDrained { id: instance.spec.id.clone(), within: drain })
        }
        Phase::Drained => Some(stop(instance, AfterStop::Forget, None)),
        _ => None,
    }
}

fn gateway_steps(gateways: &BTreeMap<u32, DesiredService>, observed: &Observed, now: Timestamp, steps: &mut Vec<Step>) {
    let all: Vec<&Instance> = observed.instances.values().filter(|i| i.is_gateway()).collect();
    let slot_of = |instance: &Instance| observed.gateways.get(&instance.spec.id).map_or(0, |link| link.slot);
    let mut free_ids = observed.services.get(crate::GATEWAY).map_or(1, |record| record.next_ordinal.max(1))..;
    for (slot, wanted) in gateways {
        let current = all.iter().find(|i| slot_of(i) == *slot && !i.retiring() && i.hash == wanted.hash);
        let Some(current) = current else {
            let id = format!("{}-{}", crate::GATEWAY, free_ids.next().unwrap_or(u64::MAX));
            let spec = wanted.template.instantiate(crate::GATEWAY, &id, None);
            steps.push(Step::Start { spec: Box::new(spec), hash: wanted.hash.clone() });
            continue;
        };
        steps.extend(keep_alive(current, wanted, now));
        let link = observed.gateways.get(&current.spec.id).filter(|_| current.phase == Phase::Ready);
        if link.and_then(|link| link.next_push(observed.generation)).is_some_and(|at| at <= now) {
            steps.push(Step::Push { gateway: current.spec.id.clone() });
        }
        // The successor takes the sockets over and tells the other to finish, which then ends by itself.
        let settled_for = now.duration_since(current.since);
        let overdue = current.phase == Phase::Ready && settled_for.unsigned_abs() > GATEWAY_DRAIN;
        let others = all.iter().filter(|i| slot_of(i) == *slot && i.spec.id != current.spec.id);
        for other in others.filter(|i| !matches!(i.phase, Phase::Stopping { .. })) {
            if overdue || matches!(other.phase, Phase::BackingOff { .. } | Phase::Starting | Phase::Drained) {
                steps.push(stop(other, AfterStop::Forget, None));
            }
        }
    }
    let unwanted = all.iter().filter(|i| !gateways.contains_key(&slot_of(i)));
    for instance in unwanted.filter(|i| !matches!(i.phase, Phase::Stopping { .. })) {
        steps.push(stop(instance, AfterStop::Forget, None));
    }
}

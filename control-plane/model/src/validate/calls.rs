//! Services as a graph: who waits for whom to start, who calls whom with how much time and how many attempts.

use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashSet};

use super::graph::Graph;
use super::{Context, asked_for};
use crate::finding::{CALL_CYCLE, DEADLINE_BEYOND_CALLER, RETRIES_BEYOND_DEADLINE, RETRY_AMPLIFICATION, START_CYCLE};
use crate::load::tree::Place;
use crate::policy::Policy;
use crate::topology::EdgePolicy;
use crate::units::Span;

/// More circles, or more paths, than this are the same mistake again.
const SHOWN: usize = 8;

/// Attempts that one request may cause in the worst case: three calls in a row with the default of three attempts.
const MOST_ATTEMPTS: u64 = 27;

/// A call: what holds for it, what is written at this very edge, and where.
struct Edge {
    time: Time,
    deadline: Option<Span>,
    retries: Option<u32>,
    place: Place,
    deadline_place: Place,
    retries_place: Place,
    /// Part of what is written could not be read.
    incomplete: bool,
}

/// The part of a policy that is about time and attempts.
#[derive(Clone, Copy)]
struct Time {
    deadline: Span,
    attempt: Span,
    attempts: u64,
}

impl Time {
    fn of(layers: &[&EdgePolicy]) -> Self {
        let policy = Policy::resolve(layers);
        let attempts = u64::from(policy.retry.attempts) + 1;
        Self { deadline: policy.deadline, attempt: policy.attempt_timeout, attempts }
    }
}

pub(super) fn check(context: &mut Context<'_, '_>) {
    let names: Vec<&str> = context.topology.services.keys().map(String::as_str).collect();
    let number: BTreeMap<&str, usize> = names.iter().enumerate().map(|(at, name)| (*name, at)).collect();
    start_order(context, &names, &number);
    let graph = calls(context, &number);
    call_circles(context, &names, &graph);
    let entries = entries(context, &number);
    Chains { names: &names, graph: &graph, entries: &entries }.check(context);
}

/// `a -> b -> a`
fn spelled(context: &Context<'_, '_>, names: &[&str], circle: &[usize]) -> String {
    // A circle of thousands is shown by its beginning.
    let shown: Vec<String> = circle.iter().take(12).map(|at| context.quoted(names[*at]).replace('`', "")).collect();
    let gap = if circle.len() > 12 { " -> …" } else { "" };
    format!("{}{gap} -> {}", shown.join(" -> "), shown[0])
}

fn start_order(context: &mut Context<'_, '_>, names: &[&str], number: &BTreeMap<&str, usize>) {
    let mut graph = Graph::new(names.len());
    for (from, (_, service, at)) in context.services().enumerate() {
        let at = at.get("dependsOn");
        for (index, before) in service.depends_on.iter().enumerate() {
            if let Some(to) = number.get(before.as_str()) {
                graph.edges[from].push((*to, at.nth(index).place()));
            }
        }
    }
    for circle in graph.circles(|_| true, SHOWN) {
        let place = place_of(&graph, &circle, |place| *place);
        let circle = spelled(context, names, &circle);
        context.add(START_CYCLE, place, || {
            (
                format!("these services wait for each other to start: {circle}"),
                "take one of them out of `dependsOn`: calls do not need it, they are tried again",
            )
        });
    }
}

/// Where the first edge of a circle stands.
fn place_of<E>(graph: &Graph<E>, circle: &[usize], place: impl Fn(&E) -> Place) -> Place {
    let next = circle[1 % circle.len()];
    graph.edges[circle[0]].iter().find(|(to, _)| *to == next).map(|(_, edge)| place(edge)).unwrap_or_default()
}

fn calls(context: &Context<'_, '_>, number: &BTreeMap<&str, usize>) -> Graph<Edge> {
    let topology = context.topology;
    let mut graph = Graph::new(number.len());
    let silent = EdgePolicy::default();
    let default = Time::of(&[&topology.defaults]);
    for (from, (_, service, at)) in context.services().enumerate() {
        let written = service.calls.iter().map(|(callee, policy)| (callee.as_str(), policy, None));
        let implied = asked_for(service).filter(|(_, callee)| !service.calls.contains_key(*callee));
        let implied = implied.map(|(variable, callee)| (callee, &silent, Some(variable)));
        let mut seen = HashSet::new();
        for (callee, policy, variable) in written.chain(implied) {
            // Itself is a finding of its own.
            let Some(to) = number.get(callee).copied().filter(|to| *to != from && seen.insert(*to)) else { continue };
            let (at, place) = match variable {
                None => {
                    let at = at.get("calls").get(callee);
                    (at, at.key())
                }
                Some(variable) => {
                    let at = at.get("env").get(variable).get("urlOf");
                    (at, at.place())
                }
            };
            let edge = Edge {
                time: if *policy == silent { default } else { Time::of(&[&topology.defaults, policy]) },
                deadline: policy.deadline,
                retries: policy.retry.as_ref().and_then(|retry| retry.attempts),
                place,
                deadline_place: at.get("deadline").place(),
                retries_place: at.get("retry").get("attempts").place(),
                incomplete: at.incomplete(),
            };
            graph.edges[from].push((to, edge));
        }
    }
    graph
}

/// A circle of calls ends only if every call of it has a deadline of its own and time becomes shorter on the way around.
fn call_circles(context: &mut Context<'_, '_>, names: &[&str], graph: &Graph<Edge>) {
    let mut circles = graph.circles(|edge| edge.deadline.is_none() && !edge.incomplete, SHOWN);
    // Where all have one, a circle in which none is shorter than another has the same one everywhere.
    let mut equal: BTreeMap<Span, Vec<(usize, usize)>> = BTreeMap::new();
    for (from, to, edge) in inside(graph) {
        if let Some(deadline) = edge.deadline {
            equal.entry(deadline).or_default().push((from, to));
        }
    }
    for edges in equal.values() {
        let nodes: Vec<usize> =
            BTreeSet::from_iter(edges.iter().flat_map(|(from, to)| [*from, *to])).into_iter().collect();
        let at = |node: &usize| nodes.binary_search(node).unwrap_or_default();
        let mut part = Graph::new(nodes.len());
        for (from, to) in edges {
            part.edges[at(from)].push((at(to), ()));
        }
        let found = part.circles(|()| true, SHOWN);
        circles.extend(found.into_iter().map(|circle| circle.into_iter().map(|at| nodes[at]).collect::<Vec<_>>()));
    }
    circles.truncate(SHOWN);
    for circle in circles {
        let place = place_of(graph, &circle, |edge| edge.place);
        let circle = spelled(context, names, &circle);
        context.add(CALL_CYCLE, place, || {
            (
                format!("these services call each other in a circle without a deadline that fits: {circle}"),
                "break the circle, or give each of these calls a `deadline`, shorter from one to the next",
            )
        });
    }
}

/// The edges inside of components: those of circles.
fn inside(graph: &Graph<Edge>) -> impl Iterator<Item = (usize, usize, &Edge)> {
    let component = graph.components();
    let edges =
        graph.edges.iter().enumerate().flat_map(|(from, edges)| edges.iter().map(move |(to, edge)| (from, *to, edge)));
    edges.filter(move |(from, to, _)| component[*from] == component[*to])
}

/// A way in from outside.
struct Entry {
    service: usize,
    /// `route /orders`
    name: String,
    time: Time,
}

fn entries(context: &Context<'_, '_>, number: &BTreeMap<&str, usize>) -> Vec<Entry> {
    let topology = context.topology;
    let mut entries = Vec::new();
    for route in &topology.routes {
        let time = Time::of(&[&topology.defaults, &route.policy()]);
        for (target, _) in route.targets() {
            if let Some(service) = number.get(target) {
                let path = context.quoted(&route.path).replace('`', "");
                entries.push(Entry { service: *service, name: format!("route {path}"), time });
            }
        }
    }
    entries
}

/// From where a service is reached in the worst case.
#[derive(Clone, Copy, PartialEq)]
enum From {
    Nowhere,
    Entry(usize),
    Service(usize),
}

struct Chains<'c> {
    names: &'c [&'c str],
    graph: &'c Graph<Edge>,
    entries: &'c [Entry],
}

impl Chains<'_> {
    fn check(&self, context: &mut Context<'_, '_>) {
        self.deadlines(context);
        self.attempts(context);
    }

    /// The longest that any caller waits for each service, in milliseconds: along a path the shortest deadline counts.
    /// Who is called by nobody has all the time there is.
    fn time(&self) -> Vec<(u64, From)> {
        let mut called = vec![false; self.names.len()];
        for (to, _) in self.graph.edges.iter().flatten() {
            called[*to] = true;
        }
        let mut time = vec![(0, From::Nowhere); self.names.len()];
        let mut queue = BinaryHeap::new();
        for (at, entry) in self.entries.iter().enumerate() {
            called[entry.service] = true;
            let deadline = entry.time.deadline.as_millis();
            if deadline > time[entry.service].0 {
                time[entry.service] = (deadline, From::Entry(at));
                queue.push((deadline, entry.service));
            }
        }
        for at in (0..self.names.len()).filter(|at| !called[*at]) {
            time[at] = (u64::MAX, From::Nowhere);
            queue.push((u64::MAX, at));
        }
        while let Some((left, node)) = queue.pop() {
            if left < time[node].0 {
                continue;
            }
            for (to, edge) in &self.graph.edges[node] {
                let left = left.min(edge.time.deadline.as_millis());
                if left > time[*to].0 {
                    time[*to] = (left, From::Service(node));
                    queue.push((left, *to));
                }
            }
        }
        time
    }

    /// Deadlines, and attempts that were asked for, beside the time that is left of the callers'.
    fn deadlines(&self, context: &mut Context<'_, '_>) {
        let time = self.time();
        let came_from: Vec<From> = time.iter().map(|(_, from)| *from).collect();
        for (caller, edges) in self.graph.edges.iter().enumerate() {
            let left = time[caller].0;
            // Nothing from outside comes to a circle that nobody calls.
            if left == 0 || left == u64::MAX {
                continue;
            }
            for (callee, edge) in edges.iter().filter(|(_, edge)| !edge.incomplete) {
                let left_text = Span::from_millis(left);
                if let Some(deadline) = edge.deadline.filter(|deadline| deadline.as_millis() > left) {
                    let path = self.path(context, &came_from, caller, *callee);
                    context.add(DEADLINE_BEYOND_CALLER, edge.deadline_place, || {
                        (
                            format!("a deadline of {deadline} is longer than any caller waits ({left_text}): {path}"),
                            format!("write at most {left_text}, or give the callers a longer `deadline`"),
                        )
                    });
                    continue;
                }
                let Some(retries @ 1..) = edge.retries else { continue };
                let attempt = edge.time.attempt.as_millis();
                let needed = attempt.saturating_mul(u64::from(retries) + 1);
                // Beyond its own deadline is a finding where it is written.
                if needed > left && needed <= edge.time.deadline.as_millis() {
                    let path = self.path(context, &came_from, caller, *callee);
                    context.add(RETRIES_BEYOND_DEADLINE, edge.retries_place, || {
                        (
                            format!(
                                "{path}: {} attempts of {} need {}, the callers wait {left_text}",
                                retries + 1,
                                edge.time.attempt,
                                Span::from_millis(needed)
                            ),
                            "write fewer attempts, a shorter `attemptTimeout`, or give the callers a longer `deadline`",
                        )
                    });
                }
            }
        }
    }

    /// The attempts that one request from outside may cause at each service: they multiply along the way.
    fn attempts(&self, context: &mut Context<'_, '_>) {
        let component = self.graph.components();
        let mut worst: Vec<(u64, From)> = vec![(1, From::Nowhere); self.names.len()];
        for (at, entry) in self.entries.iter().enumerate() {
            let attempts = entry.time.attempts;
            if attempts > worst[entry.service].0 || worst[entry.service].1 == From::Nowhere {
                worst[entry.service] = (attempts, From::Entry(at));
            }
        }
        let mut order: Vec<usize> = (0..self.names.len()).collect();
        order.sort_by_key(|node| std::cmp::Reverse(component[*node]));
        let mut crossing: Vec<(usize, usize)> = Vec::new();
        for caller in order {
            for (at, (callee, edge)) in self.graph.edges[caller].iter().enumerate() {
                // Around a circle they multiply without end; it is a finding of its own.
                if component[caller] == component[*callee] {
                    continue;
                }
                let attempts = worst[caller].0.saturating_mul(edge.time.attempts);
                if attempts > worst[*callee].0 {
                    worst[*callee] = (attempts, From::Service(caller));
                    // Further down the same path it is the same finding.
                    crossing.retain(|(from, at)| self.graph.edges[*from][*at].0 != *callee);
                    if attempts > MOST_ATTEMPTS && worst[caller].0 <= MOST_ATTEMPTS {
                        crossing.push((caller, at));
                    }
                }
            }
        }
        let came_from: Vec<From> = worst.iter().map(|(_, from)| *from).collect();
        for (caller, at) in crossing.into_iter().take(SHOWN) {
            let (callee, edge) = &self.graph.edges[caller][at];
            let attempts = worst[*callee].0;
            let path = self.path(context, &came_from, caller, *callee);
            let name = context.quoted(self.names[*callee]).replace('`', "");
            let needed = Span::from_millis(edge.time.attempt.as_millis().saturating_mul(attempts));
            let deadline = self.deadline_of_first(&came_from, caller, edge);
            let time = if needed > deadline { format!(", {needed} > {deadline}") } else { String::new() };
            context.add(RETRY_AMPLIFICATION, edge.place, || {
                (
                    format!("{path}: {attempts} attempts at {name} for one request{time}"),
                    "retry in one place of the path only: write `retry: { attempts: 0 }` at the other calls",
                )
            });
        }
    }

    /// The services before `caller` in the worst case, `caller` last, and the route that they begin at.
    fn way(&self, came_from: &[From], caller: usize) -> (Option<usize>, Vec<usize>) {
        let mut way = vec![caller];
        let mut at = caller;
        loop {
            match came_from[at] {
                From::Service(before) if way.len() <= self.names.len() => {
                    way.push(before);
                    at = before;
                }
                From::Entry(entry) => {
                    way.reverse();
                    return (Some(entry), way);
                }
                _ => {
                    way.reverse();
                    return (None, way);
                }
            }
        }
    }

    /// `route /checkout -> a -> b -> c`
    fn path(&self, context: &Context<'_, '_>, came_from: &[From], caller: usize, callee: usize) -> String {
        let (entry, way) = self.way(came_from, caller);
        let name = |at: &usize| context.quoted(self.names[*at]).replace('`', "");
        let mut steps: Vec<String> = entry.map(|entry| self.entries[entry].name.clone()).into_iter().collect();
        let hidden = way.len().saturating_sub(11);
        if hidden > 0 {
            steps.push("…".into());
        }
        steps.extend(way[hidden..].iter().map(name));
        steps.push(name(&callee));
        steps.join(" -> ")
    }

    /// The deadline at the beginning of the path.
    fn deadline_of_first(&self, came_from: &[From], caller: usize, last: &Edge) -> Span {
        let (entry, way) = self.way(came_from, caller);
        if let Some(entry) = entry {
            return self.entries[entry].time.deadline;
        }
        let first = way.get(1).and_then(|second| self.graph.edges[way[0]].iter().find(|(to, _)| to == second));
        first.map_or(last.time.deadline, |(_, edge)| edge.time.deadline)
    }
}

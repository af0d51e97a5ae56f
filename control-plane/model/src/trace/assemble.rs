//! From spans to one tree. The input is whatever processes sent, in any order: some of it twice, some of it never, with clocks
//! that differ, and perhaps made up by somebody. The outcome depends on the set of spans alone, holds every one of them once,
//! and is found in time proportional to their number (but for sorting): nothing here recurses over the input.

use std::collections::{BTreeMap, HashMap};

use jiff::Timestamp;

use super::messages::{Messages, Step, waits};
use super::path::{critical, self_times};
use super::{GATEWAY, Gap, Node, Span, SpanKind, Tree, What, attribute};

/// The subscriptions of each channel: who has to take a message before it is dealt with.
pub type Subscriptions = BTreeMap<String, Vec<String>>;

/// Makes one tree of the spans of a trace, and of the traces that are joined to it.
///
/// A span hangs below the parent it names; where that is not there, below one that it links to, or the one that published the message it deals with; where
/// those are not there either, below a node that says so. Of `subscriptions` every one of a channel has to take the messages
/// that were published to it, beside those that were seen to.
pub fn assemble(spans: Vec<Span>, subscriptions: &Subscriptions) -> Tree {
    let mut forest = Forest::plant(spans);
    let Some(root) = forest.unite() else { return Tree::default() };
    forest.set_clocks(root);
    let messages = Messages::of(&forest.items, subscriptions);
    let mut gaps = std::mem::take(&mut forest.gaps);
    gaps.extend(messages.gaps());
    gaps.sort();
    gaps.dedup();
    waits(&mut forest, &messages);
    forest.grow(root, gaps)
}

/// A node in the making. Times are nanoseconds since 1970, which no sum of input overflows.
#[derive(Debug)]
pub(super) struct Item {
    pub(super) what: What,
    pub(super) parent: Option<usize>,
    /// In the order in which they are drawn, once waits are in.
    pub(super) children: Vec<usize>,
    pub(super) start: i128,
    pub(super) end: i128,
    shifted: i128,
    /// Its parent is only where it was put for want of a better place: nothing follows for its clock.
    guessed: bool,
}

impl Item {
    pub(super) fn new(what: What, parent: Option<usize>, start: i128, end: i128) -> Self {
        Self { what, parent, children: Vec::new(), start, end, shifted: 0, guessed: false }
    }

    pub(super) fn span(&self) -> Option<&Span> {
        match &self.what {
            What::Span(span) => Some(span),
            What::Unknown { .. } | What::Wait(_) => None,
        }
    }
}

#[derive(Debug, Default)]
pub(super) struct Forest {
    pub(super) items: Vec<Item>,
    gaps: Vec<Gap>,
}

impl Forest {
    /// Every span once, by start, each with its parent where that is to be found.
    fn plant(spans: Vec<Span>) -> Self {
        let mut items: Vec<Item> = once(spans)
            .into_iter()
            .map(|span| {
                let start = span.start_at.as_nanosecond();
                let end = start + i128::from((span.duration_ms.max(0.0) * 1e6) as i64);
                Item::new(What::Span(Box::new(span)), None, start, end)
            })
            .collect();
        let parents: Vec<_> = {
            let index = Index::of(&items);
            (0..items.len()).map(|at| index.parent(&items, at)).collect()
        };
        let mut gaps = Vec::new();
        let mut unknown: BTreeMap<(String, String), Vec<usize>> = BTreeMap::new();
        for (at, parent) in parents.into_iter().enumerate() {
            match parent {
                Parent::Found(parent) => items[at].parent = Some(parent),
                Parent::None => {}
                Parent::Missing(trace, span) => unknown.entry((trace, span)).or_default().push(at),
            }
        }
        for ((trace_id, span_id), children) in unknown {
            let mut services: Vec<_> =
                children.iter().filter_map(|at| Some(items[*at].span()?.service.clone())).collect();
            services.sort();
            services.dedup();
            let start = children.iter().map(|at| items[*at].start).min().unwrap_or_default();
            let end = children.iter().map(|at| items[*at].end).max().unwrap_or_default();
            for child in children {
                items[child].parent = Some(items.len());
            }
            gaps.push(Gap::Missing { span_id: span_id.clone(), services });
            items.push(Item::new(What::Unknown { trace_id, span_id }, None, start, end));
        }
        Self { items, gaps }
    }

    /// Cuts circles, and hangs every tree but the first below that one: what is of one trace has one origin, known or not.
    fn unite(&mut self) -> Option<usize> {
        self.cut_circles();
        let is_root = |at: &usize| self.items[*at].parent.is_none();
        let order = |at: &usize| {
            let item = &self.items[*at];
            (item.span().is_none(), item.start, *at)
        };
        let root = (0..self.items.len()).filter(is_root).min_by_key(order)?;
        for (at, item) in self.items.iter_mut().enumerate() {
            if at != root && item.parent.is_none() {
                item.parent = Some(root);
                item.guessed = true;
            }
        }
        for at in 0..self.items.len() {
            if let Some(parent) = self.items[at].parent {
                self.items[parent].children.push(at);
            }
        }
        Some(root)
    }

    /// Follows parents from each item; an item met twice on one way up is in a circle, of which the earliest is cut loose.
    fn cut_circles(&mut self) {
        // The walk on which an item was met; all that earlier walks met is known to end well.
        let mut met = vec![usize::MAX; self.items.len()];
        for walk in 0..self.items.len() {
            let mut at = walk;
            while met[at] == usize::MAX {
                met[at] = walk;
                let Some(parent) = self.items[at].parent else { break };
                at = parent;
            }
            if met[at] != walk || self.items[at].parent.is_none() {
                continue;
            }
            let mut first = at;
            let mut next = self.items[at].parent;
            while let Some(here) = next.filter(|here| *here != at) {
                first = first.min(here);
                next = self.items[here].parent;
            }
            self.items[first].parent = None;
            let span_id = self.items[first].span().map(|span| span.span_id.clone()).unwrap_or_default();
            self.gaps.push(Gap::Circle { span_id });
        }
    }

    /// Nothing begins before its cause: where it seems so, the clock of who did it is behind, and everything that the
    /// same service did below it is put forward alike. That something ends after its cause is no sign of
    /// that: a caller may give up earlier.
    fn set_clocks(&mut self, root: usize) {
        for at in self.downwards(root) {
            let Some(parent) = self.items[at].parent.filter(|_| !self.items[at].guessed) else { continue };
            let known = self.kin(at).map_or(0, |kin| self.items[kin].shifted);
            let (cause, item) = (&self.items[parent], &self.items[at]);
            let mut shift = known;
            if item.start + shift < cause.start {
                let spare = (cause.end - cause.start) - (item.end - item.start);
                let within = item.span().is_some_and(|span| span.kind != SpanKind::Consumer) && spare > 0;
                // The way there and the way back are taken to be equally long.
                shift = cause.start - item.start + if within { spare / 2 } else { 0 };
            }
            let item = &mut self.items[at];
            (item.start, item.end, item.shifted) = (item.start + shift, item.end + shift, shift);
        }
    }

    /// The parent, or its parent, where that is of the same service: the next hop out and back in is as far as one looks,
    /// which keeps this constant for each item.
    fn kin(&self, at: usize) -> Option<usize> {
        let service = |at: usize| self.items[at].span().map(|span| span.service.as_str());
        let parent = self.items[at].parent?;
        let above = [Some(parent), self.items[parent].parent];
        above.into_iter().flatten().find(|kin| service(*kin) == service(at) && service(at).is_some())
    }

    /// All items, parents first.
    fn downwards(&self, root: usize) -> Vec<usize> {
        let mut order = Vec::with_capacity(self.items.len());
        let mut open = vec![root];
        while let Some(at) = open.pop() {
            order.push(at);
            open.extend(self.items[at].children.iter().rev());
        }
        order
    }

    /// What the operator sees.
    fn grow(mut self, root: usize, gaps: Vec<Gap>) -> Tree {
        let order = self.downwards(root);
        let is_open = |item: &Item| matches!(&item.what, What::Wait(wait) if wait.open);
        let start = self.items.iter().map(|item| item.start).min().unwrap_or_default();
        let end = self.items.iter().filter(|item| !is_open(item)).map(|item| item.end).max().unwrap_or_default();
        let on_path = critical(&self.items, &order);
        let own = self_times(&self.items);
        let mut places = vec![0; self.items.len()];
        let mut nodes: Vec<Node> = Vec::with_capacity(order.len());
        for (place, at) in order.into_iter().enumerate() {
            places[at] = place;
            let item = &mut self.items[at];
            let parent = item.parent.map(|parent| places[parent]);
            let end = if is_open(item) { end.max(item.start) } else { item.end };
            let nothing = What::Unknown { trace_id: String::new(), span_id: String::new() };
            nodes.push(Node {
                what: std::mem::replace(&mut item.what, nothing),
                parent,
                depth: parent.map_or(0, |parent| nodes[parent].depth + 1),
                start_ms: millis(item.start - start),
                duration_ms: millis(end - item.start),
                self_ms: millis(own[at]),
                critical_ms: on_path[at].map(millis),
                shifted_ms: millis(item.shifted),
            });
        }
        let start_at = Timestamp::from_nanosecond(start).unwrap_or_default();
        Tree { nodes, start_at, duration_ms: millis(end - start), gaps }
    }
}

fn millis(nanos: i128) -> f64 {
    nanos as f64 / 1e6
}

/// Sorted by start, of equal ids one: the one that ends last, as it knows most.
fn once(mut spans: Vec<Span>) -> Vec<Span> {
    let same = |left: &Span, right: &Span| (&left.trace_id, &left.span_id).cmp(&(&right.trace_id, &right.span_id));
    // Which of two is kept that differ in nothing better depends on their text, and so not on the order in which they came.
    let text = |span: &Span| serde_json::to_string(span).unwrap_or_default();
    spans.sort_by(|left, right| {
        let ends = || right.end_at().cmp(&left.end_at());
        same(left, right).then_with(ends).then_with(|| text(left).cmp(&text(right)))
    });
    spans.dedup_by(|right, left| same(left, right).is_eq());
    spans.sort_by_key(|span| (span.start_at, std::cmp::Reverse(span.end_at())));
    spans
}

enum Parent {
    Found(usize),
    None,
    Missing(String, String),
}

/// Where spans are found by what others say of them.
struct Index<'a> {
    ids: HashMap<(&'a str, &'a str), usize>,
    /// Who published each message, first.
    publishers: HashMap<&'a str, usize>,
}

impl<'a> Index<'a> {
    fn of(items: &'a [Item]) -> Self {
        let mut index = Self { ids: HashMap::new(), publishers: HashMap::new() };
        for (at, span) in items.iter().enumerate().filter_map(|(at, item)| Some((at, item.span()?))) {
            index.ids.insert((&span.trace_id, &span.span_id), at);
            if let Some(Step::Published { message, .. }) = Step::of(span) {
                index.publishers.entry(message).or_insert(at);
            }
        }
        index
    }

    fn parent(&self, items: &[Item], at: usize) -> Parent {
        let Some(span) = items[at].span() else { return Parent::None };
        let named = span.parent_span_id.as_deref();
        if let Some(found) = named.and_then(|id| self.ids.get(&(&*span.trace_id, id))).filter(|found| **found != at) {
            return Parent::Found(*found);
        }
        let linked = span.links.iter().filter_map(|link| self.ids.get(&(&*link.trace_id, &*link.span_id)));
        let published = || {
            span.text(attribute::MESSAGE_ID)
                .filter(|_| span.kind != SpanKind::Producer)
                .and_then(|id| self.publishers.get(id))
        };
        if let Some(found) = linked.min().or_else(published).filter(|found| **found != at) {
            return Parent::Found(*found);
        }
        match named {
            // The caller is not of this system, and reports to somebody else.
            Some(_) if is_entry(span) => Parent::None,
            Some(id) => Parent::Missing(span.trace_id.clone(), id.to_owned()),
            None => Parent::None,
        }
    }
}

/// Whether with this span a request came into the system from outside.
fn is_entry(span: &Span) -> bool {
    span.service == GATEWAY && span.kind == SpanKind::Server && span.attributes.contains_key(attribute::ROUTE)
}

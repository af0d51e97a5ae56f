//! What became of each message of a trace, subscription by subscription: from that follows what is still under way, and where a
//! message waited.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::assemble::{Forest, Item, Subscriptions};
use super::{COURIER, DAEMON, Gap, Span, SpanKind, Wait, WaitCause, What, attribute};

/// Shorter pauses are the work of passing something on, no waiting.
const SHORTEST_WAIT: i128 = 1_000_000;

/// What a span says of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    Published {
        message: &'a str,
        channel: &'a str,
    },
    /// An attempt.
    Delivered {
        message: &'a str,
        outcome: Outcome,
        not_before: Option<&'a str>,
        replay: Option<&'a str>,
    },
    /// The daemon took it in as a dead letter.
    Buried,
    /// The daemon sent it on its way again.
    Replayed {
        message: &'a str,
        replay: &'a str,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    Processed,
    Retried,
    Dead,
    /// Somebody else settled it, or the subscriber is down and this was no attempt.
    Other,
}

impl<'a> Step<'a> {
    pub(super) fn of(span: &'a Span) -> Option<Self> {
        let text = |name| span.text(name);
        let message = text(attribute::MESSAGE_ID)?;
        let channel = text(attribute::CHANNEL)?;
        match (&*span.service, span.kind) {
            // What was published before, under the same key, was published there.
            (COURIER, SpanKind::Producer) if text(attribute::OUTCOME) == Some("duplicate") => None,
            (COURIER, SpanKind::Producer) => Some(Self::Published { message, channel }),
            (COURIER, SpanKind::Consumer) => {
                let outcome = match text(attribute::OUTCOME) {
                    Some("processed") => Outcome::Processed,
                    Some("retried") => Outcome::Retried,
                    Some("dead") => Outcome::Dead,
                    _ => Outcome::Other,
                };
                let (not_before, replay) = (text(attribute::NOT_BEFORE), text(attribute::REPLAY));
                Some(Self::Delivered { message, outcome, not_before, replay })
            }
            (DAEMON, _) => match text(attribute::REPLAY) {
                Some(replay) => Some(Self::Replayed { message, replay }),
                None => text(attribute::DEAD_LETTER).map(|_| Self::Buried),
            },
            _ => None,
        }
    }

    fn is_final(&self) -> bool {
        matches!(self, Self::Delivered { outcome: Outcome::Processed | Outcome::Dead, .. })
    }
}

/// `order.placed/billing`, of a span about a subscription.
fn place(span: &Span) -> Option<String> {
    Some(format!("{}/{}", span.text(attribute::CHANNEL)?, span.text(attribute::SUBSCRIPTION)?))
}

/// How it stands with one message for one subscription.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Standing {
    Settled,
    Undelivered,
    Retrying { not_before: Option<String> },
    Replaying { replay: String },
}

/// What is known of the messages of a trace.
#[derive(Debug, Default)]
pub(super) struct Messages {
    /// Of every message, for each `channel/subscription`: how it stands, and after which item.
    standings: BTreeMap<(String, String), (Standing, usize)>,
}

impl Messages {
    pub(super) fn of(items: &[Item], subscriptions: &Subscriptions) -> Self {
        let mut published: BTreeMap<&str, (usize, &str)> = BTreeMap::new();
        let mut takers: BTreeMap<(&str, String), Vec<usize>> = BTreeMap::new();
        let mut seen: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
        for (at, span) in items.iter().enumerate().filter_map(|(at, item)| Some((at, item.span()?))) {
            match Step::of(span) {
                Some(Step::Published { message, channel }) => {
                    published.entry(message).or_insert((at, channel));
                }
                Some(Step::Delivered { message, .. } | Step::Replayed { message, .. }) => {
                    let (Some(place), Some(channel)) = (place(span), span.text(attribute::CHANNEL)) else { continue };
                    seen.entry(channel).or_default().insert(place.clone());
                    takers.entry((message, place)).or_default().push(at);
                }
                Some(Step::Buried) | None => {}
            }
        }
        for (message, (_, channel)) in &published {
            let expected = subscriptions.get(*channel).into_iter().flatten().map(|name| format!("{channel}/{name}"));
            for place in expected.chain(seen.get(channel).into_iter().flatten().cloned()) {
                takers.entry((message, place)).or_default();
            }
        }
        let standings = takers.into_iter().map(|((message, place), mut steps)| {
            steps.sort_by_key(|at| (items[*at].start, *at));
            let last = steps.last().copied().or_else(|| published.get(message).map(|(at, _)| *at)).unwrap_or_default();
            ((message.to_owned(), place), (stands(items, &steps), last))
        });
        Self { standings: standings.collect() }
    }

    pub(super) fn gaps(&self) -> impl Iterator<Item = Gap> {
        self.standings.iter().filter_map(|((message, at), (standing, _))| {
            let (message_id, at) = (message.clone(), at.clone());
            match standing.clone() {
                Standing::Settled => None,
                Standing::Undelivered => Some(Gap::Undelivered { message_id, at }),
                Standing::Retrying { not_before } => Some(Gap::Retrying { message_id, at, not_before }),
                Standing::Replaying { replay } => Some(Gap::Replaying { message_id, at, replay }),
            }
        })
    }
}

/// `steps` by start. Of what came after the last replay, and of everything where there is none, one attempt has to be final.
fn stands(items: &[Item], steps: &[usize]) -> Standing {
    let step = |at: &usize| items[*at].span().and_then(Step::of);
    let replay = steps.iter().rev().find_map(|at| match step(at) {
        Some(Step::Replayed { replay, .. }) => Some((items[*at].start, replay)),
        _ => None,
    });
    let is_later = |at: &usize| match (replay, step(at)) {
        // The courier may be so quick that its attempt begins before the daemon has written down that it asked for it.
        (Some((_, replay)), Some(Step::Delivered { replay: Some(own), .. })) => own == replay,
        (Some((start, _)), _) => items[*at].start >= start,
        (None, _) => true,
    };
    let mut rest = steps.iter().filter(|at| is_later(at)).filter_map(step);
    if rest.clone().any(|step| step.is_final()) {
        return Standing::Settled;
    }
    let retried = rest.rfind(|step| matches!(step, Step::Delivered { outcome: Outcome::Retried, .. }));
    match (retried, replay) {
        (Some(Step::Delivered { not_before, .. }), _) => {
            Standing::Retrying { not_before: not_before.map(str::to_owned) }
        }
        (_, Some((_, replay))) => Standing::Replaying { replay: replay.to_owned() },
        _ => Standing::Undelivered,
    }
}

/// Brings the children of every item into the order in which they are drawn: by start, but what is about one subscription
/// together. Between them goes what was waited for.
pub(super) fn waits(forest: &mut Forest, messages: &Messages) {
    for parent in 0..forest.items.len() {
        let mut children = std::mem::take(&mut forest.items[parent].children);
        children.sort_by_key(|at| (forest.items[*at].start, *at));
        let mut groups: Vec<(Option<String>, Vec<usize>)> = Vec::new();
        let mut places: BTreeMap<String, usize> = BTreeMap::new();
        for child in children {
            let track = forest.items[child].span().and_then(track);
            match track.as_ref().and_then(|track| places.get(track)) {
                Some(place) => groups[*place].1.push(child),
                None => {
                    if let Some(track) = &track {
                        places.insert(track.clone(), groups.len());
                    }
                    groups.push((track, vec![child]));
                }
            }
        }
        let mut drawn = Vec::new();
        for (track, group) in groups {
            // Without a track each stands for itself, and nothing is known of what it waited for.
            let mut before = track.is_some().then_some(parent);
            for child in group {
                if let Some(wait) = before.and_then(|before| wait(&forest.items, parent, before, child)) {
                    drawn.push(forest.items.len());
                    forest.items.push(wait);
                }
                drawn.push(child);
                before = before.map(|before| later(&forest.items, parent, before, child));
            }
        }
        forest.items[parent].children = drawn;
    }
    for ((_, at), (standing, last)) in &messages.standings {
        let cause = match standing {
            Standing::Settled => continue,
            Standing::Undelivered | Standing::Replaying { .. } => WaitCause::Delivery,
            Standing::Retrying { not_before } => {
                WaitCause::Retry { not_before: not_before.as_deref().and_then(|time| time.parse().ok()) }
            }
        };
        // Below the publication, and after what was tried last.
        let is_publication = forest.items[*last].span().is_some_and(|span| span.kind == SpanKind::Producer);
        let parent = if is_publication { Some(*last) } else { forest.items[*last].parent };
        let parent = parent.unwrap_or(*last);
        let start = forest.items[*last].end;
        let what = What::Wait(Wait { cause, at: at.clone(), open: true });
        let new = forest.items.len();
        forest.items.push(Item::new(what, Some(parent), start, start));
        let siblings = &mut forest.items[parent].children;
        let place = siblings.iter().position(|child| child == last).map_or(siblings.len(), |place| place + 1);
        siblings.insert(place, new);
    }
}

/// What has to happen one after another: all about a message for a subscription, or the attempts of one request.
fn track(span: &Span) -> Option<String> {
    if let (Some(message), Some(place)) = (span.text(attribute::MESSAGE_ID), place(span)) {
        return Some(format!("{message} {place}"));
    }
    let is_attempt = span.kind == SpanKind::Client && span.attributes.contains_key(attribute::ATTEMPT);
    is_attempt.then(|| "attempts".to_owned())
}

/// Which of the two ended last.
fn later(items: &[Item], parent: usize, before: usize, child: usize) -> usize {
    if before != parent && items[before].end > items[child].end { before } else { child }
}

/// The pause between `before` and `child`; the first child of a publication may have waited, too.
fn wait(items: &[Item], parent: usize, before: usize, child: usize) -> Option<Item> {
    let (earlier, later) = (items[before].span()?, items[child].span()?);
    let (start, end) = (items[before].end, items[child].start);
    if end - start < SHORTEST_WAIT {
        return None;
    }
    let cause = match Step::of(earlier) {
        Some(Step::Published { .. } | Step::Replayed { .. }) => WaitCause::Delivery,
        Some(Step::Delivered { outcome: Outcome::Dead, .. }) if matches!(Step::of(later), Some(Step::Buried)) => {
            WaitCause::Delivery
        }
        Some(Step::Delivered { outcome: Outcome::Dead, .. } | Step::Buried) => WaitCause::Replay,
        Some(Step::Delivered { not_before, .. }) => {
            WaitCause::Retry { not_before: not_before.and_then(|time| time.parse::<Timestamp>().ok()) }
        }
        None if before == parent => return None,
        None => WaitCause::Retry { not_before: None },
    };
    let at = place(later).or_else(|| later.text(attribute::EDGE).map(str::to_owned)).unwrap_or_default();
    Some(Item::new(What::Wait(Wait { cause, at, open: false }), Some(parent), start, end))
}

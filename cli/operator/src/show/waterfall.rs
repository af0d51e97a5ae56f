//! A trace on a page: what it was, a line for each span and each wait, with its bar on one axis of time, and what determined
//! how long it took.

use std::collections::BTreeSet;

use anstyle::Style;
use jiff::Timestamp;
use meshctl_api::view::traces::Trace;
use meshctl_model::trace::{Node, Span, SpanStatus, Subscriptions, Tree, Wait, WaitCause, What, assemble, attribute};
use unicode_width::{UnicodeWidthChar, UnicodeWidthStr};

use super::milliseconds;
use super::timeline::Timeline;
use crate::output::{self, BAD, BOLD, CAREFUL, DIM, GOOD, age, styled, tint};

#[cfg(test)]
mod tests;

/// What a page is drawn on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Look {
    /// `None` where nothing is trimmed.
    pub(crate) width: Option<usize>,
    pub(crate) signs: &'static Signs,
}

impl Look {
    pub(crate) fn of_stdout() -> Self {
        let width = output::width().map(usize::from);
        let is_dumb = std::env::var_os("TERM").is_some_and(|term| term == "dumb");
        Self { width, signs: if output::speaks_unicode() && !is_dumb { &UNICODE } else { &ASCII } }
    }
}

/// What lines are made of. Each of a kind is as wide as in the other alphabet.
#[derive(Debug)]
pub(crate) struct Signs {
    /// Before a child that others follow, before the last one, beside what lies below the one and the other.
    branch: &'static str,
    last: &'static str,
    beside: &'static str,
    below_last: &'static str,
    critical: char,
    other: char,
    waiting: char,
    error: &'static str,
    cut: &'static str,
}

pub(crate) const UNICODE: Signs = Signs {
    branch: "├ ",
    last: "└ ",
    beside: "│ ",
    below_last: "  ",
    critical: '█',
    other: '▒',
    waiting: '·',
    error: "× ",
    cut: "…",
};
pub(crate) const ASCII: Signs = Signs {
    branch: "|-",
    last: "`-",
    beside: "| ",
    below_last: "  ",
    critical: '#',
    other: '=',
    waiting: '.',
    error: "x ",
    cut: "~",
};

/// Bars get at least a quarter of a terminal, and at least this much …
const NARROWEST_BAR: usize = 20;
/// … and this much where there is no terminal.
const USUAL_BAR: usize = 40;
/// `125.4s` and its like.
const TOOK: usize = 7;
/// Deeper than this, a number says how deep.
const DEEPEST: usize = 24;
/// What took the longest is told in so many parts.
const CULPRITS: usize = 3;
/// Clocks of one machine differ by less; that is no news.
const SKEW_MS: f64 = 1.0;

/// The whole page.
pub(crate) fn waterfall(trace: &Trace, now: Timestamp, look: Look) -> String {
    let tree = assemble(trace.spans.clone(), &Subscriptions::new());
    let mut page = summary(trace, &tree, now);
    page.push('\n');
    page.push_str(&Picture::of(&tree, look).draw());
    page
}

fn summary(trace: &Trace, tree: &Tree, now: Timestamp) -> String {
    let mut services: Vec<&str> = Vec::new();
    tree.spans().for_each(|span| {
        if !services.contains(&span.service.as_str()) {
            services.push(&span.service);
        }
    });
    let failed = tree.spans().filter(|span| span.status == SpanStatus::Error).count();
    let failed = if failed > 0 { format!(", {failed} of them failed") } else { String::new() };
    let (whole, latency) = (tree.duration_ms, tree.latency_ms().unwrap_or_default());
    let caller = if whole > latency { format!("; the caller waited {}", took(latency)) } else { String::new() };
    let mut facts = vec![
        ("began", format!("{} ({} ago)", tree.start_at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"), age(tree.start_at, now))),
        ("took", format!("{}{caller}", took(whole))),
        ("spans", format!("{}{failed}, of {}", tree.spans().count(), one_line(&services.join(", ")))),
    ];
    if !trace.joined.is_empty() {
        facts.push(("with", format!("trace {}", one_line(&trace.joined.join(", ")))));
    }
    facts.push(("complete", if trace.complete { styled(GOOD, "yes") } else { styled(CAREFUL, "no") }));
    facts.extend(trace.gaps.iter().map(|gap| ("", one_line(gap))));
    facts.extend(skews(tree).map(|text| ("clocks", one_line(&text))));
    let culprits = culprits(tree);
    facts
        .extend(culprits.iter().enumerate().map(|(at, text)| (if at == 0 { "time went" } else { "" }, one_line(text))));
    let mut page = format!("{}\n", styled(BOLD, format_args!("trace/{}", one_line(&trace.trace_id))));
    for (name, value) in facts {
        let name = if name.is_empty() { String::new() } else { format!("{name}:") };
        page.push_str(&format!("  {name:<10} {value}\n"));
    }
    page
}

/// Which services' clocks were behind, and how far.
fn skews(tree: &Tree) -> Option<String> {
    let mut behind: Vec<(&str, f64)> = Vec::new();
    for (span, node) in tree.nodes.iter().filter_map(|node| Some((node.span()?, node))) {
        if node.shifted_ms > SKEW_MS && !behind.iter().any(|(service, _)| *service == span.service) {
            behind.push((&span.service, node.shifted_ms));
        }
    }
    let parts: Vec<String> = behind.iter().map(|(service, ms)| format!("{service} is {} behind", took(*ms))).collect();
    (!parts.is_empty()).then(|| format!("{}; put right in what follows", parts.join(", ")))
}

/// The longest parts of the critical path.
fn culprits(tree: &Tree) -> Vec<String> {
    let mut path: Vec<(f64, &Node)> = tree.nodes.iter().filter_map(|node| Some((node.critical_ms?, node))).collect();
    path.sort_by(|left, right| right.0.total_cmp(&left.0));
    let share = |ms: f64| (ms / tree.duration_ms * 100.0).round();
    path.iter()
        .take(CULPRITS)
        .filter(|(ms, _)| tree.duration_ms > 0.0 && share(*ms) >= 1.0)
        .map(|(ms, node)| format!("{} ({}%) {}", took(*ms), share(*ms), what(node)))
        .collect()
}

fn what(node: &Node) -> String {
    match &node.what {
        What::Span(span) => format!("in {} {}", span.service, span.operation),
        What::Unknown { span_id, .. } => format!("in what span {span_id} did"),
        What::Wait(Wait { cause, at, .. }) => match cause {
            WaitCause::Delivery => format!("until {at} took it"),
            WaitCause::Retry { .. } => format!("until {at} was retried"),
            WaitCause::Replay => format!("until {at} was replayed"),
        },
    }
}

/// Milliseconds as people read them, also where it took minutes.
fn took(ms: f64) -> String {
    const MINUTE: f64 = 60_000.0;
    let long = |unit: f64, name: &str, small: f64, small_name: &str| {
        format!("{}{name}{}{small_name}", (ms / unit).floor(), ((ms % unit) / small).floor())
    };
    match ms {
        ms if ms < MINUTE => milliseconds(ms),
        ms if ms < 60.0 * MINUTE => long(MINUTE, "m", 1000.0, "s"),
        ms if ms < 48.0 * 60.0 * MINUTE => long(60.0 * MINUTE, "h", MINUTE, "m"),
        _ => long(24.0 * 60.0 * MINUTE, "d", 60.0 * MINUTE, "h"),
    }
}

/// A piece of a line in one style.
type Piece = (Style, String);

struct Picture<'a> {
    tree: &'a Tree,
    look: Look,
    timeline: Timeline,
    /// What stands before each node's label: the lines of the tree.
    stems: Vec<String>,
    label: usize,
    bar: usize,
}

impl<'a> Picture<'a> {
    fn of(tree: &'a Tree, look: Look) -> Self {
        let stems = stems(tree, look.signs);
        let needed = tree.nodes.iter().zip(&stems).map(|(node, stem)| stem.width() + width(&label(node, look.signs)));
        let needed = needed.max().unwrap_or(0);
        let (label, bar) = match look.width {
            None => (needed, USUAL_BAR),
            Some(total) => {
                let rest = total.saturating_sub(TOOK + 2);
                let label = needed.min(rest.saturating_sub(NARROWEST_BAR.max(total / 4)));
                (label, rest - label)
            }
        };
        Self { tree, look, timeline: Timeline::of(tree), stems, label, bar }
    }

    fn draw(&self) -> String {
        let reasons = reasons(self.tree);
        let mut page = self.ruler();
        for (at, node) in self.tree.nodes.iter().enumerate() {
            page.push_str(self.line(at, node).trim_end());
            page.push('\n');
            if let Some(reason) = &reasons[at] {
                page.push_str(&self.reason(at, reason));
            }
        }
        page.push_str(&self.legend());
        page
    }

    fn ruler(&self) -> String {
        let total = took(self.tree.duration_ms);
        let room = self.bar.saturating_sub(1);
        styled(DIM, format_args!("{:<1$} {2:>3$} 0{4:>room$}", "SPAN", self.label, "TOOK", TOOK, total)) + "\n"
    }

    fn line(&self, at: usize, node: &Node) -> String {
        let stem = &self.stems[at];
        let room = self.label.saturating_sub(stem.width());
        let pieces = fitted(label(node, self.look.signs), room, self.look.signs.cut);
        let gap = " ".repeat(room.saturating_sub(width(&pieces)));
        let text: String = pieces.iter().map(|(style, text)| styled(*style, text)).collect();
        let duration = match &node.what {
            // The words say it.
            What::Wait(_) => String::new(),
            What::Span(_) | What::Unknown { .. } => took(node.duration_ms),
        };
        format!("{}{text}{gap} {duration:>TOOK$} {}", styled(DIM, stem), self.bar(node))
    }

    fn bar(&self, node: &Node) -> String {
        let (first, last) = self.timeline.columns(node.start_ms, node.start_ms + node.duration_ms, self.bar);
        let signs = self.look.signs;
        let is_critical = node.critical_ms.is_some();
        let (sign, style) = match &node.what {
            What::Wait(_) | What::Unknown { .. } if is_critical => (signs.waiting, BOLD),
            What::Wait(_) | What::Unknown { .. } => (signs.waiting, DIM),
            What::Span(span) => {
                let style = if span.status == SpanStatus::Error { BAD } else { tint(&span.service) };
                (if is_critical { signs.critical } else { signs.other }, style)
            }
        };
        format!("{}{}", " ".repeat(first), styled(style, sign.to_string().repeat(last - first)))
    }

    /// Why a span failed, below it.
    fn reason(&self, at: usize, reason: &str) -> String {
        let signs = self.look.signs;
        let has_children = self.tree.nodes.get(at + 1).is_some_and(|next| next.parent == Some(at));
        let own = self.stems[at].replace(signs.branch, signs.beside).replace(signs.last, signs.below_last);
        let stem = own + if has_children { signs.beside } else { signs.below_last };
        let text = match self.look.width {
            Some(total) => shortened(reason, total.saturating_sub(stem.width() + signs.error.width()), signs.cut, 1.0),
            None => reason.to_owned(),
        };
        format!("{}{}\n", styled(DIM, stem), styled(BAD, format_args!("{}{text}", signs.error)))
    }

    fn legend(&self) -> String {
        let Signs { critical, other, waiting, .. } = self.look.signs;
        let uneven = if self.timeline.is_uneven() { ", drawn shorter than it was" } else { "" };
        let legend = format!("{critical} critical path   {other} beside it   {waiting} waiting{uneven}");
        format!("\n{}\n", styled(DIM, legend))
    }
}

/// The lines that lead to each node.
fn stems(tree: &Tree, signs: &Signs) -> Vec<String> {
    let mut is_last = vec![true; tree.nodes.len()];
    let mut seen = BTreeSet::new();
    for (at, node) in tree.nodes.iter().enumerate().rev() {
        is_last[at] = node.parent.is_none_or(|parent| seen.insert(parent));
    }
    let stem = |at: usize| {
        let node = &tree.nodes[at];
        let Some(mut above) = node.parent else { return String::new() };
        if node.depth > DEEPEST {
            return format!("{}{} ", signs.last, node.depth);
        }
        let mut parts = vec![if is_last[at] { signs.last } else { signs.branch }];
        while let Some(next) = tree.nodes[above].parent {
            parts.push(if is_last[above] { signs.below_last } else { signs.beside });
            above = next;
        }
        parts.iter().rev().copied().collect()
    };
    (0..tree.nodes.len()).map(stem).collect()
}

/// What is said of a node. Of several pieces the longest gives way.
fn label(node: &Node, signs: &Signs) -> Vec<Piece> {
    match &node.what {
        What::Span(span) => span_label(span, signs),
        What::Unknown { span_id, .. } => {
            vec![(CAREFUL, "unknown".into()), (DIM, format!(" (span {} never received)", one_line(span_id)))]
        }
        What::Wait(wait) => vec![(DIM, waiting(wait, node.duration_ms))],
    }
}

fn waiting(wait: &Wait, ms: f64) -> String {
    let Wait { cause, at, open } = wait;
    let (lasted, at) = (took(ms), one_line(at));
    match (cause, open) {
        (WaitCause::Delivery, false) => format!("waiting {lasted} for delivery"),
        (WaitCause::Delivery, true) => format!("waiting for {at} to take it"),
        (WaitCause::Retry { .. }, false) => format!("waiting {lasted} for the retry"),
        (WaitCause::Retry { not_before: Some(time) }, true) => {
            // What is still to come is told to the second.
            let time = time.round(jiff::Unit::Second).unwrap_or(*time);
            format!("waiting for the retry at {}", time.strftime("%H:%M:%SZ"))
        }
        (WaitCause::Retry { not_before: None }, true) => "waiting for the retry".to_owned(),
        (WaitCause::Replay, false) => format!("dead for {lasted}, until replayed"),
        (WaitCause::Replay, true) => "dead".to_owned(),
    }
}

fn span_label(span: &Span, signs: &Signs) -> Vec<Piece> {
    let failed = span.status == SpanStatus::Error;
    let operation = one_line(&span.operation);
    let mut pieces = Vec::new();
    if failed {
        pieces.push((BAD, signs.error.to_owned()));
    }
    pieces.push((tint(&span.service), one_line(&span.service)));
    let attempt = span.attributes.get(attribute::ATTEMPT).and_then(serde_json::Value::as_u64);
    let outcome = span.text(attribute::OUTCOME);
    // That something was tried once, and went well, is no news.
    let attempt =
        attempt.filter(|number| *number > 1 || failed || outcome.is_some_and(|outcome| outcome != "processed"));
    pieces.push((if failed { BAD } else { Style::new() }, format!(" {operation}")));
    if let Some(number) = attempt {
        pieces.push((DIM, format!(" attempt {number}")));
    }
    if let Some(outcome) = outcome {
        let style = match outcome {
            "processed" => GOOD,
            "retried" => CAREFUL,
            "dead" => BAD,
            _ => DIM,
        };
        pieces.push((style, format!(" {}", one_line(outcome))));
    }
    if span.attributes.get(attribute::FALLBACK) == Some(&true.into()) {
        pieces.push((CAREFUL, " fallback".to_owned()));
    }
    pieces
}

/// Why each span failed that did, where none of its children says the same.
fn reasons(tree: &Tree) -> Vec<Option<String>> {
    let all: Vec<Option<String>> = tree.nodes.iter().map(|node| node.span().and_then(reason)).collect();
    let mut shown = all.clone();
    for (at, node) in tree.nodes.iter().enumerate() {
        if let Some(parent) = node.parent.filter(|parent| all[at].is_some() && all[*parent] == all[at]) {
            shown[parent] = None;
        }
    }
    shown
}

fn reason(span: &Span) -> Option<String> {
    if span.status != SpanStatus::Error {
        return None;
    }
    let status = || span.attributes.get(attribute::STATUS).map(|status| format!("answered {status}"));
    let cause = span.text(attribute::ERROR).map(str::to_owned);
    let text = span.message.clone().filter(|text| !text.is_empty()).or(cause).or_else(status);
    Some(one_line(&text.unwrap_or_else(|| "failed".to_owned())))
}

fn width(pieces: &[Piece]) -> usize {
    pieces.iter().map(|(_, text)| text.width()).sum()
}

/// The pieces within `room`: the longest of them is cut in the middle, because both ends tell most.
fn fitted(mut pieces: Vec<Piece>, room: usize, cut: &str) -> Vec<Piece> {
    while width(&pieces) > room {
        let excess = width(&pieces) - room;
        let Some((_, longest)) = pieces.iter_mut().max_by_key(|(_, text)| text.width()) else { break };
        let left = longest.width().saturating_sub(excess);
        let shorter = shortened(longest, left, cut, 0.4);
        if shorter.width() >= longest.width() {
            break;
        }
        *longest = shorter;
    }
    pieces
}

/// `text` in `room` columns, with `cut` where something was left out: after this share of what is left.
fn shortened(text: &str, room: usize, cut: &str, head: f64) -> String {
    if text.width() <= room {
        return text.to_owned();
    }
    let room = room.saturating_sub(cut.width());
    let before = (room as f64 * head).ceil() as usize;
    let take = |signs: &mut dyn Iterator<Item = char>, room: usize| {
        let mut used = 0;
        signs
            .take_while(|sign| {
                used += sign.width().unwrap_or(0);
                used <= room
            })
            .collect::<String>()
    };
    let start = take(&mut text.chars(), before);
    let end = take(&mut text.chars().rev(), room - before);
    format!("{start}{cut}{}", end.chars().rev().collect::<String>())
}

/// No service can move the operator's cursor.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

//! From time to columns. Where nearly all of it was spent waiting, waits are drawn shorter than they were, so that what happened
//! between them can be seen.

use meshctl_model::trace::{Tree, What};

/// Above this share of the whole, time in which nothing ran is drawn shorter …
const MOSTLY_IDLE: f64 = 0.6;
/// … so that it takes this share of the room.
const IDLE_ROOM: f64 = 0.35;

/// Where each moment of a tree is drawn.
#[derive(Debug)]
pub(crate) struct Timeline {
    total: f64,
    /// When something ran: apart from each other, by start.
    busy: Vec<(f64, f64)>,
    /// How much room a millisecond takes in which something ran, and in which nothing did.
    scale: (f64, f64),
}

impl Timeline {
    pub(crate) fn of(tree: &Tree) -> Self {
        let total = tree.duration_ms;
        let mut ran: Vec<(f64, f64)> = tree
            .nodes
            .iter()
            .filter(|node| matches!(node.what, What::Span(_)))
            .map(|node| (node.start_ms, node.start_ms + node.duration_ms))
            .collect();
        ran.sort_by(|left, right| left.0.total_cmp(&right.0));
        let mut busy: Vec<(f64, f64)> = Vec::new();
        for (start, end) in ran {
            match busy.last_mut() {
                Some(last) if start <= last.1 => last.1 = last.1.max(end),
                _ => busy.push((start, end)),
            }
        }
        let active: f64 = busy.iter().map(|(start, end)| end - start).sum();
        let idle = (total - active).max(0.0);
        let scale = if total <= 0.0 {
            (0.0, 0.0)
        } else if active > 0.0 && idle / total > MOSTLY_IDLE {
            ((1.0 - IDLE_ROOM) / active, IDLE_ROOM / idle)
        } else {
            (1.0 / total, 1.0 / total)
        };
        Self { total, busy, scale }
    }

    /// Whether waits are drawn shorter than they were.
    pub(crate) fn is_uneven(&self) -> bool {
        self.scale.0 > self.scale.1
    }

    /// The columns of `width` that time from `start` to `end` takes: at least one.
    pub(crate) fn columns(&self, start: f64, end: f64, width: usize) -> (usize, usize) {
        let column = |ms: f64| self.place(ms) * width as f64;
        let first = (column(start) as usize).min(width.saturating_sub(1));
        let last = (column(end).round() as usize).clamp(first + 1, width.max(first + 1));
        (first, last)
    }

    /// From 0 to 1.
    fn place(&self, ms: f64) -> f64 {
        let ms = ms.clamp(0.0, self.total);
        let earlier = &self.busy[..self.busy.partition_point(|(start, _)| *start < ms)];
        let active: f64 = earlier.iter().map(|(start, end)| end.min(ms) - start).sum();
        active * self.scale.0 + (ms - active) * self.scale.1
    }
}

//! What took the time: the chain of spans and waits that determined the end, and what each span did itself.

use super::What;
use super::assemble::Item;

/// Clocks of two processes on one machine agree only so far: what ends this much after another began may still be its cause.
const SLACK: i128 = 50_000;

/// Which items are on the critical path, each with the time in which nothing below it was: these add up to the whole. `order`
/// has parents first.
///
/// From the end of everything backwards: of the children of an item on the path, the one that ended last is on it, then the
/// one that ended last before that one began, and so on.
pub(super) fn critical(items: &[Item], order: &[usize]) -> Vec<Option<i128>> {
    let counts = |at: usize| !matches!(&items[at].what, What::Wait(wait) if wait.open);
    // When the last thing ended that followed from an item.
    let mut ends: Vec<i128> = items.iter().map(|item| item.end).collect();
    for &at in order.iter().rev() {
        if let Some(parent) = items[at].parent.filter(|_| counts(at)) {
            ends[parent] = ends[parent].max(ends[at]);
        }
    }
    let mut path = vec![None; items.len()];
    let mut open: Vec<(usize, i128)> = order.first().map(|root| (*root, ends[*root])).into_iter().collect();
    while let Some((at, until)) = open.pop() {
        // An item may have mattered by its own end only, whatever followed from it later.
        let both = |child: usize| [(ends[child], child), (items[child].end, child)];
        let mut candidates: Vec<(i128, usize)> =
            items[at].children.iter().copied().filter(|child| counts(*child)).flat_map(both).collect();
        candidates.sort_unstable_by(|left, right| right.cmp(left));
        let (mut cursor, mut own) = (until, 0);
        for (end, child) in candidates {
            if end <= cursor.saturating_add(SLACK) && path[child].is_none() {
                path[child] = Some(0);
                open.push((child, end));
                own += (cursor - end).max(0);
                cursor = cursor.min(items[child].start);
            }
        }
        path[at] = Some(own + (cursor - items[at].start).max(0));
    }
    path
}

/// The time of each item in which no child of it ran.
pub(super) fn self_times(items: &[Item]) -> Vec<i128> {
    let own = |item: &Item| {
        let spans = item.children.iter().map(|at| &items[*at]).filter(|child| !matches!(child.what, What::Wait(_)));
        let mut parts: Vec<(i128, i128)> =
            spans.map(|child| (child.start.max(item.start), child.end.min(item.end))).collect();
        parts.sort_unstable();
        let (mut covered, mut reached) = (0, item.start);
        for (start, end) in parts {
            covered += (end - start.max(reached)).max(0);
            reached = reached.max(end);
        }
        item.end - item.start - covered
    };
    items.iter().map(own).collect()
}

//! Directed graphs of services: components, circles. Nothing here recurses, because a chain may be thousands long.

use std::collections::{HashSet, VecDeque};

/// Nodes are numbers below `edges.len()`; each edge carries what it is.
pub(super) struct Graph<E> {
    pub(super) edges: Vec<Vec<(usize, E)>>,
}

impl<E> Graph<E> {
    pub(super) fn new(nodes: usize) -> Self {
        Self { edges: (0..nodes).map(|_| Vec::new()).collect() }
    }

    /// The strongly connected component of every node (Tarjan). An edge leads to a component with the same or a smaller
    /// number, so descending numbers are an order in which callers come before whom they call.
    pub(super) fn components(&self) -> Vec<usize> {
        const NEW: usize = usize::MAX;
        let nodes = self.edges.len();
        let (mut component, mut index, mut low) = (vec![NEW; nodes], vec![NEW; nodes], vec![0; nodes]);
        let (mut stack, mut next, mut components) = (Vec::new(), 0, 0);
        for root in 0..nodes {
            if index[root] != NEW {
                continue;
            }
            let mut walk = vec![(root, 0)];
            while let Some((node, edge)) = walk.pop() {
                if edge == 0 {
                    index[node] = next;
                    low[node] = next;
                    next += 1;
                    stack.push(node);
                }
                if let Some((to, _)) = self.edges[node].get(edge) {
                    walk.push((node, edge + 1));
                    if index[*to] == NEW {
                        walk.push((*to, 0));
                    } else if component[*to] == NEW {
                        low[node] = low[node].min(index[*to]);
                    }
                    continue;
                }
                if let Some((parent, _)) = walk.last() {
                    low[*parent] = low[*parent].min(low[node]);
                }
                if low[node] == index[node] {
                    while let Some(member) = stack.pop() {
                        component[member] = components;
                        if member == node {
                            break;
                        }
                    }
                    components += 1;
                }
            }
        }
        component
    }

    /// Circles through edges that `wanted` names: for each such edge that no circle found before contains, the shortest
    /// one, as the nodes from the edge's start; at most `most`.
    pub(super) fn circles(&self, wanted: impl Fn(&E) -> bool, most: usize) -> Vec<Vec<usize>> {
        let component = self.components();
        let mut circles: Vec<Vec<usize>> = Vec::new();
        let mut covered = HashSet::new();
        for (from, edges) in self.edges.iter().enumerate() {
            for (to, edge) in edges {
                if circles.len() == most {
                    return circles;
                }
                if component[from] != component[*to] || !wanted(edge) || covered.contains(&(from, *to)) {
                    continue;
                }
                let mut circle = vec![from];
                circle.extend(self.path(*to, from, &component));
                circle.pop();
                covered.extend((0..circle.len()).map(|at| (circle[at], circle[(at + 1) % circle.len()])));
                circles.push(circle);
            }
        }
        circles
    }

    /// The shortest path inside one component, both ends included.
    fn path(&self, from: usize, to: usize, component: &[usize]) -> Vec<usize> {
        const NEW: usize = usize::MAX;
        let mut before = vec![NEW; self.edges.len()];
        before[from] = from;
        let mut queue = VecDeque::from([from]);
        while let Some(node) = queue.pop_front().filter(|node| *node != to) {
            for (next, _) in &self.edges[node] {
                if component[*next] == component[to] && before[*next] == NEW {
                    before[*next] = node;
                    queue.push_back(*next);
                }
            }
        }
        let mut path = vec![to];
        let mut at = to;
        while at != from {
            at = before[at];
            path.push(at);
        }
        path.reverse();
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn graph(nodes: usize, edges: &[(usize, usize)]) -> Graph<()> {
        let mut graph = Graph::new(nodes);
        for (from, to) in edges {
            graph.edges[*from].push((*to, ()));
        }
        graph
    }

    #[test]
    fn components_are_found_in_an_order_of_calls() {
        let graph = graph(6, &[(0, 1), (1, 2), (2, 1), (2, 3), (4, 4)]);
        let component = graph.components();
        assert_eq!(component[1], component[2]);
        assert!(component[0] > component[1] && component[1] > component[3]);
        assert_eq!(component.iter().collect::<std::collections::BTreeSet<_>>().len(), 5);
    }

    #[test]
    fn circles_are_shortest_and_named_once() {
        let graph = graph(6, &[(0, 1), (1, 2), (2, 0), (2, 3), (3, 2), (4, 4), (4, 5)]);
        assert_eq!(graph.circles(|()| true, 9), [vec![0, 1, 2], vec![2, 3], vec![4]]);
        assert_eq!(graph.circles(|()| true, 1), [vec![0, 1, 2]]);
        assert!(graph.circles(|()| false, 9).is_empty());
    }

    #[test]
    fn a_chain_may_be_long() {
        let edges: Vec<(usize, usize)> = (0..100_000).map(|at| (at, (at + 1) % 100_000)).collect();
        assert_eq!(graph(100_000, &edges).circles(|()| true, 9).len(), 1);
    }
}

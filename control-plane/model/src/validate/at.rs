//! A position in the tree that follows the typed topology: down a key or an index at a time, and to the nearest thing
//! that is there where the text says nothing.

use crate::load::structure::Gaps;
use crate::load::tree::{Data, NodeId, Place, Tree};

#[derive(Clone, Copy)]
pub(super) struct At<'t> {
    tree: &'t Tree,
    gaps: &'t Gaps,
    node: NodeId,
    key: Option<Place>,
}

impl<'t> At<'t> {
    pub(super) fn new(tree: &'t Tree, gaps: &'t Gaps, root: NodeId) -> Self {
        Self { tree, gaps, node: root, key: None }
    }

    /// The value of `key`; here, if there is none.
    pub(super) fn get(self, key: &str) -> Self {
        match &self.tree.node(self.node).data {
            Data::Map(map) => match map.get(key) {
                Some(entry) => Self { node: entry.value, key: Some(entry.place), ..self },
                None => self,
            },
            _ => self,
        }
    }

    /// The `index`th item of those that fitted; here, if there is none.
    pub(super) fn nth(self, index: usize) -> Self {
        match &self.tree.node(self.node).data {
            Data::List(items) if self.incomplete() => {
                let mut fitting = items.iter().filter(|item| !self.gaps.dropped.contains(item));
                fitting.nth(index).map_or(self, |item| Self { node: *item, key: None, ..self })
            }
            Data::List(items) => items.get(index).map_or(self, |item| Self { node: *item, key: None, ..self }),
            _ => self,
        }
    }

    pub(super) fn has(self, key: &str) -> bool {
        matches!(&self.tree.node(self.node).data, Data::Map(map) if map.get(key).is_some())
    }

    /// Where the value stands.
    pub(super) fn place(self) -> Place {
        self.tree.node(self.node).place
    }

    /// Where the key stands that leads here; the value, if none does.
    pub(super) fn key(self) -> Place {
        self.key.unwrap_or_else(|| self.place())
    }

    /// Whether something here was left out, so that its absence means nothing.
    pub(super) fn incomplete(self) -> bool {
        self.gaps.incomplete.contains(&self.node) || self.gaps.dropped.contains(&self.node)
    }
}

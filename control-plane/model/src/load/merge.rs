//! Several documents as one topology: maps are united, routes follow each other, and nothing may be said twice with
//! different words.

use super::report::{Report, quoted, words};
use super::tree::{Data, Entry, Map, NodeId, Place, Tree};
use crate::finding::{CONFLICT, WRONG_TYPE};

/// The documents as one map, if each of them is one. `empty` is where there is nothing at all.
pub(crate) fn merge(documents: &[NodeId], tree: &mut Tree, empty: Place, report: &mut Report<'_>) -> Option<NodeId> {
    let mut parts: Vec<Part> = Vec::new();
    let mut complete = true;
    for document in documents {
        let node = tree.node(*document);
        match &node.data {
            Data::Map(map) => parts.push(Part { place: node.place, entries: map.entries.to_vec() }),
            // Nothing but comments.
            Data::Scalar(scalar) if scalar.text.is_empty() => {}
            _ => {
                complete = false;
                report.add(WRONG_TYPE, node.place, || {
                    words("a topology is a map", "write keys such as `services:` and `routes:` at the left margin")
                });
            }
        }
    }
    if !complete {
        return None;
    }
    let mut parts = parts.into_iter();
    let first = parts.next().unwrap_or(Part { place: empty, entries: Vec::new() });
    let mut merging = Merging { tree, report };
    let all = parts.fold(first, |all, part| merging.unite(all, part, Level::Top));
    Some(tree.push(all.place, Data::Map(Map::new(all.entries))))
}

struct Part {
    place: Place,
    entries: Vec<Entry>,
}

#[derive(Clone, Copy, PartialEq)]
enum Level {
    Top,
    /// The map of services: a service stands in one place.
    Services,
    Below,
}

struct Merging<'a, 's> {
    tree: &'a mut Tree,
    report: &'a mut Report<'s>,
}

impl Merging<'_, '_> {
    fn unite(&mut self, into: Part, from: Part, level: Level) -> Part {
        // What is looked up stays as it was before; a repetition inside one document is a finding already.
        let known = Map::new(into.entries.clone());
        let mut positions: std::collections::HashMap<Box<str>, usize> = std::collections::HashMap::new();
        for (at, entry) in into.entries.iter().enumerate() {
            positions.entry(entry.key.clone()).or_insert(at);
        }
        let mut entries = into.entries;
        for entry in from.entries {
            match known.get(&entry.key) {
                None => entries.push(entry),
                Some(first) => {
                    let value = self.both(first, &entry, level);
                    entries[positions[&entry.key]].value = value;
                }
            }
        }
        Part { place: into.place, entries }
    }

    /// The value of a key that stands in two documents.
    fn both(&mut self, first: &Entry, second: &Entry, level: Level) -> NodeId {
        let inside = if level == Level::Top && &*first.key == "services" { Level::Services } else { Level::Below };
        let (a, b) = (self.tree.node(first.value), self.tree.node(second.value));
        match (&a.data, &b.data) {
            (Data::Map(one), Data::Map(other)) if level != Level::Services => {
                let (place, one, other) = (a.place, one.entries.to_vec(), other.entries.to_vec());
                let (into, from) = (Part { place, entries: one }, Part { place, entries: other });
                let all = self.unite(into, from, inside);
                self.tree.push(all.place, Data::Map(Map::new(all.entries)))
            }
            (Data::List(one), Data::List(other)) if level == Level::Top && &*first.key == "routes" => {
                let (place, all) = (a.place, one.iter().chain(other).copied().collect());
                self.tree.push(place, Data::List(all))
            }
            _ if level != Level::Services && self.tree.same(first.value, second.value) => first.value,
            _ => {
                let there = self.report.locate(first.place);
                self.report.add(CONFLICT, second.place, || {
                    let what = if level == Level::Services { "the service " } else { "" };
                    words(
                        format!("{what}{} is described twice, first at {there}", quoted(&second.key)),
                        "keep one of them: several files are one topology",
                    )
                });
                first.value
            }
        }
    }
}

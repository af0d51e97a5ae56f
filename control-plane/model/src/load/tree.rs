//! What a YAML text says, with the place of every key and value. Aliases share nodes, so the tree never grows beyond its
//! text; [`Weight`] is what it would be if they were written out.

use std::collections::HashMap;

/// Where something stands. Lines and columns count from 1, columns in characters; the end is exclusive.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Place {
    pub(crate) file: u32,
    pub(crate) line: u32,
    pub(crate) column: u32,
    pub(crate) end_line: u32,
    pub(crate) end_column: u32,
}

pub(crate) type NodeId = u32;

#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) place: Place,
    pub(crate) data: Data,
    pub(crate) weight: Weight,
}

/// The size of a node with every alias written out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Weight {
    pub(crate) nodes: u64,
    pub(crate) bytes: u64,
    pub(crate) height: u32,
}

#[derive(Debug)]
pub(crate) enum Data {
    Scalar(Scalar),
    List(Box<[NodeId]>),
    Map(Map),
}

/// A value without parts. The text is kept as it was written: `1.10` in an environment variable is not 1.1.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Scalar {
    pub(crate) text: Box<str>,
    pub(crate) kind: Kind,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Kind {
    Null,
    Bool(bool),
    Int(i64),
    Float(f64),
    Text,
    /// A finding has been made about it already.
    Broken,
}

impl Kind {
    /// The type of a plain scalar by the core schema of YAML 1.2.
    pub(crate) fn of_plain(text: &str) -> Self {
        match text {
            "" | "~" | "null" | "Null" | "NULL" => return Self::Null,
            "true" | "True" | "TRUE" => return Self::Bool(true),
            "false" | "False" | "FALSE" => return Self::Bool(false),
            ".nan" | ".NaN" | ".NAN" => return Self::Float(f64::NAN),
            _ => {}
        }
        if let Some(hex) = text.strip_prefix("0x") {
            return i64::from_str_radix(hex, 16).map_or(Self::Text, Self::Int);
        }
        if let Some(octal) = text.strip_prefix("0o") {
            return i64::from_str_radix(octal, 8).map_or(Self::Text, Self::Int);
        }
        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
        if matches!(digits, ".inf" | ".Inf" | ".INF") {
            return Self::Float(if text.starts_with('-') { f64::NEG_INFINITY } else { f64::INFINITY });
        }
        // Rust also reads `inf`, `nan` and `infinity` as numbers; YAML does not.
        let numeric = digits.starts_with(|c: char| c.is_ascii_digit() || c == '.')
            && digits.contains(|c: char| c.is_ascii_digit())
            && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'e' | b'E' | b'+' | b'-'));
        if !numeric {
            return Self::Text;
        }
        text.parse().map(Self::Int).or_else(|_| text.parse().map(Self::Float)).unwrap_or(Self::Text)
    }
}

#[derive(Debug)]
pub(crate) struct Map {
    pub(crate) entries: Box<[Entry]>,
    /// Indexes of `entries`, by key.
    order: Box<[u32]>,
}

#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) key: Box<str>,
    pub(crate) place: Place,
    pub(crate) value: NodeId,
}

impl Map {
    pub(crate) fn new(entries: Vec<Entry>) -> Self {
        let mut order: Vec<u32> = (0..entries.len() as u32).collect();
        order.sort_by(|a, b| entries[*a as usize].key.cmp(&entries[*b as usize].key));
        Self { entries: entries.into(), order: order.into() }
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Entry> {
        let found = self.order.binary_search_by(|at| (*self.entries[*at as usize].key).cmp(key)).ok()?;
        Some(&self.entries[self.order[found] as usize])
    }

    /// Entries whose key stood before: the first one and the repetition.
    pub(crate) fn repetitions(&self) -> impl Iterator<Item = (&Entry, &Entry)> {
        self.order.windows(2).filter_map(|pair| {
            let (first, second) = (&self.entries[pair[0] as usize], &self.entries[pair[1] as usize]);
            (first.key == second.key).then_some((first, second))
        })
    }
}

#[derive(Debug, Default)]
pub(crate) struct Tree {
    nodes: Vec<Node>,
    /// Values that came out of variables, with the text that stands in the file instead: what may be shown of them.
    filled: HashMap<Box<str>, Box<str>>,
}

impl Tree {
    pub(crate) fn push(&mut self, place: Place, data: Data) -> NodeId {
        let mut weight = Weight { nodes: 1, bytes: 0, height: 0 };
        let mut add = |id: &NodeId| {
            let part = self.nodes[*id as usize].weight;
            weight.nodes = weight.nodes.saturating_add(part.nodes);
            weight.bytes = weight.bytes.saturating_add(part.bytes);
            weight.height = weight.height.max(part.height + 1);
        };
        match &data {
            Data::Scalar(scalar) => weight.bytes = scalar.text.len() as u64,
            Data::List(items) => items.iter().for_each(&mut add),
            Data::Map(map) => map.entries.iter().for_each(|entry| add(&entry.value)),
        }
        self.nodes.push(Node { place, data, weight });
        self.nodes.len() as NodeId - 1
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id as usize]
    }

    pub(crate) fn remember_filled(&mut self, value: &str, written: &str) {
        self.filled.insert(value.into(), written.into());
    }

    /// What may be shown in place of `value`: itself, or the `${…}` that it came from, because it may be a secret.
    pub(crate) fn showable<'a>(&'a self, value: &'a str) -> &'a str {
        self.filled.get(value).map_or(value, |written| written)
    }

    /// Whether two nodes say the same, wherever they stand.
    pub(crate) fn same(&self, a: NodeId, b: NodeId) -> bool {
        match (&self.node(a).data, &self.node(b).data) {
            (Data::Scalar(a), Data::Scalar(b)) => a == b,
            (Data::List(a), Data::List(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| self.same(*a, *b)),
            (Data::Map(a), Data::Map(b)) => {
                a.entries.len() == b.entries.len()
                    && a.entries.iter().all(|entry| b.get(&entry.key).is_some_and(|b| self.same(entry.value, b.value)))
            }
            _ => false,
        }
    }
}

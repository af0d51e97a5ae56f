//! The structural pass: a tree against the shape of the language. What fits becomes the JSON of a [`Topology`]; what does
//! not is reported and left out, so that the meaning of the rest can still be checked.
//!
//! [`Topology`]: crate::topology::Topology

use std::collections::HashSet;
use std::ops::RangeInclusive;

use serde_json::Value;

use super::later::{later, ours};
use super::report::{Report, Words, one_of, quoted, words};
use super::shape::{LANGUAGE, Quantity, Record, Shape};
use super::suggest::{nearest, respelled};
use super::tree::{Data, Entry, Kind, Map, NodeId, Scalar, Tree};
use crate::finding::{
    BAD_QUANTITY, MISSING_KEY, NOT_YET, ONE_CHOICE, OUT_OF_RANGE, UNKNOWN_KEY, UNKNOWN_VALUE, WRONG_TYPE,
};

/// What the structural pass leaves out.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    /// Values that did not fit.
    pub(crate) dropped: HashSet<NodeId>,
    /// Maps and lists of which a part is missing.
    pub(crate) incomplete: HashSet<NodeId>,
}

/// The JSON of what fits of `root`.
pub(crate) fn check(root: NodeId, tree: &Tree, report: &mut Report<'_>) -> (Value, Gaps) {
    let mut checker = Checker { tree, report, gaps: Gaps::default(), path: Vec::new() };
    let value = checker.value(root, &LANGUAGE.root).unwrap_or_else(|| Value::Object(serde_json::Map::new()));
    (value, checker.gaps)
}

struct Checker<'a, 's> {
    tree: &'a Tree,
    report: &'a mut Report<'s>,
    gaps: Gaps,
    /// From the root: keys as in [`super::shape::Language::keys`], and as they stand in the file.
    path: Vec<(&'static str, &'a str)>,
}

impl<'a> Checker<'a, '_> {
    fn value(&mut self, id: NodeId, shape: &'static Shape) -> Option<Value> {
        let fitting = self.fitting(id, shape);
        if fitting.is_none() {
            self.gaps.dropped.insert(id);
        }
        fitting
    }

    fn fitting(&mut self, id: NodeId, shape: &'static Shape) -> Option<Value> {
        let tree = self.tree;
        match (&tree.node(id).data, shape) {
            (Data::Scalar(Scalar { kind: Kind::Broken, .. }), _) => None,
            (_, Shape::Any) => Some(self.anything(id)),
            (Data::Scalar(Scalar { kind: Kind::Null, .. }), Shape::Optional(_)) => Some(Value::Null),
            (_, Shape::Optional(shape)) => self.fitting(id, shape),
            (_, Shape::Either(shapes)) => self.either(id, shapes, shape),
            (Data::Scalar(scalar), _) => self.scalar(id, scalar, shape),
            (Data::List(items), Shape::List { of, min, max }) => self.list(id, items, of, *min..=*max),
            (Data::Map(map), Shape::Map(shape)) => self.map(id, map, shape),
            (Data::Map(map), Shape::Record(record)) => self.record(id, map, record),
            (Data::Map(map), Shape::Choice { owner, variants }) => self.choice(id, map, owner, variants),
            _ => self.wrong_type(id, shape),
        }
    }

    /// The value as JSON says it. What JSON has no word for (`.inf`) stays the text that it was.
    fn anything(&self, id: NodeId) -> Value {
        match &self.tree.node(id).data {
            Data::List(items) => Value::Array(items.iter().map(|item| self.anything(*item)).collect()),
            Data::Map(map) => {
                let entries = map.entries.iter().map(|entry| (entry.key.to_string(), self.anything(entry.value)));
                Value::Object(entries.collect())
            }
            Data::Scalar(Scalar { kind, text }) => match kind {
                Kind::Null | Kind::Broken => Value::Null,
                Kind::Bool(value) => Value::Bool(*value),
                Kind::Int(value) => (*value).into(),
                Kind::Float(value) => {
                    serde_json::Number::from_f64(*value).map_or_else(|| Value::String(text.to_string()), Value::Number)
                }
                Kind::Text => Value::String(text.to_string()),
            },
        }
    }

    /// The variant that has the type of the value. Text comes first: what stands in an environment variable is text as it
    /// is written, whatever YAML would make of it.
    fn either(&mut self, id: NodeId, shapes: &'static [Shape], all: &'static Shape) -> Option<Value> {
        let shape = match &self.tree.node(id).data {
            Data::Map(_) => {
                shapes.iter().find(|s| matches!(s, Shape::Map(_) | Shape::Record(_) | Shape::Choice { .. }))
            }
            Data::List(_) => shapes.iter().find(|s| matches!(s, Shape::List { .. })),
            Data::Scalar(Scalar { kind: Kind::Null, .. }) => shapes.iter().find(|s| s.may_be_empty()),
            Data::Scalar(scalar) => {
                if shapes.iter().any(|s| matches!(s, Shape::Text)) {
                    return Some(Value::String(scalar.text.to_string()));
                }
                let fits = |s: &&Shape| match scalar.kind {
                    Kind::Int(_) => matches!(s, Shape::Integer { .. } | Shape::Number { .. }),
                    Kind::Float(_) => matches!(s, Shape::Number { .. }),
                    Kind::Bool(_) => matches!(s, Shape::Bool),
                    _ => matches!(s, Shape::Quantity(_) | Shape::Words { .. }),
                };
                shapes.iter().find(fits)
            }
        };
        match shape {
            Some(shape) => self.fitting(id, shape),
            None => self.wrong_type(id, all),
        }
    }

    fn scalar(&mut self, id: NodeId, scalar: &Scalar, shape: &'static Shape) -> Option<Value> {
        let text = &*scalar.text;
        match (scalar.kind, shape) {
            (Kind::Null, _) if shape.may_be_empty() => Some(empty(shape)),
            (Kind::Text, Shape::Text) => Some(Value::String(text.into())),
            (Kind::Text, Shape::Quantity(quantity)) => self.quantity(id, text, *quantity),
            (Kind::Bool(value), Shape::Bool) => Some(Value::Bool(value)),
            (Kind::Int(value), Shape::Integer { min, max }) => {
                if (*min..=*max).contains(&value) {
                    return Some(value.into());
                }
                self.out_of_range(id, if value < *min { format!("at least {min}") } else { format!("at most {max}") })
            }
            (Kind::Int(_) | Kind::Float(_), Shape::Number { min, max }) => {
                let value =
                    if let Kind::Int(value) = scalar.kind { value as f64 } else { text.parse().unwrap_or(f64::NAN) };
                if (*min..=*max).contains(&value) {
                    return serde_json::Number::from_f64(value).map(Value::Number);
                }
                self.out_of_range(id, format!("between {min} and {max}"))
            }
            (Kind::Text, Shape::Words { owner, words }) => {
                if words.iter().any(|word| word == text) {
                    return Some(Value::String(text.into()));
                }
                self.unknown_word(id, text, owner, words.iter().map(String::as_str).collect())
            }
            (Kind::Text, Shape::Choice { owner, variants }) => match variants.iter().find(|(key, _)| key == text) {
                Some((key, inner)) if inner.may_be_empty() => Some(object(key, empty(inner))),
                Some(_) => self.wrong_type(id, shape),
                None => self.unknown_word(id, text, owner, variants.iter().map(|(key, _)| key.as_str()).collect()),
            },
            _ => self.wrong_type(id, shape),
        }
    }

    fn quantity(&mut self, id: NodeId, text: &str, quantity: Quantity) -> Option<Value> {
        let Err(why) = quantity.check(text) else { return Some(Value::String(text.into())) };
        let shown = self.tree.showable(text);
        let why = if shown == text {
            why.replacen(&format!("`{text}`"), &quoted(text), 1)
        } else {
            format!("the value of {} is not {}", quoted(shown), quantity.name())
        };
        let key = self.key();
        self.report.add(BAD_QUANTITY, self.tree.node(id).place, || {
            words(format!("{key}{why}"), format!("write {}", quantity.name()))
        });
        None
    }

    fn list(
        &mut self,
        id: NodeId,
        items: &[NodeId],
        shape: &'static Shape,
        length: RangeInclusive<usize>,
    ) -> Option<Value> {
        if !length.contains(&items.len()) {
            let few = items.len() < *length.start();
            let (word, limit) = if few { ("at least", length.start()) } else { ("at most", length.end()) };
            let items = if *limit == 1 { "item" } else { "items" };
            let key = self.key();
            self.report.add(OUT_OF_RANGE, self.tree.node(id).place, || {
                words(format!("{key}must have {word} {limit} {items}"), "write a list of that length, or leave it out")
            });
            return None;
        }
        self.path.push(("[]", ""));
        let values: Vec<Value> = items.iter().filter_map(|item| self.value(*item, shape)).collect();
        self.path.pop();
        if values.len() < items.len() {
            self.gaps.incomplete.insert(id);
        }
        Some(Value::Array(values))
    }

    fn map(&mut self, id: NodeId, map: &'a Map, shape: &'static Shape) -> Option<Value> {
        let mut values = serde_json::Map::new();
        for Entry { key, value, .. } in &map.entries {
            self.path.push(("NAME", key));
            let fitting = self.value(*value, shape);
            self.path.pop();
            if fitting.is_none() {
                self.gaps.incomplete.insert(id);
            }
            // A service that says nothing right is still there to be named by others.
            if let Some(value) = fitting.or_else(|| shape.may_be_empty().then(|| empty(shape))) {
                values.insert(key.to_string(), value);
            }
        }
        Some(Value::Object(values))
    }

    fn record(&mut self, id: NodeId, map: &'a Map, record: &'static Record) -> Option<Value> {
        let mut values = serde_json::Map::new();
        for entry in &map.entries {
            let Some((key, shape)) = record.fields.get_key_value(&*entry.key) else {
                self.gaps.incomplete.insert(id);
                self.unknown_key(entry, map, record);
                continue;
            };
            self.path.push((key, key));
            let fitting = self.value(entry.value, shape);
            self.path.pop();
            match fitting {
                Some(value) => drop(values.insert(entry.key.to_string(), value)),
                None => drop(self.gaps.incomplete.insert(id)),
            }
        }
        let place = self.tree.node(id).place;
        // Said in the word of another tool, it is a finding already.
        let said = |key: &str| map.entries.iter().any(|entry| ours(&record.owner, &entry.key) == Some(key));
        for key in record.required.iter().filter(|key| map.get(key).is_none() && !said(key)) {
            let owner = self.key();
            self.report.add(MISSING_KEY, place, || {
                let example = record.fields.get(key).map(Shape::describe).unwrap_or_default();
                words(format!("{owner}the key {} is missing", quoted(key)), format!("add `{key}:` with {example}"))
            });
        }
        record.required.iter().all(|key| values.contains_key(key)).then_some(Value::Object(values))
    }

    fn choice(
        &mut self,
        id: NodeId,
        map: &'a Map,
        owner: &'static str,
        variants: &'static [(String, Shape)],
    ) -> Option<Value> {
        let keys = || variants.iter().map(|(key, _)| key.as_str());
        let [entry] = &*map.entries else {
            let place = map.entries.get(1).map_or(self.tree.node(id).place, |second| second.place);
            let key = self.key();
            self.report.add(ONE_CHOICE, place, || {
                let found = match &*map.entries {
                    [] => "none".to_owned(),
                    several => several.iter().take(5).map(|entry| quoted(&entry.key)).collect::<Vec<_>>().join(" and "),
                };
                words(
                    format!("{key}exactly one of its keys must be chosen, found {found}"),
                    format!("keep {}", one_of(keys())),
                )
            });
            return None;
        };
        let Some((key, shape)) = variants.iter().find(|(key, _)| **key == *entry.key) else {
            let place = entry.place;
            let at = self.key();
            self.report.add(if later(owner, &entry.key).is_some() { NOT_YET } else { UNKNOWN_KEY }, place, || {
                unknown(&at, "choice", &entry.key, owner, keys().collect())
            });
            return None;
        };
        self.path.push((key, key));
        let value = self.value(entry.value, shape);
        self.path.pop();
        value.map(|value| object(key, value))
    }

    /// The key that is being looked at, to begin a message with.
    fn key(&self) -> String {
        match self.path.iter().rev().find(|(_, key)| !key.is_empty()) {
            Some((_, key)) => format!("{}: ", quoted(key)),
            None => String::new(),
        }
    }

    fn wrong_type(&mut self, id: NodeId, shape: &Shape) -> Option<Value> {
        let node = self.tree.node(id);
        let key = self.key();
        self.report.add(WRONG_TYPE, node.place, || {
            let message = format!("{key}expected {}, found {}", shape.describe(), describe(&node.data));
            words(message, remedy(&node.data, shape, self.tree))
        });
        None
    }

    fn out_of_range(&mut self, id: NodeId, wanted: String) -> Option<Value> {
        let node = self.tree.node(id);
        let key = self.key();
        self.report.add(OUT_OF_RANGE, node.place, || {
            let found = if let Data::Scalar(scalar) = &node.data { self.tree.showable(&scalar.text) } else { "" };
            words(format!("{key}must be {wanted}, found {}", quoted(found)), format!("write a number that is {wanted}"))
        });
        None
    }

    fn unknown_word(&mut self, id: NodeId, text: &str, owner: &str, known: Vec<&str>) -> Option<Value> {
        let key = self.key();
        let code = if later(owner, text).is_some() { NOT_YET } else { UNKNOWN_VALUE };
        self.report.add(code, self.tree.node(id).place, || {
            let shown = self.tree.showable(text);
            if shown == text {
                unknown(&key, "value", text, owner, known)
            } else {
                words(
                    format!("{key}the value of {} is not known here", quoted(shown)),
                    format!("use {}", one_of(known)),
                )
            }
        });
        None
    }

    fn unknown_key(&mut self, entry: &Entry, map: &Map, record: &Record) {
        let word = &*entry.key;
        let code = if later(&record.owner, word).is_some() { NOT_YET } else { UNKNOWN_KEY };
        let path = &self.path;
        let at = self.key();
        self.report.add(code, entry.place, || {
            let fields = || record.fields.keys().map(String::as_str);
            if code == NOT_YET {
                return unknown(&at, "key", word, &record.owner, Vec::new());
            }
            let message = format!("{at}unknown key {}", quoted(word));
            // What stands beside it already was not meant.
            let free = || fields().filter(|field| map.get(field).is_none());
            let help = if word == "<<" {
                "YAML 1.2 has no merge keys: say what is shared under `defaults`".into()
            } else if let Some(ours) = ours(&record.owner, word) {
                format!("meshctl calls it `{ours}`")
            } else if let Some(field) = respelled(word, fields()) {
                format!("did you mean `{field}`?")
            } else if let Some(elsewhere) = elsewhere(word, path) {
                match nearest(word, free()) {
                    Some(field) if strsim::osa_distance(word, field) == 1 => format!("did you mean `{field}`?"),
                    _ => format!("`{word}` belongs at `{elsewhere}`"),
                }
            } else if let Some(field) = nearest(word, free()) {
                format!("did you mean `{field}`?")
            } else if record.fields.is_empty() {
                "it takes no keys".into()
            } else {
                format!("known here: {}", fields().collect::<Vec<_>>().join(", "))
            };
            words(message, help)
        });
    }
}

/// A word that is not among `known`.
fn unknown(at: &str, what: &str, word: &str, owner: &str, known: Vec<&str>) -> Words {
    if let Some(brings) = later(owner, word) {
        return words(
            format!("{at}{} comes with a later version of meshctl: {brings}", quoted(word)),
            if known.is_empty() { "leave it out".into() } else { format!("use {}, or leave it out", one_of(known)) },
        );
    }
    let help = match nearest(word, known.iter().copied()) {
        Some(near) => format!("did you mean `{near}`?"),
        None => format!("use {}", one_of(known)),
    };
    words(format!("{at}unknown {what} {}", quoted(word)), help)
}

/// Where else in the language `word` is a key: of all the places the one that shares most of `path`.
fn elsewhere(word: &str, path: &[(&str, &str)]) -> Option<&'static str> {
    let here = path.iter().map(|(key, _)| *key).collect::<Vec<_>>().join(".").replace(".[]", "[]");
    let shared = |other: &&String| here.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    // Of several that are as near the first: the gateway's `listen` rather than that of spans.
    LANGUAGE.keys.get(word)?.iter().rev().max_by_key(shared).map(String::as_str)
}

fn object(key: &str, value: Value) -> Value {
    Value::Object(serde_json::Map::from_iter([(key.to_owned(), value)]))
}

fn empty(shape: &Shape) -> Value {
    match shape {
        Shape::List { .. } => Value::Array(Vec::new()),
        Shape::Optional(_) => Value::Null,
        _ => Value::Object(serde_json::Map::new()),
    }
}

fn describe(data: &Data) -> &'static str {
    match data {
        Data::List(_) => "a list",
        Data::Map(_) => "a map",
        Data::Scalar(scalar) => match scalar.kind {
            Kind::Null => "nothing",
            Kind::Bool(_) => "true or false",
            Kind::Int(_) => "a whole number",
            Kind::Float(_) => "a number with a fraction",
            Kind::Text | Kind::Broken => "text",
        },
    }
}

fn remedy(data: &Data, shape: &Shape, tree: &Tree) -> String {
    let Data::Scalar(scalar) = data else { return format!("write {}", shape.describe()) };
    let shown = quoted(tree.showable(&scalar.text)).replace('`', "");
    let known = tree.showable(&scalar.text) == &*scalar.text;
    let takes_number = |shape: &Shape| matches!(shape, Shape::Integer { .. } | Shape::Number { .. });
    match (scalar.kind, shape) {
        (Kind::Null, _) => "give it a value, or leave the key out".into(),
        (_, Shape::Text) => format!("put it in quotes: \"{shown}\""),
        (Kind::Int(_) | Kind::Float(_), Shape::Quantity(quantity)) if known => {
            let written: Vec<String> = quantity.units().iter().map(|unit| format!("{shown}{unit}")).collect();
            format!("write the unit: {}", written.join(" or "))
        }
        (Kind::Text, shape) if takes_number(shape) && matches!(Kind::of_plain(&scalar.text), Kind::Int(_)) => {
            format!("write it without quotes: {shown}")
        }
        (Kind::Text, Shape::Bool) if matches!(&*scalar.text, "yes" | "on" | "no" | "off" | "true" | "false") => {
            let value = matches!(&*scalar.text, "yes" | "on" | "true");
            format!("write {value}, without quotes")
        }
        (_, Shape::List { .. }) => format!("write a list: [{shown}]"),
        _ => format!("write {}", shape.describe()),
    }
}

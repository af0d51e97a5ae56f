//! What each kind of thing looks like in a list: one file per family, one function per kind.

mod dead_letters;
mod describe;
pub(crate) mod load;
mod load_picture;
mod messages;
mod system;
mod timeline;
mod traces;
mod traffic;
mod waterfall;

use std::collections::{BTreeMap, BTreeSet};

use meshctl_model::API_VERSION;
use meshctl_model::event::Event;
use serde::Serialize;
use serde_json::{Value, json};

pub(crate) use dead_letters::{audit, dead_letters, groups, replays};
pub(crate) use describe::describe;
pub(crate) use messages::{channels, ledger, messages, size, subscriptions};
pub(crate) use system::{events, gateways, instances, revisions, services, state_word, why};
pub(crate) use timeline::Timeline;
pub(crate) use traces::{next_steps, traces, whole_traces};
pub(crate) use traffic::{breakers, edges, endpoints, routes};
pub(crate) use waterfall::{Look, waterfall};

use crate::failure::Failure;
use crate::kinds::{Kind, no_such};
use crate::output::{self, Cell, Format, Table};

/// Things of one kind.
#[derive(Debug)]
pub(crate) struct Listing {
    pub(crate) kind: Kind,
    /// Titles of the columns; those of `-o wide` begin at `wide`.
    columns: &'static [&'static str],
    /// Columns that only `-o wide` shows. They come last, where a terminal gives way.
    wide: usize,
    pub(crate) items: Vec<Item>,
}

/// One thing.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    pub(crate) name: String,
    /// As the API says it.
    pub(crate) value: Value,
    /// One for each column.
    cells: Vec<Cell>,
}

impl Item {
    fn new(name: impl Into<String>, thing: &impl Serialize, cells: Vec<Cell>) -> Self {
        // The views are plain data: they always have a JSON form.
        let (name, mut value) = (name.into(), serde_json::to_value(thing).unwrap_or_default());
        // Everything that is listed has a name, also where the API calls it otherwise, so that one path finds them all.
        if let Value::Object(fields) = &mut value {
            fields.entry("name").or_insert_with(|| name.clone().into());
        }
        Self { name, value, cells }
    }

    /// Adds its history.
    pub(crate) fn tell<'a>(&mut self, events: impl IntoIterator<Item = &'a Event>) {
        let line = |event: &Event| json!({ "at": event.created_at, "type": event.kind, "message": event.message });
        self.value["history"] = events.into_iter().map(line).collect();
    }
}

impl Listing {
    fn new(kind: Kind, columns: &'static [&'static str], wide: usize, items: Vec<Item>) -> Self {
        Self { kind, columns, wide, items }
    }

    /// Only the things named.
    ///
    /// # Errors
    /// Not found, with the nearest name.
    pub(crate) fn only(mut self, names: &[String]) -> Result<Self, Failure> {
        if names.is_empty() {
            return Ok(self);
        }
        let known = || self.items.iter().map(|item| item.name.as_str());
        if let Some(missing) = names.iter().find(|name| !known().any(|known| known == name.as_str())) {
            return Err(no_such(self.kind, missing, known()));
        }
        self.items.retain(|item| names.contains(&item.name));
        Ok(self)
    }

    /// Sorted by what `path` finds in each.
    ///
    /// # Errors
    /// When it is not a path, or none of the things has such a field.
    pub(crate) fn sorted(mut self, path: Option<&str>) -> Result<Self, Failure> {
        let Some(path) = path else { return Ok(self) };
        let mut keyed = Vec::with_capacity(self.items.len());
        for item in self.items {
            keyed.push((output::find(&item.value, path).map_err(Failure::usage)?, item));
        }
        if !keyed.is_empty() && keyed.iter().all(|(key, _)| key.is_none()) {
            return Err(Failure::usage(format!("no {} has `{path}` to sort by", self.kind.singular()))
                .hint(format!("the fields are {}", fields(keyed.iter().map(|(_, item)| &item.value)))));
        }
        keyed.sort_by(|(left, _), (right, _)| output::order(left.as_ref(), right.as_ref()));
        self.items = keyed.into_iter().map(|(_, item)| item).collect();
        Ok(self)
    }

    /// As a list document.
    pub(crate) fn document(&self) -> Value {
        let items: Vec<&Value> = self.items.iter().map(|item| &item.value).collect();
        json!({ "apiVersion": API_VERSION, "kind": format!("{}List", self.kind.title()), "items": items })
    }

    /// As a table.
    pub(crate) fn table(&self, format: &Format, header: bool) -> Table {
        let shown = if *format == Format::Wide { self.columns.len() } else { self.columns.len() - self.wide };
        let mut table =
            if header { Table::new(self.columns[..shown].iter().copied()) } else { Table::without_header() };
        for item in &self.items {
            table.row(item.cells[..shown].to_vec());
        }
        table
    }

    /// `service/orders`, one a line.
    pub(crate) fn names(&self) -> String {
        self.items.iter().map(|item| format!("{}/{}\n", self.kind.singular(), item.name)).collect()
    }
}

/// One thing as a document of its own: with the version and kind that the list carries for its items.
pub(crate) fn alone(kind: Kind, item: &Item) -> Value {
    let mut document = item.value.clone();
    if let Value::Object(fields) = &mut document {
        // A service's own `kind` says what runs; in a document `kind` says what the document is.
        if let Some(runs) = fields.remove("kind") {
            fields.insert("runs".to_owned(), runs);
        }
        fields.insert("apiVersion".to_owned(), API_VERSION.into());
        fields.insert("kind".to_owned(), kind.title().into());
    }
    document
}

/// `.id, .service`, of all that any of the things has.
fn fields<'a>(things: impl Iterator<Item = &'a Value>) -> String {
    let names: BTreeSet<&String> = things.filter_map(Value::as_object).flat_map(serde_json::Map::keys).collect();
    names.iter().map(|name| format!(".{name}")).collect::<Vec<_>>().join(", ")
}

/// `a=1,b=2`.
fn labels(labels: &BTreeMap<String, String>) -> Cell {
    let text: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    if text.is_empty() { Cell::plain("-") } else { Cell::plain(text.join(",")) }
}

/// Milliseconds as people read them: `250ms`, `2s`, `1.5ms`.
pub(crate) fn milliseconds(ms: f64) -> String {
    match ms {
        ms if ms >= 1000.0 => format!("{}s", (ms / 10.0).round() / 100.0),
        ms if ms >= 10.0 => format!("{}ms", ms.round()),
        ms => format!("{}ms", (ms * 100.0).round() / 100.0),
    }
}

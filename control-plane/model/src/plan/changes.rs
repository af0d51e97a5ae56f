//! What differs between two desired states, in words, and what follows from it.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::channels;
use super::desired::{Desired, DesiredEdge, DesiredService, Template};
use crate::delivery::{BROKER, COURIER};

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Change {
    /// `create`, `change`, `remove`, `restart`, `scale`.
    pub action: String,
    /// `service`, `gateway`, `channel`, `subscription`, `route`, `edge`, `flow`.
    pub kind: String,
    pub name: String,
    /// The difference that causes it.
    pub why: String,
    /// What it means for those who use the system.
    pub consequence: String,
}

impl Change {
    pub(super) fn new(
        action: &str,
        kind: &str,
        name: &str,
        why: impl Into<String>,
        consequence: impl Into<String>,
    ) -> Self {
        Self {
            action: action.into(),
            kind: kind.into(),
            name: name.into(),
            why: why.into(),
            consequence: consequence.into(),
        }
    }
}

/// Everything that differs, services first. Empty when applying `new` over `old` would do nothing.
pub fn changes(old: &Desired, new: &Desired) -> Vec<Change> {
    let mut changes = Vec::new();
    service_changes(old, new, &mut changes);
    gateway_changes(old, new, &mut changes);
    channels::changes(old, new, &mut changes);
    let routes = |desired: &Desired| -> BTreeMap<String, Value> {
        desired.routes.iter().map(|route| (route.name.clone(), to_value(route))).collect()
    };
    keyed_changes("route", &routes(old), &routes(new), &mut changes);
    // The edges of couriers come and go with the channels, which are told of already.
    let couriers = |edge: &DesiredEdge| {
        [old, new].iter().any(|desired| !desired.channels.is_empty())
            && [&edge.caller, &edge.callee].into_iter().any(|name| name == COURIER)
    };
    let edges = |desired: &Desired, other: &Desired| -> BTreeMap<String, Value> {
        let told = desired.edges.iter().filter(|(name, edge)| !couriers(edge) || other.edges.contains_key(*name));
        told.map(|(name, edge)| (name.clone(), to_value(edge))).collect()
    };
    keyed_changes("edge", &edges(old, new), &edges(new, old), &mut changes);
    flow_changes(old, new, &mut changes);
    if new.gateway.is_some() && old.gateway.is_some() && (old.lease != new.lease || old.name != new.name) {
        let why = difference(
            &serde_json::json!({"name": old.name, "lease": old.lease}),
            &serde_json::json!({"name": new.name, "lease": new.lease}),
        );
        changes.push(Change::new("change", "topology", &new.name, why, "nothing is restarted"));
    }
    changes
}

pub(super) fn to_value(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

fn service_changes(old: &Desired, new: &Desired, changes: &mut Vec<Change>) {
    for (name, service) in &new.services {
        let Some(before) = old.services.get(name) else {
            let count = instances(service.replicas);
            let after = match service.depends_on.as_slice() {
                [] => String::new(),
                first => format!(", after {}", first.join(", ")),
            };
            changes.push(Change::new("create", "service", name, "it is new", format!("{count} started{after}")));
            continue;
        };
        if before.hash != service.hash {
            changes.push(replacement(name, before, service));
        }
        if before.replicas != service.replicas {
            let why = format!("replicas: {} -> {}", before.replicas, service.replicas);
            let consequence = if service.replicas > before.replicas {
                format!("{} more started", instances(service.replicas - before.replicas))
            } else {
                format!("{} drained, then stopped", instances(before.replicas - service.replicas))
            };
            changes.push(Change::new("scale", "service", name, why, consequence));
        }
        let quiet = |s: &DesiredService| {
            serde_json::json!({
                "dependsOn": s.depends_on, "drain": s.drain, "startTimeout": s.start_timeout, "labels": s.labels
            })
        };
        if quiet(before) != quiet(service) {
            let why = difference(&quiet(before), &quiet(service));
            changes.push(Change::new("change", "service", name, why, "nothing is restarted"));
        }
    }
    for (name, service) in old.services.iter().filter(|(name, _)| !new.services.contains_key(*name)) {
        let consequence = format!("{} drained, then stopped", instances(service.replicas));
        changes.push(Change::new("remove", "service", name, "it is no longer in the topology", consequence));
    }
}

fn replacement(name: &str, before: &DesiredService, service: &DesiredService) -> Change {
    let (old, new) = (&before.template, &service.template);
    let only_restart = { Template { restarts: old.restarts, ..new.clone() } == *old };
    let (action, why) = if only_restart {
        ("restart", "asked for".to_owned())
    } else {
        let bare = |template: &Template| to_value(&Template { files: BTreeMap::new(), ..template.clone() });
        let mut parts = differences(&bare(old), &bare(new));
        // What couriers have for a file is all their channels, which are told of one by one.
        parts.extend((old.files != new.files).then(|| "its channels changed".to_owned()));
        ("change", parts.join("; "))
    };
    let consequence = match (service.kind.as_str(), new.fixed_port) {
        (BROKER, _) => "replaced in place: publishes are refused for a moment; services try again".to_owned(),
        (COURIER, _) => "couriers are replaced one at a time; messages wait meanwhile, none is lost".to_owned(),
        (_, Some(port)) => {
            format!("replaced in place, because port {port} is fixed: requests wait at the gateway meanwhile")
        }
        (_, None) => format!("{} replaced one at a time; no request fails", instances(before.replicas)),
    };
    Change::new(action, "service", name, why, consequence)
}

fn gateway_changes(old: &Desired, new: &Desired, changes: &mut Vec<Change>) {
    match (&old.gateway, &new.gateway) {
        (None, Some(gateway)) => {
            let consequence = format!("listens on {}", gateway.listen);
            changes.push(Change::new("create", "gateway", "embedded", "it is new", consequence));
        }
        (Some(before), Some(after)) if before != after => {
            let consequence = if before.listen == after.listen {
                "sockets are handed over; no request fails".to_owned()
            } else {
                format!("{} is opened and {} is closed once its requests have ended", after.listen, before.listen)
            };
            let why = difference(&to_value(before), &to_value(after));
            changes.push(Change::new("change", "gateway", "embedded", why, consequence));
        }
        (Some(_), None) => {
            let consequence = "requests under way finish, then the address is closed";
            changes.push(Change::new("remove", "gateway", "embedded", "nothing is wanted any more", consequence));
        }
        _ => {}
    }
}

fn keyed_changes(kind: &str, old: &BTreeMap<String, Value>, new: &BTreeMap<String, Value>, changes: &mut Vec<Change>) {
    for (name, value) in new {
        match old.get(name) {
            None => changes.push(Change::new("create", kind, name, "it is new", "swapped in; no request fails")),
            Some(before) if before != value => {
                let why = difference(before, value);
                changes.push(Change::new("change", kind, name, why, "swapped in; no request fails"));
            }
            Some(_) => {}
        }
    }
    for name in old.keys().filter(|name| !new.contains_key(*name)) {
        let consequence = match kind {
            "route" => "new requests to it are answered 404",
            _ => "its address is closed",
        };
        changes.push(Change::new("remove", kind, name, "it is no longer in the topology", consequence));
    }
}

/// Which parts differ is enough: headers and bodies may hold secrets.
fn flow_changes(old: &Desired, new: &Desired, changes: &mut Vec<Change>) {
    const NOTHING: &str = "nothing is restarted; the next load test sends it";
    for (name, flow) in &new.flows {
        match old.flows.get(name) {
            None => changes.push(Change::new("create", "flow", name, "it is new", NOTHING)),
            Some(before) if before != flow => {
                let (old, new) = (to_value(before), to_value(flow));
                let keys = new.as_object().into_iter().flat_map(|fields| fields.keys());
                let parts: Vec<&str> = keys.filter(|key| old[*key] != new[*key]).map(String::as_str).collect();
                changes.push(Change::new("change", "flow", name, format!("{} changed", parts.join(", ")), NOTHING));
            }
            Some(_) => {}
        }
    }
    for name in old.flows.keys().filter(|name| !new.flows.contains_key(*name)) {
        changes.push(Change::new("remove", "flow", name, "it is no longer in the topology", "no load test sends it"));
    }
}

fn instances(count: u32) -> String {
    if count == 1 { "1 instance".into() } else { format!("{count} instances") }
}

/// The fields that differ: `health.interval: "500ms" -> "1s"`. Values of environment variables are not shown: they may be
/// secrets.
pub(super) fn difference(old: &Value, new: &Value) -> String {
    differences(old, new).join("; ")
}

fn differences(old: &Value, new: &Value) -> Vec<String> {
    let mut parts = Vec::new();
    collect(String::new(), Some(old), Some(new), &mut parts);
    parts
}

fn collect(path: String, old: Option<&Value>, new: Option<&Value>, parts: &mut Vec<String>) {
    if old == new {
        return;
    }
    if let (Some(Value::Object(old)), Some(Value::Object(new))) = (old, new) {
        let keys: BTreeSet<&String> = old.keys().chain(new.keys()).collect();
        for key in keys {
            let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
            collect(path, old.get(key), new.get(key), parts);
        }
        return;
    }
    let secret = path.starts_with("env.");
    let show = |value: Option<&Value>| match value {
        None | Some(Value::Null) => "none".to_owned(),
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
    };
    parts.push(match (old, new) {
        (None, Some(_)) if secret => format!("{path} added"),
        (Some(_), None) if secret => format!("{path} removed"),
        _ if secret => format!("{path} changed"),
        _ => format!("{path}: {} -> {}", show(old), show(new)),
    });
}

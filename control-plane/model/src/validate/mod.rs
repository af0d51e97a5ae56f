//! The semantic pass: what the types cannot say. It looks at the typed topology and asks the tree where things stand.

mod at;
mod calls;
mod flows;
mod graph;
mod messages;
mod paths;
mod policy;
mod ports;
mod routes;
mod services;
mod syntax;

use at::At;

use crate::finding::{BAD_NAME, Code, NO_SERVICES, UNKNOWN_SERVICE, UNKNOWN_VALUE};
use crate::load::Sources;
use crate::load::report::{Report, quoted, words};
use crate::load::structure::Gaps;
use crate::load::suggest::nearest;
use crate::load::tree::{NodeId, Place, Tree};
use crate::topology::{EnvSource, EnvValue, Service, Topology};
use crate::{API_VERSION, units::Span};

/// Checks what `topology` means and completes it: its name, absolute paths.
pub(crate) fn validate(
    mut topology: Topology,
    tree: &Tree,
    root: NodeId,
    gaps: &Gaps,
    sources: &Sources,
    report: &mut Report<'_>,
) -> Topology {
    let root = At::new(tree, gaps, root);
    let services: Vec<At<'_>> = topology.services.keys().map(|name| root.get("services").get(name)).collect();
    let mut context = Context { topology: &topology, root, services: &services, tree, report };
    context.head();
    services::check(&mut context);
    ports::check(&mut context);
    routes::check(&mut context);
    policy::check(&mut context);
    calls::check(&mut context);
    messages::check(&mut context);
    flows::check(&mut context);
    paths::complete(&mut topology, &services, sources);
    topology
}

struct Context<'a, 's> {
    topology: &'a Topology,
    root: At<'a>,
    /// Where each service of the topology stands, in its order.
    services: &'a [At<'a>],
    tree: &'a Tree,
    report: &'a mut Report<'s>,
}

impl<'a> Context<'a, '_> {
    fn add<M: Into<String>, H: Into<String>>(&mut self, code: Code, place: Place, say: impl FnOnce() -> (M, H)) {
        self.report.add(code, place, || {
            let (message, help) = say();
            words(message, help)
        });
    }

    /// The services with where they stand.
    fn services(&self) -> impl Iterator<Item = (&'a str, &'a Service, At<'a>)> + use<'a> {
        let services = self.topology.services.iter().zip(self.services);
        services.map(|((name, service), at)| (name.as_str(), service, *at))
    }

    /// A text of the file as it may be shown: not what a variable holds.
    fn quoted(&self, text: &str) -> String {
        quoted(self.tree.showable(text))
    }

    fn head(&mut self) {
        let topology = self.topology;
        for (key, value, expected) in
            [("apiVersion", &topology.api_version, API_VERSION), ("kind", &topology.kind, "Topology")]
        {
            if let Some(value) = value.as_deref().filter(|value| *value != expected) {
                let shown = self.quoted(value);
                self.add(UNKNOWN_VALUE, self.root.get(key).place(), || {
                    (
                        format!("`{key}`: {shown} is not known to this version of meshctl"),
                        format!("write `{key}: {expected}`"),
                    )
                });
            }
        }
        if let Some(name) = topology.name.as_deref().filter(|name| !syntax::is_name(name)) {
            let shown = self.quoted(name);
            self.add(BAD_NAME, self.root.get("name").place(), || {
                (
                    format!("{shown} is not a name for a system"),
                    "use lower-case letters, digits, hyphens and dots, with a letter or digit at both ends, 63 at most",
                )
            });
        }
        if topology.services.is_empty() && !self.root.get("services").incomplete() && !self.root.incomplete() {
            let place = if self.root.has("services") { self.root.get("services").key() } else { self.root.place() };
            self.add(NO_SERVICES, place, || {
                ("the topology has no services", "describe one under `services:`; `meshctl init` writes an example")
            });
        }
    }

    /// The service called `name`; a finding at `place` if there is none. `what` is what names it.
    fn service(&mut self, name: &str, place: Place, what: &str) -> Option<&'a Service> {
        let topology = self.topology;
        if let Some(service) = topology.services.get(name) {
            return Some(service);
        }
        let tree = self.tree;
        self.add(UNKNOWN_SERVICE, place, || {
            let shown = quoted(tree.showable(name));
            let help = match nearest(name, topology.services.keys().map(String::as_str)) {
                Some(near) => format!("did you mean `{near}`?"),
                None if topology.services.is_empty() => "describe it under `services:`".into(),
                None => format!(
                    "describe it under `services:`, or name one of {}",
                    crate::load::report::one_of(topology.services.keys().map(String::as_str))
                ),
            };
            (format!("{what} {shown}, and there is no such service"), help)
        });
        None
    }

    /// A finding if `span` is there and nothing.
    fn not_zero(&mut self, span: Option<Span>, at: At<'_>, key: &str) {
        if span == Some(Span::default()) {
            self.add(crate::finding::ZERO, at.get(key).place(), || {
                (
                    format!("`{key}` must be more than zero"),
                    "write a duration such as 500ms, or leave it out for the default",
                )
            });
        }
    }
}

/// The services of which `service` asks the address: they are called too.
fn asked_for(service: &Service) -> impl Iterator<Item = (&str, &str)> {
    service.env.iter().filter_map(|(variable, value)| match value {
        EnvValue::From(EnvSource::UrlOf(callee)) => Some((variable.as_str(), callee.as_str())),
        _ => None,
    })
}

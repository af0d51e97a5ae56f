//! From text to [`Topology`]: parse, fill in the operator's environment, check the structure, check the meaning. Every
//! finding is collected; nothing is read from disk here.

mod interpolate;
mod later;
mod merge;
mod read;
pub(crate) mod report;
mod shape;
pub(crate) mod structure;
pub(crate) mod suggest;
pub(crate) mod tree;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::finding::{Finding, INTERNAL, NO_SERVICES, TOO_LARGE};
use crate::topology::Topology;
use crate::validate;
use report::{Report, words};
use tree::{Data, NodeId, Place, Tree};

/// What an operator handed over: the texts and everything outside them that they depend on, so that the same value gives
/// the same topology anywhere.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Sources {
    pub files: Vec<SourceFile>,
    /// The operator's variables that the texts mention, as they were when the files were read.
    pub environment: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SourceFile {
    /// As the operator named it; shown in findings.
    pub name: String,
    /// Absolute; relative paths inside the text start here.
    pub folder: String,
    pub text: String,
}

/// The outcome of [`load`].
#[derive(Clone, Debug)]
pub struct Loaded {
    /// Present if no finding is an error. Paths inside are absolute, variables filled in, `name` is set.
    pub topology: Option<Topology>,
    /// In the order of files and lines, at most a hundred and a last one that counts the rest.
    pub findings: Vec<Finding>,
}

/// Reads `sources` as one topology.
///
/// Files larger than 1 MiB together, or with more than 50,000 keys and values or 4,000 services, are refused with a finding; everything else is
/// answered in milliseconds.
pub fn load(sources: &Sources) -> Loaded {
    let mut report = Report::new(&sources.files);
    let topology = read_topology(sources, &mut report);
    let topology = topology.filter(|_| !report.has_errors());
    Loaded { topology, findings: report.into_findings() }
}

/// The names of the operator's variables that the values of `text` mention, each once, so that only those travel to the
/// daemon.
pub fn variables(text: &str) -> Vec<String> {
    read::variables(text)
}

/// Far beyond what one machine runs; what it bounds is memory.
const MAX_SERVICES: usize = 4_000;

fn too_many_services(root: NodeId, tree: &Tree, report: &mut Report<'_>) -> bool {
    let Data::Map(map) = &tree.node(root).data else { return false };
    let Some(services) = map.get("services") else { return false };
    let many = matches!(&tree.node(services.value).data, Data::Map(map) if map.entries.len() > MAX_SERVICES);
    if many {
        report.add(TOO_LARGE, services.place, || {
            words(
                format!("the topology has more than {MAX_SERVICES} services"),
                "split the system into several topologies, each with a state directory of its own",
            )
        });
    }
    many
}

fn read_topology(sources: &Sources, report: &mut Report<'_>) -> Option<Topology> {
    let start = Place { file: 0, line: 1, column: 1, end_line: 1, end_column: 1 };
    if sources.files.is_empty() {
        report
            .add(NO_SERVICES, start, || words("no file was given", "name a topology file: `meshctl init` writes one"));
        return None;
    }
    let mut tree = Tree::default();
    // What a file that cannot be read would have said is not known: every further finding might be wrong.
    let documents = read::read(sources, &mut tree, report)?;
    let root = merge::merge(&documents, &mut tree, start, report)?;
    if too_many_services(root, &tree, report) {
        return None;
    }
    let (value, gaps) = structure::check(root, &tree, report);
    match serde_json::from_value(value) {
        Ok(topology) => Some(validate::validate(topology, &tree, root, &gaps, sources, report)),
        Err(why) => {
            report.add(INTERNAL, tree.node(root).place, || {
                words(
                    format!("the topology fits its schema and not its types: {why}"),
                    "report this as a bug of meshctl",
                )
            });
            None
        }
    }
}

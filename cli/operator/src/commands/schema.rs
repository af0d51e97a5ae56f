//! `meshctl schema`

use meshctl_model::{exit, schema};

use crate::failure::Outcome;
use crate::output::print;

/// Print the JSON Schema of the topology language
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl schema > topology.schema.json

A file whose first line is `# yaml-language-server: $schema=./topology.schema.json` is then checked and completed by editors.")]
pub struct Args {}

pub(super) fn run(_args: &Args) -> Outcome {
    print(schema::topology_schema_text())?;
    Ok(exit::OK)
}

//! `meshctl init`

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use meshctl_model::{exit, schema, starter};

use crate::failure::{Failure, Outcome};
use crate::output::{self, print_line};

/// Write a commented topology that runs as it is
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl init                     topology.yaml and its schema, for editors, in this folder
  meshctl init shop.yaml --force   replaces a file that is there
  meshctl init && meshctl apply topology.yaml")]
pub struct Args {
    /// The file to write
    #[arg(value_name = "FILE", default_value = "topology.yaml")]
    file: PathBuf,
    /// Replace files that are there
    #[arg(long)]
    force: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    let folder = args.file.parent().unwrap_or(Path::new(""));
    // Editors find the schema beside the file, as the first line of the starter says.
    let schema_file = folder.join("topology.schema.json");
    write(&args.file, starter::starter(), args.force)?;
    // A schema that is there belongs to this version or to another file's editor; it is only replaced when asked for.
    if args.force || !schema_file.exists() {
        write(&schema_file, &schema::topology_schema_text(), args.force)?;
    }
    print_line(format_args!("{} written", args.file.display()))?;
    output::say(format_args!("  meshctl apply {}", args.file.display()));
    Ok(exit::OK)
}

fn write(path: &Path, text: &str, force: bool) -> Result<(), Failure> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(!force).create(true).truncate(force);
    let outcome = options.open(path).and_then(|mut file| file.write_all(text.as_bytes()));
    outcome.map_err(|error| {
        let failure = Failure::file(format_args!("cannot write {}", path.display()), &error);
        match error.kind() {
            io::ErrorKind::AlreadyExists => Failure { exit: exit::CONFLICT, ..failure }.hint("--force replaces it"),
            _ => failure,
        }
    })
}

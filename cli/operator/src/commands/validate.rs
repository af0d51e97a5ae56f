//! `meshctl validate`

use meshctl_model::exit;
use meshctl_model::load::{Loaded, load};

use crate::args::OutputArgs;
use crate::failure::Outcome;
use crate::output::{self, findings, print_line};
use crate::sources::{FileArgs, invalid, missing};

/// Check topology files and report everything that is wrong with them
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl validate shop.yaml
  meshctl validate topologies/ -o json
  cat shop.yaml | meshctl validate -

Exit status: 0 if it can be applied (warnings are shown), 78 if not.")]
pub struct Args {
    #[command(flatten)]
    files: FileArgs,
    #[command(flatten)]
    output: OutputArgs,
}

pub(super) fn run(args: &Args) -> Outcome {
    let sources = args.files.topology()?;
    let Loaded { topology, findings } = load(&sources);
    findings::show(&findings, &sources, &args.output.output)?;
    if findings::has_errors(&findings) {
        return Err(invalid(&findings::count(&findings)));
    }
    topology.iter().flat_map(missing).for_each(output::warn);
    if args.output.output.for_people() {
        let names: Vec<&str> = sources.files.iter().map(|file| file.name.as_str()).collect();
        print_line(format_args!("{}: valid", names.join(", ")))?;
    }
    Ok(exit::OK)
}

//! `meshctl diff`

use meshctl_api::view::ApplyRequest;
use meshctl_model::exit;

use crate::args::OutputArgs;
use crate::failure::Outcome;
use crate::output::print;
use crate::plans;
use crate::session::Session;
use crate::sources::{FileArgs, check};

/// Show the differences between what is wanted and a topology
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl diff shop.yaml
  meshctl diff -f topologies/

Exit status: 0 if there is no difference, 1 if there is, more for an error.")]
pub struct Args {
    #[command(flatten)]
    files: FileArgs,

    /// Lose messages, where a channel is removed or gets fewer partitions
    #[arg(long)]
    discard_messages: bool,

    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(session: &Session, args: Args) -> Outcome {
    let sources = args.files.topology()?;
    check(&sources, &args.output.output)?;
    let plan = plans::plan(
        session,
        &ApplyRequest { sources, discard_messages: args.discard_messages, ..ApplyRequest::default() },
    )
    .await?;
    if args.output.output.for_people() {
        print(plans::diff(&plan))?;
    } else {
        plans::print(&plan, &args.output.output)?;
    }
    Ok(if plan.steps.is_empty() { exit::OK } else { exit::FAILURE })
}

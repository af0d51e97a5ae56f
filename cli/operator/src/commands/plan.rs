//! `meshctl plan`

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use meshctl_api::view::{ApplyRequest, Plan};
use meshctl_model::exit;

use crate::args::OutputArgs;
use crate::failure::{Failure, Outcome};
use crate::output::Format;
use crate::plans;
use crate::session::Session;
use crate::sources::{FileArgs, check};

/// Show what apply would do, and do nothing
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl plan shop.yaml
  meshctl plan shop.yaml --out p && meshctl apply p
  meshctl plan shop.yaml --exit-code -q || echo there are changes
  meshctl plan shop.yaml -o jsonpath='{.steps[*].name}'")]
pub struct Args {
    #[command(flatten)]
    files: FileArgs,

    /// Lose messages, where a channel is removed or gets fewer partitions
    #[arg(long)]
    discard_messages: bool,

    /// Save the plan, with the topology that it was made from, for `meshctl apply`
    #[arg(long, value_name = "PLAN", value_hint = clap::ValueHint::FilePath)]
    out: Option<PathBuf>,

    /// Exit with 1 if there are changes
    #[arg(long)]
    exit_code: bool,

    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(session: &Session, args: Args) -> Outcome {
    let sources = args.files.topology()?;
    check(&sources, &args.output.output)?;
    let request = ApplyRequest { sources, discard_messages: args.discard_messages, ..ApplyRequest::default() };
    let plan = plans::plan(session, &request).await?;
    if let Some(path) = &args.out {
        save(path, &Plan { sources: Some(request.sources), ..plan.clone() })?;
        session.say(format_args!("saved; `meshctl apply {}` does exactly this, or refuses", path.display()));
    }
    if !(session.is_quiet() && args.exit_code && args.output.output == Format::Table) {
        plans::print(&plan, &args.output.output)?;
    }
    Ok(if args.exit_code && plan.changes > 0 { exit::FAILURE } else { exit::OK })
}

/// Writes `plan` for its owner only: it holds the variables that the topology mentions.
fn save(path: &Path, plan: &Plan) -> Result<(), Failure> {
    let failed =
        |error: std::io::Error| Failure::file(format_args!("cannot save the plan as {}", path.display()), &error);
    let mut text = serde_json::to_vec_pretty(plan).map_err(|error| failed(error.into()))?;
    text.push(b'\n');
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).map_err(failed)?;
    file.set_permissions(std::fs::Permissions::from_mode(0o600)).map_err(failed)?;
    file.write_all(&text).map_err(failed)
}

//! `meshctl apply`

use meshctl_api::ApiError;
use meshctl_api::error::ErrorCode;
use meshctl_api::view::{ApplyRequest, Plan};
use meshctl_model::exit;
use meshctl_model::load::Sources;
use meshctl_model::units::Span;

use crate::args::ChangeArgs;
use crate::failure::{Failure, Outcome};
use crate::output::findings;
use crate::session::Session;
use crate::sources::{FileArgs, Input, check, invalid};
use crate::{ask, change, launch, plans};

/// Make the system what a topology says, and wait until it is
#[derive(Debug, clap::Args)]
#[command(
    visible_alias = "up",
    after_help = "\
Examples:
  meshctl apply shop.yaml
  meshctl apply -f topologies/ --reason 'two more instances for the sale'
  meshctl plan shop.yaml --out p && meshctl apply p
  meshctl apply shop.yaml --dry-run
  meshctl apply shop.yaml --discard-messages   # where a channel in use goes away

A daemon is started where none runs. Ctrl-C detaches: the change goes on.
Off a terminal nothing is asked, removals included: the file is the wish, and the plan is shown."
)]
pub struct Args {
    #[command(flatten)]
    files: FileArgs,

    /// Lose messages, where a channel is removed or gets fewer partitions
    #[arg(long)]
    discard_messages: bool,

    #[command(flatten)]
    change: ChangeArgs,
}

impl Args {
    pub(super) fn timeout(&self) -> Span {
        self.change.wait.timeout
    }
}

pub(super) async fn run(session: &Session, args: Args) -> Outcome {
    let (change, format) = (&args.change, &args.change.output.output);
    let (sources, agreed) = match args.files.read()? {
        Input::Topology(sources) => (sources, None),
        Input::Plan(plan) => (sources_of(&plan)?, Some(plan.fingerprint)),
    };
    check(&sources, format)?;
    let mut request = ApplyRequest {
        discard_messages: args.discard_messages,
        sources,
        fingerprint: None,
        reason: change.reason.clone(),
    };
    if change.dry_run {
        let plan = plans::plan(session, &request).await?;
        refuse_stale(agreed.as_deref(), &plan)?;
        plans::print(&plan, format)?;
        return Ok(exit::OK);
    }

    let client = launch::ensure(session).await?;
    let plan = client.plan(&request).await.map_err(|error| refused(error, &request.sources))?;
    refuse_stale(agreed.as_deref(), &plan)?;
    plans::announce(session, &plan);
    if !change.yes && removes(&plan, request.discard_messages) && !ask::agreed("Some of this is removed. Go on?") {
        return Err(Failure::new(exit::FAILURE, "nothing was changed"));
    }
    // Also where nothing differs: it is the wish to try once more what failed, and to wait for what is on its way.
    request.fingerprint = Some(plan.fingerprint);
    let accepted = client.apply(&request).await.map_err(|error| match error.code {
        // It answered a moment ago: the connection broke under the request.
        ErrorCode::Unreachable | ErrorCode::Silent | ErrorCode::TimedOut => Failure::from(error)
            .hint("it may have been accepted or not: `meshctl rollout status` tells; to apply it again does no harm"),
        _ => refused(error, &request.sources),
    })?;
    change::pursue(session, &client, accepted, &change.wait, &change.output).await
}

fn sources_of(plan: &Plan) -> Result<Sources, Failure> {
    plan.sources.clone().ok_or_else(|| {
        Failure::new(exit::INVALID_TOPOLOGY, "this plan does not hold the topology that it was made from")
            .hint("save one with `meshctl plan FILE --out PLAN`")
    })
}

/// A saved plan is executed as it was shown, or not at all.
fn refuse_stale(agreed: Option<&str>, plan: &Plan) -> Result<(), Failure> {
    match agreed {
        Some(agreed) if agreed != plan.fingerprint => {
            Err(Failure::new(exit::CONFLICT, "the plan is stale: the system has changed since it was made")
                .hint("make and read a new one: `meshctl plan FILE --out PLAN`"))
        }
        _ => Ok(()),
    }
}

/// Whether something goes away, messages included.
fn removes(plan: &Plan, discards_messages: bool) -> bool {
    plan.steps.iter().any(|step| match step.kind.as_str() {
        "service" => step.action == "remove",
        "channel" | "subscription" => step.action == "remove" || (discards_messages && step.action != "create"),
        _ => false,
    })
}

/// What the daemon finds wrong is shown like what is found here.
fn refused(error: ApiError, sources: &Sources) -> Failure {
    if error.code == ErrorCode::InvalidTopology && !error.findings.is_empty() {
        findings::tell(&error.findings, sources);
        return invalid(&findings::count(&error.findings));
    }
    error.into()
}

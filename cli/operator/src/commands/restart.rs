//! `meshctl restart`

use meshctl_api::view::RestartRequest;
use meshctl_model::units::Span;

use super::get::must_exist;
use crate::args::ChangeArgs;
use crate::change;
use crate::failure::Outcome;
use crate::session::Session;

/// Replace the instances of services, one at a time, without a failed request
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl restart orders
  meshctl restart orders inventory --reason 'new certificate'
  meshctl restart orders --wait=false")]
pub struct Args {
    /// The services
    #[arg(value_name = "SERVICE", required = true, add = super::completion::service_names())]
    services: Vec<String>,

    #[command(flatten)]
    change: ChangeArgs,
}

impl Args {
    pub(super) fn timeout(&self) -> Span {
        self.change.wait.timeout
    }
}

pub(super) async fn run(session: &Session, args: Args) -> Outcome {
    let client = session.daemon().await?;
    must_exist(&client, &args.services).await?;
    let request =
        RestartRequest { services: args.services, reason: args.change.reason.clone(), dry_run: args.change.dry_run };
    change::finish(session, &client, client.restart(&request).await?, &args.change).await
}

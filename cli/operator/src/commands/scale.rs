//! `meshctl scale`

use std::collections::BTreeMap;

use meshctl_api::view::ScaleRequest;
use meshctl_model::units::Span;

use super::get::must_exist;
use crate::args::ChangeArgs;
use crate::change;
use crate::failure::{Failure, Outcome};
use crate::session::Session;

/// Change how many instances services have
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl scale orders=3
  meshctl scale orders=3 inventory=2 --reason 'evening traffic'
  meshctl scale orders=0 --dry-run

It is a revision like any other: `meshctl rollout undo` goes back, and the next apply of a file decides anew.")]
pub struct Args {
    /// A service and the number of its instances
    #[arg(value_name = "SERVICE=N", required = true, value_parser = replicas, add = super::completion::service_names())]
    replicas: Vec<(String, u32)>,

    #[command(flatten)]
    change: ChangeArgs,
}

impl Args {
    pub(super) fn timeout(&self) -> Span {
        self.change.wait.timeout
    }
}

pub(super) async fn run(session: &Session, args: Args) -> Outcome {
    let mut replicas = BTreeMap::new();
    for (service, count) in args.replicas {
        if replicas.insert(service.clone(), count).is_some() {
            return Err(Failure::usage(format!("{service} is named twice")));
        }
    }
    let client = session.daemon().await?;
    must_exist(&client, &replicas.keys().cloned().collect::<Vec<_>>()).await?;
    let request = ScaleRequest { replicas, reason: args.change.reason.clone(), dry_run: args.change.dry_run };
    change::finish(session, &client, client.scale(&request).await?, &args.change).await
}

fn replicas(text: &str) -> Result<(String, u32), String> {
    let (service, count) = text.split_once('=').ok_or("write SERVICE=N, such as orders=3")?;
    let count = count.parse().map_err(|_| format!("`{count}` is not a number of instances"))?;
    Ok((service.to_owned(), count))
}

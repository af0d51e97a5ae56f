//! `meshctl route`, `endpoint`, `registry`: the readers under their nouns, where fingers look for them.

use clap::Subcommand;
use jiff::Timestamp;
use meshctl_model::exit;

use super::get::{list, page};
use crate::args::{ListArgs, OutputArgs};
use crate::failure::Outcome;
use crate::kinds::{Kind, Selection};
use crate::output::{self, Format, document};
use crate::session::Session;
use crate::show;

/// Look at routes: how requests from outside find a service
#[derive(Debug, Subcommand)]
pub enum RouteCommand {
    /// List the routes
    #[command(
        visible_alias = "list",
        after_help = "\
Examples:
  meshctl route ls
  meshctl route ls -o wide"
    )]
    Ls(ListArgs),
    /// Show everything about a route
    #[command(after_help = "\
Examples:
  meshctl route describe 'GET,POST /orders'
  meshctl route describe")]
    Describe(NamesArgs),
}

/// Look at endpoints: where the instances are, and which are in routing
#[derive(Debug, Subcommand)]
pub enum EndpointCommand {
    /// List the endpoints: why one is out of routing, and since when
    #[command(
        visible_alias = "list",
        after_help = "\
Examples:
  meshctl endpoint ls
  meshctl endpoint ls --sort-by .service -o wide"
    )]
    Ls(ListArgs),
}

/// Look at the registry: what is registered, by whom, and until when
#[derive(Debug, Subcommand)]
pub enum RegistryCommand {
    /// List what is registered, with leases and last checks
    #[command(
        visible_alias = "list",
        after_help = "\
Examples:
  meshctl registry ls
  meshctl registry ls orders
  meshctl registry ls -o jsonpath='{.index}'"
    )]
    Ls(RegistryArgs),
}

/// Some of a kind.
#[derive(Debug, clap::Args)]
pub struct NamesArgs {
    /// All where left out
    #[arg(value_name = "NAME")]
    names: Vec<String>,

    #[command(flatten)]
    output: OutputArgs,
}

/// What of the registry is shown.
#[derive(Debug, clap::Args)]
pub struct RegistryArgs {
    /// All services where left out
    #[arg(value_name = "SERVICE", add = super::completion::service_names())]
    service: Option<String>,

    /// Leave the header line out
    #[arg(long)]
    no_headers: bool,

    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn route(session: &Session, command: RouteCommand) -> Outcome {
    match command {
        RouteCommand::Ls(args) => all(session, Kind::Route, &args).await,
        RouteCommand::Describe(args) => {
            let selection = Selection { kind: Kind::Route, names: args.names };
            page(session, &[selection], &args.output.output).await
        }
    }
}

pub(super) async fn endpoint(session: &Session, command: EndpointCommand) -> Outcome {
    let EndpointCommand::Ls(args) = command;
    all(session, Kind::Endpoint, &args).await
}

pub(super) async fn registry(session: &Session, command: RegistryCommand) -> Outcome {
    let RegistryCommand::Ls(args) = command;
    let client = session.daemon().await?;
    let services: Vec<String> = args.service.iter().cloned().collect();
    super::get::must_exist(&client, &services).await?;
    let registry = client.endpoints(args.service.as_deref()).await?;
    let listing = show::endpoints(registry.items, Timestamp::now());
    let mut list = listing.document();
    list["index"] = registry.index.into();
    if document(&args.output.output, &list)? {
        return Ok(exit::OK);
    }
    if args.output.output == Format::Name {
        output::print(listing.names())?;
    } else {
        output::print(listing.table(&Format::Wide, !args.no_headers).draw(output::width()))?;
    }
    Ok(exit::OK)
}

async fn all(session: &Session, kind: Kind, args: &ListArgs) -> Outcome {
    list(session, &[Selection { kind, names: Vec::new() }], args).await
}

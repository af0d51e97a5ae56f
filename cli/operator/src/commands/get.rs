//! `meshctl get` and `meshctl describe`

use std::collections::BTreeMap;

use meshctl_api::client::Client;
use meshctl_model::{API_VERSION, exit};
use serde_json::{Value, json};

use super::completion::things;
use super::live_with_pulse;
use crate::args::{ListArgs, OutputArgs};
use crate::failure::{Failure, Outcome};
use crate::kinds::{Kind, Selection, no_such, select};
use crate::output::{self, Format, document, print, print_line};
use crate::session::Session;
use crate::show::{Listing, alone};

/// List services, instances, routes, edges or any other kind of thing
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl get services
  meshctl get svc,gw -o wide
  meshctl get service/orders -o jsonpath='{.instances[*].pid}'
  meshctl get instances --sort-by .restarts -w

Kinds: service svc, instance inst, route rt, edge, endpoint ep, gateway gw,
revision rev, event ev, breaker cb, channel ch, subscription sub, message msg,
deadletter dl, replay, ledger, audit, trace tr.")]
pub struct Args {
    /// KIND[,KIND…] [NAME…], or KIND/NAME…
    #[arg(value_name = "KIND[/NAME]", required = true, add = things())]
    things: Vec<String>,

    #[command(flatten)]
    list: ListArgs,
}

/// Show everything about one thing
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl describe service/orders
  meshctl describe edge orders:inventory
  meshctl describe trace/4bf92f3577b3
  meshctl describe gateways")]
pub struct DescribeArgs {
    /// KIND/NAME…, or KIND [NAME…]
    #[arg(value_name = "KIND/NAME", required = true, add = things())]
    things: Vec<String>,

    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(session: &Session, args: &Args) -> Outcome {
    list(session, &select(&args.things)?, &args.list).await
}

pub(super) async fn describe(session: &Session, args: &DescribeArgs) -> Outcome {
    page(session, &select(&args.things)?, &args.output.output).await
}

/// Lists what is selected.
pub(super) async fn list(session: &Session, selections: &[Selection], args: &ListArgs) -> Outcome {
    let client = session.daemon().await?;
    if args.watch {
        return watch(&client, selections, args).await;
    }
    let listings = fetch(&client, selections, args.table.sort_by.as_deref()).await?;
    show(&listings, selections, args)?;
    Ok(exit::OK)
}

async fn fetch(client: &Client, selections: &[Selection], sort_by: Option<&str>) -> Result<Vec<Listing>, Failure> {
    let mut listings = Vec::with_capacity(selections.len());
    for Selection { kind, names } in selections {
        listings.push(kind.fetch(client, names).await?.sorted(sort_by)?);
    }
    Ok(listings)
}

fn show(listings: &[Listing], selections: &[Selection], args: &ListArgs) -> Result<(), Failure> {
    let format = &args.table.output.output;
    if document(format, &as_document(listings, selections))? {
        return Ok(());
    }
    if *format == Format::Name {
        return print(listings.iter().map(Listing::names).collect::<String>());
    }
    let tables: Vec<String> = listings
        .iter()
        .filter(|listing| !listing.items.is_empty())
        .map(|listing| listing.table(format, !args.table.no_headers).draw(output::width()))
        .collect();
    match listings {
        [only] if only.items.is_empty() => output::say(format_args!("no {}", only.kind.plural())),
        _ => print(tables.join("\n"))?,
    }
    Ok(())
}

/// One thing named is that thing; one kind is its list; several are one list of everything.
fn as_document(listings: &[Listing], selections: &[Selection]) -> Value {
    match (listings, selections) {
        ([listing], [selection]) if selection.names.len() == 1 => {
            listing.items.first().map_or(Value::Null, |item| alone(listing.kind, item))
        }
        ([listing], _) => listing.document(),
        _ => {
            let items: Vec<Value> =
                listings.iter().flat_map(|list| list.items.iter().map(|item| alone(list.kind, item))).collect();
            json!({ "apiVersion": API_VERSION, "kind": "List", "items": items })
        }
    }
}

/// Shows everything, and then each thing again that has changed.
async fn watch(client: &Client, selections: &[Selection], args: &ListArgs) -> Outcome {
    let mut shown: BTreeMap<String, Value> = BTreeMap::new();
    live_with_pulse(client, async |heard| {
        let mut listings = Vec::new();
        let is_pulse = heard.is_none();
        for Selection { kind, names } in selections {
            if is_pulse && !kind.changes_silently() {
                continue;
            }
            // A named thing may come and go while it is watched.
            let mut listing = match kind.list(client).await {
                Ok(listing) => listing,
                // Whether the daemon comes back is for the watch to find out.
                Err(failure) if is_pulse && failure.exit == exit::UNREACHABLE => return Ok(()),
                Err(failure) => return Err(failure),
            };
            listing.items.retain(|item| names.is_empty() || names.contains(&item.name));
            listings.push(listing);
        }
        let first = shown.is_empty();
        for mut listing in listings {
            listing.items.retain(|item| {
                let key = format!("{}/{}", listing.kind.singular(), item.name);
                shown.insert(key, item.value.clone()).as_ref() != Some(&item.value)
            });
            show_changed(&listing, first, args)?;
        }
        Ok(())
    })
    .await
}

fn show_changed(listing: &Listing, first: bool, args: &ListArgs) -> Result<(), Failure> {
    match &args.table.output.output {
        _ if listing.items.is_empty() => Ok(()),
        Format::Json => listing.items.iter().try_for_each(|item| print_line(alone(listing.kind, item))),
        Format::Name => print(listing.names()),
        format @ (Format::Table | Format::Wide) => {
            print(listing.table(format, first && !args.table.no_headers).draw(output::width()))
        }
        format => listing.items.iter().try_for_each(|item| document(format, &alone(listing.kind, item)).map(drop)),
    }
}

/// Shows everything about what is selected, one page each.
pub(super) async fn page(session: &Session, selections: &[Selection], format: &Format) -> Outcome {
    let client = session.daemon().await?;
    let listings = fetch(&client, selections, None).await?;
    if document(format, &as_document(&listings, selections))? {
        return Ok(exit::OK);
    }
    if *format == Format::Name {
        print(listings.iter().map(Listing::names).collect::<String>())?;
        return Ok(exit::OK);
    }
    let mut pages = Vec::new();
    for listing in &listings {
        pages.extend(crate::describe::pages(&client, listing.kind, &listing.items).await?);
    }
    print(pages.join("\n"))?;
    Ok(exit::OK)
}

/// The names of `services` that do not exist are a failure before anything is asked.
pub(super) async fn must_exist(client: &Client, services: &[String]) -> Result<(), Failure> {
    if services.is_empty() {
        return Ok(());
    }
    let known = client.services().await?.items;
    let missing = services.iter().find(|name| !known.iter().any(|service| service.name == **name));
    match missing {
        Some(name) => Err(no_such(Kind::Service, name, known.iter().map(|service| service.name.as_str()))),
        None => Ok(()),
    }
}

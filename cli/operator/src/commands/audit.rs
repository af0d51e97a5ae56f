//! `meshctl audit`

use jiff::Timestamp;
use meshctl_model::exit;

use crate::args::TableArgs;
use crate::failure::Outcome;
use crate::output::{self, Format, document, print};
use crate::session::Session;
use crate::show;

/// Show who did what to channels and dead letters, why, and what came of it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl audit
  meshctl audit --limit 1000 -o wide
  meshctl audit -o json | jq -r '.items[] | select(.action == \"deadletter.discard\") | .reason'

Oldest first. Each entry holds the digest of the one before it, so that one that
was changed or taken out is found when the audit is read. That the newest were
cut off is not seen from the chain: keep a digest elsewhere to prove that, too.")]
pub struct Args {
    /// How many, at most: the latest
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: u32,

    #[command(flatten)]
    table: TableArgs,
}

pub(super) async fn run(session: &Session, args: &Args) -> Outcome {
    let client = session.daemon().await?;
    let entries = client.audit(Some(args.limit)).await?.items;
    let listing = show::audit(entries, Timestamp::now()).sorted(args.table.sort_by.as_deref())?;
    let format = &args.table.output.output;
    if document(format, &listing.document())? {
        return Ok(exit::OK);
    }
    if *format == Format::Name {
        print(listing.names())?;
    } else if listing.items.is_empty() {
        session.say("nothing has been done yet that is audited");
    } else {
        print(listing.table(format, !args.table.no_headers).draw(output::width()))?;
    }
    Ok(exit::OK)
}

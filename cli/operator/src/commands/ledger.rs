//! `meshctl ledger`: where everything is that was accepted.

use meshctl_api::view::messages::LedgerEntry;
use meshctl_model::exit;

use super::completion::channel_names;
use crate::args::TableArgs;
use crate::failure::{Failure, Outcome};
use crate::kinds::{Kind, no_such};
use crate::output::{self, Format, document, print, sign};
use crate::session::Session;
use crate::show;

/// Account for every message that was accepted: where is it now?
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl ledger
  meshctl ledger order.placed
  meshctl ledger -o jsonpath='{.items[?(@.balanced==false)].name}'
  watch meshctl ledger

accepted = processed + in flight + retrying + dead + parked + discarded,
each of them counted on its own.
Exit status: 0 if every subscription is balanced, 1 if not.")]
pub struct Args {
    /// All channels where left out
    #[arg(value_name = "CHANNEL", add = channel_names())]
    channels: Vec<String>,

    #[command(flatten)]
    table: TableArgs,
}

pub(super) async fn run(session: &Session, args: Args) -> Outcome {
    let client = session.daemon().await?;
    let mut entries = client.ledger().await?.items;
    // One that nobody subscribes to has no entry, and is there all the same.
    if let Some(name) = args.channels.iter().find(|name| !entries.iter().any(|entry| entry.channel == **name)) {
        let channels = client.channels().await?.items;
        if !channels.iter().any(|channel| channel.name == *name) {
            return Err(no_such(Kind::Channel, name, channels.iter().map(|channel| channel.name.as_str())));
        }
    }
    entries.retain(|entry| args.channels.is_empty() || args.channels.contains(&entry.channel));
    let listing = show::ledger(entries.clone()).sorted(args.table.sort_by.as_deref())?;
    let format = &args.table.output.output;
    if document(format, &listing.document())? {
        return verdict(&entries);
    }
    if *format == Format::Name {
        print(entries.iter().map(|entry| format!("subscription/{}\n", entry.name)).collect::<String>())?;
    } else if entries.is_empty() {
        session.say("no subscriptions, and so nothing to account for");
    } else {
        let table = listing.table(format, !args.table.no_headers);
        if table.fits(output::width()) {
            print(table.draw(None))?;
        } else {
            print(entries.iter().map(paragraph).collect::<String>())?;
        }
    }
    verdict(&entries)
}

/// An entry where the table is too wide for the terminal: nothing of an account may be cut off.
fn paragraph(entry: &LedgerEntry) -> String {
    let LedgerEntry { name, accepted, processed, in_flight, retrying, dead, parked, discarded, .. } = entry;
    let sign = sign(entry.balanced).text;
    let missing = if entry.missing == 0 { String::new() } else { format!("\n    {}", imbalance(entry)) };
    format!(
        "{sign} {name}\n    {accepted} accepted = {processed} processed + {in_flight} in flight + {retrying} retrying\n    \
         + {dead} dead + {parked} parked + {discarded} discarded{missing}\n"
    )
}

fn verdict(entries: &[LedgerEntry]) -> Outcome {
    let unbalanced: Vec<&LedgerEntry> = entries.iter().filter(|entry| !entry.balanced).collect();
    match unbalanced.as_slice() {
        [] => Ok(exit::OK),
        [only] => Err(failure(format!("{} is not balanced: {}", only.name, imbalance(only)))),
        many => {
            let each: Vec<String> = many.iter().map(|entry| format!("{}: {}", entry.name, imbalance(entry))).collect();
            Err(failure(format!("{} subscriptions are not balanced: {}", many.len(), each.join("; "))))
        }
    }
}

fn failure(message: String) -> Failure {
    Failure::new(exit::FAILURE, message)
        .hint("look again in a moment; if it stays, `meshctl events` and the logs of courier and broker say more")
}

/// In words: `3 accepted messages are nowhere`.
pub(crate) fn imbalance(entry: &LedgerEntry) -> String {
    let count = entry.missing.unsigned_abs();
    let (s, are) = if count == 1 { ("", "is") } else { ("s", "are") };
    if entry.missing < 0 {
        format!("{count} message{s} {are} somewhere and {} never accepted", if count == 1 { "was" } else { "were" })
    } else {
        format!("{count} accepted message{s} {are} nowhere")
    }
}

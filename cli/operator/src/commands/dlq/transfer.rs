//! `meshctl dlq export` and `import`: dead letters as lines of JSON, out of one system and into another.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};

use meshctl_api::client::Client;
use meshctl_api::view::messages::{DeadLetterOutcome, ImportQuery};
use meshctl_model::exit;
use meshctl_model::units::Span;

use super::change::Outcomes;
use crate::args::DeedArgs;
use crate::failure::{Failure, Outcome};
use crate::letters::{SelectArgs, count, refused};
use crate::output::{document, print_line};
use crate::session::Session;

/// What is sent at once; a line that is longer goes alone.
const PIECE: usize = 1 << 20;

/// Write dead letters to stdout, each a line of JSON with everything that is known of it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl dlq export > dead.ndjson
  meshctl dlq export --where 'subscription = billing' | jq -r .error | sort | uniq -c
  meshctl dlq export 0192f6 | meshctl --state-dir /var/lib/other dlq import -")]
pub struct ExportArgs {
    #[command(flatten)]
    select: SelectArgs,
}

/// Take dead letters in that were exported; what is there already stays as it is
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl dlq import dead.ndjson
  meshctl dlq import - --reason 'from the old machine' < dead.ndjson
  meshctl dlq import dead.ndjson --dry-run")]
pub struct ImportArgs {
    /// What was exported, or - for standard input
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::FilePath)]
    file: PathBuf,

    #[command(flatten)]
    deed: DeedArgs,
}

impl ImportArgs {
    pub(super) fn timeout(&self) -> Span {
        self.deed.timeout
    }
}

pub(super) async fn export(session: &Session, args: &ExportArgs) -> Outcome {
    let client = session.daemon().await?;
    let query = args.select.query_or_all();
    let mut lines = client.export(&query).await.map_err(|error| refused(error, &query))?;
    let mut exported = 0;
    while let Some(line) = lines.next().await? {
        print_line(line)?;
        exported += 1;
    }
    session.say(format_args!("{} exported", count(exported)));
    Ok(exit::OK)
}

pub(super) async fn import(session: &Session, args: ImportArgs) -> Outcome {
    let format = &args.deed.output.output;
    format.must_not_be_names()?;
    let source = open(&args.file)?;
    let client = session.daemon().await?;
    let query = ImportQuery { reason: args.deed.reason.clone(), dry_run: args.deed.dry_run };
    let mut total = DeadLetterOutcome {
        action: "import".into(),
        fingerprint: String::new(),
        selected: 0,
        changed: 0,
        dry_run: args.deed.dry_run,
    };
    let sent = send_all(&client, source, &query, &mut total).await;
    sent.map_err(|failure| match total.selected {
        0 => failure,
        // What was taken in is not taken in twice.
        _ => failure.hint(format!("{} before that were taken in; import the same file again", count(total.changed))),
    })?;
    if document(format, &Outcomes::of(&total))? {
        return Ok(exit::OK);
    }
    let known = match total.selected - total.changed.min(total.selected) {
        0 => String::new(),
        known => format!(", {known} were there already"),
    };
    let (would, done) = if total.dry_run { ("would have ", " imported") } else { ("", " imported") };
    print_line(format_args!("{would}{}{done}{known}", count(total.changed)))?;
    Ok(exit::OK)
}

fn open(path: &Path) -> Result<Box<dyn BufRead>, Failure> {
    if path == Path::new("-") {
        return Ok(Box::new(io::stdin().lock()));
    }
    let file = File::open(path).map_err(|error| Failure::file(format!("cannot read {}", path.display()), &error))?;
    Ok(Box::new(BufReader::new(file)))
}

/// Sends piece after piece, so that no file is too large.
async fn send_all(
    client: &Client,
    source: Box<dyn BufRead>,
    query: &ImportQuery,
    total: &mut DeadLetterOutcome,
) -> Result<(), Failure> {
    let mut piece = String::new();
    for (at, line) in source.lines().enumerate() {
        let number = at + 1;
        let line = line.map_err(|error| Failure::file(format_args!("cannot read line {number}"), &error))?;
        if line.trim().is_empty() {
            continue;
        }
        if !serde_json::from_str::<serde_json::Value>(&line).is_ok_and(|value| value.is_object()) {
            return Err(Failure::usage(format!("line {number} is not a JSON object"))
                .hint("what `meshctl dlq export` writes can be imported"));
        }
        if !piece.is_empty() && piece.len() + line.len() > PIECE {
            send(client, std::mem::take(&mut piece), query, total).await?;
        }
        piece.push_str(&line);
        piece.push('\n');
    }
    if piece.is_empty() { Ok(()) } else { send(client, piece, query, total).await }
}

async fn send(
    client: &Client,
    piece: String,
    query: &ImportQuery,
    total: &mut DeadLetterOutcome,
) -> Result<(), Failure> {
    let outcome = client.import(piece, query).await?;
    total.selected += outcome.selected;
    total.changed += outcome.changed;
    total.fingerprint = outcome.fingerprint;
    Ok(())
}

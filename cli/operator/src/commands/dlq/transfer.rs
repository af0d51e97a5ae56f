//! `meshctl dlq export` and `import`: dead letters as lines of JSON, out of one system and into another.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::stream;
use meshctl_api::client::Client;
use meshctl_api::view::messages::{DeadLetter, DeadLetterOutcome};
use meshctl_model::exit;
use meshctl_model::units::Span;

use super::change::Outcomes;
use crate::args::OutputArgs;
use crate::failure::{Failure, Outcome};
use crate::letters::{SelectArgs, count};
use crate::output::{document, print_line};
use crate::session::Session;

/// Write dead letters to stdout, each a line of JSON with everything that is known of it
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl dlq export > dead.ndjson
  meshctl dlq export --where 'subscription = billing' | jq -r .error | sort | uniq -c
  meshctl dlq export --all | meshctl --state-dir /var/lib/other dlq import -")]
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

    /// Show what would be taken in and change nothing
    #[arg(long)]
    dry_run: bool,

    /// Do not ask: an import never does
    #[arg(short, long)]
    yes: bool,

    /// Why, for the audit
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// How long it may take
    #[arg(long, value_name = "DURATION", default_value = "5m")]
    timeout: Span,

    #[command(flatten)]
    output: OutputArgs,
}

impl ImportArgs {
    pub(super) fn timeout(&self) -> Span {
        self.timeout
    }
}

pub(super) async fn export(session: &Session, args: &ExportArgs) -> Outcome {
    let client = session.daemon().await?;
    let mut lines = client.export(&args.select.query_or_all()?).await?;
    let mut exported = 0;
    while let Some(line) = lines.next().await? {
        print_line(line)?;
        exported += 1;
    }
    session.say(format_args!("{} exported", count(exported)));
    Ok(exit::OK)
}

pub(super) async fn import(session: &Session, args: ImportArgs) -> Outcome {
    let format = &args.output.output;
    format.must_not_be_names()?;
    let source = open(&args.file)?;
    let client = session.daemon().await?;
    let outcome = send(&client, source, &args).await?;
    if document(format, &Outcomes::of(&outcome))? {
        return Ok(exit::OK);
    }
    let known = match outcome.selected.saturating_sub(outcome.changed) {
        0 => String::new(),
        1 => ", 1 was there already".to_owned(),
        known => format!(", {known} were there already"),
    };
    let would = if args.dry_run { "would have " } else { "" };
    print_line(format_args!("{would}{} imported{known}", count(outcome.changed)))?;
    Ok(exit::OK)
}

fn open(path: &Path) -> Result<Box<dyn BufRead + Send>, Failure> {
    if path == Path::new("-") {
        return Ok(Box::new(BufReader::new(io::stdin())));
    }
    let file = File::open(path).map_err(|error| Failure::file(format!("cannot read {}", path.display()), &error))?;
    Ok(Box::new(BufReader::new(file)))
}

/// The lines of a file that are dead letters, up to the first that is none.
fn letters(source: impl BufRead) -> impl Iterator<Item = Result<String, Failure>> {
    source.lines().enumerate().filter_map(|(at, line)| {
        let number = at + 1;
        let line = match line {
            Ok(line) if line.trim().is_empty() => return None,
            Ok(line) => line,
            Err(error) => return Some(Err(Failure::file(format_args!("cannot read line {number}"), &error))),
        };
        let letter = serde_json::from_str::<DeadLetter>(&line).map_err(|error| {
            Failure::new(exit::FAILURE, format!("line {number} is not a dead letter"))
                .caused_by(&error)
                .hint("what `meshctl dlq export` writes can be imported")
        });
        Some(letter.map(|_| line))
    })
}

/// Sends line after line, so that no file is too large.
async fn send(
    client: &Client,
    source: Box<dyn BufRead + Send>,
    args: &ImportArgs,
) -> Result<DeadLetterOutcome, Failure> {
    let mistake = Arc::new(OnceLock::new());
    let found = Arc::clone(&mistake);
    let lines = letters(source).map(move |letter| match letter {
        Ok(line) => Ok(Bytes::from(line + "\n")),
        Err(failure) => {
            // The request ends with it; what it was is told below.
            let said = failure.message.clone();
            let _ = found.set(failure);
            Err(io::Error::other(said))
        }
    });
    let sent = client.import(stream::iter(lines), args.reason.as_deref(), args.dry_run, args.timeout.get()).await;
    sent.map_err(|error| {
        let failure = Arc::into_inner(mistake).and_then(OnceLock::into_inner).unwrap_or_else(|| error.into());
        if args.dry_run {
            return failure;
        }
        let hint = failure.hint.clone().unwrap_or_else(|| "correct it".to_owned());
        failure.hint(format!("{hint}; lines before it may be imported already: import the whole again"))
    })
}

//! `meshctl dlq show`: one dead letter on a page.

use jiff::Timestamp;
use meshctl_api::view::messages::DeadLetter;
use meshctl_model::exit;
use meshctl_model::message::{Attempt, Failure as Class, header};

use crate::args::OutputArgs;
use crate::commands::dead_letter_ids;
use crate::failure::{Failure, Outcome};
use crate::kinds::Kind;
use crate::letters::bare;
use crate::output::{BAD, BOLD, Format, age, document, print, styled};
use crate::payload::{self, Form};
use crate::session::Session;
use crate::show::{self, size};

/// Show a dead letter: why it died, every attempt, its headers and its payload
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl dlq show 4f1c09ab77d2e310
  meshctl dlq show 4f1c09ab77d2e310 --as hex
  meshctl dlq show 4f1c09ab77d2e310 -o jsonpath=.payloadBase64 | base64 -d")]
pub struct Args {
    /// Its id
    #[arg(value_name = "ID", add = dead_letter_ids())]
    id: String,

    /// The payload as json, text or hex; as what it is where left out
    #[arg(long = "as", value_name = "FORM", hide_possible_values = true)]
    form: Option<Form>,

    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(session: &Session, args: &Args) -> Outcome {
    let client = session.daemon().await?;
    let letter = client.dead_letter(bare(&args.id)).await?;
    let listing = show::dead_letters(vec![letter.clone()], Timestamp::now());
    let format = &args.output.output;
    if let Some(item) = listing.items.first()
        && document(format, &show::alone(Kind::DeadLetter, item))?
    {
        return Ok(exit::OK);
    }
    print(if *format == Format::Name { listing.names() } else { page(&letter, args.form)? })?;
    Ok(exit::OK)
}

/// One dead letter on a page: what it is, every attempt, headers and payload.
pub(crate) fn page(letter: &DeadLetter, form: Option<Form>) -> Result<String, Failure> {
    let now = Timestamp::now();
    let payload = payload::bytes(letter.payload.as_ref(), letter.payload_base64.as_deref())?;
    let headers = letter.headers.as_deref().unwrap_or_default();
    let history = letter.history.as_deref().unwrap_or_default();
    let content_type = headers.iter().find(|(name, _)| name == header::CONTENT_TYPE).map(|(_, value)| value.as_str());
    let facts = [
        ("subscription", Some(format!("{}/{}", letter.channel, letter.subscription))),
        ("state", Some(letter.state.clone())),
        ("reason", Some(format!("{} ({})", letter.reason.as_str(), letter.class))),
        ("error", Some(letter.error.clone())),
        ("fingerprint", Some(letter.fingerprint.clone())),
        ("first failed", Some(format!("{} ({} ago)", letter.first_failed_at, age(letter.first_failed_at, now)))),
        ("last failed", Some(format!("{} ({} ago)", letter.last_failed_at, age(letter.last_failed_at, now)))),
        ("message", Some(letter.message_id.clone())),
        ("type", Some(letter.kind.clone())),
        ("key", letter.key.clone()),
        ("trace", letter.trace_id.clone()),
        ("replay", letter.replay_id.clone()),
    ];
    let mut page = format!("{}\n", styled(BOLD, format_args!("deadletter/{}", letter.id)));
    for (name, value) in facts.iter().filter_map(|(name, value)| value.as_ref().map(|value| (name, value))) {
        page.push_str(&format!("  {:<13} {}\n", format!("{name}:"), one_line(value)));
    }
    page.push_str(&format!("\n{}\n", styled(BOLD, attempts(history.len()))));
    history.iter().for_each(|attempt| page.push_str(&paragraph(attempt)));
    page.push_str(&format!("\n{}\n", styled(BOLD, "headers")));
    headers.iter().for_each(|(name, value)| page.push_str(&format!("  {name}: {}\n", one_line(value))));
    let what = content_type.map(|what| format!(", {}", one_line(what))).unwrap_or_default();
    page.push_str(&format!("\n{}\n", styled(BOLD, format_args!("payload ({}{what})", size(letter.size_bytes)))));
    if letter.headers.is_none() {
        page.push_str("  no longer kept: it ended more than a week ago\n");
        return Ok(page);
    }
    page.push_str(&indented(&payload::draw(&payload, form)?));
    Ok(page)
}

fn attempts(count: usize) -> String {
    format!("{count} attempt{}", if count == 1 { "" } else { "s" })
}

/// One attempt: when, what came of it, and why, in words that are not cut off.
fn paragraph(attempt: &Attempt) -> String {
    let failure = match attempt.failure {
        Class::Rejected => "rejected",
        Class::Refused => "refused",
        Class::Timeout => "timeout",
        Class::Unreachable => "unreachable",
    };
    let status = attempt.status.map(|status| format!(" {status}")).unwrap_or_default();
    let took = show::milliseconds(attempt.duration_ms as f64);
    let replay = attempt.replay.as_ref().map(|replay| format!(", in replay {replay}")).unwrap_or_default();
    let (number, at, why) = (attempt.number, attempt.at.strftime("%Y-%m-%dT%H:%M:%S%.3fZ"), one_line(&attempt.reason));
    format!(
        "  {number:<3} {at}  {} after {took}{replay}\n      {why}\n",
        styled(BAD, format_args!("{failure}{status}"))
    )
}

fn indented(text: &str) -> String {
    text.lines().map(|line| if line.is_empty() { "\n".to_owned() } else { format!("  {line}\n") }).collect()
}

/// No header and no error of a subscriber can move the operator's cursor.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}

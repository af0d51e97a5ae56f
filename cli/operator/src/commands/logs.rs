//! `meshctl logs`

use jiff::Timestamp;
use meshctl_api::view::{LogLine, LogQuery};
use meshctl_model::exit;
use meshctl_model::units::Span;

use super::get::must_exist;
use crate::args::OutputArgs;
use crate::failure::{Failure, Outcome};
use crate::output::{Format, document, print_line, tinted};
use crate::session::Session;
use crate::traces::full_id;

/// Show what instances write, each line with its instance
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl logs
  meshctl logs orders -f
  meshctl logs orders inventory --since 5m --grep error
  meshctl logs --trace 4bf92f3577b34da6a3ce929d0e0e4736
  meshctl logs orders --tail 20 -o json")]
pub struct Args {
    /// All services where left out
    #[arg(value_name = "SERVICE", add = super::completion::service_names())]
    services: Vec<String>,

    /// Go on as more is written
    #[arg(short, long)]
    follow: bool,

    /// Only what was written since then: 5m, or 2026-11-23T10:00:00Z
    #[arg(long, value_name = "WHEN")]
    since: Option<String>,

    /// Only the last lines of each instance
    #[arg(long, value_name = "LINES")]
    tail: Option<usize>,

    /// Only lines that contain this text
    #[arg(long, value_name = "TEXT")]
    grep: Option<String>,

    /// Only lines that name this trace
    #[arg(long, value_name = "ID", add = super::completion::trace_ids())]
    trace: Option<String>,

    #[command(flatten)]
    output: OutputArgs,
}

pub(super) async fn run(session: &Session, args: Args) -> Outcome {
    let since = args.since.as_deref().map(|text| since(text, Timestamp::now())).transpose()?;
    let client = session.daemon().await?;
    must_exist(&client, &args.services).await?;
    let trace = match &args.trace {
        Some(id) => Some(full_id(&client, id).await?),
        None => None,
    };
    let query = LogQuery {
        services: (!args.services.is_empty()).then(|| args.services.join(",")),
        since: since.map(|at| at.to_string()),
        tail: args.tail,
        follow: args.follow,
        grep: trace.or_else(|| args.grep.clone()),
    };
    let mut logs = client.logs(&query).await?;
    while let Some(line) = logs.next().await? {
        // The daemon looks for one text; where two are wanted, the second is looked for here.
        if args.grep.as_ref().is_none_or(|text| line.line.contains(text.as_str())) {
            show(&line, &args.output.output)?;
        }
    }
    Ok(exit::OK)
}

fn show(line: &LogLine, format: &Format) -> Result<(), Failure> {
    match format {
        Format::Json => print_line(serde_json::to_string(line).unwrap_or_default()),
        Format::Wide => print_line(format_args!("{} {} | {}", line.at, tinted(&line.instance), line.line)),
        Format::Table | Format::Name => print_line(format_args!("{} | {}", tinted(&line.instance), line.line)),
        format => document(format, line).map(drop),
    }
}

/// A moment, or a length of time before `now`.
pub(super) fn since(text: &str, now: Timestamp) -> Result<Timestamp, Failure> {
    if let Ok(at) = text.parse() {
        return Ok(at);
    }
    let span: Span = text.parse().map_err(|_| {
        Failure::usage(format!("`{text}` is neither a duration, such as 5m, nor a time, such as 2026-11-23T10:00:00Z"))
    })?;
    now.checked_sub(span.get()).map_err(|error| Failure::usage(format!("`{text}` is too long ago")).caused_by(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn since_is_a_length_or_a_moment() {
        let now: Timestamp = "2026-11-23T10:00:00Z".parse().expect("a time");
        assert_eq!(since("5m", now).expect("read").to_string(), "2026-11-23T09:55:00Z");
        assert_eq!(since("2026-11-23T08:00:00+01:00", now).expect("read").to_string(), "2026-11-23T07:00:00Z");
        assert_eq!(since("yesterday", now).map_err(|failure| failure.exit), Err(2));
    }
}

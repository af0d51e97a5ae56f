//! Which dead letters are meant: ids, a filter, or all of them; and how a filter that is not understood is shown.

use clap::Args;
use meshctl_api::view::messages::DeadLetterQuery;
use meshctl_model::filter::{DEAD_LETTER, Field, FilterError, parse};
use meshctl_model::finding::{Finding, Severity};
use meshctl_model::load::{SourceFile, Sources};

use crate::commands::dead_letter_ids;
use crate::failure::Failure;
use crate::output::findings;

/// The name under which a finding shows the filter's text.
const WHERE: &str = "--where";

/// A selection that must be made.
#[derive(Clone, Debug, Args)]
pub(crate) struct SelectArgs {
    /// Dead letters by their ids
    #[arg(value_name = "ID", add = dead_letter_ids())]
    ids: Vec<String>,

    /// Those that a filter holds for: 'reason = poison and age > 1h'
    #[arg(long = "where", value_name = "EXPR", help_heading = "Selection")]
    filter: Option<String>,

    /// All of them; `discard` leaves parked ones alone, which have to be named
    #[arg(long, conflicts_with_all = ["ids", "filter"], help_heading = "Selection")]
    all: bool,
}

impl SelectArgs {
    /// What to ask the daemon for.
    ///
    /// # Errors
    /// Where nothing is selected, because everything has to be meant, and as [`Self::query_or_all`].
    pub(crate) fn query(&self) -> Result<DeadLetterQuery, Failure> {
        if self.ids.is_empty() && self.filter.is_none() && !self.all {
            return Err(Failure::usage("no dead letters are selected")
                .hint("name their ids, or --where 'reason = exhausted', or --all; `meshctl dlq ls` lists them"));
        }
        self.query_or_all()
    }

    /// The same, where nothing selected means everything.
    ///
    /// # Errors
    /// A filter that is not understood.
    pub(crate) fn query_or_all(&self) -> Result<DeadLetterQuery, Failure> {
        understood(self.filter.as_deref())?;
        let ids: Vec<&str> = self.ids.iter().map(|id| bare(id)).collect();
        Ok(DeadLetterQuery {
            ids: (!ids.is_empty()).then(|| ids.join(",")),
            r#where: self.filter.clone(),
            ..DeadLetterQuery::default()
        })
    }
}

/// An id without its kind, as `-o name` writes it.
pub(crate) fn bare(id: &str) -> &str {
    id.strip_prefix("deadletter/").or_else(|| id.strip_prefix("dl/")).unwrap_or(id)
}

/// As [`understood_as`], of dead letters.
pub(crate) fn understood(filter: Option<&str>) -> Result<(), Failure> {
    understood_as(filter, DEAD_LETTER, "dlq ls")
}

/// Reads a filter over `fields`, so that a mistake in it is shown like one in a topology: the text, and where in it. The help of
/// `command` tells the language.
///
/// # Errors
/// The first mistake.
pub(crate) fn understood_as(filter: Option<&str>, fields: &[Field], command: &str) -> Result<(), Failure> {
    let Some(text) = filter else { return Ok(()) };
    let Err(FilterError { column, message, help }) = parse(text, fields) else { return Ok(()) };
    let word =
        text.chars().skip(column - 1).take_while(|c| c.is_alphanumeric() || matches!(c, '_' | '.' | '-')).count();
    let finding = Finding {
        severity: Severity::Error,
        code: "filter".into(),
        message,
        help: Some(help),
        file: WHERE.into(),
        line: 1,
        column,
        end_line: 1,
        end_column: column + word.max(1),
    };
    let file = SourceFile { name: WHERE.into(), folder: "/".into(), text: text.to_owned() };
    findings::tell(&[finding], &Sources { files: vec![file], ..Sources::default() });
    Err(Failure::usage("the filter is not understood")
        .hint(format!("`meshctl {command} --help` shows the filter language")))
}

/// `1 dead letter`, `42 dead letters`.
pub(crate) fn count(letters: u64) -> String {
    format!("{letters} dead letter{}", if letters == 1 { "" } else { "s" })
}

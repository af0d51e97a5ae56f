//! Which dead letters are meant: ids, a filter, or all of them; and how a filter that is not understood is shown.

use clap::Args;
use meshctl_api::ApiError;
use meshctl_api::view::messages::DeadLetterQuery;
use meshctl_model::exit;
use meshctl_model::load::{SourceFile, Sources};

use crate::commands::dead_letter_ids;
use crate::failure::Failure;
use crate::output::findings;

/// The name under which a finding shows the filter's text.
const WHERE: &str = "--where";

/// A selection that must be made.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Selection")]
pub(crate) struct SelectArgs {
    /// Dead letters by their ids
    #[arg(value_name = "ID", add = dead_letter_ids())]
    ids: Vec<String>,

    /// Those that a filter holds for: 'reason = exhausted and age > 1h and error ~ "timeout"'
    #[arg(long = "where", value_name = "EXPR")]
    filter: Option<String>,

    /// All of them
    #[arg(long, conflicts_with_all = ["ids", "filter"])]
    all: bool,
}

impl SelectArgs {
    /// What to ask the daemon for.
    ///
    /// # Errors
    /// Where nothing is selected: everything has to be meant.
    pub(crate) fn query(&self) -> Result<DeadLetterQuery, Failure> {
        if self.ids.is_empty() && self.filter.is_none() && !self.all {
            return Err(Failure::usage("no dead letters are selected")
                .hint("name their ids, or --where 'reason = exhausted', or --all; `meshctl dlq ls` lists them"));
        }
        Ok(self.query_or_all())
    }

    /// The same, where nothing selected means everything.
    pub(crate) fn query_or_all(&self) -> DeadLetterQuery {
        let ids: Vec<&str> = self.ids.iter().map(|id| bare(id)).collect();
        DeadLetterQuery {
            ids: (!ids.is_empty()).then(|| ids.join(",")),
            r#where: self.filter.clone(),
            ..DeadLetterQuery::default()
        }
    }
}

/// An id without its kind, as `-o name` writes it.
pub(crate) fn bare(id: &str) -> &str {
    id.strip_prefix("deadletter/").or_else(|| id.strip_prefix("dl/")).unwrap_or(id)
}

/// What the daemon did not understand of a filter is shown like a mistake in a topology: the text, and where in it.
pub(crate) fn refused(error: ApiError, query: &DeadLetterQuery) -> Failure {
    let Some(text) = query.r#where.as_deref().filter(|_| !error.findings.is_empty()) else { return error.into() };
    let file = SourceFile { name: WHERE.into(), folder: "/".into(), text: text.to_owned() };
    let sources = Sources { files: vec![file], ..Sources::default() };
    let mut found = error.findings;
    found.iter_mut().for_each(|finding| finding.file = WHERE.into());
    findings::tell(&found, &sources);
    Failure::new(exit::USAGE, "the filter is not understood")
        .hint(error.hint.unwrap_or_else(|| "`meshctl dlq ls --help` shows the filter language".to_owned()))
}

/// `1 dead letter`, `42 dead letters`.
pub(crate) fn count(letters: u64) -> String {
    format!("{letters} dead letter{}", if letters == 1 { "" } else { "s" })
}

//! `meshctl man`

use std::path::PathBuf;

use meshctl_model::exit;

use crate::failure::{Failure, Outcome};
use crate::output::print;

/// Write the manual pages
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl man | man -l -
  meshctl man rollout undo | man -l -
  meshctl man rollout-undo
  meshctl man --dir ~/.local/share/man/man1    every page; then: man meshctl-rollout-undo")]
pub struct Args {
    /// The command whose page is wanted; meshctl's own where left out
    #[arg(value_name = "COMMAND", conflicts_with = "dir")]
    command: Vec<String>,

    /// Write one page for each command into this folder
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

pub(super) fn run(args: &Args, mut whole: clap::Command) -> Outcome {
    match &args.dir {
        Some(dir) => {
            let failed = |error| Failure::file(format_args!("cannot write manual pages to {}", dir.display()), &error);
            std::fs::create_dir_all(dir).map_err(failed)?;
            clap_mangen::generate_to(whole, dir).map_err(failed)?;
        }
        None => {
            // Only a command that is built knows that it is `meshctl-rollout-undo`.
            whole.build();
            let words = args.command.iter().flat_map(|word| word.split('-')).filter(|word| *word != "meshctl");
            let wanted = find(&whole, words)?.clone();
            let mut page = Vec::new();
            let written = clap_mangen::Man::new(wanted).render(&mut page);
            written.map_err(|error| Failure::file("cannot write the manual page", &error))?;
            print(String::from_utf8_lossy(&page))?;
        }
    }
    Ok(exit::OK)
}

/// # Errors
/// Not found, with what there is.
fn find<'a, 'w>(whole: &'a clap::Command, words: impl Iterator<Item = &'w str>) -> Result<&'a clap::Command, Failure> {
    let mut found = whole;
    for word in words {
        found = found.find_subcommand(word).ok_or_else(|| {
            let known: Vec<&str> =
                found.get_subcommands().filter(|one| !one.is_hide_set()).map(clap::Command::get_name).collect();
            let known = match known.as_slice() {
                [] => format!("{} has no commands of its own", found.get_name()),
                known => format!("there are {}", known.join(", ")),
            };
            Failure::not_found(format!("{} has no command `{word}`", found.get_name())).hint(known)
        })?;
    }
    Ok(found)
}

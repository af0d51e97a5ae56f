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
  meshctl man --dir ~/.local/share/man/man1")]
pub struct Args {
    /// Write one page for each command into this folder
    #[arg(long, value_name = "DIR", value_hint = clap::ValueHint::DirPath)]
    dir: Option<PathBuf>,
}

pub(super) fn run(args: &Args, whole: clap::Command) -> Outcome {
    match &args.dir {
        Some(dir) => {
            let failed = |error| Failure::file(format_args!("cannot write manual pages to {}", dir.display()), &error);
            std::fs::create_dir_all(dir).map_err(failed)?;
            clap_mangen::generate_to(whole, dir).map_err(failed)?;
        }
        None => {
            let mut page = Vec::new();
            let written = clap_mangen::Man::new(whole).render(&mut page);
            written.map_err(|error| Failure::file("cannot write the manual page", &error))?;
            print(String::from_utf8_lossy(&page))?;
        }
    }
    Ok(exit::OK)
}

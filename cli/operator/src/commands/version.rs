//! `meshctl version`

use meshctl_api::build;
use meshctl_api::view::Version;
use meshctl_model::{API_VERSION, exit};
use serde::Serialize;

use crate::args::OutputArgs;
use crate::failure::Outcome;
use crate::output::{document, print_line};
use crate::session::{Session, differs, skew};

/// Show the version of this command and of the daemon
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl version
  meshctl version -o json
  meshctl version -o jsonpath='{.client.version}'")]
pub struct Args {
    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Versions {
    api_version: &'static str,
    kind: &'static str,
    client: This,
    /// `null` where none answers.
    daemon: Option<Version>,
    /// Whether they differ.
    skew: bool,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct This {
    version: &'static str,
    build: &'static str,
}

pub(super) async fn run(session: &Session, args: &Args) -> Outcome {
    args.output.output.must_not_be_names()?;
    let daemon = match session.client() {
        Ok(client) => client.version().await.ok(),
        Err(_) => None,
    };
    let versions = Versions {
        api_version: API_VERSION,
        kind: "VersionInfo",
        client: This { version: build::VERSION, build: build::build() },
        skew: daemon.as_ref().is_some_and(differs),
        daemon,
    };
    if document(&args.output.output, &versions)? {
        return Ok(exit::OK);
    }
    print_line(format_args!("meshctl {}", build::VERSION))?;
    match &versions.daemon {
        None => print_line("daemon  not running")?,
        Some(daemon) if versions.skew => {
            print_line(format_args!("daemon  {} (pid {}): {}", daemon.version, daemon.pid, skew(daemon)))?
        }
        Some(daemon) => print_line(format_args!("daemon  {} (pid {})", daemon.version, daemon.pid))?,
    }
    Ok(exit::OK)
}

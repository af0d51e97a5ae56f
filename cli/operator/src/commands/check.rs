//! `meshctl check`: is everything as it should be, and what to do where it is not.

use std::path::{Path, PathBuf};

use meshctl_model::load::{Loaded, load};
use meshctl_model::topology::Topology;
use meshctl_model::{API_VERSION, exit};
use serde::Serialize;

use crate::args::OutputArgs;
use crate::examine::{Grade, Group, Ports, examine};
use crate::failure::{Failure, Outcome};
use crate::output::{BAD, BOLD, CAREFUL, GOOD, document, findings, print, speaks_unicode, styled};
use crate::session::Session;
use crate::sources::{FileArgs, invalid};

/// Check the machine, the state directory and the system, and say what to do
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  meshctl check
  meshctl check --pre shop.yaml    before the first apply: the machine, and the ports of this topology
  meshctl check -o json | jq '.groups[].checks[] | select(.grade != \"good\")'
  meshctl check --state-dir /var/lib/meshctl

Exit status: 0 if nothing is broken (warnings are shown), 1 if something is.")]
pub struct Args {
    /// A topology whose ports are to be free
    #[arg(value_name = "FILE", value_hint = clap::ValueHint::AnyPath)]
    file: Option<PathBuf>,

    /// Look at the machine and this program alone, before there is a system
    #[arg(long)]
    pre: bool,

    #[command(flatten)]
    output: OutputArgs,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report<'a> {
    api_version: &'static str,
    kind: &'static str,
    healthy: bool,
    groups: &'a [Group],
}

pub(super) async fn run(session: &Session, args: &Args) -> Outcome {
    args.output.output.must_not_be_names()?;
    let topology = args.file.as_deref().map(topology).transpose()?;
    let groups = examine(session, &Ports::of(topology.as_ref()), args.pre).await;
    let healthy = !groups.iter().flat_map(|group| &group.checks).any(|check| check.grade == Grade::Broken);
    let report = Report { api_version: API_VERSION, kind: "CheckReport", healthy, groups: &groups };
    if !document(&args.output.output, &report)? {
        print(page(&groups, speaks_unicode()))?;
    }
    Ok(if healthy { exit::OK } else { exit::FAILURE })
}

fn page(groups: &[Group], unicode: bool) -> String {
    let mut text = String::new();
    let all = || groups.iter().flat_map(|group| &group.checks);
    for group in groups {
        text.push_str(&format!("{}\n", styled(BOLD, group.name)));
        for check in &group.checks {
            let (style, sign, ascii) = match check.grade {
                Grade::Good => (GOOD, "√", "ok "),
                Grade::Careful => (CAREFUL, "‼", "!! "),
                Grade::Broken => (BAD, "×", "XX "),
            };
            text.push_str(&format!(
                "  {} {}\n",
                styled(style, if unicode { sign } else { ascii.trim_end() }),
                check.message
            ));
            if let Some(remedy) = &check.remedy {
                text.push_str(&format!("      {remedy}\n"));
            }
        }
        text.push('\n');
    }
    let found = |wanted: Grade| all().filter(|check| check.grade == wanted).count();
    let verdict = match (found(Grade::Broken), found(Grade::Careful)) {
        (0, 0) => styled(GOOD, "everything is as it should be"),
        (0, careful) => styled(CAREFUL, format_args!("nothing is broken; {careful} to look at")),
        (broken, careful) => styled(BAD, format_args!("{broken} broken, {careful} to look at")),
    };
    text.push_str(&format!("{verdict}\n"));
    text
}

/// # Errors
/// What cannot be read, or is no topology.
fn topology(file: &Path) -> Result<Topology, Failure> {
    let files = FileArgs { files: vec![file.to_owned()], file: Vec::new() };
    let Loaded { topology, findings } = load(&files.topology()?);
    topology.ok_or_else(|| {
        let hint = format!("`meshctl validate {}` says what is wrong with it", file.display());
        invalid(&findings::count(&findings)).hint(hint)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::examine::Check;

    #[test]
    fn what_is_wrong_comes_with_its_remedy() {
        let check = |grade, message: &str, remedy: Option<&str>| Check {
            grade,
            message: message.into(),
            remedy: remedy.map(Into::into),
        };
        let groups = [
            Group { name: "machine", checks: vec![check(Grade::Good, "20000 open files are allowed", None)] },
            Group {
                name: "system",
                checks: vec![
                    check(Grade::Careful, "the gateway starts", Some("wait a moment")),
                    check(Grade::Broken, "orders is failed", Some("`meshctl logs orders` shows why")),
                ],
            },
        ];
        let drawn = |unicode| anstream::adapter::strip_str(&page(&groups, unicode)).to_string();
        insta::assert_snapshot!(drawn(true), @r"
        machine
          √ 20000 open files are allowed

        system
          ‼ the gateway starts
              wait a moment
          × orders is failed
              `meshctl logs orders` shows why

        1 broken, 1 to look at
        ");
        assert!(drawn(false).is_ascii());
    }
}

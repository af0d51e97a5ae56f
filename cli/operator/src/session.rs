//! What every command gets: where the system is, and how to talk about it.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::time::Duration;

use etcetera::BaseStrategy;
use meshctl_api::build;
use meshctl_api::client::Client;
use meshctl_api::view::Version;
use meshctl_model::exit;

use crate::args::{Globals, When};
use crate::failure::Failure;
use crate::{launch, output};

/// One call of the command line.
#[derive(Debug)]
pub(crate) struct Session {
    state_dir: PathBuf,
    quiet: bool,
    verbose: bool,
    /// How long the whole command may wait, where it was told.
    timeout: Option<Duration>,
}

impl Session {
    /// # Errors
    /// When there is no home directory to find the default state directory in.
    pub(crate) fn new(globals: &Globals) -> Result<Self, Failure> {
        match globals.color {
            // In CI the library colours even for a terminal that says it cannot; a terminal knows best.
            When::Auto if dumb_terminal() => anstream::ColorChoice::Never.write_global(),
            When::Auto => {}
            When::Always => anstream::ColorChoice::Always.write_global(),
            When::Never => anstream::ColorChoice::Never.write_global(),
        }
        let state_dir = state_dir(globals.state_dir.as_deref())?;
        Ok(Self { state_dir, quiet: globals.quiet, verbose: globals.verbose > 0, timeout: None })
    }

    /// The same for a command that has `timeout` for everything: no answer is waited for longer.
    pub(crate) fn within(mut self, timeout: Option<Duration>) -> Self {
        self.timeout = timeout;
        self
    }

    /// Absolute.
    pub(crate) fn state_dir(&self) -> &Path {
        &self.state_dir
    }

    /// Says something beside the result, on stderr; not with `--quiet`.
    pub(crate) fn say(&self, text: impl Display) {
        if !self.quiet {
            output::say(text);
        }
    }

    pub(crate) fn is_quiet(&self) -> bool {
        self.quiet
    }

    /// Whether details of a result are wanted too.
    pub(crate) fn is_verbose(&self) -> bool {
        self.verbose
    }

    /// A client for the daemon of this state directory, whether or not one answers.
    pub(crate) fn client(&self) -> Result<Client, Failure> {
        let client = Client::at(&self.state_dir)?;
        Ok(match self.timeout {
            Some(timeout) => client.patience(timeout),
            None => client,
        })
    }

    /// The failure that a daemon is which died; `None` where none should run, or one does.
    fn died(&self) -> Option<Failure> {
        let record = launch::recorded(&self.state_dir).filter(|record| !launch::is_alive(record))?;
        let message = format!("the daemon (pid {}) died; what it started runs on", record.pid);
        let hint = "`meshctl apply FILE` starts a new one, which takes over; `meshctl down` ends everything";
        Some(Failure::new(exit::UNREACHABLE, message).hint(hint))
    }

    /// The daemon, which answers; another build than this one is worth a warning.
    pub(crate) async fn daemon(&self) -> Result<Client, Failure> {
        let client = self.client()?;
        let version = client.version().await.map_err(|error| self.died().unwrap_or_else(|| error.into()))?;
        self.warn_of_skew(&version);
        Ok(client)
    }

    /// Another build than this one is worth a warning; not with `--quiet`.
    pub(crate) fn warn_of_skew(&self, daemon: &Version) {
        if differs(daemon) && !self.quiet {
            let (pid, skew, remedy) = (daemon.pid, skew(daemon), remedy(daemon));
            output::warn(format_args!("the daemon (pid {pid}) runs {skew}; {remedy}"));
        }
    }
}

/// Whether the daemon runs another build than this process.
pub(crate) fn differs(daemon: &Version) -> bool {
    daemon.version != build::VERSION || daemon.build != build::build()
}

/// Whether this process takes over from the daemon: it is newer, or another build of the same version. A newer daemon keeps
/// its system, because what it has written may be more than this build can read.
pub(crate) fn replaces(daemon: &Version) -> bool {
    let numbers = |version: &str| version.split('.').map(|part| part.parse::<u64>().ok()).collect::<Option<Vec<u64>>>();
    if daemon.version == build::VERSION {
        return daemon.build != build::build();
    }
    match (numbers(build::VERSION), numbers(&daemon.version)) {
        (Some(this), Some(other)) => this > other,
        // Which of them is newer is not known.
        _ => false,
    }
}

/// What to do about a daemon that differs.
pub(crate) fn remedy(daemon: &Version) -> &'static str {
    match replaces(daemon) {
        true => "the next `meshctl apply` replaces it",
        false => "use that version, this one leaves it as it is",
    }
}

/// `0.1.0, this is 0.2.0`, in the fewest words that differ.
pub(crate) fn skew(daemon: &Version) -> String {
    if daemon.version == build::VERSION {
        format!("another build of {}", daemon.version)
    } else {
        format!("meshctl {}, and this is {}", daemon.version, build::VERSION)
    }
}

/// Names the state directory where the command line does not. Read here and not by clap, which would show a required
/// `--state-dir` in every usage line where it is set.
const STATE_DIR: &str = "MESHCTL_STATE_DIR";

/// Whether `TERM` says that the terminal shows nothing but text, and nobody insists on colour.
fn dumb_terminal() -> bool {
    let insisted = std::env::var_os("CLICOLOR_FORCE").is_some_and(|value| value != "0");
    std::env::var_os("TERM").is_some_and(|term| term == "dumb") && !insisted
}

/// The state directory: as asked for, as the environment says, or the XDG one. Absolute, because a daemon outlives the folder it was started in.
///
/// # Errors
/// When there is neither.
pub fn state_dir(wanted: Option<&Path>) -> Result<PathBuf, Failure> {
    let named = wanted.map(Path::to_owned).or_else(|| std::env::var_os(STATE_DIR).map(PathBuf::from));
    let dir = match named {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => {
            let xdg = etcetera::choose_base_strategy().map_err(|error| {
                Failure::new(exit::FAILURE, "there is no home directory to keep the system in")
                    .caused_by(&error)
                    .hint("name a folder with --state-dir or MESHCTL_STATE_DIR")
            })?;
            let base = xdg.state_dir().unwrap_or_else(|| xdg.data_dir());
            base.join("meshctl").join("default")
        }
    };
    std::path::absolute(&dir).map_err(|error| Failure::file(format_args!("cannot use {}", dir.display()), &error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_not_newer_is_replaced() {
        let daemon = |version: &str, build: &str| Version {
            version: version.into(),
            pid: 1,
            executable: String::new(),
            build: build.into(),
            started_at: jiff::Timestamp::UNIX_EPOCH,
            state_dir: String::new(),
        };
        assert!(!replaces(&daemon(build::VERSION, build::build())), "this very build");
        assert!(replaces(&daemon(build::VERSION, "another")));
        assert!(replaces(&daemon("0.0.9", build::build())));
        for newer in ["0.10.0", "99.0.0", "0.1.0-rc.1+unknown"] {
            assert!(!replaces(&daemon(newer, "another")), "{newer}");
        }
    }
}

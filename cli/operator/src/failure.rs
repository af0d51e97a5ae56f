//! The one shape in which a command fails.

use std::error::Error;
use std::fmt::Display;
use std::io;

use meshctl_api::ApiError;
use meshctl_model::exit;
use meshctl_model::finding::Finding;

/// How a command ends: its exit status, or why it failed.
pub type Outcome = Result<u8, Failure>;

/// Printed as `error: …`, `  caused by: …`, `  hint: …`.
#[derive(Debug)]
pub struct Failure {
    /// One of [`meshctl_model::exit`].
    pub exit: u8,
    /// What was attempted, on what, and why it failed. Empty where everything has been said already.
    pub message: String,
    pub causes: Vec<String>,
    /// What to try.
    pub hint: Option<String>,
    /// With an invalid topology that the daemon refused.
    pub findings: Vec<Finding>,
}

impl Failure {
    pub fn new(exit: u8, message: impl Into<String>) -> Self {
        Self { exit, message: message.into(), causes: Vec::new(), hint: None, findings: Vec::new() }
    }

    /// Only an exit status: what there is to say has been said.
    pub fn silent(exit: u8) -> Self {
        Self::new(exit, "")
    }

    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(exit::USAGE, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(exit::NOT_FOUND, message)
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    #[must_use]
    pub fn caused_by(mut self, error: &dyn Error) -> Self {
        self.causes.push(error.to_string());
        match error.source() {
            Some(source) => self.caused_by(source),
            None => self,
        }
    }

    /// Reading or writing a file failed.
    pub fn file(doing: impl Display, error: &io::Error) -> Self {
        let exit = if error.kind() == io::ErrorKind::PermissionDenied { exit::PERMISSION } else { exit::FAILURE };
        Self::new(exit, doing.to_string()).caused_by(error)
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self {
            exit: error.code.exit_status(),
            message: error.message,
            causes: Vec::new(),
            hint: error.hint,
            findings: error.findings,
        }
    }
}

/// Writing the result failed. A reader that has seen enough, such as `head`, is no failure.
pub(crate) fn writing(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::BrokenPipe => Failure::silent(exit::OK),
        _ => Failure::file("cannot write the result", error),
    }
}

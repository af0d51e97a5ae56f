//! The outcome of one command.

use serde_json::Value;

/// A command that has ended.
#[derive(Debug)]
pub struct Ran {
    /// The command as a person would type it.
    pub line: String,
    /// Its exit status; -1 where a signal ended it.
    pub status: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// Panics with all of it unless it ended with `status`.
    #[track_caller]
    pub fn expect(self, status: u8) -> Self {
        assert!(self.status == i32::from(status), "expected status {status} from {self}");
        self
    }

    /// Its result.
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|why| panic!("stdout is not JSON ({why}) of {self}"))
    }

    /// Panics unless `text` stands in what it wrote, on either stream.
    #[track_caller]
    pub fn says(&self, text: &str) -> &Self {
        assert!(self.stdout.contains(text) || self.stderr.contains(text), "no {text:?} in {self}");
        self
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { line, status, stdout, stderr } = self;
        write!(f, "`{line}`, which ended with status {status}\n--- stdout\n{stdout}\n--- stderr\n{stderr}\n---")
    }
}

//! What is wrong with a topology: where, why, and what to do.

use serde::{Deserialize, Serialize};

/// One thing that validation found. Lines and columns count from 1, columns in characters; the end is exclusive.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub severity: Severity,
    /// Stable: `unknown-key`, `unknown-service`.
    pub code: String,
    pub message: String,
    /// What to do about it.
    pub help: Option<String>,
    pub file: String,
    pub line: usize,
    pub column: usize,
    pub end_line: usize,
    pub end_column: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// The topology is refused.
    Error,
    /// It is accepted, and probably not what is meant.
    Warning,
}

//! The one shape of every error that crosses the wire.

use meshctl_model::finding::Finding;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Why a call was refused or failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[serde(rename_all = "camelCase")]
#[error("{message}")]
pub struct ApiError {
    pub code: ErrorCode,
    /// What was attempted, on what, and why it failed.
    pub message: String,
    /// What to try.
    pub hint: Option<String>,
    /// With [`ErrorCode::InvalidTopology`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schema(value_type = Vec<Object>)]
    pub findings: Vec<Finding>,
}

/// The table of error codes: each has one HTTP status and one exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub enum ErrorCode {
    /// The request itself is wrong.
    Invalid,
    InvalidTopology,
    NotFound,
    /// Stale plan, or somebody else is changing the same thing.
    Conflict,
    Forbidden,
    TimedOut,
    /// No daemon answers.
    Unreachable,
    /// A daemon is there and does not answer: it is stopped, or stuck.
    Silent,
    /// The daemon is on its way down, or cannot write.
    Unavailable,
    Internal,
}

impl ErrorCode {
    pub const fn http_status(self) -> u16 {
        match self {
            Self::Invalid => 400,
            Self::InvalidTopology => 422,
            Self::NotFound => 404,
            Self::Conflict => 409,
            Self::Forbidden => 403,
            Self::TimedOut => 504,
            Self::Unreachable | Self::Silent | Self::Unavailable => 503,
            Self::Internal => 500,
        }
    }

    pub const fn exit_status(self) -> u8 {
        use meshctl_model::exit;
        match self {
            Self::Invalid => exit::USAGE,
            Self::InvalidTopology => exit::INVALID_TOPOLOGY,
            Self::NotFound => exit::NOT_FOUND,
            Self::Conflict => exit::CONFLICT,
            Self::Forbidden => exit::PERMISSION,
            Self::TimedOut => exit::TIMED_OUT,
            Self::Unreachable | Self::Silent => exit::UNREACHABLE,
            Self::Unavailable | Self::Internal => exit::FAILURE,
        }
    }
}

impl ApiError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self { code, message: message.into(), hint: None, findings: Vec::new() }
    }

    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

//! From what went wrong on the wire to an [`ApiError`] that says what to try.

use std::error::Error;
use std::io;
use std::time::Duration;

use reqwest::Response;

use crate::error::{ApiError, ErrorCode};

/// The request did not come through, or its answer broke off.
pub(super) fn transport(place: &str, error: reqwest::Error) -> ApiError {
    if error.is_timeout() {
        return ApiError::new(ErrorCode::TimedOut, format!("the daemon at {place} did not answer in time"))
            .hint("it may be busy or stuck: look at its log, daemon.log in the state directory");
    }
    match cause(&error) {
        Some(cause) if error.is_connect() => io(place, cause),
        _ if error.is_builder() => ApiError::new(ErrorCode::Invalid, format!("the request cannot be made: {error}")),
        cause => {
            let why = cause.map_or_else(|| error.to_string(), ToString::to_string);
            ApiError::new(ErrorCode::Unreachable, format!("the daemon at {place} broke off: {why}"))
                .hint("it may have ended: look at its log, daemon.log in the state directory")
        }
    }
}

/// The socket could not be opened.
pub(super) fn io(place: &str, error: &io::Error) -> ApiError {
    if error.kind() == io::ErrorKind::PermissionDenied {
        return ApiError::new(ErrorCode::Forbidden, format!("cannot open {place}: permission denied"))
            .hint("only the user who started the daemon may talk to it");
    }
    ApiError::new(ErrorCode::Unreachable, format!("no daemon answers at {place}"))
        .hint("start a system with `meshctl apply FILE`, or name another state directory with --state-dir")
}

/// The daemon answered with an error.
pub(super) async fn refused(path: &str, answer: Response) -> ApiError {
    let status = answer.status();
    match answer.json().await {
        Ok(error) => error,
        Err(_) => ApiError::new(ErrorCode::Internal, format!("the daemon answered {path} with {status}"))
            .hint("it may be of another version: compare with `meshctl version`"),
    }
}

pub(super) fn not_understood(path: &str, error: &serde_json::Error) -> ApiError {
    ApiError::new(ErrorCode::Internal, format!("the daemon's answer to {path} is not understood: {error}"))
        .hint("it may be of another version: compare with `meshctl version`")
}

pub(super) fn silent(place: &str, waited: Duration) -> ApiError {
    ApiError::new(ErrorCode::TimedOut, format!("the daemon at {place} did not answer within {waited:?}"))
}

/// The system's own error at the bottom of the chain.
fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a io::Error> {
    let mut error = error.source();
    while let Some(inner) = error {
        if let Some(io) = inner.downcast_ref() {
            return Some(io);
        }
        error = inner.source();
    }
    None
}

//! From what went wrong on the wire to an [`ApiError`] that says what to try.

use std::error::Error;
use std::io;
use std::path::Path;

use reqwest::Response;

use crate::error::{ApiError, ErrorCode};
use crate::place::{DAEMON, DaemonRecord};

/// The request did not come through, or its answer broke off.
pub(super) fn transport(place: &str, error: reqwest::Error) -> ApiError {
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

/// Somebody listens on the socket and does not answer. Who, and what the kernel says about it, tells a stopped daemon from
/// one that is stuck; a caller in a hurry only learns that its time is over.
pub(super) fn silent(place: &str, in_a_hurry: bool) -> ApiError {
    let code = if in_a_hurry { ErrorCode::TimedOut } else { ErrorCode::Silent };
    let dir = Path::new(place).parent().unwrap_or(Path::new("/"));
    let record = std::fs::read(dir.join(DAEMON)).ok();
    let Some(record) = record.and_then(|text| serde_json::from_slice::<DaemonRecord>(&text).ok()) else {
        return ApiError::new(code, format!("the daemon of {} does not answer", dir.display()))
            .hint("look at its log, daemon.log in the state directory");
    };
    let (pid, state) = (record.pid, process_state(record.pid));
    let message = format!("the daemon (pid {pid}) of {} does not answer (process state: {state})", dir.display());
    ApiError::new(code, message).hint(match state {
        "stopped" => format!("`kill -CONT {pid}` lets it go on"),
        _ => format!("look at its log, daemon.log; `kill -9 {pid}` and `meshctl apply FILE` replace it"),
    })
}

/// The third field of `/proc/PID/stat` in words.
fn process_state(pid: u32) -> &'static str {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name before it, in parentheses, may contain anything.
    match stat.rsplit_once(") ").and_then(|(_, rest)| rest.chars().next()) {
        Some('R') => "running",
        Some('S' | 'I') => "sleeping",
        Some('D') => "waiting for a device",
        Some('T') => "stopped",
        Some('t') => "stopped by a debugger",
        Some('Z' | 'X') => "ended",
        Some(_) => "unknown",
        None => "gone",
    }
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

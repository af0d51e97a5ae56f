//! The exit statuses that scripts rely on.

/// Everything asked for was done.
pub const OK: u8 = 0;
/// It was attempted and failed; with `--exit-code`, there are changes.
pub const FAILURE: u8 = 1;
/// The command line itself is wrong.
pub const USAGE: u8 = 2;
/// The named thing does not exist.
pub const NOT_FOUND: u8 = 3;
/// Somebody else changed it first, or a saved plan is stale.
pub const CONFLICT: u8 = 4;
/// `--wait` ran out of `--timeout`.
pub const TIMED_OUT: u8 = 5;
/// No daemon answers for this state directory (sysexits `EX_UNAVAILABLE`).
pub const UNREACHABLE: u8 = 69;
/// Not allowed (sysexits `EX_NOPERM`).
pub const PERMISSION: u8 = 77;
/// The topology has errors (sysexits `EX_CONFIG`).
pub const INVALID_TOPOLOGY: u8 = 78;
/// The generator of a load test did not keep up: its figures say nothing about the service.
pub const LOAD_INVALID: u8 = 98;
/// A load test measured what a service level objective forbids.
pub const SLO_BREACHED: u8 = 99;
/// Ended by Ctrl-C (128 + SIGINT).
pub const INTERRUPTED: u8 = 130;

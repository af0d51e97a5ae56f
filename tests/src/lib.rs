//! The harness of the end-to-end tests: real processes of the built binary, each system in a state directory and a range of
//! ports of its own, and nothing left of it however a test ends.
//!
//! The tests drive meshctl as an operator does, by its command line, and rely only on what `cli.md` promises to scripts.

mod http;
mod load;
mod messages;
mod ports;
pub mod process;
mod ran;
mod screen;
mod skip;
mod system;
mod wait;

pub use http::{Answer, get, send};
pub use load::{Load, Tally};
pub use messages::{Jobs, Received, job};
pub use ports::Ports;
pub use ran::Ran;
pub use screen::Screen;
pub use skip::{installed, skipped};
pub use system::System;
pub use wait::{wait_for, wait_until};

/// The repository's folder.
pub fn repository() -> std::path::PathBuf {
    std::path::Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate is in the repository").to_owned()
}

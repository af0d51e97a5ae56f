//! The nouns of meshctl and the pure decisions over them.
//!
//! Nothing here performs I/O, reads a clock or knows an async runtime: time, randomness and the environment are
//! arguments, so that every decision can be replayed by a test. Every other room may import this one; it imports none.

pub mod delivery;
pub mod event;
pub mod exit;
pub mod filter;
pub mod finding;
pub mod flow;
pub mod instance;
pub mod load;
pub mod message;
pub mod plan;
pub mod policy;
pub mod recent;
pub mod schema;
pub mod slo;
pub mod snapshot;
pub mod starter;
pub mod topology;
pub mod trace;
pub mod units;
mod validate;

/// The version of the topology language and of every JSON document that scripts may rely on.
pub const API_VERSION: &str = "meshctl/v1";

/// The caller's name of every edge that begins outside the system: `gateway:orders`.
pub const GATEWAY: &str = "gateway";

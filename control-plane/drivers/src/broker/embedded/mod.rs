//! The embedded broker: a process of meshctl's own that keeps messages in one SQLite file.
//!
//! [`serve`] is the process, [`Client`] the driver; PROTOCOL.md says what they tell each other. Inside the process the event
//! loop only moves frames (`server`); one thread decides and writes (`engine`), one answers questions (`store::view`).

mod assignment;
mod client;
mod codec;
mod engine;
mod link;
mod metrics;
mod outbox;
mod partitioner;
pub mod place;
mod protocol;
mod rate;
mod server;
mod settled;
mod store;

pub use client::{Address, Client, SESSION};
pub use partitioner::partition_of;
pub use server::{Options, ServeError, serve};

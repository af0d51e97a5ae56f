//! What one request and one message pass through, and the processes that carry them.
//!
//! [`gateway::run`] is the process of requests, [`courier::run`] that of messages. `stack` is the one place where the order
//! of the layers is decided; every concern of it is a file of its own, and the pure ones (breaker, budget, rate limit,
//! choice of an endpoint, route match, the courier's deliveries and pauses) take time and chance as arguments, so that
//! tests can drive them through years.

mod admin;
mod attempt;
mod balance;
mod body;
mod breaker;
mod bulkhead;
mod clock;
mod connection;
mod control;
pub mod courier;
mod deadline;
mod disk;
mod eject;
mod events;
mod fallback;
mod forwarded;
pub mod gateway;
mod handover;
mod holder;
mod listener;
mod metrics;
mod name;
mod page;
mod plan;
mod pool;
mod problem;
mod rate_limit;
mod recent;
mod retry;
mod route;
mod socket;
mod spans;
mod stack;
mod trace;
mod upgrade;
mod window;
mod worker;

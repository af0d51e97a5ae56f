//! What one request passes through, and the process that carries it.
//!
//! [`gateway::run`] is the process. `stack` is the one place where the order of the layers is decided; every concern of
//! it is a file of its own, and the pure ones (breaker, budget, rate limit, choice of an endpoint, route match) take
//! time and chance as arguments, so that tests can drive them through years.

mod admin;
mod attempt;
mod balance;
mod body;
mod breaker;
mod bulkhead;
mod clock;
mod connection;
mod control;
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
mod plan;
mod pool;
mod problem;
mod rate_limit;
mod retry;
mod route;
mod socket;
mod stack;
mod trace;
mod upgrade;
mod window;
mod worker;

//! What the control plane acts through: one folder per family, one subfolder per driver. A family's `mod.rs` is its
//! contract and the visible list of its drivers; drivers of different families never know each other.

use std::future::Future;
use std::pin::Pin;

pub mod broker;
pub mod descriptors;
pub mod gateway;
pub mod registry;
pub mod runtime;
pub mod socket_path;
pub mod spans;

/// A future that a driver returns: boxed, so that the contracts stay object-safe.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

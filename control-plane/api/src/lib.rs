//! Both ends of the wire between the operator's commands and the daemon: bodies, errors and the typed client.

pub mod build;
pub mod client;
pub mod error;
pub mod place;
pub mod view;

pub use error::ApiError;

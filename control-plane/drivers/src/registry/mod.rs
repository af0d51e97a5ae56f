//! Registries know where the instances of a service are, which of them may be sent requests, and why the others may not.
//! They hold what they are told: instances by the daemon, which checks them, and leases by strangers, who renew them.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use crate::Pending;

pub mod embedded;

/// The contract of every registry.
pub trait Registry: Send + Sync {
    /// Puts an endpoint in, or gives it a new address. An instance begins out, until [`Registry::mark`] says that it is ready;
    /// a lease begins in, and registering it again renews it.
    ///
    /// # Errors
    /// [`RegistryError::Taken`] when the id is in use by an endpoint of the other source.
    fn register<'a>(&'a self, registration: &'a Registration) -> Pending<'a, Result<Endpoint, RegistryError>>;

    /// Prolongs a lease by its own length, from now.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`] when there is none, or it has run out: what has left comes back by registering only.
    fn renew<'a>(&'a self, service: &'a str, id: &'a str) -> Pending<'a, Result<Endpoint, RegistryError>>;

    /// Tells the outcome of a check: in, or out with the reason.
    ///
    /// # Errors
    /// [`RegistryError::Unknown`].
    fn mark<'a>(
        &'a self,
        service: &'a str,
        id: &'a str,
        outcome: Result<(), String>,
    ) -> Pending<'a, Result<(), RegistryError>>;

    /// Takes an endpoint out for good; one that is not there is gone already.
    ///
    /// # Errors
    /// When the registry does not answer.
    fn deregister<'a>(&'a self, service: &'a str, id: &'a str) -> Pending<'a, Result<(), RegistryError>>;

    /// The endpoints of a service, as soon as its index is greater than `after`; 0 asks for what there is now. Of changes in
    /// quick succession only the last may be seen.
    ///
    /// # Errors
    /// When the registry does not answer.
    fn watch<'a>(&'a self, service: &'a str, after: u64) -> Pending<'a, Result<Endpoints, RegistryError>>;

    /// Everything there is now.
    ///
    /// # Errors
    /// When the registry does not answer.
    fn snapshot(&self) -> Pending<'_, Result<Endpoints, RegistryError>>;
}

/// A registry that can be shared.
pub type SharedRegistry = Arc<dyn Registry>;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    pub service: String,
    /// Unique within the service.
    pub id: String,
    /// `127.0.0.1:20014`
    pub address: String,
    /// How long it stays without being renewed; `None` for an instance of ours.
    pub lease: Option<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub service: String,
    pub id: String,
    pub address: String,
    pub source: Source,
    pub health: Health,
    /// Of this health.
    pub since: Timestamp,
    pub last_checked_at: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Started by us and checked actively.
    Instance,
    /// Registered from outside.
    Lease { expires_at: Timestamp, length: Duration },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// May be sent requests.
    In,
    Out {
        reason: String,
    },
}

/// Endpoints at an index.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Endpoints {
    /// Rises with every change of an address or a health, and when something comes or goes; not with a renewal or a check
    /// that finds what the one before it found.
    pub index: u64,
    /// By service and id.
    pub items: Vec<Endpoint>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    #[error("{service} has no endpoint {id} (a lease that has run out must be registered again)")]
    Unknown { service: String, id: String },
    #[error("{id} is an endpoint of {service} already, as {source_name}; register under another id")]
    Taken {
        service: String,
        id: String,
        /// `instance` or `lease`.
        source_name: &'static str,
    },
    #[error("the registry does not answer: {0}")]
    Unreachable(String),
}

//! Registries know where the instances of a service are, which of them may be sent requests, and why the others may not.
//! They hold what they are told: instances by the daemon, which checks them, and leases by strangers, who renew them.
//!
//! There is one registry so far, the embedded one, which is a value in the control loop; the family's trait comes with the
//! first registry that has to be asked over a network.

use std::time::Duration;

use jiff::Timestamp;

pub mod embedded;

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
}

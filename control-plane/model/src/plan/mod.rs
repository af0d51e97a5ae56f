//! From what is wanted and what is seen to what is done next.
//!
//! [`render`] turns a topology into [`Desired`], in which nothing is left to choose but the names and ports of instances
//! to come; [`changes`] says what differs between two of them, for people; [`decide`] compares one with what is
//! [`Observed`] and returns the next [`Step`]s. All three are pure, so that an interrupted change ends where an
//! undisturbed one ends: after any crash the same comparison is simply made again.

mod breakers;
mod changes;
mod channels;
mod decide;
mod desired;
mod messages;
mod observed;
mod ports;
mod routing;
mod telemetry;

pub use breakers::{Reach, Standing, reach};
pub use changes::{Change, changes};
pub use channels::{Held, Loss, losses};
pub use decide::{CRASH_LOOP, Step, backoff, decide};
pub use desired::{
    Desired, DesiredEdge, DesiredGateway, DesiredService, DesiredTelemetry, Overlay, Template, render, reserved_ports,
};
pub use observed::{AfterStop, Failing, GatewayLink, Instance, Observed, Phase, ServiceRecord, Unready};
pub use ports::{PortRange, Ports};
pub use routing::{edge_name, route_name, snapshot};

/// What makes a plan stale: the sources it was made from and the revision it was compared with.
pub fn fingerprint(sources: &crate::load::Sources, base_revision: u64) -> String {
    let text = serde_json::to_vec(&(sources, base_revision)).unwrap_or_default();
    digest(&text)
}

/// The first 16 hexadecimal digits of SHA-256: short enough to read, long enough not to collide by accident.
pub(crate) fn digest(bytes: &[u8]) -> String {
    use sha2::{Digest, Sha256};
    Sha256::digest(bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

//! Gateways carry requests. A driver renders the snapshot into what its gateway understands, pushes it, and tells what is
//! really live.

use meshctl_model::snapshot::{GatewayEvent, GatewayStatus, Snapshot};

use crate::Pending;
use crate::spans::Spans;

pub mod conformance;
pub mod embedded;

/// The contract of every gateway driver; one value stands for one running gateway.
pub trait Gateway: Send + Sync {
    /// Makes `snapshot` live and returns the gateway's status once every thread of it uses it.
    ///
    /// # Errors
    /// When the gateway did not acknowledge. It then serves on from what it had.
    fn push<'a>(&'a self, snapshot: &'a Snapshot) -> Pending<'a, Result<GatewayStatus, GatewayError>>;

    /// What is live now.
    ///
    /// # Errors
    /// When the gateway does not answer.
    fn status(&self) -> Pending<'_, Result<GatewayStatus, GatewayError>>;

    /// Completes when no request is under way to any of these endpoints, which are no longer in the live snapshot.
    ///
    /// # Errors
    /// When the gateway does not answer, or `within` is over.
    fn drained<'a>(
        &'a self,
        endpoints: &'a [String],
        within: std::time::Duration,
    ) -> Pending<'a, Result<(), GatewayError>>;

    /// What happens in the gateway from now on, until it ends, the receiver is dropped or falls far behind. Nothing is
    /// told twice: after an end, what was missed shows in the status only.
    ///
    /// # Errors
    /// When the gateway does not answer.
    fn events(&self) -> Pending<'_, Result<tokio::sync::mpsc::Receiver<GatewayEvent>, GatewayError>>;

    /// The spans that the gateway records from now on, and those of the last seconds that nobody has read, until it ends or the
    /// receiver is dropped. It has one reader: another one takes over, and the first one's stream ends.
    ///
    /// # Errors
    /// When the gateway does not answer.
    fn spans(&self) -> Pending<'_, Result<tokio::sync::mpsc::Receiver<Spans>, GatewayError>>;

    /// What the gateway still remembers of these traces (32 hexadecimal digits each, at most
    /// [`RECALL_AT_ONCE`](crate::spans::RECALL_AT_ONCE)), recorded or not: the last seconds.
    ///
    /// # Errors
    /// When the gateway does not answer, and when an id is none or there are too many.
    fn recall<'a>(&'a self, trace_ids: &'a [String]) -> Pending<'a, Result<Spans, GatewayError>>;
}

#[derive(Clone, Debug, thiserror::Error)]
pub enum GatewayError {
    /// It is not there, or went away.
    #[error("gateway {id} does not answer: {why}")]
    Unreachable { id: String, why: String },
    /// It refused what it was sent; trying again without a change will not help.
    #[error("gateway {id} refused: {why}")]
    Refused { id: String, why: String },
    #[error("gateway {id}: {what} took longer than {seconds} s")]
    TimedOut { id: String, what: &'static str, seconds: u64 },
}

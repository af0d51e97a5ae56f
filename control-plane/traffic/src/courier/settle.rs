//! Tells the broker what became of deliveries: whatever is done by the time that it has answered, together, so that one
//! commit there stands for many messages.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use meshctl_drivers::broker::{BrokerError, Outcome, Settlement, Settler};
use tokio::sync::mpsc;
use tokio::time::Instant;

/// The most that is settled at once.
const AT_ONCE: usize = 2048;
const PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(2);

pub(crate) struct Settling {
    /// `order.placed/billing`, for the log.
    pub(crate) of: Rc<str>,
    pub(crate) settler: Arc<dyn Settler>,
    /// The membership is lost: what could not be settled will be delivered again, and is forgotten.
    pub(crate) lost: Rc<Cell<bool>>,
}

impl Settling {
    /// Settles what comes until nothing more does, and all of it is settled or no longer ours.
    pub(crate) async fn run(self, mut done: mpsc::Receiver<Settlement>) {
        let (mut batch, mut left) = (Vec::new(), Vec::new());
        let (mut open, mut pause, mut again) = (true, PAUSE, Instant::now());
        while open || !left.is_empty() {
            tokio::select! {
                count = done.recv_many(&mut batch, AT_ONCE), if open => {
                    open = count > 0;
                    left.extend(self.settle(std::mem::take(&mut batch)).await);
                }
                () = tokio::time::sleep_until(again), if !left.is_empty() => {
                    let before = left.len();
                    left = self.settle(left).await;
                    pause = if left.len() < before { PAUSE } else { (pause * 2).min(LONGEST_PAUSE) };
                }
            }
            if self.lost.get() {
                left.clear();
            }
            if left.is_empty() {
                pause = PAUSE;
            } else if again <= Instant::now() {
                again = Instant::now() + pause;
            }
        }
    }

    /// Settles, and returns what could not be: a target that takes no more must not keep the rest from being settled.
    async fn settle(&self, batch: Vec<Settlement>) -> Vec<Settlement> {
        if batch.is_empty() {
            return batch;
        }
        let error = match self.settler.settle(batch.clone()).await {
            Ok(()) => return Vec::new(),
            Err(error) => error,
        };
        match &error {
            BrokerError::Lost(_) => {
                tracing::info!(of = %self.of, count = batch.len(), %error, "these will be delivered again");
                return Vec::new();
            }
            BrokerError::Full(_) | BrokerError::NotFound(_) | BrokerError::Refused(_) if batch.len() > 1 => {}
            _ => {
                tracing::warn!(of = %self.of, count = batch.len(), %error, "cannot settle; trying again");
                return batch;
            }
        }
        let (here, onward): (Vec<_>, Vec<_>) =
            batch.into_iter().partition(|settlement| settlement.outcome == Outcome::Processed);
        let mut left = Vec::new();
        let parts = std::iter::once(here).chain(onward.into_iter().map(|one| vec![one]));
        for part in parts.filter(|part| !part.is_empty()) {
            match self.settler.settle(part.clone()).await {
                Ok(()) | Err(BrokerError::Lost(_)) => {}
                Err(error) => {
                    tracing::warn!(of = %self.of, %error, "cannot settle; trying again");
                    left.extend(part);
                }
            }
        }
        left
    }
}

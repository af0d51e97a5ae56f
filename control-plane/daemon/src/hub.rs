//! Tells watchers what happens: a snapshot, then what changes. Nobody can slow the control loop down: a reader that falls
//! too far behind loses the middle and gets a new snapshot instead.

use meshctl_api::view::Told;
use tokio::sync::broadcast;

/// Messages that a reader may be behind.
const BACKLOG: usize = 4096;

#[derive(Clone, Debug)]
pub struct Hub {
    sender: broadcast::Sender<Told>,
}

impl Default for Hub {
    fn default() -> Self {
        Self { sender: broadcast::channel(BACKLOG).0 }
    }
}

impl Hub {
    pub fn tell(&self, told: Told) {
        // Without watchers there is nobody to tell.
        let _ = self.sender.send(told);
    }

    pub fn subscribe(&self) -> broadcast::Receiver<Told> {
        self.sender.subscribe()
    }

    pub fn anybody(&self) -> bool {
        self.sender.receiver_count() > 0
    }
}

//! What happens in the gateway, told to whoever listens. Nobody who listens slowly holds anything up: a reader that
//! falls more than a thousand events behind is told so and cut off; what it missed shows in the gateway's status.

use meshctl_model::snapshot::GatewayEvent;
use tokio::sync::broadcast;

const BACKLOG: usize = 1024;

#[derive(Clone, Debug)]
pub(crate) struct Events(broadcast::Sender<GatewayEvent>);

impl Events {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(BACKLOG))
    }

    pub(crate) fn emit(&self, event: GatewayEvent) {
        tracing::info!(?event, "gateway event");
        // An error only says that nobody listens.
        let _unheard = self.0.send(event);
    }

    pub(crate) fn subscribe(&self) -> broadcast::Receiver<GatewayEvent> {
        self.0.subscribe()
    }
}

use super::*;
pub struct EmbeddedGateway;
impl EmbeddedGateway {
    pub fn new(_id: String, _dir: std::path::PathBuf) -> Self {
        Self
    }
}
impl Gateway for EmbeddedGateway {
    fn push<'a>(&'a self, _s: &'a Snapshot) -> Pending<'a, Result<GatewayStatus, GatewayError>> {
        Box::pin(async { unreachable!() })
    }
    fn status(&self) -> Pending<'_, Result<GatewayStatus, GatewayError>> {
        Box::pin(async { unreachable!() })
    }
    fn drained<'a>(&'a self, _e: &'a [String], _w: std::time::Duration) -> Pending<'a, Result<(), GatewayError>> {
        Box::pin(async { unreachable!() })
    }
    fn events(&self) -> Pending<'_, Result<tokio::sync::mpsc::Receiver<GatewayEvent>, GatewayError>> {
        Box::pin(async { unreachable!() })
    }
}

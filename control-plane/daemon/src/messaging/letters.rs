//! What the message line needs of the store of dead letters.
#[derive(Clone, Debug, Default)]
pub struct Letters;
impl Letters {
    pub async fn counts(&self) -> Result<super::ledger::AllCounts, meshctl_api::error::ApiError> {
        Ok(Default::default())
    }
    pub async fn close(&self, _channel: &str, _subscription: &str) -> Result<(), String> {
        Ok(())
    }
}

//! Nobody, until the embedded broker's client is there.
use meshctl_drivers::broker::*;
pub struct Away;
type P<'a, T> = meshctl_drivers::Pending<'a, Result<T, BrokerError>>;
fn away<'a, T: Send + 'a>() -> P<'a, T> {
    Box::pin(async { Err(BrokerError::Unreachable("not there yet".into())) })
}
impl Broker for Away {
    fn ensure<'a>(&'a self, _: &'a ChannelSpec) -> P<'a, ()> {
        away()
    }
    fn remove<'a>(&'a self, _: &'a str) -> P<'a, ()> {
        away()
    }
    fn publish<'a>(&'a self, _: &'a str, _: Vec<Publish>) -> P<'a, Vec<Confirmed>> {
        away()
    }
    fn consume<'a>(&'a self, _: &'a str, _: &'a str, _: u32) -> P<'a, Consumer> {
        away()
    }
    fn seek<'a>(&'a self, _: &'a str, _: &'a str, _: Seek) -> P<'a, ()> {
        away()
    }
    fn pause<'a>(&'a self, _: &'a str, _: &'a str, _: Option<String>) -> P<'a, ()> {
        away()
    }
    fn state(&self) -> P<'_, Vec<ChannelState>> {
        away()
    }
    fn browse<'a>(&'a self, _: &'a str, _: From, _: u32) -> P<'a, Vec<Stored>> {
        away()
    }
}

//! The driver: what the contract asks, said in frames. Publishes and questions share one connection, each consumer has its
//! own, so that nobody's messages wait behind another's.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes};
use tokio::sync::{Mutex, mpsc};

use super::link::Link;
use super::place::FOLDER;
use super::protocol::{Ask, Browse, Consume, confirmed, json, kind, malformed, put_publish, put_settle, stored};
use crate::Pending;
use crate::broker::{
    Broker, BrokerError, ChannelSpec, ChannelState, Confirmed, Consumer, From, Outcome, Publish, Seek, Settlement,
    Settler, Stored,
};

/// After so long a silence either side takes the other for dead.
pub const SESSION: Duration = Duration::from_secs(10);

/// Where a broker is.
#[derive(Clone, Debug)]
pub enum Address {
    /// The folder that holds its socket.
    Folder(PathBuf),
    Tcp(SocketAddr),
}

/// A client of the embedded broker.
pub struct Client {
    address: Address,
    session: Duration,
    shared: Mutex<Option<Arc<Link>>>,
}

impl Client {
    /// Of the broker of a state directory. Nothing is connected before it is needed.
    pub fn new(state_dir: &Path) -> Self {
        Self::at(Address::Folder(state_dir.join(FOLDER)), SESSION)
    }

    /// Of a broker elsewhere, or with another session: after so long a silence the broker gives this client's messages to others.
    pub fn at(address: Address, session: Duration) -> Self {
        Self { address, session, shared: Mutex::new(None) }
    }

    async fn link(&self) -> Result<Arc<Link>, BrokerError> {
        let mut shared = self.shared.lock().await;
        if let Some(link) = shared.as_ref().filter(|link| !link.is_closed()) {
            return Ok(Arc::clone(link));
        }
        *shared = None;
        let link = Arc::new(Link::connect(&self.address, self.session, None).await?);
        *shared = Some(Arc::clone(&link));
        Ok(link)
    }

    async fn ask(&self, ask: Ask) -> Result<Bytes, BrokerError> {
        let ask = json(&ask);
        self.link().await?.request(kind::ASK, ask.len(), |out| out.put_slice(&ask)).await
    }
}

impl Broker for Client {
    fn ensure<'a>(&'a self, channel: &'a ChannelSpec) -> Pending<'a, Result<(), BrokerError>> {
        Box::pin(async move { self.ask(Ask::Ensure(channel.clone())).await.map(drop) })
    }

    fn remove<'a>(&'a self, channel: &'a str, discard: bool) -> Pending<'a, Result<(), BrokerError>> {
        Box::pin(async move { self.ask(Ask::Remove { channel: channel.to_owned(), discard }).await.map(drop) })
    }

    fn publish<'a>(
        &'a self,
        channel: &'a str,
        messages: Vec<Publish>,
    ) -> Pending<'a, Result<Vec<Confirmed>, BrokerError>> {
        Box::pin(async move {
            if messages.is_empty() {
                return Ok(Vec::new());
            }
            let size = 8 + channel.len() + messages.iter().map(size_of_publish).sum::<usize>();
            let link = self.link().await?;
            let body = link.request(kind::PUBLISH, size, |out| put_publish(out, channel, &messages)).await?;
            confirmed(body).map_err(|why| malformed("the broker's confirmation", why))
        })
    }

    fn consume<'a>(
        &'a self,
        channel: &'a str,
        group: &'a str,
        prefetch: u32,
    ) -> Pending<'a, Result<Consumer, BrokerError>> {
        Box::pin(async move {
            // The broker never has more than this on the way, so the link never waits for the consumer.
            let (sender, deliveries) = mpsc::channel(prefetch.max(1) as usize);
            let link = Arc::new(Link::connect(&self.address, self.session, Some(sender)).await?);
            let consume = Consume { channel: channel.to_owned(), group: group.to_owned(), prefetch: prefetch.max(1) };
            let consume = json(&consume);
            let body = link.request(kind::CONSUME, consume.len(), |out| out.put_slice(&consume)).await?;
            let id = body.first_chunk().map(|id| u64::from_be_bytes(*id));
            let id = id.ok_or_else(|| malformed("the broker's answer", "it is too short"))?;
            Ok(Consumer { deliveries, settler: Arc::new(LinkSettler { link, id }) })
        })
    }

    fn seek<'a>(&'a self, channel: &'a str, group: &'a str, to: Seek) -> Pending<'a, Result<(), BrokerError>> {
        let (channel, group) = (channel.to_owned(), group.to_owned());
        Box::pin(async move { self.ask(Ask::Seek { channel, group, to }).await.map(drop) })
    }

    fn pause<'a>(
        &'a self,
        channel: &'a str,
        group: &'a str,
        reason: Option<String>,
    ) -> Pending<'a, Result<(), BrokerError>> {
        let (channel, group) = (channel.to_owned(), group.to_owned());
        Box::pin(async move { self.ask(Ask::Pause { channel, group, reason }).await.map(drop) })
    }

    fn state(&self) -> Pending<'_, Result<Vec<ChannelState>, BrokerError>> {
        Box::pin(async move {
            let body = self.ask(Ask::State).await?;
            serde_json::from_slice(&body).map_err(|why| malformed("the broker's state", why))
        })
    }

    fn browse<'a>(&'a self, channel: &'a str, from: From, limit: u32) -> Pending<'a, Result<Vec<Stored>, BrokerError>> {
        Box::pin(async move {
            let browse = json(&Browse { channel: channel.to_owned(), from, limit });
            let body = self.link().await?.request(kind::BROWSE, browse.len(), |out| out.put_slice(&browse)).await?;
            stored(body).map_err(|why| malformed("the broker's messages", why))
        })
    }
}

/// What it takes in a frame, at most.
fn size_of_message(message: &meshctl_model::message::Message) -> usize {
    let headers: usize = message.headers.iter().map(|(name, value)| 8 + name.len() + value.len()).sum();
    64 + message.id.len() + message.key.as_ref().map_or(0, String::len) + headers + message.payload.len()
}

fn size_of_publish(publish: &Publish) -> usize {
    publish.idempotency_key.as_ref().map_or(0, String::len) + size_of_message(&publish.message)
}

fn size_of_settlement(settlement: &Settlement) -> usize {
    13 + match &settlement.outcome {
        Outcome::Processed => 0,
        Outcome::Moved { channel, message } => 4 + channel.len() + size_of_message(message),
    }
}

/// Holds its connection: when it is dropped, the consumer is gone.
struct LinkSettler {
    link: Arc<Link>,
    id: u64,
}

impl Settler for LinkSettler {
    fn settle(&self, settlements: Vec<Settlement>) -> Pending<'_, Result<(), BrokerError>> {
        Box::pin(async move {
            if settlements.is_empty() {
                return Ok(());
            }
            let size = 12 + settlements.iter().map(size_of_settlement).sum::<usize>();
            let asked = self.link.request(kind::SETTLE, size, |out| put_settle(out, self.id, &settlements)).await;
            match asked {
                // Whoever has no connection any more has no deliveries.
                Err(BrokerError::Unreachable(why)) => Err(BrokerError::Lost(why)),
                other => other.map(drop),
            }
        })
    }
}

//! The daemon's half of channels. It declares them at the broker, and shows what becomes of messages; it is in no message's
//! way: services publish to couriers and receive from them, also while the daemon is away.

pub mod channels;
pub mod couriers;
pub mod declare;
pub mod guard;
mod ledger;
mod lines;
pub mod messages;
mod removal;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use meshctl_api::error::{ApiError, ErrorCode};
use meshctl_api::view::messages::{Channel, LedgerEntry, Message};
use meshctl_drivers::broker::{BrokerError, ChannelState, SharedBroker, Stored};
use meshctl_model::delivery::{Behind, COURIER};

use self::channels::{Pause, Wanted};
use self::couriers::Couriers;
use self::ledger::AllCounts;
use self::lines::lines;
use self::messages::Elsewhere;
use crate::dead_letters::DeadLetters;
use crate::state::State;

/// How often the ledger looks again while dead letters are on their way.
const LOOKS: u32 = 5;
/// Between two looks.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// The broker, the store of dead letters, and what couriers said last. Cheap to clone.
#[derive(Clone)]
pub struct Messaging {
    pub broker: SharedBroker,
    pub letters: DeadLetters,
    pub couriers: Couriers,
}

/// The channels of the present revision, with who publishes to them.
pub fn wanted(state: &State) -> Wanted {
    let mut publishers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (name, service) in &state.topology.services {
        for channel in service.published() {
            publishers.entry(channel.to_owned()).or_default().push(name.clone());
        }
    }
    Wanted { channels: state.desired.channels.clone(), publishers }
}

impl Messaging {
    /// All channels at one instant; without any, nobody is asked.
    ///
    /// # Errors
    /// When the broker does not answer, or the store cannot be read.
    pub async fn channels(&self, wanted: &Wanted) -> Result<Vec<Channel>, ApiError> {
        if wanted.channels.is_empty() {
            return Ok(Vec::new());
        }
        let (states, counts) = self.seen().await?;
        Ok(channels::channels(wanted, &states, &counts, &self.couriers.delivering(), Timestamp::now()))
    }

    /// # Errors
    /// When the broker does not answer, or the store cannot be read.
    pub async fn ledger(&self, wanted: &Wanted) -> Result<Vec<LedgerEntry>, ApiError> {
        if wanted.channels.is_empty() {
            return Ok(Vec::new());
        }
        let (states, counts) = self.seen().await?;
        Ok(ledger::ledger(&wanted.channels, &states, &counts))
    }

    pub async fn states(&self) -> Result<Vec<ChannelState>, ApiError> {
        self.broker.state().await.map_err(|why| failed("ask the broker for its channels", why))
    }

    /// What the broker and the store say, at one instant: no dead letter came and no replay went in between. Where they never
    /// stop coming the last look is taken; it balances too (see [`ledger`]).
    async fn seen(&self) -> Result<(Vec<ChannelState>, AllCounts), ApiError> {
        let mut before = self.states().await?;
        for _ in 1..LOOKS {
            let counts = self.letters.counts().await?;
            let after = self.states().await?;
            if ledger::moving(&before) == ledger::moving(&after) {
                return Ok((after, counts));
            }
            before = after;
            tokio::time::sleep(LOOK_PAUSE).await;
        }
        let counts = self.letters.counts().await?;
        Ok((before, counts))
    }

    /// Messages of a channel as the API shows them; `whole`: with their payloads, however large.
    ///
    /// # Errors
    /// When the broker does not answer, or the store cannot be read.
    pub async fn shown(&self, name: &str, stored: Vec<Stored>, whole: bool) -> Result<Vec<Message>, ApiError> {
        let left: Vec<String> =
            stored.iter().filter(|one| one.unsettled_by.is_empty()).map(|one| one.message.id.clone()).collect();
        let mut elsewhere = Elsewhere::default();
        if !left.is_empty() {
            let states = self.states().await?;
            let look = Elsewhere::look(self.broker.as_ref(), &states, name).await;
            elsewhere = look.map_err(|why| failed(&format!("see what waits behind {name}"), why))?;
            for (_, subscription) in lines(&states).into_keys().filter(|(channel, _)| *channel == name) {
                let letters = self.letters.states(name, subscription, left.clone()).await?;
                letters.iter().for_each(|(message, state)| elsewhere.letter(message, subscription, state));
            }
        }
        Ok(stored.into_iter().map(|stored| messages::shown(name, stored, &elsewhere, whole)).collect())
    }

    /// Pauses a subscription, or resumes it without a pause: its group, and what waits for another attempt.
    ///
    /// # Errors
    /// When the broker does not answer, or does not have it yet.
    pub async fn pause(&self, channel: &str, subscription: &str, pause: Option<&Pause>) -> Result<(), ApiError> {
        let attempt = if pause.is_some() { "pause" } else { "resume" };
        let attempt = format!("{attempt} {channel}/{subscription}");
        let states = self.states().await?;
        let behind = states.iter().filter_map(|state| match Behind::parse(&state.name)? {
            (of, to, Behind::Retry(_) | Behind::Replay) if of == channel && to == subscription => Some(&*state.name),
            _ => None,
        });
        // What waits behind it first: were it to fail half way, a message would rather wait than come out of turn.
        for (name, group) in behind.map(|name| (name, COURIER)).chain([(channel, subscription)]) {
            let reason = pause.map(Pause::text);
            self.broker.pause(name, group, reason).await.map_err(|why| failed(&attempt, why))?;
        }
        Ok(())
    }
}

/// The words for a broker that does not do what it was asked.
pub fn failed(attempt: &str, why: BrokerError) -> ApiError {
    let message = format!("cannot {attempt}: {why}");
    match why {
        BrokerError::Unreachable(_) | BrokerError::Unknown(_) => {
            ApiError::new(ErrorCode::Unavailable, message).hint("see `meshctl status` and `meshctl logs broker`")
        }
        BrokerError::NotFound(_) => ApiError::new(ErrorCode::NotFound, message).hint("see `meshctl channel ls`"),
        BrokerError::Full(_) => {
            ApiError::new(ErrorCode::Unavailable, message).hint("see `meshctl channel ls` and `meshctl check`")
        }
        BrokerError::Refused(_) | BrokerError::Lost(_) => ApiError::new(ErrorCode::Conflict, message),
        BrokerError::Damaged(_) => ApiError::new(ErrorCode::Internal, message).hint("see `meshctl logs broker`"),
    }
}

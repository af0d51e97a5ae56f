//! What is taken away from the broker, once no courier of the former revision is left.
//!
//! Nothing that holds messages is touched unless the operator gave them up: it is looked at first, and the broker and the
//! store check again, each in the very transaction that removes. A subscription goes in the order in which its messages flow,
//! so that nothing can come into what is gone; and where a daemon dies half way, what is left over makes the next one go on.

use std::collections::{BTreeMap, BTreeSet};

use meshctl_drivers::broker::{Broker, ChannelSpec, ChannelState, Seek};
use meshctl_model::delivery::{Behind, COURIER, Channel};

use super::declare::{Undeclared, about, unreadable};
use super::guard::holds;
use super::ledger::AllCounts;
use super::lines::lines;
use crate::dead_letters::DeadLetters;

/// The channels that go, each list in its order.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// Those that come back with fewer partitions, and all that is counted together with them: before anything is declared.
    pub anew: Vec<String>,
    /// Those that nobody wants any more: after the groups that fed them.
    pub unwanted: Vec<String>,
    /// Groups that leave a channel which stays.
    pub leaving: Vec<(String, String)>,
    /// Tiers of a shorter list of pauses, with their group. They stay, because the ledger counts what came through them; but no
    /// courier consumes them, so they have to be empty.
    pub tiers: Vec<(String, String)>,
}

impl Removal {
    pub fn of(states: &[ChannelState], specs: &[ChannelSpec], channels: &BTreeMap<String, Channel>) -> Self {
        let wanted: BTreeMap<&str, &ChannelSpec> = specs.iter().map(|spec| (spec.name.as_str(), spec)).collect();
        let channel_of = |name: &str| Behind::parse(name).map_or(name.to_owned(), |(channel, ..)| channel.to_owned());
        let shrinks = |state: &&ChannelState| {
            wanted.get(state.name.as_str()).is_some_and(|spec| state.partitions > spec.partitions)
        };
        // A channel that is made anew begins to count anew, and so must everything that is counted together with it.
        let shrinking: BTreeSet<String> = states.iter().filter(shrinks).map(|state| channel_of(&state.name)).collect();
        let mut removal = Self::default();
        for state in states {
            let name = state.name.as_str();
            let groups = state.groups.iter().map(|group| (name.to_owned(), group.name.clone()));
            let is_tier = Behind::parse(name).is_some_and(|(channel, subscription, behind)| {
                let there = channels.get(channel).is_some_and(|of| of.subscriptions.contains_key(subscription));
                there && matches!(behind, Behind::Retry(_))
            });
            match wanted.get(name) {
                _ if shrinking.contains(&channel_of(name)) => removal.anew.push(name.to_owned()),
                Some(spec) => removal.leaving.extend(groups.filter(|(_, group)| !spec.groups.contains(group))),
                None if is_tier => removal.tiers.extend(groups),
                None => removal.unwanted.push(name.to_owned()),
            }
        }
        removal.anew.sort_by_cached_key(|name| place_in_line(name));
        removal.unwanted.sort_by_cached_key(|name| place_in_line(name));
        removal
    }

    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Why nothing of it may be done; `None` where nothing would be lost.
    pub fn refusal(&self, states: &[ChannelState], counts: &AllCounts) -> Option<String> {
        let state = |name: &str| states.iter().find(|state| state.name == name);
        let whole = |why: &'static str| move |name: &String| Some((name.clone(), why, holds(state(name)?, counts)?));
        let part = |why: &'static str| {
            move |(name, group): &(String, String)| {
                let mut only = state(name)?.clone();
                only.groups.retain(|kept| kept.name == *group);
                let what = if Behind::parse(name).is_none() { format!("{name}/{group}") } else { name.clone() };
                Some((what, why, holds(&only, counts)?))
            }
        };
        let (name, why, held) = (self.anew.iter().find_map(whole("is to be made anew")))
            .or_else(|| self.leaving.iter().find_map(part("is not wanted any more")))
            .or_else(|| self.tiers.iter().find_map(part("is not wanted any more")))
            .or_else(|| self.unwanted.iter().find_map(whole("is not wanted any more")))?;
        let what = if name.contains('/') && Behind::parse(&name).is_none() { "subscription" } else { "channel" };
        Some(format!(
            "the {what} {name} {why}, and holds {held}; apply the former file again (or `meshctl rollout undo`), so that \
             it is drained, or apply this one with --discard-messages"
        ))
    }

    /// Gives up what waits in groups and tiers that nobody consumes any more.
    pub async fn discard(&self, broker: &dyn Broker) -> Result<(), Undeclared> {
        for (name, group) in self.leaving.iter().chain(&self.tiers) {
            let seek = broker.seek(name, group, Seek::Latest).await;
            seek.map_err(about(format!("discard what {name} has for {group}")))?;
        }
        Ok(())
    }
}

/// Removes these channels in their order; a subscription is forgotten by the store before its dead channel goes, since
/// without the channel nobody would know that there was something to forget.
pub async fn remove(
    names: &[String],
    broker: &dyn Broker,
    letters: &DeadLetters,
    discard: bool,
) -> Result<(), Undeclared> {
    for name in names {
        if let Some((channel, subscription, Behind::Dead)) = Behind::parse(name) {
            letters.close(channel, subscription, discard).await.map_err(unreadable)?;
        }
        broker.remove(name, discard).await.map_err(about(format!("remove the channel {name}")))?;
    }
    Ok(())
}

/// What is new of a subscription that is paused is paused, too; what was there is as operators want it.
pub async fn keep_paused(
    broker: &dyn Broker,
    states: &[ChannelState],
    channels: &BTreeMap<String, Channel>,
    known: &BTreeMap<&str, &ChannelState>,
) -> Result<(), Undeclared> {
    for ((channel, subscription), line) in lines(states) {
        let is_wanted = channels.get(channel).and_then(|channel| channel.subscriptions.get(subscription));
        let (Some(reason), Some(is_wanted)) = (line.paused(), is_wanted) else { continue };
        let behind = Behind::of(&is_wanted.retry).filter(|behind| behind.group() == COURIER);
        let behind = behind.map(|behind| (behind.channel(channel, subscription), COURIER));
        let all = behind.chain([(channel.to_owned(), subscription)]);
        for (name, group) in all.filter(|(name, _)| !known.contains_key(name.as_str())) {
            let pause = broker.pause(&name, group, Some(reason.to_owned())).await;
            pause.map_err(about(format!("pause {name}")))?;
        }
    }
    Ok(())
}

/// Channels first, then retries, dead letters and receipts; the replay channel last: it has the partitions of its channel, and
/// tells a daemon that comes after a crash that a channel is still being made anew.
fn place_in_line(name: &str) -> (u32, String) {
    let place = match Behind::parse(name).map(|(.., behind)| behind) {
        None => 0,
        Some(Behind::Retry(_)) => 1,
        Some(Behind::Dead) => 2,
        Some(Behind::Replayed) => 3,
        Some(Behind::Replay) => 4,
    };
    (place, name.to_owned())
}

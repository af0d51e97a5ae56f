//! One subscription's share of the broker's state: its group in the channel, and the channels behind it.

use std::collections::BTreeMap;

use jiff::Timestamp;
use meshctl_drivers::broker::{ChannelState, GroupState};
use meshctl_model::delivery::Behind;

/// Everything that the broker says of one subscription.
#[derive(Clone, Debug, Default)]
pub struct Line<'a> {
    /// Its group in the channel itself.
    pub group: Option<&'a GroupState>,
    /// The channels behind it, those of retry tiers that are no longer wanted included.
    pub behind: Vec<(Behind, &'a ChannelState)>,
}

/// All that has a group or anything behind it, by channel and subscription.
pub fn lines(states: &[ChannelState]) -> BTreeMap<(&str, &str), Line<'_>> {
    let mut lines: BTreeMap<(&str, &str), Line<'_>> = BTreeMap::new();
    for state in states {
        match Behind::parse(&state.name) {
            Some((channel, subscription, behind)) => {
                lines.entry((channel, subscription)).or_default().behind.push((behind, state));
            }
            None => {
                for group in &state.groups {
                    lines.entry((&state.name, &group.name)).or_default().group = Some(group);
                }
            }
        }
    }
    lines
}

impl<'a> Line<'a> {
    /// The couriers' groups behind it: what waits for another attempt.
    pub fn waiting(&self) -> impl Iterator<Item = &'a GroupState> + '_ {
        let retried = self.behind.iter().filter(|(behind, _)| matches!(behind, Behind::Retry(_) | Behind::Replay));
        retried.flat_map(|(behind, state)| state.groups.iter().filter(|group| group.name == behind.group()))
    }

    /// Accepted ever by one kind of channel behind it.
    pub fn accepted(&self, which: Behind) -> u64 {
        self.behind.iter().filter(|(behind, _)| *behind == which).map(|(_, state)| state.accepted).sum()
    }

    /// Dead letters that the daemon has settled.
    pub fn taken_in(&self) -> u64 {
        let dead = self.behind.iter().filter(|(behind, _)| *behind == Behind::Dead);
        dead.flat_map(|(_, state)| &state.groups).map(|group| group.processed).sum()
    }

    /// Whether delivery is paused, and why.
    pub fn paused(&self) -> Option<&'a str> {
        self.group.and_then(|group| group.paused.as_deref())
    }

    pub fn unsettled(&self) -> u64 {
        self.group.map_or(0, |group| group.unsettled)
    }

    pub fn retrying(&self) -> u64 {
        self.waiting().map(|group| group.unsettled).sum()
    }

    pub fn in_flight(&self) -> u64 {
        self.group.into_iter().chain(self.waiting()).map(|group| group.in_flight).sum()
    }

    pub fn oldest(&self) -> Option<Timestamp> {
        self.group.into_iter().chain(self.waiting()).filter_map(|group| group.oldest_unsettled_at).min()
    }
}

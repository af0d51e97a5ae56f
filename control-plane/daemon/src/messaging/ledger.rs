//! Where everything is that a channel accepted for a subscription. Each figure is counted on its own, by the broker or by
//! the store of dead letters, so that a message that is lost anywhere is missing here.
//!
//! The broker's counts are of one instant and the store's of one a little later. What the daemon moves between the two, from
//! a dead channel into the store or from the store into a replay, is counted once on either side of that instant, because
//! the store counts what it has taken in and issued together with what it holds.

use std::collections::BTreeMap;

use meshctl_api::view::messages::LedgerEntry;
use meshctl_drivers::broker::ChannelState;
use meshctl_model::delivery::{Behind, Channel};

use super::lines::{Line, lines};
use crate::dead_letters::Counts;

/// The store's counts, by channel and subscription.
pub type AllCounts = BTreeMap<(String, String), Counts>;

/// One entry for each subscription of `channels`.
pub fn ledger(channels: &BTreeMap<String, Channel>, states: &[ChannelState], counts: &AllCounts) -> Vec<LedgerEntry> {
    let lines = lines(states);
    let subscriptions =
        channels.iter().flat_map(|(name, channel)| channel.subscriptions.keys().map(move |of| (name.as_str(), of)));
    subscriptions
        .map(|(channel, subscription)| {
            let line = lines.get(&(channel, subscription.as_str())).cloned().unwrap_or_default();
            let counts = counts.get(&(channel.to_owned(), subscription.clone())).copied().unwrap_or_default();
            entry(channel, subscription, &line, counts)
        })
        .collect()
}

/// What of a subscription would be counted twice or not at all by a reader who saw it move: dead letters and replays.
pub fn moving(states: &[ChannelState]) -> Vec<(&str, u64)> {
    let between = |behind| matches!(behind, Behind::Dead | Behind::Replay);
    let watched = states.iter().filter(|state| Behind::parse(&state.name).is_some_and(|(.., behind)| between(behind)));
    watched.map(|state| (state.name.as_str(), state.accepted)).collect()
}

pub fn entry(channel: &str, subscription: &str, line: &Line<'_>, counts: Counts) -> LedgerEntry {
    let group = line.group.cloned().unwrap_or_default();
    let accepted = group.accepted + group.rewound + counts.imported;
    let processed =
        group.processed + line.waiting().map(|group| group.processed).sum::<u64>() + line.accepted(Behind::Replayed);
    let (in_flight, retrying) = (group.unsettled, line.retrying());
    let skipped = group.skipped + line.waiting().map(|group| group.skipped).sum::<u64>();
    let discarded = counts.discarded + skipped;
    let dead = difference(line.accepted(Behind::Dead), counts.taken_in) + signed(counts.dead)
        - difference(line.accepted(Behind::Replay), counts.issued);
    let somewhere =
        signed(processed) + signed(in_flight) + signed(retrying) + dead + signed(counts.parked) + signed(discarded);
    let missing = signed(accepted) - somewhere;
    LedgerEntry {
        name: format!("{channel}/{subscription}"),
        channel: channel.into(),
        subscription: subscription.into(),
        accepted,
        processed,
        in_flight,
        retrying,
        dead: u64::try_from(dead).unwrap_or(0),
        parked: counts.parked,
        discarded,
        balanced: missing == 0,
        missing,
    }
}

fn signed(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

fn difference(of: u64, minus: u64) -> i64 {
    signed(of) - signed(minus)
}

#[cfg(test)]
mod tests {
    use meshctl_drivers::broker::GroupState;
    use rand::rngs::StdRng;
    use rand::{RngExt, SeedableRng};

    use super::*;

    /// Where each message really is, and the counts that broker and store would keep of it.
    #[derive(Default)]
    struct World {
        states: BTreeMap<String, ChannelState>,
        counts: Counts,
        places: Vec<Place>,
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Place {
        Channel,
        Retry,
        /// In the dead channel, or in the replay channel; `true` when it was replayed before.
        DeadChannel,
        Dead,
        Parked,
        Discarded,
        Replay,
        Retried,
        Processed,
    }

    const C: &str = "order.placed";
    const S: &str = "billing";

    impl World {
        fn new() -> Self {
            let mut world = Self::default();
            for (name, group) in [
                (C.to_owned(), S),
                (Behind::Retry(1).channel(C, S), "courier"),
                (Behind::Dead.channel(C, S), "daemon"),
                (Behind::Replay.channel(C, S), "courier"),
                (Behind::Replayed.channel(C, S), "daemon"),
            ] {
                let group = GroupState { name: group.into(), ..GroupState::default() };
                let state = ChannelState { name: name.clone(), groups: vec![group], ..ChannelState::default() };
                world.states.insert(name, state);
            }
            world
        }

        fn accept(&mut self, name: &str) {
            let state = self.states.get_mut(name).expect("a channel");
            state.accepted += 1;
            state.groups[0].accepted += 1;
            state.groups[0].unsettled += 1;
        }

        fn settle(&mut self, name: &str, to: Option<&str>) {
            let group = &mut self.states.get_mut(name).expect("a channel").groups[0];
            group.unsettled -= 1;
            match to {
                None => group.processed += 1,
                Some(to) => {
                    group.moved += 1;
                    self.accept(to);
                }
            }
        }

        /// One message takes one step.
        fn step(&mut self, random: &mut StdRng) {
            let [retry, dead, replay, replayed] =
                [Behind::Retry(1), Behind::Dead, Behind::Replay, Behind::Replayed].map(|b| b.channel(C, S));
            if self.places.is_empty() || random.random_range(0..4) == 0 {
                self.accept(C);
                self.places.push(Place::Channel);
                return;
            }
            let index = random.random_range(0..self.places.len());
            let coin = random.random_range(0..3);
            self.places[index] = match (self.places[index], coin) {
                (Place::Channel, 0) => {
                    self.settle(C, None);
                    Place::Processed
                }
                (Place::Channel, 1) => {
                    self.settle(C, Some(&retry));
                    Place::Retry
                }
                (Place::Channel, _) => {
                    self.settle(C, Some(&dead));
                    Place::DeadChannel
                }
                (Place::Retry, 0) => {
                    self.settle(&retry, None);
                    Place::Processed
                }
                (Place::Retry, 1) => {
                    self.settle(&retry, Some(&retry));
                    Place::Retry
                }
                (Place::Retry, _) | (Place::Retried, 2) => {
                    self.settle(&retry, Some(&dead));
                    Place::DeadChannel
                }
                (Place::DeadChannel, _) => {
                    // The daemon consumes it: written, then settled.
                    self.counts.taken_in += 1;
                    self.counts.dead += 1;
                    self.settle(&dead, None);
                    Place::Dead
                }
                (Place::Dead, 0) => {
                    self.counts.dead -= 1;
                    self.counts.parked += 1;
                    Place::Parked
                }
                (Place::Dead, 1) => {
                    self.counts.dead -= 1;
                    self.counts.discarded += 1;
                    Place::Discarded
                }
                (Place::Dead, _) => {
                    // Published, then written: the instant in between is balanced as well.
                    self.accept(&replay);
                    self.check(true);
                    self.counts.issued += 1;
                    self.counts.dead -= 1;
                    Place::Replay
                }
                (Place::Parked, 0) => {
                    // From elsewhere: it was never in the channel.
                    self.counts.imported += 1;
                    self.counts.dead += 1;
                    self.places.push(Place::Dead);
                    Place::Parked
                }
                (Place::Parked, _) => {
                    self.counts.parked -= 1;
                    self.counts.dead += 1;
                    Place::Dead
                }
                (Place::Replay, 0) => {
                    self.settle(&replay, Some(&replayed));
                    Place::Processed
                }
                (Place::Replay, 1) => {
                    self.settle(&replay, Some(&retry));
                    Place::Retried
                }
                (Place::Replay, _) => {
                    self.settle(&replay, Some(&dead));
                    Place::DeadChannel
                }
                (Place::Retried, _) => {
                    self.settle(&retry, Some(&replayed));
                    Place::Processed
                }
                (place @ (Place::Discarded | Place::Processed), _) => place,
            };
        }

        fn entry(&self, counts: Counts) -> LedgerEntry {
            let states: Vec<_> = self.states.values().cloned().collect();
            let lines = lines(&states);
            entry(C, S, &lines[&(C, S)], counts)
        }

        fn check(&self, between: bool) {
            let entry = self.entry(self.counts);
            assert!(entry.balanced, "{entry:?}");
            if between {
                return;
            }
            let count = |wanted: &[Place]| self.places.iter().filter(|place| wanted.contains(place)).count() as u64;
            assert_eq!(entry.accepted, self.places.len() as u64);
            assert_eq!(entry.processed, count(&[Place::Processed]));
            assert_eq!(entry.in_flight, count(&[Place::Channel]));
            assert_eq!(entry.retrying, count(&[Place::Retry, Place::Retried, Place::Replay]));
            assert_eq!(entry.dead, count(&[Place::DeadChannel, Place::Dead]));
            assert_eq!(entry.parked, count(&[Place::Parked]));
            assert_eq!(entry.discarded, count(&[Place::Discarded]));
        }
    }

    #[test]
    fn every_message_is_counted_where_it_is_after_any_step() {
        for seed in 0..200 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut world = World::new();
            for _ in 0..300 {
                world.step(&mut random);
                world.check(false);
            }
        }
    }

    #[test]
    fn counts_of_the_store_that_are_later_than_the_brokers_balance_too() {
        for seed in 0..200 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut world = World::new();
            for _ in 0..100 {
                world.step(&mut random);
            }
            let earlier: Vec<_> = world.states.values().cloned().collect();
            for _ in 0..random.random_range(0..40) {
                world.step(&mut random);
            }
            let lines = lines(&earlier);
            let entry = entry(C, S, &lines[&(C, S)], world.counts);
            assert!(entry.balanced, "seed {seed}: {entry:?}");
        }
    }

    #[test]
    fn what_is_lost_anywhere_is_missing() {
        for seed in 0..50 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut world = World::new();
            for _ in 0..300 {
                world.step(&mut random);
            }
            for name in world.states.keys().cloned().collect::<Vec<_>>() {
                let consumed_by_us = matches!(Behind::parse(&name), Some((.., Behind::Dead | Behind::Replayed)));
                let group = &mut world.states.get_mut(&name).expect("a channel").groups[0];
                if group.unsettled == 0 || consumed_by_us {
                    continue;
                }
                group.unsettled -= 1;
                assert_eq!(world.entry(world.counts).missing, 1, "seed {seed}: lost from {name}");
                let group = &mut world.states.get_mut(&name).expect("a channel").groups[0];
                group.unsettled += 1;
            }
            let fewer = Counts { dead: world.counts.dead.saturating_sub(1), ..world.counts };
            let lost = i64::from(world.counts.dead > 0);
            assert_eq!(world.entry(fewer).missing, lost, "seed {seed}: lost from the store");
        }
    }

    #[test]
    fn a_seek_backwards_is_accepted_once_more_and_one_forwards_is_discarded() {
        let mut world = World::new();
        for _ in 0..5 {
            world.accept(C);
        }
        world.settle(C, None);
        world.settle(C, None);
        let group = &mut world.states.get_mut(C).expect("a channel").groups[0];
        (group.rewound, group.unsettled) = (1, 4);
        let entry = world.entry(Counts::default());
        assert_eq!((entry.accepted, entry.processed, entry.in_flight, entry.missing), (6, 2, 4, 0));
        let group = &mut world.states.get_mut(C).expect("a channel").groups[0];
        (group.skipped, group.unsettled) = (4, 0);
        let entry = world.entry(Counts::default());
        assert_eq!((entry.in_flight, entry.discarded, entry.balanced), (0, 4, true));
    }
}

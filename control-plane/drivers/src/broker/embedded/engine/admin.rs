//! The rare requests: each in a transaction of its own, in the file first and then in memory.

use super::channel::{Channel, Cursor, Group, Partition};
use super::{Engine, Fault};
use crate::broker::embedded::protocol::Ask;
use crate::broker::embedded::store::{MOST_CHANNELS, MOST_PARTITIONS, load, rows, view};
use crate::broker::{BrokerError, ChannelSpec, Seek};

impl Engine {
    pub(super) fn ask(&mut self, ask: Ask) -> Result<(), Fault> {
        match ask {
            Ask::Ensure(spec) => self.ensure(spec),
            Ask::Remove { channel, discard } => self.remove(&channel, discard),
            Ask::Seek { channel, group, to } => self.seek(&channel, &group, to),
            Ask::Pause { channel, group, reason } => self.pause(&channel, &group, reason),
            Ask::State => Ok(()),
        }
    }

    /// Commits what `write` writes, or nothing.
    fn alone<T>(&mut self, write: impl FnOnce(&Self) -> Result<T, rusqlite::Error>) -> Result<T, Fault> {
        let written = self.begin().and_then(|()| write(self)).and_then(|value| {
            self.database.prepare_cached("COMMIT")?.execute([])?;
            Ok(value)
        });
        if written.is_err() {
            self.roll_back();
        }
        Ok(written?)
    }

    fn ensure(&mut self, mut spec: ChannelSpec) -> Result<(), Fault> {
        spec.groups.sort();
        spec.groups.dedup();
        let refused = |why: String| Fault::Answer(BrokerError::Refused(why));
        if spec.partitions == 0 || spec.partitions > MOST_PARTITIONS || spec.name.is_empty() {
            let why = format!("a channel has a name and 1 to {MOST_PARTITIONS} partitions, not {}", spec.partitions);
            return Err(refused(why));
        }
        let Some(channel) = self.channels.get(&spec.name) else { return self.create(spec) };
        if channel.spec == spec {
            return Ok(());
        }
        let name = &spec.name;
        let before = channel.spec.partitions;
        if spec.partitions < before {
            let why = format!("channel {name} has {before} partitions; {} are fewer", spec.partitions);
            return Err(refused(why));
        }
        let dropped: Vec<(String, i64)> = channel
            .groups
            .iter()
            .filter(|(group, _)| !spec.groups.contains(group))
            .map(|(group, state)| (group.clone(), state.id))
            .collect();
        for (group, _) in &dropped {
            let unsettled = self.unsettled(channel, group)?;
            if unsettled > 0 {
                let why = format!("group {group} of channel {name} has {unsettled} messages to settle");
                return Err(refused(why));
            }
        }
        let grown: Vec<usize> = (before as usize..spec.partitions as usize).collect();
        let added: Vec<&String> = spec.groups.iter().filter(|group| !channel.groups.contains_key(*group)).collect();
        let bases: Vec<u64> = channel.partitions.iter().map(|partition| partition.kept.first).collect();
        let (id, kept): (u16, Vec<i64>) = (channel.id, channel.groups.values().map(|group| group.id).collect());
        let groups = self.alone(|engine| {
            load::save_channel(&engine.database, id, &spec)?;
            for (_, group) in &dropped {
                load::remove_group(&engine.database, *group)?;
            }
            for partition in &grown {
                load::save_partition(&engine.database, id, *partition, load::Partition::default())?;
                for group in kept.iter().filter(|kept| !dropped.iter().any(|(_, dropped)| dropped == *kept)) {
                    load::save_cursor(&engine.database, *group, *partition, &load::Cursor::default())?;
                }
            }
            let all = bases.iter().copied().chain(grown.iter().map(|_| 0)).collect::<Vec<_>>();
            added.iter().map(|name| engine.new_group(id, name, &all)).collect::<Result<Vec<_>, _>>()
        })?;
        for (group, _) in &dropped {
            self.end_all(&spec.name, group);
        }
        let Some(channel) = self.channels.get_mut(&spec.name) else { return Ok(()) };
        for (group, _) in &dropped {
            channel.groups.remove(group);
        }
        for _ in &grown {
            let kept = load::Partition::default();
            channel.partitions.push(Partition { kept, durable: kept });
            for group in channel.groups.values_mut() {
                group.cursors.push(Cursor::of(load::Cursor::default()));
                group.rebalance();
            }
        }
        for (name, group) in added.into_iter().zip(groups) {
            channel.groups.insert(name.clone(), Group::of(group));
        }
        channel.spec = spec;
        Ok(())
    }

    fn create(&mut self, spec: ChannelSpec) -> Result<(), Fault> {
        let taken = |id: &u16| self.leftovers.contains(id) || self.channels.values().any(|channel| channel.id == *id);
        // A number that nobody ever had, as long as there is one: so no removed message can be taken for one of this channel.
        let fresh = load::next_channel(&self.database)?;
        let Some(id) = (fresh..=MOST_CHANNELS).chain(1..=MOST_CHANNELS).find(|id| !taken(id)) else {
            return Err(BrokerError::Refused(format!("there are {MOST_CHANNELS} channels, which is the most")).into());
        };
        let bases = vec![0; spec.partitions as usize];
        let kept = self.alone(|engine| {
            load::save_channel(&engine.database, id, &spec)?;
            for partition in 0..bases.len() {
                load::save_partition(&engine.database, id, partition, load::Partition::default())?;
            }
            let groups = spec.groups.iter().map(|name| Ok((name.clone(), engine.new_group(id, name, &bases)?)));
            let groups = groups.collect::<Result<_, rusqlite::Error>>()?;
            let partitions = vec![load::Partition::default(); bases.len()];
            Ok(load::Channel { id, spec: spec.clone(), partitions, groups })
        })?;
        self.channels.insert(spec.name, Channel::of(kept, true));
        Ok(())
    }

    /// A group that begins at these offsets, one for each partition.
    fn new_group(&self, channel: u16, name: &str, bases: &[u64]) -> Result<load::Group, rusqlite::Error> {
        let id = load::add_group(&self.database, channel, name)?;
        let cursor = |base: &u64| load::Cursor {
            base: *base,
            settled: crate::broker::embedded::settled::Settled::below(*base),
            ..load::Cursor::default()
        };
        let cursors: Vec<load::Cursor> = bases.iter().map(cursor).collect();
        for (partition, cursor) in cursors.iter().enumerate() {
            load::save_cursor(&self.database, id, partition, cursor)?;
        }
        Ok(load::Group { id, paused: None, cursors })
    }

    /// Its messages and keys are left for the sweep. Refused while a group has messages to settle, unless they may go.
    fn remove(&mut self, name: &str, discard: bool) -> Result<(), Fault> {
        let Some(channel) = self.channels.get(name) else { return Ok(()) };
        for group in channel.groups.keys().filter(|_| !discard) {
            let unsettled = self.unsettled(channel, group)?;
            if unsettled > 0 {
                let why = format!("group {group} of channel {name} has {unsettled} messages to settle");
                return Err(BrokerError::Refused(why).into());
            }
        }
        let (id, groups): (u16, Vec<(String, i64)>) =
            (channel.id, channel.groups.iter().map(|(name, group)| (name.clone(), group.id)).collect());
        self.alone(|engine| {
            for (_, group) in &groups {
                load::remove_group(&engine.database, *group)?;
            }
            engine.database.execute("DELETE FROM partitions WHERE channel = ?1", [id])?;
            engine.database.execute("DELETE FROM channels WHERE id = ?1", [id])?;
            Ok(())
        })?;
        for (group, _) in &groups {
            self.end_all(name, group);
        }
        self.channels.remove(name);
        self.leftovers.insert(id);
        Ok(())
    }

    fn group(&self, channel: &str, group: &str) -> Result<(&Channel, &Group), BrokerError> {
        let known = self.channels.get(channel).ok_or_else(|| BrokerError::NotFound(format!("channel {channel}")))?;
        let missing = || BrokerError::NotFound(format!("group {group} of channel {channel}"));
        Ok((known, known.groups.get(group).ok_or_else(missing)?))
    }

    fn pause(&mut self, channel: &str, group: &str, reason: Option<String>) -> Result<(), Fault> {
        let id = self.group(channel, group)?.1.id;
        self.alone(|engine| load::save_paused(&engine.database, id, reason.as_deref()))?;
        let group = self.channels.get_mut(channel).and_then(|channel| channel.groups.get_mut(group));
        if let Some(group) = group {
            group.paused = reason;
            group.ready = true;
        }
        Ok(())
    }

    /// Moves a group and ends its consumers, which join anew: so nobody settles what was delivered before.
    fn seek(&mut self, name: &str, group_name: &str, to: Seek) -> Result<(), Fault> {
        let (channel, group) = self.group(name, group_name)?;
        if let Seek::At(position) = to
            && position.partition as usize >= channel.partitions.len()
        {
            let what = format!("partition {} in channel {name}", position.partition);
            return Err(BrokerError::NotFound(what).into());
        }
        let mut moved = Vec::new();
        for (number, (partition, cursor)) in channel.partitions.iter().zip(&group.cursors).enumerate() {
            let (first, next) = (partition.kept.first, partition.kept.next);
            let partition = u32::try_from(number).unwrap_or(u32::MAX);
            let target = match to {
                Seek::Earliest => first,
                Seek::Latest => next,
                Seek::At(position) if position.partition == partition => position.offset.clamp(first, next),
                Seek::At(_) => continue,
                Seek::Time(at) => {
                    rows::first_since(&self.database, channel.id, partition, first, next, at.as_microsecond())?
                }
            };
            // Only rows that change sides are counted, the others may be many.
            let mut cursor = cursor.kept.clone();
            let settled = &cursor.settled;
            cursor.skipped += view::unsettled(&self.database, channel.id, partition, settled, target)?;
            for range in std::iter::once(0..settled.floor()).chain(settled.ranges()) {
                let (from, to) = (range.start.max(target), range.end.min(next));
                cursor.rewound += rows::count(&self.database, channel.id, partition, from, to)?;
            }
            cursor.settled.settle(0..target);
            cursor.settled.unsettle(target..next);
            moved.push((number, cursor));
        }
        let id = group.id;
        self.alone(|engine| {
            moved.iter().try_for_each(|(number, cursor)| load::save_cursor(&engine.database, id, *number, cursor))
        })?;
        self.end_all(name, group_name);
        let group = self.channels.get_mut(name).and_then(|channel| channel.groups.get_mut(group_name));
        let Some(group) = group else { return Ok(()) };
        for (number, kept) in moved {
            if let Some(cursor) = group.cursors.get_mut(number) {
                *cursor = Cursor::of(kept);
            }
        }
        group.rebalance();
        Ok(())
    }

    fn unsettled(&self, channel: &Channel, group: &str) -> Result<u64, rusqlite::Error> {
        let Some(group) = channel.groups.get(group) else { return Ok(0) };
        let mut all = 0;
        for (number, (partition, cursor)) in (0..).zip(channel.partitions.iter().zip(&group.cursors)) {
            all += view::unsettled(&self.database, channel.id, number, &cursor.kept.settled, partition.kept.next)?;
        }
        Ok(all)
    }
}

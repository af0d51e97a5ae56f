//! A channel as the engine has it: what is in the file, what this transaction makes of it, and who consumes it.

use std::collections::BTreeMap;

use rusqlite::Connection;

use crate::broker::ChannelSpec;
use crate::broker::embedded::assignment::assign;
use crate::broker::embedded::rate::Rate;
use crate::broker::embedded::store::load;
use crate::broker::embedded::store::view::{Live, LiveGroup};

pub struct Channel {
    pub id: u16,
    pub spec: ChannelSpec,
    pub partitions: Vec<Partition>,
    pub groups: BTreeMap<String, Group>,
    /// The partition of the next batch without keys.
    pub turn: u32,
    pub published: Rate,
    /// Whether any partition or cursor differs from the file.
    pub dirty: bool,
}

pub struct Partition {
    pub kept: load::Partition,
    /// As in the file.
    pub durable: load::Partition,
}

pub struct Group {
    pub id: i64,
    pub paused: Option<String>,
    pub cursors: Vec<Cursor>,
    /// Who wants partitions.
    pub members: Vec<u64>,
    /// Where delivery begins next time, so that no partition starves another.
    pub turn: usize,
    pub settled: Rate,
    /// Whether there may be something to deliver.
    pub ready: bool,
}

pub struct Cursor {
    pub kept: load::Cursor,
    pub dirty: bool,
    /// The next offset to look at for delivery.
    pub fetch: u64,
    /// Deliveries that the owner has not settled.
    pub held: u32,
    pub owner: Option<u64>,
    /// Who gets the partition as soon as the owner has settled what it holds.
    pub wanted: Option<u64>,
}

impl Cursor {
    pub fn of(kept: load::Cursor) -> Self {
        Self { fetch: kept.settled.floor(), kept, dirty: false, held: 0, owner: None, wanted: None }
    }

    /// Gives it to who wants it, if nobody holds anything of it.
    pub fn hand_over(&mut self) {
        if self.owner != self.wanted && self.held == 0 {
            self.owner = self.wanted;
            self.fetch = self.kept.settled.floor();
        }
    }

    /// Its owner is gone, and whatever it held is to be delivered again.
    pub fn abandon(&mut self) {
        self.owner = None;
        self.held = 0;
        self.fetch = self.kept.settled.floor();
    }
}

impl Group {
    pub fn of(kept: load::Group) -> Self {
        Self {
            id: kept.id,
            paused: kept.paused,
            cursors: kept.cursors.into_iter().map(Cursor::of).collect(),
            members: Vec::new(),
            turn: 0,
            settled: Rate::default(),
            ready: true,
        }
    }

    /// Shares the partitions out anew.
    pub fn rebalance(&mut self) {
        let current: Vec<Option<u64>> = self.cursors.iter().map(|cursor| cursor.wanted.or(cursor.owner)).collect();
        for (cursor, wanted) in self.cursors.iter_mut().zip(assign(&current, &self.members)) {
            cursor.wanted = wanted;
            cursor.hand_over();
        }
        self.ready = true;
    }
}

impl Channel {
    /// `clean`: whether what was delivered is known; after a crash everything may have been.
    pub fn of(kept: load::Channel, clean: bool) -> Self {
        let mut groups: BTreeMap<String, Group> =
            kept.groups.into_iter().map(|(name, group)| (name, Group::of(group))).collect();
        if !clean {
            for group in groups.values_mut() {
                for (cursor, partition) in group.cursors.iter_mut().zip(&kept.partitions) {
                    cursor.kept.delivered = partition.next;
                }
            }
        }
        let partitions = kept.partitions.into_iter().map(|kept| Partition { kept, durable: kept }).collect();
        let (turn, published) = (0, Rate::default());
        Self { id: kept.id, spec: kept.spec, partitions, groups, turn, published, dirty: false }
    }

    pub fn bytes(&self) -> u64 {
        self.partitions.iter().map(|partition| partition.kept.bytes).sum()
    }

    /// Below this offset every group has settled everything; retention may take it.
    pub fn settled_below(&self, partition: usize) -> u64 {
        let next = self.partitions.get(partition).map_or(0, |partition| partition.kept.next);
        let floors = self.groups.values().filter_map(|group| group.cursors.get(partition));
        floors.map(|cursor| cursor.kept.settled.floor()).min().unwrap_or(next).min(next)
    }

    pub fn save(&self, database: &Connection) -> Result<(), rusqlite::Error> {
        for (number, partition) in self.partitions.iter().enumerate() {
            if partition.kept != partition.durable {
                load::save_partition(database, self.id, number, partition.kept)?;
            }
        }
        for group in self.groups.values() {
            for (number, cursor) in group.cursors.iter().enumerate().filter(|(_, cursor)| cursor.dirty) {
                load::save_cursor(database, group.id, number, &cursor.kept)?;
            }
        }
        Ok(())
    }

    /// Everything is to be written, what was delivered too.
    pub fn touch(&mut self) {
        self.dirty = true;
        self.groups.values_mut().flat_map(|group| &mut group.cursors).for_each(|cursor| cursor.dirty = true);
    }

    pub fn committed(&mut self) {
        if !std::mem::take(&mut self.dirty) {
            return;
        }
        let mut grown = false;
        for partition in &mut self.partitions {
            grown |= partition.durable.next != partition.kept.next;
            partition.durable = partition.kept;
        }
        for group in self.groups.values_mut() {
            group.ready |= grown;
            group.cursors.iter_mut().for_each(|cursor| cursor.dirty = false);
        }
    }

    /// The messages of the transaction never were. What was settled stays so in memory, and dirty.
    pub fn rolled_back(&mut self) {
        for partition in &mut self.partitions {
            partition.kept = partition.durable;
        }
    }

    /// What no file knows.
    pub fn live(&mut self, now: i64) -> Live {
        let groups = self.groups.iter_mut().map(|(name, group)| {
            let in_flight = group.cursors.iter().map(|cursor| u64::from(cursor.held)).sum();
            let consumers = u32::try_from(group.members.len()).unwrap_or(u32::MAX);
            (name.clone(), LiveGroup { in_flight, consumers, settled_per_s: group.settled.per_second(now) })
        });
        Live { groups: groups.collect(), published_per_s: self.published.per_second(now) }
    }
}

//! Counts rows that are really there, cheaply enough to be asked each second: a full chunk of a partition between its first
//! and its next offset does not change while nothing is lost, so it is counted once, and again in turn to see that.

use std::collections::{BTreeMap, HashMap};

use rusqlite::Connection;

use super::load::Partition;
use super::rows;

/// Offsets of one chunk.
const CHUNK: u64 = 4_096;

#[derive(Default)]
pub struct Census {
    partitions: HashMap<(u16, u32), Counted>,
    turn: u64,
}

#[derive(Default)]
struct Counted {
    next: u64,
    /// Rows by number of the chunk.
    chunks: BTreeMap<u64, u64>,
}

impl Census {
    /// To be called for each answer, with the channels that there are.
    pub fn begin(&mut self, channels: impl Iterator<Item = u16>) {
        let there: std::collections::HashSet<u16> = channels.collect();
        self.partitions.retain(|(channel, _), _| there.contains(channel));
        self.turn = self.turn.wrapping_add(1);
        for counted in self.partitions.values_mut() {
            // One chunk of each partition is counted again.
            let known = counted.chunks.len() as u64;
            if let Some(chunk) = self.turn.checked_rem(known).and_then(|at| counted.chunks.keys().nth(at as usize)) {
                counted.chunks.remove(&chunk.clone());
            }
        }
    }

    /// The rows from `from` on.
    pub fn count(
        &mut self,
        database: &Connection,
        channel: u16,
        number: u32,
        partition: Partition,
        from: u64,
    ) -> Result<u64, rusqlite::Error> {
        let counted = self.partitions.entry((channel, number)).or_default();
        if partition.next < counted.next {
            // Another channel has its number now.
            counted.chunks.clear();
        }
        counted.next = partition.next;
        counted.chunks = counted.chunks.split_off(&partition.first.div_ceil(CHUNK));
        let (from, to) = (from.max(partition.first), partition.next);
        let (begin, end) = (from.div_ceil(CHUNK), to / CHUNK);
        if begin >= end {
            return rows::count(database, channel, number, from, to);
        }
        let mut all = rows::count(database, channel, number, from, begin * CHUNK)?
            + rows::count(database, channel, number, end * CHUNK, to)?;
        for chunk in begin..end {
            all += match counted.chunks.get(&chunk) {
                Some(rows) => *rows,
                None => {
                    let rows = rows::count(database, channel, number, chunk * CHUNK, (chunk + 1) * CHUNK)?;
                    counted.chunks.insert(chunk, rows);
                    rows
                }
            };
        }
        Ok(all)
    }
}

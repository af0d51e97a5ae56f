//! Removing what every group has settled, by age and size, and keys whose window has passed. A partition loses messages at
//! its beginning only, so what is left of it is one range.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use rusqlite::{Connection, params};

use super::channel::Channel;
use super::{Engine, Fault, begin};
use crate::broker::BrokerError;
use crate::broker::embedded::store::place;

/// Rows looked at in one go, so that nobody waits long for it.
const CHUNK: u32 = 2_000;
/// How long messages and keys each may be removed at a time; everybody else waits.
const SLICE: Duration = Duration::from_millis(100);

impl Engine {
    /// Makes room for so many bytes.
    pub(super) fn make_room(&mut self, name: &str, size: u64) -> Result<(), Fault> {
        let channel = self.channels.get_mut(name).ok_or_else(|| BrokerError::NotFound(format!("channel {name}")))?;
        let most = channel.spec.max_size_bytes;
        if size > most {
            let why = format!("{size} bytes are more than channel {name} may keep ({most})");
            return Err(BrokerError::Refused(why).into());
        }
        if channel.bytes() + size <= most {
            return Ok(());
        }
        // A little more than needed, so that it is not done for every message.
        let enough = (most - size).min(most - most / 32);
        while channel.bytes() > enough && channel.trim_oldest(&self.database)? {}
        if channel.bytes() + size > most {
            let kept = channel.bytes();
            let why = format!("channel {name} keeps {kept} bytes of messages that are not settled; {most} is the most");
            return Err(BrokerError::Full(why).into());
        }
        Ok(())
    }

    /// Removes what is too old, a little of each partition in turn, until nothing is or this has taken long enough.
    pub(super) fn retain(&mut self) -> Result<(), rusqlite::Error> {
        self.retain_messages(Instant::now() + SLICE)?;
        self.forget_keys(Instant::now() + SLICE)?;
        if self.database.is_autocommit() {
            return Ok(());
        }
        self.save_dirty()?;
        self.database.prepare_cached("COMMIT")?.execute([])?;
        self.channels.values_mut().for_each(Channel::committed);
        Ok(())
    }

    fn retain_messages(&mut self, until: Instant) -> Result<(), rusqlite::Error> {
        let mut due = VecDeque::new();
        for (name, channel) in &self.channels {
            let oldest = self.now.saturating_sub(micros(channel.spec.retention));
            due.extend((0..channel.partitions.len()).map(|partition| (name.clone(), partition, oldest)));
        }
        self.in_turn(&mut due);
        while let Some((name, partition, oldest)) = due.pop_front() {
            let Some(channel) = self.channels.get_mut(&name) else { continue };
            if channel.oldest(&self.database, partition)?.is_some_and(|at| at < oldest) {
                channel.trim(&self.database, partition, oldest)?;
                due.push_back((name, partition, oldest));
            }
            if Instant::now() >= until {
                break;
            }
        }
        Ok(())
    }

    fn forget_keys(&mut self, until: Instant) -> Result<(), rusqlite::Error> {
        let expired = |channel: &Channel| self.now.saturating_sub(micros(channel.spec.idempotency_window));
        let mut due: VecDeque<_> = self.channels.values().map(|channel| (channel.id, expired(channel))).collect();
        self.in_turn(&mut due);
        while let Some((channel, expired)) = due.pop_front() {
            if has_expired_key(&self.database, channel, expired)? {
                begin(&self.database)?;
                self.database
                    .prepare_cached(
                        "DELETE FROM keys WHERE (channel, key) IN
                         (SELECT channel, key FROM keys WHERE channel = ?1 AND at <= ?2 ORDER BY at LIMIT ?3)",
                    )?
                    .execute(params![channel, expired, CHUNK])?;
                due.push_back((channel, expired));
            }
            if Instant::now() >= until {
                break;
            }
        }
        Ok(())
    }

    /// Lets another one begin each time, so that nobody is always the one for whom there is no time.
    fn in_turn<T>(&self, due: &mut VecDeque<T>) {
        let turn = self.tick.checked_rem(due.len() as u64).unwrap_or(0);
        due.rotate_left(usize::try_from(turn).unwrap_or(0));
    }
}

fn micros(time: Duration) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

fn has_expired_key(database: &Connection, channel: u16, expired: i64) -> Result<bool, rusqlite::Error> {
    database
        .prepare_cached("SELECT 1 FROM keys WHERE channel = ?1 AND at <= ?2 LIMIT 1")?
        .exists(params![channel, expired])
}

impl Channel {
    /// When the first message of a partition was accepted, if every group has settled it.
    fn oldest(&self, database: &Connection, partition: usize) -> Result<Option<i64>, rusqlite::Error> {
        let Some(kept) = self.partitions.get(partition).map(|partition| partition.kept) else { return Ok(None) };
        let limit = self.settled_below(partition);
        if kept.first >= limit {
            return Ok(None);
        }
        let number = u32::try_from(partition).unwrap_or(u32::MAX);
        let mut statement = database
            .prepare_cached("SELECT at FROM messages WHERE place >= ?1 AND place < ?2 ORDER BY place LIMIT 1")?;
        let places = params![place(self.id, number, kept.first), place(self.id, number, limit)];
        let mut rows = statement.query(places)?;
        // Where none of them has a row, the range may go at once.
        rows.next()?.map_or(Ok(Some(i64::MIN)), |row| row.get(0).map(Some))
    }

    /// Removes some of the oldest settled messages; `false` when there are none.
    fn trim_oldest(&mut self, database: &Connection) -> Result<bool, rusqlite::Error> {
        let mut oldest = None;
        for partition in 0..self.partitions.len() {
            if let Some(at) = self.oldest(database, partition)? {
                oldest = oldest.min(Some((at, partition))).or(Some((at, partition)));
            }
        }
        let Some((_, partition)) = oldest else { return Ok(false) };
        self.trim(database, partition, i64::MAX)?;
        Ok(true)
    }

    /// Removes settled messages from the beginning of a partition that were accepted before `before`, a chunk at most.
    fn trim(&mut self, database: &Connection, partition: usize, before: i64) -> Result<(), rusqlite::Error> {
        let limit = self.settled_below(partition);
        let number = u32::try_from(partition).unwrap_or(u32::MAX);
        let id = self.id;
        let Some(state) = self.partitions.get_mut(partition) else { return Ok(()) };
        let (from, mut to) = (place(id, number, state.kept.first), place(id, number, state.kept.first));
        let (mut bytes, mut looked, mut ended) = (0u64, 0, true);
        {
            let mut statement = database.prepare_cached(
                "SELECT place, at, coalesce(octet_length(key), 0) + octet_length(payload) FROM messages
                 WHERE place >= ?1 AND place < ?2 ORDER BY place",
            )?;
            let mut rows = statement.query(params![from, place(id, number, limit)])?;
            while let Some(row) = rows.next()? {
                if looked == CHUNK || row.get::<_, i64>(1)? >= before {
                    to = row.get(0)?;
                    ended = false;
                    break;
                }
                bytes += row.get::<_, u64>(2)?;
                looked += 1;
            }
        }
        if ended {
            to = place(id, number, limit);
        }
        begin(database)?;
        database.prepare_cached("DELETE FROM messages WHERE place >= ?1 AND place < ?2")?.execute(params![from, to])?;
        state.kept.first += (to - from).cast_unsigned();
        state.kept.bytes = state.kept.bytes.saturating_sub(bytes);
        self.dirty = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::broker::ChannelSpec;
    use crate::broker::embedded::codec::Raw;
    use crate::broker::embedded::settled::Settled;
    use crate::broker::embedded::store::{load, open, rows};

    const MESSAGES: u64 = 5_000;

    /// An engine with old messages and keys in one channel, of which all below `floor` are settled.
    fn engine(folder: &std::path::Path, floor: u64) -> Engine {
        let opened = open::open(folder).expect("a file");
        let database = &opened.database;
        let spec =
            ChannelSpec { max_size_bytes: MESSAGES * 10, ..crate::broker::conformance::channel("old", 1, &["all"]) };
        database.execute_batch("BEGIN").expect("a transaction");
        load::save_channel(database, 1, &spec).expect("a channel");
        let group = load::add_group(database, 1, "all").expect("a group");
        for offset in 0..MESSAGES {
            let message = Raw { id: "id".into(), payload: vec![7; 10].into(), ..Raw::default() };
            rows::insert(database, place(1, 0, offset), 1, &message).expect("a row");
            let key = params![format!("key-{offset}"), place(1, 0, offset)];
            database
                .execute("INSERT INTO keys (channel, key, at, place, id) VALUES (1, ?1, 1, ?2, 'id')", key)
                .expect("a key");
        }
        let partition = load::Partition { first: 0, next: MESSAGES, bytes: MESSAGES * 10 };
        load::save_partition(database, 1, 0, partition).expect("a partition");
        let cursor = load::Cursor { settled: Settled::below(floor), ..load::Cursor::default() };
        load::save_cursor(database, group, 0, &cursor).expect("a cursor");
        database.execute_batch("COMMIT").expect("it is there");
        let (views, _) = std::sync::mpsc::sync_channel(1);
        Engine::new(opened, folder.to_owned(), views, Arc::default()).expect("an engine")
    }

    #[test]
    fn what_is_old_and_settled_goes() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut engine = engine(folder.path(), MESSAGES - 1);
        let count = |engine: &Engine, table: &str| -> u64 {
            let sql = format!("SELECT count(*) FROM {table}");
            engine.database.query_row(&sql, [], |row| row.get(0)).expect("a count")
        };
        let mut before = 2 * MESSAGES;
        loop {
            engine.retain().expect("it is removed");
            assert!(engine.database.is_autocommit(), "no transaction stays open");
            let left = count(&engine, "messages") + count(&engine, "keys");
            if left == 1 {
                break;
            }
            assert!(left < before, "each time some are removed, until none is left: {left}");
            before = left;
        }
        let partition = engine.channels.values().next().and_then(|channel| channel.partitions.first());
        let kept = load::Partition { first: MESSAGES - 1, next: MESSAGES, bytes: 10 };
        assert_eq!(partition.map(|partition| partition.durable), Some(kept));
    }

    #[test]
    fn where_nothing_can_go_no_transaction_is_begun() {
        let folder = tempfile::tempdir().expect("a folder");
        let mut engine = engine(folder.path(), 0);
        let name = engine.channels.keys().next().cloned().expect("a channel");
        assert!(matches!(engine.make_room(&name, 1), Err(Fault::Answer(BrokerError::Full(_)))));
        assert!(engine.database.is_autocommit());
    }
}

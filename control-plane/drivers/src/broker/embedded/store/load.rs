//! What the engine knows, as it is in the file: channels, partitions, groups and cursors.

use std::collections::BTreeMap;

use rusqlite::{Connection, OptionalExtension, params};

use crate::broker::ChannelSpec;
use crate::broker::embedded::settled::Settled;

/// A channel as it is kept.
#[derive(Clone, Debug)]
pub struct Channel {
    pub id: u16,
    pub spec: ChannelSpec,
    pub partitions: Vec<Partition>,
    pub groups: BTreeMap<String, Group>,
}

/// The first offset that retention has left, the next one to be given, and the bytes between.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Partition {
    pub first: u64,
    pub next: u64,
    pub bytes: u64,
}

#[derive(Clone, Debug)]
pub struct Group {
    pub id: i64,
    pub paused: Option<String>,
    /// By partition.
    pub cursors: Vec<Cursor>,
}

/// Where a group stands in a partition.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The group was given everything from here on.
    pub base: u64,
    pub settled: Settled,
    pub processed: u64,
    pub moved: u64,
    pub skipped: u64,
    pub rewound: u64,
    /// Behind the last message that may have been delivered.
    pub delivered: u64,
}

/// Every channel.
pub fn channels(database: &Connection) -> Result<Vec<Channel>, rusqlite::Error> {
    let mut statement = database.prepare_cached("SELECT id, spec FROM channels ORDER BY name")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, u16>(0)?, row.get::<_, String>(1)?)))?;
    let mut channels = Vec::new();
    for row in rows {
        let (id, spec) = row?;
        channels.push(whole(database, id, &spec)?);
    }
    Ok(channels)
}

/// The channel of this name.
pub fn channel(database: &Connection, name: &str) -> Result<Option<Channel>, rusqlite::Error> {
    let mut statement = database.prepare_cached("SELECT id, spec FROM channels WHERE name = ?1")?;
    let found = statement.query_row([name], |row| Ok((row.get::<_, u16>(0)?, row.get::<_, String>(1)?))).optional()?;
    found.map(|(id, spec)| whole(database, id, &spec)).transpose()
}

fn whole(database: &Connection, id: u16, spec: &str) -> Result<Channel, rusqlite::Error> {
    let spec: ChannelSpec = serde_json::from_str(spec)
        .map_err(|why| rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, Box::new(why)))?;
    let partitions = partitions(database, id)?;
    let groups = groups(database, id, partitions.len())?;
    Ok(Channel { id, spec, partitions, groups })
}

fn partitions(database: &Connection, channel: u16) -> Result<Vec<Partition>, rusqlite::Error> {
    let mut statement =
        database.prepare_cached("SELECT first, next, bytes FROM partitions WHERE channel = ?1 ORDER BY partition")?;
    let rows = statement
        .query_map([channel], |row| Ok(Partition { first: row.get(0)?, next: row.get(1)?, bytes: row.get(2)? }))?;
    rows.collect()
}

fn groups(database: &Connection, channel: u16, partitions: usize) -> Result<BTreeMap<String, Group>, rusqlite::Error> {
    let mut statement = database.prepare_cached("SELECT id, name, paused FROM groups WHERE channel = ?1")?;
    let rows = statement.query_map([channel], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    let mut groups = BTreeMap::new();
    for row in rows {
        let (id, name, paused) = row?;
        let mut cursors = cursors(database, id)?;
        cursors.resize(partitions, Cursor::default());
        groups.insert(name, Group { id, paused, cursors });
    }
    Ok(groups)
}

fn cursors(database: &Connection, group: i64) -> Result<Vec<Cursor>, rusqlite::Error> {
    let mut statement = database.prepare_cached(
        "SELECT base, floor, above, processed, moved, skipped, rewound, delivered FROM cursors WHERE grp = ?1 ORDER BY partition",
    )?;
    let rows = statement.query_map([group], |row| {
        Ok(Cursor {
            base: row.get(0)?,
            settled: Settled::decode(row.get(1)?, row.get_ref(2)?.as_blob().unwrap_or_default()),
            processed: row.get(3)?,
            moved: row.get(4)?,
            skipped: row.get(5)?,
            rewound: row.get(6)?,
            delivered: row.get(7)?,
        })
    })?;
    rows.collect()
}

/// The number after the highest that any channel ever had.
pub fn next_channel(database: &Connection) -> Result<u16, rusqlite::Error> {
    let last = database.query_row("SELECT max(seq) FROM sqlite_sequence WHERE name = 'channels'", [], |row| {
        row.get::<_, Option<u16>>(0)
    })?;
    Ok(last.unwrap_or(0).saturating_add(1))
}

pub fn save_channel(database: &Connection, id: u16, spec: &ChannelSpec) -> Result<(), rusqlite::Error> {
    let json = serde_json::to_string(spec).map_err(|why| rusqlite::Error::ToSqlConversionFailure(Box::new(why)))?;
    database
        .prepare_cached(
            "INSERT INTO channels (id, name, spec) VALUES (?1, ?2, ?3) ON CONFLICT (id) DO UPDATE SET spec = ?3",
        )?
        .execute(params![id, spec.name, json])?;
    Ok(())
}

pub fn save_partition(
    database: &Connection,
    channel: u16,
    number: usize,
    partition: Partition,
) -> Result<(), rusqlite::Error> {
    database
        .prepare_cached(
            "INSERT OR REPLACE INTO partitions (channel, partition, first, next, bytes) VALUES (?1, ?2, ?3, ?4, ?5)",
        )?
        .execute(params![channel, number, partition.first, partition.next, partition.bytes])?;
    Ok(())
}

/// The new group's number.
pub fn add_group(database: &Connection, channel: u16, name: &str) -> Result<i64, rusqlite::Error> {
    database.execute("INSERT INTO groups (channel, name) VALUES (?1, ?2)", params![channel, name])?;
    Ok(database.last_insert_rowid())
}

pub fn save_paused(database: &Connection, group: i64, paused: Option<&str>) -> Result<(), rusqlite::Error> {
    database.execute("UPDATE groups SET paused = ?2 WHERE id = ?1", params![group, paused])?;
    Ok(())
}

pub fn save_cursor(
    database: &Connection,
    group: i64,
    partition: usize,
    cursor: &Cursor,
) -> Result<(), rusqlite::Error> {
    database
        .prepare_cached(
            "INSERT OR REPLACE INTO cursors (grp, partition, base, floor, above, processed, moved, skipped, rewound, delivered)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10)",
        )?
        .execute(params![
            group,
            partition,
            cursor.base,
            cursor.settled.floor(),
            cursor.settled.encode(),
            cursor.processed,
            cursor.moved,
            cursor.skipped,
            cursor.rewound,
            cursor.delivered
        ])?;
    Ok(())
}

pub fn remove_group(database: &Connection, group: i64) -> Result<(), rusqlite::Error> {
    database.execute("DELETE FROM cursors WHERE grp = ?1", [group])?;
    database.execute("DELETE FROM groups WHERE id = ?1", [group])?;
    Ok(())
}

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
///
/// # Errors
/// Altered or missing rows are damage of the file: nothing may be decided by what is left.
pub fn channels(database: &Connection) -> Result<Vec<Channel>, rusqlite::Error> {
    specs(database)?.into_iter().map(|(id, spec)| channel_of(database, id, spec)).collect()
}

/// The channel of this name.
///
/// # Errors
/// As of [`channels`].
pub fn channel(database: &Connection, name: &str) -> Result<Option<Channel>, rusqlite::Error> {
    let mut statement = database.prepare_cached("SELECT id, spec FROM channels WHERE name = ?1")?;
    let found = statement.query_row([name], |row| Ok((row.get::<_, u16>(0)?, row.get::<_, String>(1)?))).optional()?;
    found.map(|(id, spec)| channel_of(database, id, parsed(id, &spec)?)).transpose()
}

fn channel_of(database: &Connection, id: u16, spec: ChannelSpec) -> Result<Channel, rusqlite::Error> {
    let partitions = whole(partitions(database, id)?, spec.partitions, "partition", &spec.name)?;
    let mut groups = BTreeMap::new();
    for (group, name, paused) in self::groups(database, id)? {
        let cursors = whole(cursors(database, group)?, spec.partitions, "cursor", &spec.name)?;
        groups.insert(name, Group { id: group, paused, cursors });
    }
    Ok(Channel { id, spec, partitions, groups })
}

fn parsed(id: u16, spec: &str) -> Result<ChannelSpec, rusqlite::Error> {
    serde_json::from_str(spec).map_err(|why| damage(format!("the channel {id} is altered: {why}")))
}

/// Number and declaration of every channel.
pub fn specs(database: &Connection) -> Result<Vec<(u16, ChannelSpec)>, rusqlite::Error> {
    let mut statement = database.prepare_cached("SELECT id, spec FROM channels ORDER BY name")?;
    let rows = statement.query_map([], |row| Ok((row.get::<_, u16>(0)?, row.get::<_, String>(1)?)))?;
    rows.map(|row| {
        let (id, spec) = row?;
        Ok((id, parsed(id, &spec)?))
    })
    .collect()
}

/// Number, name, and why it is paused, of each group of a channel.
pub fn groups(database: &Connection, channel: u16) -> Result<Vec<(i64, String, Option<String>)>, rusqlite::Error> {
    let mut statement = database.prepare_cached("SELECT id, name, paused FROM groups WHERE channel = ?1")?;
    statement.query_map([channel], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?.collect()
}

/// The partitions of a channel whose rows are as they were written.
pub fn partitions(database: &Connection, channel: u16) -> Result<BTreeMap<u32, Partition>, rusqlite::Error> {
    let mut statement =
        database.prepare_cached("SELECT partition, first, next, bytes, crc FROM partitions WHERE channel = ?1")?;
    let mut rows = statement.query([channel])?;
    let mut partitions = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let read = || -> Result<_, rusqlite::Error> {
            let partition = Partition { first: row.get(1)?, next: row.get(2)?, bytes: row.get(3)? };
            Ok((row.get(0)?, partition, row.get::<_, u32>(4)?))
        };
        if let Ok((number, partition, crc)) = read()
            && partition.crc(channel, number) == crc
        {
            partitions.insert(number, partition);
        }
    }
    Ok(partitions)
}

/// The cursors of a group, by partition, whose rows are as they were written.
pub fn cursors(database: &Connection, group: i64) -> Result<BTreeMap<u32, Cursor>, rusqlite::Error> {
    let mut statement = database.prepare_cached(
        "SELECT partition, base, floor, above, processed, moved, skipped, rewound, delivered, crc FROM cursors WHERE grp = ?1",
    )?;
    let mut rows = statement.query([group])?;
    let mut cursors = BTreeMap::new();
    while let Some(row) = rows.next()? {
        let read = || -> Result<_, rusqlite::Error> {
            let cursor = Cursor {
                base: row.get(1)?,
                settled: Settled::decode(row.get(2)?, row.get_ref(3)?.as_blob().unwrap_or_default()),
                processed: row.get(4)?,
                moved: row.get(5)?,
                skipped: row.get(6)?,
                rewound: row.get(7)?,
                delivered: row.get(8)?,
            };
            Ok((row.get(0)?, cursor, row.get::<_, u32>(9)?))
        };
        if let Ok((number, cursor, crc)) = read()
            && cursor.crc(group, number, &cursor.settled.encode()) == crc
        {
            cursors.insert(number, cursor);
        }
    }
    Ok(cursors)
}

/// All of them, in order; one that is not there is damage.
fn whole<T>(rows: BTreeMap<u32, T>, wanted: u32, what: &str, channel: &str) -> Result<Vec<T>, rusqlite::Error> {
    if let Some(lost) = (0..wanted).find(|number| !rows.contains_key(number)) {
        return Err(damage(format!("the {what} {lost} of channel {channel} is altered or missing")));
    }
    Ok(rows.into_values().take(wanted as usize).collect())
}

fn damage(why: String) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(rusqlite::ffi::Error::new(rusqlite::ffi::SQLITE_CORRUPT), Some(why))
}

impl Partition {
    fn crc(&self, channel: u16, number: u32) -> u32 {
        sum(&[u64::from(channel), u64::from(number), self.first, self.next, self.bytes], &[])
    }
}

impl Cursor {
    fn crc(&self, group: i64, number: u32, above: &[u8]) -> u32 {
        let Self { base, settled, processed, moved, skipped, rewound, delivered } = self;
        let group = group.cast_unsigned();
        let floor = settled.floor();
        sum(&[group, u64::from(number), *base, floor, *processed, *moved, *skipped, *rewound, *delivered], above)
    }
}

/// The check sum of a row.
fn sum(numbers: &[u64], rest: &[u8]) -> u32 {
    let mut crc = crc32fast::Hasher::new();
    numbers.iter().for_each(|number| crc.update(&number.to_be_bytes()));
    crc.update(rest);
    crc.finalize()
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
    let crc = partition.crc(channel, u32::try_from(number).unwrap_or(u32::MAX));
    database
        .prepare_cached(
            "INSERT OR REPLACE INTO partitions (channel, partition, first, next, bytes, crc)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
        )?
        .execute(params![channel, number, partition.first, partition.next, partition.bytes, crc])?;
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
    let above = cursor.settled.encode();
    let crc = cursor.crc(group, u32::try_from(partition).unwrap_or(u32::MAX), &above);
    database
        .prepare_cached(
            "INSERT OR REPLACE INTO cursors
             (grp, partition, base, floor, above, processed, moved, skipped, rewound, delivered, crc)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11)",
        )?
        .execute(params![
            group,
            partition,
            cursor.base,
            cursor.settled.floor(),
            above,
            cursor.processed,
            cursor.moved,
            cursor.skipped,
            cursor.rewound,
            cursor.delivered,
            crc
        ])?;
    Ok(())
}

pub fn remove_group(database: &Connection, group: i64) -> Result<(), rusqlite::Error> {
    database.execute("DELETE FROM cursors WHERE grp = ?1", [group])?;
    database.execute("DELETE FROM groups WHERE id = ?1", [group])?;
    Ok(())
}

//! What removed channels leave behind. A channel is gone with its row; its messages and keys may be millions, and go bit by
//! bit while others are served.
//!
//! Invariant: whatever belongs to no channel is a leftover, so a crash forgets none of it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, params};

use super::Engine;
use crate::broker::embedded::store::{MOST_CHANNELS, MOST_PARTITIONS, channel_of, place};

/// Rows removed in one go.
const CHUNK: u32 = 500;
/// How long others wait for it, each tick.
const AT_MOST: Duration = Duration::from_millis(50);

/// The numbers of channels that are gone, but not wholly.
pub(super) fn find(database: &Connection, known: impl Fn(u16) -> bool) -> Result<BTreeSet<u16>, rusqlite::Error> {
    let mut found = BTreeSet::new();
    for table in ["messages", "damaged"] {
        let mut next =
            database.prepare(&format!("SELECT place FROM {table} WHERE place >= ?1 ORDER BY place LIMIT 1"))?;
        found.extend(numbers(|from| next.query_row([place(from, 0, 0)], |row| row.get(0).map(channel_of)).optional())?);
    }
    let mut next = database.prepare("SELECT channel FROM keys WHERE channel >= ?1 ORDER BY channel LIMIT 1")?;
    found.extend(numbers(|from| next.query_row([from], |row| row.get(0)).optional())?);
    found.retain(|id| !known(*id));
    Ok(found)
}

/// The numbers there are, from the first one that there is from another on.
fn numbers(mut first: impl FnMut(u16) -> Result<Option<u16>, rusqlite::Error>) -> Result<Vec<u16>, rusqlite::Error> {
    let (mut found, mut from) = (Vec::new(), 0);
    while from <= MOST_CHANNELS
        && let Some(id) = first(from)?
    {
        found.push(id);
        from = id.saturating_add(1);
    }
    Ok(found)
}

impl Engine {
    /// Removes some of it.
    pub(super) fn sweep(&mut self) -> Result<(), rusqlite::Error> {
        let Some(id) = self.leftovers.first().copied() else { return Ok(()) };
        let began = Instant::now();
        self.begin()?;
        let mut more = true;
        while more && began.elapsed() < AT_MOST {
            more = remove_some(&self.database, id)?;
        }
        self.database.prepare_cached("COMMIT")?.execute([])?;
        if !more {
            self.leftovers.remove(&id);
        }
        Ok(())
    }
}

/// Whether there was anything to remove.
fn remove_some(database: &Connection, id: u16) -> Result<bool, rusqlite::Error> {
    let mut removed = 0;
    for table in ["messages", "damaged"] {
        let sql = format!(
            "DELETE FROM {table} WHERE place IN
             (SELECT place FROM {table} WHERE place BETWEEN ?1 AND ?2 ORDER BY place LIMIT ?3)"
        );
        let places = params![place(id, 0, 0), place(id, MOST_PARTITIONS - 1, u64::MAX), CHUNK];
        removed += database.prepare_cached(&sql)?.execute(places)?;
    }
    removed += database
        .prepare_cached(
            "DELETE FROM keys WHERE channel = ?1 AND key IN (SELECT key FROM keys WHERE channel = ?1 LIMIT ?2)",
        )?
        .execute(params![id, CHUNK])?;
    Ok(removed > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::embedded::codec::Raw;
    use crate::broker::embedded::store::{open, rows};

    #[test]
    fn what_belongs_to_no_channel_is_found_and_removed() {
        let folder = tempfile::tempdir().expect("a folder");
        let database = open::open(folder.path()).expect("a file").database;
        for id in [1, 2, MOST_CHANNELS] {
            for number in 0..u64::from(CHUNK) + 1 {
                let message = Raw { id: "m".into(), ..Raw::default() };
                let place = place(id, 255 * (number % 2) as u32, number);
                rows::insert(&database, place, 0, &message).expect("a row");
                database
                    .execute("INSERT INTO keys VALUES (?1, ?2, 0, ?3, 'm')", params![id, number.to_string(), place])
                    .expect("a key");
            }
        }
        assert_eq!(find(&database, |id| id == 2).expect("numbers"), BTreeSet::from([1, MOST_CHANNELS]));
        for id in [1, MOST_CHANNELS] {
            while remove_some(&database, id).expect("it removes") {}
        }
        assert_eq!(find(&database, |_| false).expect("numbers"), BTreeSet::from([2]));
        let count =
            |table| database.query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get::<_, u32>(0));
        assert_eq!((count("messages"), count("keys")), (Ok(CHUNK + 1), Ok(CHUNK + 1)));
    }
}
